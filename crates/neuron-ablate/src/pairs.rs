//! One pair of a direction and a row: how the logits move, and what is measured of them. Tensors stay at its edge.

use std::{ops::Range, sync::Arc};

use rayon::prelude::*;
use tch::{Device, Kind, TchError, Tensor};
use vocabulary_sums::{Base, Cell, Sums, Tilt, TiltSite, VocabLayout};

use crate::{
    AblateError, Direction, OutsideBand, Row, Semantics, TokenBand, TokenFrequencies, Variant,
    Variants,
    frequency::Axis,
    keys::EffectKeys,
    outcome::{Linear, Measures},
    readout::NormScale,
    row_logits::{Dots, RowLogits},
    series::{Errors, Move, RowCell, SeriesBlock, SeriesCell, Spread, moved},
    vectors::{Vectors, dot, on_host},
};

/// Vectors that are on a GPU in f64 at once.
const VECTORS_IN_F64: i64 = 128;

/// What is the same for all pairs of a sweep.
#[derive(Debug)]
pub(crate) struct Pairs {
    outside_band: OutsideBand,
    /// The tokens of the all-token direction, as the cells name them; none for all tokens.
    support: Option<usize>,
    bands: Vec<TokenBand>,
    measures: Measures,
    keys: Arc<EffectKeys>,
    /// Number of variants that are bases; those after them are tilts of the total effect.
    n_bases: usize,
    layout: VocabLayout,
    /// `log q` in the order of the layout.
    log_q: Vec<f64>,
    /// Where each tilt is wanted.
    sites: Vec<TiltSite>,
    vocab: Vocabulary,
}

/// The rows of a block, with what is measured of their clean logits.
#[derive(Debug)]
pub(crate) struct RowTerms<'r> {
    rows: &'r [Row],
    pub(crate) scale: NormScale,
    /// `|x_c|^2`, `[row]`.
    pub(crate) norm2: Vec<f64>,
    /// `g` at the target, `[row]`.
    pub(crate) g_at: Vec<f64>,
    pub(crate) g_dots: Vec<Dots>,
    /// The clean logit of the target, `[row]`.
    pub(crate) l_at: Vec<f64>,
    pub(crate) l_dots: Vec<Dots>,
    /// As [`Prepared::sums`](crate::engine::Prepared::sums) has them.
    pub(crate) sums: Vec<Vec<Sums>>,
    /// Measures of the clean logits, `[row][measure]`.
    pub(crate) measures: Vec<f64>,
}

/// A block of pairs: some directions of the residual stream at some rows.
///
/// A direction is the output weights of a neuron, or anything else that is added to the residual stream.
#[derive(Debug)]
pub(crate) struct Block<'b> {
    pub(crate) rows: &'b RowTerms<'b>,
    /// Which of the rows.
    pub(crate) at: Range<usize>,
    /// `D`: how much of a direction is added, such as the change of a neuron's activation; `[direction][row]`.
    pub(crate) change: &'b [f64],
    /// `|w_c|^2`, `[direction]`.
    pub(crate) norm2: &'b [f64],
    pub(crate) u_dots: &'b [Dots],
    /// `u` at the target of each row, `[direction][row]`.
    pub(crate) u_at: &'b [f64],
    /// `x_c . w_c`, `[direction][row]`.
    pub(crate) cross: &'b [f64],
    /// As [`Engines::spreads`] has them, `[direction]`.
    pub(crate) spreads: &'b [Spread],
}

/// Everything over the vocabulary that is the same for all rows and neurons, in the order of the layout.
#[derive(Debug)]
struct Vocabulary {
    /// Place of each token id in the layout.
    place: Vec<usize>,
    /// Directions of the frozen variants: all tokens, then each band.
    directions: Vec<Vec<f64>>,
    /// The same as functions of `log q`.
    axes: Vec<Axis>,
    /// `q` in the order of the layout.
    q: Vec<f64>,
    /// `sum q v` over each cell, for each direction.
    qv: Vec<Vec<f64>>,
}

