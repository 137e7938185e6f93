//! Training steps in the names of folders and revisions.

use std::collections::BTreeMap;
use std::path::Path;

/// Two names of one step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{first}` and `{second}` are both step {step}: rename or remove one of them")]
#[non_exhaustive]
pub struct SameStep {
    /// The step.
    pub step: u64,
    /// The name that came first.
    pub first: String,
    /// The other.
    pub second: String,
}

/// What the number in the names of a series counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Counted {
    /// Steps of the optimiser, or whatever a series numbers its checkpoints by.
    #[default]
    Steps,
    /// Words of text seen, in millions.
    MillionWords,
}

impl Counted {
    /// As it stands at an axis.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Steps => "training step",
            Self::MillionWords => "million words seen",
        }
    }

    /// A checkpoint, for people: `step 512`, `10 million words`.
    ///
    /// # Examples
    /// ```
    /// use model_conventions::Counted;
    /// assert_eq!(Counted::Steps.name(512), "step 512");
    /// assert_eq!(Counted::MillionWords.name(10), "10 million words");
    /// ```
    #[must_use]
    pub fn name(self, step: i64) -> String {
        match self {
            Self::Steps => format!("step {step}"),
            Self::MillionWords => format!("{step} million words"),
        }
    }
}

/// How far training was, as the name of a checkpoint says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct StepName {
    /// The step, or what else is counted.
    pub step: u64,
    /// What it counts.
    pub counted: Counted,
    /// Tokens seen, in thousand millions.
    pub billion_tokens: Option<u64>,
}

impl StepName {
    /// Reads a name, as published series have them:
    ///
    /// | names | series |
    /// |---|---|
    /// | `step512`, `step-512`, `step_000512` | Pythia, SmolLM2 |
    /// | `checkpoint-512`, `ckpt_012` | CRFM's GPT-2, Amber |
    /// | `step1000-tokens4B`, `stage1-step1000-tokens3B` | OLMo, OLMo 2 |
    /// | `chck_10M` | BabyLM: words, not steps |
    ///
    /// `None` where anything else is in the name, so that no other number is taken for a step. The later stages of OLMo 2
    /// (`stage2-ingredient1-step1000-tokens5B`) are several runs that number their steps anew, and so are none of the series.
    ///
    /// # Examples
    /// ```
    /// use model_conventions::{Counted, StepName};
    ///
    /// let name = StepName::read("stage1-step150-tokens1B").expect("OLMo 2's are known");
    /// assert_eq!((name.step, name.billion_tokens), (150, Some(1)));
    /// assert_eq!(StepName::read("chck_10M").map(|name| name.counted), Some(Counted::MillionWords));
    /// assert_eq!(StepName::read("stage2-ingredient1-step1000-tokens5B"), None);
    /// ```
    #[must_use]
    pub fn read(name: &str) -> Option<Self> {
        if let Some(words) = name.strip_prefix("chck_") {
            return Some(Self {
                step: digits(words.strip_suffix('M')?)?,
                counted: Counted::MillionWords,
                billion_tokens: None,
            });
        }
        let (name, in_stage) = match name.strip_prefix("stage1-") {
            Some(name) => (name, true),
            None => (name, false),
        };
        let (name, billion_tokens) = match name.split_once("-tokens") {
            Some((name, tokens)) => (name, Some(digits(tokens.strip_suffix('B')?)?)),
            None => (name, None),
        };
        let word = match in_stage || billion_tokens.is_some() {
            true => &["step"][..],
            false => &["step", "checkpoint", "ckpt"],
        };
        let rest = word.iter().find_map(|word| name.strip_prefix(word))?;
        Some(Self {
            step: digits(rest.strip_prefix(['-', '_']).unwrap_or(rest))?,
            counted: Counted::Steps,
            billion_tokens,
        })
    }
}

