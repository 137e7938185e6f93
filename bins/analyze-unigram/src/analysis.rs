//! Everything that is computed from the table of one step.

use std::collections::{BTreeSet, HashMap};

use anyhow::Context;
use job_kit::{RunRecord, WithHint};
use neuron_select::{
    Coactivation, ControlKind, ControlSet, Curve, CurveIntervals, Grouped, NeuronEffects, NeuronId,
    RankInterval, Ranked, Ranking, RowFilter, bootstrap_curve, bootstrap_ranks, draw_controls,
};
use surprisal_metrics::Interval;

use crate::{config::AnalyzeConfig, input::StepInput};

/// Largest set whose co-activation is looked at: the principal components of more take too long.
const MAX_COACTIVATION: usize = 512;

/// The results of one step.
#[derive(Debug)]
pub(crate) struct StepAnalysis {
    pub(crate) step: i64,
    pub(crate) rows: usize,
    /// Whether direct effects and mediated shares are of the band that files the rows; they are left out otherwise.
    pub(crate) direct: bool,
    pub(crate) ranking: Ranking,
    /// Selected neurons, best first, with intervals.
    pub(crate) selected: Vec<Selected>,
    /// By neuron; empty with a single sequence.
    pub(crate) rank_intervals: HashMap<NeuronId, RankInterval>,
    pub(crate) controls: Vec<ControlSet>,
    pub(crate) curves: Vec<StratumCurve>,
    pub(crate) coactivation: Vec<SetCoactivation>,
    pub(crate) band_effects: Vec<SetEffect>,
    /// Norm of the output weights and LogitVar, where the ablation wrote them.
    pub(crate) weights: HashMap<NeuronId, (f64, f64)>,
}

/// A selected neuron with percentile intervals of its effects over sequences.
#[derive(Debug)]
pub(crate) struct Selected {
    pub(crate) ranked: Ranked,
    pub(crate) loss_change: Option<Interval>,
    pub(crate) kl_change: Option<Interval>,
    pub(crate) total_effect: Option<Interval>,
    pub(crate) mediated_share: Option<Interval>,
}

/// The influence curve over the rows of one stratum.
#[derive(Debug)]
pub(crate) struct StratumCurve {
    pub(crate) rows: RowFilter,
    /// Neurons by influence, descending.
    pub(crate) influence: Vec<(NeuronId, f64)>,
    pub(crate) curve: Curve,
    pub(crate) intervals: Option<CurveIntervals>,
}

/// Which set of neurons a value is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SetName {
    Selection,
    Control(ControlKind),
    All,
}

impl SetName {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Selection => "selection",
            Self::Control(kind) => kind.name(),
            Self::All => "all",
        }
    }
}

#[derive(Debug)]
pub(crate) struct SetCoactivation {
    pub(crate) set: SetName,
    pub(crate) draw: Option<usize>,
    pub(crate) rows: RowFilter,
    pub(crate) coactivation: Coactivation,
}

/// Mean total effect of a set of neurons over the rows of one stratum, nats.
#[derive(Debug)]
pub(crate) struct SetEffect {
    pub(crate) set: SetName,
    pub(crate) rows: RowFilter,
    pub(crate) mean: f64,
    pub(crate) interval: Option<Interval>,
}

impl StepAnalysis {
    /// A value that rests on frozen losses, if they are of the band that files the rows.
    pub(crate) fn direct<T>(&self, value: Option<T>) -> Option<T> {
        value.filter(|_| self.direct)
    }
}

/// The name of a row filter in tables.
pub(crate) fn rows_name(rows: RowFilter) -> &'static str {
    match rows {
        RowFilter::LongTail => "longtail",
        RowFilter::Common => "common",
        RowFilter::None => "all",
    }
}

