//! Slurm: jobs as the tasks of arrays, and what has become of them, without its accounting.
//!
//! In the folder `slurm` of a sweep, `N.json` is a list of tasks (the numbers of the jobs of each), `N.sh` the script of its array, and
//! `N-INDEX.log` what a task says itself. A task is a [worker](crate::worker), which leaves a marker in the folder of each job. `squeue`
//! tells which tasks there still are, by the path of the script, so that an array is found again whose submitting process was killed
//! before it could note its name. Of one that is gone, `scontrol` tells why for some minutes.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use job_kit::{Verbosity, WithHint, write_file};
use serde::{Deserialize, Serialize};

use crate::{
    launcher,
    manifest::{Manifest, State, Task},
    marker::Marker,
    process,
};

/// The folder of lists, scripts and logs.
const FOLDER: &str = "slurm";
/// How long a cancelled task may take to end.
const CANCELS: Duration = Duration::from_secs(60);
/// How often Slurm is asked.
pub(crate) const LOOK: Duration = Duration::from_secs(2);

/// What a worker reads: the jobs of each task, by their numbers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TaskList {
    pub(crate) tasks: Vec<Vec<usize>>,
    /// Seconds between the notice of the time limit and the limit.
    pub(crate) notice: u32,
    pub(crate) quiet: bool,
    pub(crate) verbose: u8,
}

/// Submits the jobs at these places, to begin when other arrays have ended.
///
/// # Errors
/// If files cannot be written, or Slurm refuses.
pub(crate) fn submit(
    manifest: &mut Manifest,
    todo: &[usize],
    slurm: &launcher::Slurm,
    after: &[String],
    verbosity: Verbosity,
) -> anyhow::Result<()> {
    let most = max_array_size()?;
    let folder = folder(manifest)?;
    let tasks: Vec<&[usize]> = todo.chunks(slurm.jobs_per_task.get()).collect();
    for tasks in tasks.chunks(most) {
        submit_array(manifest, tasks, &folder, slurm, after, verbosity)?;
    }
    Ok(())
}

/// The folder of lists and scripts, by an absolute path.
fn folder(manifest: &Manifest) -> anyhow::Result<PathBuf> {
    let folder = std::path::absolute(manifest.folder.join(FOLDER))?;
    Ok(folder.canonicalize().unwrap_or(folder))
}

fn submit_array(
    manifest: &mut Manifest,
    tasks: &[&[usize]],
    folder: &Path,
    slurm: &launcher::Slurm,
    after: &[String],
    verbosity: Verbosity,
) -> anyhow::Result<()> {
    let mut list = 0;
    while folder.join(format!("{list}.json")).exists() {
        list += 1;
    }
    let json = folder.join(format!("{list}.json"));
    let script = folder.join(format!("{list}.sh"));
    let numbers = |task: &&[usize]| task.iter().map(|&i| manifest.jobs[i].number).collect();
    let content = TaskList {
        tasks: tasks.iter().map(numbers).collect(),
        notice: slurm.notice,
        quiet: verbosity.quiet,
        verbose: verbosity.verbose,
    };
    write_file(&json, serde_json::to_vec_pretty(&content)?)?;
    let setup: String = slurm.setup.iter().map(|line| format!("{line}\n")).collect();
    let program = process::in_shell()?;
    let work = process::quoted(&json);
    write_file(
        &script,
        format!("#!/bin/bash\nset -e\n{setup}exec {program} --work {work}\n"),
    )?;

    // Noted before it is submitted: should this process be killed, the script tells which array it is.
    let mut before = vec![];
    for (index, task) in tasks.iter().enumerate() {
        for &i in *task {
            let entry = &mut manifest.jobs[i];
            before.push((i, entry.state, entry.error.take()));
            entry.state = State::Queued;
            entry.task = Some(Task {
                list,
                index,
                job: None,
            });
        }
    }
    manifest.write()?;
    let submitted = sbatch(manifest, tasks.len(), &script, slurm, after);
    for (i, state, error) in before {
        let entry = &mut manifest.jobs[i];
        match (&submitted, &mut entry.task) {
            (Ok(job), Some(task)) => task.job = Some(job.clone()),
            _ => (entry.state, entry.error, entry.task) = (state, error, None),
        }
    }
    manifest.write()?;
    let job = submitted?;
    tracing::info!("submitted {} tasks to Slurm as job {job}", tasks.len());
    Ok(())
}

