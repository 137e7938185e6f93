//! Streaming documents out of files, folders and globs.

use std::{
    collections::{BTreeSet, VecDeque},
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
};

use input_files::{InputError, TextRow, TextUnit, Texts, find};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{BadRow, Document};

/// Why a corpus cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CorpusError {
    /// A file, folder or glob that cannot be read.
    #[error(transparent)]
    Input(#[from] InputError),
    /// A bad row, where bad rows are fatal.
    #[error("bad row in {0}")]
    BadRow(BadRow),
    /// A row range that is empty or past the end of the corpus.
    #[error("rows {}..{} hold no document: {found} rows were read", rows.start, rows.end)]
    Rows {
        /// The range.
        rows: Range<usize>,
        /// Rows read.
        found: usize,
    },
    /// No document in any file.
    #[error("the corpus holds no document: {}", nothing(*files, *empty, *bad_rows))]
    NoDocument {
        /// Files read.
        files: usize,
        /// Those with nothing in them.
        empty: usize,
        /// Bad rows, which were left out.
        bad_rows: usize,
    },
}

fn nothing(files: usize, empty: usize, bad_rows: usize) -> String {
    match (files, empty, bad_rows) {
        (1, 1, _) => "its file is empty".into(),
        (files, empty, _) if files == empty => format!("its {files} files are all empty"),
        (_, _, 0) => format!("its files ({files}, of them {empty} empty) have no row"),
        (_, _, bad) => format!("its {bad} rows are all bad"),
    }
}

/// What to do with a row that has no usable text: no such column, null, not UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum BadRows {
    /// Stop with [`CorpusError::BadRow`].
    #[default]
    Fail,
    /// Leave it out, and report it in [`CorpusSummary`].
    Skip,
}

/// How a corpus is read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReadOptions {
    /// The column (or JSON key) with the text.
    pub column: String,
    /// Rows of the whole corpus to read, from 0, end excluded; `None` reads all.
    pub rows: Option<Range<usize>>,
    /// What to do with bad rows.
    pub bad_rows: BadRows,
    /// What a document is in plain text.
    pub text_unit: TextUnit,
}

impl ReadOptions {
    /// With another [`column`](Self::column).
    #[must_use]
    pub fn with_column(self, column: impl Into<String>) -> Self {
        Self {
            column: column.into(),
            ..self
        }
    }

    /// With another [`rows`](Self::rows).
    #[must_use]
    pub fn with_rows(self, rows: impl Into<Option<Range<usize>>>) -> Self {
        Self {
            rows: rows.into(),
            ..self
        }
    }

    /// With another [`bad_rows`](Self::bad_rows).
    #[must_use]
    pub fn with_bad_rows(self, bad_rows: BadRows) -> Self {
        Self { bad_rows, ..self }
    }

    /// With another [`text_unit`](Self::text_unit).
    #[must_use]
    pub fn with_text_unit(self, text_unit: TextUnit) -> Self {
        Self { text_unit, ..self }
    }
}

impl Default for ReadOptions {
    /// All rows of column `text`; a bad row is fatal.
    fn default() -> Self {
        Self {
            column: "text".into(),
            rows: None,
            bad_rows: BadRows::default(),
            text_unit: TextUnit::default(),
        }
    }
}

/// A corpus: files in a fixed order, and how to read them.
///
/// # Examples
/// ```
/// use longtail_corpus::{CorpusReader, ReadOptions};
///
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("a.jsonl");
/// # std::fs::write(&path, "{\"text\":\"call me\"}\n{\"text\":\"ishmael\"}\n")?;
/// let corpus = CorpusReader::open(&[&path], ReadOptions::default().with_rows(1..2))?;
/// let texts: Vec<String> = corpus.documents().map(|doc| Ok(doc?.text)).collect::<Result<_, longtail_corpus::CorpusError>>()?;
/// assert_eq!(texts, ["ishmael"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct CorpusReader {
    files: Vec<Arc<PathBuf>>,
    ignored: Vec<PathBuf>,
    hidden: Vec<PathBuf>,
    options: ReadOptions,
}

