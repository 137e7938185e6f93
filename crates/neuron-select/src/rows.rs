//! Which rows count.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How frequent the token is that a row is filed under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stratum {
    /// In the long-tail band.
    LongTail,
    /// More frequent than the band.
    Common,
    /// Less frequent than the band: in neither of the two.
    Rarer,
}

impl Stratum {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::LongTail, Self::Common, Self::Rarer];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::LongTail => "long-tail",
            Self::Common => "common",
            Self::Rarer => "rarer",
        }
    }

    /// The stratum of a frequency, for a band closed at both ends.
    pub fn of(frequency: f64, min_frequency: f64, max_frequency: f64) -> Self {
        if frequency > max_frequency {
            Self::Common
        } else if frequency < min_frequency {
            Self::Rarer
        } else {
            Self::LongTail
        }
    }
}

/// Which rows enter the means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RowFilter {
    /// Rows of the long-tail band.
    LongTail,
    /// Rows more frequent than the band.
    Common,
    /// Every row.
    #[default]
    None,
}

impl RowFilter {
    pub(crate) fn keeps(self) -> &'static [Stratum] {
        match self {
            Self::LongTail => &[Stratum::LongTail],
            Self::Common => &[Stratum::Common],
            Self::None => &[Stratum::LongTail, Stratum::Common, Stratum::Rarer],
        }
    }
}

impl fmt::Display for RowFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LongTail => "long-tail",
            Self::Common => "common",
            Self::None => "of any frequency",
        })
    }
}
