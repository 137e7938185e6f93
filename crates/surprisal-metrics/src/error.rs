//! What keeps a number from being computed.

/// Why a metric has no value.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MetricError {
    /// A slice that must hold something is empty.
    #[error("no {what} to compute from")]
    Empty {
        /// What was expected in it.
        what: &'static str,
    },
    /// A log-probability is NaN or above 0.
    #[error("value {value} at index {index} is not a log-probability (at most 0)")]
    NotLogProb {
        /// Place in the slice.
        index: usize,
        /// What was found there.
        value: f64,
    },
    /// A value is NaN or infinite.
    #[error("{what} at index {index} is {value}, expected a finite number")]
    NotFinite {
        /// What the slice holds.
        what: &'static str,
        /// Place in the slice.
        index: usize,
        /// What was found there.
        value: f64,
    },
    /// Two slices that belong together differ in length.
    #[error("{left_what} has {left} entries, but {right_what} has {right}")]
    Length {
        /// The first slice.
        left_what: &'static str,
        /// Its length.
        left: usize,
        /// The second slice.
        right_what: &'static str,
        /// Its length.
        right: usize,
    },
    /// A numerator and a denominator that are not of the same values.
    #[error(
        "group {index} has {numerator} values in the numerator, but {denominator} in the denominator"
    )]
    Counts {
        /// Place of the group.
        index: usize,
        /// Count in the numerator.
        numerator: f64,
        /// Count in the denominator.
        denominator: f64,
    },
    /// Probabilities do not add up to 1.
    #[error("probabilities add up to {total}, expected 1 within {tolerance}")]
    NotNormalised {
        /// What they add up to.
        total: f64,
        /// Accepted distance from 1.
        tolerance: f64,
    },
    /// `KL(p || q)` is infinite: q is zero where p is not.
    #[error(
        "divergence is infinite: entry {index} has probability {p:e} under the first distribution and 0 under the second"
    )]
    Infinite {
        /// Place in the vocabulary.
        index: usize,
        /// Probability under the first distribution.
        p: f64,
    },
    /// No probability is left for the pieces that a correction divides by.
    #[error("no probability mass on pieces that may stand {place}")]
    NoBoundaryMass {
        /// Before or after the word.
        place: &'static str,
    },
    /// A setting lies outside its range.
    #[error("{name} is {value}, expected {expected}")]
    Setting {
        /// Name of the setting.
        name: &'static str,
        /// Its value.
        value: f64,
        /// The range.
        expected: &'static str,
    },
    /// Too few points for a fit.
    #[error("a learning curve needs {needed} distinct steps above 0, found {found}")]
    TooFewSteps {
        /// Number of parameters.
        needed: usize,
        /// Distinct steps above 0.
        found: usize,
    },
}

/// Checks that every value is finite.
pub(crate) fn check_finite(what: &'static str, values: &[f64]) -> Result<(), MetricError> {
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(index) => Err(MetricError::NotFinite {
            what,
            index,
            value: values[index],
        }),
    }
}

/// Checks that two slices have the same length.
pub(crate) fn check_lengths(
    (left_what, left): (&'static str, usize),
    (right_what, right): (&'static str, usize),
) -> Result<(), MetricError> {
    match left == right {
        true => Ok(()),
        false => Err(MetricError::Length {
            left_what,
            left,
            right_what,
            right,
        }),
    }
}

/// Checks that no value is NaN or above 0.
pub(crate) fn check_ln_probs(ln_probs: &[f64]) -> Result<(), MetricError> {
    match ln_probs.iter().position(|v| v.is_nan() || *v > 0.0) {
        None => Ok(()),
        Some(index) => Err(MetricError::NotLogProb {
            index,
            value: ln_probs[index],
        }),
    }
}
