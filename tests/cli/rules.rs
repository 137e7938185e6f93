//! What holds for the configuration of every job: of keys that exclude each other the later one wins, what belonged to the other goes with
//! it, and what `--print-config` prints is read back. A part of each binary's own tests, as it needs the types of its configuration.
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use job_kit::{ConfigArgs, ConfigError, Resolved, Rules, compose, exit::message};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// Values of every type that a key may have, of most two that differ.
const VALUES: [&str; 19] = [
    "log",
    "5",
    "6",
    "0..3",
    "0..4",
    "[\"3.1\"]",
    "[\"3.2\"]",
    "[1]",
    "[2]",
    "true",
    "{scale: 0.5}",
    "one",
    "another",
    "skip",
    "line",
    "share",
    "count",
    "1/2",
    "2/2",
];

struct Job {
    name: &'static str,
    configs: PathBuf,
    files: tempfile::TempDir,
}

impl Job {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            configs: Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs"),
            files: tempfile::tempdir().unwrap(),
        }
    }

    fn compose<T: DeserializeOwned + Serialize + Rules>(
        &self,
        file: &[&str],
        typed: &[&str],
    ) -> Result<Resolved<T>, ConfigError> {
        let config = (!file.is_empty()).then(|| {
            // `a.b.c=1 a.b.d=2 e=3` is `a: {b: {c: 1, d: 2}}` and `e: 3`.
            let mut by_parents: BTreeMap<&str, Vec<String>> = BTreeMap::new();
            for setting in file {
                let (key, value) = setting.split_once('=').unwrap();
                let (parents, last) = key.rsplit_once('.').unwrap_or(("", key));
                let inside = by_parents.entry(parents).or_default();
                inside.push(format!("{last}: {value}"));
            }
            let mut text = format!("defaults: [{}]\n", self.name);
            for (parents, inside) in by_parents {
                if parents.is_empty() {
                    inside.iter().for_each(|line| text += &format!("{line}\n"));
                    continue;
                }
                let (first, rest) = parents.split_once('.').unwrap_or((parents, ""));
                let mut value = format!("{{{}}}", inside.join(", "));
                for parent in rest.split('.').rev().filter(|parent| !parent.is_empty()) {
                    value = format!("{{{parent}: {value}}}");
                }
                text += &format!("{first}: {value}\n");
            }
            self.write(&text)
        });
        self.compose_from(config, typed)
    }

    fn write(&self, text: &str) -> PathBuf {
        let path = self.files.path().join("mine.yaml");
        fs::write(&path, text).unwrap();
        path
    }

    fn compose_from<T: DeserializeOwned + Serialize + Rules>(
        &self,
        config: Option<PathBuf>,
        typed: &[&str],
    ) -> Result<Resolved<T>, ConfigError> {
        compose(
            self.name,
            &ConfigArgs {
                overrides: typed.iter().map(|&text| text.to_owned()).collect(),
                config,
                config_dir: self.configs.clone(),
                ..ConfigArgs::default()
            },
        )
    }

    /// Settings of `key` that the job takes, beside `with`.
    fn settings<T: DeserializeOwned + Serialize + Rules>(
        &self,
        key: &str,
        with: &[&str],
    ) -> Vec<String> {
        let before = self.compose::<T>(&[], with).map(|r| r.value().clone());
        let settings = VALUES.iter().map(|value| format!("{key}={value}"));
        settings
            .filter(|setting| {
                let typed = [with, &[setting.as_str()]].concat();
                self.compose::<T>(&[], &typed).is_ok_and(|resolved| {
                    let value = at(resolved.value(), key);
                    !value.is_null()
                        && before
                            .as_ref()
                            .map_or(true, |before| at(before, key) != value)
                })
            })
            .collect()
    }
}

fn at<'v>(value: &'v Value, key: &str) -> &'v Value {
    key.split('.')
        .fold(value, |value, name| value.get(name).unwrap_or(&Value::Null))
}

fn resolved<T>(result: Result<Resolved<T>, ConfigError>, case: &str) -> Value {
    match result {
        Ok(resolved) => resolved.value().clone(),
        Err(error) => panic!("{case}: {}", message(&error.into())),
    }
}

/// Every pair of keys that exclude each other, in both orders and in one layer.
pub(crate) fn later_keys_displace_earlier_ones<T: DeserializeOwned + Serialize + Rules>(
    name: &'static str,
) {
    let job = Job::new(name);
    let mut pairs = 0;
    for rule in T::rules().iter().filter(|rule| rule.excludes()) {
        let keys = rule.keys();
        for (first, second) in keys
            .iter()
            .flat_map(|a| keys.iter().map(move |b| (a, b)))
            .filter(|(a, b)| a != b)
        {
            let setting = |key: &str| {
                let settings = job.settings::<T>(key, &[]);
                let setting = settings.first();
                setting
                    .unwrap_or_else(|| panic!("no value for {key}"))
                    .clone()
            };
            let (a, b) = (setting(first), setting(second));
            let case = format!("{name}: {a} in a file, {b} typed");
            let value = resolved(job.compose::<T>(&[&a], &[&b]), &case);
            assert!(at(&value, first).is_null(), "{case}");
            assert!(!at(&value, second).is_null(), "{case}");
            for (file, typed) in [(vec![], vec![&*a, &*b]), (vec![&*a, &*b], vec![])] {
                let case = format!("{name}: {a} and {b} in one layer");
                let Err(error) = job.compose::<T>(&file, &typed) else {
                    panic!("{case}");
                };
                let error = message(&error.into());
                let said = [first.as_str(), second, "exclude each other"];
                assert!(
                    said.iter().all(|said| error.contains(said)),
                    "{case}: {error}"
                );
            }
            pairs += 1;
        }
    }
    println!("{name}: {pairs} pairs");
}

