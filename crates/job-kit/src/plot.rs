//! Figures, drawn once and written as SVG and PNG.
//!
//! A [`Figure`] has two [`Axis`] and any number of [`Mark`]s; colours are those of Okabe and Ito, which people with
//! any common kind of colour vision tell apart. Lines also differ in their dashes, and points in their shape, so that they are told apart
//! without any colour. What lies beyond the ends of an axis is marked at its edge, and counted.

mod canvas;
mod draw;
mod scale;

use self::canvas::Canvas;
pub use self::scale::Axis;
use crate::{
    notation::number,
    output::{OutputDir, OutputError},
    run_record::RunRecord,
};

/// Why a figure was not drawn.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlotError {
    /// Nothing can be shown: no mark has a point with a place on both axes.
    #[error("figure `{title}` has no points to show")]
    Empty {
        /// The title of the figure.
        title: String,
    },
    /// The renderer failed.
    #[error("failed to make a picture of figure `{title}`: {message}")]
    Draw {
        /// The title of the figure.
        title: String,
        /// What it said.
        message: String,
    },
}

/// The Okabe-Ito colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Color {
    /// Blue.
    Blue,
    /// Vermilion.
    Vermilion,
    /// Bluish green.
    Green,
    /// Orange.
    Orange,
    /// Reddish purple.
    Purple,
    /// Sky blue.
    Sky,
    /// Black.
    Black,
    /// Grey, for what is only context.
    Grey,
}

impl Color {
    /// The order in which marks get their colours.
    const ORDER: [Self; 7] = [
        Self::Blue,
        Self::Vermilion,
        Self::Green,
        Self::Orange,
        Self::Purple,
        Self::Sky,
        Self::Black,
    ];

    fn rgb(self) -> (u8, u8, u8) {
        match self {
            Self::Blue => (0, 114, 178),
            Self::Vermilion => (213, 94, 0),
            Self::Green => (0, 158, 115),
            Self::Orange => (230, 159, 0),
            Self::Purple => (204, 121, 167),
            Self::Sky => (86, 180, 233),
            Self::Black => (0, 0, 0),
            Self::Grey => (150, 150, 150),
        }
    }
}

/// One thing drawn in a figure.
#[derive(Debug, Clone)]
pub struct Mark {
    kind: Kind,
    name: String,
    points: Vec<(f64, f64)>,
    intervals: Vec<Option<(f64, f64)>>,
    labels: Vec<String>,
    names: Vec<String>,
    color: Option<Color>,
    dashed: bool,
    dots: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Line,
    Points { radius: f64 },
    Bars,
    VerticalRule(f64),
    HorizontalRule(f64),
    Span(f64, f64),
}

impl Mark {
    fn new(kind: Kind, name: &str, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        let points = points.into_iter().collect();
        Self {
            kind,
            name: name.to_owned(),
            points,
            intervals: vec![],
            labels: vec![],
            names: vec![],
            color: None,
            dashed: false,
            dots: false,
        }
    }

    /// Points joined by a line. The name is for the legend; an empty one stays out of it.
    pub fn line(name: &str, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        Self::new(Kind::Line, name, points)
    }

    /// Points on their own.
    pub fn points(name: &str, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        Self::new(Kind::Points { radius: 3.0 }, name, points)
    }

    /// Bars from zero, or from the foot of a logarithmic axis. Several marks of bars stand side by side.
    pub fn bars(name: &str, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        Self::new(Kind::Bars, name, points)
    }

    /// A dashed vertical line over the full height, labelled where it stands.
    pub fn vertical(label: &str, x: f64) -> Self {
        Self::new(Kind::VerticalRule(x), label, [])
            .dashed()
            .color(Color::Grey)
    }

    /// A dashed horizontal line over the full width, labelled where it stands.
    pub fn horizontal(label: &str, y: f64) -> Self {
        Self::new(Kind::HorizontalRule(y), label, [])
            .dashed()
            .color(Color::Grey)
    }

    /// A shaded range of x, labelled at its top.
    pub fn span(label: &str, from: f64, to: f64) -> Self {
        Self::new(Kind::Span(from, to), label, []).color(Color::Grey)
    }

    /// An interval around each y, `(low, high)` or none: a band along a line, an error bar at points and bars.
    pub fn intervals<I: Into<Option<(f64, f64)>>>(
        mut self,
        intervals: impl IntoIterator<Item = I>,
    ) -> Self {
        self.intervals = intervals.into_iter().map(Into::into).collect();
        self
    }

    /// A text beside each point; an empty one leaves its point alone.
    pub fn labels<S: Into<String>>(mut self, labels: impl IntoIterator<Item = S>) -> Self {
        self.labels = labels.into_iter().map(Into::into).collect();
        self
    }

    /// What each point is called while the mouse is over it; otherwise it has its label, or the name of the mark.
    pub fn names<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.names = names.into_iter().map(Into::into).collect();
        self
    }

    /// What is shown while the mouse is over a point: what it is and its values. Nothing in a crowd without names.
    fn hover(&self, point: usize) -> String {
        const CROWD: usize = 400;
        let called = |texts: &[String]| texts.get(point).filter(|text| !text.is_empty()).cloned();
        let name = called(&self.names).or_else(|| called(&self.labels));
        if name.is_none() && self.points.len() > CROWD {
            return String::new();
        }
        let name = name.unwrap_or_else(|| self.name.clone());
        let (x, y) = self.points[point];
        let values = format!("{}, {}", number(x, 4), number(y, 4));
        match &*name {
            "" => values,
            name => format!("{name}: {values}"),
        }
    }

    /// A colour other than the next in the order.
    pub fn color(mut self, color: Color) -> Self {
        self.color = Some(color);
        self
    }

    /// Dashes instead of a full line.
    pub fn dashed(mut self) -> Self {
        self.dashed = true;
        self
    }

    /// A dot at each point of a line.
    pub fn with_dots(mut self) -> Self {
        self.dots = true;
        self
    }

    /// The radius of points, in pixels.
    pub fn radius(mut self, radius: f64) -> Self {
        if let Kind::Points { radius: current } = &mut self.kind {
            *current = radius;
        }
        self
    }
}

