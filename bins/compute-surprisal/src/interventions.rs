//! The interventions of a checkpoint: names from the configuration, neurons and values from the step.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use neox_core::Model;
use neuron_ablate::{
    Activity, Intervention, LayerMeans, NeuronId, NeuronSite, Operation, output_norms,
};
use neuron_select::{
    Candidate, ControlKind, ControlOptions, Controls, MatchOn, Pool, Push, TraitBalance,
};
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
    /// Limited to the range from the first to the second.
    Clamp([f64; 2]),
    /// Activation 1.
    Full,
    /// Activation times a factor.
    Scaled(f64),
    /// The same done to random neurons of the same layer.
    Random(ControlSpec),
    /// The same done to neurons like the selected ones (`controls.match`), to the selected ones with each exchanged for one alike or kept,
    /// and to the selected ones that have some alike.
    Matched(ControlSpec),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ControlSpec {
    pub(crate) like: Box<InterventionSpec>,
    /// `controls.draws`, if it does not say it.
    #[serde(default)]
    pub(crate) draws: Option<usize>,
}

impl ControlSpec {
    fn draws(&self) -> usize {
        self.draws.unwrap_or_default()
    }
}

/// What a named intervention is.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// `base`, `zero`, `scaled`, ...
    pub(crate) operation: String,
    /// Whose activations change: `none`, `selected`, `random`, `matched`, `exchanged` or `matched-selection`.
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
            Self::Clamp([low, high]) => format!("clamp-{low}-to-{high}"),
            Self::Full => "full".into(),
            Self::Scaled(factor) => format!("scaled-{factor}"),
            Self::Random(controls) => format!("random-{}", controls.like.name()),
            Self::Matched(controls) => format!("matched-{}", controls.like.name()),
        }
    }

    /// What it is with the number of draws that the configuration has for all.
    pub(crate) fn with_draws(mut self, draws: usize) -> Self {
        if let Self::Random(controls) | Self::Matched(controls) = &mut self {
            controls.draws.get_or_insert(draws);
        }
        self
    }

    /// The kind of controls it asks for, and for what.
    pub(crate) fn controls(&self) -> Option<(ControlKind, &ControlSpec)> {
        match self {
            Self::Random(controls) => Some((ControlKind::Random, controls)),
            Self::Matched(controls) => Some((ControlKind::Matched, controls)),
            _ => None,
        }
    }

    /// Names of what is measured under this name: one, or one per draw.
    pub(crate) fn names(&self) -> Vec<String> {
        match self.controls() {
            Some((_, controls)) => numbered(&self.name(), controls.draws()).collect(),
            None => vec![self.name()],
        }
    }

    /// Names of the sets that matched controls are tested with, one per draw.
    pub(crate) fn exchanged(&self) -> Vec<String> {
        match self {
            Self::Matched(controls) => {
                let name = format!("exchanged-{}", controls.like.name());
                numbered(&name, controls.draws()).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Name of the selected neurons that matched controls are held against.
    pub(crate) fn matched_selection(&self) -> Option<String> {
        match self {
            Self::Matched(controls) => Some(format!("matched-selection-{}", controls.like.name())),
            _ => None,
        }
    }

    /// What each of all the names it stands for is, in columns.
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
            Self::Clamp(_) => "clamp".to_owned(),
            other => other.name(),
        };
        let is_control = self.controls().is_some();
        let of = |names: Vec<String>, neurons: &'static str, is_drawn: bool| {
            let operation = operation.clone();
            (0u32..).zip(names).map(move |(draw, name)| {
                let facts = Facts {
                    operation: operation.clone(),
                    neurons,
                    dose,
                    draw: is_drawn.then_some(draw),
                };
                (name, facts)
            })
        };
        let selection = self.matched_selection().into_iter().collect();
        of(self.names(), neurons, is_control)
            .chain(of(self.exchanged(), "exchanged", true))
            .chain(of(selection, "matched-selection", false))
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
            Self::Clamp([low, high]) if !(low <= high && low.is_finite() && high.is_finite()) => {
                bail!(
                    "`clamp` has the range {low} to {high}, expected two finite numbers, the lower one first"
                )
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
                if controls.draws == Some(0) {
                    bail!("`{}`: `draws` is 0, expected at least 1", self.name());
                }
                controls.like.check()
            }
            _ => Ok(()),
        }
    }
}

fn numbered(name: &str, draws: usize) -> impl Iterator<Item = String> + use<> {
    let name = name.to_owned();
    (0..draws).map(move |draw| format!("{name}-{draw}"))
}

/// What the interventions of a checkpoint are made from.
pub(crate) struct Sources<'s> {
    pub(crate) model: &'s Model,
    pub(crate) site: NeuronSite,
    pub(crate) neurons: &'s [NeuronId],
    /// Mean activations of the neurons' layers, where an intervention needs them.
    pub(crate) means: Option<LayerMeans>,
    /// What all neurons of these layers do, where controls are matched on it.
    pub(crate) activities: BTreeMap<usize, Vec<Activity>>,
    pub(crate) controls: &'s ControlOptions,
    pub(crate) seed: u64,
}

/// The control sets of one entry of the list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Drawn {
    /// Name of each intervention and its neurons.
    pub(crate) sets: Vec<(String, Vec<String>)>,
    /// Selected neurons that have no control.
    pub(crate) unmatched: Vec<String>,
    pub(crate) balance: Vec<TraitBalance>,
    /// [`Controls::matched_spread`].
    pub(crate) matched_spread: f64,
}

/// The interventions of a checkpoint by name, and the control sets by entry of the list.
#[derive(Debug, Default)]
pub(crate) struct Built {
    pub(crate) interventions: BTreeMap<String, Intervention>,
    pub(crate) drawn: BTreeMap<String, Drawn>,
}

