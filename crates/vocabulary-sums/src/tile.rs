//! Sums and exponentials over one tile.

#![expect(unsafe_code, reason = "SIMD chosen at run time")]

use std::f32::consts::LOG2_E;

use crate::aligned::Aligned;
use crate::lanes::{Lanes, MAX_LANES, exp2};
use crate::max_abs;
use crate::pass::{Change, TileMoments, TileVectors, pass};
use crate::path::{Path, Work};

/// What is wanted of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Want {
    /// `m[0], m[1], n[0]`, with `k lambda` added to the logits.
    Tilted,
    /// `m[0], m[1], n[0]`.
    Plain,
    /// `m[2]` and `n[1]` too.
    First,
    /// All.
    Second,
}

/// Most pairs of a call of [`moments`].
pub(crate) const MAX_PAIRS: usize = 4;

/// The moments of up to [`MAX_PAIRS`] pairs, which share passes if they are that many.
///
/// With `degree` 0 they are exact to f32 rounding as long as `|t| <= 100`, which keeps every partial sum finite. With
/// another they are what `d` adds to those of the row, for `|d|` within the reach of the degree.
pub(crate) fn moments(
    path: Path,
    (degree, want): (usize, Want),
    row: TileVectors<'_>,
    u: &[&[f32]],
    changes: &[Change],
) -> [TileMoments; MAX_PAIRS] {
    let len = row.g.len();
    let same = |v: &[f32]| v.len() == len;
    assert!(
        same(row.l) && same(row.e) && same(row.lambda) && u.iter().all(|u| same(u)),
        "vectors of a tile differ in length"
    );
    let work = Moments {
        degree,
        want,
        row,
        u,
        changes,
    };
    // SAFETY: the path of a kernel comes from `Path::available`, and the lengths were just compared.
    unsafe { path.run(work) }
}

struct Moments<'a> {
    degree: usize,
    want: Want,
    row: TileVectors<'a>,
    u: &'a [&'a [f32]],
    changes: &'a [Change],
}

impl Work for Moments<'_> {
    type Out = [TileMoments; MAX_PAIRS];

    #[inline(always)]
    unsafe fn run<L: Lanes, const K: usize>(self) -> Self::Out {
        let (degree, want, row) = (self.degree, self.want, self.row);
        let mut all = [TileMoments::default(); MAX_PAIRS];
        let groups = self.u.chunks(K).zip(self.changes.chunks(K));
        for (all, (u, changes)) in all.chunks_mut(K).zip(groups) {
            unsafe {
                if let (Ok(u), Ok(changes)) = (u.try_into(), changes.try_into()) {
                    all.copy_from_slice(&by_degree::<L, K>(degree, want, row, u, changes));
                    continue;
                }
                for (all, (u, change)) in all.iter_mut().zip(u.iter().zip(changes)) {
                    [*all] = by_degree::<L, 1>(degree, want, row, [u], [*change]);
                }
            }
        }
        all
    }
}

/// `2^x / ln 2` of every value; those with `|x|` above 125 are wrong.
pub(crate) fn exponentials(path: Path, x: &[f32]) -> Aligned {
    let mut out = Aligned::zeros(x.len());
    // SAFETY: the path of a kernel comes from `Path::available`.
    unsafe { path.run(Exponentials { x, out: &mut out }) };
    out
}

struct Exponentials<'a> {
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Work for Exponentials<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<L: Lanes, const K: usize>(self) {
        unsafe {
            let unit = L::splat(LOG2_E);
            let (mut from, mut to) = (self.x.chunks_exact(L::N), self.out.chunks_exact_mut(L::N));
            for (x, out) in (&mut from).zip(&mut to) {
                exp2(L::load(x.as_ptr())).mul(unit).store(out.as_mut_ptr());
            }
            for (x, out) in from.remainder().iter().zip(to.into_remainder()) {
                let mut lanes = [0.0f32; MAX_LANES];
                exp2(L::splat(*x)).mul(unit).store(lanes.as_mut_ptr());
                *out = lanes[0];
            }
        }
    }
}

/// [`max_abs`] by these instructions.
pub(crate) fn largest(path: Path, x: &[f32]) -> f64 {
    // SAFETY: the path of a kernel comes from `Path::available`.
    unsafe { path.run(Largest(x)) }
}

struct Largest<'a>(&'a [f32]);

impl Work for Largest<'_> {
    type Out = f64;

    #[inline(always)]
    unsafe fn run<L: Lanes, const K: usize>(self) -> f64 {
        max_abs(self.0).into()
    }
}

/// `(x - level) / ln 2` of every value, in f64 before it is rounded.
pub(crate) fn bits(path: Path, level: f64, x: &[f32], out: &mut [f32]) {
    // SAFETY: the path of a kernel comes from `Path::available`.
    unsafe { path.run(Bits { level, x, out }) }
}

struct Bits<'a> {
    level: f64,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Work for Bits<'_> {
    type Out = ();

    /// A plain loop, which the compiler makes of these instructions.
    #[inline(always)]
    unsafe fn run<L: Lanes, const K: usize>(self) {
        for (out, &x) in self.out.iter_mut().zip(self.x) {
            *out = ((f64::from(x) - self.level) * std::f64::consts::LOG2_E) as f32;
        }
    }
}

/// `sum 2^x`: a bare loop of the kernel's exponentials, to measure it against.
///
/// # Panics
/// - if this machine does not have the instructions
pub fn exp_sum(path: Path, x: &[f32]) -> f64 {
    path.assert_available();
    // SAFETY: just asserted.
    unsafe { path.run(ExpSum(x)) }
}

struct ExpSum<'a>(&'a [f32]);

impl Work for ExpSum<'_> {
    type Out = f64;

    #[inline(always)]
    unsafe fn run<L: Lanes, const K: usize>(self) -> f64 {
        unsafe {
            let mut sum = L::splat(0.0);
            for chunk in self.0.chunks_exact(L::N) {
                sum = sum.add(exp2(L::load(chunk.as_ptr())));
            }
            let rest = self.0.chunks_exact(L::N).remainder();
            sum.sum() + rest.iter().map(|&x| f64::from(x).exp2()).sum::<f64>()
        }
    }
}

#[inline(always)]
unsafe fn by_degree<L: Lanes, const K: usize>(
    degree: usize,
    want: Want,
    row: TileVectors<'_>,
    u: [&[f32]; K],
    changes: [Change; K],
) -> [TileMoments; K] {
    unsafe {
        match degree {
            3 => by_want::<L, 3, K>(want, row, u, changes),
            4 => by_want::<L, 4, K>(want, row, u, changes),
            5 => by_want::<L, 5, K>(want, row, u, changes),
            7 => by_want::<L, 7, K>(want, row, u, changes),
            _ => by_want::<L, 0, K>(want, row, u, changes),
        }
    }
}

#[inline(always)]
unsafe fn by_want<L: Lanes, const DEGREE: usize, const K: usize>(
    want: Want,
    row: TileVectors<'_>,
    u: [&[f32]; K],
    changes: [Change; K],
) -> [TileMoments; K] {
    unsafe {
        match want {
            Want::Tilted => pass::<L, 0, 0, true, K>(row, u, changes),
            Want::Plain => pass::<L, DEGREE, 0, false, K>(row, u, changes),
            Want::First => pass::<L, DEGREE, 1, false, K>(row, u, changes),
            Want::Second => pass::<L, DEGREE, 2, false, K>(row, u, changes),
        }
    }
}
