//! Laws that hold for every input.

use proptest::prelude::*;
use surprisal_metrics::{
    Bootstrap, Boundary, Group, LearningCurve, LnProbs, WordForm, log_sum_exp, paired_comparison,
    sign_test, token_surprisal_nats, word_surprisal_nats,
};

fn logits(n: usize) -> impl Strategy<Value = Vec<f64>> {
    prop::collection::vec(-30.0..30.0f64, n)
}

fn sum_of_tokens(pieces: &[f64]) -> f64 {
    pieces
        .iter()
        .map(|&p| token_surprisal_nats(p).unwrap_or(f64::NAN))
        .sum()
}

proptest! {
    #[test]
    fn divergences_are_never_negative_and_zero_on_themselves(a in logits(40), b in logits(40)) {
        let (p, q) = (LnProbs::from_logits(&a)?, LnProbs::from_logits(&b)?);
        prop_assert!(p.kl_nats(&q)? >= 0.0);
        prop_assert_eq!(p.kl_nats(&p)?, 0.0);
        let js = p.jensen_shannon_nats(&q)?;
        prop_assert!((0.0..=std::f64::consts::LN_2).contains(&js));
        prop_assert!((js - q.jensen_shannon_nats(&p)?).abs() < 1e-12);
        prop_assert!(p.jensen_shannon_nats(&p)? < 1e-12);
    }

    #[test]
    fn entropy_lies_between_0_and_that_of_a_uniform_guess(a in logits(40)) {
        let entropy = LnProbs::from_logits(&a)?.entropy_nats();
        prop_assert!((-1e-12..=40f64.ln() + 1e-12).contains(&entropy));
    }

    #[test]
    fn a_shift_of_the_logits_changes_nothing(a in logits(20), shift in -500.0..500.0f64) {
        let moved: Vec<f64> = a.iter().map(|v| v + shift).collect();
        let (p, q) = (LnProbs::from_logits(&a)?, LnProbs::from_logits(&moved)?);
        for (x, y) in p.as_slice().iter().zip(q.as_slice()) {
            prop_assert!((x - y).abs() < 1e-9);
        }
        prop_assert!((log_sum_exp(&moved) - log_sum_exp(&a) - shift).abs() < 1e-9);
    }

    /// Chain rule: pieces add up, and cutting a text into words elsewhere changes no total.
    #[test]
    fn surprisal_of_a_text_does_not_depend_on_the_cut(
        pieces in prop::collection::vec(-20.0..-1e-6f64, 2..12),
        boundaries in prop::collection::vec((-8.0..-0.01f64, -12.0..-4.0f64), 13),
        cut in 1usize..11,
    ) {
        let cut = cut.min(pieces.len() - 1);
        let at = |i: usize| Boundary { ln_begins: boundaries[i].0, ln_eos: boundaries[i].1 };
        for form in [WordForm::Corrected, WordForm::CorrectedWithoutEos, WordForm::Uncorrected] {
            let whole = word_surprisal_nats(form, &pieces, &at(0), &at(pieces.len()))?;
            let parts = word_surprisal_nats(form, &pieces[..cut], &at(0), &at(cut))?
                + word_surprisal_nats(form, &pieces[cut..], &at(cut), &at(pieces.len()))?;
            prop_assert!((whole - parts).abs() < 1e-9, "{:?}", form);
        }
        let uncorrected = word_surprisal_nats(WordForm::Uncorrected, &pieces, &at(0), &at(0))?;
        prop_assert!((uncorrected - sum_of_tokens(&pieces)).abs() < 1e-9);
    }

    #[test]
    fn a_condition_that_changes_nothing_differs_by_nothing(
        values in prop::collection::vec(0.0..20.0f64, 1..30),
        words in prop::collection::vec(0u8..6, 30),
    ) {
        let words = &words[..values.len()];
        let bootstrap = Bootstrap { resamples: 50, ..Bootstrap::default() };
        let same = paired_comparison(words, &values, &values, &bootstrap)?;
        prop_assert_eq!(same.difference, 0.0);
        prop_assert_eq!(same.interval, None); // six words
        prop_assert_eq!(same.sign_p, 1.0);
        let moved: Vec<f64> = values.iter().map(|v| v + 1.0).collect();
        let up = paired_comparison(words, &values, &moved, &bootstrap)?;
        prop_assert!((up.difference - 1.0).abs() < 1e-12);
        prop_assert_eq!((up.higher, up.lower), (up.groups, 0));
    }

    #[test]
    fn an_interval_moves_with_its_values(values in prop::collection::vec(-5.0..5.0f64, 8..20), by in -3.0..3.0f64, seed: u64) {
        let bootstrap = Bootstrap { resamples: 100, ..Bootstrap::with_seed(seed) };
        let of = |f: &dyn Fn(f64) -> f64| {
            let groups: Vec<Group> = values.iter().map(|&v| Group::of(&[f(v)])).collect();
            bootstrap.mean(&groups).map(Option::unwrap)
        };
        let interval = of(&|v| v)?;
        prop_assert!(interval.lower <= interval.upper);
        prop_assert!(interval.undefined < 10);
        let moved = of(&|v| 2.0 * v + by)?;
        let scale = 1e-9 * (1.0 + interval.lower.abs().max(interval.upper.abs()));
        prop_assert!((moved.lower - 2.0 * interval.lower - by).abs() < scale);
        prop_assert!((moved.upper - 2.0 * interval.upper - by).abs() < scale);
    }

    #[test]
    fn p_values_are_probabilities(higher in 0usize..500, lower in 0usize..500) {
        let p = sign_test(higher, lower);
        prop_assert!((0.0..=1.0).contains(&p));
    }

    /// On noisy points the fit is at least as good as the curve they came from.
    #[test]
    fn no_better_curve_was_missed(
        lower in 1.0..4.0f64, drop in 1.0..7.0f64, mid in 1.0..3.5f64, width in 0.1..0.6f64,
        noise in prop::collection::vec(-0.3..0.3f64, 12),
    ) {
        let steps = [1u64, 2, 8, 32, 128, 256, 512, 1000, 2000, 4000, 8000, 16000];
        let truth = |s: u64| lower + drop / (1.0 + (((s as f64).log10() - mid) / width).exp());
        let points: Vec<(u64, f64)> = steps.iter().zip(&noise).map(|(&s, e)| (s, truth(s) + e)).collect();
        let curve = LearningCurve::fit(&points)?;
        let squares: f64 = noise.iter().map(|e| e * e).sum();
        prop_assert!(curve.rmse.powi(2) * 12.0 <= squares * (1.0 + 1e-9));
        // What acquisition returns is where the curve passes the cutoff.
        if let Some(learned) = curve.acquisition(lower + drop) {
            let min = points.iter().map(|p| p.1).fold(f64::MAX, f64::min);
            let cutoff = (lower + drop + min) / 2.0;
            prop_assert!((curve.at_log10_step(learned.log10_step) - cutoff).abs() < 1e-6);
        }
    }
}
