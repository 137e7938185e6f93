//! `prepare-context` from the command line, on the bundled texts and on wrong input.
#![expect(clippy::unwrap_used, reason = "test helpers fail the test")]

mod columns;
mod examples;

use std::{fs, path::Path};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float64Type, UInt64Type};
use assert_cmd::Command;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};

use examples::root;

/// The binary in the repository root, writing to `out`.
fn prepare(out: &Path, overrides: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_prepare-context"));
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

fn read_json(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn examples_run_as_printed() {
    examples::Work::new(env!("CARGO_BIN_EXE_prepare-context"))
        .after("select-longtail")
        .put(
            "outputs/select-longtail/words.csv",
            "word\nwhale\nharpoon\ntreasury\n",
        )
        .run();
}

/// `tests/golden/tiny-neox/contexts.json`: the Python package, through the files and keys that a user has.
#[test]
fn liu2025_contexts_match_the_python_package() {
    let golden = read_json(root().join("tests/golden/tiny-neox/contexts.json"));
    let folder = tempfile::tempdir().unwrap();
    let lines = |key: &str| {
        golden[key]
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v.as_str().unwrap())
            .collect::<Vec<_>>()
            .join("\n")
    };
    fs::write(folder.path().join("sentences.txt"), lines("sentences")).unwrap();
    fs::write(folder.path().join("words.txt"), lines("words")).unwrap();
    let out = folder.path().join("run");
    prepare(
        &out,
        &[
            &format!("words.path={}", folder.path().join("words.txt").display()),
            &format!(
                "corpus.path={}",
                folder.path().join("sentences.txt").display()
            ),
            "corpus.text_unit=line",
            "contexts.sentences=document",
            "contexts.reading=liu2025",
            "contexts.choice=topk",
            &format!("contexts.window={}", golden["min_window_size"]),
            &format!("contexts.per_word={}", golden["n_contexts"]),
        ],
    )
    .assert()
    .success();
    assert_eq!(read_json(out.join("contexts.json")), golden["selected"]);
}

#[test]
fn contexts_point_into_their_documents() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    prepare(
        &out,
        &["words.list=[whale, harpoon, treasury, nonexistentword]"],
    )
    .assert()
    .success();
    let held_out = fs::read_to_string(root().join("examples/data/corpus/held-out.jsonl")).unwrap();
    let texts: Vec<String> = held_out
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["text"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    let contexts = table(out.join("contexts.parquet"));
    let text = |name: &str, row: usize| {
        contexts
            .column_by_name(name)
            .unwrap()
            .as_string::<i32>()
            .value(row)
            .to_owned()
    };
    let number = |name: &str, row: usize| {
        contexts
            .column_by_name(name)
            .unwrap()
            .as_primitive::<UInt64Type>()
            .value(row) as usize
    };
    assert!(contexts.num_rows() > 20);
    for row in 0..contexts.num_rows() {
        let document = &texts[number("document", row)];
        assert_eq!(
            document[number("context_start", row)..number("word_start", row)],
            text("context", row)
        );
        assert_eq!(
            document[number("word_start", row)..number("word_end", row)],
            text("word", row)
        );
    }
    let by_word = read_json(out.join("contexts.json"));
    assert_eq!(by_word.as_object().unwrap().len(), 4);
    assert_eq!(by_word["nonexistentword"], json!([]));
    assert_eq!(by_word["whale"][0]["separator"], "");
    let words = table(out.join("words.parquet"));
    assert_eq!(words.num_rows(), 4);
    let run = read_json(out.join("run.json"));
    assert_eq!(run["counts"]["words_without_context"], 1);
    assert_eq!(run["counts"]["documents_searched"], 600);
}

/// What stood before the word is the context with its separator: nothing between for byte-exact contexts, a space where words were joined.
#[test]
fn contexts_say_what_stood_between_them_and_the_word() {
    const TEXT: &str = "He said to all of us \"whale and we wore a well-worn coat.";
    let folder = tempfile::tempdir().unwrap();
    let corpus = folder.path().join("text.txt");
    fs::write(&corpus, TEXT).unwrap();
    for (reading, words) in [
        ("corrected", "words.list=[whale, worn]"),
        ("liu2025", "words.list=['\"whale', well-worn]"),
    ] {
        let out = folder.path().join(reading);
        prepare(
            &out,
            &[
                words,
                &format!("corpus.path={}", corpus.display()),
                &format!("contexts.reading={reading}"),
            ],
        )
        .assert()
        .success();
        let contexts = table(out.join("contexts.parquet"));
        let text = |name: &str, row: usize| {
            let column = contexts.column_by_name(name).unwrap();
            column.as_string::<i32>().value(row).to_owned()
        };
        assert_eq!(contexts.num_rows(), 2);
        for row in 0..2 {
            let found = ["context", "separator", "word"].map(|name| text(name, row));
            assert!(TEXT.starts_with(&found.concat()), "{found:?}");
        }
        // The reading `liu2025` keeps the Python package's shape.
        let first = &read_json(out.join("contexts.json"))[text("word", 0)][0];
        assert_eq!(
            first.get("separator").is_some(),
            reading == "corrected",
            "{first}"
        );
    }
}

/// The frequency of a word, as select-longtail writes it, goes with its contexts.
#[test]
fn frequencies_of_words_are_carried_through() {
    let folder = tempfile::tempdir().unwrap();
    let words = folder.path().join("words.csv");
    fs::write(&words, "word,zipf\nwhale,4.25\n harpoon ,\n").unwrap();
    let out = folder.path().join("run");
    let path = format!("words.path={}", words.display());
    prepare(&out, &[&path]).assert().success();
    let contexts = table(out.join("contexts.parquet"));
    let zipf = contexts.column_by_name("zipf").unwrap();
    let zipf = zipf.as_primitive::<Float64Type>();
    let of = contexts.column_by_name("word").unwrap();
    let of = of.as_string::<i32>();
    assert!(contexts.num_rows() > 10);
    for row in 0..contexts.num_rows() {
        let known = zipf.is_valid(row).then(|| zipf.value(row));
        assert_eq!(known, (of.value(row) == "whale").then_some(4.25));
    }
    columns::are_documented("prepare-context", &out);
    let by_word = read_json(out.join("contexts.json"));
    assert_eq!(by_word["whale"][0]["zipf"], 4.25);
    assert!(by_word["whale"][0]["document"].is_u64());
    assert!(by_word["harpoon"][0].get("zipf").is_none());
    assert_eq!(
        read_json(out.join("run.json"))["counts"]["words_with_a_frequency"],
        1
    );

    // Norms of one's own, in their own columns and on their own scale.
    let norms = folder.path().join("norms.tsv");
    fs::write(&norms, "Word\tPerMillion\nharpoon\t1\nWhale\t10\n").unwrap();
    let norms = format!("norms.path={}", norms.display());
    let columns = [
        "norms.word=Word",
        "norms.column=PerMillion",
        "norms.scale=per-million",
    ];
    let args = [&path, &norms, columns[0], columns[1], columns[2]];
    prepare(&out, &args).assert().success();
    let by_word = read_json(out.join("contexts.json"));
    assert_eq!(by_word["harpoon"][0]["zipf"], 3.0);
    assert!(by_word["whale"][0].get("zipf").is_none());
    let inputs = read_json(out.join("run.json"))["inputs"].to_string();
    assert!(inputs.contains("norms.tsv"), "{inputs}");
}

#[test]
fn the_same_seed_gives_the_same_files() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, seed: &str| {
        let out = folder.path().join(name);
        prepare(&out, &["words.list=[government, country]", seed])
            .assert()
            .success();
        fs::read(out.join("contexts.json")).unwrap()
    };
    let first = run("a", "seed=1");
    assert_eq!(first, run("b", "seed=1"));
    assert_ne!(first, run("c", "seed=2"));
}

