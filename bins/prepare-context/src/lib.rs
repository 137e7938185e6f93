//! Finds contexts of words in a corpus.

mod config;
mod job;
mod tables;

use std::process::ExitCode;

use batch_runs::BatchArgs;
use clap::Parser;
use job_kit::Verbosity;

const JOB: &str = "prepare-context";
const VERSION: &str = env!("CARGO_PKG_VERSION");

const EXAMPLES: &str = "\
Examples (from the root of the repository):
  prepare-context 'words.list=[whale, harpoon, treasury]'
      contexts of three words in the bundled held-out text
  select-longtail && prepare-context
      contexts of the rare words that select-longtail has found
  prepare-context 'words.list=[whale]' contexts.choice=topk \\
    contexts.per_word=5 corpus=train output.dir=outputs/whale
      the five most frequent contexts of a word in another text
  prepare-context 'words.list=[whale]' corpus=train exclude=held-out \\
    output.dir=outputs/apart
      no contexts from documents whose text is also in the held-out corpus
  prepare-context 'words.list=[whale]' contexts.reading=liu2025 \\
    contexts.choice=topk output.dir=outputs/liu2025
      as the Python package of Liu et al. 2025: words split at white space";

/// Find contexts of words in a corpus: the text of a sentence up to where the word occurs
///
/// Writes contexts.json (word to list of contexts, as the Python package of Liu et al. 2025 reads it), contexts.parquet
/// (a row per word and context, with document and byte offsets), words.parquet (a row per word, those without a context
/// too) and run.json (configuration, versions, hashes, counts) to `output.dir`.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    batch: BatchArgs,
    #[command(flatten)]
    verbosity: Verbosity,
}

/// The job, from its command line to its exit code.
pub fn main() -> ExitCode {
    job_kit::main(run)
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    cli.verbosity.init();
    batch_runs::run(JOB, VERSION, &cli.batch, cli.verbosity, job::run)
}

#[cfg(test)]
#[path = "../../../tests/cli/rules.rs"]
mod rules;

#[cfg(test)]
mod tests {
    use crate::{config::PrepareConfig, rules};

    rules::hold!(
        PrepareConfig,
        &[
            &[
                "words.list=['a', 'yes', '0x10', ' b ', '# c', '~', 'null', '', \"two\\nlines\", \"\\u2028\\u0085\\ufeff\\0\"]",
            ],
            &["words.column=~", "words.path=yes", "output.dir=two\nlines"],
            &["words.column=0x10", "output.dir= x "],
            &["corpus.path=['a', 'b: c']", "corpus.column=- a"],
            &["contexts.choice=topk"],
            &[
                "norms.path=SUBTLEXus.csv",
                "norms.word=Word",
                "norms.scale=count"
            ],
            &["split.held_out=0.25", "split.seed=7"],
        ],
    );
}
