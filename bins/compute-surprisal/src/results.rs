//! The tables of a finished run.

use std::collections::HashMap;

use anyhow::Context;
use arrow::array::RecordBatch;
use job_inputs::step_in_words;
use job_kit::{Format, RunRecord, Table, TableWriter};

use crate::config::{Reading, SurprisalConfig};
use crate::contrasts::{self, Contrast, DrawnAt};
use crate::figures;
use crate::inputs::Inputs;
use crate::interventions::{Facts, InterventionSpec};
use crate::store::{FORMS, Row};
use crate::summary::{self, Acquired, Line, Step};

const SURPRISAL: &str = "surprisal.parquet";
/// Tables that are written as CSV and as Parquet.
const SUMMARY: &str = "summary";
const ACQUISITION: &str = "acquisition";
const CONTRASTS: &str = "contrasts";
const BALANCE: &str = "balance.parquet";
const NEURONS: &str = "neurons.parquet";

/// All files that a run may write.
pub(crate) fn outputs(config: &SurprisalConfig, list: &[InterventionSpec]) -> Vec<String> {
    let mut outputs = vec![SURPRISAL.to_owned()];
    outputs.extend(both(SUMMARY));
    if list.iter().any(|spec| spec.controls().is_some()) {
        outputs.extend(both(CONTRASTS));
        outputs.push(BALANCE.to_owned());
    }
    if list.iter().any(InterventionSpec::needs_neurons) {
        outputs.push(NEURONS.to_owned());
    }
    if config.wide() {
        let names = list.iter().flat_map(InterventionSpec::names);
        outputs.extend(names.map(|name| wide_file(&name)));
    }
    if config.output.acquisition {
        outputs.extend(both(ACQUISITION));
    }
    outputs.extend(figures::outputs());
    outputs
}

/// Names of a table in both of its formats.
fn both(table: &str) -> [String; 2] {
    [Format::Csv, Format::Parquet].map(|format| format!("{table}.{}", format.extension()))
}

/// Writes a table in both of its formats.
fn write_both(inputs: &Inputs<'_>, name: &str, table: &RecordBatch) -> anyhow::Result<()> {
    for file in both(name) {
        inputs.out.table(&file, table)?;
    }
    Ok(())
}

/// Writes all tables and figures; gives the text for the terminal.
pub(crate) fn write(inputs: &Inputs<'_>, record: &mut RunRecord) -> anyhow::Result<String> {
    let (lines, contrasts) = tidy(inputs, record)?;
    let table = summary::table(&lines, inputs.setup.config.unit)?;
    write_both(inputs, SUMMARY, &table)?;
    let drawn = drawn(inputs, record)?;
    let unsure = (summary::undecided(&lines), contrasts::undecided(&contrasts));
    if unsure != (0, 0) {
        record.warn(format!(
            "p is at most 0.05 while the interval of the same change includes 0 in {} rows of {SUMMARY}.csv and {} of {CONTRASTS}.csv: a rank or a sign test says that something differs, not which way the mean goes",
            unsure.0, unsure.1
        ));
    }
    if !drawn.is_empty() {
        let table = contrasts::table(&contrasts, inputs.setup.config.unit)?;
        write_both(inputs, CONTRASTS, &table)?;
        inputs.out.table(BALANCE, &contrasts::balance(&drawn)?)?;
    }
    if inputs
        .setup
        .list
        .iter()
        .any(InterventionSpec::needs_neurons)
    {
        let selected = inputs.setup.steps.iter();
        let selected: Vec<_> = selected.map(|&s| (s, inputs.store.selected(s))).collect();
        let table = contrasts::neurons(&inputs.setup.list, &selected, &drawn)?;
        inputs.out.table(NEURONS, &table)?;
    }
    if inputs.setup.config.wide() {
        wide(inputs)?;
    }
    let learned = match inputs.setup.config.output.acquisition {
        true => acquisition(inputs, record)?,
        false => Vec::new(),
    };
    figures::write(inputs, (&lines, &contrasts, &drawn), &learned, record)?;
    Ok(summary::text(&lines, inputs.setup.config.unit) + &contrasts::text_of_last(&contrasts))
}

