//! Which neurons are intervened on at which step.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use job_inputs::{neuron_rows, step_in_words};
use job_kit::RunRecord;
use neuron_ablate::NeuronId;

use crate::config::NeuronsConfig;

/// Neuron sets by step.
#[derive(Debug, Clone)]
pub(crate) enum NeuronSets {
    /// None: only interventions without neurons can run.
    None,
    /// The same at every step.
    Every(Vec<NeuronId>),
    /// One per step, and the step that stands in for those without one.
    ByStep {
        sets: BTreeMap<Option<u64>, Vec<NeuronId>>,
        fallback: Option<u64>,
        file: String,
    },
}

/// Reads the neuron sets that the configuration names.
pub(crate) fn read(config: &NeuronsConfig, record: &mut RunRecord) -> anyhow::Result<NeuronSets> {
    let top = |mut neurons: Vec<NeuronId>| {
        neurons.truncate(config.top.unwrap_or(usize::MAX));
        neurons
    };
    match (&config.file, &config.list) {
        (None, None) => Ok(NeuronSets::None),
        (_, Some(list)) => {
            let neurons = list
                .iter()
                .map(|text| Ok(text.parse()?))
                .collect::<anyhow::Result<Vec<_>>>()
                .context("failed to read `neurons.list`")?;
            Ok(NeuronSets::Every(top(neurons)))
        }
        (Some(path), None) => {
            let rows = neuron_rows(path)
                .with_context(|| format!("failed to read neurons from `{}`", path.display()))?;
            record.input(path)?;
            let mut sets = BTreeMap::new();
            for (step, neurons) in rows {
                if neurons.is_empty() {
                    bail!(
                        "`{}` has no neuron for {}",
                        path.display(),
                        step_in_words(step)
                    );
                }
                sets.insert(step, top(neurons));
            }
            if let Some(fallback) = config
                .missing_step
                .filter(|step| !sets.contains_key(&Some(*step)))
            {
                bail!(
                    "`neurons.missing_step` is {fallback}, but `{}` has no row for it; it has {}",
                    path.display(),
                    in_words(&sets)
                );
            }
            Ok(NeuronSets::ByStep {
                sets,
                fallback: config.missing_step,
                file: path.display().to_string(),
            })
        }
    }
}

impl NeuronSets {
    /// The neurons of a step, and whether they are those of another.
    pub(crate) fn at(&self, step: Option<u64>) -> anyhow::Result<(&[NeuronId], Option<u64>)> {
        match self {
            Self::None => {
                bail!("the interventions need neurons: set `neurons.file` or `neurons.list`")
            }
            Self::Every(neurons) => Ok((neurons, None)),
            Self::ByStep {
                sets,
                fallback,
                file,
            } => match (sets.get(&step), fallback) {
                (Some(neurons), _) => Ok((neurons, None)),
                (None, Some(other)) => Ok((&sets[&Some(*other)], Some(*other))),
                (None, None) => bail!(
                    "`{file}` has no row for {}; it has {}. Set `neurons.missing_step` to the step whose neurons stand in, or leave the step out",
                    step_in_words(step),
                    in_words(sets)
                ),
            },
        }
    }
}

/// The steps that there are.
fn in_words(sets: &BTreeMap<Option<u64>, Vec<NeuronId>>) -> String {
    let steps: Vec<String> = sets.keys().map(|step| step_in_words(*step)).collect();
    steps.join(", ")
}
