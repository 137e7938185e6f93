//! Figures as files, and the report.

use job_kit::{
    OutputDir, RunRecord,
    plot::Figure,
    report::{Cell, Grid, Report, Section, number},
};

use neuron_select::{ControlKind, Heuristic, Verdict};
use surprisal_metrics::{Group, Interval};

use crate::{
    analysis::{SetName, StepAnalysis, StratumCurve, rows_name},
    baseline::Share,
    changes::{StepChange, Subject},
    config::AnalyzeConfig,
    figures,
    stability::Overlap,
};

const REPORT: &str = "report.html";
const PLOTS: &str = "plots";

/// All files that [`write()`] may make of these steps.
pub(crate) fn outputs(steps: impl IntoIterator<Item = i64>) -> impl Iterator<Item = String> {
    figures::stems(steps)
        .into_iter()
        .flat_map(|stem| Figure::outputs(&format!("{PLOTS}/{stem}")))
        .chain([REPORT.to_owned()])
}

/// Steps whose figures the page shows; those of others are in the folder alone.
const SHOWN_STEPS: usize = 12;

/// Draws every figure into `plots/` and writes `report.html`.
pub(crate) fn write(
    out: &OutputDir,
    config: &AnalyzeConfig,
    steps: &[StepAnalysis],
    (overlaps, changes): (&[Overlap], &[StepChange]),
    record: &mut RunRecord,
) -> anyhow::Result<()> {
    let selection = &config.selection;
    let mut report = Report::new("Neurons selected from ablation effects")
        .fact("input", config.input.path.display())
        .fact("selected", selection.criteria())
        .fact("rows", selection.rows)
        .fact(
            "order",
            match (selection.by_mediation, selection.heuristic) {
                (true, _) => "mediated share first",
                (false, Heuristic::Prob | Heuristic::Kl) => "size of the change",
                (false, Heuristic::NullShare) => "share of the output weights in the null space",
                (false, Heuristic::LogitVar) => "LogitVar, smallest first",
                (false, Heuristic::LnMediatedShare) => "share mediated by the final norm",
            },
        )
        .fact(
            "bootstrap",
            format!(
                "{} resamples of whole documents (or sequences), level {}",
                config.bootstrap.resamples, config.bootstrap.level
            ),
        )
        .fact("seed", config.seed);
    if !record.warnings().is_empty() {
        report = report.section(Section::new("Warnings").text(&record.warnings().join("\n\n")));
    }
    if let Some(named) = figures::stability(steps, overlaps) {
        let section = Section::new("Stability across checkpoints").grid(overlap_grid(overlaps));
        let section = match changes.is_empty() {
            true => section,
            false => section.grid(change_grid(changes)),
        };
        let stem = format!("{PLOTS}/{}", named.stem);
        let mut section =
            section.saved_figure(&named.figure, &named.caption, (out, &stem), record)?;
        if let Some(named) = figures::shares(steps) {
            let stem = format!("{PLOTS}/{}", named.stem);
            section = section.saved_figure(&named.figure, &named.caption, (out, &stem), record)?;
        }
        report = report.section(section);
    }
    for (i, step) in steps.iter().enumerate() {
        let title = if step.step < 0 {
            "Selection".to_owned()
        } else {
            let name = step.counted.name(step.step);
            name.strip_prefix("step")
                .map_or(name.clone(), |n| format!("Step{n}"))
        };
        let mut section = Section::new(&title).grid(selection_grid(step));
        let shown = i + SHOWN_STEPS >= steps.len();
        for named in figures::of_step(step) {
            let stem = format!("{PLOTS}/{}", named.stem);
            if shown {
                section =
                    section.saved_figure(&named.figure, &named.caption, (out, &stem), record)?;
            } else {
                named.figure.write(out, &stem, record)?;
            }
        }
        if !shown {
            section = section.text("The figures of this step are in the folder `plots`.");
        }
        if !step.curves.is_empty() {
            section = section.grid(curve_grid(step));
            for curve in step
                .curves
                .iter()
                .filter(|curve| curve.plateau_neurons() > 0)
            {
                section = section.text(&plateau(curve));
            }
        }
        if step.curves.iter().any(|curve| curve.laws.is_some()) {
            section = section.grid(law_grid(step));
        }
        if !step.cross_fits.is_empty() {
            section = section.grid(cross_fit_grid(step));
        }
        if step
            .band_effects
            .iter()
            .any(|effect| effect.rank_p.is_some())
        {
            section = section.grid(control_grid(step));
        }
        if !step.controls.balance.is_empty() {
            section = section.grid(balance_grid(step));
        }
        if !step.band_contrasts.is_empty() {
            section = section.grid(contrast_grid(step));
        }
        if !step.coactivation.is_empty() {
            section = section.grid(coactivation_grid(step));
        }
        report = report.section(section);
    }
    Ok(out.write(REPORT, report.to_html())?)
}

