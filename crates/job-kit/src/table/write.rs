//! Tables written batch by batch.

use std::path::{Path, PathBuf};

use arrow::{
    csv,
    datatypes::SchemaRef,
    ipc::{
        CompressionType,
        writer::{FileWriter, IpcWriteOptions},
    },
    record_batch::RecordBatch,
};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    file::properties::WriterProperties,
};

use super::{Format, TableError};
use crate::output::{AtomicFile, OutputDir};

/// Rows and bytes of a Parquet row group at most, so that memory stays flat.
const GROUP_ROWS: usize = 1 << 20;
const GROUP_BYTES: usize = 64 << 20;

/// Writes a table batch by batch; the file appears under its name at [`finish`](Self::finish).
///
/// # Examples
/// ```
/// use std::sync::Arc;
/// use arrow::{array::Int32Array, record_batch::RecordBatch};
/// use job_kit::{Format, TableReader, TableWriter};
///
/// let dir = tempfile::tempdir()?;
/// let path = dir.path().join("neurons.parquet");
/// let batch = RecordBatch::try_from_iter([("neuron", Arc::new(Int32Array::from(vec![3, 17])) as _)])?;
/// let mut writer = TableWriter::create(&path, batch.schema(), Format::Parquet)?;
/// writer.write(&batch)?;
/// assert_eq!(writer.finish()?, 2);
/// assert_eq!(TableReader::open(&path)?.read(&["neuron"])?.i64("neuron")?, [3, 17]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct TableWriter {
    path: PathBuf,
    rows: u64,
    sink: Sink,
}

enum Sink {
    Parquet(Box<ArrowWriter<AtomicFile>>),
    Feather(Box<FileWriter<AtomicFile>>),
    Csv(Box<csv::Writer<AtomicFile>>),
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Parquet(_) => "Parquet",
            Self::Feather(_) => "Feather",
            Self::Csv(_) => "Csv",
        })
    }
}

impl TableWriter {
    /// Starts a table.
    ///
    /// # Errors
    /// [`TableError::Output`] or [`TableError::Write`] if the file cannot be made.
    pub fn create(
        path: impl AsRef<Path>,
        schema: SchemaRef,
        format: Format,
    ) -> Result<Self, TableError> {
        Self::to(AtomicFile::create(path.as_ref())?, schema, format)
    }

    /// Starts a table in a file that was started, such as an [output](OutputDir::file).
    ///
    /// # Errors
    /// [`TableError::Write`] if it cannot be written to.
    pub fn to(file: AtomicFile, schema: SchemaRef, format: Format) -> Result<Self, TableError> {
        let path = file.path().to_owned();
        let sink = match format {
            Format::Parquet => {
                let properties = WriterProperties::builder()
                    .set_compression(Compression::ZSTD(ZstdLevel::default()))
                    .set_max_row_group_row_count(Some(GROUP_ROWS))
                    .set_max_row_group_bytes(Some(GROUP_BYTES))
                    .build();
                let writer = ArrowWriter::try_new(file, schema, Some(properties));
                Sink::Parquet(Box::new(
                    writer.map_err(|err| TableError::write_parquet(&path, err))?,
                ))
            }
            Format::Feather => {
                let writer = IpcWriteOptions::default()
                    .try_with_compression(Some(CompressionType::LZ4_FRAME))
                    .and_then(|options| FileWriter::try_new_with_options(file, &schema, options));
                Sink::Feather(Box::new(
                    writer.map_err(|err| TableError::write_arrow(&path, err))?,
                ))
            }
            Format::Csv => {
                let mut writer = csv::WriterBuilder::new().with_header(true).build(file);
                // The header stands even if no rows follow.
                writer
                    .write(&RecordBatch::new_empty(schema))
                    .map_err(|err| TableError::write_arrow(&path, err))?;
                Sink::Csv(Box::new(writer))
            }
        };
        Ok(Self {
            path,
            rows: 0,
            sink,
        })
    }

    /// Adds rows.
    ///
    /// # Errors
    /// [`TableError::Write`], for instance on a full disk or with another schema than the table's.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), TableError> {
        match &mut self.sink {
            Sink::Parquet(writer) => writer
                .write(batch)
                .map_err(|err| TableError::write_parquet(&self.path, err))?,
            Sink::Feather(writer) => writer
                .write(batch)
                .map_err(|err| TableError::write_arrow(&self.path, err))?,
            Sink::Csv(writer) => writer
                .write(batch)
                .map_err(|err| TableError::write_arrow(&self.path, err))?,
        }
        self.rows += batch.num_rows() as u64;
        Ok(())
    }

    /// Completes the table and gives it its name; returns the number of rows.
    ///
    /// # Errors
    /// [`TableError::Write`] or [`TableError::Output`].
    pub fn finish(self) -> Result<u64, TableError> {
        let Self { path, rows, sink } = self;
        let file = match sink {
            Sink::Parquet(writer) => writer
                .into_inner()
                .map_err(|err| TableError::write_parquet(&path, err))?,
            Sink::Feather(writer) => writer
                .into_inner()
                .map_err(|err| TableError::write_arrow(&path, err))?,
            Sink::Csv(writer) => writer.into_inner(),
        };
        file.commit()?;
        Ok(rows)
    }
}

impl OutputDir {
    /// Writes a whole table as an output; the ending of its name says in which format.
    ///
    /// # Errors
    /// Any [`TableError`] of writing.
    pub fn table(&self, name: &str, rows: &RecordBatch) -> Result<(), TableError> {
        let mut writer =
            TableWriter::to(self.file(name)?, rows.schema(), Format::from_path(name)?)?;
        writer.write(rows)?;
        writer.finish()?;
        Ok(())
    }
}
