//! Token sequences: which are ablated, which positions are kept.

use std::collections::{HashMap, HashSet};

use rand::seq::index;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use crate::{AblateError, error::distinct};

/// A sample of token sequences, each with BOS in front, and the ids that mark document ends.
#[derive(Debug, Clone)]
pub struct Sample {
    sequences: Vec<Vec<i64>>,
    boundary: Vec<i64>,
    documents: Option<Vec<usize>>,
}

/// One kept row: a position whose next token is predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Index of the sequence in the sample.
    pub sequence: usize,
    /// Position in the sequence, from 0.
    pub pos: usize,
    /// The token at `pos`.
    pub token: i64,
    /// The token at `pos + 1`, whose loss the row holds.
    pub target: i64,
}

/// Positions before this one are never rows: the model has seen next to nothing there.
pub const FIRST_POSITION: usize = 3;

/// What the position filter kept and why it dropped the rest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RowCounts {
    /// Rows kept.
    pub kept: usize,
    /// Positions before [`FIRST_POSITION`].
    pub too_early: usize,
    /// Last positions, which have no target.
    pub last: usize,
    /// Positions that hold BOS or EOS.
    pub boundary: usize,
    /// Positions whose next token is BOS or EOS.
    pub before_boundary: usize,
}

impl Sample {
    /// Takes the sequences and the ids of BOS and EOS.
    ///
    /// # Errors
    /// - [`AblateError::Empty`] without sequences, or with one too short for a single row
    /// - [`AblateError::TokenBeyondVocabulary`] at the first id outside `0..d_vocab`
    pub fn new(
        sequences: Vec<Vec<i64>>,
        boundary: &[i64],
        d_vocab: usize,
    ) -> Result<Self, AblateError> {
        if sequences.is_empty() {
            return Err(AblateError::Empty { what: "the corpus sample holds no token sequence: give a longer text or a shorter context length".into() });
        }
        for (sequence, tokens) in sequences.iter().enumerate() {
            if tokens.len() < FIRST_POSITION + 2 {
                return Err(AblateError::Empty {
                    what: format!(
                        "sequence {sequence} has {} tokens, but at least {} are needed for one row",
                        tokens.len(),
                        FIRST_POSITION + 2
                    ),
                });
            }
            if let Some(pos) = tokens.iter().position(|&t| t < 0 || t as usize >= d_vocab) {
                return Err(AblateError::TokenBeyondVocabulary {
                    token: tokens[pos],
                    sequence,
                    pos,
                    d_vocab,
                });
            }
        }
        let mut boundary = boundary.to_vec();
        boundary.sort_unstable();
        boundary.dedup();
        Ok(Self {
            sequences,
            boundary,
            documents: None,
        })
    }

    /// Says which document each sequence is from, `[sequence]`; sequences of one document are one cluster, as their rows are not
    /// independent.
    ///
    /// # Errors
    /// - [`AblateError::Documents`] for more or fewer than there are sequences
    pub fn from_documents(mut self, documents: Vec<usize>) -> Result<Self, AblateError> {
        let (found, sequences) = (documents.len(), self.sequences.len());
        if found != sequences {
            return Err(AblateError::Documents { found, sequences });
        }
        self.documents = Some(documents);
        Ok(self)
    }

    /// The document of each sequence, where it is known.
    pub fn documents(&self) -> Option<&[usize]> {
        self.documents.as_deref()
    }

    /// The cluster of each of `sequences`, numbered from 0 in the order they come in: their documents, or where these are not known the
    /// sequences themselves. Intervals resample clusters.
    pub fn clusters(&self, sequences: &[usize]) -> Vec<usize> {
        let mut seen: HashMap<usize, usize> = HashMap::new();
        let cluster = |&sequence: &usize| {
            let own = self.documents.as_ref().and_then(|d| d.get(sequence));
            let next = seen.len();
            *seen.entry(*own.unwrap_or(&sequence)).or_insert(next)
        };
        sequences.iter().map(cluster).collect()
    }

    /// The same by sequence.
    pub(crate) fn cluster_of(&self, sequences: &[usize]) -> HashMap<usize, usize> {
        let each = sequences.iter().copied();
        each.zip(self.clusters(sequences)).collect()
    }

    /// How many clusters `sequences` are in.
    pub fn n_clusters(&self, sequences: &[usize]) -> usize {
        let last = self.clusters(sequences).into_iter().max();
        last.map_or(0, |last| last + 1)
    }

    /// The sequences.
    pub fn sequences(&self) -> &[Vec<i64>] {
        &self.sequences
    }

    /// Whether `token` is BOS or EOS.
    pub fn is_boundary(&self, token: i64) -> bool {
        self.boundary.contains(&token)
    }

