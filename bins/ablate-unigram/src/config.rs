//! The shape of the YAML, and its conversion into library options.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::bail;
use job_inputs::{
    BandConfig, CorpusConfig, FrequencyConfig, ModelConfig, NeuronsConfig, Sequences,
};
use job_kit::{Rule, Rules, Span};
use longtail_corpus::BandReading;
use neuron_ablate::{
    BandToken, Direction, Dose, Engine, EngineOptions, ExactSums, FrozenKl, KlDirection, MeanOver,
    NullDirections, OutsideBand, Semantics, Variants,
};
use neuron_select::ControlKind;
use serde::{Deserialize, Serialize};

/// The whole configuration of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AblateConfig {
    pub(crate) model: ModelConfig,
    pub(crate) corpus: CorpusConfig,
    pub(crate) frequency: FrequencyConfig,
    #[serde(default)]
    pub(crate) band: Option<BandConfig>,
    /// Further bands by name: their divergences, and direct effects with their frequency direction frozen.
    #[serde(default)]
    pub(crate) bands: BTreeMap<String, BandConfig>,
    pub(crate) semantics: SemanticsConfig,
    pub(crate) ablation: AblationConfig,
    /// Sets of neurons changed together, beside the neurons one by one.
    #[serde(default)]
    pub(crate) sets: Option<SetsConfig>,
    /// A folder in whose folders the shards of this run are (`ablation.shard`): their tables are put together, and nothing is computed.
    #[serde(default)]
    pub(crate) merge: Option<PathBuf>,
    #[serde(default = "default_seed")]
    pub(crate) seed: u64,
    pub(crate) output: OutputConfig,
}

impl Rules for AblateConfig {
    fn rules() -> Vec<Rule> {
        let corrected: job_kit::config::When =
            |config, _| config["semantics"]["band_reading"] == "corrected";
        let mut rules = vec![
            Rule::one_of(&["model.steps", "model.revision"]),
            Rule::one_of(&["ablation.shard", "merge"]),
            Rule::unused(
                "sets",
                |config, _| !config["ablation"]["shard"].is_null() || !config["merge"].is_null(),
                "sets are measured in a run of their own, not in shards (`ablation.shard`, `merge`)",
            ),
            Rule::unused(
                "model.allow_bad",
                |config, _| {
                    config["model"]["steps"].is_null() && config["model"]["revision"].is_null()
                },
                "the audit is asked for named checkpoints (`model.steps`, `model.revision`)",
            ),
            Rule::unused(
                "ablation.tolerance",
                |config, _| config["ablation"]["engine"] != "auto",
                "only `ablation.engine=auto` weighs an error against it",
            ),
            Rule::unused(
                "output.format",
                |config, _| config["output"]["positions"] == false,
                "it is the format of the table of positions, which `output.positions` leaves out",
            ),
            Rule::unused(
                "sets.controls.draws",
                |config, _| config["sets"]["controls"]["kinds"] == serde_json::json!([]),
                "`sets.controls.kinds` names no control",
            ),
            Rule::unused(
                "sets.controls.kinds",
                |config, _| config["sets"]["controls"]["draws"] == 0,
                "`sets.controls.draws` is 0",
            ),
        ];
        let of_bands = [
            "semantics.outside_band",
            "semantics.band_token",
            "semantics.band_reading",
        ];
        rules.extend(of_bands.map(|key| Rule::unused(key, |config, _| !has_band(config), NO_BAND)));
        rules.push(Rule::unused(
            "semantics.direction",
            |config, _| config["semantics"]["direction"] != "all-tokens" && !has_band(config),
            NO_BAND,
        ));
        rules.push(Rule::unused(
            "semantics.frozen_kl",
            |config, _| config["semantics"]["frozen_kl"] != "full" && !has_band(config),
            NO_BAND,
        ));
        rules.extend(Rule::under("model", ModelConfig::rules()));
        rules.extend(Rule::under("corpus", CorpusConfig::rules()));
        rules.extend(Rule::under("band", BandConfig::rules(corrected)));
        rules.extend(Rule::under("bands.*", BandConfig::rules(corrected)));
        rules.extend(Rule::under("sets.neurons", NeuronsConfig::rules()));
        rules
    }
}

/// Why a key of `semantics` is not used.
const NO_BAND: &str = "there is no band of tokens that it would be about (`band=tail` takes one, or set `band.lower` and `band.upper`)";

/// Whether a resolved configuration has a band, or further ones.
fn has_band(config: &serde_json::Value) -> bool {
    let band = &config["band"];
    let further = config["bands"].as_object();
    !(band["lower"].is_null() && band["upper"].is_null())
        || further.is_some_and(|bands| !bands.is_empty())
}

/// The choices of `neuron_ablate::Semantics`, and how the bounds of the band are read.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct SemanticsConfig {
    direction: Direction,
    outside_band: OutsideBand,
    kl: KlDirection,
    frozen_kl: FrozenKl,
    mean_activation: MeanOver,
    band_token: BandToken,
    pub(crate) band_reading: BandReading,
    /// Whether tokens with a count of 0 belong to the all-token frequency direction.
    pub(crate) unseen_tokens: UnseenTokens,
}

