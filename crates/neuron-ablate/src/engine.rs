//! How the sums over the vocabulary are computed: exactly, or by moments where their bound allows it.

use std::{cell::OnceCell, ops::Range, sync::Mutex, time::Instant};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, TchError, Tensor};
use vocabulary_sums::{self as kernel, Base, Direction, Kernel, RowVectors, Sums, Vector};

use crate::{
    closed_form::Projected,
    cuda::{CudaRows, CudaSums, Started},
    pairs::{Block, Pairs, Scratch},
    progress::Tick,
    readout::NormScale,
    row_logits::RowLogits,
    series::{RowCell, Series, SeriesBlock, SeriesRows, Spread},
    tensor_sums::{self, PairList, TensorSums},
    vectors::Vectors,
};

/// Which sums over the vocabulary stand behind a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Engine {
    /// Every exponential of every pair.
    Exact,
    /// Moments of second order for every pair, however large their bound.
    Moments,
    /// Moments where their bound is within the tolerance and they are likely to be faster (never on a GPU with its kernel), exact sums
    /// elsewhere.
    #[default]
    Auto,
}

/// What computes the exact sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ExactSums {
    /// The fused kernel of the model's device, on the CPU or on a GPU; tensor operations where a GPU's cannot be compiled.
    #[default]
    Auto,
    /// The fused kernel of the crate `vocabulary-sums`, on the CPU.
    Kernel,
    /// Tensor operations of libtorch in f32, on the model's device.
    Tensor,
    /// The same in f64: slow, and what the others are measured against.
    TensorF64,
}

/// The engine of a sweep and its settings.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct EngineOptions {
    /// Which sums.
    pub engine: Engine,
    /// Largest bound, in nats, on the error of any measure of a pair that [`Engine::Auto`] leaves to the moments.
    pub tolerance: f64,
    /// What computes the exact ones.
    pub exact: ExactSums,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            engine: Engine::Auto,
            tolerance: 1e-6,
            exact: ExactSums::Auto,
        }
    }
}

impl EngineOptions {
    /// With another [`engine`](Self::engine).
    #[must_use]
    pub fn with_engine(self, engine: Engine) -> Self {
        Self { engine, ..self }
    }

    /// With another [`tolerance`](Self::tolerance).
    #[must_use]
    pub fn with_tolerance(self, tolerance: f64) -> Self {
        Self { tolerance, ..self }
    }

    /// With another [`exact`](Self::exact).
    #[must_use]
    pub fn with_exact(self, exact: ExactSums) -> Self {
        Self { exact, ..self }
    }

    /// Where the closed form is computed, for a model on `device`.
    pub(crate) fn device(&self, device: Device) -> Device {
        match self.exact {
            ExactSums::Kernel => Device::Cpu,
            ExactSums::Auto | ExactSums::Tensor | ExactSums::TensorF64 => device,
        }
    }
}

/// Which engine measured how many pairs.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct EngineReport {
    /// (neuron, row) pairs with exact sums.
    pub exact_pairs: usize,
    /// Pairs measured by moments.
    pub moment_pairs: usize,
    /// The largest bound, in nats, on the error of any measure of those.
    pub largest_bound: f64,
}

/// What was measured of a block.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    /// `[direction][row][variant][measure]`
    pub(crate) values: Vec<f64>,
    /// Largest possible error of any value of a pair measured by moments, `[direction][row]`; 0 for exact sums.
    pub(crate) bounds: Vec<f64>,
}

/// A pair whose measures are not finite: places in the block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NotFinite {
    pub(crate) direction: usize,
    pub(crate) row: usize,
}

/// Directions and rows that the kernel sees at once: tiles of these fit the second-level cache. Where only some pairs are left for it, up
/// to the most, so that a few still share each row and direction.
const DIRECTIONS_PER_CALL: usize = 64;
const ROWS_PER_CALL: usize = 16;
const MOST_DIRECTIONS: usize = 512;
const MOST_ROWS: usize = 32;
/// Sums of vectors that the kernel makes at once: over a tile they fit the second-level cache.
const SUMS_PER_CALL: usize = 64;
/// Rows whose sums of the same vectors the kernel makes together.
const SIDE_BY_SIDE: usize = 8;
/// Fewest directions, even if there are not enough calls for all threads.
pub(crate) const FEWEST_DIRECTIONS: usize = 4;
/// Calls for each thread, if there are directions enough: so that none waits long for the last.
const CALLS_PER_THREAD: usize = 4;

