//! Why a configuration was refused.

use std::{fs, io, path::PathBuf};

use super::lines::line_of;
use crate::{hint::Hint, nearest::nearest};

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A config file that was named does not exist.
    #[error("config file `{}` not found", path.display())]
    NotFound {
        /// Where it was looked for.
        path: PathBuf,
        /// The file that names it, if it was not the command line.
        named_in: Option<PathBuf>,
        /// Names of the files that are there.
        available: Vec<String>,
        /// The most similar of them.
        nearest: Option<String>,
    },
    /// The folder of configs does not exist.
    #[error("config folder `{}` not found", path.display())]
    NoFolder {
        /// The folder.
        path: PathBuf,
        /// Where shipped ones were looked for.
        looked_in: Vec<PathBuf>,
    },
    /// The shipped configs could not be copied.
    #[error("failed to copy the shipped configs to `{}`", path.display())]
    Export {
        /// The folder to be made.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A group has no such choice.
    #[error("group `{group}` has no choice `{choice}` ({origin})")]
    UnknownChoice {
        /// The group, `model` or `model/tokenizer`.
        group: String,
        /// What was chosen.
        choice: String,
        /// Who chose it.
        origin: Origin,
        /// The choices there are.
        available: Vec<String>,
    },
    /// A file could not be read.
    #[error("failed to read config `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is no UTF-8 text.
    #[error("config `{}` holds {found}, expected UTF-8 text", path.display())]
    Encoding {
        /// The file.
        path: PathBuf,
        /// What it holds.
        found: &'static str,
    },
    /// A file is not YAML.
    #[error("config `{}` is not valid YAML", path.display())]
    Yaml {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_yaml::Error,
    },
    /// A file holds something else than keys and values.
    #[error("config `{}` holds {found}, expected keys and values", path.display())]
    NotAMapping {
        /// The file.
        path: PathBuf,
        /// What it holds.
        found: &'static str,
    },
    /// An entry of a `defaults:` list is not understood.
    #[error("entry {entry} of `defaults` in `{}` is not understood", path.display())]
    Defaults {
        /// The file.
        path: PathBuf,
        /// The entry, as YAML.
        entry: String,
    },
    /// `override group: choice` of a group that no `defaults` list names.
    #[error("`defaults` of `{}` override the group `{group}`, which no `defaults` name", path.display())]
    NothingToOverride {
        /// The group.
        group: String,
        /// The file.
        path: PathBuf,
        /// A group that may have been meant.
        nearest: Option<String>,
    },
    /// A choice that is left to the user (`???`) was not made.
    #[error("nothing is chosen of the group `{group}`, which `{}` leaves open", path.display())]
    NoChoice {
        /// The group.
        group: String,
        /// The file.
        path: PathBuf,
        /// The choices there are.
        available: Vec<String>,
    },
    /// Choices that depend on each other have no end.
    #[error("the choices in the `defaults` of `{}` depend on each other without end", path.display())]
    Unsettled {
        /// The file that was started from.
        path: PathBuf,
    },
    /// An interpolation has no value.
    #[error("`{text}` in `{key}` has no value: {why} ({origin})")]
    Interpolation {
        /// The key, with dots.
        key: String,
        /// The value as written.
        text: String,
        /// What is wrong.
        why: String,
        /// A key that may have been meant.
        nearest: Option<String>,
        /// Where it is set.
        origin: Origin,
    },
    /// A key that was asked for is not in the configuration.
    #[error("the configuration has no key `{key}`")]
    NoSuchKey {
        /// The key, with dots.
        key: String,
        /// The keys known beside it.
        known: Vec<String>,
    },
    /// Files name each other in a circle.
    #[error("`defaults` go round in a circle: {}", files.iter().map(|f| format!("`{}`", f.display())).collect::<Vec<_>>().join(" -> "))]
    Circle {
        /// The files, in the order in which they name each other.
        files: Vec<PathBuf>,
    },
    /// A command-line override is not understood.
    #[error("override `{text}` is not understood: {reason}")]
    Override {
        /// The override as written.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A key that the job does not know.
    #[error("unknown key `{key}` ({origin})")]
    UnknownKey {
        /// The key, with dots.
        key: String,
        /// Where it is set.
        origin: Origin,
        /// A known key that may have been meant.
        nearest: Option<String>,
        /// The keys known beside it.
        known: Vec<String>,
    },
    /// A value of the wrong type.
    #[error("`{key}` is {found}, expected {expected} ({origin})")]
    WrongType {
        /// The key, with dots.
        key: String,
        /// What was expected.
        expected: String,
        /// What is there.
        found: String,
        /// Where it is set.
        origin: Origin,
        /// An allowed value that may have been meant.
        nearest: Option<&'static str>,
    },
    /// Keys that exclude each other are set in one layer.
    #[error("`{first}` and `{second}` exclude each other, and both are set ({origin})")]
    Exclude {
        /// One key, with dots.
        first: String,
        /// The other.
        second: String,
        /// Where they are set.
        origin: Origin,
    },
    /// A key that the job would not use.
    #[error("`{key}` is set, but {why} ({origin})")]
    Unused {
        /// The key, with dots.
        key: String,
        /// Why it is not used.
        why: String,
        /// Where it is set.
        origin: Origin,
    },
    /// A path below a home folder that is not known.
    #[error("`{key}` is `{path}`: {why} ({origin})")]
    Home {
        /// The key, with dots.
        key: String,
        /// The path as written.
        path: String,
        /// What is wrong with it.
        why: &'static str,
        /// Where it is set.
        origin: Origin,
    },
    /// A required key is missing.
    #[error("missing key `{key}` in the configuration of `{job}`")]
    MissingKey {
        /// The key, with dots.
        key: String,
        /// The job.
        job: String,
    },
    /// A list names something twice.
    #[error("`{key}` names {what} ({origin})")]
    Repeated {
        /// The key of the list, with dots.
        key: String,
        /// What it names twice, and where.
        what: String,
        /// Where the list is set.
        origin: Origin,
    },
    /// A value is refused for another reason.
    #[error("`{key}` is {found}: {message} ({origin})")]
    Invalid {
        /// The key, with dots.
        key: String,
        /// What is there.
        found: String,
        /// Why.
        message: String,
        /// Where it is set.
        origin: Origin,
    },
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A config file.
    File(PathBuf),
    /// A line of a config file, from 1.
    Line(Box<(PathBuf, usize)>),
    /// An override on the command line.
    CommandLine,
    /// The default of the job itself.
    Default,
}

impl Origin {
    /// The same with the line of a key, where it is a file that has it.
    pub(super) fn at(self, path: &[String]) -> Self {
        let Self::File(file) = self else {
            return self;
        };
        let text = fs::read_to_string(&file).unwrap_or_default();
        match line_of(&text, path) {
            Some(line) => Self::Line(Box::new((file, line))),
            None => Self::File(file),
        }
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Line(place) => write!(f, "{}:{}", place.0.display(), place.1),
            Self::CommandLine => f.write_str("command line"),
            Self::Default => f.write_str("default"),
        }
    }
}

