//! From text to token positions: which pieces are a word's, and what stands before it.

use std::{ops::Range, sync::Arc};

use model_conventions::WordPieces;
use neox_core::{Text, TextError};
use serde::{Deserialize, Serialize};

/// What stands before the first piece of a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WordStart {
    /// The piece begins a word, as the tokenizer marks it: with its own leading space, or with what stands for one.
    Space,
    /// The beginning of the text: a word begins without a space.
    Text,
    /// The beginning of a line, behind a line break: a word begins without a space there too, so that the corrected forms divide by the same
    /// mass as at the beginning of a text.
    Line,
    /// Anything else: an opening quote or a hyphen. The corrected forms divide by nothing here.
    Inside,
    /// The first piece also holds characters of the context (`un` + `happy` read as `unhappy`):
    /// its surprisal is not the word's alone.
    Merged,
}

impl WordStart {
    /// The name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Space => "space",
            Self::Text => "text",
            Self::Line => "line",
            Self::Inside => "inside",
            Self::Merged => "merged",
        }
    }
}

/// A word to score: the tokens up to its last piece, and which of them are its pieces.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct WordRequest {
    /// Token ids of context and word.
    pub tokens: Vec<i64>,
    /// The word's pieces in `tokens`; starts at 1 or later, ends at `tokens.len()` at most.
    pub word: Range<usize>,
    /// What stands before the word.
    pub start: WordStart,
    /// The word as the text has it, without white space around it; empty where the request was made of tokens alone.
    pub text: Arc<str>,
    /// The bytes of `text` in the sentence, or in context and word as they were joined; [`WordRequest::within`] leaves them as they are.
    pub span: Range<usize>,
}

/// How context and word become one text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Join {
    /// With one space between them unless either side brings white space.
    #[default]
    Space,
    /// As they are: whoever made the contexts put a space where one belongs.
    AsIs,
}

impl Join {
    /// What is put between context and word.
    #[must_use]
    pub fn separator(self, context: &str, word: &str) -> &'static str {
        let spaced = context.is_empty()
            || context.ends_with(char::is_whitespace)
            || word.starts_with(char::is_whitespace);
        if self == Self::AsIs || spaced {
            ""
        } else {
            " "
        }
    }

    /// Context and word as one text, and the byte at which the word begins.
    #[must_use]
    pub fn text(self, context: &str, word: &str) -> (String, usize) {
        let gap = self.separator(context, word);
        (format!("{context}{gap}{word}"), context.len() + gap.len())
    }
}

/// Why a word cannot be scored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The tokenizer failed.
    #[error("failed to tokenize")]
    Text(#[from] TextError),
    /// The word has no piece of its own.
    #[error("word `{word}` has no token after context `{context}`")]
    NoPiece {
        /// The word.
        word: String,
        /// Its context.
        context: String,
    },
    /// Nothing stands before the word's first piece, so that the model predicts nothing.
    #[error(
        "nothing stands before word `{word}`, so it has no surprisal: give a context or put the beginning-of-sequence token in front"
    )]
    NothingBefore {
        /// The word.
        word: String,
    },
}

impl WordRequest {
    /// A word of which there are tokens alone.
    pub fn new(tokens: Vec<i64>, word: Range<usize>, start: WordStart) -> Self {
        Self {
            tokens,
            word,
            start,
            text: "".into(),
            span: 0..0,
        }
    }

    /// With the word's place in a text, white space around it left out.
    fn in_text(self, text: &str, span: Range<usize>) -> Self {
        let held = text.get(span.clone()).unwrap_or_default();
        // White space is a word only where there is nothing else.
        let (start, word) = match held.trim() {
            "" => (span.start, held),
            word => (span.start + held.len() - held.trim_start().len(), word),
        };
        Self {
            text: word.into(),
            span: start..start + word.len(),
            ..self
        }
    }

