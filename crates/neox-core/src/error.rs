//! What can go wrong: reading a config, loading a checkpoint, running the model.

use std::fmt;
use std::io;
use std::path::PathBuf;

use file_kind::FileKind;
use model_conventions::WeightFilesError;
use tch::{Kind, TchError};

use crate::site::Site;

/// Any error that a hook stops a forward pass with; `?` makes it of libtorch's, of one's own, and of text.
pub type HookError = Box<dyn std::error::Error + Send + Sync>;

/// Why a `config.json` was not understood.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Not JSON, or nested too deeply.
    #[error("not valid JSON")]
    Json(#[source] serde_json::Error),
    /// JSON, but not an object.
    #[error("expected a JSON object")]
    NotAnObject,
    /// Another architecture.
    #[error("model_type is `{found}`, expected {expected}")]
    ModelType {
        /// What the config says.
        found: String,
        /// The families that there are.
        expected: String,
    },
    /// One key is missing, of the wrong type or out of range.
    #[error("`{field}`: {problem}")]
    Field {
        /// Key, with its parent where nested.
        field: String,
        /// Expected and found.
        problem: String,
    },
}

/// Why a checkpoint did not load.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A file that cannot be opened or read, or is larger than such a file may be.
    #[error("failed to read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A config that was read but not understood.
    #[error("bad model config `{}`", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Which key and why.
        source: ConfigError,
    },
    /// A folder whose weight files were not found: none, or a bad index of shards.
    #[error(transparent)]
    Files(#[from] WeightFilesError),
    /// A file that is something else than its name says.
    #[error("`{}` is {kind}", path.display())]
    NotThat {
        /// The file.
        path: PathBuf,
        /// What it is, and what to do about it.
        kind: FileKind,
    },
    /// A weight that is NaN or infinite.
    #[error(
        "tensor `{name}` of `{}` is {value} at {place:?}{}",
        path.display(),
        match overflow {
            Some(dtype) => format!(", as its value is too large for {dtype:?}: load the model in f32"),
            None => ": the checkpoint is damaged, or its training diverged".to_owned(),
        }
    )]
    NotFinite {
        /// The folder.
        path: PathBuf,
        /// Name of the tensor.
        name: String,
        /// Index of the first such value.
        place: Vec<i64>,
        /// The value.
        value: f64,
        /// The dtype to compute in, where the stored value is finite.
        overflow: Option<Kind>,
    },
    /// A safetensors file whose tensors do not fill it.
    #[error(
        "bad safetensors file `{}`: its tensors do not fill its {bytes} bytes: the file is cut off or was changed, get it again",
        path.display()
    )]
    CutOff {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: usize,
    },
    /// A malformed safetensors file.
    #[error("bad safetensors file `{}`", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file that breaks a rule of ours: a header, an archive entry, a tensor where the index has none.
    #[error("bad checkpoint file `{}`: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A `pytorch_model.bin` that is not a torch.save archive.
    #[error(
        "`{}` is not a zip archive as torch.save has written since PyTorch 1.6",
        path.display()
    )]
    Zip {
        /// The file.
        path: PathBuf,
        /// What the zip reader says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A `pytorch_model.bin` whose pickle is damaged or asks for more than tensors.
    #[error("refused the pickle in `{}`", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
        /// Why.
        source: PickleError,
    },
    /// Tensors that do not fit the config; found before any was copied.
    #[error("weights in `{}` do not fit the config: {mismatch}", path.display())]
    Tensors {
        /// The folder.
        path: PathBuf,
        /// Everything that differs.
        mismatch: Box<TensorMismatch>,
    },
    /// A tensor that the model asks for and the checkpoint does not hold.
    #[error("tensor `{name}` not found")]
    MissingTensor {
        /// Its name.
        name: String,
    },
    /// A dtype to compute in that is not f32, f16 or bf16.
    #[error("cannot compute in {dtype:?}: expected Float, Half or BFloat16")]
    ComputeDtype {
        /// What was asked for.
        dtype: Kind,
    },
    /// libtorch failed, for example for lack of memory.
    #[error("libtorch failed to make a tensor")]
    Torch(#[from] TchError),
}

