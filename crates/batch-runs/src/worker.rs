//! The jobs of one task of a scheduler, one after the other, each with a marker in its folder of what became of it.
//!
//! Near the time limit, and when the task has to make room, Slurm sends a signal. The running job is given what time there is, and
//! stopped; the rest is left to the next life of the task, for which it asks Slurm itself: always when it had to make room, and at the
//! time limit if it got anything done.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, bail};
use job_kit::Verbosity;

use crate::{
    identity::waits_for,
    manifest::{LOG, State},
    marker::{MARKER, Marker},
    process::{self, MemoryKills, OUT_OF_MEMORY},
    slurm::{TaskList, field_values},
};

/// How often the running job is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How long a job may take to end by itself when it is told to.
const ENDS: Duration = Duration::from_secs(3);

/// What Slurm has asked of the task.
struct Signals {
    /// To end soon, and to be queued again.
    soon: Arc<AtomicBool>,
    /// To end now.
    now: Arc<AtomicBool>,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let soon = Arc::new(AtomicBool::new(false));
        #[cfg(unix)]
        signal_hook::flag::register(signal_hook::consts::SIGUSR2, soon.clone())?;
        let now = process::told_to_end()?;
        Ok(Self { soon, now })
    }

    fn soon(&self) -> bool {
        self.soon.load(Ordering::Relaxed)
    }

    fn now(&self) -> bool {
        self.now.load(Ordering::Relaxed)
    }
}

/// Runs the task of a list that this process is of.
///
/// # Errors
/// If it is none, a file cannot be read or written, or jobs have failed.
pub(crate) fn run(list: &Path) -> anyhow::Result<()> {
    let signals = Signals::new()?;
    let variable = |name: &str| env::var(name).ok();
    let index = variable("SLURM_ARRAY_TASK_ID").and_then(|text| text.parse::<usize>().ok());
    let Some(index) = index else {
        bail!("`SLURM_ARRAY_TASK_ID` names no task: a list of tasks is run by Slurm");
    };
    let read = || format!("failed to read the list of tasks `{}`", list.display());
    let json = fs::read(list).with_context(read)?;
    let tasks: TaskList = serde_json::from_slice(&json).with_context(read)?;
    let number = list
        .file_stem()
        .and_then(|stem| stem.to_str()?.parse().ok());
    let (Some(numbers), Some(number), Some(sweep)) = (
        tasks.tasks.get(index),
        number,
        list.parent().and_then(Path::parent),
    ) else {
        bail!("`{}` has no task {index}", list.display());
    };
    let mut task = Work {
        list: number,
        index,
        name: variable("SLURM_ARRAY_JOB_ID").map(|job| format!("{job}_{index}")),
        notice: Duration::from_secs(tasks.notice.into()),
        threads: variable("SLURM_CPUS_PER_TASK").and_then(|text| text.parse().ok()),
        verbosity: Verbosity {
            quiet: tasks.quiet,
            verbose: tasks.verbose,
        },
        signals,
        before: Written::default(),
        progress: false,
    };
    let mut failed = 0;
    for number in numbers {
        let folder = sweep.join(number.to_string());
        match task.job(&folder)? {
            Told::Finished | Told::Waits => {}
            Told::Failed => failed += 1,
            Told::Stopped(marker) => return task.stopped(&folder, marker),
        }
    }
    if failed > 0 {
        bail!("{failed} of {} jobs failed", numbers.len());
    }
    Ok(())
}

struct Work {
    list: usize,
    index: usize,
    /// As Slurm knows it.
    name: Option<String>,
    notice: Duration,
    threads: Option<usize>,
    verbosity: Verbosity,
    signals: Signals,
    /// What the folder of the job held when this life of the task began it.
    before: Written,
    /// Whether a job has finished in this life.
    progress: bool,
}

enum Told {
    Finished,
    Failed,
    Waits,
    /// With its marker, if it had begun.
    Stopped(Option<Marker>),
}

impl Work {
    fn job(&mut self, folder: &Path) -> anyhow::Result<Told> {
        let earlier = Marker::read(folder);
        let mine = earlier
            .as_ref()
            .filter(|marker| (marker.list, marker.index) == (self.list, self.index));
        // In an earlier life of this task.
        match mine.map(|marker| marker.state) {
            Some(State::Failed) => return Ok(Told::Failed),
            Some(State::Finished) => return Ok(Told::Finished),
            _ => {}
        }
        if self.signals.soon() || self.signals.now() {
            return Ok(Told::Stopped(None));
        }
        let mut marker = Marker {
            list: self.list,
            index: self.index,
            state: State::Running,
            attempts: earlier.map_or(0, |marker| marker.attempts),
            started: process::now(),
            seconds: None,
            host: process::host(),
            exit_code: None,
            error: None,
        };
        if let Some(why) = waits_for(folder)? {
            (marker.state, marker.error) = (State::Pending, Some(why));
            marker.write(folder)?;
            return Ok(Told::Waits);
        }
        // Before the job begins, which removes what looks unfinished in its folder.
        marker.attempts += 1;
        marker.write(folder)?;
        let kills = MemoryKills::now();
        self.before = Written::of(folder);
        let since = Instant::now();
        let mut child = process::start(folder, self.threads, self.verbosity)?;
        let status = self.wait(&mut child)?;
        marker.seconds = Some(process::rounded(since.elapsed().as_secs_f64()));
        let stopping = self.signals.soon() || self.signals.now();
        let told = match status.success() {
            true => {
                marker.state = State::Finished;
                self.progress = true;
                Told::Finished
            }
            false if stopping && status.code().is_none() => {
                marker.state = State::Interrupted;
                Told::Stopped(Some(marker.clone()))
            }
            false => {
                marker.state = State::Failed;
                marker.error = Some(match kills.more() {
                    true => format!(
                        "{}; ask for more with `sweep.launcher.memory`",
                        OUT_OF_MEMORY
                    ),
                    false => process::error_of(folder, status),
                });
                Told::Failed
            }
        };
        marker.exit_code = status.code();
        marker.write(folder)?;
        Ok(told)
    }