/// What a pair costs, in multiply-adds for each token: by the kernel for each base, tilts included, and by moments. Fitted to the times
/// in docs/performance.md.
const KERNEL_COST: f64 = 9.5;
const MOMENTS_COST: f64 = 3.0;
/// What moments need once for each row, times `d_model`.
const MOMENTS_ROW_COST: f64 = 6.5;

/// What directions are made of.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Directions {
    /// Vectors as they are.
    Vectors,
    /// Sums of vectors.
    Sums,
}

/// What computes sums for a sweep.
#[derive(Debug)]
pub(crate) struct Engines {
    options: EngineOptions,
    exact: Exact,
    series: Option<Series>,
    /// How many directions are measured at each row.
    n_directions: usize,
    report: Mutex<EngineReport>,
    /// What earlier blocks left, to be used again: fresh memory costs as much as what is written to it.
    spare: Mutex<Option<Measured>>,
}

#[derive(Debug)]
enum Exact {
    Kernel(Kernel),
    /// The kernel on a GPU, and what takes the pairs that it does not hold.
    Cuda(CudaSums, TensorSums),
    Tensor(TensorSums),
}

/// Rows made ready for the engines.
pub(crate) struct Prepared<'l> {
    series: Option<&'l Series>,
    logits: &'l RowLogits,
    /// For the kernel.
    vectors: Vec<RowVectors<'l>>,
    /// For the kernel on a GPU.
    on_gpu: Option<CudaRows>,
    /// Sums of the clean logits, `[row][cell]`.
    sums: Vec<Vec<Sums>>,
    /// For the moments, made when first needed.
    moments: OnceCell<SeriesRows<'l>>,
}

impl<'l> Prepared<'l> {
    /// Sums of the clean logits, `[row][cell]`.
    pub(crate) fn sums(&self) -> &[Vec<Sums>] {
        &self.sums
    }

    fn moments(&self, series: &'l Series) -> Result<&SeriesRows<'l>, TchError> {
        if let Some(rows) = self.moments.get() {
            return Ok(rows);
        }
        let rows = series.rows(self.logits, &self.sums)?;
        Ok(self.moments.get_or_init(|| rows))
    }
}

impl Engines {
    /// `w_u` is the centred `W_U` in the order of the layout, on the device that computes, `scale` that of the final norm; `n_directions` is how many will be measured
    /// at each row, and `directions` what they are made of; `memory` is what a chunk of exact sums in tensor operations may take, in bytes.
    pub(crate) fn new(
        pairs: &Pairs,
        (w_u, scale): (&Tensor, NormScale),
        options: EngineOptions,
        (n_directions, directions): (usize, Directions),
        memory: usize,
    ) -> Result<Self, TchError> {
        let device = w_u.device();
        let tensor = |kind| {
            let (layout, sites) = (pairs.layout(), pairs.sites().to_vec());
            TensorSums::new(layout, pairs.log_q(), sites, (device, kind), memory)
        };
        let exact = match options.exact {
            ExactSums::Auto if device.is_cuda() => {
                match CudaSums::new(pairs, scale, device, memory) {
                    Ok(cuda) => Exact::Cuda(cuda, tensor(Kind::Float)?),
                    Err(err) => {
                        tracing::warn!(
                            "tensor operations take the place of the GPU's kernel: {err}"
                        );
                        Exact::Tensor(tensor(Kind::Float)?)
                    }
                }
            }
            ExactSums::Auto if device != Device::Cpu => Exact::Tensor(tensor(Kind::Float)?),
            ExactSums::Auto | ExactSums::Kernel => Exact::Kernel(match directions {
                Directions::Vectors => Kernel::new(pairs.layout(), pairs.log_q()),
                Directions::Sums => Kernel::for_sums(pairs.layout(), pairs.log_q()),
            }),
            ExactSums::Tensor => Exact::Tensor(tensor(Kind::Float)?),
            ExactSums::TensorF64 => Exact::Tensor(tensor(Kind::Double)?),
        };
        let path = match &exact {
            Exact::Kernel(kernel) => Some(kernel.path()),
            Exact::Cuda(..) | Exact::Tensor(_) => None,
        };
        let can_pay = match (options.engine, &exact) {
            (Engine::Exact, _) | (Engine::Auto, Exact::Cuda(..)) => false,
            (Engine::Auto, Exact::Kernel(_)) => {
                let of_row = MOMENTS_ROW_COST * w_u.size()[1] as f64 / n_directions as f64;
                MOMENTS_COST + of_row < KERNEL_COST * pairs.n_bases() as f64
            }
            (Engine::Moments, _) | (Engine::Auto, Exact::Tensor(_)) => true,
        };
        let series = match can_pay {
            true => Some(Series::new(pairs.series_cells(), pairs.log_q(), w_u, path)?),
            false => None,
        };
        Ok(Self {
            options,
            exact,
            series,
            n_directions,
            report: Mutex::default(),
            spare: Mutex::default(),
        })
    }

