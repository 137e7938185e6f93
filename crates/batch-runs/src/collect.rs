//! What the jobs of a sweep have written, seen as one: tables that open as one table, and a report.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context;
use job_kit::{
    output::RUN_RECORD,
    report::{Grid, Report, Section},
    write_file,
};

use crate::{
    manifest::{Entry, Manifest, State},
    values::key,
};

/// The folder of the tables, and while it is made.
const TABLES: &str = "tables";
const UNDER_WAY: &str = ".tables";
/// The page of a sweep, and of a job that writes one.
pub(crate) const REPORT: &str = "report.html";
/// What stands for a value that a job does not have, as in Hive.
const NONE: &str = "__HIVE_DEFAULT_PARTITION__";
/// Figures of more jobs than these are left to the reports of the jobs.
const MOST_FIGURES: usize = 24;

/// Puts the tables of all finished jobs together, and writes the report.
///
/// A table `neurons.parquet` of a job becomes `tables/neurons/sweep.KEY=VALUE/.../sweep.job=NUMBER/part.parquet`, another name of the same file,
/// so that pandas, polars, Arrow and DuckDB open `tables/neurons` as one table with the swept keys as columns.
///
/// # Errors
/// If a folder cannot be read or written.
pub(crate) fn collect(manifest: &Manifest) -> anyhow::Result<()> {
    let finished = |entry: &&Entry| entry.state == State::Finished;
    let jobs: Vec<&Entry> = manifest.jobs.iter().filter(finished).collect();
    let keys = swept(&jobs);
    let (under_way, tables) = (
        manifest.folder.join(UNDER_WAY),
        manifest.folder.join(TABLES),
    );
    remove(&under_way)?;
    let mut parts: BTreeMap<String, usize> = BTreeMap::new();
    let mut figures: BTreeMap<String, Vec<(&Entry, PathBuf)>> = BTreeMap::new();
    for entry in &jobs {
        let folder = manifest.folder.join(entry.number.to_string());
        for (run, outputs) in outputs(&folder)? {
            for name in outputs {
                let file = folder.join(&run).join(&name);
                if let Some(table) = name.strip_suffix(".parquet") {
                    *parts.entry(table.to_owned()).or_default() += 1;
                    let to = partition(&under_way.join(table), entry, &keys);
                    let part = match &*run {
                        "" => "part.parquet".to_owned(),
                        run => format!("{run}.parquet"),
                    };
                    link(&file, &to, &part)?;
                } else if let Some(figure) = name.strip_suffix(".svg").filter(|_| run.is_empty()) {
                    let of = figures.entry(figure.to_owned()).or_default();
                    of.push((entry, file));
                }
            }
        }
    }
    if under_way.is_dir() {
        remove(&tables)?;
        fs::rename(&under_way, &tables)
            .with_context(|| format!("failed to write `{}`", tables.display()))?;
    }
    let page = page(manifest, &keys, &parts, &figures)?;
    Ok(write_file(manifest.folder.join(REPORT), page)?)
}

/// Whether it was done in this folder.
pub(crate) fn is_there(folder: &Path) -> bool {
    folder.join(REPORT).is_file()
}

/// The keys that finished jobs differ in, in alphabetical order.
fn swept(jobs: &[&Entry]) -> Vec<String> {
    let mut values: BTreeMap<String, BTreeSet<Option<String>>> = BTreeMap::new();
    let keys: BTreeSet<String> = jobs
        .iter()
        .flat_map(|entry| entry.overrides.iter().map(|text| key(text)))
        .collect();
    for (entry, key) in jobs
        .iter()
        .flat_map(|entry| keys.iter().map(move |key| (entry, key)))
    {
        values
            .entry(key.clone())
            .or_default()
            .insert(value(entry, key));
    }
    values.retain(|_, values| values.len() > 1);
    values.into_keys().collect()
}

/// The value that a job has for a key, as it was typed.
fn value(entry: &Entry, of: &str) -> Option<String> {
    let mut overrides = entry.overrides.iter().rev();
    let text = overrides.find(|text| key(text) == of)?;
    text.split_once('=').map(|(_, value)| value.to_owned())
}

/// The folder of a job's part of a table.
fn partition(table: &Path, entry: &Entry, keys: &[String]) -> PathBuf {
    let mut path = table.to_owned();
    for key in keys {
        let value = value(entry, key).map_or(NONE.to_owned(), |value| encoded(&value));
        path.push(format!("sweep.{}={value}", encoded(key)));
    }
    path.join(format!("sweep.job={}", entry.number))
}

/// A text as a part of a path, as Hive writes it.
fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-' => {
                char::from(byte).to_string()
            }
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

