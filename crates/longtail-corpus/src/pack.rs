//! Documents into sequences of one length, as models are fed.

use rayon::prelude::*;
use tokenizers::Tokenizer;

use crate::{CorpusError, Document, batch::Batches};

/// Why text could not be turned into tokens.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizeError {
    /// The corpus cannot be read.
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    /// The tokenizer's file cannot be read.
    #[error("failed to load tokenizer `{}`", path.display())]
    Load {
        /// The file.
        path: std::path::PathBuf,
        /// The cause.
        source: tokenizers::Error,
    },
    /// The tokenizer fails on a document.
    #[error("failed to tokenize document {index}")]
    Encode {
        /// Its row in the corpus.
        index: usize,
        /// The cause.
        source: tokenizers::Error,
    },
    /// A token id that the vocabulary does not have.
    #[error("the tokenizer gives token {id}, but the vocabulary has {d_vocab}")]
    Vocabulary {
        /// The token.
        id: u32,
        /// Rows of the vocabulary.
        d_vocab: usize,
    },
    /// A special token that the tokenizer does not have.
    #[error("the tokenizer has no token `{token}`")]
    NoToken {
        /// Its text.
        token: String,
    },
    /// Sequences that have no room for text.
    #[error("a context length of {found} leaves no room for text, expected at least 2")]
    ContextLength {
        /// The length.
        found: usize,
    },
    /// Too little text for one sequence.
    #[error("the corpus has {tokens} tokens, too few for one sequence of {context_length}")]
    TooShort {
        /// Tokens of all documents.
        tokens: usize,
        /// Length of a sequence.
        context_length: usize,
    },
}

/// Sequences of token ids, all of the same length.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PackedCorpus {
    /// `[n_sequences][context_length]`
    pub sequences: Vec<Vec<u32>>,
    /// The [`Document::index`] of the document that most tokens of each sequence are from; the earlier one of two. `[n_sequences]`
    pub most_from: Vec<usize>,
    /// Documents that went in.
    pub documents: usize,
    /// Tokens of the documents, with the EOS between them.
    pub tokens: usize,
    /// Tokens at the end that did not fill a sequence and were left out.
    pub dropped_tokens: usize,
}

/// Tokenizes documents whole, joins them by EOS, cuts the stream into pieces of `context_length - 1` and puts BOS in front of each.
///
/// What does not fill a last sequence is left out and counted. The tokenizer's own truncation, padding and special tokens are not applied.
///
/// # Errors
/// - [`TokenizeError::Corpus`] if a document cannot be read
/// - [`TokenizeError::Encode`] if one cannot be tokenized
/// - [`TokenizeError::ContextLength`], [`TokenizeError::TooShort`] if not a single sequence comes out
///
/// # Examples
/// ```no_run
/// use longtail_corpus::{CorpusReader, ReadOptions, load_tokenizer, pack_sequences};
///
/// let corpus = CorpusReader::open(&["held-out.jsonl"], ReadOptions::default())?;
/// let tokenizer = load_tokenizer("tokenizer.json")?;
/// let packed = pack_sequences(corpus.documents(), &tokenizer, 0, 0, 256)?;
/// println!("{} sequences, {} tokens left over", packed.sequences.len(), packed.dropped_tokens);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn pack_sequences(
    documents: impl Iterator<Item = Result<Document, CorpusError>>,
    tokenizer: &Tokenizer,
    bos: u32,
    eos: u32,
    context_length: usize,
) -> Result<PackedCorpus, TokenizeError> {
    if context_length < 2 {
        return Err(TokenizeError::ContextLength {
            found: context_length,
        });
    }
    let tokenizer = plain(tokenizer)?;
    let mut packed = PackedCorpus {
        sequences: Vec::new(),
        most_from: Vec::new(),
        documents: 0,
        tokens: 0,
        dropped_tokens: 0,
    };
    let mut rest: Vec<u32> = Vec::new();
    let mut from: Vec<usize> = Vec::new();
    for batch in Batches::new(documents) {
        let encoded: Vec<(usize, Vec<u32>)> = batch?
            .par_iter()
            .map(|document| Ok((document.index, encode(&tokenizer, document)?)))
            .collect::<Result<_, TokenizeError>>()?;
        for (index, ids) in encoded {
            let joint = usize::from(packed.documents > 0);
            rest.extend(std::iter::repeat_n(eos, joint));
            packed.tokens += ids.len() + joint;
            rest.extend(ids);
            from.resize(rest.len(), index);
            packed.documents += 1;
        }
        let pieces = rest.chunks_exact(context_length - 1);
        let left = pieces.remainder().to_vec();
        packed.sequences.extend(
            pieces.map(|piece| std::iter::once(bos).chain(piece.iter().copied()).collect()),
        );
        let most = |piece: &[usize]| {
            let runs = piece.chunk_by(|a, b| a == b);
            let longest = runs.rev().max_by_key(|run| run.len());
            longest.map_or(0, |run| run[0])
        };
        let pieces = from.chunks_exact(context_length - 1);
        let left_from = pieces.remainder().to_vec();
        packed.most_from.extend(pieces.map(most));
        (rest, from) = (left, left_from);
    }
    packed.dropped_tokens = rest.len();
    if packed.sequences.is_empty() {
        return Err(TokenizeError::TooShort {
            tokens: packed.tokens,
            context_length,
        });
    }
    Ok(packed)
}

/// Reads a Hugging Face `tokenizer.json`.
///
/// # Errors
/// - [`TokenizeError::Load`] if it is not there or not a tokenizer
pub fn load_tokenizer(path: impl AsRef<std::path::Path>) -> Result<Tokenizer, TokenizeError> {
    let path = path.as_ref();
    model_conventions::read_tokenizer(path).map_err(|source| TokenizeError::Load {
        path: path.into(),
        source,
    })
}

/// The tokenizer without truncation and padding, which some `tokenizer.json` files carry.
pub(crate) fn plain(tokenizer: &Tokenizer) -> Result<Tokenizer, TokenizeError> {
    let mut tokenizer = tokenizer.clone();
    tokenizer
        .with_truncation(None)
        .map_err(|source| TokenizeError::Encode { index: 0, source })?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

fn encode(tokenizer: &Tokenizer, document: &Document) -> Result<Vec<u32>, TokenizeError> {
    let encoding = tokenizer
        .encode_fast(document.text.as_str(), false)
        .map_err(|source| TokenizeError::Encode {
            index: document.index,
            source,
        })?;
    Ok(encoding.get_ids().to_vec())
}
