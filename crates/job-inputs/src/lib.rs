//! What jobs on a model read, and the shape of it in YAML: a checkpoint, text, token frequencies, a band, neurons.
//!
//! Shared by the binaries, so that a key means the same in each.

mod apart;
mod audit;
mod config;
mod means;
mod neurons;
mod read;
mod tokens;

pub use apart::{MeasuredOn, SelectedOn, corpus_of_contexts, note_overlap};
pub use audit::refuse_bad;
pub use config::{
    FrequencyConfig, ModelConfig, NeuronsConfig, Sequences, TokenName, mebibytes, revisions, series,
};
pub use means::{MeanSequences, MeansConfig, MeansSample};
pub use neurons::{NeuronRows, neuron_rows, step_in_words};
pub use read::{
    Loaded, Vocabulary, content_files, corpus_sha256, load_options, read_sample, read_tokens,
    source,
};
pub use text_inputs::{BandConfig, CorpusConfig};
pub use tokens::{Ends, Tokens};
