//! Axes: where values lie, where ticks stand, and how numbers read.

use crate::notation::{decimal, superscript};

/// Values beyond this have no place: sums and differences of them would overflow.
const LARGEST: f64 = 1e300;

/// One axis of a figure.
///
/// # Examples
/// ```
/// use job_kit::plot::Axis;
///
/// let steps = Axis::steps("training step"); // with a place for step 0
/// let share = Axis::linear("mediated share").range(0.0, 1.0);
/// let words = Axis::categories("set", ["selected", "random"]); // at x = 0 and 1
/// ```
#[derive(Debug, Clone)]
pub struct Axis {
    pub(super) label: String,
    pub(super) kind: AxisKind,
    range: Option<(f64, f64)>,
    bulk: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum AxisKind {
    Linear,
    Log,
    Steps { zero: Option<Zero> },
    Categories(Vec<String>),
}

/// Where 0 stands on an axis of steps: left of the smallest positive value, with a break between.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Zero {
    at: f64,
    /// Places right of it are logarithms.
    pub(super) end: f64,
    /// Whether there is no other step.
    alone: bool,
}

impl Axis {
    /// A linear axis.
    pub fn linear(label: &str) -> Self {
        Self {
            label: label.to_owned(),
            kind: AxisKind::Linear,
            range: None,
            bulk: false,
        }
    }

    /// A logarithmic axis, for positive values.
    pub fn log(label: &str) -> Self {
        Self {
            label: label.to_owned(),
            kind: AxisKind::Log,
            range: None,
            bulk: false,
        }
    }

    /// A logarithmic axis of training steps: step 0 has a place of its own, left of the first step that is shown.
    pub fn steps(label: &str) -> Self {
        Self {
            label: label.to_owned(),
            kind: AxisKind::Steps { zero: None },
            range: None,
            bulk: false,
        }
    }

    /// The axis with a place for 0, if it is one of steps and 0 is among the values that it shows.
    pub(super) fn with_zero(&self, values: impl Iterator<Item = f64>) -> Self {
        let mut axis = self.clone();
        if let AxisKind::Steps { zero } = &mut axis.kind {
            let (mut any, mut from, mut to) = (false, f64::INFINITY, f64::NEG_INFINITY);
            for value in values {
                any |= value == 0.0;
                if value > 0.0 && value <= LARGEST {
                    (from, to) = (from.min(value.log10()), to.max(value.log10()));
                }
            }
            let alone = from > to;
            let gap = if !alone {
                (0.12 * (to - from)).max(0.3)
            } else {
                from = 0.0;
                0.3
            };
            *zero = any.then_some(Zero {
                at: from - gap,
                end: from - gap / 2.0,
                alone,
            });
        }
        axis
    }

    /// The place of the break between 0 and the first step.
    pub(super) fn break_at(&self) -> Option<f64> {
        match self.kind {
            AxisKind::Steps { zero } => zero.filter(|zero| !zero.alone).map(|zero| zero.end),
            _ => None,
        }
    }

    fn is_log(&self) -> bool {
        matches!(self.kind, AxisKind::Log | AxisKind::Steps { .. })
    }

    /// An axis of names; the first stands at 0, the next at 1, and so on.
    pub fn categories<S: Into<String>>(label: &str, names: impl IntoIterator<Item = S>) -> Self {
        Self {
            label: label.to_owned(),
            kind: AxisKind::Categories(names.into_iter().map(Into::into).collect()),
            range: None,
            bulk: false,
        }
    }

    /// Lets the bulk of the values decide about the ends of the axis, so that a few far ones do not swallow the rest: with more than a
    /// span of the middle nine tenths between it and them, a value lies beyond the end.
    pub fn bulk(mut self) -> Self {
        self.bulk = true;
        self
    }

    /// Ends of the axis; otherwise they follow from the data. What lies outside is cut off, and points are marked at the edge.
    pub fn range(mut self, from: f64, to: f64) -> Self {
        self.range = Some((from.min(to), from.max(to)));
        self
    }

