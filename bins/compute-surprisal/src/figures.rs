//! The picture and the report.

use std::collections::BTreeMap;

use job_kit::RunRecord;
use job_kit::plot::{Axis, Color, Figure, Mark};
use job_kit::report::{Grid, Report, Section};
use surprisal_metrics::{Doubt, Interval, Paired, WordForm};

use crate::config::{GroupBy, SurprisalConfig};
use crate::contrasts::{self, Contrast, DrawnAt};
use crate::groups::{ALL_WORDS, COMMON_TOKENS, LONG_TAIL_TOKENS, MOST_GROUPS};
use crate::inputs::Inputs;
use crate::summary::{Acquired, Line, step_name};

const COLORS: [Color; 7] = [
    Color::Black,
    Color::Blue,
    Color::Vermilion,
    Color::Green,
    Color::Orange,
    Color::Purple,
    Color::Sky,
];

const STEM: &str = "surprisal";
const REPORT: &str = "report.html";

const BY_FREQUENCY: &str = "surprisal-by-frequency";
const CHANGE_BY_FREQUENCY: &str = "change-by-frequency";

/// Name of the figure of a group's changes; groups by frequency have numbers, from the rarest words on.
fn change_stem(by: GroupBy, index: usize, group: &str) -> String {
    match by {
        GroupBy::WordFrequency => format!("change-group-{}", index + 1),
        _ => format!("change-{}", group.replace(' ', "-")),
    }
}

/// All files that [`write()`] may make.
pub(crate) fn outputs() -> impl Iterator<Item = String> {
    let named = [ALL_WORDS, LONG_TAIL_TOKENS, COMMON_TOKENS]
        .map(|group| change_stem(GroupBy::TokenBand, 0, group));
    // One more for words whose frequency is not known.
    let numbered = (0..=MOST_GROUPS).map(|i| change_stem(GroupBy::WordFrequency, i, ""));
    [STEM, BY_FREQUENCY, CHANGE_BY_FREQUENCY]
        .map(String::from)
        .into_iter()
        .chain(named)
        .chain(numbered)
        .flat_map(|stem| Figure::outputs(&stem))
        .chain([REPORT.to_owned()])
}

/// An intervention, and what the legends of figures call it.
struct Shown {
    name: String,
    label: String,
}

impl Shown {
    /// With how many neurons it changes at these steps: matched controls stand for those alone that have neurons like them.
    fn new(name: String, inputs: &Inputs<'_>, drawn: &[DrawnAt], steps: &[Option<u64>]) -> Self {
        let spec = inputs.setup.list.iter().find(|spec| spec.name() == name);
        let Some(spec) = spec.filter(|spec| spec.needs_neurons()) else {
            return Self {
                label: name.clone(),
                name,
            };
        };
        let draws = spec.names();
        let sizes: Vec<usize> = match spec.controls() {
            None => {
                let neurons = steps.iter().map(|&step| inputs.store.selected(step));
                neurons.map(|of| of.split_whitespace().count()).collect()
            }
            Some(_) => {
                let drawn = drawn.iter().filter(|at| steps.contains(&at.step));
                let sets = drawn.flat_map(|at| &at.drawn.sets);
                let own = sets.filter(|(name, _)| draws.contains(name));
                own.map(|(_, neurons)| neurons.len()).collect()
            }
        };
        let neurons = match (sizes.iter().min(), sizes.iter().max()) {
            (Some(1), Some(1)) => "1 neuron".to_owned(),
            (Some(least), Some(most)) if least == most => format!("{most} neurons"),
            (Some(least), Some(most)) => format!("{least} to {most} neurons"),
            _ => "no neurons".to_owned(),
        };
        let draws = match spec.controls() {
            None => String::new(),
            Some(_) => format!(", {} draws", draws.len()),
        };
        Self {
            label: format!("{name} ({neurons}{draws})"),
            name,
        }
    }
}

