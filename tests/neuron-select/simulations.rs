//! Do the numbers hold? Every simulation runs here in small with the tests, and at full size by `cargo xtask simulate`, which prints the
//! tables of docs/simulations.md.

use std::error::Error;

use neuron_select::{Curve, Law, Laws, Shape, Verdict};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use surprisal_metrics::{Bootstrap, Group};

type Outcome = Result<(), Box<dyn Error>>;

/// The generator of one repetition: the same whatever thread runs it.
fn generator(seed: u64, repetition: usize) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(repetition as u64);
    rng
}

/// A standard normal value (Box & Muller 1958).
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let (u, v): (f64, f64) = (rng.random(), rng.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// Share of the repetitions for which `holds` is true, with the index as its argument.
fn share(repetitions: usize, holds: impl Fn(usize) -> bool + Sync) -> f64 {
    let hits = (0..repetitions).into_par_iter().filter(|&i| holds(i));
    hits.count() as f64 / repetitions as f64
}

/// What the groups of a repetition are like.
#[derive(Debug, Clone, Copy)]
enum Clusters {
    Normal,
    Lognormal,
    /// Groups of very different size, and a ratio of two means over them.
    Ratio,
}

/// Of nominal 95 % intervals, how many hold the true value.
fn coverage(law: Clusters, n: usize, repetitions: usize, resamples: usize) -> f64 {
    share(repetitions, |i| {
        let mut rng = generator(1, i);
        let bootstrap = Bootstrap {
            resamples,
            ..Bootstrap::with_seed(i as u64)
        };
        let (interval, truth) = match law {
            Clusters::Normal | Clusters::Lognormal => {
                let value = |z: f64| {
                    if matches!(law, Clusters::Normal) {
                        z
                    } else {
                        z.exp()
                    }
                };
                let groups: Vec<Group> = (0..n)
                    .map(|_| Group::of(&[value(normal(&mut rng))]))
                    .collect();
                let truth = if matches!(law, Clusters::Normal) {
                    0.0
                } else {
                    0.5f64.exp()
                };
                (bootstrap.mean(&groups), truth)
            }
            Clusters::Ratio => {
                let count = 10.0;
                let (mut part, mut whole) = (Vec::new(), Vec::new());
                for _ in 0..n {
                    let sum = normal(&mut rng).exp();
                    whole.push(Group { sum, count });
                    let sum = sum * rng.random::<f64>();
                    part.push(Group { sum, count });
                }
                (bootstrap.ratio(&part, &whole, 0.0), 0.5)
            }
        };
        let held = |i: surprisal_metrics::Interval| i.lower <= truth && truth <= i.upper;
        interval.is_ok_and(|interval| interval.is_some_and(held))
    })
}

/// Percentile intervals cover 80 % of lognormal values here.
#[test]
fn intervals_of_ten_groups_cover() {
    for law in [Clusters::Normal, Clusters::Lognormal, Clusters::Ratio] {
        let covered = coverage(law, 10, 1000, 400);
        assert!((0.90..=0.98).contains(&covered), "{law:?}: {covered}");
    }
}

#[test]
#[ignore = "slow: `cargo xtask simulate` runs it"]
fn table_of_coverage() -> Outcome {
    println!("Coverage of nominal 95 % intervals, 10,000 repetitions of 1,000 resamples:\n");
    println!("| groups | normal | lognormal | ratio, unequal groups |\n|---|---|---|---|");
    for n in [8, 10, 20, 50] {
        let [a, b, c] = [Clusters::Normal, Clusters::Lognormal, Clusters::Ratio]
            .map(|law| 100.0 * coverage(law, n, 10_000, 1000));
        println!("| {n} | {a:.1} % | {b:.1} % | {c:.1} % |");
        assert!(n < 10 || a.min(b).min(c) >= 91.0);
    }
    Ok(())
}

/// What the influences of a repetition are like.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Influence {
    Of(Law),
    /// A plateau, a power law and a decay, with noise.
    ThreeRegimes,
}

