//! Entropy and divergences of distributions over a vocabulary, in nats.

use crate::MetricError;
use crate::error::check_ln_probs;
use crate::error::{check_finite, check_lengths};

/// `ln sum exp(x)`, shifted by the maximum so that it neither over- nor underflows.
///
/// `-inf` counts as 0; of an empty slice, or of nothing but `-inf`, it is `-inf`. `+inf` comes through,
/// and NaN before all.
///
/// # Examples
/// ```
/// # use surprisal_metrics::log_sum_exp;
/// assert!((log_sum_exp(&[1000.0, 1000.0]) - (1000.0 + 2f64.ln())).abs() < 1e-12);
/// assert_eq!(log_sum_exp(&[]), f64::NEG_INFINITY);
/// ```
#[must_use]
pub fn log_sum_exp(values: &[f64]) -> f64 {
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max.is_infinite() {
        // The maximum passes over NaN, the sum below does not.
        return if values.iter().any(|v| v.is_nan()) {
            f64::NAN
        } else {
            max
        };
    }
    max + values.iter().map(|v| (v - max).exp()).sum::<f64>().ln()
}

/// A distribution as natural-log probabilities that add up to 1; `-inf` is probability 0.
///
/// # Examples
/// ```
/// # use surprisal_metrics::LnProbs;
/// let p = LnProbs::from_logits(&[1.0, 1.0, 1.0, 1.0])?;
/// let q = LnProbs::from_logits(&[3.0, 0.0, 0.0, 0.0])?;
/// assert!((p.entropy_nats() - 4f64.ln()).abs() < 1e-12);
/// assert!(p.kl_nats(&q)? > 0.0);
/// # Ok::<(), surprisal_metrics::MetricError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct LnProbs(Vec<f64>);

impl LnProbs {
    /// How far from 1 the probabilities may add up to: what f32 log-probabilities over 50,000
    /// entries need.
    pub const TOLERANCE: f64 = 1e-4;

    /// Takes log-probabilities as they are.
    ///
    /// # Errors
    /// - [`MetricError::Empty`] without any value
    /// - [`MetricError::NotLogProb`] at the first value that is NaN or above 0
    /// - [`MetricError::NotNormalised`] if they do not add up to 1 within [`Self::TOLERANCE`]
    pub fn new(ln_probs: Vec<f64>) -> Result<Self, MetricError> {
        if ln_probs.is_empty() {
            return Err(MetricError::Empty {
                what: "probabilities",
            });
        }
        check_ln_probs(&ln_probs)?;
        let total = log_sum_exp(&ln_probs).exp();
        match (total - 1.0).abs() <= Self::TOLERANCE {
            true => Ok(Self(ln_probs)),
            false => Err(MetricError::NotNormalised {
                total,
                tolerance: Self::TOLERANCE,
            }),
        }
    }

    /// Log-softmax of logits.
    ///
    /// # Errors
    /// - [`MetricError::Empty`] without any value
    /// - [`MetricError::NotFinite`] at the first value that is NaN or infinite
    pub fn from_logits(logits: &[f64]) -> Result<Self, MetricError> {
        if logits.is_empty() {
            return Err(MetricError::Empty { what: "logits" });
        }
        check_finite("logit", logits)?;
        let total = log_sum_exp(logits);
        // The largest of a one-entry softmax may round to a hair above 0.
        Ok(Self(logits.iter().map(|v| (v - total).min(0.0)).collect()))
    }

    /// The log-probabilities.
    #[must_use]
    pub fn as_slice(&self) -> &[f64] {
        &self.0
    }

    /// `-sum p ln p`.
    #[must_use]
    pub fn entropy_nats(&self) -> f64 {
        -self
            .0
            .iter()
            .filter(|ln_p| **ln_p > f64::NEG_INFINITY)
            .map(|ln_p| ln_p.exp() * ln_p)
            .sum::<f64>()
    }

    /// `KL(self || other) = sum p (ln p - ln q)`.
    ///
    /// Rounding is taken off at 0, below which no divergence goes.
    ///
    /// # Errors
    /// - [`MetricError::Length`] if the vocabularies differ
    /// - [`MetricError::Infinite`] where `other` is 0 and `self` is not
    pub fn kl_nats(&self, other: &Self) -> Result<f64, MetricError> {
        check_lengths(
            ("first distribution", self.0.len()),
            ("second distribution", other.0.len()),
        )?;
        let mut sum = 0.0;
        for (index, (&ln_p, &ln_q)) in self.0.iter().zip(&other.0).enumerate() {
            if ln_p == f64::NEG_INFINITY {
                continue;
            }
            if ln_q == f64::NEG_INFINITY {
                return Err(MetricError::Infinite {
                    index,
                    p: ln_p.exp(),
                });
            }
            sum += ln_p.exp() * (ln_p - ln_q);
        }
        Ok(sum.max(0.0))
    }

    /// Jensen-Shannon divergence `KL(p || m)/2 + KL(q || m)/2` with `m = (p + q)/2`: symmetric,
    /// between 0 and `ln 2`.
    ///
    /// # Errors
    /// - [`MetricError::Length`] if the vocabularies differ
    pub fn jensen_shannon_nats(&self, other: &Self) -> Result<f64, MetricError> {
        check_lengths(
            ("first distribution", self.0.len()),
            ("second distribution", other.0.len()),
        )?;
        let mixture = Self(
            self.0
                .iter()
                .zip(&other.0)
                .map(|(&p, &q)| log_sum_exp(&[p, q]) - std::f64::consts::LN_2)
                .collect(),
        );
        let sum = self.kl_nats(&mixture)? + other.kl_nats(&mixture)?;
        Ok((sum / 2.0).min(std::f64::consts::LN_2))
    }
}
