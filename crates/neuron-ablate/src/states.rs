//! What one forward leaves at the last block: the residual stream and the activations of its MLP.

use neox_core::{Hooks, NeoxModel, Residual, Site};
use tch::{Kind, TchError, Tensor};

use crate::{AblateError, MeanOver, Sample};

/// States of one sequence at the last block, on the CPU in f32.
#[derive(Debug)]
pub struct LastLayerStates {
    /// Residual stream after the last block (`resid_post`), `[pos, d_model]`.
    pub resid: Tensor,
    /// Activations after the activation function (`mlp_post`), `[pos, d_mlp]`.
    pub activations: Tensor,
}

/// Keeps `mlp_post` of one layer as it passes.
struct Capture {
    site: Site,
    value: Option<Tensor>,
}

impl Hooks for Capture {
    fn wants(&self, site: Site) -> bool {
        site == self.site
    }

    fn at(&mut self, _: Site, value: Tensor) -> Result<Tensor, TchError> {
        self.value = Some(value.shallow_clone());
        Ok(value)
    }
}

/// The states of `tokens`, all of one length, `[batch]` of them.
///
/// # Errors
/// - [`AblateError::Torch`] if libtorch fails, for instance out of memory
pub fn last_layer_states(
    model: &NeoxModel,
    batch: &[&[i64]],
) -> Result<Vec<LastLayerStates>, AblateError> {
    let pos = batch.first().map_or(0, |tokens| tokens.len());
    let flat: Vec<i64> = batch
        .iter()
        .flat_map(|tokens| tokens.iter().copied())
        .collect();
    let tokens = Tensor::f_from_slice(&flat)?.f_view([batch.len() as i64, pos as i64])?;
    let mut capture = Capture {
        site: Site::MlpPost(last_layer(model)),
        value: None,
    };
    let resid = tch::no_grad(|| model.residual(&tokens, None, &mut capture))?;
    let activations = capture.value.ok_or_else(|| {
        TchError::Torch("the model did not pass mlp_post of its last layer to the hook".into())
    })?;
    let on_host = |t: &Tensor| t.f_to_kind(Kind::Float)?.f_to_device(tch::Device::Cpu);
    let (resid, activations) = (on_host(&resid)?, on_host(&activations)?);
    (0..batch.len() as i64)
        .map(|i| {
            Ok(LastLayerStates {
                resid: resid.f_get(i)?,
                activations: activations.f_get(i)?,
            })
        })
        .collect()
}

/// Index of the last layer.
pub(crate) fn last_layer(model: &NeoxModel) -> usize {
    model.config().num_hidden_layers - 1
}

/// Refuses a model in which the output weights of a neuron are not what it adds to the residual stream.
///
/// # Errors
/// - [`AblateError::Architecture`] for a norm behind the MLP
pub(crate) fn writes_directly(model: &NeoxModel) -> Result<(), AblateError> {
    if model.config().residual != Residual::NormAfter {
        return Ok(());
    }
    Err(AblateError::Architecture {
        family: model.config().model_type(),
        what: "a norm behind its MLPs",
    })
}

/// Mean activation of every neuron of the last MLP over the positions of the whole sample, `[d_mlp]`.
///
/// Sequences of one length go through the model `batch` at a time; `progress` hears how many more, and how many so far, are done.
///
/// # Errors
/// - [`AblateError::Torch`] if libtorch fails
/// - [`AblateError::Empty`] if no position counts
pub fn mean_activations(
    model: &NeoxModel,
    sample: &Sample,
    over: MeanOver,
    batch: usize,
    progress: &dyn Fn(usize, usize),
) -> Result<Vec<f64>, AblateError> {
    let mut sum: Option<Tensor> = None;
    let mut positions = 0usize;
    let mut done = 0;
    let all: Vec<usize> = (0..sample.sequences().len()).collect();
    for group in same_length_batches(sample, &all, batch) {
        let tokens: Vec<&[i64]> = group
            .iter()
            .map(|&i| sample.sequences()[i].as_slice())
            .collect();
        for (states, tokens) in last_layer_states(model, &tokens)?.iter().zip(&tokens) {
            let counted: Vec<i64> = (0..tokens.len())
                .filter(|&pos| match over {
                    MeanOver::AllPositions => true,
                    MeanOver::NotBos => pos > 0,
                    MeanOver::NotBosAnywhere => !sample.is_boundary(tokens[pos]),
                })
                .map(|pos| pos as i64)
                .collect();
            positions += counted.len();
            let part = states
                .activations
                .f_index_select(0, &Tensor::f_from_slice(&counted)?)?
                .f_sum_dim_intlist(0, false, Kind::Double)?;
            sum = Some(match sum {
                Some(sum) => sum.f_add(&part)?,
                None => part,
            });
        }
        done += group.len();
        progress(group.len(), done);
    }
    match sum {
        Some(sum) if positions > 0 => Ok(Vec::try_from(&sum.f_div_scalar(positions as f64)?)?),
        _ => Err(AblateError::Empty {
            what: "no position is left for the mean activation".into(),
        }),
    }
}

/// The given sequences in groups of one length, at most `batch` each, in their order.
pub(crate) fn same_length_batches(
    sample: &Sample,
    sequences: &[usize],
    batch: usize,
) -> Vec<Vec<usize>> {
    let length = |i: usize| sample.sequences()[i].len();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for &i in sequences {
        match groups.last_mut() {
            Some(group) if group.len() < batch.max(1) && length(group[0]) == length(i) => {
                group.push(i)
            }
            _ => groups.push(vec![i]),
        }
    }
    groups
}
