//! Directions that are sums of vectors, made tile by tile where they are read.

#![expect(unsafe_code, reason = "SIMD chosen at run time")]

use std::ops::Range;

use crate::{
    Direction, Kernel, Vector,
    aligned::Aligned,
    lanes::{Lanes, MAX_LANES},
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
///
/// Pairs of which each goes on from the one before are a chain. It is added up in registers, and what there is after each of its steps is
/// one direction.
pub(crate) struct Room<'p> {
    pairs: &'p [(usize, Direction<'p>)],
    groups: Vec<Group>,
    /// Which of the sums is that of a pair, `[pair]`; none for a vector as it is.
    slots: Vec<Option<usize>>,
    /// `[slot][stride]`
    made: Aligned,
    stride: usize,
    /// Largest absolute values, by the place in a register, `[slot]`.
    max: Vec<[f32; MAX_LANES]>,
}

/// Chains that add up the same vectors, which are loaded once for all of them.
struct Group {
    chains: usize,
    /// The slots of their sums, `[chain][step]`.
    slots: Range<usize>,
    /// A vector, and its factor in each chain.
    terms: Vec<(usize, [f32; TOGETHER])>,
    /// Where the terms of each step end.
    ends: Vec<usize>,
}

/// Most chains that share the loads of their vectors.
const TOGETHER: usize = 8;

impl<'p> Room<'p> {
    /// Room for the directions of some pairs over tiles of at most `len` tokens.
    ///
    /// # Panics
    /// - if one goes on from a pair of another row, or from none that is a sum
    pub(crate) fn new(pairs: &'p [(usize, Direction<'p>)], len: usize) -> Self {
        let mut chains = chains(pairs);
        // Alike ones together.
        chains.sort_by(|one, other| {
            steps_of(&pairs[one.clone()]).cmp(steps_of(&pairs[other.clone()]))
        });
        let (mut groups, mut slots, mut n_slots) = (Vec::new(), vec![None; pairs.len()], 0);
        let alike = |one: &Range<usize>, next: &Range<usize>| {
            steps_of(&pairs[one.clone()]).eq(steps_of(&pairs[next.clone()]))
        };
        for group in chains
            .chunk_by(alike)
            .flat_map(|alike| alike.chunks(TOGETHER))
        {
            let first = n_slots;
            for number in group.iter().cloned().flatten() {
                slots[number] = Some(n_slots);
                n_slots += 1;
            }
            let (mut terms, mut ends) = (Vec::new(), Vec::new());
            for step in 0..group[0].len() {
                let each = |chain: &Range<usize>| pairs[chain.start + step].1.terms();
                for (place, &(vector, _)) in each(&group[0]).iter().enumerate() {
                    let mut factors = [0.0; TOGETHER];
                    for (factor, chain) in factors.iter_mut().zip(group) {
                        *factor = each(chain)[place].1 as f32;
                    }
                    terms.push((vector, factors));
                }
                ends.push(terms.len());
            }
            groups.push(Group {
                chains: group.len(),
                slots: first..n_slots,
                terms,
                ends,
            });
        }
        // One line more, so that sums do not all start at the same place of the first-level cache.
        let stride = len.next_multiple_of(MAX_LANES) + MAX_LANES;
        Self {
            pairs,
            groups,
            slots,
            made: Aligned::zeros(n_slots * stride),
            stride,
            max: vec![[0.0; MAX_LANES]; n_slots],
        }
    }

    /// The directions of the pairs over a tile.
    pub(crate) fn fill<'r>(
        &'r mut self,
        kernel: &'r Kernel,
        (index, tile): (usize, &Tile),
        vectors: &'r [Vector<'r>],
    ) -> Vec<TileDirection<'r>> {
        let (len, stride) = (tile.range.len(), self.stride);
        self.max.fill([0.0; MAX_LANES]);
        let (mut terms, mut ends) = (Vec::new(), Vec::new());
        for group in &self.groups {
            // Those vectors that have values here.
            terms.clear();
            ends.clear();
            let mut from = 0;
            for &end in &group.ends {
                let here =
                    |&(vector, factors): &(usize, _)| Some((vectors[vector].over(tile)?, factors));
                terms.extend(group.terms[from..end].iter().filter_map(here));
                ends.push(terms.len());
                from = end;
            }
            let of_group = group.slots.start * stride..group.slots.end * stride;
            let work = Combine {
                chains: group.chains,
                terms: &terms,
                ends: &ends,
                out: &mut self.made[of_group],
                stride,
                len,
                max: &mut self.max[group.slots.clone()],
            };
            work.by(kernel.path);
        }
        let direction = |((_, direction), slot): (&(usize, Direction<'_>), &Option<usize>)| {
            match (direction, *slot) {
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
                (_, Some(slot)) => TileDirection {
                    u: &self.made[slot * stride..slot * stride + len],
                    max: max_abs(&self.max[slot]).into(),
                },
                // A sum has a slot.
                (_, None) => TileDirection {
                    u: &[],
                    max: f64::NAN,
                },
            }
        };
        self.pairs.iter().zip(&self.slots).map(direction).collect()
    }
}

