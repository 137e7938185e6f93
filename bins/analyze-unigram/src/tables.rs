//! The tables of a run: the Python package's CSV, and tidy Parquet.

use job_kit::{OutputDir, Table};
use neuron_select::{
    ControlKind, ControlSet, CurveIntervals, Laws, NeuronId, PiecewiseFit, RankInterval, Ranked,
    Standing, TraitBalance,
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

fn write_table<R>(out: &OutputDir, file: &str, table: Table<'_, R>) -> anyhow::Result<()> {
    Ok(out.table(file, &table.batch()?)?)
}

/// The columns that name a neuron.
fn neurons<'r, R>(table: Table<'r, R>, of: impl Fn(&'r R) -> NeuronId) -> Table<'r, R> {
    table
        .column("layer", |row| Some(of(row).layer as i32))
        .column("neuron", |row| Some(of(row).neuron as i32))
        .column("component_name", |row| Some(of(row).to_string()))
}

/// The ends of an interval and the number of resamples without a value, null where there is no interval.
fn interval<'r, R>(
    table: Table<'r, R>,
    name: &str,
    of: impl Fn(&'r R) -> Option<Interval>,
) -> Table<'r, R> {
    table
        .column(format!("{name}_low"), |row| of(row).map(|i| i.lower))
        .column(format!("{name}_high"), |row| of(row).map(|i| i.upper))
        .column(format!("{name}_undefined"), |row| {
            Some(of(row)?.undefined as i64)
        })
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
    let list = |step: &StepAnalysis, value: &dyn Fn(&Ranked) -> String| {
        let list: Vec<String> = step.selected.iter().map(|n| value(&n.ranked)).collect();
        Some(format!("[{}]", list.join(", ")))
    };
    let numbers = |value: fn(&StepAnalysis, &Ranked) -> Option<f64>| {
        move |step: &StepAnalysis| {
            list(step, &|n| {
                value(step, n).map_or("None".into(), |v| format!("{v:?}"))
            })
        }
    };
    let table = Table::of(steps)
        .column("step", |step| Some(step.step))
        .column("top_neurons", |step| {
            list(step, &|n| format!("'{}'", n.effects.neuron))
        })
        .column("med_effect", numbers(|s, n| s.direct(n.mediated_share)))
        .column("kl_diff", numbers(|_, n| Some(n.effects.kl_change)))
        .column(
            "delta_loss_post",
            numbers(|_, n| Some(n.effects.loss_change)),
        )
        .column(
            "delta_loss_post_frozen",
            numbers(|s, n| s.direct(Some(n.effects.frozen_loss_change))),
        );
    write_table(out, SELECTION_CSV, table)
}

/// A row per step and selected neuron.
fn selection(out: &OutputDir, steps: &[StepAnalysis]) -> anyhow::Result<()> {
    let rows: Vec<(&StepAnalysis, &Selected)> = steps
        .iter()
        .flat_map(|step| step.selected.iter().map(move |n| (step, n)))
        .collect();
    type Of = fn(&StepAnalysis, &Selected) -> Option<Interval>;
    let intervals: [(&str, Of); 6] = [
        ("all_token_mediated_share", |_, n| {
            n.all_token_mediated_share
        }),
        ("mediated_share", |s, n| s.direct(n.mediated_share)),
        ("ln_mediated_share", |_, n| n.ln_mediated_share),
        ("kl_change", |_, n| n.kl_change),
        ("loss_change", |_, n| n.loss_change),
        ("total_effect", |_, n| n.total_effect),
    ];
    let table = effect_columns(&rows, |(step, n)| (step, &n.ranked));
    let table = intervals.into_iter().fold(table, |table, (name, of)| {
        interval(table, name, |(step, n)| of(step, n))
    });
    let table = table
        .column("sign_is_certain", |(_, n)| n.sign_is_certain())
        .column("clusters", |(_, n)| Some(n.clusters as i64));
    write_table(out, SELECTION_PARQUET, table)
}

/// A row per step and neuron, selected or not, with its rank or the reason why it has none.
fn ranking(out: &OutputDir, steps: &[StepAnalysis]) -> anyhow::Result<()> {
    let rows: Vec<OfStep<'_>> = steps
        .iter()
        .flat_map(|step| step.ranking.all().iter().map(move |n| (step, n)))
        .collect();
    let table = effect_columns(&rows, |row| *row)
        .column("clusters", |(step, _)| Some(step.clusters as i64))
        .column("selected", |(step, n)| {
            let rank = n.standing.rank();
            Some(rank.is_some_and(|rank| rank <= step.selected.len()))
        })
        .column("left_out", |(_, n)| match n.standing {
            Standing::Ranked(_) => None,
            Standing::OtherSign(_) => Some("other sign"),
            Standing::UnderFloor(_) => Some("under floor"),
            Standing::Undefined => Some("undefined"),
        });
    write_table(out, RANKING_PARQUET, table)
}

/// A neuron at a step.
type OfStep<'a> = (&'a StepAnalysis, &'a Ranked);

/// What selected neurons and all of them have in common; `of` says which neuron a row is of.
fn effect_columns<'r, R>(rows: &'r [R], of: impl Fn(&'r R) -> OfStep<'r>) -> Table<'r, R> {
    let of = &of;
    let value = |value: fn(&Ranked) -> Option<f64>| move |row| value(of(row).1);
    let direct = |value: fn(&Ranked) -> Option<f64>| {
        move |row| {
            let (step, n) = of(row);
            step.direct(value(n))
        }
    };
    let max_t = |place: usize| {
        move |row| {
            let (step, n) = of(row);
            Some(step.max_t.get(&n.effects.neuron)?[place])
        }
    };
    let at_step_0 = |share: Share| {
        move |row| {
            let (step, n) = of(row);
            step.baseline.as_ref()?.share(share, n.effects.neuron)
        }
    };
    let ranks = |row| -> Option<&RankInterval> {
        let (step, n) = of(row);
        step.rank_intervals.get(&n.effects.neuron)
    };
    let table = Table::of(rows)
        .column("step", |row| Some(of(row).0.step))
        .column("rank", |row| Some(of(row).1.standing.rank()? as i64));
    neurons(table, |row| of(row).1.effects.neuron)
        .column("rows", |row| Some(of(row).1.effects.rows as i64))
        .column("mediated_share", direct(|n| n.mediated_share))
        .column("ln_mediated_share", value(|n| n.ln_mediated_share))
        .column(
            "all_token_mediated_share",
            value(|n| n.all_token_mediated_share),
        )
        .column("mediated_share_at_step_0", at_step_0(Share::Frequency))
        .column("ln_mediated_share_at_step_0", at_step_0(Share::FinalNorm))
        .column(
            "all_token_mediated_share_at_step_0",
            at_step_0(Share::AllTokens),
        )
        .column("kl_change", value(|n| Some(n.effects.kl_change)))
        .column("kl_abs_change", value(|n| Some(n.effects.kl_abs_change)))
        .column("loss_change", value(|n| Some(n.effects.loss_change)))
        .column(
            "frozen_loss_change",
            direct(|n| Some(n.effects.frozen_loss_change)),
        )
        .column("total_effect", value(|n| Some(n.effects.total_effect)))
        .column("direct_effect", direct(|n| Some(n.effects.direct_effect)))
        .column("frozen_ln_effect", value(|n| n.effects.frozen_ln_effect))
        .column("frozen_all_effect", value(|n| n.effects.frozen_all_effect))
        .column("activation", value(|n| Some(n.effects.activation)))
        .column("w_out_norm_centred", value(|n| n.effects.weights.norm))
        .column("logit_var", value(|n| n.effects.weights.logit_var))
        .column("null_share", value(|n| n.effects.weights.null_share))
        .column("rank_low", |row| Some(ranks(row)?.low as i64))
        .column("rank_median", |row| Some(ranks(row)?.median as i64))
        .column("rank_high", |row| Some(ranks(row)?.high as i64))
        .column("top_share", |row| Some(ranks(row)?.top_share))
        .column("loss_change_p_max_t", max_t(0))
        .column("kl_change_p_max_t", max_t(1))
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
            let ids = set.neurons.iter().enumerate();
            ids.map(move |(i, id)| (step, set, i, *id))
        })
        .collect();
    let table = Table::of(&rows)
        .column("step", |row| Some(row.0.step))
        .column("kind", |row| Some(row.1.kind.name()))
        .column("draw", |row| Some(row.1.draw as i64))
        .column("stands_for", |row| stands_for(row.0, row.1, row.2));
    write_table(out, CONTROLS_PARQUET, neurons(table, |row| row.3))?;
    let list: Vec<_> = sets()
        .map(|(step, set)| serde_json::json!({"step": step.step, "kind": set.kind.name(), "draw": set.draw, "neurons": set.neurons}))
        .collect();
    Ok(out.write(CONTROLS_JSON, serde_json::to_vec_pretty(&list)?)?)
}

