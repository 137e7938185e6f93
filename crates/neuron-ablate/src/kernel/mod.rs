//! The fused kernel: sums of exponentials over the vocabulary for many (row, neuron) pairs, without writing a logit.
//!
//! A pair's logits are `z = l + a g + c u`: `l` (clean logits) and `g` belong to the row, `u` to the neuron, `a` and
//! `c` to the pair (methods, section 2). One such reading is a *base*. Freezing a frequency direction adds a multiple
//! of that direction, which within a cell of the [`VocabLayout`] is an affine function of `log q`: a *tilt* of a
//! base, `z + k log q + offset`.
//!
//! # How
//! The vocabulary is cut into tiles of at most 2,048 tokens of nearly equal frequency. Per tile, pair and base one
//! SIMD pass in f32 computes `t = z / ln 2`, `2^t`, and the sums; tiles add up in f64. As `log q` hardly varies
//! within a tile, every tilt of a base follows from seven moments of that one pass, by a series to second order that
//! is used only where its remainder is below [`TILT_TOLERANCE`]; elsewhere a tilt gets a pass of its own.
//!
//! # Limits
//! A tile's logits, from their clean mean in the cell, are bounded beforehand by `max|l| + |a| max|g| + |c| max|u|`. Beyond 72 nats f32 would lose
//! accuracy or overflow, so such a tile is summed in f64 around its true maximum: finite input has a finite result.
//!
//! # Examples
//! ```
//! use neuron_ablate::kernel::{Base, Kernel, Pairs, VocabLayout};
//! // Three equally frequent tokens; the neuron moves the last one by 1 nat.
//! let log_q = [(1.0f64 / 3.0).ln(); 3];
//! let kernel = Kernel::new(&VocabLayout::new(&log_q, &[]), &log_q);
//! let row = kernel.row(&[0.0, 0.0, 0.0], &[0.0, 0.0, 0.0]);
//! let neuron = kernel.neuron(&[0.0, 0.0, 1.0]);
//! let sums = kernel.sums(&[], &Pairs { rows: &[&row], neurons: &[neuron], bases: &[Base { a: 0.0, c: 1.0 }], tilts: &[] });
//! assert!((sums[0].lse() - (2.0 + 1f64.exp()).ln()).abs() < 1e-6);
//! ```

mod lanes;
mod layout;
mod rank;
mod sums;
mod tile;
mod tiles;

use std::f64::consts::{LN_2, LOG2_E};

pub use layout::{Cell, VocabLayout};
pub use sums::Sums;
use tile::{Bits, TileMoments, TileVectors, Want, moments};
pub use tile::{Path, exp_sum};
use tiles::{Tile, tiles};

/// Largest remainder of the series for a tilt, relative to the sum of exponentials.
pub const TILT_TOLERANCE: f64 = 3e-8;
/// Largest `|t|`, in bits, of the f32 pass: 2,048 terms `2^t t` stay below the largest f32.
const MAX_BITS: f64 = 105.0;

/// `z = l + a g + c u`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Base {
    /// Factor of the row's `g`.
    pub a: f64,
    /// Factor of the neuron's `u`.
    pub c: f64,
}

/// `z + k log q + offset`, for the `z` of a base.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Tilt {
    /// Factor of `log q`.
    pub k: f64,
    /// Added to every logit.
    pub offset: f64,
}

/// Which base a tilt belongs to, and where it is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TiltSite {
    /// Index of the base.
    pub base: usize,
    /// The cells that the tilt is wanted on, `[cell]`; elsewhere its sums are [`Sums::EMPTY`].
    pub cells: Vec<bool>,
}

/// The vectors of a row, made by [`Kernel::row`].
#[derive(Debug, Clone)]
pub struct RowVectors<'a> {
    /// What is taken from the logits of each cell, in nats: near their clean mean, so that sums of `2^t t` are small.
    level: Vec<f64>,
    /// `(l - level) / ln 2`.
    l_bits: Vec<f32>,
    l_max_bits: Vec<f64>,
    l: &'a [f32],
    g: &'a [f32],
    g_max: Vec<f64>,
}

