//! Numbers worked out by hand or by another program.

use surprisal_metrics::{
    Bootstrap, Boundary, Group, LearningCurve, LnProbs, MetricError, Summary, Unit, WordForm,
    log_sum_exp, perplexity, sign_test, word_surprisal_nats,
};

/// A text of the words "ab" and "c", in a world where the model is certain of the shapes: pieces
/// `Ġa`, `b`, `Ġc`. Each form is the formula of its paper, term by term.
#[test]
fn forms_of_word_surprisal() {
    let pieces = [0.2f64.ln(), 0.5f64.ln()];
    let before = Boundary {
        ln_begins: 0.6f64.ln(),
        ln_eos: 0.1f64.ln(),
    };
    let after = Boundary {
        ln_begins: 0.8f64.ln(),
        ln_eos: 0.05f64.ln(),
    };
    for (form, probability) in [
        (WordForm::Corrected, 0.2 * 0.5 * 0.85 / 0.7),
        (WordForm::CorrectedWithoutEos, 0.2 * 0.5 * 0.8 / 0.6),
        (WordForm::Uncorrected, 0.2 * 0.5),
        (WordForm::FirstPiece, 0.2),
    ] {
        let nats = word_surprisal_nats(form, &pieces, &before, &after).unwrap();
        assert!(
            (nats + f64::ln(probability)).abs() < 1e-12,
            "{form:?}: {nats}"
        );
    }
}

#[test]
fn impossible_inputs_are_errors() {
    let sure = Boundary {
        ln_begins: 0.0,
        ln_eos: f64::NEG_INFINITY,
    };
    let never = Boundary {
        ln_begins: f64::NEG_INFINITY,
        ln_eos: f64::NEG_INFINITY,
    };
    let word = |pieces: &[f64], before| {
        word_surprisal_nats(WordForm::Corrected, pieces, before, &sure).unwrap_err()
    };
    assert_eq!(word(&[], &sure), MetricError::Empty { what: "pieces" });
    assert!(matches!(
        word(&[-1.0, 0.5], &sure),
        MetricError::NotLogProb { index: 1, .. }
    ));
    assert!(matches!(
        word(&[f64::NAN], &sure),
        MetricError::NotLogProb { index: 0, .. }
    ));
    assert!(matches!(
        word(&[f64::NEG_INFINITY], &sure),
        MetricError::NotFinite { .. }
    ));
    assert_eq!(
        word(&[-1.0], &never),
        MetricError::NoBoundaryMass {
            place: "before the word"
        }
    );
    let half = LnProbs::new(vec![0.5f64.ln(); 2]).unwrap();
    let one = LnProbs::new(vec![0.0, f64::NEG_INFINITY]).unwrap();
    assert!(matches!(
        half.kl_nats(&one),
        Err(MetricError::Infinite { index: 1, .. })
    ));
    assert!((one.kl_nats(&half).unwrap() - 2f64.ln()).abs() < 1e-12);
    assert!(matches!(
        LnProbs::new(vec![-1.0]),
        Err(MetricError::NotNormalised { .. })
    ));
    assert!(
        Bootstrap {
            resamples: 0,
            ..Bootstrap::default()
        }
        .mean(&[Group::of(&[1.0])])
        .is_err()
    );
    assert!(
        Bootstrap {
            level: 1.0,
            ..Bootstrap::default()
        }
        .mean(&[Group::of(&[1.0])])
        .is_err()
    );
    assert!(Bootstrap::default().mean(&[]).is_err());
    assert!(
        Bootstrap::default()
            .mean(&[Group {
                sum: 0.0,
                count: 0.0
            }])
            .is_err()
    );
}

