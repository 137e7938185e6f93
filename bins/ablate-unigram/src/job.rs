//! One checkpoint, or one after the other.

mod merge;

use std::{collections::BTreeSet, error::Error, path::Path, time::Instant};

use anyhow::Context;
use arrow::record_batch::RecordBatch;
use job_inputs::{Loaded, MeansSample, MeasuredOn, ModelConfig};
use job_kit::{
    Format, OutputDir, Progress, RunRecord, TableWriter,
    estimate::{self, ForCheckpoints},
    plot::Figure,
    report::number,
};
use neox_core::Model;
use neuron_ablate::{
    AblateError, EngineReport, ForwardCost, MeanOf, NeuronEffects, NeuronId, PairBlock, Sweep,
    Tick, TokenBand, TokenFrequencies, UnembeddingMoments, WeightStatistics, output_directions,
};
use neuron_select::RowSums;
use surprisal_metrics::{Bootstrap, MIN_GROUPS};

use crate::{
    JOB,
    config::{AblateConfig, Components, PositionFormat},
    estimate as takes,
    sets::Selected,
    start::{begin, frequencies, pending, plan, refuse_bad},
    summary,
    sums::DocumentSums,
    tables::{
        EffectColumns, NeuronTable, PositionTable, RunColumns, balance, head_table, set_contrasts,
        set_table,
    },
};

/// Tables of neurons, heads and sets, and the figures of sets.
const NEURONS: &str = "neurons.parquet";
const HEADS: &str = "heads.parquet";
const SETS: &str = "sets.parquet";
const SET_CONTRASTS: &str = "set_contrasts.parquet";
const BALANCE: &str = "balance.parquet";
const SETS_FIGURE: &str = "sets";
const CONTROLS_FIGURE: &str = "sets-controls";

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
    let Components {
        last,
        earlier,
        heads,
    } = config.ablation.components(model.config())?;
    let plan = plan(config, sample, last)?;
    let sequences = plan.sequences.clone();
    record.note("sequences_ablated", sequences.clone());
    let clusters = sample.n_clusters(&plan.sequences);
    record.count("clusters", clusters as u64);
    if clusters < MIN_GROUPS && config.ablation.resamples > 0 {
        record.warn(format!("the ablated sequences are of {clusters} documents, so there are no intervals: they need {MIN_GROUPS} at least (`ablation.sequences`)"));
    }
    let selected = match &config.sets {
        Some(sets) => {
            let measured = MeasuredOn::Sequences(&config.corpus, sample, &sequences);
            Selected::note_overlap(sets, measured, &mut record)?;
            Some((sets, Selected::read(sets, model, &mut record)?))
        }
        None => None,
    };
    let last_layer = model.config().num_hidden_layers - 1;
    let in_last = plan.neurons.iter().map(|&neuron| NeuronId {
        layer: last_layer,
        neuron,
    });
    let neurons: Vec<NeuronId> = earlier.iter().copied().chain(in_last).collect();
    let weights = match neurons.is_empty() {
        true => Vec::new(),
        false => weights(config, model, &neurons, &frequencies, &bands, &mut record)?,
    };
    let rarer = bands.first().map(|band| frequencies.rarer_than(band));
    let band_names: Vec<String> = bands.iter().map(|band| band.name().to_owned()).collect();
    let in_closed_form = !plan.neurons.is_empty();
    let sweep = Sweep::new(model, sample, &frequencies, bands, plan)?;
    let sets = selected.as_ref().map_or(0, |(sets, s)| s.count(sets));
    let each = (neurons.len(), heads.len(), sets);
    let run = ForCheckpoints {
        of_one: takes::of_shapes(config, &sweep, &sequences, each)?,
        checkpoints: left,
    };
    takes::tell(config, run, &mut record)?;

    let mut layers: Vec<usize> = neurons.iter().map(|n| n.layer).collect();
    layers.extend(selected.iter().flat_map(|(_, selected)| selected.layers()));
    let of: BTreeSet<MeanOf> = layers
        .into_iter()
        .map(MeanOf::Neurons)
        .chain(heads.iter().map(|h| MeanOf::Heads(h.layer)))
        .collect();
    let over = config.semantics.to_options().mean_activation;
    let means = MeansSample::new(
        &config.means,
        (&loaded.model, &loaded.content),
        &loaded.sample,
        config.seed,
    )
    .take(of, over, config.ablation.batch, &mut record)?;
    let sweep = sweep.with_means(means.clone());

    let semantics = config.semantics.to_options();
    let mut sums = DocumentSums::new(
        &sweep,
        &semantics,
        config.ablation.dose,
        &means,
        rarer.clone(),
    );
    let positions = PositionTable::new(&sweep, &semantics, config.ablation.ranks, rarer);
    let (name, format) = positions_file(config);
    let mut writer = match config.output.positions && !neurons.is_empty() {
        true => Some(TableWriter::to(
            out.file(&name)?,
            positions.schema(),
            format,
        )?),
        false => None,
    };
    let mut write = |block: &PairBlock<'_>| -> Result<(), Box<dyn Error + Send + Sync>> {
        sums.add(block)?;
        if let Some(writer) = &mut writer {
            writer.write(&positions.batch(block)?)?;
        }
        Ok(())
    };

    let mut effects: Vec<NeuronEffects> = Vec::with_capacity(neurons.len());
    let mut engine = EngineReport::default();
    if !earlier.is_empty() {
        let layers: Vec<usize> = earlier.iter().map(|n| n.layer).collect();
        let progress = running_on(&sweep, "neurons before the last layer", &layers)?;
        effects.extend(sweep.run_neurons_with(&earlier, &means, &mut write, &progress.hear())?);
        engine.exact_pairs += progress.record("ablation_by_forwards", &mut record);
    }
    if in_closed_form {
        let progress = Progress::new("ablating", sweep.pairs()? as u64, "pairs");
        let last = sweep.run_with(&mut write, &|tick| {
            if let Tick::Pairs(more) = tick {
                progress.inc(more as u64);
            }
        })?;
        record.timing("ablation", progress.finish());
        effects.extend(last.neurons);
        engine = EngineReport {
            exact_pairs: engine.exact_pairs + last.engine.exact_pairs,
            ..last.engine
        };
    }
    let head_effects = match heads.is_empty() {
        true => Vec::new(),
        false => {
            let layers: Vec<usize> = heads.iter().map(|h| h.layer).collect();
            let progress = running_on(&sweep, "attention heads", &layers)?;
            let dose = config.ablation.dose;
            let effects = sweep.run_heads(&heads, dose, &means, &progress.hear())?;
            record.count("heads", heads.len() as u64);
            let pairs = progress.record("heads_by_forwards", &mut record);
            record.count("head_pairs", pairs as u64);
            effects
        }
    };

    record.count("pairs", (engine.exact_pairs + engine.moment_pairs) as u64);
    record.count("pairs_by_exact_sums", engine.exact_pairs as u64);
    record.count("pairs_by_moments", engine.moment_pairs as u64);
    record.note("largest_bound_of_moments_nats", engine.largest_bound);
    record.count("neurons", effects.len() as u64);
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
    let sets = match selected {
        None => None,
        Some((sets, selected)) => {
            let on = (model, sample, &sequences[..]);
            Some(selected.run(sets, &sweep, on, &means, config.seed, &mut record)?)
        }
    };
    let bootstrap = Bootstrap {
        resamples: config.ablation.resamples,
        seed: config.seed,
        ..Bootstrap::default()
    };
    let columns = EffectColumns {
        bands: &band_names,
        floor: config.ablation.effect_floor,
        bootstrap: (bootstrap.resamples > 0).then_some(bootstrap),
    };
    let run = RunColumns {
        model: model_name(&config.model),
        step: loaded.step,
        semantics: config.semantics.name(),
    };
    let table = |name: &str, batch: RecordBatch| -> anyhow::Result<()> {
        Ok(out.table(name, &run.before(&batch)?)?)
    };
    if let Some(writer) = writer {
        writer.finish()?;
    }
    if !effects.is_empty() {
        let neurons = NeuronTable {
            effects: columns,
            weights: &weights,
            means: &means,
        };
        table(NEURONS, neurons.batch(&sweep, &effects)?)?;
        sums.write(&out, RowSums::FILE)?;
    }
    if !head_effects.is_empty() {
        table(HEADS, head_table(columns, &sweep, &head_effects)?)?;
    }
    let mut contrasts = Vec::new();
    if let Some(sets) = &sets {
        contrasts = sets.contrasts(&bootstrap)?;
        if !contrasts.is_empty() {
            table(SET_CONTRASTS, set_contrasts(&contrasts)?)?;
            table(BALANCE, balance(&sets.balance)?)?;
        }
        table(SETS, set_table(columns, &sweep, sets)?)?;
        let about = about(&run, &record);
        sets.doses_figure(&about, &bootstrap)?
            .write(&out, SETS_FIGURE, &mut record)?;
        if let Some(figure) = sets.controls_figure(&about, &bootstrap)? {
            figure.write(&out, CONTROLS_FIGURE, &mut record)?;
        }
    }
    record.write(&out)?;
    let floor = config.ablation.effect_floor;
    let mut text = String::new();
    if !effects.is_empty() {
        text += &summary::neurons(&sweep, &effects, floor)?;
    }
    if !head_effects.is_empty() {
        text += &summary::heads(&sweep, &head_effects, floor)?;
    }
    if let Some(sets) = &sets {
        text += &sets.summary(&bootstrap, &contrasts)?;
    }
    Ok(job_kit::print(format!(
        "{text}Files: {}\n",
        out.path().display()
    ))?)
}

