//! `cargo xtask own-project`: builds the project in `examples/own-project` as somebody else would, in another folder, and runs it.
//!
//! Everything that it uses is compiled once more (minutes; a later run only what has changed), so that no test does it.

use std::fs;
use std::process::Command;

use anyhow::{Context, ensure};

use crate::setup;
use crate::workspace::{cargo, output, root, run};

pub(crate) fn own_project() -> anyhow::Result<()> {
    setup::ensure()?;
    let (from, outside) = (
        root().join("examples/own-project"),
        std::env::temp_dir().join("longtail-own-project"),
    );
    fs::create_dir_all(outside.join("src"))
        .with_context(|| format!("failed to make the folder `{}`", outside.display()))?;
    let copy = |name: &str, text: String| {
        let path = outside.join(name);
        fs::write(&path, text).with_context(|| format!("failed to write `{}`", path.display()))
    };
    for (name, from) in [
        ("Cargo.toml", from.join("Cargo.toml")),
        ("build.rs", from.join("build.rs")),
        ("src/main.rs", from.join("src/main.rs")),
        // The versions that the workspace has.
        ("Cargo.lock", root().join("Cargo.lock")),
    ] {
        let text = fs::read_to_string(&from)
            .with_context(|| format!("failed to read `{}`", from.display()))?;
        let crates = format!("{}/crates/", root().display());
        copy(name, text.replace("../../crates/", &crates))?;
    }
    run(cargo(["build"]).current_dir(&outside))?;

    let model = root().join("examples/data/tiny-neox");
    let printed = output(
        Command::new(outside.join("target/debug/own-project"))
            .arg(model.join("step4000"))
            .arg(model.join("tokenizer.json"))
            .arg("The great whale rose")
            // It has to find libtorch by itself.
            .env_remove("LD_LIBRARY_PATH"),
    )?;
    println!("{printed}");
    ensure!(
        printed.lines().count() == 4,
        "the project printed something else than four words"
    );
    // Nothing else builds them without their default features.
    run(&mut cargo([
        "check",
        "--package=input-files",
        "--package=longtail-corpus",
        "--no-default-features",
    ]))
}
