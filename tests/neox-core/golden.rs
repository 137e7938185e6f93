//! Logits against Hugging Face transformers.

use std::collections::HashMap;
use std::error::Error;
use std::path::PathBuf;

use neox_core::{HookError, Hooks, LoadOptions, Model, NoHooks, Site};
use tch::{Device, Kind, Tensor};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Absolute tolerance of every comparison here: f32 on both sides, sums in another order.
const ATOL: f64 = 1e-4;

fn golden(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden")).join(path)
}

fn tiny(step: &str) -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../examples/data/tiny-neox"
    ))
    .join(step)
}

fn tensors(path: &str) -> Result<HashMap<String, Tensor>> {
    Ok(Tensor::read_safetensors(golden(path))?
        .into_iter()
        .collect())
}

fn max_abs_diff(a: &Tensor, b: &Tensor) -> Result<f64> {
    assert_eq!(a.size(), b.size());
    let diff = a
        .f_to_kind(Kind::Double)?
        .f_sub(&b.f_to_kind(Kind::Double)?)?;
    Ok(diff.f_abs()?.f_max()?.f_double_value(&[])?)
}

#[track_caller]
fn assert_close(what: &str, got: &Tensor, expected: &Tensor, atol: f64) {
    let worst = max_abs_diff(got, expected).unwrap_or(f64::NAN);
    assert!(
        worst <= atol,
        "{what}: off by {worst:.1e}, allowed {atol:.0e}"
    );
}

/// Made with transformers 5.23, eager attention, f32, CPU: ten random models, one architectural
/// choice each.
fn check_variant(name: &str) -> Result<()> {
    let model = Model::load(&golden("variants").join(name), &LoadOptions::default())?;
    let expected = tensors(&format!("variants/{name}/expected.safetensors"))?;
    let tokens = &expected["tokens"]; // [2, 24]
    let fused = model.forward(tokens, None, &mut NoHooks)?; // [2, 24, 96]
    assert_close(name, &fused, &expected["logits"], ATOL);
    // and on the paths that hooks take
    let hooked = model.forward(tokens, None, &mut Everywhere::default())?;
    assert_close(
        &format!("{name}, hooked"),
        &hooked,
        &expected["logits"],
        ATOL,
    );
    Ok(())
}

/// Observes every site and changes nothing.
#[derive(Default)]
struct Everywhere {
    seen: Vec<(Site, Tensor)>,
}

impl Hooks for Everywhere {
    fn wants(&self, _: Site) -> bool {
        true
    }

    fn at(&mut self, site: Site, value: Tensor) -> std::result::Result<Tensor, HookError> {
        self.seen.push((site, value.shallow_clone()));
        Ok(value)
    }
}

#[test]
fn parallel_residual() -> Result<()> {
    check_variant("parallel")
}

#[test]
fn sequential_residual() -> Result<()> {
    check_variant("sequential")
}

#[test]
fn rotary_on_the_whole_head() -> Result<()> {
    check_variant("full-rotary")
}

#[test]
fn other_rotary_base_and_eps() -> Result<()> {
    check_variant("rotary-base")
}

#[test]
fn gelu_fast() -> Result<()> {
    check_variant("gelu-fast")
}

#[test]
fn gelu_new() -> Result<()> {
    check_variant("gelu-new")
}

#[test]
fn relu() -> Result<()> {
    check_variant("relu")
}

#[test]
fn no_attention_bias_and_rope_parameters() -> Result<()> {
    check_variant("no-attention-bias")
}

#[test]
fn odd_mlp_width() -> Result<()> {
    check_variant("odd-width")
}

#[test]
fn tied_embeddings() -> Result<()> {
    check_variant("tied")
}

/// Made with transformers 4.57 from step4000 of the trained model, f32: last layer at positions
/// 1, 31 and 63, and the log-probability of every target.
#[test]
fn trained_model_inside_and_out() -> Result<()> {
    let model = Model::load(&tiny("step4000"), &LoadOptions::default())?;
    let expected = tensors("tiny-neox/forward.safetensors")?;
    let tokens = &expected["tokens"]; // [2, 64]
    let mut hooks = Everywhere::default();
    let logits = model.forward(tokens, None, &mut hooks)?; // [2, 64, 4096]
    let last = model.config().num_hidden_layers - 1;
    let positions = Tensor::from_slice(&[1i64, 31, 63]);

    let at = |site: Site| -> Result<Tensor> {
        let (_, value) = hooks
            .seen
            .iter()
            .find(|(seen, _)| *seen == site)
            .ok_or("site not visited")?;
        Ok(value.f_index_select(1, &positions)?)
    };
    assert_close(
        "mlp_pre",
        &at(Site::MlpPre(last))?,
        &expected["mlp_pre"],
        ATOL,
    );
    assert_close(
        "mlp_post",
        &at(Site::MlpPost(last))?,
        &expected["mlp_post"],
        ATOL,
    );
    assert_close(
        "resid_post",
        &at(Site::ResidPost(last))?,
        &expected["resid_post"],
        ATOL,
    );
    assert_close(
        "logits",
        &at(Site::Logits)?,
        &expected["logits_first"],
        ATOL,
    );

    let logprobs = logits
        .f_narrow(1, 0, 63)?
        .f_log_softmax(-1, Kind::Float)?
        .f_gather(-1, &tokens.f_narrow(1, 1, 63)?.f_unsqueeze(-1)?, false)?
        .f_squeeze_dim(-1)?;
    assert_close("logprobs", &logprobs, &expected["logprobs_target"], ATOL);
    Ok(())
}

