//! Config files and overrides laid over each other, and what each layer holds.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::{Path, PathBuf},
};

use figment::value::{Dict, Value};

use super::{
    ConfigError, Origin,
    file::{ConfigFile, Entry, choices},
    in_folder, is_path,
    overrides::{Action, Override, lay_over, nest},
};

/// The keys of one file, or of the command line.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) origin: Origin,
    /// Whether the user wrote it: the command line, or a file outside the folder of configs.
    pub(super) own: bool,
    /// The group whose choice on the command line brought the file in.
    chosen: Option<Vec<String>>,
    values: Dict,
}

impl Layer {
    /// The value at `path`, unless it is null.
    fn value(&self, path: &[String]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        get(self.values.get(first)?, rest).filter(|value| !matches!(value, Value::Empty(..)))
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
}

/// The keys of a dotted name.
pub(super) fn path_of(key: &str) -> Vec<String> {
    key.split('.').map(str::to_owned).collect()
}

fn get<'v>(value: &'v Value, path: &[String]) -> Option<&'v Value> {
    path.iter().try_fold(value, |value, key| match value {
        Value::Dict(_, dict) => dict.get(key),
        Value::Array(_, items) => items.get(key.parse::<usize>().ok()?),
        _ => None,
    })
}

fn slot<'v>(tree: &'v mut Value, path: &[String]) -> Option<&'v mut Value> {
    path.iter().try_fold(tree, |value, key| match value {
        Value::Dict(_, dict) => dict.get_mut(key),
        Value::Array(_, items) => items.get_mut(key.parse::<usize>().ok()?),
        _ => None,
    })
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

    /// Where the value at `path`, or the nearest value around it, comes from.
    pub(super) fn origin(&self, path: &[String]) -> Origin {
        (1..=path.len())
            .rev()
            .map(|depth| &path[..depth])
            .find(|path| self.get(path).is_some())
            .map_or(Origin::Default, |path| self.origin_of(path))
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

    /// Where the value at `path` comes from: the highest layer that has it.
    fn origin_of(&self, path: &[String]) -> Origin {
        let (first, rest) = match path.split_first() {
            Some(parts) => parts,
            None => return Origin::Default,
        };
        self.layers
            .iter()
            .rev()
            .find(|layer| {
                layer
                    .values
                    .get(first)
                    .is_some_and(|value| get(value, rest).is_some())
            })
            .map_or(Origin::Default, |layer| layer.origin.clone())
    }

    /// The layer in which a key lost the value that it had: the one with what displaced it, the one that says null, or else the command
    /// line, with `~key`.
    pub(super) fn lost(&self, key: &str) -> usize {
        let path = path_of(key);
        let null = self.layers.iter().rposition(|layer| {
            let value = layer.values.get(&path[0]);
            matches!(
                value.and_then(|v| get(v, &path[1..])),
                Some(Value::Empty(..))
            )
        });
        let displaced = self.displaced.get(key).copied();
        displaced.or(null).unwrap_or(self.layers.len() - 1)
    }

    /// Where the user set a key that has a value, if it was the user who did.
    pub(super) fn set_by_user(&self, key: &str) -> Option<Origin> {
        let (place, _) = self.place(key, self.layers.len())?;
        let layer = &self.layers[place];
        layer.users(&path_of(key)).then(|| match layer.own {
            true => layer.origin.clone(),
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

    /// Takes a key out, saying why.
    pub(super) fn leave_out(&mut self, key: &str, why: &str) {
        let path = path_of(key);
        let (origin, own) =
            self.place(key, self.layers.len())
                .map_or((Origin::Default, false), |(place, _)| {
                    let layer = &self.layers[place];
                    (layer.origin.clone(), layer.users(&path))
                });
        if let Value::Dict(_, dict) = &mut self.tree {
            remove(dict, &path);
        }
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
    folder: &Path,
    overrides: &[Override],
) -> Result<Composed, ConfigError> {
    let mut stack = Stack {
        folder,
        layers: vec![],
        open: vec![],
        chosen: BTreeMap::new(),
        named: BTreeSet::new(),
        waiting: VecDeque::new(),
    };
    for o in overrides {
        if let Some(choice) = choice(o) {
            stack.chosen.insert(o.path.join("/"), choice);
        }
    }
    if !start.exists() && start.starts_with(folder) && !folder.is_dir() {
        return Err(ConfigError::NoFolder {
            path: folder.to_owned(),
        });
    }
    stack.file(start, &[], None, None)?;

    // A group that no `defaults` names can still be chosen on the command line; a key that is no group takes any text.
    for o in overrides {
        let group = o.path.join("/");
        if let Some(Some(name)) = choice(o)
            && !stack.named.contains(&group)
            && folder.join(&group).is_dir()
            && stack.choice_file(&group, &name).is_file()
        {
            stack.waiting.push_back((o.path.clone(), name));
            stack.named.insert(group);
        }
    }
    while let Some((group, choice)) = stack.waiting.pop_front() {
        stack.group(&group, &choice, &Origin::CommandLine, Some(&group))?;
    }
    let Stack {
        mut layers, named, ..
    } = stack;
    let mut tree = Dict::new();
    for layer in &layers {
        lay_over(&mut tree, layer.values.clone());
    }
    let mut typed = Dict::new();
    for o in overrides {
        match &o.action {
            Action::Set(_)
                if named.contains(&o.path.join("/")) && matches!(choice(o), Some(Some(_))) => {}
            Action::Set(value) => {
                let values = dict(nest(&o.path, value.clone()));
                lay_over(&mut typed, values.clone());
                lay_over(&mut tree, values);
            }
            Action::Remove => {}
        }
    }
    layers.push(Layer {
        origin: Origin::CommandLine,
        own: true,
        chosen: None,
        values: typed,
    });
    for o in overrides
        .iter()
        .filter(|o| matches!(o.action, Action::Remove))
    {
        if !remove(&mut tree, &o.path) && !named.contains(&o.path.join("/")) {
            return Err(ConfigError::Override {
                text: format!("~{}", o.key()),
                reason: "there is no such key".to_owned(),
            });
        }
    }
    Ok(Composed {
        tree: tree.into(),
        layers,
        notes: vec![],
        displaced: BTreeMap::new(),
    })
}

fn dict(value: Value) -> Dict {
    match value {
        Value::Dict(_, dict) => dict,
        _ => Dict::new(),
    }
}

/// The choice that an override makes, should its key be a group: a name, or none.
fn choice(o: &Override) -> Option<Option<String>> {
    match &o.action {
        Action::Remove | Action::Set(Value::Empty(..)) => Some(None),
        Action::Set(Value::String(_, name)) => Some(Some(name.clone())),
        Action::Set(Value::Num(..) | Value::Bool(..)) => Some(Some(o.raw.trim().to_owned())),
        Action::Set(_) => None,
    }
}

fn remove(dict: &mut Dict, path: &[String]) -> bool {
    match path {
        [] => false,
        [key] => dict.remove(key).is_some(),
        [key, rest @ ..] => match dict.get_mut(key) {
            Some(Value::Dict(_, inner)) => remove(inner, rest),
            _ => false,
        },
    }
}

struct Stack<'a> {
    folder: &'a Path,
    layers: Vec<Layer>,
    /// Files being read, each named by the one before.
    open: Vec<PathBuf>,
    /// What the command line chooses, by group.
    chosen: BTreeMap<String, Option<String>>,
    /// Groups that some `defaults` list names.
    named: BTreeSet<String>,
    /// Choices of the command line that are still to be laid over the files.
    waiting: VecDeque<(Vec<String>, String)>,
}

impl Stack<'_> {
    /// Adds a file, whose keys stand under `group`, with its defaults.
    fn file(
        &mut self,
        path: &Path,
        group: &[String],
        named_in: Option<&Path>,
        chosen: Option<&[String]>,
    ) -> Result<(), ConfigError> {
        if self.open.iter().any(|open| open == path) {
            self.open.push(path.to_owned());
            return Err(ConfigError::Circle {
                files: std::mem::take(&mut self.open),
            });
        }
        let ConfigFile {
            mut defaults,
            values,
        } = ConfigFile::read(path, named_in)?;
        if !defaults.iter().any(|entry| matches!(entry, Entry::Own)) {
            defaults.push(Entry::Own);
        }
        self.open.push(path.to_owned());
        for entry in defaults {
            match entry {
                Entry::Own => {
                    self.layers.push(Layer {
                        origin: Origin::File(path.to_owned()),
                        own: !path.starts_with(self.folder),
                        chosen: chosen.map(<[String]>::to_vec),
                        values: dict(nest(group, values.clone().into())),
                    });
                }
                Entry::File(name) => {
                    let (group, name) = match name.strip_prefix('/') {
                        Some(name) => (&[][..], name.to_owned()),
                        None => (group, name),
                    };
                    let file = self.choice_file(&group.join("/"), &name);
                    self.file(&file, group, Some(path), chosen)?;
                }
                Entry::Group {
                    group: name,
                    choice,
                } => {
                    let inner: Vec<String> = match name.strip_prefix('/') {
                        Some(name) => name.split('/').map(str::to_owned).collect(),
                        None => group
                            .iter()
                            .cloned()
                            .chain(name.split('/').map(str::to_owned))
                            .collect(),
                    };
                    let key = inner.join("/");
                    self.named.insert(key.clone());
                    match (self.chosen.get(&key), choice) {
                        // What was typed lies over all files.
                        (Some(Some(choice)), _) => {
                            self.waiting.push_back((inner, choice.clone()));
                        }
                        (Some(None), _) | (None, None) => {}
                        (None, Some(choice)) => {
                            let origin = Origin::File(path.to_owned());
                            self.group(&inner, &choice, &origin, chosen)?;
                        }
                    }
                }
            }
        }
        self.open.pop();
        Ok(())
    }

    /// Adds the file of a group's choice.
    fn group(
        &mut self,
        group: &[String],
        choice: &str,
        origin: &Origin,
        chosen: Option<&[String]>,
    ) -> Result<(), ConfigError> {
        let name = group.join("/");
        let file = self.choice_file(&name, choice);
        if !file.is_file() && !is_path(choice) {
            let available = choices(&self.folder.join(&name));
            return Err(ConfigError::UnknownChoice {
                group: name,
                choice: choice.to_owned(),
                origin: origin.clone(),
                available,
            });
        }
        let named_in = if let Origin::File(path) = origin {
            Some(path.as_path())
        } else {
            None
        };
        self.file(&file, group, named_in, chosen)
    }

    fn choice_file(&self, group: &str, choice: &str) -> PathBuf {
        if is_path(choice) {
            PathBuf::from(choice)
        } else {
            in_folder(&self.folder.join(group), choice)
        }
    }
}
