//! A figure as SVG, and the picture of that SVG.

use std::{
    fmt::{self, Write},
    sync::{Arc, LazyLock},
};

use resvg::{
    tiny_skia::{Pixmap, Transform},
    usvg::{Options, Tree, fontdb::Database},
};

use super::Color;
use crate::notation::escape;

/// Names as CSS knows them; the first is the font that we bundle.
const FAMILY: &str = "DejaVu Sans, Verdana, Helvetica, Arial, sans-serif";
static FONT: &[u8] = include_bytes!("../../fonts/dejavu-sans-subset.ttf");
/// Width of a character over the em, where the font does not know it.
const USUAL_WIDTH: f64 = 0.6;
/// From the middle of a line of text down to where its letters stand, over the em.
const DROP: f64 = 0.36;

/// Pixels of a picture to one of the figure.
const PNG_SCALE: f32 = 2.0;

/// What a point looks like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Shape {
    Circle,
    Square,
    Up,
    Diamond,
    Down,
    /// Triangles at an edge: there is something beyond it.
    Left,
    Right,
}

impl Shape {
    /// The order in which marks get their shapes.
    pub(super) const ORDER: [Self; 5] = [
        Self::Circle,
        Self::Square,
        Self::Up,
        Self::Diamond,
        Self::Down,
    ];

    /// Of a shape of radius 1, y down; none of a circle.
    fn corners(self) -> &'static [(f64, f64)] {
        match self {
            Self::Circle => &[],
            Self::Square => &[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
            Self::Diamond => &[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)],
            Self::Up => &[(0.0, -1.25), (1.15, 0.95), (-1.15, 0.95)],
            Self::Down => &[(0.0, 1.25), (1.15, -0.95), (-1.15, -0.95)],
            Self::Left => &[(-1.25, 0.0), (0.95, -1.15), (0.95, 1.15)],
            Self::Right => &[(1.25, 0.0), (-0.95, -1.15), (-0.95, 1.15)],
        }
    }
}

/// Where a text stands about its point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Align {
    Left,
    Middle,
    Right,
}

/// Paint: a colour and how opaque it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paint {
    rgb: (u8, u8, u8),
    alpha: f64,
}

impl Paint {
    pub(super) fn grey(level: u8) -> Self {
        Self {
            rgb: (level, level, level),
            alpha: 1.0,
        }
    }

    pub(super) fn alpha(self, alpha: f64) -> Self {
        Self { alpha, ..self }
    }

    /// As the attribute `fill` or `stroke`.
    fn attribute(self, name: &str) -> String {
        let (r, g, b) = self.rgb;
        match self.alpha < 1.0 {
            true => format!(
                "{name}=\"#{r:02x}{g:02x}{b:02x}\" {name}-opacity=\"{}\"",
                Short(self.alpha)
            ),
            false => format!("{name}=\"#{r:02x}{g:02x}{b:02x}\""),
        }
    }
}

impl From<Color> for Paint {
    fn from(color: Color) -> Self {
        Self {
            rgb: color.rgb(),
            alpha: 1.0,
        }
    }
}

/// A number with two decimals at most.
struct Short(f64);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", (self.0 * 100.0).round() / 100.0)
    }
}

/// The points of a path: `M1 2L3 4`.
struct Path<'p>(&'p [(f64, f64)]);

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, &(x, y)) in self.0.iter().enumerate() {
            let command = if i == 0 { 'M' } else { 'L' };
            write!(f, "{command}{} {}", Short(x), Short(y))?;
        }
        Ok(())
    }
}

/// What figures are drawn on; coordinates are pixels of the figure, y downwards.
pub(super) struct Canvas {
    size: (f64, f64),
    svg: String,
}

impl Canvas {
    /// White, of this size.
    pub(super) fn new((width, height): (u32, u32), title: &str) -> Self {
        let svg = format!(
            "<svg width=\"{width}\" height=\"{height}\" role=\"img\" aria-label=\"{}\" viewBox=\"0 0 {width} {height}\" \
             xmlns=\"http://www.w3.org/2000/svg\" font-family=\"{FAMILY}\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n",
            escape(title)
        );
        Self {
            size: (f64::from(width), f64::from(height)),
            svg,
        }
    }

    /// The document.
    pub(super) fn finish(mut self) -> String {
        self.svg += "</svg>\n";
        self.svg
    }

    /// Width and height of the figure.
    pub(super) fn size(&self) -> (f64, f64) {
        self.size
    }

    fn add(&mut self, element: fmt::Arguments<'_>) {
        // Writing to a text cannot fail.
        let _ = writeln!(self.svg, "{element}");
    }

    pub(super) fn line(&mut self, points: &[(f64, f64)], paint: Paint, width: f64) {
        self.polyline(points, paint, width, "");
    }

