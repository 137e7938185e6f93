//! One transformer block.

use tch::Tensor;

use crate::architecture::Residual;
use crate::attention::{Attention, Context, chosen};
use crate::error::{ForwardError, LoadError};
use crate::family::Part;
use crate::hooks::{Hooks, visit};
use crate::mlp::Mlp;
use crate::norm::Norm;
use crate::site::Site;
use crate::weights::Loader;

#[derive(Debug)]
pub(crate) struct Block {
    attention_norm: Norm,
    attention: Attention,
    mlp_norm: Norm,
    pub(crate) mlp: Mlp,
    residual: Residual,
    layer: usize,
}

impl Block {
    pub(crate) fn load(loader: &mut Loader<'_>, layer: usize) -> Result<Self, LoadError> {
        let width = loader.architecture.hidden_size;
        Ok(Self {
            attention_norm: Norm::load(loader, Part::AttentionNorm(layer), width)?,
            attention: Attention::load(loader, layer)?,
            mlp_norm: Norm::load(loader, Part::MlpNorm(layer), width)?,
            mlp: Mlp::load(loader, layer)?,
            residual: loader.architecture.residual,
            layer,
        })
    }

    pub(crate) fn norm_after_mlp(&self) -> Option<&Norm> {
        (self.residual == Residual::NormAfter).then_some(&self.mlp_norm)
    }

    /// # Shapes
    /// - `x`: residual stream, `[batch, pos, d_model]`; returns the same, or `[1, row, d_model]` for
    ///   `rows`, places in `[batch * pos]`
    pub(crate) fn forward(
        &self,
        x: Tensor,
        context: &Context,
        rows: Option<&Tensor>,
        hooks: &mut dyn Hooks,
    ) -> Result<Tensor, ForwardError> {
        let x = visit(hooks, Site::ResidPre(self.layer), x)?;
        let mut attention = match self.residual {
            Residual::Parallel | Residual::Sequential => {
                let normed = self.attention_norm.forward(&x)?;
                self.attention.forward(&normed, context, rows, hooks)?
            }
            Residual::NormAfter => {
                let written = self.attention.forward(&x, context, rows, hooks)?;
                self.attention_norm.forward(&written)?
            }
        };
        let x = chosen(&x, rows)?;
        // Sums go into the memory of outputs that no hook has seen.
        let mid = visit(hooks, Site::ResidMid(self.layer), attention.f_add_(&x)?)?;
        let mut mlp = match self.residual {
            Residual::Parallel => self.mlp.forward(&self.mlp_norm.forward(&x)?, hooks)?,
            Residual::Sequential => self.mlp.forward(&self.mlp_norm.forward(&mid)?, hooks)?,
            Residual::NormAfter => self.mlp_norm.forward(&self.mlp.forward(&mid, hooks)?)?,
        };
        visit(hooks, Site::ResidPost(self.layer), mlp.f_add_(&mid)?)
    }
}
