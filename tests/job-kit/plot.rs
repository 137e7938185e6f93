//! Figures as SVG and PNG, and the report page.

use job_kit::{
    OutputDir, RunRecord,
    plot::{Axis, Color, Figure, Mark, PlotError},
    report::{Cell, Grid, Report, Section},
};

/// Something of everything.
fn figures() -> Vec<(&'static str, Figure)> {
    let steps = [1.0, 64.0, 512.0, 1000.0, 2000.0, 4000.0];
    let rare = [12.1, 12.0, 10.2, 9.1, 8.3, 7.9];
    let common = [12.0, 11.2, 7.5, 6.1, 5.8, 5.6];
    let line = |name, values: [f64; 6], half: f64| {
        Mark::line(name, steps.into_iter().zip(values))
            .intervals(values.map(|v| (v - half, v + half)))
            .with_dots()
    };
    let curve = Figure::new(
        "Surprisal over training",
        Axis::log("training step"),
        Axis::linear("mean surprisal (bits)"),
    )
    .mark(line("rare words", rare, 0.4))
    .mark(line("rare words, neurons ablated", rare.map(|v| v + 0.6), 0.3).dashed())
    .mark(line("common words", common, 0.2))
    .mark(Mark::vertical("onset", 300.0));
    let noise = |i: usize| ((i * 7919 + 13) % 1000) as f64 / 1000.0;
    let cloud = (0..256).map(|i| (10f64.powf(-6.0 + 4.0 * noise(i)), noise(i * 31 + 7)));
    let selected = [(8e-3, 0.91), (9e-3, 0.88), (4e-3, 0.95), (8.5e-3, 0.90)];
    let scatter = Figure::new(
        "Mediated share against |KL change|",
        Axis::log("|KL change| (nats)"),
        Axis::linear("mediated share").range(0.0, 1.0),
    )
    .mark(
        Mark::points("all neurons", cloud.chain([(0.0, 0.5), (1e-3, f64::NAN)]))
            .color(job_kit::plot::Color::Grey),
    )
    .mark(
        Mark::points("selected", selected)
            .labels(["3.17", "3.201", "3.44", "3.9"])
            .radius(4.5),
    );
    let sets = Axis::categories("", ["base", "zero", "mean", "matched random"]);
    let bars = Figure::new(
        "Change of loss by intervention",
        sets,
        Axis::linear("change of loss (nats)"),
    )
    .mark(
        Mark::bars(
            "rare targets",
            [0.0, 2.1e-5, -1.4e-5, 0.3e-5]
                .into_iter()
                .enumerate()
                .map(|(i, y)| (i as f64, y)),
        )
        .intervals([
            (0.0, 0.0),
            (1.8e-5, 2.4e-5),
            (-1.9e-5, -0.9e-5),
            (-0.1e-5, 0.7e-5),
        ]),
    )
    .mark(Mark::bars(
        "common targets",
        [0.0, 0.4e-5, -0.2e-5, 0.1e-5]
            .into_iter()
            .enumerate()
            .map(|(i, y)| (i as f64, y)),
    ))
    .mark(Mark::horizontal("noise floor", 1e-5));
    let ranks = (0..300).map(|i| 10f64.powf(i as f64 / 64.0));
    let zipf = Figure::new(
        "Rank and frequency",
        Axis::log("rank"),
        Axis::log("frequency"),
    )
    .mark(Mark::span("long tail", 3000.0, 48_064.0))
    .mark(Mark::line(
        "tokens",
        ranks.clone().map(|r| (r, 0.05 / r.powf(0.95))),
    ))
    .mark(Mark::line("fit", ranks.map(|r| (r, 0.06 / r))).dashed())
    .mark(Mark::vertical("elbow", 48_064.0));
    let many = Axis::categories("step", (0..24).map(|i| format!("step{}", i * 1000)));
    let overlap = Figure::new(
        "Overlap with the final selection",
        many,
        Axis::linear("Jaccard"),
    )
    .mark(Mark::bars(
        "",
        (0..24).map(|i| (f64::from(i), f64::from(i) / 24.0)),
    ));
    vec![
        ("curve", curve),
        ("scatter", scatter),
        ("bars", bars),
        ("zipf", zipf),
        ("overlap", overlap),
    ]
}