/// The step, the band and the reading, for the headers of figures.
fn about(run: &RunColumns, record: &RunRecord) -> String {
    let bound = |name: &str| record.noted("band")?.get(name)?.as_f64();
    let band = match bound("min_frequency").zip(bound("max_frequency")) {
        Some((min, max)) => format!("band {} to {}", number(min, 2), number(max, 2)),
        None => "no band".to_owned(),
    };
    let step = run
        .step
        .map_or(String::new(), |step| format!("step {step}, "));
    format!("{step}{band}, reading {}", run.semantics)
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

/// Says what running the model on for components of these layers costs, and begins to show how far it is.
fn running_on(sweep: &Sweep<'_>, what: &str, layers: &[usize]) -> anyhow::Result<RunningOn> {
    let ForwardCost {
        forwards,
        copies,
        blocks,
        pairs,
    } = sweep.forward_cost(layers)?;
    tracing::info!(
        "{what}: the model runs on from their layers, {} of them at every position of each sequence; that is {forwards} forwards of up to {copies} copies, {blocks} blocks of the model in all",
        layers.len()
    );
    Ok(RunningOn {
        progress: Progress::new(what, pairs as u64, "pairs"),
        pairs,
    })
}

/// Progress of running the model on.
struct RunningOn {
    progress: Progress,
    pairs: usize,
}

impl RunningOn {
    fn hear(&self) -> impl Fn(Tick) + Sync {
        |tick| {
            if let Tick::Pairs(more) = tick {
                self.progress.inc(more as u64);
            }
        }
    }

    /// Returns the number of pairs.
    fn record(self, name: &str, record: &mut RunRecord) -> usize {
        record.timing(name, self.progress.finish());
        self.pairs
    }
}
