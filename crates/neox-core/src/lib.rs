//! Decoder language models (GPT-NeoX, GPT-2, Llama, OLMo and OLMo 2) on libtorch: configs, checkpoints, the forward pass, named
//! hook sites. What a checkpoint is, is one value, [`Architecture`].
//!
//! This crate loads a checkpoint from a folder and runs it. It knows nothing of word frequencies, corpora or
//! ablation: code that wants to look inside implements [`Hooks`]. Folders of steps and repositories on a hub are turned into
//! the folder of one checkpoint by the crate `checkpoint-source`.
//!
//! ```no_run
//! use neox_core::{LoadOptions, Model, NoHooks, Text, parse_device, parse_dtype};
//! use tch::Tensor;
//!
//! let dir = std::path::Path::new("pythia-70m/step3000");
//! let options = LoadOptions::default().with_device(parse_device("auto")?).with_dtype(parse_dtype("f32")?);
//! let model = Model::load(dir, &options)?;
//! let ids = Text::from_file(&dir.join("tokenizer.json"))?.encode("The state of the union")?;
//! let tokens = Tensor::from_slice(&ids).view([1, -1]);
//! let logits = model.forward(&tokens, None, &mut NoHooks)?; // [1, pos, vocab]
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Files are treated as untrusted: sizes, names, shapes and dtypes are checked before memory is
//! taken, and a `pytorch_model.bin` is read by a machine that can build tensors and nothing else.
//!
//! # What was not run
//! More than one GPU, and none of another maker than NVIDIA.

// Checkpoints
mod activation;
pub mod architecture;
mod config;
mod family;
mod keys;
mod options;
mod pickle;
mod rope;
mod shard;
mod weights;

// The model
mod attention;
mod block;
mod branches;
pub mod hooks;
mod linear;
mod mlp;
pub mod model;
mod norm;
mod rotary;
mod site;

// Around it
pub mod device;
pub mod error;
pub mod text;

// Checkpoints checked and written
pub mod audit;
pub mod save;

#[doc(hidden)]
pub mod fuzzing;

pub use activation::Activation;
pub use architecture::{Architecture, NormKind, Positions, Residual, RopeScaling, ScoreScale};
pub use audit::{AuditRow, Finding, audit};
pub use branches::Branch;
pub use device::{keep_freed_memory, load_cuda, parse_device, parse_dtype};
pub use error::{
    ConfigError, DeviceError, ForwardError, HookError, LoadError, PickleError, TensorMismatch,
    TextError,
};
pub use family::Part;
pub use hooks::{Hooks, NoHooks, Recorder};
pub use model::{Model, next_token_ln_probs};
pub use model_conventions::{FileHash, WeightFiles, WeightFilesError, WeightFormat};
pub use norm::Norm;
pub use options::LoadOptions;
pub use save::{SAVED_FILES, SaveError, save_with, stored_tensor};
pub use site::Site;
pub use text::Text;

/// The crates whose types are part of this one's interface: [`tch::Tensor`] of every forward, and [`Text::tokenizer`]'s.
pub use {tch, tokenizers};

/// The version of libtorch that this crate was built with; `unknown` where libtorch's folder does not say it, `none` with `doc-only`.
pub const LIBTORCH_VERSION: &str = env!("LIBTORCH_VERSION");
