//! Named places in the forward pass where a value can be observed or replaced.

use std::{collections::HashMap, error::Error, fmt};

use tch::Tensor;

use crate::{config::Architecture, error::ForwardError};

/// A hook site. Block sites carry the index of the block, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Site {
    /// Residual stream before a block: `[batch, pos, d_model]`.
    ResidPre(usize),
    /// Residual stream plus the attention output, before the MLP output is added:
    /// `[batch, pos, d_model]`. With a parallel residual the MLP does not read it, but a
    /// replacement still flows into [`Site::ResidPost`].
    ResidMid(usize),
    /// Residual stream after a block: `[batch, pos, d_model]`.
    ResidPost(usize),
    /// Attention weights after the softmax: `[batch, heads, query_pos, key_pos]`. Asking for it
    /// trades the fused attention kernel for explicit matrices.
    Pattern(usize),
    /// Outputs of the attention heads, one beside the other, which the output projection reads:
    /// `[batch, pos, heads * d_head]`; head `h` has the values from `h * d_head` on.
    HeadOut(usize),
    /// What the activation function of the MLP reads (in a gated MLP, the gate): `[batch, pos, d_mlp]`.
    MlpPre(usize),
    /// What the activation is multiplied by; only gated MLPs have it: `[batch, pos, d_mlp]`.
    MlpUp(usize),
    /// Neuron activations, which the MLP's output projection reads: after the activation function, and
    /// multiplied by [`Site::MlpUp`] in a gated MLP. `[batch, pos, d_mlp]`.
    MlpPost(usize),
    /// What the final norm divides by, `sqrt(var + eps)` or `sqrt(mean of squares + eps)`: `[batch, pos, 1]`.
    LnFinalScale,
    /// Logits, not centred: `[batch, pos, vocab]`.
    Logits,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ResidPre(layer) => write!(f, "blocks.{layer}.resid_pre"),
            Self::ResidMid(layer) => write!(f, "blocks.{layer}.resid_mid"),
            Self::ResidPost(layer) => write!(f, "blocks.{layer}.resid_post"),
            Self::Pattern(layer) => write!(f, "blocks.{layer}.attention.pattern"),
            Self::HeadOut(layer) => write!(f, "blocks.{layer}.attention.z"),
            Self::MlpPre(layer) => write!(f, "blocks.{layer}.mlp.pre"),
            Self::MlpUp(layer) => write!(f, "blocks.{layer}.mlp.up"),
            Self::MlpPost(layer) => write!(f, "blocks.{layer}.mlp.post"),
            Self::LnFinalScale => f.write_str("ln_final.scale"),
            Self::Logits => f.write_str("logits"),
        }
    }
}

impl Site {
    /// The block that it is in; none for the sites behind the last block.
    pub fn layer(self) -> Option<usize> {
        match self {
            Self::ResidPre(layer)
            | Self::ResidMid(layer)
            | Self::ResidPost(layer)
            | Self::Pattern(layer)
            | Self::HeadOut(layer)
            | Self::MlpPre(layer)
            | Self::MlpUp(layer)
            | Self::MlpPost(layer) => Some(layer),
            Self::LnFinalScale | Self::Logits => None,
        }
    }

    /// Whether a model has it.
    pub(crate) fn is_in(self, model: &Architecture) -> bool {
        let there = self
            .layer()
            .is_none_or(|layer| layer < model.num_hidden_layers);
        there && (model.gated_mlp || !matches!(self, Self::MlpUp(_)))
    }
}

/// Any error that a hook stops a forward pass with; `?` makes it of libtorch's, of one's own, and of text.
pub type HookError = Box<dyn Error + Send + Sync>;

