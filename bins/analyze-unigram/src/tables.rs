//! The tables of a run: the Python package's CSV, and tidy Parquet.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, BooleanArray, Float64Array, Int32Array, Int64Array, StringArray},
    datatypes::{Field, Schema},
    record_batch::RecordBatch,
};
use job_kit::OutputDir;
use neuron_select::{
    Balance, ControlKind, ControlSet, Laws, NeuronId, PiecewiseFit, Ranked, Standing,
};
use surprisal_metrics::{Group, Interval};

use crate::{
    analysis::{Selected, StepAnalysis, StratumCurve, rows_name},
    baseline::Share,
    changes::{StepChange, Subject},
    stability::Overlap,
};

/// Files of the tables.
pub(crate) const OUTPUTS: [&str; 14] = [
    SELECTION_CSV,
    SELECTION_PARQUET,
    RANKING_PARQUET,
    CONTROLS_PARQUET,
    BALANCE_PARQUET,
    INFLUENCE_PARQUET,
    CURVES_PARQUET,
    COACTIVATION_PARQUET,
    BAND_EFFECTS_PARQUET,
    BAND_CONTRASTS_PARQUET,
    CROSS_FIT_PARQUET,
    STABILITY_PARQUET,
    STEP_CHANGES_PARQUET,
    CONTROLS_JSON,
];
const SELECTION_CSV: &str = "selection.csv";
const SELECTION_PARQUET: &str = "selection.parquet";
const RANKING_PARQUET: &str = "ranking.parquet";
const CONTROLS_PARQUET: &str = "controls.parquet";
const BALANCE_PARQUET: &str = "balance.parquet";
const INFLUENCE_PARQUET: &str = "influence.parquet";
const CURVES_PARQUET: &str = "curves.parquet";
const COACTIVATION_PARQUET: &str = "coactivation.parquet";
const BAND_EFFECTS_PARQUET: &str = "band_effects.parquet";
const BAND_CONTRASTS_PARQUET: &str = "band_contrasts.parquet";
const CROSS_FIT_PARQUET: &str = "cross_fit.parquet";
const STABILITY_PARQUET: &str = "stability.parquet";
const STEP_CHANGES_PARQUET: &str = "step_changes.parquet";
const CONTROLS_JSON: &str = "controls.json";

