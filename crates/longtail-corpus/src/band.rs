//! Frequency bands of the vocabulary: which tokens count as the long tail.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    Frequencies,
    elbow::{self, Elbow},
    zipf::{RankCurve, ZipfFit},
};

/// Fewest tokens among which a band makes sense.
const MIN_TOKENS: usize = 10;

/// Tokens below which a band is too small to stand for a long tail.
const FEW_TOKENS: usize = 10;

/// How a bound is written.
const EXPECTED: &str = "`elbow`, `percentile:20` (or 20), `rank:48064` or `frequency:1e-6`";

/// Why a band could not be found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BandError {
    /// A bound that cannot be parsed.
    #[error("`{found}` is not a band bound: expected {EXPECTED}")]
    Bound {
        /// The text.
        found: String,
    },
    /// A bare number that could be a percentile or a frequency.
    #[error(
        "{found} could be a percentile or a frequency: write `{{frequency: {found}}}` or `{{percentile: {found}}}`"
    )]
    Ambiguous {
        /// The number.
        found: String,
    },
    /// A bound out of its range.
    #[error("band bound `{bound}` is out of range: {what}")]
    Range {
        /// The bound.
        bound: Bound,
        /// The range.
        what: String,
    },
    /// Too small a vocabulary.
    #[error("a band needs at least {MIN_TOKENS} tokens, found {found}")]
    TooFewTokens {
        /// Tokens with a frequency.
        found: usize,
    },
    /// More tokens than frequencies.
    #[error("the tokenizer has {n_tokens} tokens, but there are frequencies for {d_vocab}")]
    Vocabulary {
        /// Tokens of the tokenizer.
        n_tokens: usize,
        /// Frequencies.
        d_vocab: usize,
    },
    /// The curve has no break.
    #[error("no elbow found: {tried}; give the bound as a percentile, rank or frequency")]
    NoElbow {
        /// What was tried.
        tried: String,
    },
    /// No token lies between the bounds.
    #[error("the band from {min_frequency:.4e} to {max_frequency:.4e} holds no token")]
    Empty {
        /// Lower bound.
        min_frequency: f64,
        /// Upper bound.
        max_frequency: f64,
    },
}

/// One end of a band.
///
/// As text: `elbow`, `percentile:20` or just `20`, `rank:48064`, `frequency:1e-6`; as a mapping `{frequency: 1e-6}` and so on. A bare number
/// is a percentile, except between 0 and 1, where it could be meant as a frequency and is refused.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Bound {
    /// A relative frequency.
    Frequency(f64),
    /// Rank percentile from the most frequent, 0 to 100: 20 is the frequency below which the rarer 80 % of the tokens lie. Note that the
    /// band from 0 to 50 holds the *commonest* half.
    RankPercentile(f64),
    /// A rank; 1 is the most frequent token.
    Rank(usize),
    /// Where the rank-frequency curve falls off.
    Elbow,
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frequency(q) => write!(f, "frequency:{q:e}"),
            Self::RankPercentile(p) => write!(f, "percentile:{p}"),
            Self::Rank(rank) => write!(f, "rank:{rank}"),
            Self::Elbow => write!(f, "elbow"),
        }
    }
}

impl Bound {
    /// What a number without a name means.
    fn bare(number: f64) -> Result<Self, BandError> {
        if number > 0.0 && number < 1.0 {
            let found = number.to_string();
            let short = format!("{number:e}");
            return Err(BandError::Ambiguous {
                found: if short.len() < found.len() {
                    short
                } else {
                    found
                },
            });
        }
        Ok(Self::RankPercentile(number))
    }

    /// A number by the name of what it means.
    fn named(name: &str, number: f64) -> Option<Self> {
        match name {
            "percentile" | "percent" => Some(Self::RankPercentile(number)),
            "frequency" => Some(Self::Frequency(number)),
            "rank" if number.fract() == 0.0 && number >= 0.0 => Some(Self::Rank(number as usize)),
            _ => None,
        }
    }
}

impl FromStr for Bound {
    type Err = BandError;

    fn from_str(text: &str) -> Result<Self, BandError> {
        let bad = || BandError::Bound { found: text.into() };
        let number = |digits: &str| {
            digits
                .trim()
                .parse::<f64>()
                .ok()
                .filter(|n| n.is_finite())
                .ok_or_else(bad)
        };
        match text.trim().split_once(':') {
            None if text.trim() == "elbow" => Ok(Self::Elbow),
            None => Self::bare(number(text)?),
            Some((name, value)) => Self::named(name.trim(), number(value)?).ok_or_else(bad),
        }
    }
}

