//! The null space of common tokens (methods, section 8): what their rows of `W_U` do not span.
//!
//! A change of weights inside it moves the logits of rare tokens and hardly those of common ones.

use std::f64::consts::TAU;

use neox_core::{Model, Residual};
use rand::Rng;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::{
    AblateError, NeuronId,
    error::distinct,
    mlp_write::{MlpWrite, output_directions},
    product::product,
    readout::{Readout, host},
    replaced::by_layer,
    scaling::{ScalingError, Target, WeightChange},
};

/// Entries of `gamma` below it cannot be divided by.
const LEAST_GAMMA: f64 = 1e-6;
/// Rows of `W_U` that are held in f64 at once, where all are gone through.
const TILE: i64 = 2048;

/// Which directions count as spanned by common tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// The fewest singular vectors whose squared singular values reach this share of their sum, above 0 and at most 1.
    Variance(f64),
    /// So many singular vectors.
    Rank(usize),
}

/// How the null space is found.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct NullSpaceOptions {
    /// Per cent of the rows of the vocabulary, by frequency, that count as common: 5 takes the most frequent twentieth.
    pub top_k_percent: f64,
    /// What is kept of their span.
    pub keep: Keep,
    /// Whether `W_U` is centred over the vocabulary first, so that adding a constant to all logits plays no part.
    pub centred: bool,
    /// Whether the final norm is folded into `W_U` (`gamma`, and for LayerNorm the centring over d_model): the space then lies
    /// in the residual stream that neurons write to. Otherwise it lies behind the norm, and `gamma` is ignored for neurons.
    pub folded: bool,
}

impl Default for NullSpaceOptions {
    /// What spans 95 % of the variance of the rows of the most frequent 5 % of the tokens, of `W_U` centred and with the norm folded in.
    fn default() -> Self {
        Self {
            top_k_percent: 5.0,
            keep: Keep::Variance(0.95),
            centred: true,
            folded: true,
        }
    }
}

impl NullSpaceOptions {
    /// With another [`top_k_percent`](Self::top_k_percent).
    #[must_use]
    pub fn with_top_k_percent(self, top_k_percent: f64) -> Self {
        Self {
            top_k_percent,
            ..self
        }
    }

    /// With another [`keep`](Self::keep).
    #[must_use]
    pub fn with_keep(self, keep: Keep) -> Self {
        Self { keep, ..self }
    }

    /// With another [`centred`](Self::centred).
    #[must_use]
    pub fn with_centred(self, centred: bool) -> Self {
        Self { centred, ..self }
    }

    /// With another [`folded`](Self::folded).
    #[must_use]
    pub fn with_folded(self, folded: bool) -> Self {
        Self { folded, ..self }
    }
}

/// A linear subspace of vectors of length d_model.
#[derive(Debug)]
pub struct Subspace {
    /// Orthonormal rows, `[dimension, d_model]`, f64.
    basis: Tensor,
}

/// The null space of common tokens in one model.
#[derive(Debug)]
pub struct NullSpace {
    options: NullSpaceOptions,
    common: Vec<i64>,
    rank: usize,
    variance: f64,
    rows: Rows,
    space: Subspace,
}

/// Rows of `W_U` as the options say, in f64 on the CPU: made where they are asked for, since all of them would be twice as large as `W_U`.
#[derive(Debug)]
struct Rows {
    readout: Readout,
    /// What is taken off each row, `[1, d_model]`, where `W_U` is centred.
    mean: Option<Tensor>,
    folded: bool,
}

/// Some rows of `W_U` with their parts in the null space, for changes of them.
#[derive(Debug)]
pub struct NullRows<'s> {
    space: &'s NullSpace,
    ids: Vec<i64>,
    /// `[row, d_model]`, f64.
    rows: Tensor,
    /// Their parts, `[row, dimension]`, f64.
    parts: Tensor,
}

impl Subspace {
    /// Number of dimensions.
    pub fn dimension(&self) -> usize {
        self.basis.size()[0] as usize
    }

    /// The projector `P`, `[d_model, d_model]`, f64.
    ///
    /// # Errors
    /// - [`ScalingError::Torch`] if libtorch fails
    pub fn projector(&self) -> Result<Tensor, ScalingError> {
        Ok(self.basis.f_tr()?.f_matmul(&self.basis)?)
    }

