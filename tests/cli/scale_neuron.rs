//! The binary `scale-neuron`, from YAML to files.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod columns;
mod examples;

use std::{collections::BTreeMap, fs, path::Path};

use assert_cmd::Command;
use job_kit::TableReader;
use tempfile::TempDir;

use examples::root;

mod random_gpt2;

/// A small run from the root, writing to `out`.
fn scale(out: &Path, overrides: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scale-neuron"));
    let small = [
        "corpus.rows=0..40",
        "corpus.context_length=64",
        "evaluation.sequences=3",
        "controls.draws=1",
        "evaluation.factors=[3.0]",
        "bootstrap.resamples=50",
    ];
    command
        .current_dir(root())
        .arg(format!("output.dir={}", out.display()))
        .args(small)
        .args(overrides);
    command
}

fn record(dir: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(dir.join("run.json")).unwrap()).unwrap()
}

#[test]
fn examples_run_as_printed() {
    examples::Work::new(env!("CARGO_BIN_EXE_scale-neuron"))
        .put("outputs/analyze-unigram/selection.csv", examples::SELECTION)
        .run();
}

#[test]
fn writes_everything_it_says() {
    let out = TempDir::new().unwrap();
    let output = scale(out.path(), &["evaluation.sequences=20"])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(
        stdout.contains("matched-neurons") && stdout.contains("rows (log)"),
        "{stdout}"
    );
    columns::are_documented("scale-neuron", out.path());
    for file in [
        "neurons.parquet",
        "effects.parquet",
        "contrasts.parquet",
        "trade-off.svg",
        "trade-off.png",
        "report.html",
    ] {
        assert!(out.path().join(file).is_file(), "{file} is missing");
    }
    let neurons = TableReader::open(out.path().join("neurons.parquet"))
        .unwrap()
        .read(&["component_name", "null_space_share", "scaled"])
        .unwrap();
    assert_eq!(neurons.rows(), 256);
    assert_eq!(
        neurons
            .bool("scaled")
            .unwrap()
            .iter()
            .filter(|scaled| **scaled)
            .count(),
        10
    );
    assert!(
        neurons
            .f64("null_space_share")
            .unwrap()
            .iter()
            .all(|share| (0.0..=1.0).contains(share))
    );

    // Rows and neurons at two factors; at the base factor their controls, of 1 and 4 kinds, and the neurons that have a match; eight measures.
    let columns = [
        "scaled",
        "control",
        "factor",
        "targets",
        "measure",
        "clean",
        "change",
        "change_low",
        "change_high",
        "clusters",
    ];
    let effects = TableReader::open(out.path().join("effects.parquet"))
        .unwrap()
        .read(&columns)
        .unwrap();
    let groups: std::collections::BTreeSet<_> =
        effects.text("targets").unwrap().into_iter().collect();
    assert!(groups.len() >= 3, "{groups:?}");
    assert_eq!(effects.rows(), (2 * 2 + 1 + 5) * 8 * groups.len());
    let (low, change, high) = (
        effects.opt_f64("change_low").unwrap(),
        effects.f64("change").unwrap(),
        effects.opt_f64("change_high").unwrap(),
    );
    // Intervals wherever eight documents have such rows, as they have of all targets.
    let (clusters, targets) = (
        effects.i64("clusters").unwrap(),
        effects.text("targets").unwrap(),
    );
    assert!((0..effects.rows()).all(|i| targets[i] != "all" || clusters[i] >= 8));
    for i in 0..effects.rows() {
        match low[i].zip(high[i]) {
            Some((low, high)) => {
                assert!(clusters[i] >= 8 && low <= change[i] && change[i] <= high);
            }
            None => assert!(clusters[i] < 8),
        }
    }
    for (i, measure) in effects.text("measure").unwrap().iter().enumerate() {
        if measure.starts_with("kl_") || measure == "jensen_shannon" {
            assert!(change[i] >= 0.0, "{measure}: {}", change[i]);
        }
    }
    let contrasts = TableReader::open(out.path().join("contrasts.parquet"))
        .unwrap()
        .read(&["control", "p", "excess_low"])
        .unwrap();
    // One draw: the selection is as far from the common mean as its control, and nothing says how far draws differ.
    assert!(contrasts.f64("p").unwrap().iter().all(|p| *p == 1.0));
    let ends = contrasts.opt_f64("excess_low").unwrap();
    assert!(ends.iter().all(Option::is_none));
    assert_eq!(contrasts.rows(), 4 * 8 * groups.len());
    let warnings = record(out.path())["warnings"].to_string();
    assert!(
        warnings.contains("no neuron alike within `controls.caliper`"),
        "{warnings}"
    );
    let note = &record(out.path())["notes"]["null_space"];
    assert_eq!(
        note["dimension"].as_u64().unwrap() + note["rank"].as_u64().unwrap(),
        63
    );
}

