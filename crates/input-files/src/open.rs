//! Opening a file: decompressed, without its byte order mark, and checked to be what its name says.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Cursor, Read},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use file_kind::{FileKind, HEAD_BYTES};

use crate::{Compression, Format, InputError};

/// Bytes read so far of files as they are stored; another thread may watch it.
pub type Progress = Arc<AtomicU64>;

const BUFFER: usize = 1 << 16;

/// The bytes of a file, decompressed.
pub struct Input {
    pub(crate) path: Arc<PathBuf>,
    pub(crate) format: Format,
    /// The first bytes, which `stream` gives again.
    pub(crate) head: Vec<u8>,
    pub(crate) stream: Box<dyn BufRead + Send>,
}

impl Input {
    /// Opens a file whose name ends in one of the formats.
    ///
    /// Several gzip members or Zstandard frames one after another are read to the last, and so are frames of `zstd --long`.
    ///
    /// # Errors
    /// - [`InputError::UnknownFormat`] for another name
    /// - [`InputError::NotFound`] or [`InputError::Read`] if it cannot be opened
    /// - [`InputError::Kind`] or [`InputError::Invalid`] if it is something else than its name says
    /// - [`InputError::Empty`] if nothing is in it
    pub fn open(path: impl AsRef<Path>, formats: &[Format]) -> Result<Self, InputError> {
        Self::watched(
            Arc::new(path.as_ref().into()),
            formats,
            &Progress::default(),
        )
    }

    pub(crate) fn watched(
        path: Arc<PathBuf>,
        formats: &[Format],
        progress: &Progress,
    ) -> Result<Self, InputError> {
        let known = Format::of(path.as_path()).filter(|(format, _)| formats.contains(format));
        let Some((format, compression)) = known else {
            return Err(InputError::unknown_format(&path, formats));
        };
        Self::stored(path, format, compression, progress)
    }

