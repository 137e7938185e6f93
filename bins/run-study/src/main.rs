//! Runs a study: steps of jobs whose inputs are results of earlier steps.

use std::process::ExitCode;

fn main() -> ExitCode {
    run_study::main()
}
