//! What a checkpoint is, as one value.

use crate::activation::Activation;

/// Everything in which one decoder differs from another; the forward pass branches on these values
/// and on nothing else.
///
/// Each family's file under `family/` says how its `config.json` maps to this. Keys that a config
/// may leave out take the defaults of transformers' class for it; leaving out a size is an error.
///
/// # Examples
/// ```
/// # use neox_core::{Architecture, Positions, RopeScaling};
/// let pythia = Architecture::from_json(r#"{
///     "model_type": "gpt_neox", "hidden_size": 512, "intermediate_size": 2048,
///     "num_hidden_layers": 6, "num_attention_heads": 8, "vocab_size": 50304,
///     "max_position_embeddings": 2048, "rotary_pct": 0.25, "rotary_emb_base": 10000
/// }"#)?;
/// // a quarter of the 64 dimensions of a head
/// let scaling = RopeScaling::None;
/// assert_eq!(pythia.positions, Positions::Rotary { dims: 16, base: 10_000.0, scaling });
/// # Ok::<(), neox_core::ConfigError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Architecture {
    /// Whose names the files use.
    pub(crate) family: &'static str,
    /// Width of the residual stream (`d_model`).
    pub hidden_size: i64,
    /// Neurons per MLP layer (`d_mlp`).
    pub intermediate_size: i64,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Attention heads per block.
    pub num_attention_heads: i64,
    /// Heads that have keys and values of their own; divides `num_attention_heads`.
    pub num_key_value_heads: i64,
    /// Dimensions per attention head.
    pub head_size: i64,
    /// Rows of the embedding and the unembedding, padding rows included.
    pub vocab_size: i64,
    /// Longest sequence the model was built for.
    pub max_position_embeddings: i64,
    /// How the model knows where a token stands.
    pub positions: Positions,
    /// Which norm, in the blocks and before the unembedding.
    pub norm: NormKind,
    /// `eps` of every norm.
    pub norm_eps: f64,
    /// How attention and MLP of a block are put together.
    pub residual: Residual,
    /// Whether the attention projections have biases.
    pub attention_bias: bool,
    /// Factors on the attention scores.
    pub score_scale: ScoreScale,
    /// Bound on the size of queries, keys and values.
    pub clip_qkv: Option<f64>,
    /// Whether queries and keys are normed, all heads together.
    pub qk_norm: bool,
    /// Activation function of the MLPs.
    pub hidden_act: Activation,
    /// `act(gate x) * (up x)` instead of `act(W x)`.
    pub gated_mlp: bool,
    /// Whether the MLP projections have biases.
    pub mlp_bias: bool,
    /// Whether the unembedding is the embedding.
    pub tie_word_embeddings: bool,
    /// Token put before each sequence, where the config names one.
    pub bos_token_id: Option<i64>,
    /// Tokens that end a document: none where the config does not say, several where it has a list.
    pub eos_token_ids: Vec<i64>,
}

/// How a model knows where a token stands.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Positions {
    /// A learned vector per position, added to the embedding.
    Learned,
    /// Queries and keys are rotated (Su et al., 2021).
    Rotary {
        /// Leading dimensions of each head that are rotated; even.
        dims: i64,
        /// Base of the frequencies.
        base: f64,
        /// How the frequencies are changed for longer sequences.
        scaling: RopeScaling,
    },
}

/// How rotary frequencies are changed for sequences longer than those of the training.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All are divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Wavelengths above `original_length / low_freq_factor` are multiplied by `factor`, those below
    /// `original_length / high_freq_factor` kept, and those between interpolated.
    Llama3 {
        /// By how much long wavelengths grow.
        factor: f64,
        /// Bound of the long ones.
        low_freq_factor: f64,
        /// Bound of the short ones.
        high_freq_factor: f64,
        /// Longest sequence before the change.
        original_length: f64,
    },
}

impl RopeScaling {
    /// A frequency after the change, in f32 and in the order of operations of transformers: the golden values show the difference.
    pub(crate) fn apply(self, frequency: f32) -> f32 {
        match self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor as f32,
            Self::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_length,
            } => {
                let (factor, length) = (factor as f32, original_length as f32);
                let wavelength = 2.0 * std::f32::consts::PI / frequency;
                let kept = (length / wavelength - low as f32) / (high - low) as f32;
                match kept {
                    ..=0.0 => frequency / factor,
                    1.0.. => frequency,
                    _ => (1.0 - kept) * frequency / factor + kept * frequency,
                }
            }
        }
    }
}

/// Which norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NormKind {
    /// `(x - mean) / sqrt(var + eps) * weight + bias`.
    LayerNorm,
    /// The same without weight and bias.
    LayerNormPlain,
    /// `x / sqrt(mean of squares + eps) * weight`.
    RmsNorm,
}

/// How attention and MLP of a block are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Residual {
    /// `x + attn(norm1(x)) + mlp(norm2(x))`.
    Parallel,
    /// `y = x + attn(norm1(x))`, then `y + mlp(norm2(y))`.
    Sequential,
    /// `y = x + norm1(attn(x))`, then `y + norm2(mlp(y))`.
    NormAfter,
}

/// What attention scores are divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScoreScale {
    /// The square root of the head size.
    pub by_head_size: bool,
    /// The number of the layer, counted from 1.
    pub by_layer: bool,
}

impl Architecture {
    /// Name of the family in configs: `gpt_neox`.
    #[must_use]
    pub fn model_type(&self) -> &'static str {
        self.family
    }

    /// What the attention scores of a layer are multiplied by.
    pub(crate) fn score_factor(&self, layer: usize) -> f64 {
        let ScoreScale {
            by_head_size,
            by_layer,
        } = self.score_scale;
        let mut divisor = 1.0;
        if by_head_size {
            divisor *= (self.head_size as f64).sqrt();
        }
        if by_layer {
            divisor *= (layer + 1) as f64;
        }
        divisor.recip()
    }
}
