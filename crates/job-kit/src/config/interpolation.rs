//! Values that name others: `${model.name}`, `${.beside}`, `${oc.env:HOME}`, `${now:%Y-%m-%d}`, `${shipped:examples/data}`.

use std::{collections::BTreeMap, sync::OnceLock};

use chrono::{DateTime, Local, format::Item, format::StrftimeItems};
use figment::value::{Dict, Empty, Value};

use super::{
    ConfigError,
    layers::Composed,
    overrides::{self, Action, Override},
    search::shipped,
    tree::{get, plain},
};
use crate::nearest::nearest;

/// What an interpolation begins with; after a backslash it is a text.
const OPENS: &str = "${";

const RESOLVERS: [&str; 5] = ["oc.env", "oc.decode", "now", "hydra", "shipped"];

/// Puts values for the interpolations of the tree.
///
/// # Errors
/// [`ConfigError::Interpolation`].
pub(super) fn resolve(
    composed: &mut Composed,
    job: &str,
    overrides: &[Override],
) -> Result<(), ConfigError> {
    let mut resolver = Resolver {
        composed,
        job,
        overrides,
        open: vec![],
        whole: BTreeMap::new(),
    };
    let tree = resolver.value(&[])?;
    let whole = resolver.whole;
    composed.tree = tree;
    composed.interpolated = whole;
    Ok(())
}

/// A text in which `${` stands for itself, as it is written in a configuration.
pub(super) fn escape(text: &str) -> String {
    text.replace(OPENS, "\\${")
}

struct Resolver<'a> {
    composed: &'a Composed,
    job: &'a str,
    overrides: &'a [Override],
    /// Keys whose values are being found, each asked for by the one before.
    open: Vec<Vec<String>>,
    /// Values that were interpolated whole, as texts.
    whole: BTreeMap<Vec<String>, String>,
}

/// What is wrong with an interpolation, and a name that may have been meant.
type Wrong = (String, Option<String>);

