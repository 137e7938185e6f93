//! Named places in the forward pass.

use std::fmt;

use crate::architecture::Architecture;

/// A hook site. Block sites carry the index of the block, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Site {
    /// Residual stream before a block: `[batch, pos, d_model]`.
    ResidPre(usize),
    /// Residual stream plus the attention output, before the MLP output is added:
    /// `[batch, pos, d_model]`. With a parallel residual the MLP does not read it, but a
    /// replacement still flows into [`Site::ResidPost`].
    ResidMid(usize),
    /// Residual stream after a block: `[batch, pos, d_model]`.
    ResidPost(usize),
    /// Attention weights after the softmax: `[batch, heads, query_pos, key_pos]`. Asking for it
    /// trades the fused attention kernel for explicit matrices.
    Pattern(usize),
    /// Outputs of the attention heads, one beside the other, which the output projection reads:
    /// `[batch, pos, heads * d_head]`; head `h` has the values from `h * d_head` on.
    HeadOut(usize),
    /// What the activation function of the MLP reads (in a gated MLP, the gate): `[batch, pos, d_mlp]`.
    MlpPre(usize),
    /// What the activation is multiplied by; only gated MLPs have it: `[batch, pos, d_mlp]`.
    MlpUp(usize),
    /// Neuron activations, which the MLP's output projection reads: after the activation function, and
    /// multiplied by [`Site::MlpUp`] in a gated MLP. `[batch, pos, d_mlp]`.
    MlpPost(usize),
    /// What the final norm divides by, `sqrt(var + eps)` or `sqrt(mean of squares + eps)`: `[batch, pos, 1]`.
    LnFinalScale,
    /// Logits, not centred: `[batch, pos, vocab]`.
    Logits,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ResidPre(layer) => write!(f, "blocks.{layer}.resid_pre"),
            Self::ResidMid(layer) => write!(f, "blocks.{layer}.resid_mid"),
            Self::ResidPost(layer) => write!(f, "blocks.{layer}.resid_post"),
            Self::Pattern(layer) => write!(f, "blocks.{layer}.attention.pattern"),
            Self::HeadOut(layer) => write!(f, "blocks.{layer}.attention.z"),
            Self::MlpPre(layer) => write!(f, "blocks.{layer}.mlp.pre"),
            Self::MlpUp(layer) => write!(f, "blocks.{layer}.mlp.up"),
            Self::MlpPost(layer) => write!(f, "blocks.{layer}.mlp.post"),
            Self::LnFinalScale => f.write_str("ln_final.scale"),
            Self::Logits => f.write_str("logits"),
        }
    }
}

impl Site {
    /// The block that it is in; none for the sites behind the last block.
    pub fn layer(self) -> Option<usize> {
        match self {
            Self::ResidPre(layer)
            | Self::ResidMid(layer)
            | Self::ResidPost(layer)
            | Self::Pattern(layer)
            | Self::HeadOut(layer)
            | Self::MlpPre(layer)
            | Self::MlpUp(layer)
            | Self::MlpPost(layer) => Some(layer),
            Self::LnFinalScale | Self::Logits => None,
        }
    }

    /// Whether a model has it.
    pub(crate) fn is_in(self, model: &Architecture) -> bool {
        let there = self
            .layer()
            .is_none_or(|layer| layer < model.num_hidden_layers);
        there && (model.gated_mlp || !matches!(self, Self::MlpUp(_)))
    }
}
