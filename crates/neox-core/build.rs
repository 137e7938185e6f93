//! Lets this crate's own tests, doctests and examples find libtorch without `LD_LIBRARY_PATH`, and tells the build scripts of crates that
//! use this one where it is, as `DEP_NEOX_CORE_LIBTORCH_LIB`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let Ok(dir) = std::env::var("DEP_TCH_LIBTORCH_LIB") else {
        return; // feature `doc-only`: nothing is linked
    };
    println!("cargo::metadata=libtorch_lib={dir}");
    println!("cargo::rustc-link-arg=-Wl,-rpath,{dir}");
}