/// Scaled neurons against controls: what is named is what they share, and a set of neurons counts as one draw more.
#[test]
fn neurons_are_held_against_controls() {
    let out = TempDir::new().unwrap();
    let few = [
        "scaling.laws=[]",
        "evaluation.sequences=20",
        "evaluation.factors=[]",
        "controls.draws=8",
        "output.report=off",
        "neurons.list=['3.132', '3.75']",
    ];
    for (choice, traits) in [
        (
            "controls.match=intervention",
            &["log_change_length", "active_share", "active_loss"][..],
        ),
        (
            "controls.match=activation-and-norm",
            &["mean_activation", "w_out_norm"],
        ),
    ] {
        scale(out.path(), &[&few[..], &[choice]].concat())
            .assert()
            .success();
        let table = |name: &str, columns: &[&str]| {
            let table = TableReader::open(out.path().join(name)).unwrap();
            table.read(columns).unwrap()
        };
        let balance = table("balance.parquet", &["kind", "trait"]);
        assert_eq!(balance.text("trait").unwrap(), traits.repeat(2));
        let numbers = ["change", "change_of_controls", "excess", "p", "q"];
        let ends = ["excess_low", "excess_high"];
        let contrasts = table("contrasts.parquet", &[&numbers[..], &ends].concat());
        let [change, controls, excess, p, q] = numbers.map(|name| contrasts.f64(name).unwrap());
        let [low, high] = ends.map(|name| contrasts.opt_f64(name).unwrap());
        for i in 0..contrasts.rows() {
            assert!((change[i] - controls[i] - excess[i]).abs() < 1e-12);
            assert!(p[i] >= 1.0 / 9.0 && q[i] >= p[i], "{choice}, row {i}");
            if let Some((low, high)) = low[i].zip(high[i]) {
                assert!(low <= excess[i] && excess[i] <= high, "{choice}, row {i}");
            }
        }
        assert!(low.iter().any(Option::is_some), "{choice}");
    }
    refuses(&["controls.caliper=0"], &["controls.caliper", "positive"]);
    refuses(
        &["controls.match=activation-and-norm", "controls.caliper=0.3"],
        &["controls.caliper", "nearest ones"],
    );
}

/// Made by the Python package of Liu et al. in f32 (tests/golden/README.md).
#[test]
fn the_python_original_is_a_preset() {
    let golden: serde_json::Value = serde_json::from_slice(
        &fs::read(root().join("tests/golden/tiny-neox/null-space.json")).unwrap(),
    )
    .unwrap();
    let out = TempDir::new().unwrap();
    scale(
        out.path(),
        &[
            "scaling=liu2025",
            "neurons=null",
            "controls.draws=0",
            "output.report=off",
        ],
    )
    .assert()
    .success();
    let note = &record(out.path())["notes"]["null_space"];
    for law in ["linear", "log", "power"] {
        let expected = &golden["results"][law];
        assert_eq!(note["dimension"], expected["null_dim"]);
        assert_eq!(note["rare_tokens"], expected["rare_tokens"]);
        let found = note["weight_change_frobenius"][format!("rows ({law})")]
            .as_f64()
            .unwrap();
        let expected = expected["delta_frobenius"].as_f64().unwrap();
        assert!(
            (found - expected).abs() < 2e-5 * expected,
            "{law}: {found}, expected {expected}"
        );
    }
    assert!(!out.path().join("report.html").exists());
}

/// Clean loss and its change, of the first change that is no control.
fn effects(dir: &Path) -> (f64, f64) {
    let table = TableReader::open(dir.join("effects.parquet"))
        .unwrap()
        .read(&["control", "targets", "measure", "factor", "clean", "change"])
        .unwrap();
    let (controls, targets, measures) = (
        table.opt_text("control").unwrap(),
        table.text("targets").unwrap(),
        table.text("measure").unwrap(),
    );
    let at = (0..table.rows())
        .find(|&i| controls[i].is_none() && targets[i] == "all" && measures[i] == "loss")
        .unwrap();
    (
        table.f64("clean").unwrap()[at],
        table.f64("change").unwrap()[at],
    )
}

