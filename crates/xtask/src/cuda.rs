//! Installs the CUDA build: the torch wheel with all its dependencies. Written, but never run on a GPU.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};

use crate::install::{check_space, lock, remove, replace};
use crate::libtorch::{self, Libtorch, Release, VERSION};
use crate::python::Python;
use crate::workspace;

/// 4.7 GB installed, and as much again while pip works.
const SPACE_NEEDED: u64 = 10 << 30;

/// Installs torch for CUDA beside the CPU build and makes it the one that cargo finds.
///
/// # Errors
/// If the platform has no CUDA wheels, the disk is short, or pip fails.
pub(crate) fn install(store: &Path) -> anyhow::Result<Libtorch> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!("`--cuda` installs wheels for Linux x86-64 only; set LIBTORCH instead");
    }
    let _lock = lock(store)?;
    let site = store.join(format!("{VERSION}-cuda"));
    if !site.exists() {
        let python = Python::find()?;
        check_space(python.free_space(store)?, SPACE_NEEDED, store)?;
        let staging = store.join("staging-cuda");
        let (tree, temp) = (staging.join("tree"), staging.join("temp"));
        let prepare = || {
            remove(&staging)?;
            fs::create_dir_all(&temp)
        };
        prepare().with_context(|| format!("failed to prepare `{}`", staging.display()))?;
        let target = tree.to_string_lossy();
        let torch = format!("torch=={VERSION}");
        let args = [
            "install",
            "--only-binary=:all:",
            "--target",
            &target,
            &torch,
        ];
        python
            .pip(&args, &temp)
            .with_context(|| format!("failed to install {torch}; run the same command again"))?;
        let torch = tree.join("torch");
        libtorch::check(&torch.join("lib"), &torch.join("include"))?;
        let main = torch.join("lib/libtorch_cuda.so");
        python.script(&["load".into(), main.into()])?;
        let stamp = torch.join("build-version");
        fs::write(&stamp, format!("{VERSION}\n"))
            .with_context(|| format!("failed to write `{}`", stamp.display()))?;
        replace(&tree, &site)?;
        remove(&staging).with_context(|| format!("failed to remove `{}`", staging.display()))?;
    }
    choose(store, &format!("{VERSION}-cuda/torch"))?;
    Release::of_workspace().installed(store)
}

/// Lets `.libtorch/2.13.0` point to the folder `torch` beside it, and has the build scripts look again.
fn choose(store: &Path, torch: &str) -> anyhow::Result<()> {
    let link = store.join("link");
    let make = || {
        remove(&link)?;
        #[cfg(unix)]
        std::os::unix::fs::symlink(torch, &link)?;
        Ok::<(), std::io::Error>(())
    };
    make().with_context(|| format!("failed to create `{}`", link.display()))?;
    replace(&link, &Release::of_workspace().folder(store))?;
    // The path stays the same, so cargo would not notice the change.
    for profile in ["dev", "release"] {
        workspace::run(&mut workspace::cargo([
            "clean",
            "--package",
            "torch-sys",
            "--profile",
            profile,
        ]))?;
    }
    Ok(())
}
