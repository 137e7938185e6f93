//! The rank-frequency curve with fit, band and elbow.

use job_kit::{
    OutputDir, RunRecord,
    plot::{Axis, Color, Figure, Mark},
};
use longtail_corpus::{Band, RankCurve};

/// Points drawn of the curve: evenly spaced in log rank, close enough for a picture.
const POINTS: usize = 1500;

/// The name of the figure's files.
pub(crate) const STEM: &str = "rank-frequency";

/// Draws `rank-frequency.svg` and `.png`; `header` says which band it is.
pub(crate) fn rank_frequency(
    out: &OutputDir,
    curve: &RankCurve,
    (band, header): (&Band, &str),
    record: &mut RunRecord,
) -> anyhow::Result<()> {
    figure(curve, band, header).write(out, STEM, record)?;
    Ok(())
}

fn figure(curve: &RankCurve, band: &Band, header: &str) -> Figure {
    let ranks = curve.len();
    let mut shown: Vec<usize> = (0..=POINTS)
        .map(|k| (ranks as f64).powf(k as f64 / POINTS as f64).round() as usize)
        .collect();
    // The cliff at the rare end is a few ranks wide: the logarithm would step over it.
    shown.extend((0..=POINTS).map(|k| ranks - k * (ranks / 4) / POINTS));
    shown.sort_unstable();
    shown.dedup();
    let points = shown
        .into_iter()
        .filter(|rank| (1..=ranks).contains(rank))
        .map(|rank| (rank as f64, curve.q()[rank - 1]));
    let first = curve.q().partition_point(|&q| q > band.max_frequency) + 1;
    let last = curve.q().partition_point(|&q| q >= band.min_frequency);
    let fit = [1, ranks].map(|rank| (rank as f64, band.zipf.at(rank as f64)));
    let floor = curve.q()[ranks - 1];
    let top = curve.q()[0].max(fit[0].1);
    let mut marks = vec![
        Mark::span("band", first as f64, last as f64),
        Mark::line(
            &format!(
                "Zipf's law, exponent {:.2} (first {} ranks)",
                band.zipf.exponent, band.zipf.ranks
            ),
            fit,
        )
        .dashed()
        .color(Color::Vermilion),
        Mark::line("tokens", points).color(Color::Blue),
    ];
    if let Some(elbow) = band.elbow {
        marks.push(
            Mark::points(
                &format!("elbow, rank {}", elbow.rank),
                [(elbow.rank as f64, elbow.frequency)],
            )
            .radius(5.0)
            .color(Color::Black),
        );
    }
    let title = format!(
        "Token frequency by rank; the {header} holds {} of {ranks} tokens, {:.1} % of text",
        band.tokens,
        band.mass * 100.0
    );
    Figure::new(
        &title,
        Axis::log("rank").range(1.0, ranks as f64),
        Axis::log("share of all tokens").range(floor / 2.0, top * 2.0),
    )
    .marks(marks)
}
