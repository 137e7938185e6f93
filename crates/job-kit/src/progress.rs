//! How far a job is: a bar on a terminal, lines elsewhere.

use std::{
    io::IsTerminal,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};

use crate::stdio::tell;

/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Progress of one step, shown on stderr with rate and time left.
///
/// Shared by reference between threads. On a terminal it is a bar that goes when the step is done; elsewhere it prints
/// a line when it starts, every ten seconds, and when it ends.
///
/// # Examples
/// ```
/// let progress = job_kit::Progress::new("ablating", 256, "neurons");
/// for _ in 0..256 {
///     progress.inc(1);
/// }
/// let took = progress.finish();
/// assert!(took.as_secs() < 3600);
/// ```
#[derive(Debug)]
pub struct Progress {
    title: String,
    unit: String,
    total: u64,
    done: AtomicU64,
    started: Instant,
    bar: Option<ProgressBar>,
    last_line: Mutex<Instant>,
    lines: bool,
}

impl Progress {
    /// Starts a step of `total` units; 0 where the total is not known.
    pub fn new(title: &str, total: u64, unit: &str) -> Self {
        let shown = tracing::enabled!(tracing::Level::INFO) || !tracing::dispatcher::has_been_set();
        let bar = (shown && std::io::stderr().is_terminal()).then(|| bar(title, total, unit));
        let started = Instant::now();
        let lines = shown && bar.is_none();
        let progress = Self {
            title: title.to_owned(),
            unit: unit.to_owned(),
            total,
            done: AtomicU64::new(0),
            started,
            bar,
            last_line: Mutex::new(started),
            lines,
        };
        if progress.lines {
            tell(&progress.first_line());
        }
        progress
    }

    /// Counts `n` more units as done.
    pub fn inc(&self, n: u64) {
        let done = self.done.fetch_add(n, Ordering::Relaxed) + n;
        if let Some(bar) = &self.bar {
            bar.inc(n);
        } else if self.lines
            && let Ok(mut last) = self.last_line.try_lock()
            && last.elapsed() >= LINE_EVERY
        {
            *last = Instant::now();
            tell(&self.line(done, self.started.elapsed()));
        }
    }

    /// Ends the step; returns how long it took.
    pub fn finish(self) -> Duration {
        let took = self.started.elapsed();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if self.bar.is_some() || self.lines {
            tell(&self.last_line(self.done.load(Ordering::Relaxed), took));
        }
        took
    }

    fn first_line(&self) -> String {
        match self.total {
            0 => format!("{} ...", self.title),
            total => format!("{}: {} {}", self.title, HumanCount(total), self.unit),
        }
    }

    fn line(&self, done: u64, took: Duration) -> String {
        let rate = done as f64 / took.as_secs_f64().max(1e-9);
        let rate_text = format!("{} {}/s", significant(rate), self.unit);
        if self.total == 0 {
            return format!(
                "{}: {} {} ({rate_text})",
                self.title,
                HumanCount(done),
                self.unit
            );
        }
        if done == 0 {
            return format!(
                "{}: 0/{} {} after {}",
                self.title,
                HumanCount(self.total),
                self.unit,
                seconds(took)
            );
        }
        let left = Duration::from_secs_f64(self.total.saturating_sub(done) as f64 / rate.max(1e-9));
        let percent = 100.0 * done as f64 / self.total as f64;
        format!(
            "{}: {}/{} {} ({percent:.0} %, {rate_text}, {} left)",
            self.title,
            HumanCount(done),
            HumanCount(self.total),
            self.unit,
            HumanDuration(left)
        )
    }

    fn last_line(&self, done: u64, took: Duration) -> String {
        format!(
            "{}: {} {} in {}",
            self.title,
            HumanCount(done),
            self.unit,
            seconds(took)
        )
    }
}

fn bar(title: &str, total: u64, unit: &str) -> ProgressBar {
    let template = match total {
        0 => "{spinner} {prefix} {human_pos} {msg} ({per_sec}, {elapsed})",
        _ => "{prefix} [{bar:32}] {human_pos}/{human_len} {msg} ({per_sec}, {eta} left)",
    };
    let bar = if total == 0 {
        ProgressBar::new_spinner()
    } else {
        ProgressBar::new(total)
    };
    let style = ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ");
    let bar = bar
        .with_style(style)
        .with_prefix(title.to_owned())
        .with_message(unit.to_owned());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// A rate to three significant digits.
fn significant(rate: f64) -> String {
    match rate {
        r if r >= 100.0 => HumanCount(r.round() as u64).to_string(),
        r if r >= 10.0 => format!("{r:.1}"),
        r => format!("{r:.2}"),
    }
}

fn seconds(took: Duration) -> String {
    if took.as_secs() < 60 {
        format!("{:.1} s", took.as_secs_f64())
    } else {
        HumanDuration(took).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_count_rate_and_time_left() {
        let progress = Progress::new("ablating", 4_096, "neurons");
        assert_eq!(progress.first_line(), "ablating: 4,096 neurons");
        assert_eq!(
            progress.line(1_024, Duration::from_secs(10)),
            "ablating: 1,024/4,096 neurons (25 %, 102 neurons/s, 30 seconds left)"
        );
        // Nothing done says nothing about the time left.
        assert_eq!(
            progress.line(0, Duration::from_secs(10)),
            "ablating: 0/4,096 neurons after 10.0 s"
        );
        assert_eq!(
            progress.last_line(4_096, Duration::from_millis(41_250)),
            "ablating: 4,096 neurons in 41.2 s"
        );
        let open = Progress::new("reading", 0, "documents");
        assert_eq!(
            open.line(5, Duration::from_secs(2)),
            "reading: 5 documents (2.50 documents/s)"
        );
    }
}
