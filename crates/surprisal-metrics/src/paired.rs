//! Two conditions measured on the same items.

use std::collections::BTreeMap;

use crate::bootstrap::{Bootstrap, Group, Interval};
use crate::error::{check_finite, check_lengths};
use crate::{MetricError, Summary};

/// How a condition differs from a baseline over paired items, in the unit of the values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Paired {
    /// Number of pairs.
    pub pairs: usize,
    /// Number of groups, each of which counts once.
    pub groups: usize,
    /// Mean over groups of `condition - baseline`.
    pub difference: f64,
    /// Its bootstrap-t interval over groups; none below [`MIN_GROUPS`](crate::MIN_GROUPS) of them.
    pub interval: Option<Interval>,
    /// Groups whose mean difference is above 0.
    pub higher: usize,
    /// Groups whose mean difference is below 0.
    pub lower: usize,
    /// Two-sided p-value of the sign test over groups; ties are left out.
    pub sign_p: f64,
}

/// Compares `condition` with `baseline` item by item; items of one group (the contexts of a word)
/// are averaged first, so that every group counts once.
///
/// # Shapes
/// - `groups`, `baseline`, `condition`: `[n_items]`; equal entries of `groups` belong together
///
/// # Errors
/// - [`MetricError::Length`] if the slices differ in length
/// - [`MetricError::Empty`] without items
/// - [`MetricError::NotFinite`] at a value that is NaN or infinite
/// - [`MetricError::Setting`] if the bootstrap's settings are out of range
///
/// # Examples
/// ```
/// use surprisal_metrics::{Bootstrap, paired_comparison};
/// let words = ["a", "b", "b", "c"];
/// let paired = paired_comparison(&words, &[5.0, 7.0, 9.0, 4.0], &[4.0, 7.0, 7.0, 3.0], &Bootstrap::default())?;
/// assert_eq!((paired.groups, paired.higher, paired.lower), (3, 0, 3));
/// assert_eq!(paired.difference, -1.0);
/// assert!((paired.sign_p - 0.25).abs() < 1e-12);
/// # Ok::<(), surprisal_metrics::MetricError>(())
/// ```
pub fn paired_comparison<K: Ord>(
    groups: &[K],
    baseline: &[f64],
    condition: &[f64],
    bootstrap: &Bootstrap,
) -> Result<Paired, MetricError> {
    check_lengths(("groups", groups.len()), ("baseline", baseline.len()))?;
    check_lengths(("baseline", baseline.len()), ("condition", condition.len()))?;
    check_finite("baseline", baseline)?;
    check_finite("condition", condition)?;
    let mut by_group: BTreeMap<&K, Vec<f64>> = BTreeMap::new();
    for ((group, before), after) in groups.iter().zip(baseline).zip(condition) {
        by_group.entry(group).or_default().push(after - before);
    }
    let mut means = Vec::with_capacity(by_group.len());
    for differences in by_group.values() {
        means.push(Summary::of(differences)?.mean);
    }
    let resampled: Vec<Group> = means.iter().map(|&mean| Group::of(&[mean])).collect();
    let higher = means.iter().filter(|mean| **mean > 0.0).count();
    let lower = means.iter().filter(|mean| **mean < 0.0).count();
    Ok(Paired {
        pairs: baseline.len(),
        groups: means.len(),
        difference: Group::total(&resampled)
            .mean()
            .ok_or(MetricError::Empty { what: "items" })?,
        interval: bootstrap.mean(&resampled)?,
        higher,
        lower,
        sign_p: sign_test(higher, lower),
    })
}

/// Exact two-sided sign test: how likely a split at least as uneven as `higher` against `lower` is
/// when both are equally probable. 1 when there is nothing to split. Takes as many steps as the smaller
/// of the two.
///
/// # Examples
/// ```
/// # use surprisal_metrics::sign_test;
/// assert!((sign_test(5, 0) - 2.0 / 32.0).abs() < 1e-12);
/// assert_eq!(sign_test(3, 3), 1.0);
/// ```
#[must_use]
pub fn sign_test(higher: usize, lower: usize) -> f64 {
    // Their sum can be beyond the largest integer.
    let (n, k) = (higher as f64 + lower as f64, higher.min(lower));
    // Terms C(n, i) / 2^n in logs, by their ratio (n - i) / (i + 1).
    let mut ln_term = -n * std::f64::consts::LN_2;
    let mut tail = 0.0;
    for i in 0..=k {
        tail += ln_term.exp();
        ln_term += ((n - i as f64) / (i + 1) as f64).ln();
    }
    (2.0 * tail).min(1.0)
}