    /// The part of each row of `vectors` (`[n, d_model]`, f64) that lies in the subspace, in its basis: `[n, dimension]`.
    fn coefficients(&self, vectors: &Tensor) -> Result<Tensor, ScalingError> {
        Ok(product(vectors, &self.basis.f_tr()?)?)
    }
}

impl NullSpace {
    /// The complement of what the most frequent tokens span, by libtorch's singular value decomposition in f64.
    ///
    /// `frequencies` is `[d_vocab]`; ids from `n_tokens` on are padding rows, which are never common.
    ///
    /// # Errors
    /// - [`ScalingError::Vocabulary`] if there is not one frequency per row of `W_U`
    /// - [`ScalingError::Setting`] for a percentage, threshold or rank out of its range, or a frequency that is not finite
    /// - [`ScalingError::NoNullSpace`] if common tokens span everything
    /// - [`ScalingError::Folded`] if `gamma` has an entry too small to fold
    /// - [`ScalingError::Torch`] if libtorch fails
    pub fn find(
        model: &Model,
        frequencies: &[f64],
        n_tokens: usize,
        options: NullSpaceOptions,
    ) -> Result<Self, ScalingError> {
        let NullSpaceOptions {
            top_k_percent,
            keep,
            centred,
            folded,
        } = options;
        let d_vocab = model.config().vocab_size as usize;
        if frequencies.len() != d_vocab {
            return Err(ScalingError::Vocabulary {
                frequencies: frequencies.len(),
                d_vocab,
            });
        }
        finite("frequencies", frequencies)?;
        let common = most_frequent(
            &frequencies[..n_tokens.min(d_vocab)],
            d_vocab,
            top_k_percent,
        )?;
        let w_u = Rows::new(Readout::of_model(model)?, centred, folded)?;
        let rows = w_u.of(&common)?; // [k, d_model]
        let d_model = rows.size()[1] as usize;
        // With fewer rows than columns the thin decomposition would lack the directions that no row touches.
        let (_, singular, v) = rows.f_svd(common.len() >= d_model, true)?; // v: [d_model, d_model], by column
        let singular: Vec<f64> = Vec::try_from(&singular)?;
        let (rank, variance) = kept(&singular, keep)?;
        // What the norm does not see is no room: LayerNorm leaves the direction of ones without any token.
        let room = w_u.room();
        if rank >= room {
            return Err(ScalingError::NoNullSpace { rank, room });
        }
        let beyond = v.f_tr()?.f_slice(0, rank as i64, None, 1)?;
        let basis = match room < d_model {
            false => beyond,
            true => without_ones(&beyond, room - rank)?,
        };
        Ok(Self {
            options,
            common,
            rank,
            variance,
            rows: w_u,
            space: Subspace { basis },
        })
    }

    /// How it was found.
    pub fn options(&self) -> NullSpaceOptions {
        self.options
    }

    /// The null space itself.
    pub fn space(&self) -> &Subspace {
        &self.space
    }

    /// Number of singular vectors kept for common tokens.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Share of the squared singular values that they hold.
    pub fn variance(&self) -> f64 {
        self.variance
    }

    /// Ids of the common tokens, most frequent first.
    pub fn common(&self) -> &[i64] {
        &self.common
    }

    /// Expected share of a random vector: dimension over the dimensions that there are.
    pub fn chance(&self) -> f64 {
        self.space.dimension() as f64 / self.rows.room() as f64
    }

    /// Share of the squared norm of each neuron's output weights in a layer that lies in the null space, `[d_mlp]`;
    /// 0 for a neuron without output weights. Of layers before the last one this is about their direct path to the logits. Folded, output weights count as the final norm sees them (LayerNorm: minus their mean over d_model).
    /// Behind a norm (OLMo 2) they count times its `gamma`.
    ///
    /// # Errors
    /// - [`AblateError::Forward`] if there is no such layer
    /// - [`ScalingError::Torch`] if libtorch fails
    pub fn neuron_shares(&self, model: &Model, layer: usize) -> Result<Vec<f64>, ScalingError> {
        let weights = self.as_seen(MlpWrite::of_layer(model, layer)?.directions())?;
        let all = squared_norms(&weights)?;
        let part = squared_norms(&self.space.coefficients(&weights)?)?;
        Ok(all
            .iter()
            .zip(part)
            .map(|(all, part)| {
                if *all > 0.0 {
                    (part / all).min(1.0)
                } else {
                    0.0
                }
            })
            .collect())
    }

