//! Checkpoints written: a copy of one on disk, with some tensors replaced.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use model_conventions::WeightFiles;
use safetensors::tensor::{Dtype, View, serialize_to_file};
use serde_json::{Map, Value};
use tch::{Device, Kind, TchError, Tensor};

use crate::architecture::Architecture;
use crate::error::LoadError;
use crate::family::Part;
use crate::weights::Tensors;

const WEIGHTS: &str = "model.safetensors";
const CONFIG: &str = "config.json";
/// Taken along where they are there.
const COMPANIONS: [&str; 4] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
];

/// Names of the files that [`save_with`] writes, the last four only where they lie beside the weights.
pub const SAVED_FILES: [&str; 6] = [
    WEIGHTS,
    CONFIG,
    COMPANIONS[0],
    COMPANIONS[1],
    COMPANIONS[2],
    COMPANIONS[3],
];

/// Why a checkpoint was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SaveError {
    /// The checkpoint to start from was not read.
    #[error("failed to read the checkpoint to start from")]
    Load(#[from] LoadError),
    /// Source and destination are one folder.
    #[error("`{}` is the checkpoint itself: choose another folder", path.display())]
    SameFolder {
        /// The folder.
        path: PathBuf,
    },
    /// A replaced weight that the checkpoint does not have.
    #[error("the checkpoint has no weight {part:?} to replace")]
    NoSuchPart {
        /// What was to be replaced.
        part: Part,
    },
    /// A replaced tensor of another shape.
    #[error("tensor `{name}` has shape {found:?}, but the checkpoint's has {expected:?}")]
    Shape {
        /// Its name.
        name: String,
        /// The checkpoint's.
        expected: Vec<i64>,
        /// What was given.
        found: Vec<i64>,
    },
    /// A weight that is NaN or infinite once it is stored.
    #[error(
        "tensor `{name}` holds a value that is not finite in {dtype:?}: store it as `f32`, or take a smaller factor"
    )]
    NotFinite {
        /// Its name.
        name: String,
        /// The dtype that it is stored in.
        dtype: Kind,
    },
    /// A dtype that checkpoints are not stored in.
    #[error("cannot store {dtype:?}: expected Float, Half, BFloat16 or Double")]
    Dtype {
        /// What was asked for.
        dtype: Kind,
    },
    /// A file could not be written.
    #[error("failed to write `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// libtorch reported an error.
    #[error("libtorch failed")]
    Torch(#[from] TchError),
}

/// One weight of a checkpoint in the stored dtype and in the shape that [`Part`] says, without
/// loading the others.
///
/// Where embedding and unembedding are tied, the unembedding is the embedding.
///
/// # Errors
/// - [`LoadError`] if the folder is no checkpoint or has no such weight
pub fn stored_tensor(dir: &Path, part: Part) -> Result<Tensor, LoadError> {
    let architecture = Architecture::read(&dir.join("config.json"))?;
    let files = WeightFiles::find(dir)?;
    Tensors::open(&files, architecture.family())?.weight(&architecture, part)
}

