//! The tokenizer of a checkpoint, and the tokens that begin and end a text.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use job_kit::RunRecord;
use model_conventions::{Fit, TextEnds, fit};
use neox_core::{Architecture, Text};

use crate::config::{ModelConfig, TokenName};

/// A tokenizer and where it was read.
#[derive(Debug, Clone)]
pub struct Tokens {
    /// `tokenizer.json`
    pub path: PathBuf,
    /// The tokenizer.
    pub text: Text,
}

impl Tokens {
    /// The tokenizer of a checkpoint ([`ModelConfig::tokenizer_file`]), if there is one.
    ///
    /// # Errors
    /// If it cannot be read, or cannot be the one of a vocabulary of this size.
    pub fn read(
        config: &ModelConfig,
        checkpoint: &Path,
        model: &Architecture,
        record: &mut RunRecord,
    ) -> anyhow::Result<Option<Self>> {
        let Some(path) = config.tokenizer_file(checkpoint) else {
            return Ok(None);
        };
        let text = Text::from_file(&path)?.with_word_start(config.word_start.clone());
        let (n_tokens, d_vocab) = (text.n_tokens(), usize::try_from(model.vocab_size)?);
        let sizes = format!(
            "the tokenizer `{}` has {n_tokens} tokens, but the vocabulary of `{}` has {d_vocab} rows",
            path.display(),
            checkpoint.display()
        );
        match fit(n_tokens, d_vocab) {
            Fit::Usual => {}
            Fit::Wide => record.warn(format!(
                "{sizes}, more than models have as padding: if it is another model's, set `model.tokenizer`"
            )),
            Fit::No => bail!(
                "{sizes}: it is another model's; set `model.tokenizer` to the tokenizer.json of this model"
            ),
        }
        record.input(&path)?;
        Ok(Some(Self { path, text }))
    }
}

/// The tokens before and behind a text.
///
/// One rule for all jobs: what the configuration says (`model.bos_token`, `model.eos_token`), else `config.json`, else the files of the
/// tokenizer ([`TextEnds`]); where none of them says it, it is an error, as any guess would change every number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// Put before a text.
    pub bos: i64,
    /// Ends a text.
    pub eos: i64,
}

impl Ends {
    /// Finds both.
    ///
    /// # Errors
    /// If nothing says one of them, or a token is named that is none.
    pub fn find(
        config: &ModelConfig,
        model: &Architecture,
        tokens: Option<&Tokens>,
        record: &mut RunRecord,
    ) -> anyhow::Result<Self> {
        let bos = model.bos_token_id;
        let eos = match model.eos_token_ids[..] {
            [] => None,
            [id] => Some(id),
            ref several if config.eos_token.is_none() => bail!(
                "`eos_token_id` of config.json is a list, {several:?}: set `model.eos_token` to the one that ends a document"
            ),
            _ => None,
        };
        let files = match tokens {
            Some(tokens) => TextEnds::of(&tokens.path)?,
            None => TextEnds::default(),
        };
        let end = End {
            d_vocab: model.vocab_size,
            tokens,
        };
        let (bos, bos_from) = end.find("bos", "begins", &config.bos_token, bos, files.bos)?;
        let (eos, eos_from) = end.find("eos", "ends", &config.eos_token, eos, files.eos)?;
        record.note(
            "text_ends",
            serde_json::json!({"bos": bos, "bos_from": bos_from, "eos": eos, "eos_from": eos_from}),
        );
        Ok(Self { bos, eos })
    }
}

/// What is needed to find one of them.
struct End<'t> {
    d_vocab: i64,
    tokens: Option<&'t Tokens>,
}

impl End<'_> {
    fn find(
        &self,
        name: &str,
        does: &str,
        configured: &Option<TokenName>,
        model: Option<i64>,
        file: Option<String>,
    ) -> anyhow::Result<(i64, String)> {
        let key = format!("model.{name}_token");
        if let Some(token) = configured {
            let id = match token {
                TokenName::Id(id) => self.checked(*id),
                TokenName::Text(text) => self.id(text),
            };
            return Ok((id.with_context(|| format!("`{key}`"))?, key));
        }
        if let Some(id) = model {
            return Ok((id, "config.json".into()));
        }
        if let (Some(text), Some(tokens)) = (file, self.tokens) {
            let from = tokens.path.display().to_string();
            let id = self.id(&text).with_context(|| {
                format!("`{name}_token` of the tokenizer in `{from}`: set `{key}`")
            })?;
            return Ok((id, from));
        }
        let (files, example) = match self.tokens {
            None => ("there is no tokenizer".to_owned(), None),
            Some(tokens) => {
                let mut special: Vec<(u32, String)> = tokens
                    .text
                    .tokenizer()
                    .get_added_tokens_decoder()
                    .into_iter()
                    .filter(|(_, token)| token.special)
                    .map(|(id, token)| (id, token.content))
                    .collect();
                special.sort_unstable();
                let list: Vec<String> = special
                    .iter()
                    .take(8)
                    .map(|(id, token)| format!("`{token}` ({id})"))
                    .collect();
                let files = format!(
                    "the tokenizer `{}` does not say it; its special tokens are {}",
                    tokens.path.display(),
                    if list.is_empty() {
                        "none".to_owned()
                    } else {
                        list.join(", ")
                    }
                );
                (files, special.into_iter().next())
            }
        };
        let example = example.map_or_else(|| "0".to_owned(), |(_, token)| token);
        bail!(
            "nothing says which token {does} a text: `{name}_token_id` is not set in config.json, and {files}. Set `{key}`, such as `{key}='{example}'`"
        )
    }

    fn id(&self, text: &str) -> anyhow::Result<i64> {
        let Some(tokens) = self.tokens else {
            bail!("`{text}` is no id, and there is no tokenizer: give its id");
        };
        let id = tokens
            .text
            .id(text)
            .with_context(|| format!("`{text}` is no token of `{}`", tokens.path.display()))?;
        self.checked(id)
    }

    fn checked(&self, id: i64) -> anyhow::Result<i64> {
        if !(0..self.d_vocab).contains(&id) {
            bail!(
                "token {id} is not in the vocabulary of {} rows, expected 0 to {}",
                self.d_vocab,
                self.d_vocab - 1
            );
        }
        Ok(id)
    }
}
