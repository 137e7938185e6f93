//! `cargo xtask demo`: the study of the bundled model, from nothing.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;

use crate::setup;
use crate::workspace::{self, executables, root};

/// Where the study `demo` writes.
const OUTPUT: &str = "outputs/demo";

pub(crate) fn demo() -> anyhow::Result<()> {
    setup::ensure()?;
    // Every demo begins anew, so that it shows all of what a first one shows.
    match fs::remove_dir_all(root().join(OUTPUT)) {
        Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
            return Err(err).with_context(|| format!("failed to remove the earlier `{OUTPUT}`"));
        }
        _ => {}
    }
    run_study("demo")
}

/// Builds the programs, and runs a study of `configs/study` with them.
pub(crate) fn run_study(name: &str) -> anyhow::Result<()> {
    workspace::run(
        Command::new(program("run-study")?)
            .arg(name)
            .current_dir(root()),
    )
}

/// The file of a program of the workspace, which is built, and with it all others.
pub(crate) fn program(name: &str) -> anyhow::Result<PathBuf> {
    // Examples too: with them cargo chooses the features that it chooses for tests, and nothing is compiled twice.
    let bins = executables(&["--workspace", "--bins", "--examples"])?;
    let bin = bins.get(name).cloned();
    bin.with_context(|| format!("the workspace has no binary `{name}`"))
}
