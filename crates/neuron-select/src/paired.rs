//! The same sequences at two checkpoints.

use std::collections::HashMap;

use surprisal_metrics::Group;

/// What [`paired`] gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Paired {
    /// Differences of the sums, later minus earlier, of each shared cluster.
    pub groups: Vec<Group>,
    /// Clusters that only one of both has, or that have more rows in one of them.
    pub left_out: usize,
}

/// Differences between two tables of the same clusters (documents or sequences), for an interval by [`surprisal_metrics::Bootstrap::mean`].
///
/// Checkpoints that were ablated on the same text share what is easy or hard in it, which drops out of a difference within a cluster; an
/// interval of each alone says little about their difference. Clusters are paired by name, and only where both have as many rows.
///
/// # Examples
/// ```
/// use neuron_select::paired;
/// use surprisal_metrics::Group;
/// let of = |values: [f64; 2]| values.map(|value| Group::of(&[value]));
/// // Documents 7 and 8 at one checkpoint, 8 and 7 at a later one.
/// let found = paired((&[7, 8], &of([1.0, 5.0])), (&[8, 7], &of([5.5, 1.5])));
/// assert_eq!(found.groups, of([0.5, 0.5]));
/// assert_eq!(found.left_out, 0);
/// ```
pub fn paired(
    (earlier_names, earlier): (&[i64], &[Group]),
    (later_names, later): (&[i64], &[Group]),
) -> Paired {
    let with_rows = |names: &[i64], groups: &[Group]| -> Vec<(i64, Group)> {
        let all = names.iter().copied().zip(groups.iter().copied());
        all.filter(|(_, group)| group.count > 0.0).collect()
    };
    let earlier = with_rows(earlier_names, earlier);
    let later: HashMap<i64, Group> = with_rows(later_names, later).into_iter().collect();
    let shared = earlier.iter().filter(|(name, _)| later.contains_key(name));
    let n_shared = shared.count();
    let groups: Vec<Group> = earlier
        .iter()
        .filter_map(|(name, before)| {
            let after = later.get(name)?;
            (after.count == before.count).then_some(Group {
                sum: after.sum - before.sum,
                count: before.count,
            })
        })
        .collect();
    let all = earlier.len() + later.len() - n_shared;
    Paired {
        left_out: all - groups.len(),
        groups,
    }
}
