//! The MLP whose hidden units are "the neurons".

use tch::Tensor;

use crate::activation::Activation;
use crate::error::{ForwardError, LoadError};
use crate::family::Part;
use crate::hooks::{Hooks, visit};
use crate::linear::Linear;
use crate::site::Site;
use crate::weights::Loader;

#[derive(Debug)]
pub(crate) struct Mlp {
    input: Linear,
    /// What the activation is multiplied by, in a gated MLP.
    up: Option<Linear>,
    pub(crate) output: Linear,
    act: Activation,
    layer: usize,
}

impl Mlp {
    pub(crate) fn load(loader: &mut Loader<'_>, layer: usize) -> Result<Self, LoadError> {
        let up = match loader.architecture.gated_mlp {
            false => None,
            true => Some(Linear::load(loader, Part::MlpUp(layer))?),
        };
        Ok(Self {
            up,
            input: Linear::load(loader, Part::MlpIn(layer))?,
            output: Linear::load(loader, Part::MlpOut(layer))?,
            act: loader.architecture.hidden_act,
            layer,
        })
    }

    /// The caller adds the residual.
    ///
    /// # Shapes
    /// - `x`: `[batch, pos, d_model]`, normed where the block norms before; returns the same
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        hooks: &mut dyn Hooks,
    ) -> Result<Tensor, ForwardError> {
        let pre = self.input.forward(x)?; // [batch, pos, d_mlp]
        // A hook may keep what it saw: only an unseen tensor is overwritten.
        let unseen = !hooks.wants(Site::MlpPre(self.layer));
        let pre = visit(hooks, Site::MlpPre(self.layer), pre)?;
        let mut post = self.act.apply(pre, unseen)?;
        if let Some(up) = &self.up {
            let up = visit(hooks, Site::MlpUp(self.layer), up.forward(x)?)?;
            post = post.f_mul_(&up)?;
        }
        let post = visit(hooks, Site::MlpPost(self.layer), post)?;
        Ok(self.output.forward(&post)?)
    }
}
