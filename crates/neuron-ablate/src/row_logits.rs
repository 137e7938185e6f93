//! Vectors over the vocabulary that belong to rows, and dot products with them.

use tch::{Kind, TchError, Tensor};

use crate::{readout::NormScale, vectors::Vectors};

/// Logits of rows over the vocabulary.
#[derive(Debug)]
pub(crate) struct RowLogits {
    /// Clean logits, `l = g / s + b`.
    pub(crate) l: Vectors,
    pub(crate) g: Vectors,
}

impl RowLogits {
    /// Clean logits from `g` and the squared norms of the centred residuals, `[row]`; `b = W_U beta`.
    pub(crate) fn new(
        g: Vectors,
        norm2: &[f64],
        scale: NormScale,
        b: &[f32],
    ) -> Result<Self, TchError> {
        let s: Vec<f64> = norm2.iter().map(|&norm2| scale.at(norm2)).collect();
        let l = g.map(
            |row, g, l| {
                for ((l, g), b) in l.iter_mut().zip(g).zip(b) {
                    *l = (f64::from(*g) / s[row]) as f32 + b;
                }
            },
            |g| {
                let column = Tensor::f_from_slice(&s)?.f_unsqueeze(1)?;
                let l = g.f_div(&column.f_to_device(g.device())?)?;
                let b = Tensor::f_from_slice(b)?.f_to_device(g.device())?;
                l.f_to_kind(Kind::Float)?.f_add(&b)
            },
        )?;
        Ok(Self { l, g })
    }
}

/// Dot products of a vector over the vocabulary with `q` (per cell) and with the directions.
#[derive(Debug, Clone, Default)]
pub(crate) struct Dots {
    pub(crate) q: Vec<f64>,
    pub(crate) v: Vec<f64>,
}

impl Dots {
    /// Those of `sum factor vector`.
    pub(crate) fn sum<'d>(factors: &[f64], of_vectors: impl IntoIterator<Item = &'d Self>) -> Self {
        let mut sum = Self::default();
        for (&factor, dots) in factors.iter().zip(of_vectors) {
            sum.add(factor, dots);
        }
        sum
    }

    /// Adds `factor` times those of another vector.
    pub(crate) fn add(&mut self, factor: f64, other: &Self) {
        self.q.resize(other.q.len(), 0.0);
        self.v.resize(other.v.len(), 0.0);
        let own = self.q.iter_mut().chain(&mut self.v);
        own.zip(other.q.iter().chain(&other.v))
            .for_each(|(own, other)| *own += factor * other);
    }
}