/// A row per step, kind of control and trait: how alike the selection and its controls are in it.
fn balance(out: &OutputDir, steps: &[StepAnalysis]) -> anyhow::Result<()> {
    let rows: Vec<(&StepAnalysis, &TraitBalance)> = steps
        .iter()
        .flat_map(|step| step.controls.balance.iter().map(move |row| (step, row)))
        .collect();
    let neurons = |step: &StepAnalysis, kind: ControlKind| match kind {
        ControlKind::Random => step.selected.len(),
        ControlKind::Matched => step.controls.matched.len(),
    };
    let table = Table::of(&rows)
        .column("step", |row| Some(row.0.step))
        .column("kind", |row| Some(row.1.kind.name()))
        .column("trait", |row| Some(row.1.name.as_str()))
        .column("selection", |row| Some(row.1.balance.as_ref()?.selected))
        .column("controls", |row| Some(row.1.balance.as_ref()?.controls))
        .column("standardised_difference", |row| {
            Some(row.1.balance.as_ref()?.difference)
        })
        .column("selected", |(step, row)| {
            Some(neurons(step, row.kind) as i64)
        })
        .column("without_control", |(step, row)| {
            Some((step.selected.len() - neurons(step, row.kind)) as i64)
        });
    write_table(out, BALANCE_PARQUET, table)
}

