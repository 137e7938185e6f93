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
    // None with the feature `doc-only`: nothing is linked.
    if let Ok(dir) = env::var("DEP_NEOX_CORE_LIBTORCH_LIB") {
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
