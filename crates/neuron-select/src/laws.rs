//! Which law influences follow, and whether that can be said at all.
//!
//! Sorted values of almost any law bend in log-log coordinates, so that a broken line fits independent lognormal or exponential values
//! better than a straight one, and shows "three regimes" where there is one law. Here the values themselves are compared with three laws
//! by their likelihood (Clauset, Shalizi & Newman 2009, *Power-law distributions in empirical data*; Vuong 1989, *Likelihood ratio tests
//! for model selection and non-nested hypotheses*), and each law is tested by a parametric bootstrap: only where none of them could have
//! made the values is there something for a broken line to describe.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Serialize;

use crate::{SelectError, Shape};

/// A law of positive values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Law {
    /// Pareto: `P(X > x) = (x / x_min)^-a` from the least value on.
    PowerLaw,
    /// The logarithm is normal.
    Lognormal,
    /// `P(X > x) = exp(-x / mean)`.
    Exponential,
}

impl Law {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::PowerLaw, Self::Lognormal, Self::Exponential];

    /// The name in words.
    pub fn name(self) -> &'static str {
        match self {
            Self::PowerLaw => "power law",
            Self::Lognormal => "lognormal",
            Self::Exponential => "exponential",
        }
    }

    /// Parameters that are fitted.
    fn parameters(self) -> f64 {
        match self {
            Self::PowerLaw | Self::Lognormal => 2.0,
            Self::Exponential => 1.0,
        }
    }

    /// Density of each ln value and distribution function at it, under the law fitted by maximum likelihood.
    fn fit(self, ln_values: &[f64]) -> Vec<(f64, f64)> {
        let n = ln_values.len() as f64;
        let each = |ln_density: &dyn Fn(f64) -> f64, below: &dyn Fn(f64) -> f64| {
            let pair = |&y: &f64| (ln_density(y), below(y));
            ln_values.iter().map(pair).collect()
        };
        match self {
            Self::PowerLaw => {
                let least = ln_values.iter().copied().fold(f64::INFINITY, f64::min);
                let a = n / ln_values.iter().map(|y| y - least).sum::<f64>();
                each(&|y| a.ln() - a * (y - least), &|y| {
                    -(-a * (y - least)).exp_m1()
                })
            }
            Self::Lognormal => {
                let mean = ln_values.iter().sum::<f64>() / n;
                let squares = ln_values.iter().map(|y| (y - mean).powi(2)).sum::<f64>();
                let sd = (squares / n).sqrt();
                let ln_scale = sd.ln() + 0.5 * std::f64::consts::TAU.ln();
                each(&|y| -0.5 * ((y - mean) / sd).powi(2) - ln_scale, &|y| {
                    normal_below((y - mean) / sd)
                })
            }
            Self::Exponential => {
                // In units of the largest value, so that nothing over- or underflows.
                let most = ln_values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let mean = ln_values.iter().map(|y| (y - most).exp()).sum::<f64>() / n;
                let scaled = move |y: f64| y - most - mean.ln();
                each(&|y| scaled(y) - scaled(y).exp(), &|y| {
                    -(-scaled(y).exp()).exp_m1()
                })
            }
        }
    }

    /// The ln of a value of the law with parameters that do not matter: the fit has the same distance for all of them.
    fn ln_draw(self, rng: &mut ChaCha8Rng) -> f64 {
        let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
        match self {
            Self::PowerLaw => -u.ln(),
            Self::Lognormal => (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos(),
            // Rounding makes a logarithm of zero possible where u is 1.
            Self::Exponential => (-u.ln()).max(f64::MIN_POSITIVE).ln(),
        }
    }
}

/// The standard normal distribution function.
fn normal_below(z: f64) -> f64 {
    0.5 * libm::erfc(-z * std::f64::consts::FRAC_1_SQRT_2)
}

/// The largest distance between a fitted distribution function and that of the values (Kolmogorov & Smirnov).
fn distance(below: impl Iterator<Item = f64>) -> f64 {
    let mut below: Vec<f64> = below.collect();
    below.sort_unstable_by(f64::total_cmp);
    let n = below.len() as f64;
    let gap = |(i, f): (usize, &f64)| (f - i as f64 / n).max((i + 1) as f64 / n - f);
    below.iter().enumerate().map(gap).fold(0.0, f64::max)
}

/// A law fitted by maximum likelihood.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LawFit {
    /// The law.
    pub law: Law,
    /// Log-likelihood of the ln values.
    pub log_likelihood: f64,
    /// Kolmogorov-Smirnov distance.
    pub distance: f64,
    /// Goodness of fit: how often values that do follow the law lie as far from their own fit, `(1 + at least as far) / (1 + draws)`.
    pub goodness_p: f64,
}

impl LawFit {
    /// Whether the law could have made the values.
    pub fn holds(&self) -> bool {
        self.goodness_p >= GOODNESS_LEVEL
    }
}

/// Below this p value of the goodness of fit a law is ruled out.
pub const GOODNESS_LEVEL: f64 = 0.01;
/// Below this p value of Vuong's test one law is preferred to another.
pub const VUONG_LEVEL: f64 = 0.05;
/// Fewest values that laws are compared on.
const MIN_VALUES: usize = 10;

/// Vuong's test of the likelier of two laws against the other.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Vuong {
    /// The law that the likeliest one is compared with.
    pub other: Law,
    /// Difference of log-likelihoods, corrected by Schwarz's `(parameters) / 2 ln n`, in its standard errors.
    pub z: f64,
    /// Two-sided p value.
    pub p: f64,
}

