//! The shape of the YAML.

use std::path::PathBuf;

use job_inputs::{BandConfig, CorpusConfig, FrequencyConfig, MeansConfig, ModelConfig};
use job_kit::{Rule, Rules};
use model_conventions::Steps;
use neuron_ablate::{Join, MeanOver, NeuronSite, WordBoundary};
use neuron_select::ControlOptions;
use serde::{Deserialize, Serialize};
use surprisal_metrics::{Unit, WordForm};
use text_inputs::NormsConfig;

use crate::interventions::InterventionSpec;

/// The whole configuration of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SurprisalConfig {
    pub(crate) model: ModelConfig,
    /// What `model.steps` was called once.
    #[serde(default)]
    pub(crate) steps: Option<Steps>,
    /// The `audit.json` of `ablate-unigram --audit`: checkpoints that it found bad are refused.
    #[serde(default)]
    pub(crate) audit: Option<PathBuf>,
    pub(crate) words: WordsConfig,
    /// Frequencies of words, instead of those that come with the contexts.
    #[serde(default)]
    pub(crate) norms: Option<NormsConfig>,
    #[serde(default)]
    pub(crate) reading: Reading,
    /// Which surprisal the figure, the summary and the wide tables show.
    #[serde(default)]
    pub(crate) form: Option<WordForm>,
    /// What ends a word, for the corrected forms.
    #[serde(default)]
    pub(crate) boundary: WordBoundary,
    #[serde(default)]
    pub(crate) unit: Unit,
    #[serde(default)]
    pub(crate) neurons: NeuronsConfig,
    pub(crate) interventions: InterventionsConfig,
    /// How control sets are drawn; draws of those entries of `interventions.list` that do not say theirs.
    #[serde(default)]
    pub(crate) controls: ControlOptions,
    /// Text over which mean activations are taken.
    pub(crate) corpus: CorpusConfig,
    /// How much of it, and where they are kept.
    #[serde(default)]
    pub(crate) means: MeansConfig,
    /// What the groups of words go by.
    #[serde(default)]
    pub(crate) groups: GroupsConfig,
    /// With a band, words with a long-tail token are told from others.
    #[serde(default)]
    pub(crate) frequency: Option<FrequencyConfig>,
    #[serde(default)]
    pub(crate) band: Option<BandConfig>,
    #[serde(default = "job_kit::default_seed")]
    pub(crate) seed: u64,
    /// A folder in whose folders runs of other steps are (a sweep over `model.steps`): their scores are put together, and nothing is computed.
    #[serde(default)]
    pub(crate) merge: Option<PathBuf>,
    /// Positions of one forward.
    #[serde(default = "default_batch_tokens")]
    pub(crate) batch_tokens: usize,
    pub(crate) output: OutputConfig,
}

impl Rules for SurprisalConfig {
    fn rules() -> Vec<Rule> {
        let mut rules = vec![
            Rule::one_of(&["model.steps", "model.revision", "steps"]),
            Rule::unused(
                "model.allow_bad",
                |config, _| config["audit"].is_null(),
                "no `audit` is read",
            ),
            Rule::one_of(&["neurons.file", "neurons.list"]),
            Rule::belongs("neurons.missing_step", &["neurons.file"]),
            Rule::made_for("neurons.list", &["model.path", "model.repo"]),
            Rule::made_for("words.min_context", &["words.path"]),
            Rule::unused(
                "neurons.top",
                |config, _| {
                    config["neurons"]["file"].is_null() && config["neurons"]["list"].is_null()
                },
                "there are neither `neurons.file` nor `neurons.list`",
            ),
            Rule::unused(
                "form",
                |config, _| config["reading"] == "liu2025" && config["form"] != "first-piece",
                "`reading=liu2025` knows the first piece alone",
            ),
            Rule::unused(
                "frequency",
                |config, _| !has_bounds(config),
                "without a band no word is told from another by its frequency (`band=tail` takes one)",
            ),
            Rule::unused(
                "band",
                |config, _| config["frequency"].is_null() && has_bounds(config),
                "a band needs token counts (`frequency.counts`)",
            ),
        ];
        rules.push(Rule::unused(
            "controls.kinds",
            |_, _| true,
            "`interventions.list` says which controls there are",
        ));
        rules.push(Rule::unused(
            "controls.caliper",
            |config, _| config["controls"]["match"] == "activation-and-norm",
            "controls of the same mean activation and output norm are the nearest ones, however far away",
        ));
        rules.push(Rule::one_of(&["groups.zipf", "groups.quantiles"]));
        rules.extend(["groups.zipf", "groups.quantiles"].map(|key| {
            let why = "`groups.by` says that words are not grouped by their frequency";
            let when: job_kit::config::When =
                |config, _| matches!(config["groups"]["by"].as_str(), Some("token-band" | "none"));
            Rule::unused(key, when, why)
        }));
        let alone = [
            "words.min_context",
            "words.max_context",
            "words.join",
            "words.bos",
        ];
        rules.extend(alone.map(|key| {
            let why = "`words.bos_only` leaves the contexts out";
            Rule::unused(key, |config, _| config["words"]["bos_only"] == true, why)
        }));
        rules.extend(["words.join", "words.bos"].map(|key| {
            let why = "`reading=liu2025` takes context and word as they are, with no token before";
            Rule::unused(key, |config, _| config["reading"] == "liu2025", why)
        }));
        rules.push(Rule::unused(
            "boundary",
            |config, _| config["reading"] == "liu2025",
            "`reading=liu2025` looks at no boundary",
        ));
        let of_neurons = ["neurons.file", "neurons.list", "interventions.site"];
        rules.extend(of_neurons.map(|key| {
            let why = "no intervention of `interventions.list` changes a neuron";
            Rule::unused(
                key,
                |config, _| interventions(config).all(|i| i == "base"),
                why,
            )
        }));
        rules.push(Rule::unused(
            "interventions.mean_over",
            |config, _| !interventions(config).any(needs_mean),
            "no intervention of `interventions.list` takes mean activations",
        ));
        // Never used here, as said above, with whatever model.
        let mut model = ModelConfig::rules();
        model.retain(|rule| rule.keys()[0] != "revision");
        rules.extend(Rule::under("model", model));
        rules.extend(Rule::under("corpus", CorpusConfig::rules_for_models()));
        rules.extend(Rule::under("norms", NormsConfig::rules()));
        rules.extend(Rule::under("band", BandConfig::rules_with_reading()));
        rules
    }
}

