//! The cache folder of one repository, laid out as `huggingface_hub` does:
//! `blobs/<etag>`, `snapshots/<commit>/<file>` as links to them, `refs/<revision>`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use hf_hub::{Cache, CacheRepo, Repo};

use super::{HubError, is_commit};

#[derive(Debug)]
pub(super) struct CacheDir {
    layout: CacheRepo,
    /// `<cache>/models--owner--name`
    root: PathBuf,
    locks: PathBuf,
    revision: String,
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> HubError + '_ {
    move |source| HubError::Cache {
        path: path.to_owned(),
        source,
    }
}

fn create_parent(path: &Path) -> Result<(), HubError> {
    match path.parent() {
        Some(dir) => fs::create_dir_all(dir).map_err(failed(dir)),
        None => Ok(()),
    }
}

impl CacheDir {
    pub(super) fn new(cache: &Path, repo: &Repo) -> Self {
        let folder = repo.folder_name();
        Self {
            layout: Cache::new(cache.to_owned()).repo(repo.clone()),
            root: cache.join(&folder),
            locks: cache.join(".locks").join(&folder),
            revision: repo.revision().to_owned(),
        }
    }

    /// Commit of the revision, if the cache knows it.
    fn commit(&self) -> Option<String> {
        if is_commit(&self.revision) {
            return Some(self.revision.clone());
        }
        let text = fs::read_to_string(self.root.join("refs").join(&self.revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    pub(super) fn snapshot_of(&self, commit: &str) -> PathBuf {
        self.layout.pointer_path(commit)
    }

    pub(super) fn snapshot(&self) -> Option<PathBuf> {
        Some(self.snapshot_of(&self.commit()?))
    }

    pub(super) fn pointer(&self, commit: &str, file: &str) -> PathBuf {
        self.snapshot_of(commit).join(file)
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.layout.blob_path(etag)
    }

    /// The file an unfinished download goes to, under the name that Python gives it.
    pub(super) fn part(&self, etag: &str) -> Result<PathBuf, HubError> {
        let path = self.layout.blob_path(&format!("{etag}.incomplete"));
        create_parent(&path)?;
        Ok(path)
    }

    /// Waits until no other process works on the blob; released on drop. Python locks the same
    /// file in the same way.
    pub(super) fn lock(&self, etag: &str) -> Result<File, HubError> {
        let path = self.locks.join(format!("{etag}.lock"));
        create_parent(&path)?;
        let open = || {
            let file = OpenOptions::new()
                .create(true)
                .write(true)
                .truncate(false)
                .open(&path)?;
            file.lock()?;
            Ok(file)
        };
        open().map_err(failed(&path))
    }

    /// Moves a whole, checked download to its place.
    pub(super) fn keep(&self, part: &Path, etag: &str) -> Result<(), HubError> {
        let blob = self.blob(etag);
        fs::rename(part, &blob).map_err(failed(&blob))
    }

    /// Makes the blob appear in the snapshot of a commit.
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), HubError> {
        let pointer = self.pointer(commit, file);
        create_parent(&pointer)?;
        if fs::symlink_metadata(&pointer).is_ok() && !pointer.exists() {
            fs::remove_file(&pointer).map_err(failed(&pointer))?; // its blob was deleted
        }
        let up = "../".repeat(2 + file.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{etag}"));
        match symlink(&target, &self.blob(etag), &pointer) {
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other.map_err(failed(&pointer)),
        }
    }

    /// Written last, so that a revision with a ref has all its files.
    pub(super) fn write_ref(&self, commit: &str) -> Result<(), HubError> {
        if is_commit(&self.revision) {
            return Ok(());
        }
        write_atomically(&self.root.join("refs").join(&self.revision), commit)
    }

    /// Names of revisions that the cache has a ref of.
    pub(super) fn revisions(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.root.join("refs")) else {
            return Vec::new(); // nothing was ever fetched
        };
        let mut names: Vec<String> = entries
            .flatten()
            .filter(|entry| entry.path().is_file())
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }

    /// What a user has to fetch.
    pub(super) fn missing(&self) -> String {
        match self.snapshot() {
            None => "the revision itself".into(),
            Some(dir) if !dir.join("config.json").exists() => "config.json or all files".into(),
            Some(_) => "some weight files".into(),
        }
    }
}

fn write_atomically(path: &Path, text: &str) -> Result<(), HubError> {
    create_parent(path)?;
    static SERIAL: AtomicU64 = AtomicU64::new(0); // threads write at once, too
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}-{serial}.tmp", std::process::id()));
    let temporary = PathBuf::from(temporary);
    fs::write(&temporary, text).map_err(failed(&temporary))?;
    fs::rename(&temporary, path).map_err(failed(path))
}

#[cfg(unix)]
fn symlink(target: &Path, _blob: &Path, pointer: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, pointer)
}

/// Links need a privilege elsewhere; a second name for the file does not.
#[cfg(not(unix))]
fn symlink(_target: &Path, blob: &Path, pointer: &Path) -> io::Result<()> {
    fs::hard_link(blob, pointer).or_else(|_| fs::copy(blob, pointer).map(drop))
}
