//! Sides that take turns, and the table of what they took.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::Value;

use super::process::{Program, Taken};

/// One way of doing the work.
pub(crate) struct Side {
    pub(crate) label: String,
    pub(crate) ours: bool,
    pub(crate) program: Program,
    /// Where the program tells how much it did, if not in its output.
    pub(crate) record: Option<Record>,
    /// Whether the time of the whole process counts, start-up included.
    pub(crate) whole: bool,
    /// Runs in the first round alone, because it takes long or much memory.
    pub(crate) once: bool,
}

/// A `run.json`, and which of its numbers count.
pub(crate) struct Record {
    path: PathBuf,
    /// Of the work alone.
    timing: &'static str,
    count: &'static str,
    /// Units of work for each that is counted.
    units: f64,
}

impl Record {
    /// That of an ablation.
    pub(crate) fn of_pairs(folder: &Path) -> Self {
        Self {
            path: folder.join("run.json"),
            timing: "ablation",
            count: "pairs",
            units: 1.0,
        }
    }

    /// That of an ablation of neurons before the last layer.
    pub(crate) fn of_forwards(folder: &Path) -> Self {
        Self {
            timing: "ablation_by_forwards",
            ..Self::of_pairs(folder)
        }
    }

    /// That of sets of neurons, of which the pairs are triples of row, set and dose.
    pub(crate) fn of_sets(folder: &Path) -> Self {
        Self {
            timing: "sets",
            count: "set_pairs",
            ..Self::of_pairs(folder)
        }
    }

    /// That of scale-neuron, which measures each row under so many changes and factors.
    pub(crate) fn of_rows(folder: &Path, changes: usize) -> Self {
        Self {
            path: folder.join("run.json"),
            timing: "scaling",
            count: "rows_with_all_targets",
            units: changes as f64,
        }
    }

    /// Units of work, and the seconds that they took.
    fn read(&self) -> anyhow::Result<(Option<f64>, Option<f64>)> {
        let read =
            || -> anyhow::Result<Value> { Ok(serde_json::from_slice(&fs::read(&self.path)?)?) };
        let record = read().with_context(|| format!("failed to read `{}`", self.path.display()))?;
        Ok((
            record["counts"][self.count]
                .as_f64()
                .map(|n| n * self.units),
            record["timings_seconds"][self.timing].as_f64(),
        ))
    }
}

impl Side {
    /// A side that says itself how much it did and how long the work took.
    pub(crate) fn of_its_work(label: &str, ours: bool, program: Program) -> Self {
        Self {
            label: label.into(),
            ours,
            program,
            record: None,
            whole: false,
            once: false,
        }
    }
}

/// Sides that do the same work.
pub(crate) struct Contest<'c> {
    pub(crate) title: String,
    /// What is counted, in the singular.
    pub(crate) unit: &'static str,
    pub(crate) sides: Vec<Side>,
    /// Compares the values of the last runs: what was compared, or how they differ.
    pub(crate) agree: Box<dyn Fn() -> anyhow::Result<Agreement> + 'c>,
}

/// Whether both sides say the same.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Agreement {
    pub(crate) equal: bool,
    pub(crate) text: String,
}

/// Seconds and memory of one side over the rounds.
struct Measured {
    /// Seconds that count, per unit; by round.
    cost: Vec<f64>,
    /// Seconds of the work alone, per unit; by round.
    work: Vec<f64>,
    units: f64,
    wall: Vec<f64>,
    peak: u64,
}

