//! A checkpoint with its text and frequencies, read and recorded.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use checkpoint_source::{Hub, HubOptions, Source, Transfer};
use input_files::{Format, InputError, IntegerArray, read_npy, read_text};
use job_kit::{Progress, RunRecord, sha256_file};
use longtail_corpus::{Band, BandReading, Frequencies, TokenCounts, pack_sequences};
use model_conventions::{step_of, step_of_folder};
use neox_core::{
    Architecture, LoadOptions, Model, WeightFiles, keep_freed_memory, parse_device, parse_dtype,
};
use neuron_ablate::Sample;
use serde::Deserialize;
use text_inputs::{BandConfig, CorpusConfig, Reading};

use crate::config::{FrequencyConfig, ModelConfig};
use crate::tokens::{Ends, Tokens};

/// Where checkpoints come from.
///
/// # Errors
/// If neither a folder nor a repository is named, or the hub cannot be set up.
pub fn source(config: &ModelConfig) -> anyhow::Result<Source> {
    match (&config.path, &config.repo) {
        (Some(path), _) => Ok(Source::folder(path)),
        (None, Some(repo)) => Ok(Source::hub(
            Hub::new(HubOptions::from_env(config.token_file.as_deref())?),
            repo,
        )),
        (None, None) => bail!(
            "no model: set `model.path` to a local folder, or `model.repo` to a repository on the hub"
        ),
    }
}

/// Where the configuration puts a model and in which precision; and this process, which is about to hold one, goes easy on memory that
/// it has ([`keep_freed_memory`]).
///
/// # Errors
/// If there is no such device or precision.
pub fn load_options(config: &ModelConfig) -> anyhow::Result<LoadOptions> {
    keep_freed_memory();
    Ok(LoadOptions::default()
        .with_device(parse_device(&config.device)?)
        .with_dtype(parse_dtype(&config.dtype)?))
}

/// The files that make a checkpoint what it is, in the order of [`Loaded::content`]: weights and configuration.
///
/// # Errors
/// If there are no weights.
pub fn content_files(checkpoint: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let files = WeightFiles::find(checkpoint)?;
    Ok(files
        .paths()
        .chain([checkpoint.join("config.json")])
        .collect())
}

/// A checkpoint in memory, with its corpus sample.
#[derive(Debug)]
pub struct Loaded {
    /// The folder of the checkpoint.
    pub checkpoint: PathBuf,
    /// The model.
    pub model: Model,
    /// The token sequences.
    pub sample: Sample,
    /// Hashes of its weights and configuration ([`content_files`]), parted by spaces.
    pub content: String,
    /// Its training step, where a name says it.
    pub step: Option<u64>,
    tokens: Option<Tokens>,
}

/// Token frequencies of a model's vocabulary.
#[derive(Debug)]
pub struct Vocabulary {
    /// `q` and counts, `[d_vocab]`.
    pub frequencies: Frequencies,
    /// Number of tokens; rows from here on are padding.
    pub n_tokens: usize,
    /// The band, if one is asked for.
    pub band: Option<Band>,
}

impl Loaded {
    /// Loads the checkpoint and reads the corpus; files, counts and versions go into `record`.
    ///
    /// # Errors
    /// What the checkpoint, tokenizer or corpus reports, with the file and the setting at fault.
    pub fn read(
        model: &ModelConfig,
        revision: Option<&str>,
        corpus: &CorpusConfig,
        record: &mut RunRecord,
    ) -> anyhow::Result<Self> {
        let mut fetching = None;
        let checkpoint =
            source(model)?.checkpoint(revision, &mut |transfer| show(&mut fetching, transfer))?;
        let options = load_options(model)?;
        let files = content_files(&checkpoint)?;
        // Hashing takes as long as loading, and leaves most of the machine to it.
        let (loaded, hashes) = std::thread::scope(|scope| {
            let hashing = scope.spawn(|| files.iter().map(sha256_file).collect::<Vec<_>>());
            (Model::load(&checkpoint, &options), hashing.join())
        });
        let loaded = loaded?;
        let hashes = hashes.map_err(|_| anyhow!("failed to hash the files of the checkpoint"))?;
        let mut content = Vec::new();
        for (path, hash) in files.iter().zip(hashes) {
            let hash = hash?;
            content.push(hash.0.clone());
            record.hashed_input(path, hash);
        }
        record.device = Some(format!("{:?}", loaded.device()).to_lowercase());
        record.dtype = Some(model.dtype.clone());
        for warning in loaded.warnings() {
            record.warn(format!("`{}`: {warning}", checkpoint.display()));
        }
        let step = step_of_checkpoint(model, revision);
        if let Some(step) = step {
            record.note("step", step);
        }
        let tokens = Tokens::read(model, &checkpoint, loaded.config(), record)?;
        let ends = Ends::find(model, loaded.config(), tokens.as_ref(), record)?;
        let (sample, _) = read_sample(corpus, tokens.as_ref(), ends, loaded.config(), record)?;
        Ok(Self {
            model: loaded,
            sample,
            content: content.join(" "),
            step,
            tokens,
            checkpoint,
        })
    }

