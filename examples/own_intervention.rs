//! An intervention of one's own as a hook, compared with the model as it is, word by word, each document counting once.
//!
//! `cargo run -p neuron-ablate --example own_intervention`

use std::{error::Error, path::Path};

use neox_core::tch::Tensor;
use neox_core::{HookError, Hooks, LoadOptions, Model, NoHooks, Site, Text};
use neuron_ablate::{Scorer, WordRequest, WordVocabulary};
use surprisal_metrics::{Bootstrap, WordForm, paired_comparison};

/// Halves what the last MLP layer computes at the first 64 neurons.
struct Halve;

impl Hooks for Halve {
    fn wants(&self, site: Site) -> bool {
        site == Site::MlpPost(3)
    }

    fn at(&mut self, _: Site, activations: Tensor) -> Result<Tensor, HookError> {
        let _ = activations.f_narrow(-1, 0, 64)?.f_mul_scalar_(0.5)?; // [batch, pos, d_mlp]
        Ok(activations)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/data");
    let model = Model::load(&data.join("tiny-neox/step4000"), &LoadOptions::default())?;
    let text = Text::from_file(&data.join("tiny-neox/tokenizer.json"))?;
    let corpus = std::fs::read_to_string(data.join("corpus/held-out.jsonl"))?;
    let (mut documents, mut words) = (vec![], vec![]);
    for (document, line) in corpus.lines().take(12).enumerate() {
        let row: serde_json::Value = serde_json::from_str(line)?;
        let prose = row["text"].as_str().ok_or("a row without a text")?;
        let found = WordRequest::words_of(&text, 0, prose)?; // 0 is BOS, and also EOS
        words.extend(found.into_iter().take(64));
        documents.resize(words.len(), document);
    }
    let vocabulary = WordVocabulary::new(&text, 0, 4096)?;
    let scorer = Scorer::new(&model, &vocabulary, 4096)?;
    let surprisals = |hooks: &mut dyn Hooks| -> Result<Vec<f64>, Box<dyn Error>> {
        let scores = scorer.score_with(&words, hooks)?;
        let nats = scores.iter().map(|w| w.surprisal_nats(WordForm::Corrected));
        Ok(nats.collect::<Result<_, _>>()?)
    };
    let (clean, halved) = (surprisals(&mut NoHooks)?, surprisals(&mut Halve)?);
    let paired = paired_comparison(&documents, &clean, &halved, &Bootstrap::default())?;
    let interval = paired.interval.ok_or("too few documents")?;
    println!(
        "{:+.4} nats per word ({:+.4} to {:+.4}), p = {:.4}",
        paired.difference, interval.lower, interval.upper, paired.sign_p
    );
    Ok(())
}
