//! A study: steps, each a sweep of one job, whose inputs are results of earlier steps.
//!
//! `${step:NAME}` in a step stands for the folder of a job of another step, `${step:NAME.KEY}` for one of its values, `${steps:NAME}` for
//! the folder in which all its jobs have theirs. A step has a job
//! for every combination of its own values and of the jobs of the steps that it names, where these agree on the keys that they share.
//! What the jobs are is known before any runs, since the number of a job, and with it its folder, is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::Ordering,
};

use anyhow::{Context, bail};
use job_kit::{ConfigError, Verbosity, WithHint, write_file};
use serde::{Deserialize, Serialize};
use serde_yaml::{Mapping, Value};

use crate::{
    collect::REPORT,
    follow::{self, Follow},
    manifest::{self, Entry, Manifest, State},
    process,
    sweep::{Axis, axis, written, zip},
    values::key,
};

/// What a reference to a job of a step begins with.
const STEP: &str = "${step:";
/// What a reference to all jobs of a step begins with.
const STEPS: &str = "${steps:";

/// The arguments of a study; flatten them into a parser.
///
/// # Examples
/// ```
/// use clap::Parser;
///
/// #[derive(Parser)]
/// struct Cli {
///     #[command(flatten)]
///     study: batch_runs::StudyArgs,
/// }
/// let cli = Cli::parse_from(["run-study", "demo", "words.seed=1,2", "--dry-run"]);
/// assert_eq!(cli.study.overrides, ["words.seed=1,2"]);
/// ```
#[derive(Debug, Clone, clap::Args)]
pub struct StudyArgs {
    /// The study: a name in `configs/study`, or a path to a YAML file
    pub study: PathBuf,
    /// Values of a step, `STEP.KEY=VALUE`, several as `a,b`; they take the place of those in the file
    #[arg(value_name = "STEP.KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Folder of the results, in place of the study's own
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Folder of configs and their groups
    #[arg(long, value_name = "DIR", default_value = "configs")]
    pub config_dir: PathBuf,
    /// Show the jobs of every step, and run none
    #[arg(long)]
    pub dry_run: bool,
    /// Start no further job after one has failed
    #[arg(long)]
    pub fail_fast: bool,
    /// How many jobs of a step run at once, sharing the cores [default: 1]
    #[arg(short, long, value_name = "N")]
    pub jobs: Option<NonZeroUsize>,
    /// What runs the jobs, a choice of `configs/launcher` such as `slurm` [default: this machine]
    #[arg(long, value_name = "NAME")]
    pub launcher: Option<String>,
    /// End once a scheduler has all jobs
    #[arg(long, requires = "launcher")]
    pub detach: bool,
    /// What to do with jobs that a scheduler has.
    #[command(flatten)]
    pub follow: Follow,
}

/// The file of a study.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Study {
    dir: PathBuf,
    /// [`Step`]s by name.
    steps: Mapping,
}

/// A job with its overrides, and the values that it is swept over.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    /// What it is for, for people.
    title: Option<String>,
    /// The program, which lies beside this one.
    job: String,
    #[serde(default)]
    overrides: Vec<String>,
    /// Keys with their values, all combinations of which are run.
    #[serde(default)]
    sweep: serde_json::Map<String, serde_json::Value>,
    /// Keys whose values go together.
    #[serde(default)]
    zip: serde_json::Map<String, serde_json::Value>,
    /// What differs from the launcher's file for this step.
    #[serde(default)]
    launcher: Mapping,
}

/// A step taken apart.
struct Taken {
    name: String,
    step: Step,
    axes: Vec<Axis>,
    /// The steps that it names, and of these, those of which each of its jobs reads from one job.
    inputs: BTreeSet<String>,
    of_one_job: BTreeSet<String>,
}

/// A step of which the jobs are known.
struct Planned {
    name: String,
    title: Option<String>,
    job: String,
    /// The configuration of its sweep.
    file: PathBuf,
    folder: PathBuf,
    inputs: BTreeSet<String>,
    jobs: Vec<PlannedJob>,
}

