//! The readout of a model: its final norm and its unembedding, and the arithmetic of the norm that all closed forms share.
//!
//! With the subscript c for what the norm sees of a vector (LayerNorm: the vector minus its mean over d_model; RMSNorm: the vector):
//!
//! ```text
//! s = sqrt(|x_c|^2 / d + eps),   logits = W_U (gamma * x_c) / s + W_U beta
//! ```

use neox_core::{Model, Norm};
use tch::{Device, Kind, TchError, Tensor};

use crate::AblateError;

/// Final norm and unembedding.
///
/// # Examples
/// ```
/// use neuron_ablate::Readout;
/// use neox_core::Norm;
/// use tch::{Kind, Tensor};
///
/// let cpu = (Kind::Float, tch::Device::Cpu);
/// let norm = |centres| Norm { weight: Tensor::ones([4], cpu), bias: Tensor::zeros([4], cpu), eps: 0.0, centres };
/// let w_u = Tensor::ones([10, 4], cpu);
/// // LayerNorm removes the mean over d_model, and with it a dimension; RMSNorm removes nothing.
/// assert_eq!(Readout::new(&w_u, &norm(true))?.dimensions(), 3);
/// assert_eq!(Readout::new(&w_u, &norm(false))?.dimensions(), 4);
/// # Ok::<(), neuron_ablate::AblateError>(())
/// ```
#[derive(Debug)]
pub struct Readout {
    w_u: Tensor,
    gamma: Tensor,
    beta: Tensor,
    centres: bool,
    scale: NormScale,
}

/// The scale of the final norm as a function of the squared norm of what it sees.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormScale {
    d_model: f64,
    eps: f64,
}

impl NormScale {
    /// `sqrt(norm2 / d_model + eps)`.
    pub fn at(self, norm2: f64) -> f64 {
        (norm2 / self.d_model + self.eps).sqrt()
    }
}

impl Readout {
    /// That of a model.
    ///
    /// # Errors
    /// - [`AblateError::Torch`] if libtorch fails
    pub fn of_model(model: &Model) -> Result<Self, AblateError> {
        Self::new(model.w_u(), model.ln_final())
    }

    /// That of a norm and an unembedding, of any dtype and on any device.
    ///
    /// # Shapes
    /// - `w_u`: `[d_vocab, d_model]`
    ///
    /// # Errors
    /// - [`AblateError::Torch`] if libtorch fails, for instance for a matrix of another shape
    pub fn new(w_u: &Tensor, norm: &Norm) -> Result<Self, AblateError> {
        Ok(Self {
            scale: NormScale {
                d_model: w_u.size2()?.1 as f64,
                eps: norm.eps,
            },
            w_u: w_u.shallow_clone(),
            gamma: host(&norm.weight)?,
            beta: host(&norm.bias)?,
            centres: norm.centres,
        })
    }

    /// `W_U`, `[d_vocab, d_model]`, as the model holds it.
    pub fn w_u(&self) -> &Tensor {
        &self.w_u
    }

    /// `gamma`, `[d_model]`, f64 on the CPU.
    pub fn gamma(&self) -> &Tensor {
        &self.gamma
    }

    /// `beta`, `[d_model]`, f64 on the CPU; zeros for RMSNorm.
    pub fn beta(&self) -> &Tensor {
        &self.beta
    }

    /// The scale of the norm.
    pub fn scale(&self) -> NormScale {
        self.scale
    }

    /// Whether the norm removes the mean over d_model: LayerNorm does, RMSNorm does not.
    pub fn centres(&self) -> bool {
        self.centres
    }

    /// Number of directions of the residual stream that the norm sees: all but the direction of ones for LayerNorm, all for RMSNorm.
    pub fn dimensions(&self) -> usize {
        self.scale.d_model as usize - usize::from(self.centres)
    }

    /// What the norm sees of vectors, `[..., d_model]`; dtype and device stay.
    ///
    /// # Errors
    /// - if libtorch fails
    pub fn seen(&self, vectors: &Tensor) -> Result<Tensor, TchError> {
        match self.centres {
            true => vectors.f_sub(&vectors.f_mean_dim(-1, true, vectors.f_kind()?)?),
            false => Ok(vectors.shallow_clone()),
        }
    }
}

/// What a norm sees of one vector, in place; `centres` as [`Readout::centres`].
pub(crate) fn see(centres: bool, vector: &mut [f64]) {
    if centres {
        let mean = vector.iter().sum::<f64>() / vector.len() as f64;
        vector.iter_mut().for_each(|x| *x -= mean);
    }
}

/// A tensor in f64 on the CPU.
///
/// # Errors
/// - if libtorch fails
pub(crate) fn host(tensor: &Tensor) -> Result<Tensor, TchError> {
    tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)
}
