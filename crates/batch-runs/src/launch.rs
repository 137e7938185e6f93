//! Jobs as processes of the same program, a bounded number at a time.

use std::{
    env, fs,
    fs::File,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use chrono::{SecondsFormat, Utc};
use job_kit::Verbosity;
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};

use crate::{
    BatchArgs,
    manifest::{CONFIG, LOG, Manifest, State},
};

/// How often running jobs are looked at.
const LOOK: Duration = Duration::from_millis(5);
/// How often the manifest is written while jobs end; a job that has ended is known by its own `run.json` too.
const WRITE: Duration = Duration::from_secs(1);
/// Variables by which libraries know how many threads they may use.
const THREADS: [&str; 2] = ["RAYON_NUM_THREADS", "OMP_NUM_THREADS"];

/// How the launcher ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// All that was to be started has ended.
    Whole,
    /// By Ctrl-C or a request to terminate.
    Interrupted,
}

struct Running {
    place: usize,
    child: Child,
    since: Instant,
}

/// Runs the jobs at these places.
///
/// # Errors
/// If a job cannot be started, or the manifest not be written; jobs that fail are no error.
pub(crate) fn run(
    manifest: &mut Manifest,
    todo: &[usize],
    args: &BatchArgs,
    verbosity: Verbosity,
) -> anyhow::Result<Ended> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The second time at once.
        flag::register_conditional_shutdown(signal, 128 + signal, stop.clone())?;
        flag::register(signal, stop.clone())?;
    }
    let at_once = args.jobs.map_or(1, usize::from);
    let mut running: Vec<Running> = vec![];
    let ended = attempt(
        manifest,
        todo,
        args,
        verbosity,
        at_once,
        &stop,
        &mut running,
    );
    // Whatever happened, no job is left behind.
    for job in &mut running {
        let _ = job.child.kill();
        let _ = job.child.wait();
        interrupted(manifest, job);
    }
    manifest.write()?;
    ended
}

fn attempt(
    manifest: &mut Manifest,
    todo: &[usize],
    args: &BatchArgs,
    verbosity: Verbosity,
    at_once: usize,
    stop: &AtomicBool,
    running: &mut Vec<Running>,
) -> anyhow::Result<Ended> {
    let mut waiting = todo.iter().copied();
    let (mut any_failed, mut ended, mut written) = (false, 0, Instant::now());
    loop {
        if stop.load(Ordering::Relaxed) {
            return Ok(Ended::Interrupted);
        }
        while running.len() < at_once && !(any_failed && args.fail_fast) {
            let Some(place) = waiting.next() else {
                break;
            };
            running.push(start(manifest, place, at_once, verbosity)?);
        }
        if running.is_empty() {
            return Ok(Ended::Whole);
        }
        let mut i = 0;
        while i < running.len() {
            let Some(status) = running[i].child.try_wait()? else {
                i += 1;
                continue;
            };
            let job = running.swap_remove(i);
            // Ctrl-C reaches the jobs too.
            if stop.load(Ordering::Relaxed) && !status.success() {
                interrupted(manifest, &job);
                continue;
            }
            ended += 1;
            finish(manifest, &job, status);
            let entry = &manifest.jobs[job.place];
            any_failed |= entry.state == State::Failed;
            let (number, state, all) = (entry.number, entry.state.name(), todo.len());
            let seconds = entry.seconds.unwrap_or_default();
            let values = entry.overrides.join(" ");
            tracing::info!(
                "{ended} of {all}: job {number} {state} after {seconds:.1} s ({values})"
            );
        }
        if written.elapsed() >= WRITE {
            manifest.write()?;
            written = Instant::now();
        }
        thread::sleep(LOOK);
    }
}

fn start(
    manifest: &mut Manifest,
    place: usize,
    at_once: usize,
    verbosity: Verbosity,
) -> anyhow::Result<Running> {
    let folder = manifest.job_folder(place);
    let log_path = folder.join(LOG);
    let log = File::create(&log_path)
        .with_context(|| format!("failed to write `{}`", log_path.display()))?;
    let program = env::current_exe().context("failed to find this program's own file")?;
    let mut command = Command::new(program);
    // A program of several jobs goes by the name that it is called by.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::arg0(&mut command, &manifest.job);
    command.arg("--config").arg(folder.join(CONFIG));
    if verbosity.quiet {
        command.arg("--quiet");
    }
    command.args(std::iter::repeat_n("--verbose", verbosity.verbose.into()));
    if at_once > 1 {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let share = (cores / at_once).max(1).to_string();
        for name in THREADS {
            if env::var_os(name).is_none() {
                command.env(name, &share);
            }
        }
    }
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let entry = &mut manifest.jobs[place];
    let number = entry.number;
    let child = command
        .spawn()
        .with_context(|| format!("failed to start job {number}"))?;
    entry.state = State::Running;
    entry.started = Some(Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true));
    entry.host = host();
    (entry.seconds, entry.exit_code, entry.error) = (None, None, None);
    entry.attempts += 1;
    Ok(Running {
        place,
        child,
        since: Instant::now(),
    })
}

fn note(manifest: &mut Manifest, place: usize, since: Instant, state: State) {
    let entry = &mut manifest.jobs[place];
    entry.state = state;
    entry.seconds = Some((since.elapsed().as_secs_f64() * 1e3).round() / 1e3);
}

/// A job that was stopped; if it was just after its last file, it has finished.
fn interrupted(manifest: &mut Manifest, job: &Running) {
    let record = manifest.has_record(job.place);
    let state = match record {
        true => State::Finished,
        false => State::Interrupted,
    };
    note(manifest, job.place, job.since, state);
    manifest.jobs[job.place].run_record = record;
}

fn finish(manifest: &mut Manifest, job: &Running, status: ExitStatus) {
    let state = match status.success() {
        true => State::Finished,
        false => State::Failed,
    };
    note(manifest, job.place, job.since, state);
    let record = manifest.has_record(job.place);
    let log = manifest.job_folder(job.place).join(LOG);
    let entry = &mut manifest.jobs[job.place];
    entry.run_record = record;
    entry.exit_code = status.code();
    entry.error = (!status.success()).then(|| error_of(&log, status));
}

/// What a job said last: its error, or else its last line, or else how it ended.
fn error_of(log: &Path, status: ExitStatus) -> String {
    let text = fs::read(log).unwrap_or_default();
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

fn host() -> Option<String> {
    let kernel = fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let named = kernel.or_else(|| env::var("HOSTNAME").ok());
    let named = named.or_else(|| env::var("COMPUTERNAME").ok());
    named.map(|name| name.trim().to_owned())
}
