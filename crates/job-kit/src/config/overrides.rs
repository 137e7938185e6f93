//! `key.sub=value` from the command line.

use figment::value::{Dict, Value};

use super::{ConfigError, file::to_dict_value};

/// One override, taken apart.
#[derive(Debug, Clone)]
pub(super) struct Override {
    pub(super) path: Vec<String>,
    pub(super) action: Action,
    /// Whether it was written `+key=value`: the key must not have a value yet.
    pub(super) adds: bool,
    /// The value as typed.
    pub(super) raw: String,
    /// Why a value that opens like a YAML list, mapping or quoted text is none.
    pub(super) no_yaml: Option<String>,
}

#[derive(Debug, Clone)]
pub(super) enum Action {
    Set(Value),
    /// With a value, only if the key has it.
    Remove(Option<Value>),
}

impl Override {
    pub(super) fn parse_all(texts: &[String]) -> Result<Vec<Self>, ConfigError> {
        texts.iter().map(|text| Self::parse(text)).collect()
    }

    /// Takes `key.sub=value`, `+key=value` (a new key), `++key=value` (new or not), `~key` or `~key=value` apart.
    pub(super) fn parse(text: &str) -> Result<Self, ConfigError> {
        let refuse = |reason: &str| ConfigError::Override {
            text: text.to_owned(),
            reason: reason.to_owned(),
        };
        let (removes, rest) = match text.strip_prefix('~') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (key, raw) = match rest.split_once('=') {
            Some((key, raw)) => (key, Some(raw)),
            None if removes => (rest, None),
            None => return Err(refuse("it has no `=`")),
        };
        if raw.is_some_and(|raw| raw.trim().is_empty()) {
            return Err(refuse(
                "it has no value after `=` (write `null` to unset the key)",
            ));
        }
        let mut no_yaml = None;
        let value = raw.map(|raw| {
            value(raw).unwrap_or_else(|reason| {
                no_yaml = Some(reason);
                raw.into()
            })
        });
        let (key, adds) = match (removes, key.strip_prefix("++"), key.strip_prefix('+')) {
            (true, ..) | (_, None, None) => (key, false),
            (_, Some(key), _) => (key, false),
            (_, None, Some(key)) => (key, true),
        };
        let path: Vec<String> = key.trim().split(['.', '/']).map(str::to_owned).collect();
        if path
            .iter()
            .any(|part| part.is_empty() || part.contains(char::is_whitespace))
        {
            return Err(refuse("a key is names joined by dots"));
        }
        let action = match (removes, value) {
            (false, Some(value)) => Action::Set(value),
            (_, value) => Action::Remove(value),
        };
        Ok(Self {
            path,
            action,
            adds,
            raw: raw.unwrap_or_default().to_owned(),
            no_yaml,
        })
    }

    /// The choices that it makes, should its key be a group: none, one, or several in their order.
    pub(super) fn choices(&self) -> Option<Vec<String>> {
        match &self.action {
            Action::Remove(_) | Action::Set(Value::Empty(..)) => Some(vec![]),
            Action::Set(Value::String(_, name)) => Some(vec![name.clone()]),
            Action::Set(Value::Num(..) | Value::Bool(..)) => Some(vec![self.raw.trim().to_owned()]),
            Action::Set(Value::Array(_, items)) => {
                let names = items.iter().map(|item| item.as_str().map(str::to_owned));
                names
                    .collect::<Option<_>>()
                    .filter(|names: &Vec<_>| !names.is_empty())
            }
            Action::Set(_) => None,
        }
    }

    /// The key, with dots.
    pub(super) fn key(&self) -> String {
        self.path.join(".")
    }
}

/// The value that a text stands for: YAML where it opens with a bracket, brace or quote, else null, a bool or a number as YAML writes
/// them, else the text itself, whatever YAML would make of its characters.
///
/// # Errors
/// Why a text that opens like YAML is none.
pub(super) fn value(raw: &str) -> Result<Value, String> {
    let text = raw.trim();
    if text.starts_with(['[', '{', '"', '\'']) {
        if !closes_at_end(text) {
            return Err("what it opens with does not close at its end".to_owned());
        }
        return serde_yaml::from_str::<serde_yaml::Value>(text)
            .and_then(|yaml| to_dict_value(&yaml))
            .map_err(|err| err.to_string());
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || ['+', '-', '.', '_', '~'].contains(&c);
    let scalar = match text.chars().all(plain) {
        true => serde_yaml::from_str(text).unwrap_or_default(),
        false => serde_yaml::Value::Null,
    };
    match scalar {
        serde_yaml::Value::Null if !["null", "Null", "NULL", "~"].contains(&text) => Ok(raw.into()),
        scalar @ (serde_yaml::Value::Null
        | serde_yaml::Value::Bool(_)
        | serde_yaml::Value::Number(_)) => to_dict_value(&scalar).map_err(|err| err.to_string()),
        _ => Ok(raw.into()),
    }
}

/// Whether the bracket, brace or quote that a text opens with closes at its last character, with no comment in between.
fn closes_at_end(text: &str) -> bool {
    let (mut depth, mut quote, mut before) = (0usize, None, ' ');
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (Some('"'), '\\') => {
                chars.next();
            }
            (Some('\''), '\'') if chars.peek().is_some_and(|&(_, next)| next == '\'') => {
                chars.next();
            }
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            // An apostrophe in a word opens nothing.
            (None, '"' | '\'') if !before.is_alphanumeric() => quote = Some(c),
            (None, '[' | '{') => depth += 1,
            (None, ']' | '}') => depth = depth.saturating_sub(1),
            (None, '#') if before.is_whitespace() => return false,
            _ => {}
        }
        before = c;
        if depth == 0 && quote.is_none() {
            return at + c.len_utf8() == text.len();
        }
    }
    false
}

/// `value` under the keys of `path`.
pub(super) fn nest<S: AsRef<str>>(path: &[S], value: Value) -> Value {
    path.iter().rev().fold(value, |inner, key| {
        Dict::from([(key.as_ref().to_owned(), inner)]).into()
    })
}

/// Lays `over` over `under`, key by key.
pub(super) fn lay_over(under: &mut Dict, over: Dict) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Dict(_, under)), Value::Dict(_, over)) => lay_over(under, over),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}
