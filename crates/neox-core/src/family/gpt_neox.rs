//! GPT-NeoX: Pythia and its relatives.

use super::Part::{
    AttentionNorm, AttentionOut, Embedding, FinalNorm, MlpIn, MlpNorm, MlpOut, Qkv, Unembedding,
};
use super::Stored::{AsIs, QkvPerHead};
use super::{Family, Keys};
use crate::activation::Activation;
use crate::architecture::{Architecture, NormKind, Residual, ScoreScale};
use crate::error::ConfigError;
use crate::rope::rotary;

pub(super) static FAMILY: Family = Family {
    model_type: "gpt_neox",
    architecture,
    prefix: "gpt_neox.",
    whole: &[
        (Embedding, "gpt_neox.embed_in", AsIs),
        (FinalNorm, "gpt_neox.final_layer_norm", AsIs),
        (Unembedding, "embed_out", AsIs),
    ],
    block: "gpt_neox.layers.",
    per_block: &[
        (AttentionNorm, "input_layernorm", AsIs),
        (Qkv, "attention.query_key_value", QkvPerHead),
        (AttentionOut, "attention.dense", AsIs),
        (MlpNorm, "post_attention_layernorm", AsIs),
        (MlpIn, "mlp.dense_h_to_4h", AsIs),
        (MlpOut, "mlp.dense_4h_to_h", AsIs),
    ],
    buffers: &[
        ".attention.bias",
        ".attention.masked_bias",
        ".rotary_emb.inv_freq",
    ],
};

fn architecture(family: &'static Family, keys: &Keys<'_>) -> Result<Architecture, ConfigError> {
    let hidden_size = keys.size("hidden_size")?;
    let heads = keys.size("num_attention_heads")?;
    let head_size = keys.head_size(("hidden_size", hidden_size), ("num_attention_heads", heads))?;
    keys.implied("head_dim", head_size)?;
    keys.implied("num_key_value_heads", heads)?;
    let vocab_size = keys.size("vocab_size")?;
    let residual = match keys.flag("use_parallel_residual")? {
        Some(false) => Residual::Sequential,
        Some(true) | None => Residual::Parallel,
    };
    Ok(Architecture {
        family: family.model_type,
        hidden_size,
        intermediate_size: keys.size("intermediate_size")?,
        num_hidden_layers: keys.layers("num_hidden_layers")?,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_size,
        vocab_size,
        max_position_embeddings: keys.size("max_position_embeddings")?,
        positions: rotary(keys, head_size, 0.25)?,
        norm: NormKind::LayerNorm,
        norm_eps: keys.positive("layer_norm_eps")?.unwrap_or(1e-5),
        residual,
        attention_bias: keys.flag("attention_bias")?.unwrap_or(true),
        score_scale: ScoreScale {
            by_head_size: true,
            by_layer: false,
        },
        clip_qkv: None,
        qk_norm: false,
        hidden_act: keys.activation("hidden_act", Activation::Gelu)?,
        gated_mlp: false,
        mlp_bias: true,
        tie_word_embeddings: keys.flag("tie_word_embeddings")?.unwrap_or(false),
        bos_token_id: keys.bos(vocab_size)?,
        eos_token_ids: keys.tokens("eos_token_id", vocab_size)?,
    })
}
