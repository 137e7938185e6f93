//! Damaged, foreign and hostile checkpoints: an error that says what is wrong, never a crash.

use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use neox_core::{Architecture, ForwardError, LoadError, LoadOptions, Model, NoHooks, WeightFiles};
use tch::{Kind, Tensor};
use tempfile::TempDir;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn variant() -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/golden/variants/parallel"
    ))
}

fn tiny(step: &str) -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../examples/data/tiny-neox"
    ))
    .join(step)
}

/// A copy of a good checkpoint, to be damaged.
fn copy_of(dir: &Path) -> Result<TempDir> {
    let copy = tempfile::tempdir()?;
    for name in ["config.json", "model.safetensors", "pytorch_model.bin"] {
        if dir.join(name).exists() {
            fs::copy(dir.join(name), copy.path().join(name))?;
        }
    }
    Ok(copy)
}

fn load(dir: &Path) -> std::result::Result<Model, LoadError> {
    Model::load(dir, &LoadOptions::default())
}

/// The whole chain, as a bin prints it, with the folder's name left out.
fn message(dir: &Path) -> String {
    let Err(err) = load(dir) else {
        return "loaded".into();
    };
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(err) = source {
        text.push_str(": ");
        text.push_str(&err.to_string());
        source = err.source();
    }
    text.replace(&format!("{}/", dir.display()), "")
        .replace(&dir.display().to_string(), "DIR")
}

#[track_caller]
fn assert_starts(text: &str, start: &str) {
    assert!(text.starts_with(start), "got: {text}");
}

#[test]
fn folder_without_config() -> Result<()> {
    let dir = tempfile::tempdir()?;
    assert_starts(
        &message(dir.path()),
        "failed to read `config.json`: No such file",
    );
    Ok(())
}

#[test]
fn folder_without_weights() -> Result<()> {
    let dir = copy_of(&variant())?;
    fs::remove_file(dir.path().join("model.safetensors"))?;
    assert_starts(
        &message(dir.path()),
        "no weights in `DIR`: expected model.safetensors",
    );
    Ok(())
}

#[test]
fn truncated_safetensors() -> Result<()> {
    let whole = fs::read(variant().join("model.safetensors"))?;
    for keep in [0, 4, 8, 100, 3000, whole.len() - 1] {
        let dir = copy_of(&variant())?;
        fs::write(dir.path().join("model.safetensors"), &whole[..keep])?;
        let text = message(dir.path());
        assert!(
            text.starts_with("bad safetensors file `model.safetensors`")
                || text.starts_with("bad checkpoint file `model.safetensors`"),
            "{keep} bytes: {text}"
        );
    }
    Ok(())
}

#[test]
fn safetensors_that_claims_a_huge_header() -> Result<()> {
    let dir = copy_of(&variant())?;
    fs::write(dir.path().join("model.safetensors"), u64::MAX.to_le_bytes())?;
    assert_eq!(
        message(dir.path()),
        "bad checkpoint file `model.safetensors`: the header claims 18446744073709551615 bytes in a file of 8"
    );
    Ok(())
}

/// A safetensors file with this header and some data.
fn write_safetensors(path: &Path, header: &str, data: usize) -> Result<()> {
    let mut file = fs::File::create(path)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    file.write_all(&vec![0; data])?;
    Ok(())
}

#[test]
fn safetensors_headers_that_lie() -> Result<()> {
    let cases = [
        r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#,
        r#"{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615]}}"#,
        r#"[[[["#,
        r#"{}"#,
    ];
    for header in cases {
        let dir = copy_of(&variant())?;
        write_safetensors(&dir.path().join("model.safetensors"), header, 8)?;
        assert!(load(dir.path()).is_err(), "accepted {header}");
    }
    let dir = copy_of(&variant())?;
    let deep = "[".repeat(1 << 20);
    write_safetensors(&dir.path().join("model.safetensors"), &deep, 8)?;
    assert_starts(
        &message(dir.path()),
        "bad safetensors file `model.safetensors`",
    );
    Ok(())
}

