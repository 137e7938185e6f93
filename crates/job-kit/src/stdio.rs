//! Text on standard output and standard error, which may be closed or full.

use std::io::{self, Write};

use crate::output::OutputError;

/// Prints a text to standard output. A closed pipe, as after `| head`, ends the text quietly: results do not depend on who reads it.
///
/// # Errors
/// [`OutputError::Stdout`] if it cannot be written, for instance on a full disk.
///
/// # Examples
/// ```
/// job_kit::print("Files: outputs/run\n")?;
/// # Ok::<(), job_kit::OutputError>(())
/// ```
pub fn print(text: impl AsRef<str>) -> Result<(), OutputError> {
    let mut out = io::stdout().lock();
    match out
        .write_all(text.as_ref().as_bytes())
        .and_then(|()| out.flush())
    {
        Err(source) if source.kind() != io::ErrorKind::BrokenPipe => {
            Err(OutputError::Stdout { source })
        }
        _ => Ok(()),
    }
}

/// Prints a line to standard error. Where that is closed or full there is nobody to tell.
pub(crate) fn tell(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Standard error for log lines; as [`tell`], it never fails.
#[derive(Debug)]
pub(crate) struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().lock().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = io::stderr().lock().flush();
        Ok(())
    }
}
