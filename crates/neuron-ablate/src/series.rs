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
//! vector of `d_model` per row; those in `u^2` from products of `p`, `p l` and `p log q` with the matrix of `u^2`.
//!
//! # Bound
//! By Taylor's theorem the terms left out of `E[f e^e]` are at most `E|f e^3| exp(max|e|) / 6`, and by Hölder's inequality
//! `E|f e^3| <= |f|_4 |e|_4^3`, `E|e|^3 <= |e|_2 |e|_4^2` with norms under `p`. `|e|_4` is at most the sum of the norms of its
//! parts, and `|u|_4` comes from one more product, with the matrix of `u^4`. All this holds for every pair, however large the
//! change; beyond the bound lies only the rounding of f32 (`ROUNDING`).

use std::ops::Range;

use tch::{Kind, TchError, Tensor};

use crate::{
    kernel::Sums,
    pairs::Dots,
    product::{add_product, product},
    vectors::{Vectors, on_host},
};

/// What rounding in f32 may add beside the bound of the series, relative to `|c| |W_U[v]| |gamma w_c|` for the longest row of
/// `W_U` in the cell, and to `max|e|`. Measured: the largest error seen where the series is exact was a tenth of it.
const ROUNDING: f64 = 3e-8;

/// Columns of the vocabulary that are worked on at once.
const TILE: usize = 4096;
/// `p`, `p l`, `p log q`: the weights of `u^2`.
const SQUARES: usize = 3;
/// Weights of `u`: `p` times 1, `l`, `log q`, `g`, `l g`, `log q g`, and where a direction is frozen `l log q`, `log q^2`.
const LINEAR: usize = 6;
const LINEAR_TILTED: usize = 8;

/// Norms of the logit vector of a direction, centred: `(E u^2)^(1/2)` and `(E u^4)^(1/4)`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    second: f64,
    fourth: f64,
}

impl Spread {
    /// Those of `u` by the frequencies `q` of the tokens, in the cell where they are largest.
    pub(crate) fn new(cells: &[SeriesCell], q: &[f32], u: &[f32]) -> Self {
        let of_cell = |cell: &SeriesCell| {
            let (u, q) = (&u[cell.range.clone()], &q[cell.range.clone()]);
            let mass = cell.mass as f32;
            let mean = weighted(u, q, |u| u) / mass;
            let square = |u: f32| (u - mean) * (u - mean);
            let second = weighted(u, q, square) / mass;
            let fourth = weighted(u, q, |u| square(u) * square(u)) / mass;
            (f64::from(second), f64::from(fourth))
        };
        let largest =
            |largest: (f64, f64), cell: (f64, f64)| (largest.0.max(cell.0), largest.1.max(cell.1));
        let (second, fourth) = cells.iter().map(of_cell).fold((0.0, 0.0), largest);
        Self {
            second: second.sqrt(),
            fourth: fourth.sqrt().sqrt(),
        }
    }

    /// About what the bound will be where a direction is added `c` times: that of [`moved`] for usual logits.
    pub(crate) fn error(&self, c: f64) -> f64 {
        let (second, fourth) = (c.abs() * self.second, c.abs() * self.fourth);
        // Usual norms of the logits and of `log q` together.
        (4.0 * second + 6.0 * fourth) * fourth * fourth / 6.0
    }
}

/// What is the same for all rows and neurons.
#[derive(Debug)]
pub(crate) struct Series {
    cells: Vec<SeriesCell>,
    /// `q`, `[d_vocab]`.
    q: Vec<f32>,
    /// `log q`, `[d_vocab]`, f64.
    log_q: Tensor,
    /// Centred `W_U`, `[d_vocab, d_model]`, f32.
    w_u: Tensor,
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

/// Rows made ready.
#[derive(Debug)]
pub(crate) struct SeriesRows {
    /// `p`, `p l`, `p log q`, the latter two centred under `p`: `[3 * row, d_vocab]`.
    weights: Tensor,
    /// `sum_v p f g W_U` for each weight of `u`, by cell: `[weight * row, d_model]`.
    linear: Vec<Tensor>,
    /// `[cell][row]`
    pub(crate) terms: Vec<Vec<RowCell>>,
}

/// Moments of a row in a cell. `l`, `q` (for `log q`) and `g` are centred under `p`; `lgg` is `E[l g g]`.
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
    g_max: f64,
    l_max: f64,
    q_max: f64,
}

