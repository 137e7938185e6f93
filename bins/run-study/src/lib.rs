//! Runs a study: steps of jobs whose inputs are results of earlier steps.

use std::process::ExitCode;

use batch_runs::StudyArgs;
use clap::Parser;
use job_kit::Verbosity;

const EXAMPLES: &str = "\
Examples (from the root of the repository):
  run-study demo --dry-run
      which jobs the bundled demo has
  run-study demo
      runs them in the order of their inputs; again, what has not finished
  run-study demo words.words.min_length=3,4 --dir outputs/lengths --jobs 2
      with other values of a step, and with them more jobs of all that read from it
  run-study liu2025 --launcher slurm --detach
  run-study liu2025 --status
      hands all jobs to Slurm, and shows later what has become of them";

/// Run a study: steps of jobs whose inputs are results of earlier steps
///
/// A study is a YAML file with a folder and steps, each a job with its overrides and values. Every step is a sweep of its job in
/// a folder of its own, with a manifest; what has finished is not run again.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    study: StudyArgs,
    #[command(flatten)]
    verbosity: Verbosity,
}

/// The program.
pub fn main() -> ExitCode {
    job_kit::main(run)
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    cli.verbosity.init();
    batch_runs::run_study(&cli.study, cli.verbosity)
}
