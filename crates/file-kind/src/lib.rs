//! What a file really is, told from its first bytes.
//!
//! Downloads and checkouts leave files that are not what their names say: a Git LFS pointer instead of the data, an error page instead of
//! the weights, a compressed file without the ending. A reader asks [`FileKind`] before it fails with an error of its own format.
//!
//! ```
//! use file_kind::FileKind;
//!
//! let kind = FileKind::of(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n");
//! assert_eq!(kind, Some(FileKind::LfsPointer));
//! assert_eq!(
//!     format!("`model.safetensors` is {}", FileKind::LfsPointer),
//!     "`model.safetensors` is a Git LFS pointer, not the data: run `git lfs pull` in its folder, or download the file itself"
//! );
//! assert_eq!(FileKind::of(b"word,context\n"), None);
//! ```

use std::{fmt, fs::File, io, io::Read, path::Path};

/// Bytes that [`FileKind::of`] looks at; more do no harm.
pub const HEAD_BYTES: usize = 512;

/// A kind of file that is known by its first bytes.
///
/// Displayed, it completes "this file is ..." with what to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FileKind {
    /// The small text file that Git LFS keeps in place of a large one.
    LfsPointer,
    /// A web page.
    Html,
    /// An XML document, as storage services answer with errors.
    Xml,
    /// Text in UTF-16, with a byte order mark or known by its zero bytes.
    Utf16,
    /// Text in UTF-32.
    Utf32,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
    /// bzip2.
    Bzip2,
    /// xz.
    Xz,
    /// LZ4.
    Lz4,
    /// A zip archive: also `.npz`, and the `.bin` and `.pt` files of PyTorch.
    Zip,
    /// 7-Zip.
    SevenZip,
    /// A tar archive.
    Tar,
    /// PDF.
    Pdf,
    /// Parquet.
    Parquet,
    /// An Arrow file, which is Feather V2.
    Arrow,
    /// Feather V1, which was never stable.
    FeatherV1,
    /// A NumPy array.
    Npy,
    /// HDF5.
    Hdf5,
    /// SQLite.
    Sqlite,
    /// A GGUF model.
    Gguf,
    /// A Python pickle, also the older `.bin` and `.pt` files of PyTorch.
    Pickle,
    /// safetensors.
    Safetensors,
}

impl FileKind {
    /// The kind that the first bytes of a file tell; `None` for anything else, plain text included. The caller knows which kind it wants:
    /// weights are [`Safetensors`](Self::Safetensors), [`Zip`](Self::Zip) or [`Pickle`](Self::Pickle).
    pub fn of(head: &[u8]) -> Option<Self> {
        const MAGIC: &[(&[u8], FileKind)] = &[
            (b"\xff\xfe\0\0", FileKind::Utf32),
            (b"\0\0\xfe\xff", FileKind::Utf32),
            (b"\xff\xfe", FileKind::Utf16),
            (b"\xfe\xff", FileKind::Utf16),
            (b"\x1f\x8b", FileKind::Gzip),
            (b"\x28\xb5\x2f\xfd", FileKind::Zstd),
            (b"BZh", FileKind::Bzip2),
            (b"\xfd7zXZ\0", FileKind::Xz),
            (b"\x04\x22\x4d\x18", FileKind::Lz4),
            (b"PK\x03\x04", FileKind::Zip),
            (b"PK\x05\x06", FileKind::Zip),
            (b"7z\xbc\xaf\x27\x1c", FileKind::SevenZip),
            (b"%PDF-", FileKind::Pdf),
            (b"PAR1", FileKind::Parquet),
            (b"ARROW1", FileKind::Arrow),
            (b"FEA1", FileKind::FeatherV1),
            (b"\x93NUMPY", FileKind::Npy),
            (b"\x89HDF\r\n\x1a\n", FileKind::Hdf5),
            (b"SQLite format 3\0", FileKind::Sqlite),
            (b"GGUF", FileKind::Gguf),
        ];
        // Its length field, 8 bytes before the header, may look like any magic number.
        if let [_, _, _, _, 0, 0, 0, 0, b'{', ..] = head {
            return Some(Self::Safetensors);
        }
        let by_magic = MAGIC.iter().find(|(magic, _)| head.starts_with(magic));
        if let Some((_, kind)) = by_magic {
            // `BZh` and `GGUF` are also how a text may begin.
            let text = matches!(kind, Self::Bzip2)
                && head.get(3).is_none_or(|b| !b.is_ascii_digit())
                || matches!(kind, Self::Gguf) && head.get(5..8).is_none_or(|b| b != [0; 3]);
            return (!text).then_some(*kind);
        }
        // Zstandard lets skippable frames stand before the first of data.
        if let [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] = head {
            return Some(Self::Zstd);
        }
        // Pickle protocols 2 to 5; no text in UTF-8 begins with such a byte.
        if let [0x80, 2..=5, ..] = head {
            return Some(Self::Pickle);
        }
        if head.get(257..262).is_some_and(|magic| magic == b"ustar") {
            return Some(Self::Tar);
        }
        if let Some(kind) = wide(head) {
            return Some(kind);
        }
        let text = head
            .strip_prefix(b"\xef\xbb\xbf")
            .unwrap_or(head)
            .trim_ascii_start();
        let begins = |with: &[u8]| {
            text.get(..with.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(with))
        };
        if begins(b"version https://git-lfs.github.com/spec/")
            || begins(b"version https://hawser.github.com/spec/")
        {
            Some(Self::LfsPointer)
        } else if begins(b"<!doctype html") || begins(b"<html") {
            Some(Self::Html)
        } else if begins(b"<?xml") {
            Some(Self::Xml)
        } else {
            None
        }
    }

