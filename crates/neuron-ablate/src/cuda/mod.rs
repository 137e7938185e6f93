//! The fused kernel on a GPU: exact sums over the vocabulary for every pair of a block, without writing a logit.
//!
//! `sums.cu` is compiled when it is first needed, by the compiler that PyTorch's CUDA libraries bring ([`driver`]). What it sums are
//! the [`Sums`] of the CPU's kernel, in bits and around a level of each row and cell:
//!
//! ```text
//! t      = (l - level) / ln 2 + a g + c u        (a, c in bits; level: the mean of the clean logits in the cell)
//! t'     = t + k lambda                          lambda = log q - centre
//! out    = sum 2^t, sum 2^t t, sum 2^t lambda    over strips of at most STRIP tokens, in f32
//! ```
//!
//! Strips are added up in f64, and less the clean sums they go to the host: what rounds there rounds changes.
//!
//! # Limits
//! `2^t` is the GPU's own (`ex2.approx`, 2 ulp). Pairs whose logits could move by more than [`MOST_BITS`] are left to
//! [`TensorSums`](crate::tensor_sums::TensorSums), which take their largest logit out first.

mod driver;

use std::{
    f64::consts::{LN_2, LOG2_E},
    ops::Range,
};

use rayon::prelude::*;
use tch::{Device, Kind, TchError, Tensor};

use self::driver::{Argument, Function, Source};
use crate::{
    kernel::{Base, Sums, Tilt, TiltSite, VocabLayout},
    pairs::RowLogits,
    vectors::on_host,
};

/// As in `sums.cu`.
const THREADS: usize = 128;
const TILE_ROWS: usize = 4;
const RANKED_DIRECTIONS: usize = 16;
/// Tokens of a strip: 128 a lane, whose f32 sums are good to some 1e-7.
const STRIP: usize = 4096;
/// Most blocks of a grid along rows.
const MOST_BLOCKS: usize = 65_535;
/// How far the logits of a pair may move, in bits; and how far clean ones may lie above the mean of their cell.
const MOST_BITS: f64 = 40.0;
const MOST_ABOVE: f64 = 60.0;
/// Calls that a block is cut into, if these have as many pairs.
const CALLS: usize = 8;
const PAIRS_PER_CALL: usize = 1 << 16;
/// Rows whose logits are in memory in f64 at once.
const ROWS_AT_ONCE: i64 = 64;

/// The vocabulary, ready for sums on a GPU.
#[derive(Debug)]
pub(crate) struct CudaSums {
    device: Device,
    cells: Vec<CudaCell>,
    readings: Readings,
    /// `log q` less the centre of its cell, `[d_vocab]`.
    lambda: Tensor,
    ranks: Function,
    /// All strips, for the ranks.
    strips: Tensor,
    /// Bytes that sums of strips may take.
    memory: usize,
}

#[derive(Debug)]
struct CudaCell {
    range: Range<usize>,
    /// `[strip, 2]`: start and length.
    strips: Tensor,
    kernel: Function,
    /// Directions of a block.
    tile_directions: usize,
}

/// What is summed of a pair, and what the sums on the GPU mean.
#[derive(Debug)]
pub(crate) struct Readings {
    n_bases: usize,
    n_tilts: usize,
    cells: Vec<ReadingsOfCell>,
}

#[derive(Debug)]
struct ReadingsOfCell {
    /// The tilts that are wanted here.
    tilts: Vec<usize>,
    centre: f64,
    lambda_max: f64,
}

/// Rows made ready.
#[derive(Debug)]
pub(crate) struct CudaRows {
    /// `(l - level) / ln 2`, `[row, d_vocab]`.
    l: Tensor,
    /// Clean sums as the kernel has them, `[3, row]` for each cell, f64.
    clean: Vec<Tensor>,
    pub(crate) levels: Levels,
}

/// What the host knows of the rows.
#[derive(Debug)]
pub(crate) struct Levels {
    /// `[row][cell]`
    level: Vec<f64>,
    /// How far the largest logit is above, in bits, and the largest `|g|`; `[row]`.
    above: Vec<f64>,
    g_max: Vec<f64>,
}

