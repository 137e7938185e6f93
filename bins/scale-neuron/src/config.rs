//! The shape of the YAML, and its conversion into library options.

use std::path::PathBuf;

use anyhow::{Context, bail};
use job_inputs::{
    BandConfig, CorpusConfig, FrequencyConfig, ModelConfig, NeuronsConfig, Sequences, Vocabulary,
};
use job_kit::{Rule, Rules};
use longtail_corpus::BandReading;
use neuron_ablate::{Keep, NullSpaceOptions, RareTokens, ScalingLaw};
use neuron_select::ControlOptions;
use serde::{Deserialize, Serialize};
use surprisal_metrics::Bootstrap;

/// The whole configuration of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ScaleConfig {
    pub(crate) model: ModelConfig,
    pub(crate) corpus: CorpusConfig,
    pub(crate) frequency: FrequencyConfig,
    #[serde(default)]
    pub(crate) band: Option<BandConfig>,
    pub(crate) scaling: ScalingConfig,
    /// The neurons that are scaled; without any, only rows of the unembedding are.
    #[serde(default)]
    pub(crate) neurons: Option<NeuronsConfig>,
    pub(crate) evaluation: EvaluationConfig,
    /// Other neurons and other directions to hold the scaling against.
    #[serde(default)]
    controls: ControlOptions,
    #[serde(default)]
    pub(crate) bootstrap: BootstrapConfig,
    #[serde(default = "job_kit::default_seed")]
    pub(crate) seed: u64,
    /// A checkpoint with the changed weights.
    #[serde(default)]
    pub(crate) checkpoint: Option<CheckpointConfig>,
    pub(crate) output: OutputConfig,
}

impl ScaleConfig {
    /// The controls, with the number of draws under its name of once.
    pub(crate) fn controls(&self) -> ControlOptions {
        let mut controls = self.controls.clone();
        if let Some(draws) = self.evaluation.draws {
            tracing::warn!(
                "`evaluation.draws` is called `controls.draws` now, as in the other jobs; it is read as that"
            );
            controls.draws = draws;
        }
        controls
    }
}

impl Rules for ScaleConfig {
    fn rules() -> Vec<Rule> {
        let corrected: job_kit::config::When =
            |config, _| config["scaling"]["band_reading"] == "corrected";
        let mut rules = vec![
            Rule::unused(
                "model.steps",
                |_, _| true,
                "this job takes one checkpoint: name its folder as `model.path`, or set `model.revision`",
            ),
            Rule::unused("model.allow_bad", |_, _| true, "this job reads no audit"),
            Rule::made_for("neurons.list", &["model.path", "model.repo"]),
            Rule::one_of(&["scaling.variance", "scaling.rank"]),
            Rule::unused(
                "scaling.epsilon",
                |config, _| {
                    let laws = config["scaling"]["laws"].as_array();
                    laws.into_iter().flatten().all(|law| law == "constant")
                },
                "no law of `scaling.laws` looks at frequencies",
            ),
            Rule::unused(
                "checkpoint.law",
                |config, _| config["checkpoint"]["scaled"] == "neurons",
                "laws are of rows, and the checkpoint has scaled neurons",
            ),
        ];
        rules.push(Rule::unused(
            "band",
            |config, _| config["scaling"]["rare"] != "band",
            "rare tokens are those of a quantile (`scaling.rare`)",
        ));
        rules.push(Rule::unused(
            "controls.caliper",
            |config, _| config["controls"]["match"] == "activation-and-norm",
            "controls of the same mean activation and output norm are the nearest ones, however far away",
        ));
        rules.extend(Rule::under("model", ModelConfig::rules()));
        rules.extend(Rule::under("corpus", CorpusConfig::rules_for_models()));
        rules.extend(Rule::under("band", BandConfig::rules(corrected)));
        rules.extend(Rule::under("neurons", NeuronsConfig::rules()));
        rules
    }
}

