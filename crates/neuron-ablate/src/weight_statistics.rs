//! What the weights alone say about a neuron (methods, section 12): LogitVar, share in the least singular directions of `W_U`,
//! correlation of its logit vector with token frequency.
//!
//! Every statistic is a quadratic form of the output weights, so that `W_U` is read in tiles of rows, once for its mean and once for a
//! few matrices `[d_model, d_model]`; nothing of the size neurons x vocabulary is ever made.

use neox_core::Model;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, TchError, Tensor};

use crate::{
    AblateError, Direction, TokenBand, TokenFrequencies,
    mlp_write::MlpWrite,
    product::{Matrix, add_host_product, product},
    readout::{Readout, host, see},
    vectors::on_host,
};

/// Rows of `W_U` in f64 at once.
const TILE: i64 = 2048;
/// Columns of a Gram matrix at once: those below its diagonal are not computed but for those of the same block.
const BLOCK: usize = 128;

/// Squared lengths below this part of what they could be are rounding.
const ROUNDING: f64 = 1e-13;

/// How many of the least singular directions of the unembedding count as its null space.
///
/// With LayerNorm the vocabulary does not see the direction of ones, which therefore is none of them: there are `d_model - 1` in
/// all. With RMSNorm there are `d_model`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NullDirections {
    /// This share of `d_model`, rounded up; above 0 and at most 1.
    Share(f64),
    /// So many.
    Count(usize),
}

impl Default for NullDirections {
    /// 5 % of `d_model`.
    fn default() -> Self {
        Self::Share(0.05)
    }
}

impl NullDirections {
    /// The number of directions in a model of this width, of which its final norm sees `room` (`Readout::dimensions`).
    ///
    /// # Errors
    /// - [`AblateError::Setting`] for a share outside (0, 1], or a count that is 0 or above `room`
    ///
    /// # Examples
    /// ```
    /// use neuron_ablate::NullDirections;
    /// assert_eq!(NullDirections::default().resolve(512, 511)?, 26);
    /// assert_eq!(NullDirections::Share(1.0).resolve(512, 511)?, 511);
    /// assert!(NullDirections::Count(512).resolve(512, 511).is_err());
    /// # Ok::<(), neuron_ablate::AblateError>(())
    /// ```
    pub fn resolve(self, d_model: usize, room: usize) -> Result<usize, AblateError> {
        let refuse = |value: f64, expected: String| AblateError::Setting {
            name: "null_directions",
            value,
            expected,
        };
        match self {
            Self::Share(share) if share > 0.0 && share <= 1.0 => {
                Ok(((d_model as f64 * share).ceil() as usize).clamp(1, room.max(1)))
            }
            Self::Share(share) => Err(refuse(
                share,
                "a share above 0 and at most 1, or a count".into(),
            )),
            Self::Count(count) if (1..=room).contains(&count) => Ok(count),
            Self::Count(count) => Err(refuse(
                count as f64,
                format!("a count from 1 to {room}, the directions that the final norm sees"),
            )),
        }
    }
}

/// What the weights say about one neuron.
///
/// A value is `None` where it is not defined: for output weights of which the final norm sees nothing (LayerNorm: those that are
/// constant over d_model), and for correlations of a logit vector that is constant.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightStatistics {
    /// `|w_n|`, as stored.
    pub norm: f64,
    /// Norm of `w_n` as the final norm sees it: minus its mean over d_model where that is a LayerNorm (Stolfo's norm), as stored where it
    /// is an RMSNorm.
    pub norm_seen: f64,
    /// Variance over the vocabulary of the cosine between the output weights and the rows of the unembedding.
    pub logit_var: Option<f64>,
    /// Share of the squared norm of the output weights in the null space, 0 to 1; its root is Stolfo's rho.
    pub null_share: Option<f64>,
    /// Pearson correlation of the neuron's logit vector with `log q` over all tokens ([`TokenFrequencies::support`]): the cosine of the two
    /// when centred.
    pub freq_cosine: Option<f64>,
    /// The same over the tokens of each band, both centred inside it, `[band]`.
    pub band_cosines: Vec<Option<f64>>,
}

