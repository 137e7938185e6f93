//! `cargo xtask demo`: the jobs in their order, on the bundled model.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use anyhow::Context;

use crate::setup;
use crate::workspace::{self, executables, root};

/// One job; paths are relative to the workspace.
pub(crate) struct Step {
    pub(crate) title: &'static str,
    pub(crate) bin: &'static str,
    pub(crate) args: &'static [&'static str],
}

impl Step {
    /// When it finished, if it has.
    fn finished(&self) -> Option<SystemTime> {
        let folder = self
            .args
            .iter()
            .find_map(|arg| arg.strip_prefix("output.dir="))?;
        modified(&root().join(folder).join("run.json"))
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|file| file.modified()).ok()
}

/// Where the steps write.
const OUTPUT: &str = "outputs/demo";

const STEPS: &[Step] = &[
    Step {
        title: "find the rare words of the vocabulary, and common ones to compare them with",
        bin: "select-longtail",
        args: &[
            "tokenizer=tiny-neox",
            "frequency=tiny-neox",
            "corpus=train",
            "words.common=300",
            "output.dir=outputs/demo/select-longtail",
            "output.plot=true",
        ],
    },
    Step {
        title: "find contexts of these words in held-out text, other than neurons are selected on",
        bin: "prepare-context",
        args: &[
            "words.path=outputs/demo/select-longtail/words.csv",
            "corpus.rows=150..600",
            "contexts.per_word=5",
            "output.dir=outputs/demo/prepare-context",
        ],
    },
    Step {
        title: "ablate all 256 neurons of the last MLP layer, at every checkpoint",
        bin: "ablate-unigram",
        args: &[
            "model.path=examples/data/tiny-neox",
            "model.steps=all",
            "corpus.rows=0..150",
            "ablation.sequences=10",
            "output.dir=outputs/demo/ablate-unigram",
        ],
    },
    Step {
        title: "select the neurons that matter for rare tokens",
        bin: "analyze-unigram",
        args: &[
            "input.path=outputs/demo/ablate-unigram",
            "input.steps=all",
            "output.dir=outputs/demo/analyze-unigram",
        ],
    },
    Step {
        title: "measure the surprisal of rare and common words with these neurons switched off and scaled, against control sets",
        bin: "compute-surprisal",
        args: &[
            "words.path=outputs/demo/prepare-context/contexts.json",
            "words.min_context=2",
            "words.max_context=1",
            "neurons.file=outputs/demo/analyze-unigram/selection.csv",
            "corpus.rows=0..20",
            "output.dir=outputs/demo/compute-surprisal",
        ],
    },
    Step {
        title: "scale rare tokens and these neurons in the null space of common tokens",
        bin: "scale-neuron",
        args: &[
            "neurons.file=outputs/demo/analyze-unigram/selection.csv",
            "neurons.step=4000",
            "corpus.rows=150..210",
            "output.dir=outputs/demo/scale-neuron",
        ],
    },
];

pub(crate) fn demo() -> anyhow::Result<()> {
    setup::ensure()?;
    // Every demo begins anew, so that it shows all of what a first one shows.
    match fs::remove_dir_all(root().join(OUTPUT)) {
        Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
            return Err(err).with_context(|| format!("failed to remove the earlier `{OUTPUT}`"));
        }
        _ => {}
    }
    run_steps(STEPS)?;
    println!("\ndemo: written to `{OUTPUT}`");
    for (path, bytes) in files(&root().join(OUTPUT))? {
        let path = path.strip_prefix(root()).unwrap_or(&path);
        println!("  {:>9}  {}", size(bytes), path.display());
    }
    Ok(())
}

/// Builds the binaries, and runs some of them one after the other; a step that has finished is not run again.
pub(crate) fn run_steps(steps: &[Step]) -> anyhow::Result<()> {
    // Examples too: with them cargo chooses the features that it chooses for tests, and nothing is compiled twice.
    let bins = executables(&["--workspace", "--bins", "--examples"])?;
    // What every step rests on, beside its program: this one, which has its arguments, and the step before.
    let mut newest = std::env::current_exe().ok().as_deref().and_then(modified);
    for (index, step) in steps.iter().enumerate() {
        println!("\n== {} of {}: {} ==", index + 1, steps.len(), step.title);
        let bin = bins
            .get(step.bin)
            .with_context(|| format!("the workspace has no binary `{}`", step.bin))?;
        newest = newest.max(modified(bin));
        if let Some(finished) = step.finished().filter(|&time| Some(time) > newest) {
            println!("finished before, and nothing that it rests on is newer");
            newest = Some(finished);
            continue;
        }
        newest = Some(SystemTime::now());
        workspace::run(Command::new(bin).args(step.args).current_dir(root()))?;
    }
    Ok(())
}

/// The files below a folder with their sizes, sorted by path.
fn files(dir: &Path) -> anyhow::Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    let entries = fs::read_dir(dir).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    for entry in entries.with_context(|| format!("failed to read `{}`", dir.display()))? {
        let path = entry.path();
        let meta = entry
            .metadata()
            .with_context(|| format!("failed to read `{}`", path.display()))?;
        if meta.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push((path, meta.len()));
        }
    }
    found.sort();
    Ok(found)
}

/// Bytes for people, in powers of 1000.
fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}
