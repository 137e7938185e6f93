//! One rule for all lists: an entry stands once.

use std::{collections::HashMap, path::Path};

use serde_json::Value;

/// Lists whose repeated entries a job merges and counts.
const MERGED: [&str; 1] = ["words.list"];

/// A list that holds something twice.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Repeated {
    /// The key of the list.
    pub(super) path: Vec<String>,
    pub(super) message: String,
}

/// The first list of a configuration that holds something twice. Two spellings of the path of one file are the same.
pub(super) fn repeated(config: &Value) -> Option<Repeated> {
    search(config, &mut Vec::new())
}

fn search(value: &Value, path: &mut Vec<String>) -> Option<Repeated> {
    let inside = |name: String, value: &Value, path: &mut Vec<String>| {
        path.push(name);
        let found = search(value, path);
        path.pop();
        found
    };
    match value {
        Value::Object(map) => map
            .iter()
            .find_map(|(name, value)| inside(name.clone(), value, path)),
        Value::Array(items) if !MERGED.contains(&path.join(".").as_str()) => {
            let mut seen = HashMap::new();
            for (i, item) in items.iter().enumerate() {
                if let Some(first) = seen.insert(identity(item, path), i) {
                    return Some(Repeated {
                        path: path.clone(),
                        message: format!(
                            "`{}` twice, as entries {} and {}",
                            item.as_str()
                                .map_or_else(|| item.to_string(), str::to_owned),
                            first + 1,
                            i + 1
                        ),
                    });
                }
            }
            items
                .iter()
                .enumerate()
                .find_map(|(i, item)| inside(i.to_string(), item, path))
        }
        _ => None,
    }
}

/// What makes two entries the same.
fn identity(item: &Value, path: &[String]) -> String {
    let is_path = path
        .last()
        .is_some_and(|key| ["path", "paths"].contains(&key.as_str()));
    match item {
        Value::String(text) if is_path => Path::new(text)
            .canonicalize()
            .map_or_else(|_| text.clone(), |path| path.display().to_string()),
        Value::String(text) => text.trim().to_owned(),
        // 1 and 1.0 are one number.
        Value::Number(number) => number
            .as_f64()
            .map_or_else(|| number.to_string(), |n| n.to_string()),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_entry_stands_once() {
        for (config, key, places) in [
            (
                json!({"a": {"b": [0, 1, 0]}}),
                "a.b",
                "`0` twice, as entries 1 and 3",
            ),
            (
                json!({"a": ["x", " x"]}),
                "a",
                "` x` twice, as entries 1 and 2",
            ),
            (
                json!({"a": [1, 2, 1.0]}),
                "a",
                "`1.0` twice, as entries 1 and 3",
            ),
            (
                json!({"a": [{"scale": 2}, "mean", {"scale": 2}]}),
                "a",
                "`{\"scale\":2}` twice, as entries 1 and 3",
            ),
            (
                json!({"a": [[1, 1]]}),
                "a.0",
                "`1` twice, as entries 1 and 2",
            ),
            (
                json!({"corpus": {"path": ["src", "./src/"]}}),
                "corpus.path",
                "`./src/` twice, as entries 1 and 2",
            ),
        ] {
            let found = repeated(&config).unwrap_or(Repeated {
                path: vec![],
                message: "none".into(),
            });
            assert_eq!(found.path.join("."), key, "{config}");
            assert!(
                found.message.starts_with(places),
                "{config}: {}",
                found.message
            );
        }
        for fine in [
            json!({"a": [0, 1], "b": [1, 0]}),
            json!({"a": ["1", "1.0", "3.1", "3.10"]}),
            json!({"words": {"list": ["x", "x"]}}),
        ] {
            assert_eq!(repeated(&fine), None, "{fine}");
        }
    }
}