impl Planned {
    fn heading(&self) -> String {
        let named = format!("{} ({})", self.name, self.job);
        match &self.title {
            Some(title) => format!("{named}: {title}"),
            None => named,
        }
    }

    /// The page to read: of its job, if it is one that writes a page, or of its sweep.
    fn report(&self) -> Option<PathBuf> {
        let folder = match &self.jobs[..] {
            [job] => self.folder.join(job.entry.number.to_string()),
            _ => self.folder.clone(),
        };
        Some(folder.join(REPORT)).filter(|path| path.is_file())
    }
}

struct PlannedJob {
    entry: Entry,
    values: Values,
}

/// The values of a job, its own and those of the jobs that it reads from.
#[derive(Debug, Clone, Default)]
struct Values {
    /// Those of keys that are swept over.
    swept: BTreeMap<String, String>,
    /// Those that all jobs of a step have.
    fixed: BTreeMap<String, String>,
    /// What those that name other steps have become.
    filled: BTreeMap<String, String>,
}

impl Values {
    fn get(&self, key: &str) -> Option<&String> {
        let written = self.swept.get(key).or_else(|| self.fixed.get(key))?;
        let filled = self.filled.get(key).filter(|_| names_steps(written));
        Some(filled.unwrap_or(written))
    }

    /// Whether two jobs have the same value of each key that both are swept over.
    fn agrees(&self, other: &Self) -> bool {
        let same = |(key, value): (&String, &String)| {
            self.swept.get(key).is_none_or(|other| other == value)
        };
        other.swept.iter().all(same)
    }

    /// Takes over what a job has that this one reads from.
    fn inherit(&mut self, other: &Self) {
        self.swept.extend(other.swept.clone());
        self.filled.extend(other.filled.clone());
        for (key, value) in &other.fixed {
            let own = self.fixed.entry(key.clone());
            own.or_insert_with(|| value.clone());
        }
    }
}

/// A file that a program composes a step from.
#[derive(Serialize)]
struct StepFile {
    defaults: Vec<Value>,
    sweep: StepSweep,
}

#[derive(Serialize)]
struct StepSweep {
    dir: PathBuf,
    overrides: Vec<String>,
    jobs: Vec<Vec<String>>,
    #[serde(skip_serializing_if = "Mapping::is_empty")]
    launcher: Mapping,
}

/// The whole of a program that runs studies, after its command line.
///
/// # Errors
/// For a study that is refused, before anything runs, and if not all of its jobs have finished.
pub fn run_study(args: &StudyArgs, verbosity: Verbosity) -> anyhow::Result<()> {
    let (study, path) = read(args)?;
    let steps = in_order(take_apart(&study, args, &path)?, &path)?;
    let dir = args.dir.clone().unwrap_or(study.dir);
    let runner = Runner {
        args,
        verbosity,
        dir,
    };
    if let Some(asked) = args.follow.asked() {
        return runner.follow(steps, asked);
    }
    // All are composed before the first is written; a wrong one is refused.
    let dry = tempfile::tempdir().context("failed to make a temporary folder")?;
    let planned = runner.plan(&steps, dry.path(), true)?;
    if args.dry_run {
        return Ok(job_kit::print(runner.listing(&planned))?);
    }
    let _lock = manifest::lock(&runner.dir)?;
    let mut planned = runner.plan(&steps, &runner.dir, false)?;
    runner.run(&mut planned)
}

fn read(args: &StudyArgs) -> anyhow::Result<(Study, PathBuf)> {
    let is_path = args
        .study
        .extension()
        .is_some_and(|extension| extension == "yaml" || extension == "yml");
    let folder = args.config_dir.join("study");
    let path = match is_path {
        true => args.study.clone(),
        false => {
            let name = args.study.to_string_lossy();
            job_kit::config::group_file(&args.config_dir, "study", &name)
        }
    };
    let text = fs::read_to_string(&path)
        .with_context(|| format!("failed to read study `{}`", path.display()))
        .hint(format!(
            "studies are files, or names in `{}`: {}",
            folder.display(),
            job_kit::config::group_choices(&args.config_dir, "study").join(", ")
        ))?;
    let study =
        serde_yaml::from_str(&text).with_context(|| format!("`{}` is no study", path.display()))?;
    Ok((study, path))
}

