//! Mean-ablates neurons, by default all of the last MLP layer, and attention heads; total and direct effects, entropy, KL from the token frequencies.

mod checks;
mod config;
mod estimate;
mod job;
mod original;
mod sets;
mod start;
mod summary;
mod sums;
mod tables;

use std::{path::PathBuf, process::ExitCode};

use batch_runs::BatchArgs;
use clap::Parser;
use job_kit::Verbosity;

const JOB: &str = "ablate-unigram";
const VERSION: &str = env!("CARGO_PKG_VERSION");

const EXAMPLES: &str = "\
Examples (from the root of the repository):
  ablate-unigram
      all neurons of the bundled model, ten sequences of the bundled corpus
  ablate-unigram ablation=quick output.dir=outputs/first-look
      32 neurons, two sequences
  ablate-unigram semantics=liu2025 band.lower=elbow band.upper=20 \\
    output.dir=outputs/liu2025
      as the Python package of Liu et al. 2025 reads it
  ablate-unigram model.path=examples/data/tiny-neox \\
    'model.steps=[512, 1000, 4000]' output.dir=outputs/sweep
      several checkpoints, each in a folder of its own; finished ones are kept
  ablate-unigram sets=doubling output.dir=outputs/sets \\
    sets.neurons.file=outputs/analyze-unigram/selection.csv
      besides, the selected neurons switched off together, 1, 2, 4, ... at once, against control sets
  ablate-unigram sets=doubling output.dir=outputs/doses \\
    'sets.neurons.list=[\"3.193\", \"3.105\", \"3.19\"]' \\
    'sets.doses=[mean, {scale: 0.5}, {scale: 2}]'
      and at several doses
  ablate-unigram ablation=quick ablation.layer=all output.dir=outputs/layers
      32 neurons of every layer: before the last one the model runs on from the layer, with
      the neuron set to its mean at every position
  ablate-unigram 'ablation.neurons=[\"0.17\", \"2.5\"]' output.dir=outputs/named
      neurons named with their layer
  ablate-unigram ablation=quick ablation.heads=all ablation.layer=all \\
    'ablation.neurons=[]' 'ablation.dose={scale: 0}' output.dir=outputs/heads
      every attention head, its output set to zero; no neurons
  ablate-unigram --audit model.path=examples/data/tiny-neox \\
    output.dir=outputs/sweep
      are the checkpoints there, finite, and all different?
  ablate-unigram --estimate model.path=examples/data/tiny-neox \\
    model.steps=all output.dir=outputs/sweep
      how long, how much memory, how much disk?
  ablate-unigram --self-check corpus.rows=0..50
      does the closed form agree with the model itself?
  ablate-unigram model=pythia-70m frequency=pythia \\
    model.revision=step3000 --print-config
      what a run on Pythia would use, and where each value comes from";

/// Mean-ablate neurons and attention heads of a language model, by default all neurons of its last MLP layer
///
/// Writes neurons.parquet (a row per neuron), sums.parquet (a row per neuron, document and stratum of rows), positions.parquet or .feather (a row per neuron and position, with `output.positions`), with
/// `ablation.heads` heads.parquet (a row per attention head), with `sets` sets.parquet (a row per set of neurons and dose), set_contrasts.parquet and balance.parquet (sets against their controls) and figures, and run.json (configuration, versions, hashes, counts)
/// to `output.dir`. Losses, entropies and divergences are in nats.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    batch: BatchArgs,
    /// Check the checkpoints of `model.steps` (by default all that there are), write audit.json, and stop
    #[arg(long, conflicts_with_all = ["self_check", "multirun"])]
    audit: bool,
    /// Compare the closed form with forwards of the ablated model on a few neurons, and stop
    #[arg(long, conflicts_with = "multirun")]
    self_check: bool,
    /// Measure a small piece, say how long the run takes, how much memory and disk, and stop
    #[arg(long, conflicts_with_all = ["audit", "self_check", "multirun"])]
    estimate: bool,
    /// Take a configuration of the Python packages of Liu et al. 2025 or Stolfo et al. 2024 as it is, and say what of it is not used
    #[arg(long, value_name = "YAML")]
    original: Option<PathBuf>,
    #[command(flatten)]
    verbosity: Verbosity,
}

/// The job, from its command line to its exit code.
pub fn main() -> ExitCode {
    job_kit::main(run)
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    cli.verbosity.init();
    let mut batch = cli.batch.clone();
    if let Some(original) = &cli.original {
        let config = &mut batch.config;
        let taken = original::overrides(original, &config.overrides, &config.config_dir)?;
        config.overrides.splice(0..0, taken);
    }
    let one = match (cli.audit, cli.self_check, cli.estimate) {
        (true, ..) => checks::audit,
        (_, true, _) => checks::self_check,
        (.., true) => estimate::estimate,
        _ => job::run,
    };
    batch_runs::run(JOB, VERSION, &batch, cli.verbosity, one)
}

#[cfg(test)]
#[path = "../../../tests/cli/rules.rs"]
mod rules;

#[cfg(test)]
mod tests {
    use crate::{config::AblateConfig, rules};

    rules::hold!(
        AblateConfig,
        &[
            &[
                "sets=doubling",
                "sets.neurons.list=['3.1']",
                "sets.doses=[mean, {scale: 0.5}, clip-at-mean]",
                "sets.sizes=[1]",
            ],
            &[
                "bands={rare: {lower: elbow, upper: 40}, 'null': {lower: {frequency: 2e-5}}}",
                "ablation.dose={scale: 2}",
            ],
            &[
                "corpus.rows=0..500",
                "ablation.neurons=0..64",
                "ablation.null_directions={count: 4}",
            ],
            &[
                "model.path= a # b ",
                "corpus.path=*.jsonl",
                "corpus.column=1e3",
                "output.dir=2026",
            ],
            &[
                "model.revision=yes",
                "model.token_file=x",
                "model.repo=a: b",
            ],
        ],
    );
}
