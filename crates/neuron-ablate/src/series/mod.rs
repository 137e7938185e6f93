//! The moment engine (methods, section 11): sums over the vocabulary from matrix products, with a bound on the error.
//!
//! Where an ablation moves the logits little, no exponential is needed. Within a cell of the vocabulary, with the clean
//! predictions renormalised to `p` (`sum p = 1` over the cell), logits move by
//!
//! ```text
//! eta = a g + c u + k log q + offset = E[eta] + e,   E[.] under p
//! lse(z) = lse(l) + E[eta] + ln E[e^e]
//! E_z[f] = E[f] + E[(f - E f) e^e] / E[e^e]          for f in {l, log q}
//! ```
//!
//! and the exponentials are cut after the second order. Terms linear in `u` come from `(sum_v p f g W_U) . (gamma w_c)`, one
//! vector of `d_model` per row; those in `u^2` from products of `p`, `p l` and `p log q` with the matrix of `u^2`. On the CPU
//! ([`host`]) the passes between these products are our own, on any other device ([`tensors`]) they are those of libtorch.
//!
//! # Bound
//! By Taylor's theorem the terms left out of `E[f e^e]` are at most `E|f e^3| exp(max|e|) / 6`, and by Hölder's inequality
//! `E|f e^3| <= |f|_4 |e|_4^3`, `E|e|^3 <= |e|_2 |e|_4^2` with norms under `p`. `|e|_4` is at most the sum of the norms of its
//! parts. `|u|_4` comes from one more product, with the matrix of `u^4`; on the CPU from `E u^4 <= sum_s max_s u^2 E_s u^2` over
//! strips `s` of the vocabulary, which costs nothing. All this holds for every pair, however large the change; beyond the bound lies
//! only the rounding of f32 (`ROUNDING`).

mod host;
mod tensors;

use std::{ops::Range, sync::Mutex};

use rayon::prelude::*;
use tch::{Kind, TchError, Tensor};
use vocabulary_sums::{
    self as kernel, Sums,
    panels::{Of, Panels, SUMS},
    weights::{LINEAR, LINEAR_TILTED, MAX_TOKENS},
};

use crate::{
    closed_form::Projected,
    row_logits::{Dots, RowLogits},
    vectors::Vectors,
};

/// What rounding in f32 may add beside the bound of the series, relative to `|c| |W_U[v]| |gamma w_c|` for the longest row of
/// `W_U` in the cell, and to `max|e|`. Measured: the largest error seen where the series is exact was a tenth of it.
const ROUNDING: f64 = 3e-8;

/// How far a fourth norm by strips is usually above the true one.
const FOURTH_ABOVE: f64 = 1.2;

/// Columns of the vocabulary that are worked on at once.
const TILE: usize = MAX_TOKENS;
/// Norms of the logit vector of a direction, centred: `(E u^2)^(1/2)` and `(E u^4)^(1/4)`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    second: f64,
    fourth: f64,
}

impl Spread {
    /// Those of `u` by the frequencies `q` of the tokens, each in the cell where it is largest.
    fn new(cells: &[SeriesCell], q: &[f32], u: &[f32]) -> Self {
        let of_cell = |cell: &SeriesCell| {
            let (u, q) = (&u[cell.range.clone()], &q[cell.range.clone()]);
            let mean = (weighted(u, q, |u| u) / cell.mass) as f32;
            let square = |u: f32| (u - mean) * (u - mean);
            let second = weighted(u, q, square) / cell.mass;
            let fourth = weighted(u, q, |u| square(u) * square(u)) / cell.mass;
            [second, fourth]
        };
        let mut largest = [0.0f64; 2];
        for of_cell in cells.iter().map(of_cell) {
            largest = std::array::from_fn(|i| largest[i].max(of_cell[i]));
        }
        let [second, fourth] = largest;
        Self {
            second: second.sqrt(),
            fourth: fourth.sqrt().sqrt(),
        }
    }

    /// About what the bound will be where a direction is added `c` times: that of [`moved`] for usual logits.
    pub(crate) fn error(&self, c: f64) -> f64 {
        let (second, fourth) = (c.abs() * self.second, c.abs() * self.fourth * FOURTH_ABOVE);
        // Usual norms of the logits.
        (2.0 * second + 4.0 * fourth) * fourth * fourth / 6.0
    }
}

