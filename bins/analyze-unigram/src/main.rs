//! Selects neurons from ablation tables and says how sure the selection is.

use std::process::ExitCode;

fn main() -> ExitCode {
    analyze_unigram::main()
}
