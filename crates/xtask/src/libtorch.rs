//! Which libtorch the workspace is built with.
//!
//! The order is that of the build script of `torch-sys`, so that what is said here is what is linked.

use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::workspace;

/// A version of torch that our programs can be built for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Release {
    /// Of torch, without the patch: programs run with every patch of it.
    pub(crate) minor: &'static str,
    pub(crate) torch: &'static str,
    /// The version of tch that is made for it.
    pub(crate) tch: &'static str,
    /// Of CPython, as `3.11`: whose wheel of torch the digest is of. Only its C++ parts are used.
    pub(crate) python: &'static str,
    /// SHA-256 of the wheel for Linux x86-64.
    pub(crate) sha256: &'static str,
}

/// The newest is what the workspace itself is built with; the others are for wheels.
pub(crate) const RELEASES: &[Release] = &[
    Release {
        minor: "2.13",
        torch: VERSION,
        tch: "0.26.0",
        python: "3.11",
        sha256: "60fcdcb2f3876e21146cb4524ef06397d727ca9ad5f020818547e25075fe3cb7",
    },
    Release {
        minor: "2.11",
        torch: "2.11.0",
        tch: "0.24.0",
        python: "3.12",
        sha256: "0f68f4ac6d95d12e896c3b7a912b5871619542ec54d3649cf48cc1edd4dd2756",
    },
];

/// The version that the tch of the workspace is made for.
pub(crate) const VERSION: &str = "2.13.0";

impl Release {
    /// The one that the workspace itself is built with.
    pub(crate) fn of_workspace() -> &'static Self {
        &RELEASES[0]
    }

    /// The release of a minor version, such as `2.11`.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn of_minor(minor: &str) -> anyhow::Result<&'static Self> {
        let found = RELEASES.iter().find(|release| release.minor == minor);
        let known = RELEASES.iter().map(|release| release.minor);
        found.with_context(|| {
            format!(
                "no wheel can be made for torch {minor}, only for {}",
                known.collect::<Vec<_>>().join(", ")
            )
        })
    }

    /// Where the set-up keeps its libtorch.
    pub(crate) fn folder(&self, store: &Path) -> PathBuf {
        store.join(self.torch)
    }

    /// What the set-up has in that folder.
    ///
    /// # Errors
    /// If something is missing, or it is of another version.
    pub(crate) fn installed(&self, store: &Path) -> anyhow::Result<Libtorch> {
        let dir = self.folder(store);
        check(&dir.join("lib"), &dir.join("include"))?;
        match version_in(&dir) {
            Some(version) => check_version(&version, self.torch)?,
            None => bail!("file `build-version` not found in `{}`", dir.display()),
        }
        Ok(Libtorch::Installed {
            version: self.torch,
            dir,
        })
    }
}

/// A libtorch that was found and looks whole.
#[derive(Debug)]
pub(crate) enum Libtorch {
    /// The PyTorch package of the active Python, asked for with `LIBTORCH_USE_PYTORCH`.
    PyTorch { version: String, lib: PathBuf },
    /// The folder in `LIBTORCH` (its parts may be moved by `LIBTORCH_LIB` and `LIBTORCH_INCLUDE`).
    Own {
        version: Option<String>,
        lib: PathBuf,
    },
    /// What `cargo xtask setup` installed.
    Installed { version: &'static str, dir: PathBuf },
}

impl Libtorch {
    /// The folder of the shared libraries.
    pub(crate) fn lib(&self) -> PathBuf {
        match self {
            Self::PyTorch { lib, .. } | Self::Own { lib, .. } => lib.clone(),
            Self::Installed { dir, .. } => dir.join("lib"),
        }
    }

    fn kind(&self) -> &'static str {
        if find_library(&self.lib(), "torch_cuda").is_some() {
            "with CUDA"
        } else {
            "CPU only"
        }
    }
}

impl fmt::Display for Libtorch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (version, origin) = match self {
            Self::PyTorch { version, .. } => (version.as_str(), "LIBTORCH_USE_PYTORCH"),
            Self::Own { version, .. } => (
                version.as_deref().unwrap_or("of unknown version"),
                "LIBTORCH",
            ),
            Self::Installed { version, .. } => (*version, "installed by `cargo xtask setup`"),
        };
        let lib = self.lib();
        write!(
            f,
            "libtorch {version}, {}, in `{}` ({origin})",
            self.kind(),
            lib.display()
        )
    }
}

/// The libtorch that the environment asks for, if it does.
///
/// # Errors
/// If that one is not there, not whole, or of another version.
pub(crate) fn from_environment(store: &Path) -> anyhow::Result<Option<Libtorch>> {
    if env::var_os("LIBTORCH_USE_PYTORCH").is_some() {
        return from_pytorch().map(Some);
    }
    from_variables(&Release::of_workspace().folder(store))
}

/// Asks Python exactly as `torch-sys` does.
fn from_pytorch() -> anyhow::Result<Libtorch> {
    let python = if env::var_os("VIRTUAL_ENV").is_some() {
        "python"
    } else {
        "python3"
    };
    let script = "import torch; from torch.utils import cpp_extension as c; \
                  print(torch.__version__.split('+')[0]); print(c.library_paths()[0])";
    let found = workspace::answer(Command::new(python).args(["-c", script]));
    let Some((version, lib)) = found.as_deref().and_then(|text| text.split_once('\n')) else {
        bail!(
            "LIBTORCH_USE_PYTORCH is set, but `{python}` cannot import torch; \
             install torch {VERSION} there, or unset the variable"
        );
    };
    let (version, lib) = (version.trim().to_owned(), PathBuf::from(lib.trim()));
    check_version(&version, VERSION).context("LIBTORCH_USE_PYTORCH is set")?;
    Ok(Libtorch::PyTorch { version, lib })
}