/// Columns in the making; every column has one value per row.
#[derive(Default)]
struct Table(Vec<(&'static str, ArrayRef)>);

impl Table {
    fn int(mut self, name: &'static str, values: impl IntoIterator<Item = Option<i64>>) -> Self {
        self.0.push((name, Arc::new(Int64Array::from_iter(values))));
        self
    }

    fn float(mut self, name: &'static str, values: impl IntoIterator<Item = Option<f64>>) -> Self {
        self.0
            .push((name, Arc::new(Float64Array::from_iter(values))));
        self
    }

    fn text(
        mut self,
        name: &'static str,
        values: impl IntoIterator<Item = Option<String>>,
    ) -> Self {
        self.0
            .push((name, Arc::new(StringArray::from_iter(values))));
        self
    }

    fn truth(mut self, name: &'static str, values: impl IntoIterator<Item = Option<bool>>) -> Self {
        self.0
            .push((name, Arc::new(BooleanArray::from_iter(values))));
        self
    }

    fn neurons(mut self, ids: impl Iterator<Item = NeuronId> + Clone) -> Self {
        self.0.push((
            "layer",
            Arc::new(Int32Array::from_iter_values(
                ids.clone().map(|id| id.layer as i32),
            )),
        ));
        self.0.push((
            "neuron",
            Arc::new(Int32Array::from_iter_values(
                ids.clone().map(|id| id.neuron as i32),
            )),
        ));
        self.text("component_name", ids.map(|id| Some(id.to_string())))
    }

    fn write(self, out: &OutputDir, file: &str) -> anyhow::Result<()> {
        let fields: Vec<Field> = self
            .0
            .iter()
            .map(|(name, array)| Field::new(*name, array.data_type().clone(), true))
            .collect();
        let batch = RecordBatch::try_new(
            Arc::new(Schema::new(fields)),
            self.0.into_iter().map(|(_, array)| array).collect(),
        )?;
        Ok(out.table(file, &batch)?)
    }
}

/// Writes every table.
pub(crate) fn write(
    out: &OutputDir,
    steps: &[StepAnalysis],
    overlaps: &[Overlap],
    changes: &[StepChange],
) -> anyhow::Result<()> {
    python_csv(out, steps)?;
    selection(out, steps)?;
    ranking(out, steps)?;
    controls(out, steps)?;
    balance(out, steps)?;
    influence(out, steps)?;
    curves(out, steps)?;
    coactivation(out, steps)?;
    band_effects(out, steps)?;
    band_contrasts(out, steps)?;
    cross_fit(out, steps)?;
    step_changes(out, changes)?;
    stability(out, overlaps)
}

/// One row per step with lists as Python writes them, as the package of Liu et al. 2025 has it. An undefined share is `None`.
fn python_csv(out: &OutputDir, steps: &[StepAnalysis]) -> anyhow::Result<()> {
    let numbers = |value: fn(&StepAnalysis, &Ranked) -> Option<f64>| {
        steps.iter().map(move |step| {
            let list: Vec<String> = step
                .selected
                .iter()
                .map(|n| value(step, &n.ranked).map_or("None".into(), |v| format!("{v:?}")))
                .collect();
            Some(format!("[{}]", list.join(", ")))
        })
    };
    let names = steps.iter().map(|step| {
        let list: Vec<String> = step
            .selected
            .iter()
            .map(|n| format!("'{}'", n.ranked.effects.neuron))
            .collect();
        Some(format!("[{}]", list.join(", ")))
    });
    Table::default()
        .int("step", steps.iter().map(|step| Some(step.step)))
        .text("top_neurons", names)
        .text("med_effect", numbers(|s, n| s.direct(n.mediated_share)))
        .text("kl_diff", numbers(|_, n| Some(n.effects.kl_change)))
        .text(
            "delta_loss_post",
            numbers(|_, n| Some(n.effects.loss_change)),
        )
        .text(
            "delta_loss_post_frozen",
            numbers(|s, n| s.direct(Some(n.effects.frozen_loss_change))),
        )
        .write(out, SELECTION_CSV)
}

/// An interval of a selected neuron.
type OfSelected = fn(&StepAnalysis, &Selected) -> Option<Interval>;

/// A row per step and selected neuron.
fn selection(out: &OutputDir, steps: &[StepAnalysis]) -> anyhow::Result<()> {
    let rows: Vec<(&StepAnalysis, &Selected)> = steps
        .iter()
        .flat_map(|step| step.selected.iter().map(move |n| (step, n)))
        .collect();
    let table = effect_columns(rows.iter().map(|(step, n)| (*step, &n.ranked)).collect());
    let bound = |value: OfSelected, end: fn(Interval) -> f64| {
        rows.iter().map(move |(step, n)| value(step, n).map(end))
    };
    let columns: [([&str; 3], OfSelected); 6] = [
        (
            [
                "all_token_mediated_share_low",
                "all_token_mediated_share_high",
                "all_token_mediated_share_undefined",
            ],
            |_, n| n.all_token_mediated_share,
        ),
        (
            [
                "mediated_share_low",
                "mediated_share_high",
                "mediated_share_undefined",
            ],
            |s, n| s.direct(n.mediated_share),
        ),
        (
            [
                "ln_mediated_share_low",
                "ln_mediated_share_high",
                "ln_mediated_share_undefined",
            ],
            |_, n| n.ln_mediated_share,
        ),
        (
            ["kl_change_low", "kl_change_high", "kl_change_undefined"],
            |_, n| n.kl_change,
        ),
        (
            [
                "loss_change_low",
                "loss_change_high",
                "loss_change_undefined",
            ],
            |_, n| n.loss_change,
        ),
        (
            [
                "total_effect_low",
                "total_effect_high",
                "total_effect_undefined",
            ],
            |_, n| n.total_effect,
        ),
    ];
    let table = columns
        .into_iter()
        .fold(table, |table, ([low, high, undefined], value)| {
            table
                .float(low, bound(value, |i| i.lower))
                .float(high, bound(value, |i| i.upper))
                .int(
                    undefined,
                    rows.iter()
                        .map(|(step, n)| value(step, n).map(|i| i.undefined as i64)),
                )
        });
    let certain = rows.iter().map(|(_, n)| n.sign_is_certain());
    let table = table.truth("sign_is_certain", certain).int(
        "clusters",
        rows.iter().map(|(_, n)| Some(n.clusters as i64)),
    );
    table.write(out, SELECTION_PARQUET)
}

/// A row per step and neuron, selected or not, with its rank or the reason why it has none.
fn ranking(out: &OutputDir, steps: &[StepAnalysis]) -> anyhow::Result<()> {
    let rows: Vec<(&StepAnalysis, &Ranked)> = steps
        .iter()
        .flat_map(|step| step.ranking.all().iter().map(move |n| (step, n)))
        .collect();
    let left_out = rows.iter().map(|(_, n)| match n.standing {
        Standing::Ranked(_) => None,
        Standing::OtherSign(_) => Some("other sign".to_owned()),
        Standing::UnderFloor(_) => Some("under floor".to_owned()),
        Standing::Undefined => Some("undefined".to_owned()),
    });
    let selected = rows.iter().map(|(step, n)| {
        n.standing
            .rank()
            .is_some_and(|rank| rank <= step.selected.len())
    });
    let table = effect_columns(rows.clone())
        .int(
            "clusters",
            rows.iter().map(|(step, _)| Some(step.clusters as i64)),
        )
        .truth("selected", selected.map(Some))
        .text("left_out", left_out);
    table.write(out, RANKING_PARQUET)
}

fn effect_columns(rows: Vec<(&StepAnalysis, &Ranked)>) -> Table {
    let value = |value: fn(&Ranked) -> Option<f64>| rows.iter().map(move |(_, n)| value(n));
    let direct =
        |value: fn(&Ranked) -> Option<f64>| rows.iter().map(move |(step, n)| step.direct(value(n)));
    let max_t = |place: usize| {
        rows.iter()
            .map(move |(step, n)| Some(step.max_t.get(&n.effects.neuron)?[place]))
    };
    let at_step_0 = |share: Share| {
        rows.iter().map(move |(step, n)| {
            let baseline = step.baseline.as_ref()?;
            baseline.share(share, n.effects.neuron)
        })
    };
    let interval =
        |(step, n): &(&StepAnalysis, &Ranked)| step.rank_intervals.get(&n.effects.neuron).copied();
    Table::default()
        .int("step", rows.iter().map(|(step, _)| Some(step.step)))
        .int(
            "rank",
            rows.iter()
                .map(|(_, n)| n.standing.rank().map(|rank| rank as i64)),
        )
        .neurons(rows.iter().map(|(_, n)| n.effects.neuron))
        .int(
            "rows",
            rows.iter().map(|(_, n)| Some(n.effects.rows as i64)),
        )
        .float("mediated_share", direct(|n| n.mediated_share))
        .float("ln_mediated_share", value(|n| n.ln_mediated_share))
        .float(
            "all_token_mediated_share",
            value(|n| n.all_token_mediated_share),
        )
        .float("mediated_share_at_step_0", at_step_0(Share::Frequency))
        .float("ln_mediated_share_at_step_0", at_step_0(Share::FinalNorm))
        .float(
            "all_token_mediated_share_at_step_0",
            at_step_0(Share::AllTokens),
        )
        .float("kl_change", value(|n| Some(n.effects.kl_change)))
        .float("kl_abs_change", value(|n| Some(n.effects.kl_abs_change)))
        .float("loss_change", value(|n| Some(n.effects.loss_change)))
        .float(
            "frozen_loss_change",
            direct(|n| Some(n.effects.frozen_loss_change)),
        )
        .float("total_effect", value(|n| Some(n.effects.total_effect)))
        .float("direct_effect", direct(|n| Some(n.effects.direct_effect)))
        .float("frozen_ln_effect", value(|n| n.effects.frozen_ln_effect))
        .float("frozen_all_effect", value(|n| n.effects.frozen_all_effect))
        .float("activation", value(|n| Some(n.effects.activation)))
        .float("w_out_norm_centred", value(|n| n.effects.weights.norm))
        .float("logit_var", value(|n| n.effects.weights.logit_var))
        .float("null_share", value(|n| n.effects.weights.null_share))
        .int(
            "rank_low",
            rows.iter().map(|row| interval(row).map(|i| i.low as i64)),
        )
        .int(
            "rank_median",
            rows.iter()
                .map(|row| interval(row).map(|i| i.median as i64)),
        )
        .int(
            "rank_high",
            rows.iter().map(|row| interval(row).map(|i| i.high as i64)),
        )
        .float(
            "top_share",
            rows.iter().map(|row| interval(row).map(|i| i.top_share)),
        )
        .float("loss_change_p_max_t", max_t(0))
        .float("kl_change_p_max_t", max_t(1))
}

/// A row per step, kind, draw and neuron; `stands_for` is the rank of the selected neuron that it is the control of.
fn controls(out: &OutputDir, steps: &[StepAnalysis]) -> anyhow::Result<()> {
    let sets = || {
        steps
            .iter()
            .flat_map(|step| step.controls.sets.iter().map(move |set| (step, set)))
    };
    // A matched control stands for a neuron that has one.
    let stands_for = |step: &StepAnalysis, set: &ControlSet, i: usize| {
        let place = match set.kind {
            ControlKind::Random => Some(i),
            ControlKind::Matched => {
                let matched = step.controls.matched.get(i)?;
                let selected = step.selected.iter();
                let mut ids = selected.map(|n| n.ranked.effects.neuron);
                ids.position(|id| id == *matched)
            }
        };
        place.map(|place| place as i64 + 1)
    };
    let rows: Vec<_> = sets()
        .flat_map(|(step, set)| {
            set.neurons
                .iter()
                .enumerate()
                .map(move |(i, id)| (step, set, i, *id))
        })
        .collect();
    Table::default()
        .int("step", rows.iter().map(|row| Some(row.0.step)))
        .text(
            "kind",
            rows.iter().map(|row| Some(row.1.kind.name().to_owned())),
        )
        .int("draw", rows.iter().map(|row| Some(row.1.draw as i64)))
        .int(
            "stands_for",
            rows.iter().map(|row| stands_for(row.0, row.1, row.2)),
        )
        .neurons(rows.iter().map(|row| row.3))
        .write(out, CONTROLS_PARQUET)?;
    let list: Vec<_> = sets()
        .map(|(step, set)| serde_json::json!({"step": step.step, "kind": set.kind.name(), "draw": set.draw, "neurons": set.neurons}))
        .collect();
    Ok(out.write(CONTROLS_JSON, serde_json::to_vec_pretty(&list)?)?)
}

/// A row per step, kind of control and trait: how alike the selection and its controls are in it.
fn balance(out: &OutputDir, steps: &[StepAnalysis]) -> anyhow::Result<()> {
    let rows: Vec<_> = steps
        .iter()
        .flat_map(|step| step.controls.balance.iter().map(move |row| (step, row)))
        .collect();
    let of = |value: fn(&Balance) -> f64| {
        rows.iter()
            .map(move |row| row.1.balance.as_ref().map(value))
    };
    let neurons = |step: &StepAnalysis, kind: ControlKind| match kind {
        ControlKind::Random => step.selected.len(),
        ControlKind::Matched => step.controls.matched.len(),
    };
    Table::default()
        .int("step", rows.iter().map(|row| Some(row.0.step)))
        .text(
            "kind",
            rows.iter().map(|row| Some(row.1.kind.name().to_owned())),
        )
        .text("trait", rows.iter().map(|row| Some(row.1.name.to_owned())))
        .float("selection", of(|b| b.selected))
        .float("controls", of(|b| b.controls))
        .float("standardised_difference", of(|b| b.difference))
        .int(
            "selected",
            rows.iter()
                .map(|(step, row)| Some(neurons(step, row.kind) as i64)),
        )
        .int(
            "without_control",
            rows.iter()
                .map(|(step, row)| Some((step.selected.len() - neurons(step, row.kind)) as i64)),
        )
        .write(out, BALANCE_PARQUET)
}

/// A row per step, rows and neuron, by influence; `regime` is the number of the fitted piece, from 1.
fn influence(out: &OutputDir, steps: &[StepAnalysis]) -> anyhow::Result<()> {
    let rows: Vec<_> = steps
        .iter()
        .flat_map(|step| step.curves.iter().map(move |curve| (step.step, curve)))
        .flat_map(|(step, curve)| {
            curve
                .influence
                .iter()
                .enumerate()
                .map(move |(i, (id, value))| (step, curve, i + 1, *id, *value))
        })
        .collect();
    let ln_rank = |rank: usize| (rank as f64).ln();
    let piece = |row: &(i64, &StratumCurve, usize, NeuronId, f64)| {
        1 + row
            .1
            .curve
            .best_fit()
            .breaks
            .iter()
            .filter(|b| ln_rank(row.2) > **b)
            .count()
    };
    Table::default()
        .int("step", rows.iter().map(|row| Some(row.0)))
        .text(
            "rows",
            rows.iter()
                .map(|row| Some(rows_name(row.1.rows).to_owned())),
        )
        .int("rank", rows.iter().map(|row| Some(row.2 as i64)))
        .neurons(rows.iter().map(|row| row.3))
        .float("influence", rows.iter().map(|row| Some(row.4)))
        .int(
            "piece",
            rows.iter()
                .map(|row| Some(piece(row) as i64).filter(|_| row.4 > 0.0)),
        )
        .truth(
            "plateau",
            rows.iter()
                .map(|row| Some(row.2 <= row.1.plateau_neurons())),
        )
        .write(out, INFLUENCE_PARQUET)
}

/// Step, curve, place of the fit, the fit.
type CurveRow<'a> = (i64, &'a StratumCurve, usize, &'a PiecewiseFit);

/// The laws, in the row of the best line.
fn with_laws<'a>(row: &CurveRow<'a>) -> Option<&'a Laws> {
    row.1.laws.as_ref().filter(|_| row.2 == row.1.curve.best)
}

