//! Bounds of the long-tail band.

use job_kit::{Rule, config::When};
use longtail_corpus::{BandReading, BandSpec, Bound};
use serde::{Deserialize, Serialize};

/// Bounds of the long-tail band; how they are read is a setting of the job.
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
}

impl BandConfig {
    /// The rules of a band, where `corrected` tells whether bounds are read as `corrected`.
    pub fn rules(corrected: When) -> Vec<Rule> {
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

    /// Its bounds in words, such as `band elbow to 20`, for the header of a figure.
    pub fn in_words(&self) -> String {
        let bound = |bound: Option<Bound>| bound.map_or("open".to_owned(), |b| b.to_string());
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
