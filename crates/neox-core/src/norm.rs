//! Norms over the last dimension: LayerNorm and RMSNorm.

use tch::{Kind, TchError, Tensor};

use crate::architecture::NormKind;
use crate::error::{ForwardError, LoadError};
use crate::family::Part;
use crate::hooks::{Hooks, visit};
use crate::site::Site;
use crate::weights::Loader;

/// `(x - mean) / sqrt(var + eps) * weight + bias` over the last dimension, or
/// `x / sqrt(mean of squares + eps) * weight`.
#[derive(Debug)]
pub struct Norm {
    /// `gamma`: `[d_model]`; ones in a norm without parameters.
    pub weight: Tensor,
    /// `beta`: `[d_model]`; zeros in a norm without it.
    pub bias: Tensor,
    /// Added to the variance or to the mean of squares.
    pub eps: f64,
    /// Whether the mean is subtracted first: LayerNorm does, RMSNorm does not.
    pub centres: bool,
}

impl Norm {
    pub(crate) fn load(loader: &mut Loader<'_>, part: Part, width: i64) -> Result<Self, LoadError> {
        let (norm, eps) = (loader.architecture.norm, loader.architecture.norm_eps);
        let weight = match norm {
            NormKind::LayerNorm | NormKind::RmsNorm => loader.weight(part)?,
            NormKind::LayerNormPlain => loader.filled(width, 1.0)?,
        };
        let bias = match loader.bias(part)? {
            Some(bias) => bias,
            None => loader.filled(width, 0.0)?,
        };
        Ok(Self {
            weight,
            bias,
            eps,
            centres: norm != NormKind::RmsNorm,
        })
    }

    /// Normalises `x`: `[..., d_model]`, same shape back.
    ///
    /// # Errors
    /// - what libtorch reports, such as a last dimension that is not `d_model`
    pub fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let size = self.weight.size();
        match self.centres {
            true => x.f_layer_norm(size, Some(&self.weight), Some(&self.bias), self.eps, true),
            false => x.f_rms_norm(size, Some(&self.weight), self.eps),
        }
    }

    /// The same with the scale shown to `hooks`; fused when they do not want it.
    pub(crate) fn forward_hooked(
        &self,
        x: &Tensor,
        site: Site,
        hooks: &mut dyn Hooks,
    ) -> Result<Tensor, ForwardError> {
        if !hooks.wants(site) {
            return Ok(self.forward(x)?);
        }
        let kind = x.f_kind()?;
        // half precision would lose the squares of large residuals
        let mut x = x.f_to_kind(Kind::Float)?;
        if self.centres {
            x = x.f_sub(&x.f_mean_dim(-1, true, Kind::Float)?)?;
        }
        let scale = x
            .f_square()?
            .f_mean_dim(-1, true, Kind::Float)?
            .f_add_scalar(self.eps)?
            .f_sqrt()?; // [batch, pos, 1]
        let scale = visit(hooks, site, scale.f_to_kind(kind)?)?;
        Ok(x.f_div(&scale)?
            .f_to_kind(kind)?
            .f_mul(&self.weight)?
            .f_add(&self.bias)?)
    }
}