/// Rewrites the weights of a good checkpoint after `change`.
fn with_tensors(change: impl FnOnce(&mut Vec<(String, Tensor)>) -> Result<()>) -> Result<TempDir> {
    let dir = copy_of(&variant())?;
    let path = dir.path().join("model.safetensors");
    let mut tensors = Tensor::read_safetensors(&path)?;
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    change(&mut tensors)?;
    let named: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, t)| (name.as_str(), t)).collect();
    Tensor::write_safetensors(&named, &path)?;
    Ok(dir)
}

#[test]
fn every_missing_unexpected_and_misshapen_tensor_is_listed() -> Result<()> {
    let dir = with_tensors(|tensors| {
        tensors.retain(|(name, _)| {
            name != "embed_out.weight" && name != "gpt_neox.layers.1.mlp.dense_h_to_4h.bias"
        });
        for (name, tensor) in tensors.iter_mut() {
            if name == "gpt_neox.layers.0.attention.dense.weight" {
                *tensor = tensor.f_narrow(0, 0, 1)?.f_contiguous()?; // libtorch would broadcast it
            }
            if name == "gpt_neox.final_layer_norm.bias" {
                *tensor = tensor.f_to_kind(Kind::Int)?;
            }
        }
        tensors.push((
            "lm_head.weight".into(),
            Tensor::f_zeros([2], (Kind::Float, tch::Device::Cpu))?,
        ));
        Ok(())
    })?;
    assert_eq!(
        message(dir.path()),
        "weights in `DIR` do not fit the config: \
         2 missing: `embed_out.weight`, `gpt_neox.layers.1.mlp.dense_h_to_4h.bias`; \
         1 unexpected: `lm_head.weight`; \
         1 of the wrong shape: `gpt_neox.layers.0.attention.dense.weight` has [1, 32], but the config implies [32, 32]; \
         1 of the wrong dtype: `gpt_neox.final_layer_norm.bias` is I32"
    );
    Ok(())
}

fn config_error(
    change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>),
) -> Result<String> {
    let text = fs::read_to_string(variant().join("config.json"))?;
    let mut value: serde_json::Value = serde_json::from_str(&text)?;
    change(value.as_object_mut().ok_or("not an object")?);
    Ok(match Architecture::from_json(&value.to_string()) {
        Ok(_) => "accepted".into(),
        Err(err) => err.to_string(),
    })
}

#[test]
fn config_errors_name_the_field() -> Result<()> {
    let cases: [(&str, serde_json::Value, &str); 12] = [
        (
            "hidden_size",
            (-32).into(),
            "`hidden_size`: expected a whole number from 1 to 16777216, found `-32`",
        ),
        (
            "vocab_size",
            0.into(),
            "`vocab_size`: expected a whole number from 1 to 16777216, found `0`",
        ),
        (
            "num_hidden_layers",
            "two".into(),
            "`num_hidden_layers`: expected a whole number from 1 to 16777216, found `\"two\"`",
        ),
        (
            "intermediate_size",
            1e30.into(),
            "`intermediate_size`: expected a whole number from 1 to 16777216, found `1e+30`",
        ),
        (
            "max_position_embeddings",
            serde_json::Value::Null,
            "`max_position_embeddings`: missing",
        ),
        (
            "num_attention_heads",
            5.into(),
            "`num_attention_heads`: 5 does not divide hidden_size 32",
        ),
        ("rotary_pct", 2.into(), "`rotary_pct`: 2 is above 1"),
        (
            "rotary_pct",
            0.4.into(),
            "`rotary_pct`: 0.4 of a head of 8 dimensions is 3, expected an even number from 2",
        ),
        (
            "hidden_act",
            "gelu_novel".into(),
            "`hidden_act`: unknown activation `gelu_novel`",
        ),
        (
            "model_type",
            "mamba".into(),
            "model_type is `mamba`, expected `gpt_neox` or `gpt2` or `llama` or `olmo` or `olmo2`",
        ),
        (
            "layer_norm_eps",
            (-1e-5).into(),
            "`layer_norm_eps`: expected a number above 0, found `-0.00001`",
        ),
        (
            "eos_token_id",
            96.into(),
            "`eos_token_id`: expected a token id below vocab_size 96, found `96`",
        ),
    ];
    for (key, value, expected) in cases {
        let text = config_error(|map| {
            map.insert(key.into(), value);
        })?;
        assert_eq!(text, expected);
    }
    let rope = serde_json::json!({"rope_type": "yarn", "rope_theta": 10000.0});
    let text = config_error(|map| {
        map.insert("rope_parameters".into(), rope);
    })?;
    assert_eq!(
        text,
        "`rope_parameters.rope_type`: `yarn` is not supported, only `default`, `linear` and `llama3`"
    );
    Ok(())
}

