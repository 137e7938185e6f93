//! `select-longtail` from the command line, on the bundled tokenizers, counts and texts, and on wrong input.
#![expect(clippy::unwrap_used, reason = "test helpers fail the test")]

mod columns;
mod examples;

use std::{collections::HashMap, fs, path::Path};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Float64Type, UInt32Type, UInt64Type};
use assert_cmd::Command;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

use examples::root;

/// The binary in the repository root, writing to `out`.
fn select(out: &Path, overrides: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_select-longtail"));
    command
        .current_dir(root())
        .arg(format!("output.dir={}", out.display()))
        .args(overrides);
    command
}

fn table(path: impl AsRef<Path>) -> RecordBatch {
    let reader = ParquetRecordBatchReaderBuilder::try_new(fs::File::open(path).unwrap())
        .unwrap()
        .with_batch_size(1 << 20)
        .build()
        .unwrap();
    let batches: Vec<RecordBatch> = reader.map(Result::unwrap).collect();
    assert_eq!(batches.len(), 1);
    batches[0].clone()
}

fn metadata(path: impl AsRef<Path>) -> HashMap<String, String> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(fs::File::open(path).unwrap()).unwrap();
    builder
        .schema()
        .metadata()
        .iter()
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .collect()
}

fn json(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn strings(batch: &RecordBatch, name: &str) -> Vec<String> {
    batch
        .column_by_name(name)
        .unwrap()
        .as_string::<i32>()
        .iter()
        .map(|s| s.unwrap().to_owned())
        .collect()
}

const TINY: [&str; 2] = ["tokenizer=tiny-neox", "frequency=tiny-neox"];

#[test]
fn examples_run_as_printed() {
    examples::Work::new(env!("CARGO_BIN_EXE_select-longtail")).run();
}

/// Common words come from the same run: above the band by the counts of words, spread over their ranks.
#[test]
fn common_words_are_chosen_by_the_same_job() {
    let folder = tempfile::tempdir().unwrap();
    let words = |name: &str, common: &str| {
        let out = folder.path().join(name);
        let printed = select(&out, &[TINY[0], TINY[1], "corpus=train", common])
            .assert()
            .success();
        let printed = String::from_utf8(printed.get_output().stdout.clone()).unwrap();
        let table = table(out.join("words.parquet"));
        let zipf = table.column_by_name("zipf").unwrap();
        let in_band = table.column_by_name("in_band").unwrap();
        let rows: Vec<(String, f64, bool)> = strings(&table, "word")
            .into_iter()
            .zip(zipf.as_primitive::<Float64Type>().values())
            .zip(in_band.as_boolean().values().iter())
            .map(|((word, &zipf), in_band)| (word, zipf, in_band))
            .collect();
        (rows, json(out.join("run.json")), printed)
    };
    let (alone, _, _) = words("alone", "words.common=0");
    let (both, run, printed) = words("both", "words.common=50");
    assert_eq!(both[..alone.len()], alone);
    let common = &both[alone.len()..];
    assert_eq!(common.len(), 50);
    assert_eq!(run["counts"]["words_above_the_band"], 50);
    assert_eq!(run["counts"]["words"], alone.len());
    let max = run["notes"]["band"]["max_frequency"].as_f64().unwrap();
    let edge = (max * 1e9).log10();
    assert!(
        common
            .iter()
            .all(|(_, zipf, in_band)| *zipf > edge && !in_band)
    );
    let spread = common[49].1 - common[0].1;
    assert!(spread > 1.0, "Zipf values over {spread}");
    assert!(printed.contains("Words above the band"), "{printed}");
    let (all, run, _) = words("all", "words.common=100000");
    assert!(all.len() - alone.len() > 200);
    assert!(
        run["warnings"]
            .to_string()
            .contains("`words.common` is 100000, but only")
    );
}

#[test]
fn pythia_words_come_with_their_provenance_and_a_picture() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let printed = select(&out, &["--plot"]).assert().success();
    let printed = String::from_utf8(printed.get_output().stdout.clone()).unwrap();
    assert!(
        printed.contains("Elbow: rank 48") && printed.contains("Zipf exponent: 0.99"),
        "{printed}"
    );

    let words = table(out.join("words.parquet"));
    let run = json(out.join("run.json"));
    assert_eq!(
        words.num_rows() as u64,
        run["counts"]["words"].as_u64().unwrap()
    );
    assert!(words.num_rows() > 8000);
    assert_eq!(
        run["notes"]["band"]["tokens"],
        run["counts"]["tokens_in_band"]
    );
    assert_eq!(
        run["inputs"].as_object().unwrap().len(),
        4,
        "tokenizer, counts, two dictionary files"
    );
    let csv = fs::read_to_string(out.join("words.csv")).unwrap();
    let mut lines = csv.lines();
    assert_eq!(
        lines.next().unwrap(),
        "word,token_ids,pieces,count,per_million,zipf,in_band"
    );
    let from_csv: Vec<&str> = lines.map(|line| line.split(',').next().unwrap()).collect();
    assert_eq!(from_csv, strings(&words, "word"));
    let zipf = words
        .column_by_name("zipf")
        .unwrap()
        .as_primitive::<Float64Type>();
    assert!(zipf.iter().all(|z| (0.0..7.0).contains(&z.unwrap())));
    assert!(metadata(out.join("words.parquet")).contains_key("band"));

    let tokens = table(out.join("tokens.parquet"));
    assert_eq!(
        tokens.num_rows() as u64,
        run["counts"]["tokens_in_band"].as_u64().unwrap()
    );
    let ids = tokens
        .column_by_name("token_id")
        .unwrap()
        .as_primitive::<UInt32Type>();
    assert!(
        ids.values().iter().all(|&id| id < 50_277),
        "a padding row is in the band"
    );
    let ranks = tokens
        .column_by_name("rank")
        .unwrap()
        .as_primitive::<UInt64Type>();
    assert!(ranks.values().is_sorted());

    let svg = fs::read_to_string(out.join("rank-frequency.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("elbow, rank 48") && svg.contains("tokens"));
    assert!(
        fs::read(out.join("rank-frequency.png"))
            .unwrap()
            .starts_with(b"\x89PNG")
    );
}

/// Counting the training text gives the bundled counts, and the counts file can be used for the next run.
#[test]
fn a_corpus_is_counted_and_its_counts_serve_again() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    let corpus = [
        "tokenizer=tiny-neox",
        "frequency=null",
        "corpus=train",
        "corpus.document_token=<|endoftext|>",
    ];
    select(&first, &corpus).assert().success();
    let run = json(first.join("run.json"));
    assert_eq!(run["counts"]["tokens_counted"], 2_987_320);
    assert_eq!(run["counts"]["documents_read"], 7395);
    assert!(
        run["outputs"]
            .as_object()
            .unwrap()
            .keys()
            .any(|path| path.ends_with("counts.parquet"))
    );
    columns::are_documented("select-longtail", &first);
    let provenance = metadata(first.join("counts.parquet"));
    assert_eq!(
        provenance["corpus_sha256"],
        run["notes"]["corpus_sha256"].as_str().unwrap()
    );
    assert!(provenance.contains_key("tokenizer_sha256"));
    let words = table(first.join("words.parquet"));
    let pieces = words
        .column_by_name("pieces")
        .unwrap()
        .as_primitive::<UInt32Type>();
    assert!(
        pieces.values().iter().any(|&pieces| pieces > 1),
        "no word of several pieces"
    );

    let counts = format!(
        "frequency.counts={}",
        first.join("counts.parquet").display()
    );
    select(&second, &["tokenizer=tiny-neox", "corpus=train", &counts])
        .assert()
        .success();
    assert_eq!(
        table(second.join("words.parquet")).columns(),
        words.columns()
    );
}

/// Counts are of one tokenizer: another one leaves out those that came with the first, which would have fitted by their size alone.
#[test]
fn another_tokenizer_does_not_take_the_counts_of_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let mine = folder.path().join("mine.json");
    fs::copy(root().join("examples/data/pythia/tokenizer.json"), &mine).unwrap();
    let out = folder.path().join("out");
    let tokenizer = format!("tokenizer.path={}", mine.display());
    let stderr = String::from_utf8(
        select(&out, &[&tokenizer])
            .assert()
            .failure()
            .get_output()
            .stderr
            .clone(),
    )
    .unwrap();
    let expected = format!(
        "set `frequency.counts` to a file with those of `{}`",
        mine.display()
    );
    assert!(stderr.contains(&expected), "{stderr}");
    select(&out, &[&tokenizer, "frequency=pythia"])
        .assert()
        .success();
    select(
        &folder.path().join("counted"),
        &[&tokenizer, "corpus=held-out", "band.lower=null"],
    )
    .assert()
    .success();
    assert_eq!(
        json(folder.path().join("counted/run.json"))["counts"]["documents_read"],
        600
    );
}