    /// Vectors over the vocabulary that a row takes in memory.
    pub(crate) fn vectors_per_row(&self) -> usize {
        let exact = match self.exact {
            Exact::Kernel(_) => 4, // l, g, l in bits, exponentials
            Exact::Cuda(..) => 3,  // l, g, l in bits
            Exact::Tensor(_) => 2, // l, g
        };
        // Weights of the squares, and what is in the making.
        exact + if self.series.is_some() { 4 } else { 0 }
    }

    /// What was computed so far.
    pub(crate) fn report(&self) -> EngineReport {
        self.report.lock().map_or_else(|e| *e.into_inner(), |r| *r)
    }

    /// Makes rows ready, with the exact sums of their clean logits.
    pub(crate) fn prepare<'l>(&'l self, logits: &'l RowLogits) -> Result<Prepared<'l>, TchError> {
        let (n_rows, d_vocab) = logits.l.tensor().size2()?;
        let mut on_gpu = None;
        let (vectors, sums) = match &self.exact {
            Exact::Cuda(cuda, _) => {
                let (rows, sums) = cuda.rows(logits)?;
                on_gpu = Some(rows);
                (Vec::new(), sums)
            }
            Exact::Kernel(kernel) => {
                let d_vocab = d_vocab as usize;
                let rows = logits.l.host()?.par_chunks(d_vocab);
                let rows = rows.zip(logits.g.host()?.par_chunks(d_vocab));
                let ready = |(l, g): (&'l [f32], &'l [f32])| {
                    let row = kernel.row(l, g);
                    let sums = kernel.clean(&row);
                    (row, sums)
                };
                rows.map(ready).unzip()
            }
            Exact::Tensor(tensor) => {
                let pairs: Vec<(usize, usize)> = (0..n_rows as usize).map(|r| (r, 0)).collect();
                let list = PairList {
                    pairs: &pairs,
                    bases: &vec![Base::default(); pairs.len()],
                    tilts: &[],
                };
                let l = logits.l.tensor();
                let zero = l.f_narrow(0, 0, 1)?.f_zeros_like()?;
                let zeros = zero.f_expand([n_rows, d_vocab], false)?;
                let sums = tensor.sums(l, &zeros, &zero, list)?;
                let n_cells = sums.len() / pairs.len();
                let of_row = sums.chunks(n_cells).map(<[Sums]>::to_vec);
                (Vec::new(), of_row.collect())
            }
        };
        Ok(Prepared {
            series: self.series.as_ref(),
            logits,
            vectors,
            on_gpu,
            sums,
            moments: OnceCell::new(),
        })
    }

    /// Norms of directions, which tell what the moments can do; nothing where that is not asked.
    pub(crate) fn spreads(&self, u: &Vectors) -> Result<Vec<Spread>, TchError> {
        match (&self.series, self.options.engine, &self.exact) {
            (Some(series), Engine::Auto, Exact::Kernel(_)) => series.spreads(u),
            _ => Ok(Vec::new()),
        }
    }

    /// The directions of a block that moments shall try, by their places: those where they are probably cheaper, if these are enough to
    /// share what the moments need once for each row.
    ///
    /// A wrong guess costs time, never accuracy: the bound of each pair decides.
    fn for_moments(
        &self,
        series: &Series,
        pairs: &Pairs,
        job: &Block<'_>,
        prepared: &Prepared<'_>,
    ) -> Vec<usize> {
        let n_directions = job.norm2.len();
        if job.spreads.is_empty() {
            return (0..n_directions).collect();
        }
        let (kernel, tolerance) = (KERNEL_COST * pairs.n_bases() as f64, self.options.tolerance);
        let saved = |place: usize| {
            let error = |row: &usize| job.spreads[place].error(pairs.total(job, *row, place).c);
            let within = |row: &usize| error(row) <= tolerance;
            let within = (0..job.at.len()).filter(within).count();
            within as f64 * kernel - job.at.len() as f64 * MOMENTS_COST
        };
        let saved = (0..n_directions)
            .into_par_iter()
            .map(|place| (place, saved(place)));
        let tried: Vec<(usize, f64)> = saved.filter(|(_, saved)| *saved > 0.0).collect();
        let all: f64 = tried.iter().map(|(_, saved)| saved).sum();
        // Other blocks are expected to save as much.
        let blocks = self.n_directions as f64 / n_directions as f64;
        let of_rows = job.at.len() as f64 * MOMENTS_ROW_COST * series.d_model() as f64;
        if prepared.moments.get().is_none() && all * blocks <= of_rows {
            return Vec::new();
        }
        tried.into_iter().map(|(place, _)| place).collect()
    }

