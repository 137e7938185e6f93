//! `ablate-unigram` from the command line, on the bundled model, against golden tables and wrong input.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "test helpers fail the test"
)]

mod columns;
mod examples;
#[path = "../checkpoint-source/local_hub/mod.rs"]
mod local_hub;

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use arrow::{array::Array, compute::cast, datatypes::DataType, record_batch::RecordBatch};
use assert_cmd::Command;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tempfile::TempDir;

use examples::root;

mod random_gpt2;

/// The binary in the repository root, writing to `out`.
fn ablate(out: &Path, overrides: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ablate-unigram"));
    command
        .current_dir(root())
        .arg(format!("output.dir={}", out.display()))
        .args(overrides);
    command
}

/// The tokens and sequences that the golden tables were made with.
const GOLDEN: [&str; 2] = [
    "corpus.tokens=tests/golden/tiny-neox/ablation-inputs.json",
    "ablation.sequences=[0, 9, 10]",
];

/// The band that the golden tables were made with.
const GOLDEN_BAND: &str = "band=tail";

struct Table(Vec<RecordBatch>);

impl Table {
    fn read(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref();
        let file = fs::File::open(path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
        let reader = ParquetRecordBatchReaderBuilder::try_new(file)
            .unwrap()
            .build()
            .unwrap();
        Self(reader.map(Result::unwrap).collect())
    }

    fn floats(&self, name: &str) -> Vec<f64> {
        let mut values = Vec::new();
        for batch in &self.0 {
            let column = batch
                .column_by_name(name)
                .unwrap_or_else(|| panic!("no column {name}"));
            let column = cast(column, &DataType::Float64).unwrap();
            let column = column
                .as_any()
                .downcast_ref::<arrow::array::Float64Array>()
                .unwrap();
            values.extend((0..column.len()).map(|i| {
                if column.is_null(i) {
                    f64::NAN
                } else {
                    column.value(i)
                }
            }));
        }
        values
    }

    fn ints(&self, name: &str) -> Vec<i64> {
        self.floats(name).into_iter().map(|v| v as i64).collect()
    }

    /// Row numbers by (neuron, batch, pos).
    fn keys(&self) -> HashMap<(i64, i64, i64), usize> {
        let (neuron, batch, pos) = (self.ints("neuron"), self.ints("batch"), self.ints("pos"));
        let rows = neuron.len();
        let keys: HashMap<_, _> = (0..rows)
            .map(|i| ((neuron[i], batch[i], pos[i]), i))
            .collect();
        assert_eq!(keys.len(), rows, "a (neuron, batch, pos) stands twice");
        keys
    }
}

/// Every column of a golden table within `tolerance`, all rows present, none extra.
#[track_caller]
fn matches_golden(golden: &str, overrides: &[&str], tolerance: f64) {
    let out = TempDir::new().unwrap();
    ablate(out.path(), &[&GOLDEN[..], overrides].concat())
        .assert()
        .success();
    let ours = Table::read(out.path().join("positions.parquet"));
    let golden = Table::read(root().join("tests/golden/tiny-neox").join(golden));
    let (our_rows, golden_rows) = (ours.keys(), golden.keys());
    assert_eq!(our_rows.len(), golden_rows.len());
    for field in golden.0[0].schema().fields() {
        let (a, b) = (ours.floats(field.name()), golden.floats(field.name()));
        let mut worst: f64 = 0.0;
        for (key, &row) in &golden_rows {
            let ours = our_rows
                .get(key)
                .unwrap_or_else(|| panic!("{key:?} is missing"));
            let difference = (a[*ours] - b[row]).abs();
            assert!(
                difference.is_finite(),
                "{}: not a number at {key:?}",
                field.name()
            );
            worst = worst.max(difference);
        }
        assert!(
            worst <= tolerance,
            "{}: off by {worst:.1e}, allowed {tolerance:.0e}",
            field.name()
        );
    }
}

/// GPT-NeoX with the vocabulary of Pythia and next to no neurons, as the hub serves it.
fn pythia(dir: &Path) -> local_hub::Revisions {
    const STEPS: [&str; 7] = [
        "main",
        "step0",
        "step1",
        "step512",
        "step1000",
        "step3000",
        "step143000",
    ];
    let config = serde_json::json!({
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox",
        "bos_token_id": 0, "eos_token_id": 0, "vocab_size": 50304,
        "hidden_size": 16, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1,
        "hidden_act": "gelu", "layer_norm_eps": 1e-5, "max_position_embeddings": 2048,
        "rotary_pct": 0.25, "rotary_emb_base": 10000,
        "tie_word_embeddings": false, "use_parallel_residual": true,
    });
    let tokenizer = root().join("examples/data/pythia/tokenizer.json");
    let revisions = STEPS.iter().zip(1u32..).map(|(revision, seed)| {
        // `main` is the last step, as on the hub.
        let seed = if *revision == "main" { 7 } else { seed };
        let folder = dir.join(revision);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("config.json"), config.to_string()).unwrap();
        fs::write(folder.join("model.safetensors"), weights(seed)).unwrap();
        let files = ["config.json", "model.safetensors"]
            .map(|name| (name.to_owned(), folder.join(name)))
            .into_iter()
            .chain([("tokenizer.json".to_owned(), tokenizer.clone())]);
        ((*revision).to_owned(), files.collect())
    });
    revisions.collect()
}

/// Small random float32 weights of the shapes of [`pythia`], as safetensors.
fn weights(seed: u32) -> Vec<u8> {
    let layer = "gpt_neox.layers.0";
    let tensors: Vec<(String, Vec<usize>)> = [
        ("gpt_neox.embed_in.weight", vec![50304, 16]),
        ("input_layernorm.weight", vec![16]),
        ("input_layernorm.bias", vec![16]),
        ("post_attention_layernorm.weight", vec![16]),
        ("post_attention_layernorm.bias", vec![16]),
        ("attention.query_key_value.weight", vec![48, 16]),
        ("attention.query_key_value.bias", vec![48]),
        ("attention.dense.weight", vec![16, 16]),
        ("attention.dense.bias", vec![16]),
        ("mlp.dense_h_to_4h.weight", vec![8, 16]),
        ("mlp.dense_h_to_4h.bias", vec![8]),
        ("mlp.dense_4h_to_h.weight", vec![16, 8]),
        ("mlp.dense_4h_to_h.bias", vec![16]),
        ("gpt_neox.final_layer_norm.weight", vec![16]),
        ("gpt_neox.final_layer_norm.bias", vec![16]),
        ("embed_out.weight", vec![50304, 16]),
    ]
    .into_iter()
    .map(
        |(name, shape)| match name.contains("embed_") || name.contains("final") {
            true => (name.to_owned(), shape),
            false => (format!("{layer}.{name}"), shape),
        },
    )
    .collect();
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let begin = end;
        end += 4 * shape.iter().product::<usize>();
        let entry =
            serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, end]});
        header.insert(name, entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    let mut state = seed;
    for _ in 0..end / 4 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let value = f64::from(state) / f64::from(u32::MAX) - 0.5;
        bytes.extend((value as f32).to_le_bytes());
    }
    bytes
}

#[test]
fn examples_run_as_printed() {
    let dir = TempDir::new().unwrap();
    let repo = "models/EleutherAI/pythia-70m-deduped";
    let hub = local_hub::LocalHub::start([(repo, pythia(dir.path()))]);
    let text = fs::read_to_string(root().join("examples/data/corpus/held-out.jsonl")).unwrap();
    let few: Vec<&str> = text.lines().take(6).collect();
    let work = examples::Work::new(env!("CARGO_BIN_EXE_ablate-unigram"))
        .hub(&hub.endpoint)
        .put("my-text.jsonl", few.join("\n"))
        .put("outputs/analyze-unigram/selection.csv", examples::SELECTION);
    work.run();
    // The audit of the README is of the repository that it names.
    let audit = fs::read_to_string(work.path("outputs/pythia-70m/audit.json")).unwrap();
    let audit: serde_json::Value = serde_json::from_str(&audit).unwrap();
    let rows: Vec<&str> = audit
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["revision"].as_str().unwrap())
        .collect();
    assert_eq!(rows, ["step0", "step1", "step512"]);
    let asked = hub.take_log();
    for revision in rows {
        assert!(
            asked
                .iter()
                .any(|request| request.path.contains(&local_hub::commit_of(revision))),
            "the hub was not asked for {revision}"
        );
    }
}

/// Ranks made by TransformerLens 2.16, f32 (tests/golden/README.md).
#[test]
fn ranks_of_the_targets_match_the_baseline() {
    let out = TempDir::new().unwrap();
    let overrides = ["ablation.ranks=true", "ablation.neurons=0..8"];
    ablate(out.path(), &[&GOLDEN[..], &overrides].concat())
        .assert()
        .success();
    let ours = Table::read(out.path().join("positions.parquet"));
    let golden = Table::read(root().join("tests/golden/tiny-neox/ablation-baseline.parquet"));
    let places = golden.ints("batch").into_iter().zip(golden.ints("pos"));
    let expected: HashMap<(i64, i64), f64> =
        places.zip(golden.floats("rank_of_correct_token")).collect();
    let (batch, pos) = (ours.ints("batch"), ours.ints("pos"));
    let (clean, ablated) = (
        ours.floats("rank_of_target"),
        ours.floats("rank_of_target_post_ablation"),
    );
    for i in 0..batch.len() {
        assert_eq!(clean[i], expected[&(batch[i], pos[i])]);
    }
    // The mean per neuron is that of the table of positions.
    let neurons = Table::read(out.path().join("neurons.parquet"));
    let (neuron, mean) = (neurons.ints("neuron"), neurons.floats("rank_mean_change"));
    let of = ours.ints("neuron");
    for (n, mean) in neuron.iter().zip(mean) {
        let changes: Vec<f64> = (0..of.len())
            .filter(|&i| of[i] == *n)
            .map(|i| ablated[i] - clean[i])
            .collect();
        let expected = changes.iter().sum::<f64>() / changes.len() as f64;
        assert!(
            (mean - expected).abs() < 1e-9,
            "neuron {n}: {mean}, {expected}"
        );
        assert!(changes.iter().any(|change| *change != 0.0));
    }
}