fn take_apart(study: &Study, args: &StudyArgs, path: &Path) -> anyhow::Result<Vec<Taken>> {
    let mut steps = vec![];
    for (name, step) in &study.steps {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let name = name.as_str().filter(|name| {
            !name.is_empty() && name.chars().all(plain) && name.parse::<usize>().is_err()
        });
        let name = name.with_context(|| {
            format!(
                "a step of `{}` has a name of other than letters, digits, `-` and `_`",
                path.display()
            )
        })?;
        let step: Step = serde_yaml::from_value(step.clone())
            .with_context(|| format!("step `{name}` of `{}` is refused", path.display()))?;
        steps.push(Taken {
            name: name.to_owned(),
            axes: axes(&step, &args.config_dir).map_err(|reason| {
                anyhow::anyhow!("step `{name}` of `{}`: {reason}", path.display())
            })?,
            inputs: BTreeSet::new(),
            of_one_job: BTreeSet::new(),
            step,
        });
    }
    for text in &args.overrides {
        lay_over(&mut steps, text, &args.config_dir)?;
    }
    for step in &mut steps {
        let swept = step.axes.iter().flat_map(|axis| axis.values.concat());
        for text in step.step.overrides.iter().cloned().chain(swept) {
            let one = references(&text, STEP).into_iter().map(|(name, _)| name);
            step.of_one_job.extend(one);
            let all = references(&text, STEPS).into_iter().map(|(name, _)| name);
            step.inputs.extend(all);
        }
        step.inputs.extend(step.of_one_job.clone());
    }
    Ok(steps)
}

/// The values of a step that are several.
fn axes(step: &Step, config_dir: &Path) -> Result<Vec<Axis>, String> {
    let mut axes = vec![];
    for (key, value) in &step.sweep {
        let text = written(value);
        let single = || Axis {
            keys: vec![key.clone()],
            values: vec![vec![format!("{key}={text}")]],
        };
        axes.push(axis(key, &text, config_dir)?.unwrap_or_else(single));
    }
    if !step.zip.is_empty() {
        let pairs = step
            .zip
            .iter()
            .map(|(key, value)| (key.clone(), written(value)));
        axes.push(zip(pairs.collect(), config_dir)?);
    }
    Ok(axes)
}

/// Lays `STEP.KEY=VALUE` over what the file says of the step.
fn lay_over(steps: &mut [Taken], text: &str, config_dir: &Path) -> Result<(), ConfigError> {
    let refuse = |reason: String| ConfigError::Override {
        text: text.to_owned(),
        reason,
    };
    let plain = text.trim_start_matches(['+', '~']);
    let sign = &text[..text.len() - plain.len()];
    let (name, rest) = plain
        .split_once('.')
        .ok_or_else(|| refuse("expected `STEP.KEY=VALUE`".to_owned()))?;
    let known: Vec<String> = steps
        .iter()
        .map(|step| format!("`{}`", step.name))
        .collect();
    let step = steps.iter_mut().find(|step| step.name == name);
    let step = step.ok_or_else(|| {
        refuse(format!(
            "no step is named `{name}`; there are {}",
            known.join(", ")
        ))
    })?;
    let own = format!("{sign}{rest}");
    let found = match own.split_once('=') {
        Some((key, value)) => axis(key, value, config_dir).map_err(refuse)?,
        None => None,
    };
    step.axes.retain(|axis| !axis.keys.contains(&key(&own)));
    match found {
        Some(axis) => step.axes.push(axis),
        None => step.step.overrides.push(own),
    }
    Ok(())
}

