//! The tensors of a checkpoint's weight files, each checked before it is copied.

use std::collections::BTreeMap;
use std::path::PathBuf;

use model_conventions::WeightFiles;
use tch::{Device, Kind, TchError, Tensor};

use crate::architecture::Architecture;
use crate::error::{LoadError, TensorMismatch};
use crate::family::{Entry, Family, Part};
use crate::options::LoadOptions;
use crate::shard::{Shard, TensorInfo};

/// All tensors of a checkpoint, across its shards.
pub(crate) struct Tensors {
    dir: PathBuf,
    shards: Vec<Shard>,
    /// By the names that their family has for them.
    infos: BTreeMap<String, Held>,
    /// What the names in the files have or lack, in a sentence.
    pub(crate) renamed: Option<String>,
}

/// Where a tensor is.
struct Held {
    shard: usize,
    /// Its name in the file.
    name: String,
    info: TensorInfo,
}

/// Takes off what wrappers put before all names (`module.`, `_orig_mod.`), and puts the family's prefix where a bare model lacks it;
/// where the names do not all say the same, they stay as they are.
fn own_names(
    infos: BTreeMap<String, Held>,
    family: &Family,
) -> (BTreeMap<String, Held>, Option<String>) {
    let prefix = family.prefix;
    let one = |end: &str| {
        let mut found = infos
            .keys()
            .filter_map(|name| name.strip_suffix(end))
            .filter(|start| start.is_empty() || start.ends_with('.'));
        found.next().filter(|_| found.next().is_none())
    };
    // Some families have no weights in their norms.
    let base = [Part::FinalNorm, Part::Embedding]
        .into_iter()
        .find_map(|part| one(family.weight(part).strip_prefix(prefix)?));
    let Some(base) = base.filter(|base| *base != prefix) else {
        return (infos, None);
    };
    let w_u = family.weight(Part::Unembedding);
    let unembedding = one(&w_u).map(|start| format!("{start}{w_u}"));
    let renamed = |name: &str| match unembedding.as_deref() == Some(name) {
        true => Some(w_u.clone()),
        false => Some(format!("{prefix}{}", name.strip_prefix(base)?)),
    };
    let names: Option<BTreeMap<String, String>> = infos
        .keys()
        .map(|name| Some((name.clone(), renamed(name)?)))
        .collect();
    let Some(names) = names else {
        return (infos, None);
    };
    let note = match base.strip_suffix(prefix) {
        Some(before) => {
            format!("the names of all tensors begin with `{before}`, which is left out")
        }
        None if base.is_empty() => {
            format!("the names of the tensors lack `{prefix}`, which is put before them")
        }
        None => {
            format!("the names of the tensors begin with `{base}`, which is read as `{prefix}`")
        }
    };
    let infos = infos
        .into_iter()
        .filter_map(|(name, held)| Some((names.get(&name)?.clone(), held)))
        .collect();
    (infos, Some(note))
}

impl Tensors {
    /// Opens every shard and lists its tensors; nothing is copied yet.
    pub(crate) fn open(files: &WeightFiles, family: &Family) -> Result<Self, LoadError> {
        let mut shards = Vec::with_capacity(files.names().len());
        let mut infos = BTreeMap::new();
        for name in files.names() {
            let path = files.dir().join(name);
            let (shard, tensors) = Shard::open(&path, files.format())?;
            for (tensor, info) in tensors {
                if let Some(index) = files.index()
                    && index.get(&tensor) != Some(name)
                {
                    return Err(LoadError::Malformed {
                        path,
                        problem: format!("holds tensor `{tensor}`, which the index puts elsewhere"),
                    });
                }
                infos.insert(
                    tensor.clone(),
                    Held {
                        shard: shards.len(),
                        name: tensor,
                        info,
                    },
                );
            }
            shards.push(shard);
        }
        if let Some(index) = files.index()
            && let Some((tensor, name)) = index
                .iter()
                .find(|(tensor, _)| !infos.contains_key(*tensor))
        {
            return Err(LoadError::Malformed {
                path: files.dir().join(name),
                problem: format!("lacks tensor `{tensor}`, which the index puts there"),
            });
        }
        let (infos, renamed) = own_names(infos, family);
        Ok(Self {
            dir: files.dir().to_owned(),
            shards,
            infos,
            renamed,
        })
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.infos.keys().cloned().collect()
    }

