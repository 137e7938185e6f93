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
//! `model.revision=step3000` sets one value, `~band` removes a key; what is typed lies over all files. A value that opens with a bracket,
//! a brace or a quote is YAML; any other is null, a bool, a number, or the text as it was typed. Relative paths, in files and on the
//! command line, are relative to the current directory; `~/` is the home folder. Config files are looked for in `configs` in the current
//! directory, then among those that are shipped with the program, whose data `${shipped:...}` finds in the same order.
//!
//! Keys that exclude each other, belong to others or are not used are told by the [`Rules`] of a configuration.

mod defaults;
mod error;
mod file;
mod interpolation;
mod layer;
mod layers;
mod lines;
mod lists;
mod origins;
mod overrides;
mod rules;
mod search;
mod tree;
mod values;

use std::path::{Path, PathBuf};

use figment::{error::Kind, value::Value};
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};

use self::{
    defaults::Defaults,
    layers::Composed,
    origins::{find_unknown, untag, with_interpolations, yaml_with_origins},
    overrides::{Action, Override},
    search::{CONFIGS, Search},
};
pub use self::{
    error::{ConfigError, Origin},
    rules::{Rule, Rules, When},
    search::{export, shipped, shipped_folder},
    values::{Paths, Span},
};
use crate::nearest::nearest;

/// The key of what is said of a sweep of jobs.
const SWEEP: &str = "sweep";

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
    /// Folder of configs and their groups [default: `configs`, and what is not there from the shipped ones]
    #[arg(long, value_name = "DIR", default_value = CONFIGS, hide_default_value = true)]
    pub config_dir: PathBuf,
    /// Copy the shipped configs to a new folder, to start your own from, and stop
    #[arg(long, value_name = "DIR")]
    pub export_configs: Option<PathBuf>,
    /// Print the resolved configuration with the origin of each value, and stop
    #[arg(long)]
    pub print_config: bool,
    /// Print the configuration as YAML, and stop
    #[arg(long, value_name = "WHAT")]
    pub cfg: Option<Shown>,
    /// With `--cfg job`: only this key and what is below it
    #[arg(short, long, value_name = "KEY", requires = "cfg")]
    pub package: Option<String>,
    /// With `--cfg job`: with the values of interpolations
    #[arg(long, requires = "cfg")]
    pub resolve: bool,
    /// Print which config files are laid over each other (`defaults`), or who names them (`defaults-tree`), and stop
    #[arg(long, value_name = "WHAT")]
    pub info: Option<Info>,
}

impl Default for ConfigArgs {
    fn default() -> Self {
        Self {
            overrides: vec![],
            config: None,
            config_dir: CONFIGS.into(),
            export_configs: None,
            print_config: false,
            cfg: None,
            package: None,
            resolve: false,
            info: None,
        }
    }
}

/// What `--cfg` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Shown {
    /// The configuration of the job.
    Job,
}

/// What `--info` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Info {
    /// The files, in the order in which they are laid over each other.
    Defaults,
    /// The `defaults` lists, each entry below the file that has it.
    DefaultsTree,
}

/// A configuration with its provenance.
#[derive(Debug, Clone)]
pub struct Resolved<T> {
    /// The configuration itself.
    pub config: T,
    value: serde_json::Value,
    yaml: String,
    /// As it is written, values resolved.
    tree: serde_yaml::Value,
    /// The same with its interpolations.
    raw: serde_yaml::Value,
    defaults: Defaults,
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

    /// The resolved configuration as YAML; saved, it reproduces the run with `--config`, whatever becomes of the files it came from.
    pub fn to_yaml(&self) -> &serde_yaml::Value {
        &self.tree
    }

    /// What the command line asks to be shown in place of a run: `--print-config`, `--cfg`, `--info`.
    ///
    /// # Errors
    /// [`ConfigError::NoSuchKey`] for `--package` of a key that is not there.
    pub fn shown(&self, args: &ConfigArgs) -> Result<Option<String>, ConfigError> {
        if let Some(info) = args.info {
            return Ok(Some(self.defaults.show(info)));
        }
        if args.cfg.is_none() {
            return Ok(args.print_config.then(|| self.yaml.clone()));
        }
        let mut part = match args.resolve {
            true => &self.tree,
            false => &self.raw,
        };
        for name in args.package.iter().flat_map(|key| key.split('.')) {
            let inner = match part {
                serde_yaml::Value::Sequence(items) => {
                    name.parse().ok().and_then(|i: usize| items.get(i))
                }
                other => other.get(name),
            };
            part = inner.ok_or_else(|| ConfigError::NoSuchKey {
                key: args.package.clone().unwrap_or_default(),
                known: match part {
                    serde_yaml::Value::Mapping(pairs) => {
                        let keys = pairs.keys().filter_map(serde_yaml::Value::as_str);
                        keys.map(str::to_owned).collect()
                    }
                    _ => vec![],
                },
            })?;
        }
        Ok(serde_yaml::to_string(part).ok())
    }
}

