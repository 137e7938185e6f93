//! One weight file: safetensors or a `torch.save` archive.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use file_kind::FileKind;
use memmap2::Mmap;
use model_conventions::WeightFormat;
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, Metadata, SafeTensors};
use tch::{Device, Kind, TchError, Tensor};
use zip::ZipArchive;

use crate::error::LoadError;
use crate::pickle::{PickledTensor, read_tensors};

/// The largest published model needs well under 100 kB of either.
const MAX_HEADER_BYTES: u64 = 16 << 20;
const MAX_PICKLE_BYTES: u64 = 1 << 20;

/// What a file says about a tensor before its data is read.
#[derive(Debug, Clone)]
pub(crate) struct TensorInfo {
    pub(crate) shape: Vec<i64>,
    /// `None` for a dtype that libtorch does not have.
    pub(crate) kind: Option<Kind>,
    /// In the file's own words.
    pub(crate) dtype: String,
}

pub(crate) enum Shard {
    Safetensors {
        path: PathBuf,
        file: File,
        /// Where the data starts.
        start: usize,
        metadata: Metadata,
    },
    TorchSave {
        path: PathBuf,
        archive: ZipArchive<File>,
        /// Folder inside the archive, with its slash.
        prefix: String,
        tensors: BTreeMap<String, PickledTensor>,
    },
}

impl Shard {
    pub(crate) fn open(
        path: &Path,
        format: WeightFormat,
    ) -> Result<(Self, BTreeMap<String, TensorInfo>), LoadError> {
        let kind = FileKind::of_file(path).map_err(|source| LoadError::Read {
            path: path.to_owned(),
            source,
        })?;
        match (format, kind) {
            (WeightFormat::Safetensors, Some(FileKind::Safetensors) | None) => {
                open_safetensors(path)
            }
            // The zip reader says what to do about the pickles of old versions.
            (WeightFormat::PytorchBin, Some(FileKind::Zip | FileKind::Pickle) | None) => {
                open_torch_save(path)
            }
            (_, Some(FileKind::Safetensors | FileKind::Zip | FileKind::Pickle)) => {
                Err(malformed(path, "the name says another format than the content: safetensors end in `.safetensors`, PyTorch's own files in `.bin`".into()))
            }
            (_, Some(kind)) => Err(LoadError::NotThat {
                path: path.to_owned(),
                kind,
            }),
        }
    }

    /// Copies one tensor into memory, as stored.
    pub(crate) fn read(&mut self, name: &str, info: &TensorInfo) -> Result<Tensor, LoadError> {
        match self {
            Self::Safetensors {
                path,
                file,
                start,
                metadata,
            } => {
                let tensor = metadata.info(name);
                let (from, to) = tensor
                    .map(|tensor| tensor.data_offsets)
                    .ok_or_else(|| LoadError::MissingTensor { name: name.into() })?;
                let kind = info
                    .kind
                    .ok_or_else(|| malformed(path, format!("`{name}` is {}", info.dtype)))?;
                if bytes_of(&info.shape, kind) != Some(to - from) {
                    return Err(malformed(path, format!("`{name}` has the wrong length")));
                }
                read_tensor(file, *start + from, &info.shape, kind)?.map_err(|source| {
                    LoadError::Read {
                        path: path.clone(),
                        source,
                    }
                })
            }
            Self::TorchSave {
                path,
                archive,
                prefix,
                tensors,
            } => {
                let tensor = tensors
                    .get(name)
                    .ok_or_else(|| LoadError::MissingTensor { name: name.into() })?;
                let bytes = read_storage(path, archive, prefix, tensor)?;
                let flat = tensor_of(&bytes, &[tensor.storage_len], tensor.kind)
                    .ok_or_else(|| malformed(path, format!("`{name}` has the wrong length")))??;
                // The reader of the pickle has checked that the view stays inside.
                Ok(flat
                    .f_as_strided(
                        tensor.shape.as_slice(),
                        tensor.stride.as_slice(),
                        tensor.offset,
                    )?
                    .f_contiguous()?)
            }
        }
    }
}

fn malformed(path: &Path, problem: String) -> LoadError {
    LoadError::Malformed {
        path: path.to_owned(),
        problem,
    }
}

