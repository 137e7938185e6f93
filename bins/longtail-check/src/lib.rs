//! Checks what a machine makes of this project: golden values, the engines against each other, scoring and memory on the
//! device that is asked for, and how fast it is beside PyTorch on the same device.
//!
//! Every check runs even if an earlier one failed, and prints its row at once: time on a lent machine is short.

mod golden;
mod kernels;
mod machine;
mod memory;
mod models;
mod python;
mod report;
mod scoring;
mod timing;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Parser, ValueEnum};
use neox_core::parse_device;
use tch::Device;

use crate::report::Report;

const VERSION: &str = env!("CARGO_PKG_VERSION");

const EXAMPLES: &str = "\
Examples:
  longtail-check --quick
      the CPU, in about two minutes
  longtail-check --device cuda:0 --python ~/env/bin/python --out check.json
      everything on the first GPU, with PyTorch beside it
  longtail-check --device cuda:0 --only golden,kernels
      two of the checks";

/// Check this machine: values and engines against golden and f64 ones, memory, and timings beside PyTorch
///
/// Prints a row for each check, then for each timing. Exit code 1 says that a check failed, 2 that the command line is wrong
/// or that the device is not there. Differences are in nats unless a row says otherwise. docs/check.md tells more.
#[derive(Debug, Parser)]
#[command(name = "longtail-check", version, after_help = EXAMPLES)]
struct Cli {
    /// Where to compute: cpu, cuda:0, ..., or auto for the first GPU if there is one
    #[arg(long, default_value = "cpu", value_parser = parse_device)]
    device: Device,
    /// Only these
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Check>,
    /// Fewer pairs, smaller models, fewer repetitions
    #[arg(long)]
    quick: bool,
    /// Memory that the timed sweeps may take beside the weights, MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory: usize,
    /// Write everything to this JSON file, too
    #[arg(long, value_name = "FILE.json")]
    out: Option<PathBuf>,
    /// A Python with torch, and transformers for forwards, that the timings are compared with (default: python3, if it has them)
    #[arg(long)]
    python: Option<PathBuf>,
    /// Where models and arrays are written, and stay; a temporary folder otherwise. The largest model has about 1 GB
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    #[command(flatten)]
    verbosity: job_kit::Verbosity,
}

/// A group of checks, in the order they run in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Check {
    /// Forwards of small models of every family against golden values, in f32, f16 and bf16
    Golden,
    /// Memory that a sweep takes beside the weights
    Memory,
    /// The engines of a sweep against each other and against f64
    Kernels,
    /// Word scoring, null space and scaling against the CPU
    Scoring,
    /// Sweep, forward and word scoring beside PyTorch
    Timing,
}

/// What every check needs to know.
#[derive(Debug)]
struct Setting {
    device: Device,
    quick: bool,
    /// Budget of the timed sweeps, bytes.
    memory: usize,
    /// Folder for models and arrays.
    folder: PathBuf,
    /// The interpreter that was asked for.
    python: Option<PathBuf>,
}

impl Setting {
    fn on_gpu(&self) -> bool {
        self.device.is_cuda()
    }

    /// Waits until the device has done all that was asked of it.
    fn synchronize(&self) {
        if let Device::Cuda(index) = self.device {
            tch::Cuda::synchronize(index as i64);
        }
    }
}

/// The program: reads the command line, checks, and ends with 0, 1 or 2.
pub fn main() -> ExitCode {
    job_kit::main(run)
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    cli.verbosity.init();
    let temporary = tempfile::Builder::new().prefix("longtail-check-").tempdir();
    let temporary = temporary
        .context("failed to make a temporary folder: set `TMPDIR` to one that can be written")?;
    let folder = cli.data.as_deref().unwrap_or(temporary.path());
    make(folder)?;
    let setting = Setting {
        device: cli.device,
        quick: cli.quick,
        memory: cli.memory << 20,
        folder: folder.to_owned(),
        python: cli.python.clone(),
    };
    let mut report = Report::new(machine::describe(&setting), cli.out.clone())?;
    type Group = fn(&Setting, &mut Report) -> anyhow::Result<()>;
    let groups: [(Check, &'static str, Group); 5] = [
        (Check::Golden, "golden", golden::check),
        // Before anything has filled the cache of the allocator, which counts as used.
        (Check::Memory, "memory", memory::check),
        (Check::Kernels, "kernels", kernels::check),
        (Check::Scoring, "scoring", scoring::check),
        (Check::Timing, "timing", timing::check),
    ];
    for (check, name, group) in groups {
        if cli.only.is_empty() || cli.only.contains(&check) {
            report.group(name, |report| group(&setting, report))?;
        }
    }
    match report.finish()? {
        0 => Ok(()),
        failed => bail!(
            "{failed} checks failed on {}",
            machine::device_name(cli.device)
        ),
    }
}

fn make(folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("failed to make the folder `{}`", folder.display()))
}
