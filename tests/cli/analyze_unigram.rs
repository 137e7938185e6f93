//! The program from outside: its files, its errors.

mod columns;
mod examples;

use std::{collections::HashMap, error::Error, fs, path::Path, process::Command, sync::Arc};

use arrow::array::{
    ArrayRef, BooleanArray, Float32Array, Float64Array, Int32Array, RecordBatch, StringArray,
};
use job_kit::{Format, TableReader, TableWriter};
use neuron_select::{NeuronId, Row, RowSums, Stratum, Tally};
use serde_json::Value;

use examples::root;

type Outcome = Result<(), Box<dyn Error>>;

/// Made by the Python package; its rows are filed by their input token.
const GOLDEN: [&str; 8] = [
    "input.path=tests/golden/tiny-neox/ablation-longtail.parquet",
    "input.layer=3",
    "frequency.counts=examples/data/tiny-neox/train-unigrams.npy",
    "band.min_frequency=2.3400289137498476e-06",
    "band.max_frequency=0.00019756529945880175",
    "bootstrap.resamples=40",
    "bootstrap.curve_resamples=5",
    "controls.draws=2",
];

/// Made by pandas' `to_feather` (LZ4, `component_name` as category, float32): six neurons, three sequences of six positions.
const PANDAS: &str = "input.path=tests/neuron-select/data/pandas-lz4.feather";

struct Run {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn analyze(args: &[&str]) -> Result<Run, Box<dyn Error>> {
    let output = Command::new(env!("CARGO_BIN_EXE_analyze-unigram"))
        .args(args)
        .current_dir(root())
        .output()?;
    Ok(Run {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout)?,
        stderr: String::from_utf8(output.stderr)?,
    })
}

#[track_caller]
fn check_success(args: &[&str]) -> Result<Run, Box<dyn Error>> {
    let run = analyze(args)?;
    if run.code == Some(0) {
        Ok(run)
    } else {
        Err(format!("{args:?} ended with {:?}: {}", run.code, run.stderr).into())
    }
}

#[track_caller]
fn check_failure(args: &[&str], code: i32, said: &[&str]) -> Outcome {
    let run = analyze(args)?;
    assert_eq!(run.code, Some(code), "{}", run.stderr);
    for text in said {
        assert!(run.stderr.contains(text), "no `{text}` in: {}", run.stderr);
    }
    Ok(())
}

fn out(dir: &Path) -> String {
    format!("output.dir={}", dir.display())
}

fn json(path: &Path) -> Result<Value, Box<dyn Error>> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// The one data row of a CSV with quoted lists, by column.
fn one_row(path: &Path) -> Result<HashMap<String, String>, Box<dyn Error>> {
    let text = fs::read_to_string(path)?;
    let mut lines = text.lines();
    let header = lines.next().ok_or("no header")?;
    assert_eq!(
        header,
        "step,top_neurons,med_effect,kl_diff,delta_loss_post,delta_loss_post_frozen"
    );
    let row = lines.next().ok_or("no row")?;
    assert_eq!(lines.next(), None);
    let mut cells = vec![String::new()];
    let mut quoted = false;
    for c in row.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => cells.push(String::new()),
            c => cells.last_mut().ok_or("no cell")?.push(c),
        }
    }
    Ok(header.split(',').map(str::to_owned).zip(cells).collect())
}

/// What ablate-unigram writes of 24 neurons, three sequences of six positions: the columns that an analysis reads.
fn ablation(dir: &Path) -> Result<(), Box<dyn Error>> {
    ablation_of(dir, 3)
}

/// The same of so many sequences.
fn ablation_of(dir: &Path, sequences: i32) -> Result<(), Box<dyn Error>> {
    let places: Vec<(i32, i32, i32)> = (0..24)
        .flat_map(|neuron| (0..6 * sequences).map(move |row| (neuron, row / 6, row % 6)))
        .collect();
    let ints = |value: &dyn Fn(i32, i32, i32) -> i32| -> ArrayRef {
        let values = places
            .iter()
            .map(|&(neuron, batch, pos)| value(neuron, batch, pos));
        Arc::new(Int32Array::from_iter_values(values))
    };
    let floats = |value: &dyn Fn(f32, f32) -> f32| -> ArrayRef {
        let values = places
            .iter()
            .map(|&(neuron, batch, pos)| value(neuron as f32, (batch * 6 + pos) as f32));
        Arc::new(Float32Array::from_iter_values(values))
    };
    let rare = places.iter().map(|place| Some(place.2 % 2 == 0));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("layer", ints(&|_, _, _| 3)),
        ("neuron", ints(&|neuron, _, _| neuron)),
        ("batch", ints(&|_, batch, _| batch)),
        ("pos", ints(&|_, _, pos| pos)),
        ("token_id", ints(&|_, batch, pos| 500 * pos + batch)),
        ("target_id", ints(&|_, batch, pos| 500 * pos + batch)),
        ("in_band", Arc::new(rare.collect::<BooleanArray>())),
        ("activation", floats(&|neuron, row| (neuron * row).sin())),
        ("loss", floats(&|_, row| 5.0 + row.sin())),
        (
            "loss_post_ablation",
            floats(&|neuron, row| {
                5.0 + row.sin() + 0.01 * (12.0 - neuron) + 0.001 * (neuron + row).cos()
            }),
        ),
        (
            "loss_post_ablation_with_frozen_unigram",
            floats(&|neuron, row| 5.0 + row.sin() + 0.005 * (12.0 - neuron)),
        ),
        (
            "kl_divergence_before",
            floats(&|_, row| 1.0 + 0.1 * row.cos()),
        ),
        (
            "kl_divergence_after",
            floats(&|neuron, row| {
                1.0 + 0.1 * row.cos() + 0.01 * (neuron - 12.0) + 0.05 * (neuron + row).sin()
            }),
        ),
    ];
    let batch = RecordBatch::try_from_iter(columns)?;
    fs::create_dir_all(dir)?;
    let mut table = TableWriter::create(
        dir.join("positions.parquet"),
        batch.schema(),
        Format::Parquet,
    )?;
    table.write(&batch)?;
    table.finish()?;
    let run = serde_json::json!({
        "job": "ablate-unigram",
        "config": {"semantics": {"band_token": "target"}},
        "notes": {"band": {"min_frequency": 2e-6, "max_frequency": 2e-4}},
    });
    Ok(fs::write(dir.join("run.json"), run.to_string())?)
}

#[test]
fn examples_run_as_printed() -> Outcome {
    let work = examples::Work::new(env!("CARGO_BIN_EXE_analyze-unigram"));
    for folder in ["ablate-unigram", "sweep/step512", "sweep/step4000"] {
        ablation(&work.path("outputs").join(folder))?;
    }
    work.run();
    Ok(())
}

