//! Cost of the kernel per (row, neuron) pair at Pythia's vocabulary, beside a bare loop of the same exponentials.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use vocabulary_sums::{Base, Direction, Kernel, Pairs, Path, Tilt, TiltSite, VocabLayout, exp_sum};

const D_VOCAB: usize = 50_304;
const ROWS: usize = 16;
const NEURONS: usize = 32;
/// Largest change of a logit, in nats: of most ablations, of some, and where every exponential is computed anew.
const SIZES: [f64; 3] = [0.03, 0.2, 2.0];
/// `g` and `u` lie between this and its negative.
const SPREAD: f32 = 5.0;

/// Cost against the size of the vocabulary, for the total effect and a frozen band.
fn vocabulary(c: &mut Criterion) {
    let mut group = c.benchmark_group("vocabulary");
    group.sample_size(20);
    for d_vocab in [D_VOCAB / 4, D_VOCAB / 2, D_VOCAB, 2 * D_VOCAB] {
        let rare: Vec<bool> = (0..d_vocab).map(|t| t >= d_vocab / 2).collect();
        let log_q: Vec<f64> = (0..d_vocab)
            .map(|t| -((t + 1) as f64 * 11.4).ln())
            .collect();
        let kernel = Kernel::new(&VocabLayout::new(&log_q, &[&rare]), &log_q);
        let [l, g, u] = [1, 2, 3].map(|seed| vector(seed, d_vocab, SPREAD));
        let (row, vector) = (kernel.row(&l, &g), kernel.vector(&u));
        let sites = [TiltSite {
            base: 0,
            cells: vec![false, true],
        }];
        let pairs = Pairs {
            rows: std::slice::from_ref(&row),
            vectors: &[vector],
            pairs: &[(0, Direction::Vector(0))],
            bases: &[Base { a: 1e-4, c: 5e-3 }],
            tilts: &[Tilt {
                k: 1e-3,
                offset: 0.01,
            }],
        };
        group.throughput(Throughput::Elements(d_vocab as u64));
        group.bench_function(format!("{d_vocab} tokens"), |b| {
            b.iter(|| black_box(kernel.sums(&sites, &pairs)))
        });
    }
}

fn vector(seed: u32, len: usize, spread: f32) -> Vec<f32> {
    let mut state = seed;
    let draw = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        spread * ((state >> 8) as f32 / (1 << 23) as f32 - 1.0)
    };
    (0..len).map(draw).collect()
}

fn kernel(c: &mut Criterion) {
    let rare: Vec<bool> = (0..D_VOCAB).map(|t| t >= D_VOCAB / 2).collect();
    let log_q: Vec<f64> = (0..D_VOCAB)
        .map(|t| -((t + 1) as f64 * 11.4).ln())
        .collect();
    let layout = VocabLayout::new(&log_q, &[&rare]);
    let numbers: Vec<Vec<f32>> = (0..2 * ROWS + NEURONS)
        .map(|i| vector(i as u32, D_VOCAB, SPREAD))
        .collect();
    let pairs = (ROWS * NEURONS) as u64;
    let mut group = c.benchmark_group("pair");
    group
        .throughput(Throughput::Elements(pairs))
        .sample_size(20);
    for path in Path::available() {
        let kernel = Kernel::with_path(&layout, &log_q, path);
        let rows: Vec<_> = (0..ROWS)
            .map(|i| kernel.row(&numbers[2 * i], &numbers[2 * i + 1]))
            .collect();
        let vectors: Vec<_> = (0..NEURONS)
            .map(|i| kernel.vector(&numbers[2 * ROWS + i]))
            .collect();
        let list: Vec<_> = (0..ROWS * NEURONS)
            .map(|i| (i / NEURONS, Direction::Vector(i % NEURONS)))
            .collect();
        let mut run = |name: &str, bases: usize, sites: &[TiltSite]| {
            for size in SIZES {
                let c = size / f64::from(SPREAD) / 1.1;
                let bases = vec![Base { a: c / 10.0, c }; bases * list.len()];
                let tilt = Tilt {
                    k: c / 20.0,
                    offset: 0.01,
                };
                let tilts = vec![tilt; sites.len() * list.len()];
                let pairs = Pairs {
                    rows: &rows,
                    vectors: &vectors,
                    pairs: &list,
                    bases: &bases,
                    tilts: &tilts,
                };
                group.bench_function(format!("{path:?}/{name}/{size} nats"), |b| {
                    b.iter(|| black_box(kernel.sums(sites, &pairs)))
                });
            }
        };
        let band = TiltSite {
            base: 0,
            cells: vec![false, true],
        };
        let all = TiltSite {
            base: 0,
            cells: vec![true, true],
        };
        run("total", 1, &[]);
        run("total_and_band", 1, std::slice::from_ref(&band));
        run("total_frozen_ln_all_and_band", 2, &[all, band]);
        group.bench_function(format!("{path:?}/bare_exponentials"), |b| {
            b.iter(|| {
                (0..pairs as usize)
                    .map(|i| exp_sum(path, &numbers[i % ROWS]))
                    .sum::<f64>()
            })
        });
    }
}

criterion_group!(benches, kernel, vocabulary);
criterion_main!(benches);
