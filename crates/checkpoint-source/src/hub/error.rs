//! What can go wrong with the hub, in words for users. No message ever holds a token.

use std::io;
use std::path::PathBuf;

use model_conventions::WeightFilesError;

/// Why a file did not come from the hub.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// A name that the hub does not allow.
    #[error("`{text}` is not the name of a {what}")]
    BadName {
        /// Repository or revision.
        what: &'static str,
        /// What was given.
        text: String,
    },
    /// No folder for the cache.
    #[error("no folder for the cache: set HF_HOME")]
    NoCacheDir,
    /// A token file that cannot be read.
    #[error("failed to read the token file `{}`", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A token with characters that tokens do not have.
    #[error("the token from {origin} is not one: it holds spaces or control characters")]
    BadToken {
        /// Variable or file.
        origin: String,
    },
    /// Offline, and not all there.
    #[error(
        "`{repo}` at `{revision}` is not complete in the cache `{}` (missing: {missing}) and HF_HUB_OFFLINE forbids fetching it; \
         where there is network and with the same HF_HOME, run: {command}",
        cache.display()
    )]
    NotCached {
        /// The repository.
        repo: String,
        /// The revision.
        revision: String,
        /// Folder of the cache.
        cache: PathBuf,
        /// What is missing.
        missing: String,
        /// How to fetch it ahead.
        command: String,
    },
    /// The hub did not answer.
    #[error(
        "no answer from `{url}`; to fetch ahead, run where there is network, with the same HF_HOME: {command}"
    )]
    Network {
        /// Address without its query.
        url: String,
        /// How to fetch ahead.
        command: String,
        /// What the connection failed with.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// 401 or 403.
    #[error(
        "access to `{repo}` was refused ({status}): {}; if it is gated, accept its terms at {page}",
        if *with_token { "the token given does not allow it" }
        else { "it is gated, private or not there, and no token was given: set HF_TOKEN, or name a file that holds one" }
    )]
    Refused {
        /// The repository.
        repo: String,
        /// HTTP status.
        status: u16,
        /// Its page.
        page: String,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// No such repository.
    #[error("repository `{repo}` not found at {page}")]
    NoRepo {
        /// The repository.
        repo: String,
        /// Its page, if it existed.
        page: String,
    },
    /// No such revision.
    #[error(
        "`{repo}` has no revision `{revision}`{}",
        if nearest.is_empty() { String::new() } else { format!("; nearest: {}", nearest.join(", ")) }
    )]
    NoRevision {
        /// The repository.
        repo: String,
        /// What was asked for.
        revision: String,
        /// Revisions like it.
        nearest: Vec<String>,
    },
    /// A revision without a file it should have.
    #[error("`{repo}` at `{revision}` has no file `{file}`")]
    NoFile {
        /// The repository.
        repo: String,
        /// The revision.
        revision: String,
        /// The file.
        file: String,
    },
    /// A revision without weights.
    #[error("`{repo}` at `{revision}` has neither safetensors nor pytorch_model.bin")]
    NoWeights {
        /// The repository.
        repo: String,
        /// The revision.
        revision: String,
    },
    /// An index of shards that makes no sense.
    #[error("bad index of weights in `{repo}`")]
    BadIndex {
        /// The repository.
        repo: String,
        /// What is wrong with it.
        source: WeightFilesError,
    },
    /// Too many requests, or a server in trouble, until the last try.
    #[error("`{url}` still answered {status} after {tries} tries; try again later")]
    Busy {
        /// Address without its query.
        url: String,
        /// HTTP status.
        status: u16,
        /// Requests made.
        tries: u32,
    },
    /// Any other status.
    #[error("`{url}` answered {status}")]
    Status {
        /// Address without its query.
        url: String,
        /// HTTP status.
        status: u16,
    },
    /// An answer that the protocol does not allow.
    #[error("unexpected answer from `{url}`: {problem}")]
    Protocol {
        /// Address without its query.
        url: String,
        /// What was expected.
        problem: String,
    },
    /// A whole download with the wrong content; it was deleted.
    #[error(
        "`{file}` arrived damaged: expected SHA-256 {expected}, found {found}; the download was deleted"
    )]
    Hash {
        /// The file.
        file: String,
        /// What the hub promised.
        expected: String,
        /// What arrived.
        found: String,
    },
    /// No room for the download.
    #[error("disk full while writing `{}` of {bytes} bytes; what has arrived is kept", path.display())]
    DiskFull {
        /// The file.
        path: PathBuf,
        /// Size of the whole file.
        bytes: u64,
    },
    /// The cache cannot be read or written.
    #[error("failed to use the cache at `{}`", path.display())]
    Cache {
        /// File or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}
