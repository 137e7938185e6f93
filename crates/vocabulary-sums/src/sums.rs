//! Sums of exponentials that can be merged.

/// `s0 = sum e^{z-shift}`, `s1 = sum e^{z-shift} z`, `s2 = sum e^{z-shift} log q` over some tokens.
///
/// # Examples
/// ```
/// use vocabulary_sums::Sums;
/// let mut all = Sums::EMPTY;
/// all.merge(&Sums { shift: 1000.0, s0: 1.0, s1: 1000.0, s2: -2.0 });
/// all.merge(&Sums { shift: 1001.0, s0: 1.0, s1: 1001.0, s2: -3.0 });
/// assert!((all.lse() - (1000.0 + (1.0 + 1f64.exp()).ln())).abs() < 1e-12);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sums {
    /// What was taken from each logit before the exponential.
    pub shift: f64,
    /// `sum e^{z-shift}`.
    pub s0: f64,
    /// `sum e^{z-shift} z`.
    pub s1: f64,
    /// `sum e^{z-shift} log q`.
    pub s2: f64,
}

impl Sums {
    /// The sums over no token.
    pub const EMPTY: Self = Self {
        shift: f64::NEG_INFINITY,
        s0: 0.0,
        s1: 0.0,
        s2: 0.0,
    };

    /// Adds the sums over other tokens, whatever their shift.
    #[inline]
    pub fn merge(&mut self, other: &Self) {
        if other.s0 == 0.0 {
            return;
        }
        if self.shift == other.shift {
            self.s0 += other.s0;
            self.s1 += other.s1;
            self.s2 += other.s2;
            return;
        }
        let (big, small) = if self.shift > other.shift {
            (*self, other)
        } else {
            (*other, &*self)
        };
        let scale = (small.shift - big.shift).exp();
        *self = Self {
            shift: big.shift,
            s0: big.s0 + scale * small.s0,
            s1: big.s1 + scale * small.s1,
            s2: big.s2 + scale * small.s2,
        };
    }

    /// Sums over all the parts together.
    #[inline]
    pub fn over<'a>(parts: impl Iterator<Item = &'a Self>) -> Self {
        parts.fold(Self::EMPTY, |mut all, part| {
            all.merge(part);
            all
        })
    }

    /// `ln sum e^z`.
    #[inline]
    pub fn lse(&self) -> f64 {
        self.shift + self.s0.ln()
    }
}

impl Default for Sums {
    fn default() -> Self {
        Self::EMPTY
    }
}
