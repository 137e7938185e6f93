//! Checkpoints of random weights, in the shapes of real ones; the same ones each time.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use neox_core::{LoadOptions, Model, keep_freed_memory};
use serde_json::json;
use tch::{Device, Kind, TchError, Tensor};

/// Sizes of a GPT-NeoX model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    pub(crate) layers: usize,
    pub(crate) d_model: i64,
    pub(crate) d_mlp: i64,
    pub(crate) heads: i64,
}

/// Pythia's vocabulary, padded rows included.
pub(crate) const D_VOCAB: i64 = 50_304;
/// What begins and ends texts in Pythia.
pub(crate) const EOS: i64 = 0;

pub(crate) const PYTHIA_70M: Shape = Shape {
    name: "Pythia-70M's shape",
    layers: 6,
    d_model: 512,
    d_mlp: 2048,
    heads: 8,
};
pub(crate) const PYTHIA_410M: Shape = Shape {
    name: "Pythia-410M's shape",
    layers: 24,
    d_model: 1024,
    d_mlp: 4096,
    heads: 16,
};

/// How far logits spread, in nats: as in an untrained model, and as in a trained one.
pub(crate) const FLAT: f64 = 0.5;
pub(crate) const PEAKED: f64 = 3.5;

/// Each so many neurons of the last layer, one writes so much more than the others: ablating it moves logits too far for moments.
const STRONG_EVERY: i64 = 16;
const STRONG: f64 = 10.0;

impl Shape {
    /// The same with fewer layers.
    pub(crate) fn with_layers(self, layers: usize) -> Self {
        Self { layers, ..self }
    }

    /// Number of weights.
    pub(crate) fn parameters(&self) -> i64 {
        let (d, m) = (self.d_model, self.d_mlp);
        let of_layer = 4 * d * d + 4 * d + 2 * d * m + m + d + 4 * d;
        2 * D_VOCAB * d + 2 * d + self.layers as i64 * of_layer
    }
}

/// Writes a checkpoint in f16 whose logits spread by `spread` nats.
///
/// # Errors
/// If the folder cannot be written, or memory is short.
pub(crate) fn write(folder: &Path, shape: &Shape, spread: f64) -> anyhow::Result<PathBuf> {
    let failed = || format!("failed to write a model to `{}`", folder.display());
    fs::create_dir_all(folder).with_context(failed)?;
    let Shape {
        layers,
        d_model,
        d_mlp,
        heads,
        ..
    } = shape;
    let config = json!({
        "model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"], "hidden_size": d_model, "intermediate_size": d_mlp,
        "num_hidden_layers": layers, "num_attention_heads": heads, "vocab_size": D_VOCAB, "max_position_embeddings": 2048,
        "rotary_pct": 0.25, "rotary_emb_base": 10000, "layer_norm_eps": 1e-5, "hidden_act": "gelu",
        "use_parallel_residual": true, "tie_word_embeddings": false, "bos_token_id": EOS, "eos_token_id": EOS,
        "torch_dtype": "float16",
    });
    fs::write(folder.join("config.json"), config.to_string()).with_context(failed)?;
    let tensors = tensors(shape, spread).context("failed to make random weights")?;
    Tensor::write_safetensors(&tensors, folder.join("model.safetensors")).with_context(failed)?;
    Ok(folder.to_owned())
}

