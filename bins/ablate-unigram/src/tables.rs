//! The tables: a row per (neuron, position), a row per neuron, a row per set of neurons and dose.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, BooleanArray, Float32Array, Int32Array, Int64Array, StringArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
    record_batch::RecordBatch,
};
use job_kit::Table;
use neuron_ablate::{
    AblateError, BandToken, Change, Dose, EffectSums, FrozenKl, HeadEffects, KlDirection,
    LayerMeans, Mean, MeanOf, Measure, NeuronEffects, NeuronId, Over, PairBlock, Semantics,
    SetEffects, Sweep, Variant, WeightStatistics, mediated_share,
};
use neuron_select::{RowSums, TraitBalance};
use rayon::prelude::*;
use surprisal_metrics::{Bootstrap, Interval, Resamples};

use crate::sets::{SetContrast, SetRun, dose_name};

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
            [
                "layer",
                "neuron",
                RowSums::SEQUENCE,
                "pos",
                "token_id",
                "target_id",
            ]
            .map(|name| Field::new(name, DataType::Int32, false)),
        );
        let documents = sweep.sample().documents().map(<[usize]>::to_vec);
        if documents.is_some() {
            fields.push(Field::new(RowSums::DOCUMENT, DataType::Int64, false));
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
        let rows = vec![(); table.num_rows()];
        let front = Table::of(&rows)
            .column("model", |()| Some(self.model.as_str()))
            .column("step", |()| self.step.map(|step| step as i64))
            .column("semantics", |()| Some(self.semantics))
            .batch()?;
        let (before, after) = (front.schema(), table.schema());
        let fields = before.fields().iter().chain(after.fields()).cloned();
        let columns = front.columns().iter().chain(table.columns()).cloned();
        let schema = Schema::new(fields.collect::<Vec<_>>());
        Ok(RecordBatch::try_new(Arc::new(schema), columns.collect())?)
    }
}

impl NeuronTable<'_> {
    /// The table: a column per variant, measure and kind of mean.
    pub(crate) fn batch(
        &self,
        sweep: &Sweep<'_>,
        neurons: &[NeuronEffects],
    ) -> anyhow::Result<RecordBatch> {
        let error = |n: &NeuronEffects| {
            let means = self.means.of(MeanOf::Neurons(n.layer))?;
            let error = means.standard_error.get(n.neuron)?;
            Some(*error).filter(|error| error.is_finite())
        };
        let sums: Vec<&EffectSums> = neurons.iter().map(|n| &n.effects).collect();
        let table = Table::of(neurons)
            .column("component_name", |n| Some(n.id().to_string()))
            .column("layer", |n| int(n.layer))
            .column("neuron", |n| int(n.neuron));
        let table = row_columns(table, self.effects.bands, &sums)
            .column("mean_activation", |n| Some(n.mean_activation))
            .column("mean_activation_se", error)
            .column("row_activation", |n| Some(n.row_activation()))
            .column("w_out_norm", |n| Some(n.w_out_norm));
        let table = rank_columns(self.weight_columns(table), self.effects.bands, &sums);
        Ok(self.effects.columns(table, sweep, &sums)?.batch()?)
    }

    fn weight_columns<'r, R>(&self, table: Table<'r, R>) -> Table<'r, R> {
        let of = |value: fn(&WeightStatistics) -> Option<f64>| self.weights.iter().map(value);
        let table = table
            .values("w_out_norm_centred", of(|w| Some(w.norm_seen)))
            .values("logit_var", of(|w| w.logit_var))
            .values("null_share", of(|w| w.null_share))
            .values("freq_cosine", of(|w| w.freq_cosine));
        let bands = self.effects.bands.iter().enumerate();
        bands.fold(table, |table, (b, band)| {
            let cosines = self.weights.iter().map(|w| w.band_cosines[b]);
            table.values(format!("freq_cosine_{band}"), cosines)
        })
    }
}

/// The table per attention head: the columns of the table per neuron that a head has, and how hard it pushes the last residual stream.
pub(crate) fn head_table(
    of_effects: EffectColumns<'_>,
    sweep: &Sweep<'_>,
    heads: &[HeadEffects],
) -> anyhow::Result<RecordBatch> {
    let sums: Vec<&EffectSums> = heads.iter().map(|h| &h.effects).collect();
    let table = Table::of(heads)
        .column("component_name", |h| Some(h.head.to_string()))
        .column("layer", |h| int(h.head.layer))
        .column("head", |h| int(h.head.head));
    let table = row_columns(table, of_effects.bands, &sums)
        .column("change_norm", |h| Some(h.change_norm()));
    let table = rank_columns(table, of_effects.bands, &sums);
    Ok(of_effects.columns(table, sweep, &sums)?.batch()?)
}

