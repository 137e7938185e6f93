//! Whole JSON files, and what to say where JSON is not valid.

use std::{fmt, marker::PhantomData, path::Path};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, MapAccess, Visitor},
};

use crate::{Format, Input, InputError, read_text};

/// Reads a `.json` file.
///
/// # Errors
/// Those of [`read_text`], and [`InputError::Invalid`] if it is not the JSON expected.
pub fn read_json<T: DeserializeOwned>(path: impl AsRef<Path>) -> Result<T, InputError> {
    let path = path.as_ref();
    let text = read_text(path, &[Format::Json])?;
    serde_json::from_str(&text)
        .map_err(|err| InputError::invalid(path, "JSON", explain(&err, text.as_bytes())))
}

/// A JSON object as its keys and values, in their order, with keys that are there twice.
///
/// # Examples
/// ```
/// use input_files::Pairs;
///
/// let Pairs(pairs) = serde_json::from_str::<Pairs<u32>>(r#"{"whale": 1, "ship": 2, "whale": 3}"#)?;
/// assert_eq!(pairs.len(), 3);
/// assert_eq!(pairs[2], ("whale".to_owned(), 3));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pairs<V>(
    /// Keys and values.
    pub Vec<(String, V)>,
);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Pairs<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Keys<V> {
            type Value = Pairs<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs<V>, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Keys(PhantomData))
    }
}

/// An error in JSON, with what to do where the text is known not to be JSON.
pub(crate) fn explain(err: &serde_json::Error, text: &[u8]) -> String {
    let before = text
        .split_inclusive(|&byte| byte == b'\n')
        .take(err.line().saturating_sub(1))
        .map(<[u8]>::len)
        .sum::<usize>();
    let at = before + err.column();
    let near = text
        .get(at.saturating_sub(3)..text.len().min(at + 9))
        .unwrap_or_default();
    let holds = |word: &str| near.windows(word.len()).any(|part| part == word.as_bytes());
    let message = err.to_string();
    let advice = if err.is_syntax() && (holds("NaN") || holds("Infinity")) {
        "; NaN and Infinity are not JSON: write null instead"
    } else if message.contains("surrogate") || message.contains("hex escape") {
        "; half of a surrogate pair such as \\ud83d alone is no character: remove it where the file is written"
    } else if err.is_eof() {
        "; it ends in the middle: the file is cut off, or an object goes over several lines where JSON Lines has one per line"
    } else {
        ""
    };
    message + advice
}

/// Refuses an array where there should be an object per line.
pub(crate) fn no_array(input: &Input) -> Result<(), InputError> {
    if input.head.trim_ascii_start().starts_with(b"[") {
        let what = "it is one JSON array; write one object per line, as pandas does with `to_json(path, orient=\"records\", lines=True)` and `jq -c '.[]'`";
        return Err(InputError::invalid(&input.path, "JSON Lines", what));
    }
    Ok(())
}
