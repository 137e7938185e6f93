//! A folder of results: whose it is, which files in it are whose, and what of an earlier run goes when a new one is written.
//!
//! `run.json` of a finished run names its job and its outputs with their hashes. While a run replaces results, and after one that was
//! killed, a hidden file [`UNDER_WAY`] says the same in its place:
//!
//! | in the folder | means |
//! |---|---|
//! | neither | no results of ours |
//! | `run.json` | complete; its outputs are those that it names |
//! | both | complete; another run has started (or ended) and replaced nothing yet (or everything) |
//! | the hidden file | a run replaces, or was killed while replacing: any output of the old or new run may be there |

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, TryLockError},
    io,
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{AtomicFile, OutputError, PARTIAL, partial, sha256_file, write_file};
use crate::secrets::as_recorded;

/// Name of the record of a finished run in its output folder.
pub const RUN_RECORD: &str = "run.json";

/// What stands in the place of `run.json` while results are replaced.
const UNDER_WAY: &str = ".run-under-way.json";

/// Hash and size of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileRecord {
    pub(crate) sha256: String,
    pub(crate) bytes: u64,
}

impl FileRecord {
    pub(crate) fn of(path: &Path) -> Result<Self, OutputError> {
        let (sha256, bytes) = sha256_file(path)?;
        Ok(Self { sha256, bytes })
    }

    /// Whether a file still has this content; its size tells most others.
    fn is_of(&self, path: &Path) -> Result<bool, OutputError> {
        let same_size = path
            .metadata()
            .is_ok_and(|file| file.is_file() && file.len() == self.bytes);
        Ok(same_size && Self::of(path)? == *self)
    }
}

/// Outputs by name; those that a run has announced and may have written have no hash.
type Outputs = BTreeMap<String, Option<FileRecord>>;

/// [`UNDER_WAY`].
#[derive(Debug, Clone, Serialize, Deserialize)]
struct UnderWay {
    job: String,
    outputs: Outputs,
}

/// What became of the outputs of earlier runs that the new one has not written.
#[derive(Debug, Default)]
pub(crate) struct Stale {
    pub(crate) removed: Vec<String>,
    /// Changed since by somebody else.
    pub(crate) kept: Vec<String>,
}

/// A folder that belongs to one job, and that this process alone writes to until it is dropped ([`FolderLock`]).
#[derive(Debug)]
pub struct OutputDir {
    shared: Arc<Shared>,
    _lock: FolderLock,
}

#[derive(Debug)]
pub(crate) struct Shared {
    path: PathBuf,
    job: String,
    /// Names of all that the run may write, separated by `/`.
    announced: BTreeSet<String>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What earlier runs wrote.
    earlier: Outputs,
    written: BTreeSet<String>,
    /// Whether results are being replaced, and `run.json` is gone.
    replacing: bool,
    /// Whether the folder is the job's although nothing was replaced yet.
    kept: bool,
}

