//! Token counts: how often each token id occurs in a training corpus.

use std::{
    fmt::Display,
    path::{Path, PathBuf},
};

#[cfg(feature = "parquet")]
use input_files::TableReader;
use input_files::{Format, InputError, Pairs, read_npy, read_text};
use serde_json::Value;

/// Why token counts could not be read or do not fit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CountsError {
    /// The file cannot be read, or is not what its name says.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The file holds something other than counts.
    #[error("token counts `{}`: {what}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What was expected, and found.
        what: String,
    },
    /// A count below zero.
    #[error("token {id} has count {count} in `{}`, expected 0 or more", path.display())]
    Negative {
        /// The file.
        path: PathBuf,
        /// The token.
        id: usize,
        /// Its count.
        count: String,
    },
    /// More counts than the vocabulary has tokens.
    #[error("{found} token counts for a vocabulary of {d_vocab}: they belong to another model")]
    TooLong {
        /// Counts given.
        found: usize,
        /// Rows of the vocabulary.
        d_vocab: usize,
    },
    /// Fewer counts than the tokenizer has tokens, or counts of tokens it does not have.
    #[error("token counts do not fit the tokenizer: {what}")]
    Tokenizer {
        /// What does not fit.
        what: String,
    },
    /// The sum of all counts does not fit 64 bits.
    #[error("the sum of the token counts is over 2^64")]
    Overflow,
    /// Every count is zero.
    #[error("all {d_vocab} token counts are zero: there is nothing to rank")]
    AllZero {
        /// Rows of the vocabulary.
        d_vocab: usize,
    },
}

/// Occurrences of every token id, `[d_vocab]`.
///
/// # Examples
/// ```
/// use longtail_corpus::TokenCounts;
///
/// let counts = TokenCounts::new(vec![5, 0, 2], 4)?; // one padding row
/// assert_eq!(counts.as_slice(), [5, 0, 2, 0]);
/// assert_eq!((counts.listed(), counts.padded(), counts.total()), (3, 1, 7));
/// # Ok::<(), longtail_corpus::CountsError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenCounts {
    counts: Vec<u64>,
    listed: usize,
    total: u64,
}

impl TokenCounts {
    /// Takes counts in the order of token ids and pads them with zeros to `d_vocab`.
    ///
    /// # Errors
    /// - [`CountsError::TooLong`] if there are more counts than `d_vocab`
    /// - [`CountsError::AllZero`] if no count is above 0
    /// - [`CountsError::Overflow`] if their sum, plus one per token, is over `u64::MAX`
    pub fn new(mut counts: Vec<u64>, d_vocab: usize) -> Result<Self, CountsError> {
        let listed = counts.len();
        if listed > d_vocab {
            return Err(CountsError::TooLong {
                found: listed,
                d_vocab,
            });
        }
        counts.resize(d_vocab, 0);
        let total = counts
            .iter()
            .try_fold(0u64, |sum, &count| sum.checked_add(count))
            .filter(|total| total.checked_add(d_vocab as u64).is_some())
            .ok_or(CountsError::Overflow)?;
        if total == 0 {
            return Err(CountsError::AllZero { d_vocab });
        }
        Ok(Self {
            counts,
            listed,
            total,
        })
    }

    /// Reads counts and pads them to `d_vocab`; [`Self::padded`] says by how many.
    ///
    /// - `.npy`: one-dimensional, integers of any width
    /// - `.json`: a list of counts, or an object from token id to count
    /// - `.parquet` and other tables: columns `token_id` and `count`, as [`write_counts`](crate::write_counts) writes them
    ///
    /// # Errors
    /// - [`CountsError::Input`], [`CountsError::Format`] or [`CountsError::Negative`] for a file that is not that
    /// - those of [`Self::new`]
    pub fn read(path: impl AsRef<Path>, d_vocab: usize) -> Result<Self, CountsError> {
        Self::new(read_list(path.as_ref())?, d_vocab)
    }

    /// The same, with as many rows as the file lists.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_unpadded(path: impl AsRef<Path>) -> Result<Self, CountsError> {
        let counts = read_list(path.as_ref())?;
        let d_vocab = counts.len();
        Self::new(counts, d_vocab)
    }

    /// The counts by token id, `[d_vocab]`.
    pub fn as_slice(&self) -> &[u64] {
        &self.counts
    }

    /// Rows, padding included.
    pub fn d_vocab(&self) -> usize {
        self.counts.len()
    }

    /// Counts that were given; the rest are padding.
    pub fn listed(&self) -> usize {
        self.listed
    }

    /// Zeros that were appended to reach `d_vocab`.
    pub fn padded(&self) -> usize {
        self.counts.len() - self.listed
    }

    /// Sum of all counts: the tokens of the corpus.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Checks that these counts can come from a tokenizer of `n_tokens` tokens.
    ///
    /// # Errors
    /// - [`CountsError::Tokenizer`] if fewer tokens are listed, or a token past the tokenizer was seen
    pub fn check_tokenizer(&self, n_tokens: usize) -> Result<(), CountsError> {
        if self.listed < n_tokens {
            let what = format!("{} counts for {n_tokens} tokens", self.listed);
            return Err(CountsError::Tokenizer { what });
        }
        match self
            .counts
            .iter()
            .skip(n_tokens)
            .position(|&count| count > 0)
        {
            None => Ok(()),
            Some(past) => {
                let id = n_tokens + past;
                let what = format!(
                    "token {id} was seen {} times, but the tokenizer ends at {}",
                    self.counts[id],
                    n_tokens.saturating_sub(1)
                );
                Err(CountsError::Tokenizer { what })
            }
        }
    }
}