#[test]
fn the_csv_holds_the_python_packages_selection() -> Outcome {
    let dir = tempfile::tempdir()?;
    let golden = json(&root().join("tests/golden/tiny-neox/selection.json"))?;
    for (case, selection) in [
        (
            "freq=longtail,by_mediation=True,heuristic=KL,effect=boost",
            vec!["selection=liu2025"],
        ),
        (
            "freq=common,by_mediation=True,heuristic=KL,effect=suppress",
            vec![
                "selection=liu2025",
                "selection.rows=common",
                "selection.effect=suppress",
            ],
        ),
    ] {
        let to = out(&dir.path().join(case));
        check_success(&[&GOLDEN[..], &selection, &["output.report=off", &to]].concat())?;
        let row = one_row(&dir.path().join(case).join("selection.csv"))?;
        assert_eq!(row["step"], "-1");
        // A Python list of texts is JSON but for its quotes.
        let names: Value = serde_json::from_str(&row["top_neurons"].replace('\'', "\""))?;
        assert_eq!(names, golden[case]["top_neurons"], "{case}");
        for column in [
            "med_effect",
            "kl_diff",
            "delta_loss_post",
            "delta_loss_post_frozen",
        ] {
            let got: Vec<f64> = serde_json::from_str(&row[column])?;
            let expected: Vec<f64> = serde_json::from_value(golden[case][column].clone())?;
            assert_eq!(got.len(), expected.len());
            assert!(
                got.iter()
                    .zip(&expected)
                    .all(|(a, b)| (a - b).abs() <= 1e-5),
                "{case} {column}: {got:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn a_sweep_gives_tables_plots_and_a_report() -> Outcome {
    let dir = tempfile::tempdir()?;
    for step in ["step1000", "step4000"] {
        fs::create_dir_all(dir.path().join("runs").join(step))?;
        golden_with_documents(&dir.path().join("runs").join(step).join("positions.parquet"))?;
    }
    let (input, to) = (
        format!("input.path={}", dir.path().join("runs").display()),
        out(&dir.path().join("out")),
    );
    let sweep = [
        &GOLDEN[1..],
        &[&input, "selection.filed_by=input", "output.report=on", &to],
    ]
    .concat();
    let run = check_success(&[&sweep[..], &["input.steps=[4000, 1000]"]].concat())?;
    assert!(run.stdout.contains("helps to predict"), "{}", run.stdout);
    let file = |name: &str| dir.path().join("out").join(name);
    columns::are_documented("analyze-unigram", &dir.path().join("out"));

    let selection = TableReader::open(file("selection.parquet"))?.read(&[
        "step",
        "rank",
        "layer",
        "neuron",
        "rank_low",
        "rank_high",
    ])?;
    assert_eq!(
        selection.i64("step")?,
        [vec![1000; 10], vec![4000; 10]].concat()
    );
    let (low, high) = (selection.i64("rank_low")?, selection.i64("rank_high")?);
    assert!(
        low.iter()
            .zip(&high)
            .all(|(low, high)| (1..=256).contains(low) && low <= high)
    );
    // Twelve documents in three sequences; the sequences alone are too few.
    let intervals = TableReader::open(file("selection.parquet"))?.read(&[
        "clusters",
        "loss_change",
        "loss_change_low",
        "loss_change_high",
        "loss_change_undefined",
    ])?;
    assert!(
        intervals
            .i64("clusters")?
            .iter()
            .all(|c| (8..=12).contains(c))
    );
    assert!(
        intervals
            .i64("loss_change_undefined")?
            .iter()
            .all(|u| *u == 0)
    );
    let (low, at, high) = (
        intervals.f64("loss_change_low")?,
        intervals.f64("loss_change")?,
        intervals.f64("loss_change_high")?,
    );
    assert!((0..at.len()).all(|i| low[i] < at[i] && at[i] < high[i]));
    let to_few = out(&dir.path().join("few"));
    check_success(&[&GOLDEN[..], &["selection.filed_by=input", &to_few]].concat())?;
    let few = TableReader::open(dir.path().join("few/selection.parquet"))?.read(&[
        "clusters",
        "loss_change_low",
        "rank_low",
    ])?;
    assert_eq!(few.i64("clusters")?, [3; 10]);
    assert!(few.opt_f64("loss_change_low")?.iter().all(Option::is_none));
    let said = json(&dir.path().join("few/run.json"))?["warnings"].to_string();
    assert!(
        said.contains("so there are no intervals: they need 8"),
        "{said}"
    );
    // Both steps hold the same table.
    let stability =
        TableReader::open(file("stability.parquet"))?.read(&["jaccard", "rank_biased_overlap"])?;
    assert_eq!(stability.f64("jaccard")?, [1.0]);
    assert!((stability.f64("rank_biased_overlap")?[0] - 1.0).abs() < 1e-12);

    let changes = TableReader::open(file("step_changes.parquet"))?.read(&[
        "step",
        "later_step",
        "set",
        "difference",
        "difference_low",
        "difference_high",
        "clusters",
    ])?;
    // All neurons, the selection and each of its ten neurons; three measures.
    assert_eq!(changes.i64("step")?, [1000; 36]);
    assert_eq!(changes.i64("later_step")?, [4000; 36]);
    for column in ["difference", "difference_low", "difference_high"] {
        assert_eq!(changes.f64(column)?, [0.0; 36], "{column}");
    }
    assert!(
        changes
            .i64("clusters")?
            .iter()
            .all(|c| (8..=12).contains(c))
    );
    assert_eq!(
        changes
            .text("set")?
            .iter()
            .filter(|set| *set == "neuron")
            .count(),
        30
    );

    let controls =
        TableReader::open(file("controls.parquet"))?.read(&["component_name", "kind", "draw"])?;
    let names = TableReader::open(file("selection.parquet"))?
        .read(&["component_name"])?
        .text("component_name")?;
    assert_eq!(controls.rows(), 2 * 2 * 2 * 10); // steps, kinds, draws, neurons
    assert!(
        controls
            .text("component_name")?
            .iter()
            .all(|control| !names.contains(control))
    );

    let coactivation = TableReader::open(file("coactivation.parquet"))?.read(&[
        "set",
        "rows",
        "effective_dimension_zscored",
        "positions",
    ])?;
    assert_eq!(coactivation.rows(), 2 * 2 * 5); // steps, rare and common, the selection and four controls
    assert!(
        coactivation
            .i64("effective_dimension_zscored")?
            .iter()
            .all(|d| (1..=10).contains(d))
    );
    assert_eq!(coactivation.i64("positions")?[0], 79);

    let curves = TableReader::open(file("curves.parquet"))?.read(&[
        "best",
        "exponent_low",
        "exponent",
        "exponent_high",
    ])?;
    let exponents = curves
        .opt_f64("exponent_low")?
        .into_iter()
        .zip(curves.opt_f64("exponent_high")?);
    let best = curves.bool("best")?;
    assert_eq!(best.iter().filter(|b| **b).count(), 4);
    assert!(exponents.zip(best).all(|((low, high), best)| best == low.zip(high).is_some_and(|(low, high)| low <= high)));

    // Tests over all neurons, and effects on documents that did not select.
    let tested = TableReader::open(file("ranking.parquet"))?
        .read(&["loss_change_p_max_t", "kl_change_p_max_t"])?;
    for column in ["loss_change_p_max_t", "kl_change_p_max_t"] {
        let p = tested.f64(column)?;
        assert_eq!(p.len(), 2 * 256);
        assert!(p.iter().all(|p| *p > 0.0 && *p <= 1.0));
    }
    let fitted = TableReader::open(file("cross_fit.parquet"))?.read(&[
        "measure",
        "in_sample",
        "held_out",
        "held_out_low",
        "held_out_high",
    ])?;
    let (inside, outside) = (fitted.f64("in_sample")?, fitted.f64("held_out")?);
    let measures = fitted.text("measure")?;
    assert_eq!(measures.len(), 2 * 3);
    for (i, measure) in measures.iter().enumerate() {
        assert!(fitted.f64("held_out_low")?[i] < outside[i]);
        // What the neurons were selected by shrinks.
        if measure == "loss_change" {
            assert!(outside[i].abs() < inside[i].abs());
        }
    }
    let ranked =
        TableReader::open(file("band_effects.parquet"))?.read(&["set", "selection_rank_p"])?;
    let sets = ranked.text("set")?;
    for (set, p) in sets.iter().zip(ranked.opt_f64("selection_rank_p")?) {
        let control = ["random", "matched"].contains(&set.as_str());
        assert_eq!(p.is_some(), control, "{set}");
        assert!(p.is_none_or(|p| (1.0 / 3.0..=1.0).contains(&p))); // two draws
    }

    let laws = TableReader::open(file("curves.parquet"))?.read(&[
        "verdict",
        "likeliest_law",
        "lognormal_goodness_p",
        "vuong_p",
        "plateau_neurons",
    ])?;
    let verdicts = laws.opt_text("verdict")?;
    let held = laws.opt_f64("lognormal_goodness_p")?;
    assert_eq!(verdicts.iter().flatten().count(), 4);
    for (verdict, p) in verdicts.iter().zip(held).filter(|(v, _)| v.is_some()) {
        assert!(p.is_some_and(|p| p > 0.0 && p <= 1.0));
        assert!(verdict.as_deref() != Some("power law"), "{verdicts:?}");
    }
    let contrasts = TableReader::open(file("band_contrasts.parquet"))?.read(&[
        "set",
        "longtail_minus_common",
        "longtail_minus_common_low",
        "longtail_minus_common_high",
        "clusters",
    ])?;
    assert_eq!(contrasts.rows(), 2 * 4); // steps; all, selection, two kinds of controls
    let (low, at, high) = (
        contrasts.opt_f64("longtail_minus_common_low")?,
        contrasts.f64("longtail_minus_common")?,
        contrasts.opt_f64("longtail_minus_common_high")?,
    );
    // Two draws are too few for an interval over draws.
    for (i, set) in contrasts.text("set")?.iter().enumerate() {
        let control = ["random", "matched"].contains(&set.as_str());
        let ends = low[i].zip(high[i]);
        assert_eq!(ends.is_none(), control, "{set}");
        assert!(ends.is_none_or(|(low, high)| low < at[i] && at[i] < high));
    }

    for plot in ["mediation", "effects", "bands", "influence", "ranks"] {
        for extension in ["svg", "png"] {
            let path = file("plots").join(format!("step1000-{plot}.{extension}"));
            assert!(fs::metadata(&path)?.len() > 1000, "{}", path.display());
        }
    }
    let page = fs::read_to_string(file("report.html"))?;
    assert_eq!(page.matches("<svg").count(), 2 * 5 + 2);
    assert!(page.contains("Step 1000") && page.contains("Overlap of selections"));
    assert!(
        !page.contains("src=") && !page.contains("href=\"http"),
        "the page is not self-contained"
    );

    let run = json(&file("run.json"))?;
    assert_eq!(run["counts"]["step_4000_rows"], 94_720);
    assert!(
        run["warnings"].to_string().contains("output norms"),
        "{}",
        run["warnings"]
    );
    assert!(
        run["outputs"]
            .as_object()
            .is_some_and(|outputs| outputs.len() > 20)
    );
    assert!(
        fs::read_dir(dir.path().join("out"))?
            .all(|entry| entry.is_ok_and(|e| !e.file_name().to_string_lossy().starts_with('.')))
    );

    check_failure(
        &[&sweep[..], &["input.steps=[2000]"]].concat(),
        1,
        &[
            "(`input.steps`)",
            "there is no checkpoint of step 2000; there are 1000, 4000",
        ],
    )
}

/// An ablation folder with the means of the code of Stolfo et al. (tests/golden/stolfo2024): one row for each neuron.
fn stolfo(dir: &Path) -> Outcome {
    let golden = TableReader::open(root().join("tests/golden/stolfo2024/neurons.parquet"))?;
    let column =
        |name: &str| -> Result<Vec<f64>, Box<dyn Error>> { Ok(golden.read(&[name])?.f64(name)?) };
    let rho = column("rho_k12")?;
    let n = rho.len() as i32;
    let floats = |values: Vec<f64>| -> ArrayRef { Arc::new(Float64Array::from(values)) };
    let ints = |value: &dyn Fn(i32) -> i32| -> ArrayRef {
        Arc::new(Int32Array::from_iter_values((0..n).map(value)))
    };
    let ids = [("layer", ints(&|_| 3)), ("neuron", ints(&|neuron| neuron))];
    // Theirs do not say it: farther from the mean where the effect is larger.
    let effect = column("total.loss.mean_abs_change")?;
    let activation = column("mean_activation")?
        .iter()
        .zip(&effect)
        .map(|(mean, effect)| mean + effect)
        .collect();
    let after = |name: &str| column(&format!("{name}.loss.mean_abs_change")).map(floats);
    let rows = vec![
        ("batch", ints(&|_| 0)),
        ("pos", ints(&|_| 3)),
        (
            "in_band",
            Arc::new(BooleanArray::from(vec![false; n as usize])) as ArrayRef,
        ),
        ("activation", floats(activation)),
        ("loss", floats(vec![0.0; n as usize])),
        ("loss_post_ablation", after("total")?),
        (
            "loss_post_ablation_with_frozen_unigram",
            after("frozen_unigram")?,
        ),
        ("loss_post_ablation_with_frozen_ln", after("frozen_ln")?),
        ("kl_divergence_before", floats(vec![0.0; n as usize])),
        (
            "kl_divergence_after",
            floats(column("total.kl_freq_model.mean_abs_change")?),
        ),
    ];
    let weights = vec![
        ("mean_activation", floats(column("mean_activation")?)),
        ("w_out_norm", floats(column("norm")?)),
        ("w_out_norm_centred", floats(column("norm")?)),
        ("logit_var", floats(column("logit_var")?)),
        (
            "null_share",
            floats(rho.iter().map(|rho| rho * rho).collect()),
        ),
    ];
    fs::create_dir_all(dir)?;
    for (file, columns) in [("positions.parquet", rows), ("neurons.parquet", weights)] {
        let batch = RecordBatch::try_from_iter(ids.iter().cloned().chain(columns))?;
        let mut table = TableWriter::create(dir.join(file), batch.schema(), Format::Parquet)?;
        table.write(&batch)?;
        table.finish()?;
    }
    Ok(())
}

/// Against the lists of the code of Stolfo et al. (tests/golden/stolfo2024/README.md).
#[test]
fn entropy_neurons_are_selected_as_stolfo_et_al_select_them() -> Outcome {
    let dir = tempfile::tempdir()?;
    stolfo(&dir.path().join("ablation"))?;
    let (input, to) = (
        format!("input.path={}", dir.path().join("ablation").display()),
        out(&dir.path().join("out")),
    );
    let lists = json(&root().join("tests/golden/stolfo2024/selection.json"))?;
    for (heuristic, list, report) in [
        ("null-share", "top10_k12", "on"),
        ("ln-mediated-share", "top20_mediated_by_layer_norm", "off"),
    ] {
        let expected: Vec<&str> = lists[list]
            .as_array()
            .ok_or("no such list")?
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let (heuristic, top) = (
            format!("selection.heuristic={heuristic}"),
            format!("selection.top_n={}", expected.len()),
        );
        let report = format!("output.report={report}");
        let args = ["selection=entropy", &input, &heuristic, &top, &report, &to];
        let run = check_success(&args)?;
        assert!(run.stdout.contains("either way"), "{}", run.stdout);
        // The file that the other jobs take.
        let row = one_row(&dir.path().join("out/selection.csv"))?;
        let names: Vec<String> = expected.iter().map(|name| format!("'{name}'")).collect();
        assert_eq!(row["top_neurons"], format!("[{}]", names.join(", ")));
        if report == "output.report=on" {
            for plot in ["weights", "norm-effects", "rho", "mediation"] {
                let path = dir.path().join(format!("out/plots/{plot}.svg"));
                assert!(path.is_file(), "{} was not drawn", path.display());
            }
        }
    }
    // What is not in the tables is not ranked by.
    fs::remove_file(dir.path().join("ablation/neurons.parquet"))?;
    check_failure(
        &["selection=entropy", &input, &to],
        1,
        &[
            "no neuron has what `selection.heuristic` ranks by",
            "neurons.parquet",
        ],
    )
}

/// Controls do as much to the residual stream as the neurons that they stand for, or there are none.
#[test]
fn controls_are_matched_on_what_the_intervention_does() -> Outcome {
    let dir = tempfile::tempdir()?;
    stolfo(&dir.path().join("ablation"))?;
    let (input, to) = (
        format!("input.path={}", dir.path().join("ablation").display()),
        out(&dir.path().join("out")),
    );
    let args = ["selection=entropy", &input, &to];
    // The neurons with the largest effects push hardest; few are alike.
    let args = [
        &args[..],
        &["selection.heuristic=prob", "controls.draws=19"],
    ]
    .concat();
    let read =
        |columns: &[&str]| TableReader::open(dir.path().join("out/balance.parquet"))?.read(columns);
    let mut differences = Vec::new();
    for (choice, traits) in [
        ("controls.caliper=0.25", "log_change_length"),
        ("controls.match=activation-and-norm", "w_out_norm"),
    ] {
        check_success(&[&args[..], &[choice]].concat())?;
        let table = read(&[
            "kind",
            "trait",
            "standardised_difference",
            "selected",
            "without_control",
        ])?;
        let (kinds, names) = (table.text("kind")?, table.text("trait")?);
        let row = (0..kinds.len())
            .find(|&i| kinds[i] == "matched" && names[i] == traits)
            .ok_or("no such row")?;
        let left_out = table.i64("without_control")?[row];
        assert_eq!(table.i64("selected")?[row] + left_out, 10);
        differences.push((
            table.opt_f64("standardised_difference")?[row].ok_or("it varies")?,
            left_out,
        ));
    }
    let [(by_push, left_out), (_, none)] = differences[..] else {
        return Err("two choices".into());
    };
    // Where the caliper is kept, the groups are alike; the price is that some neurons have no control.
    assert!(by_push.abs() <= 0.25, "{by_push}");
    assert!(left_out > 0 && none == 0, "{left_out}, {none}");
    check_failure(
        &[&args[..], &["controls.caliper=0"]].concat(),
        1,
        &["the caliper is 0", "positive"],
    )?;
    check_failure(
        &[
            &args[..],
            &["controls.match=activation-and-norm", "controls.caliper=0.1"],
        ]
        .concat(),
        2,
        &["controls.caliper"],
    )
}

/// The figure after their 3b shows the mean of absolute changes, not the absolute mean change.
#[test]
fn the_change_of_the_divergence_does_not_cancel_out() -> Outcome {
    let dir = tempfile::tempdir()?;
    ablation(&dir.path().join("ablation"))?;
    let (input, to) = (
        format!("input.path={}", dir.path().join("ablation").display()),
        out(&dir.path().join("out")),
    );
    check_success(&[&input, "selection.rows=none", &to])?;
    let table = TableReader::open(dir.path().join("out/ranking.parquet"))?.read(&[
        "kl_change",
        "kl_abs_change",
        "ln_mediated_share",
    ])?;
    let (mean, mean_abs) = (table.f64("kl_change")?, table.f64("kl_abs_change")?);
    assert!(mean.iter().zip(&mean_abs).all(|(m, a)| m.abs() <= a + 1e-9));
    assert!(mean.iter().zip(&mean_abs).any(|(m, a)| m.abs() < 0.9 * a));
    // The table has no loss with the final norm frozen.
    assert!(
        table
            .opt_f64("ln_mediated_share")?
            .iter()
            .all(Option::is_none)
    );
    Ok(())
}

#[test]
fn names_that_look_like_numbers_stay_apart() -> Outcome {
    let dir = tempfile::tempdir()?;
    let args = [
        PANDAS,
        "selection.rows=none",
        "bootstrap.resamples=20",
        "bootstrap.curve_resamples=2",
        "controls.draws=0",
        "output.report=off",
    ];
    check_success(&[&args[..], &[&out(dir.path())]].concat())?;
    // By size: 5.10 is 0.3, 5.2 is 0.1, 5.3 is 0.05, 5.1 is 0.02; the others lower the loss.
    let row = one_row(&dir.path().join("selection.csv"))?;
    assert_eq!(row["top_neurons"], "['5.10', '5.2', '5.3', '5.1']");
    let run = json(&dir.path().join("run.json"))?;
    assert!(
        run["warnings"]
            .to_string()
            .contains("4 neurons meet the criteria, 10 were asked for"),
        "{}",
        run["warnings"]
    );
    let ranking = TableReader::open(dir.path().join("ranking.parquet"))?.read(&[
        "component_name",
        "left_out",
        "rank",
    ])?;
    assert_eq!(ranking.text("component_name")?[4..], ["5.4", "5.100"]);
    assert_eq!(
        ranking.opt_text("left_out")?[4].as_deref(),
        Some("other sign")
    );
    Ok(())
}

#[test]
fn a_comparison_gives_reasons_and_settings() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let few = [
        "selection.filed_by=input",
        "controls.draws=0",
        "bootstrap.resamples=5",
        "bootstrap.curve_resamples=2",
        "output.report=off",
    ];
    check_success(&[&GOLDEN[..], &few, &["selection.rows=none", &out(&a)]].concat())?;
    check_success(&[&GOLDEN[..], &few, &[&out(&b)]].concat())?;
    let (a, b) = (a.display().to_string(), b.display().to_string());
    let text = check_success(&["--compare", &a, &b])?.stdout;
    assert!(
        text.contains("selection.rows: \"none\" | \"longtail\""),
        "{text}"
    );
    // Golden: among all rows 3.240 is second, among long-tail rows its removal lowers the loss.
    let line = text
        .lines()
        .find(|line| line.contains("3.240 "))
        .ok_or("3.240 is missing")?;
    assert!(
        line.contains("only in the first, rank   2") && line.contains("has not the sign asked for"),
        "{line}"
    );
    let same = check_success(&["--compare", &a, &a])?.stdout;
    assert!(
        same.contains("settings that differ: none") && same.contains("Jaccard 1.000"),
        "{same}"
    );
    check_failure(
        &["--compare", &a, "tests"],
        1,
        &["is it a folder that analyze-unigram wrote?"],
    )
}

#[test]
fn wrong_inputs_are_named() -> Outcome {
    let dir = tempfile::tempdir()?;
    let to = out(&dir.path().join("out"));
    check_failure(
        &["input.path=no/such/table.parquet", &to],
        1,
        &["no/such/table.parquet"],
    )?;
    check_failure(
        &["input.path=tests", &to],
        1,
        &[
            "neither sums.parquet nor positions.parquet or positions.feather",
            "run ablate-unigram",
        ],
    )?;
    check_failure(
        &["input.path=Cargo.toml", &to],
        1,
        &["has an unknown format: expected .parquet, .feather"],
    )?;
    check_failure(
        &[PANDAS, &to],
        1,
        &[
            "does not say which rows are rare",
            "hint: set frequency.counts",
        ],
    )?;
    check_failure(
        &[
            "input.path=tests/golden/tiny-neox/ablation-baseline.parquet",
            "selection.rows=none",
            &to,
        ],
        1,
        &["has no column"],
    )?;
    check_failure(
        &[&GOLDEN[..], &[&to]].concat(),
        1,
        &["cannot tell whose frequency"],
    )?;
    check_failure(
        &[&GOLDEN[..], &["selection.filed_by=target", &to]].concat(),
        1,
        &["has no column `target_id`"],
    )?;
    check_failure(
        &[
            &GOLDEN[..],
            &[
                "selection.filed_by=input",
                "band.max_frequency=0.00000234",
                &to,
            ],
        ]
        .concat(),
        1,
        &["none is long-tail"],
    )?;
    check_failure(
        &[PANDAS, "input.layer=3", &to],
        1,
        &["`input.layer` is 3, but", "in its column `component_name`"],
    )?;
    check_failure(
        &["selection.hueristic=kl"],
        2,
        &["selection.hueristic", "heuristic"],
    )?;
    check_failure(&["selection.effect=boots"], 2, &["boots", "boost"])?;
    assert!(
        !dir.path().join("out").exists() || fs::read_dir(dir.path().join("out"))?.next().is_none(),
        "a failed run left files"
    );
    Ok(())
}

/// Writes the golden table as if each of its three sequences were of four documents: twelve clusters.
fn golden_with_documents(to: &Path) -> Outcome {
    const INTS: [&str; 4] = ["neuron", "batch", "pos", "token_id"];
    const FLOATS: [&str; 6] = [
        "activation",
        "loss",
        "loss_post_ablation",
        "loss_post_ablation_with_frozen_unigram",
        "kl_divergence_before",
        "kl_divergence_after",
    ];
    let golden = root().join("tests/golden/tiny-neox/ablation-longtail.parquet");
    let table = TableReader::open(golden)?.read(&[&INTS[..], &FLOATS].concat())?;
    let ints = |values: Vec<i64>| -> ArrayRef {
        Arc::new(Int32Array::from_iter_values(
            values.into_iter().map(|v| v as i32),
        ))
    };
    let (batch, pos) = (table.i64("batch")?, table.i64("pos")?);
    let documents = batch
        .iter()
        .zip(&pos)
        .map(|(batch, pos)| 4 * batch + pos % 4);
    let mut columns = vec![("document", ints(documents.collect()))];
    for name in INTS {
        columns.push((name, ints(table.i64(name)?)));
    }
    for name in FLOATS {
        let values = table.f64(name)?.into_iter().map(|v| v as f32);
        columns.push((name, Arc::new(Float32Array::from_iter_values(values))));
    }
    let batch = RecordBatch::try_from_iter(columns)?;
    let mut table = TableWriter::create(to, batch.schema(), Format::Parquet)?;
    table.write(&batch)?;
    table.finish()?;
    Ok(())
}

/// An ablation folder with the golden table, as one that froze the direction of a band of the given lowest frequency.
fn ablated(dir: &Path, min_frequency: &str, direction: &str) -> Outcome {
    fs::create_dir_all(dir)?;
    golden_with_documents(&dir.join("positions.parquet"))?;
    let run = format!(
        r#"{{"job": "ablate-unigram", "outputs": {{}}, "config": {{"semantics": {{"direction": "{direction}"}}}},
            "notes": {{"band": {{"min_frequency": {min_frequency}, "max_frequency": 0.00019756529945880175}}}}}}"#
    );
    Ok(fs::write(dir.join("run.json"), run)?)
}