fn selection_grid(step: &StepAnalysis) -> Grid {
    let columns = [
        "rank",
        "neuron",
        "total effect",
        "interval",
        "mediated",
        "mediated, all tokens",
        "by the final norm",
        "Δ loss",
        "interval",
        "Δ KL",
        "interval",
        "ranks",
        "selected in",
        "p, Δ loss",
        "p, Δ KL",
    ];
    let caption = format!(
        "{} of {} neurons, {}; {}effects and changes in nats; `ranks` are those over resampled documents (or sequences), the last where a resample leaves the neuron out, `selected in` is the share of resamples that select the neuron; p values are over all neurons at once (max-t by sign flips of documents)",
        step.selected.len(),
        step.ranking.all().len(),
        step.about,
        step.baselines(),
    );
    let mut grid = Grid::new(columns).caption(&caption);
    for (i, neuron) in step.selected.iter().enumerate() {
        let effects = &neuron.ranked.effects;
        let ranks = step.rank_intervals.get(&effects.neuron);
        let adjusted = step.max_t.get(&effects.neuron);
        let share = |share: Share| {
            share
                .of(step.direct, &neuron.ranked)
                .map_or(Cell::Missing, Cell::Percent)
        };
        let p = |place: usize| adjusted.map_or(Cell::Missing, |p| Cell::Fixed(p[place], 3));
        grid.row([
            (i + 1).into(),
            effects.neuron.to_string().into(),
            effects.total_effect.into(),
            neuron.total_effect.map(ends).into(),
            share(Share::Frequency),
            share(Share::AllTokens),
            share(Share::FinalNorm),
            effects.loss_change.into(),
            neuron.loss_change.map(ends).into(),
            effects.kl_change.into(),
            neuron.kl_change.map(ends).into(),
            ranks
                .map(|r| format!("[{},\u{a0}{}]", r.low, r.high))
                .into(),
            ranks.map_or(Cell::Missing, |r| Cell::Percent(r.top_share)),
            p(0),
            p(1),
        ]);
    }
    grid
}

fn curve_grid(step: &StepAnalysis) -> Grid {
    let mut grid = Grid::new([
        "rows",
        "pieces",
        "BIC",
        "R²",
        "breaks (rank)",
        "slopes",
        "best line",
    ])
    .caption("Fits of the influence curve, in log-log coordinates");
    for curve in &step.curves {
        for (i, fit) in curve.curve.fits.iter().enumerate() {
            let list = |values: &[f64], digits: usize| {
                values
                    .iter()
                    .map(|v| format!("{v:.digits$}"))
                    .collect::<Vec<_>>()
                    .join(", ")
            };
            grid.row([
                rows_name(curve.rows).into(),
                (i + 1).into(),
                Cell::Fixed(fit.bic, 1),
                Cell::Fixed(fit.r_squared, 4),
                list(&fit.break_ranks(), 0).into(),
                list(&fit.slopes, 2).into(),
                if i == curve.curve.best {
                    curve.curve.shape.name()
                } else {
                    ""
                }
                .into(),
            ]);
        }
    }
    grid
}

