//! A corpus: text, or token ids.

use std::path::PathBuf;

use anyhow::{Context, bail};
use job_kit::{Paths, Rule, RunRecord, Span, config::When};
use longtail_corpus::{BadRows, CorpusReader, CorpusSummary, Documents, ReadOptions, TextUnit};
use serde::{Deserialize, Serialize};

/// A corpus, with the keys that it has in any job.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorpusConfig {
    /// Text: a file, folder or glob, or a list of them (Parquet, Arrow, JSON Lines, CSV, TSV, plain text).
    #[serde(default)]
    pub path: Option<Paths>,
    /// The column or field of the text.
    #[serde(default = "default_column")]
    pub column: String,
    /// Rows of the corpus, `0..500`.
    #[serde(default)]
    pub rows: Option<Span>,
    /// Whether a row without a usable text stops the job (`fail`) or is left out and counted (`skip`).
    #[serde(default)]
    pub bad_rows: BadRows,
    /// What a document is in plain text: `line`, `paragraph` or `file`.
    #[serde(default)]
    pub text_unit: TextUnit,
    /// Jobs on a model: tokens per sequence, BOS included.
    #[serde(default = "default_context_length")]
    pub context_length: usize,
    /// Jobs on a model: token ids instead of text, sequence by position (`.npy` or `.json`).
    #[serde(default)]
    pub tokens: Option<PathBuf>,
    /// Jobs that count tokens: a token counted once before each document, as in `<|endoftext|>`.
    #[serde(default)]
    pub document_token: Option<String>,
}

/// Says of any configuration that a key is not used.
const ALWAYS: When = |_, _| true;

impl CorpusConfig {
    /// The rules of a corpus that a model reads as sequences of tokens.
    pub fn rules_for_models() -> Vec<Rule> {
        let text = ["column", "bad_rows", "text_unit", "context_length"];
        let mut rules = vec![
            Rule::one_of(&["path", "tokens"]),
            Rule::made_for("rows", &["path"]),
            Rule::unused(
                "document_token",
                ALWAYS,
                "this job puts the model's own beginning of a text before each document (`model.bos_token`)",
            ),
        ];
        rules.extend(text.map(|key| Rule::belongs(key, &["path"])));
        rules
    }

    /// The rules of a corpus whose tokens are counted.
    pub fn rules_for_counts() -> Vec<Rule> {
        let why = "this job reads text (`corpus.path`), and documents whole";
        vec![
            Rule::made_for("rows", &["path"]),
            Rule::unused("tokens", ALWAYS, why),
            Rule::unused("context_length", ALWAYS, why),
        ]
    }

    /// The rules of a corpus whose text is searched.
    pub fn rules_for_text() -> Vec<Rule> {
        let mut rules = Self::rules_for_counts();
        rules.push(Rule::unused(
            "document_token",
            ALWAYS,
            "this job counts no tokens",
        ));
        rules
    }

    /// How its text is read.
    pub fn options(&self) -> ReadOptions {
        ReadOptions::default()
            .with_column(self.column.clone())
            .with_rows(self.rows.as_ref().map(Span::range))
            .with_bad_rows(self.bad_rows)
            .with_text_unit(self.text_unit)
    }

    /// Opens its text; `key` is where it stands in the configuration, such as `corpus`.
    ///
    /// # Errors
    /// If no text is named, or it cannot be opened.
    pub fn open(&self, key: &str) -> anyhow::Result<CorpusReader> {
        let Some(path) = &self.path else {
            bail!("no text: set `{key}.path` to a file, a folder or a glob");
        };
        CorpusReader::open(path.list(), self.options())
            .with_context(|| format!("failed to open the corpus (`{key}.path`)"))
    }

    /// The paths of its text, for messages.
    pub fn named(&self) -> String {
        let list = self.path.iter().flat_map(Paths::list);
        let names: Vec<String> = list.map(|path| format!("`{}`", path.display())).collect();
        names.join(", ")
    }
}

/// What one pass over a corpus has read.
#[derive(Debug, Clone)]
pub struct Reading {
    /// What was read and left out.
    pub summary: CorpusSummary,
    /// Of the bytes that were read.
    pub sha256: String,
}

impl Reading {
    /// What was read so far.
    pub fn of(documents: &Documents) -> Self {
        Self {
            summary: documents.summary().clone(),
            sha256: documents.sha256(),
        }
    }

    /// Puts counts and warnings into `record`, names of counts after `prefix`, and the hash as `{key}_sha256`.
    pub fn record(&self, key: &str, prefix: &str, record: &mut RunRecord) {
        for (what, count) in self.summary.counts() {
            record.count(&format!("{prefix}{what}"), count);
        }
        for warning in self.summary.warnings() {
            record.warn(warning);
        }
        record.note(&format!("{key}_sha256"), self.sha256.clone());
    }
}

fn default_column() -> String {
    "text".into()
}
fn default_context_length() -> usize {
    256
}
