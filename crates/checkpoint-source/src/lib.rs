//! Where checkpoints come from: a local folder, a folder of training steps, or a repository on the Hugging Face hub.
//!
//! Whatever it is, a [`Source`] lists its revisions and turns one of them into the folder of a checkpoint, fetched if need be.
//! This crate never reads a tensor, and links no libtorch: the crate `neox-core` loads the folder.
//!
//! ```no_run
//! use checkpoint_source::{Hub, HubOptions, Source};
//!
//! let source = Source::hub(Hub::new(HubOptions::from_env(None)?), "EleutherAI/pythia-70m");
//! let dir = source.checkpoint(Some("step3000"), &mut |_| ())?;
//! assert!(dir.join("config.json").exists());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What was not run
//! The live hub was not reached: [`hub`] is tested with a local server that speaks its protocol.

pub mod hub;
pub mod source;

pub use hub::{Hub, HubError, HubOptions, OnTransfer, Token, Transfer};
pub use model_conventions::StepNames;
pub use source::{Source, SourceError};