/// The training step that a name says, of those that [`StepName`] reads.
///
/// # Examples
/// ```
/// use model_conventions::step_of;
///
/// for name in ["step512", "step-512", "step_512", "step000512", "checkpoint-512", "step512-tokens1B"] {
///     assert_eq!(step_of(name), Some(512));
/// }
/// for name in ["main", "512", "step", "step--512", "step-1.5", "step512-final"] {
///     assert_eq!(step_of(name), None);
/// }
/// ```
#[must_use]
pub fn step_of(name: &str) -> Option<u64> {
    StepName::read(name).map(|name| name.step)
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
    /// By step, with the tokens seen.
    names: BTreeMap<u64, (String, Option<u64>)>,
    counted: Counted,
    others: Vec<String>,
}

impl StepNames {
    /// Sorts the names of one folder or repository. Here digits alone are a step, too: nothing else is meant by them. Where some names count
    /// steps and others words, the series is the one of steps.
    ///
    /// # Errors
    /// - [`SameStep`] if two names say the same step
    pub fn among(names: impl IntoIterator<Item = String>) -> Result<Self, SameStep> {
        let read = |name: &str| {
            StepName::read(name).or_else(|| {
                Some(StepName {
                    step: digits(name)?,
                    counted: Counted::Steps,
                    billion_tokens: None,
                })
            })
        };
        let names: Vec<_> = names.into_iter().map(|name| (read(&name), name)).collect();
        let counted = names
            .iter()
            .filter_map(|(read, _)| Some(read.as_ref()?.counted));
        let mut found = Self {
            counted: counted.min().unwrap_or_default(),
            ..Self::default()
        };
        for (read, name) in names {
            let Some(said) = read.filter(|said| said.counted == found.counted) else {
                found.others.push(name);
                continue;
            };
            if let Some((first, _)) = found.names.get(&said.step) {
                return Err(SameStep {
                    step: said.step,
                    first: first.clone(),
                    second: name,
                });
            }
            found.names.insert(said.step, (name, said.billion_tokens));
        }
        found.others.sort_unstable();
        Ok(found)
    }

    /// What the steps count.
    #[must_use]
    pub fn counted(&self) -> Counted {
        self.counted
    }

    /// The tokens seen by each step, in thousand millions, as far as the names say them.
    pub fn billion_tokens(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let said = self.names.iter();
        said.filter_map(|(step, (_, tokens))| Some((*step, (*tokens)?)))
    }

    /// The steps, ascending.
    pub fn steps(&self) -> impl Iterator<Item = u64> + '_ {
        self.names.keys().copied()
    }

    /// How a step is written here.
    #[must_use]
    pub fn name(&self, step: u64) -> Option<&str> {
        self.names.get(&step).map(|(name, _)| name.as_str())
    }

    /// Names in the order of their steps.
    pub fn names(&self) -> impl Iterator<Item = &str> + '_ {
        self.names.values().map(|(name, _)| name.as_str())
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
        for name in [
            "stage1-step5-tokensB",
            "stage1-step5-tokens5M",
            "stage1-checkpoint-5",
            "stage2-step5-tokens5B",
            "step5-tokens5B-x",
            "chck_5",
            "chck_M",
            "chck_-5M",
        ] {
            assert_eq!(StepName::read(name), None, "{name}");
        }
    }

    #[test]
    fn published_series_are_read() -> Result<(), SameStep> {
        let olmo2 = [
            "main",
            "stage1-step150-tokens1B",
            "stage1-step1907359-tokens4001B",
            "stage2-ingredient1-step1000-tokens3B",
            "stage2-ingredient2-step1000-tokens3B",
        ];
        let found = among(&olmo2)?;
        assert_eq!(found.steps().collect::<Vec<_>>(), [150, 1_907_359]);
        assert_eq!(found.others().len(), 3);
        assert_eq!(found.counted(), Counted::Steps);
        let tokens: Vec<_> = found.billion_tokens().collect();
        assert_eq!(tokens, [(150, 1), (1_907_359, 4001)]);

        let babylm = among(&["chck_1M", "chck_20M", "chck_1000M", "main"])?;
        assert_eq!(babylm.counted().label(), "million words seen");
        assert_eq!(babylm.name(20), Some("chck_20M"));
        // A mixture is the series of steps.
        let mixed = among(&["chck_1M", "step1"])?;
        assert_eq!(
            (mixed.name(1), mixed.others()),
            (Some("step1"), &["chck_1M".to_owned()][..])
        );
        Ok(())
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
