//! Logits of a batch, against Hugging Face transformers.

use super::Setting;
use super::rounds::{Contest, Side};
use super::words::{agreement, read};

/// Whose shape, as it is called and as `inputs.py` calls it; and texts by tokens: a few long ones, and many short ones as contexts of words are; how often in a round.
const BATCHES: [(&str, &str, u32, u32, u32); 5] = [
    ("Pythia-70M", "pythia-70m", 4, 256, 10),
    ("Pythia-70M", "pythia-70m", 32, 32, 10),
    ("Pythia-410M", "pythia-410m", 4, 256, 3),
    ("SmolLM2-135M", "smollm2-135m", 4, 256, 5),
    ("SmolLM2-135M", "smollm2-135m", 32, 32, 5),
];
/// What float32 sums in another order may differ by in a log-probability, nats.
const TOLERANCE: f64 = 1e-4;

pub(super) fn contests(setting: &Setting) -> anyhow::Result<Vec<Contest<'_>>> {
    let mut contests = Vec::new();
    for (named, shape, batch, length, repeat) in BATCHES {
        let values = |side: &str| {
            setting
                .work
                .join(format!("forward-{shape}-{batch}x{length}-{side}.json"))
        };
        let (ours, theirs) = (values("ours"), values("transformers"));
        let args = |out: &std::path::Path| -> anyhow::Result<Vec<std::ffi::OsString>> {
            Ok(vec![
                "--model".into(),
                setting.inputs.random(shape)?.into(),
                "--token-file".into(),
                setting.inputs.tokens()?.into(),
                "--batch".into(),
                batch.to_string().into(),
                "--length".into(),
                length.to_string().into(),
                "--repeat".into(),
                repeat.to_string().into(),
                "--out".into(),
                out.into(),
            ])
        };
        let threads = setting.threads.to_string();
        contests.push(Contest {
            title: format!(
                "Forward with all logits, {batch} texts of {length} tokens, {named}'s shape"
            ),
            unit: "token",
            sides: vec![
                Side::of_its_work(
                    "neox-core",
                    true,
                    setting
                        .program("time_forward")?
                        .args(["--threads", &threads])
                        .args(args(&ours)?),
                ),
                Side::of_its_work(
                    "transformers",
                    false,
                    setting.script("forward.py").args(args(&theirs)?),
                ),
            ],
            agree: Box::new(move || agreement(&read(&ours)?, &read(&theirs)?, TOLERANCE)),
        });
    }
    Ok(contests)
}
