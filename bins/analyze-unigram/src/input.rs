//! Ablation tables: where they are, and reading them batch by batch.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use arrow::datatypes::DataType;
use job_kit::{
    Columns, Progress, RunRecord, TableReader, WithHint,
    report::{integer, number},
};
use model_conventions::{Counted, StepName, StepNames};
use neuron_select::{
    Candidate, Grouped, NeuronEffects, NeuronId, Row, RowFilter, RowSums, Stratum, Tally, Weights,
};
use serde_json::Value;

use crate::{
    config::{AnalyzeConfig, InputConfig},
    ids::{named, numbered},
    strata::Strata,
    sums::{self, cluster_column},
};

/// The table of one checkpoint.
#[derive(Debug)]
pub(crate) struct StepInput {
    /// Training step; -1 where nothing tells it, as the Python package has it.
    pub(crate) step: i64,
    /// What it counts.
    pub(crate) counted: Counted,
    /// The table of positions, if there is one.
    positions: Option<TableReader>,
    /// Sums per neuron and document, if there are any and they are filed as this analysis files rows.
    sums: Option<TableReader>,
    /// `neurons.parquet` beside it, if there is one.
    neurons: Option<NeuronFacts>,
    /// `run.json` beside it, if there is one.
    pub(crate) run: Option<Value>,
    pub(crate) strata: Strata,
    layer: Option<u32>,
}

/// Opens the tables of all steps, ascending.
pub(crate) fn open(
    config: &AnalyzeConfig,
    record: &mut RunRecord,
) -> anyhow::Result<Vec<StepInput>> {
    let input = &config.input;
    let folders: Vec<(Option<(i64, Counted)>, PathBuf)> = match &input.steps {
        None => vec![(None, input.path.clone())],
        Some(steps) => {
            let found = step_folders(&input.path, record)?;
            let wanted = steps.resolve(&found).with_context(|| {
                format!(
                    "failed to choose the folders of steps in `{}` (`input.steps`)",
                    input.path.display()
                )
            })?;
            let folder = |step: u64| {
                Some((
                    Some((i64::try_from(step).ok()?, found.counted())),
                    input.path.join(found.name(step)?),
                ))
            };
            wanted.into_iter().filter_map(folder).collect()
        }
    };
    let inputs = folders
        .into_iter()
        .map(|(step, path)| open_step(config, step, &path, record))
        .collect::<anyhow::Result<Vec<StepInput>>>()?;
    one_numbering(&inputs)?;
    Ok(inputs)
}

/// Steps are paired by document, which older tables (of 32 bits) number among those that were read, not by their rows in the corpus.
///
/// # Errors
/// If there are both.
fn one_numbering(inputs: &[StepInput]) -> anyhow::Result<()> {
    let of_type = |wanted: fn(&DataType) -> bool| {
        inputs.iter().find(|input| {
            let types = input.tables().filter_map(|table| {
                let field = table.schema().field_with_name(RowSums::DOCUMENT).ok()?;
                Some(field.data_type())
            });
            types.into_iter().any(wanted)
        })
    };
    let (older, newer) = (
        of_type(|of| *of == DataType::Int32),
        of_type(|of| *of == DataType::Int64),
    );
    if let (Some(older), Some(newer)) = (older, newer) {
        return Err(anyhow::anyhow!(
            "the tables of step {} are of an earlier version of ablate-unigram, which numbers documents otherwise than that of step {}: steps cannot be paired by document",
            older.step,
            newer.step
        ))
        .hint("run ablate-unigram again in the same folder: it computes what is of the earlier version anew");
    }
    Ok(())
}

