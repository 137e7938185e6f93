//! What a run writes and prints when everything is measured.

use arrow::record_batch::RecordBatch;
use job_kit::{OutputDir, RunRecord, report::number};
use neuron_ablate::{HeadEffects, LayerMeans, NeuronEffects, Sweep, WeightStatistics};
use surprisal_metrics::Bootstrap;

use crate::{
    sets::SetRun,
    summary,
    tables::{
        EffectColumns, NeuronTable, RunColumns, balance, head_table, set_contrasts, set_table,
    },
};

/// Tables of neurons, heads and sets, and the figures of sets.
pub(super) const NEURONS: &str = "neurons.parquet";
pub(super) const HEADS: &str = "heads.parquet";
pub(super) const SETS: &str = "sets.parquet";
pub(super) const SET_CONTRASTS: &str = "set_contrasts.parquet";
pub(super) const BALANCE: &str = "balance.parquet";
pub(super) const SETS_FIGURE: &str = "sets";
pub(super) const CONTROLS_FIGURE: &str = "sets-controls";

/// Everything that was measured at one checkpoint.
pub(super) struct Results<'a> {
    pub(super) sweep: &'a Sweep<'a>,
    pub(super) neurons: Vec<NeuronEffects>,
    pub(super) heads: Vec<HeadEffects>,
    pub(super) sets: Option<SetRun>,
    /// Of `neurons`, in their order.
    pub(super) weights: Vec<WeightStatistics>,
    pub(super) means: &'a LayerMeans,
    pub(super) bands: Vec<String>,
    /// Total effects below it have no mediated share, in nats.
    pub(super) floor: f64,
    pub(super) bootstrap: Bootstrap,
}

impl Results<'_> {
    /// Writes tables and figures; what there is to print.
    pub(super) fn write(
        &self,
        run: &RunColumns,
        out: &OutputDir,
        record: &mut RunRecord,
    ) -> anyhow::Result<String> {
        let (sweep, floor) = (self.sweep, self.floor);
        let columns = EffectColumns {
            bands: &self.bands,
            floor,
            bootstrap: (self.bootstrap.resamples > 0).then_some(self.bootstrap),
        };
        let table = |name: &str, batch: RecordBatch| -> anyhow::Result<()> {
            Ok(out.table(name, &run.before(&batch)?)?)
        };
        let mut text = String::new();
        if !self.neurons.is_empty() {
            let neurons = NeuronTable {
                effects: columns,
                weights: &self.weights,
                means: self.means,
            };
            table(NEURONS, neurons.batch(sweep, &self.neurons)?)?;
            text += &summary::neurons(sweep, &self.neurons, floor)?;
        }
        if !self.heads.is_empty() {
            table(HEADS, head_table(columns, sweep, &self.heads)?)?;
            text += &summary::heads(sweep, &self.heads, floor)?;
        }
        if let Some(sets) = &self.sets {
            let contrasts = sets.contrasts(&self.bootstrap)?;
            if !contrasts.is_empty() {
                table(SET_CONTRASTS, set_contrasts(&contrasts)?)?;
                table(BALANCE, balance(&sets.balance)?)?;
            }
            table(SETS, set_table(columns, sweep, sets)?)?;
            let about = about(run, record);
            sets.doses_figure(&about, &self.bootstrap)?
                .write(out, SETS_FIGURE, record)?;
            if let Some(figure) = sets.controls_figure(&about, &self.bootstrap)? {
                figure.write(out, CONTROLS_FIGURE, record)?;
            }
            text += &sets.summary(&self.bootstrap, &contrasts)?;
        }
        Ok(text)
    }
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
