//! The tables that a run writes.

use std::sync::Arc;

use arrow::{
    array::{
        ArrayRef, BooleanArray, Float64Array, RecordBatch, StringArray, UInt32Array, UInt64Array,
    },
    datatypes::Schema,
    error::ArrowError,
};
use longtail_corpus::{Band, Frequencies, LongTailWord, RankCurve};
use tokenizers::Tokenizer;

/// One row per word. Token ids are text, separated by spaces, so that CSV and Parquet hold the same.
pub(crate) fn word_table(
    words: &[LongTailWord],
    provenance: &[(String, String)],
) -> Result<RecordBatch, ArrowError> {
    let ids = |word: &LongTailWord| {
        word.token_ids
            .iter()
            .map(u32::to_string)
            .collect::<Vec<_>>()
            .join(" ")
    };
    let batch = RecordBatch::try_from_iter([
        (
            "word",
            Arc::new(StringArray::from_iter_values(words.iter().map(|w| &w.word))) as ArrayRef,
        ),
        (
            "token_ids",
            Arc::new(StringArray::from_iter_values(words.iter().map(ids))),
        ),
        (
            "pieces",
            Arc::new(UInt32Array::from_iter_values(
                words.iter().map(|w| w.token_ids.len() as u32),
            )),
        ),
        (
            "count",
            Arc::new(UInt64Array::from_iter_values(words.iter().map(|w| w.count))),
        ),
        (
            "per_million",
            Arc::new(Float64Array::from_iter_values(
                words.iter().map(|w| w.per_million),
            )),
        ),
        (
            "zipf",
            Arc::new(Float64Array::from_iter_values(words.iter().map(|w| w.zipf))),
        ),
        (
            "in_band",
            Arc::new(BooleanArray::from_iter(
                words.iter().map(|w| Some(w.in_band)),
            )),
        ),
    ])?;
    with_metadata(&batch, provenance)
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
    let batch = RecordBatch::try_from_iter_with_nullable([
        (
            "token_id",
            Arc::new(UInt32Array::from(ids.clone())) as ArrayRef,
            false,
        ),
        (
            "token",
            Arc::new(
                ids.iter()
                    .map(|&id| tokenizer.id_to_token(id))
                    .collect::<StringArray>(),
            ),
            true,
        ),
        (
            "count",
            Arc::new(UInt64Array::from_iter_values(
                ids.iter().map(|&id| frequencies.counts()[id as usize]),
            )),
            false,
        ),
        (
            "frequency",
            Arc::new(Float64Array::from_iter_values(
                ids.iter().map(|&id| q[id as usize]),
            )),
            false,
        ),
        (
            "rank",
            Arc::new(UInt64Array::from_iter_values(
                ids.iter().map(|&id| rank(id)),
            )),
            false,
        ),
    ])?;
    with_metadata(&batch, provenance)
}

fn with_metadata(
    batch: &RecordBatch,
    provenance: &[(String, String)],
) -> Result<RecordBatch, ArrowError> {
    let metadata: std::collections::HashMap<String, String> = provenance.iter().cloned().collect();
    let schema = Schema::new_with_metadata(batch.schema().fields().clone(), metadata);
    batch.clone().with_schema(Arc::new(schema))
}
