//! Surprisal of words and tokens, and what is done with it afterwards, on plain slices.
//!
//! This crate never sees a model, a tokenizer or a file: log-probabilities come in, numbers go out.
//! Everything is computed in `f64` and in **nats**; [`Unit`] converts at the edge. No function
//! returns NaN: what cannot be computed is an error or a `None` whose docs say when. Two pieces of plain
//! arithmetic, [`log_sum_exp`] and [`LearningCurve::at_log10_step`], give NaN for NaN.
//!
//! ```
//! use surprisal_metrics::{Boundary, Unit, WordForm, word_surprisal_nats};
//!
//! // Two pieces of probability 1/2 and 1/4; before the word every piece begins a word,
//! // after it one in two does: 1 + 2 + 0 + 1 bits.
//! let ln_probs = [0.5f64.ln(), 0.25f64.ln()];
//! let before = Boundary { ln_begins: 0.0, ln_eos: f64::NEG_INFINITY };
//! let after = Boundary { ln_begins: 0.5f64.ln(), ln_eos: f64::NEG_INFINITY };
//! let nats = word_surprisal_nats(WordForm::Corrected, &ln_probs, &before, &after)?;
//! assert!((Unit::Bits.from_nats(nats) - 4.0).abs() < 1e-12);
//! # Ok::<(), surprisal_metrics::MetricError>(())
//! ```
//!
//! - [`surprisal`]: tokens, words (four published forms), perplexity
//! - [`distribution`]: entropy, both Kullback-Leibler divergences, Jensen-Shannon divergence
//! - [`summary`]: means with standard errors; shares of effects
//! - [`bootstrap`](mod@bootstrap): bootstrap-t intervals over resampled groups
//! - [`paired`]: two conditions on the same items
//! - [`curve`]: learning curves and age of acquisition

mod against;
pub mod bootstrap;
pub mod curve;
pub mod distribution;
mod error;
pub mod paired;
pub mod summary;
pub mod surprisal;

pub use bootstrap::{Bootstrap, Group, Interval, MIN_GROUPS, Resamples};
pub use curve::{Acquisition, Doubt, LearningCurve};
pub use distribution::{LnProbs, log_sum_exp};
pub use error::MetricError;
pub use paired::{Paired, paired_comparison, sign_test};
pub use summary::{Summary, mediated_share};
pub use surprisal::{
    Boundary, Unit, WordForm, perplexity, token_surprisal_nats, word_surprisal_nats,
};