/// The name that Slurm gives to an array.
fn sbatch(
    manifest: &Manifest,
    tasks: usize,
    script: &Path,
    slurm: &launcher::Slurm,
    after: &[String],
) -> anyhow::Result<String> {
    let throttle = slurm.throttle.map(|n| format!("%{n}")).unwrap_or_default();
    let log = script
        .with_extension("")
        .to_string_lossy()
        .replace('%', "%%");
    let mut command = Command::new("sbatch");
    command
        .args(["--parsable", "--requeue", "--open-mode=append"])
        .arg(format!("--job-name={}", manifest.job))
        .arg(format!("--array=0-{}{throttle}", tasks - 1))
        .arg(format!("--output={log}-%a.log"))
        .arg(format!("--signal=B:USR2@{}", slurm.notice));
    for (option, value) in [
        ("partition", slurm.partition.clone()),
        ("account", slurm.account.clone()),
        ("qos", slurm.qos.clone()),
        ("gres", slurm.gres.clone()),
        ("constraint", slurm.constraint.clone()),
        ("cpus-per-task", slurm.cpus.map(|n| n.to_string())),
        ("mem", slurm.memory.clone()),
        ("time", slurm.time.clone()),
        (
            "dependency",
            (!after.is_empty()).then(|| format!("afterany:{}", after.join(":"))),
        ),
    ] {
        if let Some(value) = value {
            command.arg(format!("--{option}={value}"));
        }
    }
    command.args(&slurm.options).arg(script);
    let answer = output(&mut command)?;
    // `--parsable` gives the number, and on some clusters `;` and a name.
    let number = answer.trim().split(';').next().unwrap_or_default();
    match !number.is_empty() && number.chars().all(|c| c.is_ascii_digit()) {
        true => Ok(number.to_owned()),
        false => bail!(
            "sbatch answered `{}`, expected the number of a job",
            answer.trim()
        ),
    }
}

