//! The shape of the YAML.

use std::path::PathBuf;

use job_inputs::{CorpusConfig, FrequencyConfig, ModelConfig};
use longtail_corpus::{BandReading, Bound};
use neuron_ablate::{Join, MeanOver, NeuronSite};
use serde::{Deserialize, Serialize};
use surprisal_metrics::{Unit, WordForm};

use crate::{interventions::InterventionSpec, steps::Steps};

/// The whole configuration of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SurprisalConfig {
    /// `steps` beside it says which checkpoints, not `model.steps` or `model.revision`.
    pub(crate) model: ModelConfig,
    #[serde(default)]
    pub(crate) steps: Steps,
    pub(crate) words: WordsConfig,
    #[serde(default)]
    pub(crate) reading: Reading,
    /// Which surprisal the figure, the summary and the wide tables show.
    #[serde(default)]
    pub(crate) form: Option<WordForm>,
    #[serde(default)]
    pub(crate) unit: Unit,
    #[serde(default)]
    pub(crate) neurons: NeuronsConfig,
    pub(crate) interventions: InterventionsConfig,
    /// Text over which mean activations are taken.
    pub(crate) corpus: CorpusConfig,
    /// Tells long-tail words from common ones; without it all words are one group.
    #[serde(default)]
    pub(crate) frequency: Option<FrequencyConfig>,
    #[serde(default)]
    pub(crate) band: Option<BandConfig>,
    #[serde(default = "default_seed")]
    pub(crate) seed: u64,
    /// Positions of one forward.
    #[serde(default = "default_batch_tokens")]
    pub(crate) batch_tokens: usize,
    pub(crate) output: OutputConfig,
}

impl SurprisalConfig {
    /// The form that the figure, the summary and the wide tables show.
    pub(crate) fn form(&self) -> WordForm {
        self.form.unwrap_or(match self.reading {
            Reading::Corrected => WordForm::Corrected,
            Reading::Liu2025 => WordForm::FirstPiece,
        })
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WordsConfig {
    /// Contexts of words: JSON (word to list of `context`), Parquet, Feather or CSV (`word`, `context`).
    pub(crate) path: PathBuf,
    /// Words with fewer contexts are left out and counted.
    #[serde(default = "default_min_context")]
    pub(crate) min_context: usize,
    /// Contexts beyond this number are not used.
    #[serde(default)]
    pub(crate) max_context: Option<usize>,
    #[serde(default)]
    pub(crate) join: Join,
    /// Whether the beginning-of-sequence token stands before the context.
    #[serde(default = "default_true")]
    pub(crate) bos: bool,
    /// No contexts: each word once, after the beginning-of-sequence token.
    #[serde(default)]
    pub(crate) bos_only: bool,
}

/// Which tokens are a word's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Reading {
    /// All pieces, from joint tokenization.
    #[default]
    Corrected,
    /// One token, the one after as many as the context has alone; no token before the context.
    Liu2025,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NeuronsConfig {
    /// A row per step: CSV with `step, top_neurons`, or a YAML or JSON list of `{step, neurons}`.
    #[serde(default)]
    pub(crate) file: Option<PathBuf>,
    /// Or one set for all steps, as text: `["3.17", "3.42"]`.
    #[serde(default)]
    pub(crate) list: Option<Vec<String>>,
    /// Only the first of each row.
    #[serde(default)]
    pub(crate) top: Option<usize>,
    /// The step whose row stands in for steps without one; by default they are an error.
    #[serde(default)]
    pub(crate) missing_step: Option<u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InterventionsConfig {
    #[serde(default)]
    pub(crate) site: NeuronSite,
    pub(crate) list: Vec<InterventionSpec>,
    /// Positions that the mean activation is taken over.
    #[serde(default = "default_mean_over")]
    pub(crate) mean_over: MeanOver,
}

/// Bounds of the long-tail band: a word with a piece in it is a long-tail word.
///
/// Unlike in other jobs the reading is a key of the band, as no other choice of a reading concerns this job.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BandConfig {
    lower: Option<Bound>,
    upper: Option<Bound>,
    #[serde(default)]
    window: Option<usize>,
    #[serde(default)]
    pub(crate) reading: BandReading,
}

impl BandConfig {
    /// The bounds; none where the configuration leaves both open.
    pub(crate) fn bounds(&self) -> Option<job_inputs::BandConfig> {
        (self.lower.is_some() || self.upper.is_some()).then_some(job_inputs::BandConfig {
            lower: self.lower,
            upper: self.upper,
            window: self.window,
        })
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OutputConfig {
    pub(crate) dir: PathBuf,
    /// Whether to write the wide tables, a CSV file per intervention.
    #[serde(default = "default_true")]
    pub(crate) wide: bool,
    /// Whether to fit learning curves.
    #[serde(default = "default_true")]
    pub(crate) acquisition: bool,
    /// (word, context) pairs between two saves.
    #[serde(default = "default_chunk")]
    pub(crate) chunk: usize,
}

fn default_seed() -> u64 {
    42
}
fn default_batch_tokens() -> usize {
    4096
}
fn default_min_context() -> usize {
    1
}
fn default_mean_over() -> MeanOver {
    MeanOver::NotBos
}
fn default_chunk() -> usize {
    2000
}
fn default_true() -> bool {
    true
}
