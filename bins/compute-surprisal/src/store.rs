//! Results as they come: small complete files, keyed by (step, content of the checkpoint, intervention and its neurons, word, context), so that a
//! stopped run goes on, and one with more words, steps, neurons or interventions computes what is new.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, bail};
use job_inputs::step_in_words;
use job_kit::output::RUN_RECORD;
use job_kit::{
    Format, OutputDir, RunRecord, Table, TableReader, TableWriter, WithHint, write_file,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::interventions::Drawn;

/// One scored word.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    pub(crate) pair: u32,
    pub(crate) intervention: String,
    pub(crate) start: String,
    pub(crate) pieces: i32,
    /// Entropy where the word begins; none under an intervention.
    pub(crate) entropy_nats: Option<f64>,
    /// Nats, in the order of [`FORMS`]; none where a form is not defined.
    pub(crate) nats: [Option<f64>; 4],
}

/// Columns of surprisal.
pub(crate) const FORMS: [&str; 4] = [
    "corrected",
    "corrected_without_eos",
    "uncorrected",
    "first_piece",
];

/// Where the parts are in an output folder.
const PARTS: &str = "parts";

/// The key of what checkpoints are, in the notes of `run.json`.
pub(crate) const CHECKPOINTS: &str = "checkpoints";

/// Its column.
const ENTROPY: &str = "entropy";

/// What the rows of a run go by in the parts.
#[derive(Debug)]
pub(crate) struct Keys {
    /// Word of each pair, and all text before it.
    pub(crate) pairs: Vec<(String, String)>,
    /// The neurons of each step as text; none where no intervention needs any.
    pub(crate) neurons: BTreeMap<Option<u64>, String>,
}

/// The control sets of a checkpoint, and what it and its selected neurons are.
#[derive(Debug, Serialize, Deserialize)]
struct KeptSets {
    checkpoint: String,
    neurons: String,
    drawn: BTreeMap<String, Drawn>,
}

/// The folder of parts.
#[derive(Debug)]
pub(crate) struct Store {
    folder: PathBuf,
    /// The folders of steps that other runs have scored.
    elsewhere: BTreeMap<Option<u64>, PathBuf>,
    keys: Keys,
    /// The pairs of each word and context: one, unless the file of words repeats itself.
    places: HashMap<String, HashMap<String, Vec<u32>>>,
    /// What the checkpoint of each step is, as far as it is known: values of another one at the same place are not its.
    checkpoints: Mutex<BTreeMap<Option<u64>, String>>,
}

