//! What a person is told of the jobs of a sweep.

use job_kit::WithHint;

use crate::{
    launch::Ended,
    manifest::{Manifest, State},
};

/// A line a job.
pub(crate) fn table(manifest: &Manifest, places: &[usize]) -> String {
    let mut text = format!("{:>5}  {:<11}  {:>9}  values\n", "job", "state", "seconds");
    for &i in places {
        let entry = &manifest.jobs[i];
        let seconds = entry.seconds.map(|seconds| format!("{seconds:.1}"));
        text += &format!(
            "{:>5}  {:<11}  {:>9}  {}\n",
            entry.number,
            entry.state.name(),
            seconds.unwrap_or_default(),
            entry.overrides.join(" ")
        );
        if let Some(error) = &entry.error {
            text += &format!("       {error}\n");
        }
    }
    text
}

pub(crate) fn count(manifest: &Manifest, places: &[usize], state: State) -> usize {
    places
        .iter()
        .filter(|&&i| manifest.jobs[i].state == state)
        .count()
}

/// What a person wants to know at the end.
pub(crate) fn summary(manifest: &Manifest, places: &[usize], before: usize) -> String {
    let of = |state| count(manifest, places, state);
    // One that has finished was told of as it ended.
    let mut text = match (places.len(), of(State::Finished)) {
        (1, 1) => String::from("1 job: 1 finished"),
        (all, finished) => format!("{}{all} jobs: {finished} finished", table(manifest, places)),
    };
    if before > 0 {
        text += &format!(" ({before} before)");
    }
    for state in [
        State::Running,
        State::Queued,
        State::Failed,
        State::Interrupted,
        State::Pending,
    ] {
        if of(state) > 0 {
            text += &format!(", {} {}", of(state), state.name());
        }
    }
    text + &format!("\nFolder: {}\n", manifest.folder.display())
}

/// The error that tells that not all has finished.
pub(crate) fn report(manifest: &Manifest, places: &[usize], ended: Ended) -> anyhow::Result<()> {
    let all = places.len();
    let of = |state| count(manifest, places, state);
    let finished = of(State::Finished);
    if let Ended::Interrupted = ended {
        return Err(anyhow::anyhow!(
            "interrupted, when {finished} of {all} jobs had finished"
        ))
        .hint("the same command goes on with the others");
    }
    if finished == all {
        return Ok(());
    }
    let dir = manifest.folder.display();
    let active = of(State::Running) + of(State::Queued);
    if active > 0 {
        return Err(anyhow::anyhow!(
            "{active} of {all} jobs wait or run at the scheduler"
        ))
        .hint(format!(
            "`-m --wait sweep.dir={dir}` waits for them, `-m --cancel` takes them back"
        ));
    }
    match of(State::Failed) + of(State::Interrupted) {
        0 => Err(anyhow::anyhow!(
            "{} of {all} jobs were not run",
            all - finished
        ))
        .hint("the same command runs them"),
        _ => Err(anyhow::anyhow!(
            "{} of {all} jobs failed; what they said is in `{dir}/NUMBER/job.log`",
            of(State::Failed) + of(State::Interrupted)
        ))
        .hint(format!(
            "run them again with `-m --retry failed sweep.dir={dir}`"
        )),
    }
}
