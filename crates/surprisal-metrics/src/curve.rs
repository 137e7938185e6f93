//! Learning curves: surprisal of a word over training, and when the word was learned.
//!
//! Source: Chang & Bergen (2022), *Word Acquisition in Neural Language Models*, TACL 10: a sigmoid
//! over log10 of the step; a word is acquired where the fitted curve passes half-way between
//! chance and the lowest surprisal that was reached.

use crate::MetricError;
use crate::error::check_finite;

/// A fitted curve `lower + drop / (1 + exp((log10(step) - mid) / width))`, falling or flat.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearningCurve {
    /// Surprisal long after learning.
    pub lower: f64,
    /// Surprisal long before learning minus `lower`; 0 if surprisal does not fall.
    pub drop: f64,
    /// log10 of the step of steepest descent.
    pub mid: f64,
    /// Width of the descent, in decades; it takes about `4 * width`.
    pub width: f64,
    /// Root of the mean squared distance of the points from the curve.
    pub rmse: f64,
    /// Points at step 0, which has no place on the axis, left out of the fit.
    pub points_at_zero: usize,
    min_observed: f64,
    range: (f64, f64),
    /// Largest rise and largest fall from any step to a later one, observed.
    rise: f64,
    fall: f64,
}

/// What is wrong with an age of acquisition, worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// The curve never passes below the cutoff: the word was not learned in the steps measured.
    NeverBelow,
    /// The curve is below the cutoff from its beginning: the word was learned before the first step measured.
    AlwaysBelow,
    /// Surprisal rises again by more than half of its largest fall: no falling curve describes it.
    NotMonotone,
    /// The points are further from the curve (in the root mean square) than a quarter of its drop.
    Misfit,
}

impl Doubt {
    /// The name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NeverBelow => "never below",
            Self::AlwaysBelow => "always below",
            Self::NotMonotone => "not monotone",
            Self::Misfit => "misfit",
        }
    }
}

/// When a word was learned.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Acquisition {
    /// log10 of the step at which the fitted curve passes the cutoff.
    pub log10_step: f64,
    /// Whether that lies outside the steps that were measured.
    pub extrapolated: bool,
}

/// Narrowest and widest descent tried, in decades.
const WIDTHS: (f64, f64) = (0.02, 4.0);
/// Starting points of the search: widths, and midpoints for each.
const STARTS: (usize, usize) = (16, 64);
/// Moves or halvings of the step by which a start is improved.
const MOVES: usize = 100;
/// Largest rise, as a share of the largest fall, and largest distance from the curve, as a share of its drop, of a fit that holds.
const RISE: f64 = 0.5;
const DISTANCE: f64 = 0.25;