impl<'de> Deserialize<'de> for Bound {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Bound;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(EXPECTED)
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Bound, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_f64<E: serde::de::Error>(self, p: f64) -> Result<Bound, E> {
                Bound::bare(p).map_err(E::custom)
            }
            fn visit_i64<E: serde::de::Error>(self, p: i64) -> Result<Bound, E> {
                self.visit_f64(p as f64)
            }
            fn visit_u64<E: serde::de::Error>(self, p: u64) -> Result<Bound, E> {
                self.visit_f64(p as f64)
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Bound, A::Error> {
                let unknown = || serde::de::Error::custom(format!("expected {EXPECTED}"));
                let (name, number) = map.next_entry::<String, f64>()?.ok_or_else(unknown)?;
                match (Bound::named(&name, number), map.next_key::<String>()?) {
                    (Some(bound), None) => Ok(bound),
                    _ => Err(unknown()),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl Serialize for Bound {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Which tokens are ranked, and how the elbow is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BandReading {
    /// Only tokens that the tokenizer has; the elbow is the break of a two-piece line over the seen tokens.
    #[default]
    Corrected,
    /// As the Python package of Liu et al. (2025): padding rows are ranked too and may fall in the band; the elbow is the start of the
    /// window of ranks after the largest change of slope.
    Liu2025,
}

/// A band, as asked for: a closed interval of frequencies between two bounds, whichever is lower.
///
/// # Examples
/// ```
/// use longtail_corpus::{BandSpec, Bound, Frequencies, TokenCounts};
///
/// // Token `i` is seen `i` times, so the rarest are the first.
/// let counts = TokenCounts::new((0..40).collect(), 40)?;
/// let spec = BandSpec::default().with_upper(Bound::Rank(30));
/// let band = spec.resolve(&Frequencies::add_one(&counts), 40)?;
/// assert_eq!(band.ids, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
/// assert!(band.warnings.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct BandSpec {
    /// One bound; `None` leaves the rare end open.
    pub lower: Option<Bound>,
    /// The other bound; `None` leaves the frequent end open.
    pub upper: Option<Bound>,
    /// Ranks in the sliding window of [`BandReading::Liu2025`]; `None` takes 2,000, or a twentieth of the vocabulary if that is less.
    pub window: Option<usize>,
    /// How ranks and the elbow are read.
    pub reading: BandReading,
}

impl BandSpec {
    /// With another [`lower`](Self::lower).
    #[must_use]
    pub fn with_lower(self, lower: impl Into<Option<Bound>>) -> Self {
        Self {
            lower: lower.into(),
            ..self
        }
    }

    /// With another [`upper`](Self::upper).
    #[must_use]
    pub fn with_upper(self, upper: impl Into<Option<Bound>>) -> Self {
        Self {
            upper: upper.into(),
            ..self
        }
    }

    /// With another [`window`](Self::window).
    #[must_use]
    pub fn with_window(self, window: impl Into<Option<usize>>) -> Self {
        Self {
            window: window.into(),
            ..self
        }
    }

    /// With another [`reading`](Self::reading).
    #[must_use]
    pub fn with_reading(self, reading: BandReading) -> Self {
        Self { reading, ..self }
    }
}

/// A band that was found, with what should be reported of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Band {
    /// Its tokens, ascending.
    #[serde(skip)]
    pub ids: Vec<u32>,
    /// Number of tokens.
    pub tokens: usize,
    /// Lower frequency bound, inclusive.
    pub min_frequency: f64,
    /// Upper frequency bound, inclusive.
    pub max_frequency: f64,
    /// Share of all text that the tokens make up, by `q`.
    pub mass: f64,
    /// Zipf's law over the head of the curve.
    pub zipf: ZipfFit,
    /// The elbow, if a bound asks for it.
    pub elbow: Option<Elbow>,
    /// Ranks on the curve.
    pub ranks: usize,
    /// What is odd about this band.
    pub warnings: Vec<BandWarning>,
}

/// Something to tell the user about a band.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BandWarning {
    /// The band holds most of the probability mass: it is not a long tail.
    MostOfTheMass {
        /// Its share.
        mass: f64,
    },
    /// The band holds a handful of tokens.
    Few {
        /// How many.
        tokens: usize,
    },
    /// Rows past the tokenizer are in the band.
    Padding {
        /// How many.
        rows: usize,
    },
}

impl fmt::Display for BandWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::MostOfTheMass { mass } => write!(
                f,
                "the band holds {:.1} % of all text, so it is not a long tail: percentiles count from the most frequent token, try lower=elbow upper=20",
                mass * 100.0
            ),
            Self::Few { tokens } => write!(
                f,
                "the band holds {tokens} token{}, too few for a long tail: check its bounds",
                if tokens == 1 { "" } else { "s" }
            ),
            Self::Padding { rows } => write!(
                f,
                "the band holds {rows} padding rows, which stand for no token"
            ),
        }
    }
}

