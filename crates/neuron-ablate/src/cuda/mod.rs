//! The fused kernel on a GPU: exact sums over the vocabulary for every pair of a block, and what is measured of them, without writing
//! a logit.
//!
//! `sums.cu` and `measures.cu` are compiled when they are first needed, by the compiler that PyTorch's CUDA libraries bring
//! ([`driver`]). What is summed are the [`Sums`] of the CPU's kernel, in bits and around a level of each row and cell:
//!
//! ```text
//! t      = (l - level) / ln 2 + a g + c u        (a, c in bits; level: the mean of the clean logits in the cell)
//! t'     = t + k lambda                          lambda = log q - centre
//! out    = sum 2^t, sum 2^t t, sum 2^t lambda    over strips of at most STRIP tokens, in f32
//! ```
//!
//! Strips are added up in f64, and measures follow in f64. As changes of the clean ones they go to the host in f32: what rounds there
//! rounds changes.
//!
//! # Limits
//! `2^t` is the GPU's own (`ex2.approx`, 2 ulp). Pairs whose logits could move by more than [`MOST_BITS`] are left to
//! [`TensorSums`](crate::tensor_sums::TensorSums), which take their largest logit out first.

mod driver;
mod tables;

use std::{
    cell::RefCell,
    f64::consts::{LN_2, LOG2_E},
    ops::Range,
};

use tch::{Device, Kind, TchError, Tensor};
use vocabulary_sums::{Base, Sums};

use self::{
    driver::{Argument, Function, Source},
    tables::Cell,
};
use crate::{
    pairs::{Block, Pairs},
    readout::NormScale,
    row_logits::RowLogits,
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
    n_variants: usize,
    n_bases: usize,
    n_axes: usize,
    n_bands: usize,
    n_measures: usize,
    cells: Vec<Cell>,
    on_gpu: Vec<CellOnGpu>,
    /// `log q` less the centre of its cell, `[d_vocab]`.
    lambda: Tensor,
    moves: Function,
    measures: Function,
    ranks: Function,
    /// All strips, for the ranks.
    strips: Tensor,
    /// As `measures.cu` wants them.
    vocabulary: Tensor,
    layout: Tensor,
    /// Where results come to on the host, used again and again.
    landing: RefCell<Option<Tensor>>,
    /// Bytes that sums of strips may take.
    memory: usize,
}

#[derive(Debug)]
struct CellOnGpu {
    range: Range<usize>,
    /// `[strip, 2]`: start and length.
    strips: Tensor,
    sums: Function,
    /// Directions of a block of threads.
    tile_directions: usize,
}

/// Rows made ready.
#[derive(Debug)]
pub(crate) struct CudaRows {
    /// `(l - level) / ln 2`, `[row, d_vocab]`.
    l: Tensor,
    levels: Levels,
}

/// What the host knows of the rows.
#[derive(Debug)]
struct Levels {
    /// `[row][cell]`
    level: Vec<f64>,
    /// How far the largest logit is above, in bits, and the largest `|g|`; `[row]`.
    above: Vec<f64>,
    g_max: Vec<f64>,
}

/// A block of pairs on the GPU.
#[derive(Debug)]
pub(crate) struct CudaBlock<'b> {
    /// Of the rows of the block, `[row, d_vocab]`.
    l: Tensor,
    g: Tensor,
    /// `[direction, d_vocab]`
    u: &'b Tensor,
    rows: Tensor,
    directions: Tensor,
    /// `[direction, row]`
    change: Tensor,
    cross: Tensor,
    u_target: Tensor,
}

/// What the GPU works on.
#[derive(Debug)]
pub(crate) struct Started {
    measures: Tensor,
    left: Tensor,
}

