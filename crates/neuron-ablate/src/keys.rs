//! What the values of a pair are, and where each stands: the one place that knows their order and their names.

use crate::{AblateError, KlDirection, Measure, TokenBand, Variant, outcome::Measures};

/// The variants and measures of a sweep, in the order of the values of a pair: `[variant][measure]`.
#[derive(Debug)]
pub(crate) struct EffectKeys {
    variants: Vec<Variant>,
    measures: Vec<Measure>,
    /// Names of the bands.
    bands: Vec<String>,
}

impl EffectKeys {
    pub(crate) fn new(variants: Vec<Variant>, measures: &Measures, bands: &[TokenBand]) -> Self {
        Self {
            variants,
            measures: measures.in_order(),
            bands: bands.iter().map(|band| band.name().to_owned()).collect(),
        }
    }

    pub(crate) fn variants(&self) -> &[Variant] {
        &self.variants
    }

    pub(crate) fn measures(&self) -> &[Measure] {
        &self.measures
    }

    /// How many bands there are.
    pub(crate) fn bands(&self) -> usize {
        self.bands.len()
    }

    /// Values of a pair.
    pub(crate) fn len(&self) -> usize {
        self.variants.len() * self.measures.len()
    }

    /// Place of a variant among the variants.
    pub(crate) fn variant(&self, variant: Variant) -> Result<usize, AblateError> {
        self.variants
            .iter()
            .position(|v| *v == variant)
            .ok_or_else(|| AblateError::NotMeasured {
                what: format!("the variant `{variant:?}`"),
                measured: format!("the variants {:?}", self.variants),
            })
    }

    /// Place of a measure among those of a variant, or of clean logits.
    pub(crate) fn measure(&self, measure: Measure) -> Result<usize, AblateError> {
        self.measures
            .iter()
            .position(|m| *m == measure)
            .ok_or_else(|| AblateError::NotMeasured {
                what: format!("the measure `{measure:?}`"),
                measured: format!("the measures {:?}", self.measures),
            })
    }

    /// Place of a measure under a variant among the values of a pair.
    pub(crate) fn place(&self, variant: Variant, measure: Measure) -> Result<usize, AblateError> {
        Ok(self.variant(variant)? * self.measures.len() + self.measure(measure)?)
    }

    pub(crate) fn variant_name(&self, variant: Variant) -> Result<String, AblateError> {
        Ok(match variant {
            Variant::Total => "total".into(),
            Variant::FrozenLn => "frozen_ln".into(),
            Variant::FrozenAll => "frozen_all".into(),
            Variant::FrozenBand(band) => format!("frozen_{}", self.band(band)?),
        })
    }

    pub(crate) fn measure_name(&self, measure: Measure) -> Result<String, AblateError> {
        let kl = |direction| match direction {
            KlDirection::ModelFreq => "kl_model_freq",
            KlDirection::FreqModel => "kl_freq_model",
        };
        Ok(match measure {
            Measure::Loss => "loss".into(),
            Measure::Entropy => "entropy".into(),
            Measure::Kl(direction) => kl(direction).into(),
            Measure::BandKl(band, direction) => {
                format!("{}_{}", kl(direction), self.band(band)?)
            }
        })
    }

    /// The name of a band, by its place.
    pub(crate) fn band(&self, band: usize) -> Result<&str, AblateError> {
        let name = self.bands.get(band).map(String::as_str);
        name.ok_or_else(|| AblateError::NotMeasured {
            what: format!("band {band} (counted from 0)"),
            measured: format!("the bands {:?}", self.bands),
        })
    }
}
