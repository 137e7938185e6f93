//! How the sums over the vocabulary are computed: exactly, or by moments where their bound allows it.

use std::{cell::OnceCell, sync::Mutex};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, TchError, Tensor};

use crate::{
    closed_form::Projected,
    kernel::{self, Base, Kernel, RowVectors, Sums},
    pairs::{Block, Pairs, RowLogits, Scratch},
    series::{RowCell, Series, SeriesBlock, SeriesRows, Spread},
    sweep::Tick,
    tensor_sums::{self, PairList, TensorSums},
    vectors::Vectors,
};

/// Which sums over the vocabulary stand behind a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// Every exponential of every pair.
    Exact,
    /// Moments of second order for every pair, however large their bound.
    Moments,
    /// Moments where their bound is within the tolerance and they are likely to be faster, exact sums elsewhere.
    #[default]
    Auto,
}

/// What computes the exact sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExactSums {
    /// The kernel for a model on the CPU, tensor operations for one on a GPU.
    #[default]
    Auto,
    /// The fused kernel of [`kernel`](crate::kernel), on the CPU.
    Kernel,
    /// Tensor operations of libtorch in f32, on the model's device.
    Tensor,
    /// The same in f64: slow, and what the others are measured against.
    TensorF64,
}

/// The engine of a sweep and its settings.
#[derive(Debug, Clone, Copy, PartialEq)]
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
#[derive(Debug)]
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

/// Fewest and most directions that one task of the kernel measures at all rows: tiles of their `u` stay in cache.
pub(crate) const FEWEST_DIRECTIONS: usize = 4;
const MOST_DIRECTIONS: usize = 32;
/// Tasks for each thread, if there are directions enough: so that none waits long for the last.
const TASKS_PER_THREAD: usize = 4;
/// Rows that the kernel sees at once: a tile of each fits the second-level cache.
const ROWS_PER_CALL: usize = 8;

/// What a pair costs, in multiply-adds for each token: by the kernel for each base, tilts included; by moments; and by what moments
/// need once for each row, times `d_model`, shared among the directions. Fitted to the times in docs/performance.md.
const KERNEL_COST: f64 = 9.5;
const MOMENTS_COST: f64 = 10.0;
const MOMENTS_ROW_COST: f64 = 7.0;

/// What computes sums for a sweep.
#[derive(Debug)]
pub(crate) struct Engines {
    options: EngineOptions,
    exact: Exact,
    series: Option<Series>,
    /// The share of a direction's rows that moments have to be able to measure before they are tried.
    needed: f64,
    report: Mutex<EngineReport>,
}

#[derive(Debug)]
enum Exact {
    Kernel(Kernel),
    Tensor(TensorSums),
}

/// Rows made ready for the engines.
pub(crate) struct Prepared<'l> {
    logits: &'l RowLogits,
    /// For the kernel.
    vectors: Vec<RowVectors<'l>>,
    /// For the moments, made when first needed.
    series: OnceCell<SeriesRows>,
}

impl Engines {
    /// `w_u` is the centred `W_U` in the order of the layout, on the device that computes; `n_directions` is how many will be measured
    /// at each row; `memory` is what a chunk of exact sums in tensor operations may take, in bytes.
    pub(crate) fn new(
        pairs: &Pairs,
        w_u: &Tensor,
        options: EngineOptions,
        n_directions: usize,
        memory: usize,
    ) -> Result<Self, TchError> {
        let tensor = |kind| {
            let (layout, sites) = (pairs.layout(), pairs.sites().to_vec());
            let on = (w_u.device(), kind);
            TensorSums::new(layout, pairs.log_q(), sites, on, memory).map(Exact::Tensor)
        };
        let exact = match options.exact {
            ExactSums::Auto if w_u.device() != Device::Cpu => tensor(Kind::Float)?,
            ExactSums::Auto | ExactSums::Kernel => {
                Exact::Kernel(Kernel::new(pairs.layout(), pairs.log_q()))
            }
            ExactSums::Tensor => tensor(Kind::Float)?,
            ExactSums::TensorF64 => tensor(Kind::Double)?,
        };
        let needed = match (options.engine, &exact) {
            (Engine::Exact, _) => f64::INFINITY,
            (Engine::Auto, Exact::Kernel(_)) => {
                let shared = w_u.size()[1] as f64 / n_directions as f64;
                let moments = MOMENTS_COST + MOMENTS_ROW_COST * shared;
                moments / (KERNEL_COST * pairs.n_bases() as f64)
            }
            (Engine::Moments, _) | (Engine::Auto, Exact::Tensor(_)) => 0.0,
        };
        let series = match needed < 1.0 {
            true => Some(Series::new(pairs.series_cells(), pairs.log_q(), w_u)?),
            false => None,
        };
        Ok(Self {
            options,
            exact,
            series,
            needed,
            report: Mutex::default(),
        })
    }