    pub(crate) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.infos.get(name).map(|held| &held.info)
    }

    /// Every tensor that the config implies, in order of name; of tied embeddings those that are stored.
    pub(crate) fn implied(&self, architecture: &Architecture) -> Vec<Entry> {
        let mut entries = architecture.tensors();
        if architecture.tie_word_embeddings {
            let family = architecture.family();
            let has = |part| self.infos.contains_key(&family.weight(part));
            let (from, to) = (has(Part::Embedding), has(Part::Unembedding));
            entries.retain(|entry| match entry.part {
                Part::Embedding => from || !to,
                Part::Unembedding => to,
                _ => true,
            });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        entries
    }

    /// The weight of a part in the model's order and the stored dtype; of tied embeddings either may stand for the other.
    pub(crate) fn weight(
        &mut self,
        architecture: &Architecture,
        part: Part,
    ) -> Result<Tensor, LoadError> {
        let entries = self.implied(architecture);
        let find = |part| entries.iter().find(|entry| entry.is_weight_of(part));
        let entry = find(part)
            .or_else(|| find(part.tied_to()?))
            .ok_or_else(|| LoadError::MissingTensor {
                name: format!("{part:?}"),
            })?;
        let tensor = self.read(&entry.name)?;
        Ok(entry.stored.to_model(tensor, architecture)?)
    }

    /// Copies a tensor into memory, as stored.
    pub(crate) fn read(&mut self, name: &str) -> Result<Tensor, LoadError> {
        let Held { shard, name, info } =
            self.infos
                .get(name)
                .ok_or_else(|| LoadError::MissingTensor {
                    name: name.to_owned(),
                })?;
        self.shards[*shard].read(name, info)
    }
}

/// Hands out a checkpoint's weights as the model holds them, in the wanted dtype on the wanted device.
pub(crate) struct Loader<'a> {
    tensors: Tensors,
    entries: BTreeMap<(Part, bool), Entry>,
    pub(crate) architecture: &'a Architecture,
    options: LoadOptions,
}

impl<'a> Loader<'a> {
    /// Opens the files and compares every tensor with what the config implies.
    pub(crate) fn open(
        files: &WeightFiles,
        architecture: &'a Architecture,
        options: &LoadOptions,
    ) -> Result<Self, LoadError> {
        let tensors = Tensors::open(files, architecture.family())?;
        let mismatch = compare(&tensors, architecture);
        if !mismatch.is_empty() {
            return Err(LoadError::Tensors {
                path: files.dir().to_owned(),
                mismatch: Box::new(mismatch),
            });
        }
        let entries = tensors.implied(architecture).into_iter();
        Ok(Self {
            entries: entries
                .map(|entry| ((entry.part, entry.bias), entry))
                .collect(),
            tensors,
            architecture,
            options: *options,
        })
    }

    /// The weight of a part that the architecture has.
    pub(crate) fn weight(&mut self, part: Part) -> Result<Tensor, LoadError> {
        self.read(part, false)?
            .ok_or_else(|| LoadError::MissingTensor {
                name: format!("{part:?}"),
            })
    }

    /// The bias of a part, if it has one.
    pub(crate) fn bias(&mut self, part: Part) -> Result<Option<Tensor>, LoadError> {
        self.read(part, true)
    }

    /// A vector for parameters that a norm does not have.
    pub(crate) fn filled(&self, width: i64, value: f64) -> Result<Tensor, LoadError> {
        let LoadOptions { device, dtype } = self.options;
        Ok(Tensor::f_full([width], value, (dtype, device))?)
    }

    /// The weight, or the bias, of queries, keys and values, which may be stored apart.
    pub(crate) fn qkv(&mut self, layer: usize, bias: bool) -> Result<Option<Tensor>, LoadError> {
        if let Some(whole) = self.read(Part::Qkv(layer), bias)? {
            return Ok(Some(whole));
        }
        let mut parts = Vec::new();
        for part in [Part::Query(layer), Part::Key(layer), Part::Value(layer)] {
            parts.extend(self.read(part, bias)?);
        }
        match parts.len() {
            0 => Ok(None),
            _ => Ok(Some(Tensor::f_cat(&parts, 0)?)),
        }
    }

