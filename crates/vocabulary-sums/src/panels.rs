//! Products of the weights of many rows with squares of the vectors of many directions, for the moments.

#![expect(unsafe_code, reason = "SIMD chosen at run time")]

use std::ops::Range;

use rayon::prelude::*;

use crate::aligned::Aligned;
use crate::lanes::Lanes;
use crate::path::{Path, Work};

/// Directions that share the loads of a row's weights.
pub const GROUP: usize = 6;
/// Tokens of a tile: the squares of some hundred directions fit the second-level cache with the weights of a panel.
const TILE_LEN: usize = 512;
/// Tokens of a strip, several of which make a tile.
const STRIP_LEN: usize = 64;
/// Half of the range of `log q` in a strip, in nats, up to which it counts as constant there.
const FLAT: f64 = 0.01;
/// Rows that are turned at once when weights are arranged.
const TURNED: usize = 16;

/// Weights of some rows over a run of tokens that goes from frequent to rare: `p`, `p l` and `p log q`, the latter centred for each row.
///
/// They are arranged so that registers hold neighbouring rows. Where `log q` hardly changes from token to token, as it does for
/// all but the most frequent ones, `p log q` is not kept: there its products follow from those of `p` over each strip.
#[derive(Debug, Clone)]
pub struct Panels {
    path: Path,
    /// Rows of a panel.
    width: usize,
    /// Panels for all rows; the last one has rows without meaning to fill it.
    n_panels: usize,
    len: usize,
    /// Strips, of which those before `flat`, whole tiles, are not flat.
    strips: Vec<Strip>,
    flat: usize,
    /// What `log q` is centred by, `[row]`.
    means: Aligned,
    /// `p`, then `p l`, then `p log q` up to the flat strips: `[panel][token][row]` each.
    values: Aligned,
}

/// Neighbouring tokens of about the same frequency.
#[derive(Debug, Clone, Copy)]
struct Strip {
    /// Middle of the range of `log q`, and half of that range.
    centre: f32,
    half_span: f32,
}

/// What [`Panels::add`] sums for each direction and row, in this order, over the tokens.
#[derive(Debug, Clone, Copy)]
#[repr(usize)]
pub enum Of {
    /// `p u^2`.
    Square,
    /// `p l u^2`.
    LSquare,
    /// `p log q u^2`, which may be off by [`Of::Slack`].
    QSquare,
    /// `p u^4` or more: one `u^2` is the largest of the strip.
    Fourth,
    /// `p u^2` times half of the range of `log q` in the strip, where that is flat.
    Slack,
}

/// Number of sums, one for each [`Of`].
pub const SUMS: usize = 5;

/// A direction over the run of tokens, and what is taken from it.
#[derive(Debug, Clone, Copy)]
pub struct Centred<'a> {
    /// The direction.
    pub u: &'a [f32],
    /// What is taken from each of its values.
    pub centre: f32,
}

impl Panels {
    /// Room for rows that have these means of `log q`, `[row]`: that of `spare`, if it is enough.
    ///
    /// # Panics
    /// - if this machine does not have the instructions
    pub fn new(path: Path, log_q: &[f64], mean_q: &[f64], spare: Option<Self>) -> Self {
        path.assert_available();
        // SAFETY: just asserted.
        let width = unsafe { path.run(Width) };
        let (len, n_panels) = (log_q.len(), mean_q.len().div_ceil(width));
        let strips: Vec<Strip> = log_q.chunks(STRIP_LEN).map(Strip::new).collect();
        let steep = strips
            .iter()
            .rposition(|strip| f64::from(strip.half_span) > FLAT);
        let of_tile = TILE_LEN / STRIP_LEN;
        let flat = steep.map_or(0, |last| (last + 1).next_multiple_of(of_tile));
        let room = n_panels * width * (2 * len + len.min(flat * STRIP_LEN));
        let spare = spare.map(|spare| spare.values);
        let mut means = Aligned::zeros(n_panels * width);
        for (mean, mean_q) in means.iter_mut().zip(mean_q) {
            *mean = *mean_q as f32;
        }
        Self {
            path,
            width,
            n_panels,
            len,
            strips,
            flat,
            means,
            values: spare
                .filter(|values| values.len() == room)
                .unwrap_or_else(|| Aligned::zeros(room)),
        }
    }

