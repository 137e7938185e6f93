//! Lets this crate's own tests, doctests and examples find libtorch without `LD_LIBRARY_PATH`, and says of which code kept mean activations are.

use std::{
    env, fs,
    hash::{DefaultHasher, Hasher},
    io,
    path::{Path, PathBuf},
};

/// What mean activations come from: another version of it takes them anew.
const SOURCES: [&str; 2] = ["../neox-core/src", "../neuron-ablate/src"];

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    let mut files = Vec::new();
    for folder in SOURCES {
        println!("cargo:rerun-if-changed={folder}");
        collect(Path::new(folder), &mut files)?;
    }
    files.sort();
    let mut hash = DefaultHasher::new();
    for file in files {
        hash.write(&fs::read(file)?);
    }
    println!("cargo:rustc-env=MEANS_CODE={:016x}", hash.finish());
    let lib = env::var("DEP_NEOX_CORE_LIBTORCH_LIB");
    let version = lib.as_ref().map_or_else(
        |_| Ok("none".into()), // feature `doc-only`: nothing is linked
        |dir| fs::read_to_string(Path::new(dir).join("../build-version")),
    );
    let version = version.unwrap_or_else(|_: io::Error| "unknown".into());
    println!("cargo:rustc-env=LIBTORCH_VERSION={}", version.trim());
    if let Ok(dir) = lib {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{dir}");
    }
    Ok(())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        match path.is_dir() {
            true => collect(&path, files)?,
            false => files.push(path),
        }
    }
    Ok(())
}
