//! Checkpoints from the Hugging Face hub, through the cache that Python tools use.
//!
//! Files land where `huggingface_hub` puts them, so what one tool has fetched the other finds. The
//! layout and addresses are those of the `hf-hub` crate. Its transfer is not used: it appends to a
//! part file when a server ignores the range, gives up after 5 s when another process downloads
//! the same file, checks no hash, and does not report `Retry-After`.
//!
//! Written against the protocol and tested with a local server; the live hub was not reached.

mod cache;
mod error;
mod http;
mod options;

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use hf_hub::{Repo, RepoType};
use model_conventions::weight_files::read_index;
use model_conventions::{WeightFiles, step_of};
use serde::Deserialize;

pub use error::HubError;
pub use options::{HubOptions, Token};

use cache::CacheDir;
use http::Http;

/// How far the download of one file has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Transfer<'a> {
    /// Name inside the repository.
    pub file: &'a str,
    /// Bytes on disk, those of an earlier, interrupted run included.
    pub done: u64,
    /// Size of the file in bytes.
    pub total: u64,
}

/// Called as bytes arrive; `&mut |_| ()` shows nothing.
pub type OnTransfer<'a> = &'a mut dyn FnMut(&Transfer<'_>);

/// A client of one hub with one cache.
///
/// # Examples
/// ```no_run
/// use checkpoint_source::{Hub, HubOptions};
///
/// let hub = Hub::new(HubOptions::from_env(None)?);
/// let dir = hub.checkpoint("EleutherAI/pythia-70m", "step3000", &mut |transfer| {
///     eprintln!("{} {}/{}", transfer.file, transfer.done, transfer.total);
/// })?;
/// assert!(dir.join("config.json").exists());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Hub {
    http: Http,
    options: HubOptions,
}

/// What the hub says of a revision.
#[derive(Debug, Deserialize)]
struct RevisionInfo {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
struct Sibling {
    /// Name inside the repository, with `/` between folders.
    rfilename: String,
    /// Of large files only.
    #[serde(default)]
    lfs: Option<Lfs>,
}

#[derive(Debug, Deserialize)]
struct Lfs {
    #[serde(default)]
    sha256: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Refs {
    #[serde(default)]
    branches: Vec<Ref>,
    #[serde(default)]
    tags: Vec<Ref>,
}

#[derive(Debug, Deserialize)]
struct Ref {
    name: String,
}

impl Hub {
    /// A client; nothing is sent yet.
    #[must_use]
    pub fn new(options: HubOptions) -> Self {
        Self {
            http: Http::new(&options),
            options,
        }
    }

    /// Where files come from and go to.
    #[must_use]
    pub fn options(&self) -> &HubOptions {
        &self.options
    }