impl OutputDir {
    /// Takes a folder for a run of `job`: creates it and its parents if needed, locks it, removes what a killed run left half-written,
    /// and checks that files can be made in it, that it belongs to no other job, and that the outputs, all of which `outputs` names
    /// (with `/` where they are in folders of their own), replace nothing but results of this job.
    ///
    /// `config` is the resolved configuration: what it names must not be among the outputs, nor be a folder of texts around them.
    /// Keys under `output` are not looked at. Folders under `model` and `input` may be around the output folder, as files in them are
    /// read by their names.
    ///
    /// # Errors
    /// - [`OutputError::CreateFolder`] if it cannot be made, for instance because a file has its name
    /// - [`OutputError::InUse`] if another process holds it
    /// - [`OutputError::NotWritable`] if no file can be made in it
    /// - [`OutputError::Owned`] if another job's results are in it
    /// - [`OutputError::Input`], [`OutputError::InsideInput`] if outputs would replace inputs, or be read as such
    /// - [`OutputError::NotOurs`] if a file of an output's name was not written by this job, or was changed since
    ///
    /// # Examples
    /// ```
    /// use std::io::Write;
    ///
    /// let parent = tempfile::tempdir()?;
    /// let config = serde_json::json!({"seed": 42});
    /// let dir = job_kit::OutputDir::create(parent.path().join("run"), "select-longtail", &config, ["words.csv"])?;
    /// let mut file = dir.file("words.csv")?;
    /// writeln!(file, "word")?;
    /// assert!(!dir.join("words.csv").exists()); // not before it is whole
    /// file.commit()?;
    /// job_kit::RunRecord::new("select-longtail", "0.1.0", &config).write(&dir)?;
    /// drop(dir);
    ///
    /// let another = job_kit::OutputDir::create(parent.path().join("run"), "prepare-context", &config, ["words.parquet"]);
    /// assert!(another.is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn create<S: Into<String>>(
        path: impl Into<PathBuf>,
        job: &str,
        config: &Value,
        outputs: impl IntoIterator<Item = S>,
    ) -> Result<Self, OutputError> {
        let path = path.into();
        fs::create_dir_all(&path).map_err(|source| OutputError::CreateFolder {
            path: path.clone(),
            source,
        })?;
        let lock = FolderLock::take(&path, Duration::ZERO)?;
        let not_writable = |source| OutputError::NotWritable {
            path: path.clone(),
            source,
        };
        let announced: BTreeSet<String> = outputs.into_iter().map(Into::into).collect();
        let folders: BTreeSet<PathBuf> = announced
            .iter()
            .filter_map(|name| Some(path.join(Path::new(name).parent()?)))
            .filter(|folder| folder.is_dir())
            .chain([path.clone()])
            .collect();
        for folder in folders {
            for entry in fs::read_dir(folder).map_err(not_writable)? {
                let entry = entry.map_err(not_writable)?;
                let name = entry.file_name();
                let name = name.to_string_lossy();
                if name.starts_with('.') && name.ends_with(PARTIAL) {
                    fs::remove_file(entry.path()).map_err(not_writable)?;
                }
            }
        }
        partial(&path, "write-check")
            .and_then(|file| file.close())
            .map_err(not_writable)?;

        let record = finished_run(&path)?;
        let under_way = run_under_way(&path)?;
        let owners = [
            record.as_ref().map(|run| &run.job),
            under_way.as_ref().map(|run| &run.job),
        ];
        if let Some(owner) = owners.into_iter().flatten().find(|owner| *owner != job) {
            return Err(OutputError::Owned {
                path,
                owner: owner.clone(),
                job: job.to_owned(),
            });
        }
        let kept = record.is_none() && under_way.is_some();
        let earlier = match (record, under_way) {
            // A folder that has its record is complete, and the record right.
            (Some(run), _) | (None, Some(run)) => run.outputs,
            (None, None) => Outputs::new(),
        };
        let shared = Shared {
            path,
            job: job.to_owned(),
            announced,
            state: Mutex::new(State {
                earlier,
                written: BTreeSet::new(),
                replacing: false,
                kept,
            }),
        };
        shared.check_inputs(config)?;
        shared.check_files()?;
        let changed = changed_settings(&shared.path, config);
        if !changed.is_empty() {
            tracing::warn!(
                "`{}` holds results of other settings, which this run replaces: {}; another `output.dir` keeps both",
                shared.path.display(),
                changed.join(", ")
            );
        }
        shared.mark()?;
        Ok(Self {
            shared: Arc::new(shared),
            _lock: lock,
        })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// The path of a file in this folder.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.shared.path.join(name)
    }

    /// Starts an output; the folders in its name are made.
    ///
    /// # Errors
    /// - [`OutputError::NotAnnounced`] if it is not among the outputs given at the start
    /// - else as [`AtomicFile::create`]
    pub fn file(&self, name: &str) -> Result<AtomicFile, OutputError> {
        self.shared.announced(name)?;
        let file = AtomicFile::create(self.join(name))?;
        Ok(file.of(self.shared.clone(), name.to_owned()))
    }

    /// Writes an output at once.
    ///
    /// # Errors
    /// As [`file`](Self::file), and [`OutputError::Write`].
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> Result<(), OutputError> {
        use io::Write;

        let mut file = self.file(name)?;
        file.write_all(bytes.as_ref())
            .map_err(|source| OutputError::Write {
                path: self.join(name),
                source,
            })?;
        file.commit()
    }

    /// The path of an output that other code is about to write.
    ///
    /// # Errors
    /// [`OutputError::NotAnnounced`], and [`OutputError::Write`] if the record of the earlier run cannot be put aside.
    pub fn replacing(&self, name: &str) -> Result<PathBuf, OutputError> {
        self.shared.replacing(name)?;
        Ok(self.join(name))
    }

    /// The path of a folder in this one for work that a stopped run takes up again. It makes the folder the job's even if the run fails
    /// before it has results.
    pub fn store(&self, name: &str) -> PathBuf {
        self.shared.state().kept = true;
        self.join(name)
    }

    /// Removes what earlier runs of the job have written and this one has not; keeps what was changed since.
    pub(crate) fn remove_stale(&self) -> Result<Stale, OutputError> {
        self.shared.begin()?;
        let state = self.shared.state();
        let mut stale = Stale::default();
        for (name, record) in &state.earlier {
            let path = self.join(name);
            if state.written.contains(name) || path.symlink_metadata().is_err() {
                continue;
            }
            if let Some(record) = record
                && !record.is_of(&path)?
            {
                stale.kept.push(name.clone());
                continue;
            }
            fs::remove_file(&path).map_err(|source| OutputError::Write {
                path: path.clone(),
                source,
            })?;
            stale.removed.push(name.clone());
            // Folders that were made for outputs go with the last of them.
            for folder in Path::new(name).ancestors().skip(1) {
                if folder.as_os_str().is_empty() || fs::remove_dir(self.join(folder)).is_err() {
                    break;
                }
            }
        }
        Ok(stale)
    }

    /// Hashes all that was written.
    pub(crate) fn outputs(&self) -> Result<BTreeMap<String, FileRecord>, OutputError> {
        let written = self.shared.state().written.clone();
        written
            .into_iter()
            .filter(|name| self.join(name).is_file())
            .map(|name| Ok((name.clone(), FileRecord::of(&self.join(&name))?)))
            .collect()
    }

    /// Writes the record of the run, after which the folder is complete.
    pub(crate) fn complete(&self, record: &[u8]) -> Result<(), OutputError> {
        write_file(self.join(RUN_RECORD), record)?;
        remove(&self.join(UNDER_WAY))?;
        let mut state = self.shared.state();
        (state.replacing, state.kept) = (false, false);
        Ok(())
    }
}

