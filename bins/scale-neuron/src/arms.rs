//! What is scaled: rows of the unembedding under each law, neurons, and the controls of each.

use std::collections::BTreeSet;

use anyhow::Context;
use neox_core::Model;
use neuron_ablate::{
    MeanOver, NamedChange, NeuronId, NullSpace, RareTokens, SampleStates, ScalingLaw, Subspace,
    WeightChange, activities, layer_means, output_norms,
};
use neuron_select::{
    Candidate, ControlKind, ControlOptions, Controls, MatchOn, Pool, Push, SelectError,
};

/// What a change stands for in the tables.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Arm {
    /// `rows` or `neurons`.
    pub(crate) scaled: &'static str,
    /// The law, for rows.
    pub(crate) law: Option<&'static str>,
    /// `None` for the null space itself.
    pub(crate) control: Option<Control>,
    pub(crate) draw: usize,
}

/// What a scaling is held against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    /// The same weights along a random subspace of the same dimension, by the same amount.
    RandomDirections,
    /// Other neurons of the same layers.
    RandomNeurons,
    /// Other neurons, matched as `controls.match` says.
    MatchedNeurons,
    /// The neurons, each exchanged for one alike or kept: what the test beside matched controls ranks them among.
    ExchangedNeurons,
    /// The neurons that have matched controls, where some have none: what these are held against.
    MatchedSelection,
}

impl Control {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::RandomDirections => "random-directions",
            Self::RandomNeurons => "random-neurons",
            Self::MatchedNeurons => "matched-neurons",
            Self::ExchangedNeurons => "exchanged-neurons",
            Self::MatchedSelection => "matched-selection",
        }
    }

    /// What changes are held against, in the order of the tables.
    pub(crate) const CONTRASTED: [Self; 3] = [
        Self::RandomDirections,
        Self::RandomNeurons,
        Self::MatchedNeurons,
    ];

    /// The controls among which a change ranks, and whose spread says how far one draw may be from another.
    pub(crate) fn ranks_among(self) -> Self {
        match self {
            Self::MatchedNeurons => Self::ExchangedNeurons,
            other => other,
        }
    }
}

impl Arm {
    /// What it is called in words.
    pub(crate) fn name(&self) -> String {
        let subject = match self.law {
            Some(law) => format!("{} ({law})", self.scaled),
            None => self.scaled.to_owned(),
        };
        match self.control {
            None => subject,
            Some(control) => format!("{subject}, {} {}", control.name(), self.draw),
        }
    }

    /// Whether `other` is a control of this arm.
    pub(crate) fn is_held_against(&self, other: &Self) -> bool {
        self.control.is_none()
            && other.control.is_some()
            && self.scaled == other.scaled
            && self.law == other.law
    }
}

/// Arms with their changes, `[arm]`.
#[derive(Debug, Default)]
pub(crate) struct Arms {
    pub(crate) arms: Vec<Arm>,
    pub(crate) changes: Vec<NamedChange>,
    /// The neurons that other neurons were drawn as controls of.
    pub(crate) drawn: Controls,
}

/// What all arms are made from.
pub(crate) struct Setting<'a> {
    pub(crate) model: &'a Model,
    /// Those of the measured sequences are kept.
    pub(crate) states: &'a SampleStates<'a>,
    pub(crate) space: &'a NullSpace,
    pub(crate) controls: &'a ControlOptions,
    /// The factors that controls are measured at.
    pub(crate) control_factors: &'a [f64],
    /// Random subspaces in the place of the null space, `[draw]`.
    pub(crate) random: &'a [Subspace],
    /// The sequences that are measured.
    pub(crate) sequences: &'a [usize],
    pub(crate) seed: u64,
}

impl Arms {
    fn push(&mut self, setting: &Setting<'_>, arm: Arm, change: WeightChange) {
        let change = NamedChange::new(arm.name(), change);
        self.changes.push(match arm.control {
            None => change,
            Some(_) => change.with_factors(setting.control_factors.to_vec()),
        });
        self.arms.push(arm);
    }

    /// Arms that are no controls, with their changes.
    pub(crate) fn treated(&self) -> impl Iterator<Item = (&Arm, &NamedChange)> {
        let all = self.arms.iter().zip(&self.changes);
        all.filter(|(arm, _)| arm.control.is_none())
    }