/// How a checkpoint's tensors differ from what its config implies.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorMismatch {
    /// Implied by the config, absent from the files.
    pub missing: Vec<String>,
    /// In the files, not implied by the config, and no known buffer.
    pub unexpected: Vec<String>,
    /// Name, expected shape, found shape.
    pub shapes: Vec<(String, Vec<i64>, Vec<i64>)>,
    /// Name and dtype of weights that are not floating-point numbers.
    pub dtypes: Vec<(String, String)>,
}

impl TensorMismatch {
    pub(crate) fn is_empty(&self) -> bool {
        self == &Self::default()
    }
}

/// Names printed per list; the fields hold all.
const SHOWN: usize = 12;

impl fmt::Display for TensorMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lists = [
            (
                "missing",
                self.missing.iter().map(|n| format!("`{n}`")).collect(),
            ),
            (
                "unexpected",
                self.unexpected.iter().map(|n| format!("`{n}`")).collect(),
            ),
            (
                "of the wrong shape",
                self.shapes
                    .iter()
                    .map(|(n, expected, found)| {
                        format!("`{n}` has {found:?}, but the config implies {expected:?}")
                    })
                    .collect(),
            ),
            (
                "of the wrong dtype",
                self.dtypes
                    .iter()
                    .map(|(n, dtype)| format!("`{n}` is {dtype}"))
                    .collect::<Vec<String>>(),
            ),
        ];
        let mut first = true;
        for (title, items) in lists.iter().filter(|(_, items)| !items.is_empty()) {
            if !first {
                f.write_str("; ")?;
            }
            first = false;
            let shown = &items[..items.len().min(SHOWN)];
            write!(f, "{} {title}: {}", items.len(), shown.join(", "))?;
            if items.len() > SHOWN {
                write!(f, " and {} more", items.len() - SHOWN)?;
            }
        }
        Ok(())
    }
}

/// Why a pickle was refused. Nothing in it is ever called.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PickleError {
    /// The pickle ends in the middle of an instruction.
    #[error("the pickle ends early, at byte {at}")]
    Truncated {
        /// Offset in `data.pkl`.
        at: usize,
    },
    /// An instruction that tensors do not need.
    #[error("instruction 0x{opcode:02x} at byte {at} is not one that saved tensors use")]
    Opcode {
        /// The instruction.
        opcode: u8,
        /// Offset in `data.pkl`.
        at: usize,
    },
    /// A name that tensors do not need: code, as a rule.
    #[error("it names `{name}`, which saved tensors do not use; nothing was run")]
    Global {
        /// Module and name.
        name: String,
    },
    /// Well-formed, but not a dictionary of tensors.
    #[error("{problem} at byte {at}")]
    Structure {
        /// What was expected.
        problem: &'static str,
        /// Offset in `data.pkl`.
        at: usize,
    },
}

