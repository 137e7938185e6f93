//! Input files: opening them, whatever their compression, and reading rows of text, tables, arrays of integers and JSON out of them.
//!
//! Every reader of the workspace stands on this crate, so that a file means the same in each:
//!
//! - the format goes by the end of the name, in any case ([`Format::of`]), and text formats also with `.gz` or `.zst`;
//! - a byte order mark is skipped; a file that is something else (a Git LFS pointer, a web page, UTF-16) is an error that says what to do;
//! - headers of columns are trimmed, a column named twice is an error, and so is a row with more or fewer fields than the header;
//! - an empty cell of a table is a missing value, like a null;
//! - no size that a file claims is believed before its bytes are there.
//!
//! ```
//! # #[cfg(feature = "parquet")] {
//! use input_files::TableReader;
//!
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("words.tsv");
//! std::fs::write(&path, "\u{feff}word \tcontext\nwhale\t\"There\" she blows, the \nship\t\n")?;
//! let table = TableReader::open(&path)?.read(&["word", "context"])?;
//! assert_eq!(table.text("word")?, ["whale", "ship"]);
//! assert_eq!(table.opt_text("context")?, [Some("\"There\" she blows, the ".to_owned()), None]);
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Features
//! - `parquet`, on by default: tables ([`TableReader`]), Parquet and Arrow files. Without it the crate has 31 dependencies instead of 93, and reads
//!   rows of text out of JSON Lines, CSV, TSV and plain text, arrays and JSON.

#[cfg(feature = "parquet")]
mod arrow_sizes;
mod delimited;
mod error;
mod find;
mod format;
mod json;
mod lines;
mod npy;
mod open;
#[cfg(feature = "parquet")]
mod records;
#[cfg(feature = "parquet")]
mod table;
mod texts;

pub use error::InputError;
pub use find::{Found, find};
pub use format::{Compression, Format};
pub use json::{Pairs, read_json};
pub use npy::{IntegerArray, read_npy};
pub use open::{Input, Progress, read_text};
#[cfg(feature = "parquet")]
pub use table::{Columns, TableReader, panic_becomes_error};
pub use texts::{TextRow, TextUnit, Texts};
