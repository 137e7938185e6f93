//! What an audit says of a checkpoint, for jobs that would run on it.

use std::path::Path;

use anyhow::bail;
use neox_core::AuditRow;

use crate::config::ModelConfig;

/// Refuses a revision that the audit at `path` found bad, unless `model.allow_bad` is set; `instead` is what to do.
///
/// # Errors
/// - the findings, if it is bad
pub fn refuse_bad(
    path: &Path,
    rows: &[AuditRow],
    revision: &str,
    model: &ModelConfig,
    instead: &str,
) -> anyhow::Result<()> {
    match rows.iter().find(|row| row.revision == revision) {
        Some(row) if row.is_bad() && !model.allow_bad => {
            let findings: Vec<String> = row.findings.iter().map(ToString::to_string).collect();
            bail!(
                "the audit `{}` found {revision} bad ({}): {instead}, or set `model.allow_bad=true`",
                path.display(),
                findings.join("; ")
            )
        }
        _ => Ok(()),
    }
}