/// Walks the tags of an XML document: each is closed, in order, and attributes are quoted.
fn well_formed(xml: &str) -> Result<(), String> {
    let mut open = vec![];
    for piece in xml.split('<').skip(1) {
        let (tag, text) = piece
            .split_once('>')
            .ok_or_else(|| format!("`<{piece}` is not closed"))?;
        if text.contains('&')
            && !text.split('&').skip(1).all(|entity| {
                entity
                    .split_once(';')
                    .is_some_and(|(name, _)| name.len() < 6)
            })
        {
            return Err(format!("bare & in `{text}`"));
        }
        if let Some(name) = tag.strip_prefix('/') {
            if open.pop() != Some(name) {
                return Err(format!("`</{name}>` closes nothing"));
            }
            continue;
        }
        if tag.matches('"').count() % 2 == 1 {
            return Err(format!("odd quotes in `{tag}`"));
        }
        if !tag.ends_with('/') {
            open.push(tag.split_whitespace().next().unwrap_or_default());
        }
    }
    if open.is_empty() {
        Ok(())
    } else {
        Err(format!("{open:?} left open"))
    }
}

#[test]
fn svg_is_well_formed_and_says_what_it_shows() {
    for (name, figure) in figures() {
        let svg = figure.to_svg().unwrap();
        well_formed(&svg).unwrap_or_else(|why| unreachable!("{name}: {why}"));
        assert!(
            svg.starts_with("<svg width=\"720\" height=\"440\""),
            "{name}"
        );
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{name}");
    }
    let svg = figures()[0].1.to_svg().unwrap();
    for text in [
        "Surprisal over training",
        "training step",
        "mean surprisal (bits)",
        "rare words, neurons ablated",
        "1,000",
        "onset",
    ] {
        assert!(svg.contains(text), "{text}");
    }
}

#[test]
fn markup_in_texts_is_escaped() {
    let figure = Figure::new("a < b & \"c\"", Axis::linear("<x>"), Axis::linear("y"))
        .mark(Mark::points("<i>", [(0.0, 1.0)]).labels(["<&>"]));
    let svg = figure.to_svg().unwrap();
    well_formed(&svg).unwrap();
    assert!(svg.contains("&lt;x&gt;") && svg.contains("&lt;&amp;&gt;"));
}

#[test]
fn points_without_a_place_are_counted() {
    let svg = figures()[1].1.to_svg().unwrap();
    assert!(svg.contains("2 points have no place on these axes and are not shown"));
}

/// A point says what it is and its values while the mouse is over it.
#[test]
fn points_say_what_they_are() {
    let svg = |mark: Mark| {
        let figure = Figure::new("t", Axis::linear("x"), Axis::linear("y"));
        figure.mark(mark).to_svg().unwrap()
    };
    let points = || [(0.5, 1234.5), (2.0, -3.0)];
    let named = svg(Mark::points("all", points()).names(["3.17", "<3.2>"]));
    assert!(
        named.contains("<title>3.17: 0.5000, 1,234</title>"),
        "{named}"
    );
    assert!(
        named.contains("<title>&lt;3.2&gt;: 2.000, \u{2212}3.000</title>"),
        "{named}"
    );
    assert!(svg(Mark::line("base", points()).with_dots()).contains("<title>base: 0.5000"));
    // Thousands of points without names stay small.
    let crowd = || (0..1000).map(|i| (f64::from(i), 1.0));
    assert!(!svg(Mark::points("all", crowd())).contains("<title>"));
    let names = (0..1000).map(|i| format!("3.{i}"));
    assert_eq!(
        svg(Mark::points("all", crowd()).names(names))
            .matches("<title>")
            .count(),
        1000
    );
}

#[test]
fn nothing_to_show_is_an_error() {
    let figure = Figure::new("none", Axis::log("x"), Axis::linear("y"))
        .mark(Mark::points("a", [(0.0, 1.0), (-1.0, 1.0)]));
    assert!(matches!(figure.to_svg(), Err(PlotError::Empty { title }) if title == "none"));
}

#[test]
fn degenerate_ranges_are_drawn() {
    for points in [
        vec![(1.0, 1.0)],
        vec![(1.0, 0.0), (1.0, 0.0)],
        vec![(1e300, 1e-300), (-1e300, 1e-300)],
        vec![(5.0, -3.0), (5.0, 7.0)],
    ] {
        let figure = Figure::new("t", Axis::linear("x"), Axis::linear("y"))
            .mark(Mark::line("a", points.clone()))
            .mark(Mark::points("b", points.clone()));
        let svg = figure.to_svg().unwrap();
        assert!(!svg.contains("NaN"), "{points:?}");
    }
}

