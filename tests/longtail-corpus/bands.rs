//! Bands, Zipf's law and the elbow, against the Python package and by their own laws.
#![expect(clippy::unwrap_used, reason = "test helpers fail the test")]

use longtail_corpus::{
    BandError, BandReading, BandSpec, BandWarning, Bound, Frequencies, TokenCounts,
};
use proptest::prelude::*;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data");
const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden");

/// Tokens of Pythia's tokenizer, rows of its vocabulary.
const PYTHIA: (usize, usize) = (50_277, 50_304);

fn pythia() -> Frequencies {
    Frequencies::add_one(
        &TokenCounts::read(format!("{DATA}/pythia/unigrams.npy"), PYTHIA.1).unwrap(),
    )
}

fn tiny_neox() -> Frequencies {
    Frequencies::add_one(
        &TokenCounts::read(format!("{DATA}/tiny-neox/train-unigrams.npy"), 4096).unwrap(),
    )
}

fn spec(lower: &str, upper: &str, reading: BandReading) -> BandSpec {
    BandSpec::default()
        .with_lower(lower.parse::<Bound>().unwrap())
        .with_upper(upper.parse::<Bound>().unwrap())
        .with_reading(reading)
}

#[track_caller]
fn assert_close(what: &str, got: f64, expected: f64, rtol: f64) {
    assert!(
        (got - expected).abs() <= rtol * expected.abs(),
        "{what}: {got:e}, expected {expected:e}"
    );
}

/// `tests/golden/zipf-pythia.json`: the Python package on the Pile counts, in f32, hence 1e-6.
///
/// Its f32 thresholds are off by one unit in the last place, so that tokens exactly on a bound may fall out: the band it counts lies
/// between ours without its bounds and ours with them.
#[test]
fn pythia_bands_match_the_python_package() {
    let golden: serde_json::Value =
        serde_json::from_slice(&std::fs::read(format!("{GOLDEN}/zipf-pythia.json")).unwrap())
            .unwrap();
    let frequencies = pythia();
    for (name, lower, upper) in [
        ("min=elbow,max=20.0,window=2000", "elbow", "20"),
        ("min=0.0,max=50.0,window=2000", "0", "50"),
        ("min=20.0,max=50.0,window=2000", "20", "50"),
    ] {
        let expected = &golden[name];
        let number = |key: &str| expected[key].as_f64().unwrap();
        let band = spec(lower, upper, BandReading::Liu2025)
            .resolve(&frequencies, PYTHIA.0)
            .unwrap();
        assert_close(
            "min_frequency",
            band.min_frequency,
            number("min_frequency"),
            1e-6,
        );
        assert_close(
            "max_frequency",
            band.max_frequency,
            number("max_frequency"),
            1e-6,
        );
        assert_close("exponent", band.zipf.exponent, number("zipf_alpha"), 1e-6);
        assert_close("r", band.zipf.r, number("zipf_r"), 1e-6);
        let inside = |q: f64| band.min_frequency < q && q < band.max_frequency;
        let strictly: Vec<f64> = frequencies
            .q()
            .iter()
            .copied()
            .filter(|&q| inside(q))
            .collect();
        let tokens = expected["tokens_in_band"].as_u64().unwrap() as usize;
        assert!(
            (strictly.len()..=band.tokens).contains(&tokens),
            "{name}: {} to {} tokens, expected {tokens}",
            strictly.len(),
            band.tokens
        );
        let mass = number("mass_in_band");
        assert!(
            strictly.iter().sum::<f64>() - 1e-6 <= mass && mass <= band.mass + 1e-6,
            "{name}: mass {}, expected {mass}",
            band.mass
        );
        assert_eq!(
            band.warnings
                .iter()
                .any(|w| matches!(w, BandWarning::MostOfTheMass { .. })),
            mass > 0.5,
            "{name}"
        );
        if lower == "elbow" {
            let elbow = band.elbow.unwrap();
            // Its `rank` is `int(exp(ln 48065))`, which rounding makes 48064; its `index` counts from 0.
            assert_eq!(
                elbow.rank as f64,
                expected["elbow"]["index"].as_f64().unwrap() + 1.0
            );
            assert_close(
                "slope_before",
                elbow.slope_before,
                expected["elbow"]["slope_before"].as_f64().unwrap(),
                1e-6,
            );
            assert_close(
                "slope_after",
                elbow.slope_after,
                expected["elbow"]["slope_after"].as_f64().unwrap(),
                1e-6,
            );
        }
    }
}

/// `tail` in `tests/golden/tiny-neox/ablation-inputs.json`: the Python package, bounds `elbow` and 20.
#[test]
fn tiny_neox_band_matches_the_python_package() {
    let golden: serde_json::Value = serde_json::from_slice(
        &std::fs::read(format!("{GOLDEN}/tiny-neox/ablation-inputs.json")).unwrap(),
    )
    .unwrap();
    let tail = &golden["tail"];
    let band = spec("elbow", "20", BandReading::Liu2025)
        .resolve(&tiny_neox(), 4079)
        .unwrap();
    assert_close(
        "min_frequency",
        band.min_frequency,
        tail["min_frequency"].as_f64().unwrap(),
        1e-6,
    );
    assert_close(
        "max_frequency",
        band.max_frequency,
        tail["max_frequency"].as_f64().unwrap(),
        1e-6,
    );
    assert_eq!(
        band.tokens as u64,
        tail["num_longtail_tokens"].as_u64().unwrap()
    );
}

