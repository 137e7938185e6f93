//! `defaults:` lists followed from file to file: which files there are, in which order, and where their keys stand.

use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
};

use figment::value::Value;

use super::{
    ConfigError, Info, Origin,
    file::{ConfigFile, Entry},
    is_path,
    layer::Layer,
    overrides::{Action, Override, nest},
    search::Search,
    tree::dict,
};
use crate::nearest::nearest;

/// The choice that somebody has still to make, as Hydra writes it.
const OPEN: &str = "???";

/// How often the lists are followed until `override` and `${group}` are settled.
const PASSES: usize = 10;

/// What following the lists has found.
#[derive(Debug, Clone, Default)]
pub(super) struct Defaults {
    /// Groups that some list names or the command line adds, by [`key`].
    groups: BTreeMap<String, Group>,
    /// The files, in the order in which they are laid over each other.
    pub(super) files: Vec<FileRow>,
    /// Entries in the order in which they were read, by depth.
    pub(super) tree: Vec<(usize, String)>,
}

/// A group of choices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Group {
    /// What the files choose.
    pub(super) offered: Vec<String>,
    /// What is chosen in the end.
    pub(super) chosen: Vec<String>,
}

/// One file of the final list.
#[derive(Debug, Clone)]
pub(super) struct FileRow {
    pub(super) file: PathBuf,
    pub(super) package: Vec<String>,
    pub(super) named_in: Option<PathBuf>,
}

impl Defaults {
    /// The group that an override is of.
    pub(super) fn group(&self, o: &Override) -> Option<&Group> {
        self.groups.get(&o.path.join("/"))
    }

    /// Whether an override chooses files of a group, and sets no value.
    pub(super) fn chooses(&self, o: &Override) -> bool {
        let (Some(group), Some(names)) = (self.group(o), o.choices()) else {
            return false;
        };
        match o.action {
            Action::Remove(_) => false,
            Action::Set(Value::Array(..)) => names == group.chosen,
            Action::Set(_) => !group.chosen.is_empty(),
        }
    }

    /// What `--info` shows.
    pub(super) fn show(&self, info: Info) -> String {
        if let Info::DefaultsTree = info {
            let lines = self.tree.iter();
            return lines
                .map(|(depth, text)| format!("{:indent$}{text}\n", "", indent = 2 * depth))
                .collect();
        }
        let head = ["config file", "package", "named in"].map(str::to_owned);
        let rows: Vec<[String; 3]> = [head]
            .into_iter()
            .chain(self.files.iter().map(|row| {
                let package = match row.package.is_empty() {
                    true => "_global_".to_owned(),
                    false => row.package.join("."),
                };
                let named_in = row.named_in.as_ref();
                let named_in =
                    named_in.map_or("command line".into(), |file| file.display().to_string());
                [row.file.display().to_string(), package, named_in]
            }))
            .collect();
        let width = |i: usize| {
            rows.iter()
                .map(|row| row[i].chars().count())
                .max()
                .unwrap_or(0)
        };
        let (first, second) = (width(0), width(1));
        rows.iter()
            .map(|[file, package, named_in]| {
                format!("{file:first$}  {package:second$}  {named_in}\n")
            })
            .collect()
    }

    /// The groups and what is chosen of each.
    pub(super) fn choices(&self) -> impl Iterator<Item = (&str, &[String])> {
        let groups = self.groups.iter();
        groups.map(|(name, group)| (name.as_str(), &group.chosen[..]))
    }
}

/// What one pass settles for the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Settled {
    /// `override group: choice`, and the file that says so.
    overriding: BTreeMap<String, (Vec<String>, PathBuf)>,
    chosen: BTreeMap<String, Vec<String>>,
}