    /// Rows, with those that fill the panels.
    pub fn rows(&self) -> usize {
        self.n_panels * self.width
    }

    /// Tokens of each kind of weights.
    fn lens(&self) -> [usize; 3] {
        [self.len, self.len, self.len.min(self.flat * STRIP_LEN)]
    }

    /// The panels of each kind of weights.
    fn kinds(&self) -> [&[f32]; 3] {
        let [p, _, _] = self.lens();
        let (of_p, rest) = self.values.split_at(self.rows() * p);
        let (of_l, of_q) = rest.split_at(self.rows() * p);
        [of_p, of_l, of_q]
    }

    /// Takes the weights of some tokens, from place `start` of the run on: `[row][weight][token]`, of which the first three are ours;
    /// `n_tokens` is their number, `weights` that of the weights of a row.
    ///
    /// # Panics
    /// - if `values` are not that many, or the tokens go past the run
    pub fn fill(&mut self, start: usize, n_tokens: usize, weights: usize, values: &[f32]) {
        let (width, lens, of_row) = (self.width, self.lens(), weights * n_tokens);
        let mut rest = &mut self.values[..];
        for (kind, len) in lens.into_iter().enumerate() {
            let (here, after) = rest.split_at_mut(self.n_panels * width * len);
            rest = after;
            let tokens = n_tokens.min(len.saturating_sub(start));
            if tokens == 0 {
                continue;
            }
            let panels = here.par_chunks_mut(width * len).enumerate();
            panels.for_each(|(index, panel)| {
                let panel = &mut panel[start * width..(start + tokens) * width];
                let rows = values.chunks_exact(of_row).skip(index * width).take(width);
                let rows: Vec<&[f32]> = rows.map(|row| &row[kind * n_tokens..]).collect();
                for token in (0..tokens).step_by(TURNED) {
                    let end = (token + TURNED).min(tokens);
                    for (lane, row) in rows.iter().enumerate() {
                        for (at, &value) in (token..end).zip(&row[token..end]) {
                            panel[at * width + lane] = value;
                        }
                    }
                }
            });
        }
    }

    /// Adds the sums over all tokens to `out`, `[direction][of][row]`, with room for whole groups of directions; rows are
    /// [`Panels::rows`]. Returns the largest `u^2`, `[direction]`.
    ///
    /// Runs on the calling thread; some hundred directions at once keep their squares in cache.
    ///
    /// # Panics
    /// - if lengths disagree
    pub fn add(&self, directions: &[Centred<'_>], out: &mut [f32]) -> Vec<f32> {
        let of_tile = TILE_LEN / STRIP_LEN;
        // Where directions are missing in a group, zeros stand in for them.
        let n = directions.len().next_multiple_of(GROUP);
        assert!(
            directions.iter().all(|d| d.u.len() == self.len),
            "directions have another length than the weights"
        );
        assert_eq!(out.len(), n * SUMS * self.rows(), "sums have no room");
        let mut largest = vec![0.0f32; directions.len()];
        let mut squares = vec![0.0f32; n * TILE_LEN];
        let mut maxima = vec![0.0f32; n * of_tile];
        let (kinds, lens) = (self.kinds(), self.lens());
        for start in (0..self.len).step_by(TILE_LEN) {
            let tokens = start..self.len.min(start + TILE_LEN);
            let squares = &mut squares[..n * tokens.len()];
            let strips = tokens.len().div_ceil(STRIP_LEN);
            let maxima = &mut maxima[..n * strips];
            let each = squares
                .chunks_mut(tokens.len())
                .zip(maxima.chunks_mut(strips));
            for ((direction, (squares, maxima)), largest) in
                directions.iter().zip(each).zip(&mut largest)
            {
                let u = &direction.u[tokens.clone()];
                let strips = u.chunks(STRIP_LEN).zip(squares.chunks_mut(STRIP_LEN));
                for ((u, out), max) in strips.zip(maxima) {
                    let centre = direction.centre;
                    // SAFETY: the path of a kernel comes from `Path::available`.
                    *max = unsafe { self.path.run(Square { u, centre, out }) };
                    // What is not a number stays.
                    if *max > *largest || max.is_nan() {
                        *largest = *max;
                    }
                }
            }
            let flat = start / STRIP_LEN >= self.flat;
            for panel in 0..self.n_panels {
                let of_panel = |kind: usize| {
                    let start = (panel * lens[kind] + tokens.start) * self.width;
                    &kinds[kind][start..start + tokens.len() * self.width]
                };
                let rows = panel * self.width..(panel + 1) * self.width;
                let strips = Strips {
                    maxima,
                    strips: &self.strips[start / STRIP_LEN..][..strips],
                    means: &self.means[rows.clone()],
                    flat,
                };
                let mut add = |kind: usize, adds: Adds<'_>| {
                    let product = Product {
                        weights: of_panel(kind),
                        len: tokens.len(),
                        squares,
                        out: &mut *out,
                        rows: self.rows(),
                        panel: rows.clone(),
                        adds,
                    };
                    // SAFETY: the path of a kernel comes from `Path::available`.
                    unsafe { self.path.run(product) }
                };
                add(0, Adds::Strips(strips));
                add(1, Adds::One(Of::LSquare));
                if !flat {
                    add(2, Adds::One(Of::QSquare));
                }
            }
        }
        largest
    }
}