/// Analyses one step; what cannot be computed is a warning in the record.
pub(crate) fn analyze(
    config: &AnalyzeConfig,
    input: &StepInput,
    record: &mut RunRecord,
) -> anyhow::Result<StepAnalysis> {
    let step = input.step;
    let tally = input.tally()?;
    let grouped = tally.grouped(config.selection.rows).hint(
        "give ablate-unigram a band that occurs in its sequences, or set selection.rows=none",
    )?;
    let effects = grouped.effects();
    let unbalanced = grouped.unbalanced();
    if let Some(first) = unbalanced.first() {
        let n = unbalanced.len();
        record.warn(format!("step {step}: {n} neurons, {first} among them, have more or fewer rows than the others: is the table whole?"));
    }
    if grouped.n_sequences_with_rows() < 2 {
        record.warn(format!(
            "step {step}: the rows are of a single sequence, so there are no intervals"
        ));
    }
    let otherwise = input.strata.frozen_otherwise();
    if let Some(why) = otherwise {
        if config.selection.by_mediation {
            return Err(anyhow::anyhow!(
                "step {step}: selection.by_mediation needs mediated shares, but {why}"
            ))
            .hint("ablate with that band, or leave `band` and `frequency` out to file rows as the ablation did");
        }
        record.warn(format!(
            "step {step}: direct effects and mediated shares are left out: {why}"
        ));
    }
    let criteria = config.selection.criteria();
    let ranking = Ranking::new(effects.clone(), &criteria);
    let top = config.selection.top();
    let ids = ranking.top_ids(top);
    if let Some(top) = top.filter(|&top| ids.len() < top) {
        record.warn(format!(
            "step {step}: {} neurons meet the criteria, {top} were asked for",
            ids.len()
        ));
    }
    let rank_intervals = match bootstrap_ranks(&grouped, &criteria, top, &config.bootstrap())? {
        None => HashMap::new(),
        Some((intervals, left_out)) => {
            if left_out > 0 {
                record.warn(format!("step {step}: {left_out} resamples had no rows for some neurons and were left out"));
            }
            intervals
                .into_iter()
                .map(|interval| (interval.neuron, interval))
                .collect()
        }
    };
    let selected = ranking
        .top(top)
        .iter()
        .map(|ranked| with_intervals(config, &grouped, ranked))
        .collect::<anyhow::Result<_>>()?;
    let controls = controls(config, input, &ids, &effects, record)?;

    // What differs between rare and common rows, as far as the table tells them apart.
    let mut strata: Vec<(RowFilter, Grouped)> = Vec::new();
    for rows in [RowFilter::LongTail, RowFilter::Common]
        .into_iter()
        .filter(|_| input.strata.known())
    {
        match tally.grouped(rows) {
            Ok(grouped) => strata.push((rows, grouped)),
            Err(err) => record.warn(format!("step {step}: {err}")),
        }
    }
    if !input.strata.known() {
        record.warn(format!("step {step}: the table does not say which rows are rare, so rare and common are not told apart"));
        strata.push((RowFilter::None, tally.grouped(RowFilter::None)?));
    }
    let mut curves = Vec::new();
    for (rows, grouped) in &strata {
        match curve(config, *rows, grouped) {
            Ok(curve) => curves.push(curve),
            Err(err) => record.warn(format!(
                "step {step}: no influence curve for {rows} rows: {err}"
            )),
        }
    }
    let sets: Vec<(SetName, Option<usize>, &[NeuronId])> =
        std::iter::once((SetName::Selection, None, &ids[..]))
            .chain(
                controls
                    .iter()
                    .map(|c| (SetName::Control(c.kind), Some(c.draw), &c.neurons[..])),
            )
            .collect();
    let filters: Vec<RowFilter> = strata.iter().map(|(rows, _)| *rows).collect();
    let coactivation = coactivation(input, &sets, &filters, record)?;
    let band_effects = band_effects(config, &sets, &strata)?;
    Ok(StepAnalysis {
        step,
        rows: tally.rows(),
        direct: otherwise.is_none(),
        ranking,
        selected,
        rank_intervals,
        controls,
        curves,
        coactivation,
        band_effects,
        weights: input.weights()?,
    })
}

fn with_intervals(
    config: &AnalyzeConfig,
    grouped: &Grouped,
    ranked: &Ranked,
) -> anyhow::Result<Selected> {
    let floor = config.selection.effect_floor;
    let interval = |value: &dyn Fn(&NeuronEffects) -> Option<f64>| {
        grouped.interval(&[ranked.effects.neuron], &config.bootstrap(), |effects| {
            value(&effects[0])
        })
    };
    Ok(Selected {
        ranked: *ranked,
        loss_change: interval(&|e| Some(e.loss_change))?,
        kl_change: interval(&|e| Some(e.kl_change))?,
        total_effect: interval(&|e| Some(e.total_effect))?,
        mediated_share: interval(&|e| e.mediated_share(floor))?,
    })
}

