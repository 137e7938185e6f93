//! The named readings of "mean ablation" and "direct effect", each choice spelled out.

use serde::{Deserialize, Serialize};

/// Every choice in which published code differs. [`Semantics::corrected`] is the default.
///
/// `band` below is the long-tail band; without a band every direction is the all-token one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Semantics {
    /// Which direction mediates frequency for the reported direct effect.
    pub direction: Direction,
    /// What the logits outside the band are when the band direction is frozen.
    pub outside_band: OutsideBand,
    /// Which divergence the `kl_divergence_*` columns hold.
    pub kl: KlDirection,
    /// Over which tokens `kl_divergence_after_frozen_unigram` runs.
    pub frozen_kl: FrozenKl,
    /// Which positions enter the mean activation.
    pub mean_activation: MeanOver,
    /// Whose frequency decides whether a row belongs to the band.
    pub band_token: BandToken,
}

/// The direction along which logits are moved to freeze the frequency mediator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// `log q` minus its mean over all tokens, normalised.
    AllTokens,
    /// The all-token direction with zeros outside the band, renormalised, not re-centred.
    BandMasked,
    /// As `BandMasked`, but with mean zero over the band: adding a constant to the logits changes nothing.
    BandRecentred,
}

/// Logits outside the band in the frozen variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutsideBand {
    /// The ablated ones.
    Ablated,
    /// The clean ones are put back.
    Clean,
}

/// Direction of a Kullback-Leibler divergence between the model and the token frequencies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KlDirection {
    /// `KL(model || freq)`.
    ModelFreq,
    /// `KL(freq || model)`.
    FreqModel,
}

/// The tokens that the divergence of the frozen logits runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FrozenKl {
    /// The full vocabulary.
    Full,
    /// The band: the model renormalised over it, against frequencies that are not.
    BandAgainstRaw,
}

/// The positions that enter the mean activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MeanOver {
    /// Every position, BOS included.
    AllPositions,
    /// Every position but the first of each sequence, where BOS stands. Where BOS also ends texts, as in Pythia, those between packed
    /// texts count, and a sequence that begins without one loses a token of text.
    NotBos,
    /// Every position whose token neither begins nor ends a text, wherever it stands.
    NotBosAnywhere,
}

/// The token of a row whose frequency decides about the band.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BandToken {
    /// The token at the row's position.
    Input,
    /// The token that follows, whose loss the row holds.
    Target,
}

impl Semantics {
    /// Stolfo et al. 2024, *Confidence Regulation Neurons in Language Models* (arXiv 2406.16254).
    pub fn stolfo2024() -> Self {
        Self {
            direction: Direction::AllTokens,
            outside_band: OutsideBand::Ablated,
            kl: KlDirection::FreqModel,
            frozen_kl: FrozenKl::Full,
            mean_activation: MeanOver::AllPositions,
            band_token: BandToken::Input,
        }
    }

    /// The Python package of Liu et al. 2025, *Rare Token Neurons in Language Models* (arXiv 2505.12822).
    pub fn liu2025() -> Self {
        Self {
            direction: Direction::BandMasked,
            outside_band: OutsideBand::Clean,
            kl: KlDirection::ModelFreq,
            frozen_kl: FrozenKl::BandAgainstRaw,
            mean_activation: MeanOver::AllPositions,
            band_token: BandToken::Input,
        }
    }

    /// What this project recommends: see `docs/methods.md`.
    pub fn corrected() -> Self {
        Self {
            direction: Direction::BandRecentred,
            outside_band: OutsideBand::Ablated,
            kl: KlDirection::ModelFreq,
            frozen_kl: FrozenKl::Full,
            mean_activation: MeanOver::NotBos,
            band_token: BandToken::Target,
        }
    }

    /// With another [`direction`](Self::direction).
    #[must_use]
    pub fn with_direction(self, direction: Direction) -> Self {
        Self { direction, ..self }
    }

    /// With another [`outside_band`](Self::outside_band).
    #[must_use]
    pub fn with_outside_band(self, outside_band: OutsideBand) -> Self {
        Self {
            outside_band,
            ..self
        }
    }

    /// With another [`kl`](Self::kl).
    #[must_use]
    pub fn with_kl(self, kl: KlDirection) -> Self {
        Self { kl, ..self }
    }

    /// With another [`frozen_kl`](Self::frozen_kl).
    #[must_use]
    pub fn with_frozen_kl(self, frozen_kl: FrozenKl) -> Self {
        Self { frozen_kl, ..self }
    }

    /// With another [`mean_activation`](Self::mean_activation).
    #[must_use]
    pub fn with_mean_activation(self, mean_activation: MeanOver) -> Self {
        Self {
            mean_activation,
            ..self
        }
    }

    /// With another [`band_token`](Self::band_token).
    #[must_use]
    pub fn with_band_token(self, band_token: BandToken) -> Self {
        Self { band_token, ..self }
    }
}

impl Default for Semantics {
    fn default() -> Self {
        Self::corrected()
    }
}