impl Strip {
    fn new(log_q: &[f64]) -> Self {
        let least = log_q.iter().copied().fold(f64::INFINITY, f64::min);
        let greatest = log_q.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Self {
            centre: ((least + greatest) / 2.0) as f32,
            // With the rounding of the centre and of what is taken from it.
            half_span: ((greatest - least) / 2.0 + greatest.abs().max(least.abs()) * 3e-7) as f32,
        }
    }
}

/// Registers of a panel: with [`GROUP`] directions they leave a few for the weights.
const fn registers(pairs: usize) -> usize {
    if pairs > 1 { 4 } else { 2 }
}

/// Rows of a panel.
struct Width;

impl Work for Width {
    type Out = usize;

    #[inline(always)]
    unsafe fn run<L: Lanes, const K: usize>(self) -> usize {
        registers(K) * L::N
    }
}

/// Squares of a centred direction in `out`; the largest.
struct Square<'a> {
    u: &'a [f32],
    centre: f32,
    out: &'a mut [f32],
}

impl Work for Square<'_> {
    type Out = f32;

    #[inline(always)]
    unsafe fn run<L: Lanes, const K: usize>(self) -> f32 {
        let mut largest = 0;
        for (square, u) in self.out.iter_mut().zip(self.u) {
            let centred = u - self.centre;
            *square = centred * centred;
            // As an integer, which orders like the number and has those that are not numbers on top.
            largest = largest.max(square.to_bits());
        }
        f32::from_bits(largest)
    }
}

/// Products of one panel of weights with squares over a tile.
struct Product<'a> {
    /// `[token][row]`
    weights: &'a [f32],
    len: usize,
    /// `[direction][token]`
    squares: &'a [f32],
    /// `[direction][of][row]`
    out: &'a mut [f32],
    /// Rows in all, and those of the panel.
    rows: usize,
    panel: Range<usize>,
    adds: Adds<'a>,
}

/// Which sums a product is added to.
enum Adds<'a> {
    One(Of),
    /// That of `p u^2`, and what follows from it strip by strip.
    Strips(Strips<'a>),
}

/// The strips of a tile.
struct Strips<'a> {
    /// Largest squares, `[direction][strip]`.
    maxima: &'a [f32],
    strips: &'a [Strip],
    /// What `log q` is centred by, `[row of the panel]`.
    means: &'a [f32],
    flat: bool,
}

impl Work for Product<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<L: Lanes, const K: usize>(self) {
        unsafe {
            match registers(K) {
                4 => self.by::<L, 4>(),
                _ => self.by::<L, 2>(),
            }
        }
    }
}