/// A band under another name has the numbers that it has as the long-tail band, whatever other bands there are.
#[test]
fn further_bands_are_measured_beside_the_long_tail() {
    let (alone, beside) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let common = [
        "ablation.neurons=0..8",
        "ablation.sequences=2",
        "ablation.engine=exact",
    ];
    let run = |out: &TempDir, more: &[&str]| {
        ablate(out.path(), &[&common[..], more].concat())
            .assert()
            .success();
        Table::read(out.path().join("neurons.parquet"))
    };
    let alone = run(&alone, &["band={lower: 20, upper: 60}"]);
    let beside = run(
        &beside,
        &["bands={middle: {lower: 20, upper: 60}, head: {lower: 0, upper: 20}}"],
    );
    for (variant, measure) in [
        ("total", "kl_model_freq"),
        ("frozen", "kl_freq_model"),
        ("frozen", "kl_model_freq"),
    ] {
        let name = |band: &str| {
            let variant = match variant {
                "frozen" => format!("frozen_{band}"),
                other => other.to_owned(),
            };
            format!("{variant}.{measure}_{band}.mean_abs_change")
        };
        let (a, b) = (alone.floats(&name("band")), beside.floats(&name("middle")));
        let worst = a
            .iter()
            .zip(&b)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f64::max);
        assert!(
            worst < 2e-6 && a.iter().any(|a| *a > 1e-5),
            "{variant}.{measure}: off by {worst:.1e}"
        );
    }
    // What is measured over the rows of a band alone: how many they are, and the loss.
    for (column, same) in [
        ("{}_rows", 0.0),
        ("{}_clusters", 0.0),
        ("{}_total_effect", 2e-6),
        ("total.loss.mean_change_{}_targets", 2e-6),
        ("total.loss.mean_abs_change_{}_targets", 2e-6),
    ] {
        let a = alone.floats(&column.replace("{}", "band"));
        let b = beside.floats(&column.replace("{}", "middle"));
        let worst = a.iter().zip(&b).map(|(a, b)| (a - b).abs());
        let worst = worst.fold(0.0, f64::max);
        assert!(worst <= same, "{column}: off by {worst:.1e}");
        // Every document has targets of both bands.
        let head = beside.floats(&column.replace("{}", "head"));
        assert!(column == "{}_clusters" || head != b, "{column}");
        assert!(b.iter().any(|b| *b != 0.0), "{column}");
    }
}

/// Tokens that the counts never saw, left out of the all-token direction: the band of all the others says the same.
#[test]
fn unseen_tokens_are_left_out_of_the_direction() {
    let (kept, left_out) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let common = [
        "ablation.neurons=0..8",
        "ablation.sequences=2",
        "ablation.engine=exact",
        "bands={seen: {lower: {frequency: 5e-7}, upper: {frequency: 0.5}}}",
    ];
    let run = |out: &TempDir, setting: &str| {
        ablate(out.path(), &[&common[..], &[setting]].concat())
            .assert()
            .success();
        Table::read(out.path().join("neurons.parquet"))
    };
    let kept = run(&kept, "semantics.unseen_tokens=kept");
    let record = left_out.path().join("run.json");
    let left_out = run(&left_out, "semantics.unseen_tokens=left-out");
    let record: serde_json::Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
    assert_eq!(record["counts"]["unseen_tokens_left_out"], 192);
    let worst = |a: &[f64], b: &[f64]| {
        let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
        differences.fold(0.0, f64::max)
    };
    for measure in ["loss", "entropy", "kl_freq_model"] {
        let all = format!("frozen_all.{measure}.mean_abs_change");
        let seen = left_out.floats(&format!("frozen_seen.{measure}.mean_abs_change"));
        assert!(worst(&left_out.floats(&all), &seen) < 1e-9, "{measure}");
        assert!(worst(&kept.floats(&all), &seen) > 1e-5, "{measure}");
        let total = format!("total.{measure}.mean_abs_change");
        assert!(worst(&kept.floats(&total), &left_out.floats(&total)) < 1e-9);
    }
    let seen = left_out.floats("freq_cosine_seen");
    assert!(worst(&left_out.floats("freq_cosine"), &seen) < 1e-12);
    assert!(worst(&kept.floats("freq_cosine"), &seen) > 1e-3);
    // The null space is that of all rows.
    let share = |table: &Table| table.floats("null_share");
    assert!(worst(&share(&kept), &share(&left_out)) < 1e-12);
}

/// Rows that are rarer than the band are told from those that are more frequent.
#[test]
fn rarer_rows_are_told_from_common_ones() {
    let out = TempDir::new().unwrap();
    let small = ["ablation.neurons=0..1", "ablation.sequences=4"];
    // A band in the middle: tokens are rarer, in it, or more frequent.
    ablate(
        out.path(),
        &[&small[..], &["band={lower: 20, upper: 60}"]].concat(),
    )
    .assert()
    .success();
    let table = Table::read(out.path().join("positions.parquet"));
    let (target, inside, rarer) = (
        table.ints("target_id"),
        table.ints("in_band"),
        table.ints("rarer_than_band"),
    );
    let counts = fs::read(root().join("examples/data/tiny-neox/train-unigrams.npy")).unwrap();
    let data = &counts[counts.len() - 8 * 4096..];
    let count = |token: i64| {
        let at = 8 * token as usize;
        i64::from_le_bytes(data[at..at + 8].try_into().unwrap())
    };
    let of = |kept: &dyn Fn(usize) -> bool| -> Vec<i64> {
        let rows = (0..target.len()).filter(|&i| kept(i));
        rows.map(|i| count(target[i])).collect()
    };
    let band = of(&|i| inside[i] == 1);
    let below = of(&|i| rarer[i] == 1);
    let common = of(&|i| inside[i] == 0 && rarer[i] == 0);
    assert!(!band.is_empty() && !below.is_empty() && !common.is_empty());
    assert!(
        below.iter().max() < band.iter().min(),
        "{below:?}, {band:?}"
    );
    assert!(band.iter().max() < common.iter().min());
}