#[test]
fn config_that_is_too_deep_or_too_large() -> Result<()> {
    let dir = copy_of(&variant())?;
    fs::write(dir.path().join("config.json"), "[".repeat(200_000))?;
    assert_starts(
        &message(dir.path()),
        "bad model config `config.json`: not valid JSON",
    );
    fs::write(dir.path().join("config.json"), " ".repeat(2 << 20))?;
    assert_eq!(
        message(dir.path()),
        "failed to read `config.json`: the file is larger than 1048576 bytes"
    );
    Ok(())
}

#[test]
fn bad_tokens_and_masks() -> Result<()> {
    let model = load(&variant())?;
    let run = |tokens: &Tensor, mask: Option<&Tensor>| {
        model
            .forward(tokens, mask, &mut NoHooks)
            .err()
            .map_or("accepted".to_owned(), |err: ForwardError| err.to_string())
    };
    let row = |ids: &[i64]| Tensor::from_slice(ids).view([1, -1]);
    assert_eq!(
        run(&row(&[3, 96]), None),
        "token id 96 is outside the vocabulary of 96 rows"
    );
    assert_eq!(
        run(&row(&[3, -1]), None),
        "token id -1 is outside the vocabulary of 96 rows"
    );
    assert_eq!(
        run(&row(&[1; 65]), None),
        "sequence of 65 tokens is longer than max_position_embeddings 64"
    );
    assert_eq!(
        run(&Tensor::from_slice(&[1i64, 2]), None),
        "tokens have shape [2], expected [batch, pos], not empty"
    );
    assert_eq!(
        run(&row(&[]), None),
        "tokens have shape [1, 0], expected [batch, pos], not empty"
    );
    assert_eq!(
        run(&row(&[1, 2]).to_kind(Kind::Float), None),
        "tokens are Float, expected Int64"
    );
    assert_eq!(
        run(&row(&[1, 2]), Some(&row(&[1]))),
        "mask has shape [1, 1], but the tokens have [1, 2]"
    );
    assert_eq!(
        run(&row(&[1, 2]), Some(&row(&[1, -3]))),
        "mask holds -3, expected 1 (or true) where there is a token and 0 (or false) on padding"
    );
    let nan = Tensor::from_slice(&[1.0f32, f32::NAN]).view([1, -1]);
    assert!(run(&row(&[1, 2]), Some(&nan)).contains("mask holds NaN"));
    for kind in [Kind::Int64, Kind::Float, Kind::Bool] {
        let mask = row(&[0, 1]).to_kind(kind);
        assert_eq!(run(&row(&[1, 2]), Some(&mask)), "accepted", "{kind:?}");
    }
    Ok(())
}

/// Splits a good checkpoint into two shards with an index.
fn sharded() -> Result<TempDir> {
    let dir = copy_of(&variant())?;
    let whole = dir.path().join("model.safetensors");
    let tensors = Tensor::read_safetensors(&whole)?;
    fs::remove_file(&whole)?;
    let mut map = serde_json::Map::new();
    for (index, part) in tensors.chunks(tensors.len() / 2 + 1).enumerate() {
        let name = format!("model-0000{}-of-00002.safetensors", index + 1);
        let named: Vec<(&str, &Tensor)> = part.iter().map(|(name, t)| (name.as_str(), t)).collect();
        Tensor::write_safetensors(&named, dir.path().join(&name))?;
        for (tensor, _) in part {
            map.insert(tensor.clone(), name.clone().into());
        }
    }
    let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
    fs::write(
        dir.path().join("model.safetensors.index.json"),
        index.to_string(),
    )?;
    Ok(dir)
}