#[test]
fn distributions_by_hand() {
    let p = LnProbs::new(vec![0.5f64.ln(), 0.5f64.ln(), f64::NEG_INFINITY]).unwrap();
    let q = LnProbs::new(vec![0.25f64.ln(), 0.25f64.ln(), 0.5f64.ln()]).unwrap();
    assert!((Unit::Bits.from_nats(p.entropy_nats()) - 1.0).abs() < 1e-12);
    assert!((Unit::Bits.from_nats(q.entropy_nats()) - 1.5).abs() < 1e-12);
    assert!((Unit::Bits.from_nats(p.kl_nats(&q).unwrap()) - 1.0).abs() < 1e-12);
    // Mixture 3/8, 3/8, 1/4: log2(4/3) / 2 + (log2(2/3) / 2 + 1/2) / 2.
    let expected = 0.5 * (4.0f64 / 3.0).log2() + 0.5 * (0.5 * (2.0f64 / 3.0).log2() + 0.5);
    let got = Unit::Bits.from_nats(p.jensen_shannon_nats(&q).unwrap());
    assert!((got - expected).abs() < 1e-12, "{got} against {expected}");
    assert!((perplexity(&[0.5f64.ln(), 0.125f64.ln()]).unwrap() - 4.0).abs() < 1e-12);
}

#[test]
fn summaries_by_hand() {
    let summary = Summary::of(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).unwrap();
    assert_eq!(summary.mean, 5.0);
    assert!((summary.sd.unwrap() - (32.0f64 / 7.0).sqrt()).abs() < 1e-12);
    assert!((summary.se.unwrap() - (4.0f64 / 7.0).sqrt()).abs() < 1e-12);
    assert_eq!(Summary::of(&[1.0]).unwrap().se, None);
}

/// Against `sum(comb(n, i) for i in range(k + 1)) * 2 / 2**n` in Python's integers.
#[test]
fn sign_test_is_exact() {
    for (higher, lower, expected) in [
        (8, 2, 0.109375),
        (60, 40, 0.05688793364098079),
        (540, 460, 0.01244414627717178),
        (0, 0, 1.0),
    ] {
        let got = sign_test(higher, lower);
        assert!((got - expected).abs() < 1e-11, "{higher}:{lower}: {got}");
        assert_eq!(sign_test(lower, higher), got);
    }
}

/// Made with numpy: the same formulas over 400,000 resamples of its own generator, so that ends agree to their Monte Carlo error.
const NUMPY_ALIKE: (f64, f64, f64) = (1.87, 0.53452, 9.28679);
const NUMPY_WEIGHTED: (f64, f64, f64) = (1.854054054054054, 0.37954, 13.15900);

#[test]
fn bootstrap_t_agrees_with_numpy() {
    let values = [0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 1.3, 2.1, 3.4, 8.9];
    let counts = [4.0, 2.0, 7.0, 3.0, 3.0, 5.0, 1.0, 6.0, 2.0, 4.0];
    let bootstrap = Bootstrap {
        resamples: 100_000,
        ..Bootstrap::with_seed(7)
    };
    let alike: Vec<Group> = values.iter().map(|&v| Group::of(&[v])).collect();
    let weighted: Vec<Group> = values
        .iter()
        .zip(counts)
        .map(|(&mean, count)| Group {
            sum: mean * count,
            count,
        })
        .collect();
    for (groups, estimate, lower, upper) in [NUMPY_ALIKE, NUMPY_WEIGHTED]
        .into_iter()
        .zip([alike, weighted])
        .map(|((e, l, u), groups)| (groups, e, l, u))
    {
        let interval = bootstrap.mean(&groups).unwrap().unwrap();
        assert!((interval.estimate - estimate).abs() < 1e-12);
        let width = upper - lower;
        assert!(
            (interval.lower - lower).abs() < 0.02 * width
                && (interval.upper - upper).abs() < 0.02 * width,
            "{interval:?}, expected {lower} to {upper}"
        );
        assert_eq!((interval.groups, interval.undefined), (10, 0));
    }
}

