//! The moments on the CPU: our own passes beside the products with `W_U`.

use rayon::prelude::*;
use tch::TchError;
use vocabulary_sums::{
    self as kernel, Sums,
    panels::{Centred, GROUP, Panels, SUMS},
    weights::{self, Products, RowTile},
};

use super::{BlockCell, Directions, RowCell, Series, SeriesCell, SeriesRows, TILE, Way, tiles};
use crate::{
    product::{Matrix, add_host_product},
    row_logits::RowLogits,
    vectors::Vectors,
};

/// Most directions of a task: their squares stay in the second-level cache.
const TASK: usize = 132;

/// Rows made ready.
#[derive(Debug)]
pub(super) struct Rows<'s> {
    series: &'s Series,
    /// Weights of the squares, by cell.
    weights: Vec<Panels>,
    /// `sum_v p f g W_U` for each weight of `u`: `[cell][row][weight][d_model]`.
    linear: Vec<Vec<f32>>,
}

/// A row in a cell, while its weights are made.
struct RowPass<'r> {
    l: &'r [f32],
    g: &'r [f32],
    mean_l: f64,
    mean_q: f64,
    lse: f64,
    /// What `g` is centred by.
    g_centre: f64,
    /// One over the sum of the predictions as f32 has them.
    unit: f64,
    totals: Products,
}

pub(super) fn rows<'s>(
    series: &'s Series,
    path: kernel::Path,
    logits: &RowLogits,
    sums: &[Vec<Sums>],
) -> Result<SeriesRows<'s>, TchError> {
    let (l, g, w_u) = (logits.l.host()?, logits.g.host()?, series.w_u.host()?);
    let (d_vocab, d_model, n_rows) = (series.q.len(), series.d_model(), sums.len());
    let all_log_q = &series.log_q[..];
    let (mut all_weights, mut linear, mut terms) = (Vec::new(), Vec::new(), Vec::new());
    let mut spare = series
        .spare
        .lock()
        .map_or_else(|_| Vec::new(), |mut spare| std::mem::take(&mut *spare));
    for (index, cell) in series.cells.iter().enumerate() {
        let (at, log_q) = (cell.range.clone(), &all_log_q[cell.range.clone()]);
        let vectors = l.par_chunks(d_vocab).zip(g.par_chunks(d_vocab)).zip(sums);
        let mut passes: Vec<RowPass<'_>> = vectors
            .map(|((l, g), sums)| RowPass::new(path, &l[at.clone()], &g[at.clone()], &sums[index]))
            .collect();
        let n_weights = cell.weights();
        let mut room = vec![0.0; n_rows * n_weights * TILE.min(at.len())];
        let mean_q: Vec<f64> = passes.iter().map(|pass| pass.mean_q).collect();
        let mut weights = Panels::new(path, log_q, &mean_q, spare.pop());
        let mut products = vec![0.0; n_rows * n_weights * d_model];
        for tile in tiles(&cell.range) {
            let (start, len) = (tile.start - at.start, tile.len());
            let of_u = &mut room[..n_rows * n_weights * len];
            passes
                .par_iter_mut()
                .zip(of_u.par_chunks_mut(n_weights * len))
                .for_each(|(pass, of_u)| pass.add(path, start, &log_q[start..start + len], of_u));
            weights.fill(start, len, n_weights, of_u);
            let of_u = Matrix::new(of_u, [n_rows * n_weights, len], len);
            let w_u = &w_u[tile.start * d_model..tile.end * d_model];
            add_host_product(
                &mut products,
                d_model,
                of_u,
                Matrix::new(w_u, [len, d_model], d_model),
            );
        }
        all_weights.push(weights);
        linear.push(products);
        let least = log_q.iter().copied().fold(f64::INFINITY, f64::min);
        let greatest = log_q.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        terms.push(
            passes
                .iter()
                .map(|pass| pass.terms(least, greatest))
                .collect(),
        );
    }
    let rows = Rows {
        series,
        weights: all_weights,
        linear,
    };
    Ok(SeriesRows {
        way: Way::Host(rows),
        terms,
    })
}

impl<'r> RowPass<'r> {
    fn new(path: kernel::Path, l: &'r [f32], g: &'r [f32], sums: &Sums) -> Self {
        let (mass, pg) = weights::masses(path, l, sums.lse(), g);
        Self {
            l,
            g,
            mean_l: sums.s1 / sums.s0,
            mean_q: sums.s2 / sums.s0,
            lse: sums.lse(),
            g_centre: pg / mass,
            unit: 1.0 / mass,
            totals: Products::default(),
        }
    }

