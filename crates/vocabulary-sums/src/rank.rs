//! How many tokens have a larger logit than one of them.

#![expect(unsafe_code, reason = "SIMD chosen at run time")]

use crate::{
    Base, Kernel, RowVectors, Vector,
    lanes::{Lanes, MAX_LANES},
    path::Work,
};

impl Kernel {
    /// Rank of the token at `place` in the layout, counted from 0: the number of tokens whose `l + a g + c u` is larger, in f32.
    ///
    /// # Panics
    /// - if `place` is not below the size of the vocabulary
    ///
    /// # Examples
    /// ```
    /// use vocabulary_sums::{Base, Kernel, VocabLayout};
    /// let log_q = [(1.0f64 / 3.0).ln(); 3];
    /// let kernel = Kernel::new(&VocabLayout::new(&log_q, &[]), &log_q);
    /// let row = kernel.row(&[3.0, 2.0, 1.0], &[0.0, 0.0, 0.0]);
    /// let u = kernel.vector(&[0.0, 0.0, 1.0]);
    /// assert_eq!(kernel.rank(&row, &u, Base { a: 0.0, c: 0.0 }, 2), 2);
    /// assert_eq!(kernel.rank(&row, &u, Base { a: 0.0, c: 1.5 }, 2), 1);
    /// ```
    pub fn rank(&self, row: &RowVectors<'_>, u: &Vector<'_>, base: Base, place: usize) -> usize {
        let (a, c) = (base.a as f32, base.c as f32);
        let at = [row.l, row.g, u.values];
        assert!(
            place < row.l.len() && at.iter().all(|v| v.len() == row.l.len()),
            "place {place} is beyond the vocabulary, or vectors differ in length"
        );
        // SAFETY: the path comes from `Path::available`, and the lengths were just compared.
        unsafe { self.path.run(Rank { at, a, c, place }) }
    }
}

/// Vectors `l`, `g` and `u`, the factors of the latter two, and the place of the target.
struct Rank<'a> {
    at: [&'a [f32]; 3],
    a: f32,
    c: f32,
    place: usize,
}

impl Work for Rank<'_> {
    type Out = usize;

    #[inline(always)]
    unsafe fn run<L: Lanes, const K: usize>(self) -> usize {
        let Self { at, a, c, place } = self;
        unsafe {
            let (a, c) = (L::splat(a), L::splat(c));
            let logits =
                |[l, g, u]: [*const f32; 3]| a.fma(L::load(g), c.fma(L::load(u), L::load(l)));
            // The target by the same operations, so that it is never above itself.
            let mut lanes = [0.0f32; MAX_LANES];
            let target = at.map(|v| [v[place]; MAX_LANES]);
            logits([0, 1, 2].map(|i| target[i].as_ptr())).store(lanes.as_mut_ptr());
            let target = L::splat(lanes[0]);
            let (len, mut i, mut above) = (at[0].len(), 0, 0);
            while i + L::N <= len {
                above += logits(at.map(|v| v.as_ptr().add(i))).above(target);
                i += L::N;
            }
            if i < len {
                let mut rest = [[0.0f32; MAX_LANES]; 3];
                for (rest, v) in rest.iter_mut().zip(at) {
                    // Places past the end repeat the target.
                    rest.fill(v[place]);
                    rest[..len - i].copy_from_slice(&v[i..]);
                }
                above += logits([0, 1, 2].map(|i| rest[i].as_ptr())).above(target);
            }
            above as usize
        }
    }
}
