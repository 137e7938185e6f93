//! The vocabulary cut into pieces that fit the first-level cache.

use std::ops::Range;

use crate::{Cell, VocabLayout, lanes::MAX_LANES};

/// Most tokens of a tile: so many that what is done once for each tile is little beside them; the vectors of a few rows and
/// neurons fit the second-level cache.
pub(crate) const TILE_LEN: usize = 4096;
/// Widest range of `log q` within a tile, in nats: keeps the series for tilts short.
const TILE_SPAN: f64 = 1.0;

/// A piece of a cell.
#[derive(Debug, Clone)]
pub(crate) struct Tile {
    pub(crate) cell: usize,
    pub(crate) range: Range<usize>,
    /// Middle of the tile's range of `log q`.
    pub(crate) centre: f64,
    /// Half of that range.
    pub(crate) half_span: f64,
}

/// The same where directions are sums of vectors: over a tile those of some rows have to fit the second-level cache too.
pub(crate) const SUM_TILE_LEN: usize = 2048;

/// Cuts every cell of `layout` into tiles of at most `most` tokens; `log_q` is in its order.
pub(crate) fn tiles(layout: &VocabLayout, log_q: &[f64], most: usize) -> Vec<Tile> {
    let mut tiles = Vec::new();
    for (cell, range) in layout.cells().iter().map(Cell::range).enumerate() {
        let mut start = range.start;
        while start < range.end {
            let (mut low, mut high) = (log_q[start], log_q[start]);
            let mut end = start + 1;
            while end < range.end.min(start + most) {
                let (low_too, high_too) = (low.min(log_q[end]), high.max(log_q[end]));
                if high_too - low_too > TILE_SPAN {
                    break;
                }
                (low, high, end) = (low_too, high_too, end + 1);
            }
            // Where the cell goes on, so that the next tile starts on a cache line.
            let whole = end - end % MAX_LANES;
            if end < range.end && whole > start {
                end = whole;
                let within = log_q[start..end].iter();
                low = within.clone().copied().fold(f64::INFINITY, f64::min);
                high = within.copied().fold(f64::NEG_INFINITY, f64::max);
            }
            tiles.push(Tile {
                cell,
                range: start..end,
                centre: (low + high) / 2.0,
                half_span: (high - low) / 2.0,
            });
            start = end;
        }
    }
    tiles
}