/// Every key that belongs to another: it goes where its owner goes, and is refused where there is none.
pub(crate) fn what_belongs_goes_with_its_owner<T: DeserializeOwned + Serialize + Rules>(
    name: &'static str,
) {
    let job = Job::new(name);
    for rule in T::rules().iter().filter(|rule| rule.is_belonging()) {
        let keys = rule.keys();
        let (key, owners) = keys.split_first().unwrap();
        let owner = &owners[0];
        let of_owner = job.settings::<T>(owner, &[]);
        let [one, .., other] = &of_owner[..] else {
            panic!("{name}: too few values for {owner}");
        };
        let settings = job.settings::<T>(key, &[one]);
        let Some(setting) = settings.last() else {
            panic!("{name}: no value for {key} with {one}");
        };
        let kept = resolved(job.compose::<T>(&[one, setting], &[]), setting);
        let kept = at(&kept, key);

        // Another value of the owner.
        let case = format!("{name}: {one} {setting} in a file, {other} typed");
        let value = resolved(job.compose::<T>(&[one, setting], &[other]), &case);
        assert_eq!(at(&value, key) != kept, rule.falls_with_a_value(), "{case}");

        // What displaces the owner.
        let excluding = T::rules().into_iter().filter(|rule| rule.excludes());
        for rival in excluding
            .map(|rule| rule.keys())
            .filter(|keys| keys.contains(owner))
            .flatten()
            .filter(|rival| rival != owner)
        {
            let rivals = job.settings::<T>(&rival, &[]);
            let typed = rivals.first().unwrap();
            let case = format!("{name}: {one} {setting} in a file, {typed} typed");
            let value = resolved(job.compose::<T>(&[one, setting], &[typed]), &case);
            assert!(at(&value, key) != kept, "{case}");
            if owners.contains(&rival) {
                continue;
            }
            let case = format!("{name}: {typed} {setting} typed");
            let Err(error) = job.compose::<T>(&[], &[typed, setting]) else {
                panic!("{case}");
            };
            let error = message(&error.into());
            assert!(
                error.contains(key) && error.contains("only used with"),
                "{case}: {error}"
            );
        }
    }
}

/// Every choice of every group of the job, and `more`: what is printed is the same configuration again.
pub(crate) fn what_is_printed_is_read_back<T: DeserializeOwned + Serialize + Rules>(
    name: &'static str,
    more: &[&[&str]],
) {
    let job = Job::new(name);
    let text = fs::read_to_string(job.configs.join(format!("{name}.yaml"))).unwrap();
    let groups = text.lines().filter_map(|line| {
        let (group, _) = line.trim().strip_prefix("- ")?.split_once(':')?;
        Some(group)
    });
    let mut cases: Vec<Vec<String>> = vec![vec![]];
    for group in groups {
        for entry in fs::read_dir(job.configs.join(group)).into_iter().flatten() {
            let choice = entry.unwrap().path();
            let choice = choice.file_stem().unwrap().to_string_lossy();
            cases.push(vec![format!("{group}={choice}")]);
        }
    }
    cases.extend(
        more.iter()
            .map(|case| case.iter().map(|&o| o.to_owned()).collect()),
    );
    for case in cases {
        let typed: Vec<&str> = case.iter().map(String::as_str).collect();
        let first = match job.compose::<T>(&[], &typed) {
            Ok(first) => first,
            Err(error) => panic!("{name} {case:?}: {}", message(&error.into())),
        };
        let file = job.write(first.to_yaml_with_origins());
        let again = match job.compose_from::<T>(Some(file), &[]) {
            Ok(again) => again,
            Err(error) => panic!("{name} {case:?}, printed: {}", message(&error.into())),
        };
        assert_eq!(again.value(), first.value(), "{name} {case:?}");
    }
}

/// The tests of a job's configuration, from its type and sets of settings that are printed and read back.
macro_rules! hold {
    ($config:ty, $printed:expr $(,)?) => {
        #[test]
        fn later_keys_displace_earlier_ones() {
            crate::rules::later_keys_displace_earlier_ones::<$config>(crate::JOB);
        }

        #[test]
        fn what_belongs_goes_with_its_owner() {
            crate::rules::what_belongs_goes_with_its_owner::<$config>(crate::JOB);
        }

        #[test]
        fn what_is_printed_is_read_back() {
            crate::rules::what_is_printed_is_read_back::<$config>(crate::JOB, $printed);
        }
    };
}
pub(crate) use hold;