    /// Dashes and gaps in pixels; none for a full line.
    pub(super) fn dashed_line(
        &mut self,
        points: &[(f64, f64)],
        paint: Paint,
        width: f64,
        dashes: &str,
    ) {
        match dashes {
            "" => self.polyline(points, paint, width, ""),
            _ => self.polyline(
                points,
                paint,
                width,
                &format!(" stroke-dasharray=\"{dashes}\""),
            ),
        }
    }

    fn polyline(&mut self, points: &[(f64, f64)], paint: Paint, width: f64, dashes: &str) {
        if points.len() > 1 {
            self.add(format_args!(
                "<path d=\"{}\" fill=\"none\" {} stroke-width=\"{}\"{dashes}/>",
                Path(points),
                paint.attribute("stroke"),
                Short(width)
            ));
        }
    }

    pub(super) fn polygon(&mut self, points: &[(f64, f64)], paint: Paint) {
        let paint = paint.attribute("fill");
        self.add(format_args!("<path d=\"{}Z\" {paint}/>", Path(points)));
    }

    pub(super) fn rectangle(&mut self, from: (f64, f64), to: (f64, f64), paint: Paint) {
        self.polygon(&[from, (to.0, from.1), to, (from.0, to.1)], paint);
    }

    /// A dot; `hover` is shown while the mouse is over it, unless it is empty.
    pub(super) fn dot(
        &mut self,
        center: (f64, f64),
        radius: f64,
        shape: Shape,
        paint: Paint,
        hover: &str,
    ) {
        let fill = paint.attribute("fill");
        let (name, element) = match shape.corners() {
            [] => {
                let (x, y, r) = (Short(center.0), Short(center.1), Short(radius));
                (
                    "circle",
                    format!("<circle cx=\"{x}\" cy=\"{y}\" r=\"{r}\" {fill}"),
                )
            }
            corners => {
                let corner = |(x, y): &(f64, f64)| (center.0 + radius * x, center.1 + radius * y);
                let outline: Vec<(f64, f64)> = corners.iter().map(corner).collect();
                ("path", format!("<path d=\"{}Z\" {fill}", Path(&outline)))
            }
        };
        match hover {
            "" => self.add(format_args!("{element}/>")),
            hover => self.add(format_args!(
                "{element}><title>{}</title></{name}>",
                escape(hover)
            )),
        }
    }

    /// Text about a point, centred on it vertically; `em` is its size. Upright text runs from the point upwards.
    pub(super) fn text(
        &mut self,
        text: &str,
        at: (f64, f64),
        align: Align,
        em: f64,
        paint: Paint,
        upright: bool,
    ) {
        let anchor = match align {
            Align::Left => "start",
            Align::Middle => "middle",
            Align::Right => "end",
        };
        let turn = match upright {
            true => format!(" transform=\"rotate(-90 {} {})\"", Short(at.0), Short(at.1)),
            false => String::new(),
        };
        self.add(format_args!(
            "<text x=\"{}\" y=\"{}\" text-anchor=\"{anchor}\" font-size=\"{}\" {}{turn}>{}</text>",
            Short(at.0),
            Short(at.1 + DROP * em),
            Short(em),
            paint.attribute("fill"),
            escape(text)
        ));
    }

    /// Width of a text of size `em`.
    pub(super) fn text_width(&self, text: &str, em: f64) -> f64 {
        static FACE: LazyLock<Option<ttf_parser::Face<'static>>> =
            LazyLock::new(|| ttf_parser::Face::parse(FONT, 0).ok());
        let width = |letter: char| {
            let face = FACE.as_ref()?;
            let advance = face.glyph_hor_advance(face.glyph_index(letter)?)?;
            Some(f64::from(advance) / f64::from(face.units_per_em()))
        };
        em * text
            .chars()
            .map(|letter| width(letter).unwrap_or(USUAL_WIDTH))
            .sum::<f64>()
    }
}

/// The picture of an SVG of ours, two pixels to one of the figure.
///
/// # Errors
/// What the renderer says.
pub(super) fn png(svg: &str) -> Result<Vec<u8>, String> {
    static FONTS: LazyLock<Arc<Database>> = LazyLock::new(|| {
        let mut fonts = Database::new();
        fonts.load_font_data(FONT.to_vec());
        Arc::new(fonts)
    });
    let options = Options {
        fontdb: Arc::clone(&FONTS),
        ..Options::default()
    };
    let tree = Tree::from_str(svg, &options).map_err(|err| err.to_string())?;
    let pixels = |length: f32| (length * PNG_SCALE).ceil() as u32;
    let (width, height) = (pixels(tree.size().width()), pixels(tree.size().height()));
    let mut picture = Pixmap::new(width, height)
        .ok_or_else(|| format!("a picture of {width} by {height} pixels is too large"))?;
    let scale = Transform::from_scale(PNG_SCALE, PNG_SCALE);
    resvg::render(&tree, scale, &mut picture.as_mut());
    picture.encode_png().map_err(|err| err.to_string())
}
