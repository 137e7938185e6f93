//! `cargo xtask wheel`: the programs as a Python wheel that runs on the libtorch of an installed torch.
//!
//! For another torch than the workspace's, the same sources are built with another tch: in a folder of links to them, whose manifest
//! alone is another.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::install::remove;
use crate::libtorch::Release;
use crate::python::{self, Python};
use crate::setup;
use crate::workspace::{self, root};

const MAKE: &str = include_str!("wheel/make.py");
const COMPARE: &str = include_str!("wheel/compare.py");
/// Functions of which glibc has a version newer than [`OLDEST_GLIBC`].
const OLDER_GLIBC: &str = "crates/xtask/src/wheel/older_glibc.c";
/// That of many clusters; programs that ask for a newer one do not start there.
const OLDEST_GLIBC: (u32, u32) = (2, 34);
/// The programs that hold all jobs; `launch.py` knows which of them needs torch.
const PROGRAMS: [&str; 2] = ["longtail-neurons", "longtail-neurons-torch"];
/// From `site-packages/longtail_neurons/bin` to the libraries of torch.
const RPATH: &str = "$ORIGIN/../../torch/lib";
/// What the manifest of the workspace needs beside it.
const LINKED: [&str; 8] = [
    "README.md",
    "bins",
    "configs",
    "crates",
    "docs",
    "examples",
    "rust-toolchain.toml",
    "tests",
];
/// What `libtorch_cpu.so` of a CUDA build loads besides torch itself.
const CUDA_PARTS: [&str; 2] = ["nvidia-cuda-runtime==13.0.*", "nvidia-cuda-cupti==13.0.*"];

/// Options of the wheel.
#[derive(Debug, clap::Args)]
pub(crate) struct WheelArgs {
    /// The minor version of torch that the programs are to run on
    #[arg(long, value_name = "VERSION", default_value = Release::of_workspace().minor)]
    torch: String,
    /// Install it in a new virtual environment, run jobs from an empty folder, and compare their values with the native build's
    #[arg(long)]
    check: bool,
    /// Leave out the bundled model, texts and counts (15 MB), which `--check` needs
    #[arg(long, conflicts_with = "check")]
    without_data: bool,
    /// Where the wheel goes [default: target/wheel/VERSION]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(crate) fn wheel(args: &WheelArgs) -> anyhow::Result<()> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!("wheels are made for Linux x86-64 only, and there");
    }
    let release = Release::of_minor(&args.torch)?;
    let folder = root().join("target/wheel").join(release.minor);
    let out = args.out.clone().unwrap_or_else(|| folder.clone());
    let programs = build(release, &folder)?;
    let python = Python::find()?;
    let share: &[&str] = match args.without_data {
        true => &["configs"],
        false => &["configs", "examples/data"],
    };
    let spec = spec(release, &programs, share, &out)?;
    let made: Value = serde_json::from_str(&python.code(MAKE, &[spec.to_string().into()])?)
        .context("the script that makes wheels wrote no valid JSON")?;
    let wheel = PathBuf::from(made["wheel"].as_str().unwrap_or_default());
    println!(
        "Wheel: {} ({:.1} MB), for torch {}, glibc {}, libstdc++ with GLIBCXX_{}",
        wheel.display(),
        made["bytes"].as_f64().unwrap_or_default() / 1e6,
        release.minor,
        made["glibc"].as_str().unwrap_or_default(),
        made["glibcxx"].as_str().unwrap_or_default()
    );
    match args.check {
        true => check(release, &folder, &wheel, &python),
        false => Ok(()),
    }
}

