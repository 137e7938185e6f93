//! Times forward passes: logits of every position of one batch, again and again; the time is the median.
//!
//! ```text
//! cargo run --release -p neox-core --example time_forward -- \
//!     --model target/compare/random-70m --token-file target/compare/tokens.npy --batch 4 --length 256
//! ```
//!
//! Takes the arguments of `crates/xtask/src/compare/python/forward.py`, and `--dtype` (`f32`, `f16`, `bf16`); `cargo xtask compare forward` runs both.

use std::collections::HashMap;
use std::error::Error;
use std::path::Path;
use std::time::Instant;

use neox_core::{LoadOptions, Model, NoHooks, keep_freed_memory, next_token_ln_probs, parse_dtype};
use tch::Tensor;

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
    let dtype = parse_dtype(args.get("--dtype").unwrap_or(&"f32"))?;
    let options = LoadOptions::default().with_dtype(dtype);
    let model = Model::load(Path::new(arg("--model")?), &options)?;
    let (batch, length): (i64, i64) = (arg("--batch")?.parse()?, arg("--length")?.parse()?);
    let tokens = Tensor::read_npy(arg("--token-file")?)?
        .f_view(-1)?
        .f_narrow(0, 0, batch * length)?
        .f_view([batch, length])?;

    let repeat: usize = args.get("--repeat").unwrap_or(&"10").parse()?;
    let mut times = Vec::with_capacity(repeat);
    let mut logits = model.forward(&tokens, None, &mut NoHooks)?; // [batch, pos, vocab]
    for _ in 0..repeat {
        let started = Instant::now();
        logits = model.forward(&tokens, None, &mut NoHooks)?;
        times.push(started.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let seconds = times.get(repeat / 2).ok_or("`--repeat` is 0")?;
    println!(
        "{}",
        serde_json::json!({"seconds": seconds, "units": batch * length})
    );
    if let Some(out) = args.get("--out") {
        let ln_probs = next_token_ln_probs(&logits, &tokens)?.f_reshape(-1)?;
        std::fs::write(
            out,
            serde_json::to_string(&Vec::<f64>::try_from(ln_probs)?)?,
        )?;
    }
    Ok(())
}
