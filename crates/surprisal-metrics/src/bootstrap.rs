//! Percentile intervals by resampling whole groups.
//!
//! Values from one sequence, or from one word, are not independent: the group is drawn, never the
//! single value. Resamples come from ChaCha8 seeded by the caller, so that an interval is the same
//! on every machine.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::MetricError;
use crate::error::{check_finite, check_lengths};

/// Sum and number of the values of one group (a sequence, a word).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Group {
    /// Sum of the values.
    pub sum: f64,
    /// Number of values, or their total weight.
    pub count: f64,
}

impl Group {
    /// Group of some values.
    #[must_use]
    pub fn of(values: &[f64]) -> Self {
        Self {
            sum: values.iter().sum(),
            count: values.len() as f64,
        }
    }
}

/// An estimate with its percentile interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// The statistic of the sample itself.
    pub estimate: f64,
    /// Lower end.
    pub lower: f64,
    /// Upper end.
    pub upper: f64,
    /// Resamples whose statistic is undefined, left out of the percentiles.
    pub undefined: usize,
}

/// How to resample.
///
/// # Examples
/// ```
/// use surprisal_metrics::{Bootstrap, Group};
/// let sequences = [[1.0, 2.0], [3.0, 4.0], [2.0, 3.0]].map(|values| Group::of(&values));
/// let interval = Bootstrap::with_seed(42).mean(&sequences)?.expect("three sequences");
/// assert_eq!(interval.estimate, 2.5);
/// assert!((1.5..=2.5).contains(&interval.lower) && (2.5..=3.5).contains(&interval.upper));
/// # Ok::<(), surprisal_metrics::MetricError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bootstrap {
    /// Number of resamples.
    pub resamples: usize,
    /// Share of the resamples inside the interval, between 0 and 1.
    pub level: f64,
    /// Seed of the random numbers.
    pub seed: u64,
}

/// Groups drawn with replacement, by [`Bootstrap::resample`].
#[derive(Debug, Clone)]
pub struct Resamples {
    n: usize,
    level: f64,
    /// `[resample][draw]`
    draws: Vec<usize>,
}

impl Default for Bootstrap {
    /// 1,000 resamples, 95 %, seed 0.
    fn default() -> Self {
        Self {
            resamples: 1000,
            level: 0.95,
            seed: 0,
        }
    }
}

impl Bootstrap {
    /// The default with another seed.
    #[must_use]
    pub fn with_seed(seed: u64) -> Self {
        Self {
            seed,
            ..Self::default()
        }
    }

    /// Interval of the mean over all values: `sum of sums / sum of counts`. `None` if fewer than two groups have values: one says
    /// nothing about the spread over groups.
    ///
    /// # Errors
    /// - [`MetricError::Empty`] without groups, or if no group has a value
    /// - [`MetricError::NotFinite`] if a sum or count is NaN or infinite
    /// - [`MetricError::Setting`] if `resamples` or `level` is out of range
    pub fn mean(&self, groups: &[Group]) -> Result<Option<Interval>, MetricError> {
        self.resample(groups.len())?.mean(groups)
    }

    /// Interval of a ratio of means, both of the same resampled groups. `None` where the
    /// denominator's absolute mean over the sample is below `floor` (a resample below it counts as
    /// [`Interval::undefined`]), or fewer than two groups have values.
    ///
    /// # Errors
    /// - as [`Bootstrap::mean`], and [`MetricError::Length`] if the slices differ in length
    ///
    /// # Examples
    /// ```
    /// use surprisal_metrics::{Bootstrap, Group};
    /// let direct = [1.0, 2.0].map(|sum| Group { sum, count: 1.0 });
    /// let all = [2.0, 4.0].map(|sum| Group { sum, count: 1.0 });
    /// let share = Bootstrap::default().ratio(&direct, &all, 1e-9)?.expect("a denominator of 3");
    /// assert_eq!((share.lower, share.estimate, share.upper), (0.5, 0.5, 0.5));
    /// # Ok::<(), surprisal_metrics::MetricError>(())
    /// ```
    pub fn ratio(
        &self,
        numerators: &[Group],
        denominators: &[Group],
        floor: f64,
    ) -> Result<Option<Interval>, MetricError> {
        self.resample(numerators.len())?
            .ratio(numerators, denominators, floor)
    }

