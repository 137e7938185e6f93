//! Finding a checkpoint's weight files, and checking every tensor before it is copied.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use sha2::{Digest, Sha256};
use tch::{Device, Kind, TchError, Tensor};

use crate::config::NeoxConfig;
use crate::error::{LoadError, TensorMismatch};
use crate::files::read_small;
use crate::model::LoadOptions;
use crate::shard::{Shard, TensorInfo};

/// An index lists some hundred tensors; this is a thousand times that.
const MAX_INDEX_BYTES: u64 = 16 << 20;

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WeightFormat {
    /// `model.safetensors` or its shards.
    Safetensors,
    /// `pytorch_model.bin` or its shards.
    PytorchBin,
}

/// The weight files of one checkpoint folder.
#[derive(Debug, Clone)]
pub struct WeightFiles {
    dir: PathBuf,
    format: WeightFormat,
    /// File names inside `dir`.
    names: Vec<String>,
    /// Tensor to file name, for sharded checkpoints.
    index: Option<BTreeMap<String, String>>,
}

/// Content hash of one file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct FileHash {
    /// Name inside the checkpoint folder.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256, in hexadecimal.
    pub sha256: String,
}

impl WeightFiles {
    /// Names to look for, in order of preference, and whether each is an index of shards.
    pub(crate) const CANDIDATES: [(&'static str, WeightFormat, bool); 4] = [
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
    /// - [`LoadError::NoWeights`] if there is neither
    /// - [`LoadError::Malformed`] for an index that is not one or names files outside the folder
    pub fn find(dir: &Path) -> Result<Self, LoadError> {
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
        Err(LoadError::NoWeights {
            path: dir.to_owned(),
        })
    }

    /// How the weights are stored.
    #[must_use]
    pub fn format(&self) -> WeightFormat {
        self.format
    }

    /// The files that hold tensors, in order of name.
    pub fn paths(&self) -> impl Iterator<Item = PathBuf> + '_ {
        self.names.iter().map(|name| self.dir.join(name))
    }

    /// Size and SHA-256 of each file, for provenance.
    ///
    /// # Errors
    /// - [`LoadError::Read`] if a file cannot be read
    pub fn sha256(&self) -> Result<Vec<FileHash>, LoadError> {
        self.names
            .iter()
            .map(|name| {
                let path = self.dir.join(name);
                let (bytes, sha256) =
                    sha256_file(&path).map_err(|source| LoadError::Read { path, source })?;
                Ok(FileHash {
                    name: name.clone(),
                    bytes,
                    sha256,
                })
            })
            .collect()
    }

    /// Opens every shard and lists its tensors; nothing is copied yet.
    pub(crate) fn open(&self) -> Result<Tensors, LoadError> {
        let mut shards = Vec::with_capacity(self.names.len());
        let mut infos = BTreeMap::new();
        for name in &self.names {
            let path = self.dir.join(name);
            let (shard, tensors) = Shard::open(&path, self.format)?;
            for (tensor, info) in tensors {
                if let Some(index) = &self.index
                    && index.get(&tensor) != Some(name)
                {
                    return Err(LoadError::Malformed {
                        path,
                        problem: format!("holds tensor `{tensor}`, which the index puts elsewhere"),
                    });
                }
                infos.insert(
                    tensor.clone(),
                    Stored {
                        shard: shards.len(),
                        name: tensor,
                        info,
                    },
                );
            }
            shards.push(shard);
        }
        if let Some(index) = &self.index
            && let Some((tensor, name)) = index
                .iter()
                .find(|(tensor, _)| !infos.contains_key(*tensor))
        {
            return Err(LoadError::Malformed {
                path: self.dir.join(name),
                problem: format!("lacks tensor `{tensor}`, which the index puts there"),
            });
        }
        let (infos, renamed) = own_names(infos);
        Ok(Tensors {
            dir: self.dir.clone(),
            shards,
            infos,
            renamed,
        })
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

/// `weight_map` of an index: tensor name to file name.
pub(crate) fn read_index(path: &Path) -> Result<BTreeMap<String, String>, LoadError> {
    let text = read_small(path, MAX_INDEX_BYTES)?;
    parse_index(&text).map_err(|problem| LoadError::Malformed {
        path: path.to_owned(),
        problem,
    })
}

pub(crate) fn parse_index(text: &str) -> Result<BTreeMap<String, String>, String> {
    #[derive(serde::Deserialize)]
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

/// All tensors of a checkpoint, across its shards.
pub(crate) struct Tensors {
    dir: PathBuf,
    shards: Vec<Shard>,
    /// By the names that GPT-NeoX has for them.
    infos: BTreeMap<String, Stored>,
    /// What the names in the files have or lack, in a sentence.
    pub(crate) renamed: Option<String>,
}

/// Where a tensor is.
struct Stored {
    shard: usize,
    /// Its name in the file.
    name: String,
    info: TensorInfo,
}

const BASE: &str = "gpt_neox.";
pub(crate) const W_U: &str = "embed_out.weight";
pub(crate) const EMBEDDING: &str = "gpt_neox.embed_in.weight";

/// Takes off what wrappers put before all names (`module.`, `_orig_mod.`), and puts `gpt_neox.` where a bare model lacks it; where the
/// names do not all say the same, they stay as they are.
fn own_names(infos: BTreeMap<String, Stored>) -> (BTreeMap<String, Stored>, Option<String>) {
    const NORM: &str = "final_layer_norm.weight";
    let one = |end: &str| {
        let mut found = infos
            .keys()
            .filter_map(|name| name.strip_suffix(end))
            .filter(|start| start.is_empty() || start.ends_with('.'));
        found.next().filter(|_| found.next().is_none())
    };
    let Some(base) = one(NORM).filter(|base| *base != BASE) else {
        return (infos, None);
    };
    let unembedding = one(W_U).map(|start| format!("{start}{W_U}"));
    let renamed = |name: &str| match unembedding.as_deref() == Some(name) {
        true => Some(W_U.to_owned()),
        false => Some(format!("{BASE}{}", name.strip_prefix(base)?)),
    };
    let names: Option<BTreeMap<String, String>> = infos
        .keys()
        .map(|name| Some((name.clone(), renamed(name)?)))
        .collect();
    let Some(names) = names else {
        return (infos, None);
    };
    let note = match base.strip_suffix(BASE) {
        Some(prefix) => {
            format!("the names of all tensors begin with `{prefix}`, which is left out")
        }
        None if base.is_empty() => {
            format!("the names of the tensors lack `{BASE}`, which is put before them")
        }
        None => format!("the names of the tensors begin with `{base}`, which is read as `{BASE}`"),
    };
    let infos = infos
        .into_iter()
        .filter_map(|(name, stored)| Some((names.get(&name)?.clone(), stored)))
        .collect();
    (infos, Some(note))
}

impl Tensors {
    pub(crate) fn names(&self) -> Vec<String> {
        self.infos.keys().cloned().collect()
    }

    pub(crate) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.infos.get(name).map(|stored| &stored.info)
    }

    /// Names of the tensors that the config implies, buffers left out.
    pub(crate) fn weights(&self, config: &NeoxConfig) -> Vec<String> {
        let layout = self.layout(config);
        let present = self.infos.keys().filter(|name| layout.contains_key(*name));
        present.cloned().collect()
    }

    /// Copies a tensor into memory, as stored.
    pub(crate) fn read(&mut self, name: &str) -> Result<Tensor, LoadError> {
        let Stored { shard, name, info } =
            self.infos
                .get(name)
                .ok_or_else(|| LoadError::MissingTensor {
                    name: name.to_owned(),
                })?;
        self.shards[*shard].read(name, info)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.infos.contains_key(name)
    }

    /// The tensor that holds the unembedding: of tied embeddings one may be stored, or both.
    pub(crate) fn unembedding(&self, config: &NeoxConfig) -> &'static str {
        match config.tie_word_embeddings && !self.has(W_U) {
            true => EMBEDDING,
            false => W_U,
        }
    }

    /// The tensor that holds the embedding.
    pub(crate) fn embedding(&self, config: &NeoxConfig) -> &'static str {
        match config.tie_word_embeddings && !self.has(EMBEDDING) && self.has(W_U) {
            true => W_U,
            false => EMBEDDING,
        }
    }

    /// Name and shape of every tensor that the config implies; of tied embeddings those that are stored.
    fn layout(&self, config: &NeoxConfig) -> BTreeMap<String, Vec<i64>> {
        let mut layout = layout(config);
        let shape = [config.vocab_size, config.hidden_size];
        layout.insert(self.embedding(config).to_owned(), shape.to_vec());
        layout.insert(self.unembedding(config).to_owned(), shape.to_vec());
        layout
    }
}

/// Hands out a checkpoint's tensors in the wanted dtype on the wanted device.
pub(crate) struct Loader {
    tensors: Tensors,
    options: LoadOptions,
}

impl Loader {
    /// Opens the files and compares every tensor with what the config implies.
    pub(crate) fn open(
        files: &WeightFiles,
        config: &NeoxConfig,
        options: &LoadOptions,
    ) -> Result<Self, LoadError> {
        let tensors = files.open()?;
        let mismatch = compare(&tensors, config);
        if !mismatch.is_empty() {
            return Err(LoadError::Tensors {
                path: files.dir.clone(),
                mismatch: Box::new(mismatch),
            });
        }
        Ok(Self {
            tensors,
            options: *options,
        })
    }