/// Pairs whose directions are sums, each with those after it that go on from it.
fn chains(pairs: &[(usize, Direction<'_>)]) -> Vec<Range<usize>> {
    let mut chains: Vec<Range<usize>> = Vec::new();
    for (number, (row, direction)) in pairs.iter().enumerate() {
        match direction {
            Direction::Vector(_) => {}
            Direction::Sum(_) => chains.push(number..number + 1),
            Direction::Further(_) => {
                let before = chains.last_mut().filter(|chain| chain.end == number);
                let before = before.filter(|chain| pairs[chain.start].0 == *row);
                assert!(
                    before.is_some(),
                    "a direction goes on from that of another row, or from none that is a sum"
                );
                if let Some(chain) = before {
                    chain.end += 1;
                }
            }
        }
    }
    chains
}

/// The vectors of a chain, with nothing before those of each step.
fn steps_of<'c>(chain: &'c [(usize, Direction<'c>)]) -> impl Iterator<Item = Option<usize>> + 'c {
    chain.iter().flat_map(|(_, direction)| {
        let vectors = direction.terms().iter().map(|term| Some(term.0));
        std::iter::once(None).chain(vectors)
    })
}

/// Adds up some chains over a tile.
struct Combine<'a> {
    chains: usize,
    /// A vector over the tile, and its factor in each chain.
    terms: &'a [(&'a [f32], [f32; TOGETHER])],
    /// Where the terms of each step end.
    ends: &'a [usize],
    /// `[chain][step][stride]`
    out: &'a mut [f32],
    stride: usize,
    len: usize,
    /// `[chain][step]`
    max: &'a mut [[f32; MAX_LANES]],
}

impl Combine<'_> {
    fn by(self, path: Path) {
        let sums = self.chains * self.ends.len();
        assert!(
            self.chains <= TOGETHER
                && self.len <= self.stride
                && self.out.len() == sums * self.stride
                && self.max.len() == sums
                && self.ends.is_sorted()
                && self.ends.last().is_none_or(|end| *end <= self.terms.len())
                && self.terms.iter().all(|(v, _)| v.len() == self.len),
            "vectors of a tile differ in length"
        );
        // SAFETY: the path of a kernel comes from `Path::available`, and the lengths were just compared.
        unsafe { path.run(self) }
    }

    /// `N` chains from `first` on, `R` registers of each at once; returns `N`.
    #[inline(always)]
    unsafe fn add_up<L: Lanes, const N: usize, const R: usize>(&mut self, first: usize) -> usize {
        let whole = self.len - self.len % L::N;
        let mut i = 0;
        while i + R * L::N <= whole {
            unsafe { self.registers::<L, N, R>(first, i) };
            i += R * L::N;
        }
        while i < whole {
            unsafe { self.registers::<L, N, 1>(first, i) };
            i += L::N;
        }
        let steps = self.ends.len();
        for chain in first..first + N {
            for i in whole..self.len {
                let (mut sum, mut from) = (0.0, 0);
                for (step, &end) in self.ends.iter().enumerate() {
                    for (vector, factors) in &self.terms[from..end] {
                        sum += factors[chain] * vector[i];
                    }
                    from = end;
                    let slot = chain * steps + step;
                    self.out[slot * self.stride + i] = sum;
                    let max = &mut self.max[slot][0];
                    *max = max_abs(&[*max, sum]);
                }
            }
        }
        N
    }

    /// The same for the tokens of `R` registers from `i` on.
    #[inline(always)]
    unsafe fn registers<L: Lanes, const N: usize, const R: usize>(
        &mut self,
        first: usize,
        i: usize,
    ) {
        unsafe {
            let steps = self.ends.len();
            let mut sums = [[L::splat(0.0); R]; N];
            let mut from = 0;
            for (step, &end) in self.ends.iter().enumerate() {
                for (vector, factors) in &self.terms[from..end] {
                    let mut u = [L::splat(0.0); R];
                    for (r, u) in u.iter_mut().enumerate() {
                        *u = L::load(vector.as_ptr().add(i + r * L::N));
                        // There are more vectors than the machine follows by itself.
                        L::prefetch(vector.as_ptr().wrapping_add(i + (R + r) * L::N));
                    }
                    for (k, sums) in sums.iter_mut().enumerate() {
                        let factor = L::splat(*factors.as_ptr().add(first + k));
                        for (sum, u) in sums.iter_mut().zip(u) {
                            *sum = factor.fma(u, *sum);
                        }
                    }
                }
                from = end;
                for (k, sums) in sums.iter().enumerate() {
                    let slot = (first + k) * steps + step;
                    let out = self.out.as_mut_ptr().add(slot * self.stride + i);
                    let of_slot = self.max.as_mut_ptr().add(slot).cast::<f32>();
                    let mut max = L::load(of_slot);
                    for (r, sum) in sums.iter().enumerate() {
                        sum.store(out.add(r * L::N));
                        max = max.max_abs(*sum);
                    }
                    max.store(of_slot);
                }
            }
        }
    }
}

impl Work for Combine<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<L: Lanes, const K: usize>(mut self) {
        let mut first = 0;
        while first < self.chains {
            // No more sums than there are registers for.
            first += unsafe {
                match self.chains - first {
                    8.. if K > 1 => self.add_up::<L, 8, 2>(first),
                    4.. => self.add_up::<L, 4, 2>(first),
                    2.. => self.add_up::<L, 2, 4>(first),
                    _ => self.add_up::<L, 1, 4>(first),
                }
            };
        }
    }
}