    /// The `tokenizer.json` of the checkpoint, if there is one.
    pub fn tokenizer_file(&self) -> Option<&Path> {
        self.tokens.as_ref().map(|tokens| tokens.path.as_path())
    }

    /// Token frequencies, and the band if one is asked for.
    ///
    /// # Errors
    /// If the counts do not fit the vocabulary, or the band cannot be found.
    pub fn vocabulary(
        &self,
        config: &FrequencyConfig,
        band: Option<&BandConfig>,
        reading: BandReading,
        record: &mut RunRecord,
    ) -> anyhow::Result<Vocabulary> {
        let d_vocab = usize::try_from(self.model.config().vocab_size)?;
        let tokens = self.tokens.as_ref().map(|tokens| tokens.text.n_tokens());
        Vocabulary::read(config, band, reading, d_vocab, tokens, record)
    }
}

impl Vocabulary {
    /// Token frequencies of a vocabulary of `d_vocab` rows, and the band if one is asked for. `n_tokens` is the number of the
    /// tokenizer's tokens; without it, every token that has a count is one.
    ///
    /// # Errors
    /// If the counts do not fit the vocabulary, or the band cannot be found.
    pub fn read(
        config: &FrequencyConfig,
        band: Option<&BandConfig>,
        reading: BandReading,
        d_vocab: usize,
        n_tokens: Option<usize>,
        record: &mut RunRecord,
    ) -> anyhow::Result<Self> {
        let of_file = || {
            format!(
                "failed to take token counts from `{}` (`frequency.counts`)",
                config.counts.display()
            )
        };
        let counts = TokenCounts::read(&config.counts, d_vocab).with_context(of_file)?;
        record.input(&config.counts)?;
        let n_tokens = n_tokens.unwrap_or(counts.listed());
        counts.check_tokenizer(n_tokens).with_context(of_file)?;
        if counts.padded() > 0 {
            record.count("vocabulary_rows_without_a_count", counts.padded() as u64);
        }
        let frequencies = Frequencies::add_one(&counts);
        let mut vocabulary = Self {
            frequencies,
            n_tokens,
            band: None,
        };
        if let Some(band) = band.filter(|band| band.lower.is_some() || band.upper.is_some()) {
            let found = vocabulary
                .resolve(band, reading, record)
                .context("failed to find the long-tail band (`band.lower`, `band.upper`)")?;
            record.note("band", serde_json::to_value(&found)?);
            vocabulary.band = Some(found);
        }
        Ok(vocabulary)
    }

    /// A further band, by the name it has under `bands`.
    ///
    /// # Errors
    /// If it has no bound, or none that can be found.
    pub fn another_band(
        &self,
        name: &str,
        band: &BandConfig,
        reading: BandReading,
        record: &mut RunRecord,
    ) -> anyhow::Result<Band> {
        let found = self.resolve(band, reading, record).with_context(|| {
            format!("failed to find the band `{name}` (`bands.{name}.lower`, `bands.{name}.upper`)")
        })?;
        record.note(&format!("band_{name}"), serde_json::to_value(&found)?);
        Ok(found)
    }

    fn resolve(
        &self,
        band: &BandConfig,
        reading: BandReading,
        record: &mut RunRecord,
    ) -> anyhow::Result<Band> {
        let found = band
            .spec(reading)
            .resolve(&self.frequencies, self.n_tokens)?;
        for warning in &found.warnings {
            record.warn(warning.to_string());
        }
        Ok(found)
    }
}

/// Shows a download: one progress per file.
fn show(progress: &mut Option<(String, u64, Progress)>, transfer: &Transfer<'_>) {
    if progress
        .as_ref()
        .is_none_or(|(file, ..)| file != transfer.file)
    {
        *progress = Some((
            transfer.file.to_owned(),
            0,
            Progress::new(transfer.file, transfer.total, "bytes"),
        ));
    }
    if let Some((_, done, progress)) = progress {
        progress.inc(transfer.done.saturating_sub(*done));
        *done = transfer.done;
    }
}

