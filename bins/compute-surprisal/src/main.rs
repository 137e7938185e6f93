//! Surprisal of words under interventions on neurons, across the checkpoints of a model.

use std::process::ExitCode;

fn main() -> ExitCode {
    compute_surprisal::main()
}
