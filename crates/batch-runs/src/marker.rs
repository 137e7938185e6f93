//! What became of a job in a task of a scheduler, noted in its folder.

use std::{fs, path::Path};

use job_kit::write_file;
use serde::{Deserialize, Serialize};

use crate::manifest::{State, Task};

/// The file.
pub(crate) const MARKER: &str = "task.json";

/// What became of a job in a task.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Marker {
    pub(crate) list: usize,
    pub(crate) index: usize,
    pub(crate) state: State,
    pub(crate) attempts: u32,
    pub(crate) started: String,
    pub(crate) seconds: Option<f64>,
    pub(crate) host: Option<String>,
    pub(crate) exit_code: Option<i32>,
    pub(crate) error: Option<String>,
}

impl Marker {
    pub(crate) fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(folder.join(MARKER)).ok()?).ok()
    }

    pub(crate) fn is_of(&self, task: &Task) -> bool {
        (self.list, self.index) == (task.list, task.index)
    }

    pub(crate) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        let mut json = serde_json::to_vec_pretty(self)?;
        json.push(b'\n');
        Ok(write_file(folder.join(MARKER), json)?)
    }
}

/// Whether the last task that ran the job of a folder noted that it has finished.
pub(crate) fn has_finished(folder: &Path) -> bool {
    Marker::read(folder).is_some_and(|marker| marker.state == State::Finished)
}
