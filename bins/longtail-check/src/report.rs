//! Rows of checks and timings: printed as they come, and written as JSON.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::bail;
use serde_json::{Map, Value, json};

/// What a check found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The largest difference.
    pub(crate) largest: f64,
    /// What else is worth knowing.
    pub(crate) note: String,
}

impl From<f64> for Found {
    fn from(largest: f64) -> Self {
        Self {
            largest,
            note: String::new(),
        }
    }
}

/// How fast something is.
#[derive(Debug, Default)]
pub(crate) struct Timing {
    pub(crate) what: String,
    /// Such as `pairs/s`.
    pub(crate) unit: &'static str,
    pub(crate) ours: Option<f64>,
    pub(crate) pytorch: Option<f64>,
    pub(crate) note: String,
}

/// All that was found so far.
#[derive(Debug)]
pub(crate) struct Report {
    started: Instant,
    group: &'static str,
    machine: Map<String, Value>,
    checks: Vec<Value>,
    timings: Vec<Value>,
    failed: usize,
    out: Option<PathBuf>,
}

/// Widths of a row: group, what, two numbers, result or ratio.
const HEADS: [[&str; 5]; 2] = [
    ["check", "what", "largest", "tolerance", "result"],
    ["timing", "what", "ours", "PyTorch", "ratio"],
];

impl Report {
    /// Prints the machine and the head of the table.
    pub(crate) fn new(machine: Map<String, Value>, out: Option<PathBuf>) -> anyhow::Result<Self> {
        for (name, value) in &machine {
            let value = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            print(format!("{name:<18} {value}\n"))?;
        }
        print(format!("\n{}    elapsed\n", columns(HEADS[0])))?;
        Ok(Self {
            started: Instant::now(),
            group: "",
            machine,
            checks: Vec::new(),
            timings: Vec::new(),
            failed: 0,
            out,
        })
    }

    /// Adds to what the JSON says of the machine.
    pub(crate) fn about(&mut self, name: &str, value: &str) {
        self.machine.insert(name.to_owned(), value.into());
    }