/// Products of a block of neurons with the rows, on the host.
#[derive(Debug)]
pub(crate) struct SeriesBlock {
    cells: Vec<BlockCell>,
    n_rows: usize,
}

#[derive(Debug)]
struct BlockCell {
    weights: usize,
    /// `E[w u]` before centring `u`: `[neuron][weight][row]`.
    linear: Vec<f32>,
    /// `E[w u^2]`: `[neuron][weight][row]`.
    squares: Vec<f32>,
    /// `E[u^4]`: `[neuron][row]`.
    fourth: Vec<f32>,
    /// What was taken from `u`, `[neuron]`.
    centre: Vec<f64>,
    /// `max|u|` after that, `[neuron]`.
    u_max: Vec<f64>,
    /// `max_v |W_U[v]| |gamma w_c|`: what the rounding of a product with `W_U` is relative to; `[neuron]`.
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

/// Largest errors of `lse`, of the mean logit and of the mean `log q`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Errors {
    pub(crate) lse: f64,
    pub(crate) mean_z: f64,
    pub(crate) mean_q: f64,
}

impl Errors {
    /// The larger of each.
    pub(crate) fn max(self, other: &Self) -> Self {
        Self {
            lse: self.lse.max(other.lse),
            mean_z: self.mean_z.max(other.mean_z),
            mean_q: self.mean_q.max(other.mean_q),
        }
    }
}

impl Series {
    /// `log_q` and the rows of `w_u` are in the order of the layout; `w_u` is on the device that computes.
    pub(crate) fn new(
        mut cells: Vec<SeriesCell>,
        log_q: &[f64],
        w_u: &Tensor,
    ) -> Result<Self, TchError> {
        for cell in &mut cells {
            let w_u = w_u.f_narrow(0, cell.range.start as i64, cell.range.len() as i64)?;
            let norm2 = w_u.f_square()?.f_sum_dim_intlist(1, false, Kind::Float)?;
            cell.longest = f64::try_from(&norm2.f_max()?)?.sqrt();
        }
        Ok(Self {
            cells,
            q: log_q.iter().map(|log_q| log_q.exp() as f32).collect(),
            log_q: Tensor::f_from_slice(log_q)?.f_to_device(w_u.device())?,
            w_u: w_u.shallow_clone(),
        })
    }

    /// Makes rows ready: clean logits `l`, `g`, and the sums of the clean logits, `[row][cell]`.
    pub(crate) fn rows(
        &self,
        l: &Vectors,
        g: &Vectors,
        sums: &[Vec<Sums>],
    ) -> Result<SeriesRows, TchError> {
        let (l, g) = (l.tensor(), g.tensor());
        let (n_rows, d_vocab) = l.size2()?;
        let weights = Tensor::f_empty(
            [SQUARES as i64 * n_rows, d_vocab],
            (Kind::Float, l.device()),
        )?;
        let (mut linear, mut terms) = (Vec::new(), Vec::new());
        for (index, cell) in self.cells.iter().enumerate() {
            let of_rows: Vec<&Sums> = sums.iter().map(|of_row| &of_row[index]).collect();
            let (products, moments) = self.cell_rows(cell, l, g, &of_rows, &weights)?;
            linear.push(products);
            terms.push(moments);
        }
        Ok(SeriesRows {
            weights,
            linear,
            terms,
        })
    }

