//! Formats by the end of a file's name.

use std::path::Path;

/// What a file's name says is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// `.parquet`
    Parquet,
    /// `.feather`, `.arrow` or `.ipc`: an Arrow file (Feather V2) or stream.
    Arrow,
    /// `.csv`
    Csv,
    /// `.tsv`
    Tsv,
    /// `.jsonl` or `.ndjson`
    JsonLines,
    /// `.json`
    Json,
    /// `.yaml` or `.yml`
    Yaml,
    /// `.txt`
    Text,
    /// `.npy`
    Npy,
}

/// How a file is compressed, by the last ending of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// Not at all.
    None,
    /// `.gz`
    Gzip,
    /// `.zst`
    Zstd,
}

impl Format {
    /// The format and compression that a name ends in, in upper or lower case; `None` for an unknown one.
    ///
    /// # Examples
    /// ```
    /// use input_files::{Compression, Format};
    ///
    /// assert_eq!(Format::of("WORDS.CSV"), Some((Format::Csv, Compression::None)));
    /// assert_eq!(Format::of("a.jsonl.GZ"), Some((Format::JsonLines, Compression::Gzip)));
    /// assert_eq!(Format::of("a.parquet.gz"), None); // compressed inside, if at all
    /// ```
    pub fn of(path: impl AsRef<Path>) -> Option<(Self, Compression)> {
        let name = path
            .as_ref()
            .file_name()?
            .to_string_lossy()
            .to_ascii_lowercase();
        let (name, compression) = if let Some(inner) = name.strip_suffix(".gz") {
            (inner, Compression::Gzip)
        } else if let Some(inner) = name.strip_suffix(".zst") {
            (inner, Compression::Zstd)
        } else {
            (name.as_str(), Compression::None)
        };
        let format = match name.rsplit_once('.')?.1 {
            "parquet" => Self::Parquet,
            "feather" | "arrow" | "ipc" => Self::Arrow,
            "csv" => Self::Csv,
            "tsv" => Self::Tsv,
            "jsonl" | "ndjson" => Self::JsonLines,
            "json" => Self::Json,
            "yaml" | "yml" => Self::Yaml,
            "txt" => Self::Text,
            "npy" => Self::Npy,
            _ => return None,
        };
        let binary = matches!(format, Self::Parquet | Self::Arrow);
        (!binary || compression == Compression::None).then_some((format, compression))
    }

    /// The endings of a list of formats, for an error message.
    pub(crate) fn endings(formats: &[Self]) -> String {
        let endings: Vec<&str> = formats
            .iter()
            .map(|format| match format {
                Self::Parquet => ".parquet",
                Self::Arrow => ".feather, .arrow",
                Self::Csv => ".csv",
                Self::Tsv => ".tsv",
                Self::JsonLines => ".jsonl, .ndjson",
                Self::Json => ".json",
                Self::Yaml => ".yaml",
                Self::Text => ".txt",
                Self::Npy => ".npy",
            })
            .collect();
        let listed = match endings.split_last() {
            Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
            _ => endings.concat(),
        };
        format!("{listed} (text formats also with .gz or .zst)")
    }
}
