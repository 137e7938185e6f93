//! Tables: made column by column, and on disk as Parquet, Feather and CSV, written as a stream. They are read by `input-files`.

mod build;
mod write;

use std::path::{Path, PathBuf};

use arrow::error::ArrowError;
use input_files::InputError;
use parquet::errors::ParquetError;
use serde::{Deserialize, Serialize};

pub use self::{
    build::{ColumnValue, Table},
    write::TableWriter,
};
use crate::{hint::Hint, nearest::nearest, output::OutputError};

/// How a table is stored.
///
/// # Examples
/// ```
/// use job_kit::Format;
///
/// assert_eq!(Format::from_path("run/positions.feather")?, Format::Feather);
/// assert!(Format::from_path("run/positions.xlsx").is_err());
/// # Ok::<(), job_kit::TableError>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Parquet with zstd.
    #[default]
    Parquet,
    /// Feather V2, which is the Arrow IPC file, with LZ4.
    Feather,
    /// Comma-separated text with a header.
    Csv,
}

impl Format {
    /// The format that an extension stands for: `parquet`, `feather`, `arrow` or `csv`.
    ///
    /// # Errors
    /// [`TableError::UnknownFormat`] for any other.
    pub fn from_path(path: impl AsRef<Path>) -> Result<Self, TableError> {
        let path = path.as_ref();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("parquet") => Ok(Self::Parquet),
            Some("feather" | "arrow") => Ok(Self::Feather),
            Some("csv") => Ok(Self::Csv),
            _ => Err(TableError::UnknownFormat {
                path: path.to_owned(),
            }),
        }
    }

    /// The extension of such files.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::Feather => "feather",
            Self::Csv => "csv",
        }
    }
}

/// Why a table was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// The extension stands for no format.
    #[error("`{}` does not end in .parquet, .feather, .arrow or .csv", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// The file could not be created or completed.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// Rows could not be written.
    #[error("failed to write table `{}`", path.display())]
    Write {
        /// The file, under its final name.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl TableError {
    fn write(path: &Path, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Write {
            path: path.to_owned(),
            source: source.into(),
        }
    }

    fn write_arrow(path: &Path, error: ArrowError) -> Self {
        match error {
            ArrowError::IoError(_, source) => Self::write(path, source),
            ArrowError::ExternalError(source) => Self::write(path, source),
            other => Self::write(path, other),
        }
    }

    fn write_parquet(path: &Path, error: ParquetError) -> Self {
        match error {
            ParquetError::External(source) => Self::write(path, source),
            other => Self::write(path, other),
        }
    }
}

impl Hint for TableError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Output(error) => error.hints(),
            _ => vec![],
        }
    }
}

impl Hint for InputError {
    fn hints(&self) -> Vec<String> {
        let Self::NoColumn {
            column, available, ..
        } = self
        else {
            return vec![];
        };
        nearest(column, available.iter().map(String::as_str))
            .map(|name| format!("did you mean `{name}`?"))
            .into_iter()
            .collect()
    }
}
