//! The rank-influence curve: how the influence of neurons falls off with their rank.
//!
//! Liu et al. (2025), arXiv 2505.12822, see three regimes for rare tokens: a plateau of the most influential neurons, a power law, and a
//! rapid decay. Here a continuous line of one, two or three pieces is fitted to log influence against log rank, and the Bayesian
//! information criterion says which one the data ask for. The lines describe; whether there are regimes at all is the verdict of
//! [`Laws`](crate::Laws), as independent values of a single law bend too.
//!
//! Ranks are first averaged in bins equally wide in log rank, so that each decade counts the same and a plateau of ten neurons is not
//! outvoted by thousands in the tail. Sorting makes neighbouring points alike, so the criterion is too ready to add pieces: the
//! bootstrap says how often the same shape comes out again.

use rayon::prelude::*;
use serde::Serialize;
use surprisal_metrics::{Bootstrap, MIN_GROUPS};

use crate::{Grouped, NeuronEffects, SelectError};

/// Bins over the whole range of log rank; those between the first ranks stay empty.
const BINS: usize = 60;
/// Fewest points in a piece.
const MIN_POINTS: usize = 3;
/// A first piece less than half as steep as the second is a plateau.
const PLATEAU_STEEPNESS: f64 = 0.5;

/// Influence of a neuron: the mean absolute change of the loss, in nats.
fn influence(effects: &NeuronEffects) -> f64 {
    effects.total_effect
}

/// What the curve looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// One line: a power law throughout.
    PowerLaw,
    /// Two lines.
    TwoPieces,
    /// Three lines, each steeper than the one before, the first at most half as steep as the second: plateau, power law, rapid decay.
    ThreeRegimes,
    /// Three lines of which that is not true.
    ThreePieces,
}

impl Shape {
    /// The name in words.
    pub fn name(self) -> &'static str {
        match self {
            Self::PowerLaw => "power law",
            Self::TwoPieces => "two pieces",
            Self::ThreeRegimes => "plateau, power law, rapid decay",
            Self::ThreePieces => "three pieces",
        }
    }
}

/// A continuous piecewise line in natural log-log coordinates.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PiecewiseFit {
    /// Breakpoints in ln rank, ascending; as many as there are pieces, less one.
    pub breaks: Vec<f64>,
    /// Slope of each piece.
    pub slopes: Vec<f64>,
    /// ln influence at rank 1.
    pub intercept: f64,
    /// Bayesian information criterion; lower is better.
    pub bic: f64,
    /// Share of the variance explained.
    pub r_squared: f64,
}

impl PiecewiseFit {
    /// Fitted influence at a rank, in nats.
    pub fn at(&self, rank: f64) -> f64 {
        let x = rank.ln();
        let mut y = self.intercept + self.slopes[0] * x;
        for (i, b) in self.breaks.iter().enumerate() {
            y += (self.slopes[i + 1] - self.slopes[i]) * (x - b).max(0.0);
        }
        y.exp()
    }

    /// Breakpoints as ranks.
    pub fn break_ranks(&self) -> Vec<f64> {
        self.breaks.iter().map(|b| b.exp()).collect()
    }

    fn shape(&self) -> Shape {
        match self.slopes[..] {
            [_] => Shape::PowerLaw,
            [_, _] => Shape::TwoPieces,
            [a, b, c, ..] if c < b && b < 0.0 && a > PLATEAU_STEEPNESS * b => Shape::ThreeRegimes,
            _ => Shape::ThreePieces,
        }
    }
}

/// The curve of one set of rows, with its fits.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Curve {
    /// Neurons with an influence above zero.
    pub neurons: usize,
    /// Neurons whose ablation changes nothing, which have no logarithm.
    pub without_influence: usize,
    /// Points that were fitted.
    pub points: usize,
    /// Fits of one, two and three pieces; fewer if there are too few points.
    pub fits: Vec<PiecewiseFit>,
    /// Which of the fits has the lowest criterion.
    pub best: usize,
    /// What it looks like.
    pub shape: Shape,
}