    /// Share of the squared norm of the unigram direction `W_U^T (log q - mean log q)` that lies in the null space.
    ///
    /// # Errors
    /// - [`ScalingError::Vocabulary`] if there is not one frequency per row of `W_U`
    /// - [`ScalingError::Setting`] for a frequency that is not a positive number
    /// - [`ScalingError::FlatFrequencies`] if all tokens are equally frequent
    /// - [`ScalingError::Torch`] if libtorch fails
    pub fn unigram_share(&self, frequencies: &[f64]) -> Result<f64, ScalingError> {
        let d_vocab = self.rows.readout.w_u().size()[0] as usize;
        if frequencies.len() != d_vocab {
            return Err(ScalingError::Vocabulary {
                frequencies: frequencies.len(),
                d_vocab,
            });
        }
        if let Some(&value) = frequencies.iter().find(|q| !(q.is_finite() && **q > 0.0)) {
            return Err(ScalingError::Setting {
                name: "frequencies",
                value,
                expected: "positive numbers: smooth the counts first (add one)".into(),
            });
        }
        let log_q: Vec<f64> = frequencies.iter().map(|q| q.ln()).collect();
        let mean = log_q.iter().sum::<f64>() / log_q.len() as f64;
        let log_q: Vec<f64> = log_q.iter().map(|v| v - mean).collect();
        let direction = self.rows.sum(&log_q)?; // [1, d_model]
        let all = squared_norms(&direction)?[0];
        let part = squared_norms(&self.space.coefficients(&direction)?)?[0];
        if all > 0.0 {
            Ok((part / all).min(1.0))
        } else {
            Err(ScalingError::FlatFrequencies {
                frequency: frequencies[0],
            })
        }
    }

    /// A random subspace of the same dimension, out of the same room; the same for the same `seed` and `draw`.
    ///
    /// # Errors
    /// - [`ScalingError::Torch`] if libtorch fails
    pub fn random(&self, seed: u64, draw: u64) -> Result<Subspace, ScalingError> {
        let (dimension, d_model) = (self.space.dimension(), self.d_model() as usize);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(draw);
        // Box-Muller; 1 - u is above 0.
        let mut normal =
            || (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt() * (TAU * rng.random::<f64>()).cos();
        let values: Vec<f64> = (0..dimension * d_model).map(|_| normal()).collect();
        let mut vectors =
            Tensor::f_from_slice(&values)?.f_view([dimension as i64, d_model as i64])?;
        if self.options.folded {
            vectors = self.rows.readout.seen(&vectors)?;
        }
        let (q, _) = Tensor::f_linalg_qr(&vectors.f_tr()?, "reduced")?; // [d_model, dimension]
        Ok(Subspace {
            basis: q.f_tr()?.f_contiguous()?,
        })
    }

    /// The change of the rows `ids` of `W_U` when each is scaled along its null-space part: `strengths[i] * P w`, to be
    /// multiplied by `s - 1`.
    ///
    /// With `instead`, the part along that subspace, brought to the size of the null-space part row by row.
    ///
    /// # Errors
    /// - [`ScalingError::Setting`] if there is not one strength, a finite number, for each row
    /// - [`ScalingError::Torch`] if libtorch fails, for instance for an id past the vocabulary
    pub fn row_change(
        &self,
        ids: &[i64],
        strengths: &[f64],
        instead: Option<&Subspace>,
    ) -> Result<WeightChange, ScalingError> {
        self.rows(ids)?.change(strengths, instead)
    }

    /// The rows `ids` of `W_U`, for several changes of them.
    ///
    /// # Errors
    /// - [`ScalingError::Torch`] if libtorch fails, for instance for an id past the vocabulary
    pub fn rows(&self, ids: &[i64]) -> Result<NullRows<'_>, ScalingError> {
        let rows = self.rows.of(ids)?;
        Ok(NullRows {
            space: self,
            ids: ids.to_vec(),
            parts: self.space.coefficients(&rows)?,
            rows,
        })
    }

