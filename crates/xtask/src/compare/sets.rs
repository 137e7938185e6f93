//! Sets of last-layer neurons changed together against PyTorch.
//!
//! Ours measures a list of 64 neurons in sets of 1, 2, 4, ..., 64 and six lists of controls, over eight sequences, and its time is that of
//! the whole process, with start-up, mean activations, the choice of controls and the ablation of one neuron. PyTorch measures the sets of
//! the list itself over the first sequence, and its time leaves out imports, loading and the forward of the model. Values are compared
//! over the first sequence.

use std::path::Path;

use super::Setting;
use super::ablation::{run_of_ours, script_on};
use super::agreement::agree;
use super::process::Program;
use super::rounds::{Contest, Record, Side};

const LARGEST: usize = 64;
const SIZES: &str = "1,2,4,8,16,32,64";
/// Of each of the three kinds.
const DRAWS: usize = 2;

pub(super) fn contests(setting: &Setting) -> anyhow::Result<Vec<Contest<'_>>> {
    let model = setting.inputs.random_70m()?;
    let timed = setting.work.join("sets-timed");
    let compared = setting.work.join("sets-compared");
    let table = setting.work.join("sets-pytorch.parquet");
    let sequences = if setting.quick {
        "0"
    } else {
        "0, 1, 2, 3, 4, 5, 6, 7"
    };
    let theirs = script_on(setting, "sets.py", &model, &table)?.args(["--sizes", SIZES]);
    let sides = vec![
        Side {
            label: "ours".into(),
            ours: true,
            program: ours(setting, &model, sequences, DRAWS, &timed)?,
            record: Some(Record::of_sets(&timed)),
            whole: true,
            once: false,
        },
        Side::of_its_work("PyTorch, 32 positions at once", false, theirs),
    ];
    let one = ours(setting, &model, "0", 0, &compared)?;
    let checks = [("ours", one, compared.join("sets.parquet"))];
    let tables = [("PyTorch", table)];
    Ok(vec![Contest {
        title: "Sets of 1 to 64 last-layer neurons (triples of row, set and dose), d = 512, V = 50,304, random weights".into(),
        unit: "triple",
        sides,
        agree: Box::new(move || agree(setting, &checks, &tables)),
    }])
}

fn ours(
    setting: &Setting,
    model: &Path,
    sequences: &str,
    draws: usize,
    out: &Path,
) -> anyhow::Result<Program> {
    let layer = 5;
    let neurons: Vec<String> = (0..LARGEST).map(|n| format!("\"{layer}.{n}\"")).collect();
    let overrides = [
        "ablation.neurons=[0]",
        "ablation.variants=[total, frozen_band]",
        "ablation.resamples=0",
        "sets=doubling",
        &format!("sets.neurons.list=[{}]", neurons.join(", ")),
        &format!("sets.controls.draws={draws}"),
    ];
    run_of_ours(setting, &overrides, model, sequences, out)
}
