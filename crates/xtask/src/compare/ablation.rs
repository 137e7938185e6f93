//! Ablation of last-layer neurons, end to end with the table per neuron, against PyTorch.
//!
//! Ours ablates every neuron over eight sequences, and its time is that of the whole process, start-up included. PyTorch takes
//! a part of the neurons over the first sequence, and its time leaves out imports, loading and the forward of the model: both
//! count against us. Values are compared over the first sequence.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use serde_json::Value;

use super::Setting;
use super::environment::script;
use super::process::Program;
use super::rounds::{Agreement, Contest, Record, Side};

/// A way of ours: what it is called, and the settings that choose it.
struct Ours {
    label: &'static str,
    overrides: &'static [&'static str],
}

/// The ways of ours that are timed. Each is compared with PyTorch for the columns that both write.
const OURS: &[Ours] = &[
    Ours {
        label: "ours, exact, the same columns",
        overrides: &[
            "ablation.engine=exact",
            "ablation.variants=[total, frozen_band]",
            "ablation.resamples=0",
        ],
    },
    Ours {
        label: "ours, auto at 1e-6, the same columns",
        overrides: &[
            "ablation.engine=auto",
            "ablation.variants=[total, frozen_band]",
            "ablation.resamples=0",
        ],
    },
    Ours {
        label: "ours as it comes: auto, all readings, intervals",
        overrides: &[],
    },
];

/// A way of PyTorch.
struct Theirs {
    label: &'static str,
    way: &'static str,
    /// Neurons x positions at once.
    chunk: &'static str,
    neurons: usize,
    once: bool,
}

const THEIRS: &[Theirs] = &[
    Theirs {
        label: "PyTorch, its best chunk: 1 neuron x 32 positions",
        way: "forward",
        chunk: "1x32",
        neurons: 24,
        once: false,
    },
    Theirs {
        label: "PyTorch, closed form, 1 neuron x 32 positions",
        way: "closed-form",
        chunk: "1x32",
        neurons: 24,
        once: false,
    },
    Theirs {
        label: "PyTorch, the published chunk: 20 neurons x 252 positions",
        way: "forward",
        chunk: "20x252",
        neurons: 20,
        once: true,
    },
];

/// Neurons that PyTorch takes in a quick look.
const FEW: usize = 4;
/// The long-tail band, by ranks, so that both sides find it on their own.
pub(super) const BAND_RANK: &str = "48064";
pub(super) const BAND_PERCENTILE: &str = "20";
/// PyTorch's own float32 `log_softmax` is off by this much at 50,304 tokens, nats.
const TOLERANCE: &str = "3e-4";

pub(super) fn contests(setting: &Setting) -> anyhow::Result<Vec<Contest<'_>>> {
    Ok(vec![
        contest(
            setting,
            "lightly trained",
            "trained",
            &setting.inputs.trained_70m()?,
        )?,
        contest(
            setting,
            "random weights",
            "random",
            &setting.inputs.random_70m()?,
        )?,
    ])
}

fn contest<'s>(
    setting: &'s Setting,
    name: &str,
    short: &str,
    model: &Path,
) -> anyhow::Result<Contest<'s>> {
    let sequences = if setting.quick {
        "0"
    } else {
        "0, 1, 2, 3, 4, 5, 6, 7"
    };
    let mut sides = Vec::new();
    let mut checks = Vec::new();
    for (i, ours) in OURS.iter().enumerate() {
        let table = |rows: &str| setting.work.join(format!("ablation-{short}-{i}-{rows}"));
        let timed = table("timed");
        sides.push(Side {
            label: ours.label.into(),
            ours: true,
            program: run_of_ours(setting, ours.overrides, model, sequences, &timed)?,
            record: Some(Record::of_pairs(&timed)),
            whole: true,
            once: false,
        });
        let one = table("compared");
        checks.push((
            ours.label,
            run_of_ours(setting, ours.overrides, model, "0", &one)?,
            one,
        ));
    }
    let mut tables = Vec::new();
    for (i, theirs) in THEIRS.iter().enumerate() {
        if setting.quick && theirs.once {
            continue;
        }
        let table = setting
            .work
            .join(format!("ablation-{short}-pytorch-{i}.parquet"));
        sides.push(Side {
            label: theirs.label.into(),
            ours: false,
            program: run_of_theirs(setting, theirs, model, &table)?,
            record: None,
            whole: false,
            once: theirs.once,
        });
        tables.push((theirs.label, table));
    }
    Ok(Contest {
        title: format!("Ablation of last-layer neurons, d = 512, V = 50,304, N = 2,048, {name}"),
        unit: "pair",
        sides,
        agree: Box::new(move || agree(setting, &checks, &tables, TOLERANCE)),
    })
}

