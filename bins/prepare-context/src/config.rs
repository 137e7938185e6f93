//! The shape of the YAML, and its conversion into library options.

use std::path::PathBuf;

use anyhow::bail;
use job_kit::{Rule, Rules};
use longtail_corpus::{Choice, ContextOptions, ContextReading, SentenceRule, Split};
use serde::{Deserialize, Serialize};
use text_inputs::{CorpusConfig, NormsConfig};

/// The whole configuration of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PrepareConfig {
    pub(crate) words: WordsConfig,
    /// Frequencies of words, instead of those that come with the words.
    #[serde(default)]
    pub(crate) norms: Option<NormsConfig>,
    pub(crate) corpus: CorpusConfig,
    /// A corpus whose texts give no contexts.
    #[serde(default)]
    pub(crate) exclude: Option<CorpusConfig>,
    pub(crate) contexts: ContextsConfig,
    pub(crate) split: SplitConfig,
    #[serde(default = "job_kit::default_seed")]
    pub(crate) seed: u64,
    pub(crate) output: OutputConfig,
}

impl Rules for PrepareConfig {
    fn rules() -> Vec<Rule> {
        let mut rules = vec![
            Rule::one_of(&["words.path", "words.list"]),
            Rule::belongs("words.column", &["words.path"]),
            Rule::unused(
                "seed",
                |config, _| config["contexts"]["choice"] != "random",
                "nothing is drawn: `contexts.choice` is not `random`",
            ),
            Rule::unused(
                "split.seed",
                |config, _| config["split"]["held_out"].is_null(),
                "there is no split: `split.held_out` is null",
            ),
        ];
        rules.extend(Rule::under("norms", NormsConfig::rules()));
        for corpus in ["corpus", "exclude"] {
            rules.extend(Rule::under(corpus, CorpusConfig::rules_for_text()));
        }
        rules
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WordsConfig {
    /// A table with a column of words (CSV, Parquet, JSON Lines) or a text file with a word per line.
    #[serde(default)]
    pub(crate) path: Option<PathBuf>,
    #[serde(default = "default_word_column")]
    pub(crate) column: String,
    /// Or the words themselves.
    #[serde(default)]
    pub(crate) list: Option<Vec<String>>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ContextsConfig {
    pub(crate) window: usize,
    pub(crate) per_word: usize,
    pub(crate) choice: ChoiceConfig,
    #[serde(default)]
    pub(crate) sentences: SentenceRule,
    #[serde(default)]
    pub(crate) reading: ContextReading,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ChoiceConfig {
    Random,
    TopK,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SplitConfig {
    /// The share that select-longtail held out; only those documents are searched. `null` searches all.
    #[serde(default)]
    pub(crate) held_out: Option<f64>,
    #[serde(default = "job_kit::default_seed")]
    pub(crate) seed: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OutputConfig {
    pub(crate) dir: PathBuf,
}

fn default_word_column() -> String {
    "word".into()
}

impl PrepareConfig {
    pub(crate) fn context_options(&self) -> ContextOptions {
        ContextOptions::default()
            .with_window(self.contexts.window)
            .with_contexts(self.contexts.per_word)
            .with_choice(match self.contexts.choice {
                ChoiceConfig::Random => Choice::Random { seed: self.seed },
                ChoiceConfig::TopK => Choice::TopK,
            })
            .with_sentences(self.contexts.sentences)
            .with_reading(self.contexts.reading)
    }
}

impl SplitConfig {
    pub(crate) fn to_split(self) -> anyhow::Result<Option<Split>> {
        match self.held_out {
            None => Ok(None),
            Some(share) if share > 0.0 && share <= 1.0 => Ok(Some(Split::new(share, self.seed)?)),
            Some(share) => bail!(
                "`split.held_out` is {share}, expected a share above 0 and at most 1, or null to search all documents"
            ),
        }
    }
}
