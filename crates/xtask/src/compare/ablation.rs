//! Ablation of last-layer neurons, end to end with the table per neuron, against PyTorch.
//!
//! Ours ablates every neuron over eight sequences, and its time is that of the whole process, start-up included. PyTorch takes
//! a part of the neurons over the first sequence, and its time leaves out imports, loading and the forward of the model: both
//! count against us. Values are compared over the first sequence.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::Value;

use super::Setting;
use super::agreement::agree;
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

pub(super) fn contests(setting: &Setting) -> anyhow::Result<Vec<Contest<'_>>> {
    let title = |weights: &str| {
        format!("Ablation of last-layer neurons, d = 512, V = 50,304, N = 2,048, {weights}")
    };
    let models = [
        ("lightly trained", "trained", setting.inputs.trained_70m()?),
        ("random weights", "random", setting.inputs.random_70m()?),
    ];
    let of_model = |(weights, short, model): &(&str, &str, PathBuf)| {
        contest(setting, title(weights), short, model, (OURS, THEIRS))
    };
    models.iter().map(of_model).collect()
}

/// A whole run on a larger model, as it comes, beside PyTorch's ways that do not take an hour.
pub(super) fn whole_run(setting: &Setting) -> anyhow::Result<Vec<Contest<'_>>> {
    let model = setting.inputs.random("pythia-410m")?;
    let title = "A whole run: all neurons of the last layer of Pythia-410M's shape, d = 1,024, V = 50,304, N = 4,096, random weights";
    let sides = (&OURS[2..], &THEIRS[..2]);
    let mut contest = contest(setting, title.into(), "410m", &model, sides)?;
    // That of the last round; the comparison of values has another folder.
    let record = folder_of_ours(setting, "410m", 0, "timed").join("run.json");
    let agree = contest.agree;
    contest.agree = Box::new(move || {
        let found = agree()?;
        let text = format!("{} Steps of ours: {}.", found.text, steps(&record)?);
        Ok(Agreement { text, ..found })
    });
    Ok(vec![contest])
}

/// What the steps of a run took.
fn steps(record: &Path) -> anyhow::Result<String> {
    let read = || -> anyhow::Result<Value> { Ok(serde_json::from_slice(&fs::read(record)?)?) };
    let record = read().with_context(|| format!("failed to read `{}`", record.display()))?;
    let (all, steps) = (record["seconds"].as_f64(), &record["timings_seconds"]);
    let (all, steps) = all
        .zip(steps.as_object())
        .context("the record of a run has no `seconds`, or no `timings_seconds`")?;
    let steps = steps.iter();
    let steps: Vec<(&String, f64)> = steps
        .filter_map(|(step, took)| Some((step, took.as_f64()?)))
        .collect();
    let rest = all - steps.iter().map(|(_, took)| took).sum::<f64>();
    let steps = steps
        .iter()
        .map(|(step, took)| format!("`{step}` {took:.1} s, "));
    Ok(steps
        .chain([format!("loading and tables {rest:.1} s")])
        .collect())
}

fn folder_of_ours(setting: &Setting, short: &str, way: usize, rows: &str) -> PathBuf {
    setting.work.join(format!("ablation-{short}-{way}-{rows}"))
}

fn contest<'s>(
    setting: &'s Setting,
    title: String,
    short: &str,
    model: &Path,
    (of_ours, of_theirs): (&[Ours], &[Theirs]),
) -> anyhow::Result<Contest<'s>> {
    let sequences = if setting.quick {
        "0"
    } else {
        "0, 1, 2, 3, 4, 5, 6, 7"
    };
    let mut sides = Vec::new();
    let mut checks = Vec::new();
    for (i, ours) in of_ours.iter().enumerate() {
        let folder = |rows: &str| folder_of_ours(setting, short, i, rows);
        let timed = folder("timed");
        sides.push(Side {
            label: ours.label.into(),
            ours: true,
            program: run_of_ours(setting, ours.overrides, model, sequences, &timed)?,
            record: Some(Record::of_pairs(&timed)),
            whole: true,
            once: false,
        });
        let one = folder("compared");
        checks.push((
            ours.label,
            run_of_ours(setting, ours.overrides, model, "0", &one)?,
            one.join("neurons.parquet"),
        ));
    }
    let mut tables = Vec::new();
    for (i, theirs) in of_theirs.iter().enumerate() {
        if setting.quick && theirs.once {
            continue;
        }
        let table = setting
            .work
            .join(format!("ablation-{short}-pytorch-{i}.parquet"));
        let program = run_of_theirs(setting, theirs, model, &table)?;
        let side = Side::of_its_work(theirs.label, false, program);
        sides.push(Side {
            once: theirs.once,
            ..side
        });
        tables.push((theirs.label, table));
    }
    Ok(Contest {
        title,
        unit: "pair",
        sides,
        agree: Box::new(move || agree(setting, &checks, &tables)),
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
            // Kept ones would make every run but the first a shorter one.
            "means.keep=null",
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
