//! Where checkpoints come from: a local folder, a folder of steps, or a hub repository.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use model_conventions::{SameStep, StepNames, step_of};

use crate::hub::{Hub, HubError, OnTransfer, nearest};

/// Why a checkpoint was not found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// A folder that cannot be listed.
    #[error("failed to list `{}`", path.display())]
    List {
        /// The folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A folder that holds steps, and none was named.
    #[error("`{}` holds several checkpoints ({}): name one as the revision", path.display(), examples.join(", "))]
    WhichStep {
        /// The folder.
        path: PathBuf,
        /// Some of them.
        examples: Vec<String>,
    },
    /// A folder without the revision asked for.
    #[error(
        "`{}` has no `{revision}`{}", path.display(),
        if nearest.is_empty() { String::new() } else { format!("; nearest: {}", nearest.join(", ")) }
    )]
    NoRevision {
        /// The folder.
        path: PathBuf,
        /// What was asked for.
        revision: String,
        /// Revisions like it.
        nearest: Vec<String>,
    },
    /// A folder that holds no checkpoint at all.
    #[error("`{}` is not a checkpoint: no config.json, and no folders such as step512 with one", path.display())]
    NotACheckpoint {
        /// The folder.
        path: PathBuf,
    },
    /// Two revisions of one step.
    #[error("`{place}` has two checkpoints of one step")]
    SameStep {
        /// The folder or repository.
        place: String,
        /// Which.
        source: SameStep,
    },
    /// The hub.
    #[error(transparent)]
    Hub(#[from] HubError),
}

/// A model whose checkpoints can be asked for by revision (`main`, `step3000`).
///
/// # Examples
/// ```
/// # use checkpoint_source::Source;
/// let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data/tiny-neox");
/// # if !std::path::Path::new(root).exists() { return Ok(()); } // the crate without its repository
/// let source = Source::folder(root);
/// assert_eq!(source.revisions()?[..3], ["step0", "step1", "step64"]);
/// assert!(source.checkpoint(Some("step512"), &mut |_| ())?.join("config.json").exists());
/// let err = source.checkpoint(Some("step513"), &mut |_| ()).unwrap_err();
/// assert!(err.to_string().ends_with("no `step513`; nearest: step512, step64, step1000"));
/// # Ok::<(), checkpoint_source::SourceError>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Source {
    /// One checkpoint, or folders `step<N>`, `checkpoint-<N>` with one each.
    Folder(PathBuf),
    /// A repository on a hub.
    Hub {
        /// Client and cache.
        hub: Box<Hub>,
        /// Such as `EleutherAI/pythia-70m`.
        repo: String,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "{}", path.display()),
            Self::Hub { repo, .. } => f.write_str(repo),
        }
    }
}

impl Source {
    /// A local folder: a checkpoint, or one with folders `step<N>`.
    pub fn folder(path: impl Into<PathBuf>) -> Self {
        Self::Folder(path.into())
    }

    /// A repository on a hub.
    pub fn hub(hub: Hub, repo: impl Into<String>) -> Self {
        Self::Hub {
            hub: Box::new(hub),
            repo: repo.into(),
        }
    }

    /// Folder of one checkpoint, fetched if need be. Without a revision: the folder itself, or the
    /// hub's `main`.
    ///
    /// # Errors
    /// - [`SourceError`], which lists the nearest revisions where there are any
    pub fn checkpoint(
        &self,
        revision: Option<&str>,
        on_transfer: OnTransfer<'_>,
    ) -> Result<PathBuf, SourceError> {
        match self {
            Self::Folder(root) => local_checkpoint(root, revision),
            Self::Hub { hub, repo } => {
                Ok(hub.checkpoint(repo, revision.unwrap_or("main"), on_transfer)?)
            }
        }
    }

    /// The revisions there are: steps in their order, then others by name.
    ///
    /// # Errors
    /// - [`SourceError::List`] for a folder that cannot be read, [`SourceError::Hub`]
    pub fn revisions(&self) -> Result<Vec<String>, SourceError> {
        let mut names = match self {
            Self::Folder(root) => local_revisions(root)?,
            Self::Hub { hub, repo } => hub.revisions(repo)?,
        };
        names.sort_by_key(|name| (step_of(name).unwrap_or(u64::MAX), name.clone()));
        Ok(names)
    }

    /// The same, sorted into steps (`step512`, `step-512`, `checkpoint-000512`: see [`step_of`]) and others.
    ///
    /// # Errors
    /// - [`SourceError::SameStep`] if two names say one step
    /// - as [`Source::revisions`]
    pub fn steps(&self) -> Result<StepNames, SourceError> {
        StepNames::among(self.revisions()?).map_err(|source| SourceError::SameStep {
            place: self.to_string(),
            source,
        })
    }
}

fn local_checkpoint(root: &Path, revision: Option<&str>) -> Result<PathBuf, SourceError> {
    let is_checkpoint = |dir: &Path| dir.join("config.json").is_file();
    let Some(revision) = revision else {
        if is_checkpoint(root) {
            return Ok(root.to_owned());
        }
        let mut examples = Source::folder(root).revisions()?;
        if examples.is_empty() {
            return Err(SourceError::NotACheckpoint {
                path: root.to_owned(),
            });
        }
        examples.truncate(8);
        return Err(SourceError::WhichStep {
            path: root.to_owned(),
            examples,
        });
    };
    let dir = root.join(revision);
    let plain = revision != ".." && !revision.contains(['/', '\\']);
    if plain && is_checkpoint(&dir) {
        return Ok(dir);
    }
    Err(SourceError::NoRevision {
        path: root.to_owned(),
        revision: revision.to_owned(),
        nearest: nearest(revision, &local_revisions(root)?),
    })
}

/// Folders in `root` that hold a config.
fn local_revisions(root: &Path) -> Result<Vec<String>, SourceError> {
    let list = || -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(root)? {
            let entry = entry?;
            if entry.path().join("config.json").is_file()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        Ok(names)
    };
    list().map_err(|source| SourceError::List {
        path: root.to_owned(),
        source,
    })
}
