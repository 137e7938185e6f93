//! Mean-ablates neurons, by default all of the last MLP layer, and attention heads; total and direct effects, entropy, KL from the token frequencies.

use std::process::ExitCode;

fn main() -> ExitCode {
    ablate_unigram::main()
}
