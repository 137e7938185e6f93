//! What does not belong into records.

use serde_json::Value;

/// Replaces values that are credentials, by the name of their key or by their form.
pub(crate) fn without_secrets(value: Value) -> Value {
    const REMOVED: &str = "(removed)";
    match value {
        Value::Object(map) => Value::Object(
            map.into_iter()
                .map(|(key, value)| {
                    let name = key.to_lowercase();
                    // Other keys end in `_token` too: those of tokens of text.
                    let secret = [
                        "token",
                        "hf_token",
                        "hub_token",
                        "api_token",
                        "access_token",
                        "auth_token",
                    ]
                    .contains(&&*name)
                        || ["password", "secret", "api_key"]
                            .iter()
                            .any(|s| name == *s || name.ends_with(&format!("_{s}")));
                    let value = if secret && value.is_string() {
                        REMOVED.into()
                    } else {
                        without_secrets(value)
                    };
                    (key, value)
                })
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.into_iter().map(without_secrets).collect()),
        Value::String(text)
            if text.starts_with("hf_")
                && text.len() > 30
                && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') =>
        {
            REMOVED.into()
        }
        other => other,
    }
}

/// A configuration as it is read back from a record: without credentials, and with the numbers that their text gives, which may differ in the
/// last bit.
pub(crate) fn as_recorded(config: &Value) -> Value {
    let text = without_secrets(config.clone()).to_string();
    serde_json::from_str(&text).unwrap_or_default()
}