/// The pairs of a call: every direction at every row, `[direction][row]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CudaPairs<'p> {
    pub(crate) rows: &'p CudaRows,
    /// `g` of all rows.
    pub(crate) g: &'p Tensor,
    /// Which of the rows.
    pub(crate) at: &'p Range<usize>,
    /// `[direction, d_vocab]`
    pub(crate) u: &'p Tensor,
    /// `[direction][row][base]`
    pub(crate) bases: &'p [Base],
    /// `[direction][row][tilt]`
    pub(crate) tilts: &'p [Tilt],
}

/// Sums that the GPU works on.
#[derive(Debug)]
pub(crate) struct Started {
    cells: Vec<Tensor>,
    clean: Vec<Tensor>,
    n_rows: usize,
}

impl Started {
    /// Waits for them.
    pub(crate) fn finish(self) -> Result<CudaChanges, TchError> {
        let on_cpu = |t: &Tensor| Vec::<f32>::try_from(&t.f_to_device(Device::Cpu)?.f_view(-1)?);
        Ok(CudaChanges {
            cells: self.cells.iter().map(on_cpu).collect::<Result<_, _>>()?,
            clean: self.clean.iter().map(on_host).collect::<Result<_, _>>()?,
            n_rows: self.n_rows,
        })
    }
}

/// What a call found: changes of the clean sums, on the host.
#[derive(Debug)]
pub(crate) struct CudaChanges {
    /// For each cell `[direction][row][reading][3]`.
    cells: Vec<Vec<f32>>,
    /// Clean sums, for each cell `[3][row]`.
    clean: Vec<Vec<f64>>,
    n_rows: usize,
}

impl CudaSums {
    /// `log_q` is in the order of the layout, `sites` are those of tilts of base 0; `memory` is in bytes.
    ///
    /// # Errors
    /// - if CUDA's compiler is not there or refuses
    pub(crate) fn new(
        layout: &VocabLayout,
        log_q: &[f64],
        sites: &[TiltSite],
        n_bases: usize,
        device: Device,
        memory: usize,
    ) -> Result<Self, TchError> {
        let Device::Cuda(gpu) = device else {
            return Err(TchError::Torch(format!("{device:?} is no CUDA device")));
        };
        let there = |t: Tensor| t.f_to_device(device);
        let mut lambda = vec![0.0; log_q.len()];
        let (mut cells, mut of_cells) = (Vec::new(), Vec::new());
        for (index, cell) in layout.cells().iter().enumerate() {
            let range = cell.range();
            let of_cell = &log_q[range.clone()];
            let centre = of_cell.iter().sum::<f64>() / of_cell.len() as f64;
            let mut lambda_max = 0.0f64;
            for (lambda, log_q) in lambda[range.clone()].iter_mut().zip(of_cell) {
                *lambda = (log_q - centre) as f32;
                lambda_max = lambda_max.max((log_q - centre).abs());
            }
            let wanted = |tilt: &usize| sites[*tilt].cells[index];
            let tilts: Vec<usize> = (0..sites.len()).filter(wanted).collect();
            let source = source(n_bases, tilts.len());
            cells.push(CudaCell {
                strips: there(strips(&range)?)?,
                range,
                kernel: driver::function(gpu, &source, "sums")?,
                tile_directions: tile_directions(n_bases + tilts.len()),
            });
            of_cells.push(ReadingsOfCell {
                tilts,
                centre,
                lambda_max,
            });
        }
        Ok(Self {
            device,
            cells,
            readings: Readings {
                n_bases,
                n_tilts: sites.len(),
                cells: of_cells,
            },
            lambda: there(Tensor::f_from_slice(&lambda)?)?,
            ranks: driver::function(gpu, &source(1, 0), "ranks")?,
            strips: there(strips(&(0..log_q.len()))?)?,
            memory,
        })
    }

    /// What is summed of a pair.
    pub(crate) fn readings(&self) -> &Readings {
        &self.readings
    }

