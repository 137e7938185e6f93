//! Bootstrap-t intervals by resampling whole groups.
//!
//! Values from one sequence, one document or one word are not independent: the group (the cluster) is drawn, never the single value.
//! Means and ratios are studentised: every resample is measured in its own standard error over the drawn groups, so that the interval
//! is as long and as skewed as few groups of skewed values ask for. Percentiles of the resamples themselves, used here before, covered
//! the mean of ten lognormal values in 80 % of cases for a nominal 95 %; these cover it in 91 % (`cargo xtask simulate`, docs/simulations.md).
//! Below [`MIN_GROUPS`] groups there is no interval. Resamples come from ChaCha8 seeded by the caller, so that an interval is the same
//! on every machine.
//!
//! Sources: Efron (1981), *Nonparametric standard errors and confidence intervals*; Hall (1988), *Theoretical comparison of bootstrap
//! confidence intervals*; Davison & Hinkley (1997), *Bootstrap Methods and their Application*, section 5.2.

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

/// Fewest groups with values that an interval is given for.
///
/// With fewer the resamples are too few different ones: of eight groups there are 6,435, of five 126.
pub const MIN_GROUPS: usize = 8;

/// An estimate with its bootstrap-t interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// The statistic of the sample itself.
    pub estimate: f64,
    /// Lower end. Nothing keeps it inside the range of the values.
    pub lower: f64,
    /// Upper end.
    pub upper: f64,
    /// Groups that have values.
    pub groups: usize,
    /// Resamples without a statistic or a standard error (all draws the same group), left out of the quantiles.
    pub undefined: usize,
}

impl Interval {
    /// That of groups which are all alike.
    pub(crate) fn of_a_point(estimate: f64, groups: usize) -> Self {
        Self {
            estimate,
            lower: estimate,
            upper: estimate,
            groups,
            undefined: 0,
        }
    }

    /// The interval of `1 - value`, such as a mediated share from `direct / total`.
    #[must_use]
    pub fn complement(self) -> Self {
        Self {
            estimate: 1.0 - self.estimate,
            lower: 1.0 - self.upper,
            upper: 1.0 - self.lower,
            ..self
        }
    }
}