/// Logits of one pair under one variant, as a change of the clean ones: `z = l + a g + c u + k v`.
///
/// Written as a change so that rounding of the clean logits drops out of every difference.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shift {
    a: f64,
    c: f64,
    k: f64,
    direction: Option<usize>,
}

impl Shift {
    const NONE: Self = Self {
        a: 0.0,
        c: 0.0,
        k: 0.0,
        direction: None,
    };
}

/// Room for the values of one pair, used again and again.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// `[variant]`
    pub(crate) shifts: Vec<Shift>,
    /// `[variant][cell]`
    pub(crate) sums: Vec<Sums>,
    /// `[variant][cell]`
    errors: Vec<Errors>,
    cells: Vec<Sums>,
    qz: Vec<f64>,
    bands: Vec<Sums>,
    qz_bands: Vec<f64>,
}

impl Pairs {
    pub(crate) fn new(
        frequencies: &TokenFrequencies,
        bands: Vec<TokenBand>,
        semantics: &Semantics,
        wanted: Variants,
    ) -> Result<Self, AblateError> {
        // The tokens of the all-token direction are cut out like one more band.
        let support = frequencies.support().map(|_| bands.len());
        let masks: Vec<&[bool]> = bands
            .iter()
            .map(TokenBand::mask)
            .chain(frequencies.support())
            .collect();
        let layout = VocabLayout::new(frequencies.log_q(), &masks);
        let band_direction = match semantics.direction {
            Direction::BandMasked => Direction::BandMasked,
            Direction::AllTokens | Direction::BandRecentred => Direction::BandRecentred,
        };
        let mut directions = vec![frequencies.direction(Direction::AllTokens, &[])?];
        let mut axes = vec![frequencies.axis(Direction::AllTokens, &[])?];
        for band in &bands {
            directions.push(frequencies.direction(band_direction, band.mask())?);
            axes.push(frequencies.axis(band_direction, band.mask())?);
        }
        let mut variants = vec![Variant::Total];
        variants.extend(wanted.frozen_ln.then_some(Variant::FrozenLn));
        let n_bases = variants.len();
        variants.extend(wanted.frozen_all.then_some(Variant::FrozenAll));
        if wanted.frozen_bands {
            variants.extend((0..bands.len()).map(Variant::FrozenBand));
        }
        let frozen_on = |cell: &Cell, variant: &Variant| match variant {
            Variant::FrozenBand(band) => cell.in_band(*band),
            Variant::FrozenAll => support.is_none_or(|support| cell.in_band(support)),
            Variant::Total | Variant::FrozenLn => true,
        };
        let site = |variant: &Variant| TiltSite {
            base: 0,
            cells: layout
                .cells()
                .iter()
                .map(|cell| frozen_on(cell, variant))
                .collect(),
        };
        let measures = Measures::new(frequencies, &bands);
        Ok(Self {
            outside_band: semantics.outside_band,
            support,
            sites: variants[n_bases..].iter().map(site).collect(),
            keys: Arc::new(EffectKeys::new(variants, &measures, &bands)),
            measures,
            n_bases,
            vocab: Vocabulary::new(&layout, frequencies, &directions, axes),
            log_q: layout
                .order()
                .iter()
                .map(|&t| frequencies.log_q()[t as usize])
                .collect(),
            layout,
            bands,
        })
    }

    pub(crate) fn bands(&self) -> &[TokenBand] {
        &self.bands
    }

    pub(crate) fn measures(&self) -> &Measures {
        &self.measures
    }

    pub(crate) fn keys(&self) -> &Arc<EffectKeys> {
        &self.keys
    }

    pub(crate) fn variants(&self) -> &[Variant] {
        self.keys.variants()
    }

    pub(crate) fn layout(&self) -> &VocabLayout {
        &self.layout
    }

    /// Number of variants that are bases for the kernel.
    pub(crate) fn n_bases(&self) -> usize {
        self.n_bases
    }

    /// `log q` in the order of the layout.
    pub(crate) fn log_q(&self) -> &[f64] {
        &self.log_q
    }