impl Curve {
    /// Fits influences, in any order.
    ///
    /// # Errors
    /// - [`SelectError::TooFewPoints`] if fewer than four neurons have an influence
    ///
    /// # Examples
    /// ```
    /// use neuron_select::{Curve, Shape};
    /// // An exact power law with exponent 0.7.
    /// let influences: Vec<f64> = (1..=500).map(|rank| f64::from(rank).powf(-0.7)).collect();
    /// let curve = Curve::fit(&influences)?;
    /// assert_eq!(curve.shape, Shape::PowerLaw);
    /// assert!((curve.exponent() - 0.7).abs() < 1e-6);
    /// # Ok::<(), neuron_select::SelectError>(())
    /// ```
    pub fn fit(influences: &[f64]) -> Result<Self, SelectError> {
        let points = Points::of(influences);
        let fits: Vec<PiecewiseFit> = (0..=2).filter_map(|breaks| points.fit(breaks)).collect();
        let best = (0..fits.len()).min_by(|&a, &b| fits[a].bic.total_cmp(&fits[b].bic));
        let best = best.ok_or(SelectError::TooFewPoints {
            needed: MIN_POINTS + 1,
            found: points.x.len(),
        })?;
        let neurons = influences.iter().filter(|&&i| i > 0.0).count();
        let shape = fits[best].shape();
        Ok(Self {
            neurons,
            without_influence: influences.len() - neurons,
            points: points.x.len(),
            fits,
            best,
            shape,
        })
    }

    /// The fit with the lowest criterion.
    pub fn best_fit(&self) -> &PiecewiseFit {
        &self.fits[self.best]
    }

    /// Exponent of the power law: minus the slope of the only piece, or of the one that covers most of log rank, or of the middle one of
    /// three.
    pub fn exponent(&self) -> f64 {
        exponent(self.best_fit(), self.neurons)
    }

    /// Neurons on the plateau: those before the first break of [`Shape::ThreeRegimes`], none for other shapes.
    pub fn plateau_neurons(&self) -> usize {
        match self.shape {
            // Compared as the fit has them: `exp(ln 12)` is a little below 12.
            Shape::ThreeRegimes => (1..=self.neurons)
                .take_while(|&rank| (rank as f64).ln() <= self.best_fit().breaks[0])
                .count(),
            Shape::PowerLaw | Shape::TwoPieces | Shape::ThreePieces => 0,
        }
    }
}

fn exponent(fit: &PiecewiseFit, neurons: usize) -> f64 {
    let piece = match fit.breaks[..] {
        [b] if 2.0 * b < (neurons as f64).ln() => 1,
        [_, _, ..] => 1,
        _ => 0,
    };
    -fit.slopes[piece]
}

/// Percentile intervals of a curve over resampled sequences.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CurveIntervals {
    /// Rank of each break of the best fit: lower and upper end.
    pub breaks: Vec<[f64; 2]>,
    /// Exponent of the best fit: lower and upper end.
    pub exponent: [f64; 2],
    /// Share of resamples whose own best fit has the same shape.
    pub same_shape: f64,
    /// Resamples that could not be fitted.
    pub undefined: usize,
}

