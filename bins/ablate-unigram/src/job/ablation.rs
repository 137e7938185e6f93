//! Neurons and heads ablated, with progress, and where their rows go.

use std::error::Error;

use job_kit::{OutputDir, Progress, RunRecord, TableWriter};
use neuron_ablate::{
    EngineReport, ForwardCost, HeadEffects, HeadId, LayerMeans, NeuronEffects, PairBlock, Sweep,
    Tick,
};
use neuron_select::RowSums;

use super::positions_file;
use crate::{
    config::{AblateConfig, Components},
    sums::DocumentSums,
    tables::PositionTable,
};

/// Where each block of pairs of neurons goes: into sums per document, and into the table of positions.
pub(super) struct Rows<'a> {
    sums: DocumentSums<'a>,
    positions: Option<(PositionTable, TableWriter)>,
}

impl<'a> Rows<'a> {
    /// `rarer` says of each token whether it is rarer than the long-tail band; the table of positions is written to `out` if there is one.
    pub(super) fn new(
        config: &AblateConfig,
        sweep: &Sweep<'a>,
        means: &'a LayerMeans,
        rarer: Option<Vec<bool>>,
        out: Option<&OutputDir>,
    ) -> anyhow::Result<Self> {
        let (semantics, ablation) = (config.semantics.to_options(), &config.ablation);
        let positions = match out {
            Some(out) => {
                let table = PositionTable::new(sweep, &semantics, ablation.ranks, rarer.clone());
                let (name, format) = positions_file(config);
                let writer = TableWriter::to(out.file(&name)?, table.schema(), format)?;
                Some((table, writer))
            }
            None => None,
        };
        Ok(Self {
            sums: DocumentSums::new(sweep, &semantics, ablation.dose, means, rarer),
            positions,
        })
    }

    fn add(&mut self, block: &PairBlock<'_>) -> Result<(), Box<dyn Error + Send + Sync>> {
        self.sums.add(block)?;
        if let Some((table, writer)) = &mut self.positions {
            writer.write(&table.batch(block)?)?;
        }
        Ok(())
    }

    /// Ends the files of neurons.
    pub(super) fn finish(self, out: &OutputDir) -> anyhow::Result<()> {
        if let Some((_, writer)) = self.positions {
            writer.finish()?;
        }
        self.sums.write(out, RowSums::FILE)
    }
}

/// Ablates neurons: those before the last layer by running the model on, those of the last in closed form.
pub(super) fn ablate_neurons(
    sweep: &Sweep<'_>,
    components: &Components,
    means: &LayerMeans,
    rows: &mut Rows<'_>,
    record: &mut RunRecord,
) -> anyhow::Result<Vec<NeuronEffects>> {
    let Components { last, earlier, .. } = components;
    let mut write = |block: &PairBlock<'_>| rows.add(block);
    let mut effects: Vec<NeuronEffects> = Vec::with_capacity(earlier.len() + last.len());
    let mut engine = EngineReport::default();
    if !earlier.is_empty() {
        let layers: Vec<usize> = earlier.iter().map(|n| n.layer).collect();
        let progress = running_on(sweep, "neurons before the last layer", &layers)?;
        effects.extend(sweep.run_neurons_with(earlier, means, &mut write, &progress.hear())?);
        engine.exact_pairs += progress.record("ablation_by_forwards", record);
    }
    if !last.is_empty() {
        let progress = Progress::new("ablating", sweep.pairs()? as u64, "pairs");
        let of_last = sweep.run_with(&mut write, &|tick| {
            if let Tick::Pairs(more) = tick {
                progress.inc(more as u64);
            }
        })?;
        record.timing("ablation", progress.finish());
        effects.extend(of_last.neurons);
        engine = EngineReport {
            exact_pairs: engine.exact_pairs + of_last.engine.exact_pairs,
            ..of_last.engine
        };
    }
    record.count("pairs", (engine.exact_pairs + engine.moment_pairs) as u64);
    record.count("pairs_by_exact_sums", engine.exact_pairs as u64);
    record.count("pairs_by_moments", engine.moment_pairs as u64);
    record.note("largest_bound_of_moments_nats", engine.largest_bound);
    record.count("neurons", effects.len() as u64);
    Ok(effects)
}

/// Ablates attention heads by running the model on.
pub(super) fn ablate_heads(
    config: &AblateConfig,
    sweep: &Sweep<'_>,
    heads: &[HeadId],
    means: &LayerMeans,
    record: &mut RunRecord,
) -> anyhow::Result<Vec<HeadEffects>> {
    if heads.is_empty() {
        return Ok(Vec::new());
    }
    let layers: Vec<usize> = heads.iter().map(|h| h.layer).collect();
    let progress = running_on(sweep, "attention heads", &layers)?;
    let effects = sweep.run_heads(heads, config.ablation.dose, means, &progress.hear())?;
    record.count("heads", heads.len() as u64);
    let pairs = progress.record("heads_by_forwards", record);
    record.count("head_pairs", pairs as u64);
    Ok(effects)
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
