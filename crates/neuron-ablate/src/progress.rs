//! How far a sweep is.

/// What a sweep tells while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tick {
    /// Sequences of the sample were read for the mean activations.
    Sequences {
        /// How many just now.
        more: usize,
        /// How many so far.
        done: usize,
    },
    /// So many more (neuron, row) pairs were measured.
    Pairs(usize),
}
