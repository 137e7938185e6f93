//! Keeping documents apart: some to count, others to take contexts from.

use std::collections::HashSet;

use crate::{CorpusError, Document, fnv::Fnv128};

/// Divides documents by their text: equal texts always fall on the same side, in every corpus and run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Split {
    share: f64,
    seed: u64,
}

/// A share of documents that is none.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("share of documents to hold out is {share}, expected a number from 0 to 1")]
pub struct ShareOutOfRange {
    /// What was asked for.
    pub share: f64,
}

impl Split {
    /// Holds out about `share` (0 to 1) of the documents; another seed holds out others.
    ///
    /// # Errors
    /// - [`ShareOutOfRange`] if `share` is not a number from 0 to 1
    pub fn new(share: f64, seed: u64) -> Result<Self, ShareOutOfRange> {
        match (0.0..=1.0).contains(&share) {
            true => Ok(Self { share, seed }),
            false => Err(ShareOutOfRange { share }),
        }
    }

    /// Whether the document is held out.
    ///
    /// # Examples
    /// ```
    /// use longtail_corpus::{Document, Split};
    ///
    /// let document = |index: usize| Document::from_text(index, format!("document {index}"));
    /// let split = Split::new(0.1, 7)?;
    /// let held_out = (0..1000).filter(|&index| split.holds_out(&document(index))).count();
    /// assert!((70..130).contains(&held_out));
    /// # Ok::<(), longtail_corpus::ShareOutOfRange>(())
    /// ```
    pub fn holds_out(&self, document: &Document) -> bool {
        // The top 53 bits make a uniform number below 1.
        let uniform = (Fnv128::of(document.text.as_bytes()).seeded(self.seed) >> 11) as f64
            / (1u64 << 53) as f64;
        uniform < self.share
    }
}

/// The texts of a corpus, by hash: to leave out documents that have been used elsewhere.
#[derive(Debug, Clone, Default)]
pub struct KnownTexts {
    hashes: HashSet<u128>,
}

impl KnownTexts {
    /// Remembers the texts of documents: 16 bytes each.
    ///
    /// # Errors
    /// - [`CorpusError`] if a document cannot be read
    pub fn of(
        documents: impl Iterator<Item = Result<Document, CorpusError>>,
    ) -> Result<Self, CorpusError> {
        let hashes = documents
            .map(|document| Ok(Fnv128::of(document?.text.as_bytes()).value()))
            .collect::<Result<_, CorpusError>>()?;
        Ok(Self { hashes })
    }

    /// Whether a document has one of these texts.
    pub fn contains(&self, document: &Document) -> bool {
        self.hashes
            .contains(&Fnv128::of(document.text.as_bytes()).value())
    }
}
