//! One run of one side, with its time and peak memory.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};
use serde_json::Value;
use wait4::Wait4;

use crate::workspace::{Shown, root};

/// A program with its arguments, to be run with a fixed number of threads.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    path: PathBuf,
    args: Vec<OsString>,
    threads: u32,
}

/// What one run took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    /// The part that the program itself timed, where it does.
    pub(crate) seconds: Option<f64>,
    /// Units of work, where the program says.
    pub(crate) units: Option<f64>,
    /// The whole process.
    pub(crate) wall: f64,
    /// Peak resident memory, bytes.
    pub(crate) peak: u64,
}

impl Program {
    pub(crate) fn new(path: PathBuf, threads: u32) -> Self {
        Self {
            path,
            args: Vec::new(),
            threads,
        }
    }

    pub(crate) fn args<I: IntoIterator<Item: AsRef<OsStr>>>(mut self, args: I) -> Self {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Runs it to its end.
    ///
    /// The last line of its output may be `{"seconds": ..., "units": ...}`: the time of the part that counts, and how much
    /// work it did.
    ///
    /// # Errors
    /// If it does not start, or fails; what it wrote to standard error is part of the message.
    pub(crate) fn run(&self) -> anyhow::Result<Taken> {
        let mut command = Command::new(&self.path);
        let threads = self.threads.to_string();
        command
            .args(&self.args)
            .current_dir(root())
            .env("OMP_NUM_THREADS", &threads)
            .env("MKL_NUM_THREADS", &threads)
            .env("RAYON_NUM_THREADS", &threads)
            // Set by `.cargo/config.toml` for tests; neither side is used that way.
            .env_remove("OMP_WAIT_POLICY")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let shown = Shown(&command).to_string();
        eprintln!("$ {shown}");
        let started = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("failed to start `{shown}`"))?;
        // Read beside each other, as a full pipe would stop the program.
        let errors = child.stderr.take().map(|mut stderr| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                stderr.read_to_end(&mut bytes).map(|_| bytes)
            })
        });
        let mut bytes = Vec::new();
        if let Some(stdout) = &mut child.stdout {
            stdout
                .read_to_end(&mut bytes)
                .with_context(|| format!("failed to read the output of `{shown}`"))?;
        }
        let used = child
            .wait4()
            .with_context(|| format!("failed to wait for `{shown}`"))?;
        let wall = started.elapsed().as_secs_f64();
        if !used.status.success() {
            let errors = errors.and_then(|thread| thread.join().ok()?.ok());
            let text = String::from_utf8_lossy(errors.as_deref().unwrap_or_default()).into_owned();
            bail!("`{shown}` failed: {}\n{}", used.status, text.trim_end());
        }
        let output = String::from_utf8_lossy(&bytes);
        let said = output.trim_end().lines().last().unwrap_or_default();
        let said: Value = serde_json::from_str(said).unwrap_or_default();
        Ok(Taken {
            seconds: said["seconds"].as_f64(),
            units: said["units"].as_f64(),
            wall,
            peak: used.rusage.maxrss,
        })
    }
}
