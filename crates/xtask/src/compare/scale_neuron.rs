//! Scaled rows of `W_U` and scaled neurons against PyTorch, which finds the null space and the changes by itself.
//!
//! Ours measures four sequences, and its time is that of the whole process, start-up and null space included. PyTorch measures the
//! first one, and its time leaves out imports, loading, the null space and the forward of the model. Values are compared over the first
//! sequence.

use std::path::Path;

use super::Setting;
use super::ablation::{BAND_PERCENTILE, BAND_RANK, script_on};
use super::agreement::agree;
use super::process::Program;
use super::rounds::{Contest, Record, Side};

const FACTORS: &str = "0, 0.5, 1.25, 1.5, 2, 3, 5";
/// Rows of `W_U` and neurons, at seven factors.
const CHANGES: usize = 2 * 7;

pub(super) fn contests(setting: &Setting) -> anyhow::Result<Vec<Contest<'_>>> {
    let model = setting.inputs.random_70m()?;
    let timed = setting.work.join("scale-neuron-timed");
    let compared = setting.work.join("scale-neuron-compared");
    let table = setting.work.join("scale-neuron-pytorch.parquet");
    let sequences = if setting.quick { "0" } else { "0, 1, 2, 3" };
    let sides = vec![
        Side {
            label: "ours".into(),
            ours: true,
            program: run_of_ours(setting, &model, sequences, &timed)?,
            record: Some(Record::of_rows(&timed, CHANGES)),
            whole: true,
            once: false,
        },
        Side::of_its_work(
            "PyTorch, 32 positions at once",
            false,
            run_of_theirs(setting, &model, &table)?,
        ),
    ];
    let one = run_of_ours(setting, &model, "0", &compared)?;
    let ours = [("ours", one, compared.join("effects.parquet"))];
    let theirs = [("PyTorch", table)];
    Ok(vec![Contest {
        title: "Scaled rows and neurons (triples of row, change and factor), d = 512, V = 50,304, random weights"
            .into(),
        unit: "triple",
        sides,
        agree: Box::new(move || agree(setting, &ours, &theirs)),
    }])
}

fn run_of_ours(
    setting: &Setting,
    model: &Path,
    sequences: &str,
    out: &Path,
) -> anyhow::Result<Program> {
    let layer = 5;
    let neurons: Vec<String> = (0..10).map(|n| format!("\"{layer}.{n}\"")).collect();
    Ok(setting
        .program("scale-neuron")?
        .args(setting.paths_of_ours(model, out)?)
        .args([
            "frequency=pythia",
            "controls.draws=0",
            "output.report=off",
            &format!("neurons.list=[{}]", neurons.join(", ")),
            &format!("evaluation.factors=[{FACTORS}]"),
            &format!("evaluation.sequences=[{sequences}]"),
            &format!("band.lower=rank:{BAND_RANK}"),
            &format!("band.upper={BAND_PERCENTILE}"),
        ]))
}

fn run_of_theirs(setting: &Setting, model: &Path, table: &Path) -> anyhow::Result<Program> {
    Ok(script_on(setting, "scale_neuron.py", model, table)?.args([
        "--neurons",
        "0,1,2,3,4,5,6,7,8,9",
        "--factors",
        &FACTORS.replace(' ', ""),
    ]))
}
