//! Figures as files, and the report.

use job_kit::{
    OutputDir, OutputError, RunRecord,
    plot::Figure,
    report::{Cell, Grid, Report, Section, number},
};

use neuron_select::{ControlKind, Heuristic, RankInterval, RowFilter, Verdict};
use surprisal_metrics::{Group, Interval};

use crate::{
    analysis::{Selected, SetEffect, SetName, StepAnalysis, StratumCurve, rows_name},
    baseline::Share,
    changes::{StepChange, Subject},
    config::AnalyzeConfig,
    figures::{self, Named},
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
    if let Some(stability) = figures::stability(steps, overlaps) {
        let mut section = Section::new("Stability across checkpoints").grid(overlap_grid(overlaps));
        if !changes.is_empty() {
            section = section.grid(change_grid(changes));
        }
        for named in [Some(stability), figures::shares(steps)]
            .into_iter()
            .flatten()
        {
            section = saved(section, &named, out, record)?;
        }
        report = report.section(section);
    }
    for (i, step) in steps.iter().enumerate() {
        let shown = i + SHOWN_STEPS >= steps.len();
        report = report.section(of_step(step, shown, out, record)?);
    }
    Ok(out.write(REPORT, report.to_html())?)
}

/// Writes a figure, and adds it to the section.
fn saved(
    section: Section,
    named: &Named,
    out: &OutputDir,
    record: &mut RunRecord,
) -> Result<Section, OutputError> {
    let stem = format!("{PLOTS}/{}", named.stem);
    section.saved_figure(&named.figure, &named.caption, (out, &stem), record)
}

/// The section of a step; its figures are in it if they are to be `shown`.
fn of_step(
    step: &StepAnalysis,
    shown: bool,
    out: &OutputDir,
    record: &mut RunRecord,
) -> Result<Section, OutputError> {
    let name = step.counted.name(step.step);
    let title = match (step.step < 0, name.strip_prefix("step")) {
        (true, _) => "Selection".to_owned(),
        (false, Some(number)) => format!("Step{number}"),
        (false, None) => name,
    };
    let mut section = Section::new(&title).grid(selection_grid(step));
    for named in figures::of_step(step) {
        match shown {
            true => section = saved(section, &named, out, record)?,
            false => {
                let stem = format!("{PLOTS}/{}", named.stem);
                named.figure.write(out, &stem, record)?;
            }
        }
    }
    if !shown {
        section = section.text("The figures of this step are in the folder `plots`.");
    }
    if !step.curves.is_empty() {
        section = section.grid(curve_grid(step));
    }
    for curve in step.curves.iter().filter(|of| of.plateau_neurons() > 0) {
        section = section.text(&plateau(curve));
    }
    type Part = fn(&StepAnalysis) -> Grid;
    let effects = &step.band_effects;
    let parts: [(bool, Part); 6] = [
        (step.curves.iter().any(|of| of.laws.is_some()), law_grid),
        (!step.cross_fits.is_empty(), cross_fit_grid),
        (effects.iter().any(|e| e.rank_p.is_some()), control_grid),
        (!step.controls.balance.is_empty(), balance_grid),
        (!step.band_contrasts.is_empty(), contrast_grid),
        (!step.coactivation.is_empty(), coactivation_grid),
    ];
    let there = parts.into_iter().filter(|(is_there, _)| *is_there);
    Ok(there.fold(section, |section, (_, grid)| section.grid(grid(step))))
}

fn selection_grid(step: &StepAnalysis) -> Grid {
    let caption = format!(
        "{} of {} neurons, {}; {}effects and changes in nats; `ranks` are those over resampled documents (or sequences), the last where a resample leaves the neuron out, `selected in` is the share of resamples that select the neuron; p values are over all neurons at once (max-t by sign flips of documents)",
        step.selected.len(),
        step.ranking.all().len(),
        step.about,
        step.baselines(),
    );
    let id = |n: &Selected| n.ranked.effects.neuron;
    let ranks = |n: &Selected| step.rank_intervals.get(&id(n));
    let share = |share: Share| {
        move |(_, n): &(usize, &Selected)| Cell::percent(share.of(step.direct, &n.ranked))
    };
    let p = |place: usize| {
        move |(_, n): &(usize, &Selected)| Cell::fixed(step.max_t.get(&id(n)).map(|p| p[place]), 3)
    };
    let range = |r: &RankInterval| format!("[{},\u{a0}{}]", r.low, r.high);
    Grid::of((1..).zip(&step.selected))
        .caption(caption)
        .column("rank", |(rank, _)| *rank)
        .column("neuron", |(_, n)| id(n).to_string())
        .column("total effect", |(_, n)| n.ranked.effects.total_effect)
        .column("interval", |(_, n)| n.total_effect.map(ends))
        .column("mediated", share(Share::Frequency))
        .column("mediated, all tokens", share(Share::AllTokens))
        .column("by the final norm", share(Share::FinalNorm))
        .column("Δ loss", |(_, n)| n.ranked.effects.loss_change)
        .column("interval", |(_, n)| n.loss_change.map(ends))
        .column("Δ KL", |(_, n)| n.ranked.effects.kl_change)
        .column("interval", |(_, n)| n.kl_change.map(ends))
        .column("ranks", |(_, n)| ranks(n).map(range))
        .column("selected in", |(_, n)| {
            Cell::percent(ranks(n).map(|r| r.top_share))
        })
        .column("p, Δ loss", p(0))
        .column("p, Δ KL", p(1))
        .into()
}

