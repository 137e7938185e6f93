//! Effects with intervals, alone and against controls.

use anyhow::Context;
use neuron_ablate::{NamedChange, ScalingEffects, ScalingMeasure, ScalingPlan, TargetGroup};
use neuron_select::{TraitBalance, q_values, rank_p};
use surprisal_metrics::{Bootstrap, Group, Interval};

use crate::arms::{Arm, Arms, Control};

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
    /// The arm's difference; beside matched controls that of its neurons that have some.
    pub(crate) change: f64,
    /// Mean over the draws of the controls' own differences.
    pub(crate) of_controls: f64,
    /// Its interval over clusters and draws; none where either are fewer than eight.
    pub(crate) of_controls_interval: Option<Interval>,
    /// The arm's difference minus that, paired by cluster.
    pub(crate) excess: f64,
    /// Its interval over clusters and draws, the arm a draw too.
    pub(crate) interval: Option<Interval>,
    /// Rank p value of the arm's difference among those of the draws; of matched neurons among sets with exchanged ones.
    pub(crate) p: Option<f64>,
    /// Benjamini-Hochberg q value over all contrasts of the measure with this kind of control.
    pub(crate) q: Option<f64>,
    /// Documents (or sequences) that have rows of the group.
    pub(crate) clusters: usize,
}

/// Everything that was found.
#[derive(Debug)]
pub(crate) struct Results {
    pub(crate) arms: Vec<Arm>,
    pub(crate) effects: Vec<Effect>,
    pub(crate) contrasts: Vec<Contrast>,
    /// How alike the neurons and their controls are.
    pub(crate) balance: Vec<TraitBalance>,
    /// [`neuron_select::Controls::matched_spread`].
    matched_spread: f64,
}

/// What was measured of each arm, at its factors.
pub(crate) struct Measured<'m> {
    pub(crate) plan: &'m ScalingPlan,
    /// `[arm]`
    pub(crate) changes: &'m [NamedChange],
    pub(crate) effects: &'m ScalingEffects,
}

/// One value of each row: at which factor, of which rows, which measure.
#[derive(Clone, Copy)]
struct Value {
    factor: f64,
    group: TargetGroup,
    measure: ScalingMeasure,
}

impl Measured<'_> {
    /// `scaled - clean` of an arm by cluster; none where the factor is not one of its own.
    fn of(&self, arm: usize, value: Value) -> anyhow::Result<Option<Vec<Group>>> {
        let mut factors = self.plan.factors_of(&self.changes[arm]).iter();
        let at = factors.position(|factor| *factor == value.factor);
        let of = at.map(|at| {
            let Value { group, measure, .. } = value;
            self.effects.difference(arm, at, group, measure)
        });
        Ok(of.transpose()?)
    }
}

fn mean_of(groups: &[Group]) -> anyhow::Result<f64> {
    Group::total(groups).mean().context("a group without rows")
}

impl Results {
    /// Groups without rows have no effects; `progress` hears of each arm.
    pub(crate) fn new(
        arms: &Arms,
        measured: Measured<'_>,
        bootstrap: &Bootstrap,
        progress: &dyn Fn(),
    ) -> anyhow::Result<Self> {
        let mut results = Self {
            arms: arms.arms.clone(),
            effects: Vec::new(),
            contrasts: Vec::new(),
            balance: arms.drawn.balance.clone(),
            matched_spread: arms.drawn.matched_spread(),
        };
        for arm in 0..results.arms.len() {
            for &factor in &measured.plan.factors {
                for group in TargetGroup::ALL {
                    let rows = measured.effects.rows_in(group);
                    for measure in ScalingMeasure::ALL.into_iter().filter(|_| rows > 0) {
                        let value = Value {
                            factor,
                            group,
                            measure,
                        };
                        results.add(arm, value, rows, &measured, bootstrap)?;
                    }
                }
            }
            progress();
        }
        results.adjust();
        Ok(results)
    }

    /// The effect of an arm, and its contrasts with controls.
    fn add(
        &mut self,
        arm: usize,
        value: Value,
        rows: usize,
        measured: &Measured<'_>,
        bootstrap: &Bootstrap,
    ) -> anyhow::Result<()> {
        let Some(own) = measured.of(arm, value)? else {
            return Ok(());
        };
        let Value {
            factor,
            group,
            measure,
        } = value;
        let clean = measured.effects.clean(group, measure);
        self.effects.push(Effect {
            arm,
            factor,
            group,
            measure,
            rows,
            clean: mean_of(&clean)?,
            difference: mean_of(&own)?,
            clusters: Group::with_values(&own),
            interval: bootstrap.mean(&own)?,
        });
        for control in Control::CONTRASTED {
            let of = |control: Control| -> anyhow::Result<Vec<Vec<Group>>> {
                let held = (0..self.arms.len()).filter(|&c| {
                    let other = &self.arms[c];
                    self.arms[arm].is_held_against(other) && other.control == Some(control)
                });
                let cells = held.filter_map(|c| measured.of(c, value).transpose());
                cells.collect()
            };
            let controls = of(control)?;
            if controls.is_empty() {
                continue;
            }
            let (like, wider) = match control.ranks_among() {
                same if same == control => (controls.clone(), 1.0),
                other => (of(other)?, self.matched_spread),
            };
            // Where some neurons have no match, those that have are held against their matches.
            let own = match control {
                Control::MatchedNeurons => of(Control::MatchedSelection)?.pop(),
                _ => None,
            }
            .unwrap_or_else(|| own.clone());
            let means = |sets: &[Vec<Group>]| -> anyhow::Result<Vec<f64>> {
                sets.iter().map(|set| mean_of(set)).collect()
            };
            let change = mean_of(&own)?;
            let of_controls = means(&controls)?.iter().sum::<f64>() / controls.len() as f64;
            self.contrasts.push(Contrast {
                arm,
                control,
                draws: controls.len(),
                factor,
                group,
                measure,
                rows,
                change,
                of_controls,
                of_controls_interval: bootstrap.two_way(&controls)?,
                excess: change - of_controls,
                interval: bootstrap.against(&own, &controls, (&like, wider))?,
                p: rank_p(change, &means(&like)?),
                q: None,
                clusters: Group::with_values(&own),
            });
        }
        Ok(())
    }

    /// The q values of all contrasts.
    fn adjust(&mut self) {
        for control in Control::CONTRASTED {
            for measure in ScalingMeasure::ALL {
                let of = |c: &&mut Contrast| c.control == control && c.measure == measure;
                let family: Vec<&mut Contrast> = self.contrasts.iter_mut().filter(of).collect();
                let p: Vec<Option<f64>> = family.iter().map(|contrast| contrast.p).collect();
                for (contrast, q) in family.into_iter().zip(q_values(&p)) {
                    contrast.q = q;
                }
            }
        }
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