    /// Makes the weights of a tile that starts at a place of the cell.
    fn add(&mut self, path: kernel::Path, start: usize, log_q: &[f64], of_u: &mut [f32]) {
        let within = start..start + log_q.len();
        let tile = RowTile {
            l: (&self.l[within.clone()], self.mean_l),
            g: (&self.g[within], self.g_centre),
            log_q: (log_q, self.mean_q),
            lse: self.lse,
            unit: self.unit,
        };
        weights::weights(path, &tile, of_u, &mut self.totals);
    }

    fn terms(&self, least_log_q: f64, greatest_log_q: f64) -> RowCell {
        let t = &self.totals;
        RowCell {
            lse: self.lse,
            mean_l: self.mean_l,
            mean_q: self.mean_q,
            // With what rounding left when `g` was centred.
            mean_g: self.g_centre + t.g,
            gg: t.gg,
            qq: t.qq,
            gq: t.gq,
            lg: t.lg,
            lq: t.lq,
            lgg: t.lgg,
            lqq: t.lqq,
            lgq: t.lgq,
            qgg: t.qgg,
            qqq: t.qqq,
            qgq: t.qgq,
            g4: t.gggg.powf(0.25),
            l4: t.llll.powf(0.25),
            q4: t.qqqq.powf(0.25),
            d4: t.dddd.powf(0.25),
            g_max: t.g_max.into(),
            l_max: t.l_max.into(),
            d_max: t.d_max.into(),
            q_max: (greatest_log_q - self.mean_q).max(self.mean_q - least_log_q),
        }
    }
}

impl Drop for Rows<'_> {
    fn drop(&mut self) {
        if let Ok(mut spare) = self.series.spare.lock() {
            // Taken from the end, the first cell's first.
            spare.extend(self.weights.drain(..).rev());
        }
    }
}

impl Rows<'_> {
    pub(super) fn block(
        &self,
        directions: &Directions<'_>,
        n_rows: usize,
    ) -> Result<Vec<BlockCell>, TchError> {
        let d_model = self.series.d_model();
        let u = directions.of_block.logits.host()?;
        let all = Vectors::new(&directions.of_block.scaled)?;
        let (all, tried) = (all.host()?, directions.tried.iter());
        let scaled = tried.flat_map(|place| &all[place * d_model..(place + 1) * d_model]);
        let scaled: Vec<f32> = scaled.copied().collect();
        let cells = self.series.cells.iter().enumerate();
        let cells =
            cells.map(|(index, cell)| self.cell(index, cell, directions, u, &scaled, n_rows));
        Ok(cells.collect())
    }

    fn cell(
        &self,
        index: usize,
        cell: &SeriesCell,
        directions: &Directions<'_>,
        u: &[f32],
        scaled: &[f32],
        n_rows: usize,
    ) -> BlockCell {
        let d_vocab = self.series.q.len();
        let centre = directions.centres(index, cell);
        let centred: Vec<Centred<'_>> = directions
            .tried
            .iter()
            .zip(&centre)
            .map(|(place, &centre)| {
                let start = place * d_vocab;
                let u = &u[start + cell.range.start..start + cell.range.end];
                Centred { u, centre }
            })
            .collect();
        let n = centred.len();
        let weights = &self.weights[index];
        let rows = weights.rows();
        let mut squares = vec![0.0; n.next_multiple_of(GROUP) * SUMS * rows];
        let tasks = n
            .div_ceil(TASK)
            .next_multiple_of(rayon::current_num_threads());
        let per_task = n.div_ceil(tasks).next_multiple_of(GROUP);
        let u_max = centred
            .par_chunks(per_task)
            .zip(squares.par_chunks_mut(per_task * SUMS * rows))
            .flat_map_iter(|(centred, squares)| weights.add(centred, squares))
            .map(|square| f64::from(square).sqrt())
            .collect();
        let weights = cell.weights();
        let d_model = self.series.d_model();
        let mut linear = vec![0.0; n * n_rows * weights];
        let of_rows = Matrix::new(&self.linear[index], [n_rows * weights, d_model], d_model);
        let directions = Matrix::new(scaled, [n, d_model], d_model);
        add_host_product(
            &mut linear,
            n_rows * weights,
            directions,
            of_rows.transposed(),
        );
        BlockCell {
            weights,
            linear,
            rows,
            squares,
            centre: centre.into_iter().map(f64::from).collect(),
            u_max,
            scale: scaled
                .chunks(d_model)
                .map(|w| norm(w) * cell.longest)
                .collect(),
        }
    }
}

fn norm(vector: &[f32]) -> f64 {
    let squares = vector.iter().map(|&x| f64::from(x) * f64::from(x));
    squares.sum::<f64>().sqrt()
}