/// The sums of the rows of each neuron, document and stratum, to the last bit: rows of both layers, filed by either token.
#[test]
fn sums_are_those_of_the_positions() {
    for (token, dose) in [("input", "mean"), ("target", "clip-at-mean")] {
        let out = TempDir::new().unwrap();
        let args = [
            "ablation.neurons=['2.5', '3.7', '3.105']",
            "ablation.sequences=3",
            "corpus.rows=0..12",
            "corpus.context_length=64",
            "band={lower: 20, upper: 60}",
            &format!("semantics.band_token={token}"),
            &format!("ablation.dose={dose}"),
        ];
        ablate(out.path(), &args).assert().success();
        let table = |name: &str| Table::read(out.path().join(name));
        let (rows, sums) = (table("positions.parquet"), table("sums.parquet"));
        let (ids, means) = (table("neurons.parquet"), "mean_activation");
        let mean: HashMap<(i64, i64), f64> = ids
            .ints("layer")
            .into_iter()
            .zip(ids.ints("neuron"))
            .zip(ids.floats(means))
            .collect();
        let key = |table: &Table| -> Vec<(i64, i64, i64)> {
            let ids = table.ints("layer").into_iter().zip(table.ints("neuron"));
            let keys = ids.zip(table.ints("document"));
            keys.map(|((layer, neuron), document)| (layer, neuron, document))
                .collect()
        };
        let strata = sums.texts("stratum");
        let of_rows = key(&rows);
        let (inside, rarer) = (rows.ints("in_band"), rows.ints("rarer_than_band"));
        let loss = rows.floats("loss");
        let minus = |name: &str, clean: &[f64]| -> Vec<f64> {
            let after = rows.floats(name).into_iter();
            after.zip(clean).map(|(after, loss)| after - loss).collect()
        };
        let change = minus("loss_post_ablation", &loss);
        let frozen = minus("loss_post_ablation_with_frozen_unigram", &loss);
        let frozen_ln = minus("loss_post_ablation_with_frozen_ln", &loss);
        let frozen_all = minus("loss_post_ablation_with_frozen_all_tokens", &loss);
        let kl = minus("kl_divergence_after", &rows.floats("kl_divergence_before"));
        let activation = rows.floats("activation");
        let pushed = |i: usize| {
            let (layer, neuron, _) = of_rows[i];
            let mean = mean[&(layer, neuron)];
            match dose {
                "mean" => mean - activation[i],
                _ => activation[i].min(mean) - activation[i],
            }
        };
        type Value<'a> = &'a dyn Fn(usize) -> f64;
        let columns: [(&str, Value<'_>); 14] = [
            ("rows", &|_| 1.0),
            ("loss_change", &|i| change[i]),
            ("loss_abs_change", &|i| change[i].abs()),
            ("frozen_loss_change", &|i| frozen[i]),
            ("frozen_loss_abs_change", &|i| frozen[i].abs()),
            ("frozen_ln_loss_abs_change", &|i| frozen_ln[i].abs()),
            ("frozen_all_loss_abs_change", &|i| frozen_all[i].abs()),
            ("kl_change", &|i| kl[i]),
            ("kl_abs_change", &|i| kl[i].abs()),
            ("activation", &|i| activation[i]),
            ("activation_change_squared", &|i| pushed(i) * pushed(i)),
            ("active_rows", &|i| f64::from(activation[i] > 0.0)),
            ("active_loss", &|i| f64::from(activation[i] > 0.0) * loss[i]),
            ("rows", &|_| 1.0),
        ];
        let of_sums = key(&sums);
        let mut counted = 0.0;
        for (name, value) in columns {
            let found = sums.floats(name);
            for (s, found) in found.iter().enumerate() {
                let in_sum = |i: &usize| {
                    let stratum = match (inside[*i], rarer[*i]) {
                        (1, _) => "long-tail",
                        (_, 1) => "rarer",
                        _ => "common",
                    };
                    of_rows[*i] == of_sums[s] && strata[s].as_deref() == Some(stratum)
                };
                let expected = (0..of_rows.len()).filter(in_sum).map(value);
                let expected = expected.fold(0.0, |sum, value| sum + value);
                assert!(*found == expected, "{name} {s}: {found} {expected}");
            }
            counted = found.iter().sum();
        }
        assert_eq!(counted as usize, of_rows.len(), "every row, once");
        for stratum in ["long-tail", "common", "rarer"] {
            assert!(strata.contains(&Some(stratum.to_owned())), "{stratum}");
        }
    }
}

#[test]
fn settings_of_the_engine_are_checked() {
    let out = TempDir::new().unwrap();
    for (override_, message) in [
        (
            "ablation.tolerance=0",
            "`ablation.tolerance` is 0, expected a positive number of nats",
        ),
        (
            "ablation.memory_mib=0",
            "`ablation.memory_mib` is 0, expected a number of MiB",
        ),
        (
            "ablation.variants=[total, frozen_ln]",
            "report `frozen_band` as the direct effect",
        ),
        (
            "bands={Rare: {lower: 20, upper: 60}}",
            "use lower-case letters",
        ),
        (
            "bands={rare_ln: {lower: 20, upper: 60}}",
            "nor `_ln` at the end",
        ),
    ] {
        let output = ablate(out.path(), &[override_]).assert().failure();
        let text = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
        assert!(text.contains(message), "{override_}: {text}");
    }
}

/// Made by the Python package of Liu et al. on TransformerLens 2.16, f32 (tests/golden/README.md).
#[test]
fn all_token_direction_matches_the_python_original() {
    matches_golden(
        "ablation-mean.parquet",
        &["semantics=liu2025", "band=none"],
        5e-5,
    );
}

/// Made by the Python package of Liu et al. on TransformerLens 2.16, f32 (tests/golden/README.md).
#[test]
fn band_direction_matches_the_python_original() {
    matches_golden(
        "ablation-longtail.parquet",
        &["semantics=liu2025", GOLDEN_BAND],
        5e-5,
    );
}

/// Made by the code of Stolfo et al. itself, in f64 (tests/golden/stolfo2024/README.md). Their k counts the direction of ones.
#[test]
fn stolfo2024_matches_the_code_of_stolfo_et_al() {
    let golden = |name: &str| root().join("tests/golden/stolfo2024").join(name);
    let json = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&fs::read(golden(name)).unwrap()).unwrap()
    };
    let out = TempDir::new().unwrap();
    let stolfo = [
        "semantics=stolfo2024",
        "band=none",
        "ablation.null_directions={count: 11}",
        "ablation.effect_floor=1e-12",
        "output.positions=off",
        "sets.neurons.list=['3.19', '3.105', '3.245', '3.240', '3.98', '3.127', '3.210', '3.100']",
        "sets.sizes=[1, 2, 4, 8]",
        "sets.doses=[mean, clip-at-mean, {scale: 0}]",
        "sets.controls.draws=0",
    ];
    ablate(out.path(), &[&GOLDEN[..], &stolfo].concat())
        .assert()
        .success();
    let ours = Table::read(out.path().join("neurons.parquet"));
    let theirs = Table::read(golden("neurons.parquet"));
    assert_eq!(ours.ints("neuron"), theirs.ints("neuron"));
    let within = |ours: &[f64], theirs: &[f64], tolerance: f64, what: &str| {
        let worst = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs());
        let worst = worst.fold(0.0, |worst: f64, d| if d >= worst { d } else { worst });
        let whole = ours.len() == theirs.len() && ours.iter().all(|v| v.is_finite());
        assert!(
            whole && worst <= tolerance,
            "{what}: off by {worst:.1e}, allowed {tolerance:.1e}"
        );
    };
    for (variant, theirs_is) in [
        ("total", "total"),
        ("frozen_all", "frozen_unigram"),
        ("frozen_ln", "frozen_ln"),
    ] {
        for measure in ["loss", "entropy", "kl_freq_model"] {
            for mean in ["mean_change", "mean_abs_change"] {
                if (variant, measure) == ("frozen_ln", "kl_freq_model") {
                    continue; // theirs has none
                }
                let column = format!("{variant}.{measure}.{mean}");
                let expected = theirs.floats(&format!("{theirs_is}.{measure}.{mean}"));
                within(&ours.floats(&column), &expected, 2e-8, &column);
            }
        }
    }
    for (column, theirs_is, tolerance) in [
        ("mediated_share", "mediated_by_frequency", 2e-6),
        ("ln_mediated_share", "mediated_by_layer_norm", 2e-6),
        ("mean_activation", "mean_activation", 1e-7),
        ("w_out_norm_centred", "norm", 1e-13),
        ("logit_var", "logit_var", 1e-13),
        ("freq_cosine", "cos_sim_with_unigram", 1e-13),
    ] {
        let expected = theirs.floats(theirs_is);
        within(&ours.floats(column), &expected, tolerance, column);
    }
    let share = ours.floats("null_share");
    let rho: Vec<f64> = share.iter().map(|share| share.sqrt()).collect();
    within(&rho, &theirs.floats("rho_k12"), 1e-13, "rho");

    // The order of the first neurons is theirs.
    let lists = json("selection.json");
    for (list, values) in [
        ("top10_k12", &rho),
        ("top_percent_k12", &rho),
        ("top20_total_effect", &ours.floats("total_effect")),
        (
            "top20_mediated_by_frequency",
            &ours.floats("mediated_share"),
        ),
        (
            "top20_mediated_by_layer_norm",
            &ours.floats("ln_mediated_share"),
        ),
        (
            "top20_abs_kl_change",
            &ours.floats("total.kl_freq_model.mean_abs_change"),
        ),
    ] {
        let expected: Vec<&str> = lists[list]
            .as_array()
            .unwrap()
            .iter()
            .map(|name| name.as_str().unwrap())
            .collect();
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
        let first: Vec<String> = order[..expected.len()]
            .iter()
            .map(|n| format!("3.{n}"))
            .collect();
        assert_eq!(first, expected, "{list}");
    }

    let sets = Table::read(out.path().join("sets.parquet"));
    let (doses, sizes) = (sets.texts("dose"), sets.ints("size"));
    let mut compared = 0;
    for set in json("sets.json").as_array().unwrap() {
        let (dose, size) = set["label"].as_str().unwrap().split_once(' ').unwrap();
        let dose = match dose {
            "zero" => "scale 0",
            "clip-from-below" => continue, // not a dose of ours
            dose => dose,
        };
        let row = (0..sizes.len())
            .find(|&i| doses[i].as_deref() == Some(dose) && sizes[i].to_string() == size)
            .unwrap_or_else(|| panic!("no set {dose} {size} among {doses:?}"));
        for (column, theirs_is) in [
            ("total.loss.mean_change", "loss"),
            ("total.loss.mean_abs_change", "abs_loss"),
            ("total.entropy.mean_change", "entropy"),
            ("frozen_ln.loss.mean_change", "ln_loss"),
            ("frozen_ln.loss.mean_abs_change", "ln_abs"),
            ("frozen_ln.entropy.mean_change", "ln_entropy"),
        ] {
            let expected = set[theirs_is].as_f64().unwrap();
            let what = format!("{dose} {size}: {column}");
            within(&[sets.floats(column)[row]], &[expected], 2e-8, &what);
        }
        compared += 1;
    }
    assert_eq!(compared, 6);
}

/// Made by an explicit f64 evaluation in numpy, without the closed form (tests/golden/README.md).
#[test]
fn effects_per_neuron_match_the_explicit_evaluation() {
    let golden = Table::read(root().join("tests/golden/tiny-neox/estimands-f64.parquet"));
    let order = golden.ints("neuron");
    for (prefix, mean) in [("corrected", "not-bos"), ("bos_in_mean", "all-positions")] {
        let out = TempDir::new().unwrap();
        // The golden band is the Python original's.
        let mean = format!("semantics.mean_activation={mean}");
        ablate(
            out.path(),
            &[
                &GOLDEN[..],
                &[
                    GOLDEN_BAND,
                    "output.positions=false",
                    "semantics.band_reading=liu2025",
                    &mean,
                ],
            ]
            .concat(),
        )
        .assert()
        .success();
        assert!(!out.path().join("positions.parquet").exists());
        let ours = Table::read(out.path().join("neurons.parquet"));
        assert_eq!(ours.ints("neuron"), order);
        let mut compared = 0;
        for field in golden.0[0].schema().fields() {
            let Some(name) = field.name().strip_prefix(&format!("{prefix}.")) else {
                continue;
            };
            let worst = ours
                .floats(name)
                .iter()
                .zip(golden.floats(field.name()))
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f64::max);
            assert!(worst <= 2e-6, "{prefix}.{name}: off by {worst:.1e}");
            compared += 1;
        }
        assert_eq!(compared, 56);
    }
}

#[test]
fn run_record_and_feather_are_written() {
    let out = TempDir::new().unwrap();
    ablate(
        out.path(),
        &[
            "ablation=quick",
            "corpus.rows=0..40",
            "output.format=feather",
            "ablation.neurons=[5, 250]",
        ],
    )
    .assert()
    .success();
    let record: serde_json::Value =
        serde_json::from_slice(&fs::read(out.path().join("run.json")).unwrap()).unwrap();
    assert_eq!(
        record["config"]["ablation"]["neurons"],
        serde_json::json!([5, 250])
    );
    let file = fs::File::open(out.path().join("positions.feather")).unwrap();
    let rows: usize = arrow::ipc::reader::FileReader::try_new(file, None)
        .unwrap()
        .map(|b| b.unwrap().num_rows())
        .sum();
    assert_eq!(rows as u64, record["counts"]["pairs"].as_u64().unwrap());
}

#[test]
fn a_seed_draws_the_same_sequences_for_every_checkpoint() {
    let drawn = |step: &str| {
        let out = TempDir::new().unwrap();
        ablate(
            out.path(),
            &[
                "ablation=quick",
                "corpus.rows=0..40",
                "ablation.neurons=[1]",
                &format!("model.path=examples/data/tiny-neox/{step}"),
            ],
        )
        .assert()
        .success();
        let mut batches = Table::read(out.path().join("positions.parquet")).ints("batch");
        batches.dedup();
        batches
    };
    assert_eq!(drawn("step4000"), drawn("step1000"));
}

/// A wrong input: exit code 1 or 2, every fragment in the error, nothing under a final name.
#[track_caller]
fn refuses(overrides: &[&str], fragments: &[&str]) {
    let out = TempDir::new().unwrap();
    let output = ablate(out.path(), overrides).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        matches!(output.status.code(), Some(1 | 2)),
        "{:?}: {stderr}",
        output.status
    );
    for fragment in fragments {
        assert!(stderr.contains(fragment), "no `{fragment}` in: {stderr}");
    }
    for name in ["neurons.parquet", "positions.parquet", "run.json"] {
        assert!(!out.path().join(name).exists(), "{name} was written");
    }
}

