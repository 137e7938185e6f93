//! Overlap of the selections of different steps.

use neuron_select::{NeuronId, SelectError, chance_jaccard, jaccard, rank_biased_overlap};

use crate::analysis::StepAnalysis;

/// Two selections side by side; `None` where one is empty.
#[derive(Debug)]
pub(crate) struct Overlap {
    pub(crate) step: i64,
    pub(crate) other: i64,
    /// Neurons that each selects.
    pub(crate) selected: [usize; 2],
    pub(crate) jaccard: Option<f64>,
    /// Of as many neurons drawn at random.
    pub(crate) chance: Option<f64>,
    pub(crate) rank_biased_overlap: Option<f64>,
}

/// Every pair of steps, the earlier one first.
pub(crate) fn overlaps(
    steps: &[StepAnalysis],
    persistence: f64,
) -> Result<Vec<Overlap>, SelectError> {
    let ids = |step: &StepAnalysis| -> Vec<NeuronId> {
        step.selected
            .iter()
            .map(|n| n.ranked.effects.neuron)
            .collect()
    };
    let mut overlaps = Vec::new();
    for (i, step) in steps.iter().enumerate() {
        for other in &steps[i + 1..] {
            let (a, b) = (ids(step), ids(other));
            overlaps.push(Overlap {
                step: step.step,
                other: other.step,
                selected: [a.len(), b.len()],
                chance: chance_jaccard(a.len(), b.len(), step.ranking.all().len()),
                jaccard: jaccard(&a, &b),
                rank_biased_overlap: rank_biased_overlap(&a, &b, persistence)?,
            });
        }
    }
    Ok(overlaps)
}