fn tensors(shape: &Shape, spread: f64) -> Result<Vec<(String, Tensor)>, TchError> {
    let (d, m, last) = (shape.d_model, shape.d_mlp, shape.layers - 1);
    let unit = (d as f64).sqrt().recip();
    tch::manual_seed(0);
    let mut tensors = Vec::new();
    let mut put = |name: String, size: &[i64], mean: f64, spread: f64| {
        let values = Tensor::f_randn(size, (Kind::Float, Device::Cpu))?;
        let values = values.f_mul_scalar(spread)?.f_add_scalar(mean)?;
        tensors.push((name, values.f_to_kind(Kind::Half)?));
        Ok::<(), TchError>(())
    };
    put("gpt_neox.embed_in.weight".into(), &[D_VOCAB, d], 0.0, 1.0)?;
    for layer in 0..shape.layers {
        let name = |part: &str| format!("gpt_neox.layers.{layer}.{part}");
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            put(name(&format!("{norm}.weight")), &[d], 1.0, 0.1)?;
            put(name(&format!("{norm}.bias")), &[d], 0.0, 0.1)?;
        }
        put(
            name("attention.query_key_value.weight"),
            &[3 * d, d],
            0.0,
            unit,
        )?;
        put(name("attention.query_key_value.bias"), &[3 * d], 0.0, 0.1)?;
        put(name("attention.dense.weight"), &[d, d], 0.0, unit / 2.0)?;
        put(name("attention.dense.bias"), &[d], 0.0, 0.05)?;
        put(name("mlp.dense_h_to_4h.weight"), &[m, d], 0.0, unit)?;
        put(name("mlp.dense_h_to_4h.bias"), &[m], 0.0, 0.1)?;
        put(name("mlp.dense_4h_to_h.weight"), &[d, m], 0.0, unit / 2.0)?;
        put(name("mlp.dense_4h_to_h.bias"), &[d], 0.0, 0.05)?;
    }
    put("gpt_neox.final_layer_norm.weight".into(), &[d], 1.0, 0.1)?;
    put("gpt_neox.final_layer_norm.bias".into(), &[d], 0.0, 0.1)?;
    put("embed_out.weight".into(), &[D_VOCAB, d], 0.0, spread * unit)?;
    let w_out = format!("gpt_neox.layers.{last}.mlp.dense_4h_to_h.weight");
    for (_, tensor) in tensors.iter_mut().filter(|(name, _)| *name == w_out) {
        let factors = Tensor::f_ones([m], (Kind::Float, Device::Cpu))?;
        let strong = Tensor::f_arange_start_step(0, m, STRONG_EVERY, (Kind::Int64, Device::Cpu))?;
        let factors = factors.f_index_fill(0, &strong, STRONG)?;
        *tensor = tensor.f_mul(&factors)?.f_to_kind(Kind::Half)?;
    }
    Ok(tensors)
}

/// Loads a checkpoint.
///
/// # Errors
/// As [`Model::load`].
pub(crate) fn load(folder: &Path, device: Device, dtype: Kind) -> anyhow::Result<Model> {
    keep_freed_memory();
    let model = Model::load(
        folder,
        &LoadOptions::default().with_device(device).with_dtype(dtype),
    );
    model.with_context(|| format!("failed to load the checkpoint `{}`", folder.display()))
}

/// Random texts that begin with [`EOS`] and hold no other; the same each time.
///
/// # Errors
/// If libtorch fails.
pub(crate) fn texts(count: usize, length: usize) -> anyhow::Result<Vec<Vec<i64>>> {
    tch::manual_seed(1);
    let size = [count as i64, length as i64];
    let ids = Tensor::f_randint_low(EOS + 1, D_VOCAB, size, (Kind::Int64, Device::Cpu))?;
    let _ = ids.f_select(1, 0)?.f_fill_(EOS)?;
    (0..count as i64)
        .map(|text| Ok(Vec::try_from(&ids.f_get(text)?)?))
        .collect()
}

/// Zipf's law by token id, which stands in for counts.
pub(crate) fn zipf() -> Vec<f64> {
    let weights: Vec<f64> = (1..=D_VOCAB).map(|rank| 1.0 / rank as f64).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / total).collect()
}

/// The largest difference between two lists; infinite where a value is not a number, or where they are not of one length.
pub(crate) fn largest_difference(ours: &[f64], others: &[f64]) -> f64 {
    if ours.len() != others.len() {
        return f64::INFINITY;
    }
    let differences = ours.iter().zip(others).map(|(a, b)| (a - b).abs());
    // `max` alone would leave out what is not a number.
    differences.fold(0.0, |largest, difference| match difference.is_nan() {
        true => f64::INFINITY,
        false => largest.max(difference),
    })
}