/// The control sets of every step and entry of the list; those without a match go into the record.
fn drawn(inputs: &Inputs<'_>, record: &mut RunRecord) -> anyhow::Result<Vec<DrawnAt>> {
    let mut all = Vec::new();
    for &step in &inputs.setup.steps {
        let mut drawn = inputs.store.drawn(step)?;
        for spec in &inputs.setup.list {
            let Some(drawn) = drawn.remove(&spec.name()) else {
                continue;
            };
            if !drawn.unmatched.is_empty() {
                record.warn(format!(
                    "{}: {} selected neurons have no neuron alike within `controls.caliper` = {} standard deviations and are left out where the others are held against `{}`: {}",
                    step_in_words(step),
                    drawn.unmatched.len(),
                    inputs.setup.config.controls.caliper,
                    spec.name(),
                    drawn.unmatched.join(", ")
                ));
            }
            all.push(DrawnAt {
                step,
                intervention: spec.name(),
                drawn,
            });
        }
    }
    Ok(all)
}

/// `surprisal.parquet`, and the summary on the way.
fn tidy(inputs: &Inputs<'_>, record: &mut RunRecord) -> anyhow::Result<(Vec<Line>, Vec<Contrast>)> {
    let schema = batch(inputs, None, &[])?.schema();
    let mut writer = TableWriter::to(inputs.out.file(SURPRISAL)?, schema, Format::Parquet)?;
    let (mut lines, mut contrasts) = (Vec::new(), Vec::new());
    for &step in &inputs.setup.steps {
        let rows = inputs.store.read(step, &inputs.setup.names)?;
        writer.write(&batch(inputs, step, &rows)?)?;
        let values = rows.iter().map(|row| {
            (
                row.intervention.as_str(),
                row.pair as usize,
                inputs.setup.shown(row),
            )
        });
        let of_step = Step::new(step, &inputs.setup.list, &inputs.setup.words, values);
        lines.extend(of_step.lines(inputs.setup.config.seed)?);
        let drawn = inputs.store.drawn(step)?;
        contrasts.extend(of_step.contrasts(&drawn, inputs.setup.config.seed)?);
    }
    summary::adjust(&mut lines);
    contrasts::adjust(&mut contrasts);
    record.count("rows", writer.finish()?);
    Ok((lines, contrasts))
}

fn batch(inputs: &Inputs<'_>, step: Option<u64>, rows: &[Row]) -> anyhow::Result<RecordBatch> {
    let (config, words) = (inputs.setup.config, &inputs.setup.words);
    let pair = |row: &Row| &words.pairs[row.pair as usize];
    let facts: HashMap<String, Facts> = inputs
        .setup
        .list
        .iter()
        .flat_map(InterventionSpec::facts)
        .collect();
    let facts: Vec<&Facts> = rows
        .iter()
        .map(|row| {
            facts
                .get(&row.intervention)
                .with_context(|| format!("no intervention is called `{}`", row.intervention))
        })
        .collect::<anyhow::Result<_>>()?;
    let has_bos =
        config.words.bos_only || (config.words.bos && config.reading == Reading::Corrected);
    let context_tokens = |row: &Row| {
        let start = inputs.setup.requests[row.pair as usize].word.start;
        (start - usize::from(has_bos && start > 0)) as u32
    };
    let position = |row: &Row| match config.words.bos_only {
        true => 0,
        false => pair(row).context.split_whitespace().count() as u32,
    };
    let unit = |nats: Option<f64>| nats.map(|nats| config.unit.from_nats(nats));
    let mut base: HashMap<u32, (Option<f64>, Option<f64>)> = HashMap::new();
    for row in rows.iter().filter(|row| row.intervention == "base") {
        base.insert(row.pair, (inputs.setup.shown(row), row.entropy_nats));
    }
    let base_of = |row: &Row| base.get(&row.pair).and_then(|(shown, _)| *shown);
    let name = config.model.path.as_ref().map_or_else(
        || config.model.repo.clone().unwrap_or_default(),
        |path| path.display().to_string(),
    );
    let step = step.map(i64::try_from).transpose()?;
    let mut table = Table::of(rows)
        .column("model", |_| name.as_str())
        .column("step", |_| step)
        .column("seed", |_| config.seed)
        .column("intervention", |r| r.intervention.as_str())
        .values("operation", facts.iter().map(|f| f.operation.as_str()))
        .values("neurons", facts.iter().map(|f| f.neurons))
        .values("dose", facts.iter().map(|f| f.dose))
        .values("draw", facts.iter().map(|f| f.draw))
        .column("group", |r| {
            words.groups[words.group[r.pair as usize]].as_str()
        })
        .column("long_tail_token", |r| {
            Some(words.long_tail.as_ref()?[r.pair as usize])
        })
        .column("word", |r| pair(r).word.as_str())
        .column("zipf", |r| pair(r).zipf)
        .column("context_id", |r| pair(r).context_id)
        .column("document", |r| pair(r).document.as_ref()?.row())
        .column("document_name", |r| pair(r).document.as_ref()?.name())
        .column("position", position)
        .column("context_tokens", context_tokens)
        .column("start", |r| r.start.as_str())
        .column("pieces", |r| r.pieces);
    let of_unit = config.unit.name();
    for (place, form) in FORMS.iter().enumerate() {
        table = table.column(format!("{form}_{of_unit}"), |r| unit(r.nats[place]));
    }
    let table = table
        // What the corrected form adds to the sum of the pieces: B(before) - B(after).
        .column(format!("boundary_{of_unit}"), |r| {
            unit(Some(r.nats[0]? - r.nats[2]?))
        })
        .column(format!("base_{of_unit}"), base_of)
        .column(format!("change_{of_unit}"), |r| {
            Some(inputs.setup.shown(r)? - base_of(r)?)
        })
        .column(format!("base_entropy_{of_unit}"), |r| {
            unit(base.get(&r.pair)?.1)
        });
    Ok(table.batch()?)
}

