//! One checkpoint, or one after the other.

mod ablation;
mod merge;
mod results;

use std::{collections::BTreeSet, path::Path, time::Instant};

use anyhow::Context;
use job_inputs::{Loaded, MeansSample, MeasuredOn, ModelConfig};
use job_kit::{
    Format, OutputDir, RunRecord,
    estimate::{self, ForCheckpoints},
    plot::Figure,
};
use neox_core::Model;
use neuron_ablate::{
    AblateError, HeadId, LayerMeans, MeanOf, NeuronId, Sweep, TokenBand, TokenFrequencies,
    UnembeddingMoments, WeightStatistics, output_directions,
};
use neuron_select::RowSums;
use surprisal_metrics::{Bootstrap, MIN_GROUPS};

use crate::{
    JOB,
    config::{AblateConfig, PositionFormat},
    estimate as takes,
    sets::Selected,
    start::{begin, frequencies, pending, plan, refuse_bad},
    tables::RunColumns,
};

use ablation::{Rows, ablate_heads, ablate_neurons};
use results::{
    BALANCE, CONTROLS_FIGURE, HEADS, NEURONS, Results, SET_CONTRASTS, SETS, SETS_FIGURE,
};

/// Runs all the checkpoints that the configuration asks for.
pub(crate) fn run(config: &AblateConfig, resolved: &serde_json::Value) -> anyhow::Result<()> {
    let Some(pending) = pending(config, resolved)? else {
        if let Some(revision) = &config.model.revision {
            refuse_bad(config, revision)?;
        }
        let revision = config.model.revision.as_deref();
        return ablate(config, resolved, (revision, 1), &config.output.dir);
    };
    for (i, revision) in pending.iter().enumerate() {
        refuse_bad(config, revision)?;
        let dir = config.output.dir.join(revision);
        let left = pending.len() - i;
        let begin = Instant::now();
        ablate(config, resolved, (Some(revision), left), &dir)
            .with_context(|| format!("failed at {revision}"))?;
        if left > 1 {
            tracing::info!(
                "{revision} took {}: {} more take about {}",
                estimate::in_words(begin.elapsed()),
                left - 1,
                estimate::in_words(begin.elapsed() * (left as u32 - 1))
            );
        }
    }
    Ok(())
}

/// The table of positions and its format.
fn positions_file(config: &AblateConfig) -> (String, Format) {
    let format = match config.output.format {
        PositionFormat::Parquet => Format::Parquet,
        PositionFormat::Feather => Format::Feather,
    };
    (format!("positions.{}", format.extension()), format)
}

/// All files that a run may write.
fn outputs(config: &AblateConfig) -> Vec<String> {
    let mut names = Vec::new();
    if config.ablation.has_neurons() {
        names.extend([NEURONS, RowSums::FILE].map(String::from));
        if config.output.positions {
            names.push(positions_file(config).0);
        }
    }
    if config.ablation.has_heads() {
        names.push(HEADS.to_owned());
    }
    if config.sets.is_some() {
        names.extend([SETS, SET_CONTRASTS, BALANCE].map(String::from));
        names.extend(
            [SETS_FIGURE, CONTROLS_FIGURE]
                .into_iter()
                .flat_map(Figure::outputs),
        );
    }
    names
}

fn ablate(
    config: &AblateConfig,
    resolved: &serde_json::Value,
    (revision, left): (Option<&str>, usize),
    dir: &Path,
) -> anyhow::Result<()> {
    let out = OutputDir::create(dir, JOB, resolved, outputs(config))?;
    let mut record = begin(config, resolved);
    if let Some(shards) = &config.merge {
        return merge::run(config, resolved, (shards, revision), &out, record);
    }
    let loaded = Loaded::read(&config.model, revision, &config.corpus, &mut record)?;
    let (frequencies, bands) = frequencies(config, &loaded, &mut record)?;
    let (model, sample) = (&loaded.model, &loaded.sample);
    let components = config.ablation.components(model.config())?;
    let plan = plan(config, sample, components.last.clone())?;
    let sequences = plan.sequences.clone();
    note_sequences(config, &loaded, &sequences, &mut record);
    let selected = match &config.sets {
        Some(sets) => {
            let measured = MeasuredOn::Sequences(&config.corpus, sample, &sequences);
            Selected::note_overlap(sets, measured, &mut record)?;
            Some((sets, Selected::read(sets, model, &mut record)?))
        }
        None => None,
    };
    let neurons = components.neurons(model.config().num_hidden_layers - 1);
    let weights = match neurons.is_empty() {
        true => Vec::new(),
        false => weights(config, model, &neurons, &frequencies, &bands, &mut record)?,
    };
    let rarer = bands.first().map(|band| frequencies.rarer_than(band));
    let band_names: Vec<String> = bands.iter().map(|band| band.name().to_owned()).collect();
    let sweep = Sweep::new(model, sample, &frequencies, bands, plan)?;
    let sets = selected.as_ref().map_or(0, |(sets, s)| s.count(sets));
    let each = (neurons.len(), components.heads.len(), sets);
    let run = ForCheckpoints {
        of_one: takes::of_shapes(config, &sweep, &sequences, each)?,
        checkpoints: left,
    };
    takes::tell(config, run, &mut record)?;

    let of_sets = selected.iter().flat_map(|(_, selected)| selected.layers());
    let layers = neurons.iter().map(|n| n.layer).chain(of_sets);
    let means = means(
        config,
        &loaded,
        &sweep,
        (layers, &components.heads),
        &mut record,
    )?;
    let sweep = sweep.with_means(means.clone());
    let positions = config.output.positions && !neurons.is_empty();
    let mut rows = Rows::new(config, &sweep, &means, rarer, positions.then_some(&out))?;
    let neurons = ablate_neurons(&sweep, &components, &means, &mut rows, &mut record)?;
    let heads = ablate_heads(config, &sweep, &components.heads, &means, &mut record)?;
    count_rows(&sweep, &mut record)?;
    let sets = match selected {
        None => None,
        Some((sets, selected)) => {
            let on = (model, &sequences[..]);
            Some(selected.run(sets, &sweep, on, &means, config.seed, &mut record)?)
        }
    };
    let run = RunColumns {
        model: model_name(&config.model),
        step: loaded.step,
        semantics: config.semantics.name(),
    };
    let results = Results {
        sweep: &sweep,
        neurons,
        heads,
        sets,
        weights,
        means: &means,
        bands: band_names,
        floor: config.ablation.effect_floor,
        bootstrap: Bootstrap {
            resamples: config.ablation.resamples,
            seed: config.seed,
            ..Bootstrap::default()
        },
    };
    if !results.neurons.is_empty() {
        rows.finish(&out)?;
    }
    let summary = results.write(&run, &out, &mut record)?;
    record.write(&out)?;
    Ok(job_kit::print(format!(
        "{summary}Files: {}\n",
        out.path().display()
    ))?)
}

