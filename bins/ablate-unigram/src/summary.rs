//! The closing summary of a run.

use std::fmt::Write;

use neuron_ablate::{
    AblateError, EffectSums, HeadEffects, Measure, NeuronEffects, Sweep, Variant, mediated_share,
};

/// The place of the long-tail band among the bands.
const LONG_TAIL: usize = 0;

/// Neurons listed.
const LISTED: usize = 10;

/// The neurons with the largest total effect on long-tail tokens (on all tokens where the run has no band).
pub(crate) fn neurons(
    sweep: &Sweep<'_>,
    neurons: &[NeuronEffects],
    floor: f64,
) -> Result<String, AblateError> {
    let named = neurons.iter().map(|n| (n.id().to_string(), &n.effects));
    let effects: Vec<_> = named.collect();
    text("neuron", sweep, &effects, floor)
}

/// The same of attention heads.
pub(crate) fn heads(
    sweep: &Sweep<'_>,
    heads: &[HeadEffects],
    floor: f64,
) -> Result<String, AblateError> {
    let named = |h: &HeadEffects| h.head.to_string();
    let effects: Vec<_> = heads.iter().map(|h| (named(h), &h.effects)).collect();
    text("head", sweep, &effects, floor)
}

fn text(
    what: &str,
    sweep: &Sweep<'_>,
    effects: &[(String, &EffectSums)],
    floor: f64,
) -> Result<String, AblateError> {
    let (total, direct) = (Variant::Total, sweep.direct());
    let banded = effects.iter().any(|(_, e)| e.band_rows(LONG_TAIL) > 0);
    let change = |effects: &EffectSums, variant| match banded {
        true => effects.band_loss_change(variant, LONG_TAIL),
        false => effects.change(variant, Measure::Loss).map(Some),
    };
    let mut ranked = Vec::new();
    for (name, e) in effects {
        if let (Some(total), Some(direct)) = (change(e, total)?, change(e, direct)?) {
            ranked.push((name, total, direct));
        }
    }
    ranked.sort_by(|a, b| b.1.mean_abs.total_cmp(&a.1.mean_abs));

    let kept = effects.first().map_or(0, |(_, e)| e.rows());
    let rows = effects.first().map_or(0, |(_, e)| {
        if banded {
            e.band_rows(LONG_TAIL)
        } else {
            e.rows()
        }
    });
    let whom = if banded {
        "long-tail tokens"
    } else {
        "all tokens"
    };
    let mut text =
        format!("\nLargest total effects on {whom} ({rows} of {kept} rows per {what}; nats):\n\n");
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{what:<8}  total effect  direct effect  mediated  without the {what}"
    );
    for (name, total, direct) in ranked.iter().take(LISTED) {
        let share = mediated_share(total.mean_abs, direct.mean_abs, floor)
            .map_or("-".into(), |share| format!("{:.1} %", 100.0 * share));
        let sign = if total.mean < 0.0 {
            "predicted better"
        } else {
            "predicted worse"
        };
        let _ = writeln!(
            text,
            "{name:<8}  {:>12.6}  {:>13.6}  {share:>8}  {sign} ({:+.6})",
            total.mean_abs, direct.mean_abs, total.mean
        );
    }
    text.push('\n');
    Ok(text)
}
