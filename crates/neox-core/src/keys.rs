//! Typed look-ups in a `config.json`, whose errors name the key.

use serde_json::{Map, Value};

use crate::activation::Activation;
use crate::error::ConfigError;

/// Sizes above this are taken for a damaged or hostile file.
const MAX_SIZE: i64 = 1 << 24;

/// A JSON object of a config. `null` counts as absent, as in transformers.
pub(crate) struct Keys<'a> {
    map: &'a Map<String, Value>,
    prefix: String,
}

impl<'a> Keys<'a> {
    pub(crate) fn new(map: &'a Map<String, Value>) -> Self {
        Self {
            map,
            prefix: String::new(),
        }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(crate) fn bad(&self, key: &str, problem: String) -> ConfigError {
        ConfigError::Field {
            field: format!("{}{key}", self.prefix),
            problem,
        }
    }

    fn wrong_type(&self, key: &str, expected: &str, found: &Value) -> ConfigError {
        let found: String = found.to_string().chars().take(40).collect();
        self.bad(key, format!("expected {expected}, found `{found}`"))
    }

    pub(crate) fn string(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong_type(key, "a string", other)),
        }
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.wrong_type(key, "true or false", other)),
        }
    }

    pub(crate) fn object(&self, key: &str) -> Result<Option<Keys<'a>>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Keys {
                map,
                prefix: format!("{}{key}.", self.prefix),
            })),
            Some(other) => Err(self.wrong_type(key, "an object", other)),
        }
    }

    pub(crate) fn positive(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) if number.is_finite() && number > 0.0 => Ok(Some(number)),
                _ => Err(self.wrong_type(key, "a number above 0", value)),
            },
        }
    }

    pub(crate) fn size(&self, key: &str) -> Result<i64, ConfigError> {
        self.optional_size(key)?
            .ok_or_else(|| self.bad(key, "missing".into()))
    }

    pub(crate) fn optional_size(&self, key: &str) -> Result<Option<i64>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_i64() {
                Some(size) if (1..=MAX_SIZE).contains(&size) => Ok(Some(size)),
                _ => Err(self.wrong_type(
                    key,
                    &format!("a whole number from 1 to {MAX_SIZE}"),
                    value,
                )),
            },
        }
    }

    /// Number of blocks; at most `MAX_SIZE`, so it fits.
    pub(crate) fn layers(&self, key: &str) -> Result<usize, ConfigError> {
        Ok(self.size(key)? as usize)
    }

    /// One id or a list of ids; an empty list counts as absent.
    pub(crate) fn tokens(&self, key: &str, vocab_size: i64) -> Result<Vec<i64>, ConfigError> {
        let values = match self.get(key) {
            None => &[][..],
            Some(Value::Array(list)) => list,
            Some(value) => std::slice::from_ref(value),
        };
        let id = |value: &Value| match value.as_i64() {
            Some(id) if (0..vocab_size).contains(&id) => Ok(id),
            _ => Err(self.wrong_type(
                key,
                &format!("a token id below vocab_size {vocab_size}"),
                value,
            )),
        };
        values.iter().map(id).collect()
    }

    /// The token of `bos_token_id`, if there is one.
    pub(crate) fn bos(&self, vocab_size: i64) -> Result<Option<i64>, ConfigError> {
        match self.tokens("bos_token_id", vocab_size)?[..] {
            [] => Ok(None),
            [id] => Ok(Some(id)),
            _ => Err(self.bad("bos_token_id", "expected one token, found several".into())),
        }
    }

    pub(crate) fn activation(
        &self,
        key: &str,
        default: Activation,
    ) -> Result<Activation, ConfigError> {
        match self.string(key)? {
            None => Ok(default),
            Some(name) => Activation::from_name(name)
                .ok_or_else(|| self.bad(key, format!("unknown activation `{name}`"))),
        }
    }

    /// Width of a head, for models whose heads share the residual stream out among them.
    pub(crate) fn head_size(
        &self,
        width: (&str, i64),
        heads: (&str, i64),
    ) -> Result<i64, ConfigError> {
        match width.1 % heads.1 {
            0 => Ok(width.1 / heads.1),
            _ => Err(self.bad(
                heads.0,
                format!("{} does not divide {} {}", heads.1, width.0, width.1),
            )),
        }
    }

    /// The first key but those `known` that says something.
    pub(crate) fn other_than(&self, known: &[&str]) -> Option<&'a str> {
        let mut names = self.map.keys().map(String::as_str);
        names.find(|name| !known.contains(name) && self.get(name).is_some())
    }

    /// An error if a key asks for something: its value is not absent, `false`, 0 or empty.
    pub(crate) fn refuse(&self, key: &str, problem: &str) -> Result<(), ConfigError> {
        let unset = self.get(key).is_none_or(|value| match value {
            Value::Bool(flag) => !flag,
            Value::Object(map) => map.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Number(number) => number.as_f64() == Some(0.0),
            _ => false,
        });
        match unset {
            true => Ok(()),
            false => Err(self.bad(key, problem.into())),
        }
    }

    /// An error if a key says another number than the one that the family implies.
    pub(crate) fn implied(&self, key: &str, implied: i64) -> Result<(), ConfigError> {
        match self.get(key) {
            Some(value) if value.as_i64() != Some(implied) => Err(self.bad(
                key,
                format!("{value} is not supported, this family has {implied} here"),
            )),
            _ => Ok(()),
        }
    }
}
