//! The shape of the YAML that jobs share.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use checkpoint_source::Source;
use job_kit::{Rule, Rules};
use model_conventions::{StepNames, Steps, step_of_folder};
use neuron_ablate::Sample;
use serde::{Deserialize, Deserializer, Serialize};

/// A token: its id, or the text that the tokenizer has for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a token such as `<|endoftext|>`, or its id"
)]
pub enum TokenName {
    /// The id.
    Id(i64),
    /// As the tokenizer spells it.
    Text(String),
}

/// A checkpoint: a folder, or a revision on the hub.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// A local folder with `config.json` and weights.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// Or a repository on the Hugging Face hub, with a revision.
    #[serde(default)]
    pub repo: Option<String>,
    /// `step3000`, `main`.
    #[serde(default)]
    pub revision: Option<String>,
    /// Several checkpoints, named by their step (`step<N>`, `checkpoint-<N>`, ...): `all`, `log`, steps, ranges, tokens seen.
    #[serde(default)]
    pub steps: Option<Steps>,
    /// Whether to use checkpoints that an audit found bad.
    #[serde(default)]
    pub allow_bad: bool,
    /// A file with a hub token, for gated repositories.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// `tokenizer.json`; by default the one beside the weights.
    #[serde(default)]
    pub tokenizer: Option<PathBuf>,
    /// The token put before each text, and the one behind it: as text or id; needed where neither `config.json` nor the tokenizer says it.
    #[serde(default)]
    pub bos_token: Option<TokenName>,
    /// See `bos_token`.
    #[serde(default)]
    pub eos_token: Option<TokenName>,
    /// What a piece that begins a word begins with in the vocabulary, such as `▁`; needed where the tokenizer does not say it.
    #[serde(default)]
    pub word_start: Option<String>,
    /// `auto`, `cpu` or `cuda:0`.
    #[serde(default = "default_device")]
    pub device: String,
    /// `f32`, `f16` or `bf16`.
    #[serde(default = "default_dtype")]
    pub dtype: String,
}

impl Rules for ModelConfig {
    fn rules() -> Vec<Rule> {
        vec![
            Rule::one_of(&["path", "repo"]),
            Rule::made_for("tokenizer", &["path", "repo"]),
            Rule::belongs("revision", &["path", "repo"]),
            Rule::belongs("token_file", &["repo"]),
        ]
    }
}

impl ModelConfig {
    /// `tokenizer.json`: the one that is set, or the one beside the weights, or else beside the folder `step<N>` that holds them; none if there
    /// is none.
    pub fn tokenizer_file(&self, checkpoint: &Path) -> Option<PathBuf> {
        if let Some(path) = &self.tokenizer {
            return Some(path.clone());
        }
        let is_step = step_of_folder(checkpoint).is_some();
        [Some(checkpoint), checkpoint.parent().filter(|_| is_step)]
            .into_iter()
            .flatten()
            .map(|folder| folder.join("tokenizer.json"))
            .find(|file| file.exists())
    }
}

/// Names of the revisions of `steps` (`model.steps`), in the order of their steps.
///
/// # Errors
/// If the source cannot be listed, or has none of them.
pub fn revisions(steps: &Steps, source: &Source) -> anyhow::Result<Vec<String>> {
    let there = series(source)?;
    let steps = steps
        .resolve(&there)
        .context("failed to choose checkpoints (`model.steps`)")?;
    let names = steps.iter().filter_map(|&step| there.name(step));
    Ok(names.map(str::to_owned).collect())
}

/// The checkpoints of a source that are named by their step; what else there is is told.
///
/// # Errors
/// If the source cannot be listed, or has none.
pub fn series(source: &Source) -> anyhow::Result<StepNames> {
    let there = source.steps()?;
    let others = there.others().join(", ");
    if there.steps().next().is_none() {
        let others = match &*others {
            "" => String::new(),
            others => format!("; there are {others}"),
        };
        bail!(
            "{source} has no checkpoints that are named by their step, such as `step512`{others}"
        );
    }
    if !others.is_empty() {
        tracing::info!("{source}: left out, as their names are no steps: {others}");
    }
    Ok(there)
}

/// Where token frequencies come from.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrequencyConfig {
    /// Token counts (`.npy`, JSON, Parquet or another table).
    pub counts: PathBuf,
}

/// Which sequences of the sample are measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected how many sequences to draw, 1 or more, or a list like `[0, 9, 10]`"
)]
pub enum Sequences {
    /// So many, drawn by seed.
    Draw(NonZeroUsize),
    /// These.
    #[serde(deserialize_with = "some")]
    List(Vec<usize>),
}

fn some<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<usize>, D::Error> {
    let list = Vec::deserialize(deserializer)?;
    match list.is_empty() {
        true => Err(serde::de::Error::custom("the list is empty")),
        false => Ok(list),
    }
}

/// A set of neurons: a file of analyze-unigram, or a list.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NeuronsConfig {
    /// `selection.csv` of analyze-unigram, or of the Python package of Liu et al. (2025): `step`, `top_neurons`.
    #[serde(default)]
    pub file: Option<PathBuf>,
    /// The row of the file; needed where it has several.
    #[serde(default)]
    pub step: Option<u64>,
    /// Or the neurons as text: `["3.17", "3.42"]`.
    #[serde(default)]
    pub list: Option<Vec<String>>,
    /// Only the first of the row or list.
    #[serde(default)]
    pub top: Option<usize>,
}

impl Rules for NeuronsConfig {
    fn rules() -> Vec<Rule> {
        vec![
            Rule::one_of(&["file", "list"]),
            Rule::belongs("step", &["file"]),
            Rule::unused(
                "top",
                |_, neurons| neurons["file"].is_null() && neurons["list"].is_null(),
                "there are neither `file` nor `list` of neurons",
            ),
        ]
    }
}

impl Sequences {
    /// The sequences of a sample.
    pub fn resolve(&self, sample: &Sample, seed: u64) -> Vec<usize> {
        match self {
            Self::Draw(count) => sample.draw(count.get(), seed),
            Self::List(list) => list.clone(),
        }
    }
}

fn default_device() -> String {
    "auto".into()
}
fn default_dtype() -> String {
    "f32".into()
}

/// Bytes of a setting in mebibytes, named `key`.
///
/// # Errors
/// If it is 0, or more than a machine can address.
pub fn mebibytes(key: &str, mib: usize) -> anyhow::Result<usize> {
    match mib.checked_mul(1 << 20) {
        Some(bytes) if bytes > 0 => Ok(bytes),
        _ => bail!(
            "`{key}` is {mib}, expected a number of MiB such as 1024, from 1 to what this machine has"
        ),
    }
}
