//! Lets this crate's own tests, doctests and examples find libtorch without `LD_LIBRARY_PATH`, says which version it is, and tells the
//! build scripts of crates that use this one where it is, as `DEP_NEOX_CORE_LIBTORCH_LIB`.

use std::{env, fs, path::Path};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let Ok(dir) = env::var("DEP_TCH_LIBTORCH_LIB") else {
        println!("cargo::rustc-env=LIBTORCH_VERSION=none");
        return; // feature `doc-only`: nothing is linked
    };
    let version = fs::read_to_string(Path::new(&dir).join("../build-version"));
    let version = version.unwrap_or_else(|_| "unknown".into());
    println!("cargo::rustc-env=LIBTORCH_VERSION={}", version.trim());
    println!("cargo::metadata=libtorch_lib={dir}");
    println!("cargo::rustc-link-arg=-Wl,-rpath,{dir}");
}