/// Direct effects are those of the band whose direction the ablation froze.
#[test]
fn direct_effects_of_another_band_are_left_out() -> Outcome {
    let dir = tempfile::tempdir()?;
    let small = [
        "selection.filed_by=input",
        "input.layer=3",
        "output.report=on",
    ];
    for (case, min, direction, kept) in [
        ("same", "2.3400289137498476e-06", "band-recentred", true),
        ("all-tokens", "1e-05", "all-tokens", true),
        ("other", "1e-05", "band-recentred", false),
    ] {
        let ablation = dir.path().join(format!("ablation-{case}"));
        ablated(&ablation, min, direction)?;
        let (input, to) = (
            format!("input.path={}", ablation.display()),
            out(&dir.path().join(case)),
        );
        let args = [&GOLDEN[2..], &small[..], &[&input, &to]].concat();
        check_success(&args)?;
        let table = TableReader::open(dir.path().join(case).join("selection.parquet"))?;
        let columns = table.read(&[
            "direct_effect",
            "mediated_share",
            "mediated_share_low",
            "frozen_loss_change",
            "total_effect",
        ])?;
        assert!(
            columns
                .f64("total_effect")?
                .iter()
                .all(|effect| effect.is_finite())
        );
        for column in [
            "direct_effect",
            "mediated_share",
            "mediated_share_low",
            "frozen_loss_change",
        ] {
            let values = columns.opt_f64(column)?;
            assert!(
                !values.is_empty() && values.iter().all(|value| value.is_some() == kept),
                "{case}: {column}"
            );
        }
        let run = json(&dir.path().join(case).join("run.json"))?;
        let said = run["warnings"]
            .to_string()
            .contains("direct effects and mediated shares are left out: the ablation froze");
        assert_eq!(said, !kept, "{case}: {}", run["warnings"]);
        assert_eq!(
            dir.path().join(case).join("plots/mediation.svg").exists(),
            kept
        );
        let by_mediation = [&args[..], &["selection.by_mediation=true"]].concat();
        match kept {
            true => drop(check_success(&by_mediation)?),
            false => check_failure(
                &by_mediation,
                1,
                &[
                    "selection.by_mediation needs mediated shares",
                    "hint: ablate with that band",
                ],
            )?,
        }
    }
    Ok(())
}

