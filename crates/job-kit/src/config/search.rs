//! Where config files, and the data that shipped ones name, are looked for.
//!
//! A program brings configs and small data with it: in `share/longtail-neurons` or `share` beside the folder of the program, or else in the
//! source tree that it was built from. What lies in the current folder comes before what is shipped.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use super::{ConfigError, file, in_folder};

/// Where configs are looked for first, unless `--config-dir` names another folder.
pub(super) const CONFIGS: &str = "configs";

/// The source tree; nothing in programs that are made to be carried elsewhere.
const SOURCE: Option<&str> = match option_env!("LONGTAIL_RPATH") {
    Some(_) => None,
    None => Some(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")),
};

/// Folders of configs, in the order in which a file is looked for.
#[derive(Debug, Clone)]
pub(super) struct Search(Vec<PathBuf>);

impl Search {
    /// The folder that is named, alone; or [`CONFIGS`] and then the shipped ones.
    pub(super) fn new(config_dir: &Path) -> Self {
        let mut folders = vec![config_dir.to_owned()];
        if config_dir == Path::new(CONFIGS) {
            folders.extend(shipped_folder().map(|share| share.join(CONFIGS)));
        }
        Self(folders)
    }

    /// The folder that was named.
    pub(super) fn first(&self) -> &Path {
        &self.0[0]
    }

    /// Whether any of the folders is there.
    pub(super) fn any(&self) -> bool {
        self.0.iter().any(|folder| folder.is_dir())
    }

    /// Whether a file lies in one of the folders.
    pub(super) fn holds(&self, path: &Path) -> bool {
        self.0.iter().any(|folder| path.starts_with(folder))
    }

    /// Whether a group has a folder.
    pub(super) fn has_group(&self, group: &str) -> bool {
        self.0.iter().any(|folder| folder.join(group).is_dir())
    }

    /// The file of a choice: the first that is there, or else where it would be in the first folder that is there.
    pub(super) fn file(&self, group: &str, name: &str) -> PathBuf {
        let mut files = self
            .0
            .iter()
            .map(|folder| (folder, in_folder(&folder.join(group), name)));
        let there = files.clone().find(|(_, file)| file.is_file());
        let there = there.or_else(|| files.clone().find(|(folder, _)| folder.is_dir()));
        there
            .or_else(|| files.next())
            .map_or_else(|| name.into(), |(_, file)| file)
    }

    /// The choices of a group, sorted.
    pub(super) fn choices(&self, group: &str) -> Vec<String> {
        let folders = self.0.iter();
        let mut names: Vec<String> = folders
            .flat_map(|folder| file::choices(&folder.join(group)))
            .collect();
        names.sort();
        names.dedup();
        names
    }
}

/// The folders in which shipped files may lie.
pub(super) fn candidates() -> Vec<PathBuf> {
    let program = env::current_exe().and_then(fs::canonicalize).ok();
    let beside = program
        .iter()
        .filter_map(|program| Some(program.parent()?.parent()?.join("share")))
        .flat_map(|share| [share.join("longtail-neurons"), share]);
    let source = SOURCE.map(|tree| fs::canonicalize(tree).unwrap_or_else(|_| tree.into()));
    beside.chain(source).collect()
}

/// The folder of what is shipped with the program: it holds `configs`, and `examples/data` unless that was left out.
pub fn shipped_folder() -> Option<PathBuf> {
    candidates()
        .into_iter()
        .find(|folder| folder.join(CONFIGS).is_dir())
}

/// A file or folder that is shipped, such as `examples/data/tiny-neox`: the one in the current folder, or else the shipped one.
///
/// # Errors
/// Where it was looked for, if it is in neither.
pub fn shipped(path: &str) -> Result<PathBuf, String> {
    let here = PathBuf::from(path);
    if here.exists() {
        return Ok(here);
    }
    let found = candidates()
        .into_iter()
        .map(|folder| folder.join(path))
        .find(|path| path.exists());
    found.ok_or_else(|| {
        let places: Vec<String> = candidates()
            .iter()
            .map(|folder| format!("`{}`", folder.display()))
            .collect();
        format!(
            "there is no `{path}` in the current folder, {}",
            places.join(", ")
        )
    })
}

/// Copies the shipped configs to a folder that is not there yet, or is empty.
///
/// # Errors
/// [`ConfigError::NoFolder`] if none are shipped, [`ConfigError::Export`] if the folder cannot be written or holds something.
pub fn export(target: &Path) -> Result<(), ConfigError> {
    let Some(share) = shipped_folder() else {
        return Err(ConfigError::NoFolder {
            path: CONFIGS.into(),
            looked_in: candidates(),
        });
    };
    let copy_whole = || -> io::Result<()> {
        if target.is_dir() && fs::read_dir(target)?.next().is_some() {
            return Err(io::Error::other("the folder is not empty"));
        }
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent)?;
        let temporary = tempfile::Builder::new()
            .prefix(".configs-")
            .suffix(".tmp")
            .tempdir_in(parent)?;
        let whole = temporary.path().join(CONFIGS);
        copy(&share.join(CONFIGS), &whole)?;
        fs::rename(&whole, target)
    };
    copy_whole().map_err(|source| ConfigError::Export {
        path: target.to_owned(),
        source,
    })
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        match from.is_dir() {
            true => copy(&from, &to)?,
            // The content alone: what is shipped may be read-only.
            false => fs::write(to, fs::read(from)?)?,
        }
    }
    Ok(())
}