impl Store {
    /// Opens the parts of an output folder. `identity` is all that values depend on, other than what `keys` holds, step and
    /// intervention; parts made under another are refused. Null in it fits anything.
    pub(crate) fn open(out: &OutputDir, identity: &Value, keys: Keys) -> anyhow::Result<Self> {
        let folder = out.store(PARTS);
        let path = folder.join("identity.json");
        let write = |identity: &Value| -> anyhow::Result<()> {
            Ok(write_file(
                &path,
                serde_json::to_string_pretty(identity)? + "\n",
            )?)
        };
        match std::fs::read_to_string(&path) {
            // A run that failed before its first part left nothing to protect.
            Ok(_) if !has_parts(&folder)? => write(identity)?,
            Ok(text) => {
                let earlier: Value = serde_json::from_str(&text)
                    .with_context(|| format!("`{}` is damaged", path.display()))?;
                let (merged, differs) = merge(&earlier, identity);
                if !differs.is_empty() {
                    bail!(
                        "`{}` holds results of a run with other settings ({}): choose another folder with `output.dir=...`, or delete `{}`",
                        out.path().display(),
                        differs.join(", "),
                        folder.display()
                    );
                }
                if merged != earlier {
                    write(&merged)?;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                write(identity)?;
            }
            Err(error) => {
                return Err(error).with_context(|| format!("failed to read `{}`", path.display()));
            }
        }
        // What a killed run left half-written.
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().ends_with(".partial") {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(Self::new(folder, keys))
    }

    fn new(folder: PathBuf, keys: Keys) -> Self {
        let mut places: HashMap<String, HashMap<String, Vec<u32>>> = HashMap::new();
        for (pair, (word, context)) in (0u32..).zip(&keys.pairs) {
            let contexts = places.entry(word.clone()).or_default();
            contexts.entry(context.clone()).or_default().push(pair);
        }
        Self {
            folder,
            elsewhere: BTreeMap::new(),
            keys,
            places,
            checkpoints: Mutex::default(),
        }
    }

    /// The parts of finished runs in the folders of `below`, each of some of the steps.
    ///
    /// # Errors
    /// If none of them has a step, or two have scored it on other weights.
    pub(crate) fn merged(
        below: &Path,
        identity: &Value,
        keys: Keys,
        steps: &[Option<u64>],
        record: &mut RunRecord,
    ) -> anyhow::Result<Self> {
        let mut store = Self::new(below.to_owned(), keys);
        let mut known: BTreeMap<Option<u64>, String> = BTreeMap::new();
        let mut other = Vec::new();
        let mut runs = 0u64;
        for folder in folders(below)? {
            let Some((earlier, checkpoints)) = finished(&folder)? else {
                continue;
            };
            let (_, differs) = merge(&earlier, identity);
            if !differs.is_empty() {
                other.push(format!("`{}` ({})", folder.display(), differs.join(", ")));
                continue;
            }
            runs += 1;
            record.input(folder.join(RUN_RECORD))?;
            for &step in steps {
                let Some(address) = checkpoints.get(&step_key(step)) else {
                    continue;
                };
                let first = known.entry(step).or_insert_with(|| address.clone());
                if first != address {
                    bail!(
                        "`{}` and `{}` have scored other weights as {}: remove one of them",
                        store.folder(step).display(),
                        folder.display(),
                        step_in_words(step)
                    );
                }
                let parts = folder.join(PARTS);
                store.elsewhere.entry(step).or_insert(parts);
            }
        }
        let lacks: Vec<String> = steps
            .iter()
            .filter(|step| !store.elsewhere.contains_key(step))
            .map(|&step| step_in_words(step))
            .collect();
        if !lacks.is_empty() {
            let others = match other.is_empty() {
                true => String::new(),
                false => format!("; of other settings are {}", other.join(", ")),
            };
            return Err(anyhow::anyhow!(
                "no finished run in the folders of `{}` has {}{others}",
                below.display(),
                lacks.join(", ")
            ))
            .hint("`merge` is the folder of a sweep over `model.steps`");
        }
        for (step, address) in known {
            store.know(step, &address);
        }
        record.count("runs_put_together", runs);
        Ok(store)
    }

    /// What the checkpoints are, for `run.json`.
    pub(crate) fn addresses(&self, steps: &[Option<u64>]) -> Value {
        let of = |&step: &Option<u64>| (step_key(step), Value::from(self.checkpoint(step)));
        steps
            .iter()
            .map(of)
            .collect::<serde_json::Map<_, _>>()
            .into()
    }

    /// The folder of a step's parts.
    fn folder(&self, step: Option<u64>) -> &Path {
        self.elsewhere.get(&step).unwrap_or(&self.folder)
    }

    /// Says what the checkpoint of a step is. Before that, no value of the step counts.
    pub(crate) fn know(&self, step: Option<u64>, address: &str) {
        let mut checkpoints = self
            .checkpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        checkpoints.insert(step, address.to_owned());
    }

    /// What the checkpoint of a step is; nothing where that is not known.
    fn checkpoint(&self, step: Option<u64>) -> String {
        let checkpoints = self
            .checkpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        checkpoints.get(&step).cloned().unwrap_or_default()
    }

    /// Whether there is any part of a step, of whatever checkpoint.
    pub(crate) fn has_part(&self, step: Option<u64>) -> anyhow::Result<bool> {
        Ok(!self.parts(step)?.is_empty())
    }

    /// Keeps which control sets a checkpoint has, beside those of earlier runs.
    pub(crate) fn keep_drawn(
        &self,
        step: Option<u64>,
        drawn: BTreeMap<String, Drawn>,
    ) -> anyhow::Result<()> {
        let mut all = self.drawn(step)?;
        all.extend(drawn);
        let kept = KeptSets {
            checkpoint: self.checkpoint(step),
            neurons: self.neurons(step, "").to_owned(),
            drawn: all,
        };
        let text = serde_json::to_string_pretty(&kept)? + "\n";
        Ok(write_file(self.drawn_path(step), text)?)
    }

    /// The control sets of a checkpoint, by entry of the list of interventions; none where no run has drawn any.
    pub(crate) fn drawn(&self, step: Option<u64>) -> anyhow::Result<BTreeMap<String, Drawn>> {
        let path = self.drawn_path(step);
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(BTreeMap::new());
            }
            text => text.with_context(|| format!("failed to read `{}`", path.display()))?,
        };
        let kept: KeptSets = serde_json::from_str(&text)
            .with_context(|| format!("`{}` is damaged", path.display()))?;
        let same =
            kept.checkpoint == self.checkpoint(step) && kept.neurons == self.neurons(step, "");
        Ok(if same { kept.drawn } else { BTreeMap::new() })
    }

