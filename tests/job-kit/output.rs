//! Output folders and files, hashes, `run.json`, and how a program ends.
#![expect(clippy::unwrap_used, reason = "test helpers fail the test")]

use std::{fs, io::Write, path::Path, time::Duration};

use job_kit::{AtomicFile, OutputDir, RunRecord, WithHint, exit::message, sha256_file, write_file};
use tempfile::TempDir;

const UNDER_WAY: &str = ".run-under-way.json";

/// A folder taken by a job with these outputs, and nothing in its configuration.
fn open(
    path: impl Into<std::path::PathBuf>,
    job: &str,
    outputs: &[&str],
) -> Result<OutputDir, job_kit::OutputError> {
    OutputDir::create(path, job, &serde_json::Value::Null, outputs.iter().copied())
}

/// Names in a folder, but for the one that says that a run is under way.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != UNDER_WAY)
        .collect();
    names.sort();
    names
}

#[test]
fn a_file_dropped_half_way_leaves_nothing() {
    let parent = TempDir::new().unwrap();
    let dir = open(parent.path().join("a/b"), "job", &["table.txt"]).unwrap();
    let mut file = dir.file("table.txt").unwrap();
    file.write_all(b"half").unwrap();
    assert_eq!(names(dir.path()).len(), 1);
    drop(file);
    assert_eq!(names(dir.path()), Vec::<String>::new());
}

#[test]
fn an_older_file_stays_until_the_new_one_is_whole() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("table.txt");
    write_file(&path, "old").unwrap();
    let mut file = AtomicFile::create(&path).unwrap();
    file.write_all(b"new").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    file.commit().unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    assert_eq!(names(dir.path()), ["table.txt"]);
}

#[test]
fn what_a_killed_run_left_is_removed_and_nothing_else() {
    let dir = TempDir::new().unwrap();
    for name in [".table.parquet.x1y2z3.partial", ".hidden", "mine.partial"] {
        fs::write(dir.path().join(name), "").unwrap();
    }
    open(dir.path(), "job", &["ours"]).unwrap();
    assert_eq!(names(dir.path()), [".hidden", "mine.partial"]);
}

#[cfg(unix)]
#[test]
fn files_are_as_readable_as_any_other() {
    use std::os::unix::fs::PermissionsExt;
    let dir = TempDir::new().unwrap();
    let mode = |name: &str| {
        fs::metadata(dir.path().join(name))
            .unwrap()
            .permissions()
            .mode()
    };
    write_file(dir.path().join("ours"), "x").unwrap();
    fs::write(dir.path().join("plain"), "x").unwrap();
    assert_eq!(mode("ours"), mode("plain"));
}

#[cfg(unix)]
#[test]
fn one_run_at_a_time() {
    let parent = TempDir::new().unwrap();
    let path = parent.path().join("run");
    let first = open(&path, "job", &["ours"]).unwrap();
    let error = message(&open(&path, "job", &["ours"]).unwrap_err().into());
    assert_eq!(
        error.replace(&path.display().to_string(), "run"),
        "error: another run is writing to `run`\nhint: wait for it, or choose another folder with `output.dir=...`"
    );
    drop(first);
    open(&path, "job", &["ours"]).unwrap();
}

#[cfg(unix)]
#[test]
fn a_folder_in_the_place_of_a_file_and_the_reverse() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    fs::create_dir(dir.path().join("folder")).unwrap();
    let shorten =
        |error: anyhow::Error| message(&error).replace(&dir.path().display().to_string(), "DIR");
    insta::assert_snapshot!(shorten(open(dir.path().join("file/run"), "job", &["ours"]).unwrap_err().into()), @r"
    error: failed to create output folder `DIR/file/run`: Not a directory (os error 20)
    hint: choose another folder with `output.dir=...`
    ");
    insta::assert_snapshot!(shorten(write_file(dir.path().join("folder"), "x").unwrap_err().into()), @"error: failed to write `DIR/folder`: is a directory");
}

/// `/dev/full` says that the disk is full.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_named() {
    let error = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap()
        .write_all(b"x")
        .unwrap_err();
    let error = job_kit::OutputError::Write {
        path: "out/table.parquet".into(),
        source: error,
    };
    insta::assert_snapshot!(message(&error.into()), @r"
    error: failed to write `out/table.parquet`: No space left on device (os error 28)
    hint: the disk is full: free some space, or choose another folder with `output.dir=...`
    ");
}

