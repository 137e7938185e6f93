//! A GPT-2 with random weights that goes with the bundled tokenizer, for tests of the binaries.

use std::{fs, path::Path};

const D_MODEL: usize = 32;
const D_VOCAB: usize = 4096;
const POSITIONS: usize = 128;

const CONFIG: &str = r#"{
    "model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": 4096,
    "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "bos_token_id": 0, "eos_token_id": 0
}"#;

/// Writes the checkpoint and the tokenizer to `dir`, which must exist: embeddings are tied, as in every GPT-2.
pub(crate) fn write(dir: &Path) {
    let (d, m) = (D_MODEL, 4 * D_MODEL);
    let mut shapes: Vec<(String, Vec<usize>)> = vec![
        ("wte.weight".into(), vec![D_VOCAB, d]),
        ("wpe.weight".into(), vec![POSITIONS, d]),
        ("ln_f.weight".into(), vec![d]),
        ("ln_f.bias".into(), vec![d]),
    ];
    for layer in 0..2 {
        for (name, shape) in [
            ("ln_1.weight", vec![d]),
            ("ln_1.bias", vec![d]),
            ("attn.c_attn.weight", vec![d, 3 * d]),
            ("attn.c_attn.bias", vec![3 * d]),
            ("attn.c_proj.weight", vec![d, d]),
            ("attn.c_proj.bias", vec![d]),
            ("ln_2.weight", vec![d]),
            ("ln_2.bias", vec![d]),
            ("mlp.c_fc.weight", vec![d, m]),
            ("mlp.c_fc.bias", vec![m]),
            ("mlp.c_proj.weight", vec![m, d]),
            ("mlp.c_proj.bias", vec![d]),
        ] {
            shapes.push((format!("h.{layer}.{name}"), shape));
        }
    }
    let mut state = 1u64;
    let mut random = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape) in shapes {
        let start = data.len();
        // Norms have weights about 1.
        let middle = if name.contains("ln_") && name.ends_with("weight") {
            1.0
        } else {
            0.0
        };
        for _ in 0..shape.iter().product::<usize>() {
            data.extend((middle + 0.5 * random()).to_le_bytes());
        }
        header.insert(
            format!("transformer.{name}"),
            serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}),
        );
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    fs::write(dir.join("model.safetensors"), file).unwrap();
    fs::write(dir.join("config.json"), CONFIG).unwrap();
    let tokenizer = "../../examples/data/tiny-neox/tokenizer.json";
    fs::copy(
        Path::new(env!("CARGO_MANIFEST_DIR")).join(tokenizer),
        dir.join("tokenizer.json"),
    )
    .unwrap();
}
