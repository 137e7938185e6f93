//! How far a moved prediction is from the clean one: sums of terms that are never negative, so that none cancels.
//!
//! With `x = ln p' - ln p` of a token, which is its `a g + c u` less the change of the log-sum-exp:
//!
//! ```text
//! KL(p || p') = sum p (e^x - 1 - x)
//! KL(p' || p) = sum p (x e^x - e^x + 1)
//! JS(p, p')   = sum p (x e^x - (1 + e^x) ln((1 + e^x) / 2)) / 2
//! ```
//!
//! because `sum p e^x = sum p = 1`. For the same reason an error of the log-sum-exp hardly counts.

#![expect(unsafe_code, reason = "SIMD chosen at run time")]

use std::f32::consts::LOG2_E as LOG2_E_F32;
use std::f64::consts::{LN_2, LOG2_E};

use crate::{
    Base, Kernel, MAX_BITS, Pairs, TileRow,
    directions::TileDirection,
    lanes::{Lanes, MAX_LANES, exp2},
    path::Work,
};

/// A moved prediction beside the clean one.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Divergence {
    /// `KL(clean || moved)`, nats.
    pub kl_clean_moved: f64,
    /// `KL(moved || clean)`, nats.
    pub kl_moved_clean: f64,
    /// Jensen-Shannon divergence, nats.
    pub jensen_shannon: f64,
    /// How many tokens have a larger logit than the target, in f32.
    pub rank: usize,
}

/// What is known of a moved prediction from its sums.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Moved {
    /// `ln sum e^z`.
    pub lse: f64,
    /// The logit of the target.
    pub target: f64,
}

/// Largest `|x|` of the polynomials.
const REACH: f64 = 0.75;
/// `A = (e^x - 1 - x) / x^2` up to that reach: relative error 1e-8, lowest power first. With it `(x e^x - e^x + 1) / x^2` is
/// `1 + (x - 1) A`.
const NEAR: [f32; 7] = [
    0.5,
    0.16666672,
    0.041666638,
    0.008332572,
    0.0013889659,
    0.00020113161,
    0.000024891488,
];
/// `(x tanh(x / 2) / 2 - ln cosh(x / 2)) / (2 x^2)` in powers of `x^2` up to that reach, which is even: relative error 1e-7. The term of
/// the Jensen-Shannon divergence is `p (1 + e^x) x^2` times this.
const EVEN: [f32; 4] = [0.0625, -0.007812116, 0.0008646175, -0.0000822195];
/// `ln((1 + e) / 2)` for `e` in [0, 1]: error 5e-9 before rounding, lowest power first.
const LN_HALF: [f32; 10] = [
    -std::f32::consts::LN_2,
    0.9999989,
    -0.49996224,
    0.33281842,
    -0.2463566,
    0.18468848,
    -0.12526661,
    0.06651248,
    -0.02303828,
    0.0037526242,
];

impl Kernel {
    /// Divergences of each pair's prediction under each base from the row's clean one, and the rank of the row's target, `[pair][base]`.
    ///
    /// `moved` is `[pair][base]`; `targets` are places in the layout, `[row]`. Tilts play no part. Every divergence has f32's error
    /// relative to itself.
    ///
    /// # Panics
    /// - as [`Kernel::sums`], and if the lengths of `moved` or `targets` do not fit
    ///
    /// # Examples
    /// ```
    /// use vocabulary_sums::{Base, Direction, Kernel, Moved, Pairs, VocabLayout};
    /// let log_q = [0.5f64.ln(); 2];
    /// let kernel = Kernel::new(&VocabLayout::new(&log_q, &[]), &log_q);
    /// let row = kernel.row(&[0.0, 0.0], &[0.0, 0.0]);
    /// let u = [0.0, 3f32.ln()]; // from 1/2 and 1/2 to 1/4 and 3/4
    /// let vectors = [kernel.vector(&u)];
    /// let pairs = [(0, Direction::Vector(0))];
    /// let bases = [Base { a: 0.0, c: 1.0 }];
    /// let pairs = Pairs { rows: &[row], vectors: &vectors, pairs: &pairs, bases: &bases, tilts: &[] };
    /// let moved = [Moved { lse: 4f64.ln(), target: 0.0 }];
    /// let found = kernel.divergences(&pairs, &moved, &[0])[0];
    /// assert!((found.kl_clean_moved - 0.5 * (4.0f64 / 3.0).ln()).abs() < 1e-6);
    /// assert_eq!(found.rank, 1);
    /// ```
    pub fn divergences(
        &self,
        pairs: &Pairs<'_>,
        moved: &[Moved],
        targets: &[usize],
    ) -> Vec<Divergence> {
        let n_bases = pairs.n_bases();
        assert!(
            moved.len() == pairs.bases.len() && targets.len() == pairs.rows.len(),
            "one `moved` for each base of each pair and one target for each row are wanted"
        );
        let mut out = vec![Divergence::default(); pairs.bases.len()];
        self.for_tiles(pairs, |at, first, directions| {
            for (number, &direction) in (first..).zip(directions) {
                let (row, _) = pairs.pairs[number];
                let of_pair = number * n_bases..(number + 1) * n_bases;
                for place in of_pair {
                    let pair = TileMove {
                        direction,
                        base: pairs.bases[place],
                        moved: moved[place],
                        target: targets[row],
                    };
                    at.diverge(&pair, &mut out[place]);
                }
            }
        });
        out
    }
}

