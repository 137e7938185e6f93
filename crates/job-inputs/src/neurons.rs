//! Neurons from a file or a list.

use std::{collections::HashMap, path::Path};

use anyhow::{Context, bail};
use input_files::{Format, TableReader, read_text};
use job_kit::RunRecord;
use neuron_ablate::NeuronId;
use serde::Deserialize;

use crate::NeuronsConfig;

impl NeuronsConfig {
    /// The neurons, best first.
    ///
    /// # Errors
    /// If neither file nor list is given, the file cannot be read, or it does not say which row is meant.
    pub fn resolve(&self, record: &mut RunRecord) -> anyhow::Result<Vec<NeuronId>> {
        let mut neurons = match (&self.file, &self.list) {
            (None, None) => bail!(
                "no neurons: set `neurons.file` to a table of analyze-unigram, or `neurons.list`"
            ),
            (_, Some(list)) => list
                .iter()
                .map(|text| Ok(text.parse()?))
                .collect::<anyhow::Result<Vec<NeuronId>>>()
                .context("failed to read `neurons.list`")?,
            (Some(path), None) => {
                let rows = neuron_rows(path)
                    .with_context(|| format!("failed to read neurons from `{}`", path.display()))?;
                record.input(path)?;
                pick(rows, self.step).with_context(|| {
                    format!("failed to choose neurons from `{}`", path.display())
                })?
            }
        };
        neurons.truncate(self.top.unwrap_or(usize::MAX));
        if neurons.is_empty() {
            bail!("the list of neurons is empty: widen the selection, or set `neurons.list`");
        }
        Ok(neurons)
    }
}

/// The row of `step`, or the only one.
fn pick(mut rows: Vec<(u64, Vec<NeuronId>)>, step: Option<u64>) -> anyhow::Result<Vec<NeuronId>> {
    let steps: Vec<u64> = rows.iter().map(|(step, _)| *step).collect();
    let at = match step {
        None if rows.len() == 1 => 0,
        None => bail!(
            "it has {} rows, of steps {steps:?}: set `neurons.step`",
            rows.len()
        ),
        Some(step) => steps
            .iter()
            .position(|s| *s == step)
            .with_context(|| format!("no row for step {step}; its steps are {steps:?}"))?,
    };
    Ok(rows.swap_remove(at).1)
}

#[derive(Debug, Deserialize)]
struct Row {
    step: u64,
    neurons: Vec<serde_yaml::Value>,
}

/// Neurons by step, from a table of analyze-unigram or of the Python package (`step`, and `top_neurons` or `neurons`), or from a YAML or JSON
/// list of `{step, neurons}`.
///
/// # Errors
/// If the file cannot be read, a neuron is written as a number (as one, 5.10 is 5.1), two rows are of one step, or a row names a neuron
/// twice.
pub fn neuron_rows(path: &Path) -> anyhow::Result<Vec<(u64, Vec<NeuronId>)>> {
    let rows = read_rows(path)?;
    for (i, (step, neurons)) in rows.iter().enumerate() {
        if let Some(first) = rows[..i].iter().position(|(other, _)| other == step) {
            bail!(
                "rows {} and {} are both of step {step}, and each step may have one",
                first + 1,
                i + 1
            );
        }
        let mut seen = HashMap::new();
        for (place, neuron) in neurons.iter().enumerate() {
            if let Some(first) = seen.insert(neuron, place) {
                bail!(
                    "step {step} names neuron {neuron} twice, as entries {} and {}",
                    first + 1,
                    place + 1
                );
            }
        }
    }
    Ok(rows)
}

fn read_rows(path: &Path) -> anyhow::Result<Vec<(u64, Vec<NeuronId>)>> {
    const LISTS: &[Format] = &[Format::Yaml, Format::Json];
    match Format::of(path) {
        Some((format, _)) if LISTS.contains(&format) => {}
        _ => return table_rows(path),
    }
    let rows: Vec<Row> = serde_yaml::from_str(&read_text(path, LISTS)?)
        .context("expected a list of `{step, neurons}`")?;
    rows.into_iter()
        .map(|row| {
            let neurons = row.neurons.iter().map(|value| match value {
                serde_yaml::Value::String(text) => Ok(text.trim().parse()?),
                other => bail!(
                    "step {}: neuron {} is a number, and as one 5.10 is 5.1: put quotes around it",
                    row.step,
                    serde_yaml::to_string(other)?.trim()
                ),
            });
            Ok((row.step, neurons.collect::<anyhow::Result<_>>()?))
        })
        .collect()
}

/// `step, top_neurons` as analyze-unigram and the Python package write it: `["3.3", "3.8"]`.
fn table_rows(path: &Path) -> anyhow::Result<Vec<(u64, Vec<NeuronId>)>> {
    let table = TableReader::open(path)?;
    let column = if table.has("neurons") && !table.has("top_neurons") {
        "neurons"
    } else {
        "top_neurons"
    };
    let table = table.read(&["step", column])?;
    let rows = table.i64("step")?.into_iter().zip(table.text(column)?);
    rows.enumerate()
        .map(|(row, (step, list))| {
            let step = u64::try_from(step)
                .with_context(|| format!("row {row}: step {step} is below 0"))?;
            let neurons =
                parse_list(list.trim()).with_context(|| format!("row {row}, column `{column}`"))?;
            Ok((step, neurons))
        })
        .collect()
}

fn parse_list(text: &str) -> anyhow::Result<Vec<NeuronId>> {
    let inner = text
        .strip_prefix('[')
        .and_then(|t| t.strip_suffix(']'))
        .with_context(|| format!("`{text}` is not a list such as [\"3.3\", \"3.8\"]"))?;
    if inner.trim().is_empty() {
        return Ok(Vec::new());
    }
    inner
        .split(',')
        .map(|item| {
            let item = item.trim();
            let quoted = ['"', '\'']
                .iter()
                .find_map(|&q| item.strip_prefix(q)?.strip_suffix(q));
            let id = quoted.with_context(|| {
                format!("neuron {item} has no quotes: written as a number, 5.10 is 5.1")
            })?;
            Ok(id.trim().parse()?)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_keep_text_as_text() -> anyhow::Result<()> {
        let ids = parse_list(r#"["5.10", '5.1',"3.200"]"#)?;
        assert_eq!(
            ids.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["5.10", "5.1", "3.200"]
        );
        assert_eq!(parse_list("[]")?, []);
        for bad in ["[5.10, 5.1]", "5.10", "[\"5\"]", "[\"5.1'"] {
            assert!(parse_list(bad).is_err(), "{bad}");
        }
        Ok(())
    }
}