    /// Interval of any statistic of `n` groups. `statistic` gets the indices of the drawn groups,
    /// repeated ones repeated, and says `None` where it is undefined. `None` if it is undefined on
    /// the sample itself or on every resample, or if there is but one group.
    ///
    /// # Errors
    /// - [`MetricError::Empty`] if `n` is 0
    /// - [`MetricError::NotFinite`] if the statistic is NaN or infinite (index of the resample)
    /// - [`MetricError::Setting`] if `resamples` or `level` is out of range
    pub fn statistic(
        &self,
        n: usize,
        statistic: impl Fn(&[usize]) -> Option<f64>,
    ) -> Result<Option<Interval>, MetricError> {
        self.resample(n)?.statistic(statistic)
    }

    /// The resamples of `n` groups, to be used for many statistics of them: drawing costs more
    /// than a mean.
    ///
    /// # Errors
    /// - [`MetricError::Empty`] if `n` is 0
    /// - [`MetricError::Setting`] if `resamples` or `level` is out of range
    ///
    /// # Examples
    /// ```
    /// use surprisal_metrics::{Bootstrap, Group};
    /// let bootstrap = Bootstrap::with_seed(42);
    /// let resamples = bootstrap.resample(3)?;
    /// for sums in [[1.0, 2.0, 3.0], [9.0, 7.0, 8.0]] {
    ///     let groups = sums.map(|sum| Group { sum, count: 1.0 });
    ///     assert_eq!(resamples.mean(&groups)?, bootstrap.mean(&groups)?);
    /// }
    /// # Ok::<(), surprisal_metrics::MetricError>(())
    /// ```
    pub fn resample(&self, n: usize) -> Result<Resamples, MetricError> {
        Ok(Resamples {
            n,
            level: self.level,
            draws: self.draws(n)?.flatten().collect(),
        })
    }

    /// The resamples themselves: each `n` group indices, drawn with replacement.
    ///
    /// # Errors
    /// - [`MetricError::Empty`] if `n` is 0
    /// - [`MetricError::Setting`] if `resamples` or `level` is out of range
    pub fn draws(&self, n: usize) -> Result<impl Iterator<Item = Vec<usize>> + use<>, MetricError> {
        if n == 0 {
            return Err(MetricError::Empty { what: "groups" });
        }
        if self.resamples == 0 {
            return Err(MetricError::Setting {
                name: "resamples",
                value: 0.0,
                expected: "at least 1",
            });
        }
        if !(self.level > 0.0 && self.level < 1.0) {
            return Err(MetricError::Setting {
                name: "level",
                value: self.level,
                expected: "a number between 0 and 1",
            });
        }
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        // A 64-bit range, so that 32-bit machines draw the same.
        let n = n as u64;
        Ok((0..self.resamples)
            .map(move |_| (0..n).map(|_| rng.random_range(0..n) as usize).collect()))
    }
}

impl Resamples {
    /// As [`Bootstrap::mean`].
    ///
    /// # Errors
    /// - as [`Bootstrap::mean`], and [`MetricError::Length`] for another number of groups
    pub fn mean(&self, groups: &[Group]) -> Result<Option<Interval>, MetricError> {
        self.check(groups)?;
        match with_values(groups) {
            0 => Err(MetricError::Empty { what: "values" }),
            1 => Ok(None),
            _ => self.statistic(|draw| total(groups, draw).mean()),
        }
    }

