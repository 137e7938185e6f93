//! The two tables: a row per (neuron, position), and a row per neuron.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, BooleanArray, Float32Array, Float64Array, Int32Array, StringArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
    error::ArrowError,
    record_batch::RecordBatch,
};
use neuron_ablate::{
    Change, Effects, FrozenKl, KlDirection, Mean, NeuronEffects, Over, PairBlock, Semantics, Sweep,
    Variant, WeightStatistics, mediated_share,
};
use rayon::prelude::*;
use surprisal_metrics::{Bootstrap, Interval};

/// Names and places of the columns of the table of positions.
#[derive(Debug)]
pub(crate) struct PositionTable {
    layer: usize,
    schema: SchemaRef,
    columns: Vec<Column>,
}

/// Where the values of a floating-point column come from.
#[derive(Debug, Clone, Copy)]
enum Column {
    Clean {
        measure: usize,
    },
    Ablated {
        variant: usize,
        measure: usize,
        plus: f64,
    },
}

impl PositionTable {
    /// The Python original's columns under its names, then ours.
    pub(crate) fn new(layer: usize, sweep: &Sweep<'_>, semantics: &Semantics) -> Self {
        let measures = sweep.measures();
        let index = |name: &str| measures.names().iter().position(|n| n == name).unwrap_or(0);
        let (loss, entropy, model_freq, freq_model) = (
            index("loss"),
            index("entropy"),
            index("kl_model_freq"),
            index("kl_freq_model"),
        );
        let (total, frozen) = (0, sweep.direct());
        let frozen_ln = sweep
            .variants()
            .iter()
            .position(|v| *v == Variant::FrozenLn);
        let kl = match semantics.kl {
            KlDirection::ModelFreq => model_freq,
            KlDirection::FreqModel => freq_model,
        };
        let frozen_kl = match (semantics.frozen_kl, measures.band_masses().first()) {
            // The model renormalised over the band against raw frequencies: `q` is not divided by the band's mass.
            (FrozenKl::BandAgainstRaw, Some(mass)) => Column::Ablated {
                variant: frozen,
                measure: freq_model + 1,
                plus: -mass.ln(),
            },
            _ => Column::Ablated {
                variant: frozen,
                measure: kl,
                plus: 0.0,
            },
        };
        let clean = |measure| Column::Clean { measure };
        let ablated = |variant, measure| Column::Ablated {
            variant,
            measure,
            plus: 0.0,
        };
        let mut floats = vec![
            ("loss", clean(loss)),
            ("entropy", clean(entropy)),
            ("loss_post_ablation", ablated(total, loss)),
            (
                "loss_post_ablation_with_frozen_unigram",
                ablated(frozen, loss),
            ),
            ("entropy_post_ablation", ablated(total, entropy)),
            (
                "entropy_post_ablation_with_frozen_unigram",
                ablated(frozen, entropy),
            ),
            ("kl_divergence_before", clean(kl)),
            ("kl_divergence_after", ablated(total, kl)),
            ("kl_divergence_after_frozen_unigram", frozen_kl),
            ("kl_model_freq_before", clean(model_freq)),
            ("kl_model_freq_after", ablated(total, model_freq)),
            (
                "kl_model_freq_after_frozen_unigram",
                ablated(frozen, model_freq),
            ),
            ("kl_freq_model_before", clean(freq_model)),
            ("kl_freq_model_after", ablated(total, freq_model)),
            (
                "kl_freq_model_after_frozen_unigram",
                ablated(frozen, freq_model),
            ),
        ];
        if let Some(frozen_ln) = frozen_ln {
            floats.extend([
                (
                    "loss_post_ablation_with_frozen_ln",
                    ablated(frozen_ln, loss),
                ),
                (
                    "entropy_post_ablation_with_frozen_ln",
                    ablated(frozen_ln, entropy),
                ),
            ]);
        }
        let mut fields: Vec<Field> = vec![Field::new("component_name", DataType::Utf8, false)];
        fields.extend(
            ["layer", "neuron", "batch", "pos", "token_id", "target_id"]
                .map(|name| Field::new(name, DataType::Int32, false)),
        );
        fields.push(Field::new("in_band", DataType::Boolean, false));
        fields.push(Field::new("activation", DataType::Float32, false));
        fields.extend(
            floats
                .iter()
                .map(|(name, _)| Field::new(*name, DataType::Float32, false)),
        );
        Self {
            layer,
            schema: Arc::new(Schema::new(fields)),
            columns: floats.iter().map(|(_, column)| *column).collect(),
        }
    }