    /// Tokenizes context and word **jointly**; the pieces of the word are those that reach past its
    /// first character, and the one before them where that is nothing but the space in front of the word: tokenizers that cut off digits
    /// have the space before a number as a piece of its own, and it is this piece that begins the word.
    ///
    /// Other white space at the beginning of `word` counts as boundary, not as part of it.
    ///
    /// # Errors
    /// - [`RequestError::NoPiece`] if the word is empty
    /// - [`RequestError::NothingBefore`] without `bos` and context
    /// - [`RequestError::Text`] if the tokenizer fails
    pub fn joint(
        text: &Text,
        bos: Option<i64>,
        context: &str,
        word: &str,
        join: Join,
    ) -> Result<Self, RequestError> {
        let (joined, begin) = join.text(context, word);
        let begin = begin + word.len() - word.trim_start().len();
        let no_piece = || RequestError::NoPiece {
            word: word.to_owned(),
            context: context.to_owned(),
        };
        let pieces = text.encode_with_offsets(&joined)?;
        let first = pieces
            .iter()
            .position(|(_, bytes)| bytes.end > begin)
            .ok_or_else(no_piece)?;
        let before = &joined[..begin];
        let begins = |i: usize| -> Result<bool, TextError> {
            let previous = i.checked_sub(1).map(|i| pieces[i].0);
            Ok(begins_word(text.words()?, previous, pieces[i].0))
        };
        // Some tokenizers trim the spaces off the places of their pieces, so that nothing is left of this one's.
        let is_space = |i: usize| {
            let (_, bytes) = &pieces[i];
            let held = joined.get(bytes.clone()).unwrap_or_default();
            bytes.end == begin && before.ends_with(' ') && held.trim_start().is_empty()
        };
        let first = match first.checked_sub(1) {
            Some(space) if is_space(space) && begins(space)? && !begins(first)? => space,
            _ => first,
        };
        let (_, bytes) = &pieces[first];
        let start = if before
            .get(bytes.start..)
            .is_some_and(|shared| !shared.trim().is_empty())
        {
            WordStart::Merged
        } else if begins(first)? {
            WordStart::Space
        } else if before.is_empty() {
            WordStart::Text
        } else if before.ends_with(['\n', '\r']) {
            WordStart::Line
        } else {
            WordStart::Inside
        };
        let tokens: Vec<i64> = bos
            .into_iter()
            .chain(pieces.iter().map(|(id, _)| *id))
            .collect();
        let first = first + usize::from(bos.is_some());
        if first == 0 {
            return Err(RequestError::NothingBefore {
                word: word.to_owned(),
            });
        }
        let pieces = first..tokens.len();
        Ok(Self::new(tokens, pieces, start).in_text(&joined, begin..joined.len()))
    }

    /// The reading of Liu et al. (2025): context and word as they are, without a token in front of
    /// them; scored is one token, the one after as many as the context has when tokenized alone, or
    /// the last where the joint text has no more. With `bos_only` the text is `bos` and the word.
    ///
    /// # Errors
    /// - as [`WordRequest::joint`]
    pub fn liu2025(
        text: &Text,
        bos: i64,
        context: &str,
        word: &str,
        bos_only: bool,
    ) -> Result<Self, RequestError> {
        let context = if bos_only { "" } else { context };
        let joined = format!("{context}{word}");
        let (tokens, alone) = match bos_only {
            true => ([vec![bos], text.encode(word)?].concat(), 1),
            false => (text.encode(&joined)?, text.encode(context)?.len()),
        };
        let scored = if alone >= tokens.len() {
            tokens.len().saturating_sub(1)
        } else {
            alone
        };
        if scored == 0 {
            return Err(RequestError::NothingBefore {
                word: word.to_owned(),
            });
        }
        let request = Self::new(tokens, scored..scored + 1, WordStart::Inside);
        Ok(request.in_text(&joined, context.len()..joined.len()))
    }

