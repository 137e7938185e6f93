//! Means with intervals, differences to the unchanged model, learning curves.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;
use std::num::TryFromIntError;

use anyhow::Context;
use arrow::array::RecordBatch;
use job_kit::Table;
use neuron_select::q_values;
use surprisal_metrics::{
    Acquisition, Bootstrap, Doubt, Group, Interval, LearningCurve, MetricError, Paired, Unit,
    paired_comparison,
};

use crate::interventions::InterventionSpec;
use crate::words::{DocumentOf, Words};

/// Mean surprisal of a group of words under an intervention at a step. Every word counts once.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    /// None in a model without steps.
    pub(crate) step: Option<u64>,
    pub(crate) intervention: String,
    pub(crate) group: String,
    /// Mean Zipf value of those words of the group that have one.
    pub(crate) zipf: Option<f64>,
    pub(crate) words: usize,
    /// Their contexts, and the documents of these where they are known.
    pub(crate) contexts: usize,
    pub(crate) documents: Option<usize>,
    /// Pairs without a value, left out.
    pub(crate) undefined: usize,
    pub(crate) mean: f64,
    /// Its interval over words; none with fewer than eight.
    pub(crate) interval: Option<Interval>,
    /// Against `base`, on the same words and contexts.
    pub(crate) paired: Option<Paired>,
    /// Benjamini-Hochberg q value of the sign test over all lines.
    pub(crate) sign_q: Option<f64>,
}

/// The q values of all lines.
pub(crate) fn adjust(lines: &mut [Line]) {
    let p: Vec<Option<f64>> = lines.iter().map(|l| Some(l.paired?.sign_p)).collect();
    for (line, q) in lines.iter_mut().zip(q_values(&p)) {
        line.sign_q = q;
    }
}

/// The values of one step.
pub(crate) struct Step<'s> {
    pub(crate) step: Option<u64>,
    pub(crate) list: &'s [InterventionSpec],
    pub(crate) words: &'s Words,
    /// Values of everything that was measured: `[pair]`.
    by_name: HashMap<String, Vec<Option<f64>>>,
}

/// Mean of the values of each pair: `[pair]`; none where a pair has none, or an undefined one.
pub(crate) fn mean_by_pair(
    pairs: usize,
    values: impl Iterator<Item = (usize, Option<f64>)>,
) -> Vec<Option<f64>> {
    let mut sums = vec![(Some(0.0), 0u32); pairs];
    for (pair, value) in values {
        let (sum, n) = sums[pair];
        sums[pair] = (sum.zip(value).map(|(a, b)| a + b), n + 1);
    }
    sums.into_iter()
        .map(|(sum, n)| sum.filter(|_| n > 0).map(|sum| sum / f64::from(n)))
        .collect()
}

impl<'s> Step<'s> {
    /// Takes (intervention, pair, value) of one step.
    pub(crate) fn new<'v>(
        step: Option<u64>,
        list: &'s [InterventionSpec],
        words: &'s Words,
        values: impl Iterator<Item = (&'v str, usize, Option<f64>)>,
    ) -> Self {
        let mut by_name: HashMap<String, Vec<Option<f64>>> = HashMap::new();
        for (name, pair, value) in values {
            let of_name = match by_name.get_mut(name) {
                Some(of_name) => of_name,
                None => (by_name.entry(name.to_owned())).or_insert(vec![None; words.pairs.len()]),
            };
            of_name[pair] = value;
        }
        Self {
            step,
            list,
            words,
            by_name,
        }
    }

    /// The values under a name: `[pair]`.
    pub(crate) fn values(&self, name: &str) -> Option<&Vec<Option<f64>>> {
        self.by_name.get(name)
    }

    /// Mean over the draws of an entry of the list, of pairs that are defined in all: `[pair]`.
    fn averaged(&self, spec: &InterventionSpec) -> Vec<Option<f64>> {
        let draws: Vec<&Vec<Option<f64>>> = spec
            .names()
            .iter()
            .filter_map(|name| self.values(name))
            .collect();
        let of_draws = draws
            .iter()
            .flat_map(|draw| draw.iter().copied().enumerate());
        mean_by_pair(self.words.pairs.len(), of_draws)
    }

    /// The pairs of a group that are defined under all of these.
    pub(crate) fn defined(&self, group: usize, under: &[&Vec<Option<f64>>]) -> Vec<usize> {
        let pairs = (0..self.words.pairs.len()).filter(|&pair| self.words.group[pair] == group);
        let defined = pairs.filter(|&pair| under.iter().all(|values| values[pair].is_some()));
        defined.collect()
    }

