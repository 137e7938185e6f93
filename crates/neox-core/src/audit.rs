//! Checks of many checkpoints before a sweep relies on them.
//!
//! Several published Pythia revisions are known to hold wrong weights
//! (github.com/EleutherAI/pythia, issue 205); they show as two steps with the same content.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::{Kind, Tensor};

use crate::config::Architecture;
use crate::error::LoadError;
use crate::family::Entry;
use crate::hub::OnTransfer;
use crate::source::{Source, SourceError};
use crate::weights::{FileHash, WeightFiles, compare};

/// How deep to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum AuditDepth {
    /// Files and their hashes. From a hub this fetches nothing: it publishes the hashes.
    Files,
    /// Also every tensor: shapes, NaN and infinity, and a hash of the values that does not depend
    /// on file format or dtype. Fetches what is not in the cache.
    Tensors,
}

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
    /// SHA-256 over names, shapes and f32 values of all weights; only from [`AuditDepth::Tensors`].
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

/// Audits `revisions` of a source, in this order; `progress` hears each name before its turn.
///
/// A revision that fails is a row with its findings, so that one bad step does not end the audit.
/// Of two steps with the same weights both are marked: nothing says which of them is right.
///
/// # Errors
/// - [`SourceError`] if the source cannot list its revisions
///
/// # Examples
/// ```
/// # use neox_core::{AuditDepth, Source, audit};
/// let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data/tiny-neox");
/// let steps = ["step0".to_owned(), "step1".to_owned(), "step2".to_owned()];
/// let rows = audit(&Source::folder(root), &steps, AuditDepth::Tensors, &mut |_| (), &mut |_| ())?;
/// let bad: Vec<&str> = rows.iter().filter(|row| row.is_bad()).map(|row| &*row.revision).collect();
/// assert_eq!(bad, ["step2"]); // there is no such step
/// # Ok::<(), neox_core::SourceError>(())
/// ```
pub fn audit(
    source: &Source,
    revisions: &[String],
    depth: AuditDepth,
    progress: &mut dyn FnMut(&str),
    on_transfer: OnTransfer<'_>,
) -> Result<Vec<AuditRow>, SourceError> {
    let known = source.revisions()?;
    let mut rows = Vec::with_capacity(revisions.len());
    for revision in revisions {
        progress(revision);
        let mut row = AuditRow {
            revision: revision.clone(),
            files: Vec::new(),
            content: None,
            findings: Vec::new(),
        };
        if !known.contains(revision) {
            row.findings.push(Finding::Missing);
        } else if let Err(error) = examine(source, &mut row, depth, on_transfer) {
            row.findings.push(Finding::Unusable {
                reason: chain(error.as_ref()),
            });
        }
        rows.push(row);
    }
    mark_duplicates(&mut rows);
    Ok(rows)
}

type AnyError = Box<dyn std::error::Error>;

fn examine(
    source: &Source,
    row: &mut AuditRow,
    depth: AuditDepth,
    on_transfer: OnTransfer<'_>,
) -> Result<(), AnyError> {
    if let (Source::Hub { hub, repo }, AuditDepth::Files) = (source, depth)
        && !hub.options().offline
    {
        row.files = published_hashes(hub.files(repo, &row.revision)?)?;
        return Ok(());
    }
    let dir = source.checkpoint(Some(&row.revision), on_transfer)?;
    let files = WeightFiles::find(&dir)?;
    row.files = files.sha256()?;
    if depth == AuditDepth::Tensors {
        let architecture = Architecture::read(&dir.join("config.json"))?;
        let (content, non_finite) = read_all(&files, &architecture)?;
        row.content = Some(content);
        row.findings.extend(non_finite);
    }
    Ok(())
}

/// The weight files of a hub listing that [`crate::Hub::checkpoint`] would take: whole
/// safetensors, its shards, or the same of `pytorch_model.bin`.
fn published_hashes(files: Vec<crate::hub::RepoFile>) -> Result<Vec<FileHash>, AnyError> {
    let families: [fn(&str) -> bool; 4] = [
        |name| name == "model.safetensors",
        |name| name.starts_with("model-") && name.ends_with(".safetensors"),
        |name| name == "pytorch_model.bin",
        |name| name.starts_with("pytorch_model-") && name.ends_with(".bin"),
    ];
    for family in families {
        let found: Vec<_> = files.iter().filter(|file| family(&file.name)).collect();
        if found.is_empty() {
            continue;
        }
        return found
            .into_iter()
            .map(|file| match (file.bytes, &file.sha256) {
                (Some(bytes), Some(sha256)) => Ok(FileHash {
                    name: file.name.clone(),
                    bytes,
                    sha256: sha256.clone(),
                }),
                _ => Err(format!("the hub gives no hash of `{}`", file.name).into()),
            })
            .collect();
    }
    Err("no weights in this revision".into())
}

/// Hash of all weights, and those that are not finite.
fn read_all(
    files: &WeightFiles,
    architecture: &Architecture,
) -> Result<(String, Vec<Finding>), AnyError> {
    let mut tensors = files.open(architecture.family)?;
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

/// Marks revisions that share their content, or all their files where content was not read.
fn mark_duplicates(rows: &mut [AuditRow]) {
    let mut first: BTreeMap<String, usize> = BTreeMap::new();
    for index in 0..rows.len() {
        let key = match &rows[index].content {
            Some(content) => content.clone(),
            None if rows[index].files.is_empty() => continue,
            None => {
                let hashes = rows[index].files.iter().map(|file| file.sha256.as_str());
                hashes.collect::<Vec<_>>().join(" ")
            }
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
