//! Surprisal of words under interventions, from one forward per batch of texts.
//!
//! ```text
//! cargo run -p neuron-ablate --example score_words -- \
//!     --model examples/data/tiny-neox/step4000 --tokenizer examples/data/tiny-neox/tokenizer.json \
//!     --words examples/data/contexts/words.json --neurons 3,17,42,100,200
//! ```
//!
//! Takes the arguments of `crates/xtask/src/compare/python/words.py` and scores the same tokens; `cargo xtask compare words`
//! runs both. `--pairs N` takes the first ones, `--out FILE` writes the values, `--threads N`; `--conditions N`
//! takes so many other interventions; `--boundaries 1` adds the masses of word boundaries; `--tensors 1` sums up by tensor operations, as on a GPU.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::path::Path;
use std::time::Instant;

use neox_core::{LoadOptions, Model, Text, keep_freed_memory};
use neuron_ablate::{
    Intervention, NeuronId, NeuronSite, Operation, Scorer, WordRequest, WordVocabulary,
};
use surprisal_metrics::{Summary, WordForm};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let args: HashMap<&str, &str> = words
        .chunks_exact(2)
        .map(|pair| (pair[0].as_str(), pair[1].as_str()))
        .collect();
    let arg = |name: &str| {
        args.get(name)
            .copied()
            .ok_or_else(|| format!("argument `{name}` is missing"))
    };
    tch::set_num_threads(args.get("--threads").unwrap_or(&"2").parse()?);

    keep_freed_memory();
    let model = Model::load(Path::new(arg("--model")?), &LoadOptions::default())?;
    let text = Text::from_file(Path::new(arg("--tokenizer")?))?;
    let layer = model.config().num_hidden_layers - 1;
    let neurons = arg("--neurons")?
        .split(',')
        .map(|n| {
            Ok(NeuronId {
                layer,
                neuron: n.parse()?,
            })
        })
        .collect::<Result<Vec<_>, std::num::ParseIntError>>()?;
    let set = |value| Operation::Set(vec![value; neurons.len()]);
    let at_pre = |name: &str, operation| {
        Intervention::new(name, NeuronSite::Pre, neurons.clone(), operation)
    };
    let mut interventions = vec![
        Intervention::base(),
        at_pre("zero", set(0.0))?,
        at_pre("full", set(1.0))?,
        at_pre("layer-mean", Operation::LayerMean)?,
        at_pre("scaled-2", Operation::Scale(2.0))?,
    ];
    // The unchanged model, and so many interventions on as many neurons each.
    if let Some(n) = args.get("--conditions") {
        interventions.truncate(1);
        for i in 0..n.parse()? {
            let neurons = neurons.iter().map(|n| NeuronId {
                neuron: n.neuron + i,
                ..*n
            });
            interventions.push(Intervention::new(
                format!("scaled-{i}"),
                NeuronSite::Post,
                neurons.collect(),
                Operation::Scale(2.0),
            )?);
        }
    }

    let json: BTreeMap<String, Vec<HashMap<String, serde_json::Value>>> =
        serde_json::from_str(&std::fs::read_to_string(arg("--words")?)?)?;
    let contexts = json.iter().flat_map(|(word, contexts)| {
        contexts
            .iter()
            .filter_map(move |c| Some((word, c.get("context")?.as_str()?)))
    });
    let mut pairs: Vec<(&String, &str)> = contexts.collect();
    pairs.truncate(args.get("--pairs").unwrap_or(&"2000").parse()?);

    let started = Instant::now();
    let bos = model
        .config()
        .bos_token_id
        .ok_or("the config names no bos_token_id")?;
    let requests = pairs
        .iter()
        .map(|(word, context)| {
            WordRequest::liu2025(&text, bos, context.trim_end(), &format!(" {word}"), false)
        })
        .collect::<Result<Vec<_>, _>>()?;
    // First pieces need no word boundaries.
    let d_vocab = usize::try_from(model.config().vocab_size)?;
    let vocabulary = WordVocabulary::without_words(bos, d_vocab);
    let mut scorer = Scorer::new(&model, &vocabulary, 4096)?;
    if !args.contains_key("--boundaries") {
        scorer = scorer.without_boundaries();
    }
    if args.contains_key("--tensors") {
        scorer = scorer.with_tensors()?;
    }
    let scores = scorer.score(&requests, &interventions)?;
    let seconds = started.elapsed().as_secs_f64();

    let mut values = Vec::new();
    for (i, intervention) in interventions.iter().enumerate() {
        let nats = scores
            .iter()
            .map(|s| s[i].surprisal_nats(WordForm::FirstPiece))
            .collect::<Result<Vec<f64>, _>>()?;
        println!(
            "{:<12} {:.4} nats on average",
            intervention.name(),
            Summary::of(&nats)?.mean
        );
        values.extend(nats);
    }
    println!(
        "{}",
        serde_json::json!({"seconds": seconds, "units": values.len()})
    );
    if let Some(out) = args.get("--out") {
        std::fs::write(out, serde_json::to_string(&values)?)?;
    }
    Ok(())
}
