//! Selecting on some sequences and measuring on others.

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use surprisal_metrics::Group;

use crate::{Criteria, Grouped, Measure, NeuronId, Ranking, SelectError};

/// One part of the clusters, held out from the selection.
#[derive(Debug, Clone, PartialEq)]
pub struct Fold {
    /// Indices of the clusters that were held out.
    pub held_out: Vec<usize>,
    /// The first neurons of the ranking over the other clusters.
    pub selected: Vec<NeuronId>,
    /// Their mean over the clusters that selected them.
    pub in_sample: f64,
}

/// What a selection is worth on clusters that did not choose it.
#[derive(Debug, Clone, PartialEq)]
pub struct CrossFit {
    /// The folds.
    pub folds: Vec<Fold>,
    /// Mean over the folds of the effect on the clusters that selected: flattered by the selection.
    pub in_sample: f64,
    /// Mean effect on held-out clusters, each under the neurons that the others chose.
    pub held_out: f64,
    /// Sums of the held-out effects per cluster, for an interval by [`surprisal_metrics::Bootstrap::mean`].
    pub groups: Vec<Group>,
}

impl CrossFit {
    /// Which part of the effect in sample is not there out of sample, `1 - held_out / in_sample`; `None` where there is no effect.
    pub fn shrinkage(&self) -> Option<f64> {
        (self.in_sample != 0.0).then(|| 1.0 - self.held_out / self.in_sample)
    }
}

/// Cross-fitting: clusters (documents or sequences) are dealt at random into `folds`; for each fold the first `top` neurons (all ranked
/// ones for `None`) are selected on the other folds, and `measure` is taken on the fold.
///
/// The largest of many noisy means is too large on the data that made it the largest (the winner's curse); a mean over clusters that had
/// no say in the selection is not. What it measures is a selection on `folds - 1` of `folds` parts of the data.
///
/// `None` if there are fewer clusters with rows than folds, a neuron has no row in some fold's others, or a fold selects nothing.
///
/// Source: Chernozhukov et al. (2018), *Double/debiased machine learning*, for the dealing; Efron (2011), *Tweedie's formula and selection
/// bias*, for the bias.
///
/// # Errors
/// - [`SelectError::Setting`] with fewer than two folds
pub fn cross_fit(
    grouped: &Grouped,
    criteria: &Criteria,
    top: Option<usize>,
    measure: Measure,
    folds: usize,
    seed: u64,
) -> Result<Option<CrossFit>, SelectError> {
    if folds < 2 {
        return Err(SelectError::Setting {
            name: "the number of folds",
            value: folds as f64,
            expected: "at least 2",
        });
    }
    let mut clusters = grouped.sequences_with_rows();
    if clusters.len() < folds {
        return Ok(None);
    }
    clusters.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let mut found = Vec::with_capacity(folds);
    let mut groups = vec![Group::default(); grouped.n_sequences()];
    for fold in 0..folds {
        let part = |own: bool| -> Vec<usize> {
            let places = clusters.iter().enumerate();
            let of = places.filter(|(place, _)| (place % folds == fold) == own);
            of.map(|(_, &cluster)| cluster).collect()
        };
        let (held_out, others) = (part(true), part(false));
        let Some(effects) = grouped.resampled(&others) else {
            return Ok(None);
        };
        let selected = Ranking::new(effects, criteria).top_ids(top);
        let of_selected = grouped.groups(&selected, measure);
        let chosen_on: Vec<Group> = others.iter().map(|&i| of_selected[i]).collect();
        let Some(in_sample) = Group::total(&chosen_on).mean() else {
            return Ok(None);
        };
        for &cluster in &held_out {
            groups[cluster] = of_selected[cluster];
        }
        found.push(Fold {
            held_out,
            selected,
            in_sample,
        });
    }
    let in_sample = found.iter().map(|fold| fold.in_sample).sum::<f64>() / folds as f64;
    Ok(Group::total(&groups).mean().map(|held_out| CrossFit {
        folds: found,
        in_sample,
        held_out,
        groups,
    }))
}
