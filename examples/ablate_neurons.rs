//! Mean-ablates a few neurons of the bundled model and prints their effects.
//!
//! `cargo run -p neuron-ablate --example ablate_neurons`

use std::{error::Error, path::Path};

use neox_core::{LoadOptions, Model, Text};
use neuron_ablate::{
    Dose, EngineOptions, Measure, Plan, Sample, Semantics, Sweep, TokenFrequencies, Variant,
    Variants,
};

const TEXT: &str = "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse, \
    and nothing particular to interest me on shore, I thought I would sail about a little and see the watery part of the world.";

fn main() -> Result<(), Box<dyn Error>> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/data/tiny-neox");
    let model = Model::load(&data.join("step4000"), &LoadOptions::default())?;
    let text = Text::from_file(&data.join("tokenizer.json"))?;
    let d_vocab = usize::try_from(model.config().vocab_size)?;

    // A sequence begins with BOS, which is also EOS in this model.
    let tokens: Vec<i64> = [vec![0], text.encode(TEXT)?].concat();
    let sample = Sample::new(vec![tokens], &[0], d_vocab)?;
    // Any positive distribution over the tokens will do; here it is Zipf's law over token ids.
    let weights: Vec<f64> = (1..=d_vocab).map(|rank| 1.0 / rank as f64).collect();
    let total: f64 = weights.iter().sum();
    let frequencies = TokenFrequencies::new(weights.iter().map(|w| w / total).collect())?;

    let plan = Plan {
        neurons: vec![3, 105, 193],
        sequences: vec![0],
        dose: Dose::Mean,
        semantics: Semantics::corrected(),
        variants: Variants::default(),
        ranks: false,
        engine: EngineOptions::default(),
        batch: 1,
        memory_budget: 256 << 20,
    };
    let sweep = Sweep::new(&model, &sample, &frequencies, vec![], plan)?;
    let effects = sweep.run(&mut |_| Ok(()), &|_| ())?;

    println!("{} rows; changes of the loss in nats", effects.rows.kept);
    for neuron in &effects.neurons {
        let (total, direct) = (
            neuron.effects.change(Variant::Total, Measure::Loss)?,
            neuron.effects.change(Variant::FrozenAll, Measure::Loss)?,
        );
        println!(
            "neuron {:>3}: total effect {:.5} (signed {:+.5}), direct effect {:.5}",
            neuron.neuron, total.mean_abs, total.mean, direct.mean_abs
        );
    }
    Ok(())
}
