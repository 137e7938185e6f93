//! The vocabulary in an order in which every band is a few contiguous runs.

use std::ops::Range;

/// Token ids in kernel order, cut into cells: runs of tokens that belong to the same bands.
///
/// Within a cell tokens run from frequent to rare.
#[derive(Debug, Clone)]
pub struct VocabLayout {
    order: Vec<u32>,
    cells: Vec<Cell>,
}

/// A run of tokens that belong to the same bands.
#[derive(Debug, Clone)]
pub struct Cell {
    range: Range<usize>,
    bands: Vec<bool>,
}

impl Cell {
    /// Places in the layout.
    #[inline]
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// Whether its tokens belong to a band, by the band's index.
    #[inline]
    pub fn in_band(&self, band: usize) -> bool {
        self.bands[band]
    }
}

impl VocabLayout {
    /// Sorts tokens with log frequencies `log_q`, `[d_vocab]`, by the bands they belong to; each mask is `[d_vocab]`.
    ///
    /// # Panics
    /// - if a mask is shorter than `log_q`
    ///
    /// # Examples
    /// ```
    /// use vocabulary_sums::VocabLayout;
    /// let log_q = [0.1f64.ln(), 0.2f64.ln(), 0.3f64.ln(), 0.4f64.ln()];
    /// let layout = VocabLayout::new(&log_q, &[&[true, false, true, false]]);
    /// assert_eq!(layout.order(), [3, 1, 2, 0]);
    /// assert_eq!(layout.cells().len(), 2);
    /// ```
    pub fn new(log_q: &[f64], masks: &[&[bool]]) -> Self {
        let bands_of =
            |token: u32| -> Vec<bool> { masks.iter().map(|mask| mask[token as usize]).collect() };
        let mut order: Vec<u32> = (0..log_q.len() as u32).collect();
        order.sort_by(|&s, &t| log_q[t as usize].total_cmp(&log_q[s as usize]));
        order.sort_by_cached_key(|&token| bands_of(token)); // stable
        let mut cells: Vec<Cell> = Vec::new();
        for run in order.chunk_by(|&a, &b| bands_of(a) == bands_of(b)) {
            let start = cells.last().map_or(0, |cell| cell.range.end);
            cells.push(Cell {
                range: start..start + run.len(),
                bands: bands_of(run[0]),
            });
        }
        Self { order, cells }
    }

    /// Number of tokens.
    #[inline]
    pub fn d_vocab(&self) -> usize {
        self.order.len()
    }

    /// Token id at each place.
    #[inline]
    pub fn order(&self) -> &[u32] {
        &self.order
    }

    /// The cells, in order; together they cover the vocabulary.
    #[inline]
    pub fn cells(&self) -> &[Cell] {
        &self.cells
    }

    /// The cell that holds a place, by its index.
    #[inline]
    pub fn cell_at(&self, place: usize) -> usize {
        self.cells.partition_point(|cell| cell.range.end <= place)
    }
}
