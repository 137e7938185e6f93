//! Interventions on sets of neurons: what their activations are replaced by, and where.
//!
//! An intervention on the last layer alone changes nothing before the last MLP, so that any number
//! of them can be read off one forward (see [`Scorer`](crate::Scorer)); one on another layer is a
//! [`Hooks`] implementation and runs a forward of its own.

use std::collections::BTreeMap;

use neox_core::{Activation, HookError, Hooks, Model, Site};
use neuron_id::NeuronId;
use serde::{Deserialize, Serialize};
use tch::{Kind, TchError, Tensor};

/// Why an intervention is not possible.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InterventionError {
    /// Text that is not `layer.head`.
    #[error("`{text}` is not a head: expected `layer.head` as text, such as \"5.10\"")]
    HeadId {
        /// What was found.
        text: String,
    },
    /// A neuron that the model does not have.
    #[error(
        "intervention `{name}`: there is no neuron {neuron}; the model has layers 0 to {last_layer} of {d_mlp} neurons"
    )]
    NoSuchNeuron {
        /// The intervention.
        name: String,
        /// The neuron.
        neuron: NeuronId,
        /// Last layer of the model.
        last_layer: usize,
        /// Neurons per layer.
        d_mlp: usize,
    },
    /// A site that a gated MLP does not have.
    #[error(
        "intervention `{name}` is before the activation function: a gated MLP has two values there, so set the site to `post`"
    )]
    GatedSite {
        /// The intervention.
        name: String,
    },
    /// A neuron that is named twice.
    #[error("intervention `{name}` names neuron {neuron} twice")]
    Twice {
        /// The intervention.
        name: String,
        /// The neuron.
        neuron: NeuronId,
    },
    /// A number of values that is not the number of neurons.
    #[error("intervention `{name}` has {values} values for {neurons} neurons")]
    Values {
        /// The intervention.
        name: String,
        /// Number of values.
        values: usize,
        /// Number of neurons.
        neurons: usize,
    },
    /// A value or factor that is not a finite number.
    #[error("intervention `{name}` has the value {value}, expected a finite number")]
    NotFinite {
        /// The intervention.
        name: String,
        /// The value.
        value: f64,
    },
    /// What a last layer alone cannot be asked for.
    #[error(
        "intervention `{name}` is not after the activation function of layer {layer}, and of this model there is that layer alone"
    )]
    LastLayerOnly {
        /// The intervention.
        name: String,
        /// The layer that there is.
        layer: usize,
    },
    /// Bounds between which no finite number is.
    #[error(
        "intervention `{name}` clamps to {low} to {high}: expected two numbers, the lower one first, of which only the far ends may be infinite"
    )]
    Range {
        /// The intervention.
        name: String,
        /// The lower bound.
        low: f64,
        /// The upper bound.
        high: f64,
    },
}

/// Where activations are replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NeuronSite {
    /// After the activation function: what the output weights multiply.
    #[default]
    Post,
    /// Before it, at the output of `mlp.dense_h_to_4h`, as in the package of Liu et al. (2025).
    Pre,
}

/// What the activation `a` of a neuron becomes.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Operation {
    /// A fixed value per neuron: 0 for zero ablation, the corpus mean for mean ablation, 1 for `full`.
    Set(Vec<f64>),
    /// The mean over **all** neurons of the layer at the same position, as in the package of Liu
    /// et al. (2025); it is no corpus mean.
    LayerMean,
    /// `factor * a`.
    Scale(f64),
    /// At most a ceiling per neuron, `min(a, ceiling)`.
    Clip(Vec<f64>),
    /// Limited to a range, the same for all neurons: `max(low, min(a, high))`.
    Clamp {
        /// The least value; negative infinity for none.
        low: f64,
        /// The greatest value; infinity for none.
        high: f64,
    },
}

/// A named operation on a set of neurons.
///
/// # Examples
/// ```
/// use neuron_ablate::{Intervention, NeuronSite, Operation};
/// let neurons = vec!["3.17".parse()?, "3.42".parse()?];
/// let zero = Intervention::new("zero", NeuronSite::Post, neurons, Operation::Set(vec![0.0; 2]))?;
/// assert_eq!(zero.neurons().len(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Intervention {
    name: String,
    site: NeuronSite,
    neurons: Vec<NeuronId>,
    operation: Operation,
}

impl Intervention {
    /// The unchanged model.
    #[must_use]
    pub fn base() -> Self {
        Self {
            name: "base".into(),
            site: NeuronSite::Post,
            neurons: Vec::new(),
            operation: Operation::Scale(1.0),
        }
    }