/// A copy of the bundled checkpoint, to be spoilt.
fn spoilt(spoil: impl Fn(&Path)) -> TempDir {
    let dir = TempDir::new().unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(
            root().join("examples/data/tiny-neox/step4000").join(name),
            dir.path().join(name),
        )
        .unwrap();
    }
    spoil(dir.path());
    dir
}

#[test]
fn refuses_a_folder_without_config() {
    let dir = spoilt(|dir| fs::remove_file(dir.join("config.json")).unwrap());
    refuses(
        &[&format!("model.path={}", dir.path().display())],
        &["config.json"],
    );
}

#[test]
fn refuses_a_truncated_checkpoint() {
    let dir = spoilt(|dir| {
        let file = fs::OpenOptions::new()
            .write(true)
            .open(dir.join("model.safetensors"))
            .unwrap();
        file.set_len(700_000).unwrap();
    });
    refuses(
        &[&format!("model.path={}", dir.path().display())],
        &["model.safetensors"],
    );
}

#[test]
fn refuses_a_tensor_of_another_shape() {
    let dir = spoilt(|dir| {
        let config = fs::read_to_string(dir.join("config.json")).unwrap();
        fs::write(
            dir.join("config.json"),
            config.replace("\"intermediate_size\": 256", "\"intermediate_size\": 255"),
        )
        .unwrap();
    });
    refuses(
        &[&format!("model.path={}", dir.path().display())],
        &["mlp.dense_h_to_4h", "[256, 64]", "[255, 64]"],
    );
}

#[test]
fn refuses_a_token_beyond_the_vocabulary() {
    let dir = TempDir::new().unwrap();
    let tokens = dir.path().join("tokens.json");
    fs::write(&tokens, "[[0, 1, 2, 3, 4, 4096, 5]]").unwrap();
    refuses(
        &[&format!("corpus.tokens={}", tokens.display())],
        &["4096", "position 5"],
    );
}

/// A `.npy` of token ids: its header, and values as they are stored.
fn npy(fortran: &str, shape: &str, ids: impl Iterator<Item = i32>) -> Vec<u8> {
    let header = format!("{{'descr': '>i4', 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(u16::try_from(header.len()).unwrap().to_le_bytes());
    bytes.extend(header.bytes());
    bytes.extend(ids.flat_map(i32::to_be_bytes));
    bytes
}

#[test]
fn token_ids_are_read_in_the_order_that_the_header_says() {
    let dir = TempDir::new().unwrap();
    let id = |sequence: i32, position: i32| (sequence * 7 + position * 13) % 4000 + 2;
    let rows = npy("False", "(3, 12)", (0..36).map(|i| id(i / 12, i % 12)));
    let columns = npy("True", "(3, 12)", (0..36).map(|i| id(i % 3, i / 3)));
    let losses = |name: &str, bytes: &[u8]| {
        let tokens = dir.path().join(name);
        fs::write(&tokens, bytes).unwrap();
        let out = dir.path().join("run").join(name);
        ablate(
            &out,
            &[
                &format!("corpus.tokens={}", tokens.display()),
                "ablation.neurons=0..2",
                "ablation.sequences=3",
            ],
        )
        .assert()
        .success();
        Table::read(out.join("neurons.parquet")).floats("total.loss.mean_change")
    };
    assert_eq!(losses("rows.npy", &rows), losses("columns.npy", &columns));
    for (name, bytes, expected) in [
        (
            "cut.npy",
            &rows[..rows.len() - 4],
            "it ends after 35 of the 36 values",
        ),
        (
            "flat.npy",
            &npy("False", "(3,)", 0..3)[..],
            "expected [sequence, position]",
        ),
        ("a.npz", b"PK\x03\x04", "is a zip archive"),
        (
            "a.npy",
            b"version https://git-lfs.github.com/spec/v1\n",
            "Git LFS",
        ),
    ] {
        let tokens = dir.path().join(name);
        fs::write(&tokens, bytes).unwrap();
        refuses(
            &[&format!("corpus.tokens={}", tokens.display())],
            &[expected],
        );
    }
}

#[test]
fn bad_rows_of_the_corpus_are_left_out_if_asked() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("corpus.jsonl");
    let row = "{\"text\": \"The whale rose from the sea, and the ship went down with all hands on it.\"}\n";
    fs::write(&path, format!("{}{{\"text\": null}}\n", row.repeat(20))).unwrap();
    let corpus = format!("corpus.path={}", path.display());
    refuses(&[&corpus], &["row 20: column `text` is null"]);
    let out = dir.path().join("run");
    ablate(
        &out,
        &[
            &corpus,
            "corpus.bad_rows=skip",
            "corpus.context_length=32",
            "ablation.neurons=0..2",
            "ablation.sequences=2",
        ],
    )
    .assert()
    .success();
    let run: serde_json::Value =
        serde_json::from_slice(&fs::read(out.join("run.json")).unwrap()).unwrap();
    assert_eq!(run["counts"]["bad_rows_skipped"], 1);
    assert!(run["warnings"].to_string().contains("row 20"), "{run}");
}

#[test]
fn refuses_counts_longer_than_the_vocabulary() {
    refuses(&["frequency=pythia"], &["unigrams.npy", "50277", "4096"]);
}

#[test]
fn refuses_an_empty_band() {
    refuses(
        &["band.lower=frequency:1e-12", "band.upper=frequency:2e-12"],
        &["no token"],
    );
}

#[test]
fn refuses_an_empty_corpus() {
    let dir = TempDir::new().unwrap();
    let corpus = dir.path().join("corpus.jsonl");
    fs::write(&corpus, "").unwrap();
    refuses(
        &[&format!("corpus.path={}", corpus.display())],
        &["corpus.jsonl"],
    );
}

#[test]
fn refuses_an_unknown_key() {
    refuses(&["ablation.neuron=3"], &["ablation.neuron", "neurons"]);
}

#[test]
fn refuses_neurons_past_the_layer() {
    refuses(&["ablation.neurons=200..300"], &["200..300", "255"]);
    refuses(&["ablation.neurons=[256]"], &["256", "255"]);
}

#[test]
fn refuses_an_output_that_cannot_be_written() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    refuses(&[&format!("output.dir={}/out", file.display())], &["file"]);
}

#[test]
fn a_sweep_keeps_finished_checkpoints_and_refuses_audited_bad_ones() {
    let models = TempDir::new().unwrap();
    for (from, to) in [
        ("step512", "step512"),
        ("step4000", "step1000"),
        ("step4000", "step4000"),
    ] {
        let dir = models.path().join(to);
        fs::create_dir(&dir).unwrap();
        for name in ["config.json", "model.safetensors"] {
            fs::copy(
                root().join("examples/data/tiny-neox").join(from).join(name),
                dir.join(name),
            )
            .unwrap();
        }
    }
    // Beside the folders of the steps, the tokenizer is found.
    let tokenizer = "examples/data/tiny-neox/tokenizer.json";
    fs::copy(root().join(tokenizer), models.path().join("tokenizer.json")).unwrap();
    let out = TempDir::new().unwrap();
    let model = format!("model.path={}", models.path().display());
    let quick = [
        "ablation=quick",
        "corpus.rows=0..40",
        "ablation.neurons=[7]",
        "output.positions=false",
        &model,
    ];

    // Two steps with the same weights: both are bad, the third is not.
    let audit = ablate(out.path(), &[&quick[..], &["--audit"]].concat())
        .output()
        .unwrap();
    assert_eq!(audit.status.code(), Some(1));
    let table = String::from_utf8(audit.stdout).unwrap();
    assert!(
        table.contains("same weights as step4000") && table.contains("same weights as step1000"),
        "{table}"
    );

    let sweep = [&quick[..], &["model.steps=all"]].concat();
    let refused = ablate(out.path(), &sweep).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let record = out.path().join("step512/run.json");
    let finished = fs::metadata(&record).unwrap().modified().unwrap();
    assert!(!out.path().join("step1000/run.json").exists());
    // One revision alone does not get past the audit either.
    let single = ablate(
        out.path(),
        &[&quick[..], &["model.revision=step1000"]].concat(),
    );
    let single = { single }.output().unwrap();
    let stderr = String::from_utf8(single.stderr).unwrap();
    assert_eq!(single.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("found step1000 bad"), "{stderr}");

    ablate(
        out.path(),
        &[&sweep[..], &["model.allow_bad=true"]].concat(),
    )
    .assert()
    .success();
    assert!(out.path().join("step4000/run.json").exists());
    // What does not change the result keeps it.
    let now = || fs::metadata(&record).unwrap().modified().unwrap();
    assert_eq!(now(), finished);
    let another = [&sweep[..], &["model.allow_bad=true", "seed=7"]].concat();
    let replaced = ablate(out.path(), &another).assert().success();
    assert!(now() > finished);
    // And what does is not replaced silently.
    let said = String::from_utf8_lossy(&replaced.get_output().stderr).into_owned();
    assert!(
        said.contains("results of other settings") && said.contains("`seed` was 42"),
        "{said}"
    );
}

