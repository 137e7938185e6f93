//! One YAML file: its keys and its `defaults:` list.

use std::{fs, io, path::Path};

use figment::value::{Dict, Value};

use super::{ConfigError, is_path};
use crate::nearest::nearest;

/// A parsed config file.
#[derive(Debug)]
pub(super) struct ConfigFile {
    /// Where its keys stand, if its first comment says so: `# @package _global_`.
    pub(super) package: Option<String>,
    pub(super) defaults: Vec<Entry>,
    pub(super) values: Dict,
}

/// One entry of a `defaults:` list.
#[derive(Debug, Clone)]
pub(super) enum Entry {
    /// The keys of the file itself.
    Own,
    /// Another file in the same folder, `name` or `name@package`.
    File {
        name: String,
        package: Option<String>,
    },
    /// `group: choice`, `group@package: [choice, choice]`; no choice leaves the group out.
    Group {
        group: String,
        package: Option<String>,
        choices: Vec<String>,
        /// `optional group: choice`: a file that is not there is left out.
        optional: bool,
    },
    /// `override group: choice`: the choice of a group that another entry names.
    Override {
        group: String,
        package: Option<String>,
        choices: Vec<String>,
    },
}

impl ConfigFile {
    pub(super) fn read(path: &Path, named_in: Option<&Path>) -> Result<Self, ConfigError> {
        let bytes = fs::read(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => {
                let available = path.parent().map(choices).unwrap_or_default();
                let stem = path.file_stem().unwrap_or_default().to_string_lossy();
                let nearest =
                    nearest(&stem, available.iter().map(String::as_str)).map(str::to_owned);
                ConfigError::NotFound {
                    path: path.to_owned(),
                    named_in: named_in.map(Path::to_owned),
                    available,
                    nearest,
                }
            }
            _ => ConfigError::Read {
                path: path.to_owned(),
                source,
            },
        })?;
        let text = decode(&bytes).map_err(|found| ConfigError::Encoding {
            path: path.to_owned(),
            found,
        })?;
        let yaml_error = |source| ConfigError::Yaml {
            path: path.to_owned(),
            source,
        };
        let mut yaml: serde_yaml::Value = serde_yaml::from_str(text).map_err(yaml_error)?;
        yaml.apply_merge().map_err(yaml_error)?; // `<<: *anchor`
        let mut mapping = match yaml {
            serde_yaml::Value::Null => serde_yaml::Mapping::new(),
            serde_yaml::Value::Mapping(mapping) => mapping,
            other => {
                return Err(ConfigError::NotAMapping {
                    path: path.to_owned(),
                    found: kind(&other),
                });
            }
        };
        let defaults = match mapping.remove("defaults") {
            None | Some(serde_yaml::Value::Null) => vec![],
            Some(serde_yaml::Value::Sequence(entries)) => entries
                .iter()
                .map(|entry| Entry::read(entry, path))
                .collect::<Result<_, _>>()?,
            Some(other) => return Err(bad_entry(&other, path)),
        };
        match to_dict_value(&serde_yaml::Value::Mapping(mapping)) {
            Ok(Value::Dict(_, values)) => Ok(Self {
                package: package_of(text),
                defaults,
                values,
            }),
            Ok(_) => Err(ConfigError::NotAMapping {
                path: path.to_owned(),
                found: "a value",
            }),
            Err(source) => Err(ConfigError::Yaml {
                path: path.to_owned(),
                source,
            }),
        }
    }
}

impl Entry {
    fn read(entry: &serde_yaml::Value, path: &Path) -> Result<Self, ConfigError> {
        use serde_yaml::Value;
        let bad = || bad_entry(entry, path);
        let text = |value: &Value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        let with_package = |name: &str| match name.split_once('@') {
            Some((name, package)) => (name.to_owned(), Some(package.to_owned())),
            None => (name.to_owned(), None),
        };
        match entry {
            Value::String(name) if name == "_self_" => Ok(Self::Own),
            Value::String(name) => {
                let (name, package) = with_package(name);
                Ok(Self::File { name, package })
            }
            Value::Mapping(pair) if pair.len() == 1 => {
                let Some((Value::String(key), choice)) = pair.iter().next() else {
                    return Err(bad());
                };
                let choices = match choice {
                    Value::Null => vec![],
                    Value::Sequence(items) => items
                        .iter()
                        .map(text)
                        .collect::<Option<_>>()
                        .ok_or_else(bad)?,
                    one => vec![text(one).ok_or_else(bad)?],
                };
                let mut words: Vec<&str> = key.split_whitespace().collect();
                let (group, package) = with_package(words.pop().ok_or_else(bad)?);
                match &words[..] {
                    ["override"] => Ok(Self::Override {
                        group,
                        package,
                        choices,
                    }),
                    [] | ["optional"] => Ok(Self::Group {
                        group,
                        package,
                        choices,
                        optional: !words.is_empty(),
                    }),
                    _ => Err(bad()),
                }
            }
            _ => Err(bad()),
        }
    }
}