    /// Where the tilts are wanted, in the order of the variants that are tilts.
    pub(crate) fn sites(&self) -> &[TiltSite] {
        &self.sites
    }

    /// Values of a pair: variants times measures.
    pub(crate) fn per_pair(&self) -> usize {
        self.keys.len()
    }

    /// The cells as the series wants them.
    pub(crate) fn series_cells(&self) -> Vec<SeriesCell> {
        let cells = self.layout.cells().iter().enumerate();
        cells
            .map(|(index, cell)| SeriesCell {
                range: cell.range(),
                tilted: self.sites.iter().any(|site| site.cells[index]),
                mass: cell.range().map(|place| self.log_q[place].exp()).sum(),
                longest: 0.0,
            })
            .collect()
    }

    /// Dot products of vectors over the vocabulary with `q` and the directions, `[vector]`, in f64: a long sum in f32 would lose what
    /// divergences need.
    pub(crate) fn dots(&self, vectors: &Vectors) -> Result<Vec<Dots>, TchError> {
        let d_vocab = self.layout.d_vocab();
        if vectors.tensor().device() == Device::Cpu {
            let (cells, vocab) = (self.layout.cells(), &self.vocab);
            let of_vector = |x: &[f32]| Dots {
                q: cells
                    .iter()
                    .map(|cell| dot(&x[cell.range()], &vocab.q[cell.range()]))
                    .collect(),
                v: vocab.directions.iter().map(|v| dot(x, v)).collect(),
            };
            return Ok(vectors.host()?.par_chunks(d_vocab).map(of_vector).collect());
        }
        let on = vectors.tensor().device();
        let columns = |of: &[f64]| Tensor::f_from_slice(of)?.f_to_device(on);
        let (q, n_cells) = (columns(&self.vocab.q)?, self.layout.cells().len());
        let mut weights = Vec::new();
        for cell in self.layout.cells() {
            let range = cell.range();
            let column = q.f_zeros_like()?;
            let part = |t: &Tensor| t.f_narrow(0, range.start as i64, range.len() as i64);
            part(&column)?.f_copy_(&part(&q)?)?;
            weights.push(column);
        }
        for direction in &self.vocab.directions {
            weights.push(columns(direction)?);
        }
        let weights = Tensor::f_stack(&weights, 1)?;
        let mut dots = Vec::new();
        for part in vectors.tensor().f_split(VECTORS_IN_F64, 0)? {
            let products = on_host(&part.f_to_kind(Kind::Double)?.f_matmul(&weights)?)?;
            let width = n_cells + self.vocab.directions.len();
            dots.extend(products.chunks(width).map(|of_vector| Dots {
                q: of_vector[..n_cells].to_vec(),
                v: of_vector[n_cells..].to_vec(),
            }));
        }
        Ok(dots)
    }

    /// Places of the rows' targets in the layout, `[row]`.
    pub(crate) fn target_places(&self, rows: &[Row]) -> Result<Tensor, TchError> {
        let places: Vec<i64> = rows
            .iter()
            .map(|row| self.vocab.place[row.target as usize] as i64)
            .collect();
        Tensor::f_from_slice(&places)
    }

