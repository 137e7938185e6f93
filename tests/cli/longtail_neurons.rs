//! One program with several names, and what it finds from a folder that holds nothing.
#![expect(clippy::unwrap_used, reason = "test helpers fail the test")]

use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

use serde_json::Value;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_longtail-neurons");
const TINY: [&str; 3] = ["tokenizer=tiny-neox", "frequency=tiny-neox", "-q"];

/// What the program prints, on both streams, and its exit code.
#[track_caller]
fn run(folder: &Path, program: impl AsRef<Path>, args: &[&str]) -> (String, i32) {
    let mut command = Command::new(program.as_ref());
    let output = command.current_dir(folder).args(args).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        String::from_utf8(text).unwrap(),
        output.status.code().unwrap(),
    )
}

#[track_caller]
fn passes(folder: &Path, args: &[&str]) -> String {
    let (text, code) = run(folder, PROGRAM, args);
    assert_eq!(code, 0, "{text}");
    text
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

#[test]
fn the_job_is_the_name_or_the_first_argument() {
    let dir = TempDir::new().unwrap();
    let link = dir.path().join("prepare-context");
    symlink(PROGRAM, &link).unwrap();
    for (program, first) in [
        (&link, &[][..]),
        (&PROGRAM.into(), &["prepare-context"][..]),
    ] {
        let (text, code) = run(dir.path(), program, &[first, &["--version"]].concat());
        assert_eq!(
            (text.as_str(), code),
            ("prepare-context 0.1.0\n", 0),
            "{first:?}"
        );
        let (text, _) = run(dir.path(), program, &[first, &["--help"]].concat());
        assert!(
            text.contains("\nUsage: prepare-context [OPTIONS]"),
            "{text}"
        );
    }
    let (text, code) = run(dir.path(), PROGRAM, &["ablate"]);
    assert_eq!(code, 2);
    assert_eq!(
        text,
        "error: `ablate` is no job of this program\nhint: jobs: analyze-unigram, prepare-context, run-study, select-longtail\n"
    );
    assert!(passes(dir.path(), &[]).contains("Usage: longtail-neurons JOB"));
}

#[test]
fn an_empty_folder_is_enough() {
    let dir = TempDir::new().unwrap();
    passes(dir.path(), &[&["select-longtail"], &TINY[..]].concat());
    let folder = dir.path().join("outputs/select-longtail");
    let record = fs::read(folder.join("run.json")).unwrap();
    let record: Value = serde_json::from_slice(&record).unwrap();
    assert_eq!(record["job"], "select-longtail");

    // What is printed reads back, from another folder too.
    let printed = passes(
        dir.path(),
        &[&["select-longtail", "--print-config"], &TINY[..]].concat(),
    );
    let elsewhere = TempDir::new().unwrap();
    fs::write(elsewhere.path().join("printed.yaml"), printed).unwrap();
    let args = ["select-longtail", "-q", "--config", "printed.yaml"];
    passes(elsewhere.path(), &args);
    let words = "outputs/select-longtail/words.csv";
    assert_eq!(
        fs::read(dir.path().join(words)).unwrap(),
        fs::read(elsewhere.path().join(words)).unwrap()
    );
}

#[test]
fn a_sweep_starts_the_same_job() {
    let dir = TempDir::new().unwrap();
    let sweep = ["select-longtail", "-m", "words.min_length=3,5"];
    let args = [&sweep[..], &["sweep.dir=swept"], &TINY].concat();
    let printed = passes(dir.path(), &args);
    assert!(printed.contains("2 jobs: 2 finished\n"), "{printed}");
    assert!(dir.path().join("swept/1/words.csv").is_file());
}

#[test]
fn files_here_come_before_shipped_ones() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("configs/frequency")).unwrap();
    fs::create_dir_all(at("examples/data/tiny-neox")).unwrap();
    let mine = "counts: '${shipped:examples/data/tiny-neox/train-unigrams.npy}'\n";
    fs::write(at("configs/frequency/mine.yaml"), mine).unwrap();
    let counts = "examples/data/tiny-neox/train-unigrams.npy";
    fs::copy(root().join(counts), at(counts)).unwrap();
    let show = |more: &[&str]| {
        let args = [&["select-longtail", "tokenizer=tiny-neox"], more];
        passes(dir.path(), &args.concat())
    };
    let printed = show(&["frequency=mine", "--print-config"]);
    let line = |key: &str| {
        let line = printed.lines().find(|line| line.trim().starts_with(key));
        line.unwrap_or_else(|| panic!("no {key} in {printed}"))
    };
    assert!(
        line("counts:").contains(&format!("counts: {counts} ")),
        "{printed}"
    );
    assert!(
        line("counts:").ends_with("# configs/frequency/mine.yaml"),
        "{printed}"
    );
    let shipped = root().canonicalize().unwrap();
    let tokenizer = shipped.join("examples/data/tiny-neox/tokenizer.json");
    assert!(
        line("path:").contains(tokenizer.to_str().unwrap()),
        "{printed}"
    );

    let (text, code) = run(
        dir.path(),
        PROGRAM,
        &[
            "select-longtail",
            "words.path=${shipped:examples/data/none}",
        ],
    );
    assert_eq!(code, 2);
    let said = [
        "there is no `examples/data/none` in the current folder, `",
        "/share/longtail-neurons`",
    ];
    assert!(said.iter().all(|said| text.contains(said)), "{text}");
}

#[test]
fn shipped_configs_can_be_copied_once() {
    let dir = TempDir::new().unwrap();
    passes(dir.path(), &["select-longtail", "--export-configs", "mine"]);
    let band = dir.path().join("mine/band/tail.yaml");
    assert_eq!(
        fs::read(&band).unwrap(),
        fs::read(root().join("configs/band/tail.yaml")).unwrap()
    );
    fs::write(&band, "lower: rank:100\n").unwrap();
    let args = ["select-longtail", "--config-dir", "mine", "--print-config"];
    assert!(passes(dir.path(), &args).contains("lower: rank:100 "));
    let again = ["select-longtail", "--export-configs", "mine"];
    let (text, code) = run(dir.path(), PROGRAM, &again);
    assert_eq!(code, 2);
    assert!(text.contains("`mine`: the folder is not empty"), "{text}");
    assert_eq!(fs::read(&band).unwrap(), b"lower: rank:100\n");
    let left = fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(left, 1, "something temporary is left");
}

#[test]
fn files_beside_the_program_are_found() {
    // As in a wheel: `bin/PROGRAM` and `share`.
    let dir = TempDir::new().unwrap();
    for folder in ["bin", "share", "work"] {
        fs::create_dir(dir.path().join(folder)).unwrap();
    }
    let program = dir.path().join("bin/longtail-neurons");
    if fs::hard_link(PROGRAM, &program).is_err() {
        fs::copy(PROGRAM, &program).unwrap();
    }
    passes(
        dir.path(),
        &["select-longtail", "--export-configs", "share/configs"],
    );
    symlink(root().join("examples"), dir.path().join("share/examples")).unwrap();
    let work = dir.path().join("work");
    let args = ["select-longtail", "--print-config"];
    let (printed, code) = run(&work, &program, &args);
    assert_eq!(code, 0, "{printed}");
    let share = dir.path().canonicalize().unwrap().join("share");
    for file in [
        "examples/data/pythia/unigrams.npy",
        "configs/band/tail.yaml",
    ] {
        let file = share.join(file);
        assert!(printed.contains(file.to_str().unwrap()), "{printed}");
    }
}