impl Product<'_> {
    #[inline(always)]
    unsafe fn by<L: Lanes, const REGISTERS: usize>(self) {
        let (len, width, stride) = (self.len, REGISTERS * L::N, SUMS * self.rows);
        let n = self.squares.len() / len;
        assert!(
            self.panel.len() == width && self.panel.end <= self.rows && n.is_multiple_of(GROUP),
            "a panel has other rows, or a group is not whole"
        );
        assert_eq!(self.weights.len(), len * width, "a panel has another size");
        assert_eq!(self.out.len(), n * stride, "sums have no room");
        let (first_out, of) = (self.out.as_mut_ptr(), |of: Of| of as usize * self.rows);
        for first in (0..n).step_by(GROUP) {
            let squares: [*const f32; GROUP] =
                std::array::from_fn(|i| self.squares[(first + i) * len..].as_ptr());
            unsafe {
                let out: [*mut f32; GROUP] =
                    std::array::from_fn(|i| first_out.add((first + i) * stride + self.panel.start));
                let ones = [L::splat(1.0); REGISTERS];
                let strips = match &self.adds {
                    Adds::Strips(strips) => strips,
                    Adds::One(one) => {
                        let sums = sum::<L, REGISTERS>(self.weights, squares, 0..len);
                        for i in 0..GROUP {
                            add(out[i].add(of(*one)), &sums[i], ones);
                        }
                        continue;
                    }
                };
                for (number, strip) in strips.strips.iter().enumerate() {
                    let start = number * STRIP_LEN;
                    let tokens = start..len.min(start + STRIP_LEN);
                    let sums = sum::<L, REGISTERS>(self.weights, squares, tokens);
                    for i in 0..GROUP {
                        let max = strips.maxima[(first + i) * strips.strips.len() + number];
                        add(out[i].add(of(Of::Square)), &sums[i], ones);
                        add(
                            out[i].add(of(Of::Fourth)),
                            &sums[i],
                            [L::splat(max); REGISTERS],
                        );
                    }
                    if !strips.flat {
                        continue;
                    }
                    let mut log_q = [L::splat(strip.centre); REGISTERS];
                    for (i, log_q) in log_q.iter_mut().enumerate() {
                        let means = &strips.means[i * L::N..(i + 1) * L::N];
                        *log_q = log_q.sub(L::load(means.as_ptr()));
                    }
                    let slack = [L::splat(strip.half_span); REGISTERS];
                    for i in 0..GROUP {
                        add(out[i].add(of(Of::QSquare)), &sums[i], log_q);
                        add(out[i].add(of(Of::Slack)), &sums[i], slack);
                    }
                }
            }
        }
    }
}

/// `sum w u^2` over some tokens, `[direction][register of rows]`.
///
/// # Safety
/// The CPU has the instructions of `L`, and there are weights and squares for all the tokens.
#[inline(always)]
unsafe fn sum<L: Lanes, const REGISTERS: usize>(
    weights: &[f32],
    squares: [*const f32; GROUP],
    tokens: Range<usize>,
) -> [[L; REGISTERS]; GROUP] {
    unsafe {
        let mut sums = [[L::splat(0.0); REGISTERS]; GROUP];
        for token in tokens {
            let from = weights.as_ptr().add(token * REGISTERS * L::N);
            let mut weights = [L::splat(0.0); REGISTERS];
            for (i, weights) in weights.iter_mut().enumerate() {
                *weights = L::load(from.add(i * L::N));
            }
            for (sums, square) in sums.iter_mut().zip(squares) {
                let square = L::splat(*square.add(token));
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    *sum = weights.fma(square, *sum);
                }
            }
        }
        sums
    }
}

