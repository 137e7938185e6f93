//! The engines against an evaluation in f64, pair by pair.
#![cfg(test)]

mod random_model;

use std::error::Error;

use neox_core::{LoadOptions, Model};
use neuron_ablate::{
    Dose, Engine, EngineOptions, ExactSums, OutsideBand, Plan, Sample, Semantics, Sweep, TokenBand,
    TokenFrequencies, Variants,
};
use random_model::{random_model, random_tokens, zipf};
use tch::Kind;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Of every pair: by how much its measures change, `[variant][measure]`, and the bound on their error.
type Table = Vec<(Vec<f64>, f64)>;

fn moments(sums: ExactSums) -> EngineOptions {
    exact(sums).with_engine(Engine::Moments)
}

fn auto_engine() -> EngineOptions {
    exact(ExactSums::Kernel).with_engine(Engine::Auto)
}

fn exact(sums: ExactSums) -> EngineOptions {
    EngineOptions::default()
        .with_engine(Engine::Exact)
        .with_exact(sums)
}

struct Case {
    model: Model,
    sample: Sample,
    frequencies: TokenFrequencies,
    band: Vec<u32>,
    /// How many neurons, from the first on.
    neurons: usize,
    /// What rounding in f32 may add to a bound, which has an allowance for it for usual logits.
    rounding: f64,
}

impl Case {
    /// Zipf's law stands in for counts: what matters here is that the engines agree.
    fn new(model: Model, tokens: Vec<Vec<i64>>) -> Outcome<Self> {
        let d_vocab = usize::try_from(model.config().vocab_size)?;
        Ok(Self {
            sample: Sample::new(tokens, &[0], d_vocab)?,
            frequencies: TokenFrequencies::new(zipf(d_vocab))?,
            band: (d_vocab as u32 / 2..d_vocab as u32 * 9 / 10).collect(),
            model,
            neurons: 48,
            rounding: 0.0,
        })
    }

    /// The bundled model, on the tokens of the golden tables.
    fn tiny_neox() -> Outcome<Self> {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
        let checkpoint = format!("{root}/examples/data/tiny-neox/step4000");
        let model = Model::load(checkpoint.as_ref(), &LoadOptions::default())?;
        let inputs = format!("{root}/tests/golden/tiny-neox/ablation-inputs.json");
        let inputs: serde_json::Value = serde_json::from_slice(&std::fs::read(inputs)?)?;
        Self::new(model, serde_json::from_value(inputs["tokens"].clone())?)
    }

    /// Pythia's vocabulary on one narrow layer of random weights; logits spread over some nats, as trained ones do.
    fn pythia_vocabulary() -> Outcome<Self> {
        Self::random(50_304, 0.7)
    }

    /// A narrow model of random weights whose rows of `W_U` have entries of that spread.
    fn random(d_vocab: i64, spread: f64) -> Outcome<Self> {
        let model = random_model(d_vocab, spread, Kind::Float, |_| ())?;
        Self::new(model, random_tokens(2, 20, d_vocab))
    }

    /// A band and the rest of the vocabulary, each with half of the probability, whose logits and frequencies are as far apart as can be:
    /// an error in the mass of the band shows in every mean over the vocabulary. Within the band ablations move few tokens, but far, so
    /// that the third moment, which the series cuts, has one sign.
    fn torn_apart(band: std::ops::Range<u32>, likely: i64) -> Outcome<Self> {
        let v = 2048i64;
        let inside = |token: i64| band.contains(&(token as u32));
        let model = random_model(v, 0.02, Kind::Float, |tensors| {
            let gamma = &tensors["gpt_neox.final_layer_norm.weight"];
            let _ = gamma.get(0).fill_(0.0);
            let _ = gamma.get(1).fill_(1.0);
            // Column 0 of `W_U` holds logits that every row has, column 1 what ablations move.
            let beta = &tensors["gpt_neox.final_layer_norm.bias"];
            let _ = beta.shallow_clone().fill_(0.0);
            let _ = beta.get(0).fill_(1.0);
            let w_u = &tensors["embed_out.weight"];
            for token in 0..v {
                let logit = match inside(token) {
                    true => -(band.len() as f64).ln(),
                    false if token < likely => -(likely as f64).ln(),
                    false => -20.0,
                };
                let moved = if token % 7 == 3 { 2.0 } else { 0.0 };
                let _ = w_u.get(token).get(0).fill_(logit);
                let _ = w_u
                    .get(token)
                    .get(1)
                    .fill_(moved * f64::from(u8::from(inside(token))));
            }
        })?;
        let uneven = |token: i64| 1.0 + 0.05 * (token % 5) as f64;
        let q = (0..v).map(|token| uneven(token) * if inside(token) { 1e-12 } else { 1.0 });
        let q: Vec<f64> = q.collect();
        let total: f64 = q.iter().sum();
        Ok(Self {
            frequencies: TokenFrequencies::new(q.iter().map(|q| q / total).collect())?,
            band: band.collect(),
            rounding: 1e-7,
            ..Self::new(model, random_tokens(2, 12, v))?
        })
    }

