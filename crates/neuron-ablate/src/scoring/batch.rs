//! Which texts go through the model together, and which of their positions are read off.

use std::collections::BTreeMap;
use std::ops::Range;

use neox_core::Branch;
use tch::{TchError, Tensor};

use crate::word_request::WordRequest;

/// Which values of a batch a request is made of.
pub(super) struct Place {
    pub(super) request: usize,
    /// Wanted row of the position before the first piece.
    pub(super) first_row: usize,
    /// Entry of each piece among the gathered log-probabilities.
    pub(super) pieces: Vec<usize>,
    /// Wanted row of the last piece, where boundaries are wanted.
    pub(super) last_row: Option<usize>,
}

/// A text that the model reads, and the requests that are read off it.
pub(super) struct HostedText {
    host: usize,
    guests: Vec<usize>,
    /// Tokens that it shares with the first text of its row; all of them in the first text itself.
    shared: usize,
    /// Where in the row the rest begins.
    start: usize,
}

/// Texts that share their beginning, as one row of tokens.
pub(super) struct RowTexts {
    pub(super) texts: Vec<HostedText>,
    pub(super) len: usize,
}

/// Two texts share a row if they have as many tokens in common as this, and at least half of the
/// shorter one's.
const SHARED_AT_LEAST: usize = 4;

/// Attention is quadratic in the length of a row, so that very many branches gain nothing.
pub(super) const BRANCHED_ROW: usize = 256;

/// The texts of one forward and what is read off them.
pub(super) struct Batch {
    /// `[row, pos]`, padded at the end, where causal attention never looks.
    pub(super) tokens: Tensor,
    /// The branches of each row; none at all where every row is one text.
    pub(super) branches: Option<Vec<Vec<Branch>>>,
    /// Wanted positions as indices into `[row * pos]`, ascending.
    pub(super) rows: Vec<i64>,
    /// (wanted row, token) whose log-probability is gathered.
    pub(super) targets: Vec<(usize, i64)>,
    pub(super) places: Vec<Place>,
}

impl HostedText {
    /// Where in its row the token at `pos` of the text is.
    fn place(&self, pos: usize) -> usize {
        match pos < self.shared {
            true => pos,
            false => self.start + pos - self.shared,
        }
    }
}

impl RowTexts {
    /// Finds texts that begin others, and puts those with a common beginning into rows of at most
    /// `at_most` tokens.
    pub(super) fn arrange(requests: &[WordRequest], boundaries: bool, at_most: usize) -> Vec<Self> {
        let read = |i: usize| requests[i].read(boundaries);
        let mut order: Vec<usize> = (0..requests.len()).collect();
        order.sort_by(|&i, &j| read(i).cmp(read(j)));
        // In this order a text directly precedes those that begin with it, and texts with a common
        // beginning are neighbours.
        let mut hosted: Vec<(usize, Vec<usize>)> = Vec::new();
        for &i in order.iter().rev() {
            match hosted.last_mut() {
                Some((host, guests)) if read(*host).starts_with(read(i)) => guests.push(i),
                _ => hosted.push((i, vec![i])),
            }
        }
        let mut rows: Vec<Self> = Vec::new();
        for (host, guests) in hosted {
            let len = read(host).len();
            if let Some(row) = rows.last_mut() {
                let trunk = read(row.texts[0].host);
                let shared = (trunk.iter().zip(read(host)))
                    .take_while(|(a, b)| a == b)
                    .count();
                let enough = shared >= SHARED_AT_LEAST && 2 * shared >= len.min(trunk.len());
                if enough && row.len + len - shared <= at_most {
                    row.texts.push(HostedText {
                        host,
                        guests,
                        shared,
                        start: row.len,
                    });
                    row.len += len - shared;
                    continue;
                }
            }
            let first = HostedText {
                host,
                guests,
                shared: len,
                start: len,
            };
            rows.push(Self {
                texts: vec![first],
                len,
            });
        }
        rows
    }

    /// How many of the first rows (in ascending length) go into one forward: at most `batch_tokens`
    /// positions, and once there are enough to keep the device busy, little padding.
    pub(super) fn together(rows: &[Self], batch_tokens: usize) -> usize {
        let mut tokens = 0;
        for (n, row) in rows.iter().enumerate() {
            let padded = (n + 1) * row.len;
            tokens += row.len;
            let wasteful = padded > batch_tokens / 4 && (padded - tokens) * 16 > padded;
            if n > 0 && (padded > batch_tokens || wasteful) {
                return n;
            }
        }
        rows.len()
    }

    fn branches(&self) -> Vec<Branch> {
        let rest = self.texts.iter().skip(1);
        rest.map(|text| Branch {
            start: text.start,
            shared: text.shared,
        })
        .collect()
    }
}