/// The unembedding behind the final norm, reduced to what statistics of neurons need.
///
/// Its rows are `r_v = gamma * (W_U[v] - mean over the vocabulary)`, for LayerNorm minus their mean over d_model, so that the logit
/// vector of a neuron is `u_n[v] = r_v . w_n`. Padding rows of the vocabulary count, as they do in the softmax.
#[derive(Debug)]
pub struct UnembeddingMoments {
    readout: Readout,
    /// Covariance of the rows at length one, `[d_model, d_model]`, f64.
    cosines: Tensor,
    /// The least singular directions, `[d_model, null]`, f64.
    null: Tensor,
    /// Singular values, for LayerNorm but that of the direction of ones, descending.
    singular: Vec<f64>,
    all: GroupMoments,
    bands: Vec<GroupMoments>,
}

/// Of the rows of a group of tokens.
#[derive(Debug)]
struct GroupMoments {
    /// `sum (r - mean) (r - mean)^T`, `[d_model, d_model]`.
    gram: Tensor,
    /// `sum v r` for the unit frequency direction `v` of the group, `[d_model, 1]`.
    along: Tensor,
}

/// Sums towards [`GroupMoments`].
struct GroupSums<'a> {
    /// Members by token id; all tokens without.
    mask: Option<&'a [bool]>,
    /// Whether `rows` are of those that are no members, since they are fewer.
    of_others: bool,
    direction: Vec<f64>,
    along: Vec<f64>,
    rows: RowSums,
}

/// Sums over some rows, `[d_model]` each.
struct RowSums {
    count: f64,
    /// `sum r`.
    sum: Vec<f64>,
    /// `sum r r^T`, `[d_model, d_model]`, of which only the upper triangle is sure to be there.
    gram: Vec<f64>,
}

impl UnembeddingMoments {
    /// Reads the final norm and `W_U` of a model.
    ///
    /// # Errors
    /// - as [`UnembeddingMoments::new`]
    pub fn of_model(
        model: &Model,
        frequencies: &TokenFrequencies,
        bands: &[TokenBand],
        null: NullDirections,
    ) -> Result<Self, AblateError> {
        Self::new(Readout::of_model(model)?, frequencies, bands, null)
    }

    /// Reads the unembedding in tiles; the arithmetic is f64 on the CPU.
    ///
    /// The null space is spanned by the eigenvectors of `sum r_v r_v^T` with the least eigenvalues: the right singular vectors of the
    /// unembedding, without decomposing anything of the size of the vocabulary.
    ///
    /// # Cost
    /// About `4 d_vocab d_model^2` operations, and four matrices `[d_model, d_model]` in f64, plus one for each band.
    ///
    /// # Errors
    /// - [`AblateError::Vocabulary`] if there is not one frequency per row of `W_U`
    /// - [`AblateError::Band`] if a band is of another vocabulary
    /// - [`AblateError::Setting`] if `null` does not fit the width
    /// - [`AblateError::FlatDirection`] if all tokens, or all of a band, are equally frequent
    /// - [`AblateError::NotFiniteWeights`] if the unembedding holds a value that is not a number
    /// - [`AblateError::Torch`] if libtorch fails
    pub fn new(
        readout: Readout,
        frequencies: &TokenFrequencies,
        bands: &[TokenBand],
        null: NullDirections,
    ) -> Result<Self, AblateError> {
        let w_u = readout.w_u();
        let (d_vocab, d_model) = w_u.size2()?;
        if frequencies.q().len() != d_vocab as usize {
            return Err(AblateError::Vocabulary {
                frequencies: frequencies.q().len(),
                d_vocab: d_vocab as usize,
            });
        }
        if let Some(band) = bands.iter().find(|b| b.mask().len() != d_vocab as usize) {
            return Err(AblateError::Band {
                name: band.name().to_owned(),
                what: format!(
                    "it is of a vocabulary of {}, but the unembedding has {d_vocab} rows",
                    band.mask().len()
                ),
            });
        }
        let null = null.resolve(d_model as usize, readout.dimensions())? as i64;
        let d = d_model as usize;
        let group = |direction, mask| -> Result<GroupSums<'_>, AblateError> {
            Ok(GroupSums::new(
                frequencies.direction(direction, mask)?,
                (direction != Direction::AllTokens).then_some(mask),
                d,
            ))
        };
        let mut all = group(Direction::AllTokens, &[])?;
        // The null space is that of all rows, whatever the direction leaves out.
        let mut seen = match frequencies.support() {
            None => None,
            Some(support) => Some(GroupSums::new(
                frequencies.direction(Direction::AllTokens, support)?,
                Some(support),
                d,
            )),
        };
        let mut of_bands = bands
            .iter()
            .map(|band| group(Direction::BandRecentred, band.mask()))
            .collect::<Result<Vec<_>, _>>()?;

