//! Which checkpoints of a series: `all`, `log`, single steps, ranges, tokens seen.

use serde::{Deserialize, Serialize};

use crate::StepNames;

/// A step, a word or a range, or a list of them, as a configuration has it.
///
/// # Examples
/// ```
/// use model_conventions::{StepNames, Steps};
///
/// let names = ["step0", "step512", "step1000", "step2000", "step3000"].map(String::from);
/// let there = StepNames::among(names)?;
/// let steps = |json: &str| serde_json::from_str::<Steps>(json).expect("it is one").resolve(&there);
/// assert_eq!(steps(r#""log""#)?, [0, 512, 1000, 2000]);
/// assert_eq!(steps(r#"[0, "600..2500"]"#)?, [0, 1000, 2000]);
/// assert!(steps("7").is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a step, `all`, `log`, a range like `1000..143000` or `1000..143000/10000` (end included), tokens seen like `4B..100B`, or a list of these"
)]
pub enum Steps {
    /// A step.
    Step(u64),
    /// `all`, `log`, a step, a range, or tokens seen.
    Text(String),
    /// Any of these.
    List(Vec<Steps>),
}

impl Default for Steps {
    fn default() -> Self {
        Self::Text("all".into())
    }
}

/// Steps that are not there, or not written as steps are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StepsError {
    /// Nothing is left.
    #[error("they name no checkpoint; there are {there}")]
    Nothing {
        /// The steps that there are.
        there: String,
    },
    /// A step that is named is not there.
    #[error(
        "there is no checkpoint of step {step}; there are {there} (a range without a stride, `0..100000`, takes those that are in it)"
    )]
    Missing {
        /// The step.
        step: u64,
        /// The steps that there are.
        there: String,
    },
    /// No text that means steps.
    #[error(
        "`{text}` is none: {why}; expected a step, `all`, `log`, a range like `1000..143000` or `1000..143000/10000` (end included), or tokens seen like `4B..100B`"
    )]
    Text {
        /// What was written.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Tokens are asked for, and the names do not say them.
    #[error(
        "`{text}` asks for tokens seen, but the names of these checkpoints, such as `{name}`, do not say them: name steps"
    )]
    NoTokens {
        /// What was written.
        text: String,
        /// The name of a checkpoint.
        name: String,
    },
    /// No checkpoint of so many tokens.
    #[error(
        "there is no checkpoint of {billions}B tokens; the nearest are of {nearest} (a range, `4B..100B`, takes those that are in it)"
    )]
    MissingTokens {
        /// How many were asked for, in thousand millions.
        billions: u64,
        /// Those around it.
        nearest: String,
    },
}

impl Steps {
    /// Whether it is `all`, as where nothing is set.
    #[must_use]
    pub fn is_all(&self) -> bool {
        matches!(self, Self::Text(text) if text.trim() == "all")
    }

    /// The steps in ascending order, out of those that there are. A step that is named must exist; `all`, `log` and ranges without a stride take
    /// what there is of theirs. No range is expanded beyond what there is.
    ///
    /// # Errors
    /// - [`StepsError`] for what is not there, or is not written as steps are
    pub fn resolve(&self, there: &StepNames) -> Result<Vec<u64>, StepsError> {
        let available: Vec<u64> = there.steps().collect();
        let mut steps = Vec::new();
        self.collect(there, &available, &mut steps)?;
        steps.sort_unstable();
        steps.dedup();
        let listed = || listed(&available);
        if steps.is_empty() {
            return Err(StepsError::Nothing { there: listed() });
        }
        match steps.iter().find(|step| there.name(**step).is_none()) {
            Some(&step) => Err(StepsError::Missing {
                step,
                there: listed(),
            }),
            None => Ok(steps),
        }
    }

