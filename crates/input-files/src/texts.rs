//! One text per row: documents of a corpus, words of a list.

mod delimited_texts;
mod json_texts;
#[cfg(feature = "parquet")]
mod parquet_texts;
mod plain_texts;
#[cfg(feature = "parquet")]
mod table_texts;

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
};

use serde::{Deserialize, Serialize};

#[cfg(feature = "parquet")]
use crate::TableReader;
use crate::{Format, Input, InputError, Progress, lines::Lines};

/// What a document is in a plain text file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum TextUnit {
    /// Each line that is not blank.
    Line,
    /// Lines up to a blank one.
    #[default]
    Paragraph,
    /// The whole file.
    File,
}

/// A row as a format yields it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextRow {
    /// Its text, as it is stored.
    Text(String),
    /// Why there is none.
    Bad(String),
}

impl TextRow {
    fn utf8(bytes: Vec<u8>) -> Self {
        match String::from_utf8(bytes) {
            Ok(text) => Self::Text(text),
            Err(err) => Self::Bad(format!(
                "not UTF-8 at byte {}",
                err.utf8_error().valid_up_to()
            )),
        }
    }
}

/// The rows of one file, one at a time: one column of a table, the values of one key of JSON Lines, or pieces of plain text.
///
/// Memory holds one row (for Parquet and Arrow, one batch) at a time.
pub struct Texts {
    rows: Box<dyn Rows>,
}

trait Rows: Send {
    /// The next row, or `None` at the end. A row that is not `wanted` need not be decoded: any [`TextRow`] will do.
    fn next_row(&mut self, wanted: bool) -> Result<Option<TextRow>, InputError>;
}

impl Texts {
    /// The formats that are read.
    pub const FORMATS: &[Format] = &[
        Format::Parquet,
        Format::Arrow,
        Format::JsonLines,
        Format::Json,
        Format::Csv,
        Format::Tsv,
        Format::Text,
    ];

    /// Opens a file. In plain text a row is what `unit` says, elsewhere the value of `column`. A `.json` file is read as JSON Lines.
    ///
    /// `progress` counts the bytes read of the file as stored; Parquet and Arrow files count when they are done.
    ///
    /// # Errors
    /// Those of [`Input::open`], and [`InputError::NoColumn`].
    pub fn open(
        path: &Arc<PathBuf>,
        column: &str,
        unit: TextUnit,
        progress: &Progress,
    ) -> Result<Self, InputError> {
        let rows: Box<dyn Rows> = match Format::of(path.as_path()) {
            #[cfg(feature = "parquet")]
            Some((Format::Parquet, _)) => {
                Box::new(parquet_texts::ParquetTexts::open(path.clone(), column)?)
            }
            #[cfg(feature = "parquet")]
            Some((Format::Arrow, _)) => Box::new(table_texts::TableTexts::new(
                &TableReader::open(path.as_path())?,
                column,
            )?),
            #[cfg(not(feature = "parquet"))]
            Some((Format::Parquet | Format::Arrow, _)) => {
                return Err(InputError::WithoutParquet {
                    path: path.to_path_buf(),
                });
            }
            _ => {
                let input = Input::watched(path.clone(), Self::FORMATS, progress)?;
                Self::of_input(input, column, unit)?
            }
        };
        let stored = matches!(
            Format::of(path.as_path()),
            Some((Format::Parquet | Format::Arrow, _))
        );
        Ok(Self {
            rows: if stored {
                Box::new(Stored {
                    rows,
                    path: path.clone(),
                    progress: progress.clone(),
                })
            } else {
                rows
            },
        })
    }

    fn of_input(input: Input, column: &str, unit: TextUnit) -> Result<Box<dyn Rows>, InputError> {
        let format = input.format;
        Ok(match format {
            Format::Csv | Format::Tsv => {
                let lines = Lines::new(input);
                Box::new(delimited_texts::DelimitedTexts::new(
                    lines,
                    format == Format::Tsv,
                    column,
                )?)
            }
            Format::JsonLines | Format::Json => {
                Box::new(json_texts::JsonTexts::new(input, column)?)
            }
            _ => Box::new(plain_texts::PlainTexts::new(Lines::new(input), unit)),
        })
    }

    /// The next row, or `None` at the end. A row that is not `wanted` may be anything.
    ///
    /// # Errors
    /// [`InputError::Read`] or [`InputError::Invalid`] for a file that cannot be read further.
    pub fn next_row(&mut self, wanted: bool) -> Result<Option<TextRow>, InputError> {
        self.rows.next_row(wanted)
    }
}

/// Rows of a file that is not read as a stream: its bytes count at the end.
struct Stored {
    rows: Box<dyn Rows>,
    path: Arc<PathBuf>,
    progress: Progress,
}

impl Rows for Stored {
    fn next_row(&mut self, wanted: bool) -> Result<Option<TextRow>, InputError> {
        let row = self.rows.next_row(wanted)?;
        if row.is_none() {
            let bytes = self.path.metadata().map_or(0, |meta| meta.len());
            self.progress.fetch_add(bytes, Ordering::Relaxed);
        }
        Ok(row)
    }
}
