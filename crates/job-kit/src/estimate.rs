//! What a run is going to take, told before its work begins.

use std::{fmt, fs, path::Path, time::Duration};

use indicatif::{BinaryBytes, HumanDuration};

use crate::hint::Hint;

/// Memory, disk and time that a run is going to take, as far as they are known.
///
/// # Examples
/// ```
/// use job_kit::Estimate;
///
/// let estimate = Estimate { disk: 3 << 30, memory: Some(1 << 30), time: None };
/// assert_eq!(estimate.to_string(), "about 3.00 GiB of disk, 1.00 GiB of memory");
/// assert!(estimate.check_room(Some(4 << 30)).is_ok());
/// let refused = estimate.check_room(Some(1 << 30)).unwrap_err();
/// assert_eq!(refused.to_string(), "the output needs about 3.00 GiB of disk, and 1.00 GiB are free");
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Bytes that the outputs take.
    pub disk: u64,
    /// Bytes that the process comes to hold, where that can be told.
    pub memory: Option<u64>,
    /// How long the work takes, where a piece of it was measured.
    pub time: Option<Duration>,
}

/// The disk has not room for what a run is going to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the output needs about {} of disk, and {} are free",
    BinaryBytes(*needed),
    BinaryBytes(*free)
)]
pub struct NoRoom {
    /// Bytes that the outputs take.
    pub needed: u64,
    /// Bytes that there are.
    pub free: u64,
}

impl Hint for NoRoom {
    fn hints(&self) -> Vec<String> {
        vec!["write to another disk with `output.dir=...`".to_owned()]
    }
}

impl Estimate {
    /// Whether the disk has room for the outputs; so it has where it is not known how much is `free`.
    ///
    /// # Errors
    /// [`NoRoom`]
    pub fn check_room(&self, free: Option<u64>) -> Result<(), NoRoom> {
        match free {
            Some(free) if free < self.disk => Err(NoRoom {
                needed: self.disk,
                free,
            }),
            _ => Ok(()),
        }
    }

    /// What is short of what there is, in words, if anything is known to be.
    pub fn memory_warning(&self, available: Option<u64>) -> Option<String> {
        let (memory, available) = (self.memory?, available?);
        (memory > available).then(|| {
            format!(
                "the run comes to hold about {} of memory, and {} are available",
                BinaryBytes(memory),
                BinaryBytes(available)
            )
        })
    }
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "about ")?;
        if let Some(time) = self.time {
            write!(f, "{}, ", HumanDuration(time))?;
        }
        write!(f, "{} of disk", BinaryBytes(self.disk))?;
        match self.memory {
            Some(memory) => write!(f, ", {} of memory", BinaryBytes(memory)),
            None => Ok(()),
        }
    }
}

/// A time in its largest unit: `3 minutes`.
pub fn in_words(time: Duration) -> String {
    HumanDuration(time).to_string()
}

/// Bytes that are free for this user on the disk of a folder, which need not be there yet; none where the system does not say.
pub fn free_disk(folder: &Path) -> Option<u64> {
    let folder = std::path::absolute(folder).ok()?;
    let there = folder.ancestors().find(|folder| folder.is_dir())?;
    let disk = rustix::fs::statvfs(there).ok()?;
    disk.f_bavail.checked_mul(disk.f_frsize)
}

/// Bytes of memory that the process holds, and those that it could have besides; none where the system does not say.
pub fn memory() -> Option<(u64, u64)> {
    let kibibytes = |file: &str, key: &str| -> Option<u64> {
        let text = fs::read_to_string(file).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    let held = kibibytes("/proc/self/status", "VmRSS:")?;
    let available = kibibytes("/proc/meminfo", "MemAvailable:")?;
    Some((held * 1024, available * 1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_there_has_the_room_of_the_one_around_it() {
        let dir = tempfile::tempdir().unwrap();
        let free = free_disk(&dir.path().join("a/b")).unwrap();
        assert!(free > 0);
        let needs = |disk| Estimate {
            disk,
            ..Estimate::default()
        };
        assert_eq!(
            needs(u64::MAX).check_room(Some(free)).unwrap_err().free,
            free
        );
        assert_eq!(needs(u64::MAX).check_room(None), Ok(()));
    }

    #[test]
    fn memory_that_is_not_there_is_warned_of() {
        let needs = Estimate {
            memory: Some(2 << 30),
            ..Estimate::default()
        };
        assert_eq!(needs.memory_warning(Some(3 << 30)), None);
        let warning = needs.memory_warning(Some(1 << 30)).unwrap();
        assert!(warning.contains("2.00 GiB"), "{warning}");
        let (held, available) = memory().unwrap();
        assert!(held > 0 && available > 0);
    }
}
