//! Bounds of the long-tail band.

use job_kit::{Rule, config::When};
use longtail_corpus::{BandReading, BandSpec, Bound};
use serde::{Deserialize, Serialize};

/// Bounds of the long-tail band, with the keys that they have in any job.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BandConfig {
    /// One bound.
    pub lower: Option<Bound>,
    /// The other bound.
    pub upper: Option<Bound>,
    /// Ranks in the sliding window of the Python package's elbow.
    #[serde(default)]
    pub window: Option<usize>,
    /// How the bounds are read, in a job that takes no other reading; elsewhere it is a setting of the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reading: Option<BandReading>,
}

impl BandConfig {
    /// The rules of a band in a job whose own setting says how bounds are read; `corrected` tells whether as `corrected`.
    pub fn rules(corrected: When) -> Vec<Rule> {
        let mut rules = Self::rules_of_window(corrected);
        rules.push(Rule::unused(
            "reading",
            |_, _| true,
            "in this job another key says how the bounds of bands are read (`band_reading`, `semantics.band_reading`, `scaling.band_reading`)",
        ));
        rules
    }

    /// The rules of a band that says itself how its bounds are read.
    pub fn rules_with_reading() -> Vec<Rule> {
        Self::rules_of_window(|_, band| band["reading"] != "liu2025")
    }

    fn rules_of_window(corrected: When) -> Vec<Rule> {
        vec![
            Rule::unused(
                "window",
                corrected,
                "only the reading `liu2025` finds the elbow with a window",
            ),
            Rule::unused(
                "window",
                |_, band| band["lower"] != "elbow" && band["upper"] != "elbow",
                "no bound of the band is `elbow`",
            ),
        ]
    }

    /// Whether it is a band: with neither bound it is not.
    pub fn has_bounds(&self) -> bool {
        self.lower.is_some() || self.upper.is_some()
    }

    /// Its bounds in words, such as `band elbow to 20 %`, for the header of a figure.
    pub fn in_words(&self) -> String {
        let bound = |bound: Option<Bound>| match bound {
            None => "open".to_owned(),
            Some(Bound::RankPercentile(percent)) => format!("{percent} %"),
            Some(Bound::Frequency(q)) => format!("frequency {q:e}"),
            Some(Bound::Rank(rank)) => format!("rank {rank}"),
            Some(other) => other.to_string(),
        };
        format!("band {} to {}", bound(self.lower), bound(self.upper))
    }

    /// The band as `longtail-corpus` looks for it.
    pub fn spec(&self, reading: BandReading) -> BandSpec {
        BandSpec::default()
            .with_lower(self.lower)
            .with_upper(self.upper)
            .with_window(self.window)
            .with_reading(reading)
    }
}
