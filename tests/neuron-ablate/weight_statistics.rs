//! Statistics of the weights against plain loops over the whole vocabulary, and their laws.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::path::PathBuf;

use neox_core::{LoadOptions, Model, Norm};
use neuron_ablate::{
    AblateError, NullDirections, Readout, TokenBand, TokenFrequencies, UnembeddingMoments,
    WeightStatistics,
};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

/// An unembedding with its final norm, and vectors of output weights, `[row][d_model]`.
#[derive(Clone)]
struct Case {
    /// LayerNorm, or RMSNorm.
    centres: bool,
    w_u: Vec<Vec<f64>>,
    gamma: Vec<f64>,
    w_out: Vec<Vec<f64>>,
    q: Vec<f64>,
    band: Vec<u32>,
}

impl Case {
    /// Gaussian-like weights, Zipf frequencies, the rarer half of the tokens as band.
    fn random(d_vocab: usize, d_model: usize, neurons: usize, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut rows = |n: usize| -> Vec<Vec<f64>> {
            let mut draw = || (0..4).map(|_| rng.random_range(-1.0..1.0)).sum::<f64>();
            (0..n)
                .map(|_| (0..d_model).map(|_| draw()).collect())
                .collect()
        };
        let (w_u, w_out, gamma) = (rows(d_vocab), rows(neurons), rows(1).remove(0));
        let norm: f64 = (1..=d_vocab).map(|r| 1.0 / r as f64).sum();
        Self {
            centres: true,
            w_u,
            gamma,
            w_out,
            q: (1..=d_vocab).map(|r| 1.0 / (r as f64 * norm)).collect(),
            band: (d_vocab as u32 / 2..d_vocab as u32).collect(),
        }
    }

    fn tiny_neox() -> (Self, Model) {
        let dir = PathBuf::from(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../examples/data/tiny-neox/step4000"
        ));
        let model = Model::load(&dir, &LoadOptions::default()).unwrap();
        let counts = Tensor::read_npy(dir.with_file_name("train-unigrams.npy")).unwrap();
        let mut counts: Vec<f64> = Vec::try_from(&counts.f_to_kind(Kind::Double).unwrap()).unwrap();
        let w_u = rows_of(model.w_u());
        counts.resize(w_u.len(), 0.0);
        let sum: f64 = counts.iter().map(|c| c + 1.0).sum();
        let case = Self {
            centres: true,
            w_u,
            gamma: Vec::try_from(&model.ln_final().weight.f_to_kind(Kind::Double).unwrap())
                .unwrap(),
            w_out: rows_of(&model.w_out(3).unwrap().f_tr().unwrap()),
            q: counts.iter().map(|c| (c + 1.0) / sum).collect(),
            band: (1000..4079).step_by(3).collect(),
        };
        (case, model)
    }

    fn readout(&self) -> Readout {
        let weight = Tensor::from_slice(&self.gamma);
        let norm = Norm {
            bias: weight.zeros_like(),
            weight,
            eps: 1e-5,
            centres: self.centres,
        };
        Readout::new(&matrix(&self.w_u), &norm).unwrap()
    }

    /// What the norm sees of a vector.
    fn seen(&self, x: &[f64]) -> Vec<f64> {
        match self.centres {
            true => centred(x),
            false => x.to_vec(),
        }
    }

    fn frequencies(&self) -> TokenFrequencies {
        TokenFrequencies::new(self.q.clone()).unwrap()
    }

    fn bands(&self) -> [TokenBand; 1] {
        [TokenBand::new("band", &self.band, self.q.len()).unwrap()]
    }

    fn moments(&self, null: NullDirections) -> Result<UnembeddingMoments, AblateError> {
        UnembeddingMoments::new(self.readout(), &self.frequencies(), &self.bands(), null)
    }

    fn statistics(&self, null: NullDirections) -> Vec<WeightStatistics> {
        self.moments(null)
            .unwrap()
            .statistics(&matrix(&self.w_out))
            .unwrap()
    }

    /// Rows of the unembedding as the norm feeds it: centred over the vocabulary, times gamma, for LayerNorm centred over d_model.
    fn rows(&self) -> Vec<Vec<f64>> {
        let (v, d) = (self.w_u.len() as f64, self.gamma.len());
        let mean: Vec<f64> = (0..d)
            .map(|i| self.w_u.iter().map(|r| r[i]).sum::<f64>() / v)
            .collect();
        self.w_u
            .iter()
            .map(|r| {
                self.seen(
                    &(0..d)
                        .map(|i| (r[i] - mean[i]) * self.gamma[i])
                        .collect::<Vec<_>>(),
                )
            })
            .collect()
    }
}

fn matrix(rows: &[Vec<f64>]) -> Tensor {
    Tensor::from_slice(&rows.concat())
        .f_view([rows.len() as i64, rows[0].len() as i64])
        .unwrap()
}