    /// `count` different sequences, drawn with `seed`, in ascending order; all of them if there are no more.
    ///
    /// The draw depends on the number of sequences and on the seed alone, so that checkpoints are paired.
    pub fn draw(&self, count: usize, seed: u64) -> Vec<usize> {
        let n = self.sequences.len();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut drawn = index::sample(&mut rng, n, count.min(n)).into_vec();
        drawn.sort_unstable();
        drawn
    }

    /// Refuses sequences that are not there, or stand twice.
    pub(crate) fn check(&self, sequences: &[usize]) -> Result<(), AblateError> {
        let last = self.sequences.len() - 1;
        if let Some(&sequence) = sequences.iter().find(|&&sequence| sequence > last) {
            return Err(AblateError::NoSuchSequence { sequence, last });
        }
        let mut seen = HashSet::new();
        match sequences.iter().all(|sequence| seen.insert(sequence)) {
            true => Ok(()),
            false => distinct("sequence", sequences),
        }
    }

    /// The rows of the given sequences that pass the position filter, and the counts of the rest.
    ///
    /// # Errors
    /// - [`AblateError::NoSuchSequence`] for an index outside the sample
    /// - [`AblateError::Repeated`] for an index that stands twice
    /// - [`AblateError::Empty`] if no row is left
    pub fn rows(&self, sequences: &[usize]) -> Result<(Vec<Row>, RowCounts), AblateError> {
        self.check(sequences)?;
        let mut rows = Vec::new();
        let mut counts = RowCounts::default();
        for &sequence in sequences {
            let tokens = &self.sequences[sequence];
            for (pos, &token) in tokens.iter().enumerate() {
                let Some(&target) = tokens.get(pos + 1) else {
                    counts.last += 1;
                    continue;
                };
                if pos < FIRST_POSITION {
                    counts.too_early += 1;
                } else if self.is_boundary(token) {
                    counts.boundary += 1;
                } else if self.is_boundary(target) {
                    counts.before_boundary += 1;
                } else {
                    counts.kept += 1;
                    rows.push(Row {
                        sequence,
                        pos,
                        token,
                        target,
                    });
                }
            }
        }
        if rows.is_empty() {
            return Err(AblateError::Empty {
                what: "no position is left after the position filter: give longer sequences".into(),
            });
        }
        Ok((rows, counts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries_and_edges_are_counted() -> Result<(), AblateError> {
        let sample = Sample::new(vec![vec![0, 5, 6, 7, 8, 0, 9, 9, 9]], &[0, 0], 10)?;
        let (rows, counts) = sample.rows(&[0])?;
        assert_eq!(rows.iter().map(|r| r.pos).collect::<Vec<_>>(), [3, 6, 7]);
        assert_eq!(
            counts,
            RowCounts {
                kept: 3,
                too_early: 3,
                last: 1,
                boundary: 1,
                before_boundary: 1
            }
        );
        Ok(())
    }

    #[test]
    fn a_sequence_stands_once() -> Result<(), AblateError> {
        let sample = Sample::new(vec![vec![0, 5, 6, 7, 8, 9]; 3], &[], 10)?;
        let error = sample.rows(&[2, 1, 2]).map_err(|error| error.to_string());
        assert_eq!(
            error.err().as_deref(),
            Some("sequence 2 is named twice, as entries 1 and 3, and each may stand once")
        );
        Ok(())
    }

    #[test]
    fn sequences_of_one_document_are_one_cluster() -> Result<(), AblateError> {
        let sample = Sample::new(vec![vec![0; 6]; 5], &[], 10)?;
        assert_eq!(sample.clusters(&[4, 1, 2]), [0, 1, 2]);
        let error = sample.clone().from_documents(vec![7, 7]);
        assert!(matches!(error, Err(AblateError::Documents { .. })));
        let sample = sample.from_documents(vec![7, 7, 3, 9, 3])?;
        assert_eq!(sample.clusters(&[4, 1, 0, 2]), [0, 1, 1, 0]);
        assert_eq!(sample.n_clusters(&[4, 1, 0, 2]), 2);
        Ok(())
    }

    #[test]
    fn draws_depend_on_the_seed_alone() -> Result<(), AblateError> {
        let sample = Sample::new(vec![vec![0; 6]; 100], &[], 10)?;
        assert_eq!(sample.draw(7, 3), sample.draw(7, 3));
        assert_ne!(sample.draw(7, 3), sample.draw(7, 4));
        assert_eq!(sample.draw(1000, 3).len(), 100);
        Ok(())
    }

    #[test]
    fn refuses_what_it_cannot_use() {
        assert!(matches!(
            Sample::new(vec![], &[], 10),
            Err(AblateError::Empty { .. })
        ));
        let beyond = Sample::new(vec![vec![0, 1, 2, 3, 4, 10]], &[], 10);
        assert!(matches!(
            beyond,
            Err(AblateError::TokenBeyondVocabulary {
                token: 10,
                pos: 5,
                ..
            })
        ));
    }
}
