//! The checkout and the commands run in it.

use std::collections::HashMap;
use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde_json::Value;

/// The folder of the root manifest.
pub(crate) fn root() -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    dir.ancestors().nth(2).unwrap_or(dir).to_path_buf()
}

/// `cargo ...` in the workspace, as if typed there.
///
/// What cargo sets for a program that it runs is taken away again: a build would see changed
/// variables and compile the C++ part once more.
pub(crate) fn cargo<I: IntoIterator<Item: AsRef<OsStr>>>(args: I) -> Command {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root()).args(args);
    for (name, _) in env::vars_os() {
        if let Some(name) = name.to_str()
            && (name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
        {
            command.env_remove(name);
        }
    }
    command
}

/// Builds what the arguments of `cargo build` ask for; name to path of every executable.
///
/// # Errors
/// If the build fails, with cargo's own messages shown.
pub(crate) fn executables(args: &[&str]) -> anyhow::Result<HashMap<String, PathBuf>> {
    let mut command = cargo(["build"]);
    command.args(args);
    eprintln!("$ {}", Shown(&command));
    command.arg("--message-format=json-render-diagnostics");
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("failed to start cargo")?;
    let mut found = HashMap::new();
    if let Some(stdout) = child.stdout.take() {
        let messages = serde_json::Deserializer::from_reader(BufReader::new(stdout));
        for message in messages.into_iter::<Value>() {
            let message = message.context("failed to read the messages of cargo")?;
            if let (Some(name), Some(path)) = (
                message["target"]["name"].as_str(),
                message["executable"].as_str(),
            ) {
                found.insert(name.to_owned(), PathBuf::from(path));
            }
        }
    }
    let status = child.wait().context("failed to wait for cargo")?;
    if !status.success() {
        bail!("`cargo build` failed: {status}");
    }
    Ok(found)
}

/// Prints the command and runs it; anything but success is an error.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let shown = Shown(command).to_string();
    eprintln!("$ {shown}");
    let status = command
        .status()
        .with_context(|| format!("failed to start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed: {status}");
    }
    Ok(())
}

/// Runs a command; its trimmed standard output.
///
/// # Errors
/// If it cannot start, or does not end with success.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let shown = Shown(command).to_string();
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("failed to start `{shown}`"))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() {
        bail!("`{shown}` failed: {}\n{text}", output.status);
    }
    Ok(text)
}

/// The trimmed standard output of a command, or `None` if it cannot run or fails.
pub(crate) fn answer(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success().then_some(text)
}

/// The packages of the workspace, as `cargo metadata` describes them.
pub(crate) fn packages() -> anyhow::Result<Vec<Value>> {
    let metadata = answer(&mut cargo([
        "metadata",
        "--no-deps",
        "--format-version",
        "1",
    ]))
    .context("`cargo metadata` failed")?;
    let metadata: Value =
        serde_json::from_str(&metadata).context("`cargo metadata` wrote no valid JSON")?;
    let packages = metadata["packages"].as_array();
    Ok(packages.cloned().unwrap_or_default())
}

/// A command as one would type it, the program without its folder.
pub(crate) struct Shown<'a>(pub(crate) &'a Command);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = Path::new(self.0.get_program());
        let name = program.file_name().unwrap_or(program.as_os_str());
        write!(f, "{}", name.to_string_lossy())?;
        for arg in self.0.get_args() {
            write!(f, " {}", arg.to_string_lossy())?;
        }
        Ok(())
    }
}
