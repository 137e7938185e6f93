//! `compute-surprisal` as a user runs it, on the bundled model.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

mod columns;
mod examples;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Float64Type, Int64Type};
use assert_cmd::cargo::CommandCargoExt;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tempfile::TempDir;

use examples::root;

mod random_gpt2;

/// A few words, so that a run takes a second.
const WORDS: &str = r#"{"Congress": [{"context": "I am glad to report to the", "word_in_context_stats": {"count": 1}}, {"context": "The people and the "}],
  "constitution": [{"context": "We hold these truths and the"}, {"context": "Under the"}],
  "whale": [{"context": "He peremptorily denied that any"}, {"context": "There she blows, the white"}],
  "lonely": [{"context": "only one"}], "never": []}"#;

struct Run {
    dir: TempDir,
}

impl Run {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("words.json"), WORDS).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn out(&self, name: &str) -> PathBuf {
        self.path("out").join(name)
    }

    fn command(&self, args: &[&str]) -> Output {
        let mut command = Command::cargo_bin("compute-surprisal").unwrap();
        command.current_dir(root());
        command.arg(format!("words.path={}", self.path("words.json").display()));
        command.arg(format!("output.dir={}", self.path("out").display()));
        if !args.contains(&"words.bos_only=true") {
            command.arg("words.min_context=2");
        }
        command.args(["corpus.rows=0..4"]).args(args);
        command.output().unwrap()
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let output = self.command(args);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// The first line of the error.
    #[track_caller]
    fn error(&self, args: &[&str]) -> String {
        let output = self.command(args);
        assert!(!output.status.success(), "{args:?} should have failed");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!text.contains("panicked"), "{text}");
        text.lines()
            .find(|line| line.starts_with("error:"))
            .unwrap_or(&text)
            .to_owned()
    }

    fn record(&self) -> serde_json::Value {
        serde_json::from_slice(&fs::read(self.out("run.json")).unwrap()).unwrap()
    }
}

/// (step, intervention, word, context, first column of surprisal that is not null)
fn rows(path: &Path) -> Vec<(i64, String, String, i64, f64)> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap())
        .unwrap()
        .build()
        .unwrap();
    let mut rows = Vec::new();
    for batch in reader {
        let batch = batch.unwrap();
        let text = |name: &str| {
            batch
                .column_by_name(name)
                .unwrap()
                .as_string::<i32>()
                .clone()
        };
        let context = arrow::compute::cast(
            batch.column_by_name("context_id").unwrap(),
            &arrow::datatypes::DataType::Int64,
        )
        .unwrap();
        let step = batch
            .column_by_name("step")
            .unwrap()
            .as_primitive::<Int64Type>()
            .clone();
        let value = |i: usize| {
            let columns = batch
                .schema()
                .fields()
                .iter()
                .map(|f| f.name().clone())
                .filter(|n| n.ends_with("_nats") || n.ends_with("_bits"))
                .collect::<Vec<_>>();
            let values = columns.iter().map(|name| {
                batch
                    .column_by_name(name)
                    .unwrap()
                    .as_primitive::<Float64Type>()
                    .clone()
            });
            values
                .filter(|v| v.is_valid(i))
                .map(|v| v.value(i))
                .next()
                .unwrap()
        };
        for i in 0..batch.num_rows() {
            rows.push((
                step.value(i),
                text("intervention").value(i).into(),
                text("word").value(i).into(),
                context.as_primitive::<Int64Type>().value(i),
                value(i),
            ));
        }
    }
    rows
}

fn csv(path: &Path) -> Vec<Vec<String>> {
    fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(|line| line.split(',').map(str::to_owned).collect())
        .collect()
}

#[test]
fn examples_run_as_printed() {
    examples::Work::new(env!("CARGO_BIN_EXE_compute-surprisal")).run();
}

#[test]
fn a_run_writes_every_table_and_counts_what_it_leaves_out() {
    let run = Run::new();
    let stdout = run.ok(&[
        "model.steps=all",
        "controls.draws=2",
        "controls.caliper=100",
        "output.wide=true",
    ]);
    assert!(
        stdout.contains("Step 4000: mean surprisal in nats"),
        "{stdout}"
    );
    let rows = rows(&run.out("surprisal.parquet"));
    columns::are_documented("compute-surprisal", &run.path("out"));
    // 7 steps, 6 pairs, base + zero + mean + scaled, 2 random, matched and exchanged draws, and what matched ones are held against
    assert_eq!(rows.len(), 7 * 6 * 11);
    let record = run.record();
    assert_eq!(record["counts"]["words_in_file"], 5);
    assert_eq!(record["counts"]["words_left_out_for_too_few_contexts"], 2);
    assert_eq!(
        record["notes"]["words_left_out"],
        serde_json::json!(["lonely", "never"])
    );
    // Untrained, every piece is about as probable as any; trained, words are not.
    let mean = |step: i64| {
        let of: Vec<f64> = rows
            .iter()
            .filter(|r| r.0 == step && r.1 == "base")
            .map(|r| r.4)
            .collect();
        of.iter().sum::<f64>() / of.len() as f64
    };
    assert!(
        mean(0) > mean(4000) + 1.0,
        "{} then {}",
        mean(0),
        mean(4000)
    );
    let wide = fs::read_to_string(run.out("wide/base.csv")).unwrap();
    assert!(wide.starts_with("target_word,context_id,context,unit,0,1,64,512,1000,2000,4000\nCongress,0,I am glad to report to the,nats,"), "{wide}");
    let summary = csv(&run.out("summary.csv"));
    assert_eq!(summary[0][0], "step");
    assert!(summary.len() > 7 * 5);
    let acquired = csv(&run.out("acquisition.csv"));
    assert_eq!(acquired.len(), 1 + 3 * 6);
    for name in ["surprisal.svg", "surprisal.png", "report.html"] {
        assert!(fs::metadata(run.out(name)).unwrap().len() > 1000, "{name}");
    }
}

/// Neurons of any layers, with their means and their controls.
#[test]
fn neurons_of_earlier_layers_have_means_and_controls() {
    let run = Run::new();
    run.ok(&[
        "model.steps=4000",
        "neurons.list=['1.105', '3.7']",
        "interventions.list=[base, mean, clip, {clamp: [0, 0.01]}, {scaled: 1}, {matched: {like: mean, draws: 2}}]",
        "controls.caliper=100",
    ]);
    let rows = rows(&run.out("surprisal.parquet"));
    assert_eq!(rows.len(), 6 * 10);
    let of = |intervention: &str| -> Vec<f64> {
        let rows = rows.iter().filter(|row| row.1 == intervention);
        rows.map(|row| row.4).collect()
    };
    let furthest = |intervention: &str| {
        let each = of(intervention).into_iter().zip(of("base"));
        each.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    };
    // A forward of its own that changes nothing.
    assert!(furthest("scaled-1") < 1e-4, "{}", furthest("scaled-1"));
    for intervention in [
        "mean",
        "clamp-0-to-0.01",
        "matched-mean-0",
        "matched-mean-1",
    ] {
        let furthest = furthest(intervention);
        assert!(furthest > 1e-3, "{intervention}: {furthest}");
    }
}