/// What is the same for all rows and neurons.
#[derive(Debug)]
pub(crate) struct Series {
    cells: Vec<SeriesCell>,
    /// `q`, `[d_vocab]`.
    q: Vec<f32>,
    /// `log q`, `[d_vocab]`.
    log_q: Vec<f64>,
    /// Centred `W_U`, `[d_vocab, d_model]`.
    w_u: Vectors,
    /// The instructions to use on the CPU; otherwise everything is tensor operations.
    path: Option<kernel::Path>,
    /// What earlier rows on the CPU left, to be used again: fresh memory costs as much as what is written to it.
    spare: Mutex<Vec<Panels>>,
}

/// A cell of the vocabulary.
#[derive(Debug, Clone)]
pub(crate) struct SeriesCell {
    pub(crate) range: Range<usize>,
    /// Whether a frequency direction is frozen on it.
    pub(crate) tilted: bool,
    /// `sum q` over the cell.
    pub(crate) mass: f64,
    /// The longest row of `W_U`; [`Series::new`] finds it.
    pub(crate) longest: f64,
}

impl SeriesCell {
    /// Number of the weights of `u`.
    fn weights(&self) -> usize {
        if self.tilted { LINEAR_TILTED } else { LINEAR }
    }
}

/// Rows made ready.
#[derive(Debug)]
pub(crate) struct SeriesRows<'s> {
    way: Way<'s>,
    /// `[cell][row]`
    terms: Vec<Vec<RowCell>>,
}

#[derive(Debug)]
enum Way<'s> {
    Host(host::Rows<'s>),
    Tensors(tensors::Rows<'s>),
}

/// Moments of a row in a cell. `l`, `q` (for `log q`), `d = l - log q` and `g` are centred under `p`; `lgg` is `E[l g g]`.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RowCell {
    lse: f64,
    mean_l: f64,
    mean_q: f64,
    mean_g: f64,
    gg: f64,
    qq: f64,
    gq: f64,
    lg: f64,
    lq: f64,
    lgg: f64,
    lqq: f64,
    lgq: f64,
    qgg: f64,
    qqq: f64,
    qgq: f64,
    /// Norms `(E x^4)^(1/4)` and `max|x|`.
    g4: f64,
    l4: f64,
    q4: f64,
    d4: f64,
    g_max: f64,
    l_max: f64,
    q_max: f64,
    d_max: f64,
}

/// Products of directions with the rows, on the host.
#[derive(Debug)]
pub(crate) struct SeriesBlock {
    cells: Vec<BlockCell>,
    n_rows: usize,
}

#[derive(Debug)]
struct BlockCell {
    weights: usize,
    /// `E[w u]` before centring `u`: `[direction][row][weight]`.
    linear: Vec<f32>,
    /// Number of rows of the following, some of which may be there to fill it up.
    rows: usize,
    /// Sums with `u^2`, as [`Of`] has them: `[direction][of][row]`.
    squares: Vec<f32>,
    /// What was taken from `u`, `[direction]`.
    centre: Vec<f64>,
    /// `max|u|` after that, `[direction]`.
    u_max: Vec<f64>,
    /// `max_v |W_U[v]| |gamma w_c|`: what the rounding of a product with `W_U` is relative to; `[direction]`.
    scale: Vec<f64>,
}

/// Moves logits by `a g + c u + k log q + offset`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Move {
    pub(crate) a: f64,
    pub(crate) c: f64,
    pub(crate) k: f64,
    pub(crate) offset: f64,
}

/// Largest errors of what measures are made of, within a cell.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Errors {
    /// Of `lse`.
    pub(crate) lse: f64,
    /// Of `lse - E_z[z]`, the entropy.
    pub(crate) entropy: f64,
    /// Of `E_z[z - log q] - lse`, the divergence from the frequencies.
    pub(crate) divergence: f64,
}

impl Errors {
    /// The larger of each.
    pub(crate) fn max(self, other: &Self) -> Self {
        Self {
            lse: self.lse.max(other.lse),
            entropy: self.entropy.max(other.entropy),
            divergence: self.divergence.max(other.divergence),
        }
    }
}

impl Series {
    /// `log_q` and the rows of `w_u` are in the order of the layout; `w_u` is on the device that computes, on the CPU by `path` if
    /// there is one.
    pub(crate) fn new(
        mut cells: Vec<SeriesCell>,
        log_q: &[f64],
        w_u: &Tensor,
        path: Option<kernel::Path>,
    ) -> Result<Self, TchError> {
        for cell in &mut cells {
            let w_u = w_u.f_narrow(0, cell.range.start as i64, cell.range.len() as i64)?;
            let norm2 = w_u.f_square()?.f_sum_dim_intlist(1, false, Kind::Float)?;
            cell.longest = f64::try_from(&norm2.f_max()?)?.sqrt();
        }
        Ok(Self {
            cells,
            q: log_q.iter().map(|log_q| log_q.exp() as f32).collect(),
            log_q: log_q.to_vec(),
            w_u: Vectors::new(w_u)?,
            path,
            spare: Mutex::default(),
        })
    }

