//! The rank-frequency curve and its power law.

use serde::Serialize;

/// Share of the ranks, from the most frequent, that Zipf's law is fitted to.
const HEAD: f64 = 0.2;

/// Frequencies in descending order, and their logarithms against log rank.
#[derive(Debug, Clone)]
pub struct RankCurve {
    q: Vec<f64>,
    log_rank: Vec<f64>,
    log_q: Vec<f64>,
}

impl RankCurve {
    /// Sorts frequencies, which must be positive; ties keep no particular order.
    pub fn new(mut q: Vec<f64>) -> Self {
        q.sort_unstable_by(|a, b| b.total_cmp(a));
        let log_rank = (1..=q.len()).map(|rank| (rank as f64).ln()).collect();
        let log_q = q.iter().map(|q| q.ln()).collect();
        Self { q, log_rank, log_q }
    }

    /// Frequencies, descending: rank `r` is at index `r - 1`.
    pub fn q(&self) -> &[f64] {
        &self.q
    }

    /// Natural logarithm of the rank.
    pub fn log_rank(&self) -> &[f64] {
        &self.log_rank
    }

    /// Natural logarithm of the frequency.
    pub fn log_q(&self) -> &[f64] {
        &self.log_q
    }

    /// Ranks on the curve.
    pub fn len(&self) -> usize {
        self.q.len()
    }

    /// Whether there is no rank at all.
    pub fn is_empty(&self) -> bool {
        self.q.is_empty()
    }

    /// The curve of the first `ranks` ranks.
    #[must_use]
    pub fn head(&self, ranks: usize) -> Self {
        let ranks = ranks.min(self.len());
        Self {
            q: self.q[..ranks].to_vec(),
            log_rank: self.log_rank[..ranks].to_vec(),
            log_q: self.log_q[..ranks].to_vec(),
        }
    }

    /// Zipf's law fitted by least squares to the first 20 % of the ranks (at least two).
    pub fn zipf(&self) -> ZipfFit {
        let ranks = ((self.len() as f64 * HEAD) as usize).max(2).min(self.len());
        let sums = Sums::new(&self.log_rank[..ranks], &self.log_q[..ranks]);
        let line = sums.line(0, ranks);
        ZipfFit {
            exponent: -line.slope,
            intercept: line.intercept,
            r: line.r,
            ranks,
        }
    }
}

/// `ln q = intercept - exponent * ln rank` over the head of the curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ZipfFit {
    /// Zipf's exponent, alpha.
    pub exponent: f64,
    /// `ln q` of the line at rank 1.
    pub intercept: f64,
    /// Correlation of log frequency and log rank; near -1 for a power law.
    pub r: f64,
    /// Ranks that were fitted.
    pub ranks: usize,
}

impl ZipfFit {
    /// The frequency that the law gives to a rank.
    pub fn at(&self, rank: f64) -> f64 {
        (self.intercept - self.exponent * rank.ln()).exp()
    }
}

/// A line fitted by least squares.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line {
    pub(crate) slope: f64,
    pub(crate) intercept: f64,
    pub(crate) r: f64,
}

/// Running sums of `x`, `y`, `x^2`, `xy`, `y^2`, from which any stretch is fitted in constant time.
///
/// Both are centred first: raw second moments of a short stretch cancel to nothing.
pub(crate) struct Sums {
    mean_x: f64,
    mean_y: f64,
    sums: Vec<[f64; 5]>,
}

impl Sums {
    pub(crate) fn new(x: &[f64], y: &[f64]) -> Self {
        let n = x.len().max(1) as f64;
        let (mean_x, mean_y) = (x.iter().sum::<f64>() / n, y.iter().sum::<f64>() / n);
        let mut sums = Vec::with_capacity(x.len() + 1);
        let mut run = [0.0; 5];
        sums.push(run);
        for (x, y) in x.iter().zip(y) {
            let (x, y) = (x - mean_x, y - mean_y);
            for (sum, term) in run.iter_mut().zip([x, y, x * x, x * y, y * y]) {
                *sum += term;
            }
            sums.push(run);
        }
        Self {
            mean_x,
            mean_y,
            sums,
        }
    }

    /// `[sum x, sum y, sum x^2, sum xy, sum y^2]` of the centred points `from..to`.
    pub(crate) fn over(&self, from: usize, to: usize) -> [f64; 5] {
        std::array::from_fn(|k| self.sums[to][k] - self.sums[from][k])
    }

    /// The mean of all `x`, which [`Self::over`] has taken off.
    pub(crate) fn mean_x(&self) -> f64 {
        self.mean_x
    }

    /// The slope over the points `from..to`.
    pub(crate) fn slope(&self, from: usize, to: usize) -> f64 {
        let n = (to - from) as f64;
        let [x, y, xx, xy, _] = self.over(from, to);
        (n * xy - x * y) / (n * xx - x * x)
    }

    /// The line over the points `from..to`.
    pub(crate) fn line(&self, from: usize, to: usize) -> Line {
        let n = (to - from) as f64;
        let [x, y, xx, xy, yy] = self.over(from, to);
        let (sxx, sxy, syy) = (xx - x * x / n, xy - x * y / n, yy - y * y / n);
        let slope = sxy / sxx;
        // A level stretch has no correlation to speak of.
        let r = if syy > 0.0 {
            sxy / (sxx * syy).sqrt()
        } else {
            0.0
        };
        let intercept = (self.mean_y + y / n) - slope * (self.mean_x + x / n);
        Line {
            slope,
            intercept,
            r,
        }
    }
}