/// The selected neurons against random and matched ones: effects and tests in one table, the same where nothing is computed anew.
#[test]
fn selected_neurons_are_held_against_controls() {
    let run = Run::new();
    let words = root().join("examples/data/contexts/words.json");
    fs::copy(words, run.path("words.json")).unwrap();
    let few = [
        "model.steps=4000",
        "words.max_context=1",
        "words.min_context=1",
        "controls.draws=8",
        "groups.by=none",
        "neurons.list=['3.19', '3.132', '3.75']",
        "interventions.list=[base, mean, {random: {like: mean}}, {matched: {like: mean}}]",
    ];
    let said = run.ok(&few);
    assert!(said.contains("mean minus matched"), "{said}");
    let table = csv(&run.out("contrasts.csv"));
    let column = |name: &str| table[0].iter().position(|cell| cell == name).unwrap();
    let cell = |row: &Vec<String>, name: &str| row[column(name)].parse::<f64>().unwrap();
    assert_eq!(table.len(), 3);
    for (row, control) in table[1..].iter().zip(["random", "matched"]) {
        assert_eq!(row[column("control")], control);
        assert_eq!(row[column("draws")], "8");
        let excess = cell(row, "excess_nats");
        let difference = cell(row, "change_nats") - cell(row, "change_of_controls_nats");
        assert!((excess - difference).abs() < 1e-12, "{row:?}");
        let ends = cell(row, "excess_lower_nats")..=cell(row, "excess_upper_nats");
        assert!(ends.contains(&excess), "{row:?}");
        let (p, q) = (cell(row, "p"), cell(row, "q"));
        assert!((1.0 / 9.0..=1.0).contains(&p) && q >= p, "{row:?}");
    }
    // Means of control sets have intervals over words and draws.
    let summary = csv(&run.out("summary.csv"));
    let lower = summary[0].iter().position(|c| c == "difference_lower_nats");
    let matched = summary.iter().find(|row| row[1] == "matched-mean").unwrap();
    assert!(!matched[lower.unwrap()].is_empty(), "{matched:?}");
    // The loudest neuron of the layer has none like it, and is on neither side.
    let warned = run.record()["warnings"].to_string();
    assert!(
        warned.contains("no neuron alike") && warned.contains("3.19"),
        "{warned}"
    );
    let sets = job_kit::TableReader::open(run.out("neurons.parquet")).unwrap();
    let columns = ["intervention", "neurons", "component_name"];
    let sets = sets.read(&columns).unwrap();
    let [names, kinds, ids] = columns.map(|column| sets.text(column).unwrap());
    // What is changed, by intervention: the selected neurons themselves too.
    let mut named: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for ((name, kind), id) in names.iter().zip(&kinds).zip(&ids) {
        named.entry((name, kind)).or_default().push(id);
    }
    let of_selected = named.remove(&("mean", "selected")).unwrap();
    assert_eq!(of_selected.len(), 3);
    assert!(of_selected.contains(&"3.19"));
    assert_eq!(named.len(), 8 + 8 + 8 + 1);
    let matched = named[&("matched-selection-mean", "matched-selection")].len();
    assert!((1..3).contains(&matched), "{named:?}");
    for ((name, kind), neurons) in &named {
        assert!(!neurons.contains(&"3.19"), "{name}: {neurons:?}");
        let size = if *kind == "random" { 3 } else { matched };
        assert_eq!(neurons.len(), size, "{name}: {neurons:?}");
    }
    run.ok(&few);
    assert_eq!(
        run.record()["counts"]["scores_computed_by_an_earlier_run"],
        run.record()["counts"]["scores"]
    );
    assert_eq!(csv(&run.out("contrasts.csv")), table);
    assert!(run.record()["warnings"].to_string().contains("3.19"));
    // Values under other controls are other values.
    let error = run.error(&[&few[..], &["controls.caliper=0.5"]].concat());
    assert!(error.contains("other settings (controls)"), "{error}");
    let error = run.error(&[&few[..], &["controls.kinds=[random]"]].concat());
    assert!(error.contains("controls.kinds"), "{error}");
}

/// Where no selected neuron has one like it, there are no matched controls, and the rest is measured.
#[test]
fn a_neuron_without_its_like_has_no_matched_controls() {
    let run = Run::new();
    run.ok(&[
        "model.steps=4000",
        "neurons.list=['3.19']",
        "interventions.list=[base, mean, {matched: {like: mean, draws: 2}}]",
    ]);
    assert_eq!(rows(&run.out("surprisal.parquet")).len(), 6 * 2);
    assert_eq!(csv(&run.out("contrasts.csv")).len(), 1);
    let run = Run::new();
    run.ok(&[
        "model.steps=4000",
        "neurons.list=['3.19']",
        "interventions.list=[base, mean, {matched: {like: mean, draws: 2}}]",
        "controls.match=activation-and-norm",
    ]);
    assert_eq!(rows(&run.out("surprisal.parquet")).len(), 6 * 7);
}

/// Neurons are not to be measured on the text that selected them.
#[test]
fn contexts_of_the_selections_own_text_are_a_warning() {
    let run = Run::new();
    let selection = run.path("analysis/selection.csv");
    fs::create_dir_all(selection.parent().unwrap()).unwrap();
    fs::write(&selection, "step,top_neurons\n4000,\"['3.7']\"\n").unwrap();
    let corpus = |rows: &str| serde_json::json!({"path": "examples/data/corpus/held-out.jsonl", "rows": rows});
    let beside = |path: &str, run_json: serde_json::Value| {
        fs::write(run.path(path), run_json.to_string()).unwrap();
    };
    beside(
        "analysis/run.json",
        serde_json::json!({
            "job": "analyze-unigram",
            "outputs": {"selection.csv": {}},
            "notes": {"ablation": {"corpus": corpus("0..150"), "ablation": {"sequences": 10}, "seed": 42}},
        }),
    );
    let file = format!("neurons.file={}", selection.display());
    let args = [
        "model.steps=4000",
        "interventions.list=[base, zero]",
        &file,
        "neurons.list=null",
    ];
    for (rows, shared) in [("100..300", true), ("150..300", false)] {
        let contexts = serde_json::json!({
            "job": "prepare-context",
            "outputs": {"words.json": {}},
            "config": {"corpus": corpus(rows)},
        });
        beside("run.json", contexts);
        run.ok(&args);
        let record = run.record();
        assert_eq!(
            record["notes"]["selected_on_measured_text"], shared,
            "{rows}"
        );
        let warned = record["warnings"].to_string();
        assert_eq!(warned.contains("rows 100..150"), shared, "{warned}");
    }
}

#[test]
fn a_rerun_computes_only_what_is_missing() {
    let run = Run::new();
    run.ok(&["model.steps=[512, 4000]", "interventions.list=[base, zero]"]);
    let first = rows(&run.out("surprisal.parquet"));
    assert_eq!(first.len(), 2 * 6 * 2);
    // As if killed in the middle: one part is gone, one is half-written, and so are the tables.
    let parts = run.out("parts");
    fs::remove_file(parts.join("step4000-000000.parquet")).unwrap();
    fs::write(parts.join(".step4000-000000.parquet.x.partial"), "half").unwrap();
    fs::remove_file(run.out("surprisal.parquet")).unwrap();
    run.ok(&["model.steps=[512, 4000]", "interventions.list=[base, zero]"]);
    assert_eq!(
        run.record()["counts"]["scores_computed_by_an_earlier_run"],
        12
    );
    assert_eq!(rows(&run.out("surprisal.parquet")), first);
    assert!(!parts.join(".step4000-000000.parquet.x.partial").exists());
    // One more step and one more intervention.
    run.ok(&[
        "model.steps=[512, 1000, 4000]",
        "interventions.list=[base, zero, mean]",
    ]);
    assert_eq!(
        run.record()["counts"]["scores_computed_by_an_earlier_run"],
        24
    );
    let more = rows(&run.out("surprisal.parquet"));
    assert_eq!(more.len(), 3 * 6 * 3);
    for row in &first {
        assert!(more.contains(row), "{row:?}");
    }
    // Nothing is missing: nothing is computed.
    run.ok(&[
        "model.steps=[512, 1000, 4000]",
        "interventions.list=[base, zero, mean]",
    ]);
    assert_eq!(
        run.record()["counts"]["scores_computed_by_an_earlier_run"],
        54
    );
    let error = run.error(&["model.steps=512", "interventions.list=[base]", "seed=43"]);
    assert!(
        error.contains("holds results of a run with other settings (seed)"),
        "{error}"
    );
}