/// Tokens that the counts never saw, padding rows among them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum UnseenTokens {
    /// They belong to the all-token frequency direction, as in published code.
    #[default]
    Kept,
    /// The direction is 0 on them and centred over the others; `freq_cosine` is over the others.
    LeftOut,
}

impl Default for SemanticsConfig {
    fn default() -> Self {
        let of = Semantics::default();
        Self {
            direction: of.direction,
            outside_band: of.outside_band,
            kl: of.kl,
            frozen_kl: of.frozen_kl,
            mean_activation: of.mean_activation,
            band_token: of.band_token,
            band_reading: BandReading::Corrected,
            unseen_tokens: UnseenTokens::Kept,
        }
    }
}

impl SemanticsConfig {
    pub(crate) fn to_options(&self) -> Semantics {
        Semantics {
            direction: self.direction,
            outside_band: self.outside_band,
            kl: self.kl,
            frozen_kl: self.frozen_kl,
            mean_activation: self.mean_activation,
            band_token: self.band_token,
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AblationConfig {
    /// `all`, a range `0..64`, or a list.
    #[serde(default)]
    pub(crate) neurons: Neurons,
    /// Only this part of the neurons: `2/4` is the second of four.
    #[serde(default)]
    pub(crate) shard: Option<Shard>,
    /// A list of sequences, or how many to draw by seed.
    pub(crate) sequences: Sequences,
    #[serde(default)]
    pub(crate) dose: Dose,
    /// What is measured of each ablation; the total effect always is.
    #[serde(default = "default_variants")]
    variants: Vec<VariantName>,
    /// Whether to measure the rank of the target before and after; costs a comparison with every token.
    #[serde(default, deserialize_with = "job_kit::switch")]
    pub(crate) ranks: bool,
    /// `auto`: moments where they are likely to be faster and their error is bounded by the tolerance, exact sums elsewhere.
    #[serde(default)]
    engine: Engine,
    /// Largest bound, in nats, on the error of what `auto` leaves to the moments.
    #[serde(default = "default_tolerance")]
    tolerance: f64,
    /// What computes exact sums: the kernel on a CPU, tensor operations on a GPU.
    #[serde(default)]
    exact_sums: ExactSums,
    /// Sequences per forward.
    #[serde(default = "default_batch")]
    pub(crate) batch: usize,
    /// Total effect, in nats, below which the mediated share is null.
    #[serde(default = "default_floor")]
    pub(crate) effect_floor: f64,
    /// Bootstrap resamples of the sequences for the intervals per neuron; 0 writes none.
    #[serde(default = "default_resamples")]
    pub(crate) resamples: usize,
    /// Least singular directions of the unembedding that count as its null space: `{share: 0.05}` of d_model, or `{count: 12}`.
    #[serde(default)]
    pub(crate) null_directions: NullDirections,
    /// Mebibytes for vectors over the vocabulary.
    #[serde(default = "default_memory")]
    pub(crate) memory_mib: usize,
}

/// Nested sets of neurons, at several doses.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SetsConfig {
    /// A ranked list, best first: `selection.csv` of analyze-unigram, or names.
    pub(crate) neurons: NeuronsConfig,
    /// How many of the first neurons make a set; otherwise 1, 2, 4, 8, ... and all.
    #[serde(default)]
    pub(crate) sizes: Option<Vec<usize>>,
    /// What the activations are replaced by: `mean`, `{scale: 0.5}`, `clip-at-mean`.
    #[serde(default = "default_doses")]
    pub(crate) doses: Vec<Dose>,
    #[serde(default)]
    pub(crate) controls: ControlsConfig,
}

/// Other neurons of the layer, as many and changed alike.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ControlsConfig {
    /// `random`, `matched` in mean activation and output norm.
    #[serde(default = "default_kinds")]
    pub(crate) kinds: Vec<ControlKind>,
    /// Draws of each; 0 for none.
    #[serde(default = "default_draws")]
    pub(crate) draws: usize,
}

impl Default for ControlsConfig {
    fn default() -> Self {
        Self {
            kinds: default_kinds(),
            draws: default_draws(),
        }
    }
}

/// A way to read an ablation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum VariantName {
    Total,
    FrozenLn,
    FrozenAll,
    FrozenBand,
}

impl AblationConfig {
    /// The neurons of a layer of `d_mlp` that this run ablates.
    pub(crate) fn neurons(&self, d_mlp: usize) -> anyhow::Result<Vec<usize>> {
        let all = self.neurons.resolve(d_mlp)?;
        let Some(shard) = self.shard else {
            return Ok(all);
        };
        let taken = shard.take(&all);
        if taken.is_empty() {
            bail!(
                "`ablation.shard` is {}, but {} neurons make {} shards at most, of {SHARD_BLOCK} neurons",
                String::from(shard),
                all.len(),
                all.len().div_ceil(SHARD_BLOCK)
            );
        }
        Ok(taken)
    }

