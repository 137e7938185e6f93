//! What one forward leaves: the residual stream after the last block, the activations of MLPs, means over a sample.

use neox_core::{Hooks, Model, Residual, Site};
use tch::{Kind, TchError, Tensor};

use crate::{AblateError, LayerMeans, MeanOver, Sample};

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

    fn at(&mut self, site: Site, value: Tensor) -> Result<Tensor, TchError> {
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

/// On the CPU.
fn in_f32(tensor: &Tensor) -> Result<Tensor, TchError> {
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

/// Mean activation of every neuron of the last MLP over the positions of the whole sample, `[d_mlp]`.
///
/// Sequences of one length go through the model `batch` at a time; `progress` hears how many more, and how many so far, are done.
///
/// # Errors
/// - [`AblateError::Torch`] if libtorch fails
/// - [`AblateError::Empty`] if no position counts
pub fn mean_activations(
    model: &Model,
    sample: &Sample,
    over: MeanOver,
    batch: usize,
    progress: &dyn Fn(usize, usize),
) -> Result<Vec<f64>, AblateError> {
    let site = Site::MlpPost(last_layer(model));
    let mut means = means_at(model, sample, &[site], over, batch, progress)?;
    Ok(means.swap_remove(0))
}

/// Mean activations of the neurons of some layers, and mean outputs of the heads of others, over the positions of the whole sample;
/// the rest as [`mean_activations`].
///
/// # Errors
/// - [`AblateError::NoSuchComponent`] for a layer that the model does not have
/// - as [`mean_activations`]
pub fn layer_means(
    model: &Model,
    sample: &Sample,
    (neurons_of, heads_of): (&[usize], &[usize]),
    over: MeanOver,
    batch: usize,
    progress: &dyn Fn(usize, usize),
) -> Result<LayerMeans, AblateError> {
    let last = last_layer(model);
    if let Some(layer) = neurons_of.iter().chain(heads_of).find(|&&l| l > last) {
        return Err(AblateError::NoSuchComponent {
            what: format!("layer {layer}"),
            has: format!("layers 0 to {last}"),
        });
    }
    let neurons = neurons_of.iter().map(|&layer| Site::MlpPost(layer));
    let heads = heads_of.iter().map(|&layer| Site::HeadOut(layer));
    let sites: Vec<Site> = neurons.chain(heads).collect();
    if sites.is_empty() {
        return Ok(LayerMeans::default());
    }
    let means = means_at(model, sample, &sites, over, batch, progress)?;
    let mut found = LayerMeans::default();
    for (site, means) in sites.into_iter().zip(means) {
        match site {
            Site::HeadOut(layer) => found.heads.insert(layer, means),
            Site::MlpPost(layer) => found.neurons.insert(layer, means),
            _ => None,
        };
    }
    Ok(found)
}

/// Mean of the values at each site over the positions of the sample, `[site][width]`.
fn means_at(
    model: &Model,
    sample: &Sample,
    sites: &[Site],
    over: MeanOver,
    batch: usize,
    progress: &dyn Fn(usize, usize),
) -> Result<Vec<Vec<f64>>, AblateError> {
    let mut sums: Vec<Option<Tensor>> = sites.iter().map(|_| None).collect();
    let mut positions = 0usize;
    let mut done = 0;
    let all: Vec<usize> = (0..sample.sequences().len()).collect();
    for group in same_length_batches(sample, &all, batch) {
        let tokens: Vec<&[i64]> = group
            .iter()
            .map(|&i| sample.sequences()[i].as_slice())
            .collect();
        let counted: Vec<Vec<i64>> = tokens
            .iter()
            .map(|tokens| {
                let counts = |&pos: &usize| match over {
                    MeanOver::AllPositions => true,
                    MeanOver::NotBos => pos > 0,
                    MeanOver::NotBosAnywhere => !sample.is_boundary(tokens[pos]),
                };
                let counted = (0..tokens.len()).filter(counts);
                counted.map(|pos| pos as i64).collect()
            })
            .collect();
        positions += counted.iter().map(Vec::len).sum::<usize>();
        let captured = captured(model, &tokens, sites)?;
        for (site, sum) in sites.iter().zip(&mut sums) {
            let values = in_f32(captured.at(*site)?)?;
            for (i, counted) in counted.iter().enumerate() {
                let part = values
                    .f_get(i as i64)?
                    .f_index_select(0, &Tensor::f_from_slice(counted)?)?
                    .f_sum_dim_intlist(0, false, Kind::Double)?;
                *sum = Some(match sum.take() {
                    Some(sum) => sum.f_add(&part)?,
                    None => part,
                });
            }
        }
        done += group.len();
        progress(group.len(), done);
    }
    let means = sums.into_iter().map(|sum| match sum {
        Some(sum) if positions > 0 => Ok(Vec::try_from(&sum.f_div_scalar(positions as f64)?)?),
        _ => Err(AblateError::Empty {
            what: "no position is left for the mean activation".into(),
        }),
    });
    means.collect()
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
