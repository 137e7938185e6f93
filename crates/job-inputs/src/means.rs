//! Mean activations, kept by what they depend on, so that another run, band, semantics or job over the same text does not take them again.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail};
use arrow::{
    array::{ArrayRef, Float64Array, RecordBatch},
    datatypes::{DataType, Field, Schema},
};
use job_kit::{Format, Progress, RunRecord, TableReader, TableWriter, write_file};
use neox_core::{LIBTORCH_VERSION, Model};
use neuron_ablate::{
    LayerMeans, MeanOf, MeanOver, Means, Sample, SampleMeans, SampleStates, sample_means,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Over which text mean activations are taken, and where they are kept.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeansConfig {
    /// Which sequences of the sample: all, or how many to draw by seed.
    #[serde(default)]
    pub sequences: MeanSequences,
    /// The folder where means are kept, by what they depend on, for other runs; none are kept without it.
    #[serde(default)]
    pub keep: Option<PathBuf>,
}

/// Sequences that means are taken over.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected `all`, or how many sequences to draw, 1 or more"
)]
pub enum MeanSequences {
    /// So many, drawn by seed.
    Draw(NonZeroUsize),
    /// `all`
    #[default]
    #[serde(with = "all")]
    All,
}

impl MeanSequences {
    /// So many at most.
    #[must_use]
    pub fn at_most(self, most: usize) -> Self {
        let most = NonZeroUsize::new(most).unwrap_or(NonZeroUsize::MIN);
        match self {
            Self::Draw(count) => Self::Draw(count.min(most)),
            Self::All => Self::Draw(most),
        }
    }
}

mod all {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("all")
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "all" => Ok(()),
            _ => Err(D::Error::custom("expected `all`")),
        }
    }
}

/// By this file a folder says that it is a cache (bford.info/cachedir): no backup needs it, and what a run finds in it is no input.
const CACHE: &str = "CACHEDIR.TAG";
const CACHE_TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n# Mean activations, kept for other runs (`means.keep`); they can be taken anew.\n";

/// Means of several things over the text of a checkpoint.
#[derive(Debug)]
pub struct MeansSample<'a> {
    model: &'a Model,
    /// `None`: nothing is kept.
    keep: Option<Keep<'a>>,
    sequences: Vec<usize>,
}

#[derive(Debug)]
struct Keep<'a> {
    folder: &'a Path,
    /// The hash of what all the means depend on.
    key: String,
}