/// A figure: marks over two axes.
///
/// Points that have no place on an axis (not finite, or not positive on a logarithmic one) are left out, and the figure
/// says at its foot how many. Points beyond the ends of an axis ([`Axis::range`], [`Axis::bulk`]) are triangles at its edge, counted too.
/// [`Axis::steps`] has a place for 0.
///
/// # Examples
/// ```
/// use job_kit::plot::{Axis, Figure, Mark};
///
/// let steps = [0.0, 1.0, 64.0, 1000.0];
/// let bits = [12.0, 11.5, 8.0, 6.1];
/// let figure = Figure::new("Surprisal of rare words", Axis::steps("training step"), Axis::linear("surprisal (bits)"))
///     .mark(Mark::line("base", steps.into_iter().zip(bits)).intervals(bits.map(|b| (b - 0.3, b + 0.3))));
/// let svg = figure.to_svg()?;
/// assert!(svg.starts_with("<svg") && svg.contains("training step"));
/// # Ok::<(), job_kit::plot::PlotError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Figure {
    title: String,
    subtitle: String,
    x: Axis,
    y: Axis,
    marks: Vec<Mark>,
    size: (u32, u32),
}

impl Figure {
    /// A figure without marks yet.
    pub fn new(title: &str, x: Axis, y: Axis) -> Self {
        Self {
            title: title.to_owned(),
            subtitle: String::new(),
            x,
            y,
            marks: vec![],
            size: (720, 440),
        }
    }

    /// A line below the title: what the values are of, and how many there are.
    pub fn subtitle(mut self, subtitle: &str) -> Self {
        subtitle.clone_into(&mut self.subtitle);
        self
    }

    /// Adds a mark, drawn over those before it.
    pub fn mark(mut self, mark: Mark) -> Self {
        self.marks.push(mark);
        self
    }

    /// Adds several marks.
    pub fn marks(mut self, marks: impl IntoIterator<Item = Mark>) -> Self {
        self.marks.extend(marks);
        self
    }

    /// Width and height in pixels; 720 by 440 otherwise, and never under 240 by 180.
    pub fn size(mut self, width: u32, height: u32) -> Self {
        self.size = (width.max(240), height.max(180));
        self
    }

    /// The title.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// The figure as an SVG document.
    ///
    /// # Errors
    /// [`PlotError::Empty`] or [`PlotError::Draw`].
    pub fn to_svg(&self) -> Result<String, PlotError> {
        let mut canvas = Canvas::new(self.size, &self.title);
        draw::draw(self, &mut canvas)?;
        Ok(canvas.finish())
    }

    /// The figure as a PNG, two pixels to one of [`size`](Self::size).
    ///
    /// # Errors
    /// [`PlotError::Empty`] or [`PlotError::Draw`].
    pub fn to_png(&self) -> Result<Vec<u8>, PlotError> {
        self.picture(&self.to_svg()?)
    }

    fn picture(&self, svg: &str) -> Result<Vec<u8>, PlotError> {
        canvas::png(svg).map_err(|message| PlotError::Draw {
            title: self.title.clone(),
            message,
        })
    }

    /// Writes `<stem>.svg` and `<stem>.png` as outputs, see [`outputs`](Self::outputs). A figure that cannot be drawn, as it has no points
    /// for instance, is a warning in the record: results do not depend on it. Gives the SVG.
    ///
    /// # Errors
    /// [`OutputError`] if a file cannot be written.
    pub fn write(
        &self,
        out: &OutputDir,
        stem: &str,
        record: &mut RunRecord,
    ) -> Result<Option<String>, OutputError> {
        let drawn = self.to_svg().and_then(|svg| Ok((self.picture(&svg)?, svg)));
        match drawn {
            Ok((png, svg)) => {
                out.write(&format!("{stem}.svg"), &svg)?;
                out.write(&format!("{stem}.png"), png)?;
                match self.not_shown() {
                    0 => {}
                    points => record.count(&format!("points_not_shown_in_{stem}"), points as u64),
                }
                Ok(Some(svg))
            }
            Err(error) => {
                record.warn(format!("`{stem}.svg` is left out: {error}"));
                Ok(None)
            }
        }
    }

    /// The x axis, with a place for step 0 where there is one.
    fn x(&self) -> Axis {
        let points = self.marks.iter().flat_map(|mark| &mark.points);
        self.x.with_zero(points.map(|(x, _)| *x))
    }

    /// Points that have no place on the axes, as 0 on a logarithmic one.
    pub fn not_shown(&self) -> usize {
        let x = self.x();
        let placed =
            |point: &(f64, f64)| x.place(point.0).is_some() && self.y.place(point.1).is_some();
        let points = self.marks.iter().flat_map(|mark| &mark.points);
        points.filter(|point| !placed(point)).count()
    }

    /// Names of the files that [`write`](Self::write) makes.
    pub fn outputs(stem: &str) -> [String; 2] {
        [format!("{stem}.svg"), format!("{stem}.png")]
    }
}
