//! Jobs as processes of the same program, a bounded number at a time.

use std::{
    fs::File,
    io,
    process::{Child, ExitStatus},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use job_kit::Verbosity;
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};

use crate::{
    BatchArgs,
    identity::waits_for,
    manifest::{LOG, Manifest, State},
    process::{self, MemoryKills, OUT_OF_MEMORY},
};

/// How often running jobs are looked at.
const LOOK: Duration = Duration::from_millis(5);
/// How often the manifest is written while jobs end; a job that has ended is known by its own `run.json` too.
const WRITE: Duration = Duration::from_secs(1);

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
    kills: MemoryKills,
    /// Its log, as far as it has been shown, where it is shown.
    shown: Option<File>,
}

impl Running {
    /// Shows what the job has said since the last time. That it cannot be shown stops no job: its log has it.
    fn show(&mut self) {
        if let Some(log) = &mut self.shown {
            let _ = io::copy(log, &mut io::stderr().lock());
        }
    }
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
            let waits = waits_for(&manifest.job_folder(place))?;
            if waits.is_some() {
                let entry = &mut manifest.jobs[place];
                (entry.state, entry.error) = (State::Pending, waits);
                continue;
            }
            let mut job = start(manifest, place, at_once, verbosity)?;
            // Of several at once each would be heard through the others.
            if at_once == 1 && !verbosity.quiet {
                job.shown = File::open(manifest.job_folder(place).join(LOG)).ok();
            }
            running.push(job);
        }
        if running.is_empty() {
            return Ok(Ended::Whole);
        }
        let mut i = 0;
        while i < running.len() {
            // What it said last, too: it is looked at first whether it has ended.
            let status = running[i].child.try_wait()?;
            running[i].show();
            let Some(status) = status else {
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
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let share = (at_once > 1).then(|| (cores / at_once).max(1));
    let child = process::start(&manifest.job_folder(place), share, verbosity)?;
    let entry = &mut manifest.jobs[place];
    entry.state = State::Running;
    entry.started = Some(process::now());
    entry.host = process::host();
    (entry.seconds, entry.exit_code, entry.error) = (None, None, None);
    entry.attempts += 1;
    Ok(Running {
        place,
        child,
        since: Instant::now(),
        kills: MemoryKills::now(),
        shown: None,
    })
}

fn note(manifest: &mut Manifest, place: usize, since: Instant, state: State) {
    let entry = &mut manifest.jobs[place];
    entry.state = state;
    entry.seconds = Some(process::rounded(since.elapsed().as_secs_f64()));
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
    let folder = manifest.job_folder(job.place);
    let entry = &mut manifest.jobs[job.place];
    entry.run_record = record;
    entry.exit_code = status.code();
    let killed = status.code().is_none() && job.kills.more();
    entry.error = (!status.success()).then(|| match killed {
        true => format!("{OUT_OF_MEMORY}; give it more, or run fewer jobs at once (`--jobs`)"),
        false => process::error_of(&folder, status),
    });
}
