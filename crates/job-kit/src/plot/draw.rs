//! Layout of a figure and the drawing of its marks.

use super::{
    Color, Figure, Kind, Mark, PlotError,
    canvas::{Align, Canvas, Paint, Shape},
    scale::{Axis, AxisKind, Scale, Tick},
};

const TITLE_EM: f64 = 15.0;
const LABEL_EM: f64 = 12.5;
const TICK_EM: f64 = 11.0;
const SUBTITLE_EM: f64 = 10.5;
const SUBTITLE_LINE: f64 = 15.0;
const LINE: f64 = 1.8;
/// Dashes of lines, in the order in which they get them: the first is full.
const DASHES: [&str; 5] = ["", "9 3", "2 2.5", "9 3 2 3", "14 4"];
/// Dashes of what asked for them, such as a rule.
const DASHED: &str = "7 5";

/// The rectangle that data are drawn in, and its axes.
struct Plane {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    x: Scale,
    y: Scale,
}

impl Plane {
    fn at(&self, (x, y): (f64, f64)) -> (f64, f64) {
        (
            self.left + self.x.fraction(x) * (self.right - self.left),
            self.bottom - self.y.fraction(y) * (self.bottom - self.top),
        )
    }

    /// The part of a line from `a` to `b`, in pixels, that lies inside (Liang and Barsky).
    fn clip(&self, a: (f64, f64), b: (f64, f64)) -> Option<[(f64, f64); 2]> {
        let (dx, dy) = (b.0 - a.0, b.1 - a.1);
        let (mut from, mut to) = (0.0f64, 1.0f64);
        for (p, q) in [
            (-dx, a.0 - self.left),
            (dx, self.right - a.0),
            (-dy, a.1 - self.top),
            (dy, self.bottom - a.1),
        ] {
            if p == 0.0 {
                if q < 0.0 {
                    return None;
                }
            } else if p < 0.0 {
                from = from.max(q / p);
            } else {
                to = to.min(q / p);
            }
        }
        (from <= to).then(|| [from, to].map(|t| (a.0 + t * dx, a.1 + t * dy)))
    }

    fn clamp(&self, (x, y): (f64, f64)) -> (f64, f64) {
        (
            x.clamp(self.left, self.right),
            y.clamp(self.top, self.bottom),
        )
    }
}

/// A mark with its points in units of the axes.
struct Placed<'a> {
    mark: &'a Mark,
    color: Color,
    dashes: &'static str,
    shape: Shape,
    /// One per point; none where it has no place.
    points: Vec<Option<(f64, f64)>>,
    /// One per point, if the mark has intervals.
    intervals: Vec<Option<(f64, f64)>>,
}