fn rows_of(tensor: &Tensor) -> Vec<Vec<f64>> {
    let width = tensor.size()[1] as usize;
    let flat: Vec<f64> = Vec::try_from(
        &tensor
            .f_to_kind(Kind::Double)
            .unwrap()
            .f_contiguous()
            .unwrap()
            .f_view(-1)
            .unwrap(),
    )
    .unwrap();
    flat.chunks(width).map(<[f64]>::to_vec).collect()
}

fn centred(x: &[f64]) -> Vec<f64> {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    x.iter().map(|x| x - mean).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm(x: &[f64]) -> f64 {
    dot(x, x).sqrt()
}

fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let (a, b) = (centred(a), centred(b));
    dot(&a, &b) / (norm(&a) * norm(&b))
}

/// By their definitions: whole logit vectors, and the singular value decomposition of the whole unembedding.
fn by_definition(case: &Case, null: usize) -> Vec<WeightStatistics> {
    let rows = case.rows();
    let (_, _, v) = matrix(&rows).f_svd(true, true).unwrap(); // [d_model, d_model], by column
    let v = rows_of(&v.f_tr().unwrap());
    // With LayerNorm the last singular vector is the direction of ones.
    let room = v.len() - usize::from(case.centres);
    let least = &v[room - null..room];
    let log_q: Vec<f64> = case.q.iter().map(|q| q.ln()).collect();
    let in_band = |x: &[f64]| -> Vec<f64> { case.band.iter().map(|&t| x[t as usize]).collect() };
    case.w_out
        .iter()
        .map(|raw| {
            let w = case.seen(raw);
            let u: Vec<f64> = rows.iter().map(|r| dot(r, &w)).collect();
            let cosines: Vec<f64> = rows
                .iter()
                .zip(&u)
                .map(|(r, u)| {
                    if norm(r) > 0.0 {
                        u / (norm(r) * norm(&w))
                    } else {
                        0.0
                    }
                })
                .collect();
            let var =
                centred(&cosines).iter().map(|c| c * c).sum::<f64>() / (cosines.len() - 1) as f64;
            let part: f64 = least.iter().map(|v| dot(v, &w).powi(2)).sum();
            WeightStatistics {
                norm: norm(raw),
                norm_seen: norm(&w),
                logit_var: Some(var),
                null_share: Some(part / dot(&w, &w)),
                freq_cosine: Some(correlation(&u, &log_q)),
                band_cosines: vec![Some(correlation(&in_band(&u), &in_band(&log_q)))],
            }
        })
        .collect()
}

#[track_caller]
fn agree(found: &[WeightStatistics], expected: &[WeightStatistics], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (n, (a, b)) in found.iter().zip(expected).enumerate() {
        for (what, a, b) in [
            ("norm", Some(a.norm), Some(b.norm)),
            ("norm_seen", Some(a.norm_seen), Some(b.norm_seen)),
            ("logit_var", a.logit_var, b.logit_var),
            ("null_share", a.null_share, b.null_share),
            ("freq_cosine", a.freq_cosine, b.freq_cosine),
            ("band", a.band_cosines[0], b.band_cosines[0]),
        ] {
            match (a, b) {
                (Some(a), Some(b)) => {
                    let off = (a - b).abs() / b.abs().max(1e-3);
                    assert!(off <= tolerance, "neuron {n}, {what}: {a}, expected {b}");
                }
                (a, b) => assert_eq!(a, b, "neuron {n}, {what}"),
            }
        }
    }
}

#[test]
fn the_bundled_model_agrees_with_the_definitions() {
    let (case, model) = Case::tiny_neox();
    let moments = UnembeddingMoments::of_model(
        &model,
        &case.frequencies(),
        &case.bands(),
        NullDirections::Count(4),
    )
    .unwrap();
    let neurons: Vec<usize> = (0..256).step_by(5).collect();
    let expected = by_definition(&case, 4);
    let expected: Vec<_> = neurons.iter().map(|&n| expected[n].clone()).collect();
    agree(&moments.neurons(&model, &neurons).unwrap(), &expected, 1e-9);
    assert_eq!(moments.singular_values().len(), 63);
    assert!((moments.chance_share() - 4.0 / 63.0).abs() < 1e-12);
}

#[test]
fn random_weights_agree_with_the_definitions() {
    // 5,000 rows are more than a tile.
    for (d_vocab, d_model, null) in [(5000, 12, 3), (97, 16, 1), (97, 16, 15)] {
        let mut case = Case::random(d_vocab, d_model, 7, d_vocab as u64);
        // Padding rows are often all the same.
        case.w_u[d_vocab - 1] = case.w_u[d_vocab - 2].clone();
        let d_vocab = d_vocab as u32;
        // Most of the vocabulary, whose sums are those over all of it less those over the rest, and half of it.
        for (centres, first) in [(true, d_vocab / 2), (false, d_vocab / 2), (true, 10)] {
            case.centres = centres;
            case.band = (first..d_vocab).collect();
            agree(
                &case.statistics(NullDirections::Count(null)),
                &by_definition(&case, null),
                1e-9,
            );
        }
    }
}

