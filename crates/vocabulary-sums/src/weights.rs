//! What the moments need of a row: its predictions, times powers of its logits, over tiles of the vocabulary.

#![expect(unsafe_code, reason = "SIMD chosen at run time")]

use std::f64::consts::LOG2_E;

use crate::lanes::Lanes;
use crate::max_abs;
use crate::path::{Path, Work};

/// Number of weights of `u`: `p` times 1, `l`, `log q`, `g`, `l g`, `log q g`.
pub const LINEAR: usize = 6;
/// The same where a direction is frozen: those, `l log q` and `log q^2`.
pub const LINEAR_TILTED: usize = 8;
/// Most tokens of a call.
pub const MAX_TOKENS: usize = 2048;
/// `1.5 * 2^52`: adding it to `x` rounds `x` to an integer, which then sits in the low bits.
const ROUND: f64 = 6_755_399_441_055_744.0;
/// `2^f` for `f` in [-1/2, 1/2]: minimax, relative error below 2e-8, lowest power first.
const EXP2: [f32; 7] = [
    1.0,
    std::f32::consts::LN_2,
    0.240_226_46,
    0.055_503_286,
    0.009_618_489,
    0.001_339_993_1,
    0.000_153_458_12,
];
/// Registers that are added up in f32 before f64 takes over.
const SHORT: usize = 8;

/// The sum of the predictions of a row within a cell, `e^(l - lse)`, and that of their products with `g`.
///
/// # Panics
/// - if the lengths differ
/// - if this machine does not have the instructions
pub fn masses(path: Path, l: &[f32], lse: f64, g: &[f32]) -> (f64, f64) {
    assert_eq!(l.len(), g.len(), "vectors of a row differ in length");
    path.assert_available();
    // SAFETY: just asserted.
    unsafe { path.run(Masses { l, lse, g }) }
}

struct Masses<'a> {
    l: &'a [f32],
    lse: f64,
    g: &'a [f32],
}

impl Work for Masses<'_> {
    type Out = (f64, f64);

    #[inline(always)]
    unsafe fn run<L: Lanes, const K: usize>(self) -> Self::Out {
        let mut room = [0.0; MAX_TOKENS];
        let (mut mass, mut pg) = (0.0, 0.0);
        for (l, g) in self.l.chunks(MAX_TOKENS).zip(self.g.chunks(MAX_TOKENS)) {
            let p = &mut room[..l.len()];
            predict(l, self.lse, 1.0, p);
            let (more, more_g) = unsafe { (sum::<L>(p), dot::<L>(p, g)) };
            mass += more;
            pg += more_g;
        }
        (mass, pg)
    }
}

/// `unit e^(l - lse)`; logits more than 86 below `lse` count as 86 below it.
#[inline(always)]
fn predict(l: &[f32], lse: f64, unit: f64, p: &mut [f32]) {
    for (p, &l) in p.iter_mut().zip(l) {
        let t = ((f64::from(l) - lse) * LOG2_E).max(-125.0);
        let rounded = t + ROUND;
        let f = (t - (rounded - ROUND)) as f32;
        let power = EXP2
            .iter()
            .rev()
            .fold(0.0, |power, factor| power * f + factor);
        // The integer is in the low bits; what is above them leaves with the shift.
        let exponent = (rounded.to_bits() as u32) << 23;
        let e = f32::from_bits(power.to_bits().wrapping_add(exponent));
        *p = (f64::from(e) * unit) as f32;
    }
}

