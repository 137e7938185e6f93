//! Means with standard errors.

use crate::MetricError;
use crate::error::check_finite;

/// Mean and spread of some values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Number of values.
    pub n: usize,
    /// Their mean.
    pub mean: f64,
    /// Sample standard deviation (divisor `n - 1`); `None` for a single value.
    pub sd: Option<f64>,
    /// Standard error of the mean, `sd / sqrt(n)`; `None` for a single value.
    pub se: Option<f64>,
}

impl Summary {
    /// Summarises independent values.
    ///
    /// # Errors
    /// - [`MetricError::Empty`] without any value
    /// - [`MetricError::NotFinite`] at the first value that is NaN or infinite, or if values are too large to be added up
    ///
    /// # Examples
    /// ```
    /// # use surprisal_metrics::Summary;
    /// let summary = Summary::of(&[1.0, 2.0, 3.0])?;
    /// assert_eq!((summary.n, summary.mean, summary.sd), (3, 2.0, Some(1.0)));
    /// # Ok::<(), surprisal_metrics::MetricError>(())
    /// ```
    pub fn of(values: &[f64]) -> Result<Self, MetricError> {
        if values.is_empty() {
            return Err(MetricError::Empty { what: "values" });
        }
        check_finite("value", values)?;
        let n = values.len();
        let mean = values.iter().sum::<f64>() / n as f64;
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        let sd = (n > 1).then(|| (squares / (n - 1) as f64).sqrt());
        check_finite("mean or standard deviation", &[mean, sd.unwrap_or(0.0)])?;
        Ok(Self {
            n,
            mean,
            sd,
            se: sd.map(|sd| sd / (n as f64).sqrt()),
        })
    }
}

/// Share of the total effect that a mediator carries, `1 - DE / TE`, a ratio of means of absolute changes: token frequency where the
/// direct effect DE is that of its frozen direction, the scale of the final norm where it is that of the frozen norm.
///
/// `None` where the total effect is below `floor`, because a ratio to nothing says nothing, and where an effect is not a number.
///
/// # Examples
/// ```
/// use surprisal_metrics::mediated_share;
/// assert_eq!(mediated_share(0.2, 0.05, 1e-6), Some(0.75));
/// assert_eq!(mediated_share(0.0, 0.0, 1e-6), None);
/// assert_eq!(mediated_share(1.0, f64::NAN, 0.0), None);
/// ```
pub fn mediated_share(total: f64, direct: f64, floor: f64) -> Option<f64> {
    let share = (total >= floor && total > 0.0).then(|| 1.0 - direct / total);
    share.filter(|share| share.is_finite())
}
