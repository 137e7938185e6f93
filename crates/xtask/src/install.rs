//! Assembles a CPU-only libtorch from the wheels on PyPI.
//!
//! Everything happens in a staging folder that is renamed when it is whole; wheels that pip has
//! finished stay there until then, so that a second run goes on from them.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::libtorch::{self, Libtorch, Release};
use crate::python::Python;

/// Space for the wheels, pip's temporary and cached copies of them, and the result.
const SPACE_NEEDED: u64 = 2 << 30;

/// A wheel and what is taken out of it.
struct Wheel {
    name: &'static str,
    version: &'static str,
    /// Of CPython, as `3.11`, where the wheel is of one.
    python: &'static str,
    sha256: Option<&'static str>,
    /// Platform tags, also older ones that a wheel may carry instead.
    platforms: &'static [&'static str],
    /// Member and target; a whole folder where both end in `/`.
    rules: &'static [(&'static str, &'static str)],
}

const LINUX: &[&str] = &[
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_25_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
];

/// torch for Linux is a CUDA build whose CPU library still needs two small CUDA libraries; their
/// versions are those that torch 2.11.0 and 2.13.0 pin through cuda-toolkit 13.0.
fn linux_wheels(release: &'static Release) -> Vec<Wheel> {
    vec![
        Wheel {
            name: "torch",
            version: release.torch,
            python: release.python,
            sha256: Some(release.sha256),
            platforms: LINUX,
            rules: &[
                ("torch/lib/libtorch_cpu.so", "lib/libtorch_cpu.so"),
                ("torch/lib/libc10.so", "lib/libc10.so"),
                ("torch/lib/libgomp.so.1", "lib/libgomp.so.1"),
                ("torch/include/", "include/"),
            ],
        },
        Wheel {
            name: "nvidia-cuda-runtime",
            version: "13.0.96",
            python: release.python,
            sha256: Some("7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548"),
            platforms: LINUX,
            rules: &[("nvidia/cu13/lib/libcudart.so.13", "lib/libcudart.so.13")],
        },
        Wheel {
            name: "nvidia-cuda-cupti",
            version: "13.0.85",
            python: release.python,
            sha256: Some("4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8"),
            platforms: LINUX,
            rules: &[("nvidia/cu13/lib/libcupti.so.13", "lib/libcupti.so.13")],
        },
    ]
}

/// Written from the layout of the wheel; never run.
fn macos_wheels(release: &'static Release) -> Vec<Wheel> {
    vec![Wheel {
        name: "torch",
        version: release.torch,
        python: release.python,
        sha256: None,
        platforms: &[
            "macosx_14_0_arm64",
            "macosx_12_0_arm64",
            "macosx_11_0_arm64",
        ],
        rules: &[("torch/lib/", "lib/"), ("torch/include/", "include/")],
    }]
}

/// Installs the libtorch of a release below `store`, from PyPI or from a folder of wheels.
///
/// # Errors
/// If the platform has no recipe, the disk is short, pip fails, or a wheel is not as expected.
pub(crate) fn install(
    release: &'static Release,
    store: &Path,
    wheel_dir: Option<&Path>,
) -> anyhow::Result<Libtorch> {
    let wheels = match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "x86_64") => linux_wheels(release),
        ("macos", "aarch64") => macos_wheels(release),
        (os, arch) => bail!(
            "no recipe to install libtorch on {os} {arch}; \
             set LIBTORCH to a libtorch {0}, or LIBTORCH_USE_PYTORCH=1 with torch {0}",
            release.torch
        ),
    };
    let _lock = lock(store)?;
    // Another set-up may have finished while we waited.
    match release.installed(store) {
        Ok(found) => return Ok(found),
        Err(err) if release.folder(store).exists() => {
            eprintln!("setup: {err:#}; installing libtorch anew");
        }
        Err(_) => {}
    }

    let python = Python::find()?;
    let staging = Staging::open(store)?;
    check_space(python.free_space(store)?, SPACE_NEEDED, store)?;
    for wheel in &wheels {
        let path = staging.wheel(wheel, wheel_dir, &python)?;
        eprintln!("setup: unpacking {} {}", wheel.name, wheel.version);
        unpack(&python, wheel, wheel_dir.is_some(), &path, &staging.tree)?;
    }
    finish(&python, &staging.tree, release)?;
    let clean_up =
        |dir: &Path| remove(dir).with_context(|| format!("failed to remove `{}`", dir.display()));
    clean_up(&staging.wheels)?;
    replace(&staging.tree, &release.folder(store))?;
    clean_up(&staging.root)?;
    release.installed(store)
}