/// Builds the programs for a release; their paths.
fn build(release: &'static Release, folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let libtorch = setup::installed(release, &setup::default_store(), None)?;
    eprintln!("setup: {libtorch}");
    let (workspace, target) = (folder.join("workspace"), folder.join("target"));
    lay_out(release, &workspace)
        .with_context(|| format!("failed to lay out `{}`", workspace.display()))?;
    let mut cargo = workspace::cargo(["build", "--release", "--target-dir"]);
    cargo.arg(&target).current_dir(&workspace);
    for program in PROGRAMS {
        cargo.args(["--bin", program]);
    }
    for variable in ["LIBTORCH_USE_PYTORCH", "LIBTORCH_LIB", "LIBTORCH_INCLUDE"] {
        cargo.env_remove(variable);
    }
    let libtorch = release.folder(&setup::default_store());
    // One path, however it is reached: the C++ part is compiled anew for another.
    let libtorch = fs::canonicalize(&libtorch)
        .with_context(|| format!("failed to find `{}`", libtorch.display()))?;
    cargo.env("LIBTORCH", libtorch);
    cargo.env("LONGTAIL_RPATH", RPATH);
    cargo.env("CARGO_ENCODED_RUSTFLAGS", with_older_glibc(folder)?);
    workspace::run(&mut cargo)?;
    let programs = PROGRAMS.map(|name| target.join("release").join(name));
    for program in &programs {
        check_runpath(program)?;
        warn_of_newer_glibc(program)?;
    }
    Ok(programs.into())
}

/// Compiles our versions of functions of glibc; the flags of rustc that link them.
fn with_older_glibc(folder: &Path) -> anyhow::Result<String> {
    let object = folder.join("older_glibc.o");
    let mut cc = Command::new("cc");
    cc.args(["-c", "-O2", "-fPIC", "-fno-math-errno", "-o"]);
    workspace::run(cc.arg(&object).arg(root().join(OLDER_GLIBC)))?;
    let own = env::var("RUSTFLAGS").unwrap_or_default();
    let link = format!("-Clink-arg={}", object.display());
    let flags: Vec<&str> = own.split_whitespace().chain([link.as_str()]).collect();
    Ok(flags.join("\x1f"))
}

/// Says which functions of a program ask for a newer glibc than many clusters have.
fn warn_of_newer_glibc(program: &Path) -> anyhow::Result<()> {
    let mut readelf = Command::new("readelf");
    readelf.args(["--wide", "--dyn-syms"]).arg(program);
    let symbols = workspace::answer(&mut readelf)
        .context("`readelf --dyn-syms` failed; it comes with the C compiler (binutils)")?;
    let newer = newer_symbols(&symbols);
    if !newer.is_empty() {
        let (major, minor) = OLDEST_GLIBC;
        eprintln!(
            "warning: `{}` needs a newer glibc than {major}.{minor}, for {}: see `{OLDER_GLIBC}`, or build on an older distribution",
            program.display(),
            newer.join(", ")
        );
    }
    Ok(())
}

/// Symbols of glibc versions after [`OLDEST_GLIBC`] in what `readelf --dyn-syms` prints.
fn newer_symbols(symbols: &str) -> Vec<&str> {
    let is_newer = |symbol: &&str| {
        let version = symbol.split_once("@GLIBC_").map(|(_, version)| version);
        let mut parts = version.unwrap_or_default().split('.');
        let mut part = || parts.next().and_then(|part| part.parse().ok()).unwrap_or(0);
        (part(), part()) > OLDEST_GLIBC
    };
    let words = symbols
        .lines()
        .filter_map(|line| line.split_whitespace().nth(7));
    words.filter(is_newer).collect()
}

/// Makes a workspace of the same sources with the tch of a release.
fn lay_out(release: &Release, workspace: &Path) -> io::Result<()> {
    fs::create_dir_all(workspace)?;
    for name in LINKED {
        let link = workspace.join(name);
        if fs::read_link(&link).ok() != Some(root().join(name)) {
            remove(&link)?;
            #[cfg(unix)]
            std::os::unix::fs::symlink(root().join(name), &link)?;
        }
    }
    let manifest = with_tch(&fs::read_to_string(root().join("Cargo.toml"))?, release);
    let path = workspace.join("Cargo.toml");
    if fs::read_to_string(&path).ok().as_ref() != Some(&manifest) {
        fs::write(path, manifest)?;
    }
    // Cargo changes the lock file for the other tch; it starts again from ours where that is newer.
    let (ours, its) = (root().join("Cargo.lock"), workspace.join("Cargo.lock"));
    let time = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok();
    if time(&its) < time(&ours) {
        fs::copy(ours, its)?;
    }
    Ok(())
}

/// The manifest of the workspace with the versions of tch and torch-sys that are made for a release.
fn with_tch(manifest: &str, release: &Release) -> String {
    let newest = format!("version = \"{}\"", Release::of_workspace().tch);
    let line = |line: &str| match line.starts_with("tch = ") || line.starts_with("torch-sys = ") {
        true => line.replace(&newest, &format!("version = \"{}\"", release.tch)),
        false => line.to_owned(),
    };
    manifest.lines().map(|text| line(text) + "\n").collect()
}

