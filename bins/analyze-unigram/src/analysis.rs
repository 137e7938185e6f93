//! Everything that is computed from the table of one step.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use anyhow::Context;
use job_kit::{RunRecord, WithHint, report::integer};
use model_conventions::Counted;
use neuron_select::{
    Candidate, Coactivation, ControlKind, ControlOptions, Controls, CrossFit, Curve,
    CurveIntervals, Effect, Grouped, Laws, MatchOn, Measure, NeuronId, Pool, RankInterval, Ranked,
    Ranking, RowFilter, SelectError, Standing, Tally, Verdict, bootstrap_curve, bootstrap_ranks,
    cross_fit, exchange_p, max_t, rank_p,
};
use surprisal_metrics::{Group, Interval, MIN_GROUPS};

use crate::{baseline::Baseline, changes::Followed, config::AnalyzeConfig, input::StepInput};

/// Largest set whose co-activation is looked at: the principal components of more take too long.
const MAX_COACTIVATION: usize = 512;
/// Draws of each control whose co-activation is looked at.
const COACTIVATION_DRAWS: usize = 5;

/// The results of one step.
#[derive(Debug)]
pub(crate) struct StepAnalysis {
    pub(crate) step: i64,
    /// What it counts.
    pub(crate) counted: Counted,
    pub(crate) rows: usize,
    /// Clusters with rows that count.
    pub(crate) clusters: usize,
    /// Which rows count, by which band and reading, and how many there are.
    pub(crate) about: String,
    /// The same of what tells rare and common rows apart.
    pub(crate) about_both: String,
    /// The share of the output weights in the null space that random ones have.
    pub(crate) chance_null_share: Option<f64>,
    /// Shares at random weights, where step 0 is among the steps.
    pub(crate) baseline: Option<Arc<Baseline>>,
    /// Whether direct effects and mediated shares are of the band that files the rows; they are left out otherwise.
    pub(crate) direct: bool,
    pub(crate) ranking: Ranking,
    /// Selected neurons, best first, with intervals.
    pub(crate) selected: Vec<Selected>,
    /// By neuron; empty with fewer than eight clusters.
    pub(crate) rank_intervals: HashMap<NeuronId, RankInterval>,
    /// Adjusted p values over all neurons, of the change of the loss and of the KL; empty with fewer than eight clusters.
    pub(crate) max_t: HashMap<NeuronId, [f64; 2]>,
    /// Effects on clusters that did not select; empty where there are too few.
    pub(crate) cross_fits: Vec<CrossFitted>,
    pub(crate) controls: Controls,
    pub(crate) curves: Vec<StratumCurve>,
    pub(crate) coactivation: Vec<SetCoactivation>,
    pub(crate) band_effects: Vec<SetEffect>,
    /// Rare minus common rows; empty where the table does not tell them apart.
    pub(crate) band_contrasts: Vec<SetContrast>,
    /// What is compared with other checkpoints.
    pub(crate) followed: Followed,
}

/// A selected neuron with bootstrap-t intervals of its effects over clusters (documents, or sequences).
#[derive(Debug)]
pub(crate) struct Selected {
    pub(crate) ranked: Ranked,
    /// Clusters that have rows.
    pub(crate) clusters: usize,
    pub(crate) loss_change: Option<Interval>,
    pub(crate) kl_change: Option<Interval>,
    pub(crate) total_effect: Option<Interval>,
    pub(crate) mediated_share: Option<Interval>,
    pub(crate) ln_mediated_share: Option<Interval>,
    pub(crate) all_token_mediated_share: Option<Interval>,
    /// Of the change whose sign selects: that of the loss, or of the divergence.
    pub(crate) change: Option<Interval>,
}

impl Selected {
    /// Whether the interval of the change whose sign selects leaves out 0; none without an interval.
    pub(crate) fn sign_is_certain(&self) -> Option<bool> {
        let interval = self.change?;
        Some(interval.lower > 0.0 || interval.upper < 0.0)
    }
}

/// An effect of the selection on the clusters that made it and on others, nats.
#[derive(Debug)]
pub(crate) struct CrossFitted {
    pub(crate) measure: &'static str,
    pub(crate) fit: CrossFit,
    /// Of the held-out effect.
    pub(crate) interval: Option<Interval>,
}