    pub(crate) fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// One batch of `neurons x rows` rows.
    pub(crate) fn batch(&self, block: &PairBlock<'_>) -> Result<RecordBatch, ArrowError> {
        let (n_rows, m) = (block.rows.len(), block.measures);
        let pairs = || (0..block.neurons.len()).flat_map(|n| (0..n_rows).map(move |r| (n, r)));
        let ints = |value: &dyn Fn(usize, usize) -> i64| -> ArrayRef {
            Arc::new(Int32Array::from_iter_values(
                pairs().map(|(n, r)| value(n, r) as i32),
            ))
        };
        let mut arrays: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(
                pairs().map(|(n, _)| format!("{}.{}", self.layer, block.neurons[n])),
            )),
            ints(&|_, _| self.layer as i64),
            ints(&|n, _| block.neurons[n] as i64),
            ints(&|_, r| block.rows[r].sequence as i64),
            ints(&|_, r| block.rows[r].pos as i64),
            ints(&|_, r| block.rows[r].token),
            ints(&|_, r| block.rows[r].target),
            Arc::new(BooleanArray::from_iter(
                pairs().map(|(_, r)| Some(block.in_band[r])),
            )),
            Arc::new(Float32Array::from_iter_values(
                block.activations.iter().map(|&a| a as f32),
            )),
        ];
        for column in &self.columns {
            arrays.push(Arc::new(Float32Array::from_iter_values(pairs().map(
                |(n, r)| match *column {
                    Column::Clean { measure } => block.clean[r * m + measure] as f32,
                    Column::Ablated {
                        variant,
                        measure,
                        plus,
                    } => {
                        (block.ablated[((n * n_rows + r) * block.variants + variant) * m + measure]
                            + plus) as f32
                    }
                },
            ))));
        }
        RecordBatch::try_new(self.schema(), arrays)
    }
}

/// How the table per neuron is made.
#[derive(Debug, Clone)]
pub(crate) struct NeuronTable<'a> {
    pub(crate) layer: usize,
    /// Total effect, in nats, below which a mediated share is null.
    pub(crate) floor: f64,
    /// Resampling of sequences for the `.low` and `.high` columns; none are written without it.
    pub(crate) bootstrap: Option<Bootstrap>,
    /// What the weights say, in the order of the neurons, and the names of the bands in it.
    pub(crate) weights: &'a [WeightStatistics],
    pub(crate) bands: &'a [String],
}

type Columns = Vec<(String, ArrayRef)>;

