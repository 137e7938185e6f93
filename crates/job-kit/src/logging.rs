//! Log lines on stderr.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt};

use crate::stdio::Stderr;

/// `-v` and `-q`; flatten it into a parser.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct Verbosity {
    /// Say more (`-vv` for everything)
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Say only warnings and errors, and show no progress
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
}

impl Verbosity {
    /// Starts logging to stderr; `RUST_LOG`, where set, decides instead. A second call does nothing.
    pub fn init(self) {
        let level = match (self.quiet, self.verbose) {
            (true, _) => "warn",
            (_, 0) => "info",
            (_, 1) => "debug",
            _ => "trace",
        };
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
        let plain = fmt()
            .with_env_filter(filter)
            .with_writer(|| Stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .without_time()
            .with_target(false);
        // Fails only if a subscriber is set already.
        let _ = plain.try_init();
    }
}