/// The table per set: what the set is, then the columns of the table per neuron.
pub(crate) fn set_table(
    of_effects: EffectColumns<'_>,
    sweep: &Sweep<'_>,
    run: &SetRun,
) -> anyhow::Result<RecordBatch> {
    let sets = &run.effects;
    let sums: Vec<&EffectSums> = sets.iter().map(|set| &set.effects).collect();
    let role = |set: &SetEffects| run.roles[set.list];
    let names = |set: &SetEffects| {
        let neurons = run.lists[set.list].set(set.size).iter();
        let names: Vec<String> = neurons.map(ToString::to_string).collect();
        names.join(" ")
    };
    let table = Table::of(sets)
        .column("list", |set| Some(run.lists[set.list].name()))
        .column("control", |set| role(set).name())
        .column("draw", |set| role(set).draw().map(|draw| draw as i32))
        .column("size", |set| int(set.size))
        .column("dose", |set| Some(dose_name(set.dose)))
        .column("scale", |set| scale(set.dose))
        .column("neurons", |set| Some(names(set)));
    let table = row_columns(table, of_effects.bands, &sums)
        .column("change_norm", |set| Some(set.change_norm()));
    Ok(of_effects.columns(table, sweep, &sums)?.batch()?)
}

/// A row per kind of controls, dose and size.
pub(crate) fn set_contrasts(contrasts: &[SetContrast]) -> anyhow::Result<RecordBatch> {
    let table = Table::of(contrasts)
        .column("control", |c| Some(c.kind.name()))
        .column("draws", |c| int(c.draws))
        .column("size", |c| int(c.size))
        .column("dose", |c| Some(dose_name(c.dose)))
        .column("scale", |c| scale(c.dose))
        .column("change", |c| Some(c.change))
        .column("change_of_controls", |c| Some(c.of_controls))
        .column("change_of_controls_low", |c| {
            Some(c.of_controls_interval?.lower)
        })
        .column("change_of_controls_high", |c| {
            Some(c.of_controls_interval?.upper)
        })
        .column("excess", |c| Some(c.change - c.of_controls))
        .column("excess_low", |c| Some(c.interval?.lower))
        .column("excess_high", |c| Some(c.interval?.upper))
        .column("excess_undefined", |c| Some(c.interval?.undefined as f64))
        .column("p", |c| c.p)
        .column("q", |c| c.q)
        .column("clusters", |c| int(c.clusters));
    Ok(table.batch()?)
}

/// A row per kind of controls and trait.
pub(crate) fn balance(balance: &[TraitBalance]) -> anyhow::Result<RecordBatch> {
    let table = Table::of(balance)
        .column("kind", |row| Some(row.kind.name()))
        .column("trait", |row| Some(row.name.as_str()))
        .column("selection", |row| Some(row.balance?.selected))
        .column("controls", |row| Some(row.balance?.controls))
        .column("standardised_difference", |row| {
            Some(row.balance?.difference)
        })
        .column("selected", |row| int(row.selected))
        .column("without_control", |row| int(row.without_control));
    Ok(table.batch()?)
}

/// The factor of a dose that has one.
fn scale(dose: Dose) -> Option<f64> {
    match dose {
        Dose::Scale(factor) => Some(factor),
        Dose::Mean | Dose::ClipAtMean => None,
    }
}

impl EffectColumns<'_> {
    /// Adds a column per variant, measure and kind of mean, with what sums them up in front.
    fn columns<'r, R>(
        &self,
        mut table: Table<'r, R>,
        sweep: &Sweep<'_>,
        effects: &[&EffectSums],
    ) -> Result<Table<'r, R>, AblateError> {
        let (total, direct) = (Variant::Total, sweep.direct());
        let frozen_ln = Some(Variant::FrozenLn).filter(|v| sweep.variants().contains(v));
        // All effects are over the same clusters. Without any, intervals are null.
        let clusters = effects.first().map_or(0, |e| e.n_clusters());
        let resamples = self.bootstrap.map(|b| b.resample(clusters).ok());
        let with_interval =
            |table: Table<'r, R>, name: &str, interval: &IntervalOf<'_>| match &resamples {
                None => Ok(table),
                Some(resamples) => {
                    interval_columns(table, effects, name, resamples.as_ref(), interval)
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
            for (name, variant) in [("total_effect", total), ("direct_effect", direct)] {
                let name = format!("{prefix}{name}");
                table = effect_column(table, effects, name, |e| effect(e, variant))?;
            }
            // What goes through token frequency, and what through the scale of the final norm.
            for (name, direct) in [
                ("mediated_share", Some(direct)),
                ("ln_mediated_share", frozen_ln),
            ] {
                let (Some(direct), name) = (direct, format!("{prefix}{name}")) else {
                    continue;
                };
                table = effect_column(table, effects, &*name, |e| {
                    let both = effect(e, total)?.zip(effect(e, direct)?);
                    Ok(both.and_then(|(total, direct)| mediated_share(total, direct, self.floor)))
                })?;
                table = with_interval(table, &name, &|e, r| {
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
                    table = effect_column(table, effects, &*name, |e| {
                        Ok(Some(pick(e.change(variant, measure)?, mean)))
                    })?;
                    table = with_interval(table, &name, &|e, r| {
                        e.interval(variant, measure, mean, Over::All, r)
                    })?;
                }
            }
            for (b, band) in self.bands.iter().enumerate() {
                for (kind, mean) in means {
                    let name = format!("{of_variant}.loss.{kind}_{band}_targets");
                    table = effect_column(table, effects, &*name, |e| {
                        Ok(e.band_loss_change(variant, b)?.map(|c| pick(c, mean)))
                    })?;
                    table = with_interval(table, &name, &|e, r| {
                        e.interval(variant, Measure::Loss, mean, Over::Band(b), r)
                    })?;
                }
            }
        }
        Ok(table)
    }
}