/// An interval that stays on one line.
fn ends(interval: Interval) -> String {
    let [lower, upper] = [interval.lower, interval.upper].map(|end| number(end, 3));
    format!("[{lower},\u{a0}{upper}]")
}

/// Whether the values follow a law at all, which the broken line cannot say.
fn law_grid(step: &StepAnalysis) -> Grid {
    let mut grid = Grid::new([
        "rows",
        "law",
        "log-likelihood",
        "goodness of fit, p",
        "against the likeliest, p",
        "verdict",
    ])
    .caption("Laws of the influences: maximum likelihood of their logarithms, a parametric bootstrap of each law's Kolmogorov-Smirnov distance, and Vuong's test");
    for curve in &step.curves {
        let Some(laws) = &curve.laws else { continue };
        for (i, fit) in laws.fits.iter().enumerate() {
            let against = laws.vuong.iter().find(|v| v.other == fit.law);
            grid.row([
                rows_name(curve.rows).into(),
                fit.law.name().into(),
                Cell::Fixed(fit.log_likelihood, 1),
                Cell::Fixed(fit.goodness_p, 3),
                against.map_or(Cell::Missing, |v| Cell::Fixed(v.p, 3)),
                curve
                    .verdict()
                    .filter(|_| i == 0)
                    .map_or("", Verdict::name)
                    .into(),
            ]);
        }
    }
    grid
}

/// The selection on the documents that made it, and on others.
fn cross_fit_grid(step: &StepAnalysis) -> Grid {
    let mut grid = Grid::new([
        "measure",
        "where selected",
        "held out",
        "interval",
        "shrinkage",
        "documents",
    ])
    .caption("Selected on some documents (or sequences), measured on the others; mean over the selected neurons, in nats. The effects where they were selected are flattered by the selection");
    for fitted in &step.cross_fits {
        grid.row([
            fitted.measure.into(),
            fitted.fit.in_sample.into(),
            fitted.fit.held_out.into(),
            fitted.interval.map(ends).into(),
            fitted.fit.shrinkage().map_or(Cell::Missing, Cell::Percent),
            Group::with_values(&fitted.fit.groups).into(),
        ]);
    }
    grid
}

/// The selection among the draws of its controls.
fn control_grid(step: &StepAnalysis) -> Grid {
    let mut grid = Grid::new([
        "rows",
        "control",
        "draws",
        "documents",
        "selection",
        "mean of controls",
        "rank p",
    ])
        .caption("Mean total effect, in nats; the rank p value is (1 + draws at least as extreme) / (1 + draws); beside matched controls a draw puts in the place of each neuron one of those alike, or the neuron itself");
    for effect in step.band_effects.iter().filter(|e| e.rank_p.is_some()) {
        let of = |set: SetName| {
            let mut effects = step.band_effects.iter();
            effects.find(|e| e.set == set && e.rows == effect.rows)
        };
        let of_matched = match effect.set {
            SetName::Control(ControlKind::Matched) => of(SetName::MatchedSelection),
            _ => None,
        };
        let of_selection = of_matched.or(of(SetName::Selection));
        grid.row([
            rows_name(effect.rows).into(),
            effect.set.name().into(),
            effect.draws.into(),
            effect.clusters.into(),
            of_selection.map(|e| e.mean).into(),
            effect.mean.into(),
            effect.rank_p.map_or(Cell::Missing, |p| Cell::Fixed(p, 3)),
        ]);
    }
    grid
}

/// Whether the controls are controls.
fn balance_grid(step: &StepAnalysis) -> Grid {
    let caption = match step.controls.unmatched.len() {
        0 => "Standardised mean differences between the selection and its controls: those beyond 0.1 on either side are not balanced".to_owned(),
        n => format!("Standardised mean differences between the selection and its controls: those beyond 0.1 on either side are not balanced. {n} selected neurons have no matched control and are left out beside these"),
    };
    let mut grid =
        Grid::new(["control", "trait", "selection", "controls", "difference"]).caption(&caption);
    for row in &step.controls.balance {
        let balance = row.balance.as_ref();
        grid.row([
            row.kind.name().into(),
            row.name.replace('_', " ").into(),
            balance.map(|b| b.selected).into(),
            balance.map(|b| b.controls).into(),
            balance.map_or(Cell::Missing, |b| Cell::Fixed(b.difference, 2)),
        ]);
    }
    grid
}

