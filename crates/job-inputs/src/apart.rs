//! Whether neurons are measured on the text that selected them.

use std::{
    collections::BTreeSet,
    ops::Range,
    path::{Path, PathBuf},
};

use anyhow::Context;
use job_kit::{Paths, RunRecord, Span, output::RUN_RECORD, sha256_file};
use longtail_corpus::KnownTexts;
use neuron_ablate::Sample;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use text_inputs::CorpusConfig;

use crate::{Sequences, corpus_sha256};

/// The text that neurons were selected on: what the ablation read whose tables analyze-unigram selected from.
#[derive(Debug, Clone)]
pub struct SelectedOn {
    corpus: CorpusConfig,
    sequences: Option<Sequences>,
    seed: u64,
    /// Of what of the corpus was read, where the run says it.
    sha256: Option<String>,
}

/// What is measured, and may have been selected on.
#[derive(Debug, Clone, Copy)]
pub enum MeasuredOn<'m> {
    /// These sequences of a sample of a corpus.
    Sequences(&'m CorpusConfig, &'m Sample, &'m [usize]),
    /// Documents of a corpus, by their rows in it; all of it where they are not known.
    Text(&'m CorpusConfig, Option<&'m BTreeSet<usize>>),
}

/// What two texts have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shared {
    /// Text, in words.
    Text(String),
    /// Nothing.
    Nothing,
    /// What the neurons were selected on is not there any more, or is token ids where the other is text.
    Unknown,
}

impl Shared {
    fn of(text: Option<String>) -> Self {
        text.map_or(Self::Nothing, Self::Text)
    }
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
            sha256: read(at(&format!("/notes/{SELECTED_ON_SHA256}"))),
        }))
    }

    /// Which text both have. Files of the same paths are told by their rows; of any others every document is looked up by its text, so that
    /// a copy at another place is known.
    ///
    /// # Errors
    /// If what is measured cannot be read.
    pub fn shares(&self, measured: MeasuredOn<'_>) -> anyhow::Result<Shared> {
        let (MeasuredOn::Sequences(corpus, ..) | MeasuredOn::Text(corpus, _)) = measured;
        let same = match (&self.corpus.tokens, &corpus.tokens) {
            (None, None) => {
                if files(&self.corpus) != files(corpus) {
                    return self.shares_documents(measured);
                }
                // Read in the same way, sequences of both have the same numbers.
                rows(&self.corpus) == rows(corpus)
                    && self.corpus.context_length == corpus.context_length
                    && self.corpus.column == corpus.column
                    && self.corpus.text_unit == corpus.text_unit
            }
            (Some(own), Some(other)) => match same_content(own, other)? {
                Some(same) => same,
                None => return Ok(Shared::Unknown),
            },
            _ => return Ok(Shared::Unknown),
        };
        if let (MeasuredOn::Sequences(_, sample, sequences), true) = (measured, same) {
            return Ok(Shared::of(self.sequences_of(sample, sequences)));
        }
        if corpus.tokens.is_some() {
            return Ok(Shared::Nothing);
        }
        let (own, other) = (rows(&self.corpus), rows(corpus));
        Ok(Shared::of(match measured.documents() {
            Some(documents) => {
                let shared = documents.iter().filter(|row| own.contains(row)).count();
                some_of(shared, documents.len(), corpus)
            }
            None => {
                let both = own.start.max(other.start)..own.end.min(other.end);
                (!both.is_empty()).then(|| format!("{} of {}", in_words(&both), corpus.named()))
            }
        }))
    }

    /// Documents of other files with the text of one of ours.
    fn shares_documents(&self, measured: MeasuredOn<'_>) -> anyhow::Result<Shared> {
        let (MeasuredOn::Sequences(corpus, ..) | MeasuredOn::Text(corpus, _)) = measured;
        let own = self.corpus.open("corpus").ok();
        let Some(known) = own.and_then(|own| KnownTexts::of(own.documents()).ok()) else {
            // The whole of it is known by its hash.
            let same = self.sha256.is_some() && self.sha256 == corpus_sha256(corpus)?;
            return Ok(match same {
                true => Shared::Text(format!("all of {}", corpus.named())),
                false => Shared::Unknown,
            });
        };
        let wanted = measured.documents();
        let (mut shared, mut all) = (0, 0);
        for document in corpus.open("corpus")?.documents() {
            let document =
                document.with_context(|| format!("failed to read {}", corpus.named()))?;
            let wanted = wanted
                .as_ref()
                .is_none_or(|rows| rows.contains(&document.index));
            if wanted && !document.text.trim().is_empty() {
                all += 1;
                shared += usize::from(known.contains(&document));
            }
        }
        Ok(Shared::of(some_of(shared, all, corpus)))
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

impl MeasuredOn<'_> {
    /// The rows of its documents in the corpus, where they are known.
    fn documents(&self) -> Option<BTreeSet<usize>> {
        match self {
            Self::Sequences(_, sample, sequences) => {
                let documents = sample.documents()?;
                let of_sequences = sequences.iter().filter_map(|&s| documents.get(s).copied());
                Some(of_sequences.collect())
            }
            Self::Text(_, documents) => documents.cloned(),
        }
    }
}

