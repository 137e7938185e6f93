//! The run: what is missing, checkpoint by checkpoint, then the tables.

use job_inputs::step_in_words;
use job_kit::{OutputDir, Progress, WithHint};
use neox_core::WeightFiles;

use crate::JOB;
use crate::config::SurprisalConfig;
use crate::estimate;
use crate::inputs::Inputs;
use crate::results;
use crate::setup::{Setup, Times, begin, intervention_names, scores_of};
use crate::store::{CHECKPOINTS, Store};

pub(crate) fn run(config: &SurprisalConfig, resolved: &serde_json::Value) -> anyhow::Result<()> {
    let list = config.interventions();
    intervention_names(&list)?;
    let out = OutputDir::create(
        &config.output.dir,
        JOB,
        resolved,
        results::outputs(config, &list),
    )?;
    let mut record = begin(config, resolved);
    let setup = Setup::read(config, &mut record)?;
    let (names, steps) = (&setup.names, &setup.steps);
    let (identity, keys) = (&setup.identity, setup.keys());
    let store = match &config.merge {
        Some(below) => Store::merged(below, identity, keys, steps, &mut record)?,
        None => Store::open(&out, identity, keys)?,
    };
    let missing = setup.missing(&store, config.merge.is_some())?;
    if let (Some(below), Some((&step, lacks))) = (&config.merge, missing.first_key_value()) {
        let some: Vec<&str> = lacks
            .keys()
            .flatten()
            .take(3)
            .map(|&i| names[i].as_str())
            .collect();
        return Err(anyhow::anyhow!(
            "the runs in the folders of `{}` lack scores of {}, of {} and others",
            below.display(),
            step_in_words(step),
            some.join(", ")
        ))
        .hint("they have the same words, neurons and interventions as the merge: run them again with those");
    }
    let total = scores_of(missing.values());
    let all = steps.len() * names.len() * setup.words.pairs.len();
    record.count("scores", all as u64);
    record.count("scores_computed_by_an_earlier_run", (all - total) as u64);
    if total < all {
        tracing::info!(
            "{} of {all} scores are there from an earlier run",
            all - total
        );
    }
    estimate::begin(&setup, total, &mut record)?;

    let progress = Progress::new("scoring", total as u64, "scores");
    let mut times = Times::default();
    let to_do: Vec<Option<u64>> = missing.keys().copied().collect();
    setup.checkpoints.each(&to_do, |loaded| {
        let of_step = (&store, &missing[&loaded.step]);
        let told = (&mut times, &mut record);
        setup.score(&config.means, &loaded, of_step, &progress, told)?;
        for warning in loaded.model.warnings() {
            record.warn(format!("`{}`: {warning}", loaded.folder.display()));
        }
        record.device = Some(format!("{:?}", loaded.model.device()).to_lowercase());
        for path in WeightFiles::find(&loaded.folder)?.paths() {
            record.input(path)?;
        }
        Ok(())
    })?;
    record.dtype = Some(config.model.dtype.clone());
    record.timing("scoring", progress.finish());
    record.timing("mean_activations", times.means + times.activities);
    record.count("corrected_surprisals_undefined", times.undefined);

    record.note(CHECKPOINTS, store.addresses(steps));

    let inputs = Inputs {
        setup: &setup,
        out: &out,
        store: &store,
    };
    let text = results::write(&inputs, &mut record)?;
    Ok(record.finish(&out, &text)?)
}
