//! `cargo xtask fuzz`: the readers of files from elsewhere under libFuzzer, one after the other.

use anyhow::{Context, bail};

use crate::setup;
use crate::workspace::{answer, cargo, packages, run};

/// Which targets to run, and for how long.
#[derive(Debug, clap::Args)]
pub(crate) struct FuzzArgs {
    /// Targets; all of them by default
    names: Vec<String>,
    /// Time for each target
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Inputs for each target, however long they take
    #[arg(long, value_name = "N", conflicts_with = "seconds", value_parser = clap::value_parser!(u64).range(1..))]
    runs: Option<u64>,
}

/// The package of the targets, from the root.
const FOLDER: &str = "crates/fuzz";

/// What a reader may hold, take at once (more would be a size believed before its bytes are there), and how many seconds it has.
const LIMITS: [&str; 3] = ["-rss_limit_mb=2048", "-malloc_limit_mb=256", "-timeout=10"];

pub(crate) fn fuzz(args: &FuzzArgs) -> anyhow::Result<()> {
    let all = targets()?;
    for name in &args.names {
        if !all.contains(name) {
            bail!("no fuzz target `{name}`; there are: {}", all.join(", "));
        }
    }
    if answer(&mut cargo(["fuzz", "--version"])).is_none() {
        bail!("`cargo fuzz` is not there: run `cargo install cargo-fuzz`, once for all projects");
    }
    setup::ensure()?;
    let limit = match args.runs {
        Some(runs) => format!("-runs={runs}"),
        None => format!("-max_total_time={}", args.seconds),
    };
    for name in &all {
        if !args.names.is_empty() && !args.names.contains(name) {
            continue;
        }
        let mut command = cargo(["fuzz", "run", "--dev", "--features=libfuzzer"]);
        command
            .args(["--fuzz-dir", FOLDER])
            .arg(format!("--target-dir={FOLDER}/target"))
            .args([name.as_str(), "--", &limit])
            .args(LIMITS);
        // The installed stable compiler, with the flags that libFuzzer needs let through.
        command.env("RUSTC_BOOTSTRAP", "1");
        run(&mut command).with_context(|| {
            format!(
                "`{name}` found something: the input is in `{FOLDER}/artifacts/{name}`, the lines above say what happens"
            )
        })?;
    }
    println!("fuzz: nothing found");
    Ok(())
}

/// The names of the targets, in the order of the manifest.
fn targets() -> anyhow::Result<Vec<String>> {
    let package = packages()?
        .into_iter()
        .find(|package| package["name"] == "fuzz")
        .context("the workspace has no `fuzz`")?;
    let targets = package["targets"].as_array().into_iter().flatten();
    Ok(targets
        .filter(|target| target["kind"] == serde_json::json!(["bin"]))
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect())
}
