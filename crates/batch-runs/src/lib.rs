//! One configuration, or a sweep over many: which jobs there are, what each is, and a launcher that runs those still to be done.
//!
//! A binary hands its arguments to [`run`]. Without `--multirun` that composes the configuration and calls the job; with it, values such
//! as `seed=1,2,3` are taken apart, every combination is composed and frozen in a folder of its own, and each runs as a process of the
//! same program. What has finished is not run again.
//!
//! [`run_study`] runs steps whose inputs are results of earlier ones, each a sweep of another program.
//!
//! It knows no job, and computes nothing.

mod collect;
mod follow;
mod identity;
mod launch;
mod launcher;
mod manifest;
mod marker;
mod process;
mod slurm;
mod study;
mod summary;
mod sweep;
mod values;
mod worker;

use std::{num::NonZeroUsize, path::PathBuf};

use job_kit::{
    ConfigArgs, Rules, Verbosity,
    completion::{Shell, candidates, script},
    compose,
};
use serde::{Serialize, de::DeserializeOwned};

pub use self::{
    follow::Follow,
    study::{StudyArgs, run_study},
};

/// The arguments of a job that can be swept; flatten them into its parser.
///
/// # Examples
/// ```
/// use clap::Parser;
///
/// #[derive(Parser)]
/// struct Cli {
///     #[command(flatten)]
///     batch: batch_runs::BatchArgs,
/// }
/// let cli = Cli::parse_from(["job", "-m", "seed=1,2", "--jobs", "2"]);
/// assert!(cli.batch.multirun);
/// assert_eq!(cli.batch.config.overrides, ["seed=1,2"]);
/// ```
#[derive(Debug, Clone, Default, clap::Args)]
pub struct BatchArgs {
    /// The configuration.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Run a job for every combination of the values `key=a,b`, in folders of their own in `sweep.dir`; finished ones are kept
    #[arg(short, long, conflicts_with_all = ["cfg", "info", "print_config"])]
    pub multirun: bool,
    /// With `-m`: show the jobs, and run none
    #[arg(long, requires = "multirun")]
    pub dry_run: bool,
    /// With `-m`: run only those jobs of `sweep.dir` again that have failed or were interrupted, as they were composed then
    #[arg(long, value_name = "WHICH", requires = "multirun")]
    pub retry: Option<Retry>,
    /// With `-m`: start no further job after one has failed
    #[arg(long, requires = "multirun")]
    pub fail_fast: bool,
    /// With `-m`: how many jobs run at once, sharing the cores [default: 1]
    #[arg(short, long, value_name = "N", requires = "multirun")]
    pub jobs: Option<NonZeroUsize>,
    /// With `-m`: what runs the jobs, a choice of `configs/launcher`: `slurm`, `task-list` [default: this program, here]
    #[arg(long, value_name = "NAME", requires = "multirun")]
    pub launcher: Option<String>,
    /// With `-m`: end once a scheduler has the jobs
    #[arg(long, requires = "multirun")]
    pub detach: bool,
    /// What to do with jobs that a scheduler has.
    #[command(flatten)]
    pub follow: Follow,
    /// With `-m`: freeze the jobs (or with `--dry-run` do not), print them as JSON, and run none
    #[arg(long, hide = true, requires = "multirun")]
    pub plan: bool,
    /// Jobs of the scheduler that have to end first
    #[arg(long, hide = true, value_delimiter = ':', requires = "multirun")]
    pub after: Vec<String>,
    /// Print the script that makes a shell complete keys, choices and flags, and stop: `source <(PROGRAM --completions bash)`
    #[arg(long, value_name = "SHELL", exclusive = true)]
    pub completions: Option<Shell>,
    /// Print how the last word of a command line could go on, and stop
    #[arg(long, hide = true, value_name = "LINE", exclusive = true)]
    pub complete: Option<String>,
    /// End when this process, which must be the parent, does
    #[arg(long, hide = true)]
    pub started_by: Option<u32>,
    /// Run the task of this list that a scheduler has started this process for
    #[arg(long, hide = true, value_name = "LIST", exclusive = true)]
    pub work: Option<PathBuf>,
}

/// What `--retry` runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Retry {
    /// Jobs that have failed or were interrupted.
    Failed,
}

/// The whole of a binary after its command line: shows the configuration, runs the job, or runs a sweep of it.
///
/// `job` is the name of the program's job and of its configuration, `version` that of its crate; `one` gets the configuration, and as it was
/// resolved.
///
/// # Errors
/// [`job_kit::ConfigError`] for a configuration or sweep that is refused, before anything runs; what the job says; and for a sweep, if
/// not all of its jobs have finished.
///
/// # Examples
/// ```no_run
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Serialize, Deserialize)]
/// # struct Config {}
/// # impl job_kit::Rules for Config {}
/// #[derive(clap::Parser)]
/// struct Cli {
///     #[command(flatten)]
///     batch: batch_runs::BatchArgs,
///     #[command(flatten)]
///     verbosity: job_kit::Verbosity,
/// }
///
/// fn main() -> std::process::ExitCode {
///     job_kit::main(|cli: &Cli| {
///         cli.verbosity.init();
///         batch_runs::run("job", "0.1.0", &cli.batch, cli.verbosity, |_: &Config, value| {
///             Ok(job_kit::print(format!("{value}\n"))?)
///         })
///     })
/// }
/// ```
pub fn run<T: DeserializeOwned + Serialize + Rules>(
    job: &str,
    version: &str,
    args: &BatchArgs,
    verbosity: Verbosity,
    one: impl FnOnce(&T, &serde_json::Value) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if let Some(folder) = &args.config.export_configs {
        job_kit::config::export(folder)?;
        return Ok(job_kit::print(format!("Configs: {}\n", folder.display()))?);
    }
    if let Some(shell) = args.completions {
        return Ok(job_kit::print(script(shell, job))?);
    }
    if let Some(line) = &args.complete {
        return Ok(job_kit::print(candidates::<T>(job, line))?);
    }
    if let Some(launcher) = args.started_by {
        process::end_with(launcher);
    }
    if let Some(list) = &args.work {
        return worker::run(list);
    }
    if args.multirun || args.follow.asked().is_some() {
        return sweep::run::<T>(job, version, args, verbosity);
    }
    let resolved = compose::<T>(job, &args.config)?;
    match resolved.shown(&args.config)? {
        Some(shown) => Ok(job_kit::print(shown)?),
        None => one(&resolved.config, resolved.value()),
    }
}
