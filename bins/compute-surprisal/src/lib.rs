//! Surprisal of words under interventions on neurons, across the checkpoints of a model.

mod checkpoints;
mod config;
mod contrasts;
mod estimate;
mod figures;
mod groups;
mod inputs;
mod interventions;
mod job;
mod neurons;
mod results;
mod setup;
mod store;
mod summary;
mod words;

use std::process::ExitCode;

use batch_runs::BatchArgs;
use clap::Parser;
use job_kit::Verbosity;

const JOB: &str = "compute-surprisal";
const VERSION: &str = env!("CARGO_PKG_VERSION");

const EXAMPLES: &str = "\
Examples (from the root of the repository):
  compute-surprisal
      bundled words and model: base, zero, mean, scaled and control sets at every bundled step
  compute-surprisal 'model.steps=[512, 4000]' output.dir=outputs/two-steps
      two checkpoints; run it again with more steps and only those are computed
  compute-surprisal -m model.steps=512,4000 sweep.dir=outputs/by-step
      each step a job of its own, at once or on a cluster (--jobs 2, --launcher slurm)
  compute-surprisal 'model.steps=[512, 4000]' merge=outputs/by-step \\
    output.dir=outputs/merged
      then the tables and curves over all steps, as of one run
  compute-surprisal interventions=liu2025 reading=liu2025 \\
    output.dir=outputs/liu2025
      as the Python package of Liu et al. 2025: first piece, set before the activation function
  compute-surprisal words.bos_only=true unit=bits \\
    output.dir=outputs/no-context
      words after nothing but the beginning-of-sequence token, in bits
  compute-surprisal --estimate output.dir=outputs/all-steps
      how long, how much memory, how much disk?
  compute-surprisal neurons.missing_step=4000 --print-config \\
    neurons.file=outputs/analyze-unigram/suppress.csv
      what a run with selected neurons would use, and where each value comes from";

/// Surprisal of words under interventions on neurons, across checkpoints
///
/// Writes surprisal.parquet (a row per step, intervention, word and context), neurons.parquet (which neurons each intervention changes at
/// each step), summary.csv (means with intervals, differences to base), contrasts.csv (the selected neurons against control
/// sets), balance.parquet (how alike controls are), acquisition.csv (when words were learned), figures,
/// report.html and run.json to `output.dir`. A run that was stopped goes on where it was; one with more steps or
/// interventions computes what is missing.
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
    use crate::{config::SurprisalConfig, rules};

    rules::hold!(
        SurprisalConfig,
        &[
            &[
                "model.steps=[1, '1000..3000', log]",
                "neurons.file=a.csv",
                "neurons.missing_step=3",
                "neurons.top=2",
            ],
            &["interventions.list=[base]"],
            &[
                "interventions.list=[base, {scaled: 1e-7}, {random: {like: {scaled: 0.5}, draws: 2}}]",
            ],
            &["reading=liu2025"],
            &["merge=outputs/by-step", "words.max_pieces=3"],
            &[
                "norms.path=SUBTLEXus.csv",
                "norms.column=SUBTLWF",
                "norms.scale=per-million"
            ],
            &["words.bos_only=true"],
            &["band=null"],
            &["band=none"],
            &["frequency=null"],
        ],
    );
}