/// A row per step, rows and number of pieces.
fn curves(out: &OutputDir, steps: &[StepAnalysis]) -> anyhow::Result<()> {
    let rows: Vec<_> = steps
        .iter()
        .flat_map(|step| step.curves.iter().map(move |curve| (step.step, curve)))
        .flat_map(|(step, curve)| {
            curve
                .curve
                .fits
                .iter()
                .enumerate()
                .map(move |(i, fit)| (step, curve, i, fit))
        })
        .collect();
    let best = |row: &CurveRow<'_>| row.2 == row.1.curve.best;
    let of_best = |value: fn(&neuron_select::CurveIntervals) -> Option<f64>| {
        rows.iter().map(move |row| {
            row.1
                .intervals
                .as_ref()
                .filter(|_| best(row))
                .and_then(value)
        })
    };
    let goodness = |place: usize| {
        rows.iter()
            .map(move |row| with_laws(row).map(|laws| laws.fits[place].goodness_p))
    };
    Table::default()
        .int("step", rows.iter().map(|row| Some(row.0)))
        .text(
            "rows",
            rows.iter()
                .map(|row| Some(rows_name(row.1.rows).to_owned())),
        )
        .int("pieces", rows.iter().map(|row| Some(row.2 as i64 + 1)))
        .float("bic", rows.iter().map(|row| Some(row.3.bic)))
        .float("r_squared", rows.iter().map(|row| Some(row.3.r_squared)))
        .int(
            "neurons",
            rows.iter().map(|row| Some(row.1.curve.neurons as i64)),
        )
        .truth("best", rows.iter().map(|row| Some(best(row))))
        .text(
            "shape",
            rows.iter()
                .map(|row| Some(row.1.curve.shape.name().to_owned()).filter(|_| best(row))),
        )
        .float(
            "break_1",
            rows.iter().map(|row| row.3.break_ranks().first().copied()),
        )
        .float("break_1_low", of_best(|i| i.breaks.first().map(|b| b[0])))
        .float("break_1_high", of_best(|i| i.breaks.first().map(|b| b[1])))
        .float(
            "break_2",
            rows.iter().map(|row| row.3.break_ranks().get(1).copied()),
        )
        .float("break_2_low", of_best(|i| i.breaks.get(1).map(|b| b[0])))
        .float("break_2_high", of_best(|i| i.breaks.get(1).map(|b| b[1])))
        .float(
            "slope_1",
            rows.iter().map(|row| row.3.slopes.first().copied()),
        )
        .float(
            "slope_2",
            rows.iter().map(|row| row.3.slopes.get(1).copied()),
        )
        .float(
            "slope_3",
            rows.iter().map(|row| row.3.slopes.get(2).copied()),
        )
        .float(
            "exponent",
            rows.iter()
                .map(|row| Some(row.1.curve.exponent()).filter(|_| best(row))),
        )
        .float("exponent_low", of_best(|i| Some(i.exponent[0])))
        .float("exponent_high", of_best(|i| Some(i.exponent[1])))
        .float("same_shape_share", of_best(|i| Some(i.same_shape)))
        .int(
            "plateau_neurons",
            rows.iter()
                .map(|row| Some(row.1.plateau_neurons() as i64).filter(|_| best(row))),
        )
        .text(
            "verdict",
            rows.iter().map(|row| {
                with_laws(row)
                    .and(row.1.verdict())
                    .map(|v| v.name().to_owned())
            }),
        )
        .text(
            "likeliest_law",
            rows.iter()
                .map(|row| Some(with_laws(row)?.likeliest.name().to_owned())),
        )
        .float("power_law_goodness_p", goodness(0))
        .float("lognormal_goodness_p", goodness(1))
        .float("exponential_goodness_p", goodness(2))
        .text(
            "likest_other_law",
            rows.iter()
                .map(|row| Some(with_laws(row)?.closest().other.name().to_owned())),
        )
        .float(
            "vuong_z",
            rows.iter().map(|row| Some(with_laws(row)?.closest().z)),
        )
        .float(
            "vuong_p",
            rows.iter().map(|row| Some(with_laws(row)?.closest().p)),
        )
        .write(out, CURVES_PARQUET)
}