/// Share of the squared singular values that is kept where the configuration says nothing.
const DEFAULT_VARIANCE: f64 = 0.95;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ScalingConfig {
    /// Per cent of the vocabulary, by frequency, that counts as common.
    top_k_percent: f64,
    /// Share of the squared singular values that is kept for common tokens; 0.95 if neither this nor `rank` is set.
    #[serde(default)]
    variance: Option<f64>,
    /// Or so many singular vectors, whatever their share.
    #[serde(default)]
    rank: Option<usize>,
    /// Whether the unembedding is centred over the vocabulary.
    centred: bool,
    /// Whether `gamma` of the final LayerNorm is folded into the unembedding.
    folded: bool,
    /// `band`, or `quantile: 0.25`.
    rare: RareConfig,
    #[serde(default)]
    pub(crate) band_reading: BandReading,
    /// `constant`, `linear`, `log`, `power: 1.0`.
    pub(crate) laws: Vec<ScalingLaw>,
    /// Added to the lowest frequency; 1e-10 in the Python package.
    #[serde(default)]
    pub(crate) epsilon: f64,
    /// The base factor `s`, which the summary and a written checkpoint use.
    pub(crate) factor: f64,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RareConfig {
    Band,
    Quantile(f64),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EvaluationConfig {
    /// A list of sequences, or how many to draw by seed.
    pub(crate) sequences: Sequences,
    /// Factors of the trade-off curve; the base factor is added.
    #[serde(default)]
    factors: Vec<f64>,
    /// Factors at which controls are measured, whose draws are many: `base` or `all`.
    #[serde(default)]
    control_factors: ControlFactors,
    /// What `controls.draws` was called once; it takes its place.
    #[serde(default)]
    draws: Option<usize>,
    /// Sequences per forward.
    #[serde(default = "default_batch")]
    pub(crate) batch: usize,
    /// Mebibytes for vectors over the vocabulary.
    #[serde(default = "default_memory")]
    pub(crate) memory_mib: usize,
}

/// At which factors controls are measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ControlFactors {
    /// `scaling.factor`.
    #[default]
    Base,
    /// Those of the trade-off curve too.
    All,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BootstrapConfig {
    #[serde(default = "default_resamples")]
    resamples: usize,
    #[serde(default = "default_level")]
    level: f64,
}

impl Default for BootstrapConfig {
    fn default() -> Self {
        Self {
            resamples: default_resamples(),
            level: default_level(),
        }
    }
}

/// What is written as a checkpoint.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CheckpointConfig {
    pub(crate) scaled: Scaled,
    /// The law, for rows; the first of `scaling.laws` otherwise.
    #[serde(default)]
    pub(crate) law: Option<ScalingLaw>,
    /// `f32`, `f16` or `bf16`; each weight as it was otherwise.
    #[serde(default)]
    pub(crate) dtype: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scaled {
    Rows,
    Neurons,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OutputConfig {
    pub(crate) dir: PathBuf,
    #[serde(default = "job_kit::on", deserialize_with = "job_kit::switch")]
    pub(crate) report: bool,
}

fn default_batch() -> usize {
    8
}
fn default_memory() -> usize {
    512
}
fn default_resamples() -> usize {
    1000
}
fn default_level() -> f64 {
    0.95
}

impl ScaleConfig {
    pub(crate) fn bootstrap(&self) -> Bootstrap {
        Bootstrap {
            resamples: self.bootstrap.resamples,
            level: self.bootstrap.level,
            seed: self.seed,
        }
    }

    /// The factors, ascending, the base factor among them.
    pub(crate) fn factors(&self) -> anyhow::Result<Vec<f64>> {
        let mut factors = self.evaluation.factors.clone();
        factors.push(self.scaling.factor);
        if let Some(factor) = factors.iter().find(|factor| !factor.is_finite()) {
            bail!(
                "factor {factor} in `evaluation.factors` or `scaling.factor` is not a finite number"
            );
        }
        factors.sort_unstable_by(f64::total_cmp);
        factors.dedup();
        Ok(factors)
    }

    /// Those of `factors` at which controls are measured.
    pub(crate) fn control_factors(&self, factors: &[f64]) -> Vec<f64> {
        match self.evaluation.control_factors {
            ControlFactors::Base => vec![self.scaling.factor],
            ControlFactors::All => factors.to_vec(),
        }
    }
}

impl ScalingConfig {
    pub(crate) fn null_space(&self) -> NullSpaceOptions {
        let keep = self.rank.map_or(
            Keep::Variance(self.variance.unwrap_or(DEFAULT_VARIANCE)),
            Keep::Rank,
        );
        NullSpaceOptions::default()
            .with_top_k_percent(self.top_k_percent)
            .with_keep(keep)
            .with_centred(self.centred)
            .with_folded(self.folded)
    }

    pub(crate) fn rare(&self, vocabulary: &Vocabulary) -> anyhow::Result<RareTokens> {
        let q = vocabulary.frequencies.q();
        Ok(match self.rare {
            RareConfig::Quantile(share) => {
                let ranked = match self.band_reading {
                    BandReading::Corrected => vocabulary.n_tokens,
                    BandReading::Liu2025 => q.len(),
                };
                RareTokens::below_quantile(q, ranked, share)
                    .context("failed to find rare tokens (`scaling.rare`)")?
            }
            RareConfig::Band => {
                let band = vocabulary.band.as_ref().context("`scaling.rare` is `band`, but there is no band: choose one with `band=tail`, or set `scaling.rare={quantile: 0.25}`")?;
                RareTokens::of_band(&band.ids, q, band.max_frequency)?
            }
        })
    }
}
