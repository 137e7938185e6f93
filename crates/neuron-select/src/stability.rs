//! Whether a selection would come out again: overlap of two selections, and ranks over resampled sequences.

use std::collections::{HashMap, HashSet};

use rayon::prelude::*;
use serde::Serialize;
use surprisal_metrics::{Bootstrap, MIN_GROUPS};

use crate::{Criteria, Grouped, NeuronId, Ranking, SelectError};

/// Share of neurons that two sets have in common: size of the intersection over size of the union. `None` if both are empty.
///
/// # Examples
/// ```
/// use neuron_select::{NeuronId, jaccard};
/// let ids = |list: &[usize]| list.iter().map(|&neuron| NeuronId { layer: 5, neuron }).collect::<Vec<_>>();
/// assert_eq!(jaccard(&ids(&[1, 10]), &ids(&[10, 2])), Some(1.0 / 3.0));
/// ```
pub fn jaccard(a: &[NeuronId], b: &[NeuronId]) -> Option<f64> {
    let a: HashSet<_> = a.iter().collect();
    let b: HashSet<_> = b.iter().collect();
    let union = a.union(&b).count();
    (union > 0).then(|| a.intersection(&b).count() as f64 / union as f64)
}

/// The Jaccard index that two selections of so many neurons have by chance, each drawn at random from the same `of`; `None` where both are
/// empty, or larger than that.
///
/// The mean of `i / (a + b - i)` over the hypergeometric distribution of the number i that they share.
///
/// # Examples
/// ```
/// use neuron_select::chance_jaccard;
/// assert_eq!(chance_jaccard(4, 4, 4), Some(1.0));
/// // One of two and one of two: the same half of the time.
/// assert!((chance_jaccard(1, 1, 2).unwrap_or(0.0) - 0.5).abs() < 1e-12);
/// assert_eq!(chance_jaccard(0, 0, 2), None);
/// ```
pub fn chance_jaccard(a: usize, b: usize, of: usize) -> Option<f64> {
    if a.max(b) > of || a + b == 0 {
        return None;
    }
    let (least, most) = ((a + b).saturating_sub(of), a.min(b));
    // Logarithms of weights, each from the one before.
    let (mut ln_weight, mut terms) = (0.0f64, Vec::new());
    for shared in least..=most {
        terms.push((ln_weight, shared as f64 / (a + b - shared) as f64));
        let (up, down) = (
            (a - shared) * (b - shared),
            (shared + 1) * (of + shared + 1 - a - b),
        );
        ln_weight += (up as f64 / down.max(1) as f64).ln();
    }
    let largest = terms
        .iter()
        .map(|term| term.0)
        .fold(f64::NEG_INFINITY, f64::max);
    let weights = terms.iter().map(|term| (term.0 - largest).exp());
    let (sum, total) = weights
        .zip(&terms)
        .fold((0.0, 0.0), |(sum, total), (weight, term)| {
            (sum + weight * term.1, total + weight)
        });
    Some(sum / total)
}