/// A row per step, rows, set and draw.
fn coactivation(out: &OutputDir, steps: &[StepAnalysis]) -> anyhow::Result<()> {
    let rows: Vec<_> = steps
        .iter()
        .flat_map(|step| step.coactivation.iter().map(move |set| (step.step, set)))
        .collect();
    Table::default()
        .int("step", rows.iter().map(|row| Some(row.0)))
        .text(
            "rows",
            rows.iter()
                .map(|row| Some(rows_name(row.1.rows).to_owned())),
        )
        .text(
            "set",
            rows.iter().map(|row| Some(row.1.set.name().to_owned())),
        )
        .int(
            "draw",
            rows.iter().map(|row| row.1.draw.map(|draw| draw as i64)),
        )
        .int(
            "positions",
            rows.iter()
                .map(|row| Some(row.1.coactivation.positions as i64)),
        )
        .int(
            "neurons",
            rows.iter()
                .map(|row| Some(row.1.coactivation.neurons as i64)),
        )
        .int(
            "constant_neurons",
            rows.iter()
                .map(|row| Some(row.1.coactivation.constant as i64)),
        )
        .float(
            "mean_correlation",
            rows.iter().map(|row| row.1.coactivation.mean_correlation),
        )
        .float(
            "mean_abs_correlation",
            rows.iter()
                .map(|row| row.1.coactivation.mean_abs_correlation),
        )
        .int(
            "effective_dimension_covariance",
            rows.iter()
                .map(|row| Some(row.1.coactivation.effective_dimension_covariance as i64)),
        )
        .int(
            "effective_dimension_zscored",
            rows.iter()
                .map(|row| Some(row.1.coactivation.effective_dimension_zscored as i64)),
        )
        .write(out, COACTIVATION_PARQUET)
}

