//! Whether neurons are measured on the text that selected them.

use std::{
    collections::BTreeSet,
    ops::Range,
    path::{Path, PathBuf},
};

use anyhow::Context;
use job_kit::{Paths, RunRecord, Span, output::RUN_RECORD};
use neuron_ablate::Sample;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use text_inputs::CorpusConfig;

use crate::Sequences;

/// The text that neurons were selected on: what the ablation read whose tables analyze-unigram selected from.
#[derive(Debug, Clone)]
pub struct SelectedOn {
    corpus: CorpusConfig,
    sequences: Option<Sequences>,
    seed: u64,
}

/// What is measured, and may have been selected on.
#[derive(Debug, Clone, Copy)]
pub enum MeasuredOn<'m> {
    /// These sequences of a sample of a corpus.
    Sequences(&'m CorpusConfig, &'m Sample, &'m [usize]),
    /// Text of a corpus, all of it.
    Text(&'m CorpusConfig),
}

impl SelectedOn {
    /// What the `run.json` beside a file of neurons says; none where there is none, or it is not of analyze-unigram or of an ablation that
    /// says it.
    ///
    /// # Errors
    /// If there is one, and it cannot be read.
    pub fn find(neurons: &Path) -> anyhow::Result<Option<Self>> {
        let Some(run) = run_beside(neurons)? else {
            return Ok(None);
        };
        let at = |pointer: &str| run.pointer(pointer).cloned().unwrap_or_default();
        Ok(read(at("/notes/ablation/corpus")).map(|corpus| Self {
            corpus,
            sequences: read(at("/notes/ablation/ablation/sequences")),
            seed: read(at("/notes/ablation/seed")).unwrap_or_default(),
        }))
    }

    /// Which text both have, in words; none where they have none. The same file at another place counts as another text.
    pub fn shares(&self, measured: MeasuredOn<'_>) -> Option<String> {
        let (MeasuredOn::Sequences(corpus, ..) | MeasuredOn::Text(corpus)) = measured;
        if self.corpus.tokens.is_some() || corpus.tokens.is_some() {
            let same = file(self.corpus.tokens.as_deref()?) == file(corpus.tokens.as_deref()?);
            return match measured {
                MeasuredOn::Sequences(_, sample, sequences) if same => {
                    self.sequences_of(sample, sequences)
                }
                _ => None,
            };
        }
        let files = |paths: Option<&Paths>| -> BTreeSet<PathBuf> {
            let list = paths.into_iter().flat_map(Paths::list);
            list.map(|path| file(path)).collect()
        };
        let (own, others) = (
            files(self.corpus.path.as_ref()),
            files(corpus.path.as_ref()),
        );
        own.intersection(&others).next()?;
        let rows = |corpus: &CorpusConfig| match &corpus.rows {
            Some(rows) => Span::range(rows),
            None => 0..usize::MAX,
        };
        let (own_rows, other_rows) = (rows(&self.corpus), rows(corpus));
        // The rows count over all files.
        if own != others {
            return Some(format!("some files of {}", corpus.named()));
        }
        // Read in the same way, sequences of both have the same numbers.
        let same = own_rows == other_rows
            && self.corpus.context_length == corpus.context_length
            && self.corpus.column == corpus.column
            && self.corpus.text_unit == corpus.text_unit;
        match measured {
            MeasuredOn::Sequences(_, sample, sequences) if same => {
                self.sequences_of(sample, sequences)
            }
            _ => {
                let both = own_rows.start.max(other_rows.start)..own_rows.end.min(other_rows.end);
                (!both.is_empty()).then(|| format!("{} of {}", in_words(&both), corpus.named()))
            }
        }
    }

    /// Of sequences of the same sample, those of documents that both have.
    fn sequences_of(&self, sample: &Sample, sequences: &[usize]) -> Option<String> {
        let selected_on = match &self.sequences {
            Some(selected_on) => selected_on.resolve(sample, self.seed),
            None => (0..sample.sequences().len()).collect(),
        };
        let documents = sample.documents();
        let text = |sequence: &usize| {
            let document = documents.and_then(|d| d.get(*sequence));
            *document.unwrap_or(sequence)
        };
        let own: BTreeSet<usize> = selected_on.iter().map(text).collect();
        let shared = sequences
            .iter()
            .filter(|sequence| own.contains(&text(sequence)));
        match shared.count() {
            0 => None,
            n => Some(format!(
                "{n} of the {} sequences, or others of their documents",
                sequences.len()
            )),
        }
    }
}

/// Holds what is measured against what neurons of a file were selected on: where both have text, that is a warning, with `instead` as what to
/// do; the record has the answer as `selected_on_measured_text`. No file is a list of neurons, of which nothing is known.
///
/// # Errors
/// As [`SelectedOn::find`].
pub fn note_overlap(
    (neurons, key): (Option<&Path>, &str),
    measured: Option<MeasuredOn<'_>>,
    instead: &str,
    record: &mut RunRecord,
) -> anyhow::Result<Option<bool>> {
    let selected_on = neurons.map(SelectedOn::find).transpose()?.flatten();
    let (Some(selected_on), Some(measured)) = (selected_on, measured) else {
        record.note("selected_on_measured_text", json!(null));
        return Ok(None);
    };
    let shared = selected_on.shares(measured);
    record.note("selected_on_measured_text", json!(shared.is_some()));
    if let Some(shared) = &shared {
        record.warn(format!(
            "the neurons of `{key}` were selected on text that they are measured on here ({shared}), which flatters them: {instead}"
        ));
    }
    Ok(Some(shared.is_some()))
}

/// The corpus that contexts are from, as the `run.json` of prepare-context beside their file says; none where there is none.
///
/// # Errors
/// If there is one, and it cannot be read.
pub fn corpus_of_contexts(contexts: &Path) -> anyhow::Result<Option<CorpusConfig>> {
    let run = run_beside(contexts)?.filter(|run| run["job"] == "prepare-context");
    Ok(run.and_then(|run| read(run["config"]["corpus"].clone())))
}

/// The `run.json` in the folder of a file, if it is one of the files that the run wrote.
fn run_beside(path: &Path) -> anyhow::Result<Option<Value>> {
    let beside = path.with_file_name(RUN_RECORD);
    let text = match std::fs::read(&beside) {
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.with_context(|| format!("failed to read `{}`", beside.display()))?,
    };
    let run: Value = serde_json::from_slice(&text)
        .with_context(|| format!("`{}` is not JSON", beside.display()))?;
    let name = path.file_name().and_then(|name| name.to_str());
    let wrote = name.is_some_and(|name| run["outputs"].get(name).is_some());
    Ok(wrote.then_some(run))
}

fn read<T: DeserializeOwned>(value: Value) -> Option<T> {
    serde_json::from_value(value).ok()
}

/// A path by which the same file is the same.
fn file(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

fn in_words(rows: &Range<usize>) -> String {
    match rows.end {
        usize::MAX if rows.start == 0 => "all rows".to_owned(),
        usize::MAX => format!("the rows from {} on", rows.start),
        end => format!("rows {}..{end}", rows.start),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corpus(text: &str) -> anyhow::Result<CorpusConfig> {
        Ok(serde_yaml::from_str(text)?)
    }

    fn selected_on(text: &str) -> anyhow::Result<SelectedOn> {
        Ok(SelectedOn {
            corpus: corpus(text)?,
            sequences: Some(Sequences::List(vec![0, 3])),
            seed: 42,
        })
    }

    #[test]
    fn rows_of_the_same_files_overlap() -> anyhow::Result<()> {
        let selected = selected_on("{path: a.jsonl, rows: 0..150}")?;
        let shares = |text: &str| -> anyhow::Result<Option<String>> {
            Ok(selected.shares(MeasuredOn::Text(&corpus(text)?)))
        };
        assert_eq!(shares("{path: a.jsonl, rows: 150..600}")?, None);
        assert_eq!(shares("{path: b.jsonl}")?, None);
        assert_eq!(shares("{tokens: a.npy}")?, None);
        let both = shares("{path: a.jsonl, rows: 100..600}")?;
        assert_eq!(both.as_deref(), Some("rows 100..150 of `a.jsonl`"));
        assert!(shares("{path: [a.jsonl, b.jsonl]}")?.is_some());
        let all = selected_on("path: a.jsonl")?;
        let both = all.shares(MeasuredOn::Text(&corpus("path: a.jsonl")?));
        assert_eq!(both.as_deref(), Some("all rows of `a.jsonl`"));
        Ok(())
    }

    #[test]
    fn other_sequences_of_the_same_text_are_apart() -> anyhow::Result<()> {
        let selected = selected_on("{path: a.jsonl, rows: 0..150}")?;
        let same = corpus("{path: a.jsonl, rows: 0..150}")?;
        let sample = Sample::new(vec![vec![0; 6]; 6], &[], 10)?;
        let shares = |sample: &Sample, sequences: &[usize]| {
            selected.shares(MeasuredOn::Sequences(&same, sample, sequences))
        };
        assert_eq!(shares(&sample, &[1, 2]), None);
        assert!(shares(&sample, &[1, 3]).is_some());
        // Sequence 2 is of the document of sequence 3.
        let sample = sample.from_documents(vec![0, 1, 2, 2, 3, 4])?;
        assert!(shares(&sample, &[1, 2]).is_some());
        Ok(())
    }
}
