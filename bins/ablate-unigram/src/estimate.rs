//! What a run is going to take, from its shapes and, where it is asked for, a measured piece of it.

use std::time::{Duration, Instant};

use job_inputs::{Loaded, MeansConfig, MeansSample, mebibytes};
use job_kit::{Estimate, RunRecord, WithHint, estimate};
use neuron_ablate::{
    HeadId, LayerMeans, MeanOf, NeuronId, Plan, Sweep, TokenBand, TokenFrequencies,
};

use crate::{
    config::{AblateConfig, Components},
    start,
    sums::DocumentSums,
    tables::PositionTable,
};

/// Neurons of the last layer that are measured for an estimate.
const PROBE_NEURONS: usize = 256;

/// Of a row of positions stored: its identity compresses to next to nothing, its numbers hardly at all.
const STORED: f64 = 0.9;
/// Bytes of a value in a table of means and intervals.
const VALUE: u64 = 8;

/// What one checkpoint takes, without its time.
pub(crate) fn of_shapes(
    config: &AblateConfig,
    sweep: &Sweep<'_>,
    sequences: &[usize],
    neurons: usize,
) -> anyhow::Result<Estimate> {
    let rows = sweep.row_counts()?.kept as u64;
    let clusters = sweep.sample().n_clusters(sequences) as u64;
    let neurons = neurons as u64;
    let measures = (sweep.variants().len() * sweep.measures().len()) as u64;
    // Mean and absolute mean, each with the ends of its interval and a count.
    let means = neurons * measures * 8 * VALUE;
    let sums = neurons * clusters * DocumentSums::ROW_BYTES * DocumentSums::STRATA;
    let positions = match config.output.positions {
        true => {
            let semantics = config.semantics.to_options();
            let table = PositionTable::new(sweep, &semantics, config.ablation.ranks, None);
            (STORED * (neurons * rows * table.value_bytes()) as f64) as u64
        }
        false => 0,
    };
    // Of the effects, a sum and an absolute sum.
    let effects = neurons * clusters * measures * 2 * VALUE;
    let budget = mebibytes("ablation.memory_mib", config.ablation.memory_mib)? as u64;
    Ok(Estimate {
        disk: means + (STORED * sums as f64) as u64 + positions,
        memory: estimate::memory().map(|(held, _)| held + budget + sums + effects),
        time: None,
    })
}

/// Tells what so many checkpoints take, of which this is one; refuses if the disk has not room for them.
pub(crate) fn tell(
    config: &AblateConfig,
    of_one: Estimate,
    checkpoints: usize,
    record: &mut RunRecord,
) -> anyhow::Result<()> {
    let all = Estimate {
        disk: of_one.disk * checkpoints as u64,
        time: of_one.time.map(|time| time * checkpoints as u32),
        ..of_one
    };
    let free = estimate::free_disk(&config.output.dir);
    let of = match checkpoints {
        1 => String::new(),
        n => format!(" ({n} checkpoints)"),
    };
    tracing::info!("this run takes {all}{of}");
    record.note(
        "estimate",
        serde_json::json!({"disk_bytes": of_one.disk, "memory_bytes": of_one.memory}),
    );
    if let Some(warning) = all.memory_warning(estimate::memory().map(|(_, there)| there)) {
        record.warn(format!(
            "{warning}: fewer neurons at a time (`ablation.shard`) take less"
        ));
    }
    let room = all.check_room(free);
    match config.output.positions {
        true => Ok(room.hint("`output.positions=off` leaves out positions.parquet, which takes most; analyze-unigram needs it for co-activation alone")?),
        false => Ok(room?),
    }
}

/// Measures a piece of the run and says what the whole takes; nothing is written.
pub(crate) fn estimate(config: &AblateConfig, resolved: &serde_json::Value) -> anyhow::Result<()> {
    let pending = start::pending(config, resolved)?;
    let (revision, checkpoints) = match &pending {
        None => (config.model.revision.as_deref(), 1),
        Some(left) => match left.first() {
            None => return Ok(job_kit::print("all checkpoints are finished\n")?),
            Some(first) => (Some(first.as_str()), left.len()),
        },
    };
    let mut record = start::begin(config, resolved);
    let begin = Instant::now();
    let loaded = Loaded::read(&config.model, revision, &config.corpus, &mut record)?;
    let loading = begin.elapsed();
    let (frequencies, bands) = start::frequencies(config, &loaded, &mut record)?;
    let probe = Probe {
        config,
        loaded: &loaded,
        frequencies: &frequencies,
        bands: &bands,
    };
    let components = config.ablation.components(loaded.model.config())?;
    let (means, mut time) = probe.means(&components, &mut record)?;
    time += loading;
    if !components.last.is_empty() {
        time += probe.last_layer(&components.last, &means)?;
    }
    let earlier: Vec<usize> = components.earlier.iter().map(|n| n.layer).collect();
    if let Some(&first) = components.earlier.first() {
        time += probe.forwards(&earlier, &means, &Component::Neuron(first))?;
    }
    let heads: Vec<usize> = components.heads.iter().map(|h| h.layer).collect();
    if let Some(&first) = components.heads.first() {
        time += probe.forwards(&heads, &means, &Component::Head(first))?;
    }
    let neurons = components.last.len() + components.earlier.len();
    let plan = start::plan(config, &loaded.sample, components.last.clone())?;
    let sequences = plan.sequences.clone();
    let sweep = probe.sweep(plan, &means)?;
    let of_one = Estimate {
        time: Some(time),
        ..of_shapes(config, &sweep, &sequences, neurons)?
    };
    let all = Estimate {
        disk: of_one.disk * checkpoints as u64,
        time: Some(time * checkpoints as u32),
        ..of_one
    };
    let mut text = String::new();
    if checkpoints > 1 {
        text += &format!("one checkpoint takes {of_one}\n");
    }
    let pairs = sweep.row_counts()?.kept * (neurons + heads.len());
    text += &format!(
        "{checkpoints} checkpoint{} of {pairs} pairs take{} {all}\n",
        if checkpoints == 1 { "" } else { "s" },
        if checkpoints == 1 { "s" } else { "" },
    );
    if config.sets.is_some() {
        text += "sets of neurons (`sets`) are not counted\n";
    }
    job_kit::print(text)?;
    tell(config, of_one, checkpoints, &mut record)
}

