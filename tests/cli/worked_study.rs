//! docs/study.md, as it is printed: what a reader copies has to work.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use job_kit::TableReader;

/// The programs that the page calls.
const PROGRAMS: [&str; 6] = [
    "run-study",
    "select-longtail",
    "prepare-context",
    "ablate-unigram",
    "analyze-unigram",
    "compute-surprisal",
];

fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.canonicalize().unwrap()
}

/// The blocks of the page that a shell runs, in their order; those of Python need packages that are not everywhere.
fn blocks(page: &str) -> (Vec<&str>, Vec<&str>) {
    let blocks = page.split("```bash\n").skip(1);
    let blocks = blocks.map(|block| block.split("```").next().unwrap());
    blocks.partition(|block| !block.contains("examples/study/"))
}

/// Runs a block; what it prints.
#[track_caller]
fn run(folder: &Path, block: &str) -> String {
    let programs = Path::new(env!("CARGO_BIN_EXE_compute-surprisal"));
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", programs.parent().unwrap().display());
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", block]);
    let output = command.current_dir(folder).env("PATH", path).output();
    let output = output.unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success(), "{block}\n{said}");
    said
}

/// Whether Python has the packages.
fn python_has(packages: &str) -> bool {
    let import = format!("import {packages}");
    let found = Command::new("python3").args(["-c", &import]).output();
    found.is_ok_and(|output| output.status.success())
}

#[test]
fn the_study_works_as_printed() {
    let programs = Path::new(env!("CARGO_BIN_EXE_compute-surprisal"));
    for program in PROGRAMS {
        let there = programs.with_file_name(program).is_file();
        assert!(
            there,
            "build `{program}` first: cargo build --workspace --bins"
        );
    }
    let dir = tempfile::tempdir().unwrap();
    for name in ["configs", "examples"] {
        symlink(root().join(name), dir.path().join(name)).unwrap();
    }
    let page = fs::read_to_string(root().join("docs/study.md")).unwrap();
    let (blocks, of_python) = blocks(&page);
    assert!(blocks.len() >= 5 && of_python.len() == 2, "{page}");
    let said: String = blocks.iter().map(|block| run(dir.path(), block)).collect();
    assert!(
        said.contains("surprisal  compute-surprisal  2 finished"),
        "{said}"
    );

    // What the page says to look at is there: both bands, all steps, and a word counts once.
    let study = dir.path().join("my-study");
    for file in [
        "words/0/rank-frequency.png",
        "contexts/0/contexts.parquet",
        "selection/1/report.html",
        "surprisal/0/report.html",
        "surprisal/0/change-by-frequency.png",
        "surprisal/1/contrasts.csv",
        "surprisal/tables/summary",
        "merged/surprisal.parquet",
    ] {
        assert!(study.join(file).exists(), "{file}");
    }
    let summary = TableReader::open(study.join("surprisal/0/summary.parquet")).unwrap();
    let summary = summary.read(&["step", "words", "contexts"]).unwrap();
    let steps = summary.i64("step").unwrap();
    assert!([0, 1000, 4000].iter().all(|step| steps.contains(step)));
    let (words, contexts) = (
        summary.i64("words").unwrap(),
        summary.i64("contexts").unwrap(),
    );
    assert!(words.iter().zip(&contexts).all(|(w, c)| c >= &(2 * w)));
    assert_eq!(
        fs::read(study.join("merged/surprisal.parquet")).unwrap(),
        fs::read(study.join("surprisal/0/surprisal.parquet")).unwrap()
    );

    for (block, packages) in of_python
        .iter()
        .zip(["pandas, pyarrow, statsmodels", "duckdb"])
    {
        if !python_has(packages) {
            eprintln!("SKIPPED, as Python has not all of {packages}:\n{block}");
            continue;
        }
        let said = run(dir.path(), block);
        assert!(said.contains("selected") || said.contains("zipf"), "{said}");
    }
}
