//! OLMo 2: norms after attention and MLP, and of queries and keys.

use super::Part::{
    AttentionNorm, AttentionOut, Embedding, FinalNorm, Key, KeyNorm, MlpIn, MlpNorm, MlpOut, MlpUp,
    Query, QueryNorm, Unembedding, Value,
};
use super::Stored::AsIs;
use super::{Family, Keys, llama};
use crate::architecture::{Architecture, Residual};
use crate::error::ConfigError;

pub(super) static FAMILY: Family = Family {
    model_type: "olmo2",
    architecture,
    prefix: "model.",
    whole: &[
        (Embedding, "model.embed_tokens", AsIs),
        (FinalNorm, "model.norm", AsIs),
        (Unembedding, "lm_head", AsIs),
    ],
    block: "model.layers.",
    per_block: &[
        (Query, "self_attn.q_proj", AsIs),
        (Key, "self_attn.k_proj", AsIs),
        (Value, "self_attn.v_proj", AsIs),
        (QueryNorm, "self_attn.q_norm", AsIs),
        (KeyNorm, "self_attn.k_norm", AsIs),
        (AttentionOut, "self_attn.o_proj", AsIs),
        (AttentionNorm, "post_attention_layernorm", AsIs),
        (MlpIn, "mlp.gate_proj", AsIs),
        (MlpUp, "mlp.up_proj", AsIs),
        (MlpOut, "mlp.down_proj", AsIs),
        (MlpNorm, "post_feedforward_layernorm", AsIs),
    ],
    buffers: &[".rotary_emb.inv_freq"],
};

fn architecture(family: &'static Family, keys: &Keys<'_>) -> Result<Architecture, ConfigError> {
    Ok(Architecture {
        norm_eps: keys.positive("rms_norm_eps")?.unwrap_or(1e-5),
        residual: Residual::NormAfter,
        qk_norm: true,
        mlp_bias: false,
        ..llama::architecture(family, keys)?
    })
}