/// Fewer than eight groups say too little about the spread over groups, however many values they have and however many empty groups
/// stand beside them.
#[test]
fn few_groups_have_no_interval() {
    let bootstrap = Bootstrap::default();
    let groups: Vec<Group> = (0..7).map(|i| Group::of(&[f64::from(i), 1.0])).collect();
    let empty = [Group::default(); 20];
    for groups in [groups.clone(), [&groups[..], &empty].concat()] {
        assert_eq!(Group::with_values(&groups), 7);
        assert_eq!(bootstrap.mean(&groups).unwrap(), None);
        assert_eq!(bootstrap.ratio(&groups, &groups, 0.0).unwrap(), None);
    }
    let eight = [&groups[..], &[Group::of(&[9.0])], &empty].concat();
    let interval = bootstrap.mean(&eight).unwrap().unwrap();
    assert_eq!(interval.groups, 8);
    assert!(interval.lower < interval.estimate && interval.estimate < interval.upper);
    // Of 28 draws with 8 groups among them, some hold a single one, which has no standard error.
    assert!((1..100).contains(&interval.undefined), "{interval:?}");
    let paired =
        surprisal_metrics::paired_comparison(&["a", "a"], &[1.0, 2.0], &[2.0, 4.0], &bootstrap)
            .unwrap();
    assert_eq!((paired.difference, paired.interval), (1.5, None));
    // Ten sequences whose band rows are all in one: every resample that has a mean has the same one.
    let mut one = vec![Group::default(); 10];
    one[3] = Group::of(&[1.0, 2.0, 3.0]);
    assert_eq!(bootstrap.mean(&one).unwrap(), None);
    // Equal values are a spread of nothing, which is known.
    let equal = bootstrap
        .mean(&[Group::of(&[0.1, 0.2]); 9])
        .unwrap()
        .unwrap();
    assert_eq!((equal.lower, equal.upper), (equal.estimate, equal.estimate));
}

#[test]
fn a_ratio_needs_its_denominator() {
    let bootstrap = Bootstrap::default();
    let group = |sum| Group { sum, count: 1.0 };
    let all: Vec<Group> = (1..=10).map(|i| group(f64::from(i))).collect();
    let part: Vec<Group> = (1..=10).map(|i| group(f64::from(i % 4))).collect();
    let ratio = bootstrap.ratio(&part, &all, 1e-9).unwrap().unwrap();
    let share = ratio.complement();
    assert!((share.estimate - (1.0 - 15.0 / 55.0)).abs() < 1e-12);
    assert_eq!(
        (share.lower, share.upper),
        (1.0 - ratio.upper, 1.0 - ratio.lower)
    );
    assert!(share.lower < share.estimate && share.estimate < share.upper);
    // A mean of 5.5 is above the floor, but not in every resample; a floor of 5.4 is not passed without the last group.
    let near = bootstrap.ratio(&part, &all, 4.9).unwrap().unwrap();
    assert!((100..500).contains(&near.undefined), "{}", near.undefined);
    assert_eq!(bootstrap.ratio(&part, &all, 5.4).unwrap(), None);
    let mut other = part.clone();
    other[2].count = 2.0;
    assert_eq!(
        bootstrap.ratio(&other, &all, 0.0).unwrap_err(),
        MetricError::Counts {
            index: 2,
            numerator: 2.0,
            denominator: 1.0
        }
    );
}

/// The interval of a mean covers the truth about as often as it says.
#[test]
fn bootstrap_covers() {
    // 60 groups of 5 whose mean is a fixed pseudo-random value with mean 0: a linear congruence.
    let mut state = 12345u64;
    let mut uniform = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
    };
    let bootstrap = Bootstrap {
        resamples: 300,
        ..Bootstrap::with_seed(1)
    };
    let hits = (0..200)
        .filter(|_| {
            let groups: Vec<Group> = (0..60)
                .map(|_| {
                    let shared = uniform();
                    Group::of(&[shared; 5])
                })
                .collect();
            let interval = bootstrap.mean(&groups).unwrap().unwrap();
            interval.lower <= 0.0 && 0.0 <= interval.upper
        })
        .count();
    assert!(
        (178..=199).contains(&hits),
        "{hits} of 200 cover, expected about 190"
    );
}

