//! The engines against an evaluation in f64, pair by pair.
#![cfg(test)]

use std::error::Error;

use neox_core::{LoadOptions, NeoxModel};
use neuron_ablate::{
    Dose, Engine, EngineOptions, ExactSums, Plan, Sample, Semantics, Sweep, TokenBand,
    TokenFrequencies, Variants,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Of every pair: by how much its measures change, `[variant][measure]`, and the bound on their error.
type Table = Vec<(Vec<f64>, f64)>;

const MOMENTS: EngineOptions = EngineOptions {
    engine: Engine::Moments,
    tolerance: 1e-6,
    exact: ExactSums::Kernel,
};
const AUTO: EngineOptions = EngineOptions {
    engine: Engine::Auto,
    ..MOMENTS
};

fn exact(sums: ExactSums) -> EngineOptions {
    EngineOptions {
        engine: Engine::Exact,
        exact: sums,
        ..MOMENTS
    }
}

struct Case {
    model: NeoxModel,
    sample: Sample,
    frequencies: TokenFrequencies,
    band: Vec<u32>,
    /// How many neurons, from the first on.
    neurons: usize,
}

impl Case {
    /// Zipf's law stands in for counts: what matters here is that the engines agree.
    fn new(model: NeoxModel, tokens: Vec<Vec<i64>>) -> Outcome<Self> {
        let d_vocab = usize::try_from(model.config().vocab_size)?;
        let weights: Vec<f64> = (1..=d_vocab).map(|rank| 1.0 / rank as f64).collect();
        let total: f64 = weights.iter().sum();
        Ok(Self {
            sample: Sample::new(tokens, &[0], d_vocab)?,
            frequencies: TokenFrequencies::new(weights.iter().map(|w| w / total).collect())?,
            band: (d_vocab as u32 / 2..d_vocab as u32 * 9 / 10).collect(),
            model,
            neurons: 48,
        })
    }

    /// The bundled model, on the tokens of the golden tables.
    fn tiny_neox() -> Outcome<Self> {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
        let checkpoint = format!("{root}/examples/data/tiny-neox/step4000");
        let model = NeoxModel::load(checkpoint.as_ref(), &LoadOptions::default())?;
        let inputs = format!("{root}/tests/golden/tiny-neox/ablation-inputs.json");
        let inputs: serde_json::Value = serde_json::from_slice(&std::fs::read(inputs)?)?;
        Self::new(model, serde_json::from_value(inputs["tokens"].clone())?)
    }

    /// Pythia's vocabulary on one narrow layer of random weights; logits spread over some nats, as trained ones do.
    fn pythia_vocabulary() -> Outcome<Self> {
        let dir = tempfile::tempdir()?;
        let (d, m, v) = (16, 24, 50_304);
        let config = format!(
            r#"{{"model_type": "gpt_neox", "hidden_size": {d}, "intermediate_size": {m}, "num_hidden_layers": 1,
                "num_attention_heads": 2, "vocab_size": {v}, "max_position_embeddings": 64, "rotary_pct": 0.25,
                "rotary_emb_base": 10000, "bos_token_id": 0, "eos_token_id": 0}}"#
        );
        std::fs::write(dir.path().join("config.json"), config)?;
        let layer = "gpt_neox.layers.0.";
        let shapes: Vec<(String, Vec<i64>, f64)> = [
            ("gpt_neox.embed_in.weight", vec![v, d], 1.0),
            ("embed_out.weight", vec![v, d], 0.7),
            ("gpt_neox.final_layer_norm.weight", vec![d], 1.0),
            ("gpt_neox.final_layer_norm.bias", vec![d], 0.1),
        ]
        .map(|(name, shape, spread)| (name.to_owned(), shape, spread))
        .into_iter()
        .chain(
            [
                ("input_layernorm.weight", vec![d], 1.0),
                ("input_layernorm.bias", vec![d], 0.1),
                ("post_attention_layernorm.weight", vec![d], 1.0),
                ("post_attention_layernorm.bias", vec![d], 0.1),
                ("attention.query_key_value.weight", vec![3 * d, d], 0.3),
                ("attention.query_key_value.bias", vec![3 * d], 0.1),
                ("attention.dense.weight", vec![d, d], 0.3),
                ("attention.dense.bias", vec![d], 0.1),
                ("mlp.dense_h_to_4h.weight", vec![m, d], 0.2),
                ("mlp.dense_h_to_4h.bias", vec![m], 0.1),
                ("mlp.dense_4h_to_h.weight", vec![d, m], 0.1),
                ("mlp.dense_4h_to_h.bias", vec![d], 0.1),
            ]
            .map(|(name, shape, spread)| (format!("{layer}{name}"), shape, spread)),
        )
        .collect();
        tch::manual_seed(0);
        let mut tensors = Vec::new();
        for (name, shape, spread) in &shapes {
            let tensor = Tensor::f_randn(shape.as_slice(), (Kind::Float, Device::Cpu))?;
            tensors.push((name.as_str(), tensor.f_mul_scalar(*spread)?));
        }
        Tensor::write_safetensors(&tensors, dir.path().join("model.safetensors"))?;
        let model = NeoxModel::load(dir.path(), &LoadOptions::default())?;
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let tokens = (0..2).map(|_| (0..20).map(|_| rng.random_range(1..v)).collect());
        Self::new(model, tokens.collect())
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
        let plan = Plan {
            neurons: (0..usize::try_from(d_mlp)?.min(self.neurons)).collect(),
            sequences: vec![0, 1],
            dose,
            semantics: semantics.clone(),
            variants,
            ranks: false,
            engine,
            batch: 4,
            memory_budget,
        };
        let bands = vec![TokenBand::new("band", &self.band, d_vocab)?];
        let sweep = Sweep::new(&self.model, &self.sample, &self.frequencies, bands, plan)?;
        let mut table = Table::new();
        sweep.run(
            &mut |block| {
                let (of_pair, n_rows) = (block.variants * block.measures, block.rows.len());
                for (pair, values) in block.ablated.chunks(of_pair).enumerate() {
                    let row = pair % n_rows;
                    let clean = &block.clean[row * block.measures..(row + 1) * block.measures];
                    let values = values.iter().enumerate();
                    let change = values.map(|(i, value)| value - clean[i % block.measures]);
                    table.push((change.collect(), block.bounds[pair]));
                }
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
                    if *bound > 0.0 { *bound } else { allowed },
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
        let moments = EngineOptions { exact, ..MOMENTS };
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
            case.check(MOMENTS, &Semantics::corrected(), Dose::Scale(factor), 0.0)?;
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
    let share = case.check(AUTO, &semantics, Dose::Mean, 1e-5)?;
    assert!(
        (0.2..0.9).contains(&share),
        "{share} of the pairs by moments"
    );
    let kernel = case.run(exact(ExactSums::Kernel), &semantics, Dose::Mean)?;
    for (auto, kernel) in case.run(AUTO, &semantics, Dose::Mean)?.iter().zip(&kernel) {
        assert!(auto.1 <= AUTO.tolerance);
        assert!(
            auto.1 > 0.0 || auto.0 == kernel.0,
            "exact pairs are the kernel's to the bit"
        );
    }
    // Nothing changes: nothing is left for exact sums, and no measure moves.
    let nothing = case.run(AUTO, &semantics, Dose::Scale(1.0))?;
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
        let table = case.run_cut(AUTO, &semantics, dose, variants, 64 << 20)?;
        let by_moments = table.iter().filter(|(_, bound)| *bound > 0.0).count();
        Ok(by_moments as f64 / table.len() as f64)
    };
    let all = Variants::default();
    let total = Variants {
        frozen_ln: false,
        frozen_all: false,
        ..all
    };
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
