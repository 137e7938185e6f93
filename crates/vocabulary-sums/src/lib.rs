//! The fused kernel: sums of exponentials over the vocabulary for many (row, direction) pairs, without writing a logit.
//!
//! A pair's logits are `z = l + a g + c u`: `l` (clean logits) and `g` belong to the row, `u` to the direction, `a` and
//! `c` to the pair (methods, section 2). A direction is a vector, such as that of a neuron, or a sum of vectors, which is made tile
//! by tile where it is read ([`Direction`]). One such reading is a *base*. Freezing a frequency direction adds a multiple
//! of that direction, which within a cell of the [`VocabLayout`] is an affine function of `log q`: a *tilt* of a
//! base, `z + k log q + offset`.
//!
//! # How
//! The vocabulary is cut into tiles of at most 4,096 tokens of nearly equal frequency. Per tile, pair and base one
//! SIMD pass in f32 computes the sums; tiles add up in f64. How far a base can move the logits of a tile is bounded
//! beforehand by `|a| max|g| + |c| max|u|`. Where that is small, as it is for most ablations, the pass multiplies the
//! clean exponentials, kept with the row, by a polynomial for `e^d - 1` and sums *changes*, so that rounding is
//! relative to the change; elsewhere it computes `2^t`, `t = z / ln 2`. Several directions share the loads of a row.
//!
//! As `log q` hardly varies within a tile, every tilt of a base follows from moments of that one pass, by a series to
//! first or second order that is used only where its remainder is below [`TILT_TOLERANCE`]; elsewhere a tilt gets a pass
//! of its own.
//!
//! # Limits
//! Where a tile's logits, from their clean mean in the cell, could be more than 69 nats, f32 would lose accuracy or overflow: such a
//! tile is summed in f64 around its true maximum, so that finite input has a finite result.
//!
//! # Examples
//! ```
//! use vocabulary_sums::{Base, Direction, Kernel, Pairs, VocabLayout};
//! // Three equally frequent tokens; the direction moves the last one by 1 nat.
//! let log_q = [(1.0f64 / 3.0).ln(); 3];
//! let kernel = Kernel::new(&VocabLayout::new(&log_q, &[]), &log_q);
//! let row = kernel.row(&[0.0, 0.0, 0.0], &[0.0, 0.0, 0.0]);
//! let u = kernel.vector(&[0.0, 0.0, 1.0]);
//! let pairs = [(0, Direction::Vector(0))];
//! let sums = kernel.sums(&[], &Pairs { rows: &[row], vectors: &[u], pairs: &pairs, bases: &[Base { a: 0.0, c: 1.0 }], tilts: &[] });
//! assert!((sums[0].lse() - (2.0 + 1f64.exp()).ln()).abs() < 1e-6);
//! ```

mod aligned;
mod directions;
mod divergence;
mod lanes;
mod layout;
mod near;
pub mod panels;
mod pass;
mod path;
mod rank;
mod sums;
mod tile;
mod tiles;
pub mod weights;

use std::{
    f64::consts::{LN_2, LOG2_E},
    ops::Range,
};

use aligned::Aligned;
use directions::{Room, TileDirection};
pub use divergence::{Divergence, Moved};
pub use layout::{Cell, VocabLayout};
use near::degree_for;
use pass::{Change, TileMoments, TileVectors};
pub use path::Path;
pub use sums::Sums;
pub use tile::exp_sum;
use tile::{MAX_PAIRS, Want, bits, exponentials, largest, moments};
use tiles::{SUM_TILE_LEN, TILE_LEN, Tile, tiles};

/// Largest remainder of the series for a tilt, relative to the sum of exponentials.
pub const TILT_TOLERANCE: f64 = 3e-8;
/// Largest `|t|`, in bits, of the f32 pass: 4,096 terms `2^t t` stay below the largest f32, and terms of `2^-125` are nothing
/// beside the others.
const MAX_BITS: f64 = 100.0;

/// `z = l + a g + c u`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Base {
    /// Factor of the row's `g`.
    pub a: f64,
    /// Factor of the direction's `u`.
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
    l_bits: Aligned,
    l_max_bits: Vec<f64>,
    /// `2^l_bits / ln 2`, for tiles whose `l_max_bits` allows it.
    e: Aligned,
    /// Moments of the clean logits, `[tile]`.
    clean: Vec<TileMoments>,
    /// `ln sum e^l`.
    lse: f64,
    l: &'a [f32],
    g: &'a [f32],
    g_max: Vec<f64>,
}