#[test]
fn shards_make_the_same_model() -> Result<()> {
    let dir = sharded()?;
    let tokens = Tensor::from_slice(&[5i64, 6, 7]).view([1, 3]);
    let whole = load(&variant())?.forward(&tokens, None, &mut NoHooks)?;
    let parts = load(dir.path())?.forward(&tokens, None, &mut NoHooks)?;
    assert!(whole.f_equal(&parts)?);
    let files = WeightFiles::find(dir.path())?;
    assert_eq!(files.sha256()?.len(), 2);

    fs::remove_file(dir.path().join("model-00002-of-00002.safetensors"))?;
    assert_starts(
        &message(dir.path()),
        "failed to read `model-00002-of-00002.safetensors`: No such file",
    );
    Ok(())
}

#[test]
fn indexes_that_lie() -> Result<()> {
    let path = "model.safetensors.index.json";
    let dir = sharded()?;
    for bad in ["../secret", "/etc/passwd", "a/b", "..", ""] {
        let index = serde_json::json!({"weight_map": {"gpt_neox.embed_in.weight": bad}});
        fs::write(dir.path().join(path), index.to_string())?;
        assert_eq!(
            message(dir.path()),
            format!("bad checkpoint file `{path}`: `{bad}` is not a plain file name")
        );
    }
    fs::write(dir.path().join(path), "{}")?;
    assert_starts(
        &message(dir.path()),
        &format!("bad checkpoint file `{path}`: missing field"),
    );

    let dir = sharded()?;
    let mut index: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(dir.path().join(path))?)?;
    index["weight_map"]["extra"] = "model-00001-of-00002.safetensors".into();
    fs::write(dir.path().join(path), index.to_string())?;
    assert_eq!(
        message(dir.path()),
        "bad checkpoint file `model-00001-of-00002.safetensors`: lacks tensor `extra`, which the index puts there"
    );
    Ok(())
}

#[test]
fn hashes_are_those_of_sha256sum() -> Result<()> {
    let files = WeightFiles::find(&tiny("step0"))?.sha256()?;
    // sha256sum examples/data/tiny-neox/step0/model.safetensors
    assert_eq!(
        files[0].sha256,
        "9135cea560b6d91f395f89e34dba18148bae639b57435202a9fe84e0a561eb8f"
    );
    assert_eq!(files[0].name, "model.safetensors");
    Ok(())
}

#[test]
fn devices_and_dtypes_in_words() {
    let device = |text| {
        neox_core::parse_device(text).map_or_else(|err| err.to_string(), |d| format!("{d:?}"))
    };
    assert_eq!(device("cpu"), "Cpu");
    assert_eq!(
        device("gpu"),
        "unknown device `gpu`: expected auto, cpu, cuda or cuda:N"
    );
    assert_eq!(
        device("cuda:-1"),
        "unknown device `cuda:-1`: expected auto, cpu, cuda or cuda:N"
    );
    if !tch::Cuda::is_available() {
        assert_eq!(device("auto"), "Cpu");
        assert_starts(
            &device("cuda"),
            "device `cuda` asked for, but this libtorch sees no CUDA device",
        );
    }
    let dtype = |text| {
        neox_core::parse_dtype(text).map_or_else(|err| err.to_string(), |d| format!("{d:?}"))
    };
    assert_eq!(dtype("f16"), "Half");
    assert_eq!(
        dtype("float32"),
        "unknown dtype `float32`: expected f32, f16 or bf16"
    );
    let options = LoadOptions::default().with_dtype(Kind::Double);
    let err =
        Model::load(&variant(), &options).map_or_else(|err| err.to_string(), |_| "loaded".into());
    assert_eq!(
        err,
        "cannot compute in Double: expected Float, Half or BFloat16"
    );
}