    fn collect(
        &self,
        there: &StepNames,
        available: &[u64],
        steps: &mut Vec<u64>,
    ) -> Result<(), StepsError> {
        let text = match self {
            Self::Step(step) => {
                steps.push(*step);
                return Ok(());
            }
            Self::List(list) => {
                return list
                    .iter()
                    .try_for_each(|item| item.collect(there, available, steps));
            }
            Self::Text(text) => text.trim(),
        };
        match text {
            "all" => steps.extend(available),
            "log" => steps.extend(available.iter().filter(|step| is_log_spaced(**step))),
            _ => match text.parse() {
                Ok(step) => steps.push(step),
                Err(_) if text.ends_with('B') => steps.extend(by_tokens(text, there)?),
                Err(_) => steps.extend(range(text, available).map_err(|why| StepsError::Text {
                    text: text.to_owned(),
                    why,
                })?),
            },
        }
        Ok(())
    }
}

/// Steps by the tokens that their names say: `100B`, or `4B..100B`, the end included.
fn by_tokens(text: &str, there: &StepNames) -> Result<Vec<u64>, StepsError> {
    let wrong = |why| StepsError::Text {
        text: text.to_owned(),
        why,
    };
    let billions = |text: &str| {
        let number = text.trim().strip_suffix('B').map(str::trim);
        number.and_then(|number| number.parse::<u64>().ok())
    };
    let (start, end) = match text.split_once("..") {
        Some((start, end)) => (billions(start), billions(end)),
        None => (billions(text), billions(text)),
    };
    let (Some(start), Some(end)) = (start, end) else {
        return Err(wrong("tokens are whole thousand millions, as in `100B`"));
    };
    if start > end {
        return Err(wrong("the range is empty"));
    }
    let said: Vec<(u64, u64)> = there.billion_tokens().collect();
    if said.is_empty() {
        return Err(StepsError::NoTokens {
            text: text.to_owned(),
            name: there.names().next().unwrap_or("none").to_owned(),
        });
    }
    let within = said
        .iter()
        .filter(|(_, tokens)| (start..=end).contains(tokens));
    let steps: Vec<u64> = within.map(|(step, _)| *step).collect();
    if steps.is_empty() && start == end {
        let mut nearest: Vec<u64> = said.iter().map(|(_, tokens)| *tokens).collect();
        nearest.sort_by_key(|tokens| tokens.abs_diff(start));
        nearest.dedup();
        nearest.truncate(4);
        nearest.sort_unstable();
        let nearest: Vec<String> = nearest.iter().map(|tokens| format!("{tokens}B")).collect();
        return Err(StepsError::MissingTokens {
            billions: start,
            nearest: nearest.join(", "),
        });
    }
    Ok(steps)
}

/// 0, the powers of 2, and 1,000 times those: evenly spaced on a logarithmic axis, as far as published checkpoints go.
fn is_log_spaced(step: u64) -> bool {
    step == 0
        || step.is_power_of_two()
        || (step.is_multiple_of(1000) && (step / 1000).is_power_of_two())
}

/// `a..b` or `a..b/stride`, the end included.
fn range(text: &str, available: &[u64]) -> Result<Vec<u64>, &'static str> {
    let number = |text: &str| text.trim().parse::<u64>().ok();
    let (start, rest) = text.split_once("..").ok_or("there is no `..` in it")?;
    let start = number(start).ok_or("no number stands before `..`")?;
    let (end, stride) = match rest.split_once('/') {
        Some((end, stride)) => (
            end,
            Some(number(stride).ok_or("no number stands after `/`")?),
        ),
        None => (rest, None),
    };
    let end = number(end).ok_or("no number stands after `..`")?;
    if start > end || stride == Some(0) {
        return Err("the range is empty");
    }
    let Some(stride) = stride else {
        let within = available.iter().filter(|step| (start..=end).contains(step));
        return Ok(within.copied().collect());
    };
    // The first step that there is not ends it, and is named.
    let mut steps = Vec::new();
    let mut step = start;
    while step <= end {
        steps.push(step);
        let Some(next) = step
            .checked_add(stride)
            .filter(|_| available.contains(&step))
        else {
            break;
        };
        step = next;
    }
    Ok(steps)
}

