//! Token frequencies, the long-tail band, and the directions that mediate frequency.

use crate::{AblateError, Direction};

/// Token frequencies `q` in the order of token ids, all positive, and their logarithms.
#[derive(Debug, Clone)]
pub struct TokenFrequencies {
    q: Vec<f64>,
    log_q: Vec<f64>,
    /// The tokens that the all-token direction is about; all of them without.
    support: Option<Vec<bool>>,
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
        Ok(Self {
            q,
            log_q,
            support: None,
        })
    }

    /// Leaves tokens out of the all-token direction, which is 0 on them and centred over the others: `[d_vocab]`, true for those that
    /// stay.
    ///
    /// Tokens that a count never saw, padding rows among them, all have the least smoothed frequency, and far from the mean: on the Pile's
    /// counts they hold 37 % of the squared norm of the direction, which is then about being in the corpus at all as much as about how
    /// often.
    ///
    /// # Errors
    /// - [`AblateError::Vocabulary`] for another number of tokens
    ///
    /// # Examples
    /// ```
    /// use neuron_ablate::{Direction, TokenFrequencies};
    /// let q = vec![0.5, 0.25, 0.125, 0.125];
    /// let frequencies = TokenFrequencies::new(q)?.over(vec![true, true, false, false])?;
    /// let v = frequencies.direction(Direction::AllTokens, &[])?;
    /// assert!((v[0] - 0.5f64.sqrt()).abs() < 1e-12 && v[2..] == [0.0, 0.0]);
    /// # Ok::<(), neuron_ablate::AblateError>(())
    /// ```
    pub fn over(self, support: Vec<bool>) -> Result<Self, AblateError> {
        if support.len() != self.q.len() {
            return Err(AblateError::Vocabulary {
                frequencies: self.q.len(),
                d_vocab: support.len(),
            });
        }
        Ok(Self {
            support: Some(support),
            ..self
        })
    }

    /// The tokens that the all-token direction is about, `[d_vocab]`; `None` for all.
    pub fn support(&self) -> Option<&[bool]> {
        self.support.as_deref()
    }

    /// `q`, `[d_vocab]`.
    pub fn q(&self) -> &[f64] {
        &self.q
    }

    /// `ln q`, `[d_vocab]`.
    pub fn log_q(&self) -> &[f64] {
        &self.log_q
    }

    /// The tokens that are less frequent than every token of a band, `[d_vocab]`.
    ///
    /// # Examples
    /// ```
    /// use neuron_ablate::{TokenBand, TokenFrequencies};
    /// let frequencies = TokenFrequencies::new(vec![0.5, 0.25, 0.15, 0.1])?;
    /// let band = TokenBand::new("band", &[1, 2], 4)?;
    /// assert_eq!(frequencies.rarer_than(&band), [false, false, false, true]);
    /// # Ok::<(), neuron_ablate::AblateError>(())
    /// ```
    pub fn rarer_than(&self, band: &TokenBand) -> Vec<bool> {
        let members = self
            .q
            .iter()
            .zip(band.mask())
            .filter(|(_, inside)| **inside);
        let least = members.map(|(q, _)| *q).fold(f64::INFINITY, f64::min);
        self.q.iter().map(|q| *q < least).collect()
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
        let mask = self.mask(kind, band);
        let in_band = |token: usize| mask.is_none_or(|mask| mask[token]);
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

    /// The tokens where a direction is not zero; all without.
    fn mask<'m>(&'m self, kind: Direction, band: &'m [bool]) -> Option<&'m [bool]> {
        match kind {
            Direction::AllTokens => self.support(),
            Direction::BandMasked | Direction::BandRecentred => Some(band),
        }
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
        let inside: Vec<f64> = match self.mask(kind, band) {
            None => self.log_q.clone(),
            Some(mask) => {
                let tokens = self.log_q.iter().zip(mask);
                tokens
                    .filter(|(_, inside)| **inside)
                    .map(|(l, _)| *l)
                    .collect()
            }
        };
        let mean = match kind {
            Direction::AllTokens | Direction::BandRecentred => mean(&inside),
            Direction::BandMasked => mean(&self.log_q),
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
    pub fn new(
        name: impl Into<String>,
        ids: &[impl Copy + Into<i64>],
        d_vocab: usize,
    ) -> Result<Self, AblateError> {
        let name = name.into();
        let mut mask = vec![false; d_vocab];
        for &id in ids {
            let id: i64 = id.into();
            match usize::try_from(id).ok().and_then(|id| mask.get_mut(id)) {
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
