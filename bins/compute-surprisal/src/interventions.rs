//! The interventions of a checkpoint: names from the configuration, neurons and values from the step.

use anyhow::{Context, bail};
use neox_core::Model;
use neuron_ablate::{Intervention, LayerMeans, NeuronId, NeuronSite, Operation, output_norms};
use neuron_select::{Candidate, ControlKind, draw_controls};
use serde::{Deserialize, Serialize};

/// One entry of `interventions.list`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum InterventionSpec {
    /// The unchanged model.
    Base,
    /// Activation 0.
    Zero,
    /// The mean activation over the corpus.
    Mean,
    /// The mean over the layer's neurons at the same position.
    LayerMean,
    /// At most the mean activation over the corpus.
    Clip,
    /// Activation 1.
    Full,
    /// Activation times a factor.
    Scaled(f64),
    /// The same done to random neurons of the same layer.
    Random(Controls),
    /// The same done to neurons like the selected ones in mean activation and output norm.
    Matched(Controls),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Controls {
    pub(crate) like: Box<InterventionSpec>,
    pub(crate) draws: usize,
}

/// What a named intervention is.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// `base`, `zero`, `scaled`, ...
    pub(crate) operation: String,
    /// Whose activations change: `none`, `selected`, `random` or `matched`.
    pub(crate) neurons: &'static str,
    /// The factor of `scaled`.
    pub(crate) dose: Option<f64>,
    /// Of a control set, from 0.
    pub(crate) draw: Option<u32>,
}

impl InterventionSpec {
    /// The name in tables; of control sets, without the number of the draw.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Base => "base".into(),
            Self::Zero => "zero".into(),
            Self::Mean => "mean".into(),
            Self::LayerMean => "layer-mean".into(),
            Self::Clip => "clip".into(),
            Self::Full => "full".into(),
            Self::Scaled(factor) => format!("scaled-{factor}"),
            Self::Random(controls) => format!("random-{}", controls.like.name()),
            Self::Matched(controls) => format!("matched-{}", controls.like.name()),
        }
    }

    /// Names of all it stands for: one, or one per draw.
    pub(crate) fn names(&self) -> Vec<String> {
        match self {
            Self::Random(controls) | Self::Matched(controls) => (0..controls.draws)
                .map(|draw| format!("{}-{draw}", self.name()))
                .collect(),
            _ => vec![self.name()],
        }
    }

    /// What each of its names stands for, in columns.
    pub(crate) fn facts(&self) -> Vec<(String, Facts)> {
        let (operation, neurons) = match self {
            Self::Base => (self, "none"),
            Self::Random(controls) => (&*controls.like, "random"),
            Self::Matched(controls) => (&*controls.like, "matched"),
            operation => (operation, "selected"),
        };
        let dose = match operation {
            Self::Scaled(factor) => Some(*factor),
            _ => None,
        };
        let operation = match operation {
            Self::Scaled(_) => "scaled".to_owned(),
            other => other.name(),
        };
        let is_control = matches!(self, Self::Random(_) | Self::Matched(_));
        (0u32..)
            .zip(self.names())
            .map(|(draw, name)| {
                let facts = Facts {
                    operation: operation.clone(),
                    neurons,
                    dose,
                    draw: is_control.then_some(draw),
                };
                (name, facts)
            })
            .collect()
    }

    /// Whether mean activations are needed.
    pub(crate) fn needs_mean(&self) -> bool {
        match self {
            Self::Mean | Self::Clip | Self::Matched(_) => true,
            Self::Random(controls) => controls.like.needs_mean(),
            _ => false,
        }
    }

    /// Whether neurons are needed.
    pub(crate) fn needs_neurons(&self) -> bool {
        *self != Self::Base
    }

    /// Refuses what makes no sense.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        match self {
            Self::Scaled(factor) if !factor.is_finite() => {
                bail!("`scaled` has the factor {factor}, expected a finite number")
            }
            Self::Random(controls) | Self::Matched(controls) => {
                if matches!(
                    *controls.like,
                    Self::Base | Self::Random(_) | Self::Matched(_)
                ) {
                    bail!(
                        "`{}`: a control set needs an operation, such as `like: zero`",
                        self.name()
                    );
                }
                if controls.draws == 0 {
                    bail!("`{}`: `draws` is 0, expected at least 1", self.name());
                }
                controls.like.check()
            }
            _ => Ok(()),
        }
    }
}