    /// By word the mean over some pairs of what one has more than another, or of its values: a group of one value each, words in order.
    pub(crate) fn words_of(
        &self,
        pairs: &[usize],
        values: &[Option<f64>],
        less: Option<&Vec<Option<f64>>>,
    ) -> Vec<Group> {
        let less = |pair: usize| less.map_or(Some(0.0), |less| less[pair]);
        let values = pairs
            .iter()
            .filter_map(|&pair| Some((pair, values[pair]? - less(pair)?)));
        let by_word = self.by_word(values);
        let mean = |(sum, n): &(f64, u32)| Group::of(&[sum / f64::from(*n)]);
        by_word.values().map(mean).collect()
    }

    /// One line per intervention and group.
    pub(crate) fn lines(&self, seed: u64) -> anyhow::Result<Vec<Line>> {
        let bootstrap = Bootstrap::with_seed(seed);
        let base = self.values("base");
        let mut lines = Vec::new();
        for spec in self.list {
            let values = self.averaged(spec);
            for (group, name) in self.words.groups.iter().enumerate() {
                let members = self.defined(group, &[]);
                let defined = self.defined(group, &[&values]);
                if defined.is_empty() {
                    continue;
                }
                let means = self.words_of(&defined, &values, None);
                let mut line = Line {
                    step: self.step,
                    intervention: spec.name(),
                    group: name.clone(),
                    zipf: self.zipf(&members),
                    words: means.len(),
                    contexts: defined.len(),
                    documents: self.documents(&defined),
                    undefined: members.len() - defined.len(),
                    mean: Group::total(&means)
                        .mean()
                        .context("a group without words")?,
                    interval: None,
                    paired: match base {
                        Some(base) if *spec != InterventionSpec::Base => {
                            self.paired(&defined, (&values, base), &bootstrap)?
                        }
                        _ => None,
                    },
                    sign_q: None,
                };
                // The draws of a control set could have been others, as the words could.
                let two_way = |less: Option<&Vec<Option<f64>>>| {
                    let names = spec.names();
                    let draws = names.iter().filter_map(|name| self.values(name));
                    let cells: Vec<Vec<Group>> = draws
                        .map(|draw| self.words_of(&defined, draw, less))
                        .collect();
                    bootstrap.two_way(&cells)
                };
                match spec.controls() {
                    None => line.interval = bootstrap.mean(&means)?,
                    Some(_) => {
                        line.interval = two_way(None)?;
                        if let (Some(paired), Some(base)) = (&mut line.paired, base) {
                            // Words that are undefined in the unchanged model have no difference.
                            let both = self.defined(group, &[&values, base]);
                            paired.interval = match both.len() == defined.len() {
                                true => two_way(Some(base))?,
                                false => None,
                            };
                        }
                    }
                }
                lines.push(line);
            }
        }
        Ok(lines)
    }

    fn by_word(&self, values: impl Iterator<Item = (usize, f64)>) -> BTreeMap<&str, (f64, u32)> {
        let mut by_word: BTreeMap<&str, (f64, u32)> = BTreeMap::new();
        for (pair, value) in values {
            let (sum, n) = by_word.entry(&self.words.pairs[pair].word).or_default();
            *sum += value;
            *n += 1;
        }
        by_word
    }

    /// How many documents some pairs are from; nothing where one of them does not say it.
    pub(crate) fn documents(&self, pairs: &[usize]) -> Option<usize> {
        let of = |&pair: &usize| self.words.pairs[pair].document.as_ref();
        let documents: Option<BTreeSet<&DocumentOf>> = pairs.iter().map(of).collect();
        documents.map(|documents| documents.len())
    }

    /// Mean Zipf value of the words of some pairs, every word once.
    fn zipf(&self, pairs: &[usize]) -> Option<f64> {
        let values = pairs
            .iter()
            .filter_map(|&pair| Some((pair, self.words.pairs[pair].zipf?)));
        let by_word = self.by_word(values);
        let sum: f64 = by_word.values().map(|&(sum, n)| sum / f64::from(n)).sum();
        (!by_word.is_empty()).then(|| sum / by_word.len() as f64)
    }

