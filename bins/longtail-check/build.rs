//! Lets the binary find libtorch without `LD_LIBRARY_PATH`, and tells it which version it was built with.

use std::{env, fs, path::Path};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let Ok(dir) = env::var("DEP_NEOX_CORE_LIBTORCH_LIB") else {
        println!("cargo:rustc-env=LIBTORCH_VERSION=none");
        return; // feature `doc-only`: nothing is linked
    };
    let version = fs::read_to_string(Path::new(&dir).join("../build-version"))
        .unwrap_or_else(|_| "unknown".into());
    println!("cargo:rustc-env=LIBTORCH_VERSION={}", version.trim());
    println!("cargo:rustc-link-arg=-Wl,-rpath,{dir}");
}