/// How to resample.
///
/// # Examples
/// ```
/// use surprisal_metrics::{Bootstrap, Group};
/// let sequences: Vec<Group> = (0..10).map(|i| Group::of(&[f64::from(i), f64::from(i) + 1.0])).collect();
/// let interval = Bootstrap::with_seed(42).mean(&sequences)?.expect("ten sequences");
/// assert_eq!((interval.estimate, interval.groups), (5.0, 10));
/// assert!(interval.lower < 3.2 && 6.8 < interval.upper); // 5 -+ 2.26 * 3.03 / sqrt(10), or a little more
/// assert_eq!(Bootstrap::with_seed(42).mean(&sequences[..7])?, None);
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

    /// Interval of the mean over all values, `sum of sums / sum of counts`: bootstrap-t over groups.
    ///
    /// ```text
    /// m = S / C,  r_i = s_i - m c_i                        sums s_i and counts c_i of the groups, S and C of the sample
    /// se^2 = (k - 1)/k sum_i (m_(i) - mean m_(i))^2          jackknife: m_(i) without group i, k groups with values
    /// t*  = (m* - m) / se*,  se*^2 = sum* (r_i - (m* - m) c_i)^2 / C*^2        per resample
    /// interval: m - t*_(1 - alpha/2) se  to  m - t*_(alpha/2) se
    /// ```
    ///
    /// The small-sample treatment is that the sample has the jackknife's standard error, which is `sqrt(k / (k - 1))` of the one that
    /// the resamples have where groups are of one size, and more where a few hold most of the values (it errs upwards: Efron & Stein
    /// 1981, *The jackknife estimate of variance*).
    ///
    /// `None` if fewer than [`MIN_GROUPS`] groups have values, or more than half of the resamples are undefined. Where all groups have
    /// the same mean, the interval is that mean.
    ///
    /// # Errors
    /// - [`MetricError::Empty`] without groups, or if no group has a value
    /// - [`MetricError::NotFinite`] if a sum or count is NaN or infinite, or sums are too large to be added up
    /// - [`MetricError::Setting`] if `resamples` or `level` is out of range
    pub fn mean(&self, groups: &[Group]) -> Result<Option<Interval>, MetricError> {
        self.resample(groups.len())?.mean(groups)
    }

    /// Interval of a ratio of two means over the same values, `sum of numerators / sum of denominators`: as [`Bootstrap::mean`], with
    /// the denominators in the place of the counts. `None` also where the denominator's absolute mean over the sample, or over it
    /// without one of its groups, is below `floor` (a resample below it counts as [`Interval::undefined`]).
    ///
    /// # Errors
    /// - as [`Bootstrap::mean`], and [`MetricError::Length`] if the slices differ in length
    /// - [`MetricError::Counts`] at the first group whose numerator and denominator have not the same count
    ///
    /// # Examples
    /// ```
    /// use surprisal_metrics::{Bootstrap, Group};
    /// let all: Vec<Group> = (1..10).map(|i| Group::of(&[f64::from(i)])).collect();
    /// let direct: Vec<Group> = all.iter().map(|g| Group { sum: g.sum / 2.0, ..*g }).collect();
    /// let share = Bootstrap::default().ratio(&direct, &all, 1e-9)?.expect("a denominator of 5");
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

    /// Interval of a mean over two crossed kinds of units, such as draws of control sets and documents: `cells[i][j]` is what unit j of the
    /// second kind (a document) has under unit i of the first (a draw).
    ///
    /// Both kinds are resampled at once and independently, whole rows and whole columns (the pigeonhole bootstrap, Owen 2007), and the mean
    /// is studentised by the sum of both variances. An interval over documents alone, of the mean of a few draws, holds the truth about
    /// these draws; this one is about draws like them.
    ///
    /// ```text
    /// m = S / C,  r_ij = s_ij - m c_ij
    /// se^2 = jackknife without each row + jackknife without each column
    /// se*^2 = (sum* of squared row sums of r* + sum* of squared column sums of r*) / C*^2       per resample, as in [`Bootstrap::mean`]
    /// ```
    ///
    /// What belongs to a cell alone is in both variances, so that the interval is rather too long than too short. `None` if fewer than
    /// [`MIN_GROUPS`] rows or columns have values, or more than half of the resamples are undefined. [`Interval::groups`] counts columns.
    ///
    /// # Errors
    /// - as [`Bootstrap::mean`], and [`MetricError::Length`] if the rows differ in length
    ///
    /// # Examples
    /// ```
    /// use surprisal_metrics::{Bootstrap, Group};
    /// // Twenty draws that differ, measured on ten documents that do not.
    /// let cells: Vec<Vec<Group>> = (0..20).map(|draw| vec![Group::of(&[f64::from(draw % 5)]); 10]).collect();
    /// let interval = Bootstrap::with_seed(42).two_way(&cells)?.expect("enough draws and documents");
    /// assert!(interval.lower < 1.6 && interval.estimate == 2.0 && 2.4 < interval.upper);
    /// # Ok::<(), surprisal_metrics::MetricError>(())
    /// ```
    pub fn two_way(&self, cells: &[Vec<Group>]) -> Result<Option<Interval>, MetricError> {
        let n_columns = cells.first().map_or(0, Vec::len);
        // Other numbers for the columns, even where there are as many.
        let of_columns = Self {
            seed: self.seed ^ COLUMNS,
            ..*self
        };
        let (rows, columns) = (self.resample(cells.len())?, of_columns.resample(n_columns)?);
        for row in cells {
            columns.check(row)?;
        }
        let of_rows: Vec<Group> = cells.iter().map(|row| Group::total(row)).collect();
        let of_columns: Vec<Group> = (0..n_columns)
            .map(|j| Group::total(&cells.iter().map(|row| row[j]).collect::<Vec<_>>()))
            .collect();
        let Some(estimate) = Group::total(&of_rows).mean() else {
            return Err(MetricError::Empty { what: "values" });
        };
        let groups = Group::with_values(&of_columns);
        if groups.min(Group::with_values(&of_rows)) < MIN_GROUPS {
            return Ok(None);
        }
        let (Some(by_row), Some(by_column)) = (jackknife(&of_rows), jackknife(&of_columns)) else {
            return Ok(None);
        };
        let se = (by_row + by_column).sqrt();
        check_finite("standard error of the sample", &[se])?;
        let size: f64 = of_rows
            .iter()
            .map(|g| (g.sum / g.count.max(1.0)).abs())
            .sum();
        if se <= EXACT * size {
            return Ok(Some(Interval::of_a_point(estimate, groups)));
        }
        let drawn = rows
            .draws
            .chunks(rows.n)
            .zip(columns.draws.chunks(columns.n));
        let ts: Vec<f64> = drawn
            .filter_map(|(rows, columns)| studentised_cells(cells, estimate, rows, columns))
            .collect();
        let of = Studentised {
            ts,
            resamples: self.resamples,
            level: self.level,
        };
        Ok(of.interval(estimate, se, groups))
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
    /// let resamples = bootstrap.resample(8)?;
    /// for sums in [[1.0, 2.0, 3.0, 4.0, 7.0, 7.5, 8.0, 9.0], [9.0, 7.0, 8.0, 1.0, 0.0, 0.5, 5.0, 5.5]] {
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
        if Group::with_values(groups) == 0 {
            return Err(MetricError::Empty { what: "values" });
        }
        let part = |g: &Group| Part {
            over: g.sum,
            under: g.count,
            count: g.count,
        };
        self.studentised(&groups.iter().map(part).collect::<Vec<_>>(), 0.0)
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
        let pairs = || numerators.iter().zip(denominators);
        if let Some(index) = pairs().position(|(n, d)| n.count != d.count) {
            return Err(MetricError::Counts {
                index,
                numerator: numerators[index].count,
                denominator: denominators[index].count,
            });
        }
        let part = |(n, d): (&Group, &Group)| Part {
            over: n.sum,
            under: d.sum,
            count: n.count,
        };
        self.studentised(&pairs().map(part).collect::<Vec<_>>(), floor)
    }

    /// Bootstrap-t interval of `sum of over / sum of under`.
    fn studentised(&self, parts: &[Part], floor: f64) -> Result<Option<Interval>, MetricError> {
        let groups = parts.iter().filter(|part| part.count > 0.0).count();
        let whole = parts.iter().fold(Part::default(), |sum, &p| sum.plus(p));
        if groups < MIN_GROUPS || !whole.is_defined(floor) {
            return Ok(None);
        }
        let estimate = whole.over / whole.under;
        // Per group `r, c, r r, r c, c c`, whose sums are all that a resample needs.
        let terms: Vec<[f64; 6]> = parts
            .iter()
            .map(|p| {
                let r = p.over - estimate * p.under;
                [r, p.under, r * r, r * p.under, p.under * p.under, p.count]
            })
            .collect();
        let spread: f64 = terms.iter().map(|term| term[2]).sum();
        let size: f64 = parts.iter().map(|part| part.over * part.over).sum();
        check_finite("statistic of the sample", &[estimate, spread, size])?;
        // Residuals of groups that are all alike are rounding.
        if spread <= EXACT * EXACT * size {
            return Ok(Some(Interval::of_a_point(estimate, groups)));
        }
        let mut without = Vec::with_capacity(groups);
        for part in parts.iter().filter(|part| part.count > 0.0) {
            let rest = whole.minus(*part);
            if !rest.is_defined(floor) {
                return Ok(None);
            }
            without.push(rest.over / rest.under);
        }
        let k = groups as f64;
        let middle = without.iter().sum::<f64>() / k;
        let squares: f64 = without.iter().map(|value| (value - middle).powi(2)).sum();
        let se = ((k - 1.0) / k * squares).sqrt();
        check_finite("standard error of the sample", &[se])?;
        let draws = self.draws.chunks(self.n);
        let resamples = draws.len();
        let ts: Vec<f64> = draws
            .filter_map(|draw| {
                let mut sums = [0.0; 6];
                for &i in draw {
                    for (sum, term) in sums.iter_mut().zip(&terms[i]) {
                        *sum += term;
                    }
                }
                let [r, c, rr, rc, cc, count] = sums;
                if c == 0.0 || c.abs() < floor * count {
                    return None;
                }
                let moved = r / c;
                let (variance, rounding) = (
                    rr - 2.0 * moved * rc + moved * moved * cc,
                    EXACT * (rr + moved * moved * cc),
                );
                (variance > rounding).then(|| r * c.signum() / variance.sqrt())
            })
            .collect();
        let of = Studentised {
            ts,
            resamples,
            level: self.level,
        };
        Ok(of.interval(estimate, se, groups))
    }

    fn check(&self, groups: &[Group]) -> Result<(), MetricError> {
        check_lengths(("groups", groups.len()), ("resampled groups", self.n))?;
        check_groups(groups)
    }
}

