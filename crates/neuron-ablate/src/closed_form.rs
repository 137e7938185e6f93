//! Mean ablation in closed form (methods, section 2): logits of the ablated model as `a g + c u + b`.
//!
//! With the subscript c for "minus its mean over d_model", and `D` the change of the activation:
//!
//! ```text
//! s   = sqrt(|x_c|^2 / d + eps)
//! s'  = sqrt((|x_c|^2 + 2 D (x_c . w_c) + D^2 |w_c|^2) / d + eps)
//! g   = W_U (gamma * x_c)      once per row
//! u   = W_U (gamma * w_c)      once per neuron
//! b   = W_U beta               once
//! clean l = g / s + b,   ablated l' = (g + D u) / s' + b
//! ```
//!
//! so that no product with `W_U` is needed per (row, neuron). With RMSNorm nothing is subtracted and beta is 0.

use std::ops::Range;

use tch::{Device, Kind, TchError, Tensor};

use crate::{
    AblateError, Readout,
    product::product,
    readout::{NormScale, see},
    vectors::{Vectors, on_host},
};

/// The readout with `W_U` centred over the vocabulary and its rows in a given order.
#[derive(Debug)]
pub struct Unembedding {
    readout: Readout,
    w_u: Tensor,
    b: Vec<f32>,
}

/// Vectors of the residual stream as the final norm sees them, and what norm and `W_U` make of them before scaling.
#[derive(Debug)]
pub struct Projected {
    /// What the norm sees of the vectors (LayerNorm: the vectors minus their means), `[vector, d_model]`, f64.
    pub centred: Tensor,
    /// `gamma * centred`, `[vector, d_model]`, f32.
    pub scaled: Tensor,
    /// Squared norms of the centred vectors, `[vector]`.
    pub norm2: Vec<f64>,
    /// `W_U (gamma * centred)`, `[vector, d_vocab]`, in the order of the vocabulary layout: `g` of rows, `u` of neurons.
    pub logits: Vectors,
}

impl Projected {
    /// Some of the vectors.
    pub(crate) fn part(&self, vectors: Range<usize>) -> Result<Self, TchError> {
        let part = |t: &Tensor| t.f_narrow(0, vectors.start as i64, vectors.len() as i64);
        Ok(Self {
            centred: part(&self.centred)?,
            scaled: part(&self.scaled)?,
            norm2: self.norm2[vectors.clone()].to_vec(),
            logits: Vectors::new(&part(self.logits.tensor())?)?,
        })
    }
}

impl Unembedding {
    /// Takes a readout to `device`, with the rows of `W_U` in `order` (token ids).
    ///
    /// # Errors
    /// - [`AblateError::Torch`] if libtorch fails
    pub fn new(
        readout: Readout,
        order: &[impl Copy + Into<i64>],
        device: Device,
    ) -> Result<Self, AblateError> {
        let there = |t: &Tensor, kind| t.f_to_device(device)?.f_to_kind(kind);
        let beta = there(readout.beta(), Kind::Float)?;
        let order: Vec<i64> = order.iter().map(|&t| t.into()).collect();
        let order = Tensor::f_from_slice(&order)?.f_to_device(device)?;
        let mut w_u = there(readout.w_u(), Kind::Float)?.f_index_select(0, &order)?;
        // In tiles and in place: `W_U` is the largest thing here.
        let (d_vocab, d_model) = w_u.size2()?;
        let mut sum = Tensor::f_zeros([d_model], (Kind::Double, device))?;
        for tile in w_u.f_split(4096, 0)? {
            sum = sum.f_add(&tile.f_sum_dim_intlist(0, false, Kind::Double)?)?;
        }
        let mean = sum.f_div_scalar(d_vocab as f64)?.f_to_kind(Kind::Float)?;
        let _ = w_u.f_sub_(&mean)?;
        let mut b = w_u.f_mv(&beta)?;
        if let Some(bias) = readout.bias() {
            let bias = there(bias, Kind::Float)?.f_index_select(0, &order)?;
            b = b.f_add(&bias.f_sub(&bias.f_mean(Kind::Float)?)?)?;
        }
        let b = Vec::try_from(&b.f_to_device(Device::Cpu)?)?;
        Ok(Self { readout, w_u, b })
    }

    /// `b = W_U beta`, and the bias of the logits where there is one, `[d_vocab]`, centred and in the order of the vocabulary layout.
    pub fn b(&self) -> &[f32] {
        &self.b
    }

    /// Centred `W_U`, `[d_vocab, d_model]`, in the order of the vocabulary layout.
    pub(crate) fn w_u(&self) -> &Tensor {
        &self.w_u
    }

    /// The readout itself, `W_U` as the model holds it.
    pub fn readout(&self) -> &Readout {
        &self.readout
    }

    /// The scale of the final norm.
    pub fn scale(&self) -> NormScale {
        self.readout.scale()
    }

    /// Sends what the norm sees of `vectors` (`[vector, d_model]`: rows of the residual stream, or output weights of neurons)
    /// through gamma and `W_U`.
    ///
    /// # Errors
    /// - [`AblateError::Torch`] if libtorch fails
    pub fn project(&self, vectors: &Tensor) -> Result<Projected, AblateError> {
        Ok(self.project_rows(on_host(vectors)?)?)
    }

    /// The same for vectors on the host, `[vector][d_model]`. What is small stays there, where it needs no threads of libtorch: these
    /// would go on spinning beside the product.
    pub(crate) fn project_rows(&self, mut vectors: Vec<f64>) -> Result<Projected, TchError> {
        let d_model = self.w_u.size2()?.1;
        let gamma = on_host(self.readout.gamma())?;
        let mut scaled = Vec::with_capacity(vectors.len());
        let mut norm2 = Vec::new();
        for x in vectors.chunks_mut(d_model as usize) {
            see(self.readout.centres(), x);
            norm2.push(x.iter().map(|x| x * x).sum());
            scaled.extend(x.iter().zip(&gamma).map(|(x, gamma)| (x * gamma) as f32));
        }
        let shape = [norm2.len() as i64, d_model];
        let there = |t: Tensor| t.f_view(shape)?.f_to_device(self.w_u.device());
        let centred = there(Tensor::f_from_slice(&vectors)?)?;
        let scaled = there(Tensor::f_from_slice(&scaled)?)?;
        Ok(Projected {
            centred,
            norm2,
            logits: Vectors::new(&product(&scaled, &self.w_u.f_tr()?)?)?,
            scaled,
        })
    }

    /// `gamma * centred` in f32, for vectors whose logits are known already.
    ///
    /// # Errors
    /// - [`AblateError::Torch`] if libtorch fails
    pub(crate) fn scaled(&self, centred: &Tensor) -> Result<Tensor, AblateError> {
        let gamma = self.readout.gamma().f_to_device(centred.device())?;
        Ok(centred.f_mul(&gamma)?.f_to_kind(Kind::Float)?)
    }
}
