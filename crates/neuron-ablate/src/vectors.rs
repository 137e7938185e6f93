//! Vectors over the vocabulary, on the device that computes with them.

use tch::{Device, Kind, TchError, Tensor};

/// Vectors over the vocabulary in f32, `[vector, d_vocab]`, in the order of a vocabulary layout.
#[derive(Debug)]
pub struct Vectors(Tensor);

impl Vectors {
    /// Takes a tensor `[vector, d_vocab]`.
    ///
    /// # Errors
    /// - if libtorch fails
    pub(crate) fn new(tensor: &Tensor) -> Result<Self, TchError> {
        Ok(Self(tensor.f_to_kind(Kind::Float)?.f_contiguous()?))
    }

    /// The tensor itself.
    pub fn tensor(&self) -> &Tensor {
        &self.0
    }

    /// The values, `[vector][d_vocab]`, without a copy.
    ///
    /// # Errors
    /// - if they are on a GPU
    pub fn host(&self) -> Result<&[f32], TchError> {
        if self.0.device() != Device::Cpu {
            return Err(TchError::Torch(format!(
                "vectors on {:?} were asked for on the CPU",
                self.0.device()
            )));
        }
        #[expect(unsafe_code, reason = "a view of a tensor's memory")]
        // SAFETY: `new` made the tensor f32 and contiguous, it is on the CPU, nothing writes to it, and the view cannot
        // outlive it.
        Ok(unsafe { std::slice::from_raw_parts(self.0.data_ptr().cast::<f32>(), self.0.numel()) })
    }

    /// The values at some places of the vocabulary, `[vector][place]`.
    ///
    /// # Errors
    /// - if libtorch fails
    pub(crate) fn at(&self, places: &Tensor) -> Result<Vec<f64>, TchError> {
        let places = places.f_to_device(self.0.device())?;
        on_host(&self.0.f_index_select(1, &places)?)
    }

    /// The value of vector `i` at the `i`-th place, `[vector]`.
    ///
    /// # Errors
    /// - if libtorch fails
    pub(crate) fn each_at(&self, places: &Tensor) -> Result<Vec<f64>, TchError> {
        let places = places.f_to_device(self.0.device())?.f_unsqueeze(1)?;
        on_host(&self.0.f_gather(1, &places, false)?)
    }
}

/// All values of a tensor on the host, in f64.
///
/// # Errors
/// - if libtorch fails
pub(crate) fn on_host(tensor: &Tensor) -> Result<Vec<f64>, TchError> {
    Vec::try_from(
        &tensor
            .f_to_device(Device::Cpu)?
            .f_to_kind(Kind::Double)?
            .f_contiguous()?
            .f_view(-1)?,
    )
}