/// The length of a tensor in bytes, if there is such a length.
fn bytes_of(shape: &[i64], kind: Kind) -> Option<usize> {
    let count = shape.iter().try_fold(1usize, |n, &size| {
        n.checked_mul(usize::try_from(size).ok()?)
    })?;
    count.checked_mul(kind.elt_size_in_bytes())
}

/// A tensor copied from little-endian bytes; `None` unless the length is exactly right.
fn tensor_of(bytes: &[u8], shape: &[i64], kind: Kind) -> Option<Result<Tensor, LoadError>> {
    if bytes_of(shape, kind) != Some(bytes.len()) {
        return None;
    }
    Some(Tensor::f_from_data_size(bytes, shape, kind).map_err(LoadError::from))
}

/// A tensor whose little-endian bytes begin at a place of a file, read to where it stays: pages of a mapped file would count as memory of the
/// process beside it, and cost a fault each.
fn read_tensor(
    mut file: &File,
    at: usize,
    shape: &[i64],
    kind: Kind,
) -> Result<std::io::Result<Tensor>, TchError> {
    let tensor = Tensor::f_empty(shape, (kind, Device::Cpu))?;
    let bytes = tensor.numel() * kind.elt_size_in_bytes();
    if bytes == 0 {
        return Ok(Ok(tensor));
    }
    #[expect(unsafe_code, reason = "a view of a tensor's memory")]
    // SAFETY: the tensor is fresh, contiguous, on the CPU and of so many bytes, and nothing else knows of it.
    let room = unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<u8>(), bytes) };
    let read = file
        .seek(SeekFrom::Start(at as u64))
        .and_then(|_| file.read_exact(room));
    Ok(read.map(|()| tensor))
}

// --- safetensors ---

fn open_safetensors(path: &Path) -> Result<(Shard, BTreeMap<String, TensorInfo>), LoadError> {
    let read_error = |source| LoadError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(read_error)?;
    #[expect(
        unsafe_code,
        reason = "a mapping is only sound while no one truncates the file; checkpoints are written once and renamed into place, and only the header is read from it"
    )]
    let map = unsafe { Mmap::map(&file) }.map_err(read_error)?;
    let (start, metadata, infos) = parse_safetensors(&map).map_err(|bad| match bad {
        BadHeader::Format(SafeTensorError::MetadataIncompleteBuffer) => LoadError::CutOff {
            path: path.to_owned(),
            bytes: map.len(),
        },
        BadHeader::Format(source) => LoadError::Safetensors {
            path: path.to_owned(),
            source: source.into(),
        },
        BadHeader::Problem(problem) => malformed(path, problem),
    })?;
    let shard = Shard::Safetensors {
        path: path.to_owned(),
        file,
        start,
        metadata,
    };
    Ok((shard, infos))
}

/// Why a header was refused.
#[derive(Debug)]
pub(crate) enum BadHeader {
    Format(safetensors::SafeTensorError),
    Problem(String),
}

/// Where the data starts, and what the header says of each tensor.
pub(crate) type Header = (usize, Metadata, BTreeMap<String, TensorInfo>);

/// Checks the header of a safetensors file against the whole of its bytes.
pub(crate) fn parse_safetensors(bytes: &[u8]) -> Result<Header, BadHeader> {
    check_header_size(bytes).map_err(BadHeader::Problem)?;
    let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(BadHeader::Format)?;
    let mut infos = BTreeMap::new();
    for (name, tensor) in metadata.tensors() {
        let shape = tensor
            .shape
            .iter()
            .map(|&size| i64::try_from(size))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| BadHeader::Problem(format!("`{name}` has an impossible shape")))?;
        let info = TensorInfo {
            shape,
            kind: kind_of(tensor.dtype),
            dtype: format!("{:?}", tensor.dtype),
        };
        infos.insert(name, info);
    }
    Ok((8 + header, metadata, infos))
}

/// The header's length, refused before anything is parsed if it is absurd.
fn check_header_size(bytes: &[u8]) -> Result<(), String> {
    let Some(size) = bytes
        .first_chunk::<8>()
        .map(|head| u64::from_le_bytes(*head))
    else {
        return Err(match bytes.len() {
            0 => "it is empty: get it again".to_owned(),
            len => format!("{len} bytes are too few for a header: get it again"),
        });
    };
    if size > MAX_HEADER_BYTES || size > bytes.len() as u64 - 8 {
        return Err(format!(
            "the header claims {size} bytes in a file of {}",
            bytes.len()
        ));
    }
    Ok(())
}

