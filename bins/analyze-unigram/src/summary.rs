//! What a run prints when it is done.

use std::fmt::{self, Write as _};

use neuron_select::{ControlKind, Measure};
use surprisal_metrics::Interval;

use crate::{
    analysis::{Selected, SetName, StepAnalysis},
    config::AnalyzeConfig,
    stability::Overlap,
};

/// The selected neurons of each step, and how stable they are.
pub(crate) fn text(
    config: &AnalyzeConfig,
    steps: &[StepAnalysis],
    overlaps: &[Overlap],
) -> Result<String, std::fmt::Error> {
    let mut text = format!("Selected: {}.\n", config.selection.criteria());
    for step in steps {
        neurons(&mut text, config, step)?;
        beside(&mut text, step)?;
    }
    if let (Some(first), Some(last)) = (overlaps.first(), overlaps.last()) {
        writeln!(text, "\nOverlap of selections between steps (Jaccard):")?;
        let of_ends = |o: &&Overlap| o.step == first.step || o.other == last.other;
        for overlap in overlaps.iter().filter(of_ends) {
            let found = overlap.jaccard.map(|j| format!("{j:.2}"));
            let chance = overlap.chance.map(|j| format!(" ({j:.2} by chance)"));
            writeln!(
                text,
                "  {} and {}: {}{}",
                overlap.step,
                overlap.other,
                found.unwrap_or("undefined".into()),
                chance.unwrap_or_default()
            )?;
        }
    }
    writeln!(text, "\nEffects and changes are in nats.")?;
    Ok(text)
}

/// An interval of a change, in brackets.
fn ends(interval: Interval) -> String {
    format!("[{:+.5}, {:+.5}]", interval.lower, interval.upper)
}

/// The selected neurons of a step.
fn neurons(text: &mut String, config: &AnalyzeConfig, step: &StepAnalysis) -> fmt::Result {
    writeln!(
        text,
        "\n{}: {} of {} neurons; {}",
        step.counted.name(step.step),
        step.selected.len(),
        step.ranking.all().len(),
        step.about
    )?;
    let change = match config.selection.heuristic.measure() {
        Measure::KlChange => "interval, KL",
        _ => "interval, loss",
    };
    writeln!(
        text,
        "  rank  neuron     total effect  direct effect  mediated  loss change    KL change  {change:>20}  ranks when resampled"
    )?;
    for (i, neuron) in step.selected.iter().enumerate() {
        let effects = &neuron.ranked.effects;
        let direct = step.direct(Some(effects.direct_effect));
        let share = step.direct(neuron.ranked.mediated_share);
        let ranks = step.rank_intervals.get(&effects.neuron);
        let doubt = match neuron.sign_is_certain() {
            Some(false) => '*',
            _ => ' ',
        };
        writeln!(
            text,
            "  {:>4}  {:<9} {:>13.5} {:>14} {:>9} {:>+12.5} {:>+12.5}  {:>20}{doubt} {}",
            i + 1,
            effects.neuron.to_string(),
            effects.total_effect,
            direct.map_or("left out".to_owned(), |direct| format!("{direct:.5}")),
            share.map_or("undefined".to_owned(), |share| format!(
                "{:.1} %",
                100.0 * share
            )),
            effects.loss_change,
            effects.kl_change,
            neuron.change.map_or(String::new(), ends),
            ranks.map_or(String::new(), |r| format!("{}-{}", r.low, r.high)),
        )?;
    }
    let doubtful = |n: &&Selected| n.sign_is_certain() == Some(false);
    match step.selected.iter().filter(doubtful).count() {
        0 => Ok(()),
        n => writeln!(
            text,
            "  * {n} of {}: the interval includes 0, so that on other text the sign may be the other one",
            step.selected.len()
        ),
    }
}

/// What the selection of a step is read beside: random weights, held-out documents, controls, all neurons.
fn beside(text: &mut String, step: &StepAnalysis) -> fmt::Result {
    let baselines = step.baselines();
    if !baselines.is_empty() {
        writeln!(text, "  {}", baselines.trim_end_matches("; "))?;
    }
    for fitted in &step.cross_fits {
        let interval = fitted.interval.map(|i| format!(" {}", ends(i)));
        let shrinkage = fitted.fit.shrinkage();
        let shrinkage = shrinkage.map(|share| format!(", shrinks by {:.0} %", 100.0 * share));
        writeln!(
            text,
            "  mean {} of the selection: {:+.5} where selected, {:+.5}{} on held-out documents{}",
            fitted.measure.replace('_', " "),
            fitted.fit.in_sample,
            fitted.fit.held_out,
            interval.unwrap_or_default(),
            shrinkage.unwrap_or_default(),
        )?;
    }
    for effect in &step.band_effects {
        let Some(p) = effect.rank_p else { continue };
        let some = match (effect.set, step.controls.unmatched.len()) {
            (SetName::Control(ControlKind::Matched), 1..) => format!(
                " (the {} of {} that have any)",
                step.controls.matched.len(),
                step.selected.len()
            ),
            _ => String::new(),
        };
        writeln!(
            text,
            "  total effect on {} rows, selection{some} among {} controls: rank p = {p:.3}",
            effect.rows,
            effect.set.name()
        )?;
    }
    for curve in &step.curves {
        let said = curve.in_words();
        writeln!(text, "  influence on {} rows: {said}", curve.rows)?;
    }
    Ok(())
}
