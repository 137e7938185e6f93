//! What a run is going to take, from its shapes and, where it is asked for, a measured piece of it.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use job_inputs::{Loaded, MeansConfig, MeansSample, mebibytes};
use job_kit::{
    Estimate, RunRecord, WithHint,
    estimate::{self, ForCheckpoints},
};
use neuron_ablate::{
    HeadId, LayerMeans, MeanOf, NeuronId, Plan, SampleStates, Sweep, TokenBand, TokenFrequencies,
    sample_means,
};

use crate::{
    JOB,
    config::{AblateConfig, Components, SetsConfig},
    sets::Selected,
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

/// What one checkpoint takes, without its time; so many neurons, heads and sets.
pub(crate) fn of_shapes(
    config: &AblateConfig,
    sweep: &Sweep<'_>,
    sequences: &[usize],
    (neurons, heads, sets): (usize, usize, usize),
) -> anyhow::Result<Estimate> {
    let rows = sweep.row_counts()?.kept as u64;
    let clusters = sweep.sample().n_clusters(sequences) as u64;
    let of_each = (neurons + heads + sets) as u64;
    let neurons = neurons as u64;
    let variants = sweep.variants().len() as u64;
    let bands = sweep.band_masses().len() as u64;
    let measures = variants * sweep.measures().len() as u64;
    // Signed and absolute, each with the ends of its interval and a count; of the loss over the rows of each band too.
    let means = of_each * (measures + variants * bands) * 8 * VALUE;
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
    let effects = of_each * clusters * (measures + variants * bands) * 2 * VALUE;
    let budget = mebibytes("ablation.memory_mib", config.ablation.memory_mib)? as u64;
    Ok(Estimate {
        disk: means + (STORED * sums as f64) as u64 + positions,
        memory: estimate::memory_now().map(|now| now.held + budget + sums + effects),
        time: None,
    })
}

/// Tells what so many checkpoints take, of which this is one; refuses if the disk has not room for them.
pub(crate) fn tell(
    config: &AblateConfig,
    run: ForCheckpoints,
    record: &mut RunRecord,
) -> anyhow::Result<()> {
    let less = "fewer neurons at a time (`ablation.shard`) take less";
    let room = run.begin(&config.output.dir, less, record);
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
    let selected = match &config.sets {
        Some(sets) => Some((sets, Selected::read(sets, &loaded.model, &mut record)?)),
        None => None,
    };
    let of_sets: Vec<usize> = selected.iter().flat_map(|(_, s)| s.layers()).collect();
    let (means, over, mut time) = probe.means(&components, &of_sets, &mut record)?;
    time += loading;
    if !components.last.is_empty() {
        time += probe.last_layer(&components.last, (&means, &over))?;
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
    let sets = match selected {
        Some((sets, selected)) => {
            let count = selected.count(sets);
            time += probe.sets(sets, selected, &means)?;
            count
        }
        None => 0,
    };
    let sweep = probe.sweep(plan, &means)?;
    let of_one = Estimate {
        time: Some(time),
        ..of_shapes(config, &sweep, &sequences, (neurons, heads.len(), sets))?
    };
    let run = ForCheckpoints {
        of_one,
        checkpoints,
    };
    let rows = sweep.row_counts()?.kept;
    let of = format!("{} pairs", rows * (neurons + heads.len() + sets));
    job_kit::print(run.in_words(&of))?;
    tell(config, run, &mut record)
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
    /// Means over one batch of sequences, the sequences that they are of in the run, and how long they take there.
    fn means(
        &self,
        components: &Components,
        of_sets: &[usize],
        record: &mut RunRecord,
    ) -> anyhow::Result<(LayerMeans, Vec<usize>, Duration)> {
        let (config, loaded) = (self.config, self.loaded);
        let last = loaded.model.config().num_hidden_layers - 1;
        let neurons = components.earlier.iter().map(|n| n.layer);
        let neurons = neurons.chain((!components.last.is_empty()).then_some(last));
        let of: BTreeSet<MeanOf> = neurons
            .chain(of_sets.iter().copied())
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
        let states = SampleStates::new(&loaded.model, &loaded.sample, config.ablation.batch);
        let means = few.take(of, over, &states, record)?;
        let all = all.sequences().to_vec();
        let share = all.len() as f64 / few.sequences().len().max(1) as f64;
        Ok((means, all, begin.elapsed().mul_f64(share)))
    }

    /// How long the closed form takes for so many neurons, and forwards of the sequences that means are not taken over.
    fn last_layer(
        &self,
        neurons: &[usize],
        (means, over): (&LayerMeans, &[usize]),
    ) -> anyhow::Result<Duration> {
        let plan = start::plan(self.config, &self.loaded.sample, neurons.to_vec())?;
        let over: BTreeSet<&usize> = over.iter().collect();
        let more = plan.sequences.iter().filter(|i| !over.contains(i)).count();
        let pairs = self.sweep(plan.clone(), means)?.pairs()?;
        let mut few = plan;
        few.neurons.truncate(PROBE_NEURONS);
        few.sequences.truncate(1);
        let sequences = few.sequences.clone();
        let sweep = self.sweep(few, means)?;
        let measured = sweep.pairs()?;
        let begin = Instant::now();
        let last = MeanOf::Neurons(self.loaded.model.config().num_hidden_layers - 1);
        sample_means(sweep.states(), &sequences, &[last], &|_, _| ())?;
        let forward = begin.elapsed();
        sweep.run()?;
        let ablating = begin.elapsed() - forward;
        let share = pairs as f64 / measured.max(1) as f64;
        Ok(ablating.mul_f64(share) + forward.mul_f64(more as f64))
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

    /// How long sets and their controls take, measured on one sequence.
    fn sets(
        &self,
        sets: &SetsConfig,
        selected: Selected,
        means: &LayerMeans,
    ) -> anyhow::Result<Duration> {
        let (config, sample) = (self.config, &self.loaded.sample);
        let mut few = start::plan(config, sample, Vec::new())?;
        let rows = |plan: &Plan| anyhow::Ok(self.sweep(plan.clone(), means)?.row_counts()?.kept);
        let all = rows(&few)?;
        few.sequences.truncate(1);
        let measured = rows(&few)?;
        let sequences = few.sequences.clone();
        let sweep = self.sweep(few, means)?;
        let on = (&self.loaded.model, &sequences[..]);
        // Which controls one sequence has does not matter.
        let mut record = RunRecord::new(JOB, "", &serde_json::Value::Null);
        let begin = Instant::now();
        selected.run(sets, &sweep, on, means, config.seed, &mut record)?;
        Ok(begin.elapsed().mul_f64(all as f64 / measured.max(1) as f64))
    }

    fn sweep(&self, plan: Plan, means: &LayerMeans) -> anyhow::Result<Sweep<'_>> {
        let (model, sample) = (&self.loaded.model, &self.loaded.sample);
        let bands = self.bands.to_vec();
        let sweep = Sweep::new(model, sample, self.frequencies, bands, plan)?;
        Ok(sweep.with_means(means.clone()))
    }
}
