//! What the wanted rows of a forward say, and the scores of words that are made of it.

use std::sync::Arc;

use surprisal_metrics::Boundary;

use crate::word_request::{WordRequest, WordStart};

use super::{ScoreError, WordScore, batch::Place};

/// Log-probabilities and boundary masses of the wanted rows, on the host.
#[derive(Debug, Clone, Default)]
pub(super) struct RowValues {
    /// `[target]`
    pub(super) ln_probs: Vec<f64>,
    /// `[row]`: begins, continues, eos; empty where they are not asked for.
    pub(super) boundaries: Vec<[f64; 3]>,
    /// `[row]`, nats; empty where it is not asked for.
    pub(super) entropies: Vec<f64>,
}

impl RowValues {
    /// Takes those of further rows.
    pub(super) fn extend(&mut self, further: Self) {
        self.ln_probs.extend(further.ln_probs);
        self.boundaries.extend(further.boundaries);
        self.entropies.extend(further.entropies);
    }

    /// The score of the request at `place`.
    ///
    /// # Errors
    /// - [`ScoreError::NotFinite`] where a piece has no probability above 0 or a mass is NaN; `intervention` is for its message
    pub(super) fn score(
        &self,
        place: &Place,
        request: &WordRequest,
        intervention: &str,
    ) -> Result<WordScore, ScoreError> {
        let (before, after) = self.boundaries_of(place, request.start);
        let ln_probs = place.pieces.iter().map(|&i| below_zero(self.ln_probs[i]));
        let ln_probs: Vec<f64> = ln_probs.collect();
        let masses = [&before, &after].map(|at| at.ln_begins.is_nan() || at.ln_eos.is_nan());
        if !ln_probs.iter().all(|p| p.is_finite()) || masses.contains(&true) {
            return Err(ScoreError::NotFinite {
                request: place.request,
                intervention: intervention.to_owned(),
            });
        }
        Ok(WordScore {
            text: Arc::clone(&request.text),
            span: request.span.clone(),
            ln_probs,
            before,
            after,
            entropy_nats: self.entropies.get(place.first_row).copied(),
        })
    }

    /// What is expected where a word begins and behind its last piece.
    fn boundaries_of(&self, place: &Place, start: WordStart) -> (Boundary, Boundary) {
        let Some(last) = place.last_row else {
            let none = Boundary {
                ln_begins: f64::NEG_INFINITY,
                ln_eos: f64::NEG_INFINITY,
            };
            return (none, none);
        };
        let [begins, continues, ln_eos] = self.boundaries[place.first_row];
        let before = match start {
            WordStart::Space => Boundary {
                ln_begins: begins,
                ln_eos,
            },
            WordStart::Text | WordStart::Line => Boundary {
                ln_begins: continues,
                ln_eos,
            },
            WordStart::Inside | WordStart::Merged => Boundary {
                ln_begins: 0.0,
                ln_eos: f64::NEG_INFINITY,
            },
        };
        let [ln_begins, _, ln_eos] = self.boundaries[last];
        (before, Boundary { ln_begins, ln_eos })
    }
}

/// Takes off what rounding puts above probability 1; NaN stays.
fn below_zero(ln_prob: f64) -> f64 {
    if ln_prob > 0.0 { 0.0 } else { ln_prob }
}