    /// Rows of the unembedding under each law, and along random directions.
    pub(crate) fn add_rows(
        &mut self,
        setting: &Setting<'_>,
        rare: &RareTokens,
        laws: &[ScalingLaw],
        epsilon: f64,
    ) -> anyhow::Result<()> {
        let rows = setting.space.rows(rare.ids())?;
        for law in laws {
            let strengths = rare.strengths(*law, epsilon)?;
            let arm = Arm {
                scaled: "rows",
                law: Some(law.name()),
                control: None,
                draw: 0,
            };
            self.push(setting, arm.clone(), rows.change(&strengths, None)?);
            for (draw, random) in setting.random.iter().enumerate() {
                let control = Arm {
                    control: Some(Control::RandomDirections),
                    draw,
                    ..arm.clone()
                };
                self.push(setting, control, rows.change(&strengths, Some(random))?);
            }
        }
        Ok(())
    }

    /// Neurons, the same along random directions, and other neurons. `progress` is told how many sequences were read.
    pub(crate) fn add_neurons(
        &mut self,
        setting: &Setting<'_>,
        neurons: &[NeuronId],
        progress: &dyn Fn(usize),
    ) -> anyhow::Result<()> {
        let Setting {
            model, space, seed, ..
        } = *setting;
        let draws = setting.controls.draws;
        let arm = Arm {
            scaled: "neurons",
            law: None,
            control: None,
            draw: 0,
        };
        let change = space.neuron_change(model, neurons, None)?;
        self.push(setting, arm.clone(), change);
        if draws == 0 {
            return Ok(());
        }
        for (draw, random) in setting.random.iter().enumerate() {
            let control = Arm {
                control: Some(Control::RandomDirections),
                draw,
                ..arm.clone()
            };
            let change = space.neuron_change(model, neurons, Some(random))?;
            self.push(setting, control, change);
        }
        let pool = pool(setting, &layers_of(neurons), progress)?;
        self.drawn = match setting.controls.draw(neurons, &pool, seed) {
            Err(err @ SelectError::Setting { .. }) => {
                return Err(err).context("failed to draw control neurons (`controls.caliper`)");
            }
            drawn => drawn.context(
                "failed to draw control neurons: shorten the list with `neurons.top`, or set `controls.draws=0`",
            )?,
        };
        let drawn = self.drawn.clone();
        let mut others = |control: Control, draw: usize, set: &[NeuronId]| {
            let control = Arm {
                control: Some(control),
                draw,
                ..arm.clone()
            };
            self.push(setting, control, space.neuron_change(model, set, None)?);
            anyhow::Ok(())
        };
        for set in &drawn.sets {
            let control = match set.kind {
                ControlKind::Random => Control::RandomNeurons,
                ControlKind::Matched => Control::MatchedNeurons,
            };
            others(control, set.draw, &set.neurons)?;
        }
        for (draw, set) in drawn.exchanged(draws, seed).iter().enumerate() {
            others(Control::ExchangedNeurons, draw, set)?;
        }
        if !drawn.matched.is_empty() && !drawn.unmatched.is_empty() {
            others(Control::MatchedSelection, 0, &drawn.matched)?;
        }
        Ok(())
    }
}

/// Layers of neurons, ascending.
pub(crate) fn layers_of(neurons: &[NeuronId]) -> Vec<usize> {
    let layers: BTreeSet<usize> = neurons.iter().map(|n| n.layer).collect();
    layers.into_iter().collect()
}

/// The neurons of some layers with what controls are matched on.
///
/// Scaling by `s` adds `(s - 1) a P w` to what the MLP writes, `P w` the part of the output weights in the null space: its length goes with
/// `sqrt(mean a^2) |P w|`, whatever the factor.
fn pool(setting: &Setting<'_>, layers: &[usize], progress: &dyn Fn(usize)) -> anyhow::Result<Pool> {
    let Setting { model, states, .. } = *setting;
    if setting.controls.match_on == MatchOn::ActivationAndNorm {
        let hear = |more, _| progress(more);
        let means = layer_means(states, (layers, &[]), MeanOver::NotBos, &hear)?;
        let mut candidates = Vec::new();
        for &layer in layers {
            let norms = output_norms(model, layer)?;
            candidates.extend(Candidate::of_layer(layer, means.neurons(layer), &norms));
        }
        return Ok(Pool::ActivationAndNorm(candidates));
    }
    let found = activities(states, setting.sequences, layers, progress)?;
    let mut candidates = Vec::new();
    for (layer, found) in found {
        let norms = output_norms(model, layer)?;
        let shares = setting.space.neuron_shares(model, layer)?;
        let of_layer = found.into_iter().zip(norms.iter().zip(shares)).enumerate();
        candidates.extend(of_layer.map(|(neuron, (activity, (norm, share)))| {
            let push = Push {
                length: activity.mean_square.sqrt() * norm * share.sqrt(),
                active_share: activity.active_share,
                active_loss: activity.active_loss,
            };
            Candidate {
                neuron: NeuronId { layer, neuron },
                traits: push.traits(),
            }
        }));
    }
    Ok(Pool::Intervention(candidates))
}