/// What does not change scores but tables replaces these, and says so; what changes nothing says nothing.
#[test]
fn results_of_other_settings_are_not_replaced_silently() {
    let run = Run::new();
    let said = |more: &[&str]| {
        let common = ["model.steps=4000", "interventions.list=[base]"];
        let output = run.command(&[&common[..], more].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        said
    };
    let warning = "holds results of other settings, which this run replaces";
    assert!(!said(&[]).contains(warning));
    assert!(!said(&[]).contains(warning));
    let bits = said(&["unit=bits"]);
    assert!(
        bits.contains(warning) && bits.contains("`unit` was \"nats\""),
        "{bits}"
    );
    let counts = run.record()["counts"].clone();
    assert_eq!(
        counts["scores"],
        counts["scores_computed_by_an_earlier_run"]
    );
}

/// An estimate is told and leaves nothing behind; a run says at its start what it takes, and what it writes is near to that.
#[test]
fn an_estimate_is_near_what_is_written() {
    let run = Run::new();
    let words = root().join("examples/data/contexts/words.json");
    let args = [
        &format!("words.path={}", words.display())[..],
        "model.steps=[512, 4000]",
        "interventions.list=[base, {random: {like: mean, draws: 20}}]",
        "output.acquisition=false",
    ];
    let told = run.ok(&[&args[..], &["--estimate"]].concat());
    for part in [
        "2 checkpoints of",
        "scores take about",
        "of disk",
        "of memory",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(!run.path("out").exists());
    run.ok(&args);
    let estimate = &run.record()["notes"]["estimate"]["disk_bytes"];
    let estimate = 2.0 * estimate.as_f64().unwrap();
    let bytes = |name: &str| fs::metadata(run.out(name)).unwrap().len() as f64;
    let parts = fs::read_dir(run.out("parts")).unwrap();
    let parts = parts.map(|part| part.unwrap().metadata().unwrap().len() as f64);
    let written = bytes("surprisal.parquet") + parts.sum::<f64>();
    assert!(
        estimate > 0.7 * written && estimate < 1.5 * written,
        "{estimate} {written}"
    );
    assert_eq!(
        run.ok(&[&args[..], &["--estimate"]].concat()),
        "all scores are there; the tables and figures are made of them\n"
    );
}

/// Steps that several processes have scored give the tables of one that scored them all, byte for byte.
#[test]
fn steps_scored_apart_are_put_together() {
    let run = Run::new();
    let steps = "model.steps=[0, 512, 1000, 2000, 4000]";
    let few = [
        "interventions.list=[base, zero, {random: {like: zero}}, {matched: {like: mean}}]",
        "controls.draws=8",
        "output.wide=true",
    ];
    run.ok(&[&few[..], &[steps]].concat());
    let below = run.path("apart");
    let swept = format!("sweep.dir={}", below.display());
    let merged = format!("output.dir={}", run.path("merged").display());
    let merge = format!("merge={}", below.display());
    let together = [&few[..], &[steps, &merge, &merged]].concat();
    // A run of the first steps does not hold the others.
    let parts = |steps| [&few[..], &["-m", steps, &swept]].concat();
    run.ok(&parts("model.steps=0,512"));
    let error = run.error(&together);
    assert!(
        error.contains("has step 1000, step 2000, step 4000"),
        "{error}"
    );
    run.ok(&parts("model.steps=[1000,2000],4000"));
    // Of other settings: none of these.
    run.ok(&[&parts("model.steps=512")[..], &["seed=1"]].concat());
    run.ok(&together);
    let mut compared = 0;
    for (folder, entries) in [
        ("", fs::read_dir(run.path("out")).unwrap()),
        ("wide", fs::read_dir(run.out("wide")).unwrap()),
    ] {
        for entry in entries {
            let name = entry.unwrap().file_name();
            let one = run.path("out").join(folder).join(&name);
            let other = run.path("merged").join(folder).join(&name);
            if one.is_dir() || name == "run.json" || name.to_string_lossy().starts_with('.') {
                continue;
            }
            assert!(
                fs::read(&one).unwrap() == fs::read(&other).unwrap(),
                "{name:?} differs"
            );
            compared += 1;
        }
    }
    assert!(compared > 20, "{compared} files");
    let record = fs::read(run.path("merged/run.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let counts = &record["counts"];
    assert_eq!(counts["runs_put_together"], 4);
    assert_eq!(
        counts["scores_computed_by_an_earlier_run"],
        counts["scores"]
    );
    // Words that the runs did not score are not made up.
    let more = fs::read_to_string(run.path("words.json")).unwrap();
    fs::write(run.path("words.json"), more.replace("whale", "whales")).unwrap();
    let error = run.error(&together);
    assert!(error.contains("lack scores of step 0, of base"), "{error}");
}

/// Words of many pieces are left out, counted and named.
#[test]
fn words_of_too_many_pieces_are_left_out() {
    let run = Run::new();
    let longer = WORDS.replacen(
        "whale",
        "whalers\": [{\"context\": \"They met other\"}, {\"context\": \"The\"}], \"whale",
        1,
    );
    fs::write(run.path("words.json"), longer).unwrap();
    let args = ["model.steps=4000", "interventions.list=[base]"];
    run.ok(&args);
    let all = job_kit::TableReader::open(run.out("surprisal.parquet")).unwrap();
    let all = all.read(&["word", "pieces"]).unwrap();
    let (words, pieces) = (all.text("word").unwrap(), all.i64("pieces").unwrap());
    let longest = *pieces.iter().max().unwrap();
    assert!(longest > 1, "{pieces:?}");
    let of = |long: bool| -> Vec<String> {
        let found = words.iter().zip(&pieces);
        let mut found: Vec<String> = found
            .filter(|(_, n)| (**n == longest) == long)
            .map(|(word, _)| word.clone())
            .collect();
        found.dedup();
        found
    };
    let most = format!("words.max_pieces={}", longest - 1);
    run.ok(&[&args[..], &[&most]].concat());
    let left: Vec<String> = rows(&run.out("surprisal.parquet"))
        .into_iter()
        .map(|row| row.2)
        .collect();
    assert!(of(true).iter().all(|word| !left.contains(word)), "{left:?}");
    assert!(of(false).iter().all(|word| left.contains(word)), "{left:?}");
    let record = run.record();
    assert_eq!(
        record["notes"]["words_of_too_many_pieces"],
        serde_json::json!(of(true))
    );
    assert_eq!(
        record["counts"]["words_left_out_for_too_many_pieces"],
        of(true).len()
    );
    let error = run.error(&[&args[..], &["words.max_pieces=0"]].concat());
    assert!(
        error.contains("every word has more than 0 pieces"),
        "{error}"
    );
}

/// What was chosen for the bundled words and model is not kept for one's own.
#[test]
fn what_is_of_the_bundled_words_and_model_goes_with_them() {
    let shown = |args: &[&str]| {
        let mut command = Command::cargo_bin("compute-surprisal").unwrap();
        let output = command.current_dir(root()).args(args).arg("--print-config");
        String::from_utf8(output.output().unwrap().stdout).unwrap()
    };
    let own = shown(&["words.path=mine.json", "model.path=mine"]);
    assert!(own.contains("min_context: 1 "), "{own}");
    assert!(own.contains("  list: null "), "{own}");
    let bundled = shown(&[]);
    assert!(bundled.contains("min_context: 2 "), "{bundled}");
    assert!(bundled.contains("  list: [\"3.19\","), "{bundled}");
    // A choice of the group lies below what the start file says: with it the neurons of the bundled model used to stay.
    let chosen = shown(&["model=pythia-70m"]);
    assert!(chosen.contains("  list: null "), "{chosen}");
    let chosen = shown(&["model=tiny-neox"]);
    assert!(chosen.contains("  list: [\"3.19\","), "{chosen}");
    let run = Run::new();
    let model = root().join("configs/model/tiny-neox-steps.yaml");
    let own = run.path("mine.yaml");
    fs::copy(model, &own).unwrap();
    let error = run.error(&[&format!("model={}", own.display())]);
    assert!(
        error.contains("the interventions need neurons: set `neurons.file` or `neurons.list`"),
        "{error}"
    );
}

#[test]
fn more_words_or_other_neurons_compute_what_is_new() {
    let run = Run::new();
    let words = fs::read_to_string(run.path("words.json")).unwrap();
    let neurons = run.path("neurons.csv");
    let write = |rows: &str| fs::write(&neurons, format!("step,top_neurons\n{rows}")).unwrap();
    let file = format!("neurons.file={}", neurons.display());
    let args = |steps| {
        [
            "neurons.list=null",
            &file,
            "interventions.list=[base, zero]",
            steps,
        ]
    };
    let earlier = || run.record()["counts"]["scores_computed_by_an_earlier_run"].clone();
    write("512,\"['3.7']\"\n");
    run.ok(&args("model.steps=512"));
    let first = rows(&run.out("surprisal.parquet"));
    // A word more, at the front, and one fewer.
    let more = words.replace(
        "{\"Congress\"",
        r#"{"Banks": [{"context": "I keep the"}, {"context": "He saw the"}], "Congress""#,
    );
    let more = more.replace("\"whale\"", "\"whales\"");
    fs::write(run.path("words.json"), more).unwrap();
    run.ok(&args("model.steps=512"));
    assert_eq!(earlier(), 2 * 4);
    let second = rows(&run.out("surprisal.parquet"));
    assert_eq!(second.len(), 2 * 8);
    let kept = |row: &&(i64, String, String, i64, f64)| row.2 == "Congress";
    assert_eq!(
        first.iter().filter(kept).collect::<Vec<_>>(),
        second.iter().filter(kept).collect::<Vec<_>>()
    );
    // Another step, then another set for the first step: base stays.
    write("512,\"['3.7']\"\n4000,\"['3.8']\"\n");
    run.ok(&args("model.steps=[512, 4000]"));
    assert_eq!(earlier(), 2 * 8);
    write("512,\"['3.9']\"\n4000,\"['3.8']\"\n");
    run.ok(&args("model.steps=[512, 4000]"));
    assert_eq!(earlier(), 8 + 2 * 8);
    let last = rows(&run.out("surprisal.parquet"));
    assert_eq!(last.len(), 2 * 2 * 8);
    assert_ne!(
        last.iter()
            .filter(|r| r.0 == 512 && r.1 == "zero")
            .collect::<Vec<_>>(),
        second.iter().filter(|r| r.1 == "zero").collect::<Vec<_>>()
    );
}

#[test]
fn only_contexts_that_are_too_long_are_cut() {
    let run = Run::new();
    let long = "We hold these truths and the constitution of the United States ".repeat(60);
    let words = serde_json::json!({"reorganization": [{"context": "The "}, {"context": long}]});
    fs::write(run.path("words.json"), words.to_string()).unwrap();
    let cut = || run.record()["counts"]["contexts_cut_to_what_the_model_reads"].clone();
    let list = "interventions.list=[base]";
    run.ok(&["model.steps=4000", list]);
    assert_eq!(cut(), 1);
    // A word of several pieces, of which this reading scores one.
    fs::remove_dir_all(run.out("parts")).unwrap();
    run.ok(&["model.steps=4000", list, "reading=liu2025"]);
    assert_eq!(cut(), 1);
}

#[test]
fn chunks_change_no_value() {
    let (small, whole) = (Run::new(), Run::new());
    let args = ["model.steps=4000", "interventions.list=[base, zero]"];
    whole.ok(&args);
    small.ok(&[args[0], args[1], "output.chunk=1", "batch_tokens=8"]);
    for (a, b) in rows(&small.out("surprisal.parquet"))
        .iter()
        .zip(rows(&whole.out("surprisal.parquet")))
    {
        assert_eq!((&a.1, &a.2, a.3), (&b.1, &b.2, b.3));
        assert!((a.4 - b.4).abs() < 1e-5, "{a:?} against {b:?}");
    }
}

#[test]
fn neurons_of_a_step_are_never_guessed() {
    let run = Run::new();
    let file = run.path("neurons.csv");
    fs::write(
        &file,
        "step,top_neurons,note\n4000,\"[\"\"3.10\"\", \"\"3.1\"\"]\",x\n512,\"['3.7']\",y\n",
    )
    .unwrap();
    let neurons = format!("neurons.file={}", file.display());
    let args = [
        "neurons.list=null",
        &neurons,
        "interventions.list=[base, zero]",
        "model.steps=[512, 1000, 4000]",
    ];
    let error = run.error(&args);
    assert!(
        error.contains(
            "has no row for step 1000; it has step 512, step 4000. Set `neurons.missing_step`"
        ),
        "{error}"
    );
    run.ok(&[
        args[0],
        args[1],
        args[2],
        args[3],
        "neurons.missing_step=4000",
    ]);
    assert_eq!(
        run.record()["warnings"][0],
        "step 1000 has no neurons of its own: those of step 4000 are used"
    );
    fs::write(&file, "[{\"step\": 4000, \"neurons\": [3.10, 3.1]}]").unwrap();
    let json = run.path("neurons.json");
    fs::rename(&file, &json).unwrap();
    let error = run.error(&[
        args[0],
        &format!("neurons.file={}", json.display()),
        "model.steps=4000",
        args[2],
    ]);
    assert!(error.contains("put quotes around it"), "{error}");
}

#[test]
fn liu2025_scores_the_first_piece_alone() {
    let run = Run::new();
    run.ok(&[
        "interventions=liu2025",
        "reading=liu2025",
        "model.steps=4000",
        "words.bos_only=true",
        "unit=bits",
        "output.acquisition=false",
        "output.wide=true",
    ]);
    let rows = rows(&run.out("surprisal.parquet"));
    assert_eq!(rows.len(), 5 * 4); // words without contexts too
    assert!(run.out("wide/layer-mean.csv").exists());
    assert!(
        fs::read_to_string(run.out("wide/base.csv"))
            .unwrap()
            .contains("whale,0,BOS_ONLY,")
    );
}

#[test]
fn mistakes_are_named() {
    for (args, expected) in [
        (
            vec!["model.steps=513"],
            "there is no checkpoint of step 513; there are 0, 1, 64, 512, 1000, 2000, 4000",
        ),
        (
            vec!["model.steps=soon"],
            "`soon` is none: there is no `..` in it; expected a step, `all`, `log`, a range",
        ),
        (
            vec!["neurons.list=[\"3.999\"]", "model.steps=4000"],
            "there is no neuron 3.999",
        ),
        (
            vec!["neurons.list=null", "model.steps=4000"],
            "set `neurons.file` or `neurons.list`",
        ),
        (
            vec!["neurons.list=[\"4.5\"]", "model.steps=4000"],
            "there is no neuron 4.5: the model has layers 0 to 3",
        ),
        (vec!["words.min_context=50"], "has 50 contexts or more"),
        (
            vec!["words.path=nowhere.json"],
            "failed to read words from `nowhere.json`",
        ),
        (
            vec!["interventions.list=[base, base]"],
            "names `base` twice",
        ),
        (
            vec!["interventions.list=[{random: {like: base, draws: 2}}]"],
            "a control set needs an operation",
        ),
        (
            vec!["interventions.list=[{clamp: [1, 0]}]"],
            "`clamp` has the range 1 to 0",
        ),
        (
            vec!["model.steps=[512]", "steps=512"],
            "`model.steps` and `steps` exclude each other",
        ),
        (
            vec!["model.revision=step4001"],
            "no `step4001`; nearest: step4000",
        ),
        (
            vec!["model.path=examples/data/corpus"],
            "has no checkpoints",
        ),
    ] {
        // A folder of its own: a run that fails late has claimed its settings for the folder.
        let error = Run::new().error(&args);
        assert!(error.contains(expected), "{args:?}: {error}");
    }
}

/// The same words in any format, with white space, a byte order mark, upper-case endings and keys that are there twice, are the same words.
#[test]
fn words_are_the_same_in_every_format() {
    let run = Run::new();
    let scores = |name: &str, text: &str| {
        fs::write(run.path(name), text).unwrap();
        run.ok(&[
            &format!("words.path={}", run.path(name).display()),
            &format!("output.dir={}", run.out(name).display()),
            "model.steps=4000",
            "words.min_context=1",
            "interventions.list=[base]",
        ]);
        let record: serde_json::Value =
            serde_json::from_slice(&fs::read(run.out(name).join("run.json")).unwrap()).unwrap();
        (rows(&run.out(name).join("surprisal.parquet")), record)
    };
    let (expected, _) = scores(
        "plain.csv",
        "word,context\nwhale,I saw the white \nwhale,\"They hunt, and \"\nNA,it is \n",
    );
    assert_eq!(expected.len(), 3);
    for (name, text) in [
        (
            "UP.CSV",
            "\u{feff} word , context\n whale ,I saw the white \nwhale,\"They hunt, and \"\nNA ,it is \n",
        ),
        (
            "a.tsv",
            "word\tcontext\r\nwhale\tI saw the white \r\nwhale\tThey hunt, and \r\nNA\tit is \r\n",
        ),
        (
            "a.jsonl",
            "{\"word\": \"whale\", \"context\": \"I saw the white \"}\n{\"context\": \"They hunt, and \", \"word\": \"whale\"}\n\n{\"word\": \"NA\", \"context\": \"it is \"}\n",
        ),
        (
            "twice.json",
            "\u{feff}{\"whale\": [{\"context\": \"I saw the white \"}], \"NA\": [{\"context\": \"it is \"}], \"whale\": [{\"context\": \"They hunt, and \"}]}",
        ),
    ] {
        let (found, record) = scores(name, text);
        assert_eq!(found, expected, "{name}");
        let again = &record["counts"]["words_listed_again"];
        assert_eq!(
            again.as_u64(),
            (name == "twice.json").then_some(1),
            "{name}"
        );
    }
    for (name, text, expected) in [
        (
            "unclosed.csv",
            "word,context\nwhale,\"I saw\nharbor,We came\n",
            "the quote that opens in line 2 never closes",
        ),
        (
            "short.csv",
            "word,context\nwhale\n",
            "1 fields, but the header has 2",
        ),
        ("unnamed.csv", "word,context\n,We came\n", "column `word`"),
        (
            "other.csv",
            "term,context\nwhale,We came\n",
            "has no column `word`; its columns: term, context",
        ),
        (
            "lfs.json",
            "version https://git-lfs.github.com/spec/v1\noid\n",
            "is a Git LFS pointer",
        ),
        ("empty.csv", "", "is empty"),
    ] {
        fs::write(run.path(name), text).unwrap();
        let error = run.error(&[&format!("words.path={}", run.path(name).display())]);
        assert!(error.contains(expected), "{name}: {error}");
    }
}

/// A context that says what stood between it and its word is scored as it stood; one that does not is joined by `words.join`.
#[test]
fn nothing_is_put_into_contexts_that_say_what_stood_before_the_word() {
    let run = Run::new();
    let scores = |name: &str, text: &str, args: &[&str]| {
        fs::write(run.path(name), text).unwrap();
        fs::remove_dir_all(run.path("out")).unwrap_or_default();
        run.ok(&[
            &[
                &format!("words.path={}", run.path(name).display()),
                "model.steps=4000",
                "words.min_context=1",
                "interventions.list=[base]",
            ],
            args,
        ]
        .concat());
        let values: Vec<f64> = rows(&run.out("surprisal.parquet"))
            .iter()
            .map(|row| row.4)
            .collect();
        (values, run.record())
    };
    let plain =
        "word,context\nwhale,\"I saw a \"\"\"\nworn,He wore a well-\nworn,His old coat was\n";
    let (spaced, record) = scores("plain.csv", plain, &[]);
    assert_eq!(record["counts"]["contexts_without_a_separator"], 3);
    let (as_is, _) = scores("plain.csv", plain, &["words.join=as-is"]);
    let apart = |a: f64, b: f64| (a - b).abs() > 0.1;
    assert!((0..3).all(|i| apart(spaced[i], as_is[i])), "{spaced:?}");
    let exact = [as_is[0], as_is[1], spaced[2]];
    let csv = "word,context,separator\nwhale,\"I saw a \"\"\",\nworn,He wore a well-,\nworn,His old coat was,\" \"\n";
    let json = r#"{"whale": [{"context": "I saw a \"", "separator": ""}],
        "worn": [{"context": "He wore a well-", "separator": ""}, {"context": "His old coat was"}]}"#;
    for (name, text, without) in [("exact.csv", csv, 0), ("exact.json", json, 1)] {
        let (values, record) = scores(name, text, &[]);
        assert_eq!(values, exact, "{name}");
        assert_eq!(record["counts"]["contexts_without_a_separator"], without);
    }
    let (values, record) = scores("exact.csv", csv, &["words.join=as-is"]);
    assert_eq!(values, exact);
    assert!(
        record["warnings"]
            .to_string()
            .contains("`words.join` is not used"),
        "{record}"
    );
}

/// Rarer words are harder to predict, over the whole of word frequency: words of held-out text by their own counts there.
#[test]
fn surprisal_falls_along_word_frequency() {
    let text = fs::read_to_string(root().join("examples/data/corpus/held-out.jsonl")).unwrap();
    let texts: Vec<String> = text
        .lines()
        .take(200)
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|row| row["text"].as_str().unwrap().to_owned())
        .collect();
    // Lower-case words, and the ten words before the first time that each has so many.
    let plain = |word: &str| word.len() > 1 && word.chars().all(|c| c.is_ascii_lowercase());
    let mut found: BTreeMap<&str, (f64, Option<String>)> = BTreeMap::new();
    let mut all = 0.0;
    for text in &texts {
        let words: Vec<&str> = text.split(' ').collect();
        for (i, word) in words.iter().enumerate().filter(|(_, word)| plain(word)) {
            all += 1.0;
            let (count, context) = found.entry(word).or_default();
            *count += 1.0;
            if context.is_none() && i >= 10 {
                *context = Some(words[i - 10..i].join(" "));
            }
        }
    }
    let mut by_zipf: BTreeMap<i64, Vec<(&str, f64, String)>> = BTreeMap::new();
    for (word, (count, context)) in found {
        let zipf = (1e9 * count / all).log10();
        if let Some(context) = context {
            let words = by_zipf.entry(zipf.floor() as i64).or_default();
            words.push((word, zipf, context));
        }
    }
    // Some twenty words of each whole Zipf value that has so many.
    by_zipf.retain(|_, words| words.len() >= 20);
    let mut list = serde_json::Map::new();
    for words in by_zipf.values() {
        for (word, zipf, context) in words.iter().step_by(words.len() / 20) {
            let context = serde_json::json!({"context": context, "separator": " ", "zipf": zipf});
            list.insert((*word).to_owned(), serde_json::json!([context]));
        }
    }
    let run = Run::new();
    let list = serde_json::Value::Object(list);
    fs::write(run.path("words.json"), list.to_string()).unwrap();
    run.ok(&[
        "steps=4000",
        "words.min_context=1",
        "interventions.list=[base]",
    ]);
    let rows = csv(&run.out("summary.csv"));
    let column = |name: &str| rows[0].iter().position(|h| h == name).unwrap();
    let (zipf, mean) = (column("zipf_mean"), column("mean_nats"));
    let number = |text: &String| text.parse::<f64>().unwrap();
    let mut trend: Vec<(f64, f64)> = rows[1..]
        .iter()
        .map(|row| (number(&row[zipf]), number(&row[mean])))
        .collect();
    trend.sort_by(|a, b| a.0.total_cmp(&b.0));
    assert!(trend.len() >= 3, "{trend:?}");
    assert!(trend.windows(2).all(|w| w[0].1 > w[1].1), "{trend:?}");
    assert!(trend[0].1 > trend[trend.len() - 1].1 + 3.0, "{trend:?}");
}

/// Words are rare by their own frequency, whatever their tokens; groups by tokens have a name of their own.
#[test]
fn words_are_grouped_by_the_frequency_of_the_word() {
    let run = Run::new();
    fs::write(
        run.path("words.json"),
        r#"{"Congress": [{"context": "I am glad to report to the", "zipf": 5.5}], "whale": [{"context": "There she blows, the white", "zipf": 4.2}],
            "constitution": [{"context": "We hold these truths and the", "zipf": 4.9}, {"context": "Under the"}], "lonely": [{"context": "only one"}]}"#,
    )
    .unwrap();
    let small = [
        "model.steps=4000",
        "words.min_context=1",
        "interventions.list=[base, zero]",
    ];
    // Group, its mean Zipf value and its number of words, under `base`.
    let groups = |more: &[&str]| -> Vec<[String; 3]> {
        run.ok(&[&small[..], more].concat());
        let rows = csv(&run.out("summary.csv"));
        let column = |name: &str| rows[0].iter().position(|h| h == name).unwrap();
        let (by, names) = (
            column("intervention"),
            ["group", "zipf_mean", "words"].map(column),
        );
        let base = rows.iter().filter(|row| row[by] == "base");
        base.map(|row| names.map(|i| row[i].clone())).collect()
    };
    let expected = |rows: &[[&str; 3]]| -> Vec<[String; 3]> {
        rows.iter().map(|row| row.map(String::from)).collect()
    };
    assert_eq!(
        groups(&[]),
        expected(&[
            ["Zipf 4 to 5", "4.550000000000001", "2"],
            ["Zipf 5 to 6", "5.5", "1"],
            ["no frequency", "", "1"]
        ])
    );
    let record = run.record();
    assert_eq!(record["notes"]["groups"]["by"], "word-frequency");
    assert_eq!(record["notes"]["groups"]["words"]["Zipf 4 to 5"], 2);
    assert_eq!(record["counts"]["words_without_a_frequency"], 1);
    assert!(run.out("surprisal-by-frequency.svg").exists());
    assert!(run.out("change-by-frequency.svg").exists());
    let names = |rows: Vec<[String; 3]>| -> Vec<String> {
        rows.into_iter().map(|[name, ..]| name).collect()
    };
    assert_eq!(
        names(groups(&["groups.zipf=[4.5, 5]"])),
        [
            "Zipf below 4.5",
            "Zipf 4.5 to 5",
            "Zipf 5 and above",
            "no frequency"
        ]
    );
    assert_eq!(
        names(groups(&["groups.quantiles=2"])),
        [
            "part 1 of 2 (Zipf 4.20 to 4.20)",
            "part 2 of 2 (Zipf 4.90 to 5.50)",
            "no frequency"
        ]
    );
    // Three frequencies make three parts at most.
    assert_eq!(
        names(groups(&["groups.quantiles=5"])),
        [
            "part 1 of 3 (Zipf 4.20 to 4.20)",
            "part 2 of 3 (Zipf 4.90 to 4.90)",
            "part 3 of 3 (Zipf 5.50 to 5.50)",
            "no frequency"
        ]
    );
    let table = run.path("norms.csv");
    fs::write(&table, "Word,SUBTLWF\ncongress,0.3162\nlonely,3.162\n").unwrap();
    let table = format!("norms.path={}", table.display());
    let columns = ["norms.word=Word", "norms.column=SUBTLWF"];
    assert_eq!(
        names(groups(&[
            &table,
            columns[0],
            columns[1],
            "norms.scale=per-million"
        ])),
        ["Zipf 2 to 3", "Zipf 3 to 4", "no frequency"]
    );
    assert_eq!(
        names(groups(&["groups.by=token-band"])),
        ["long-tail tokens", "common tokens"]
    );
    assert_eq!(names(groups(&["groups.by=none"])), ["all words"]);
    for (args, said) in [
        (["groups.zipf=[5, 3]", "unit=nats"], "in ascending order"),
        (["groups.quantiles=1", "unit=nats"], "expected 2 to 12"),
        (
            ["groups.by=token-band", "groups.quantiles=2"],
            "not grouped by their frequency",
        ),
        (["groups.by=token-band", "band=null"], "there is no band"),
    ] {
        let error = run.error(&[&small[..], &args].concat());
        assert!(error.contains(said), "{args:?}: {error}");
    }
    fs::write(run.path("words.json"), WORDS).unwrap();
    for args in ["groups.by=word-frequency", "groups.quantiles=2"] {
        let error = run.error(&[&small[..], &[args]].concat());
        assert!(error.contains("no word has a frequency"), "{error}");
    }
}

/// A figure of one step says how many neurons are changed at this step, one over steps how many at all of them.
#[test]
fn a_figure_of_one_step_counts_the_neurons_of_this_step() {
    let run = Run::new();
    fs::write(
        run.path("words.json"),
        r#"{"Congress": [{"context": "I am glad to report to the", "zipf": 5.5}], "whale": [{"context": "There she blows, the white", "zipf": 4.2}]}"#,
    )
    .unwrap();
    let neurons = run.path("neurons.csv");
    let table = "step,top_neurons\n512,\"['3.7']\"\n4000,\"['3.8', '3.9']\"\n";
    fs::write(&neurons, table).unwrap();
    run.ok(&[
        "neurons.list=null",
        &format!("neurons.file={}", neurons.display()),
        "model.steps=[512, 4000]",
        "words.min_context=1",
        "interventions.list=[base, zero]",
    ]);
    let svg = fs::read_to_string(run.out("change-by-frequency.svg")).unwrap();
    assert!(svg.contains("zero (2 neurons)"), "{svg}");
    let report = fs::read_to_string(run.out("report.html")).unwrap();
    assert!(report.contains("zero (1 to 2 neurons)"));
}

/// `surprisal.parquet` is what a mixed model takes: a row per word and context, with what may explain its surprisal.
#[test]
fn the_table_has_the_covariates_of_a_mixed_model() {
    let run = Run::new();
    fs::write(
        run.path("words.json"),
        r#"{"whale": [{"context": "There she blows, the white ", "separator": "", "zipf": 4.2, "document": 7}],
            "Congress": [{"context": "report to the", "document": "b.txt"}], "Call": [{"context": "LOOMINGS\n", "separator": ""}]}"#,
    )
    .unwrap();
    let list = "interventions.list=[base, {scaled: 2.0}, {matched: {like: mean, draws: 2}}]";
    let table = |more: &[&str]| {
        let few = [
            "model.steps=4000",
            "words.min_context=1",
            list,
            "controls.caliper=100",
        ];
        run.ok(&[&few, more].concat());
        let file = File::open(run.out("surprisal.parquet")).unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
        let batches: Vec<_> = reader.build().unwrap().map(Result::unwrap).collect();
        arrow::compute::concat_batches(&batches[0].schema(), &batches).unwrap()
    };
    let found = table(&[]);
    // Every column as text, a null as nothing.
    let cells = |table: &arrow::array::RecordBatch, name: &str| -> Vec<String> {
        let column = table
            .column_by_name(name)
            .unwrap_or_else(|| panic!("no column `{name}`"));
        let column = arrow::compute::cast(column, &arrow::datatypes::DataType::Utf8).unwrap();
        let column = column.as_string::<i32>();
        column
            .iter()
            .map(|cell| cell.unwrap_or_default().to_owned())
            .collect()
    };
    let numbers = |table: &arrow::array::RecordBatch, name: &str| -> Vec<Option<f64>> {
        cells(table, name)
            .iter()
            .map(|cell| cell.parse().ok())
            .collect()
    };
    let of_base = |name: &str| cells(&found, name)[..3].to_vec();
    assert_eq!(of_base("word"), ["Call", "Congress", "whale"]);
    assert_eq!(of_base("zipf"), ["", "", "4.2"]);
    // A row of the corpus is a number, as in the tables of other jobs; what a file calls a document is a name.
    assert_eq!(of_base("document"), ["", "", "7"]);
    assert_eq!(of_base("document_name"), ["", "b.txt", ""]);
    assert_eq!(of_base("position"), ["1", "3", "5"]);
    assert_eq!(of_base("start"), ["line", "space", "space"]);
    assert_eq!(of_base("model"), ["examples/data/tiny-neox"; 3]);
    assert_eq!(of_base("seed"), ["42"; 3]);
    assert_eq!(of_base("neurons"), ["none"; 3]);
    let last = |name: &str| cells(&found, name)[11].clone();
    assert_eq!(
        ["intervention", "operation", "neurons", "draw", "dose"].map(last),
        ["matched-mean-1", "mean", "matched", "1", ""]
    );
    assert_eq!(cells(&found, "dose")[3], "2.0");
    let column = |name: &str| numbers(&found, name);
    let (corrected, uncorrected) = (column("corrected_nats"), column("uncorrected_nats"));
    let (base, change) = (column("base_nats"), column("change_nats"));
    let (boundary, entropy) = (column("boundary_nats"), column("base_entropy_nats"));
    for row in 0..found.num_rows() {
        let [c, u, base, change, boundary, entropy] = [
            &corrected,
            &uncorrected,
            &base,
            &change,
            &boundary,
            &entropy,
        ]
        .map(|v| v[row].unwrap());
        assert_eq!(base, corrected[row % 3].unwrap());
        assert!((base + change - c).abs() < 1e-9 && (u + boundary - c).abs() < 1e-9);
        assert!((0.0..4096f64.ln()).contains(&entropy));
    }
    // Another boundary changes the corrected forms alone.
    let error = run.error(&[
        "model.steps=4000",
        "words.min_context=1",
        list,
        "controls.caliper=100",
        "boundary=space-punctuation-newline",
    ]);
    assert!(error.contains("other settings (boundary)"), "{error}");
    fs::remove_dir_all(run.path("out")).unwrap();
    let wider = table(&["boundary=space-punctuation-newline"]);
    // The vocabulary is summed up in another order.
    let same = numbers(&wider, "uncorrected_nats");
    for (found, before) in same.iter().zip(&uncorrected) {
        assert!((found.unwrap() - before.unwrap()).abs() < 2e-6);
    }
    let after = numbers(&wider, "boundary_nats");
    assert!((0..12).all(|row| after[row] != boundary[row]), "{after:?}");
}

