//! What people look at: the trade-off curve, the closing summary, the report.

use job_kit::{
    plot::{Axis, Color, Figure, Mark, PlotError},
    report::{Cell, Grid, Report, Section},
};
use neuron_ablate::{NullSpace, ScalingMeasure as M, TargetGroup};
use surprisal_metrics::Interval;

use crate::{
    arms::{Arm, Control},
    results::Results,
};

/// What is said of the null space.
pub(crate) struct Facts<'a> {
    pub(crate) space: &'a NullSpace,
    pub(crate) rare_tokens: usize,
    pub(crate) unigram_share: f64,
    /// Mean share of the scaled neurons' output weights, if any are scaled.
    pub(crate) scaled_share: Option<f64>,
    pub(crate) mean_share: f64,
    pub(crate) factor: f64,
    pub(crate) level: f64,
}

/// Gain on rare targets against cost on common ones, a line per change, a dot per factor.
pub(crate) fn trade_off(results: &Results, factors: &[f64], base: f64) -> Figure {
    let point = |arm: usize, factor: f64| {
        let cost = results
            .effect(arm, factor, TargetGroup::Common, M::Loss)?
            .difference;
        Some((
            cost,
            -results
                .effect(arm, factor, TargetGroup::Rare, M::Loss)?
                .difference,
        ))
    };
    let figure = Figure::new(
        "Gain on rare against cost on common targets",
        Axis::linear("loss on common targets, scaled - clean (nats)"),
        Axis::linear("loss on rare targets, clean - scaled (nats)"),
    );
    let controls = results.arms.iter().enumerate().filter(|(_, arm)| {
        let contrasted = |control| Control::CONTRASTED.contains(&control);
        arm.control.is_some_and(contrasted)
    });
    let figure = figure.marks(controls.enumerate().map(|(i, (arm, _))| {
        let name = if i == 0 { "controls" } else { "" };
        let points: Vec<(f64, f64)> = factors
            .iter()
            .filter_map(|&factor| point(arm, factor))
            .collect();
        // At the base factor alone there is a point, no line.
        match points.len() {
            1 => Mark::points(name, points).radius(2.5),
            _ => Mark::line(name, points),
        }
        .color(Color::Grey)
    }));
    figure.marks(results.treated().map(|(arm, treated)| {
        let shown: Vec<(f64, (f64, f64))> = factors
            .iter()
            .filter_map(|&factor| Some((factor, point(arm, factor)?)))
            .collect();
        let labels = shown.iter().map(|(factor, _)| {
            if *factor == base {
                format!("{factor}")
            } else {
                String::new()
            }
        });
        Mark::line(&treated.name(), shown.iter().map(|(_, point)| *point))
            .with_dots()
            .labels(labels)
    }))
}

/// The interval of a value, if there is a value.
fn range(interval: Option<Option<Interval>>) -> Cell {
    Cell::Text(match interval {
        Some(Some(i)) => format!("[{:+.4}, {:+.4}]", i.lower, i.upper),
        Some(None) => "too few".into(),
        None => "–".into(),
    })
}

/// What the base factor does, a row per change.
fn effects(results: &Results, factor: f64) -> Grid {
    type Row<'r> = (usize, &'r Arm);
    let effect = |arm, group, measure| results.effect(arm, factor, group, measure);
    let value = |group, measure| {
        move |(arm, _): &Row<'_>| effect(*arm, group, measure).map(|e| e.difference)
    };
    let range = |group, measure| {
        move |(arm, _): &Row<'_>| range(effect(*arm, group, measure).map(|e| e.interval))
    };
    Grid::of(results.treated())
        .column("scaled", |(_, treated)| treated.name())
        .column("rare loss", value(TargetGroup::Rare, M::Loss))
        .column("interval", range(TargetGroup::Rare, M::Loss))
        .column("common loss", value(TargetGroup::Common, M::Loss))
        .column("interval", range(TargetGroup::Common, M::Loss))
        .column("rare mass", value(TargetGroup::All, M::RareMass))
        .column("rare top-5", value(TargetGroup::Rare, M::Top5))
        .column("common top-1", value(TargetGroup::Common, M::Top1))
        .column("JSD", value(TargetGroup::All, M::JensenShannon))
        .into()
}

/// The same against controls, a row per change, kind of controls and group of targets: the loss.
fn contrasts(results: &Results, factor: f64) -> Grid {
    let mut rows = Vec::new();
    for (arm, treated) in results.treated() {
        for control in Control::CONTRASTED {
            for group in [TargetGroup::Rare, TargetGroup::Common] {
                let found = results.contrast(arm, control, factor, group, M::Loss);
                rows.extend(found.map(|contrast| (treated, contrast)));
            }
        }
    }
    let chance = |p: Option<f64>| p.map_or("–".to_owned(), |p| format!("{p:.3}"));
    Grid::of(rows)
        .column("scaled", |(treated, _)| treated.name())
        .column("against", |(_, c)| c.control.name())
        .column("draws", |(_, c)| c.draws.to_string())
        .column("targets", |(_, c)| c.group.name())
        .column("change", |(_, c)| c.change)
        .column("controls", |(_, c)| c.of_controls)
        .column("excess", |(_, c)| c.excess)
        .column("interval", |(_, c)| range(Some(c.interval)))
        .column("p", |(_, c)| chance(c.p))
        .column("q", |(_, c)| chance(c.q))
        .into()
}

