//! What neurons do on text: how far they are from a value they may be set to, where they are active, how hard the text is there.

use std::collections::BTreeMap;

use neox_core::{Model, Site, next_token_ln_probs};
use tch::{Device, Kind, TchError, Tensor};

use crate::{
    AblateError, SampleStates,
    mlp_write::MlpWrite,
    readout::NormTerms,
    states::{by_sequence, positions},
};

/// A neuron over the rows of some sequences.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Activity {
    /// Mean activation.
    pub mean: f64,
    /// Mean of the squared activation.
    pub mean_square: f64,
    /// Share of the rows where the activation is above zero.
    pub active_share: f64,
    /// Mean loss of the unchanged model over those rows, nats; `None` without any.
    pub active_loss: Option<f64>,
    /// Length of what one unit of activation adds to the residual stream, as the final norm sees it.
    pub output_norm: f64,
}

impl Activity {
    /// `sqrt(mean (value - a)^2) |w|`: root mean square length of the change of the residual stream where the neuron is set to a value.
    pub fn change_length(&self, value: f64) -> f64 {
        let square = self.mean_square - 2.0 * value * self.mean + value * value;
        square.max(0.0).sqrt() * self.output_norm
    }
}

/// The activity of every neuron of some layers, `[d_mlp]` each, over the rows of `sequences` ([`Sample::rows`](crate::Sample::rows)).
///
/// `progress` is told how many more sequences are done.
///
/// # Errors
/// - [`AblateError::NoSuchComponent`] for a layer that the model does not have, [`AblateError::LastLayerOnly`] without a whole one
/// - as [`Sample::rows`](crate::Sample::rows)
/// - [`AblateError::Torch`] if libtorch fails
pub fn activities(
    states: &SampleStates<'_>,
    sequences: &[usize],
    layers: &[usize],
    progress: &dyn Fn(usize),
) -> Result<BTreeMap<usize, Vec<Activity>>, AblateError> {
    let (model, sample) = (
        states.model("the loss where a neuron is active")?,
        states.sample(),
    );
    states.has_layers(layers.iter().copied())?;
    let (rows, counts) = sample.rows(sequences)?;
    let rows = by_sequence(&rows);
    let sites: Vec<Site> = layers.iter().map(|&layer| Site::MlpPost(layer)).collect();
    let d_mlp = model.config().intermediate_size;
    let zeros = || Tensor::f_zeros([4, d_mlp], (Kind::Double, Device::Cpu));
    let mut sums: Vec<Tensor> = layers.iter().map(|_| zeros()).collect::<Result<_, _>>()?;
    states.each(sequences, &sites, |sequence, states| {
        if let Some(rows) = rows.get(&sequence) {
            let places = positions(rows)?;
            let losses = losses(model, &states.resid, &sample.sequences()[sequence])?
                .f_index_select(0, &places)?;
            for (site, sums) in sites.iter().zip(&mut sums) {
                let values = states.at(*site)?;
                let values = values.f_to_kind(Kind::Double)?.f_index_select(0, &places)?; // [row, d_mlp]
                let active = values.f_gt(0.0)?.f_to_kind(Kind::Double)?;
                let of_rows = Tensor::f_stack(
                    &[
                        values.f_sum_dim_intlist(0, false, Kind::Double)?,
                        values
                            .f_square()?
                            .f_sum_dim_intlist(0, false, Kind::Double)?,
                        active.f_sum_dim_intlist(0, false, Kind::Double)?,
                        losses.f_matmul(&active)?,
                    ],
                    0,
                )?;
                *sums = sums.f_add(&of_rows)?;
            }
        }
        progress(1);
        Ok::<_, AblateError>(())
    })?;
    let seen = NormTerms::new(model.ln_final())?;
    let mut found = BTreeMap::new();
    for (&layer, sums) in layers.iter().zip(&sums) {
        let directions = seen.seen(MlpWrite::of_layer(model, layer)?.directions())?;
        let norms = directions.f_norm_scalaropt_dim(2.0, [-1i64], false)?;
        let norms: Vec<f64> = Vec::try_from(&norms)?;
        let [values, squares, active, loss] =
            [0, 1, 2, 3].map(|i| -> Result<Vec<f64>, TchError> { Vec::try_from(&sums.f_get(i)?) });
        let (values, squares, active, loss) = (values?, squares?, active?, loss?);
        let n = counts.kept as f64;
        let neuron = |i: usize| Activity {
            mean: values[i] / n,
            mean_square: squares[i] / n,
            active_share: active[i] / n,
            active_loss: (active[i] > 0.0).then(|| loss[i] / active[i]),
            output_norm: norms[i],
        };
        found.insert(layer, (0..norms.len()).map(neuron).collect());
    }
    Ok(found)
}

/// The loss at each position of a text but the last, `[pos - 1]`, f64 on the CPU.
fn losses(model: &Model, resid: &Tensor, tokens: &[i64]) -> Result<Tensor, AblateError> {
    let resid = resid
        .f_to_device(model.device())?
        .f_to_kind(model.dtype())?;
    let logits = tch::no_grad(|| model.unembed(&resid.f_unsqueeze(0)?))?;
    let tokens = Tensor::f_from_slice(tokens)?.f_unsqueeze(0)?;
    let ln_probs = next_token_ln_probs(&logits, &tokens)?.f_get(0)?;
    Ok(ln_probs.f_neg()?.f_to_device(Device::Cpu)?)
}
