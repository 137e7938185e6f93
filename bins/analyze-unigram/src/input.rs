//! Ablation tables: where they are, and reading them batch by batch.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use job_kit::{
    Columns, Progress, RunRecord, TableReader, WithHint,
    report::{integer, number},
};
use model_conventions::{Counted, StepName, StepNames};
use neuron_select::{
    Candidate, Grouped, NeuronEffects, NeuronId, Row, RowFilter, Stratum, Tally, Weights,
};
use serde_json::Value;

use crate::{
    config::{AnalyzeConfig, InputConfig},
    ids::{named, numbered},
    strata::Strata,
    sums,
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
    pub(crate) neurons: Option<PathBuf>,
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
    folders
        .into_iter()
        .map(|(step, path)| open_step(config, step, &path, record))
        .collect()
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
        neurons: beside("neurons.parquet"),
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
    let sums = open(sums::FILE)?;
    if positions.is_none() && sums.is_none() {
        return Err(anyhow::anyhow!(
            "`{}` holds neither {} nor positions.parquet or positions.feather",
            path.display(),
            sums::FILE
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
        let tables = self.positions.iter().chain(&self.sums);
        let beside = self.neurons.as_deref();
        tables.map(TableReader::path).chain(beside)
    }

    /// Which rows count, and how many rows, clusters and neurons there are, in words.
    pub(crate) fn about(
        &self,
        rows: RowFilter,
        (each, clusters, neurons): (usize, usize, usize),
    ) -> anyhow::Result<String> {
        let rows = match rows {
            RowFilter::None => "all".to_owned(),
            rows => rows.to_string(),
        };
        Ok(format!(
            "{rows} rows: n = {} of {} {}, {} neurons; {}",
            integer(each as i64),
            integer(clusters as i64),
            self.cluster(),
            integer(neurons as i64),
            self.about_band()?
        ))
    }

    /// How many documents or sequences have rows, in words.
    pub(crate) fn clusters(&self, grouped: &Grouped) -> String {
        let clusters = grouped.n_sequences_with_rows();
        format!("{} {}", integer(clusters as i64), self.cluster())
    }

    fn cluster(&self) -> &'static str {
        let mut tables = self.positions.iter().chain(&self.sums);
        match tables.any(|table| table.has("document")) {
            true => "documents",
            false => "sequences",
        }
    }

    /// The band that files rows, by which token, and the reading of the ablation, in words.
    pub(crate) fn about_band(&self) -> anyhow::Result<String> {
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
        parts.extend(self.reading()?.map(|reading| format!("reading {reading}")));
        Ok(parts.join(", "))
    }

    /// The reading of the ablation, as `neurons.parquet` names it.
    fn reading(&self) -> anyhow::Result<Option<String>> {
        let Some(path) = &self.neurons else {
            return Ok(None);
        };
        let table = TableReader::open(path)?;
        if !table.has("semantics") {
            return Ok(None);
        }
        Ok(table
            .read(&["semantics"])?
            .text("semantics")?
            .into_iter()
            .next())
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
        tally.set_weights(self.weights()?);
        Ok(tally)
    }

    fn tally_of_positions(&self, table: &TableReader) -> anyhow::Result<Tally> {
        // Sequences of one document are one cluster.
        let cluster = match table.has("document") {
            true => "document",
            false => "batch",
        };
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
        let change = ActivationChange::new(self)?;
        let progress = Progress::new(&format!("step {}", self.step), table.rows()? as u64, "rows");
        self.each_batch(&columns, |neurons, strata, rows| {
            let frozen_ln = frozen_ln.map(|column| rows.f64(column)).transpose()?;
            let frozen_all = frozen_all.map(|column| rows.f64(column)).transpose()?;
            let sequence = rows.i64(cluster)?;
            let [activation, loss, after, frozen, kl, kl_after] =
                [1, 2, 3, 4, 5, 6].map(|i| rows.f64(values[i]));
            let (activation, loss, after, frozen, kl, kl_after) =
                (activation?, loss?, after?, frozen?, kl?, kl_after?);
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
                    activation_change: change.of(neurons[i], activation[i]),
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
        self.each_batch(&["batch", "pos", "activation"], |neurons, strata, rows| {
            let (sequence, pos, activation) = (
                rows.i64("batch")?,
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
                        activations.insert(*neuron, (sequence[i], pos[i]), activation[i] as f32);
                    }
                }
            }
            Ok(())
        })?;
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
        let Some(path) = &self.neurons else {
            return Ok(effects
                .iter()
                .map(|e| Candidate {
                    neuron: e.neuron,
                    traits: [Some(e.activation), None],
                })
                .collect());
        };
        let table =
            TableReader::open(path)?.read(&["layer", "neuron", "mean_activation", "w_out_norm"])?;
        let ids = numbered(&table.i64("layer")?, &table.i64("neuron")?)?;
        let traits = table
            .opt_f64("mean_activation")?
            .into_iter()
            .zip(table.opt_f64("w_out_norm")?);
        let known: HashMap<NeuronId, [Option<f64>; 2]> =
            ids.into_iter().zip(traits.map(|(a, n)| [a, n])).collect();
        let candidate = |e: &NeuronEffects| {
            let traits = *known.get(&e.neuron).with_context(|| {
                format!(
                    "neuron {} of the table beside `{}` is not in it",
                    e.neuron,
                    path.display()
                )
            })?;
            Ok(Candidate {
                neuron: e.neuron,
                traits,
            })
        };
        effects.iter().map(candidate).collect()
    }

    /// What the weights say of each neuron, as far as `neurons.parquet` has it.
    fn weights(&self) -> anyhow::Result<HashMap<NeuronId, Weights>> {
        let Some(path) = &self.neurons else {
            return Ok(HashMap::new());
        };
        let table = TableReader::open(path)?;
        let columns = ["w_out_norm_centred", "logit_var", "null_share"];
        let there: Vec<&str> = columns.into_iter().filter(|c| table.has(c)).collect();
        let rows = table.read(&[&["layer", "neuron"], &there[..]].concat())?;
        let ids = numbered(&rows.i64("layer")?, &rows.i64("neuron")?)?;
        let values = |column: &str| match there.contains(&column) {
            true => rows.opt_f64(column),
            false => Ok(vec![None; ids.len()]),
        };
        let [norm, logit_var, null_share] = columns.map(values);
        let (norm, logit_var, null_share) = (norm?, logit_var?, null_share?);
        let of = |i: usize| Weights {
            norm: norm[i],
            logit_var: logit_var[i],
            null_share: null_share[i],
        };
        Ok(ids.iter().enumerate().map(|(i, id)| (*id, of(i))).collect())
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

/// What the ablation put in the place of an activation, minus the activation.
enum ActivationChange {
    Mean(HashMap<NeuronId, f64>),
    ClipAtMean(HashMap<NeuronId, f64>),
    Scale(f64),
    /// Nothing says it.
    Unknown,
}

impl ActivationChange {
    /// As the `ablation.dose` of the run has it: the mean where there is none.
    fn new(step: &StepInput) -> anyhow::Result<Self> {
        let dose = step
            .run
            .as_ref()
            .and_then(|run| run.pointer("/config/ablation/dose"));
        if let Some(factor) = dose.and_then(|dose| dose.get("scale")?.as_f64()) {
            return Ok(Self::Scale(factor));
        }
        let Some(path) = &step.neurons else {
            return Ok(Self::Unknown);
        };
        let table = TableReader::open(path)?.read(&["layer", "neuron", "mean_activation"])?;
        let ids = numbered(&table.i64("layer")?, &table.i64("neuron")?)?;
        let means = ids.into_iter().zip(table.opt_f64("mean_activation")?);
        let means = means.filter_map(|(id, mean)| Some((id, mean?))).collect();
        Ok(match dose.and_then(Value::as_str) {
            None | Some("mean") => Self::Mean(means),
            Some("clip-at-mean") => Self::ClipAtMean(means),
            Some(_) => Self::Unknown,
        })
    }

    fn of(&self, neuron: NeuronId, activation: f64) -> Option<f64> {
        match self {
            Self::Mean(means) => Some(means.get(&neuron)? - activation),
            Self::ClipAtMean(means) => Some(means.get(&neuron)?.min(activation) - activation),
            Self::Scale(factor) => Some((factor - 1.0) * activation),
            Self::Unknown => None,
        }
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
