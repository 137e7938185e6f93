//! CSV and TSV.

use super::{Rows, TextRow};
use crate::{InputError, delimited::Delimited, lines::Lines};

pub(super) struct DelimitedTexts {
    rows: Delimited,
    column: usize,
}

impl DelimitedTexts {
    pub(super) fn new(lines: Lines, tabs: bool, column: &str) -> Result<Self, InputError> {
        let rows = Delimited::new(lines, tabs)?;
        let column = rows.column(column)?;
        Ok(Self { rows, column })
    }
}

impl Rows for DelimitedTexts {
    fn next_row(&mut self, _wanted: bool) -> Result<Option<TextRow>, InputError> {
        let column = self.column;
        Ok(self.rows.next_row()?.map(|row| match row {
            Ok(record) => TextRow::utf8(record.field(column).to_vec()),
            Err(reason) => TextRow::Bad(reason),
        }))
    }
}