    /// Measures a block, whose `u` is that of `directions`.
    ///
    /// # Errors
    /// - the outer one if libtorch fails, the inner one at the first measure that is not a finite number
    pub(crate) fn measure(
        &self,
        pairs: &Pairs,
        job: &Block<'_>,
        prepared: &Prepared<'_>,
        directions: &Projected,
        progress: &(dyn Fn(Tick) + Sync),
    ) -> Result<Result<Measured, NotFinite>, TchError> {
        let per_pair = pairs.per_pair();
        let (n_rows, n_directions) = (job.at.len(), job.norm2.len());
        let Measured {
            values: mut measured,
            mut bounds,
        } = self.room(n_directions * n_rows, per_pair);
        let mut left: Vec<Vec<usize>> = vec![(0..n_rows).collect(); n_directions];
        if let Some(series) = prepared.series {
            let tried = self.for_moments(series, pairs, job, prepared);
            if !tried.is_empty() {
                let rows = prepared.moments(series)?;
                let block = rows.block(directions, job.u_dots, &tried)?;
                let out = (&mut measured[..], &mut bounds[..]);
                left = self.by_moments(pairs, job, rows.terms(), (&block, &tried), out, progress);
            }
        }
        let exact: usize = left.iter().map(Vec::len).sum();
        if let Ok(mut report) = self.report.lock() {
            report.exact_pairs += exact;
            report.moment_pairs += n_directions * n_rows - exact;
        }
        if let (Exact::Cuda(cuda, _), Some(rows), true) = (&self.exact, &prepared.on_gpu, exact > 0)
        {
            let out = (&mut measured[..], progress);
            left = by_cuda(cuda, pairs, job, (prepared, rows), directions, out)?;
        }
        match &self.exact {
            _ if exact == 0 => {}
            Exact::Kernel(kernel) => {
                let rows = &prepared.vectors;
                let u = directions.logits.host()?;
                by_kernel(kernel, pairs, job, rows, u, &left, &mut measured, progress);
            }
            // On a GPU what its kernel does not hold.
            Exact::Cuda(_, tensor) | Exact::Tensor(tensor) => by_tensor(
                tensor,
                pairs,
                job,
                prepared,
                directions,
                &left,
                &mut measured,
                progress,
            )?,
        }
        Ok(
            match measured.par_iter().position_first(|v| !v.is_finite()) {
                None => Ok(Measured {
                    values: measured,
                    bounds,
                }),
                Some(i) => Err(NotFinite {
                    direction: i / (n_rows * per_pair),
                    row: i / per_pair % n_rows,
                }),
            },
        )
    }

    /// The fused kernel on the CPU, if it computes the exact sums.
    pub(crate) fn kernel(&self) -> Option<&Kernel> {
        match &self.exact {
            Exact::Kernel(kernel) => Some(kernel),
            Exact::Cuda(..) | Exact::Tensor(_) => None,
        }
    }

