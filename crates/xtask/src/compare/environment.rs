//! The Python with PyTorch and transformers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::libtorch::VERSION;
use crate::python::{Python, interpreter};
use crate::workspace::{self, answer, root};

/// What the scripts import.
const CHECK: &str = "import torch, transformers, pyarrow.parquet, numpy, safetensors; \
                     print(torch.__version__, transformers.__version__)";

/// A Python interpreter that has what the scripts need.
#[derive(Debug)]
pub(crate) struct PyTorch {
    python: PathBuf,
    torch: String,
    transformers: String,
}

impl PyTorch {
    /// The interpreter at a path.
    ///
    /// # Errors
    /// If it lacks a package, or has another version of torch than the one that our side is linked with.
    pub(crate) fn at(python: &Path) -> anyhow::Result<Self> {
        let found = Self::check(python)?;
        if found.torch.split('+').next() != Some(VERSION) {
            bail!(
                "`{}` has torch {}, but our side uses libtorch {VERSION}: two versions would be compared",
                python.display(),
                found.torch
            );
        }
        Ok(found)
    }

    /// The environment in a folder, made with pip if it is not there or not whole.
    pub(crate) fn install(venv: &Path) -> anyhow::Result<Self> {
        let python = interpreter(venv);
        if let Ok(found) = Self::at(&python) {
            return Ok(found);
        }
        let temp = venv.with_extension("pip");
        fs::create_dir_all(&temp)
            .with_context(|| format!("failed to create `{}`", temp.display()))?;
        Python::find()?.venv(venv)?;
        let torch = format!("torch=={VERSION}");
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "--disable-pip-version-check", "install"])
            .args([&torch, "transformers", "pyarrow", "numpy", "safetensors"])
            .env("TMPDIR", &temp);
        workspace::run(&mut pip).context(
            "the packages of the other side could not be installed; run the same command again, or name an interpreter that has them with `--python`",
        )?;
        fs::remove_dir_all(&temp)
            .with_context(|| format!("failed to remove `{}`", temp.display()))?;
        Self::at(&python)
    }

    fn check(python: &Path) -> anyhow::Result<Self> {
        let versions = answer(Command::new(python).args(["-c", CHECK]));
        let versions = versions.with_context(|| {
            format!(
                "`{}` does not import torch, transformers, pyarrow, numpy and safetensors",
                python.display()
            )
        })?;
        let (torch, transformers) = versions.split_once(' ').unwrap_or((&versions, "?"));
        Ok(Self {
            python: python.to_owned(),
            torch: torch.to_owned(),
            transformers: transformers.to_owned(),
        })
    }

    pub(crate) fn python(&self) -> &Path {
        &self.python
    }

    /// Such as `torch 2.13.0, transformers 5.24.0`.
    pub(crate) fn versions(&self) -> String {
        format!("torch {}, transformers {}", self.torch, self.transformers)
    }
}

/// One of the scripts.
pub(crate) fn script(name: &str) -> String {
    root()
        .join("crates/xtask/src/compare/python")
        .join(name)
        .display()
        .to_string()
}
