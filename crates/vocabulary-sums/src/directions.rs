//! Directions that are sums of vectors, made tile by tile where they are read.

#![expect(unsafe_code, reason = "SIMD chosen at run time")]

use crate::{
    Direction, Kernel, Vector,
    aligned::Aligned,
    lanes::Lanes,
    max_abs,
    path::{Path, Work},
    tiles::{TILE_LEN, Tile},
};

/// Sums that are in memory at once, over one tile: with what belongs to a row they fit the second-level cache.
pub(crate) const MADE_AT_ONCE: usize = 16;

/// A direction over one tile.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TileDirection<'a> {
    pub(crate) u: &'a [f32],
    /// Largest absolute value.
    pub(crate) max: f64,
}

/// Memory for directions that are made.
pub(crate) struct Room {
    /// One more than are made at once: the last one of the group before, which the next may go on from.
    made: Vec<Aligned>,
}

impl Room {
    /// Room for some directions; none where all are vectors as they are.
    pub(crate) fn new(any_made: bool) -> Self {
        let n = if any_made { MADE_AT_ONCE + 1 } else { 0 };
        Self {
            made: vec![Aligned::zeros(TILE_LEN); n],
        }
    }

    /// Some neighbouring directions over a tile, of which at most [`MADE_AT_ONCE`] have to be made.
    pub(crate) fn fill<'r>(
        &'r mut self,
        kernel: &'r Kernel,
        (index, tile): (usize, &Tile),
        vectors: &'r [Vector<'r>],
        directions: impl Iterator<Item = Direction<'r>> + Clone,
    ) -> Vec<TileDirection<'r>> {
        let len = tile.range.len();
        let mut next = 0;
        for direction in directions.clone() {
            let (terms, goes_on) = match direction {
                Direction::Vector(_) => continue,
                Direction::Sum(terms) => (terms, false),
                Direction::Further(terms) => (terms, true),
            };
            let (before, room) = self.made.split_at_mut(next + 1);
            let from = goes_on.then(|| &before[next][..len]);
            let terms: Vec<Term<'_>> = terms
                .iter()
                .filter_map(|&(vector, factor)| Some((vectors[vector].over(tile)?, factor as f32)))
                .collect();
            combine(kernel.path, from, &terms, &mut room[0][..len]);
            next += 1;
        }
        if next > 0 {
            let (first, made) = self.made.split_at_mut(1);
            first[0][..len].copy_from_slice(&made[next - 1][..len]);
        }
        let mut made = self.made.iter().skip(1);
        directions
            .map(|direction| match direction {
                Direction::Vector(vector) => match vectors[vector].over(tile) {
                    Some(u) => TileDirection {
                        u,
                        max: vectors[vector].max(index),
                    },
                    None => TileDirection {
                        u: &kernel.nothing[..len],
                        max: 0.0,
                    },
                },
                Direction::Sum(_) | Direction::Further(_) => {
                    let u = made.next().map_or(&[][..], |made| &made[..len]);
                    let max = f64::from(max_abs(u));
                    TileDirection { u, max }
                }
            })
            .collect()
    }
}

/// A vector over a tile, and its factor.
type Term<'a> = (&'a [f32], f32);

/// `out = from + sum factor vector`.
fn combine(path: Path, from: Option<&[f32]>, terms: &[Term<'_>], out: &mut [f32]) {
    let len = out.len();
    assert!(
        terms
            .iter()
            .map(|(v, _)| v)
            .chain(&from)
            .all(|v| v.len() == len),
        "vectors of a tile differ in length"
    );
    // SAFETY: the path of a kernel comes from `Path::available`, and the lengths were just compared.
    unsafe { path.run(Combine { from, terms, out }) }
}

struct Combine<'a> {
    from: Option<&'a [f32]>,
    terms: &'a [Term<'a>],
    out: &'a mut [f32],
}

/// Registers that a pass over the terms fills at once.
const REGISTERS: usize = 8;

impl Work for Combine<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<L: Lanes, const K: usize>(self) {
        let Self { from, terms, out } = self;
        let (len, step) = (out.len(), REGISTERS * L::N);
        let mut i = 0;
        while i + step <= len {
            unsafe {
                let mut sums = [L::splat(0.0); REGISTERS];
                if let Some(from) = from {
                    for (r, sum) in sums.iter_mut().enumerate() {
                        *sum = L::load(from.as_ptr().add(i + r * L::N));
                    }
                }
                for (vector, factor) in terms {
                    let factor = L::splat(*factor);
                    for (r, sum) in sums.iter_mut().enumerate() {
                        *sum = factor.fma(L::load(vector.as_ptr().add(i + r * L::N)), *sum);
                    }
                }
                for (r, sum) in sums.iter().enumerate() {
                    sum.store(out.as_mut_ptr().add(i + r * L::N));
                }
            }
            i += step;
        }
        for (i, out) in out.iter_mut().enumerate().skip(i) {
            let start = from.map_or(0.0, |from| from[i]);
            *out = terms
                .iter()
                .fold(start, |sum, (vector, factor)| sum + factor * vector[i]);
        }
    }
}
