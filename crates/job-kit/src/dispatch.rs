//! One program with several names: the job is told by the name that the program was called by.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::Path,
    process::ExitCode,
    sync::OnceLock,
};

use crate::stdio::tell;

/// A job of a program with several: its name, and its `main`.
pub type NamedJob = (&'static str, fn() -> ExitCode);

static DISPATCHED: OnceLock<&'static str> = OnceLock::new();

/// The job that a program with several does now; none in a program of one job.
///
/// To start another process of it, the name goes first among the arguments.
pub fn dispatched() -> Option<&'static str> {
    DISPATCHED.get().copied()
}

/// Ends as the job does whose name the program was called by, else as the one that its first argument names.
///
/// # Examples
/// ```no_run
/// use std::process::ExitCode;
///
/// fn main() -> ExitCode {
///     job_kit::dispatch(&[("count", || ExitCode::SUCCESS), ("fail", || ExitCode::FAILURE)])
/// }
/// ```
pub fn dispatch(jobs: &[NamedJob]) -> ExitCode {
    let mut args = env::args_os();
    let called = args.next().unwrap_or_default();
    if let Some((name, main)) = jobs.iter().find(|(name, _)| named(&called) == Some(*name)) {
        let _ = DISPATCHED.set(name);
        return main();
    }
    let first = args.next();
    let chosen = jobs
        .iter()
        .find(|(name, _)| first.as_deref().is_some_and(|first| first == *name));
    match chosen {
        Some((name, _)) => under_the_name(name, args),
        None => {
            let names: Vec<&str> = jobs.iter().map(|(name, _)| *name).collect();
            let names = names.join(", ");
            let program = named(&called).unwrap_or("PROGRAM").to_owned();
            let asked = first.map(|first| first.to_string_lossy().into_owned());
            match asked.as_deref() {
                None | Some("-h" | "--help") => crate::exit(
                    crate::print(format!(
                        "Usage: {program} JOB [ARGUMENT]...\n\nJobs: {names}\n"
                    ))
                    .map_err(Into::into),
                ),
                Some(other) => {
                    tell(&format!(
                        "error: `{other}` is no job of this program\nhint: jobs: {names}"
                    ));
                    ExitCode::from(2)
                }
            }
        }
    }
}

/// The name in the path of a program.
fn named(called: &OsStr) -> Option<&str> {
    Path::new(called).file_stem()?.to_str()
}

/// Starts this program again under the name of a job, in place of this process: what reads the command line finds only what is its own.
fn under_the_name(job: &str, args: impl Iterator<Item = OsString>) -> ExitCode {
    let program = match env::current_exe() {
        Ok(program) => program,
        Err(err) => {
            tell(&format!(
                "error: failed to find this program's own file: {err}"
            ));
            return ExitCode::FAILURE;
        }
    };
    let mut command = std::process::Command::new(program);
    command.args(args);
    #[cfg(unix)]
    let failed = {
        use std::os::unix::process::CommandExt;
        command.arg0(job).exec()
    };
    #[cfg(not(unix))]
    let failed = std::io::Error::other("programs are told their name only on Unix");
    tell(&format!("error: failed to start `{job}`: {failed}"));
    ExitCode::FAILURE
}
