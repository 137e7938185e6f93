//! The tables that `measures.cu` reads: what belongs to the vocabulary, to rows and to directions.

use vocabulary_sums::Sums;

use crate::pairs::{Block, Pairs};

use super::{Levels, MOST_ABOVE, MOST_BITS};

/// A cell of the vocabulary, as the kernels see it.
#[derive(Debug)]
pub(super) struct Cell {
    /// The tilts that are wanted here.
    pub(super) tilts: Vec<usize>,
    /// What is taken from `log q`.
    pub(super) centre: f64,
    /// The largest `|log q - centre|`.
    pub(super) lambda_max: f64,
}

/// `Vocabulary` of `measures.cu`; scale of the final norm: `[d_model, eps]`.
pub(super) fn vocabulary(pairs: &Pairs, cells: &[Cell], [d_model, eps]: [f64; 2]) -> Vec<f64> {
    let lambda = cells.iter().map(|cell| cell.lambda_max);
    let mut table = vec![
        d_model,
        eps,
        pairs.measures().neg_entropy_q(),
        lambda.fold(0.0, f64::max),
        MOST_BITS,
        MOST_ABOVE,
    ];
    table.extend(pairs.axes().iter().map(|axis| axis.slope));
    table.extend(pairs.axes().iter().map(|axis| axis.intercept));
    table.extend(cells.iter().map(|cell| cell.centre));
    (0..pairs.axes().len()).for_each(|axis| table.extend(pairs.qv(axis)));
    table.extend(pairs.measures().band_masses());
    table.extend(pairs.measures().band_neg_entropies());
    table
}

/// `Layout` of `measures.cu`.
pub(super) fn layout(pairs: &Pairs, cells: &[Cell]) -> Vec<i32> {
    let (n_variants, n_bases) = (pairs.variants().len(), pairs.n_bases());
    let each = || (0..n_variants).flat_map(|v| (0..cells.len()).map(move |cell| (v, cell)));
    let number = |found: Option<usize>| found.map_or(-1, |number| number as i32);
    let mut table: Vec<i32> = each()
        .map(|(v, cell)| number(pairs.source(v, cell)))
        .collect();
    table.extend((0..n_variants).map(|v| number(pairs.axis_of(v))));
    table.extend(each().map(|(v, cell)| {
        number(match v.checked_sub(n_bases) {
            None => Some(v),
            Some(tilt) => {
                let place = cells[cell].tilts.iter().position(|&here| here == tilt);
                place.map(|place| n_bases + place)
            }
        })
    }));
    let mut offset = 0;
    for cell in cells {
        table.push(offset);
        offset += 3 * (n_bases + cell.tilts.len()) as i32;
    }
    for band in 0..pairs.bands().len() {
        let inside = pairs.layout().cells().iter().map(|cell| cell.in_band(band));
        table.extend(inside.map(i32::from));
    }
    table
}

/// `Row`s of `measures.cu`.
pub(super) fn rows(pairs: &Pairs, job: &Block<'_>, levels: &Levels) -> Vec<f64> {
    let n_cells = pairs.layout().cells().len();
    let n_measures = pairs.measures().len();
    let mut table = Vec::new();
    for row in job.at.clone() {
        let terms = job.rows;
        let place = pairs.target_place(terms, row);
        table.extend([
            terms.norm2[row],
            terms.scale.at(terms.norm2[row]),
            terms.g_at[row],
            terms.l_at[row],
            pairs.layout().cell_at(place) as f64,
            levels.g_max[row],
            levels.above[row],
        ]);
        table.extend(&levels.level[row * n_cells..(row + 1) * n_cells]);
        table.extend(&terms.g_dots[row].q);
        table.extend(&terms.l_dots[row].q);
        let sums = terms.sums[row].iter();
        table.extend(sums.flat_map(|&Sums { shift, s0, s1, s2 }| [shift, s0, s1, s2]));
        table.extend(&terms.g_dots[row].v);
        table.extend((0..pairs.axes().len()).map(|axis| pairs.along(axis, place)));
        table.extend(&terms.measures[row * n_measures..(row + 1) * n_measures]);
    }
    table
}

/// `Direction`s of `measures.cu`; `u_max` is the largest `|u|` of each.
pub(super) fn directions(job: &Block<'_>, u_max: &[f64]) -> Vec<f64> {
    let mut table = Vec::new();
    for (n, (&norm2, &u_max)) in job.norm2.iter().zip(u_max).enumerate() {
        table.extend([norm2, u_max]);
        table.extend(&job.u_dots[n].q);
        table.extend(&job.u_dots[n].v);
    }
    table
}
