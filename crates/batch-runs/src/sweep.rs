//! The jobs of a sweep: every combination of values, composed, frozen, and run.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use job_kit::{
    ConfigArgs, ConfigError, Resolved, Rules, Verbosity, compose,
    config::{compose_values, group_choices},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    BatchArgs, collect, follow,
    identity::{Inputs, identity, set},
    launch::{self, Ended},
    launcher::{self, Launcher},
    manifest::{self, CONFIG, Entry, Manifest, OVERRIDES, State},
    slurm,
    summary::{count, report, summary, table},
    values::{call, is_name, key, split, values},
};

/// More jobs than a sweep has.
const MOST: usize = 100_000;

/// Keys that change together: for each of its values the overrides that make it.
#[derive(Debug, Clone)]
pub(crate) struct Axis {
    pub(crate) keys: Vec<String>,
    pub(crate) values: Vec<Vec<String>>,
}

/// What is said of a sweep under the key `sweep`.
struct Described {
    folder: PathBuf,
    axes: Vec<Axis>,
    /// Overrides of all its jobs, each as it is.
    overrides: Vec<String>,
    launcher: Option<Launcher>,
}

pub(crate) fn run<T: DeserializeOwned + Serialize + Rules>(
    job: &str,
    version: &str,
    args: &BatchArgs,
    verbosity: Verbosity,
) -> anyhow::Result<()> {
    let (mut base, typed) = axes(&args.config)?;
    if let Some(launcher) = &args.launcher {
        let choices = group_choices(&args.config.config_dir, "launcher");
        let is_file = launcher.ends_with(".yaml") || launcher.ends_with(".yml");
        if !is_file && !choices.contains(launcher) {
            return Err(ConfigError::Override {
                text: format!("--launcher {launcher}"),
                reason: format!("no such launcher; there are {}", choices.join(", ")),
            }
            .into());
        }
        base.overrides
            .push(format!("+launcher@sweep.launcher={launcher}"));
    }
    let as_composed = match (args.retry, args.follow.asked()) {
        (Some(_), _) => Some("--retry"),
        (None, asked) => asked,
    };
    if let (Some(option), Some(axis)) = (as_composed, typed.first()) {
        return Err(ConfigError::Override {
            text: axis.values.concat().join(" "),
            reason: format!("`{option}` is of jobs as they were composed: leave the values out"),
        }
        .into());
    }
    let mut sweep = described(job, &base)?;
    sweep.axes.retain(|axis| {
        let again = |key: &String| typed.iter().any(|axis| axis.keys.contains(key));
        !axis.keys.iter().any(again) && !sets(&base.overrides, &axis.keys)
    });
    sweep.axes.extend(typed);
    let folder = &sweep.folder;
    if args.follow.asked().is_some() {
        return follow::run(folder, job, &args.follow);
    }

    let lock = (!args.dry_run)
        .then(|| manifest::lock(folder))
        .transpose()?;
    let manifest = Manifest::read(folder, job)?;
    let mut manifest = match (manifest, args.retry) {
        (Some(manifest), _) => manifest,
        (None, Some(_)) => return manifest::no_sweep(folder),
        (None, None) => Manifest {
            job: job.to_owned(),
            version: version.to_owned(),
            jobs: vec![],
            folder: folder.clone(),
        },
    };
    slurm::refresh(&mut manifest)?;
    let places = match args.retry {
        Some(_) => failed(&manifest),
        None => {
            // What a sweep says of itself is of no job.
            base.overrides.retain(|text| !is_of_sweep(text));
            base.overrides.splice(0..0, sweep.overrides);
            let axes = &sweep.axes;
            submit::<T>(job, version, &base, axes, &mut manifest, args.dry_run)?
        }
    };
    if args.plan {
        let entries: Vec<&Entry> = places.iter().map(|&i| &manifest.jobs[i]).collect();
        let json = serde_json::to_string(&entries)?;
        return Ok(job_kit::print(format!("{json}\n"))?);
    }
    if places.is_empty() {
        return Ok(job_kit::print(format!(
            "no job of `{}` has failed\n",
            folder.display()
        ))?);
    }
    if args.dry_run {
        return Ok(job_kit::print(listing(&manifest, &places))?);
    }
    let todo: Vec<usize> = places
        .iter()
        .copied()
        .filter(|&i| manifest.jobs[i].state != State::Finished)
        // Others have them.
        .filter(|&i| !manifest.jobs[i].state.is_active())
        .collect();
    let before = count(&manifest, &places, State::Finished);
    let ended = match &sweep.launcher {
        None => launch::run(&mut manifest, &todo, args, verbosity)?,
        Some(Launcher::TaskList) => {
            launcher::write_tasks(&manifest, &todo)?;
            return Ok(job_kit::print(format!(
                "{} commands, one a line\nFile: {}\n",
                todo.len(),
                folder.join(launcher::TASKS).display()
            ))?);
        }
        Some(Launcher::Slurm(settings)) => {
            slurm::submit(&mut manifest, &todo, settings, &args.after, verbosity)?;
            if args.detach {
                return Ok(job_kit::print(summary(&manifest, &places, before))?);
            }
            // Others may look at the folder, and cancel.
            drop(lock);
            follow::wait(folder, job)?;
            manifest = follow::collected(folder, job)?;
            Ended::Whole
        }
    };
    if !todo.is_empty() || !collect::is_there(folder) {
        collect::collect(&manifest)?;
    }
    job_kit::print(summary(&manifest, &places, before))?;
    report(&manifest, &places, ended)
}