    /// Makes rows ready; with them the sums of their clean logits, `[row][cell]`.
    pub(crate) fn rows(&self, logits: &RowLogits) -> Result<(CudaRows, Vec<Vec<Sums>>), TchError> {
        let (l, g) = (logits.l.tensor(), logits.g.tensor());
        let (n_rows, d_vocab) = l.size2()?;
        let bits = l.f_empty_like()?;
        let mut level = Vec::new();
        for start in (0..n_rows).step_by(ROWS_AT_ONCE as usize) {
            let len = ROWS_AT_ONCE.min(n_rows - start);
            let mut levels = Vec::new();
            for cell in &self.cells {
                let here = |t: &Tensor| {
                    let columns = t.f_narrow(1, cell.range.start as i64, cell.range.len() as i64);
                    columns?.f_narrow(0, start, len)
                };
                let l = here(l)?.f_to_kind(Kind::Double)?;
                let mut p = l.f_softmax(1, Kind::Double)?;
                let mean = p.f_mul_(&l)?.f_sum_dim_intlist(1, true, Kind::Double)?;
                let in_bits = l.f_sub(&mean)?.f_mul_scalar(LOG2_E)?;
                here(&bits)?.f_copy_(&in_bits.f_to_kind(Kind::Float)?)?;
                levels.push(mean);
            }
            level.extend(on_host(&Tensor::f_cat(&levels, 1)?)?);
        }
        let largest = |t: &Tensor| on_host(&t.f_amax([1i64].as_slice(), false)?);
        let mut rows = CudaRows {
            levels: Levels {
                level,
                above: largest(&bits)?,
                g_max: largest_magnitude(g)?,
            },
            l: bits,
            clean: Vec::new(),
        };
        let zeros = Tensor::f_zeros([1, d_vocab], (Kind::Float, self.device))?;
        let at = 0..n_rows as usize;
        let bases = vec![Base::default(); n_rows as usize * self.readings.n_bases];
        let tilts = vec![Tilt::default(); n_rows as usize * self.readings.n_tilts];
        let pairs = CudaPairs {
            rows: &rows,
            g,
            at: &at,
            u: &zeros,
            bases: &bases,
            tilts: &tilts,
        };
        let factors = self.factors(&pairs, 0..1)?;
        let mut clean = Vec::new();
        for index in 0..self.cells.len() {
            let sums = self.sums_of_cell(index, &pairs, &factors, 0..1)?; // [reading, 3, 1, row]
            clean.push(sums.f_get(0)?.f_squeeze_dim(1)?);
        }
        let on_host: Vec<Vec<f64>> = clean.iter().map(on_host).collect::<Result<_, _>>()?;
        rows.clean = clean;
        let sums = (0..n_rows as usize)
            .map(|row| {
                let of_cell = |(index, cell): (usize, &ReadingsOfCell)| {
                    let sum = |s: usize| on_host[index][s * n_rows as usize + row];
                    let level = rows.levels.level[row * self.cells.len() + index];
                    in_nats([sum(0), sum(1), sum(2)], level, cell.centre)
                };
                let cells = self.readings.cells.iter().enumerate();
                cells.map(of_cell).collect()
            })
            .collect();
        Ok((rows, sums))
    }

    /// Directions of a call: their sums fit the memory, and there are a few calls, so that the host has something to do meanwhile.
    pub(crate) fn directions_at_once(&self, n_rows: usize, n_directions: usize) -> usize {
        let strips = self
            .cells
            .iter()
            .map(|cell| cell.range.len().div_ceil(STRIP));
        let strips = strips.max().unwrap_or(1);
        let per_pair = (self.readings.n_bases + self.readings.n_tilts) * 3 * (4 * strips + 2 * 8);
        let fit = self.memory / (per_pair * n_rows.max(1));
        let few = (PAIRS_PER_CALL / n_rows.max(1)).max(n_directions.div_ceil(CALLS));
        fit.min(few).max(1)
    }

