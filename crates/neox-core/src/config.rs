//! An [`Architecture`] read from a `config.json`.

use std::path::Path;

use file_kind::FileKind;
use model_conventions::weight_files::read_small;
use serde_json::Value;

use crate::architecture::Architecture;
use crate::error::{ConfigError, LoadError};
use crate::family::Family;
use crate::keys::Keys;

/// Published configs are under 1 kB.
const MAX_BYTES: u64 = 1 << 20;

impl Architecture {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// - [`LoadError::Read`] if the file cannot be read or is larger than 1 MiB
    /// - [`LoadError::Config`] naming the key that is missing, of the wrong type, out of range or
    ///   asks for what is not supported
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        let text = read_small(path, MAX_BYTES).map_err(|source| LoadError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::from_json(&text).map_err(|source| match FileKind::of(text.as_bytes()) {
            Some(kind) => LoadError::NotThat {
                path: path.to_owned(),
                kind,
            },
            None => LoadError::Config {
                path: path.to_owned(),
                source,
            },
        })
    }

    /// Parses the text of a `config.json`.
    ///
    /// # Errors
    /// - [`ConfigError`] naming the key that is missing, of the wrong type, out of range or asks
    ///   for what is not supported
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        let text = text.trim_start_matches('\u{feff}');
        let value: Value = serde_json::from_str(text).map_err(ConfigError::Json)?;
        let Value::Object(map) = value else {
            return Err(ConfigError::NotAnObject);
        };
        let keys = Keys::new(&map);
        Family::of(&keys)?.architecture(&keys)
    }
}
