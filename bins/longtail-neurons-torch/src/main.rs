//! The jobs that load a model, in one program: `longtail-neurons-torch JOB ...`, or called by the name of the job.

use std::process::ExitCode;

fn main() -> ExitCode {
    job_kit::dispatch(&[
        ("ablate-unigram", ablate_unigram::main),
        ("compute-surprisal", compute_surprisal::main),
        ("longtail-check", longtail_check::main),
        ("scale-neuron", scale_neuron::main),
    ])
}