impl LearningCurve {
    /// Least-squares fit. For each (`mid`, `width`) the best `lower` and `drop >= 0` follow in
    /// closed form; the other two are searched from a grid, and from the best midpoint of every
    /// width downhill, because narrow and wide descents can each have a best of their own.
    ///
    /// # Shapes
    /// - `points`: (training step, mean surprisal in any unit)
    ///
    /// # Errors
    /// - [`MetricError::TooFewSteps`] with fewer than four distinct steps above 0
    /// - [`MetricError::NotFinite`] if a surprisal is NaN or infinite
    ///
    /// # Examples
    /// ```
    /// use surprisal_metrics::LearningCurve;
    /// // Falls from 8 to 2 nats around step 100.
    /// let at = |step: u64| 2.0 + 6.0 / (1.0 + (((step as f64).log10() - 2.0) / 0.3).exp());
    /// let points: Vec<_> = [0, 1, 8, 64, 128, 512, 4000].map(|s| (s, at(s.max(1)))).into();
    /// let curve = LearningCurve::fit(&points)?;
    /// assert!((curve.mid - 2.0).abs() < 1e-6 && (curve.lower - 2.0).abs() < 1e-6);
    /// let learned = curve.acquisition(8.0).expect("the curve passes 5 nats");
    /// assert!((learned.log10_step - 2.0).abs() < 0.01);
    /// # Ok::<(), surprisal_metrics::MetricError>(())
    /// ```
    pub fn fit(points: &[(u64, f64)]) -> Result<Self, MetricError> {
        let all: Vec<f64> = points.iter().map(|&(_, y)| y).collect();
        check_finite("surprisal", &all)?;
        let used: Vec<(f64, f64)> = points
            .iter()
            .filter(|(step, _)| *step > 0)
            .map(|&(step, y)| ((step as f64).log10(), y))
            .collect();
        let mut steps: Vec<f64> = used.iter().map(|&(x, _)| x).collect();
        steps.sort_unstable_by(f64::total_cmp);
        steps.dedup();
        if steps.len() < 4 {
            return Err(MetricError::TooFewSteps {
                needed: 4,
                found: steps.len(),
            });
        }
        let range = (steps[0], steps[steps.len() - 1]);
        let best = Linear::search(&used, range);
        let mut ordered = used.clone();
        ordered.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (mut lowest, mut highest) = (f64::INFINITY, f64::NEG_INFINITY);
        let (mut rise, mut fall) = (0.0f64, 0.0f64);
        for &(_, y) in &ordered {
            (lowest, highest) = (lowest.min(y), highest.max(y));
            (rise, fall) = (rise.max(y - lowest), fall.max(highest - y));
        }
        Ok(Self {
            lower: best.lower,
            drop: best.drop,
            mid: best.mid,
            width: best.width,
            rmse: (best.squares / used.len() as f64).sqrt(),
            points_at_zero: points.len() - used.len(),
            min_observed: all.iter().copied().fold(f64::INFINITY, f64::min),
            range,
            rise,
            fall,
        })
    }

    /// Value of the curve at a step above 0; NaN at NaN.
    #[must_use]
    pub fn at_log10_step(&self, log10_step: f64) -> f64 {
        self.lower + self.drop * falling((log10_step - self.mid) / self.width)
    }

    /// Where the cutoff lies between the lower end of the curve (0) and its upper end (1).
    fn cutoff(&self, chance: f64) -> f64 {
        ((chance + self.min_observed) / 2.0 - self.lower) / self.drop
    }

    /// Why an age of acquisition should not be believed, or is not there; `None` if the fit holds.
    ///
    /// # Examples
    /// ```
    /// use surprisal_metrics::{Doubt, LearningCurve};
    /// let doubt = |values: [f64; 5]| -> Result<_, surprisal_metrics::MetricError> {
    ///     let steps = [1, 10, 100, 1000, 10_000];
    ///     let points: Vec<_> = steps.into_iter().zip(values).collect();
    ///     Ok(LearningCurve::fit(&points)?.doubt(10.8))
    /// };
    /// assert_eq!(doubt([10.0, 9.9, 6.0, 2.1, 2.0])?, None);
    /// assert_eq!(doubt([11.0, 10.9, 11.0, 10.9, 11.0])?, Some(Doubt::NeverBelow));
    /// assert_eq!(doubt([2.0, 2.1, 2.0, 1.9, 2.0])?, Some(Doubt::AlwaysBelow));
    /// assert_eq!(doubt([10.0, 9.9, 3.0, 9.0, 3.0])?, Some(Doubt::NotMonotone));
    /// # Ok::<(), surprisal_metrics::MetricError>(())
    /// ```
    #[must_use]
    pub fn doubt(&self, chance: f64) -> Option<Doubt> {
        let cutoff = (chance + self.min_observed) / 2.0;
        if self.min_observed >= cutoff || self.lower >= cutoff {
            Some(Doubt::NeverBelow)
        } else if self.lower + self.drop <= cutoff {
            Some(Doubt::AlwaysBelow)
        } else if self.rise > RISE * self.fall {
            Some(Doubt::NotMonotone)
        } else if self.rmse > DISTANCE * self.drop {
            Some(Doubt::Misfit)
        } else {
            None
        }
    }

