//! Neurons and heads that are replaced inside the model, at every position, a change for each row of a batch.

use std::{collections::BTreeMap, fmt, str::FromStr};

use neox_core::{HookError, Hooks, Model, Site};
use tch::Tensor;

use crate::{AblateError, Dose, InterventionError, LayerMeans, NeuronId};

/// One attention head, written `layer.head` as a neuron is: `5.10` is head 10 of layer 5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HeadId {
    /// Layer, from 0.
    pub layer: usize,
    /// Head of the layer, from 0.
    pub head: usize,
}

impl fmt::Display for HeadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.layer, self.head)
    }
}

impl FromStr for HeadId {
    type Err = InterventionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Heads are written as neurons are.
        let id = text.parse::<NeuronId>();
        let NeuronId { layer, neuron } = id.map_err(|_| InterventionError::HeadId {
            text: text.to_owned(),
        })?;
        Ok(Self {
            layer,
            head: neuron,
        })
    }
}

/// Values at a site that are replaced together.
#[derive(Debug)]
struct Channels {
    site: Site,
    /// Places in the last dimension, `[channel]`.
    places: Tensor,
    /// `[channel]`, in the dtype of the model.
    mean: Tensor,
}

/// What is replaced at every position of one text, and by what.
#[derive(Debug)]
pub(crate) struct Replaced {
    /// For messages.
    pub(crate) name: String,
    /// First layer in which something is replaced.
    pub(crate) layer: usize,
    dose: Dose,
    channels: Vec<Channels>,
}

impl Replaced {
    /// Neurons, at a dose.
    pub(crate) fn neurons(
        model: &Model,
        name: String,
        neurons: &[NeuronId],
        dose: Dose,
        means: &LayerMeans,
    ) -> Result<Self, AblateError> {
        let (layers, d_mlp) = (
            model.config().num_hidden_layers,
            model.config().intermediate_size as usize,
        );
        let mut by_layer: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for &NeuronId { layer, neuron } in neurons {
            if layer >= layers || neuron >= d_mlp {
                return Err(AblateError::NoSuchComponent {
                    what: format!("neuron {layer}.{neuron}"),
                    has: format!("layers 0 to {} of {d_mlp} neurons", layers - 1),
                });
            }
            by_layer.entry(layer).or_default().push(neuron);
        }
        let channels = by_layer.into_iter().map(|(layer, places)| {
            let means = means.neurons(layer);
            Channels::new(model, Site::MlpPost(layer), &places, means)
        });
        Ok(Self {
            name,
            layer: neurons.iter().map(|n| n.layer).min().unwrap_or(0),
            dose,
            channels: channels.collect::<Result<_, _>>()?,
        })
    }

    /// The output of a head, at a dose.
    pub(crate) fn head(
        model: &Model,
        HeadId { layer, head }: HeadId,
        dose: Dose,
        means: &LayerMeans,
    ) -> Result<Self, AblateError> {
        let config = model.config();
        let (layers, heads) = (
            config.num_hidden_layers,
            config.num_attention_heads as usize,
        );
        if layer >= layers || head >= heads {
            return Err(AblateError::NoSuchComponent {
                what: format!("head {layer}.{head}"),
                has: format!("layers 0 to {} of {heads} heads", layers - 1),
            });
        }
        let d_head = config.head_size as usize;
        let places: Vec<usize> = (head * d_head..(head + 1) * d_head).collect();
        let channels = Channels::new(model, Site::HeadOut(layer), &places, means.heads(layer))?;
        Ok(Self {
            name: format!("head {layer}.{head}"),
            layer,
            dose,
            channels: vec![channels],
        })
    }
}

impl Channels {
    fn new(
        model: &Model,
        site: Site,
        places: &[usize],
        means: Option<&[f64]>,
    ) -> Result<Self, AblateError> {
        let mean = |&place: &usize| {
            let mean = means.and_then(|means| means.get(place));
            mean.copied().ok_or_else(|| AblateError::Empty {
                what: format!("no mean over the sample is known at {site}, place {place}"),
            })
        };
        let mean: Vec<f64> = places.iter().map(mean).collect::<Result<_, _>>()?;
        let places: Vec<i64> = places.iter().map(|&place| place as i64).collect();
        Ok(Self {
            site,
            places: Tensor::f_from_slice(&places)?.f_to_device(model.device())?,
            mean: Tensor::f_from_slice(&mean)?
                .f_to_kind(model.dtype())?
                .f_to_device(model.device())?,
        })
    }
}

/// Hooks of a batch in which each text has a change of its own.
pub(crate) struct ReplaceEach<'r>(pub(crate) &'r [Replaced]);

impl Hooks for ReplaceEach<'_> {
    fn wants(&self, site: Site) -> bool {
        let mut channels = self.0.iter().flat_map(|replaced| &replaced.channels);
        channels.any(|channels| channels.site == site)
    }

    /// In the memory of `value`, `[batch, pos, width]`: it was made for this site, and nothing else knows of it.
    fn at(&mut self, site: Site, value: Tensor) -> Result<Tensor, HookError> {
        for (text, replaced) in self.0.iter().enumerate() {
            for Channels { places, mean, .. } in replaced.channels.iter().filter(|c| c.site == site)
            {
                let mut of_text = value.f_get(text as i64)?; // [pos, width]
                let chosen = of_text.f_index_select(-1, places)?;
                let new = match replaced.dose {
                    Dose::Mean => mean.f_expand_as(&chosen)?.f_contiguous()?,
                    Dose::Scale(factor) => chosen.f_mul_scalar(factor)?,
                    Dose::ClipAtMean => chosen.f_minimum(mean)?,
                };
                let _ = of_text.f_index_copy_(-1, places, &new)?;
            }
        }
        Ok(value)
    }
}
