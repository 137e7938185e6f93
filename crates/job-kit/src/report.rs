//! A report: one HTML page that needs nothing else, and its tables as plain text.

mod grid;
mod style;

use std::fmt::Write;

pub use self::grid::{Cell, Grid, GridOf};
pub use crate::notation::{integer, number};
use crate::{
    notation::escape,
    output::{OutputDir, OutputError},
    plot::{Figure, PlotError},
    run_record::RunRecord,
};

/// A page of sections with texts, tables and figures. Everything is escaped; figures lie inside the page as SVG.
///
/// # Examples
/// ```
/// use job_kit::report::{Grid, Report, Section};
///
/// let grid = Grid::of([(3, 0.0123)]).column("neuron", |n| n.0).column("total effect", |n| n.1);
/// let page = Report::new("Neurons of the long tail")
///     .fact("model", "tiny-neox, step 4000")
///     .section(Section::new("Largest effects").text("Removing `3` costs < 1 nat.").grid(grid))
///     .to_html();
/// assert!(page.contains("<code>3</code> costs &lt; 1 nat") && page.contains("0.0123"));
/// ```
#[derive(Debug, Clone)]
pub struct Report {
    title: String,
    facts: Vec<(String, String)>,
    sections: Vec<Section>,
}

/// A headed part of a [`Report`].
#[derive(Debug, Clone)]
pub struct Section {
    title: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone)]
enum Part {
    Text(String),
    Grid(Grid),
    Figures(Vec<Drawn>),
}

/// A figure as SVG, with what stands below it.
#[derive(Debug, Clone)]
struct Drawn {
    svg: String,
    caption: String,
}

impl Section {
    /// An empty section.
    pub fn new(title: &str) -> Self {
        Self {
            title: title.to_owned(),
            parts: vec![],
        }
    }

    /// Adds paragraphs, parted by blank lines; `text` in backticks is set as code.
    pub fn text(mut self, text: &str) -> Self {
        self.parts.push(Part::Text(text.to_owned()));
        self
    }

    /// Adds a table.
    pub fn grid(mut self, grid: impl Into<Grid>) -> Self {
        self.parts.push(Part::Grid(grid.into()));
        self
    }

    /// Writes a figure as outputs, and adds it with a caption below it; where it cannot be drawn the section says so.
    ///
    /// # Errors
    /// As [`Figure::write`].
    pub fn saved_figure(
        self,
        figure: &Figure,
        caption: &str,
        (out, stem): (&OutputDir, &str),
        record: &mut RunRecord,
    ) -> Result<Self, OutputError> {
        Ok(match figure.write(out, stem, record)? {
            Some(svg) => match figure.not_shown() {
                0 => self.svg(svg, caption),
                points => self.svg(
                    svg,
                    &format!(
                        "{caption} Points without a place on these axes, not shown: {points}."
                    ),
                ),
            },
            None => self.text(&format!(
                "The figure “{}” is left out; the warnings of `run.json` say why.",
                figure.title()
            )),
        })
    }

    /// Adds a figure with a caption below it.
    ///
    /// # Errors
    /// If the figure cannot be drawn.
    pub fn figure(self, figure: &Figure, caption: &str) -> Result<Self, PlotError> {
        Ok(self.svg(figure.to_svg()?, caption))
    }

    /// Adds figures that were written before, `(SVG, caption)`, beside each other where there is room.
    pub fn beside(mut self, figures: impl IntoIterator<Item = (String, String)>) -> Self {
        let drawn = |(svg, caption)| Drawn { svg, caption };
        self.parts
            .push(Part::Figures(figures.into_iter().map(drawn).collect()));
        self
    }

    fn svg(self, svg: String, caption: &str) -> Self {
        self.beside([(svg, caption.to_owned())])
    }
}

impl Report {
    /// A page without sections.
    pub fn new(title: &str) -> Self {
        Self {
            title: title.to_owned(),
            facts: vec![],
            sections: vec![],
        }
    }

    /// Adds a line to the list of facts at the head: what was run, on what.
    pub fn fact(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.facts.push((name.to_owned(), value.to_string()));
        self
    }

    /// Adds a section.
    pub fn section(mut self, section: Section) -> Self {
        self.sections.push(section);
        self
    }

    /// The page.
    pub fn to_html(&self) -> String {
        let title = escape(&self.title);
        let mut html = format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
             <title>{title}</title>\n<style>{}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n",
            style::CSS
        );
        if !self.facts.is_empty() {
            html += "<dl>\n";
            for (name, value) in &self.facts {
                push(
                    &mut html,
                    format_args!(
                        "<div><dt>{}</dt><dd>{}</dd></div>\n",
                        escape(name),
                        inline(value)
                    ),
                );
            }
            html += "</dl>\n";
        }
        if self.sections.len() > 2 {
            html += "<nav>\n";
            for (i, section) in self.sections.iter().enumerate() {
                push(
                    &mut html,
                    format_args!("<a href=\"#s{}\">{}</a>\n", i + 1, escape(&section.title)),
                );
            }
            html += "</nav>\n";
        }
        for (i, section) in self.sections.iter().enumerate() {
            push(
                &mut html,
                format_args!(
                    "<section id=\"s{}\">\n<h2>{}</h2>\n",
                    i + 1,
                    escape(&section.title)
                ),
            );
            for part in &section.parts {
                match part {
                    Part::Text(text) => {
                        for paragraph in text
                            .split("\n\n")
                            .filter(|paragraph| !paragraph.trim().is_empty())
                        {
                            push(
                                &mut html,
                                format_args!("<p>{}</p>\n", inline(paragraph.trim())),
                            );
                        }
                    }
                    Part::Grid(grid) => html += &grid.to_html(),
                    Part::Figures(figures) => {
                        if figures.len() > 1 {
                            html += "<div class=\"beside\">\n";
                        }
                        for Drawn { svg, caption } in figures {
                            push(
                                &mut html,
                                format_args!(
                                    "<figure>\n{svg}<figcaption>{}</figcaption>\n</figure>\n",
                                    inline(caption)
                                ),
                            );
                        }
                        if figures.len() > 1 {
                            html += "</div>\n";
                        }
                    }
                }
            }
            html += "</section>\n";
        }
        html + "</main>\n</body>\n</html>\n"
    }
}

/// Escaped text in which pairs of backticks become code.
fn inline(text: &str) -> String {
    let parts: Vec<&str> = text.split('`').collect();
    let closed = parts.len() % 2 == 1;
    let mut html = String::new();
    for (i, part) in parts.iter().enumerate() {
        match i % 2 {
            1 if closed || i + 1 < parts.len() => {
                push(&mut html, format_args!("<code>{}</code>", escape(part)))
            }
            1 => push(&mut html, format_args!("`{}", escape(part))),
            _ => html += &escape(part),
        }
    }
    html
}

fn push(html: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = html.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backticks_come_in_pairs() {
        assert_eq!(inline("a `b` c"), "a <code>b</code> c");
        assert_eq!(inline("a ` b"), "a ` b");
        assert_eq!(inline("`<x>` and `y"), "<code>&lt;x&gt;</code> and `y");
    }

    #[test]
    fn what_a_corpus_may_hold_is_escaped() {
        let page = Report::new("<script>")
            .fact("a\"b", "x<y")
            .section(Section::new("&").text("<b>\u{0}"))
            .to_html();
        assert!(!page.contains("<script>") && !page.contains("<b>") && !page.contains('\u{0}'));
        assert!(
            page.contains("&lt;script&gt;") && page.contains("a&quot;b") && page.contains("x&lt;y")
        );
    }
}