    /// All words of a text. A word begins at the text's first piece and at every piece that begins
    /// one ([`WordPieces`]).
    ///
    /// # Errors
    /// - [`RequestError::Text`] if the tokenizer fails
    pub fn words_of(text: &Text, bos: i64, sentence: &str) -> Result<Vec<Self>, RequestError> {
        let pieces = text.encode_with_offsets(sentence)?;
        let ids = pieces.iter().map(|(id, _)| *id);
        let tokens: Vec<i64> = std::iter::once(bos).chain(ids).collect();
        let words = text.words()?;
        // BOS is no text.
        let begins = |i: usize| begins_word(words, (i > 1).then(|| tokens[i - 1]), tokens[i]);
        let mut starts: Vec<usize> = (1..tokens.len()).filter(|&i| i == 1 || begins(i)).collect();
        starts.push(tokens.len());
        let word = |pair: &[usize]| {
            let start = match begins(pair[0]) {
                true => WordStart::Space,
                false => WordStart::Text,
            };
            // The first token is BOS, which is no piece.
            let (first, last) = (&pieces[pair[0] - 1].1, &pieces[pair[1] - 2].1);
            Self::new(tokens[..pair[1]].to_vec(), pair[0]..pair[1], start)
                .in_text(sentence, first.start..last.end)
        };
        Ok(starts.windows(2).map(word).collect())
    }

    /// The tokens that the model has to read: those before the last piece, and that one too where the
    /// mass behind it is wanted.
    pub(crate) fn read(&self, boundaries: bool) -> &[i64] {
        let end = self.word.end - usize::from(!boundaries);
        &self.tokens[..end]
    }

    /// The last tokens of a text that is longer than a model reads: at most `max`, from a multiple
    /// of `max / 2` on, so that neighbouring words share a window. With `bos` the text's first token
    /// is the beginning-of-sequence token, and stays in front. A word keeps about `max / 2` tokens of
    /// context or more. `None` if the word itself is longer than that.
    #[must_use]
    pub fn within(&self, max: usize, bos: bool) -> Option<Self> {
        let end = self.word.end;
        if end <= max {
            return Some(self.clone());
        }
        let stride = max / 2;
        if stride == 0 || self.word.len() > stride {
            return None;
        }
        let kept = &self.tokens[..usize::from(bos)];
        let first = (end + kept.len() - max).div_ceil(stride) * stride;
        let moved = |i: usize| i + kept.len() - first;
        // Something has to stand before the word.
        (first < self.word.start).then(|| Self {
            tokens: [kept, &self.tokens[first..end]].concat(),
            word: moved(self.word.start)..moved(end),
            ..self.clone()
        })
    }
}

/// Whether a character behind a word is not of it: punctuation, a symbol or a line break, and no mark on a letter.
fn ends_word(c: char) -> bool {
    let mark = matches!(c, '\u{300}'..='\u{36f}' | '\u{1ab0}'..='\u{1aff}' | '\u{1dc0}'..='\u{1dff}' | '\u{20d0}'..='\u{20ff}' | '\u{fe00}'..='\u{fe0f}');
    matches!(c, '\n' | '\r')
        || !(c.is_alphanumeric() || c.is_whitespace() || c.is_control() || mark || c == '\u{fffd}')
}

/// Whether a word begins with the piece `id` behind `before`.
fn begins_word(words: &WordPieces, before: Option<i64>, id: i64) -> bool {
    let before = before.and_then(|id| u32::try_from(id).ok());
    u32::try_from(id).is_ok_and(|id| words.begins(before, id))
}

/// What ends a word, so that its mass belongs to the boundary behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WordBoundary {
    /// A piece that begins a word, as the tokenizer marks it, or the end of the text: what Pimentel & Meister (2024) count.
    #[default]
    Space,
    /// Those, and pieces whose text begins with punctuation (apostrophes and hyphens included), a symbol or a line break.
    SpacePunctuationNewline,
}

/// Which tokens of a vocabulary begin a word.
#[derive(Debug, Clone)]
pub struct WordVocabulary {
    /// `[d_vocab]`: 1 where a token begins a word when one has ended before it, or ends one in another way ([`WordBoundary`]).
    pub(crate) begins: Vec<f32>,
    /// `[d_vocab]`: 1 where a token is text and does not begin a word by a space; rows past the tokenizer and the
    /// end-of-sequence token are neither.
    pub(crate) continues: Vec<f32>,
    pub(crate) eos: i64,
}