    /// Age of acquisition: where the curve passes half-way between `chance` and the lowest surprisal observed. `None` if it never does:
    /// the word was not learned, or the curve starts below the cutoff ([`LearningCurve::doubt`] says which).
    ///
    /// `chance` is the surprisal of uniform guesses: `k ln V` nats for a word of `k` pieces, each of which is guessed.
    #[must_use]
    pub fn acquisition(&self, chance: f64) -> Option<Acquisition> {
        let share = self.cutoff(chance);
        if !(share > 0.0 && share < 1.0) {
            return None;
        }
        let log10_step = self.mid + self.width * ((1.0 - share) / share).ln();
        Some(Acquisition {
            log10_step,
            extrapolated: !(self.range.0..=self.range.1).contains(&log10_step),
        })
    }
}

/// Directions in which a start is improved.
const NEIGHBOURS: [(f64, f64); 8] = [
    (-1.0, 0.0),
    (1.0, 0.0),
    (0.0, -1.0),
    (0.0, 1.0),
    (-1.0, -1.0),
    (-1.0, 1.0),
    (1.0, -1.0),
    (1.0, 1.0),
];

/// A curve of given `mid` and `width`, the rest by least squares.
#[derive(Clone, Copy)]
struct Linear {
    mid: f64,
    width: f64,
    lower: f64,
    drop: f64,
    squares: f64,
}

impl Linear {
    /// The best curve with `mid` inside `range`.
    fn search(points: &[(f64, f64)], range: (f64, f64)) -> Self {
        let ln_widths = (WIDTHS.0.ln(), WIDTHS.1.ln());
        let mut best = Self::fit(points, range.0, WIDTHS.1);
        for i in 0..STARTS.0 {
            let width = along(ln_widths, i, STARTS.0).exp();
            let mut here = Self::fit(points, range.0, width);
            for j in 1..STARTS.1 {
                here = here.better(Self::fit(points, along(range, j, STARTS.1), width));
            }
            let mut step = (
                2.0 * (range.1 - range.0) / STARTS.1 as f64,
                (ln_widths.1 - ln_widths.0) / STARTS.0 as f64,
            );
            for _ in 0..MOVES {
                let (mid, ln_width) = (here.mid, here.width.ln());
                for (dx, dy) in NEIGHBOURS {
                    let mid = (mid + dx * step.0).clamp(range.0, range.1);
                    let ln_width = (ln_width + dy * step.1).clamp(ln_widths.0, ln_widths.1);
                    here = here.better(Self::fit(points, mid, ln_width.exp()));
                }
                if (here.mid, here.width.ln()) == (mid, ln_width) {
                    step = (step.0 / 2.0, step.1 / 2.0);
                }
            }
            best = best.better(here);
        }
        best
    }

    fn better(self, other: Self) -> Self {
        if other.squares < self.squares {
            other
        } else {
            self
        }
    }

    fn fit(points: &[(f64, f64)], mid: f64, width: f64) -> Self {
        let n = points.len() as f64;
        let basis = |x: f64| falling((x - mid) / width);
        let mean_s = points.iter().map(|&(x, _)| basis(x)).sum::<f64>() / n;
        let mean_y = points.iter().map(|&(_, y)| y).sum::<f64>() / n;
        let (mut ss, mut sy) = (0.0, 0.0);
        for &(x, y) in points {
            ss += (basis(x) - mean_s).powi(2);
            sy += (basis(x) - mean_s) * (y - mean_y);
        }
        let drop = if ss > 1e-12 { (sy / ss).max(0.0) } else { 0.0 };
        let lower = mean_y - drop * mean_s;
        let squares = points
            .iter()
            .map(|&(x, y)| (y - lower - drop * basis(x)).powi(2))
            .sum();
        Self {
            mid,
            width,
            lower,
            drop,
            squares,
        }
    }
}

/// `1 / (1 + e^x)`.
fn falling(x: f64) -> f64 {
    1.0 / (1.0 + x.exp())
}

fn along((low, high): (f64, f64), step: usize, steps: usize) -> f64 {
    low + (high - low) * step as f64 / (steps - 1) as f64
}
