//! A job as a process of its own: `PROGRAM --config NUMBER/config.yaml`, with a log.

use std::{
    env, fs,
    fs::File,
    io,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use anyhow::Context;
use chrono::{SecondsFormat, Utc};
use job_kit::{Verbosity, WithHint, output::FolderLock};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};

use crate::manifest::{CONFIG, LOG};

/// Variables by which libraries know how many threads they may use.
const THREADS: [&str; 2] = ["RAYON_NUM_THREADS", "OMP_NUM_THREADS"];

/// Programs that hold several jobs, as a wheel has them.
const PROGRAMS: [&str; 2] = ["longtail-neurons", "longtail-neurons-torch"];

/// This program's own file.
///
/// # Errors
/// If the system does not tell.
pub(crate) fn program() -> anyhow::Result<PathBuf> {
    env::current_exe().context("failed to find this program's own file")
}

/// A path as one word of a shell.
pub(crate) fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=+,@%".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.into_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// This program for a shell, with the name of the job if it has several.
///
/// # Errors
/// As [`program`].
pub(crate) fn in_shell() -> anyhow::Result<String> {
    let program = quoted(&program()?);
    Ok(match job_kit::dispatched() {
        Some(name) => format!("{program} {name}"),
        None => program,
    })
}

/// The program of a job: one of its name beside this one, or one of several jobs.
///
/// # Errors
/// If there is none.
pub(crate) fn of_job(job: &str) -> anyhow::Result<Command> {
    let this = program()?;
    let beside = |name: &str| this.with_file_name(format!("{name}{}", env::consts::EXE_SUFFIX));
    let own = beside(job);
    if own.is_file() {
        return Ok(Command::new(own));
    }
    for several in PROGRAMS
        .map(beside)
        .into_iter()
        .filter(|path| path.is_file())
    {
        let holds = Command::new(&several)
            .args([job, "--version"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if holds.is_ok_and(|status| status.success()) {
            let mut command = Command::new(several);
            command.arg(job);
            return Ok(command);
        }
    }
    Err(anyhow::anyhow!("there is no program `{}`", own.display()))
        .hint("a step's `job` is the name of a program that lies beside this one")
}

/// Starts the job of a folder; `threads` is its share of the cores, if it has one.
///
/// # Errors
/// If its log cannot be written, or it cannot be started.
pub(crate) fn start(
    folder: &Path,
    threads: Option<usize>,
    verbosity: Verbosity,
) -> anyhow::Result<Child> {
    // An earlier run of the job that was killed may not quite have gone.
    drop(FolderLock::take(folder, Duration::from_secs(2)));
    let log_path = folder.join(LOG);
    let log = File::create(&log_path)
        .with_context(|| format!("failed to write `{}`", log_path.display()))?;
    let mut command = Command::new(program()?);
    command.args(job_kit::dispatched());
    command.arg("--config").arg(folder.join(CONFIG));
    command.arg(format!("--started-by={}", std::process::id()));
    say_as_much(&mut command, verbosity);
    for name in THREADS {
        if let (Some(threads), None) = (threads, env::var_os(name)) {
            command.env(name, threads.to_string());
        }
    }
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("failed to start the job of `{}`", folder.display()))
}

/// Has another program of ours say as much as this one.
pub(crate) fn say_as_much(command: &mut Command, verbosity: Verbosity) {
    if verbosity.quiet {
        command.arg("--quiet");
    }
    command.args(std::iter::repeat_n("--verbose", verbosity.verbose.into()));
}

/// Is set once this process is told to end, by Ctrl-C or a request.
///
/// # Errors
/// If the system refuses to tell.
pub(crate) fn told_to_end() -> io::Result<Arc<AtomicBool>> {
    let told = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register(signal, told.clone())?;
    }
    Ok(told)
}

/// Ties this process to the launcher that started it: should that be killed, nobody would tell what became of the job, and the next
/// launcher would find it at work.
pub(crate) fn end_with(launcher: u32) {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{Signal, getppid, set_parent_process_death_signal};

        let _ = set_parent_process_death_signal(Some(Signal::KILL));
        // It may have gone before.
        if getppid().map(|parent| parent.as_raw_nonzero().get()) != i32::try_from(launcher).ok() {
            std::process::exit(1);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = launcher;
}

/// Asks a job to end.
pub(crate) fn terminate(child: &Child) {
    #[cfg(unix)]
    {
        use rustix::process::{Pid, Signal, kill_process};

        // One that has ended meanwhile is no error.
        let _ = kill_process(Pid::from_child(child), Signal::TERM);
    }
    #[cfg(not(unix))]
    let _ = child;
}

/// What a job said last: its error, or else its last line, or else how it ended.
pub(crate) fn error_of(folder: &Path, status: ExitStatus) -> String {
    let text = fs::read(folder.join(LOG)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let error = text.lines().rev().find(|line| line.starts_with("error: "));
    match (error, status.code()) {
        (Some(error), Some(_)) => error.to_owned(),
        (None, Some(code)) => {
            let last = text.lines().rev().find(|line| !line.trim().is_empty());
            format!("exit code {code}: {}", last.unwrap_or("nothing was said"))
        }
        (_, None) => format!("ended by a {status}"),
    }
}

/// What became of a job that the system ended to get memory.
pub(crate) const OUT_OF_MEMORY: &str = "out of memory: the system killed it";

/// How often the system had killed a process of this one's group to get memory, at some moment.
pub(crate) struct MemoryKills(u64);

impl MemoryKills {
    pub(crate) fn now() -> Self {
        Self(out_of_memory_kills())
    }

    /// Whether it has done so since.
    pub(crate) fn more(&self) -> bool {
        out_of_memory_kills() > self.0
    }
}

/// How many processes of this group the system has killed to get memory; 0 where it does not tell.
fn out_of_memory_kills() -> u64 {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let files = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (kinds, path) = (parts.next()?, parts.next()?.trim_start_matches('/'));
        match kinds {
            "" => Some(
                PathBuf::from("/sys/fs/cgroup")
                    .join(path)
                    .join("memory.events"),
            ),
            kinds if kinds.split(',').any(|kind| kind == "memory") => Some(
                PathBuf::from("/sys/fs/cgroup/memory")
                    .join(path)
                    .join("memory.oom_control"),
            ),
            _ => None,
        }
    });
    let counts = files.filter_map(|file| {
        let text = fs::read_to_string(file).ok()?;
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count?.trim().parse::<u64>().ok()
    });
    counts.sum()
}

/// The name of this machine.
pub(crate) fn host() -> Option<String> {
    let kernel = fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let named = kernel.or_else(|| env::var("HOSTNAME").ok());
    let named = named.or_else(|| env::var("COMPUTERNAME").ok());
    named.map(|name| name.trim().to_owned())
}

/// Now, as `2026-01-31T23:59:59Z`.
pub(crate) fn now() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// Seconds for people, to the millisecond.
pub(crate) fn rounded(seconds: f64) -> f64 {
    (seconds * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_word() {
        for (path, word) in [
            ("/a/b-1.yaml", "/a/b-1.yaml"),
            ("it's here", r"'it'\''s here'"),
            ("$HOME", "'$HOME'"),
        ] {
            assert_eq!(quoted(Path::new(path)), word);
        }
    }
}
