//! Whether two tables of effects say the same.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use serde_json::Value;

use super::Setting;
use super::environment::script;
use super::process::Program;
use super::rounds::Agreement;

/// PyTorch's own float32 `log_softmax` is off by this much at 50,304 tokens, nats.
pub(super) const TOLERANCE: &str = "3e-4";

/// Runs each of ours over the rows that PyTorch did, and compares the table that it writes with each of PyTorch's.
pub(super) fn agree(
    setting: &Setting,
    ours: &[(impl Display, Program, PathBuf)],
    theirs: &[(impl Display, PathBuf)],
) -> anyhow::Result<Agreement> {
    let (mut equal, mut said) = (true, Vec::new());
    for (label, program, table) in ours {
        program.run()?;
        for (way, of_theirs) in theirs {
            let found = same_effects(setting, table, of_theirs, TOLERANCE)?;
            equal &= found.equal;
            said.push(format!("{label} and {way}: {}", found.text));
        }
    }
    Ok(Agreement {
        equal,
        text: format!("{}; allowed {TOLERANCE}.", said.join("; ")),
    })
}

/// Compares the effects that two tables have both.
pub(super) fn same_effects(
    setting: &Setting,
    ours: &Path,
    theirs: &Path,
    tolerance: &str,
) -> anyhow::Result<Agreement> {
    let mut python = Command::new(setting.pytorch.python());
    python
        .args(["-B", &script("agreement.py")])
        .args([ours, theirs])
        .args(["--atol", tolerance]);
    let output = python
        .output()
        .context("failed to start `agreement.py`, which compares the values")?;
    let answer = String::from_utf8_lossy(&output.stdout);
    let answer: Value = serde_json::from_str(answer.trim()).unwrap_or_default();
    let text = match answer["largest_difference"].as_f64() {
        Some(largest) => format!(
            "{} rows, {} columns, largest difference {largest:.1e}",
            answer["rows"], answer["columns"]
        ),
        None => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    };
    Ok(Agreement {
        equal: output.status.success(),
        text,
    })
}