        let tile = |start: i64| on_host(&w_u.f_narrow(0, start, TILE.min(d_vocab - start))?);
        let starts = || (0..d_vocab).step_by(TILE as usize);
        let mut mean = vec![0.0; d];
        for start in starts() {
            for row in tile(start)?.chunks(d) {
                add_scaled(&mut mean, row, 1.0);
            }
        }
        mean.iter_mut().for_each(|mean| *mean /= d_vocab as f64);
        let gamma = on_host(readout.gamma())?;
        let centres = readout.centres();
        let mut cosines = RowSums::new(d);
        let mut unit = Vec::new();
        for start in starts() {
            let mut rows = tile(start)?;
            unit.resize(rows.len(), 0.0);
            rows.par_chunks_mut(d)
                .zip(unit.par_chunks_mut(d))
                .for_each(|(row, unit)| folded(row, &mean, &gamma, centres, unit));
            cosines.add(&unit);
            for group in [&mut all].into_iter().chain(&mut seen).chain(&mut of_bands) {
                group.add(&rows, start as usize);
            }
        }
        let gram = all.rows.gram()?;
        let total = gram.f_trace()?.f_double_value(&[])?;
        if !total.is_finite() {
            return Err(AblateError::NotFiniteWeights {
                what: "the unembedding or the final norm",
            });
        }
        let cosines = cosines
            .centred()?
            .f_div_scalar((d_vocab - 1).max(1) as f64)?;
        let (null, singular) = least_directions(&gram, total, null, &readout)?;
        let of_bands = of_bands.iter().map(|band| band.finish(&all.rows));
        Ok(Self {
            readout,
            cosines,
            null,
            singular,
            bands: of_bands.collect::<Result<_, _>>()?,
            all: seen.as_ref().unwrap_or(&all).finish(&all.rows)?,
        })
    }

    /// Number of directions in the null space.
    pub fn null_directions(&self) -> usize {
        self.null.size()[1] as usize
    }

    /// Expected null-space share of a random vector.
    pub fn chance_share(&self) -> f64 {
        self.null_directions() as f64 / self.singular.len().max(1) as f64
    }

    /// Singular values of the unembedding as the final norm feeds it, descending, one for each direction that it sees: the last
    /// [`null_directions`](Self::null_directions) of them are those of the null space. Exact to about 1e-8 of the largest.
    pub fn singular_values(&self) -> &[f64] {
        &self.singular
    }

    /// Statistics of neurons of the last MLP layer, in the order of `neurons`.
    ///
    /// In a model with a norm behind its MLPs (OLMo 2) they are those of `gamma * w`, with the norm's `gamma`: the direction that a
    /// neuron writes along.
    ///
    /// # Errors
    /// - [`AblateError::NoSuchNeuron`] for a neuron past the layer
    /// - as [`UnembeddingMoments::statistics`]
    ///
    /// # Examples
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use neox_core::{LoadOptions, Model};
    /// use neuron_ablate::{NullDirections, TokenFrequencies, UnembeddingMoments};
    ///
    /// let model = Model::load("pythia-70m".as_ref(), &LoadOptions::default())?;
    /// let d_vocab = model.config().vocab_size as usize;
    /// let weights: Vec<f64> = (1..=d_vocab).map(|rank| 1.0 / rank as f64).collect();
    /// let sum: f64 = weights.iter().sum();
    /// let zipf = TokenFrequencies::new(weights.iter().map(|w| w / sum).collect())?;
    /// let moments = UnembeddingMoments::of_model(&model, &zipf, &[], NullDirections::Count(12))?;
    /// for (neuron, of) in moments.neurons(&model, &[0, 1, 2])?.iter().enumerate() {
    ///     println!("{neuron}: norm {:.2}, LogitVar {:?}, null-space share {:?}", of.norm, of.logit_var, of.null_share);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn neurons(
        &self,
        model: &Model,
        neurons: &[usize],
    ) -> Result<Vec<WeightStatistics>, AblateError> {
        let write = MlpWrite::of_last_layer(model)?;
        let d_mlp = write.directions().size()[0] as usize;
        if let Some(&neuron) = neurons.iter().find(|&&n| n >= d_mlp) {
            return Err(AblateError::NoSuchNeuron {
                neuron,
                last: d_mlp - 1,
            });
        }
        let ids: Vec<i64> = neurons.iter().map(|&n| n as i64).collect();
        self.statistics(
            &write
                .directions()
                .f_index_select(0, &Tensor::f_from_slice(&ids)?)?,
        )
    }

    /// Statistics of vectors that are added to the residual stream, `[vector, d_model]`: output weights of neurons.
    ///
    /// With `w` as the final norm sees it (LayerNorm: minus its mean over d_model, as TransformerLens stores it):
    ///
    /// ```text
    /// logit_var   = Var_v( r_v . w / (|r_v| |w|) )    divided by d_vocab - 1
    /// null_share  = |P w|^2 / |w|^2                   P projects on the null space
    /// freq_cosine = corr_v( r_v . w, log q_v )        over all tokens, and over each band
    /// ```
    ///
    /// None of them changes when `w` is made longer. Sources: `logit_var` as the published code of Stolfo et al. 2024 computes it (the
    /// variance of cosines, with the folded and centred weights of TransformerLens); `null_share` is the square of their rho, and their
    /// `k` counts the direction of ones too.
    ///
    /// # Errors
    /// - [`AblateError::NotFiniteWeights`] if a vector holds a value that is not a number
    /// - [`AblateError::Torch`] if libtorch fails, for instance for vectors of another length
    pub fn statistics(&self, vectors: &Tensor) -> Result<Vec<WeightStatistics>, AblateError> {
        let vectors = host(vectors)?;
        let w = self.readout.seen(&vectors)?;
        let [raw, norm2, var, null] = [
            squared(&vectors)?,
            squared(&w)?,
            quadratic(&w, &self.cosines)?,
            squared(&w.f_matmul(&self.null)?)?,
        ];
        if raw.iter().any(|v| !v.is_finite()) {
            return Err(AblateError::NotFiniteWeights {
                what: "the output weights of a neuron",
            });
        }
        let all = self.all.cosines(&w, &norm2)?;
        let bands = self
            .bands
            .iter()
            .map(|band| band.cosines(&w, &norm2))
            .collect::<Result<Vec<_>, _>>()?;
        Ok((0..raw.len())
            .map(|n| {
                // What is left of a constant vector is rounding of its mean.
                let seen = norm2[n] > 1e-24 * raw[n];
                let ratio = |value: f64| seen.then(|| (value / norm2[n]).max(0.0));
                WeightStatistics {
                    norm: raw[n].sqrt(),
                    norm_seen: norm2[n].max(0.0).sqrt(),
                    logit_var: ratio(var[n]),
                    null_share: ratio(null[n]).map(|share| share.min(1.0)),
                    freq_cosine: all[n].filter(|_| seen),
                    band_cosines: bands.iter().map(|band| band[n].filter(|_| seen)).collect(),
                }
            })
            .collect())
    }
}

