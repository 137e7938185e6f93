//! One of the layers that a configuration is of.

use figment::value::{Dict, Value};

use super::{Origin, tree::look};

/// The keys of one file, or of the command line.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) origin: Origin,
    /// Whether the user wrote it: the command line, or a file outside the folder of configs.
    pub(super) own: bool,
    /// The key whose choice on the command line brought the file in.
    pub(super) chosen: Option<Vec<String>>,
    pub(super) values: Dict,
}

impl Layer {
    /// The value at `path`, unless it is null.
    pub(super) fn value(&self, path: &[String]) -> Option<&Value> {
        look(&self.values, path).filter(|value| !matches!(value, Value::Empty(..)))
    }

    /// Whether the user set the key at `path` in it, or chose what sets it by that key.
    pub(super) fn users(&self, path: &[String]) -> bool {
        self.own
            || self
                .chosen
                .as_ref()
                .is_some_and(|group| group.starts_with(path))
    }
}
