//! What a configuration says of its keys beside their types: which exclude each other, which belong to others, which are not used.

use figment::value::Value;

use super::{ConfigError, layers::Composed};

/// The rules of a configuration, as data; [`compose`](super::compose) keeps them.
///
/// # Examples
/// ```
/// use job_kit::config::{Rule, Rules};
///
/// struct Model;
/// impl Rules for Model {
///     fn rules() -> Vec<Rule> {
///         vec![Rule::one_of(&["path", "repo"]), Rule::made_for("tokenizer", &["path", "repo"])]
///     }
/// }
/// struct Config;
/// impl Rules for Config {
///     fn rules() -> Vec<Rule> {
///         Rule::under("model", Model::rules())
///     }
/// }
/// assert_eq!(Config::rules()[0].keys(), ["model.path", "model.repo"]);
/// ```
pub trait Rules {
    /// The rules; none by default.
    fn rules() -> Vec<Rule> {
        Vec::new()
    }
}

/// Asked of the resolved configuration, and of the part of it that stands under the prefix of the rule.
pub type When = fn(&serde_json::Value, &serde_json::Value) -> bool;

/// One rule. Keys are written with dots; a key is set if it has a value other than null.
#[derive(Debug, Clone)]
pub struct Rule {
    pub(super) kind: Kind,
    /// The keys that the others are relative to, with a dot at the end, or nothing.
    prefix: String,
}

#[derive(Debug, Clone)]
pub(super) enum Kind {
    OneOf(Vec<String>),
    Belongs {
        key: String,
        owners: Vec<String>,
        /// Whether it falls also where the owner gets another value.
        made_for: bool,
    },
    Unused {
        key: String,
        when: When,
        why: &'static str,
    },
}

impl Rule {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            prefix: String::new(),
        }
    }

    /// Keys that exclude each other: the one in the later layer displaces the others; two in one layer are an error.
    pub fn one_of(keys: &[&str]) -> Self {
        Self::new(Kind::OneOf(owned(keys)))
    }

    /// A key that means something only with one of `owners`. Where the owner that it was set with is displaced, it is dropped.
    pub fn belongs(key: &str, owners: &[&str]) -> Self {
        Self::new(Kind::Belongs {
            key: key.to_owned(),
            owners: owned(owners),
            made_for: false,
        })
    }

    /// The same for a key that fits just one value of its owner, as a tokenizer fits its model: another value drops it too.
    pub fn made_for(key: &str, owners: &[&str]) -> Self {
        Self::new(Kind::Belongs {
            key: key.to_owned(),
            owners: owned(owners),
            made_for: true,
        })
    }

    /// A key that the job does not use if `when` says so of the resolved configuration.
    /// `why` completes "`key` is set, but ...".
    pub fn unused(key: &str, when: When, why: &'static str) -> Self {
        Self::new(Kind::Unused {
            key: key.to_owned(),
            when,
            why,
        })
    }

    /// Rules of a part, for the configuration that has it under `prefix`. A part `*` stands for every key that there is.
    pub fn under(prefix: &str, rules: Vec<Self>) -> Vec<Self> {
        rules
            .into_iter()
            .map(|rule| Self {
                prefix: format!("{prefix}.{}", rule.prefix),
                ..rule
            })
            .collect()
    }

    /// The keys that the rule is about, in full, owners last.
    pub fn keys(&self) -> Vec<String> {
        let keys: Vec<&String> = match &self.kind {
            Kind::OneOf(keys) => keys.iter().collect(),
            Kind::Belongs { key, owners, .. } => [key].into_iter().chain(owners).collect(),
            Kind::Unused { key, .. } => vec![key],
        };
        keys.into_iter().map(|key| self.full(key)).collect()
    }

    /// Whether its keys exclude each other.
    pub fn excludes(&self) -> bool {
        matches!(self.kind, Kind::OneOf(_))
    }

    /// Whether its first key belongs to the others.
    pub fn is_belonging(&self) -> bool {
        matches!(self.kind, Kind::Belongs { .. })
    }

    /// Whether its first key falls with a value of the others, not only with the key.
    pub fn falls_with_a_value(&self) -> bool {
        matches!(self.kind, Kind::Belongs { made_for: true, .. })
    }

    pub(super) fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// What `when` is asked about: the part under the prefix.
    pub(super) fn part<'v>(&self, resolved: &'v serde_json::Value) -> &'v serde_json::Value {
        self.prefix
            .split('.')
            .filter(|name| !name.is_empty())
            .fold(resolved, |part, name| {
                part.get(name).unwrap_or(&serde_json::Value::Null)
            })
    }

    /// The rule for every name that stands at the `*` of its prefix, or itself.
    pub(super) fn each(self, composed: &Composed) -> Vec<Self> {
        let Some((before, after)) = self.prefix.split_once("*.") else {
            return vec![self];
        };
        let names: Vec<String> = match composed.at(before.trim_end_matches('.')) {
            Some(Value::Dict(_, dict)) => dict.keys().cloned().collect(),
            _ => vec![],
        };
        let prefixes = names.iter().map(|name| format!("{before}{name}.{after}"));
        prefixes
            .map(|prefix| Self {
                prefix,
                kind: self.kind.clone(),
            })
            .collect()
    }
}