impl CorpusReader {
    /// Finds the files: each path is a file, a folder (read with its subfolders, in the order of names) or a glob. A file found twice is read once.
    ///
    /// Formats go by the end of the name: Parquet, Arrow, JSON Lines (`.jsonl`, `.json`, `.ndjson`), CSV and TSV with a header, plain text;
    /// text formats also with `.gz` or `.zst`. Other files in a folder are left alone, and so are hidden files and folders; [`Self::ignored`]
    /// and [`Self::hidden`] list them.
    ///
    /// # Errors
    /// [`CorpusError::Input`] for a path without corpus files, and a folder that cannot be listed
    pub fn open(paths: &[impl AsRef<Path>], options: ReadOptions) -> Result<Self, CorpusError> {
        let mut corpus = Self {
            files: Vec::new(),
            ignored: Vec::new(),
            hidden: Vec::new(),
            options,
        };
        let mut seen = BTreeSet::new();
        for path in paths {
            let mut found = find(path, Texts::FORMATS)?;
            found.files.retain(|file| seen.insert(file.clone()));
            corpus.files.extend(found.files.into_iter().map(Arc::new));
            corpus.ignored.append(&mut found.ignored);
            corpus.hidden.append(&mut found.hidden);
        }
        Ok(corpus)
    }

    /// The files, in reading order.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.as_path())
    }

    /// Files in the folders given that are not of a known format.
    pub fn ignored(&self) -> &[PathBuf] {
        &self.ignored
    }

    /// Hidden files and folders in the folders given, which are not read.
    pub fn hidden(&self) -> &[PathBuf] {
        &self.hidden
    }

    /// Size of all files as stored, in bytes; the measure of [`Documents::bytes_read`].
    pub fn total_bytes(&self) -> u64 {
        self.files
            .iter()
            .filter_map(|file| file.metadata().ok())
            .map(|meta| meta.len())
            .sum()
    }

    /// Reads the documents in order, one at a time.
    pub fn documents(&self) -> Documents {
        Documents {
            files: self.files.iter().cloned().collect(),
            options: self.options.clone(),
            current: None,
            index: 0,
            done: false,
            summary: CorpusSummary {
                ignored: self.ignored.clone(),
                hidden: self.hidden.clone(),
                ..CorpusSummary::default()
            },
            hash: Sha256::new(),
            bytes_read: Arc::default(),
        }
    }
}

/// What was read of a corpus.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CorpusSummary {
    /// Rows in the range asked for, good and bad.
    pub rows: usize,
    /// Documents among them.
    pub documents: usize,
    /// Bytes of text in the documents.
    pub text_bytes: u64,
    /// Files that were not read, because their names end in no format of a corpus.
    pub ignored: Vec<PathBuf>,
    /// Hidden files and folders, which were not read.
    pub hidden: Vec<PathBuf>,
    /// Files opened.
    pub files: usize,
    /// Those with nothing in them.
    pub empty_files: usize,
    /// Bad rows, all counted.
    pub bad_rows: usize,
    /// The first bad rows, at most [`Self::NAMED`].
    pub bad_row_samples: Vec<BadRow>,
}

impl CorpusSummary {
    /// Bad rows that are named; the rest are only counted.
    pub const NAMED: usize = 100;

