//! What a result was measured on.

use std::fs;
use std::process::Command;

use super::environment::PyTorch;
use crate::workspace::{answer, cargo};

/// A paragraph for the report.
pub(crate) fn describe(pytorch: &PyTorch, threads: u32, profile: &str) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        text.lines()
            .find(|line| line.starts_with(name))
            .and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()))
    };
    let cpu = field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown CPU".into());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = field(&read("/proc/meminfo"), "MemTotal")
        .and_then(|text| text.split(' ').next()?.parse::<u64>().ok())
        .map_or_else(String::new, |kib| {
            format!(", {} GB memory", kib * 1024 / 1_000_000_000)
        });
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or("unknown");
    let rustc = answer(Command::new("rustc").arg("--version")).unwrap_or_default();
    let revision = answer(
        Command::new("git")
            .args(["rev-parse", "--short", "HEAD"])
            .current_dir(crate::workspace::root()),
    );
    let revision = revision.map_or_else(String::new, |hash| format!("; revision {hash}"));
    let cargo = answer(cargo(["--version"]).arg("--quiet"))
        .map_or_else(String::new, |_| format!(", profile {profile}"));
    format!(
        "Machine: {cpu}, {cores} cores{memory}; {threads} threads a side; load average at the start {load}\n\
         Ours: {rustc}{cargo}{revision}. Theirs: {}\n",
        pytorch.versions()
    )
}
