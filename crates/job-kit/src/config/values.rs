//! Values that the configurations of several jobs have.

use std::{fmt, ops::Range, path::PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// One path, or a list of paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    paths: Vec<PathBuf>,
    one: bool,
}

impl Paths {
    /// The paths, in the order in which they are written.
    pub fn list(&self) -> &[PathBuf] {
        &self.paths
    }
}

impl<'de> Deserialize<'de> for Paths {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Paths;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path string, or a list of paths")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Paths, E> {
                Ok(Paths {
                    paths: vec![text.into()],
                    one: true,
                })
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Paths, A::Error> {
                let mut paths = Vec::new();
                while let Some(path) = list.next_element()? {
                    paths.push(path);
                }
                Ok(Paths { paths, one: false })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl Serialize for Paths {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.paths[..] {
            [path] if self.one => path.serialize(serializer),
            paths => paths.serialize(serializer),
        }
    }
}

/// A range of places, `a..b`: from `a`, counted from 0, up to but without `b`; never empty.
///
/// # Examples
/// ```
/// use job_kit::config::Span;
///
/// let span: Span = "0..500".parse()?;
/// assert_eq!(span.range(), 0..500);
/// assert!("9..3".parse::<Span>().is_err());
/// # Ok::<(), String>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span(Range<usize>);

impl Span {
    /// What it says is expected.
    pub const EXPECTED: &'static str = "a range like `0..500` (from the first, counted from 0, up to but without the second, which is larger)";

    /// The range.
    pub fn range(&self) -> Range<usize> {
        self.0.clone()
    }
}

impl std::str::FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split_once("..")
            .and_then(|(start, end)| Some(start.trim().parse().ok()?..end.trim().parse().ok()?))
            .filter(|range: &Range<usize>| range.start < range.end)
            .map(Self)
            .ok_or_else(|| format!("expected {}", Self::EXPECTED))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.0.start, self.0.end)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Span;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(Span::EXPECTED)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
