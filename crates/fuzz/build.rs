//! Lets this crate's own tests, doctests and examples find libtorch without `LD_LIBRARY_PATH`.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let Ok(dir) = std::env::var("DEP_NEOX_CORE_LIBTORCH_LIB") else {
        return; // feature `doc-only`: nothing is linked
    };
    println!("cargo:rustc-link-arg=-Wl,-rpath,{dir}");
}
