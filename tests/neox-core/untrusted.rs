//! Pickles that no one wrote by accident. Every reader is fed damaged files in tests/fuzz/short.rs.

use neox_core::fuzzing::pickle;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Instructions in any order.
    #[test]
    fn random_pickles(bytes in prop::collection::vec(
        prop::sample::select(b"\x80\x02\x85\x86\x87()}]tuseabNKMJXcQRhjqr.\x88\x89\x93\x94\x95\x8a\x00\x01\n".to_vec()),
        0..200,
    )) {
        pickle(&bytes);
    }
}

/// Nesting without end costs no stack: neither when reading nor when dropping.
#[test]
fn deep_pickles() {
    let mut bytes = b"\x80\x02)".to_vec();
    bytes.extend(vec![0x85; 1_000_000]); // a tuple in a tuple in ...
    bytes.push(b'.');
    assert!(!pickle(&bytes));
    let mut bytes = b"\x80\x02".to_vec();
    bytes.extend(vec![b'('; 1_000_000]);
    assert!(!pickle(&bytes));
}
