//! Lets the program find libtorch when it runs: `neox-core` says where the build has found it.

fn main() {
    if let Ok(folder) = std::env::var("DEP_NEOX_CORE_LIBTORCH_LIB") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{folder}");
    }
}