    /// Embedding and unembedding, `[vocab, d_model]` each, and a warning where tied ones are both stored and differ: they are kept
    /// apart, as in transformers.
    pub(crate) fn embeddings(&mut self) -> Result<(Tensor, Tensor, Option<String>), LoadError> {
        let tied = self.architecture.tie_word_embeddings;
        let mut stored = |part| self.read(part, false);
        match (stored(Part::Embedding)?, stored(Part::Unembedding)?) {
            (Some(from), Some(to)) if tied && from.f_equal(&to)? => {
                Ok((from.shallow_clone(), from, None))
            }
            (Some(from), Some(to)) => {
                let family = self.architecture.family();
                let warning = tied.then(|| format!(
                    "`tie_word_embeddings` is true, but `{}` and `{}` are both stored and differ: both are used as they are, so set it to false in config.json",
                    family.weight(Part::Embedding),
                    family.weight(Part::Unembedding),
                ));
                Ok((from, to, warning))
            }
            (Some(one), None) | (None, Some(one)) => Ok((one.shallow_clone(), one, None)),
            (None, None) => Err(LoadError::MissingTensor {
                name: self.architecture.family().weight(Part::Embedding),
            }),
        }
    }

    /// What was read in another way than it is named.
    pub(crate) fn renamed(&self) -> Option<String> {
        self.tensors.renamed.clone()
    }

    fn read(&mut self, part: Part, bias: bool) -> Result<Option<Tensor>, LoadError> {
        let Some(entry) = self.entries.get(&(part, bias)) else {
            return Ok(None);
        };
        let stored = self.tensors.read(&entry.name)?;
        let tensor = entry
            .stored
            .to_model(stored.shallow_clone(), self.architecture)?
            .f_to_device(self.options.device)?
            .f_to_kind(self.options.dtype)?
            .f_contiguous()?;
        match is_finite(&tensor)? {
            true => Ok(Some(tensor)),
            false => Err(self.not_finite(&entry.name, &stored)?),
        }
    }

    /// The error for a tensor with a value that is NaN or infinite in the dtype to compute in.
    fn not_finite(&self, name: &str, stored: &Tensor) -> Result<LoadError, TchError> {
        let at = |tensor: &Tensor| -> Result<Option<(Vec<i64>, f64)>, TchError> {
            let places = tensor.f_isfinite()?.f_logical_not()?.f_nonzero()?;
            if places.size()[0] == 0 {
                return Ok(None);
            }
            let place = Vec::<i64>::try_from(places.f_select(0, 0)?.f_to_device(Device::Cpu)?)?;
            let value = tensor.f_double_value(&place)?;
            Ok(Some((place, value)))
        };
        let dtype = self.options.dtype;
        let (found, overflow) = match at(stored)? {
            Some(found) => (Some(found), None),
            None => (at(&stored.f_to_kind(dtype)?)?, Some(dtype)),
        };
        let (place, value) = found.unwrap_or_default();
        Ok(LoadError::NotFinite {
            path: self.tensors.dir.clone(),
            name: name.to_owned(),
            place,
            value,
            overflow,
        })
    }
}

/// Whether no value is NaN or infinite.
pub(crate) fn is_finite(tensor: &Tensor) -> Result<bool, TchError> {
    // NaN and infinity show in the least and the greatest value, which are found in one pass.
    let (least, greatest) = tensor.f_aminmax(None, false)?;
    Ok(least.f_double_value(&[])?.is_finite() && greatest.f_double_value(&[])?.is_finite())
}

/// Everything in which a checkpoint differs from what its config implies.
pub(crate) fn compare(tensors: &Tensors, architecture: &Architecture) -> TensorMismatch {
    let implied: BTreeMap<String, Entry> = tensors
        .implied(architecture)
        .into_iter()
        .map(|entry| (entry.name.clone(), entry))
        .collect();
    let mut mismatch = TensorMismatch::default();
    for (name, entry) in &implied {
        match tensors.info(name) {
            None => mismatch.missing.push(name.clone()),
            Some(info) => {
                if info.shape != entry.shape {
                    let found = info.shape.clone();
                    mismatch
                        .shapes
                        .push((name.clone(), entry.shape.clone(), found));
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
    let family = architecture.family();
    for name in tensors.names() {
        if !implied.contains_key(&name) && !family.is_buffer(&name) {
            mismatch.unexpected.push(name);
        }
    }
    mismatch
}
