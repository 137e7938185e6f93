//! What to try after an error.

use std::{error::Error, fmt};

/// Errors that can say what to try.
pub trait Hint {
    /// What to try, one line each.
    fn hints(&self) -> Vec<String>;
}

/// Adds a hint to an error on its way up to [`exit`](fn@crate::exit).
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
pub(crate) struct Hinted {
    pub(crate) error: anyhow::Error,
    pub(crate) hint: String,
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