#[test]
fn the_record_of_a_run() {
    let parent = TempDir::new().unwrap();
    let dir = open(parent.path().join("run"), "ablate-unigram", &["ours"]).unwrap();
    let input = parent.path().join("counts.npy");
    fs::write(&input, "abc").unwrap();
    let mut run = RunRecord::new("ablate-unigram", "0.1.0", &serde_json::json!({"seed": 42}));
    run.version("libtorch", "2.13.0");
    (run.seed, run.device, run.dtype) = (Some(42), Some("cpu".into()), Some("f32".into()));
    run.input(&input).unwrap();
    run.count("rows_kept", 370);
    run.timing("sweep", Duration::from_millis(1500));
    run.warn("the band holds most of the probability mass");
    run.note("largest_bound_nats", 1e-7);
    run.write(&dir).unwrap();
    let json: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.join("run.json")).unwrap()).unwrap();
    assert_eq!(
        json["inputs"][input.display().to_string()]["sha256"],
        sha256_file(&input).unwrap().0
    );
    assert_eq!(json["inputs"][input.display().to_string()]["bytes"], 3);
    assert_eq!(
        (&json["seed"], &json["device"], &json["config"]["seed"]),
        (&42.into(), &"cpu".into(), &42.into())
    );
    assert_eq!(json["timings_seconds"]["sweep"], 1.5);
    assert_eq!(
        json["warnings"][0],
        "the band holds most of the probability mass"
    );
    assert!(
        json["versions"]["rustc"]
            .as_str()
            .unwrap()
            .starts_with("rustc 1.")
    );
    assert!(json["seconds"].as_f64().unwrap() >= 0.0);
}

#[test]
fn a_missing_input_is_named() {
    let mut run = RunRecord::new("job", "0", &serde_json::Value::Null);
    let error = message(&run.input("nowhere/counts.npy").unwrap_err().into());
    assert_eq!(
        error,
        "error: failed to read `nowhere/counts.npy`: No such file or directory (os error 2)"
    );
}

#[test]
fn errors_show_causes_once_and_all_hints() {
    use anyhow::Context;
    let inner: Result<(), _> = Err(std::io::Error::other("the cause"));
    let error = inner
        .hint("try the first")
        .context("the step failed: the cause")
        .context("the job failed")
        .hint("try the second")
        .unwrap_err();
    assert_eq!(
        message(&error),
        "error: the job failed: the step failed: the cause\nhint: try the second\nhint: try the first"
    );
}

/// The files of a folder and what is in them, `run.json` aside.
fn contents(folder: &Path) -> Vec<(String, String)> {
    let mut files = vec![];
    for name in names(folder) {
        let path = folder.join(&name);
        if path.is_dir() {
            files.extend(
                contents(&path)
                    .into_iter()
                    .map(|(n, text)| (format!("{name}/{n}"), text)),
            );
        } else if name != "run.json" {
            files.push((name, fs::read_to_string(path).unwrap()));
        }
    }
    files
}

/// A whole run of `job` that writes some files, each with this text.
#[track_caller]
fn run(path: &Path, job: &str, files: &[&str], text: &str) -> serde_json::Value {
    let dir = open(path, job, files).unwrap();
    for file in files {
        dir.write(file, text).unwrap();
    }
    RunRecord::new(job, "0", &serde_json::Value::Null)
        .write(&dir)
        .unwrap();
    drop(dir);
    assert!(!path.join(UNDER_WAY).exists());
    serde_json::from_slice(&fs::read(path.join("run.json")).unwrap()).unwrap()
}

fn refused(result: Result<OutputDir, job_kit::OutputError>, folder: &Path) -> String {
    message(&result.unwrap_err().into()).replace(&folder.display().to_string(), "DIR")
}

