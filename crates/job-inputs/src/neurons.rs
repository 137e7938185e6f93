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
                .map(|text| Ok(text.trim().parse()?))
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

/// Neurons of each step; none is that of a model without steps.
pub type NeuronRows = Vec<(Option<u64>, Vec<NeuronId>)>;

/// A step in words, as in "step 512".
pub fn step_in_words(step: Option<u64>) -> String {
    step.map_or("no step".to_owned(), |step| format!("step {step}"))
}

/// The row of `step`, or the only one.
fn pick(mut rows: NeuronRows, step: Option<u64>) -> anyhow::Result<Vec<NeuronId>> {
    let steps: Vec<String> = rows.iter().map(|(step, _)| step_in_words(*step)).collect();
    let steps = steps.join(", ");
    let at = match step {
        None if rows.len() == 1 => 0,
        None => bail!(
            "it has {} rows, of {steps}: set the key `step` beside `file` to one of them",
            rows.len()
        ),
        Some(step) => rows
            .iter()
            .position(|(s, _)| *s == Some(step))
            .with_context(|| format!("no row for step {step}; it has {steps}"))?,
    };
    Ok(rows.swap_remove(at).1)
}

#[derive(Debug, Deserialize)]
struct Row {
    #[serde(default)]
    step: Option<i64>,
    neurons: Vec<serde_yaml::Value>,
}

/// Neurons by step, from a table of analyze-unigram or of the Python package (`step`, and `top_neurons` or `neurons`), or from a YAML or JSON
/// list of `{step, neurons}`. No step, or -1 as the Python package has it, is that of a model without steps.
///
/// # Errors
/// If the file cannot be read, a neuron is written as a number (as one, 5.10 is 5.1), two rows are of one step, or a row names a neuron
/// twice.
pub fn neuron_rows(path: &Path) -> anyhow::Result<NeuronRows> {
    let rows = read_rows(path)?;
    for (i, (step, neurons)) in rows.iter().enumerate() {
        if let Some(first) = rows[..i].iter().position(|(other, _)| other == step) {
            bail!(
                "rows {} and {} are both of {}, and each step may have one",
                first + 1,
                i + 1,
                step_in_words(*step)
            );
        }
        let mut seen = HashMap::new();
        for (place, neuron) in neurons.iter().enumerate() {
            if let Some(first) = seen.insert(neuron, place) {
                bail!(
                    "{} names neuron {neuron} twice, as entries {} and {}",
                    step_in_words(*step),
                    first + 1,
                    place + 1
                );
            }
        }
    }
    Ok(rows)
}

fn read_rows(path: &Path) -> anyhow::Result<NeuronRows> {
    const LISTS: &[Format] = &[Format::Yaml, Format::Json];
    match Format::of(path) {
        Some((format, _)) if LISTS.contains(&format) => {}
        _ => return table_rows(path),
    }
    let rows: Vec<Row> = serde_yaml::from_str(&read_text(path, LISTS)?)
        .context("expected a list of `{step, neurons}`")?;
    rows.into_iter()
        .map(|row| {
            let step = known(row.step)?;
            let neurons = row.neurons.iter().map(|value| match value {
                serde_yaml::Value::String(text) => Ok(text.trim().parse()?),
                other => bail!(
                    "{}: neuron {} is a number, and as one 5.10 is 5.1: put quotes around it",
                    step_in_words(step),
                    serde_yaml::to_string(other)?.trim()
                ),
            });
            Ok((step, neurons.collect::<anyhow::Result<_>>()?))
        })
        .collect()
}

/// `step, top_neurons` as analyze-unigram and the Python package write it: `["3.3", "3.8"]`.
fn table_rows(path: &Path) -> anyhow::Result<NeuronRows> {
    let table = TableReader::open(path)?;
    let column = if table.has("neurons") && !table.has("top_neurons") {
        "neurons"
    } else {
        "top_neurons"
    };
    let table = table.read(&["step", column])?;
    let rows = table.opt_i64("step")?.into_iter().zip(table.text(column)?);
    rows.enumerate()
        .map(|(row, (step, list))| {
            let step = known(step).with_context(|| format!("row {row}"))?;
            let neurons =
                parse_list(list.trim()).with_context(|| format!("row {row}, column `{column}`"))?;
            Ok((step, neurons))
        })
        .collect()
}

/// The step that a file says; -1 is none, as in the tables of the Python package.
fn known(step: Option<i64>) -> anyhow::Result<Option<u64>> {
    match step {
        None | Some(-1) => Ok(None),
        Some(step) => u64::try_from(step).map(Some).with_context(|| {
            format!(
                "step {step} is below 0: expected a training step, or -1 for a model without steps"
            )
        }),
    }
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
    fn minus_one_and_nothing_are_no_step() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let rows = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text)?;
            neuron_rows(&path)
        };
        let list = "\"[\"\"3.1\"\"]\"";
        let header = "step,top_neurons\n";
        for text in ["-1", "-1.0", ""] {
            let found = rows("a.csv", &format!("{header}{text},{list}\n"))?;
            assert_eq!(found[0].0, None, "{text}");
            assert_eq!(pick(found, None)?.len(), 1);
        }
        let found = rows(
            "a.yaml",
            "[{step: -1, neurons: ['3.1']}, {step: 8, neurons: ['3.2']}]",
        )?;
        assert_eq!(found[1].0, Some(8));
        let error = |found: anyhow::Result<_>| {
            format!(
                "{:#}",
                found.err().unwrap_or_else(|| anyhow::anyhow!("none"))
            )
        };
        let message = error(pick(found, Some(4)).map(|_| ()));
        assert_eq!(message, "no row for step 4; it has no step, step 8");
        let message = error(rows("a.csv", &format!("{header}-2,{list}\n")).map(|_| ()));
        assert!(message.contains("step -2 is below 0"), "{message}");
        Ok(())
    }

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
