//! Narrow models of one layer, of random weights, with vocabularies as large as real ones.

use std::{collections::BTreeMap, error::Error};

use neox_core::{LoadOptions, Model};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

/// `d_model` of these models, and neurons of their layer.
pub(crate) const D_MODEL: i64 = 16;
pub(crate) const D_MLP: i64 = 24;

/// The model, in `dtype`; entries of `W_U` are normal with this spread, which is flat at 0.01 and peaked at 3. `change` may replace
/// tensors, which are in f32, before the model reads them.
pub(crate) fn random_model(
    d_vocab: i64,
    spread: f64,
    dtype: Kind,
    change: impl FnOnce(&mut BTreeMap<String, Tensor>),
) -> Result<Model, Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let (d, m, v) = (D_MODEL, D_MLP, d_vocab);
    let config = format!(
        r#"{{"model_type": "gpt_neox", "hidden_size": {d}, "intermediate_size": {m}, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": {v}, "max_position_embeddings": 64, "rotary_pct": 0.25,
            "rotary_emb_base": 10000, "bos_token_id": 0, "eos_token_id": 0}}"#
    );
    std::fs::write(dir.path().join("config.json"), config)?;
    let shapes: [(&str, &[i64], f64); 16] = [
        ("embed_in.weight", &[v, d], 1.0),
        ("embed_out.weight", &[v, d], spread),
        ("final_layer_norm.weight", &[d], 1.0),
        ("final_layer_norm.bias", &[d], 0.1),
        ("input_layernorm.weight", &[d], 1.0),
        ("input_layernorm.bias", &[d], 0.1),
        ("post_attention_layernorm.weight", &[d], 1.0),
        ("post_attention_layernorm.bias", &[d], 0.1),
        ("attention.query_key_value.weight", &[3 * d, d], 0.3),
        ("attention.query_key_value.bias", &[3 * d], 0.1),
        ("attention.dense.weight", &[d, d], 0.3),
        ("attention.dense.bias", &[d], 0.1),
        ("mlp.dense_h_to_4h.weight", &[m, d], 0.2),
        ("mlp.dense_h_to_4h.bias", &[m], 0.1),
        ("mlp.dense_4h_to_h.weight", &[d, m], 0.1),
        ("mlp.dense_4h_to_h.bias", &[d], 0.1),
    ];
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut tensors = BTreeMap::new();
    for (name, shape, spread) in shapes {
        let name = match name.split('.').next() {
            Some("embed_out") => name.to_owned(),
            Some("embed_in" | "final_layer_norm") => format!("gpt_neox.{name}"),
            _ => format!("gpt_neox.layers.0.{name}"),
        };
        let len: i64 = shape.iter().product();
        let values: Vec<f32> = (0..len)
            .map(|_| (spread * normal(&mut rng)) as f32)
            .collect();
        tensors.insert(name, Tensor::f_from_slice(&values)?.f_view(shape)?);
    }
    change(&mut tensors);
    let tensors: Vec<(&str, &Tensor)> = tensors.iter().map(|(n, t)| (n.as_str(), t)).collect();
    Tensor::write_safetensors(&tensors, dir.path().join("model.safetensors"))?;
    let device = Device::Cpu;
    Ok(Model::load(
        dir.path(),
        &LoadOptions::default().with_device(device).with_dtype(dtype),
    )?)
}

/// Random tokens, none of them BOS.
pub(crate) fn random_tokens(sequences: usize, len: usize, d_vocab: i64) -> Vec<Vec<i64>> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut sequence = || (0..len).map(|_| rng.random_range(1..d_vocab)).collect();
    (0..sequences).map(|_| sequence()).collect()
}

/// Zipf's law by token id, which stands in for counts.
pub(crate) fn zipf(d_vocab: usize) -> Vec<f64> {
    let weights: Vec<f64> = (1..=d_vocab).map(|rank| 1.0 / rank as f64).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

/// A standard normal number, by Box and Muller.
pub(crate) fn normal(rng: &mut impl Rng) -> f64 {
    let (radius, angle) = (1.0 - rng.random::<f64>(), rng.random::<f64>());
    (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}