/// Writes the figures and `report.html`.
pub(crate) fn write(
    inputs: &Inputs<'_>,
    (lines, contrasts, drawn): (&[Line], &[Contrast], &[DrawnAt]),
    learned: &[Acquired],
    record: &mut RunRecord,
) -> anyhow::Result<()> {
    let (config, out, by) = (inputs.setup.config, inputs.out, inputs.setup.words.by);
    let shown_at = |steps: &[Option<u64>]| -> Vec<Shown> {
        let names = in_order(lines, |l| &l.intervention).into_iter();
        names
            .map(|name| Shown::new(name, inputs, drawn, steps))
            .collect()
    };
    let interventions = shown_at(&inputs.setup.steps);
    let groups = &inputs.setup.words.groups;
    let shown = format!("surprisal ({})", config.unit.name());
    let mut report = Report::new("Surprisal of words under interventions")
        .fact(
            "model",
            config.model.path.as_ref().map_or_else(
                || config.model.repo.clone().unwrap_or_default(),
                |p| p.display().to_string(),
            ),
        )
        .fact(
            "surprisal",
            format!("{}, {}", form_in_words(config.form()), config.unit.name()),
        )
        .fact("neurons", neurons_in_words(config))
        .fact(
            "neurons selected on the text of the contexts",
            match inputs.setup.selected_on_measured {
                Some(true) => "yes, which flatters them",
                Some(false) => "no",
                None => "not known",
            },
        )
        .fact("words", config.words.path.display())
        .fact("groups of words", groups_in_words(by));

    if by == GroupBy::WordFrequency {
        let last = lines.iter().map(|line| line.step).max();
        let interventions = shown_at(last.as_slice());
        let last: Vec<&Line> = lines.iter().filter(|l| Some(l.step) == last).collect();
        let mut section = Section::new("Surprisal along word frequency")
            .text(
                "The last step. Every word counts once, by the mean over its contexts; a group stands at the mean Zipf value (log10 of the occurrences per billion words) \
                 of its words, rare ones to the left, with the number of words beside it.",
            )
            .saved_figure(
                &frequency_figure(inputs, &last, &interventions, &shown, false),
                "Mean surprisal of the groups of words; a uniform guess takes any token for each piece of a word.",
                (out, BY_FREQUENCY),
                record,
            )?;
        // Nothing changes where there is the unchanged model alone.
        if last.iter().any(|line| line.paired.is_some()) {
            section = section.saved_figure(
                &frequency_figure(
                    inputs,
                    &last,
                    &interventions,
                    &format!("change of {shown}"),
                    true,
                ),
                "Change against the unchanged model on the same words and contexts. Matched controls stand for those selected neurons alone that have neurons like them, \
                 so that fewer neurons are changed than by the others; the contrasts below hold them against just these.",
                (out, CHANGE_BY_FREQUENCY),
                record,
            )?;
        }
        report = report.section(section);
    }

    let over_steps = inputs.setup.steps.iter().all(Option::is_some);
    let section = match over_steps {
        true => over_training(inputs, lines, &interventions, &shown, record)?,
        false => {
            record.note("figures_over_steps", "left out: the model has no steps");
            Section::new("Surprisal").text(
                "Every word counts once, by the mean over its contexts. The model has no training steps, so there is no figure over them.",
            )
        }
    };
    report = report.section(section.grid(means_grid(lines, config)));
    if !contrasts.is_empty() {
        report = report.section(contrasts::section(contrasts, drawn, config.unit));
    }
    if !learned.is_empty() {
        report = report.section(acquisition_section(learned, groups, &interventions));
    }
    Ok(out.write(REPORT, report.to_html())?)
}

/// The surprisal of a uniform guess for each piece that counts, every word once: of each group.
fn chance(inputs: &Inputs<'_>) -> Vec<f64> {
    let mut words: BTreeMap<(usize, &str), (f64, u32)> = BTreeMap::new();
    let pairs = inputs
        .setup
        .words
        .pairs
        .iter()
        .zip(&inputs.setup.words.group);
    for ((pair, &group), request) in pairs.zip(&inputs.setup.requests) {
        let (sum, n) = words.entry((group, &pair.word)).or_default();
        *sum += inputs.setup.chance(request.word.len());
        *n += 1;
    }
    let mut of_groups = vec![(0.0, 0u32); inputs.setup.words.groups.len()];
    for ((group, _), (sum, n)) in words {
        of_groups[group].0 += sum / f64::from(n);
        of_groups[group].1 += 1;
    }
    let mean = |(sum, n): (f64, u32)| sum / f64::from(n.max(1));
    of_groups.into_iter().map(mean).collect()
}

/// Names of groups with how many words each has.
fn counted(lines: &[Line], groups: &[String]) -> Vec<String> {
    let n = |group: &String| {
        let of = lines.iter().filter(|line| &line.group == group);
        of.map(|line| line.words).max().unwrap_or(0)
    };
    let name = |group: &String| format!("{group} (n = {})", n(group));
    groups.iter().map(name).collect()
}