    pub(crate) fn d_model(&self) -> usize {
        self.w_u.tensor().numel() / self.q.len()
    }

    /// Norms of logit vectors, `[vector]`, which tell what the moments can do.
    pub(crate) fn spreads(&self, u: &Vectors) -> Result<Vec<Spread>, TchError> {
        let (cells, q) = (&self.cells[..], &self.q[..]);
        let u = u.host()?.par_chunks(q.len());
        Ok(u.map(|u| Spread::new(cells, q, u)).collect())
    }

    /// Makes rows ready; `sums` are those of their clean logits, `[row][cell]`.
    pub(crate) fn rows(
        &self,
        logits: &RowLogits,
        sums: &[Vec<Sums>],
    ) -> Result<SeriesRows<'_>, TchError> {
        match self.path {
            Some(path) => host::rows(self, path, logits, sums),
            None => tensors::rows(self, logits, sums),
        }
    }
}

impl SeriesRows<'_> {
    /// `[cell][row]`
    pub(crate) fn terms(&self) -> &[Vec<RowCell>] {
        &self.terms
    }

    /// Products of some directions, by their places, with the rows; `dots` are those of all directions.
    pub(crate) fn block(
        &self,
        directions: &Projected,
        dots: &[Dots],
        tried: &[usize],
    ) -> Result<SeriesBlock, TchError> {
        let directions = Directions {
            of_block: directions,
            tried,
            dots,
        };
        let n_rows = self.terms.first().map_or(0, Vec::len);
        Ok(SeriesBlock {
            cells: match &self.way {
                Way::Host(rows) => rows.block(&directions, n_rows)?,
                Way::Tensors(rows) => rows.block(&directions, n_rows)?,
            },
            n_rows,
        })
    }
}

/// Directions that are tried.
struct Directions<'d> {
    /// Those of the whole block.
    of_block: &'d Projected,
    dots: &'d [Dots],
    /// Places of those that are tried.
    tried: &'d [usize],
}

impl Directions<'_> {
    /// What is taken from each `u` in a cell: its mean by the frequencies of tokens, as f32 has it.
    fn centres(&self, index: usize, cell: &SeriesCell) -> Vec<f32> {
        let centre = |&place: &usize| (self.dots[place].q[index] / cell.mass) as f32;
        self.tried.iter().map(centre).collect()
    }
}

impl SeriesBlock {
    /// Moments of a pair in a cell; `direction` counts among those that are tried.
    pub(crate) fn pair(
        &self,
        cell: usize,
        direction: usize,
        row: usize,
        of_row: &RowCell,
    ) -> PairCell {
        let at = &self.cells[cell];
        let pair = direction * self.n_rows + row;
        let linear = &at.linear[pair * at.weights..(pair + 1) * at.weights];
        let square = |of: Of| {
            let at_row = (direction * SUMS + of as usize) * at.rows + row;
            f64::from(at.squares[at_row])
        };
        let centre = at.centre[direction];
        let tilted = |weight: usize, total: f64| {
            let of_u = linear.get(weight);
            of_u.map_or(0.0, |of_u| f64::from(*of_u) - centre * total)
        };
        let linear = |weight: usize| f64::from(linear[weight]);
        let m = linear(0) - centre;
        let (uu, u_max) = (square(Of::Square) - m * m, at.u_max[direction] + m.abs());
        let u4 = square(Of::Fourth).max(0.0).sqrt().sqrt() + m.abs();
        PairCell {
            centre,
            m,
            lu: linear(1),
            qu: linear(2),
            gu: linear(3),
            lgu: linear(4) - centre * of_row.lg,
            qgu: linear(5) - centre * of_row.gq,
            lqu: tilted(6, of_row.lq),
            qqu: tilted(7, of_row.qq),
            uu,
            luu: square(Of::LSquare),
            quu: square(Of::QSquare),
            quu_slack: square(Of::Slack),
            u4: u4.min((uu.max(0.0).sqrt() * u_max).sqrt()),
            u_max,
            scale: at.scale[direction],
        }
    }
}

/// Moments of a (row, neuron) pair in a cell; `u` had `centre` taken from it, and then has mean `m`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PairCell {
    centre: f64,
    m: f64,
    lu: f64,
    qu: f64,
    gu: f64,
    lgu: f64,
    qgu: f64,
    lqu: f64,
    qqu: f64,
    /// Variance.
    uu: f64,
    luu: f64,
    quu: f64,
    /// How far `quu` can be off.
    quu_slack: f64,
    u4: f64,
    u_max: f64,
    scale: f64,
}