fn curve_grid(step: &StepAnalysis) -> Grid {
    let list = |values: &[f64], digits: usize| {
        let texts: Vec<String> = values.iter().map(|v| format!("{v:.digits$}")).collect();
        texts.join(", ")
    };
    let fits = step.curves.iter().flat_map(|of| {
        let fits = of.curve.fits.iter().enumerate();
        fits.map(move |(i, fit)| (of, i, fit))
    });
    Grid::of(fits)
        .caption("Fits of the influence curve, in log-log coordinates")
        .column("rows", |(of, ..)| rows_name(of.rows))
        .column("pieces", |(_, i, _)| i + 1)
        .column("BIC", |(.., fit)| Cell::Fixed(fit.bic, 1))
        .column("R²", |(.., fit)| Cell::Fixed(fit.r_squared, 4))
        .column("breaks (rank)", |(.., fit)| list(&fit.break_ranks(), 0))
        .column("slopes", |(.., fit)| list(&fit.slopes, 2))
        .column("best line", |(of, i, _)| match *i == of.curve.best {
            true => of.curve.shape.name(),
            false => "",
        })
        .into()
}

/// An interval that stays on one line.
fn ends(interval: Interval) -> String {
    let [lower, upper] = [interval.lower, interval.upper].map(|end| number(end, 3));
    format!("[{lower},\u{a0}{upper}]")
}

/// Whether the values follow a law at all, which the broken line cannot say.
fn law_grid(step: &StepAnalysis) -> Grid {
    let with_laws = step
        .curves
        .iter()
        .filter_map(|of| Some((of, of.laws.as_ref()?)));
    let fits = with_laws.flat_map(|(of, laws)| {
        let fits = laws.fits.iter().enumerate();
        fits.map(move |(i, fit)| (of, laws, i, fit))
    });
    Grid::of(fits)
        .caption("Laws of the influences: maximum likelihood of their logarithms, a parametric bootstrap of each law's Kolmogorov-Smirnov distance, and Vuong's test")
        .column("rows", |(of, ..)| rows_name(of.rows))
        .column("law", |(.., fit)| fit.law.name())
        .column("log-likelihood", |(.., fit)| {
            Cell::Fixed(fit.log_likelihood, 1)
        })
        .column("goodness of fit, p", |(.., fit)| {
            Cell::Fixed(fit.goodness_p, 3)
        })
        .column("against the likeliest, p", |(_, laws, _, fit)| {
            let against = laws.vuong.iter().find(|v| v.other == fit.law);
            Cell::fixed(against.map(|v| v.p), 3)
        })
        .column("verdict", |(of, _, i, _)| {
            let verdict = of.verdict().filter(|_| *i == 0);
            verdict.map_or("", Verdict::name)
        })
        .into()
}

/// The selection on the documents that made it, and on others.
fn cross_fit_grid(step: &StepAnalysis) -> Grid {
    Grid::of(&step.cross_fits)
        .caption("Selected on some documents (or sequences), measured on the others; mean over the selected neurons, in nats. The effects where they were selected are flattered by the selection")
        .column("measure", |of| of.measure)
        .column("where selected", |of| of.fit.in_sample)
        .column("held out", |of| of.fit.held_out)
        .column("interval", |of| of.interval.map(ends))
        .column("shrinkage", |of| Cell::percent(of.fit.shrinkage()))
        .column("documents", |of| Group::with_values(&of.fit.groups))
        .into()
}