    /// As [`Bootstrap::ratio`].
    ///
    /// # Errors
    /// - as [`Bootstrap::ratio`], and [`MetricError::Length`] for another number of groups
    pub fn ratio(
        &self,
        numerators: &[Group],
        denominators: &[Group],
        floor: f64,
    ) -> Result<Option<Interval>, MetricError> {
        check_lengths(
            ("numerators", numerators.len()),
            ("denominators", denominators.len()),
        )?;
        self.check(numerators)?;
        self.check(denominators)?;
        if with_values(denominators) < 2 {
            return Ok(None);
        }
        self.statistic(|draw| {
            let denominator = total(denominators, draw).mean()?;
            let above = denominator.abs() >= floor && denominator != 0.0;
            Some(total(numerators, draw).mean()? / denominator).filter(|_| above)
        })
    }

    /// As [`Bootstrap::statistic`].
    ///
    /// # Errors
    /// - [`MetricError::NotFinite`] if the statistic is NaN or infinite (index of the resample)
    pub fn statistic(
        &self,
        statistic: impl Fn(&[usize]) -> Option<f64>,
    ) -> Result<Option<Interval>, MetricError> {
        let all: Vec<usize> = (0..self.n).collect();
        let Some(estimate) = statistic(&all).filter(|_| self.n > 1) else {
            return Ok(None);
        };
        check_finite("statistic of the sample", &[estimate])?;
        let draws = self.draws.chunks(self.n);
        let resamples = draws.len();
        let mut values: Vec<f64> = draws.filter_map(statistic).collect();
        check_finite("statistic of a resample", &values)?;
        let undefined = resamples - values.len();
        let tail = (1.0 - self.level) / 2.0;
        let ends = quantile(&mut values, tail).zip(quantile(&mut values, 1.0 - tail));
        Ok(ends.map(|(lower, upper)| Interval {
            estimate,
            lower,
            upper,
            undefined,
        }))
    }

    fn check(&self, groups: &[Group]) -> Result<(), MetricError> {
        check_lengths(("groups", groups.len()), ("resampled groups", self.n))?;
        check_groups(groups)
    }
}

impl Group {
    /// All values of some groups as one group.
    ///
    /// # Examples
    /// ```
    /// use surprisal_metrics::Group;
    /// let groups = [Group::of(&[1.0, 2.0]), Group::of(&[6.0])];
    /// assert_eq!(Group::total(&groups).mean(), Some(3.0));
    /// ```
    #[must_use]
    pub fn total(groups: &[Self]) -> Self {
        groups.iter().fold(Self::default(), |total, group| Self {
            sum: total.sum + group.sum,
            count: total.count + group.count,
        })
    }

    /// Mean of the values; `None` without any.
    #[must_use]
    pub fn mean(self) -> Option<f64> {
        (self.count > 0.0).then(|| self.sum / self.count)
    }
}

fn total(groups: &[Group], draw: &[usize]) -> Group {
    draw.iter().fold(Group::default(), |total, &i| Group {
        sum: total.sum + groups[i].sum,
        count: total.count + groups[i].count,
    })
}

/// Groups that have a value.
fn with_values(groups: &[Group]) -> usize {
    groups.iter().filter(|group| group.count > 0.0).count()
}

fn check_groups(groups: &[Group]) -> Result<(), MetricError> {
    for (what, values) in [
        (
            "group sum",
            groups.iter().map(|g| g.sum).collect::<Vec<_>>(),
        ),
        ("group count", groups.iter().map(|g| g.count).collect()),
    ] {
        check_finite(what, &values)?;
    }
    Ok(())
}

/// Quantile of values in any order, which it changes: linear between order statistics. `None`
/// without values.
fn quantile(values: &mut [f64], share: f64) -> Option<f64> {
    let last = values.len().checked_sub(1)?;
    let place = share * last as f64;
    let low = place.floor() as usize;
    let (_, &mut a, above) = values.select_nth_unstable_by(low, f64::total_cmp);
    let b = above.iter().copied().min_by(f64::total_cmp).unwrap_or(a);
    Some(a + (b - a) * (place - low as f64))
}