/// Follows the lists from the start file; gives a layer per file.
///
/// # Errors
/// Files and choices that are not there, circles, overrides of groups that no list names, choices left open.
pub(super) fn follow(
    start: &Path,
    search: &Search,
    overrides: &[Override],
) -> Result<(Vec<Layer>, Defaults), ConfigError> {
    let mut settled = Settled::default();
    for pass in 0..PASSES {
        let mut walk = Walk {
            search,
            layers: vec![],
            open: vec![],
            typed: BTreeMap::new(),
            waiting: VecDeque::new(),
            left_open: vec![],
            unsettled: false,
            first_pass: pass == 0,
            before: &settled,
            now: Settled::default(),
            found: Defaults::default(),
        };
        walk.run(start, overrides)?;
        let Walk {
            layers,
            left_open,
            unsettled,
            now,
            found,
            ..
        } = walk;
        let same = now.overriding == settled.overriding
            && (!unsettled || (pass > 0 && now.chosen == settled.chosen));
        if !same {
            settled = now;
            continue;
        }
        for (group, (_, path)) in &now.overriding {
            if !found.groups.contains_key(group) {
                let known = found.groups.keys().map(String::as_str);
                return Err(ConfigError::NothingToOverride {
                    group: group.clone(),
                    path: path.clone(),
                    nearest: nearest(group, known).map(str::to_owned),
                });
            }
        }
        if let Some((group, path)) = left_open.into_iter().next() {
            return Err(ConfigError::NoChoice {
                available: search.choices(folder_of(&group)),
                group,
                path,
            });
        }
        return Ok((layers, found));
    }
    Err(ConfigError::Unsettled {
        path: start.to_owned(),
    })
}

/// The folder of a group, of `group@package`.
fn folder_of(key: &str) -> &str {
    key.split('@').next().unwrap_or(key)
}

/// What a group is called: its folder, and its package where that is another.
fn key(group: &[String], package: Option<&[String]>) -> String {
    match package {
        Some(package) if package != group => {
            format!("{}@{}", group.join("/"), package.join("/"))
        }
        _ => group.join("/"),
    }
}

/// The package that a text names, seen from the package around it.
fn package(text: &str, around: &[String], group: &[String]) -> Vec<String> {
    let (start, rest) = match text.split_once('.').unwrap_or((text, "")) {
        ("_global_", rest) => (&[][..], rest),
        ("_here_", rest) => (around, rest),
        ("_group_", rest) => (group, rest),
        _ => (around, text),
    };
    let rest = rest.split('.').filter(|name| !name.is_empty());
    start
        .iter()
        .cloned()
        .chain(rest.map(str::to_owned))
        .collect()
}

struct Walk<'a> {
    search: &'a Search,
    layers: Vec<Layer>,
    /// Files being read, each named by the one before.
    open: Vec<PathBuf>,
    /// What the command line chooses, by group.
    typed: BTreeMap<String, Vec<String>>,
    /// Choices of the command line that are still to be laid over the files.
    waiting: VecDeque<Waiting>,
    /// Groups whose choice is `???`, and the files that say so.
    left_open: Vec<(String, PathBuf)>,
    /// Whether a choice depends on others.
    unsettled: bool,
    first_pass: bool,
    before: &'a Settled,
    now: Settled,
    found: Defaults,
}

struct Waiting {
    group: Vec<String>,
    package: Vec<String>,
    /// Whether the package was written, and holds whatever the file says.
    explicit: bool,
    choices: Vec<String>,
}

/// A file to be read: where its keys stand, and who named it.
struct Place<'p> {
    group: &'p [String],
    package: &'p [String],
    /// Whether the package holds whatever the file says.
    explicit: bool,
    named_in: Option<&'p Path>,
    chosen: Option<&'p [String]>,
}