/// Rank-biased overlap of two rankings, extrapolated from the lists as they are: 1 for equal lists, 0 for disjoint ones, with more weight
/// on early ranks. `None` if a list is empty.
///
/// `p`, between 0 and 1, is how much each further rank counts; 0.9 puts 86 % of the weight on the first ten.
///
/// Source: Webber, Moffat & Zobel (2010), *A similarity measure for indefinite rankings*, equation 32 (lists of uneven length).
///
/// # Errors
/// - [`SelectError::Setting`] if `p` is not between 0 and 1
///
/// # Examples
/// ```
/// use neuron_select::{NeuronId, rank_biased_overlap};
/// let ids = |list: &[usize]| list.iter().map(|&neuron| NeuronId { layer: 5, neuron }).collect::<Vec<_>>();
/// assert_eq!(rank_biased_overlap(&ids(&[1, 2]), &ids(&[3, 4]), 0.9)?, Some(0.0));
/// // Agreement 0 at depth 1 and 1 at depth 2, carried on: (1 - p) * p + p^2 = p.
/// let swapped = rank_biased_overlap(&ids(&[1, 2]), &ids(&[2, 1]), 0.9)?.ok_or("empty")?;
/// assert!((swapped - 0.9).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn rank_biased_overlap(
    a: &[NeuronId],
    b: &[NeuronId],
    p: f64,
) -> Result<Option<f64>, SelectError> {
    if !(p > 0.0 && p < 1.0) {
        return Err(SelectError::Setting {
            name: "the persistence of the rank-biased overlap",
            value: p,
            expected: "a number between 0 and 1",
        });
    }
    let (short, long) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    let (s, l) = (short.len(), long.len());
    if s == 0 {
        return Ok(None);
    }
    // `overlap[d]`: neurons that the first `d` of both have in common; the short list ends at `s`.
    let mut seen: (HashSet<NeuronId>, HashSet<NeuronId>) = Default::default();
    let mut overlap = vec![0.0; l + 1];
    for d in 1..=l {
        if let Some(&neuron) = short.get(d - 1) {
            seen.0.insert(neuron);
        }
        seen.1.insert(long[d - 1]);
        overlap[d] = seen.0.intersection(&seen.1).count() as f64;
    }
    let weight = |d: usize| p.powi(d as i32);
    let agreement: f64 = (1..=l).map(|d| overlap[d] / d as f64 * weight(d)).sum();
    let beyond: f64 = (s + 1..=l)
        .map(|d| overlap[s] * (d - s) as f64 / (s * d) as f64 * weight(d))
        .sum();
    let tail = ((overlap[l] - overlap[s]) / l as f64 + overlap[s] / s as f64) * weight(l);
    Ok(Some((1.0 - p) / p * (agreement + beyond) + tail))
}

/// How the rank of a neuron varies over resamples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RankInterval {
    /// The neuron.
    pub neuron: NeuronId,
    /// Lower end of the interval: the better rank.
    pub low: usize,
    /// Median rank.
    pub median: usize,
    /// Upper end.
    pub high: usize,
    /// Share of resamples in which the neuron is among the first `top`.
    pub top_share: f64,
}

