//! The selected neurons against their controls: effects first, then how likely chance makes them.

use std::collections::BTreeMap;
use std::fmt::Write;

use arrow::array::RecordBatch;
use job_kit::Table;
use job_kit::report::{Grid, Section};
use neuron_ablate::NeuronId;
use neuron_select::{ControlKind, TraitBalance, q_values, rank_p};
use surprisal_metrics::{Bootstrap, Group, Interval, Unit};

use crate::interventions::{Drawn, Facts, InterventionSpec};
use crate::summary::{Step, includes_0, step_name, steps};

/// What an intervention on the selected neurons changes more than the same on one kind of controls, in a group of words. Every word counts
/// once.
#[derive(Debug, Clone)]
pub(crate) struct Contrast {
    pub(crate) step: Option<u64>,
    pub(crate) intervention: String,
    pub(crate) control: ControlKind,
    pub(crate) group: String,
    pub(crate) words: usize,
    pub(crate) contexts: usize,
    pub(crate) documents: Option<usize>,
    pub(crate) draws: usize,
    /// Of the selected neurons, or beside matched controls of those that have some, against the unchanged model; none without that.
    pub(crate) change: Option<f64>,
    /// Mean over the draws.
    pub(crate) of_controls: Option<f64>,
    /// The first minus the second.
    pub(crate) excess: f64,
    /// Over words and draws, the selection a draw too.
    pub(crate) interval: Option<Interval>,
    /// Rank among the draws; of matched controls among sets with exchanged neurons.
    pub(crate) p: Option<f64>,
    /// Over all contrasts with this kind of controls.
    pub(crate) q: Option<f64>,
}

impl Contrast {
    /// Whether its rank is among the smallest 5 % while its interval includes 0: then the size of the excess is not known well enough to have a sign.
    fn is_undecided(&self) -> bool {
        self.p.is_some_and(|p| p <= 0.05) && includes_0(self.interval)
    }
}

/// How many are, as [`Contrast::is_undecided`] tells.
pub(crate) fn undecided(contrasts: &[Contrast]) -> usize {
    contrasts.iter().filter(|c| c.is_undecided()).count()
}

/// Control sets of a step and an entry of the list.
#[derive(Debug, Clone)]
pub(crate) struct DrawnAt {
    pub(crate) step: Option<u64>,
    pub(crate) intervention: String,
    pub(crate) drawn: Drawn,
}

impl Step<'_> {
    /// The contrasts of all controls; `drawn` are the sets of the step by entry of the list.
    pub(crate) fn contrasts(
        &self,
        drawn: &BTreeMap<String, Drawn>,
        seed: u64,
    ) -> anyhow::Result<Vec<Contrast>> {
        let mut contrasts = Vec::new();
        for spec in self.list {
            for (group, name) in self.words.groups.iter().enumerate() {
                let spread = drawn.get(&spec.name()).map_or(1.0, |d| d.matched_spread);
                let contrast = self.contrast(spec, (group, name), spread, seed)?;
                contrasts.extend(contrast);
            }
        }
        Ok(contrasts)
    }

    fn contrast(
        &self,
        spec: &InterventionSpec,
        (group, name): (usize, &str),
        spread: f64,
        seed: u64,
    ) -> anyhow::Result<Option<Contrast>> {
        let Some((kind, of)) = spec.controls() else {
            return Ok(None);
        };
        let selected = spec.matched_selection().unwrap_or_else(|| of.like.name());
        let all = |names: Vec<String>| -> Option<Vec<&Vec<Option<f64>>>> {
            names.iter().map(|name| self.values(name)).collect()
        };
        let (Some(own), Some(controls), Some(exchanged)) = (
            self.values(&selected),
            all(spec.names()),
            all(spec.exchanged()),
        ) else {
            return Ok(None);
        };
        let base = self.values("base");
        let mut under = [&controls[..], &exchanged[..], &[own]].concat();
        under.extend(base);
        let pairs = self.defined(group, &under);
        if pairs.is_empty() {
            return Ok(None);
        }
        let cells = |values: &&Vec<Option<f64>>| self.words_of(&pairs, values, base);
        let own = cells(&own);
        let controls: Vec<Vec<Group>> = controls.iter().map(cells).collect();
        let exchanged: Vec<Vec<Group>> = exchanged.iter().map(cells).collect();
        let (like, wider) = match kind {
            ControlKind::Random => (&controls, 1.0),
            ControlKind::Matched => (&exchanged, spread),
        };
        // Every word counts once, so that no group is without a mean.
        let mean = |cells: &[Group]| Group::total(cells).mean().unwrap_or_default();
        let means = |sets: &[Vec<Group>]| sets.iter().map(|set| mean(set)).collect::<Vec<f64>>();
        let (change, of_controls) = (mean(&own), mean(&controls.concat()));
        Ok(Some(Contrast {
            step: self.step,
            intervention: of.like.name(),
            control: kind,
            group: name.to_owned(),
            words: own.len(),
            contexts: pairs.len(),
            documents: self.documents(&pairs),
            draws: controls.len(),
            change: base.map(|_| change),
            of_controls: base.map(|_| of_controls),
            excess: change - of_controls,
            interval: Bootstrap::with_seed(seed).against(&own, &controls, (like, wider))?,
            p: rank_p(change, &means(like)),
            q: None,
        }))
    }
}

