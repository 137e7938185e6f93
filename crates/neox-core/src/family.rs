//! Model families: how the config of each maps to an [`Architecture`], and the names of its tensors.
//!
//! A family is one file of data. Beside it, only the table here knows that there are several.

use std::fmt;

use tch::{TchError, Tensor};

use crate::architecture::{Architecture, NormKind, Positions};
use crate::error::ConfigError;
use crate::keys::Keys;

mod gpt2;
mod gpt_neox;
mod llama;
mod olmo;
mod olmo2;

/// All of them; a config that names none is taken for the first.
const FAMILIES: [&Family; 5] = [
    &gpt_neox::FAMILY,
    &gpt2::FAMILY,
    &llama::FAMILY,
    &olmo::FAMILY,
    &olmo2::FAMILY,
];
/// Keys that would change the numbers, and that no decoder here has.
const REFUSED: [(&str, &str); 9] = [
    (
        "quantization_config",
        "quantised weights are not supported: take the checkpoint that they were made from",
    ),
    ("pruned_heads", "pruned attention heads are not supported"),
    ("sliding_window", "a sliding window is not supported"),
    ("use_sliding_window", "a sliding window is not supported"),
    ("attn_logit_softcapping", "soft caps are not supported"),
    ("final_logit_softcapping", "soft caps are not supported"),
    ("alibi", "ALiBi is not supported"),
    ("num_experts", "mixtures of experts are not supported"),
    ("num_local_experts", "mixtures of experts are not supported"),
];

/// The part of the block of a number.
type OfBlock = fn(usize) -> Part;

/// What one family calls things.
pub(crate) struct Family {
    /// `model_type` of its configs.
    pub(crate) model_type: &'static str,
    architecture: fn(&'static Family, &Keys<'_>) -> Result<Architecture, ConfigError>,
    /// What every name but that of the unembedding starts with.
    pub(crate) prefix: &'static str,
    /// Tensors outside the blocks: their names without `.weight` and `.bias`.
    whole: &'static [(Part, &'static str, Stored)],
    /// What precedes the number of a block.
    block: &'static str,
    /// Tensors of each block: their names behind the block's number and its dot.
    per_block: &'static [(OfBlock, &'static str, Stored)],
    /// Endings of saved tensors that follow from the config: causal masks, rotary frequencies.
    buffers: &'static [&'static str],
}

impl fmt::Debug for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.model_type)
    }
}

impl PartialEq for Family {
    fn eq(&self, other: &Self) -> bool {
        self.model_type == other.model_type
    }
}

/// A part of the decoder that has weights. Blocks count from 0; shapes are those of the weight as
/// the model holds it, whatever way its family stores it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Part {
    /// A row per token: `[vocab, d_model]`.
    Embedding,
    /// A row per position, where positions are learned: `[max_position_embeddings, d_model]`.
    PositionEmbedding,
    /// The norm before the unembedding: `[d_model]`.
    FinalNorm,
    /// A row per token: `[vocab, d_model]`; the embedding where they are tied.
    Unembedding,
    /// The norm that belongs to a block's attention: `[d_model]`.
    AttentionNorm(usize),
    /// Queries of all heads, then keys, then values:
    /// `[(heads + 2 * key_value_heads) * head_size, d_model]`.
    Qkv(usize),
    /// Queries of all heads, where they are stored alone: `[heads * head_size, d_model]`.
    Query(usize),
    /// Keys, where they are stored alone: `[key_value_heads * head_size, d_model]`.
    Key(usize),
    /// Values, where they are stored alone: as keys.
    Value(usize),
    /// The norm of the queries, all heads together: `[heads * head_size]`.
    QueryNorm(usize),
    /// The norm of the keys, all heads together: `[key_value_heads * head_size]`.
    KeyNorm(usize),
    /// What attention writes to the residual stream: `[d_model, heads * head_size]`.
    AttentionOut(usize),
    /// The norm that belongs to a block's MLP: `[d_model]`.
    MlpNorm(usize),
    /// What the activation function reads (the gate of a gated MLP): `[d_mlp, d_model]`.
    MlpIn(usize),
    /// What the activation is multiplied by in a gated MLP: `[d_mlp, d_model]`.
    MlpUp(usize),
    /// What neurons write to the residual stream, by column: `[d_model, d_mlp]`.
    MlpOut(usize),
}

/// How a weight lies in the file, compared with how the model holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stored {
    AsIs,
    /// `[in, out]`, as Conv1D has it; a bias is as it is.
    Transposed,
    /// Queries, keys and values of one head after those of another: rows are (head, q|k|v, dimension).
    QkvPerHead,
}

/// One tensor of a checkpoint.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) part: Part,
    pub(crate) bias: bool,
    /// As stored.
    pub(crate) shape: Vec<i64>,
    pub(crate) stored: Stored,
}

