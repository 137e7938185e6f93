//! Forwards of small random models of every family, against values of Hugging Face transformers.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use neox_core::{HookError, Hooks, NoHooks, Site};
use tch::{Device, Kind, Tensor};

use crate::report::{Found, Report};
use crate::{Setting, models};

/// A model and what transformers makes of it, in f32 (tests/golden/README.md tells how they were made).
pub(crate) struct Golden {
    pub(crate) name: &'static str,
    config: &'static [u8],
    weights: &'static [u8],
    expected: &'static [u8],
}

macro_rules! golden {
    ($name:literal, $folder:literal) => {
        Golden {
            name: $name,
            config: include_bytes!(concat!("../../../tests/golden/", $folder, "/config.json")),
            weights: include_bytes!(concat!(
                "../../../tests/golden/",
                $folder,
                "/model.safetensors"
            )),
            expected: include_bytes!(concat!(
                "../../../tests/golden/",
                $folder,
                "/expected.safetensors"
            )),
        }
    };
}

/// One of each family.
const MODELS: [Golden; 5] = [
    golden!("GPT-NeoX", "variants/parallel"),
    golden!("GPT-2", "families/gpt2-crfm"),
    golden!("Llama", "families/llama-gqa"),
    golden!("OLMo", "families/olmo-clip"),
    golden!("OLMo 2", "families/olmo2"),
];

/// The model that has a norm behind its MLPs.
pub(crate) const OLMO2: &Golden = &MODELS[4];

/// Of f32: sums in another order.
const F32: f64 = 1e-4;
/// Of half precisions, as a share of the largest logit: they keep 11 and 8 bits, and errors grow through two layers.
const F16: f64 = 1e-2;
const BF16: f64 = 5e-2;

impl Golden {
    /// Writes the checkpoint, and what is expected, to a folder.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(crate) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let files = [
            ("config.json", self.config),
            ("model.safetensors", self.weights),
            ("expected.safetensors", self.expected),
        ];
        fs::create_dir_all(folder)
            .and_then(|()| {
                files
                    .iter()
                    .try_for_each(|(name, bytes)| fs::write(folder.join(name), bytes))
            })
            .with_context(|| format!("failed to write to `{}`", folder.display()))
    }

    fn expected(&self, folder: &Path) -> anyhow::Result<HashMap<String, Tensor>> {
        let tensors = Tensor::read_safetensors(folder.join("expected.safetensors"))?;
        Ok(tensors.into_iter().collect())
    }
}

/// Keeps residual stream and neurons of every layer.
#[derive(Default)]
struct Keep(HashMap<Site, Tensor>);

impl Hooks for Keep {
    fn wants(&self, site: Site) -> bool {
        matches!(site, Site::ResidPost(_) | Site::MlpPost(_))
    }

    fn at(&mut self, site: Site, value: Tensor) -> Result<Tensor, HookError> {
        self.0.insert(site, value.shallow_clone());
        Ok(value)
    }
}

/// All checks of this kind.
///
/// # Errors
/// If nothing can be printed.
pub(crate) fn check(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    for golden in &MODELS {
        let folder = setting
            .folder
            .join("golden")
            .join(golden.name.replace(' ', "-"));
        let written = report.needed(&format!("{}: writing", golden.name), || {
            golden.write(&folder)
        })?;
        if written.is_none() {
            continue;
        }
        let what = format!("{}, f32: logits, residual stream, neurons", golden.name);
        report.check(&what, F32, || in_f32(golden, &folder, setting.device))?;
        for (dtype, name, tolerance) in [(Kind::Half, "f16", F16), (Kind::BFloat16, "bf16", BF16)] {
            let what = format!("{}, {name}: logits, as a share of the largest", golden.name);
            report.check(&what, tolerance, || {
                in_half(golden, &folder, setting.device, dtype)
            })?;
        }
    }
    Ok(())
}

fn in_f32(golden: &Golden, folder: &Path, device: Device) -> anyhow::Result<Found> {
    let expected = golden.expected(folder)?;
    let model = models::load(folder, device, Kind::Float)?;
    let at = |value: &Tensor| at_positions(&expected, value);
    let tokens = get(&expected, "tokens")?;
    let mut largest: f64 = 0.0;
    let mut compare = |found: &Tensor, expected: &Tensor| {
        let difference = difference(found, expected)?;
        largest = if difference.is_nan() {
            f64::INFINITY
        } else {
            largest.max(difference)
        };
        Ok::<(), anyhow::Error>(())
    };
    compare(
        &at(&model.forward(tokens, None, &mut NoHooks)?)?,
        get(&expected, "logits")?,
    )?;
    let mut keep = Keep::default();
    compare(
        &at(&model.forward(tokens, None, &mut keep)?)?,
        get(&expected, "logits")?,
    )?;
    for (name, site) in [
        ("resid_post", Site::ResidPost as fn(usize) -> Site),
        ("mlp_post", Site::MlpPost),
    ] {
        let Some(expected) = expected.get(name) else {
            continue;
        };
        for layer in 0..model.config().num_hidden_layers {
            let site = site(layer);
            let found = keep
                .0
                .get(&site)
                .with_context(|| format!("site {site} was not visited"))?;
            compare(&at(found)?, &expected.f_select(0, layer as i64)?)?;
        }
    }
    Ok(largest.into())
}

fn in_half(golden: &Golden, folder: &Path, device: Device, dtype: Kind) -> anyhow::Result<Found> {
    let expected = golden.expected(folder)?;
    let model = models::load(folder, device, dtype)?;
    let logits = model.forward(get(&expected, "tokens")?, None, &mut NoHooks)?;
    if logits.f_kind()? != dtype {
        bail!("logits are {:?}, expected {dtype:?}", logits.f_kind()?);
    }
    let golden = get(&expected, "logits")?;
    let scale = golden.f_abs()?.f_max()?.f_double_value(&[])?;
    Ok((difference(&at_positions(&expected, &logits)?, golden)? / scale).into())
}

/// The positions that golden values are kept of.
fn at_positions(expected: &HashMap<String, Tensor>, value: &Tensor) -> anyhow::Result<Tensor> {
    let value = value.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
    match expected.get("positions") {
        Some(positions) => Ok(value.f_index_select(1, positions)?),
        None => Ok(value),
    }
}

fn get<'t>(tensors: &'t HashMap<String, Tensor>, name: &str) -> anyhow::Result<&'t Tensor> {
    let tensor = tensors.get(name);
    tensor.with_context(|| format!("the golden file has no tensor `{name}`"))
}

fn difference(found: &Tensor, expected: &Tensor) -> anyhow::Result<f64> {
    if found.size() != expected.size() {
        bail!("shape {:?}, expected {:?}", found.size(), expected.size());
    }
    Ok(found
        .f_sub(expected)?
        .f_abs()?
        .f_max()?
        .f_double_value(&[])?)
}