/// The q values of all contrasts.
pub(crate) fn adjust(contrasts: &mut [Contrast]) {
    for kind in [ControlKind::Random, ControlKind::Matched] {
        let of_kind = |c: &&mut Contrast| c.control == kind;
        let family: Vec<&mut Contrast> = contrasts.iter_mut().filter(of_kind).collect();
        let p: Vec<Option<f64>> = family.iter().map(|contrast| contrast.p).collect();
        for (contrast, q) in family.into_iter().zip(q_values(&p)) {
            contrast.q = q;
        }
    }
}

/// `contrasts.csv`, `contrasts.parquet`
pub(crate) fn table(rows: &[Contrast], unit: Unit) -> anyhow::Result<RecordBatch> {
    let unit = unit.name();
    let table = Table::of(rows)
        .values("step", steps(rows, |c| c.step)?)
        .column("intervention", |c| Some(c.intervention.as_str()))
        .column("control", |c| Some(c.control.name()))
        .column("group", |c| Some(c.group.as_str()))
        .column("words", |c| Some(c.words as u64))
        .column("contexts", |c| Some(c.contexts as u64))
        .column("documents", |c| c.documents.map(|n| n as u64))
        .column("draws", |c| Some(c.draws as u64))
        .column(format!("change_{unit}"), |c| c.change)
        .column(format!("change_of_controls_{unit}"), |c| c.of_controls)
        .column(format!("excess_{unit}"), |c| Some(c.excess))
        .column(format!("excess_lower_{unit}"), |c| Some(c.interval?.lower))
        .column(format!("excess_upper_{unit}"), |c| Some(c.interval?.upper))
        .column("p", |c| c.p)
        .column("q", |c| c.q);
    Ok(table.batch()?)
}

/// `balance.parquet`
pub(crate) fn balance(drawn: &[DrawnAt]) -> anyhow::Result<RecordBatch> {
    let rows: Vec<(&DrawnAt, &TraitBalance)> = drawn
        .iter()
        .flat_map(|at| at.drawn.balance.iter().map(move |row| (at, row)))
        .collect();
    let table = Table::of(&rows)
        .values("step", steps(&rows, |(at, _)| at.step)?)
        .column("intervention", |(at, _)| Some(at.intervention.as_str()))
        .column("kind", |(_, row)| Some(row.kind.name()))
        .column("trait", |(_, row)| Some(row.name.as_str()))
        .column("selection", |(_, row)| Some(row.balance?.selected))
        .column("controls", |(_, row)| Some(row.balance?.controls))
        .column("standardised_difference", |(_, row)| {
            Some(row.balance?.difference)
        })
        .column("selected", |(_, row)| Some(row.selected as u64))
        .column("without_control", |(_, row)| {
            Some(row.without_control as u64)
        });
    Ok(table.batch()?)
}

/// `neurons.parquet`: a row for each neuron that an intervention changes at a step; `selected` are the selected neurons of each.
pub(crate) fn neurons(
    list: &[InterventionSpec],
    selected: &[(Option<u64>, &str)],
    drawn: &[DrawnAt],
) -> anyhow::Result<RecordBatch> {
    struct Row {
        step: Option<u64>,
        intervention: String,
        facts: Facts,
        neuron: NeuronId,
    }
    let mut rows = Vec::new();
    for (step, neurons) in selected {
        let sets: BTreeMap<&str, &[String]> = drawn
            .iter()
            .filter(|at| at.step == *step)
            .flat_map(|at| &at.drawn.sets)
            .map(|(name, neurons)| (name.as_str(), neurons.as_slice()))
            .collect();
        let neurons: Vec<String> = neurons.split_whitespace().map(str::to_owned).collect();
        for (name, facts) in list.iter().flat_map(InterventionSpec::facts) {
            let of = match facts.neurons {
                "none" => &[],
                "selected" => neurons.as_slice(),
                _ => sets.get(name.as_str()).copied().unwrap_or_default(),
            };
            for neuron in of {
                rows.push(Row {
                    step: *step,
                    intervention: name.clone(),
                    facts: facts.clone(),
                    neuron: neuron.parse()?,
                });
            }
        }
    }
    // Of the types that these have in the tables of all jobs.
    let places = |of: fn(&NeuronId) -> usize| {
        let places = rows
            .iter()
            .map(|row| i32::try_from(of(&row.neuron)).map(Some));
        places.collect::<Result<Vec<_>, _>>()
    };
    let table = Table::of(&rows)
        .values("step", steps(&rows, |row| row.step)?)
        .column("intervention", |row| Some(row.intervention.as_str()))
        .column("operation", |row| Some(row.facts.operation.as_str()))
        .column("neurons", |row| Some(row.facts.neurons))
        .column("dose", |row| row.facts.dose)
        .column("draw", |row| row.facts.draw)
        .values("layer", places(|id| id.layer)?)
        .values("neuron", places(|id| id.neuron)?)
        .column("component_name", |row| Some(row.neuron.to_string()));
    Ok(table.batch()?)
}