/// A row per step, rows and set; controls of one kind are taken together.
fn band_effects(out: &OutputDir, steps: &[StepAnalysis]) -> anyhow::Result<()> {
    let rows: Vec<_> = steps
        .iter()
        .flat_map(|step| step.band_effects.iter().map(move |set| (step.step, set)))
        .collect();
    Table::default()
        .int("step", rows.iter().map(|row| Some(row.0)))
        .text(
            "rows",
            rows.iter()
                .map(|row| Some(rows_name(row.1.rows).to_owned())),
        )
        .text(
            "set",
            rows.iter().map(|row| Some(row.1.set.name().to_owned())),
        )
        .int("neurons", rows.iter().map(|row| Some(row.1.neurons as i64)))
        .int(
            "draws",
            rows.iter().map(|row| row.1.draws.map(|n| n as i64)),
        )
        .float("total_effect", rows.iter().map(|row| Some(row.1.mean)))
        .float(
            "total_effect_low",
            rows.iter().map(|row| row.1.interval.map(|i| i.lower)),
        )
        .float(
            "total_effect_high",
            rows.iter().map(|row| row.1.interval.map(|i| i.upper)),
        )
        .int(
            "total_effect_undefined",
            rows.iter()
                .map(|row| row.1.interval.map(|i| i.undefined as i64)),
        )
        .float("selection_rank_p", rows.iter().map(|row| row.1.rank_p))
        .int(
            "clusters",
            rows.iter().map(|row| Some(row.1.clusters as i64)),
        )
        .write(out, BAND_EFFECTS_PARQUET)
}