/// The influence curve over the rows of one stratum.
#[derive(Debug)]
pub(crate) struct StratumCurve {
    pub(crate) rows: RowFilter,
    /// Neurons by influence, descending.
    pub(crate) influence: Vec<(NeuronId, f64)>,
    pub(crate) curve: Curve,
    pub(crate) intervals: Option<CurveIntervals>,
    /// Which law the influences follow; none with too few different ones.
    pub(crate) laws: Option<Laws>,
}

impl StratumCurve {
    /// Shape, breaks and exponent, with intervals.
    pub(crate) fn in_words(&self) -> String {
        let fit = &self.curve;
        let breaks: Vec<String> = fit
            .best_fit()
            .break_ranks()
            .iter()
            .enumerate()
            .map(|(i, rank)| match &self.intervals {
                Some(intervals) => format!(
                    "{rank:.0} [{:.0}, {:.0}]",
                    intervals.breaks[i][0], intervals.breaks[i][1]
                ),
                None => format!("{rank:.0}"),
            })
            .collect();
        let verdict = self.verdict().map_or("too few values", Verdict::name);
        let mut words = format!("{verdict}; broken line: {}", fit.shape.name());
        if !breaks.is_empty() {
            words += &format!("; breaks at rank {}", breaks.join(" and "));
        }
        words += &format!("; exponent {:.2}", fit.exponent());
        if let Some(intervals) = &self.intervals {
            words += &format!(
                " [{:.2}, {:.2}]; same shape in {:.0} % of resamples",
                intervals.exponent[0],
                intervals.exponent[1],
                100.0 * intervals.same_shape
            );
        }
        words
    }

    pub(crate) fn verdict(&self) -> Option<Verdict> {
        Some(self.laws.as_ref()?.verdict(self.curve.shape))
    }

    /// Neurons on the plateau, if the verdict is that there are three regimes.
    pub(crate) fn plateau_neurons(&self) -> usize {
        match self.verdict() {
            Some(Verdict::NoLaw(_)) => self.curve.plateau_neurons(),
            _ => 0,
        }
    }
}

/// How much larger the total effect of a set is on rare rows than on common ones, nats: the mean over documents (or sequences) that have
/// rows of both kinds, each of which counts once.
#[derive(Debug)]
pub(crate) struct SetContrast {
    pub(crate) set: SetName,
    /// Neurons, each as often as it was drawn.
    pub(crate) neurons: usize,
    pub(crate) mean: f64,
    pub(crate) clusters: usize,
    pub(crate) interval: Option<Interval>,
}

/// Which set of neurons a value is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SetName {
    Selection,
    /// The selected neurons that have matched controls, where others have none.
    MatchedSelection,
    Control(ControlKind),
    All,
}

impl SetName {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Selection => "selection",
            Self::MatchedSelection => "matched selection",
            Self::Control(kind) => kind.name(),
            Self::All => "all",
        }
    }
}

/// A set, its draw where it is a control, its neurons.
type DrawnSet<'a> = (SetName, Option<usize>, &'a [NeuronId]);

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
    /// Neurons, each as often as it was drawn, and draws of a control.
    pub(crate) neurons: usize,
    pub(crate) draws: Option<usize>,
    pub(crate) mean: f64,
    /// Of the selection among the draws of this control; with matched controls of its neurons exchanged for those that are alike.
    pub(crate) rank_p: Option<f64>,
    /// Clusters that have rows.
    pub(crate) clusters: usize,
    pub(crate) interval: Option<Interval>,
}

impl StepAnalysis {
    /// A value that rests on frozen losses, if they are of the band that files the rows.
    pub(crate) fn direct<T>(&self, value: Option<T>) -> Option<T> {
        value.filter(|_| self.direct)
    }