/// Writes the checkpoint in `from` to the folder `to`, with the weights in `replaced`, shaped as [`Part`] says, instead of its own: one
/// `model.safetensors`, `config.json`, and the tokenizer files that lie beside the weights.
///
/// Hugging Face transformers and [`Model::load`](crate::Model::load) both open the result. Weights are stored in `dtype`,
/// or each in the dtype it had. Buffers of old versions of transformers are left out. Replacing the unembedding of a model
/// whose embeddings are tied unties them. Files get their names when they are whole, the config last.
///
/// # Errors
/// - [`SaveError::SameFolder`] if `to` is `from`
/// - [`SaveError::NoSuchPart`], [`SaveError::Shape`] for a replaced weight that does not fit
/// - [`SaveError::NotFinite`] if a replaced tensor overflows in the stored dtype
/// - [`SaveError::Write`] if a file cannot be written
///
/// # Examples
/// ```no_run
/// use std::{collections::BTreeMap, path::Path};
/// use neox_core::{Part, save_with, stored_tensor};
///
/// let (from, to) = (Path::new("pythia-70m/step3000"), Path::new("edited"));
/// let doubled = stored_tensor(from, Part::Unembedding)?.f_mul_scalar(2.0)?;
/// save_with(from, to, &BTreeMap::from([(Part::Unembedding, doubled)]), None)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn save_with(
    from: &Path,
    to: &Path,
    replaced: &BTreeMap<Part, Tensor>,
    dtype: Option<Kind>,
) -> Result<(), SaveError> {
    if let Some(dtype) = dtype {
        stored_as(dtype)?;
    }
    let config_path = from.join(CONFIG);
    let before = Architecture::read(&config_path)?;
    let files = WeightFiles::find(from).map_err(LoadError::from)?;
    let mut tensors = Tensors::open(&files, before.family())?;
    let untied = before.tie_word_embeddings && replaced.contains_key(&Part::Unembedding);
    let entries = match untied {
        true => before.tensors(),
        false => tensors.implied(&before),
    };
    let unknown = |part: &&Part| !entries.iter().any(|entry| entry.is_weight_of(**part));
    if let Some(&part) = replaced.keys().find(unknown) {
        return Err(SaveError::NoSuchPart { part });
    }
    let write = |path: &Path| {
        let path = path.to_owned();
        move |source| SaveError::Write { path, source }
    };
    fs::create_dir_all(to).map_err(write(to))?;
    if let (Ok(a), Ok(b)) = (from.canonicalize(), to.canonicalize())
        && a == b
    {
        return Err(SaveError::SameFolder {
            path: to.to_owned(),
        });
    }
    let mut stored = Vec::with_capacity(entries.len());
    for entry in entries {
        let own = match entry.part {
            // Of tied embeddings one may be stored.
            Part::Embedding | Part::Unembedding => tensors.weight(&before, entry.part)?,
            _ => tensors.read(&entry.name)?,
        };
        let kind = match dtype {
            Some(kind) => kind,
            None => own.f_kind()?,
        };
        let tensor = match replaced.get(&entry.part).filter(|_| !entry.bias) {
            None => own.f_to_kind(kind)?,
            Some(tensor) => {
                let (expected, found) = (entry.stored.shape(own.size()), tensor.size());
                if found != expected {
                    let name = entry.name;
                    return Err(SaveError::Shape {
                        name,
                        expected,
                        found,
                    });
                }
                let tensor = finite(&entry.name, tensor, kind)?;
                entry.stored.to_file(tensor, &before)?
            }
        };
        stored.push((entry.name, Stored::of(&tensor)?));
    }
    let path = to.join(WEIGHTS);
    let partial = to.join(format!(".{WEIGHTS}.partial"));
    // transformers wants to be told who wrote the file.
    let about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    serialize_to_file(stored, Some(about), &partial)
        .map_err(io::Error::other)
        .and_then(|()| fs::rename(&partial, &path))
        .map_err(|source| {
            // Best effort: the reason of the failure is what counts.
            let _ = fs::remove_file(&partial);
            SaveError::Write { path, source }
        })?;
    for name in COMPANIONS {
        let (source, copy) = (from.join(name), to.join(name));
        if source.is_file() {
            fs::copy(source, &copy).map_err(write(&copy))?;
        }
    }
    let text = edited_config(&config_path, untied, dtype)?;
    let path = to.join(CONFIG);
    let partial = to.join(".config.json.partial");
    fs::write(&partial, text)
        .and_then(|()| fs::rename(&partial, &path))
        .map_err(write(&path))
}

/// `config.json` with the keys that the copy changes.
fn edited_config(path: &Path, untied: bool, dtype: Option<Kind>) -> Result<String, SaveError> {
    let read = |source| LoadError::Read {
        path: path.to_owned(),
        source,
    };
    let text = fs::read_to_string(path).map_err(read)?;
    let mut map: Map<String, Value> =
        serde_json::from_str(&text).map_err(|err| read(err.into()))?;
    if untied {
        map.insert("tie_word_embeddings".to_owned(), false.into());
    }
    if let Some(dtype) = dtype {
        let (_, name) = stored_as(dtype)?;
        // Older versions of transformers write `torch_dtype`, newer ones `dtype`.
        let key = match map.contains_key("dtype") {
            true => "dtype",
            false => "torch_dtype",
        };
        map.insert(key.to_owned(), name.into());
    }
    let mut text =
        serde_json::to_string_pretty(&Value::Object(map)).map_err(|err| read(err.into()))?;
    text.push('\n');
    Ok(text)
}

/// A replaced tensor in the dtype that it is stored in.
fn finite(name: &str, tensor: &Tensor, kind: Kind) -> Result<Tensor, SaveError> {
    let tensor = tensor.f_to_device(Device::Cpu)?.f_to_kind(kind)?;
    match tensor.f_isfinite()?.f_all()?.f_int64_value(&[])? {
        0 => Err(SaveError::NotFinite {
            name: name.to_owned(),
            dtype: kind,
        }),
        _ => Ok(tensor),
    }
}

/// How safetensors and transformers call a dtype.
fn stored_as(kind: Kind) -> Result<(Dtype, &'static str), SaveError> {
    match kind {
        Kind::Float => Ok((Dtype::F32, "float32")),
        Kind::Half => Ok((Dtype::F16, "float16")),
        Kind::BFloat16 => Ok((Dtype::BF16, "bfloat16")),
        Kind::Double => Ok((Dtype::F64, "float64")),
        dtype => Err(SaveError::Dtype { dtype }),
    }
}

/// A tensor as the bytes of a file.
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Stored {
    fn of(tensor: &Tensor) -> Result<Self, SaveError> {
        let (dtype, _) = stored_as(tensor.f_kind()?)?;
        let tensor = tensor.f_contiguous()?;
        let elements = tensor.numel();
        let mut bytes = vec![0; elements * tensor.f_kind()?.elt_size_in_bytes()];
        tensor.f_copy_data_u8(&mut bytes, elements)?;
        let shape = tensor.size().iter().map(|&size| size as usize).collect();
        Ok(Self {
            dtype,
            shape,
            bytes,
        })
    }
}

impl View for Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}
