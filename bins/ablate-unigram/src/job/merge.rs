//! Shards of a run put together: the tables that the run itself would have written.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use arrow::{
    array::RecordBatchReader, compute::concat_batches, error::ArrowError, ipc::reader::FileReader,
    record_batch::RecordBatch,
};
use job_kit::{Format, OutputDir, RunRecord, TableWriter, WithHint, output::RUN_RECORD};
use neuron_select::RowSums;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

use super::{NEURONS, positions_file};
use crate::{
    config::{AblateConfig, Shard},
    start::documents_are_of_before,
};

/// Puts the tables of the shards in the folders below one together, at one checkpoint.
pub(super) fn run(
    config: &AblateConfig,
    resolved: &Value,
    (below, revision): (&Path, Option<&str>),
    out: &OutputDir,
    mut record: RunRecord,
) -> anyhow::Result<()> {
    let revision = config.model.steps.as_ref().and(revision);
    let shards = shards(resolved, below, revision)?;
    let before = |shard: &&PathBuf| documents_are_of_before(&shard.join(RowSums::FILE));
    if let Some(shard) = shards.iter().find(before) {
        return Err(anyhow::anyhow!(
            "the tables in `{}` are of an earlier version, which numbers documents otherwise",
            shard.display()
        ))
        .hint("run the sweep over `ablation.shard` again, in another folder");
    }
    let tables = |name: &str| {
        shards
            .iter()
            .map(|shard| shard.join(name))
            .collect::<Vec<_>>()
    };

    let mut streamed = vec![(RowSums::FILE.to_owned(), Format::Parquet)];
    if config.output.positions {
        streamed.push(positions_file(config));
    }
    for (name, format) in streamed {
        let mut writer: Option<TableWriter> = None;
        for path in tables(&name) {
            record.input(&path)?;
            for batch in rows(&path)? {
                let batch =
                    batch.with_context(|| format!("failed to read `{}`", path.display()))?;
                if writer.is_none() {
                    writer = Some(TableWriter::to(out.file(&name)?, batch.schema(), format)?);
                }
                if let Some(writer) = &mut writer {
                    writer.write(&batch)?;
                }
            }
        }
        if let Some(writer) = writer {
            writer.finish()?;
        }
    }
    let mut batches = vec![];
    for path in tables(NEURONS) {
        record.input(&path)?;
        let read: Result<Vec<RecordBatch>, ArrowError> = rows(&path)?.collect();
        batches.extend(read.with_context(|| format!("failed to read `{}`", path.display()))?);
    }
    let schema = batches
        .first()
        .context("the shards have no neurons")?
        .schema();
    let table = concat_batches(&schema, &batches)
        .with_context(|| format!("the shards in `{}` are of other columns", below.display()))?;
    out.table(NEURONS, &table)?;
    record.count("shards", shards.len() as u64);
    record.count("neurons", table.num_rows() as u64);
    record.write(out)?;
    Ok(job_kit::print(format!(
        "{} neurons of {} shards\nFiles: {}\n",
        table.num_rows(),
        shards.len(),
        out.path().display()
    ))?)
}

/// The folders of the shards of a run, in their order.
fn shards(resolved: &Value, below: &Path, revision: Option<&str>) -> anyhow::Result<Vec<PathBuf>> {
    let wanted = whole(resolved);
    let entries = fs::read_dir(below)
        .with_context(|| format!("failed to read the folder of shards `{}`", below.display()))
        .hint("`merge` is the folder of a sweep over `ablation.shard`")?;
    // By number of shards, and then by part.
    let mut found: BTreeMap<usize, BTreeMap<usize, PathBuf>> = BTreeMap::new();
    for entry in entries {
        let mut folder = entry
            .with_context(|| format!("failed to read `{}`", below.display()))?
            .path();
        if let Some(revision) = revision {
            folder.push(revision);
        }
        let Ok(json) = fs::read(folder.join(RUN_RECORD)) else {
            continue;
        };
        let Ok(run) = serde_json::from_slice::<Value>(&json) else {
            continue;
        };
        let shard = run["config"]["ablation"]["shard"].as_str();
        let shard = shard.and_then(|text| Shard::try_from(text.to_owned()).ok());
        if let Some(Shard { part, of }) = shard
            && whole(&run["config"]) == wanted
        {
            found.entry(of).or_default().insert(part, folder);
        }
    }
    let Some((of, parts)) = found
        .into_iter()
        .max_by_key(|(of, parts)| (parts.len() == *of, parts.len()))
    else {
        return Err(anyhow::anyhow!(
            "no folder in `{}` holds a shard of this run{}",
            below.display(),
            revision.map(|revision| format!(" at {revision}")).unwrap_or_default()
        ))
        .hint("a shard has the same configuration, but for `ablation.shard`, `merge` and `output.dir`");
    };
    let missing: Vec<String> = (1..=of)
        .filter(|part| !parts.contains_key(part))
        .map(|part| format!("{part}/{of}"))
        .collect();
    if !missing.is_empty() {
        bail!(
            "`{}` lacks {} of {of} shards of this run: {}",
            below.display(),
            missing.len(),
            missing.join(", ")
        );
    }
    Ok(parts.into_values().collect())
}

/// A configuration without what tells shards and the whole apart; through text, as numbers may change in their last bit on the way.
fn whole(config: &Value) -> Option<Value> {
    let mut config = config.clone();
    config["ablation"]["shard"] = Value::Null;
    config["merge"] = Value::Null;
    config["output"]["dir"] = Value::Null;
    serde_json::from_str(&config.to_string()).ok()
}

/// The rows of a table that this job wrote.
fn rows(path: &Path) -> anyhow::Result<Box<dyn RecordBatchReader>> {
    let failed = || format!("failed to read `{}`", path.display());
    let file = File::open(path).with_context(failed)?;
    Ok(match Format::from_path(path)? {
        Format::Feather => Box::new(FileReader::try_new(file, None).with_context(failed)?),
        _ => {
            let reader = ParquetRecordBatchReaderBuilder::try_new(file).with_context(failed)?;
            Box::new(reader.build().with_context(failed)?)
        }
    })
}
