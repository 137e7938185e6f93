//! Config files and overrides laid over each other, and what each layer holds.

use std::{collections::BTreeMap, path::Path};

use figment::value::{Dict, Value};

use super::{
    ConfigError, Origin,
    defaults::{self, Defaults},
    layer::Layer,
    overrides::{Action, Override, lay_over, nest},
    search::{CONFIGS, Search, candidates},
    tree::{dict, get, look, path_of, plain, remove, slot},
};

/// All layers merged.
#[derive(Debug)]
pub(super) struct Composed {
    pub(super) tree: Value,
    /// From the lowest to the highest.
    pub(super) layers: Vec<Layer>,
    /// What was left out, in words.
    pub(super) notes: Vec<String>,
    /// Keys that gave way to another, and its layer.
    pub(super) displaced: BTreeMap<String, usize>,
    /// Values that were interpolated whole, as texts.
    pub(super) interpolated: BTreeMap<Vec<String>, String>,
    /// How the `defaults` lists were followed.
    pub(super) defaults: Defaults,
}

impl Composed {
    pub(super) fn get(&self, path: &[String]) -> Option<&Value> {
        get(&self.tree, path)
    }

    /// The value of a dotted key.
    pub(super) fn at(&self, key: &str) -> Option<&Value> {
        self.get(&path_of(key))
    }

    /// Whether a dotted key has a value other than null.
    pub(super) fn is_set(&self, key: &str) -> bool {
        self.at(key)
            .is_some_and(|value| !matches!(value, Value::Empty(..)))
    }

    /// The highest layer that gives a dotted key a value, among the first `below` ones, and the value.
    pub(super) fn place(&self, key: &str, below: usize) -> Option<(usize, &Value)> {
        let path = path_of(key);
        let layers = self.layers.iter().enumerate().take(below).rev();
        layers
            .into_iter()
            .find_map(|(place, layer)| Some((place, layer.value(&path)?)))
    }

    /// Where the value at `path`, or the nearest value around it, comes from; of a file with the line.
    pub(super) fn origin(&self, path: &[String]) -> Origin {
        (1..=path.len())
            .rev()
            .map(|depth| &path[..depth])
            .find(|path| self.get(path).is_some())
            .map_or(Origin::Default, |path| self.origin_of(path).at(path))
    }

    /// Where a resolved value comes from: the default, unless the tree has it or another form of what is around it.
    pub(super) fn written_in(&self, path: &[String]) -> Origin {
        (1..=path.len())
            .map(|depth| &path[..depth])
            .find(|around| {
                around.len() == path.len() || !matches!(self.get(around), Some(Value::Dict(..)))
            })
            .filter(|path| self.get(path).is_some())
            .map_or(Origin::Default, |path| self.origin_of(path))
    }

    /// Where the value at `path` comes from: the highest layer that has it, or that has the interpolation which gave what is around it.
    fn origin_of(&self, path: &[String]) -> Origin {
        (1..=path.len())
            .rev()
            .find_map(|depth| {
                let has = |layer: &&Layer| look(&layer.values, &path[..depth]).is_some();
                self.layers.iter().rev().find(has)
            })
            .map_or(Origin::Default, |layer| layer.origin.clone())
    }

    /// The layer in which a key lost the value that it had: the one with what displaced it, the one that says null, or else the command
    /// line, with `~key`.
    pub(super) fn lost(&self, key: &str) -> usize {
        let path = path_of(key);
        let null = self
            .layers
            .iter()
            .rposition(|layer| matches!(look(&layer.values, &path), Some(Value::Empty(..))));
        let displaced = self.displaced.get(key).copied();
        displaced.or(null).unwrap_or(self.layers.len() - 1)
    }

    /// Where the user set a key that has a value, if it was the user who did.
    pub(super) fn set_by_user(&self, key: &str) -> Option<Origin> {
        let (place, _) = self.place(key, self.layers.len())?;
        let layer = &self.layers[place];
        layer.users(&path_of(key)).then(|| match layer.own {
            true => layer.origin.clone().at(&path_of(key)),
            false => Origin::CommandLine,
        })
    }

    /// The tree with another value at a place that is there.
    pub(super) fn with(&self, path: &[String], value: Value) -> Value {
        let mut tree = self.tree.clone();
        if let Some(slot) = slot(&mut tree, path) {
            *slot = value;
        }
        tree
    }

    /// The tree without a key.
    pub(super) fn without(&self, key: &str) -> Option<Value> {
        match self.tree.clone() {
            Value::Dict(tag, mut dict) => {
                remove(&mut dict, &path_of(key)).then_some(Value::Dict(tag, dict))
            }
            _ => None,
        }
    }

    /// The texts that begin with `~`, with their places.
    pub(super) fn texts_from_home(&self) -> Vec<(Vec<String>, String)> {
        fn search(value: &Value, at: &mut Vec<String>, found: &mut Vec<(Vec<String>, String)>) {
            let inner: Vec<(String, &Value)> = match value {
                Value::String(_, text) if text.starts_with('~') => {
                    found.push((at.clone(), text.clone()));
                    return;
                }
                Value::Dict(_, dict) => dict.iter().map(|(k, v)| (k.clone(), v)).collect(),
                Value::Array(_, items) => items
                    .iter()
                    .enumerate()
                    .map(|(i, v)| (i.to_string(), v))
                    .collect(),
                _ => return,
            };
            for (key, value) in inner {
                at.push(key);
                search(value, at, found);
                at.pop();
            }
        }
        let mut found = vec![];
        search(&self.tree, &mut vec![], &mut found);
        found
    }

