//! The figures of a run.

use std::collections::HashSet;

use job_kit::{
    plot::{Axis, Color, Figure, Mark},
    report::integer,
};
use neuron_select::{NeuronId, Ranked, RowFilter};

use crate::{
    analysis::{SetName, StepAnalysis, StratumCurve},
    baseline::Share,
    stability::Overlap,
};

/// Why shares may lie at the edge of a figure.
const FAR_SHARES: &str = " A share falls without bound where the direct effect is much larger than the total one: triangles at an edge are neurons beyond it.";

/// A figure, the name of its files and what it shows.
pub(crate) struct Named {
    pub(crate) stem: String,
    pub(crate) figure: Figure,
    pub(crate) caption: String,
    /// What the values are of, and how many.
    about: String,
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
        // Those of both kinds of rows have said it themselves.
        if named.about.is_empty() {
            named.about.clone_from(&step.about);
        }
    }
    let with_about = |named: Named| Named {
        figure: named.figure.subtitle(&named.about),
        ..named
    };
    figures.into_iter().map(with_about).collect()
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
const SHARES: &str = "shares";

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
        .chain([STABILITY, SHARES].map(String::from))
        .collect()
}

fn named(stem: &str, figure: Figure, caption: impl Into<String>) -> Named {
    Named {
        stem: stem.to_owned(),
        figure,
        caption: caption.into(),
        about: String::new(),
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
    let all = || step.ranking.all().iter();
    let undefined = all().filter(|n| n.mediated_share.is_none()).count();
    let mut caption = "Share of the total effect that goes through token frequency, against the mean absolute change of KL from the token frequencies.".to_owned();
    if undefined > 0 {
        caption +=
            &format!(" {undefined} neurons have a total effect below the floor and no share.");
    }
    caption += FAR_SHARES;
    let figure = Figure::new(
        &title("Mediated share and KL change", step),
        Axis::log("mean |change of KL| (nats)"),
        Axis::linear("mediated share").bulk(),
    );
    let figure = figure.marks(at_step_0(step, Share::Frequency));
    named(MEDIATION, figure.marks(named_points(step, place)), caption)
}

/// The median share at random weights, as a line across.
fn at_step_0(step: &StepAnalysis, share: Share) -> Option<Mark> {
    let median = step.baseline.as_ref()?.median(share)?;
    let label = format!("median at step 0, random weights: {median:.3}");
    Some(Mark::horizontal(&label, median))
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
        ("others", Color::Grey, others),
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
        let n = effects.len();
        for (effect, values) in both {
            let [low, lower, median, upper, high] = five_numbers(values)?;
            let x = names.len() as f64;
            names.push(format!("{name} ({n}), {effect}"));
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
    step.ranking.all().iter().find_map(place)?;
    let mut figure = Figure::new(
        &title("Null space and the effect through the final norm", step),
        Axis::linear("rho"),
        Axis::linear("share mediated by the final norm").bulk(),
    )
    .marks(at_step_0(step, Share::FinalNorm));
    if let Some(chance) = step.chance_null_share {
        figure = figure.mark(Mark::vertical("by chance", chance.sqrt()));
    }
    let caption = format!(
        "Each point is a neuron. rho: the norm of the output weights within the null space of the unembedding, over their whole norm. Entropy neurons lie to the upper right.{FAR_SHARES}"
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
        let sizes = step.band_effects.iter().find(|e| e.set == set);
        let n = sizes.map_or(String::new(), |e| match e.draws {
            Some(draws) if draws > 0 => format!(" ({draws} sets of {})", e.neurons / draws),
            _ => format!(" ({})", integer(e.neurons as i64)),
        });
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
        Mark::bars(&format!("{name}{n}"), points)
            .intervals(intervals)
            .color(color)
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
    Some(Named {
        about: step.about_both.clone(),
        ..named(
            BANDS,
            figure,
            "Mean over the neurons of a set, all draws of a control together; error bars are bootstrap-t intervals over documents (or sequences).",
        )
    })
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
    for (i, (curve, color)) in step
        .curves
        .iter()
        .zip([Color::Vermilion, Color::Blue])
        .enumerate()
    {
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
            .mark({
                let line = Mark::line("", ranks.iter().map(|&rank| (rank, fit.at(rank))));
                let line = line.color(Color::Black);
                if i > 0 { line.dashed() } else { line }
            })
            .mark(
                Mark::points(
                    "",
                    fit.break_ranks()
                        .into_iter()
                        .map(|rank| (rank, fit.at(rank))),
                )
                .color(color)
                .radius(5.0),
            );
        plateaus.push(format!("{name}: {}", curve.in_words()));
    }
    Some(Named {
        about: step.about_both.clone(),
        ..named(
            INFLUENCE,
            figure,
            format!(
                "Small: neurons. Lines: the broken line that the Bayesian information criterion prefers (dashed of common rows), with its breaks; independent values of one law bend as well, so the verdict is that of a likelihood comparison. {}.",
                plateaus.join(". ")
            ),
        )
    })
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
    let (last, counted, about) = (last.step, last.counted, &last.about);
    let with_last = |value: fn(&Overlap) -> Option<f64>| {
        overlaps
            .iter()
            .filter(move |o| o.other == last)
            .filter_map(move |o| Some((o.step as f64, value(o)?)))
    };
    let next = |step: i64| {
        let place = steps.iter().position(|s| s.step == step)?;
        Some(steps.get(place + 1)?.step)
    };
    let with_next: Vec<(f64, f64)> = overlaps
        .iter()
        .filter(|o| next(o.step) == Some(o.other))
        .filter_map(|o| Some((o.step as f64, o.jaccard?)))
        .collect();
    let figure = Figure::new(
        "Overlap of selections between checkpoints",
        Axis::steps(counted.label()),
        Axis::linear("overlap").range(0.0, 1.02),
    )
    .subtitle(&format!(
        "{} at each step; at step {last} {about}",
        selected_each(steps)
    ))
    .mark(Mark::vertical("last step", last as f64))
    .mark(Mark::line("Jaccard with the last step", with_last(|o| o.jaccard)).with_dots())
    .mark(
        Mark::line(
            "rank-biased overlap with the last step",
            with_last(|o| o.rank_biased_overlap),
        )
        .with_dots(),
    )
    .mark(Mark::line("Jaccard with the next step", with_next).with_dots())
    .mark(Mark::line("Jaccard by chance", with_last(|o| o.chance)).color(Color::Grey));
    Some(named(
        STABILITY,
        figure,
        "1: the same neurons; 0: none in common. By chance: as many neurons drawn at random from the table.",
    ))
}

/// How many neurons the steps select.
fn selected_each(steps: &[StepAnalysis]) -> String {
    let sizes = || steps.iter().map(|step| step.selected.len());
    match (sizes().min(), sizes().max()) {
        (Some(least), Some(most)) if least != most => format!("{least} to {most} selected"),
        (Some(each), _) => format!("{each} selected"),
        _ => String::new(),
    }
}

/// What goes through token frequency and through the final norm, over checkpoints: at random weights there are shares already.
pub(crate) fn shares(steps: &[StepAnalysis]) -> Option<Named> {
    let last = steps.last().filter(|_| steps.len() > 1)?;
    let mut marks = Vec::new();
    let looks = [
        (Share::Frequency, "token frequency", Color::Vermilion),
        (Share::AllTokens, "frequency of all tokens", Color::Purple),
        (Share::FinalNorm, "final norm", Color::Blue),
    ];
    for (share, name, color) in looks {
        for (whose, of_selected) in [("selected", true), ("all neurons", false)] {
            let points: Vec<(f64, f64)> = steps
                .iter()
                .filter_map(|step| {
                    let selected = step.selected.iter().map(|n| &n.ranked);
                    let median = match of_selected {
                        true => share.median(step.direct, selected),
                        false => share.median(step.direct, step.ranking.all().iter()),
                    };
                    Some((step.step as f64, median?))
                })
                .collect();
            if !points.is_empty() {
                let line = Mark::line(&format!("{name}, {whose}"), points);
                let line = line.color(color);
                marks.push(if of_selected {
                    line.with_dots()
                } else {
                    line.with_dots().dashed()
                });
            }
        }
    }
    let figure = Figure::new(
        "Shares of the total effect over checkpoints, medians over neurons",
        Axis::steps(last.counted.label()),
        Axis::linear("share of the total effect"),
    )
    .subtitle(&format!(
        "{} at each step; at step {} {}",
        selected_each(steps),
        last.step,
        last.about
    ))
    .mark(Mark::horizontal("", 0.0));
    (!marks.is_empty()).then(|| {
        named(
            SHARES,
            figure.marks(marks),
            "What of the total effect goes through token frequency, as the reading freezes it and of all tokens, and through the scale of the final norm. The value at step 0 is that of random weights: a share says something about training as far as it differs from it.",
        )
    })
}