/// The key of the hash of the text that neurons were selected on, in the notes of analyze-unigram.
const SELECTED_ON_SHA256: &str = "ablation_corpus_sha256";

/// Holds what is measured against what neurons of a file were selected on: where both have text, that is a warning, with `instead` as what to
/// do; the record has the answer as `selected_on_measured_text`, null where it is not known. No file is a list of neurons, of which nothing
/// is known.
///
/// # Errors
/// As [`SelectedOn::find`] and [`SelectedOn::shares`].
pub fn note_overlap(
    (neurons, key): (Option<&Path>, &str),
    measured: Option<MeasuredOn<'_>>,
    instead: &str,
    record: &mut RunRecord,
) -> anyhow::Result<Option<bool>> {
    let selected_on = neurons.map(SelectedOn::find).transpose()?.flatten();
    let shared = match (selected_on, measured) {
        (Some(selected_on), Some(measured)) => selected_on.shares(measured)?,
        _ => Shared::Unknown,
    };
    let known = match &shared {
        Shared::Text(_) => Some(true),
        Shared::Nothing => Some(false),
        Shared::Unknown => None,
    };
    record.note("selected_on_measured_text", json!(known));
    if let Shared::Text(shared) = &shared {
        record.warn(format!(
            "the neurons of `{key}` were selected on text that they are measured on here ({shared}), which flatters them: {instead}"
        ));
    }
    Ok(known)
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

/// The paths of the text of a corpus.
fn files(corpus: &CorpusConfig) -> BTreeSet<PathBuf> {
    let list = corpus.path.iter().flat_map(Paths::list);
    list.map(|path| file(path)).collect()
}

/// Its rows, over all files.
fn rows(corpus: &CorpusConfig) -> Range<usize> {
    corpus.rows.as_ref().map_or(0..usize::MAX, Span::range)
}

/// Whether two files are the same, wherever they are; none where the first is not there any more.
fn same_content(own: &Path, other: &Path) -> anyhow::Result<Option<bool>> {
    if file(own) == file(other) {
        return Ok(Some(true));
    }
    let Ok((own, _)) = sha256_file(own) else {
        return Ok(None);
    };
    Ok(Some(own == sha256_file(other)?.0))
}

fn some_of(shared: usize, all: usize, corpus: &CorpusConfig) -> Option<String> {
    (shared > 0).then(|| format!("{shared} of {all} documents of {}", corpus.named()))
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
            sha256: None,
        })
    }

    fn text(shared: &str) -> Shared {
        Shared::Text(shared.to_owned())
    }

    #[test]
    fn rows_of_the_same_files_overlap() -> anyhow::Result<()> {
        let selected = selected_on("{path: a.jsonl, rows: 0..150}")?;
        let shares = |text: &str| selected.shares(MeasuredOn::Text(&corpus(text)?, None));
        assert_eq!(shares("{path: a.jsonl, rows: 150..600}")?, Shared::Nothing);
        assert_eq!(shares("{tokens: a.npy}")?, Shared::Unknown);
        let both = shares("{path: a.jsonl, rows: 100..600}")?;
        assert_eq!(both, text("rows 100..150 of `a.jsonl`"));
        let all = selected_on("path: a.jsonl")?;
        let both = all.shares(MeasuredOn::Text(&corpus("path: a.jsonl")?, None))?;
        assert_eq!(both, text("all rows of `a.jsonl`"));
        // The documents that are measured, where they are known.
        let some = |rows: &[usize]| {
            let rows = rows.iter().copied().collect();
            let measured = corpus("path: a.jsonl")?;
            selected.shares(MeasuredOn::Text(&measured, Some(&rows)))
        };
        assert_eq!(some(&[150, 200])?, Shared::Nothing);
        assert_eq!(
            some(&[149, 150, 200])?,
            text("1 of 3 documents of `a.jsonl`")
        );
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
        assert_eq!(shares(&sample, &[1, 2])?, Shared::Nothing);
        assert!(matches!(shares(&sample, &[1, 3])?, Shared::Text(_)));
        // Sequence 2 is of the document of sequence 3.
        let sample = sample.from_documents(vec![0, 1, 2, 2, 3, 4])?;
        assert!(matches!(shares(&sample, &[1, 2])?, Shared::Text(_)));
        Ok(())
    }

    /// The same text in other files, in another order, and beside other text.
    #[test]
    fn a_copy_is_known_by_its_text() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let write = |name: &str, texts: &[&str]| -> anyhow::Result<CorpusConfig> {
            let path = dir.path().join(name);
            let rows = texts
                .iter()
                .map(|text| format!("{}\n", json!({"text": text})));
            std::fs::write(&path, rows.collect::<String>())?;
            corpus(&format!("{{path: '{}'}}", path.display()))
        };
        let mut selected = selected_on("path: nowhere.jsonl")?;
        selected.corpus = write("a.jsonl", &["one", "two", "", "three"])?;
        let copy = write("b.jsonl", &["four", "", "three", "two"])?;
        let named = copy.named();
        let of = |rows: &[usize]| {
            let rows = rows.iter().copied().collect();
            selected.shares(MeasuredOn::Text(&copy, Some(&rows)))
        };
        assert_eq!(
            selected.shares(MeasuredOn::Text(&copy, None))?,
            text(&format!("2 of 3 documents of {named}"))
        );
        // Empty documents are of no text.
        assert_eq!(of(&[0, 1])?, Shared::Nothing);
        assert_eq!(of(&[0, 3])?, text(&format!("1 of 2 documents of {named}")));
        let sample = Sample::new(vec![vec![0; 6]; 2], &[], 10)?.from_documents(vec![0, 2])?;
        let shares = |sequence| selected.shares(MeasuredOn::Sequences(&copy, &sample, &[sequence]));
        assert_eq!(shares(0)?, Shared::Nothing);
        assert_eq!(shares(1)?, text(&format!("1 of 1 documents of {named}")));

        // Where it was moved, its hash is known.
        let moved = write("moved.jsonl", &["one", "two", "", "three"])?;
        selected.sha256 = corpus_sha256(&moved)?;
        selected.corpus = corpus("path: nowhere.jsonl")?;
        let shared = selected.shares(MeasuredOn::Text(&moved, None))?;
        assert_eq!(shared, text(&format!("all of {}", moved.named())));
        let shared = selected.shares(MeasuredOn::Text(&copy, None))?;
        assert_eq!(shared, Shared::Unknown);
        Ok(())
    }
}
