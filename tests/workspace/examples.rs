//! The examples are short and run, and a project outside the workspace is as the README says.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// Each example, and what it prints among other things.
const EXAMPLES: &[(&str, &str)] = &[
    ("ablate_neurons", "neuron 3.193: total effect 0."),
    ("long_tail", "word\tZipf\tcontexts\tthe first of them\n"),
    ("metrics", "FirstPiece: 2.000 bits\nCorrected: 3.152 bits\n"),
    ("own_intervention", " nats per word ("),
    (
        "record_activations",
        "residual stream after the last block: [1, ",
    ),
    ("word_surprisals", "word\tbits\twithout 3.17\nThe\t"),
];

/// Lines of code that an example may have, imports aside.
const LINES: usize = 40;

/// The folder that this test was built in, `target/debug` as a rule: whatever else it needs is there already.
fn built() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    Ok(test.ancestors().nth(2).ok_or("no folder")?.to_owned())
}

/// `cargo build` into that folder, with the same profile and nothing from the network.
fn cargo_build() -> Result<Command> {
    let built = built()?;
    let profile = match built.file_name().and_then(|name| name.to_str()) {
        Some("debug") => "dev",
        Some(profile) => profile,
        None => return Err("no profile".into()),
    };
    let mut command = Command::new(env!("CARGO"));
    command
        .args(["build", "--offline", "--profile", profile, "--target-dir"])
        .arg(built.parent().ok_or("no target folder")?)
        .current_dir(ROOT);
    Ok(command)
}

/// What a program prints; an error with all that it said where it fails.
fn printed(command: &mut Command) -> Result<String> {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output()?;
    if !status.success() {
        let said = String::from_utf8_lossy(&stderr).into_owned();
        return Err(format!("{command:?} failed:\n{said}").into());
    }
    Ok(String::from_utf8(stdout)?)
}

#[test]
fn examples_run() -> Result<()> {
    let mut build = cargo_build()?;
    build.arg("--workspace");
    for (name, _) in EXAMPLES {
        build.args(["--example", name]);
    }
    printed(&mut build)?;
    for (name, expected) in EXAMPLES {
        let found = printed(&mut Command::new(built()?.join("examples").join(name)))?;
        assert!(
            found.contains(expected),
            "`{name}` printed no {expected:?}:\n{found}"
        );
    }
    Ok(())
}

/// Lines that are neither blank, comments nor imports.
fn lines_of_code(text: &str) -> usize {
    let mut importing = false;
    let is_code = |line: &&str| {
        let line = line.trim();
        importing |= line.starts_with("use ");
        let code = !importing && !line.is_empty() && !line.starts_with("//");
        importing &= !line.ends_with(';');
        code
    };
    text.lines().filter(is_code).count()
}

#[test]
fn examples_are_short_and_all_are_run() -> Result<()> {
    let mut names = Vec::new();
    for entry in fs::read_dir(Path::new(ROOT).join("examples"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "rs") {
            let lines = lines_of_code(&fs::read_to_string(&path)?);
            assert!(
                lines <= LINES,
                "`{}` has {lines} lines of code, at most {LINES} are wanted",
                path.display()
            );
            let stem = path.file_stem().ok_or("no name")?;
            names.push(stem.to_string_lossy().into_owned());
        }
    }
    names.sort();
    let run: Vec<&str> = EXAMPLES.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, run);
    Ok(())
}

/// The program of the project outside this workspace, built in it.
#[test]
fn the_program_of_the_own_project_runs() -> Result<()> {
    printed(cargo_build()?.args(["--workspace", "--example", "own_project"]))?;
    let model = Path::new(ROOT).join("examples/data/tiny-neox");
    let program = built()?.join("examples/own_project");
    let found = printed(
        Command::new(&program)
            .arg(model.join("step4000"))
            .arg(model.join("tokenizer.json"))
            .arg("The great whale rose"),
    )?;
    let first = |line: &str| line.split_whitespace().next().map(str::to_owned);
    let words: Vec<String> = found.lines().filter_map(first).collect();
    assert_eq!(words, ["The", "great", "whale", "rose"]);

    let usage = printed(&mut Command::new(program)).unwrap_err().to_string();
    assert!(usage.contains("usage: own-project CHECKPOINT"), "{usage}");
    Ok(())
}

/// What the project asks for can be had, from outside the workspace and with the versions that it has; building it compiles all of it once
/// more, which `cargo xtask own-project` does.
#[test]
fn the_own_project_resolves_outside_the_workspace() -> Result<()> {
    let root = Path::new(ROOT).canonicalize()?;
    let from = root.join("examples/own-project");
    let outside = tempfile::tempdir()?;
    fs::create_dir(outside.path().join("src"))?;
    for file in ["build.rs", "src/main.rs"] {
        fs::copy(from.join(file), outside.path().join(file))?;
    }
    fs::copy(root.join("Cargo.lock"), outside.path().join("Cargo.lock"))?;
    let manifest = fs::read_to_string(from.join("Cargo.toml"))?;
    let crates = format!("{}/crates/", root.display());
    let manifest = manifest.replace("../../crates/", &crates);
    fs::write(outside.path().join("Cargo.toml"), manifest)?;
    // What other systems would need besides was never downloaded here.
    let rustc = printed(Command::new("rustc").arg("-vV"))?;
    let host = rustc
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .ok_or("rustc does not say its host")?;
    let metadata = printed(
        Command::new(env!("CARGO"))
            .args(["metadata", "--offline", "--format-version", "1"])
            .args(["--filter-platform", host])
            .current_dir(outside.path()),
    )?;
    let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
    let names = |key: &str| -> Vec<&str> {
        let packages = metadata[key].as_array().into_iter().flatten();
        packages
            .filter_map(|package| package["name"].as_str())
            .collect()
    };
    let packages = names("packages");
    assert!(packages.contains(&"neuron-ablate"));
    // Whoever wants a forward gets no HTTP client, no command line and no tables.
    for heavy in [
        "ureq", "hf-hub", "rustls", "clap", "arrow", "parquet", "resvg",
    ] {
        assert!(
            !packages.contains(&heavy),
            "the project would compile `{heavy}`"
        );
    }
    Ok(())
}

/// The profile in the project is ours, as far as it is of crates that it uses; else its dependencies would be compiled once more for the test above.
#[test]
fn profiles_of_the_project_are_ours() -> Result<()> {
    let sections = |path: &str| -> Result<Vec<String>> {
        let text = fs::read_to_string(Path::new(ROOT).join(path))?;
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let text: Vec<&str> = lines.collect();
        let parts = text.join("\n");
        let parts = parts.split("\n[").map(|part| part.trim().to_owned());
        Ok(parts
            .filter(|part| part.starts_with("profile.dev"))
            .collect())
    };
    let ours = sections("Cargo.toml")?;
    let project = sections("examples/own-project/Cargo.toml")?;
    assert!(project.len() >= 5);
    for section in project {
        assert!(ours.contains(&section), "not in ours: [{section}");
    }
    Ok(())
}