    fn cell_rows(
        &self,
        cell: &SeriesCell,
        l: &Tensor,
        g: &Tensor,
        sums: &[&Sums],
        weights: &Tensor,
    ) -> Result<(Tensor, Vec<RowCell>), TchError> {
        let n_rows = sums.len() as i64;
        let column = |value: &dyn Fn(&Sums) -> f64| -> Result<Tensor, TchError> {
            let values: Vec<f64> = sums.iter().map(|sums| value(sums)).collect();
            Tensor::f_from_slice(&values)?
                .f_unsqueeze(1)?
                .f_to_device(l.device())
        };
        let (lse, mean_l, mean_q) = (
            column(&Sums::lse)?,
            column(&|s| s.s1 / s.s0)?,
            column(&|s| s.s2 / s.s0)?,
        );
        let kind = |i: i64| weights.f_narrow(0, i * n_rows, n_rows);
        let (p, pl, pq) = (kind(0)?, kind(1)?, kind(2)?);
        let (mut mass, mut mean_g) = (zeros(n_rows, l)?, zeros(n_rows, l)?);
        for tile in tiles(&cell.range) {
            let e = narrow(l, &tile)?
                .f_sub(&lse)?
                .f_exp()?
                .f_to_kind(Kind::Float)?;
            mass = mass.f_add(&e.f_sum_dim_intlist(1, false, Kind::Double)?)?;
            let eg = e.f_mul(&narrow(g, &tile)?)?;
            mean_g = mean_g.f_add(&eg.f_sum_dim_intlist(1, false, Kind::Double)?)?;
            narrow(&p, &tile)?.f_copy_(&e)?;
        }
        let mean_g = mean_g.f_div(&mass)?;
        let (mass, mean_g_column) = (mass.f_unsqueeze(1)?, mean_g.f_unsqueeze(1)?);

        let n_weights = if cell.tilted { LINEAR_TILTED } else { LINEAR };
        let d_model = self.w_u.size()[1];
        let mut products = Tensor::f_zeros(
            [n_weights as i64 * n_rows, d_model],
            (Kind::Float, l.device()),
        )?;
        let mut totals = Tensor::f_zeros([14, n_rows], (Kind::Double, l.device()))?;
        let mut maxima = Tensor::f_zeros([3, n_rows], (Kind::Double, l.device()))?;
        for tile in tiles(&cell.range) {
            let single = |t: Tensor| t.f_to_kind(Kind::Float);
            let p = narrow(&p, &tile)?;
            p.shallow_clone().f_copy_(&single(p.f_div(&mass)?)?)?;
            let l = single(narrow(l, &tile)?.f_sub(&mean_l)?)?;
            let g = single(narrow(g, &tile)?.f_sub(&mean_g_column)?)?;
            let log_q = self
                .log_q
                .f_narrow(0, tile.start as i64, tile.len() as i64)?
                .f_unsqueeze(0)?;
            let q = single(log_q.f_sub(&mean_q)?)?;
            let (pl_here, pq_here) = (p.f_mul(&l)?, p.f_mul(&q)?);
            narrow(&pl, &tile)?.f_copy_(&pl_here)?;
            narrow(&pq, &tile)?.f_copy_(&pq_here)?;
            let pg = p.f_mul(&g)?;
            let (plg, pqg) = (pl_here.f_mul(&g)?, pq_here.f_mul(&g)?);
            let (plq, pqq) = (pl_here.f_mul(&q)?, pq_here.f_mul(&q)?);
            let sum = |t: &Tensor| t.f_sum_dim_intlist(1, false, Kind::Double);
            let (g2, l2, q2) = (g.f_square()?, l.f_square()?, q.f_square()?);
            let pgg = pg.f_mul(&g)?;
            totals = totals.f_add(&Tensor::f_stack(
                &[
                    sum(&pgg)?,
                    sum(&pqq)?,
                    sum(&pqg)?,
                    sum(&plg)?,
                    sum(&plq)?,
                    sum(&plg.f_mul(&g)?)?,
                    sum(&plq.f_mul(&q)?)?,
                    sum(&plg.f_mul(&q)?)?,
                    sum(&pqg.f_mul(&g)?)?,
                    sum(&pqq.f_mul(&q)?)?,
                    sum(&pqg.f_mul(&q)?)?,
                    sum(&pgg.f_mul(&g2)?)?,
                    sum(&pl_here.f_mul(&l)?.f_mul(&l2)?)?,
                    sum(&pqq.f_mul(&q2)?)?,
                ],
                0,
            )?)?;
            let max = |t: &Tensor| {
                t.f_amax([1i64].as_slice(), false)?
                    .f_sqrt()?
                    .f_to_kind(Kind::Double)
            };
            maxima = maxima.f_maximum(&Tensor::f_stack(&[max(&g2)?, max(&l2)?, max(&q2)?], 0)?)?;
            let mut of_u = vec![p, pl_here, pq_here, pg, plg, pqg];
            if cell.tilted {
                of_u.extend([plq, pqq]);
            }
            let w_u = self.w_u.f_narrow(0, tile.start as i64, tile.len() as i64)?;
            add_product(&mut products, &Tensor::f_cat(&of_u, 0)?, &w_u)?;
        }
        let (totals, maxima, mean_g) = (on_host(&totals)?, on_host(&maxima)?, on_host(&mean_g)?);
        let terms = (0..sums.len()).map(|r| {
            let total = |i: usize| totals[i * sums.len() + r];
            let max = |i: usize| maxima[i * sums.len() + r];
            RowCell {
                lse: sums[r].lse(),
                mean_l: sums[r].s1 / sums[r].s0,
                mean_q: sums[r].s2 / sums[r].s0,
                mean_g: mean_g[r],
                gg: total(0),
                qq: total(1),
                gq: total(2),
                lg: total(3),
                lq: total(4),
                lgg: total(5),
                lqq: total(6),
                lgq: total(7),
                qgg: total(8),
                qqq: total(9),
                qgq: total(10),
                g4: total(11).powf(0.25),
                l4: total(12).powf(0.25),
                q4: total(13).powf(0.25),
                g_max: max(0),
                l_max: max(1),
                q_max: max(2),
            }
        });
        Ok((products, terms.collect()))
    }