    /// A value in units of the axis: its logarithm to base 10 on a logarithmic one; none where it has no place.
    pub(super) fn place(&self, value: f64) -> Option<f64> {
        let place = match self.kind {
            AxisKind::Steps { zero } if value == 0.0 => zero?.at,
            AxisKind::Log | AxisKind::Steps { .. } if value > 0.0 => value.log10(),
            AxisKind::Log | AxisKind::Steps { .. } => return None,
            AxisKind::Linear | AxisKind::Categories(_) => value,
        };
        (place.abs() <= LARGEST).then_some(place)
    }

    /// The axis fitted to values, in its own units.
    pub(super) fn fit(&self, values: impl Iterator<Item = f64>, zero: bool) -> Scale {
        if let AxisKind::Categories(names) = &self.kind {
            return Scale {
                from: -0.6,
                to: names.len().max(1) as f64 - 0.4,
            };
        }
        let log = self.is_log();
        if let Some((from, to)) = self
            .range
            .and_then(|(from, to)| Some((self.place(from)?, self.place(to)?)))
            && to > from
        {
            return Scale { from, to };
        }
        let values: Vec<f64> = values.collect();
        let (least, most) = match self.bulk {
            true => bulk(&values),
            false => (f64::NEG_INFINITY, f64::INFINITY),
        };
        let kept = values.into_iter().filter(|v| (least..=most).contains(v));
        let (mut from, mut to) = kept.fold((f64::INFINITY, f64::NEG_INFINITY), |(from, to), v| {
            (from.min(v), to.max(v))
        });
        if zero && !log {
            (from, to) = (from.min(0.0), to.max(0.0));
        }
        if from > to {
            (from, to) = (0.0, 1.0);
        }
        if to - from <= 1e-12 * to.abs().max(from.abs()) {
            let half = if log || from == 0.0 {
                0.5
            } else {
                (from.abs() / 2.0).max(1.0 / LARGEST)
            };
            (from, to) = (from - half, to + half);
        }
        let margin = 0.04 * (to - from);
        let keep = |end: f64| zero && !log && end == 0.0; // bars stand on their zero
        Scale {
            from: if keep(from) { from } else { from - margin },
            to: if keep(to) { to } else { to + margin },
        }
    }
}

/// The ends beyond which values are far from the bulk of them.
fn bulk(values: &[f64]) -> (f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else {
        return (f64::NEG_INFINITY, f64::INFINITY);
    };
    let at = |share: f64| sorted[(share * last as f64).round() as usize];
    let (low, high) = (at(0.05), at(0.95));
    (low - (high - low), high + (high - low))
}

/// An axis fitted to data.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    pub(super) from: f64,
    pub(super) to: f64,
}

/// A tick: its place in units of the axis, and its text; minor ticks have none.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tick {
    pub(super) at: f64,
    pub(super) text: String,
}

impl Scale {
    pub(super) fn fraction(&self, place: f64) -> f64 {
        (place - self.from) / (self.to - self.from)
    }

    pub(super) fn contains(&self, place: f64) -> bool {
        (self.from..=self.to).contains(&place)
    }

    /// About `wanted` ticks, and a factor that belongs beside the label, such as `×10⁻⁵`.
    pub(super) fn ticks(&self, axis: &Axis, wanted: usize) -> (Vec<Tick>, Option<String>) {
        match &axis.kind {
            AxisKind::Categories(names) => (
                names
                    .iter()
                    .enumerate()
                    .map(|(i, name)| Tick {
                        at: i as f64,
                        text: name.clone(),
                    })
                    .collect(),
                None,
            ),
            AxisKind::Log | AxisKind::Steps { zero: None } => (self.log_ticks(wanted), None),
            AxisKind::Steps { zero: Some(zero) } => {
                let steps = Scale {
                    from: self.from.max(zero.end),
                    to: self.to,
                };
                let mut ticks = match zero.alone {
                    true => Vec::new(),
                    false => steps.log_ticks(wanted),
                };
                ticks.insert(
                    0,
                    Tick {
                        at: zero.at,
                        text: "0".to_owned(),
                    },
                );
                (ticks, None)
            }
            AxisKind::Linear => self.linear_ticks(wanted),
        }
    }