/// `out += sums * factors`.
///
/// # Safety
/// The CPU has the instructions of `L`, and `out` has room for all the registers.
#[inline(always)]
unsafe fn add<L: Lanes, const REGISTERS: usize>(
    out: *mut f32,
    sums: &[L; REGISTERS],
    factors: [L; REGISTERS],
) {
    for i in 0..REGISTERS {
        unsafe {
            let out = out.add(i * L::N);
            sums[i].fma(factors[i], L::load(out)).store(out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Centred, GROUP, Of, Panels, SUMS};
    use crate::Path;

    #[test]
    fn sums_are_those_of_f64() {
        let wave = |i: usize, step: f64| (i as f64 * step).sin() as f32;
        for path in Path::available() {
            for (n_rows, n, len) in [(1, 1, 1), (5, 7, 40), (70, 13, 1100), (3, 2, 4000)] {
                // Zipf's law with a plateau: flat from about the 3,000th token on.
                let log_q: Vec<f64> = (1..=len)
                    .map(|rank| -(rank.min(3900) as f64).ln())
                    .collect();
                let mean_q: Vec<f64> = (0..n_rows).map(|row| -2.0 - 0.1 * row as f64).collect();
                let p = |row: usize, v: usize| 1.5 + wave(row * len + v, 0.7);
                let l = |row: usize, v: usize| wave(row * len + v, 2.1);
                let mut panels = Panels::new(path, &log_q, &mean_q, None);
                let cut = len / 3;
                for (start, end) in [(0, cut), (cut, len)].into_iter().filter(|(s, e)| s < e) {
                    let mut part = Vec::new();
                    for (row, mean_q) in mean_q.iter().enumerate() {
                        part.extend((start..end).map(|v| p(row, v)));
                        part.extend((start..end).map(|v| p(row, v) * l(row, v)));
                        part.extend((start..end).map(|v| p(row, v) * (log_q[v] - mean_q) as f32));
                        part.extend((start..end).map(|_| f32::NAN));
                    }
                    panels.fill(start, end - start, 4, &part);
                }
                let u: Vec<f32> = (0..n * len).map(|i| 2.0 * wave(i, 1.3)).collect();
                let centred = |(i, u)| Centred {
                    u,
                    centre: 0.1 * i as f32,
                };
                let directions: Vec<_> = u.chunks(len).enumerate().map(centred).collect();
                let rows = panels.rows();
                let mut out = vec![1.0; n.next_multiple_of(GROUP) * SUMS * rows];
                let largest = panels.add(&directions, &mut out);
                for (d, direction) in directions.iter().enumerate() {
                    let square = |v: usize| f64::from(direction.u[v] - direction.centre).powi(2);
                    let expected = (0..len).map(square).fold(0.0, f64::max);
                    assert!((f64::from(largest[d]) - expected).abs() <= 1e-6 * expected);
                    for row in 0..n_rows {
                        let found =
                            |of: Of| f64::from(out[(d * SUMS + of as usize) * rows + row]) - 1.0;
                        let sum = |weight: &dyn Fn(usize) -> f64| -> f64 {
                            (0..len).map(|v| f64::from(p(row, v)) * weight(v)).sum()
                        };
                        let rounding = 3e-6 * len as f64 + 1e-6;
                        let check = |of: Of, expected: f64, allowed: f64| {
                            let error = (found(of) - expected).abs();
                            assert!(error <= allowed, "{of:?} is off by {error:.1e}");
                        };
                        check(Of::Square, sum(&square), rounding);
                        check(
                            Of::LSquare,
                            sum(&|v| f64::from(l(row, v)) * square(v)),
                            rounding,
                        );
                        let of_q = sum(&|v| (log_q[v] - mean_q[row]) * square(v));
                        check(Of::QSquare, of_q, 10.0 * rounding + found(Of::Slack));
                        let fourth = sum(&|v| square(v).powi(2));
                        assert!(found(Of::Fourth) >= fourth - 10.0 * rounding);
                        assert!(found(Of::Fourth) <= 9.0 * fourth + rounding);
                        let slack = found(Of::Slack);
                        match len {
                            4000 => assert!(slack > 1e-4 * sum(&square)),
                            _ => assert!(slack < 1e-6),
                        }
                        assert!(slack < 0.01 * sum(&square) + rounding);
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_not_a_number_stays_the_largest() {
        let mut panels = Panels::new(Path::available()[0], &[-7.0; 1200], &[-6.0], None);
        panels.fill(0, 1200, 3, &[1.0; 3600]);
        let mut u = [0.0; 1200];
        u[3] = f32::NAN;
        let direction = Centred { u: &u, centre: 0.0 };
        let mut out = vec![0.0; GROUP * SUMS * panels.rows()];
        assert!(panels.add(&[direction], &mut out)[0].is_nan());
    }
}