/// A vector that directions are made of, from [`Kernel::vector`] or [`Kernel::part`].
#[derive(Debug, Clone)]
pub struct Vector<'a> {
    values: &'a [f32],
    /// Places of the layout that the values are of; at others the vector is 0.
    range: Range<usize>,
    /// Largest absolute value, `[tile]` from the first one in the range.
    max: Vec<f64>,
    first_tile: usize,
}

impl Vector<'_> {
    /// The values over a tile, where it has any.
    fn over(&self, tile: &Tile) -> Option<&[f32]> {
        let start = tile.range.start.checked_sub(self.range.start)?;
        self.values.get(start..start + tile.range.len())
    }

    /// The value at a place of the layout.
    pub fn at(&self, place: usize) -> f32 {
        let place = place.checked_sub(self.range.start);
        let value = place.and_then(|place| self.values.get(place));
        value.copied().unwrap_or(0.0)
    }

    fn max(&self, tile: usize) -> f64 {
        self.max[tile - self.first_tile]
    }
}

/// The `u` of a pair.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Direction<'a> {
    /// The vector at this place of [`Pairs::vectors`].
    Vector(usize),
    /// A sum of vectors, each with its factor.
    Sum(&'a [(usize, f64)]),
    /// The sum of the pair just before it, which is of the same row, and these added to it: along a list of nested sets each vector is
    /// added once.
    Further(&'a [(usize, f64)]),
}

impl Direction<'_> {
    /// The vectors that are added up; none for a vector as it is.
    fn terms(&self) -> &[(usize, f64)] {
        match self {
            Direction::Vector(_) => &[],
            Direction::Sum(terms) | Direction::Further(terms) => terms,
        }
    }

    /// The value at a place of the layout, or what is added there to the direction before; in f64.
    ///
    /// # Panics
    /// - if it names a vector that is not there
    pub fn at(&self, vectors: &[Vector<'_>], place: usize) -> f64 {
        let at = |vector: usize| f64::from(vectors[vector].at(place));
        match self {
            Direction::Vector(vector) => at(*vector),
            Direction::Sum(_) | Direction::Further(_) => {
                let terms = self.terms().iter();
                terms.map(|&(vector, factor)| factor * at(vector)).sum()
            }
        }
    }
}

/// The pairs of a call.
#[derive(Debug, Clone, Copy)]
pub struct Pairs<'a> {
    /// Rows to choose from.
    pub rows: &'a [RowVectors<'a>],
    /// Vectors to make directions of.
    pub vectors: &'a [Vector<'a>],
    /// Place of a row in its list, and a direction. Neighbours with the same row share the loads of its vectors, and sums of the same
    /// vectors those of the vectors, whatever their rows. All sums of a call are in memory over a tile: some tens fit the second-level
    /// cache.
    pub pairs: &'a [(usize, Direction<'a>)],
    /// `[pair][base]`
    pub bases: &'a [Base],
    /// `[pair][tilt]`
    pub tilts: &'a [Tilt],
}

impl Pairs<'_> {
    /// Bases of each pair.
    fn n_bases(&self) -> usize {
        let n_pairs = self.pairs.len().max(1);
        assert_eq!(
            self.bases.len() % n_pairs,
            0,
            "bases do not divide among the pairs"
        );
        self.bases.len() / n_pairs
    }
}