/// Jobs that were started and have not finished.
fn failed(manifest: &Manifest) -> Vec<usize> {
    let states = manifest.jobs.iter().map(|entry| entry.state);
    states
        .enumerate()
        .filter(|(_, state)| matches!(state, State::Failed | State::Interrupted))
        .map(|(i, _)| i)
        .collect()
}

fn is_of_sweep(text: &str) -> bool {
    let text = text.trim_start_matches(['+', '~']);
    text.starts_with("sweep.") || text.starts_with("launcher@sweep.")
}

/// Whether an override sets one of the keys.
fn sets(overrides: &[String], keys: &[String]) -> bool {
    overrides.iter().any(|text| keys.contains(&key(text)))
}

/// Takes the overrides apart: those of all jobs, and those with several values.
fn axes(args: &ConfigArgs) -> Result<(ConfigArgs, Vec<Axis>), ConfigError> {
    let (mut base, mut axes) = (vec![], vec![]);
    for text in &args.overrides {
        let refuse = |reason: String| ConfigError::Override {
            text: text.clone(),
            reason,
        };
        if let Some(("zip", inner)) = call(text.trim()) {
            axes.push(zip(pairs(inner).map_err(refuse)?, &args.config_dir).map_err(refuse)?);
            continue;
        }
        let swept = match text.split_once('=') {
            Some((key, value)) if !is_of_sweep(text) => {
                axis(key, value, &args.config_dir).map_err(refuse)?
            }
            _ => None,
        };
        match swept {
            Some(axis) => axes.push(axis),
            None => base.push(text.clone()),
        }
    }
    let own = |axis: &&Axis| axis.keys.iter().any(|key| key == "output.dir");
    if let Some(axis) = axes.iter().find(own) {
        return Err(ConfigError::Override {
            text: axis.values.concat().join(" "),
            reason: "each job of a sweep has a folder of its own in `sweep.dir`".to_owned(),
        });
    }
    let base = ConfigArgs {
        overrides: base,
        ..args.clone()
    };
    Ok((base, axes))
}

/// The axis of one key, if its value is several.
pub(crate) fn axis(key: &str, value: &str, config_dir: &Path) -> Result<Option<Axis>, String> {
    let plain = key.trim_start_matches(['+', '~']).to_owned();
    let group = plain
        .split('@')
        .next()
        .unwrap_or_default()
        .replace('.', "/");
    let found = values(value, &group_choices(config_dir, &group))?;
    Ok(found.map(|values| Axis {
        keys: vec![plain],
        values: values
            .into_iter()
            .map(|value| vec![format!("{key}={value}")])
            .collect(),
    }))
}

/// `a=1,2, b=3,4` as keys with the text of their values.
fn pairs(inner: &str) -> Result<Vec<(String, String)>, String> {
    let mut pairs: Vec<(String, String)> = vec![];
    for part in split(inner) {
        match part.split_once('=') {
            Some((key, value)) if is_name(key.trim()) => {
                pairs.push((key.trim().to_owned(), value.trim().to_owned()));
            }
            _ => match pairs.last_mut() {
                Some((_, values)) => *values += &format!(",{part}"),
                None => {
                    return Err(
                        "`zip` begins with a key, as in `zip(seed=1,2, model=a,b)`".to_owned()
                    );
                }
            },
        }
    }
    Ok(pairs)
}

