//! Models and texts of the comparisons, made once.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::environment::script;
use crate::workspace::{self, root};

/// Makes what is not there yet.
#[derive(Debug)]
pub(crate) struct Inputs {
    folder: PathBuf,
    python: PathBuf,
    training: u32,
}

impl Inputs {
    pub(crate) fn new(folder: PathBuf, python: PathBuf, training: u32) -> Self {
        Self {
            folder,
            python,
            training,
        }
    }

    /// A bundled file or folder.
    pub(crate) fn bundled(&self, path: &str) -> PathBuf {
        root().join("examples/data").join(path)
    }

    /// Pythia-70M's shape with random weights.
    pub(crate) fn random_70m(&self) -> anyhow::Result<PathBuf> {
        self.random("pythia-70m")
    }

    /// A published model's shape with random weights.
    pub(crate) fn random(&self, shape: &str) -> anyhow::Result<PathBuf> {
        self.made("random", &format!("random-{shape}"), &["--shape", shape])
    }

    /// Pythia-70M's width and vocabulary, two layers, lightly trained.
    pub(crate) fn trained_70m(&self) -> anyhow::Result<PathBuf> {
        self.made(
            "trained",
            "trained-70m",
            &["--steps", &self.training.to_string()],
        )
    }

    /// Eight sequences of 256 tokens of held-out text.
    pub(crate) fn tokens(&self) -> anyhow::Result<PathBuf> {
        self.made("tokens", "tokens.npy", &[])
    }

    /// 2,000 words in context.
    pub(crate) fn words(&self) -> anyhow::Result<PathBuf> {
        self.made("words", "words.json", &[])
    }

    fn made(&self, what: &str, name: &str, args: &[&str]) -> anyhow::Result<PathBuf> {
        let path = self.folder.join(name);
        if !path.exists() {
            self.make(what, &path, args)
                .with_context(|| format!("failed to make `{}`", path.display()))?;
        }
        Ok(path)
    }

    fn make(&self, what: &str, path: &Path, args: &[&str]) -> anyhow::Result<()> {
        let mut python = Command::new(&self.python);
        python
            .args(["-B", &script("inputs.py"), what])
            .arg("--data")
            .arg(self.bundled(""))
            .arg("--out")
            .arg(path)
            .args(args);
        workspace::run(&mut python)
    }
}
