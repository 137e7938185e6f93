//! Token counts as a file.

use std::{
    collections::HashMap,
    io::{self, Write},
    sync::Arc,
};

use arrow::{
    array::{ArrayRef, RecordBatch, StringArray, UInt32Array, UInt64Array},
    datatypes::{DataType, Field, Schema},
};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    file::properties::WriterProperties,
};
use tokenizers::Tokenizer;

use crate::TokenCounts;

/// Writes counts as Parquet: `token_id`, `token` (as the tokenizer spells it, null for padding rows) and `count`; `provenance` goes into
/// the file's key-value metadata.
///
/// # Errors
/// - [`io::Error`] if it cannot be written
pub fn write_counts(
    to: impl Write + Send,
    counts: &TokenCounts,
    tokenizer: &Tokenizer,
    provenance: &[(String, String)],
) -> io::Result<()> {
    let tokens: Vec<Option<String>> = (0..counts.d_vocab() as u32)
        .map(|id| tokenizer.id_to_token(id))
        .collect();
    let schema = Arc::new(Schema::new_with_metadata(
        vec![
            Field::new("token_id", DataType::UInt32, false),
            Field::new("token", DataType::Utf8, true),
            Field::new("count", DataType::UInt64, false),
        ],
        provenance.iter().cloned().collect::<HashMap<_, _>>(),
    ));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt32Array::from_iter_values(0..counts.d_vocab() as u32)),
        Arc::new(StringArray::from(tokens)),
        Arc::new(UInt64Array::from(counts.as_slice().to_vec())),
    ];
    let batch = RecordBatch::try_new(schema.clone(), columns).map_err(io::Error::other)?;
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .build();
    let mut writer =
        ArrowWriter::try_new(to, schema, Some(properties)).map_err(io::Error::other)?;
    writer.write(&batch).map_err(io::Error::other)?;
    writer.close().map_err(io::Error::other)?;
    Ok(())
}