fn listed(steps: &[u64]) -> String {
    let shown: Vec<String> = steps.iter().take(12).map(u64::to_string).collect();
    match steps.len() {
        0 => "none".into(),
        n if n > shown.len() => format!("{}, ... ({n} in all)", shown.join(", ")),
        _ => shown.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PYTHIA_START: [u64; 14] = [
        0, 1, 2, 4, 8, 16, 512, 1000, 2000, 3000, 11000, 21000, 128000, 143000,
    ];

    fn names(names: impl IntoIterator<Item = String>) -> StepNames {
        StepNames::among(names).unwrap_or_default()
    }

    fn among(there: &StepNames, json: &str) -> Result<Vec<u64>, String> {
        let steps: Steps = serde_json::from_str(json).map_err(|e| e.to_string())?;
        steps.resolve(there).map_err(|e| e.to_string())
    }

    fn resolve(text: &str) -> Result<Vec<u64>, String> {
        let there = names(PYTHIA_START.map(|step| format!("step{step}")));
        among(&there, &serde_json::json!(text).to_string())
    }

    #[test]
    fn values_words_and_ranges() {
        let there = names(PYTHIA_START.map(|step| format!("step{step}")));
        assert_eq!(among(&there, "4"), Ok(vec![4]));
        assert_eq!(
            among(&there, r#"[512, "1000..21000/10000", 0, 512]"#),
            Ok(vec![0, 512, 1000, 11000, 21000])
        );
        assert_eq!(resolve("3..2000"), Ok(vec![4, 8, 16, 512, 1000, 2000]));
        assert_eq!(resolve("all").map(|s| s.len()), Ok(14));
        assert_eq!(
            resolve("log"),
            Ok(vec![0, 1, 2, 4, 8, 16, 512, 1000, 2000, 128000])
        );
        assert!(among(&there, "[]").is_err());
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        assert_eq!(resolve("7"), Err("there is no checkpoint of step 7; there are 0, 1, 2, 4, 8, 16, 512, 1000, 2000, 3000, 11000, 21000, ... (14 in all) (a range without a stride, `0..100000`, takes those that are in it)".into()));
        for text in ["some", "5..", "9..3", "1..5/0", "1-5"] {
            assert!(resolve(text).is_err_and(|e| e.contains(text)), "{text}");
        }
        // Compared with what there is before it is expanded.
        for text in [
            "0..10000000000/1",
            "0..18446744073709551615/1",
            "0..18446744073709551614/2",
        ] {
            assert!(
                resolve(text).is_err_and(|e| e.contains("no checkpoint of step")),
                "{text}"
            );
        }
        assert_eq!(resolve("0..10000000000").map(|s| s.len()), Ok(14));
        assert!(resolve("200000..300000").is_err());
    }

    #[test]
    fn tokens_seen() {
        let olmo = [(1000, 4), (2000, 8), (10_000, 44), (738_020, 3094)];
        let there = names(olmo.map(|(step, tokens)| format!("step{step}-tokens{tokens}B")));
        let resolve_there = |text: &str| among(&there, &serde_json::json!(text).to_string());
        assert_eq!(resolve_there("44B"), Ok(vec![10_000]));
        assert_eq!(resolve_there("5B..100B"), Ok(vec![2000, 10_000]));
        assert_eq!(
            resolve_there("45B").err().as_deref(),
            Some(
                "there is no checkpoint of 45B tokens; the nearest are of 4B, 8B, 44B, 3094B (a range, `4B..100B`, takes those that are in it)"
            )
        );
        for text in ["4..100B", "1.5B", "B", "9B..3B", "50B..60B"] {
            assert!(resolve_there(text).is_err(), "{text}");
        }
        let error = resolve("4B").err().unwrap_or_default();
        assert!(
            error.contains("such as `step0`, do not say them"),
            "{error}"
        );
    }
}
