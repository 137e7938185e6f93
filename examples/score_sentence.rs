//! Loads a checkpoint and prints the surprisal of each token of a sentence.
//!
//! ```sh
//! cargo run -p neox-core --example score_sentence
//! cargo run -p neox-core --example score_sentence -- path/to/checkpoint path/to/tokenizer.json "Some text."
//! ```

use std::error::Error;
use std::path::PathBuf;

use neox_core::{
    LoadOptions, Model, NoHooks, Text, next_token_ln_probs, parse_device, parse_dtype,
};
use tch::Tensor;

fn main() -> Result<(), Box<dyn Error>> {
    let bundled = PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../examples/data/tiny-neox"
    ));
    let mut args = std::env::args().skip(1);
    let checkpoint = args.next().map_or(bundled.join("step4000"), PathBuf::from);
    let tokenizer = args
        .next()
        .map_or(bundled.join("tokenizer.json"), PathBuf::from);
    let sentence = args
        .next()
        .unwrap_or_else(|| "The state of the Union is stronger than the whale.".into());

    let options = LoadOptions {
        device: parse_device("auto")?,
        dtype: parse_dtype("f32")?,
    };
    let model = Model::load(&checkpoint, &options)?;
    let text = Text::from_file(&tokenizer)?;

    // BOS first, so that the first word has something to be conditioned on.
    let mut ids = vec![
        model
            .config()
            .bos_token_id
            .ok_or("the config names no BOS")?,
    ];
    ids.extend(text.encode(&sentence)?);
    let len = ids.len() as i64;
    let tokens = Tensor::f_from_slice(&ids)?.f_view([1, len])?;
    let logits = model.forward(&tokens, None, &mut NoHooks)?; // [1, pos, vocab]

    let ln_probs: Vec<f64> = next_token_ln_probs(&logits, &tokens)?
        .f_view(-1)?
        .try_into()?;

    let mut total = 0.0;
    for (&id, &ln_prob) in ids[1..].iter().zip(&ln_probs) {
        let bits = -ln_prob / std::f64::consts::LN_2;
        total += bits;
        println!("{bits:6.2} bits  {:?}", text.decode(&[id])?);
    }
    println!("{total:6.2} bits  in all");
    Ok(())
}