    /// Measures directions that each row has of its own, `[row]`: jobs of one row each, whose `u` are those of `directions`, one job
    /// after the other.
    ///
    /// # Errors
    /// - as [`Engines::measure`]
    pub(crate) fn measure_each(
        &self,
        pairs: &Pairs,
        jobs: &[Block<'_>],
        prepared: &Prepared<'_>,
        directions: &Projected,
        progress: &(dyn Fn(Tick) + Sync),
    ) -> Result<Vec<Result<Vec<f64>, NotFinite>>, TchError> {
        let ends = jobs.iter().scan(0, |end, job| {
            *end += job.norm2.len();
            Some(*end)
        });
        let ranges = ends.zip(jobs).map(|(end, job)| end - job.norm2.len()..end);
        if let Exact::Kernel(kernel) = &self.exact {
            let d_vocab = pairs.layout().d_vocab();
            let u = directions.logits.host()?.par_chunks(d_vocab);
            let vectors: Vec<_> = u.map(|u| kernel.vector(u)).collect();
            let of_jobs: Vec<Vec<_>> = ranges
                .map(|range| range.map(Direction::Vector).collect())
                .collect();
            return Ok(self.measure_sums(pairs, jobs, prepared, &vectors, &of_jobs, progress));
        }
        let mut all = Vec::with_capacity(jobs.len());
        for (range, job) in ranges.zip(jobs) {
            let of_job = directions.part(range)?;
            let measured = self.measure(pairs, job, prepared, &of_job, progress)?;
            all.push(measured.map(|measured| measured.values));
        }
        Ok(all)
    }

    /// The same for directions that the kernel makes of vectors, `[job][direction]`.
    pub(crate) fn measure_sums(
        &self,
        pairs: &Pairs,
        jobs: &[Block<'_>],
        prepared: &Prepared<'_>,
        vectors: &[Vector<'_>],
        directions: &[Vec<Direction<'_>>],
        progress: &(dyn Fn(Tick) + Sync),
    ) -> Vec<Result<Vec<f64>, NotFinite>> {
        let Exact::Kernel(kernel) = &self.exact else {
            return Vec::new();
        };
        let (all_rows, per_pair) = (&prepared.vectors, pairs.per_pair());
        let most = directions.iter().map(Vec::len).max().unwrap_or(0).max(1);
        let at_once = match (SUMS_PER_CALL / most).clamp(1, ROWS_PER_CALL) {
            // Whole groups of those that are added up side by side.
            many @ SIDE_BY_SIDE.. => many / SIDE_BY_SIDE * SIDE_BY_SIDE,
            few => few,
        };
        let of_group = |(jobs, directions): (&[Block<'_>], &[Vec<Direction<'_>>])| {
            let mut list = Vec::new();
            for (job, directions) in jobs.iter().zip(directions) {
                list.extend(
                    directions
                        .iter()
                        .enumerate()
                        .map(|(n, &direction)| ListPair {
                            job,
                            row: 0,
                            n,
                            direction,
                        }),
                );
            }
            let values = measure_list(kernel, pairs, all_rows, vectors, &list);
            progress(Tick::Pairs(list.len()));
            let mut rest = values.as_slice();
            let mut all = Vec::with_capacity(jobs.len());
            for directions in directions {
                let (of_job, later) = rest.split_at(directions.len() * per_pair);
                rest = later;
                all.push(match of_job.iter().position(|value| !value.is_finite()) {
                    None => Ok(of_job.to_vec()),
                    Some(i) => Err(NotFinite {
                        direction: i / per_pair,
                        row: 0,
                    }),
                });
            }
            all
        };
        let groups = jobs.par_chunks(at_once).zip(directions.par_chunks(at_once));
        groups.flat_map_iter(of_group).collect()
    }

    /// Room for a block of pairs; whatever is in its values is written over.
    fn room(&self, n_pairs: usize, per_pair: usize) -> Measured {
        let spare = self.spare.lock().ok().and_then(|mut spare| spare.take());
        let Measured {
            mut values,
            mut bounds,
        } = spare.unwrap_or_default();
        values.resize(n_pairs * per_pair, 0.0);
        bounds.clear();
        bounds.resize(n_pairs, 0.0);
        Measured { values, bounds }
    }

    /// Takes back what a block was measured in.
    pub(crate) fn recycle(&self, measured: Measured) {
        if let Ok(mut spare) = self.spare.lock() {
            *spare = Some(measured);
        }
    }

    /// Measures what the moments may of the directions that are tried, by their places; returns the rows that are left,
    /// `[direction]`.
    fn by_moments(
        &self,
        pairs: &Pairs,
        job: &Block<'_>,
        rows: &[Vec<RowCell>],
        (block, tried): (&SeriesBlock, &[usize]),
        (measured, bounds): (&mut [f64], &mut [f64]),
        progress: &(dyn Fn(Tick) + Sync),
    ) -> Vec<Vec<usize>> {
        let per_pair = pairs.per_pair();
        let n_rows = job.at.len();
        let limit = match self.options.engine {
            Engine::Moments => f64::INFINITY,
            Engine::Exact | Engine::Auto => self.options.tolerance,
        };
        let left = measured
            .par_chunks_mut(n_rows * per_pair)
            .zip(bounds.par_chunks_mut(n_rows))
            .enumerate()
            .map(|(direction, (out, bounds))| {
                let Ok(in_block) = tried.binary_search(&direction) else {
                    return (0..n_rows).collect();
                };
                let mut left = Vec::new();
                let mut scratch = Scratch::default();
                for (row, out) in out.chunks_mut(per_pair).enumerate() {
                    pairs.shifts(job, row, direction, &mut scratch.shifts);
                    let at = job.at.start + row;
                    let bound = pairs.moved(job, rows, block, at, in_block, &mut scratch);
                    // Written so that a bound that is not a number fails.
                    if bound <= limit {
                        pairs.measure_pair(job, row, direction, &mut scratch, out);
                        bounds[row] = bound;
                    } else {
                        left.push(row);
                    }
                }
                progress(Tick::Pairs(n_rows - left.len()));
                left
            })
            .collect();
        if let Ok(mut report) = self.report.lock() {
            let largest = bounds.iter().fold(report.largest_bound, |m, b| m.max(*b));
            report.largest_bound = largest;
        }
        left
    }
}

impl Engines {
    /// Ranks of the targets under the total effect, `[direction][row]`, counted from 0; clean ones without directions, `[row]`.
    pub(crate) fn ranks(
        &self,
        pairs: &Pairs,
        job: &Block<'_>,
        prepared: &Prepared<'_>,
        directions: Option<&Projected>,
        targets: &Tensor,
    ) -> Result<Vec<u32>, TchError> {
        let n_rows = job.at.len();
        let clean = directions.is_none();
        let base = |n: usize, row: usize| match clean {
            true => Base::default(),
            false => pairs.total(job, row, n),
        };
        let (l, g) = (&prepared.logits.l, &prepared.logits.g);
        let u = directions.map_or(g, |d| &d.logits);
        let n_directions = directions.map_or(1, |_| job.norm2.len());
        match &self.exact {
            Exact::Kernel(kernel) => {
                let d_vocab = pairs.layout().d_vocab();
                let places: Vec<i64> = Vec::try_from(targets)?;
                let rows = &prepared.vectors[job.at.clone()];
                let of_direction = |(n, u): (usize, &[f32])| {
                    let u = kernel.vector(u);
                    let rank = |(row, vectors): (usize, &RowVectors<'_>)| {
                        let place = places[job.at.start + row] as usize;
                        kernel.rank(vectors, &u, base(n, row), place) as u32
                    };
                    rows.iter().enumerate().map(rank).collect::<Vec<u32>>()
                };
                let u = &u.host()?[..n_directions * d_vocab];
                Ok(u.par_chunks(d_vocab)
                    .enumerate()
                    .flat_map_iter(of_direction)
                    .collect())
            }
            Exact::Cuda(cuda, _) => {
                let (start, len) = (job.at.start as i64, n_rows as i64);
                let at = |t: &Tensor| t.f_narrow(0, start, len);
                let (l, g, places) = (at(l.tensor())?, at(g.tensor())?, at(targets)?);
                let u = u.tensor().f_narrow(0, 0, n_directions as i64)?;
                let bases = (0..n_directions).flat_map(|n| (0..n_rows).map(move |row| (n, row)));
                let bases: Vec<Base> = bases.map(|(n, row)| base(n, row)).collect();
                cuda.ranks(&l, &g, &u, &bases, &places)
            }
            Exact::Tensor(_) => {
                let (start, len) = (job.at.start as i64, n_rows as i64);
                let at = |t: &Tensor| t.f_narrow(0, start, len);
                let (l, g, places) = (at(l.tensor())?, at(g.tensor())?, at(targets)?);
                let mut ranks = Vec::with_capacity(n_directions * n_rows);
                for n in 0..n_directions {
                    let bases: Vec<Base> = (0..n_rows).map(|row| base(n, row)).collect();
                    let u = u.tensor().f_narrow(0, n as i64, 1)?;
                    ranks.extend(tensor_sums::ranks(&l, &g, &u, &bases, &places)?);
                }
                Ok(ranks)
            }
        }
    }
}

/// Measures the rows of `left` (`[direction]`) by the fused kernel.
#[expect(
    clippy::too_many_arguments,
    reason = "the parts of one call, split for clarity"
)]
fn by_kernel(
    kernel: &Kernel,
    pairs: &Pairs,
    job: &Block<'_>,
    rows: &[RowVectors<'_>],
    u: &[f32],
    left: &[Vec<usize>],
    measured: &mut [f64],
    progress: &(dyn Fn(Tick) + Sync),
) {
    let (per_pair, n_rows, n_directions) = (pairs.per_pair(), job.at.len(), left.len());
    let d_vocab = pairs.layout().d_vocab();
    let pairs_left: usize = left.iter().map(Vec::len).sum();
    // Where only some pairs are left, calls reach further, so that these too share what belongs to a row or a direction.
    let stretch = ((n_directions * n_rows) as f64 / pairs_left as f64).sqrt();
    let reach = |usual: usize, most: usize| ((usual as f64 * stretch) as usize).min(most);
    let rows_at_once = reach(ROWS_PER_CALL, MOST_ROWS);
    let row_groups = n_rows.div_ceil(rows_at_once);
    let calls = rayon::current_num_threads() * CALLS_PER_THREAD;
    let directions_at_once = (n_directions * row_groups).div_ceil(calls).clamp(
        FEWEST_DIRECTIONS,
        reach(DIRECTIONS_PER_CALL, MOST_DIRECTIONS),
    );
    let vectors: Vec<_> = u.par_chunks(d_vocab).map(|u| kernel.vector(u)).collect();
    let calls: Vec<_> = blocks(n_directions, directions_at_once)
        .flat_map(|directions| {
            let of_rows = blocks(n_rows, rows_at_once);
            of_rows.map(move |rows| (directions.clone(), rows))
        })
        .collect();
    let call = |(directions, at_rows): (Range<usize>, Range<usize>)| {
        let mut list = Vec::new();
        for n in directions {
            let from = left[n].partition_point(|row| *row < at_rows.start);
            let within = left[n][from..].iter().take_while(|row| **row < at_rows.end);
            list.extend(within.map(|&row| (row, n)));
        }
        // Row by row, so that directions share what belongs to the row.
        list.sort_unstable();
        let of_list = list.iter().map(|&(row, n)| ListPair {
            job,
            row,
            n,
            direction: Direction::Vector(n),
        });
        let of_list: Vec<_> = of_list.collect();
        let values = measure_list(kernel, pairs, rows, &vectors, &of_list);
        progress(Tick::Pairs(list.len()));
        (list, values)
    };
    let done: Vec<_> = calls.into_par_iter().map(call).collect();
    for ((row, n), values) in done
        .iter()
        .flat_map(|(list, values)| list.iter().zip(values.chunks(per_pair)))
    {
        let at = (n * n_rows + row) * per_pair;
        measured[at..at + per_pair].copy_from_slice(values);
    }
}

/// A (row, direction) pair of a block, for the kernel.
struct ListPair<'d> {
    job: &'d Block<'d>,
    /// Among the rows of the block.
    row: usize,
    n: usize,
    direction: Direction<'d>,
}

/// Measures some pairs by the fused kernel, on this thread, `[pair][variant][measure]`; `rows` are those that all blocks are of.
fn measure_list(
    kernel: &Kernel,
    pairs: &Pairs,
    rows: &[RowVectors<'_>],
    vectors: &[Vector<'_>],
    list: &[ListPair<'_>],
) -> Vec<f64> {
    let (mut bases, mut tilts, mut scratch) = (Vec::new(), Vec::new(), Scratch::default());
    for &ListPair { job, row, n, .. } in list {
        pairs.shifts(job, row, n, &mut scratch.shifts);
        pairs.split(&scratch.shifts, &mut bases, &mut tilts);
    }
    let of_list = list
        .iter()
        .map(|pair| (pair.job.at.start + pair.row, pair.direction));
    let call = kernel::Pairs {
        rows,
        vectors,
        pairs: &of_list.collect::<Vec<_>>(),
        bases: &bases,
        tilts: &tilts,
    };
    let sums = kernel.sums(pairs.sites(), &call);
    let per_pair = pairs.per_pair();
    let mut values = vec![0.0; list.len() * per_pair];
    let of_pair = sums.len() / list.len().max(1);
    let each = list.iter().zip(values.chunks_mut(per_pair));
    for ((&ListPair { job, row, n, .. }, out), sums) in each.zip(sums.chunks(of_pair.max(1))) {
        pairs.measure_sums(job, row, n, sums, &mut scratch, out);
    }
    values
}

/// Measures a block by the kernel on a GPU; returns the rows that it does not hold, `[direction]`.
fn by_cuda(
    cuda: &CudaSums,
    pairs: &Pairs,
    job: &Block<'_>,
    (prepared, rows): (&Prepared<'_>, &CudaRows),
    directions: &Projected,
    (measured, progress): (&mut [f64], &(dyn Fn(Tick) + Sync)),
) -> Result<Vec<Vec<usize>>, TchError> {
    let begin = Instant::now();
    let (n_rows, n_directions) = (job.at.len(), job.norm2.len());
    let (n_measures, per_pair) = (pairs.measures().len(), pairs.per_pair());
    let (g, u) = (prepared.logits.g.tensor(), directions.logits.tensor());
    let block = cuda.block(pairs, job, rows, g, u)?;
    let clean = &job.rows.measures;
    let clean = &clean[job.at.start * n_measures..job.at.end * n_measures];
    let mut chunks = blocks(n_directions, cuda.directions_at_once(n_rows, n_directions));
    let mut start = || -> Result<Option<(Started, Range<usize>)>, TchError> {
        let chunk = chunks.next();
        let started = |chunk: Range<usize>| Ok((cuda.start(&block, chunk.clone())?, chunk));
        chunk.map(started).transpose()
    };
    let ready_in = begin.elapsed();
    let mut all_left = Vec::new();
    let mut next = start()?;
    while let Some((started, chunk)) = next {
        let out = &mut measured[chunk.start * n_rows * per_pair..chunk.end * n_rows * per_pair];
        // The GPU works on the next ones while these are put where they belong.
        next = cuda.finish(&started, &mut start, |changes, left| {
            let of_direction = |((out, changes), left): ((&mut [f64], &[f32]), &[u8])| {
                let of_rows = out.chunks_mut(per_pair).zip(changes.chunks(per_pair));
                for ((out, changes), clean) in of_rows.zip(clean.chunks(n_measures)) {
                    let of_variants = out.chunks_mut(n_measures).zip(changes.chunks(n_measures));
                    for (out, changes) in of_variants {
                        for ((out, &change), clean) in out.iter_mut().zip(changes).zip(clean) {
                            *out = clean + f64::from(change);
                        }
                    }
                }
                let left = left.iter().enumerate().filter(|(_, left)| **left != 0);
                let left: Vec<usize> = left.map(|(row, _)| row).collect();
                progress(Tick::Pairs(n_rows - left.len()));
                left
            };
            all_left.par_extend(
                out.par_chunks_mut(n_rows * per_pair)
                    .zip(changes.par_chunks(n_rows * per_pair))
                    .zip(left.par_chunks(n_rows))
                    .map(of_direction),
            );
        })?;
    }
    tracing::debug!(
        pairs = n_directions * n_rows,
        ?ready_in,
        all_in = ?begin.elapsed(),
        "a block on the GPU"
    );
    Ok(all_left)
}

/// Measures the rows of `left` (`[direction]`) in tensor operations.
#[expect(
    clippy::too_many_arguments,
    reason = "the parts of one call, split for clarity"
)]
fn by_tensor(
    tensor: &TensorSums,
    pairs: &Pairs,
    job: &Block<'_>,
    prepared: &Prepared<'_>,
    directions: &Projected,
    left: &[Vec<usize>],
    measured: &mut [f64],
    progress: &(dyn Fn(Tick) + Sync),
) -> Result<(), TchError> {
    let (per_pair, n_rows) = (pairs.per_pair(), job.at.len());
    let start = job.at.start;
    for (n, at_rows) in left.iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
        let (mut bases, mut tilts) = (Vec::new(), Vec::new());
        let mut scratch = Scratch::default();
        for &row in at_rows {
            pairs.shifts(job, row, n, &mut scratch.shifts);
            pairs.split(&scratch.shifts, &mut bases, &mut tilts);
        }
        let list: Vec<(usize, usize)> = at_rows.iter().map(|&row| (start + row, n)).collect();
        let sums = tensor.sums(
            prepared.logits.l.tensor(),
            prepared.logits.g.tensor(),
            directions.logits.tensor(),
            PairList {
                pairs: &list,
                bases: &bases,
                tilts: &tilts,
            },
        )?;
        let of_pair = sums.len() / at_rows.len();
        for (&row, sums) in at_rows.iter().zip(sums.chunks(of_pair)) {
            let at = (n * n_rows + row) * per_pair;
            let out = &mut measured[at..at + per_pair];
            pairs.measure_sums(job, row, n, sums, &mut scratch, out);
        }
        progress(Tick::Pairs(at_rows.len()));
    }
    Ok(())
}

/// `0..len` in ranges of at most `size`.
pub(crate) fn blocks(len: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len)
        .step_by(size)
        .map(move |start| start..(start + size).min(len))
}
