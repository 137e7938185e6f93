//! CSV and TSV with a header row.
//!
//! In a CSV a field that begins with `"`, white space before it aside, ends at the next `"` that is not doubled, and only a delimiter or the
//! end of the line may follow: anything else, and a quote that never closes, makes one bad row of the line in which the quote opens.
//! In a TSV quotes are ordinary characters of a text, unless they enclose a whole field, as pandas writes it: doubled inside, followed by
//! a tab or the end of the line, and with no tab inside if the field goes over several lines.

use std::ops::Range;

use memchr::memchr;

use crate::{
    InputError,
    error::place,
    lines::{Line, Lines, MAX_ROW_BYTES, body, too_long},
};

/// The rows of a CSV or TSV file.
pub(crate) struct Delimited {
    lines: Lines,
    tabs: bool,
    header: Vec<String>,
    record: Record,
}

/// The fields of a row.
#[derive(Default)]
pub(crate) struct Record {
    /// Its lines, ends included; what closing quotes left behind them is not used.
    bytes: Vec<u8>,
    fields: Vec<Range<usize>>,
}

impl Record {
    /// The bytes of a field.
    pub(crate) fn field(&self, index: usize) -> &[u8] {
        &self.bytes[self.fields[index].clone()]
    }
}

/// How the field of an opening quote goes on.
enum Quoted {
    /// It ends with its closing quote; the next field, if there is one, starts here.
    Closed { text: Range<usize>, next: usize },
    /// A quote closes it, and text follows.
    Junk,
    /// No quote closes it.
    Open(&'static str),
}

impl Delimited {
    pub(crate) fn new(lines: Lines, tabs: bool) -> Result<Self, InputError> {
        let mut rows = Self {
            lines,
            tabs,
            header: Vec::new(),
            record: Record::default(),
        };
        let path = rows.lines.path.clone();
        match rows.read_record()? {
            None => {
                return Err(InputError::Empty {
                    path: path.to_path_buf(),
                });
            }
            Some(Err(reason)) => {
                return Err(InputError::invalid(
                    &path,
                    rows.format(),
                    format!("its header: {reason}"),
                ));
            }
            Some(Ok(())) => {}
        }
        rows.header = (0..rows.record.fields.len())
            .map(|field| {
                String::from_utf8_lossy(rows.record.field(field))
                    .trim()
                    .to_owned()
            })
            .collect();
        Ok(rows)
    }

    /// Names of the columns.
    #[cfg(feature = "parquet")]
    pub(crate) fn header(&self) -> &[String] {
        &self.header
    }

    /// Place of a column.
    pub(crate) fn column(&self, name: &str) -> Result<usize, InputError> {
        place(&self.lines.path, &self.header, name)
    }

    /// The next row, or what is wrong with it; `None` at the end. Blank lines are no rows.
    pub(crate) fn next_row(&mut self) -> Result<Option<Result<&Record, String>>, InputError> {
        let Some(row) = self.read_record()? else {
            return Ok(None);
        };
        let (found, expected) = (self.record.fields.len(), self.header.len());
        Ok(Some(row.and_then(|()| {
            if found == expected {
                Ok(&self.record)
            } else {
                Err(format!("{found} fields, but the header has {expected}"))
            }
        })))
    }

    fn format(&self) -> &'static str {
        if self.tabs { "TSV" } else { "CSV" }
    }

    fn delimiter(&self) -> u8 {
        if self.tabs { b'\t' } else { b',' }
    }