    /// The kind of a file on disk.
    ///
    /// # Errors
    /// If it cannot be opened or read.
    pub fn of_file(path: impl AsRef<Path>) -> io::Result<Option<Self>> {
        let mut head = Vec::with_capacity(HEAD_BYTES);
        File::open(path)?
            .take(HEAD_BYTES as u64)
            .read_to_end(&mut head)?;
        Ok(Self::of(&head))
    }
}

/// UTF-16 and UTF-32 without a byte order mark: every other byte of plain text is zero, or three of four.
fn wide(head: &[u8]) -> Option<FileKind> {
    let units = head.get(..8)?;
    let zero: Vec<bool> = units.iter().map(|&byte| byte == 0).collect();
    let text = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
    if !units.iter().all(|byte| *byte == 0 || text(byte)) {
        return None;
    }
    match zero[..] {
        [true, true, true, false, true, true, true, false]
        | [false, true, true, true, false, true, true, true] => Some(FileKind::Utf32),
        [true, false, true, false, true, false, true, false]
        | [false, true, false, true, false, true, false, true] => Some(FileKind::Utf16),
        _ => None,
    }
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LfsPointer => {
                "a Git LFS pointer, not the data: run `git lfs pull` in its folder, or download the file itself"
            }
            Self::Html => "a web page (HTML), not the data: the download failed or asked for a login, get the file itself",
            Self::Xml => "an XML document, not the data: often the error message of a download, get the file itself",
            Self::Utf16 => "text in UTF-16: save it as UTF-8, for example with `iconv -f UTF-16 -t UTF-8`",
            Self::Utf32 => "text in UTF-32: save it as UTF-8, for example with `iconv -f UTF-32 -t UTF-8`",
            Self::Gzip => "compressed with gzip: its name should end in `.gz` after the ending of what is in it, or decompress it",
            Self::Zstd => "compressed with Zstandard: its name should end in `.zst` after the ending of what is in it, or decompress it",
            Self::Bzip2 => "compressed with bzip2: decompress it, or compress it with gzip or Zstandard",
            Self::Xz => "compressed with xz: decompress it, or compress it with gzip or Zstandard",
            Self::Lz4 => "compressed with LZ4: decompress it, or compress it with gzip or Zstandard",
            Self::Zip => "a zip archive (as `.npz` files and PyTorch's are): extract what is in it",
            Self::SevenZip => "a 7-Zip archive: extract what is in it",
            Self::Tar => "a tar archive: extract what is in it",
            Self::Pdf => "a PDF document: extract its text",
            Self::Parquet => "a Parquet table: its name should end in `.parquet`",
            Self::Arrow => "an Arrow or Feather table: its name should end in `.feather` or `.arrow`",
            Self::FeatherV1 => "a Feather V1 file, which was never stable: write it again as Feather V2 or Parquet",
            Self::Npy => "a NumPy array: its name should end in `.npy`",
            Self::Hdf5 => "an HDF5 file: export its data, for example to Parquet",
            Self::Sqlite => "an SQLite database: export its data, for example to CSV",
            Self::Gguf => "a GGUF model: get the model's safetensors or PyTorch files",
            Self::Safetensors => "a safetensors file, which holds the weights of a model",
            Self::Pickle => "a Python pickle: write its data in another format, for example Parquet or `.npy`",
        })
    }
}
