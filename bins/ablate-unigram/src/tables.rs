//! The tables: a row per (neuron, position), a row per neuron, a row per set of neurons and dose.

use std::sync::Arc;

use arrow::{
    array::{
        ArrayRef, BooleanArray, Float32Array, Float64Array, Int32Array, Int64Array, StringArray,
    },
    datatypes::{DataType, Field, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use neuron_ablate::{
    AblateError, BandToken, Change, Dose, EffectSums, FrozenKl, HeadEffects, KlDirection,
    LayerMeans, Mean, MeanOf, Measure, NeuronEffects, NeuronId, Over, PairBlock, Semantics,
    SetEffects, Sweep, Variant, WeightStatistics, mediated_share,
};
use neuron_select::{Balance, TraitBalance};
use rayon::prelude::*;
use surprisal_metrics::{Bootstrap, Interval, Resamples};

use crate::sets::{SetContrast, SetRun, dose_name};
use crate::sums::DOCUMENT;

/// Names and places of the columns of the table of positions.
#[derive(Debug)]
pub(crate) struct PositionTable {
    schema: SchemaRef,
    /// Document of each sequence of the sample, where it is known.
    documents: Option<Vec<usize>>,
    /// By token id, whether it is rarer than the long-tail band; none without a band.
    rarer: Option<Vec<bool>>,
    /// The token that files a row.
    band_token: BandToken,
    columns: Vec<Column>,
}

/// Where the values of a floating-point column come from.
#[derive(Debug, Clone, Copy)]
enum Column {
    Clean(Measure),
    Ablated {
        variant: Variant,
        measure: Measure,
        plus: f64,
    },
    /// Of the target, counted from 0.
    Rank {
        ablated: bool,
    },
}

impl PositionTable {
    /// The Python original's columns under its names, then ours.
    pub(crate) fn new(
        sweep: &Sweep<'_>,
        semantics: &Semantics,
        ranks: bool,
        rarer: Option<Vec<bool>>,
    ) -> Self {
        let (loss, entropy) = (Measure::Loss, Measure::Entropy);
        let (model_freq, freq_model) = (
            Measure::Kl(KlDirection::ModelFreq),
            Measure::Kl(KlDirection::FreqModel),
        );
        let kl = Measure::Kl(semantics.kl);
        let (total, frozen) = (Variant::Total, sweep.direct());
        let clean = Column::Clean;
        let ablated = |variant, measure| Column::Ablated {
            variant,
            measure,
            plus: 0.0,
        };
        let frozen_kl = match (semantics.frozen_kl, sweep.band_masses().first()) {
            // The model renormalised over the band against raw frequencies: `q` is not divided by the band's mass.
            (FrozenKl::BandAgainstRaw, Some(mass)) => Column::Ablated {
                variant: frozen,
                measure: Measure::BandKl(0, KlDirection::ModelFreq),
                plus: -mass.ln(),
            },
            _ => ablated(frozen, kl),
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
        if sweep.variants().contains(&Variant::FrozenLn) {
            floats.extend([
                (
                    "loss_post_ablation_with_frozen_ln",
                    ablated(Variant::FrozenLn, loss),
                ),
                (
                    "entropy_post_ablation_with_frozen_ln",
                    ablated(Variant::FrozenLn, entropy),
                ),
            ]);
        }
        if sweep.variants().contains(&Variant::FrozenAll) {
            floats.push((
                "loss_post_ablation_with_frozen_all_tokens",
                ablated(Variant::FrozenAll, loss),
            ));
        }
        if ranks {
            floats.extend([
                ("rank_of_target", Column::Rank { ablated: false }),
                (
                    "rank_of_target_post_ablation",
                    Column::Rank { ablated: true },
                ),
            ]);
        }
        let mut fields: Vec<Field> = vec![Field::new("component_name", DataType::Utf8, false)];
        fields.extend(
            ["layer", "neuron", "batch", "pos", "token_id", "target_id"]
                .map(|name| Field::new(name, DataType::Int32, false)),
        );
        let documents = sweep.sample().documents().map(<[usize]>::to_vec);
        if documents.is_some() {
            fields.push(Field::new(DOCUMENT, DataType::Int64, false));
        }
        fields.push(Field::new("in_band", DataType::Boolean, false));
        if rarer.is_some() {
            fields.push(Field::new("rarer_than_band", DataType::Boolean, false));
        }
        fields.push(Field::new("activation", DataType::Float32, false));
        fields.extend(
            floats
                .iter()
                .map(|(name, _)| Field::new(*name, DataType::Float32, false)),
        );
        Self {
            schema: Arc::new(Schema::new(fields)),
            documents,
            rarer,
            band_token: semantics.band_token,
            columns: floats.iter().map(|(_, column)| *column).collect(),
        }
    }

    pub(crate) fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// Bytes of the numbers of a row that are measured.
    pub(crate) fn value_bytes(&self) -> u64 {
        // With the activation.
        size_of::<f32>() as u64 * (self.columns.len() as u64 + 1)
    }

    /// One batch of `neurons x rows` rows.
    pub(crate) fn batch(&self, block: &PairBlock<'_>) -> anyhow::Result<RecordBatch> {
        let n_rows = block.rows.len();
        let pairs = || (0..block.neurons.len()).flat_map(|n| (0..n_rows).map(move |r| (n, r)));
        let ints = |value: &dyn Fn(usize, usize) -> i64| -> ArrayRef {
            Arc::new(Int32Array::from_iter_values(
                pairs().map(|(n, r)| value(n, r) as i32),
            ))
        };
        let mut arrays: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(pairs().map(|(n, _)| {
                let id = NeuronId {
                    layer: block.layer,
                    neuron: block.neurons[n],
                };
                id.to_string()
            }))),
            ints(&|_, _| block.layer as i64),
            ints(&|n, _| block.neurons[n] as i64),
            ints(&|_, r| block.rows[r].sequence as i64),
            ints(&|_, r| block.rows[r].pos as i64),
            ints(&|_, r| block.rows[r].token),
            ints(&|_, r| block.rows[r].target),
        ];
        if let Some(documents) = &self.documents {
            let of_pairs = pairs().map(|(_, r)| documents[block.rows[r].sequence] as i64);
            arrays.push(Arc::new(Int64Array::from_iter_values(of_pairs)));
        }
        let truths = |value: &dyn Fn(usize) -> bool| -> ArrayRef {
            Arc::new(BooleanArray::from_iter(
                pairs().map(|(_, r)| Some(value(r))),
            ))
        };
        arrays.push(truths(&|r| block.in_band(r)));
        if let Some(rarer) = &self.rarer {
            arrays.push(truths(&|r| {
                let row = &block.rows[r];
                let token = match self.band_token {
                    BandToken::Input => row.token,
                    BandToken::Target => row.target,
                };
                rarer[token as usize]
            }));
        }
        arrays.push(Arc::new(Float32Array::from_iter_values(
            block.activations.iter().map(|&a| a as f32),
        )));
        let pairs = block.neurons.len() * n_rows;
        for column in &self.columns {
            let values: Vec<f32> = match *column {
                Column::Clean(measure) => {
                    let of_rows = block.clean(measure)?.map(|value| value as f32);
                    of_rows.cycle().take(pairs).collect()
                }
                Column::Ablated {
                    variant,
                    measure,
                    plus,
                } => block
                    .ablated(variant, measure)?
                    .map(|value| (value + plus) as f32)
                    .collect(),
                Column::Rank { ablated } => match block.ranks {
                    None => vec![f32::NAN; pairs],
                    Some(ranks) if ablated => ranks.ablated.iter().map(|&r| r as f32).collect(),
                    Some(ranks) => {
                        let of_rows = ranks.clean.iter().map(|&r| r as f32);
                        of_rows.cycle().take(pairs).collect()
                    }
                },
            };
            arrays.push(Arc::new(Float32Array::from(values)));
        }
        Ok(RecordBatch::try_new(self.schema(), arrays)?)
    }
}

/// The columns of effects, the same for neurons and for sets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EffectColumns<'a> {
    /// Names of the bands over whose rows there are means, the long-tail band, which is called `band`, first.
    pub(crate) bands: &'a [String],
    /// Total effect, in nats, below which a mediated share is null.
    pub(crate) floor: f64,
    /// Resampling of clusters for the `.low`, `.high` and `.undefined` columns; none are written without it.
    pub(crate) bootstrap: Option<Bootstrap>,
}