/// Records the sequences that are ablated, and says where they are of too few documents for intervals.
fn note_sequences(
    config: &AblateConfig,
    loaded: &Loaded,
    sequences: &[usize],
    record: &mut RunRecord,
) {
    record.note("sequences_ablated", sequences.to_vec());
    let clusters = loaded.sample.n_clusters(sequences);
    record.count("clusters", clusters as u64);
    if clusters < MIN_GROUPS && config.ablation.resamples > 0 {
        record.warn(format!("the ablated sequences are of {clusters} documents, so there are no intervals: they need {MIN_GROUPS} at least (`ablation.sequences`)"));
    }
}

/// Mean activations of neurons of layers, and mean outputs of heads.
fn means(
    config: &AblateConfig,
    loaded: &Loaded,
    sweep: &Sweep<'_>,
    (layers, heads): (impl Iterator<Item = usize>, &[HeadId]),
    record: &mut RunRecord,
) -> anyhow::Result<LayerMeans> {
    let heads = heads.iter().map(|head| MeanOf::Heads(head.layer));
    let of: BTreeSet<MeanOf> = layers.map(MeanOf::Neurons).chain(heads).collect();
    let over = config.semantics.to_options().mean_activation;
    let model = (&loaded.model, &*loaded.content);
    MeansSample::new(&config.means, model, &loaded.sample, config.seed).take(
        of,
        over,
        sweep.states(),
        record,
    )
}

/// Records how many rows were kept and dropped.
fn count_rows(sweep: &Sweep<'_>, record: &mut RunRecord) -> anyhow::Result<()> {
    let rows = sweep.row_counts()?;
    for (name, count) in [
        ("rows_kept", rows.kept),
        ("rows_dropped_too_early", rows.too_early),
        ("rows_dropped_last_position", rows.last),
        ("rows_dropped_bos_or_eos", rows.boundary),
        ("rows_dropped_before_bos_or_eos", rows.before_boundary),
    ] {
        record.count(name, count as u64);
    }
    Ok(())
}

/// The model as tables name it.
fn model_name(model: &ModelConfig) -> String {
    match &model.path {
        Some(path) => path.display().to_string(),
        None => model.repo.clone().unwrap_or_default(),
    }
}

/// What the weights of the neurons say, in their order; how the null space was found goes into `record`.
fn weights(
    config: &AblateConfig,
    model: &Model,
    neurons: &[NeuronId],
    frequencies: &TokenFrequencies,
    bands: &[TokenBand],
    record: &mut RunRecord,
) -> anyhow::Result<Vec<WeightStatistics>> {
    let started = Instant::now();
    let moments =
        UnembeddingMoments::of_model(model, frequencies, bands, config.ablation.null_directions)
            .map_err(|err| {
                let key = match err {
                    AblateError::FlatDirection { .. } => "band",
                    _ => "ablation.null_directions",
                };
                anyhow::Error::from(err).context(format!(
                    "failed to compute statistics of the weights (`{key}`)"
                ))
            })?;
    let mut weights = Vec::with_capacity(neurons.len());
    for of_layer in neurons.chunk_by(|a, b| a.layer == b.layer) {
        let ids: Vec<usize> = of_layer.iter().map(|n| n.neuron).collect();
        let directions = output_directions(model, of_layer[0].layer, &ids)?;
        weights.extend(moments.statistics(&directions)?);
    }
    record.timing("weight_statistics", started.elapsed());
    let (count, singular) = (moments.null_directions(), moments.singular_values());
    record.note(
        "null_directions",
        serde_json::json!({
            "count": count,
            "chance_share": moments.chance_share(),
            "largest_singular_value": singular.first(),
            "least_singular_value_outside": singular.iter().rev().nth(count),
            "largest_singular_value_inside": singular.get(singular.len() - count),
            "least_singular_value": singular.last(),
        }),
    );
    Ok(weights)
}