#[test]
fn png_has_text_and_colour() {
    let dir = tempfile::tempdir().unwrap();
    let out = OutputDir::create(
        dir.path(),
        "job",
        &serde_json::Value::Null,
        Figure::outputs("curve"),
    )
    .unwrap();
    let mut record = RunRecord::new("job", "0", &serde_json::Value::Null);
    assert!(
        figures()[0]
            .1
            .write(&out, "curve", &mut record)
            .unwrap()
            .is_some()
    );
    assert!(out.join("curve.svg").exists());
    let decoder = png::Decoder::new(std::fs::File::open(out.join("curve.png")).unwrap());
    let mut reader = decoder.read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size()];
    let info = reader.next_frame(&mut pixels).unwrap();
    assert_eq!((info.width, info.height), (1440, 880));
    let channels = info.color_type.samples();
    let pixel = |x: usize, y: usize| &pixels[(y * 1440 + x) * channels..][..3];
    assert_eq!(pixel(1438, 878), [255, 255, 255]);
    // The title stands in the upper left corner, and is ink on paper.
    let ink = (20..60)
        .flat_map(|y| (24..400).map(move |x| (x, y)))
        .filter(|&(x, y)| pixel(x, y)[0] < 100)
        .count();
    assert!(ink > 500, "{ink} dark pixels where the title should be");
    // The first mark is blue (0, 114, 178).
    assert!(
        pixels
            .chunks(channels)
            .filter(|p| p[..3] == [0, 114, 178])
            .count()
            > 1000
    );
}

#[test]
fn a_report_holds_everything_it_shows() {
    let rows = [
        ("3.17", 0.012_345, Some(0.91), 12_345),
        ("3.201", 2.5e-7, None, 7),
    ];
    let grid = Grid::of(rows)
        .caption("The largest effects")
        .column("neuron", |row| row.0)
        .column("total effect (nats)", |row| row.1)
        .column("mediated share", |row| Cell::percent(row.2))
        .column("tokens", |row| row.3);
    let mut report = Report::new("Neurons of the long tail")
        .fact("model", "`tiny-neox`, step 4000")
        .fact("rows", 94_720);
    report = report.section(
        Section::new("Largest effects")
            .text("Means over kept positions.\n\nA second paragraph.")
            .grid(grid),
    );
    for (name, figure) in figures() {
        report = report.section(
            Section::new(name)
                .figure(&figure, "What it shows, with `code`.")
                .unwrap(),
        );
    }
    let html = report.to_html();
    well_formed(
        html.strip_prefix("<!doctype html>")
            .unwrap()
            .replace("<meta charset=\"utf-8\">", "")
            .replace("content=\"width=device-width\">", "/>")
            .as_str(),
    )
    .unwrap();
    assert_eq!(html.matches("<svg").count(), 5);
    assert_eq!(html.matches("<p>").count(), 2);
    for outside in ["<script", "http://", "https://", "src=", "@import", "url("] {
        assert!(
            !html
                .replace("xmlns=\"http://www.w3.org/2000/svg\"", "")
                .contains(outside),
            "{outside}"
        );
    }
    assert!(
        html.contains("<td class=\"n\">12,345</td>")
            && html.contains("<td class=\"n\">91.0 %</td>")
            && html.contains("<td class=\"n\">–</td>")
    );
    // To look at: `JOB_KIT_SHOW=/tmp/show cargo test -p job-kit --test plot`.
    if let Some(folder) = std::env::var_os("JOB_KIT_SHOW") {
        job_kit::write_file(std::path::Path::new(&folder).join("report.html"), &html).unwrap();
        for (name, figure) in figures() {
            let path = std::path::Path::new(&folder).join(format!("{name}.svg"));
            job_kit::write_file(&path, figure.to_svg().unwrap()).unwrap();
            let picture = path.with_extension("png");
            job_kit::write_file(picture, figure.to_png().unwrap()).unwrap();
        }
    }
}

