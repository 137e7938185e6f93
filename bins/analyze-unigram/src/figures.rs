//! The figures of a run.

use std::collections::HashSet;

use job_kit::plot::{Axis, Color, Figure, Mark};
use neuron_select::{NeuronId, Ranked, RowFilter};

use crate::{
    analysis::{SetName, StepAnalysis, StratumCurve},
    stability::Overlap,
};

/// Mediated shares below this are cut off: a ratio may fall without bound where the direct effect is the larger one.
const LOWEST_SHARE: f64 = -0.5;

/// A figure, the name of its files and what it shows.
pub(crate) struct Named {
    pub(crate) stem: String,
    pub(crate) figure: Figure,
    pub(crate) caption: String,
}

/// The figures of one step.
pub(crate) fn of_step(step: &StepAnalysis) -> Vec<Named> {
    // What rests on direct effects is left out where these are of another band.
    let mut figures = match step.direct {
        true => vec![mediation(step), effects(step)],
        false => vec![],
    };
    figures.extend(weights(step));
    figures.extend(norm_effects(step));
    figures.extend(rho(step));
    figures.extend(bands(step));
    figures.extend(curves(step));
    figures.extend(ranks(step));
    for named in &mut figures {
        named.stem = stem_at(step.step, &named.stem);
    }
    figures
}

/// Stems of the figures of one step, and of the one of all steps.
const OF_STEP: [&str; 8] = [
    MEDIATION,
    EFFECTS,
    WEIGHTS,
    NORM_EFFECTS,
    RHO,
    BANDS,
    INFLUENCE,
    RANKS,
];
const MEDIATION: &str = "mediation";
const EFFECTS: &str = "effects";
const WEIGHTS: &str = "weights";
const NORM_EFFECTS: &str = "norm-effects";
const RHO: &str = "rho";
const BANDS: &str = "bands";
const INFLUENCE: &str = "influence";
const RANKS: &str = "ranks";
const STABILITY: &str = "stability";

fn stem_at(step: i64, stem: &str) -> String {
    if step < 0 {
        stem.to_owned()
    } else {
        format!("step{step}-{stem}")
    }
}

/// Stems of all figures that there may be.
pub(crate) fn stems(steps: impl IntoIterator<Item = i64>) -> Vec<String> {
    steps
        .into_iter()
        .flat_map(|step| OF_STEP.map(|stem| stem_at(step, stem)))
        .chain([STABILITY.to_owned()])
        .collect()
}

fn named(stem: &str, figure: Figure, caption: impl Into<String>) -> Named {
    Named {
        stem: stem.to_owned(),
        figure,
        caption: caption.into(),
    }
}

fn title(text: &str, step: &StepAnalysis) -> String {
    if step.step < 0 {
        text.to_owned()
    } else {
        format!("{text}, {}", step.counted.name(step.step))
    }
}

/// The selected neurons and the others.
fn split(step: &StepAnalysis) -> (Vec<&Ranked>, Vec<&Ranked>) {
    let ids: HashSet<NeuronId> = step
        .selected
        .iter()
        .map(|n| n.ranked.effects.neuron)
        .collect();
    step.ranking
        .all()
        .iter()
        .partition(|n| ids.contains(&n.effects.neuron))
}

/// Points of the other neurons in grey, and of the selected ones with their names.
fn named_points(step: &StepAnalysis, place: impl Fn(&Ranked) -> Option<(f64, f64)>) -> [Mark; 2] {
    let (selected, others) = split(step);
    let shown: Vec<(&Ranked, (f64, f64))> = selected
        .into_iter()
        .filter_map(|n| Some((n, place(n)?)))
        .collect();
    // A whole layer cannot be labelled.
    let label = |n: &Ranked| {
        if shown.len() <= 40 {
            n.effects.neuron.to_string()
        } else {
            String::new()
        }
    };
    let others: Vec<(&Ranked, (f64, f64))> = others
        .into_iter()
        .filter_map(|n| Some((n, place(n)?)))
        .collect();
    let names = |of: &[(&Ranked, (f64, f64))]| -> Vec<String> {
        of.iter()
            .map(|(n, _)| n.effects.neuron.to_string())
            .collect()
    };
    [
        Mark::points("other neurons", others.iter().map(|(_, point)| *point))
            .names(names(&others))
            .color(Color::Grey)
            .radius(2.5),
        Mark::points("selected", shown.iter().map(|(_, point)| *point))
            .names(names(&shown))
            .labels(shown.iter().map(|(n, _)| label(n)))
            .color(Color::Vermilion)
            .radius(4.0),
    ]
}

