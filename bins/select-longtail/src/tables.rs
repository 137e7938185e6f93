//! The tables that a run writes.

use std::sync::Arc;

use arrow::{array::RecordBatch, datatypes::Schema, error::ArrowError};
use job_kit::Table;
use longtail_corpus::{Band, Frequencies, LongTailWord, RankCurve};
use tokenizers::Tokenizer;

/// One row per word. Token ids are text, separated by spaces, so that CSV and Parquet hold the same.
pub(crate) fn word_table(
    words: &[LongTailWord],
    provenance: &[(String, String)],
) -> Result<RecordBatch, ArrowError> {
    let ids = |word: &LongTailWord| {
        let ids: Vec<String> = word.token_ids.iter().map(u32::to_string).collect();
        ids.join(" ")
    };
    let table = Table::of(words)
        .column("word", |w| w.word.as_str())
        .column("token_ids", ids)
        .column("pieces", |w| w.token_ids.len() as u32)
        .column("count", |w| w.count)
        .column("per_million", |w| w.per_million)
        .column("zipf", |w| w.zipf)
        .column("in_band", |w| w.in_band);
    with_metadata(&table.batch()?, provenance)
}

/// One row per token of the band, by rank.
pub(crate) fn token_table(
    band: &Band,
    frequencies: &Frequencies,
    curve: &RankCurve,
    tokenizer: &Tokenizer,
    provenance: &[(String, String)],
) -> Result<RecordBatch, ArrowError> {
    let q = frequencies.q();
    let mut ids = band.ids.clone();
    ids.sort_by(|&a, &b| q[b as usize].total_cmp(&q[a as usize]).then(a.cmp(&b)));
    // Tokens of one frequency share the first of their ranks.
    let rank = |id: u32| curve.q().partition_point(|&other| other > q[id as usize]) as u64 + 1;
    let table = Table::of(&ids)
        .column("token_id", |&id| id)
        .column("token", |&id| tokenizer.id_to_token(id))
        .column("count", |&id| frequencies.counts()[id as usize])
        .column("frequency", |&id| q[id as usize])
        .column("rank", |&id| rank(id));
    with_metadata(&table.batch()?, provenance)
}

fn with_metadata(
    batch: &RecordBatch,
    provenance: &[(String, String)],
) -> Result<RecordBatch, ArrowError> {
    let metadata: std::collections::HashMap<String, String> = provenance.iter().cloned().collect();
    let schema = Schema::new_with_metadata(batch.schema().fields().clone(), metadata);
    batch.clone().with_schema(Arc::new(schema))
}
