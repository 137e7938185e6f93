//! Checkpoints one after the other, the next one read while this one computes.

use std::path::PathBuf;
use std::thread::{Scope, ScopedJoinHandle};

use anyhow::{Context, anyhow, bail};
use job_inputs::{source, step_in_words};
use job_kit::{RunRecord, sha256_file};
use model_conventions::{StepNames, step_of_folder};
use neox_core::{AuditRow, LoadOptions, NeoxModel, Source, WeightFiles, parse_device, parse_dtype};

use crate::config::SurprisalConfig;

/// Where the checkpoints are and which there are.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    source: Source,
    /// How each step is written; none for a folder that is itself a checkpoint.
    names: Option<StepNames>,
    options: LoadOptions,
}

/// A checkpoint in memory.
pub(crate) struct Loaded {
    /// Its step; none for a model without steps.
    pub(crate) step: Option<u64>,
    pub(crate) folder: PathBuf,
    pub(crate) model: NeoxModel,
    /// What it is, as [`Checkpoints::address`] tells.
    pub(crate) address: String,
}

impl Checkpoints {
    /// The source that the configuration names, and its steps that the configuration asks for: none is the step of a model without steps.
    pub(crate) fn find(
        config: &SurprisalConfig,
        record: &mut RunRecord,
    ) -> anyhow::Result<(Self, Vec<Option<u64>>)> {
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
            let steps = match step_of_folder(path) {
                Some(step) => config
                    .steps
                    .resolve(&[step])?
                    .into_iter()
                    .map(Some)
                    .collect(),
                None => without_steps(config, &source)?,
            };
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            refuse_bad(config, [&*name])?;
            return Ok((
                Self {
                    source,
                    names: None,
                    options,
                },
                steps,
            ));
        }
        let names = source.steps()?;
        let available: Vec<u64> = names.steps().collect();
        // What a repository has beside steps is a model as it is published.
        if available.is_empty() && config.model.path.is_none() {
            refuse_bad(config, ["main"])?;
            let steps = without_steps(config, &source)?;
            return Ok((
                Self {
                    source,
                    names: None,
                    options,
                },
                steps,
            ));
        }
        if available.is_empty() {
            bail!(
                "{source} has no checkpoints that are named by their step, such as `step512`{}",
                match names.others() {
                    [] => String::new(),
                    others => format!("; there are {}", others.join(", ")),
                }
            );
        }
        record.count("revisions_that_are_no_steps", names.others().len() as u64);
        if !names.others().is_empty() {
            tracing::info!(
                "{source}: left out, as their names are no steps: {}",
                names.others().join(", ")
            );
        }
        let steps = config.steps.resolve(&available)?;
        refuse_bad(config, steps.iter().filter_map(|&step| names.name(step)))?;
        Ok((
            Self {
                source,
                names: Some(names),
                options,
            },
            steps.into_iter().map(Some).collect(),
        ))
    }

    /// Folder of a checkpoint, fetched if need be.
    pub(crate) fn folder(&self, step: Option<u64>) -> anyhow::Result<PathBuf> {
        let revision = self.names.as_ref().and_then(|names| names.name(step?));
        Ok(self.source.checkpoint(revision, &mut |transfer| {
            tracing::debug!(
                "{}: {} of {} bytes",
                transfer.file,
                transfer.done,
                transfer.total
            )
        })?)
    }

    /// What scores of a checkpoint depend on: the version of this program, its `config.json` and its weights, by their SHA-256.
    pub(crate) fn address(&self, step: Option<u64>) -> anyhow::Result<String> {
        let folder = self.folder(step)?;
        let mut address = format!("compute-surprisal {}", env!("CARGO_PKG_VERSION"));
        let mut files: Vec<PathBuf> = WeightFiles::find(&folder)?.paths().collect();
        files.sort();
        files.insert(0, folder.join("config.json"));
        for file in files {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            let (sha256, _) = sha256_file(&file)?;
            address += &format!("; {name} {sha256}");
        }
        Ok(address)
    }

    fn load(&self, step: Option<u64>) -> anyhow::Result<Loaded> {
        let folder = self.folder(step)?;
        let address = self.address(step)?;
        let model = NeoxModel::load(&folder, &self.options)
            .with_context(|| format!("failed to load the checkpoint of {}", step_in_words(step)))?;
        Ok(Loaded {
            step,
            folder,
            model,
            address,
        })
    }

    /// Hands over each checkpoint in turn. While one is in use the next is read, so that two are in memory at most.
    pub(crate) fn each(
        &self,
        steps: &[Option<u64>],
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
        step: Option<u64>,
    ) -> ScopedJoinHandle<'scope, anyhow::Result<Loaded>> {
        scope.spawn(move || self.load(step))
    }
}

/// The one step of a model without steps, which is none, unless the configuration asks for others.
fn without_steps(config: &SurprisalConfig, source: &Source) -> anyhow::Result<Vec<Option<u64>>> {
    if !config.steps.is_all() {
        bail!(
            "`steps` is set, but {source} is one checkpoint, and its name says no step: leave `steps` out (`steps=all`), or name the folder `step<N>`"
        );
    }
    Ok(vec![None])
}

/// Refuses revisions that the audit found bad.
fn refuse_bad<'r>(
    config: &SurprisalConfig,
    revisions: impl IntoIterator<Item = &'r str>,
) -> anyhow::Result<()> {
    let Some(path) = &config.audit else {
        return Ok(());
    };
    let text = std::fs::read(path)
        .with_context(|| format!("failed to read the audit `{}` (`audit`)", path.display()))?;
    let rows: Vec<AuditRow> = serde_json::from_slice(&text).with_context(|| {
        format!(
            "`{}` is no audit: `ablate-unigram --audit` writes one",
            path.display()
        )
    })?;
    let instead = "leave it out of `steps`";
    revisions.into_iter().try_for_each(|revision| {
        job_inputs::refuse_bad(path, &rows, revision, &config.model, instead)
    })
}
