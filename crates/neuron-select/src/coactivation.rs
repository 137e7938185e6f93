//! Whether neurons fire together.

use serde::Serialize;

use crate::SelectError;

/// How the activations of a set of neurons vary together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Coactivation {
    /// Neurons whose activation varies.
    pub neurons: usize,
    /// Neurons whose activation is the same at every position; they correlate with nothing and are left out.
    pub constant: usize,
    /// Positions.
    pub positions: usize,
    /// Mean Pearson correlation over all pairs; `None` with fewer than two varying neurons.
    pub mean_correlation: Option<f64>,
    /// Mean absolute Pearson correlation over all pairs.
    pub mean_abs_correlation: Option<f64>,
    /// Fewest principal components of the centred activations that hold 95 % of their variance; 0 if nothing varies. Neurons that vary
    /// more count more.
    pub effective_dimension_covariance: usize,
    /// The same of activations divided by the standard deviation of their neuron, as Liu et al. (2025) have it: every neuron counts the
    /// same.
    pub effective_dimension_zscored: usize,
}

/// Share of the variance that the effective dimension must hold.
const VARIANCE_SHARE: f64 = 0.95;

impl Coactivation {
    /// # Shapes
    /// - `activations`: `[neurons, positions]`, row after row
    ///
    /// # Errors
    /// - [`SelectError::Shape`] if `positions` does not divide their number, or is 0
    ///
    /// # Examples
    /// ```
    /// use neuron_select::Coactivation;
    /// // The second neuron is twice the first, the third is silent.
    /// let activations = [1.0, 2.0, 3.0, /**/ 2.0, 4.0, 6.0, /**/ 0.0, 0.0, 0.0];
    /// let together = Coactivation::of(&activations, 3)?;
    /// assert_eq!((together.neurons, together.constant, together.effective_dimension_zscored), (2, 1, 1));
    /// assert!((together.mean_correlation.unwrap_or(0.0) - 1.0).abs() < 1e-9);
    /// # Ok::<(), neuron_select::SelectError>(())
    /// ```
    pub fn of(activations: &[f32], positions: usize) -> Result<Self, SelectError> {
        if positions == 0 || !activations.len().is_multiple_of(positions) {
            let neurons = activations.len().checked_div(positions).unwrap_or(0);
            return Err(SelectError::Shape {
                neurons,
                positions,
                found: activations.len(),
            });
        }
        let centred: Vec<Vec<f64>> = activations
            .chunks(positions)
            .map(centre)
            .filter(|row| row.iter().any(|v| *v != 0.0))
            .collect();
        let covariance = gram(&centred);
        let n = centred.len();
        let correlation: Vec<Vec<f64>> = (0..n)
            .map(|i| {
                let of = |j: usize| covariance[i][j] / (covariance[i][i] * covariance[j][j]).sqrt();
                (0..n).map(of).collect()
            })
            .collect();
        let (mut sum, mut sum_abs) = (0.0, 0.0);
        for (i, row) in correlation.iter().enumerate() {
            for r in &row[..i] {
                sum += r;
                sum_abs += r.abs();
            }
        }
        let pairs = (n * n.saturating_sub(1) / 2) as f64;
        Ok(Self {
            neurons: n,
            constant: activations.len() / positions - n,
            positions,
            mean_correlation: (pairs > 0.0).then(|| sum / pairs),
            mean_abs_correlation: (pairs > 0.0).then(|| sum_abs / pairs),
            effective_dimension_covariance: effective_dimension(covariance),
            effective_dimension_zscored: effective_dimension(correlation),
        })
    }
}

/// A row minus its mean; exact zeros if all its values are equal.
fn centre(row: &[f32]) -> Vec<f64> {
    if row.iter().all(|v| *v == row[0]) {
        return vec![0.0; row.len()];
    }
    let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / row.len() as f64;
    row.iter().map(|&v| f64::from(v) - mean).collect()
}

/// Products of all pairs of rows.
fn gram(rows: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut products = vec![vec![0.0; rows.len()]; rows.len()];
    for i in 0..rows.len() {
        for j in 0..=i {
            products[i][j] = dot(&rows[i], &rows[j]);
            products[j][i] = products[i][j];
        }
    }
    products
}

fn effective_dimension(symmetric: Vec<Vec<f64>>) -> usize {
    let mut variances = eigenvalues(symmetric);
    variances.sort_unstable_by(|a, b| b.total_cmp(a));
    let total: f64 = variances.iter().sum();
    if total <= 0.0 {
        return 0;
    }
    let mut held = 0.0;
    let reached = variances.iter().position(|v| {
        held += v;
        held >= VARIANCE_SHARE * total
    });
    reached.map_or(variances.len(), |last| last + 1)
}

