//! Effects with intervals, alone and against controls.

use anyhow::Context;
use neuron_ablate::{ScalingEffects, ScalingMeasure, TargetGroup};
use neuron_select::rank_p;
use surprisal_metrics::{Bootstrap, Group, Interval};

use crate::arms::{Arm, Control};

/// One measure of one group of rows under one change and factor.
#[derive(Debug, Clone)]
pub(crate) struct Effect {
    /// Place of the arm.
    pub(crate) arm: usize,
    pub(crate) factor: f64,
    pub(crate) group: TargetGroup,
    pub(crate) measure: ScalingMeasure,
    pub(crate) rows: usize,
    pub(crate) clean: f64,
    /// `scaled - clean`.
    pub(crate) difference: f64,
    /// Documents (or sequences) that have rows of the group.
    pub(crate) clusters: usize,
    /// Its interval over clusters; none where fewer than eight have rows of the group.
    pub(crate) interval: Option<Interval>,
}

/// How much more an arm does than one kind of its controls.
#[derive(Debug, Clone)]
pub(crate) struct Contrast {
    pub(crate) arm: usize,
    pub(crate) control: Control,
    pub(crate) draws: usize,
    pub(crate) factor: f64,
    pub(crate) group: TargetGroup,
    pub(crate) measure: ScalingMeasure,
    pub(crate) rows: usize,
    /// Mean over the draws of the controls' own differences.
    pub(crate) of_controls: f64,
    /// Rank p value of the arm's difference among those of the draws.
    pub(crate) rank_p: Option<f64>,
    /// The arm's difference minus that, paired by cluster.
    pub(crate) excess: f64,
    /// Documents (or sequences) that have rows of the group.
    pub(crate) clusters: usize,
    /// Its interval over clusters; none where fewer than eight have rows of the group.
    pub(crate) interval: Option<Interval>,
}

/// Everything that was found.
#[derive(Debug)]
pub(crate) struct Results {
    pub(crate) arms: Vec<Arm>,
    pub(crate) effects: Vec<Effect>,
    pub(crate) contrasts: Vec<Contrast>,
}

fn mean_of(groups: &[Group]) -> anyhow::Result<f64> {
    Group::total(groups).mean().context("a group without rows")
}

impl Results {
    /// Groups without rows have no effects; `progress` hears of each arm.
    pub(crate) fn new(
        arms: Vec<Arm>,
        factors: &[f64],
        measured: &ScalingEffects,
        bootstrap: &Bootstrap,
        progress: &dyn Fn(),
    ) -> anyhow::Result<Self> {
        let (mut effects, mut contrasts) = (Vec::new(), Vec::new());
        for (a, arm) in arms.iter().enumerate() {
            for (f, &factor) in factors.iter().enumerate() {
                for group in TargetGroup::ALL {
                    let rows = measured.rows_in(group);
                    if rows == 0 {
                        continue;
                    }
                    for measure in ScalingMeasure::ALL {
                        let own = measured.difference(a, f, group, measure)?;
                        let clean = measured
                            .clean(group, measure)
                            .iter()
                            .map(|sums| sums.sum)
                            .sum::<f64>()
                            / rows as f64;
                        effects.push(Effect {
                            arm: a,
                            factor,
                            group,
                            measure,
                            rows,
                            clean,
                            difference: mean_of(&own)?,
                            clusters: Group::with_values(&own),
                            interval: bootstrap.mean(&own)?,
                        });
                        for control in [
                            Control::RandomDirections,
                            Control::RandomNeurons,
                            Control::MatchedNeurons,
                        ] {
                            let held: Vec<usize> = arms
                                .iter()
                                .enumerate()
                                .filter(|(_, c)| {
                                    arm.is_held_against(c) && c.control == Some(control)
                                })
                                .map(|(c, _)| c)
                                .collect();
                            if held.is_empty() {
                                continue;
                            }
                            let others: Vec<Vec<Group>> = held
                                .iter()
                                .map(|&c| measured.difference(c, f, group, measure))
                                .collect::<Result<_, _>>()?;
                            let mean = |i: usize| {
                                others.iter().map(|other| other[i].sum).sum::<f64>()
                                    / others.len() as f64
                            };
                            let of_controls = (0..own.len()).map(mean).sum::<f64>() / rows as f64;
                            let draws = others
                                .iter()
                                .map(|other| mean_of(other))
                                .collect::<anyhow::Result<Vec<f64>>>()?;
                            let rank_p = rank_p(mean_of(&own)?, &draws);
                            let excess: Vec<Group> = own
                                .iter()
                                .enumerate()
                                .map(|(i, own)| Group {
                                    sum: own.sum - mean(i),
                                    ..*own
                                })
                                .collect();
                            let interval = bootstrap.mean(&excess)?;
                            let excess = mean_of(&excess)?;
                            contrasts.push(Contrast {
                                arm: a,
                                control,
                                draws: held.len(),
                                factor,
                                group,
                                measure,
                                rows,
                                of_controls,
                                rank_p,
                                excess,
                                clusters: Group::with_values(&own),
                                interval,
                            });
                        }
                    }
                }
            }
            progress();
        }
        Ok(Self {
            arms,
            effects,
            contrasts,
        })
    }

    /// Arms that are no controls, with their places.
    pub(crate) fn treated(&self) -> impl Iterator<Item = (usize, &Arm)> {
        self.arms
            .iter()
            .enumerate()
            .filter(|(_, arm)| arm.control.is_none())
    }

    pub(crate) fn effect(
        &self,
        arm: usize,
        factor: f64,
        group: TargetGroup,
        measure: ScalingMeasure,
    ) -> Option<&Effect> {
        self.effects.iter().find(|e| {
            e.arm == arm && e.factor == factor && e.group == group && e.measure == measure
        })
    }

    pub(crate) fn contrast(
        &self,
        arm: usize,
        control: Control,
        factor: f64,
        group: TargetGroup,
        measure: ScalingMeasure,
    ) -> Option<&Contrast> {
        self.contrasts.iter().find(|c| {
            c.arm == arm
                && c.control == control
                && c.factor == factor
                && c.group == group
                && c.measure == measure
        })
    }
}