    fn read_record(&mut self) -> Result<Option<Result<(), String>>, InputError> {
        let delimiter = self.delimiter();
        loop {
            self.record.bytes = match self.lines.next_line()? {
                None => return Ok(None),
                Some(Line::TooLong) => return Ok(Some(Err(too_long()))),
                Some(Line::Whole(line)) => line,
            };
            let line = body(&self.record.bytes);
            if !line.trim_ascii().is_empty() || memchr(delimiter, line).is_some() {
                break;
            }
        }
        self.record.fields.clear();
        // Lines after the first, from where each starts.
        let mut starts: Vec<usize> = Vec::new();
        let mut at = 0;
        loop {
            if let Some(quote) = self.opening_quote(at) {
                let (line, known) = (self.lines.number, starts.len());
                match self.quoted(quote, &mut starts)? {
                    Quoted::Closed { text, next } => {
                        self.record.fields.push(text);
                        if next > body(&self.record.bytes).len() {
                            return Ok(Some(Ok(())));
                        }
                        at = next;
                        continue;
                    }
                    // The lines that were read for it may be rows of their own.
                    Quoted::Junk | Quoted::Open(_) if self.tabs => self.unread(&mut starts, known),
                    Quoted::Junk => {
                        self.unread(&mut starts, known);
                        return Ok(Some(Err(format!(
                            "text after the closing quote of a field whose quote opens in line {line}: a `\"` inside a quoted field is doubled"
                        ))));
                    }
                    Quoted::Open(why) => {
                        self.unread(&mut starts, known);
                        return Ok(Some(Err(format!(
                            "the quote that opens in line {line} {why}: close it, or double the `\"`"
                        ))));
                    }
                }
            }
            let end = body(&self.record.bytes).len();
            let found = memchr(delimiter, &self.record.bytes[at..end]);
            let to = found.map_or(end, |offset| at + offset);
            self.record.fields.push(at..to);
            if found.is_none() {
                return Ok(Some(Ok(())));
            }
            at = to + 1;
        }
    }

    /// Where the quote is that the field at `at` begins with.
    fn opening_quote(&self, at: usize) -> Option<usize> {
        let field = &self.record.bytes[at..];
        let space = |byte: &&u8| !self.tabs && matches!(byte, b' ' | b'\t');
        let quote = at + field.iter().take_while(space).count();
        (self.record.bytes.get(quote) == Some(&b'"')).then_some(quote)
    }

    /// Follows a quoted field to its end; doubled quotes become one where they stand.
    fn quoted(&mut self, quote: usize, starts: &mut Vec<usize>) -> Result<Quoted, InputError> {
        let known = starts.len();
        let delimiter = self.delimiter();
        let mut doubled: Vec<usize> = Vec::new();
        let mut at = quote + 1;
        let close = loop {
            match memchr(b'"', &self.record.bytes[at..]) {
                Some(offset) if self.record.bytes.get(at + offset + 1) == Some(&b'"') => {
                    doubled.push(at + offset);
                    at += offset + 2;
                }
                Some(offset) => break at + offset,
                None => {
                    at = self.record.bytes.len();
                    if self.tabs && memchr(delimiter, &self.record.bytes[quote..]).is_some() {
                        return Ok(Quoted::Open("goes over tabs and lines"));
                    }
                    match self.lines.next_line()? {
                        None => return Ok(Quoted::Open("never closes")),
                        Some(Line::TooLong) => {
                            return Ok(Quoted::Open("goes over a line that is too long"));
                        }
                        Some(Line::Whole(line)) => {
                            starts.push(at);
                            self.record.bytes.extend(line);
                            if self.record.bytes.len() > MAX_ROW_BYTES {
                                return Ok(Quoted::Open("goes on for more than 2^30 bytes"));
                            }
                        }
                    }
                }
            }
        };
        let end = body(&self.record.bytes).len();
        let rest = &self.record.bytes[close + 1..end.max(close + 1)];
        let space = |byte: &&u8| **byte == b' ' || (!self.tabs && **byte == b'\t');
        let next = close + 1 + rest.iter().take_while(space).count();
        if next < end && self.record.bytes[next] != delimiter {
            return Ok(Quoted::Junk);
        }
        if self.tabs
            && starts.len() > known
            && memchr(delimiter, &self.record.bytes[quote..close]).is_some()
        {
            return Ok(Quoted::Open("goes over tabs and lines"));
        }
        // Every doubled quote loses one, and what follows moves up.
        let text = quote + 1;
        let (mut to, mut from) = (text, text);
        for at in doubled {
            self.record.bytes.copy_within(from..at + 1, to);
            to += at + 1 - from;
            from = at + 2;
        }
        self.record.bytes.copy_within(from..close, to);
        to += close - from;
        Ok(Quoted::Closed {
            text: text..to,
            next: next + 1,
        })
    }

    /// Takes lines out of the record again, all but the first `known` of those that were added.
    fn unread(&mut self, starts: &mut Vec<usize>, known: usize) {
        let mut lines = Vec::new();
        while starts.len() > known {
            let start = starts.pop().unwrap_or_default();
            lines.push(self.record.bytes.split_off(start));
        }
        lines.reverse();
        self.lines.give_back(lines);
    }
}