/// The vector of a neuron, made by [`Kernel::neuron`].
#[derive(Debug, Clone)]
pub struct NeuronVector<'a> {
    u: &'a [f32],
    u_max: Vec<f64>,
}

/// The pairs of a call: every row with every neuron.
#[derive(Debug, Clone, Copy)]
pub struct Pairs<'a> {
    /// The rows.
    pub rows: &'a [&'a RowVectors<'a>],
    /// The neurons.
    pub neurons: &'a [NeuronVector<'a>],
    /// `[row][neuron][base]`.
    pub bases: &'a [Base],
    /// `[row][neuron][tilt]`.
    pub tilts: &'a [Tilt],
}

/// The vocabulary, ready for sums.
#[derive(Debug, Clone)]
pub struct Kernel {
    log_q: Vec<f64>,
    /// `log q` minus the middle of its tile.
    lambda: Vec<f32>,
    tiles: Vec<Tile>,
    n_cells: usize,
    path: Path,
}

impl Kernel {
    /// Takes `log q`, `[d_vocab]` in the order of the layout, and the fastest instructions of this machine.
    ///
    /// # Panics
    /// - if `log_q` has another length than the layout
    pub fn new(layout: &VocabLayout, log_q: &[f64]) -> Self {
        Self::with_path(layout, log_q, Path::available()[0])
    }

    /// As [`Kernel::new`], with instructions of the caller's choice.
    ///
    /// # Panics
    /// - if `log_q` has another length than the layout
    /// - if this machine does not have the instructions
    pub fn with_path(layout: &VocabLayout, log_q: &[f64], path: Path) -> Self {
        assert!(
            Path::available().contains(&path),
            "this machine cannot run {path:?}"
        );
        assert_eq!(
            log_q.len(),
            layout.d_vocab(),
            "`log q` has another length than the vocabulary"
        );
        let tiles = tiles(layout, log_q);
        let lambda = tiles
            .iter()
            .flat_map(|tile| {
                log_q[tile.range.clone()]
                    .iter()
                    .map(|l| (l - tile.centre) as f32)
            })
            .collect();
        Self {
            log_q: log_q.to_vec(),
            lambda,
            tiles,
            n_cells: layout.cells().len(),
            path,
        }
    }

    /// The instructions in use.
    pub fn path(&self) -> Path {
        self.path
    }

    /// Prepares a row: clean logits `l` and `g`, `[d_vocab]` each, in the order of the layout.
    ///
    /// # Panics
    /// - if one has another length than the layout
    pub fn row<'a>(&self, l: &'a [f32], g: &'a [f32]) -> RowVectors<'a> {
        let plain = self.row_at(l, g, vec![0.0; self.n_cells]);
        let clean = self.sums(
            &[],
            &Pairs {
                rows: &[&plain],
                neurons: &[self.neuron(g)], // its factor is 0
                bases: &[Base::default()],
                tilts: &[],
            },
        );
        let level = |sums: &Sums| Some(sums.s1 / sums.s0).filter(|mean| mean.is_finite());
        self.row_at(
            l,
            g,
            clean.iter().map(|s| level(s).unwrap_or(0.0)).collect(),
        )
    }

    fn row_at<'a>(&self, l: &'a [f32], g: &'a [f32], level: Vec<f64>) -> RowVectors<'a> {
        assert_eq!(
            l.len(),
            self.log_q.len(),
            "a vector has another length than the vocabulary"
        );
        let mut l_bits = Vec::with_capacity(l.len());
        for tile in &self.tiles {
            let bits = |&x: &f32| ((f64::from(x) - level[tile.cell]) * LOG2_E) as f32;
            l_bits.extend(l[tile.range.clone()].iter().map(bits));
        }
        RowVectors {
            l_max_bits: self.max_abs(&l_bits),
            level,
            l_bits,
            l,
            g,
            g_max: self.max_abs(g),
        }
    }