impl<'a> GroupSums<'a> {
    fn new(direction: Vec<f64>, mask: Option<&'a [bool]>, d_model: usize) -> Self {
        let members = |mask: &[bool]| mask.iter().filter(|member| **member).count();
        Self {
            of_others: mask.is_some_and(|mask| 2 * members(mask) > mask.len()),
            mask,
            direction,
            along: vec![0.0; d_model],
            rows: RowSums::new(d_model),
        }
    }

    /// Adds the members among `rows`, the first of which is token `start`.
    fn add(&mut self, rows: &[f64], start: usize) {
        let d_model = self.along.len();
        let tokens = (start..).zip(rows.chunks(d_model));
        let Some(mask) = self.mask else {
            tokens.for_each(|(token, row)| add_scaled(&mut self.along, row, self.direction[token]));
            return self.rows.add(rows);
        };
        for (token, row) in tokens.clone().filter(|(token, _)| mask[*token]) {
            add_scaled(&mut self.along, row, self.direction[token]);
        }
        let added = tokens.filter(|(token, _)| mask[*token] != self.of_others);
        let added: Vec<f64> = added.flat_map(|(_, row)| row).copied().collect();
        self.rows.add(&added);
    }

    /// `all` are the sums over all tokens.
    fn finish(&self, all: &RowSums) -> Result<GroupMoments, TchError> {
        let gram = match self.of_others {
            true => all.without(&self.rows).centred()?,
            false => self.rows.centred()?,
        };
        Ok(GroupMoments {
            gram,
            along: Tensor::f_from_slice(&self.along)?.f_unsqueeze(1)?,
        })
    }
}

