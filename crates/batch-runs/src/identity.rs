//! What makes two jobs the same: program, configuration without its output folder, and what its inputs hold.
//!
//! A file in the folder of a job of a sweep is known by that job's identity, and the folder of a sweep by those of all its jobs, so that a job can be named before its inputs are there.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use anyhow::Context;
use job_kit::{output::RUN_RECORD, sha256_file};
use serde::Deserialize;
use serde_yaml::Value;
use sha2::{Digest, Sha256};

use crate::{
    manifest::{CONFIG, MANIFEST, State},
    marker::has_finished,
};

/// Larger files are known by size and time.
const HASHED_BYTES: u64 = 16 << 20;
/// By this file a folder says that it is a cache, and no input (bford.info/cachedir).
const CACHE: &str = "CACHEDIR.TAG";
/// How deep and how far a folder is looked at.
const DEPTH: usize = 3;
const ENTRIES: usize = 2_000;

/// Keys that no result depends on: where results go, where mean activations are kept for other runs, where a password is.
const BESIDE: [&[&str]; 3] = [
    &["output", "dir"],
    &["means", "keep"],
    &["model", "token_file"],
];

/// Fingerprints of inputs, each made once.
#[derive(Debug, Default)]
pub(crate) struct Inputs {
    prints: HashMap<PathBuf, Option<String>>,
    /// The jobs of a sweep by its folder and their numbers.
    sweeps: HashMap<PathBuf, BTreeMap<usize, ListedJob>>,
}

/// What is read of the manifest of another sweep.
#[derive(Deserialize)]
struct Listed {
    jobs: Vec<ListedJob>,
}

#[derive(Debug, Clone, Deserialize)]
struct ListedJob {
    number: usize,
    id: String,
    state: State,
}

/// The identity of a job, in hexadecimal digits.
pub(crate) fn identity(job: &str, version: &str, config: &Value, inputs: &mut Inputs) -> String {
    let mut config = config.clone();
    for key in BESIDE {
        set(&mut config, key, None);
    }
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
        for text in texts(config) {
            let path = Path::new(text);
            if !self.prints.contains_key(path) {
                let jobs = self.jobs_of(path).into_iter().map(|(_, job)| job.id);
                let ids = jobs.collect::<Vec<_>>().join(" ");
                let print = match ids.is_empty() {
                    false => Some(ids),
                    true => fingerprint(path),
                };
                self.prints.insert(path.to_owned(), print);
            }
            if let Some(Some(print)) = self.prints.get(path) {
                *out += &format!("{text} {print}\n");
            }
        }
    }

    /// The jobs of a sweep, with their folders, that a path is the folder of or lies in; all of them for the sweep's own folder.
    fn jobs_of(&mut self, path: &Path) -> Vec<(PathBuf, ListedJob)> {
        let all = self.of_sweep(path).iter();
        let all: Vec<_> = all
            .map(|(number, job)| (path.join(number.to_string()), job.clone()))
            .collect();
        if !all.is_empty() {
            return all;
        }
        let job = path.ancestors().find_map(|folder| {
            let number: usize = folder.file_name()?.to_str()?.parse().ok()?;
            let job = self.of_sweep(folder.parent()?).get(&number)?;
            Some((folder.to_owned(), job.clone()))
        });
        job.into_iter().collect()
    }

    fn of_sweep(&mut self, folder: &Path) -> &BTreeMap<usize, ListedJob> {
        let sweep = self.sweeps.entry(folder.to_owned());
        sweep.or_insert_with_key(|folder| listed(folder))
    }
}

/// The jobs of a sweep by their numbers; none if the folder is of no sweep.
fn listed(sweep: &Path) -> BTreeMap<usize, ListedJob> {
    let json = fs::read(sweep.join(MANIFEST)).unwrap_or_default();
    let listed = serde_json::from_slice(&json).unwrap_or(Listed { jobs: vec![] });
    let jobs = listed.jobs.into_iter();
    jobs.map(|job| (job.number, job)).collect()
}

