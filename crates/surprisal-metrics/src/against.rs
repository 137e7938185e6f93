//! One set against others that were drawn: an interval in which the set is a draw too.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::bootstrap::{Bootstrap, EXACT, Group, Interval, MIN_GROUPS, Studentised, jackknife};
use crate::error::{check_finite, check_lengths};
use crate::{MetricError, bootstrap::check_groups};

impl Bootstrap {
    /// Interval of how far a set is from control sets, over groups (words, documents) and draws: `own[j]` is what group j has under the
    /// set, `controls[i][j]` under the i-th control set, and `like[i][j]` under the i-th of the sets that the set itself could have been
    /// drawn among. For random controls these are the controls, and `wider` is 1; where a set may lie farther from the mean of the controls
    /// than the sets like it lie from their own, `wider` says by how much.
    ///
    /// The mean of all control sets is known ever better with more draws and more text, and any single set, drawn as they were, lies some
    /// way off it: an interval over groups, or over groups and the draws of the mean, excludes 0 for nearly every set. So the set counts as
    /// one draw more, whose uncertainty is the spread of the sets like it:
    ///
    /// ```text
    /// d = mean of own - mean of controls
    /// se^2 = jackknife of d over groups + wider^2 V(like) + V(controls) / D  V: variance of the means of sets, D control sets
    /// d* = of resampled groups, with another draw in the place of the set itself: own + wider sqrt(V*(like)) z - mean* of controls
    /// interval: d - t*_(1 - alpha/2) se  to  d - t*_(alpha/2) se,  t* = (d* - d) / se*       as in [`Bootstrap::mean`]
    /// ```
    ///
    /// `z` is standard normal: the mean of a set is a sum over its neurons and the groups, and a few draws have no tails of their own.
    ///
    /// A set that is drawn as its controls were has 0 outside its 95 % interval in about 5 % of cases (`cargo xtask simulate`,
    /// docs/simulations.md). [`Interval::estimate`] is `d`, [`Interval::groups`] counts groups. `None` if fewer than [`MIN_GROUPS`] groups
    /// have values, or there are fewer draws of either kind.
    ///
    /// # Errors
    /// - [`MetricError::Length`] for a set with more or fewer groups
    /// - [`MetricError::Counts`] at the first group with another count under another set: all sets are measured on the same rows
    /// - as [`Bootstrap::mean`]
    ///
    /// # Examples
    /// ```
    /// use surprisal_metrics::{Bootstrap, Group};
    /// let set = |effect: f64| (0..10).map(|word| Group::of(&[effect + 0.01 * f64::from(word)])).collect::<Vec<_>>();
    /// let controls: Vec<Vec<Group>> = (0..19).map(|draw| set(f64::from(draw % 7))).collect();
    /// let bootstrap = Bootstrap::with_seed(42);
    /// let inside = bootstrap.against(&set(4.0), &controls, (&controls, 1.0))?.expect("enough draws and words");
    /// let outside = bootstrap.against(&set(40.0), &controls, (&controls, 1.0))?.expect("enough draws and words");
    /// assert!(inside.lower < 0.0 && 0.0 < inside.upper && outside.lower > 0.0);
    /// # Ok::<(), surprisal_metrics::MetricError>(())
    /// ```
    pub fn against(
        &self,
        own: &[Group],
        controls: &[Vec<Group>],
        (like, wider): (&[Vec<Group>], f64),
    ) -> Result<Option<Interval>, MetricError> {
        check_groups(own)?;
        check_finite("widening of the spread", &[wider])?;
        for set in controls.iter().chain(like) {
            check_groups(set)?;
            check_lengths(
                ("groups", own.len()),
                ("groups of a control set", set.len()),
            )?;
            let other = (0..own.len()).find(|&j| own[j].count != set[j].count);
            if let Some(index) = other {
                return Err(MetricError::Counts {
                    index,
                    numerator: own[index].count,
                    denominator: set[index].count,
                });
            }
        }
        let groups = Group::with_values(own);
        if groups.min(controls.len()).min(like.len()) < MIN_GROUPS {
            return Ok(None);
        }
        // Per group what the set has more than the mean of the controls.
        let excess: Vec<Group> = (0..own.len())
            .map(|j| {
                let of_controls: f64 = controls.iter().map(|set| set[j].sum).sum();
                Group {
                    sum: own[j].sum - of_controls / controls.len() as f64,
                    count: own[j].count,
                }
            })
            .collect();
        let (Some(estimate), Some(by_group)) = (Group::total(&excess).mean(), jackknife(&excess))
        else {
            return Ok(None);
        };
        let all = vec![1.0; own.len()];
        let spread = |sets: &[Vec<Group>]| spread_of(&means(sets, &all));
        let se =
            (by_group + wider * wider * spread(like) + spread(controls) / controls.len() as f64)
                .sqrt();
        check_finite("standard error of the sample", &[se])?;
        let size = own.iter().map(|g| (g.sum / g.count.max(1.0)).abs());
        if se <= EXACT * size.sum::<f64>() {
            return Ok(Some(Interval::of_a_point(estimate, groups)));
        }
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(DRAWS);
        let ts = self.draws(own.len())?.filter_map(|drawn| {
            let mut times = vec![0.0; own.len()];
            drawn.into_iter().for_each(|j| times[j] += 1.0);
            let weighted = |of: &dyn Fn(&Group) -> f64| -> f64 {
                let groups = excess.iter().zip(&times);
                groups.map(|(group, times)| times * of(group)).sum()
            };
            let count = weighted(&|g| g.count);
            if count == 0.0 {
                return None;
            }
            let (of_like, of_controls) = (means(like, &times), means(controls, &times));
            // The set as another draw than it was.
            let z = normal((rng.random(), rng.random()));
            let drawn = wider * spread_of(&of_like).sqrt() * z;
            let mut again = |values: &[f64]| -> Vec<f64> {
                let n = values.len() as u64;
                let one = |_| values[rng.random_range(0..n) as usize];
                (0..n).map(one).collect()
            };
            let (like, controls) = (again(&of_like), again(&of_controls));
            let moved = weighted(&|g| g.sum) / count;
            let drawn = drawn + mean(&of_controls) - mean(&controls);
            let by_group = weighted(&|g| (g.sum - moved * g.count).powi(2)) / (count * count);
            let se = by_group
                + wider * wider * variance(&like)
                + variance(&controls) / controls.len() as f64;
            (se > 0.0).then(|| (moved + drawn - estimate) / se.sqrt())
        });
        let of = Studentised {
            ts: ts.collect(),
            resamples: self.resamples,
            level: self.level,
        };
        Ok(of.interval(estimate, se, groups))
    }
}

/// Stream of the draws of sets; groups are drawn from the first one.
const DRAWS: u64 = 1;

/// Mean of each set over groups that count so many times.
fn means(sets: &[Vec<Group>], times: &[f64]) -> Vec<f64> {
    let of = |set: &Vec<Group>| {
        let groups = set.iter().zip(times);
        let (sum, count) = groups.fold((0.0, 0.0), |(sum, count), (group, times)| {
            (sum + times * group.sum, count + times * group.count)
        });
        sum / count
    };
    sets.iter().map(of).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Variance of what the values are drawn from.
fn spread_of(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    variance(values) * n / (n - 1.0)
}

/// A standard normal value (Box & Muller 1958).
fn normal((u, v): (f64, f64)) -> f64 {
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// Mean square distance from the mean.
fn variance(values: &[f64]) -> f64 {
    let middle = mean(values);
    let squares: f64 = values.iter().map(|value| (value - middle).powi(2)).sum();
    squares / values.len() as f64
}
