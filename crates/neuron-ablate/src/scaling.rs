//! Scaling laws for rare tokens, and changes of weights in proportion to a factor (methods, section 8).

use neox_core::Part;
use serde::{Deserialize, Serialize};
use tch::{Kind, TchError, Tensor};

use crate::{AblateError, NeuronId, product::product};

/// Why a scaling could not be set up or measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScalingError {
    /// The model and the frequencies do not belong together.
    #[error("frequencies of {frequencies} tokens, but the model's vocabulary has {d_vocab} rows")]
    Vocabulary {
        /// Number of frequencies.
        frequencies: usize,
        /// Rows of `W_U`.
        d_vocab: usize,
    },
    /// A change or factor that the plan did not have.
    #[error(
        "there is no change {change} at factor {factor}: the plan has {changes} changes and {factors} factors, counted from 0"
    )]
    NotInPlan {
        /// Place of the change.
        change: usize,
        /// Place of the factor.
        factor: usize,
        /// How many changes there are.
        changes: usize,
        /// How many factors there are.
        factors: usize,
    },
    /// A setting out of its range.
    #[error("`{name}` is {value}, expected {expected}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// What it was.
        value: f64,
        /// What it may be.
        expected: String,
    },
    /// Common tokens leave nothing.
    #[error(
        "common tokens span {rank} of {room} dimensions, so that there is no null space: take fewer common tokens, or a lower variance threshold or rank"
    )]
    NoNullSpace {
        /// Singular vectors kept.
        rank: usize,
        /// Dimensions that there are.
        room: usize,
    },
    /// `gamma` cannot be undone.
    #[error(
        "the final LayerNorm has a weight of {least:.1e}, which cannot be folded into the unembedding and out again: set `folded` to false"
    )]
    Folded {
        /// Its smallest weight in size.
        least: f64,
    },
    /// The `gamma` of a norm behind an MLP cannot be undone.
    #[error(
        "the norm behind the MLP of layer {layer} has a weight of {least:.1e}, so that no change of output weights makes the one that is asked for: leave out the neurons of that layer"
    )]
    NormBehind {
        /// The layer.
        layer: usize,
        /// Its smallest weight in size.
        least: f64,
    },
    /// The unembedding holds NaN or infinity, or nothing but zeros.
    #[error(
        "the unembedding of the common tokens is zero or not finite: audit the weights of the checkpoint"
    )]
    NotFiniteWeights,
    /// No token is rare.
    #[error("{what}")]
    NoRareToken {
        /// What was looked for.
        what: String,
    },
    /// Frequencies without any difference.
    #[error(
        "the tokens all have frequency {frequency:e}, so that no law can tell them apart: use the constant law or a wider band"
    )]
    FlatFrequencies {
        /// The frequency.
        frequency: f64,
    },
    /// A result that is not a number.
    #[error(
        "`{change}` with factor {factor} gives logits that are not finite at sequence {sequence}, position {pos}: take a smaller factor"
    )]
    NotFinite {
        /// The change.
        change: String,
        /// The factor.
        factor: f64,
        /// Which sequence.
        sequence: usize,
        /// Which position in it.
        pos: usize,
    },
    /// The model or the sample.
    #[error(transparent)]
    Ablate(#[from] AblateError),
    /// libtorch reported an error.
    #[error("libtorch failed")]
    Torch(#[from] TchError),
}

/// How strongly a rare token is scaled, by its frequency `f`, between the lowest `fmin` and the bound `thr` of rare tokens.
///
/// The factor of a token is `1 + (s - 1) r`, with the base factor `s` and the strength `r`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScalingLaw {
    /// `r = 1`.
    Constant,
    /// `r = (thr - f) / (thr - fmin + epsilon)`.
    Linear,
    /// `r = ln(thr / f) / ln(thr / (fmin + epsilon))`.
    Log,
    /// `r = (thr / f)^e / (thr / (fmin + epsilon))^e`, with the exponent `e`.
    Power(f64),
}

impl ScalingLaw {
    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Constant => "constant",
            Self::Linear => "linear",
            Self::Log => "log",
            Self::Power(_) => "power",
        }
    }
}

/// Tokens that count as rare.
#[derive(Debug, Clone, PartialEq)]
pub struct RareTokens {
    ids: Vec<i64>,
    frequencies: Vec<f64>,
    threshold: f64,
}