/// Sees the forward pass at the sites it asks for.
///
/// A site that is not wanted costs one call of [`Hooks::wants`]; nothing is computed for it.
///
/// # Examples
/// Keep the neuron activations of block 3 and set neuron 7 to zero there:
/// ```
/// use neox_core::{HookError, Hooks, Site};
/// use tch::Tensor;
///
/// #[derive(Default)]
/// struct Silence { seen: Option<Tensor> }
///
/// impl Hooks for Silence {
///     fn wants(&self, site: Site) -> bool {
///         site == Site::MlpPost(3)
///     }
///     fn at(&mut self, _: Site, value: Tensor) -> Result<Tensor, HookError> {
///         let changed = value.f_detach_copy()?; // what was seen stays as it was
///         self.seen = Some(value);
///         let _ = changed.f_select(-1, 7)?.f_zero_()?;
///         Ok(changed)
///     }
/// }
/// ```
pub trait Hooks {
    /// Whether [`Hooks::at`] is to be called for `site`.
    fn wants(&self, site: Site) -> bool;

    /// Takes the value at `site` and returns what the pass goes on with: `value` itself to only
    /// observe, or a tensor of the same shape and dtype.
    ///
    /// # Errors
    /// - whatever libtorch or the hook itself reports; the forward pass stops with it, as the source of [`ForwardError::HookFailed`]
    fn at(&mut self, site: Site, value: Tensor) -> Result<Tensor, HookError>;

    /// The sites, where they are known before: a pass through a model that lacks one of them is an error then, not a hook that is never called.
    fn sites(&self) -> Option<&[Site]> {
        None
    }
}

/// Keeps the values at some sites.
///
/// # Examples
/// ```
/// use neox_core::{LoadOptions, Model, Recorder, Site};
/// use tch::Tensor;
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data/tiny-neox/step4000");
/// # if !std::path::Path::new(folder).exists() { return Ok(()); } // the crate without its repository
/// let model = Model::load(folder.as_ref(), &LoadOptions::default())?;
/// let mut recorder = Recorder::new([Site::MlpPost(3)]);
/// model.forward(&Tensor::from_slice(&[5i64, 9, 2]).view([1, 3]), None, &mut recorder)?;
/// let activations = recorder.take(Site::MlpPost(3)).expect("it was asked for");
/// assert_eq!(activations.size(), [1, 3, 256]);
///
/// let error = model.forward(&Tensor::from_slice(&[5i64]).view([1, 1]), None, &mut Recorder::new([Site::MlpPost(4)]));
/// assert_eq!(error.unwrap_err().to_string(), "the model has no blocks.4.mlp.post: its blocks are 0 to 3");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Recorder {
    sites: Vec<Site>,
    seen: HashMap<Site, Tensor>,
}

impl Recorder {
    /// Keeps nothing yet.
    pub fn new(sites: impl IntoIterator<Item = Site>) -> Self {
        Self {
            sites: sites.into_iter().collect(),
            seen: HashMap::new(),
        }
    }

    /// Takes the value that the last pass had at `site`; none if there was no pass since it was taken, or it was not asked for.
    pub fn take(&mut self, site: Site) -> Option<Tensor> {
        self.seen.remove(&site)
    }
}

impl Hooks for Recorder {
    fn wants(&self, site: Site) -> bool {
        self.sites.contains(&site)
    }

    fn at(&mut self, site: Site, value: Tensor) -> Result<Tensor, HookError> {
        self.seen.insert(site, value.shallow_clone());
        Ok(value)
    }

    fn sites(&self) -> Option<&[Site]> {
        Some(&self.sites)
    }
}

/// No hook at all.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHooks;

impl Hooks for NoHooks {
    fn wants(&self, _: Site) -> bool {
        false
    }

    fn at(&mut self, _: Site, value: Tensor) -> Result<Tensor, HookError> {
        Ok(value)
    }
}

/// Passes `value` through the hook if it wants the site, and checks what comes back.
pub(crate) fn visit(
    hooks: &mut dyn Hooks,
    site: Site,
    value: Tensor,
) -> Result<Tensor, ForwardError> {
    if !hooks.wants(site) {
        return Ok(value);
    }
    let (size, kind) = (value.size(), value.f_kind()?);
    let changed = hooks.at(site, value);
    let changed = changed.map_err(|source| ForwardError::HookFailed { site, source })?;
    if changed.size() != size || changed.f_kind()? != kind {
        return Err(ForwardError::Hook {
            site,
            expected: (size, kind),
            found: (changed.size(), changed.f_kind()?),
        });
    }
    Ok(changed)
}
