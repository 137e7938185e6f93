//! Surprisal of every word of a sentence, corrected for what tokenizers do to word boundaries, with and without a neuron.
//!
//! `cargo run -p neuron-ablate --example word_surprisals`

use std::{error::Error, path::Path};

use neox_core::{LoadOptions, Model, Text};
use neuron_ablate::{Intervention, NeuronId, NeuronSite, Operation};
use neuron_ablate::{Scorer, WordRequest, WordVocabulary};
use surprisal_metrics::{Unit, WordForm};

fn main() -> Result<(), Box<dyn Error>> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/data/tiny-neox");
    let model = Model::load(&data.join("step4000"), &LoadOptions::default())?;
    let text = Text::from_file(&data.join("tokenizer.json"))?;
    let config = model.config();
    let (bos, eos) = (
        config.bos_token_id.ok_or("no BOS")?,
        *config.eos_token_ids.first().ok_or("no EOS")?,
    );

    let sentence = "The state of the Union is stronger than the whale";
    let words = WordRequest::words_of(&text, bos, sentence)?;
    let neuron = NeuronId {
        layer: config.num_hidden_layers - 1,
        neuron: 17,
    };
    let without = Intervention::new(
        "zero",
        NeuronSite::Post,
        vec![neuron],
        Operation::Set(vec![0.0]),
    )?;
    let vocabulary = WordVocabulary::new(&text, eos, usize::try_from(config.vocab_size)?)?;
    let scorer = Scorer::new(&model, &vocabulary, 4096)?;
    let scores = scorer.score(&words, &[Intervention::base(), without])?;

    println!("word\tbits\twithout {neuron}");
    for (word, scores) in words.iter().zip(&scores) {
        let bits = |i: usize| {
            scores[i]
                .surprisal_nats(WordForm::Corrected)
                .map(|nats| Unit::Bits.from_nats(nats))
        };
        println!("{}\t{:.3}\t{:.3}", word.text, bits(0)?, bits(1)?);
    }
    Ok(())
}
