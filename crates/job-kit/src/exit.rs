//! How a program ends: its error on stderr, and an exit code.

use std::{error::Error, fmt, io, process::ExitCode};

use input_files::InputError;

use crate::{config::ConfigError, output::OutputError, table::TableError};

/// Errors that can say what to try.
pub trait Hint {
    /// What to try, one line each.
    fn hints(&self) -> Vec<String>;
}

/// Adds a hint to an error on its way up to [`exit`].
pub trait WithHint<T> {
    /// Adds `hint:` and this text below the error message.
    ///
    /// # Errors
    /// The error it was called on, with the hint.
    fn hint(self, text: impl Into<String>) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> WithHint<T> for Result<T, E> {
    fn hint(self, text: impl Into<String>) -> anyhow::Result<T> {
        self.map_err(|error| {
            anyhow::Error::new(Hinted {
                error: error.into(),
                hint: text.into(),
            })
        })
    }
}

/// An error with a hint; reads as the error alone.
#[derive(Debug)]
struct Hinted {
    error: anyhow::Error,
    hint: String,
}

impl fmt::Display for Hinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}

impl Error for Hinted {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error.source()
    }
}

/// Ends `main`: on an error prints `error:` with its causes on one line, then a line per hint.
///
/// Exit code 0 for success, 2 for a wrong configuration, 1 for everything else.
///
/// # Examples
/// ```no_run
/// use std::process::ExitCode;
///
/// fn run() -> anyhow::Result<()> {
///     Ok(())
/// }
///
/// fn main() -> ExitCode {
///     job_kit::exit(run())
/// }
/// ```
pub fn exit(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", message(&error));
            ExitCode::from(code(&error))
        }
    }
}

/// What [`exit`] prints for an error.
pub fn message(error: &anyhow::Error) -> String {
    let mut text = String::from("error: ");
    let mut last = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        // Some libraries repeat the cause in their own message.
        if last.is_empty() {
            text += &cause;
        } else if !last.contains(&cause) {
            text += &format!(": {cause}");
        }
        last = cause;
    }
    let mut hints = vec![];
    collect_hints(error, &mut hints);
    for hint in hints {
        text += &format!("\nhint: {hint}");
    }
    text
}

fn collect_hints(error: &anyhow::Error, hints: &mut Vec<String>) {
    if let Some(hinted) = error.downcast_ref::<Hinted>() {
        hints.push(hinted.hint.clone());
        collect_hints(&hinted.error, hints);
        return;
    }
    for cause in error.chain() {
        if let Some(hinted) = cause.downcast_ref::<Hinted>() {
            hints.push(hinted.hint.clone());
            collect_hints(&hinted.error, hints);
            return;
        }
        let known = [
            cause.downcast_ref::<ConfigError>().map(Hint::hints),
            cause.downcast_ref::<OutputError>().map(Hint::hints),
            cause.downcast_ref::<TableError>().map(Hint::hints),
            cause.downcast_ref::<InputError>().map(Hint::hints),
        ];
        hints.extend(known.into_iter().flatten().flatten());
        if cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::StorageFull)
        {
            hints.push(
                "the disk is full: free some space, or choose another folder with `output.dir=...`"
                    .to_owned(),
            );
        }
    }
}

fn code(error: &anyhow::Error) -> u8 {
    fn is_config(error: &anyhow::Error) -> bool {
        error.chain().any(|cause| {
            cause.is::<ConfigError>()
                || cause
                    .downcast_ref::<Hinted>()
                    .is_some_and(|hinted| is_config(&hinted.error))
        })
    }
    if is_config(error) { 2 } else { 1 }
}