#[test]
fn what_a_run_does_not_write_again_goes_and_wide_tables_name_their_unit() {
    let run = Run::new();
    let small = [
        "model.steps=[512, 4000]",
        "words.min_context=1",
        "output.wide=true",
    ];
    run.ok(&[
        &small[..],
        &[
            "interventions.list=[base, zero]",
            "neurons.list=[\"3.193\"]",
        ],
    ]
    .concat());
    for name in [
        "wide/zero.csv",
        "change-long-tail-tokens.svg",
        "wide/base.csv",
    ] {
        assert!(run.out(name).exists(), "{name}");
    }
    let base = fs::read_to_string(run.out("wide/base.csv")).unwrap();
    assert!(
        base.lines()
            .nth(1)
            .is_some_and(|row| row.contains(",nats,")),
        "{base}"
    );
    run.ok(&[&small[..], &["interventions.list=[base]", "unit=bits"]].concat());
    for name in [
        "wide/zero.csv",
        "change-long-tail-tokens.svg",
        "change-common-tokens.png",
    ] {
        assert!(!run.out(name).exists(), "{name}");
    }
    let base = fs::read_to_string(run.out("wide/base.csv")).unwrap();
    assert!(
        base.lines().skip(1).all(|row| row.contains(",bits,")),
        "{base}"
    );
    let record = run.record();
    assert!(
        record["notes"]["removed_outputs_of_earlier_runs"]
            .to_string()
            .contains("wide/zero.csv")
    );
    assert!(
        record["outputs"]
            .as_object()
            .unwrap()
            .keys()
            .all(|name| run.out(name).exists())
    );
}