/// A row per step, rows and neuron, by influence; `regime` is the number of the fitted piece, from 1.
fn influence(out: &OutputDir, steps: &[StepAnalysis]) -> anyhow::Result<()> {
    let rows: Vec<_> = steps
        .iter()
        .flat_map(|step| step.curves.iter().map(move |curve| (step.step, curve)))
        .flat_map(|(step, curve)| {
            let ranked = curve.influence.iter().enumerate();
            ranked.map(move |(i, (id, value))| (step, curve, i + 1, *id, *value))
        })
        .collect();
    let ln_rank = |rank: usize| (rank as f64).ln();
    let piece = |row: &(i64, &StratumCurve, usize, NeuronId, f64)| {
        let breaks = row.1.curve.best_fit().breaks.iter();
        1 + breaks.filter(|b| ln_rank(row.2) > **b).count()
    };
    let table = Table::of(&rows)
        .column("step", |row| Some(row.0))
        .column("rows", |row| Some(rows_name(row.1.rows)))
        .column("rank", |row| Some(row.2 as i64));
    let table = neurons(table, |row| row.3)
        .column("influence", |row| Some(row.4))
        .column("piece", |row| {
            Some(piece(row) as i64).filter(|_| row.4 > 0.0)
        })
        .column("plateau", |row| Some(row.2 <= row.1.plateau_neurons()));
    write_table(out, INFLUENCE_PARQUET, table)
}

/// Step, curve, place of the fit, the fit.
type CurveRow<'a> = (i64, &'a StratumCurve, usize, &'a PiecewiseFit);