    /// Takes a set of neurons and what is done with them.
    ///
    /// # Errors
    /// - [`InterventionError::Twice`] if a neuron is repeated
    /// - [`InterventionError::Values`] if the operation has not one value per neuron
    /// - [`InterventionError::NotFinite`] for a value or factor that is NaN or infinite
    /// - [`InterventionError::Range`] for bounds of a clamp that are NaN, in the wrong order, or leave no finite value
    pub fn new(
        name: impl Into<String>,
        site: NeuronSite,
        neurons: Vec<NeuronId>,
        operation: Operation,
    ) -> Result<Self, InterventionError> {
        let name = name.into();
        let mut sorted = neurons.clone();
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(InterventionError::Twice {
                name,
                neuron: pair[0],
            });
        }
        let values = match &operation {
            Operation::Set(values) | Operation::Clip(values) => values.as_slice(),
            Operation::Scale(factor) => std::slice::from_ref(factor),
            Operation::LayerMean | Operation::Clamp { .. } => &[],
        };
        if let Some(&value) = values.iter().find(|value| !value.is_finite()) {
            return Err(InterventionError::NotFinite { name, value });
        }
        if let Operation::Clamp { low, high } = operation
            && !(low <= high && low < f64::INFINITY && high > f64::NEG_INFINITY)
        {
            return Err(InterventionError::Range { name, low, high });
        }
        match &operation {
            Operation::Set(values) | Operation::Clip(values) if values.len() != neurons.len() => {
                Err(InterventionError::Values {
                    name,
                    values: values.len(),
                    neurons: neurons.len(),
                })
            }
            _ => Ok(Self {
                name,
                site,
                neurons,
                operation,
            }),
        }
    }

    /// The name results go by.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The neurons, in the order of the operation's values.
    #[must_use]
    pub fn neurons(&self) -> &[NeuronId] {
        &self.neurons
    }

    /// Checks that the model has the neurons and their site.
    pub(crate) fn check(&self, model: &Model) -> Result<(), InterventionError> {
        let (layers, d_mlp) = (
            model.config().num_hidden_layers,
            model.config().intermediate_size as usize,
        );
        if self.site == NeuronSite::Pre && model.config().gated_mlp {
            return Err(InterventionError::GatedSite {
                name: self.name.clone(),
            });
        }
        match self
            .neurons
            .iter()
            .find(|n| n.layer >= layers || n.neuron >= d_mlp)
        {
            None => Ok(()),
            Some(&neuron) => Err(InterventionError::NoSuchNeuron {
                name: self.name.clone(),
                neuron,
                last_layer: layers - 1,
                d_mlp,
            }),
        }
    }

    /// The same for a model of which there is the last layer alone, of `d_mlp` neurons.
    pub(crate) fn check_last(&self, layer: usize, d_mlp: usize) -> Result<(), InterventionError> {
        let name = self.name.clone();
        let on_site = self.site == NeuronSite::Post && self.only_in(layer);
        if !(on_site || self.neurons.is_empty()) {
            return Err(InterventionError::LastLayerOnly { name, layer });
        }
        match self.neurons.iter().find(|n| n.neuron >= d_mlp) {
            None => Ok(()),
            Some(&neuron) => Err(InterventionError::NoSuchNeuron {
                name,
                neuron,
                last_layer: layer,
                d_mlp,
            }),
        }
    }

    /// Whether all neurons are in `layer`.
    pub(crate) fn only_in(&self, layer: usize) -> bool {
        self.neurons.iter().all(|n| n.layer == layer)
    }

    pub(crate) fn site(&self) -> NeuronSite {
        self.site
    }

    /// The part of the intervention in one layer.
    pub(crate) fn in_layer(&self, layer: usize, like: &Tensor) -> Result<LayerPart, TchError> {
        let places: Vec<usize> = (0..self.neurons.len())
            .filter(|&i| self.neurons[i].layer == layer)
            .collect();
        let values = |all: &[f64]| {
            let values: Vec<f64> = places.iter().map(|&i| all[i]).collect();
            Tensor::f_from_slice(&values)?
                .f_to_kind(like.f_kind()?)?
                .f_to_device(like.device())
        };
        let operation = match &self.operation {
            Operation::Set(all) => LayerOperation::Set(values(all)?),
            Operation::LayerMean => LayerOperation::LayerMean,
            Operation::Scale(factor) => LayerOperation::Scale(*factor),
            Operation::Clip(all) => LayerOperation::Clip(values(all)?),
            Operation::Clamp { low, high } => LayerOperation::Clamp(*low, *high),
        };
        let index: Vec<i64> = places
            .iter()
            .map(|&i| self.neurons[i].neuron as i64)
            .collect();
        Ok(LayerPart {
            index: Tensor::f_from_slice(&index)?.f_to_device(like.device())?,
            operation,
        })
    }
}

/// An intervention's neurons in one layer, as tensors.
#[derive(Debug)]
pub(crate) struct LayerPart {
    /// `[k]`.
    pub(crate) index: Tensor,
    operation: LayerOperation,
}