    /// Vectors over the vocabulary that a row takes in memory.
    pub(crate) fn vectors_per_row(&self) -> usize {
        let exact = match self.exact {
            Exact::Kernel(_) => 4, // l, g, l in bits, exponentials
            Exact::Tensor(_) => 2, // l, g
        };
        // Weights of the squares, and what is in the making.
        exact + if self.series.is_some() { 4 } else { 0 }
    }

    /// What was computed so far.
    pub(crate) fn report(&self) -> EngineReport {
        self.report.lock().map_or_else(|e| *e.into_inner(), |r| *r)
    }

    /// Exact sums of logits as they are, `[row][cell]`.
    pub(crate) fn clean(&self, l: &Vectors, n_cells: usize) -> Result<Vec<Vec<Sums>>, TchError> {
        let (n_rows, d_vocab) = l.tensor().size2()?;
        let sums = match &self.exact {
            Exact::Kernel(kernel) => {
                let zero = vec![0.0; d_vocab as usize];
                let nothing = [kernel.neuron(&zero)];
                let of_row = |l: &[f32]| {
                    let pairs = kernel::Pairs {
                        rows: &[&kernel.row(l, &zero)],
                        neurons: &nothing,
                        pairs: &[(0, 0)],
                        bases: &[Base::default()],
                        tilts: &[],
                    };
                    kernel.sums(&[], &pairs)
                };
                return Ok(l.host()?.par_chunks(d_vocab as usize).map(of_row).collect());
            }
            Exact::Tensor(tensor) => {
                let pairs: Vec<(usize, usize)> = (0..n_rows as usize).map(|r| (r, 0)).collect();
                let list = PairList {
                    pairs: &pairs,
                    bases: &vec![Base::default(); pairs.len()],
                    tilts: &[],
                };
                let zero = l.tensor().f_narrow(0, 0, 1)?.f_zeros_like()?;
                let zeros = zero.f_expand([n_rows, d_vocab], false)?;
                tensor.sums(l.tensor(), &zeros, &zero, list)?
            }
        };
        Ok(sums.chunks(n_cells).map(<[Sums]>::to_vec).collect())
    }