/// A row per step and set: rare minus common rows, each document counted once.
fn band_contrasts(out: &OutputDir, steps: &[StepAnalysis]) -> anyhow::Result<()> {
    let rows: Vec<_> = steps
        .iter()
        .flat_map(|step| step.band_contrasts.iter().map(move |set| (step.step, set)))
        .collect();
    let of = |value: fn(Interval) -> f64| rows.iter().map(move |row| row.1.interval.map(value));
    Table::default()
        .int("step", rows.iter().map(|row| Some(row.0)))
        .text(
            "set",
            rows.iter().map(|row| Some(row.1.set.name().to_owned())),
        )
        .int("neurons", rows.iter().map(|row| Some(row.1.neurons as i64)))
        .float(
            "longtail_minus_common",
            rows.iter().map(|row| Some(row.1.mean)),
        )
        .float("longtail_minus_common_low", of(|i| i.lower))
        .float("longtail_minus_common_high", of(|i| i.upper))
        .int(
            "longtail_minus_common_undefined",
            rows.iter()
                .map(|row| row.1.interval.map(|i| i.undefined as i64)),
        )
        .int(
            "clusters",
            rows.iter().map(|row| Some(row.1.clusters as i64)),
        )
        .write(out, BAND_CONTRASTS_PARQUET)
}

