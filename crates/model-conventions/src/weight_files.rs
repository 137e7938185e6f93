//! Which files of a folder hold the weights: whole or in shards, safetensors or PyTorch's own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// An index lists some hundred tensors; this is a thousand times that.
const MAX_INDEX_BYTES: u64 = 16 << 20;

/// Why the weights of a folder were not found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightFilesError {
    /// A file that cannot be read, or an index that is larger than an index may be.
    #[error("failed to read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A folder without weights.
    #[error(
        "no weights in `{}`: expected model.safetensors, pytorch_model.bin or an index of either",
        path.display()
    )]
    NoWeights {
        /// The folder.
        path: PathBuf,
    },
    /// An index that is not one, or that names files outside its folder.
    #[error("bad checkpoint file `{}`: {problem}", path.display())]
    BadIndex {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// How weights are stored. A reader has to know every format, so that a further one is a breaking change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightFormat {
    /// `model.safetensors` or its shards.
    Safetensors,
    /// `pytorch_model.bin` or its shards.
    PytorchBin,
}

/// The weight files of one checkpoint folder.
///
/// # Examples
/// ```
/// use model_conventions::{WeightFiles, WeightFormat};
///
/// # let root = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data/tiny-neox"));
/// # if !root.exists() { return Ok(()); } // the crate without its repository
/// let files = WeightFiles::find(&root.join("step1000"))?;
/// assert_eq!(files.format(), WeightFormat::PytorchBin);
/// assert_eq!(files.names(), ["pytorch_model.bin"]);
/// # Ok::<(), model_conventions::WeightFilesError>(())
/// ```
#[derive(Debug, Clone)]
pub struct WeightFiles {
    dir: PathBuf,
    format: WeightFormat,
    names: Vec<String>,
    index: Option<BTreeMap<String, String>>,
}

/// Content hash of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FileHash {
    /// Name inside the checkpoint folder.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256, in hexadecimal.
    pub sha256: String,
}

impl FileHash {
    /// What is known of a file from elsewhere, such as a hub's listing.
    #[must_use]
    pub fn new(name: impl Into<String>, bytes: u64, sha256: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            bytes,
            sha256: sha256.into(),
        }
    }
}

impl WeightFiles {
    /// Names to look for, in order of preference, and whether each is an index of shards.
    pub const CANDIDATES: [(&'static str, WeightFormat, bool); 4] = [
        ("model.safetensors", WeightFormat::Safetensors, false),
        (
            "model.safetensors.index.json",
            WeightFormat::Safetensors,
            true,
        ),
        ("pytorch_model.bin", WeightFormat::PytorchBin, false),
        (
            "pytorch_model.bin.index.json",
            WeightFormat::PytorchBin,
            true,
        ),
    ];

    /// Looks for weights in a folder: safetensors before `pytorch_model.bin`, either whole or in
    /// shards with an index.
    ///
    /// # Errors
    /// - [`WeightFilesError::NoWeights`] if there is neither
    /// - [`WeightFilesError::BadIndex`] for an index that is not one or names files outside the folder
    pub fn find(dir: &Path) -> Result<Self, WeightFilesError> {
        for (name, format, sharded) in Self::CANDIDATES {
            let path = dir.join(name);
            if !path.is_file() {
                continue;
            }
            let (names, index) = if sharded {
                let index = read_index(&path)?;
                let names: BTreeSet<String> = index.values().cloned().collect();
                (names.into_iter().collect(), Some(index))
            } else {
                (vec![name.to_owned()], None)
            };
            return Ok(Self {
                dir: dir.to_owned(),
                format,
                names,
                index,
            });
        }
        Err(WeightFilesError::NoWeights {
            path: dir.to_owned(),
        })
    }

    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// How the weights are stored.
    #[must_use]
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// Names of the files that hold tensors, in order.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The files that hold tensors, in order of name.
    pub fn paths(&self) -> impl Iterator<Item = PathBuf> + '_ {
        self.names.iter().map(|name| self.dir.join(name))
    }

    /// Tensor to file name, for weights in shards.
    #[must_use]
    pub fn index(&self) -> Option<&BTreeMap<String, String>> {
        self.index.as_ref()
    }

    /// Size and SHA-256 of each file, for provenance.
    ///
    /// # Errors
    /// - [`WeightFilesError::Read`] if a file cannot be read
    pub fn sha256(&self) -> Result<Vec<FileHash>, WeightFilesError> {
        let hash = |name: &String| {
            let path = self.dir.join(name);
            match sha256_file(&path) {
                Ok((bytes, sha256)) => Ok(FileHash::new(name, bytes, sha256)),
                Err(source) => Err(WeightFilesError::Read { path, source }),
            }
        };
        self.names.iter().map(hash).collect()
    }
}

/// Size and SHA-256 (hexadecimal) of a file.
///
/// # Errors
/// - what the system reports when the file cannot be read
pub fn sha256_file(path: &Path) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        bytes += n as u64;
    }
    let hex = hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok((bytes, hex))
}

/// The text of a small file, with a limit so that a hostile one cannot fill memory.
///
/// # Errors
/// - what the system reports; [`io::ErrorKind::InvalidData`] for a file of more than `max_bytes`
pub fn read_small(path: &Path, max_bytes: u64) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(max_bytes + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > max_bytes {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the file is larger than {max_bytes} bytes"),
        ));
    }
    Ok(text)
}

/// `weight_map` of an index of shards: tensor name to file name.
///
/// # Errors
/// - [`WeightFilesError::Read`], [`WeightFilesError::BadIndex`]
pub fn read_index(path: &Path) -> Result<BTreeMap<String, String>, WeightFilesError> {
    let text = read_small(path, MAX_INDEX_BYTES).map_err(|source| WeightFilesError::Read {
        path: path.to_owned(),
        source,
    })?;
    parse_index(&text).map_err(|problem| WeightFilesError::BadIndex {
        path: path.to_owned(),
        problem,
    })
}

/// The same of its text.
///
/// # Errors
/// - what is wrong with it, in words
pub fn parse_index(text: &str) -> Result<BTreeMap<String, String>, String> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_str(text).map_err(|err| err.to_string())?;
    if index.weight_map.is_empty() {
        return Err("weight_map is empty".into());
    }
    match index.weight_map.values().find(|name| !is_plain_name(name)) {
        Some(name) => Err(format!("`{name}` is not a plain file name")),
        None => Ok(index.weight_map),
    }
}

/// One ordinary path component: no folders, no `..`.
fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name)
        && !name.contains('\\')
}