/// The names of the outputs in a job's folder, and in the folders of its checkpoints, by their names.
fn outputs(folder: &Path) -> anyhow::Result<Vec<(String, Vec<String>)>> {
    let read = |folder: &Path| {
        let json = fs::read(folder.join(RUN_RECORD)).ok()?;
        let record: serde_json::Value = serde_json::from_slice(&json).ok()?;
        Some(
            record["outputs"]
                .as_object()?
                .keys()
                .cloned()
                .collect::<Vec<_>>(),
        )
    };
    if let Some(outputs) = read(folder) {
        return Ok(vec![(String::new(), outputs)]);
    }
    let entries = fs::read_dir(folder)
        .and_then(|entries| entries.collect::<io::Result<Vec<_>>>())
        .with_context(|| format!("failed to read `{}`", folder.display()))?;
    let mut found: Vec<(String, Vec<String>)> = entries
        .iter()
        .filter_map(|entry| {
            let name = entry.file_name().to_str()?.to_owned();
            Some((name, read(&entry.path())?))
        })
        .collect();
    found.sort();
    Ok(found)
}

/// Gives `file` a further name, or copies it where the file system has no further names.
fn link(file: &Path, folder: &Path, name: &str) -> anyhow::Result<()> {
    let to = folder.join(name);
    fs::create_dir_all(folder)
        .and_then(|()| fs::hard_link(file, &to).or_else(|_| fs::copy(file, &to).map(drop)))
        .with_context(|| format!("failed to put `{}` at `{}`", file.display(), to.display()))
}

fn remove(folder: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove `{}`", folder.display()))
        }
        _ => Ok(()),
    }
}

fn page(
    manifest: &Manifest,
    keys: &[String],
    parts: &BTreeMap<String, usize>,
    figures: &BTreeMap<String, Vec<(&Entry, PathBuf)>>,
) -> anyhow::Result<String> {
    let of = |entry: &Entry, key: &String| value(entry, key).unwrap_or_else(|| "–".into());
    let grid = Grid::of(&manifest.jobs).column("job", |entry| entry.number.to_string());
    let grid = keys
        .iter()
        .fold(grid, |grid, key| grid.column(key, |entry| of(entry, key)))
        .column("state", |entry| entry.state.name())
        .column("seconds", |entry| entry.seconds);
    let mut report = Report::new(&format!("Sweep of {}", manifest.job))
        .fact("folder", manifest.folder.display())
        .fact("jobs", manifest.jobs.len())
        .section(
            Section::new("Jobs")
                .text("`NUMBER/report.html`, where a job writes one, says more of it; `NUMBER/job.log` is all that it said.")
                .grid(grid),
        );
    if !parts.is_empty() {
        let grid = Grid::of(parts)
            .column("table", |(table, _)| format!("{TABLES}/{table}"))
            .column("parts", |(_, parts)| **parts);
        report = report.section(
            Section::new("Tables of all jobs")
                .text("Each opens as one table, with a column `sweep.KEY` for each key that the jobs differ in and `sweep.job`: `pandas.read_parquet(\"tables/NAME\")`, `polars.read_parquet(\"tables/NAME\", hive_partitioning=True)`.")
                .grid(grid),
        );
    }
    for (name, of_jobs) in figures {
        let mut section = Section::new(name);
        if of_jobs.len() > MOST_FIGURES {
            section = section.text(&format!(
                "{} jobs have this figure: the first {MOST_FIGURES} are shown.",
                of_jobs.len()
            ));
        }
        let mut drawn = vec![];
        for (entry, file) in of_jobs.iter().take(MOST_FIGURES) {
            let svg = fs::read_to_string(file)
                .with_context(|| format!("failed to read `{}`", file.display()))?;
            let mut caption = format!("Job {}", entry.number);
            for key in keys {
                caption += &format!(", `{key}={}`", of(entry, key));
            }
            drawn.push((svg, caption));
        }
        report = report.section(section.beside(drawn));
    }
    Ok(report.to_html())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: usize, overrides: &[&str]) -> Entry {
        serde_json::from_value(serde_json::json!({
            "number": number, "id": "", "overrides": overrides, "state": "finished", "started": null, "seconds": 1.0,
            "host": null, "exit_code": 0, "error": null, "attempts": 1, "run_record": true,
        }))
        .expect("an entry of a manifest")
    }

    #[test]
    fn keys_that_differ_are_columns() {
        let jobs = [
            entry(0, &["seed=1", "words.list=[a, b/c]", "corpus=train"]),
            entry(
                2,
                &["seed=1", "words.list=[d]", "corpus=train", "+case=lower"],
            ),
        ];
        let keys = swept(&jobs.iter().collect::<Vec<_>>());
        assert_eq!(keys, ["case", "words.list"]);
        let path = |i: usize| partition(Path::new("t"), &jobs[i], &keys);
        assert_eq!(
            path(0),
            Path::new(
                "t/sweep.case=__HIVE_DEFAULT_PARTITION__/sweep.words.list=%5Ba%2C%20b%2Fc%5D/sweep.job=0"
            )
        );
        assert_eq!(
            path(1),
            Path::new("t/sweep.case=lower/sweep.words.list=%5Bd%5D/sweep.job=2")
        );
    }
}