#[test]
fn the_same_seed_draws_the_same_groups() {
    let draws = |seed| {
        Bootstrap::with_seed(seed)
            .draws(5)
            .unwrap()
            .take(3)
            .collect::<Vec<_>>()
    };
    assert_eq!(draws(42), draws(42));
    assert_ne!(draws(42), draws(43));
    // ChaCha8 by seed and 64-bit range: the same on every machine.
    assert_eq!(draws(42)[0].len(), 5);
}

#[test]
fn a_flat_or_rising_curve_is_never_acquired() {
    let flat: Vec<(u64, f64)> = [1, 10, 100, 1000].map(|s| (s, 8.0)).into();
    let curve = LearningCurve::fit(&flat).unwrap();
    assert_eq!((curve.drop, curve.acquisition(8.3)), (0.0, None));
    let rising: Vec<(u64, f64)> = [(1, 3.0), (10, 4.0), (100, 6.0), (1000, 8.0)].into();
    assert_eq!(LearningCurve::fit(&rising).unwrap().drop, 0.0);
    let few = LearningCurve::fit(&[(0, 8.0), (1, 8.0), (1, 7.0), (10, 6.0), (100, 5.0)]);
    assert!(matches!(
        few,
        Err(MetricError::TooFewSteps { found: 3, .. })
    ));
}

/// Three pieces from 32.5 nats, chance among 50,304 tokens, to 9, around step 1,000: a cutoff at chance for one piece would be passed late.
#[test]
fn words_of_several_pieces_start_from_chance_for_each() {
    let chance = 3.0 * 50_304f64.ln();
    let at = |step: u64| 9.0 + (chance - 9.0) / (1.0 + (((step as f64).log10() - 3.0) / 0.3).exp());
    let points: Vec<_> = (0..12).map(|i| 1 << (2 * i)).map(|s| (s, at(s))).collect();
    let curve = LearningCurve::fit(&points).unwrap();
    let age = curve.acquisition(chance).unwrap();
    assert!((age.log10_step - 3.0).abs() < 0.02, "{age:?}");
    assert_eq!(curve.doubt(chance), None);
    // Noise as large as the drop is no curve.
    let noisy = [12.0, 4.0, 11.5, 3.5, 9.0, 2.0, 8.0, 3.0];
    let points: Vec<_> = (0..8).map(|i| (10u64.pow(i), noisy[i as usize])).collect();
    let doubt = LearningCurve::fit(&points).unwrap().doubt(10.8);
    assert_eq!(doubt.map(|doubt| doubt.name()), Some("not monotone"));
}

/// The largest numbers there are: no overflow, no infinity, no NaN that was not handed in.
#[test]
fn the_largest_numbers_are_errors_or_right() {
    assert_eq!(sign_test(usize::MAX, 1), 0.0);
    assert_eq!(sign_test(2, usize::MAX), 0.0);
    let huge = [f64::MAX, f64::MAX];
    let not_finite = |result| matches!(result, Err(MetricError::NotFinite { .. }));
    assert!(not_finite(Summary::of(&huge).map(|_| ())));
    assert!(not_finite(Summary::of(&[f64::MAX, -f64::MAX]).map(|_| ())));
    assert!(not_finite(perplexity(&[-1e300]).map(|_| ())));
    for values in [
        &[f64::NAN, f64::NAN][..],
        &[f64::NAN, f64::NEG_INFINITY],
        &[1.0, f64::NAN],
        &[f64::INFINITY, f64::NAN],
    ] {
        assert!(log_sum_exp(values).is_nan(), "{values:?}");
    }
    assert_eq!(log_sum_exp(&[f64::INFINITY, 1.0]), f64::INFINITY);
}
