//! Finds contexts of words in a corpus.

use std::process::ExitCode;

fn main() -> ExitCode {
    prepare_context::main()
}