#[test]
fn the_folder_of_the_ablation_is_not_written_to() -> Outcome {
    let dir = tempfile::tempdir()?;
    ablated(dir.path(), "1e-05", "all-tokens")?;
    let before = fs::read(dir.path().join("run.json"))?;
    let (input, to) = (
        format!("input.path={}", dir.path().display()),
        out(dir.path()),
    );
    check_failure(
        &[
            &GOLDEN[2..],
            &["selection.filed_by=input", "input.layer=3", &input, &to],
        ]
        .concat(),
        1,
        &["belongs to ablate-unigram"],
    )?;
    assert_eq!(fs::read(dir.path().join("run.json"))?, before);
    Ok(())
}

/// `sums.parquet` of the positions in a folder, as ablate-unigram writes it (whose own test holds it against its positions), and a
/// `neurons.parquet` with what controls are matched on.
fn sums_beside(folder: &Path) -> Outcome {
    let floats = |values: Vec<f64>| -> ArrayRef { Arc::new(Float64Array::from(values)) };
    let ints = |values: Vec<i32>| -> ArrayRef { Arc::new(Int32Array::from(values)) };
    let write = |file: &str, columns: Vec<(&str, ArrayRef)>| -> Outcome {
        let batch = RecordBatch::try_from_iter(columns)?;
        let mut table = TableWriter::create(folder.join(file), batch.schema(), Format::Parquet)?;
        table.write(&batch)?;
        table.finish()?;
        Ok(())
    };
    let mean = |neuron: i64| 0.1 * (neuron as f64).cos();
    write(
        "neurons.parquet",
        vec![
            ("layer", ints(vec![3; 24])),
            ("neuron", ints((0..24).collect())),
            ("mean_activation", floats((0..24).map(mean).collect())),
            ("w_out_norm", floats(vec![1.0; 24])),
            ("w_out_norm_centred", floats(vec![1.0; 24])),
        ],
    )?;
    let mut columns = vec!["neuron", "batch", "in_band", "activation", "loss"];
    columns.extend(["loss_post_ablation", "kl_divergence_before"]);
    columns.extend([
        "loss_post_ablation_with_frozen_unigram",
        "kl_divergence_after",
    ]);
    let table = TableReader::open(folder.join("positions.parquet"))?.read(&columns)?;
    let float = |name: &str| table.f64(name);
    let (neurons, sequences) = (table.i64("neuron")?, table.i64("batch")?);
    let (in_band, activation) = (table.bool("in_band")?, float("activation")?);
    let (loss, after) = (float("loss")?, float("loss_post_ablation")?);
    let frozen = float("loss_post_ablation_with_frozen_unigram")?;
    let (kl, kl_after) = (
        float("kl_divergence_before")?,
        float("kl_divergence_after")?,
    );
    let mut tally = Tally::default();
    for i in 0..neurons.len() {
        tally.add(&Row {
            neuron: NeuronId {
                layer: 3,
                neuron: neurons[i] as usize,
            },
            sequence: sequences[i],
            stratum: match in_band[i] {
                true => Stratum::LongTail,
                false => Stratum::Common,
            },
            loss_change: after[i] - loss[i],
            frozen_loss_change: frozen[i] - loss[i],
            frozen_ln_loss_change: None,
            frozen_all_loss_change: None,
            kl_change: kl_after[i] - kl[i],
            activation: activation[i],
            activation_change: Some(mean(neurons[i]) - activation[i]),
            clean_loss: loss[i],
        })?;
    }
    let sums: Vec<_> = tally.sums().collect();
    let of = |value: fn(&RowSums) -> f64| floats(sums.iter().map(|s| value(s.3)).collect());
    write(
        "sums.parquet",
        vec![
            ("layer", ints(vec![3; sums.len()])),
            (
                "neuron",
                ints(sums.iter().map(|s| s.0.neuron as i32).collect()),
            ),
            ("batch", ints(sums.iter().map(|s| s.1 as i32).collect())),
            (
                "stratum",
                Arc::new(StringArray::from_iter_values(
                    sums.iter().map(|s| s.2.name()),
                )),
            ),
            ("rows", of(|s| s.rows)),
            ("loss_change", of(|s| s.loss_change)),
            ("loss_abs_change", of(|s| s.loss_abs_change)),
            ("frozen_loss_change", of(|s| s.frozen_loss_change)),
            ("frozen_loss_abs_change", of(|s| s.frozen_loss_abs_change)),
            ("kl_change", of(|s| s.kl_change)),
            ("kl_abs_change", of(|s| s.kl_abs_change)),
            ("activation", of(|s| s.activation)),
            (
                "activation_change_squared",
                of(|s| s.activation_change_squared),
            ),
            ("active_rows", of(|s| s.active_rows)),
            ("active_loss", of(|s| s.active_loss)),
        ],
    )
}