/// Resamples whole sequences, ranks the neurons anew and fits a line of as many pieces as `curve` has.
///
/// `None` if fewer than [`MIN_GROUPS`] sequences have rows, or no resample could be fitted.
///
/// # Errors
/// - [`SelectError::Bootstrap`] if the number of resamples or the level is out of range
pub fn bootstrap_curve(
    grouped: &Grouped,
    curve: &Curve,
    bootstrap: &Bootstrap,
) -> Result<Option<CurveIntervals>, SelectError> {
    if grouped.n_sequences_with_rows() < MIN_GROUPS {
        return Ok(None);
    }
    let n_breaks = curve.best_fit().breaks.len();
    let draws: Vec<Vec<usize>> = bootstrap.draws(grouped.n_sequences())?.collect();
    let resamples: Vec<(PiecewiseFit, usize, bool)> = draws
        .par_iter()
        .filter_map(|draw| {
            let influences: Vec<f64> = grouped.resampled(draw)?.iter().map(influence).collect();
            let own = Curve::fit(&influences).ok()?;
            let same_shape = own.shape == curve.shape;
            Some((own.fits.get(n_breaks)?.clone(), own.neurons, same_shape))
        })
        .collect();
    if resamples.is_empty() {
        return Ok(None);
    }
    let tail = (1.0 - bootstrap.level) / 2.0;
    let interval = |value: &dyn Fn(&PiecewiseFit, usize) -> f64| {
        let mut values: Vec<f64> = resamples
            .iter()
            .map(|(fit, neurons, _)| value(fit, *neurons))
            .collect();
        values.sort_unstable_by(f64::total_cmp);
        let last = (values.len() - 1) as f64;
        [tail, 1.0 - tail].map(|share| values[(share * last).round() as usize])
    };
    let same = resamples.iter().filter(|(_, _, same)| *same).count();
    Ok(Some(CurveIntervals {
        breaks: (0..n_breaks)
            .map(|b| interval(&|fit, _| fit.breaks[b].exp()))
            .collect(),
        exponent: interval(&exponent),
        same_shape: same as f64 / resamples.len() as f64,
        undefined: draws.len() - resamples.len(),
    }))
}

/// Binned points of the curve, with the sums from each point on.
struct Points {
    x: Vec<f64>,
    y: Vec<f64>,
    /// `[sum 1, sum x, sum x^2, sum y, sum x y]` over the points from `i` on.
    from: Vec<[f64; 5]>,
    /// Sum of squares of `y` about its mean.
    variation: f64,
}

impl Points {
    fn of(influences: &[f64]) -> Self {
        let mut logs: Vec<f64> = influences
            .iter()
            .filter(|&&i| i > 0.0)
            .map(|i| i.ln())
            .collect();
        logs.sort_unstable_by(|a, b| b.total_cmp(a));
        let width = ((logs.len() + 1) as f64).ln() / BINS as f64;
        let (mut x, mut y) = (Vec::new(), Vec::new());
        let mut bin: Option<(usize, f64, f64, f64)> = None;
        let mut close = |bin: Option<(usize, f64, f64, f64)>| {
            if let Some((_, n, sum_x, sum_y)) = bin {
                x.push(sum_x / n);
                y.push(sum_y / n);
            }
        };
        for (i, log) in logs.iter().enumerate() {
            let ln_rank = ((i + 1) as f64).ln();
            let number = (ln_rank / width) as usize;
            bin = match bin {
                Some((b, n, sx, sy)) if b == number => Some((b, n + 1.0, sx + ln_rank, sy + log)),
                full => {
                    close(full);
                    Some((number, 1.0, ln_rank, *log))
                }
            };
        }
        close(bin);
        let mut from = vec![[0.0; 5]; x.len() + 1];
        for i in (0..x.len()).rev() {
            let terms = [1.0, x[i], x[i] * x[i], y[i], x[i] * y[i]];
            from[i] = std::array::from_fn(|k| from[i + 1][k] + terms[k]);
        }
        let mean = from[0][3] / x.len().max(1) as f64;
        let variation = y.iter().map(|y| (y - mean).powi(2)).sum();
        Self {
            x,
            y,
            from,
            variation,
        }
    }