#[test]
fn step_0_has_a_place_in_figures_and_one_word_has_no_interval() {
    let run = Run::new();
    fs::write(
        run.path("words.json"),
        r#"{"whale": [{"context": "There she blows, the white"}]}"#,
    )
    .unwrap();
    let said = run.ok(&[
        "words.min_context=1",
        "model.steps=0",
        "interventions.list=[base, zero]",
        "neurons.list=[\"3.193\"]",
    ]);
    assert!(said.contains("no interval: fewer than 8 words"), "{said}");
    assert!(run.out("report.html").exists() && run.out("surprisal.svg").exists());
    let record = run.record();
    assert_eq!(
        record["counts"]["points_not_shown_in_surprisal"],
        serde_json::Value::Null
    );
    let summary = fs::read_to_string(run.out("summary.csv")).unwrap();
    let row: Vec<&str> = summary.lines().nth(1).unwrap().split(',').collect();
    let header: Vec<&str> = summary.lines().next().unwrap().split(',').collect();
    let cell = |name: &str| row[header.iter().position(|h| *h == name).unwrap()];
    assert!(!cell("mean_nats").is_empty());
    assert_eq!((cell("mean_lower_nats"), cell("mean_upper_nats")), ("", ""));
    // Step 0 stands beside the others, left of them.
    run.ok(&[
        "words.min_context=1",
        "model.steps=[0, 512]",
        "interventions.list=[base]",
    ]);
    let counts = &run.record()["counts"];
    assert_eq!(
        counts["points_not_shown_in_surprisal"],
        serde_json::Value::Null
    );
    let svg = fs::read_to_string(run.out("surprisal.svg")).unwrap();
    assert!(svg.contains(">0</text>"), "step 0 is labelled");
}

