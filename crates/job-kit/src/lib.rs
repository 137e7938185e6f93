//! What the binaries share: layered YAML configurations, progress and logs, output files that are whole or absent,
//! `run.json`, tables, plots and the HTML report, and how a program ends.
//!
//! It computes nothing, and of the other crates knows only the one that reads tables.

pub mod completion;
pub mod config;
mod dispatch;
pub mod estimate;
pub mod exit;
pub mod hint;
pub mod logging;
mod nearest;
mod notation;
pub mod output;
pub mod plot;
pub mod progress;
pub mod report;
pub mod run_record;
mod secrets;
mod stdio;
pub mod table;

pub use input_files::{Columns, InputError, TableReader};

pub use self::{
    config::{
        ConfigArgs, ConfigError, Paths, Resolved, Rule, Rules, Span, compose, default_seed, on,
        switch,
    },
    dispatch::{NamedJob, dispatch, dispatched},
    estimate::Estimate,
    exit::{exit, main},
    hint::WithHint,
    logging::Verbosity,
    output::{AtomicFile, OutputDir, OutputError, sha256_file, write_file},
    progress::Progress,
    run_record::{RunRecord, finished_run},
    stdio::print,
    table::{Format, Table, TableError, TableWriter},
};
