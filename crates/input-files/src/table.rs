//! Tables read by column name.

use std::{
    cell::Cell,
    fs::File,
    io::BufReader,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, StringBuilder, new_empty_array},
    compute::{CastOptions, cast_with_options, concat_batches},
    datatypes::{DataType, Float64Type, Int64Type, Schema, SchemaRef},
    error::ArrowError,
    ipc::reader::{FileReader, StreamReader},
};
use file_kind::FileKind;
use parquet::{
    arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder},
    errors::ParquetError,
};

use crate::{
    Format, Input, InputError, arrow_sizes, delimited::Delimited, error::place, lines::Lines,
    open::head_of, records,
};

/// Rows that a Parquet file is read by.
const BATCH_ROWS: usize = 1 << 16;

/// Rows that a CSV or TSV file is read by.
const TEXT_ROWS: usize = 1 << 13;

/// An open table: Parquet, Arrow (Feather V2) as we, pandas and polars write it, CSV, TSV, JSON Lines, or a JSON array of objects.
#[derive(Debug)]
pub struct TableReader {
    path: PathBuf,
    schema: SchemaRef,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Parquet {
        rows: usize,
    },
    ArrowFile,
    ArrowStream,
    Delimited,
    /// Tables in JSON are small, and their columns are known when all of it is read.
    Json(RecordBatch),
}

/// Batches of some columns.
type Batches = Box<dyn Iterator<Item = Result<RecordBatch, InputError>> + Send>;

impl TableReader {
    /// The formats that are read.
    pub const FORMATS: &[Format] = &[
        Format::Parquet,
        Format::Arrow,
        Format::Csv,
        Format::Tsv,
        Format::JsonLines,
        Format::Json,
    ];