/// The steps that a text names in one way, each with the key of the value that is asked for.
fn references(text: &str, begin: &str) -> Vec<(String, Option<String>)> {
    let parts = text.split(begin).skip(1);
    let inner = parts.filter_map(|part| part.split_once('}'));
    inner
        .map(|(inner, _)| match inner.split_once('.') {
            Some((name, key)) => (name.to_owned(), Some(key.to_owned())),
            None => (inner.to_owned(), None),
        })
        .collect()
}

/// The steps so that each comes after those that it names, else as they stand in the file.
fn in_order(steps: Vec<Taken>, path: &Path) -> anyhow::Result<Vec<Taken>> {
    let names: BTreeSet<String> = steps.iter().map(|step| step.name.clone()).collect();
    for step in &steps {
        if let Some(unknown) = step.inputs.iter().find(|name| !names.contains(*name)) {
            let known: Vec<&str> = names.iter().map(String::as_str).collect();
            bail!(
                "step `{}` of `{}` reads from step `{unknown}`, which is not there; there are {}",
                step.name,
                path.display(),
                known.join(", ")
            );
        }
    }
    let (mut waiting, mut ordered) = (steps, Vec::<Taken>::new());
    while !waiting.is_empty() {
        let ready = waiting.iter().position(|step| {
            let is_there = |name: &String| ordered.iter().any(|done| done.name == *name);
            step.inputs.iter().all(is_there)
        });
        match ready {
            Some(i) => ordered.push(waiting.remove(i)),
            None => {
                let names: Vec<&str> = waiting.iter().map(|step| step.name.as_str()).collect();
                bail!(
                    "steps of `{}` read from each other in a circle: {}",
                    path.display(),
                    names.join(", ")
                );
            }
        }
    }
    Ok(ordered)
}

/// The overrides of each job of a step, and the values that it has.
type Row = (Vec<String>, Values);

/// A job in the making: its own overrides, and the jobs that it reads from by their steps.
#[derive(Clone, Default)]
struct Partial<'a> {
    own: Vec<String>,
    jobs: BTreeMap<&'a str, &'a PlannedJob>,
    values: Values,
}

/// Every combination of a step's own values and of the jobs that it reads from, where they agree.
fn rows(step: &Taken, before: &[Planned]) -> anyhow::Result<Vec<Row>> {
    let pair = |text: &String| {
        let value = text.split_once('=').map_or("", |(_, value)| value);
        (key(text), value.to_owned())
    };
    let mut partial = vec![Partial::default()];
    partial[0].values.fixed = step.step.overrides.iter().map(pair).collect();
    for axis in &step.axes {
        let each = partial.iter().flat_map(|partial| {
            axis.values.iter().map(|texts| {
                let mut partial = partial.clone();
                partial.values.swept.extend(texts.iter().map(pair));
                partial.own.extend(texts.clone());
                partial
            })
        });
        partial = each.collect();
    }
    let is_input = |input: &&Planned| step.of_one_job.contains(&input.name);
    for input in before.iter().filter(is_input) {
        let each = partial.iter().flat_map(|partial| {
            let together = input
                .jobs
                .iter()
                .filter(|job| partial.values.agrees(&job.values));
            together.map(|job| {
                let mut partial = partial.clone();
                partial.values.inherit(&job.values);
                partial.jobs.insert(&input.name, job);
                partial
            })
        });
        partial = each.collect();
    }
    if partial.is_empty() {
        let names: Vec<String> = step
            .of_one_job
            .iter()
            .map(|name| format!("`{name}`"))
            .collect();
        bail!(
            "step `{}` has no jobs: none of {} agree on the values that they share with it",
            step.name,
            names.join(", ")
        );
    }
    let filled = partial.into_iter().map(|partial| {
        let Partial {
            own,
            jobs,
            mut values,
        } = partial;
        // What names another step is each job's own.
        let naming = step.step.overrides.iter().filter(|text| names_steps(text));
        let mut texts = Vec::new();
        for text in naming.chain(&own) {
            let filled = fill(text, &step.name, before, &jobs)?;
            let (key, value) = pair(&filled);
            values.filled.insert(key, value);
            texts.push(filled);
        }
        Ok((texts, values))
    });
    filled.collect()
}

