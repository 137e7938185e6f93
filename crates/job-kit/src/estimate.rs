//! What a run is going to take, told before its work begins.

use std::{fmt, fs, path::Path, time::Duration};

use indicatif::{BinaryBytes, HumanDuration};

use crate::{RunRecord, hint::Hint};

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

/// What a run over several checkpoints takes, told in the same words by every job.
///
/// # Examples
/// ```
/// use job_kit::{Estimate, estimate::ForCheckpoints};
///
/// let of_one = Estimate { disk: 3 << 30, memory: Some(1 << 30), time: None };
/// let run = ForCheckpoints { of_one, checkpoints: 2 };
/// assert_eq!(
///     run.in_words("5 pairs each"),
///     "one checkpoint takes about 3.00 GiB of disk, 1.00 GiB of memory\n\
///      2 checkpoints of 5 pairs each take about 6.00 GiB of disk, 1.00 GiB of memory\n"
/// );
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForCheckpoints {
    /// What one takes.
    pub of_one: Estimate,
    /// How many there are to do.
    pub checkpoints: usize,
}

impl ForCheckpoints {
    /// What all take: one after the other, so that memory does not add up.
    pub fn all(&self) -> Estimate {
        let n = u32::try_from(self.checkpoints).unwrap_or(u32::MAX);
        Estimate {
            disk: self.of_one.disk.saturating_mul(u64::from(n)),
            time: self.of_one.time.map(|time| time.saturating_mul(n)),
            ..self.of_one
        }
    }

    /// What one and all take; `of` says of what, such as `5 pairs each`.
    pub fn in_words(&self, of: &str) -> String {
        match self.checkpoints {
            1 => format!("1 checkpoint of {of} takes {}\n", self.of_one),
            n => format!(
                "one checkpoint takes {}\n{n} checkpoints of {of} take {}\n",
                self.of_one,
                self.all()
            ),
        }
    }

    /// Says it at the start of a run that writes to `folder`, and in its record; warns of memory that there is not, with `less` as what takes
    /// less of it.
    ///
    /// # Errors
    /// [`NoRoom`] if the disk has not room for what the run writes.
    pub fn begin(&self, folder: &Path, less: &str, record: &mut RunRecord) -> Result<(), NoRoom> {
        let all = self.all();
        let of = match self.checkpoints {
            1 => String::new(),
            n => format!(" ({n} checkpoints)"),
        };
        tracing::info!("this run takes {all}{of}");
        let Estimate { disk, memory, .. } = self.of_one;
        record.note(
            "estimate",
            serde_json::json!({"disk_bytes": disk, "memory_bytes": memory}),
        );
        if let Some(warning) = all.memory_warning(memory_now().map(|now| now.available)) {
            record.warn(format!("{warning}: {less}"));
        }
        all.check_room(free_disk(folder))
    }
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

/// Bytes of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// What the process holds.
    pub held: u64,
    /// The most that it has held.
    pub most: u64,
    /// What it could have besides.
    pub available: u64,
}

/// The memory of the process; none where the system does not say.
pub fn memory_now() -> Option<Memory> {
    let kibibytes = |file: &str, key: &str| -> Option<u64> {
        let text = fs::read_to_string(file).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
    };
    Some(Memory {
        held: kibibytes("/proc/self/status", "VmRSS:")? * 1024,
        most: kibibytes("/proc/self/status", "VmHWM:")? * 1024,
        available: kibibytes("/proc/meminfo", "MemAvailable:")? * 1024,
    })
}

/// Bytes of the files in a folder and the folders in it; what cannot be read counts nothing.
pub fn bytes_in(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(file) if file.is_dir() => bytes_in(&entry.path()),
        Ok(file) => file.len(),
        Err(_) => 0,
    };
    entries.map(of).sum()
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
        let now = memory_now().unwrap();
        assert!(now.held > 0 && now.most >= now.held && now.available > 0);
    }

    #[test]
    fn a_run_that_the_disk_has_not_room_for_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = RunRecord::new("job", "0.1.0", &serde_json::json!({}));
        let takes = |disk, checkpoints| ForCheckpoints {
            of_one: Estimate {
                disk,
                ..Estimate::default()
            },
            checkpoints,
        };
        let begin = |run: ForCheckpoints, record: &mut RunRecord| run.begin(dir.path(), "", record);
        assert_eq!(begin(takes(1, 1000), &mut record), Ok(()));
        let free = free_disk(dir.path()).unwrap();
        assert!(begin(takes(free / 100, 1000), &mut record).is_err());
        assert_eq!(takes(u64::MAX, 2).all().disk, u64::MAX);
    }

    #[test]
    fn files_in_folders_count() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("in")).unwrap();
        fs::write(dir.path().join("in/a"), [0; 7]).unwrap();
        fs::write(dir.path().join("b"), [0; 4]).unwrap();
        assert_eq!(bytes_in(dir.path()), 11);
        assert_eq!(bytes_in(&dir.path().join("nowhere")), 0);
    }
}