impl BandSpec {
    /// Finds the band among the first `n_tokens` token ids; rows past them are padding.
    ///
    /// # Errors
    /// - [`BandError::Vocabulary`], [`BandError::TooFewTokens`] for tokens that cannot be ranked
    /// - [`BandError::Range`] for a percentile, rank or frequency that cannot be
    /// - [`BandError::NoElbow`] if a bound asks for the elbow and the curve has none
    /// - [`BandError::Empty`] if no token lies between the bounds
    pub fn resolve(&self, frequencies: &Frequencies, n_tokens: usize) -> Result<Band, BandError> {
        let q = frequencies.q();
        if n_tokens > q.len() {
            return Err(BandError::Vocabulary {
                n_tokens,
                d_vocab: q.len(),
            });
        }
        let rows = match self.reading {
            BandReading::Corrected => n_tokens,
            BandReading::Liu2025 => q.len(),
        };
        if rows < MIN_TOKENS {
            return Err(BandError::TooFewTokens { found: rows });
        }
        let curve = RankCurve::new(q[..rows].to_vec());
        let wants_elbow = [self.lower, self.upper].contains(&Some(Bound::Elbow));
        let elbow = if wants_elbow {
            Some(self.elbow(&curve, &frequencies.counts()[..rows])?)
        } else {
            None
        };
        let rarest = curve.q()[rows - 1];
        let lower = self
            .lower
            .map_or(Ok(rarest), |bound| frequency(bound, &curve, elbow))?;
        let upper = self
            .upper
            .map_or(Ok(curve.q()[0]), |bound| frequency(bound, &curve, elbow))?;
        let (min_frequency, max_frequency) = (lower.min(upper), lower.max(upper));
        let in_band = |q: f64| min_frequency <= q && q <= max_frequency;
        let ids: Vec<u32> = (0u32..)
            .zip(&q[..rows])
            .filter(|&(_, &q)| in_band(q))
            .map(|(id, _)| id)
            .collect();
        if ids.is_empty() {
            return Err(BandError::Empty {
                min_frequency,
                max_frequency,
            });
        }
        let mass = ids.iter().map(|&id| q[id as usize]).sum();
        let mut warnings = Vec::new();
        if mass > 0.5 {
            warnings.push(BandWarning::MostOfTheMass { mass });
        }
        if ids.len() < FEW_TOKENS {
            warnings.push(BandWarning::Few { tokens: ids.len() });
        }
        let padding = ids.iter().filter(|&&id| id as usize >= n_tokens).count();
        if padding > 0 {
            warnings.push(BandWarning::Padding { rows: padding });
        }
        Ok(Band {
            tokens: ids.len(),
            ids,
            min_frequency,
            max_frequency,
            mass,
            zipf: curve.zipf(),
            elbow,
            ranks: rows,
            warnings,
        })
    }

    fn elbow(&self, curve: &RankCurve, counts: &[u64]) -> Result<Elbow, BandError> {
        match self.reading {
            BandReading::Corrected => {
                let seen = counts.iter().filter(|&&count| count > 0).count();
                elbow::piecewise(&curve.head(seen)).ok_or_else(|| {
                    let tried = format!("a line of two pieces over the {seen} seen tokens fits hardly better than a straight one, or does not steepen");
                    BandError::NoElbow { tried }
                })
            }
            BandReading::Liu2025 => {
                let window = self.window.unwrap_or((curve.len() / 20).min(2000));
                elbow::sliding_window(curve, window).ok_or_else(|| {
                    let tried = format!("no change of slope stands out between windows of {window} ranks in a vocabulary of {} (at least three windows are needed)", curve.len());
                    BandError::NoElbow { tried }
                })
            }
        }
    }
}

fn frequency(bound: Bound, curve: &RankCurve, elbow: Option<Elbow>) -> Result<f64, BandError> {
    let ranks = curve.len();
    let range = |what: String| BandError::Range { bound, what };
    match bound {
        Bound::Frequency(q) if q > 0.0 && q <= 1.0 => Ok(q),
        Bound::Frequency(_) => Err(range("expected above 0 and at most 1".into())),
        Bound::RankPercentile(p) if (0.0..=100.0).contains(&p) => {
            // As the Python package has it: the index is truncated, and 100 means the last rank.
            let index = (ranks as f64 * (p / 100.0)) as usize;
            Ok(curve.q()[index.min(ranks - 1)])
        }
        Bound::RankPercentile(_) => Err(range("expected 0 to 100".into())),
        Bound::Rank(rank) if (1..=ranks).contains(&rank) => Ok(curve.q()[rank - 1]),
        Bound::Rank(_) => Err(range(format!("expected 1 to {ranks}"))),
        Bound::Elbow => elbow
            .map(|elbow| elbow.frequency)
            .ok_or_else(|| BandError::NoElbow {
                tried: "it was not looked for".into(),
            }),
    }
}