    /// Prepares a neuron: `u`, `[d_vocab]` in the order of the layout.
    ///
    /// # Panics
    /// - if it has another length than the layout
    pub fn neuron<'a>(&self, u: &'a [f32]) -> NeuronVector<'a> {
        NeuronVector {
            u,
            u_max: self.max_abs(u),
        }
    }

    /// Largest absolute value in each tile.
    fn max_abs(&self, values: &[f32]) -> Vec<f64> {
        assert_eq!(
            values.len(),
            self.log_q.len(),
            "a vector has another length than the vocabulary"
        );
        self.tiles
            .iter()
            .map(|tile| {
                f64::from(
                    values[tile.range.clone()]
                        .iter()
                        .fold(0.0f32, |m, x| m.max(x.abs())),
                )
            })
            .collect()
    }

    /// The sums of every pair under every reading on every cell, `[row][neuron][reading][cell]`.
    ///
    /// Readings are the bases, then the tilts. Runs on the calling thread; blocks of 8 to 64 rows by 4 to 32
    /// neurons keep the tiles in cache. Values that are not finite give sums that are not.
    ///
    /// # Panics
    /// - if the lengths of `pairs` disagree, or `sites` name a base or cells that do not exist
    pub fn sums(&self, sites: &[TiltSite], pairs: &Pairs<'_>) -> Vec<Sums> {
        let n_pairs = pairs.rows.len() * pairs.neurons.len();
        if n_pairs == 0 {
            return Vec::new();
        }
        let (n_bases, n_cells) = (pairs.bases.len() / n_pairs, self.n_cells);
        assert_eq!(
            pairs.bases.len(),
            n_pairs * n_bases,
            "bases do not divide among the pairs"
        );
        assert_eq!(
            pairs.tilts.len(),
            n_pairs * sites.len(),
            "one tilt for each site and pair is wanted"
        );
        assert!(
            sites
                .iter()
                .all(|s| s.base < n_bases && s.cells.len() == n_cells),
            "a tilt site names a base or cells that do not exist"
        );
        let per_pair = (n_bases + sites.len()) * n_cells;
        let mut out = vec![Sums::EMPTY; n_pairs * per_pair];
        for (index, tile) in self.tiles.iter().enumerate() {
            for (pair, out) in out.chunks_mut(per_pair).enumerate() {
                let (row, neuron) = (
                    pairs.rows[pair / pairs.neurons.len()],
                    &pairs.neurons[pair % pairs.neurons.len()],
                );
                let at = TilePair {
                    kernel: self,
                    index,
                    tile,
                    row,
                    neuron,
                };
                for (number, &base) in pairs.bases[pair * n_bases..(pair + 1) * n_bases]
                    .iter()
                    .enumerate()
                {
                    let tilts = sites
                        .iter()
                        .zip(&pairs.tilts[pair * sites.len()..(pair + 1) * sites.len()])
                        .enumerate();
                    let tilts = tilts
                        .filter(|(_, (site, _))| site.base == number && site.cells[tile.cell])
                        .map(|(i, (_, &tilt))| (n_bases + i, tilt));
                    at.add(number, base, tilts, |reading, sums| {
                        out[reading * n_cells + tile.cell].merge(sums)
                    });
                }
            }
        }
        out
    }
}

/// One tile of one pair.
struct TilePair<'a> {
    kernel: &'a Kernel,
    index: usize,
    tile: &'a Tile,
    row: &'a RowVectors<'a>,
    neuron: &'a NeuronVector<'a>,
}

