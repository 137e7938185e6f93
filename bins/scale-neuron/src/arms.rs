//! What is scaled: rows of the unembedding under each law, neurons, and the controls of each.

use anyhow::bail;
use neox_core::Model;
use neuron_ablate::{
    MeanOver, NamedChange, NeuronId, NullSpace, RareTokens, Sample, ScalingLaw, WeightChange,
    mean_activations, output_norms,
};
use neuron_select::{Candidate, ControlKind, draw_controls};

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
    /// Other neurons of the layer.
    RandomNeurons,
    /// Other neurons, matched on mean activation and output norm.
    MatchedNeurons,
}

impl Control {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::RandomDirections => "random-directions",
            Self::RandomNeurons => "random-neurons",
            Self::MatchedNeurons => "matched-neurons",
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

/// Arms with their changes, in one order.
#[derive(Debug, Default)]
pub(crate) struct Arms {
    pub(crate) arms: Vec<Arm>,
    pub(crate) changes: Vec<NamedChange>,
}

/// What all arms are made from.
pub(crate) struct Setting<'a> {
    pub(crate) model: &'a Model,
    pub(crate) sample: &'a Sample,
    pub(crate) space: &'a NullSpace,
    pub(crate) draws: usize,
    pub(crate) seed: u64,
    pub(crate) batch: usize,
}

impl Arms {
    fn push(&mut self, arm: Arm, change: WeightChange) {
        self.changes.push(NamedChange {
            name: arm.name(),
            change,
        });
        self.arms.push(arm);
    }

    /// Rows of the unembedding under each law, and along random directions.
    pub(crate) fn add_rows(
        &mut self,
        setting: &Setting<'_>,
        rare: &RareTokens,
        laws: &[ScalingLaw],
        epsilon: f64,
    ) -> anyhow::Result<()> {
        for law in laws {
            let strengths = rare.strengths(*law, epsilon)?;
            let arm = Arm {
                scaled: "rows",
                law: Some(law.name()),
                control: None,
                draw: 0,
            };
            self.push(
                arm.clone(),
                setting.space.row_change(rare.ids(), &strengths, None)?,
            );
            for draw in 0..setting.draws {
                let random = setting.space.random(setting.seed, draw as u64)?;
                let control = Arm {
                    control: Some(Control::RandomDirections),
                    draw,
                    ..arm.clone()
                };
                self.push(
                    control,
                    setting
                        .space
                        .row_change(rare.ids(), &strengths, Some(&random))?,
                );
            }
        }
        Ok(())
    }

    /// Neurons, the same along random directions, and other neurons. `progress` hears of sequences read.
    pub(crate) fn add_neurons(
        &mut self,
        setting: &Setting<'_>,
        neurons: &[NeuronId],
        progress: &dyn Fn(usize),
    ) -> anyhow::Result<()> {
        let Setting {
            model,
            space,
            draws,
            seed,
            ..
        } = *setting;
        let layer = model.config().num_hidden_layers - 1;
        if let Some(neuron) = neurons.iter().find(|neuron| neuron.layer != layer) {
            bail!(
                "neuron {neuron} is not in the last MLP layer, {layer}: the trade-off over all factors is a closed form of that layer alone (`ablate-unigram` and `compute-surprisal` scale the activations of neurons of any layer, at the factors that you name)"
            );
        }
        let indices: Vec<usize> = neurons.iter().map(|neuron| neuron.neuron).collect();
        let arm = Arm {
            scaled: "neurons",
            law: None,
            control: None,
            draw: 0,
        };
        self.push(arm.clone(), space.neuron_change(model, &indices, None)?);
        if draws == 0 {
            return Ok(());
        }
        for draw in 0..draws {
            let random = space.random(seed, draw as u64)?;
            let control = Arm {
                control: Some(Control::RandomDirections),
                draw,
                ..arm.clone()
            };
            self.push(
                control,
                space.neuron_change(model, &indices, Some(&random))?,
            );
        }
        let means = mean_activations(
            model,
            setting.sample,
            MeanOver::NotBos,
            setting.batch,
            &|more, _| progress(more),
        )?;
        let norms = output_norms(model, layer)?;
        let candidates: Vec<_> = Candidate::of_layer(layer, Some(&means), &norms).collect();
        for (kind, control) in [
            (ControlKind::Random, Control::RandomNeurons),
            (ControlKind::Matched, Control::MatchedNeurons),
        ] {
            for set in draw_controls(kind, neurons, &candidates, draws, seed)? {
                let others: Vec<usize> = set.neurons.iter().map(|n| n.neuron).collect();
                let control = Arm {
                    control: Some(control),
                    draw: set.draw,
                    ..arm.clone()
                };
                self.push(control, space.neuron_change(model, &others, None)?);
            }
        }
        Ok(())
    }
}
