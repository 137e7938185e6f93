//! One checkpoint: null space, scaled weights, what they do to predictions, and the checkpoint that holds them.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use job_inputs::{Loaded, MeasuredOn, mebibytes, note_overlap};
use job_kit::{OutputDir, Progress, RunRecord, plot::Figure};
use neox_core::{SAVED_FILES, parse_dtype, save_with, stored_tensor};
use neuron_ablate::{
    ForwardCost, NeuronId, NullSpace, ScalingCost, ScalingPlan, TargetGroup, WeightChange,
    measure_scaling, output_norms, scaling_cost,
};
use neuron_select::MatchOn;
use surprisal_metrics::MIN_GROUPS;

use crate::{
    arms::{Arms, Setting, layers_of},
    config::{CheckpointConfig, ScaleConfig, Scaled},
    results::{Measured, Results},
    show::{self, Facts},
    tables::{self, NeuronShare},
};

/// The folder of the written checkpoint, in the output folder.
const CHECKPOINT: &str = "checkpoint";

const JOB: &str = "scale-neuron";
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
    let factors = config.factors()?;
    let out = OutputDir::create(&config.output.dir, JOB, resolved, outputs(config))?;
    let mut record = RunRecord::new(JOB, env!("CARGO_PKG_VERSION"), resolved);
    record.seed = Some(config.seed);
    record.version("libtorch", neox_core::LIBTORCH_VERSION);
    let neurons = match &config.neurons {
        Some(neurons) => neurons.resolve(&mut record)?,
        None => Vec::new(),
    };
    let loaded = Loaded::read(
        &config.model,
        config.model.revision.as_deref(),
        &config.corpus,
        &mut record,
    )?;
    let vocabulary = loaded.vocabulary(
        &config.frequency,
        config.band.as_ref(),
        config.scaling.band_reading,
        &mut record,
    )?;
    let (model, sample, q) = (&loaded.model, &loaded.sample, vocabulary.frequencies.q());
    let rare = config.scaling.rare(&vocabulary)?;
    let space = NullSpace::find(model, q, vocabulary.n_tokens, config.scaling.null_space())?;
    let overlap = space
        .common()
        .iter()
        .filter(|id| rare.ids().contains(id))
        .count();
    if overlap > 0 {
        record.warn(format!("{overlap} tokens count both as rare and as common, and are filed as rare: lower `scaling.top_k_percent`, or the upper bound of the band"));
    }

    let sequences = config.evaluation.sequences.resolve(sample, config.seed);
    record.note("sequences_measured", sequences.clone());
    if let Some(from) = &config.neurons {
        let measured = MeasuredOn::Sequences(&config.corpus, sample, &sequences);
        let instead = "measure other text (`corpus.rows`, `evaluation.sequences`)";
        let file = (from.file.as_deref(), "neurons.file");
        note_overlap(file, Some(measured), instead, &mut record)?;
    }
    let mut arms = Arms::default();
    let controls = config.controls();
    let setting = Setting {
        model,
        sample,
        space: &space,
        controls: &controls,
        sequences: &sequences,
        seed: config.seed,
        batch: config.evaluation.batch,
    };
    arms.add_rows(
        &setting,
        &rare,
        &config.scaling.laws,
        config.scaling.epsilon,
    )
    .context("failed to scale rare tokens (`scaling.laws`)")?;
    for law in &config.scaling.laws {
        let strongest = rare
            .strengths(*law, config.scaling.epsilon)?
            .into_iter()
            .fold(0.0, f64::max);
        if strongest > 1.0 + 1e-4 {
            record.warn(format!("the {} law scales some tokens {strongest:.2} times as strongly as the base factor says, because `scaling.epsilon` is not small beside the lowest frequency", law.name()));
        }
    }
    if !neurons.is_empty() {
        let read = match controls.match_on {
            MatchOn::Intervention => sequences.len(),
            MatchOn::ActivationAndNorm => sample.sequences().len(),
        };
        let reading = Progress::new("activations", read as u64, "sequences");
        arms.add_neurons(&setting, &neurons, &|more| reading.inc(more as u64))?;
        record.timing("activations", reading.finish());
        let unmatched = &arms.drawn.unmatched;
        if !unmatched.is_empty() {
            let names: Vec<String> = unmatched.iter().map(ToString::to_string).collect();
            record.warn(format!(
                "{} of {} neurons have no neuron alike within `controls.caliper` = {} standard deviations and are left out where the others are held against matched controls: {}",
                names.len(),
                neurons.len(),
                controls.caliper,
                names.join(", ")
            ));
        }
    }
    if neurons.is_empty() && !arms.arms.is_empty() {
        record.warn("no neurons are named, so rows of the unembedding alone are scaled (`neurons.file`, `neurons.list`)");
    }
    if arms.arms.is_empty() {
        bail!(
            "nothing to scale: name a law in `scaling.laws`, or neurons in `neurons.file` or `neurons.list`"
        );
    }

    let checkpoint = wanted(config, &arms)?;
    let clusters = sample.n_clusters(&sequences);
    record.count("clusters", clusters as u64);
    if clusters < MIN_GROUPS {
        record.warn(format!("the measured sequences are of {clusters} documents, so there are no intervals: they need {MIN_GROUPS} at least (`evaluation.sequences`)"));
    }
    let (rare_ids, common_ids) = (rare.ids().to_vec(), space.common().to_vec());
    let memory = mebibytes("evaluation.memory_mib", config.evaluation.memory_mib)?;
    let plan = ScalingPlan::new(sequences, factors.clone(), rare_ids, common_ids)
        .with_batch(config.evaluation.batch)
        .with_memory_budget(memory);
    let cost = scaling_cost(model, sample, &arms.changes, &plan)?;
    let mut controls_plan = plan.clone();
    controls_plan.factors = config.control_factors(&factors);
    let of_controls = match arms.controls.is_empty() {
        true => None,
        false => Some(scaling_cost(model, sample, &arms.controls, &controls_plan)?),
    };
    say_cost([Some(cost), of_controls]);
    let ticks = cost.ticks() + of_controls.map_or(0, |cost| cost.ticks());
    let scaling = Progress::new("scaling", ticks as u64, "rows");
    let hear = |rows: usize| scaling.inc(rows as u64);
    let measured = measure_scaling(model, sample, &arms.changes, &plan, &hear)?;
    let of_controls = match of_controls {
        None => None,
        Some(_) => {
            let controls = measure_scaling(model, sample, &arms.controls, &controls_plan, &hear)?;
            Some((controls, controls_plan.factors))
        }
    };
    record.timing("scaling", scaling.finish());
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
    let resampling = Progress::new("intervals", arms.arms.len() as u64, "changes");
    let results = Results::new(
        &arms,
        Measured {
            factors: &factors,
            treated: &measured,
            controls: of_controls.as_ref().map(|(of, at)| (of, &at[..])),
        },
        &config.bootstrap(),
        &|| resampling.inc(1),
    )?;
    record.timing("intervals", resampling.finish());

    // Those of the neurons, the last one where no neurons are scaled.
    let layers = match &layers_of(&neurons)[..] {
        [] => vec![model.config().num_hidden_layers - 1],
        layers => layers.to_vec(),
    };
    let mut shares = Vec::new();
    for layer in layers {
        let norms = output_norms(model, layer)?;
        let each = space.neuron_shares(model, layer)?.into_iter().zip(norms);
        shares.extend(each.enumerate().map(|(neuron, (share, norm))| {
            let neuron = NeuronId { layer, neuron };
            NeuronShare {
                neuron,
                share,
                norm,
                scaled: neurons.contains(&neuron),
            }
        }));
    }
    let mean = |of: &dyn Fn(&&NeuronShare) -> bool| {
        let (mut sum, mut count) = (0.0, 0);
        for neuron in shares.iter().filter(of) {
            (sum, count) = (sum + neuron.share, count + 1);
        }
        (count > 0).then(|| sum / f64::from(count))
    };
    let facts = Facts {
        space: &space,
        rare_tokens: rare.ids().len(),
        unigram_share: space.unigram_share(q)?,
        scaled_share: mean(&|neuron| neuron.scaled),
        mean_share: mean(&|_| true).unwrap_or_default(),
        factor: config.scaling.factor,
        level: config.bootstrap().level,
    };
    record.note(
        "null_space",
        null_space_note(&facts, &arms, rare.threshold(), rare.least())?,
    );
    tables::neurons(&out, &shares)?;
    tables::effects(&out, &results)?;
    tables::contrasts(&out, &results)?;
    tables::balance(&out, &results.balance)?;
    let drawn =
        measured.rows_in(TargetGroup::Rare) > 0 && measured.rows_in(TargetGroup::Common) > 0;
    let mut figure = drawn.then(|| show::trade_off(&results, &factors, config.scaling.factor));
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
            &loaded,
            &out,
        )?;
    }
    if config.output.report {
        out.write(
            REPORT,
            show::report(&results, &facts, figure.as_ref(), record.warnings())?,
        )?;
    }
    record.write(&out)?;
    let summary = show::summary(&results, &facts);
    Ok(job_kit::print(format!(
        "{summary}\nFiles: {}\n",
        out.path().display()
    ))?)
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
fn say_cost(costs: [Option<ScalingCost>; 2]) {
    let run_on: Vec<ForwardCost> = costs
        .into_iter()
        .flatten()
        .map(|cost| cost.run_on)
        .collect();
    let sum = |of: fn(&ForwardCost) -> usize| run_on.iter().map(of).sum::<usize>();
    let forwards = sum(|cost| cost.forwards);
    if forwards > 0 {
        let copies = run_on.iter().map(|cost| cost.copies).max().unwrap_or(0);
        let blocks = sum(|cost| cost.blocks);
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
