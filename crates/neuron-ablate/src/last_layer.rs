//! What the closed form knows of a model: the last MLP's output weights, the readout, and a forward that says what the residual stream and
//! the activations are.

use std::{error::Error, fmt};

use neox_core::Model;
use tch::Tensor;

use crate::{
    AblateError, Readout,
    mlp_write::MlpWrite,
    readout::shape,
    states::{LastLayerStates, in_f32, last_layer, last_layer_states},
};

/// The states of texts, all of one length.
pub(crate) type Forward<'a> = dyn Fn(&[&[i64]]) -> Result<Vec<LastLayerStates>, AblateError> + 'a;

/// The last layer of a model, of ours or of any other: all that [`Sweep::of_last_layer`](crate::Sweep::of_last_layer) and
/// [`Scorer::of_last_layer`](crate::Scorer::of_last_layer) ask of one.
///
/// A model that is not ours is its tensors, and a function that runs it.
///
/// # Examples
/// ```
/// use neox_core::{Norm, tch::{Device, Kind, Tensor}};
/// use neuron_ablate::{LastLayer, LastLayerStates, Plan, Readout, Sample, Sweep, TokenFrequencies};
///
/// # fn random(size: &[i64]) -> Tensor { Tensor::randn(size, (Kind::Float, Device::Cpu)) }
/// let (d_vocab, d_model, d_mlp) = (50, 8, 32);
/// let (w_u, w_out, embedding) = (random(&[d_vocab, d_model]), random(&[d_model, d_mlp]), random(&[d_vocab, d_model]));
/// let gamma = Tensor::ones([d_model], (Kind::Float, Device::Cpu));
/// let rms_norm = Norm { bias: gamma.zeros_like(), weight: gamma, eps: 1e-5, centres: false };
/// let readout = Readout::new(&w_u, &rms_norm)?;
/// // A model without attention: activations are a function of the token, and the MLP writes to the embedding.
/// let forward = |texts: &[&[i64]]| {
///     let of_text = |tokens: &&[i64]| -> Result<LastLayerStates, Box<dyn std::error::Error + Send + Sync>> {
///         let before = embedding.f_index_select(0, &Tensor::f_from_slice(tokens)?)?; // [pos, d_model]
///         let activations = before.f_matmul(&w_out)?.f_relu()?; // [pos, d_mlp]
///         let resid = before.f_add(&activations.f_matmul(&w_out.f_tr()?)?)?;
///         Ok(LastLayerStates { resid, activations })
///     };
///     texts.iter().map(of_text).collect()
/// };
/// let layer = LastLayer::new(readout, &w_out, 0, forward)?;
///
/// let sample = Sample::new(vec![vec![0, 5, 6, 7, 8, 9, 10], vec![0, 11, 2, 3, 4, 5, 6]], &[0], 50)?;
/// let frequencies = TokenFrequencies::new((1..=50).map(|id| f64::from(id) / 1275.0).collect())?;
/// let plan = Plan::new(vec![3, 17], vec![0, 1]);
/// let effects = Sweep::of_last_layer(layer, &sample, &frequencies, vec![], plan)?.run()?;
/// assert_eq!(effects.neurons[1].id().to_string(), "0.17");
/// # Ok::<(), neuron_ablate::AblateError>(())
/// ```
pub struct LastLayer<'a> {
    pub(crate) readout: Readout,
    pub(crate) write: MlpWrite,
    pub(crate) layer: usize,
    pub(crate) forward: Box<Forward<'a>>,
}

impl fmt::Debug for LastLayer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("LastLayer");
        shown.field("readout", &self.readout);
        shown.field("layer", &self.layer).finish_non_exhaustive()
    }
}

impl<'a> LastLayer<'a> {
    /// Takes the parts of a model whose MLP writes to the residual stream without a norm between.
    ///
    /// `forward` runs the model on texts of one length and says, for each, the residual stream after the last block and the
    /// activations that `w_out` multiplies. `layer` is the number that its neurons are called by ("5.17").
    ///
    /// # Shapes
    /// - `w_out`: `[d_model, d_mlp]`, any dtype and device; neuron `n` writes column `n`
    ///
    /// # Errors
    /// - [`AblateError::Shape`] if `w_out` does not go with the readout
    /// - [`AblateError::Torch`] if libtorch fails
    pub fn new(
        readout: Readout,
        w_out: &Tensor,
        layer: usize,
        forward: impl Fn(&[&[i64]]) -> Result<Vec<LastLayerStates>, Box<dyn Error + Send + Sync>> + 'a,
    ) -> Result<Self, AblateError> {
        let d_model = readout.w_u().size()[1];
        let d_mlp = w_out.size().get(1).copied().unwrap_or(0).max(1);
        shape("the output weights of the MLP", w_out, &[d_model, d_mlp])?;
        let forward = move |texts: &[&[i64]]| {
            let states = tch::no_grad(|| forward(texts))
                .map_err(|source| AblateError::OwnForward { source })?;
            if states.len() != texts.len() {
                let source = format!(
                    "it gave the states of {} texts, asked for {}",
                    states.len(),
                    texts.len()
                );
                return Err(AblateError::OwnForward {
                    source: source.into(),
                });
            }
            let each = states.iter().zip(texts).map(|(states, text)| {
                let pos = text.len() as i64;
                shape("the residual stream", &states.resid, &[pos, d_model])?;
                shape("the activations", &states.activations, &[pos, d_mlp])?;
                Ok(LastLayerStates {
                    resid: in_f32(&states.resid)?,
                    activations: in_f32(&states.activations)?,
                })
            });
            each.collect()
        };
        Ok(Self {
            readout,
            write: MlpWrite::direct(w_out)?,
            layer,
            forward: Box::new(forward),
        })
    }

    /// That of a model of ours.
    ///
    /// # Errors
    /// - [`AblateError::Torch`] if libtorch fails
    pub fn of_model(model: &'a Model) -> Result<Self, AblateError> {
        Ok(Self {
            readout: Readout::of_model(model)?,
            write: MlpWrite::of_last_layer(model)?,
            layer: last_layer(model),
            forward: Box::new(|texts| last_layer_states(model, texts)),
        })
    }
}