/// What the terminal shows: the last step.
pub(crate) fn text_of_last(contrasts: &[Contrast]) -> String {
    let mut shown = String::new();
    let Some(last) = contrasts.iter().map(|c| c.step).max() else {
        return shown;
    };
    let _ = writeln!(
        shown,
        "Selected neurons minus controls (95 % interval over words and draws), p by rank"
    );
    let wide = contrasts.iter().map(|c| c.group.len()).max().unwrap_or(0);
    for c in contrasts.iter().filter(|c| c.step == last) {
        let ends = c.interval.map_or("no interval".into(), |i| {
            format!("{:+.3} to {:+.3}", i.lower, i.upper)
        });
        let p = c.p.map_or(String::new(), |p| format!("  p {p:.3}"));
        let doubt = match c.is_undecided() {
            true => ", but the interval includes 0",
            false => "",
        };
        let _ = writeln!(
            shown,
            "  {:<wide$} {} minus {:<7}  {:+.3} ({ends}){p}{doubt}",
            c.group,
            c.intervention,
            c.control.name(),
            c.excess
        );
    }
    shown
}

/// The ends of an interval of a change, and whether it includes 0.
pub(crate) fn ends(interval: Interval) -> String {
    let Interval { lower, upper, .. } = interval;
    let doubt = match includes_0(Some(interval)) {
        true => ", includes 0",
        false => "",
    };
    format!("{lower:+.4} to {upper:+.4}{doubt}")
}

/// The part of the report.
pub(crate) fn section(contrasts: &[Contrast], drawn: &[DrawnAt], unit: Unit) -> Section {
    let signed = |value: Option<f64>| value.map_or(String::new(), |v| format!("{v:+.4}"));
    let chance = |value: Option<f64>| value.map_or(String::new(), |p| format!("{p:.3}"));
    let grid = Grid::of(contrasts)
        .column("step", |c| step_name(c.step))
        .column("words", |c| c.group.as_str())
        .column("n", |c| c.words.to_string())
        .column("intervention", |c| c.intervention.as_str())
        .column("against", |c| c.control.name())
        .column("draws", |c| c.draws.to_string())
        .column(format!("change ({})", unit.name()), |c| signed(c.change))
        .column("change of controls", |c| signed(c.of_controls))
        .column("excess", |c| signed(Some(c.excess)))
        .column("95 % interval", |c| {
            c.interval.map_or("none: too few".to_owned(), ends)
        })
        .column("p", |c| chance(c.p))
        .column("q", |c| chance(c.q));
    let unbalanced = |at: &DrawnAt| {
        let beyond = at.drawn.balance.iter().filter(|row| {
            let off = row.balance.map_or(0.0, |b| b.difference.abs());
            row.kind == ControlKind::Matched && off > 0.1
        });
        beyond.count()
    };
    let unbalanced: usize = drawn.iter().map(unbalanced).sum();
    Section::new("Selected neurons against controls")
        .text(&format!(
            "Excess: what the intervention on the selected neurons changes more than the same on control sets, every word once. The interval is over words and draws, and \
             counts the selection as one draw more: 0 lies outside where hardly any set drawn so would be as far. p is the rank of the selection among the draws, beside matched \
             controls among sets in which each neuron is exchanged for one alike or kept; q is Benjamini-Hochberg's over all rows with these controls. Selected neurons that \
             have no match are left out on both sides. `balance.parquet` says how alike matched controls are: {unbalanced} of their traits are unbalanced, more than 0.1 standard \
             deviations apart.",
        ))
        .grid(grid)
}