// --- pytorch_model.bin ---

/// A torch.save archive with this pickle and one storage of zeros.
fn write_bin(path: &Path, pickle: &[u8], storage: usize) -> Result<()> {
    use zip::write::SimpleFileOptions;
    let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut zip = zip::ZipWriter::new(fs::File::create(path)?);
    zip.start_file("archive/data.pkl", options)?;
    zip.write_all(pickle)?;
    zip.start_file("archive/data/0", options)?;
    zip.write_all(&vec![0; storage])?;
    zip.finish()?;
    Ok(())
}

fn message_for_pickle(pickle: &[u8]) -> Result<String> {
    let dir = copy_of(&variant())?;
    fs::remove_file(dir.path().join("model.safetensors"))?;
    write_bin(&dir.path().join("pytorch_model.bin"), pickle, 64)?;
    Ok(message(dir.path()))
}

/// `pickle.loads` of this runs `touch` on a file; here it is refused at the name of the function.
#[test]
fn a_malicious_pickle_runs_nothing() -> Result<()> {
    let witness = tempfile::tempdir()?;
    let file = witness.path().join("ran");
    let command = format!("touch {}", file.display());
    let mut pickle = b"\x80\x02cposix\nsystem\nX".to_vec();
    pickle.extend((command.len() as u32).to_le_bytes());
    pickle.extend(command.as_bytes());
    pickle.extend(b"\x85R.");
    assert_eq!(
        message_for_pickle(&pickle)?,
        "refused the pickle in `pytorch_model.bin`: it names `posix.system`, which saved tensors do not use; nothing was run"
    );
    assert!(!file.exists());
    // and that it is malicious
    let bytes: Vec<String> = pickle.iter().map(u8::to_string).collect();
    let program = format!("import pickle; pickle.loads(bytes([{}]))", bytes.join(","));
    if std::process::Command::new("python3")
        .args(["-c", &program])
        .status()
        .is_ok()
    {
        assert!(file.exists());
    }
    Ok(())
}

#[test]
fn pickles_that_lie() -> Result<()> {
    let tensor = |shape: &str, stride: &str, len: &str| {
        let mut pickle = b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu".to_vec();
        pickle.extend(len.as_bytes());
        pickle.extend(b"tQK\x00");
        pickle.extend(shape.as_bytes());
        pickle.extend(stride.as_bytes());
        pickle.extend(b"\x89}tRs.");
        pickle
    };
    let out_of_storage =
        "refused the pickle in `pytorch_model.bin`: a tensor that reaches out of its storage";
    let cases: [(Vec<u8>, &str); 9] = [
        // good: a 4 x 4 tensor that the model does not have
        (
            tensor("K\x04K\x04\u{0}", "", "K\x10")
                .into_iter()
                .take(3)
                .collect(),
            "refused the pickle in `pytorch_model.bin`: the pickle ends early",
        ),
        (
            b"\x80\x02}.".to_vec(),
            "weights in `DIR` do not fit the config: 28 missing",
        ),
        (
            b"\x80\x02K\x01.".to_vec(),
            "refused the pickle in `pytorch_model.bin`: expected a dictionary of tensors",
        ),
        (
            b"\x80\x02}X\x01\x00\x00\x00aK\x01s.".to_vec(),
            "refused the pickle in `pytorch_model.bin`: expected a dictionary that holds only tensors",
        ),
        (
            b"\x80\x02(tQ.".to_vec(),
            "refused the pickle in `pytorch_model.bin`: expected the five parts",
        ),
        (
            b"\x80\x02\x8a\xff".to_vec(),
            "refused the pickle in `pytorch_model.bin`: the pickle ends early",
        ),
        (
            b"\x80\x02i".to_vec(),
            "refused the pickle in `pytorch_model.bin`: instruction 0x69 at byte 2",
        ),
        (
            b"\x80\x02h\x07.".to_vec(),
            "refused the pickle in `pytorch_model.bin`: a value that was not remembered",
        ),
        (
            b"\x80\x02ttt.".to_vec(),
            "refused the pickle in `pytorch_model.bin`: expected a mark",
        ),
    ];
    for (pickle, expected) in cases {
        assert_starts(&message_for_pickle(&pickle)?, expected);
    }
    let views: [(&[u8], &[u8], &[u8]); 5] = [
        (b"K\x04K\x05\x86", b"K\x05K\x01\x86", b"K\x10"), // past the end
        (b"K\x04K\x04\x86", b"K\x00K\x00\x86", b"K\x08"), // expands
        (b"J\xff\xff\xff\xff\x85", b"K\x01\x85", b"K\x10"), // negative size
        (b"K\x04\x85", b"J\xff\xff\xff\xff\x85", b"K\x10"), // negative stride
        (b"K\x04K\x04\x86", b"K\x01\x85", b"K\x10"),      // ranks differ
    ];
    for (shape, stride, len) in views {
        let mut pickle = tensor("", "", "");
        // the placeholders are empty: put the parts where they belong
        let at = |pickle: &[u8], needle: &[u8]| {
            pickle
                .windows(needle.len())
                .position(|window| window == needle)
                .map(|at| at + needle.len())
        };
        let len_at = at(&pickle, b"cpu").ok_or("no cpu")?;
        pickle.splice(len_at..len_at, len.iter().copied());
        let view_at = at(&pickle, b"tQK\x00").ok_or("no storage")?;
        pickle.splice(view_at..view_at, [shape, stride].concat());
        assert_starts(&message_for_pickle(&pickle)?, out_of_storage);
    }
    Ok(())
}

