//! How the last MLP writes to the residual stream: what a neuron adds is added as it is, or goes through a norm behind the MLP (OLMo 2).
//!
//! With a norm behind the MLP, which reads `m` and sees of it and of output weights `m_c` and `w_c`, a change `D` of an activation
//! changes the residual stream by
//!
//! ```text
//! e (gamma * m_c) + c (gamma * w_c),   e = 1 / s_m' - 1 / s_m,   c = D / s_m'
//! s_m = sqrt(|m_c|^2 / d + eps),       s_m' = sqrt((|m_c|^2 + 2 D (m_c . w_c) + D^2 |w_c|^2) / d + eps)
//! ```
//!
//! and without one by `D w`.

use neox_core::Model;
use tch::{Kind, TchError, Tensor};

use crate::{
    AblateError,
    readout::{NormTerms, host},
    states::last_layer,
    vectors::on_host,
};

/// The output weights of the last MLP, and the norm behind it if there is one.
#[derive(Debug)]
pub(crate) struct MlpWrite {
    w_out: Tensor,
    directions: Tensor,
    norm: Option<NormBehindMlp>,
}

/// The norm behind the last MLP.
#[derive(Debug)]
pub(crate) struct NormBehindMlp {
    norm: NormTerms,
    /// `W_out`, `[d_mlp, d_model]`, f64.
    w_out: Tensor,
    /// `w_c`, `[d_mlp, d_model]`, f64.
    w_c: Tensor,
    /// `[d_model]`, f64.
    b_out: Option<Tensor>,
}

impl MlpWrite {
    pub(crate) fn of_last_layer(model: &Model) -> Result<Self, AblateError> {
        Self::of_layer(model, last_layer(model))
    }

    /// Output weights, `[d_model, d_mlp]`, that nothing stands behind.
    pub(crate) fn direct(w_out: &Tensor) -> Result<Self, AblateError> {
        let w_out = host(w_out)?.f_tr()?.f_contiguous()?;
        Ok(Self {
            directions: w_out.shallow_clone(),
            w_out,
            norm: None,
        })
    }

    pub(crate) fn of_layer(model: &Model, layer: usize) -> Result<Self, AblateError> {
        let direct = Self::direct(&model.w_out(layer)?)?;
        let Some(norm) = model.norm_after_mlp(layer)? else {
            return Ok(direct);
        };
        let (norm, w_out) = (NormTerms::new(norm)?, direct.w_out);
        let w_c = norm.seen(&w_out)?;
        Ok(Self {
            directions: w_c.f_mul(&norm.gamma)?,
            norm: Some(NormBehindMlp {
                w_c,
                norm,
                w_out: w_out.shallow_clone(),
                b_out: model.b_out(layer)?.as_ref().map(host).transpose()?,
            }),
            w_out,
        })
    }

    /// Output weights as stored, `[d_mlp, d_model]`, f64 on the CPU.
    pub(crate) fn w_out(&self) -> &Tensor {
        &self.w_out
    }

    /// As [`output_norms`].
    pub(crate) fn norms(&self) -> Result<Vec<f64>, TchError> {
        norms(&self.w_out)
    }

    /// The direction of the residual stream that each neuron writes along: its output weights, or `gamma * w_c`; `[d_mlp, d_model]`, f64
    /// on the CPU.
    pub(crate) fn directions(&self) -> &Tensor {
        &self.directions
    }

    /// The norm behind the MLP.
    pub(crate) fn norm(&self) -> Option<&NormBehindMlp> {
        self.norm.as_ref()
    }
}

/// `|w|` of the output weights of each neuron of a layer, as stored, `[d_mlp]`.
///
/// # Errors
/// - [`AblateError::Forward`] if there is no such layer
/// - [`AblateError::Torch`] if libtorch fails
pub fn output_norms(model: &Model, layer: usize) -> Result<Vec<f64>, AblateError> {
    let w_out = host(&model.w_out(layer)?)?.f_tr()?.f_contiguous()?; // [d_mlp, d_model]
    Ok(norms(&w_out)?)
}

fn norms(rows: &Tensor) -> Result<Vec<f64>, TchError> {
    on_host(&rows.f_norm_scalaropt_dim(2.0, [-1i64], false)?)
}

/// The directions of the residual stream that neurons of a layer write along, `[neuron, d_model]`, f64 on the CPU: their output weights
/// `w`, or `gamma * w_c` in a model with a norm behind its MLPs.
///
/// # Errors
/// - [`AblateError::Forward`] if there is no such layer
/// - [`AblateError::Torch`] if libtorch fails, for instance for a neuron past the layer
pub fn output_directions(
    model: &Model,
    layer: usize,
    neurons: &[usize],
) -> Result<Tensor, AblateError> {
    let ids: Vec<i64> = neurons.iter().map(|&n| n as i64).collect();
    let ids = Tensor::f_from_slice(&ids)?.f_to_device(model.device())?;
    let weights = host(&model.w_out(layer)?.f_index_select(1, &ids)?)?.f_tr()?;
    let weights = weights.f_contiguous()?; // [neuron, d_model]
    let Some(norm) = model.norm_after_mlp(layer)? else {
        return Ok(weights);
    };
    let norm = NormTerms::new(norm)?;
    Ok(norm.seen(&weights)?.f_mul(&norm.gamma)?)
}

impl NormBehindMlp {
    /// `w_c`, `[d_mlp, d_model]`, f64.
    pub(crate) fn w_c(&self) -> &Tensor {
        &self.w_c
    }

    /// `m_c` of rows, `[row, d_model]`, f64, from their activations, `[row, d_mlp]`.
    pub(crate) fn m_c(&self, activations: &Tensor) -> Result<Tensor, TchError> {
        let m = activations.f_to_kind(Kind::Double)?.f_matmul(&self.w_out)?;
        let m = match &self.b_out {
            Some(b_out) => m.f_add(b_out)?,
            None => m,
        };
        self.norm.seen(&m)
    }

    /// `gamma * x`, the direction of the residual stream that `x` (`[..., d_model]`), as the norm sees it, is written along.
    pub(crate) fn direction(&self, x: &Tensor) -> Result<Tensor, TchError> {
        x.f_mul(&self.norm.gamma)
    }

    /// `(e, c)` for a change `D`, from `|m_c|^2`, `m_c . w_c` and `|w_c|^2`.
    pub(crate) fn factors(&self, change: f64, m2: f64, cross: f64, w2: f64) -> (f64, f64) {
        // Rounding must not make a squared norm negative.
        let changed = (m2 + 2.0 * change * cross + change * change * w2).max(0.0);
        let (s, s_changed) = (self.norm.scale.at(m2), self.norm.scale.at(changed));
        (1.0 / s_changed - 1.0 / s, change / s_changed)
    }

    /// What the residual stream changes by when `delta` (`[row, set, d_model]`, as the norm sees it) is added to `m_c` (`[row, d_model]`).
    pub(crate) fn change(&self, m_c: &Tensor, delta: &Tensor) -> Result<Tensor, TchError> {
        let normed = |x: &Tensor| {
            let scale = x
                .f_square()?
                .f_mean_dim(-1, true, Kind::Double)?
                .f_add_scalar(self.norm.scale.eps)?
                .f_sqrt()?;
            x.f_div(&scale)
        };
        let m_c = m_c.f_unsqueeze(1)?;
        let change = normed(&m_c.f_add(delta)?)?.f_sub(&normed(&m_c)?)?;
        self.direction(&change)
    }
}