    /// Waits for a job, as long as the task may go on.
    fn wait(&self, child: &mut Child) -> anyhow::Result<ExitStatus> {
        // Ends before the limit itself, with time to be queued again.
        let spare = self
            .notice
            .saturating_sub(Duration::from_secs(20))
            .max(self.notice / 4);
        let mut told: Option<Instant> = None;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            let now = Instant::now();
            if self.signals.soon() {
                told.get_or_insert(now);
            }
            let used_up = told.is_some_and(|told| told.elapsed() > spare);
            if self.signals.now() || used_up {
                return end(child);
            }
            thread::sleep(LOOK);
        }
    }

    /// Ends a task that was told to stop: what is left of it is queued again, or not.
    fn stopped(&self, folder: &Path, marker: Option<Marker>) -> anyhow::Result<()> {
        let fields = self.name.as_deref().and_then(field_values);
        let field = |key: &str| {
            let value = fields.as_ref().and_then(|fields| fields.get(key));
            value.map(String::as_str).unwrap_or_default()
        };
        let makes_room = !["", "None", "N/A"].contains(&field("PreemptTime"));
        let note = |state, why: &str| -> anyhow::Result<()> {
            let Some(mut marker) = marker.clone() else {
                return Ok(());
            };
            (marker.state, marker.error) = (state, Some(why.to_owned()));
            marker.write(folder)
        };
        // Without the notice it was cancelled, or Slurm queues it again by itself.
        if !self.signals.soon() {
            note(State::Interrupted, "stopped by Slurm")?;
            bail!("stopped");
        }
        if !makes_room && !self.progress && !Written::of(folder).has_more_than(&self.before) {
            let limit = field("TimeLimit");
            note(
                State::Failed,
                &format!(
                    "the time limit ({limit}) came before it had written anything; ask for more with `sweep.launcher.time`"
                ),
            )?;
            bail!("the time limit came before anything was done");
        }
        note(
            State::Interrupted,
            match makes_room {
                true => "had to make room for another job; queued again",
                false => "the time limit came near; queued again",
            },
        )?;
        let Some(name) = &self.name else {
            bail!("stopped");
        };
        // One that was queued again by Slurm meanwhile is no error.
        let _ = Command::new("scontrol").args(["requeue", name]).status();
        Ok(())
    }
}

/// Ends a job: asks, and after a while does not.
fn end(child: &mut Child) -> anyhow::Result<ExitStatus> {
    process::terminate(child);
    let since = Instant::now();
    while since.elapsed() < ENDS {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        thread::sleep(LOOK);
    }
    child.kill()?;
    Ok(child.wait()?)
}

/// The results in a folder, with size and time of each. They are compared with what was there before and never with a clock, which may
/// jump and may not be that of the machine with the disk.
#[derive(Debug, Default)]
struct Written(BTreeMap<PathBuf, (u64, Option<SystemTime>)>);

impl Written {
    fn of(folder: &Path) -> Self {
        let mut written = Self::default();
        written.add(folder, 4);
        written
    }

    fn add(&mut self, folder: &Path, depth: usize) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let ours = [LOG, MARKER].iter().any(|ours| name == *ours);
            if ours || name.to_string_lossy().starts_with('.') {
                continue;
            }
            match entry.metadata() {
                Ok(file) if file.is_dir() && depth > 1 => self.add(&entry.path(), depth - 1),
                Ok(file) if file.is_file() => {
                    let what = (file.len(), file.modified().ok());
                    self.0.insert(entry.path(), what);
                }
                _ => {}
            }
        }
    }

    /// Whether a file has come or changed, such as one of several checkpoints.
    fn has_more_than(&self, before: &Self) -> bool {
        self.0
            .iter()
            .any(|(path, what)| before.0.get(path) != Some(what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_counts_under_any_clock() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join("step1").join(name);
        fs::create_dir(folder.path().join("step1")).unwrap();
        fs::write(path("old.parquet"), "old").unwrap();
        fs::write(path("half.parquet"), "half").unwrap();
        let before = Written::of(folder.path());
        // What the job removes, notes or says is no progress.
        fs::remove_file(path("half.parquet")).unwrap();
        fs::write(path(".new.partial"), "new").unwrap();
        fs::write(folder.path().join(LOG), "said").unwrap();
        assert!(!Written::of(folder.path()).has_more_than(&before));
        // The clock was set back by fifty years.
        let new = fs::File::create(path("new.parquet")).unwrap();
        new.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert!(Written::of(folder.path()).has_more_than(&before));
    }
}
