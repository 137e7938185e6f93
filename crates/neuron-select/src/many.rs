//! Thousands of neurons at once: which effects would not have come up by chance among all of them.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use surprisal_metrics::{Group, MIN_GROUPS};

use crate::{Grouped, Measure, SelectError};

/// Adjusted p values of the mean change of every neuron, neurons ascending: how often chance alone gives *any* neuron a change as clear.
///
/// Where the neuron does nothing on average, the sum `s_i` of its changes over cluster i is as likely to be negative as positive. So the
/// signs of whole clusters are flipped at random, the same for all neurons, which keeps how neurons go together:
///
/// ```text
/// t_n = sum_i s_ni / sqrt(k sum_i s_ni^2)               grows with Student's t of the k cluster sums
/// p_n = (1 + #{flips: max_m |t*_m| >= |t_n|}) / (1 + flips)
/// ```
///
/// It controls the probability of a single false discovery among all neurons of the table (Westfall & Young 1993, *Resampling-based
/// multiple testing*, single-step max-t). With k clusters there are `2^(k - 1)` different flips, and no p value can be below one over
/// that. `None` with fewer than [`MIN_GROUPS`] clusters that have rows.
///
/// # Errors
/// - [`SelectError::Setting`] without flips
///
/// # Examples
/// ```
/// use neuron_select::{Measure, NeuronId, Row, RowFilter, Stratum, Tally, max_t};
/// let mut tally = Tally::default();
/// for sequence in 0..12 {
///     for (neuron, loss_change) in [(0, 0.1 + 0.01 * (sequence % 3) as f64), (1, (sequence % 2) as f64 - 0.5)] {
///         tally.add(&Row {
///             neuron: NeuronId { layer: 5, neuron },
///             sequence,
///             stratum: Stratum::LongTail,
///             loss_change,
///             frozen_loss_change: 0.0,
///             frozen_ln_loss_change: None,
///             frozen_all_loss_change: None,
///             kl_change: 0.0,
///             activation: 1.0,
///             activation_change: None,
///             clean_loss: 5.0,
///         })?;
///     }
/// }
/// let p = max_t(&tally.grouped(RowFilter::None)?, Measure::LossChange, 999, 42)?.ok_or("twelve sequences")?;
/// assert!(p[0] < 0.01 && p[1] == 1.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn max_t(
    grouped: &Grouped,
    measure: Measure,
    flips: usize,
    seed: u64,
) -> Result<Option<Vec<f64>>, SelectError> {
    if flips == 0 {
        return Err(SelectError::Setting {
            name: "the number of sign flips",
            value: 0.0,
            expected: "at least 1",
        });
    }
    let of_neurons = grouped.neurons().iter();
    let groups = of_neurons.map(|&neuron| grouped.groups(&[neuron], measure));
    let scaled: Vec<Vec<f64>> = groups
        .map(|groups| {
            let length = groups.iter().map(|g| g.sum * g.sum).sum::<f64>().sqrt();
            let clusters = Group::with_values(&groups) as f64;
            let scale = if length > 0.0 {
                1.0 / (length * clusters.sqrt())
            } else {
                0.0
            };
            groups.iter().map(|g| g.sum * scale).collect()
        })
        .collect();
    if grouped.n_sequences_with_rows() < MIN_GROUPS {
        return Ok(None);
    }
    let n = grouped.n_sequences();
    let largest: Vec<f64> = (0..flips)
        .into_par_iter()
        .map(|flip| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(flip as u64);
            let signs: Vec<f64> = (0..n)
                .map(|_| if rng.random() { 1.0 } else { -1.0 })
                .collect();
            let t = |sums: &Vec<f64>| {
                let products = sums.iter().zip(&signs).map(|(sum, sign)| sum * sign);
                products.sum::<f64>().abs()
            };
            scaled.iter().map(t).fold(0.0, f64::max)
        })
        .collect();
    let p = |sums: &Vec<f64>| {
        // A flip of all signs or none is the sample itself, but for rounding.
        let own = sums.iter().sum::<f64>().abs() * (1.0 - 1e-12);
        let as_clear = largest.iter().filter(|t| **t >= own).count();
        (1 + as_clear) as f64 / (1 + flips) as f64
    };
    Ok(Some(scaled.par_iter().map(p).collect()))
}

/// Benjamini-Hochberg q values of some p values, in their order: the smallest false discovery rate at which each is still a discovery.
/// What has no p value has no q value, and counts as no test.
///
/// `q_i = min over p_j >= p_i of m p_j / #{p <= p_j}`, m tests. It holds for independent tests and for those that go together (Benjamini &
/// Yekutieli 2001), as effects at several factors or on several groups of words do.
///
/// Source: Benjamini & Hochberg (1995), *Controlling the false discovery rate*.
///
/// # Examples
/// ```
/// use neuron_select::q_values;
/// let q = q_values(&[Some(0.01), None, Some(0.04), Some(0.03), Some(0.8)]);
/// assert_eq!(q[1], None);
/// assert!((q[0].unwrap() - 0.04).abs() < 1e-12); // 4 x 0.01
/// assert!((q[3].unwrap() - 0.16 / 3.0).abs() < 1e-12); // no more than that of 0.04
/// ```
pub fn q_values(p: &[Option<f64>]) -> Vec<Option<f64>> {
    let mut order: Vec<(f64, usize)> = (p.iter().zip(0..))
        .filter_map(|(p, i)| Some(((*p)?, i)))
        .collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut q = vec![None; p.len()];
    let mut least = 1.0f64;
    for (place, (p, i)) in order.iter().enumerate().rev() {
        least = least.min(p * order.len() as f64 / (place + 1) as f64);
        q[*i] = Some(least);
    }
    q
}
