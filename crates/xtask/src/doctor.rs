//! `cargo xtask doctor`: what a build and a run would use here.

use std::process::Command;
use std::thread;

use crate::libtorch::{self, Release};
use crate::python::Python;
use crate::setup::default_store;
use crate::workspace::{answer, cargo, root};

pub(crate) fn doctor() -> anyhow::Result<()> {
    show("rustc", first_line(Command::new("rustc").arg("--version")));
    show("cargo", first_line(cargo(["--version"]).arg("--quiet")));
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    show("C++", first_line(Command::new(compiler).arg("--version")));
    let python = Python::find();
    show("Python", python.as_ref().ok().and_then(Python::version));
    show("pip", python.as_ref().ok().and_then(Python::pip_version));
    let store = default_store();
    let found = match libtorch::from_environment(&store) {
        Ok(Some(own)) => own.to_string(),
        Ok(None) => match Release::of_workspace().installed(&store) {
            Ok(installed) => installed.to_string(),
            Err(err) => format!("not installed ({err:#}); run `cargo xtask setup`"),
        },
        Err(err) => format!("{err:#}"),
    };
    show("libtorch", Some(found));
    let gpu = first_line(Command::new("nvidia-smi").arg("--list-gpus"));
    show(
        "GPU",
        Some(gpu.unwrap_or_else(|| "none visible".to_owned())),
    );
    let threads = thread::available_parallelism().ok();
    show("threads", threads.map(|n| n.to_string()));
    let free = python
        .ok()
        .and_then(|python| python.free_space(&root()).ok());
    show(
        "disk",
        free.map(|bytes| format!("{} GiB free", bytes >> 30)),
    );
    Ok(())
}

fn show(name: &str, value: Option<String>) {
    println!("{name:<9} {}", value.as_deref().unwrap_or("not found"));
}

fn first_line(command: &mut Command) -> Option<String> {
    answer(command)?.lines().next().map(str::to_owned)
}
