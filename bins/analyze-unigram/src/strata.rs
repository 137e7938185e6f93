//! Filing rows as long-tail, common or neither.

use std::path::Path;

use anyhow::{Context, bail};
use job_kit::{Columns, TableReader, WithHint, sha256_file};
use longtail_corpus::{Frequencies, TokenCounts};
use neuron_select::{RowFilter, Stratum};
use serde_json::Value;

use crate::config::{AnalyzeConfig, BandConfig, RowToken};

/// Says of a row whether it is rarer than the band.
const RARER: &str = "rarer_than_band";

/// How the rows of one table are filed.
#[derive(Debug)]
pub(crate) enum Strata {
    /// By the frequency of a token.
    Frequency {
        column: &'static str,
        q: Vec<f64>,
        band: BandConfig,
        /// Why the frozen losses of the table are of another band than this one, if they are.
        frozen_otherwise: Option<String>,
    },
    /// By the table's own columns.
    InBand {
        /// Whether it tells rarer rows from common ones; tables of earlier versions do not, and everything out of the band counts as common.
        rarer: bool,
    },
    /// Not at all.
    Unknown,
}

impl Strata {
    /// Finds out what the table and the configuration allow. `run` is the `run.json` of the ablation, if there is one.
    pub(crate) fn new(
        config: &AnalyzeConfig,
        table: &TableReader,
        run: Option<&Value>,
    ) -> anyhow::Result<Self> {
        let run_token = run.and_then(band_token);
        if let Some(frequency) = &config.frequency {
            let noted = |name: &str| {
                run.and_then(|run| run.pointer("/notes/band"))
                    .and_then(|band| band.get(name)?.as_f64())
            };
            let from_run = || {
                Some(BandConfig {
                    min_frequency: noted("min_frequency")?,
                    max_frequency: noted("max_frequency")?,
                })
            };
            let band = config.band.or_else(from_run).with_context(|| {
                format!(
                    "no band to file the rows of `{}` by",
                    table.path().display()
                )
            });
            let band = band.hint("set band.min_frequency and band.max_frequency, or leave `frequency` out to use the column `in_band`")?;
            let token = config.selection.filed_by.or(match run_token {
                Some("input") => Some(RowToken::Input),
                Some("target") => Some(RowToken::Target),
                _ => None,
            });
            let token = token
                .context("cannot tell whose frequency files a row")
                .hint("set selection.filed_by to `input` or `target`")?;
            let column = match token {
                RowToken::Input => "token_id",
                RowToken::Target => "target_id",
            };
            let counts = match frequency.d_vocab {
                Some(d_vocab) => TokenCounts::read(&frequency.counts, d_vocab)?,
                None => TokenCounts::read_unpadded(&frequency.counts)?,
            };
            return Ok(Self::Frequency {
                column,
                q: Frequencies::add_one(&counts).q().to_vec(),
                band,
                frozen_otherwise: run
                    .map(|run| frozen_otherwise(run, &frequency.counts, band))
                    .transpose()?
                    .flatten(),
            });
        }
        if table.has("in_band") {
            filed_as_asked(config, table, run_token)?;
            return Ok(Self::InBand {
                rarer: table.has(RARER),
            });
        }
        match config.selection.rows {
            RowFilter::None => Ok(Self::Unknown),
            RowFilter::LongTail | RowFilter::Common => {
                Err(anyhow::anyhow!("the table `{}` does not say which rows are rare", table.path().display())).hint(
                    "set frequency.counts, band.min_frequency, band.max_frequency and selection.filed_by, or selection.rows=none",
                )
            }
        }
    }

    /// Of a table of sums, whose rows are filed for good.
    pub(crate) fn of_sums(
        config: &AnalyzeConfig,
        table: &TableReader,
        run: Option<&Value>,
    ) -> anyhow::Result<Self> {
        if config.frequency.is_some() {
            return Err(anyhow::anyhow!(
                "`{}` holds sums of rows, which cannot be filed anew by `frequency` and `band`",
                table.path().display()
            ))
            .hint("ablate with `output.positions=on`, or with that band, or leave `frequency` and `band` out");
        }
        filed_as_asked(config, table, run.and_then(band_token))?;
        Ok(Self::InBand { rarer: true })
    }

    /// The band that rows are filed anew by, and by which token.
    pub(crate) fn band(&self) -> Option<(BandConfig, &'static str)> {
        match self {
            Self::Frequency { column, band, .. } => Some((
                *band,
                match *column {
                    "token_id" => "input",
                    _ => "target",
                },
            )),
            Self::InBand { .. } | Self::Unknown => None,
        }
    }