    /// Takes a key out, if it is there.
    pub(super) fn remove(&mut self, key: &str) {
        if let Value::Dict(_, dict) = &mut self.tree {
            remove(dict, &path_of(key));
        }
    }

    /// Takes a key out, saying why.
    pub(super) fn leave_out(&mut self, key: &str, why: &str) {
        let path = path_of(key);
        let (origin, own) =
            self.place(key, self.layers.len())
                .map_or((Origin::Default, false), |(place, _)| {
                    let layer = &self.layers[place];
                    (layer.origin.clone(), layer.users(&path))
                });
        self.remove(key);
        let note = format!("`{key}` ({origin}) is left out: {why}");
        if own {
            tracing::warn!("{note}");
        } else {
            tracing::debug!("{note}");
        }
        self.notes.push(note);
    }

    /// Replaces the value at `path` by a text; false if it already is one.
    pub(super) fn set_text(&mut self, path: &[String], text: &str) -> bool {
        match self.slot(path) {
            None | Some(Value::String(..)) => false,
            Some(value) => {
                *value = text.into();
                true
            }
        }
    }

    /// The value at a place, to be changed.
    pub(super) fn slot(&mut self, path: &[String]) -> Option<&mut Value> {
        slot(&mut self.tree, path)
    }

    /// All keys that have values, with dots.
    pub(super) fn keys(&self) -> Vec<String> {
        fn collect(value: &Value, at: &mut Vec<String>, keys: &mut Vec<String>) {
            if let Value::Dict(_, dict) = value {
                for (key, inner) in dict {
                    at.push(key.clone());
                    keys.push(at.join("."));
                    collect(inner, at, keys);
                    at.pop();
                }
            }
        }
        let mut keys = vec![];
        collect(&self.tree, &mut vec![], &mut keys);
        keys
    }

    /// A key of the same name at another place.
    pub(super) fn elsewhere(&self, path: &[String]) -> Option<String> {
        fn search(
            value: &Value,
            name: &str,
            at: &mut Vec<String>,
            unlike: &[String],
        ) -> Option<String> {
            let Value::Dict(_, dict) = value else {
                return None;
            };
            for (key, inner) in dict {
                at.push(key.clone());
                let hit = if key == name && at != unlike {
                    Some(at.join("."))
                } else {
                    search(inner, name, at, unlike)
                };
                if hit.is_some() {
                    return hit;
                }
                at.pop();
            }
            None
        }
        search(&self.tree, path.last()?, &mut vec![], path)
    }
}

/// Lays the start file, what its `defaults` name, and the overrides over each other.
pub(super) fn stack(
    start: &Path,
    search: &Search,
    overrides: &[Override],
) -> Result<Composed, ConfigError> {
    if !start.exists() && search.holds(start) && !search.any() {
        return Err(ConfigError::NoFolder {
            path: search.first().to_owned(),
            looked_in: match search.first() == Path::new(CONFIGS) {
                true => candidates(),
                false => vec![],
            },
        });
    }
    let (mut layers, defaults) = defaults::follow(start, search, overrides)?;
    let mut tree = Dict::new();
    for layer in &layers {
        lay_over(&mut tree, layer.values.clone());
    }
    let refuse = |o: &Override, text: String, reason: String| ConfigError::Override {
        text: text.replace("{}", &o.key()),
        reason,
    };
    let mut typed = Dict::new();
    for o in overrides {
        let Action::Set(value) = &o.action else {
            continue;
        };
        let before = match defaults.group(o) {
            Some(group) => group.offered.first().map(|choice| format!("`{choice}`")),
            None => look(&tree, &o.path)
                .filter(|value| !matches!(value, Value::Empty(..)))
                .map(super::describe),
        };
        if let (true, Some(before)) = (o.adds, before) {
            let reason = format!("it is there already, as {before}; write `++` to replace it");
            return Err(refuse(o, format!("+{{}}={}", o.raw), reason));
        }
        if defaults.chooses(o) {
            continue;
        }
        let values = dict(nest(&o.path, value.clone()));
        lay_over(&mut typed, values.clone());
        lay_over(&mut tree, values);
    }
    layers.push(Layer {
        origin: Origin::CommandLine,
        own: true,
        chosen: None,
        values: typed,
    });
    for o in overrides {
        let Action::Remove(only) = &o.action else {
            continue;
        };
        let found = match defaults.group(o) {
            Some(group) => Some(group.offered.join(", ")),
            None => look(&tree, &o.path).map(plain),
        };
        let Some(found) = found else {
            let reason = "there is no such key".to_owned();
            return Err(refuse(o, "~{}".to_owned(), reason));
        };
        if only.as_ref().is_some_and(|only| plain(only) != found) {
            let reason = format!("its value is `{found}`");
            return Err(refuse(o, format!("~{{}}={}", o.raw), reason));
        }
        remove(&mut tree, &o.path);
    }
    Ok(Composed {
        tree: tree.into(),
        layers,
        notes: vec![],
        displaced: BTreeMap::new(),
        interpolated: BTreeMap::new(),
        defaults,
    })
}
