//! `cargo xtask simulate`: whether intervals, tests and verdicts hold what they say, on made-up data whose truth is known.

use crate::workspace::{cargo, run};

/// The test target whose ignored tests print the tables of docs/simulations.md.
const SIMULATIONS: &str = "simulations";

pub(crate) fn simulate() -> anyhow::Result<()> {
    // All packages, so that features and thus dependencies are those of any other build.
    run(&mut cargo([
        "test",
        "--workspace",
        "--test",
        SIMULATIONS,
        "--",
        "--ignored",
        "--nocapture",
        "--test-threads=1",
    ]))
}