#[test]
fn a_neuron_that_writes_where_nothing_reads_is_in_the_null_space() {
    let mut case = Case::random(200, 10, 2, 3);
    case.gamma = vec![1.0; 10];
    // Nothing reads the difference of the first two coordinates.
    for row in &mut case.w_u {
        row[1] = row[0];
    }
    case.w_out[0] = vec![0.0; 10];
    (case.w_out[0][0], case.w_out[0][1]) = (3.0, -3.0);
    case.w_out[1] = vec![2.0; 10];
    let found = case.statistics(NullDirections::Count(1));
    assert!((found[0].null_share.unwrap() - 1.0).abs() < 1e-12);
    assert!(found[0].logit_var.unwrap() < 1e-20);
    assert_eq!(
        (found[0].freq_cosine, found[0].band_cosines[0]),
        (None, None)
    );
    // LayerNorm removes a constant vector.
    assert!((found[1].norm - 40f64.sqrt()).abs() < 1e-12);
    assert_eq!(
        (
            found[1].logit_var,
            found[1].null_share,
            found[1].freq_cosine
        ),
        (None, None, None)
    );
}

#[test]
fn a_neuron_that_writes_log_frequency_has_cosine_one() {
    let mut case = Case::random(150, 8, 1, 5);
    case.gamma = vec![1.0; 8];
    for (row, q) in case.w_u.iter_mut().zip(&case.q) {
        // Along (1, -1, 0, ...) lies the logarithm of the frequency, and nothing else.
        (row[0], row[1]) = (q.ln(), -q.ln());
    }
    case.w_out[0] = [vec![0.7, -0.7], vec![0.0; 6]].concat();
    let found = &case.statistics(NullDirections::default())[0];
    assert!((found.freq_cosine.unwrap() - 1.0).abs() < 1e-12);
    assert!((found.band_cosines[0].unwrap() - 1.0).abs() < 1e-12);
}

#[test]
fn what_does_not_fit_is_refused() {
    let case = Case::random(50, 6, 1, 1);
    let error = |case: &Case, null| case.moments(null).unwrap_err().to_string();
    for (null, fragments) in [
        (NullDirections::Count(0), ["0", "1 to 5"]),
        (NullDirections::Count(6), ["6", "1 to 5"]),
        (NullDirections::Share(0.0), ["0", "above 0"]),
        (NullDirections::Share(1.5), ["1.5", "at most 1"]),
        (NullDirections::Share(f64::NAN), ["NaN", "above 0"]),
    ] {
        let message = error(&case, null);
        for fragment in fragments.into_iter().chain(["null_directions"]) {
            assert!(message.contains(fragment), "no `{fragment}` in: {message}");
        }
    }
    let mut broken = case.clone();
    broken.w_u[7][2] = f64::NAN;
    assert!(error(&broken, NullDirections::default()).contains("audit"));
    broken = case.clone();
    broken.w_out[0][2] = f64::INFINITY;
    let moments = broken.moments(NullDirections::default()).unwrap();
    assert!(matches!(
        moments.statistics(&matrix(&broken.w_out)),
        Err(AblateError::NotFiniteWeights { .. })
    ));
    let other = TokenFrequencies::new(vec![0.25; 4]).unwrap();
    let refused = UnembeddingMoments::new(case.readout(), &other, &[], NullDirections::default());
    assert!(matches!(refused, Err(AblateError::Vocabulary { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn statistics_keep_their_laws(
        d_vocab in 20usize..90,
        d_model in 3usize..14,
        null in 1usize..14,
        seed in any::<u64>(),
        factor in prop_oneof![1e-6f64..1e-3, 0.5f64..2.0, 1e3f64..1e6],
        shift in -5.0f64..5.0,
    ) {
        let case = Case::random(d_vocab, d_model, 3, seed);
        let null = NullDirections::Count(null.min(d_model - 1));
        let found = case.statistics(null);
        for of in &found {
            for (what, value, low) in [
                ("logit_var", of.logit_var, 0.0),
                ("null_share", of.null_share, 0.0),
                ("freq_cosine", of.freq_cosine, -1.0),
                ("band", of.band_cosines[0], -1.0),
            ] {
                let value = value.unwrap();
                prop_assert!((low..=1.0).contains(&value), "{what} is {value}");
            }
        }

        // All directions together hold everything.
        for of in case.statistics(NullDirections::Share(1.0)) {
            prop_assert!((of.null_share.unwrap() - 1.0).abs() < 1e-9);
        }

        // The length of the output weights, and what LayerNorm or the softmax removes, play no part.
        let mut moved = case.clone();
        for w in &mut moved.w_out {
            w.iter_mut().for_each(|w| *w = factor * *w + factor * shift);
        }
        for row in &mut moved.w_u {
            row.iter_mut().zip(&case.gamma).for_each(|(w, g)| *w += shift * (1.0 + g));
        }
        let again: Vec<_> = moved
            .statistics(null)
            .into_iter()
            .zip(&found)
            .map(|(of, before)| WeightStatistics { norm: before.norm, norm_seen: of.norm_seen / factor.abs(), ..of })
            .collect();
        // A share may sit on two singular values that are next to equal.
        agree(&again, &found, 1e-4);
    }
}