    /// Starts on the sums of the pairs of some directions, and returns while the GPU works on them.
    pub(crate) fn start(
        &self,
        pairs: &CudaPairs<'_>,
        directions: Range<usize>,
    ) -> Result<Started, TchError> {
        let n_rows = pairs.at.len();
        let (start, len) = (pairs.at.start as i64, n_rows as i64);
        let factors = self.factors(pairs, directions.clone())?;
        let (mut cells, mut clean) = (Vec::new(), Vec::new());
        for (index, of_rows) in pairs.rows.clean.iter().enumerate() {
            let of_rows = of_rows.f_narrow(1, start, len)?; // [3, row]
            let sums = self.sums_of_cell(index, pairs, &factors, directions.clone())?;
            let change = sums
                .f_sub(&of_rows.f_unsqueeze(1)?.f_unsqueeze(0)?)?
                .f_permute([2, 3, 0, 1])?
                .f_to_kind(Kind::Float)?
                .f_contiguous()?;
            cells.push(change);
            clean.push(of_rows);
        }
        Ok(Started {
            cells,
            clean,
            n_rows,
        })
    }

    /// Factors of the pairs of some directions, on the GPU: `[2 * bases + tilts, direction, row]`.
    fn factors(&self, pairs: &CudaPairs<'_>, directions: Range<usize>) -> Result<Tensor, TchError> {
        let n_rows = pairs.at.len();
        let (n_bases, n_tilts) = (self.readings.n_bases, self.readings.n_tilts);
        let (of_bases, of_tilts) = (pairs.bases, pairs.tilts);
        let width = 2 * n_bases + n_tilts;
        let mut factors = vec![0.0f32; directions.len() * n_rows * width];
        let bits = |nats: f64| (nats * LOG2_E) as f32;
        factors
            .par_chunks_mut(n_rows * width)
            .zip(directions.clone())
            .for_each(|(of_direction, direction)| {
                for row in 0..n_rows {
                    let pair = direction * n_rows + row;
                    let bases = &of_bases[pair * n_bases..(pair + 1) * n_bases];
                    let tilts = &of_tilts[pair * n_tilts..(pair + 1) * n_tilts];
                    let of_bases = bases.iter().flat_map(|base| [bits(base.a), bits(base.c)]);
                    // `lambda` is in nats, and `k` turns it into bits.
                    let values = of_bases.chain(tilts.iter().map(|tilt| bits(tilt.k)));
                    for (kind, value) in values.enumerate() {
                        of_direction[kind * n_rows + row] = value;
                    }
                }
            });
        Tensor::f_from_slice(&factors)?
            .f_view([directions.len() as i64, width as i64, n_rows as i64])?
            .f_to_device(self.device)?
            .f_transpose(0, 1)?
            .f_contiguous()
    }

