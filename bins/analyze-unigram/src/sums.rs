//! The table of sums per neuron, document and stratum that ablate-unigram writes.

use anyhow::{Context, bail};
use job_kit::{Columns, TableReader};
use neuron_select::{RowSums, Stratum, Tally};

use crate::ids::numbered;

/// Its name.
pub(crate) const FILE: &str = "sums.parquet";

/// The column of the document, where it is known.
pub(crate) const DOCUMENT: &str = "document";

const STRATUM: &str = "stratum";
/// Columns that are there where they were measured.
const FROZEN: [&str; 2] = ["frozen_ln_loss_abs_change", "frozen_all_loss_abs_change"];

/// Whether a table is one of sums.
pub(crate) fn are_in(table: &TableReader) -> bool {
    table.has(STRATUM) && table.has("activation_change_squared")
}

/// The sums of all neurons.
pub(crate) fn read(table: &TableReader) -> anyhow::Result<Tally> {
    let cluster = match table.has(DOCUMENT) {
        true => DOCUMENT,
        false => "batch",
    };
    let floats = [
        "rows",
        "loss_change",
        "loss_abs_change",
        "frozen_loss_change",
        "frozen_loss_abs_change",
        "kl_change",
        "kl_abs_change",
        "activation",
        "activation_change_squared",
        "active_rows",
        "active_loss",
    ];
    let frozen = FROZEN.map(|column| table.has(column));
    let mut columns = [&["layer", "neuron", cluster, STRATUM], &floats[..]].concat();
    columns.extend(FROZEN.into_iter().filter(|column| table.has(column)));
    let mut tally = Tally::default();
    for batch in table.batches(&columns)? {
        add(&mut tally, &batch?, cluster, frozen)
            .with_context(|| format!("failed to read `{}`", table.path().display()))?;
    }
    if tally.rows() == 0 {
        bail!("the table `{}` has no rows", table.path().display());
    }
    Ok(tally)
}

fn add(
    tally: &mut Tally,
    batch: &Columns,
    cluster: &str,
    measured: [bool; 2],
) -> anyhow::Result<()> {
    let neurons = numbered(&batch.i64("layer")?, &batch.i64("neuron")?)?;
    let (clusters, strata) = (batch.i64(cluster)?, batch.text(STRATUM)?);
    let of = |column: &str| batch.f64(column);
    let rows = of("rows")?;
    let (loss, loss_abs) = (of("loss_change")?, of("loss_abs_change")?);
    let (frozen, frozen_abs) = (of("frozen_loss_change")?, of("frozen_loss_abs_change")?);
    let (kl, kl_abs) = (of("kl_change")?, of("kl_abs_change")?);
    let (activation, change) = (of("activation")?, of("activation_change_squared")?);
    let (active_rows, active_loss) = (of("active_rows")?, of("active_loss")?);
    let under = |place: usize| measured[place].then(|| of(FROZEN[place])).transpose();
    let (frozen_ln, frozen_all) = (under(0)?, under(1)?);
    for i in 0..neurons.len() {
        let stratum = Stratum::ALL.into_iter().find(|s| s.name() == strata[i]);
        let stratum = stratum.with_context(|| {
            format!(
                "column `{STRATUM}` has `{}`, expected `{}`",
                strata[i],
                Stratum::ALL.map(Stratum::name).join("`, `")
            )
        })?;
        let sums = RowSums {
            rows: rows[i],
            loss_change: loss[i],
            loss_abs_change: loss_abs[i],
            frozen_loss_change: frozen[i],
            frozen_loss_abs_change: frozen_abs[i],
            frozen_ln_loss_abs_change: frozen_ln.as_ref().map_or(0.0, |sums| sums[i]),
            frozen_ln_rows: frozen_ln.as_ref().map_or(0.0, |_| rows[i]),
            frozen_all_loss_abs_change: frozen_all.as_ref().map_or(0.0, |sums| sums[i]),
            frozen_all_rows: frozen_all.as_ref().map_or(0.0, |_| rows[i]),
            kl_change: kl[i],
            kl_abs_change: kl_abs[i],
            activation: activation[i],
            activation_change_squared: change[i],
            activation_change_rows: rows[i],
            active_rows: active_rows[i],
            active_loss: active_loss[i],
        };
        tally.add_sums(neurons[i], clusters[i], stratum, &sums)?;
    }
    Ok(())
}