/// A tile of a row: `l`, `g` and `log q`, and their means under the predictions of the cell.
#[derive(Debug, Clone, Copy)]
pub struct RowTile<'a> {
    /// `l`, and its mean.
    pub l: (&'a [f32], f64),
    /// `g`, and its mean.
    pub g: (&'a [f32], f64),
    /// `log q`, and its mean.
    pub log_q: (&'a [f64], f64),
    /// `ln sum e^l` over the cell.
    pub lse: f64,
    /// One over the sum of the predictions that [`masses`] found.
    pub unit: f64,
}

/// Sums of `p` times products of centred `l`, `q` (for `log q`) and `g`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Products {
    /// `sum p g`.
    pub g: f64,
    /// `sum p g g`.
    pub gg: f64,
    /// `sum p q q`.
    pub qq: f64,
    /// `sum p g q`.
    pub gq: f64,
    /// `sum p l g`.
    pub lg: f64,
    /// `sum p l q`.
    pub lq: f64,
    /// `sum p l g g`.
    pub lgg: f64,
    /// `sum p l q q`.
    pub lqq: f64,
    /// `sum p l g q`.
    pub lgq: f64,
    /// `sum p q g g`.
    pub qgg: f64,
    /// `sum p q q q`.
    pub qqq: f64,
    /// `sum p q g q`.
    pub qgq: f64,
    /// `sum p g g g g`.
    pub gggg: f64,
    /// `sum p l l l l`.
    pub llll: f64,
    /// `sum p q q q q`.
    pub qqqq: f64,
    /// `sum p d d d d`, for `d = l - log q`.
    pub dddd: f64,
    /// Largest `|l|`.
    pub l_max: f32,
    /// Largest `|g|`.
    pub g_max: f32,
    /// Largest `|d|`.
    pub d_max: f32,
}

/// Fills `out` with the predictions `p`, times 1, `l`, `log q`, `g`, `l g`, `log q g`, and if there is room `l log q`, `log q^2`; each
/// has the length of the tile. Adds the sums over the tile to `totals`.
///
/// # Panics
/// - if the lengths differ, the tile is longer than [`MAX_TOKENS`], or `out` is neither six nor eight times as long
/// - if this machine does not have the instructions
pub fn weights(path: Path, tile: &RowTile<'_>, out: &mut [f32], totals: &mut Products) {
    let len = tile.l.0.len();
    assert!(
        len <= MAX_TOKENS && [tile.g.0.len(), tile.log_q.0.len()] == [len; 2],
        "vectors of a tile differ in length, or it is too long"
    );
    assert!(
        [LINEAR * len, LINEAR_TILTED * len].contains(&out.len()),
        "six or eight weights are made"
    );
    path.assert_available();
    // SAFETY: just asserted.
    unsafe { path.run(Weights { tile, out, totals }) }
}

struct Weights<'a> {
    tile: &'a RowTile<'a>,
    out: &'a mut [f32],
    totals: &'a mut Products,
}

impl Work for Weights<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<L: Lanes, const K: usize>(self) -> Self::Out {
        let (tile, len) = (self.tile, self.tile.l.0.len());
        let mut room = [[0.0f32; MAX_TOKENS]; 6];
        let [l, q, g, d, square, product] = room.each_mut().map(|room| &mut room[..len]);
        centre(tile.l, l);
        centre(tile.g, g);
        for (q, log_q) in q.iter_mut().zip(tile.log_q.0) {
            *q = (log_q - tile.log_q.1) as f32;
        }
        let (p, rest) = self.out.split_at_mut(len);
        predict(tile.l.0, tile.lse, tile.unit, p);
        let (pl, rest) = rest.split_at_mut(len);
        let (pq, rest) = rest.split_at_mut(len);
        let (pg, rest) = rest.split_at_mut(len);
        let (plg, rest) = rest.split_at_mut(len);
        let (pqg, rest) = rest.split_at_mut(len);
        multiply(p, l, pl);
        multiply(p, q, pq);
        multiply(p, g, pg);
        multiply(pl, g, plg);
        multiply(pq, g, pqg);
        if let Some((plq, pqq)) = rest.split_at_mut_checked(len) {
            multiply(pl, q, plq);
            multiply(pq, q, pqq);
        }
        unsafe {
            for (d, (l, q)) in d.iter_mut().zip(l.iter().zip(&*q)) {
                *d = l - q;
            }
            let totals = self.totals;
            totals.g += sum::<L>(pg);
            totals.gg += dot::<L>(pg, g);
            totals.qq += dot::<L>(pq, q);
            totals.gq += dot::<L>(pq, g);
            totals.lg += dot::<L>(pl, g);
            totals.lq += dot::<L>(pl, q);
            totals.lgg += dot::<L>(plg, g);
            totals.qgg += dot::<L>(pqg, g);
            multiply(pl, q, product);
            totals.lqq += dot::<L>(product, q);
            totals.lgq += dot::<L>(product, g);
            multiply(pq, q, product);
            totals.qqq += dot::<L>(product, q);
            totals.qgq += dot::<L>(product, g);
            totals.gggg += fourth::<L>(p, g, square, product);
            totals.llll += fourth::<L>(p, l, square, product);
            totals.qqqq += fourth::<L>(p, q, square, product);
            totals.dddd += fourth::<L>(p, d, square, product);
            totals.l_max = totals.l_max.max(max_abs(l));
            totals.g_max = totals.g_max.max(max_abs(g));
            totals.d_max = totals.d_max.max(max_abs(d));
        }
    }
}

