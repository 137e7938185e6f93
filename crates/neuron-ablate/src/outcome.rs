//! From sums over the vocabulary to loss, entropy and divergences.

use crate::{KlDirection, TokenBand, TokenFrequencies, kernel::Sums};

/// A number that is measured of one vector of logits, in nats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// `-ln p(target)`.
    Loss,
    /// Entropy of the prediction.
    Entropy,
    /// The divergence between the prediction and the token frequencies.
    Kl(KlDirection),
    /// The same within a band (its place among the bands of the sweep), both sides renormalised over it.
    BandKl(usize, KlDirection),
}

/// What the measures of a sweep need beside the sums over the vocabulary.
#[derive(Debug, Clone)]
pub(crate) struct Measures {
    bands: Vec<BandConstants>,
    /// `sum q log q` over the vocabulary.
    neg_entropy_q: f64,
}

#[derive(Debug, Clone)]
struct BandConstants {
    mass: f64,
    /// `sum (q/mass) log (q/mass)` over the band.
    neg_entropy_q: f64,
}

/// What is linear in the logits, so that no exponential is needed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Linear<'a> {
    /// Logit of the target.
    pub(crate) target: f64,
    /// `sum q z` over the vocabulary.
    pub(crate) qz: f64,
    /// `sum q z` over each band.
    pub(crate) qz_bands: &'a [f64],
}

/// Measures that do not depend on a band.
const UNBANDED: [Measure; 4] = [
    Measure::Loss,
    Measure::Entropy,
    Measure::Kl(KlDirection::ModelFreq),
    Measure::Kl(KlDirection::FreqModel),
];

impl Measures {
    /// The measures for these frequencies and bands.
    pub(crate) fn new(frequencies: &TokenFrequencies, bands: &[TokenBand]) -> Self {
        let terms = frequencies.q().iter().zip(frequencies.log_q());
        let bands = bands
            .iter()
            .map(|band| {
                let inside = || {
                    terms
                        .clone()
                        .zip(band.mask())
                        .filter(|(_, m)| **m)
                        .map(|(t, _)| t)
                };
                let mass: f64 = inside().map(|(q, _)| q).sum();
                let neg_entropy_q = inside()
                    .map(|(q, log_q)| q / mass * (log_q - mass.ln()))
                    .sum();
                BandConstants {
                    mass,
                    neg_entropy_q,
                }
            })
            .collect();
        Self {
            bands,
            neg_entropy_q: frequencies
                .q()
                .iter()
                .zip(frequencies.log_q())
                .map(|(q, l)| q * l)
                .sum(),
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        UNBANDED.len() + 2 * self.bands.len()
    }

    /// The measures in the order of [`Self::fill`].
    pub(crate) fn in_order(&self) -> Vec<Measure> {
        let banded = (0..self.bands.len()).flat_map(|band| {
            [KlDirection::ModelFreq, KlDirection::FreqModel]
                .map(|direction| Measure::BandKl(band, direction))
        });
        UNBANDED.into_iter().chain(banded).collect()
    }

    /// Probability mass of each band under the token frequencies.
    pub(crate) fn band_masses(&self) -> Vec<f64> {
        self.bands.iter().map(|band| band.mass).collect()
    }

    /// `sum q log q` over the vocabulary.
    pub(crate) fn neg_entropy_q(&self) -> f64 {
        self.neg_entropy_q
    }

    /// The same over each band, for the frequencies within it.
    pub(crate) fn band_neg_entropies(&self) -> Vec<f64> {
        self.bands.iter().map(|band| band.neg_entropy_q).collect()
    }

    /// `full` and `bands` are the sums over the vocabulary and over each band; `out` has [`Self::len`] places.
    pub(crate) fn fill(&self, full: &Sums, bands: &[Sums], linear: Linear<'_>, out: &mut [f64]) {
        let (lse, mean_z, mean_log_q) = moments(full);
        out[0] = lse - linear.target;
        out[1] = lse - mean_z;
        out[2] = mean_z - lse - mean_log_q;
        out[3] = self.neg_entropy_q - (linear.qz - lse);
        for (i, (band, sums)) in self.bands.iter().zip(bands).enumerate() {
            let (lse, mean_z, mean_log_q) = moments(sums);
            out[4 + 2 * i] = mean_z - lse - mean_log_q + band.mass.ln();
            out[5 + 2 * i] = band.neg_entropy_q - (linear.qz_bands[i] / band.mass - lse);
        }
    }
}

/// Log-sum-exp, and the means of the logit and of `log q` under the softmax.
fn moments(sums: &Sums) -> (f64, f64, f64) {
    (
        sums.shift + sums.s0.ln(),
        sums.s1 / sums.s0,
        sums.s2 / sums.s0,
    )
}