/// How the table per neuron is made.
#[derive(Debug, Clone)]
pub(crate) struct NeuronTable<'a> {
    pub(crate) effects: EffectColumns<'a>,
    /// What the weights say, in the order of the neurons.
    pub(crate) weights: &'a [WeightStatistics],
    /// What the neurons are set to.
    pub(crate) means: &'a LayerMeans,
}

/// How the table per set is made.
#[derive(Debug, Clone)]
pub(crate) struct SetTable<'a> {
    pub(crate) effects: EffectColumns<'a>,
}

type Columns = Vec<(String, ArrayRef)>;

/// What tells the tables of runs apart, so that they can be put below each other.
#[derive(Debug, Clone)]
pub(crate) struct RunColumns {
    /// Path or repository, as in the tables of other jobs.
    pub(crate) model: String,
    pub(crate) step: Option<u64>,
    /// The reading.
    pub(crate) semantics: &'static str,
}

impl RunColumns {
    /// A table with these columns in front.
    pub(crate) fn before(&self, table: &RecordBatch) -> anyhow::Result<RecordBatch> {
        let rows = table.num_rows();
        let text = |value: &str| texts(std::iter::repeat_n(Some(value.to_owned()), rows));
        let step = self.step.map(|step| step as i64);
        let mut columns: Columns = vec![
            ("model".into(), text(&self.model)),
            (
                "step".into(),
                Arc::new(Int64Array::from_iter(std::iter::repeat_n(step, rows))),
            ),
            ("semantics".into(), text(self.semantics)),
        ];
        let schema = table.schema();
        let names = schema.fields().iter().map(|field| field.name().clone());
        columns.extend(names.zip(table.columns().iter().cloned()));
        record_batch(columns)
    }
}