    fn paired(
        &self,
        pairs: &[usize],
        (values, base): (&[Option<f64>], &[Option<f64>]),
        bootstrap: &Bootstrap,
    ) -> anyhow::Result<Option<Paired>> {
        let both: Vec<(&str, f64, f64)> = pairs
            .iter()
            .filter_map(|&pair| {
                let word = self.words.pairs[pair].word.as_str();
                Some((word, base[pair]?, values[pair]?))
            })
            .collect();
        if both.is_empty() {
            return Ok(None);
        }
        let words: Vec<&str> = both.iter().map(|b| b.0).collect();
        let (base, condition): (Vec<f64>, Vec<f64>) = both.iter().map(|b| (b.1, b.2)).unzip();
        Ok(Some(paired_comparison(
            &words, &base, &condition, bootstrap,
        )?))
    }
}

/// `summary.csv`, `summary.parquet`
pub(crate) fn table(lines: &[Line], unit: Unit) -> anyhow::Result<RecordBatch> {
    let unit = unit.name();
    let table = Table::of(lines)
        .values("step", steps(lines, |l| l.step)?)
        .column("intervention", |l| l.intervention.as_str())
        .column("group", |l| l.group.as_str())
        .column("zipf_mean", |l| l.zipf)
        .column("words", |l| l.words as u64)
        .column("contexts", |l| l.contexts as u64)
        .column("documents", |l| l.documents.map(|n| n as u64))
        .column("pairs_undefined", |l| l.undefined as u64)
        .column(format!("mean_{unit}"), |l| l.mean)
        .column(format!("mean_lower_{unit}"), |l| Some(l.interval?.lower))
        .column(format!("mean_upper_{unit}"), |l| Some(l.interval?.upper))
        .column(format!("difference_{unit}"), |l| Some(l.paired?.difference))
        .column(format!("difference_lower_{unit}"), |l| {
            Some(l.paired?.interval?.lower)
        })
        .column(format!("difference_upper_{unit}"), |l| {
            Some(l.paired?.interval?.upper)
        })
        .column("words_higher", |l| Some(l.paired?.higher as u64))
        .column("words_lower", |l| Some(l.paired?.lower as u64))
        .column("sign_test_p", |l| Some(l.paired?.sign_p))
        .column("sign_test_q", |l| l.sign_q);
    Ok(table.batch()?)
}

/// What the terminal shows: the last step, each intervention against `base`.
pub(crate) fn text(lines: &[Line], unit: Unit) -> String {
    let mut text = String::new();
    let Some(last) = lines.iter().map(|line| line.step).max() else {
        return text;
    };
    let _ = writeln!(
        text,
        "{}mean surprisal in {}, every word once (95 % interval); change against base; n words",
        last.map_or(String::new(), |step| format!("Step {step}: ")),
        unit.name()
    );
    let width = lines
        .iter()
        .map(|l| l.intervention.len())
        .max()
        .unwrap_or(0);
    let wide = lines.iter().map(|l| l.group.len()).max().unwrap_or(0);
    for line in lines.iter().filter(|line| line.step == last) {
        let ends = line
            .interval
            .map_or("no interval: fewer than 8 words or draws".into(), |i| {
                format!("{:.3} to {:.3}", i.lower, i.upper)
            });
        let _ = write!(
            text,
            "  {:<wide$} {:<width$}  {:7.3} ({ends})",
            line.group, line.intervention, line.mean
        );
        if let Some(paired) = &line.paired {
            let _ = write!(text, "  {:+.3}", paired.difference);
            if let Some(i) = paired.interval {
                let _ = write!(text, " ({:+.3} to {:+.3})", i.lower, i.upper);
            }
        }
        let _ = writeln!(text, "  n {}", line.words);
    }
    text
}

/// Lines whose sign test is below 0.05 while the interval of their mean change includes 0.
pub(crate) fn undecided(lines: &[Line]) -> usize {
    let of = |line: &&Line| {
        let paired = line.paired.filter(|paired| paired.sign_p <= 0.05);
        includes_0(paired.and_then(|paired| paired.interval))
    };
    lines.iter().filter(of).count()
}

/// Whether an interval includes 0; not where there is none.
pub(crate) fn includes_0(interval: Option<Interval>) -> bool {
    interval.is_some_and(|interval| interval.lower <= 0.0 && interval.upper >= 0.0)
}

/// The learning curve of a word.
#[derive(Debug, Clone)]
pub(crate) struct Acquired {
    intervention: String,
    word: String,
    group: String,
    /// How many contexts it has.
    contexts: u32,
    curve: LearningCurve,
    chance: f64,
}

