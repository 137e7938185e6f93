//! What results are made of.

use job_kit::OutputDir;
use model_conventions::Counted;
use neuron_ablate::WordRequest;
use surprisal_metrics::WordForm;

use crate::config::SurprisalConfig;
use crate::interventions::InterventionSpec;
use crate::store::{Row, Store};
use crate::words::Words;

/// What the tables are made of.
pub(crate) struct Inputs<'r> {
    pub(crate) config: &'r SurprisalConfig,
    /// What is done, with the numbers of draws.
    pub(crate) list: &'r [InterventionSpec],
    pub(crate) out: &'r OutputDir,
    pub(crate) store: &'r Store,
    pub(crate) words: &'r Words,
    /// `[pair]`
    pub(crate) requests: &'r [WordRequest],
    /// None is the step of a model without steps.
    pub(crate) steps: &'r [Option<u64>],
    /// Whether neurons were selected on the text of the contexts, where that is known.
    pub(crate) selected_on_measured: Option<bool>,
    /// What they count.
    pub(crate) counted: Counted,
    /// Surprisal of a uniform guess over the vocabulary, of which a word takes one for each piece.
    pub(crate) chance_nats_per_piece: f64,
}

impl Inputs<'_> {
    /// Everything that is measured.
    pub(crate) fn names(&self) -> Vec<String> {
        let facts = self.list.iter().flat_map(InterventionSpec::facts);
        facts.map(|(name, _)| name).collect()
    }

    /// The value that figure, summary and wide tables show, in the unit of the run.
    pub(crate) fn shown(&self, row: &Row) -> Option<f64> {
        let form = match self.config.form() {
            WordForm::Corrected => 0,
            WordForm::CorrectedWithoutEos => 1,
            WordForm::Uncorrected => 2,
            WordForm::FirstPiece => 3,
        };
        row.nats[form].map(|nats| self.config.unit.from_nats(nats))
    }

    /// Surprisal of a word of so many pieces, of those that [`Inputs::shown`] counts, if each were guessed at random.
    pub(crate) fn chance(&self, pieces: usize) -> f64 {
        let pieces = match self.config.form() {
            WordForm::FirstPiece => 1,
            WordForm::Corrected | WordForm::CorrectedWithoutEos | WordForm::Uncorrected => pieces,
        };
        self.config
            .unit
            .from_nats(pieces as f64 * self.chance_nats_per_piece)
    }
}
