//! Token frequencies, the long-tail band, and the directions that mediate frequency.

use crate::{AblateError, Direction};

/// Token frequencies `q` in the order of token ids, all positive, and their logarithms.
#[derive(Debug, Clone)]
pub struct TokenFrequencies {
    q: Vec<f64>,
    log_q: Vec<f64>,
}

impl TokenFrequencies {
    /// Takes `q`, `[d_vocab]`, which must be positive and sum to one.
    ///
    /// # Errors
    /// - [`AblateError::Frequency`] at the first value that is not a positive number, or if the sum is not 1 within 1e-6
    pub fn new(q: Vec<f64>) -> Result<Self, AblateError> {
        if let Some((token, &value)) = q
            .iter()
            .enumerate()
            .find(|(_, v)| !(v.is_finite() && **v > 0.0))
        {
            return Err(AblateError::Frequency {
                what: format!(
                    "token {token} has frequency {value}, expected a positive number: smooth the counts first (add one)"
                ),
            });
        }
        let sum: f64 = q.iter().sum();
        if (sum - 1.0).abs() > 1e-6 {
            return Err(AblateError::Frequency {
                what: format!("frequencies sum to {sum}, expected 1"),
            });
        }
        let log_q = q.iter().map(|v| v.ln()).collect();
        Ok(Self { q, log_q })
    }

    /// `q`, `[d_vocab]`.
    pub fn q(&self) -> &[f64] {
        &self.q
    }

    /// `ln q`, `[d_vocab]`.
    pub fn log_q(&self) -> &[f64] {
        &self.log_q
    }

    /// The unit vector along which frequency is mediated (methods, section 3), `[d_vocab]`.
    ///
    /// `band`, `[d_vocab]`, is ignored for [`Direction::AllTokens`] and required otherwise.
    ///
    /// # Errors
    /// - [`AblateError::Frequency`] if the band is of another vocabulary
    /// - [`AblateError::FlatDirection`] if all the tokens concerned have the same frequency
    pub fn direction(&self, kind: Direction, band: &[bool]) -> Result<Vec<f64>, AblateError> {
        let Axis { slope, intercept } = self.axis(kind, band)?;
        let in_band = |token: usize| kind == Direction::AllTokens || band[token];
        Ok((0..self.q.len())
            .map(|t| {
                if in_band(t) {
                    slope * self.log_q[t] + intercept
                } else {
                    0.0
                }
            })
            .collect())
    }

    /// The same unit vector as a function of `log q`, where it is not zero.
    pub(crate) fn axis(&self, kind: Direction, band: &[bool]) -> Result<Axis, AblateError> {
        if kind != Direction::AllTokens && band.len() != self.q.len() {
            return Err(AblateError::Frequency {
                what: format!(
                    "they are of {} tokens, but the band is of a vocabulary of {}",
                    self.q.len(),
                    band.len()
                ),
            });
        }
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
        let inside: Vec<f64> = match kind {
            Direction::AllTokens => self.log_q.clone(),
            Direction::BandMasked | Direction::BandRecentred => self
                .log_q
                .iter()
                .zip(band)
                .filter(|(_, inside)| **inside)
                .map(|(l, _)| *l)
                .collect(),
        };
        let mean = match kind {
            Direction::BandRecentred => mean(&inside),
            Direction::AllTokens | Direction::BandMasked => mean(&self.log_q),
        };
        let norm = inside
            .iter()
            .map(|l| (l - mean).powi(2))
            .sum::<f64>()
            .sqrt();
        if norm < 1e-12 {
            return Err(AblateError::FlatDirection {
                tokens: inside.len(),
            });
        }
        Ok(Axis {
            slope: 1.0 / norm,
            intercept: -mean / norm,
        })
    }
}

/// A direction over tokens, `slope * log q + intercept`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Axis {
    pub(crate) slope: f64,
    pub(crate) intercept: f64,
}

/// A named set of tokens, as a mask over the vocabulary.
#[derive(Debug, Clone)]
pub struct TokenBand {
    name: String,
    mask: Vec<bool>,
    tokens: usize,
}

impl TokenBand {
    /// Takes the ids of the tokens in the band.
    ///
    /// # Errors
    /// - [`AblateError::Band`] if there are none, or one is not below `d_vocab`
    pub fn new(name: impl Into<String>, ids: &[u32], d_vocab: usize) -> Result<Self, AblateError> {
        let name = name.into();
        let mut mask = vec![false; d_vocab];
        for &id in ids {
            match mask.get_mut(id as usize) {
                Some(slot) => *slot = true,
                None => {
                    return Err(AblateError::Band {
                        what: format!("token {id} is beyond the vocabulary of {d_vocab}"),
                        name,
                    });
                }
            }
        }
        let tokens = mask.iter().filter(|m| **m).count();
        if tokens == 0 {
            return Err(AblateError::Band {
                name,
                what: "it holds no token: widen its bounds".into(),
            });
        }
        Ok(Self { name, mask, tokens })
    }

    /// The name, as in column names.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Membership by token id, `[d_vocab]`.
    pub fn mask(&self) -> &[bool] {
        &self.mask
    }

    /// Number of tokens in the band.
    pub fn len(&self) -> usize {
        self.tokens
    }

    /// Never true: a band without tokens is refused.
    pub fn is_empty(&self) -> bool {
        self.tokens == 0
    }
}
