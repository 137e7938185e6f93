//! One checkpoint, or one after the other.

mod merge;

use std::{
    path::Path,
    sync::{Mutex, OnceLock},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use job_inputs::{Loaded, mebibytes, source};
use job_kit::{Format, OutputDir, Progress, RunRecord, TableWriter, plot::Figure};
use neox_core::NeoxModel;
use neuron_ablate::{
    Plan, Sample, Sweep, Tick, TokenBand, TokenFrequencies, UnembeddingMoments, WeightStatistics,
};

use surprisal_metrics::{Bootstrap, MIN_GROUPS};

use crate::{
    checks,
    config::{AblateConfig, PositionFormat, UnseenTokens},
    sets::Selected,
    summary,
    tables::{EffectColumns, NeuronTable, PositionTable, SetTable},
};

pub(crate) const JOB: &str = "ablate-unigram";

/// Tables of neurons and of sets, and the figures of sets.
const NEURONS: &str = "neurons.parquet";
const SETS: &str = "sets.parquet";
const SETS_FIGURE: &str = "sets";
const CONTROLS_FIGURE: &str = "sets-controls";

/// Bands of one run, the long-tail band included.
const MOST_BANDS: usize = 6;

/// Runs all the checkpoints that the configuration asks for.
pub(crate) fn run(config: &AblateConfig, resolved: &serde_json::Value) -> anyhow::Result<()> {
    let Some(steps) = &config.model.steps else {
        if let Some(revision) = &config.model.revision {
            checks::refuse_bad(config, revision)?;
        }
        return ablate(
            config,
            resolved,
            config.model.revision.as_deref(),
            &config.output.dir,
        );
    };
    for revision in steps.revisions(&source(&config.model)?)? {
        let dir = config.output.dir.join(&revision);
        if finished(&dir, resolved) {
            tracing::info!("{revision}: already finished in `{}`, kept", dir.display());
            continue;
        }
        checks::refuse_bad(config, &revision)?;
        ablate(config, resolved, Some(&revision), &dir)
            .with_context(|| format!("failed at {revision}"))?;
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
    let mut names = vec![NEURONS.to_owned()];
    if config.output.positions {
        names.push(positions_file(config).0);
    }
    if config.sets.is_some() {
        names.push(SETS.to_owned());
        names.extend(
            [SETS_FIGURE, CONTROLS_FIGURE]
                .into_iter()
                .flat_map(Figure::outputs),
        );
    }
    names
}

/// Whether a folder holds the results of a finished run of this configuration.
fn finished(dir: &Path, resolved: &serde_json::Value) -> bool {
    let record = std::fs::read(dir.join(job_kit::output::RUN_RECORD))
        .ok()
        .and_then(|json| serde_json::from_slice::<serde_json::Value>(&json).ok());
    // Through text on both sides, as numbers may change in their last bit on the way.
    let resolved = serde_json::from_str::<serde_json::Value>(&resolved.to_string()).ok();
    record.is_some_and(|record| Some(&record["config"]) == resolved.as_ref())
}

/// The record of a run, with what is known at its start.
pub(crate) fn begin(config: &AblateConfig, resolved: &serde_json::Value) -> RunRecord {
    let mut record = RunRecord::new(JOB, env!("CARGO_PKG_VERSION"), resolved);
    record.seed = Some(config.seed);
    record.version("libtorch", env!("LIBTORCH_VERSION"));
    record
}

/// Token frequencies, and the long-tail band if one is asked for.
pub(crate) fn frequencies(
    config: &AblateConfig,
    loaded: &Loaded,
    record: &mut RunRecord,
) -> anyhow::Result<(TokenFrequencies, Vec<TokenBand>)> {
    let vocabulary = loaded.vocabulary(
        &config.frequency,
        config.band.as_ref(),
        config.semantics.band_reading,
        record,
    )?;
    let q = vocabulary.frequencies.q().to_vec();
    let mut bands = match &vocabulary.band {
        Some(band) => vec![TokenBand::new("band", &band.ids, q.len())?],
        None => vec![],
    };
    for (name, band) in &config.bands {
        let reserved = ["band", "all", "ln"].contains(&name.as_str());
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if reserved || name.is_empty() || !name.chars().all(plain) {
            bail!(
                "`bands.{name}`: a band's name becomes part of column names: use lower-case letters, digits and `_`, but not `band`, `all` or `ln`"
            );
        }
        let reading = config.semantics.band_reading;
        let found = vocabulary.another_band(name, band, reading, record)?;
        bands.push(TokenBand::new(name, &found.ids, q.len())?);
    }
    if bands.len() > MOST_BANDS {
        bail!(
            "{} bands are asked for, expected {MOST_BANDS} at most: the vocabulary is cut into the sets of tokens that share their bands",
            bands.len()
        );
    }
    let counts = vocabulary.frequencies.counts();
    let seen: Vec<bool> = counts.iter().map(|count| *count > 0).collect();
    let frequencies = TokenFrequencies::new(q)?;
    let frequencies = match config.semantics.unseen_tokens {
        UnseenTokens::Kept => frequencies,
        UnseenTokens::LeftOut => {
            record.count(
                "unseen_tokens_left_out",
                seen.iter().filter(|seen| !**seen).count() as u64,
            );
            frequencies.over(seen)?
        }
    };
    Ok((frequencies, bands))
}

fn ablate(
    config: &AblateConfig,
    resolved: &serde_json::Value,
    revision: Option<&str>,
    dir: &Path,
) -> anyhow::Result<()> {
    let out = OutputDir::create(dir, JOB, resolved, outputs(config))?;
    let mut record = begin(config, resolved);
    if let Some(shards) = &config.merge {
        return merge::run(config, resolved, (shards, revision), &out, record);
    }
    let loaded = Loaded::read(&config.model, revision, &config.corpus, &mut record)?;
    let (frequencies, bands) = frequencies(config, &loaded, &mut record)?;
    let Loaded { model, sample, .. } = loaded;
    let plan = plan(
        config,
        &sample,
        usize::try_from(model.config().intermediate_size)?,
    )?;
    record.note("sequences_ablated", plan.sequences.clone());
    let clusters = sample.n_clusters(&plan.sequences);
    record.count("clusters", clusters as u64);
    if clusters < MIN_GROUPS && config.ablation.resamples > 0 {
        record.warn(format!("the ablated sequences are of {clusters} documents, so there are no intervals: they need {MIN_GROUPS} at least (`ablation.sequences`)"));
    }
    let selected = match &config.sets {
        Some(sets) => Some((sets, Selected::read(sets, &model, &mut record)?)),
        None => None,
    };
    let weights = weights(
        config,
        &model,
        &plan.neurons,
        &frequencies,
        &bands,
        &mut record,
    )?;
    let rarer = bands.first().map(|band| frequencies.rarer_than(band));
    let band_names: Vec<String> = bands.iter().map(|band| band.name().to_owned()).collect();
    let sweep = Sweep::new(&model, &sample, &frequencies, bands, plan)?;

    let layer = model.config().num_hidden_layers - 1;
    let positions = PositionTable::new(
        layer,
        &sweep,
        &config.semantics.to_options(),
        config.ablation.ranks,
        rarer,
    );
    let (name, format) = positions_file(config);
    let mut writer = match config.output.positions {
        true => Some(TableWriter::to(
            out.file(&name)?,
            positions.schema(),
            format,
        )?),
        false => None,
    };

    let pairs = sweep.pairs()? as u64;
    let steps = SweepProgress::new(sample.sequences().len() as u64, pairs);
    let effects = sweep.run(
        &mut |block| {
            if let Some(writer) = &mut writer {
                writer.write(&positions.batch(block)?)?;
            }
            Ok(())
        },
        &|tick| steps.hear(tick),
    )?;
    steps.record(&mut record);

    record.count("pairs", pairs);
    record.count("pairs_by_exact_sums", effects.engine.exact_pairs as u64);
    record.count("pairs_by_moments", effects.engine.moment_pairs as u64);
    record.note(
        "largest_bound_of_moments_nats",
        effects.engine.largest_bound,
    );
    record.count("neurons", effects.neurons.len() as u64);
    for (name, count) in [
        ("rows_kept", effects.rows.kept),
        ("rows_dropped_too_early", effects.rows.too_early),
        ("rows_dropped_last_position", effects.rows.last),
        ("rows_dropped_bos_or_eos", effects.rows.boundary),
        (
            "rows_dropped_before_bos_or_eos",
            effects.rows.before_boundary,
        ),
    ] {
        record.count(name, count as u64);
    }
    let sets = match selected {
        None => None,
        Some((sets, selected)) => {
            let mean = &effects.mean_activations;
            Some(selected.run(sets, &sweep, &model, mean, config.seed, &mut record)?)
        }
    };
    let bootstrap = Bootstrap {
        resamples: config.ablation.resamples,
        seed: config.seed,
        ..Bootstrap::default()
    };
    let columns = EffectColumns {
        floor: config.ablation.effect_floor,
        bootstrap: (bootstrap.resamples > 0).then_some(bootstrap),
    };
    let table = NeuronTable {
        layer,
        effects: columns,
        weights: &weights,
        bands: &band_names,
    }
    .batch(&sweep, &effects)?;
    if let Some(writer) = writer {
        writer.finish()?;
    }
    out.table(NEURONS, &table)?;
    if let Some(sets) = &sets {
        let table = SetTable {
            layer,
            effects: columns,
        }
        .batch(&sweep, sets)?;
        out.table(SETS, &table)?;
        sets.doses_figure(&bootstrap)
            .write(&out, SETS_FIGURE, &mut record)?;
        if let Some(figure) = sets.controls_figure(&bootstrap) {
            figure.write(&out, CONTROLS_FIGURE, &mut record)?;
        }
    }
    record.write(&out)?;
    let mut text = summary::text(layer, &sweep, &effects, config.ablation.effect_floor);
    if let Some(sets) = &sets {
        text += &sets.summary(&bootstrap);
    }
    Ok(job_kit::print(format!(
        "{text}Files: {}\n",
        out.path().display()
    ))?)
}

/// What the weights of the neurons say, in their order; how the null space was found goes into `record`.
fn weights(
    config: &AblateConfig,
    model: &NeoxModel,
    neurons: &[usize],
    frequencies: &TokenFrequencies,
    bands: &[TokenBand],
    record: &mut RunRecord,
) -> anyhow::Result<Vec<WeightStatistics>> {
    let started = Instant::now();
    let moments =
        UnembeddingMoments::of_model(model, frequencies, bands, config.ablation.null_directions)
            .context("failed to compute statistics of the weights (`ablation.null_directions`)")?;
    let weights = moments.neurons(model, neurons)?;
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

pub(crate) fn plan(config: &AblateConfig, sample: &Sample, d_mlp: usize) -> anyhow::Result<Plan> {
    Ok(Plan {
        neurons: config.ablation.neurons(d_mlp)?,
        sequences: config.ablation.sequences.resolve(sample, config.seed),
        dose: config.ablation.dose,
        semantics: config.semantics.to_options(),
        variants: config.ablation.variants(),
        ranks: config.ablation.ranks,
        engine: config.ablation.engine()?,
        batch: config.ablation.batch,
        memory_budget: mebibytes("ablation.memory_mib", config.ablation.memory_mib)?,
    })
}

/// Progress of the two steps of a sweep: reading the sample for the mean activations, then ablating.
struct SweepProgress {
    reading: Mutex<Option<Progress>>,
    reading_took: OnceLock<Duration>,
    sequences: u64,
    ablating: OnceLock<Progress>,
    pairs: u64,
}

impl SweepProgress {
    fn new(sequences: u64, pairs: u64) -> Self {
        let reading = Progress::new("mean activations", sequences, "sequences");
        Self {
            reading: Mutex::new(Some(reading)),
            reading_took: OnceLock::new(),
            sequences,
            ablating: OnceLock::new(),
            pairs,
        }
    }

    fn hear(&self, tick: Tick) {
        match tick {
            Tick::Sequences { done, more } => {
                let Ok(mut reading) = self.reading.lock() else {
                    return;
                };
                if let Some(reading) = &*reading {
                    reading.inc(more as u64);
                }
                if done as u64 == self.sequences
                    && let Some(reading) = reading.take()
                {
                    self.reading_took.get_or_init(|| reading.finish());
                }
            }
            Tick::Pairs(more) => self
                .ablating
                .get_or_init(|| Progress::new("ablating", self.pairs, "pairs"))
                .inc(more as u64),
        }
    }

    fn record(self, record: &mut RunRecord) {
        if let Some(took) = self.reading_took.into_inner() {
            record.timing("mean_activations", took);
        }
        if let Some(progress) = self.ablating.into_inner() {
            record.timing("ablation", progress.finish());
        }
    }
}