fn did_you_mean(nearest: Option<&str>) -> Option<String> {
    nearest.map(|name| format!("did you mean `{name}`?"))
}

fn one_of(what: &str, names: &[String]) -> Option<String> {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    (!names.is_empty()).then(|| format!("{what}: {}", names.join(", ")))
}

impl Hint for ConfigError {
    fn hints(&self) -> Vec<String> {
        let hints = match self {
            Self::NotFound {
                available,
                nearest,
                named_in,
                ..
            } => vec![
                named_in
                    .as_ref()
                    .map(|file| format!("it is named in the `defaults` of `{}`", file.display())),
                did_you_mean(nearest.as_deref()),
                one_of("available", available),
            ],
            Self::NoFolder { looked_in, .. } => {
                let places: Vec<String> = looked_in
                    .iter()
                    .map(|folder| format!("`{}`", folder.display()))
                    .collect();
                let shipped = (!places.is_empty()).then(|| {
                    format!(
                        "no configs are shipped with this program either: none in {}",
                        places.join(", ")
                    )
                });
                let run = "run from the folder that holds it, or name it with `--config-dir DIR`";
                vec![shipped, Some(run.to_owned())]
            }
            Self::Export { .. } => vec![Some(
                "name a folder that is not there yet: `--export-configs DIR`".to_owned(),
            )],
            Self::UnknownChoice {
                choice, available, ..
            } => {
                let nearest = nearest(choice, available.iter().map(String::as_str));
                vec![did_you_mean(nearest), one_of("choices", available)]
            }
            Self::Defaults { .. } => {
                vec![Some("an entry is `group: choice`, `group: null`, `optional group: choice`, `override group: choice`, the name of a file beside, or `_self_`".to_owned())]
            }
            Self::NothingToOverride { nearest, .. } => vec![
                did_you_mean(nearest.as_deref()),
                Some("leave `override` out to add the group".to_owned()),
            ],
            Self::NoChoice {
                group, available, ..
            } => vec![
                Some(format!("add `{group}=CHOICE` to the command line")),
                one_of("choices", available),
            ],
            Self::Interpolation { nearest, .. } => vec![
                did_you_mean(nearest.as_deref()),
                Some("write `\\${` for a text that holds `${`".to_owned()),
            ],
            Self::NoSuchKey { key, known } => {
                let name = key.rsplit('.').next().unwrap_or(key);
                let nearest = nearest(name, known.iter().map(String::as_str));
                vec![did_you_mean(nearest).or_else(|| one_of("keys there", known))]
            }
            Self::Override { .. } => {
                vec![Some(
                    "write `key.sub=value`, `group=choice`, or `~key` to remove a key".to_owned(),
                )]
            }
            Self::UnknownKey { nearest, known, .. } => {
                vec![did_you_mean(nearest.as_deref()).or_else(|| one_of("known keys", known))]
            }
            Self::WrongType {
                nearest,
                expected,
                found,
                ..
            } => {
                let text = ["a text", "a path"].contains(&expected.as_str())
                    && (found.starts_with("the number") || found.starts_with('`'));
                let quotes =
                    text.then(|| "put quotes around it, so that YAML reads a text".to_owned());
                vec![did_you_mean(*nearest), quotes]
            }
            Self::MissingKey { key, .. } => {
                vec![Some(format!(
                    "add it to the config file, or `{key}=VALUE` to the command line"
                ))]
            }
            Self::Exclude { first, second, .. } => {
                vec![Some(format!(
                    "set `{first}` or `{second}`, and leave the other out"
                ))]
            }
            Self::Unused { .. } => vec![Some("leave it out".to_owned())],
            Self::Home { .. } => vec![Some(
                "write the folder in full; a name that really begins with `~` is written `./~...`"
                    .to_owned(),
            )],
            Self::Encoding { .. } => vec![Some("save it as UTF-8".to_owned())],
            Self::Read { .. }
            | Self::Yaml { .. }
            | Self::NotAMapping { .. }
            | Self::Circle { .. }
            | Self::Unsettled { .. }
            | Self::Repeated { .. }
            | Self::Invalid { .. } => vec![],
        };
        hints.into_iter().flatten().collect()
    }
}