/// The vocabulary, ready for sums.
#[derive(Debug, Clone)]
pub struct Kernel {
    log_q: Vec<f64>,
    /// `log q` minus the middle of its tile.
    lambda: Aligned,
    tiles: Vec<Tile>,
    /// Zeros, as many as a tile may have tokens.
    nothing: Aligned,
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
        Self::cut(layout, log_q, path, TILE_LEN)
    }

    /// As [`Kernel::new`], for directions that are sums of vectors: smaller tiles, so that some tens of sums fit the cache.
    ///
    /// # Panics
    /// - if `log_q` has another length than the layout
    pub fn for_sums(layout: &VocabLayout, log_q: &[f64]) -> Self {
        Self::cut(layout, log_q, Path::available()[0], SUM_TILE_LEN)
    }

    fn cut(layout: &VocabLayout, log_q: &[f64], path: Path, tile_len: usize) -> Self {
        path.assert_available();
        assert_eq!(
            log_q.len(),
            layout.d_vocab(),
            "`log q` has another length than the vocabulary"
        );
        let tiles = tiles(layout, log_q, tile_len);
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
            nothing: Aligned::zeros(tile_len),
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
        assert!(
            [l, g].iter().all(|v| v.len() == self.log_q.len()),
            "a vector has another length than the vocabulary"
        );
        let level = self.level(l);
        let mut l_bits = Aligned::zeros(l.len());
        self.in_bits(l, &level, &mut l_bits);
        let e = exponentials(self.path, &l_bits);
        let clean = |tile: &Tile| self.clean_moments(&l_bits, &e, g, tile, Want::Second);
        let row = RowVectors {
            l_max_bits: self.max_abs(&l_bits),
            clean: self.tiles.iter().map(clean).collect(),
            level,
            lse: f64::NAN,
            l_bits,
            e,
            l,
            g,
            g_max: self.max_abs(g),
        };
        let lse = Sums::over(self.clean(&row).iter()).lse();
        RowVectors { lse, ..row }
    }

    /// The mean of clean logits in each cell under their softmax.
    fn level(&self, l: &[f32]) -> Vec<f64> {
        let mut l_bits = Aligned::zeros(l.len());
        self.in_bits(l, &vec![0.0; self.n_cells], &mut l_bits);
        let mut sums = vec![Sums::EMPTY; self.n_cells];
        for tile in &self.tiles {
            let at = tile.range.clone();
            let of_tile = if largest(self.path, &l_bits[at.clone()]) <= MAX_BITS {
                // Neither exponentials nor `g` play a part.
                let moments = self.clean_moments(&l_bits, &l_bits, &l_bits, tile, Want::Plain);
                Sums {
                    shift: 0.0,
                    s0: moments.m[0],
                    s1: moments.n[0] * LN_2,
                    s2: 0.0,
                }
            } else {
                let l = l[at].iter().map(|&l| f64::from(l));
                let shift = l.clone().fold(f64::NEG_INFINITY, f64::max);
                l.fold(
                    Sums {
                        shift,
                        ..Sums::EMPTY
                    },
                    |sums, l| {
                        let e = (l - shift).exp();
                        Sums {
                            s0: sums.s0 + e,
                            s1: sums.s1 + e * l,
                            ..sums
                        }
                    },
                )
            };
            sums[tile.cell].merge(&of_tile);
        }
        let mean = |sums: &Sums| Some(sums.s1 / sums.s0).filter(|mean| mean.is_finite());
        sums.iter().map(|sums| mean(sums).unwrap_or(0.0)).collect()
    }

    /// `(l - level) / ln 2`; `level` is `[cell]`.
    fn in_bits(&self, l: &[f32], level: &[f64], out: &mut [f32]) {
        for tile in &self.tiles {
            let (l, out) = (&l[tile.range.clone()], &mut out[tile.range.clone()]);
            bits(self.path, level[tile.cell], l, out);
        }
    }

    /// The moments of a tile where nothing moves.
    fn clean_moments(
        &self,
        l_bits: &[f32],
        e: &[f32],
        g: &[f32],
        tile: &Tile,
        want: Want,
    ) -> TileMoments {
        let vectors = self.vectors(l_bits, e, g, tile);
        // The factor of the direction is 0.
        let (u, clean) = ([vectors.g], [Change::default()]);
        moments(self.path, (0, want), vectors, &u, &clean)[0]
    }

    /// The sums of the clean logits of a row, `[cell]`.
    ///
    /// # Panics
    /// - if the row was prepared for another vocabulary
    pub fn clean(&self, row: &RowVectors<'_>) -> Vec<Sums> {
        let mut out = vec![Sums::EMPTY; self.n_cells];
        let nothing = TileDirection {
            u: &self.nothing,
            max: 0.0,
        };
        for (index, tile) in self.tiles.iter().enumerate() {
            let at = TileRow {
                kernel: self,
                index,
                tile,
                row,
            };
            let mut pair = [TilePair {
                number: 0,
                base_number: 0,
                direction: TileDirection {
                    u: &nothing.u[..tile.range.len()],
                    ..nothing
                },
                base: Base::default(),
                tilts: &[],
                of_base: &[],
                way: Way::Clean,
            }];
            at.add(&mut pair, |_, _, sums| out[tile.cell].merge(sums));
        }
        out
    }

    fn vectors<'v>(
        &'v self,
        l: &'v [f32],
        e: &'v [f32],
        g: &'v [f32],
        tile: &Tile,
    ) -> TileVectors<'v> {
        let at = tile.range.clone();
        TileVectors {
            l: &l[at.clone()],
            e: &e[at.clone()],
            g: &g[at.clone()],
            lambda: &self.lambda[at],
        }
    }

    /// Prepares a vector, `[d_vocab]` in the order of the layout.
    ///
    /// # Panics
    /// - if it has another length than the layout
    pub fn vector<'a>(&self, values: &'a [f32]) -> Vector<'a> {
        assert_eq!(
            values.len(),
            self.log_q.len(),
            "a vector has another length than the vocabulary"
        );
        self.part(0, values)
    }

    /// Prepares a vector that is 0 but at the places from `start` on; these are whole cells of the layout.
    ///
    /// # Panics
    /// - if they are not whole cells
    pub fn part<'a>(&self, start: usize, values: &'a [f32]) -> Vector<'a> {
        let range = start..start + values.len();
        let first_tile = self.tiles.partition_point(|t| t.range.start < start);
        let within = self.tiles[first_tile..].iter();
        let within = within.take_while(|tile| tile.range.end <= range.end);
        let covered = within.clone().map(|tile| tile.range.len()).sum::<usize>();
        assert_eq!(covered, values.len(), "a vector has part of a cell");
        let max = |tile: &Tile| {
            let at = tile.range.start - start..tile.range.end - start;
            largest(self.path, &values[at])
        };
        Vector {
            values,
            max: within.map(max).collect(),
            range,
            first_tile,
        }
    }

    /// Largest absolute value in each tile.
    fn max_abs(&self, values: &[f32]) -> Vec<f64> {
        assert_eq!(
            values.len(),
            self.log_q.len(),
            "a vector has another length than the vocabulary"
        );
        let max = |tile: &Tile| largest(self.path, &values[tile.range.clone()]);
        self.tiles.iter().map(max).collect()
    }

    /// The sums of every pair under every reading on every cell, `[pair][reading][cell]`.
    ///
    /// Readings are the bases, then the tilts. Runs on the calling thread; 4 to 16 rows by 4 to 32 directions, row by row,
    /// keep the tiles in cache. Values that are not finite give sums that are not.
    ///
    /// # Panics
    /// - if the lengths of `pairs` disagree, or `sites` name a base or cells that do not exist
    /// - if a direction goes on from that of another row, or from none
    pub fn sums(&self, sites: &[TiltSite], pairs: &Pairs<'_>) -> Vec<Sums> {
        let n_pairs = pairs.pairs.len();
        if n_pairs == 0 {
            return Vec::new();
        }
        let (n_bases, n_cells) = (pairs.n_bases(), self.n_cells);
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
        let n_readings = n_bases + sites.len();
        let mut out = vec![Sums::EMPTY; n_pairs * n_readings * n_cells];
        let tilts_of = |cell: usize, base: usize| {
            let here = |site: &TiltSite| site.base == base && site.cells[cell];
            (0..sites.len()).filter(|&i| here(&sites[i])).collect()
        };
        // `[cell][base]`
        let tilts_of: Vec<Vec<Vec<usize>>> = (0..n_cells)
            .map(|cell| (0..n_bases).map(|base| tilts_of(cell, base)).collect())
            .collect();
        self.for_tiles(pairs, |at, first, directions| {
            let mut list = Vec::with_capacity(directions.len() * n_bases);
            for (base_number, of_base) in tilts_of[at.tile.cell].iter().enumerate() {
                list.extend(
                    (first..)
                        .zip(directions)
                        .map(|(number, &direction)| TilePair {
                            number,
                            base_number,
                            direction,
                            base: pairs.bases[number * n_bases + base_number],
                            tilts: &pairs.tilts[number * sites.len()..(number + 1) * sites.len()],
                            of_base,
                            way: Way::Clean,
                        }),
                );
            }
            at.add(&mut list, |pair, tilt, sums| {
                let reading = tilt.map_or(pair.base_number, |tilt| n_bases + tilt);
                let place = (pair.number * n_readings + reading) * n_cells + at.tile.cell;
                out[place].merge(sums);
            });
        });
        out
    }

    /// Calls `each(tile and row, number of the first pair, directions)` for neighbouring pairs of each row, tile by tile.
    fn for_tiles(
        &self,
        pairs: &Pairs<'_>,
        mut each: impl FnMut(&TileRow<'_>, usize, &[TileDirection<'_>]),
    ) {
        let mut room = Room::new(pairs.pairs, self.nothing.len());
        for (index, tile) in self.tiles.iter().enumerate() {
            let directions = room.fill(self, (index, tile), pairs.vectors);
            let mut first = 0;
            for of_row in pairs.pairs.chunk_by(|one, next| one.0 == next.0) {
                let at = TileRow {
                    kernel: self,
                    index,
                    tile,
                    row: &pairs.rows[of_row[0].0],
                };
                each(&at, first, &directions[first..first + of_row.len()]);
                first += of_row.len();
            }
        }
    }
}

