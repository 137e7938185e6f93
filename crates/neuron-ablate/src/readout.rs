//! The readout of a model: its final norm and its unembedding, and the arithmetic of the norm that all closed forms share.
//!
//! With the subscript c for what the norm sees of a vector (LayerNorm: the vector minus its mean over d_model; RMSNorm: the vector):
//!
//! ```text
//! s = sqrt(|x_c|^2 / d + eps),   logits = W_U (gamma * x_c) / s + W_U beta (+ a bias)
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
    norm: NormTerms,
    /// `[d_vocab]`, f32 on the CPU.
    bias: Option<Tensor>,
}

/// A norm in f64 on the CPU: `gamma * x_c / s + beta`.
#[derive(Debug)]
pub(crate) struct NormTerms {
    /// `[d_model]`
    pub(crate) gamma: Tensor,
    /// `[d_model]`
    pub(crate) beta: Tensor,
    /// Whether the mean over d_model is removed.
    pub(crate) centres: bool,
    pub(crate) scale: NormScale,
}

/// The scale of the final norm as a function of the squared norm of what it sees.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormScale {
    pub(crate) d_model: f64,
    pub(crate) eps: f64,
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
    /// - [`AblateError::Shape`] if they do not go together
    /// - [`AblateError::Torch`] if libtorch fails
    pub fn new(w_u: &Tensor, norm: &Norm) -> Result<Self, AblateError> {
        let d_model = norm.weight.numel() as i64;
        let d_vocab = w_u.size().first().copied().unwrap_or(0).max(1);
        shape("the unembedding", w_u, &[d_vocab, d_model])?;
        shape("the weights of the final norm", &norm.weight, &[d_model])?;
        shape("the biases of the final norm", &norm.bias, &[d_model])?;
        Ok(Self {
            w_u: w_u.shallow_clone(),
            norm: NormTerms::new(norm)?,
            bias: None,
        })
    }

    /// With a bias of the logits, which none of our families has.
    ///
    /// # Shapes
    /// - `bias`: `[d_vocab]`
    ///
    /// # Errors
    /// - [`AblateError::Shape`] for another number of values
    /// - [`AblateError::Torch`] if libtorch fails
    pub fn with_bias(self, bias: &Tensor) -> Result<Self, AblateError> {
        shape("the biases of the logits", bias, &self.w_u.size()[..1])?;
        let bias = Some(bias.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?);
        Ok(Self { bias, ..self })
    }

    /// The bias of the logits, `[d_vocab]`, f32 on the CPU, if there is one.
    pub(crate) fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// The same, in the same memory.
    pub(crate) fn shallow_clone(&self) -> Self {
        let NormTerms {
            gamma,
            beta,
            centres,
            scale,
        } = &self.norm;
        Self {
            w_u: self.w_u.shallow_clone(),
            norm: NormTerms {
                gamma: gamma.shallow_clone(),
                beta: beta.shallow_clone(),
                centres: *centres,
                scale: *scale,
            },
            bias: self.bias.as_ref().map(Tensor::shallow_clone),
        }
    }

    /// `W_U`, `[d_vocab, d_model]`, as the model holds it.
    pub fn w_u(&self) -> &Tensor {
        &self.w_u
    }

    /// `gamma`, `[d_model]`, f64 on the CPU.
    pub fn gamma(&self) -> &Tensor {
        &self.norm.gamma
    }

    /// `beta`, `[d_model]`, f64 on the CPU; zeros for RMSNorm.
    pub fn beta(&self) -> &Tensor {
        &self.norm.beta
    }

    /// The scale of the norm.
    pub fn scale(&self) -> NormScale {
        self.norm.scale
    }

    /// Whether the norm removes the mean over d_model: LayerNorm does, RMSNorm does not.
    pub fn centres(&self) -> bool {
        self.norm.centres
    }

    /// Number of directions of the residual stream that the norm sees: all but the direction of ones for LayerNorm, all for RMSNorm.
    pub fn dimensions(&self) -> usize {
        self.norm.scale.d_model as usize - usize::from(self.norm.centres)
    }

    /// What the norm sees of vectors, `[..., d_model]`; dtype and device stay.
    ///
    /// # Errors
    /// - if libtorch fails
    pub fn seen(&self, vectors: &Tensor) -> Result<Tensor, TchError> {
        self.norm.seen(vectors)
    }
}

impl NormTerms {
    pub(crate) fn new(norm: &Norm) -> Result<Self, TchError> {
        Ok(Self {
            scale: NormScale {
                d_model: norm.weight.numel() as f64,
                eps: norm.eps,
            },
            gamma: host(&norm.weight)?,
            beta: host(&norm.bias)?,
            centres: norm.centres,
        })
    }

    /// What the norm sees of vectors, `[..., d_model]`; dtype and device stay.
    pub(crate) fn seen(&self, vectors: &Tensor) -> Result<Tensor, TchError> {
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

/// Refuses a tensor of another shape.
pub(crate) fn shape(
    what: &'static str,
    found: &Tensor,
    expected: &[i64],
) -> Result<(), AblateError> {
    match found.size() == expected {
        true => Ok(()),
        false => Err(AblateError::Shape {
            what,
            found: found.size(),
            expected: expected.to_vec(),
        }),
    }
}

/// A tensor in f64 on the CPU.
///
/// # Errors
/// - if libtorch fails
pub(crate) fn host(tensor: &Tensor) -> Result<Tensor, TchError> {
    tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)
}