/// After figure 3b of Stolfo et al. 2024.
fn mediation(step: &StepAnalysis) -> Named {
    let place = |n: &Ranked| Some((n.effects.kl_abs_change, n.mediated_share?));
    let undefined = step
        .ranking
        .all()
        .iter()
        .filter(|n| n.mediated_share.is_none())
        .count();
    let below = step
        .ranking
        .all()
        .iter()
        .filter(|n| n.mediated_share.is_some_and(|share| share < LOWEST_SHARE))
        .count();
    let mut caption = "Share of the total effect that goes through token frequency, against the mean absolute change of KL from the token frequencies.".to_owned();
    if undefined > 0 {
        caption +=
            &format!(" {undefined} neurons have a total effect below the floor and no share.");
    }
    let mut share = Axis::linear("mediated share");
    if below > 0 {
        share = share.range(LOWEST_SHARE, 1.02);
        caption += &format!(
            " {below} neurons lie below the figure: their direct effect is much larger than the total one."
        );
    }
    let figure = Figure::new(
        &title("Mediated share and KL change", step),
        Axis::log("mean |change of KL| (nats)"),
        share,
    );
    named(MEDIATION, figure.marks(named_points(step, place)), caption)
}

fn effects(step: &StepAnalysis) -> Named {
    let place = |n: &Ranked| Some((n.effects.total_effect, n.effects.direct_effect));
    let positive = || {
        step.ranking
            .all()
            .iter()
            .map(|n| n.effects.total_effect)
            .filter(|total| *total > 0.0)
    };
    let (low, high) = positive().fold((f64::INFINITY, 0.0f64), |(low, high), total| {
        (low.min(total), high.max(total))
    });
    let figure = Figure::new(
        &title("Total and direct effect", step),
        Axis::log("total effect: mean |change of loss| (nats)"),
        Axis::log("direct effect (nats)"),
    );
    let diagonal = [low, high]
        .into_iter()
        .filter(|v| v.is_finite())
        .map(|v| (v, v));
    let figure = figure.mark(
        Mark::line("nothing mediated", diagonal)
            .color(Color::Black)
            .dashed(),
    );
    named(
        EFFECTS,
        figure.marks(named_points(step, place)),
        "Each point is a neuron. The farther below the line, the more of its effect goes through token frequency.",
    )
}

/// What the weights alone say, after figure 2a of Stolfo et al. 2024.
fn weights(step: &StepAnalysis) -> Option<Named> {
    let place = |n: &Ranked| Some((n.effects.weights.norm?, n.effects.weights.logit_var?));
    step.ranking.all().iter().find_map(place)?;
    let figure = Figure::new(
        &title("Output norm and LogitVar", step),
        Axis::linear("norm of the output weights, centred as the final norm sees them"),
        Axis::log("LogitVar: variance of cosines with the vocabulary"),
    );
    Some(named(
        WEIGHTS,
        figure.marks(named_points(step, place)),
        "Each point is a neuron. Entropy neurons lie to the lower right: long output weights that move all logits alike.",
    ))
}

/// Total effects of single neurons, and what is left of them with the scale of the final norm frozen: after the boxes of Stolfo et al.
/// 2024, who hold entropy neurons against random ones.
fn norm_effects(step: &StepAnalysis) -> Option<Named> {
    let (selected, others) = split(step);
    let groups = [
        ("selected", Color::Vermilion, selected),
        ("other neurons", Color::Grey, others),
    ];
    let mut marks = Vec::new();
    let mut names = Vec::new();
    for (name, color, neurons) in groups {
        let effects: Vec<(f64, f64)> = neurons
            .iter()
            .filter_map(|n| Some((n.effects.total_effect, n.effects.frozen_ln_effect?)))
            .collect();
        let both: [(&str, Vec<f64>); 2] = [
            ("total", effects.iter().map(|e| e.0).collect()),
            ("direct", effects.iter().map(|e| e.1).collect()),
        ];
        for (effect, values) in both {
            let [low, lower, median, upper, high] = five_numbers(values)?;
            let x = names.len() as f64;
            names.push(format!("{name}, {effect}"));
            marks.push(
                Mark::points("", [(x, median)])
                    .intervals([(low, high)])
                    .color(color),
            );
            // The box: between the quartiles.
            marks.push(
                Mark::line("", [(x - 0.2, median), (x + 0.2, median)])
                    .intervals([(lower, upper), (lower, upper)])
                    .color(color),
            );
        }
    }
    let figure = Figure::new(
        &title(
            "Total effect, and direct effect with the final norm frozen",
            step,
        ),
        Axis::categories("", names),
        Axis::log("mean |change of loss| (nats)"),
    );
    Some(named(
        NORM_EFFECTS,
        figure.marks(marks),
        "Neurons of each group: median, quartiles (box) and extremes (line). Where the direct effect is the smaller one, the effect goes through the scale of the final norm.",
    ))
}