    pub(crate) fn tensor(&mut self, name: &str) -> Result<Tensor, LoadError> {
        let stored = self.tensors.read(name)?;
        let tensor = stored
            .f_to_device(self.options.device)?
            .f_to_kind(self.options.dtype)?
            .f_contiguous()?;
        if is_finite(&tensor)? {
            return Ok(tensor);
        }
        let at = |tensor: &Tensor| -> Result<Option<(Vec<i64>, f64)>, TchError> {
            let places = tensor.f_isfinite()?.f_logical_not()?.f_nonzero()?;
            if places.size()[0] == 0 {
                return Ok(None);
            }
            let place = Vec::<i64>::try_from(places.f_select(0, 0)?.f_to_device(Device::Cpu)?)?;
            let value = tensor.f_double_value(&place)?;
            Ok(Some((place, value)))
        };
        let (found, overflow) = match at(&stored)? {
            Some(found) => (Some(found), None),
            None => (at(&tensor)?, Some(self.options.dtype)),
        };
        let (place, value) = found.unwrap_or_default();
        Err(LoadError::NotFinite {
            path: self.tensors.dir.clone(),
            name: name.to_owned(),
            place,
            value,
            overflow,
        })
    }

    /// Embedding and unembedding, `[vocab, d_model]` each. Tied ones that are both stored and differ are kept, as in transformers.
    pub(crate) fn embeddings(
        &mut self,
        config: &NeoxConfig,
    ) -> Result<(Tensor, Tensor, Option<String>), LoadError> {
        let (from, to) = (
            self.tensors.embedding(config),
            self.tensors.unembedding(config),
        );
        let embed_in = self.tensor(from)?;
        if from == to {
            let embed_out = embed_in.shallow_clone();
            return Ok((embed_in, embed_out, None));
        }
        let embed_out = self.tensor(to)?;
        if !config.tie_word_embeddings {
            return Ok((embed_in, embed_out, None));
        }
        if embed_in.f_equal(&embed_out)? {
            let embed_out = embed_in.shallow_clone();
            return Ok((embed_in, embed_out, None));
        }
        let warning = format!(
            "`tie_word_embeddings` is true, but `{EMBEDDING}` and `{W_U}` are both stored and differ: both are used as they are, so set it to false in config.json"
        );
        Ok((embed_in, embed_out, Some(warning)))
    }

