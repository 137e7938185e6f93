//! A real pretrained model, SmolLM2-135M, against other people's code. `cargo xtask real --check` fetches it and runs this.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::path::PathBuf;

use neox_core::{LoadOptions, Model, NoHooks, Text, next_token_ln_probs};
use neuron_ablate::{
    Intervention, Join, KlDirection, Measure, Plan, Sample, Scorer, Sweep, TokenFrequencies,
    WordRequest, WordVocabulary, self_check,
};
use serde_json::Value;
use surprisal_metrics::WordForm;
use tch::{Kind, Tensor};

fn golden(name: &str) -> Value {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/smollm2");
    serde_json::from_slice(&std::fs::read(PathBuf::from(folder).join(name)).unwrap()).unwrap()
}

/// What `cargo xtask real` writes.
const CHECKPOINT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../outputs/real/smollm2-135m"
);

fn model() -> Model {
    Model::load(CHECKPOINT.as_ref(), &LoadOptions::default()).unwrap()
}

fn tokens() -> Vec<Vec<i64>> {
    serde_json::from_value(golden("tokens.json")["tokens"].clone()).unwrap()
}

/// Made with transformers 5.24, f32.
#[test]
#[ignore = "needs the model that `cargo xtask real` fetches"]
fn log_probabilities_match_transformers() {
    let (model, tokens) = (model(), tokens());
    let expected: Vec<Vec<f64>> = serde_json::from_value(golden("logprobs.json")).unwrap();
    let flat = tokens.concat();
    let tokens = Tensor::from_slice(&flat).f_view([4, 256]).unwrap();
    let logits = model.forward(&tokens, None, &mut NoHooks).unwrap();
    let ln_probs = next_token_ln_probs(&logits, &tokens).unwrap();
    let found = Vec::<f64>::try_from(&ln_probs.f_view(-1).unwrap()).unwrap();
    let off = found
        .iter()
        .zip(expected.concat())
        .map(|(a, b)| (a - b).abs());
    let worst = off.fold(0.0, f64::max);
    assert!(worst < 2e-4, "off by {worst:.1e}");
}

/// Evaluated in f64 from transformers' residual stream on: twelve neurons of the last layer set to their means.
#[test]
#[ignore = "needs the model that `cargo xtask real` fetches"]
fn effects_match_f64() {
    let (model, tokens) = (model(), tokens());
    let counts = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/golden/smollm2/counts.npz"
    );
    let counts = &Tensor::read_npz(counts).unwrap()[0].1;
    let counts = Vec::<f64>::try_from(&counts.f_to_kind(Kind::Double).unwrap()).unwrap();
    assert_eq!(counts.iter().sum::<f64>(), 2_498_171.0);
    let total: f64 = counts.iter().map(|c| c + 1.0).sum();
    let q = counts.iter().map(|c| (c + 1.0) / total).collect();
    let frequencies = TokenFrequencies::new(q).unwrap();
    // Token 0 ends the documents: neither it nor what follows it counts.
    let sample = Sample::new(tokens, &[0], counts.len()).unwrap();
    let golden = golden("ablation-f64.json");
    let rows: Vec<Vec<f64>> = serde_json::from_value(golden["rows"].clone()).unwrap();
    let plan = Plan::new(
        rows.iter().map(|row| row[0] as usize).collect(),
        vec![0, 1, 2, 3],
    );
    let sweep = Sweep::new(&model, &sample, &frequencies, vec![], plan.clone()).unwrap();
    let effects = sweep.run().unwrap();
    assert_eq!(effects.rows.kept, 1004);
    let measures = [
        Measure::Loss,
        Measure::Entropy,
        Measure::Kl(KlDirection::ModelFreq),
    ];
    let columns: Vec<String> = serde_json::from_value(golden["columns"].clone()).unwrap();
    for (neuron, row) in effects.neurons.iter().zip(&rows) {
        assert!((neuron.mean_activation - row[1]).abs() < 1e-5);
        for &variant in sweep.variants() {
            let name = sweep.variant_name(variant).unwrap();
            for measure in measures {
                let of = sweep.measure_name(measure).unwrap();
                let change = neuron.effects.change(variant, measure).unwrap();
                for (found, kind) in [
                    (change.mean, "mean_change"),
                    (change.mean_abs, "mean_abs_change"),
                ] {
                    let column = format!("{name}.{of}.{kind}");
                    let Some(at) = columns.iter().position(|c| *c == column) else {
                        continue;
                    };
                    let off = (found - row[at]).abs();
                    assert!(
                        off < 5e-6,
                        "{column} of neuron {}: off by {off:.1e}",
                        neuron.neuron
                    );
                }
            }
        }
    }
    let few = Plan::new(plan.neurons[..2].to_vec(), vec![0]);
    let worst = self_check(&model, &sample, &frequencies, &[], few)
        .unwrap()
        .worst();
    assert!(worst < 1e-4, "self-check off by {worst:.1e}");
}

/// Words in context without a token in front of the text, and with the mass of words that begin divided out; made with transformers.
#[test]
#[ignore = "needs the model that `cargo xtask real` fetches"]
fn words_match_transformers() {
    let model = model();
    let text = Text::from_file(&PathBuf::from(CHECKPOINT).join("tokenizer.json")).unwrap();
    let words = WordVocabulary::new(&text, 0, model.config().vocab_size as usize).unwrap();
    let golden: Vec<(String, String, usize, f64, f64)> =
        serde_json::from_value(golden("words.json")["rows"].clone()).unwrap();
    let requests: Vec<WordRequest> = golden
        .iter()
        .map(|(context, word, ..)| WordRequest::joint(&text, None, context, word, Join::Space))
        .collect::<Result<_, _>>()
        .unwrap();
    let scorer = Scorer::new(&model, &words, 4096).unwrap();
    let scores = scorer.score(&requests, &[Intervention::base()]).unwrap();
    for (score, (_, word, pieces, uncorrected, corrected)) in scores.iter().zip(&golden) {
        let score = &score[0];
        assert_eq!(score.ln_probs.len(), *pieces, "pieces of {word}");
        for (form, expected) in [
            (WordForm::Uncorrected, uncorrected),
            (WordForm::Corrected, corrected),
        ] {
            let found = score.surprisal_nats(form).unwrap();
            let off = (found - expected).abs();
            assert!(
                off < 2e-4,
                "{form:?} surprisal of {word} is off by {off:.1e}"
            );
        }
    }
    assert!(golden.len() >= 20);
}
