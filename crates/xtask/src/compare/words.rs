//! Words under interventions: one forward per batch of texts, against one per word, context and condition.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};

use super::Setting;
use super::rounds::{Agreement, Contest, Side};

/// Neurons that are intervened on, in the last layer.
const NEURONS: &str = "3,17,42,100,200";
const CONDITIONS: usize = 5;
/// What float32 sums in another order may differ by, nats.
const TOLERANCE: f64 = 1e-4;
/// Of this many words PyTorch takes one, in a quick look.
const EVERY: usize = 40;

pub(super) fn contests(setting: &Setting) -> anyhow::Result<Vec<Contest<'_>>> {
    let inputs = &setting.inputs;
    let tiny = inputs.bundled("tiny-neox");
    let random = inputs.random_70m()?;
    Ok(vec![
        contest(
            setting,
            "tiny-neox, step 4000",
            "tiny",
            &tiny.join("step4000"),
            &tiny.join("tokenizer.json"),
        )?,
        contest(
            setting,
            "Pythia-70M's shape",
            "70m",
            &random,
            &random.join("tokenizer.json"),
        )?,
    ])
}

fn contest<'s>(
    setting: &'s Setting,
    name: &str,
    short: &str,
    model: &Path,
    tokenizer: &Path,
) -> anyhow::Result<Contest<'s>> {
    let words = setting.inputs.words()?;
    let values = |side: &str| setting.work.join(format!("words-{short}-{side}.json"));
    let (ours, theirs) = (values("ours"), values("pytorch"));
    let every = if setting.quick { EVERY } else { 1 };
    let shared = |out: &Path| {
        [
            ("--model", model),
            ("--tokenizer", tokenizer),
            ("--words", &words),
            ("--out", out),
        ]
        .into_iter()
        .flat_map(|(name, path)| [name.into(), path.as_os_str().to_owned()])
        .collect::<Vec<_>>()
    };
    let threads = setting.threads.to_string();
    Ok(Contest {
        title: format!("2,000 words in context, base and four interventions, {name}"),
        unit: "score",
        sides: vec![
            Side::of_its_work(
                "score_words",
                true,
                setting
                    .program("score_words")?
                    .args(["--threads", &threads, "--neurons", NEURONS])
                    .args(shared(&ours)),
            ),
            Side::of_its_work(
                "PyTorch, a forward per word and condition",
                false,
                setting
                    .script("words.py")
                    .args(["--neurons", NEURONS, "--every", &every.to_string()])
                    .args(shared(&theirs)),
            ),
        ],
        agree: Box::new(move || {
            let (ours, theirs) = (read(&ours)?, read(&theirs)?);
            let per_condition = ours.len() / CONDITIONS;
            let chosen: Vec<f64> = ours
                .chunks(per_condition.max(1))
                .flat_map(|values| values.iter().copied().step_by(every))
                .collect();
            agreement(&chosen, &theirs, TOLERANCE)
        }),
    })
}

/// Reads a JSON array of numbers.
pub(super) fn read(path: &Path) -> anyhow::Result<Vec<f64>> {
    let text =
        fs::read_to_string(path).with_context(|| format!("failed to read `{}`", path.display()))?;
    serde_json::from_str(&text)
        .with_context(|| format!("`{}` is no list of numbers", path.display()))
}

/// Compares two lists of values in nats.
pub(super) fn agreement(ours: &[f64], theirs: &[f64], tolerance: f64) -> anyhow::Result<Agreement> {
    if ours.len() != theirs.len() || ours.is_empty() {
        bail!("{} values of ours, {} of PyTorch", ours.len(), theirs.len());
    }
    let differences = || ours.iter().zip(theirs).map(|(a, b)| (a - b).abs());
    // A NaN is a difference too.
    let equal = differences().all(|d| d <= tolerance);
    let largest = differences().fold(0.0, f64::max);
    Ok(Agreement {
        equal,
        text: format!(
            "{} values, largest difference {largest:.1e} nats, allowed {tolerance:.0e}.",
            ours.len()
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_and_missing_values_do_not_agree() {
        let equal = |a: &[f64], b: &[f64]| agreement(a, b, 0.1).map(|a| a.equal).ok();
        assert_eq!(equal(&[1.0, 2.0], &[1.05, 2.0]), Some(true));
        assert_eq!(equal(&[1.0], &[1.2]), Some(false));
        assert_eq!(equal(&[f64::NAN], &[1.0]), Some(false));
        assert_eq!(equal(&[1.0], &[1.0, 2.0]), None);
        assert_eq!(equal(&[], &[]), None);
    }
}
