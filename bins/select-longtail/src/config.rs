//! The shape of the YAML, and its conversion into library options.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use anyhow::bail;
use job_kit::{Rule, Rules};
use longtail_corpus::{BandReading, CasePolicy, Split, WordOptions};
use serde::{Deserialize, Serialize};
use text_inputs::{BandConfig, CorpusConfig};

/// The whole configuration of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SelectConfig {
    pub(crate) tokenizer: TokenizerConfig,
    #[serde(default)]
    pub(crate) frequency: Option<FrequencyConfig>,
    pub(crate) band: BandConfig,
    #[serde(default)]
    pub(crate) band_reading: BandReading,
    #[serde(default)]
    pub(crate) corpus: Option<CorpusConfig>,
    pub(crate) lexicon: LexiconConfig,
    pub(crate) words: WordsConfig,
    pub(crate) split: SplitConfig,
    pub(crate) output: OutputConfig,
}

impl Rules for SelectConfig {
    fn rules() -> Vec<Rule> {
        let mut rules = vec![
            Rule::made_for("tokenizer.vocab_size", &["tokenizer.path"]),
            Rule::made_for("frequency.counts", &["tokenizer.path"]),
            Rule::unused(
                "corpus.document_token",
                |config, _| !config["frequency"]["counts"].is_null(),
                "tokens are not counted: `frequency.counts` has their counts",
            ),
            Rule::unused(
                "split.held_out",
                |config, _| config["corpus"].is_null(),
                "there is no corpus whose documents could be held out",
            ),
            Rule::unused(
                "split.seed",
                |config, _| config["split"]["held_out"] == 0.0,
                "nothing is held out: `split.held_out` is 0",
            ),
        ];
        rules.extend(Rule::under("corpus", CorpusConfig::rules_for_counts()));
        let corrected: job_kit::config::When = |config, _| config["band_reading"] == "corrected";
        rules.extend(Rule::under("band", BandConfig::rules(corrected)));
        rules
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenizerConfig {
    pub(crate) path: PathBuf,
    /// Rows of the model's vocabulary, padding included; by default the tokenizer's own tokens.
    #[serde(default)]
    pub(crate) vocab_size: Option<usize>,
    /// What a piece that begins a word begins with in the vocabulary, such as `▁`; needed where the tokenizer does not say it.
    #[serde(default)]
    pub(crate) word_start: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FrequencyConfig {
    /// Token counts (`.npy`, Parquet or JSON); without them the corpus is counted.
    #[serde(default)]
    pub(crate) counts: Option<PathBuf>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LexiconConfig {
    /// Word lists (`.txt`) and Hunspell dictionaries; none for no lexicon.
    pub(crate) paths: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WordsConfig {
    pub(crate) min_length: usize,
    #[serde(default)]
    pub(crate) case: CasePolicy,
    /// So many words of the band, evenly spread over their ranks; all without it.
    #[serde(default)]
    pub(crate) rare: Option<NonZeroUsize>,
    /// Words above the band to take as well, to compare with.
    #[serde(default)]
    pub(crate) common: usize,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SplitConfig {
    /// Share of the documents that is held out: not counted here, and where prepare-context takes contexts from.
    #[serde(default)]
    pub(crate) held_out: f64,
    #[serde(default = "job_kit::default_seed")]
    pub(crate) seed: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OutputConfig {
    pub(crate) dir: PathBuf,
    #[serde(default, deserialize_with = "job_kit::switch")]
    pub(crate) plot: bool,
}

impl SelectConfig {
    /// The file of token counts; none where the corpus is counted.
    pub(crate) fn counts(&self) -> Option<&Path> {
        self.frequency.as_ref()?.counts.as_deref()
    }

    /// The band and how it is read, for the header of a figure.
    pub(crate) fn band_in_words(&self) -> String {
        let reading = match self.band_reading {
            BandReading::Corrected => "corrected",
            BandReading::Liu2025 => "liu2025",
        };
        format!("{} (reading {reading})", self.band.in_words())
    }

    pub(crate) fn word_options(&self) -> WordOptions {
        WordOptions::default()
            .with_min_length(self.words.min_length)
            .with_case(self.words.case)
            .with_rare(self.words.rare.map(NonZeroUsize::get))
            .with_common(self.words.common)
    }
}

impl SplitConfig {
    pub(crate) fn to_split(self) -> anyhow::Result<Split> {
        if !(0.0..1.0).contains(&self.held_out) {
            bail!(
                "`split.held_out` is {}, expected a share of at least 0 and below 1",
                self.held_out
            );
        }
        Ok(Split::new(self.held_out, self.seed)?)
    }
}