/// Sets the columns' random numbers apart from the rows'.
const COLUMNS: u64 = 0x9e37_79b9_7f4a_7c15;

/// Jackknife variance of `sum of sums / sum of counts`; `None` where it is not defined without one of the groups.
pub(crate) fn jackknife(groups: &[Group]) -> Option<f64> {
    let whole = Group::total(groups);
    let with_values = groups.iter().filter(|group| group.count > 0.0);
    let without: Option<Vec<f64>> = with_values
        .map(|group| {
            let rest = Group {
                sum: whole.sum - group.sum,
                count: whole.count - group.count,
            };
            rest.mean()
        })
        .collect();
    let without = without?;
    let k = without.len() as f64;
    let middle = without.iter().sum::<f64>() / k;
    let squares: f64 = without.iter().map(|value| (value - middle).powi(2)).sum();
    Some((k - 1.0) / k * squares)
}

/// How far the mean of the drawn rows and columns is from `estimate`, in its own standard errors; `None` where it has none.
fn studentised_cells(
    cells: &[Vec<Group>],
    estimate: f64,
    rows: &[usize],
    columns: &[usize],
) -> Option<f64> {
    let times = |draw: &[usize], n: usize| {
        let mut times = vec![0.0; n];
        draw.iter().for_each(|&i| times[i] += 1.0);
        times
    };
    let (of_rows, of_columns) = (times(rows, cells.len()), times(columns, cells[0].len()));
    // Sums of residuals, of counts, over what was drawn of the other kind.
    let mut row_sums = vec![[0.0; 2]; cells.len()];
    let mut column_sums = vec![[0.0; 2]; of_columns.len()];
    for (i, row) in cells.iter().enumerate() {
        for (j, cell) in row.iter().enumerate() {
            let terms = [cell.sum - estimate * cell.count, cell.count];
            for (k, term) in terms.into_iter().enumerate() {
                row_sums[i][k] += of_columns[j] * term;
                column_sums[j][k] += of_rows[i] * term;
            }
        }
    }
    let total = |k: usize| -> f64 {
        let sums = of_rows.iter().zip(&row_sums);
        sums.map(|(times, sums)| times * sums[k]).sum()
    };
    let (residual, count) = (total(0), total(1));
    if count == 0.0 {
        return None;
    }
    let moved = residual / count;
    let squares = |times: &[f64], sums: &[[f64; 2]], of: &dyn Fn(&[f64; 2]) -> f64| -> f64 {
        let sums = times.iter().zip(sums);
        sums.map(|(times, sums)| times * of(sums).powi(2)).sum()
    };
    let both = |of: &dyn Fn(&[f64; 2]) -> f64| {
        squares(&of_rows, &row_sums, of) + squares(&of_columns, &column_sums, of)
    };
    let variance = both(&|sums| sums[0] - moved * sums[1]);
    let rounding = EXACT * (both(&|sums| sums[0]) + both(&|sums| moved * sums[1]));
    (variance > rounding).then(|| residual / variance.sqrt())
}

