//! Arrays as NumPy writes them: every field of the header is honoured or refused.
#![expect(clippy::unwrap_used, reason = "test helpers fail the test")]

use std::path::Path;

use input_files::IntegerArray;

/// A file of version 1 with this header.
fn npy(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(u16::try_from(header.len()).unwrap().to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

fn header(descr: &str, fortran: bool, shape: &str) -> String {
    let fortran = if fortran { "True" } else { "False" };
    format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}   \n")
}

fn read(bytes: &[u8]) -> Result<(Vec<usize>, Vec<i64>), String> {
    IntegerArray::read(Path::new("a.npy"), bytes)
        .map(|array| (array.shape, array.values))
        .map_err(|err| err.to_string())
}

#[track_caller]
fn refused(bytes: &[u8], expected: &str) {
    let err = read(bytes).unwrap_err();
    assert!(err.contains(expected), "{err}");
}

#[test]
fn every_integer_and_byte_order() {
    for (descr, data) in [
        ("|i1", vec![1, 0xfe]),
        ("<i2", vec![1, 0, 0xfe, 0xff]),
        (">i2", vec![0, 1, 0xff, 0xfe]),
        ("<i4", vec![1, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff]),
        (
            ">i8",
            vec![
                0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe,
            ],
        ),
    ] {
        let read = read(&npy(&header(descr, false, "(2,)"), &data)).unwrap();
        assert_eq!(read, (vec![2], vec![1, -2]), "{descr}");
    }
    for (descr, data, value) in [
        ("|u1", vec![0xfe], 0xfe),
        ("<u2", vec![1, 2], 0x201),
        (">u4", vec![0, 0, 1, 2], 0x102),
        ("=u4", 7u32.to_ne_bytes().to_vec(), 7),
        ("u8", 9u64.to_ne_bytes().to_vec(), 9),
    ] {
        let read = read(&npy(&header(descr, false, "(1,)"), &data)).unwrap();
        assert_eq!(read.1, [value], "{descr}");
    }
    refused(
        &npy(&header("<u8", false, "(1,)"), &[0xff; 8]),
        "value 0 is 18446744073709551615",
    );
}

#[test]
fn fortran_order_runs_down_the_columns() {
    let data: Vec<u8> = [0u8, 3, 1, 4, 2, 5].to_vec();
    let rows = read(&npy(&header("|u1", true, "(2, 3)"), &data)).unwrap();
    assert_eq!(rows, (vec![2, 3], vec![0, 1, 2, 3, 4, 5]));
    // [2, 2, 2], where the first index runs fastest.
    let cube = read(&npy(
        &header("|u1", true, "(2, 2, 2)"),
        &[0, 4, 2, 6, 1, 5, 3, 7],
    ))
    .unwrap();
    assert_eq!(cube.1, [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(
        read(&npy(&header("|u1", true, "(3,)"), &[1, 2, 3]))
            .unwrap()
            .1,
        [1, 2, 3]
    );
    assert_eq!(
        read(&npy(&header("|u1", true, "(0, 3)"), &[])).unwrap(),
        (vec![0, 3], vec![])
    );
    assert_eq!(
        read(&npy(&header("|u1", false, "()"), &[7])).unwrap(),
        (vec![], vec![7])
    );
}

#[test]
fn headers_of_all_versions() {
    let text = "{\"shape\": (2L,), \"fortran_order\": False, \"descr\": \"<i2\"}";
    assert_eq!(read(&npy(text, &[1, 0, 2, 0])).unwrap().1, [1, 2]);
    for version in [2, 3] {
        let text = header("|u1", false, "(2,)");
        let mut bytes = vec![0x93, b'N', b'U', b'M', b'P', b'Y', version, 0];
        bytes.extend(u32::try_from(text.len()).unwrap().to_le_bytes());
        bytes.extend(text.as_bytes());
        bytes.extend([5, 6]);
        assert_eq!(read(&bytes).unwrap().1, [5, 6]);
    }
    refused(
        b"\x93NUMPY\x04\x00\0\0",
        "its version is 4, expected 1 to 3",
    );
    refused(
        &npy(
            "{'descr': [('id', '<i4')], 'fortran_order': False, 'shape': (1,)}",
            &[0; 4],
        ),
        "named fields",
    );
    refused(
        &npy("{'descr': '<i4', 'shape': (1,)}", &[0; 4]),
        "a fortran_order",
    );
    refused(
        &npy(
            "{'descr': '<i4', 'fortran_order': 1, 'shape': (1,)}",
            &[0; 4],
        ),
        "its header is",
    );
}

#[test]
fn other_values_are_refused() {
    for (descr, holds) in [
        ("<f8", "floating-point numbers"),
        ("|b1", "truth values"),
        ("<c16", "complex numbers"),
        ("|O", "Python objects"),
        ("<U4", "texts"),
        ("<M8[ns]", "dates or times"),
        ("<i3", "values of another type"),
    ] {
        refused(&npy(&header(descr, false, "(1,)"), &[0; 64]), holds);
    }
}

/// No memory is asked for on a header's word.
#[test]
fn claims_are_not_believed() {
    refused(
        &npy(&header("<i8", false, "(536870912,)"), &[0; 2]),
        "it ends after 0 of the 536870912 values",
    );
    refused(
        &npy(&header("<i8", false, "(9223372036854775807, 9)"), &[]),
        "beyond any memory",
    );
    refused(
        &npy(&header("<i8", false, "(2305843009213693952,)"), &[]),
        "beyond any memory",
    );
    refused(
        &npy(&header("<i2", false, "(3,)"), &[1, 0, 2, 0, 3]),
        "it ends after 2 of the 3 values",
    );
    refused(
        &npy(&header("<i2", false, "(1,)"), &[1, 0, 2]),
        "bytes follow the 1 values",
    );
    let mut header_of_4_gb = b"\x93NUMPY\x02\x00\xff\xff\xff\xff".to_vec();
    header_of_4_gb.extend(b"{'descr'");
    refused(&header_of_4_gb, "it ends within its header");
    refused(b"\x93NUM", "it ends within its header");
}
