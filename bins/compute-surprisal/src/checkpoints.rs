//! Checkpoints one after the other, the next one read while this one computes.

use std::path::PathBuf;
use std::thread::{Scope, ScopedJoinHandle};

use anyhow::{Context, anyhow, bail};
use job_inputs::source;
use neox_core::{LoadOptions, NeoxModel, Source, parse_device, parse_dtype};

use crate::config::SurprisalConfig;

/// Where the checkpoints are and which there are.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    source: Source,
    /// A folder that is itself a checkpoint has no revisions.
    single: bool,
    options: LoadOptions,
}

/// A checkpoint in memory.
pub(crate) struct Loaded {
    pub(crate) step: u64,
    pub(crate) folder: PathBuf,
    pub(crate) model: NeoxModel,
}

impl Checkpoints {
    /// The source that the configuration names, and its steps that the configuration asks for.
    pub(crate) fn find(config: &SurprisalConfig) -> anyhow::Result<(Self, Vec<u64>)> {
        let model = &config.model;
        let source = source(model)?;
        let options = LoadOptions {
            device: parse_device(&model.device)?,
            dtype: parse_dtype(&model.dtype)?,
        };
        let alone = model
            .path
            .as_ref()
            .filter(|path| path.join("config.json").is_file());
        if let Some(path) = alone {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            let step = step_of(name).with_context(|| format!("`{}` is one checkpoint, and its name does not say which step: name the folder `step<N>`", path.display()))?;
            let steps = config.steps.resolve(&[step])?;
            return Ok((
                Self {
                    source,
                    single: true,
                    options,
                },
                steps,
            ));
        }
        let mut available: Vec<u64> = source
            .revisions()?
            .iter()
            .filter_map(|name| step_of(name))
            .collect();
        available.sort_unstable();
        if available.is_empty() {
            bail!("{source} has no checkpoints `step<N>`");
        }
        let steps = config.steps.resolve(&available)?;
        Ok((
            Self {
                source,
                single: false,
                options,
            },
            steps,
        ))
    }

    /// Folder of a checkpoint, fetched if need be.
    pub(crate) fn folder(&self, step: u64) -> anyhow::Result<PathBuf> {
        let revision = format!("step{step}");
        let revision = (!self.single).then_some(revision.as_str());
        Ok(self.source.checkpoint(revision, &mut |transfer| {
            tracing::debug!(
                "{}: {} of {} bytes",
                transfer.file,
                transfer.done,
                transfer.total
            )
        })?)
    }

    fn load(&self, step: u64) -> anyhow::Result<Loaded> {
        let folder = self.folder(step)?;
        let model = NeoxModel::load(&folder, &self.options)
            .with_context(|| format!("failed to load step {step}"))?;
        Ok(Loaded {
            step,
            folder,
            model,
        })
    }

    /// Hands over each checkpoint in turn. While one is in use the next is read, so that two are in memory at most.
    pub(crate) fn each(
        &self,
        steps: &[u64],
        mut use_one: impl FnMut(Loaded) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        std::thread::scope(|scope| {
            let mut next = steps.first().map(|&step| self.start(scope, step));
            for following in steps.iter().skip(1).map(Some).chain([None]) {
                let Some(handle) = next.take() else {
                    return Ok(());
                };
                let loaded = handle.join().map_err(|_| {
                    anyhow!("the thread that reads checkpoints stopped unexpectedly")
                })??;
                next = following.map(|&step| self.start(scope, step));
                use_one(loaded)?;
            }
            Ok(())
        })
    }

    fn start<'scope, 'env>(
        &'env self,
        scope: &'scope Scope<'scope, 'env>,
        step: u64,
    ) -> ScopedJoinHandle<'scope, anyhow::Result<Loaded>> {
        scope.spawn(move || self.load(step))
    }
}

/// `step<N>`
fn step_of(name: &str) -> Option<u64> {
    name.strip_prefix("step")?.parse().ok()
}