    /// Opens a file that is not compressed, of a format that its name does not tell.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_as(path: impl AsRef<Path>, format: Format) -> Result<Self, InputError> {
        let path = Arc::new(path.as_ref().into());
        Self::stored(path, format, Compression::None, &Progress::default())
    }

    fn stored(
        path: Arc<PathBuf>,
        format: Format,
        compression: Compression,
        progress: &Progress,
    ) -> Result<Self, InputError> {
        let file = File::open(path.as_path()).map_err(InputError::read(&path))?;
        let stored = file.metadata().map_or(0, |meta| meta.len());
        let counted = Counted {
            file,
            bytes: progress.clone(),
        };
        let raw = BufReader::with_capacity(BUFFER, counted);
        Self::decompressed(path, format, compression, stored, raw)
    }

    fn decompressed(
        path: Arc<PathBuf>,
        format: Format,
        compression: Compression,
        stored: u64,
        mut raw: impl BufRead + Send + 'static,
    ) -> Result<Self, InputError> {
        let read = InputError::read(&path);
        let head = head_of(&mut raw).map_err(&read)?;
        let kind = FileKind::of(&head);
        let (own, name) = match compression {
            Compression::None => return Self::checked(path, format, head, raw),
            Compression::Gzip => (FileKind::Gzip, "gzip"),
            Compression::Zstd => (FileKind::Zstd, "Zstandard"),
        };
        match kind {
            _ if head.is_empty() => {
                return Err(InputError::Empty {
                    path: path.to_path_buf(),
                });
            }
            Some(kind) if kind == own => {}
            Some(kind) => {
                return Err(InputError::Kind {
                    path: path.to_path_buf(),
                    kind,
                });
            }
            None => {
                let what = "its bytes are not compressed: rename it without that ending";
                return Err(InputError::invalid(&path, name, what));
            }
        }
        let raw = Cursor::new(head).chain(raw);
        let decoder: Box<dyn Read + Send> = if compression == Compression::Gzip {
            Box::new(flate2::bufread::MultiGzDecoder::new(raw))
        } else {
            let mut decoder = zstd::Decoder::with_buffer(raw).map_err(&read)?;
            decoder.window_log_max(window_log(stored)).map_err(&read)?;
            Box::new(LongFrames(decoder))
        };
        let mut inner = BufReader::with_capacity(BUFFER, decoder);
        let head = head_of(&mut inner).map_err(&read)?;
        Self::checked(path, format, head, inner)
    }

    /// Looks at the first bytes of what is in the file; `rest` are those that follow.
    fn checked(
        path: Arc<PathBuf>,
        format: Format,
        mut head: Vec<u8>,
        rest: impl BufRead + Send + 'static,
    ) -> Result<Self, InputError> {
        let own = match format {
            Format::Parquet => Some(FileKind::Parquet),
            Format::Arrow => Some(FileKind::Arrow),
            Format::Npy => Some(FileKind::Npy),
            _ => None,
        };
        if let Some(kind) = FileKind::of(&head).filter(|kind| Some(*kind) != own) {
            return Err(InputError::Kind {
                path: path.to_path_buf(),
                kind,
            });
        }
        if head.starts_with(BYTE_ORDER_MARK) {
            head.drain(..BYTE_ORDER_MARK.len());
        }
        if head.is_empty() {
            return Err(InputError::Empty {
                path: path.to_path_buf(),
            });
        }
        let stream = Box::new(Cursor::new(head.clone()).chain(rest));
        Ok(Self {
            path,
            format,
            head,
            stream,
        })
    }

    /// All of it.
    ///
    /// # Errors
    /// [`InputError::Read`].
    pub fn into_bytes(mut self) -> Result<Vec<u8>, InputError> {
        let mut bytes = Vec::new();
        self.stream
            .read_to_end(&mut bytes)
            .map_err(InputError::read(&self.path))?;
        Ok(bytes)
    }

    /// All of it as text.
    ///
    /// # Errors
    /// [`InputError::Read`], or [`InputError::Invalid`] if it is not UTF-8.
    pub fn into_text(self) -> Result<String, InputError> {
        let path = self.path.clone();
        String::from_utf8(self.into_bytes()?).map_err(|err| {
            let at = err.utf8_error().valid_up_to();
            let line = 1 + memchr::memchr_iter(b'\n', &err.as_bytes()[..at]).count();
            let what = format!("byte {at}, in line {line}, is not UTF-8: save it as UTF-8");
            InputError::invalid(&path, "text", what)
        })
    }
}

/// Reads a whole text file whose name ends in one of the formats.
///
/// # Errors
/// As [`Input::open`] and [`Input::into_text`].
pub fn read_text(path: impl AsRef<Path>, formats: &[Format]) -> Result<String, InputError> {
    Input::open(path, formats)?.into_text()
}

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The first bytes of a stream, as many as tell its kind.
pub(crate) fn head_of(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    stream.take(HEAD_BYTES as u64).read_to_end(&mut head)?;
    Ok(head)
}

/// The largest window, as a power of two, that a Zstandard file of so many bytes may ask memory for.
///
/// `zstd --long=31` writes windows of 2 GiB. A byte of a file holds at most 2^16 bytes of text, so that a small file cannot fill one.
fn window_log(stored: u64) -> u32 {
    if stored < 1 << 15 { 30 } else { 31 }
}

/// Names the cause where a frame asks for more memory than that.
struct LongFrames<R>(R);

impl<R: Read> Read for LongFrames<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf).map_err(|err| {
            if err.to_string().contains("too much memory") {
                let what = "it asks for a larger window than a file of its size can fill: compress it again without `--long`, unless it is damaged";
                return io::Error::new(err.kind(), what);
            }
            err
        })
    }
}

/// A file that counts what is read of it.
pub(crate) struct Counted {
    file: File,
    bytes: Progress,
}

impl Read for Counted {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buf)?;
        self.bytes.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}
