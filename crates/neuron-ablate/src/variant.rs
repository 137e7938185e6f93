//! The ways in which an ablation is read: what responds to it, and what is frozen.

/// How the logits of one ablation are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// Everything responds: the total effect.
    Total,
    /// The final LayerNorm keeps its clean scale.
    FrozenLn,
    /// The projection on the all-token frequency direction keeps its clean value.
    FrozenAll,
    /// The projection on the frequency direction of this band (its place among the bands of the sweep) keeps its clean value.
    FrozenBand(usize),
}

/// Which variants a sweep measures beside the total effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Variants {
    /// [`Variant::FrozenLn`].
    pub frozen_ln: bool,
    /// [`Variant::FrozenAll`].
    pub frozen_all: bool,
    /// [`Variant::FrozenBand`] of every band.
    pub frozen_bands: bool,
}

impl Variants {
    /// The total effect alone.
    pub fn total() -> Self {
        Self {
            frozen_ln: false,
            frozen_all: false,
            frozen_bands: false,
        }
    }

    /// With another [`frozen_ln`](Self::frozen_ln).
    #[must_use]
    pub fn with_frozen_ln(self, frozen_ln: bool) -> Self {
        Self { frozen_ln, ..self }
    }

    /// With another [`frozen_all`](Self::frozen_all).
    #[must_use]
    pub fn with_frozen_all(self, frozen_all: bool) -> Self {
        Self { frozen_all, ..self }
    }

    /// With another [`frozen_bands`](Self::frozen_bands).
    #[must_use]
    pub fn with_frozen_bands(self, frozen_bands: bool) -> Self {
        Self {
            frozen_bands,
            ..self
        }
    }
}

impl Default for Variants {
    /// All of them.
    fn default() -> Self {
        Self {
            frozen_ln: true,
            frozen_all: true,
            frozen_bands: true,
        }
    }
}
