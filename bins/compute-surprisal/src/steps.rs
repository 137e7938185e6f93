//! Which checkpoints: `all`, `log`, single steps and ranges.

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// A step, a word or a range, or a list of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a step, `all`, `log`, a range like `1000..143000` or `1000..143000/10000` (end included), or a list of these"
)]
pub(crate) enum Steps {
    Step(u64),
    Text(String),
    List(Vec<Steps>),
}

impl Default for Steps {
    fn default() -> Self {
        Self::Text("all".into())
    }
}

impl Steps {
    /// Whether it is `all`, as where nothing is set.
    pub(crate) fn is_all(&self) -> bool {
        matches!(self, Self::Text(text) if text.trim() == "all")
    }

    /// The steps in ascending order, out of those that there are. A step that is named must exist;
    /// `all`, `log` and ranges without a stride take what there is of theirs. No range is expanded beyond what there is.
    pub(crate) fn resolve(&self, available: &[u64]) -> anyhow::Result<Vec<u64>> {
        let mut steps = Vec::new();
        self.collect(available, &mut steps)?;
        steps.sort_unstable();
        steps.dedup();
        if steps.is_empty() {
            bail!(
                "`steps` names no checkpoint; there are {}",
                listed(available)
            );
        }
        if let Some(missing) = steps.iter().find(|step| !available.contains(step)) {
            bail!(
                "there is no checkpoint of step {missing}; there are {} (a range without a stride, `0..100000`, takes those that are in it)",
                listed(available)
            );
        }
        Ok(steps)
    }

    fn collect(&self, available: &[u64], steps: &mut Vec<u64>) -> anyhow::Result<()> {
        match self {
            Self::Step(step) => steps.push(*step),
            Self::List(list) => {
                for item in list {
                    item.collect(available, steps)?;
                }
            }
            Self::Text(text) => match text.trim() {
                "all" => steps.extend(available),
                "log" => steps.extend(available.iter().filter(|step| is_log_spaced(**step))),
                text => match text.parse() {
                    Ok(step) => steps.push(step),
                    Err(_) => steps.extend(range(text, available).with_context(|| {
                        format!("`steps` holds `{text}`, expected a step, `all`, `log`, or a range like `1000..143000` or `1000..143000/10000` (end included)")
                    })?),
                },
            },
        }
        Ok(())
    }
}

/// 0, the powers of 2, and 1,000 times those: evenly spaced on a logarithmic axis, as far as published checkpoints go.
fn is_log_spaced(step: u64) -> bool {
    step == 0
        || step.is_power_of_two()
        || (step.is_multiple_of(1000) && (step / 1000).is_power_of_two())
}

/// `a..b` or `a..b/stride`, the end included.
fn range(text: &str, available: &[u64]) -> anyhow::Result<Vec<u64>> {
    let (start, rest) = text.split_once("..").context("no `..` in it")?;
    let start: u64 = start.trim().parse().context("no number before `..`")?;
    let (end, stride) = match rest.split_once('/') {
        Some((end, stride)) => (
            end,
            Some(
                stride
                    .trim()
                    .parse::<u64>()
                    .context("no number after `/`")?,
            ),
        ),
        None => (rest, None),
    };
    let end: u64 = end.trim().parse().context("no number after `..`")?;
    if start > end || stride == Some(0) {
        bail!("the range is empty");
    }
    Ok(match stride {
        // The first step that there is not ends it, and is named.
        Some(stride) => {
            let mut steps = Vec::new();
            for step in (start..=end).step_by(usize::try_from(stride)?) {
                steps.push(step);
                if !available.contains(&step) {
                    break;
                }
            }
            steps
        }
        None => available
            .iter()
            .copied()
            .filter(|step| (start..=end).contains(step))
            .collect(),
    })
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

    fn resolve(yaml: &str) -> Result<Vec<u64>, String> {
        let steps: Steps = serde_yaml::from_str(yaml).map_err(|e| e.to_string())?;
        steps.resolve(&PYTHIA_START).map_err(|e| format!("{e:#}"))
    }

    #[test]
    fn values_words_and_ranges() {
        assert_eq!(resolve("4"), Ok(vec![4]));
        assert_eq!(
            resolve("[512, '1000..21000/10000', 0, 512]"),
            Ok(vec![0, 512, 1000, 11000, 21000])
        );
        assert_eq!(resolve("3..2000"), Ok(vec![4, 8, 16, 512, 1000, 2000]));
        assert_eq!(resolve("all").map(|s| s.len()), Ok(14));
        assert_eq!(
            resolve("log"),
            Ok(vec![0, 1, 2, 4, 8, 16, 512, 1000, 2000, 128000])
        );
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        assert_eq!(resolve("7"), Err("there is no checkpoint of step 7; there are 0, 1, 2, 4, 8, 16, 512, 1000, 2000, 3000, 11000, 21000, ... (14 in all) (a range without a stride, `0..100000`, takes those that are in it)".into()));
        for text in ["some", "5..", "9..3", "1..5/0", "1-5"] {
            assert!(resolve(text).is_err_and(|e| e.contains(text)), "{text}");
        }
        assert!(resolve("[]").is_err());
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
}
