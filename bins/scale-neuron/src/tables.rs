//! The tables of a run.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray},
    datatypes::{Field, Schema},
    record_batch::RecordBatch,
};
use job_kit::OutputDir;
use neuron_ablate::NeuronId;
use neuron_select::{Balance, TraitBalance};
use surprisal_metrics::Interval;

use crate::results::Results;

/// What the null space holds of a neuron.
pub(crate) struct NeuronShare {
    pub(crate) neuron: NeuronId,
    pub(crate) share: f64,
    pub(crate) norm: f64,
    pub(crate) scaled: bool,
}

type Column = (&'static str, ArrayRef);

fn floats(name: &'static str, values: impl Iterator<Item = f64>) -> Column {
    (name, Arc::new(Float64Array::from_iter_values(values)))
}

/// Ends of intervals, null where there is none.
fn ends(name: &'static str, values: impl Iterator<Item = Option<f64>>) -> Column {
    (name, Arc::new(Float64Array::from_iter(values)))
}

fn ints(name: &'static str, values: impl Iterator<Item = usize>) -> Column {
    (
        name,
        Arc::new(Int64Array::from_iter_values(values.map(|v| v as i64))),
    )
}

/// Resamples without a value, null where there is no interval.
fn undefined(intervals: impl Iterator<Item = Option<Interval>>) -> Column {
    let values = intervals.map(|i| i.map(|i| i.undefined as i64));
    (
        "undefined_resamples",
        Arc::new(Int64Array::from_iter(values)),
    )
}

fn texts<S: Into<String>>(name: &'static str, values: impl Iterator<Item = Option<S>>) -> Column {
    (
        name,
        Arc::new(StringArray::from_iter(values.map(|v| v.map(Into::into)))),
    )
}

/// Files of the tables.
pub(crate) const OUTPUTS: [&str; 4] = [NEURONS, EFFECTS, CONTRASTS, BALANCE];
const NEURONS: &str = "neurons.parquet";
const EFFECTS: &str = "effects.parquet";
const CONTRASTS: &str = "contrasts.parquet";
const BALANCE: &str = "balance.parquet";

fn write(out: &OutputDir, file: &str, columns: Vec<Column>) -> anyhow::Result<()> {
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, array)| Field::new(*name, array.data_type().clone(), true))
        .collect();
    let batch = RecordBatch::try_new(
        Arc::new(Schema::new(fields)),
        columns.into_iter().map(|(_, array)| array).collect(),
    )?;
    Ok(out.table(file, &batch)?)
}

/// A row per neuron.
pub(crate) fn neurons(out: &OutputDir, neurons: &[NeuronShare]) -> anyhow::Result<()> {
    let ids = || neurons.iter().map(|of| of.neuron);
    let scaled: BooleanArray = neurons.iter().map(|of| Some(of.scaled)).collect();
    let columns = vec![
        ints("layer", ids().map(|id| id.layer)),
        ints("neuron", ids().map(|id| id.neuron)),
        texts("component_name", ids().map(|id| Some(id.to_string()))),
        floats("null_space_share", neurons.iter().map(|of| of.share)),
        floats("w_out_norm", neurons.iter().map(|of| of.norm)),
        ("scaled", Arc::new(scaled) as ArrayRef),
    ];
    write(out, NEURONS, columns)
}

/// A row per change, factor, group of rows and measure.
pub(crate) fn effects(out: &OutputDir, results: &Results) -> anyhow::Result<()> {
    let rows = &results.effects;
    let arm = |i: usize| &results.arms[rows[i].arm];
    let at = || 0..rows.len();
    let columns = vec![
        texts("scaled", at().map(|i| Some(arm(i).scaled))),
        texts("law", at().map(|i| arm(i).law)),
        texts(
            "control",
            at().map(|i| arm(i).control.map(|control| control.name())),
        ),
        ints("draw", at().map(|i| arm(i).draw)),
        floats("factor", rows.iter().map(|e| e.factor)),
        texts("targets", rows.iter().map(|e| Some(e.group.name()))),
        texts("measure", rows.iter().map(|e| Some(e.measure.name()))),
        ints("rows", rows.iter().map(|e| e.rows)),
        floats("clean", rows.iter().map(|e| e.clean)),
        floats("change", rows.iter().map(|e| e.difference)),
        ends(
            "change_low",
            rows.iter().map(|e| e.interval.map(|i| i.lower)),
        ),
        ends(
            "change_high",
            rows.iter().map(|e| e.interval.map(|i| i.upper)),
        ),
        ints("clusters", rows.iter().map(|e| e.clusters)),
        undefined(rows.iter().map(|e| e.interval)),
    ];
    write(out, EFFECTS, columns)
}

/// A row per change that is no control, kind of control, factor, group of rows and measure.
pub(crate) fn contrasts(out: &OutputDir, results: &Results) -> anyhow::Result<()> {
    let rows = &results.contrasts;
    let arm = |i: usize| &results.arms[rows[i].arm];
    let at = || 0..rows.len();
    let columns = vec![
        texts("scaled", at().map(|i| Some(arm(i).scaled))),
        texts("law", at().map(|i| arm(i).law)),
        texts("control", rows.iter().map(|c| Some(c.control.name()))),
        ints("draws", rows.iter().map(|c| c.draws)),
        floats("factor", rows.iter().map(|c| c.factor)),
        texts("targets", rows.iter().map(|c| Some(c.group.name()))),
        texts("measure", rows.iter().map(|c| Some(c.measure.name()))),
        ints("rows", rows.iter().map(|c| c.rows)),
        floats("change", rows.iter().map(|c| c.change)),
        floats("change_of_controls", rows.iter().map(|c| c.of_controls)),
        ends(
            "change_of_controls_low",
            rows.iter().map(|c| c.of_controls_interval.map(|i| i.lower)),
        ),
        ends(
            "change_of_controls_high",
            rows.iter().map(|c| c.of_controls_interval.map(|i| i.upper)),
        ),
        floats("excess", rows.iter().map(|c| c.excess)),
        ends(
            "excess_low",
            rows.iter().map(|c| c.interval.map(|i| i.lower)),
        ),
        ends(
            "excess_high",
            rows.iter().map(|c| c.interval.map(|i| i.upper)),
        ),
        ends("p", rows.iter().map(|c| c.p)),
        ends("q", rows.iter().map(|c| c.q)),
        ints("clusters", rows.iter().map(|c| c.clusters)),
        undefined(rows.iter().map(|c| c.interval)),
    ];
    write(out, CONTRASTS, columns)
}

/// A row per kind of control neurons and trait.
pub(crate) fn balance(out: &OutputDir, rows: &[TraitBalance]) -> anyhow::Result<()> {
    let value = |of: fn(Balance) -> f64| rows.iter().map(move |row| row.balance.map(of));
    let columns = vec![
        texts("kind", rows.iter().map(|row| Some(row.kind.name()))),
        texts("trait", rows.iter().map(|row| Some(row.name.as_str()))),
        ends("selection", value(|b| b.selected)),
        ends("controls", value(|b| b.controls)),
        ends("standardised_difference", value(|b| b.difference)),
        ints("selected", rows.iter().map(|row| row.selected)),
        ints(
            "without_control",
            rows.iter().map(|row| row.without_control),
        ),
    ];
    write(out, BALANCE, columns)
}
