//! The shape of the YAML, and its conversion into library options.

use std::path::PathBuf;

use job_kit::{Rule, Rules};
use model_conventions::Steps;
use neuron_select::{ControlOptions, Criteria, Effect, Heuristic, RowFilter};
use serde::{Deserialize, Serialize};
use surprisal_metrics::Bootstrap;

/// The whole configuration of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AnalyzeConfig {
    pub(crate) input: InputConfig,
    #[serde(default)]
    pub(crate) frequency: Option<FrequencyConfig>,
    #[serde(default)]
    pub(crate) band: Option<BandConfig>,
    pub(crate) selection: SelectionConfig,
    #[serde(default)]
    pub(crate) controls: ControlOptions,
    #[serde(default)]
    pub(crate) bootstrap: BootstrapConfig,
    #[serde(default)]
    pub(crate) cross_fit: CrossFitConfig,
    #[serde(default = "default_persistence")]
    pub(crate) persistence: f64,
    #[serde(default = "job_kit::default_seed")]
    pub(crate) seed: u64,
    pub(crate) output: OutputConfig,
}

impl Rules for AnalyzeConfig {
    fn rules() -> Vec<Rule> {
        vec![
            Rule::made_for("frequency.d_vocab", &["frequency.counts"]),
            Rule::unused(
                "band",
                |config, _| config["frequency"].is_null(),
                "rows are filed anew by a band only with token counts (`frequency`)",
            ),
            Rule::unused(
                "controls.caliper",
                |config, _| config["controls"]["match"] == "activation-and-norm",
                "controls of the same mean activation and output norm are the nearest ones, however far away",
            ),
            Rule::unused(
                "persistence",
                |config, _| config["input"]["steps"].is_null(),
                "rankings are compared only where there are several checkpoints (`input.steps`)",
            ),
        ]
    }
}

/// Where the tables of ablation runs are.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InputConfig {
    /// A folder that ablate-unigram wrote, or a table; with `steps`, the folder that holds a folder per step.
    pub(crate) path: PathBuf,
    /// Training steps, each in `step<N>` (or `<N>`) below `path`: `all`, `log`, steps, ranges.
    #[serde(default)]
    pub(crate) steps: Option<Steps>,
    /// Name of the table in each folder; by default `positions.parquet` or `positions.feather`.
    #[serde(default)]
    pub(crate) table: Option<PathBuf>,
    /// Layer of the neurons, for tables that number them without one.
    #[serde(default)]
    pub(crate) layer: Option<u32>,
}

/// Token counts, for tables whose rows are to be filed anew as rare or common.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FrequencyConfig {
    pub(crate) counts: PathBuf,
    /// Rows of the vocabulary; by default those of the counts.
    #[serde(default)]
    pub(crate) d_vocab: Option<usize>,
}

/// The long-tail band, both ends included; by default that of the ablation run.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BandConfig {
    pub(crate) min_frequency: f64,
    pub(crate) max_frequency: f64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SelectionConfig {
    pub(crate) heuristic: Heuristic,
    pub(crate) effect: Effect,
    #[serde(default)]
    pub(crate) by_mediation: bool,
    /// Rows that count: `longtail`, `common` or `none` for no filter.
    pub(crate) rows: RowFilter,
    /// The token whose frequency files a row; by default the one that the ablation run used.
    #[serde(default)]
    pub(crate) filed_by: Option<RowToken>,
    #[serde(default)]
    pub(crate) top_n: TopN,
    /// Total effect, in nats, below which a neuron is left out and its mediated share undefined.
    #[serde(default = "default_floor")]
    pub(crate) effect_floor: f64,
}

impl SelectionConfig {
    pub(crate) fn criteria(&self) -> Criteria {
        Criteria {
            heuristic: self.heuristic,
            effect: self.effect,
            by_mediation: self.by_mediation,
            effect_floor: self.effect_floor,
        }
    }

    pub(crate) fn top(&self) -> Option<usize> {
        match self.top_n {
            TopN::First(n) => Some(n),
            TopN::All(_) => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RowToken {
    /// The token at the row's position.
    Input,
    /// The token that follows, whose loss the row holds.
    Target,
}

impl RowToken {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Target => "target",
        }
    }
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a number of neurons, or `all`")]
pub(crate) enum TopN {
    First(usize),
    All(AllNeurons),
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AllNeurons {
    All,
}

impl Default for TopN {
    fn default() -> Self {
        Self::First(10)
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct BootstrapConfig {
    pub(crate) resamples: usize,
    /// Resamples of the influence curve, each of which is a fit.
    pub(crate) curve_resamples: usize,
    /// Draws of the parametric bootstrap that tests the laws of the influence curve.
    pub(crate) law_draws: usize,
    /// Sign flips of whole clusters for p values over all neurons at once.
    pub(crate) sign_flips: usize,
    pub(crate) level: f64,
}

impl Default for BootstrapConfig {
    fn default() -> Self {
        Self {
            resamples: 1000,
            curve_resamples: 200,
            law_draws: 499,
            sign_flips: 999,
            level: 0.95,
        }
    }
}

/// Selecting on some documents and measuring on the others.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct CrossFitConfig {
    /// Parts that the documents (or sequences) are dealt into; each is measured under what the others select. 0 for none.
    pub(crate) folds: usize,
}

impl Default for CrossFitConfig {
    fn default() -> Self {
        Self { folds: 5 }
    }
}

impl AnalyzeConfig {
    pub(crate) fn bootstrap(&self) -> Bootstrap {
        Bootstrap {
            resamples: self.bootstrap.resamples,
            level: self.bootstrap.level,
            seed: self.seed,
        }
    }

    pub(crate) fn curve_bootstrap(&self) -> Bootstrap {
        Bootstrap {
            resamples: self.bootstrap.curve_resamples,
            ..self.bootstrap()
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OutputConfig {
    pub(crate) dir: PathBuf,
    /// Whether to draw plots and write report.html.
    #[serde(default = "job_kit::on", deserialize_with = "job_kit::switch")]
    pub(crate) report: bool,
}

fn default_persistence() -> f64 {
    0.9
}
fn default_floor() -> f64 {
    1e-6
}