    fn linear_ticks(&self, wanted: usize) -> (Vec<Tick>, Option<String>) {
        let places = linear_places(self.from, self.to, wanted);
        let step = match places[..] {
            [first, second, ..] => second - first,
            _ => 1.0,
        };
        let largest = self.from.abs().max(self.to.abs());
        // Very small or very large numbers share a factor.
        let exponent = if !(1e-3..1e7).contains(&largest) {
            largest.log10().floor() as i32
        } else {
            0
        };
        let factor = 10f64.powi(exponent);
        let decimals = decimals_of(step / factor);
        let ticks = places
            .into_iter()
            .map(|at| Tick {
                at,
                text: decimal(at / factor, decimals),
            })
            .collect();
        (
            ticks,
            (exponent != 0).then(|| format!("×10{}", superscript(exponent))),
        )
    }

    fn log_ticks(&self, wanted: usize) -> Vec<Tick> {
        let (first, last) = (self.from.floor() as i32, self.to.ceil() as i32);
        let decades = (first..=last)
            .filter(|&e| self.contains(f64::from(e)))
            .count();
        if decades < 2 {
            // Not enough powers of ten: whole numbers of a linear kind, placed by their logarithm.
            let places = linear_places(10f64.powf(self.from), 10f64.powf(self.to), wanted);
            let decimals = places
                .get(1)
                .map_or(0, |second| decimals_of(second - places[0]));
            return places
                .into_iter()
                .filter(|v| *v > 0.0)
                .map(|v| Tick {
                    at: v.log10(),
                    text: decimal(v, decimals),
                })
                .collect();
        }
        let every = decades.div_ceil(wanted.max(2)) as i32;
        let powers = first < -3 || last > 5;
        let text = |e: i32| match (powers, e) {
            (true, _) => format!("10{}", superscript(e)),
            (false, e) => decimal(10f64.powi(e), usize::try_from(-e).unwrap_or(0)),
        };
        let mut ticks: Vec<Tick> = vec![];
        for e in (first..=last).filter(|e| e.rem_euclid(every) == 0) {
            ticks.push(Tick {
                at: f64::from(e),
                text: text(e),
            });
            if decades <= 8 && every == 1 {
                ticks.extend((2..10).map(|m| Tick {
                    at: f64::from(e) + f64::from(m).log10(),
                    text: String::new(),
                }));
            }
        }
        ticks.retain(|tick| self.contains(tick.at));
        ticks
    }
}

/// Multiples of 1, 2 or 5 times a power of ten.
fn linear_places(from: f64, to: f64, wanted: usize) -> Vec<f64> {
    let power = 10f64.powf(((to - from) / wanted.max(1) as f64).log10().floor());
    // Ends too close together, or too far apart, for numbers to tell places between them.
    if !power.is_normal() || from.abs().max(to.abs()) > power * 1e15 {
        return vec![];
    }
    let ends = |step: f64| {
        (
            (from / step - 1e-9).ceil() as i64,
            (to / step + 1e-9).floor() as i64,
        )
    };
    let count = |step: f64| (ends(step).1 - ends(step).0 + 1).abs_diff(wanted as i64);
    let steps = [1.0, 2.0, 5.0, 10.0].map(|m| m * power);
    let step = steps
        .into_iter()
        .min_by_key(|&step| count(step))
        .unwrap_or(power);
    let (first, last) = ends(step);
    (first..=last).map(|i| i as f64 * step).collect()
}