pub(super) fn draw(figure: &Figure, canvas: &mut Canvas) -> Result<(), PlotError> {
    let x_axis = &figure.x();
    let mut colors = Color::ORDER.into_iter().cycle();
    let mut looks = Looks::default();
    let placed: Vec<Placed<'_>> = figure
        .marks
        .iter()
        .map(|mark| {
            let color = mark.color.or_else(|| colors.next()).unwrap_or(Color::Black);
            place((x_axis, &figure.y), mark, color, looks.of(mark))
        })
        .collect();
    let left_out = placed
        .iter()
        .flat_map(|p| &p.points)
        .filter(|point| point.is_none())
        .count();
    if placed.iter().all(|p| p.points.iter().all(Option::is_none)) {
        return Err(PlotError::Empty {
            title: figure.title.clone(),
        });
    }
    let bars = figure.marks.iter().any(|mark| mark.kind == Kind::Bars);
    let rules = |vertical: bool| {
        figure.marks.iter().flat_map(move |mark| match mark.kind {
            Kind::VerticalRule(x) if vertical => vec![x],
            Kind::HorizontalRule(y) if !vertical => vec![y],
            _ => vec![],
        })
    };
    let xs = placed
        .iter()
        .flat_map(|p| &p.points)
        .flatten()
        .map(|point| point.0);
    let mut x = x_axis.fit(xs.chain(rules(true).filter_map(|v| x_axis.place(v))), false);
    let ys = placed.iter().flat_map(|p| {
        p.points.iter().flatten().map(|point| point.1).chain(
            p.intervals
                .iter()
                .flatten()
                .flat_map(|&(low, high)| [low, high]),
        )
    });
    let y = figure.y.fit(
        ys.chain(rules(false).filter_map(|v| figure.y.place(v))),
        bars,
    );
    if bars && !matches!(x_axis.kind, AxisKind::Categories(_)) {
        let half = bar_slot(&placed) / 2.0;
        (x.from, x.to) = (x.from - half, x.to + half);
    }

    let (width, height) = canvas.size();
    let legend = legend_rows(canvas, &placed, width - 24.0);
    let subtitle = wrapped(canvas, &figure.subtitle, width - 24.0);
    let head = SUBTITLE_LINE * subtitle.len() as f64;
    let top = 40.0 + head + 20.0 * legend.len() as f64;
    let (y_ticks, y_factor) = y.ticks(
        &figure.y,
        ((height - top - 60.0) / 55.0).clamp(2.0, 8.0) as usize,
    );
    let tick_width = y_ticks
        .iter()
        .map(|tick| canvas.text_width(&tick.text, TICK_EM))
        .fold(0.0, f64::max);
    let left = 36.0 + tick_width.min(width / 3.0);
    let right = width - 20.0;
    let (x_ticks, x_factor) = x_ticks(canvas, x_axis, &x, right - left);
    let slot = (right - left)
        / x_ticks
            .iter()
            .filter(|tick| !tick.text.is_empty())
            .count()
            .max(1) as f64;
    let widest = x_ticks
        .iter()
        .map(|tick| canvas.text_width(&tick.text, TICK_EM))
        .fold(0.0, f64::max);
    let upright = matches!(x_axis.kind, AxisKind::Categories(_)) && widest > slot - 4.0;
    let beyond = placed.iter().flat_map(|p| p.beyond(&x, &y)).count();
    let note = if left_out + beyond > 0 { 16.0 } else { 0.0 };
    let bottom = height
        - 46.0
        - note
        - if upright {
            (widest - TICK_EM).clamp(0.0, height / 3.0)
        } else {
            0.0
        };
    let plane = Plane {
        left,
        right,
        top,
        bottom,
        x,
        y,
    };

    let text = Paint::grey(30);
    canvas.text(
        &figure.title,
        (12.0, 20.0),
        Align::Left,
        TITLE_EM,
        text,
        false,
    );
    for (i, line) in subtitle.iter().enumerate() {
        canvas.text(
            line,
            (12.0, 38.0 + SUBTITLE_LINE * i as f64),
            Align::Left,
            SUBTITLE_EM,
            Paint::grey(90),
            false,
        );
    }
    draw_legend(canvas, &legend, head);
    draw_axes(canvas, &plane, &x_ticks, &y_ticks, upright);
    if let Some(at) = x_axis.break_at() {
        draw_break(canvas, plane.at((at, plane.y.from)));
    }
    let label = |axis: &Axis, factor: Option<String>| {
        factor.map_or_else(
            || axis.label.clone(),
            |factor| format!("{} ({factor})", axis.label),
        )
    };
    canvas.text(
        &label(x_axis, x_factor),
        ((left + right) / 2.0, height - note - 14.0),
        Align::Middle,
        LABEL_EM,
        text,
        false,
    );
    canvas.text(
        &label(&figure.y, y_factor),
        (14.0, (top + bottom) / 2.0),
        Align::Middle,
        LABEL_EM,
        text,
        true,
    );

    let mut taken: Vec<[f64; 4]> = vec![];
    let groups = placed.iter().filter(|p| p.mark.kind == Kind::Bars).count();
    let mut group = 0;
    for p in &placed {
        match p.mark.kind {
            Kind::Line => draw_line(canvas, &plane, p),
            Kind::Points { radius } => draw_points(canvas, &plane, p, radius, &mut taken),
            Kind::Bars => {
                draw_bars(canvas, &plane, p, bar_slot(&placed), group, groups);
                group += 1;
            }
            Kind::VerticalRule(_) | Kind::HorizontalRule(_) | Kind::Span(..) => {
                draw_rule(canvas, &plane, (x_axis, &figure.y), p)
            }
        }
    }
    for p in &placed {
        draw_labels(canvas, &plane, p, &mut taken);
    }
    for p in &placed {
        draw_beyond(canvas, &plane, p);
        draw_rule_label(canvas, &plane, (x_axis, &figure.y), p);
    }
    let count = |points: usize| match points {
        1 => ("1 point".to_owned(), "is", "has", "lies"),
        n => (format!("{n} points"), "are", "have", "lie"),
    };
    let mut notes = vec![];
    if left_out > 0 {
        let (points, is, has, _) = count(left_out);
        notes.push(format!(
            "{points} {has} no place on these axes and {is} not shown"
        ));
    }
    if beyond > 0 {
        let (points, is, _, lies) = count(beyond);
        notes.push(format!(
            "{points} {lies} beyond the ends of the axes and {is} marked at the edge"
        ));
    }
    if !notes.is_empty() {
        canvas.text(
            &notes.join("; "),
            (12.0, height - 10.0),
            Align::Left,
            10.0,
            Paint::grey(90),
            false,
        );
    }
    Ok(())
}

