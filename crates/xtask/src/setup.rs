//! `cargo xtask setup`: makes sure there is a libtorch, and says which one.

use std::path::{Path, PathBuf};

use anyhow::bail;

use crate::libtorch::{self, Libtorch, Release};
use crate::workspace;
use crate::{cuda, install};

/// Options of the set-up.
#[derive(Debug, clap::Args)]
pub(crate) struct SetupArgs {
    /// Install the CUDA build (10 GiB) instead of the CPU parts (0.5 GiB)
    #[arg(long, conflicts_with = "wheel_dir")]
    cuda: bool,
    /// Take the wheels from this folder instead of downloading them with pip
    #[arg(long, value_name = "DIR")]
    wheel_dir: Option<PathBuf>,
    /// Keep libtorch in this folder; cargo looks only in `.libtorch`
    #[arg(long, value_name = "DIR", hide = true)]
    store: Option<PathBuf>,
}

/// The folder that `.cargo/config.toml` points into.
pub(crate) fn default_store() -> PathBuf {
    workspace::root().join(".libtorch")
}

/// The set-up as `test`, `demo`, `lint` and `bench` need it.
pub(crate) fn ensure() -> anyhow::Result<Libtorch> {
    let found = find_or_install(&default_store(), None)?;
    eprintln!("setup: {found}");
    Ok(found)
}

pub(crate) fn setup(args: &SetupArgs) -> anyhow::Result<()> {
    let store = args.store.clone().unwrap_or_else(default_store);
    let found = if args.cuda {
        if let Some(own) = libtorch::from_environment(&store)? {
            bail!("the environment already chooses {own}; unset it to install the CUDA build");
        }
        cuda::install(&store)?
    } else {
        find_or_install(&store, args.wheel_dir.as_deref())?
    };
    eprintln!("setup: {found}");
    Ok(())
}

fn find_or_install(store: &Path, wheel_dir: Option<&Path>) -> anyhow::Result<Libtorch> {
    if let Some(own) = libtorch::from_environment(store)? {
        return Ok(own);
    }
    installed(Release::of_workspace(), store, wheel_dir)
}

/// The libtorch of a release that the set-up keeps, whatever the environment says.
pub(crate) fn installed(
    release: &'static Release,
    store: &Path,
    wheel_dir: Option<&Path>,
) -> anyhow::Result<Libtorch> {
    match release.installed(store) {
        Ok(found) => Ok(found),
        Err(_) => install::install(release, store, wheel_dir),
    }
}
