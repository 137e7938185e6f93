//! `--audit` and `--self-check`: what to run before a sweep is relied on.

use anyhow::bail;
use job_inputs::{Loaded, revisions, source};
use job_kit::{OutputDir, Progress, write_file};
use neox_core::audit as audit_checkpoints;
use neuron_ablate::{NeuronId, SelfCheck, self_check as check, self_check_neurons};

use crate::{
    JOB,
    config::{AblateConfig, Components},
    start::{self, AUDIT, read_audit},
};

/// Differences above this are reported as a failure; float32 rounding at a large vocabulary is a tenth of it.
const TOLERANCE_NATS: f64 = 1e-3;

/// Audits the checkpoints of `model.steps` (all that there are, by default); fails if one is bad.
pub(crate) fn audit(config: &AblateConfig, resolved: &serde_json::Value) -> anyhow::Result<()> {
    let source = source(&config.model)?;
    let steps = config.model.steps.clone().unwrap_or_default();
    let revisions = revisions(&steps, &source)?;
    // No result of a run: it stands beside those of a sweep, and is replaced by the next audit alone.
    let out = OutputDir::create(&config.output.dir, JOB, resolved, [""; 0])?;
    read_audit(&out.join(AUDIT))?;
    let progress = Progress::new("audit", revisions.len() as u64, "checkpoints");
    let known = source.revisions()?;
    let rows = audit_checkpoints(revisions, |revision| {
        progress.inc(1);
        if !known.iter().any(|name| name == revision) {
            return Ok(None);
        }
        let folder = source.checkpoint(Some(revision), &mut |_| ());
        folder.map(Some)
    });
    progress.finish();

    let path = out.join(AUDIT);
    write_file(&path, serde_json::to_vec_pretty(&rows)?)?;
    let mut text = format!(
        "{:<12} {:>12}  {:<12}  finding\n",
        "revision", "bytes", "content"
    );
    for row in &rows {
        let bytes: u64 = row.files.iter().map(|file| file.bytes).sum();
        let content = row
            .content
            .as_deref()
            .map_or("-", |hash| &hash[..hash.len().min(12)]);
        let findings: Vec<String> = row.findings.iter().map(ToString::to_string).collect();
        text += &format!(
            "{:<12} {bytes:>12}  {content:<12}  {}\n",
            row.revision,
            if findings.is_empty() {
                "ok".into()
            } else {
                findings.join("; ")
            }
        );
    }
    job_kit::print(format!("{text}\nFile: {}\n", path.display()))?;
    match rows.iter().filter(|row| row.is_bad()).count() {
        0 => Ok(()),
        bad => bail!("{bad} of {} checkpoints of {source} are bad", rows.len()),
    }
}

/// Compares the closed form with forwards of the ablated model on a few neurons and one sequence; fails if they differ.
pub(crate) fn self_check(
    config: &AblateConfig,
    resolved: &serde_json::Value,
) -> anyhow::Result<()> {
    let mut record = start::begin(config, resolved);
    let loaded = Loaded::read(
        &config.model,
        config.model.revision.as_deref(),
        &config.corpus,
        &mut record,
    )?;
    let (frequencies, bands) = start::frequencies(config, &loaded, &mut record)?;
    let Components { last, earlier, .. } = config.ablation.components(loaded.model.config())?;
    let few = |number: usize| number.div_ceil(8).max(1);
    let mut plan = start::plan(config, &loaded.sample, last)?.with_dose(neuron_ablate::Dose::Mean);
    let step = few(plan.neurons.len());
    plan.neurons = plan.neurons.into_iter().step_by(step).collect();
    plan.sequences.truncate(1);
    let earlier: Vec<NeuronId> = earlier
        .iter()
        .step_by(few(earlier.len()))
        .copied()
        .collect();
    let (model, sample) = (&loaded.model, &loaded.sample);
    if plan.neurons.is_empty() && earlier.is_empty() {
        bail!("`--self-check` is of neurons, and `ablation.neurons` names none");
    }
    if !earlier.is_empty() {
        let result =
            self_check_neurons(model, sample, &frequencies, &bands, plan.clone(), &earlier)?;
        report(
            "running the model on from a neuron's layer",
            earlier.len(),
            &result,
        )?;
    }
    if !plan.neurons.is_empty() {
        let neurons = plan.neurons.len();
        let result = check(model, sample, &frequencies, &bands, plan)?;
        report("the closed form", neurons, &result)?;
    }
    Ok(())
}

/// Says how far values are from those of whole forwards of the ablated model, for each variant; fails if it is too far.
fn report(how: &str, neurons: usize, result: &SelfCheck) -> anyhow::Result<()> {
    let mut text = format!(
        "self-check: {neurons} neurons, {} pairs; largest difference between {how} and a forward of the ablated model (nats):\n",
        result.pairs
    );
    for of_variant in result.differences.chunk_by(|a, b| a.variant == b.variant) {
        let measures: Vec<String> = of_variant
            .iter()
            .map(|d| format!("{} {:.1e}", d.measure, d.worst))
            .collect();
        text += &format!("  {:<12} {}\n", of_variant[0].variant, measures.join(", "));
    }
    job_kit::print(text)?;
    if result.worst() > TOLERANCE_NATS {
        bail!(
            "they differ by {:.1e} nats, more than {TOLERANCE_NATS:.0e}: do not rely on this checkpoint in this dtype (try `model.dtype=f32`)",
            result.worst()
        );
    }
    Ok(job_kit::print(format!(
        "  agrees within {TOLERANCE_NATS:.0e}\n"
    ))?)
}