/// Whatever the values, a figure is drawn or left out with a warning; neither is an error, and no file is left half.
#[test]
fn figures_of_odd_values_are_drawn_or_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let long = "a very long name ".repeat(40);
    type Case = (&'static str, Vec<(f64, f64)>, bool);
    let cases: Vec<Case> = vec![
        ("none", vec![], false),
        ("step-0", vec![(0.0, 3.0)], false),
        ("nan", vec![(1.0, f64::NAN), (f64::INFINITY, 1.0)], false),
        ("one", vec![(512.0, 3.0)], true),
        (
            "step-0-and-more",
            vec![(0.0, 3.0), (1.0, 2.0), (8.0, 1.0)],
            true,
        ),
        ("equal", vec![(2.0, 5.0); 4], true),
        ("huge", vec![(1.0, -1e300), (1e300, 1e300)], true),
        ("tiny", vec![(1e-300, 1e-300), (1e-299, 2e-300)], true),
        ("close", vec![(1.0, 1.0), (1.0 + 1e-15, 1.0 + 1e-15)], true),
        (
            "largest",
            vec![(f64::MAX, f64::MAX), (f64::MIN_POSITIVE, f64::MIN)],
            false,
        ),
        ("denormal", vec![(5e-324, 5e-324)], true),
    ];
    let names = cases.iter().flat_map(|(name, ..)| Figure::outputs(name));
    let out = OutputDir::create(dir.path(), "job", &serde_json::Value::Null, names).unwrap();
    for (name, points, drawn) in cases {
        let mut record = RunRecord::new("job", "0", &serde_json::Value::Null);
        let ends = points
            .iter()
            .map(|&(_, y)| Some((y, y)).filter(|_| y > 2.0));
        let figure = Figure::new(&long, Axis::log(&long), Axis::linear(&long))
            .mark(
                Mark::line(&long, points.clone())
                    .intervals(ends.clone())
                    .with_dots(),
            )
            .mark(
                Mark::points(&long, points.clone())
                    .intervals(ends)
                    .labels(points.iter().map(|_| &*long)),
            )
            .mark(Mark::horizontal(&long, 0.0));
        assert_eq!(
            figure.write(&out, name, &mut record).unwrap().is_some(),
            drawn,
            "{name}"
        );
        assert_eq!(out.join(format!("{name}.svg")).exists(), drawn, "{name}");
        assert_eq!(record.warnings().len(), usize::from(!drawn), "{name}");
        let bars = Figure::new(
            &long,
            Axis::categories("", [long.clone()]),
            Axis::linear("y"),
        )
        .mark(Mark::bars(&long, points.iter().map(|&(_, y)| (0.0, y))));
        if let Ok(svg) = bars.to_svg() {
            assert!(!svg.contains("NaN"), "{name}");
        }
    }
}

/// Training steps are shown on a logarithmic axis; step 0 has a place of its own there.
#[test]
fn step_0_is_shown_on_an_axis_of_steps() {
    for steps in [&[0.0][..], &[0.0, 512.0], &[0.0, 1.0, 64.0, 143_000.0]] {
        let figure = Figure::new("t", Axis::steps("training step"), Axis::linear("y"))
            .mark(Mark::line("base", steps.iter().map(|step| (*step, 1.0))).with_dots());
        assert_eq!(figure.not_shown(), 0, "{steps:?}");
        let svg = figure.to_svg().unwrap();
        // One dot more stands in the legend.
        assert!(svg.matches("<circle").count() >= steps.len(), "{steps:?}");
        assert!(svg.contains(">0</text>"), "{steps:?}: no label 0");
        assert!(!svg.contains("have no place") && !svg.contains("NaN"));
    }
}

/// Without colours too, lines differ in their dashes and points in their shapes.
#[test]
fn marks_are_told_apart_without_colour() {
    const LONG: &str = "n = 2, and a second line of words that do not fit into the first one, because there are far too many of them, and longer ones among them, for the whole width of a figure";
    let line = |i: usize| {
        let points = [1.0, 2.0].map(|x| (x, x + i as f64));
        Mark::line(&format!("line {i}"), points).color(Color::Blue)
    };
    let figure = Figure::new("dashes", Axis::linear("x"), Axis::linear("y"))
        .subtitle(LONG)
        .marks((0..4).map(line));
    let svg = figure.to_svg().unwrap();
    for dashes in ["9 3", "2 2.5", "9 3 2 3"] {
        let own = format!("stroke-dasharray=\"{dashes}\"");
        // In the figure and in its legend.
        assert_eq!(svg.matches(&own).count(), 2, "{dashes}");
    }
    let said = |text: &str| svg.lines().filter(|line| line.contains(text)).count();
    assert_eq!((said("n = 2"), said("of a figure")), (1, 1));
    assert_eq!(said(LONG), 0);
}

/// A far value does not swallow the rest: it is marked at the edge, and counted.
#[test]
fn far_points_are_marked_at_the_edge() {
    let points = (0..50)
        .map(|i| (f64::from(i), f64::from(i % 5)))
        .chain([(25.0, 1e6)]);
    let figure = |y: Axis| {
        let mark = Mark::points("", points.clone());
        let figure = Figure::new("far", Axis::linear("x"), y).mark(mark);
        figure.to_svg().unwrap()
    };
    let all = figure(Axis::linear("y"));
    assert!(!all.contains("marked at the edge") && all.contains(">1,000,000</text>"));
    let bulk = figure(Axis::linear("y").bulk());
    assert!(bulk.contains("1 point lies beyond the ends of the axes and is marked at the edge"));
    assert!(!bulk.contains(">1,000,000</text>"));
}
