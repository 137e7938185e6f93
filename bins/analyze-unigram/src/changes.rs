//! Differences between checkpoints, paired by document (or sequence).

use job_kit::RunRecord;
use neuron_select::{Grouped, Measure, NeuronId, paired};
use surprisal_metrics::{Bootstrap, Group, Interval};

/// What differences are of.
const MEASURES: [(&str, Measure); 3] = [
    ("loss_change", Measure::LossChange),
    ("total_effect", Measure::TotalEffect),
    ("kl_change", Measure::KlChange),
];

/// Whose effect it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    /// All neurons of the table, in the mean.
    All,
    /// The neurons that the last step selects, in the mean.
    Selection,
    /// One of them.
    Neuron(NeuronId),
}

impl Subject {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Selection => "selection",
            Self::Neuron(_) => "neuron",
        }
    }
}

/// Sums per cluster of one step, of the neurons that are followed through all steps.
#[derive(Debug)]
pub(crate) struct Followed {
    sequences: Vec<i64>,
    subjects: Vec<(Subject, [Vec<Group>; 3])>,
}

impl Followed {
    pub(crate) fn of(grouped: &Grouped, neurons: &[NeuronId]) -> Self {
        let of =
            |neurons: &[NeuronId]| MEASURES.map(|(_, measure)| grouped.groups(neurons, measure));
        let mut subjects = vec![(Subject::All, of(grouped.neurons()))];
        if !neurons.is_empty() {
            subjects.push((Subject::Selection, of(neurons)));
        }
        subjects.extend(neurons.iter().map(|&id| (Subject::Neuron(id), of(&[id]))));
        Self {
            sequences: grouped.sequences().to_vec(),
            subjects,
        }
    }
}

/// How a mean effect has changed between two steps, nats.
#[derive(Debug)]
pub(crate) struct StepChange {
    pub(crate) step: i64,
    pub(crate) later: i64,
    pub(crate) subject: Subject,
    pub(crate) measure: &'static str,
    /// Later minus earlier.
    pub(crate) mean: f64,
    /// Clusters that both steps have.
    pub(crate) clusters: usize,
    pub(crate) interval: Option<Interval>,
}

/// Changes from each step, in order with what is followed there, to the next, and to the last.
pub(crate) fn between(
    steps: &[(i64, &Followed)],
    bootstrap: &Bootstrap,
    record: &mut RunRecord,
) -> anyhow::Result<Vec<StepChange>> {
    let mut changes = Vec::new();
    for (i, &(step, before)) in steps.iter().enumerate() {
        let next = steps.get(i + 1);
        let last = steps.last().filter(|_| i + 2 < steps.len());
        for &(later, after) in next.into_iter().chain(last) {
            let mut left_out = 0;
            for (subject, groups) in &before.subjects {
                let mut subjects = after.subjects.iter();
                let Some((_, groups_after)) = subjects.find(|(other, _)| other == subject) else {
                    continue;
                };
                for (m, (measure, _)) in MEASURES.into_iter().enumerate() {
                    let found = paired(
                        (&before.sequences, &groups[m]),
                        (&after.sequences, &groups_after[m]),
                    );
                    left_out = left_out.max(found.left_out);
                    if let Some(mean) = Group::total(&found.groups).mean() {
                        changes.push(StepChange {
                            step,
                            later,
                            subject: *subject,
                            measure,
                            mean,
                            clusters: found.groups.len(),
                            interval: bootstrap.mean(&found.groups)?,
                        });
                    }
                }
            }
            if left_out > 0 {
                record.warn(format!(
                    "steps {} and {}: {left_out} documents or sequences have not the same rows at both and are left out of the differences between them: were both ablated with the same settings?",
                    step, later
                ));
            }
        }
    }
    Ok(changes)
}