/// The figures over training steps.
fn over_training(
    inputs: &Inputs<'_>,
    lines: &[Line],
    interventions: &[Shown],
    shown: &str,
    record: &mut RunRecord,
) -> anyhow::Result<Section> {
    let (out, by) = (inputs.out, inputs.setup.words.by);
    let groups = &inputs.setup.words.groups;
    // Names of groups fill the titles.
    let steps = format!(
        "{} ({})",
        inputs.setup.checkpoints.counted().label(),
        inputs.setup.config.in_header()
    );
    let x = || Axis::steps(&steps);
    let mut section = Section::new("Surprisal over training").text(
        "Every word counts once, by the mean over its contexts. Bands are 95 % bootstrap-t intervals from 1,000 resamples of the words. Step 0 stands left of \
         the first step, out of scale. The draws of a control set are averaged, and their bands are over words and draws. \
         A uniform guess takes any token for each piece of a word, and is the mean over the words of a group.",
    );
    let first = &interventions[..interventions.len().min(1)];
    let (all, caption) = match by {
        GroupBy::WordFrequency => (
            surprisal_figure(inputs, lines, first, x(), shown),
            "Mean surprisal of each group of words in the unchanged model, or under the first intervention of the list.",
        ),
        _ => (
            surprisal_figure(inputs, lines, interventions, x(), shown),
            "Mean surprisal; full lines are the first group of words, dashed ones the second.",
        ),
    };
    section = section.saved_figure(&all, caption, (out, STEM), record)?;
    for (index, group) in groups.iter().enumerate() {
        if let Some(figure) = change_figure(inputs, lines, group, interventions, x()) {
            section = section.saved_figure(
                &figure,
                "Change against the unchanged model on the same words and contexts; below 0 the intervention makes the words more probable.",
                (out, &change_stem(by, index, group)),
                record,
            )?;
        }
    }
    Ok(section)
}

fn groups_in_words(by: GroupBy) -> &'static str {
    match by {
        GroupBy::WordFrequency => "by the frequency of the word",
        GroupBy::TokenBand => "by whether a token of the word is in the band",
        GroupBy::None | GroupBy::Auto => "one",
    }
}

/// Means, or changes, of the groups at their mean Zipf values.
fn frequency_figure(
    inputs: &Inputs<'_>,
    lines: &[&Line],
    interventions: &[Shown],
    y: &str,
    changes: bool,
) -> Figure {
    let title = match changes {
        true => "Change against base along word frequency",
        false => "Surprisal along word frequency",
    };
    let step = lines.first().and_then(|line| line.step);
    let step = step.map_or(String::new(), |step| format!("step {step}, "));
    let header = inputs.setup.config.in_header();
    let mut figure = Figure::new(
        &format!("{title} ({step}{header})"),
        Axis::linear("frequency of the words (Zipf value)"),
        Axis::linear(y),
    );
    if changes {
        figure = figure.mark(Mark::horizontal("", 0.0));
    } else {
        let chance = chance(inputs);
        let zipf = |group: &String| lines.iter().find(|l| &l.group == group)?.zipf;
        let groups = inputs.setup.words.groups.iter().zip(chance);
        let points = groups.filter_map(|(group, chance)| Some((zipf(group)?, chance)));
        let mark = Mark::line("uniform guess", points).dashed();
        figure = figure.mark(mark.color(Color::Grey));
    }
    let mut labelled = false;
    for (i, intervention) in interventions.iter().enumerate() {
        let words = lines
            .iter()
            .filter(|l| l.intervention == intervention.name && l.zipf.is_some());
        let words = words.map(|l| format!("n = {}", l.words));
        let of: Vec<(f64, f64, Option<Interval>)> = lines
            .iter()
            .filter(|l| l.intervention == intervention.name)
            .filter_map(|l| {
                Some(match changes {
                    true => (l.zipf?, l.paired?.difference, l.paired?.interval),
                    false => (l.zipf?, l.mean, l.interval),
                })
            })
            .collect();
        if of.is_empty() {
            continue;
        }
        let mut mark = Mark::line(&intervention.label, of.iter().map(|(x, y, _)| (*x, *y)))
            .color(COLORS[i % COLORS.len()])
            .with_dots();
        if !labelled {
            labelled = true;
            mark = mark.labels(words);
        }
        // Interventions share the words, so the bands of their means would lie on one another.
        if changes || i == 0 {
            mark = mark.intervals(of.iter().map(|(_, _, i)| i.map(|i| (i.lower, i.upper))));
        }
        figure = figure.mark(mark);
    }
    figure.size(860, 440)
}