/// Every prefix of a real archive's pickle, and an archive cut short or altered.
#[test]
fn damaged_archives() -> Result<()> {
    let dir = copy_of(&tiny("step1000"))?;
    let path = dir.path().join("pytorch_model.bin");
    let whole = fs::read(&path)?;
    fs::write(&path, &whole[..whole.len() / 2])?;
    assert_starts(
        &message(dir.path()),
        "`pytorch_model.bin` is not a zip archive",
    );
    fs::write(&path, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")?; // torch.save before 1.6
    assert_starts(
        &message(dir.path()),
        "`pytorch_model.bin` is not a zip archive",
    );
    let mut flipped = whole.clone();
    let middle = whole.len() / 2; // inside some tensor's data
    flipped[middle] ^= 1;
    fs::write(&path, &flipped)?;
    assert_starts(&message(dir.path()), "failed to read `pytorch_model.bin`");
    Ok(())
}

/// What stands in place of weights after a checkout or a download that did not fetch them.
#[test]
fn files_that_are_something_else_are_named() -> Result<()> {
    let pointer =
        "version https://git-lfs.github.com/spec/v1\noid sha256:97999cfe0331ffd4\nsize 1454352\n";
    for (content, said) in [
        (pointer, "Git LFS pointer"),
        ("<!DOCTYPE html>\n<html><body>404</body></html>", "web page"),
        ("", "it is empty"),
    ] {
        for name in ["model.safetensors", "pytorch_model.bin"] {
            let dir = copy_of(&variant())?;
            fs::remove_file(dir.path().join("model.safetensors"))?;
            fs::write(dir.path().join(name), content)?;
            let text = message(dir.path());
            assert!(text.contains(name), "{text}");
            if name == "model.safetensors" || !content.is_empty() {
                assert!(text.contains(said), "{text}");
            }
        }
        let dir = copy_of(&variant())?;
        fs::write(dir.path().join("config.json"), content)?;
        let text = message(dir.path());
        assert!(text.contains("config.json"), "{text}");
        assert!(content.is_empty() || text.contains(said), "{text}");
    }
    let dir = copy_of(&variant())?;
    let whole = fs::read(variant().join("model.safetensors"))?;
    fs::write(
        dir.path().join("model.safetensors"),
        &whole[..whole.len() - 8],
    )?;
    assert!(
        message(dir.path()).contains("cut off"),
        "{}",
        message(dir.path())
    );
    Ok(())
}

#[test]
fn weights_that_are_not_finite_are_named() -> Result<()> {
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let dir = with_tensors(|tensors| {
            for (name, tensor) in tensors.iter_mut() {
                if name == "gpt_neox.layers.1.attention.dense.weight" {
                    let mut changed = tensor.f_to_kind(Kind::Float)?;
                    let _ = changed.f_select(0, 3)?.f_select(0, 5)?.f_fill_(value)?;
                    std::mem::swap(tensor, &mut changed);
                }
            }
            Ok(())
        })?;
        let text = message(dir.path());
        assert_starts(
            &text,
            "tensor `gpt_neox.layers.1.attention.dense.weight` of `DIR` is ",
        );
        assert!(text.contains("at [3, 5]"), "{text}");
    }
    // Finite as it is stored, and not in f16.
    let dir = with_tensors(|tensors| {
        for (name, tensor) in tensors.iter_mut() {
            if name == "gpt_neox.final_layer_norm.bias" {
                *tensor = tensor
                    .f_to_kind(Kind::Float)?
                    .f_mul_scalar(0.0)?
                    .f_add_scalar(1e6)?;
            }
        }
        Ok(())
    })?;
    assert!(load(dir.path()).is_ok());
    let half = LoadOptions::default().with_dtype(Kind::Half);
    let err = Model::load(dir.path(), &half).err().ok_or("loaded")?;
    assert!(err.to_string().contains("load the model in f32"), "{err}");
    Ok(())
}

