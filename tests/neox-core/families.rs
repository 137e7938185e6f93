//! Every family against Hugging Face transformers: logits, residual stream and neurons of every layer.

use std::collections::HashMap;
use std::error::Error;
use std::path::PathBuf;

use neox_core::{Architecture, HookError, Hooks, LoadOptions, Model, NoHooks, Site};
use tch::{Kind, Tensor};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// f32 on both sides, sums in another order.
const ATOL: f64 = 1e-4;

fn families() -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/golden/families"
    ))
}

#[track_caller]
fn assert_close(what: &str, got: &Tensor, expected: &Tensor) {
    assert_eq!(got.size(), expected.size(), "{what}");
    let off = got
        .f_sub(expected)
        .and_then(|diff| diff.f_abs()?.f_max()?.f_double_value(&[]));
    let off = off.unwrap_or(f64::NAN);
    assert!(off <= ATOL, "{what}: off by {off:.1e}, allowed {ATOL:.0e}");
}

/// Keeps `resid_post` and `mlp_post` of every layer, and may ask for attention patterns as well.
struct Keep {
    pattern: bool,
    seen: HashMap<Site, Tensor>,
}

impl Hooks for Keep {
    fn wants(&self, site: Site) -> bool {
        match site {
            Site::ResidPost(_) | Site::MlpPost(_) => true,
            Site::Pattern(_) | Site::LnFinalScale => self.pattern,
            _ => false,
        }
    }

    fn at(&mut self, site: Site, value: Tensor) -> std::result::Result<Tensor, HookError> {
        self.seen.insert(site, value.shallow_clone());
        Ok(value)
    }
}

/// Made with transformers 5.24, eager attention, f32, CPU: tiny random models.
fn check(name: &str) -> Result<()> {
    let dir = families().join(name);
    let model = Model::load(&dir, &LoadOptions::default())?;
    let expected: HashMap<String, Tensor> =
        Tensor::read_safetensors(dir.join("expected.safetensors"))?
            .into_iter()
            .collect();
    let tokens = &expected["tokens"]; // [2, 40]
    let at = |value: &Tensor| value.f_index_select(1, &expected["positions"]);
    let fused = model.forward(tokens, None, &mut NoHooks)?;
    assert_close(
        &format!("{name}: logits"),
        &at(&fused)?,
        &expected["logits"],
    );
    // With and without the explicit attention pattern.
    for pattern in [false, true] {
        let mut keep = Keep {
            pattern,
            seen: HashMap::new(),
        };
        let logits = model.forward(tokens, None, &mut keep)?;
        assert_close(
            &format!("{name}: hooked logits"),
            &at(&logits)?,
            &expected["logits"],
        );
        for layer in 0..model.config().num_hidden_layers {
            for (site, key) in [
                (Site::ResidPost(layer), "resid_post"),
                (Site::MlpPost(layer), "mlp_post"),
            ] {
                let value = keep.seen.get(&site).ok_or("site not visited")?;
                let expected = expected[key].f_select(0, layer as i64)?;
                assert_close(&format!("{name}: {site}"), &at(value)?, &expected);
            }
        }
    }
    Ok(())
}

#[test]
fn every_family_matches_transformers() -> Result<()> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(families())? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    assert!(names.iter().filter(|name| name.starts_with("gpt2")).count() >= 5);
    for name in names {
        check(&name)?;
    }
    Ok(())
}