/// Distinct values in the order of their first line.
fn in_order(lines: &[Line], value: impl Fn(&Line) -> &String) -> Vec<String> {
    let mut distinct: Vec<String> = Vec::new();
    for line in lines {
        if !distinct.contains(value(line)) {
            distinct.push(value(line).clone());
        }
    }
    distinct
}

/// A line for each group of words and intervention: of one intervention, groups have colours of their own; of several, those do.
fn surprisal_figure(
    inputs: &Inputs<'_>,
    lines: &[Line],
    interventions: &[Shown],
    x: Axis,
    y: &str,
) -> Figure {
    let chance = chance(inputs);
    let mut figure = Figure::new("Surprisal over training", x, Axis::linear(y));
    let groups = &inputs.setup.words.groups;
    let named = counted(lines, groups);
    let by_group = groups.len() > 1 && interventions.len() == 1;
    for (g, group) in groups.iter().enumerate() {
        // Many would hide the lines; the figure along frequency has them all.
        if groups.len() <= 3 {
            let label = match groups.len() {
                1 => "uniform guess".to_owned(),
                _ => format!("uniform guess, {group}"),
            };
            let rule = Mark::horizontal(&label, chance[g]);
            figure = figure.mark(match by_group {
                true => rule.color(COLORS[g % COLORS.len()]),
                false => rule,
            });
        }
        for (i, intervention) in interventions.iter().enumerate() {
            let of: Vec<&Line> = lines
                .iter()
                .filter(|l| &l.group == group && l.intervention == intervention.name)
                .collect();
            let points = of.iter().filter_map(|l| Some((l.step? as f64, l.mean)));
            let intervals = of.iter().map(|l| l.interval.map(|i| (i.lower, i.upper)));
            let (name, color, dashed) = match (by_group, groups.len()) {
                (true, _) => (named[g].clone(), g, g >= COLORS.len()),
                (false, 1) => (intervention.label.clone(), i, false),
                (false, _) => (format!("{}, {}", intervention.label, named[g]), i, g > 0),
            };
            let mut mark = Mark::line(&name, points)
                .color(COLORS[color % COLORS.len()])
                .with_dots();
            // Interventions share the words, so their bands would lie on one another; those of the changes are drawn apart.
            if i == 0 {
                mark = mark.intervals(intervals);
            }
            if dashed {
                mark = mark.dashed();
            }
            figure = figure.mark(mark);
        }
    }
    figure.size(860, 520)
}

/// None if nothing is compared with `base`.
fn change_figure(
    inputs: &Inputs<'_>,
    lines: &[Line],
    group: &str,
    interventions: &[Shown],
    x: Axis,
) -> Option<Figure> {
    let config = inputs.setup.config;
    let words = lines.iter().filter(|line| line.group == group);
    let words = words.map(|line| line.words).max().unwrap_or(0);
    let mut figure = Figure::new(
        &format!("Change against base: {group} (n = {words} words)"),
        x,
        Axis::linear(&format!("change of surprisal ({})", config.unit.name())),
    )
    .mark(Mark::horizontal("", 0.0));
    let mut any = false;
    for (i, intervention) in interventions.iter().enumerate() {
        let of: Vec<_> = lines
            .iter()
            .filter(|l| l.group == group && l.intervention == intervention.name)
            .filter_map(|l| Some((l.step? as f64, l.paired?)))
            .collect();
        if !of.is_empty() {
            any = true;
            let mark = Mark::line(
                &intervention.label,
                of.iter().map(|(step, p)| (*step, p.difference)),
            );
            figure = figure.mark(
                mark.intervals(
                    of.iter()
                        .map(|(_, p)| p.interval.map(|i| (i.lower, i.upper))),
                )
                .color(COLORS[i % COLORS.len()])
                .with_dots(),
            );
        }
    }
    any.then(|| figure.size(860, 440))
}