    pub(crate) fn variants(&self) -> Variants {
        let wanted = |name| self.variants.contains(&name);
        Variants {
            frozen_ln: wanted(VariantName::FrozenLn),
            frozen_all: wanted(VariantName::FrozenAll),
            frozen_bands: wanted(VariantName::FrozenBand),
        }
    }

    pub(crate) fn engine(&self) -> anyhow::Result<EngineOptions> {
        if !(self.tolerance > 0.0 && self.tolerance.is_finite()) {
            bail!(
                "`ablation.tolerance` is {}, expected a positive number of nats such as 1e-6",
                self.tolerance
            );
        }
        Ok(EngineOptions {
            engine: self.engine,
            tolerance: self.tolerance,
            exact: self.exact_sums,
        })
    }
}

/// Neurons that stay together in a shard: products of matrices go in blocks, and another cut through them changes last bits.
const SHARD_BLOCK: usize = 64;

/// One of several parts, counted from 1, of whole blocks of [`SHARD_BLOCK`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Shard {
    pub(crate) part: usize,
    pub(crate) of: usize,
}

impl TryFrom<String> for Shard {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(part, of)| {
            let number = |text: &str| text.trim().parse().ok();
            Some((number(part)?, number(of)?))
        });
        match numbers {
            Some((part, of)) if (1..=of).contains(&part) => Ok(Self { part, of }),
            _ => Err(format!(
                "expected a part of several such as `1/4` (to `4/4`), found `{text}`"
            )),
        }
    }
}

impl From<Shard> for String {
    fn from(Shard { part, of }: Shard) -> Self {
        format!("{part}/{of}")
    }
}

impl Shard {
    /// Its part of a list; empty where there are fewer blocks than parts.
    fn take(self, list: &[usize]) -> Vec<usize> {
        let blocks = list.len().div_ceil(SHARD_BLOCK);
        let end = |part: usize| (blocks * part / self.of * SHARD_BLOCK).min(list.len());
        list[end(self.part - 1)..end(self.part)].to_vec()
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected `all`, a range like `0..64` (its end left out), or a list like `[3, 17]`"
)]
pub(crate) enum Neurons {
    All(All),
    Range(Span),
    List(Vec<usize>),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum All {
    All,
}

impl Default for Neurons {
    fn default() -> Self {
        Self::All(All::All)
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OutputConfig {
    pub(crate) dir: PathBuf,
    /// Whether to write a row per (neuron, position).
    #[serde(default = "default_true", deserialize_with = "job_kit::switch")]
    pub(crate) positions: bool,
    /// `parquet` or `feather`, for the table of positions.
    #[serde(default)]
    pub(crate) format: PositionFormat,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PositionFormat {
    #[default]
    Parquet,
    Feather,
}

fn default_seed() -> u64 {
    42
}
fn default_batch() -> usize {
    8
}
fn default_variants() -> Vec<VariantName> {
    vec![
        VariantName::Total,
        VariantName::FrozenLn,
        VariantName::FrozenAll,
        VariantName::FrozenBand,
    ]
}
fn default_doses() -> Vec<Dose> {
    vec![Dose::Mean]
}
fn default_kinds() -> Vec<ControlKind> {
    vec![ControlKind::Random, ControlKind::Matched]
}
fn default_draws() -> usize {
    3
}
fn default_tolerance() -> f64 {
    EngineOptions::default().tolerance
}
fn default_floor() -> f64 {
    1e-6
}
fn default_resamples() -> usize {
    1000
}
fn default_memory() -> usize {
    1024
}
fn default_true() -> bool {
    true
}

impl Neurons {
    /// The neurons of a layer of `d_mlp`.
    fn resolve(&self, d_mlp: usize) -> anyhow::Result<Vec<usize>> {
        match self {
            Self::List(list) => Ok(list.clone()),
            Self::All(_) => Ok((0..d_mlp).collect()),
            Self::Range(span) if span.range().end > d_mlp => bail!(
                "`ablation.neurons` is `{span}`, but the last MLP layer has neurons 0 to {}: end the range at {d_mlp} at most",
                d_mlp - 1
            ),
            Self::Range(span) => Ok(span.range().collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_all_of_a_list_once() {
        let list: Vec<usize> = (0..1000).collect();
        for of in 1..=16 {
            let shards = (1..=of).map(|part| Shard { part, of }.take(&list));
            let sizes: Vec<usize> = shards.clone().map(|shard| shard.len()).collect();
            let least = 16 / of * SHARD_BLOCK;
            // The last block is not full.
            assert!(
                sizes
                    .iter()
                    .all(|&size| size + 24 >= least && size <= least + SHARD_BLOCK),
                "{sizes:?}"
            );
            assert_eq!(shards.flatten().collect::<Vec<_>>(), list);
        }
        for text in ["0/4", "5/4", "1", "1/0", "a/b", "1/2/3"] {
            assert!(Shard::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