const FORMATS: &[Format] = &[
    Format::Npy,
    Format::Json,
    Format::Parquet,
    Format::Arrow,
    Format::Csv,
    Format::Tsv,
    Format::JsonLines,
];

fn read_list(path: &Path) -> Result<Vec<u64>, CountsError> {
    match Format::of(path) {
        Some((Format::Npy, _)) => read_array(path),
        Some((Format::Json, _)) => read_json(path),
        Some((format, _)) if FORMATS.contains(&format) => read_table(path),
        _ => Err(InputError::unknown_format(path, FORMATS).into()),
    }
}

fn format(path: &Path, what: impl Into<String>) -> CountsError {
    CountsError::Format {
        path: path.into(),
        what: what.into(),
    }
}

fn unsigned(
    path: &Path,
    id: usize,
    count: impl TryInto<u64> + Copy + Display,
) -> Result<u64, CountsError> {
    count.try_into().map_err(|_| CountsError::Negative {
        path: path.into(),
        id,
        count: count.to_string(),
    })
}

fn read_array(path: &Path) -> Result<Vec<u64>, CountsError> {
    let array = read_npy::<i128>(path)?;
    if array.shape.len() != 1 {
        return Err(format(
            path,
            format!("has shape {:?}, expected one dimension", array.shape),
        ));
    }
    let counts = array.values.into_iter().enumerate();
    counts
        .map(|(id, count)| unsigned(path, id, count))
        .collect()
}

/// Token ids in an object or table: a wrong one must not ask for gigabytes of zeros.
const MAX_TOKEN_ID: usize = 1 << 24;

fn read_json(path: &Path) -> Result<Vec<u64>, CountsError> {
    const EXPECTED: &str =
        "expected a list of counts by token id, or an object from token id to count";
    let text = read_text(path, &[Format::Json])?;
    let parse_as = text.trim_start().chars().next();
    let invalid = |err: serde_json::Error| format(path, format!("{EXPECTED}: {err}"));
    let value = |id: usize, value: &Value| {
        // 12.0 is 12, as in tables.
        let whole = value
            .as_f64()
            .filter(|v| v.fract() == 0.0 && v.abs() < 9.0e15);
        let count = match (value.as_u64(), whole) {
            (Some(count), _) => return Ok(count),
            (None, Some(whole)) => whole as i64,
            (None, None) => {
                return Err(format(
                    path,
                    format!(
                        "token {id} has count {}, expected a whole number",
                        short(value)
                    ),
                ));
            }
        };
        unsigned(path, id, count)
    };
    match parse_as {
        Some('[') => {
            let list: Vec<Value> = serde_json::from_str(&text).map_err(invalid)?;
            list.iter()
                .enumerate()
                .map(|(id, count)| value(id, count))
                .collect()
        }
        Some('{') => {
            let Pairs(map) = serde_json::from_str::<Pairs<Value>>(&text).map_err(invalid)?;
            let mut pairs = Vec::with_capacity(map.len());
            for (key, count) in map {
                let id: usize = key.trim().parse().map_err(|_| {
                    let holds = if count.is_array() || count.is_object() {
                        format!(
                            "; it holds {}: if these are the counts, write them alone",
                            short(&count)
                        )
                    } else {
                        String::new()
                    };
                    format(
                        path,
                        format!("key `{key}` is not a token id, {EXPECTED}{holds}"),
                    )
                })?;
                pairs.push((id, value(id, &count)?));
            }
            by_id(path, pairs)
        }
        _ => Err(format(path, EXPECTED)),
    }
}

/// A value as a message shows it.
fn short(value: &Value) -> String {
    match value {
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(map) => format!("an object of {} keys", map.len()),
        other => format!("`{other}`"),
    }
}

fn by_id(path: &Path, pairs: Vec<(usize, u64)>) -> Result<Vec<u64>, CountsError> {
    let last = pairs.iter().map(|(id, _)| *id).max();
    if let Some(id) = last.filter(|&id| id >= MAX_TOKEN_ID) {
        return Err(format(
            path,
            format!("token id {id} is over {}", MAX_TOKEN_ID - 1),
        ));
    }
    let rows = last.map_or(0, |id| id + 1);
    let mut counts = vec![0; rows];
    let mut given = vec![false; rows];
    for (id, count) in pairs {
        if std::mem::replace(&mut given[id], true) {
            return Err(format(path, format!("token {id} is listed twice")));
        }
        counts[id] = count;
    }
    Ok(counts)
}

#[cfg(feature = "parquet")]
fn read_table(path: &Path) -> Result<Vec<u64>, CountsError> {
    let mut pairs = Vec::new();
    for batch in TableReader::open(path)?.batches(&["token_id", "count"])? {
        let batch = batch?;
        for (id, count) in batch.i64("token_id")?.into_iter().zip(batch.i64("count")?) {
            let id = usize::try_from(id)
                .map_err(|_| format(path, format!("token_id {id} is not a token id")))?;
            pairs.push((id, unsigned(path, id, count)?));
        }
    }
    by_id(path, pairs)
}

#[cfg(not(feature = "parquet"))]
fn read_table(path: &Path) -> Result<Vec<u64>, CountsError> {
    Err(InputError::WithoutParquet { path: path.into() }.into())
}