fn names_steps(text: &str) -> bool {
    text.contains(STEP) || text.contains(STEPS)
}

/// Puts folders and values for the references in a text.
fn fill(
    text: &str,
    step: &str,
    before: &[Planned],
    jobs: &BTreeMap<&str, &PlannedJob>,
) -> anyhow::Result<String> {
    let mut filled = text.to_owned();
    for (name, _) in references(text, STEPS) {
        let input = before.iter().find(|input| input.name == name);
        let folder = input.map(|input| input.folder.to_string_lossy());
        let folder = folder.unwrap_or_default();
        filled = filled.replace(&format!("{STEPS}{name}}}"), &folder);
    }
    for (name, key) in references(text, STEP) {
        let (Some(job), Some(input)) = (
            jobs.get(name.as_str()),
            before.iter().find(|input| input.name == name),
        ) else {
            bail!("step `{step}` reads from step `{name}`, which comes later");
        };
        let (reference, value) = match &key {
            None => {
                let folder = input.folder.join(job.entry.number.to_string());
                (
                    format!("{STEP}{name}}}"),
                    folder.to_string_lossy().into_owned(),
                )
            }
            Some(key) => {
                let Values { swept, fixed, .. } = &job.values;
                let known: Vec<&str> = swept
                    .keys()
                    .chain(fixed.keys())
                    .map(String::as_str)
                    .collect();
                let value = job.values.get(key).with_context(|| {
                    format!(
                        "`{text}` of step `{step}` asks for a value that step `{name}` does not set; it sets {}",
                        known.join(", ")
                    )
                })?;
                (format!("{STEP}{name}.{key}}}"), value.clone())
            }
        };
        filled = filled.replacen(&reference, &value, 1);
    }
    Ok(filled)
}

struct Runner<'a> {
    args: &'a StudyArgs,
    verbosity: Verbosity,
    dir: PathBuf,
}

