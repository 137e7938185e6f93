//! The MLP whose hidden units are "the neurons".

use tch::Tensor;

use crate::activation::Activation;
use crate::error::{ForwardError, LoadError};
use crate::family::Part;
use crate::hooks::{Hooks, visit};
use crate::site::Site;
use crate::weights::Loader;

#[derive(Debug)]
pub(crate) struct Mlp {
    w_in: Tensor,
    b_in: Option<Tensor>,
    /// What the activation is multiplied by, in a gated MLP.
    up: Option<(Tensor, Option<Tensor>)>,
    pub(crate) w_out: Tensor,
    pub(crate) b_out: Option<Tensor>,
    act: Activation,
    layer: usize,
}

impl Mlp {
    pub(crate) fn load(loader: &mut Loader<'_>, layer: usize) -> Result<Self, LoadError> {
        let up = match loader.architecture.gated_mlp {
            false => None,
            true => Some((
                loader.weight(Part::MlpUp(layer))?,
                loader.bias(Part::MlpUp(layer))?,
            )),
        };
        Ok(Self {
            up,
            w_in: loader.weight(Part::MlpIn(layer))?,
            b_in: loader.bias(Part::MlpIn(layer))?,
            w_out: loader.weight(Part::MlpOut(layer))?,
            b_out: loader.bias(Part::MlpOut(layer))?,
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
        let pre = x.f_linear(&self.w_in, self.b_in.as_ref())?; // [batch, pos, d_mlp]
        // A hook may keep what it saw: only an unseen tensor is overwritten.
        let unseen = !hooks.wants(Site::MlpPre(self.layer));
        let pre = visit(hooks, Site::MlpPre(self.layer), pre)?;
        let mut post = self.act.apply(pre, unseen)?;
        if let Some((w_up, b_up)) = &self.up {
            let up = x.f_linear(w_up, b_up.as_ref())?;
            post = post.f_mul_(&visit(hooks, Site::MlpUp(self.layer), up)?)?;
        }
        let post = visit(hooks, Site::MlpPost(self.layer), post)?;
        Ok(post.f_linear(&self.w_out, self.b_out.as_ref())?)
    }
}
