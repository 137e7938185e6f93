//! `config.json` of a GPT-NeoX checkpoint, in either published style.

use std::path::Path;

use file_kind::FileKind;
use serde_json::{Map, Value};

use crate::error::{ConfigError, LoadError};
use crate::files::read_small;

/// Sizes above this are taken for a damaged or hostile file.
const MAX_SIZE: i64 = 1 << 24;
/// Published configs are under 1 kB.
const MAX_BYTES: u64 = 1 << 20;

/// What a checkpoint's `config.json` says, under Hugging Face's own names.
///
/// Keys that GPT-NeoX configs may leave out take the defaults of transformers' `GPTNeoXConfig`;
/// the sizes have none here: leaving one out is an error.
///
/// # Examples
/// ```
/// # use neox_core::NeoxConfig;
/// let config = NeoxConfig::from_json(r#"{
///     "model_type": "gpt_neox", "hidden_size": 512, "intermediate_size": 2048,
///     "num_hidden_layers": 6, "num_attention_heads": 8, "vocab_size": 50304,
///     "max_position_embeddings": 2048, "rotary_pct": 0.25, "rotary_emb_base": 10000
/// }"#)?;
/// assert_eq!(config.rotary_dims, 16); // a quarter of the 64 dimensions of a head
/// # Ok::<(), neox_core::ConfigError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct NeoxConfig {
    /// Width of the residual stream (`d_model`).
    pub hidden_size: i64,
    /// Neurons per MLP layer (`d_mlp`).
    pub intermediate_size: i64,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Attention heads per block; divides `hidden_size`.
    pub num_attention_heads: i64,
    /// Rows of the embedding and the unembedding, padding rows included.
    pub vocab_size: i64,
    /// Longest sequence the model was built for.
    pub max_position_embeddings: i64,
    /// `eps` of every LayerNorm.
    pub layer_norm_eps: f64,
    /// Activation function of the MLPs.
    pub hidden_act: Activation,
    /// Whether the attention projections have biases.
    pub attention_bias: bool,
    /// `x + attn(ln1(x)) + mlp(ln2(x))` if true, else attention first and the MLP on its result.
    pub use_parallel_residual: bool,
    /// Whether the unembedding is the embedding.
    pub tie_word_embeddings: bool,
    /// Leading dimensions of each head that are rotated; even.
    pub rotary_dims: i64,
    /// Base of the rotary frequencies.
    pub rotary_base: f64,
    /// Token put before each sequence, where the config names one.
    pub bos_token_id: Option<i64>,
    /// Tokens that end a document: none where the config does not say, several where it has a list.
    pub eos_token_ids: Vec<i64>,
}

/// Activation functions found in GPT-NeoX checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    /// Exact GELU: `gelu`, `gelu_python`.
    Gelu,
    /// The tanh approximation: `gelu_new`, `gelu_fast`, `gelu_accurate`, `gelu_pytorch_tanh`,
    /// `gelu_python_tanh`.
    GeluTanh,
    /// `x * sigmoid(1.702 x)`: `quick_gelu`.
    QuickGelu,
    /// `relu`.
    Relu,
    /// `silu`, `swish`.
    Silu,
}

impl Activation {
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "gelu" | "gelu_python" => Self::Gelu,
            "gelu_new" | "gelu_fast" | "gelu_accurate" | "gelu_pytorch_tanh"
            | "gelu_python_tanh" => Self::GeluTanh,
            "quick_gelu" => Self::QuickGelu,
            "relu" => Self::Relu,
            "silu" | "swish" => Self::Silu,
            _ => return None,
        })
    }
}