    /// Folder of a model revision with `config.json`, `tokenizer.json` where there is one, and
    /// weights: safetensors, or `pytorch_model.bin` when the revision has no other.
    ///
    /// A revision that is whole in the cache is used as it is, without a request. Otherwise only
    /// what is missing is fetched; an interrupted download goes on where it stopped.
    ///
    /// # Errors
    /// - [`HubError`] in words for users: not cached and no network, access refused, no such
    ///   revision and the nearest ones, disk full, wrong hash
    pub fn checkpoint(
        &self,
        repo: &str,
        revision: &str,
        on_transfer: OnTransfer<'_>,
    ) -> Result<PathBuf, HubError> {
        let repo = checked_repo(repo, revision)?;
        let cache = CacheDir::new(&self.options.cache, &repo);
        if let Some(dir) = cache.snapshot()
            && whole_checkpoint(&dir)
        {
            return Ok(dir);
        }
        let listing = self.listing(&repo, &cache)?;
        let has = |name: &str| listing.siblings.iter().find(|file| file.rfilename == name);
        let config = has("config.json").ok_or_else(|| no_file(&repo, "config.json"))?;
        let mut wanted = vec![config];
        wanted.extend(has("tokenizer.json"));
        let weights = WeightFiles::CANDIDATES
            .iter()
            .find_map(|&(name, _, sharded)| Some((has(name)?, sharded)));
        let Some((weights, sharded)) = weights else {
            return Err(HubError::NoWeights {
                repo: repo.url(),
                revision: repo.revision().to_owned(),
            });
        };
        wanted.push(weights);
        for file in wanted {
            self.fetch(&repo, &cache, &listing.sha, file, on_transfer)?;
        }
        if sharded {
            let index = cache.pointer(&listing.sha, &weights.rfilename);
            let index: BTreeMap<String, String> =
                read_index(&index).map_err(|source| HubError::BadIndex {
                    repo: repo.url(),
                    source,
                })?;
            let mut shards: Vec<&String> = index.values().collect();
            shards.sort_unstable();
            shards.dedup();
            for name in shards {
                let file = has(name).ok_or_else(|| no_file(&repo, name))?;
                self.fetch(&repo, &cache, &listing.sha, file, on_transfer)?;
            }
        }
        cache.write_ref(&listing.sha)?;
        Ok(cache.snapshot_of(&listing.sha))
    }

    /// Branches and tags of a model repository; offline, those in the cache.
    ///
    /// # Errors
    /// - [`HubError`], as [`Hub::checkpoint`]
    pub fn revisions(&self, repo: &str) -> Result<Vec<String>, HubError> {
        let repo = checked_repo(repo, "main")?;
        if self.options.offline {
            return Ok(CacheDir::new(&self.options.cache, &repo).revisions());
        }
        self.remote_revisions(&repo)
    }

    fn remote_revisions(&self, repo: &Repo) -> Result<Vec<String>, HubError> {
        let url = format!("{}/api/models/{}/refs", self.options.endpoint, repo.url());
        let refs: Refs = self.http.json(&url, &self.subject(repo))?;
        Ok(refs
            .branches
            .into_iter()
            .chain(refs.tags)
            .map(|found| found.name)
            .collect())
    }

    /// Commit and files of a revision. `blobs=true` makes the hub add hashes.
    fn listing(&self, repo: &Repo, cache: &CacheDir) -> Result<RevisionInfo, HubError> {
        if self.options.offline {
            return Err(HubError::NotCached {
                repo: repo.url(),
                revision: repo.revision().to_owned(),
                cache: self.options.cache.clone(),
                missing: cache.missing(),
                command: fetch_command(repo),
            });
        }
        let url = format!(
            "{}/api/{}?blobs=true",
            self.options.endpoint,
            repo.api_url()
        );
        let info: RevisionInfo = match self.http.json(&url, &self.subject(repo)) {
            Err(HubError::NoRevision {
                repo: id, revision, ..
            }) => {
                // A second failure here would hide the first.
                let known = self.remote_revisions(repo).unwrap_or_default();
                return Err(HubError::NoRevision {
                    nearest: nearest(&revision, &known),
                    repo: id,
                    revision,
                });
            }
            other => other?,
        };
        if !is_commit(&info.sha) {
            return Err(HubError::Protocol {
                url,
                problem: "the revision has no commit hash".into(),
            });
        }
        if let Some(bad) = info
            .siblings
            .iter()
            .find(|file| !is_safe_path(&file.rfilename))
        {
            return Err(HubError::Protocol {
                url,
                problem: format!("file name `{}` leaves the repository", bad.rfilename),
            });
        }
        Ok(info)
    }

