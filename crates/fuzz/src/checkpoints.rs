//! The files of a checkpoint.

use neox_core::fuzzing;

pub(crate) fn pickle(bytes: &[u8]) -> bool {
    fuzzing::pickle(bytes)
}

pub(crate) fn safetensors(bytes: &[u8]) -> bool {
    fuzzing::safetensors(bytes)
}

pub(crate) fn config(bytes: &[u8]) -> bool {
    fuzzing::config(bytes)
}

pub(crate) fn index(bytes: &[u8]) -> bool {
    fuzzing::index(bytes)
}
