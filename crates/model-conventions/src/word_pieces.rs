//! What begins a word, from the tokenizer's own decoder and pre-tokenizer.

use serde::Serialize;
use serde_json::Value;
use tokenizers::{Decoder, DecoderWrapper, ModelWrapper, Tokenizer};

/// Why nothing says which pieces begin a word.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnknownWordStart {
    /// A tokenizer that loses the spaces and marks neither beginning nor end of a word.
    #[error(
        "nothing in the tokenizer says which pieces begin a word: its pieces hold no spaces, and it has no `Ġ` (ByteLevel), `▁` (Metaspace or a Replace), `##` (WordPiece) or `</w>`"
    )]
    NoMark,
    /// A mark that no piece has.
    #[error("no piece of the tokenizer begins with `{mark}`")]
    NoSuchMark {
        /// What was said to begin a word.
        mark: String,
    },
    /// A decoder that fails on a piece of its own vocabulary.
    #[error("the tokenizer's decoder fails on its own piece `{piece}`: {problem}")]
    Decoder {
        /// The piece.
        piece: String,
        /// What the decoder says.
        problem: String,
    },
}

/// How a tokenizer marks words.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Mark {
    /// A word's first piece holds the space before it; as one of these where the decoder leaves it.
    Space(Vec<String>),
    /// All but a word's first piece begin with this (`##`).
    Continuation(String),
    /// A word's last piece ends with this (`</w>`).
    End(String),
    /// Every piece is a word.
    Whole,
    /// A word's first piece begins with this, as a person said.
    Given(String),
}

/// What a piece is to a word.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Piece {
    begins: bool,
    ends: bool,
    /// Its text as a word, without space or mark; none where it cannot be a whole word.
    word: Option<String>,
}

/// Which pieces of a vocabulary begin a word.
///
/// Byte-level pieces, those of SentencePiece and Unigram, and pieces with plain spaces begin a word where their **decoded text** begins with a
/// space. WordPiece and the `</w>` of GPT-1 and CLIP mark words without spaces: there everything begins a word that does not continue one.
///
/// # Examples
/// ```
/// # use model_conventions::WordPieces;
/// # use tokenizers::Tokenizer;
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data/tiny-neox/tokenizer.json");
/// # if !std::path::Path::new(path).exists() { return Ok(()); } // the crate without its repository
/// let tokenizer = Tokenizer::from_file(path)?;
/// let pieces = WordPieces::new(&tokenizer, None)?;
/// let id = |token| tokenizer.token_to_id(token).unwrap();
/// assert!(pieces.begins(None, id("Ġthe")));
/// assert!(!pieces.begins(Some(id("Ġthe")), id("s")));
/// assert_eq!(pieces.word(id("Ġthe")), Some("the"));
/// # Ok::<(), tokenizers::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct WordPieces {
    mark: Mark,
    /// By token id; `None` where there is no token.
    pieces: Vec<Option<Piece>>,
}