/// A text in lines that are not wider than `width`, if its words let it.
fn wrapped(canvas: &Canvas, text: &str, width: f64) -> Vec<String> {
    let mut lines: Vec<String> = vec![];
    for word in text.split_whitespace() {
        let longer = lines.last().map(|line| format!("{line} {word}"));
        match longer.filter(|line| canvas.text_width(line, SUBTITLE_EM) <= width) {
            Some(longer) => {
                lines.pop();
                lines.push(longer);
            }
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

/// What tells marks apart without their colours.
#[derive(Default)]
struct Looks {
    lines: usize,
    points: usize,
}

impl Looks {
    fn of(&mut self, mark: &Mark) -> (&'static str, Shape) {
        let next = |count: &mut usize| {
            let number = *count;
            // What the legend does not name has no look of its own.
            *count += usize::from(!mark.name.is_empty());
            match mark.name.is_empty() {
                true => 0,
                false => number,
            }
        };
        let shape = |number: usize| Shape::ORDER[number % Shape::ORDER.len()];
        match mark.kind {
            Kind::Line => {
                let number = next(&mut self.lines);
                let dashes = match mark.dashed {
                    true => DASHED,
                    false => DASHES[number % DASHES.len()],
                };
                (dashes, shape(number))
            }
            Kind::Points { .. } => ("", shape(next(&mut self.points))),
            _ if mark.dashed => (DASHED, Shape::Circle),
            _ => ("", Shape::Circle),
        }
    }
}

impl Placed<'_> {
    /// Points of lines and points that lie beyond the ends of the axes.
    fn beyond(&self, x: &Scale, y: &Scale) -> impl Iterator<Item = (usize, (f64, f64))> {
        let shown = matches!(self.mark.kind, Kind::Line | Kind::Points { .. });
        let points = self.points.iter().enumerate();
        points
            .filter_map(|(i, point)| Some((i, (*point)?)))
            .filter(move |(_, point)| shown && !(x.contains(point.0) && y.contains(point.1)))
    }
}

/// Triangles at the edges, where there are points beyond.
fn draw_beyond(canvas: &mut Canvas, plane: &Plane, p: &Placed<'_>) {
    for (i, point) in p.beyond(&plane.x, &plane.y) {
        let shape = match point {
            (_, y) if y > plane.y.to => Shape::Up,
            (_, y) if y < plane.y.from => Shape::Down,
            (x, _) if x > plane.x.to => Shape::Right,
            _ => Shape::Left,
        };
        let at = plane.clamp(plane.at(point));
        canvas.dot(at, 4.0, shape, p.color.into(), &p.mark.hover(i));
    }
}

fn place<'a>(
    (x_axis, y_axis): (&Axis, &Axis),
    mark: &'a Mark,
    color: Color,
    (dashes, shape): (&'static str, Shape),
) -> Placed<'a> {
    let points = mark
        .points
        .iter()
        .map(|&(x, y)| Some((x_axis.place(x)?, y_axis.place(y)?)))
        .collect();
    let intervals = mark
        .intervals
        .iter()
        .map(|interval| {
            let (low, high) = (*interval)?;
            Some((y_axis.place(low)?, y_axis.place(high)?))
        })
        .collect();
    Placed {
        mark,
        color,
        dashes,
        shape,
        points,
        intervals,
    }
}

/// Ticks of the x axis, fewer where their texts would touch.
fn x_ticks(canvas: &Canvas, axis: &Axis, scale: &Scale, width: f64) -> (Vec<Tick>, Option<String>) {
    let mut wanted = (width / 80.0).clamp(2.0, 10.0) as usize;
    loop {
        let (ticks, factor) = scale.ticks(axis, wanted);
        let named: Vec<&Tick> = ticks.iter().filter(|tick| !tick.text.is_empty()).collect();
        let half = |tick: &Tick| canvas.text_width(&tick.text, TICK_EM) / 2.0;
        let touch = named.windows(2).any(|pair| {
            let gap = (scale.fraction(pair[1].at) - scale.fraction(pair[0].at)) * width;
            gap < half(pair[0]) + half(pair[1]) + 8.0
        });
        if !touch || wanted <= 2 || matches!(axis.kind, AxisKind::Categories(_)) {
            return (ticks, factor);
        }
        wanted -= 1;
    }
}

fn draw_axes(
    canvas: &mut Canvas,
    plane: &Plane,
    x_ticks: &[Tick],
    y_ticks: &[Tick],
    upright: bool,
) {
    let (grid, axis, text) = (Paint::grey(228), Paint::grey(110), Paint::grey(60));
    for tick in y_ticks.iter().filter(|tick| plane.y.contains(tick.at)) {
        let (_, y) = plane.at((plane.x.from, tick.at));
        if tick.text.is_empty() {
            canvas.line(&[(plane.left - 3.0, y), (plane.left, y)], axis, 0.8);
        } else {
            canvas.line(&[(plane.left, y), (plane.right, y)], grid, 0.8);
            canvas.line(&[(plane.left - 5.0, y), (plane.left, y)], axis, 1.0);
            canvas.text(
                &tick.text,
                (plane.left - 8.0, y),
                Align::Right,
                TICK_EM,
                text,
                false,
            );
        }
    }
    for tick in x_ticks.iter().filter(|tick| plane.x.contains(tick.at)) {
        let (x, _) = plane.at((tick.at, plane.y.from));
        if tick.text.is_empty() {
            canvas.line(&[(x, plane.bottom), (x, plane.bottom + 3.0)], axis, 0.8);
        } else {
            canvas.line(&[(x, plane.top), (x, plane.bottom)], grid, 0.8);
            canvas.line(&[(x, plane.bottom), (x, plane.bottom + 5.0)], axis, 1.0);
            let align = if upright { Align::Right } else { Align::Middle };
            let down = if upright { 8.0 } else { 15.0 };
            canvas.text(
                &tick.text,
                (x, plane.bottom + down),
                align,
                TICK_EM,
                text,
                upright,
            );
        }
    }
    canvas.line(
        &[
            (plane.left, plane.top),
            (plane.left, plane.bottom),
            (plane.right, plane.bottom),
        ],
        axis,
        1.0,
    );
}

/// Two slanted strokes over the x axis: what is left of them is not to scale.
fn draw_break(canvas: &mut Canvas, (x, y): (f64, f64)) {
    canvas.rectangle((x - 2.0, y - 1.0), (x + 2.0, y + 1.0), Paint::grey(255));
    for x in [x - 2.0, x + 2.0] {
        canvas.line(
            &[(x - 2.0, y + 5.0), (x + 2.0, y - 5.0)],
            Paint::grey(110),
            1.0,
        );
    }
}

fn draw_line(canvas: &mut Canvas, plane: &Plane, p: &Placed<'_>) {
    // A band, broken where a point or its interval has no place.
    let with_band: Vec<Option<(f64, f64, f64)>> = p
        .points
        .iter()
        .zip(&p.intervals)
        .map(|(point, interval)| {
            point
                .zip(*interval)
                .map(|((x, _), (low, high))| (x, low, high))
        })
        .collect();
    for run in with_band.split(Option::is_none) {
        let run: Vec<(f64, f64, f64)> = run.iter().flatten().copied().collect();
        let high = run
            .iter()
            .map(|&(x, _, high)| plane.clamp(plane.at((x, high))));
        let low = run
            .iter()
            .rev()
            .map(|&(x, low, _)| plane.clamp(plane.at((x, low))));
        let outline: Vec<(f64, f64)> = high.chain(low).collect();
        if outline.len() > 2 {
            canvas.polygon(&outline, Paint::from(p.color).alpha(0.18));
        }
    }
    for run in p.points.split(Option::is_none) {
        let pixels: Vec<(f64, f64)> = run.iter().flatten().map(|&point| plane.at(point)).collect();
        stroke(canvas, plane, &pixels, p, LINE);
    }
    let place = |i: usize| p.points.get(i).copied().flatten();
    for (i, point) in p.points.iter().enumerate() {
        let alone = place(i.wrapping_sub(1)).is_none() && place(i + 1).is_none();
        let Some(pixel) = point
            .map(|point| plane.at(point))
            .filter(|_| p.mark.dots || alone)
        else {
            continue;
        };
        if plane.clamp(pixel) == pixel {
            canvas.dot(pixel, 3.0, p.shape, p.color.into(), &p.mark.hover(i));
        }
    }
}

/// A polyline cut off at the plane's edges.
fn stroke(canvas: &mut Canvas, plane: &Plane, pixels: &[(f64, f64)], p: &Placed<'_>, width: f64) {
    let mut inside: Vec<(f64, f64)> = vec![];
    let mut runs = vec![];
    for pair in pixels.windows(2) {
        match plane.clip(pair[0], pair[1]) {
            Some([from, to]) => {
                if inside.last() != Some(&from) {
                    runs.push(std::mem::take(&mut inside));
                    inside.push(from);
                }
                inside.push(to);
            }
            None => runs.push(std::mem::take(&mut inside)),
        }
    }
    runs.push(inside);
    for run in runs {
        canvas.dashed_line(&run, p.color.into(), width, p.dashes);
    }
}

fn draw_points(
    canvas: &mut Canvas,
    plane: &Plane,
    p: &Placed<'_>,
    radius: f64,
    taken: &mut Vec<[f64; 4]>,
) {
    draw_intervals(canvas, plane, p, 0.0);
    // Many points are drawn lighter, so that crowds show.
    let alpha = if p.points.len() > 400 { 0.35 } else { 0.8 };
    for (i, point) in p.points.iter().enumerate() {
        let Some(pixel) = point.map(|point| plane.at(point)) else {
            continue;
        };
        if plane.clamp(pixel) == pixel {
            let paint = Paint::from(p.color).alpha(alpha);
            canvas.dot(pixel, radius, p.shape, paint, &p.mark.hover(i));
            if p.points.len() <= 400 {
                taken.push([
                    pixel.0 - radius,
                    pixel.1 - radius,
                    pixel.0 + radius,
                    pixel.1 + radius,
                ]);
            }
        }
    }
}

/// The width of a group of bars, in units of the axis: the smallest gap between their places.
fn bar_slot(placed: &[Placed<'_>]) -> f64 {
    let bars = placed.iter().filter(|p| p.mark.kind == Kind::Bars);
    let mut xs: Vec<f64> = bars
        .flat_map(|p| &p.points)
        .flatten()
        .map(|point| point.0)
        .collect();
    xs.sort_by(f64::total_cmp);
    let gap = xs
        .windows(2)
        .map(|pair| pair[1] - pair[0])
        .filter(|gap| *gap > 0.0)
        .fold(f64::INFINITY, f64::min);
    if gap.is_finite() { gap } else { 1.0 }
}

fn draw_bars(
    canvas: &mut Canvas,
    plane: &Plane,
    p: &Placed<'_>,
    slot: f64,
    group: usize,
    groups: usize,
) {
    let width = 0.8 * slot / groups as f64;
    let shift = (group as f64 - (groups as f64 - 1.0) / 2.0) * width;
    let foot = if plane.y.contains(0.0) && plane.y.fraction(0.0) >= 0.0 {
        0.0
    } else {
        plane.y.from
    };
    for &(x, y) in p.points.iter().flatten() {
        let from = plane.clamp(plane.at((x + shift - 0.46 * width, foot)));
        let to = plane.clamp(plane.at((x + shift + 0.46 * width, y)));
        canvas.rectangle(from, to, Paint::from(p.color).alpha(0.85));
    }
    draw_intervals(canvas, plane, p, shift);
}

fn draw_intervals(canvas: &mut Canvas, plane: &Plane, p: &Placed<'_>, shift: f64) {
    for (point, interval) in p.points.iter().zip(&p.intervals) {
        let Some(((x, _), (low, high))) = point.zip(*interval) else {
            continue;
        };
        let (low, high) = (plane.at((x + shift, low)), plane.at((x + shift, high)));
        if let Some([from, to]) = plane.clip(low, high) {
            let paint = if p.mark.kind == Kind::Bars {
                Paint::grey(40)
            } else {
                p.color.into()
            };
            canvas.line(&[from, to], paint, 1.2);
            for end in [from, to] {
                canvas.line(&[(end.0 - 3.0, end.1), (end.0 + 3.0, end.1)], paint, 1.2);
            }
        }
    }
}

/// The name of a rule beside it, over whatever lies there.
fn draw_rule_label(
    canvas: &mut Canvas,
    plane: &Plane,
    (x_axis, y_axis): (&Axis, &Axis),
    p: &Placed<'_>,
) {
    let width = canvas.text_width(&p.mark.name, TICK_EM);
    let left = match p.mark.kind {
        _ if p.mark.name.is_empty() => None,
        Kind::VerticalRule(x) => x_axis.place(x).filter(|x| plane.x.contains(*x)).map(|x| {
            let (x, _) = plane.at((x, plane.y.from));
            let right = x + width + 6.0 < plane.right;
            let left = if right { x + 4.0 } else { x - 4.0 - width };
            (left, plane.top + 8.0)
        }),
        Kind::HorizontalRule(y) => y_axis.place(y).filter(|y| plane.y.contains(*y)).map(|y| {
            let (_, y) = plane.at((plane.x.from, y));
            (plane.right - 4.0 - width, y - 9.0)
        }),
        _ => None,
    };
    let Some((x, y)) = left else {
        return;
    };
    let half = TICK_EM / 2.0 + 1.0;
    let behind = Paint::grey(255).alpha(0.8);
    canvas.rectangle((x - 2.0, y - half), (x + width + 2.0, y + half), behind);
    canvas.text(
        &p.mark.name,
        (x, y),
        Align::Left,
        TICK_EM,
        Paint::grey(60),
        false,
    );
}

fn draw_rule(canvas: &mut Canvas, plane: &Plane, (x_axis, y_axis): (&Axis, &Axis), p: &Placed<'_>) {
    let text = Paint::grey(80);
    match p.mark.kind {
        Kind::VerticalRule(x) => {
            let Some(x) = x_axis.place(x).filter(|x| plane.x.contains(*x)) else {
                return;
            };
            let (x, _) = plane.at((x, plane.y.from));
            stroke(canvas, plane, &[(x, plane.bottom), (x, plane.top)], p, 1.3);
        }
        Kind::HorizontalRule(y) => {
            let Some(y) = y_axis.place(y).filter(|y| plane.y.contains(*y)) else {
                return;
            };
            let (_, y) = plane.at((plane.x.from, y));
            stroke(canvas, plane, &[(plane.left, y), (plane.right, y)], p, 1.3);
        }
        Kind::Span(from, to) => {
            let (Some(from), Some(to)) = (x_axis.place(from), x_axis.place(to)) else {
                return;
            };
            let (from, to) = (
                plane.clamp(plane.at((from, plane.y.to))),
                plane.clamp(plane.at((to, plane.y.from))),
            );
            canvas.rectangle(from, to, Paint::from(p.color).alpha(0.15));
            canvas.text(
                &p.mark.name,
                ((from.0 + to.0) / 2.0, plane.top + 8.0),
                Align::Middle,
                TICK_EM,
                text,
                false,
            );
        }
        _ => {}
    }
}

/// Texts beside points: at the first of eight places that touches nothing, else where it touches least.
fn draw_labels(canvas: &mut Canvas, plane: &Plane, p: &Placed<'_>, taken: &mut Vec<[f64; 4]>) {
    let gap = if let Kind::Points { radius } = p.mark.kind {
        radius + 3.0
    } else {
        6.0
    };
    for (point, label) in p.points.iter().zip(&p.mark.labels) {
        let Some(point) = point.filter(|_| !label.is_empty()) else {
            continue;
        };
        let (x, y) = plane.at(point);
        if plane.clamp((x, y)) != (x, y) {
            continue;
        }
        let (w, h) = (canvas.text_width(label, TICK_EM), TICK_EM);
        let places = [
            (gap, 0.0),
            (-gap - w, 0.0),
            (-w / 2.0, -gap - h / 2.0),
            (-w / 2.0, gap + h / 2.0),
            (gap, -h),
            (gap, h),
            (-gap - w, -h),
            (-gap - w, h),
        ];
        let area = |(dx, dy): (f64, f64)| [x + dx, y + dy - h / 2.0, x + dx + w, y + dy + h / 2.0];
        let cost = |place: (f64, f64)| {
            let own = area(place);
            let outside = own[0] < plane.left
                || own[2] > plane.right
                || own[1] < plane.top
                || own[3] > plane.bottom;
            taken.iter().map(|other| overlap(&own, other)).sum::<f64>()
                + if outside { 1e6 } else { 0.0 }
        };
        let best = places
            .into_iter()
            .min_by(|a, b| cost(*a).total_cmp(&cost(*b)))
            .unwrap_or((gap, 0.0));
        taken.push(area(best));
        canvas.text(
            label,
            (x + best.0, y + best.1),
            Align::Left,
            TICK_EM,
            Paint::grey(30),
            false,
        );
    }
}

fn overlap(a: &[f64; 4], b: &[f64; 4]) -> f64 {
    (a[2].min(b[2]) - a[0].max(b[0])).max(0.0) * (a[3].min(b[3]) - a[1].max(b[1])).max(0.0)
}

/// An entry of the legend, with the left end of its sign.
struct LegendEntry<'p> {
    x: f64,
    mark: &'p Mark,
    color: Color,
    dashes: &'static str,
    shape: Shape,
}

fn legend_rows<'p>(
    canvas: &Canvas,
    placed: &[Placed<'p>],
    width: f64,
) -> Vec<Vec<LegendEntry<'p>>> {
    let mut rows: Vec<Vec<LegendEntry<'p>>> = vec![];
    let mut x = f64::INFINITY;
    for p in placed {
        let rule = matches!(
            p.mark.kind,
            Kind::VerticalRule(_) | Kind::HorizontalRule(_) | Kind::Span(..)
        );
        if p.mark.name.is_empty() || rule {
            continue;
        }
        let wide = 24.0 + 6.0 + canvas.text_width(&p.mark.name, TICK_EM) + 18.0;
        if x + wide > width + 12.0 {
            rows.push(vec![]);
            x = 12.0;
        }
        if let Some(row) = rows.last_mut() {
            row.push(LegendEntry {
                x,
                mark: p.mark,
                color: p.color,
                dashes: p.dashes,
                shape: p.shape,
            });
        }
        x += wide;
    }
    rows
}

