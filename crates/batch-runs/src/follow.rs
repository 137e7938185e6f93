//! Jobs that a scheduler has: what has become of them, waiting for them, taking them back.

use std::{path::Path, sync::atomic::Ordering, thread};

use job_kit::WithHint;

use crate::{
    collect::collect,
    launch::Ended,
    manifest::{self, Manifest},
    process, slurm, summary,
};

/// What to do with jobs that were submitted to a scheduler.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
#[group(multiple = false)]
pub struct Follow {
    /// Show what has become of the jobs, and note it; exit code 0 if all have finished
    #[arg(long, visible_alias = "collect")]
    pub status: bool,
    /// Wait until the scheduler has none of the jobs any more
    #[arg(long)]
    pub wait: bool,
    /// Take the jobs that wait or run from the scheduler
    #[arg(long)]
    pub cancel: bool,
}

impl Follow {
    /// The option that was given.
    pub(crate) fn asked(self) -> Option<&'static str> {
        match (self.status, self.wait, self.cancel) {
            (true, ..) => Some("--status"),
            (_, true, _) => Some("--wait"),
            (_, _, true) => Some("--cancel"),
            _ => None,
        }
    }
}

/// Does what is asked with all jobs of a sweep.
///
/// # Errors
/// If the folder holds no sweep of the job, the scheduler does not answer, or not all jobs have finished.
pub(crate) fn run(folder: &Path, job: &str, follow: &Follow) -> anyhow::Result<()> {
    if follow.wait {
        wait(folder, job)?;
    }
    if follow.cancel {
        cancel(folder, job)?;
    }
    let manifest = collected(folder, job)?;
    if follow.wait {
        collect(&manifest)?;
    }
    let places: Vec<usize> = (0..manifest.jobs.len()).collect();
    job_kit::print(summary::summary(&manifest, &places, 0))?;
    match follow.cancel {
        true => Ok(()),
        false => summary::report(&manifest, &places, Ended::Whole),
    }
}

/// The manifest with what is known now, which is noted unless another program does so.
///
/// # Errors
/// As [`run`].
pub(crate) fn collected(folder: &Path, job: &str) -> anyhow::Result<Manifest> {
    let lock = manifest::lock(folder);
    let mut manifest =
        Manifest::read(folder, job)?.map_or_else(|| manifest::no_sweep(folder), Ok)?;
    slurm::refresh(&mut manifest)?;
    if lock.is_ok() {
        manifest.write()?;
    }
    Ok(manifest)
}

/// Takes all jobs of a sweep from the scheduler.
///
/// # Errors
/// As [`run`].
pub(crate) fn cancel(folder: &Path, job: &str) -> anyhow::Result<()> {
    let mut manifest =
        Manifest::read(folder, job)?.map_or_else(|| manifest::no_sweep(folder), Ok)?;
    slurm::cancel(&mut manifest)
}

/// Waits until the scheduler has no job of a sweep any more.
///
/// # Errors
/// As [`run`]; and if this process is told to end, after which the jobs go on.
pub(crate) fn wait(folder: &Path, job: &str) -> anyhow::Result<()> {
    let stop = process::told_to_end()?;
    loop {
        let mut manifest =
            Manifest::read(folder, job)?.map_or_else(|| manifest::no_sweep(folder), Ok)?;
        slurm::refresh(&mut manifest)?;
        if !manifest.jobs.iter().any(|entry| entry.state.is_active()) {
            return Ok(());
        }
        let steps = 20;
        for _ in 0..steps {
            if stop.load(Ordering::Relaxed) {
                return Err(anyhow::anyhow!(
                    "no longer waiting; the scheduler keeps the jobs"
                ))
                .hint(
                    "`--status` shows them, `--wait` waits for them, `--cancel` takes them back",
                );
            }
            thread::sleep(slurm::LOOK / steps);
        }
    }
}