    /// The change of the output weights of `neurons`, of any layers, when each is scaled along its null-space part:
    /// `P w`, to be multiplied by `s - 1`. `instead` as in [`NullSpace::row_change`].
    ///
    /// Behind a norm (OLMo 2) it is the direction that the neuron writes along, `gamma * w`, of which the part is taken, and the change
    /// of the weights is the one that makes it: `P (gamma * w) / gamma`.
    ///
    /// # Errors
    /// - [`AblateError::NoSuchComponent`] for a neuron that the model does not have
    /// - [`AblateError::Repeated`] for a neuron that stands twice
    /// - [`ScalingError::NormBehind`] if the `gamma` of a norm behind the MLP has an entry too small to divide by
    /// - [`ScalingError::Torch`] if libtorch fails
    pub fn neuron_change(
        &self,
        model: &Model,
        neurons: &[NeuronId],
        instead: Option<&Subspace>,
    ) -> Result<WeightChange, ScalingError> {
        distinct("neuron", neurons)?;
        let size = [neurons.len() as i64, self.d_model()];
        let mut weights = Tensor::f_zeros(size, (Kind::Double, Device::Cpu))?;
        let mut gamma = Tensor::f_ones(size, (Kind::Double, Device::Cpu))?;
        for (layer, places) in by_layer(model, neurons)? {
            let numbers: Vec<usize> = places.iter().map(|&i| neurons[i].neuron).collect();
            let places: Vec<i64> = places.iter().map(|&i| i as i64).collect();
            let places = Tensor::f_from_slice(&places)?;
            let directions = self.as_seen(&output_directions(model, layer, &numbers)?)?;
            let _ = weights.f_index_copy_(0, &places, &directions)?;
            if let Some(norm) = model.norm_after_mlp(layer).map_err(AblateError::from)? {
                let of_norm = host(&norm.weight)?;
                let least = of_norm.f_abs()?.f_min()?.f_double_value(&[])?;
                if least < LEAST_GAMMA {
                    return Err(ScalingError::NormBehind { layer, least });
                }
                let _ = gamma.f_index_copy_(0, &places, &of_norm.f_expand_as(&directions)?)?;
            }
        }
        let parts = self.space.coefficients(&weights)?;
        let (coefficients, basis) = self.along(&weights, parts, instead)?;
        let target = Target::OutputColumns(neurons.to_vec());
        if model.config().residual != Residual::NormAfter {
            return Ok(WeightChange::new(target, coefficients, Some(basis)));
        }
        let change = product(&coefficients, &basis)?.f_div(&gamma)?;
        Ok(WeightChange::new(target, change, None))
    }

    /// Directions that neurons write along, `[neuron, d_model]`, as the space sees them.
    fn as_seen(&self, directions: &Tensor) -> Result<Tensor, ScalingError> {
        match self.options.folded {
            true => Ok(self.rows.readout.seen(directions)?),
            false => Ok(directions.shallow_clone()),
        }
    }

    /// The parts of vectors in the null space, or along another subspace but of that size: coefficients, `[n, dimension]`, of a basis.
    fn along(
        &self,
        vectors: &Tensor,
        parts: Tensor,
        instead: Option<&Subspace>,
    ) -> Result<(Tensor, Tensor), ScalingError> {
        let Some(other) = instead else {
            return Ok((parts, self.space.basis.shallow_clone()));
        };
        let along = other.coefficients(vectors)?;
        // Bases are orthonormal, so that these are the norms of the parts.
        let norm = |t: &Tensor| {
            t.f_square()?
                .f_sum_dim_intlist(-1, true, Kind::Double)?
                .f_sqrt()
        };
        // A vector without a part stays without one.
        let ratio = norm(&parts)?.f_div(&norm(&along)?.f_clamp_min(f64::MIN_POSITIVE)?)?;
        Ok((along.f_mul(&ratio)?, other.basis.shallow_clone()))
    }

    fn d_model(&self) -> i64 {
        self.rows.readout.gamma().size()[0]
    }
}

