//! The tables that a run writes.

use arrow::{array::RecordBatch, error::ArrowError};
use job_kit::Table;
use longtail_corpus::{Context, FoundContexts, WordContexts};

/// One row per word and context. Offsets are bytes of the document's text.
pub(crate) fn context_table(found: &FoundContexts) -> Result<RecordBatch, ArrowError> {
    let rows: Vec<(&WordContexts, usize, &Context)> = found
        .words
        .iter()
        .flat_map(|word| {
            let contexts = word.contexts.iter().enumerate();
            contexts.map(move |(id, context)| (word, id, context))
        })
        .collect();
    Table::of(&rows)
        .column("word", |(word, ..)| word.word.as_str())
        .column("context_id", |(_, id, _)| *id as u32)
        .column("context", |(.., context)| context.text.as_str())
        .column("separator", |(.., context)| context.separator)
        .column("zipf", |(word, ..)| word.zipf)
        .column("document", |(.., context)| context.document as u64)
        .column("file", |(.., context)| context.file.display().to_string())
        .column("row", |(.., context)| context.row as u64)
        .column("context_start", |(.., context)| context.start as u64)
        .column("word_start", |(.., context)| context.word.start as u64)
        .column("word_end", |(.., context)| context.word.end as u64)
        .column("count_after_context", |(.., context)| context.count)
        .column("share_after_context", |(.., context)| context.frequency)
        .column("log_share_after_context_per_million", |(.., context)| {
            context.log_freq_per_million()
        })
        .batch()
}

/// One row per word, those without a context too.
pub(crate) fn word_table(found: &FoundContexts) -> Result<RecordBatch, ArrowError> {
    Table::of(&found.words)
        .column("word", |word| word.word.as_str())
        .column("zipf", |word| word.zipf)
        .column("occurrences", |word| word.occurrences)
        .column("contexts", |word| word.contexts.len() as u64)
        .batch()
}
