//! Sums over one tile, by the best instructions that the CPU has.

#![expect(unsafe_code, reason = "SIMD chosen at run time")]

use std::f32::consts::LOG2_E;

use super::aligned::Aligned;
use super::lanes::{Lanes, MAX_LANES, exp2};
use super::pass::{Change, TileMoments, TileVectors, pass};

/// Instructions that the kernel can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// 16 lanes (x86-64).
    Avx512,
    /// 8 lanes with fused multiply-add (x86-64).
    Avx2,
    /// 4 lanes (64-bit Arm).
    Neon,
    /// No particular instructions, on any machine.
    Scalar,
}

impl Path {
    /// Those that this machine has, fastest first; the last is [`Path::Scalar`].
    pub fn available() -> Vec<Self> {
        let mut paths = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") {
                paths.push(Self::Avx512);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                paths.push(Self::Avx2);
            }
        }
        if cfg!(target_arch = "aarch64") {
            paths.push(Self::Neon);
        }
        paths.push(Self::Scalar);
        paths
    }

    /// Pairs that a pass takes at once: as many as there are registers for.
    pub(super) fn pairs_at_once(self) -> usize {
        match self {
            Self::Avx512 | Self::Neon => 4,
            Self::Avx2 => 1,
            Self::Scalar => 1,
        }
    }
}

/// What is wanted of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Want {
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
pub(super) const MAX_PAIRS: usize = 4;

/// The moments of up to [`MAX_PAIRS`] pairs, in one pass if they are [`Path::pairs_at_once`].
///
/// With `degree` 0 they are exact to f32 rounding as long as `|t| <= 100`, which keeps every partial sum finite. With
/// another they are what `d` adds to those of the row, for `|d|` within the reach of the degree.
pub(super) fn moments(
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
    // SAFETY: a path other than scalar comes from `Path::available`, and the lengths were just compared.
    unsafe {
        match path {
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 => avx512(degree, want, row, u, changes),
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => avx2(degree, want, row, u, changes),
            #[cfg(target_arch = "aarch64")]
            Path::Neon => {
                at_once::<std::arch::aarch64::float32x4_t, 4>(degree, want, row, u, changes)
            }
            _ => at_once::<[f32; 8], 1>(degree, want, row, u, changes),
        }
    }
}

/// `2^x / ln 2` of every value; those with `|x|` above 125 are wrong.
pub(super) fn exponentials(path: Path, x: &[f32]) -> Aligned {
    let mut all = Aligned::zeros(x.len());
    // SAFETY: a path other than scalar comes from `Path::available`, and both have one length.
    unsafe {
        match path {
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 => exponentials_avx512(x, &mut all),
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => exponentials_avx2(x, &mut all),
            #[cfg(target_arch = "aarch64")]
            Path::Neon => exponentials_by::<std::arch::aarch64::float32x4_t>(x, &mut all),
            _ => exponentials_by::<[f32; 8]>(x, &mut all),
        }
    }
    all
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq")]
unsafe fn exponentials_avx512(x: &[f32], out: &mut [f32]) {
    unsafe { exponentials_by::<std::arch::x86_64::__m512>(x, out) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn exponentials_avx2(x: &[f32], out: &mut [f32]) {
    unsafe { exponentials_by::<std::arch::x86_64::__m256>(x, out) }
}

#[inline(always)]
unsafe fn exponentials_by<L: Lanes>(x: &[f32], out: &mut [f32]) {
    unsafe {
        let unit = L::splat(LOG2_E);
        let (mut from, mut to) = (x.chunks_exact(L::N), out.chunks_exact_mut(L::N));
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

/// `sum 2^x`: a bare loop of the kernel's exponentials, to measure it against.
///
/// # Panics
/// - if this machine does not have the instructions
pub fn exp_sum(path: Path, x: &[f32]) -> f64 {
    assert!(
        Path::available().contains(&path),
        "this machine cannot run {path:?}"
    );
    // SAFETY: the machine has the instructions.
    unsafe {
        match path {
            #[cfg(target_arch = "x86_64")]
            Path::Avx512 => exp_sum_avx512(x),
            #[cfg(target_arch = "x86_64")]
            Path::Avx2 => exp_sum_avx2(x),
            #[cfg(target_arch = "aarch64")]
            Path::Neon => bare::<std::arch::aarch64::float32x4_t>(x),
            _ => bare::<[f32; 8]>(x),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq")]
unsafe fn exp_sum_avx512(x: &[f32]) -> f64 {
    unsafe { bare::<std::arch::x86_64::__m512>(x) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn exp_sum_avx2(x: &[f32]) -> f64 {
    unsafe { bare::<std::arch::x86_64::__m256>(x) }
}

#[inline(always)]
unsafe fn bare<L: Lanes>(x: &[f32]) -> f64 {
    unsafe {
        let mut sum = L::splat(0.0);
        for chunk in x.chunks_exact(L::N) {
            sum = sum.add(exp2(L::load(chunk.as_ptr())));
        }
        let rest = x.chunks_exact(L::N).remainder();
        sum.sum() + rest.iter().map(|&x| f64::from(x).exp2()).sum::<f64>()
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq")]
unsafe fn avx512(
    degree: usize,
    want: Want,
    row: TileVectors<'_>,
    u: &[&[f32]],
    changes: &[Change],
) -> [TileMoments; MAX_PAIRS] {
    unsafe { at_once::<std::arch::x86_64::__m512, 4>(degree, want, row, u, changes) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(
    degree: usize,
    want: Want,
    row: TileVectors<'_>,
    u: &[&[f32]],
    changes: &[Change],
) -> [TileMoments; MAX_PAIRS] {
    unsafe { at_once::<std::arch::x86_64::__m256, 1>(degree, want, row, u, changes) }
}

/// `K` pairs together, or one after the other.
#[inline(always)]
unsafe fn at_once<L: Lanes, const K: usize>(
    degree: usize,
    want: Want,
    row: TileVectors<'_>,
    u: &[&[f32]],
    changes: &[Change],
) -> [TileMoments; MAX_PAIRS] {
    let mut all = [TileMoments::default(); MAX_PAIRS];
    unsafe {
        if let (Ok(u), Ok(changes)) = (<[&[f32]; K]>::try_from(u), <[Change; K]>::try_from(changes))
        {
            let together = by_degree::<L, K>(degree, want, row, u, changes);
            all[..K].copy_from_slice(&together);
        } else {
            for (all, (u, change)) in all.iter_mut().zip(u.iter().zip(changes)) {
                [*all] = by_degree::<L, 1>(degree, want, row, [u], [*change]);
            }
        }
    }
    all
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
