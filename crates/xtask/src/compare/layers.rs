//! Ablation of neurons before the last layer against PyTorch with hooks.
//!
//! Ours ablates 64 neurons of a layer, and then few, over eight sequences, and its time is that of the whole process, with start-up
//! and mean activations. PyTorch takes some of the neurons over the first sequence, and its time leaves out imports, loading and mean
//! activations. Values are compared over the first sequence.

use std::path::Path;

use super::Setting;
use super::ablation::{run_of_ours, script_on};
use super::agreement::agree;
use super::process::Program;
use super::rounds::{Contest, Record, Side};

/// The first and a middle layer of six.
const LAYERS: [usize; 2] = [0, 3];
/// Neurons of ours: more than one batch of copies holds, and few.
const NEURONS: [(&str, usize); 2] = [("64 neurons", 64), ("4 neurons", 4)];
/// Neurons of PyTorch.
const THEIRS: usize = 16;
const THEIRS_QUICK: usize = 4;
/// Copies of the text in a forward of PyTorch.
const COPIES: [usize; 2] = [1, 8];

pub(super) fn contests(setting: &Setting) -> anyhow::Result<Vec<Contest<'_>>> {
    let model = setting.inputs.random_70m()?;
    let each = LAYERS.into_iter();
    each.map(|layer| contest(setting, layer, &model)).collect()
}

fn contest<'s>(setting: &'s Setting, layer: usize, model: &Path) -> anyhow::Result<Contest<'s>> {
    let sequences = if setting.quick {
        "0"
    } else {
        "0, 1, 2, 3, 4, 5, 6, 7"
    };
    let ours = |neurons: usize, sequences: &str, out: &Path| {
        let layer = format!("ablation.layer={layer}");
        let neurons = format!("ablation.neurons=0..{neurons}");
        let overrides = [
            layer.as_str(),
            &neurons,
            "ablation.variants=[total, frozen_band]",
            "ablation.resamples=0",
        ];
        run_of_ours(setting, &overrides, model, sequences, out)
    };
    let (mut sides, mut checks, mut tables) = (Vec::new(), Vec::new(), Vec::new());
    for (label, neurons) in NEURONS {
        let out = |of: &str| setting.work.join(format!("layers-{layer}-{neurons}-{of}"));
        let (timed, compared) = (out("timed"), out("compared"));
        sides.push(Side {
            label: format!("ours, {label}"),
            ours: true,
            program: ours(neurons, sequences, &timed)?,
            record: Some(Record::of_forwards(&timed)),
            whole: true,
            once: false,
        });
        checks.push((
            format!("ours, {label},"),
            ours(neurons, "0", &compared)?,
            compared.join("neurons.parquet"),
        ));
    }
    for copies in COPIES {
        let table = setting
            .work
            .join(format!("layers-{layer}-pytorch-{copies}.parquet"));
        let label = match copies {
            1 => "PyTorch with a hook, one neuron a forward".to_owned(),
            _ => format!("PyTorch with a hook, {copies} copies of the text a forward"),
        };
        let program = run_of_theirs(setting, layer, copies, model, &table)?;
        sides.push(Side::of_its_work(&label, false, program));
        tables.push((label, table));
    }
    Ok(Contest {
        title: format!(
            "Ablation of neurons of layer {layer} of 6, d = 512, V = 50,304, random weights"
        ),
        unit: "pair",
        sides,
        agree: Box::new(move || agree(setting, &checks, &tables)),
    })
}

fn run_of_theirs(
    setting: &Setting,
    layer: usize,
    copies: usize,
    model: &Path,
    table: &Path,
) -> anyhow::Result<Program> {
    let neurons = if setting.quick { THEIRS_QUICK } else { THEIRS };
    Ok(script_on(setting, "layers.py", model, table)?.args([
        "--layer",
        &layer.to_string(),
        "--copies",
        &copies.to_string(),
        "--neurons",
        &neurons.to_string(),
    ]))
}