fn means_grid(lines: &[Line], config: &SurprisalConfig) -> Grid {
    let none = || "none: too few".to_owned();
    let interval = |i: Interval| format!("{:.3} to {:.3}", i.lower, i.upper);
    /// What the comparison with the unchanged model says, where there is one.
    fn paired(say: impl Fn(&Paired) -> String) -> impl Fn(&&Line) -> String {
        move |line| line.paired.as_ref().map_or(String::new(), &say)
    }
    Grid::of(lines)
        .column("step", |line| step_name(line.step))
        .column("words", |line| line.group.as_str())
        .column("n", |line| line.words.to_string())
        .column("intervention", |line| line.intervention.as_str())
        .column(format!("mean ({})", config.unit.name()), |line| {
            format!("{:.3}", line.mean)
        })
        .column("95 % interval", |line| {
            line.interval.map_or_else(none, interval)
        })
        .column("change", paired(|p| format!("{:+.4}", p.difference)))
        .column(
            "95 % interval",
            paired(|p| p.interval.map_or_else(none, contrasts::ends)),
        )
        .column(
            "words higher / lower",
            paired(|p| format!("{} / {}", p.higher, p.lower)),
        )
        .column("sign test p", paired(|p| format!("{:.2e}", p.sign_p)))
        .column("q", |line| {
            line.sign_q.map_or(String::new(), |q| format!("{q:.2e}"))
        })
        .into()
}

fn acquisition_section(
    learned: &[Acquired],
    groups: &[String],
    interventions: &[Shown],
) -> Section {
    let pairs = groups
        .iter()
        .flat_map(|group| interventions.iter().map(move |i| (group, &i.name)));
    let rows = pairs.map(|(group, name)| {
        let of = learned.iter();
        let of = of.filter(|a| a.group() == group && a.intervention() == name);
        (group, name, of.collect::<Vec<&Acquired>>())
    });
    type Row<'r> = (&'r String, &'r String, Vec<&'r Acquired>);
    fn count(doubts: &[Option<Doubt>]) -> impl Fn(&Row<'_>) -> String {
        move |(.., of)| {
            let with = of.iter().filter(|a| doubts.contains(&a.doubt()));
            with.count().to_string()
        }
    }
    let grid = Grid::of(rows.filter(|(.., of)| !of.is_empty()))
        .column("words", |(group, ..)| group.as_str())
        .column("intervention", |(_, name, _)| name.as_str())
        .column("learned", count(&[None]))
        .column("not learned", count(&[Some(Doubt::NeverBelow)]))
        .column("learned before", count(&[Some(Doubt::AlwaysBelow)]))
        .column(
            "no curve holds",
            count(&[Some(Doubt::NotMonotone), Some(Doubt::Misfit)]),
        )
        .column("median step", |(.., of)| median_age(of));
    Section::new("When words are learned")
        .text(
            "Age of acquisition after Chang and Bergen (2022): a falling sigmoid over log10 of the step is fitted to each word's mean surprisal; the word is learned \
             where the curve passes half-way between chance (a uniform guess for each of its pieces) and the lowest surprisal reached. The median counts words not \
             learned as later than all others, and those learned before the first step as earlier; words that no falling curve describes are left out of it. \
             `acquisition.csv` has every word.",
        )
        .grid(grid)
}

/// The median step at which words were learned. Those not learned, or learned before the first step, are censored: the median counts
/// them as later or earlier than all others. Those whose curve does not hold have no place in it.
fn median_age(words: &[&Acquired]) -> String {
    let age = |word: &&Acquired| match word.doubt() {
        None => word.age().map(|age| age.log10_step),
        Some(Doubt::NeverBelow) => Some(f64::INFINITY),
        Some(Doubt::AlwaysBelow) => Some(f64::NEG_INFINITY),
        Some(_) => None,
    };
    let mut ages: Vec<f64> = words.iter().filter_map(age).collect();
    ages.sort_unstable_by(f64::total_cmp);
    match ages.get(ages.len() / 2) {
        None => "none".to_owned(),
        Some(&f64::INFINITY) => "after the last".to_owned(),
        Some(&f64::NEG_INFINITY) => "before the first".to_owned(),
        Some(age) => format!("{:.0}", 10f64.powf(*age)),
    }
}

fn form_in_words(form: WordForm) -> &'static str {
    match form {
        WordForm::Corrected => {
            "all pieces, corrected for word boundaries (Pimentel and Meister 2024)"
        }
        WordForm::CorrectedWithoutEos => {
            "all pieces, corrected for word boundaries (Oh and Schuler 2024)"
        }
        WordForm::Uncorrected => "all pieces, not corrected",
        WordForm::FirstPiece => "first piece only",
    }
}

fn neurons_in_words(config: &SurprisalConfig) -> String {
    match (&config.neurons.file, &config.neurons.list) {
        (Some(file), _) => file.display().to_string(),
        (None, Some(list)) => list.join(", "),
        (None, None) => "none".into(),
    }
}