impl CudaSums {
    /// `memory` is in bytes.
    ///
    /// # Errors
    /// - if CUDA's compiler is not there or refuses
    pub(crate) fn new(
        pairs: &Pairs,
        scale: NormScale,
        device: Device,
        memory: usize,
    ) -> Result<Self, TchError> {
        let Device::Cuda(gpu) = device else {
            return Err(TchError::Torch(format!("{device:?} is no CUDA device")));
        };
        let there = |t: Tensor| t.f_to_device(device);
        let (log_q, n_bases) = (pairs.log_q(), pairs.n_bases());
        let mut lambda = vec![0.0; log_q.len()];
        let (mut cells, mut on_gpu) = (Vec::new(), Vec::new());
        for (index, cell) in pairs.layout().cells().iter().enumerate() {
            let range = cell.range();
            let of_cell = &log_q[range.clone()];
            let centre = of_cell.iter().sum::<f64>() / of_cell.len() as f64;
            let mut lambda_max = 0.0f64;
            for (lambda, log_q) in lambda[range.clone()].iter_mut().zip(of_cell) {
                *lambda = (log_q - centre) as f32;
                lambda_max = lambda_max.max((log_q - centre).abs());
            }
            let sites = pairs.sites();
            let tilts: Vec<usize> = (0..sites.len())
                .filter(|&tilt| sites[tilt].cells[index])
                .collect();
            let source = sums_source(n_bases, tilts.len());
            on_gpu.push(CellOnGpu {
                strips: there(strips(&range)?)?,
                range,
                sums: driver::function(gpu, &source, "sums")?,
                tile_directions: tile_directions(n_bases + tilts.len()),
            });
            cells.push(Cell {
                tilts,
                centre,
                lambda_max,
            });
        }
        let measures = Source {
            text: include_str!("measures.cu"),
            defines: Vec::new(),
        };
        let vocabulary = tables::vocabulary(pairs, &cells, [scale.d_model, scale.eps]);
        let layout = tables::layout(pairs, &cells);
        Ok(Self {
            device,
            n_variants: pairs.variants().len(),
            n_bases,
            n_axes: pairs.axes().len(),
            n_bands: pairs.bands().len(),
            n_measures: pairs.measures().len(),
            cells,
            on_gpu,
            lambda: there(Tensor::f_from_slice(&lambda)?)?,
            moves: driver::function(gpu, &measures, "moves")?,
            measures: driver::function(gpu, &measures, "measures")?,
            ranks: driver::function(gpu, &sums_source(1, 0), "ranks")?,
            strips: there(strips(&(0..log_q.len()))?)?,
            vocabulary: there(Tensor::f_from_slice(&vocabulary)?)?,
            layout: there(Tensor::f_from_slice(&layout)?)?,
            landing: RefCell::new(None),
            memory,
        })
    }

