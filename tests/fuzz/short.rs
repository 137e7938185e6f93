//! A short run of what `cargo xtask fuzz` does at length: every reader of files from elsewhere on sound inputs and on damaged
//! ones. Reaching the end is the test.

#![expect(clippy::panic, reason = "test helpers fail the test")]

use std::panic::catch_unwind;

use fuzz::{TARGETS, Target};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// Damaged inputs per target.
const ROUNDS: usize = 2000;

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
    let Ok(sound) = catch_unwind(|| (target.read)(bytes)) else {
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
    for target in TARGETS {
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty(), "`{}` has no seed", target.name);
        let mut random = StdRng::seed_from_u64(0);
        read(target, &[]);
        for (i, seed) in seeds.iter().enumerate() {
            // Or the damaged ones would show nothing.
            assert!(read(target, seed), "`{}` refuses seed {i}", target.name);
        }
        for _ in 0..ROUNDS {
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
