//! What a run is going to take: from its shapes and, where it is asked for, a measured piece of it.

use std::time::Instant;

use job_kit::{
    Estimate, Progress, RunRecord,
    estimate::{ForCheckpoints, bytes_in, memory_now},
};
use neox_core::{Part, parse_dtype, stored_tensor};
use neuron_ablate::{ScalingMeasure, TargetGroup};

use crate::{
    config::ScaleConfig,
    prepared::{self, Inputs, Prepared},
};

/// Sequences that are measured for an estimate.
const PROBE_SEQUENCES: usize = 1;

/// Bytes of a row of effects or contrasts, of one of neurons, and of the figure and the report.
const EFFECT: usize = 60;
const NEURON: usize = 25;
const SHOWN: usize = 90_000;

const LESS: &str = "a smaller `evaluation.memory_mib` takes less";

/// What the outputs and the process take.
fn of_shapes(config: &ScaleConfig, prepared: &Prepared<'_>) -> anyhow::Result<Estimate> {
    let loaded = prepared.loaded;
    let changes = prepared.arms.changes.iter();
    let factors = changes.map(|change| prepared.plan.factors_of(change).len());
    let cells: usize = factors.sum();
    let effects = cells * TargetGroup::ALL.len() * ScalingMeasure::ALL.len() * EFFECT;
    let neurons = loaded.model.config().intermediate_size as usize * NEURON;
    let checkpoint = match &config.checkpoint {
        None => 0,
        Some(wanted) => {
            let stored = stored_tensor(&loaded.checkpoint, Part::Unembedding)?.kind();
            let kind = wanted.dtype.as_deref().map(parse_dtype).transpose()?;
            let kind = kind.unwrap_or(stored);
            let bytes = bytes_in(&loaded.checkpoint);
            bytes / stored.elt_size_in_bytes() as u64 * kind.elt_size_in_bytes() as u64
        }
    };
    Ok(Estimate {
        disk: (effects + neurons + SHOWN) as u64 + checkpoint,
        memory: memory_now().map(|now| now.most + prepared.plan.memory_budget as u64),
        time: None,
    })
}

fn run(of_one: Estimate) -> ForCheckpoints {
    ForCheckpoints {
        of_one,
        checkpoints: 1,
    }
}

/// Tells before measuring what a run takes; refuses if the disk has not room for it.
pub(crate) fn begin(
    config: &ScaleConfig,
    prepared: &Prepared<'_>,
    record: &mut RunRecord,
) -> anyhow::Result<()> {
    Ok(run(of_shapes(config, prepared)?).begin(&config.output.dir, LESS, record)?)
}

/// Measures a piece of the run and says what the whole takes; leaves nothing behind.
pub(crate) fn estimate(config: &ScaleConfig, resolved: &serde_json::Value) -> anyhow::Result<()> {
    let mut record = prepared::begin(config, resolved);
    let begin = Instant::now();
    let inputs = Inputs::read(config, &mut record)?;
    let mut prepared = Prepared::new(config, &inputs, &mut record)?;
    let of_shapes = of_shapes(config, &prepared)?;
    let before = begin.elapsed();
    let all = prepared.cost()?.ticks();
    prepared.plan.sequences.truncate(PROBE_SEQUENCES);
    let few = prepared.cost()?.ticks();
    let measuring = Progress::new("measuring", few as u64, "rows");
    let begin = Instant::now();
    prepared.measure(&|rows| measuring.inc(rows as u64))?;
    let piece = begin.elapsed();
    measuring.finish();
    let run = run(Estimate {
        time: Some(before + piece.mul_f64(all as f64 / few.max(1) as f64)),
        ..of_shapes
    });
    let changes = prepared.arms.arms.len();
    job_kit::print(run.in_words(&format!("{changes} changes and controls")))?;
    Ok(run.begin(&config.output.dir, LESS, &mut record)?)
}
