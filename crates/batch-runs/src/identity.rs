//! What makes two jobs the same: program, configuration without its output folder, and what its inputs hold.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use job_kit::sha256_file;
use serde_yaml::Value;
use sha2::{Digest, Sha256};

/// Larger files are known by size and time.
const HASHED_BYTES: u64 = 16 << 20;
/// How deep and how far a folder is looked at.
const DEPTH: usize = 3;
const ENTRIES: usize = 2_000;

/// Fingerprints of inputs, each made once.
#[derive(Debug, Default)]
pub(crate) struct Inputs(HashMap<PathBuf, Option<String>>);

/// The identity of a job, in hexadecimal digits.
pub(crate) fn identity(job: &str, version: &str, config: &Value, inputs: &mut Inputs) -> String {
    let mut config = config.clone();
    set(&mut config, &["output", "dir"], None);
    let mut text = format!("{job} {version}\n");
    text += &serde_yaml::to_string(&config).unwrap_or_default();
    set(&mut config, &["output"], None);
    inputs.describe(&config, &mut text);
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Sets a key that is there, or takes it out.
pub(crate) fn set(config: &mut Value, path: &[&str], value: Option<Value>) {
    let (Some((first, rest)), Value::Mapping(pairs)) = (path.split_first(), config) else {
        return;
    };
    match (rest, value) {
        ([], Some(value)) => drop(pairs.insert((*first).into(), value)),
        ([], None) => drop(pairs.remove(*first)),
        (_, value) => {
            if let Some(inner) = pairs.get_mut(*first) {
                set(inner, rest, value);
            }
        }
    }
}

impl Inputs {
    /// Adds what the files and folders hold that a configuration names.
    fn describe(&mut self, config: &Value, out: &mut String) {
        match config {
            Value::Mapping(pairs) => pairs.values().for_each(|value| self.describe(value, out)),
            Value::Sequence(items) => items.iter().for_each(|value| self.describe(value, out)),
            Value::String(text) if !text.is_empty() => {
                let path = PathBuf::from(text);
                let known = self
                    .0
                    .entry(path)
                    .or_insert_with_key(|path| fingerprint(path));
                if let Some(print) = known {
                    *out += &format!("{text} {print}\n");
                }
            }
            _ => {}
        }
    }
}

fn fingerprint(path: &Path) -> Option<String> {
    let file = path.metadata().ok()?;
    if file.is_dir() {
        let mut found = vec![];
        entries(path, DEPTH, &mut found);
        found.sort();
        return Some(found.join("\n"));
    }
    if file.is_file() && file.len() <= HASHED_BYTES {
        return sha256_file(path).ok().map(|(sha256, _)| sha256);
    }
    Some(size_and_time(&file))
}

fn size_and_time(file: &fs::Metadata) -> String {
    let time = file
        .modified()
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    format!("{} {}", file.len(), time.map_or(0, |time| time.as_nanos()))
}

fn entries(folder: &Path, depth: usize, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(file) = entry.path().metadata() else {
            continue;
        };
        if found.len() >= ENTRIES {
            return;
        }
        let path = entry.path();
        if file.is_file() {
            found.push(format!("{} {}", path.display(), size_and_time(&file)));
        } else if depth > 1 {
            entries(&path, depth - 1, found);
        }
    }
}