fn open_step(
    config: &AnalyzeConfig,
    step: Option<(i64, Counted)>,
    path: &Path,
    record: &mut RunRecord,
) -> anyhow::Result<StepInput> {
    let (positions, sums) = tables(&config.input, path)?;
    let Some(table) = positions.as_ref().or(sums.as_ref()) else {
        bail!("`{}` holds no table", path.display());
    };
    let file = table.path().to_owned();
    if let (Some(layer), Some(column)) = (config.input.layer, layer_column(table)) {
        bail!(
            "`input.layer` is {layer}, but `{}` says the layer of each neuron in its column `{column}`: leave `input.layer` out",
            file.display()
        );
    }
    let beside = |name: &str| Some(file.parent()?.join(name)).filter(|path| path.is_file());
    let run = match beside(job_kit::output::RUN_RECORD) {
        None => None,
        Some(path) => {
            let text =
                fs::read(&path).with_context(|| format!("failed to read `{}`", path.display()))?;
            Some(
                serde_json::from_slice(&text)
                    .with_context(|| format!("`{}` is not JSON", path.display()))?,
            )
        }
    };
    if let Some(job) = run
        .as_ref()
        .and_then(|run: &Value| run.get("job")?.as_str())
        .filter(|job| *job != "ablate-unigram")
    {
        bail!(
            "the run.json beside `{}` is of {job}, which has replaced that of ablate-unigram: ablate again, and give every job a folder of its own",
            file.display()
        );
    }
    let step = match step {
        Some(step) => Some(step),
        None => step_of(&file, run.as_ref())
            .map(|(step, counted)| Ok::<_, std::num::TryFromIntError>((step.try_into()?, counted)))
            .transpose()?,
    };
    if step.is_none() {
        record.warn(format!(
            "nothing says of which step `{}` is: its rows have step -1; a folder `step<N>` around it says it",
            file.display()
        ));
    }
    let (step, counted) = step.unwrap_or((-1, Counted::default()));
    let strata = match &positions {
        Some(table) => Strata::new(config, table, run.as_ref())?,
        None => Strata::of_sums(config, table, run.as_ref())?,
    };
    let sums = sums.filter(|_| strata.of_the_ablation());
    Ok(StepInput {
        step,
        counted,
        positions,
        sums,
        neurons: beside("neurons.parquet")
            .map(NeuronFacts::read)
            .transpose()?,
        run,
        strata,
        layer: config.input.layer,
    })
}

/// The column that says the layer of each neuron, if there is one.
fn layer_column(table: &TableReader) -> Option<&'static str> {
    if table.has("layer") && table.has("neuron") {
        Some("layer")
    } else {
        Some("component_name").filter(|column| table.has(column))
    }
}

/// The table of positions and the one of sums: the table itself, or those in a folder.
fn tables(
    input: &InputConfig,
    path: &Path,
) -> anyhow::Result<(Option<TableReader>, Option<TableReader>)> {
    let named = match &input.table {
        Some(name) if !path.is_dir() => bail!(
            "`input.table` is `{}`, a table in a folder, but `input.path` is no folder: `{}`",
            name.display(),
            path.display()
        ),
        Some(name) => Some(path.join(name)),
        None => (!path.is_dir()).then(|| path.to_owned()),
    };
    if let Some(path) = named {
        let table = TableReader::open(&path)?;
        return Ok(match sums::are_in(&table) {
            true => (None, Some(table)),
            false => (Some(table), None),
        });
    }
    let open = |name: &str| {
        let path = path.join(name);
        path.is_file()
            .then(|| TableReader::open(&path))
            .transpose()
            .map_err(anyhow::Error::from)
    };
    let positions = match (open("positions.parquet")?, open("positions.feather")?) {
        (Some(_), Some(_)) => {
            return Err(anyhow::anyhow!(
                "`{}` holds positions.parquet and positions.feather",
                path.display()
            ))
            .hint("say which with input.table");
        }
        (parquet, feather) => parquet.or(feather),
    };
    let sums = open(RowSums::FILE)?;
    if positions.is_none() && sums.is_none() {
        return Err(anyhow::anyhow!(
            "`{}` holds neither {} nor positions.parquet or positions.feather",
            path.display(),
            RowSums::FILE
        ))
        .hint("run ablate-unigram, or name another table with input.table");
    }
    Ok((positions, sums))
}