    /// `[reading, 3, direction, row]`, f64.
    fn sums_of_cell(
        &self,
        cell: usize,
        pairs: &CudaPairs<'_>,
        factors: &Tensor,
        directions: Range<usize>,
    ) -> Result<Tensor, TchError> {
        let (cell, readings) = (&self.cells[cell], &self.readings.cells[cell]);
        let n_bases = self.readings.n_bases;
        let (n_rows, n_directions) = (pairs.at.len(), directions.len());
        let rows = |t: &Tensor| t.f_narrow(0, pairs.at.start as i64, n_rows as i64);
        let wanted = (0..2 * n_bases).chain(readings.tilts.iter().map(|t| 2 * n_bases + t));
        let wanted: Vec<i64> = wanted.map(|kind| kind as i64).collect();
        let factors = match wanted.len() as i64 == factors.size()[0] {
            true => factors.shallow_clone(),
            false => {
                let wanted = Tensor::f_from_slice(&wanted)?.f_to_device(self.device)?;
                factors.f_index_select(0, &wanted)?
            }
        };
        let n_strips = cell.strips.size()[0];
        let shape = [
            n_strips,
            (n_bases + readings.tilts.len()) as i64,
            3,
            n_directions as i64,
            n_rows as i64,
        ];
        let out = Tensor::f_empty(shape, (Kind::Float, self.device))?;
        let u = pairs
            .u
            .f_narrow(0, directions.start as i64, n_directions as i64)?;
        let (l, g) = (rows(&pairs.rows.l)?, rows(pairs.g)?);
        let d_vocab = self.lambda.size()[0] as usize;
        let arguments = [
            Argument::Tensor(&l),
            Argument::Tensor(&g),
            Argument::Tensor(&u),
            Argument::Tensor(&self.lambda),
            Argument::Tensor(&factors),
            Argument::Tensor(&cell.strips),
            Argument::Tensor(&out),
            Argument::Int(n_rows),
            Argument::Int(n_directions),
            Argument::Int(d_vocab),
        ];
        let grid = [
            n_directions.div_ceil(cell.tile_directions),
            blocks_of_rows(n_rows.div_ceil(TILE_ROWS))?,
            n_strips as usize,
        ];
        #[expect(unsafe_code, reason = "a function on the GPU")]
        // SAFETY: these are the arguments of `sums`, with the shapes that it documents, all made on this GPU; its blocks cover
        // rows and directions, and it checks the edges.
        unsafe {
            cell.kernel.launch(grid, THREADS, &arguments)?;
        }
        out.f_sum_dim_intlist(0, false, Kind::Double)
    }

    /// How many tokens have larger logits than the targets under one base, `[direction][row]`; `places` are the targets'.
    pub(crate) fn ranks(
        &self,
        l: &Tensor,
        g: &Tensor,
        u: &Tensor,
        bases: &[Base],
        places: &Tensor,
    ) -> Result<Vec<u32>, TchError> {
        let (n_rows, d_vocab) = l.size2()?;
        let n_directions = u.size()[0];
        let factor = |value: fn(&Base) -> f64| bases.iter().map(move |base| value(base) as f32);
        let factors: Vec<f32> = factor(|base| base.a).chain(factor(|base| base.c)).collect();
        let factors = Tensor::f_from_slice(&factors)?.f_to_device(self.device)?;
        let places = places.f_to_device(self.device)?.f_contiguous()?;
        let n_strips = self.strips.size()[0];
        let shape = [n_strips, n_directions, n_rows];
        let out = Tensor::f_empty(shape, (Kind::Int, self.device))?;
        let arguments = [
            Argument::Tensor(l),
            Argument::Tensor(g),
            Argument::Tensor(u),
            Argument::Tensor(&places),
            Argument::Tensor(&factors),
            Argument::Tensor(&self.strips),
            Argument::Tensor(&out),
            Argument::Int(n_rows as usize),
            Argument::Int(n_directions as usize),
            Argument::Int(d_vocab as usize),
        ];
        let grid = [
            (n_directions as usize).div_ceil(RANKED_DIRECTIONS),
            blocks_of_rows(n_rows as usize)?,
            n_strips as usize,
        ];
        #[expect(unsafe_code, reason = "a function on the GPU")]
        // SAFETY: as for the sums; places are within the vocabulary.
        unsafe {
            self.ranks.launch(grid, THREADS, &arguments)?;
        }
        let ranks = out.f_sum_dim_intlist(0, false, Kind::Int64)?;
        let ranks = Vec::<i64>::try_from(&ranks.f_to_device(Device::Cpu)?.f_view(-1)?)?;
        Ok(ranks.into_iter().map(|rank| rank as u32).collect())
    }
}

impl Readings {
    /// Whether a pair's sums are safe in f32: its logits move little enough.
    pub(crate) fn hold(
        &self,
        levels: &Levels,
        row: usize,
        u_max: f64,
        bases: &[Base],
        tilts: &[Tilt],
    ) -> bool {
        let largest = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
        let moved = |base: &Base| base.a.abs() * levels.g_max[row] + base.c.abs() * u_max;
        let by_bases = largest(&mut bases.iter().map(moved));
        let lambda = largest(&mut self.cells.iter().map(|cell| cell.lambda_max));
        let by_tilts = largest(&mut tilts.iter().map(|tilt| tilt.k.abs() * lambda));
        (by_bases + by_tilts) * LOG2_E <= MOST_BITS && levels.above[row] <= MOST_ABOVE
    }

