//! What a run reads: the tokenizer, token counts, word counts.

use std::sync::atomic::Ordering;

use anyhow::{Context, bail};
use job_kit::{OutputDir, Progress, RunRecord};
use longtail_corpus::{
    CorpusError, Document, Documents, TokenCounts, WordCounts, count_tokens, load_tokenizer,
    n_tokens, write_counts,
};
use model_conventions::{Fit, WordPieces, fit};
use text_inputs::{CorpusConfig, Reading};
use tokenizers::Tokenizer;

use crate::config::SelectConfig;

/// The tokenizer, with how many tokens it has and how many rows the vocabulary.
pub(crate) struct Vocabulary {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) pieces: WordPieces,
    pub(crate) n_tokens: usize,
    pub(crate) d_vocab: usize,
    sha256: String,
}

impl Vocabulary {
    pub(crate) fn load(config: &SelectConfig, record: &mut RunRecord) -> anyhow::Result<Self> {
        let path = &config.tokenizer.path;
        let tokenizer = load_tokenizer(path)?;
        record.input(path)?;
        let n_tokens = n_tokens(&tokenizer);
        let d_vocab = config.tokenizer.vocab_size.unwrap_or(n_tokens);
        if fit(n_tokens, d_vocab) == Fit::No {
            bail!(
                "`tokenizer.vocab_size` is {d_vocab}, but `{}` has {n_tokens} tokens: set both to those of one model",
                path.display()
            );
        }
        let word_start = config.tokenizer.word_start.as_deref();
        let pieces = WordPieces::new(&tokenizer, word_start).with_context(|| {
            format!(
                "tokenizer `{}`: set `tokenizer.word_start` to what a piece that begins a word begins with",
                path.display()
            )
        })?;
        let (sha256, _) = job_kit::sha256_file(path)?;
        Ok(Self {
            tokenizer,
            pieces,
            n_tokens,
            d_vocab,
            sha256,
        })
    }

    /// Token counts: those of the file that the configuration names, or of its corpus.
    pub(crate) fn counts(
        &self,
        config: &SelectConfig,
        out: &OutputDir,
        record: &mut RunRecord,
    ) -> anyhow::Result<TokenCounts> {
        let counts = match (config.counts(), &config.corpus) {
            (Some(path), _) => {
                let counts = TokenCounts::read(path, self.d_vocab)?;
                record.input(path)?;
                counts.check_tokenizer(self.n_tokens).with_context(|| {
                    format!(
                        "`{}` and `{}` do not belong together",
                        path.display(),
                        config.tokenizer.path.display()
                    )
                })?;
                counts
            }
            (None, Some(corpus)) => self.count(config, corpus, out, record)?,
            (None, None) => bail!(
                "no token counts: set `frequency.counts` to a file with those of `{}`, or `corpus.path` to text to count",
                config.tokenizer.path.display()
            ),
        };
        record.count("tokens_counted", counts.total());
        record.count("vocabulary_rows_without_a_count", counts.padded() as u64);
        record.count(
            "tokens_never_seen",
            counts.as_slice()[..self.n_tokens]
                .iter()
                .filter(|&&count| count == 0)
                .count() as u64,
        );
        Ok(counts)
    }

    fn count(
        &self,
        config: &SelectConfig,
        corpus: &CorpusConfig,
        out: &OutputDir,
        record: &mut RunRecord,
    ) -> anyhow::Result<TokenCounts> {
        let document_token = match &corpus.document_token {
            Some(token) => Some(self.tokenizer.token_to_id(token).with_context(|| {
                format!("`corpus.document_token` is `{token}`, which is no token of the tokenizer")
            })?),
            None => None,
        };
        let (tally, sha256) = pass("counting tokens", config, corpus, record, |documents| {
            count_tokens(documents, &self.tokenizer, self.d_vocab, document_token)
                .map_err(Into::into)
        })?;
        let counts = tally.to_counts()?;
        let mut file = out.file("counts.parquet")?;
        let provenance = [
            ("tokenizer_sha256", &self.sha256),
            ("corpus_sha256", &sha256),
        ]
        .map(|(name, value)| (name.to_owned(), value.clone()));
        write_counts(&mut file, &counts, &self.tokenizer, &provenance)
            .context("failed to write `counts.parquet`")?;
        file.commit()?;
        Ok(counts)
    }
}

/// Word counts of the corpus, if there is one.
pub(crate) fn word_counts(
    config: &SelectConfig,
    record: &mut RunRecord,
) -> anyhow::Result<Option<WordCounts>> {
    let Some(corpus) = &config.corpus else {
        return Ok(None);
    };
    let (counts, _) = pass("counting words", config, corpus, record, |documents| {
        Ok(WordCounts::count(documents)?)
    })?;
    record.count("words_counted", counts.total());
    record.count("words_distinct", counts.distinct() as u64);
    Ok(Some(counts))
}

/// Documents as a counter takes them.
type Stream<'a> = Box<dyn Iterator<Item = Result<Document, CorpusError>> + Send + 'a>;

/// One pass over the documents that are not held out, with progress and a record of what was read; also gives their hash.
fn pass<T>(
    title: &str,
    config: &SelectConfig,
    corpus: &CorpusConfig,
    record: &mut RunRecord,
    count: impl FnOnce(Stream<'_>) -> anyhow::Result<T>,
) -> anyhow::Result<(T, String)> {
    let split = config.split.to_split()?;
    let reader = corpus.open("corpus")?;
    let progress = Progress::new(title, reader.total_bytes(), "bytes");
    let mut documents = reader.documents();
    let counted = count(Box::new(
        watched(&mut documents, &progress)
            .filter(|document| document.as_ref().map_or(true, |d| !split.holds_out(d))),
    ))
    .with_context(|| format!("failed at {title}"))?;
    record.timing(&title.replace(' ', "_"), progress.finish());
    let reading = Reading::of(&documents);
    record.count("documents_read", reading.summary.documents as u64);
    reading.record("corpus", "", record);
    Ok((counted, reading.sha256))
}

fn watched<'a>(
    documents: &'a mut Documents,
    progress: &'a Progress,
) -> impl Iterator<Item = Result<Document, CorpusError>> + Send + 'a {
    let bytes = documents.bytes_read();
    let mut seen = 0;
    documents.inspect(move |_| {
        let now = bytes.load(Ordering::Relaxed);
        progress.inc(now - seen);
        seen = now;
    })
}