/// Differences below this share of what they are taken of are rounding.
pub(crate) const EXACT: f64 = 1e-12;

/// What a group adds to a ratio: numerator, denominator, and the count behind both.
#[derive(Debug, Clone, Copy, Default)]
struct Part {
    over: f64,
    under: f64,
    count: f64,
}

impl Part {
    fn plus(self, other: Self) -> Self {
        Self {
            over: self.over + other.over,
            under: self.under + other.under,
            count: self.count + other.count,
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            over: self.over - other.over,
            under: self.under - other.under,
            count: self.count - other.count,
        }
    }

    fn is_defined(self, floor: f64) -> bool {
        self.under != 0.0 && self.under.abs() >= floor * self.count
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

    /// How many groups have a value: those that an interval rests on.
    #[must_use]
    pub fn with_values(groups: &[Self]) -> usize {
        groups.iter().filter(|group| group.count > 0.0).count()
    }

    /// Mean of the values; `None` without any.
    #[must_use]
    pub fn mean(self) -> Option<f64> {
        (self.count > 0.0).then(|| self.sum / self.count)
    }
}

pub(crate) fn check_groups(groups: &[Group]) -> Result<(), MetricError> {
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

/// Studentised statistics of the resamples that have one.
pub(crate) struct Studentised {
    pub(crate) ts: Vec<f64>,
    pub(crate) resamples: usize,
    pub(crate) level: f64,
}

impl Studentised {
    /// The bootstrap-t interval; none where more than half of the resamples have no statistic.
    pub(crate) fn interval(mut self, estimate: f64, se: f64, groups: usize) -> Option<Interval> {
        let undefined = self.resamples - self.ts.len();
        if 2 * undefined > self.resamples {
            return None;
        }
        let tail = (1.0 - self.level) / 2.0;
        let low = quantile(&mut self.ts, tail)?;
        let high = quantile(&mut self.ts, 1.0 - tail)?;
        Some(Interval {
            estimate,
            lower: estimate - high * se,
            upper: estimate - low * se,
            groups,
            undefined,
        })
    }
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
