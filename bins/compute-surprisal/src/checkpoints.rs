//! Checkpoints one after the other, the next one read while this one computes.

use std::path::PathBuf;
use std::thread::{Scope, ScopedJoinHandle};

use anyhow::{Context, anyhow, bail};
use checkpoint_source::Source;
use job_inputs::{content_files, load_options, series, source, step_in_words};
use job_kit::{RunRecord, sha256_file};
use model_conventions::{Counted, StepNames, step_of, step_of_folder};
use neox_core::{AuditRow, LoadOptions, Model};

use crate::config::SurprisalConfig;
use crate::{JOB, VERSION};

/// Where the checkpoints are and which there are.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    source: Source,
    which: Which,
    options: LoadOptions,
}

/// Which checkpoints of the source.
#[derive(Debug)]
enum Which {
    /// One: a revision, or the source itself.
    One(Option<String>),
    /// Those with a step, and how it is written.
    Series(StepNames),
}

impl Which {
    /// What the configuration asks for, with its steps: none is the step of a model without steps.
    fn asked(
        config: &SurprisalConfig,
        source: &Source,
        record: &mut RunRecord,
    ) -> anyhow::Result<(Self, Vec<Option<u64>>)> {
        let model = &config.model;
        if let Some(revision) = &model.revision {
            refuse_bad(config, [&**revision])?;
            let step = step_of(revision);
            return Ok((Which::One(Some(revision.clone())), vec![step]));
        }
        let asked = config.steps().cloned().unwrap_or_default();
        let alone = model
            .path
            .as_ref()
            .filter(|path| path.join("config.json").is_file());
        if let Some(path) = alone {
            let steps = match step_of_folder(path) {
                Some(step) => {
                    let name = StepNames::among([format!("step{step}")])?;
                    let steps = asked.resolve(&name).context(CHOICE)?;
                    steps.into_iter().map(Some).collect()
                }
                None => without_steps(config, source)?,
            };
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            refuse_bad(config, [&*name])?;
            return Ok((Which::One(None), steps));
        }
        // What a repository has beside steps is a model as it is published.
        if model.path.is_none() && source.steps()?.steps().next().is_none() {
            refuse_bad(config, ["main"])?;
            let steps = without_steps(config, source)?;
            return Ok((Which::One(None), steps));
        }
        let names = series(source)?;
        record.count("revisions_that_are_no_steps", names.others().len() as u64);
        record.note("steps_count", names.counted().label());
        let steps = asked.resolve(&names).context(CHOICE)?;
        refuse_bad(config, steps.iter().filter_map(|&step| names.name(step)))?;
        let steps = steps.into_iter().map(Some).collect();
        Ok((Which::Series(names), steps))
    }
}

/// What fails where the steps that are asked for are not there.
const CHOICE: &str = "failed to choose checkpoints (`model.steps`)";

/// A checkpoint in memory.
pub(crate) struct Loaded {
    /// Its step; none for a model without steps.
    pub(crate) step: Option<u64>,
    pub(crate) folder: PathBuf,
    pub(crate) model: Model,
    /// What it is, as [`Checkpoints::address`] tells.
    pub(crate) address: String,
    /// Hashes of its files.
    pub(crate) content: String,
}

impl Checkpoints {
    /// The source that the configuration names, and its steps that the configuration asks for: none is the step of a model without steps.
    pub(crate) fn find(
        config: &SurprisalConfig,
        record: &mut RunRecord,
    ) -> anyhow::Result<(Self, Vec<Option<u64>>)> {
        let model = &config.model;
        let source = source(model)?;
        let options = load_options(model)?;
        if config.steps.is_some() {
            record.warn(
                "`steps` is called `model.steps` now, as in the other jobs; it is read as that",
            );
        }
        let (which, steps) = Which::asked(config, &source, record)?;
        let checkpoints = Self {
            source,
            which,
            options,
        };
        Ok((checkpoints, steps))
    }

    /// What the steps count, for the axis of a figure.
    pub(crate) fn counted(&self) -> Counted {
        match &self.which {
            Which::One(_) => Counted::default(),
            Which::Series(names) => names.counted(),
        }
    }

    /// Folder of a checkpoint, fetched if need be.
    pub(crate) fn folder(&self, step: Option<u64>) -> anyhow::Result<PathBuf> {
        let revision = match &self.which {
            Which::One(revision) => revision.as_deref(),
            Which::Series(names) => step.and_then(|step| names.name(step)),
        };
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
        Ok(self.identity(step)?.0)
    }

    /// The same, and the hashes alone as [`MeansSample::new`](job_inputs::MeansSample::new) takes them.
    fn identity(&self, step: Option<u64>) -> anyhow::Result<(String, String)> {
        let folder = self.folder(step)?;
        let mut named = Vec::new();
        let mut content = Vec::new();
        for file in content_files(&folder)? {
            let name = file
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let (sha256, _) = sha256_file(&file)?;
            content.push(sha256.clone());
            named.push((name != "config.json", file, format!("; {name} {sha256}")));
        }
        // The configuration, then the weights by their paths.
        named.sort();
        let named: String = named.into_iter().map(|(.., text)| text).collect();
        Ok((format!("{JOB} {VERSION}{named}"), content.join(" ")))
    }

    fn load(&self, step: Option<u64>) -> anyhow::Result<Loaded> {
        let folder = self.folder(step)?;
        let (address, content) = self.identity(step)?;
        let model = Model::load(&folder, &self.options)
            .with_context(|| format!("failed to load the checkpoint of {}", step_in_words(step)))?;
        Ok(Loaded {
            step,
            folder,
            model,
            address,
            content,
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
    if config.steps().is_some_and(|steps| !steps.is_all()) {
        bail!(
            "`model.steps` is set, but {source} is one checkpoint, and its name says no step: leave it out (`model.steps=all`), or name the folder `step<N>`"
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
    let instead = "leave it out of `model.steps`";
    revisions.into_iter().try_for_each(|revision| {
        job_inputs::refuse_bad(path, &rows, revision, &config.model, instead)
    })
}
