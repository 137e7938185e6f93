//! Why an input cannot be read.

use std::{
    io,
    path::{Path, PathBuf},
};

use file_kind::FileKind;

use crate::Format;

/// Why an input cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// No such file or folder, and no glob either.
    #[error("`{}` not found", path.display())]
    NotFound {
        /// The path.
        path: PathBuf,
    },
    /// A folder or glob without a readable file.
    #[error("`{}` holds no file that ends in {expected}{}", path.display(), left_out(*ignored, *hidden))]
    NoFiles {
        /// The path.
        path: PathBuf,
        /// The endings that are read.
        expected: String,
        /// Files of other formats there.
        ignored: usize,
        /// Hidden files and folders there.
        hidden: usize,
    },
    /// A glob that cannot be parsed.
    #[error("`{pattern}` is not a glob")]
    Glob {
        /// The text.
        pattern: String,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file name that says nothing of its format, or names one that is not read here.
    #[error("`{}` has an unknown format: expected {expected}", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// The endings that are read.
        expected: String,
    },
    /// A file that is something else than its name says.
    #[error("`{}` is {kind}", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// What it is, and what to do.
        kind: FileKind,
    },
    /// A file with nothing in it.
    #[error("`{}` is empty", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A file that cannot be opened or read to its end.
    #[error("failed to read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file that is damaged, or not what its name says.
    #[error("`{}` is not valid {format}: {what}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The format it should have.
        format: &'static str,
        /// What is wrong, and what to do.
        what: String,
    },
    /// A format that this program was built without.
    #[error("`{}` is not read by this program, which was built without the feature `parquet` of the crate `input-files`", path.display())]
    WithoutParquet {
        /// The file.
        path: PathBuf,
    },
    /// A table without a column.
    #[error("`{}` has no column `{column}`; its columns: {}", path.display(), available.join(", "))]
    NoColumn {
        /// The file.
        path: PathBuf,
        /// The column asked for.
        column: String,
        /// Those there are.
        available: Vec<String>,
    },
    /// A column that is there twice.
    #[error("`{}` has two columns `{column}`: rename or remove one", path.display())]
    TwoColumns {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
    },
    /// A column holds something else.
    #[error("column `{column}` of `{}` holds {found}, expected {expected}", path.display())]
    ColumnType {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// What it holds.
        found: String,
        /// What was asked for.
        expected: &'static str,
    },
    /// A value is missing where one is needed.
    #[error("column `{column}` of `{}` is null in row {row}", path.display())]
    Null {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// The row in the file, from 0.
        row: usize,
    },
    /// A row that cannot be read.
    #[error("`{}`, row {row}: {reason}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// The row in the file, from 0.
        row: usize,
        /// What is wrong with it.
        reason: String,
    },
}

impl InputError {
    /// What to say of a file whose name ends in none of the formats: what it is, if that can be told.
    pub fn unknown_format(path: &Path, formats: &[Format]) -> Self {
        match FileKind::of_file(path) {
            Err(err) => Self::read(path)(err),
            Ok(Some(kind)) => Self::Kind {
                path: path.into(),
                kind,
            },
            Ok(None) => Self::UnknownFormat {
                path: path.into(),
                expected: Format::endings(formats),
            },
        }
    }

    /// A file that is not valid `format`.
    pub(crate) fn invalid(path: &Path, format: &'static str, what: impl ToString) -> Self {
        Self::Invalid {
            path: path.into(),
            format,
            what: what.to_string(),
        }
    }

    /// A failure of the system; `path` is the file.
    pub(crate) fn read(path: &Path) -> impl Fn(io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |source| match source.kind() {
            io::ErrorKind::NotFound => Self::NotFound { path: path.clone() },
            _ => Self::Read {
                path: path.clone(),
                source,
            },
        }
    }
}

/// Place of a column among those of a table.
pub(crate) fn place(path: &Path, columns: &[String], column: &str) -> Result<usize, InputError> {
    let mut places = (0..columns.len()).filter(|&at| columns[at] == column);
    match (places.next(), places.next()) {
        (Some(at), None) => Ok(at),
        (Some(_), Some(_)) => Err(InputError::TwoColumns {
            path: path.into(),
            column: column.into(),
        }),
        (None, _) => Err(InputError::NoColumn {
            path: path.into(),
            column: column.into(),
            available: columns.to_vec(),
        }),
    }
}

fn left_out(ignored: usize, hidden: usize) -> String {
    match (ignored, hidden) {
        (0, 0) => String::new(),
        (others, 0) => format!(", but {others} of other formats"),
        (0, hidden) => format!(", but {hidden} hidden files or folders, which are not read"),
        (others, hidden) => format!(
            ", but {others} of other formats, and {hidden} hidden files or folders, which are not read"
        ),
    }
}
