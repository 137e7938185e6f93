//! Arrow files, batch by batch.

use super::{Rows, TextRow};
use crate::{Columns, InputError, TableReader};

pub(super) struct TableTexts {
    batches: Box<dyn Iterator<Item = Result<Columns, InputError>> + Send>,
    column: String,
    texts: std::vec::IntoIter<Option<String>>,
}

impl TableTexts {
    pub(super) fn new(table: &TableReader, column: &str) -> Result<Self, InputError> {
        Ok(Self {
            batches: Box::new(table.batches(&[column])?),
            column: column.into(),
            texts: Vec::new().into_iter(),
        })
    }
}

impl Rows for TableTexts {
    fn next_row(&mut self, _wanted: bool) -> Result<Option<TextRow>, InputError> {
        loop {
            if let Some(text) = self.texts.next() {
                return Ok(Some(match text {
                    Some(text) => TextRow::Text(text),
                    None => TextRow::Bad(format!("column `{}` is null", self.column)),
                }));
            }
            let Some(batch) = self.batches.next() else {
                return Ok(None);
            };
            self.texts = batch?.only_text(&self.column)?.into_iter();
        }
    }
}