impl WordPieces {
    /// Reads the spelling of every token. `word_start` is what a piece that begins a word begins with, as the vocabulary spells it, for
    /// tokenizers that do not say it themselves.
    ///
    /// # Errors
    /// - [`UnknownWordStart`] if neither the tokenizer nor `word_start` says what begins a word
    pub fn new(tokenizer: &Tokenizer, word_start: Option<&str>) -> Result<Self, UnknownWordStart> {
        let mark = match word_start {
            Some(mark) => Mark::Given(mark.to_owned()),
            None => Mark::of(tokenizer).ok_or(UnknownWordStart::NoMark)?,
        };
        let reader = Reader {
            mark,
            decoder: tokenizer.get_decoder(),
            byte_level: has_byte_level(tokenizer),
        };
        let pieces = (0..crate::n_tokens(tokenizer) as u32)
            .map(|id| {
                tokenizer
                    .id_to_token(id)
                    .map(|token| reader.read(&token))
                    .transpose()
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mark = reader.mark;
        if let Mark::Given(mark) = &mark
            && !pieces.iter().flatten().any(|piece| piece.begins)
        {
            return Err(UnknownWordStart::NoSuchMark { mark: mark.clone() });
        }
        Ok(Self { mark, pieces })
    }

    fn piece(&self, id: u32) -> Option<&Piece> {
        self.pieces.get(id as usize)?.as_ref()
    }

    /// Whether a word begins with the piece `id` behind the piece `before`: with a space, or with what stands for one.
    #[must_use]
    pub fn begins(&self, before: Option<u32>, id: u32) -> bool {
        let Some(piece) = self.piece(id) else {
            return false;
        };
        match (&self.mark, before) {
            (Mark::End(_), Some(before)) => self.piece(before).is_none_or(|piece| piece.ends),
            (Mark::End(_), None) => true,
            _ => piece.begins,
        }
    }

    /// Whether a piece belongs to the mass of a word's boundary, where one word has ended: `Some(true)` for what begins the next,
    /// `Some(false)` for other text, `None` for ids without a token.
    ///
    /// Where pieces mark the end of a word, whatever follows such an end begins a word.
    #[must_use]
    pub fn begins_after_word(&self, id: u32) -> Option<bool> {
        let piece = self.piece(id)?;
        Some(piece.begins || matches!(self.mark, Mark::End(_)))
    }

    /// The word that a piece is when it stands alone between words, without its space or mark; `None` if it begins or ends none, or is a
    /// part of a character.
    #[must_use]
    pub fn word(&self, id: u32) -> Option<&str> {
        self.piece(id)?.word.as_deref()
    }
}

/// The pieces of a word in running text, behind a space.
///
/// # Errors
/// - what the tokenizer reports
pub fn pieces_in_text(tokenizer: &Tokenizer, word: &str) -> Result<Vec<u32>, tokenizers::Error> {
    // A word before it, as tokenizers treat the beginning of a text in their own ways.
    const BEFORE: &str = "a";
    let encoding = tokenizer.encode(format!("{BEFORE} {word}"), false)?;
    let ids = encoding.get_ids().iter().zip(encoding.get_offsets());
    Ok(ids
        .filter(|(_, offsets)| offsets.1 > BEFORE.len())
        .map(|(&id, _)| id)
        .collect())
}

struct Reader<'t> {
    mark: Mark,
    decoder: Option<&'t DecoderWrapper>,
    byte_level: bool,
}

impl Reader<'_> {
    fn read(&self, token: &str) -> Result<Piece, UnknownWordStart> {
        Ok(match &self.mark {
            Mark::Space(spaces) => {
                let text = self.inside_text(token)?;
                let rest = spaces
                    .iter()
                    .map(String::as_str)
                    .chain([" "])
                    .find_map(|space| text.strip_prefix(space));
                Piece {
                    begins: rest.is_some(),
                    ends: false,
                    word: rest.and_then(|rest| self.whole(rest)),
                }
            }
            Mark::Continuation(prefix) => {
                let begins = !token.starts_with(prefix.as_str());
                Piece {
                    begins,
                    ends: false,
                    word: begins.then(|| self.whole(token)).flatten(),
                }
            }
            Mark::End(suffix) => {
                let rest = token.strip_suffix(suffix.as_str());
                Piece {
                    begins: false,
                    ends: rest.is_some(),
                    word: rest.and_then(|rest| self.whole(rest)),
                }
            }
            Mark::Whole => Piece {
                begins: true,
                ends: true,
                word: self.whole(token),
            },
            Mark::Given(prefix) => {
                let rest = token.strip_prefix(prefix.as_str());
                Piece {
                    begins: rest.is_some(),
                    ends: false,
                    word: rest.and_then(|rest| self.whole(rest)),
                }
            }
        })
    }

    /// What the decoder makes of a piece in the middle of a text: at its beginning many take a space away.
    fn inside_text(&self, token: &str) -> Result<String, UnknownWordStart> {
        const BEFORE: &str = "a";
        let Some(decoder) = self.decoder else {
            return Ok(token.to_owned());
        };
        let text = decoder
            .decode(vec![BEFORE.to_owned(), token.to_owned()])
            .map_err(|err| UnknownWordStart::Decoder {
                piece: token.to_owned(),
                problem: err.to_string(),
            })?;
        Ok(text
            .strip_prefix(BEFORE)
            .map_or_else(|| token.to_owned(), str::to_owned))
    }

    /// A word's text; bytes that the decoder did not turn into characters are turned here.
    fn whole(&self, text: &str) -> Option<String> {
        let decoded =
            self.byte_level && matches!(self.mark, Mark::Space(_)) && self.decodes_bytes();
        let text = match self.byte_level && !decoded {
            true => from_bytes(text)?,
            false => text.to_owned(),
        };
        (!text.is_empty() && !text.contains('\u{fffd}')).then_some(text)
    }

    fn decodes_bytes(&self) -> bool {
        self.decoder
            .is_some_and(|decoder| any(decoder, "ByteLevel"))
    }
}