/// A row per step, rows and number of pieces.
fn curves(out: &OutputDir, steps: &[StepAnalysis]) -> anyhow::Result<()> {
    let rows: Vec<CurveRow<'_>> = steps
        .iter()
        .flat_map(|step| step.curves.iter().map(move |curve| (step.step, curve)))
        .flat_map(|(step, curve)| {
            let fits = curve.curve.fits.iter().enumerate();
            fits.map(move |(i, fit)| (step, curve, i, fit))
        })
        .collect();
    /// In the row of the best line.
    fn best<'a>(row: &CurveRow<'a>) -> Option<&'a StratumCurve> {
        Some(row.1).filter(|curve| row.2 == curve.curve.best)
    }
    fn laws<'a>(row: &CurveRow<'a>) -> Option<&'a Laws> {
        best(row)?.laws.as_ref()
    }
    let of_best = |value: fn(&CurveIntervals) -> Option<f64>| {
        move |row: &CurveRow<'_>| value(best(row)?.intervals.as_ref()?)
    };
    let goodness = |place: usize| move |row: &CurveRow<'_>| Some(laws(row)?.fits[place].goodness_p);
    let table = Table::of(&rows)
        .column("step", |row| Some(row.0))
        .column("rows", |row| Some(rows_name(row.1.rows)))
        .column("pieces", |row| Some(row.2 as i64 + 1))
        .column("bic", |row| Some(row.3.bic))
        .column("r_squared", |row| Some(row.3.r_squared))
        .column("neurons", |row| Some(row.1.curve.neurons as i64))
        .column("best", |row| Some(best(row).is_some()))
        .column("shape", |row| Some(best(row)?.curve.shape.name()))
        .column("break_1", |row| row.3.break_ranks().first().copied())
        .column("break_1_low", of_best(|i| Some(i.breaks.first()?[0])))
        .column("break_1_high", of_best(|i| Some(i.breaks.first()?[1])))
        .column("break_2", |row| row.3.break_ranks().get(1).copied())
        .column("break_2_low", of_best(|i| Some(i.breaks.get(1)?[0])))
        .column("break_2_high", of_best(|i| Some(i.breaks.get(1)?[1])))
        .column("slope_1", |row| row.3.slopes.first().copied())
        .column("slope_2", |row| row.3.slopes.get(1).copied())
        .column("slope_3", |row| row.3.slopes.get(2).copied())
        .column("exponent", |row| Some(best(row)?.curve.exponent()))
        .column("exponent_low", of_best(|i| Some(i.exponent[0])))
        .column("exponent_high", of_best(|i| Some(i.exponent[1])))
        .column("same_shape_share", of_best(|i| Some(i.same_shape)))
        .column("plateau_neurons", |row| {
            Some(best(row)?.plateau_neurons() as i64)
        })
        .column("verdict", |row| {
            Some(laws(row).and(row.1.verdict())?.name())
        })
        .column("likeliest_law", |row| Some(laws(row)?.likeliest.name()))
        .column("power_law_goodness_p", goodness(0))
        .column("lognormal_goodness_p", goodness(1))
        .column("exponential_goodness_p", goodness(2))
        .column("likest_other_law", |row| {
            Some(laws(row)?.closest().other.name())
        })
        .column("vuong_z", |row| Some(laws(row)?.closest().z))
        .column("vuong_p", |row| Some(laws(row)?.closest().p));
    write_table(out, CURVES_PARQUET, table)
}

/// A row per step, rows, set and draw.
fn coactivation(out: &OutputDir, steps: &[StepAnalysis]) -> anyhow::Result<()> {
    let rows: Vec<_> = steps
        .iter()
        .flat_map(|step| {
            step.coactivation
                .iter()
                .map(move |set| (step.step, set, &set.coactivation))
        })
        .collect();
    let table = Table::of(&rows)
        .column("step", |row| Some(row.0))
        .column("rows", |row| Some(rows_name(row.1.rows)))
        .column("set", |row| Some(row.1.set.name()))
        .column("draw", |row| row.1.draw.map(|draw| draw as i64))
        .column("positions", |row| Some(row.2.positions as i64))
        .column("neurons", |row| Some(row.2.neurons as i64))
        .column("constant_neurons", |row| Some(row.2.constant as i64))
        .column("mean_correlation", |row| row.2.mean_correlation)
        .column("mean_abs_correlation", |row| row.2.mean_abs_correlation)
        .column("effective_dimension_covariance", |row| {
            Some(row.2.effective_dimension_covariance as i64)
        })
        .column("effective_dimension_zscored", |row| {
            Some(row.2.effective_dimension_zscored as i64)
        });
    write_table(out, COACTIVATION_PARQUET, table)
}

