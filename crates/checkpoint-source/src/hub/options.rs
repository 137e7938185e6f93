//! Addresses, folders and tokens, from the variables that Hugging Face tools share.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::HubError;

/// A secret that is sent to the hub and never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Takes a token, spaces around it removed; `None` if nothing is left.
    ///
    /// # Errors
    /// - [`HubError::BadToken`] if it holds anything but printable ASCII; `origin` is named, the
    ///   token is not
    pub fn new(text: &str, origin: &str) -> Result<Option<Self>, HubError> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(HubError::BadToken {
                origin: origin.to_owned(),
            });
        }
        Ok(Some(Self(text.to_owned())))
    }

    pub(super) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

/// Where files come from and go to.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HubOptions {
    /// Address of the hub, without a slash at the end.
    pub endpoint: String,
    /// Folder of the shared cache (`.../huggingface/hub`).
    pub cache: PathBuf,
    /// Sent to the endpoint only, never to another host that it redirects to.
    pub token: Option<Token>,
    /// Use the cache alone.
    pub offline: bool,
    /// Tries in a row that may bring no byte before a download fails.
    pub tries: u32,
    /// Pause after the first failed try; it doubles with each.
    pub backoff: Duration,
    /// Longest silence of a server.
    pub timeout: Duration,
}

impl HubOptions {
    /// The public hub with this cache folder, no token.
    #[must_use]
    pub fn new(cache: PathBuf) -> Self {
        Self {
            endpoint: "https://huggingface.co".into(),
            cache,
            token: None,
            offline: false,
            tries: 5,
            backoff: Duration::from_millis(500),
            timeout: Duration::from_secs(30),
        }
    }

    /// Reads `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HOME`, `HF_HUB_OFFLINE`, `HF_TOKEN` and
    /// `HF_TOKEN_PATH` from the environment.
    ///
    /// The token is the one in `token_file` if given, else `HF_TOKEN`, else the one that
    /// `hf auth login` has stored.
    ///
    /// # Errors
    /// - [`HubError::TokenFile`] if `token_file` cannot be read, [`HubError::BadToken`]
    /// - [`HubError::NoCacheDir`] if neither a cache folder nor a home is known
    pub fn from_env(token_file: Option<&Path>) -> Result<Self, HubError> {
        Self::from_vars(token_file, |name| std::env::var(name).ok())
    }

    /// The same with the variables looked up in `var`.
    ///
    /// # Errors
    /// - as [`HubOptions::from_env`]
    pub fn from_vars(
        token_file: Option<&Path>,
        var: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, HubError> {
        let var = |name: &str| var(name).filter(|value| !value.trim().is_empty());
        let path = |name: &str| var(name).map(PathBuf::from);
        let home = path("HF_HOME")
            .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(path("HOME")?.join(".cache/huggingface")));
        let cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| Some(home.clone()?.join("hub")))
            .ok_or(HubError::NoCacheDir)?;

        let token = if let Some(file) = token_file {
            let text = std::fs::read_to_string(file).map_err(|source| HubError::TokenFile {
                path: file.to_owned(),
                source,
            })?;
            Token::new(&text, &format!("`{}`", file.display()))?
        } else if let Some(text) = var("HF_TOKEN").or_else(|| var("HUGGING_FACE_HUB_TOKEN")) {
            Token::new(&text, "HF_TOKEN")?
        } else {
            // Where `hf auth login` leaves it; usually there is none.
            path("HF_TOKEN_PATH")
                .or_else(|| Some(home?.join("token")))
                .and_then(|file| std::fs::read_to_string(file).ok())
                .map(|text| Token::new(&text, "the stored login"))
                .transpose()?
                .flatten()
        };
        let mut options = Self::new(cache);
        if let Some(endpoint) = var("HF_ENDPOINT") {
            options.endpoint = endpoint.trim().trim_end_matches('/').to_owned();
        }
        options.offline = var("HF_HUB_OFFLINE").is_some_and(|value| {
            ["1", "true", "yes", "on"].contains(&value.trim().to_ascii_lowercase().as_str())
        });
        options.token = token;
        Ok(options)
    }
}
