//! What one forward leaves: the residual stream after the last block, the activations of MLPs.

use std::collections::HashMap;

use neox_core::{HookError, Hooks, Model, Residual, Site};
use tch::{Kind, TchError, Tensor};

use crate::{AblateError, Row, Sample};

/// States of one sequence at the last block, on the CPU in f32.
#[derive(Debug)]
pub struct LastLayerStates {
    /// Residual stream after the last block (`resid_post`), `[pos, d_model]`.
    pub resid: Tensor,
    /// Activations after the activation function (`mlp_post`), `[pos, d_mlp]`.
    pub activations: Tensor,
}

/// What one forward of a batch of texts leaves.
#[derive(Debug)]
pub(crate) struct Captured {
    /// Residual stream after the last block, `[batch, pos, d_model]`.
    pub(crate) resid: Tensor,
    /// Values at the sites that were asked for.
    sites: Vec<(Site, Option<Tensor>)>,
}

impl Captured {
    /// The value at a site.
    pub(crate) fn at(&self, site: Site) -> Result<&Tensor, TchError> {
        let mut sites = self.sites.iter();
        let kept = sites.find_map(|(of, value)| value.as_ref().filter(|_| *of == site));
        kept.ok_or_else(|| TchError::Torch(format!("the model did not pass {site} to the hook")))
    }
}

/// Keeps values as they pass.
struct Capture(Vec<(Site, Option<Tensor>)>);

impl Hooks for Capture {
    fn wants(&self, site: Site) -> bool {
        self.0.iter().any(|(wanted, _)| *wanted == site)
    }

    fn at(&mut self, site: Site, value: Tensor) -> Result<Tensor, HookError> {
        for (_, kept) in self.0.iter_mut().filter(|(wanted, _)| *wanted == site) {
            *kept = Some(value.shallow_clone());
        }
        Ok(value)
    }
}

/// One forward of texts of one length, `[batch]` of them, that keeps what passes at some sites.
pub(crate) fn captured(
    model: &Model,
    batch: &[&[i64]],
    sites: &[Site],
) -> Result<Captured, AblateError> {
    let pos = batch.first().map_or(0, |tokens| tokens.len());
    let flat = batch.concat();
    let tokens = Tensor::f_from_slice(&flat)?.f_view([batch.len() as i64, pos as i64])?;
    let mut capture = Capture(sites.iter().map(|&site| (site, None)).collect());
    let resid = tch::no_grad(|| model.residual(&tokens, None, &mut capture))?;
    Ok(Captured {
        resid,
        sites: capture.0,
    })
}

/// The states of `tokens`, all of one length, `[batch]` of them.
///
/// # Errors
/// - [`AblateError::Torch`] if libtorch fails, for instance out of memory
pub fn last_layer_states(
    model: &Model,
    batch: &[&[i64]],
) -> Result<Vec<LastLayerStates>, AblateError> {
    let site = Site::MlpPost(last_layer(model));
    let captured = captured(model, batch, &[site])?;
    let (resid, activations) = (in_f32(&captured.resid)?, in_f32(captured.at(site)?)?);
    (0..batch.len() as i64)
        .map(|i| {
            Ok(LastLayerStates {
                resid: resid.f_get(i)?,
                activations: activations.f_get(i)?,
            })
        })
        .collect()
}

/// Rows by their sequence; those of one come one after the other.
pub(crate) fn by_sequence(rows: &[Row]) -> HashMap<usize, &[Row]> {
    let each = rows.chunk_by(|a, b| a.sequence == b.sequence);
    each.map(|rows| (rows[0].sequence, rows)).collect()
}

/// Positions of rows in their sequence, `[row]`, on the CPU.
pub(crate) fn positions(rows: &[Row]) -> Result<Tensor, TchError> {
    let positions: Vec<i64> = rows.iter().map(|row| row.pos as i64).collect();
    Tensor::f_from_slice(&positions)
}

/// On the CPU.
pub(crate) fn in_f32(tensor: &Tensor) -> Result<Tensor, TchError> {
    tensor.f_to_kind(Kind::Float)?.f_to_device(tch::Device::Cpu)
}

/// Index of the last layer.
pub(crate) fn last_layer(model: &Model) -> usize {
    model.config().num_hidden_layers - 1
}

/// Refuses a model in which the output weights of a neuron are not what it adds to the residual stream.
///
/// # Errors
/// - [`AblateError::Architecture`] for a norm behind the MLP
pub(crate) fn writes_directly(model: &Model) -> Result<(), AblateError> {
    if model.config().residual != Residual::NormAfter {
        return Ok(());
    }
    Err(AblateError::Architecture {
        family: model.config().model_type(),
        what: "a norm behind its MLPs",
    })
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
