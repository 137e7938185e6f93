//! Sums over the vocabulary in tensor operations, on any device: what a GPU computes with.

use std::ops::Range;

use tch::{Device, Kind, TchError, Tensor};
use vocabulary_sums::{Base, Sums, Tilt, TiltSite, VocabLayout};

use crate::vectors::on_host;

/// Tensors of a chunk's logits that are in memory at once: logits, one cell's change, exponentials and products.
const COPIES: usize = 5;

/// The vocabulary, ready for sums on a device.
#[derive(Debug)]
pub(crate) struct TensorSums {
    cells: Vec<Range<usize>>,
    sites: Vec<TiltSite>,
    /// `log q`, `[1, d_vocab]`.
    log_q: Tensor,
    /// Precision of logits and exponentials.
    kind: Kind,
    /// (row, direction) pairs whose logits are in memory at once.
    at_once: usize,
}

/// Pairs of rows and directions, and how their logits move.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PairList<'p> {
    /// (row, direction)
    pub(crate) pairs: &'p [(usize, usize)],
    /// `[pair][base]`
    pub(crate) bases: &'p [Base],
    /// `[pair][tilt]`
    pub(crate) tilts: &'p [Tilt],
}

impl TensorSums {
    /// `log_q` is in the order of the layout; `memory` is in bytes.
    pub(crate) fn new(
        layout: &VocabLayout,
        log_q: &[f64],
        sites: Vec<TiltSite>,
        (device, kind): (Device, Kind),
        memory: usize,
    ) -> Result<Self, TchError> {
        let bytes = if kind == Kind::Double { 8 } else { 4 };
        Ok(Self {
            kind,
            cells: layout.cells().iter().map(|cell| cell.range()).collect(),
            sites,
            log_q: Tensor::f_from_slice(log_q)?
                .f_to_kind(kind)?
                .f_unsqueeze(0)?
                .f_to_device(device)?,
            at_once: (memory / (bytes * COPIES * log_q.len())).max(1),
        })
    }

    /// The sums of each pair under each base and tilt over each cell, `[pair][reading][cell]`; `l` and `g` are
    /// `[row, d_vocab]`, `u` is `[direction, d_vocab]`.
    pub(crate) fn sums(
        &self,
        l: &Tensor,
        g: &Tensor,
        u: &Tensor,
        list: PairList<'_>,
    ) -> Result<Vec<Sums>, TchError> {
        let n_pairs = list.pairs.len().max(1);
        let (n_bases, n_tilts) = (
            list.bases.len() / n_pairs,
            self.sites.len().min(list.tilts.len()),
        );
        let (n_cells, readings) = (self.cells.len(), n_bases + n_tilts);
        let mut out = vec![Sums::EMPTY; list.pairs.len() * readings * n_cells];
        for (chunk, pairs) in list.pairs.chunks(self.at_once).enumerate() {
            let first = chunk * self.at_once;
            let index = |which: &dyn Fn(&(usize, usize)) -> usize| {
                let index: Vec<i64> = pairs.iter().map(|pair| which(pair) as i64).collect();
                Tensor::f_from_slice(&index)?.f_to_device(l.device())
            };
            let (rows, directions) = (index(&|pair| pair.0)?, index(&|pair| pair.1)?);
            let column = |value: &dyn Fn(usize) -> f64| {
                let values: Vec<f64> = (first..first + pairs.len()).map(value).collect();
                Tensor::f_from_slice(&values)?
                    .f_to_kind(self.kind)?
                    .f_unsqueeze(1)?
                    .f_to_device(l.device())
            };
            for base in 0..n_bases {
                let of_base = |pair: usize| list.bases[pair * n_bases + base];
                let select = |t: &Tensor, index| t.f_index_select(0, index)?.f_to_kind(self.kind);
                // What is likely is near the largest clean logit: without it, f32 has room for the change.
                let mut l = select(l, &rows)?;
                let top = l.f_amax([1i64].as_slice(), true)?;
                let z = select(u, &directions)?
                    .f_mul_(&column(&|pair| of_base(pair).c)?)?
                    .f_add_(&select(g, &rows)?.f_mul_(&column(&|pair| of_base(pair).a)?)?)?
                    .f_add_(&l.f_sub_(&top)?)?;
                let top = on_host(&top)?;
                for (cell, range) in self.cells.iter().enumerate() {
                    let (start, len) = (range.start as i64, range.len() as i64);
                    let (z, log_q) = (
                        z.f_narrow(1, start, len)?,
                        self.log_q.f_narrow(1, start, len)?,
                    );
                    let mut put = |reading: usize, sums: Vec<Sums>| {
                        for (pair, sums) in sums.into_iter().enumerate() {
                            out[((first + pair) * readings + reading) * n_cells + cell] = sums;
                        }
                    };
                    put(base, over(&z, &top, &log_q)?);
                    for (tilt, site) in self.sites.iter().enumerate().take(n_tilts) {
                        if site.base == base && site.cells[cell] {
                            let of_tilt = |pair: usize| list.tilts[pair * n_tilts + tilt];
                            let z = log_q
                                .f_mul(&column(&|pair| of_tilt(pair).k)?)?
                                .f_add_(&column(&|pair| of_tilt(pair).offset)?)?
                                .f_add_(&z)?;
                            put(n_bases + tilt, over(&z, &top, &log_q)?);
                        }
                    }
                }
            }
        }
        Ok(out)
    }
}

/// Ranks of the rows' targets under one direction, counted from 0: `[row]`, with `l` and `g` `[row, d_vocab]`, `u` `[1, d_vocab]`,
/// factors and places `[row]`.
pub(crate) fn ranks(
    l: &Tensor,
    g: &Tensor,
    u: &Tensor,
    bases: &[Base],
    places: &Tensor,
) -> Result<Vec<u32>, TchError> {
    let column = |value: fn(&Base) -> f64| {
        let values: Vec<f64> = bases.iter().map(value).collect();
        Tensor::f_from_slice(&values)?
            .f_to_kind(Kind::Float)?
            .f_unsqueeze(1)?
            .f_to_device(l.device())
    };
    let z = u
        .f_mul(&column(|base| base.c)?)?
        .f_add_(&g.f_mul(&column(|base| base.a)?)?)?
        .f_add_(l)?;
    let target = z.f_gather(1, &places.f_to_device(l.device())?.f_unsqueeze(1)?, false)?;
    let above = z
        .f_gt_tensor(&target)?
        .f_sum_dim_intlist(1, false, Kind::Int64)?;
    Ok(Vec::<i64>::try_from(&above.f_to_device(Device::Cpu)?)?
        .into_iter()
        .map(|rank| rank as u32)
        .collect())
}

/// The sums of logits over the tokens; `z` is the logits, `[pair, token]`, less `top`, `[pair]`.
fn over(z: &Tensor, top: &[f64], log_q: &Tensor) -> Result<Vec<Sums>, TchError> {
    let shift = z.f_amax([1i64].as_slice(), true)?;
    let e = z.f_sub(&shift)?.f_exp_()?;
    let sum = |t: &Tensor| on_host(&t.f_sum_dim_intlist(1, false, Kind::Double)?);
    let (shift, s0, s1, s2) = (
        on_host(&shift)?,
        sum(&e)?,
        sum(&e.f_mul(z)?)?,
        sum(&e.f_mul(log_q)?)?,
    );
    let each = shift.into_iter().zip(s0).zip(s1).zip(s2).zip(top);
    Ok(each
        .map(|((((shift, s0), s1), s2), top)| Sums {
            shift: shift + top,
            s0,
            s1: s1 + top * s0,
            s2,
        })
        .collect())
}