impl<'a> MeansSample<'a> {
    /// Means over a sample by a model; `content` are the hashes of its configuration and weights, as [`Loaded::content`] has them.
    ///
    /// [`Loaded::content`]: crate::Loaded::content
    pub fn new(
        config: &'a MeansConfig,
        (model, content): (&'a Model, &str),
        sample: &'a Sample,
        seed: u64,
    ) -> Self {
        let sequences = match config.sequences {
            MeanSequences::All => (0..sample.sequences().len()).collect(),
            MeanSequences::Draw(count) => sample.draw(count.get(), seed),
        };
        let keep = config.keep.as_deref().map(|folder| Keep {
            folder,
            key: key((model, content), sample, &sequences),
        });
        Self {
            model,
            keep,
            sequences,
        }
    }

    /// The sequences that means are taken over.
    pub fn sequences(&self) -> &[usize] {
        &self.sequences
    }

    /// The means of `of` over some positions: what was kept, and the rest in one pass over the text by `states`, which are of the same
    /// model and sample.
    ///
    /// # Errors
    /// What [`sample_means`] reports, or that no position counts.
    pub fn take(
        &self,
        of: impl IntoIterator<Item = MeanOf>,
        over: MeanOver,
        states: &SampleStates<'_>,
        record: &mut RunRecord,
    ) -> anyhow::Result<LayerMeans> {
        let (mut means, missing) = self.kept(of, over, record)?;
        if missing.is_empty() {
            tracing::info!("mean activations: as an earlier run has kept them (`means.keep`)");
            return Ok(means);
        }
        let total = self.sequences.len() as u64;
        let progress = Progress::new("mean activations", total, "sequences");
        let hear = |more| progress.inc(more as u64);
        self.add(&mut means, &missing, over, states, record, &hear)?;
        record.timing("mean_activations", progress.finish());
        Ok(means)
    }

    /// The means of `of` over some positions that were kept, and what of it was not.
    ///
    /// # Errors
    /// If no position counts.
    pub fn kept(
        &self,
        of: impl IntoIterator<Item = MeanOf>,
        over: MeanOver,
        record: &mut RunRecord,
    ) -> anyhow::Result<(LayerMeans, Vec<MeanOf>)> {
        let mut means = LayerMeans::default();
        let mut missing = Vec::new();
        for of in of {
            match self
                .keep
                .as_ref()
                .and_then(|keep| keep.read(of, of.width(self.model.config())))
            {
                Some(kept) => {
                    means.insert(of, kept.over(over)?.clone());
                    record.count("means_kept_before", 1);
                }
                None if missing.contains(&of) => {}
                None => missing.push(of),
            }
        }
        record.count("mean_sequences", self.sequences.len() as u64);
        Ok((means, missing))
    }

    /// Adds means in one pass over the text, and keeps them; `hear` is told how many more sequences were read.
    ///
    /// # Errors
    /// As [`MeansSample::take`].
    pub fn add(
        &self,
        means: &mut LayerMeans,
        missing: &[MeanOf],
        over: MeanOver,
        states: &SampleStates<'_>,
        record: &mut RunRecord,
        hear: &dyn Fn(usize),
    ) -> anyhow::Result<()> {
        for taken in sample_means(states, &self.sequences, missing, &|more, _| hear(more))? {
            means.insert(taken.of, taken.over(over)?.clone());
            // A run does not depend on what is kept for others.
            if let Some(keep) = &self.keep
                && let Err(err) = keep.write(&taken)
            {
                record.warn(format!(
                    "mean activations are not kept (`means.keep`): {err:#}"
                ));
            }
        }
        Ok(())
    }
}

/// What means depend on: the weights and how they are computed with, the program, the text and its documents.
fn key((model, content): (&Model, &str), sample: &Sample, sequences: &[usize]) -> String {
    let mut hash = Sha256::new();
    // Of what means depend on, all but the text and what they are of.
    let code = [
        env!("MEANS_CODE"),
        LIBTORCH_VERSION,
        env!("CARGO_PKG_VERSION"),
    ]
    .join(" ");
    let computed = format!("{code} {:?} {:?}", model.dtype(), model.device());
    for text in [content, &computed] {
        hash.update(text);
        hash.update([0]);
    }
    for (&sequence, cluster) in sequences.iter().zip(sample.clusters(sequences)) {
        let tokens = &sample.sequences()[sequence];
        for number in [cluster as i64, tokens.len() as i64]
            .iter()
            .chain(tokens.iter())
        {
            hash.update(number.to_le_bytes());
        }
        hash.update(
            tokens
                .iter()
                .map(|t| u8::from(sample.is_boundary(*t)))
                .collect::<Vec<_>>(),
        );
    }
    hash.finalize()[..12]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

impl Keep<'_> {
    fn path(&self, of: MeanOf) -> PathBuf {
        self.folder.join(format!("{of}-{}.parquet", self.key))
    }

    /// What was kept; `None` if there is nothing, or nothing whole.
    fn read(&self, of: MeanOf, width: usize) -> Option<SampleMeans> {
        let path = self.path(of);
        if !path.is_file() {
            return None;
        }
        match read(&path, of, width) {
            Ok(means) => Some(means),
            Err(err) => {
                tracing::warn!("`{}` is taken anew: {err:#}", path.display());
                None
            }
        }
    }

    fn write(&self, means: &SampleMeans) -> anyhow::Result<()> {
        std::fs::create_dir_all(self.folder)
            .with_context(|| format!("failed to create `{}`", self.folder.display()))?;
        let tag = self.folder.join(CACHE);
        if !tag.is_file() {
            write_file(tag, CACHE_TAG)?;
        }
        let width = means.over.iter().flatten().map(|m| m.mean.len()).max();
        let width = width.unwrap_or_default();
        let (mut fields, mut columns): (Vec<Field>, Vec<ArrayRef>) = Default::default();
        for (over, means) in MeanOver::ALL.iter().zip(&means.over) {
            let values = |part: fn(&Means) -> &Vec<f64>| match means {
                Some(means) => Float64Array::from(part(means).clone()),
                None => Float64Array::new_null(width),
            };
            for (name, values) in names(*over).into_iter().zip([
                values(|means| &means.mean),
                values(|means| &means.standard_error),
            ]) {
                fields.push(Field::new(name, DataType::Float64, true));
                columns.push(Arc::new(values));
            }
        }
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?;
        let mut writer = TableWriter::create(self.path(means.of), batch.schema(), Format::Parquet)?;
        writer.write(&batch)?;
        writer.finish()?;
        Ok(())
    }
}

/// Columns of the table of a choice of positions.
fn names(over: MeanOver) -> [String; 2] {
    let over = match over {
        MeanOver::AllPositions => "all_positions",
        MeanOver::NotBos => "not_bos",
        MeanOver::NotBosAnywhere => "not_bos_anywhere",
    };
    [format!("mean_{over}"), format!("standard_error_{over}")]
}

fn read(path: &Path, of: MeanOf, width: usize) -> anyhow::Result<SampleMeans> {
    let mut over = [None, None, None];
    for (means, choice) in over.iter_mut().zip(MeanOver::ALL) {
        let [mean, error] = names(choice);
        let columns = TableReader::open(path)?.read(&[&mean, &error])?;
        let mean: Option<Vec<f64>> = columns.opt_f64(&mean)?.into_iter().collect();
        // NaN where there is no error.
        let error: Option<Vec<f64>> = columns.opt_f64(&error)?.into_iter().collect();
        if mean.as_ref().is_some_and(|mean| mean.len() != width) {
            bail!("it does not have {width} rows");
        }
        *means = mean.zip(error).map(|(mean, standard_error)| Means {
            mean,
            standard_error,
        });
    }
    Ok(SampleMeans { of, over })
}