impl Drop for OutputDir {
    /// A run that ends early and has replaced nothing leaves the folder as it was.
    fn drop(&mut self) {
        let state = self.shared.state();
        if !state.replacing && !state.kept {
            // Best effort; what stays says no more than that this job was here.
            let _ = fs::remove_file(self.join(UNDER_WAY));
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn announced(&self, name: &str) -> Result<(), OutputError> {
        match self.announced.contains(name) {
            true => Ok(()),
            false => Err(OutputError::NotAnnounced {
                name: name.to_owned(),
            }),
        }
    }

    /// Says in the folder whose it is and which files are its outputs: those there, and those to come.
    fn mark(&self) -> Result<(), OutputError> {
        let path = self.path.join(UNDER_WAY);
        let mut outputs = self.state().earlier.clone();
        // These were just found to be as they were written: from here on they are ours, whatever is in them.
        outputs.extend(self.announced.iter().map(|name| (name.clone(), None)));
        let run = UnderWay {
            job: self.job.clone(),
            outputs,
        };
        let json = serde_json::to_vec_pretty(&run).map_err(|error| OutputError::Write {
            path: path.clone(),
            source: error.into(),
        })?;
        write_file(path, json)
    }

    /// From here on results are replaced: `run.json` would say that the folder is complete.
    fn begin(&self) -> Result<(), OutputError> {
        let mut state = self.state();
        if !state.replacing {
            remove(&self.path.join(RUN_RECORD))?;
            state.replacing = true;
        }
        Ok(())
    }

    /// An output is about to get its name.
    pub(super) fn replacing(&self, name: &str) -> Result<(), OutputError> {
        self.announced(name)?;
        self.begin()?;
        self.state().written.insert(name.to_owned());
        Ok(())
    }

    /// Refuses files of outputs' names that no run of the job has left there.
    fn check_files(&self) -> Result<(), OutputError> {
        let state = self.state();
        let mut names = BTreeSet::new();
        for name in &self.announced {
            let path = self.path.join(name);
            if let Some(parent) = Path::new(name)
                .ancestors()
                .skip(1)
                .find(|parent| self.path.join(parent).is_file())
            {
                names.insert(parent.display().to_string());
            } else if path.symlink_metadata().is_ok() {
                let ours = match state.earlier.get(name) {
                    None => false,
                    Some(None) => path.is_file(),
                    Some(Some(record)) => record.is_of(&path)?,
                };
                if !ours {
                    names.insert(name.clone());
                }
            }
        }
        match names.is_empty() {
            true => Ok(()),
            false => Err(OutputError::NotOurs {
                path: self.path.clone(),
                job: self.job.clone(),
                names: names.into_iter().collect(),
            }),
        }
    }

    /// Refuses a configuration whose inputs are among the outputs.
    fn check_inputs(&self, config: &Value) -> Result<(), OutputError> {
        let Ok(own) = self.path.canonicalize() else {
            return Ok(());
        };
        // Outputs of earlier runs that this one does not write would be removed.
        let state = self.state();
        let mut outputs: BTreeMap<PathBuf, &str> = BTreeMap::new();
        for name in self
            .announced
            .iter()
            .chain(state.earlier.keys())
            .map(String::as_str)
            .chain([RUN_RECORD])
        {
            let path = self.path.join(name);
            if path.symlink_metadata().is_ok() {
                outputs.extend(path.canonicalize().map(|path| (path, name)));
                outputs.insert(own.join(name), name);
            }
        }
        let mut inputs = Vec::new();
        paths(config, &mut Vec::new(), &mut inputs);
        for (key, input) in inputs {
            let Ok(resolved) = input.canonicalize() else {
                continue;
            };
            // A link is an input under its own name too.
            let parent = input
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty());
            let named = parent
                .unwrap_or(Path::new("."))
                .canonicalize()
                .ok()
                .zip(input.file_name())
                .map(|(parent, name)| parent.join(name));
            let replaced = outputs.iter().find(|(output, _)| {
                **output == resolved
                    || Some(*output) == named.as_ref()
                    || resolved.starts_with(&own)
                        && resolved != own
                        && output.starts_with(&resolved)
            });
            if let Some((_, name)) = replaced {
                return Err(OutputError::Input {
                    path: self.path.join(name),
                    key,
                });
            }
            let mut parts = key
                .split('.')
                .rev()
                .skip_while(|part| part.parse::<usize>().is_ok());
            let whole =
                parts.next() == Some("path") && !matches!(parts.next(), Some("model" | "input"));
            if whole && resolved.is_dir() && own.starts_with(&resolved) {
                return Err(OutputError::InsideInput {
                    path: self.path.clone(),
                    input,
                    key,
                });
            }
        }
        Ok(())
    }
}

/// All texts of a configuration that are paths of something, with their keys.
fn paths(value: &Value, key: &mut Vec<String>, found: &mut Vec<(String, PathBuf)>) {
    match value {
        Value::Object(map) => {
            let top = key.is_empty();
            for (name, value) in map.iter().filter(|(name, _)| !top || *name != "output") {
                key.push(name.clone());
                paths(value, key, found);
                key.pop();
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                key.push(i.to_string());
                paths(item, key, found);
                key.pop();
            }
        }
        Value::String(text) if !text.is_empty() && Path::new(text).exists() => {
            found.push((key.join("."), text.into()));
        }
        _ => {}
    }
}

/// The settings of the finished run in a folder that are not those of a new one, with the values that they had; none without such a run.
fn changed_settings(folder: &Path, config: &Value) -> Vec<String> {
    let record = fs::read(folder.join(RUN_RECORD)).ok();
    let record = record.and_then(|json| serde_json::from_slice::<Value>(&json).ok());
    let Some(earlier) = record.as_ref().and_then(|record| record.get("config")) else {
        return Vec::new();
    };
    let now = as_recorded(config);
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    leaves("", earlier, &mut before);
    leaves("", &now, &mut after);
    let changed = before.iter().filter(|(key, value)| {
        !key.starts_with("output.") && after.get(*key).unwrap_or(&&Value::Null) != *value
    });
    let mut changed: Vec<String> = changed
        .map(|(key, value)| format!("`{key}` was {value}"))
        .collect();
    let new = after.keys().filter(|key| !before.contains_key(*key));
    let new = new.filter(|key| !key.starts_with("output.") && !after[*key].is_null());
    changed.extend(new.map(|key| format!("`{key}` was not set")));
    changed
}

/// The values of a configuration by the paths of their keys.
fn leaves<'v>(path: &str, value: &'v Value, found: &mut BTreeMap<String, &'v Value>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = match path {
                    "" => key.clone(),
                    path => format!("{path}.{key}"),
                };
                leaves(&path, value, found);
            }
        }
        value => {
            found.insert(path.to_owned(), value);
        }
    }
}