#[test]
fn held_out_documents_are_not_counted() {
    let folder = tempfile::tempdir().unwrap();
    let count = |held_out: &str| {
        let out = folder.path().join(held_out);
        select(
            &out,
            &[
                "tokenizer=tiny-neox",
                "frequency=null",
                "corpus=held-out",
                &format!("split.held_out={held_out}"),
            ],
        )
        .assert()
        .success();
        json(out.join("run.json"))["counts"]["tokens_counted"]
            .as_u64()
            .unwrap()
    };
    let (all, part) = (count("0.0"), count("0.25"));
    assert!(part > all / 2 && part < all * 9 / 10, "{part} of {all}");
}

#[test]
fn bands_that_are_no_long_tail_are_warned_about() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let printed = select(&out, &["band.lower=0", "band.upper=50"])
        .assert()
        .success();
    let stderr = String::from_utf8(printed.get_output().stderr.clone()).unwrap();
    assert!(stderr.contains("it is not a long tail"), "{stderr}");
    assert_eq!(
        json(out.join("run.json"))["warnings"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn wrong_input_is_a_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("long.json"),
        format!("{:?}", vec![1; 5000]),
    )
    .unwrap();
    let long = format!(
        "frequency.counts={}",
        folder.path().join("long.json").display()
    );
    let cases: HashMap<&str, (Vec<&str>, &str)> = HashMap::from([
        (
            "mismatch",
            (
                vec!["tokenizer=tiny-neox"],
                "50277 token counts for a vocabulary of 4096",
            ),
        ),
        (
            "other",
            (
                vec!["frequency=tiny-neox"],
                "do not belong together: token counts do not fit the tokenizer: 4096 counts for 50277 tokens",
            ),
        ),
        (
            "long",
            (
                vec!["tokenizer=tiny-neox", &long],
                "5000 token counts for a vocabulary of 4096",
            ),
        ),
        (
            "empty",
            (
                vec!["band.lower=frequency:0.9", "band.upper=frequency:0.8"],
                "holds no token",
            ),
        ),
        (
            "bound",
            (vec!["band.lower=knee"], "`knee` is not a band bound"),
        ),
        ("percentile", (vec!["band.upper=120"], "expected 0 to 100")),
        (
            "lexicon",
            (
                vec!["lexicon.paths=[missing]"],
                "is neither a word list (.txt) nor a Hunspell dictionary",
            ),
        ),
        (
            "nothing",
            (
                vec!["frequency=null"],
                "no token counts: set `frequency.counts`",
            ),
        ),
        (
            "rows",
            (
                vec!["corpus=held-out", "corpus.rows=5"],
                "expected a range like `0..500`",
            ),
        ),
        (
            "column",
            (
                vec!["corpus=held-out", "corpus.column=body"],
                "no column `body`",
            ),
        ),
        ("key", (vec!["words.min_lenght=3"], "min_lenght")),
    ]);
    for (name, (overrides, expected)) in cases {
        let out = folder.path().join(name);
        let assert = select(&out, &overrides).assert().failure();
        let output = assert.get_output();
        let stderr = String::from_utf8(output.stderr.clone()).unwrap();
        assert!(
            stderr.contains(expected) && stderr.contains("error: "),
            "{name}: {stderr}"
        );
        assert!(
            matches!(output.status.code(), Some(1 | 2)),
            "{name}: {:?}",
            output.status
        );
        let left: Vec<_> = fs::read_dir(&out)
            .map(|entries| entries.map(|e| e.unwrap().file_name()).collect())
            .unwrap_or_default();
        assert!(left.is_empty(), "{name} left {left:?}");
    }
}

