//! Scales rare tokens, or neurons, in the null space of common tokens, and measures what it gains and costs.

mod arms;
mod config;
mod estimate;
mod job;
mod prepared;
mod results;
mod show;
mod tables;

use std::process::ExitCode;

use batch_runs::BatchArgs;
use clap::Parser;
use job_kit::Verbosity;

const JOB: &str = "scale-neuron";
const VERSION: &str = env!("CARGO_PKG_VERSION");

const EXAMPLES: &str = "\
Examples (from the root of the repository):
  scale-neuron
      rare tokens and ten neurons of the bundled model, against random controls
  scale-neuron neurons.file=outputs/analyze-unigram/selection.csv
      the neurons that analyze-unigram selected
  scale-neuron scaling=liu2025 output.dir=outputs/scale-liu2025
      null space, rare tokens and scaling laws as in the Python package of Liu et al. 2025
  scale-neuron 'checkpoint={scaled: neurons, dtype: f32}' \\
    scaling.factor=3
      write the changed weights to output.dir/checkpoint, for Hugging Face transformers and for our other jobs
  scale-neuron 'neurons.list=[\"0.3\", \"1.7\", \"3.19\"]' \\
    controls.draws=2 evaluation.sequences=4 output.dir=outputs/scale-layers
      neurons of several layers: the model runs on from the first, with each factor and control
  scale-neuron --estimate evaluation.sequences=100 output.dir=outputs/scale-100
      how long a run over more text takes, how much memory and disk";

/// Scale rare tokens, or neurons, along the null space of common tokens
///
/// Writes neurons.parquet (each neuron's share in the null space), effects.parquet and contrasts.parquet (what each factor
/// does to rare and common targets, alone and against controls), balance.parquet (how alike control neurons are), the trade-off as plot, report.html and run.json to
/// `output.dir`. Losses, entropies and divergences are in nats.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    batch: BatchArgs,
    /// Measure a small piece, say how long the run takes, how much memory and disk, and stop
    #[arg(long, conflicts_with = "multirun")]
    estimate: bool,
    #[command(flatten)]
    verbosity: Verbosity,
}

/// The job, from its command line to its exit code.
pub fn main() -> ExitCode {
    job_kit::main(run)
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    cli.verbosity.init();
    let one = match cli.estimate {
        true => estimate::estimate,
        false => job::run,
    };
    batch_runs::run(JOB, VERSION, &cli.batch, cli.verbosity, one)
}

#[cfg(test)]
#[path = "../../../tests/cli/rules.rs"]
mod rules;

#[cfg(test)]
mod tests {
    use crate::{config::ScaleConfig, rules};

    rules::hold!(
        ScaleConfig,
        &[
            &["checkpoint={scaled: rows, law: {power: 1.0}}"],
            &["scaling.rank=5"],
            &["evaluation.factors=[.inf, 1e-300, 2]"],
            &["neurons=null"],
            &["scaling.rare={quantile: 0.5}"],
            &["corpus.tokens=a.npy"],
            &["evaluation.sequences=[1, 2]"],
        ],
    );
}