impl NeoxConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// - [`LoadError::Read`] if the file cannot be read or is larger than 1 MiB
    /// - [`LoadError::Config`] naming the key that is missing, of the wrong type or out of range
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        let text = read_small(path, MAX_BYTES)?;
        Self::from_json(&text).map_err(|source| match FileKind::of(text.as_bytes()) {
            Some(kind) => LoadError::NotThat {
                path: path.to_owned(),
                kind,
            },
            None => LoadError::Config {
                path: path.to_owned(),
                source,
            },
        })
    }

    /// Parses the text of a `config.json`.
    ///
    /// # Errors
    /// - [`ConfigError`] naming the key that is missing, of the wrong type or out of range
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        let text = text.trim_start_matches('\u{feff}');
        let value: Value = serde_json::from_str(text).map_err(ConfigError::Json)?;
        let Value::Object(map) = value else {
            return Err(ConfigError::NotAnObject);
        };
        let keys = Keys {
            map: &map,
            prefix: "",
        };
        if let Some(found) = keys.string("model_type")?
            && found != "gpt_neox"
        {
            return Err(ConfigError::ModelType {
                found: found.into(),
            });
        }

        let hidden_size = keys.size("hidden_size")?;
        let num_attention_heads = keys.size("num_attention_heads")?;
        if hidden_size % num_attention_heads != 0 {
            return Err(keys.bad(
                "num_attention_heads",
                format!("{num_attention_heads} does not divide hidden_size {hidden_size}"),
            ));
        }
        let (rotary_pct, rotary_base) = rotary(&keys)?;
        // transformers truncates here as well
        let rotary_dims = ((hidden_size / num_attention_heads) as f64 * rotary_pct) as i64;
        if rotary_dims < 2 || rotary_dims % 2 != 0 {
            return Err(keys.bad(
                "rotary_pct",
                format!(
                    "{rotary_pct} of a head of {} dimensions is {rotary_dims}, expected an even number from 2",
                    hidden_size / num_attention_heads
                ),
            ));
        }
        let hidden_act = match keys.string("hidden_act")? {
            None => Activation::Gelu,
            Some(name) => Activation::from_name(name)
                .ok_or_else(|| keys.bad("hidden_act", format!("unknown activation `{name}`")))?,
        };
        let vocab_size = keys.size("vocab_size")?;
        let bos_token_id = match keys.tokens("bos_token_id", vocab_size)?[..] {
            [] => None,
            [id] => Some(id),
            _ => return Err(keys.bad("bos_token_id", "expected one token, found several".into())),
        };
        refuse_others(
            &keys,
            hidden_size / num_attention_heads,
            num_attention_heads,
        )?;
        Ok(Self {
            hidden_size,
            intermediate_size: keys.size("intermediate_size")?,
            // at most MAX_SIZE, so it fits
            num_hidden_layers: keys.size("num_hidden_layers")? as usize,
            num_attention_heads,
            vocab_size,
            max_position_embeddings: keys.size("max_position_embeddings")?,
            layer_norm_eps: keys.positive("layer_norm_eps")?.unwrap_or(1e-5),
            hidden_act,
            attention_bias: keys.flag("attention_bias")?.unwrap_or(true),
            use_parallel_residual: keys.flag("use_parallel_residual")?.unwrap_or(true),
            tie_word_embeddings: keys.flag("tie_word_embeddings")?.unwrap_or(false),
            rotary_dims,
            rotary_base,
            bos_token_id,
            eos_token_ids: keys.tokens("eos_token_id", vocab_size)?,
        })
    }

    /// Dimensions per attention head.
    #[must_use]
    pub fn head_size(&self) -> i64 {
        self.hidden_size / self.num_attention_heads
    }
}

/// Refuses keys that would change the numbers and that GPT-NeoX as it is computed here does not have.
fn refuse_others(keys: &Keys<'_>, head_size: i64, heads: i64) -> Result<(), ConfigError> {
    let refused = [
        (
            "quantization_config",
            "quantised weights are not supported: take the checkpoint that they were made from",
        ),
        ("pruned_heads", "pruned attention heads are not supported"),
        ("sliding_window", "a sliding window is not supported"),
    ];
    for (key, problem) in refused {
        if !keys.is_unset(key) {
            return Err(keys.bad(key, problem.into()));
        }
    }
    for (key, implied) in [("head_dim", head_size), ("num_key_value_heads", heads)] {
        if let Some(value) = keys.get(key)
            && value.as_i64() != Some(implied)
        {
            return Err(keys.bad(
                key,
                format!("{value} is not supported, GPT-NeoX has {implied} here"),
            ));
        }
    }
    Ok(())
}