impl RareTokens {
    /// Tokens below the quantile `share` (0.25: the rarest quarter) of the frequencies of the first `n_tokens` tokens, linear between order
    /// statistics. Rows past the tokenizer are padding: they are never seen, so that among the tokens they would lower every quantile.
    ///
    /// # Errors
    /// - [`ScalingError::Setting`] if `share` is not between 0 and 1
    /// - [`ScalingError::NoRareToken`] if no token is below
    ///
    /// # Examples
    /// ```
    /// let rare = neuron_ablate::RareTokens::below_quantile(&[0.4, 0.1, 0.2, 0.3, 0.05, 0.01, 0.01], 5, 0.5)?;
    /// assert_eq!((rare.ids(), rare.threshold()), (&[1, 4][..], 0.2));
    /// # Ok::<(), neuron_ablate::ScalingError>(())
    /// ```
    pub fn below_quantile(
        frequencies: &[f64],
        n_tokens: usize,
        share: f64,
    ) -> Result<Self, ScalingError> {
        let frequencies = &frequencies[..n_tokens.min(frequencies.len())];
        if !(share > 0.0 && share < 1.0) {
            return Err(ScalingError::Setting {
                name: "quantile",
                value: share,
                expected: "a number between 0 and 1".into(),
            });
        }
        let mut sorted = frequencies.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        let threshold = match sorted.len().checked_sub(1) {
            None => f64::NEG_INFINITY,
            Some(last) => {
                let place = share * last as f64;
                let low = place.floor() as usize;
                sorted[low] + (sorted[(low + 1).min(last)] - sorted[low]) * (place - low as f64)
            }
        };
        let ids = (0i64..)
            .zip(frequencies)
            .filter(|(_, f)| **f < threshold)
            .map(|(id, _)| id)
            .collect();
        let none = || {
            format!(
                "no token is rarer than the {share} quantile of frequencies: take a higher quantile, or a band"
            )
        };
        Self::new(ids, frequencies, threshold)
            .ok_or_else(|| ScalingError::NoRareToken { what: none() })
    }

    /// The tokens `ids` of a band with the upper frequency bound `threshold`; `frequencies` is `[d_vocab]`.
    ///
    /// # Errors
    /// - [`ScalingError::NoRareToken`] if there are none, or one is past the vocabulary
    pub fn of_band(
        ids: &[impl Copy + Into<i64>],
        frequencies: &[f64],
        threshold: f64,
    ) -> Result<Self, ScalingError> {
        let what = || {
            format!(
                "a band of {} tokens does not fit frequencies of {} tokens",
                ids.len(),
                frequencies.len()
            )
        };
        Self::new(
            ids.iter().map(|&id| id.into()).collect(),
            frequencies,
            threshold,
        )
        .ok_or_else(|| ScalingError::NoRareToken { what: what() })
    }

    fn new(ids: Vec<i64>, frequencies: &[f64], threshold: f64) -> Option<Self> {
        let frequencies: Vec<f64> = ids
            .iter()
            .map(|&id| frequencies.get(usize::try_from(id).ok()?).copied())
            .collect::<Option<_>>()?;
        (!ids.is_empty()).then_some(Self {
            ids,
            frequencies,
            threshold,
        })
    }

    /// Their ids.
    pub fn ids(&self) -> &[i64] {
        &self.ids
    }

    /// The frequency below which tokens are rare.
    pub fn threshold(&self) -> f64 {
        self.threshold
    }

    /// The lowest frequency among them.
    pub fn least(&self) -> f64 {
        self.frequencies
            .iter()
            .copied()
            .fold(f64::INFINITY, f64::min)
    }

    /// Strength of each token under a law, in the order of [`RareTokens::ids`].
    ///
    /// The Python package of Liu et al. (2025) adds an `epsilon` of 1e-10 to the lowest frequency. With counts over more than 1e10
    /// tokens that is more than the frequency itself, and strengths leave the range from 0 to 1; `epsilon` 0 keeps them in it.
    ///
    /// # Errors
    /// - [`ScalingError::FlatFrequencies`] if the law needs different frequencies and there are none
    /// - [`ScalingError::Setting`] if a strength is not a finite number, because of `epsilon` or an exponent
    ///
    /// # Examples
    /// ```
    /// use neuron_ablate::{RareTokens, ScalingLaw};
    /// let rare = RareTokens::of_band(&[0, 1, 2], &[0.01, 0.02, 0.04, 0.93], 0.04)?;
    /// assert_eq!(rare.strengths(ScalingLaw::Log, 0.0)?, [1.0, 0.5, 0.0]);
    /// # Ok::<(), neuron_ablate::ScalingError>(())
    /// ```
    pub fn strengths(&self, law: ScalingLaw, epsilon: f64) -> Result<Vec<f64>, ScalingError> {
        let (threshold, least) = (self.threshold, self.least());
        let strength: Box<dyn Fn(f64) -> f64> = match law {
            ScalingLaw::Constant => Box::new(|_| 1.0),
            ScalingLaw::Linear | ScalingLaw::Log if least >= threshold => {
                return Err(ScalingError::FlatFrequencies { frequency: least });
            }
            ScalingLaw::Linear => Box::new(|f| (threshold - f) / (threshold - least + epsilon)),
            ScalingLaw::Log => {
                Box::new(|f| (threshold / f).ln() / (threshold / (least + epsilon)).ln())
            }
            ScalingLaw::Power(e) => {
                Box::new(move |f| (threshold / f).powf(e) / (threshold / (least + epsilon)).powf(e))
            }
        };
        let strengths: Vec<f64> = self.frequencies.iter().map(|&f| strength(f)).collect();
        match strengths.iter().find(|r| !(r.is_finite() && **r >= 0.0)) {
            None => Ok(strengths),
            Some(&value) => Err(ScalingError::Setting {
                name: "strength",
                value,
                expected: "a finite number from 0 on: use a smaller epsilon or exponent".into(),
            }),
        }
    }
}