    /// What was read in another way than it is named.
    pub(crate) fn renamed(&self) -> Option<String> {
        self.tensors.renamed.clone()
    }
}

/// Whether no value is NaN or infinite.
pub(crate) fn is_finite(tensor: &Tensor) -> Result<bool, TchError> {
    // NaN and infinity show in the least and the greatest value, which are found in one pass.
    let (least, greatest) = tensor.f_aminmax(None, false)?;
    Ok(least.f_double_value(&[])?.is_finite() && greatest.f_double_value(&[])?.is_finite())
}

/// Everything in which a checkpoint differs from what its config implies.
pub(crate) fn compare(tensors: &Tensors, config: &NeoxConfig) -> TensorMismatch {
    let layout = tensors.layout(config);
    let mut mismatch = TensorMismatch::default();
    for (name, expected) in &layout {
        match tensors.info(name) {
            None => mismatch.missing.push(name.clone()),
            Some(info) => {
                if info.shape != *expected {
                    let found = info.shape.clone();
                    mismatch
                        .shapes
                        .push((name.clone(), expected.clone(), found));
                }
                if !matches!(
                    info.kind,
                    Some(Kind::Half | Kind::BFloat16 | Kind::Float | Kind::Double)
                ) {
                    mismatch.dtypes.push((name.clone(), info.dtype.clone()));
                }
            }
        }
    }
    for name in tensors.names() {
        if !layout.contains_key(&name) && !is_buffer(&name) {
            mismatch.unexpected.push(name);
        }
    }
    mismatch
}

/// Causal masks and rotary frequencies that older versions of transformers saved; they follow from
/// the config.
fn is_buffer(name: &str) -> bool {
    name.starts_with("gpt_neox.")
        && [
            ".attention.bias",
            ".attention.masked_bias",
            ".rotary_emb.inv_freq",
        ]
        .iter()
        .any(|suffix| name.ends_with(suffix))
}

/// Name and shape of every tensor the config implies, but for the embeddings.
fn layout(config: &NeoxConfig) -> BTreeMap<String, Vec<i64>> {
    let (d, m) = (config.hidden_size, config.intermediate_size);
    let mut layout = BTreeMap::new();
    let mut add = |name: String, shape: &[i64]| {
        layout.insert(name, shape.to_vec());
    };
    add("gpt_neox.final_layer_norm.weight".into(), &[d]);
    add("gpt_neox.final_layer_norm.bias".into(), &[d]);
    for layer in 0..config.num_hidden_layers {
        let name = |part: &str| format!("gpt_neox.layers.{layer}.{part}");
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            add(name(&format!("{norm}.weight")), &[d]);
            add(name(&format!("{norm}.bias")), &[d]);
        }
        add(name("attention.query_key_value.weight"), &[3 * d, d]);
        add(name("attention.dense.weight"), &[d, d]);
        if config.attention_bias {
            add(name("attention.query_key_value.bias"), &[3 * d]);
            add(name("attention.dense.bias"), &[d]);
        }
        add(name("mlp.dense_h_to_4h.weight"), &[m, d]);
        add(name("mlp.dense_h_to_4h.bias"), &[m]);
        add(name("mlp.dense_4h_to_h.weight"), &[d, m]);
        add(name("mlp.dense_4h_to_h.bias"), &[d]);
    }
    layout
}