impl NeuronTable<'_> {
    /// The table: a column per variant, measure and kind of mean.
    pub(crate) fn batch(
        &self,
        sweep: &Sweep<'_>,
        neurons: &[NeuronEffects],
    ) -> anyhow::Result<RecordBatch> {
        let sums: Vec<&EffectSums> = neurons.iter().map(|n| &n.effects).collect();
        let mut columns: Columns = vec![
            (
                "component_name".into(),
                texts(neurons.iter().map(|n| Some(n.id().to_string()))),
            ),
            ("layer".into(), ints(neurons.iter().map(|n| n.layer))),
            ("neuron".into(), ints(neurons.iter().map(|n| n.neuron))),
        ];
        push_rows(&mut columns, self.effects.bands, &sums);
        let mut push = |name: &str, value: fn(&NeuronEffects) -> f64| {
            columns.push((name.into(), floats(neurons.iter().map(|n| Some(value(n))))));
        };
        push("mean_activation", |n| n.mean_activation);
        let errors = neurons.iter().map(|n| {
            let means = self.means.of(MeanOf::Neurons(n.layer))?;
            let error = means.standard_error.get(n.neuron)?;
            Some(*error).filter(|error| error.is_finite())
        });
        columns.push(("mean_activation_se".into(), floats(errors)));
        let mut push = |name: &str, value: fn(&NeuronEffects) -> f64| {
            columns.push((name.into(), floats(neurons.iter().map(|n| Some(value(n))))));
        };
        push("row_activation", NeuronEffects::row_activation);
        push("w_out_norm", |n| n.w_out_norm);
        self.push_weights(&mut columns);
        push_ranks(&mut columns, self.effects.bands, &sums)?;
        self.effects.push(&mut columns, sweep, &sums)?;
        record_batch(columns)
    }

    fn push_weights(&self, columns: &mut Columns) {
        let mut push = |name: String, value: &dyn Fn(&WeightStatistics) -> Option<f64>| {
            columns.push((name, floats(self.weights.iter().map(value))));
        };
        push("w_out_norm_centred".into(), &|w| Some(w.norm_seen));
        push("logit_var".into(), &|w| w.logit_var);
        push("null_share".into(), &|w| w.null_share);
        push("freq_cosine".into(), &|w| w.freq_cosine);
        for (b, band) in self.effects.bands.iter().enumerate() {
            push(format!("freq_cosine_{band}"), &|w| w.band_cosines[b]);
        }
    }
}

