//! One pass over a tile for a few pairs at once: every load of what belongs to the row serves all of them.

#![expect(unsafe_code, reason = "SIMD chosen at run time")]

use std::f64::consts::LOG2_E;

use crate::{
    lanes::{Lanes, MAX_LANES, exp2},
    near::coefficients,
};

/// What belongs to the row, over the tokens of a tile: `l` in bits, `e = 2^l / ln 2`, `g`, and `log q` from the middle of the tile.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TileVectors<'a> {
    pub(crate) l: &'a [f32],
    pub(crate) e: &'a [f32],
    pub(crate) g: &'a [f32],
    pub(crate) lambda: &'a [f32],
}

/// How a pair's logits move, in nats: by `d = a g + c u + k lambda`.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Change {
    pub(crate) a: f64,
    pub(crate) c: f64,
    pub(crate) k: f64,
}

/// `m[i] = sum 2^t lambda^i` and `n[i] = sum 2^t t lambda^i` with `t = l + d / ln 2`.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TileMoments {
    pub(crate) m: [f64; 4],
    pub(crate) n: [f64; 3],
}

/// A logit, in bits, whose exponential is next to nothing: fills the last register of a tile.
const NOTHING: f32 = -125.0;

/// What a pass computes of each pair.
///
/// `DEGREE` 0 computes `2^t` and the moments themselves. Another one computes `w = 2^l (e^d - 1)` by the polynomial of that
/// degree ([`super::near`]), and what `d` adds to the moments. `HIGH` asks for `m[i]` up to `i = HIGH + 1` and `n[i]` up to
/// `i = HIGH`; `TILT` adds `k lambda` to `d`, for degree 0 only.
///
/// # Safety
/// The CPU has the instructions of `L`, and all vectors have one length.
#[inline(always)]
pub(crate) unsafe fn pass<
    L: Lanes,
    const DEGREE: usize,
    const HIGH: usize,
    const TILT: bool,
    const K: usize,
>(
    row: TileVectors<'_>,
    u: [&[f32]; K],
    changes: [Change; K],
) -> [TileMoments; K] {
    unsafe {
        let zero = L::splat(0.0);
        // Factors of `g` and `u` in bits; for a polynomial, which works with `y = d / c`, those are `a / c` and 1, and the
        // powers of `c` are in its coefficients.
        let (mut of_g, mut of_u, mut of_lambda) = ([zero; K], [zero; K], [zero; K]);
        let mut q = [[zero; DEGREE]; K];
        for (k, change) in changes.iter().enumerate() {
            of_u[k] = L::splat((change.c * LOG2_E) as f32);
            if DEGREE == 0 {
                of_g[k] = L::splat((change.a * LOG2_E) as f32);
                of_lambda[k] = L::splat((change.k * LOG2_E) as f32);
                continue;
            }
            of_g[k] = L::splat((change.a / change.c) as f32);
            let mut power = 1.0;
            for (place, q) in q[k].iter_mut().zip(coefficients(DEGREE)) {
                *place = L::splat((q * power / LOG2_E) as f32);
                power *= change.c;
            }
        }
        let (mut m, mut n, mut moved) = ([[zero; 4]; K], [[zero; 3]; K], [zero; K]);

        // Whole registers, then what is left, in registers of its own.
        let of_row = [row.l, row.e, row.g, row.lambda];
        let len = row.g.len();
        let whole = len - len % L::N;
        let (mut rest, mut rest_u);
        let (mut at_rest, mut at_rest_u) = ([row.l.as_ptr(); 4], [row.l.as_ptr(); K]);
        if whole < len {
            rest = [[0.0f32; MAX_LANES]; 4];
            rest_u = [[0.0f32; MAX_LANES]; K];
            rest[0].fill(NOTHING);
            for ((at, rest), v) in at_rest.iter_mut().zip(&mut rest).zip(of_row) {
                rest[..len - whole].copy_from_slice(&v[whole..]);
                *at = rest.as_ptr();
            }
            for ((at, rest), v) in at_rest_u.iter_mut().zip(&mut rest_u).zip(u) {
                rest[..len - whole].copy_from_slice(&v[whole..]);
                *at = rest.as_ptr();
            }
        }
        let (mut at, mut at_u) = (at_rest, at_rest_u);
        for i in 0..4 {
            at[i] = of_row[i].as_ptr();
        }
        for k in 0..K {
            at_u[k] = u[k].as_ptr();
        }
        for (at, at_u, end) in [(at, at_u, whole), (at_rest, at_rest_u, len - whole)] {
            let mut i = 0;
            while i < end {
                let (l, e) = (L::load(at[0].add(i)), L::load(at[1].add(i)));
                let (g, lambda) = (L::load(at[2].add(i)), L::load(at[3].add(i)));
                let lambda2 = lambda.mul(lambda);
                for k in 0..K {
                    let u = L::load(at_u[k].add(i));
                    let (w, t, ey);
                    if DEGREE == 0 {
                        let mut bits = of_g[k].fma(g, of_u[k].fma(u, l));
                        if TILT {
                            bits = of_lambda[k].fma(lambda, bits);
                        }
                        (w, t, ey) = (exp2(bits), bits, zero);
                    } else {
                        let y = of_g[k].fma(g, u);
                        ey = e.mul(y);
                        let mut polynomial = q[k][DEGREE - 1];
                        for i in (0..DEGREE - 1).rev() {
                            polynomial = polynomial.fma(y, q[k][i]);
                        }
                        w = ey.mul(polynomial);
                        t = of_u[k].fma(y, l);
                    }
                    m[k][0] = m[k][0].add(w);
                    m[k][1] = w.fma(lambda, m[k][1]);
                    if HIGH == 0 {
                        n[k][0] = w.fma(t, n[k][0]);
                        if DEGREE > 0 {
                            moved[k] = moved[k].add(ey);
                        }
                        continue;
                    }
                    let wt = match DEGREE {
                        0 => w.mul(t),
                        _ => w.fma(t, ey),
                    };
                    n[k][0] = n[k][0].add(wt);
                    n[k][1] = wt.fma(lambda, n[k][1]);
                    m[k][2] = w.fma(lambda2, m[k][2]);
                    if HIGH == 2 {
                        m[k][3] = w.mul(lambda).fma(lambda2, m[k][3]);
                        n[k][2] = wt.fma(lambda2, n[k][2]);
                    }
                }
                i += L::N;
            }
        }

        let mut all = [TileMoments::default(); K];
        for k in 0..K {
            // A polynomial's sums are in units of `c`.
            let unit = if DEGREE == 0 { 1.0 } else { changes[k].c };
            for (total, sum) in all[k].m.iter_mut().zip(m[k]).take(HIGH + 2) {
                *total = unit * sum.sum();
            }
            for (total, sum) in all[k].n.iter_mut().zip(n[k]).take(HIGH + 1) {
                *total = unit * sum.sum();
            }
            if DEGREE > 0 && HIGH == 0 {
                all[k].n[0] += unit * moved[k].sum();
            }
        }
        all
    }
}