/// Fails if a program looks for libraries at a place that only this machine has.
fn check_runpath(program: &Path) -> anyhow::Result<()> {
    let dynamic = workspace::answer(Command::new("readelf").arg("-d").arg(program))
        .context("`readelf -d` failed; it comes with the C compiler (binutils)")?;
    let paths = run_paths(&dynamic);
    let needs_torch = dynamic.contains("[libtorch");
    if paths.iter().any(|path| *path != RPATH) || (needs_torch && paths.is_empty()) {
        bail!(
            "`{}` looks for libraries in {paths:?}, expected `{RPATH}`",
            program.display()
        );
    }
    Ok(())
}

/// The folders of RPATH and RUNPATH in what `readelf -d` prints.
fn run_paths(dynamic: &str) -> Vec<&str> {
    let lines = dynamic
        .lines()
        .filter(|line| line.contains("(RUNPATH)") || line.contains("(RPATH)"));
    lines
        .filter_map(|line| line.split_once('[')?.1.strip_suffix(']'))
        .flat_map(|paths| paths.split(':'))
        .collect()
}

/// What the script that makes the wheel is told.
fn spec(
    release: &Release,
    programs: &[PathBuf],
    share: &[&str],
    out: &Path,
) -> anyhow::Result<Value> {
    let packages = workspace::packages()?;
    let package = packages
        .iter()
        .find(|package| package["name"] == PROGRAMS[0])
        .with_context(|| format!("the workspace has no package `{}`", PROGRAMS[0]))?;
    let version = package["version"].as_str().unwrap_or_default();
    Ok(json!({
        "root": root(),
        "package": root().join("crates/xtask/src/wheel/longtail_neurons"),
        "programs": programs,
        "share": share,
        "out": out,
        // Wheels for several versions of torch lie in one folder.
        "version": format!("{version}+torch{}", release.minor),
        "torch": release.minor,
        "license": package["license"],
        "homepage": package["repository"],
        "jobs": jobs(&packages),
    }))
}

/// The jobs, with the program that holds each: what the packages of the programs use of `bins`.
fn jobs(packages: &[Value]) -> BTreeMap<String, &'static str> {
    let named = |name: &str| packages.iter().find(|package| package["name"] == name);
    let is_job = |name: &str| {
        let manifest = named(name).and_then(|package| package["manifest_path"].as_str());
        manifest.is_some_and(|path| path.ends_with(&format!("/bins/{name}/Cargo.toml")))
    };
    PROGRAMS
        .into_iter()
        .flat_map(|program| {
            let uses = named(program).and_then(|package| package["dependencies"].as_array());
            let names = uses.into_iter().flatten();
            names
                .filter_map(|used| used["name"].as_str())
                .filter(|name| is_job(name))
                .map(move |name| (name.to_owned(), program))
        })
        .collect()
}

