//! Output folders, each of one job, and files that appear whole or not at all.

mod folder;

use std::{
    fs::{self, File},
    io::{self, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

pub(crate) use self::folder::FileRecord;
use self::folder::Shared;
pub use self::folder::{FolderLock, OutputDir, RUN_RECORD};
use crate::hint::Hint;

const PARTIAL: &str = ".partial";

/// Why output could not be written, or a file not be hashed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputError {
    /// The output folder could not be made.
    #[error("failed to create output folder `{}`", path.display())]
    CreateFolder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The output folder does not let us write.
    #[error("output folder `{}` cannot be written to", path.display())]
    NotWritable {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process writes to the same folder.
    #[error("another run is writing to `{}`", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// The folder holds the results of another job.
    #[error("output folder `{}` belongs to {owner}: {job} would mix its results with them", path.display())]
    Owned {
        /// The folder.
        path: PathBuf,
        /// The job whose folder it is.
        owner: String,
        /// The job that was to write to it.
        job: String,
    },
    /// The folder holds files of the names of outputs which no run has written, or which were changed since.
    #[error("output folder `{}` holds files that this run would replace, but that no run of {job} left there as they are: {}", path.display(), list(names))]
    NotOurs {
        /// The folder.
        path: PathBuf,
        /// The job that was to write to it.
        job: String,
        /// The files, as names in the folder.
        names: Vec<String>,
    },
    /// An output has the path of an input.
    #[error("`{}` is an input (`{key}`), and this run would replace or remove it", path.display())]
    Input {
        /// The file.
        path: PathBuf,
        /// The key of the configuration that names it, or the folder that it is in.
        key: String,
    },
    /// The outputs would be read as inputs the next time.
    #[error("output folder `{}` is inside the input folder `{}` (`{key}`), which is read whole", path.display(), input.display())]
    InsideInput {
        /// The output folder.
        path: PathBuf,
        /// The input folder.
        input: PathBuf,
        /// The key of the configuration that names it.
        key: String,
    },
    /// The file that says which run is under way is damaged.
    #[error("`{}` does not say which job is writing to its folder", path.display())]
    Marker {
        /// The file.
        path: PathBuf,
    },
    /// A job writes a file that it did not announce: a fault of the program.
    #[error("output `{name}` is not among those that the job announced at its start")]
    NotAnnounced {
        /// The file, as a name in the folder.
        name: String,
    },
    /// Standard output could not be written to.
    #[error("failed to write to standard output")]
    Stdout {
        /// Why.
        source: io::Error,
    },
    /// A file could not be written.
    #[error("failed to write `{}`", path.display())]
    Write {
        /// The file, under its final name.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file could not be read to hash it.
    #[error("failed to read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Hint for OutputError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::InUse { .. } => {
                vec!["wait for it, or choose another folder with `output.dir=...`".to_owned()]
            }
            Self::CreateFolder { source, .. } | Self::NotWritable { source, .. }
                if source.kind() != io::ErrorKind::StorageFull =>
            {
                vec!["choose another folder with `output.dir=...`".to_owned()]
            }
            Self::Owned { .. } | Self::Input { .. } | Self::InsideInput { .. } => {
                vec!["choose another folder with `output.dir=...`".to_owned()]
            }
            Self::NotOurs { .. } => {
                vec!["move them away, or choose another folder with `output.dir=...`".to_owned()]
            }
            Self::Marker { path } => {
                vec![format!(
                    "delete `{}` if no run is writing there",
                    path.display()
                )]
            }
            _ => vec![],
        }
    }
}

/// The first names of a list, and how many more there are.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 6;
    let shown: Vec<String> = names
        .iter()
        .take(SHOWN)
        .map(|name| format!("`{name}`"))
        .collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// A file that is renamed to its name when it is complete.
///
/// It is written under a temporary name in the same folder, and removed if dropped before [`commit`](Self::commit).
/// A process killed in between leaves the temporary file, which the next [`OutputDir::create`] removes.
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
    /// The folder that it is an output of, and its name there.
    output: Option<(Arc<Shared>, String)>,
}