/// Three laws fitted to the same values.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Laws {
    /// The fits, in the order of [`Law::ALL`].
    pub fits: [LawFit; 3],
    /// The law of highest likelihood, corrected for parameters.
    pub likeliest: Law,
    /// It against the two others.
    pub vuong: [Vuong; 2],
}

/// What can be said of the values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// One law holds, and is likelier than both others beyond chance.
    Law(Law),
    /// None of the laws holds; the shape that the broken line has.
    NoLaw(Shape),
    /// The values do not tell.
    CannotBeToldApart,
}

impl Verdict {
    /// The verdict in words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Law(law) => law.name(),
            Self::NoLaw(Shape::ThreeRegimes) => "three regimes: plateau, power law, rapid decay",
            Self::NoLaw(_) => "none of power law, lognormal, exponential",
            Self::CannotBeToldApart => "cannot be told apart",
        }
    }
}

impl Laws {
    /// Fits the laws to the values above zero; `draws` is the number of samples of the parametric bootstrap.
    ///
    /// Per law the fit is by maximum likelihood, and its Kolmogorov-Smirnov distance is held against the distances of `draws` samples of
    /// that law, of the same size and fitted in the same way. The likeliest law is held against each other one by Vuong's test:
    /// `z = (sum m_i - (k - k') / 2 ln n) / (sqrt(n) sd(m))` with `m_i` the differences of ln densities and `k` the numbers of parameters.
    ///
    /// # Errors
    /// - [`SelectError::TooFewPoints`] with fewer than ten different values above zero
    /// - [`SelectError::Setting`] without draws
    ///
    /// # Examples
    /// ```
    /// use neuron_select::{Law, Laws, Shape, Verdict};
    /// // Quantiles of a Pareto law with exponent 1.5.
    /// let values: Vec<f64> = (0..500).map(|i| (1.0 - (f64::from(i) + 0.5) / 500.0).powf(-1.0 / 1.5)).collect();
    /// let laws = Laws::of(&values, 199, 42)?;
    /// assert_eq!(laws.verdict(Shape::ThreeRegimes), Verdict::Law(Law::PowerLaw));
    /// # Ok::<(), neuron_select::SelectError>(())
    /// ```
    pub fn of(values: &[f64], draws: usize, seed: u64) -> Result<Self, SelectError> {
        if draws == 0 {
            return Err(SelectError::Setting {
                name: "the number of draws of the parametric bootstrap",
                value: 0.0,
                expected: "at least 1",
            });
        }
        let mut ln_values: Vec<f64> = values
            .iter()
            .filter(|v| **v > 0.0)
            .map(|v| v.ln())
            .collect();
        ln_values.sort_unstable_by(f64::total_cmp);
        let different = ln_values.chunk_by(|a, b| a == b).count();
        if different < MIN_VALUES {
            return Err(SelectError::TooFewPoints {
                needed: MIN_VALUES,
                found: different,
            });
        }
        let n = ln_values.len();
        let fitted = Law::ALL.map(|law| law.fit(&ln_values));
        let fits = [0, 1, 2].map(|place| {
            let (law, fitted) = (Law::ALL[place], &fitted[place]);
            let own = distance(fitted.iter().map(|(_, below)| *below));
            let as_far = (0..draws).into_par_iter().filter(|&draw| {
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                rng.set_stream((3 * draw + place) as u64);
                let sample: Vec<f64> = (0..n).map(|_| law.ln_draw(&mut rng)).collect();
                distance(law.fit(&sample).into_iter().map(|(_, below)| below)) >= own
            });
            LawFit {
                law,
                log_likelihood: fitted.iter().map(|(ln_density, _)| ln_density).sum(),
                distance: own,
                goodness_p: (1 + as_far.count()) as f64 / (1 + draws) as f64,
            }
        });
        let ln_n = (n as f64).ln();
        let corrected =
            |place: usize| fits[place].log_likelihood - Law::ALL[place].parameters() / 2.0 * ln_n;
        let best = (1..3).fold(0, |best, place| {
            if corrected(place) > corrected(best) {
                place
            } else {
                best
            }
        });
        let vuong = [1, 2].map(|step| {
            let other = (best + step) % 3;
            let pairs = fitted[best].iter().zip(&fitted[other]);
            let differences: Vec<f64> = pairs.map(|(a, b)| a.0 - b.0).collect();
            let mean = differences.iter().sum::<f64>() / n as f64;
            let squares: f64 = differences.iter().map(|d| (d - mean).powi(2)).sum();
            let difference = corrected(best) - corrected(other);
            let z = if squares > 0.0 {
                difference / squares.sqrt()
            } else {
                0.0
            };
            Vuong {
                other: Law::ALL[other],
                z,
                p: libm::erfc(z.abs() * std::f64::consts::FRAC_1_SQRT_2),
            }
        });
        Ok(Self {
            fits,
            likeliest: Law::ALL[best],
            vuong,
        })
    }

    /// Vuong's test that is the least clear.
    pub fn closest(&self) -> Vuong {
        let [a, b] = self.vuong;
        if a.p >= b.p { a } else { b }
    }

    /// What can be said, given the shape of the broken line: a law that holds and is preferred to both others; the shape, where no law
    /// holds; else nothing.
    pub fn verdict(&self, shape: Shape) -> Verdict {
        let of_likeliest = self.fits.iter().find(|fit| fit.law == self.likeliest);
        let preferred = self.vuong.iter().all(|v| v.z > 0.0 && v.p < VUONG_LEVEL);
        if preferred && of_likeliest.is_some_and(LawFit::holds) {
            Verdict::Law(self.likeliest)
        } else if !self.fits.iter().any(LawFit::holds) {
            Verdict::NoLaw(shape)
        } else {
            Verdict::CannotBeToldApart
        }
    }
}
