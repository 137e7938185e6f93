//! The kernel against plain f64 sums, on every instruction set that the machine has.
#![cfg(test)]

use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use vocabulary_sums::{
    Base, Direction, Kernel, Moved, Pairs, Path, Sums, Tilt, TiltSite, VocabLayout,
};

/// Vectors over a vocabulary, in layout order.
struct Case {
    layout: VocabLayout,
    log_q: Vec<f64>,
    l: Vec<f32>,
    g: Vec<f32>,
    u: Vec<f32>,
}

impl Case {
    /// Zipf frequencies; the rarer half of the tokens is a band; Gaussian-like logits of the given spreads.
    fn new(d_vocab: usize, spread: [f32; 3], seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let norm: f64 = (1..=d_vocab).map(|r| 1.0 / r as f64).sum();
        let log_q: Vec<f64> = (1..=d_vocab).map(|r| -(r as f64 * norm).ln()).collect();
        let rare: Vec<bool> = (0..d_vocab).map(|t| t >= d_vocab / 2).collect();
        let layout = VocabLayout::new(&log_q, &[&rare]);
        let log_q = layout.order().iter().map(|&t| log_q[t as usize]).collect();
        let mut draw = |spread: f32| -> Vec<f32> {
            (0..d_vocab)
                .map(|_| spread * (0..4).map(|_| rng.random_range(-1.0f32..1.0)).sum::<f32>())
                .collect()
        };
        Self {
            layout,
            log_q,
            l: draw(spread[0]),
            g: draw(spread[1]),
            u: draw(spread[2]),
        }
    }

    fn by_kernel(&self, path: Path, base: Base, tilt: Tilt) -> Vec<Sums> {
        let kernel = Kernel::with_path(&self.layout, &self.log_q, path);
        let cells = vec![true; self.layout.cells().len()];
        let (row, vectors) = (kernel.row(&self.l, &self.g), [kernel.vector(&self.u)]);
        kernel.sums(
            &[TiltSite { base: 0, cells }],
            &Pairs {
                rows: std::slice::from_ref(&row),
                vectors: &vectors,
                pairs: &[(0, Direction::Vector(0))],
                bases: &[base],
                tilts: &[tilt],
            },
        )
    }

    /// `[reading][cell]`, one entry at a time.
    fn in_f64(&self, base: Base, tilt: Tilt) -> Vec<Sums> {
        let mut all = Vec::new();
        for tilt in [Tilt::default(), tilt] {
            for cell in self.layout.cells() {
                let z = |i: usize| {
                    f64::from(self.l[i])
                        + base.a * f64::from(self.g[i])
                        + base.c * f64::from(self.u[i])
                        + tilt.k * self.log_q[i]
                        + tilt.offset
                };
                let shift = cell.range().map(z).fold(f64::NEG_INFINITY, f64::max);
                let sum = |f: &dyn Fn(usize) -> f64| {
                    cell.range().map(|i| (z(i) - shift).exp() * f(i)).sum()
                };
                all.push(Sums {
                    shift,
                    s0: sum(&|_| 1.0),
                    s1: sum(&z),
                    s2: sum(&|i| self.log_q[i]),
                });
            }
        }
        all
    }
}

/// Log-sum-exp, mean logit and mean `log q`.
fn means(sums: &Sums) -> [f64; 3] {
    [sums.lse(), sums.s1 / sums.s0, sums.s2 / sums.s0]
}

#[track_caller]
fn close(got: &[Sums], expected: &[Sums], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        for (x, y) in means(got).into_iter().zip(means(expected)) {
            assert!(
                (x - y).abs() <= tolerance * (1.0 + y.abs()),
                "sums {i}: {x} and {y} differ by {:e}",
                x - y
            );
        }
    }
}

#[test]
fn every_path_is_within_1e_6_of_f64_on_pythia_s_vocabulary() {
    let case = Case::new(50_304, [2.5, 0.8, 0.05], 1);
    let (base, tilt) = (
        Base { a: 0.02, c: -1.3 },
        Tilt {
            k: 3e-3,
            offset: 0.02,
        },
    );
    for path in Path::available() {
        close(
            &case.by_kernel(path, base, tilt),
            &case.in_f64(base, tilt),
            1e-6,
        );
    }
}

