//! Text to token ids and back.

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use model_conventions::{UnknownWordStart, WordPieces};
use tokenizers::{PostProcessorWrapper, Tokenizer};

use crate::error::TextError;

/// A tokenizer that adds, cuts and pads nothing.
///
/// # Examples
/// ```
/// # use neox_core::Text;
/// let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data/tiny-neox/tokenizer.json");
/// # if !std::path::Path::new(path).exists() { return Ok(()); } // the crate without its repository
/// let text = Text::from_file(path.as_ref())?;
/// let ids = text.encode("the state of the union")?;
/// assert_eq!(text.decode(&ids)?, "the state of the union");
/// # Ok::<(), neox_core::TextError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Text {
    tokenizer: Tokenizer,
    word_start: Option<String>,
    /// Read when it is first asked for.
    words: Arc<OnceLock<Result<WordPieces, UnknownWordStart>>>,
}

impl Text {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// - [`TextError::Load`] if the file cannot be read or understood
    pub fn from_file(path: &Path) -> Result<Self, TextError> {
        let load = |source| TextError::Load {
            path: path.to_owned(),
            source,
        };
        let mut tokenizer = model_conventions::read_tokenizer(path).map_err(load)?;
        tokenizer.with_padding(None);
        // It would cut leading spaces off the offsets of some tokenizers and not of others.
        tokenizer.with_post_processor(None::<PostProcessorWrapper>);
        tokenizer.with_truncation(None).map_err(load)?;
        Ok(Self {
            tokenizer,
            word_start: None,
            words: Arc::default(),
        })
    }

    /// Says what a piece that begins a word begins with, as the vocabulary spells it: for tokenizers that do not say it themselves.
    #[must_use]
    pub fn with_word_start(self, word_start: Option<String>) -> Self {
        Self {
            word_start,
            words: Arc::default(),
            ..self
        }
    }

    /// Which pieces begin a word.
    ///
    /// # Errors
    /// - [`TextError::WordStart`] if neither the tokenizer nor [`Text::with_word_start`] says it
    pub fn words(&self) -> Result<&WordPieces, TextError> {
        self.words
            .get_or_init(|| WordPieces::new(&self.tokenizer, self.word_start.as_deref()))
            .as_ref()
            .map_err(|unknown| TextError::WordStart(unknown.clone()))
    }

    /// Token ids; special tokens are recognised in the text but none is added.
    ///
    /// # Errors
    /// - [`TextError::Encode`] if the tokenizer fails
    pub fn encode(&self, text: &str) -> Result<Vec<i64>, TextError> {
        let encoding = self
            .tokenizer
            .encode_fast(text, false)
            .map_err(TextError::Encode)?;
        Ok(encoding.get_ids().iter().map(|&id| id.into()).collect())
    }

    /// Token ids with the bytes of `text` that each covers, leading space included.
    ///
    /// # Errors
    /// - [`TextError::Encode`] if the tokenizer fails
    pub fn encode_with_offsets(&self, text: &str) -> Result<Vec<(i64, Range<usize>)>, TextError> {
        let encoding = self
            .tokenizer
            .encode(text, false)
            .map_err(TextError::Encode)?;
        Ok(encoding
            .get_ids()
            .iter()
            .zip(encoding.get_offsets())
            .map(|(&id, &(start, end))| (id.into(), start..end))
            .collect())
    }

    /// Text of some ids, special tokens included.
    ///
    /// # Errors
    /// - [`TextError::Decode`] if an id is negative or the tokenizer fails
    pub fn decode(&self, ids: &[i64]) -> Result<String, TextError> {
        let ids = ids
            .iter()
            .map(|&id| u32::try_from(id))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|err| TextError::Decode(Box::new(err)))?;
        self.tokenizer
            .decode(&ids, false)
            .map_err(TextError::Decode)
    }

    /// A token as the vocabulary spells it: whether it begins a word says [`Text::words`].
    #[must_use]
    pub fn token(&self, id: i64) -> Option<String> {
        self.tokenizer.id_to_token(u32::try_from(id).ok()?)
    }

    /// Id of a token as the vocabulary spells it.
    #[must_use]
    pub fn id(&self, token: &str) -> Option<i64> {
        self.tokenizer.token_to_id(token).map(i64::from)
    }

    /// Highest token id, added ones included, plus one. Models may have more rows.
    #[must_use]
    pub fn n_tokens(&self) -> usize {
        model_conventions::n_tokens(&self.tokenizer)
    }

    /// The tokenizer itself.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }
}