/// Folders that are named by their step; the others are counted.
fn step_folders(root: &Path, record: &mut RunRecord) -> anyhow::Result<StepNames> {
    let failed = || format!("failed to read folder `{}`", root.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(root).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        if entry.path().is_dir()
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    let found = StepNames::among(names)
        .with_context(|| format!("`{}` has two folders of one step", root.display()))?;
    record.count("folders_that_are_no_steps", found.others().len() as u64);
    if !found.others().is_empty() {
        tracing::info!(
            "`{}`: left out, as their names are no steps: {}",
            root.display(),
            found.others().join(", ")
        );
    }
    Ok(found)
}

/// The step of the model that was ablated, and what it counts: as the run says, else from its revision or folder, or from a folder around
/// the table.
fn step_of(file: &Path, run: Option<&Value>) -> Option<(u64, Counted)> {
    let of_run = ["/config/model/revision", "/config/model/path"];
    let of_run = of_run.iter().filter_map(|at| run?.pointer(at)?.as_str());
    let of_run = of_run.filter_map(|name| Path::new(name).file_name());
    let around = file.ancestors().skip(1).filter_map(Path::file_name);
    let mut names = of_run.chain(around).filter_map(|name| name.to_str());
    let named = names.find_map(StepName::read);
    let counted = named.map_or_else(Counted::default, |name| name.counted);
    let noted = run.and_then(|run| run.pointer("/notes/step")?.as_u64());
    Some((noted.or(named.map(|name| name.step))?, counted))
}

impl StepInput {
    /// The tables that it reads.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &Path> {
        let beside = self.neurons.as_ref().map(|facts| &*facts.path);
        self.tables().map(TableReader::path).chain(beside)
    }

    fn tables(&self) -> impl Iterator<Item = &TableReader> {
        self.positions.iter().chain(&self.sums)
    }

    /// Which rows count, and how many rows, clusters and neurons there are, in words.
    pub(crate) fn about(
        &self,
        rows: RowFilter,
        (each, clusters, neurons): (usize, usize, usize),
    ) -> String {
        let rows = match rows {
            RowFilter::None => "all".to_owned(),
            rows => rows.to_string(),
        };
        format!(
            "{rows} rows: n = {} of {} {}, {} neurons; {}",
            integer(each as i64),
            integer(clusters as i64),
            self.cluster(),
            integer(neurons as i64),
            self.about_band()
        )
    }

    /// How many documents or sequences have rows, in words.
    pub(crate) fn clusters(&self, grouped: &Grouped) -> String {
        let clusters = grouped.n_sequences_with_rows();
        format!("{} {}", integer(clusters as i64), self.cluster())
    }

    fn cluster(&self) -> &'static str {
        match self.tables().any(|table| table.has(RowSums::DOCUMENT)) {
            true => "documents",
            false => "sequences",
        }
    }

    /// The band that files rows, by which token, and the reading of the ablation, in words.
    pub(crate) fn about_band(&self) -> String {
        let noted = |at: &str| self.run.as_ref()?.pointer(at);
        let bound = |name: &str| noted(&format!("/notes/band/{name}"))?.as_f64();
        let (band, token) = match self.strata.band() {
            Some((band, token)) => (Some((band.min_frequency, band.max_frequency)), Some(token)),
            None => (
                bound("min_frequency").zip(bound("max_frequency")),
                noted("/config/semantics/band_token").and_then(Value::as_str),
            ),
        };
        let mut parts = Vec::new();
        parts.push(match band {
            Some((min, max)) => format!("band {} to {}", number(min, 2), number(max, 2)),
            None => "band unknown".to_owned(),
        });
        parts.extend(token.map(|token| format!("by {token} token")));
        let reading = self.neurons.as_ref().and_then(|of| of.reading.as_ref());
        parts.extend(reading.map(|reading| format!("reading {reading}")));
        parts.join(", ")
    }

    /// The share of random output weights in the null space, as the ablation notes it.
    pub(crate) fn chance_null_share(&self) -> Option<f64> {
        let notes = self.run.as_ref()?.pointer("/notes/null_directions")?;
        notes.get("chance_share")?.as_f64()
    }

    /// Whether activations are known side by side.
    pub(crate) fn has_positions(&self) -> bool {
        self.positions.is_some()
    }

    fn positions(&self) -> anyhow::Result<&TableReader> {
        self.positions
            .as_ref()
            .with_context(|| format!("there is no table of positions of step {}", self.step))
    }

    /// Sums over all rows.
    pub(crate) fn tally(&self) -> anyhow::Result<Tally> {
        let mut tally = match &self.sums {
            Some(table) => sums::read(table)?,
            None => self.tally_of_positions(self.positions()?)?,
        };
        if let Some(facts) = &self.neurons {
            tally.set_weights(facts.of.iter().map(|(id, of)| (*id, of.weights)).collect());
        }
        Ok(tally)
    }

    fn tally_of_positions(&self, table: &TableReader) -> anyhow::Result<Tally> {
        let cluster = cluster_column(table);
        let values = [
            cluster,
            "activation",
            "loss",
            "loss_post_ablation",
            "loss_post_ablation_with_frozen_unigram",
            "kl_divergence_before",
            "kl_divergence_after",
        ];
        // Where the ablation measured it.
        let frozen_ln = Some("loss_post_ablation_with_frozen_ln").filter(|c| table.has(c));
        let frozen_all = Some("loss_post_ablation_with_frozen_all_tokens").filter(|c| table.has(c));
        let columns = values.into_iter().chain(frozen_ln).chain(frozen_all);
        let columns: Vec<&str> = columns.collect();
        let mut tally = Tally::default();
        let change = self.activation_change();
        let progress = Progress::new(&format!("step {}", self.step), table.rows()? as u64, "rows");
        self.each_batch(&columns, |neurons, strata, rows| {
            let frozen_ln = frozen_ln.map(|column| rows.f64(column)).transpose()?;
            let frozen_all = frozen_all.map(|column| rows.f64(column)).transpose()?;
            let sequence = rows.i64(cluster)?;
            let [_, activation, loss, after, frozen, kl, kl_after] = values;
            let (activation, loss, after) =
                (rows.f64(activation)?, rows.f64(loss)?, rows.f64(after)?);
            let (frozen, kl, kl_after) = (rows.f64(frozen)?, rows.f64(kl)?, rows.f64(kl_after)?);
            for i in 0..neurons.len() {
                tally.add(&Row {
                    neuron: neurons[i],
                    sequence: sequence[i],
                    stratum: strata[i],
                    loss_change: after[i] - loss[i],
                    frozen_loss_change: frozen[i] - loss[i],
                    frozen_ln_loss_change: frozen_ln.as_ref().map(|after| after[i] - loss[i]),
                    frozen_all_loss_change: frozen_all.as_ref().map(|after| after[i] - loss[i]),
                    kl_change: kl_after[i] - kl[i],
                    activation: activation[i],
                    activation_change: change(neurons[i], activation[i]),
                    clean_loss: loss[i],
                })?;
            }
            progress.inc(neurons.len() as u64);
            Ok(())
        })?;
        progress.finish();
        if tally.rows() == 0 {
            bail!("the table `{}` has no rows", table.path().display());
        }
        Ok(tally)
    }

    /// Activations of some neurons: for each of `strata` a map from neuron to its values, positions in the same order for all.
    pub(crate) fn activations(
        &self,
        wanted: &BTreeSet<NeuronId>,
        filters: &[RowFilter],
    ) -> anyhow::Result<Vec<Activations>> {
        let mut found: Vec<Activations> = filters.iter().map(|_| Activations::default()).collect();
        self.each_batch(
            &[RowSums::SEQUENCE, "pos", "activation"],
            |neurons, strata, rows| {
                let (sequence, pos, activation) = (
                    rows.i64(RowSums::SEQUENCE)?,
                    rows.i64("pos")?,
                    rows.f64("activation")?,
                );
                for (i, neuron) in neurons
                    .iter()
                    .enumerate()
                    .filter(|(_, n)| wanted.contains(n))
                {
                    for (filter, activations) in filters.iter().zip(&mut found) {
                        let kept = match filter {
                            RowFilter::LongTail => strata[i] == Stratum::LongTail,
                            RowFilter::Common => strata[i] == Stratum::Common,
                            RowFilter::None => true,
                        };
                        if kept {
                            activations.insert(
                                *neuron,
                                (sequence[i], pos[i]),
                                activation[i] as f32,
                            );
                        }
                    }
                }
                Ok(())
            },
        )?;
        Ok(found)
    }

    /// What the intervention does with each neuron, to match controls on it; `None` where the tables do not say it of every neuron.
    pub(crate) fn pushes(&self, effects: &[NeuronEffects]) -> Option<Vec<Candidate<3>>> {
        let candidate = |e: &NeuronEffects| {
            Some(Candidate {
                neuron: e.neuron,
                traits: e.push()?.traits(),
            })
        };
        effects.iter().map(candidate).collect()
    }

    /// Mean activation over the ablation's sample and output norm where `neurons.parquet` has them, else the mean activation over the rows.
    pub(crate) fn candidates(&self, effects: &[NeuronEffects]) -> anyhow::Result<Vec<Candidate>> {
        let candidate = |e: &NeuronEffects| {
            let traits = match &self.neurons {
                None => [Some(e.activation), None],
                Some(facts) => {
                    let of = facts.of.get(&e.neuron).with_context(|| {
                        format!(
                            "neuron {} of the table beside `{}` is not in it",
                            e.neuron,
                            facts.path.display()
                        )
                    })?;
                    [of.mean_activation, of.w_out_norm]
                }
            };
            Ok(Candidate {
                neuron: e.neuron,
                traits,
            })
        };
        effects.iter().map(candidate).collect()
    }

    /// What the ablation put in the place of an activation, minus the activation, as the `ablation.dose` of the run has it: the mean where there
    /// is none. None where nothing says it.
    fn activation_change(&self) -> impl Fn(NeuronId, f64) -> Option<f64> {
        let run = self.run.as_ref();
        let dose = run.and_then(|run| run.pointer("/config/ablation/dose"));
        let factor = dose.and_then(|dose| dose.get("scale")?.as_f64());
        let dose = dose.and_then(Value::as_str).unwrap_or("mean");
        let mean = |id| self.neurons.as_ref()?.of.get(&id)?.mean_activation;
        move |neuron, activation| match (factor, dose) {
            (Some(factor), _) => Some((factor - 1.0) * activation),
            (None, "mean") => Some(mean(neuron)? - activation),
            (None, "clip-at-mean") => Some(mean(neuron)?.min(activation) - activation),
            (None, _) => None,
        }
    }

    fn each_batch(
        &self,
        columns: &[&str],
        mut take: impl FnMut(&[NeuronId], &[Stratum], &Columns) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let table = self.positions()?;
        let names: &[&str] = match (layer_column(table), self.layer) {
            (Some("layer"), _) => &["layer", "neuron"],
            (None, Some(_)) => &["neuron"],
            _ => &["component_name"],
        };
        let needed: Vec<&str> = columns
            .iter()
            .chain(names)
            .copied()
            .chain(self.strata.columns())
            .collect();
        for batch in table.batches(&needed)? {
            let batch = batch?;
            let neurons = match (names, self.layer) {
                (["layer", ..], _) => numbered(&batch.i64("layer")?, &batch.i64("neuron")?)?,
                (["neuron"], Some(layer)) => {
                    let neurons = batch.i64("neuron")?;
                    numbered(&vec![i64::from(layer); neurons.len()], &neurons)?
                }
                _ => named(&batch, table)?,
            };
            take(&neurons, &self.strata.of(&batch)?, &batch)?;
        }
        Ok(())
    }
}