/// The training step of a checkpoint, from its revision or the name of its folder.
fn step_of_checkpoint(config: &ModelConfig, revision: Option<&str>) -> Option<u64> {
    match revision {
        Some(revision) => step_of(revision),
        None => step_of_folder(config.path.as_deref()?),
    }
}

/// The SHA-256 of a corpus of text, as far as the configuration reads it; none of token ids, whose file is an input by itself.
///
/// # Errors
/// What the corpus reports.
pub fn corpus_sha256(corpus: &CorpusConfig) -> anyhow::Result<Option<String>> {
    if corpus.path.is_none() {
        return Ok(None);
    }
    let mut documents = corpus.open("corpus")?.documents();
    documents
        .by_ref()
        .try_for_each(|document| document.map(drop))
        .context("failed to read the corpus (`corpus.path`)")?;
    Ok(Some(documents.sha256()))
}

/// The token sequences of the corpus sample, and the SHA-256 of what they were read from.
///
/// # Errors
/// What the corpus reports, with the setting at fault.
pub fn read_sample(
    corpus: &CorpusConfig,
    tokens: Option<&Tokens>,
    Ends { bos, eos }: Ends,
    model: &Architecture,
    record: &mut RunRecord,
) -> anyhow::Result<(Sample, String)> {
    let (sequences, documents, hash) = match (&corpus.tokens, &corpus.path) {
        (Some(tokens), _) => {
            record.input(tokens)?;
            let sequences = read_tokens(tokens)
                .with_context(|| format!("failed to read token ids from `{}`", tokens.display()))?;
            (sequences, None, sha256_file(tokens)?.0)
        }
        (None, Some(_)) => {
            let Some(tokenizer) = tokens.map(|tokens| tokens.text.tokenizer()) else {
                bail!(
                    "text needs a tokenizer, and there is no tokenizer.json beside the weights, nor beside the folder `step<N>` they are in: set `model.tokenizer`, or give token ids as `corpus.tokens`"
                );
            };
            let reader = corpus.open("corpus")?;
            let mut documents = reader.documents();
            let packed = pack_sequences(
                &mut documents,
                tokenizer,
                u32::try_from(bos)?,
                u32::try_from(eos)?,
                corpus.context_length,
            )
            .with_context(|| format!("failed to make token sequences of {}", corpus.named()))?;
            let reading = Reading::of(&documents);
            reading.record("corpus", "", record);
            record.count("documents", packed.documents as u64);
            record.count("tokens", packed.tokens as u64);
            record.count("tokens_dropped_at_the_end", packed.dropped_tokens as u64);
            let sequences = packed
                .sequences
                .into_iter()
                .map(|tokens| tokens.into_iter().map(i64::from).collect())
                .collect();
            (sequences, Some(packed.most_from), reading.sha256)
        }
        (None, None) => {
            bail!("no corpus: set `corpus.path` to text or `corpus.tokens` to token ids")
        }
    };
    record.count("sequences", sequences.len() as u64);
    let mut sample = Sample::new(sequences, &[bos, eos], usize::try_from(model.vocab_size)?)?;
    if let Some(documents) = documents {
        sample = sample.from_documents(documents)?;
    }
    Ok((sample, hash))
}

/// Token ids, sequence by position, from `.npy` or JSON (an array of arrays, alone or under `tokens`).
///
/// # Errors
/// If the file cannot be read, or holds something else.
pub fn read_tokens(path: &Path) -> anyhow::Result<Vec<Vec<i64>>> {
    #[derive(Deserialize)]
    struct Tokens {
        tokens: Vec<Vec<i64>>,
    }
    const FORMATS: &[Format] = &[Format::Npy, Format::Json];
    match Format::of(path) {
        Some((Format::Npy, _)) => {
            let IntegerArray { shape, values } = read_npy::<i64>(path)?;
            let [_, length] = shape[..] else {
                bail!("the array has shape {shape:?}, expected [sequence, position]");
            };
            Ok(values.chunks(length.max(1)).map(<[i64]>::to_vec).collect())
        }
        Some((Format::Json, _)) => {
            let text = read_text(path, FORMATS)?;
            let ids = if text.trim_start().starts_with('{') {
                serde_json::from_str(&text).map(|Tokens { tokens }| tokens)
            } else {
                serde_json::from_str(&text)
            };
            ids.context("expected an array of arrays of token ids, alone or under the key `tokens`")
        }
        _ => Err(InputError::unknown_format(path, FORMATS).into()),
    }
}
