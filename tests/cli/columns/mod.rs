//! Whether docs/tables.md has the columns of the tables that a job has written, and no others.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "test helpers fail the test"
)]

use std::{collections::BTreeSet, fs, path::Path};

use job_kit::TableReader;

/// Ends of names that stand for more of the column before them.
const ENDS: [&str; 9] = [
    ".low",
    ".high",
    ".undefined",
    "_low",
    "_high",
    "_undefined",
    "_undefined_resamples",
    "_lower",
    "_upper",
];

/// Whether a column is the one of the page, in which `<...>` stands for any name.
fn is(column: &str, name: &str) -> bool {
    let parts: Vec<&str> = name
        .split('<')
        .map(|part| part.split_once('>').map_or(part, |(_, rest)| rest))
        .collect();
    let Some(mut rest) = column.strip_prefix(parts[0]) else {
        return false;
    };
    for (i, part) in parts.iter().enumerate().skip(1) {
        let last = i + 1 == parts.len();
        let at = match (last, part.is_empty()) {
            (true, true) => Some(rest.len()),
            (true, false) => rest
                .len()
                .checked_sub(part.len())
                .filter(|&at| rest.ends_with(part) && at > 0),
            (false, _) => rest.find(part).filter(|&at| at > 0),
        };
        match at {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.is_empty()
}

/// How much of a name is no placeholder.
fn said(name: &str) -> usize {
    let parts = name
        .split('<')
        .map(|part| part.split_once('>').map_or(part, |(_, rest)| rest));
    parts.map(str::len).sum()
}

/// The names that the page has for a table.
fn documented(page: &str, job: &str, table: &str) -> BTreeSet<String> {
    let section = page
        .split("\n## ")
        .find(|section| section.lines().next() == Some(job));
    let tables = section.unwrap_or_default().split("\n### ");
    let table = tables.skip(1).find(|part| {
        part.lines()
            .next()
            .unwrap()
            .split(", ")
            .any(|name| name == table)
    });
    let rows = table
        .unwrap_or_default()
        .lines()
        .filter(|line| line.starts_with("| `"));
    rows.flat_map(|row| {
        let cell = row.trim_start_matches("| ").split(" |").next().unwrap();
        cell.split(", ")
            .map(|name| name.trim_matches('`').to_owned())
            .collect::<Vec<_>>()
    })
    .collect()
}

/// Compares all tables in `folder` with the page.
#[track_caller]
pub(crate) fn are_documented(job: &str, folder: &Path) {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/tables.md");
    let page = fs::read_to_string(page).unwrap();
    let mut tables = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if !path
            .extension()
            .is_some_and(|end| end == "parquet" || end == "csv")
        {
            continue;
        }
        tables += 1;
        let table = path.file_name().unwrap().to_str().unwrap();
        let names = documented(&page, job, table);
        assert!(!names.is_empty(), "docs/tables.md has no {table} of {job}");
        let mut used = BTreeSet::new();
        let reader = TableReader::open(&path).unwrap();
        for field in reader.schema().fields() {
            let column = field.name().as_str();
            // The one that leaves the least open.
            let of = |column: &str| {
                let of = names.iter().filter(|name| is(column, name));
                of.max_by_key(|name| said(name))
            };
            let found = of(column).or_else(|| {
                let stem = |unit: &str| {
                    let column = column.strip_suffix(unit)?;
                    let stem = ENDS.iter().find_map(|end| column.strip_suffix(end))?;
                    Some(format!("{stem}{unit}"))
                };
                let stem = ["", "_nats", "_bits"].iter().find_map(|unit| stem(unit))?;
                of(&stem)
            });
            used.insert(found.unwrap_or_else(|| {
                panic!("docs/tables.md does not have `{column}` of {table} of {job}")
            }));
        }
        let gone: Vec<_> = names.iter().filter(|name| !used.contains(name)).collect();
        assert!(gone.is_empty(), "{table} of {job} has no {gone:?}");
    }
    assert!(tables > 0, "no table in `{}`", folder.display());
}