/// Documents that were counted, or whose text is in an excluded corpus, give no contexts.
#[test]
fn counting_and_contexts_use_different_documents() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("split");
    prepare(&out, &["words.list=[country]", "split.held_out=0.25"])
        .assert()
        .success();
    let run = read_json(out.join("run.json"));
    let count = |name: &str| run["counts"][name].as_u64().unwrap();
    assert_eq!(
        count("documents_searched") + count("documents_left_out"),
        600
    );
    assert!(
        (90..220).contains(&count("documents_searched")),
        "{}",
        count("documents_searched")
    );

    let out = folder.path().join("exclude");
    prepare(
        &out,
        &[
            "words.list=[country]",
            "exclude=held-out",
            "exclude.rows=0..400",
        ],
    )
    .assert()
    .success();
    let run = read_json(out.join("run.json"));
    assert_eq!(run["counts"]["documents_searched"], 200);
    let contexts = table(out.join("contexts.parquet"));
    let documents = contexts
        .column_by_name("document")
        .unwrap()
        .as_primitive::<UInt64Type>();
    assert!(documents.values().iter().all(|&document| document >= 400));

    let assert = prepare(&out, &["words.list=[country]", "exclude=held-out"])
        .assert()
        .failure()
        .code(1);
    let stderr = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
    assert!(
        stderr.contains("every document of the corpus is left out"),
        "{stderr}"
    );
}

