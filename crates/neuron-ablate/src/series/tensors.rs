//! The moments in tensor operations, on any device.

use std::ops::Range;

use tch::{Device, Kind, TchError, Tensor};
use vocabulary_sums::Sums;

use super::{BlockCell, Directions, RowCell, Series, SeriesCell, SeriesRows, Way, tiles};
use crate::{
    closed_form::Projected,
    product::{add_product, product},
    row_logits::RowLogits,
    vectors::on_host,
};

/// `p`, `p l`, `p log q`: the weights of `u^2`.
const SQUARES: usize = 3;

/// Rows made ready.
#[derive(Debug)]
pub(super) struct Rows<'s> {
    series: &'s Series,
    /// `p`, `p l`, `p log q`, the latter two centred under `p`: `[weight, row, d_vocab]`.
    weights: Tensor,
    /// `sum_v p f g W_U` for each weight of `u`, by cell: `[row * weight, d_model]`.
    linear: Vec<Tensor>,
}

pub(super) fn rows<'s>(
    series: &'s Series,
    logits: &RowLogits,
    sums: &[Vec<Sums>],
) -> Result<SeriesRows<'s>, TchError> {
    let (l, g) = (logits.l.tensor(), logits.g.tensor());
    let (n_rows, d_vocab) = l.size2()?;
    let log_q = Tensor::f_from_slice(&series.log_q)?.f_to_device(l.device())?;
    let weights = Tensor::f_empty([SQUARES as i64, n_rows, d_vocab], (Kind::Float, l.device()))?;
    let (mut linear, mut terms) = (Vec::new(), Vec::new());
    for (index, cell) in series.cells.iter().enumerate() {
        let of_rows: Vec<&Sums> = sums.iter().map(|of_row| &of_row[index]).collect();
        let vectors = [l, g, &log_q];
        let (products, moments) = cell_rows(series, cell, vectors, &of_rows, &weights)?;
        linear.push(products);
        terms.push(moments);
    }
    let rows = Rows {
        series,
        weights,
        linear,
    };
    Ok(SeriesRows {
        way: Way::Tensors(rows),
        terms,
    })
}

fn cell_rows(
    series: &Series,
    cell: &SeriesCell,
    [l, g, log_q]: [&Tensor; 3],
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
    let kind = |i: i64| weights.f_select(0, i);
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

    let n_weights = cell.weights();
    let d_model = series.w_u.tensor().size()[1];
    let mut products = Tensor::f_zeros(
        [n_rows * n_weights as i64, d_model],
        (Kind::Float, l.device()),
    )?;
    let mut totals = Tensor::f_zeros([15, n_rows], (Kind::Double, l.device()))?;
    let mut maxima = Tensor::f_zeros([4, n_rows], (Kind::Double, l.device()))?;
    for tile in tiles(&cell.range) {
        let single = |t: Tensor| t.f_to_kind(Kind::Float);
        let p = narrow(&p, &tile)?;
        p.shallow_clone().f_copy_(&single(p.f_div(&mass)?)?)?;
        let l = single(narrow(l, &tile)?.f_sub(&mean_l)?)?;
        let g = single(narrow(g, &tile)?.f_sub(&mean_g_column)?)?;
        let log_q = log_q
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
        let d2 = l.f_sub(&q)?.f_square()?;
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
                sum(&p.f_mul(&d2)?.f_mul(&d2)?)?,
            ],
            0,
        )?)?;
        let max = |t: &Tensor| {
            t.f_amax([1i64].as_slice(), false)?
                .f_sqrt()?
                .f_to_kind(Kind::Double)
        };
        maxima = maxima.f_maximum(&Tensor::f_stack(
            &[max(&g2)?, max(&l2)?, max(&q2)?, max(&d2)?],
            0,
        )?)?;
        let mut of_u = vec![p, pl_here, pq_here, pg, plg, pqg];
        if cell.tilted {
            of_u.extend([plq, pqq]);
        }
        let w_u = series.w_u.tensor();
        let w_u = w_u.f_narrow(0, tile.start as i64, tile.len() as i64)?;
        let of_u = Tensor::f_stack(&of_u, 1)?.f_flatten(0, 1)?;
        add_product(&mut products, &of_u, &w_u)?;
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
            d4: total(14).powf(0.25),
            g_max: max(0),
            l_max: max(1),
            q_max: max(2),
            d_max: max(3),
        }
    });
    Ok((products, terms.collect()))
}