#[inline(always)]
fn centre((values, mean): (&[f32], f64), out: &mut [f32]) {
    for (out, &value) in out.iter_mut().zip(values) {
        *out = (f64::from(value) - mean) as f32;
    }
}

#[inline(always)]
fn multiply(x: &[f32], y: &[f32], out: &mut [f32]) {
    for (out, (x, y)) in out.iter_mut().zip(x.iter().zip(y)) {
        *out = x * y;
    }
}

/// `sum p x^4`, with room for `x^2` and `p x^2`.
#[inline(always)]
unsafe fn fourth<L: Lanes>(p: &[f32], x: &[f32], square: &mut [f32], product: &mut [f32]) -> f64 {
    multiply(x, x, square);
    multiply(p, square, product);
    unsafe { dot::<L>(product, square) }
}

/// `sum x y`, for vectors of one length.
#[inline(always)]
unsafe fn dot<L: Lanes>(x: &[f32], y: &[f32]) -> f64 {
    let (short_x, short_y) = (x.chunks(SHORT * L::N), y.chunks(SHORT * L::N));
    let mut total = 0.0;
    for (x, y) in short_x.zip(short_y) {
        unsafe {
            let mut sum = L::splat(0.0);
            let (x, y) = (x.chunks_exact(L::N), y.chunks_exact(L::N));
            let rest = x.remainder().iter().zip(y.remainder());
            total += rest.map(|(x, y)| f64::from(x * y)).sum::<f64>();
            for (x, y) in x.zip(y) {
                sum = L::load(x.as_ptr()).fma(L::load(y.as_ptr()), sum);
            }
            total += sum.sum();
        }
    }
    total
}