/// What `neurons.parquet` says.
#[derive(Debug)]
pub(crate) struct NeuronFacts {
    path: PathBuf,
    /// The reading of the ablation.
    reading: Option<String>,
    of: HashMap<NeuronId, Facts>,
}

/// What it says of a neuron.
#[derive(Debug)]
struct Facts {
    mean_activation: Option<f64>,
    w_out_norm: Option<f64>,
    weights: Weights,
}

impl NeuronFacts {
    /// As far as the table has them.
    fn read(path: PathBuf) -> anyhow::Result<Self> {
        let table = TableReader::open(&path)?;
        let names = [
            "mean_activation",
            "w_out_norm",
            "w_out_norm_centred",
            "logit_var",
            "null_share",
        ];
        let there = |name: &&str| table.has(name);
        let reading = Some("semantics").filter(there);
        let there: Vec<&str> = names.into_iter().filter(there).chain(reading).collect();
        let rows = table.read(&[&["layer", "neuron"], &there[..]].concat())?;
        let ids = numbered(&rows.i64("layer")?, &rows.i64("neuron")?)?;
        let values = names.map(|name| match there.contains(&name) {
            true => rows.opt_f64(name),
            false => Ok(vec![None; ids.len()]),
        });
        let values = values.into_iter().collect::<Result<Vec<_>, _>>()?;
        let facts = |i: usize| Facts {
            mean_activation: values[0][i],
            w_out_norm: values[1][i],
            weights: Weights {
                norm: values[2][i],
                logit_var: values[3][i],
                null_share: values[4][i],
            },
        };
        let readings = reading.map(|name| rows.text(name)).transpose()?;
        Ok(Self {
            reading: readings.into_iter().flatten().next(),
            of: ids
                .into_iter()
                .enumerate()
                .map(|(i, id)| (id, facts(i)))
                .collect(),
            path,
        })
    }
}

/// Activations of neurons at shared positions.
#[derive(Debug, Default)]
pub(crate) struct Activations {
    positions: HashMap<(i64, i64), usize>,
    values: HashMap<NeuronId, Vec<f32>>,
}

impl Activations {
    fn insert(&mut self, neuron: NeuronId, position: (i64, i64), value: f32) {
        let next = self.positions.len();
        let place = *self.positions.entry(position).or_insert(next);
        let values = self.values.entry(neuron).or_default();
        if values.len() <= place {
            values.resize(place + 1, f32::NAN);
        }
        values[place] = value;
    }

    /// Number of positions.
    pub(crate) fn positions(&self) -> usize {
        self.positions.len()
    }

    /// `[neurons, positions]`, row after row; `None` if a neuron lacks a position.
    pub(crate) fn matrix(&self, neurons: &[NeuronId]) -> Option<Vec<f32>> {
        let rows: Option<Vec<&Vec<f32>>> = neurons.iter().map(|n| self.values.get(n)).collect();
        let rows = rows?;
        let whole = rows
            .iter()
            .all(|row| row.len() == self.positions() && row.iter().all(|v| !v.is_nan()));
        whole.then(|| rows.into_iter().flatten().copied().collect())
    }
}