#[test]
fn a_written_checkpoint_is_a_model_for_the_next_run() {
    let out = TempDir::new().unwrap();
    scale(
        out.path(),
        &[
            "checkpoint={scaled: neurons, dtype: f32}",
            "scaling.factor=3.0",
            "scaling.laws=[]",
        ],
    )
    .assert()
    .success();
    let (clean, change) = effects(out.path());
    assert!(change.abs() > 1e-5, "{change}");
    let checkpoint = format!("model.path={}", out.path().join("checkpoint").display());
    let again = TempDir::new().unwrap();
    // Another model drops the neurons of the default one: rows are scaled alone, and this is said.
    scale(again.path(), &[&checkpoint]).assert().success();
    let warnings = record(again.path())["warnings"].to_string();
    assert!(warnings.contains("no neurons are named"), "{warnings}");
    let (after, _) = effects(again.path());
    assert!(
        (after - clean - change).abs() < 1e-5,
        "{after} is not {clean} + {change}"
    );
}

/// GPT-2 ties its unembedding to the embedding: scaled, it is saved as a matrix of its own.
#[test]
fn a_tied_gpt2_is_scaled_and_saved_untied() {
    let model = TempDir::new().unwrap();
    random_gpt2::write(model.path());
    let path = format!("model.path={}", model.path().display());
    let out = TempDir::new().unwrap();
    let rows = [
        path.as_str(),
        "neurons=null",
        "scaling.laws=[linear]",
        "scaling.factor=3.0",
    ];
    let saved = "checkpoint={scaled: rows, law: linear, dtype: f32}";
    scale(out.path(), &[&rows[..], &[saved]].concat())
        .assert()
        .success();
    let checkpoint = out.path().join("checkpoint");
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(checkpoint.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["tie_word_embeddings"], false);
    let (clean, change) = effects(out.path());
    assert!(change.abs() > 1e-5, "{change}");
    let scaled = format!("model.path={}", checkpoint.display());
    let again = TempDir::new().unwrap();
    scale(again.path(), &[&scaled, "neurons=null"])
        .assert()
        .success();
    let (after, _) = effects(again.path());
    assert!(
        (after - clean - change).abs() < 1e-5,
        "{after} is not {clean} + {change}"
    );

    // Output weights, which GPT-2 stores transposed.
    let out = TempDir::new().unwrap();
    let neurons = [
        path.as_str(),
        "neurons.list=['1.3', '1.77', '1.101']",
        "scaling.laws=[]",
        "scaling.factor=3.0",
        "checkpoint={scaled: neurons, dtype: f32}",
    ];
    scale(out.path(), &neurons).assert().success();
    let (clean, change) = effects(out.path());
    let scaled = format!("model.path={}", out.path().join("checkpoint").display());
    let again = TempDir::new().unwrap();
    scale(again.path(), &[&scaled, "neurons=null"])
        .assert()
        .success();
    let (after, _) = effects(again.path());
    assert!(change.abs() > 1e-6 && (after - clean - change).abs() < 1e-5);
}

#[test]
fn a_selection_file_names_the_neurons() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("selection.csv");
    fs::write(
        &file,
        "step,top_neurons\n4000,\"['3.10', '3.1', '3.7']\"\n1000,\"['3.2']\"\n",
    )
    .unwrap();
    let file = format!("neurons.file={}", file.display());
    let args = [file.as_str(), "neurons.list=null", "scaling.laws=[]"];
    refuses(&args, &["key `step` beside `file`", "4000", "1000"]);
    let out = TempDir::new().unwrap();
    scale(
        out.path(),
        &[&args[..], &["neurons.step=4000", "neurons.top=2"]].concat(),
    )
    .assert()
    .success();
    let neurons = TableReader::open(out.path().join("neurons.parquet"))
        .unwrap()
        .read(&["component_name", "scaled"])
        .unwrap();
    let (names, scaled) = (
        neurons.text("component_name").unwrap(),
        neurons.bool("scaled").unwrap(),
    );
    let named: Vec<&str> = names
        .iter()
        .zip(scaled)
        .filter(|(_, scaled)| *scaled)
        .map(|(name, _)| name.as_str())
        .collect();
    assert_eq!(named, ["3.1", "3.10"]);
    // Nothing says on which text they were selected; then that it is this one, and other text.
    let said = || record(out.path())["notes"]["selected_on_measured_text"].clone();
    assert_eq!(said(), serde_json::Value::Null);
    for (rows, shared) in [("20..150", true), ("40..150", false)] {
        let corpus =
            serde_json::json!({"path": "examples/data/corpus/held-out.jsonl", "rows": rows});
        let run = serde_json::json!({
            "outputs": {"selection.csv": {}},
            "notes": {"ablation": {"corpus": corpus, "ablation": {"sequences": 10}, "seed": 42}},
        });
        fs::write(dir.path().join("run.json"), run.to_string()).unwrap();
        scale(out.path(), &[&args[..], &["neurons.step=4000"]].concat())
            .assert()
            .success();
        assert_eq!(said(), shared, "{rows}");
        let warnings = record(out.path())["warnings"].to_string();
        let told = warnings.contains("documents of `examples/data/corpus/held-out.jsonl`");
        assert_eq!(told, shared, "{warnings}");
    }
}