    /// Runs the checks of a group; what goes wrong between them is a row of its own.
    pub(crate) fn group(
        &mut self,
        name: &'static str,
        work: impl FnOnce(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.group = name;
        if let Err(error) = caught(|| work(&mut *self)) {
            self.row("the check itself", None, Err(error))?;
        }
        self.write(false)
    }

    /// Runs one check: its largest difference has to be within the tolerance. An error or a panic is a failed check.
    ///
    /// # Errors
    /// If nothing can be printed.
    pub(crate) fn check<F: Into<Found>>(
        &mut self,
        what: &str,
        tolerance: f64,
        work: impl FnOnce() -> anyhow::Result<F>,
    ) -> anyhow::Result<()> {
        self.row(what, Some(tolerance), caught(work).map(Into::into))
    }

    /// A value that later checks need; if it cannot be had, that is a failed check.
    ///
    /// # Errors
    /// If nothing can be printed.
    pub(crate) fn needed<T>(
        &mut self,
        what: &str,
        work: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<Option<T>> {
        match caught(work) {
            Ok(value) => Ok(Some(value)),
            Err(error) => self.row(what, None, Err(error)).map(|()| None),
        }
    }

    /// Says what is not checked, and why.
    ///
    /// # Errors
    /// If nothing can be printed.
    pub(crate) fn skipped(&mut self, what: &str, why: &str) -> anyhow::Result<()> {
        let elapsed = self.started.elapsed().as_secs_f64();
        self.checks.push(json!({
            "check": self.group, "what": what, "result": "skipped", "note": why, "elapsed_s": elapsed,
        }));
        let group = self.group;
        let row = columns([group, what, "", "", "skipped"]);
        print(format!("{row} {elapsed:>8.1} s  {why}\n"))
    }

    fn row(
        &mut self,
        what: &str,
        tolerance: Option<f64>,
        found: anyhow::Result<Found>,
    ) -> anyhow::Result<()> {
        let (group, elapsed) = (self.group, self.started.elapsed().as_secs_f64());
        let (largest, note, error) = match found {
            Ok(found) => (Some(found.largest), found.note, None),
            Err(error) => (None, String::new(), Some(job_kit::exit::message(&error))),
        };
        // Written so that a difference that is not a number fails.
        let ok = largest
            .zip(tolerance)
            .is_some_and(|(largest, tolerance)| largest <= tolerance);
        let result = if ok { "ok" } else { "FAILED" };
        self.failed += usize::from(!ok);
        self.checks.push(json!({
            "check": group, "what": what, "largest": largest, "tolerance": tolerance, "result": result, "note": note,
            "error": error, "elapsed_s": elapsed,
        }));
        let number = |value: Option<f64>| value.map_or_else(String::new, difference);
        let error = error.map_or_else(String::new, |error| format!("         {error}\n"));
        let row = columns([group, what, &number(largest), &number(tolerance), result]);
        print(format!("{row} {elapsed:>8.1} s  {note}\n{error}"))
    }

    /// Prints a timing.
    ///
    /// # Errors
    /// If nothing can be printed.
    pub(crate) fn timing(&mut self, timing: &Timing) -> anyhow::Result<()> {
        let Timing {
            what,
            unit,
            ours,
            pytorch,
            note,
        } = timing;
        if self.timings.is_empty() {
            print(format!("\n{}    elapsed\n", columns(HEADS[1])))?;
        }
        // Seconds are better the fewer they are.
        let ratio = ours.zip(*pytorch).map(|(ours, theirs)| match *unit {
            "s" => theirs / ours,
            _ => ours / theirs,
        });
        let elapsed = self.started.elapsed().as_secs_f64();
        self.timings.push(json!({
            "what": what, "unit": unit, "ours": ours, "pytorch": pytorch, "ratio": ratio, "note": note, "elapsed_s": elapsed,
        }));
        let number = |value: &Option<f64>| value.map_or_else(|| "-".to_owned(), three_digits);
        let label = format!("{what}, {unit}");
        let row = columns([
            "timing",
            &label,
            &number(ours),
            &number(pytorch),
            &number(&ratio),
        ]);
        print(format!("{row} {elapsed:>8.1} s  {note}\n"))
    }

    /// Writes the JSON as it stands.
    fn write(&self, complete: bool) -> anyhow::Result<()> {
        let Some(out) = &self.out else {
            return Ok(());
        };
        let all = json!({
            "machine": self.machine, "complete": complete, "failed": self.failed, "checks": self.checks,
            "timings": self.timings, "seconds": self.started.elapsed().as_secs_f64(),
        });
        Ok(job_kit::write_file(out, format!("{all:#}\n"))?)
    }

    /// Ends the table and writes the JSON; returns how many checks failed.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn finish(self) -> anyhow::Result<usize> {
        let skipped = self
            .checks
            .iter()
            .filter(|check| check["result"] == "skipped")
            .count();
        print(format!(
            "\n{} checks, {} failed, {skipped} skipped; {:.0} s\n",
            self.checks.len(),
            self.failed,
            self.started.elapsed().as_secs_f64()
        ))?;
        self.write(true)?;
        Ok(self.failed)
    }
}

fn columns([group, what, one, other, result]: [&str; 5]) -> String {
    format!("{group:<8} {what:<72} {one:>11} {other:>11} {result:>9}")
}

fn print(text: String) -> anyhow::Result<()> {
    Ok(job_kit::print(text)?)
}

/// Two significant digits.
fn difference(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        0.01..1000.0 => format!("{value:.2}"),
        _ => format!("{value:.1e}"),
    }
}

/// Three significant digits, thousands apart.
fn three_digits(value: f64) -> String {
    if !value.is_finite() || value.abs() < 100.0 {
        let decimals = match value.abs() {
            10.0.. => 1,
            1.0.. => 2,
            _ => 4,
        };
        return format!("{value:.decimals$}");
    }
    let unit = 10f64.powf(value.abs().log10().floor() - 2.0);
    job_kit::report::integer(((value / unit).round() * unit).round() as i64)
}

/// Runs some work, with a panic as an error.
fn caught<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result,
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied());
            bail!("panicked: {}", text.unwrap_or("without a message"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_wrong_is_a_row() -> anyhow::Result<()> {
        let mut report = Report::new(Map::new(), None)?;
        report.group("test", |report| {
            report.check("within", 1.0, || Ok(1.0))?;
            report.check("beyond", 1.0, || Ok(1.1))?;
            report.check("no number", 1.0, || Ok(f64::NAN))?;
            report.check("an error", 1.0, || -> anyhow::Result<f64> {
                bail!("no device")
            })?;
            report.check("a panic", 1.0, || -> anyhow::Result<f64> {
                panic!("no device")
            })?;
            bail!("nothing more can be checked")
        })?;
        report.group("next", |report| report.check("within", 1.0, || Ok(0.0)))?;
        let results: Vec<_> = report
            .checks
            .iter()
            .map(|check| check["result"].as_str())
            .collect();
        let failed = Some("FAILED");
        assert_eq!(
            results,
            [
                Some("ok"),
                failed,
                failed,
                failed,
                failed,
                failed,
                Some("ok")
            ]
        );
        assert_eq!(report.finish()?, 5);
        Ok(())
    }

    #[test]
    fn numbers_have_three_digits() {
        let shown = [0.01234, 1.234, 12.34, 123.4, 1234.5, 1_234_567.0].map(three_digits);
        assert_eq!(
            shown,
            ["0.0123", "1.23", "12.3", "123", "1,230", "1,230,000"]
        );
    }
}
