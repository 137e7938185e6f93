//! Layered YAML configurations.
//!
//! `configs/<job>.yaml` starts a configuration. Its `defaults:` list names what is laid under or over its own keys;
//! a later entry wins, key by key, and lists are replaced whole:
//!
//! ```yaml
//! defaults:
//!   - model: tiny-neox    # configs/model/tiny-neox.yaml, under the key `model`
//!   - common              # configs/common.yaml, at the top
//!   - band: null          # left out, unless the command line chooses one
//!   - _self_              # the keys below (last when not listed)
//! seed: 42
//! ```
//!
//! A file of a group may have its own `defaults:`; their groups and names are looked up in its folder, or from the top
//! with a leading `/`. On the command line `model=pythia-70m` takes another choice (or a file, `model=./mine.yaml`),
//! `model.revision=step3000` sets one value, `~band` removes a key. Values are YAML. Relative paths, in files and on the
//! command line, are relative to the current directory.

mod error;
mod file;
mod layers;
mod lists;
mod origins;
mod overrides;

use std::path::{Path, PathBuf};

use figment::{
    error::{Actual, Kind},
    value::Value,
};
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};

pub use self::error::{ConfigError, Origin};
use self::{
    layers::Composed,
    origins::{find_unknown, yaml_with_origins},
    overrides::{Action, Override},
};
use crate::nearest::nearest;

/// The command-line arguments that configure a job; flatten them into its parser.
///
/// # Examples
/// ```
/// use clap::Parser;
///
/// #[derive(Parser)]
/// struct Cli {
///     #[command(flatten)]
///     config: job_kit::ConfigArgs,
/// }
/// let cli = Cli::parse_from(["job", "--config-dir", "etc", "model=pythia-70m", "seed=7"]);
/// assert_eq!(cli.config.overrides, ["model=pythia-70m", "seed=7"]);
/// ```
#[derive(Debug, Clone, clap::Args)]
pub struct ConfigArgs {
    /// Group choices (`group=choice`), values (`key.sub=value`) and removals (`~key`)
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Config to start from: a name in the config folder, or a path to a YAML file [default: the name of this program]
    #[arg(long, value_name = "NAME|PATH")]
    pub config: Option<PathBuf>,
    /// Folder of configs and their groups
    #[arg(long, value_name = "DIR", default_value = "configs")]
    pub config_dir: PathBuf,
    /// Print the resolved configuration with the origin of each value, and stop
    #[arg(long)]
    pub print_config: bool,
}

/// A configuration with its provenance.
#[derive(Debug, Clone)]
pub struct Resolved<T> {
    /// The configuration itself.
    pub config: T,
    value: serde_json::Value,
    yaml: String,
}

impl<T> Resolved<T> {
    /// The resolved configuration, defaults included, for `run.json`.
    pub fn value(&self) -> &serde_json::Value {
        &self.value
    }

    /// The resolved configuration as YAML; each value's origin stands behind it as a comment.
    ///
    /// The text is itself a config file: saved, it reproduces the run with `--config`.
    pub fn to_yaml_with_origins(&self) -> &str {
        &self.yaml
    }
}

/// Reads the configuration of `job` from its files and the command line.
///
/// `T` must serialise under the keys it reads: the result is compared with the input to find keys that nothing reads,
/// also where `T` lacks `deny_unknown_fields`.
///
/// # Errors
/// A [`ConfigError`] that names file and key: missing files, unknown groups, keys and choices, wrong types, bad overrides.
///
/// # Examples
/// ```
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// #[serde(deny_unknown_fields)]
/// struct Config {
///     seed: u64,
/// }
/// let dir = tempfile::tempdir()?;
/// std::fs::write(dir.path().join("job.yaml"), "seed: 1")?;
/// let args = job_kit::ConfigArgs {
///     overrides: vec!["seed=7".into()],
///     config: None,
///     config_dir: dir.path().into(),
///     print_config: false,
/// };
/// let resolved = job_kit::compose::<Config>("job", &args)?;
/// assert_eq!(resolved.config.seed, 7);
/// assert_eq!(resolved.to_yaml_with_origins(), "seed: 7  # command line\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn compose<T: DeserializeOwned + Serialize>(
    job: &str,
    args: &ConfigArgs,
) -> Result<Resolved<T>, ConfigError> {
    let overrides = args
        .overrides
        .iter()
        .map(|text| Override::parse(text))
        .collect::<Result<Vec<_>, _>>()?;
    let start = start_file(job, args);
    let mut composed = layers::stack(&start, &args.config_dir, &overrides)?;
    let config: T = deserialize(&mut composed, &overrides, job)?;

    let refuse = |message: String| ConfigError::Invalid {
        key: job.to_owned(),
        found: "read".into(),
        message,
        origin: Origin::Default,
    };
    let value = serde_json::to_value(&config).map_err(|err| refuse(err.to_string()))?;
    if let Some((path, known)) = find_unknown(&composed.tree, &value) {
        return Err(unknown_key(&composed, &path, known));
    }
    if let Some(list) = lists::repeated(&value) {
        return Err(ConfigError::Repeated {
            key: list.path.join("."),
            what: list.message,
            origin: composed.origin(&list.path),
        });
    }
    let yaml = serde_yaml::to_value(&config).map_err(|err| refuse(err.to_string()))?;
    let yaml = yaml_with_origins(&yaml, &composed);
    Ok(Resolved {
        config,
        value,
        yaml,
    })
}

