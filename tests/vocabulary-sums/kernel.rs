//! The kernel against plain f64 sums, on every instruction set that the machine has.
#![cfg(test)]

use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use vocabulary_sums::{Base, Kernel, Pairs, Path, Sums, Tilt, TiltSite, VocabLayout};

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
        let (row, neurons) = (kernel.row(&self.l, &self.g), [kernel.neuron(&self.u)]);
        kernel.sums(
            &[TiltSite { base: 0, cells }],
            &Pairs {
                rows: std::slice::from_ref(&row),
                neurons: &neurons,
                pairs: &[(0, 0)],
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
    let (row, neurons) = (kernel.row(&case.l, &case.g), [kernel.neuron(&case.u)]);
    let sites = [TiltSite {
        base: 0,
        cells: vec![false, true],
    }];
    let got = kernel.sums(
        &sites,
        &Pairs {
            rows: std::slice::from_ref(&row),
            neurons: &neurons,
            pairs: &[(0, 0)],
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
    let neurons = [kernel.neuron(&one.u), kernel.neuron(&two.u)];
    let list = [(0, 0), (0, 1), (1, 0), (1, 1)];
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
            neurons: &neurons,
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
        let (row, neurons) = (kernel.row(&case.l, &case.g), [kernel.neuron(&case.u)]);
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
                neurons: &neurons,
                pairs: &vec![(0, 0); sizes.len()],
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
        let (row, neuron) = (kernel.row(&case.l, &case.g), kernel.neuron(&case.u));
        let z = |i: usize| {
            let (l, g, u) = (
                f64::from(case.l[i]),
                f64::from(case.g[i]),
                f64::from(case.u[i]),
            );
            l + base.a * g + base.c * u
        };
        for place in [0, 17, 2_500, 5_002] {
            let rank = kernel.rank(&row, &neuron, base, place);
            // Between tokens that are clearly above and those that are not clearly below: f32 may order near ties either way.
            let above = |margin: f64| (0..5_003).filter(|&i| z(i) > z(place) + margin).count();
            assert!(
                (above(1e-5)..=above(-1e-5)).contains(&rank),
                "{path:?}, {place}: {rank}"
            );
        }
    }
}
