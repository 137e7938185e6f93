//! One opener: endings, compression, byte order marks, and files that are something else.
#![expect(clippy::unwrap_used, reason = "test helpers fail the test")]

use std::{fs, io::Write, path::Path};

use input_files::{Format, InputError, TableReader, find, read_text};

const TEXT: &[Format] = &[Format::Csv, Format::Text, Format::JsonLines, Format::Json];

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// As `zstd --long=28` writes a stream: a window of 256 MiB.
fn zstd_long(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_contentsize(false).unwrap();
    encoder.window_log(28).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn read(name: &str, bytes: &[u8]) -> Result<String, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    read_text(&path, TEXT).map_err(|err| {
        let cause = std::error::Error::source(&err).map(|cause| format!(": {cause}"));
        let text = format!("{err}{}", cause.unwrap_or_default());
        text.replace(&format!("{}/", folder.path().display()), "")
    })
}

#[test]
fn compressed_files_are_read_to_their_last_part() {
    let zstd = |text: &[u8]| zstd::encode_all(text, 1).unwrap();
    let skippable = [b"\x50\x2a\x4d\x18\x04\0\0\0note".to_vec(), zstd(b"one two")].concat();
    for (name, bytes) in [
        ("A.TXT", b"one two".to_vec()),
        ("a.txt", b"\xef\xbb\xbfone two".to_vec()),
        ("a.Txt.GZ", [gzip(b"one "), gzip(b"two")].concat()),
        ("a.txt.gz", gzip(b"\xef\xbb\xbfone two")),
        ("a.txt.zst", [zstd(b"one "), zstd(b"two")].concat()),
        ("a.txt.zst", skippable),
        ("a.txt.zst", zstd_long(b"one two")),
    ] {
        assert_eq!(read(name, &bytes).as_deref(), Ok("one two"), "{name}");
    }
}

#[test]
fn a_file_that_is_something_else_says_what_to_do() {
    let utf16: Vec<u8> = "one two"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    for (name, bytes, expected) in [
        (
            "a.csv",
            &b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"[..],
            "`a.csv` is a Git LFS pointer, not the data: run `git lfs pull`",
        ),
        (
            "a.csv.gz",
            b"version https://git-lfs.github.com/spec/v1\n",
            "`a.csv.gz` is a Git LFS pointer",
        ),
        ("a.txt", b"<!DOCTYPE html><html>", "`a.txt` is a web page"),
        (
            "a.csv",
            &gzip(b"word\n"),
            "compressed with gzip: its name should end in `.gz`",
        ),
        ("a.csv.zst", &gzip(b"word\n"), "compressed with gzip"),
        ("a.csv.gz", &gzip(&gzip(b"word\n")), "compressed with gzip"),
        (
            "a.csv.gz",
            b"word\n",
            "`a.csv.gz` is not valid gzip: its bytes are not compressed",
        ),
        ("a.txt", &utf16, "UTF-16"),
        ("a.txt", b"\xff\xfe\0\0", "UTF-32"),
        ("a.csv", b"PAR1....", "a Parquet table"),
        ("a.txt", b"", "`a.txt` is empty"),
        ("a.txt", b"\xef\xbb\xbf", "`a.txt` is empty"),
        ("a.txt.gz", &gzip(b""), "`a.txt.gz` is empty"),
        ("a.txt", b"one\ntw\xf6\n", "byte 6, in line 2, is not UTF-8"),
        ("a.docx", b"PK\x03\x04", "a zip archive"),
        (
            "a.docx",
            b"?",
            "has an unknown format: expected .csv, .txt, .jsonl, .ndjson or .json",
        ),
        (
            "a.txt.zst",
            b"\x28\xb5\x2f\xfd\x00\xa8\0\0\0",
            "a larger window than a file of its size can fill",
        ),
    ] {
        let err = read(name, bytes).unwrap_err();
        assert!(err.contains(expected), "{name}: {err}");
    }
    assert!(matches!(
        read_text("none.txt", TEXT),
        Err(InputError::NotFound { .. })
    ));
}

#[test]
fn hidden_files_and_folders_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for name in [
        "a.txt",
        "b/C.CSV",
        "b/notes.md",
        ".hidden.txt",
        ".ipynb_checkpoints/a-checkpoint.txt",
        "b/.git/d.txt",
        "__MACOSX/._a.txt",
    ] {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }
    let names = |paths: &[std::path::PathBuf]| -> Vec<String> {
        let inside = |path: &Path| path.strip_prefix(root).unwrap().display().to_string();
        paths.iter().map(|path| inside(path)).collect()
    };
    let found = find(root, TEXT).unwrap();
    assert_eq!(names(&found.files), ["a.txt", "b/C.CSV"]);
    assert_eq!(names(&found.ignored), ["b/notes.md"]);
    assert_eq!(
        names(&found.hidden),
        [".hidden.txt", ".ipynb_checkpoints", "__MACOSX", "b/.git"]
    );
    let found = find(root.join("**/*.txt"), TEXT).unwrap();
    assert_eq!(names(&found.files), ["a.txt"]);
    assert_eq!(found.hidden.len(), 4);
    // What the path itself names is read.
    let found = find(root.join(".ipynb_checkpoints"), TEXT).unwrap();
    assert_eq!(found.files.len(), 1);
    let err = find(root.join("b/.git/.."), &[Format::Npy])
        .unwrap_err()
        .to_string();
    assert!(
        err.ends_with("but 2 of other formats, and 1 hidden files or folders, which are not read"),
        "{err}"
    );
}

#[test]
fn a_table_is_opened_by_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes, expected) in [
        (
            "a.parquet",
            &b"word\nwhale\n"[..],
            "is not valid Parquet: it does not begin as such a file does",
        ),
        ("a.feather", b"word\n", "is not valid Arrow"),
        (
            "a.parquet",
            b"version https://git-lfs.github.com/spec/v1\n",
            "Git LFS pointer",
        ),
        ("a.parquet", b"", "is empty"),
        ("a.npz", b"PK\x03\x04", "a zip archive"),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let err = TableReader::open(&path).unwrap_err().to_string();
        assert!(err.contains(expected), "{name}: {err}");
    }
}