impl Mark {
    fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let not_empty = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let (prefix, suffix) = match tokenizer.get_model() {
            ModelWrapper::WordPiece(model) => (
                Some(model.continuing_subword_prefix.clone()).filter(|p| !p.is_empty()),
                None,
            ),
            ModelWrapper::BPE(model) => (
                not_empty(&model.continuing_subword_prefix),
                not_empty(&model.end_of_word_suffix),
            ),
            _ => (None, None),
        };
        if let Some(suffix) = suffix {
            return Some(Self::End(suffix));
        }
        let spaces = spaces_of(tokenizer);
        if !spaces.is_empty() {
            return Some(Self::Space(spaces));
        }
        if let Some(prefix) = prefix {
            return Some(Self::Continuation(prefix));
        }
        // Spaces as they are, in pieces of their own or with a word?
        let pieces = tokenizer.encode_fast("a a", false).ok()?;
        let ids = pieces.get_ids();
        if ids.iter().any(|&id| {
            tokenizer
                .id_to_token(id)
                .is_some_and(|token| token.contains(' '))
        }) {
            return Some(Self::Space(Vec::new()));
        }
        matches!(tokenizer.get_model(), ModelWrapper::WordLevel(_)).then_some(Self::Whole)
    }
}

/// What stands for a space in the pieces: from pre-tokenizer, normalizer and decoder.
fn spaces_of(tokenizer: &Tokenizer) -> Vec<String> {
    let mut spaces = Vec::new();
    let mut add = |space: &str| {
        if !space.is_empty() && !spaces.iter().any(|known| known == space) {
            spaces.push(space.to_owned());
        }
    };
    if has_byte_level(tokenizer) {
        add("Ġ");
    }
    let mut visit = |part: &Value, decodes: bool| match part["type"].as_str() {
        Some("Metaspace") => add(part["replacement"].as_str().unwrap_or_default()),
        Some("Replace") => {
            let (from, to) = (
                part["pattern"]["String"].as_str().unwrap_or_default(),
                part["content"].as_str().unwrap_or_default(),
            );
            match (decodes, from, to) {
                (false, " ", space) | (true, space, " ") if space != " " => add(space),
                _ => {}
            }
        }
        _ => {}
    };
    for part in parts(&tokenizer.get_normalizer())
        .iter()
        .chain(&parts(&tokenizer.get_pre_tokenizer()))
    {
        visit(part, false);
    }
    for part in &parts(&tokenizer.get_decoder()) {
        visit(part, true);
    }
    spaces
}

fn has_byte_level(tokenizer: &Tokenizer) -> bool {
    any(&tokenizer.get_pre_tokenizer(), "ByteLevel")
        || any(&tokenizer.get_decoder(), "ByteLevel")
        || any(&tokenizer.get_normalizer(), "ByteLevel")
}

/// Whether a part of a tokenizer is of this type, or has one inside.
fn any(part: &impl Serialize, kind: &str) -> bool {
    parts(part).iter().any(|part| part["type"] == kind)
}

/// A part of a tokenizer, sequences taken apart.
fn parts(part: &impl Serialize) -> Vec<Value> {
    let mut found = Vec::new();
    let mut open = vec![serde_json::to_value(part).unwrap_or_default()];
    while let Some(part) = open.pop() {
        for key in ["normalizers", "pretokenizers", "decoders"] {
            open.extend(part[key].as_array().into_iter().flatten().cloned());
        }
        found.push(part);
    }
    found
}

/// The text of byte-level characters: each byte is written as a printable character (GPT-2). `None` for a part of a character.
fn from_bytes(text: &str) -> Option<String> {
    let raw: Option<Vec<u8>> = text.chars().map(byte_of).collect();
    String::from_utf8(raw?).ok()
}

fn byte_of(c: char) -> Option<u8> {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if let Some(byte) = u8::try_from(c).ok().filter(printable) {
        return Some(byte);
    }
    let place = u32::from(c).checked_sub(0x100)? as usize;
    (0..=255u8).filter(|byte| !printable(byte)).nth(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back() {
        assert_eq!(from_bytes("Ġwhale").as_deref(), Some(" whale"));
        assert_eq!(from_bytes("ĠÃ©").as_deref(), Some(" é"));
        assert_eq!(from_bytes("Ã"), None);
        let all: Vec<u8> = ('\0'..'\u{200}').filter_map(byte_of).collect();
        assert_eq!(all.len(), 256);
    }
}