impl Sources<'_> {
    /// All interventions of a list; those of matched controls are left out where no selected neuron has one.
    pub(crate) fn build(&self, list: &[InterventionSpec]) -> anyhow::Result<Built> {
        let (layers, d_mlp) = (self.last_layer() + 1, self.model.config().intermediate_size);
        let exists = |n: &&NeuronId| n.layer < layers && (n.neuron as i64) < d_mlp;
        if let Some(neuron) = self.neurons.iter().find(|n| !exists(n)) {
            bail!(
                "there is no neuron {neuron}: the model has layers 0 to {} of {d_mlp} neurons",
                layers - 1
            );
        }
        let mut built = Built::default();
        for spec in list {
            match spec.controls() {
                _ if *spec == InterventionSpec::Base => built.add("base", Intervention::base()),
                Some((kind, controls)) => self.controls(spec, kind, controls, &mut built)?,
                None => {
                    let name = spec.name();
                    built.add(&name, self.one(spec, name.clone(), self.neurons.to_vec())?);
                }
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
            InterventionSpec::Clamp([low, high]) => Operation::Clamp {
                low: *low,
                high: *high,
            },
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
        spec: &InterventionSpec,
        kind: ControlKind,
        controls: &ControlSpec,
        built: &mut Built,
    ) -> anyhow::Result<()> {
        let options = ControlOptions {
            kinds: vec![kind],
            draws: controls.draws(),
            ..self.controls.clone()
        };
        let drawn: Controls = options
            .draw(self.neurons, &self.pool(&controls.like)?, self.seed)
            .with_context(|| format!("failed to draw control sets for `{}`", spec.name()))?;
        let sets = drawn.sets.iter().map(|set| set.neurons.clone());
        let mut named: Vec<(String, Vec<NeuronId>)> = spec.names().into_iter().zip(sets).collect();
        let exchanged = drawn.exchanged(options.draws, self.seed);
        named.extend(spec.exchanged().into_iter().zip(exchanged));
        if let (Some(name), false) = (spec.matched_selection(), drawn.matched.is_empty()) {
            named.push((name, drawn.matched.clone()));
        }
        let in_words = |ids: &[NeuronId]| ids.iter().map(NeuronId::to_string).collect();
        let sets = named
            .iter()
            .map(|(name, ids)| (name.clone(), in_words(ids)));
        let record = Drawn {
            sets: sets.collect(),
            unmatched: in_words(&drawn.unmatched),
            matched_spread: drawn.matched_spread(),
            balance: drawn.balance,
        };
        built.drawn.insert(spec.name(), record);
        for (name, neurons) in named {
            built.add(&name, self.one(&controls.like, name.clone(), neurons)?);
        }
        Ok(())
    }

    /// Every neuron of the layers that the selection is in, with what controls are matched on: what an operation does to a neuron is how far
    /// its activations are from where it takes them.
    fn pool(&self, operation: &InterventionSpec) -> anyhow::Result<Pool> {
        let layers = layers_of(self.neurons);
        let mean = |id: NeuronId| {
            self.means
                .as_ref()?
                .neurons(id.layer)?
                .get(id.neuron)
                .copied()
        };
        if self.activities.is_empty() {
            let mut candidates = Vec::new();
            for layer in layers {
                let mean = self.means.as_ref().and_then(|means| means.neurons(layer));
                let norms = output_norms(self.model, layer)?;
                candidates.extend(Candidate::of_layer(layer, mean, &norms));
            }
            return Ok(Pool::ActivationAndNorm(candidates));
        }
        let towards = |id: NeuronId, activity: &Activity| match operation {
            InterventionSpec::Zero | InterventionSpec::Scaled(_) => 0.0,
            InterventionSpec::Full => 1.0,
            InterventionSpec::Clamp([low, high]) => {
                mean(id).unwrap_or(activity.mean).clamp(*low, *high)
            }
            _ => mean(id).unwrap_or(activity.mean),
        };
        let of_layers = self.activities.iter().flat_map(|(&layer, found)| {
            let ids = (0..).map(move |neuron| NeuronId { layer, neuron });
            ids.zip(found)
        });
        let candidate = |(neuron, activity): (NeuronId, &Activity)| Candidate {
            neuron,
            traits: Push {
                length: activity.change_length(towards(neuron, activity)),
                active_share: activity.active_share,
                active_loss: activity.active_loss,
            }
            .traits(),
        };
        Ok(Pool::Intervention(of_layers.map(candidate).collect()))
    }

    /// Mean activations at the intervention's site.
    fn means(&self, name: &str, neurons: &[NeuronId]) -> anyhow::Result<Vec<f64>> {
        if self.site == NeuronSite::Pre {
            bail!(
                "`{name}` takes the mean activation after the activation function: set `interventions.site` to `post`, or use `layer-mean`"
            );
        }
        let mean = |n: &NeuronId| {
            let of_layer = self.means.as_ref().and_then(|means| means.neurons(n.layer));
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

impl Built {
    fn add(&mut self, name: &str, intervention: Intervention) {
        self.interventions.insert(name.to_owned(), intervention);
    }
}

/// Whether it has to be seen what neurons do: controls are matched on it.
pub(crate) fn needs_activities(list: &[InterventionSpec], controls: &ControlOptions) -> bool {
    let matched = |spec: &InterventionSpec| matches!(spec, InterventionSpec::Matched(_));
    controls.match_on == MatchOn::Intervention && list.iter().any(matched)
}

/// The layers that have neurons of a list, ascending.
pub(crate) fn layers_of(neurons: &[NeuronId]) -> Vec<usize> {
    let mut layers: Vec<usize> = neurons.iter().map(|n| n.layer).collect();
    layers.sort_unstable();
    layers.dedup();
    layers
}
