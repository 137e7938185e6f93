//! Selects neurons from ablation tables and says how sure the selection is.

mod analysis;
mod baseline;
mod changes;
mod compare;
mod config;
mod figures;
mod ids;
mod input;
mod job;
mod page;
mod stability;
mod strata;
mod summary;
mod sums;
mod tables;

use std::{path::PathBuf, process::ExitCode};

use batch_runs::BatchArgs;
use clap::Parser;
use job_kit::Verbosity;

const JOB: &str = "analyze-unigram";
const VERSION: &str = env!("CARGO_PKG_VERSION");

const EXAMPLES: &str = "\
Examples (from the root of the repository):
  analyze-unigram
      the neurons that help long-tail targets most, from the tables in outputs/ablate-unigram
  analyze-unigram selection.heuristic=kl selection.effect=suppress \\
    output.dir=outputs/away
      the neurons that push away from the unigram distribution
  analyze-unigram input.path=outputs/sweep input.steps=all \\
    output.dir=outputs/sweep-analysis
      every checkpoint of a sweep, and how stable the selection is
  analyze-unigram --estimate input.path=outputs/sweep input.steps=all
      how long, how much memory, how much disk?
  analyze-unigram selection=liu2025 frequency=tiny-neox \\
    output.dir=outputs/as-liu2025
      as the Python package of Liu et al. 2025 selects, rows filed anew by their input token
  analyze-unigram --compare outputs/analyze-unigram outputs/as-liu2025
      what changes between two selections, and why";

/// Select neurons from the tables of ablate-unigram, or of the Python package of Liu et al. 2025
///
/// Writes selection.csv (the Python package's layout), tidy Parquet tables, plots, report.html and run.json to
/// `output.dir`. Effects and changes are `ablated - clean`, in nats.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    batch: BatchArgs,
    /// Analyse the last step alone, say how long the run takes, how much memory and disk, and stop
    #[arg(long, conflicts_with_all = ["multirun", "compare"])]
    estimate: bool,
    /// Say what differs between two analyses, from the folders that they wrote, and stop
    #[arg(long, conflicts_with = "multirun", num_args = 2, value_names = ["DIR", "DIR"])]
    compare: Option<Vec<PathBuf>>,
    #[command(flatten)]
    verbosity: Verbosity,
}

/// The job, from its command line to its exit code.
pub fn main() -> ExitCode {
    job_kit::main(run)
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    cli.verbosity.init();
    if let Some([first, second]) = cli.compare.as_deref() {
        return Ok(job_kit::print(compare::compare(first, second)?)?);
    }
    let one = match cli.estimate {
        true => job::estimate,
        false => job::run,
    };
    batch_runs::run(JOB, VERSION, &cli.batch, cli.verbosity, one)
}

#[cfg(test)]
#[path = "../../../tests/cli/rules.rs"]
mod rules;

#[cfg(test)]
mod tests {
    use crate::{config::AnalyzeConfig, rules};

    rules::hold!(
        AnalyzeConfig,
        &[
            &["input.steps=[0, 1000]", "persistence=0.5"],
            &["input.steps=all", "selection.top_n=all"],
            &["frequency=tiny-neox", "frequency.d_vocab=9"],
        ],
    );
}
