//! JSON Lines: one object per line; blank lines are no rows.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::{Rows, TextRow};
use crate::{
    Input, InputError, json,
    lines::{Line, Lines, too_long},
};

pub(super) struct JsonTexts {
    lines: Lines,
    column: String,
}

impl JsonTexts {
    pub(super) fn new(input: Input, column: &str) -> Result<Self, InputError> {
        json::no_array(&input)?;
        Ok(Self {
            lines: Lines::new(input),
            column: column.into(),
        })
    }
}

impl Rows for JsonTexts {
    fn next_row(&mut self, wanted: bool) -> Result<Option<TextRow>, InputError> {
        loop {
            return Ok(Some(match self.lines.next_line()? {
                None => return Ok(None),
                Some(Line::TooLong) => TextRow::Bad(too_long()),
                Some(Line::Whole(line)) if line.trim_ascii().is_empty() => continue,
                Some(Line::Whole(_)) if !wanted => TextRow::Bad(String::new()),
                Some(Line::Whole(line)) => text_of(&line, &self.column),
            }));
        }
    }
}

fn text_of(line: &[u8], column: &str) -> TextRow {
    let mut deserializer = serde_json::Deserializer::from_slice(line);
    let value = Column(column)
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value));
    match value {
        Ok(Some(Value::String(text))) => TextRow::Text(text),
        Ok(Some(Value::Null)) => TextRow::Bad(format!("column `{column}` is null")),
        Ok(Some(_)) => TextRow::Bad(format!("column `{column}` is not text")),
        Ok(None) => TextRow::Bad(format!("no column `{column}`")),
        Err(err) => TextRow::Bad(format!("not a JSON object: {}", json::explain(&err, line))),
    }
}

/// Takes one key out of an object and skips the rest unread. `a.b` is also the key `b` of the object under `a`.
struct Column<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Column<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Column<'_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            let inner = self
                .0
                .strip_prefix(&*key)
                .and_then(|rest| rest.strip_prefix('.'));
            let value = if key == self.0 {
                Some(map.next_value()?)
            } else if let Some(inner) = inner {
                map.next_value_seed(Column(inner))?
            } else {
                map.next_value::<IgnoredAny>()?;
                None
            };
            if value.is_some() && found.is_some() {
                return Err(A::Error::custom(format!(
                    "the key `{}` is there twice",
                    self.0
                )));
            }
            found = found.or(value);
        }
        Ok(found)
    }
}