    /// Whether rows are filed as the ablation did.
    pub(crate) fn of_the_ablation(&self) -> bool {
        matches!(self, Self::InBand { .. })
    }

    /// The columns needed.
    pub(crate) fn columns(&self) -> Vec<&'static str> {
        match self {
            Self::Frequency { column, .. } => vec![column],
            Self::InBand { rarer: true } => vec!["in_band", RARER],
            Self::InBand { rarer: false } => vec!["in_band"],
            Self::Unknown => vec![],
        }
    }

    /// Why the direct effects that the table holds are not those of the band that files its rows; none where they are.
    pub(crate) fn frozen_otherwise(&self) -> Option<&str> {
        match self {
            Self::Frequency {
                frozen_otherwise, ..
            } => frozen_otherwise.as_deref(),
            Self::InBand { .. } | Self::Unknown => None,
        }
    }

    /// Whether rows can be told apart.
    pub(crate) fn known(&self) -> bool {
        !matches!(self, Self::Unknown)
    }

    /// The stratum of each row.
    pub(crate) fn of(&self, rows: &Columns) -> anyhow::Result<Vec<Stratum>> {
        match self {
            Self::Frequency {
                column, q, band, ..
            } => {
                let stratum = |id: i64| match usize::try_from(id).ok().and_then(|id| q.get(id)) {
                    Some(&q) => Ok(Stratum::of(q, band.min_frequency, band.max_frequency)),
                    None => bail!(
                        "`{column}` holds token {id}, but there are counts for {} tokens: set frequency.d_vocab",
                        q.len()
                    ),
                };
                rows.i64(column)?.into_iter().map(stratum).collect()
            }
            Self::InBand { rarer } => {
                let in_band = rows.bool("in_band")?;
                let rarer = match rarer {
                    true => rows.bool(RARER)?,
                    false => vec![false; in_band.len()],
                };
                let stratum = |(in_band, rarer)| match (in_band, rarer) {
                    (true, _) => Stratum::LongTail,
                    (false, true) => Stratum::Rarer,
                    (false, false) => Stratum::Common,
                };
                Ok(in_band.into_iter().zip(rarer).map(stratum).collect())
            }
            Self::Unknown => Ok(vec![Stratum::Rarer; rows.rows()]),
        }
    }
}

/// The token that an ablation files rows by, `input` or `target`.
fn band_token(run: &Value) -> Option<&str> {
    run.pointer("/config/semantics/band_token")?.as_str()
}

/// Refuses a table whose rows are filed by the other token.
fn filed_as_asked(
    config: &AnalyzeConfig,
    table: &TableReader,
    found: Option<&str>,
) -> anyhow::Result<()> {
    match (config.selection.filed_by, found) {
        (Some(wanted), Some(found)) if wanted.name() != found => {
            Err(anyhow::anyhow!("the table `{}` files rows by the {found} token, but selection.filed_by is `{}`", table.path().display(), wanted.name()))
                .hint("set frequency.counts to file the rows of a table of positions anew, or leave selection.filed_by out")
        }
        _ => Ok(()),
    }
}

/// Why an ablation froze the frequency direction of another band, if it did: direct effects are defined by the band whose direction is
/// frozen, unless that is the direction of all tokens.
fn frozen_otherwise(
    run: &Value,
    counts: &Path,
    band: BandConfig,
) -> anyhow::Result<Option<String>> {
    let of_all_tokens = run
        .pointer("/config/semantics/direction")
        .and_then(Value::as_str)
        .is_none_or(|direction| direction == "all-tokens");
    let bound = |name: &str| run.pointer("/notes/band")?.get(name)?.as_f64();
    let (Some(min), Some(max), false) = (
        bound("min_frequency"),
        bound("max_frequency"),
        of_all_tokens,
    ) else {
        return Ok(None);
    };
    let same = |a: f64, b: f64| (a - b).abs() <= 1e-9 * a.abs().max(b.abs());
    if !same(min, band.min_frequency) || !same(max, band.max_frequency) {
        return Ok(Some(format!(
            "the ablation froze the frequency direction of the band from {min:e} to {max:e}, and rows are filed by the band from {:e} to {:e}",
            band.min_frequency, band.max_frequency
        )));
    }
    let frozen_by = run
        .pointer("/config/frequency/counts")
        .and_then(Value::as_str)
        .and_then(|path| run.get("inputs")?.get(path)?.get("sha256")?.as_str());
    match frozen_by {
        Some(hash) if sha256_file(counts)?.0 != hash => Ok(Some(format!(
            "the ablation froze the frequency direction of other token counts than `{}`",
            counts.display()
        ))),
        _ => Ok(None),
    }
}