/// The table per attention head: the columns of the table per neuron that a head has, and how hard it pushes the last residual stream.
pub(crate) fn head_table(
    of_effects: EffectColumns<'_>,
    sweep: &Sweep<'_>,
    heads: &[HeadEffects],
) -> anyhow::Result<RecordBatch> {
    let sums: Vec<&EffectSums> = heads.iter().map(|h| &h.effects).collect();
    let names = heads.iter().map(|h| Some(h.head.to_string()));
    let mut columns: Columns = vec![
        ("component_name".into(), texts(names)),
        ("layer".into(), ints(heads.iter().map(|h| h.head.layer))),
        ("head".into(), ints(heads.iter().map(|h| h.head.head))),
    ];
    push_rows(&mut columns, of_effects.bands, &sums);
    columns.push((
        "change_norm".into(),
        floats(heads.iter().map(|h| Some(h.change_norm()))),
    ));
    push_ranks(&mut columns, of_effects.bands, &sums)?;
    of_effects.push(&mut columns, sweep, &sums)?;
    record_batch(columns)
}

impl SetTable<'_> {
    /// The table: what the set is, then the columns of the table per neuron.
    pub(crate) fn batch(&self, sweep: &Sweep<'_>, run: &SetRun) -> anyhow::Result<RecordBatch> {
        let sets = &run.effects;
        let sums: Vec<&EffectSums> = sets.iter().map(|set| &set.effects).collect();
        let role = |set: &SetEffects| run.roles[set.list];
        let names = sets.iter().map(|set| {
            let neurons = run.lists[set.list].set(set.size).iter();
            let names: Vec<String> = neurons.map(ToString::to_string).collect();
            Some(names.join(" "))
        });
        let draws = sets
            .iter()
            .map(|set| role(set).draw().map(|draw| draw as i32));
        let factors = sets.iter().map(|set| match set.dose {
            Dose::Scale(factor) => Some(factor),
            Dose::Mean | Dose::ClipAtMean => None,
        });
        let mut columns: Columns = vec![
            (
                "list".into(),
                texts(
                    sets.iter()
                        .map(|set| Some(run.lists[set.list].name().to_owned())),
                ),
            ),
            (
                "control".into(),
                texts(sets.iter().map(|set| role(set).name().map(str::to_owned))),
            ),
            ("draw".into(), Arc::new(Int32Array::from_iter(draws))),
            ("size".into(), ints(sets.iter().map(|set| set.size))),
            (
                "dose".into(),
                texts(sets.iter().map(|set| Some(dose_name(set.dose)))),
            ),
            ("scale".into(), floats(factors)),
            ("neurons".into(), texts(names)),
        ];
        push_rows(&mut columns, self.effects.bands, &sums);
        columns.push((
            "change_norm".into(),
            floats(sets.iter().map(|set| Some(set.change_norm()))),
        ));
        self.effects.push(&mut columns, sweep, &sums)?;
        record_batch(columns)
    }
}

/// A row per kind of controls, dose and size.
pub(crate) fn set_contrasts(contrasts: &[SetContrast]) -> anyhow::Result<RecordBatch> {
    let rows = || contrasts.iter();
    let number = |of: &dyn Fn(&SetContrast) -> Option<f64>| floats(rows().map(of));
    let scale = |c: &SetContrast| match c.dose {
        Dose::Scale(factor) => Some(factor),
        Dose::Mean | Dose::ClipAtMean => None,
    };
    let excess = |c: &SetContrast| c.change - c.of_controls;
    let columns: [(&str, ArrayRef); 16] = [
        (
            "control",
            texts(rows().map(|c| Some(c.kind.name().to_owned()))),
        ),
        ("draws", ints(rows().map(|c| c.draws))),
        ("size", ints(rows().map(|c| c.size))),
        ("dose", texts(rows().map(|c| Some(dose_name(c.dose))))),
        ("scale", number(&scale)),
        ("change", number(&|c| Some(c.change))),
        ("change_of_controls", number(&|c| Some(c.of_controls))),
        (
            "change_of_controls_low",
            number(&|c| Some(c.of_controls_interval?.lower)),
        ),
        (
            "change_of_controls_high",
            number(&|c| Some(c.of_controls_interval?.upper)),
        ),
        ("excess", number(&|c| Some(excess(c)))),
        ("excess_low", number(&|c| Some(c.interval?.lower))),
        ("excess_high", number(&|c| Some(c.interval?.upper))),
        (
            "excess_undefined",
            number(&|c| Some(c.interval?.undefined as f64)),
        ),
        ("p", number(&|c| c.p)),
        ("q", number(&|c| c.q)),
        ("clusters", ints(rows().map(|c| c.clusters))),
    ];
    record_batch(columns.map(|(name, of)| (name.to_owned(), of)).into())
}