/// What `run.json` says; `None` where there is none, or one that no job of ours wrote (which is then a file like any other).
fn finished_run(folder: &Path) -> Result<Option<UnderWay>, OutputError> {
    let path = folder.join(RUN_RECORD);
    let Some(json) = read(&path)? else {
        return Ok(None);
    };
    #[derive(Deserialize)]
    struct Record {
        job: String,
        outputs: BTreeMap<String, FileRecord>,
    }
    let record: Record = serde_json::from_slice(&json).map_err(|_| OutputError::NotOurs {
        path: folder.to_owned(),
        job: "this workspace".to_owned(),
        names: vec![RUN_RECORD.to_owned()],
    })?;
    let outputs = record
        .outputs
        .into_iter()
        .filter_map(|(path, file)| Some((name_in(folder, Path::new(&path))?, Some(file))))
        .collect();
    Ok(Some(UnderWay {
        job: record.job,
        outputs,
    }))
}

/// The name in the folder of an output that a record names. Records of earlier versions have whole paths, which need not hold from
/// here: the longest end of the path that is there counts.
fn name_in(folder: &Path, path: &Path) -> Option<String> {
    let parts: Vec<&str> = path
        .components()
        .filter_map(|part| match part {
            Component::Normal(part) => part.to_str(),
            _ => None,
        })
        .collect();
    (0..parts.len())
        .map(|from| parts[from..].join("/"))
        .find(|name| folder.join(name).symlink_metadata().is_ok())
}