/// Sums of the moved logits of a pair over a cell, and how far they can be from the true ones.
pub(crate) fn moved(row: &RowCell, pair: &PairCell, by: Move) -> (Sums, Errors) {
    let Move { a, c, k, offset } = by;
    let (cm, half) = (c * pair.m, 0.5);
    // E[f e] and E[f e^2], before `u` is centred, from those with each part of `e` and each two of them.
    let first = |g: f64, q: f64, u: f64| a * g + k * q + c * u;
    let second = |[gg, qq, uu]: [f64; 3], [gq, gu, qu]: [f64; 3]| {
        a * a * gg + k * k * qq + c * c * uu + 2.0 * (a * k * gq + a * c * gu + k * c * qu)
    };
    let square = second([row.gg, row.qq, pair.uu], [row.gq, pair.gu, pair.qu]).max(0.0);
    let l_e = first(row.lg, row.lq, pair.lu);
    let l_ee = second([row.lgg, row.lqq, pair.luu], [row.lgq, pair.lgu, pair.lqu]) - 2.0 * cm * l_e;
    let q_e = first(row.gq, row.qq, pair.qu);
    let q_ee = second([row.qgg, row.qqq, pair.quu], [row.qgq, pair.qgu, pair.qqu]) - 2.0 * cm * q_e;

    let growth = 1.0 + half * square; // E[e^e], at least 1 by Jensen's inequality
    let by_mean = a * row.mean_g + c * (pair.centre + pair.m) + k * row.mean_q + offset;
    let (more_l, more_q) = ((l_e + half * l_ee) / growth, (q_e + half * q_ee) / growth);
    let more_e = square / growth;
    let sums = Sums {
        shift: row.lse + by_mean + (half * square).ln_1p(),
        s0: 1.0,
        s1: row.mean_l + more_l + by_mean + more_e,
        s2: row.mean_q + more_q,
    };

    let deviation = square.sqrt();
    let largest = a.abs() * row.g_max + c.abs() * pair.u_max + k.abs() * row.q_max;
    let fourth =
        (a.abs() * row.g4 + c.abs() * pair.u4 + k.abs() * row.q4).min((largest * deviation).sqrt());
    let factor = exp_above(largest) / 6.0;
    let third = deviation * fourth * fourth; // at least E|e|^3
    let cut = factor * third;
    let of = |norm: f64, max: f64| factor * (norm * fourth * fourth * fourth).min(max * third);
    let rounding = ROUNDING * (c.abs() * pair.scale + largest);
    // What is cut from `E[e e^e]` less what is cut from `E[e^e]` is at most `E|e^3| exp(max|e|) / 3`: twice `cut`. That the latter is
    // divided by `E[e^e]` in one and stands in a logarithm in the other makes a difference of its square.
    let common = (2.0 + more_e + cut) * cut + 2.0 * rounding;
    let slack = half * c * c * pair.quu_slack;
    let errors = Errors {
        lse: cut + rounding,
        entropy: common + of(row.l4, row.l_max) + more_l.abs() * cut,
        divergence: common + of(row.d4, row.d_max) + (more_l - more_q).abs() * cut + slack,
    };
    (sums, errors)
}

/// At least `e^x`, for `x >= 0`; cheap where `x` is small.
fn exp_above(x: f64) -> f64 {
    if x < 1.0 { 1.0 + x + x * x } else { x.exp() }
}

/// `sum q f(u)`, several sums side by side; in f32 only over some hundred entries each, which f64 adds up.
fn weighted(u: &[f32], q: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    const LANES: usize = 16;
    let of_part = |(u, q): (&[f32], &[f32])| {
        let mut sums = [0.0f32; LANES];
        let (u, q) = (u.chunks_exact(LANES), q.chunks_exact(LANES));
        let rest = u.remainder().iter().zip(q.remainder());
        let rest: f32 = rest.map(|(&u, q)| q * f(u)).sum();
        for (u, q) in u.zip(q) {
            for lane in 0..LANES {
                sums[lane] += q[lane] * f(u[lane]);
            }
        }
        f64::from(sums.iter().sum::<f32>() + rest)
    };
    u.chunks(TILE).zip(q.chunks(TILE)).map(of_part).sum()
}

fn tiles(range: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    let range = range.clone();
    range
        .clone()
        .step_by(TILE)
        .map(move |start| start..(start + TILE).min(range.end))
}