/// A row per kind of controls and trait.
pub(crate) fn balance(balance: &[TraitBalance]) -> anyhow::Result<RecordBatch> {
    let rows = || balance.iter();
    let number = |of: fn(Balance) -> f64| floats(rows().map(|row| row.balance.map(of)));
    let columns: [(&str, ArrayRef); 7] = [
        (
            "kind",
            texts(rows().map(|row| Some(row.kind.name().to_owned()))),
        ),
        ("trait", texts(rows().map(|row| Some(row.name.clone())))),
        ("selection", number(|b| b.selected)),
        ("controls", number(|b| b.controls)),
        ("standardised_difference", number(|b| b.difference)),
        ("selected", ints(rows().map(|row| row.selected))),
        (
            "without_control",
            ints(rows().map(|row| row.without_control)),
        ),
    ];
    record_batch(columns.map(|(name, of)| (name.to_owned(), of)).into())
}

impl EffectColumns<'_> {
    /// A column per variant, measure and kind of mean, with what sums them up in front.
    fn push(
        &self,
        columns: &mut Columns,
        sweep: &Sweep<'_>,
        effects: &[&EffectSums],
    ) -> anyhow::Result<()> {
        let (total, direct) = (Variant::Total, sweep.direct());
        let frozen_ln = Some(Variant::FrozenLn).filter(|v| sweep.variants().contains(v));
        // All effects are over the same clusters. Without any, intervals are null.
        let clusters = effects.first().map_or(0, |e| e.n_clusters());
        let resamples = self.bootstrap.map(|b| b.resample(clusters).ok());
        let push_interval =
            |columns: &mut Columns, name: &str, interval: &IntervalOf<'_>| match &resamples {
                None => Ok(()),
                Some(resamples) => {
                    push_interval(columns, effects, name, resamples.as_ref(), interval)
                }
            };
        let mut parts = vec![(String::new(), Over::All)];
        parts.extend(over_bands(self.bands).map(|(name, over)| (format!("{name}_"), over)));
        for (prefix, over) in parts {
            let effect = |e: &EffectSums, variant| {
                let change = match over {
                    Over::All => Some(e.change(variant, Measure::Loss)?),
                    Over::Band(band) => e.band_loss_change(variant, band)?,
                };
                Ok(change.map(|c| c.mean_abs))
            };
            push_effect(columns, effects, format!("{prefix}total_effect"), |e| {
                effect(e, total)
            })?;
            push_effect(columns, effects, format!("{prefix}direct_effect"), |e| {
                effect(e, direct)
            })?;
            // What goes through token frequency, and what through the scale of the final norm.
            for (name, direct) in [
                ("mediated_share", Some(direct)),
                ("ln_mediated_share", frozen_ln),
            ] {
                let (Some(direct), name) = (direct, format!("{prefix}{name}")) else {
                    continue;
                };
                push_effect(columns, effects, &*name, |e| {
                    let both = effect(e, total)?.zip(effect(e, direct)?);
                    Ok(both.and_then(|(total, direct)| mediated_share(total, direct, self.floor)))
                })?;
                push_interval(columns, &name, &|e, r| {
                    e.mediated_share_interval(direct, over, self.floor, r)
                })?;
            }
        }
        let means = [
            ("mean_change", Mean::Signed),
            ("mean_abs_change", Mean::Absolute),
        ];
        for &variant in sweep.variants() {
            let of_variant = sweep.variant_name(variant)?;
            for &measure in sweep.measures() {
                let of_measure = sweep.measure_name(measure)?;
                for (kind, mean) in means {
                    let name = format!("{of_variant}.{of_measure}.{kind}");
                    push_effect(columns, effects, &*name, |e| {
                        Ok(Some(pick(e.change(variant, measure)?, mean)))
                    })?;
                    push_interval(columns, &name, &|e, r| {
                        e.interval(variant, measure, mean, Over::All, r)
                    })?;
                }
            }
            for (b, band) in self.bands.iter().enumerate() {
                for (kind, mean) in means {
                    let name = format!("{of_variant}.loss.{kind}_{band}_targets");
                    push_effect(columns, effects, &*name, |e| {
                        Ok(e.band_loss_change(variant, b)?.map(|c| pick(c, mean)))
                    })?;
                    push_interval(columns, &name, &|e, r| {
                        e.interval(variant, Measure::Loss, mean, Over::Band(b), r)
                    })?;
                }
            }
        }
        Ok(())
    }
}