impl RowSums {
    fn new(d_model: usize) -> Self {
        Self {
            count: 0.0,
            sum: vec![0.0; d_model],
            gram: vec![0.0; d_model * d_model],
        }
    }

    /// Adds rows, `[row][d_model]`.
    fn add(&mut self, rows: &[f64]) {
        let d = self.sum.len();
        let n = rows.len() / d;
        self.count += n as f64;
        for row in rows.chunks(d) {
            add_scaled(&mut self.sum, row, 1.0);
        }
        if n == 0 {
            return;
        }
        for first in (0..d).step_by(BLOCK) {
            let block = BLOCK.min(d - first);
            let left = Matrix::new(&rows[first..], [n, block], d).transposed();
            let right = Matrix::new(&rows[first..], [n, d - first], d);
            add_host_product(&mut self.gram[first * d + first..], d, left, right);
        }
    }

    /// The sums over the rows that are not among `others`.
    fn without(&self, others: &Self) -> Self {
        let less = |sum: &[f64], others: &[f64]| {
            let both = sum.iter().zip(others);
            both.map(|(sum, others)| sum - others).collect()
        };
        Self {
            count: self.count - others.count,
            sum: less(&self.sum, &others.sum),
            gram: less(&self.gram, &others.gram),
        }
    }

    /// `sum r r^T`, `[d_model, d_model]`.
    fn gram(&self) -> Result<Tensor, TchError> {
        let d = self.sum.len() as i64;
        let upper = Tensor::f_from_slice(&self.gram)?
            .f_view([d, d])?
            .f_triu(0)?;
        upper.f_add(&upper.f_tr()?.f_tril(-1)?)
    }