/// The values of the configuration of `job` before it is read as such: what files and the command line say, interpolations resolved,
/// and the key `sweep`, which belongs to no job.
///
/// # Errors
/// A [`ConfigError`] for what is wrong with files, `defaults`, overrides and interpolations.
pub fn compose_values(job: &str, args: &ConfigArgs) -> Result<serde_json::Value, ConfigError> {
    let overrides = Override::parse_all(&args.overrides)?;
    let search = Search::new(&args.config_dir);
    let mut composed = layers::stack(&start_file(job, args, &search), &search, &overrides)?;
    interpolation::resolve(&mut composed, job, &overrides)?;
    serde_json::to_value(&composed.tree).map_err(|err| refused(job, err.to_string()))
}

/// The file of a choice of a group, in `config_dir` or, for the folder that is searched by itself, among the shipped ones; the file may
/// not be there.
pub fn group_file(config_dir: &Path, group: &str, choice: &str) -> PathBuf {
    Search::new(config_dir).file(group, choice)
}

/// The names of the choices of a group, `model` or `model/tokenizer`, sorted; none if there is no such group.
pub fn group_choices(config_dir: &Path, group: &str) -> Vec<String> {
    Search::new(config_dir).choices(group)
}

fn refused(job: &str, message: String) -> ConfigError {
    ConfigError::Invalid {
        key: job.to_owned(),
        found: "read".into(),
        message,
        origin: Origin::Default,
    }
}

/// Reads the configuration of `job` from its files and the command line.
///
/// `T` must serialise under the keys it reads: the result is compared with the input to find keys that nothing reads,
/// also where `T` lacks `deny_unknown_fields`.
///
/// # Errors
/// A [`ConfigError`] that names file and key: missing files, unknown groups, keys and choices, wrong types, bad overrides, keys that exclude
/// each other in one layer, keys of the user's that the job would not use.
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
/// impl job_kit::config::Rules for Config {}
/// let dir = tempfile::tempdir()?;
/// std::fs::write(dir.path().join("job.yaml"), "seed: 1")?;
/// let args = job_kit::ConfigArgs {
///     overrides: vec!["seed=7".into()],
///     config_dir: dir.path().into(),
///     ..job_kit::ConfigArgs::default()
/// };
/// let resolved = job_kit::compose::<Config>("job", &args)?;
/// assert_eq!(resolved.config.seed, 7);
/// assert_eq!(resolved.to_yaml_with_origins(), "seed: 7  # command line\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn compose<T: DeserializeOwned + Serialize + Rules>(
    job: &str,
    args: &ConfigArgs,
) -> Result<Resolved<T>, ConfigError> {
    let overrides = Override::parse_all(&args.overrides)?;
    let search = Search::new(&args.config_dir);
    let start = start_file(job, args, &search);
    let mut composed = layers::stack(&start, &search, &overrides)?;
    let rules: Vec<Rule> = T::rules()
        .into_iter()
        .flat_map(|rule| rule.each(&composed))
        .collect();
    rules::displace(&mut composed, &rules)?;
    // What a sweep is, belongs to no job.
    composed.remove(SWEEP);
    let raw_tree = composed.tree.clone();
    interpolation::resolve(&mut composed, job, &overrides)?;
    let mut config: T = deserialize(&mut composed, &overrides, job)?;
    if expand_home::<T>(&mut composed)? {
        config = deserialize(&mut composed, &overrides, job)?;
    }

    let refuse = |message: String| refused(job, message);
    let as_json = |config: &T| serde_json::to_value(config).map_err(|err| refuse(err.to_string()));
    let mut value = as_json(&config)?;
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
    for rule in &rules {
        let Some((key, why)) = rule.not_used(&composed, &value) else {
            continue;
        };
        // What changes nothing may stand: a key that says what is so anyway.
        let Some(without) = composed.without(&key) else {
            continue;
        };
        let Ok(other) = T::deserialize(&without) else {
            continue;
        };
        let other_value = as_json(&other)?;
        if other_value == value {
            continue;
        }
        if let Some(origin) = composed.set_by_user(&key) {
            return Err(ConfigError::Unused { key, why, origin });
        }
        composed.leave_out(&key, &why);
        (config, value) = (other, other_value);
    }
    let yaml = serde_yaml::to_value(&config).map_err(|err| refuse(err.to_string()))?;
    let tree = untag(yaml);
    Ok(Resolved {
        config,
        value,
        yaml: yaml_with_origins(&tree, &composed),
        raw: with_interpolations(&tree, &raw_tree),
        tree,
        defaults: composed.defaults,
    })
}