impl Walk<'_> {
    fn run(&mut self, start: &Path, overrides: &[Override]) -> Result<(), ConfigError> {
        for o in overrides {
            let group = o.path.join("/");
            if let Some(names) = o.choices()
                && (!matches!(o.action, Action::Set(Value::Array(..)))
                    || self.any_file(&group, &names))
            {
                self.typed.insert(group, names);
            } else {
                self.typed.remove(&group);
            }
        }
        let top = Place {
            group: &[],
            package: &[],
            explicit: true,
            named_in: None,
            chosen: None,
        };
        self.file(start, &top)?;

        // A group that no list names can still be chosen on the command line; a key that is no group takes any text.
        for o in overrides {
            let key = o.path.join("/");
            let group: Vec<String> = folder_of(&key).split('/').map(str::to_owned).collect();
            let named = self.found.groups.contains_key(&key);
            let Some(choices) = self.typed.get(&key).cloned() else {
                continue;
            };
            if named || choices.is_empty() || !self.any_file(&key, &choices) {
                continue;
            }
            let package: Vec<String> = match key.split_once('@') {
                Some((_, package)) => package.split('/').map(str::to_owned).collect(),
                None => group.clone(),
            };
            self.now.chosen.insert(key.clone(), choices.clone());
            let added = Group {
                offered: vec![],
                chosen: choices.clone(),
            };
            self.found.groups.insert(key.clone(), added);
            self.waiting.push_back(Waiting {
                group,
                package,
                explicit: key.contains('@'),
                choices,
            });
        }
        while let Some(waiting) = self.waiting.pop_front() {
            for choice in &waiting.choices {
                let place = Place {
                    group: &waiting.group,
                    package: &waiting.package,
                    explicit: waiting.explicit,
                    named_in: None,
                    chosen: Some(&waiting.package),
                };
                self.group(choice, &place, &Origin::CommandLine)?;
            }
        }
        Ok(())
    }

    /// Whether one of the names is a choice of a group that has a folder.
    fn any_file(&self, key: &str, names: &[String]) -> bool {
        let group = folder_of(key);
        self.search.has_group(group)
            && names
                .iter()
                .any(|name| self.choice_file(group, name).is_file())
    }

    /// Adds a file with its defaults.
    fn file(&mut self, path: &Path, place: &Place<'_>) -> Result<(), ConfigError> {
        if self.open.iter().any(|open| open == path) {
            self.open.push(path.to_owned());
            return Err(ConfigError::Circle {
                files: std::mem::take(&mut self.open),
            });
        }
        let mut file = ConfigFile::read(path, place.named_in)?;
        let own_package = match file.package.as_deref().filter(|_| !place.explicit) {
            Some(text) => package(text, &[], place.group),
            None => place.package.to_vec(),
        };
        if !file
            .defaults
            .iter()
            .any(|entry| matches!(entry, Entry::Own))
        {
            file.defaults.push(Entry::Own);
        }
        self.note(&path.display().to_string());
        self.open.push(path.to_owned());
        for entry in std::mem::take(&mut file.defaults) {
            self.entry(entry, path, &own_package, place, &file)?;
        }
        self.open.pop();
        Ok(())
    }

    fn entry(
        &mut self,
        entry: Entry,
        path: &Path,
        own_package: &[String],
        place: &Place<'_>,
        file: &ConfigFile,
    ) -> Result<(), ConfigError> {
        let inner_group = |name: &str| -> Vec<String> {
            let (around, name) = match name.strip_prefix('/') {
                Some(name) => (&[][..], name),
                None => (place.group, name),
            };
            let names = name.split('/').map(str::to_owned);
            around.iter().cloned().chain(names).collect()
        };
        match entry {
            Entry::Own => {
                self.note("_self_");
                self.found.files.push(FileRow {
                    file: path.to_owned(),
                    package: own_package.to_vec(),
                    named_in: self.open.iter().rev().nth(1).cloned(),
                });
                self.layers.push(Layer {
                    origin: Origin::File(path.to_owned()),
                    own: !self.search.holds(path),
                    chosen: place.chosen.map(<[String]>::to_vec),
                    values: dict(nest(own_package, file.values.clone().into())),
                });
            }
            Entry::File {
                name,
                package: text,
            } => {
                let (group, name, around) = match name.strip_prefix('/') {
                    Some(name) => (&[][..], name, &[][..]),
                    None => (place.group, name.as_str(), own_package),
                };
                let stands = text
                    .as_deref()
                    .map_or(around.to_vec(), |text| package(text, own_package, group));
                let next = Place {
                    group,
                    package: &stands,
                    explicit: text.is_some(),
                    named_in: Some(path),
                    chosen: place.chosen,
                };
                self.file(&self.choice_file(&group.join("/"), name), &next)?;
            }
            Entry::Override {
                group,
                package: text,
                choices,
            } => {
                let group = inner_group(&group);
                let stands = text.map(|text| package(&text, own_package, &group));
                let key = key(&group, stands.as_deref());
                self.note(&format!("override {key}: {}", shown(&choices)));
                let overriding = &mut self.now.overriding;
                overriding.insert(key, (choices, path.to_owned()));
            }
            Entry::Group {
                group: name,
                package: text,
                choices,
                optional,
            } => {
                let group = inner_group(&name);
                let explicit = text.is_some();
                let stands = match (text, name.strip_prefix('/')) {
                    (Some(text), _) => package(&text, own_package, &group),
                    (None, Some(_)) => group.clone(),
                    (None, None) => {
                        let names = name.split('/').map(str::to_owned);
                        own_package.iter().cloned().chain(names).collect()
                    }
                };
                let key = key(&group, explicit.then_some(&stands[..]));
                let choices = match self.before.overriding.get(&key) {
                    Some((choices, _)) => choices.clone(),
                    None => choices,
                };
                let offered = self.interpolate(choices, path, optional)?;
                let typed = self.typed.get(&key).cloned();
                let chosen = typed.as_ref().unwrap_or(&offered).clone();
                self.note(&format!("{key}: {}", shown(&chosen)));
                self.now.chosen.insert(key.clone(), chosen.clone());
                let entry = Group {
                    offered: offered.clone(),
                    chosen,
                };
                self.found.groups.insert(key.clone(), entry);
                match typed {
                    // What was typed lies over all files.
                    Some(choices) => self.waiting.push_back(Waiting {
                        group,
                        package: stands,
                        explicit,
                        choices,
                    }),
                    None if offered.iter().any(|choice| choice == OPEN) => {
                        self.left_open.push((key, path.to_owned()));
                    }
                    None => {
                        for choice in offered {
                            let missing = || !self.choice_file(&group.join("/"), &choice).is_file();
                            if optional && missing() {
                                continue;
                            }
                            let next = Place {
                                group: &group,
                                package: &stands,
                                explicit,
                                named_in: Some(path),
                                chosen: place.chosen,
                            };
                            self.group(&choice, &next, &Origin::File(path.to_owned()))?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Puts other groups' choices for `${group}` in choices; leaves those out that are not known yet, or optional and of nothing.
    fn interpolate(
        &mut self,
        choices: Vec<String>,
        path: &Path,
        optional: bool,
    ) -> Result<Vec<String>, ConfigError> {
        let mut out = vec![];
        'choices: for choice in choices {
            let (mut text, mut rest) = (String::new(), choice.as_str());
            while let Some((before, (group, after))) = rest
                .split_once("${")
                .and_then(|(before, inner)| Some((before, inner.split_once('}')?)))
            {
                self.unsettled = true;
                text += before;
                match self.before.chosen.get(group.trim()).map(Vec::as_slice) {
                    Some([one]) => text += one,
                    _ if self.first_pass => continue 'choices,
                    Some([]) if optional => continue 'choices,
                    found => {
                        let why = match found {
                            None => format!("no `defaults` name a group `{group}`"),
                            Some([]) => format!("nothing is chosen of the group `{group}`"),
                            Some(_) => format!("several choices of the group `{group}`"),
                        };
                        return Err(ConfigError::Interpolation {
                            key: "defaults".to_owned(),
                            text: choice.clone(),
                            why,
                            nearest: nearest(group, self.before.chosen.keys().map(String::as_str))
                                .map(str::to_owned),
                            origin: Origin::File(path.to_owned()),
                        });
                    }
                }
                rest = after;
            }
            out.push(text + rest);
        }
        Ok(out)
    }

    /// Adds the file of a group's choice.
    fn group(
        &mut self,
        choice: &str,
        place: &Place<'_>,
        origin: &Origin,
    ) -> Result<(), ConfigError> {
        let name = place.group.join("/");
        let file = self.choice_file(&name, choice);
        if !file.is_file() && !is_path(choice) {
            return Err(ConfigError::UnknownChoice {
                available: self.search.choices(&name),
                group: name,
                choice: choice.to_owned(),
                origin: origin.clone(),
            });
        }
        self.file(&file, place)
    }

    fn choice_file(&self, group: &str, choice: &str) -> PathBuf {
        if is_path(choice) {
            PathBuf::from(choice)
        } else {
            self.search.file(group, choice)
        }
    }

    /// Adds a line to the tree of entries.
    fn note(&mut self, text: &str) {
        self.found.tree.push((self.open.len(), text.to_owned()));
    }
}

fn shown(choices: &[String]) -> String {
    match choices {
        [] => "null".to_owned(),
        [one] => one.clone(),
        several => format!("[{}]", several.join(", ")),
    }
}