    /// `sum (r - mean) (r - mean)^T`, `[d_model, d_model]`.
    fn centred(&self) -> Result<Tensor, TchError> {
        let sum = Tensor::f_from_slice(&self.sum)?.f_unsqueeze(0)?;
        let of_mean = product(&sum.f_tr()?, &sum)?;
        self.gram()?
            .f_sub(&of_mean.f_div_scalar(self.count.max(1.0))?)
    }
}

impl GroupMoments {
    /// Cosine of the logit vectors of `w` (`[vector, d_model]`, of these squared norms), centred over the group, with its direction.
    fn cosines(&self, w: &Tensor, norm2: &[f64]) -> Result<Vec<Option<f64>>, TchError> {
        let largest = self.gram.f_trace()?.f_double_value(&[])?;
        let along: Vec<f64> = Vec::try_from(&w.f_matmul(&self.along)?.f_view(-1)?)?;
        Ok(quadratic(w, &self.gram)?
            .iter()
            .zip(along)
            .zip(norm2)
            .map(|((&length2, along), norm2)| {
                (length2 > ROUNDING * largest * norm2)
                    .then(|| (along / length2.sqrt()).clamp(-1.0, 1.0))
            })
            .collect())
    }
}

/// Orthonormal columns for the `count` least eigenvalues of `gram`, and the roots of all eigenvalues, descending; the direction of ones,
/// which a LayerNorm does not see, is left out of both.
fn least_directions(
    gram: &Tensor,
    trace: f64,
    count: i64,
    readout: &Readout,
) -> Result<(Tensor, Vec<f64>), TchError> {
    let d_model = gram.size()[0];
    // Lifted above all others, so that it mixes with no other direction of eigenvalue 0.
    let lift = match readout.centres() {
        true => (2.0 * trace + 1.0) / d_model as f64,
        false => 0.0,
    };
    let ones = Tensor::f_full([d_model, d_model], lift, (Kind::Double, Device::Cpu))?;
    let (values, vectors) = gram.f_add(&ones)?.f_linalg_eigh("L")?; // ascending
    let values: Vec<f64> = Vec::try_from(&values)?;
    let singular = values[..readout.dimensions()]
        .iter()
        .rev()
        .map(|v| v.max(0.0).sqrt())
        .collect();
    Ok((vectors.f_narrow(1, 0, count)?.f_contiguous()?, singular))
}

/// Folds the final norm into a row of `W_U`: `gamma * (row - mean)`, and of that what the norm sees; `unit` is that at length one. A
/// row that is zero has no direction and stays zero.
fn folded(row: &mut [f64], mean: &[f64], gamma: &[f64], centres: bool, unit: &mut [f64]) {
    for (r, (mean, gamma)) in row.iter_mut().zip(mean.iter().zip(gamma)) {
        *r = (*r - mean) * gamma;
    }
    see(centres, row);
    let norm = row.iter().map(|r| r * r).sum::<f64>().sqrt();
    let norm = norm.max(f64::MIN_POSITIVE);
    unit.iter_mut()
        .zip(row)
        .for_each(|(unit, r)| *unit = *r / norm);
}

/// `sum += factor row`.
fn add_scaled(sum: &mut [f64], row: &[f64], factor: f64) {
    sum.iter_mut()
        .zip(row)
        .for_each(|(sum, r)| *sum += factor * r);
}

/// `w^T m w` for each row of `w`.
fn quadratic(w: &Tensor, m: &Tensor) -> Result<Vec<f64>, TchError> {
    Vec::try_from(
        &product(w, m)?
            .f_mul(w)?
            .f_sum_dim_intlist(-1, false, Kind::Double)?,
    )
}

/// Squared norm of each row.
fn squared(rows: &Tensor) -> Result<Vec<f64>, TchError> {
    Vec::try_from(
        &rows
            .f_square()?
            .f_sum_dim_intlist(-1, false, Kind::Double)?,
    )
}