/// Why the job of a folder cannot run yet: the folders of jobs that it reads from and that have not finished.
///
/// # Errors
/// If its frozen configuration cannot be read.
pub(crate) fn waits_for(folder: &Path) -> anyhow::Result<Option<String>> {
    let path = folder.join(CONFIG);
    let text = fs::read_to_string(&path)
        .with_context(|| format!("failed to read `{}`", path.display()))?;
    let config = serde_yaml::from_str(&text)
        .with_context(|| format!("`{}` is no configuration", path.display()))?;
    let missing = unfinished_inputs(&config);
    let names = missing
        .iter()
        .map(|folder| format!("`{}`", folder.display()));
    Ok((!missing.is_empty()).then(|| {
        let names = names.collect::<Vec<_>>().join(", ");
        format!("not started: it reads from {names}, which has not finished")
    }))
}

/// The folders of jobs of sweeps that a configuration reads from and that hold no results yet.
fn unfinished_inputs(config: &Value) -> Vec<PathBuf> {
    let mut config = config.clone();
    set(&mut config, &["output"], None);
    let mut inputs = Inputs::default();
    let mut found: Vec<PathBuf> = texts(&config)
        .into_iter()
        .flat_map(|text| inputs.jobs_of(Path::new(text)))
        .filter(|(folder, job)| {
            // A job of several checkpoints has a record in the folder of each.
            let noted = job.state == State::Finished || has_finished(folder);
            !(folder.join(RUN_RECORD).is_file() || noted && folder.is_dir())
        })
        .map(|(folder, _)| folder)
        .collect();
    found.sort();
    found.dedup();
    found
}

/// All texts in a configuration.
fn texts(config: &Value) -> Vec<&str> {
    match config {
        Value::Mapping(pairs) => pairs.values().flat_map(texts).collect(),
        Value::Sequence(items) => items.iter().flat_map(texts).collect(),
        Value::String(text) if !text.is_empty() => vec![text],
        _ => vec![],
    }
}

fn fingerprint(path: &Path) -> Option<String> {
    let file = path.metadata().ok()?;
    if file.is_dir() {
        // As `target` is, where cargo builds: a word of a configuration that happens to be its name.
        if path.join(CACHE).is_file() {
            return None;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_result_depends_on_makes_no_other_job() {
        let of = |text: &str| {
            let config: Value = serde_yaml::from_str(text).unwrap();
            identity("job", "1", &config, &mut Inputs::default())
        };
        let first = of("{means: {sequences: all, keep: here}, output: {dir: out, plot: true}}");
        for (same, other) in [
            (
                true,
                "{means: {sequences: all, keep: /tmp}, output: {dir: elsewhere, plot: true}}",
            ),
            (
                false,
                "{means: {sequences: 4, keep: here}, output: {dir: out, plot: true}}",
            ),
            (
                false,
                "{means: {sequences: all, keep: here}, output: {dir: out, plot: false}}",
            ),
        ] {
            assert_eq!(of(other) == first, same, "{other}");
        }
    }

    #[test]
    fn a_job_of_a_sweep_is_known_by_its_identity_and_a_cache_is_no_input() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            let parent = path.parent().unwrap_or(dir.path());
            let written = fs::create_dir_all(parent).and_then(|()| fs::write(&path, text));
            written.unwrap();
        };
        let identity_of = |name: &str| {
            let path = dir.path().join(name);
            let config = serde_yaml::from_str(&format!("a: ['{}']", path.display()));
            let config: Value = config.unwrap();
            identity("job", "1", &config, &mut Inputs::default())
        };
        let before = identity_of("sweep/3/words.csv");
        let listed = |id: &str| {
            format!(r#"{{"jobs": [{{"number": 3, "id": "{id}", "state": "pending"}}]}}"#)
        };
        write("sweep/manifest.json", &listed("first"));
        let first = ["sweep/3/words.csv", "sweep", "sweep/4/words.csv"].map(identity_of);
        assert_ne!(first[0], before);
        // Whether it has run or not.
        write("sweep/3/words.csv", "word");
        assert_eq!(identity_of("sweep/3/words.csv"), first[0]);
        write("sweep/manifest.json", &listed("second"));
        let second = ["sweep/3/words.csv", "sweep", "sweep/4/words.csv"].map(identity_of);
        assert_ne!(second[0], first[0]);
        assert_ne!(second[1], first[1]);
        assert_eq!(second[2], first[2]);

        write("target/CACHEDIR.TAG", "");
        let first = identity_of("target");
        write("target/more", "more");
        assert_eq!(identity_of("target"), first);
    }
}
