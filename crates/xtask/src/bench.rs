//! `cargo xtask bench`: every benchmark target of the workspace, in release.

use std::collections::BTreeSet;

use anyhow::bail;

use crate::setup;
use crate::workspace::{cargo, packages, run};

/// Which benchmarks to run.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// Benchmark targets; all of them by default
    names: Vec<String>,
}

pub(crate) fn bench(args: &BenchArgs) -> anyhow::Result<()> {
    let all = benchmarks()?;
    for name in &args.names {
        if !all.contains(name) {
            let known: Vec<&str> = all.iter().map(String::as_str).collect();
            bail!("no benchmark `{name}`; there are: {}", known.join(", "));
        }
    }
    if all.is_empty() {
        bail!("the workspace has no benchmark targets");
    }
    setup::ensure()?;
    for name in &all {
        if args.names.is_empty() || args.names.contains(name) {
            // All packages, so that features and thus dependencies are those of any other build.
            run(&mut cargo(["bench", "--workspace", "--bench", name]))?;
        }
    }
    Ok(())
}

/// The names of the benchmark targets.
fn benchmarks() -> anyhow::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for package in packages()? {
        for target in package["targets"].as_array().into_iter().flatten() {
            if target["kind"] == serde_json::json!(["bench"]) {
                found.extend(target["name"].as_str().map(str::to_owned));
            }
        }
    }
    Ok(found)
}