impl Batch {
    /// Rows of texts (each with the requests that are read off it) as one padded tensor.
    pub(super) fn new(
        requests: &[WordRequest],
        boundaries: bool,
        rows: &[RowTexts],
    ) -> Result<Self, TchError> {
        let longest = rows.iter().map(|row| row.len).max().unwrap_or(0);
        let mut tokens = Vec::with_capacity(rows.len() * longest);
        for (index, row) in rows.iter().enumerate() {
            for (i, text) in row.texts.iter().enumerate() {
                let own = if i == 0 { 0 } else { text.shared };
                tokens.extend_from_slice(&requests[text.host].read(boundaries)[own..]);
            }
            tokens.resize((index + 1) * longest, 0);
        }
        // Every request with the place of each of its positions.
        let read: Vec<(usize, usize, &HostedText)> = (rows.iter().enumerate())
            .flat_map(|(row, texts)| texts.texts.iter().map(move |text| (row, text)))
            .flat_map(|(row, text)| text.guests.iter().map(move |&guest| (guest, row, text)))
            .collect();
        let mut wanted: BTreeMap<usize, usize> = BTreeMap::new();
        for &(guest, row, text) in &read {
            let request = &requests[guest];
            let positions = request.word.start - 1..request.read(boundaries).len();
            wanted.extend(positions.map(|pos| (row * longest + text.place(pos), 0)));
        }
        for (row, slot) in wanted.values_mut().enumerate() {
            *slot = row;
        }
        let wanted_row =
            |row: usize, text: &HostedText, pos| wanted[&(row * longest + text.place(pos))];
        let mut entries: BTreeMap<(usize, i64), usize> = BTreeMap::new();
        for &(guest, row, text) in &read {
            let request = &requests[guest];
            entries.extend(
                (request.word.clone())
                    .map(|i| ((wanted_row(row, text, i - 1), request.tokens[i]), 0)),
            );
        }
        for (entry, slot) in entries.values_mut().enumerate() {
            *slot = entry;
        }
        let places = (read.iter())
            .map(|&(request, row, text)| {
                let WordRequest { tokens, word, .. } = &requests[request];
                Place {
                    request,
                    first_row: wanted_row(row, text, word.start - 1),
                    pieces: word
                        .clone()
                        .map(|i| entries[&(wanted_row(row, text, i - 1), tokens[i])])
                        .collect(),
                    last_row: boundaries.then(|| wanted_row(row, text, word.end - 1)),
                }
            })
            .collect();
        let branched = rows.iter().any(|row| row.texts.len() > 1);
        Ok(Self {
            tokens: Tensor::f_from_slice(&tokens)?.f_view([rows.len() as i64, longest as i64])?,
            branches: branched.then(|| rows.iter().map(RowTexts::branches).collect()),
            rows: wanted.keys().map(|&flat| flat as i64).collect(),
            targets: entries.into_keys().collect(),
            places,
        })
    }

    /// The targets of some rows, by the place of the row among them.
    pub(super) fn targets_of(&self, rows: Range<usize>) -> Vec<(usize, i64)> {
        let targets = self.targets_within(rows.clone()).iter();
        targets
            .map(|&(row, token)| (row - rows.start, token))
            .collect()
    }

    /// The targets of some rows; targets are sorted by row.
    fn targets_within(&self, rows: Range<usize>) -> &[(usize, i64)] {
        let at = |row: usize| self.targets.partition_point(|(r, _)| *r < row);
        &self.targets[at(rows.start)..at(rows.end)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::word_request::WordStart;

    fn request(tokens: &[i64], word: std::ops::Range<usize>) -> WordRequest {
        WordRequest::new(tokens.to_vec(), word, WordStart::Space)
    }

    #[test]
    fn rows_of_about_the_same_length_go_together() {
        let rows: Vec<RowTexts> = (1..=200)
            .map(|len| RowTexts {
                texts: Vec::new(),
                len,
            })
            .collect();
        let (mut rest, mut padded) = (rows.as_slice(), 0);
        while !rest.is_empty() {
            let n = RowTexts::together(rest, 4096);
            assert!(n >= 1 && (n == 1 || n * rest[n - 1].len <= 4096));
            padded += n * rest[n - 1].len;
            rest = &rest[n..];
        }
        let tokens: usize = rows.iter().map(|row| row.len).sum();
        assert!(padded * 100 < tokens * 112, "{padded} for {tokens}");
        assert_eq!(RowTexts::together(&rows[199..], 10), 1);
    }

    #[test]
    fn a_common_beginning_is_in_a_row_once() -> Result<(), TchError> {
        let requests = [
            request(&[0, 1, 2, 3, 4, 7], 5..6),
            request(&[0, 1, 2, 3, 4, 5, 6], 5..7),
            request(&[0, 1, 2, 3], 3..4), // begins the others
            request(&[0, 8, 9], 2..3),    // shares too little
        ];
        let rows = RowTexts::arrange(&requests, true, 64);
        assert_eq!(rows.iter().map(|row| row.len).collect::<Vec<_>>(), [3, 8]);
        assert_eq!(
            rows[1].branches(),
            [Branch {
                start: 6,
                shared: 5
            }]
        );
        let batch = Batch::new(&requests, true, &rows[1..])?;
        let tokens: Vec<i64> = Vec::try_from(&batch.tokens.f_view(-1)?)?;
        assert_eq!(tokens, [0, 1, 2, 3, 4, 7, 5, 6]);
        // Without the mass behind a word its last piece is not read, and the two texts begin alike.
        let rows = RowTexts::arrange(&requests, false, 64);
        assert_eq!(rows.iter().map(|row| row.len).collect::<Vec<_>>(), [2, 6]);
        // No room: each has a row of its own.
        assert_eq!(RowTexts::arrange(&requests, true, 7).len(), 3);
        Ok(())
    }
}
