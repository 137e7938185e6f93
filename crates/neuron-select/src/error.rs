//! What keeps neurons from being selected.

use surprisal_metrics::MetricError;

use crate::{NeuronId, RowFilter};

/// Why there is no selection, control set or fit.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SelectError {
    /// A value that cannot enter a mean.
    #[error("neuron {neuron}, sequence {sequence}: {what} is {value}, expected a finite number")]
    NotFinite {
        /// The neuron of the row.
        neuron: NeuronId,
        /// The sequence of the row.
        sequence: i64,
        /// Name of the value.
        what: &'static str,
        /// What was found.
        value: f64,
    },
    /// The filter leaves no row.
    #[error("no rows left: of {total} rows none is {rows}")]
    NoRows {
        /// The filter.
        rows: RowFilter,
        /// Rows before the filter.
        total: usize,
    },
    /// A neuron has no row where others have some.
    #[error("neuron {neuron} has no row that is {rows}, but other neurons have")]
    NeuronWithoutRows {
        /// The neuron.
        neuron: NeuronId,
        /// The filter.
        rows: RowFilter,
    },
    /// Not enough neurons outside the selection.
    #[error(
        "a control set needs {needed} neurons of layer {layer} outside the selection, found {found}"
    )]
    TooFewNeurons {
        /// The layer.
        layer: usize,
        /// Neurons selected there.
        needed: usize,
        /// Neurons left there.
        found: usize,
    },
    /// A selected neuron is not among the neurons to draw from.
    #[error("selected neuron {neuron} is not among the {found} neurons given")]
    UnknownNeuron {
        /// The neuron.
        neuron: NeuronId,
        /// How many were given.
        found: usize,
    },
    /// Too few neurons with an influence for a curve.
    #[error("a curve needs at least {needed} points of different rank, found {found}")]
    TooFewPoints {
        /// Points needed.
        needed: usize,
        /// Points found.
        found: usize,
    },
    /// A matrix whose size does not fit.
    #[error("{found} activations do not make {neurons} neurons by {positions} positions")]
    Shape {
        /// Rows.
        neurons: usize,
        /// Columns.
        positions: usize,
        /// Values given.
        found: usize,
    },
    /// A setting out of its range.
    #[error("{name} is {value}, expected {expected}")]
    Setting {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: f64,
        /// The range.
        expected: &'static str,
    },
    /// A bootstrap could not be made.
    #[error("failed to resample the sequences")]
    Bootstrap(#[from] MetricError),
}