    /// Makes rows ready.
    pub(crate) fn prepare<'l>(&self, logits: &'l RowLogits) -> Result<Prepared<'l>, TchError> {
        let vectors = match &self.exact {
            Exact::Kernel(kernel) => {
                let d_vocab = logits.l.tensor().size()[1] as usize;
                let rows = logits.l.host()?.par_chunks(d_vocab);
                rows.zip(logits.g.host()?.par_chunks(d_vocab))
                    .map(|(l, g)| kernel.row(l, g))
                    .collect()
            }
            Exact::Tensor(_) => Vec::new(),
        };
        Ok(Prepared {
            logits,
            vectors,
            series: OnceCell::new(),
        })
    }

    /// The directions of a block, by their places, that moments shall try: those that they can probably measure at enough rows.
    ///
    /// A wrong guess costs time, never accuracy: the bound of each pair decides.
    fn for_moments(
        &self,
        series: &Series,
        pairs: &Pairs,
        job: &Block<'_>,
        directions: &Projected,
    ) -> Result<Vec<usize>, TchError> {
        let n_directions = job.norm2.len();
        if self.needed <= 0.0 {
            return Ok((0..n_directions).collect());
        }
        let d_vocab = pairs.layout().d_vocab();
        let (cells, q) = (series.cells(), series.q());
        let u = directions.logits.host()?.par_chunks(d_vocab);
        let (tolerance, needed) = (self.options.tolerance, self.needed * job.at.len() as f64);
        let likely = |(n, u): (usize, &[f32])| {
            let spread = Spread::new(cells, q, u);
            let within = |row: &usize| spread.error(pairs.total(job, *row, n).c) <= tolerance;
            let rows = (0..job.at.len()).filter(within).count();
            (rows as f64 >= needed).then_some(n)
        };
        Ok(u.enumerate().filter_map(likely).collect())
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
        let mut measured = vec![0.0; n_directions * n_rows * per_pair];
        let mut bounds = vec![0.0; n_directions * n_rows];
        let mut left: Vec<Vec<usize>> = vec![(0..n_rows).collect(); n_directions];
        if let Some(series) = &self.series {
            let chosen = self.for_moments(series, pairs, job, directions)?;
            if !chosen.is_empty() {
                let (l, g) = (&prepared.logits.l, &prepared.logits.g);
                let rows = match prepared.series.get() {
                    Some(rows) => rows,
                    None => {
                        let rows = series.rows(l, g, job.rows.sums())?;
                        prepared.series.get_or_init(|| rows)
                    }
                };
                let block = match chosen.len() == n_directions {
                    true => {
                        let (u, scaled) = (directions.logits.tensor(), &directions.scaled);
                        series.block(rows, u, scaled, job.u_dots)?
                    }
                    false => {
                        let places: Vec<i64> = chosen.iter().map(|&n| n as i64).collect();
                        let places = Tensor::f_from_slice(&places)?;
                        let u = directions.logits.tensor().f_index_select(0, &places)?;
                        let scaled = directions.scaled.f_index_select(0, &places)?;
                        let dots: Vec<_> = chosen.iter().map(|&n| job.u_dots[n].clone()).collect();
                        series.block(rows, &u, &scaled, &dots)?
                    }
                };
                let out = (&mut measured[..], &mut bounds[..]);
                let tried = (&block, &chosen[..]);
                left = self.by_moments(pairs, job, &rows.terms, tried, out, progress);
            }
        }
        let exact: usize = left.iter().map(Vec::len).sum();
        if let Ok(mut report) = self.report.lock() {
            report.exact_pairs += exact;
            report.moment_pairs += n_directions * n_rows - exact;
        }
        match &self.exact {
            _ if exact == 0 => {}
            Exact::Kernel(kernel) => {
                let rows = &prepared.vectors[job.at.clone()];
                let u = directions.logits.host()?;
                by_kernel(kernel, pairs, job, rows, u, &left, &mut measured, progress);
            }
            Exact::Tensor(tensor) => by_tensor(
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
        Ok(match measured.iter().position(|v| !v.is_finite()) {
            None => Ok(Measured {
                values: measured,
                bounds,
            }),
            Some(i) => Err(NotFinite {
                direction: i / (n_rows * per_pair),
                row: i / per_pair % n_rows,
            }),
        })
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
                    let bound = pairs.moved(rows, block, at, in_block, &mut scratch);
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
                    let u = kernel.neuron(u);
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
    let (per_pair, n_rows) = (pairs.per_pair(), rows.len());
    let d_vocab = pairs.layout().d_vocab();
    let tasks = rayon::current_num_threads() * TASKS_PER_THREAD;
    let per_task = left
        .len()
        .div_ceil(tasks)
        .clamp(FEWEST_DIRECTIONS, MOST_DIRECTIONS);
    measured
        .par_chunks_mut(per_task * n_rows * per_pair)
        .zip(left.par_chunks(per_task))
        .zip(u.par_chunks(per_task * d_vocab))
        .enumerate()
        .for_each(|(task, ((out, left), u))| {
            let first = task * per_task;
            let neurons: Vec<_> = u.chunks(d_vocab).map(|u| kernel.neuron(u)).collect();
            let mut scratch = Scratch::default();
            let (mut list, mut bases, mut tilts) = (Vec::new(), Vec::new(), Vec::new());
            // Row by row, so that directions share what belongs to the row.
            let mut next: Vec<_> = left.iter().map(|rows| rows.iter().peekable()).collect();
            for start in (0..n_rows).step_by(ROWS_PER_CALL) {
                list.clear();
                bases.clear();
                tilts.clear();
                let end = (start + ROWS_PER_CALL).min(n_rows);
                for row in start..end {
                    for (n, rows) in next.iter_mut().enumerate() {
                        if rows.next_if(|left| **left == row).is_none() {
                            continue;
                        }
                        list.push((row - start, n));
                        pairs.shifts(job, row, first + n, &mut scratch.shifts);
                        pairs.split(&scratch.shifts, &mut bases, &mut tilts);
                    }
                }
                if list.is_empty() {
                    continue;
                }
                let at_rows: Vec<&RowVectors<'_>> = rows[start..end].iter().collect();
                let sums = kernel.sums(
                    pairs.sites(),
                    &kernel::Pairs {
                        rows: &at_rows,
                        neurons: &neurons,
                        pairs: &list,
                        bases: &bases,
                        tilts: &tilts,
                    },
                );
                let of_pair = sums.len() / list.len();
                for (&(row, n), sums) in list.iter().zip(sums.chunks(of_pair)) {
                    let at = (n * n_rows + start + row) * per_pair;
                    let out = &mut out[at..at + per_pair];
                    pairs.measure_sums(job, start + row, first + n, sums, &mut scratch, out);
                }
            }
            progress(Tick::Pairs(left.iter().map(Vec::len).sum()));
        });
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