#[test]
fn a_folder_belongs_to_one_job() {
    let dir = TempDir::new().unwrap();
    run(dir.path(), "select-longtail", &["words.csv"], "a");
    let before = fs::read(dir.path().join("run.json")).unwrap();
    insta::assert_snapshot!(refused(open(dir.path(), "prepare-context", &["words.parquet"]), dir.path()), @r"
    error: output folder `DIR` belongs to select-longtail: prepare-context would mix its results with them
    hint: choose another folder with `output.dir=...`
    ");
    assert_eq!(fs::read(dir.path().join("run.json")).unwrap(), before);
    assert_eq!(contents(dir.path()), [("words.csv".into(), "a".into())]);
    run(dir.path(), "select-longtail", &["words.csv"], "b");
    assert_eq!(contents(dir.path()), [("words.csv".into(), "b".into())]);
}

/// What a killed process leaves: nothing is dropped.
fn kill(dir: OutputDir) {
    std::mem::forget(dir);
}

#[test]
fn a_killed_run_owns_its_folder_too() {
    let parent = TempDir::new().unwrap();
    let path = parent.path().join("run");
    kill(open(&path, "compute-surprisal", &["a"]).unwrap());
    // The lock goes with the process; a copy of the folder has none.
    let path = copied(&path, parent.path(), "1");
    assert!(
        refused(open(&path, "scale-neuron", &["b"]), &path)
            .contains("belongs to compute-surprisal")
    );
    run(&path, "compute-surprisal", &["a"], "x");
    // A run that fails before it has anything leaves the folder to others.
    let path = parent.path().join("failed");
    drop(open(&path, "compute-surprisal", &["a"]).unwrap());
    run(&path, "scale-neuron", &["a"], "x");
    // Unless it left work to go on with.
    let path = parent.path().join("stored");
    open(&path, "compute-surprisal", &["a"])
        .unwrap()
        .store("parts");
    assert!(
        refused(open(&path, "scale-neuron", &["b"]), &path)
            .contains("belongs to compute-surprisal")
    );
}

fn copied(from: &Path, parent: &Path, name: &str) -> std::path::PathBuf {
    let to = parent.join(name);
    fs::create_dir_all(&to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_dir() {
            copied(&entry.path(), &to, entry.file_name().to_str().unwrap());
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
    to
}

#[test]
fn what_a_run_does_not_write_again_goes() {
    let dir = TempDir::new().unwrap();
    run(
        dir.path(),
        "job",
        &["a.csv", "wide/x.csv", "wide/y.csv", "plots/p.svg"],
        "nats",
    );
    fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    fs::write(dir.path().join("wide/y.csv"), "edited").unwrap();
    let record = run(dir.path(), "job", &["a.csv"], "bits");
    assert_eq!(
        contents(dir.path()),
        [
            ("a.csv", "bits"),
            ("notes.txt", "mine"),
            ("wide/y.csv", "edited")
        ]
        .map(|(name, text)| (name.to_owned(), text.to_owned()))
    );
    assert!(!dir.path().join("plots").exists());
    assert_eq!(
        record["notes"]["removed_outputs_of_earlier_runs"],
        serde_json::json!(["plots/p.svg", "wide/x.csv"])
    );
    assert!(
        record["warnings"][0]
            .as_str()
            .unwrap()
            .contains("wide/y.csv` is of an earlier run and was changed since")
    );
    assert_eq!(
        record["outputs"]
            .as_object()
            .unwrap()
            .keys()
            .collect::<Vec<_>>(),
        ["a.csv"]
    );
}

#[test]
fn files_of_others_are_not_replaced() {
    let dir = TempDir::new().unwrap();
    for name in ["notes.txt", "b.csv"] {
        fs::write(dir.path().join(name), "mine").unwrap();
    }
    fs::write(dir.path().join("wide"), "a file where a folder is wanted").unwrap();
    insta::assert_snapshot!(refused(open(dir.path(), "job", &["a.csv", "b.csv", "wide/x.csv"]), dir.path()), @r"
    error: output folder `DIR` holds files that this run would replace, but that no run of job left there as they are: `b.csv`, `wide`
    hint: move them away, or choose another folder with `output.dir=...`
    ");
    run(dir.path(), "job", &["a.csv"], "x");
    // Nor what somebody changed since.
    fs::write(dir.path().join("a.csv"), "curated by hand").unwrap();
    assert!(refused(open(dir.path(), "job", &["a.csv"]), dir.path()).contains("`a.csv`"));
    fs::write(dir.path().join("run.json"), "{\"not\": \"ours\"}").unwrap();
    assert!(refused(open(dir.path(), "job", &["z.csv"]), dir.path()).contains("`run.json`"));
}

/// At each moment of its end a killed run leaves what the next one takes up; a folder that has its record is complete.
#[test]
fn a_run_killed_at_any_moment_is_taken_up() {
    let parent = TempDir::new().unwrap();
    let path = parent.path().join("run");
    run(&path, "job", &["a", "b", "old/c"], "first");
    let dir = open(&path, "job", &["a", "b", "new"]).unwrap();
    let mut states = vec![copied(&path, parent.path(), "started")];
    assert!(states[0].join("run.json").exists());
    dir.write("a", "second").unwrap();
    states.push(copied(&path, parent.path(), "first file replaced"));
    dir.write("new", "second").unwrap();
    states.push(copied(&path, parent.path(), "another file written"));
    for state in &states[1..] {
        assert!(!state.join("run.json").exists());
    }
    // Some of what is stale is gone.
    let half = copied(&path, parent.path(), "stale files going");
    fs::remove_file(half.join("old/c")).unwrap();
    states.push(half);
    RunRecord::new("job", "0", &serde_json::Value::Null)
        .write(&dir)
        .unwrap();
    drop(dir);
    // The record is there, and so is the mark that it replaces.
    let last = copied(&path, parent.path(), "recorded");
    fs::copy(states[2].join(UNDER_WAY), last.join(UNDER_WAY)).unwrap();
    states.push(last);
    for state in states {
        assert!(refused(open(&state, "other", &["z"]), &state).contains("belongs to job"));
        run(&state, "job", &["b"], "third");
        assert_eq!(
            contents(&state),
            [("b".into(), "third".into())],
            "{}",
            state.display()
        );
        run(&state, "job", &["a", "b"], "fourth");
    }
}

#[test]
fn records_of_earlier_versions_name_whole_paths() {
    let parent = TempDir::new().unwrap();
    let path = parent.path().join("run");
    run(&path, "job", &["a", "wide/x"], "first");
    let text = fs::read_to_string(path.join("run.json")).unwrap();
    let text = text.replace("\"a\": {", "\"outputs/run/a\": {");
    fs::write(
        path.join("run.json"),
        text.replace("\"wide/x\": {", "\"outputs/run/wide/x\": {"),
    )
    .unwrap();
    run(&path, "job", &["a"], "second");
    assert_eq!(contents(&path), [("a".into(), "second".into())]);
}

#[test]
fn outputs_are_no_inputs() {
    let parent = TempDir::new().unwrap();
    let path = parent.path().join("run");
    run(&path, "job", &["words.csv", "checkpoint/model"], "x");
    let shown = |path: &Path| path.display().to_string();
    let dotted = format!("{}/../run/./words.csv", path.display());
    let config = |key: &str, value: String| {
        let (group, key) = key.split_once('.').unwrap();
        serde_json::json!({ group: { key: value } })
    };
    let mut cases = vec![
        (
            "words.path",
            shown(&path.join("words.csv")),
            "words.csv` is an input (`words.path`)",
        ),
        ("words.path", dotted, "words.csv` is an input"),
        (
            "model.path",
            shown(&path.join("checkpoint")),
            "checkpoint/model` is an input (`model.path`)",
        ),
        (
            "corpus.path",
            shown(&path.join("run.json")),
            "run.json` is an input",
        ),
        ("corpus.path", shown(&path), "is inside the input folder"),
        (
            "corpus.path",
            shown(parent.path()),
            "is inside the input folder",
        ),
    ];
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(path.join("words.csv"), parent.path().join("link")).unwrap();
        std::os::unix::fs::symlink(&path, parent.path().join("folder")).unwrap();
        cases.push((
            "words.path",
            shown(&parent.path().join("link")),
            "words.csv` is an input",
        ));
        cases.push((
            "words.path",
            shown(&parent.path().join("folder/words.csv")),
            "words.csv` is an input",
        ));
    }
    for (key, value, expected) in cases {
        let config = config(key, value);
        let result = OutputDir::create(&path, "job", &config, ["words.csv", "checkpoint/model"]);
        let error = refused(result, &path);
        assert!(error.contains(expected), "{config}: {error}");
    }
    // What a run does not write again would be removed.
    let result = OutputDir::create(
        &path,
        "job",
        &config("words.path", shown(&path.join("words.csv"))),
        ["other.csv"],
    );
    assert!(refused(result, &path).contains("words.csv` is an input"));
    for (key, value) in [
        ("model.path", shown(parent.path())),
        ("input.path", shown(&path)),
        ("words.list", "words.csv".to_owned()),
        ("output.dir", shown(&path)),
        ("corpus.path", shown(&parent.path().join("elsewhere"))),
    ] {
        let config = config(key, value);
        OutputDir::create(&path, "job", &config, ["words.csv", "checkpoint/model"]).unwrap();
    }
}

#[test]
fn what_was_not_announced_is_not_written() {
    let dir = TempDir::new().unwrap();
    let out = open(dir.path(), "job", &["a"]).unwrap();
    let error = message(&out.write("b", "x").unwrap_err().into());
    assert_eq!(
        error,
        "error: output `b` is not among those that the job announced at its start"
    );
}