/// One more step computes that step; other weights, text or counts at the same path, or an output that is gone, are computed again.
#[test]
fn only_what_changed_is_computed_again() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    let model = root().join("examples/data/tiny-neox");
    for (step, from) in [
        ("step1", "step512"),
        ("step2", "step2000"),
        ("step3", "step4000"),
    ] {
        fs::create_dir_all(path("models").join(step)).unwrap();
        for file in fs::read_dir(model.join(from)).unwrap() {
            let file = file.unwrap();
            fs::copy(
                file.path(),
                path("models").join(step).join(file.file_name()),
            )
            .unwrap();
        }
    }
    let text = |text: &str| fs::write(path("text.txt"), text.repeat(60)).unwrap();
    text("There she blows, the white whale.\n");
    let counts = fs::read(root().join("examples/data/tiny-neox/train-unigrams.npy")).unwrap();
    fs::write(path("counts.npy"), &counts).unwrap();
    let setting = |key: &str, name: &str| format!("{key}={}", path(name).display());
    let same = [
        setting("model.path", "models"),
        format!("model.tokenizer={}", model.join("tokenizer.json").display()),
        setting("corpus.path", "text.txt"),
        setting("frequency.counts", "counts.npy"),
        "corpus.context_length=32".into(),
        "ablation.sequences=2".into(),
        "ablation.neurons=0..4".into(),
    ];
    // The steps that were computed.
    let computed = |steps: &str| {
        let record = |step: &str| path("out").join(step).join("run.json");
        let time = |step: &str| {
            fs::metadata(record(step))
                .and_then(|file| file.modified())
                .ok()
        };
        let before = ["step1", "step2", "step3"].map(time);
        let steps = format!("model.steps={steps}");
        let args: Vec<&str> = same.iter().map(String::as_str).chain([&*steps]).collect();
        ablate(&path("out"), &args).assert().success();
        (1..=3)
            .filter(|i| before[i - 1] != time(&format!("step{i}")))
            .collect::<Vec<_>>()
    };
    assert_eq!(computed("[1, 2]"), [1, 2]);
    assert_eq!(computed("[1, 2, 3]"), [3]);
    assert_eq!(computed("all"), [0; 0]);
    let weights = |step: &str| path("models").join(step).join("model.safetensors");
    fs::copy(weights("step3"), weights("step1")).unwrap();
    assert_eq!(computed("all"), [1]);
    fs::remove_file(path("out/step2/neurons.parquet")).unwrap();
    assert_eq!(computed("all"), [2]);
    text("There she blew, the black whale.\n");
    assert_eq!(computed("all"), [1, 2, 3]);
    let mut other = counts;
    // The count of token 0, the first after the header.
    other[128] ^= 1;
    fs::write(path("counts.npy"), &other).unwrap();
    assert_eq!(computed("[2, 3]"), [2, 3]);
}

#[test]
fn self_check_agrees_with_the_model() {
    let out = TempDir::new().unwrap();
    let checked = ablate(
        out.path(),
        &["ablation=quick", "corpus.rows=0..10", "--self-check"],
    )
    .output()
    .unwrap();
    let said = String::from_utf8(checked.stdout).unwrap();
    assert!(
        checked.status.success() && said.contains("agrees"),
        "{said}"
    );
}

/// A GPT-2 goes through the same job, and its closed form agrees with it.
#[test]
fn gpt2_is_ablated_and_agrees_with_itself() {
    let model = TempDir::new().unwrap();
    random_gpt2::write(model.path());
    let path = format!("model.path={}", model.path().display());
    let args = [
        path.as_str(),
        "ablation=quick",
        "corpus.rows=0..10",
        "corpus.context_length=128",
    ];
    let out = TempDir::new().unwrap();
    let checked = ablate(out.path(), &[&args[..], &["--self-check"]].concat())
        .output()
        .unwrap();
    let said = String::from_utf8(checked.stdout).unwrap();
    assert!(
        checked.status.success() && said.contains("agrees"),
        "{said}"
    );
    ablate(out.path(), &args).assert().success();
    assert!(out.path().join("neurons.parquet").is_file());
}

/// Made with numpy from the published definitions: gamma folded, `W_U` centred over d_model and the vocabulary, a full SVD of it.
#[test]
fn statistics_of_the_weights_match_numpy() {
    let out = TempDir::new().unwrap();
    ablate(
        out.path(),
        &[
            "ablation=quick",
            "corpus.rows=0..40",
            "ablation.neurons=[3, 105, 193]",
            "ablation.null_directions={count: 4}",
            "output.positions=false",
        ],
    )
    .assert()
    .success();
    let table = Table::read(out.path().join("neurons.parquet"));
    for (column, expected) in [
        ("logit_var", [0.0155701413, 0.020382285, 0.080203446]),
        ("null_share", [0.00493233786, 0.00406015477, 0.0310927939]),
        ("freq_cosine", [0.152465863, -0.845735195, 0.920738912]),
    ] {
        for (found, expected) in table.floats(column).iter().zip(expected) {
            assert!(
                (found / expected - 1.0).abs() < 1e-6,
                "{column}: {found}, expected {expected}"
            );
        }
    }
    for cosine in table.floats("freq_cosine_band") {
        assert!((-1.0..=1.0).contains(&cosine), "{cosine}");
    }
    let record: serde_json::Value =
        serde_json::from_slice(&fs::read(out.path().join("run.json")).unwrap()).unwrap();
    assert!(
        record.to_string().contains("\"chance_share\":0.0634"),
        "{record}"
    );
}

#[test]
fn refuses_null_directions_that_do_not_fit() {
    refuses(
        &["ablation.null_directions={count: 64}"],
        &["ablation.null_directions", "64", "1 to 63"],
    );
    refuses(
        &["ablation.null_directions={share: 0}"],
        &["ablation.null_directions", "above 0"],
    );
}

impl Table {
    fn texts(&self, name: &str) -> Vec<Option<String>> {
        let mut values = Vec::new();
        for batch in &self.0 {
            let column = batch
                .column_by_name(name)
                .unwrap_or_else(|| panic!("no column {name}"));
            let column = column
                .as_any()
                .downcast_ref::<arrow::array::StringArray>()
                .unwrap();
            values.extend(column.iter().map(|v| v.map(str::to_owned)));
        }
        values
    }
}

/// Four neurons of the bundled model, best first, at two doses.
const SETS: [&str; 6] = [
    "ablation=quick",
    "corpus.rows=0..40",
    "ablation.neurons=[193, 7]",
    "output.positions=false",
    "sets.neurons.list=[\"3.193\", \"3.105\", \"3.19\", \"3.7\"]",
    "sets.doses=[mean, {scale: 0.5}]",
];

#[test]
fn sets_are_measured_beside_the_neurons() {
    let out = TempDir::new().unwrap();
    let output = ablate(
        out.path(),
        &[
            &SETS[..],
            &[
                "sets.sizes=[1, 2, 4]",
                "sets.controls.draws=2",
                "sets.controls.match=activation-and-norm",
            ],
        ]
        .concat(),
    )
    .output()
    .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("Sets of selected neurons"), "{said}");

    let sets = Table::read(out.path().join("sets.parquet"));
    let (list, dose, size) = (sets.texts("list"), sets.texts("dose"), sets.ints("size"));
    // The selection, and two draws of random, matched and exchanged sets; two doses; three sizes.
    assert_eq!(list.len(), 7 * 2 * 3);
    let at = |l: &str, d: &str, s: i64| {
        (0..list.len())
            .find(|&i| {
                list[i].as_deref() == Some(l) && dose[i].as_deref() == Some(d) && size[i] == s
            })
            .unwrap_or_else(|| panic!("no set {l}, {d}, {s}"))
    };
    let neurons = sets.texts("neurons");
    assert_eq!(
        neurons[at("selected", "mean", 2)].as_deref(),
        Some("3.193 3.105")
    );
    assert_eq!(sets.texts("control")[at("selected", "mean", 1)], None);
    for control in ["random-0", "random-1", "matched-0", "matched-1"] {
        let four = neurons[at(control, "scale 0.5", 4)].clone().unwrap();
        let two = neurons[at(control, "mean", 2)].clone().unwrap();
        assert!(four.starts_with(&two), "{four} does not begin with {two}");
        for selected in ["3.193", "3.105", "3.19", "3.7"] {
            assert!(!four.split(' ').any(|n| n == selected), "{four}");
        }
    }

    // A set of one is the neuron, in every column that they share.
    let table = Table::read(out.path().join("neurons.parquet"));
    let row = at("selected", "mean", 1);
    let mut compared = 0;
    for field in table.0[0].schema().fields() {
        let name = field.name();
        if !name.contains('.') && !name.ends_with("_effect") && !name.ends_with("rows") {
            continue;
        }
        let (neuron, set) = (table.floats(name)[0], sets.floats(name)[row]);
        let same = (neuron - set).abs() <= 1e-5 * neuron.abs().max(1.0)
            || (neuron.is_nan() && set.is_nan())
            || name.contains("mediated_share");
        assert!(same, "{name}: {set}, of the neuron {neuron}");
        compared += 1;
    }
    assert!(compared > 100, "{compared}");

    let record: serde_json::Value =
        serde_json::from_slice(&fs::read(out.path().join("run.json")).unwrap()).unwrap();
    assert!(record["counts"]["set_pairs"].as_u64().unwrap() > 0);
    for name in [
        "sets.svg",
        "sets.png",
        "sets-controls.svg",
        "sets-controls.png",
    ] {
        assert!(out.path().join(name).exists(), "{name} was not written");
        assert!(record.to_string().contains(name), "{name} is not on record");
    }

    // A later run without sets leaves none behind.
    ablate(out.path(), &SETS[..4]).assert().success();
    for name in ["sets.parquet", "sets.svg", "sets-controls.png"] {
        assert!(!out.path().join(name).exists(), "{name} is of another run");
    }
}

#[test]
fn refuses_sets_that_do_not_fit() {
    let refuses = |overrides: &[&str], fragments: &[&str]| {
        refuses(&[&SETS[..4], overrides].concat(), fragments);
    };
    refuses(&["sets=doubling"], &["sets.neurons"]);
    let list = "sets.neurons.list=[\"3.193\", \"3.105\"]";
    refuses(&[list, "sets.sizes=[1, 3]"], &["sets.sizes", "3", "1 to 2"]);
    refuses(&[list, "sets.sizes=[2, 1]"], &["sets.sizes", "ascending"]);
    refuses(&[list, "sets.doses=[]"], &["sets.doses"]);
    refuses(&[list, "sets.doses=[median]"], &["sets.doses", "median"]);
    refuses(
        &["sets.neurons.list=[\"2.256\"]"],
        &["2.256", "sets.neurons", "layers 0 to 3", "0 to 255"],
    );
    refuses(
        &["sets.neurons.list=[\"3.5\", \"3.5\"]"],
        &["`3.5` twice", "sets.neurons.list"],
    );
    let most: Vec<String> = (0..200).map(|n| format!("\"3.{n}\"")).collect();
    let most = format!("sets.neurons.list=[{}]", most.join(", "));
    refuses(&[&most], &["sets.controls", "200", "56", "draws=0"]);
}

/// A short run: two sequences, neurons that are named one by one, no intervals.
const SHORT: [&str; 4] = [
    "corpus.rows=0..40",
    "ablation.sequences=2",
    "ablation.resamples=0",
    "-q",
];

#[track_caller]
fn succeeds(out: &Path, overrides: &[&str]) {
    let output = ablate(out, overrides).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{overrides:?}: {said}");
}