#[inline(always)]
unsafe fn sum<L: Lanes>(x: &[f32]) -> f64 {
    let mut total = 0.0;
    for x in x.chunks(SHORT * L::N) {
        unsafe {
            let mut sum = L::splat(0.0);
            let x = x.chunks_exact(L::N);
            total += x.remainder().iter().map(|&x| f64::from(x)).sum::<f64>();
            for x in x {
                sum = sum.add(L::load(x.as_ptr()));
            }
            total += sum.sum();
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::{Products, RowTile, masses, predict, weights};
    use crate::Path;

    /// Some logits, `g` and `log q`.
    fn vectors(len: usize) -> (Vec<f32>, Vec<f32>, Vec<f64>) {
        let wave = |i: usize, step: f64| (i as f64 * step).sin();
        let l = (0..len).map(|i| (9.0 * wave(i, 0.7)) as f32).collect();
        let g = (0..len)
            .map(|i| (4.0 * wave(i, 1.3) + 2.0) as f32)
            .collect();
        (l, g, (0..len).map(|i| -5.0 + 3.0 * wave(i, 2.9)).collect())
    }

    #[test]
    fn predictions_are_those_of_f64() {
        let l: Vec<f32> = (0..86_000).map(|i| -0.001 * i as f32).collect();
        let mut p = vec![0.0; l.len()];
        predict(&l, 0.0, 1.0, &mut p);
        for (l, p) in l.iter().zip(p) {
            let error = f64::from(p) / f64::from(*l).exp() - 1.0;
            assert!(error.abs() < 1.5e-7, "e^{l} is off by {error:.1e}");
        }
        let mut p = [1.0];
        predict(&[-300.0], 0.0, 1.0, &mut p);
        assert!(p[0] > 0.0 && p[0] < 1e-37);
    }

    #[test]
    fn masses_are_those_of_f64() {
        for path in Path::available() {
            for len in [1, 7, 16, 5000] {
                let (l, g, _) = vectors(len);
                let (mass, pg) = masses(path, &l, 7.0, &g);
                let p = |l: &f32| (f64::from(*l) - 7.0).exp();
                let all: f64 = l.iter().map(p).sum();
                let of_g: f64 = l.iter().zip(&g).map(|(l, g)| p(l) * f64::from(*g)).sum();
                assert!((mass - all).abs() <= 1e-7 * all);
                assert!((pg - of_g).abs() <= 6e-7 * all);
            }
        }
    }

    #[test]
    fn weights_and_sums_are_those_of_f64() {
        for path in Path::available() {
            for (len, n_weights) in [(1, 8), (37, 6), (300, 8)] {
                let (l, g, log_q) = vectors(len);
                let tile = RowTile {
                    l: (&l, 0.3),
                    g: (&g, 2.1),
                    log_q: (&log_q, -5.5),
                    lse: 9.0,
                    unit: 0.01,
                };
                let mut out = vec![0.0; n_weights * len];
                let mut found = Products::default();
                weights(path, &tile, &mut out, &mut found);
                let (mut expected, mut l_max, mut g_max) = ([0.0; 16], 0.0f64, 0.0f64);
                for i in 0..len {
                    let p = (f64::from(l[i]) - 9.0).exp() * 0.01;
                    let (l, g) = (f64::from(l[i]) - 0.3, f64::from(g[i]) - 2.1);
                    let q = log_q[i] + 5.5;
                    let of_u = [1.0, l, q, g, l * g, q * g, l * q, q * q];
                    for (weight, of_u) in of_u.iter().enumerate().take(n_weights) {
                        let error = (f64::from(out[weight * len + i]) - p * of_u).abs();
                        assert!(
                            error < 1e-6,
                            "weight {weight} of token {i} is off by {error:.1e}"
                        );
                    }
                    let products = [
                        g,
                        g * g,
                        q * q,
                        g * q,
                        l * g,
                        l * q,
                        l * g * g,
                        l * q * q,
                        l * g * q,
                        q * g * g,
                        q * q * q,
                        q * g * q,
                        g.powi(4),
                        l.powi(4),
                        q.powi(4),
                        (l - q).powi(4),
                    ];
                    for (sum, product) in expected.iter_mut().zip(products) {
                        *sum += p * product;
                    }
                    (l_max, g_max) = (l_max.max(l.abs()), g_max.max(g.abs()));
                }
                let Products {
                    g,
                    gg,
                    qq,
                    gq,
                    lg,
                    lq,
                    lgg,
                    lqq,
                    lgq,
                    ..
                } = found;
                let Products {
                    qgg,
                    qqq,
                    qgq,
                    gggg,
                    llll,
                    qqqq,
                    ..
                } = found;
                let sums = [
                    g, gg, qq, gq, lg, lq, lgg, lqq, lgq, qgg, qqq, qgq, gggg, llll, qqqq,
                ];
                for (found, expected) in sums.iter().zip(expected) {
                    let error = (found - expected).abs();
                    assert!(
                        error < 1e-6 * (1.0 + expected.abs()),
                        "{found}, not {expected}"
                    );
                }
                assert!((f64::from(found.l_max) - l_max).abs() < 1e-5);
                assert!((f64::from(found.g_max) - g_max).abs() < 1e-5);
            }
        }
    }
}