    /// Opens a table. Parquet and Arrow files are known by their first bytes, whatever their name; other formats by its end.
    ///
    /// # Errors
    /// - those of [`Input::open`]
    /// - [`InputError::Invalid`] if it is damaged, or no table
    /// - [`InputError::Row`] for a row of JSON that cannot be read
    pub fn open(path: impl AsRef<Path>) -> Result<Self, InputError> {
        let path = path.as_ref().to_owned();
        let read = InputError::read(&path);
        let mut file = File::open(&path).map_err(&read)?;
        let head = head_of(&mut file).map_err(&read)?;
        let format = Format::of(&path)
            .map(|(format, _)| format)
            .filter(|format| Self::FORMATS.contains(format));
        let stream = format == Some(Format::Arrow) && head.starts_with(&[0xff; 4]);
        let (schema, kind) = match (FileKind::of(&head), format) {
            (Some(FileKind::Parquet), _) => {
                let builder = parquet(&path)?;
                let rows = builder.metadata().file_metadata().num_rows();
                let rows = usize::try_from(rows).map_err(|_| {
                    InputError::invalid(&path, PARQUET, format!("its footer says {rows} rows"))
                })?;
                (builder.schema().clone(), Kind::Parquet { rows })
            }
            (Some(FileKind::Arrow), _) => {
                arrow_sizes::check(&mut open(&path)?)
                    .map_err(|err| InputError::invalid(&path, ARROW, err))?;
                let reader = BufReader::new(open(&path)?);
                let reader = without_panic(|| FileReader::try_new(reader, None));
                (
                    schema_of(&path, reader, |reader| reader.schema())?,
                    Kind::ArrowFile,
                )
            }
            _ if stream => {
                let reader = BufReader::new(open(&path)?);
                let reader = without_panic(|| StreamReader::try_new(reader, None));
                (
                    schema_of(&path, reader, |reader| reader.schema())?,
                    Kind::ArrowStream,
                )
            }
            (None, Some(Format::Parquet | Format::Arrow)) if !head.is_empty() => {
                return Err(InputError::invalid(
                    &path,
                    if format == Some(Format::Parquet) {
                        PARQUET
                    } else {
                        ARROW
                    },
                    "it does not begin as such a file does; it is another kind of file, or cut off",
                ));
            }
            (_, Some(Format::Csv | Format::Tsv)) => {
                let rows = delimited(&path)?;
                let fields = rows.header().iter().map(records::text_field);
                (
                    Arc::new(Schema::new(fields.collect::<Vec<_>>())),
                    Kind::Delimited,
                )
            }
            (_, Some(Format::JsonLines | Format::Json)) => {
                let batch = records::records(Input::open(&path, Self::FORMATS)?)?;
                (batch.schema(), Kind::Json(batch))
            }
            (Some(kind), _) => return Err(InputError::Kind { path, kind }),
            (None, Some(_)) => return Err(InputError::Empty { path }),
            (None, None) => return Err(InputError::unknown_format(&path, Self::FORMATS)),
        };
        Ok(Self { path, schema, kind })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its columns and their types.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Whether there is a column of this name.
    pub fn has(&self, column: &str) -> bool {
        self.schema.index_of(column).is_ok()
    }

    /// Number of rows; for CSV, TSV and Arrow they are counted.
    ///
    /// # Errors
    /// As [`Self::batches`].
    pub fn rows(&self) -> Result<usize, InputError> {
        match (&self.kind, self.schema.fields().first()) {
            (Kind::Parquet { rows }, _) => Ok(*rows),
            (Kind::Json(batch), _) => Ok(batch.num_rows()),
            (_, None) => Ok(0),
            (_, Some(field)) => self
                .batches(&[field.name()])?
                .map(|batch| Ok(batch?.rows()))
                .sum(),
        }
    }

    /// Reads some columns of the whole table at once.
    ///
    /// # Errors
    /// - [`InputError::NoColumn`], naming those there are
    /// - [`InputError::Read`] if the file is damaged
    pub fn read(&self, columns: &[&str]) -> Result<Columns, InputError> {
        let batches: Vec<RecordBatch> = self
            .batches(columns)?
            .map(|batch| batch.map(|b| b.batch))
            .collect::<Result<_, _>>()?;
        let batch = match batches.first() {
            Some(first) => concat_batches(&first.schema(), &batches)
                .map_err(|err| InputError::invalid(&self.path, ARROW, err))?,
            None => {
                let schema = self
                    .schema
                    .project(&self.indices(columns)?)
                    .map_err(|err| InputError::invalid(&self.path, ARROW, err))?;
                let empty: Vec<ArrayRef> = schema
                    .fields()
                    .iter()
                    .map(|field| new_empty_array(field.data_type()))
                    .collect();
                RecordBatch::try_new(schema.into(), empty)
                    .map_err(|err| InputError::invalid(&self.path, ARROW, err))?
            }
        };
        Ok(Columns {
            path: self.path.clone(),
            batch,
            first_row: 0,
            parse: matches!(self.kind, Kind::Delimited | Kind::Json(_)),
        })
    }

    /// Reads some columns batch by batch, in the order of the file.
    ///
    /// # Errors
    /// As [`read`](Self::read), now or at the batch concerned.
    pub fn batches(
        &self,
        columns: &[&str],
    ) -> Result<impl Iterator<Item = Result<Columns, InputError>> + Send + use<>, InputError> {
        let batches = self.record_batches(self.indices(columns)?)?;
        let (path, mut first_row) = (self.path.clone(), 0);
        let parse = matches!(self.kind, Kind::Delimited | Kind::Json(_));
        Ok(batches.map(move |batch| {
            let columns = Columns {
                path: path.clone(),
                first_row,
                batch: batch?,
                parse,
            };
            first_row += columns.rows();
            Ok(columns)
        }))
    }

    fn record_batches(&self, indices: Vec<usize>) -> Result<Batches, InputError> {
        let path = self.path.clone();
        Ok(match &self.kind {
            Kind::Parquet { rows } => {
                let builder = parquet(&path)?;
                let mask = ProjectionMask::roots(builder.parquet_schema(), indices);
                let builder = builder.with_projection(mask).with_batch_size(BATCH_ROWS);
                let reader = without_panic(|| builder.build())
                    .map_err(|err| InputError::invalid(&path, PARQUET, err))?;
                let batches = arrow_batches(path.clone(), PARQUET, reader);
                all_rows(path, *rows, batches)
            }
            Kind::ArrowFile => {
                let file = BufReader::new(open(&path)?);
                let reader = without_panic(|| FileReader::try_new(file, Some(indices)))
                    .map_err(|err| InputError::invalid(&path, ARROW, err))?;
                arrow_batches(path, ARROW, reader)
            }
            Kind::ArrowStream => {
                let file = BufReader::new(open(&path)?);
                let reader = without_panic(|| StreamReader::try_new(file, Some(indices)))
                    .map_err(|err| InputError::invalid(&path, ARROW, err))?;
                arrow_batches(path, ARROW, reader)
            }
            Kind::Delimited => text_batches(delimited(&path)?, path, indices, &self.schema)?,
            Kind::Json(batch) => {
                let batch = batch
                    .project(&indices)
                    .map_err(|err| InputError::invalid(&path, "JSON", err))?;
                Box::new(std::iter::once(Ok(batch)))
            }
        })
    }

    /// Places of the columns, without repeats, in the order of the file.
    fn indices(&self, columns: &[&str]) -> Result<Vec<usize>, InputError> {
        let names: Vec<String> = self
            .schema
            .fields()
            .iter()
            .map(|f| f.name().clone())
            .collect();
        let mut indices = columns
            .iter()
            .map(|column| place(&self.path, &names, column))
            .collect::<Result<Vec<_>, _>>()?;
        indices.sort_unstable();
        indices.dedup();
        Ok(indices)
    }
}

const PARQUET: &str = "Parquet";
const ARROW: &str = "Arrow";

fn open(path: &Path) -> Result<File, InputError> {
    File::open(path).map_err(InputError::read(path))
}

fn parquet(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>, InputError> {
    let file = open(path)?;
    without_panic(|| ParquetRecordBatchReaderBuilder::try_new(file))
        .map_err(|err| InputError::invalid(path, PARQUET, err))
}

fn schema_of<R>(
    path: &Path,
    reader: Result<R, ArrowError>,
    schema: impl Fn(&R) -> SchemaRef,
) -> Result<SchemaRef, InputError> {
    let reader = reader.map_err(|err| InputError::invalid(path, ARROW, err))?;
    Ok(schema(&reader))
}

fn arrow_batches(
    path: PathBuf,
    format: &'static str,
    mut reader: impl Iterator<Item = Result<RecordBatch, ArrowError>> + Send + 'static,
) -> Batches {
    Box::new(
        std::iter::from_fn(move || without_panic(|| reader.next().transpose()).transpose())
            .map(move |batch| batch.map_err(|err| InputError::invalid(&path, format, err))),
    )
}

/// The batches of a Parquet file, and an error behind them where they are not the rows that its footer says: the reader passes over a row
/// group that is cut short.
fn all_rows(path: PathBuf, said: usize, mut batches: Batches) -> Batches {
    let (mut found, mut ended) = (0, false);
    Box::new(std::iter::from_fn(move || {
        if ended {
            return None;
        }
        let next = batches.next();
        if let Some(Ok(batch)) = &next {
            found += batch.num_rows();
            return next;
        }
        ended = true;
        next.or_else(|| {
            let what = format!("its footer says {said} rows, but it has {found}");
            (found != said).then(|| Err(InputError::invalid(&path, PARQUET, what)))
        })
    }))
}

/// The rows of a CSV or TSV file.
fn delimited(path: &Path) -> Result<Delimited, InputError> {
    let input = Input::open(path, TableReader::FORMATS)?;
    let tabs = input.format == Format::Tsv;
    Delimited::new(Lines::new(input), tabs)
}

fn text_batches(
    mut rows: Delimited,
    path: PathBuf,
    indices: Vec<usize>,
    schema: &Schema,
) -> Result<Batches, InputError> {
    let schema = schema.project(&indices);
    let schema = Arc::new(schema.map_err(|err| InputError::invalid(&path, "CSV", err))?);
    let mut first = 0;
    let mut next = move || -> Result<Option<RecordBatch>, InputError> {
        let mut columns: Vec<StringBuilder> =
            indices.iter().map(|_| StringBuilder::new()).collect();
        let mut n = 0;
        while n < TEXT_ROWS {
            let bad = |reason| InputError::Row {
                path: path.clone(),
                row: first + n,
                reason,
            };
            let Some(record) = rows.next_row()? else {
                break;
            };
            let record = record.map_err(bad)?;
            for (column, &index) in columns.iter_mut().zip(&indices) {
                let field = std::str::from_utf8(record.field(index))
                    .map_err(|err| bad(format!("not UTF-8 at byte {}", err.valid_up_to())))?;
                column.append_option(Some(field).filter(|field| !field.is_empty()));
            }
            n += 1;
        }
        first += n;
        if n == 0 {
            return Ok(None);
        }
        let columns = columns
            .into_iter()
            .map(|mut c| Arc::new(c.finish()) as ArrayRef);
        RecordBatch::try_new(schema.clone(), columns.collect())
            .map(Some)
            .map_err(|err| InputError::invalid(&path, "CSV", err))
    };
    let mut done = false;
    Ok(Box::new(std::iter::from_fn(move || {
        if done {
            return None;
        }
        let batch = next().transpose();
        done = !matches!(batch, Some(Ok(_)));
        batch
    })))
}

/// Some columns of some or all rows of a table, as typed vectors.
///
/// Types are converted where nothing is lost: any integer to `i64`, any number to `f64`, texts however encoded. Numbers of CSV, TSV and JSON
/// are read out of their text, white space around them aside. A null is an error, except in the `opt_` forms, and so is an empty cell; NaN is
/// a number.
#[derive(Debug, Clone)]
pub struct Columns {
    path: PathBuf,
    batch: RecordBatch,
    first_row: usize,
    /// Whether numbers are stored as text.
    parse: bool,
}

impl Columns {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.batch.num_rows()
    }

    /// The columns as Arrow has them.
    pub fn batch(&self) -> &RecordBatch {
        &self.batch
    }

    /// Whole numbers; a float column is taken if all its values are whole, as pandas leaves integers that had gaps.
    ///
    /// # Errors
    /// [`InputError::NoColumn`], [`InputError::ColumnType`], [`InputError::Null`].
    pub fn i64(&self, column: &str) -> Result<Vec<i64>, InputError> {
        let values = self.opt_i64(column)?;
        self.required(column, values)
    }

    /// Whole numbers or nothing.
    ///
    /// # Errors
    /// [`InputError::NoColumn`], [`InputError::ColumnType`].
    pub fn opt_i64(&self, column: &str) -> Result<Vec<Option<i64>>, InputError> {
        const EXPECTED: &str = "whole numbers";
        let array = self.array(column)?;
        if self.parse || decoded(array.data_type()).is_floating() {
            let values = self.opt_f64(column)?;
            let whole = |v: f64| v.fract() == 0.0 && v.abs() < 9.0e15;
            if let Some(odd) = values.iter().flatten().find(|v| !whole(**v)) {
                return Err(self.column_type(column, &format!("{odd}"), EXPECTED));
            }
            return Ok(values.into_iter().map(|v| v.map(|v| v as i64)).collect());
        }
        if !decoded(array.data_type()).is_integer() {
            return Err(self.column_type(column, &array.data_type().to_string(), EXPECTED));
        }
        let array = self.convert(column, array, &DataType::Int64, EXPECTED)?;
        Ok(array.as_primitive::<Int64Type>().iter().collect())
    }

    /// Numbers.
    ///
    /// # Errors
    /// [`InputError::NoColumn`], [`InputError::ColumnType`], [`InputError::Null`].
    pub fn f64(&self, column: &str) -> Result<Vec<f64>, InputError> {
        let values = self.opt_f64(column)?;
        self.required(column, values)
    }

    /// Numbers or nothing.
    ///
    /// # Errors
    /// [`InputError::NoColumn`], [`InputError::ColumnType`].
    pub fn opt_f64(&self, column: &str) -> Result<Vec<Option<f64>>, InputError> {
        const EXPECTED: &str = "numbers";
        let array = self.array(column)?;
        if self.parse {
            return self.parsed(column, EXPECTED, |text| text.parse().ok());
        }
        if !decoded(array.data_type()).is_numeric() {
            return Err(self.column_type(column, &array.data_type().to_string(), EXPECTED));
        }
        let array = self.convert(column, array, &DataType::Float64, EXPECTED)?;
        Ok(array.as_primitive::<Float64Type>().iter().collect())
    }

    /// Texts; integers are written out.
    ///
    /// # Errors
    /// [`InputError::NoColumn`], [`InputError::ColumnType`], [`InputError::Null`].
    pub fn text(&self, column: &str) -> Result<Vec<String>, InputError> {
        let values = self.opt_text(column)?;
        self.required(column, values)
    }

    /// Texts or nothing.
    ///
    /// # Errors
    /// [`InputError::NoColumn`], [`InputError::ColumnType`].
    pub fn opt_text(&self, column: &str) -> Result<Vec<Option<String>>, InputError> {
        const EXPECTED: &str = "text";
        let array = self.array(column)?;
        let kind = decoded(array.data_type());
        if !(kind.is_string() || kind.is_integer()) {
            return Err(self.column_type(column, &array.data_type().to_string(), EXPECTED));
        }
        let array = self.convert(column, array, &DataType::Utf8, EXPECTED)?;
        Ok(array
            .as_string::<i32>()
            .iter()
            .map(|text| text.map(str::to_owned))
            .collect())
    }

    /// Truth values.
    ///
    /// # Errors
    /// [`InputError::NoColumn`], [`InputError::ColumnType`], [`InputError::Null`].
    pub fn bool(&self, column: &str) -> Result<Vec<bool>, InputError> {
        const EXPECTED: &str = "truth values";
        let array = self.array(column)?;
        if self.parse {
            let values = self.parsed(column, EXPECTED, |text| {
                match text.to_ascii_lowercase().as_str() {
                    "true" | "1" => Some(true),
                    "false" | "0" => Some(false),
                    _ => None,
                }
            })?;
            return self.required(column, values);
        }
        if *decoded(array.data_type()) != DataType::Boolean {
            return Err(self.column_type(column, &array.data_type().to_string(), EXPECTED));
        }
        let array = self.convert(column, array, &DataType::Boolean, EXPECTED)?;
        self.required(column, array.as_boolean().iter().collect())
    }

    /// Texts or nothing, where the column is one of texts.
    pub(crate) fn only_text(&self, column: &str) -> Result<Vec<Option<String>>, InputError> {
        let kind = self.array(column)?.data_type();
        if !decoded(kind).is_string() {
            return Err(self.column_type(column, &kind.to_string(), "text"));
        }
        self.opt_text(column)
    }

    /// Values out of cells of text; white space around them is no part of them, and an empty cell is no value.
    fn parsed<T>(
        &self,
        column: &str,
        expected: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Vec<Option<T>>, InputError> {
        let value = |(row, cell): (usize, Option<&str>)| {
            let Some(text) = cell.map(str::trim).filter(|text| !text.is_empty()) else {
                return Ok(None);
            };
            let found = || format!("`{text}` in row {}", self.first_row + row);
            let value = parse(text).ok_or_else(|| self.column_type(column, &found(), expected))?;
            Ok(Some(value))
        };
        let array = self.array(column)?;
        array
            .as_string::<i32>()
            .iter()
            .enumerate()
            .map(value)
            .collect()
    }

    fn array(&self, column: &str) -> Result<&ArrayRef, InputError> {
        self.batch
            .column_by_name(column)
            .ok_or_else(|| InputError::NoColumn {
                path: self.path.clone(),
                column: column.to_owned(),
                available: self
                    .batch
                    .schema()
                    .fields()
                    .iter()
                    .map(|field| field.name().clone())
                    .collect(),
            })
    }

    fn convert(
        &self,
        column: &str,
        array: &ArrayRef,
        to: &DataType,
        expected: &'static str,
    ) -> Result<ArrayRef, InputError> {
        // Not `safe`: a value that does not fit is an error instead of a null.
        let options = CastOptions {
            safe: false,
            ..Default::default()
        };
        cast_with_options(array, to, &options)
            .map_err(|err| self.column_type(column, &err.to_string(), expected))
    }

    fn required<T>(&self, column: &str, values: Vec<Option<T>>) -> Result<Vec<T>, InputError> {
        let null = |i| InputError::Null {
            path: self.path.clone(),
            column: column.to_owned(),
            row: self.first_row + i,
        };
        values
            .into_iter()
            .enumerate()
            .map(|(i, value)| value.ok_or_else(|| null(i)))
            .collect()
    }

    fn column_type(&self, column: &str, found: &str, expected: &'static str) -> InputError {
        InputError::ColumnType {
            path: self.path.clone(),
            column: column.to_owned(),
            found: found.to_owned(),
            expected,
        }
    }
}

thread_local! {
    static PANIC_BECOMES_ERROR: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic of this thread, now, would become an [`InputError`]: arrow panics on some damaged files. The panic hook of a
/// program may keep silent about such a one.
///
/// # Examples
/// ```
/// let shown = std::panic::take_hook();
/// std::panic::set_hook(Box::new(move |panic| {
///     if !input_files::panic_becomes_error() {
///         shown(panic);
///     }
/// }));
/// ```
pub fn panic_becomes_error() -> bool {
    PANIC_BECOMES_ERROR.get()
}

/// Runs a reader of arrow's or parquet's, which panic on some damaged files where they should return an error.
pub(crate) fn without_panic<T, E: Damaged>(read: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    PANIC_BECOMES_ERROR.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(read));
    PANIC_BECOMES_ERROR.set(false);
    outcome.unwrap_or_else(|_| Err(E::damaged()))
}

/// Errors of the readers.
pub(crate) trait Damaged {
    /// The error that stands for a panic.
    fn damaged() -> Self;
}

const DAMAGED: &str = "the file is damaged";

impl Damaged for ArrowError {
    fn damaged() -> Self {
        Self::IpcError(DAMAGED.to_owned())
    }
}

impl Damaged for ParquetError {
    fn damaged() -> Self {
        Self::General(DAMAGED.to_owned())
    }
}

/// The type of the values, whether or not they are dictionary-encoded.
fn decoded(kind: &DataType) -> &DataType {
    match kind {
        DataType::Dictionary(_, values) => values,
        other => other,
    }
}