/// One reading of a pair, over a tile.
struct TileMove<'a> {
    direction: TileDirection<'a>,
    base: Base,
    moved: Moved,
    target: usize,
}

impl TileRow<'_> {
    /// Adds what the tile has to a pair's divergences.
    fn diverge(&self, pair: &TileMove<'_>, to: &mut Divergence) {
        let Base { a, c } = pair.base;
        let ln_z = pair.moved.lse - self.row.lse;
        let change = self.largest_change(&pair.direction, pair.base);
        let largest = change + ln_z.abs();
        // From `e` of the row to probabilities.
        let level = (self.row.level[self.tile.cell] - self.row.lse).exp();
        let l = &self.row.l[self.tile.range.clone()];
        let own = pair.target.checked_sub(self.tile.range.start);
        let own = own.filter(|place| *place < l.len());
        let l_bits = self.row.l_max_bits[self.index];
        let (terms, above) = if change == 0.0 && l_bits <= MAX_BITS {
            let target = pair.moved.target as f32;
            let above = l.iter().filter(|l| **l > target).count();
            let counted = own.is_some_and(|own| l[own] > target);
            let mass = level * self.row.clean[self.index].m[0];
            (terms(mass.ln(), -ln_z), above - usize::from(counted))
        } else if l_bits + largest * LOG2_E <= MAX_BITS {
            let work = Diverge {
                near: largest <= REACH,
                at: [
                    l,
                    &self.row.e[self.tile.range.clone()],
                    &self.row.g[self.tile.range.clone()],
                    pair.direction.u,
                ],
                factors: [a, c, ln_z, pair.moved.target].map(|x| x as f32),
                own,
            };
            assert!(
                work.at.iter().all(|v| v.len() == l.len()),
                "vectors of a tile differ in length"
            );
            // SAFETY: the path comes from `Path::available`, and the lengths were just compared.
            let (sums, above) = unsafe { self.kernel.path.run(work) };
            (sums.map(|sum| level * LN_2 * sum), above)
        } else {
            self.diverge_in_f64(pair, ln_z, own)
        };
        to.kl_clean_moved += terms[0];
        to.kl_moved_clean += terms[1];
        to.jensen_shannon += terms[2];
        to.rank += above;
    }

    /// The same one entry at a time.
    fn diverge_in_f64(
        &self,
        pair: &TileMove<'_>,
        ln_z: f64,
        own: Option<usize>,
    ) -> ([f64; 3], usize) {
        let (mut sums, mut above) = ([0.0; 3], 0);
        for (i, place) in self.tile.range.clone().enumerate() {
            let (l, g) = (f64::from(self.row.l[place]), f64::from(self.row.g[place]));
            let d = pair.base.a * g + pair.base.c * f64::from(pair.direction.u[i]);
            let of_token = terms(l - self.row.lse, d - ln_z);
            sums.iter_mut().zip(of_token).for_each(|(sum, x)| *sum += x);
            above += usize::from(own != Some(i) && l + d > pair.moved.target);
        }
        (sums, above)
    }
}

/// What a token with `ln p` and `x` adds to the divergences.
fn terms(ln_p: f64, x: f64) -> [f64; 3] {
    let (p, moved) = (ln_p.exp(), (ln_p + x).exp());
    // Factored, so that small changes keep their digits.
    let change = if x.abs() < 1.0 {
        p * x.exp_m1()
    } else {
        moved - p
    };
    let ln_half = (-x.abs()).exp().ln_1p() - LN_2;
    [
        change - p * x,
        moved * x - change,
        -0.5 * (x.abs() * p.min(moved) + (p + moved) * ln_half),
    ]
}