/// The package in a comment at the top of a file: `# @package _global_`.
fn package_of(text: &str) -> Option<String> {
    let comments = text
        .lines()
        .map(str::trim)
        .take_while(|line| line.is_empty() || line.starts_with('#'));
    comments
        .filter_map(|line| line.trim_start_matches('#').trim().strip_prefix("@package"))
        .map(|package| package.trim().to_owned())
        .next()
}

fn bad_entry(entry: &serde_yaml::Value, path: &Path) -> ConfigError {
    let entry = serde_json::to_string(entry).unwrap_or_else(|_| format!("{entry:?}"));
    ConfigError::Defaults {
        path: path.to_owned(),
        entry,
    }
}

/// The text of a file; a byte order mark is left out.
fn decode(bytes: &[u8]) -> Result<&str, &'static str> {
    match bytes {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => Err("UTF-16 text"),
        _ if bytes.contains(&0) => Err("binary data or UTF-16 text"),
        _ => std::str::from_utf8(bytes)
            .map(|text| text.strip_prefix('\u{feff}').unwrap_or(text))
            .map_err(|_| "bytes that are no UTF-8 text"),
    }
}

/// Names of the YAML files in a folder, without extension, sorted.
pub(super) fn choices(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            is_path(&path.to_string_lossy())
                .then(|| Some(path.file_stem()?.to_string_lossy().into_owned()))?
        })
        .collect();
    names.sort();
    names.dedup();
    names
}

fn kind(value: &serde_yaml::Value) -> &'static str {
    match value {
        serde_yaml::Value::Null => "nothing",
        serde_yaml::Value::Bool(_) => "a bool",
        serde_yaml::Value::Number(_) => "a number",
        serde_yaml::Value::String(_) => "a string",
        serde_yaml::Value::Sequence(_) => "a list",
        serde_yaml::Value::Mapping(_) | serde_yaml::Value::Tagged(_) => "a mapping",
    }
}

/// YAML as figment's value; keys that are numbers or bools become strings.
pub(super) fn to_dict_value(yaml: &serde_yaml::Value) -> Result<Value, serde_yaml::Error> {
    use serde::de::Error;
    Ok(match yaml {
        serde_yaml::Value::Null => Value::from(figment::value::Empty::Unit),
        serde_yaml::Value::Bool(flag) => (*flag).into(),
        serde_yaml::Value::Number(number) => {
            match (number.as_u64(), number.as_i64(), number.as_f64()) {
                (Some(n), ..) => n.into(),
                (_, Some(n), _) => n.into(),
                // `4.0` is a whole number too, where one is wanted.
                (_, _, Some(n))
                    if n.fract() == 0.0
                        && n.abs() < 2f64.powi(53)
                        && (n != 0.0 || n.is_sign_positive()) =>
                {
                    match u64::try_from(n as i64) {
                        Ok(whole) => whole.into(),
                        Err(_) => (n as i64).into(),
                    }
                }
                (_, _, Some(n)) => n.into(),
                _ => {
                    return Err(serde_yaml::Error::custom(format!(
                        "number `{number}` is out of range"
                    )));
                }
            }
        }
        serde_yaml::Value::String(text) => text.clone().into(),
        serde_yaml::Value::Sequence(items) => items
            .iter()
            .map(to_dict_value)
            .collect::<Result<Vec<_>, _>>()?
            .into(),
        serde_yaml::Value::Mapping(pairs) => {
            let mut dict = Dict::new();
            for (key, value) in pairs {
                let key = match key {
                    serde_yaml::Value::String(key) => key.clone(),
                    serde_yaml::Value::Number(key) => key.to_string(),
                    serde_yaml::Value::Bool(key) => key.to_string(),
                    other => {
                        return Err(serde_yaml::Error::custom(format!(
                            "a key is {}, expected a name",
                            kind(other)
                        )));
                    }
                };
                if dict.contains_key(&key) {
                    return Err(serde_yaml::Error::custom(format!(
                        "duplicate entry with key \"{key}\""
                    )));
                }
                dict.insert(key, to_dict_value(value)?);
            }
            dict.into()
        }
        serde_yaml::Value::Tagged(tagged) => {
            return Err(serde_yaml::Error::custom(format!(
                "the tag `{0}` is not supported: for a choice with a value write `{{{1}: ...}}`, for a text put quotes around it",
                tagged.tag,
                tagged.tag.to_string().trim_start_matches('!')
            )));
        }
    })
}
