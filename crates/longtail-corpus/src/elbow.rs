//! The elbow: the rank from which the rank-frequency curve falls off.

use serde::Serialize;

use crate::zipf::{RankCurve, Sums};

/// Where the curve bends down.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Elbow {
    /// Its rank; 1 is the most frequent token.
    pub rank: usize,
    /// The frequency there.
    pub frequency: f64,
    /// Slope of log frequency against log rank before it.
    pub slope_before: f64,
    /// Slope after it.
    pub slope_after: f64,
}

/// Fewest ranks in which a break is looked for.
pub(crate) const MIN_RANKS: usize = 30;

/// The break of a continuous line of two pieces, fitted by least squares to the whole curve.
///
/// Only breaks that leave a hundredth of the ranks on either side and that steepen the fall by half or more are looked at. `None` if the
/// best one removes less than half of the squared residuals of a single straight line.
///
/// Each break costs constant time: with a hinge `h = max(0, x - x_b)` the gain over the straight line is `S_hy^2 / S_hh`, both after
/// projecting out the line (Frisch and Waugh), and every sum over the hinge is a running sum.
pub(crate) fn piecewise(curve: &RankCurve) -> Option<Elbow> {
    let n = curve.len();
    if n < MIN_RANKS {
        return None;
    }
    let sums = Sums::new(curve.log_rank(), curve.log_q());
    let [_, _, sxx, sxy, syy] = sums.over(0, n);
    let margin = (n / 100).max(5);
    let mut best: Option<(f64, Elbow)> = None;
    for b in margin..n - margin {
        let x_b = curve.log_rank()[b] - sums.mean_x();
        let right = (n - b) as f64;
        let [x, y, xx, xy, _] = sums.over(b, n);
        let h = x - right * x_b;
        let xh = xx - x_b * x;
        let hh = xx - 2.0 * x_b * x + right * x_b * x_b;
        let hy = xy - x_b * y;
        let s_hh = hh - h * h / n as f64 - xh * xh / sxx;
        let s_hy = hy - xh * sxy / sxx;
        let gain = s_hy * s_hy / s_hh;
        let bend = s_hy / s_hh;
        let slope_before = (sxy - bend * xh) / sxx;
        let steepens = bend < 0.0 && bend <= 0.5 * slope_before;
        if steepens && best.as_ref().is_none_or(|(most, _)| gain > *most) {
            best = Some((
                gain,
                Elbow {
                    rank: b + 1,
                    frequency: curve.q()[b],
                    slope_before,
                    slope_after: slope_before + bend,
                },
            ));
        }
    }
    let straight = syy - sxy * sxy / sxx;
    best.filter(|(gain, _)| *gain >= 0.5 * straight && straight > 0.0)
        .map(|(_, elbow)| elbow)
}

/// The largest change of slope between neighbouring windows of `window` ranks, from the middle of the curve on (Liu et al. 2025).
///
/// The changes looked at are those above their mean by three standard deviations; `None` if there are none. The elbow is the start of the
/// window *after* the change, which on a curve that ends in a cliff is `window` ranks before the cliff.
pub(crate) fn sliding_window(curve: &RankCurve, window: usize) -> Option<Elbow> {
    let n = curve.len();
    if window < 2 || n < 3 * window {
        return None;
    }
    let sums = Sums::new(curve.log_rank(), curve.log_q());
    let start = (n / 2).max(2 * window);
    let slopes: Vec<f64> = (start..n - window)
        .map(|from| sums.slope(from, from + window))
        .collect();
    let changes: Vec<f64> = slopes
        .windows(2)
        .map(|pair| (pair[1] - pair[0]).abs())
        .collect();
    if changes.is_empty() {
        return None;
    }
    let mean = changes.iter().sum::<f64>() / changes.len() as f64;
    let sd =
        (changes.iter().map(|c| (c - mean).powi(2)).sum::<f64>() / changes.len() as f64).sqrt();
    let mut largest = 0;
    for (k, change) in changes.iter().enumerate() {
        if *change > changes[largest] {
            largest = k;
        }
    }
    (changes[largest] > mean + 3.0 * sd).then(|| {
        let index = start + largest + 1;
        Elbow {
            rank: index + 1,
            frequency: curve.q()[index],
            slope_before: slopes[largest],
            slope_after: slopes[largest + 1],
        }
    })
}