/// Keys whose values go together, one by one.
pub(crate) fn zip(pairs: Vec<(String, String)>, config_dir: &Path) -> Result<Axis, String> {
    let mut zipped = Axis {
        keys: vec![],
        values: vec![],
    };
    for (key, text) in pairs {
        let single = || Axis {
            keys: vec![key.clone()],
            values: vec![vec![format!("{key}={text}")]],
        };
        let axis = axis(&key, &text, config_dir)?.unwrap_or_else(single);
        if zipped.keys.is_empty() {
            zipped = axis;
            continue;
        }
        if axis.values.len() != zipped.values.len() {
            return Err(format!(
                "`zip` takes lists of one length, and `{}` has {}, but `{key}` {}",
                zipped.keys[0],
                zipped.values.len(),
                axis.values.len()
            ));
        }
        zipped.keys.extend(axis.keys);
        for (row, more) in zipped.values.iter_mut().zip(axis.values) {
            row.extend(more);
        }
    }
    Ok(zipped)
}

/// The folder of the sweep, the axes that files describe, and its launcher, under `sweep`.
fn described(job: &str, base: &ConfigArgs) -> anyhow::Result<Described> {
    let values = compose_values(job, base)?;
    let sweep = &values["sweep"];
    let wrong = |key: &str, found: &Value, message: &str| ConfigError::Invalid {
        key: key.to_owned(),
        found: format!("`{found}`"),
        message: message.to_owned(),
        origin: job_kit::config::Origin::Default,
    };
    let known = ["dir", "params", "zip", "jobs", "overrides", "launcher"];
    let other = sweep.as_object().and_then(|sweep| {
        sweep
            .keys()
            .find(|key| !known.contains(&key.as_str()))
            .cloned()
    });
    if let Some(other) = other {
        return Err(ConfigError::NoSuchKey {
            key: format!("sweep.{other}"),
            known: known.map(str::to_owned).to_vec(),
        }
        .into());
    }
    let folder = match (&sweep["dir"], &values["output"]["dir"]) {
        (Value::String(folder), _) => folder.clone(),
        (Value::Null, Value::String(folder)) => format!("{}-sweep", folder.trim_end_matches('/')),
        (Value::Null, _) => bail!("the sweep has no folder: name one with `sweep.dir=...`"),
        (other, _) => match other.is_number() {
            true => other.to_string(),
            false => return Err(wrong("sweep.dir", other, "expected a folder").into()),
        },
    };
    let folder = match folder.strip_prefix("~/").zip(std::env::home_dir()) {
        Some((below, home)) => home.join(below),
        None => PathBuf::from(folder),
    };
    let mut axes = vec![];
    let texts = |key: &str| -> Result<Vec<(String, String)>, ConfigError> {
        match &sweep[key] {
            Value::Null => Ok(vec![]),
            Value::Object(pairs) => {
                Ok(pairs.iter().map(|(k, v)| (k.clone(), written(v))).collect())
            }
            other => Err(wrong(
                &format!("sweep.{key}"),
                other,
                "expected keys, each with its values",
            )),
        }
    };
    let refuse = |key: &str| {
        let key = key.to_owned();
        move |reason| ConfigError::Override { text: key, reason }
    };
    for (key, text) in texts("params")? {
        let single = || Axis {
            keys: vec![key.clone()],
            values: vec![vec![format!("{key}={text}")]],
        };
        let found = axis(&key, &text, &base.config_dir).map_err(refuse("sweep.params"))?;
        axes.push(found.unwrap_or_else(single));
    }
    let zipped = texts("zip")?;
    if !zipped.is_empty() {
        axes.push(zip(zipped, &base.config_dir).map_err(refuse("sweep.zip"))?);
    }
    let list = |key: &str, value: &Value| -> Result<Vec<String>, ConfigError> {
        let texts = value
            .as_array()
            .map(|items| items.iter().map(Value::as_str));
        let texts = texts.and_then(|texts| texts.map(|text| text.map(str::to_owned)).collect());
        match (texts, value) {
            (Some(texts), _) => Ok(texts),
            (None, Value::Null) => Ok(vec![]),
            (None, other) => Err(wrong(key, other, "expected a list of overrides")),
        }
    };
    if let Value::Array(jobs) = &sweep["jobs"] {
        let rows = jobs.iter().map(|job| list("sweep.jobs", job));
        axes.push(listed(rows.collect::<Result<_, _>>()?));
    } else if !sweep["jobs"].is_null() {
        let message = "expected a list with the overrides of each job";
        return Err(wrong("sweep.jobs", &sweep["jobs"], message).into());
    }
    Ok(Described {
        folder,
        axes,
        overrides: list("sweep.overrides", &sweep["overrides"])?,
        launcher: Launcher::read(&sweep["launcher"])?,
    })
}

