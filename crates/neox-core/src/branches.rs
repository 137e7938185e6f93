//! Texts that share their beginning, in one row of tokens.

use tch::{Device, Kind, Tensor};

use crate::error::ForwardError;

/// The rest of a text whose beginning stands at the front of its row, so that it is computed once.
///
/// A row of tokens begins with one whole text, the trunk; after it come the branches. With the texts `a b c d` and `a b x y`
/// the row is `a b c d x y`, with one branch that starts at 4 and shares 2 tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Branch {
    /// Place in the row of its first token; it ends at the next branch, or with the row.
    pub start: usize,
    /// Tokens of the trunk that come before it in its text.
    pub shared: usize,
}

/// Positions and visible keys of rows with branches.
pub(crate) struct Layout {
    /// Place of each token in its own text, `[batch, pos]`.
    pub(crate) positions: Tensor,
    /// Which keys a query may see, `[batch, 1, query_pos, key_pos]`.
    pub(crate) allowed: Tensor,
}

impl Layout {
    /// # Errors
    /// - [`ForwardError::Branch`] if a branch is not behind the one before it and the trunk, or is not inside the row
    /// - [`ForwardError::BranchRows`] if there is not one list per row
    pub(crate) fn new(
        branches: &[Vec<Branch>],
        batch: i64,
        len: i64,
        device: Device,
    ) -> Result<Self, ForwardError> {
        if branches.len() as i64 != batch {
            return Err(ForwardError::BranchRows {
                expected: batch,
                found: branches.len(),
            });
        }
        let n = len as usize;
        let mut positions: Vec<i64> = Vec::with_capacity(branches.len() * n);
        let mut allowed = vec![false; branches.len() * n * n];
        for (row, branches) in branches.iter().enumerate() {
            let trunk = branches.first().map_or(n, |branch| branch.start);
            let mut before = 0;
            for &branch in branches {
                if branch.start <= before || branch.start >= n || branch.shared > trunk {
                    let Branch { start, shared } = branch;
                    return Err(ForwardError::Branch {
                        row,
                        start,
                        shared,
                        len,
                    });
                }
                before = branch.start;
            }
            let mut ends = branches.iter().map(|b| b.start).skip(1).chain([n]);
            let mut see = |query: usize, keys: std::ops::Range<usize>| {
                let at = (row * n + query) * n;
                allowed[at + keys.start..at + keys.end].fill(true);
            };
            for query in 0..trunk {
                positions.push(query as i64);
                see(query, 0..query + 1);
            }
            for branch in branches {
                for query in branch.start..ends.next().unwrap_or(n) {
                    positions.push((branch.shared + query - branch.start) as i64);
                    see(query, 0..branch.shared);
                    see(query, branch.start..query + 1);
                }
            }
        }
        Ok(Self {
            positions: Tensor::f_from_slice(&positions)?
                .f_view([batch, len])?
                .f_to_device(device)?,
            allowed: Tensor::f_from_slice(&allowed)?
                .f_view([batch, 1, len, len])?
                .f_to_kind(Kind::Bool)?
                .f_to_device(device)?,
        })
    }
}
