//! `run.json`: what a run was, so that it can be told apart and done again.

use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

use chrono::{SecondsFormat, Utc};
use serde::Serialize;
use serde_json::Value;

use crate::output::{FileRecord, OutputDir, OutputError, RUN_RECORD, sha256_file};
use crate::secrets::{as_recorded, without_secrets};
use crate::stdio::print;

/// What a run was: filled in as it goes, written as `run.json` at its end.
///
/// Values under keys that hold credentials (`token`, `hf_token`, `password`, ...) are replaced before anything is kept.
///
/// # Examples
/// ```
/// let parent = tempfile::tempdir()?;
/// let config = serde_json::json!({"seed": 42, "hf_token": "hf_abc"});
/// let dir = job_kit::OutputDir::create(parent.path().join("run"), "ablate-unigram", &config, ["neurons.csv"])?;
/// let mut run = job_kit::RunRecord::new("ablate-unigram", "0.1.0", &config);
/// run.version("libtorch", "2.13.0");
/// run.seed = Some(42);
/// run.count("rows_kept", 370);
/// dir.write("neurons.csv", "neuron\n3.17\n")?;
/// run.write(&dir)?;
///
/// let json: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("run.json"))?)?;
/// assert_eq!(json["counts"]["rows_kept"], 370);
/// assert_eq!(json["outputs"]["neurons.csv"]["bytes"], 12);
/// assert_eq!(json["config"]["hf_token"], "(removed)");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Serialize)]
pub struct RunRecord {
    job: String,
    /// When the run began, UTC.
    started: String,
    /// Wall time of the whole run.
    seconds: f64,
    /// The seed of everything drawn.
    pub seed: Option<u64>,
    /// Where tensors lived: `cpu`, `cuda:0`.
    pub device: Option<String>,
    /// What numbers the model ran in: `f32`.
    pub dtype: Option<String>,
    versions: BTreeMap<String, String>,
    inputs: BTreeMap<String, FileRecord>,
    /// By name in the folder.
    outputs: BTreeMap<String, FileRecord>,
    counts: BTreeMap<String, u64>,
    timings_seconds: BTreeMap<String, f64>,
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    notes: BTreeMap<String, Value>,
    config: Value,
    #[serde(skip)]
    clock: Option<Instant>,
}

impl RunRecord {
    /// Starts the record and its clock. `version` is that of the job's own crate, `config` the resolved configuration
    /// ([`Resolved::value`](crate::Resolved::value)).
    pub fn new(job: &str, version: &str, config: &Value) -> Self {
        let versions = BTreeMap::from([
            (job.to_owned(), version.to_owned()),
            ("rustc".to_owned(), env!("JOB_KIT_RUSTC").to_owned()),
        ]);
        Self {
            job: job.to_owned(),
            started: Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true),
            seconds: 0.0,
            seed: None,
            device: None,
            dtype: None,
            versions,
            inputs: BTreeMap::new(),
            outputs: BTreeMap::new(),
            counts: BTreeMap::new(),
            timings_seconds: BTreeMap::new(),
            warnings: vec![],
            notes: BTreeMap::new(),
            config: without_secrets(config.clone()),
            clock: Some(Instant::now()),
        }
    }

    /// Names the version of something the results depend on.
    pub fn version(&mut self, name: &str, version: &str) {
        self.versions.insert(name.to_owned(), version.to_owned());
    }

    /// Hashes a file that the run read.
    ///
    /// # Errors
    /// [`OutputError::Read`].
    pub fn input(&mut self, path: impl AsRef<Path>) -> Result<(), OutputError> {
        self.hashed_input(path.as_ref(), sha256_file(path.as_ref())?);
        Ok(())
    }

    /// Records a file that the run read, and what [`sha256_file`] said of it.
    pub fn hashed_input(&mut self, path: impl AsRef<Path>, (sha256, bytes): (String, u64)) {
        let name = path.as_ref().display().to_string();
        self.inputs.insert(name, FileRecord { sha256, bytes });
    }

    /// How many of something there were: what was kept, what was dropped and why.
    pub fn count(&mut self, name: &str, count: u64) {
        self.counts.insert(name.to_owned(), count);
    }

    /// How long a part took.
    pub fn timing(&mut self, name: &str, took: Duration) {
        self.timings_seconds.insert(name.to_owned(), round(took));
    }

    /// Something the reader of the results should know; also logged. Said twice, it is kept once.
    pub fn warn(&mut self, text: impl Into<String>) {
        let text = text.into();
        if self.warnings.contains(&text) {
            return;
        }
        tracing::warn!("{text}");
        self.warnings.push(text);
    }

    /// Anything else worth keeping, by name.
    pub fn note(&mut self, name: &str, value: impl Into<Value>) {
        self.notes
            .insert(name.to_owned(), without_secrets(value.into()));
    }

    /// What was noted under a name.
    pub fn noted(&self, name: &str) -> Option<&Value> {
        self.notes.get(name)
    }

    /// The warnings so far.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Stops the clock, removes what earlier runs of the job wrote and this one has not (what was changed since is kept, with a warning),
    /// hashes the outputs and writes `run.json`; call it last.
    ///
    /// # Errors
    /// [`OutputError::Write`], [`OutputError::Read`].
    pub fn write(mut self, dir: &OutputDir) -> Result<(), OutputError> {
        let stale = dir.remove_stale()?;
        if !stale.removed.is_empty() {
            tracing::info!(
                "outputs of an earlier run that this one does not have are removed: {}",
                stale.removed.join(", ")
            );
            self.note("removed_outputs_of_earlier_runs", stale.removed);
        }
        for name in stale.kept {
            self.warn(format!(
                "`{}` is of an earlier run and was changed since: it is kept, but does not belong to this one",
                dir.join(name).display()
            ));
        }
        self.outputs = dir.outputs()?;
        self.seconds = self.clock.map_or(0.0, |clock| round(clock.elapsed()));
        let mut json = serde_json::to_vec_pretty(&self).map_err(|err| OutputError::Write {
            path: dir.join(RUN_RECORD),
            source: err.into(),
        })?;
        json.push(b'\n');
        dir.complete(&json)
    }

    /// Ends a run: [writes](Self::write) the record, then prints what a person wants to know first, and where the files are.
    ///
    /// # Errors
    /// As [`write`](Self::write), and [`OutputError::Stdout`].
    pub fn finish(self, dir: &OutputDir, summary: &str) -> Result<(), OutputError> {
        self.write(dir)?;
        print(format!("{summary}Files: {}\n", dir.path().display()))
    }
}

