//! Sums over rows per neuron, document and stratum: what analyze-unigram needs of the table of positions, but for activations side by side.

use arrow::record_batch::RecordBatch;
use job_kit::{Format, OutputDir, Table, TableWriter};
use neuron_ablate::{
    BandToken, Dose, LayerMeans, Measure, NeuronId, PairBlock, Semantics, Sweep, Variant,
};
use neuron_select::{Row, RowSums, Stratum, SumColumn, Tally};

/// Rows of the table that are made at a time.
const BATCH: usize = 1 << 16;

/// Sums in the making.
pub(crate) struct DocumentSums<'a> {
    tally: Tally,
    /// Document of each sequence, where it is known.
    documents: Option<&'a [usize]>,
    /// By token id, whether it is rarer than the long-tail band; none without a band.
    rarer: Option<Vec<bool>>,
    /// The token that files a row.
    band_token: BandToken,
    dose: Dose,
    means: &'a LayerMeans,
    kl: Measure,
    direct: Variant,
    frozen_ln: bool,
    frozen_all: bool,
}

impl<'a> DocumentSums<'a> {
    /// Bytes of the sums of a neuron, document and stratum.
    pub(crate) const ROW_BYTES: u64 = size_of::<RowSums>() as u64;
    /// How many strata there are.
    pub(crate) const STRATA: u64 = Stratum::ALL.len() as u64;

    pub(crate) fn new(
        sweep: &Sweep<'a>,
        semantics: &Semantics,
        dose: Dose,
        means: &'a LayerMeans,
        rarer: Option<Vec<bool>>,
    ) -> Self {
        Self {
            tally: Tally::default(),
            documents: sweep.sample().documents(),
            rarer,
            band_token: semantics.band_token,
            dose,
            means,
            kl: Measure::Kl(semantics.kl),
            direct: sweep.direct(),
            frozen_ln: sweep.variants().contains(&Variant::FrozenLn),
            frozen_all: sweep.variants().contains(&Variant::FrozenAll),
        }
    }

    /// Adds a block, in the precision of the table of positions: an analysis of either gives the same numbers.
    pub(crate) fn add(&mut self, block: &PairBlock<'_>) -> anyhow::Result<()> {
        let n_rows = block.rows.len();
        let stored = |value: f64| f64::from(value as f32);
        let clean = |measure| -> anyhow::Result<Vec<f64>> {
            Ok(block.clean(measure)?.map(stored).collect())
        };
        let (loss, kl) = (clean(Measure::Loss)?, clean(self.kl)?);
        let mut after = block.ablated(Variant::Total, Measure::Loss)?.map(stored);
        let mut frozen = block.ablated(self.direct, Measure::Loss)?.map(stored);
        let mut kl_after = block.ablated(Variant::Total, self.kl)?.map(stored);
        let loss_under = |wanted: bool, variant| -> anyhow::Result<_> {
            Ok(match wanted {
                true => Some(block.ablated(variant, Measure::Loss)?.map(stored)),
                false => None,
            })
        };
        let mut frozen_ln = loss_under(self.frozen_ln, Variant::FrozenLn)?;
        let mut frozen_all = loss_under(self.frozen_all, Variant::FrozenAll)?;
        let strata: Vec<Stratum> = (0..n_rows).map(|r| self.stratum(block, r)).collect();
        let mean = self.means.neurons(block.layer);
        for (n, &neuron) in block.neurons.iter().enumerate() {
            let id = NeuronId {
                layer: block.layer,
                neuron,
            };
            let mean = mean.and_then(|mean| mean.get(neuron).copied());
            for (r, row) in block.rows.iter().enumerate() {
                // Iterators of the block are of one length, that of its pairs.
                let (Some(after), Some(frozen), Some(kl_after)) =
                    (after.next(), frozen.next(), kl_after.next())
                else {
                    break;
                };
                let activation = stored(block.activations[n * n_rows + r]);
                let frozen_ln = frozen_ln.as_mut().and_then(Iterator::next);
                let frozen_all = frozen_all.as_mut().and_then(Iterator::next);
                self.tally.add(&Row {
                    neuron: id,
                    sequence: self
                        .documents
                        .map_or(row.sequence, |documents| documents[row.sequence])
                        as i64,
                    stratum: strata[r],
                    loss_change: after - loss[r],
                    frozen_loss_change: frozen - loss[r],
                    frozen_ln_loss_change: frozen_ln.map(|after| after - loss[r]),
                    frozen_all_loss_change: frozen_all.map(|after| after - loss[r]),
                    kl_change: kl_after - kl[r],
                    activation,
                    activation_change: mean.map(|mean| self.dose.change(activation, mean)),
                    clean_loss: loss[r],
                })?;
            }
        }
        Ok(())
    }

    fn stratum(&self, block: &PairBlock<'_>, r: usize) -> Stratum {
        let row = &block.rows[r];
        let token = match self.band_token {
            BandToken::Input => row.token,
            BandToken::Target => row.target,
        };
        let rarer = usize::try_from(token).ok().and_then(|token| {
            let rarer = self.rarer.as_ref()?;
            rarer.get(token).copied()
        });
        match (block.in_band(r), rarer) {
            (true, _) => Stratum::LongTail,
            (false, Some(true)) => Stratum::Rarer,
            (false, _) => Stratum::Common,
        }
    }

    /// Writes the table: a row per neuron, document and stratum that has rows.
    pub(crate) fn write(&self, out: &OutputDir, name: &str) -> anyhow::Result<()> {
        let mut writer =
            TableWriter::to(out.file(name)?, self.batch(&[])?.schema(), Format::Parquet)?;
        let mut sums = self.tally.sums().peekable();
        while sums.peek().is_some() {
            let rows: Vec<_> = sums.by_ref().take(BATCH).collect();
            writer.write(&self.batch(&rows)?)?;
        }
        writer.finish()?;
        Ok(())
    }

    fn columns(&self) -> impl Iterator<Item = SumColumn> {
        let measured = [self.frozen_ln, self.frozen_all];
        let kept = move |column: &SumColumn| {
            let frozen = RowSums::FROZEN.iter().position(|name| *name == column.0);
            frozen.is_none_or(|place| measured[place])
        };
        RowSums::COLUMNS.into_iter().filter(kept)
    }

    fn batch(&self, rows: &[(NeuronId, i64, Stratum, &RowSums)]) -> anyhow::Result<RecordBatch> {
        let table = Table::of(rows)
            .column("component_name", |row| row.0.to_string())
            .column("layer", |row| row.0.layer as i32)
            .column("neuron", |row| row.0.neuron as i32);
        let table = match self.documents {
            Some(_) => table.column(RowSums::DOCUMENT, |row| row.1),
            None => table.column(RowSums::SEQUENCE, |row| row.1 as i32),
        };
        let mut table = table
            .column(RowSums::STRATUM, |row| row.2.name())
            .column(RowSums::ROWS, |row| row.3.rows as i32);
        for (name, of) in self.columns() {
            table = table.column(name, |row| *of(&mut { *row.3 }));
        }
        Ok(table.batch()?)
    }
}