/// Whether the band of a resolved configuration has a bound.
fn has_bounds(config: &serde_json::Value) -> bool {
    !(config["band"]["lower"].is_null() && config["band"]["upper"].is_null())
}

/// The entries of `interventions.list` in a resolved configuration.
fn interventions(config: &serde_json::Value) -> impl Iterator<Item = &serde_json::Value> {
    let list = config["interventions"]["list"].as_array();
    list.into_iter().flatten()
}

/// Whether an entry takes mean activations, as [`InterventionSpec::needs_mean`] tells.
fn needs_mean(entry: &serde_json::Value) -> bool {
    serde_json::from_value::<InterventionSpec>(entry.clone()).is_ok_and(|spec| spec.needs_mean())
}

impl SurprisalConfig {
    /// The checkpoints that are asked for; all where it says nothing.
    pub(crate) fn steps(&self) -> Option<&Steps> {
        self.model.steps.as_ref().or(self.steps.as_ref())
    }

    /// The entries of the list, with their numbers of draws.
    pub(crate) fn interventions(&self) -> Vec<InterventionSpec> {
        let list = self.interventions.list.iter().cloned();
        list.map(|spec| spec.with_draws(self.controls.draws))
            .collect()
    }

    /// How words are read, and the band where there is one, for the header of a figure.
    pub(crate) fn in_header(&self) -> String {
        let reading = match self.reading {
            Reading::Corrected => "reading corrected",
            Reading::Liu2025 => "reading liu2025",
        };
        match self.banded() {
            Some((band, _)) => format!("{reading}, {}", band.in_words()),
            None => reading.to_owned(),
        }
    }

    /// The band of tokens, and the counts that it is found in, where there are both.
    pub(crate) fn banded(&self) -> Option<(&BandConfig, &FrequencyConfig)> {
        let band = self.band.as_ref().filter(|band| band.has_bounds());
        band.zip(self.frequency.as_ref())
    }

    /// Whether there are wide tables: where they are not asked for, with the reading of the Python package that wrote them.
    pub(crate) fn wide(&self) -> bool {
        let as_theirs = self.reading == Reading::Liu2025;
        self.output.wide.unwrap_or(as_theirs)
    }

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
    /// Words with more pieces in one of their contexts are left out and counted.
    #[serde(default)]
    pub(crate) max_pieces: Option<usize>,
    /// Contexts beyond this number are not used.
    #[serde(default)]
    pub(crate) max_context: Option<usize>,
    /// How contexts that do not say it are joined with their word (`space`). Those with a `separator` have that between them.
    #[serde(default)]
    pub(crate) join: Option<Join>,
    /// Whether the beginning-of-sequence token stands before the context.
    #[serde(default = "job_kit::on")]
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

/// Groups of words that are reported apart.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GroupsConfig {
    #[serde(default)]
    pub(crate) by: GroupBy,
    /// Bounds of the groups; whole Zipf values if none are set.
    #[serde(default)]
    pub(crate) zipf: Option<Vec<f64>>,
    /// Or so many groups of about as many words.
    #[serde(default)]
    pub(crate) quantiles: Option<usize>,
}

/// What groups of words go by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum GroupBy {
    /// The frequency of the word where it is known of any, else the band of its tokens where there is one.
    #[default]
    Auto,
    /// The frequency of the word.
    WordFrequency,
    /// Whether a piece of it is in the band: says something of its tokens, not of the word.
    TokenBand,
    /// One group.
    None,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OutputConfig {
    pub(crate) dir: PathBuf,
    /// Whether to write the shown values once more as the Python package does, a CSV file per intervention.
    #[serde(default)]
    pub(crate) wide: Option<bool>,
    /// Whether to fit learning curves.
    #[serde(default = "job_kit::on")]
    pub(crate) acquisition: bool,
    /// (word, context) pairs between two saves.
    #[serde(default = "default_chunk")]
    pub(crate) chunk: usize,
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