fn wide_file(intervention: &str) -> String {
    format!("wide/{intervention}.csv")
}

/// `wide/<intervention>.csv`, as the Python package writes it: a row per word and context, a column per step (`no step` for a model without). The column `unit`
/// keeps tables of nats and of bits from being joined.
fn wide(inputs: &Inputs<'_>) -> anyhow::Result<()> {
    for name in inputs.setup.list.iter().flat_map(InterventionSpec::names) {
        let by_step = by_step(inputs, std::slice::from_ref(&name))?;
        let file = inputs.out.file(&wide_file(&name))?;
        let path = file.path().to_owned();
        let mut writer = csv::Writer::from_writer(file);
        let steps = inputs.setup.steps.iter();
        let steps = steps.map(|step| step.map_or("no step".to_owned(), |step| step.to_string()));
        writer.write_record(
            ["target_word", "context_id", "context", "unit"]
                .map(String::from)
                .into_iter()
                .chain(steps),
        )?;
        for (i, pair) in inputs.setup.words.pairs.iter().enumerate() {
            let values = by_step
                .iter()
                .map(|values| values[i].map_or(String::new(), |v| v.to_string()));
            let key = [
                pair.word.clone(),
                pair.context_id.to_string(),
                pair.context.clone(),
                inputs.setup.config.unit.name().to_owned(),
            ];
            writer.write_record(key.into_iter().chain(values))?;
        }
        let file = writer.into_inner().map_err(|err| {
            anyhow::anyhow!("failed to write `{}`: {}", path.display(), err.error())
        })?;
        file.commit()?;
    }
    Ok(())
}

/// `[step][pair]`: the mean over some interventions (the draws of a control set, or a single one).
fn by_step(inputs: &Inputs<'_>, names: &[String]) -> anyhow::Result<Vec<Vec<Option<f64>>>> {
    inputs
        .setup
        .steps
        .iter()
        .map(|&step| {
            let rows = inputs.store.read(step, names)?;
            let values = rows
                .iter()
                .map(|row| (row.pair as usize, inputs.setup.shown(row)));
            Ok(summary::mean_by_pair(
                inputs.setup.words.pairs.len(),
                values,
            ))
        })
        .collect()
}

/// `acquisition.csv`: when each word was learned, under each intervention.
fn acquisition(inputs: &Inputs<'_>, record: &mut RunRecord) -> anyhow::Result<Vec<Acquired>> {
    let steps: Vec<u64> = inputs.setup.steps.iter().flatten().copied().collect();
    if steps.iter().filter(|&&step| step > 0).count() < 4 {
        tracing::info!("learning curves need four steps above 0: acquisition.csv is not written");
        record.note("acquisition", "not written: fewer than four steps above 0");
        return Ok(Vec::new());
    }
    let mut learned = Vec::new();
    for spec in &inputs.setup.list {
        let by_step = by_step(inputs, &spec.names())?;
        let rows = inputs.store.read(inputs.setup.steps[0], &spec.names())?;
        let of_rows = rows.iter().map(|row| {
            (
                row.pair as usize,
                Some(inputs.setup.chance(row.pieces as usize)),
            )
        });
        let chance = summary::mean_by_pair(inputs.setup.words.pairs.len(), of_rows);
        learned.extend(summary::acquired(
            &spec.name(),
            &steps,
            &inputs.setup.words,
            &by_step,
            &chance,
        )?);
    }
    let table = summary::acquisition_table(&learned, inputs.setup.config.unit)?;
    write_both(inputs, ACQUISITION, &table)?;
    Ok(learned)
}
