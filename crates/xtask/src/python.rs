//! Python 3 and pip: the way to the package registry.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::workspace;

const SCRIPT: &str = include_str!("wheels.py");

/// The interpreter of a virtual environment.
pub(crate) fn interpreter(venv: &Path) -> PathBuf {
    venv.join(if cfg!(windows) {
        "Scripts/python.exe"
    } else {
        "bin/python"
    })
}

/// A Python 3 interpreter.
#[derive(Debug)]
pub(crate) struct Python {
    program: &'static str,
}

impl Python {
    /// The first of `python3` and `python` that is Python 3.8 or newer.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let test = "import sys; sys.exit(sys.version_info < (3, 8))";
        for program in ["python3", "python"] {
            if workspace::answer(Command::new(program).args(["-I", "-S", "-c", test])).is_some() {
                return Ok(Self { program });
            }
        }
        bail!("neither `python3` nor `python` is Python 3.8 or newer; install one, or set LIBTORCH")
    }

    /// Such as `Python 3.11.7`.
    pub(crate) fn version(&self) -> Option<String> {
        workspace::answer(Command::new(self.program).arg("--version"))
    }

    /// Such as `pip 23.2.1 from ...`; `None` without pip.
    pub(crate) fn pip_version(&self) -> Option<String> {
        workspace::answer(Command::new(self.program).args(["-m", "pip", "--version"]))
    }

    /// Makes a virtual environment in a folder; one that is there is made anew.
    ///
    /// # Errors
    /// If the module `venv` is not there, or fails.
    pub(crate) fn venv(&self, dir: &Path) -> anyhow::Result<()> {
        let mut command = Command::new(self.program);
        command.args(["-m", "venv", "--clear"]).arg(dir);
        workspace::run(&mut command)
            .context("no virtual environment could be made (Debian: `apt install python3-venv`)")
    }

    /// Runs one command of `wheels.py`, isolated from the user's environment.
    pub(crate) fn script(&self, args: &[OsString]) -> anyhow::Result<String> {
        self.code(SCRIPT, args)
    }

    /// Runs a script of the standard library alone; what it prints.
    ///
    /// # Errors
    /// What the script says when it fails.
    pub(crate) fn code(&self, script: &str, args: &[OsString]) -> anyhow::Result<String> {
        let name = args.first().map(|arg| arg.to_string_lossy().into_owned());
        let name = name.unwrap_or_default();
        let output = Command::new(self.program)
            .args(["-I", "-S", "-c", script])
            .args(args)
            .output()
            .with_context(|| format!("failed to start `{}`", self.program))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            // A traceback ends with the error; our own messages are one line.
            match text.trim().lines().last() {
                Some(line) => bail!("{}", line.trim_start_matches("error: ")),
                None => bail!("`{} -c ... {name}`: {}", self.program, output.status),
            }
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Bytes free on the disk of a folder.
    pub(crate) fn free_space(&self, dir: &Path) -> anyhow::Result<u64> {
        self.script(&["space".into(), dir.into()])?
            .parse()
            .with_context(|| format!("failed to read the free space of `{}`", dir.display()))
    }

    /// Runs pip with its progress shown; its temporary files go to `temp`.
    ///
    /// # Errors
    /// If pip is not there, or fails.
    pub(crate) fn pip<S: AsRef<OsStr>>(&self, args: &[S], temp: &Path) -> anyhow::Result<()> {
        if self.pip_version().is_none() {
            bail!(
                "`{0}` has no pip; install it (Debian: `apt install python3-pip`, \
                 elsewhere: `{0} -m ensurepip --user`), or set LIBTORCH",
                self.program
            );
        }
        let status = Command::new(self.program)
            .args(["-m", "pip", "--disable-pip-version-check"])
            .args(args)
            .env("TMPDIR", temp)
            // A broken connection goes on where it stopped, with pip 25.1 or newer.
            .env("PIP_RESUME_RETRIES", "5")
            .status()
            .with_context(|| format!("failed to start `{}`", self.program))?;
        if !status.success() {
            bail!("pip ended with {status}");
        }
        Ok(())
    }
}