impl Rows<'_> {
    pub(super) fn block(
        &self,
        directions: &Directions<'_>,
        n_rows: usize,
    ) -> Result<Vec<BlockCell>, TchError> {
        let Projected { logits, scaled, .. } = directions.of_block;
        let places: Vec<i64> = directions.tried.iter().map(|&place| place as i64).collect();
        let places = Tensor::f_from_slice(&places)?.f_to_device(scaled.device())?;
        let u = logits.tensor().f_index_select(0, &places)?;
        let scaled = scaled.f_index_select(0, &places)?;
        let cells = self.series.cells.iter().enumerate();
        cells
            .map(|(index, cell)| self.cell(index, cell, directions, &u, &scaled, n_rows))
            .collect()
    }

    fn cell(
        &self,
        index: usize,
        cell: &SeriesCell,
        directions: &Directions<'_>,
        u: &Tensor,
        scaled: &Tensor,
        n_rows: usize,
    ) -> Result<BlockCell, TchError> {
        let n = directions.tried.len() as i64;
        let on = (Kind::Float, u.device());
        let centre = directions.centres(index, cell);
        let shift = Tensor::f_from_slice(&centre)?
            .f_unsqueeze(1)?
            .f_to_device(u.device())?;
        let mut squares = Tensor::f_zeros([n, (n_rows * SQUARES) as i64], on)?;
        let mut fourth = Tensor::f_zeros([n, n_rows as i64], on)?;
        let mut u_max = Tensor::f_zeros([n], on)?;
        for tile in tiles(&cell.range) {
            let square = narrow(u, &tile)?.f_sub(&shift)?.f_square()?;
            u_max = u_max.f_maximum(&square.f_amax([1i64].as_slice(), false)?)?;
            let weights = self
                .weights
                .f_narrow(2, tile.start as i64, tile.len() as i64)?;
            let all = weights.f_flatten(0, 1)?;
            add_product(&mut squares, &square, &all.f_tr()?)?;
            add_product(
                &mut fourth,
                &square.f_square()?,
                &weights.f_select(0, 0)?.f_tr()?,
            )?;
        }
        let slack = fourth.f_zeros_like()?;
        let squares = Tensor::f_cat(&[squares, fourth, slack], 1)?;
        let norms = scaled
            .f_square()?
            .f_sum_dim_intlist(1, false, Kind::Double)?;
        let norms = on_host(&norms.f_sqrt()?)?;
        let linear = product(scaled, &self.linear[index].f_tr()?)?;
        Ok(BlockCell {
            weights: cell.weights(),
            linear: single_on_host(&linear)?,
            rows: n_rows,
            squares: single_on_host(&squares)?,
            centre: centre.into_iter().map(f64::from).collect(),
            u_max: on_host(&u_max.f_sqrt()?)?,
            scale: norms.iter().map(|norm| norm * cell.longest).collect(),
        })
    }
}

fn zeros(n: i64, like: &Tensor) -> Result<Tensor, TchError> {
    Tensor::f_zeros([n], (Kind::Double, like.device()))
}

fn narrow(t: &Tensor, columns: &Range<usize>) -> Result<Tensor, TchError> {
    t.f_narrow(1, columns.start as i64, columns.len() as i64)
}

fn single_on_host(tensor: &Tensor) -> Result<Vec<f32>, TchError> {
    Vec::try_from(
        &tensor
            .f_to_device(Device::Cpu)?
            .f_contiguous()?
            .f_view(-1)?,
    )
}