    fn drawn_path(&self, step: Option<u64>) -> PathBuf {
        let name = format!("{}controls.json", prefix(step));
        self.folder(step).join(name)
    }

    /// The selected neurons of a step, as text.
    pub(crate) fn selected(&self, step: Option<u64>) -> &str {
        self.neurons(step, "")
    }

    /// The neurons that an intervention's values belong to.
    fn neurons(&self, step: Option<u64>, intervention: &str) -> &str {
        match intervention {
            "base" => "",
            _ => self.keys.neurons.get(&step).map_or("", String::as_str),
        }
    }

    /// The pairs of the run with this word and context.
    fn pairs(&self, word: &str, context: &str) -> &[u32] {
        let pairs = self
            .places
            .get(word)
            .and_then(|contexts| contexts.get(context));
        pairs.map_or(&[], Vec::as_slice)
    }

    /// The parts of a step, in the order in which they were written.
    fn parts(&self, step: Option<u64>) -> anyhow::Result<Vec<PathBuf>> {
        let prefix = prefix(step);
        let mut parts = Vec::new();
        for entry in std::fs::read_dir(self.folder(step))? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(&prefix) && name.ends_with(".parquet") {
                parts.push(entry.path());
            }
        }
        parts.sort_unstable();
        Ok(parts)
    }

    /// Pairs that are done, by intervention.
    pub(crate) fn done(&self, step: Option<u64>) -> anyhow::Result<HashMap<String, HashSet<u32>>> {
        let mut done: HashMap<String, HashSet<u32>> = HashMap::new();
        let checkpoint = self.checkpoint(step);
        for part in self.parts(step)? {
            let columns = TableReader::open(&part)?.read(&[
                "checkpoint",
                "intervention",
                "neurons",
                "word",
                "context",
            ])?;
            let of = columns.text("checkpoint")?;
            let (word, context) = (columns.text("word")?, columns.text("context")?);
            let names = columns.text("intervention")?;
            let neurons = columns.text("neurons")?;
            for (i, (name, neurons)) in names.into_iter().zip(neurons).enumerate() {
                if of[i] == checkpoint && neurons == self.neurons(step, &name) {
                    let pairs = self.pairs(&word[i], &context[i]);
                    done.entry(name).or_default().extend(pairs);
                }
            }
        }
        Ok(done)
    }

    /// Adds a complete chunk.
    pub(crate) fn append(&self, step: Option<u64>, rows: &[Row]) -> anyhow::Result<()> {
        let number = match self.parts(step)?.last() {
            Some(last) => {
                let stem = last
                    .file_stem()
                    .and_then(|s| s.to_str())
                    .unwrap_or_default();
                let number = stem
                    .rsplit_once('-')
                    .and_then(|(_, n)| n.parse::<u32>().ok());
                number.with_context(|| {
                    format!("`{}` is not a part that this program wrote", last.display())
                })? + 1
            }
            None => 0,
        };
        let path = self
            .folder
            .join(format!("{}{number:06}.parquet", prefix(step)));
        let checkpoint = self.checkpoint(step);
        let pair = |r: &Row| &self.keys.pairs[r.pair as usize];
        let mut table = Table::of(rows)
            .column("checkpoint", |_| checkpoint.as_str())
            .column("word", |r| pair(r).0.as_str())
            .column("context", |r| pair(r).1.as_str())
            .column("intervention", |r| r.intervention.as_str())
            .column("neurons", |r| self.neurons(step, &r.intervention))
            .column("start", |r| r.start.as_str())
            .column("pieces", |r| r.pieces)
            .column(ENTROPY, |r| r.entropy_nats);
        for (place, form) in FORMS.into_iter().enumerate() {
            table = table.column(form, |r| r.nats[place]);
        }
        let batch = table.batch()?;
        let mut writer = TableWriter::create(&path, batch.schema(), Format::Parquet)?;
        writer.write(&batch)?;
        writer.finish()?;
        Ok(())
    }

    /// All rows of a step under the named interventions, in the order of the names and of the pairs.
    pub(crate) fn read(
        &self,
        step: Option<u64>,
        interventions: &[String],
    ) -> anyhow::Result<Vec<Row>> {
        let place: HashMap<&str, usize> = interventions
            .iter()
            .enumerate()
            .map(|(i, name)| (name.as_str(), i))
            .collect();
        // A pair that two parts hold (a word that the file repeats) is there once.
        let mut rows: BTreeMap<(usize, u32), Row> = BTreeMap::new();
        let checkpoint = self.checkpoint(step);
        for part in self.parts(step)? {
            let table = TableReader::open(&part)?;
            let names = [
                "checkpoint",
                "word",
                "context",
                "intervention",
                "neurons",
                "start",
                "pieces",
                ENTROPY,
                FORMS[0],
                FORMS[1],
                FORMS[2],
                FORMS[3],
            ];
            let columns = table.read(&names)?;
            let of = columns.text("checkpoint")?;
            let (word, context) = (columns.text("word")?, columns.text("context")?);
            let (names, neurons) = (columns.text("intervention")?, columns.text("neurons")?);
            let (start, pieces) = (columns.text("start")?, columns.i64("pieces")?);
            let entropies = columns.opt_f64(ENTROPY)?;
            let forms = FORMS.map(|form| columns.opt_f64(form));
            let [a, b, c, d] = forms;
            let (a, b, c, d) = (a?, b?, c?, d?);
            for (i, (intervention, start)) in names.into_iter().zip(start).enumerate() {
                let Some(&place) = place.get(intervention.as_str()) else {
                    continue;
                };
                if of[i] != checkpoint || neurons[i] != self.neurons(step, &intervention) {
                    continue;
                }
                for &pair in self.pairs(&word[i], &context[i]) {
                    let row = Row {
                        pair,
                        intervention: intervention.clone(),
                        start: start.clone(),
                        pieces: i32::try_from(pieces[i])?,
                        entropy_nats: entropies[i],
                        nats: [a[i], b[i], c[i], d[i]],
                    };
                    rows.insert((place, pair), row);
                }
            }
        }
        Ok(rows.into_values().collect())
    }
}

