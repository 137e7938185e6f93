//! The tables of a run.

use job_kit::{OutputDir, Table};
use neuron_ablate::NeuronId;
use neuron_select::TraitBalance;

use crate::results::{Contrast, Effect, Results};

/// What the null space holds of a neuron.
pub(crate) struct NeuronShare {
    pub(crate) neuron: NeuronId,
    pub(crate) share: f64,
    pub(crate) norm: f64,
    pub(crate) scaled: bool,
}

/// Files of the tables.
pub(crate) const OUTPUTS: [&str; 4] = [NEURONS, EFFECTS, CONTRASTS, BALANCE];
const NEURONS: &str = "neurons.parquet";
const EFFECTS: &str = "effects.parquet";
const CONTRASTS: &str = "contrasts.parquet";
const BALANCE: &str = "balance.parquet";

fn write<R>(out: &OutputDir, file: &str, table: Table<'_, R>) -> anyhow::Result<()> {
    Ok(out.table(file, &table.batch()?)?)
}

/// A row per neuron.
pub(crate) fn neurons(out: &OutputDir, neurons: &[NeuronShare]) -> anyhow::Result<()> {
    let columns = Table::of(neurons)
        .column("layer", |of| Some(of.neuron.layer as i64))
        .column("neuron", |of| Some(of.neuron.neuron as i64))
        .column("component_name", |of| Some(of.neuron.to_string()))
        .column("null_space_share", |of| Some(of.share))
        .column("w_out_norm", |of| Some(of.norm))
        .column("scaled", |of| Some(of.scaled));
    write(out, NEURONS, columns)
}

/// A row per change, factor, group of rows and measure.
pub(crate) fn effects(out: &OutputDir, results: &Results) -> anyhow::Result<()> {
    let arm = |e: &Effect| &results.arms[e.arm];
    let table = Table::of(&results.effects)
        .column("scaled", |e| Some(arm(e).scaled))
        .column("law", |e| arm(e).law)
        .column("control", |e| Some(arm(e).control?.name()))
        .column("draw", |e| Some(arm(e).draw as i64))
        .column("factor", |e| Some(e.factor))
        .column("targets", |e| Some(e.group.name()))
        .column("measure", |e| Some(e.measure.name()))
        .column("rows", |e| Some(e.rows as i64))
        .column("clean", |e| Some(e.clean))
        .column("change", |e| Some(e.difference))
        .column("change_low", |e| Some(e.interval?.lower))
        .column("change_high", |e| Some(e.interval?.upper))
        .column("clusters", |e| Some(e.clusters as i64))
        .column("undefined_resamples", |e| {
            Some(e.interval?.undefined as i64)
        });
    write(out, EFFECTS, table)
}

/// A row per change that is no control, kind of control, factor, group of rows and measure.
pub(crate) fn contrasts(out: &OutputDir, results: &Results) -> anyhow::Result<()> {
    let arm = |c: &Contrast| &results.arms[c.arm];
    let table = Table::of(&results.contrasts)
        .column("scaled", |c| Some(arm(c).scaled))
        .column("law", |c| arm(c).law)
        .column("control", |c| Some(c.control.name()))
        .column("draws", |c| Some(c.draws as i64))
        .column("factor", |c| Some(c.factor))
        .column("targets", |c| Some(c.group.name()))
        .column("measure", |c| Some(c.measure.name()))
        .column("rows", |c| Some(c.rows as i64))
        .column("change", |c| Some(c.change))
        .column("change_of_controls", |c| Some(c.of_controls))
        .column("change_of_controls_low", |c| {
            Some(c.of_controls_interval?.lower)
        })
        .column("change_of_controls_high", |c| {
            Some(c.of_controls_interval?.upper)
        })
        .column("excess", |c| Some(c.excess))
        .column("excess_low", |c| Some(c.interval?.lower))
        .column("excess_high", |c| Some(c.interval?.upper))
        .column("p", |c| c.p)
        .column("q", |c| c.q)
        .column("clusters", |c| Some(c.clusters as i64))
        .column("undefined_resamples", |c| {
            Some(c.interval?.undefined as i64)
        });
    write(out, CONTRASTS, table)
}

/// A row per kind of control neurons and trait.
pub(crate) fn balance(out: &OutputDir, rows: &[TraitBalance]) -> anyhow::Result<()> {
    let table = Table::of(rows)
        .column("kind", |row| Some(row.kind.name()))
        .column("trait", |row| Some(row.name.as_str()))
        .column("selection", |row| Some(row.balance?.selected))
        .column("controls", |row| Some(row.balance?.controls))
        .column("standardised_difference", |row| {
            Some(row.balance?.difference)
        })
        .column("selected", |row| Some(row.selected as i64))
        .column("without_control", |row| Some(row.without_control as i64));
    write(out, BALANCE, table)
}
