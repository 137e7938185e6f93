//! The resolved configuration beside the layers it came from.

use figment::value::Value;

use super::{Origin, interpolation::escape, layers::Composed};

/// Widest line that still has its comment aligned with the others.
const COMMENT_COLUMN: usize = 56;

/// The first key of `tree` that the resolved configuration does not have, with the keys that it has there.
pub(super) fn find_unknown(
    tree: &Value,
    resolved: &serde_json::Value,
) -> Option<(Vec<String>, Vec<String>)> {
    let (Value::Dict(_, given), serde_json::Value::Object(known)) = (tree, resolved) else {
        return None;
    };
    given.iter().find_map(|(key, value)| match known.get(key) {
        Some(inner) => find_unknown(value, inner).map(|(mut path, names)| {
            path.insert(0, key.clone());
            (path, names)
        }),
        // A key set to null may be left out when it is written again.
        None if matches!(value, Value::Empty(..)) => None,
        None => Some((vec![key.clone()], known.keys().cloned().collect())),
    })
}

/// The configuration as YAML, with the origin of each value behind it.
pub(super) fn yaml_with_origins(resolved: &serde_yaml::Value, composed: &Composed) -> String {
    let mut lines = vec![];
    collect(resolved, composed, &mut vec![], &mut lines);
    let width = lines
        .iter()
        .filter(|(_, origin)| origin.is_some())
        .map(|(line, _)| line.chars().count())
        .filter(|&w| w <= COMMENT_COLUMN)
        .max();
    let width = width.unwrap_or(0);
    let lines = lines.into_iter().map(|(line, origin)| match origin {
        Some(origin) => format!("{line:width$}  # {origin}\n"),
        None => format!("{line}\n"),
    });
    let notes = composed.notes.iter().map(|note| format!("# {note}\n"));
    lines.chain(notes).collect()
}

fn collect(
    resolved: &serde_yaml::Value,
    composed: &Composed,
    path: &mut Vec<String>,
    lines: &mut Vec<(String, Option<Origin>)>,
) {
    let serde_yaml::Value::Mapping(pairs) = resolved else {
        return;
    };
    for (key, value) in pairs {
        let head = format!("{:indent$}{}:", "", scalar(key), indent = 2 * path.len());
        path.push(
            key.as_str()
                .map(str::to_owned)
                .unwrap_or_else(|| scalar(key)),
        );
        match value {
            serde_yaml::Value::Mapping(pairs) if !pairs.is_empty() => {
                lines.push((head, None));
                collect(value, composed, path, lines);
            }
            _ => {
                let origin = composed.written_in(path);
                lines.push((format!("{head} {}", scalar(value)), Some(origin)));
            }
        }
        path.pop();
    }
}

/// A value on one line: lists, and mappings in them, as JSON is written, which is YAML; texts of several lines too.
fn scalar(value: &serde_yaml::Value) -> String {
    match value {
        serde_yaml::Value::Sequence(_) | serde_yaml::Value::Mapping(_) => flow(value),
        _ => serde_yaml::to_string(value)
            .ok()
            .map(|text| text.trim_end_matches('\n').to_owned())
            .filter(|text| !text.contains('\n'))
            .unwrap_or_else(|| flow(value)),
    }
}

fn flow(value: &serde_yaml::Value) -> String {
    match value {
        serde_yaml::Value::Sequence(items) => {
            format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(","))
        }
        serde_yaml::Value::Mapping(pairs) => {
            let pairs = pairs
                .iter()
                .map(|(key, value)| format!("{}: {}", flow(key), flow(value)));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
        }
        serde_yaml::Value::String(text) => {
            // YAML wants more characters escaped than JSON does.
            let plain =
                |c: char| !c.is_control() && !['\u{2028}', '\u{2029}', '\u{feff}'].contains(&c);
            let json = serde_json::Value::from(text.as_str()).to_string();
            json.chars()
                .map(|c| match plain(c) {
                    true => c.to_string(),
                    false => format!("\\u{:04x}", u32::from(c)),
                })
                .collect()
        }
        _ => scalar(value),
    }
}

/// The configuration with the interpolations as they are written.
pub(super) fn with_interpolations(resolved: &serde_yaml::Value, raw: &Value) -> serde_yaml::Value {
    match (resolved, raw) {
        (_, Value::String(_, text)) if text.contains("${") => text.as_str().into(),
        (serde_yaml::Value::Mapping(pairs), Value::Dict(_, dict)) => pairs
            .iter()
            .map(|(key, value)| {
                let raw = key.as_str().and_then(|key| dict.get(key));
                let value = raw.map_or(value.clone(), |raw| with_interpolations(value, raw));
                (key.clone(), value)
            })
            .collect::<serde_yaml::Mapping>()
            .into(),
        (serde_yaml::Value::Sequence(items), Value::Array(_, raw)) if items.len() == raw.len() => {
            let items = items.iter().zip(raw);
            items
                .map(|(value, raw)| with_interpolations(value, raw))
                .collect::<Vec<_>>()
                .into()
        }
        _ => resolved.clone(),
    }
}

/// Enums that carry a value, which serde_yaml tags (`!share 0.05`), as the mappings that they are read from (`share: 0.05`);
/// and texts so that they are read as they are.
pub(super) fn untag(value: serde_yaml::Value) -> serde_yaml::Value {
    use serde_yaml::Value;
    match value {
        Value::Tagged(tagged) => {
            let name = tagged.tag.to_string();
            let name = name.trim_start_matches('!').to_owned();
            Value::Mapping(
                [(Value::String(name), untag(tagged.value))]
                    .into_iter()
                    .collect(),
            )
        }
        Value::Sequence(items) => Value::Sequence(items.into_iter().map(untag).collect()),
        Value::Mapping(pairs) => Value::Mapping(
            pairs
                .into_iter()
                .map(|(key, value)| (key, untag(value)))
                .collect(),
        ),
        Value::String(text) => Value::String(escape(&text)),
        other => other,
    }
}
