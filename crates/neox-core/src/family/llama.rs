//! Llama and what is built like it: SmolLM2, Amber.

use super::Part::{
    AttentionNorm, AttentionOut, Embedding, FinalNorm, Key, MlpIn, MlpNorm, MlpOut, MlpUp, Query,
    Unembedding, Value,
};
use super::Stored::AsIs;
use super::{Family, Keys};
use crate::activation::Activation;
use crate::architecture::{Architecture, NormKind, Residual, ScoreScale};
use crate::error::ConfigError;
use crate::rope::rotary;

pub(super) static FAMILY: Family = Family {
    model_type: "llama",
    architecture,
    prefix: "model.",
    whole: &[
        (Embedding, "model.embed_tokens", AsIs),
        (FinalNorm, "model.norm", AsIs),
        (Unembedding, "lm_head", AsIs),
    ],
    block: "model.layers.",
    per_block: &[
        (AttentionNorm, "input_layernorm", AsIs),
        (Query, "self_attn.q_proj", AsIs),
        (Key, "self_attn.k_proj", AsIs),
        (Value, "self_attn.v_proj", AsIs),
        (AttentionOut, "self_attn.o_proj", AsIs),
        (MlpNorm, "post_attention_layernorm", AsIs),
        (MlpIn, "mlp.gate_proj", AsIs),
        (MlpUp, "mlp.up_proj", AsIs),
        (MlpOut, "mlp.down_proj", AsIs),
    ],
    buffers: &[".rotary_emb.inv_freq"],
};

/// Also what OLMo's configs say in the same words.
pub(super) fn architecture(
    family: &'static Family,
    keys: &Keys<'_>,
) -> Result<Architecture, ConfigError> {
    let hidden_size = keys.size("hidden_size")?;
    let heads = keys.size("num_attention_heads")?;
    let head_size = match keys.optional_size("head_dim")? {
        Some(size) => size,
        None => keys.head_size(("hidden_size", hidden_size), ("num_attention_heads", heads))?,
    };
    let kv_heads = keys.optional_size("num_key_value_heads")?.unwrap_or(heads);
    if heads % kv_heads != 0 {
        return Err(keys.bad(
            "num_key_value_heads",
            format!("{kv_heads} does not divide num_attention_heads {heads}"),
        ));
    }
    let vocab_size = keys.size("vocab_size")?;
    Ok(Architecture {
        family: family.model_type,
        hidden_size,
        intermediate_size: keys.size("intermediate_size")?,
        num_hidden_layers: keys.layers("num_hidden_layers")?,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_size,
        vocab_size,
        max_position_embeddings: keys.size("max_position_embeddings")?,
        positions: rotary(keys, head_size, 1.0)?,
        norm: NormKind::RmsNorm,
        norm_eps: keys.positive("rms_norm_eps")?.unwrap_or(1e-6),
        residual: Residual::Sequential,
        attention_bias: keys.flag("attention_bias")?.unwrap_or(false),
        score_scale: ScoreScale {
            by_head_size: true,
            by_layer: false,
        },
        clip_qkv: None,
        qk_norm: false,
        hidden_act: keys.activation("hidden_act", Activation::Silu)?,
        gated_mlp: true,
        mlp_bias: keys.flag("mlp_bias")?.unwrap_or(false),
        tie_word_embeddings: keys.flag("tie_word_embeddings")?.unwrap_or(false),
        bos_token_id: keys.bos(vocab_size)?,
        eos_token_ids: keys.tokens("eos_token_id", vocab_size)?,
    })
}