    /// How much was left out, by what it is.
    pub fn counts(&self) -> [(&'static str, u64); 4] {
        [
            ("bad_rows_skipped", self.bad_rows as u64),
            ("files_empty", self.empty_files as u64),
            ("files_hidden", self.hidden.len() as u64),
            ("files_of_other_formats", self.ignored.len() as u64),
        ]
    }

    /// What was left out, in sentences.
    pub fn warnings(&self) -> Vec<String> {
        let not_read = |paths: &[PathBuf], why: &str| {
            let named: Vec<String> = paths
                .iter()
                .take(5)
                .map(|path| format!("`{}`", path.display()))
                .collect();
            let more = match paths.len() - named.len() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            (!paths.is_empty())
                .then(|| format!("not read, because {why}: {}{more}", named.join(", ")))
        };
        let bad_rows = self.bad_row_samples.iter();
        let unnamed = self.bad_rows - self.bad_row_samples.len();
        let files = [
            not_read(&self.ignored, "the names end in no format of a corpus"),
            not_read(&self.hidden, "they are hidden"),
            (self.empty_files > 0).then(|| {
                format!(
                    "{} of {} files of the corpus are empty",
                    self.empty_files, self.files
                )
            }),
            (unnamed > 0).then(|| format!("{unnamed} more rows left out, which are not named")),
        ];
        let bad_rows = bad_rows.map(|bad| format!("row left out: {bad}"));
        bad_rows.chain(files.into_iter().flatten()).collect()
    }
}

/// The documents of a [`CorpusReader`]. Memory holds one row (for Parquet, one batch of a few) at a time.
///
/// An error ends it. Reading no document at all is an error, [`CorpusError::Rows`] or [`CorpusError::NoDocument`].
pub struct Documents {
    files: VecDeque<Arc<PathBuf>>,
    options: ReadOptions,
    current: Option<OpenFile>,
    index: usize,
    done: bool,
    summary: CorpusSummary,
    hash: Sha256,
    bytes_read: Arc<AtomicU64>,
}

struct OpenFile {
    file: Arc<PathBuf>,
    row: usize,
    rows: Texts,
}

impl Documents {
    /// What was read so far.
    pub fn summary(&self) -> &CorpusSummary {
        &self.summary
    }

    /// SHA-256, in hexadecimal, over the texts read so far, each preceded by its length in bytes (8 bytes, little-endian).
    pub fn sha256(&self) -> String {
        hex(&self.hash.clone().finalize())
    }

    /// Bytes read so far of the files as stored; another thread may watch it. Parquet files count when they are done.
    pub fn bytes_read(&self) -> Arc<AtomicU64> {
        self.bytes_read.clone()
    }

    fn step(&mut self) -> Result<Option<Document>, CorpusError> {
        let wanted_rows = self.options.rows.clone().unwrap_or(0..usize::MAX);
        while self.index < wanted_rows.end {
            let Some(open) = &mut self.current else {
                let Some(file) = self.files.pop_front() else {
                    break;
                };
                self.summary.files += 1;
                let (column, unit) = (&self.options.column, self.options.text_unit);
                let rows = match Texts::open(&file, column, unit, &self.bytes_read) {
                    Err(InputError::Empty { .. }) => {
                        self.summary.empty_files += 1;
                        continue;
                    }
                    rows => rows?,
                };
                self.current = Some(OpenFile { file, row: 0, rows });
                continue;
            };
            let wanted = self.index >= wanted_rows.start;
            let Some(row) = open.rows.next_row(wanted)? else {
                self.current = None;
                continue;
            };
            let (file, at, index) = (open.file.clone(), open.row, self.index);
            open.row += 1;
            self.index += 1;
            if !wanted {
                continue;
            }
            self.summary.rows += 1;
            match row {
                TextRow::Text(text) => {
                    self.summary.documents += 1;
                    self.summary.text_bytes += text.len() as u64;
                    self.hash.update((text.len() as u64).to_le_bytes());
                    self.hash.update(&text);
                    return Ok(Some(Document {
                        index,
                        file,
                        row: at,
                        text,
                    }));
                }
                TextRow::Bad(reason) => {
                    let bad = BadRow {
                        file,
                        row: at,
                        reason,
                    };
                    if self.options.bad_rows == BadRows::Fail {
                        return Err(CorpusError::BadRow(bad));
                    }
                    self.summary.bad_rows += 1;
                    if self.summary.bad_row_samples.len() < CorpusSummary::NAMED {
                        self.summary.bad_row_samples.push(bad);
                    }
                }
            }
        }
        if self.summary.documents == 0 {
            return Err(match self.options.rows.clone() {
                Some(rows) if self.index > 0 && self.summary.rows == 0 => CorpusError::Rows {
                    rows,
                    found: self.index,
                },
                _ => CorpusError::NoDocument {
                    files: self.summary.files,
                    empty: self.summary.empty_files,
                    bad_rows: self.summary.bad_rows,
                },
            });
        }
        Ok(None)
    }
}

impl Iterator for Documents {
    type Item = Result<Document, CorpusError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let item = self.step().transpose();
        self.done = !matches!(item, Some(Ok(_)));
        item
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
