//! The Python with PyTorch that timings are compared with.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::Setting;
use crate::machine::device_name;

const SCRIPT: &str = include_str!("python/timing.py");

/// A child that is ended when it is dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Best effort: it may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the script on a list of tasks; `each` gets every result as it comes, until the limit.
///
/// # Errors
/// If it fails or does not end in time; the results so far were handed on.
pub(crate) fn run(
    setting: &Setting,
    tasks: &Value,
    limit: Duration,
    each: &mut dyn FnMut(&Value) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let put = |name: &str, text: &str| {
        let path = setting.folder.join(name);
        fs::write(&path, text).with_context(|| format!("failed to write `{}`", path.display()))?;
        Ok::<PathBuf, anyhow::Error>(path)
    };
    let (script, tasks) = (
        put("timing.py", SCRIPT)?,
        put("tasks.json", &tasks.to_string())?,
    );
    let errors = put("timing.err", "")?;
    let python = setting.python.clone().unwrap_or_else(|| "python3".into());
    let started = Instant::now();
    let child = Command::new(&python)
        .arg("-B")
        .args([&script, &tasks])
        .arg(device_name(setting.device))
        // Models are in the folder: nothing is to be asked of a hub.
        .env("HF_HUB_OFFLINE", "1")
        .env("TRANSFORMERS_VERBOSITY", "error")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(&errors)?)
        .spawn();
    let named = || {
        format!(
            "failed to start `{}`: name a Python that has torch with `--python`",
            python.display()
        )
    };
    let mut child = Ended(child.with_context(named)?);
    let (sender, lines) = channel();
    if let Some(stdout) = child.0.stdout.take() {
        thread::spawn(move || {
            let lines = BufReader::new(stdout).lines().map_while(Result::ok);
            // Nobody listens any more once the time is up.
            lines.map(|line| sender.send(line)).all(|sent| sent.is_ok());
        });
    }
    loop {
        match lines.recv_timeout(limit.saturating_sub(started.elapsed())) {
            // What else it prints is no result.
            Ok(line) => {
                if let Ok(result) = serde_json::from_str(&line) {
                    each(&result)?;
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                bail!("PyTorch took more than {} s and was ended", limit.as_secs())
            }
        }
    }
    let status = child.0.wait()?;
    if !status.success() {
        bail!(
            "`{}` failed ({status}; it needs torch and numpy, and `--python` names another): {}",
            python.display(),
            last_line(&errors)
        );
    }
    Ok(())
}

fn last_line(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let last = text.lines().rfind(|line| !line.trim().is_empty());
    last.unwrap_or("it says nothing").to_owned()
}