/// Waits until no other set-up works in `store`; the lock ends with the process.
pub(crate) fn lock(store: &Path) -> anyhow::Result<File> {
    let path = store.join("lock");
    let create = || {
        fs::create_dir_all(store)?;
        File::create(&path)
    };
    let file = create().with_context(|| format!("failed to create `{}`", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            eprintln!("setup: waiting for another set-up (`{}`)", path.display());
            file.lock()
                .with_context(|| format!("failed to lock `{}`", path.display()))?;
        }
        Err(TryLockError::Error(err)) => {
            return Err(err).context(format!("failed to lock `{}`", path.display()));
        }
    }
    Ok(file)
}

/// Fails unless `free` bytes are enough.
pub(crate) fn check_space(free: u64, needed: u64, dir: &Path) -> anyhow::Result<()> {
    if free < needed {
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        bail!(
            "the disk of `{}` has {:.1} GiB free, but the set-up needs {:.1} GiB",
            dir.display(),
            gib(free),
            gib(needed)
        );
    }
    Ok(())
}

/// Moves a finished folder to its final name, away with what was there.
pub(crate) fn replace(finished: &Path, target: &Path) -> anyhow::Result<()> {
    let mut old = target.as_os_str().to_owned();
    old.push(".old");
    let old = PathBuf::from(old);
    let swap = || -> io::Result<()> {
        remove(&old)?;
        if target.symlink_metadata().is_ok() {
            fs::rename(target, &old)?;
        }
        fs::rename(finished, target)?;
        remove(&old)
    };
    swap().with_context(|| format!("failed to move `{}` into place", target.display()))
}