/// A wrong input: exit code 1 or 2, every fragment in the error, nothing under a final name.
#[track_caller]
fn refuses(overrides: &[&str], fragments: &[&str]) {
    let out = TempDir::new().unwrap();
    let output = scale(out.path(), overrides).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        matches!(output.status.code(), Some(1 | 2)),
        "{:?}: {stderr}",
        output.status
    );
    for fragment in fragments {
        assert!(stderr.contains(fragment), "no `{fragment}` in: {stderr}");
    }
    for name in ["neurons.parquet", "effects.parquet", "run.json"] {
        assert!(!out.path().join(name).exists(), "{name} was written");
    }
}

/// Mean losses of the checkpoint that was written are the ones that were measured; controls and shares are of the neurons' layers.
#[test]
fn neurons_of_several_layers_are_scaled_as_in_the_checkpoint_that_is_written() {
    let out = TempDir::new().unwrap();
    let output = scale(
        out.path(),
        &[
            "neurons.list=[\"0.3\", \"0.200\", \"2.7\"]",
            "scaling.laws=[]",
            "scaling.factor=4",
            "evaluation.factors=[1.0]",
            "checkpoint={scaled: neurons, dtype: f32}",
        ],
    )
    .output()
    .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("the model runs on"), "{stderr}");
    let table = |dir: &Path, file: &str, columns: &[&str]| {
        let reader = TableReader::open(dir.join(file)).unwrap();
        reader.read(columns).unwrap()
    };
    let columns = ["layer", "component_name", "scaled"];
    let neurons = table(out.path(), "neurons.parquet", &columns);
    let mut layers = neurons.i64("layer").unwrap();
    layers.dedup();
    assert_eq!(layers, [0, 2]);
    let names = neurons.text("component_name").unwrap().into_iter();
    let scaled = names.zip(neurons.bool("scaled").unwrap());
    let scaled: Vec<String> = scaled.filter(|(_, on)| *on).map(|(name, _)| name).collect();
    assert_eq!(scaled, ["0.3", "0.200", "2.7"]);

    // The same rows of the written checkpoint, unchanged, beside those of the original one.
    let again = TempDir::new().unwrap();
    let checkpoint = format!("model.path={}", out.path().join("checkpoint").display());
    scale(again.path(), &[&checkpoint, "neurons=null"])
        .assert()
        .success();
    let columns = ["control", "factor", "targets", "measure", "clean", "change"];
    let rows = |dir: &Path| {
        let effects = table(dir, "effects.parquet", &columns);
        let control = effects.opt_text("control").unwrap();
        let (targets, measure) = (
            effects.text("targets").unwrap(),
            effects.text("measure").unwrap(),
        );
        let [factor, clean, change] =
            ["factor", "clean", "change"].map(|name| effects.f64(name).unwrap());
        let treated = (0..targets.len()).filter(|&i| control[i].is_none());
        let row = |i: usize| {
            (
                (targets[i].clone(), measure[i].clone()),
                [factor[i], clean[i], change[i]],
            )
        };
        treated.map(row).collect::<Vec<_>>()
    };
    let written: BTreeMap<_, _> = rows(again.path()).into_iter().collect();
    let mut compared = 0;
    for (of, [factor, clean, change]) in rows(out.path()) {
        if factor == 1.0 {
            assert_eq!(change, 0.0, "{of:?}");
        } else if ["loss", "entropy"].contains(&of.1.as_str()) {
            let [_, expected, _] = written[&of];
            let off = (clean + change - expected).abs();
            assert!(
                off < 2e-5,
                "{of:?}: {clean} {change:+}, expected {expected}"
            );
            assert!(change.abs() > 1e-4, "{of:?}: the factor changes nothing");
            compared += 1;
        }
    }
    assert!(compared >= 6, "{compared}");
}