fn draw_legend(canvas: &mut Canvas, rows: &[Vec<LegendEntry<'_>>], head: f64) {
    for (i, row) in rows.iter().enumerate() {
        let y = 42.0 + head + 20.0 * i as f64;
        for entry in row {
            let paint = Paint::from(entry.color);
            match entry.mark.kind {
                Kind::Points { .. } => {
                    canvas.dot((entry.x + 12.0, y), 4.0, entry.shape, paint, "");
                }
                Kind::Bars => canvas.rectangle(
                    (entry.x + 6.0, y - 5.0),
                    (entry.x + 18.0, y + 5.0),
                    paint.alpha(0.85),
                ),
                _ => {
                    if !entry.mark.intervals.is_empty() {
                        canvas.rectangle(
                            (entry.x, y - 5.0),
                            (entry.x + 24.0, y + 5.0),
                            paint.alpha(0.18),
                        );
                    }
                    let line = [(entry.x, y), (entry.x + 24.0, y)];
                    canvas.dashed_line(&line, paint, LINE, entry.dashes);
                    if entry.mark.dots {
                        canvas.dot((entry.x + 12.0, y), 3.0, entry.shape, paint, "");
                    }
                }
            }
            canvas.text(
                &entry.mark.name,
                (entry.x + 30.0, y),
                Align::Left,
                TICK_EM,
                Paint::grey(40),
                false,
            );
        }
    }
}
