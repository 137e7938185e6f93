//! Parquet: one text column, read as bytes so that one row that is not UTF-8 stays one bad row.

use std::{
    collections::VecDeque,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use file_kind::FileKind;
use parquet::{
    column::reader::{ColumnReader, ColumnReaderImpl},
    data_type::ByteArrayType,
    errors::ParquetError,
    file::{
        reader::{FileReader, SerializedFileReader},
        serialized_reader::ReadOptionsBuilder,
    },
};

use super::{Rows, TextRow};
use crate::{InputError, error::place, open::head_of, table::without_panic};

/// Rows decoded at once.
const BATCH: usize = 256;

pub(super) struct ParquetTexts {
    path: Arc<PathBuf>,
    reader: SerializedFileReader<File>,
    column: usize,
    name: String,
    /// Definition level of a value that is there; below it the row is null.
    present: i16,
    group: usize,
    /// Rows decoded so far.
    rows: usize,
    pages: Option<ColumnReaderImpl<ByteArrayType>>,
    decoded: VecDeque<Option<Vec<u8>>>,
}

impl ParquetTexts {
    pub(super) fn open(path: Arc<PathBuf>, column: &str) -> Result<Self, InputError> {
        let read = InputError::read(&path);
        let mut file = File::open(path.as_path()).map_err(&read)?;
        let head = head_of(&mut file).map_err(&read)?;
        match FileKind::of(&head) {
            Some(FileKind::Parquet) | None if !head.is_empty() => {}
            Some(kind) => {
                return Err(InputError::Kind {
                    path: path.to_path_buf(),
                    kind,
                });
            }
            None => {
                return Err(InputError::Empty {
                    path: path.to_path_buf(),
                });
            }
        }
        let options = ReadOptionsBuilder::new().build();
        let reader = without_panic(|| SerializedFileReader::new_with_options(file, options))
            .map_err(|err| invalid(&path, &err))?;
        let schema = reader.metadata().file_metadata().schema_descr_ptr();
        let names: Vec<String> = schema
            .columns()
            .iter()
            .map(|column| column.path().string())
            .collect();
        let index = place(&path, &names, column)?;
        let described = schema.column(index);
        if described.max_rep_level() > 0
            || described.physical_type() != parquet::basic::Type::BYTE_ARRAY
        {
            let what = format!("column `{column}` is not text");
            return Err(InputError::invalid(&path, "Parquet", what));
        }
        let present = described.max_def_level();
        Ok(Self {
            path,
            reader,
            column: index,
            name: column.into(),
            present,
            group: 0,
            rows: 0,
            pages: None,
            decoded: VecDeque::new(),
        })
    }

    /// Decodes rows until there is one; false at the end of the file.
    fn fill(&mut self) -> Result<bool, ParquetError> {
        while self.decoded.is_empty() {
            let Some(pages) = &mut self.pages else {
                if self.group == self.reader.num_row_groups() {
                    let said = self.reader.metadata().file_metadata().num_rows();
                    return match usize::try_from(said) {
                        Ok(said) if said == self.rows => Ok(false),
                        _ => Err(ParquetError::General(format!(
                            "its footer says {said} rows, but it has {}",
                            self.rows
                        ))),
                    };
                }
                let ColumnReader::ByteArrayColumnReader(pages) = self
                    .reader
                    .get_row_group(self.group)?
                    .get_column_reader(self.column)?
                else {
                    return Err(ParquetError::General(format!(
                        "column `{}` changes its type",
                        self.name
                    )));
                };
                self.group += 1;
                self.pages = Some(pages);
                continue;
            };
            let (mut values, mut levels) = (Vec::new(), Vec::new());
            let (rows, _, _) = pages.read_records(BATCH, Some(&mut levels), None, &mut values)?;
            if rows == 0 {
                self.pages = None;
                continue;
            }
            self.rows += rows;
            let mut values = values.into_iter().map(|value| value.data().to_vec());
            if self.present == 0 {
                self.decoded.extend(values.map(Some));
            } else {
                self.decoded.extend(levels.iter().map(|&level| {
                    if level == self.present {
                        values.next()
                    } else {
                        None
                    }
                }));
            }
        }
        Ok(true)
    }
}

impl Rows for ParquetTexts {
    fn next_row(&mut self, _wanted: bool) -> Result<Option<TextRow>, InputError> {
        let filled = without_panic(|| self.fill());
        if !filled.map_err(|err| invalid(&self.path, &err))? {
            return Ok(None);
        }
        Ok(self.decoded.pop_front().map(|value| match value {
            Some(bytes) => TextRow::utf8(bytes),
            None => TextRow::Bad(format!("column `{}` is null", self.name)),
        }))
    }
}

fn invalid(path: &Path, err: &ParquetError) -> InputError {
    InputError::invalid(path, "Parquet", err)
}
