//! The run: every step analysed, tables written, a summary printed.

use std::sync::Arc;

use std::time::Instant;

use job_kit::{OutputDir, RunRecord};
use neuron_select::NeuronId;
use serde_json::Value;

use crate::{
    analysis, baseline::Baseline, changes, config::AnalyzeConfig, input, page, stability, summary,
    tables,
};

const JOB: &str = "analyze-unigram";

/// Runs the analysis that the configuration asks for.
pub(crate) fn run(config: &AnalyzeConfig, resolved: &Value) -> anyhow::Result<()> {
    let mut record = RunRecord::new(JOB, env!("CARGO_PKG_VERSION"), resolved);
    record.seed = Some(config.seed);
    let inputs = input::open(config, &mut record)?;
    let mut outputs: Vec<String> = tables::OUTPUTS.map(String::from).into();
    if config.output.report {
        outputs.extend(page::outputs(inputs.iter().map(|input| input.step)));
    }
    let out = OutputDir::create(&config.output.dir, JOB, resolved, outputs)?;
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
        let step = analysis::analyze(config, input, followed.as_deref(), &mut record)?;
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
    if let Some(ablation) = inputs
        .iter()
        .find_map(|input| input.run.as_ref()?.get("config"))
    {
        record.note("ablation", ablation.clone());
    }
    let overlaps = stability::overlaps(&steps, config.persistence)?;
    let of_steps: Vec<_> = steps
        .iter()
        .map(|step| (step.step, &step.followed))
        .collect();
    let changes = changes::between(&of_steps, &config.bootstrap(), &mut record)?;
    tables::write(&out, &steps, &overlaps, &changes)?;
    if config.output.report {
        page::write(&out, config, &steps, (&overlaps, &changes), &mut record)?;
    }
    record.write(&out)?;
    let summary = summary::text(config, &steps, &overlaps)?;
    Ok(job_kit::print(format!(
        "{summary}Files: {}\n",
        out.path().display()
    ))?)
}
