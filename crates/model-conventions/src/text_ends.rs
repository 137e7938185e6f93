//! Which tokens begin and end a text, as the files of a tokenizer say.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Why the files of a tokenizer do not say which tokens begin and end a text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextEndsError {
    /// A file that cannot be read.
    #[error("failed to read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file that is no JSON.
    #[error("`{}` is not JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

/// The token before and the token behind a text, as the tokenizer spells them; none where its files do not say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TextEnds {
    /// Beginning of sequence.
    pub bos: Option<String>,
    /// End of text.
    pub eos: Option<String>,
}

impl TextEnds {
    /// Looks where transformers does: `bos_token` and `eos_token` of `tokenizer_config.json`, then of `special_tokens_map.json` beside
    /// `tokenizer`; else the tokens that the tokenizer's own post-processor puts around a text; else its special token, if it has only one.
    ///
    /// # Errors
    /// - [`TextEndsError`] if one of these files is there and cannot be read
    pub fn of(tokenizer: &Path) -> Result<Self, TextEndsError> {
        let mut ends = Self::default();
        for name in ["tokenizer_config.json", "special_tokens_map.json"] {
            let path = tokenizer.with_file_name(name);
            if path.is_file() {
                let json = read(&path)?;
                ends = ends.or(|| Self {
                    bos: named(&json, "bos_token"),
                    eos: named(&json, "eos_token"),
                });
            }
        }
        let json = read(tokenizer)?;
        Ok(ends
            .or(|| around(&json["post_processor"]))
            .or(|| only_special(&json["added_tokens"])))
    }

    /// Fills what is missing.
    fn or(self, other: impl FnOnce() -> Self) -> Self {
        if self.bos.is_some() && self.eos.is_some() {
            return self;
        }
        let other = other();
        Self {
            bos: self.bos.or(other.bos),
            eos: self.eos.or(other.eos),
        }
    }
}

fn read(path: &Path) -> Result<Value, TextEndsError> {
    let text = fs::read_to_string(path).map_err(|source| TextEndsError::Read {
        path: path.to_owned(),
        source,
    })?;
    serde_json::from_str(text.trim_start_matches('\u{feff}')).map_err(|source| {
        TextEndsError::Json {
            path: path.to_owned(),
            source,
        }
    })
}

/// `"<s>"` or `{"content": "<s>", ...}`
fn named(json: &Value, key: &str) -> Option<String> {
    let token = &json[key];
    let text = token.as_str().or_else(|| token["content"].as_str())?;
    (!text.is_empty()).then(|| text.to_owned())
}

/// What a post-processor puts before and behind a single text.
fn around(processor: &Value) -> TextEnds {
    match processor["type"].as_str() {
        Some("TemplateProcessing") => {
            let pieces = processor["single"]
                .as_array()
                .map_or(&[][..], Vec::as_slice);
            let special = |piece: &Value| Some(piece["SpecialToken"]["id"].as_str()?.to_owned());
            let text = pieces
                .iter()
                .position(|piece| piece["Sequence"].is_object());
            let (before, behind) = pieces.split_at(text.unwrap_or(0));
            TextEnds {
                bos: before.iter().find_map(special),
                eos: behind.iter().find_map(special),
            }
        }
        Some("RobertaProcessing" | "BertProcessing") => {
            let token = |key: &str| Some(processor[key][0].as_str()?.to_owned());
            TextEnds {
                bos: token("cls"),
                eos: token("sep"),
            }
        }
        Some("Sequence") => processor["processors"]
            .as_array()
            .into_iter()
            .flatten()
            .fold(TextEnds::default(), |ends, inner| ends.or(|| around(inner))),
        _ => TextEnds::default(),
    }
}

/// A tokenizer with a single special token has it before and behind a text, as GPT-2's does.
fn only_special(added: &Value) -> TextEnds {
    let special: Vec<&Value> = added
        .as_array()
        .into_iter()
        .flatten()
        .filter(|token| token["special"] == true)
        .collect();
    let only = match special[..] {
        [token] => token["content"].as_str().map(str::to_owned),
        _ => None,
    };
    TextEnds {
        bos: only.clone(),
        eos: only,
    }
}
