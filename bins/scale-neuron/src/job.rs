//! One checkpoint: null space, scaled weights, what they do to predictions, and the checkpoint that holds them.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use job_inputs::Loaded;
use job_kit::{OutputDir, Progress, RunRecord, plot::Figure};
use neox_core::{SAVED_FILES, parse_dtype, save_with, stored_tensor};
use neuron_ablate::{
    ForwardCost, NeuronId, ScalingEffects, TargetGroup, WeightChange, output_norms,
};

use crate::{
    JOB,
    arms::{Arms, layers_of},
    config::{CheckpointConfig, ScaleConfig, Scaled},
    estimate,
    prepared::{self, Inputs, Prepared},
    results::{Measured, Results},
    show::{self, Facts},
    tables::{self, NeuronShare},
};

/// The folder of the written checkpoint, in the output folder.
const CHECKPOINT: &str = "checkpoint";

const REPORT: &str = "report.html";
const FIGURE: &str = "trade-off";

fn checkpoint_files() -> impl Iterator<Item = String> {
    SAVED_FILES
        .iter()
        .map(|file| format!("{CHECKPOINT}/{file}"))
}

/// All files that a run may write.
fn outputs(config: &ScaleConfig) -> Vec<String> {
    let mut names: Vec<String> = tables::OUTPUTS.map(String::from).into();
    names.extend(Figure::outputs(FIGURE));
    if config.output.report {
        names.push(REPORT.to_owned());
    }
    if config.checkpoint.is_some() {
        names.extend(checkpoint_files());
    }
    names
}

/// Runs the job.
pub(crate) fn run(config: &ScaleConfig, resolved: &serde_json::Value) -> anyhow::Result<()> {
    let out = OutputDir::create(&config.output.dir, JOB, resolved, outputs(config))?;
    let mut record = prepared::begin(config, resolved);
    let inputs = Inputs::read(config, &mut record)?;
    let prepared = Prepared::new(config, &inputs, &mut record)?;
    let checkpoint = wanted(config, &prepared.arms)?;
    estimate::begin(config, &prepared, &mut record)?;
    let cost = prepared.cost()?;
    say_cost(cost.run_on);
    let scaling = Progress::new("scaling", cost.ticks() as u64, "rows");
    let measured = prepared.measure(&|rows| scaling.inc(rows as u64))?;
    record.timing("scaling", scaling.finish());
    count_rows(&measured, &mut record);

    let Prepared { arms, space, .. } = &prepared;
    let resampling = Progress::new("intervals", arms.arms.len() as u64, "changes");
    let plan = &prepared.plan;
    let results = Results::new(
        arms,
        Measured {
            plan,
            changes: &arms.changes,
            effects: &measured,
        },
        &config.bootstrap(),
        &|| resampling.inc(1),
    )?;
    record.timing("intervals", resampling.finish());

    let shares = neuron_shares(&prepared)?;
    let facts = Facts {
        space,
        rare_tokens: prepared.rare.ids().len(),
        unigram_share: space.unigram_share(prepared.vocabulary.frequencies.q())?,
        scaled_share: mean_share(shares.iter().filter(|neuron| neuron.scaled)),
        mean_share: mean_share(shares.iter()).unwrap_or_default(),
        factor: config.scaling.factor,
        level: config.bootstrap().level,
    };
    let (threshold, least) = (prepared.rare.threshold(), prepared.rare.least());
    record.note(
        "null_space",
        null_space_note(&facts, arms, threshold, least)?,
    );
    tables::neurons(&out, &shares)?;
    tables::effects(&out, &results)?;
    tables::contrasts(&out, &results)?;
    tables::balance(&out, &results.balance)?;
    let rows_in = |group| measured.rows_in(group) > 0;
    let drawn = rows_in(TargetGroup::Rare) && rows_in(TargetGroup::Common);
    let base = config.scaling.factor;
    let mut figure = drawn.then(|| show::trade_off(&results, &plan.factors, base));
    if let Some(drawn) = &figure
        && drawn.write(&out, FIGURE, &mut record)?.is_none()
    {
        figure = None;
    }
    if let Some((wanted, place)) = checkpoint {
        write_checkpoint(
            wanted,
            &arms.changes[place].change,
            config.scaling.factor,
            prepared.loaded,
            &out,
        )?;
    }
    if config.output.report {
        out.write(
            REPORT,
            show::report(&results, &facts, figure.as_ref(), record.warnings())?,
        )?;
    }
    let summary = show::summary(&results, &facts);
    Ok(record.finish(&out, &format!("{summary}\n"))?)
}

/// Counts what was measured and what was dropped, and warns of groups without a row.
fn count_rows(measured: &ScalingEffects, record: &mut RunRecord) {
    for group in TargetGroup::ALL {
        record.count(
            &format!("rows_with_{}_targets", group.name()),
            measured.rows_in(group) as u64,
        );
        if measured.rows_in(group) == 0 && group != TargetGroup::Between {
            record.warn(format!(
                "no row has a target of group `{}`: measure more sequences, or widen the group",
                group.name()
            ));
        }
    }
    for (name, count) in [
        ("rows_dropped_too_early", measured.rows.too_early),
        ("rows_dropped_last_position", measured.rows.last),
        ("rows_dropped_bos_or_eos", measured.rows.boundary),
        (
            "rows_dropped_before_bos_or_eos",
            measured.rows.before_boundary,
        ),
    ] {
        record.count(name, count as u64);
    }
}