impl NeuronTable<'_> {
    /// The table: a column per variant, measure and kind of mean.
    pub(crate) fn batch(
        &self,
        sweep: &Sweep<'_>,
        effects: &Effects,
    ) -> Result<RecordBatch, ArrowError> {
        let neurons = &effects.neurons;
        let int = |values: Vec<usize>| -> ArrayRef {
            Arc::new(Int32Array::from_iter_values(
                values.into_iter().map(|v| v as i32),
            ))
        };
        let of = |value: &dyn Fn(&NeuronEffects) -> usize| int(neurons.iter().map(value).collect());
        let mut columns: Columns = vec![
            (
                "component_name".into(),
                Arc::new(StringArray::from_iter_values(
                    neurons
                        .iter()
                        .map(|n| format!("{}.{}", self.layer, n.neuron)),
                )),
            ),
            ("layer".into(), int(vec![self.layer; neurons.len()])),
            ("neuron".into(), of(&|n| n.neuron)),
            ("rows".into(), of(&|n| n.rows())),
            ("band_rows".into(), of(&|n| n.band_rows())),
        ];
        push(&mut columns, neurons, "mean_activation", |n| {
            Some(n.mean_activation)
        });
        push(&mut columns, neurons, "row_activation", |n| {
            Some(n.row_activation())
        });
        push(&mut columns, neurons, "w_out_norm", |n| Some(n.w_out_norm));
        self.push_weights(&mut columns);

        let (total, direct) = (0, sweep.direct());
        for (prefix, over) in [("", Over::All), ("band_", Over::Band)] {
            let effect = |n: &NeuronEffects, variant| match over {
                Over::All => Some(n.change(variant, 0).mean_abs),
                Over::Band => n.band_loss_change(variant).map(|c| c.mean_abs),
            };
            push(
                &mut columns,
                neurons,
                format!("{prefix}total_effect"),
                |n| effect(n, total),
            );
            push(
                &mut columns,
                neurons,
                format!("{prefix}direct_effect"),
                |n| effect(n, direct),
            );
            push(
                &mut columns,
                neurons,
                format!("{prefix}mediated_share"),
                |n| mediated_share(effect(n, total)?, effect(n, direct)?, self.floor),
            );
            self.push_interval(
                &mut columns,
                neurons,
                &format!("{prefix}mediated_share"),
                |n, b| n.mediated_share_interval(total, direct, over, self.floor, b),
            );
        }
        for (v, variant) in sweep.variants().iter().enumerate() {
            let variant = sweep.variant_name(*variant);
            for (m, measure) in sweep.measures().names().iter().enumerate() {
                for (kind, mean) in [
                    ("mean_change", Mean::Signed),
                    ("mean_abs_change", Mean::Absolute),
                ] {
                    let name = format!("{variant}.{measure}.{kind}");
                    let change = |n: &NeuronEffects| n.change(v, m);
                    push(&mut columns, neurons, &*name, |n| {
                        Some(pick(change(n), mean))
                    });
                    self.push_interval(&mut columns, neurons, &name, |n, b| {
                        n.interval(v, m, mean, Over::All, b)
                    });
                }
            }
            for (kind, mean) in [
                ("mean_change", Mean::Signed),
                ("mean_abs_change", Mean::Absolute),
            ] {
                let name = format!("{variant}.loss.{kind}_band_targets");
                push(&mut columns, neurons, &*name, |n| {
                    n.band_loss_change(v).map(|c| pick(c, mean))
                });
                self.push_interval(&mut columns, neurons, &name, |n, b| {
                    n.interval(v, 0, mean, Over::Band, b)
                });
            }
        }
        let fields: Vec<Field> = columns
            .iter()
            .map(|(name, array)| Field::new(name, array.data_type().clone(), true))
            .collect();
        RecordBatch::try_new(
            Arc::new(Schema::new(fields)),
            columns.into_iter().map(|(_, array)| array).collect(),
        )
    }

    fn push_weights(&self, columns: &mut Columns) {
        let mut push = |name: String, value: &dyn Fn(&WeightStatistics) -> Option<f64>| {
            let values = self.weights.iter().map(value);
            columns.push((name, Arc::new(Float64Array::from_iter(values))));
        };
        push("logit_var".into(), &|w| w.logit_var);
        push("null_share".into(), &|w| w.null_share);
        push("freq_cosine".into(), &|w| w.freq_cosine);
        for (b, band) in self.bands.iter().enumerate() {
            push(format!("freq_cosine_{band}"), &|w| w.band_cosines[b]);
        }
    }

    fn push_interval(
        &self,
        columns: &mut Columns,
        neurons: &[NeuronEffects],
        name: &str,
        interval: impl Fn(&NeuronEffects, &Bootstrap) -> Option<Interval> + Sync,
    ) {
        let Some(bootstrap) = &self.bootstrap else {
            return;
        };
        let intervals: Vec<Option<Interval>> =
            neurons.par_iter().map(|n| interval(n, bootstrap)).collect();
        for (end, value) in [
            ("low", (|i| i.lower) as fn(Interval) -> f64),
            ("high", |i| i.upper),
        ] {
            columns.push((
                format!("{name}.{end}"),
                Arc::new(Float64Array::from_iter(
                    intervals.iter().map(|i| i.map(value)),
                )),
            ));
        }
    }
}

fn push(
    columns: &mut Columns,
    neurons: &[NeuronEffects],
    name: impl Into<String>,
    value: impl Fn(&NeuronEffects) -> Option<f64>,
) {
    columns.push((
        name.into(),
        Arc::new(Float64Array::from_iter(neurons.iter().map(value))),
    ));
}

fn pick(change: Change, mean: Mean) -> f64 {
    match mean {
        Mean::Signed => change.mean,
        Mean::Absolute => change.mean_abs,
    }
}
