//! Tables made column by column, of rows that are in memory.

use std::sync::Arc;

use arrow::{
    array::{
        ArrayRef, BooleanArray, Float32Array, Float64Array, Int32Array, Int64Array, RecordBatch,
        StringArray, UInt32Array, UInt64Array,
    },
    datatypes::Field,
    error::ArrowError,
};

/// A table in the making: a column is a name and what it says of each row.
///
/// The type of what it says is the type of the column, and an `Option` makes nulls possible.
///
/// # Examples
/// ```
/// use job_kit::Table;
///
/// let words = [("whale", Some(4.2)), ("harpoon", None)];
/// let table = Table::of(&words)
///     .column("word", |word| word.0)
///     .column("letters", |word| word.0.len() as u32)
///     .column("zipf", |word| word.1)
///     .batch()?;
/// assert_eq!(table.num_rows(), 2);
/// assert!(!table.schema().field(0).is_nullable());
/// assert!(table.schema().field(2).is_nullable());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Table<'r, R> {
    rows: &'r [R],
    fields: Vec<Field>,
    arrays: Vec<ArrayRef>,
}

impl<'r, R> Table<'r, R> {
    /// A table of these rows, without columns yet.
    pub fn of(rows: &'r [R]) -> Self {
        Self {
            rows,
            fields: Vec::new(),
            arrays: Vec::new(),
        }
    }

    /// With a column.
    #[must_use]
    pub fn column<V: ColumnValue>(self, name: impl Into<String>, of: impl Fn(&'r R) -> V) -> Self {
        let values = self.rows.iter().map(of);
        self.values(name, values)
    }

    /// With a column whose values are at hand, in the order of the rows.
    #[must_use]
    pub fn values<V: ColumnValue>(
        mut self,
        name: impl Into<String>,
        values: impl IntoIterator<Item = V>,
    ) -> Self {
        let array = V::array(values.into_iter());
        let field = Field::new(name, array.data_type().clone(), V::CAN_BE_NULL);
        self.fields.push(field);
        self.arrays.push(array);
        self
    }

    /// The table.
    ///
    /// # Errors
    /// [`ArrowError::InvalidArgumentError`] if there are no columns, or columns of several lengths.
    pub fn batch(self) -> Result<RecordBatch, ArrowError> {
        let schema = arrow::datatypes::Schema::new(self.fields);
        RecordBatch::try_new(Arc::new(schema), self.arrays)
    }
}

/// What a column of a [`Table`] can say of a row.
pub trait ColumnValue: Sized {
    /// Whether the column can hold nulls.
    const CAN_BE_NULL: bool = false;

    /// The column.
    fn array(values: impl Iterator<Item = Self>) -> ArrayRef;
}

macro_rules! values_of {
    ($($array:ident: $($value:ty),+;)+) => {$($(
        impl ColumnValue for $value {
            fn array(values: impl Iterator<Item = Self>) -> ArrayRef {
                Arc::new(values.map(Some).collect::<$array>())
            }
        }

        impl ColumnValue for Option<$value> {
            const CAN_BE_NULL: bool = true;

            fn array(values: impl Iterator<Item = Self>) -> ArrayRef {
                Arc::new(values.collect::<$array>())
            }
        }
    )+)+};
}

values_of! {
    BooleanArray: bool;
    Int32Array: i32;
    Int64Array: i64;
    UInt32Array: u32;
    UInt64Array: u64;
    Float32Array: f32;
    Float64Array: f64;
    StringArray: &str, String;
}