    fn run(&self, engine: EngineOptions, semantics: &Semantics, dose: Dose) -> Outcome<Table> {
        self.run_cut(engine, semantics, dose, Variants::default(), 64 << 20)
    }

    /// As [`Case::run`], with other variants, and in blocks that fit other memory.
    fn run_cut(
        &self,
        engine: EngineOptions,
        semantics: &Semantics,
        dose: Dose,
        variants: Variants,
        memory_budget: usize,
    ) -> Outcome<Table> {
        let (d_vocab, d_mlp) = (
            self.frequencies.q().len(),
            self.model.config().intermediate_size,
        );
        let neurons = 0..usize::try_from(d_mlp)?.min(self.neurons);
        let plan = Plan::new(neurons.collect(), vec![0, 1])
            .with_dose(dose)
            .with_semantics(semantics.clone())
            .with_variants(variants)
            .with_engine(engine)
            .with_batch(4)
            .with_memory_budget(memory_budget);
        let bands = vec![TokenBand::new("band", &self.band, d_vocab)?];
        let sweep = Sweep::new(&self.model, &self.sample, &self.frequencies, bands, plan)?;
        let mut table = Table::new();
        sweep.run_with(
            &mut |block| {
                let changes: Vec<f64> = block.changes().collect();
                let pairs = changes.chunks(sweep.variants().len() * sweep.measures().len());
                table.extend(pairs.map(<[f64]>::to_vec).zip(block.bounds.iter().copied()));
                Ok(())
            },
            &|_| (),
        )?;
        Ok(table)
    }

    /// Checks every pair of an engine against f64; returns the share of pairs measured by moments.
    #[track_caller]
    fn check(
        &self,
        engine: EngineOptions,
        semantics: &Semantics,
        dose: Dose,
        allowed: f64,
    ) -> Outcome<f64> {
        let truth = self.run(exact(ExactSums::TensorF64), semantics, dose)?;
        let table = self.run(engine, semantics, dose)?;
        assert_eq!(truth.len(), table.len());
        for (pair, ((truth, _), (found, bound))) in truth.iter().zip(&table).enumerate() {
            for (value, (truth, found)) in truth.iter().zip(found).enumerate() {
                let (error, bound) = (
                    (truth - found).abs(),
                    if *bound > 0.0 {
                        *bound + self.rounding
                    } else {
                        allowed
                    },
                );
                assert!(
                    error <= bound,
                    "pair {pair}, value {value}: {found} is off by {error:.2e}, allowed {bound:.2e}"
                );
            }
        }
        let by_moments = table.iter().filter(|(_, bound)| *bound > 0.0).count();
        Ok(by_moments as f64 / table.len() as f64)
    }
}

#[test]
fn the_kernel_is_within_1e_5_of_f64() -> Outcome<()> {
    for case in [Case::tiny_neox()?, Case::pythia_vocabulary()?] {
        for semantics in [Semantics::corrected(), Semantics::liu2025()] {
            case.check(exact(ExactSums::Kernel), &semantics, Dose::Mean, 1e-5)?;
        }
    }
    Ok(())
}

/// The path of a GPU, on the CPU device.
#[test]
fn tensor_operations_are_within_1e_5_of_f64() -> Outcome<()> {
    let case = Case::tiny_neox()?;
    case.check(
        exact(ExactSums::Tensor),
        &Semantics::corrected(),
        Dose::Mean,
        1e-5,
    )?;
    Ok(())
}

#[test]
fn moments_are_within_their_bound_on_every_pair() -> Outcome<()> {
    // Our own passes, and the path of a GPU on the CPU device.
    for exact in [ExactSums::Kernel, ExactSums::Tensor] {
        let moments = moments(exact);
        for case in [Case::tiny_neox()?, Case::pythia_vocabulary()?] {
            for semantics in [
                Semantics::corrected(),
                Semantics::liu2025(),
                Semantics::stolfo2024(),
            ] {
                let share = case.check(moments, &semantics, Dose::Mean, 0.0)?;
                assert!(share > 0.99, "only {share} of the pairs have a bound");
            }
        }
    }
    Ok(())
}

/// Changes that no series can follow: the bound has to say so, up to where it is infinite.
#[test]
fn large_changes_never_slip_under_the_bound() -> Outcome<()> {
    for case in [Case::tiny_neox()?, Case::pythia_vocabulary()?] {
        for factor in [-1e4, -30.0, -4.0, 3.0, 10.0, 1e3] {
            case.check(
                moments(ExactSums::Kernel),
                &Semantics::corrected(),
                Dose::Scale(factor),
                0.0,
            )?;
        }
    }
    Ok(())
}

