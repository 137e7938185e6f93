//! Directions that are sums of vectors, made tile by tile where they are read.

#![expect(unsafe_code, reason = "SIMD chosen at run time")]

use crate::{
    Direction, Kernel, Vector,
    aligned::Aligned,
    lanes::Lanes,
    max_abs,
    path::{Path, Work},
    tiles::Tile,
};

/// A direction over one tile.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TileDirection<'a> {
    pub(crate) u: &'a [f32],
    /// Largest absolute value.
    pub(crate) max: f64,
}

/// Memory for the directions of a call that are made, over one tile.
pub(crate) struct Room {
    made: Vec<Aligned>,
    /// Numbers of the pairs that they are of, each after the one that it goes on from, and those of the same vectors together.
    order: Vec<usize>,
    /// Which of them is that of a pair, `[pair]`; none for a vector as it is.
    slots: Vec<Option<usize>>,
}

impl Room {
    /// Room for the directions of some pairs over tiles of at most `len` tokens.
    ///
    /// # Panics
    /// - if one goes on from a pair of another row, or from none that is a sum
    pub(crate) fn new(pairs: &[(usize, Direction<'_>)], len: usize) -> Self {
        // How many sums a direction goes on from, `[pair]`; none for a vector as it is.
        let mut depths: Vec<Option<usize>> = Vec::with_capacity(pairs.len());
        for (number, (row, direction)) in pairs.iter().enumerate() {
            depths.push(match direction {
                Direction::Vector(_) => None,
                Direction::Sum(_) => Some(0),
                Direction::Further { back, .. } => {
                    let from = number.checked_sub(*back).filter(|from| *from < number);
                    let from = from.filter(|from| pairs[*from].0 == *row);
                    let depth = from.and_then(|from| depths[from]);
                    assert!(
                        depth.is_some(),
                        "a direction goes on from that of another row, or from none that is a sum"
                    );
                    depth.map(|depth| depth + 1)
                }
            });
        }
        let made = |number: &usize| depths[*number].is_some();
        let mut order: Vec<usize> = (0..pairs.len()).filter(made).collect();
        order.sort_by(|&one, &other| {
            let by_depth = depths[one].cmp(&depths[other]);
            by_depth.then_with(|| of_vectors(&pairs[one]).cmp(of_vectors(&pairs[other])))
        });
        let mut slots = vec![None; pairs.len()];
        for (slot, &number) in order.iter().enumerate() {
            slots[number] = Some(slot);
        }
        Self {
            made: vec![Aligned::zeros(len); order.len()],
            order,
            slots,
        }
    }

    /// The directions of the pairs over a tile.
    pub(crate) fn fill<'r>(
        &'r mut self,
        kernel: &'r Kernel,
        (index, tile): (usize, &Tile),
        vectors: &'r [Vector<'r>],
        pairs: &[(usize, Direction<'_>)],
    ) -> Vec<TileDirection<'r>> {
        let (len, mut slot) = (tile.range.len(), 0);
        let source = |number: usize| match pairs[number].1 {
            Direction::Further { back, .. } => self.slots[number - back],
            Direction::Vector(_) | Direction::Sum(_) => None,
        };
        // Sums of the same vectors share their loads.
        let same = |one: &usize, next: &usize| {
            source(*one).is_some() == source(*next).is_some()
                && of_vectors(&pairs[*one]).eq(of_vectors(&pairs[*next]))
        };
        for of_same in self.order.chunk_by(same) {
            for group in of_same.chunks(TOGETHER) {
                let (before, out) = self.made.split_at_mut(slot);
                let mut from: [Option<&[f32]>; TOGETHER] = [None; TOGETHER];
                for (from, &number) in from.iter_mut().zip(group) {
                    *from = source(number).map(|source| &before[source][..len]);
                }
                let terms = pairs[group[0]].1.terms().iter().enumerate();
                let terms = terms.filter_map(|(place, &(vector, _))| {
                    let mut factors = [0.0; TOGETHER];
                    for (factor, &number) in factors.iter_mut().zip(group) {
                        *factor = pairs[number].1.terms()[place].1 as f32;
                    }
                    Some((vectors[vector].over(tile)?, factors))
                });
                let terms: Vec<Term<'_>> = terms.collect();
                combine(kernel.path, &from, &terms, &mut out[..group.len()], len);
                slot += group.len();
            }
        }
        let direction = |((_, direction), slot): (&(usize, Direction<'_>), &Option<usize>)| match (
            direction, slot,
        ) {
            (Direction::Vector(vector), _) => match vectors[*vector].over(tile) {
                Some(u) => TileDirection {
                    u,
                    max: vectors[*vector].max(index),
                },
                None => TileDirection {
                    u: &kernel.nothing[..len],
                    max: 0.0,
                },
            },
            (_, slot) => {
                let u = slot.map_or(&[][..], |slot| &self.made[slot][..len]);
                let max = f64::from(max_abs(u));
                TileDirection { u, max }
            }
        };
        pairs.iter().zip(&self.slots).map(direction).collect()
    }
}

/// The vectors that a direction is made of.
fn of_vectors<'p>(pair: &'p (usize, Direction<'_>)) -> impl Iterator<Item = usize> + 'p {
    pair.1.terms().iter().map(|term| term.0)
}

/// Sums that share the loads of their vectors.
const TOGETHER: usize = 4;

/// A vector over a tile, and its factors in the sums.
type Term<'a> = (&'a [f32], [f32; TOGETHER]);

/// `out = from + sum factor vector`, over `len` tokens, for each of `out`.
fn combine(
    path: Path,
    from: &[Option<&[f32]>; TOGETHER],
    terms: &[Term<'_>],
    out: &mut [Aligned],
    len: usize,
) {
    assert!(
        out.len() <= TOGETHER
            && out.iter().all(|out| out.len() >= len)
            && terms.iter().all(|(v, _)| v.len() == len)
            && from.iter().flatten().all(|v| v.len() == len),
        "vectors of a tile differ in length"
    );
    // SAFETY: the path of a kernel comes from `Path::available`, and the lengths were just compared.
    unsafe {
        path.run(Combine {
            from,
            terms,
            out,
            len,
        })
    }
}

struct Combine<'a> {
    from: &'a [Option<&'a [f32]>; TOGETHER],
    terms: &'a [Term<'a>],
    out: &'a mut [Aligned],
    len: usize,
}