/// Sums of rows per document give the numbers of the rows themselves, to the last bit; what needs rows is left out, and said.
#[test]
fn sums_give_the_numbers_of_positions() -> Outcome {
    let dir = tempfile::tempdir()?;
    let [rows, both, sums] = ["rows", "both", "sums"].map(|name| dir.path().join(name));
    for folder in [&rows, &both, &sums] {
        ablation_of(folder, 12)?;
        sums_beside(folder)?;
    }
    fs::remove_file(rows.join("sums.parquet"))?;
    fs::remove_file(sums.join("positions.parquet"))?;
    let to = |folder: &Path| folder.with_extension("out");
    for folder in [&rows, &both, &sums] {
        let (input, to) = (format!("input.path={}", folder.display()), out(&to(folder)));
        let few = ["bootstrap.resamples=60", "bootstrap.curve_resamples=5"];
        let args = [&input[..], "selection.top_n=4", "controls.draws=9", &to];
        check_success(&[&args[..], &few].concat())?;
    }
    type Tables = Vec<(String, Vec<u8>)>;
    let tables = |folder: &Path| -> Result<Tables, Box<dyn Error>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(to(folder))? {
            let path = entry?.path();
            let name = path.file_name().ok_or("no name")?.to_string_lossy();
            if name.ends_with(".parquet") || name.ends_with(".csv") {
                found.push((name.into_owned(), fs::read(&path)?));
            }
        }
        found.sort();
        Ok(found)
    };
    let (of_rows, of_both, of_sums) = (tables(&rows)?, tables(&both)?, tables(&sums)?);
    assert!(of_rows.len() >= 13, "{} tables", of_rows.len());
    for (a, b) in of_rows.iter().zip(&of_both) {
        assert!(a == b, "{} differs beside sums", a.0);
    }
    for (a, b) in of_rows.iter().zip(&of_sums) {
        assert_eq!(a.0, b.0);
        assert_eq!(a.1 == b.1, a.0 != "coactivation.parquet", "{}", a.0);
    }
    let intervals = TableReader::open(to(&sums).join("selection.parquet"))?;
    let intervals = intervals.read(&["loss_change_low"])?;
    assert_eq!(intervals.f64("loss_change_low")?.len(), 4, "none is null");

    let certain = TableReader::open(to(&sums).join("selection.parquet"))?.read(&[
        "loss_change_low",
        "loss_change_high",
        "sign_is_certain",
    ])?;
    let (low, high) = (
        certain.f64("loss_change_low")?,
        certain.f64("loss_change_high")?,
    );
    let leaves_out_0 = low.iter().zip(&high).map(|(low, high)| low * high > 0.0);
    assert_eq!(
        certain.bool("sign_is_certain")?,
        leaves_out_0.collect::<Vec<_>>()
    );

    let record = json(&to(&sums).join("run.json"))?;
    assert_eq!(record["counts"]["steps_without_positions"], 1);
    let warnings = record["warnings"].to_string();
    assert!(warnings.contains("no co-activation"), "{warnings}");
    let record = json(&to(&both).join("run.json"))?;
    assert_eq!(record["counts"]["steps_without_positions"], 0);

    let (input, to) = (
        format!("input.path={}", sums.display()),
        out(&dir.path().join("refused")),
    );
    check_failure(
        &[&input, "selection.filed_by=input", &to],
        1,
        &["sums.parquet", "files rows by the target token"],
    )?;
    check_failure(
        &[&input, "frequency=tiny-neox", &to],
        1,
        &["cannot be filed anew", "output.positions=on"],
    )
}

