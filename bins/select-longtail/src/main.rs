//! Finds the long-tail band of a vocabulary, and the rare words in it.

use std::process::ExitCode;

fn main() -> ExitCode {
    select_longtail::main()
}