/// Removes a folder or link; nothing there is fine.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(err) => Err(err),
    };
    match removed {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The folders of an installation under way.
struct Staging {
    root: PathBuf,
    wheels: PathBuf,
    temp: PathBuf,
    tree: PathBuf,
}

impl Staging {
    /// Keeps finished wheels of an earlier run and nothing else.
    fn open(store: &Path) -> anyhow::Result<Self> {
        let root = store.join("staging");
        let staging = Self {
            wheels: root.join("wheels"),
            temp: root.join("temp"),
            tree: root.join("tree"),
            root,
        };
        let prepare = || -> io::Result<()> {
            remove(&staging.temp)?;
            remove(&staging.tree)?;
            fs::create_dir_all(&staging.wheels)?;
            fs::create_dir_all(&staging.temp)?;
            fs::create_dir_all(&staging.tree)
        };
        prepare().with_context(|| format!("failed to prepare `{}`", staging.root.display()))?;
        Ok(staging)
    }

    /// The file of a wheel: given, kept from an earlier run, or downloaded now.
    fn wheel(
        &self,
        wheel: &Wheel,
        wheel_dir: Option<&Path>,
        python: &Python,
    ) -> anyhow::Result<PathBuf> {
        if let Some(dir) = wheel_dir {
            return find_wheel(dir, wheel)?.with_context(|| wheel.not_found(dir));
        }
        if let Some(kept) = find_wheel(&self.wheels, wheel)? {
            return Ok(kept);
        }
        eprintln!("setup: downloading {} {}", wheel.name, wheel.version);
        // Only the C++ parts are used, so one Python version serves every machine.
        let mut args = vec!["download", "--no-deps", "--only-binary=:all:"];
        args.extend(["--implementation", "cp"]);
        let abi = format!("cp{}", wheel.python.replace('.', ""));
        args.extend(["--python-version", wheel.python, "--abi", &abi]);
        for platform in wheel.platforms {
            args.extend(["--platform", platform]);
        }
        let (dest, what) = (self.wheels.to_string_lossy(), wheel.requirement());
        args.extend(["--dest", &dest, &what]);
        python
            .pip(&args, &self.temp)
            .with_context(|| format!("failed to download {what}; run the same command again"))?;
        find_wheel(&self.wheels, wheel)?.with_context(|| wheel.not_found(&self.wheels))
    }
}

impl Wheel {
    fn requirement(&self) -> String {
        format!("{}=={}", self.name, self.version)
    }

    fn not_found(&self, dir: &Path) -> String {
        format!(
            "no wheel of {} found in `{}`",
            self.requirement(),
            dir.display()
        )
    }
}

/// The wheel of that name and version in a folder.
fn find_wheel(dir: &Path, wheel: &Wheel) -> anyhow::Result<Option<PathBuf>> {
    let start = format!("{}-{}", wheel.name.replace('-', "_"), wheel.version);
    let is_it = |name: &str| {
        // What follows is the rest of the file name or of a local version.
        let rest = name.strip_prefix(&start).unwrap_or_default();
        rest.starts_with(['-', '+']) && rest.ends_with(".whl")
    };
    let entries =
        fs::read_dir(dir).with_context(|| format!("failed to read `{}`", dir.display()))?;
    for entry in entries {
        let path = entry
            .with_context(|| format!("failed to read `{}`", dir.display()))?
            .path();
        if path
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(is_it)
        {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Takes what is needed out of a wheel; a downloaded one that is not as published is removed.
fn unpack(
    python: &Python,
    wheel: &Wheel,
    given: bool,
    path: &Path,
    tree: &Path,
) -> anyhow::Result<()> {
    let digest = if given { None } else { wheel.sha256 };
    let mut args = vec!["unpack".into(), path.into(), digest.unwrap_or("-").into()];
    args.push(tree.into());
    for (member, target) in wheel.rules {
        args.push(format!("{member}={target}").into());
    }
    let done = python.script(&args);
    if done.is_err() && !given {
        remove(path).with_context(|| format!("failed to remove `{}`", path.display()))?;
    }
    done.map(drop)
        .with_context(|| format!("failed to unpack {}", wheel.requirement()))
}

/// Adds what the wheels lack, tries the result, and stamps it with its version.
fn finish(python: &Python, tree: &Path, release: &Release) -> anyhow::Result<()> {
    let lib = tree.join("lib");
    #[cfg(target_os = "linux")]
    {
        // torch-sys links `libtorch`, which only refers to `libtorch_cpu`.
        let link = lib.join("libtorch.so");
        std::os::unix::fs::symlink("libtorch_cpu.so", &link)
            .with_context(|| format!("failed to create `{}`", link.display()))?;
    }
    libtorch::check(&lib, &tree.join("include"))?;
    let main = lib.join(libtorch::file_name("torch_cpu"));
    python.script(&["load".into(), main.into()])?;
    let stamp = tree.join("build-version");
    fs::write(&stamp, format!("{}\n", release.torch))
        .with_context(|| format!("failed to write `{}`", stamp.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_disk_is_an_error_that_says_how_much() {
        let dir = Path::new("/data");
        assert!(check_space(2 << 30, 2 << 30, dir).is_ok());
        let err = check_space(3 << 29, 2 << 30, dir).unwrap_err();
        let expected = "the disk of `/data` has 1.5 GiB free, but the set-up needs 2.0 GiB";
        assert_eq!(err.to_string(), expected);
    }
}