impl AtomicFile {
    /// Starts a file that will be `path`, in a folder that is made if needed.
    ///
    /// # Errors
    /// [`OutputError::Write`] if the folder or file cannot be made.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, OutputError> {
        let path = path.into();
        let start = || {
            let name = path.file_name().ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidInput, "the path has no file name")
            })?;
            if path.is_dir() {
                return Err(io::Error::from(io::ErrorKind::IsADirectory));
            }
            fs::create_dir_all(folder(&path))?;
            partial(folder(&path), &name.to_string_lossy())
        };
        let file = start().map_err(|source| OutputError::Write {
            path: path.clone(),
            source,
        })?;
        Ok(Self {
            path,
            file: BufWriter::with_capacity(1 << 17, file),
            output: None,
        })
    }

    /// The final path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it an output of a folder.
    fn of(mut self, folder: Arc<Shared>, name: String) -> Self {
        self.output = Some((folder, name));
        self
    }

    /// Writes everything to disk and gives the file its name, replacing an older one.
    ///
    /// # Errors
    /// [`OutputError::Write`], for instance on a full disk; the older file then stays as it was. As an output of an [`OutputDir`] also
    /// [`OutputError::NotAnnounced`].
    pub fn commit(self) -> Result<(), OutputError> {
        let Self { path, file, output } = self;
        let failed = |source| OutputError::Write {
            path: path.clone(),
            source,
        };
        let file = file
            .into_inner()
            .map_err(|error| failed(error.into_error()))?;
        file.as_file().sync_all().map_err(failed)?;
        if let Some((folder, name)) = &output {
            folder.replacing(name)?;
        }
        file.persist(&path).map_err(|error| failed(error.error))?;
        sync_folder(folder(&path));
        Ok(())
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// Writes a whole file at once, as an [`AtomicFile`].
///
/// # Errors
/// [`OutputError::Write`].
pub fn write_file(path: impl Into<PathBuf>, bytes: impl AsRef<[u8]>) -> Result<(), OutputError> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes.as_ref())
        .map_err(|source| OutputError::Write {
            path: file.path.clone(),
            source,
        })?;
    file.commit()
}

/// SHA-256 and size in bytes of a file, read in blocks.
///
/// # Errors
/// [`OutputError::Read`].
///
/// # Examples
/// ```
/// let dir = tempfile::tempdir()?;
/// let path = dir.path().join("abc");
/// std::fs::write(&path, "abc")?;
/// let (hash, bytes) = job_kit::sha256_file(&path)?;
/// assert_eq!(hash, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
/// assert_eq!(bytes, 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn sha256_file(path: impl AsRef<Path>) -> Result<(String, u64), OutputError> {
    let path = path.as_ref();
    let hash = || {
        let mut file = File::open(path)?;
        let mut hasher = Sha256::new();
        let (mut block, mut bytes) = (vec![0; 1 << 18], 0);
        loop {
            let n = file.read(&mut block)?;
            if n == 0 {
                return Ok((hex(&hasher.finalize()), bytes));
            }
            hasher.update(&block[..n]);
            bytes += n as u64;
        }
    };
    hash().map_err(|source| OutputError::Read {
        path: path.to_owned(),
        source,
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The folder of a file; a bare name lies in the current one.
fn folder(path: &Path) -> &Path {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

fn partial(folder: &Path, name: &str) -> io::Result<NamedTempFile> {
    let prefix = format!(".{name}.");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(PARTIAL);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // As any file the user makes: the umask applies.
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder).map_err(without_path)
}

/// `tempfile` puts its own temporary path into the message, which means nothing to the user.
fn without_path(error: io::Error) -> io::Error {
    match error
        .get_ref()
        .and_then(std::error::Error::source)
        .and_then(|source| source.downcast_ref::<io::Error>())
    {
        Some(inner) => inner.raw_os_error().map_or_else(
            || io::Error::from(inner.kind()),
            io::Error::from_raw_os_error,
        ),
        None => error,
    }
}

/// The new name is on disk only when its folder is; not every file system can be asked, and the file itself is whole.
fn sync_folder(folder: &Path) {
    #[cfg(unix)]
    if let Err(error) = File::open(folder).and_then(|folder| folder.sync_all()) {
        tracing::debug!("folder `{}` not synced: {error}", folder.display());
    }
    #[cfg(not(unix))]
    let _ = folder;
}
