//! What our ablation costs as neurons and rows grow; nobody else takes part.

use super::Setting;
use super::ablation::run_of_ours;
use super::agreement::same_effects;
use super::rounds::{Agreement, Contest, Record, Side};

/// Neurons, and sequences of the sample.
const SIZES: [(usize, usize); 6] = [
    (512, 4),
    (1024, 4),
    (2048, 4),
    (2048, 1),
    (2048, 2),
    (2048, 8),
];
const ENGINES: [&str; 2] = ["exact", "auto"];
/// What matrix products of other sizes may differ by, nats.
const TOLERANCE: &str = "1e-7";

pub(super) fn contests(setting: &Setting) -> anyhow::Result<Vec<Contest<'_>>> {
    ENGINES
        .map(|engine| contest(setting, engine))
        .into_iter()
        .collect()
}

fn contest<'s>(setting: &'s Setting, engine: &str) -> anyhow::Result<Contest<'s>> {
    let model = setting.inputs.trained_70m()?;
    let out = |(neurons, sequences): (usize, usize)| {
        let name = format!("scaling-{engine}-{neurons}-{sequences}");
        setting.work.join(name)
    };
    let mut sides = Vec::new();
    for size @ (neurons, sequences) in SIZES {
        let of_sequences: Vec<String> = (0..sequences).map(|i| i.to_string()).collect();
        let overrides = [
            &format!("ablation.engine={engine}"),
            &format!("ablation.neurons=0..{neurons}"),
            "ablation.resamples=0",
        ];
        let out = out(size);
        sides.push(Side {
            label: format!("{neurons} neurons, {sequences} sequences"),
            ours: sides.is_empty(),
            program: run_of_ours(setting, &overrides, &model, &of_sequences.join(", "), &out)?,
            record: Some(Record::of_pairs(&out)),
            whole: true,
            once: false,
        });
    }
    // A neuron's effects do not depend on what other neurons are asked for.
    let [few, many] = [SIZES[0], SIZES[2]].map(|size| out(size).join("neurons.parquet"));
    let agree = move || {
        let found = same_effects(setting, &many, &few, TOLERANCE)?;
        Ok(Agreement {
            text: format!("neurons of the first and the third run: {}", found.text),
            ..found
        })
    };
    Ok(Contest {
        title: format!(
            "Our ablation alone, all readings, `engine={engine}`, d = 512, V = 50,304, lightly trained"
        ),
        unit: "pair",
        sides,
        agree: Box::new(agree),
    })
}