    /// The sums of a pair under each base and tilt over each cell, `[reading][cell]`; `row` counts among those of the call, then among
    /// all.
    pub(crate) fn of_pair(
        &self,
        changes: &CudaChanges,
        levels: &Levels,
        (row, row_of_all): (usize, usize),
        direction: usize,
        tilts: &[Tilt],
        out: &mut Vec<Sums>,
    ) {
        let n_cells = self.cells.len();
        out.clear();
        out.resize((self.n_bases + self.n_tilts) * n_cells, Sums::EMPTY);
        let pair = direction * changes.n_rows + row;
        for (index, cell) in self.cells.iter().enumerate() {
            let here = self.n_bases + cell.tilts.len();
            let change = &changes.cells[index][pair * here * 3..(pair + 1) * here * 3];
            let clean = |s: usize| changes.clean[index][s * changes.n_rows + row];
            let level = levels.level[row_of_all * n_cells + index];
            for (place, change) in change.chunks_exact(3).enumerate() {
                let (reading, level) = match place.checked_sub(self.n_bases) {
                    None => (place, level),
                    Some(tilt) => {
                        let tilt = cell.tilts[tilt];
                        let Tilt { k, offset } = tilts[tilt];
                        (self.n_bases + tilt, level + k * cell.centre + offset)
                    }
                };
                let sum = |s: usize| clean(s) + f64::from(change[s]);
                out[reading * n_cells + index] =
                    in_nats([sum(0), sum(1), sum(2)], level, cell.centre);
            }
        }
    }
}

/// The largest `|x|` of each vector of a tensor `[vector, d_vocab]`.
pub(crate) fn largest_magnitude(vectors: &Tensor) -> Result<Vec<f64>, TchError> {
    let (least, most) = (
        on_host(&vectors.f_amin([1i64].as_slice(), false)?)?,
        on_host(&vectors.f_amax([1i64].as_slice(), false)?)?,
    );
    let largest = |(least, most): (f64, f64)| least.abs().max(most.abs());
    Ok(least.into_iter().zip(most).map(largest).collect())
}

/// From sums in bits around a level, `[2^t, 2^t t, 2^t lambda]`.
fn in_nats([s0, s1, s2]: [f64; 3], level: f64, centre: f64) -> Sums {
    Sums {
        shift: level,
        s0,
        s1: LN_2 * s1 + level * s0,
        s2: s2 + centre * s0,
    }
}

fn source(bases: usize, tilts: usize) -> Source {
    Source {
        text: include_str!("sums.cu"),
        defines: vec![("BASES", bases), ("TILTS", tilts)],
    }
}

/// As `sums.cu` has it.
fn tile_directions(readings: usize) -> usize {
    let of_warp = match readings {
        ..=4 => 4,
        5..=8 => 2,
        _ => 1,
    };
    2 * of_warp
}

/// `[strip, 2]`: start and length.
fn strips(range: &Range<usize>) -> Result<Tensor, TchError> {
    let strips: Vec<i32> = range
        .clone()
        .step_by(STRIP)
        .flat_map(|start| [start as i32, STRIP.min(range.end - start) as i32])
        .collect();
    Tensor::f_from_slice(&strips)?.f_view([-1, 2])
}