#[test]
fn neurons_of_all_layers_stand_in_one_table() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    let run = |name: &str, overrides: &[&str]| {
        succeeds(&path(name), &[&SHORT[..], overrides].concat());
    };
    run(
        "all",
        &["ablation.layer=all", "ablation.neurons=[105, 193]"],
    );
    let all = Table::read(path("all").join("neurons.parquet"));
    assert_eq!(all.ints("layer"), [0, 0, 1, 1, 2, 2, 3, 3]);
    assert_eq!(all.ints("neuron"), [105, 193].repeat(4));
    let names = all.texts("component_name");
    assert_eq!(names[2].as_deref(), Some("1.105"));
    for column in [
        "total_effect",
        "direct_effect",
        "w_out_norm",
        "logit_var",
        "null_share",
    ] {
        let values = all.floats(column);
        assert!(values.iter().all(|v| *v > 1e-6), "{column}: {values:?}");
    }
    let positions = Table::read(path("all").join("positions.parquet"));
    let rows = all.ints("rows")[0] as usize;
    for layer in 0..4 {
        let of_layer = positions.ints("layer").into_iter().filter(|l| *l == layer);
        assert_eq!(of_layer.count(), 2 * rows);
    }
    let record: serde_json::Value =
        serde_json::from_slice(&fs::read(path("all").join("run.json")).unwrap()).unwrap();
    assert_eq!(record["counts"]["neurons"], 8);
    assert_eq!(record["counts"]["pairs"], 8 * rows);

    // The last layer is as it is alone; names have their layers, in the order of layers.
    run("last", &["ablation.neurons=[105, 193]"]);
    let last = Table::read(path("last").join("neurons.parquet"));
    run("named", &["ablation.neurons=['3.193', '1.105']"]);
    let named = Table::read(path("named").join("neurons.parquet"));
    assert_eq!(named.ints("layer"), [1, 3]);
    for column in [
        "total.loss.mean_change",
        "frozen_ln.entropy.mean_abs_change",
        "mean_activation",
    ] {
        let [all, last, named] = [&all, &last, &named].map(|table| table.floats(column));
        for (a, b) in [
            (last[0], all[6]),
            (last[1], all[7]),
            (named[0], all[2]),
            (named[1], all[7]),
        ] {
            let off = (a - b).abs();
            assert!(off < 1e-6, "{column}: {off:.1e}");
        }
    }
}

/// A run of two layers in two shards, to the last bit.
#[test]
fn shards_of_several_layers_are_the_run_itself() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    let same = [
        &SHORT[..],
        &[
            "ablation.layer=[1, 3]",
            "ablation.neurons=0..64",
            "ablation.engine=exact",
        ],
    ]
    .concat();
    let run = |name: &str, more: &[&str]| {
        succeeds(&path(name), &[&same[..], more].concat());
    };
    run("whole", &[]);
    run("shards/1", &["ablation.shard=1/2"]);
    run("shards/2", &["ablation.shard=2/2"]);
    let merge = format!("merge={}", path("shards").display());
    run("merged", &[&merge]);
    let read = |name: &str| fs::read(path(name).join("neurons.parquet")).unwrap();
    assert!(read("whole") == read("merged"));
    let first = Table::read(path("shards/1").join("neurons.parquet"));
    assert!(first.ints("layer").iter().all(|layer| *layer == 1));
}

#[test]
fn heads_have_a_table_of_their_own() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    let run = |name: &str, overrides: &[&str]| {
        succeeds(&path(name), &[&SHORT[..], overrides].concat());
        Table::read(path(name).join("heads.parquet"))
    };
    let all = run(
        "all",
        &[
            "ablation.layer=[1, 3]",
            "ablation.heads=all",
            "ablation.neurons=[]",
            "ablation.ranks=true",
        ],
    );
    assert!(!path("all").join("neurons.parquet").exists());
    assert!(!path("all").join("positions.parquet").exists());
    assert_eq!(all.ints("layer"), [1, 1, 1, 1, 3, 3, 3, 3]);
    assert_eq!(all.ints("head"), [0, 1, 2, 3, 0, 1, 2, 3]);
    for column in [
        "total_effect",
        "direct_effect",
        "change_norm",
        "total.kl_model_freq.mean_abs_change",
    ] {
        let values = all.floats(column);
        assert!(values.iter().all(|v| *v > 1e-6), "{column}: {values:?}");
    }
    assert_eq!(all.floats("rank_mean_change").len(), 8);
    // Beside neurons, by name, set to zero.
    let zero = run(
        "zero",
        &[
            "ablation.heads=['3.2']",
            "ablation.neurons=[7]",
            "ablation.dose={scale: 0}",
        ],
    );
    assert_eq!((zero.ints("layer"), zero.ints("head")), (vec![3], vec![2]));
    assert_ne!(
        zero.floats("total_effect")[0],
        all.floats("total_effect")[6]
    );
    assert!(path("zero").join("neurons.parquet").exists());
    // A later run without heads leaves no table of them behind.
    let without = [&SHORT[..], &["ablation.neurons=[7]"]].concat();
    succeeds(&path("zero"), &without);
    assert!(!path("zero").join("heads.parquet").exists());
}

/// Sets against their controls: effects and tests in one table, matched on what the dose does, those without a match on neither side.
#[test]
fn sets_are_held_against_controls_that_push_as_hard() {
    let out = TempDir::new().unwrap();
    let args = [
        "ablation=quick",
        "ablation.neurons=[193]",
        "ablation.sequences=10",
        "corpus.rows=0..40",
        "corpus.context_length=64",
        "output.positions=false",
        "sets.neurons.list=['3.19', '3.193', '3.75', '3.132']",
        "sets.sizes=[1, 2]",
        "sets.controls.draws=8",
    ];
    let output = ablate(out.path(), &args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    // The loudest neuron of the layer has none like it.
    assert!(
        said.contains("no neuron alike within `sets.controls.caliper`") && said.contains("3.19"),
        "{said}"
    );
    let balance = Table::read(out.path().join("balance.parquet"));
    let traits: Vec<_> = balance.texts("trait").into_iter().flatten().collect();
    let named = ["log_change_length", "active_share", "active_loss"];
    assert_eq!(traits, named.repeat(2));
    let (kind, off) = (
        balance.texts("kind"),
        balance.floats("standardised_difference"),
    );
    for (kind, off) in kind.iter().zip(off) {
        assert!(
            kind.as_deref() == Some("random") || off.abs() <= 0.25,
            "{off}"
        );
    }
    let sets = Table::read(out.path().join("sets.parquet"));
    let (control, neurons) = (sets.texts("control"), sets.texts("neurons"));
    let of = |kind: &str| {
        let rows = (0..control.len()).filter(|&i| control[i].as_deref() == Some(kind));
        rows.map(|i| neurons[i].clone().unwrap())
            .collect::<Vec<_>>()
    };
    assert!(!of("matched-selection").is_empty() && !of("exchanged").is_empty());
    for set in of("matched-selection").iter().chain(&of("exchanged")) {
        assert!(!set.split(' ').any(|id| id == "3.19"), "{set}");
    }
    let contrasts = Table::read(out.path().join("set_contrasts.parquet"));
    let column = |name: &str| contrasts.floats(name);
    let (change, controls) = (column("change"), column("change_of_controls"));
    let (excess, low, high) = (
        column("excess"),
        column("excess_low"),
        column("excess_high"),
    );
    let (p, q) = (column("p"), column("q"));
    assert!(excess.len() >= 3, "{excess:?}");
    for i in 0..excess.len() {
        assert!((change[i] - controls[i] - excess[i]).abs() < 1e-12);
        assert!(low[i] <= excess[i] && excess[i] <= high[i], "row {i}");
        assert!((1.0 / 9.0..=1.0).contains(&p[i]) && q[i] >= p[i], "row {i}");
    }
    refuses(
        &[
            "sets=doubling",
            "sets.neurons.list=['3.7']",
            "sets.controls.caliper=0",
        ],
        &["sets.controls", "caliper"],
    );
}

#[test]
fn sets_may_be_of_several_layers() {
    let out = TempDir::new().unwrap();
    let output = ablate(
        out.path(),
        &[
            &SHORT[..3],
            &[
                "ablation.neurons=['1.105']",
                "output.positions=false",
                "sets=doubling",
                "sets.neurons.list=['1.105', '3.193', '1.7']",
                "sets.controls.draws=1",
                "sets.controls.caliper=100",
            ],
        ]
        .concat(),
    )
    .output()
    .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("the model runs on from their layers"),
        "{said}"
    );
    let (sets, neurons) = (
        Table::read(out.path().join("sets.parquet")),
        Table::read(out.path().join("neurons.parquet")),
    );
    assert_eq!(sets.ints("size"), [1, 2, 3].repeat(4));
    let of_controls = sets.texts("neurons")[8].clone().unwrap();
    let layers = of_controls.split(' ').map(|id| &id[..2]);
    assert_eq!(
        layers.collect::<Vec<_>>(),
        ["1.", "3.", "1."],
        "{of_controls}"
    );
    // A set of one is the neuron.
    for column in [
        "total.loss.mean_change",
        "frozen_all.kl_freq_model.mean_abs_change",
    ] {
        let off = (sets.floats(column)[0] - neurons.floats(column)[0]).abs();
        assert!(off < 1e-6, "{column}: {off:.1e}");
    }
}

#[test]
fn refuses_layers_and_heads_that_do_not_fit() {
    refuses(&["ablation.layer=4"], &["ablation.layer", "4", "0 to 3"]);
    refuses(&["ablation.layer=[]"], &["ablation.layer", "empty"]);
    refuses(&["ablation.layer=-1"], &["`last`, `all`"]);
    refuses(&["ablation.layer=[1, 1]"], &["ablation.layer"]);
    refuses(
        &["ablation.layer=[1, 2]", "ablation.neurons=['0.17']"],
        &[
            "ablation.neurons",
            "0.17",
            "layer 0",
            "[1, 2]",
            "leave `ablation.layer` out",
        ],
    );
    refuses(&["ablation.neurons=['2.256']"], &["2.256", "0 to 255"]);
    refuses(&["ablation.neurons=['17']"], &["ablation.neurons", "17"]);
    refuses(
        &["ablation.neurons=[]"],
        &["ablation.neurons", "ablation.heads"],
    );
    refuses(
        &["ablation.heads=['0.4']"],
        &["ablation.heads", "0.4", "0 to 3"],
    );
    refuses(&["ablation.heads=[]"], &["ablation.heads", "empty"]);
    refuses(
        &["ablation.heads=all", "ablation.dose=clip-at-mean"],
        &["clip-at-mean", "head"],
    );
    refuses(
        &["ablation.heads=all", "ablation.shard=1/2"],
        &["ablation.heads", "in shards"],
    );
}