/// A row per step and measure: the selection on the documents that made it, and on others.
fn cross_fit(out: &OutputDir, steps: &[StepAnalysis]) -> anyhow::Result<()> {
    let rows: Vec<_> = steps
        .iter()
        .flat_map(|step| step.cross_fits.iter().map(move |fit| (step.step, fit)))
        .collect();
    let of = |value: fn(Interval) -> f64| rows.iter().map(move |row| row.1.interval.map(value));
    Table::default()
        .int("step", rows.iter().map(|row| Some(row.0)))
        .text(
            "measure",
            rows.iter().map(|row| Some(row.1.measure.to_owned())),
        )
        .int(
            "folds",
            rows.iter().map(|row| Some(row.1.fit.folds.len() as i64)),
        )
        .float(
            "in_sample",
            rows.iter().map(|row| Some(row.1.fit.in_sample)),
        )
        .float("held_out", rows.iter().map(|row| Some(row.1.fit.held_out)))
        .float("held_out_low", of(|i| i.lower))
        .float("held_out_high", of(|i| i.upper))
        .int(
            "held_out_undefined",
            rows.iter()
                .map(|row| row.1.interval.map(|i| i.undefined as i64)),
        )
        .int(
            "clusters",
            rows.iter()
                .map(|row| Some(Group::with_values(&row.1.fit.groups) as i64)),
        )
        .float("shrinkage", rows.iter().map(|row| row.1.fit.shrinkage()))
        .write(out, CROSS_FIT_PARQUET)
}

