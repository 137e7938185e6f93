//! Tables of words, token ids, lists of neurons, configurations.

use std::path::PathBuf;

use input_files::TableReader;
use job_kit::{ConfigArgs, Rule, Rules};
use serde::{Deserialize, Serialize};

use crate::{file, named};

/// The names that a table of words may have.
pub(crate) const WORD_NAMES: [&str; 6] = [
    "a.csv",
    "a.tsv",
    "a.parquet",
    "a.feather",
    "a.jsonl",
    "a.csv.gz",
];

/// A column of words and, where there is one, of contexts: as many of each as there are rows.
pub(crate) fn words(input: &[u8]) -> bool {
    let Some((name, bytes)) = named(&WORD_NAMES, input) else {
        return false;
    };
    let Ok(table) = TableReader::open(file(name, bytes)) else {
        return false;
    };
    let mut columns = vec!["word"];
    columns.extend(table.has("context").then_some("context"));
    let Ok(read) = table.read(&columns) else {
        return false;
    };
    if let Ok(words) = read.text("word") {
        assert_eq!(words.len(), read.rows());
    }
    if let Ok(rows) = table.rows() {
        assert_eq!(rows, read.rows());
    }
    read.text("word").is_ok() && (columns.len() == 1 || read.opt_text("context").is_ok())
}

/// The names that token ids may have.
pub(crate) const TOKEN_NAMES: [&str; 2] = ["a.npy", "a.json"];

/// Sequences of token ids.
pub(crate) fn tokens(input: &[u8]) -> bool {
    let Some((name, bytes)) = named(&TOKEN_NAMES, input) else {
        return false;
    };
    job_inputs::read_tokens(&file(name, bytes)).is_ok()
}

/// The names that a list of neurons may have.
pub(crate) const NEURON_NAMES: [&str; 3] = ["a.csv", "a.yaml", "a.json"];

/// Neurons by step.
pub(crate) fn neurons(input: &[u8]) -> bool {
    let Some((name, bytes)) = named(&NEURON_NAMES, input) else {
        return false;
    };
    job_inputs::neuron_rows(&file(name, bytes)).is_ok()
}

/// A configuration with a value of every kind.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    seed: u64,
    share: f64,
    name: Option<String>,
    dir: Option<PathBuf>,
    list: Vec<f64>,
    part: Part,
}

impl Rules for Config {
    fn rules() -> Vec<Rule> {
        vec![
            Rule::one_of(&["name", "dir"]),
            Rule::belongs("part.any", &["name", "dir"]),
        ]
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    on: bool,
    any: Option<serde_json::Value>,
}

/// Overrides, one a line, a zero byte, a YAML file: what is printed of the configuration reads back as the same.
pub(crate) fn yaml(input: &[u8]) -> bool {
    let Ok(input) = std::str::from_utf8(input) else {
        return false;
    };
    let Some((overrides, text)) = input.split_once('\0') else {
        return false;
    };
    let start = file("job.yaml", text.as_bytes());
    let mut args = ConfigArgs {
        overrides: overrides.lines().map(str::to_owned).collect(),
        config: Some(start.clone()),
        config_dir: start.with_file_name(""),
        ..ConfigArgs::default()
    };
    let Ok(resolved) = job_kit::compose::<Config>("job", &args) else {
        return false;
    };
    let printed = resolved.to_yaml_with_origins();
    args.overrides.clear();
    args.config = Some(file("printed.yaml", printed.as_bytes()));
    let again = job_kit::compose::<Config>("job", &args);
    let again = again.expect("what is printed reads back");
    assert_eq!(again.config, resolved.config, "{printed}");
    true
}