/// The published form of old checkpoints: an OrderedDict in a torch.save archive, with mask and
/// rotary buffers. Rewriting it as safetensors must give the same model.
#[test]
fn pytorch_bin_equals_its_safetensors() -> Result<()> {
    let dir = tiny("step1000");
    let from_bin = Model::load(&dir, &LoadOptions::default())?;
    let copy = tempfile::tempdir()?;
    std::fs::copy(dir.join("config.json"), copy.path().join("config.json"))?;
    let reference = tensors_from_raw_archive(&dir.join("pytorch_model.bin"))?;
    let named: Vec<(&str, Tensor)> = reference
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor.shallow_clone()))
        .collect();
    Tensor::write_safetensors(&named, copy.path().join("model.safetensors"))?;
    let from_safetensors = Model::load(copy.path(), &LoadOptions::default())?;

    let tokens = &tensors("tiny-neox/forward.safetensors")?["tokens"];
    let a = from_bin.forward(tokens, None, &mut NoHooks)?;
    let b = from_safetensors.forward(tokens, None, &mut NoHooks)?;
    assert_eq!(max_abs_diff(&a, &b)?, 0.0);
    Ok(())
}

/// A second, independent way into the archive: torch.save numbers the storages in the order of
/// the names in its pickle, so names and entries pair up one to one.
fn tensors_from_raw_archive(path: &std::path::Path) -> Result<Vec<(String, Tensor)>> {
    use std::io::Read;
    let mut archive = zip::ZipArchive::new(std::fs::File::open(path)?)?;
    let mut read = |name: &str| -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        archive.by_name(name)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let pickle = read("pytorch_model/data.pkl")?;
    // BINUNICODE: X, u32 length, text. The names come in order until the `_metadata` key.
    let mut names = Vec::new();
    let mut at = 0;
    while at + 5 < pickle.len() {
        let len = u32::from_le_bytes(pickle[at + 1..at + 5].try_into()?) as usize;
        let text = pickle.get(at + 5..at + 5 + len);
        match (
            pickle[at],
            text.and_then(|bytes| std::str::from_utf8(bytes).ok()),
        ) {
            (b'X', Some("_metadata")) => break,
            (b'X', Some(text))
                if text.starts_with("gpt_neox.") || text.starts_with("embed_out") =>
            {
                names.push(text.to_owned());
                at += 5 + len;
            }
            _ => at += 1,
        }
    }
    let (d, m, v) = (64, 256, 4096);
    let mut tensors = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let shape: &[i64] = match name
            .rsplit_once("layers.")
            .map_or(name.as_str(), |(_, rest)| {
                rest.split_once('.').map_or(rest, |(_, part)| part)
            }) {
            "attention.query_key_value.weight" => &[3 * d, d],
            "attention.query_key_value.bias" => &[3 * d],
            "attention.dense.weight" => &[d, d],
            "mlp.dense_h_to_4h.weight" => &[m, d],
            "mlp.dense_h_to_4h.bias" => &[m],
            "mlp.dense_4h_to_h.weight" => &[d, m],
            "gpt_neox.embed_in.weight" | "embed_out.weight" => &[v, d],
            "attention.bias" | "attention.masked_bias" | "attention.rotary_emb.inv_freq" => {
                continue;
            }
            _ => &[d],
        };
        let bytes = read(&format!("pytorch_model/data/{index}"))?;
        assert_eq!(
            bytes.len() as i64,
            2 * shape.iter().product::<i64>(),
            "{name}"
        );
        tensors.push((
            name.clone(),
            Tensor::from_data_size(&bytes, shape, Kind::Half),
        ));
    }
    Ok(tensors)
}

/// step2000 says `rope_parameters` where the other steps say `rotary_pct`; the model is the same.
#[test]
fn both_config_styles_give_one_model() -> Result<()> {
    let copy = tempfile::tempdir()?;
    std::fs::copy(
        tiny("step4000").join("config.json"),
        copy.path().join("config.json"),
    )?;
    std::fs::copy(
        tiny("step2000").join("model.safetensors"),
        copy.path().join("model.safetensors"),
    )?;
    let old = Model::load(copy.path(), &LoadOptions::default())?;
    let new = Model::load(&tiny("step2000"), &LoadOptions::default())?;
    assert_eq!(old.config(), new.config());
    let tokens = &tensors("tiny-neox/forward.safetensors")?["tokens"];
    let a = old.forward(tokens, None, &mut NoHooks)?;
    let b = new.forward(tokens, None, &mut NoHooks)?;
    assert_eq!(max_abs_diff(&a, &b)?, 0.0);
    Ok(())
}

/// Half precision keeps about 3 digits, bfloat16 about 2.
#[test]
fn half_precisions_stay_near_f32() -> Result<()> {
    let expected = tensors("tiny-neox/forward.safetensors")?;
    let tokens = &expected["tokens"];
    let exact = Model::load(&tiny("step4000"), &LoadOptions::default())?.forward(
        tokens,
        None,
        &mut NoHooks,
    )?;
    for (dtype, atol) in [(Kind::Half, 0.1), (Kind::BFloat16, 0.6)] {
        let options = LoadOptions::default()
            .with_device(Device::Cpu)
            .with_dtype(dtype);
        let model = Model::load(&tiny("step4000"), &options)?;
        let fused = model.forward(tokens, None, &mut NoHooks)?;
        assert_eq!(fused.f_kind()?, dtype);
        assert_close(&format!("{dtype:?}"), &fused, &exact, atol);
        let hooked = model.forward(tokens, None, &mut Everywhere::default())?;
        assert_close(&format!("{dtype:?}, hooked"), &hooked, &exact, atol);
    }
    Ok(())
}
