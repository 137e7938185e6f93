//! What runs the jobs of a sweep: this program, a list of commands for something else, or Slurm; and the list of commands.

use std::{env, num::NonZeroUsize};

use job_kit::{ConfigError, config::Origin, write_file};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::Value;

use crate::{
    manifest::{CONFIG, LOG, Manifest},
    process,
};

/// The list of commands in the folder of a sweep.
pub(crate) const TASKS: &str = "tasks.txt";

/// The key `sweep.launcher`, a choice of the group `launcher`.
#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(crate) enum Launcher {
    /// Writes [`TASKS`], and runs nothing.
    TaskList,
    Slurm(Box<Slurm>),
}

/// How jobs are asked of Slurm; what is null is left to it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Slurm {
    #[serde(default, deserialize_with = "text")]
    pub(crate) partition: Option<String>,
    #[serde(default, deserialize_with = "text")]
    pub(crate) account: Option<String>,
    #[serde(default, deserialize_with = "text")]
    pub(crate) qos: Option<String>,
    #[serde(default, deserialize_with = "text")]
    pub(crate) gres: Option<String>,
    #[serde(default, deserialize_with = "text")]
    pub(crate) constraint: Option<String>,
    /// Cores of a task.
    #[serde(default)]
    pub(crate) cpus: Option<NonZeroUsize>,
    #[serde(default, deserialize_with = "text")]
    pub(crate) memory: Option<String>,
    /// Minutes, or as Slurm writes times.
    #[serde(default, deserialize_with = "text")]
    pub(crate) time: Option<String>,
    /// How many tasks of an array run at once, at most.
    #[serde(default)]
    pub(crate) throttle: Option<NonZeroUsize>,
    /// Jobs that a task runs one after the other.
    #[serde(default = "one")]
    pub(crate) jobs_per_task: NonZeroUsize,
    /// Seconds before the time limit at which a task stops and asks to be queued again.
    #[serde(default = "notice")]
    pub(crate) notice: u32,
    /// Lines of shell before the first job.
    #[serde(default)]
    pub(crate) setup: Vec<String>,
    /// Further options of `sbatch`.
    #[serde(default)]
    pub(crate) options: Vec<String>,
}

fn one() -> NonZeroUsize {
    NonZeroUsize::MIN
}

fn notice() -> u32 {
    90
}

/// A text, or a number as its text.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text)),
        Value::Number(number) => Ok(Some(number.to_string())),
        other => Err(D::Error::custom(format!("`{other}` is no text"))),
    }
}

impl Launcher {
    /// # Errors
    /// Keys that no launcher has, values of the wrong kind.
    pub(crate) fn read(value: &Value) -> Result<Option<Self>, ConfigError> {
        if value.is_null() {
            return Ok(None);
        }
        let read = Self::deserialize(value).map(Some);
        read.map_err(|error| ConfigError::Invalid {
            key: "sweep.launcher".to_owned(),
            found: format!("`{value}`"),
            message: error.to_string(),
            origin: Origin::Default,
        })
    }
}

/// Writes the commands of the jobs at these places, one a line, each for any shell in any folder.
///
/// # Errors
/// If the file cannot be written.
pub(crate) fn write_tasks(manifest: &Manifest, places: &[usize]) -> anyhow::Result<()> {
    let program = process::in_shell()?;
    let here = process::quoted(&env::current_dir()?);
    let mut lines = String::new();
    for &i in places {
        let folder = manifest.job_folder(i);
        let [config, log] = [CONFIG, LOG].map(|name| process::quoted(&folder.join(name)));
        lines += &format!("cd {here} && {program} --config {config} > {log} 2>&1\n");
    }
    Ok(write_file(manifest.folder.join(TASKS), lines)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_launchers_are_refused() {
        let read = |json: Value| Launcher::read(&json).map_err(|error| error.to_string());
        let slurm = serde_json::json!({"kind": "slurm", "time": 60, "gres": "gpu:1"});
        let Ok(Some(Launcher::Slurm(slurm))) = read(slurm) else {
            panic!("this is a launcher");
        };
        assert_eq!((slurm.time.as_deref(), slurm.notice), (Some("60"), 90));
        for (json, said) in [
            (serde_json::json!({"kind": "slrum"}), "slrum"),
            (serde_json::json!({"kind": "slurm", "tme": 3}), "tme"),
            (
                serde_json::json!({"kind": "slurm", "time": [3]}),
                "is no text",
            ),
            (serde_json::json!({"time": 3}), "kind"),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }
}