/// Whether a name stays in the folder that it is joined to.
fn is_inside(name: &str) -> bool {
    Path::new(name)
        .components()
        .all(|part| matches!(part, Component::Normal(_)))
}

fn run_under_way(folder: &Path) -> Result<Option<UnderWay>, OutputError> {
    let path = folder.join(UNDER_WAY);
    match read(&path)? {
        None => Ok(None),
        Some(json) => match serde_json::from_slice::<UnderWay>(&json) {
            Ok(run) if run.outputs.keys().all(|name| is_inside(name)) => Ok(Some(run)),
            _ => Err(OutputError::Marker { path }),
        },
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, OutputError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(OutputError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

fn remove(path: &Path) -> Result<(), OutputError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(OutputError::Write {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

/// Keeps other processes of ours out of a folder while it lives.
///
/// It is advisory and known on Unix only; file systems without locks are used unlocked.
#[derive(Debug)]
pub struct FolderLock(Option<File>);

impl FolderLock {
    /// Takes the lock, and waits so long for a process that has it and may just be ending.
    ///
    /// # Errors
    /// - [`OutputError::NotWritable`] if the folder cannot be opened
    /// - [`OutputError::InUse`] if another process holds it
    pub fn take(folder: &Path, patience: Duration) -> Result<Self, OutputError> {
        if cfg!(not(unix)) {
            return Ok(Self(None));
        }
        let file = File::open(folder).map_err(|source| OutputError::NotWritable {
            path: folder.to_owned(),
            source,
        })?;
        let since = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self(Some(file))),
                Err(TryLockError::WouldBlock) if since.elapsed() < patience => {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(OutputError::InUse {
                        path: folder.to_owned(),
                    });
                }
                Err(TryLockError::Error(error)) => {
                    tracing::debug!("`{}` cannot be locked: {error}", folder.display());
                    return Ok(Self(None));
                }
            }
        }
    }
}

impl Drop for FolderLock {
    /// Closing alone is not enough: a process that is being started has a copy of the handle until it becomes another program, and would
    /// hold the lock so long.
    fn drop(&mut self) {
        if let Some(folder) = &self.0 {
            let _ = folder.unlock();
        }
    }
}
