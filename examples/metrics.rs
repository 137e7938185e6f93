//! Surprisal, divergences and a learning curve from numbers that some other program has made: no model, no libtorch.
//!
//! `cargo run -p surprisal-metrics --example metrics`

use surprisal_metrics::{Bootstrap, Boundary, LearningCurve, LnProbs, MetricError, Unit, WordForm};
use surprisal_metrics::{paired_comparison, word_surprisal_nats};

fn main() -> Result<(), MetricError> {
    // A word of two pieces; after it, a space comes with probability 0.9.
    let pieces = [0.25f64.ln(), 0.5f64.ln()];
    let boundary = |begins: f64| Boundary {
        ln_begins: begins.ln(),
        ln_eos: f64::NEG_INFINITY,
    };
    for form in [WordForm::FirstPiece, WordForm::Corrected] {
        let nats = word_surprisal_nats(form, &pieces, &boundary(1.0), &boundary(0.9))?;
        println!("{form:?}: {:.3} bits", Unit::Bits.from_nats(nats));
    }

    let (p, q) = (
        LnProbs::from_logits(&[2.0, 1.0, 0.0])?,
        LnProbs::from_logits(&[0.0, 1.0, 2.0])?,
    );
    println!(
        "entropy {:.3}, KL(p || q) {:.3} nats",
        p.entropy_nats(),
        p.kl_nats(&q)?
    );

    // Ten words, scored by a model before and after a change of it.
    let words: Vec<usize> = (0..10).collect();
    let before: Vec<f64> = words.iter().map(|&word| 8.0 + 0.1 * word as f64).collect();
    let after: Vec<f64> = words.iter().map(|&word| 8.3 + 0.12 * word as f64).collect();
    let paired = paired_comparison(&words, &before, &after, &Bootstrap::with_seed(1))?;
    println!("{:+.3} nats, p = {:.4}", paired.difference, paired.sign_p);

    let points = [(1, 10.8), (64, 10.1), (256, 9.0), (1000, 6.9), (16000, 4.9)];
    let curve = LearningCurve::fit(&points)?;
    if let Some(learnt) = curve.acquisition(10.8) {
        println!(
            "learnt half way at step {:.0}",
            10f64.powf(learnt.log10_step)
        );
    }
    Ok(())
}