/// What is run on for an estimate.
enum Component {
    Neuron(NeuronId),
    Head(HeadId),
}

/// Measures pieces of a run.
struct Probe<'a> {
    config: &'a AblateConfig,
    loaded: &'a Loaded,
    frequencies: &'a TokenFrequencies,
    bands: &'a [TokenBand],
}

impl Probe<'_> {
    /// Means over one batch of sequences, and how long those over all take.
    fn means(
        &self,
        components: &Components,
        record: &mut RunRecord,
    ) -> anyhow::Result<(LayerMeans, Duration)> {
        let (config, loaded) = (self.config, self.loaded);
        let last = loaded.model.config().num_hidden_layers - 1;
        let neurons = components.earlier.iter().map(|n| n.layer);
        let neurons = neurons.chain((!components.last.is_empty()).then_some(last));
        let of: std::collections::BTreeSet<MeanOf> = neurons
            .map(MeanOf::Neurons)
            .chain(components.heads.iter().map(|h| MeanOf::Heads(h.layer)))
            .collect();
        let few = MeansConfig {
            sequences: config.means.sequences.at_most(config.ablation.batch),
            keep: None,
        };
        let over = config.semantics.to_options().mean_activation;
        let [all, few] = [&config.means, &few].map(|means| {
            let by = (&loaded.model, loaded.content.as_str());
            MeansSample::new(means, by, &loaded.sample, config.seed)
        });
        let begin = Instant::now();
        let means = few.take(of, over, config.ablation.batch, record)?;
        let share = all.sequences().len() as f64 / few.sequences().len().max(1) as f64;
        Ok((means, begin.elapsed().mul_f64(share)))
    }

    /// How long the closed form takes for so many neurons.
    fn last_layer(&self, neurons: &[usize], means: &LayerMeans) -> anyhow::Result<Duration> {
        let plan = start::plan(self.config, &self.loaded.sample, neurons.to_vec())?;
        let pairs = self.sweep(plan.clone(), means)?.pairs()?;
        let mut few = plan;
        few.neurons.truncate(PROBE_NEURONS);
        few.sequences.truncate(1);
        let sweep = self.sweep(few, means)?;
        let measured = sweep.pairs()?;
        let begin = Instant::now();
        sweep.run()?;
        Ok(begin
            .elapsed()
            .mul_f64(pairs as f64 / measured.max(1) as f64))
    }

    /// How long running the model on takes for components of these layers.
    fn forwards(
        &self,
        layers: &[usize],
        means: &LayerMeans,
        first: &Component,
    ) -> anyhow::Result<Duration> {
        let plan = start::plan(self.config, &self.loaded.sample, Vec::new())?;
        let all = self.sweep(plan.clone(), means)?.forward_cost(layers)?;
        let mut few = plan;
        few.sequences.truncate(1);
        let sweep = self.sweep(few, means)?;
        let one = sweep.forward_cost(&layers[..1])?;
        let begin = Instant::now();
        match *first {
            Component::Neuron(id) => drop(sweep.run_neurons(&[id], means)?),
            Component::Head(id) => {
                let dose = self.config.ablation.dose;
                drop(sweep.run_heads(&[id], dose, means, &|_| ())?);
            }
        }
        Ok(begin
            .elapsed()
            .mul_f64(all.blocks as f64 / one.blocks.max(1) as f64))
    }

    fn sweep(&self, plan: Plan, means: &LayerMeans) -> anyhow::Result<Sweep<'_>> {
        let (model, sample) = (&self.loaded.model, &self.loaded.sample);
        let bands = self.bands.to_vec();
        let sweep = Sweep::new(model, sample, self.frequencies, bands, plan)?;
        Ok(sweep.with_means(means.clone()))
    }
}