#[test]
fn bad_rows_are_fatal_or_skipped_as_configured() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.jsonl");
    fs::write(
        &path,
        "{\"text\": \"a b c d e f whale\"}\n{\"text\": null}\n",
    )
    .unwrap();
    let corpus = format!("corpus.path={}", path.display());
    let out = folder.path().join("run");
    let assert = prepare(&out, &["words.list=[whale]", &corpus])
        .assert()
        .failure()
        .code(1);
    let stderr = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
    assert!(
        stderr.contains("bad.jsonl`, row 1: column `text` is null"),
        "{stderr}"
    );
    prepare(
        &out,
        &["words.list=[whale]", &corpus, "corpus.bad_rows=skip"],
    )
    .assert()
    .success();
    let run = read_json(out.join("run.json"));
    assert_eq!(run["counts"]["corpus_bad_rows_skipped"], 1);
    assert!(run["warnings"][0].as_str().unwrap().contains("row 1"));
}

#[test]
fn wrong_input_is_a_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    for (overrides, expected) in [
        (
            &["words.path=missing.csv"][..],
            "failed to read words from `missing.csv`: `missing.csv` not found",
        ),
        (&["words.path=null"], "no words: set `words.path`"),
        (&["words.list=[]"], "no words to find contexts for"),
        (
            &["words.list=[a]", "contexts.window=0"],
            "`window` is 0, expected at least 1",
        ),
        (&["words.list=[a]", "contexts.choice=best"], "best"),
        (
            &["words.list=[a]", "corpus.path=missing.jsonl"],
            "`missing.jsonl` not found",
        ),
        (
            &["words.list=[a]", "corpus.tokens=a.npy"],
            "this job reads text (`corpus.path`)",
        ),
        (
            &[
                "words.list=[a]",
                "exclude.path=a.txt",
                "exclude.document_token=b",
            ],
            "this job counts no tokens",
        ),
        (
            &["words.list=[a]", "corpus.rows=600..700"],
            "rows 600..700 hold no document",
        ),
        (
            &["words.list=[a]", "split.held_out=0"],
            "expected a share above 0",
        ),
    ] {
        let out = folder.path().join("run");
        let assert = prepare(&out, overrides).assert().failure();
        let stderr = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
        assert!(stderr.contains(expected), "{overrides:?}: {stderr}");
        assert!(!out.join("contexts.json").exists());
    }
}

/// A quote swallows no row, a notebook's copies are not read, and two files may share the beginning of a sentence.
#[test]
fn every_document_is_read_once_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = folder.path().join("corpus");
    fs::create_dir_all(corpus.join(".ipynb_checkpoints")).unwrap();
    fs::write(
        corpus.join("a.tsv"),
        "id\ttext\n1\t\"Call me, said the old whale\n2\tThen came the great storm\n",
    )
    .unwrap();
    let copy = "id\ttext\n1\tThen came the great whale\n";
    fs::write(corpus.join("b.TSV"), copy).unwrap();
    fs::write(corpus.join(".ipynb_checkpoints/b-checkpoint.tsv"), copy).unwrap();
    let out = folder.path().join("run");
    prepare(
        &out,
        &[
            "words.list=[storm, whale]",
            "contexts.window=3",
            &format!("corpus.path={}", corpus.display()),
        ],
    )
    .assert()
    .success();
    let run = read_json(out.join("run.json"));
    assert_eq!(run["counts"]["corpus_documents_read"], 3);
    assert!(
        run["warnings"][0]
            .as_str()
            .unwrap()
            .contains(".ipynb_checkpoints")
    );
    let contexts = table(out.join("contexts.parquet"));
    let column = |name: &str| contexts.column_by_name(name).unwrap().clone();
    let (word, file) = (column("word"), column("file"));
    let mut places: Vec<(&str, bool)> = (0..contexts.num_rows())
        .map(|i| {
            let file = file.as_string::<i32>().value(i);
            (word.as_string::<i32>().value(i), file.ends_with("a.tsv"))
        })
        .collect();
    places.sort_unstable();
    assert_eq!(places, [("storm", true), ("whale", false), ("whale", true)]);
}