fn kind_of(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::BOOL => Kind::Bool,
        Dtype::U8 => Kind::Uint8,
        Dtype::I8 => Kind::Int8,
        Dtype::I16 => Kind::Int16,
        Dtype::I32 => Kind::Int,
        Dtype::I64 => Kind::Int64,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        _ => return None,
    })
}

// --- torch.save ---

fn open_torch_save(path: &Path) -> Result<(Shard, BTreeMap<String, TensorInfo>), LoadError> {
    let file = File::open(path).map_err(|source| LoadError::Read {
        path: path.to_owned(),
        source,
    })?;
    let mut archive = ZipArchive::new(file).map_err(|source| LoadError::Zip {
        path: path.to_owned(),
        source: source.into(),
    })?;
    let mut prefixes = Vec::new();
    for name in archive.file_names() {
        let name = name.map_err(|source| LoadError::Zip {
            path: path.to_owned(),
            source: source.into(),
        })?;
        if let Some(prefix) = name.strip_suffix("data.pkl")
            && (prefix.is_empty() || prefix.ends_with('/'))
        {
            prefixes.push(prefix.to_owned());
        }
    }
    let [prefix] = prefixes.as_slice() else {
        let problem = format!("expected one data.pkl inside, found {}", prefixes.len());
        return Err(malformed(path, problem));
    };
    let prefix = prefix.clone();

    let order = format!("{prefix}byteorder");
    if archive.index_for_name(&order).is_some() {
        let bytes = read_entry(path, &mut archive, &order, 16)?;
        if bytes != b"little" {
            return Err(malformed(path, "its numbers are not little-endian".into()));
        }
    }
    let pickle = read_entry(
        path,
        &mut archive,
        &format!("{prefix}data.pkl"),
        MAX_PICKLE_BYTES,
    )?;
    let tensors = read_tensors(&pickle).map_err(|source| LoadError::Pickle {
        path: path.to_owned(),
        source,
    })?;
    let infos = tensors
        .iter()
        .map(|(name, tensor)| {
            let info = TensorInfo {
                shape: tensor.shape.clone(),
                kind: Some(tensor.kind),
                dtype: format!("{:?}", tensor.kind),
            };
            (name.clone(), info)
        })
        .collect();
    let shard = Shard::TorchSave {
        path: path.to_owned(),
        archive,
        prefix,
        tensors,
    };
    Ok((shard, infos))
}

/// The array a tensor views, once the archive is known to hold exactly that many bytes.
fn read_storage(
    path: &Path,
    archive: &mut ZipArchive<File>,
    prefix: &str,
    tensor: &PickledTensor,
) -> Result<Vec<u8>, LoadError> {
    let name = format!("{prefix}data/{}", tensor.storage);
    let bytes = u64::try_from(tensor.storage_len)
        .ok()
        .and_then(|len| len.checked_mul(tensor.kind.elt_size_in_bytes() as u64))
        .ok_or_else(|| malformed(path, format!("`{name}` has an impossible length")))?;
    let data = read_entry(path, archive, &name, bytes)?;
    if data.len() as u64 != bytes {
        let problem = format!("`{name}` holds {} bytes, expected {bytes}", data.len());
        return Err(malformed(path, problem));
    }
    Ok(data)
}

/// An uncompressed entry of at most `max` bytes, its checksum verified by the zip reader.
fn read_entry(
    path: &Path,
    archive: &mut ZipArchive<File>,
    name: &str,
    max: u64,
) -> Result<Vec<u8>, LoadError> {
    let entry = archive.by_name(name).map_err(|source| LoadError::Zip {
        path: path.to_owned(),
        source: source.into(),
    })?;
    let file_bytes = path.metadata().map(|data| data.len()).unwrap_or(0);
    let size = entry.size();
    // torch.save never compresses; without compression no entry outgrows the file.
    if entry.compression() != zip::CompressionMethod::Stored || size > max || size > file_bytes {
        let problem = format!("`{name}` of {size} bytes is compressed or larger than {max}");
        return Err(malformed(path, problem));
    }
    let mut data = Vec::with_capacity(size as usize);
    entry
        .take(max + 1)
        .read_to_end(&mut data)
        .map_err(|source| LoadError::Read {
            path: path.to_owned(),
            source,
        })?;
    Ok(data)
}