/// Where the sign of a change is not certain it is said, everywhere; and shares at random weights stand beside those of later steps.
#[test]
fn doubtful_signs_and_shares_at_random_weights_are_told() -> Outcome {
    let dir = tempfile::tempdir()?;
    for step in ["step0", "step512"] {
        let folder = dir.path().join("runs").join(step);
        ablation_of(&folder, 12)?;
        sums_beside(&folder)?;
    }
    let runs = format!("input.path={}", dir.path().join("runs").display());
    let results = dir.path().join("out");
    // The change of the divergence crosses 0 at neuron 12, and is next to nothing there.
    let args = [
        &runs[..],
        "input.steps=all",
        "selection.heuristic=kl",
        "selection.effect=suppress",
        "selection.top_n=13",
        "bootstrap.resamples=60",
        "bootstrap.curve_resamples=5",
        "controls.draws=2",
        &out(&results),
    ];
    let run = check_success(&args)?;
    let table = TableReader::open(results.join("selection.parquet"))?;
    let table = table.read(&["step", "component_name", "sign_is_certain"])?;
    let certain = table.bool("sign_is_certain")?;
    let rows = table
        .i64("step")?
        .into_iter()
        .zip(table.text("component_name")?);
    let doubtful: Vec<String> = rows
        .zip(&certain)
        .filter(|((step, _), certain)| *step == 512 && !**certain)
        .map(|((_, name), _)| name)
        .collect();
    assert!(
        !doubtful.is_empty() && certain.contains(&true),
        "{certain:?}"
    );
    let said = format!(
        "includes 0 for {} of 13 selected neurons, which may have the other sign on other text: {}",
        doubtful.len(),
        doubtful.join(", ")
    );
    let record = json(&results.join("run.json"))?;
    assert_eq!(
        record["counts"]["step_512_selected_of_uncertain_sign"],
        doubtful.len()
    );
    assert!(record["warnings"].to_string().contains(&said), "{said}");
    assert!(fs::read_to_string(results.join("report.html"))?.contains(&said));
    let summary = format!("* {} of 13: the interval includes 0", doubtful.len());
    assert!(run.stdout.contains(&summary), "{}", run.stdout);
    assert!(
        run.stdout.contains("at step 0, random weights"),
        "{}",
        run.stdout
    );

    let table = TableReader::open(results.join("ranking.parquet"))?;
    let table = table.read(&[
        "step",
        "component_name",
        "mediated_share",
        "mediated_share_at_step_0",
    ])?;
    let (steps, names) = (table.i64("step")?, table.text("component_name")?);
    let shares = table.opt_f64("mediated_share")?;
    let at_step_0 = table.opt_f64("mediated_share_at_step_0")?;
    for i in 0..steps.len() {
        let same = (0..steps.len()).find(|&j| steps[j] == 0 && names[j] == names[i]);
        assert_eq!(at_step_0[i], same.and_then(|j| shares[j]), "{}", names[i]);
    }
    // Headers say what values are of; step 0 has a place of its own.
    let figure = |name: &str| fs::read_to_string(results.join("plots").join(name));
    let shares = figure("shares.svg")?;
    assert!(shares.contains(">0</text>") && shares.contains("frequency, selected"));
    let about = "n = 36 of 12 sequences, 24 neurons; band 2.0×10⁻⁶ to 0.00020, by target token";
    assert!(figure("step512-effects.svg")?.contains(about));
    Ok(())
}