    /// What is measured of the clean logits of rows; `sums` are theirs, `[row][cell]`.
    pub(crate) fn rows<'r>(
        &self,
        rows: &'r [Row],
        norm2: Vec<f64>,
        scale: NormScale,
        logits: &RowLogits,
        // By the same means as the ablated ones, so that their rounding drops out of differences.
        sums: &[Vec<Sums>],
    ) -> Result<RowTerms<'r>, AblateError> {
        let m = self.measures.len();
        let RowLogits { l, g } = logits;
        let (l_dots, g_dots) = (self.dots(l)?, self.dots(g)?);
        let targets = self.target_places(rows)?;
        let (l_at, g_at) = (l.each_at(&targets)?, g.each_at(&targets)?);
        let mut measures = vec![0.0; rows.len() * m];
        let mut scratch = Scratch::default();
        for (r, out) in measures.chunks_mut(m).enumerate() {
            scratch.cells.clear();
            scratch.qz.clear();
            scratch.cells.extend(&sums[r]);
            scratch.qz.extend(&l_dots[r].q);
            self.fill(&mut scratch, l_at[r], out);
        }
        if let Some(i) = measures.iter().position(|v| !v.is_finite()) {
            let Row { sequence, pos, .. } = rows[i / m];
            return Err(AblateError::NotFiniteClean { sequence, pos });
        }
        Ok(RowTerms {
            rows,
            scale,
            norm2,
            g_at,
            g_dots,
            l_at,
            l_dots,
            sums: sums.to_vec(),
            measures,
        })
    }

    /// All variants of one pair from `scratch.shifts` and `scratch.sums`; `out` is `[variant][measure]`.
    pub(crate) fn measure_pair(
        &self,
        job: &Block<'_>,
        row: usize,
        n: usize,
        scratch: &mut Scratch,
        out: &mut [f64],
    ) {
        let (m, n_cells) = (self.measures.len(), self.layout.cells().len());
        let u = job.u_at[n * job.at.len() + row];
        let row = job.at.start + row;
        let place = self.target_place(job.rows, row);
        let target_cell = self.layout.cell_at(place);
        let (l, g) = (job.rows.l_at[row], job.rows.g_at[row]);
        for v in 0..self.variants().len() {
            scratch.cells.clear();
            scratch.qz.clear();
            for cell in 0..n_cells {
                let source = self.source(v, cell);
                let shift = source.map_or(Shift::NONE, |s| scratch.shifts[s]);
                let sums = source.map_or(job.rows.sums[row][cell], |s| {
                    scratch.sums[s * n_cells + cell]
                });
                scratch.cells.push(sums);
                let qv = shift.direction.map_or(0.0, |d| self.vocab.qv[d][cell]);
                scratch.qz.push(
                    job.rows.l_dots[row].q[cell]
                        + shift.a * job.rows.g_dots[row].q[cell]
                        + shift.c * job.u_dots[n].q[cell]
                        + shift.k * qv,
                );
            }
            let shift = self
                .source(v, target_cell)
                .map_or(Shift::NONE, |s| scratch.shifts[s]);
            let along = shift
                .direction
                .map_or(0.0, |d| self.vocab.directions[d][place]);
            let target = l + shift.a * g + shift.c * u + shift.k * along;
            self.fill(scratch, target, &mut out[v * m..(v + 1) * m]);
        }
    }

    /// All variants of one pair from the sums of an engine, `[variant][cell]`.
    pub(crate) fn measure_sums(
        &self,
        job: &Block<'_>,
        row: usize,
        n: usize,
        sums: &[Sums],
        scratch: &mut Scratch,
        out: &mut [f64],
    ) {
        self.shifts(job, row, n, &mut scratch.shifts);
        scratch.sums.clear();
        scratch.sums.extend(sums);
        self.measure_pair(job, row, n, scratch, out);
    }

    /// The directions of the frozen variants as functions of `log q`: all tokens, then each band.
    pub(crate) fn axes(&self) -> &[Axis] {
        &self.vocab.axes
    }

    /// `sum q v` over each cell, for one of these directions.
    pub(crate) fn qv(&self, axis: usize) -> &[f64] {
        &self.vocab.qv[axis]
    }

    /// One of these directions at a place of the layout.
    pub(crate) fn along(&self, axis: usize, place: usize) -> f64 {
        self.vocab.directions[axis][place]
    }

    /// Which of these directions a variant freezes.
    pub(crate) fn axis_of(&self, variant: usize) -> Option<usize> {
        match self.variants()[variant] {
            Variant::Total | Variant::FrozenLn => None,
            Variant::FrozenAll => Some(0),
            Variant::FrozenBand(band) => Some(1 + band),
        }
    }

    /// Place of a row's target in the layout.
    pub(crate) fn target_place(&self, rows: &RowTerms<'_>, row: usize) -> usize {
        self.vocab.place[rows.rows[row].target as usize]
    }

    /// The variant whose logits a cell has under variant `v`; `None` for the clean ones.
    pub(crate) fn source(&self, v: usize, cell: usize) -> Option<usize> {
        match self.variants()[v] {
            Variant::FrozenBand(band) if !self.layout.cells()[cell].in_band(band) => {
                (self.outside_band == OutsideBand::Ablated).then_some(0)
            }
            Variant::FrozenAll
                if self
                    .support
                    .is_some_and(|support| !self.layout.cells()[cell].in_band(support)) =>
            {
                Some(0)
            }
            _ => Some(v),
        }
    }

    /// How each variant moves the logits when direction `n` of the block changes at a row.
    pub(crate) fn shifts(&self, job: &Block<'_>, row: usize, n: usize, shifts: &mut Vec<Shift>) {
        let total = total_shift(job, row, n);
        let change = job.change[n * job.at.len() + row];
        let row = job.at.start + row;
        let s = job.rows.scale.at(job.rows.norm2[row]);
        let frozen = |d: usize| Shift {
            k: -(total.a * job.rows.g_dots[row].v[d] + total.c * job.u_dots[n].v[d]),
            direction: Some(d),
            ..total
        };
        shifts.clear();
        shifts.extend(self.variants().iter().map(|variant| match variant {
            Variant::Total => total,
            Variant::FrozenLn => Shift {
                c: change / s,
                ..Shift::NONE
            },
            Variant::FrozenAll => frozen(0),
            Variant::FrozenBand(band) => frozen(1 + band),
        }));
    }

    /// The total effect on a pair's logits.
    pub(crate) fn total(&self, job: &Block<'_>, row: usize, n: usize) -> Base {
        let Shift { a, c, .. } = total_shift(job, row, n);
        Base { a, c }
    }

    /// Adds the bases and the tilts of a pair's shifts.
    pub(crate) fn split(&self, shifts: &[Shift], bases: &mut Vec<Base>, tilts: &mut Vec<Tilt>) {
        let (of_bases, of_tilts) = shifts.split_at(self.n_bases);
        bases.extend(of_bases.iter().map(|s| Base { a: s.a, c: s.c }));
        tilts.extend(of_tilts.iter().map(|s| self.vocab.tilt(s)));
    }

    /// Fills `scratch.sums` with those of the moment engine; returns the largest error of any measure.
    pub(crate) fn moved(
        &self,
        job: &Block<'_>,
        rows: &[Vec<RowCell>],
        block: &SeriesBlock,
        row: usize,
        n: usize,
        scratch: &mut Scratch,
    ) -> f64 {
        let n_cells = self.layout.cells().len();
        scratch.sums.clear();
        scratch.errors.clear();
        scratch
            .sums
            .resize(self.variants().len() * n_cells, Sums::EMPTY);
        scratch
            .errors
            .resize(self.variants().len() * n_cells, Errors::default());
        for (cell, of_rows) in rows.iter().enumerate() {
            let of_row = &of_rows[row];
            let pair = block.pair(cell, n, row, of_row);
            for (v, shift) in scratch.shifts.iter().enumerate() {
                if v >= self.n_bases && !self.sites[v - self.n_bases].cells[cell] {
                    continue;
                }
                let Tilt { k, offset } = self.vocab.tilt(shift);
                let by = Move {
                    a: shift.a,
                    c: shift.c,
                    k,
                    offset,
                };
                let at = v * n_cells + cell;
                (scratch.sums[at], scratch.errors[at]) = moved(of_row, &pair, by);
            }
        }
        let error_of = |v: usize| {
            let (mut worst, mut z, mut q) = (Errors::default(), SPREAD, SPREAD);
            for cell in 0..n_cells {
                // Cells with the clean logits have no error of their own, but errors of others change what they count.
                let sums = match self.source(v, cell) {
                    Some(source) => {
                        worst = worst.max(&scratch.errors[source * n_cells + cell]);
                        &scratch.sums[source * n_cells + cell]
                    }
                    None => &job.rows.sums[row][cell],
                };
                let (mean_z, mean_q) = (sums.s1 / sums.s0, sums.s2 / sums.s0);
                z = (z.0.min(mean_z), z.1.max(mean_z));
                q = (q.0.min(mean_q), q.1.max(mean_q));
            }
            let spread = (z.1 - z.0).max(0.0) + (q.1 - q.0).max(0.0);
            let Errors {
                lse,
                entropy,
                divergence,
            } = worst;
            // Errors of `lse` also change what each cell counts, and the entropy of that.
            lse.max(entropy).max(divergence) + lse * (2.0 * spread + lse)
        };
        let errors = (0..self.variants().len()).map(error_of);
        errors.fold(0.0, |worst: f64, error| {
            if error > worst || error.is_nan() {
                error
            } else {
                worst
            }
        })
    }

    /// Measures from the sums over each cell, `scratch.cells`, and `sum q z` over them, `scratch.qz`.
    fn fill(&self, scratch: &mut Scratch, target: f64, out: &mut [f64]) {
        let full = Sums::over(scratch.cells.iter());
        let of_band = |band: usize| {
            let cells = self.layout.cells().iter().enumerate();
            cells
                .filter(move |(_, cell)| cell.in_band(band))
                .map(|(c, _)| c)
        };
        scratch.bands.clear();
        scratch.qz_bands.clear();
        for band in 0..self.bands.len() {
            let sums = Sums::over(of_band(band).map(|c| &scratch.cells[c]));
            scratch.bands.push(sums);
            scratch
                .qz_bands
                .push(of_band(band).map(|c| scratch.qz[c]).sum());
        }
        self.measures.fill(
            &full,
            &scratch.bands,
            Linear {
                target,
                qz: scratch.qz.iter().sum(),
                qz_bands: &scratch.qz_bands,
            },
            out,
        );
    }
}