/// A row with padding on either side, and a row of two texts with a common beginning, give each text what it gives alone.
#[test]
fn padding_and_branches_change_nothing() -> Result<()> {
    use neox_core::Branch;
    for entry in std::fs::read_dir(families())? {
        let dir = entry?.path();
        let name = dir.display();
        let model = Model::load(&dir, &LoadOptions::default())?;
        let text = [5i64, 17, 23, 42, 8, 77];
        let alone = |ids: &[i64]| {
            let tokens = Tensor::from_slice(ids).view([1, -1]);
            model.residual(&tokens, None, &mut NoHooks)
        };
        let whole = alone(&text)?;
        for left in [0usize, 3] {
            let mut ids = vec![0i64; 9];
            let mut mask = vec![0i64; 9];
            ids[left..left + 6].copy_from_slice(&text);
            mask[left..left + 6].fill(1);
            let ids = Tensor::from_slice(&ids).view([1, -1]);
            let mask = Tensor::from_slice(&mask).view([1, -1]);
            let padded = model.residual(&ids, Some(&mask), &mut NoHooks)?;
            let padded = padded.f_narrow(1, left as i64, 6)?;
            assert_close(&format!("{name}: {left} of padding"), &padded, &whole);
        }
        // `5 17 23 42 8 77` and `5 17 23 9 4`
        let row = Tensor::from_slice(&[5i64, 17, 23, 42, 8, 77, 9, 4]).view([1, -1]);
        let branches = [vec![Branch {
            start: 6,
            shared: 3,
        }]];
        let both = model.residual_branched(&row, &branches, &mut NoHooks)?;
        let trunk = both.f_narrow(1, 0, 6)?;
        assert_close(&format!("{name}: trunk"), &trunk, &whole);
        let other = alone(&[5, 17, 23, 9, 4])?.f_narrow(1, 3, 2)?;
        let branch = both.f_narrow(1, 6, 2)?;
        assert_close(&format!("{name}: branch"), &branch, &other);
        let rows = Tensor::from_slice(&[2i64, 6]);
        let some = model.residual_rows(&row, Some(&branches), &rows, &mut NoHooks)?;
        let expected = both.f_squeeze_dim(0)?.f_index_select(0, &rows)?;
        assert_close(&format!("{name}: some rows"), &some, &expected);
    }
    Ok(())
}

fn gpt2(change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) -> Result<String> {
    let text = std::fs::read_to_string(families().join("gpt2-plain/config.json"))?;
    let mut value: serde_json::Value = serde_json::from_str(&text)?;
    change(value.as_object_mut().ok_or("not an object")?);
    Ok(match Architecture::from_json(&value.to_string()) {
        Ok(_) => "accepted".into(),
        Err(err) => err.to_string(),
    })
}

#[test]
fn gpt2_configs_that_do_not_fit_name_the_key() -> Result<()> {
    let cases: [(&str, serde_json::Value, &str); 6] = [
        ("n_embd", serde_json::Value::Null, "`n_embd`: missing"),
        ("n_head", 5.into(), "`n_head`: 5 does not divide n_embd 32"),
        (
            "activation_function",
            "tanhshrink".into(),
            "`activation_function`: unknown activation `tanhshrink`",
        ),
        (
            "add_cross_attention",
            true.into(),
            "`add_cross_attention`: cross attention is not supported",
        ),
        (
            "scale_attn_weights",
            "no".into(),
            "`scale_attn_weights`: expected true or false, found `\"no\"`",
        ),
        (
            "n_inner",
            0.into(),
            "`n_inner`: expected a whole number from 1 to 16777216, found `0`",
        ),
    ];
    for (key, value, expected) in cases {
        let text = gpt2(|map| {
            map.insert(key.into(), value);
        })?;
        assert_eq!(text, expected);
    }
    Ok(())
}

/// What is computed in half precision stays near f32, pattern or not.
#[test]
fn half_precision_stays_near_f32() -> Result<()> {
    let dir = families().join("gpt2-crfm");
    let tokens = Tensor::from_slice(&[3i64, 1, 4, 1, 5, 9]).view([2, 3]);
    let exact = Model::load(&dir, &LoadOptions::default())?.forward(&tokens, None, &mut NoHooks)?;
    let options = LoadOptions::default().with_dtype(Kind::BFloat16);
    let half = Model::load(&dir, &options)?.forward(&tokens, None, &mut NoHooks)?;
    assert_eq!(half.f_kind()?, Kind::BFloat16);
    let off = half.f_to_kind(Kind::Float)?.f_sub(&exact)?.f_abs()?;
    let scale = exact.f_abs()?.f_max()?.f_double_value(&[])?;
    assert!(off.f_max()?.f_double_value(&[])? < 0.05 * scale);
    Ok(())
}
