//! GPT-2, and the training series of Stanford CRFM.

use super::Part::{
    AttentionNorm, AttentionOut, Embedding, FinalNorm, MlpIn, MlpNorm, MlpOut, PositionEmbedding,
    Qkv, Unembedding,
};
use super::Stored::{AsIs, Transposed};
use super::{Family, Keys};
use crate::activation::Activation;
use crate::architecture::{Architecture, NormKind, Positions, Residual, ScoreScale};
use crate::error::ConfigError;

pub(super) static FAMILY: Family = Family {
    model_type: "gpt2",
    architecture,
    prefix: "transformer.",
    whole: &[
        (Embedding, "transformer.wte", AsIs),
        (PositionEmbedding, "transformer.wpe", AsIs),
        (FinalNorm, "transformer.ln_f", AsIs),
        (Unembedding, "lm_head", AsIs),
    ],
    block: "transformer.h.",
    // Conv1D stores `[in, out]`; queries, keys and values come in thirds, as the model has them.
    per_block: &[
        (AttentionNorm, "ln_1", AsIs),
        (Qkv, "attn.c_attn", Transposed),
        (AttentionOut, "attn.c_proj", Transposed),
        (MlpNorm, "ln_2", AsIs),
        (MlpIn, "mlp.c_fc", Transposed),
        (MlpOut, "mlp.c_proj", Transposed),
    ],
    buffers: &[".attn.bias", ".attn.masked_bias"],
};

fn architecture(family: &'static Family, keys: &Keys<'_>) -> Result<Architecture, ConfigError> {
    keys.refuse("add_cross_attention", "cross attention is not supported")?;
    let hidden_size = keys.size("n_embd")?;
    let heads = keys.size("n_head")?;
    let head_size = keys.head_size(("n_embd", hidden_size), ("n_head", heads))?;
    let vocab_size = keys.size("vocab_size")?;
    Ok(Architecture {
        family: family.model_type,
        hidden_size,
        intermediate_size: keys.optional_size("n_inner")?.unwrap_or(4 * hidden_size),
        num_hidden_layers: keys.layers("n_layer")?,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_size,
        vocab_size,
        // `n_ctx`, in older configs, is the same number again.
        max_position_embeddings: keys.size("n_positions")?,
        positions: Positions::Learned,
        norm: NormKind::LayerNorm,
        norm_eps: keys.positive("layer_norm_epsilon")?.unwrap_or(1e-5),
        residual: Residual::Sequential,
        attention_bias: true,
        // `reorder_and_upcast_attn` is another order of the same operations.
        score_scale: ScoreScale {
            by_head_size: keys.flag("scale_attn_weights")?.unwrap_or(true),
            by_layer: keys
                .flag("scale_attn_by_inverse_layer_idx")?
                .unwrap_or(false),
        },
        clip_qkv: None,
        qk_norm: false,
        hidden_act: keys.activation("activation_function", Activation::GeluTanh)?,
        gated_mlp: false,
        mlp_bias: true,
        tie_word_embeddings: keys.flag("tie_word_embeddings")?.unwrap_or(true),
        bos_token_id: keys.bos(vocab_size)?,
        eos_token_ids: keys.tokens("eos_token_id", vocab_size)?,
    })
}
