//! The shape of the YAML that jobs share.

use std::path::PathBuf;

use anyhow::{Context, bail};
use longtail_corpus::{BadRows, Bound, TextUnit};
use neox_core::Source;
use neuron_ablate::Sample;
use serde::{Deserialize, Serialize};

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
    /// Several checkpoints `step<N>`: a list of steps, or `all`.
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
    /// `auto`, `cpu` or `cuda:0`.
    #[serde(default = "default_device")]
    pub device: String,
    /// `f32`, `f16` or `bf16`.
    #[serde(default = "default_dtype")]
    pub dtype: String,
}

/// Training steps, or `all` that the source has.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a list of training steps like `[0, 512, 1000]`, or `all`"
)]
pub enum Steps {
    /// These.
    List(Vec<u64>),
    /// `all`.
    Text(String),
}

impl Steps {
    /// Names of the revisions, in order.
    ///
    /// # Errors
    /// If the list is empty, the text is not `all`, or the source cannot be listed.
    pub fn revisions(&self, source: &Source) -> anyhow::Result<Vec<String>> {
        match self {
            Self::List(steps) if steps.is_empty() => {
                bail!("`model.steps` is empty: name at least one step")
            }
            Self::List(steps) => Ok(steps.iter().map(|step| format!("step{step}")).collect()),
            Self::Text(text) if text == "all" => Ok(source
                .revisions()?
                .into_iter()
                .filter(|name| name.starts_with("step"))
                .collect()),
            Self::Text(text) => bail!(
                "`model.steps` is `{text}`, expected a list of training steps like `[0, 512, 1000]`, or `all`"
            ),
        }
    }
}

/// The text that the model reads.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorpusConfig {
    /// Text: a file, folder or glob (Parquet, Arrow, JSON Lines, CSV, TSV, plain text).
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// The column or field of the text.
    #[serde(default = "default_column")]
    pub column: String,
    /// Rows of the corpus, `0..500`.
    #[serde(default)]
    pub rows: Option<String>,
    /// Whether a row without a usable text stops the job (`fail`) or is left out and counted (`skip`).
    #[serde(default)]
    pub bad_rows: BadRows,
    /// What a document is in plain text: `line`, `paragraph` or `file`.
    #[serde(default)]
    pub text_unit: TextUnit,
    /// Tokens per sequence, BOS included.
    #[serde(default = "default_context_length")]
    pub context_length: usize,
    /// Or token ids, sequence by position (`.npy` or `.json`).
    #[serde(default)]
    pub tokens: Option<PathBuf>,
}

/// Where token frequencies come from.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrequencyConfig {
    /// Token counts (`.npy`, JSON, Parquet or another table).
    pub counts: PathBuf,
}

/// Bounds of the long-tail band; how they are read is a setting of the job.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BandConfig {
    /// One bound.
    pub lower: Option<Bound>,
    /// The other bound.
    pub upper: Option<Bound>,
    /// Ranks in the sliding window of the Python package's elbow.
    #[serde(default)]
    pub window: Option<usize>,
}

/// Which sequences of the sample are measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected how many sequences to draw, or a list like `[0, 9, 10]`"
)]
pub enum Sequences {
    /// So many, drawn by seed.
    Draw(usize),
    /// These.
    List(Vec<usize>),
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

impl Sequences {
    /// The sequences of a sample.
    pub fn resolve(&self, sample: &Sample, seed: u64) -> Vec<usize> {
        match self {
            Self::Draw(count) => sample.draw(*count, seed),
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
fn default_column() -> String {
    "text".into()
}
fn default_context_length() -> usize {
    256
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

/// `a..b`, with `a < b`.
///
/// # Errors
/// If the text is no such range.
pub fn parse_range(text: &str) -> anyhow::Result<std::ops::Range<usize>> {
    let (start, end) = text
        .split_once("..")
        .context("a range is written `start..end`")?;
    let (start, end): (usize, usize) = (start.trim().parse()?, end.trim().parse()?);
    if start >= end {
        bail!("the range `{text}` is empty");
    }
    Ok(start..end)
}
