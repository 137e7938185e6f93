//! The sums of word scoring over logits that are in memory, by tensor operations.

use std::ops::Range;

use tch::{Device, Kind, TchError, Tensor};

use crate::word_request::WordVocabulary;

use super::{batch::Batch, values::RowValues};

/// What sums up logits.
#[derive(Debug)]
pub(super) struct LogitSums {
    /// Columns of ones, of tokens that begin a word and of those that do not: `[d_vocab, 3]`, f64.
    classes: Tensor,
    eos: i64,
}

/// What is read beside the log-probabilities of targets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Beside {
    /// Masses of the boundary classes.
    pub(super) boundaries: bool,
    /// Entropies.
    pub(super) entropies: bool,
}

impl LogitSums {
    pub(super) fn new(words: &WordVocabulary, device: Device) -> Result<Self, TchError> {
        let classes: Vec<f64> = words
            .begins
            .iter()
            .zip(&words.continues)
            .flat_map(|(&begins, &continues)| [1.0, begins.into(), continues.into()])
            .collect();
        Ok(Self {
            classes: Tensor::f_from_slice(&classes)?
                .f_view([-1, 3])?
                .f_to_device(device)?,
            eos: words.eos,
        })
    }

    fn d_vocab(&self) -> i64 {
        self.classes.size()[0]
    }

    /// Where the logits are.
    pub(super) fn device(&self) -> Device {
        self.classes.device()
    }

    /// The targets of some rows of a batch, as places in the logits of these rows.
    pub(super) fn targets(&self, batch: &Batch, rows: Range<usize>) -> Result<Tensor, TchError> {
        let d_vocab = self.d_vocab();
        let places: Vec<i64> = batch
            .targets_of(rows)
            .into_iter()
            .map(|(row, token)| row as i64 * d_vocab + token)
            .collect();
        Tensor::f_from_slice(&places)?.f_to_device(self.device())
    }

    /// What `logits`, `[row, d_vocab]`, say of `targets`, places in them; overwrites the logits.
    ///
    /// Sums over the vocabulary are made in f64: in f32 a product adds entries one after the other, and over 50,000 of about the same
    /// size loses 1e-3 of them.
    pub(super) fn read(
        &self,
        mut logits: Tensor,
        targets: &Tensor,
        beside: Beside,
    ) -> Result<RowValues, TchError> {
        let max = logits.f_amax([-1i64].as_slice(), true)?;
        let _ = logits.f_sub_(&max)?; // [row, d_vocab]
        let row = targets.f_floor_divide_scalar(self.d_vocab())?;
        let targets = logits
            .f_view(-1)?
            .f_index_select(0, targets)?
            .f_to_kind(Kind::Double)?;
        let eos = logits.f_select(1, self.eos)?.f_to_kind(Kind::Double)?;
        let shifted = match beside.entropies {
            true => Some(logits.f_to_kind(Kind::Double)?),
            false => None,
        };
        let p = logits.f_exp_()?.f_to_kind(Kind::Double)?;
        let sums = match beside.boundaries {
            true => p.f_matmul(&self.classes)?, // [row, 3]
            false => p.f_sum_dim_intlist(-1, true, Kind::Double)?,
        };
        let sums = sums.f_log()?;
        let total = sums.f_select(1, 0)?.f_contiguous()?; // [row]
        let ln_probs = targets.f_sub(&total.f_index_select(0, &row)?)?;
        let mut values = RowValues {
            ln_probs: Vec::try_from(&ln_probs)?,
            ..RowValues::default()
        };
        if let Some(z) = shifted {
            // ln sum e^z - sum e^z z / sum e^z
            let weighted = z.f_mul(&p)?.f_sum_dim_intlist(-1, false, Kind::Double)?;
            let mean = weighted.f_mul(&total.f_neg()?.f_exp()?)?;
            values.entropies = Vec::try_from(&total.f_sub(&mean)?)?;
        }
        if beside.boundaries {
            let masses = [sums.f_select(1, 1)?, sums.f_select(1, 2)?, eos];
            let masses = Tensor::f_stack(&masses, 1)?.f_sub(&total.f_unsqueeze(1)?)?;
            let flat: Vec<f64> = Vec::try_from(&masses.f_contiguous()?.f_view(-1)?)?;
            values.boundaries = flat.chunks_exact(3).map(|c| [c[0], c[1], c[2]]).collect();
        }
        Ok(values)
    }
}