#[test]
fn every_path_equals_the_scalar_one() {
    // No multiple of any number of lanes, and cells of one token.
    for d_vocab in [2, 3, 7, 17, 33, 1_023, 2_061] {
        let case = Case::new(d_vocab, [2.0, 1.0, 1.0], 7);
        let (base, tilt) = (
            Base { a: -0.3, c: 0.7 },
            Tilt {
                k: 0.04,
                offset: -0.5,
            },
        );
        let scalar = case.by_kernel(Path::Scalar, base, tilt);
        for path in Path::available() {
            close(&case.by_kernel(path, base, tilt), &scalar, 1e-6);
        }
    }
}

#[test]
fn a_tilt_is_right_whether_by_series_or_by_a_pass_of_its_own() {
    let case = Case::new(5_000, [2.0, 0.5, 0.1], 3);
    for k in [0.0, 1e-4, 5e-3, 0.02, 0.5, -4.0, 60.0, -900.0] {
        let (base, tilt) = (Base { a: 0.1, c: 1.0 }, Tilt { k, offset: 6.0 * k });
        close(
            &case.by_kernel(Path::available()[0], base, tilt),
            &case.in_f64(base, tilt),
            1e-6,
        );
    }
}

#[test]
fn a_cell_without_the_tilt_stays_empty() {
    let case = Case::new(100, [1.0; 3], 5);
    let kernel = Kernel::new(&case.layout, &case.log_q);
    let (row, vectors) = (kernel.row(&case.l, &case.g), [kernel.vector(&case.u)]);
    let sites = [TiltSite {
        base: 0,
        cells: vec![false, true],
    }];
    let got = kernel.sums(
        &sites,
        &Pairs {
            rows: std::slice::from_ref(&row),
            vectors: &vectors,
            pairs: &[(0, Direction::Vector(0))],
            bases: &[Base::default()],
            tilts: &[Tilt::default()],
        },
    );
    assert_eq!(got[2], Sums::EMPTY);
    assert!((got[3].lse() - got[1].lse()).abs() < 1e-12);
}

#[test]
fn pairs_come_out_in_their_order() {
    let (one, two) = (Case::new(300, [1.0; 3], 8), Case::new(300, [1.0; 3], 9));
    let kernel = Kernel::new(&one.layout, &one.log_q);
    let rows = [kernel.row(&one.l, &one.g), kernel.row(&two.l, &two.g)];
    let vectors = [kernel.vector(&one.u), kernel.vector(&two.u)];
    let list = [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(row, u)| (row, Direction::Vector(u)));
    let bases: Vec<Base> = (0..8)
        .map(|i| Base {
            a: f64::from(i) / 10.0,
            c: 1.0 - f64::from(i) / 5.0,
        })
        .collect();
    let got = kernel.sums(
        &[],
        &Pairs {
            rows: &rows,
            vectors: &vectors,
            pairs: &list,
            bases: &bases,
            tilts: &[],
        },
    );
    for (i, base) in bases.iter().enumerate() {
        let (row, neuron) = ([&one, &two][i / 4], [&one, &two][i / 2 % 2]);
        let case = Case {
            layout: one.layout.clone(),
            log_q: one.log_q.clone(),
            l: row.l.clone(),
            g: row.g.clone(),
            u: neuron.u.clone(),
        };
        close(
            &got[2 * i..2 * i + 2],
            &case.in_f64(*base, Tilt::default())[..2],
            1e-6,
        );
    }
}