/// Rows that are rarer than the band are in neither stratum.
#[test]
fn rarer_rows_are_not_common() -> Outcome {
    let dir = tempfile::tempdir()?;
    let (input, to) = (
        format!("input.path={}", dir.path().join("ablation").display()),
        out(&dir.path().join("out")),
    );
    let folder = dir.path().join("ablation");
    ablation(&folder)?;
    let args = [
        &input[..],
        "selection.rows=common",
        "output.report=off",
        &to,
    ];
    let rows = || -> Result<Vec<i64>, Box<dyn Error>> {
        check_success(&args)?;
        let ranking = TableReader::open(dir.path().join("out/ranking.parquet"))?;
        Ok(ranking.read(&["rows"])?.i64("rows")?)
    };
    assert_eq!(rows()?, [9; 24]);
    // Of the nine rows out of the band those at position 5 are rarer.
    let columns = ["layer", "neuron", "batch", "pos", "token_id", "target_id"];
    let floats = [
        "activation",
        "loss",
        "loss_post_ablation",
        "loss_post_ablation_with_frozen_unigram",
        "kl_divergence_before",
        "kl_divergence_after",
    ];
    let table = TableReader::open(folder.join("positions.parquet"))?
        .read(&[&columns[..], &floats, &["in_band"]].concat())?;
    let mut arrays: Vec<(&str, ArrayRef)> = Vec::new();
    for name in columns {
        let values = table.i64(name)?.into_iter().map(|value| value as i32);
        arrays.push((name, Arc::new(Int32Array::from_iter_values(values))));
    }
    for name in floats {
        arrays.push((name, Arc::new(Float64Array::from(table.f64(name)?))));
    }
    arrays.push((
        "in_band",
        Arc::new(BooleanArray::from(table.bool("in_band")?)),
    ));
    let rarer: Vec<bool> = table.i64("pos")?.iter().map(|pos| *pos == 5).collect();
    arrays.push(("rarer_than_band", Arc::new(BooleanArray::from(rarer))));
    let batch = RecordBatch::try_from_iter(arrays)?;
    let path = folder.join("positions.parquet");
    let mut writer = TableWriter::create(path, batch.schema(), Format::Parquet)?;
    writer.write(&batch)?;
    writer.finish()?;
    assert_eq!(rows()?, [6; 24]);
    Ok(())
}

