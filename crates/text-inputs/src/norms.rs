//! Frequencies of words: norms such as SUBTLEX, or an export of `wordfreq`.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Context, bail};
use job_kit::{Rule, TableReader};
use serde::{Deserialize, Serialize};

/// A table of word frequencies, with the same keys in every job.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NormsConfig {
    /// The table: CSV, TSV, Parquet, Arrow, JSON Lines.
    pub path: PathBuf,
    /// Its column of words.
    #[serde(default = "default_word")]
    pub word: String,
    /// Its column of frequencies.
    #[serde(default = "default_column")]
    pub column: String,
    /// What the frequencies are.
    #[serde(default)]
    pub scale: Scale,
}

/// What a number says of how frequent a word is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scale {
    /// Zipf values: log10 of the occurrences per billion words.
    #[default]
    Zipf,
    /// Occurrences per million words.
    PerMillion,
    /// The share of all words.
    Share,
    /// Occurrences; the table is all that was counted.
    Count,
    /// log10 of the occurrences and one; the table is all that was counted.
    Log10Count,
}

impl NormsConfig {
    /// The rules of a table of word frequencies.
    pub fn rules() -> Vec<Rule> {
        ["word", "column", "scale"]
            .map(|key| Rule::made_for(key, &["path"]))
            .into()
    }
}

/// Zipf values of words.
#[derive(Debug, Clone)]
pub struct Norms(HashMap<String, f64>);

impl Norms {
    /// Reads a table.
    ///
    /// A word that never occurs has no Zipf value where the table says how often; counts have one added to each, as those of
    /// select-longtail.
    ///
    /// # Errors
    /// If the table cannot be read, a frequency is none of its scale, or a word has two.
    pub fn read(config: &NormsConfig) -> anyhow::Result<Self> {
        let failed = || {
            format!(
                "failed to read word frequencies from `{}` (`norms.path`)",
                config.path.display()
            )
        };
        let columns = TableReader::open(&config.path)
            .and_then(|table| table.read(&[&config.word, &config.column]))
            .with_context(failed)?;
        let words = columns.text(&config.word).with_context(failed)?;
        let values = columns.opt_f64(&config.column).with_context(failed)?;
        let mut by_word: HashMap<String, f64> = HashMap::with_capacity(words.len());
        for (word, value) in words.into_iter().zip(values) {
            let Some(value) = value else { continue };
            let word = word.trim();
            let signed = config.scale == Scale::Zipf;
            if !value.is_finite() || (value < 0.0 && !signed) {
                bail!(
                    "`{}` gives word `{word}` the frequency {value} in column `{}`, expected {}",
                    config.path.display(),
                    config.column,
                    match signed {
                        true => "a finite Zipf value",
                        false => "a finite number that is not negative (`norms.scale`)",
                    }
                );
            }
            let known = *by_word.entry(word.to_owned()).or_insert(value);
            if known != value {
                bail!(
                    "`{}` gives word `{word}` the frequencies {known} and {value}: keep one row for each word",
                    config.path.display()
                );
            }
        }
        Ok(Self(config.scale.zipf(by_word)))
    }

    /// The Zipf value of a word as spelled, or in lower case, as most tables have their words.
    pub fn zipf(&self, word: &str) -> Option<f64> {
        self.0
            .get(word)
            .or_else(|| self.0.get(&word.to_lowercase()))
            .copied()
    }
}

impl Scale {
    /// The Zipf values of frequencies of this scale.
    fn zipf(self, mut by_word: HashMap<String, f64>) -> HashMap<String, f64> {
        let count = |value: f64| match self {
            Self::Log10Count => 10f64.powf(value) - 1.0,
            _ => value,
        };
        let total: f64 = by_word.values().map(|&value| count(value) + 1.0).sum();
        by_word.retain(|_, value| {
            *value = match self {
                Self::Zipf => *value,
                Self::PerMillion => value.log10() + 3.0,
                Self::Share => value.log10() + 9.0,
                Self::Count | Self::Log10Count => ((count(*value) + 1.0) / total).log10() + 9.0,
            };
            value.is_finite()
        });
        by_word
    }
}

fn default_word() -> String {
    "word".into()
}
fn default_column() -> String {
    "zipf".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Columns as of SUBTLEX-US (Brysbaert & New 2009), of a text of 51 million words.
    const SUBTLEX: &str = "Word,FREQcount,SUBTLWF,Lg10WF,Share\n\
        the,1501908,29449.18,6.1766,0.02944918\n\
        whale,401,7.86,2.6042,0.00000786\n\
        Others,49497691,970543.0,7.6945849,0.970543\n\
        never,0,0,0,0\n";

    fn read(column: &str, scale: Scale, text: &str) -> anyhow::Result<Norms> {
        let file = tempfile::Builder::new().suffix(".csv").tempfile()?;
        std::fs::write(file.path(), text)?;
        Norms::read(&NormsConfig {
            path: file.path().to_owned(),
            word: "Word".into(),
            column: column.into(),
            scale,
        })
    }

    #[test]
    fn every_scale_gives_the_same_zipf_values() {
        for (column, scale) in [
            ("SUBTLWF", Scale::PerMillion),
            ("Share", Scale::Share),
            ("FREQcount", Scale::Count),
            ("Lg10WF", Scale::Log10Count),
        ] {
            let norms = read(column, scale, SUBTLEX).unwrap();
            for (word, zipf) in [("the", 7.469), ("The", 7.469), ("whale", 3.896)] {
                let found = norms.zipf(word).unwrap();
                assert!((found - zipf).abs() < 2e-3, "{column} of {word}: {found}");
            }
            assert_eq!(norms.zipf("harpoon"), None);
            // No occurrences have no logarithm; counts have one added.
            let counted = matches!(scale, Scale::Count | Scale::Log10Count);
            assert_eq!(norms.zipf("never").is_some(), counted, "{column}");
        }
    }

    #[test]
    fn what_is_no_frequency_is_named() {
        for (text, said) in [
            ("Word,zipf\nwhale,-1\n", "the frequency -1 in column `zipf`"),
            ("Word,zipf\nwhale,1\nwhale,2\n", "the frequencies 1 and 2"),
        ] {
            let error = read("zipf", Scale::PerMillion, text).unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
        }
        // Zipf values may be negative.
        let rare = read("zipf", Scale::Zipf, "Word,zipf\nwhale,-1\n").unwrap();
        assert_eq!(rare.zipf("whale"), Some(-1.0));
    }
}