#[test]
fn an_output_folder_that_cannot_be_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    select(&file, &TINY).assert().failure().code(1);
}

/// A standard output that nobody reads any more.
fn closed_pipe() -> std::process::Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[test]
fn closed_pipes_are_a_quiet_end() {
    let dir = tempfile::tempdir().unwrap();
    let command = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_select-longtail"));
        command
            .current_dir(root())
            .arg(format!("output.dir={}", dir.path().join("out").display()))
            .args(args);
        command
    };
    for args in [&["--print-config"][..], &["--help"], &["--version"], &[]] {
        let output = command(args).stdout(closed_pipe()).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{args:?}: {stderr}");
        assert!(
            !stderr.contains("panicked") && !stderr.contains("error"),
            "{stderr}"
        );
    }
    assert!(dir.path().join("out/run.json").exists());
    for args in [&["no.such.key=1"][..], &["-vv"]] {
        let status = command(args).stderr(closed_pipe()).status().unwrap();
        assert_eq!(status.code(), Some(if args == ["-vv"] { 0 } else { 2 }));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_standard_output_is_an_error_and_the_files_stay() {
    let dir = tempfile::tempdir().unwrap();
    for args in [&["--print-config"][..], &["--help"], &[]] {
        let full = fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_select-longtail"))
            .current_dir(root())
            .arg(format!("output.dir={}", dir.path().join("out").display()))
            .args(args)
            .stdout(full)
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        assert!(
            stderr.contains("error: failed to write to standard output: No space left"),
            "{stderr}"
        );
    }
    assert!(dir.path().join("out/run.json").exists());
    assert!(dir.path().join("out/words.csv").exists());
}