    /// One file, from the cache or the hub, as the path of its entry in the snapshot.
    fn fetch(
        &self,
        repo: &Repo,
        cache: &CacheDir,
        commit: &str,
        file: &Sibling,
        on_transfer: OnTransfer<'_>,
    ) -> Result<PathBuf, HubError> {
        let pointer = cache.pointer(commit, &file.rfilename);
        if pointer.exists() {
            return Ok(pointer);
        }
        let url = format!(
            "{}/{}/resolve/{commit}/{}",
            self.options.endpoint,
            repo.url(),
            percent_encoded(&file.rfilename)
        );
        let subject = self.subject(repo);
        let head = self.http.head(&url, &subject)?;
        let _lock = cache.lock(&head.etag)?;
        // Another process may have finished it while this one waited for the lock.
        if !cache.blob(&head.etag).exists() {
            let part = cache.part(&head.etag)?;
            let job = http::Download {
                url: &url,
                file: &file.rfilename,
                part: &part,
                bytes: head.bytes,
                sha256: file
                    .lfs
                    .as_ref()
                    .and_then(|lfs| lfs.sha256.clone())
                    .or_else(|| head.sha256()),
            };
            self.http.download(&job, &subject, on_transfer)?;
            cache.keep(&part, &head.etag)?;
        }
        cache.link(commit, &file.rfilename, &head.etag)?;
        Ok(pointer)
    }

    fn subject<'a>(&'a self, repo: &'a Repo) -> http::Subject<'a> {
        http::Subject {
            repo,
            page: format!("{}/{}", self.options.endpoint, repo.url()),
            command: fetch_command(repo),
        }
    }
}

fn no_file(repo: &Repo, name: &str) -> HubError {
    HubError::NoFile {
        repo: repo.url(),
        revision: repo.revision().to_owned(),
        file: name.to_owned(),
    }
}

/// What to run where there is network, with huggingface_hub's own command.
fn fetch_command(repo: &Repo) -> String {
    let (id, revision) = (repo.url(), repo.revision());
    format!("hf download {id} --revision {revision} --exclude '*.msgpack' '*.h5'")
}

/// Names that cannot leave the cache folder or change the address.
fn checked_repo(id: &str, revision: &str) -> Result<Repo, HubError> {
    let plain = |text: &str| {
        text.chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && !text.is_empty()
            && !text.starts_with(['.', '-'])
            && !text.contains("..")
    };
    let parts: Vec<&str> = id.split('/').collect();
    if parts.len() > 2 || !parts.iter().all(|part| plain(part) && !part.contains("--")) {
        return Err(HubError::BadName {
            what: "repository",
            text: id.to_owned(),
        });
    }
    if !revision.split('/').all(plain) {
        return Err(HubError::BadName {
            what: "revision",
            text: revision.to_owned(),
        });
    }
    Ok(Repo::with_revision(
        id.to_owned(),
        RepoType::Model,
        revision.to_owned(),
    ))
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Relative, downwards only.
fn is_safe_path(name: &str) -> bool {
    !name.is_empty()
        && !name.contains(['\\', '\0'])
        && Path::new(name)
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
}

fn percent_encoded(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte) {
            text.push(byte.into());
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// Whether a folder has a config and all the weight files it should have.
fn whole_checkpoint(dir: &Path) -> bool {
    dir.join("config.json").exists()
        && WeightFiles::find(dir).is_ok_and(|files| files.paths().all(|path| path.exists()))
}

/// The known revisions most like the one asked for: by step number, else by name.
pub(crate) fn nearest(wanted: &str, known: &[String]) -> Vec<String> {
    const SHOWN: usize = 3;
    let mut known: Vec<&String> = known.iter().collect();
    match step_of(wanted) {
        Some(step) => {
            known.retain(|name| step_of(name).is_some());
            known.sort_by_key(|name| step_of(name).map_or(u64::MAX, |other| other.abs_diff(step)));
        }
        None => {
            let shared = |name: &str| {
                let same = name.chars().zip(wanted.chars()).take_while(|(a, b)| a == b);
                std::cmp::Reverse(same.count())
            };
            known.sort_by_key(|name| (shared(name), name.len(), name.as_str().to_owned()));
        }
    }
    known.into_iter().take(SHOWN).cloned().collect()
}
