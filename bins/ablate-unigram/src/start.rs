//! What every way to run the program begins with: which checkpoints there are to do, and what a sweep is made of.

use std::{cell::LazyCell, path::Path};

use anyhow::{Context, bail};
use arrow::datatypes::DataType;
use job_inputs::{Loaded, corpus_sha256, mebibytes, revisions, source};
use job_kit::{RunRecord, TableReader};
use neox_core::AuditRow;
use neuron_ablate::{Plan, Sample, TokenBand, TokenFrequencies};
use neuron_select::RowSums;

use crate::{
    JOB, VERSION,
    config::{AblateConfig, UnseenTokens},
};

/// Name of the audit's result in the output folder, which a sweep over the same folder obeys.
pub(crate) const AUDIT: &str = "audit.json";

/// Bands of one run, the long-tail band included.
const MOST_BANDS: usize = 6;

/// The checkpoints of a series that are not finished yet; none without a series.
pub(crate) fn pending(
    config: &AblateConfig,
    resolved: &serde_json::Value,
) -> anyhow::Result<Option<Vec<String>>> {
    let Some(steps) = &config.model.steps else {
        return Ok(None);
    };
    // Read where a finished step is to be held against it, and once.
    let corpus = LazyCell::new(|| corpus_sha256(&config.corpus));
    let mut pending = Vec::new();
    for revision in revisions(steps, &source(&config.model)?)? {
        let dir = config.output.dir.join(&revision);
        match finished(&dir, resolved, &|| corpus.as_ref()) {
            Ok(()) => {
                refuse_bad(config, &revision)?;
                tracing::info!("{revision}: already finished in `{}`, kept", dir.display());
            }
            Err(why) => {
                tracing::debug!("{revision} is computed: {why}");
                pending.push(revision);
            }
        }
    }
    Ok(Some(pending))
}

/// Whether a folder holds what this run would write there: why not, otherwise.
fn finished<'c>(
    dir: &Path,
    resolved: &serde_json::Value,
    corpus: &dyn Fn() -> Result<&'c Option<String>, &'c anyhow::Error>,
) -> Result<(), String> {
    let beside = [
        "model.steps",
        "model.allow_bad",
        "model.token_file",
        "means.keep",
    ];
    let record = job_kit::finished_run(dir, JOB, VERSION, resolved, &beside)?;
    if documents_are_of_before(&dir.join(RowSums::FILE)) {
        return Err(
            "its tables are of an earlier version, which numbers documents otherwise".into(),
        );
    }
    let corpus = corpus().map_err(|err| format!("{err:#}"))?;
    match record["notes"]["corpus_sha256"].as_str() == corpus.as_deref() {
        true => Ok(()),
        false => Err("the corpus has changed since".into()),
    }
}

/// Whether a table has documents as an earlier version numbers them, among those that were read and in 32 bits.
pub(crate) fn documents_are_of_before(sums: &Path) -> bool {
    let table = TableReader::open(sums).ok();
    let field = table.and_then(|table| {
        Some(
            table
                .schema()
                .field_with_name(RowSums::DOCUMENT)
                .ok()?
                .clone(),
        )
    });
    field.is_some_and(|field| *field.data_type() == DataType::Int32)
}

/// The record of a run, with what is known at its start.
pub(crate) fn begin(config: &AblateConfig, resolved: &serde_json::Value) -> RunRecord {
    let mut record = RunRecord::new(JOB, VERSION, resolved);
    record.seed = Some(config.seed);
    record.version("libtorch", neox_core::LIBTORCH_VERSION);
    record
}

/// Token frequencies, and the long-tail band if one is asked for.
pub(crate) fn frequencies(
    config: &AblateConfig,
    loaded: &Loaded,
    record: &mut RunRecord,
) -> anyhow::Result<(TokenFrequencies, Vec<TokenBand>)> {
    let vocabulary = loaded.vocabulary(
        &config.frequency,
        config.band.as_ref(),
        config.semantics.band_reading,
        record,
    )?;
    if let (None, Some(name)) = (&vocabulary.band, config.bands.keys().next()) {
        bail!(
            "`bands.{name}` comes beside a long-tail band, and there is none: choose one with `band`, or leave `bands` out"
        );
    }
    let q = vocabulary.frequencies.q().to_vec();
    let mut bands = match &vocabulary.band {
        Some(band) => vec![TokenBand::new("band", &band.ids, q.len())?],
        None => vec![],
    };
    for (name, band) in &config.bands {
        let reserved = ["band", "all", "ln"].contains(&name.as_str());
        // `x_ln` would share the column `x_ln_mediated_share` with `x`.
        let reserved = reserved || name.ends_with("_ln");
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if reserved || name.is_empty() || !name.chars().all(plain) {
            bail!(
                "`bands.{name}`: a band's name becomes part of column names: use lower-case letters, digits and `_`, but not `band`, `all` or `ln`, nor `_ln` at the end"
            );
        }
        let reading = config.semantics.band_reading;
        let found = vocabulary.another_band(name, band, reading, record)?;
        bands.push(TokenBand::new(name, &found.ids, q.len())?);
    }
    if bands.len() > MOST_BANDS {
        bail!(
            "{} bands are asked for, expected {MOST_BANDS} at most: the vocabulary is cut into the sets of tokens that share their bands",
            bands.len()
        );
    }
    let counts = vocabulary.frequencies.counts();
    let seen: Vec<bool> = counts.iter().map(|count| *count > 0).collect();
    let frequencies = TokenFrequencies::new(q)?;
    let frequencies = match config.semantics.unseen_tokens {
        UnseenTokens::Kept => frequencies,
        UnseenTokens::LeftOut => {
            record.count(
                "unseen_tokens_left_out",
                seen.iter().filter(|seen| !**seen).count() as u64,
            );
            frequencies.over(seen)?
        }
    };
    Ok((frequencies, bands))
}

pub(crate) fn plan(
    config: &AblateConfig,
    sample: &Sample,
    neurons: Vec<usize>,
) -> anyhow::Result<Plan> {
    let ablation = &config.ablation;
    let sequences = ablation.sequences.resolve(sample, config.seed);
    let memory = mebibytes("ablation.memory_mib", ablation.memory_mib)?;
    Ok(Plan::new(neurons, sequences)
        .with_dose(ablation.dose)
        .with_semantics(config.semantics.to_options())
        .with_variants(ablation.variants())
        .with_ranks(ablation.ranks)
        .with_engine(ablation.engine()?)
        .with_batch(ablation.batch)
        .with_memory_budget(memory))
}

/// Refuses a revision that an audit in the output folder found bad.
pub(crate) fn refuse_bad(config: &AblateConfig, revision: &str) -> anyhow::Result<()> {
    let path = config.output.dir.join(AUDIT);
    let rows = read_audit(&path)?;
    job_inputs::refuse_bad(&path, &rows, revision, &config.model, "take another")
}

/// The rows of an audit; none where there is no file.
pub(crate) fn read_audit(path: &Path) -> anyhow::Result<Vec<AuditRow>> {
    let Ok(json) = std::fs::read(path) else {
        return Ok(vec![]);
    };
    serde_json::from_slice(&json).with_context(|| {
        format!(
            "`{}` is no audit: move it away and audit again",
            path.display()
        )
    })
}
