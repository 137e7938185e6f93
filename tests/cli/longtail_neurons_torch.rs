//! The jobs on models in one program, from a folder that holds nothing.

use std::{fs, path::Path, process::Command};

use assert_cmd::prelude::*;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_longtail-neurons-torch");

#[test]
fn the_quick_ablation_runs_from_an_empty_folder() {
    let dir = TempDir::new().unwrap();
    let run = |args: &[&str]| {
        let mut command = Command::new(PROGRAM);
        command.current_dir(dir.path()).args(args).assert()
    };
    // Little text for the means: what is tested is where things are found.
    run(&[
        "ablate-unigram",
        "ablation=quick",
        "corpus.rows=0..20",
        "-q",
    ])
    .success();
    let folder = dir.path().join("outputs/ablate-unigram");
    assert!(folder.join("neurons.parquet").is_file());
    let record = fs::read_to_string(folder.join("run.json")).unwrap();
    assert!(record.contains("\"job\": \"ablate-unigram\""), "{record}");

    let names = run(&[]).success();
    let names = String::from_utf8(names.get_output().stdout.clone()).unwrap();
    let bins = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (_, jobs) = names.split_once("Jobs: ").unwrap();
    for job in jobs.trim().split(", ") {
        assert!(bins.join(job).is_dir(), "{job}");
        let version = run(&[job, "--version"]).success();
        let version = String::from_utf8(version.get_output().stdout.clone()).unwrap();
        assert!(version.starts_with(&format!("{job} ")), "{version}");
    }
}