/// Combinations that are written out.
fn listed(rows: Vec<Vec<String>>) -> Axis {
    let mut keys: Vec<String> = rows.iter().flatten().map(|text| key(text)).collect();
    keys.sort();
    keys.dedup();
    Axis { keys, values: rows }
}

/// The values of a key in YAML as they would be typed.
pub(crate) fn written(value: &Value) -> String {
    let one = |value: &Value| match value {
        Value::String(text) => {
            // A text that would be read as something else, or taken apart, gets quotes.
            let plain = |c: char| c.is_alphanumeric() || ['-', '_', '.', '/', ':'].contains(&c);
            let is_text = matches!(serde_yaml::from_str(text), Ok(serde_yaml::Value::String(_)));
            match text.chars().all(plain) && is_text {
                true => text.clone(),
                false => Value::from(text.as_str()).to_string(),
            }
        }
        other => other.to_string(),
    };
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => format!(
            "choice({})",
            items.iter().map(one).collect::<Vec<_>>().join(",")
        ),
        other => one(other),
    }
}

/// Composes every combination and freezes those that are new; the places of all in the manifest, in their order.
fn submit<T: DeserializeOwned + Serialize + Rules>(
    job: &str,
    version: &str,
    base: &ConfigArgs,
    axes: &[Axis],
    manifest: &mut Manifest,
    dry_run: bool,
) -> anyhow::Result<Vec<usize>> {
    let count = axes
        .iter()
        .try_fold(1usize, |count, axis| count.checked_mul(axis.values.len()))
        .filter(|&count| count <= MOST);
    let Some(count) = count else {
        bail!("the sweep has more than {MOST} jobs");
    };
    let mut inputs = Inputs::default();
    let (mut places, mut frozen) = (vec![], vec![]);
    for n in 0..count {
        // The last key changes fastest.
        let (mut rest, mut own) = (n, vec![]);
        for axis in axes.iter().rev() {
            own.push(&axis.values[rest % axis.values.len()]);
            rest /= axis.values.len();
        }
        let own: Vec<String> = own.into_iter().rev().flatten().cloned().collect();
        let args = ConfigArgs {
            overrides: base.overrides.iter().chain(&own).cloned().collect(),
            ..base.clone()
        };
        let resolved: Resolved<T> = compose(job, &args)
            .with_context(|| format!("job {n} of the sweep is refused ({})", own.join(" ")))?;
        let id = identity(job, version, resolved.to_yaml(), &mut inputs);
        let place = manifest.place(id, own);
        if places.contains(&place) {
            tracing::info!(
                "job {n} is the same run as job {}",
                manifest.jobs[place].number
            );
            continue;
        }
        places.push(place);
        let state = manifest.jobs[place].state;
        if state != State::Finished && !state.is_active() {
            frozen.push((place, resolved.to_yaml().clone(), args.overrides));
        }
    }
    if dry_run {
        return Ok(places);
    }
    // All were composed before the first is written.
    for (place, mut config, overrides) in frozen {
        let folder = manifest.job_folder(place);
        let dir = folder.to_string_lossy().into_owned();
        set(&mut config, &["output", "dir"], Some(dir.into()));
        let files = [
            (CONFIG, serde_yaml::to_string(&config)?),
            (OVERRIDES, serde_yaml::to_string(&overrides)?),
        ];
        manifest::freeze(&folder, files)?;
    }
    manifest::sync(&manifest.folder);
    manifest.write()?;
    Ok(places)
}

/// What `--dry-run` shows.
fn listing(manifest: &Manifest, places: &[usize]) -> String {
    let mut text = table(manifest, places);
    let finished = |&&i: &&usize| manifest.jobs[i].state == State::Finished;
    let finished = places.iter().filter(finished).count();
    text += &format!(
        "{} jobs, {finished} of them finished; nothing was run\nFolder: {}\n",
        places.len(),
        manifest.folder.display()
    );
    text
}