impl WordVocabulary {
    /// Reads what every token is to a word; `eos` ends a text, `d_vocab` is the number of rows of the
    /// model's vocabulary.
    ///
    /// # Errors
    /// - [`TextError::WordStart`] if the tokenizer does not say which pieces begin a word
    pub fn new(text: &Text, eos: i64, d_vocab: usize) -> Result<Self, TextError> {
        let words = text.words()?;
        let mut vocabulary = Self::without_words(eos, d_vocab);
        for id in (0..d_vocab).filter(|&id| id as i64 != eos) {
            match u32::try_from(id)
                .ok()
                .and_then(|id| words.begins_after_word(id))
            {
                Some(true) => vocabulary.begins[id] = 1.0,
                Some(false) => vocabulary.continues[id] = 1.0,
                None => {}
            }
        }
        Ok(vocabulary)
    }

    /// Counts more pieces as what ends a word.
    ///
    /// # Errors
    /// - [`TextError`] if the tokenizer cannot decode its own tokens
    pub fn with_boundary(mut self, text: &Text, boundary: WordBoundary) -> Result<Self, TextError> {
        if boundary == WordBoundary::Space {
            return Ok(self);
        }
        for (id, begins) in self.begins.iter_mut().enumerate() {
            if self.continues[id] == 0.0 {
                continue;
            }
            // Behind itself: some decoders treat the beginning of a text in their own ways.
            let id = id as i64;
            let (alone, twice) = (text.decode(&[id])?, text.decode(&[id, id])?);
            let inside = twice.strip_prefix(alone.as_str()).unwrap_or(&alone);
            if inside.chars().next().is_some_and(ends_word) {
                *begins = 1.0;
            }
        }
        Ok(self)
    }

    /// Whether a token begins a word when one has ended before it, or ends one in another way ([`WordBoundary`]): whether its probability
    /// is of the mass that the corrected forms take for the end of a word. Never for the token that ends a text, and ids outside the
    /// vocabulary.
    pub fn begins(&self, id: i64) -> bool {
        let begins = usize::try_from(id).ok().and_then(|id| self.begins.get(id));
        begins.is_some_and(|&begins| begins > 0.0)
    }

    /// A vocabulary of which no token begins a word, for scores without boundaries
    /// ([`Scorer::without_boundaries`](crate::Scorer::without_boundaries)).
    #[must_use]
    pub fn without_words(eos: i64, d_vocab: usize) -> Self {
        Self {
            begins: vec![0.0; d_vocab],
            continues: vec![0.0; d_vocab],
            eos,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_keep_the_word_and_share_their_start() {
        let tokens: Vec<i64> = (0..100).collect();
        for (max, bos) in (4..40).flat_map(|max| [(max, true), (max, false)]) {
            for end in 2..=100usize {
                let request =
                    WordRequest::new(tokens[..end].to_vec(), end - 1..end, WordStart::Space);
                let cut = request.within(max, bos).unwrap();
                assert!(cut.tokens.len() <= max, "{max} {end}");
                assert_eq!(cut.tokens[cut.word.clone()], tokens[end - 1..end]);
                assert!(cut.word.start >= 1);
                if end <= max {
                    assert_eq!(cut, request);
                    continue;
                }
                assert!(cut.word.start > max / 2 - 2, "{max} {end}: {cut:?}");
                let body = &cut.tokens[usize::from(bos)..];
                assert!((body[0] as usize).is_multiple_of(max / 2));
                // A text without the beginning-of-sequence token has no other token in front.
                assert_eq!(body, &tokens[body[0] as usize..end]);
                assert!(!bos || cut.tokens[0] == 0);
            }
        }
        let long = WordRequest::new(tokens.clone(), 10..100, WordStart::Space);
        assert_eq!(long.within(64, true), None);
    }

    #[test]
    fn a_gap_is_put_where_one_is_missing() {
        for (context, word, expected) in [
            ("the", "whale", "the whale"),
            ("the ", "whale", "the whale"),
            ("the", " whale", "the whale"),
            ("", "whale", "whale"),
        ] {
            assert_eq!(Join::Space.text(context, word).0, expected);
        }
        assert_eq!(Join::AsIs.text("the", "whale"), ("thewhale".to_owned(), 3));
    }
}