/// Reads a switch: `true`, `on` or `yes`, and `false`, `off` or `no`; for `#[serde(deserialize_with = "job_kit::switch")]`.
///
/// # Errors
/// If the value is none of these.
pub fn switch<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected `on` or `off`")]
    enum Switch {
        Bool(bool),
        Word(Word),
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Word {
        On,
        Yes,
        Off,
        No,
    }
    Ok(match Switch::deserialize(deserializer)? {
        Switch::Bool(on) => on,
        Switch::Word(word) => matches!(word, Word::On | Word::Yes),
    })
}

/// The file that `--config` or else the name of the job says.
fn start_file(job: &str, args: &ConfigArgs) -> PathBuf {
    match &args.config {
        Some(path) if is_path(&path.to_string_lossy()) => path.clone(),
        Some(name) => args.config_dir.join(format!("{}.yaml", name.display())),
        None => args.config_dir.join(format!("{job}.yaml")),
    }
}

/// Whether a name is a path to a file rather than the name of a choice.
fn is_path(name: &str) -> bool {
    Path::new(name)
        .extension()
        .is_some_and(|extension| extension == "yaml" || extension == "yml")
}

fn deserialize<T: DeserializeOwned>(
    composed: &mut Composed,
    overrides: &[Override],
    job: &str,
) -> Result<T, ConfigError> {
    loop {
        let error = match T::deserialize(&composed.tree) {
            Ok(config) => return Ok(config),
            Err(error) => error,
        };
        // `output.dir=2026` on the command line means the text, where a text is wanted.
        let typed = overrides
            .iter()
            .rev()
            .find(|o| o.path == error.path && matches!(o.action, Action::Set(_)));
        let text = matches!(&error.kind, Kind::InvalidType(Actual::Bool(_) | Actual::Unsigned(_) | Actual::Signed(_) | Actual::Float(_), expected)
            if expected.contains("string"));
        match typed {
            Some(o) if text && composed.set_text(&error.path, &o.raw) => {}
            _ => return Err(explain(composed, error, job)),
        }
    }
}

fn explain(composed: &Composed, error: figment::Error, job: &str) -> ConfigError {
    let mut path = error.path;
    let key = |path: &[String]| {
        if path.is_empty() {
            job.to_owned()
        } else {
            path.join(".")
        }
    };
    let origin = composed.origin(&path);
    let found = || {
        composed
            .get(&path)
            .map_or_else(|| "missing".to_owned(), describe)
    };
    match error.kind {
        Kind::UnknownField(field, known) => {
            if path.last() != Some(&field) {
                path.push(field);
            }
            unknown_key(
                composed,
                &path,
                known.iter().map(|&name| name.to_owned()).collect(),
            )
        }
        Kind::MissingField(field) => {
            path.push(field.into_owned());
            ConfigError::MissingKey {
                key: key(&path),
                job: job.to_owned(),
            }
        }
        Kind::UnknownVariant(variant, known) => ConfigError::WrongType {
            key: key(&path),
            expected: format!(
                "one of {}",
                known
                    .iter()
                    .map(|name| format!("`{name}`"))
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
            found: format!("`{variant}`"),
            origin,
            nearest: nearest(&variant, known.iter().copied()),
        },
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected) => {
            ConfigError::WrongType {
                key: key(&path),
                expected: in_words(&expected),
                found: found(),
                origin,
                nearest: None,
            }
        }
        Kind::InvalidLength(length, expected) => ConfigError::WrongType {
            key: key(&path),
            expected: in_words(&expected),
            found: format!("a list of {length}"),
            origin,
            nearest: None,
        },
        other => ConfigError::Invalid {
            key: key(&path),
            found: found(),
            message: other.to_string(),
            origin,
        },
    }
}

fn unknown_key(composed: &Composed, path: &[String], known: Vec<String>) -> ConfigError {
    let (name, parents) = path
        .split_last()
        .map_or(("", path), |(name, parents)| (name.as_str(), parents));
    let full = |name: &str| {
        parents
            .iter()
            .map(String::as_str)
            .chain([name])
            .collect::<Vec<_>>()
            .join(".")
    };
    // The right name in the wrong place is as common as a slip.
    let nearest = nearest(name, known.iter().map(String::as_str))
        .map(full)
        .or_else(|| composed.elsewhere(path));
    ConfigError::UnknownKey {
        key: path.join("."),
        origin: composed.origin(path),
        nearest,
        known: known.iter().map(|name| full(name)).collect(),
    }
}

/// A value in the words of the person who wrote it.
fn describe(value: &Value) -> String {
    match value {
        Value::String(_, text) => format!("the text `{text}`"),
        Value::Char(_, c) => format!("the text `{c}`"),
        Value::Bool(_, flag) => format!("`{flag}`"),
        Value::Num(_, number) => number
            .to_u128()
            .map(|n| n.to_string())
            .or_else(|| number.to_i128().map(|n| n.to_string()))
            .map_or_else(
                || {
                    number
                        .to_f64()
                        .map_or_else(|| "a number".to_owned(), |n| format!("the number {n}"))
                },
                |n| format!("the number {n}"),
            ),
        Value::Empty(..) => "null".to_owned(),
        Value::Dict(..) => "a mapping".to_owned(),
        Value::Array(_, items) => format!("a list of {}", items.len()),
    }
}

/// Rust's names of types as plain words.
fn in_words(expected: &str) -> String {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more".to_owned(),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "a boolean" | "bool" => "`true` or `false`".to_owned(),
        "a string" => "a text".to_owned(),
        "path string" => "a path".to_owned(),
        "a sequence" => "a list".to_owned(),
        other if other.starts_with("struct ") || other == "a map" => {
            "a mapping of keys to values".to_owned()
        }
        other => other.to_owned(),
    }
}
