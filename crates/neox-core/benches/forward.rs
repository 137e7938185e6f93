//! Forward pass of a model of Pythia-70m's shape with random weights, 4 x 256 tokens, f32, CPU:
//!
//! ```sh
//! cargo bench -p neox-core --profile dev   # the time is libtorch's, whatever the profile
//! ```
//!
//! `cargo xtask compare forward` times transformers on the same weights and tokens beside it.

#![expect(clippy::expect_used, reason = "a benchmark stops at the first error")]

use std::path::Path;

use criterion::{Criterion, criterion_group, criterion_main};
use neox_core::{HookError, Hooks, LoadOptions, Model, NoHooks, Site};
use tch::{Device, Kind, Tensor};

const CONFIG: &str = r#"{
    "model_type": "gpt_neox", "hidden_size": 512, "intermediate_size": 2048,
    "num_hidden_layers": 6, "num_attention_heads": 8, "vocab_size": 50304,
    "max_position_embeddings": 2048, "rotary_pct": 0.25, "rotary_emb_base": 10000
}"#;

fn write_random_model(dir: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let (d, m, v) = (512, 2048, 50_304);
    let mut shapes: Vec<(String, Vec<i64>)> = vec![
        ("gpt_neox.embed_in.weight".into(), vec![v, d]),
        ("embed_out.weight".into(), vec![v, d]),
        ("gpt_neox.final_layer_norm.weight".into(), vec![d]),
        ("gpt_neox.final_layer_norm.bias".into(), vec![d]),
    ];
    for layer in 0..6 {
        for (part, shape) in [
            ("input_layernorm.weight", vec![d]),
            ("input_layernorm.bias", vec![d]),
            ("post_attention_layernorm.weight", vec![d]),
            ("post_attention_layernorm.bias", vec![d]),
            ("attention.query_key_value.weight", vec![3 * d, d]),
            ("attention.query_key_value.bias", vec![3 * d]),
            ("attention.dense.weight", vec![d, d]),
            ("attention.dense.bias", vec![d]),
            ("mlp.dense_h_to_4h.weight", vec![m, d]),
            ("mlp.dense_h_to_4h.bias", vec![m]),
            ("mlp.dense_4h_to_h.weight", vec![d, m]),
            ("mlp.dense_4h_to_h.bias", vec![d]),
        ] {
            shapes.push((format!("gpt_neox.layers.{layer}.{part}"), shape));
        }
    }
    let mut tensors = Vec::new();
    for (name, shape) in &shapes {
        let tensor = Tensor::f_randn(shape.as_slice(), (Kind::Float, Device::Cpu))?;
        tensors.push((name.as_str(), tensor.f_mul_scalar(0.02)?));
    }
    Tensor::write_safetensors(&tensors, dir.join("model.safetensors"))?;
    std::fs::write(dir.join("config.json"), CONFIG)?;
    Ok(())
}

/// What neuron-ablate looks at: the neurons of the last layer and the residual stream.
struct LastLayer;

impl Hooks for LastLayer {
    fn wants(&self, site: Site) -> bool {
        matches!(site, Site::MlpPost(5) | Site::ResidPost(5))
    }

    fn at(&mut self, _: Site, value: Tensor) -> Result<Tensor, HookError> {
        Ok(value)
    }
}

fn forward(criterion: &mut Criterion) {
    tch::manual_seed(0);
    let dir = tempfile::tempdir().expect("a temporary folder");
    write_random_model(dir.path()).expect("weights can be written");
    let model = Model::load(dir.path(), &LoadOptions::default()).expect("it loads");
    let tokens = Tensor::randint(50_000, [4, 256], (Kind::Int64, Device::Cpu));

    let mut group = criterion.benchmark_group("pythia-70m shape, 4 x 256 tokens");
    group.sample_size(20);
    group.bench_function("logits", |bench| {
        bench.iter(|| model.forward(&tokens, None, &mut NoHooks));
    });
    group.bench_function("residual", |bench| {
        bench.iter(|| model.residual(&tokens, None, &mut NoHooks));
    });
    group.bench_function("residual, last layer hooked", |bench| {
        bench.iter(|| model.residual(&tokens, None, &mut LastLayer));
    });
    group.finish();
}

criterion_group!(benches, forward);
criterion_main!(benches);