/// One tile of a row.
struct TileRow<'a> {
    kernel: &'a Kernel,
    index: usize,
    tile: &'a Tile,
    row: &'a RowVectors<'a>,
}

/// A direction at that row, one base of the pair and the tilts of that base.
struct TilePair<'a> {
    /// Of the pair, among those of the call.
    number: usize,
    base_number: usize,
    direction: TileDirection<'a>,
    base: Base,
    /// Those of the pair.
    tilts: &'a [Tilt],
    /// Which of them tilt this base.
    of_base: &'a [usize],
    way: Way,
}

/// How the sums of a base are found in a tile.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    /// Nothing moves.
    Clean,
    /// By a pass, see [`moments`].
    Pass { degree: usize, want: Want },
    /// One entry at a time.
    InF64,
}

impl TileRow<'_> {
    /// Hands the sums of each pair's base and its tilts to `add(pair, tilt, sums)`; the list is sorted on the way.
    ///
    /// Pairs share a pass only with those that would have the same one alone, so that no sum depends on what else is asked for.
    fn add(
        &self,
        list: &mut [TilePair<'_>],
        mut add: impl FnMut(&TilePair<'_>, Option<usize>, &Sums),
    ) {
        for pair in list.iter_mut() {
            pair.way = self.way(pair);
        }
        list.sort_unstable_by_key(|pair| pair.way);
        for alike in list.chunk_by(|one, next| one.way == next.way) {
            match alike[0].way {
                Way::Clean => {
                    for pair in alike {
                        self.finish(pair, &self.row.clean[self.index], &mut add);
                    }
                }
                Way::Pass { degree, want } => {
                    for group in alike.chunks(MAX_PAIRS) {
                        for (pair, moments) in group.iter().zip(self.pass(degree, want, group)) {
                            self.finish(pair, &moments, &mut add);
                        }
                    }
                }
                Way::InF64 => {
                    for pair in alike {
                        add(pair, None, &self.in_f64(pair, Tilt::default()));
                        for &site in pair.of_base {
                            add(pair, Some(site), &self.in_f64(pair, pair.tilts[site]));
                        }
                    }
                }
            }
        }
    }

    /// The sums of a base and its tilts from the moments of the base.
    fn finish(
        &self,
        pair: &TilePair<'_>,
        moments: &TileMoments,
        add: &mut impl FnMut(&TilePair<'_>, Option<usize>, &Sums),
    ) {
        add(pair, None, &self.sums(moments, 0.0));
        for &site in pair.of_base {
            let tilt = pair.tilts[site];
            let level = tilt.k * self.tile.centre + tilt.offset;
            let sums = if self.short(&tilt) {
                self.sums(&tilted(moments, tilt.k), level)
            } else if self.fits(pair, (tilt.k * self.tile.half_span).abs() * LOG2_E) {
                self.sums(&self.tilted(pair, tilt.k), level)
            } else {
                self.in_f64(pair, tilt)
            };
            add(pair, Some(site), &sums);
        }
    }

    /// At least the largest change of a logit, in nats.
    fn largest_change(&self, direction: &TileDirection<'_>, base: Base) -> f64 {
        base.a.abs() * self.row.g_max[self.index] + base.c.abs() * direction.max
    }

    /// Whether the logits, moved by `extra` bits beyond the base, stay where f32 is exact; not if they are not numbers.
    fn fits(&self, pair: &TilePair<'_>, extra: f64) -> bool {
        let change = self.largest_change(&pair.direction, pair.base);
        self.row.l_max_bits[self.index] + change * LOG2_E + extra <= MAX_BITS
    }

    /// Whether a tilt follows from the second moments.
    fn short(&self, tilt: &Tilt) -> bool {
        let x = (tilt.k * self.tile.half_span).abs();
        x * x * x / 6.0 * x.exp() <= TILT_TOLERANCE
    }

    fn way(&self, pair: &TilePair<'_>) -> Way {
        if !self.fits(pair, 0.0) {
            return Way::InF64;
        }
        let Base { a, c } = pair.base;
        let change = self.largest_change(&pair.direction, pair.base);
        if change == 0.0 {
            return Way::Clean;
        }
        let near = degree_for(change, a, c);
        let short = pair.of_base.iter().map(|&site| &pair.tilts[site]);
        let mut want = Want::Plain;
        for tilt in short.filter(|tilt| self.short(tilt)) {
            let x = (tilt.k * self.tile.half_span).abs();
            // What the first moments leave out is the pair's share of the second, or with a polynomial that of its change.
            let share = near.map_or(1.0, |(_, reach)| 2.0 * reach);
            let first = x * x / 2.0 * x.exp() * share <= TILT_TOLERANCE;
            want = want.max(if first { Want::First } else { Want::Second });
        }
        let degree = near.map_or(0, |(degree, _)| degree);
        Way::Pass { degree, want }
    }

    /// The moments of some pairs; those that `want` leaves out are the clean ones, or for degree 0 nought.
    fn pass(&self, degree: usize, want: Want, pairs: &[TilePair<'_>]) -> [TileMoments; MAX_PAIRS] {
        let mut u: [&[f32]; MAX_PAIRS] = [&[]; MAX_PAIRS];
        let mut changes = [Change::default(); MAX_PAIRS];
        for (i, pair) in pairs.iter().enumerate() {
            u[i] = pair.direction.u;
            let Base { a, c } = pair.base;
            changes[i] = Change { a, c, k: 0.0 };
        }
        let (n, of_row) = (pairs.len(), self.vectors());
        let by = (degree, want);
        let mut all = moments(self.kernel.path, by, of_row, &u[..n], &changes[..n]);
        if degree > 0 {
            let clean = &self.row.clean[self.index];
            for moved in &mut all {
                let moved = moved.m.iter_mut().chain(&mut moved.n);
                let clean = clean.m.iter().chain(&clean.n);
                moved.zip(clean).for_each(|(moved, clean)| *moved += clean);
            }
        }
        all
    }

    /// The moments of a pair with `k lambda` added to its logits.
    fn tilted(&self, pair: &TilePair<'_>, k: f64) -> TileMoments {
        let Base { a, c } = pair.base;
        let (u, change) = ([pair.direction.u], [Change { a, c, k }]);
        let want = (0, Want::Tilted);
        moments(self.kernel.path, want, self.vectors(), &u, &change)[0]
    }

    fn vectors(&self) -> TileVectors<'_> {
        let RowVectors { l_bits, e, g, .. } = self.row;
        self.kernel.vectors(l_bits, e, g, self.tile)
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
    fn in_f64(&self, pair: &TilePair<'_>, tilt: Tilt) -> Sums {
        let Base { a, c } = pair.base;
        let z = |i: usize| {
            let u = pair.direction.u[i - self.tile.range.start];
            let (l, g) = (self.row.l[i], self.row.g[i]);
            let tilt = tilt.k * self.kernel.log_q[i] + tilt.offset;
            f64::from(l) + a * f64::from(g) + c * f64::from(u) + tilt
        };
        let places = self.tile.range.clone();
        let shift = places.clone().map(z).fold(f64::NEG_INFINITY, f64::max);
        let empty = Sums {
            shift,
            ..Sums::EMPTY
        };
        places.fold(empty, |sum, i| {
            let z = z(i);
            let e = (z - shift).exp();
            Sums {
                shift,
                s0: sum.s0 + e,
                s1: sum.s1 + e * z,
                s2: sum.s2 + e * self.kernel.log_q[i],
            }
        })
    }
}

/// Largest absolute value: as integers, which order like the absolute values, with those that are not numbers on top, and compare
/// fast.
#[inline(always)]
fn max_abs(values: &[f32]) -> f32 {
    let bits = values.iter().map(|x| x.abs().to_bits());
    f32::from_bits(bits.fold(0, u32::max))
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
    /// `1 / n!`, from the highest power down.
    const FACTORS: [f64; 7] = [
        1.0 / 5040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
    ];
    if x.abs() > 0.05 {
        return x.exp();
    }
    // The first term left out, x^8 / 8!, is below 1e-15.
    1.0 + x * FACTORS.iter().fold(0.0, |sum, factor| sum * x + factor)
}