/// What the interventions of a checkpoint are made from.
pub(crate) struct Sources<'s> {
    pub(crate) model: &'s Model,
    pub(crate) site: NeuronSite,
    pub(crate) neurons: &'s [NeuronId],
    /// Mean activations of the neurons' layers, where an intervention needs them.
    pub(crate) means: Option<&'s LayerMeans>,
    pub(crate) seed: u64,
}

impl Sources<'_> {
    /// All interventions of a list, by name.
    pub(crate) fn build(&self, list: &[InterventionSpec]) -> anyhow::Result<Vec<Intervention>> {
        let (layers, d_mlp) = (self.last_layer() + 1, self.model.config().intermediate_size);
        let exists = |n: &&NeuronId| n.layer < layers && (n.neuron as i64) < d_mlp;
        if let Some(neuron) = self.neurons.iter().find(|n| !exists(n)) {
            bail!(
                "there is no neuron {neuron}: the model has layers 0 to {} of {d_mlp} neurons",
                layers - 1
            );
        }
        let mut built = Vec::new();
        for spec in list {
            match spec {
                InterventionSpec::Base => built.push(Intervention::base()),
                InterventionSpec::Random(controls) => {
                    self.controls(ControlKind::Random, spec, controls, &mut built)?
                }
                InterventionSpec::Matched(controls) => {
                    self.controls(ControlKind::Matched, spec, controls, &mut built)?
                }
                _ => built.push(self.one(spec, spec.name(), self.neurons.to_vec())?),
            }
        }
        Ok(built)
    }

    fn one(
        &self,
        spec: &InterventionSpec,
        name: String,
        neurons: Vec<NeuronId>,
    ) -> anyhow::Result<Intervention> {
        let operation = match spec {
            InterventionSpec::Zero => Operation::Set(vec![0.0; neurons.len()]),
            InterventionSpec::Full => Operation::Set(vec![1.0; neurons.len()]),
            InterventionSpec::Mean => Operation::Set(self.means(&name, &neurons)?),
            InterventionSpec::Clip => Operation::Clip(self.means(&name, &neurons)?),
            InterventionSpec::LayerMean => Operation::LayerMean,
            InterventionSpec::Scaled(factor) => Operation::Scale(*factor),
            InterventionSpec::Base | InterventionSpec::Random(_) | InterventionSpec::Matched(_) => {
                bail!("`{name}` is no operation on neurons")
            }
        };
        Ok(Intervention::new(name, self.site, neurons, operation)?)
    }

    fn controls(
        &self,
        kind: ControlKind,
        spec: &InterventionSpec,
        controls: &Controls,
        built: &mut Vec<Intervention>,
    ) -> anyhow::Result<()> {
        let name = spec.name();
        let candidates = self.candidates()?;
        let sets = draw_controls(kind, self.neurons, &candidates, controls.draws, self.seed)
            .with_context(|| format!("failed to draw control sets for `{name}`"))?;
        for set in sets {
            let name = format!("{name}-{}", set.draw);
            built.push(self.one(&controls.like, name, set.neurons)?);
        }
        Ok(())
    }

    /// Every neuron of the layers that the selection is in.
    fn candidates(&self) -> anyhow::Result<Vec<Candidate>> {
        let mut candidates = Vec::new();
        for layer in layers_of(self.neurons) {
            let (mean, norms) = (
                self.means.and_then(|means| means.neurons(layer)),
                output_norms(self.model, layer)?,
            );
            candidates.extend(Candidate::of_layer(layer, mean, &norms));
        }
        Ok(candidates)
    }

    /// Mean activations at the intervention's site.
    fn means(&self, name: &str, neurons: &[NeuronId]) -> anyhow::Result<Vec<f64>> {
        if self.site == NeuronSite::Pre {
            bail!(
                "`{name}` takes the mean activation after the activation function: set `interventions.site` to `post`, or use `layer-mean`"
            );
        }
        let mean = |n: &NeuronId| {
            let of_layer = self.means.and_then(|means| means.neurons(n.layer));
            let mean = of_layer.and_then(|of_layer| of_layer.get(n.neuron));
            mean.copied()
                .with_context(|| format!("`{name}` needs the mean activation of neuron {n}"))
        };
        neurons.iter().map(mean).collect()
    }

    fn last_layer(&self) -> usize {
        self.model.config().num_hidden_layers - 1
    }
}

/// The layers that have neurons of a list, ascending.
pub(crate) fn layers_of(neurons: &[NeuronId]) -> Vec<usize> {
    let mut layers: Vec<usize> = neurons.iter().map(|n| n.layer).collect();
    layers.sort_unstable();
    layers.dedup();
    layers
}