#[test]
fn a_repository_that_was_named_is_used() {
    for model in [
        "model.repo=EleutherAI/pythia-70m-deduped",
        "model=pythia-70m",
    ] {
        let (run, cache) = (Run::new(), TempDir::new().unwrap());
        let mut command = Command::cargo_bin("compute-surprisal").unwrap();
        let output = command
            .current_dir(root())
            .arg(format!("output.dir={}", run.path("out").display()))
            .args([model, "model.steps=512"])
            .env("HF_HOME", cache.path())
            .env("HF_HUB_OFFLINE", "1")
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("EleutherAI/pythia-70m-deduped"), "{stderr}");
    }
}

#[test]
fn settings_that_would_not_be_used_are_refused() {
    let run = Run::new();
    for (args, said) in [
        (
            vec!["neurons.file=a.csv", "neurons.list=['3.1']"],
            "exclude each other",
        ),
        (
            vec!["neurons.missing_step=4000"],
            "it is only used with `neurons.file`",
        ),
        (
            vec!["interventions.list=[base]", "neurons.list=['3.1']"],
            "no intervention of `interventions.list` changes a neuron",
        ),
        (
            vec![
                "interventions.list=[base, zero]",
                "interventions.mean_over=all-positions",
            ],
            "takes mean activations",
        ),
        (
            vec!["words.bos_only=true", "words.max_context=3"],
            "`words.bos_only` leaves the contexts out",
        ),
        (
            vec!["reading=liu2025", "words.bos=false"],
            "`reading=liu2025`",
        ),
        (
            vec!["reading=liu2025", "form=corrected"],
            "first piece alone",
        ),
        (vec!["band=null", "frequency=tiny-neox"], "without a band"),
        (
            vec!["frequency=null", "band=tail"],
            "a band needs token counts",
        ),
        (vec!["model.allow_bad=true"], "no `audit` is read"),
        (
            vec!["model.steps=512.5"],
            "expected a step, `all`, `log`, a range",
        ),
    ] {
        let error = run.error(&args);
        assert!(error.contains(said), "{args:?}: {error}");
    }
    assert!(
        run.ok(&["model.steps=4000.0", "interventions.list=[base]"])
            .contains("4000")
    );
}

