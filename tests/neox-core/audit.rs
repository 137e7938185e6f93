//! Audits that find what a sweep must not use.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use neox_core::{AuditRow, audit};
use tch::{Kind, Tensor};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn tiny(step: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../examples/data/tiny-neox")
        .join(step)
}

fn summary(rows: &[AuditRow]) -> Vec<String> {
    rows.iter()
        .map(|row| {
            let findings: Vec<String> = row.findings.iter().map(ToString::to_string).collect();
            format!("{}: {}", row.revision, findings.join("; "))
        })
        .collect()
}

/// A step with the weights of another after `change`.
fn write_step(
    root: &Path,
    name: &str,
    from: &str,
    change: impl Fn(&str, Tensor) -> Result<Tensor>,
) -> Result<()> {
    let dir = root.join(name);
    fs::create_dir_all(&dir)?;
    fs::copy(tiny(from).join("config.json"), dir.join("config.json"))?;
    let mut tensors = Vec::new();
    for (tensor, value) in Tensor::read_safetensors(tiny(from).join("model.safetensors"))? {
        let value = change(&tensor, value)?;
        tensors.push((tensor, value));
    }
    let named: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, t)| (name.as_str(), t)).collect();
    Tensor::write_safetensors(&named, dir.join("model.safetensors"))?;
    Ok(())
}

#[test]
fn a_folder_with_every_kind_of_fault() -> Result<()> {
    let root = tempfile::tempdir()?;
    write_step(root.path(), "step0", "step0", |_, t| Ok(t))?;
    // the same values in another dtype and thus another file
    write_step(root.path(), "step1", "step0", |_, t| {
        Ok(t.f_to_kind(Kind::Float)?)
    })?;
    write_step(root.path(), "step2", "step64", |name, t| {
        if name == "gpt_neox.layers.2.mlp.dense_4h_to_h.bias" {
            let mut bias = t.f_narrow(0, 5, 2)?;
            let _ = bias.f_fill_(f64::NAN)?;
        }
        Ok(t)
    })?;
    write_step(root.path(), "step4", "step64", |_, t| Ok(t))?;
    write_step(root.path(), "step8", "step512", |_, t| Ok(t))?;
    let whole = fs::read(root.path().join("step8/model.safetensors"))?;
    fs::write(
        root.path().join("step8/model.safetensors"),
        &whole[..whole.len() / 2],
    )?;

    let wanted = ["step0", "step1", "step2", "step4", "step8", "step16"];
    let mut asked = Vec::new();
    let rows = audit(wanted, |name| {
        asked.push(name.to_owned());
        let dir = root.path().join(name);
        Ok::<_, std::io::Error>(dir.exists().then_some(dir))
    });
    assert_eq!(asked, wanted);
    let shown = summary(&rows);
    assert_eq!(
        shown[..4],
        [
            "step0: same weights as step1",
            "step1: same weights as step0",
            "step2: 2 NaN or infinite values in `gpt_neox.layers.2.mlp.dense_4h_to_h.bias`",
            "step4: ",
        ]
    );
    assert!(
        shown[4].starts_with("step8: unusable: bad safetensors file"),
        "{}",
        shown[4]
    );
    assert_eq!(shown[5], "step16: missing");
    let bad: Vec<bool> = rows.iter().map(AuditRow::is_bad).collect();
    assert_eq!(bad, [true, true, true, false, true, true]);
    assert_eq!(rows[0].content, rows[1].content);
    assert_ne!(rows[0].files, rows[1].files);

    // rows survive a file, so that a sweep can read what an audit found
    let again: Vec<AuditRow> = serde_json::from_str(&serde_json::to_string(&rows)?)?;
    assert_eq!(again, rows);
    Ok(())
}

#[test]
fn a_revision_that_cannot_be_fetched_is_a_finding() {
    let gone = |_: &str| Err::<Option<PathBuf>, _>(std::io::Error::other("gone"));
    let rows = audit(["step1", "step2"], gone);
    assert_eq!(
        summary(&rows),
        ["step1: unusable: gone", "step2: unusable: gone"]
    );
}

#[test]
fn main_is_meant_to_be_the_last_step() {
    let same = |_: &str| Ok::<_, std::io::Error>(Some(tiny("step64")));
    let of = |names: &[&str]| summary(&audit(names.iter().copied(), same));
    assert_eq!(of(&["step64", "main"]), ["step64: ", "main: "]);
    assert_eq!(
        of(&["step64", "step65"]),
        [
            "step64: same weights as step65",
            "step65: same weights as step64"
        ]
    );
}
