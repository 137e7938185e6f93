//! A short run of what `cargo xtask fuzz` does at length: every reader of files from elsewhere on sound inputs and on damaged
//! ones. Reaching the end is the test.

#![expect(clippy::panic, reason = "test helpers fail the test")]

use std::panic::{catch_unwind, set_hook, take_hook};

use fuzz::{TARGETS, Target};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// Damaged inputs per target, and the seed they are drawn by. `FUZZ_ROUNDS=1000000 FUZZ_TARGETS=words,counts FUZZ_SEED=1` asks for others.
const ROUNDS: usize = 2000;

/// The value of an environment variable, or the usual one.
fn asked<T: std::str::FromStr>(name: &str, usual: T) -> T {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("`{name}` is `{text}`")),
        Err(_) => usual,
    }
}

/// A sound input with a few bytes changed, cut out, cut off, or doubled.
fn damaged(seed: &[u8], random: &mut StdRng) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..random.random_range(1..8) {
        if bytes.is_empty() {
            break;
        }
        let at = random.random_range(0..bytes.len());
        let end = (at + random.random_range(1..32)).min(bytes.len());
        match random.random_range(0..6) {
            0 => bytes[at] = random.random(),
            1 => bytes[at] ^= 1 << random.random_range(0..8),
            2 => bytes.insert(at, random.random()),
            3 => drop(bytes.drain(at..end)),
            4 => bytes.truncate(at),
            _ => {
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
        }
    }
    bytes
}

/// Whether the target reads it.
#[track_caller]
fn read(target: &Target, bytes: &[u8]) -> bool {
    // Panics of a library that a reader makes an error of are no news.
    let hook = take_hook();
    set_hook(Box::new(|_| {}));
    let read = catch_unwind(|| (target.read)(bytes));
    set_hook(hook);
    let Ok(sound) = read else {
        panic!("`{}` panicked on {}", target.name, bytes.escape_ascii());
    };
    sound
}

/// What once ended a program, by target.
const FOUND: &[(&str, &[u8])] = &[
    // 4 GB, the header says, of a file that ends with it.
    (
        "counts",
        b"\0\x93NUMPY\x01\x00\x3c\x00{'descr': '<i8','fortran_order': False,'shape':(536870912,)}",
    ),
    (
        "tokens",
        b"\0\x93NUMPY\x01\x00\x3c\x00{'descr': '<i8','fortran_order': False,'shape':(9,99999999)}",
    ),
    // A footer of 400 MB.
    ("words", b"\x03ARROW1\0\0\xd8\x25\x00\x18ARROW1"),
];

#[test]
fn what_was_found_stays_mended() {
    for (name, bytes) in FOUND {
        read(fuzz::target(name).unwrap(), bytes);
    }
}

#[test]
fn readers_stand_damaged_input() {
    let (rounds, names) = (
        asked("FUZZ_ROUNDS", ROUNDS),
        asked("FUZZ_TARGETS", String::new()),
    );
    let wanted = |target: &&Target| names.is_empty() || names.split(',').any(|n| n == target.name);
    for target in TARGETS.iter().filter(wanted) {
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty(), "`{}` has no seed", target.name);
        let mut random = StdRng::seed_from_u64(asked("FUZZ_SEED", 0));
        read(target, &[]);
        for (i, seed) in seeds.iter().enumerate() {
            // Or the damaged ones would show nothing.
            assert!(read(target, seed), "`{}` refuses seed {i}", target.name);
        }
        for _ in 0..rounds {
            let seed = &seeds[random.random_range(0..seeds.len())];
            read(target, &damaged(seed, &mut random));
        }
    }
}

#[test]
fn every_target_has_a_binary() {
    let manifest = include_str!("../../crates/fuzz/Cargo.toml");
    for target in TARGETS {
        let name = format!("name = \"{}\"", target.name);
        assert!(manifest.contains(&name), "no binary `{}`", target.name);
    }
    assert_eq!(manifest.matches("[[bin]]").count(), TARGETS.len());
}
