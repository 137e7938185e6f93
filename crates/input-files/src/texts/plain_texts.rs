//! Plain text by lines, paragraphs or whole files.

use super::{Rows, TextRow, TextUnit};
use crate::{
    InputError,
    lines::{Line, Lines, MAX_ROW_BYTES, body, too_long},
};

pub(super) struct PlainTexts {
    lines: Lines,
    unit: TextUnit,
}

impl PlainTexts {
    pub(super) fn new(lines: Lines, unit: TextUnit) -> Self {
        Self { lines, unit }
    }
}

impl Rows for PlainTexts {
    fn next_row(&mut self, _wanted: bool) -> Result<Option<TextRow>, InputError> {
        let mut text: Option<Vec<u8>> = None;
        let mut over = false;
        while let Some(line) = self.lines.next_line()? {
            let Line::Whole(mut line) = line else {
                over = true;
                continue;
            };
            line.truncate(body(&line).len());
            let blank = line.trim_ascii().is_empty();
            match &mut text {
                _ if blank && self.unit != TextUnit::File => {
                    if text.is_some() || over {
                        break;
                    }
                }
                None => text = Some(line),
                Some(text) if text.len() + line.len() < MAX_ROW_BYTES => {
                    text.push(b'\n');
                    text.extend(line);
                }
                Some(_) => over = true,
            }
            if self.unit == TextUnit::Line && text.is_some() {
                break;
            }
        }
        Ok(match text {
            _ if over => Some(TextRow::Bad(too_long())),
            text => text.map(TextRow::utf8),
        })
    }
}