fn controls(
    config: &AnalyzeConfig,
    input: &StepInput,
    ids: &[NeuronId],
    effects: &[NeuronEffects],
    record: &mut RunRecord,
) -> anyhow::Result<Vec<ControlSet>> {
    let mut controls = Vec::new();
    if config.controls.draws == 0 || ids.is_empty() {
        return Ok(controls);
    }
    let candidates = input.candidates(effects)?;
    if candidates.iter().any(|c| c.traits[1].is_none()) {
        record.warn(format!("step {}: no output norms (neurons.parquet) beside the table, so controls are matched on mean activation alone", input.step));
    }
    for kind in [ControlKind::Random, ControlKind::Matched] {
        match draw_controls(kind, ids, &candidates, config.controls.draws, config.seed) {
            Ok(sets) => controls.extend(sets),
            Err(err) => record.warn(format!(
                "step {}: no {} controls: {err}",
                input.step,
                kind.name()
            )),
        }
    }
    Ok(controls)
}

fn curve(
    config: &AnalyzeConfig,
    rows: RowFilter,
    grouped: &Grouped,
) -> anyhow::Result<StratumCurve> {
    let mut influence: Vec<(NeuronId, f64)> = grouped
        .effects()
        .iter()
        .map(|e| (e.neuron, e.total_effect))
        .collect();
    influence.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let curve = Curve::fit(
        &influence
            .iter()
            .map(|(_, influence)| *influence)
            .collect::<Vec<_>>(),
    )?;
    let intervals = bootstrap_curve(grouped, &curve, &config.curve_bootstrap())?;
    Ok(StratumCurve {
        rows,
        influence,
        curve,
        intervals,
    })
}

fn coactivation(
    input: &StepInput,
    sets: &[(SetName, Option<usize>, &[NeuronId])],
    filters: &[RowFilter],
    record: &mut RunRecord,
) -> anyhow::Result<Vec<SetCoactivation>> {
    let size = sets[0].2.len();
    if !(2..=MAX_COACTIVATION).contains(&size) {
        record.warn(format!("step {}: co-activation is looked at in sets of 2 to {MAX_COACTIVATION} neurons, this one has {size}", input.step));
        return Ok(Vec::new());
    }
    let wanted: BTreeSet<NeuronId> = sets
        .iter()
        .flat_map(|(_, _, neurons)| neurons.iter().copied())
        .collect();
    let mut found = Vec::new();
    for (&rows, activations) in filters.iter().zip(input.activations(&wanted, filters)?) {
        for (set, draw, neurons) in sets {
            let matrix = activations.matrix(neurons);
            let matrix = matrix.with_context(|| {
                format!(
                    "step {}: the neurons were not ablated at the same positions",
                    input.step
                )
            })?;
            let coactivation = Coactivation::of(&matrix, activations.positions())?;
            found.push(SetCoactivation {
                set: *set,
                draw: *draw,
                rows,
                coactivation,
            });
        }
    }
    Ok(found)
}

/// Mean total effect of the selection, of all draws of each kind of control together, and of all neurons.
fn band_effects(
    config: &AnalyzeConfig,
    sets: &[(SetName, Option<usize>, &[NeuronId])],
    strata: &[(RowFilter, Grouped)],
) -> anyhow::Result<Vec<SetEffect>> {
    let mut effects = Vec::new();
    for (rows, grouped) in strata {
        let mut names = vec![(SetName::All, grouped.neurons().to_vec())];
        for (set, _, neurons) in sets {
            match names.iter_mut().find(|(name, _)| name == set) {
                Some((_, all)) => all.extend_from_slice(neurons),
                None => names.push((*set, neurons.to_vec())),
            }
        }
        let by_neuron: HashMap<NeuronId, f64> = grouped
            .effects()
            .iter()
            .map(|e| (e.neuron, e.total_effect))
            .collect();
        for (set, neurons) in names.into_iter().filter(|(_, neurons)| !neurons.is_empty()) {
            let n = neurons.len() as f64;
            let mean = neurons
                .iter()
                .filter_map(|id| by_neuron.get(id))
                .sum::<f64>()
                / n;
            let interval = grouped.interval(&neurons, &config.bootstrap(), |e| {
                Some(e.iter().map(|e| e.total_effect).sum::<f64>() / n)
            })?;
            effects.push(SetEffect {
                set,
                rows: *rows,
                mean,
                interval,
            });
        }
    }
    Ok(effects)
}
