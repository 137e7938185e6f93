//! Mean-ablates three neurons on twelve documents and prints their effects on the loss, with intervals over documents.
//!
//! `cargo run -p neuron-ablate --example ablate_neurons`

use std::{error::Error, path::Path};

use neox_core::{LoadOptions, Model, Text};
use neuron_ablate::{Mean, Measure, Over, Plan, Sample, Sweep, TokenFrequencies, Variant};
use surprisal_metrics::Bootstrap;

fn main() -> Result<(), Box<dyn Error>> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/data");
    let model = Model::load(&data.join("tiny-neox/step4000"), &LoadOptions::default())?;
    let text = Text::from_file(&data.join("tiny-neox/tokenizer.json"))?;
    let mut documents = Vec::new();
    let corpus = std::fs::read_to_string(data.join("corpus/held-out.jsonl"))?;
    for line in corpus.lines().take(12) {
        let row: serde_json::Value = serde_json::from_str(line)?;
        let ids = text.encode(row["text"].as_str().ok_or("a row without a text")?)?;
        documents.push([vec![0], ids].concat()[..64].to_vec()); // BOS first
    }
    let d_vocab = usize::try_from(model.config().vocab_size)?;
    let sample = Sample::new(documents, &[0], d_vocab)?; // 0 is BOS, and also EOS
    // Any positive distribution over the tokens will do: counts of a corpus, as a rule.
    let frequencies = TokenFrequencies::new(vec![1.0 / d_vocab as f64; d_vocab])?;

    let plan = Plan::new(vec![3, 105, 193], (0..12).collect()); // neurons of the last layer, documents
    let sweep = Sweep::new(&model, &sample, &frequencies, vec![], plan)?;
    let resamples = Bootstrap::default().resample(12)?;
    for neuron in sweep.run()?.neurons {
        let (id, effects) = (neuron.id(), neuron.effects);
        let (total, loss, mean) = (Variant::Total, Measure::Loss, Mean::Absolute);
        let found = effects.interval(total, loss, mean, Over::All, &resamples)?;
        let found = found.ok_or("too few documents")?;
        let (estimate, lower, upper) = (found.estimate, found.lower, found.upper);
        println!("neuron {id}: total effect {estimate:.5} nats ({lower:.5} to {upper:.5})");
    }
    Ok(())
}
