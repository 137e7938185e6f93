//! Where published language models differ in their conventions, each in one place.
//!
//! - [`step`]: how a training step is written in the name of a folder or revision;
//! - [`steps`]: how a configuration says which of them;
//! - [`word_pieces`]: what begins a word, from the tokenizer's own decoder and pre-tokenizer;
//! - [`text_ends`]: which tokens begin and end a text, as the files of a tokenizer say;
//! - [`weight_files`]: which files of a folder hold the weights;
//! - [`size`]: how many tokens a tokenizer has, and whether a vocabulary can be its.
//!
//! This crate never sees a model, a corpus or a configuration.
//!
//! ```
//! use model_conventions::StepNames;
//!
//! let folders = ["step1000", "step-512", "step_000064", "checkpoint-8", "notes"];
//! let found = StepNames::among(folders.map(String::from))?;
//! assert_eq!(found.steps().collect::<Vec<_>>(), [8, 64, 512, 1000]);
//! assert_eq!(found.name(512), Some("step-512"));
//! assert_eq!(found.others(), ["notes"]);
//! # Ok::<(), model_conventions::SameStep>(())
//! ```

pub mod size;
pub mod step;
pub mod steps;
pub mod text_ends;
pub mod weight_files;
pub mod word_pieces;

pub use size::{Fit, fit, n_tokens, read_tokenizer};
pub use step::{Counted, SameStep, StepName, StepNames, step_of, step_of_folder};
pub use steps::{Steps, StepsError};
pub use text_ends::{TextEnds, TextEndsError};
pub use weight_files::{FileHash, WeightFiles, WeightFilesError, WeightFormat, sha256_file};
pub use word_pieces::{UnknownWordStart, WordPieces};
