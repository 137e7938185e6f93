//! `manifest.json`: the jobs of a sweep, and what became of each.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use job_kit::{
    OutputError, WithHint,
    output::{FolderLock, RUN_RECORD},
    write_file,
};
use serde::{Deserialize, Serialize};

pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const CONFIG: &str = "config.yaml";
pub(crate) const OVERRIDES: &str = "overrides.yaml";
pub(crate) const LOG: &str = "job.log";

/// The jobs of a sweep.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) job: String,
    pub(crate) version: String,
    pub(crate) jobs: Vec<Entry>,
    #[serde(skip)]
    pub(crate) folder: PathBuf,
}

/// One job; its number is the name of its folder.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) number: usize,
    pub(crate) id: String,
    pub(crate) overrides: Vec<String>,
    pub(crate) state: State,
    pub(crate) started: Option<String>,
    pub(crate) seconds: Option<f64>,
    pub(crate) host: Option<String>,
    pub(crate) exit_code: Option<i32>,
    pub(crate) error: Option<String>,
    pub(crate) attempts: u32,
    /// Whether it has left a `run.json`.
    pub(crate) run_record: bool,
    /// Where a scheduler has it, while it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) task: Option<Task>,
}

/// A task of a scheduler that a job was given to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Task {
    /// Which list of tasks of the sweep.
    pub(crate) list: usize,
    /// The place in it.
    pub(crate) index: usize,
    /// The scheduler's name of the list, once it has given one.
    pub(crate) job: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Pending,
    /// Waits at a scheduler.
    Queued,
    Running,
    Finished,
    Failed,
    Interrupted,
}

impl State {
    /// Whether a scheduler, or this launcher, has the job.
    pub(crate) fn is_active(self) -> bool {
        matches!(self, Self::Queued | Self::Running)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
        }
    }
}

impl Manifest {
    /// Reads the manifest of a folder, if it has one, and what has become of its jobs since it was written.
    ///
    /// # Errors
    /// A manifest that cannot be read, or is of another job.
    pub(crate) fn read(folder: &Path, job: &str) -> anyhow::Result<Option<Self>> {
        let path = folder.join(MANIFEST);
        let json = match fs::read(&path) {
            Ok(json) => json,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("failed to read `{}`", path.display()));
            }
        };
        let mut manifest: Self = serde_json::from_slice(&json)
            .with_context(|| format!("`{}` is no manifest of a sweep", path.display()))
            .hint("move the folder away, or choose another with `sweep.dir=...`")?;
        if manifest.job != job {
            return Err(anyhow::anyhow!(
                "sweep folder `{}` belongs to {}, not to {job}",
                folder.display(),
                manifest.job
            ))
            .hint("choose another folder with `sweep.dir=...`");
        }
        manifest.folder = folder.to_owned();
        for i in 0..manifest.jobs.len() {
            let folder = manifest.job_folder(i);
            let record = folder.join(RUN_RECORD).is_file();
            let entry = &mut manifest.jobs[i];
            match entry.state {
                // The scheduler is asked.
                _ if entry.task.is_some() => {}
                // A launcher that was killed could not say so.
                State::Running | State::Pending | State::Interrupted if record => {
                    entry.state = State::Finished;
                    entry.run_record = true;
                    entry.error = None;
                }
                State::Running => entry.state = State::Interrupted,
                // Somebody has removed the results.
                State::Finished if (entry.run_record && !record) || !folder.is_dir() => {
                    entry.state = State::Pending;
                }
                _ => {}
            }
        }
        Ok(Some(manifest))
    }

    pub(crate) fn job_folder(&self, i: usize) -> PathBuf {
        self.folder.join(self.jobs[i].number.to_string())
    }

    /// Whether a job that has ended left a record of its run.
    pub(crate) fn has_record(&self, i: usize) -> bool {
        self.job_folder(i).join(RUN_RECORD).is_file()
    }

    /// The place of the job with an identity, which is added if there is none.
    pub(crate) fn place(&mut self, id: String, overrides: Vec<String>) -> usize {
        if let Some(i) = self.jobs.iter().position(|entry| entry.id == id) {
            return i;
        }
        let number = self.jobs.iter().map(|entry| entry.number + 1).max();
        self.jobs.push(Entry {
            number: number.unwrap_or(0),
            id,
            overrides,
            state: State::Pending,
            started: None,
            seconds: None,
            host: None,
            exit_code: None,
            error: None,
            attempts: 0,
            run_record: false,
            task: None,
        });
        self.jobs.len() - 1
    }

    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn write(&self) -> anyhow::Result<()> {
        let mut json = serde_json::to_vec_pretty(self)?;
        json.push(b'\n');
        Ok(write_file(self.folder.join(MANIFEST), json)?)
    }
}

/// Writes the files of a job that is frozen, each whole or not at all. They are on disk once [`sync`] was called: waiting for each of
/// thousands takes longer than everything else.
///
/// # Errors
/// If one cannot be written.
pub(crate) fn freeze(folder: &Path, files: [(&str, String); 2]) -> anyhow::Result<()> {
    for (name, text) in files {
        let path = folder.join(name);
        let partial = folder.join(format!(".{name}.partial"));
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&partial, text))
            .and_then(|()| fs::rename(&partial, &path))
            .with_context(|| format!("failed to write `{}`", path.display()))?;
    }
    Ok(())
}

/// Waits until what was written below a folder is on disk.
pub(crate) fn sync(folder: &Path) {
    #[cfg(target_os = "linux")]
    if let Err(error) = fs::File::open(folder).and_then(|folder| Ok(rustix::fs::syncfs(folder)?)) {
        tracing::debug!("`{}` not synced: {error}", folder.display());
    }
    #[cfg(not(target_os = "linux"))]
    let _ = folder;
}

/// Makes a folder and keeps other launchers out of it while the lock lives.
///
/// # Errors
/// If the folder cannot be made, or another launcher is at work in it.
pub(crate) fn lock(folder: &Path) -> anyhow::Result<FolderLock> {
    fs::create_dir_all(folder)
        .with_context(|| format!("sweep folder `{}` cannot be written to", folder.display()))?;
    // One that was killed may not quite have gone.
    match FolderLock::take(folder, Duration::from_millis(500)) {
        Err(OutputError::InUse { .. }) => bail!(
            "another program runs the jobs of `{}`: wait for it, or choose another folder with `sweep.dir=...`",
            folder.display()
        ),
        locked => Ok(locked?),
    }
}

/// The error that a folder holds no sweep.
pub(crate) fn no_sweep<T>(folder: &Path) -> anyhow::Result<T> {
    Err(anyhow::anyhow!(
        "no sweep was run in `{}`",
        folder.display()
    ))
    .hint("name its folder with `sweep.dir=...`")
}