fn blocks_of_rows(blocks: usize) -> Result<usize, TchError> {
    match blocks <= MOST_BLOCKS {
        true => Ok(blocks),
        false => Err(TchError::Torch(format!(
            "{blocks} blocks of rows are too many for one call on a GPU, at most {MOST_BLOCKS}; give less memory"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::f64::consts::LOG2_E;

    use super::{CudaChanges, Levels, Readings, ReadingsOfCell};
    use crate::kernel::{Base, Tilt};

    const LOG_Q: [f64; 5] = [-1.0, -2.5, -3.0, -4.0, -6.5];
    const L: [f64; 5] = [2.0, -1.0, 0.5, -3.0, 1.0];
    const G: [f64; 5] = [0.3, -0.2, 0.9, 0.1, -1.0];
    const U: [f64; 5] = [-0.7, 0.4, 0.2, 1.5, 0.6];
    const CELLS: [std::ops::Range<usize>; 2] = [0..3, 3..5];
    const LEVEL: [f64; 2] = [1.25, -0.75];
    const CENTRE: [f64; 2] = [-2.0, -5.0];

    /// What the kernel sums over a cell: `2^t`, `2^t t`, `2^t lambda`.
    fn raw(cell: usize, base: Base, k: f64) -> [f64; 3] {
        let mut sums = [0.0; 3];
        for i in CELLS[cell].clone() {
            let lambda = LOG_Q[i] - CENTRE[cell];
            let z = L[i] - LEVEL[cell] + base.a * G[i] + base.c * U[i] + k * lambda;
            let t = z * LOG2_E;
            for (sum, factor) in sums.iter_mut().zip([1.0, t, lambda]) {
                *sum += t.exp2() * factor;
            }
        }
        sums
    }

    #[test]
    fn changes_of_clean_sums_are_the_sums_of_a_pair() {
        let readings = Readings {
            n_bases: 1,
            n_tilts: 2,
            cells: [vec![0], vec![0, 1]]
                .into_iter()
                .zip(CENTRE)
                .map(|(tilts, centre)| ReadingsOfCell {
                    tilts,
                    centre,
                    lambda_max: 2.0,
                })
                .collect(),
        };
        let levels = Levels {
            level: LEVEL.to_vec(),
            above: vec![3.0],
            g_max: vec![1.0],
        };
        let base = Base { a: 0.2, c: -0.4 };
        let tilts = [
            Tilt {
                k: 0.3,
                offset: -0.1,
            },
            Tilt {
                k: -0.2,
                offset: 0.7,
            },
        ];
        assert!(readings.hold(&levels, 0, 1.5, &[base], &tilts));
        assert!(!readings.hold(&levels, 0, 100.0, &[base], &tilts));
        let clean: Vec<Vec<f64>> = (0..2)
            .map(|cell| raw(cell, Base::default(), 0.0).to_vec())
            .collect();
        let cells = (0..2).map(|cell| {
            let here = readings.cells[cell].tilts.iter().map(|&tilt| tilts[tilt].k);
            let of_readings = std::iter::once(0.0).chain(here).map(|k| raw(cell, base, k));
            let change = |sums: [f64; 3]| [0, 1, 2].map(|s| (sums[s] - clean[cell][s]) as f32);
            of_readings.flat_map(change).collect()
        });
        let changes = CudaChanges {
            cells: cells.collect(),
            clean: clean.clone(),
            n_rows: 1,
        };
        let mut out = Vec::new();
        readings.of_pair(&changes, &levels, (0, 0), 0, &tilts, &mut out);
        for cell in 0..2 {
            for reading in 0..3 {
                let sums = out[reading * 2 + cell];
                if (reading, cell) == (2, 0) {
                    assert_eq!(sums.s0, 0.0, "a tilt where it is not wanted");
                    continue;
                }
                let tilt = reading.checked_sub(1).map_or(Tilt::default(), |t| tilts[t]);
                let z = |i: usize| {
                    L[i] + base.a * G[i] + base.c * U[i] + tilt.k * LOG_Q[i] + tilt.offset
                };
                let sum = |f: &dyn Fn(usize) -> f64| -> f64 {
                    CELLS[cell].clone().map(|i| z(i).exp() * f(i)).sum()
                };
                let all = sum(&|_| 1.0);
                let close = |found: f64, expected: f64| {
                    assert!((found - expected).abs() < 1e-6, "{found} for {expected}");
                };
                close(sums.lse(), all.ln());
                close(sums.s1 / sums.s0, sum(&z) / all);
                close(sums.s2 / sums.s0, sum(&|i| LOG_Q[i]) / all);
            }
        }
    }
}