impl Acquired {
    pub(crate) fn intervention(&self) -> &str {
        &self.intervention
    }

    pub(crate) fn group(&self) -> &str {
        &self.group
    }

    /// When the word was learned.
    pub(crate) fn age(&self) -> Option<Acquisition> {
        self.curve.acquisition(self.chance)
    }

    /// Why not to believe it.
    pub(crate) fn doubt(&self) -> Option<Doubt> {
        self.curve.doubt(self.chance)
    }
}

/// Learning curves of all words; `by_step` is `[step][pair]`, `chance` `[pair]`.
pub(crate) fn acquired(
    intervention: &str,
    steps: &[u64],
    words: &Words,
    by_step: &[Vec<Option<f64>>],
    chance: &[Option<f64>],
) -> anyhow::Result<Vec<Acquired>> {
    /// Sum and number of the defined values by step.
    type Points = BTreeMap<u64, (f64, u32)>;
    let mut curves: BTreeMap<&str, (usize, Points)> = BTreeMap::new();
    let mut of_word: BTreeMap<&str, (f64, u32)> = BTreeMap::new();
    for (pair, chance) in words.pairs.iter().zip(chance) {
        let Some(chance) = chance else { continue };
        let (sum, n) = of_word.entry(&pair.word).or_default();
        *sum += chance;
        *n += 1;
    }
    for (&step, values) in steps.iter().zip(by_step) {
        for (pair, value) in values.iter().enumerate() {
            let Some(value) = value else { continue };
            let (_, points) = curves
                .entry(&words.pairs[pair].word)
                .or_insert((words.group[pair], Points::new()));
            let (sum, n) = points.entry(step).or_default();
            *sum += value;
            *n += 1;
        }
    }
    let mut acquired = Vec::with_capacity(curves.len());
    for (word, (group, points)) in curves {
        let points: Vec<(u64, f64)> = points
            .into_iter()
            .map(|(step, (sum, n))| (step, sum / f64::from(n)))
            .collect();
        match LearningCurve::fit(&points) {
            Ok(curve) => acquired.push(Acquired {
                intervention: intervention.to_owned(),
                word: word.to_owned(),
                group: words.groups[group].clone(),
                contexts: of_word.get(word).map_or(0, |(_, n)| *n),
                curve,
                // The mean over its contexts, as that of its surprisal.
                chance: of_word
                    .get(word)
                    .map_or(f64::NAN, |(sum, n)| sum / f64::from(*n)),
            }),
            Err(MetricError::TooFewSteps { .. }) => tracing::warn!(
                "word `{word}` has values at too few steps for a learning curve under `{intervention}`"
            ),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(acquired)
}

/// `acquisition.csv`, `acquisition.parquet`
pub(crate) fn acquisition_table(learned: &[Acquired], unit: Unit) -> anyhow::Result<RecordBatch> {
    let unit = unit.name();
    let table = Table::of(learned)
        .column("intervention", |a| a.intervention.as_str())
        .column("group", |a| a.group.as_str())
        .column("word", |a| a.word.as_str())
        .column("contexts", |a| u64::from(a.contexts))
        .column("acquired_log10_step", |a| Some(a.age()?.log10_step))
        .column("extrapolated", |a| Some(a.age()?.extrapolated))
        .column("fit", |a| a.doubt().map_or("holds", Doubt::name))
        .column(format!("chance_{unit}"), |a| a.chance)
        .column(format!("curve_lower_{unit}"), |a| a.curve.lower)
        .column(format!("curve_drop_{unit}"), |a| a.curve.drop)
        .column("curve_mid_log10_step", |a| a.curve.mid)
        .column("curve_width_decades", |a| a.curve.width)
        .column(format!("curve_rmse_{unit}"), |a| a.curve.rmse);
    Ok(table.batch()?)
}

/// A step in the tables of the report.
pub(crate) fn step_name(step: Option<u64>) -> String {
    step.map_or("none".to_owned(), |step| step.to_string())
}

/// Of the type that `step` has in the tables of all jobs, so that they join.
pub(crate) fn steps<T>(
    rows: &[T],
    of: impl Fn(&T) -> Option<u64>,
) -> Result<Vec<Option<i64>>, TryFromIntError> {
    let step = |row| of(row).map(i64::try_from).transpose();
    rows.iter().map(step).collect()
}
