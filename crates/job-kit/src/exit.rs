//! How a program ends: its error on stderr, and an exit code.

use std::{io, panic, process::ExitCode};

use clap::Parser;
use input_files::{InputError, panic_becomes_error};

use crate::{
    completion,
    config::ConfigError,
    hint::{Hint, Hinted},
    output::OutputError,
    stdio::tell,
    table::TableError,
};

/// The whole of a `main`: reads the command line, and ends as [`exit`] says.
///
/// Help and version go to standard output as [`print`](crate::print) does: a closed pipe is a quiet end, a full disk an error.
///
/// # Examples
/// ```no_run
/// #[derive(clap::Parser)]
/// struct Cli {
///     steps: Vec<u64>,
/// }
///
/// fn main() -> std::process::ExitCode {
///     job_kit::main(|cli: &Cli| job_kit::print(format!("{} steps\n", cli.steps.len())).map_err(Into::into))
/// }
/// ```
pub fn main<C: Parser>(run: impl FnOnce(&C) -> anyhow::Result<()>) -> ExitCode {
    let shown = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if !panic_becomes_error() {
            shown(panic);
        }
    }));
    completion::is_of::<C>();
    match C::try_parse() {
        Ok(cli) => exit(run(&cli)),
        Err(usage) => {
            let printed = match usage.print() {
                Err(source)
                    if !usage.use_stderr() && source.kind() != io::ErrorKind::BrokenPipe =>
                {
                    Err(OutputError::Stdout { source }.into())
                }
                _ => Ok(()),
            };
            match usage.exit_code() {
                0 => exit(printed),
                code => ExitCode::from(u8::try_from(code).unwrap_or(2)),
            }
        }
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
            tell(&message(&error));
            if error
                .chain()
                .any(|cause| without_trace(&cause.to_string()) != cause.to_string())
            {
                tracing::debug!("in full: {error:#}");
            }
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
        let cause = without_trace(&cause);
        // Some libraries repeat the cause in their own message.
        if last.is_empty() {
            text += cause;
        } else if !last.contains(cause) {
            text += &format!(": {cause}");
        }
        last = cause.to_owned();
    }
    let mut hints = vec![];
    collect_hints(error, &mut hints);
    for hint in hints {
        text += &format!("\nhint: {hint}");
    }
    text
}

/// A message without the stack trace that libtorch puts behind it; `-v` shows all.
fn without_trace(message: &str) -> &str {
    let end = ["\nException raised from", "\nframe #0"]
        .iter()
        .filter_map(|trace| message.find(trace))
        .min();
    message[..end.unwrap_or(message.len())].trim_end()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stack_traces_are_cut_off() {
        let torch = io::Error::other(
            "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)\nException raised from meta at LinearAlgebra.cpp:195 (most recent call first):\nframe #0: c10::Error",
        );
        let error = anyhow::Error::new(torch).context("libtorch failed");
        assert_eq!(
            message(&error),
            "error: libtorch failed: mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"
        );
    }
}
