//! Files known by their first bytes, and text that is not taken for one of them.

use std::fs;

use file_kind::FileKind;

fn utf16(text: &str, mark: bool) -> Vec<u8> {
    let mark = mark.then_some(0xfeffu16);
    let units = mark.into_iter().chain(text.encode_utf16());
    units.flat_map(u16::to_le_bytes).collect()
}

#[test]
fn kinds_are_known_by_their_first_bytes() {
    let utf32: Vec<u8> = "\u{feff}word"
        .chars()
        .flat_map(|c| u32::from(c).to_le_bytes())
        .collect();
    let mut tar = vec![b'a'; 257];
    tar.extend(b"ustar\x0000");
    let cases: &[(&[u8], FileKind)] = &[
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            FileKind::LfsPointer,
        ),
        (b"<!DOCTYPE html>\n<html>", FileKind::Html),
        (b"\xef\xbb\xbf \n<HTML lang=\"en\">", FileKind::Html),
        (b"<?xml version=\"1.0\"?><Error/>", FileKind::Xml),
        (&utf16("word,context", true), FileKind::Utf16),
        (&utf16("word,context", false), FileKind::Utf16),
        (&utf32, FileKind::Utf32),
        (b"\x1f\x8b\x08\0", FileKind::Gzip),
        (b"\x28\xb5\x2f\xfd\0", FileKind::Zstd),
        (b"\x50\x2a\x4d\x18\0\0\0\0", FileKind::Zstd),
        (b"BZh91AY&SY", FileKind::Bzip2),
        (b"PK\x03\x04\x14\0", FileKind::Zip),
        (&tar, FileKind::Tar),
        (b"PAR1\x15\x04", FileKind::Parquet),
        (b"ARROW1\0\0", FileKind::Arrow),
        (b"\x93NUMPY\x01\0", FileKind::Npy),
        (b"GGUF\x03\0\0\0", FileKind::Gguf),
        (b"\x80\x04\x95", FileKind::Pickle),
        (b"\x80\x04\x95\0\0\0\0\0{\"a\":", FileKind::Safetensors),
    ];
    for (head, kind) in cases {
        assert_eq!(FileKind::of(head), Some(*kind), "{head:?}");
    }
}

#[test]
fn text_is_no_kind() {
    for text in [
        "",
        "a",
        "BZh is a prefix",
        "GGUF models are many",
        "version 2 of the text",
        "<p>not a page</p>",
        "{\"text\": \"<html>\"}",
        "word,context\n",
        "naïve",
        "Письмо",
    ] {
        assert_eq!(FileKind::of(text.as_bytes()), None, "{text}");
    }
    assert_eq!(FileKind::of(&[0; 16]), None);
}

#[test]
fn files_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fs::write(&path, "version https://git-lfs.github.com/spec/v1\n").unwrap();
    let kind = FileKind::of_file(&path).unwrap().unwrap();
    assert!(kind.to_string().contains("git lfs pull"));
    assert!(FileKind::of_file(folder.path().join("none")).is_err());
}