fn decimals_of(step: f64) -> usize {
    (0..12)
        .find(|&d| {
            (step * 10f64.powi(d))
                .fract()
                .min(1.0 - (step * 10f64.powi(d)).fract())
                .abs()
                < 1e-6
        })
        .unwrap_or(12) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(axis: &Axis, from: f64, to: f64, expected: &[&str], factor: Option<&str>) {
        let scale = axis.clone().range(from, to).fit(std::iter::empty(), false);
        let (ticks, found) = scale.ticks(axis, 5);
        let texts: Vec<&str> = ticks
            .iter()
            .map(|tick| tick.text.as_str())
            .filter(|text| !text.is_empty())
            .collect();
        assert_eq!((texts.as_slice(), found.as_deref()), (expected, factor));
    }

    #[test]
    fn linear_ticks_are_round_numbers() {
        let axis = Axis::linear("");
        check(
            &axis,
            0.0,
            1.0,
            &["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"],
            None,
        );
        check(
            &axis,
            -3.0,
            8.0,
            &["\u{2212}2", "0", "2", "4", "6", "8"].map(|t| t),
            None,
        );
        check(
            &axis,
            0.0,
            20_000.0,
            &["0", "5,000", "10,000", "15,000", "20,000"],
            None,
        );
        check(
            &axis,
            0.0,
            4.2e-5,
            &["0", "1", "2", "3", "4"],
            Some("×10⁻⁵"),
        );
    }

    #[test]
    fn log_ticks_are_powers_of_ten_or_round_numbers() {
        let axis = Axis::log("");
        check(&axis, 1.0, 4000.0, &["1", "10", "100", "1,000"], None);
        check(&axis, 1e-8, 1e-1, &["10⁻⁸", "10⁻⁶", "10⁻⁴", "10⁻²"], None);
        check(&axis, 2.0, 9.0, &["2", "4", "6", "8"], None);
    }

    #[test]
    fn step_0_stands_left_of_the_first_step() {
        let texts = |steps: &[f64]| {
            let axis = Axis::steps("").with_zero(steps.iter().copied());
            let places: Vec<f64> = steps.iter().filter_map(|s| axis.place(*s)).collect();
            assert_eq!(places.len(), steps.len());
            assert!(places.is_sorted_by(|a, b| a < b), "{places:?}");
            let scale = axis.fit(places.iter().copied(), false);
            let (ticks, _) = scale.ticks(&axis, 5);
            assert!(ticks.is_sorted_by(|a, b| a.at < b.at), "{ticks:?}");
            let named = ticks.into_iter().map(|tick| tick.text);
            named.filter(|text| !text.is_empty()).collect::<Vec<_>>()
        };
        assert_eq!(texts(&[0.0]), ["0"]);
        assert_eq!(
            texts(&[0.0, 1.0, 512.0, 4000.0]),
            ["0", "1", "10", "100", "1,000"]
        );
        assert_eq!(texts(&[0.0, 3000.0, 5000.0])[..2], ["0", "2,500"]);
        assert_eq!(texts(&[1.0, 100.0]), ["1", "10", "100"]);
        assert_eq!(
            Axis::steps("").with_zero([5.0].into_iter()).place(0.0),
            None
        );
    }

    #[test]
    fn far_values_do_not_swallow_the_bulk() {
        let values: Vec<f64> = (0..100).map(f64::from).chain([1e6]).collect();
        let fit = |axis: Axis| axis.fit(values.iter().copied(), false);
        assert!(fit(Axis::linear("")).to > 1e6);
        let scale = fit(Axis::linear("").bulk());
        assert!(scale.contains(0.0) && scale.contains(99.0) && scale.to < 110.0);
        // Values of one spread are all of the bulk.
        let scale = Axis::linear("").bulk().fit((0..100).map(f64::from), false);
        assert!(scale.contains(0.0) && scale.contains(99.0));
    }

    #[test]
    fn values_without_a_place() {
        assert_eq!(Axis::log("").place(0.0), None);
        assert_eq!(Axis::log("").place(1000.0), Some(3.0));
        assert_eq!(Axis::linear("").place(f64::NAN), None);
    }
}