/// The record of a finished run in `folder` that would give the same if it ran again: of this job and version, with this configuration but for
/// the keys in `beside` (those that say what else is run), of inputs that are there with the same bytes, and outputs that are there.
///
/// # Errors
/// Why there is none, to complete "it is computed again: ...".
pub fn finished_run(
    folder: &Path,
    job: &str,
    version: &str,
    config: &Value,
    beside: &[&str],
) -> Result<Value, String> {
    let none = || "there is no finished run in its folder".to_owned();
    let json = std::fs::read(folder.join(RUN_RECORD)).map_err(|_| none())?;
    let record: Value = serde_json::from_slice(&json).map_err(|_| none())?;
    if record["job"] != job || record["versions"][job] != version {
        return Err(format!("its folder is not of {job} {version}"));
    }
    let alone = |mut config: Value| {
        for key in beside {
            let (parents, last) = key.rsplit_once('.').unwrap_or(("", key));
            let mut parents = parents.split('.').filter(|name| !name.is_empty());
            let owner = parents.try_fold(&mut config, |part, name| part.get_mut(name));
            if let Some(Value::Object(owner)) = owner {
                owner.remove(last);
            }
        }
        config
    };
    if alone(record["config"].clone()) != alone(as_recorded(config)) {
        return Err("it was run with another configuration".into());
    }
    let files = |of: &str| -> BTreeMap<String, FileRecord> {
        serde_json::from_value(record[of].clone()).unwrap_or_default()
    };
    for (name, file) in files("inputs") {
        match sha256_file(Path::new(&name)) {
            Ok((sha256, _)) if sha256 == file.sha256 => {}
            Ok(_) => return Err(format!("`{name}` has changed since")),
            Err(_) => return Err(format!("its input `{name}` is not there any more")),
        }
    }
    for (name, file) in files("outputs") {
        if std::fs::metadata(folder.join(&name))
            .map(|there| there.len())
            .ok()
            != Some(file.bytes)
        {
            return Err(format!("its output `{name}` is not as it was written"));
        }
    }
    Ok(record)
}

fn round(took: Duration) -> f64 {
    (took.as_secs_f64() * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_tokens_stay_and_tokens_go() {
        let clean = without_secrets(serde_json::json!({
            "corpus": {"tokens": "a.npy", "hf_token": "x"},
            "list": [{"password": "x"}, format!("hf_{}", "a".repeat(34))],
            "token": null,
        }));
        assert_eq!(
            clean,
            serde_json::json!({
                "corpus": {"tokens": "a.npy", "hf_token": "(removed)"},
                "list": [{"password": "(removed)"}, "(removed)"],
                "token": null,
            })
        );
    }
}
