//! One transformer block, parallel or sequential.

use tch::Tensor;

use crate::attention::{Attention, Context, chosen};
use crate::config::NeoxConfig;
use crate::error::{ForwardError, LoadError};
use crate::hooks::{Hooks, Site, visit};
use crate::mlp::Mlp;
use crate::norm::LayerNorm;
use crate::weights::Loader;

#[derive(Debug)]
pub(crate) struct Block {
    input_layernorm: LayerNorm,
    attention: Attention,
    post_attention_layernorm: LayerNorm,
    pub(crate) mlp: Mlp,
    parallel: bool,
    layer: usize,
}

impl Block {
    pub(crate) fn load(
        loader: &mut Loader,
        config: &NeoxConfig,
        layer: usize,
    ) -> Result<Self, LoadError> {
        let name = format!("gpt_neox.layers.{layer}");
        let eps = config.layer_norm_eps;
        Ok(Self {
            input_layernorm: LayerNorm::load(loader, &format!("{name}.input_layernorm"), eps)?,
            attention: Attention::load(loader, config, layer)?,
            post_attention_layernorm: LayerNorm::load(
                loader,
                &format!("{name}.post_attention_layernorm"),
                eps,
            )?,
            mlp: Mlp::load(loader, config, layer)?,
            parallel: config.use_parallel_residual,
            layer,
        })
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
        let normed = self.input_layernorm.forward(&x)?;
        let mut attention = self.attention.forward(&normed, context, rows, hooks)?;
        let x = chosen(&x, rows)?;
        // Sums go into the memory of outputs that no hook has seen.
        let mid = visit(hooks, Site::ResidMid(self.layer), attention.f_add_(&x)?)?;
        let mlp_input = if self.parallel { &x } else { &mid };
        let mut mlp = self
            .mlp
            .forward(&self.post_attention_layernorm.forward(mlp_input)?, hooks)?;
        visit(hooks, Site::ResidPost(self.layer), mlp.f_add_(&mid)?)
    }
}