/// Finite weights that overflow on the way: the first site is named, not a statistic at the end.
#[test]
fn a_model_that_overflows_is_named_with_the_site() -> Result<()> {
    let dir = with_tensors(|tensors| {
        for (name, tensor) in tensors.iter_mut() {
            if name == "gpt_neox.layers.1.mlp.dense_h_to_4h.bias" {
                *tensor = tensor
                    .f_to_kind(Kind::Float)?
                    .f_mul_scalar(0.0)?
                    .f_add_scalar(3e38)?;
            }
        }
        Ok(())
    })?;
    let model = load(dir.path())?;
    let tokens = Tensor::from_slice(&[1i64, 2, 3, 4]).f_view([1, 4])?;
    let err = model
        .forward(&tokens, None, &mut NoHooks)
        .err()
        .ok_or("ran")?;
    assert!(
        matches!(&err, ForwardError::NotFinite { .. }) && err.to_string().contains("blocks.1."),
        "{err}"
    );
    Ok(())
}

fn logits(model: &Model) -> Result<Tensor> {
    let tokens = Tensor::from_slice(&[1i64, 2, 3, 4]).f_view([1, 4])?;
    Ok(model.forward(&tokens, None, &mut NoHooks)?)
}

type Rename<'a> = &'a dyn Fn(&str) -> String;

/// Renames all tensors of a good checkpoint.
fn renamed(rename: impl Fn(&str) -> String) -> Result<TempDir> {
    with_tensors(|tensors| {
        for (name, _) in tensors.iter_mut() {
            *name = rename(name);
        }
        Ok(())
    })
}