/// Every reading and variant, those that put clean logits back among them, where the bound is nearly reached.
#[test]
fn the_bound_holds_where_bands_are_torn_apart() -> Outcome<()> {
    let readings = [
        Semantics::corrected(),
        Semantics::liu2025(),
        Semantics::stolfo2024(),
        Semantics::corrected().with_outside_band(OutsideBand::Clean),
        Semantics::liu2025().with_outside_band(OutsideBand::Ablated),
    ];
    // Few likely tokens beside a band of many, many beside a band of few, both few.
    for (band, likely) in [(1024..2048, 1), (2008..2048, 1500), (2034..2048, 2)] {
        let case = Case::torn_apart(band, likely)?;
        for semantics in &readings {
            for factor in [0.0, -3.0, 6.0] {
                for exact in [ExactSums::Kernel, ExactSums::Tensor] {
                    let moments = moments(exact);
                    case.check(moments, semantics, Dose::Scale(factor), 0.0)?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn auto_leaves_to_the_moments_what_they_can_do_and_nothing_else() -> Outcome<()> {
    // Moments pay only if enough neurons share what is done for each row.
    let case = Case {
        neurons: 256,
        ..Case::tiny_neox()?
    };
    let semantics = Semantics::corrected();
    let share = case.check(auto_engine(), &semantics, Dose::Mean, 1e-5)?;
    assert!(
        (0.2..0.9).contains(&share),
        "{share} of the pairs by moments"
    );
    let kernel = case.run(exact(ExactSums::Kernel), &semantics, Dose::Mean)?;
    for (auto, kernel) in case
        .run(auto_engine(), &semantics, Dose::Mean)?
        .iter()
        .zip(&kernel)
    {
        assert!(auto.1 <= auto_engine().tolerance);
        assert!(
            auto.1 > 0.0 || auto.0 == kernel.0,
            "exact pairs are the kernel's to the bit"
        );
    }
    // Nothing changes: nothing is left for exact sums, and no measure moves.
    let nothing = case.run(auto_engine(), &semantics, Dose::Scale(1.0))?;
    assert!(
        nothing
            .iter()
            .flat_map(|(change, _)| change)
            .all(|change| change.abs() < 1e-12)
    );
    Ok(())
}

/// Whether moments pay depends on how many neurons share what they need for each row, and on how many readings share them.
#[test]
fn auto_uses_moments_only_where_they_pay() -> Outcome<()> {
    let share = |neurons, variants, dose| -> Outcome<f64> {
        let case = Case {
            neurons,
            ..Case::tiny_neox()?
        };
        let semantics = Semantics::corrected();
        let table = case.run_cut(auto_engine(), &semantics, dose, variants, 64 << 20)?;
        let by_moments = table.iter().filter(|(_, bound)| *bound > 0.0).count();
        Ok(by_moments as f64 / table.len() as f64)
    };
    let all = Variants::default();
    let total = all.with_frozen_ln(false).with_frozen_all(false);
    // Small changes, which moments can measure everywhere, pay for 256 neurons; 60 share too little for one base; 8 for any.
    let small = Dose::Scale(0.99);
    assert!(share(256, total, small)? > 0.9);
    assert_eq!(share(60, total, small)?, 0.0);
    assert!(share(60, all, small)? > 0.9);
    assert_eq!(share(8, all, small)?, 0.0);
    // Changes that are too large for them are not tried.
    assert_eq!(share(256, all, Dose::Scale(1e3))?, 0.0);
    Ok(())
}

#[test]
fn exact_sums_do_not_depend_on_how_the_work_is_cut() -> Outcome<()> {
    for case in [Case::tiny_neox()?, Case::pythia_vocabulary()?] {
        let run = |memory| {
            let (engine, semantics) = (exact(ExactSums::Kernel), Semantics::corrected());
            case.run_cut(engine, &semantics, Dose::Mean, Variants::default(), memory)
        };
        // Blocks come in another order where neurons do not fit together.
        let sorted = |mut table: Table| {
            table.sort_by(|(one, _), (other, _)| {
                one.partial_cmp(other).unwrap_or(std::cmp::Ordering::Equal)
            });
            table
        };
        assert!(sorted(run(64 << 20)?) == sorted(run(1 << 20)?));
    }
    Ok(())
}

#[test]
fn what_does_not_fit_the_sweep_is_refused() -> Outcome<()> {
    let case = Case::tiny_neox()?;
    let new = |bands: Vec<TokenBand>, tolerance: f64| {
        let plan = Plan::new(vec![0], vec![0])
            .with_engine(auto_engine().with_tolerance(tolerance))
            .with_memory_budget(64 << 20);
        Sweep::new(&case.model, &case.sample, &case.frequencies, bands, plan).map(|_| ())
    };
    let d_vocab = case.frequencies.q().len();
    let band = |name: &str, d_vocab| TokenBand::new(name, &case.band, d_vocab);
    new(vec![band("rare", d_vocab)?], 1e-6)?;
    let other = new(vec![band("rare", d_vocab + 1)?], 1e-6).unwrap_err();
    assert!(
        other.to_string().contains("a vocabulary of 4097"),
        "{other}"
    );
    let twice = vec![band("rare", d_vocab)?, band("rare", d_vocab)?];
    let twice = new(twice, 1e-6).unwrap_err().to_string();
    assert!(twice.contains("rare") && twice.contains("twice"), "{twice}");
    for tolerance in [f64::NAN, -1e-6, 0.0, f64::INFINITY] {
        let refused = new(vec![band("rare", d_vocab)?], tolerance).unwrap_err();
        assert!(refused.to_string().contains("`tolerance`"), "{refused}");
    }
    Ok(())
}