/// An estimate is told, and nothing is written; a run says before it measures what it takes, and what it writes is near to that.
#[test]
fn an_estimate_is_near_what_is_written() {
    let out = TempDir::new().unwrap();
    let tables = ["controls.draws=4", "evaluation.factors=[0.0, 0.5, 2.0]"];
    let checkpoint = ["checkpoint={scaled: neurons, dtype: f32}"];
    for (name, more) in [("tables", &tables[..]), ("checkpoint", &checkpoint)] {
        let folder = out.path().join(name);
        let told = scale(&folder, more).arg("--estimate").assert().success();
        let text = String::from_utf8_lossy(&told.get_output().stdout).into_owned();
        for part in ["1 checkpoint of", "second", "of disk", "of memory"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!folder.exists());
        scale(&folder, more).assert().success();
        let run = record(&folder);
        let estimate = run["notes"]["estimate"]["disk_bytes"].as_f64().unwrap();
        let outputs = run["outputs"].as_object().unwrap().values();
        let written: f64 = outputs.map(|file| file["bytes"].as_f64().unwrap()).sum();
        assert!(
            estimate > 0.7 * written && estimate < 2.0 * written,
            "{name}: {estimate} {written}"
        );
    }
}

#[test]
fn refuses_what_it_cannot_do() {
    refuses(&["neurons.list=[\"4.5\"]"], &["4.5", "layers 0 to 3"]);
    refuses(&["neurons.list=[\"3.256\"]"], &["3.256", "256 neurons"]);
    refuses(&["neurons.list=[\"3.5\", \"3.5\"]"], &["3.5", "twice"]);
    refuses(&["neurons=null", "scaling.laws=[]"], &["nothing to scale"]);
    refuses(&["scaling.rank=63"], &["63 of 63"]);
    refuses(&["scaling.variance=1.5"], &["variance", "1.5"]);
    refuses(
        &["scaling.rare=band", "band=none"],
        &["scaling.rare", "band=tail"],
    );
    refuses(&["scaling.law=log"], &["scaling.law", "laws"]);
    refuses(&["model.steps=[1000]"], &["model.steps", "model.revision"]);
    refuses(
        &["checkpoint={scaled: rows, law: linear}"],
        &["rows (linear)"],
    );
    refuses(&["frequency=pythia"], &["50277", "4096"]);
}

#[test]
fn one_sequence_has_no_interval_and_none_stands_twice() {
    let out = TempDir::new().unwrap();
    scale(out.path(), &["evaluation.sequences=1"])
        .assert()
        .success();
    let table = TableReader::open(out.path().join("effects.parquet")).unwrap();
    let columns = table
        .read(&["change", "change_low", "change_high"])
        .unwrap();
    assert!(columns.f64("change").is_ok());
    for end in ["change_low", "change_high"] {
        assert!(
            columns.opt_f64(end).unwrap().iter().all(Option::is_none),
            "{end}"
        );
    }
    assert!(
        record(out.path())["warnings"]
            .to_string()
            .contains("the measured sequences are of 1 documents")
    );
    let output = scale(out.path(), &["evaluation.sequences=[0, 1, 0]"])
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(
        error.contains("`evaluation.sequences`") && error.contains("`0` twice, as entries 1 and 3"),
        "{error}"
    );
}

#[test]
fn a_repository_that_was_named_is_used() {
    let (out, cache) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let args = [
        "model.repo=EleutherAI/pythia-70m-deduped",
        "neurons.list=['5.1']",
    ];
    let output = scale(out.path(), &args)
        .env("HF_HOME", cache.path())
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("EleutherAI/pythia-70m-deduped"), "{stderr}");
}

#[test]
fn settings_that_would_not_be_used_are_refused() {
    refuses(
        &["scaling.rank=3", "scaling.variance=0.9"],
        &["exclude each other"],
    );
    refuses(
        &["scaling.rare={quantile: 0.25}", "band=tail"],
        &["those of a quantile"],
    );
    refuses(
        &["checkpoint={scaled: neurons, law: log}"],
        &["checkpoint.law", "laws are of rows"],
    );
    refuses(
        &["scaling.laws=[constant]", "scaling.epsilon=1e-3"],
        &["looks at frequencies"],
    );
    refuses(&["evaluation.sequences=0"], &["1 or more"]);
    refuses(&["neurons.step=4000"], &["only used with `neurons.file`"]);
}

/// The key of once is read, with a word about its name of today.
#[test]
fn draws_have_an_older_name() {
    let out = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_scale-neuron"));
    let command = command.current_dir(root()).args([
        "evaluation.draws=2",
        "corpus.rows=0..10",
        "corpus.context_length=64",
        "evaluation.sequences=1",
        "evaluation.factors=[]",
        "bootstrap.resamples=50",
    ]);
    let output = command
        .arg(format!("output.dir={}", out.path().display()))
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success() && said.contains("`controls.draws`"),
        "{said}"
    );
}