impl Contest<'_> {
    /// Runs the rounds; the table, and whether the values agree.
    ///
    /// # Errors
    /// If a side fails, or does not say how much it did.
    pub(crate) fn run(&self, rounds: u32) -> anyhow::Result<(String, bool)> {
        eprintln!("\n== {} ==", self.title);
        let mut measured: Vec<Measured> = Vec::new();
        for round in 0..rounds {
            for (i, side) in self.sides.iter().enumerate() {
                if round > 0 && side.once {
                    continue;
                }
                let taken = side.program.run()?;
                let cost = side.cost(&taken)?;
                eprintln!(
                    "round {} of {rounds}, {}: {} per {}",
                    round + 1,
                    side.label,
                    duration(cost.whole),
                    self.unit
                );
                match measured.get_mut(i) {
                    Some(before) => before.add(cost, &taken),
                    None => {
                        let mut new = Measured {
                            cost: Vec::new(),
                            work: Vec::new(),
                            units: 0.0,
                            wall: Vec::new(),
                            peak: 0,
                        };
                        new.add(cost, &taken);
                        measured.push(new);
                    }
                }
            }
        }
        let agreement = (self.agree)().context("failed to compare the values")?;
        Ok((self.table(rounds, &measured, &agreement), agreement.equal))
    }

    fn table(&self, rounds: u32, measured: &[Measured], agreement: &Agreement) -> String {
        let ours: Vec<usize> = (0..self.sides.len())
            .filter(|&i| self.sides[i].ours)
            .collect();
        let mut text = format!("### {}\n\n", self.title);
        let _ = write!(
            text,
            "| way | {0}s | whole process | work alone, per {0} | per {0} | peak memory |",
            self.unit
        );
        for &i in &ours {
            let _ = write!(text, " times as long as {} |", self.sides[i].label);
        }
        let _ = writeln!(
            text,
            "\n|---|---|---|---|---|---|{}",
            "---|".repeat(ours.len())
        );
        for (side, m) in self.sides.iter().zip(measured) {
            let once = if side.once && rounds > 1 {
                " (one run)"
            } else {
                ""
            };
            let _ = write!(
                text,
                "| {}{once} | {:.0} | {:.1} s | {} | {} | {:.0} MB |",
                side.label,
                m.units,
                median(&m.wall),
                duration(median(&m.work)),
                duration(median(&m.cost)),
                m.peak as f64 / 1e6,
            );
            for &i in &ours {
                let ratios: Vec<f64> = m
                    .cost
                    .iter()
                    .zip(&measured[i].cost)
                    .map(|(theirs, ours)| theirs / ours)
                    .collect();
                let _ = write!(text, " {} |", spread(&ratios));
            }
            text.push('\n');
        }
        let verdict = if agreement.equal {
            "Values agree"
        } else {
            "VALUES DIFFER"
        };
        let _ = writeln!(
            text,
            "\n{rounds} rounds in turn; medians, and for ratios the least and greatest of the rounds. {verdict}: {}",
            agreement.text
        );
        text
    }
}

impl Side {
    /// What a round of it took.
    fn cost(&self, taken: &Taken) -> anyhow::Result<Cost> {
        let (units, work) = match &self.record {
            Some(record) => record.read()?,
            None => (taken.units, taken.seconds),
        };
        let units =
            units.with_context(|| format!("`{}` did not say how much it did", self.label))?;
        let seconds = match self.whole {
            true => taken.wall,
            false => taken
                .seconds
                .with_context(|| format!("`{}` did not say how long it took", self.label))?,
        };
        let work =
            work.with_context(|| format!("`{}` did not say how long the work took", self.label))?;
        Ok(Cost {
            units,
            whole: seconds / units,
            work: work / units,
        })
    }
}

/// What a side took in one round: seconds that count, and those of the work alone, per unit.
struct Cost {
    units: f64,
    whole: f64,
    work: f64,
}

impl Measured {
    fn add(&mut self, cost: Cost, taken: &Taken) {
        self.cost.push(cost.whole);
        self.work.push(cost.work);
        self.units = cost.units;
        self.wall.push(taken.wall);
        self.peak = self.peak.max(taken.peak);
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[middle],
        _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}

/// `34.1 (32.0 to 36.5)`
fn spread(ratios: &[f64]) -> String {
    let number = |x: f64| {
        if x >= 100.0 {
            format!("{x:.0}")
        } else if x >= 10.0 {
            format!("{x:.1}")
        } else {
            format!("{x:.2}")
        }
    };
    let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    match ratios.len() {
        0 => "-".into(),
        1 => number(ratios[0]),
        _ => format!(
            "{} ({} to {})",
            number(median(ratios)),
            number(least),
            number(greatest)
        ),
    }
}

/// Seconds for people.
fn duration(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s >= 1.0 => (s, "s"),
        s if s >= 1e-3 => (s * 1e3, "ms"),
        s => (s * 1e6, "us"),
    };
    match value {
        v if v >= 100.0 => format!("{v:.0} {unit}"),
        v if v >= 10.0 => format!("{v:.1} {unit}"),
        v => format!("{v:.2} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0]), 2.5);
        assert_eq!(spread(&[100.4, 90.0, 120.0]), "100 (90.0 to 120)");
        assert_eq!(spread(&[1.0]), "1.00");
        assert_eq!(duration(2.5e-3), "2.50 ms");
        assert_eq!(duration(15.2e-6), "15.2 us");
        assert_eq!(duration(120.0), "120 s");
    }
}