/// Registers of each sum at once.
const REGISTERS: usize = 4;

impl Work for Combine<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<L: Lanes, const K: usize>(self) {
        let Self {
            from,
            terms,
            out,
            len,
        } = self;
        let whole = len - len % (REGISTERS * L::N);
        for i in (0..whole).step_by(REGISTERS * L::N) {
            unsafe {
                if out.len() == TOGETHER {
                    combine_at::<L, TOGETHER>(i, 0, from, terms, out);
                } else {
                    for first in 0..out.len() {
                        combine_at::<L, 1>(i, first, from, terms, out);
                    }
                }
            }
        }
        for (k, out) in out.iter_mut().enumerate() {
            for i in whole..len {
                let start = from[k].map_or(0.0, |from| from[i]);
                let each = terms.iter();
                out[i] = each.fold(start, |sum, (vector, factors)| sum + factors[k] * vector[i]);
            }
        }
    }
}

/// `N` of the sums from `first` on, in the registers that start at `i`.
#[inline(always)]
unsafe fn combine_at<L: Lanes, const N: usize>(
    i: usize,
    first: usize,
    from: &[Option<&[f32]>; TOGETHER],
    terms: &[Term<'_>],
    out: &mut [Aligned],
) {
    unsafe {
        let at = |r: usize| i + r * L::N;
        let mut sums = [[L::splat(0.0); REGISTERS]; N];
        for (sums, from) in sums.iter_mut().zip(&from[first..]) {
            if let Some(from) = from {
                for (r, sum) in sums.iter_mut().enumerate() {
                    *sum = L::load(from.as_ptr().add(at(r)));
                }
            }
        }
        for (vector, factors) in terms {
            let mut u = [L::splat(0.0); REGISTERS];
            for (r, u) in u.iter_mut().enumerate() {
                *u = L::load(vector.as_ptr().add(at(r)));
            }
            for (sums, factor) in sums.iter_mut().zip(&factors[first..]) {
                let factor = L::splat(*factor);
                for (sum, u) in sums.iter_mut().zip(u) {
                    *sum = factor.fma(u, *sum);
                }
            }
        }
        for (sums, out) in sums.iter().zip(&mut out[first..]) {
            for (r, sum) in sums.iter().enumerate() {
                sum.store(out.as_mut_ptr().add(at(r)));
            }
        }
    }
}
