//! Rows of a model with a norm behind its MLPs (OLMo 2): every (neuron, row) pair has a direction of its own.

use tch::{Kind, Tensor};

use super::{Sweep, Wanted, products};
use crate::{
    AblateError,
    closed_form::Projected,
    engine::{Measured, NotFinite},
    mlp_write::NormBehindMlp,
    pairs::Block,
    progress::Tick,
    row_logits::Dots,
    vectors::{Vectors, dot, on_host},
};

/// Rows of a model with a norm behind its MLPs, in which a neuron moves the residual stream along another direction at each row.
pub(super) struct BehindNorm<'n> {
    norm: &'n NormBehindMlp,
    /// `m_c`, `[row][d_model]`.
    m_c: Vec<f64>,
    /// `|m_c|^2`, `[row]`.
    m2: Vec<f64>,
    /// `gamma * m_c`, as the final norm sees it.
    projected: Projected,
    dots: Vec<Dots>,
    /// At the target, `[row]`.
    at_target: Vec<f64>,
    /// `x_c`, `[row, d_model]`.
    x_c: Tensor,
}

impl<'n> BehindNorm<'n> {
    pub(super) fn new(
        sweep: &Sweep<'_>,
        norm: &'n NormBehindMlp,
        m_c: &Tensor,
        x_c: Tensor,
        targets: &Tensor,
    ) -> Result<Self, AblateError> {
        let projected = sweep.unembedding.project(&norm.direction(m_c)?)?;
        Ok(Self {
            norm,
            m2: on_host(&m_c.f_square()?.f_sum_dim_intlist(-1, false, Kind::Double)?)?,
            m_c: on_host(m_c)?,
            dots: sweep.pairs.dots(&projected.logits)?,
            at_target: projected.logits.each_at(targets)?,
            projected,
            x_c,
        })
    }

    /// As [`Sweep::measure`], row by row; `job` has the activations' changes as `change`, and what belongs to the neurons' own directions.
    pub(super) fn measure(
        &self,
        sweep: &Sweep<'_>,
        neurons: &[usize],
        job: &Block<'_>,
        directions: &Projected,
        wanted: Wanted<'_, '_>,
        progress: &(dyn Fn(Tick) + Sync),
    ) -> Result<Result<(Measured, Vec<u32>), NotFinite>, AblateError> {
        let (n_rows, per_pair) = (job.at.len(), sweep.pairs.per_pair());
        let d_model = self.m_c.len() / n_rows;
        let ids: Vec<i64> = neurons.iter().map(|&n| n as i64).collect();
        let w_c = self
            .norm
            .w_c()
            .f_index_select(0, &Tensor::f_from_slice(&ids)?)?;
        let w_c = on_host(&w_c)?;
        let w2: Vec<f64> = w_c.chunks(d_model).map(|w| dot(w, w)).collect();
        let cross = products(&w_c, &self.m_c, d_model); // [neuron][row]
        let mut all = Measured {
            values: vec![0.0; neurons.len() * n_rows * per_pair],
            bounds: vec![0.0; neurons.len() * n_rows],
        };
        let mut ranks = vec![
            0;
            if wanted.ranks {
                neurons.len() * n_rows
            } else {
                0
            }
        ];
        let ones = vec![1.0; neurons.len()];
        for row in 0..n_rows {
            let pairs = (0..neurons.len()).map(|n| n * n_rows + row);
            let factors: Vec<(f64, f64)> = pairs
                .clone()
                .zip(&w2)
                .map(|(pair, &w2)| {
                    self.norm
                        .factors(job.change[pair], self.m2[row], cross[pair], w2)
                })
                .collect();
            let (e, c): (Vec<f64>, Vec<f64>) = factors.iter().copied().unzip();
            let moved = self.moved(sweep, row, &e, &c, directions)?;
            let of_row = Block {
                rows: job.rows,
                at: job.at.start + row..job.at.start + row + 1,
                change: &ones,
                norm2: &moved.norm2,
                u_dots: &job
                    .u_dots
                    .iter()
                    .zip(&factors)
                    .map(|(u, (e, c))| Dots::sum(&[*e, *c], [&self.dots[row], u]))
                    .collect::<Vec<_>>(),
                u_at: &pairs
                    .clone()
                    .zip(&factors)
                    .map(|(pair, (e, c))| e * self.at_target[row] + c * job.u_at[pair])
                    .collect::<Vec<_>>(),
                cross: &on_host(&moved.centred.f_mv(&self.x_c.f_get(row as i64)?)?)?,
                spreads: &[],
            };
            let (measured, of_ranks) = match sweep.measure(&of_row, &moved, wanted, progress)? {
                Ok(measured) => measured,
                Err(at) => return Ok(Err(NotFinite { row, ..at })),
            };
            for (n, pair) in pairs.enumerate() {
                let values = &measured.values[n * per_pair..(n + 1) * per_pair];
                all.values[pair * per_pair..(pair + 1) * per_pair].copy_from_slice(values);
                if let Some(&rank) = of_ranks.get(n) {
                    ranks[pair] = rank;
                }
            }
        }
        Ok(Ok((all, ranks)))
    }

    /// `e (gamma * m_c) + c (gamma * w_c)` at a row, for each neuron, and what norm and `W_U` make of it.
    fn moved(
        &self,
        sweep: &Sweep<'_>,
        row: usize,
        e: &[f64],
        c: &[f64],
        directions: &Projected,
    ) -> Result<Projected, AblateError> {
        let of_row = |t: &Tensor| t.f_narrow(0, row as i64, 1);
        let sum = |along: &Tensor, own: &Tensor| {
            let column = |factors: &[f64]| {
                Tensor::f_from_slice(factors)?
                    .f_unsqueeze(1)?
                    .f_to_kind(own.f_kind()?)?
                    .f_to_device(own.device())
            };
            own.f_mul(&column(c)?)?
                .f_add(&of_row(along)?.f_mul(&column(e)?)?)
        };
        let centred = sum(&self.projected.centred, &directions.centred)?;
        let logits = sum(self.projected.logits.tensor(), directions.logits.tensor())?;
        Ok(Projected {
            norm2: on_host(
                &centred
                    .f_square()?
                    .f_sum_dim_intlist(-1, false, Kind::Double)?,
            )?,
            scaled: sweep.unembedding.scaled(&centred)?,
            logits: Vectors::new(&logits)?,
            centred,
        })
    }
}
