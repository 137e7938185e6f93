//! The tables that a run writes.

use std::sync::Arc;

use arrow::{
    array::{
        ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, UInt32Array, UInt64Array,
    },
    error::ArrowError,
};
use longtail_corpus::{Context, FoundContexts, WordContexts};

/// One row per word and context. Offsets are bytes of the document's text.
pub(crate) fn context_table(found: &FoundContexts) -> Result<RecordBatch, ArrowError> {
    let rows: Vec<(&WordContexts, usize, &Context)> = found
        .words
        .iter()
        .flat_map(|word| {
            word.contexts
                .iter()
                .enumerate()
                .map(move |(id, context)| (word, id, context))
        })
        .collect();
    let offset = |get: fn(&Context) -> usize| -> ArrayRef {
        Arc::new(UInt64Array::from_iter_values(
            rows.iter().map(|(_, _, context)| get(context) as u64),
        ))
    };
    RecordBatch::try_from_iter([
        (
            "word",
            Arc::new(StringArray::from_iter_values(
                rows.iter().map(|(word, _, _)| &word.word),
            )) as ArrayRef,
        ),
        (
            "context_id",
            Arc::new(UInt32Array::from_iter_values(
                rows.iter().map(|(_, id, _)| *id as u32),
            )),
        ),
        (
            "context",
            Arc::new(StringArray::from_iter_values(
                rows.iter().map(|(_, _, context)| &context.text),
            )),
        ),
        (
            "separator",
            Arc::new(StringArray::from_iter_values(
                rows.iter().map(|(_, _, context)| context.separator),
            )),
        ),
        (
            "zipf",
            Arc::new(Float64Array::from_iter(
                rows.iter().map(|(word, _, _)| word.zipf),
            )),
        ),
        (
            "document",
            Arc::new(Int64Array::from_iter_values(
                rows.iter().map(|(_, _, context)| context.document as i64),
            )),
        ),
        (
            "file",
            Arc::new(StringArray::from_iter_values(
                rows.iter()
                    .map(|(_, _, context)| context.file.display().to_string()),
            )),
        ),
        ("row", offset(|context| context.row)),
        ("context_start", offset(|context| context.start)),
        ("word_start", offset(|context| context.word.start)),
        ("word_end", offset(|context| context.word.end)),
        (
            "count_after_context",
            Arc::new(UInt64Array::from_iter_values(
                rows.iter().map(|(_, _, context)| context.count),
            )),
        ),
        (
            "share_after_context",
            Arc::new(Float64Array::from_iter_values(
                rows.iter().map(|(_, _, context)| context.frequency),
            )),
        ),
        (
            "log_share_after_context_per_million",
            Arc::new(Float64Array::from_iter_values(
                rows.iter()
                    .map(|(_, _, context)| context.log_freq_per_million()),
            )),
        ),
    ])
}

/// One row per word, those without a context too.
pub(crate) fn word_table(found: &FoundContexts) -> Result<RecordBatch, ArrowError> {
    RecordBatch::try_from_iter([
        (
            "word",
            Arc::new(StringArray::from_iter_values(
                found.words.iter().map(|word| &word.word),
            )) as ArrayRef,
        ),
        (
            "zipf",
            Arc::new(Float64Array::from_iter(
                found.words.iter().map(|word| word.zipf),
            )),
        ),
        (
            "occurrences",
            Arc::new(UInt64Array::from_iter_values(
                found.words.iter().map(|word| word.occurrences),
            )),
        ),
        (
            "contexts",
            Arc::new(UInt64Array::from_iter_values(
                found.words.iter().map(|word| word.contexts.len() as u64),
            )),
        ),
    ])
}