/// `l`, `e`, `g` and `u` over a tile; `a`, `c`, the change of the log-sum-exp and the target's logit; the target's place.
struct Diverge<'a> {
    near: bool,
    at: [&'a [f32]; 4],
    factors: [f32; 4],
    own: Option<usize>,
}

impl Work for Diverge<'_> {
    type Out = ([f64; 3], usize);

    #[inline(always)]
    unsafe fn run<L: Lanes, const K: usize>(self) -> Self::Out {
        unsafe {
            match self.near {
                true => diverge::<L, true>(&self),
                false => diverge::<L, false>(&self),
            }
        }
    }
}

#[inline(always)]
unsafe fn diverge<L: Lanes, const NEAR_ONE: bool>(work: &Diverge<'_>) -> ([f64; 3], usize) {
    unsafe {
        let [a, c, ln_z, target] = work.factors.map(|x| L::splat(x));
        let (zero, one, two) = (L::splat(0.0), L::splat(1.0), L::splat(2.0));
        let to_bits = L::splat(LOG2_E_F32);
        let (mut sums, mut above) = ([zero; 3], 0);
        // Whole registers, then what is left, in registers of its own.
        let len = work.at[0].len();
        let whole = len - len % L::N;
        // Past the end: no probability, and a logit that is never above.
        let mut rest = [[0.0f32; MAX_LANES]; 4];
        rest[0].fill(f32::NEG_INFINITY);
        for (rest, v) in rest.iter_mut().zip(work.at) {
            rest[..len - whole].copy_from_slice(&v[whole..]);
        }
        let (at, at_rest) = (
            work.at.map(<[f32]>::as_ptr),
            [0, 1, 2, 3].map(|i| rest[i].as_ptr()),
        );
        for (at, end) in [(at, whole), (at_rest, len - whole)] {
            let mut i = 0;
            while i < end {
                let (l, e) = (L::load(at[0].add(i)), L::load(at[1].add(i)));
                let (g, u) = (L::load(at[2].add(i)), L::load(at[3].add(i)));
                let d = a.fma(g, c.mul(u));
                above += l.add(d).above(target);
                let x = d.sub(ln_z);
                i += L::N;
                if NEAR_ONE {
                    let x2 = x.mul(x);
                    let (of_token, first) = (e.mul(x2), polynomial(NEAR, x));
                    sums[0] = of_token.fma(first, sums[0]);
                    let second = x.sub(one).fma(first, one);
                    sums[1] = of_token.fma(second, sums[1]);
                    // 1 + e^x
                    let both = x2.fma(first, x.add(two));
                    sums[2] = of_token.fma(both.mul(polynomial(EVEN, x2)), sums[2]);
                    continue;
                }
                let bits = x.mul(to_bits);
                let (size, moved) = (x.max(zero.sub(x)), e.mul(exp2(bits)));
                // The smaller of the two over the larger one.
                let ratio = exp2(zero.sub(bits.max(zero.sub(bits))));
                let change = moved.sub(e);
                let least = e.max(moved).mul(ratio);
                sums[0] = sums[0].add(change.sub(e.mul(x)));
                sums[1] = sums[1].add(moved.mul(x).sub(change));
                let mixed = e.add(moved).mul(polynomial(LN_HALF, ratio));
                sums[2] = sums[2].sub(size.fma(least, mixed));
            }
        }
        let mut above = above as usize;
        if let Some(own) = work.own {
            // By the same operations, so that the target is taken out if it was counted.
            let [l, _, g, u] = work.at.map(|v| L::splat(v[own]));
            above -= usize::from(l.add(a.fma(g, c.mul(u))).above(target) > 0);
        }
        let half = if NEAR_ONE { 1.0 } else { 0.5 };
        let [first, second, third] = sums.map(|sum| sum.sum());
        ([first, second, half * third], above)
    }
}

/// A polynomial, lowest power first.
#[inline(always)]
unsafe fn polynomial<L: Lanes, const N: usize>(powers: [f32; N], x: L) -> L {
    unsafe {
        let mut sum = L::splat(powers[N - 1]);
        for i in (0..N - 1).rev() {
            sum = sum.fma(x, L::splat(powers[i]));
        }
        sum
    }
}