/// Our program over some sequences of the sample; later overrides win.
pub(super) fn run_of_ours(
    setting: &Setting,
    overrides: &[&str],
    model: &Path,
    sequences: &str,
    out: &Path,
) -> anyhow::Result<Program> {
    Ok(setting
        .program("ablate-unigram")?
        .args(setting.paths_of_ours(model, out)?)
        .args([
            "frequency=pythia",
            "ablation.neurons=all",
            "output.positions=false",
            &format!("band.lower=rank:{BAND_RANK}"),
            &format!("band.upper={BAND_PERCENTILE}"),
            &format!("ablation.sequences=[{sequences}]"),
        ])
        .args(overrides))
}

fn run_of_theirs(
    setting: &Setting,
    theirs: &Theirs,
    model: &Path,
    table: &Path,
) -> anyhow::Result<Program> {
    let neurons = if setting.quick { FEW } else { theirs.neurons };
    Ok(script_on(setting, "ablation.py", model, table)?.args([
        "--way",
        theirs.way,
        "--chunk",
        theirs.chunk,
        "--neurons",
        &neurons.to_string(),
    ]))
}

/// A script on a model and the tokens, counts and band of all comparisons, which writes a table.
pub(super) fn script_on(
    setting: &Setting,
    name: &str,
    model: &Path,
    table: &Path,
) -> anyhow::Result<Program> {
    let paths: [(&str, PathBuf); 4] = [
        ("--model", model.to_owned()),
        ("--token-file", setting.inputs.tokens()?),
        ("--counts", setting.inputs.bundled("pythia/unigrams.npy")),
        ("--out", table.to_owned()),
    ];
    let paths = paths.iter();
    let paths = paths.flat_map(|(name, path)| [(*name).into(), path.as_os_str().to_owned()]);
    let band = [
        "--band-rank",
        BAND_RANK,
        "--band-percentile",
        BAND_PERCENTILE,
    ];
    Ok(setting.script(name).args(paths).args(band))
}

/// Compares each table of ours with each of PyTorch's, over the sequence that both did.
pub(super) fn agree(
    setting: &Setting,
    ours: &[(impl Display, Program, PathBuf)],
    theirs: &[(impl Display, PathBuf)],
    tolerance: &str,
) -> anyhow::Result<Agreement> {
    let (mut equal, mut said) = (true, Vec::new());
    for (label, program, folder) in ours {
        program.run()?;
        for (way, table) in theirs {
            let found = same_effects(setting, &folder.join("neurons.parquet"), table, tolerance)?;
            equal &= found.equal;
            said.push(format!("{label} and {way}: {}", found.text));
        }
    }
    Ok(Agreement {
        equal,
        text: format!("{}; allowed {tolerance}.", said.join("; ")),
    })
}

/// Compares the effects of the neurons that two tables have both.
pub(super) fn same_effects(
    setting: &Setting,
    ours: &Path,
    theirs: &Path,
    tolerance: &str,
) -> anyhow::Result<Agreement> {
    let (equal, found, errors) = answer_of(setting, "agreement.py", ours, theirs, tolerance)?;
    let text = match found["largest_difference"].as_f64() {
        Some(largest) => format!(
            "{} neurons, {} columns, largest difference {largest:.1e} nats",
            found["neurons"], found["columns"]
        ),
        None => errors,
    };
    Ok(Agreement { equal, text })
}

/// What a script that compares two files says: whether they agree, its answer, and its errors.
pub(super) fn answer_of(
    setting: &Setting,
    name: &str,
    ours: &Path,
    theirs: &Path,
    tolerance: &str,
) -> anyhow::Result<(bool, Value, String)> {
    let mut python = Command::new(setting.pytorch.python());
    python
        .args(["-B", &script(name)])
        .args([ours, theirs])
        .args(["--atol", tolerance]);
    let output = python
        .output()
        .with_context(|| format!("failed to start `{name}`, which compares the values"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let answer = serde_json::from_str(text.trim()).unwrap_or_default();
    Ok((output.status.success(), answer, errors))
}