#[test]
fn the_self_check_is_of_all_layers_asked_for() {
    let out = TempDir::new().unwrap();
    let output = ablate(
        out.path(),
        &[
            &SHORT[..3],
            &[
                "--self-check",
                "ablation.layer=[0, 3]",
                "ablation.neurons=0..12",
            ],
        ]
        .concat(),
    )
    .output()
    .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("the closed form and a forward"), "{said}");
    assert!(said.contains("running the model on"), "{said}");
    assert_eq!(said.matches("agrees within").count(), 2, "{said}");
}

#[test]
fn lists_name_things_once() {
    for (list, places) in [
        (
            "ablation.sequences=[0, 1, 0]",
            "`0` twice, as entries 1 and 3",
        ),
        (
            "ablation.neurons=[3, 17, 17]",
            "`17` twice, as entries 2 and 3",
        ),
        (
            "ablation.variants=[total, frozen_band, total]",
            "`total` twice, as entries 1 and 3",
        ),
        ("model.steps=[512, 512]", "`512` twice, as entries 1 and 2"),
    ] {
        let key = list.split_once('=').unwrap().0;
        refuses(&["ablation=quick", list], &[&format!("`{key}`"), places]);
    }
}

#[test]
fn one_sequence_has_no_interval() {
    let out = TempDir::new().unwrap();
    let output = ablate(
        out.path(),
        &[
            "corpus.rows=0..6",
            "corpus.context_length=64",
            "ablation.neurons=0..2",
            "ablation.sequences=[0]",
        ],
    )
    .output()
    .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let table = job_kit::TableReader::open(out.path().join("neurons.parquet")).unwrap();
    let low = table.read(&["total.loss.mean_change.low"]).unwrap();
    assert!(
        low.opt_f64("total.loss.mean_change.low")
            .unwrap()
            .iter()
            .all(Option::is_none)
    );
    let record = fs::read_to_string(out.path().join("run.json")).unwrap();
    assert!(record.contains("the ablated sequences are of 1 documents, so there are no intervals"));
}

/// Means are kept by what they depend on: another run over the same text takes what is there, whatever else it asks for, and gives the same bits;
/// other weights or another text do not, and neither does a file that is not whole.
#[test]
fn mean_activations_are_kept_for_other_runs() {
    let dir = TempDir::new().unwrap();
    let keep = format!("means.keep={}", dir.path().join("means").display());
    let run = |name: &str, more: &[&str]| -> serde_json::Value {
        let out = dir.path().join(name);
        let args = [
            &["ablation=quick", "corpus.rows=0..10", keep.as_str()],
            more,
        ]
        .concat();
        ablate(&out, &args).assert().success();
        serde_json::from_slice(&fs::read(out.join("run.json")).unwrap()).unwrap()
    };
    let read = |name: &str| fs::read(dir.path().join(name).join("neurons.parquet")).unwrap();
    let taken = |record: &serde_json::Value| record["counts"]["means_kept_before"].is_null();
    assert!(taken(&run("first", &[])));
    let kept = || -> Vec<PathBuf> {
        let files = fs::read_dir(dir.path().join("means")).unwrap();
        let files = files.map(|file| file.unwrap().path());
        // Beside the tag of a cache.
        files
            .filter(|file| file.extension().is_some_and(|end| end == "parquet"))
            .collect()
    };
    assert_eq!(kept().len(), 1);
    assert!(!taken(&run("second", &[])));
    assert_eq!(read("first"), read("second"));
    // Another reading of the same text, which counts other positions.
    assert!(!taken(&run("liu", &["semantics=liu2025", "band=none"])));
    for other in [
        &["corpus.rows=0..11"][..],
        &["means.sequences=3"],
        &["model.path=examples/data/tiny-neox/step512"],
        &["model.dtype=bf16"],
    ] {
        assert!(taken(&run("other", other)), "{other:?}");
    }
    assert_eq!(kept().len(), 5);
    for file in kept() {
        fs::write(file, "cut off").unwrap();
    }
    assert!(taken(&run("again", &[])));
    assert_eq!(read("first"), read("again"));
    assert!(!taken(&run("again", &[])));
    // Where nothing can be kept, the run goes on.
    fs::write(dir.path().join("file"), "").unwrap();
    let nowhere = format!("means.keep={}/below", dir.path().join("file").display());
    let record = run("nowhere", &[&nowhere]);
    assert!(record["warnings"].to_string().contains("means.keep"));
    for wrong in ["none", "0"] {
        refuses(
            &[&format!("means.sequences={wrong}")],
            &["means.sequences", "`all`, or how many"],
        );
    }
}

/// What is taken over less of the text is less certain, and says so.
#[test]
fn means_have_standard_errors() {
    let errors = |sequences: &str| -> f64 {
        let out = TempDir::new().unwrap();
        let sequences = format!("means.sequences={sequences}");
        let args = ["ablation=quick", "corpus.rows=0..40", &sequences];
        ablate(out.path(), &args).assert().success();
        let table = Table::read(out.path().join("neurons.parquet"));
        let errors = table.floats("mean_activation_se");
        errors.iter().sum::<f64>() / errors.len() as f64
    };
    let (of_all, of_few) = (errors("all"), errors("8"));
    assert!(of_all > 0.0 && of_few > 1.5 * of_all, "{of_all} {of_few}");
}

/// An estimate is told, and nothing is written; a run says at its start what it takes, and what it wrote is near to that.
#[test]
fn an_estimate_is_near_what_is_written() {
    let out = TempDir::new().unwrap();
    let small = ["corpus.rows=0..20", "ablation.sequences=2"];
    let neurons = ["ablation.neurons=0..64"];
    let of_sets = [
        "ablation.neurons=0..2",
        "output.positions=off",
        "bands={rare: {lower: elbow, upper: 60}}",
        "sets=doubling",
        "sets.neurons.list=['3.193', '3.105', '3.19', '3.8']",
        "sets.doses=[mean, {scale: 0.5}]",
        "sets.controls.draws=9",
        "sets.controls.caliper=2",
    ];
    for (name, more) in [("neurons", &neurons[..]), ("sets", &of_sets)] {
        let folder = out.path().join(name);
        let args = [&small[..], more].concat();
        let told = ablate(&folder, &[&args[..], &["--estimate"]].concat())
            .assert()
            .success();
        let text = String::from_utf8_lossy(&told.get_output().stdout).into_owned();
        for part in ["1 checkpoint of", "second", "of disk", "of memory"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!folder.exists());
        ablate(&folder, &args).assert().success();
        let run: serde_json::Value =
            serde_json::from_slice(&fs::read(folder.join("run.json")).unwrap()).unwrap();
        let estimate = run["notes"]["estimate"]["disk_bytes"].as_f64().unwrap();
        let outputs = run["outputs"].as_object().unwrap().iter();
        let tables = outputs.filter(|(name, _)| name.ends_with(".parquet"));
        let written: f64 = tables
            .map(|(_, file)| file["bytes"].as_f64().unwrap())
            .sum();
        assert!(
            estimate > 0.7 * written && estimate < 2.0 * written,
            "{name}: {estimate} {written}"
        );
    }
}

/// Tables of an earlier run do not stand beside those of a new one, whatever the new one leaves out.
#[test]
fn a_run_without_positions_leaves_none_of_an_earlier_one() {
    let out = TempDir::new().unwrap();
    let small = [
        "corpus.rows=0..6",
        "corpus.context_length=64",
        "ablation.neurons=0..2",
        "ablation.sequences=1",
    ];
    for positions in ["true", "false"] {
        let output = ablate(
            out.path(),
            &[&small[..], &[&format!("output.positions={positions}")]].concat(),
        )
        .output()
        .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(
            out.path().join("positions.parquet").exists(),
            positions == "true"
        );
    }
}

/// A run that may not reach the hub, with an empty cache.
#[track_caller]
fn goes_to_the_hub(overrides: &[&str]) {
    let (out, cache) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let output = ablate(out.path(), overrides)
        .env("HF_HOME", cache.path())
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{overrides:?}: {said}");
    assert!(
        said.contains("EleutherAI/pythia-70m-deduped"),
        "{overrides:?}: {said}"
    );
}

#[test]
fn a_repository_that_was_named_is_used() {
    let repo = "model.repo=EleutherAI/pythia-70m-deduped";
    goes_to_the_hub(&[repo]);
    goes_to_the_hub(&[repo, "model.steps=[0, 1, 512]"]);
    goes_to_the_hub(&["--audit", repo, "model.steps=[0, 1, 512]"]);
    goes_to_the_hub(&["--self-check", repo]);
    goes_to_the_hub(&["model=pythia-70m"]);
}

#[test]
fn a_model_does_not_take_the_tokenizer_of_another() {
    let dir = spoilt(|_| ());
    let model = format!("model.path={}", dir.path().display());
    let quick = [
        "ablation=quick",
        "corpus.rows=0..40",
        "output.positions=false",
        &model,
    ];
    refuses(&quick, &["text needs a tokenizer", "model.tokenizer"]);
    let tokenizer = "examples/data/tiny-neox/tokenizer.json";
    fs::copy(root().join(tokenizer), dir.path().join("tokenizer.json")).unwrap();
    let out = TempDir::new().unwrap();
    ablate(out.path(), &quick).assert().success();
    let record: serde_json::Value =
        serde_json::from_slice(&fs::read(out.path().join("run.json")).unwrap()).unwrap();
    let beside = dir.path().join("tokenizer.json").display().to_string();
    assert!(
        record["inputs"].to_string().contains(&beside),
        "{}",
        record["inputs"]
    );
}