    pub(crate) fn cells(&self) -> &[SeriesCell] {
        &self.cells
    }

    /// `q`, `[d_vocab]`.
    pub(crate) fn q(&self) -> &[f32] {
        &self.q
    }

    /// Products of directions, `u` and `scaled` as in [`Projected`](crate::closed_form::Projected), with the rows; `dots` are
    /// those of the directions.
    pub(crate) fn block(
        &self,
        rows: &SeriesRows,
        u: &Tensor,
        scaled: &Tensor,
        dots: &[Dots],
    ) -> Result<SeriesBlock, TchError> {
        let n_neurons = dots.len() as i64;
        let n_rows = rows.terms.first().map_or(0, Vec::len);
        let norm = on_host(
            &scaled
                .f_square()?
                .f_sum_dim_intlist(1, false, Kind::Double)?
                .f_sqrt()?,
        )?;
        let mut cells = Vec::with_capacity(self.cells.len());
        for (index, cell) in self.cells.iter().enumerate() {
            let centre: Vec<f64> = dots.iter().map(|dots| dots.q[index] / cell.mass).collect();
            let shift = Tensor::f_from_slice(&centre)?
                .f_to_kind(Kind::Float)?
                .f_unsqueeze(1)?
                .f_to_device(u.device())?;
            // The same f32 value that is subtracted.
            let centre = on_host(&shift)?;
            let mut squares = Tensor::f_zeros(
                [n_neurons, (SQUARES * n_rows) as i64],
                (Kind::Float, u.device()),
            )?;
            let mut fourth =
                Tensor::f_zeros([n_neurons, n_rows as i64], (Kind::Float, u.device()))?;
            let mut u_max = Tensor::f_zeros([n_neurons], (Kind::Float, u.device()))?;
            for tile in tiles(&cell.range) {
                let square = narrow(u, &tile)?.f_sub(&shift)?.f_square()?;
                u_max = u_max.f_maximum(&square.f_amax([1i64].as_slice(), false)?)?;
                let weights = narrow(&rows.weights, &tile)?.f_tr()?;
                add_product(&mut squares, &square, &weights)?;
                let p = weights.f_narrow(1, 0, n_rows as i64)?;
                add_product(&mut fourth, &square.f_square()?, &p)?;
            }
            let linear = product(scaled, &rows.linear[index].f_tr()?)?;
            cells.push(BlockCell {
                weights: if cell.tilted { LINEAR_TILTED } else { LINEAR },
                linear: single_on_host(&linear)?,
                squares: single_on_host(&squares)?,
                fourth: single_on_host(&fourth)?,
                centre,
                u_max: on_host(&u_max.f_sqrt()?)?,
                scale: norm.iter().map(|norm| norm * cell.longest).collect(),
            });
        }
        Ok(SeriesBlock { cells, n_rows })
    }
}

