//! The closing summary of a run.

use std::fmt::Write;

use neuron_ablate::{
    AblateError, Effects, Measure, NeuronEffects, NeuronId, Sweep, Variant, mediated_share,
};

/// Neurons listed.
const LISTED: usize = 10;

/// The neurons with the largest total effect on long-tail tokens (on all tokens where the run has no band).
pub(crate) fn text(
    layer: usize,
    sweep: &Sweep<'_>,
    effects: &Effects,
    floor: f64,
) -> Result<String, AblateError> {
    let (total, direct) = (Variant::Total, sweep.direct());
    let banded = effects.neurons.iter().any(|n| n.effects.band_rows() > 0);
    let change = |neuron: &NeuronEffects, variant| match banded {
        true => neuron.effects.band_loss_change(variant),
        false => neuron.effects.change(variant, Measure::Loss).map(Some),
    };
    let mut ranked = Vec::new();
    for n in &effects.neurons {
        if let (Some(total), Some(direct)) = (change(n, total)?, change(n, direct)?) {
            ranked.push((n, total, direct));
        }
    }
    ranked.sort_by(|a, b| b.1.mean_abs.total_cmp(&a.1.mean_abs));

    let rows = effects.neurons.first().map_or(0, |n| {
        if banded {
            n.effects.band_rows()
        } else {
            n.effects.rows()
        }
    });
    let whom = if banded {
        "long-tail tokens"
    } else {
        "all tokens"
    };
    let mut text = format!(
        "\nLargest total effects on {whom} ({rows} of {} rows per neuron; nats):\n\n",
        effects.rows.kept
    );
    text.push_str("neuron    total effect  direct effect  mediated  without the neuron\n");
    for (neuron, total, direct) in ranked.iter().take(LISTED) {
        let name = NeuronId {
            layer,
            neuron: neuron.neuron,
        };
        let name = name.to_string();
        let share = mediated_share(total.mean_abs, direct.mean_abs, floor)
            .map_or("-".into(), |share| format!("{:.1} %", 100.0 * share));
        let sign = if total.mean < 0.0 {
            "predicted better"
        } else {
            "predicted worse"
        };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{name:<8}  {:>12.6}  {:>13.6}  {share:>8}  {sign} ({:+.6})",
            total.mean_abs, direct.mean_abs, total.mean
        );
    }
    text.push('\n');
    Ok(text)
}