/// What the null space holds of each neuron of the layers of the neurons, or of the last one where none are scaled.
fn neuron_shares(prepared: &Prepared<'_>) -> anyhow::Result<Vec<NeuronShare>> {
    let (model, scaled) = (&prepared.loaded.model, prepared.neurons);
    let layers = match &layers_of(scaled)[..] {
        [] => vec![model.config().num_hidden_layers - 1],
        layers => layers.to_vec(),
    };
    let mut shares = Vec::new();
    for layer in layers {
        let norms = output_norms(model, layer)?;
        let each = prepared.space.neuron_shares(model, layer)?;
        shares.extend(
            each.into_iter()
                .zip(norms)
                .enumerate()
                .map(|(neuron, (share, norm))| {
                    let neuron = NeuronId { layer, neuron };
                    NeuronShare {
                        neuron,
                        share,
                        norm,
                        scaled: scaled.contains(&neuron),
                    }
                }),
        );
    }
    Ok(shares)
}

fn mean_share<'a>(shares: impl Iterator<Item = &'a NeuronShare>) -> Option<f64> {
    let (sum, count) = shares.fold((0.0, 0_u32), |(sum, count), of| (sum + of.share, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

fn null_space_note(
    facts: &Facts<'_>,
    arms: &Arms,
    threshold: f64,
    least: f64,
) -> anyhow::Result<serde_json::Value> {
    let space = facts.space;
    let mut sizes = serde_json::Map::new();
    for (arm, change) in arms.treated() {
        let norm = change
            .change
            .norms()?
            .iter()
            .map(|norm| norm * norm)
            .sum::<f64>()
            .sqrt()
            * (facts.factor - 1.0).abs();
        sizes.insert(arm.name(), norm.into());
    }
    Ok(serde_json::json!({
        "dimension": space.space().dimension(),
        "rank": space.rank(),
        "variance": space.variance(),
        "common_tokens": space.common().len(),
        "rare_tokens": facts.rare_tokens,
        "rare_below_frequency": threshold,
        "lowest_frequency": least,
        "unigram_share": facts.unigram_share,
        "unigram_norm_ratio": facts.unigram_share.sqrt(),
        "chance_share": space.chance(),
        "mean_neuron_share": facts.mean_share,
        "scaled_neuron_share": facts.scaled_share,
        "weight_change_frobenius": sizes,
    }))
}

/// Says what running the model on costs, where it does.
fn say_cost(run_on: ForwardCost) {
    let ForwardCost {
        forwards,
        copies,
        blocks,
        ..
    } = run_on;
    if forwards > 0 {
        tracing::info!(
            "scaling neurons that are not read off the last layer: the model runs on from their layers, with each change, control and factor; that is {forwards} forwards of up to {copies} copies, {blocks} blocks of the model in all"
        );
    }
}

/// The change that a checkpoint is wanted of.
fn wanted<'a>(
    config: &'a ScaleConfig,
    arms: &Arms,
) -> anyhow::Result<Option<(&'a CheckpointConfig, usize)>> {
    let Some(wanted) = &config.checkpoint else {
        return Ok(None);
    };
    let (scaled, law) = match wanted.scaled {
        Scaled::Rows => (
            "rows",
            wanted
                .law
                .or(config.scaling.laws.first().copied())
                .map(|law| law.name()),
        ),
        Scaled::Neurons => ("neurons", None),
    };
    let mut treated = arms.treated();
    match treated.position(|(arm, _)| arm.scaled == scaled && arm.law == law) {
        Some(place) => Ok(Some((wanted, place))),
        None => bail!(
            "`checkpoint` asks for {scaled}{}, which this run does not scale: see `scaling.laws` and `neurons`",
            law.map_or(String::new(), |law| format!(" ({law})"))
        ),
    }
}

fn write_checkpoint(
    wanted: &CheckpointConfig,
    change: &WeightChange,
    factor: f64,
    loaded: &Loaded,
    out: &OutputDir,
) -> anyhow::Result<()> {
    let mut weights = BTreeMap::new();
    for part in change.parts() {
        let stored = stored_tensor(&loaded.checkpoint, part)?;
        weights.insert(part, change.apply(part, &stored, factor)?);
    }
    let dtype = wanted.dtype.as_deref().map(parse_dtype).transpose()?;
    let dir = out.join(CHECKPOINT);
    for (file, name) in SAVED_FILES.iter().zip(checkpoint_files()) {
        let new = ["model.safetensors", "config.json"].contains(file);
        let tokenizer = *file == "tokenizer.json" && loaded.tokenizer_file().is_some();
        if new || tokenizer || loaded.checkpoint.join(file).is_file() {
            out.replacing(&name)?;
        }
    }
    save_with(&loaded.checkpoint, &dir, &weights, dtype)
        .context("failed to write the checkpoint")?;
    // The model's own, or the one that was set for it.
    if let Some(tokenizer) = loaded.tokenizer_file() {
        let json = std::fs::read(tokenizer)
            .with_context(|| format!("failed to read `{}`", tokenizer.display()))?;
        out.write(&format!("{CHECKPOINT}/tokenizer.json"), json)?;
    }
    Ok(())
}