impl TilePair<'_> {
    /// Hands the sums of a base and its tilts to `add`, by the number of their reading.
    fn add(
        &self,
        number: usize,
        base: Base,
        tilts: impl Iterator<Item = (usize, Tilt)> + Clone,
        mut add: impl FnMut(usize, &Sums),
    ) {
        let bound = self.row.l_max_bits[self.index]
            + (base.a.abs() * self.row.g_max[self.index]
                + base.c.abs() * self.neuron.u_max[self.index])
                * LOG2_E;
        let short = |tilt: &Tilt| {
            let x = (tilt.k * self.tile.half_span).abs();
            x * x * x / 6.0 * x.exp() <= TILT_TOLERANCE
        };
        // Written so that a bound that is not a number fails.
        let fits = |extra: f64| bound + extra <= MAX_BITS;
        if !fits(0.0) {
            add(number, &self.in_f64(base, Tilt::default()));
            tilts.for_each(|(reading, tilt)| add(reading, &self.in_f64(base, tilt)));
            return;
        }
        let by_series = tilts.clone().any(|(_, tilt)| short(&tilt));
        let moments = self.pass(
            if by_series {
                Want::Moments
            } else {
                Want::Plain
            },
            base,
            0.0,
        );
        add(number, &self.sums(&moments, 0.0));
        for (reading, tilt) in tilts {
            let level = tilt.k * self.tile.centre + tilt.offset;
            let sums = if short(&tilt) {
                self.sums(&tilted(&moments, tilt.k), level)
            } else if fits((tilt.k * self.tile.half_span).abs() * LOG2_E) {
                let moments = self.pass(Want::Tilted, base, tilt.k);
                self.sums(&moments, level)
            } else {
                self.in_f64(base, tilt)
            };
            add(reading, &sums);
        }
    }

    fn pass(&self, want: Want, base: Base, k: f64) -> TileMoments {
        let at = self.tile.range.clone();
        let tile = TileVectors {
            l: &self.row.l_bits[at.clone()],
            g: &self.row.g[at.clone()],
            u: &self.neuron.u[at.clone()],
            lambda: &self.kernel.lambda[at],
        };
        let bits = Bits {
            a: (base.a * LOG2_E) as f32,
            c: (base.c * LOG2_E) as f32,
            k: (k * LOG2_E) as f32,
        };
        moments(self.kernel.path, want, tile, bits)
    }

    /// From moments in bits to sums in nats, with `level` added to every logit.
    fn sums(&self, moments: &TileMoments, level: f64) -> Sums {
        let (TileMoments { m, n }, of_row) = (moments, self.row.level[self.tile.cell]);
        let sums = Sums {
            shift: of_row,
            s0: m[0],
            s1: n[0] * LN_2 + (of_row + level) * m[0],
            s2: m[1] + self.tile.centre * m[0],
        };
        if level.abs() < 300.0 {
            // Tiles with one shift add up without an exponential.
            let e = exp(level);
            Sums {
                shift: of_row,
                s0: e * sums.s0,
                s1: e * sums.s1,
                s2: e * sums.s2,
            }
        } else {
            Sums {
                shift: of_row + level,
                ..sums
            }
        }
    }

    /// The sums in f64, one entry at a time, around the true maximum.
    fn in_f64(&self, base: Base, tilt: Tilt) -> Sums {
        let z = |i: usize| {
            let (l, g, u) = (
                f64::from(self.row.l[i]),
                f64::from(self.row.g[i]),
                f64::from(self.neuron.u[i]),
            );
            l + base.a * g + base.c * u + tilt.k * self.kernel.log_q[i] + tilt.offset
        };
        let shift = self
            .tile
            .range
            .clone()
            .map(z)
            .fold(f64::NEG_INFINITY, f64::max);
        self.tile.range.clone().fold(
            Sums {
                shift,
                ..Sums::EMPTY
            },
            |sum, i| {
                let z = z(i);
                let e = (z - shift).exp();
                Sums {
                    shift,
                    s0: sum.s0 + e,
                    s1: sum.s1 + e * z,
                    s2: sum.s2 + e * self.kernel.log_q[i],
                }
            },
        )
    }
}

/// The moments `m[0], m[1], n[0]` after adding `k lambda` to the logits, to second order in `k lambda`.
fn tilted(moments: &TileMoments, k: f64) -> TileMoments {
    let (TileMoments { m, n }, half) = (moments, k * k / 2.0);
    let m0 = m[0] + k * m[1] + half * m[2];
    let m1 = m[1] + k * m[2] + half * m[3];
    let n0 = n[0] + k * n[1] + half * n[2] + k * LOG2_E * m1;
    TileMoments {
        m: [m0, m1, 0.0, 0.0],
        n: [n0, 0.0, 0.0],
    }
}

/// `e^x` in f64; the usual small arguments skip the library call.
fn exp(x: f64) -> f64 {
    if x.abs() > 0.05 {
        return x.exp();
    }
    // The first term left out, x^8 / 8!, is below 1e-15.
    (1..8)
        .rev()
        .fold(1.0, |sum, i| 1.0 + x / f64::from(i) * sum)
}