/// The folders in a folder, by name.
fn folders(below: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let failed = || {
        format!(
            "failed to read the folder of runs `{}` (`merge`)",
            below.display()
        )
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(below).with_context(failed)? {
        let path = entry.with_context(failed)?.path();
        if path.is_dir() {
            found.push(path);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The identity of the parts in the folder of a finished run, and what its checkpoints are by step; nothing in any other folder.
fn finished(folder: &Path) -> anyhow::Result<Option<(Value, BTreeMap<String, String>)>> {
    let read = |name: &Path| -> anyhow::Result<Option<Value>> {
        let path = folder.join(name);
        match std::fs::read(&path) {
            Ok(json) => {
                Ok(Some(serde_json::from_slice(&json).with_context(|| {
                    format!("`{}` is damaged", path.display())
                })?))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => {
                Err(error).with_context(|| format!("failed to read `{}`", path.display()))
            }
        }
    };
    let identity = read(&Path::new(PARTS).join("identity.json"))?;
    let Some((identity, run)) = identity.zip(read(Path::new(RUN_RECORD))?) else {
        return Ok(None);
    };
    let checkpoints = serde_json::from_value(run["notes"][CHECKPOINTS].clone());
    Ok(checkpoints.ok().map(|checkpoints| (identity, checkpoints)))
}

/// A step as the key of an object.
fn step_key(step: Option<u64>) -> String {
    step.map_or("none".to_owned(), |step| step.to_string())
}

/// What the names of a step's parts begin with.
fn prefix(step: Option<u64>) -> String {
    step.map_or("no-step-".to_owned(), |step| format!("step{step}-"))
}

/// Two identities as one, and the keys under which they differ. Null fits any value; a key that one of them lacks differs.
fn merge<'v>(earlier: &'v Value, now: &'v Value) -> (Value, Vec<&'v str>) {
    let mut merged = earlier.clone();
    let mut keys: Vec<&str> = [earlier, now]
        .iter()
        .filter_map(|identity| identity.as_object())
        .flat_map(|object| object.keys().map(String::as_str))
        .collect();
    keys.sort_unstable();
    keys.dedup();
    keys.retain(|key| match (earlier.get(key), now.get(key)) {
        (Some(_), Some(Value::Null)) => false,
        (Some(Value::Null), Some(value)) => {
            merged[*key] = value.clone();
            false
        }
        (earlier, now) => earlier != now,
    });
    (merged, keys)
}

fn has_parts(folder: &Path) -> std::io::Result<bool> {
    for entry in std::fs::read_dir(folder)? {
        if entry?
            .path()
            .extension()
            .is_some_and(|extension| extension == "parquet")
        {
            return Ok(true);
        }
    }
    Ok(false)
}