/// Which weights change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Rows of the unembedding, by token id.
    UnembeddingRows(Vec<i64>),
    /// Output weights of neurons, of any layers.
    OutputColumns(Vec<NeuronId>),
}

/// A change of weights in proportion to `s - 1`, where 1 is the factor that changes nothing.
///
/// It mostly lies in a subspace, often of far fewer dimensions than d_model, and is kept as coefficients of a basis.
#[derive(Debug)]
pub struct WeightChange {
    target: Target,
    /// `[row or neuron, dimension]`, f64; without a basis `[row or neuron, d_model]`.
    coefficients: Tensor,
    /// `[dimension, d_model]`, f64.
    basis: Option<Tensor>,
}

impl WeightChange {
    pub(crate) fn new(target: Target, coefficients: Tensor, basis: Option<Tensor>) -> Self {
        Self {
            target,
            coefficients,
            basis,
        }
    }

    /// Which weights change.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The parts of the model that change: the unembedding, or the output projections of some MLPs.
    pub fn parts(&self) -> Vec<Part> {
        match &self.target {
            Target::UnembeddingRows(_) => vec![Part::Unembedding],
            Target::OutputColumns(neurons) => {
                let mut layers: Vec<usize> = neurons.iter().map(|n| n.layer).collect();
                layers.sort_unstable();
                layers.dedup();
                layers.into_iter().map(Part::MlpOut).collect()
            }
        }
    }

    /// The change at `s = 2`, `[row or neuron, d_model]`, f64.
    ///
    /// # Errors
    /// - [`ScalingError::Torch`] if libtorch fails
    pub fn per_unit(&self) -> Result<Tensor, ScalingError> {
        match &self.basis {
            Some(basis) => Ok(product(&self.coefficients, basis)?),
            None => Ok(self.coefficients.shallow_clone()),
        }
    }

    /// The same as a product of two factors, `[row or neuron, dimension]` and `[dimension, d_model]`, or whole without the second.
    pub(crate) fn factors(&self) -> (&Tensor, Option<&Tensor>) {
        (&self.coefficients, self.basis.as_ref())
    }

    /// Norms of the rows of [`WeightChange::per_unit`].
    ///
    /// # Errors
    /// - [`ScalingError::Torch`] if libtorch fails
    pub fn norms(&self) -> Result<Vec<f64>, ScalingError> {
        let along = match &self.basis {
            Some(basis) => product(&self.coefficients, &product(basis, &basis.f_tr()?)?)?,
            None => self.coefficients.shallow_clone(),
        };
        let squares = along.f_mul(&self.coefficients)?;
        let squares = squares.f_sum_dim_intlist(-1, false, Kind::Double)?;
        // Rounding must not make a squared norm negative.
        Ok(Vec::try_from(&squares.f_clamp_min(0.0)?.f_sqrt()?)?)
    }

    /// The weights of a part after scaling by `factor`: `weights` is the whole tensor as the checkpoint has it (`W_U`,
    /// `[d_vocab, d_model]`, or the output weights of an MLP, `[d_model, d_mlp]`); the result is f64. A part that does not change
    /// ([`WeightChange::parts`]) stays as it is.
    ///
    /// # Errors
    /// - [`ScalingError::Torch`] if the shapes do not fit
    pub fn apply(&self, part: Part, weights: &Tensor, factor: f64) -> Result<Tensor, ScalingError> {
        let weights = weights
            .f_to_device(tch::Device::Cpu)?
            .f_to_kind(Kind::Double)?;
        // Rows of the change, the places that they are added to, and along which dimension.
        let (rows, places, dim): (Vec<i64>, Vec<i64>, i64) = match (&self.target, part) {
            (Target::UnembeddingRows(ids), Part::Unembedding) => {
                ((0..ids.len() as i64).collect(), ids.clone(), 0)
            }
            (Target::OutputColumns(neurons), Part::MlpOut(layer)) => {
                let here = (0i64..).zip(neurons).filter(|(_, n)| n.layer == layer);
                let (rows, places) = here.map(|(row, n)| (row, n.neuron as i64)).unzip();
                (rows, places, 1)
            }
            _ => return Ok(weights),
        };
        let change = self
            .per_unit()?
            .f_index_select(0, &Tensor::f_from_slice(&rows)?)?
            .f_mul_scalar(factor - 1.0)?;
        let change = if dim == 0 { change } else { change.f_tr()? };
        Ok(weights.f_index_add(dim, &Tensor::f_from_slice(&places)?, &change)?)
    }
}