/// Least value, lower quartile, median, upper quartile, largest value, interpolated between neighbours; none without values.
fn five_numbers(mut values: Vec<f64>) -> Option<[f64; 5]> {
    values.sort_unstable_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    Some([0.0, 0.25, 0.5, 0.75, 1.0].map(|share| {
        let at = share * last as f64;
        let (below, above) = (values[at.floor() as usize], values[at.ceil() as usize]);
        below + (at - at.floor()) * (above - below)
    }))
}

/// How the null space and the final norm go together, as in Stolfo et al. 2024.
fn rho(step: &StepAnalysis) -> Option<Named> {
    let place = |n: &Ranked| Some((n.effects.weights.null_share?.sqrt(), n.ln_mediated_share?));
    let all = || step.ranking.all().iter();
    all().find_map(place)?;
    let below = all()
        .filter_map(place)
        .filter(|p| p.1 < LOWEST_SHARE)
        .count();
    let mut share = Axis::linear("share mediated by the final norm");
    let mut caption = "Each point is a neuron. rho: the norm of the output weights within the null space of the unembedding, over their whole norm. Entropy neurons lie to the upper right.".to_owned();
    if below > 0 {
        share = share.range(LOWEST_SHARE, 1.02);
        caption += &format!(
            " {below} neurons lie below the figure: their direct effect is much larger than the total one."
        );
    }
    let figure = Figure::new(
        &title("Null space and the effect through the final norm", step),
        Axis::linear("rho"),
        share,
    );
    Some(named(RHO, figure.marks(named_points(step, place)), caption))
}

/// Total effect of the selection and its controls over rare and common rows.
fn bands(step: &StepAnalysis) -> Option<Named> {
    let mut rows: Vec<RowFilter> = Vec::new();
    let mut sets: Vec<SetName> = Vec::new();
    for effect in &step.band_effects {
        if !rows.contains(&effect.rows) {
            rows.push(effect.rows);
        }
        if !sets.contains(&effect.set) {
            sets.push(effect.set);
        }
    }
    if rows.is_empty() {
        return None;
    }
    let order = |set: &SetName| match set {
        SetName::Selection => 0,
        SetName::MatchedSelection => 1,
        SetName::Control(kind) => 2 + *kind as usize,
        SetName::All => 9,
    };
    sets.sort_by_key(order);
    let mark = |set: SetName| {
        let own = step.band_effects.iter().filter(|e| e.set == set);
        let place = |filter: RowFilter| rows.iter().position(|r| *r == filter).unwrap_or(0) as f64;
        let (points, intervals): (Vec<_>, Vec<_>) = own
            .map(|e| {
                (
                    (place(e.rows), e.mean),
                    e.interval.map(|i| (i.lower, i.upper)),
                )
            })
            .unzip();
        let name = match set {
            SetName::Selection => "selected",
            SetName::MatchedSelection => "selected, with matched controls",
            SetName::Control(neuron_select::ControlKind::Random) => "random controls",
            SetName::Control(neuron_select::ControlKind::Matched) => "matched controls",
            SetName::All => "all neurons",
        };
        let color = match set {
            SetName::Selection => Color::Vermilion,
            SetName::MatchedSelection => Color::Orange,
            SetName::Control(neuron_select::ControlKind::Random) => Color::Blue,
            SetName::Control(neuron_select::ControlKind::Matched) => Color::Green,
            SetName::All => Color::Grey,
        };
        Mark::bars(name, points).intervals(intervals).color(color)
    };
    let names = rows.iter().map(|rows| match rows {
        RowFilter::LongTail => "long-tail rows",
        RowFilter::Common => "common rows",
        RowFilter::None => "all rows",
    });
    let figure = Figure::new(
        &title("Total effect by frequency", step),
        Axis::categories("", names),
        Axis::linear("mean total effect (nats)"),
    );
    let figure = figure.marks(sets.into_iter().map(mark));
    Some(named(
        BANDS,
        figure,
        "Mean over the neurons of a set, all draws of a control together; error bars are bootstrap-t intervals over documents (or sequences).",
    ))
}

