//! What the results of a run are made of.

use job_kit::OutputDir;

use crate::{setup::Setup, store::Store};

/// What the tables are made of.
pub(crate) struct Inputs<'r> {
    pub(crate) setup: &'r Setup<'r>,
    pub(crate) store: &'r Store,
    pub(crate) out: &'r OutputDir,
}
