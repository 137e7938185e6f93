//! What reads files from elsewhere, as functions of any bytes: a [`Target`] must come back, with a result or an error, and
//! must not panic, believe a size before the bytes are there, or take time that grows faster than its input.
//!
//! `cargo xtask fuzz` runs them under libFuzzer, for as long as one likes; `tests/fuzz/short.rs` runs each on its seeds and on
//! some thousand damaged ones, on every test run.
//!
//! ```
//! let target = fuzz::target("index").expect("it is one of TARGETS");
//! assert!(!(target.read)(br#"{"weight_map": {"a": 1}}"#));
//! ```

#![expect(
    clippy::expect_used,
    reason = "a target that cannot write its own files or finds a law broken has to stop"
)]

mod checkpoints;
mod inputs;
mod memory;
mod seeds;
mod texts;

use std::{
    cell::RefCell,
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

/// A reader of untrusted bytes.
#[derive(Debug)]
pub struct Target {
    /// What `cargo xtask fuzz` and the binary call it.
    pub name: &'static str,
    /// Reads bytes, and says whether it could; a panic is a find.
    pub read: fn(&[u8]) -> bool,
    /// Sound inputs to begin from, cut from the files of the repository or made here.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "pickle",
        read: checkpoints::pickle,
        seeds: seeds::pickle,
    },
    Target {
        name: "safetensors",
        read: checkpoints::safetensors,
        seeds: seeds::safetensors,
    },
    Target {
        name: "config",
        read: checkpoints::config,
        seeds: seeds::config,
    },
    Target {
        name: "index",
        read: checkpoints::index,
        seeds: seeds::index,
    },
    Target {
        name: "corpus",
        read: texts::corpus,
        seeds: seeds::corpus,
    },
    Target {
        name: "counts",
        read: texts::counts,
        seeds: seeds::counts,
    },
    Target {
        name: "contexts",
        read: texts::contexts,
        seeds: seeds::contexts,
    },
    Target {
        name: "lexicon",
        read: texts::lexicon,
        seeds: seeds::lexicon,
    },
    Target {
        name: "words",
        read: inputs::words,
        seeds: seeds::words,
    },
    Target {
        name: "tokens",
        read: inputs::tokens,
        seeds: seeds::tokens,
    },
    Target {
        name: "neurons",
        read: inputs::neurons,
        seeds: seeds::neurons,
    },
    Target {
        name: "yaml",
        read: inputs::yaml,
        seeds: seeds::yaml,
    },
];

/// The target of this name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// The `main` of a binary that libFuzzer drives. Its seeds are written into the folder where `cargo fuzz` keeps what it finds
/// worth keeping, so that every run begins from them.
#[macro_export]
macro_rules! target {
    ($name:literal) => {
        static TARGET: std::sync::LazyLock<&$crate::Target> =
            std::sync::LazyLock::new(|| $crate::target($name).expect("it is one of TARGETS"));

        libfuzzer_sys::fuzz_target!(
            init: $crate::begin(&TARGET),
            |bytes: &[u8]| { (TARGET.read)(bytes); }
        );
    };
}

/// Writes the seeds, and lets panics that a reader catches pass: libFuzzer's own hook would end the program at them. One that
/// is not caught ends it all the same.
pub fn begin(target: &Target) {
    drop(std::panic::take_hook());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target.name);
    fs::create_dir_all(&folder).expect("the folder of the seeds");
    for (i, seed) in (target.seeds)().iter().enumerate() {
        fs::write(folder.join(format!("seed-{i}")), seed).expect("a seed");
    }
}

/// A file of this name with these bytes, in a folder of this thread's; the next call with the name writes over it.
fn file(name: &str, bytes: &[u8]) -> PathBuf {
    thread_local! {
        static FOLDER: RefCell<Option<TempDir>> = const { RefCell::new(None) };
    }
    FOLDER.with_borrow_mut(|folder| {
        let folder = folder.get_or_insert_with(|| tempfile::tempdir().expect("a temporary folder"));
        let path = folder.path().join(name);
        // Writing over a file makes ext4 wait for the disk, which takes twenty times as long as all else.
        let _ = fs::remove_file(&path);
        fs::write(&path, bytes).expect("a temporary file");
        path
    })
}

/// The first byte chooses one of `names`; the rest is the content.
fn named<'a>(names: &[&'static str], input: &'a [u8]) -> Option<(&'static str, &'a [u8])> {
    let (choice, bytes) = input.split_first()?;
    Some((names[usize::from(*choice) % names.len()], bytes))
}