#[test]
fn a_folder_of_another_job_and_an_input_among_the_outputs_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let small = ["corpus.rows=0..50", "words.list=[Congress]"];
    fs::write(dir.path().join("words.csv"), "word\nCongress\n").unwrap();
    fs::write(dir.path().join("words.parquet"), "of select-longtail").unwrap();
    let theirs =
        r#"{"job": "select-longtail", "outputs": {"words.parquet": {"sha256": "", "bytes": 0}}}"#;
    fs::write(dir.path().join("run.json"), theirs).unwrap();
    let words = format!("words.path={}", dir.path().join("words.csv").display());
    let error = |out: &Path, overrides: &[&str]| {
        let output = prepare(out, overrides).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let text = error(dir.path(), &[&words, "words.list=null"]);
    assert!(
        text.contains("belongs to select-longtail") && text.contains("hint: choose another folder"),
        "{text}"
    );
    assert_eq!(
        fs::read_to_string(dir.path().join("run.json")).unwrap(),
        theirs
    );

    let own = dir.path().join("own");
    prepare(&own, &small).assert().success();
    let before = fs::read(own.join("run.json")).unwrap();
    let words = format!("words.path={}", own.join("words.parquet").display());
    let text = error(&own, &[&words, "words.list=null"]);
    assert!(
        text.contains("words.parquet` is an input (`words.path`)"),
        "{text}"
    );
    assert_eq!(fs::read(own.join("run.json")).unwrap(), before);
}

#[test]
fn texts_on_the_command_line_are_taken_as_typed() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("a.jsonl"),
        "{\"text\": \"They saw the white whale.\"}\n",
    )
    .unwrap();
    for (corpus, out) in [
        ("*.jsonl", "run #2"),
        ("[ab]*.jsonl", "a: b"),
        ("a.jsonl", "&x"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_prepare-context"))
            .current_dir(folder.path())
            .arg("--config-dir")
            .arg(root().join("configs"))
            .args(["words.list=[whale]", "contexts.window=1"])
            .arg(format!("corpus.path={corpus}"))
            .arg(format!("output.dir={out}"))
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{corpus}: {stderr}");
        assert!(folder.path().join(out).join("run.json").is_file(), "{out}");
    }
}

/// What a shell is told of a command line that is not finished: keys, choices of groups, switches and flags, after what was typed before.
#[test]
fn command_lines_are_completed() {
    let asked = |line: &str| -> Vec<String> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_prepare-context"));
        let run = command.current_dir(root()).args(["--complete", line]);
        let said = run.assert().success().get_output().stdout.clone();
        let said = String::from_utf8(said).unwrap();
        said.lines().map(str::to_owned).collect()
    };
    for (line, expected) in [
        ("prepare-context words.li", &["words.list="][..]),
        ("prepare-context corpus=tr", &["corpus=train"]),
        ("prepare-context +exc", &["+exclude="]),
        ("prepare-context ~exc", &["~exclude"]),
        (
            "prepare-context exclude=",
            &["exclude=held-out", "exclude=train"],
        ),
        (
            "prepare-context exclude=train exclude.col",
            &["exclude.column="],
        ),
        (
            "prepare-context corpus=nonsense corpus.ro",
            &["corpus.rows="],
        ),
        ("prepare-context --mul", &["--multirun"]),
        ("prepare-context --cfg ", &["job"]),
        ("prepare-context --config-dir /nowhere co", &[]),
        ("prepare-context nothing", &[]),
    ] {
        assert_eq!(asked(line), expected, "{line}");
    }
    assert!(asked("prepare-context ").contains(&"words.path=".to_owned()));
}

/// The script, in the shell that is there: bash cuts words at `=`.
#[test]
fn bash_completes_the_value_of_a_key() {
    let program = env!("CARGO_BIN_EXE_prepare-context");
    let script = format!(
        "source <('{program}' --completions bash)
         COMP_LINE='prepare-context corpus=tr' COMP_POINT=25
         _complete_prepare_context '{program}'
         echo \"${{COMPREPLY[*]}}\""
    );
    let mut bash = Command::new("bash");
    let bash = bash.current_dir(root()).args(["-c", &script]);
    bash.assert().success().stdout("train\n");
    for shell in ["zsh", "fish"] {
        let mut command = Command::new(program);
        let command = command.args(["--completions", shell]);
        let said = command.assert().success().get_output().stdout.clone();
        let said = String::from_utf8(said).unwrap();
        assert!(said.contains("--complete"), "{said}");
    }
}
