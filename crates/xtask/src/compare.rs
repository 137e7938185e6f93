//! `cargo xtask compare`: the same work done by this workspace and by PyTorch, in turn, on this machine.
//!
//! The scripts in `compare/python` are the other side. Every round runs each side once, so that a busy machine slows all of
//! them down and the ratio of two sides in one round stays comparable; before a ratio is shown, the values have been compared.

mod ablation;
mod agreement;
mod environment;
mod forward;
mod inputs;
mod layers;
mod machine;
mod process;
mod rounds;
mod scale_neuron;
mod scaling;
mod sets;
mod words;

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::setup;
use crate::workspace::{executables, root};
use environment::PyTorch;
use inputs::Inputs;

/// What to compare, and how often.
#[derive(Debug, clap::Args)]
pub(crate) struct CompareArgs {
    /// What to compare; everything by default
    #[arg(value_enum)]
    what: Vec<Topic>,
    /// How often each side runs; the table shows medians
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// A Python with torch, transformers and pyarrow; without it one is installed in `target/compare` (about 5 GB)
    #[arg(long, value_name = "PATH")]
    python: Option<PathBuf>,
    /// Let both sides do less, and leave out PyTorch's published chunk: a look, not a result
    #[arg(long)]
    quick: bool,
    /// Threads of each side
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    threads: u32,
    /// Steps that the model of the ablation is trained for, if there is none yet
    #[arg(long, value_name = "STEPS", default_value_t = 400)]
    training: u32,
    /// The cargo profile of our side
    #[arg(long, default_value = "release", hide = true)]
    profile: String,
}

/// One comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Topic {
    /// Surprisal of 2,000 words in context under four interventions
    Words,
    /// Forward passes against Hugging Face transformers
    Forward,
    /// Ablation of last-layer neurons
    Ablation,
    /// Ablation of neurons before the last layer, with the model run on
    Layers,
    /// Sets of last-layer neurons changed together
    Sets,
    /// A whole run of `ablate-unigram` on Pythia-410M's shape
    Run,
    /// Scaled rows of `W_U` and scaled neurons
    ScaleNeuron,
    /// Our ablation alone, against the number of neurons and of rows
    Scaling,
}

/// What every comparison is made with.
struct Setting {
    rounds: u32,
    quick: bool,
    threads: u32,
    pytorch: PyTorch,
    inputs: Inputs,
    /// Our programs by name.
    programs: HashMap<String, PathBuf>,
    /// Where values and tables of the sides go.
    work: PathBuf,
}

impl Setting {
    fn program(&self, name: &str) -> anyhow::Result<process::Program> {
        let path = self.programs.get(name);
        let path = path.with_context(|| format!("cargo did not build `{name}`"))?;
        Ok(process::Program::new(path.clone(), self.threads))
    }

    /// What our jobs on a model are told of files.
    fn paths_of_ours(&self, model: &Path, out: &Path) -> anyhow::Result<[OsString; 4]> {
        let path = |key: &str, path: &Path| {
            let mut text = OsString::from(format!("{key}="));
            text.push(path);
            text
        };
        Ok([
            path("model.path", model),
            path("model.tokenizer", &model.join("tokenizer.json")),
            path("corpus.tokens", &self.inputs.tokens()?),
            path("output.dir", out),
        ])
    }

    fn script(&self, name: &str) -> process::Program {
        let threads = self.threads.to_string();
        process::Program::new(self.pytorch.python().to_owned(), self.threads)
            .args(["-B".into(), environment::script(name)])
            .args(["--threads", &threads])
    }
}

pub(crate) fn compare(args: &CompareArgs) -> anyhow::Result<()> {
    let topics = match args.what.as_slice() {
        [] => vec![
            Topic::Words,
            Topic::Forward,
            Topic::Ablation,
            Topic::Layers,
            Topic::Sets,
            Topic::Run,
            Topic::ScaleNeuron,
            Topic::Scaling,
        ],
        some => some.to_vec(),
    };
    let folder = root().join("target").join("compare");
    let work = folder.join("work");
    fs::create_dir_all(&work).with_context(|| format!("failed to create `{}`", work.display()))?;
    setup::ensure()?;
    let pytorch = match &args.python {
        Some(path) => PyTorch::at(&typed(path)?)?,
        None => PyTorch::install(&folder.join("venv"))?,
    };
    let programs = executables(&[
        "--profile",
        &args.profile,
        // All packages, so that features and thus dependencies are those of any other build.
        "--workspace",
        "--example",
        "score_words",
        "--example",
        "time_forward",
        "--bin",
        "ablate-unigram",
        "--bin",
        "scale-neuron",
    ])?;
    let setting = Setting {
        rounds: args.rounds,
        quick: args.quick,
        threads: args.threads,
        inputs: Inputs::new(folder.clone(), pytorch.python().to_owned(), args.training),
        pytorch,
        programs,
        work,
    };

    let mut text = machine::describe(&setting.pytorch, args.threads, &args.profile);
    eprintln!("\n{text}");
    let mut disagreements = 0;
    for topic in topics {
        let contests = match topic {
            Topic::Words => words::contests(&setting)?,
            Topic::Forward => forward::contests(&setting)?,
            Topic::Ablation => ablation::contests(&setting)?,
            Topic::Layers => layers::contests(&setting)?,
            Topic::Sets => sets::contests(&setting)?,
            Topic::Run => ablation::whole_run(&setting)?,
            Topic::ScaleNeuron => scale_neuron::contests(&setting)?,
            Topic::Scaling => scaling::contests(&setting)?,
        };
        for contest in contests {
            let (table, agree) = contest.run(setting.rounds)?;
            disagreements += usize::from(!agree);
            eprintln!("\n{table}");
            text = format!("{text}\n{table}");
        }
    }
    println!("\n{text}");
    let path = folder.join("report.md");
    fs::write(&path, &text).with_context(|| format!("failed to write `{}`", path.display()))?;
    println!("Also in `{}`", path.display());
    if disagreements > 0 {
        bail!("{disagreements} comparisons have values that differ: their ratios mean nothing");
    }
    Ok(())
}

/// A path as typed in the shell's folder; a bare name is looked up by the system. Links stay: a virtual environment is one.
fn typed(path: &Path) -> anyhow::Result<PathBuf> {
    if path.components().count() == 1 {
        return Ok(path.to_owned());
    }
    std::path::absolute(path).with_context(|| format!("`{}` is no path", path.display()))
}
