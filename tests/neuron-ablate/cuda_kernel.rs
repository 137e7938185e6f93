//! The GPU's kernel, run on the CPU by a C++ compiler and a few lines that stand for a GPU's threads.

use std::{path::Path, process::Command};

#[test]
fn kernel_of_the_gpu_sums_and_ranks_as_f64_does() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = root.join("src/cuda/sums.cu");
    let harness = root.join("../../tests/neuron-ablate/cuda_kernel.cpp");
    let dir = tempfile::tempdir().unwrap();
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    // Direction tiles of four, two and one; a variant without tilts.
    for (bases, tilts) in [(1, 0), (2, 2), (2, 4), (1, 9)] {
        let program = dir.path().join(format!("kernel-{bases}-{tilts}"));
        let compiled = Command::new(&compiler)
            .args(["-std=c++17", "-O1", "-w"])
            .arg(format!("-DBASES={bases}"))
            .arg(format!("-DTILTS={tilts}"))
            .arg(format!("-DSOURCE=\"{}\"", source.display()))
            .arg(&harness)
            .arg("-o")
            .arg(&program)
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&compiled.stderr);
        assert!(compiled.status.success(), "{compiler}: {errors}");
        let run = Command::new(&program).output().unwrap();
        let said = String::from_utf8_lossy(&run.stdout);
        assert!(run.status.success(), "{bases} bases, {tilts} tilts: {said}");
    }
}