/// The interval of an effect.
type IntervalOf<'a> =
    dyn Fn(&EffectSums, &Resamples) -> Result<Option<Interval>, AblateError> + Sync + 'a;

/// Both ends of an interval and the number of resamples without a value, null where there is no interval.
fn interval_columns<'r, R>(
    table: Table<'r, R>,
    effects: &[&EffectSums],
    name: &str,
    resamples: Option<&Resamples>,
    interval: &IntervalOf<'_>,
) -> Result<Table<'r, R>, AblateError> {
    let of_effect = |e: &&EffectSums| resamples.map_or(Ok(None), |r| interval(e, r));
    let intervals: Vec<Option<Interval>> = effects
        .par_iter()
        .map(of_effect)
        .collect::<Result<_, _>>()?;
    let each = || intervals.iter();
    let undefined = each().map(|i| i.map(|i| i.undefined as i32));
    Ok(table
        .values(format!("{name}.low"), each().map(|i| i.map(|i| i.lower)))
        .values(format!("{name}.high"), each().map(|i| i.map(|i| i.upper)))
        .values(format!("{name}.undefined"), undefined))
}

/// The bands as what means run over, by their names.
fn over_bands(bands: &[String]) -> impl Iterator<Item = (&str, Over)> {
    let bands = bands.iter().enumerate();
    bands.map(|(band, name)| (name.as_str(), Over::Band(band)))
}

/// How many rows and clusters each was measured on.
fn row_columns<'r, R>(
    table: Table<'r, R>,
    bands: &[String],
    effects: &[&EffectSums],
) -> Table<'r, R> {
    let mut table = table.values("rows", effects.iter().map(|e| int(e.rows())));
    for (band, name) in bands.iter().enumerate() {
        let rows = effects.iter().map(|e| int(e.band_rows(band)));
        table = table.values(format!("{name}_rows"), rows);
    }
    let clusters = |over| {
        effects
            .iter()
            .map(move |e| int(e.n_clusters_with_rows(over)))
    };
    table = table.values("clusters", clusters(Over::All));
    for (name, over) in over_bands(bands) {
        table = table.values(format!("{name}_clusters"), clusters(over));
    }
    table
}

/// Changes of the targets' ranks, where they were measured.
fn rank_columns<'r, R>(
    table: Table<'r, R>,
    bands: &[String],
    effects: &[&EffectSums],
) -> Table<'r, R> {
    if effects.iter().all(|e| e.rank_change(Over::All).is_none()) {
        return table;
    }
    let changes = |over| effects.iter().map(move |e| e.rank_change(over));
    let table = table.values("rank_mean_change", changes(Over::All));
    over_bands(bands).fold(table, |table, (name, over)| {
        table.values(format!("rank_mean_change_{name}_targets"), changes(over))
    })
}

fn effect_column<'r, R>(
    table: Table<'r, R>,
    effects: &[&EffectSums],
    name: impl Into<String>,
    value: impl Fn(&EffectSums) -> Result<Option<f64>, AblateError>,
) -> Result<Table<'r, R>, AblateError> {
    let values: Vec<Option<f64>> = effects.iter().map(|e| value(e)).collect::<Result<_, _>>()?;
    Ok(table.values(name, values))
}

/// Of the type that places and counts have in the tables.
fn int(value: usize) -> Option<i32> {
    Some(value as i32)
}

fn pick(change: Change, mean: Mean) -> f64 {
    match mean {
        Mean::Signed => change.mean,
        Mean::Absolute => change.mean_abs,
    }
}
