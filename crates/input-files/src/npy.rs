//! Arrays of integers that NumPy has saved.

use std::{io::Read, path::Path};

use crate::{Format, Input, InputError};

/// An array of integers, in row-major (C) order whatever the order in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntegerArray<T> {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values; as many as the product of the shape.
    pub values: Vec<T>,
}

/// Reads a `.npy` file of integers: 8 to 64 bits, signed or not, in either byte order, in C or Fortran order.
///
/// # Errors
/// - those of [`Input::open`]
/// - [`InputError::Invalid`] for another type of values, a value that does not fit `T`, and a file that is shorter or longer than its header
///   says; memory grows with the bytes that are there, not with what the header claims
pub fn read_npy<T: TryFrom<i128>>(path: impl AsRef<Path>) -> Result<IntegerArray<T>, InputError> {
    let path = path.as_ref();
    IntegerArray::read(path, Input::open(path, &[Format::Npy])?.stream)
}

impl<T: TryFrom<i128>> IntegerArray<T> {
    /// Reads an array out of the bytes of a `.npy` file; `path` names it in errors.
    ///
    /// # Errors
    /// As [`read_npy`].
    pub fn read(path: &Path, mut stream: impl Read) -> Result<Self, InputError> {
        let invalid = |what: String| InputError::invalid(path, "NumPy", what);
        let header = Header::read(path, &mut stream)?;
        let integer = header.integer().map_err(invalid)?;
        let count = header
            .shape
            .iter()
            .try_fold(1usize, |count, &side| count.checked_mul(side))
            .filter(|count| count.checked_mul(integer.bytes).is_some())
            .ok_or_else(|| invalid(format!("its shape {:?} is beyond any memory", header.shape)))?;
        let mut values: Vec<T> = Vec::new();
        let mut buffer = vec![0; (1 << 13) * integer.bytes];
        while values.len() < count {
            let wanted = buffer.len().min((count - values.len()) * integer.bytes);
            let got = fill(&mut stream, &mut buffer[..wanted]).map_err(InputError::read(path))?;
            for bytes in buffer[..got].chunks_exact(integer.bytes) {
                let value = integer.value(bytes);
                values.push(T::try_from(value).map_err(|_| {
                    invalid(format!(
                        "value {} is {value}, out of the range expected",
                        values.len()
                    ))
                })?);
            }
            if got < wanted {
                return Err(invalid(format!(
                    "it ends after {} of the {count} values of its shape {:?}: the file is cut off, or its header is wrong",
                    values.len(),
                    header.shape
                )));
            }
        }
        if fill(&mut stream, &mut [0]).map_err(InputError::read(path))? > 0 {
            return Err(invalid(format!(
                "bytes follow the {count} values of its shape {:?}: the header is wrong, or several arrays were saved to one file",
                header.shape
            )));
        }
        if header.fortran {
            values = row_major(values, &header.shape);
        }
        Ok(Self {
            shape: header.shape,
            values,
        })
    }
}

/// Reads until the buffer is full or the stream ends; gives the bytes read.
fn fill(stream: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match stream.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(err) if err.kind() == std::io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
    Ok(got)
}

/// Values whose first index runs fastest, put into the order in which the last does.
fn row_major<T>(values: Vec<T>, shape: &[usize]) -> Vec<T> {
    let mut slots: Vec<Option<T>> = values.into_iter().map(Some).collect();
    let mut index = vec![0; shape.len()];
    (0..slots.len())
        .filter_map(|_| {
            let at = index
                .iter()
                .zip(shape)
                .rev()
                .fold(0, |at, (i, side)| at * side + i);
            for axis in (0..shape.len()).rev() {
                index[axis] += 1;
                if index[axis] < shape[axis] {
                    break;
                }
                index[axis] = 0;
            }
            slots[at].take()
        })
        .collect()
}

/// What stands before the values.
#[derive(Debug)]
struct Header {
    descr: String,
    fortran: bool,
    shape: Vec<usize>,
}

/// An integer as it is stored.
struct Integer {
    bytes: usize,
    signed: bool,
    big_endian: bool,
}

impl Integer {
    fn value(&self, bytes: &[u8]) -> i128 {
        let mut value: i128 = 0;
        for i in 0..self.bytes {
            let at = if self.big_endian {
                i
            } else {
                self.bytes - 1 - i
            };
            value = value << 8 | i128::from(bytes[at]);
        }
        let unused = 128 - 8 * self.bytes;
        if self.signed {
            value << unused >> unused
        } else {
            value
        }
    }
}

