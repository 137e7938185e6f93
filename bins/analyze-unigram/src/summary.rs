//! What a run prints when it is done.

use std::fmt::Write as _;

use neuron_select::{ControlKind, Measure};

use crate::{
    analysis::{SetName, StepAnalysis},
    config::AnalyzeConfig,
    stability::Overlap,
};

/// The selected neurons of each step, and how stable they are.
pub(crate) fn text(
    config: &AnalyzeConfig,
    steps: &[StepAnalysis],
    overlaps: &[Overlap],
) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    writeln!(text, "Selected: {}.", config.selection.criteria())?;
    for step in steps {
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
            let share = step
                .direct(neuron.ranked.mediated_share)
                .map_or("undefined".to_owned(), |share| {
                    format!("{:.1} %", 100.0 * share)
                });
            let ranks = step
                .rank_intervals
                .get(&effects.neuron)
                .map_or(String::new(), |r| format!("{}-{}", r.low, r.high));
            let interval = neuron.change.map_or(String::new(), |i| {
                format!("[{:+.5}, {:+.5}]", i.lower, i.upper)
            });
            let doubt = match neuron.sign_is_certain() {
                Some(false) => '*',
                _ => ' ',
            };
            writeln!(
                text,
                "  {:>4}  {:<9} {:>13.5} {:>14} {:>9} {:>+12.5} {:>+12.5}  {interval:>20}{doubt} {ranks}",
                i + 1,
                effects.neuron.to_string(),
                effects.total_effect,
                step.direct(Some(effects.direct_effect))
                    .map_or("left out".to_owned(), |direct| format!("{direct:.5}")),
                share,
                effects.loss_change,
                effects.kl_change,
            )?;
        }
        let doubtful = step.selected.iter();
        let doubtful = doubtful.filter(|n| n.sign_is_certain() == Some(false));
        match doubtful.count() {
            0 => {}
            n => writeln!(
                text,
                "  * {n} of {}: the interval includes 0, so that on other text the sign may be the other one",
                step.selected.len()
            )?,
        }
        let baselines = step.baselines();
        if !baselines.is_empty() {
            writeln!(text, "  {}", baselines.trim_end_matches("; "))?;
        }
        for fitted in &step.cross_fits {
            let interval = fitted.interval.map_or(String::new(), |i| {
                format!(" [{:+.5}, {:+.5}]", i.lower, i.upper)
            });
            let shrinkage = fitted.fit.shrinkage().map_or(String::new(), |share| {
                format!(", shrinks by {:.0} %", 100.0 * share)
            });
            writeln!(
                text,
                "  mean {} of the selection: {:+.5} where selected, {:+.5}{interval} on held-out documents{shrinkage}",
                fitted.measure.replace('_', " "),
                fitted.fit.in_sample,
                fitted.fit.held_out,
            )?;
        }
        for effect in &step.band_effects {
            if let Some(p) = effect.rank_p {
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
        }
        for curve in &step.curves {
            writeln!(
                text,
                "  influence on {} rows: {}",
                curve.rows,
                curve.in_words()
            )?;
        }
    }
    if let (Some(first), Some(last)) = (overlaps.first(), overlaps.last()) {
        writeln!(text, "\nOverlap of selections between steps (Jaccard):")?;
        for overlap in overlaps
            .iter()
            .filter(|o| o.step == first.step || o.other == last.other)
        {
            writeln!(
                text,
                "  {} and {}: {}{}",
                overlap.step,
                overlap.other,
                overlap
                    .jaccard
                    .map_or("undefined".to_owned(), |j| format!("{j:.2}")),
                overlap
                    .chance
                    .map_or(String::new(), |j| format!(" ({j:.2} by chance)"))
            )?;
        }
    }
    writeln!(text, "\nEffects and changes are in nats.")?;
    Ok(text)
}