#[derive(Debug)]
enum LayerOperation {
    Set(Tensor),
    LayerMean,
    Scale(f64),
    Clip(Tensor),
    Clamp(f64, f64),
}

impl LayerPart {
    /// New values of the chosen neurons.
    ///
    /// # Shapes
    /// - `layer`: `[..., d_mlp]`, at the intervention's site; returns `[..., k]`
    pub(crate) fn apply(&self, layer: &Tensor) -> Result<Tensor, TchError> {
        let chosen = layer.f_index_select(-1, &self.index)?;
        match &self.operation {
            LayerOperation::Set(values) => values.f_expand_as(&chosen),
            LayerOperation::LayerMean => layer
                .f_mean_dim(-1, true, Kind::Float)?
                .f_to_kind(layer.f_kind()?)?
                .f_expand_as(&chosen),
            LayerOperation::Scale(factor) => chosen.f_mul_scalar(*factor),
            LayerOperation::Clip(ceiling) => chosen.f_minimum(ceiling),
            LayerOperation::Clamp(low, high) => chosen.f_clamp(*low, *high),
        }
    }
}

/// Runs an intervention inside the forward pass, at any layers.
#[derive(Debug)]
pub struct InterventionHooks<'i> {
    intervention: &'i Intervention,
    parts: BTreeMap<usize, Option<LayerPart>>,
}

impl<'i> InterventionHooks<'i> {
    /// Hooks of one intervention.
    #[must_use]
    pub fn new(intervention: &'i Intervention) -> Self {
        let parts = intervention
            .neurons
            .iter()
            .map(|n| (n.layer, None))
            .collect();
        Self {
            intervention,
            parts,
        }
    }

    fn layer_of(&self, site: Site) -> Option<usize> {
        match (self.intervention.site, site) {
            (NeuronSite::Post, Site::MlpPost(layer)) | (NeuronSite::Pre, Site::MlpPre(layer)) => {
                Some(layer)
            }
            _ => None,
        }
    }
}

impl Hooks for InterventionHooks<'_> {
    fn wants(&self, site: Site) -> bool {
        self.layer_of(site)
            .is_some_and(|layer| self.parts.contains_key(&layer))
    }

    fn at(&mut self, site: Site, value: Tensor) -> Result<Tensor, HookError> {
        let Some(layer) = self.layer_of(site) else {
            return Ok(value);
        };
        let Some(slot) = self.parts.get_mut(&layer) else {
            return Ok(value);
        };
        let part = match slot {
            Some(part) => part,
            None => slot.insert(self.intervention.in_layer(layer, &value)?),
        };
        Ok(value.f_index_copy(-1, &part.index, &part.apply(&value)?.f_contiguous()?)?)
    }
}

/// The activation function on single values, as the model's MLP applies it.
pub(crate) fn activate(function: Activation, x: &Tensor) -> Result<Tensor, TchError> {
    match function {
        Activation::Gelu => x.f_gelu("none"),
        Activation::GeluTanh => x.f_gelu("tanh"),
        Activation::Relu => x.f_relu(),
        Activation::Silu => x.f_silu(),
        Activation::QuickGelu => x.f_mul(&x.f_mul_scalar(1.702)?.f_sigmoid()?),
        other => Err(TchError::Torch(format!(
            "activation function {other:?} is not known to interventions before it"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_interventions_are_errors() {
        let neuron = NeuronId {
            layer: 3,
            neuron: 7,
        };
        let new = |neurons, operation| Intervention::new("x", NeuronSite::Post, neurons, operation);
        assert!(matches!(
            new(vec![neuron, neuron], Operation::Scale(0.0)),
            Err(InterventionError::Twice { .. })
        ));
        for broken in [
            Operation::Set(vec![f64::NAN]),
            Operation::Clip(vec![f64::INFINITY]),
            Operation::Scale(f64::NAN),
        ] {
            assert!(matches!(
                new(vec![neuron], broken),
                Err(InterventionError::NotFinite { .. })
            ));
        }
        let (up, down) = (f64::INFINITY, f64::NEG_INFINITY);
        for (low, high) in [
            (0.5, 0.25),
            (f64::NAN, 1.0),
            (0.0, f64::NAN),
            (up, up),
            (down, down),
        ] {
            let refused = new(vec![neuron], Operation::Clamp { low, high });
            assert!(
                matches!(refused, Err(InterventionError::Range { .. })),
                "{low} to {high}"
            );
        }
        for (low, high) in [(0.25, 0.25), (-1.0, up), (down, 0.0), (down, up)] {
            assert!(new(vec![neuron], Operation::Clamp { low, high }).is_ok());
        }
        assert!(matches!(
            new(vec![neuron], Operation::Set(vec![])),
            Err(InterventionError::Values {
                values: 0,
                neurons: 1,
                ..
            })
        ));
    }
}
