//! JSON as a table.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch, RecordBatchOptions, StringArray},
    datatypes::{DataType, Field, Schema},
};
use serde_json::Value;

use crate::{Input, InputError, Pairs, json::explain};

/// A table out of JSON Lines or of a JSON array of objects: a column of text for each key, in the order in which they turn up.
///
/// Numbers and truth values are written out, arrays and objects are their JSON, `null` and absent keys are nulls.
pub(crate) fn records(input: Input) -> Result<RecordBatch, InputError> {
    let path = input.path.clone();
    let array = input.head.trim_ascii_start().starts_with(b"[");
    let text = input.into_text()?;
    let rows: Vec<Pairs<Value>> = if array {
        serde_json::from_str(&text)
            .map_err(|err| InputError::invalid(&path, "JSON", explain(&err, text.as_bytes())))?
    } else {
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        let row = |(row, line): (usize, &str)| {
            serde_json::from_str(line).map_err(|err| InputError::Row {
                path: path.to_path_buf(),
                row,
                reason: format!("not a JSON object: {}", explain(&err, line.as_bytes())),
            })
        };
        lines.enumerate().map(row).collect::<Result<_, _>>()?
    };
    let mut names: Vec<String> = Vec::new();
    let mut columns: Vec<Vec<Option<String>>> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    let n_rows = rows.len();
    for (row, Pairs(pairs)) in rows.into_iter().enumerate() {
        for (key, value) in pairs {
            let key = key.trim();
            let at = *places.entry(key.to_owned()).or_insert_with(|| {
                names.push(key.to_owned());
                columns.push(Vec::new());
                names.len() - 1
            });
            let column = &mut columns[at];
            if column.len() > row {
                return Err(InputError::Row {
                    path: path.to_path_buf(),
                    row,
                    reason: format!("the key `{key}` is there twice"),
                });
            }
            column.resize(row, None);
            column.push(match value {
                Value::Null => None,
                Value::String(text) => Some(text).filter(|text| !text.is_empty()),
                other => Some(other.to_string()),
            });
        }
    }
    let fields: Vec<Field> = names.iter().map(text_field).collect();
    let columns = columns.into_iter().map(|mut column| {
        column.resize(n_rows, None);
        Arc::new(StringArray::from(column)) as ArrayRef
    });
    let options = RecordBatchOptions::new().with_row_count(Some(n_rows));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns.collect(), &options)
        .map_err(|err| InputError::invalid(&path, "JSON", err))
}

/// A column of text.
pub(crate) fn text_field(name: &String) -> Field {
    Field::new(name, DataType::Utf8, true)
}