impl Runner<'_> {
    /// A program of a step, with what all of them are told.
    fn program(&self, job: &str, file: &Path) -> anyhow::Result<Command> {
        let mut command = process::of_job(job)?;
        command.arg("-m").arg("--config").arg(file);
        command.arg("--config-dir").arg(&self.args.config_dir);
        process::say_as_much(&mut command, self.verbosity);
        command.stdin(Stdio::null());
        Ok(command)
    }

    /// Writes the file of every step below a folder, and has its program tell which jobs there are; it freezes them unless `dry_run`.
    fn plan(&self, steps: &[Taken], files: &Path, dry_run: bool) -> anyhow::Result<Vec<Planned>> {
        let mut planned: Vec<Planned> = vec![];
        for step in steps {
            let rows = rows(step, &planned)?;
            let folder = self.dir.join(&step.name);
            let file = files.join(format!("{}.yaml", step.name));
            let common = step.step.overrides.iter();
            let mut defaults = vec![Value::from(format!("/{}", step.step.job))];
            if let Some(launcher) = &self.args.launcher {
                let pair = ("/launcher@sweep.launcher".into(), launcher.as_str().into());
                defaults.push(Value::Mapping(Mapping::from_iter([pair])));
            }
            defaults.push("_self_".into());
            let content = StepFile {
                defaults,
                sweep: StepSweep {
                    dir: folder.clone(),
                    overrides: common.filter(|text| !names_steps(text)).cloned().collect(),
                    jobs: rows.iter().map(|(texts, _)| texts.clone()).collect(),
                    launcher: match self.args.launcher {
                        Some(_) => step.step.launcher.clone(),
                        None => Mapping::new(),
                    },
                },
            };
            let text = serde_yaml::to_string(&content)?;
            write_file(
                &file,
                format!(
                    "# Step `{}` of a study, as its program reads it.\n{text}",
                    step.name
                ),
            )?;
            let mut command = self.program(&step.step.job, &file)?;
            command.arg("--plan");
            if dry_run {
                command.arg("--dry-run");
            }
            let output = command
                .stderr(Stdio::piped())
                .output()
                .with_context(|| format!("failed to run `{}`", step.step.job))?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr);
                bail!(
                    "step `{}` is refused: {}",
                    step.name,
                    said.trim().trim_start_matches("error: ")
                );
            }
            let entries: Vec<Entry> = serde_json::from_slice(&output.stdout)
                .with_context(|| format!("`{}` did not tell its jobs", step.step.job))?;
            let mut jobs = vec![];
            // Combinations that are one job are told once; each keeps the values of the first.
            for entry in entries {
                let row = rows.iter().find(|(texts, _)| *texts == entry.overrides);
                let values = row.map(|(_, values)| values.clone()).unwrap_or_default();
                jobs.push(PlannedJob { entry, values });
            }
            planned.push(Planned {
                name: step.name.clone(),
                title: step.step.title.clone(),
                job: step.step.job.clone(),
                file,
                folder,
                inputs: step.inputs.clone(),
                jobs,
            });
        }
        Ok(planned)
    }

    fn run(&self, planned: &mut [Planned]) -> anyhow::Result<()> {
        let stop = process::told_to_end()?;
        for i in 0..planned.len() {
            let step = &planned[i];
            let all_finished = step
                .jobs
                .iter()
                .all(|job| job.entry.state == State::Finished);
            if all_finished && self.args.launcher.is_none() {
                continue;
            }
            tracing::info!("step {} of {}: {}", i + 1, planned.len(), step.heading());
            let mut command = self.program(&step.job, &step.file)?;
            if let Some(jobs) = self.args.jobs {
                command.arg("--jobs").arg(jobs.to_string());
            }
            if self.args.fail_fast {
                command.arg("--fail-fast");
            }
            let scheduled = self.args.launcher.is_some();
            if scheduled {
                command.arg("--detach");
                let after = self.scheduled(planned, &step.inputs)?;
                if !after.is_empty() {
                    command.arg(format!("--after={}", after.join(":")));
                }
            }
            command.arg(format!("--started-by={}", std::process::id()));
            let mut child = command
                .spawn()
                .with_context(|| format!("failed to run `{}`", step.job))?;
            let status = loop {
                if let Some(status) = child.try_wait()? {
                    break status;
                }
                if stop.load(Ordering::Relaxed) {
                    // Ctrl-C has reached it too; a request to this process alone has not.
                    process::terminate(&child);
                    break child.wait()?;
                }
                std::thread::sleep(std::time::Duration::from_millis(5));
            };
            self.look(&mut planned[i])?;
            let failed = !status.success();
            if stop.load(Ordering::Relaxed) {
                job_kit::print(self.table(planned))?;
                return Err(anyhow::anyhow!("interrupted"))
                    .hint("the same command goes on with what has not finished");
            }
            if status.code() == Some(2) || (failed && (scheduled || self.args.fail_fast)) {
                job_kit::print(self.table(planned))?;
                bail!("step `{}` failed", planned[i].name);
            }
        }
        if self.args.launcher.is_some() && !self.args.detach {
            for step in planned.iter_mut() {
                follow::wait(&step.folder, &step.job)?;
                self.look(step)?;
            }
        }
        job_kit::print(self.table(planned))?;
        match self.args.detach {
            true => Ok(()),
            false => self.report(planned),
        }
    }

    /// The jobs of the scheduler that run steps.
    fn scheduled(
        &self,
        planned: &[Planned],
        names: &BTreeSet<String>,
    ) -> anyhow::Result<Vec<String>> {
        let mut found = BTreeSet::new();
        for step in planned.iter().filter(|step| names.contains(&step.name)) {
            let manifest = Manifest::read(&step.folder, &step.job)?;
            let entries = manifest.into_iter().flat_map(|manifest| manifest.jobs);
            found.extend(entries.filter_map(|entry| entry.task?.job));
        }
        Ok(found.into_iter().collect())
    }

    /// Takes over what has become of the jobs of a step.
    fn look(&self, step: &mut Planned) -> anyhow::Result<()> {
        let manifest = follow::collected(&step.folder, &step.job)?;
        for job in &mut step.jobs {
            let number = job.entry.number;
            if let Some(entry) = manifest.jobs.iter().find(|entry| entry.number == number) {
                job.entry = entry.clone();
            }
        }
        Ok(())
    }

    fn follow(&self, steps: Vec<Taken>, asked: &str) -> anyhow::Result<()> {
        let dry = tempfile::tempdir().context("failed to make a temporary folder")?;
        let mut planned = self.plan(&steps, dry.path(), true)?;
        for step in &mut planned {
            if !step.folder.join(manifest::MANIFEST).is_file() {
                continue;
            }
            match asked {
                "--wait" => follow::wait(&step.folder, &step.job)?,
                "--cancel" => follow::cancel(&step.folder, &step.job)?,
                _ => {}
            }
            self.look(step)?;
        }
        job_kit::print(self.table(&planned))?;
        match asked {
            "--cancel" => Ok(()),
            _ => self.report(&planned),
        }
    }

    /// What `--dry-run` shows.
    fn listing(&self, planned: &[Planned]) -> String {
        let mut text = String::new();
        for step in planned {
            text += &format!("{}\n", step.heading());
            for job in &step.jobs {
                let entry = &job.entry;
                text += &format!(
                    "{:>5}  {:<11}  {}\n",
                    entry.number,
                    entry.state.name(),
                    entry.overrides.join(" ")
                );
            }
        }
        text + &self.table(planned)
    }

    /// The steps with how many of their jobs are in which state, and the errors.
    fn table(&self, planned: &[Planned]) -> String {
        let width = |name: fn(&Planned) -> &str| planned.iter().map(|step| name(step).len()).max();
        let names = width(|step| &step.name).unwrap_or(0).max(4);
        let programs = width(|step| &step.job).unwrap_or(0);
        let mut text = format!("{:<names$}  {:<programs$}  jobs\n", "step", "job");
        for step in planned {
            let states = [
                State::Finished,
                State::Running,
                State::Queued,
                State::Failed,
                State::Interrupted,
                State::Pending,
            ];
            let counts = states.into_iter().filter_map(|state| {
                let of_state = step
                    .jobs
                    .iter()
                    .filter(|job| job.entry.state == state)
                    .count();
                (of_state > 0).then(|| format!("{of_state} {}", state.name()))
            });
            let counts = counts.collect::<Vec<_>>().join(", ");
            text += &format!("{:<names$}  {:<programs$}  {counts}\n", step.name, step.job);
            for job in &step.jobs {
                if let Some(error) = &job.entry.error {
                    text += &format!("  job {}: {error}\n", job.entry.number);
                }
            }
        }
        for report in planned.iter().filter_map(Planned::report) {
            text += &format!("Report: {}\n", report.display());
        }
        text + &format!("Folder: {}\n", self.dir.display())
    }

    /// The error that tells that not all has finished.
    fn report(&self, planned: &[Planned]) -> anyhow::Result<()> {
        let states: Vec<State> = planned
            .iter()
            .flat_map(|step| step.jobs.iter().map(|job| job.entry.state))
            .collect();
        let finished = states
            .iter()
            .filter(|&&state| state == State::Finished)
            .count();
        if finished == states.len() {
            return Ok(());
        }
        let active = states.iter().filter(|state| state.is_active()).count();
        let error = anyhow::anyhow!(
            "{finished} of {} jobs of the study have finished",
            states.len()
        );
        match active {
            0 => Err(error).hint("the same command goes on with the others"),
            _ => Err(error)
                .hint("`--wait` waits for the scheduler, `--cancel` takes the jobs from it"),
        }
    }
}
