//! The shape of the YAML, and its conversion into library options.

use std::{collections::BTreeMap, error::Error, path::PathBuf, str::FromStr};

use anyhow::{Context, bail};
use job_inputs::{
    BandConfig, CorpusConfig, FrequencyConfig, MeansConfig, ModelConfig, NeuronsConfig, Sequences,
};
use job_kit::{Rule, Rules, Span};
use longtail_corpus::BandReading;
use neox_core::Architecture;
use neuron_ablate::{
    AblateError, BandToken, Direction, Dose, Engine, EngineOptions, ExactSums, FrozenKl, HeadId,
    KlDirection, MeanOver, NeuronId, NullDirections, OutsideBand, Semantics, Variants,
};
use neuron_select::ControlOptions;
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
    /// Bands beside the long-tail one, by name: their divergences, and direct effects with their frequency direction frozen.
    #[serde(default)]
    pub(crate) bands: BTreeMap<String, BandConfig>,
    pub(crate) semantics: SemanticsConfig,
    pub(crate) ablation: AblationConfig,
    /// Over which text the means are taken that neurons and heads are set to.
    #[serde(default)]
    pub(crate) means: MeansConfig,
    /// Sets of neurons changed together, beside the neurons one by one.
    #[serde(default)]
    pub(crate) sets: Option<SetsConfig>,
    /// A folder in whose folders the shards of this run are (`ablation.shard`): their tables are put together, and nothing is computed.
    #[serde(default)]
    pub(crate) merge: Option<PathBuf>,
    #[serde(default = "job_kit::default_seed")]
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
                "sets.controls.caliper",
                |config, _| config["sets"]["controls"]["match"] == "activation-and-norm",
                "controls of the same mean activation and output norm are the nearest ones, however far away",
            ),
            Rule::unused(
                "ablation.heads",
                |config, _| !config["ablation"]["shard"].is_null() || !config["merge"].is_null(),
                "heads are few: they are measured in a run of their own, not in shards (`ablation.shard`, `merge`)",
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
        rules.extend(Rule::under("corpus", CorpusConfig::rules_for_models()));
        rules.extend(Rule::under("band", BandConfig::rules(corrected)));
        rules.extend(Rule::under("bands.*", BandConfig::rules(corrected)));
        rules.extend(Rule::under("sets.neurons", NeuronsConfig::rules()));
        rules
    }
}

/// Why a key of `semantics` is not used.
const NO_BAND: &str = "there is no band of tokens that it would be about (`band=tail` takes one, or set `band.lower` and `band.upper`)";