/// A row per pair of steps, set or neuron, and measure: how its mean has changed, paired by document (or sequence).
fn step_changes(out: &OutputDir, changes: &[StepChange]) -> anyhow::Result<()> {
    let neuron = |change: &StepChange| match change.subject {
        Subject::Neuron(id) => Some(id),
        Subject::Selection | Subject::All => None,
    };
    let of = |value: fn(Interval) -> f64| changes.iter().map(move |c| c.interval.map(value));
    Table::default()
        .int("step", changes.iter().map(|c| Some(c.step)))
        .int("later_step", changes.iter().map(|c| Some(c.later)))
        .text(
            "set",
            changes.iter().map(|c| Some(c.subject.name().to_owned())),
        )
        .int(
            "layer",
            changes.iter().map(|c| Some(neuron(c)?.layer as i64)),
        )
        .int(
            "neuron",
            changes.iter().map(|c| Some(neuron(c)?.neuron as i64)),
        )
        .text(
            "measure",
            changes.iter().map(|c| Some(c.measure.to_owned())),
        )
        .float("difference", changes.iter().map(|c| Some(c.mean)))
        .float("difference_low", of(|i| i.lower))
        .float("difference_high", of(|i| i.upper))
        .int(
            "difference_undefined",
            changes
                .iter()
                .map(|c| c.interval.map(|i| i.undefined as i64)),
        )
        .int("clusters", changes.iter().map(|c| Some(c.clusters as i64)))
        .write(out, STEP_CHANGES_PARQUET)
}

/// A row per pair of steps.
fn stability(out: &OutputDir, overlaps: &[Overlap]) -> anyhow::Result<()> {
    Table::default()
        .int("step", overlaps.iter().map(|o| Some(o.step)))
        .int("other_step", overlaps.iter().map(|o| Some(o.other)))
        .int(
            "selected",
            overlaps.iter().map(|o| Some(o.selected[0] as i64)),
        )
        .int(
            "other_selected",
            overlaps.iter().map(|o| Some(o.selected[1] as i64)),
        )
        .float("jaccard", overlaps.iter().map(|o| o.jaccard))
        .float("jaccard_by_chance", overlaps.iter().map(|o| o.chance))
        .float(
            "rank_biased_overlap",
            overlaps.iter().map(|o| o.rank_biased_overlap),
        )
        .write(out, STABILITY_PARQUET)
}