fn contrast_grid(step: &StepAnalysis) -> Grid {
    let mut grid = Grid::new([
        "set",
        "neurons",
        "rare minus common",
        "interval",
        "documents",
    ])
        .caption("Total effect on rare rows minus that on common rows, in nats, within each document (or sequence) that has both");
    for contrast in &step.band_contrasts {
        grid.row([
            contrast.set.name().into(),
            contrast.neurons.into(),
            contrast.mean.into(),
            contrast.interval.map(ends).into(),
            contrast.clusters.into(),
        ]);
    }
    grid
}

/// The neurons before the first break.
fn plateau(curve: &StratumCurve) -> String {
    let names: Vec<String> = curve.influence[..curve.plateau_neurons()]
        .iter()
        .map(|(neuron, _)| neuron.to_string())
        .collect();
    format!(
        "Plateau of {} rows, {} neurons by influence: {}.",
        curve.rows,
        names.len(),
        names.join(", ")
    )
}

fn coactivation_grid(step: &StepAnalysis) -> Grid {
    let columns = [
        "rows",
        "set",
        "draw",
        "positions",
        "mean correlation",
        "mean |correlation|",
        "effective dimension",
        "the same, z-scored",
    ];
    let mut grid = Grid::new(columns).caption("Co-activation: pairwise correlation over positions, and principal components for 95 % of the variance, of activations as they are and z-scored by neuron");
    for set in &step.coactivation {
        let values = &set.coactivation;
        grid.row([
            rows_name(set.rows).into(),
            set.set.name().into(),
            set.draw.map(|draw| draw + 1).into(),
            values.positions.into(),
            values
                .mean_correlation
                .map_or(Cell::Missing, |r| Cell::Fixed(r, 3)),
            values
                .mean_abs_correlation
                .map_or(Cell::Missing, |r| Cell::Fixed(r, 3)),
            values.effective_dimension_covariance.into(),
            values.effective_dimension_zscored.into(),
        ]);
    }
    grid
}

/// What has changed since earlier checkpoints, of all followed neurons together.
fn change_grid(changes: &[StepChange]) -> Grid {
    let mut grid = Grid::new([
        "step",
        "later step",
        "measure",
        "neurons",
        "later minus earlier",
        "interval",
        "documents",
    ])
    .caption("Differences between checkpoints, in nats, paired by document (or sequence); `selection` are the neurons selected at the last step, each of which has rows of its own in step_changes.parquet");
    let of_sets = |change: &&StepChange| !matches!(change.subject, Subject::Neuron(_));
    for change in changes.iter().filter(of_sets) {
        grid.row([
            change.step.to_string().into(),
            change.later.to_string().into(),
            change.measure.replace('_', " ").into(),
            change.subject.name().into(),
            change.mean.into(),
            change.interval.map(ends).into(),
            change.clusters.into(),
        ]);
    }
    grid
}

fn overlap_grid(overlaps: &[Overlap]) -> Grid {
    let mut grid = Grid::new([
        "step",
        "other step",
        "selected",
        "Jaccard",
        "by chance",
        "rank-biased overlap",
    ]);
    for overlap in overlaps {
        grid.row([
            overlap.step.to_string().into(),
            overlap.other.to_string().into(),
            format!("{}, {}", overlap.selected[0], overlap.selected[1]).into(),
            overlap.jaccard.map_or(Cell::Missing, |j| Cell::Fixed(j, 2)),
            overlap.chance.map_or(Cell::Missing, |j| Cell::Fixed(j, 2)),
            overlap
                .rank_biased_overlap
                .map_or(Cell::Missing, |r| Cell::Fixed(r, 2)),
        ]);
    }
    grid
}