/// What a program of Slurm prints.
fn output(command: &mut Command) -> anyhow::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("failed to run `{name}`"))
        .hint("Slurm's programs have to be on the PATH of a machine that may submit to it")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{name}` failed: {}", said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// How many tasks an array may have.
fn max_array_size() -> anyhow::Result<usize> {
    let config = output(Command::new("scontrol").args(["show", "config"]))?;
    let value = config.lines().find_map(|line| {
        let (key, value) = line.split_once('=')?;
        (key.trim() == "MaxArraySize").then(|| value.trim().parse().ok())?
    });
    // 1001 where nothing is set. The largest index is one less.
    Ok(value.unwrap_or(1001).max(1))
}

/// Asks Slurm which tasks there still are, and takes over what the workers noted.
///
/// # Errors
/// If Slurm does not answer.
pub(crate) fn refresh(manifest: &mut Manifest) -> anyhow::Result<()> {
    if manifest.jobs.iter().all(|entry| entry.task.is_none()) {
        return Ok(());
    }
    // First this and then the markers: of a task that is gone, these are complete.
    let present = present(manifest)?;
    let mut why_gone = HashMap::new();
    for i in 0..manifest.jobs.len() {
        let Some(task) = manifest.jobs[i].task.clone() else {
            continue;
        };
        let is_there = present.contains(&(task.list, task.index));
        let folder = manifest.job_folder(i);
        let marker = Marker::read(&folder).filter(|marker| marker.is_of(&task));
        let record = manifest.has_record(i);
        let entry = &mut manifest.jobs[i];
        if let Some(marker) = &marker {
            entry.attempts = marker.attempts;
            entry.started = Some(marker.started.clone());
            entry.host = marker.host.clone();
            entry.seconds = marker.seconds;
            entry.exit_code = marker.exit_code;
            entry.error = marker.error.clone();
        }
        let state = marker.map(|marker| marker.state);
        entry.state = match state {
            Some(State::Finished) => State::Finished,
            // Whatever it was that ended the worker, the job was complete.
            Some(State::Running) if record && !is_there => State::Finished,
            Some(State::Failed) => State::Failed,
            Some(State::Running) if is_there => State::Running,
            _ if is_there => State::Queued,
            Some(State::Pending) => State::Pending,
            _ => {
                let gone = why_gone.entry((task.list, task.index));
                let gone = gone.or_insert_with(|| Gone::ask(&task));
                let log = manifest_log(&manifest.folder, &task);
                let (state, error) = gone.tell(state, &log);
                // What the worker said itself, where Slurm knows nothing better.
                entry.error = error.or(entry.error.take());
                state
            }
        };
        entry.run_record = record;
        if entry.state == State::Finished {
            entry.error = None;
        }
        if !entry.state.is_active() {
            entry.task = None;
        }
    }
    Ok(())
}

fn manifest_log(folder: &Path, task: &Task) -> PathBuf {
    let name = format!("{}-{}.log", task.list, task.index);
    folder.join(FOLDER).join(name)
}

/// The tasks of this sweep that Slurm has, as places in their lists.
fn present(manifest: &Manifest) -> anyhow::Result<HashSet<(usize, usize)>> {
    let folder = folder(manifest)?;
    let named: HashMap<&str, usize> = manifest
        .jobs
        .iter()
        .filter_map(|entry| entry.task.as_ref())
        .filter_map(|task| Some((task.job.as_deref()?, task.list)))
        .collect();
    // Text, as the JSON of `squeue` is another one in each version.
    let text = output(Command::new("squeue").args([
        "--noheader",
        "--array",
        "--me",
        "--format=%F|%K|%T|%o",
    ]))?;
    let mut found = HashSet::new();
    for line in text.lines() {
        let mut parts = line.splitn(4, '|');
        let (Some(job), Some(index), Some(state), Some(script)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let by_script = Path::new(script.trim())
            .strip_prefix(&folder)
            .ok()
            .and_then(|script| script.to_str()?.strip_suffix(".sh")?.parse().ok());
        let list = named.get(job).copied().or(by_script);
        if let (Some(list), Ok(index)) = (list, index.parse()) {
            // One that waits for what will not come waits for ever.
            if state != "REVOKED" {
                found.insert((list, index));
            }
        }
    }
    Ok(found)
}

/// What Slurm says of a task that has ended.
#[derive(Debug, Default)]
struct Gone {
    state: String,
    node: String,
    /// Exit code and signal.
    exit: String,
}

impl Gone {
    /// Empty where Slurm has forgotten the task, or never knew it.
    fn ask(task: &Task) -> Self {
        let Some(job) = &task.job else {
            return Self::default();
        };
        let name = format!("{job}_{}", task.index);
        field_values(&name).map_or_else(Self::default, |fields| {
            let get = |key: &str| fields.get(key).cloned().unwrap_or_default();
            Self {
                state: get("JobState"),
                node: get("NodeList"),
                exit: get("ExitCode"),
            }
        })
    }

    /// The state of a job that has not ended by itself, and why; `noted` is what its worker said of it.
    fn tell(&self, noted: Option<State>, log: &Path) -> (State, Option<String>) {
        let why = match &*self.state {
            "OUT_OF_MEMORY" => Some((
                State::Failed,
                "out of memory: ask for more with `sweep.launcher.memory`".to_owned(),
            )),
            "TIMEOUT" | "DEADLINE" => Some((
                State::Failed,
                "it reached its time limit: ask for more with `sweep.launcher.time`".to_owned(),
            )),
            "NODE_FAIL" | "BOOT_FAIL" => {
                Some((State::Interrupted, format!("node `{}` vanished", self.node)))
            }
            "CANCELLED" => Some((State::Interrupted, "it was cancelled".to_owned())),
            _ => None,
        };
        let (state, why) = match (why, noted) {
            (Some(told), _) => told,
            (None, Some(State::Interrupted)) => return (State::Interrupted, None),
            (None, Some(_)) => {
                let signal = self.exit.split_once(':').map_or("0", |(_, signal)| signal);
                let why = match signal {
                    "0" => {
                        "its task is gone without a word: node, network or Slurm itself".to_owned()
                    }
                    signal => format!("its task was killed by signal {signal}"),
                };
                (State::Interrupted, why)
            }
            // Set-up lines that failed, a program that is not there.
            (None, None) => {
                let said = fs::read_to_string(log).unwrap_or_default();
                match said.lines().rev().find(|line| !line.trim().is_empty()) {
                    Some(said) => (
                        State::Failed,
                        format!("its task ended before it began: {said}"),
                    ),
                    None => return (State::Pending, None),
                }
            }
        };
        (state, Some(format!("{why} (Slurm)")))
    }
}

/// The fields of `scontrol show job` of a task.
pub(crate) fn field_values(name: &str) -> Option<HashMap<String, String>> {
    let text = output(Command::new("scontrol").args(["show", "job", "-o", name])).ok()?;
    // One line for the array as a whole may stand besides.
    let line = text.lines().next()?;
    let fields = line.split_whitespace().filter_map(|part| {
        let (key, value) = part.split_once('=')?;
        Some((key.to_owned(), value.to_owned()))
    });
    Some(fields.collect())
}

/// Takes the tasks of the sweep from Slurm, and waits until they are gone.
///
/// # Errors
/// If Slurm does not answer, or they do not end.
pub(crate) fn cancel(manifest: &mut Manifest) -> anyhow::Result<()> {
    let mut names: Vec<String> = manifest
        .jobs
        .iter()
        .filter_map(|entry| entry.task.as_ref()?.job.clone())
        .collect();
    names.sort();
    names.dedup();
    if !names.is_empty() {
        output(Command::new("scancel").args(&names))?;
    }
    let since = Instant::now();
    while !present(manifest)?.is_empty() {
        if since.elapsed() > CANCELS {
            bail!("Slurm still has tasks of `{}`", manifest.folder.display());
        }
        thread::sleep(LOOK / 4);
    }
    refresh(manifest)
}