/// How alike the neurons and their controls are.
fn balance(results: &Results) -> Grid {
    Grid::of(&results.balance)
        .column("controls", |row| row.kind.name())
        .column("trait", |row| row.name.as_str())
        .column("neurons", |row| row.selected.to_string())
        .column("without control", |row| row.without_control.to_string())
        .column("mean", |row| row.balance.map(|b| b.selected))
        .column("mean of controls", |row| row.balance.map(|b| b.controls))
        .column("difference (sd)", |row| row.balance.map(|b| b.difference))
        .into()
}

fn about(facts: &Facts<'_>) -> String {
    let space = facts.space;
    let options = space.options();
    let scaled = facts.scaled_share.map_or(String::new(), |share| {
        format!(
            " The scaled neurons have {:.1} % of their output weights in it,",
            100.0 * share
        )
    });
    let verb = if facts.scaled_share.is_some() {
        "all neurons of their layers"
    } else {
        "The neurons of the last layer have"
    };
    format!(
        "The {} most frequent tokens span {} dimensions ({:.1} % of the variance; unembedding {}, LayerNorm {}); the null space has {}. \
         It holds {:.1} % of the unigram direction; {:.1} % is what a random vector would have.{scaled} {verb} {:.1} % on average (squared norms). {} tokens count as rare.",
        space.common().len(),
        space.rank(),
        100.0 * space.variance(),
        if options.centred {
            "centred"
        } else {
            "not centred"
        },
        if options.folded {
            "folded in"
        } else {
            "not folded in"
        },
        space.space().dimension(),
        100.0 * facts.unigram_share,
        100.0 * space.chance(),
        100.0 * facts.mean_share,
        facts.rare_tokens,
    )
}

/// The closing summary.
pub(crate) fn summary(results: &Results, facts: &Facts<'_>) -> String {
    format!(
        "\n{}\n\nFactor {}: change of each measure, with {:.0} % intervals over sequences (loss and JSD in nats; below 0 is better for losses):\n\n{}\nAgainst controls:\n\n{}",
        about(facts),
        facts.factor,
        100.0 * facts.level,
        effects(results, facts.factor).to_text(),
        contrasts(results, facts.factor).to_text(),
    )
}

/// The HTML page.
pub(crate) fn report(
    results: &Results,
    facts: &Facts<'_>,
    figure: Option<&Figure>,
    warnings: &[String],
) -> Result<String, PlotError> {
    let mut trade = Section::new("Trade-off");
    trade = match figure {
        Some(figure) => trade.figure(figure, "A dot per factor, the base factor labelled; grey: controls. Up and to the left is better.")?,
        None => trade.text("The text measured has no rare or no common target, so that there is no curve."),
    };
    let mut report = Report::new("Scaling in the null space of common tokens")
        .fact("base factor", facts.factor)
        .fact("null space", format!("{} dimensions", facts.space.space().dimension()))
        .section(Section::new("The null space").text(&about(facts)))
        .section(
            Section::new("Effects of the base factor")
                .text("Change of each measure, `scaled - clean`; losses and the Jensen-Shannon divergence in nats, masses and hits as shares. All factors and measures, both KL divergences and the entropy among them, are in `effects.parquet`.")
                .grid(effects(results, facts.factor)),
        )
        .section(
            Section::new("Against controls")
                .text("The loss at the base factor. Controls are the same weights along random directions by the same amount, and other neurons of the same layers, random and matched (`controls.match`). Excess: the change minus the mean of the controls, paired by document; its interval is over documents and draws, and counts the scaled set as one draw more: 0 lies outside where no set drawn so would be as far. p: rank of the change among the draws, beside matched controls among sets in which each neuron is exchanged for one alike or kept; q: Benjamini-Hochberg over all contrasts of the loss with these controls (`contrasts.parquet`). Neurons that have no match are left out on both sides there.")
                .grid(contrasts(results, facts.factor)),
        )
        .section(trade);
    if !results.balance.is_empty() {
        report = report.section(
            Section::new("How alike neurons and controls are")
                .text("Means of what matched controls share with the neurons that they stand for; differences in standard deviations over the layer count as unbalanced beyond 0.1.")
                .grid(balance(results)),
        );
    }
    if !warnings.is_empty() {
        report = report.section(Section::new("Warnings").text(&warnings.join("\n\n")));
    }
    Ok(report.to_html())
}
