//! Readers of untrusted bytes, for fuzz targets. Not part of the interface.

use crate::architecture::Architecture;
use crate::pickle::read_tensors;
use crate::shard::parse_safetensors;

/// Whether `config.json` with these bytes is accepted.
pub fn config(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| Architecture::from_json(text).is_ok())
}

/// Whether an index of shards with these bytes is accepted.
pub fn index(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes)
        .is_ok_and(|text| model_conventions::weight_files::parse_index(text).is_ok())
}

/// Whether a safetensors file with these bytes is accepted.
pub fn safetensors(bytes: &[u8]) -> bool {
    parse_safetensors(bytes).is_ok()
}

/// Whether `data.pkl` with these bytes is accepted.
pub fn pickle(bytes: &[u8]) -> bool {
    read_tensors(bytes).is_ok()
}