#[test]
fn names_that_wrappers_changed_are_read_and_said() -> Result<()> {
    let own = logits(&load(&variant())?)?;
    let bare = |name: &str| name.trim_start_matches("gpt_neox.").to_owned();
    let cases: [(Rename<'_>, &str); 6] = [
        (&|name| format!("module.{name}"), "`module.`"),
        (&|name| format!("_orig_mod.{name}"), "`_orig_mod.`"),
        (
            &|name| format!("_orig_mod.module.{name}"),
            "`_orig_mod.module.`",
        ),
        (&|name| format!("model.{}", bare(name)), "`model.`"),
        (
            &|name| name.replace("gpt_neox.", "transformer."),
            "`transformer.`",
        ),
        (&bare, "lack `gpt_neox.`"),
    ];
    for (rename, said) in cases {
        let dir = renamed(rename)?;
        let model = load(dir.path())?;
        assert!(logits(&model)?.f_equal(&own)?, "{said}");
        assert!(
            model.warnings().iter().any(|text| text.contains(said)),
            "{:?}",
            model.warnings()
        );
    }
    assert!(load(&variant())?.warnings().is_empty());
    // Not all of them: nothing is guessed.
    let dir = renamed(|name| match name.contains("layers.0") {
        true => name.to_owned(),
        false => format!("module.{name}"),
    })?;
    assert!(
        message(dir.path()).contains("missing: "),
        "{}",
        message(dir.path())
    );
    Ok(())
}

/// transformers 5 keeps both matrices and warns.
#[test]
fn tied_embeddings_that_are_both_stored_are_both_kept() -> Result<()> {
    let own = logits(&load(&variant())?)?;
    let tied = |dir: &Path| -> Result<()> {
        let path = dir.join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
        config["tie_word_embeddings"] = true.into();
        Ok(fs::write(&path, config.to_string())?)
    };
    let both = copy_of(&variant())?;
    tied(both.path())?;
    let model = load(both.path())?;
    assert!(logits(&model)?.f_equal(&own)?);
    assert!(
        model.warnings()[0].contains("tie_word_embeddings"),
        "{:?}",
        model.warnings()
    );

    let only = |name: &'static str| -> Result<Model> {
        let dir = with_tensors(|tensors| {
            tensors.retain(|(found, _)| found != name);
            Ok(())
        })?;
        tied(dir.path())?;
        Ok(load(dir.path())?)
    };
    for missing in ["embed_out.weight", "gpt_neox.embed_in.weight"] {
        let model = only(missing)?;
        assert!(model.warnings().is_empty());
        assert!(!logits(&model)?.f_equal(&own)?);
    }
    // The same twice is tied without a word.
    let same = with_tensors(|tensors| {
        let embedding = tensors
            .iter()
            .find(|(name, _)| name == "gpt_neox.embed_in.weight");
        let embedding = embedding.ok_or("no embedding")?.1.shallow_clone();
        tensors.retain(|(name, _)| name != "embed_out.weight");
        tensors.push(("embed_out.weight".into(), embedding.f_mul_scalar(1.0)?));
        Ok(())
    })?;
    tied(same.path())?;
    assert!(load(same.path())?.warnings().is_empty());
    Ok(())
}

#[test]
fn config_keys_that_change_numbers_are_honoured_or_refused() -> Result<()> {
    for (key, value, said) in [
        (
            "quantization_config",
            serde_json::json!({"bits": 4}),
            "quantised",
        ),
        (
            "rope_scaling",
            serde_json::json!({"factor": 2.0}),
            "`rope_scaling.factor`",
        ),
        ("rope_theta", 500.0.into(), "`rope_theta`: says 500"),
        (
            "partial_rotary_factor",
            1.0.into(),
            "`partial_rotary_factor`: says 1",
        ),
        ("head_dim", 64.into(), "`head_dim`"),
        ("num_key_value_heads", 1.into(), "`num_key_value_heads`"),
        (
            "bos_token_id",
            (-1).into(),
            "`bos_token_id`: expected a token id",
        ),
        (
            "eos_token_id",
            serde_json::json!([0, 96]),
            "`eos_token_id`: expected a token id",
        ),
    ] {
        let text = config_error(|map| {
            map.insert(key.into(), value);
        })?;
        assert!(text.contains(said), "{key}: {text}");
    }
    for (key, value) in [
        ("eos_token_id", serde_json::json!([0, 2])),
        ("bos_token_id", serde_json::json!([0])),
        ("bos_token_id", serde_json::Value::Null),
        ("quantization_config", serde_json::Value::Null),
        ("rope_scaling", serde_json::Value::Null),
        ("pruned_heads", serde_json::json!({})),
    ] {
        let text = config_error(|map| {
            map.insert(key.into(), value);
        })?;
        assert_eq!(text, "accepted", "{key}");
    }
    Ok(())
}
