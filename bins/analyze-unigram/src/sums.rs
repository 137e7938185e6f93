//! The table of sums per neuron, document and stratum that ablate-unigram writes.

use anyhow::{Context, bail};
use job_kit::{Columns, TableReader};
use neuron_select::{RowSums, Stratum, SumColumn, Tally};

use crate::ids::numbered;

/// Whether a table is one of sums.
pub(crate) fn are_in(table: &TableReader) -> bool {
    table.has(RowSums::STRATUM) && table.has("activation_change_squared")
}

/// The column of the clusters: sequences of one document are one.
pub(crate) fn cluster_column(table: &TableReader) -> &'static str {
    match table.has(RowSums::DOCUMENT) {
        true => RowSums::DOCUMENT,
        false => RowSums::SEQUENCE,
    }
}

/// The sums of all neurons.
pub(crate) fn read(table: &TableReader) -> anyhow::Result<Tally> {
    let cluster = cluster_column(table);
    let measured = |column: &SumColumn| !RowSums::FROZEN.contains(&column.0) || table.has(column.0);
    let sums: Vec<SumColumn> = RowSums::COLUMNS.into_iter().filter(measured).collect();
    let mut columns = vec!["layer", "neuron", cluster, RowSums::STRATUM, RowSums::ROWS];
    columns.extend(sums.iter().map(|(column, _)| *column));
    let mut tally = Tally::default();
    for batch in table.batches(&columns)? {
        add(&mut tally, &batch?, cluster, &sums)
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
    columns: &[SumColumn],
) -> anyhow::Result<()> {
    let neurons = numbered(&batch.i64("layer")?, &batch.i64("neuron")?)?;
    let (clusters, strata) = (batch.i64(cluster)?, batch.text(RowSums::STRATUM)?);
    let [frozen_ln, frozen_all] =
        RowSums::FROZEN.map(|frozen| columns.iter().any(|(column, _)| *column == frozen));
    let with_rows = |rows: f64| RowSums {
        rows,
        frozen_ln_rows: if frozen_ln { rows } else { 0.0 },
        frozen_all_rows: if frozen_all { rows } else { 0.0 },
        activation_change_rows: rows,
        ..RowSums::default()
    };
    let mut sums: Vec<RowSums> = batch
        .f64(RowSums::ROWS)?
        .into_iter()
        .map(with_rows)
        .collect();
    for (column, of) in columns {
        for (sums, value) in sums.iter_mut().zip(batch.f64(column)?) {
            *of(sums) = value;
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        let stratum = Stratum::ALL.into_iter().find(|s| s.name() == strata[i]);
        let stratum = stratum.with_context(|| {
            format!(
                "column `{}` has `{}`, expected `{}`",
                RowSums::STRATUM,
                strata[i],
                Stratum::ALL.map(Stratum::name).join("`, `")
            )
        })?;
        tally.add_sums(neurons[i], clusters[i], stratum, sums)?;
    }
    Ok(())
}
