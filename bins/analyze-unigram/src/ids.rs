//! Neurons as the columns of a table name them.

use anyhow::Context;
use job_kit::{Columns, TableReader};
use neuron_select::NeuronId;

pub(crate) fn numbered(layers: &[i64], neurons: &[i64]) -> anyhow::Result<Vec<NeuronId>> {
    let id = |(&layer, &neuron)| {
        let id = usize::try_from(layer)
            .ok()
            .zip(usize::try_from(neuron).ok());
        id.map(|(layer, neuron)| NeuronId { layer, neuron })
            .with_context(|| format!("layer {layer}, neuron {neuron} is not a neuron"))
    };
    layers.iter().zip(neurons).map(id).collect()
}

/// Neurons from `component_name`, which must be text: as a number `5.10` would have become `5.1`.
pub(crate) fn named(batch: &Columns, table: &TableReader) -> anyhow::Result<Vec<NeuronId>> {
    let names = batch.text("component_name")?;
    let mut last: Option<(String, NeuronId)> = None;
    let mut neurons = Vec::with_capacity(names.len());
    for name in names {
        let neuron = match &last {
            Some((text, neuron)) if *text == name => *neuron,
            _ => name.parse().with_context(|| {
                format!("column `component_name` of `{}`", table.path().display())
            })?,
        };
        neurons.push(neuron);
        last = Some((name, neuron));
    }
    Ok(neurons)
}