/// The influence curves of rare and common rows, with their fits.
fn curves(step: &StepAnalysis) -> Option<Named> {
    if step.curves.is_empty() {
        return None;
    }
    let mut figure = Figure::new(
        &title("Influence by rank", step),
        Axis::log("rank of the neuron"),
        Axis::log("influence: mean |change of loss| (nats)"),
    );
    let mut plateaus = Vec::new();
    for (curve, color) in step.curves.iter().zip([Color::Vermilion, Color::Blue]) {
        let fit = curve.curve.best_fit();
        let points = curve
            .influence
            .iter()
            .enumerate()
            .map(|(i, (_, influence))| ((i + 1) as f64, *influence));
        let mut ranks: Vec<f64> = [1.0, curve.curve.neurons as f64]
            .into_iter()
            .chain(fit.break_ranks())
            .collect();
        ranks.sort_unstable_by(f64::total_cmp);
        let name = rows_label(curve);
        figure = figure
            .mark(
                Mark::points(name, points)
                    .names(curve.influence.iter().map(|(neuron, _)| neuron.to_string()))
                    .color(color)
                    .radius(2.0),
            )
            .mark(
                Mark::line("", ranks.iter().map(|&rank| (rank, fit.at(rank)))).color(Color::Black),
            )
            .mark(
                Mark::points(
                    "",
                    fit.break_ranks()
                        .into_iter()
                        .map(|rank| (rank, fit.at(rank))),
                )
                .color(Color::Black)
                .radius(5.0),
            );
        plateaus.push(format!("{name}: {}", crate::summary::curve_in_words(curve)));
    }
    Some(named(
        INFLUENCE,
        figure,
        format!(
            "Dots: neurons. Lines: the broken line that the Bayesian information criterion prefers, with its breaks; independent values of one law bend as well, so the verdict is that of a likelihood comparison. {}.",
            plateaus.join(". ")
        ),
    ))
}

fn rows_label(curve: &StratumCurve) -> &'static str {
    match curve.rows {
        RowFilter::LongTail => "Long-tail rows",
        RowFilter::Common => "Common rows",
        RowFilter::None => "All rows",
    }
}

/// Ranks of the selected neurons over resampled sequences.
fn ranks(step: &StepAnalysis) -> Option<Named> {
    let shown: Vec<_> = step
        .selected
        .iter()
        .take(30)
        .filter_map(|n| step.rank_intervals.get(&n.ranked.effects.neuron))
        .collect();
    if shown.is_empty() {
        return None;
    }
    let names = shown.iter().map(|interval| interval.neuron.to_string());
    let points = shown
        .iter()
        .enumerate()
        .map(|(i, interval)| (i as f64, interval.median as f64));
    let marks = Mark::points("", points)
        .intervals(shown.iter().map(|i| (i.low as f64, i.high as f64)))
        .color(Color::Vermilion)
        .radius(4.0);
    let figure = Figure::new(
        &title("Rank over resampled sequences", step),
        Axis::categories("selected neuron, best first", names),
        Axis::log("rank (1 is best)"),
    );
    let more = step.selected.len().saturating_sub(30);
    let more = if more > 0 {
        format!(" {more} more neurons are in the tables.")
    } else {
        String::new()
    };
    Some(named(
        RANKS,
        figure.mark(marks),
        format!(
            "Median and percentile interval. A neuron that a resample leaves out counts as last.{more}"
        ),
    ))
}

/// Overlap of each selection with the one before and with the last.
pub(crate) fn stability(steps: &[StepAnalysis], overlaps: &[Overlap]) -> Option<Named> {
    let last = steps.last().filter(|_| steps.len() > 1)?;
    let (last, counted) = (last.step, last.counted);
    let place = |step: i64| steps.iter().position(|s| s.step == step).unwrap_or(0);
    let with_last = |value: fn(&Overlap) -> Option<f64>| {
        overlaps
            .iter()
            .filter(move |o| o.other == last)
            .filter_map(move |o| Some((place(o.step) as f64, value(o)?)))
    };
    let with_next: Vec<(f64, f64)> = overlaps
        .iter()
        .filter(|o| place(o.other) == place(o.step) + 1)
        .filter_map(|o| Some((place(o.step) as f64, o.jaccard?)))
        .collect();
    let figure = Figure::new(
        "Overlap of selections between checkpoints",
        Axis::categories(counted.label(), steps.iter().map(|s| s.step.to_string())),
        Axis::linear("overlap").range(0.0, 1.02),
    )
    .mark(Mark::line("Jaccard with the last step", with_last(|o| o.jaccard)).with_dots())
    .mark(
        Mark::line(
            "rank-biased overlap with the last step",
            with_last(|o| o.rank_biased_overlap),
        )
        .with_dots(),
    )
    .mark(
        Mark::line("Jaccard with the next step", with_next)
            .dashed()
            .with_dots(),
    );
    Some(named(
        STABILITY,
        figure,
        "1: the same neurons; 0: none in common.",
    ))
}