/// Ranks of every neuron over resampled sequences, neurons ascending.
///
/// A neuron that a resample leaves out counts as last. Resamples in which a neuron has no row are left out; their number is returned
/// beside the intervals. `None` if fewer than [`MIN_GROUPS`] sequences have rows, or no resample is left: then nothing can be said.
///
/// # Errors
/// - [`SelectError::Bootstrap`] if the number of resamples or the level is out of range
pub fn bootstrap_ranks(
    grouped: &Grouped,
    criteria: &Criteria,
    top: Option<usize>,
    bootstrap: &Bootstrap,
) -> Result<Option<(Vec<RankInterval>, usize)>, SelectError> {
    if grouped.n_sequences_with_rows() < MIN_GROUPS {
        return Ok(None);
    }
    let neurons = grouped.neurons();
    let place: HashMap<NeuronId, usize> =
        neurons.iter().enumerate().map(|(i, &n)| (n, i)).collect();
    let draws: Vec<Vec<usize>> = bootstrap.draws(grouped.n_sequences())?.collect();
    let ranks: Vec<Vec<usize>> = draws
        .par_iter()
        .filter_map(|draw| {
            let ranking = Ranking::new(grouped.resampled(draw)?, criteria);
            let mut ranks = vec![neurons.len(); neurons.len()];
            for (i, ranked) in ranking.top(None).iter().enumerate() {
                ranks[place[&ranked.effects.neuron]] = i + 1;
            }
            Some(ranks)
        })
        .collect();
    if ranks.is_empty() {
        return Ok(None);
    }
    let tail = (1.0 - bootstrap.level) / 2.0;
    let last = (ranks.len() - 1) as f64;
    let intervals = neurons
        .par_iter()
        .enumerate()
        .map(|(i, &neuron)| {
            let mut own: Vec<usize> = ranks.iter().map(|ranks| ranks[i]).collect();
            own.sort_unstable();
            let at = |share: f64| own[(share * last).round() as usize];
            let in_top = own
                .iter()
                .filter(|&&rank| rank <= top.unwrap_or(neurons.len() - 1))
                .count();
            RankInterval {
                neuron,
                low: at(tail),
                median: at(0.5),
                high: at(1.0 - tail),
                top_share: in_top as f64 / own.len() as f64,
            }
        })
        .collect();
    Ok(Some((intervals, draws.len() - ranks.len())))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Effect, Heuristic, Row, RowFilter, Stratum, Tally};

    fn ids(list: &[usize]) -> Vec<NeuronId> {
        list.iter()
            .map(|&neuron| NeuronId { layer: 1, neuron })
            .collect()
    }

    /// The sum to infinity that the extrapolation stands for, with the agreement of the last depth carried on.
    fn rbo_by_definition(a: &[NeuronId], b: &[NeuronId], p: f64) -> f64 {
        let mut total = 0.0;
        let mut agreement = 0.0;
        for d in 1..5000 {
            if d <= a.len() {
                let prefix: HashSet<_> = a[..d].iter().collect();
                agreement = b[..d].iter().filter(|n| prefix.contains(n)).count() as f64 / d as f64;
            }
            total += (1.0 - p) * p.powi(d as i32 - 1) * agreement;
        }
        total
    }

    proptest! {
        #[test]
        fn overlap_is_symmetric_bounded_and_as_defined(
            a in prop::collection::hash_set(0usize..30, 1..20),
            b in prop::collection::hash_set(0usize..30, 1..20),
            p in 0.1f64..0.95,
        ) {
            let (a, b) = (ids(&a.into_iter().collect::<Vec<_>>()), ids(&b.into_iter().collect::<Vec<_>>()));
            let rbo = rank_biased_overlap(&a, &b, p).unwrap().unwrap();
            prop_assert!((-1e-12..=1.0 + 1e-12).contains(&rbo));
            prop_assert!((rbo - rank_biased_overlap(&b, &a, p).unwrap().unwrap()).abs() < 1e-12);
            prop_assert!((rank_biased_overlap(&a, &a, p).unwrap().unwrap() - 1.0).abs() < 1e-12);
            let n = a.len().min(b.len());
            let even = rank_biased_overlap(&a[..n], &b[..n], p).unwrap().unwrap();
            prop_assert!((even - rbo_by_definition(&a[..n], &b[..n], p)).abs() < 1e-9);
            prop_assert_eq!(jaccard(&a, &b), jaccard(&b, &a));
            prop_assert_eq!(jaccard(&a, &a), Some(1.0));
        }
    }

    #[test]
    fn a_clear_winner_keeps_its_rank_and_noise_does_not() {
        let mut tally = Tally::default();
        for sequence in 0..20 {
            for neuron in 0..10 {
                // Neuron 0 is far ahead in every sequence, the others take turns.
                let change = if neuron == 0 {
                    10.0
                } else {
                    1.0 + f64::from((neuron * 7 + sequence * 3) % 9)
                };
                tally
                    .add(&Row {
                        neuron: NeuronId {
                            layer: 1,
                            neuron: neuron as usize,
                        },
                        sequence: i64::from(sequence),
                        stratum: Stratum::Common,
                        loss_change: change,
                        frozen_loss_change: 0.0,
                        frozen_ln_loss_change: None,
                        frozen_all_loss_change: None,
                        kl_change: 0.0,
                        activation: 0.0,
                        activation_change: None,
                        clean_loss: 5.0,
                    })
                    .unwrap();
            }
        }
        let criteria = Criteria {
            heuristic: Heuristic::Prob,
            effect: Effect::Boost,
            by_mediation: false,
            effect_floor: 0.0,
        };
        let grouped = tally.grouped(RowFilter::None).unwrap();
        let (ranks, left_out) =
            bootstrap_ranks(&grouped, &criteria, Some(3), &Bootstrap::with_seed(1))
                .unwrap()
                .unwrap();
        assert_eq!(left_out, 0);
        assert_eq!(
            (
                ranks[0].low,
                ranks[0].median,
                ranks[0].high,
                ranks[0].top_share
            ),
            (1, 1, 1, 1.0)
        );
        assert!(
            ranks[1..]
                .iter()
                .all(|r| r.low < r.high && r.top_share < 1.0),
            "{ranks:?}"
        );
    }
}