impl Header {
    fn read(path: &Path, stream: &mut impl Read) -> Result<Self, InputError> {
        let invalid = |what: &str| InputError::invalid(path, "NumPy", what);
        let cut = "it ends within its header";
        let mut bytes = |n: usize| {
            let mut part = Vec::new();
            stream
                .by_ref()
                .take(n as u64)
                .read_to_end(&mut part)
                .map_err(InputError::read(path))?;
            if part.len() < n {
                return Err(invalid(cut));
            }
            Ok(part)
        };
        let start = bytes(8)?;
        if !start.starts_with(b"\x93NUMPY") {
            return Err(invalid("it does not begin as NumPy's files do"));
        }
        let length = match start[6] {
            1 => bytes(2)?,
            2 | 3 => bytes(4)?,
            version => {
                return Err(invalid(&format!(
                    "its version is {version}, expected 1 to 3"
                )));
            }
        };
        let length = length
            .iter()
            .rev()
            .fold(0usize, |n, &byte| n << 8 | usize::from(byte));
        let text =
            String::from_utf8(bytes(length)?).map_err(|_| invalid("its header is not text"))?;
        Self::parse(&text).ok_or_else(|| {
            invalid(&format!(
                "its header is `{}`, expected a descr, a fortran_order and a shape; tables with named fields are not read",
                text.trim().chars().take(200).collect::<String>()
            ))
        })
    }

    /// Reads `{'descr': '<i8', 'fortran_order': False, 'shape': (3, 4), }`, its keys in any order.
    fn parse(text: &str) -> Option<Self> {
        let mut rest = text.trim().strip_prefix('{')?.strip_suffix('}')?.trim();
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        while !rest.is_empty() {
            let (key, after) = quoted(rest)?;
            rest = after.trim_start().strip_prefix(':')?.trim_start();
            match key {
                "descr" if descr.is_none() => {
                    let (value, after) = quoted(rest)?;
                    (descr, rest) = (Some(value.to_owned()), after);
                }
                "fortran_order" if fortran.is_none() => {
                    let (value, after) = match rest.strip_prefix("True") {
                        Some(after) => (true, after),
                        None => (false, rest.strip_prefix("False")?),
                    };
                    (fortran, rest) = (Some(value), after);
                }
                "shape" if shape.is_none() => {
                    let (inside, after) = rest.strip_prefix('(')?.split_once(')')?;
                    let sides = inside
                        .trim()
                        .trim_end_matches(',')
                        .split(',')
                        .map(str::trim);
                    // Python 2 wrote `3L`.
                    let sides: Option<Vec<usize>> = if inside.trim().is_empty() {
                        Some(Vec::new())
                    } else {
                        sides
                            .map(|side| side.trim_end_matches('L').parse().ok())
                            .collect()
                    };
                    (shape, rest) = (Some(sides?), after);
                }
                _ => return None,
            }
            rest = rest.trim_start();
            rest = match rest.strip_prefix(',') {
                Some(after) => after.trim_start(),
                None if rest.is_empty() => rest,
                None => return None,
            };
        }
        Some(Self {
            descr: descr?,
            fortran: fortran?,
            shape: shape?,
        })
    }

    /// The integers that `descr` stands for.
    fn integer(&self) -> Result<Integer, String> {
        let descr = self.descr.as_str();
        let (order, kind) = match descr.strip_prefix(['<', '>', '|', '=']) {
            Some(kind) => (&descr[..1], kind),
            None => ("=", descr),
        };
        let big_endian = order == ">" || (order == "=" && cfg!(target_endian = "big"));
        let integer = |bytes, signed| {
            Ok(Integer {
                bytes,
                signed,
                big_endian,
            })
        };
        match kind {
            "i1" => integer(1, true),
            "i2" => integer(2, true),
            "i4" => integer(4, true),
            "i8" => integer(8, true),
            "u1" => integer(1, false),
            "u2" => integer(2, false),
            "u4" => integer(4, false),
            "u8" => integer(8, false),
            _ => {
                let holds = match kind.chars().next() {
                    Some('f') => "floating-point numbers",
                    Some('b' | '?') => "truth values",
                    Some('c') => "complex numbers",
                    Some('O') => "Python objects",
                    Some('S' | 'U' | 'a') => "texts",
                    Some('M' | 'm') => "dates or times",
                    _ => "values of another type",
                };
                Err(format!(
                    "it holds {holds} (dtype `{descr}`), expected integers: save it after `array.astype(numpy.int64)`, if that is what they are"
                ))
            }
        }
    }
}

/// A text in quotes at the start of `text`, and what follows.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    text[1..].split_once(quote)
}