    /// Least squares with the breaks that fit best; `None` with too few points.
    fn fit(&self, n_breaks: usize) -> Option<PiecewiseFit> {
        let n = self.x.len();
        if n < MIN_POINTS * (n_breaks + 1) + 1 {
            return None;
        }
        // A break lies on a point or halfway to the next; `i` is the first point after it.
        let places: Vec<(f64, usize)> = (1..n)
            .flat_map(|i| [((self.x[i - 1] + self.x[i]) / 2.0, i), (self.x[i], i + 1)])
            .collect();
        let inside = |after: usize, before: usize| after >= before + MIN_POINTS;
        let ends = |&(_, i): &(f64, usize)| inside(i, 0) && inside(n, i);
        let candidates: Vec<Vec<(f64, usize)>> = match n_breaks {
            0 => vec![Vec::new()],
            1 => places
                .iter()
                .filter(|p| ends(p))
                .map(|&p| vec![p])
                .collect(),
            _ => {
                let places: Vec<_> = places.into_iter().filter(ends).collect();
                let pairs = places
                    .iter()
                    .flat_map(|&a| places.iter().map(move |&b| vec![a, b]));
                pairs.filter(|pair| inside(pair[1].1, pair[0].1)).collect()
            }
        };
        let solved = candidates
            .iter()
            .filter_map(|breaks| Some((breaks, self.solve(breaks)?)));
        let (breaks, (beta, rss)) = solved.min_by(|a, b| a.1.1.total_cmp(&b.1.1))?;
        let mut slopes = vec![beta[1]];
        breaks
            .iter()
            .enumerate()
            .for_each(|(i, _)| slopes.push(slopes[i] + beta[2 + i]));
        // An exact fit must not look infinitely better than a nearly exact one: rounding sets a floor.
        let floor = 1e-20 * self.variation.max(1e-20);
        let parameters = (2 + 2 * n_breaks) as f64;
        Some(PiecewiseFit {
            breaks: breaks.iter().map(|b| b.0).collect(),
            slopes,
            intercept: beta[0],
            bic: n as f64 * (rss.max(floor) / n as f64).ln() + parameters * (n as f64).ln(),
            r_squared: if self.variation > 0.0 {
                1.0 - rss / self.variation
            } else {
                1.0
            },
        })
    }

    /// Coefficients of `1, x, max(0, x - b)...` and the residual sum of squares.
    fn solve(&self, breaks: &[(f64, usize)]) -> Option<(Vec<f64>, f64)> {
        let k = 2 + breaks.len();
        let mut normal = vec![vec![0.0; k + 1]; k];
        let [n, sx, sxx, sy, sxy] = self.from[0];
        normal[0][..2].copy_from_slice(&[n, sx]);
        normal[1][..2].copy_from_slice(&[sx, sxx]);
        (normal[0][k], normal[1][k]) = (sy, sxy);
        for (i, &(b, start)) in breaks.iter().enumerate() {
            let [n, sx, sxx, sy, sxy] = self.from[start];
            let row = 2 + i;
            normal[row][0] = sx - b * n;
            normal[row][1] = sxx - b * sx;
            normal[row][k] = sxy - b * sy;
            normal[row][row] = sxx - 2.0 * b * sx + b * b * n;
            for (j, &(earlier, _)) in breaks[..i].iter().enumerate() {
                normal[row][2 + j] = sxx - (b + earlier) * sx + b * earlier * n;
            }
        }
        for (row, column) in (0..k).flat_map(|row| (0..row).map(move |column| (row, column))) {
            normal[column][row] = normal[row][column];
        }
        let beta = gauss(normal)?;
        let residual = |i: usize| {
            let hinges: f64 = breaks
                .iter()
                .zip(&beta[2..])
                .map(|((b, _), beta)| beta * (self.x[i] - b).max(0.0))
                .sum();
            self.y[i] - beta[0] - beta[1] * self.x[i] - hinges
        };
        let rss = (0..self.x.len()).map(|i| residual(i).powi(2)).sum();
        Some((beta, rss))
    }
}

