//! The jobs that need no libtorch, in one program: `longtail-neurons JOB ...`, or called by the name of the job.

use std::process::ExitCode;

fn main() -> ExitCode {
    job_kit::dispatch(&[
        ("analyze-unigram", analyze_unigram::main),
        ("prepare-context", prepare_context::main),
        ("run-study", run_study::main),
        ("select-longtail", select_longtail::main),
    ])
}