impl SeriesBlock {
    /// Moments of a pair in a cell.
    pub(crate) fn pair(
        &self,
        cell: usize,
        neuron: usize,
        row: usize,
        of_row: &RowCell,
    ) -> PairCell {
        let at = &self.cells[cell];
        let linear = |weight: usize| {
            f64::from(at.linear[(neuron * at.weights + weight) * self.n_rows + row])
        };
        let square =
            |weight: usize| f64::from(at.squares[(neuron * SQUARES + weight) * self.n_rows + row]);
        let centre = at.centre[neuron];
        let tilted = |weight: usize, total: f64| {
            if at.weights > LINEAR {
                linear(weight) - centre * total
            } else {
                0.0
            }
        };
        let m = linear(0) - centre;
        let fourth = f64::from(at.fourth[neuron * self.n_rows + row]).max(0.0);
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
            uu: square(0) - m * m,
            luu: square(1),
            quu: square(2),
            u4: fourth.sqrt().sqrt() + m.abs(),
            u_max: at.u_max[neuron] + m.abs(),
            scale: at.scale[neuron],
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
    u4: f64,
    u_max: f64,
    scale: f64,
}

/// Sums of the moved logits of a pair over a cell, and how far they can be from the true ones.
pub(crate) fn moved(row: &RowCell, pair: &PairCell, by: Move) -> (Sums, Errors) {
    let Move { a, c, k, offset } = by;
    let (cm, half) = (c * pair.m, 0.5);
    // E[e^2], and E[f e], E[f e^2] for f = l and f = log q.
    let square = a * a * row.gg
        + k * k * row.qq
        + c * c * pair.uu
        + 2.0 * (a * k * row.gq + a * c * pair.gu + k * c * pair.qu);
    let square = square.max(0.0);
    let l_e = a * row.lg + k * row.lq + c * pair.lu;
    let l_ee = a * a * row.lgg
        + k * k * row.lqq
        + c * c * pair.luu
        + 2.0 * (a * k * row.lgq + a * c * pair.lgu + k * c * pair.lqu)
        - 2.0 * cm * l_e;
    let q_e = a * row.gq + k * row.qq + c * pair.qu;
    let q_ee = a * a * row.qgg
        + k * k * row.qqq
        + c * c * pair.quu
        + 2.0 * (a * k * row.qgq + a * c * pair.qgu + k * c * pair.qqu)
        - 2.0 * cm * q_e;

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
    let errors = Errors {
        lse: cut + rounding,
        mean_z: of(row.l4, row.l_max) + 3.0 * cut + (more_l.abs() + more_e) * cut + rounding,
        mean_q: of(row.q4, row.q_max) + more_q.abs() * cut + rounding,
    };
    (sums, errors)
}

/// At least `e^x`, for `x >= 0`; cheap where `x` is small.
fn exp_above(x: f64) -> f64 {
    if x < 1.0 { 1.0 + x + x * x } else { x.exp() }
}

/// `sum q f(u)` in f32, several sums side by side.
fn weighted(u: &[f32], q: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0f32; LANES];
    let (u, q) = (u.chunks_exact(LANES), q.chunks_exact(LANES));
    let rest = u.remainder().iter().zip(q.remainder());
    let rest: f32 = rest.map(|(&u, q)| q * f(u)).sum();
    for (u, q) in u.zip(q) {
        for lane in 0..LANES {
            sums[lane] += q[lane] * f(u[lane]);
        }
    }
    sums.iter().sum::<f32>() + rest
}

fn zeros(n: i64, like: &Tensor) -> Result<Tensor, TchError> {
    Tensor::f_zeros([n], (Kind::Double, like.device()))
}

fn narrow(t: &Tensor, columns: &Range<usize>) -> Result<Tensor, TchError> {
    t.f_narrow(1, columns.start as i64, columns.len() as i64)
}

fn tiles(range: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    let range = range.clone();
    range
        .clone()
        .step_by(TILE)
        .map(move |start| start..(start + TILE).min(range.end))
}

fn single_on_host(tensor: &Tensor) -> Result<Vec<f32>, TchError> {
    Vec::try_from(
        &tensor
            .f_to_device(tch::Device::Cpu)?
            .f_contiguous()?
            .f_view(-1)?,
    )
}