/// Changes from tiny ones to those that need a whole exponential, in runs of one to six alike: every way of summing a tile.
#[test]
fn a_small_change_is_right_relative_to_its_size() {
    let case = Case::new(9_001, [2.5, 1.0, 1.0], 11);
    let n_cells = case.layout.cells().len();
    let sites = [TiltSite {
        base: 0,
        cells: vec![true; n_cells],
    }];
    let sizes: Vec<f64> = (0..18)
        .flat_map(|i| std::iter::repeat_n(2f64.powi(i - 16), 1 + i as usize % 6))
        .collect();
    let bases: Vec<Base> = sizes.iter().map(|&c| Base { a: -0.1 * c, c }).collect();
    let clean = case.in_f64(Base::default(), Tilt::default());
    for path in Path::available() {
        let kernel = Kernel::with_path(&case.layout, &case.log_q, path);
        let (row, vectors) = (kernel.row(&case.l, &case.g), [kernel.vector(&case.u)]);
        let clean_by_kernel = case.by_kernel(path, Base::default(), Tilt::default());
        // Tilts that follow from first moments, from second ones, and that need a pass of their own, which rounds the logits
        // themselves.
        for (k, rounding) in [(1e-5, 3e-8), (3e-3, 3e-8), (0.3, 1e-6)] {
            let tilt = |&c: &f64| Tilt {
                k: k * c,
                offset: 0.5 * c,
            };
            let tilts: Vec<Tilt> = sizes.iter().map(tilt).collect();
            let pairs = Pairs {
                rows: std::slice::from_ref(&row),
                vectors: &vectors,
                pairs: &vec![(0, Direction::Vector(0)); sizes.len()],
                bases: &bases,
                tilts: &tilts,
            };
            let got = kernel.sums(&sites, &pairs);
            for (pair, got) in got.chunks(2 * n_cells).enumerate() {
                let expected = case.in_f64(bases[pair], tilts[pair]);
                for (at, (got, expected)) in got.iter().zip(&expected).enumerate() {
                    for i in 0..3 {
                        let change = means(got)[i] - means(&clean_by_kernel[at])[i];
                        let error = change - (means(expected)[i] - means(&clean[at])[i]);
                        assert!(
                            error.abs() <= rounding + 2e-6 * sizes[pair],
                            "{path:?}, tilt {k}, size {}, sums {at}, mean {i}: off by {error:e}",
                            sizes[pair]
                        );
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However large the perturbation, nothing overflows, and the sums are those of f64.
    #[test]
    fn finite_input_has_finite_and_right_sums(
        d_vocab in 2usize..400, seed in any::<u64>(), exponents in prop::array::uniform3(-3i32..30), a in -1e3f64..1e3, c in -1e6f64..1e6, k in -1e3f64..1e3,
    ) {
        let case = Case::new(d_vocab, exponents.map(|e| 2.0f32.powi(e)), seed);
        let (base, tilt) = (Base { a, c }, Tilt { k, offset: -k });
        for path in Path::available() {
            let got = case.by_kernel(path, base, tilt);
            prop_assert!(got.iter().flat_map(means).all(f64::is_finite));
            close(&got, &case.in_f64(base, tilt), 1e-5);
        }
    }
}

#[test]
fn ranks_count_the_larger_logits_on_every_path() {
    // A length that no register divides.
    let case = Case::new(5_003, [3.0, 1.0, 0.5], 7);
    let base = Base { a: 0.3, c: -1.1 };
    for path in Path::available() {
        let kernel = Kernel::with_path(&case.layout, &case.log_q, path);
        let (row, vector) = (kernel.row(&case.l, &case.g), kernel.vector(&case.u));
        let z = |i: usize| {
            let (l, g, u) = (
                f64::from(case.l[i]),
                f64::from(case.g[i]),
                f64::from(case.u[i]),
            );
            l + base.a * g + base.c * u
        };
        for place in [0, 17, 2_500, 5_002] {
            let rank = kernel.rank(&row, &vector, base, place);
            // Between tokens that are clearly above and those that are not clearly below: f32 may order near ties either way.
            let above = |margin: f64| (0..5_003).filter(|&i| z(i) > z(place) + margin).count();
            assert!(
                (above(1e-5)..=above(-1e-5)).contains(&rank),
                "{path:?}, {place}: {rank}"
            );
        }
    }
}

/// A row and vectors of which directions are sums; the last one is 0 outside the band.
struct Sum {
    row: Case,
    vectors: Vec<Vec<f32>>,
    band: std::ops::Range<usize>,
}

impl Sum {
    fn new(d_vocab: usize, spread: f32) -> Self {
        Self::with_row(d_vocab, spread, 2.5)
    }

    fn with_row(d_vocab: usize, spread: f32, of_row: f32) -> Self {
        let row = Case::new(d_vocab, [of_row, 1.0, spread], 21);
        let of_band = |cell: &&vocabulary_sums::Cell| cell.in_band(0);
        let band = row.layout.cells().iter().find(of_band).unwrap().range();
        let mut vectors: Vec<Vec<f32>> = (0..20)
            .map(|i| Case::new(d_vocab, [1.0, 1.0, spread], 30 + i).u)
            .collect();
        for (place, value) in vectors[19].iter_mut().enumerate() {
            *value *= f32::from(u8::from(band.contains(&place)));
        }
        Self { row, vectors, band }
    }

    /// The case whose `u` is the sum itself.
    fn case(&self, terms: &[(usize, f64)]) -> Case {
        let at = |i: usize| {
            terms
                .iter()
                .map(move |&(v, f)| f * f64::from(self.vectors[v][i]))
        };
        Case {
            layout: self.row.layout.clone(),
            log_q: self.row.log_q.clone(),
            l: self.row.l.clone(),
            g: self.row.g.clone(),
            u: (0..self.row.l.len())
                .map(|i| at(i).sum::<f64>() as f32)
                .collect(),
        }
    }
}

/// More sums than are made at once, each going on from the one before, with vectors as they are between them.
#[test]
fn a_direction_is_the_sum_of_its_vectors() {
    let sum = Sum::new(9_001, 0.3);
    let terms: Vec<(usize, f64)> = (0..20).map(|i| (i, 1.0 - i as f64 / 7.0)).collect();
    let base = Base { a: -0.1, c: 0.7 };
    let mut pairs = vec![(0, Direction::Vector(19)), (0, Direction::Sum(&terms[..1]))];
    let mut expected = vec![sum.case(&[(19, 1.0)]), sum.case(&terms[..1])];
    for i in 1..20 {
        let last = &terms[i..=i];
        pairs.push((0, Direction::Further(last)));
        expected.push(sum.case(&terms[..=i]));
    }
    pairs.extend([(0, Direction::Sum(&[])), (0, Direction::Sum(&terms))]);
    expected.extend([sum.case(&[]), sum.case(&terms)]);
    // Up to 19 chains of the same vectors in three steps, one of them with none: more than are added up at once, and rests of every size.
    let scaled: Vec<Vec<(usize, f64)>> = (0..19)
        .map(|i| {
            let by = f64::from(i) / 6.0;
            terms.iter().map(|&(v, f)| (v, f * by)).collect()
        })
        .collect();
    for terms in &scaled {
        pairs.push((0, Direction::Sum(&terms[..5])));
        pairs.push((0, Direction::Further(&[])));
        pairs.push((0, Direction::Further(&terms[5..12])));
        expected.extend([&terms[..5], &terms[..5], &terms[..12]].map(|terms| sum.case(terms)));
    }
    for path in Path::available() {
        let kernel = Kernel::with_path(&sum.row.layout, &sum.row.log_q, path);
        let row = kernel.row(&sum.row.l, &sum.row.g);
        let mut vectors: Vec<_> = sum.vectors.iter().map(|v| kernel.vector(v)).collect();
        vectors[19] = kernel.part(sum.band.start, &sum.vectors[19][sum.band.clone()]);
        let pairs = Pairs {
            rows: std::slice::from_ref(&row),
            vectors: &vectors,
            pairs: &pairs,
            bases: &vec![base; pairs.len()],
            tilts: &[],
        };
        let got = kernel.sums(&[], &pairs);
        for (got, expected) in got.chunks(2).zip(&expected) {
            close(got, &expected.in_f64(base, Tilt::default())[..2], 1e-6);
        }
    }
}

#[test]
#[should_panic(expected = "goes on from")]
fn a_direction_does_not_go_on_from_another_row() {
    let sum = Sum::new(100, 1.0);
    let kernel = Kernel::new(&sum.row.layout, &sum.row.log_q);
    let row = kernel.row(&sum.row.l, &sum.row.g);
    let terms = [(0, 1.0)];
    kernel.sums(
        &[],
        &Pairs {
            rows: &[row.clone(), row],
            vectors: &[kernel.vector(&sum.vectors[0])],
            pairs: &[(0, Direction::Sum(&terms)), (1, Direction::Further(&terms))],
            bases: &[Base::default(); 2],
            tilts: &[],
        },
    );
}

/// From next to nothing to what f32 cannot hold: every way over a tile, with tiles that do not move, against plain f64.
#[test]
fn divergences_are_those_of_f64_relative_to_their_size() {
    // The latter logits are too far apart for f32, moved or not.
    for sum in [2.5, 60.0].map(|of_row| Sum::with_row(9_001, 1.0, of_row)) {
        check_divergences(&sum);
    }
}

fn check_divergences(sum: &Sum) {
    for (a, c) in [
        (0.0, 0.0),
        (0.0, 1e-4),
        (1e-3, -1e-3),
        (0.02, 0.1),
        (-0.1, 0.6),
        (0.3, -4.0),
        (0.0, 60.0),
        (-3.0, 900.0),
    ] {
        let base = Base { a, c };
        for v in [0, 19] {
            let case = sum.case(&[(v, 1.0)]);
            let z = |i: usize| {
                let d = a * f64::from(case.g[i]) + c * f64::from(case.u[i]);
                [f64::from(case.l[i]), f64::from(case.l[i]) + d]
            };
            let lse = [0, 1].map(|of| {
                let top = (0..9_001).map(|i| z(i)[of]).fold(f64::MIN, f64::max);
                top + (0..9_001).map(|i| (z(i)[of] - top).exp()).sum::<f64>().ln()
            });
            let mut expected = [0.0; 3];
            for i in 0..9_001 {
                let [ln_p, ln_moved] = [0, 1].map(|of| z(i)[of] - lse[of]);
                let (p, moved, x) = (ln_p.exp(), ln_moved.exp(), ln_moved - ln_p);
                // `ln m - ln p` and `ln m - ln p'` of the mixture `m`.
                let to_mixture = |x: f64| (x.exp_m1() / 2.0).ln_1p();
                expected[0] -= p * x;
                expected[1] += moved * x;
                let of_p = if x < 700.0 {
                    to_mixture(x)
                } else {
                    x - 2f64.ln()
                };
                let of_moved = if x > -700.0 {
                    to_mixture(-x)
                } else {
                    -x - 2f64.ln()
                };
                expected[2] -= 0.5 * (p * of_p + moved * of_moved);
            }
            for path in Path::available() {
                let kernel = Kernel::with_path(&case.layout, &case.log_q, path);
                let (start, of_band) = (sum.band.start, &case.u[sum.band.clone()]);
                let row = kernel.row(&case.l, &case.g);
                let vectors = [kernel.vector(&case.u), kernel.part(start, of_band)];
                for place in [5, sum.band.start + 77] {
                    let pairs = Pairs {
                        rows: std::slice::from_ref(&row),
                        vectors: &vectors,
                        pairs: &[(0, Direction::Vector(v.min(1)))],
                        bases: &[base],
                        tilts: &[],
                    };
                    let moved = Moved {
                        lse: Sums::over(kernel.sums(&[], &pairs).iter()).lse(),
                        target: z(place)[1],
                    };
                    let found = kernel.divergences(&pairs, &[moved], &[place])[0];
                    let what =
                        format!("{path:?}, a {a}, c {c}, vector {v}: {found:?}, {expected:?}");
                    let values = [
                        found.kl_clean_moved,
                        found.kl_moved_clean,
                        found.jensen_shannon,
                    ];
                    for (found, expected) in values.into_iter().zip(expected) {
                        // Plain f64 sums of what cancels are no better than the second part.
                        let allowed = 1e-5 * expected.abs() + 2e-14;
                        assert!(
                            (found - expected).abs() <= allowed && found >= 0.0,
                            "{what}"
                        );
                    }
                    let above = |margin: f64| {
                        let above = |i: &usize| z(*i)[1] > moved.target + margin;
                        (0..9_001).filter(above).count()
                    };
                    let close = 1e-5 * (1.0 + moved.target.abs());
                    assert!(
                        (above(close)..=above(-close)).contains(&found.rank),
                        "{what}"
                    );
                }
            }
        }
    }
}