/// Share of a head that is rotated, and the frequency base: `rope_parameters` of transformers 5 (or `rope_scaling`, its older name),
/// `rotary_pct` and `rotary_emb_base`. Two keys that say different things are an error.
fn rotary(keys: &Keys<'_>) -> Result<(f64, f64), ConfigError> {
    let mut found = [
        vec![
            ("rotary_pct", keys.positive("rotary_pct")?),
            (
                "partial_rotary_factor",
                keys.positive("partial_rotary_factor")?,
            ),
        ],
        vec![
            ("rotary_emb_base", keys.positive("rotary_emb_base")?),
            ("rope_theta", keys.positive("rope_theta")?),
        ],
    ];
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(rope) = keys.object(key)? else {
            continue;
        };
        let mut said = false;
        for name in ["rope_type", "type"] {
            if let Some(kind) = rope.string(name)? {
                said = true;
                if kind != "default" {
                    return Err(
                        rope.bad(name, format!("`{kind}` is not supported, only `default`"))
                    );
                }
            }
        }
        let known = ["rope_type", "type", "partial_rotary_factor", "rope_theta"];
        if let Some(other) = rope
            .map
            .keys()
            .find(|name| !said && !known.contains(&name.as_str()) && rope.get(name).is_some())
        {
            return Err(rope.bad(
                other,
                "scaled rotary embeddings are not supported, only `rope_type` `default`".into(),
            ));
        }
        found[0].push((key, rope.positive("partial_rotary_factor")?));
        found[1].push((key, rope.positive("rope_theta")?));
    }
    let mut agreed = [0.25, 10_000.0];
    for (said, agreed) in found.iter().zip(&mut agreed) {
        let mut said = said
            .iter()
            .filter_map(|(key, value)| Some((key, (*value)?)));
        if let Some((first, value)) = said.next() {
            *agreed = value;
            if let Some((other, found)) = said.find(|(_, other)| *other != value) {
                return Err(keys.bad(
                    other,
                    format!("says {found}, but `{first}` says {value}: remove one of them"),
                ));
            }
        }
    }
    let [pct, base] = agreed;
    if pct > 1.0 {
        return Err(keys.bad("rotary_pct", format!("{pct} is above 1")));
    }
    Ok((pct, base))
}

/// Typed look-ups whose errors name the key. `null` counts as absent, as in transformers.
struct Keys<'a> {
    map: &'a Map<String, Value>,
    prefix: &'static str,
}

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn bad(&self, key: &str, problem: String) -> ConfigError {
        ConfigError::Field {
            field: format!("{}{key}", self.prefix),
            problem,
        }
    }

    fn wrong_type(&self, key: &str, expected: &str, found: &Value) -> ConfigError {
        let found: String = found.to_string().chars().take(40).collect();
        self.bad(key, format!("expected {expected}, found `{found}`"))
    }

    fn string(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong_type(key, "a string", other)),
        }
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.wrong_type(key, "true or false", other)),
        }
    }

    fn object(&self, key: &'static str) -> Result<Option<Keys<'a>>, ConfigError> {
        let prefix = match key {
            "rope_scaling" => "rope_scaling.",
            _ => "rope_parameters.",
        };
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Keys { map, prefix })),
            Some(other) => Err(self.wrong_type(key, "an object", other)),
        }
    }

    fn positive(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) if number.is_finite() && number > 0.0 => Ok(Some(number)),
                _ => Err(self.wrong_type(key, "a number above 0", value)),
            },
        }
    }

    fn size(&self, key: &str) -> Result<i64, ConfigError> {
        let value = self
            .get(key)
            .ok_or_else(|| self.bad(key, "missing".into()))?;
        match value.as_i64() {
            Some(size) if (1..=MAX_SIZE).contains(&size) => Ok(size),
            _ => Err(self.wrong_type(key, &format!("a whole number from 1 to {MAX_SIZE}"), value)),
        }
    }

    /// One id or a list of ids; an empty list counts as absent.
    fn tokens(&self, key: &str, vocab_size: i64) -> Result<Vec<i64>, ConfigError> {
        let values = match self.get(key) {
            None => &[][..],
            Some(Value::Array(list)) => list,
            Some(value) => std::slice::from_ref(value),
        };
        let id = |value: &Value| match value.as_i64() {
            Some(id) if (0..vocab_size).contains(&id) => Ok(id),
            _ => Err(self.wrong_type(
                key,
                &format!("a token id below vocab_size {vocab_size}"),
                value,
            )),
        };
        values.iter().map(id).collect()
    }

    /// Nothing at all: absent, null, false, 0, or empty.
    fn is_unset(&self, key: &str) -> bool {
        self.get(key).is_none_or(|value| match value {
            Value::Bool(flag) => !flag,
            Value::Object(map) => map.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Number(number) => number.as_f64() == Some(0.0),
            _ => false,
        })
    }
}