/// Writes a JSON file of the bundled model after `change`.
fn changed(from: &str, to: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let mut json = serde_json::from_slice(&fs::read(root().join(from)).unwrap()).unwrap();
    change(&mut json);
    fs::write(to, json.to_string()).unwrap();
}

const TOKENIZER: &str = "examples/data/tiny-neox/tokenizer.json";

/// The bundled tokenizer with `▁` for `Ġ`: the same pieces with the same ids.
fn metaspace(json: &mut serde_json::Value) {
    let text = json["model"].to_string().replace('Ġ', "▁");
    json["model"] = serde_json::from_str(&text).unwrap();
    json["pre_tokenizer"] = serde_json::json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": true});
    json["decoder"] = json["pre_tokenizer"].clone();
}

#[test]
fn the_beginning_of_a_word_is_the_tokenizers_own() {
    let args = [
        "model.steps=4000",
        "interventions.list=[base]",
        "band=null",
        "frequency=null",
    ];
    let byte_level = Run::new();
    byte_level.ok(&args);
    let other = Run::new();
    let path = other.path("metaspace.json");
    changed(TOKENIZER, &path, metaspace);
    let tokenizer = format!("model.tokenizer={}", path.display());
    let ends = ["model.bos_token=0", "model.eos_token=0"];
    other.ok(&[&args[..], &[&tokenizer], &ends].concat());
    let [a, b] = [byte_level, other].map(|run| rows(&run.out("surprisal.parquet")));
    assert!(!a.is_empty());
    assert_eq!(a, b);
}

#[test]
fn a_tokenizer_that_marks_no_word_is_an_error_that_says_what_to_set() {
    let run = Run::new();
    let path = run.path("unmarked.json");
    changed(TOKENIZER, &path, |json| {
        json["pre_tokenizer"] = serde_json::json!({"type": "Whitespace"});
        json["decoder"] = serde_json::json!({"type": "Fuse"});
    });
    let tokenizer = format!("model.tokenizer={}", path.display());
    let error = run.error(&["model.steps=4000", "interventions.list=[base]", &tokenizer]);
    assert!(
        error.contains("model.word_start") && error.contains("unmarked.json"),
        "{error}"
    );
}

/// A copy of a bundled checkpoint in a folder of this name.
fn checkpoint(parent: &Path, name: &str, config: impl FnOnce(&mut serde_json::Value)) -> PathBuf {
    let folder = parent.join(name);
    fs::create_dir_all(&folder).unwrap();
    let from = "examples/data/tiny-neox/step4000";
    fs::copy(
        root().join(from).join("model.safetensors"),
        folder.join("model.safetensors"),
    )
    .unwrap();
    changed(
        &format!("{from}/config.json"),
        &folder.join("config.json"),
        config,
    );
    folder
}

#[test]
fn what_begins_a_text_is_asked_for_where_nothing_says_it() {
    let run = Run::new();
    let folder = checkpoint(&run.path("models"), "step4000", |config| {
        config["bos_token_id"] = serde_json::Value::Null;
    });
    let path = format!("model.path={}", folder.display());
    let tokenizer = format!("model.tokenizer={TOKENIZER}");
    let args = [
        &tokenizer,
        "interventions.list=[base]",
        "band=null",
        "frequency=null",
        &path,
    ];
    let error = run.error(&args);
    assert!(
        error.contains("model.bos_token") && error.contains("<|endoftext|>"),
        "{error}"
    );
    run.ok(&[&args[..], &["model.bos_token='<|endoftext|>'"]].concat());
    assert_eq!(run.record()["notes"]["text_ends"]["bos"], 0);
    let error = run.error(&[&args[..], &["model.bos_token=5000"]].concat());
    assert!(error.contains("5000"), "{error}");
}

#[test]
fn steps_are_found_however_they_are_written() {
    let run = Run::new();
    let models = run.path("models");
    for name in ["step-512", "step_000064", "checkpoint-1000"] {
        checkpoint(&models, name, |_| ());
    }
    checkpoint(&models, "last", |_| ());
    let path = format!("model.path={}", models.display());
    let tokenizer = format!("model.tokenizer={TOKENIZER}");
    let args = [
        &tokenizer,
        "interventions.list=[base]",
        "band=null",
        "frequency=null",
        &path,
    ];
    run.ok(&args);
    let mut steps: Vec<i64> = rows(&run.out("surprisal.parquet"))
        .iter()
        .map(|row| row.0)
        .collect();
    steps.dedup();
    assert_eq!(steps, [64, 512, 1000]);
    assert_eq!(run.record()["counts"]["revisions_that_are_no_steps"], 1);
    let error = run.error(&[&args[..], &["model.steps=0..10000000000/1"]].concat());
    assert!(error.contains("no checkpoint of step 0"), "{error}");
    checkpoint(&models, "step512", |_| ());
    let error = run.error(&args);
    assert!(
        error.contains("step-512") && error.contains("`step512`"),
        "{error}"
    );
}

