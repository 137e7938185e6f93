//! Lines of a stream as bytes.

use std::{
    collections::VecDeque,
    io::{BufRead, Read},
    path::PathBuf,
    sync::Arc,
};

use crate::{Input, InputError};

/// A longer row is bad: no memory is asked for on a file's word.
pub(crate) const MAX_ROW_BYTES: usize = 1 << 30;

/// The lines of a file. They end in `\n` or `\r\n`, or in `\r` where the first line does.
pub(crate) struct Lines {
    pub(crate) path: Arc<PathBuf>,
    stream: Box<dyn BufRead + Send>,
    end: u8,
    /// Lines that were given back, to be given again.
    returned: VecDeque<Vec<u8>>,
    /// Lines given so far.
    pub(crate) number: usize,
}

/// A line of a file.
pub(crate) enum Line {
    /// Its bytes, the line end included.
    Whole(Vec<u8>),
    TooLong,
}

impl Lines {
    pub(crate) fn new(input: Input) -> Self {
        let head = &input.head;
        // `\r` at the very end of the head may be half of `\r\n`.
        let old_mac = memchr::memchr(b'\n', head).is_none()
            && memchr::memchr(b'\r', head).is_some_and(|at| at + 1 < head.len());
        Self {
            path: input.path,
            stream: input.stream,
            end: if old_mac { b'\r' } else { b'\n' },
            returned: VecDeque::new(),
            number: 0,
        }
    }

    pub(crate) fn next_line(&mut self) -> Result<Option<Line>, InputError> {
        self.number += 1;
        if let Some(line) = self.returned.pop_front() {
            return Ok(Some(Line::Whole(line)));
        }
        let read = |err| InputError::read(&self.path)(err);
        let mut line = Vec::new();
        let n = self
            .stream
            .by_ref()
            .take(MAX_ROW_BYTES as u64)
            .read_until(self.end, &mut line)
            .map_err(read)?;
        if n == 0 {
            self.number -= 1;
            return Ok(None);
        }
        if n == MAX_ROW_BYTES && line.last() != Some(&self.end) {
            self.stream.skip_until(self.end).map_err(read)?;
            return Ok(Some(Line::TooLong));
        }
        Ok(Some(Line::Whole(line)))
    }

    /// Gives lines back, to be read again.
    pub(crate) fn give_back(&mut self, lines: Vec<Vec<u8>>) {
        self.number -= lines.len();
        for line in lines.into_iter().rev() {
            self.returned.push_front(line);
        }
    }
}

/// A line without its end.
pub(crate) fn body(line: &[u8]) -> &[u8] {
    let body = line.strip_suffix(b"\n").unwrap_or(line);
    body.strip_suffix(b"\r").unwrap_or(body)
}

pub(crate) fn too_long() -> String {
    format!("longer than {MAX_ROW_BYTES} bytes")
}