impl RowTerms<'_> {
    /// The row of this number.
    pub(crate) fn row(&self, number: usize) -> Row {
        self.rows[number]
    }
}

/// The total effect: how the logits move when direction `n` of the block changes at a row.
fn total_shift(job: &Block<'_>, row: usize, n: usize) -> Shift {
    let pair = n * job.at.len() + row;
    let row = job.at.start + row;
    let (change, clean) = (job.change[pair], job.rows.norm2[row]);
    let norm2 = clean + 2.0 * change * job.cross[pair] + change * change * job.norm2[n];
    let (s, s_ablated) = (job.rows.scale.at(clean), job.rows.scale.at(norm2));
    Shift {
        a: 1.0 / s_ablated - 1.0 / s,
        c: change / s_ablated,
        ..Shift::NONE
    }
}

/// The empty range, as its least and greatest value.
const SPREAD: (f64, f64) = (f64::INFINITY, f64::NEG_INFINITY);

impl Vocabulary {
    fn new(
        layout: &VocabLayout,
        frequencies: &TokenFrequencies,
        directions: &[Vec<f64>],
        axes: Vec<Axis>,
    ) -> Self {
        let order = layout.order();
        let mut place = vec![0; order.len()];
        order
            .iter()
            .enumerate()
            .for_each(|(p, &token)| place[token as usize] = p);
        let arrange =
            |by_id: &[f64]| -> Vec<f64> { order.iter().map(|&t| by_id[t as usize]).collect() };
        let q = arrange(frequencies.q());
        let directions: Vec<Vec<f64>> = directions.iter().map(|v| arrange(v)).collect();
        let qv = directions
            .iter()
            .map(|v| {
                let dot = |cell: &Cell| cell.range().map(|i| q[i] * v[i]).sum();
                layout.cells().iter().map(dot).collect()
            })
            .collect();
        Self {
            place,
            directions,
            axes,
            q,
            qv,
        }
    }

    /// A shift along a direction, as the kernel wants it.
    fn tilt(&self, shift: &Shift) -> Tilt {
        shift.direction.map_or(Tilt::default(), |d| Tilt {
            k: shift.k * self.axes[d].slope,
            offset: shift.k * self.axes[d].intercept,
        })
    }
}