/// Installs the wheel as a user does, runs it from an empty folder, and compares its values with those of the native build.
fn check(release: &Release, folder: &Path, wheel: &Path, python: &Python) -> anyhow::Result<()> {
    let venv = folder.join("venv");
    let interpreter = python::interpreter(&venv);
    if !interpreter.exists() {
        python.venv(&venv)?;
    }
    let pip = |args: &[&str]| {
        let mut pip = Command::new(&interpreter);
        pip.args(["-m", "pip", "--disable-pip-version-check", "install"]);
        workspace::run(pip.args(args))
    };
    // Nothing imports torch, so that what it imports need not be there: its libraries are all that is used.
    let torch = format!("torch=={}", release.torch);
    pip(&["--no-deps", &torch, CUDA_PARTS[0], CUDA_PARTS[1]])?;
    pip(&["pyarrow"])?;
    let wheel = wheel.to_string_lossy();
    pip(&["--no-deps", "--force-reinstall", &wheel])?;

    let empty = folder.join("check");
    let prepare = || {
        remove(&empty)?;
        fs::create_dir(&empty)
    };
    prepare().with_context(|| format!("failed to prepare `{}`", empty.display()))?;
    let commands = interpreter.parent().unwrap_or(&venv);
    let installed = |program: &str, args: &[&str]| {
        let mut command = Command::new(commands.join(program));
        command.env_remove("LD_LIBRARY_PATH").current_dir(&empty);
        workspace::run(command.args(args))
    };
    installed("python", &["-m", "longtail_neurons", "--where"])?;
    let words = ["tokenizer=tiny-neox", "frequency=tiny-neox", "-q"];
    installed("select-longtail", &words)?;
    let sweep = ["-m", "-q", words[0], words[1], "words.min_length=3,4"];
    installed("select-longtail", &sweep)?;
    let quick = ["ablation=quick", "-q"];
    installed("ablate-unigram", &quick)?;

    let native = workspace::executables(&["--workspace", "--bin", PROGRAMS[1]])?;
    let native = native
        .get(PROGRAMS[1])
        .context("cargo named no executable")?;
    let mut command = Command::new(native);
    command.arg("ablate-unigram").args(quick);
    command.arg("output.dir=native").current_dir(&empty);
    workspace::run(&mut command)?;
    let mut compare = Command::new(&interpreter);
    compare.args(["-c", COMPARE]).current_dir(&empty);
    compare.args([
        "outputs/ablate-unigram/neurons.parquet",
        "native/neurons.parquet",
    ]);
    let same = workspace::output(&mut compare)?;
    println!("Wheel and native build: {same}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tch_changes_in_the_manifest() {
        let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
        for release in crate::libtorch::RELEASES {
            let changed = with_tch(&manifest, release);
            let lines = manifest.lines().zip(changed.lines());
            let new: Vec<&str> = lines.filter(|(a, b)| a != b).map(|(_, b)| b).collect();
            match release == Release::of_workspace() {
                true => assert_eq!(changed, manifest),
                false => {
                    assert_eq!(new.len(), 2, "{new:?}");
                    let version = format!("\"{}\"", release.tch);
                    assert!(new.iter().all(|line| line.contains(&version)), "{new:?}");
                }
            }
        }
    }

    #[test]
    fn the_jobs_are_those_of_the_programs() {
        let jobs = jobs(&workspace::packages().unwrap());
        for program in PROGRAMS {
            let main = root().join("bins").join(program).join("src/main.rs");
            let main = fs::read_to_string(main).unwrap();
            let named: Vec<&str> = main
                .lines()
                .filter_map(|line| line.trim().strip_prefix("(\"")?.split('"').next())
                .collect();
            let listed = jobs.iter().filter(|(_, of)| **of == program);
            let listed: Vec<&str> = listed.map(|(name, _)| name.as_str()).collect();
            assert_eq!(named, listed, "{program}");
        }
    }

    #[test]
    fn symbols_of_a_newer_glibc_are_found() {
        let symbols = "Symbol table '.dynsym' contains 3 entries:\n   \
            Num:    Value          Size Type    Bind   Vis      Ndx Name\n     \
            1: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND hypotf@GLIBC_2.35 (2)\n     \
            2: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND pthread_join@GLIBC_2.34 (3)\n     \
            3: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND memcpy@GLIBC_2.14 (4)\n     \
            4: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND _ZdlPv@GLIBCXX_3.4 (5)\n";
        assert_eq!(newer_symbols(symbols), ["hypotf@GLIBC_2.35"]);
    }

    #[test]
    fn older_functions_are_linked_in() {
        let folder = tempfile::tempdir().unwrap();
        let flags = with_older_glibc(folder.path()).unwrap();
        assert!(flags.ends_with("older_glibc.o"), "{flags}");
        let object = folder.path().join("older_glibc.o");
        let symbols = workspace::answer(Command::new("nm").arg(object)).unwrap();
        assert!(symbols.contains("T hypotf"), "{symbols}");
        // It asks for nothing itself.
        assert!(!symbols.contains(" U "), "{symbols}");
    }

    #[test]
    fn run_paths_are_found() {
        let dynamic = " 0x1 (NEEDED)   Shared library: [libtorch_cpu.so]\n \
                       0x1d (RUNPATH)  Library runpath: [$ORIGIN/../../torch/lib:/opt/x]\n";
        assert_eq!(run_paths(dynamic), [RPATH, "/opt/x"]);
        assert_eq!(run_paths(""), [""; 0]);
    }
}