impl Family {
    /// The family that a config names.
    pub(crate) fn of(keys: &Keys<'_>) -> Result<&'static Self, ConfigError> {
        let Some(found) = keys.string("model_type")? else {
            return Ok(FAMILIES[0]);
        };
        FAMILIES
            .into_iter()
            .find(|family| family.model_type == found)
            .ok_or_else(|| ConfigError::ModelType {
                found: found.into(),
                expected: FAMILIES
                    .map(|family| format!("`{}`", family.model_type))
                    .join(" or "),
            })
    }

    pub(crate) fn architecture(
        &'static self,
        keys: &Keys<'_>,
    ) -> Result<Architecture, ConfigError> {
        for (key, problem) in REFUSED {
            keys.refuse(key, problem)?;
        }
        (self.architecture)(self, keys)
    }

    /// Name of the weight of a part outside the blocks.
    pub(crate) fn weight(&self, part: Part) -> String {
        let found = self.whole.iter().find(|(own, ..)| *own == part);
        format!("{}.weight", found.map_or("", |(_, name, _)| name))
    }

    /// Causal masks and the like that older versions of transformers saved; they follow from the config.
    pub(crate) fn is_buffer(&self, name: &str) -> bool {
        name.starts_with(self.block) && self.buffers.iter().any(|end| name.ends_with(end))
    }
}

impl Architecture {
    /// Whose names its files use.
    pub(crate) fn family(&self) -> &'static Family {
        let named = |family: &&Family| family.model_type == self.family;
        FAMILIES.into_iter().find(named).unwrap_or(FAMILIES[0])
    }

    /// Every tensor that a checkpoint of this architecture holds, with embedding and unembedding, tied or not.
    pub(crate) fn tensors(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut add = |part: Part, name: String, stored: Stored| {
            for (bias, ending) in [(false, "weight"), (true, "bias")] {
                if let Some(shape) = part.shape(self, bias) {
                    entries.push(Entry {
                        name: format!("{name}.{ending}"),
                        part,
                        bias,
                        shape: stored.shape(shape),
                        stored,
                    });
                }
            }
        };
        for &(part, name, stored) in self.family().whole {
            add(part, name.to_owned(), stored);
        }
        for layer in 0..self.num_hidden_layers {
            for &(part, name, stored) in self.family().per_block {
                add(
                    part(layer),
                    format!("{}{layer}.{name}", self.family().block),
                    stored,
                );
            }
        }
        entries
    }
}

impl Entry {
    pub(crate) fn is_weight_of(&self, part: Part) -> bool {
        self.part == part && !self.bias
    }
}

impl Part {
    /// What has the same weight where embeddings are tied.
    pub(crate) fn tied_to(self) -> Option<Self> {
        match self {
            Self::Embedding => Some(Self::Unembedding),
            Self::Unembedding => Some(Self::Embedding),
            _ => None,
        }
    }

    /// Shape of the weight or the bias as the model holds it; `None` if there is none.
    fn shape(self, a: &Architecture, bias: bool) -> Option<Vec<i64>> {
        let (d, m, v) = (a.hidden_size, a.intermediate_size, a.vocab_size);
        let q = a.num_attention_heads * a.head_size;
        let kv = a.num_key_value_heads * a.head_size;
        let linear = |out: i64, from: i64, has_bias: bool| match bias {
            false => Some(vec![out, from]),
            true => has_bias.then(|| vec![out]),
        };
        let norm = |width: i64| match a.norm {
            NormKind::LayerNorm => Some(vec![width]),
            NormKind::RmsNorm => (!bias).then(|| vec![width]),
            NormKind::LayerNormPlain => None,
        };
        match self {
            Self::Embedding | Self::Unembedding => linear(v, d, false),
            Self::PositionEmbedding if a.positions == Positions::Learned => {
                linear(a.max_position_embeddings, d, false)
            }
            Self::PositionEmbedding => None,
            Self::FinalNorm | Self::AttentionNorm(_) | Self::MlpNorm(_) => norm(d),
            Self::QueryNorm(_) => norm(q).filter(|_| a.qk_norm),
            Self::KeyNorm(_) => norm(kv).filter(|_| a.qk_norm),
            Self::Qkv(_) => linear(q + 2 * kv, d, a.attention_bias),
            Self::Query(_) => linear(q, d, a.attention_bias),
            Self::Key(_) | Self::Value(_) => linear(kv, d, a.attention_bias),
            Self::AttentionOut(_) => linear(d, q, a.attention_bias),
            Self::MlpIn(_) => linear(m, d, a.mlp_bias),
            Self::MlpUp(_) if a.gated_mlp => linear(m, d, a.mlp_bias),
            Self::MlpUp(_) => None,
            Self::MlpOut(_) => linear(d, m, a.mlp_bias),
        }
    }
}

impl Stored {
    /// Shape in the file of what has `shape` in the model, and the other way round.
    pub(crate) fn shape(self, mut shape: Vec<i64>) -> Vec<i64> {
        if self == Self::Transposed {
            shape.reverse();
        }
        shape
    }

    /// From the file's order to the model's.
    pub(crate) fn to_model(self, tensor: Tensor, a: &Architecture) -> Result<Tensor, TchError> {
        match self {
            Self::AsIs => Ok(tensor),
            Self::Transposed => transposed(tensor),
            Self::QkvPerHead => swapped(&tensor, [a.num_attention_heads, 3, a.head_size]),
        }
    }

    /// From the model's order to the file's.
    pub(crate) fn to_file(self, tensor: Tensor, a: &Architecture) -> Result<Tensor, TchError> {
        match self {
            Self::AsIs => Ok(tensor),
            Self::Transposed => transposed(tensor),
            Self::QkvPerHead => swapped(&tensor, [3, a.num_attention_heads, a.head_size]),
        }
    }
}

/// Rows for columns; a bias as it is.
fn transposed(tensor: Tensor) -> Result<Tensor, TchError> {
    match tensor.dim() {
        1 => Ok(tensor),
        _ => tensor.f_tr(),
    }
}

/// Rows `(i, j, dimension)` in the order `(j, i, dimension)`.
fn swapped(tensor: &Tensor, [i, j, size]: [i64; 3]) -> Result<Tensor, TchError> {
    tensor
        .f_view([i, j, size, -1])?
        .f_transpose(0, 1)?
        .f_reshape(tensor.size())
}