/// Eigenvalues of a symmetric matrix by cyclic Jacobi rotations.
fn eigenvalues(mut a: Vec<Vec<f64>>) -> Vec<f64> {
    let n = a.len();
    let total: f64 = a.iter().flatten().map(|v| v * v).sum();
    for _sweep in 0..60 {
        let off: f64 = (0..n)
            .flat_map(|i| (0..i).map(move |j| (i, j)))
            .map(|(i, j)| a[i][j].powi(2))
            .sum();
        if off <= 1e-24 * total {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                rotate(&mut a, p, q);
            }
        }
    }
    (0..n).map(|i| a[i][i]).collect()
}

/// The rotation of rows and columns `p < q` that makes their common entry zero.
fn rotate(a: &mut [Vec<f64>], p: usize, q: usize) {
    if a[p][q] == 0.0 {
        return;
    }
    let theta = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
    // Not `hypot`, which would ask for glibc 2.35: programs are carried to older systems. An infinite square gives 0, as it should.
    let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
    let c = 1.0 / (t * t + 1.0).sqrt();
    let s = t * c;
    for row in a.iter_mut() {
        (row[p], row[q]) = (c * row[p] - s * row[q], s * row[p] + c * row[q]);
    }
    let (above, below) = a.split_at_mut(q);
    for (vp, vq) in above[p].iter_mut().zip(&mut below[0]) {
        (*vp, *vq) = (c * *vp - s * *vq, s * *vp + c * *vq);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn independent_neurons_need_a_dimension_each() {
        // Rows of a Hadamard matrix are orthogonal and, but for the first, have mean zero.
        let sign = |i: usize, j: usize| {
            if (i & j).count_ones().is_multiple_of(2) {
                1.0
            } else {
                -1.0
            }
        };
        let rows: Vec<f32> = (1..16)
            .flat_map(|i| (0..16).map(move |j| sign(i, j)))
            .collect();
        let got = Coactivation::of(&rows, 16).unwrap();
        assert_eq!(
            (got.neurons, got.constant, got.effective_dimension_zscored),
            (15, 0, 15)
        );
        assert_eq!(got.effective_dimension_covariance, 15);
        assert!(got.mean_abs_correlation.unwrap() < 1e-12);
    }

    /// A neuron a hundred times as loud as three others holds all of the covariance, and a quarter of the z-scores.
    #[test]
    fn a_loud_neuron_counts_once_when_neurons_are_z_scored() {
        let of = |i: usize, j: usize| {
            let loud = if i == 1 { 100.0 } else { 1.0 };
            let sign = (i & j).count_ones().is_multiple_of(2);
            loud * if sign { 1.0f32 } else { -1.0 }
        };
        let rows: Vec<f32> = (1..5).flat_map(|i| (0..8).map(move |j| of(i, j))).collect();
        let got = Coactivation::of(&rows, 8).unwrap();
        assert_eq!(
            (
                got.effective_dimension_covariance,
                got.effective_dimension_zscored
            ),
            (1, 4)
        );
    }

    #[test]
    fn wrong_shapes_are_refused() {
        assert!(Coactivation::of(&[1.0, 2.0, 3.0], 2).is_err());
        assert!(Coactivation::of(&[], 0).is_err());
        let silent = Coactivation::of(&[1.0; 4], 2).unwrap();
        assert_eq!(
            (
                silent.neurons,
                silent.constant,
                silent.effective_dimension_zscored,
                silent.mean_correlation
            ),
            (0, 2, 0, None)
        );
    }

    proptest! {
        /// Trace and sum of squares survive a rotation; all eigenvalues of a Gram matrix are non-negative.
        #[test]
        fn eigenvalues_keep_the_invariants(rows in prop::collection::vec(prop::collection::vec(-3.0f64..3.0, 6), 1..9)) {
            let matrix = gram(&rows);
            let trace: f64 = (0..matrix.len()).map(|i| matrix[i][i]).sum();
            let squares: f64 = matrix.iter().flatten().map(|v| v * v).sum();
            let values = eigenvalues(matrix);
            let scale = 1.0 + squares;
            prop_assert!((values.iter().sum::<f64>() - trace).abs() < 1e-9 * scale);
            prop_assert!((values.iter().map(|v| v * v).sum::<f64>() - squares).abs() < 1e-9 * scale);
            prop_assert!(values.iter().all(|v| *v > -1e-9 * scale));
        }
    }
}