impl NullRows<'_> {
    /// As [`NullSpace::row_change`].
    ///
    /// # Errors
    /// - as [`NullSpace::row_change`]
    pub fn change(
        &self,
        strengths: &[f64],
        instead: Option<&Subspace>,
    ) -> Result<WeightChange, ScalingError> {
        if strengths.len() != self.ids.len() {
            return Err(ScalingError::Setting {
                name: "number of strengths",
                value: strengths.len() as f64,
                expected: format!("one for each of {} rows", self.ids.len()),
            });
        }
        finite("strengths", strengths)?;
        let strengths = Tensor::f_from_slice(strengths)?.f_unsqueeze(1)?; // [row, 1]
        let parts = self.parts.shallow_clone();
        let (coefficients, mut basis) = self.space.along(&self.rows, parts, instead)?;
        if self.space.options.folded {
            basis = basis.f_div(self.space.rows.readout.gamma())?;
        }
        Ok(WeightChange::new(
            Target::UnembeddingRows(self.ids.clone()),
            coefficients.f_mul(&strengths)?,
            Some(basis),
        ))
    }
}

impl Rows {
    fn new(readout: Readout, centred: bool, folded: bool) -> Result<Self, ScalingError> {
        if folded {
            let least = readout.gamma().f_abs()?.f_min()?.f_double_value(&[])?;
            if least < LEAST_GAMMA {
                return Err(ScalingError::Folded { least });
            }
        }
        let mean = match centred {
            false => None,
            true => {
                let all = Tensor::f_ones([readout.w_u().size()[0]], (Kind::Double, Device::Cpu))?;
                let sum = weighted_sum(readout.w_u(), &all)?;
                Some(sum.f_div_scalar(all.numel() as f64)?)
            }
        };
        Ok(Self {
            readout,
            mean,
            folded,
        })
    }

    /// Rows by token id, `[id, d_model]`.
    fn of(&self, ids: &[i64]) -> Result<Tensor, ScalingError> {
        let w_u = self.readout.w_u();
        let ids = Tensor::f_from_slice(ids)?.f_to_device(w_u.device())?;
        self.seen(host(&w_u.f_index_select(0, &ids)?)?)
    }

    /// The sum of all rows, each times a factor, where the factors add up to 0: `[1, d_model]`.
    fn sum(&self, factors: &[f64]) -> Result<Tensor, ScalingError> {
        // What is taken off each row plays no part in such a sum.
        let sum = weighted_sum(self.readout.w_u(), &Tensor::f_from_slice(factors)?)?;
        self.folded_in(sum)
    }

    /// Rows as the options say, `[row, d_model]`.
    fn seen(&self, mut rows: Tensor) -> Result<Tensor, ScalingError> {
        if let Some(mean) = &self.mean {
            let _ = rows.f_sub_(mean)?;
        }
        self.folded_in(rows)
    }

    /// Rows with the final norm folded in, if it is.
    fn folded_in(&self, rows: Tensor) -> Result<Tensor, ScalingError> {
        match self.folded {
            true => Ok(self.readout.seen(&rows.f_mul(self.readout.gamma())?)?),
            false => Ok(rows),
        }
    }

    /// Number of dimensions in which rows can lie.
    fn room(&self) -> usize {
        match self.folded {
            true => self.readout.dimensions(),
            false => self.readout.gamma().size()[0] as usize,
        }
    }
}

/// `sum_v factor_v row_v`, `[1, d_model]` in f64 on the CPU; in tiles, so that no copy of all rows is made.
fn weighted_sum(w_u: &Tensor, factors: &Tensor) -> Result<Tensor, ScalingError> {
    let mut sum = Tensor::f_zeros([1, w_u.size2()?.1], (Kind::Double, Device::Cpu))?;
    let factors = factors.f_unsqueeze(0)?.f_split(TILE, 1)?;
    for (rows, factors) in w_u.f_split(TILE, 0)?.iter().zip(factors) {
        sum = sum.f_add(&factors.f_matmul(&host(rows)?)?)?;
    }
    Ok(sum)
}

/// Refuses NaN and infinity.
fn finite(name: &'static str, values: &[f64]) -> Result<(), ScalingError> {
    match values.iter().find(|value| !value.is_finite()) {
        None => Ok(()),
        Some(&value) => Err(ScalingError::Setting {
            name,
            value,
            expected: "finite numbers".into(),
        }),
    }
}