#[test]
fn settings_that_exclude_each_other_or_are_not_used_are_refused() {
    for (overrides, said) in [
        (
            vec!["model.path=a", "model.repo=b/c"],
            "`model.path` and `model.repo` exclude",
        ),
        (
            vec!["model.steps=[1]", "model.revision=step1"],
            "exclude each other",
        ),
        (
            vec!["corpus.path=a", "corpus.tokens=b.npy"],
            "exclude each other",
        ),
        (
            vec!["model.token_file=t"],
            "it is only used with `model.repo`",
        ),
        (
            vec!["model.allow_bad=true"],
            "the audit is asked for named checkpoints",
        ),
        (
            vec!["corpus.document_token=<|endoftext|>"],
            "this job puts the model's own beginning of a text",
        ),
        (
            vec!["corpus.tokens=b.npy", "corpus.rows=0..4"],
            "it is only used with `corpus.path`",
        ),
        (
            vec!["ablation.engine=exact", "ablation.tolerance=1e-4"],
            "`ablation.engine=auto`",
        ),
        (
            vec!["output.positions=off", "output.format=feather"],
            "`output.positions` leaves out",
        ),
        (vec!["band.window=40"], "only the reading `liu2025`"),
        (
            vec![
                "semantics=liu2025",
                "band={lower: 20, upper: 60, window: 40}",
            ],
            "no bound of the band is `elbow`",
        ),
        (
            vec!["bands={rare: {lower: elbow, window: 40}}"],
            "`bands.rare.window` is set",
        ),
        (
            vec!["sets.neurons.list=['3.1']", "sets.neurons.step=1"],
            "`sets.neurons.file`",
        ),
        (vec!["ablation.sequences=0"], "1 or more"),
        (vec!["ablation.sequences=[]"], "1 or more"),
        (vec!["ablation.neurons=5..5"], "a range like `0..64`"),
        (vec!["corpus.rows=5..5"], "a range like `0..500`"),
        (vec!["corpus.rows=5"], "a range like `0..500`"),
        (vec!["ablation.dose=scale"], "scale"),
        (
            vec!["band.lower=2e-5"],
            "write `{frequency: 2e-5}` or `{percentile: 2e-5}`",
        ),
    ] {
        refuses(&overrides, &[said]);
    }
}

#[test]
fn a_band_of_a_few_tokens_is_warned_of() {
    let out = TempDir::new().unwrap();
    let band = ["band.lower=rank:3", "band.upper={rank: 1}"];
    let small = [
        "ablation=quick",
        "corpus.rows=0..40",
        "output.positions=false",
    ];
    let output = ablate(out.path(), &[&band[..], &small].concat())
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("the band holds 3 tokens, too few"),
        "{stderr}"
    );
    let run = fs::read_to_string(out.path().join("run.json")).unwrap();
    assert!(run.contains("the band holds 3 tokens, too few"));
}

/// docs/tables.md has every column, of neurons, heads, sets and positions.
#[test]
fn every_column_is_documented() {
    let out = TempDir::new().unwrap();
    let args = [
        "ablation=quick",
        "corpus.rows=0..6",
        "corpus.context_length=64",
        "ablation.ranks=true",
        "ablation.heads=['3.0']",
        "bands={rare: {lower: elbow, upper: 40}}",
        "sets=doubling",
        "sets.neurons.list=['3.193', '3.105']",
        "sets.controls.draws=2",
        "sets.controls.caliper=2",
    ];
    ablate(out.path(), &args).assert().success();
    for table in [
        "neurons",
        "sums",
        "heads",
        "sets",
        "set_contrasts",
        "balance",
        "positions",
    ] {
        assert!(
            out.path().join(format!("{table}.parquet")).is_file(),
            "{table}"
        );
    }
    columns::are_documented("ablate-unigram", out.path());
}

/// Two checkpoints in two shards, and the run itself, to the last bit.
#[test]
fn merged_shards_are_the_run_itself() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    let same = [
        "model.path=examples/data/tiny-neox",
        "model.steps=[512, 4000]",
        "corpus.rows=0..30",
        "ablation.sequences=2",
        "ablation.neurons=0..140",
        "ablation.engine=exact",
        "-q",
    ];
    ablate(&path("whole"), &same).assert().success();
    let sweep = format!("sweep.dir={}", path("shards").display());
    let mut shards = Command::new(env!("CARGO_BIN_EXE_ablate-unigram"));
    shards
        .current_dir(root())
        .args(["-m", "ablation.shard=1/2,2/2", &sweep])
        .args(same)
        .assert()
        .success();
    let merge = format!("merge={}", path("shards").display());
    let merged = [&same[..], &[&merge]].concat();
    ablate(&path("merged"), &merged).assert().success();
    for step in ["step512", "step4000"] {
        let read = |run: &str| fs::read(path(run).join(step).join("neurons.parquet")).unwrap();
        assert!(read("whole") == read("merged"), "{step}");
        let sums = |run: &str| {
            let table = Table::read(path(run).join(step).join("sums.parquet"));
            (table.ints("neuron"), table.floats("loss_abs_change"))
        };
        assert!(sums("whole") == sums("merged"), "{step}");
        // The same rows of positions, though in another order.
        let table = |run: &str| Table::read(path(run).join(step).join("positions.parquet"));
        let (whole, merged) = (table("whole"), table("merged"));
        let (place, keys) = (whole.keys(), merged.keys());
        assert_eq!(place.len(), keys.len());
        let (a, b) = (
            whole.floats("loss_post_ablation"),
            merged.floats("loss_post_ablation"),
        );
        assert!(keys.iter().all(|(key, &row)| a[place[key]] == b[row]));
    }

    fs::remove_dir_all(path("shards/1")).unwrap();
    let refused = ablate(&path("refused"), &merged).assert().failure();
    let said = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
    assert!(
        said.contains("lacks 1 of 2 shards of this run: 2/2"),
        "{said}"
    );
    let other = [&merged[..], &["seed=7"]].concat();
    let refused = ablate(&path("refused"), &other).assert().failure();
    let said = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
    assert!(
        said.contains("holds a shard of this run at step512"),
        "{said}"
    );
    let refused = ablate(&path("refused"), &["ablation.shard=4/3"])
        .assert()
        .failure();
    let said = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
    assert!(
        said.contains("expected a part of several such as `1/4`"),
        "{said}"
    );
}

/// What says how a band is read has no meaning without one.
#[test]
fn keys_of_the_band_are_refused_without_one() {
    let out = TempDir::new().unwrap();
    for typed in [
        "semantics.outside_band=clean",
        "semantics.direction=band-masked",
        "semantics.band_token=input",
        "semantics.band_reading=liu2025",
        "semantics.frozen_kl=band-against-raw",
    ] {
        let output = ablate(out.path(), &["band=none", typed]).assert().failure();
        let text = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
        assert!(
            text.contains("there is no band of tokens"),
            "{typed}: {text}"
        );
    }
    // The first of them would be taken for the long-tail band.
    let bands = "bands={middle: {lower: 20, upper: 60}}";
    let output = ablate(out.path(), &["band=none", bands]).assert().failure();
    let text = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
    assert!(
        text.contains("`bands.middle` comes beside a long-tail band"),
        "{text}"
    );
}

/// A configuration of the Python packages as it is: what it comes to, what is not used, and what it cannot say.
#[test]
fn configurations_of_the_python_packages_are_taken_as_they_are() {
    let dir = TempDir::new().unwrap();
    let original = dir.path().join("original.yaml");
    let liu = "\
device: cuda
dry_run: false
seed: 7
chdir: \".\"
model: EleutherAI/pythia-70m-deduped
dataset: stas/c4-en-10k
use_log2_entropy: false
data_range_start: 0
data_range_end: 10
batch_size: 1
ablation_mode: longtail
min_freq: elbow
max_freq: 20
window_size: 200
k: 2
neuron_range: 3-6
hf_token_path: hf_token.txt
output_dir: somewhere
transformers_cache_dir: null
defaults:
  - _self_
  - override hydra/job_logging: disabled
hydra:
  output_subdir: null
";
    fs::write(&original, liu).unwrap();
    let named = original.display().to_string();
    let asked = ["--original", &named];
    let out = dir.path().join("out");
    // Its data set is on the hub.
    let refused = |args: &[&str]| -> String {
        let output = ablate(&out, args).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let said = refused(&asked);
    assert!(
        said.contains("stas/c4-en-10k") && said.contains("corpus.path=FILE"),
        "{said}"
    );
    let here = [
        "model.path=examples/data/tiny-neox/step4000",
        "frequency=tiny-neox",
        "corpus=held-out",
    ];
    let output = ablate(&out, &[&asked[..], &here].concat())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    for told in [
        "batch_size (",
        "use_log2_entropy (entropies are in nats)",
        "taken as: ",
    ] {
        assert!(said.contains(told), "{told} in {said}");
    }
    let record: serde_json::Value =
        serde_json::from_slice(&fs::read(out.join("run.json")).unwrap()).unwrap();
    let config = &record["config"];
    assert_eq!(config["seed"], 7);
    assert_eq!(config["corpus"]["rows"], "0..10");
    assert_eq!(config["ablation"]["neurons"], "3..6");
    assert_eq!(config["ablation"]["sequences"], 2);
    assert_eq!(config["band"]["window"], 200);
    assert_eq!(config["semantics"]["outside_band"], "clean");
    assert!(out.join("positions.feather").is_file());

    // Stolfo et al. have no mode and no band.
    let stolfo = liu.replace(
        "ablation_mode: longtail\nmin_freq: elbow\nmax_freq: 20\nwindow_size: 200\n",
        "",
    );
    fs::write(&original, stolfo.replace("seed: 7", "seed: 7\nmine: 3")).unwrap();
    let shown = [&asked[..], &here, &["--print-config"]].concat();
    let output = ablate(&out, &shown).output().unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(
        shown.contains("kl: freq-model") && shown.contains("frozen_kl: full"),
        "{shown}"
    );
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("`mine`"), "{said}");
    for (wrong, words) in [
        (liu.replace("k: 2", "k: two"), "`k` of"),
        (liu.replace("3-6", "36"), "two numbers like `0-100`"),
        (
            liu.replace("data_range_end: 10\n", ""),
            "without `data_range_end`",
        ),
        (
            liu.replace("EleutherAI/pythia-70m-deduped", "gpt2-small"),
            "no token counts",
        ),
        ("seed: 3".to_owned(), "given as `--config`"),
    ] {
        fs::write(&original, &wrong).unwrap();
        let said = refused(&[&asked[..], &here[2..]].concat());
        assert!(said.contains(words), "{words} in {said}");
    }
}
