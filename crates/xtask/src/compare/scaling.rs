//! What our ablation costs as neurons and rows grow; nobody else takes part.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};

use super::Setting;
use super::ablation::run_of_ours;
use super::environment::script;
use super::rounds::{Agreement, Contest, Side};

/// Neurons, and sequences of the sample.
const SIZES: [(usize, usize); 6] = [
    (512, 4),
    (1024, 4),
    (2048, 4),
    (2048, 1),
    (2048, 2),
    (2048, 8),
];
const ENGINES: [&str; 2] = ["exact", "auto"];

pub(super) fn contests(setting: &Setting) -> anyhow::Result<Vec<Contest<'_>>> {
    ENGINES
        .map(|engine| contest(setting, engine))
        .into_iter()
        .collect()
}

fn contest<'s>(setting: &'s Setting, engine: &str) -> anyhow::Result<Contest<'s>> {
    let model = setting.inputs.trained_70m()?;
    let mut sides = Vec::new();
    for (neurons, sequences) in SIZES {
        let out = setting
            .work
            .join(format!("scaling-{engine}-{neurons}-{sequences}"));
        let of_sequences: Vec<String> = (0..sequences).map(|i| i.to_string()).collect();
        let overrides = [
            &format!("ablation.engine={engine}"),
            &format!("ablation.neurons=0..{neurons}"),
            "ablation.resamples=0",
        ];
        sides.push(Side {
            label: format!("{neurons} neurons, {sequences} sequences"),
            ours: sides.is_empty(),
            program: run_of_ours(setting, &overrides, &model, &of_sequences.join(", "), &out)?,
            record: Some(out.join("run.json")),
            whole: true,
            once: false,
        });
    }
    let tables = SIZES.map(|(neurons, sequences)| {
        let out = format!("scaling-{engine}-{neurons}-{sequences}");
        setting.work.join(out).join("neurons.parquet")
    });
    Ok(Contest {
        title: format!(
            "Our ablation alone, all readings, `engine={engine}`, d = 512, V = 50,304, lightly trained"
        ),
        unit: "pair",
        sides,
        agree: Box::new(move || agree(setting, &tables)),
    })
}

/// A neuron's effects do not depend on what other neurons are asked for.
fn agree(setting: &Setting, tables: &[PathBuf]) -> anyhow::Result<Agreement> {
    let [few, _, many, ..] = tables else {
        bail!("there are too few tables to compare");
    };
    let mut python = Command::new(setting.pytorch.python());
    python
        .args(["-B", &script("agreement.py")])
        .arg(many)
        .arg(few)
        .args(["--atol", "1e-7"]);
    let output = python
        .output()
        .context("failed to start the script that compares tables")?;
    let text = String::from_utf8_lossy(if output.status.success() {
        &output.stdout
    } else {
        &output.stderr
    });
    Ok(Agreement {
        equal: output.status.success(),
        text: format!(
            "effects of the neurons that both the first and the third run did: {}",
            text.trim()
        ),
    })
}