impl Resolver<'_> {
    /// The value of a key, without interpolations.
    fn value(&mut self, at: &[String]) -> Result<Value, ConfigError> {
        let Some(raw) = self.composed.get(at) else {
            return Ok(Value::from(Empty::Unit));
        };
        let inner = |key: String| [at, &[key]].concat();
        Ok(match raw {
            Value::String(_, text) if text.contains(OPENS) => {
                if self.open.iter().any(|open| open == at) {
                    let keys = self.open.iter().map(|key| format!("`{}`", key.join(".")));
                    let round = keys.collect::<Vec<_>>().join(" -> ");
                    let why = format!("it comes back to itself ({round})");
                    return Err(self.wrong(at, text, (why, None)));
                }
                self.open.push(at.to_vec());
                let value = self.text(text, at);
                self.open.pop();
                let (value, whole) = value?;
                if whole && !matches!(value, Value::Dict(..) | Value::Array(..)) {
                    self.whole.insert(at.to_vec(), plain(&value));
                }
                value
            }
            Value::Dict(_, dict) => {
                let entries = dict
                    .keys()
                    .map(|key| Ok((key.clone(), self.value(&inner(key.clone()))?)));
                entries.collect::<Result<Dict, ConfigError>>()?.into()
            }
            Value::Array(_, items) => {
                let items = (0..items.len()).map(|i| self.value(&inner(i.to_string())));
                items.collect::<Result<Vec<_>, _>>()?.into()
            }
            other => other.clone(),
        })
    }

    fn wrong(&self, at: &[String], text: &str, (why, nearest): Wrong) -> ConfigError {
        ConfigError::Interpolation {
            key: at.join("."),
            text: text.to_owned(),
            why,
            nearest,
            origin: self.composed.origin(at),
        }
    }

    /// The value of a text with interpolations, and whether it is that of one alone.
    fn text(&mut self, text: &str, at: &[String]) -> Result<(Value, bool), ConfigError> {
        let (mut out, mut rest) = (String::new(), text);
        while let Some((before, after)) = rest.split_once(OPENS) {
            if let Some(before) = before.strip_suffix('\\') {
                out += before;
                out += OPENS;
                rest = after;
                continue;
            }
            out += before;
            let Some(end) = closing(after) else {
                let why = "a `${` is not closed by `}`".to_owned();
                return Err(self.wrong(at, text, (why, None)));
            };
            let inner = match after[..end].contains(OPENS) {
                true => plain(&self.text(&after[..end], at)?.0),
                false => after[..end].to_owned(),
            };
            let value = self.one(inner.trim(), at, text)?;
            rest = &after[end + 1..];
            if out.is_empty() && rest.is_empty() && text.len() == end + 3 {
                return Ok((value, true));
            }
            if let Value::Dict(..) | Value::Array(..) | Value::Empty(..) = value {
                let why = format!(
                    "`{inner}` is {}, which is no part of a text",
                    super::describe(&value)
                );
                return Err(self.wrong(at, text, (why, None)));
            }
            out += &plain(&value);
        }
        Ok(((out + rest).into(), false))
    }

    /// The value of what stands between the braces.
    fn one(&mut self, inner: &str, at: &[String], text: &str) -> Result<Value, ConfigError> {
        let found = match inner.split_once(':') {
            Some((name, argument)) => self.resolver(name.trim(), argument.trim()),
            None => return self.key(inner, at, text),
        };
        found.map_err(|wrong| self.wrong(at, text, wrong))
    }

    /// The value of another key: from the top, or with dots in front from around this one.
    fn key(&mut self, name: &str, at: &[String], text: &str) -> Result<Value, ConfigError> {
        let below = name.trim_start_matches('.');
        let up = name.len() - below.len();
        let missing = |this: &Self, full: &str| {
            let known = this.composed.keys();
            let nearest = nearest(full, known.iter().map(String::as_str)).map(str::to_owned);
            let why = match full.is_empty() {
                true => "it names no key".to_owned(),
                false => format!("no file and no override sets `{full}`"),
            };
            this.wrong(at, text, (why, nearest))
        };
        let around = match up {
            0 => &[][..],
            _ if up > at.len() => return Err(missing(self, "")),
            _ => &at[..at.len() - up],
        };
        let below = below.replace('[', ".").replace(']', "");
        let path: Vec<String> = around
            .iter()
            .cloned()
            .chain(below.split('.').map(str::to_owned))
            .collect();
        for depth in 1..path.len() {
            if let Some(Value::String(_, raw)) = self.composed.get(&path[..depth])
                && raw.contains(OPENS)
            {
                let around = self.value(&path[..depth])?;
                let value = get(&around, &path[depth..]).cloned();
                return value.ok_or_else(|| missing(self, &path.join(".")));
            }
        }
        match self.composed.get(&path) {
            Some(_) => self.value(&path),
            None => Err(missing(self, &path.join("."))),
        }
    }

    fn resolver(&self, name: &str, argument: &str) -> Result<Value, Wrong> {
        match name {
            "oc.env" => {
                let (variable, default) = match argument.split_once(',') {
                    Some((variable, default)) => (variable.trim(), Some(default.trim())),
                    None => (argument, None),
                };
                match (std::env::var(variable), default) {
                    (Ok(value), _) => Ok(value.into()),
                    (Err(_), Some("null")) => Ok(Value::from(Empty::Unit)),
                    (Err(_), Some(default)) => Ok(unquoted(default).into()),
                    (Err(_), None) => {
                        let why = format!(
                            "the environment variable `{variable}` is not set (`${{oc.env:{variable},DEFAULT}}` has a default)"
                        );
                        Err((why, None))
                    }
                }
            }
            "oc.decode" => overrides::value(argument).map_err(|why| (why, None)),
            "now" => {
                let items: Vec<Item<'_>> = StrftimeItems::new(argument).collect();
                if items.contains(&Item::Error) {
                    let why = format!("`{argument}` is no format of a time, as in `%Y-%m-%d`");
                    return Err((why, None));
                }
                Ok(now()
                    .format_with_items(items.into_iter())
                    .to_string()
                    .into())
            }
            "hydra" => self.of_the_run(argument),
            "shipped" => shipped(argument)
                .map(|path| path.to_string_lossy().into_owned().into())
                .map_err(|why| (why, None)),
            other => {
                let why = format!(
                    "there is no resolver `{other}`, only {}",
                    RESOLVERS.join(", ")
                );
                Err((why, nearest(other, RESOLVERS).map(str::to_owned)))
            }
        }
    }

    /// What Hydra tells of a run.
    fn of_the_run(&self, name: &str) -> Result<Value, Wrong> {
        const KNOWN: [&str; 4] = [
            "job.name",
            "job.override_dirname",
            "runtime.choices.GROUP",
            "runtime.cwd",
        ];
        if let Some(group) = name.strip_prefix("runtime.choices.") {
            let mut choices = self.composed.defaults.choices();
            return match choices.find(|(key, _)| *key == group) {
                Some((_, [])) => Ok(Value::from(Empty::Unit)),
                Some((_, choices)) => Ok(choices.join("+").into()),
                None => {
                    let known = self.composed.defaults.choices().map(|(key, _)| key);
                    let nearest = nearest(group, known).map(str::to_owned);
                    Err((format!("no `defaults` name a group `{group}`"), nearest))
                }
            };
        }
        match name {
            "job.name" => Ok(self.job.into()),
            "job.override_dirname" => Ok(override_dirname(self.overrides).into()),
            "runtime.cwd" => std::env::current_dir()
                .map(|folder| folder.to_string_lossy().into_owned().into())
                .map_err(|err| (err.to_string(), None)),
            other => {
                let why = format!("`hydra` knows no `{other}` here, only {}", KNOWN.join(", "));
                Err((why, nearest(other, KNOWN).map(str::to_owned)))
            }
        }
    }
}

/// The overrides as the name of a folder; without those that name folders themselves.
fn override_dirname(overrides: &[Override]) -> String {
    let mut parts: Vec<String> = overrides
        .iter()
        .filter(|o| o.key() != "output.dir" && !o.key().starts_with("sweep."))
        .map(|o| match &o.action {
            Action::Set(_) => format!("{}={}", o.key(), o.raw.trim()),
            Action::Remove(_) => format!("~{}", o.key()),
        })
        .map(|part| part.replace('/', "_"))
        .collect();
    parts.sort();
    parts.join(",")
}

/// One time for all of a run.
fn now() -> DateTime<Local> {
    static NOW: OnceLock<DateTime<Local>> = OnceLock::new();
    *NOW.get_or_init(Local::now)
}

fn unquoted(text: &str) -> &str {
    let inside = |quote| text.strip_prefix(quote)?.strip_suffix(quote);
    inside('"').or_else(|| inside('\'')).unwrap_or(text)
}

/// Where the brace closes that was opened before the text.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}