    /// Factors of a pair: two of each base, one of each tilt.
    fn factors(&self) -> i64 {
        (self.n_bases + self.n_variants) as i64
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
            for cell in &self.on_gpu {
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
        let rows = CudaRows {
            levels: Levels {
                level,
                above: on_host(&bits.f_amax([1i64].as_slice(), false)?)?,
                g_max: largest_magnitude(g)?,
            },
            l: bits,
        };
        let zeros = Tensor::f_zeros([1, d_vocab], (Kind::Float, self.device))?;
        let none = Tensor::f_zeros([self.factors(), 1, n_rows], (Kind::Float, self.device))?;
        let mut clean = Vec::new();
        for cell in 0..self.cells.len() {
            let sums = self.sums_of_cell(cell, &rows.l, g, &zeros, &none)?; // [reading, 3, 1, row]
            clean.push(on_host(&sums.f_get(0)?)?);
        }
        let n_rows = n_rows as usize;
        let sums = (0..n_rows)
            .map(|row| {
                let of_cell = |(index, cell): (usize, &Cell)| {
                    let sum = |s: usize| clean[index][s * n_rows + row];
                    let shift = rows.levels.level[row * self.cells.len() + index];
                    Sums {
                        shift,
                        s0: sum(0),
                        s1: LN_2 * sum(1) + shift * sum(0),
                        s2: sum(2) + cell.centre * sum(0),
                    }
                };
                self.cells.iter().enumerate().map(of_cell).collect()
            })
            .collect();
        Ok((rows, sums))
    }

    /// Takes a block to the GPU; `g` is that of all rows, `u` is `[direction, d_vocab]`.
    pub(crate) fn block<'b>(
        &self,
        pairs: &Pairs,
        job: &Block<'_>,
        rows: &CudaRows,
        g: &Tensor,
        u: &'b Tensor,
    ) -> Result<CudaBlock<'b>, TchError> {
        let (start, n_rows, n_directions) = (
            job.at.start as i64,
            job.at.len() as i64,
            job.norm2.len() as i64,
        );
        let of_rows = |t: &Tensor| t.f_narrow(0, start, n_rows);
        let table = |values: &[f64], rows: i64| {
            Tensor::f_from_slice(values)?
                .f_view([rows, -1])?
                .f_to_device(self.device)
        };
        Ok(CudaBlock {
            l: of_rows(&rows.l)?,
            g: of_rows(g)?,
            u,
            rows: table(&tables::rows(pairs, job, &rows.levels), n_rows)?,
            directions: table(
                &tables::directions(job, &largest_magnitude(u)?),
                n_directions,
            )?,
            change: table(job.change, n_directions)?,
            cross: table(job.cross, n_directions)?,
            u_target: table(job.u_at, n_directions)?,
        })
    }

    /// Directions of a call: their sums fit the memory, and there are a few calls, so that the host has something to do meanwhile.
    pub(crate) fn directions_at_once(&self, n_rows: usize, n_directions: usize) -> usize {
        let strips = self
            .on_gpu
            .iter()
            .map(|cell| cell.strips.size()[0] as usize);
        let strips = strips.max().unwrap_or(1);
        let sums = self.n_variants * 3 * (4 * strips + 2 * 8 * self.cells.len());
        let per_pair = sums + 4 * self.n_variants * (self.n_measures + 2);
        let fit = self.memory / (per_pair * n_rows.max(1));
        let few = (PAIRS_PER_CALL / n_rows.max(1)).max(n_directions.div_ceil(CALLS));
        fit.min(few).max(1)
    }

    /// Starts on the measures of some directions of a block, and returns while the GPU works on them.
    pub(crate) fn start(
        &self,
        block: &CudaBlock<'_>,
        directions: Range<usize>,
    ) -> Result<Started, TchError> {
        let (first, n_directions) = (directions.start as i64, directions.len() as i64);
        let part = |t: &Tensor| t.f_narrow(0, first, n_directions);
        let n_rows = block.l.size()[0];
        let n_pairs = (n_directions * n_rows) as usize;
        let on = |kind| (kind, self.device);
        let factors = Tensor::f_empty([self.factors(), n_directions, n_rows], on(Kind::Float))?;
        let left = Tensor::f_empty([n_directions, n_rows], on(Kind::Uint8))?;
        let (of_directions, change, cross, u_target) = (
            part(&block.directions)?,
            part(&block.change)?,
            part(&block.cross)?,
            part(&block.u_target)?,
        );
        let tables = [
            Argument::Tensor(&block.rows),
            Argument::Tensor(&of_directions),
            Argument::Tensor(&self.vocabulary),
            Argument::Tensor(&self.layout),
            Argument::Tensor(&change),
            Argument::Tensor(&cross),
        ];
        let sizes = [
            n_rows as usize,
            n_directions as usize,
            self.cells.len(),
            self.n_variants,
            self.n_bases,
            self.n_axes,
            self.n_bands,
        ]
        .map(Argument::Int);
        let grid = [n_pairs.div_ceil(THREADS), 1, 1];
        let outputs = [Argument::Tensor(&factors), Argument::Tensor(&left)];
        #[expect(unsafe_code, reason = "a function on the GPU")]
        // SAFETY: these are the arguments of `moves` on this GPU, with a thread for each pair, of which it lets those past the end go;
        // `tables` has made the tables as it reads them.
        unsafe {
            let arguments = [&tables[..], &outputs[..], &sizes[..]].concat();
            self.moves.launch(grid, THREADS, &arguments)?;
        }
        let u = part(block.u)?;
        let mut sums = Vec::new();
        for cell in 0..self.cells.len() {
            let of_cell = self.sums_of_cell(cell, &block.l, &block.g, &u, &factors)?;
            sums.push(of_cell.f_view([-1, n_pairs as i64])?);
        }
        let sums = Tensor::f_cat(&sums, 0)?;
        let values = [
            n_directions,
            n_rows,
            (self.n_variants * self.n_measures) as i64,
        ];
        let measures = Tensor::f_empty(values, on(Kind::Float))?;
        let outputs = [&u_target, &sums, &measures].map(Argument::Tensor);
        #[expect(unsafe_code, reason = "a function on the GPU")]
        // SAFETY: as for `moves`, with the sums of each cell where the layout has them.
        unsafe {
            let arguments = [&tables[..], &outputs[..], &sizes[..]].concat();
            self.measures.launch(grid, THREADS, &arguments)?;
        }
        Ok(Started { measures, left })
    }

    /// Waits for measures: `use_them` gets the changes of the clean ones, `[direction][row][variant][measure]`, and whether a pair is
    /// left to others, `[direction][row]`.
    pub(crate) fn finish<T>(
        &self,
        started: &Started,
        while_used: impl FnOnce() -> Result<T, TchError>,
        use_them: impl FnOnce(&[f32], &[u8]),
    ) -> Result<T, TchError> {
        let left = started.left.f_to_device(Device::Cpu)?.f_view(-1)?;
        let left = Vec::<u8>::try_from(&left)?;
        let len = started.measures.numel();
        let mut landing = self.landing.borrow_mut();
        let room = match landing.take() {
            Some(room) if room.numel() >= len => room,
            _ => Tensor::f_empty([len as i64], (Kind::Float, Device::Cpu))?,
        };
        let mut here = room.f_narrow(0, 0, len as i64)?;
        here.f_copy_(&started.measures.f_view(-1)?)?;
        let meanwhile = while_used()?;
        #[expect(unsafe_code, reason = "a view of a tensor's memory")]
        // SAFETY: `here` is f32, contiguous and on the CPU, has `len` values, and nothing writes to it until the next call.
        let values =
            unsafe { std::slice::from_raw_parts(here.data_ptr().cast::<f32>().cast_const(), len) };
        use_them(values, &left);
        *landing = Some(room);
        Ok(meanwhile)
    }

    /// `[reading, 3, direction, row]`, f64, from `[row, d_vocab]` (`l` in bits), `[direction, d_vocab]` and
    /// `[2 * bases + tilts, direction, row]`.
    fn sums_of_cell(
        &self,
        cell: usize,
        l: &Tensor,
        g: &Tensor,
        u: &Tensor,
        factors: &Tensor,
    ) -> Result<Tensor, TchError> {
        let (on_gpu, cell) = (&self.on_gpu[cell], &self.cells[cell]);
        let (n_rows, d_vocab) = l.size2()?;
        let n_directions = u.size()[0];
        let bases = 2 * self.n_bases;
        let wanted = (0..bases).chain(cell.tilts.iter().map(|tilt| bases + tilt));
        let wanted: Vec<i64> = wanted.map(|kind| kind as i64).collect();
        let factors = match wanted.len() as i64 == factors.size()[0] {
            true => factors.shallow_clone(),
            false => {
                let wanted = Tensor::f_from_slice(&wanted)?.f_to_device(self.device)?;
                factors.f_index_select(0, &wanted)?
            }
        };
        let readings = (self.n_bases + cell.tilts.len()) as i64;
        let n_strips = on_gpu.strips.size()[0];
        let shape = [n_strips, readings, 3, n_directions, n_rows];
        let out = Tensor::f_empty(shape, (Kind::Float, self.device))?;
        let tensors = [l, g, u, &self.lambda, &factors, &on_gpu.strips, &out].map(Argument::Tensor);
        let sizes = [n_rows, n_directions, d_vocab].map(|size| Argument::Int(size as usize));
        let grid = [
            (n_directions as usize).div_ceil(on_gpu.tile_directions),
            blocks_of_rows((n_rows as usize).div_ceil(TILE_ROWS))?,
            n_strips as usize,
        ];
        #[expect(unsafe_code, reason = "a function on the GPU")]
        // SAFETY: these are the arguments of `sums`, with the shapes that it documents, all made on this GPU; its blocks cover
        // rows and directions, and it checks the edges.
        unsafe {
            let arguments = [&tensors[..], &sizes[..]].concat();
            on_gpu.sums.launch(grid, THREADS, &arguments)?;
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
        let tensors = [l, g, u, &places, &factors, &self.strips, &out].map(Argument::Tensor);
        let sizes = [n_rows, n_directions, d_vocab].map(|size| Argument::Int(size as usize));
        let grid = [
            (n_directions as usize).div_ceil(RANKED_DIRECTIONS),
            blocks_of_rows(n_rows as usize)?,
            n_strips as usize,
        ];
        #[expect(unsafe_code, reason = "a function on the GPU")]
        // SAFETY: as for the sums; places are within the vocabulary.
        unsafe {
            let arguments = [&tensors[..], &sizes[..]].concat();
            self.ranks.launch(grid, THREADS, &arguments)?;
        }
        let ranks = out.f_sum_dim_intlist(0, false, Kind::Int64)?;
        let ranks = Vec::<i64>::try_from(&ranks.f_to_device(Device::Cpu)?.f_view(-1)?)?;
        Ok(ranks.into_iter().map(|rank| rank as u32).collect())
    }
}

/// The largest `|x|` of each vector of a tensor `[vector, d_vocab]`.
fn largest_magnitude(vectors: &Tensor) -> Result<Vec<f64>, TchError> {
    let (least, most) = (
        on_host(&vectors.f_amin([1i64].as_slice(), false)?)?,
        on_host(&vectors.f_amax([1i64].as_slice(), false)?)?,
    );
    let largest = |(least, most): (f64, f64)| least.abs().max(most.abs());
    Ok(least.into_iter().zip(most).map(largest).collect())
}

fn sums_source(bases: usize, tilts: usize) -> Source {
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