    /// Shares at random weights in words; nothing where they are not known.
    pub(crate) fn baselines(&self) -> String {
        self.baseline
            .as_ref()
            .map_or_else(String::new, |baseline| baseline.in_words())
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

/// Analyses one step, whose neurons `followed` (the selected ones without) are to be compared with other checkpoints; what cannot be computed is a warning in the record.
pub(crate) fn analyze(
    config: &AnalyzeConfig,
    input: &StepInput,
    followed: Option<&[NeuronId]>,
    record: &mut RunRecord,
) -> anyhow::Result<StepAnalysis> {
    let tally = input.tally()?;
    let grouped = rows_that_count(config, input, &tally, record)?;
    let direct = has_direct_effects(config, input, record)?;
    let ranking = rank(config, input.step, &grouped, record)?;
    let ids = ranking.top_ids(config.selection.top());
    let rank_intervals = rank_intervals(config, input.step, &grouped, record)?;
    let top = ranking.top(config.selection.top()).iter();
    let selected: Vec<Selected> = top
        .map(|ranked| with_intervals(config, &grouped, ranked))
        .collect::<anyhow::Result<_>>()?;
    warn_of_signs(config, input.step, &selected, record);
    let max_t = adjusted(config, &grouped)?;
    let cross_fits = cross_fits(config, input.step, &grouped, ids.len(), record)?;
    let controls = controls(config, input, &ids, &tally, record)?;
    let strata = strata(input, &tally, record)?;
    let curves = curves(config, input.step, &strata, record);
    let sets = drawn_sets(&ids, &controls);
    let filters: Vec<RowFilter> = strata.iter().map(|(rows, _)| *rows).collect();
    let coactivation = coactivation(input, &sets, &filters, record)?;
    let names = set_names(&sets, strata[0].1.neurons());
    let band_effects = band_effects(config, &names, (&controls, &sets), &strata)?;
    let band_contrasts = band_contrasts(config, &names, &sets, &strata)?;
    let clusters = grouped.n_sequences_with_rows();
    let each = rows_each(&grouped);
    let of_strata = strata.iter().map(|(rows, grouped)| {
        let each = integer(rows_each(grouped) as i64);
        format!("{each} {rows} of {}", input.clusters(grouped))
    });
    let of_strata = of_strata.collect::<Vec<String>>().join(", ");
    Ok(StepAnalysis {
        counted: input.counted,
        step: input.step,
        rows: tally.rows(),
        clusters,
        about: input.about(
            config.selection.rows,
            (each, clusters, grouped.neurons().len()),
        ),
        about_both: format!("{}; rows: {of_strata}", input.about_band()),
        chance_null_share: input.chance_null_share(),
        baseline: None,
        direct,
        ranking,
        selected,
        rank_intervals,
        max_t,
        cross_fits,
        controls,
        curves,
        coactivation,
        band_effects,
        band_contrasts,
        followed: Followed::of(&grouped, followed.unwrap_or(&ids)),
    })
}

/// Rows of each neuron.
fn rows_each(grouped: &Grouped) -> usize {
    grouped.effects().first().map_or(0, |effects| effects.rows)
}

/// The rows that the selection is made on.
fn rows_that_count(
    config: &AnalyzeConfig,
    input: &StepInput,
    tally: &Tally,
    record: &mut RunRecord,
) -> anyhow::Result<Grouped> {
    let (step, rows) = (input.step, config.selection.rows);
    let grouped = tally.grouped(rows).hint(
        "give ablate-unigram a band that occurs in its sequences, or set selection.rows=none",
    )?;
    let unbalanced = grouped.unbalanced();
    if let Some(first) = unbalanced.first() {
        let n = unbalanced.len();
        record.warn(format!("step {step}: {n} neurons, {first} among them, have more or fewer rows than the others: is the table whole?"));
    }
    let clusters = grouped.n_sequences_with_rows();
    if clusters < MIN_GROUPS {
        record.warn(format!(
            "step {step}: the {rows} rows are of {clusters} documents or sequences, so there are no intervals: they need {MIN_GROUPS} at least (`ablation.sequences`)"
        ));
    }
    Ok(grouped)
}

/// Whether direct effects are of the band that files the rows; an error where the selection needs them to be.
fn has_direct_effects(
    config: &AnalyzeConfig,
    input: &StepInput,
    record: &mut RunRecord,
) -> anyhow::Result<bool> {
    let step = input.step;
    let Some(why) = input.strata.frozen_otherwise() else {
        return Ok(true);
    };
    if config.selection.by_mediation {
        return Err(anyhow::anyhow!(
            "step {step}: selection.by_mediation needs mediated shares, but {why}"
        ))
        .hint("ablate with that band, or leave `band` and `frequency` out to file rows as the ablation did");
    }
    record.warn(format!(
        "step {step}: direct effects and mediated shares are left out: {why}"
    ));
    Ok(false)
}

fn rank(
    config: &AnalyzeConfig,
    step: i64,
    grouped: &Grouped,
    record: &mut RunRecord,
) -> anyhow::Result<Ranking> {
    let ranking = Ranking::new(grouped.effects(), &config.selection.criteria());
    let top = config.selection.top();
    let selected = ranking.top(top).len();
    let is_undefined = |n: &Ranked| n.standing == Standing::Undefined;
    if selected == 0 && ranking.all().iter().any(is_undefined) {
        return Err(anyhow::anyhow!(
            "step {step}: no neuron has what `selection.heuristic` ranks by"
        ))
        .hint("statistics of the weights are in the neurons.parquet that ablate-unigram writes beside its table of positions; the share that the final norm mediates needs `frozen_ln` among `ablation.variants`");
    }
    if let Some(top) = top.filter(|&top| selected < top) {
        record.warn(format!(
            "step {step}: {selected} neurons meet the criteria, {top} were asked for"
        ));
    }
    Ok(ranking)
}

fn rank_intervals(
    config: &AnalyzeConfig,
    step: i64,
    grouped: &Grouped,
    record: &mut RunRecord,
) -> anyhow::Result<HashMap<NeuronId, RankInterval>> {
    let (criteria, top) = (config.selection.criteria(), config.selection.top());
    let found = bootstrap_ranks(grouped, &criteria, top, &config.bootstrap())?;
    let (intervals, left_out) = found.unwrap_or_default();
    if left_out > 0 {
        record.warn(format!(
            "step {step}: {left_out} resamples had no rows for some neurons and were left out"
        ));
    }
    Ok(intervals.into_iter().map(|of| (of.neuron, of)).collect())
}

/// Rare and common rows, as far as the table tells them apart; else all of them.
fn strata(
    input: &StepInput,
    tally: &Tally,
    record: &mut RunRecord,
) -> anyhow::Result<Vec<(RowFilter, Grouped)>> {
    let step = input.step;
    if !input.strata.known() {
        record.warn(format!("step {step}: the table does not say which rows are rare, so rare and common are not told apart"));
        return Ok(vec![(RowFilter::None, tally.grouped(RowFilter::None)?)]);
    }
    let mut strata = Vec::new();
    for rows in [RowFilter::LongTail, RowFilter::Common] {
        match tally.grouped(rows) {
            Ok(grouped) => strata.push((rows, grouped)),
            Err(err) => record.warn(format!("step {step}: {err}")),
        }
    }
    Ok(strata)
}

/// The influence curves that can be fitted.
fn curves(
    config: &AnalyzeConfig,
    step: i64,
    strata: &[(RowFilter, Grouped)],
    record: &mut RunRecord,
) -> Vec<StratumCurve> {
    let mut curves = Vec::new();
    for (rows, grouped) in strata {
        match curve(config, *rows, grouped) {
            Ok(curve) => curves.push(curve),
            Err(err) => record.warn(format!(
                "step {step}: no influence curve for {rows} rows: {err}"
            )),
        }
    }
    curves
}

/// The selection, the part of it that has matched controls where not all of it has, and all draws of the controls.
fn drawn_sets<'a>(ids: &'a [NeuronId], controls: &'a Controls) -> Vec<DrawnSet<'a>> {
    let mut sets = vec![(SetName::Selection, None, ids)];
    if !controls.matched.is_empty() && !controls.unmatched.is_empty() {
        sets.push((SetName::MatchedSelection, None, &controls.matched));
    }
    let draws = controls.sets.iter();
    sets.extend(draws.map(|c| (SetName::Control(c.kind), Some(c.draw), &c.neurons[..])));
    sets
}

fn with_intervals(
    config: &AnalyzeConfig,
    grouped: &Grouped,
    ranked: &Ranked,
) -> anyhow::Result<Selected> {
    let floor = config.selection.effect_floor;
    let groups = |measure| grouped.groups(&[ranked.effects.neuron], measure);
    let resamples = config.bootstrap().resample(grouped.n_sequences())?;
    let (total, direct) = (groups(Measure::TotalEffect), groups(Measure::DirectEffect));
    let share = resamples.ratio(&direct, &total, floor)?;
    let share_under = |effect: Option<f64>, measure| match effect {
        Some(_) => resamples.ratio(&groups(measure), &total, floor),
        None => Ok(None),
    };
    let ln_share = share_under(ranked.effects.frozen_ln_effect, Measure::FrozenLnEffect)?;
    let all_share = share_under(ranked.effects.frozen_all_effect, Measure::FrozenAllEffect)?;
    let loss_change = resamples.mean(&groups(Measure::LossChange))?;
    let kl_change = resamples.mean(&groups(Measure::KlChange))?;
    Ok(Selected {
        ranked: *ranked,
        clusters: Group::with_values(&total),
        change: match config.selection.heuristic.measure() {
            Measure::KlChange => kl_change,
            _ => loss_change,
        },
        loss_change,
        kl_change,
        total_effect: resamples.mean(&total)?,
        mediated_share: share.map(Interval::complement),
        ln_mediated_share: ln_share.map(Interval::complement),
        all_token_mediated_share: all_share.map(Interval::complement),
    })
}

/// Says how many of the selected neurons may have the other sign.
fn warn_of_signs(config: &AnalyzeConfig, step: i64, selected: &[Selected], record: &mut RunRecord) {
    let uncertain = selected
        .iter()
        .filter(|n| n.sign_is_certain() == Some(false));
    let names: Vec<String> = uncertain
        .map(|n| n.ranked.effects.neuron.to_string())
        .collect();
    record.count(
        &format!("step_{step}_selected_of_uncertain_sign"),
        names.len() as u64,
    );
    if !names.is_empty() && config.selection.effect != Effect::Any {
        let change = match config.selection.heuristic.measure() {
            Measure::KlChange => "the KL divergence",
            _ => "the loss",
        };
        record.warn(format!(
            "step {step}: the interval of the change of {change}, whose sign selects (`selection.effect`), includes 0 for {} of {} selected neurons, which may have the other sign on other text: {}",
            names.len(),
            selected.len(),
            names.join(", ")
        ));
    }
}

/// P values over all neurons at once.
fn adjusted(
    config: &AnalyzeConfig,
    grouped: &Grouped,
) -> anyhow::Result<HashMap<NeuronId, [f64; 2]>> {
    let of = |measure| max_t(grouped, measure, config.bootstrap.sign_flips, config.seed);
    let both = of(Measure::LossChange)?.zip(of(Measure::KlChange)?);
    let of_neurons = both
        .into_iter()
        .flat_map(|(loss, kl)| loss.into_iter().zip(kl));
    Ok(grouped
        .neurons()
        .iter()
        .zip(of_neurons)
        .map(|(&neuron, (loss, kl))| (neuron, [loss, kl]))
        .collect())
}

/// What as many neurons as are selected do on clusters that had no say in it.
fn cross_fits(
    config: &AnalyzeConfig,
    step: i64,
    grouped: &Grouped,
    selected: usize,
    record: &mut RunRecord,
) -> anyhow::Result<Vec<CrossFitted>> {
    let mut fitted = Vec::new();
    if config.cross_fit.folds == 0 || selected == 0 {
        return Ok(fitted);
    }
    for (name, measure) in [
        ("loss_change", Measure::LossChange),
        ("kl_change", Measure::KlChange),
        ("total_effect", Measure::TotalEffect),
    ] {
        let fit = cross_fit(
            grouped,
            &config.selection.criteria(),
            config.selection.top(),
            measure,
            config.cross_fit.folds,
            config.seed,
        )?;
        if let Some(fit) = fit {
            fitted.push(CrossFitted {
                measure: name,
                interval: config.bootstrap().mean(&fit.groups)?,
                fit,
            });
        }
    }
    if fitted.is_empty() {
        let clusters = grouped.n_sequences_with_rows();
        record.warn(format!("step {step}: {clusters} documents or sequences are too few to select on some and measure on others (`cross_fit.folds`)"));
    }
    Ok(fitted)
}

fn controls(
    config: &AnalyzeConfig,
    input: &StepInput,
    ids: &[NeuronId],
    tally: &Tally,
    record: &mut RunRecord,
) -> anyhow::Result<Controls> {
    let mut controls = Controls::default();
    let (draws, seed) = (config.controls.draws, config.seed);
    if draws == 0 || ids.is_empty() {
        return Ok(controls);
    }
    // What neurons do anywhere, as controls are looked at on rare and on common rows.
    let effects = tally.grouped(RowFilter::None)?.effects();
    let pushes = match config.controls.match_on {
        MatchOn::Intervention => input.pushes(&effects),
        MatchOn::ActivationAndNorm => None,
    };
    let nearest = input.candidates(&effects)?;
    let step = input.step;
    if pushes.is_none() && nearest.iter().any(|c| c.traits[1].is_none()) {
        record.warn(format!("step {step}: no output norms (neurons.parquet) beside the table, so controls are matched on mean activation alone"));
    } else if pushes.is_none() && config.controls.match_on == MatchOn::Intervention {
        record.warn(format!("step {step}: neurons.parquet does not say what the intervention does (`mean_activation`, `w_out_norm_centred`), so controls are matched on mean activation and output norm (`controls.match`)"));
    }
    let pool = match pushes {
        Some(pushes) => Pool::Intervention(in_layers_of(ids, pushes)),
        None => Pool::ActivationAndNorm(in_layers_of(ids, nearest)),
    };
    // One kind is there where the other is not.
    for &kind in &config.controls.kinds {
        let of_kind = ControlOptions {
            kinds: vec![kind],
            ..config.controls.clone()
        };
        match of_kind.draw(ids, &pool, seed) {
            Ok(drawn) => controls.extend(drawn),
            // A caliper that is none is an error of the configuration.
            Err(err @ SelectError::Setting { .. }) => return Err(err.into()),
            Err(err) => record.warn(format!("step {step}: no {} controls: {err}", kind.name())),
        }
    }
    if !controls.unmatched.is_empty() {
        let names: Vec<String> = controls.unmatched.iter().map(NeuronId::to_string).collect();
        record.warn(format!(
            "step {step}: {} of {} selected neurons have no neuron alike within `controls.caliper` = {} standard deviations and are left out where the selection is held against matched controls: {}",
            names.len(),
            ids.len(),
            config.controls.caliper,
            names.join(", ")
        ));
    }
    Ok(controls)
}

/// The candidates in the layers of a selection.
fn in_layers_of<const TRAITS: usize>(
    ids: &[NeuronId],
    mut candidates: Vec<Candidate<TRAITS>>,
) -> Vec<Candidate<TRAITS>> {
    let layers: BTreeSet<usize> = ids.iter().map(|id| id.layer).collect();
    candidates.retain(|c| layers.contains(&c.neuron.layer));
    candidates
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
    let values: Vec<f64> = influence.iter().map(|(_, influence)| *influence).collect();
    let curve = Curve::fit(&values)?;
    let laws = match Laws::of(&values, config.bootstrap.law_draws, config.seed) {
        Ok(laws) => Some(laws),
        Err(SelectError::TooFewPoints { .. }) => None,
        Err(err) => return Err(err.into()),
    };
    let intervals = bootstrap_curve(grouped, &curve, &config.curve_bootstrap())?;
    Ok(StratumCurve {
        rows,
        influence,
        curve,
        intervals,
        laws,
    })
}

fn coactivation(
    input: &StepInput,
    sets: &[DrawnSet<'_>],
    filters: &[RowFilter],
    record: &mut RunRecord,
) -> anyhow::Result<Vec<SetCoactivation>> {
    let size = sets[0].2.len();
    let looked_at = |(name, draw, _): &&DrawnSet<'_>| {
        *name != SetName::MatchedSelection && draw.is_none_or(|draw| draw < COACTIVATION_DRAWS)
    };
    let sets: Vec<&DrawnSet<'_>> = sets.iter().filter(looked_at).collect();
    if !input.has_positions() {
        record.warn(format!("step {}: no co-activation, which needs activations side by side: they are in the table of positions (`output.positions=on` of ablate-unigram)", input.step));
        return Ok(Vec::new());
    }
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
        // Matched controls may stand for a single neuron.
        for (set, draw, neurons) in sets.iter().filter(|(.., neurons)| neurons.len() > 1) {
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

/// All neurons, the selection, and all draws of each kind of control together.
fn set_names(sets: &[DrawnSet<'_>], all: &[NeuronId]) -> Vec<(SetName, Vec<NeuronId>)> {
    let mut names = vec![(SetName::All, all.to_vec())];
    for (set, _, neurons) in sets {
        match names.iter_mut().find(|(name, _)| name == set) {
            Some((_, all)) => all.extend_from_slice(neurons),
            None => names.push((*set, neurons.to_vec())),
        }
    }
    names.retain(|(_, neurons)| !neurons.is_empty());
    names
}

/// The interval of a set: of a control over its draws too, which could have been others, as the documents could.
fn interval_of(
    config: &AnalyzeConfig,
    set: SetName,
    sets: &[DrawnSet<'_>],
    groups: impl Fn(&[NeuronId]) -> Vec<Group>,
    all: &[Group],
) -> anyhow::Result<Option<Interval>> {
    Ok(match set {
        SetName::Control(_) => {
            let draws = sets.iter().filter(|(name, ..)| *name == set);
            let cells: Vec<Vec<Group>> = draws.map(|(.., neurons)| groups(neurons)).collect();
            config.bootstrap().two_way(&cells)?
        }
        SetName::Selection | SetName::MatchedSelection | SetName::All => {
            config.bootstrap().mean(all)?
        }
    })
}

/// Mean total effect of each set.
fn band_effects(
    config: &AnalyzeConfig,
    names: &[(SetName, Vec<NeuronId>)],
    (controls, sets): (&Controls, &[DrawnSet<'_>]),
    strata: &[(RowFilter, Grouped)],
) -> anyhow::Result<Vec<SetEffect>> {
    let mut effects = Vec::new();
    for (rows, grouped) in strata {
        let groups = |ids: &[NeuronId]| grouped.groups(ids, Measure::TotalEffect);
        let mean = |ids: &[NeuronId]| Group::total(&groups(ids)).mean();
        let of_each =
            |ids: &[NeuronId]| -> Vec<f64> { ids.iter().filter_map(|id| mean(&[*id])).collect() };
        let of_draws = |wanted: SetName| -> Vec<f64> {
            let draws = sets.iter().filter(|(name, ..)| *name == wanted);
            draws.filter_map(|(.., neurons)| mean(neurons)).collect()
        };
        for (set, neurons) in names {
            let rank_p = match set {
                SetName::Control(ControlKind::Random) => {
                    let selected = of_draws(SetName::Selection).first().copied();
                    selected.and_then(|selected| rank_p(selected, &of_draws(*set)))
                }
                SetName::Control(ControlKind::Matched) => {
                    let alike: Vec<_> = controls.alike.iter().map(|ids| of_each(ids)).collect();
                    let own = of_each(&controls.matched);
                    exchange_p(&own, &alike, config.controls.draws, config.seed)
                }
                SetName::Selection | SetName::MatchedSelection | SetName::All => None,
            };
            let all = groups(neurons);
            let draws = || sets.iter().filter(|(name, ..)| name == set).count();
            effects.push(SetEffect {
                set: *set,
                rows: *rows,
                neurons: neurons.len(),
                draws: matches!(set, SetName::Control(_)).then(draws),
                rank_p,
                mean: Group::total(&all).mean().context("a set without rows")?,
                clusters: Group::with_values(&all),
                interval: interval_of(config, *set, sets, groups, &all)?,
            });
        }
    }
    Ok(effects)
}

/// The paired contrast of rare and common rows of each set.
fn band_contrasts(
    config: &AnalyzeConfig,
    names: &[(SetName, Vec<NeuronId>)],
    sets: &[DrawnSet<'_>],
    strata: &[(RowFilter, Grouped)],
) -> anyhow::Result<Vec<SetContrast>> {
    let of = |wanted: RowFilter| strata.iter().find(|(rows, _)| *rows == wanted);
    let Some(((_, rare), (_, common))) = of(RowFilter::LongTail).zip(of(RowFilter::Common)) else {
        return Ok(Vec::new());
    };
    // Of each document that has rows of both kinds, the same for all neurons.
    let differences = |neurons: &[NeuronId]| -> Vec<Group> {
        let [rare, common] = [rare, common].map(|of| of.groups(neurons, Measure::TotalEffect));
        let pairs = rare.into_iter().zip(common);
        pairs
            .filter_map(|(rare, common)| Some(Group::of(&[rare.mean()? - common.mean()?])))
            .collect()
    };
    let mut contrasts = Vec::new();
    for (set, neurons) in names {
        let all = differences(neurons);
        if let Some(mean) = Group::total(&all).mean() {
            contrasts.push(SetContrast {
                set: *set,
                neurons: neurons.len(),
                mean,
                clusters: all.len(),
                interval: interval_of(config, *set, sets, differences, &all)?,
            });
        }
    }
    Ok(contrasts)
}