fn owned(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|&key| key.to_owned()).collect()
}

impl Rule {
    /// The key that this rule says is set and not used, and why.
    pub(super) fn not_used(
        &self,
        composed: &Composed,
        resolved: &serde_json::Value,
    ) -> Option<(String, String)> {
        let (key, why) = match &self.kind {
            Kind::OneOf(_) => return None,
            Kind::Belongs { key, owners, .. } => {
                let owners: Vec<String> = owners.iter().map(|owner| self.full(owner)).collect();
                if owners.iter().any(|owner| composed.is_set(owner)) {
                    return None;
                }
                let owners: Vec<String> = owners.iter().map(|key| format!("`{key}`")).collect();
                let why = format!("it is only used with {}", owners.join(" or "));
                (self.full(key), why)
            }
            Kind::Unused { key, when, why } => {
                if !when(resolved, self.part(resolved)) {
                    return None;
                }
                (self.full(key), (*why).to_owned())
            }
        };
        composed.is_set(&key).then_some((key, why))
    }
}

/// Leaves out what a later layer has displaced: keys that exclude each other, and what belonged to them.
///
/// # Errors
/// Two keys in one layer that exclude each other.
pub(super) fn displace(composed: &mut Composed, rules: &[Rule]) -> Result<(), ConfigError> {
    let all = composed.layers.len();
    for rule in rules {
        let Kind::OneOf(keys) = &rule.kind else {
            continue;
        };
        let mut set: Vec<(usize, String)> = keys
            .iter()
            .map(|key| rule.full(key))
            .filter(|key| composed.is_set(key))
            .filter_map(|key| Some((composed.place(&key, all)?.0, key)))
            .collect();
        set.sort_by_key(|(place, _)| *place);
        let Some((place, winner)) = set.pop() else {
            continue;
        };
        let origin = composed.layers[place].origin.clone();
        for (other, key) in set {
            if other == place {
                return Err(ConfigError::Exclude {
                    first: key,
                    second: winner,
                    origin,
                });
            }
            composed.leave_out(&key, &format!("`{winner}` ({origin}) takes its place"));
            composed.displaced.insert(key, place);
        }
    }
    for rule in rules {
        let Kind::Belongs {
            key,
            owners,
            made_for,
        } = &rule.kind
        else {
            continue;
        };
        let key = rule.full(key);
        let owners: Vec<String> = owners.iter().map(|owner| rule.full(owner)).collect();
        if !composed.is_set(&key) {
            continue;
        }
        let Some((own_place, _)) = composed.place(&key, all) else {
            continue;
        };
        let owner = |below: usize, set: &dyn Fn(&str) -> bool| {
            owners
                .iter()
                .filter(|owner| set(owner))
                .filter_map(|owner| {
                    let (place, value) = composed.place(owner, below)?;
                    Some((place, owner, value.clone()))
                })
                .max_by_key(|(place, ..)| *place)
        };
        let Some((old_place, old, old_value)) = owner(own_place + 1, &|_| true) else {
            continue;
        };
        // What a choice of the command line brings without its owner was chosen beside whatever owner is typed.
        let chosen = |place: usize| &composed.layers[place].chosen;
        if chosen(own_place).is_some() && chosen(own_place) != chosen(old_place) {
            continue;
        }
        let now = owner(all, &|owner| composed.is_set(owner));
        let why = match now {
            Some((place, new, value)) => {
                let origin = &composed.layers[place].origin;
                let displaced = new != old || (*made_for && value != old_value);
                let why = match new == old {
                    true => {
                        format!("it was set for another `{old}` than the one now set ({origin})")
                    }
                    false => format!("it belongs to `{old}`, which `{new}` ({origin}) displaces"),
                };
                (place > own_place && displaced).then_some(why)
            }
            // Where the owner went in the same layer, the key is set and not used.
            None => {
                let lost = composed.lost(old);
                let origin = &composed.layers[lost].origin;
                (lost > own_place)
                    .then(|| format!("it belongs to `{old}`, which is gone ({origin})"))
            }
        };
        if let Some(why) = why {
            composed.leave_out(&key, &why);
        }
    }
    Ok(())
}
