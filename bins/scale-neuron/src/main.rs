//! Scales rare tokens, or neurons, in the null space of common tokens, and measures what it gains and costs.

use std::process::ExitCode;

fn main() -> ExitCode {
    scale_neuron::main()
}