/// The interval of an effect.
type IntervalOf<'a> =
    dyn Fn(&EffectSums, &Resamples) -> Result<Option<Interval>, AblateError> + Sync + 'a;

/// Both ends of an interval and the number of resamples without a value, null where there is no interval.
fn push_interval(
    columns: &mut Columns,
    effects: &[&EffectSums],
    name: &str,
    resamples: Option<&Resamples>,
    interval: &IntervalOf<'_>,
) -> Result<(), AblateError> {
    let of_effect = |e: &&EffectSums| resamples.map_or(Ok(None), |r| interval(e, r));
    let intervals: Vec<Option<Interval>> = effects
        .par_iter()
        .map(of_effect)
        .collect::<Result<_, _>>()?;
    for (end, value) in [
        ("low", (|i| i.lower) as fn(Interval) -> f64),
        ("high", |i| i.upper),
    ] {
        let ends = intervals.iter().map(|i| i.map(value));
        columns.push((format!("{name}.{end}"), floats(ends)));
    }
    let undefined = intervals.iter().map(|i| i.map(|i| i.undefined as i32));
    columns.push((
        format!("{name}.undefined"),
        Arc::new(Int32Array::from_iter(undefined)),
    ));
    Ok(())
}

/// The bands as what means run over, by their names.
fn over_bands(bands: &[String]) -> impl Iterator<Item = (&str, Over)> {
    let bands = bands.iter().enumerate();
    bands.map(|(band, name)| (name.as_str(), Over::Band(band)))
}

fn push_rows(columns: &mut Columns, bands: &[String], effects: &[&EffectSums]) {
    let mut push = |name: String, of: &dyn Fn(&EffectSums) -> usize| {
        columns.push((name, ints(effects.iter().map(|e| of(e)))));
    };
    push("rows".into(), &EffectSums::rows);
    for (band, name) in bands.iter().enumerate() {
        push(format!("{name}_rows"), &|e| e.band_rows(band));
    }
    push("clusters".into(), &|e| e.n_clusters_with_rows(Over::All));
    for (name, over) in over_bands(bands) {
        push(format!("{name}_clusters"), &|e| {
            e.n_clusters_with_rows(over)
        });
    }
}

/// Changes of the targets' ranks, where they were measured.
fn push_ranks(
    columns: &mut Columns,
    bands: &[String],
    effects: &[&EffectSums],
) -> Result<(), AblateError> {
    if effects.iter().all(|e| e.rank_change(Over::All).is_none()) {
        return Ok(());
    }
    push_effect(columns, effects, "rank_mean_change", |e| {
        Ok(e.rank_change(Over::All))
    })?;
    for (name, over) in over_bands(bands) {
        let name = format!("rank_mean_change_{name}_targets");
        push_effect(columns, effects, name, |e| Ok(e.rank_change(over)))?;
    }
    Ok(())
}

fn push_effect(
    columns: &mut Columns,
    effects: &[&EffectSums],
    name: impl Into<String>,
    value: impl Fn(&EffectSums) -> Result<Option<f64>, AblateError>,
) -> Result<(), AblateError> {
    let values: Vec<Option<f64>> = effects.iter().map(|e| value(e)).collect::<Result<_, _>>()?;
    columns.push((name.into(), floats(values.into_iter())));
    Ok(())
}

fn texts(values: impl Iterator<Item = Option<String>>) -> ArrayRef {
    Arc::new(StringArray::from_iter(values))
}

fn ints(values: impl Iterator<Item = usize>) -> ArrayRef {
    Arc::new(Int32Array::from_iter_values(values.map(|v| v as i32)))
}

fn floats(values: impl Iterator<Item = Option<f64>>) -> ArrayRef {
    Arc::new(Float64Array::from_iter(values))
}

fn record_batch(columns: Columns) -> anyhow::Result<RecordBatch> {
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, array)| Field::new(name, array.data_type().clone(), true))
        .collect();
    Ok(RecordBatch::try_new(
        Arc::new(Schema::new(fields)),
        columns.into_iter().map(|(_, array)| array).collect(),
    )?)
}

fn pick(change: Change, mean: Mean) -> f64 {
    match mean {
        Mean::Signed => change.mean,
        Mean::Absolute => change.mean_abs,
    }
}