/// A series that is numbered by the words it has seen says so at its axes and in its titles.
#[test]
fn figures_say_what_a_series_counts() -> Outcome {
    let dir = tempfile::tempdir()?;
    let runs = dir.path().join("runs");
    let table = root().join("tests/golden/tiny-neox/ablation-longtail.parquet");
    for words in ["chck_1M", "chck_10M"] {
        fs::create_dir_all(runs.join(words))?;
        fs::copy(&table, runs.join(words).join("positions.parquet"))?;
    }
    let (input, to) = (
        format!("input.path={}", runs.display()),
        out(&dir.path().join("out")),
    );
    let asked = ["selection.filed_by=input", "input.steps=all", &input, &to];
    check_success(&[&GOLDEN[1..], &asked[..]].concat())?;
    let read = |name: &str| fs::read_to_string(dir.path().join("out").join(name));
    assert!(read("plots/stability.svg")?.contains("million words seen"));
    assert!(read("plots/step10-effects.svg")?.contains("10 million words"));
    let report = read("report.html")?;
    assert!(report.contains("1 million words") && !report.contains("Step 1<"));
    Ok(())
}

/// However a step is written, it is the same step; and no sign becomes part of it.
#[test]
fn steps_are_read_from_names_of_every_kind() -> Outcome {
    let dir = tempfile::tempdir()?;
    let runs = dir.path().join("runs");
    let table = root().join("tests/golden/tiny-neox/ablation-longtail.parquet");
    for step in ["step-512", "step_001000", "notes"] {
        fs::create_dir_all(runs.join(step))?;
        fs::copy(&table, runs.join(step).join("positions.parquet"))?;
    }
    let input = format!("input.path={}", runs.display());
    let to = out(&dir.path().join("out"));
    let args = [
        &GOLDEN[1..],
        &[
            &input,
            "selection.filed_by=input",
            "input.steps=all",
            "output.report=off",
            &to,
        ],
    ]
    .concat();
    check_success(&args)?;
    let selection = TableReader::open(dir.path().join("out/selection.parquet"))?.read(&["step"])?;
    let mut steps = selection.i64("step")?;
    steps.dedup();
    assert_eq!(steps, [512, 1000]);
    let record = json(&dir.path().join("out/run.json"))?;
    assert_eq!(record["counts"]["folders_that_are_no_steps"], 1);

    fs::create_dir(runs.join("step512"))?;
    check_failure(&args, 1, &["step-512", "`step512`"])?;

    // A run.json that another job has put in the place of the ablation's own says no step.
    let one = runs.join("step-512");
    fs::write(one.join("run.json"), r#"{"job": "analyze-unigram"}"#)?;
    let input = format!("input.path={}", one.display());
    check_failure(
        &[&GOLDEN[1..], &[&input, &to]].concat(),
        1,
        &["of analyze-unigram", "ablate again"],
    )?;
    Ok(())
}
