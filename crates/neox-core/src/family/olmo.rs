//! OLMo: norms without parameters, and a bound on queries, keys and values.

use super::Part::{AttentionOut, Embedding, Key, MlpIn, MlpOut, MlpUp, Query, Unembedding, Value};
use super::Stored::AsIs;
use super::{Family, Keys, llama};
use crate::architecture::{Architecture, NormKind};
use crate::error::ConfigError;

pub(super) static FAMILY: Family = Family {
    model_type: "olmo",
    architecture,
    prefix: "model.",
    whole: &[
        (Embedding, "model.embed_tokens", AsIs),
        (Unembedding, "lm_head", AsIs),
    ],
    block: "model.layers.",
    per_block: &[
        (Query, "self_attn.q_proj", AsIs),
        (Key, "self_attn.k_proj", AsIs),
        (Value, "self_attn.v_proj", AsIs),
        (AttentionOut, "self_attn.o_proj", AsIs),
        (MlpIn, "mlp.gate_proj", AsIs),
        (MlpUp, "mlp.up_proj", AsIs),
        (MlpOut, "mlp.down_proj", AsIs),
    ],
    buffers: &[".rotary_emb.inv_freq"],
};

fn architecture(family: &'static Family, keys: &Keys<'_>) -> Result<Architecture, ConfigError> {
    Ok(Architecture {
        norm: NormKind::LayerNormPlain,
        norm_eps: 1e-5, // no key for it
        clip_qkv: keys.positive("clip_qkv")?,
        mlp_bias: false,
        ..llama::architecture(family, keys)?
    })
}
