//! Checks of many checkpoints before a sweep relies on them.
//!
//! Several published Pythia revisions are known to hold wrong weights
//! (github.com/EleutherAI/pythia, issue 205); they show as two steps with the same content.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use model_conventions::{FileHash, WeightFiles};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::{Kind, Tensor};

use crate::architecture::Architecture;
use crate::error::LoadError;
use crate::family::Entry;
use crate::weights::{Tensors, compare};

/// Something wrong with a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Finding {
    /// No such revision.
    Missing,
    /// It cannot be fetched, read or understood, or its tensors do not fit its config.
    Unusable {
        /// The error and its causes.
        reason: String,
    },
    /// NaN or infinite weights.
    NonFinite {
        /// Name of the tensor.
        tensor: String,
        /// How many of its entries.
        count: i64,
    },
    /// The same weights as another revision in the list.
    SameAs {
        /// That revision.
        revision: String,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("missing"),
            Self::Unusable { reason } => write!(f, "unusable: {reason}"),
            Self::NonFinite { tensor, count } => {
                write!(f, "{count} NaN or infinite values in `{tensor}`")
            }
            Self::SameAs { revision } => write!(f, "same weights as {revision}"),
        }
    }
}

/// One audited revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AuditRow {
    /// Its name.
    pub revision: String,
    /// Weight files with size and hash; empty where they could not be had.
    pub files: Vec<FileHash>,
    /// SHA-256 over names, shapes and f32 values of all weights, which does not depend on file format or dtype; none where they could
    /// not be read.
    pub content: Option<String>,
    /// What is wrong; empty for a good checkpoint.
    pub findings: Vec<Finding>,
}

impl AuditRow {
    /// Whether a sweep should refuse this revision.
    #[must_use]
    pub fn is_bad(&self) -> bool {
        !self.findings.is_empty()
    }
}

/// Audits `revisions` in this order: files, their hashes, and every tensor. `find` says in which folder each is, or that it is not there.
///
/// A revision that fails is a row with its findings, so that one bad step does not end the audit.
/// Of two steps with the same weights both are marked: nothing says which of them is right.
///
/// # Examples
/// ```
/// # use neox_core::audit;
/// let root = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data/tiny-neox"));
/// # if !root.exists() { return; } // the crate without its repository
/// let steps = ["step0", "step1", "step2"];
/// let rows = audit(steps, |step| {
///     let dir = root.join(step);
///     Ok::<_, std::io::Error>(dir.exists().then_some(dir))
/// });
/// let bad: Vec<&str> = rows.iter().filter(|row| row.is_bad()).map(|row| &*row.revision).collect();
/// assert_eq!(bad, ["step2"]); // there is no such step
/// ```
pub fn audit<E: Into<Box<dyn std::error::Error>>>(
    revisions: impl IntoIterator<Item = impl Into<String>>,
    mut find: impl FnMut(&str) -> Result<Option<PathBuf>, E>,
) -> Vec<AuditRow> {
    let audit_one = |revision: String| {
        let mut row = AuditRow {
            revision,
            files: Vec::new(),
            content: None,
            findings: Vec::new(),
        };
        let result = match find(&row.revision).map_err(Into::into) {
            Ok(Some(dir)) => examine(&dir, &mut row),
            Ok(None) => {
                row.findings.push(Finding::Missing);
                Ok(())
            }
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            row.findings.push(Finding::Unusable {
                reason: chain(error.as_ref()),
            });
        }
        row
    };
    let mut rows: Vec<AuditRow> = revisions
        .into_iter()
        .map(Into::into)
        .map(audit_one)
        .collect();
    mark_duplicates(&mut rows);
    rows
}

type AnyError = Box<dyn std::error::Error>;

fn examine(dir: &Path, row: &mut AuditRow) -> Result<(), AnyError> {
    let files = WeightFiles::find(dir)?;
    row.files = files.sha256()?;
    let architecture = Architecture::read(&dir.join("config.json"))?;
    let (content, non_finite) = read_all(&files, &architecture)?;
    row.content = Some(content);
    row.findings.extend(non_finite);
    Ok(())
}

/// Hash of all weights, and those that are not finite.
fn read_all(
    files: &WeightFiles,
    architecture: &Architecture,
) -> Result<(String, Vec<Finding>), AnyError> {
    let mut tensors = Tensors::open(files, architecture.family())?;
    let mismatch = compare(&tensors, architecture);
    if !mismatch.is_empty() {
        return Err(format!("weights do not fit the config: {mismatch}").into());
    }
    let mut hasher = Sha256::new();
    let mut findings = Vec::new();
    for Entry { name, .. } in tensors.implied(architecture) {
        let tensor = tensors.read(&name)?;
        let count = tensor.numel() as i64 - finite(&tensor)?;
        if count > 0 {
            findings.push(Finding::NonFinite {
                tensor: name.clone(),
                count,
            });
        }
        hasher.update(format!("{name} {:?}\n", tensor.size()));
        hash_values(&mut hasher, &tensor)?;
    }
    let content = hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok((content, findings))
}

fn finite(tensor: &Tensor) -> Result<i64, LoadError> {
    Ok(tensor
        .f_isfinite()?
        .f_sum(Kind::Int64)?
        .f_int64_value(&[])?)
}

/// Values as little-endian f32, some at a time.
fn hash_values(hasher: &mut Sha256, tensor: &Tensor) -> Result<(), LoadError> {
    const PIECE: usize = 1 << 20;
    let flat = tensor.f_reshape([-1])?;
    let numel = flat.numel();
    let mut values = vec![0f32; PIECE.min(numel)];
    let mut bytes = Vec::with_capacity(4 * values.len());
    for start in (0..numel).step_by(PIECE) {
        let n = PIECE.min(numel - start);
        let piece = flat
            .f_narrow(0, start as i64, n as i64)?
            .f_to_kind(Kind::Float)?;
        piece.f_copy_data(&mut values[..n], n)?;
        bytes.clear();
        bytes.extend(values[..n].iter().flat_map(|value| value.to_le_bytes()));
        hasher.update(&bytes);
    }
    Ok(())
}

/// Marks revisions that share their content.
fn mark_duplicates(rows: &mut [AuditRow]) {
    let mut first: BTreeMap<String, usize> = BTreeMap::new();
    for index in 0..rows.len() {
        let Some(key) = rows[index].content.clone() else {
            continue;
        };
        match first.get(&key) {
            None => {
                first.insert(key, index);
            }
            Some(&earlier) => {
                let (a, b) = (rows[earlier].revision.clone(), rows[index].revision.clone());
                // `main` is meant to be the last step.
                if a != "main" && b != "main" {
                    rows[earlier].findings.push(Finding::SameAs { revision: b });
                    rows[index].findings.push(Finding::SameAs { revision: a });
                }
            }
        }
    }
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    // Stack traces of libtorch are not for a table.
    let without_trace = |error: &dyn std::error::Error| {
        let text = error.to_string();
        let end = text.find("\nException raised from").unwrap_or(text.len());
        text[..end].trim_end().to_owned()
    };
    let mut text = without_trace(error);
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&without_trace(cause));
        source = cause.source();
    }
    text
}
