//! Finds the long-tail band of a vocabulary, and the rare words in it.

mod config;
mod inputs;
mod job;
mod plot;
mod tables;

use std::process::ExitCode;

use batch_runs::BatchArgs;
use clap::Parser;
use job_kit::Verbosity;

const JOB: &str = "select-longtail";
const VERSION: &str = env!("CARGO_PKG_VERSION");

const EXAMPLES: &str = "\
Examples (from the root of the repository):
  select-longtail --plot
      rare English words of Pythia's tokenizer, by its counts over the Pile
  select-longtail band.upper=rank:20000 words.case=lower_only \\
    output.dir=outputs/rarer
      another band, and no names
  select-longtail tokenizer=tiny-neox frequency=tiny-neox corpus=train \\
    output.dir=outputs/tiny
      words of the bundled model; counted as words in its training text, words of several pieces included
  select-longtail tokenizer=tiny-neox frequency=tiny-neox corpus=train \\
    words.common=200 output.dir=outputs/both
      200 words above the band with them, to compare with
  select-longtail tokenizer=tiny-neox frequency=null corpus=train \\
    'corpus.document_token=<|endoftext|>' output.dir=outputs/counted
      counts the tokens of the text first, and keeps them as counts.parquet for `frequency.counts`
  select-longtail band_reading=liu2025 lexicon=none \\
    output.dir=outputs/liu2025
      the band as the Python package of Liu et al. 2025 finds it, all pieces that start a word
  select-longtail -m tokenizer=tiny-neox frequency=tiny-neox \\
    words.min_length=3,4,5 words.case=keep,lower sweep.dir=outputs/words
      a sweep: six jobs in outputs/words/0 to 5; again with more values, it runs those that are new";

/// Find the long-tail band of a vocabulary, and the rare words in it
///
/// Writes words.csv and words.parquet (a row per word: pieces, count, occurrences per million, Zipf scale, whether it is of the band),
/// tokens.parquet (a row per token of the band) and run.json (configuration, versions, hashes, band, what was left out)
/// to `output.dir`.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    batch: BatchArgs,
    #[command(flatten)]
    verbosity: Verbosity,
    /// Draw the rank-frequency curve with fit, band and elbow (rank-frequency.svg and .png); same as `output.plot=true`
    #[arg(long)]
    plot: bool,
}

/// The job, from its command line to its exit code.
pub fn main() -> ExitCode {
    job_kit::main(run)
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    cli.verbosity.init();
    let mut args = cli.batch.clone();
    if cli.plot {
        args.config.overrides.push("output.plot=true".into());
    }
    batch_runs::run(JOB, VERSION, &args, cli.verbosity, job::run)
}

#[cfg(test)]
#[path = "../../../tests/cli/rules.rs"]
mod rules;

#[cfg(test)]
mod tests {
    use crate::{config::SelectConfig, rules};

    rules::hold!(
        SelectConfig,
        &[
            &["tokenizer.path=mine.json"],
            &["band.lower={percentile: 0.5}", "band.upper=rank:7"],
            &["band_reading=liu2025", "band.window=40"],
            &[
                "frequency.counts=null",
                "corpus=train",
                "corpus.document_token=<|endoftext|>",
            ],
        ],
    );
}
