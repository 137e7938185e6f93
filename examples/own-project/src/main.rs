//! Prints the surprisal of each word of a sentence, and what it is with one neuron switched off.
//!
//! `cargo run -- CHECKPOINT TOKENIZER SENTENCE`

use std::{env::args, error::Error, path::Path};

use neox_core::{LoadOptions, Model, Text};
use neuron_ablate::surprisal_metrics::WordForm;
use neuron_ablate::{Intervention, NeuronId, NeuronSite, Operation};
use neuron_ablate::{Scorer, WordRequest, WordVocabulary};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = args().collect();
    let [_, checkpoint, tokenizer, sentence] = &args[..] else {
        return Err("usage: own-project CHECKPOINT TOKENIZER SENTENCE".into());
    };
    let model = Model::load(Path::new(checkpoint), &LoadOptions::default())?;
    let text = Text::from_file(Path::new(tokenizer))?;
    let config = model.config();
    let (bos, eos) = (
        config.bos_token_id.ok_or("no BOS")?,
        *config.eos_token_ids.first().ok_or("no EOS")?,
    );
    let neuron = NeuronId {
        layer: config.num_hidden_layers - 1,
        neuron: 17,
    };
    let off = Intervention::new(
        "off",
        NeuronSite::Post,
        vec![neuron],
        Operation::Set(vec![0.0]),
    )?;

    let words = WordRequest::words_of(&text, bos, sentence)?;
    let vocabulary = WordVocabulary::new(&text, eos, usize::try_from(config.vocab_size)?)?;
    let scorer = Scorer::new(&model, &vocabulary, 4096)?;
    for (word, scores) in words
        .iter()
        .zip(scorer.score(&words, &[Intervention::base(), off])?)
    {
        let spelling = &word.text;
        let [base, off] = [0, 1].map(|i| scores[i].surprisal_nats(WordForm::Corrected));
        println!(
            "{spelling:>12} {:8.4} nats, without neuron {neuron} {:8.4}",
            base?, off?
        );
    }
    Ok(())
}