/// The corrected elbow lies above the cliff of unseen tokens, on seen ones, and padding is never in a band.
#[test]
fn corrected_bands_hold_real_tokens_only() {
    for (frequencies, n_tokens, ranks) in [
        (pythia(), PYTHIA.0, 48_000..48_700),
        (tiny_neox(), 4079, 3400..3600),
    ] {
        let band = spec("elbow", "20", BandReading::Corrected)
            .resolve(&frequencies, n_tokens)
            .unwrap();
        let elbow = band.elbow.unwrap();
        assert!(ranks.contains(&elbow.rank), "elbow at rank {}", elbow.rank);
        assert!(elbow.slope_after < elbow.slope_before);
        let all = BandSpec::default().resolve(&frequencies, n_tokens).unwrap();
        assert_eq!(all.ids, (0..n_tokens as u32).collect::<Vec<_>>());
        let padded = BandSpec::default()
            .with_reading(BandReading::Liu2025)
            .resolve(&frequencies, n_tokens)
            .unwrap();
        assert!(padded.warnings.contains(&BandWarning::Padding {
            rows: frequencies.d_vocab() - n_tokens
        }));
    }
}

/// A curve of two exact power laws has its elbow where they meet.
#[test]
fn elbow_of_two_power_laws_is_their_break() {
    let counts = (1..=3000u32).map(|rank| {
        let rank = f64::from(rank);
        let q = if rank <= 2400.0 {
            rank.powf(-1.0)
        } else {
            2400f64.powf(-1.0) * (rank / 2400.0).powf(-12.0)
        };
        (q * 1e12) as u64
    });
    let frequencies = Frequencies::add_one(&TokenCounts::new(counts.collect(), 3000).unwrap());
    let band = spec("elbow", "20", BandReading::Corrected)
        .resolve(&frequencies, 3000)
        .unwrap();
    let elbow = band.elbow.unwrap();
    assert!(
        elbow.rank.abs_diff(2400) <= 1,
        "elbow at rank {}",
        elbow.rank
    );
    assert_close("slope_before", elbow.slope_before, -1.0, 1e-3);
    assert_close("slope_after", elbow.slope_after, -12.0, 1e-3);
}

#[test]
fn wrong_bands_are_named() {
    let power_law = Frequencies::add_one(
        &TokenCounts::new(
            (1..=1000u64).map(|rank| 1_000_000_000 / rank).collect(),
            1000,
        )
        .unwrap(),
    );
    for (reading, window) in [
        (BandReading::Corrected, None),
        (BandReading::Liu2025, Some(400)),
        (BandReading::Liu2025, Some(0)),
    ] {
        let err = spec("elbow", "20", reading)
            .with_window(window)
            .resolve(&power_law, 1000)
            .unwrap_err();
        assert!(matches!(err, BandError::NoElbow { .. }), "{err}");
    }
    for (lower, upper, expected) in [
        (
            "101",
            "0",
            "band bound `percentile:101` is out of range: expected 0 to 100",
        ),
        (
            "rank:0",
            "0",
            "band bound `rank:0` is out of range: expected 1 to 1000",
        ),
        (
            "frequency:0",
            "0",
            "band bound `frequency:0e0` is out of range: expected above 0 and at most 1",
        ),
        (
            "frequency:0.9",
            "frequency:0.8",
            "the band from 8.0000e-1 to 9.0000e-1 holds no token",
        ),
    ] {
        let err = spec(lower, upper, BandReading::Corrected)
            .resolve(&power_law, 1000)
            .unwrap_err();
        assert_eq!(err.to_string(), expected);
    }
    for text in [
        "",
        "elbows",
        "percentile:",
        "rank:1.5",
        "NaN",
        "frequency:inf",
        "20%",
    ] {
        assert!(text.parse::<Bound>().is_err(), "`{text}` parsed");
    }
    let err = BandSpec::default().resolve(&power_law, 1001).unwrap_err();
    assert_eq!(
        err.to_string(),
        "the tokenizer has 1001 tokens, but there are frequencies for 1000"
    );
}

#[test]
fn bounds_read_from_yaml_like_values() {
    let spec: BandSpec =
        serde_json::from_str(r#"{"lower": "elbow", "upper": 20, "reading": "liu2025"}"#).unwrap();
    assert_eq!(
        (spec.lower, spec.upper, spec.window),
        (Some(Bound::Elbow), Some(Bound::RankPercentile(20.0)), None)
    );
    let again: BandSpec = serde_json::from_str(&serde_json::to_string(&spec).unwrap()).unwrap();
    assert_eq!(again, spec);
}

proptest! {
    /// A band inside another holds a subset of its tokens and mass; the order of bounds does not matter.
    #[test]
    fn bands_nest(counts in proptest::collection::vec(0u64..1000, 20..200), mut cuts in proptest::array::uniform4(0f64..=100.0)) {
        prop_assume!(counts.iter().any(|&c| c > 0));
        let n = counts.len();
        let frequencies = Frequencies::add_one(&TokenCounts::new(counts, n).unwrap());
        cuts.sort_by(f64::total_cmp);
        let band = |a: f64, b: f64| {
            let bounds = BandSpec::default().with_lower(Bound::RankPercentile(a)).with_upper(Bound::RankPercentile(b));
            bounds.resolve(&frequencies, n).unwrap()
        };
        let (outer, inner) = (band(cuts[0], cuts[3]), band(cuts[1], cuts[2]));
        prop_assert!(inner.ids.iter().all(|id| outer.ids.contains(id)));
        prop_assert!(inner.mass <= outer.mass + 1e-12);
        prop_assert_eq!(band(cuts[3], cuts[0]).ids, outer.ids);
    }
}
