//! The sums of word scoring on a GPU: logits of blocks of rows, made by tensor operations.

use tch::{Kind, TchError, Tensor};

use crate::Readout;

/// What makes logits.
#[derive(Debug)]
pub(super) struct TensorSums {
    readout: Readout,
    /// `W_U` in f32, `[d_vocab, d_model]`; the model's own memory where that is f32.
    w_u: Tensor,
    /// `gamma` in f32, `[d_model]`.
    gamma: Tensor,
    /// `W_U beta` and the bias of the logits, where there is one, in f32, `[1, d_vocab]`.
    b: Tensor,
}

impl TensorSums {
    /// Where the readout's `W_U` is.
    pub(super) fn new(readout: Readout) -> Result<Self, TchError> {
        let device = readout.w_u().device();
        // Logits in half precision would be off by more than most interventions change them.
        let there = |t: &Tensor| t.f_to_device(device)?.f_to_kind(Kind::Float);
        let w_u = there(readout.w_u())?;
        let mut b = w_u.f_mv(&there(readout.beta())?)?;
        if let Some(bias) = readout.bias() {
            b = b.f_add(&there(bias)?)?;
        }
        Ok(Self {
            gamma: there(readout.gamma())?,
            b: b.f_unsqueeze(0)?,
            w_u,
            readout,
        })
    }

    /// Rows of the residual stream, centred, and their image in the vocabulary.
    pub(super) fn project(&self, resid: &Tensor) -> Result<Projected, TchError> {
        let x = resid.f_to_kind(Kind::Float)?;
        let x_c = self.readout.seen(&x)?;
        let g = x_c.f_mul(&self.gamma)?.f_matmul(&self.w_u.f_tr()?)?;
        let inverse_scale = self.inverse_scale(&x_c)?;
        Ok(Projected {
            x_c,
            g,
            inverse_scale,
        })
    }

    /// `1 / s`, `[row, 1]`.
    fn inverse_scale(&self, x_c: &Tensor) -> Result<Tensor, TchError> {
        x_c.f_square()?
            .f_mean_dim(-1, true, Kind::Float)?
            .f_add_scalar(self.readout.scale().eps)?
            .f_rsqrt()
    }

    /// Takes neurons by their output weights, `[neuron, d_model]`; a wide set gains nothing from its image in the vocabulary.
    pub(super) fn neurons(
        &self,
        w_out: &Tensor,
        with_image: bool,
    ) -> Result<NeuronVectors, TchError> {
        let projected = self.project(w_out)?;
        Ok(NeuronVectors {
            u_and_b: match with_image {
                true => Some(Tensor::f_cat(&[&projected.g, &self.b], 0)?),
                false => None,
            },
            w_c: Some(projected.x_c),
        })
    }

    /// `(g + change u) / s + b`, with `u` and `b` stacked so that one product adds both.
    pub(super) fn logits(
        &self,
        rows: &Projected,
        change: Option<(&Tensor, &NeuronVectors)>,
    ) -> Result<Tensor, TchError> {
        let logits = rows.g.f_mul(&rows.inverse_scale)?;
        match change.and_then(|(change, neurons)| Some((change, neurons.u_and_b.as_ref()?))) {
            Some((change, u_and_b)) => {
                let ones = rows.inverse_scale.f_ones_like()?;
                let factors = Tensor::f_cat(&[change.f_mul(&rows.inverse_scale)?, ones], 1)?; // [row, k + 1]
                logits.f_addmm(&factors, u_and_b)
            }
            None => logits.f_add(&self.b),
        }
    }

    /// The rows with the residual stream changed; their image still the clean one where `u` adds the change to it.
    pub(super) fn changed(
        &self,
        clean: &Projected,
        change: &Tensor,
        neurons: &NeuronVectors,
    ) -> Result<Projected, TchError> {
        let Some(w_c) = &neurons.w_c else {
            return Err(TchError::Torch(
                "an intervention on the last layer came without output weights".into(),
            ));
        };
        let x_c = clean.x_c.f_addmm(change, w_c)?;
        if neurons.u_and_b.is_none() {
            return self.project(&x_c);
        }
        let inverse_scale = self.inverse_scale(&x_c)?;
        Ok(Projected {
            x_c,
            g: clean.g.shallow_clone(),
            inverse_scale,
        })
    }
}

/// Centred rows and what of their logits does not depend on the scale.
pub(super) struct Projected {
    /// `[row, d_model]`
    x_c: Tensor,
    /// `W_U (gamma * x_c)`, `[row, d_vocab]`.
    g: Tensor,
    /// `1 / s`, `[row, 1]`.
    inverse_scale: Tensor,
}

impl Projected {
    /// Some of the rows, in the same memory.
    pub(super) fn rows(&self, start: i64, len: i64) -> Result<Self, TchError> {
        Ok(Self {
            x_c: self.x_c.f_narrow(0, start, len)?,
            g: self.g.f_narrow(0, start, len)?,
            inverse_scale: self.inverse_scale.f_narrow(0, start, len)?,
        })
    }
}

/// Output weights of the neurons of one intervention.
#[derive(Debug, Default)]
pub(super) struct NeuronVectors {
    /// Centred, `[k, d_model]`.
    w_c: Option<Tensor>,
    /// `u` of each neuron and `b`, `[k + 1, d_vocab]`; none where the set is wide.
    u_and_b: Option<Tensor>,
}