/// Solves the augmented system by elimination with pivoting; `None` if it is singular.
fn gauss(mut rows: Vec<Vec<f64>>) -> Option<Vec<f64>> {
    let k = rows.len();
    for column in 0..k {
        let pivot =
            (column..k).max_by(|&a, &b| rows[a][column].abs().total_cmp(&rows[b][column].abs()))?;
        rows.swap(column, pivot);
        if rows[column][column].abs() < 1e-12 {
            return None;
        }
        let pivot = rows[column].clone();
        for row in &mut rows[column + 1..] {
            let factor = row[column] / pivot[column];
            for (value, above) in row.iter_mut().zip(&pivot).skip(column) {
                *value -= factor * above;
            }
        }
    }
    let mut solution = vec![0.0; k];
    for row in (0..k).rev() {
        let known: f64 = (row + 1..k).map(|c| rows[row][c] * solution[c]).sum();
        solution[row] = (rows[row][k] - known) / rows[row][row];
    }
    Some(solution)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ln influence of a line that breaks at two ranks.
    fn three_regimes(n: usize, breaks: [f64; 2], slopes: [f64; 3], noise: f64) -> Vec<f64> {
        let mut wave = 1.0f64;
        let value = |rank: f64| {
            let x = rank.ln();
            let hinge = |b: f64| (x - b.ln()).max(0.0);
            slopes[0] * x
                + (slopes[1] - slopes[0]) * hinge(breaks[0])
                + (slopes[2] - slopes[1]) * hinge(breaks[1])
        };
        (1..=n)
            .map(|rank| {
                wave = (wave * 7.3 + 0.7).fract();
                (value(rank as f64) + noise * (wave - 0.5)).exp()
            })
            .collect()
    }

    #[test]
    fn three_regimes_are_found_where_they_are() {
        let influences = three_regimes(2048, [12.0, 700.0], [-0.05, -0.6, -3.0], 0.02);
        let curve = Curve::fit(&influences).unwrap();
        assert_eq!(curve.shape, Shape::ThreeRegimes, "{curve:?}");
        let breaks = curve.best_fit().break_ranks();
        assert!(
            (breaks[0] / 12.0).ln().abs() < 0.15 && (breaks[1] / 700.0).ln().abs() < 0.15,
            "{breaks:?}"
        );
        assert!(
            (curve.exponent() - 0.6).abs() < 0.03,
            "{}",
            curve.exponent()
        );
        assert!((10..=14).contains(&curve.plateau_neurons()));
        assert!(curve.best_fit().r_squared > 0.99);
        for (rank, influence) in [
            (1.0, influences[0]),
            (100.0, influences[99]),
            (2000.0, influences[1999]),
        ] {
            assert!((curve.best_fit().at(rank) / influence).ln().abs() < 0.1);
        }
    }

    #[test]
    fn simpler_curves_get_simpler_fits() {
        let line = three_regimes(1000, [10.0, 100.0], [-0.8, -0.8, -0.8], 0.0);
        assert_eq!(Curve::fit(&line).unwrap().shape, Shape::PowerLaw);
        let two = three_regimes(1000, [30.0, 100.0], [-0.1, -1.0, -1.0], 0.0);
        let curve = Curve::fit(&two).unwrap();
        assert_eq!(curve.shape, Shape::TwoPieces, "{curve:?}");
        assert!((curve.best_fit().breaks[0].exp() / 30.0).ln().abs() < 0.15);
        assert_eq!(curve.plateau_neurons(), 0);
    }

    /// A break that lies on a rank leaves that rank on the plateau, whatever `exp(ln r)` rounds to.
    #[test]
    fn a_plateau_ends_with_the_rank_of_its_break() {
        let influences = three_regimes(100, [10.0, 50.0], [-0.1, -0.5, -2.0], 0.0);
        let mut curve = Curve::fit(&influences).unwrap();
        curve.shape = Shape::ThreeRegimes;
        curve.best = curve.fits.len() - 1;
        for rank in 1..=100 {
            curve.fits[2].breaks[0] = f64::from(rank).ln();
            assert_eq!(curve.plateau_neurons(), rank as usize);
        }
    }

    #[test]
    fn a_flattening_tail_is_no_decay() {
        let curve =
            Curve::fit(&three_regimes(1000, [10.0, 100.0], [-1.5, -0.7, -0.2], 0.0)).unwrap();
        assert_eq!(curve.shape, Shape::ThreePieces, "{curve:?}");
    }

    #[test]
    fn dead_neurons_are_counted_and_few_points_refused() {
        let mut influences = three_regimes(100, [10.0, 50.0], [-0.1, -0.5, -2.0], 0.0);
        influences.extend([0.0; 7]);
        let curve = Curve::fit(&influences).unwrap();
        assert_eq!((curve.neurons, curve.without_influence), (100, 7));
        assert_eq!(
            Curve::fit(&[0.1, 0.2, 0.0]).unwrap_err(),
            SelectError::TooFewPoints {
                needed: 4,
                found: 2
            }
        );
        assert_eq!(Curve::fit(&[0.5; 40]).unwrap().exponent(), 0.0);
    }
}