/// Puts the home folder for the `~` that texts begin with, where a path is wanted; whether there were any.
fn expand_home<T: DeserializeOwned>(composed: &mut Composed) -> Result<bool, ConfigError> {
    let mut any = false;
    for (path, text) in composed.texts_from_home() {
        if !wants_a_path::<T>(composed, &path) {
            continue;
        }
        let refuse = |why| ConfigError::Home {
            key: path.join("."),
            path: text.clone(),
            why,
            origin: composed.origin(&path),
        };
        let below = match text.strip_prefix("~/") {
            Some(below) => below,
            None if text == "~" => "",
            None => return Err(refuse("only your own home folder is known, as `~/`")),
        };
        let home = std::env::home_dir().filter(|home| home.is_absolute());
        let home = home.ok_or_else(|| refuse("no home folder is known, as `HOME` is not set"))?;
        let expanded = home.join(below.trim_start_matches('/'));
        if let Some(slot) = composed.slot(&path) {
            *slot = expanded.to_string_lossy().into_owned().into();
            any = true;
        }
    }
    Ok(any)
}

/// Whether a key takes a path: it says so if it is given a bool.
fn wants_a_path<T: DeserializeOwned>(composed: &Composed, path: &[String]) -> bool {
    match T::deserialize(&composed.with(path, true.into())) {
        Err(error) => {
            error.path == path
                && matches!(error.kind, Kind::InvalidType(_, expected) if expected.contains("path"))
        }
        Ok(_) => false,
    }
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

/// The seed of a job whose configuration says none; for `#[serde(default = "job_kit::default_seed")]`.
pub fn default_seed() -> u64 {
    42
}

/// A switch that is on where the configuration says nothing; for `#[serde(default = "job_kit::on")]`.
pub fn on() -> bool {
    true
}

/// The file that `--config` or else the name of the job says.
fn start_file(job: &str, args: &ConfigArgs, search: &Search) -> PathBuf {
    match &args.config {
        Some(path) if is_path(&path.to_string_lossy()) => path.clone(),
        Some(name) => search.file("", &name.to_string_lossy()),
        None => search.file("", job),
    }
}

/// The YAML file of a name in a folder: `name.yaml`, or `name.yml` if only that is there.
fn in_folder(folder: &Path, name: &str) -> PathBuf {
    let [yaml, yml] = ["yaml", "yml"].map(|ending| folder.join(format!("{name}.{ending}")));
    if !yaml.is_file() && yml.is_file() {
        yml
    } else {
        yaml
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
        let text =
            matches!(&error.kind, Kind::InvalidType(_, expected) if expected.contains("string"));
        if let Some(interpolated) = composed.interpolated.get(&error.path).cloned()
            && text
            && composed.set_text(&error.path, &interpolated)
        {
            continue;
        }
        match typed(overrides, &error.path) {
            Some(o) if text && composed.set_text(&error.path, &o.raw) => {}
            _ => return Err(explain::<T>(composed, error, overrides, job)),
        }
    }
}

/// The override that set a key last.
fn typed<'o>(overrides: &'o [Override], path: &[String]) -> Option<&'o Override> {
    overrides
        .iter()
        .rev()
        .find(|o| o.path == path && matches!(o.action, Action::Set(_)))
}

fn explain<T: DeserializeOwned>(
    composed: &Composed,
    error: figment::Error,
    overrides: &[Override],
    job: &str,
) -> ConfigError {
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
        let found = composed
            .get(&path)
            .map_or_else(|| "missing".to_owned(), describe);
        match typed(overrides, &path).and_then(|o| o.no_yaml.as_ref()) {
            Some(why) => format!("{found}, which is no YAML list or mapping ({why})"),
            None => found,
        }
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
            expected: one_of(known),
            found: format!("`{variant}`"),
            origin,
            nearest: nearest(&variant, known.iter().copied()),
        },
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected) => {
            ConfigError::WrongType {
                key: key(&path),
                expected: choices_of::<T>(composed, &path, &expected)
                    .unwrap_or_else(|| in_words(&expected)),
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

fn one_of(known: &[&str]) -> String {
    let known: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
    format!("one of {}", known.join(", "))
}

/// The choices that a key has where a choice is expected: it names them if it is given another.
fn choices_of<T: DeserializeOwned>(
    composed: &Composed,
    path: &[String],
    expected: &str,
) -> Option<String> {
    if !(expected.starts_with("enum ") || expected.contains("variant")) {
        return None;
    }
    match T::deserialize(&composed.with(path, "\0".into()))
        .err()?
        .kind
    {
        Kind::UnknownVariant(_, known) => Some(one_of(known)),
        _ => None,
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
                        .map_or_else(|| "a number".to_owned(), |n| format!("the number {n:?}"))
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
        "a path string, or a list of paths" => "a path, or a list of paths".to_owned(),
        "a nonzero u8" | "a nonzero u16" | "a nonzero u32" | "a nonzero u64"
        | "a nonzero usize" => "a whole number, 1 or more".to_owned(),
        "a sequence" => "a list".to_owned(),
        other if other.starts_with("struct ") || other == "a map" => {
            "a mapping of keys to values".to_owned()
        }
        other => other.to_owned(),
    }
}
