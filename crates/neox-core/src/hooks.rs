//! What sees the forward pass at its sites, and may replace values there.

use std::collections::HashMap;

use tch::Tensor;

use crate::{
    error::{ForwardError, HookError},
    site::Site,
};

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