/// A row per step, rows and set; controls of one kind are taken together.
fn band_effects(out: &OutputDir, steps: &[StepAnalysis]) -> anyhow::Result<()> {
    let rows: Vec<_> = steps
        .iter()
        .flat_map(|step| step.band_effects.iter().map(move |set| (step.step, set)))
        .collect();
    let table = Table::of(&rows)
        .column("step", |row| Some(row.0))
        .column("rows", |row| Some(rows_name(row.1.rows)))
        .column("set", |row| Some(row.1.set.name()))
        .column("neurons", |row| Some(row.1.neurons as i64))
        .column("draws", |row| row.1.draws.map(|n| n as i64))
        .column("total_effect", |row| Some(row.1.mean));
    let table = interval(table, "total_effect", |row| row.1.interval)
        .column("selection_rank_p", |row| row.1.rank_p)
        .column("clusters", |row| Some(row.1.clusters as i64));
    write_table(out, BAND_EFFECTS_PARQUET, table)
}

/// A row per step and set: rare minus common rows, each document counted once.
fn band_contrasts(out: &OutputDir, steps: &[StepAnalysis]) -> anyhow::Result<()> {
    let rows: Vec<_> = steps
        .iter()
        .flat_map(|step| step.band_contrasts.iter().map(move |set| (step.step, set)))
        .collect();
    let table = Table::of(&rows)
        .column("step", |row| Some(row.0))
        .column("set", |row| Some(row.1.set.name()))
        .column("neurons", |row| Some(row.1.neurons as i64))
        .column("longtail_minus_common", |row| Some(row.1.mean));
    let table = interval(table, "longtail_minus_common", |row| row.1.interval)
        .column("clusters", |row| Some(row.1.clusters as i64));
    write_table(out, BAND_CONTRASTS_PARQUET, table)
}

/// A row per step and measure: the selection on the documents that made it, and on others.
fn cross_fit(out: &OutputDir, steps: &[StepAnalysis]) -> anyhow::Result<()> {
    let rows: Vec<_> = steps
        .iter()
        .flat_map(|step| step.cross_fits.iter().map(move |fit| (step.step, fit)))
        .collect();
    let table = Table::of(&rows)
        .column("step", |row| Some(row.0))
        .column("measure", |row| Some(row.1.measure))
        .column("folds", |row| Some(row.1.fit.folds.len() as i64))
        .column("in_sample", |row| Some(row.1.fit.in_sample))
        .column("held_out", |row| Some(row.1.fit.held_out));
    let table = interval(table, "held_out", |row| row.1.interval)
        .column("clusters", |row| {
            Some(Group::with_values(&row.1.fit.groups) as i64)
        })
        .column("shrinkage", |row| row.1.fit.shrinkage());
    write_table(out, CROSS_FIT_PARQUET, table)
}

/// A row per pair of steps, set or neuron, and measure: how its mean has changed, paired by document (or sequence).
fn step_changes(out: &OutputDir, changes: &[StepChange]) -> anyhow::Result<()> {
    let neuron = |change: &StepChange| match change.subject {
        Subject::Neuron(id) => Some(id),
        Subject::Selection | Subject::All => None,
    };
    let table = Table::of(changes)
        .column("step", |c| Some(c.step))
        .column("later_step", |c| Some(c.later))
        .column("set", |c| Some(c.subject.name()))
        .column("layer", |c| Some(neuron(c)?.layer as i64))
        .column("neuron", |c| Some(neuron(c)?.neuron as i64))
        .column("measure", |c| Some(c.measure))
        .column("difference", |c| Some(c.mean));
    let table = interval(table, "difference", |c| c.interval)
        .column("clusters", |c| Some(c.clusters as i64));
    write_table(out, STEP_CHANGES_PARQUET, table)
}

/// A row per pair of steps.
fn stability(out: &OutputDir, overlaps: &[Overlap]) -> anyhow::Result<()> {
    let table = Table::of(overlaps)
        .column("step", |o| Some(o.step))
        .column("other_step", |o| Some(o.other))
        .column("selected", |o| Some(o.selected[0] as i64))
        .column("other_selected", |o| Some(o.selected[1] as i64))
        .column("jaccard", |o| o.jaccard)
        .column("jaccard_by_chance", |o| o.chance)
        .column("rank_biased_overlap", |o| o.rank_biased_overlap);
    write_table(out, STABILITY_PARQUET, table)
}
