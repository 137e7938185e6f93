//! Small tables for people: as HTML in a report, as aligned text on a terminal.

use super::{escape, inline};
use crate::notation::{decimal, integer, number};

/// A value in a [`Grid`].
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// A text.
    Text(String),
    /// A whole number.
    Int(i64),
    /// A number, shown to four significant digits.
    Number(f64),
    /// A number shown with so many decimals.
    Fixed(f64, usize),
    /// A share, shown as a percentage with one decimal.
    Percent(f64),
    /// No value, shown as a dash.
    Missing,
}

impl Cell {
    /// A number shown with so many decimals, where there is one.
    pub fn fixed(value: impl Into<Option<f64>>, decimals: usize) -> Self {
        value
            .into()
            .map_or(Self::Missing, |value| Self::Fixed(value, decimals))
    }

    /// A share shown as a percentage, where there is one.
    pub fn percent(value: impl Into<Option<f64>>) -> Self {
        value.into().map_or(Self::Missing, Self::Percent)
    }

    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Int(value) => integer(*value),
            Self::Number(value) => number(*value, 4),
            Self::Fixed(value, decimals) if value.is_finite() => decimal(*value, *decimals),
            Self::Percent(value) if value.is_finite() => format!("{} %", decimal(100.0 * value, 1)),
            Self::Fixed(value, _) | Self::Percent(value) => number(*value, 4),
            Self::Missing => "–".to_owned(),
        }
    }

    fn is_text(&self) -> bool {
        matches!(self, Self::Text(_))
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<f64> for Cell {
    fn from(value: f64) -> Self {
        Self::Number(value)
    }
}

macro_rules! cell_from_int {
    ($($int:ty),*) => {$(
        impl From<$int> for Cell {
            fn from(value: $int) -> Self {
                i64::try_from(value).map_or_else(|_| Self::Text(value.to_string()), Self::Int)
            }
        }
    )*};
}
cell_from_int!(i32, i64, u32, u64, usize);

impl<T: Into<Self>> From<Option<T>> for Cell {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Missing, Into::into)
    }
}

/// A small table of [`Cell`]s, made by [`Grid::of`].
#[derive(Debug, Clone)]
pub struct Grid {
    caption: String,
    columns: Vec<String>,
    rows: Vec<Vec<Cell>>,
}

/// A [`Grid`] in the making: a column is a name and what it says of each row, as in a [`Table`](crate::Table).
///
/// # Examples
/// ```
/// use job_kit::report::{Cell, Grid};
///
/// let neurons = [(3, 0.01234567, Some(0.5)), (1017, -2.5e-7, None)];
/// let grid = Grid::of(&neurons)
///     .column("neuron", |n| n.0)
///     .column("effect (nats)", |n| n.1)
///     .column("share", |n| Cell::percent(n.2));
/// let text = Grid::from(grid).to_text();
/// assert_eq!(text.lines().nth(1), Some("     3        0.01235  50.0 %"));
/// assert_eq!(text.lines().nth(2), Some(" 1,017    −2.500×10⁻⁷       –"));
/// ```
#[derive(Debug, Clone)]
pub struct GridOf<R> {
    of: Vec<R>,
    grid: Grid,
}

impl<R> GridOf<R> {
    /// A line above the table.
    #[must_use]
    pub fn caption(mut self, caption: impl Into<String>) -> Self {
        self.grid.caption = caption.into();
        self
    }

    /// With a column.
    #[must_use]
    pub fn column<C: Into<Cell>>(mut self, name: impl Into<String>, of: impl Fn(&R) -> C) -> Self {
        self.grid.columns.push(name.into());
        for (cells, row) in self.grid.rows.iter_mut().zip(&self.of) {
            cells.push(of(row).into());
        }
        self
    }
}

impl<R> From<GridOf<R>> for Grid {
    fn from(made: GridOf<R>) -> Self {
        made.grid
    }
}

impl Grid {
    /// A table of these rows, without columns yet.
    pub fn of<R>(rows: impl IntoIterator<Item = R>) -> GridOf<R> {
        let of: Vec<R> = rows.into_iter().collect();
        GridOf {
            grid: Self {
                caption: String::new(),
                columns: vec![],
                rows: of.iter().map(|_| vec![]).collect(),
            },
            of,
        }
    }

    /// The table in columns of plain text, for a terminal.
    pub fn to_text(&self) -> String {
        let cells: Vec<Vec<String>> = self
            .rows
            .iter()
            .map(|row| row.iter().map(Cell::text).collect())
            .collect();
        let width = |i: usize| {
            cells
                .iter()
                .filter_map(|row| row.get(i))
                .chain(self.columns.get(i))
                .map(|text| text.chars().count())
                .max()
                .unwrap_or(0)
        };
        let mut text = if self.caption.is_empty() {
            String::new()
        } else {
            format!("{}\n", self.caption)
        };
        for row in std::iter::once(&self.columns).chain(&cells) {
            let line: Vec<String> = row
                .iter()
                .enumerate()
                .map(|(i, cell)| {
                    if self.is_text(i) {
                        format!("{cell:<0$}", width(i))
                    } else {
                        format!("{cell:>0$}", width(i))
                    }
                })
                .collect();
            text += line.join("  ").trim_end();
            text.push('\n');
        }
        text
    }

    pub(super) fn to_html(&self) -> String {
        let class = |i: usize| if self.is_text(i) { "" } else { " class=\"n\"" };
        let mut html = String::from("<div class=\"scroll\"><table>\n");
        if !self.caption.is_empty() {
            html += &format!("<caption>{}</caption>\n", inline(&self.caption));
        }
        let head: String = self
            .columns
            .iter()
            .enumerate()
            .map(|(i, name)| format!("<th scope=\"col\"{}>{}</th>", class(i), escape(name)))
            .collect();
        html += &format!("<thead><tr>{head}</tr></thead>\n<tbody>\n");
        for row in &self.rows {
            let cells: String = row
                .iter()
                .enumerate()
                .map(|(i, cell)| format!("<td{}>{}</td>", class(i), escape(&cell.text())))
                .collect();
            html += &format!("<tr>{cells}</tr>\n");
        }
        html + "</tbody>\n</table></div>\n"
    }

    /// Whether a column holds text, which stands on the left.
    fn is_text(&self, column: usize) -> bool {
        self.rows
            .iter()
            .filter_map(|row| row.get(column))
            .any(Cell::is_text)
    }
}