/// The `percent` of `d_vocab` tokens that are most frequent; among equals the lower id comes first.
fn most_frequent(
    frequencies: &[f64],
    d_vocab: usize,
    percent: f64,
) -> Result<Vec<i64>, ScalingError> {
    let k = (d_vocab as f64 * percent / 100.0) as usize;
    if k == 0 || k > frequencies.len() {
        let expected = format!(
            "a percentage that makes 1 to {} of {d_vocab} tokens",
            frequencies.len()
        );
        return Err(ScalingError::Setting {
            name: "top_k_percent",
            value: percent,
            expected,
        });
    }
    let mut order: Vec<i64> = (0..frequencies.len() as i64).collect();
    order.sort_by(|&a, &b| frequencies[b as usize].total_cmp(&frequencies[a as usize]));
    order.truncate(k);
    Ok(order)
}

/// Number of singular vectors kept, and their share of the squared singular values.
fn kept(singular: &[f64], keep: Keep) -> Result<(usize, f64), ScalingError> {
    let total: f64 = singular.iter().map(|s| s * s).sum();
    if !(total.is_finite() && total > 0.0) {
        return Err(ScalingError::NotFiniteWeights);
    }
    let shares: Vec<f64> = singular
        .iter()
        .scan(0.0, |sum, s| {
            *sum += s * s;
            Some(*sum / total)
        })
        .collect();
    let rank = match keep {
        Keep::Variance(threshold) if threshold > 0.0 && threshold <= 1.0 => {
            // Rounding may keep the last share a hair below 1.
            shares
                .iter()
                .position(|&share| share >= threshold)
                .map_or(shares.len(), |i| i + 1)
        }
        Keep::Variance(value) => {
            return Err(ScalingError::Setting {
                name: "variance",
                value,
                expected: "above 0 and at most 1".into(),
            });
        }
        Keep::Rank(rank) if (1..=singular.len()).contains(&rank) => rank,
        Keep::Rank(rank) => {
            return Err(ScalingError::Setting {
                name: "rank",
                value: rank as f64,
                expected: format!("1 to {}", singular.len()),
            });
        }
    };
    Ok((rank, shares[rank - 1]))
}

/// The span of orthonormal `rows` (`[n, d]`), of which the direction of ones is part, without it.
fn without_ones(rows: &Tensor, dimension: usize) -> Result<Tensor, ScalingError> {
    let (_, _, v) = minus_mean(rows, -1)?.f_svd(true, true)?;
    Ok(v.f_tr()?
        .f_slice(0, 0, dimension as i64, 1)?
        .f_contiguous()?)
}

fn minus_mean(tensor: &Tensor, dim: i64) -> Result<Tensor, ScalingError> {
    Ok(tensor.f_sub(&tensor.f_mean_dim(dim, true, Kind::Double)?)?)
}

/// Squared norm of each row.
fn squared_norms(rows: &Tensor) -> Result<Vec<f64>, ScalingError> {
    Ok(Vec::try_from(&rows.f_square()?.f_sum_dim_intlist(
        -1,
        false,
        Kind::Double,
    )?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_vectors_reach_the_threshold() -> Result<(), ScalingError> {
        let singular = [3.0, 2.0, 1.0, 0.0]; // squares 9, 4, 1 of 14
        assert_eq!(kept(&singular, Keep::Variance(9.0 / 14.0))?.0, 1);
        assert_eq!(kept(&singular, Keep::Variance(0.93))?.0, 3);
        assert_eq!(kept(&singular, Keep::Variance(1.0))?.0, 3);
        assert_eq!(kept(&singular, Keep::Rank(2))?, (2, 13.0 / 14.0));
        for keep in [
            Keep::Variance(0.0),
            Keep::Variance(1.1),
            Keep::Variance(f64::NAN),
            Keep::Rank(0),
            Keep::Rank(5),
        ] {
            assert!(
                matches!(kept(&singular, keep), Err(ScalingError::Setting { .. })),
                "{keep:?}"
            );
        }
        Ok(())
    }

    #[test]
    fn common_tokens_are_a_share_of_the_vocabulary() -> Result<(), ScalingError> {
        assert_eq!(most_frequent(&[0.1, 0.4, 0.1, 0.3], 10, 29.0)?, [1, 3]);
        assert_eq!(most_frequent(&[0.1, 0.4, 0.1, 0.3], 10, 30.0)?, [1, 3, 0]);
        for percent in [0.0, 5.0, 41.0, 50.0, f64::NAN, -3.0] {
            let found = most_frequent(&[0.1, 0.4, 0.1, 0.3], 10, percent);
            assert_eq!(found.is_ok(), percent == 41.0, "{percent}");
        }
        Ok(())
    }
}
