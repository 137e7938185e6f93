//! Mean-ablates every neuron of the last MLP layer; total and direct effects, entropy, KL from the token frequencies.

use std::process::ExitCode;

fn main() -> ExitCode {
    ablate_unigram::main()
}
