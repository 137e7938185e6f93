//! Lets a binary find libtorch without `LD_LIBRARY_PATH`: where it was linked, or, for programs that are carried elsewhere, where
//! `LONGTAIL_RPATH` says. The build script of every binary that loads a model.

use std::env;

fn main() {
    println!("cargo:rerun-if-env-changed=LONGTAIL_RPATH");
    let rpath = env::var("LONGTAIL_RPATH").or_else(|_| env::var("DEP_NEOX_CORE_LIBTORCH_LIB"));
    let Ok(rpath) = rpath else {
        return; // feature `doc-only`: nothing is linked
    };
    println!("cargo:rustc-link-arg=-Wl,--enable-new-dtags,-rpath,{rpath}");
}
