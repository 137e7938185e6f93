//! A document of a corpus, and rows that are none.

use std::{fmt, path::PathBuf, sync::Arc};

/// One text of a corpus.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Document {
    /// Its row in the whole corpus, from 0; bad rows count too, so that it does not depend on how they are treated.
    pub index: usize,
    /// The file it is from.
    pub file: Arc<PathBuf>,
    /// Its row in that file, from 0.
    pub row: usize,
    /// The text, as stored.
    pub text: String,
}

impl Document {
    /// A text that is not from a file, such as one that the program has made itself; `index` is its place among the others.
    ///
    /// # Examples
    /// ```
    /// use longtail_corpus::{Document, WordCounts};
    ///
    /// let texts = ["call me Ishmael", "call the ship"];
    /// let documents = texts.iter().enumerate();
    /// let counts = WordCounts::count(documents.map(|(index, text)| Ok(Document::from_text(index, *text))))?;
    /// assert_eq!(counts.get("call"), 2);
    /// # Ok::<(), longtail_corpus::CorpusError>(())
    /// ```
    #[must_use]
    pub fn from_text(index: usize, text: impl Into<String>) -> Self {
        Self {
            index,
            file: Arc::new(PathBuf::from("memory")),
            row: index,
            text: text.into(),
        }
    }
}

/// A row without a usable text.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BadRow {
    /// The file.
    pub file: Arc<PathBuf>,
    /// The row in that file, from 0.
    pub row: usize,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for BadRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}`, row {}: {}",
            self.file.display(),
            self.row,
            self.reason
        )
    }
}
