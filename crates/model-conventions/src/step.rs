//! Training steps in the names of folders and revisions.

use std::collections::BTreeMap;
use std::path::Path;

/// Two names of one step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{first}` and `{second}` are both step {step}: rename or remove one of them")]
pub struct SameStep {
    /// The step.
    pub step: u64,
    /// The name that came first.
    pub first: String,
    /// The other.
    pub second: String,
}

/// The training step that a name says: `step512`, `step-512`, `step_512`, `step000512`, the same behind `checkpoint` or `ckpt`.
///
/// `None` where anything else is in the name, so that no other number is taken for a step.
///
/// # Examples
/// ```
/// use model_conventions::step_of;
///
/// for name in ["step512", "step-512", "step_512", "step000512", "checkpoint-512"] {
///     assert_eq!(step_of(name), Some(512));
/// }
/// for name in ["main", "512", "step", "step--512", "step-1.5", "step512-tokens1B"] {
///     assert_eq!(step_of(name), None);
/// }
/// ```
#[must_use]
pub fn step_of(name: &str) -> Option<u64> {
    let rest = ["step", "checkpoint", "ckpt"]
        .iter()
        .find_map(|word| name.strip_prefix(word))?;
    digits(rest.strip_prefix(['-', '_']).unwrap_or(rest))
}

/// Digits alone: `parse` also takes a sign.
fn digits(text: &str) -> Option<u64> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())?
}

/// The training step that the name of a folder says: the name it was given, else the one it has on the disk (`.`, a link).
#[must_use]
pub fn step_of_folder(path: &Path) -> Option<u64> {
    let of = |path: &Path| step_of(path.file_name()?.to_str()?);
    of(path).or_else(|| of(&path.canonicalize().ok()?))
}

/// Names sorted into steps and others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StepNames {
    names: BTreeMap<u64, String>,
    others: Vec<String>,
}

impl StepNames {
    /// Sorts the names of one folder or repository. Here digits alone are a step, too: nothing else is meant by them.
    ///
    /// # Errors
    /// - [`SameStep`] if two names say the same step
    pub fn among(names: impl IntoIterator<Item = String>) -> Result<Self, SameStep> {
        let mut found = Self::default();
        for name in names {
            let Some(step) = step_of(&name).or_else(|| digits(&name)) else {
                found.others.push(name);
                continue;
            };
            if let Some(first) = found.names.get(&step) {
                return Err(SameStep {
                    step,
                    first: first.clone(),
                    second: name,
                });
            }
            found.names.insert(step, name);
        }
        found.others.sort_unstable();
        Ok(found)
    }

    /// The steps, ascending.
    pub fn steps(&self) -> impl Iterator<Item = u64> + '_ {
        self.names.keys().copied()
    }

    /// How a step is written here.
    #[must_use]
    pub fn name(&self, step: u64) -> Option<&str> {
        self.names.get(&step).map(String::as_str)
    }

    /// Names in the order of their steps.
    pub fn names(&self) -> impl Iterator<Item = &str> + '_ {
        self.names.values().map(String::as_str)
    }

    /// Names that are no steps, in alphabetical order.
    #[must_use]
    pub fn others(&self) -> &[String] {
        &self.others
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn among(names: &[&str]) -> Result<StepNames, SameStep> {
        StepNames::among(names.iter().map(|&name| name.to_owned()))
    }

    #[test]
    fn no_sign_and_no_overflow_becomes_a_step() {
        for name in [
            "step-",
            "step+5",
            "-512",
            "+512",
            "step_-5",
            "step 5",
            "step18446744073709551616",
            "steps5",
            "STEP5",
            "step٥",
            "",
        ] {
            assert_eq!(step_of(name), None, "{name}");
            assert_eq!(among(&[name]).map(|found| found.names.len()), Ok(0));
        }
        assert_eq!(step_of("step18446744073709551615"), Some(u64::MAX));
        assert_eq!(step_of("ckpt_000"), Some(0));
    }

    #[test]
    fn two_names_of_a_step_are_an_error() {
        for pair in [["step512", "step-512"], ["step007", "7"]] {
            let message = among(&pair).unwrap_err().to_string();
            assert!(
                message.contains(pair[0]) && message.contains(pair[1]),
                "{message}"
            );
        }
    }

    #[test]
    fn folders_are_known_by_the_name_on_the_disk_too() -> Result<(), Box<dyn std::error::Error>> {
        let root = tempfile::tempdir()?;
        let folder = root.path().join("step-64");
        std::fs::create_dir(&folder)?;
        assert_eq!(step_of_folder(&folder.join(".")), Some(64));
        assert_eq!(step_of_folder(&root.path().join("step9")), Some(9));
        assert_eq!(step_of_folder(root.path()), None);
        Ok(())
    }
}
