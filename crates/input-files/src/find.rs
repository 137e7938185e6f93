//! The files of a folder or glob.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
};

use crate::{Format, InputError};

/// The folder that macOS adds to archives.
const MACOS_ARCHIVE: &str = "__MACOSX";

/// Files under a path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Found {
    /// Files of the formats asked for, in the order of names.
    pub files: Vec<PathBuf>,
    /// Files of other formats.
    pub ignored: Vec<PathBuf>,
    /// Hidden files and folders: those that begin with a dot, and macOS's `__MACOSX`. What is in them is not listed.
    pub hidden: Vec<PathBuf>,
}

/// Finds files of some formats: the file at `path`, all in the folder there and in its subfolders, or those that match a glob.
///
/// Hidden files and folders are left alone unless the path itself names them: editors and notebooks keep copies there.
///
/// # Errors
/// - [`InputError::NotFound`], [`InputError::Glob`], [`InputError::NoFiles`] or [`InputError::UnknownFormat`] for a path without such files
/// - [`InputError::Read`] for a folder that cannot be listed
pub fn find(path: impl AsRef<Path>, formats: &[Format]) -> Result<Found, InputError> {
    let path = path.as_ref();
    let mut found = Found::default();
    let takes = |file: &Path| Format::of(file).is_some_and(|(format, _)| formats.contains(&format));
    if path.is_dir() {
        walk(path, &takes, &mut found)?;
    } else if path.exists() {
        if !takes(path) {
            return Err(InputError::unknown_format(path, formats));
        }
        found.files.push(path.into());
    } else {
        matching(path, &takes, &mut found)?;
    }
    if found.files.is_empty() {
        return Err(InputError::NoFiles {
            path: path.into(),
            expected: Format::endings(formats),
            ignored: found.ignored.len(),
            hidden: found.hidden.len(),
        });
    }
    Ok(found)
}

fn matching(
    path: &Path,
    takes: &impl Fn(&Path) -> bool,
    found: &mut Found,
) -> Result<(), InputError> {
    let pattern = path.to_string_lossy();
    if !pattern.contains(['*', '?', '[']) {
        return Err(InputError::NotFound { path: path.into() });
    }
    let matches = |options| {
        glob::glob_with(&pattern, options)
            .map_err(|source| InputError::Glob {
                pattern: pattern.to_string(),
                source: source.into(),
            })?
            .collect::<Result<Vec<PathBuf>, _>>()
            .map_err(|err| InputError::Read {
                path: err.path().into(),
                source: err.into(),
            })
    };
    let all = matches(glob::MatchOptions::new())?;
    let visible: BTreeSet<PathBuf> = matches(glob::MatchOptions {
        require_literal_leading_dot: true,
        ..glob::MatchOptions::new()
    })?
    .into_iter()
    .collect();
    for file in all {
        let archive = |part: &OsStr| part == MACOS_ARCHIVE && !pattern.contains(MACOS_ARCHIVE);
        if !visible.contains(&file) || file.iter().any(archive) {
            found.hidden.push(file);
        } else if file.is_dir() {
            walk(&file, takes, found)?;
        } else if takes(&file) {
            found.files.push(file);
        } else {
            found.ignored.push(file);
        }
    }
    Ok(())
}

fn walk(
    folder: &Path,
    takes: &impl Fn(&Path) -> bool,
    found: &mut Found,
) -> Result<(), InputError> {
    let read = InputError::read(folder);
    let mut entries = std::fs::read_dir(folder)
        .map_err(&read)?
        .collect::<io::Result<Vec<_>>>()
        .map_err(&read)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if is_hidden(&entry.file_name()) {
            found.hidden.push(path);
        } else if entry.file_type().map_err(&read)?.is_dir() {
            // A link to a folder is not followed: it may lead back up.
            walk(&path, takes, found)?;
        } else if path.is_file() && takes(&path) {
            found.files.push(path);
        } else {
            found.ignored.push(path);
        }
    }
    Ok(())
}

fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".") || name == MACOS_ARCHIVE
}