/// Why a forward pass failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForwardError {
    /// Tokens that are not a non-empty `[batch, pos]`.
    #[error("tokens have shape {found:?}, expected [batch, pos], not empty")]
    TokenShape {
        /// Their shape.
        found: Vec<i64>,
    },
    /// Tokens of another dtype.
    #[error("tokens are {found:?}, expected Int64")]
    TokenDtype {
        /// Their dtype.
        found: Kind,
    },
    /// A token id outside the vocabulary.
    #[error("token id {token} is outside the vocabulary of {vocab_size} rows")]
    TokenRange {
        /// The id.
        token: i64,
        /// Rows of the embedding.
        vocab_size: i64,
    },
    /// A sequence longer than the model was built for.
    #[error("sequence of {len} tokens is longer than max_position_embeddings {max}")]
    TooLong {
        /// Length of the sequence.
        len: i64,
        /// What the config allows.
        max: i64,
    },
    /// A residual stream of another shape or dtype than the model's.
    #[error(
        "residual stream has shape and dtype {found:?}, but [batch, pos, {d_model}] and {dtype:?} are expected, with at least one position"
    )]
    Residual {
        /// Width of the model.
        d_model: i64,
        /// Dtype of the model.
        dtype: Kind,
        /// Shape and dtype that were given.
        found: (Vec<i64>, Kind),
    },
    /// A mask whose shape is not that of the tokens.
    #[error("mask has shape {found:?}, but the tokens have {expected:?}")]
    MaskShape {
        /// Shape of the tokens.
        expected: Vec<i64>,
        /// Shape of the mask.
        found: Vec<i64>,
    },
    /// A mask that does not say whether there is a token.
    #[error(
        "mask holds {found}, expected 1 (or true) where there is a token and 0 (or false) on padding"
    )]
    MaskValue {
        /// The first value that is neither.
        found: f64,
    },
    /// A hook on a site that the model does not have.
    #[error("the model has no {site}: its blocks are 0 to {}{}", layers.saturating_sub(1), match site {
        crate::Site::MlpUp(_) => ", and only gated MLPs have what the activation is multiplied by",
        _ => "",
    })]
    NoSite {
        /// The site.
        site: crate::Site,
        /// How many blocks it has.
        layers: usize,
    },
    /// A branch that cannot be where it is said to be.
    #[error(
        "row {row} of {len} tokens has a branch at {} that shares {} tokens: branches come one behind the other after the whole first text, and share tokens of it",
        start,
        shared
    )]
    Branch {
        /// The row.
        row: usize,
        /// Where the branch begins.
        start: usize,
        /// Tokens of the first text that come before it.
        shared: usize,
        /// Tokens of the row.
        len: i64,
    },
    /// A number of lists of branches that is not the number of rows.
    #[error("there are branches for {found} rows, but {expected} rows of tokens")]
    BranchRows {
        /// Rows of tokens.
        expected: i64,
        /// Lists of branches.
        found: usize,
    },
    /// A model that gives NaN or infinity by itself, whatever its hooks do.
    #[error(
        "the model gives NaN or infinity, first at `{site}`, computing in {dtype:?}: {}",
        if *dtype == Kind::Float { "its weights are damaged, or its training diverged" } else { "compute in f32" }
    )]
    NotFinite {
        /// The first place at which a value is not finite.
        site: Site,
        /// The dtype of the values.
        dtype: Kind,
    },
    /// A layer past the last.
    #[error("layer {layer} does not exist: the model has {n_layers}, counted from 0")]
    Layer {
        /// What was asked for.
        layer: usize,
        /// Number of blocks.
        n_layers: usize,
    },
    /// A hook that changed shape or dtype.
    #[error(
        "hook at `{site}` returned shape {:?} of {:?}, expected {:?} of {:?}",
        found.0, found.1, expected.0, expected.1
    )]
    Hook {
        /// Where.
        site: Site,
        /// Shape and dtype given to the hook.
        expected: (Vec<i64>, Kind),
        /// Shape and dtype it returned.
        found: (Vec<i64>, Kind),
    },
    /// A hook reported an error.
    #[error("the hook at `{site}` failed")]
    HookFailed {
        /// Where.
        site: Site,
        /// Its error.
        source: HookError,
    },
    /// libtorch failed.
    #[error("libtorch failed during the forward pass")]
    Torch(#[from] TchError),
}

/// Why a word for a device or a dtype was not accepted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceError {
    /// Not a device.
    #[error("unknown device `{text}`: expected auto, cpu, cuda or cuda:N")]
    UnknownDevice {
        /// What was given.
        text: String,
    },
    /// A GPU was asked for and there is none.
    #[error(
        "device `{text}` asked for, but this libtorch sees no CUDA device: use cpu, or a CUDA build of libtorch"
    )]
    NoCuda {
        /// What was given.
        text: String,
    },
    /// A GPU past the last.
    #[error("device cuda:{index} does not exist: {count} found, counted from 0")]
    CudaIndex {
        /// What was asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// Not a dtype.
    #[error("unknown dtype `{text}`: expected f32, f16 or bf16")]
    UnknownDtype {
        /// What was given.
        text: String,
    },
}

/// Why text was not tokenised.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// A tokenizer file that cannot be read or understood.
    #[error("failed to load tokenizer `{}`", path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// What the tokenizers library says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Text that the tokenizer fails on.
    #[error("failed to tokenise")]
    Encode(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A tokenizer that does not say which pieces begin a word.
    #[error(transparent)]
    WordStart(#[from] model_conventions::UnknownWordStart),
    /// Ids that the tokenizer fails on.
    #[error("failed to decode token ids")]
    Decode(#[source] Box<dyn std::error::Error + Send + Sync>),
}
