//! Vectors over the vocabulary, on the device that computes with them.

use rayon::prelude::*;
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

    /// Vectors made of these: on the CPU one by one (its place, the values, room for the new ones), elsewhere by tensor operations.
    ///
    /// # Errors
    /// - if libtorch fails
    pub(crate) fn map(
        &self,
        on_cpu: impl Fn(usize, &[f32], &mut [f32]) + Sync,
        elsewhere: impl Fn(&Tensor) -> Result<Tensor, TchError>,
    ) -> Result<Self, TchError> {
        if self.0.device() != Device::Cpu {
            return Self::new(&elsewhere(&self.0)?);
        }
        let new = self.0.f_empty_like()?;
        #[expect(unsafe_code, reason = "a view of a tensor's memory")]
        // SAFETY: `new` is f32, contiguous and on the CPU as this tensor is, and nothing else knows of it.
        let room =
            unsafe { std::slice::from_raw_parts_mut(new.data_ptr().cast::<f32>(), new.numel()) };
        let len = self.0.size2()?.1 as usize;
        let each = self.host()?.par_chunks(len).zip(room.par_chunks_mut(len));
        each.enumerate()
            .for_each(|(i, (from, to))| on_cpu(i, from, to));
        Ok(Self(new))
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
    ///
    /// # Panics
    /// - if there is no such place
    pub(crate) fn at(&self, places: &Tensor) -> Result<Vec<f64>, TchError> {
        if self.0.device() != Device::Cpu {
            let places = places.f_to_device(self.0.device())?;
            return on_host(&self.0.f_index_select(1, &places)?);
        }
        let (places, len) = (Vec::<i64>::try_from(places)?, self.0.size2()?.1 as usize);
        let vectors = self.host()?.chunks(len);
        let at = |vector: &[f32]| -> Vec<f64> {
            let places = places.iter();
            places.map(|&place| vector[place as usize].into()).collect()
        };
        Ok(vectors.flat_map(at).collect())
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
    let tensor = tensor
        .f_to_device(Device::Cpu)?
        .f_contiguous()?
        .f_view(-1)?;
    if tensor.kind() == Kind::Float {
        // Without libtorch's threads, which a conversion would wake.
        return Ok(Vec::<f32>::try_from(&tensor)?
            .into_iter()
            .map(f64::from)
            .collect());
    }
    Vec::try_from(&tensor.f_to_kind(Kind::Double)?)
}

/// `sum x y` in f64, several sums side by side.
pub(crate) fn dot<T: Copy + Into<f64>>(x: &[T], y: &[f64]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0.0; LANES];
    let (x, y) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let rest = x.remainder().iter().zip(y.remainder());
    let rest: f64 = rest.map(|(&x, y)| x.into() * y).sum();
    for (x, y) in x.zip(y) {
        for lane in 0..LANES {
            sums[lane] += x[lane].into() * y[lane];
        }
    }
    sums.iter().sum::<f64>() + rest
}
