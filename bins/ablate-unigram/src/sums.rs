//! Sums over rows per neuron, document and stratum: what analyze-unigram needs of the table of positions, but for activations side by side.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, Float64Array, Int32Array, Int64Array, StringArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use job_kit::{Format, OutputDir, TableWriter};
use neuron_ablate::{
    BandToken, Dose, LayerMeans, Measure, NeuronId, PairBlock, Semantics, Sweep, Variant,
};
use neuron_select::{Row, RowSums, Stratum, Tally};

/// The table.
pub(crate) const SUMS: &str = "sums.parquet";

/// The column of the document, its row in the corpus: the same in the tables of all jobs.
pub(crate) const DOCUMENT: &str = "document";

/// Rows of the table that are made at a time.
const BATCH: usize = 1 << 16;

/// A value that is summed, the name of its column first.
type Column = (&'static str, fn(&RowSums) -> f64);

const COLUMNS: [Column; 12] = [
    ("loss_change", |s| s.loss_change),
    ("loss_abs_change", |s| s.loss_abs_change),
    ("frozen_loss_change", |s| s.frozen_loss_change),
    ("frozen_loss_abs_change", |s| s.frozen_loss_abs_change),
    // Where they are measured.
    FROZEN_LN,
    FROZEN_ALL,
    ("kl_change", |s| s.kl_change),
    ("kl_abs_change", |s| s.kl_abs_change),
    ("activation", |s| s.activation),
    ("activation_change_squared", |s| s.activation_change_squared),
    ("active_rows", |s| s.active_rows),
    ("active_loss", |s| s.active_loss),
];
const FROZEN_LN: Column = ("frozen_ln_loss_abs_change", |s| s.frozen_ln_loss_abs_change);
const FROZEN_ALL: Column = ("frozen_all_loss_abs_change", |s| {
    s.frozen_all_loss_abs_change
});

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
        let mut writer = TableWriter::to(out.file(name)?, self.schema(), Format::Parquet)?;
        let mut sums = self.tally.sums().peekable();
        while sums.peek().is_some() {
            let rows: Vec<_> = sums.by_ref().take(BATCH).collect();
            writer.write(&self.batch(&rows)?)?;
        }
        writer.finish()?;
        Ok(())
    }

    fn columns(&self) -> impl Iterator<Item = Column> {
        let (frozen_ln, frozen_all) = (self.frozen_ln, self.frozen_all);
        let kept = move |column: &Column| match column.0 {
            name if name == FROZEN_LN.0 => frozen_ln,
            name if name == FROZEN_ALL.0 => frozen_all,
            _ => true,
        };
        COLUMNS.into_iter().filter(kept)
    }

    fn schema(&self) -> SchemaRef {
        let (cluster, of_cluster) = match self.documents {
            Some(_) => (DOCUMENT, DataType::Int64),
            None => ("batch", DataType::Int32),
        };
        let mut fields = vec![Field::new("component_name", DataType::Utf8, false)];
        fields.extend(["layer", "neuron"].map(|n| Field::new(n, DataType::Int32, false)));
        fields.push(Field::new(cluster, of_cluster, false));
        fields.push(Field::new("stratum", DataType::Utf8, false));
        fields.push(Field::new("rows", DataType::Int32, false));
        fields.extend(
            self.columns()
                .map(|(name, _)| Field::new(name, DataType::Float64, false)),
        );
        Arc::new(Schema::new(fields))
    }

    fn batch(&self, rows: &[(NeuronId, i64, Stratum, &RowSums)]) -> anyhow::Result<RecordBatch> {
        let ints = |value: fn(&(NeuronId, i64, Stratum, &RowSums)) -> i32| -> ArrayRef {
            Arc::new(Int32Array::from_iter_values(rows.iter().map(value)))
        };
        let names = rows.iter().map(|row| row.0.to_string());
        let clusters = rows.iter().map(|row| row.1);
        let clusters: ArrayRef = match self.documents {
            Some(_) => Arc::new(Int64Array::from_iter_values(clusters)),
            None => Arc::new(Int32Array::from_iter_values(clusters.map(|of| of as i32))),
        };
        let mut arrays: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(names)),
            ints(|row| row.0.layer as i32),
            ints(|row| row.0.neuron as i32),
            clusters,
            Arc::new(StringArray::from_iter_values(
                rows.iter().map(|row| row.2.name()),
            )),
            ints(|row| row.3.rows as i32),
        ];
        for (_, value) in self.columns() {
            let values = rows.iter().map(|row| value(row.3));
            arrays.push(Arc::new(Float64Array::from_iter_values(values)));
        }
        Ok(RecordBatch::try_new(self.schema(), arrays)?)
    }
}
