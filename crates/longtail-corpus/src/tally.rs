//! Counting the tokens of a corpus, in parallel.

use std::collections::HashMap;

use rayon::prelude::*;
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper, Tokenizer};

use crate::{CorpusError, Document, TokenCounts, TokenizeError, batch::Batches, pack::plain};

/// Distinct chunks of text that a thread holds before it tokenizes them.
const MAX_CHUNKS: usize = 1 << 18;

/// What was counted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tally {
    /// Occurrences by token id, `[d_vocab]`.
    pub counts: Vec<u64>,
    /// Documents counted.
    pub documents: usize,
}

impl Tally {
    /// The counts, for the same vocabulary.
    ///
    /// # Errors
    /// - [`CountsError`](crate::CountsError) if there is no token at all
    pub fn to_counts(&self) -> Result<TokenCounts, crate::CountsError> {
        TokenCounts::new(self.counts.clone(), self.counts.len())
    }
}

/// Counts every token of the documents, with `document_token` (if given) once before each, over a vocabulary of `d_vocab` rows.
///
/// The same as tokenizing each document whole and counting ids; the tokenizer's own special tokens, truncation and padding are not applied.
/// For byte-level BPE (GPT-2, Pythia) the text is cut before spaces, where no token can cross, and each distinct chunk is tokenized once.
///
/// # Errors
/// - [`TokenizeError::Corpus`] if a document cannot be read
/// - [`TokenizeError::Encode`] if one cannot be tokenized
/// - [`TokenizeError::Vocabulary`] for a token past `d_vocab`
pub fn count_tokens(
    documents: impl Iterator<Item = Result<Document, CorpusError>> + Send,
    tokenizer: &Tokenizer,
    d_vocab: usize,
    document_token: Option<u32>,
) -> Result<Tally, TokenizeError> {
    let tokenizer = plain(tokenizer)?;
    let by_chunk = splits_at_spaces(&tokenizer);
    let fresh = || Shard {
        counts: vec![0; d_vocab],
        documents: 0,
        chunks: HashMap::new(),
    };
    let done = Batches::new(documents)
        .par_bridge()
        .try_fold(fresh, |mut shard, batch| {
            for document in batch? {
                shard.documents += 1;
                if let Some(token) = document_token {
                    shard.add(token, 1)?;
                }
                if by_chunk {
                    for chunk in chunks(&document.text) {
                        shard.note(chunk);
                    }
                } else {
                    shard.tokenize(&tokenizer, &document.text, 1, document.index)?;
                }
                if shard.chunks.len() > MAX_CHUNKS {
                    shard.flush(&tokenizer, document.index)?;
                }
            }
            Ok::<_, TokenizeError>(shard)
        })
        .try_reduce(fresh, |mut a, mut b| {
            if a.chunks.len() < b.chunks.len() {
                std::mem::swap(&mut a, &mut b);
            }
            a.documents += b.documents;
            a.counts.iter_mut().zip(b.counts).for_each(|(a, b)| *a += b);
            for (chunk, times) in b.chunks {
                *a.chunks.entry(chunk).or_default() += times;
            }
            Ok(a)
        })?;
    // Distinct chunks are few against the text, but still worth sharing out.
    let Shard {
        mut counts,
        documents,
        chunks,
    } = done;
    let chunks: Vec<(Box<str>, u64)> = chunks.into_iter().collect();
    let rest: Vec<Shard> = chunks
        .par_chunks(1 << 12)
        .map(|chunks| {
            let mut shard = fresh();
            for (chunk, times) in chunks {
                shard.tokenize(&tokenizer, chunk, *times, 0)?;
            }
            Ok(shard)
        })
        .collect::<Result<_, TokenizeError>>()?;
    for shard in rest {
        counts
            .iter_mut()
            .zip(shard.counts)
            .for_each(|(a, b)| *a += b);
    }
    Ok(Tally { counts, documents })
}

/// What one thread has counted.
struct Shard {
    counts: Vec<u64>,
    documents: usize,
    /// Chunks seen and not tokenized yet, with how often.
    chunks: HashMap<Box<str>, u64>,
}

impl Shard {
    fn note(&mut self, chunk: &str) {
        match self.chunks.get_mut(chunk) {
            Some(times) => *times += 1,
            None => {
                self.chunks.insert(chunk.into(), 1);
            }
        }
    }

    fn add(&mut self, id: u32, times: u64) -> Result<(), TokenizeError> {
        let d_vocab = self.counts.len();
        let count = self
            .counts
            .get_mut(id as usize)
            .ok_or(TokenizeError::Vocabulary { id, d_vocab })?;
        *count += times;
        Ok(())
    }

    fn tokenize(
        &mut self,
        tokenizer: &Tokenizer,
        text: &str,
        times: u64,
        index: usize,
    ) -> Result<(), TokenizeError> {
        let encoding = tokenizer
            .encode_fast(text, false)
            .map_err(|source| TokenizeError::Encode { index, source })?;
        encoding
            .get_ids()
            .iter()
            .try_for_each(|&id| self.add(id, times))
    }

    fn flush(&mut self, tokenizer: &Tokenizer, index: usize) -> Result<(), TokenizeError> {
        for (chunk, times) in std::mem::take(&mut self.chunks) {
            self.tokenize(tokenizer, &chunk, times, index)?;
        }
        Ok(())
    }
}

/// Whether tokenizing the chunks of a text gives the tokens of the text.
///
/// Byte-level BPE first splits by a pattern whose matches hold white space only at their start, so that a visible character followed by a
/// space always ends one. NFC never composes over that boundary. Added tokens could cross it only if they hold such a pair themselves or
/// swallow the space next to them.
fn splits_at_spaces(tokenizer: &Tokenizer) -> bool {
    let normalizer = matches!(
        tokenizer.get_normalizer(),
        None | Some(NormalizerWrapper::NFC(_))
    );
    let split = matches!(tokenizer.get_pre_tokenizer(), Some(PreTokenizerWrapper::ByteLevel(level)) if level.use_regex && !level.add_prefix_space);
    let added = tokenizer
        .get_added_tokens_decoder()
        .into_values()
        .all(|token| !token.lstrip && !token.rstrip && chunks(&token.content).count() <= 1);
    normalizer && split && added
}

/// Cuts a text before every space or line feed that follows a visible character. Joined again, the chunks are the text.
fn chunks(text: &str) -> impl Iterator<Item = &str> {
    let bytes = text.as_bytes();
    let mut start = 0;
    std::iter::from_fn(move || {
        if start == bytes.len() {
            return None;
        }
        let mut end = start + 1;
        // Only printable ASCII counts as visible: what `\s` matches elsewhere differs between engines.
        while end < bytes.len()
            && !(matches!(bytes[end], b' ' | b'\n') && bytes[end - 1].is_ascii_graphic())
        {
            end += 1;
        }
        let chunk = &text[start..end];
        start = end;
        Some(chunk)
    })
}

#[cfg(test)]
mod tests {
    use super::chunks;

    #[test]
    fn chunks_are_the_text() {
        for text in [
            "",
            " ",
            "a",
            " a  b\n\nc ",
            "é è",
            "a\u{a0} b",
            "'s 's",
            "x \u{301}y",
        ] {
            assert_eq!(chunks(text).collect::<String>(), text);
        }
        assert_eq!(
            chunks("call me  Ishmael.\nSome ").collect::<Vec<_>>(),
            ["call", " me", "  Ishmael.", "\nSome", " "]
        );
    }
}
