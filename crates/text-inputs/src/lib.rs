//! What jobs read of text, and the shape of it in YAML: a corpus, a band of token frequencies, norms of word frequencies.
//!
//! Shared by the jobs, so that a key means the same in each; those that use a part of the keys refuse the others. Needs no model, and so
//! no libtorch.

mod band;
mod corpus;
mod norms;

pub use band::BandConfig;
pub use corpus::{CorpusConfig, Reading};
pub use norms::{Norms, NormsConfig, Scale};