/// Whether a resolved configuration has a long-tail band; there are no further ones without it.
fn has_band(config: &serde_json::Value) -> bool {
    let band = &config["band"];
    !(band["lower"].is_null() && band["upper"].is_null())
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
        Semantics::corrected()
            .with_direction(self.direction)
            .with_outside_band(self.outside_band)
            .with_kl(self.kl)
            .with_frozen_kl(self.frozen_kl)
            .with_mean_activation(self.mean_activation)
            .with_band_token(self.band_token)
    }

    /// The reading that these choices are, by its name in `configs/semantics`; `own` for any other.
    pub(crate) fn name(&self) -> &'static str {
        let readings = [
            ("corrected", Semantics::corrected(), BandReading::Corrected),
            ("liu2025", Semantics::liu2025(), BandReading::Liu2025),
            ("stolfo2024", Semantics::stolfo2024(), BandReading::Liu2025),
        ];
        let own = (self.to_options(), self.band_reading);
        let published = readings
            .into_iter()
            .find(|(_, options, band)| own.0 == *options && own.1 == *band);
        match (published, self.unseen_tokens) {
            (Some((name, ..)), UnseenTokens::Kept) => name,
            _ => "own",
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AblationConfig {
    /// `last`, `all`, a layer, or a list of layers; without it the last one, or those that `neurons` names.
    #[serde(default)]
    layer: Option<Layers>,
    /// In each of the layers: `all`, a range `0..64`, or a list; or neurons of layers of their own, `["0.17", "3.5"]`. An empty list, beside
    /// `heads`, for none.
    #[serde(default)]
    neurons: Neurons,
    /// Attention heads, set to their mean output or as `dose` says: `all` those of the layers, or a list `["0.3", "2.1"]`.
    #[serde(default)]
    heads: Option<Heads>,
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
    /// Other neurons of the layer, as many and changed alike.
    #[serde(default)]
    pub(crate) controls: ControlOptions,
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

/// What a run ablates one by one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Components {
    /// Neurons of the last layer, which has a closed form.
    pub(crate) last: Vec<usize>,
    /// Neurons of other layers, in the order of the layers.
    pub(crate) earlier: Vec<NeuronId>,
    /// In the order of the layers.
    pub(crate) heads: Vec<HeadId>,
}

impl Components {
    /// All neurons, in the order of the layers; `last` is the number of the last one.
    pub(crate) fn neurons(&self, last: usize) -> Vec<NeuronId> {
        let in_last = self.last.iter().map(|&neuron| NeuronId {
            layer: last,
            neuron,
        });
        self.earlier.iter().copied().chain(in_last).collect()
    }
}

impl AblationConfig {
    /// Whether there will be a table of neurons.
    pub(crate) fn has_neurons(&self) -> bool {
        !self.neurons.is_none()
    }

    /// Whether there will be a table of heads.
    pub(crate) fn has_heads(&self) -> bool {
        self.heads.is_some()
    }

    /// The neurons and heads of a model that this run ablates.
    pub(crate) fn components(&self, model: &Architecture) -> anyhow::Result<Components> {
        let last = model.num_hidden_layers - 1;
        let d_mlp = usize::try_from(model.intermediate_size)?;
        let layers = match &self.layer {
            Some(layers) => layers.resolve(last)?,
            None => vec![last],
        };
        let layers_asked = self.layer.as_ref().map(|_| layers.as_slice());
        let all = self.neurons.resolve(&layers, layers_asked, (last, d_mlp))?;
        if all.is_empty() && self.heads.is_none() {
            bail!(
                "`ablation.neurons` names no neuron, and there are no `ablation.heads`: name some, or `all`"
            );
        }
        let neurons = match self.shard {
            None => all,
            Some(shard) => {
                let taken = shard.take(&all);
                if taken.is_empty() {
                    bail!(
                        "`ablation.shard` is {}, but {} neurons make {} shards at most, of {SHARD_BLOCK} neurons",
                        String::from(shard),
                        all.len(),
                        all.len().div_ceil(SHARD_BLOCK)
                    );
                }
                taken
            }
        };
        if self.heads.is_some() && self.dose == Dose::ClipAtMean {
            return Err(AblateError::HeadDose)
                .context("`ablation.dose` does not fit `ablation.heads`");
        }
        let heads = match &self.heads {
            None => Vec::new(),
            Some(heads) => {
                let n_heads = usize::try_from(model.num_attention_heads)?;
                heads.resolve(&layers, layers_asked, (last, n_heads))?
            }
        };
        Ok(Components {
            last: neurons
                .iter()
                .filter(|n| n.layer == last)
                .map(|n| n.neuron)
                .collect(),
            earlier: neurons.into_iter().filter(|n| n.layer != last).collect(),
            heads,
        })
    }

    pub(crate) fn variants(&self) -> Variants {
        let wanted = |name| self.variants.contains(&name);
        Variants::total()
            .with_frozen_ln(wanted(VariantName::FrozenLn))
            .with_frozen_all(wanted(VariantName::FrozenAll))
            .with_frozen_bands(wanted(VariantName::FrozenBand))
    }

    pub(crate) fn engine(&self) -> anyhow::Result<EngineOptions> {
        if !(self.tolerance > 0.0 && self.tolerance.is_finite()) {
            bail!(
                "`ablation.tolerance` is {}, expected a positive number of nats such as 1e-6",
                self.tolerance
            );
        }
        Ok(EngineOptions::default()
            .with_engine(self.engine)
            .with_tolerance(self.tolerance)
            .with_exact(self.exact_sums))
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
    fn take<T: Clone>(self, list: &[T]) -> Vec<T> {
        let blocks = list.len().div_ceil(SHARD_BLOCK);
        let end = |part: usize| (blocks * part / self.of * SHARD_BLOCK).min(list.len());
        list[end(self.part - 1)..end(self.part)].to_vec()
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected `all`, a range like `0..64` (its end left out), a list like `[3, 17]`, or names in quotes like `[\"0.3\", \"3.17\"]`"
)]
pub(crate) enum Neurons {
    All(All),
    Range(Span),
    List(Vec<usize>),
    Named(Vec<String>),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected `last`, `all`, a layer counted from 0, or a list like `[0, 3]`"
)]
enum Layers {
    Last(Last),
    All(All),
    One(usize),
    List(Vec<usize>),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Last {
    Last,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected `all`, or heads in quotes like `[\"0.3\", \"2.1\"]`"
)]
enum Heads {
    All(All),
    Named(Vec<String>),
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
    #[serde(default = "job_kit::on", deserialize_with = "job_kit::switch")]
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

impl Layers {
    /// Layers in ascending order.
    fn resolve(&self, last: usize) -> anyhow::Result<Vec<usize>> {
        let mut layers = match self {
            Self::Last(_) => vec![last],
            Self::All(_) => (0..=last).collect(),
            Self::One(layer) => vec![*layer],
            Self::List(layers) => layers.clone(),
        };
        if layers.is_empty() {
            bail!(
                "`ablation.layer` is an empty list: name layers from 0 to {last}, `last` or `all`"
            );
        }
        if let Some(layer) = layers.iter().find(|&&layer| layer > last) {
            bail!("`ablation.layer` has layer {layer}, but the model has layers 0 to {last}");
        }
        layers.sort_unstable();
        Ok(layers)
    }
}

impl Neurons {
    /// Whether it is an empty list.
    fn is_none(&self) -> bool {
        match self {
            Self::All(_) | Self::Range(_) => false,
            Self::List(list) => list.is_empty(),
            Self::Named(list) => list.is_empty(),
        }
    }

    /// The neurons in the order of their layers, of a model whose `layers.0` is the last, each of `layers.1` neurons.
    fn resolve(
        &self,
        layers: &[usize],
        asked: Option<&[usize]>,
        (last, d_mlp): (usize, usize),
    ) -> anyhow::Result<Vec<NeuronId>> {
        let in_each = |neurons: &mut dyn Iterator<Item = usize>| -> Vec<NeuronId> {
            let neurons: Vec<usize> = neurons.collect();
            let in_layer = |&layer: &usize| {
                let neurons = neurons.iter();
                neurons.map(move |&neuron| NeuronId { layer, neuron })
            };
            layers.iter().flat_map(in_layer).collect()
        };
        let ids = match self {
            Self::Named(names) => named("ablation.neurons", names, asked, |n: &NeuronId| n.layer)?,
            Self::List(list) => in_each(&mut list.iter().copied()),
            Self::All(_) => in_each(&mut (0..d_mlp)),
            Self::Range(span) if span.range().end > d_mlp => bail!(
                "`ablation.neurons` is `{span}`, but an MLP layer has neurons 0 to {}: end the range at {d_mlp} at most",
                d_mlp - 1
            ),
            Self::Range(span) => in_each(&mut span.range()),
        };
        existing(
            "ablation.neurons",
            "neurons",
            ids,
            |n| (n.layer, n.neuron),
            (last, d_mlp),
        )
    }
}

impl Heads {
    /// As [`Neurons::resolve`].
    fn resolve(
        &self,
        layers: &[usize],
        asked: Option<&[usize]>,
        (last, n_heads): (usize, usize),
    ) -> anyhow::Result<Vec<HeadId>> {
        let ids = match self {
            Self::Named(names) if names.is_empty() => {
                bail!("`ablation.heads` is an empty list: name heads, `all`, or null")
            }
            Self::Named(names) => named("ablation.heads", names, asked, |h: &HeadId| h.layer)?,
            Self::All(_) => {
                let of_layer =
                    |&layer: &usize| (0..n_heads).map(move |head| HeadId { layer, head });
                layers.iter().flat_map(of_layer).collect()
            }
        };
        existing(
            "ablation.heads",
            "heads",
            ids,
            |h| (h.layer, h.head),
            (last, n_heads),
        )
    }
}

/// What names stand for, all of them in the layers that were asked for, if any were.
fn named<T: FromStr<Err: Error + Send + Sync + 'static>>(
    key: &str,
    names: &[String],
    asked: Option<&[usize]>,
    layer: impl Fn(&T) -> usize,
) -> anyhow::Result<Vec<T>> {
    let mut found = Vec::with_capacity(names.len());
    for name in names {
        let id = name
            .parse()
            .with_context(|| format!("failed to read `{key}`"))?;
        let layer = layer(&id);
        if let Some(asked) = asked.filter(|asked| !asked.contains(&layer)) {
            bail!(
                "`{key}` names {name}, which is in layer {layer}, but `ablation.layer` asks for {asked:?}: names have their layer, so leave `ablation.layer` out"
            );
        }
        found.push(id);
    }
    Ok(found)
}

/// The same in the order of layers, if the model has them all.
fn existing<T: Ord>(
    key: &str,
    what: &str,
    mut ids: Vec<T>,
    place: impl Fn(&T) -> (usize, usize),
    (last, width): (usize, usize),
) -> anyhow::Result<Vec<T>> {
    if let Some((layer, index)) = ids
        .iter()
        .map(&place)
        .find(|&(l, i)| l > last || i >= width)
    {
        bail!(
            "`{key}` has {layer}.{index}, but the model has layers 0 to {last} of {what} 0 to {}",
            width - 1
        );
    }
    ids.sort_by_key(|id| place(id).0);
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_have_the_names_of_their_files() {
        for name in ["corrected", "liu2025", "stolfo2024"] {
            let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/semantics");
            let file = std::fs::read_to_string(format!("{root}/{name}.yaml")).unwrap();
            let mut semantics: SemanticsConfig = serde_yaml::from_str(&file).unwrap();
            assert_eq!(semantics.name(), name);
            semantics.unseen_tokens = UnseenTokens::LeftOut;
            assert_eq!(semantics.name(), "own");
        }
    }

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