impl Influence {
    fn draw(self, n: usize, rng: &mut ChaCha8Rng) -> Vec<f64> {
        let regimes = |rank: f64, z: f64| {
            let x = rank.ln();
            let hinge = |at: f64| (x - (at * n as f64).ln()).max(0.0);
            (-0.05 * x - 0.75 * hinge(0.02) - 3.0 * hinge(0.4) + 0.05 * z).exp()
        };
        (0..n)
            .map(|i| match self {
                Self::Of(Law::PowerLaw) => (1.0 - rng.random::<f64>()).powf(-1.0 / 1.5),
                Self::Of(Law::Lognormal) => normal(rng).exp(),
                Self::Of(Law::Exponential) => -(1.0 - rng.random::<f64>()).ln(),
                Self::ThreeRegimes => regimes((i + 1) as f64, normal(rng)),
            })
            .collect()
    }
}

/// Shares of the verdicts "three regimes", each law, "cannot be told apart" and "no law", and of broken lines that have three regimes.
fn verdicts(influence: Influence, n: usize, repetitions: usize) -> [f64; 7] {
    let verdicts: Vec<(Option<Verdict>, bool)> = (0..repetitions)
        .into_par_iter()
        .map(|i| {
            let values = influence.draw(n, &mut generator(2, i));
            let shape = Curve::fit(&values).map(|curve| curve.shape);
            let verdict = Laws::of(&values, 199, i as u64)
                .ok()
                .zip(shape.as_ref().ok().copied())
                .map(|(laws, shape)| laws.verdict(shape));
            (verdict, shape == Ok(Shape::ThreeRegimes))
        })
        .collect();
    let of = |wanted: &dyn Fn(Verdict) -> bool| {
        let hits = verdicts.iter().filter(|(v, _)| v.is_some_and(wanted));
        hits.count() as f64 / repetitions as f64
    };
    let law = |law: Law| of(&|v| v == Verdict::Law(law));
    let lines = verdicts.iter().filter(|(_, three)| *three).count();
    let three = |v| v == Verdict::NoLaw(Shape::ThreeRegimes);
    [
        of(&three),
        law(Law::PowerLaw),
        law(Law::Lognormal),
        law(Law::Exponential),
        of(&|v| v == Verdict::CannotBeToldApart),
        of(&|v| matches!(v, Verdict::NoLaw(_)) && !three(v)),
        lines as f64 / repetitions as f64,
    ]
}

/// The broken line alone says "three regimes" of most samples of one law, and never "power law" of a true one.
#[test]
fn the_influence_curve_does_not_see_regimes_in_noise() {
    for law in Law::ALL {
        let shares = verdicts(Influence::Of(law), 256, 100);
        assert!(shares[0] <= 0.05, "{law:?}: {shares:?}");
        assert!(shares[1 + law as usize] >= 0.7, "{law:?}: {shares:?}");
    }
    let shares = verdicts(Influence::ThreeRegimes, 1024, 30);
    assert!(shares[0] >= 0.7, "{shares:?}");
}

#[test]
#[ignore = "slow: `cargo xtask simulate` runs it"]
fn table_of_verdicts() -> Outcome {
    println!(
        "Verdicts on influence curves, 1,000 repetitions, 199 draws of the parametric bootstrap:\n"
    );
    println!(
        "| values | neurons | three regimes | power law | lognormal | exponential | cannot be told apart | no law | broken line alone: three regimes |\n|---|---|---|---|---|---|---|---|---|"
    );
    let made = [
        Influence::Of(Law::PowerLaw),
        Influence::Of(Law::Lognormal),
        Influence::Of(Law::Exponential),
        Influence::ThreeRegimes,
    ];
    for influence in made {
        for n in [64, 256, 1024] {
            let shares = verdicts(influence, n, 1000);
            let name = match influence {
                Influence::Of(law) => law.name(),
                Influence::ThreeRegimes => "three regimes",
            };
            let shown = shares.map(|share| format!("{:.1} %", 100.0 * share));
            println!("| {name} | {n} | {} |", shown.join(" | "));
            assert!(shares[0] <= 0.05 || influence == Influence::ThreeRegimes);
        }
    }
    Ok(())
}