/// The selection among the draws of its controls.
fn control_grid(step: &StepAnalysis) -> Grid {
    let of = |set: SetName, rows: RowFilter| {
        let mut effects = step.band_effects.iter();
        effects.find(|e| e.set == set && e.rows == rows)
    };
    let of_selection = |effect: &SetEffect| {
        let matched = effect.set == SetName::Control(ControlKind::Matched);
        let matched = matched.then_some(SetName::MatchedSelection);
        matched
            .and_then(|set| of(set, effect.rows))
            .or(of(SetName::Selection, effect.rows))
    };
    Grid::of(step.band_effects.iter().filter(|e| e.rank_p.is_some()))
        .caption("Mean total effect, in nats; the rank p value is (1 + draws at least as extreme) / (1 + draws); beside matched controls a draw puts in the place of each neuron one of those alike, or the neuron itself")
        .column("rows", |e| rows_name(e.rows))
        .column("control", |e| e.set.name())
        .column("draws", |e| e.draws)
        .column("documents", |e| e.clusters)
        .column("selection", |e| of_selection(e).map(|e| e.mean))
        .column("mean of controls", |e| e.mean)
        .column("rank p", |e| Cell::fixed(e.rank_p, 3))
        .into()
}

/// Whether the controls are controls.
fn balance_grid(step: &StepAnalysis) -> Grid {
    let mut caption = "Standardised mean differences between the selection and its controls: those beyond 0.1 on either side are not balanced".to_owned();
    let unmatched = step.controls.unmatched.len();
    if unmatched > 0 {
        caption += &format!(
            ". {unmatched} selected neurons have no matched control and are left out beside these"
        );
    }
    Grid::of(&step.controls.balance)
        .caption(caption)
        .column("control", |row| row.kind.name())
        .column("trait", |row| row.name.replace('_', " "))
        .column("selection", |row| row.balance.map(|b| b.selected))
        .column("controls", |row| row.balance.map(|b| b.controls))
        .column("difference", |row| {
            Cell::fixed(row.balance.map(|b| b.difference), 2)
        })
        .into()
}

fn contrast_grid(step: &StepAnalysis) -> Grid {
    Grid::of(&step.band_contrasts)
        .caption("Total effect on rare rows minus that on common rows, in nats, within each document (or sequence) that has both")
        .column("set", |c| c.set.name())
        .column("neurons", |c| c.neurons)
        .column("rare minus common", |c| c.mean)
        .column("interval", |c| c.interval.map(ends))
        .column("documents", |c| c.clusters)
        .into()
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
    Grid::of(step.coactivation.iter().map(|of| (of, &of.coactivation)))
        .caption("Co-activation: pairwise correlation over positions, and principal components for 95 % of the variance, of activations as they are and z-scored by neuron")
        .column("rows", |(of, _)| rows_name(of.rows))
        .column("set", |(of, _)| of.set.name())
        .column("draw", |(of, _)| of.draw.map(|draw| draw + 1))
        .column("positions", |(_, found)| found.positions)
        .column("mean correlation", |(_, found)| {
            Cell::fixed(found.mean_correlation, 3)
        })
        .column("mean |correlation|", |(_, found)| {
            Cell::fixed(found.mean_abs_correlation, 3)
        })
        .column("effective dimension", |(_, found)| {
            found.effective_dimension_covariance
        })
        .column("the same, z-scored", |(_, found)| {
            found.effective_dimension_zscored
        })
        .into()
}

/// What has changed since earlier checkpoints, of all followed neurons together.
fn change_grid(changes: &[StepChange]) -> Grid {
    let of_sets = |change: &&StepChange| !matches!(change.subject, Subject::Neuron(_));
    Grid::of(changes.iter().filter(of_sets))
        .caption("Differences between checkpoints, in nats, paired by document (or sequence); `selection` are the neurons selected at the last step, each of which has rows of its own in step_changes.parquet")
        .column("step", |c| c.step.to_string())
        .column("later step", |c| c.later.to_string())
        .column("measure", |c| c.measure.replace('_', " "))
        .column("neurons", |c| c.subject.name())
        .column("later minus earlier", |c| c.mean)
        .column("interval", |c| c.interval.map(ends))
        .column("documents", |c| c.clusters)
        .into()
}

fn overlap_grid(overlaps: &[Overlap]) -> Grid {
    Grid::of(overlaps)
        .column("step", |o| o.step.to_string())
        .column("other step", |o| o.other.to_string())
        .column("selected", |o| {
            format!("{}, {}", o.selected[0], o.selected[1])
        })
        .column("Jaccard", |o| Cell::fixed(o.jaccard, 2))
        .column("by chance", |o| Cell::fixed(o.chance, 2))
        .column("rank-biased overlap", |o| {
            Cell::fixed(o.rank_biased_overlap, 2)
        })
        .into()
}