/// Series that say tokens or words in the names of their checkpoints, and one revision by its name.
#[test]
fn names_of_published_series_are_understood() {
    let run = Run::new();
    let series = |folder: &str, names: [(&str, &str); 3]| {
        let models = run.path(folder);
        for (name, from) in names {
            fs::create_dir_all(models.join(name)).unwrap();
            for file in fs::read_dir(root().join("examples/data/tiny-neox").join(from)).unwrap() {
                let file = file.unwrap();
                fs::copy(file.path(), models.join(name).join(file.file_name())).unwrap();
            }
        }
        format!("model.path={}", models.display())
    };
    let tokenizer = format!("model.tokenizer={TOKENIZER}");
    let list = "interventions.list=[base]";
    let steps = || {
        let rows = rows(&run.out("surprisal.parquet"));
        let steps: std::collections::BTreeSet<_> = rows.iter().map(|row| row.0).collect();
        steps.into_iter().collect::<Vec<_>>()
    };

    let olmo = series(
        "olmo",
        [
            ("stage1-step512-tokens1B", "step512"),
            ("stage1-step2000-tokens4B", "step2000"),
            ("stage2-ingredient1-step2000-tokens5B", "step4000"),
        ],
    );
    run.ok(&[&olmo, &tokenizer, list, "model.steps=2B..10B"]);
    assert_eq!(steps(), [2000]);
    fs::remove_dir_all(run.path("out")).unwrap();
    run.ok(&[
        &olmo,
        &tokenizer,
        list,
        "model.revision=stage1-step512-tokens1B",
    ]);
    assert_eq!(steps(), [512]);
    fs::remove_dir_all(run.path("out")).unwrap();
    let error = run.error(&[&olmo, &tokenizer, list, "model.steps=3B"]);
    assert!(
        error.contains("no checkpoint of 3B tokens; the nearest are of 1B, 4B"),
        "{error}"
    );

    let words = [
        ("chck_1M", "step512"),
        ("chck_10M", "step2000"),
        ("main", "step4000"),
    ];
    let babylm = series("babylm", words);
    // The name that `model.steps` had.
    run.ok(&[&babylm, &tokenizer, list, "steps=all"]);
    assert_eq!(steps(), [1, 10]);
    let record = run.record().to_string();
    assert!(
        record.contains("`steps` is called `model.steps` now"),
        "{record}"
    );
    let figure = fs::read_to_string(run.out("surprisal.svg")).unwrap();
    assert!(figure.contains("million words seen"));
}

/// The rows that the job takes of its own text are no rows of another one.
#[test]
fn a_corpus_of_ones_own_is_not_cut() {
    for (corpus, rows) in [
        (None, "0..40"),
        (Some("corpus.path=README.md"), "null"),
        (Some("corpus=train"), "null"),
    ] {
        let mut command = Command::cargo_bin("compute-surprisal").unwrap();
        command.current_dir(root()).args(corpus);
        let output = command.arg("--print-config").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            text.contains(&format!("  rows: {rows} ")),
            "{corpus:?}: {text}"
        );
    }
}

/// Other weights, or another text, at the same path are not what an earlier run scored.
#[test]
fn what_changed_at_the_same_path_is_not_finished() {
    let run = Run::new();
    let models = run.path("models");
    for step in ["step512", "step4000"] {
        let folder = checkpoint(&models, step, |_| ());
        let from = format!("examples/data/tiny-neox/{step}/model.safetensors");
        fs::copy(root().join(from), folder.join("model.safetensors")).unwrap();
    }
    let corpus = run.path("text.txt");
    fs::write(&corpus, "There she blows, the white whale. ".repeat(40)).unwrap();
    let args = [
        format!("model.tokenizer={TOKENIZER}"),
        "interventions.list=[base, mean]".into(),
        "neurons.list=['3.19', '3.245']".into(),
        format!("model.path={}", models.display()),
        format!("corpus.path={}", corpus.display()),
        "corpus.rows=null".into(),
        "corpus.context_length=32".into(),
    ];
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let earlier = || run.record()["counts"]["scores_computed_by_an_earlier_run"].clone();
    run.ok(&args);
    let before = rows(&run.out("surprisal.parquet"));
    let n = before.len() / 2;
    run.ok(&args);
    assert_eq!(earlier(), 2 * n);
    assert_eq!(rows(&run.out("surprisal.parquet")), before);
    let weights = models.join("step4000/model.safetensors");
    fs::copy(&weights, models.join("step512/model.safetensors")).unwrap();
    run.ok(&args);
    assert_eq!(earlier(), n);
    let after = rows(&run.out("surprisal.parquet"));
    assert_eq!(after[n..], before[n..]);
    for (a, b) in after[..n].iter().zip(&before[n..]) {
        assert_eq!((a.0, a.4), (512, b.4));
    }
    fs::write(&corpus, "Another text of about that length. ".repeat(40)).unwrap();
    let error = run.error(&args);
    assert!(error.contains("other settings (corpus)"), "{error}");
}

/// What an audit found bad is refused here too.
#[test]
fn checkpoints_that_an_audit_found_bad_are_refused() {
    let run = Run::new();
    let audit = run.path("audit.json");
    let row = |revision: &str, findings: serde_json::Value| serde_json::json!({"revision": revision, "files": [], "content": null, "findings": findings});
    let bad = serde_json::to_value(neox_core::Finding::Missing).unwrap();
    let rows = serde_json::json!([
        row("step512", serde_json::json!([bad])),
        row("step4000", serde_json::json!([]))
    ]);
    fs::write(&audit, rows.to_string()).unwrap();
    let audit = format!("audit={}", audit.display());
    let args = |steps| [steps, "interventions.list=[base]", &audit];
    run.ok(&args("model.steps=4000"));
    let error = run.error(&args("model.steps=[512, 4000]"));
    assert!(
        error.contains("found step512 bad (missing)") && error.contains("model.allow_bad"),
        "{error}"
    );
    run.ok(&[
        &args("model.steps=[512, 4000]")[..],
        &["model.allow_bad=true"],
    ]
    .concat());
    let error = run.error(&[
        "model.steps=4000",
        "interventions.list=[base]",
        "audit=nowhere.json",
    ]);
    assert!(
        error.contains("failed to read the audit `nowhere.json`"),
        "{error}"
    );
}

#[test]
fn a_tokenizer_of_another_size_is_refused() {
    let run = Run::new();
    let error = run.error(&[
        "model.steps=4000",
        "interventions.list=[base]",
        "model.tokenizer=examples/data/pythia/tokenizer.json",
    ]);
    assert!(
        error.contains("50277 tokens")
            && error.contains("4096 rows")
            && error.contains("model.tokenizer"),
        "{error}"
    );
}

/// A GPT-2 goes through the same job.
#[test]
fn gpt2_scores_words_under_interventions() {
    let run = Run::new();
    let model = run.path("step100");
    fs::create_dir(&model).unwrap();
    random_gpt2::write(&model);
    run.ok(&[
        &format!("model.path={}", model.display()),
        "neurons.list=['1.3', '1.77', '1.101']",
    ]);
    assert!(run.out("surprisal.parquet").is_file());
}

/// A pretrained model has no steps: its folder needs no step in its name, and neurons may come from a table that has -1 for it.
#[test]
fn a_model_without_steps_is_scored() {
    let run = Run::new();
    let bundled = root().join("examples/data/tiny-neox/step4000");
    let model = run.path("my-model");
    fs::create_dir(&model).unwrap();
    for entry in fs::read_dir(bundled).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    let neurons = run.path("selection.csv");
    fs::write(&neurons, "step,top_neurons\n-1,\"[\"\"3.19\"\"]\"\n").unwrap();
    let (model, neurons) = (
        format!("model.path={}", model.display()),
        format!("neurons.file={}", neurons.display()),
    );
    let tokenizer = root().join("examples/data/tiny-neox/tokenizer.json");
    let tokenizer = format!("model.tokenizer={}", tokenizer.display());
    let said = run.ok(&[
        &model,
        &tokenizer,
        &neurons,
        "model.steps=all",
        "interventions.list=[base, zero]",
    ]);
    assert!(!said.contains("Step "), "{said}");
    let summary = fs::read_to_string(run.out("summary.csv")).unwrap();
    assert!(
        summary.lines().skip(1).all(|row| row.starts_with(',')),
        "{summary}"
    );
    assert!(run.out("report.html").exists() && !run.out("surprisal.svg").exists());
    assert_eq!(
        run.record()["notes"]["figures_over_steps"],
        "left out: the model has no steps"
    );
}

/// Mean activations that a run has kept serve another: it reads no text for them and gives the same. Means over other text are others.
#[test]
fn mean_activations_are_kept_for_other_runs() {
    let run = Run::new();
    let keep = format!("means.keep={}", run.path("kept").display());
    let args = ["model.steps=4000", "interventions.list=[base, mean]", &keep];
    let scores = || fs::read(run.out("surprisal.parquet")).unwrap();
    run.ok(&args);
    assert!(run.record()["counts"]["means_kept_before"].is_null());
    // A cache is no input: a sweep or study does not take the job for another one because something was kept.
    assert!(run.path("kept/CACHEDIR.TAG").is_file());
    let first = scores();
    fs::remove_dir_all(run.path("out")).unwrap();
    run.ok(&args);
    assert_eq!(run.record()["counts"]["means_kept_before"], 1);
    assert!(scores() == first);
    let few = [&args[..], &["means.sequences=2"]].concat();
    let error = run.error(&few);
    assert!(error.contains("other settings (corpus)"), "{error}");
    fs::remove_dir_all(run.path("out")).unwrap();
    run.ok(&few);
    assert!(run.record()["counts"]["means_kept_before"].is_null());
    assert!(scores() != first);
}
