//! Surprisal of tokens and words.
//!
//! A byte-level BPE puts the space in front of a word into its first piece ("Ġword"), so a model
//! only says at the *next* piece that a word has ended. Summing the pieces therefore charges a
//! word for the space before it and lets it off the end behind it; the corrected forms move that
//! mass to where it belongs.

use serde::{Deserialize, Serialize};

use crate::MetricError;
use crate::distribution::log_sum_exp;

/// Unit of surprisal. Everything here computes in nats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Natural logarithm.
    #[default]
    Nats,
    /// Logarithm to base 2: nats divided by `ln 2`.
    Bits,
}

impl Unit {
    /// Converts a value in nats.
    ///
    /// # Examples
    /// ```
    /// # use surprisal_metrics::Unit;
    /// assert_eq!(Unit::Bits.from_nats(std::f64::consts::LN_2), 1.0);
    /// ```
    #[must_use]
    pub fn from_nats(self, nats: f64) -> f64 {
        match self {
            Self::Nats => nats,
            Self::Bits => nats / std::f64::consts::LN_2,
        }
    }

    /// `nats` or `bits`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nats => "nats",
            Self::Bits => "bits",
        }
    }
}

/// Which of the published readings of "surprisal of a word".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WordForm {
    /// Pimentel & Meister (2024, arXiv 2406.14561): `-sum ln p(piece) + B(before) - B(after)`, with
    /// `B(h)` the log of the mass of pieces that begin a word, plus end-of-sequence.
    #[default]
    Corrected,
    /// Oh & Schuler (2024, arXiv 2406.10851): the same without end-of-sequence in `B`.
    CorrectedWithoutEos,
    /// `-sum ln p(piece)` over all pieces.
    Uncorrected,
    /// `-ln p` of the first piece alone, as in the Python package of Liu et al. (2025).
    FirstPiece,
}

/// What a model expects at a place between two pieces.
///
/// Before the first word of a text, where a word begins without a space, `ln_begins` is the mass
/// of the pieces that do **not** start with one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Boundary {
    /// Natural log of the summed probability of pieces that begin a word, end-of-sequence left out.
    pub ln_begins: f64,
    /// Natural log of the probability of end-of-sequence.
    pub ln_eos: f64,
}

impl Boundary {
    /// `B(h)` of a form, checked.
    fn ln_mass(&self, form: WordForm, place: &'static str) -> Result<f64, MetricError> {
        // The mass is a rounded f32 sum at times: a hair above 1 is no mistake.
        let within_rounding = (0.0..1e-4).contains(&self.ln_begins);
        let ln_begins = if within_rounding { 0.0 } else { self.ln_begins };
        crate::error::check_ln_probs(&[ln_begins, self.ln_eos])?;
        let mass = match form {
            WordForm::Corrected => log_sum_exp(&[ln_begins, self.ln_eos]),
            _ => ln_begins,
        };
        match mass > f64::NEG_INFINITY {
            true => Ok(mass),
            false => Err(MetricError::NoBoundaryMass { place }),
        }
    }
}

/// Surprisal of one token: `-ln p`, in nats.
///
/// # Errors
/// - [`MetricError::NotLogProb`] if `ln_prob` is NaN or above 0
/// - [`MetricError::NotFinite`] if the token has probability 0
///
/// # Examples
/// ```
/// # use surprisal_metrics::token_surprisal_nats;
/// assert_eq!(token_surprisal_nats(-1.5)?, 1.5);
/// # Ok::<(), surprisal_metrics::MetricError>(())
/// ```
pub fn token_surprisal_nats(ln_prob: f64) -> Result<f64, MetricError> {
    sum_nats(&[ln_prob])
}

/// Surprisal of one word in nats.
///
/// # Shapes
/// - `ln_probs`: `[n_pieces]`, natural-log probability of each piece given everything before it
/// - `before`, `after`: what the model expects at the word's first piece and behind its last;
///   read by the corrected forms only
///
/// # Errors
/// - [`MetricError::Empty`] if there is no piece
/// - [`MetricError::NotLogProb`] at the first value that is NaN or above 0
/// - [`MetricError::NotFinite`] if a piece has probability 0
/// - [`MetricError::NoBoundaryMass`] if a corrected form would divide by 0
///
/// # Examples
/// ```
/// # use surprisal_metrics::{Boundary, WordForm, word_surprisal_nats};
/// let half = 0.5f64.ln();
/// let sure = Boundary { ln_begins: 0.0, ln_eos: f64::NEG_INFINITY };
/// let nats = word_surprisal_nats(WordForm::Uncorrected, &[half, half], &sure, &sure)?;
/// assert_eq!(nats, 2.0 * std::f64::consts::LN_2);
/// # Ok::<(), surprisal_metrics::MetricError>(())
/// ```
pub fn word_surprisal_nats(
    form: WordForm,
    ln_probs: &[f64],
    before: &Boundary,
    after: &Boundary,
) -> Result<f64, MetricError> {
    let sum = sum_nats(ln_probs)?;
    match form {
        WordForm::Uncorrected => Ok(sum),
        WordForm::FirstPiece => Ok(-ln_probs[0]),
        WordForm::Corrected | WordForm::CorrectedWithoutEos => Ok(sum
            + before.ln_mass(form, "before the word")?
            - after.ln_mass(form, "after the word")?),
    }
}

/// Perplexity of a text: `exp(-mean ln p)` over its tokens.
///
/// # Errors
/// - [`MetricError::Empty`], [`MetricError::NotLogProb`], [`MetricError::NotFinite`] as in
///   [`word_surprisal_nats`]; the latter also for a perplexity beyond the range of `f64`
///
/// # Examples
/// ```
/// # use surprisal_metrics::perplexity;
/// let uniform_over_8 = [0.125f64.ln(); 5];
/// assert!((perplexity(&uniform_over_8)? - 8.0).abs() < 1e-12);
/// # Ok::<(), surprisal_metrics::MetricError>(())
/// ```
pub fn perplexity(ln_probs: &[f64]) -> Result<f64, MetricError> {
    let perplexity = (sum_nats(ln_probs)? / ln_probs.len() as f64).exp();
    crate::error::check_finite("perplexity", &[perplexity])?;
    Ok(perplexity)
}

/// `-sum ln p`, checked.
fn sum_nats(ln_probs: &[f64]) -> Result<f64, MetricError> {
    if ln_probs.is_empty() {
        return Err(MetricError::Empty { what: "pieces" });
    }
    crate::error::check_ln_probs(ln_probs)?;
    crate::error::check_finite("log-probability", ln_probs)?;
    Ok(ln_probs.iter().sum::<f64>().abs())
}
