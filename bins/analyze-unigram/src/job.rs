//! The run: every step analysed, tables written, a summary printed.

use std::{path::Path, sync::Arc, time::Instant};

use job_kit::{
    Estimate, OutputDir, RunRecord,
    estimate::{self, ForCheckpoints},
    report::integer,
};
use neuron_select::{NeuronId, Ranked};
use serde_json::Value;

use crate::{
    JOB, VERSION, analysis,
    baseline::Baseline,
    changes,
    config::AnalyzeConfig,
    input::{self, StepInput},
    page, stability, summary, tables,
};

/// The record of a run, with what is known at its start.
fn begin(config: &AnalyzeConfig, resolved: &Value) -> RunRecord {
    let mut record = RunRecord::new(JOB, VERSION, resolved);
    record.seed = Some(config.seed);
    record
}

/// The folder that tables and figures of these steps are written to.
fn output(
    folder: &Path,
    config: &AnalyzeConfig,
    resolved: &Value,
    inputs: &[StepInput],
) -> anyhow::Result<OutputDir> {
    let mut outputs: Vec<String> = tables::OUTPUTS.map(String::from).into();
    if config.output.report {
        outputs.extend(page::outputs(inputs.iter().map(|input| input.step)));
    }
    Ok(OutputDir::create(folder, JOB, resolved, outputs)?)
}

/// Runs the analysis that the configuration asks for.
pub(crate) fn run(config: &AnalyzeConfig, resolved: &Value) -> anyhow::Result<()> {
    let mut record = begin(config, resolved);
    let inputs = input::open(config, &mut record)?;
    let out = output(&config.output.dir, config, resolved, &inputs)?;
    let (summary, _) = analyze(config, &inputs, &out, &mut record)?;
    Ok(record.finish(&out, &summary)?)
}

/// Analyses the last step into a folder that goes again, and says what all take.
pub(crate) fn estimate(config: &AnalyzeConfig, resolved: &Value) -> anyhow::Result<()> {
    let mut record = begin(config, resolved);
    let mut inputs = input::open(config, &mut record)?;
    let checkpoints = inputs.len();
    let last = inputs.split_off(checkpoints.saturating_sub(1));
    let folder = tempfile::tempdir()?;
    let out = output(folder.path(), config, resolved, &last)?;
    let begin = Instant::now();
    let (_, neurons) = analyze(config, &last, &out, &mut record)?;
    // What is found of a step stays until the tables are written.
    let kept = ((checkpoints - last.len()) * neurons * KEPT) as u64;
    let run = ForCheckpoints {
        of_one: Estimate {
            disk: estimate::bytes_in(folder.path()),
            memory: estimate::memory_now().map(|now| now.most + kept),
            time: Some(begin.elapsed()),
        },
        checkpoints,
    };
    job_kit::print(run.in_words(&format!("{} neurons", integer(neurons as i64))))?;
    let less = "fewer resamples (`bootstrap.resamples`) or steps (`input.steps`) take less";
    Ok(run.begin(&config.output.dir, less, &mut record)?)
}

/// Bytes that are kept of a neuron and step: what it is ranked by, the interval of its rank and its p values.
const KEPT: usize = size_of::<Ranked>() + 96;

/// Analyses all steps, and writes tables and figures; gives what a person wants to know first, and the number of neurons of the last step.
fn analyze(
    config: &AnalyzeConfig,
    inputs: &[StepInput],
    out: &OutputDir,
    record: &mut RunRecord,
) -> anyhow::Result<(String, usize)> {
    if let Some(frequency) = &config.frequency {
        record.input(&frequency.counts)?;
    }
    let mut steps = Vec::with_capacity(inputs.len());
    // The last checkpoint first: the neurons that it selects are followed through all others.
    let mut followed: Option<Vec<NeuronId>> = None;
    for input in inputs.iter().rev() {
        for path in input.paths() {
            record.input(path)?;
        }
        let clock = Instant::now();
        let step = analysis::analyze(config, input, followed.as_deref(), record)?;
        record.timing(&format!("step_{}", step.step), clock.elapsed());
        record.count(&format!("step_{}_rows", step.step), step.rows as u64);
        record.count(
            &format!("step_{}_selected", step.step),
            step.selected.len() as u64,
        );
        followed.get_or_insert_with(|| {
            let selected = step.selected.iter();
            selected.map(|n| n.ranked.effects.neuron).collect()
        });
        steps.push(step);
    }
    steps.reverse();
    let at_0 = steps.iter().find(|step| step.step == 0);
    let baseline = at_0.map(|step| Arc::new(Baseline::of(step.direct, &step.ranking)));
    for step in &mut steps {
        step.baseline.clone_from(&baseline);
    }
    let without = inputs.iter().filter(|input| !input.has_positions());
    record.count("steps_without_positions", without.count() as u64);
    // Checkpoints of one sweep share these settings, but for the model.
    let mut runs = inputs.iter().filter_map(|input| input.run.as_ref());
    if let Some(run) = runs.find(|run| !run["config"].is_null()) {
        record.note("ablation", run["config"].clone());
        // The text that the neurons are selected on: other jobs tell by it what they measure.
        record.note(
            "ablation_corpus_sha256",
            run["notes"]["corpus_sha256"].clone(),
        );
    }
    let overlaps = stability::overlaps(&steps, config.persistence)?;
    let of_steps: Vec<_> = steps
        .iter()
        .map(|step| (step.step, &step.followed))
        .collect();
    let changes = changes::between(&of_steps, &config.bootstrap(), record)?;
    tables::write(out, &steps, &overlaps, &changes)?;
    if config.output.report {
        page::write(out, config, &steps, (&overlaps, &changes), record)?;
    }
    let neurons = steps.last().map_or(0, |step| step.ranking.all().len());
    Ok((summary::text(config, &steps, &overlaps)?, neurons))
}
