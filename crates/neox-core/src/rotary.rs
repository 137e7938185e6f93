//! Rotary position embedding on the leading dimensions of each head.

use tch::{Device, Kind, TchError, Tensor};

use crate::architecture::RopeScaling;

/// Cosines and sines of one forward pass, shared by all layers.
///
/// Source: Su et al. (2021), in the layout of transformers: dimension `i` pairs with `i + rotary_dims / 2`.
#[derive(Debug)]
pub(crate) struct Rotary {
    /// `[batch or 1, pos, 1, rotary_dims / 2]`, as [`Rotary::rotate`] wants them.
    cos: Tensor,
    sin: Tensor,
    minus_sin: Tensor,
    half: i64,
}

impl Rotary {
    /// # Shapes
    /// - `positions`: `[batch or 1, pos]`, i64
    pub(crate) fn new(
        positions: &Tensor,
        dims: i64,
        base: f64,
        scaling: RopeScaling,
        kind: Kind,
    ) -> Result<Self, TchError> {
        let device: Device = positions.device();
        let half = dims / 2;
        // Frequencies and angles in f32 whatever the model's dtype, as transformers has them.
        let exponents = Tensor::f_arange_start_step(0, dims, 2, (Kind::Float, device))?
            .f_div_scalar(dims as f64)?;
        let mut frequencies = Tensor::f_pow_scalar(base, &exponents)?.f_reciprocal()?; // [half]
        if scaling != RopeScaling::None {
            let scaled: Vec<f32> = Vec::<f32>::try_from(&frequencies)?
                .into_iter()
                .map(|frequency| scaling.apply(frequency))
                .collect();
            frequencies = Tensor::f_from_slice(&scaled)?.f_to_device(device)?;
        }
        let angles = positions
            .f_to_kind(Kind::Float)?
            .f_unsqueeze(-1)?
            .f_mul(&frequencies)? // [batch or 1, pos, half]
            .f_unsqueeze(2)?;
        let sin = angles.f_sin()?;
        Ok(Self {
            cos: angles.f_cos()?.f_to_kind(kind)?,
            minus_sin: sin.f_neg()?.f_to_kind(kind)?,
            sin: sin.f_to_kind(kind)?,
            half,
        })
    }

    /// Rotates queries and keys in place.
    ///
    /// # Shapes
    /// - `qk`: `[batch, pos, heads of queries and keys, d_head]`, a view whose memory no one else reads
    pub(crate) fn rotate(&self, qk: &Tensor) -> Result<(), TchError> {
        let mut first = qk.f_narrow(-1, 0, self.half)?;
        let mut second = qk.f_narrow(-1, self.half, self.half)?;
        let rotated = first
            .f_mul(&self.cos)?
            .f_addcmul_(&second, &self.minus_sin)?;
        let _ = second.f_mul_(&self.cos)?.f_addcmul_(&first, &self.sin)?;
        first.f_copy_(&rotated)
    }
}