/// The folder in `LIBTORCH`, unless that is only the one from `.cargo/config.toml`.
fn from_variables(installed: &Path) -> anyhow::Result<Option<Libtorch>> {
    let root = folder_in("LIBTORCH")?.filter(|dir| !same_path(dir, installed));
    let lib = folder_in("LIBTORCH_LIB")?;
    let include = folder_in("LIBTORCH_INCLUDE")?;
    if root.is_none() && lib.is_none() && include.is_none() {
        return Ok(None);
    }
    let root = root.unwrap_or_else(|| installed.to_path_buf());
    let lib = lib.as_ref().unwrap_or(&root).join("lib");
    let include = include.as_ref().unwrap_or(&root).join("include");
    let hint = || {
        format!(
            "LIBTORCH does not point to a usable libtorch {VERSION} \
             (unset it, and `cargo xtask setup` installs one)"
        )
    };
    check(&lib, &include).with_context(hint)?;
    let version = version_in(&root).or_else(|| version_of_headers(&include));
    if let Some(version) = &version {
        check_version(version, VERSION).with_context(hint)?;
    }
    Ok(Some(Libtorch::Own { version, lib }))
}

/// An absolute folder named by a variable.
fn folder_in(variable: &str) -> anyhow::Result<Option<PathBuf>> {
    let Some(value) = env::var_os(variable) else {
        return Ok(None);
    };
    let dir = PathBuf::from(value);
    if !dir.is_absolute() {
        // Build scripts run in the folder of their crate, wherever that is.
        bail!(
            "{variable} is `{}`, but must be an absolute path",
            dir.display()
        );
    }
    Ok(Some(dir))
}

fn same_path(a: &Path, b: &Path) -> bool {
    let canonical = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    a == b || canonical(a) == canonical(b)
}

/// Checks that everything `torch-sys` includes and links is there.
pub(crate) fn check(lib: &Path, include: &Path) -> anyhow::Result<()> {
    for name in ["torch_cpu", "torch", "c10"] {
        if find_library(lib, name).is_none() {
            bail!("library `lib{name}` not found in `{}`", lib.display());
        }
    }
    let header = include.join("torch/csrc/api/include/torch/torch.h");
    if !header.is_file() {
        bail!("header `{}` not found", header.display());
    }
    Ok(())
}

fn find_library(lib: &Path, name: &str) -> Option<PathBuf> {
    ["so", "dylib", "a"]
        .iter()
        .map(|extension| lib.join(format!("lib{name}.{extension}")))
        .find(|path| path.is_file())
}

/// The file name of a shared library here, such as `libtorch_cpu.so`.
pub(crate) fn file_name(name: &str) -> String {
    format!(
        "{}{name}{}",
        env::consts::DLL_PREFIX,
        env::consts::DLL_SUFFIX
    )
}

/// The content of `build-version`, without a suffix such as `+cu130`.
fn version_in(root: &Path) -> Option<String> {
    let text = fs::read_to_string(root.join("build-version")).ok()?;
    Some(text.trim().split('+').next()?.to_owned())
}

/// The version in the headers: a folder from a wheel has no `build-version`.
fn version_of_headers(include: &Path) -> Option<String> {
    let text = fs::read_to_string(include.join("torch/headeronly/version.h")).ok()?;
    let part = |name: &str| {
        let line = text.lines().find(|line| line.contains(name))?;
        line.rsplit(' ').next().map(str::to_owned)
    };
    Some(format!(
        "{}.{}.{}",
        part("TORCH_VERSION_MAJOR ")?,
        part("TORCH_VERSION_MINOR ")?,
        part("TORCH_VERSION_PATCH ")?
    ))
}

fn check_version(found: &str, wanted: &str) -> anyhow::Result<()> {
    if found != wanted && env::var_os("LIBTORCH_BYPASS_VERSION_CHECK").is_none() {
        bail!("libtorch has version {found}, but tch needs {wanted}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_release_is_that_of_the_workspace() {
        let newest = Release::of_workspace();
        assert_eq!(newest.torch, VERSION);
        let manifest = fs::read_to_string(workspace::root().join("Cargo.toml")).unwrap();
        for name in ["tch", "torch-sys"] {
            let line = format!("\n{name} = {{ version = \"{}\"", newest.tch);
            assert!(manifest.contains(&line), "{line}");
        }
    }

    #[test]
    fn releases_are_known_by_their_minor_version() {
        for release in RELEASES {
            assert!(release.torch.starts_with(&format!("{}.", release.minor)));
            assert_eq!(Release::of_minor(release.minor).unwrap(), release);
            assert_eq!(release.sha256.len(), 64);
        }
        let err = Release::of_minor("1.0").unwrap_err();
        assert_eq!(
            err.to_string(),
            "no wheel can be made for torch 1.0, only for 2.13, 2.11"
        );
    }
}
