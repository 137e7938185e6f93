//! Sums over vocabularies as large as real ones, flat and peaked, against evaluations in f64.
#![cfg(test)]

mod random_model;

use std::error::Error;

use neox_core::{Model, NoHooks, Part, Text, next_token_ln_probs};
use neuron_ablate::{
    AblateError, Engine, EngineOptions, ExactSums, Intervention, Keep, LayerMeans, MeanOf,
    MeanOver, NamedChange, NeuronId, NeuronSite, NullSpace, NullSpaceOptions, Operation, Plan,
    RareTokens, Sample, SampleStates, ScalingLaw, ScalingMeasure, ScalingPlan, Scorer, Sweep,
    TargetGroup, TokenFrequencies, WeightChange, WordRequest, WordStart, WordVocabulary,
    last_layer_states, mean_activations, measure_scaling, sample_means, self_check,
};
use random_model::{D_MLP, random_model, random_tokens, zipf};
use tch::{Device, Kind, Tensor};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// How far any number may be from its evaluation in f64, in nats.
const ALLOWED: f64 = 2e-5;
/// How far the change that scaled weights make may be, in nats: it is relative to its size, whatever the logits' own rounding.
const ALLOWED_CHANGE: f64 = 2e-6;
/// Pythia's vocabulary and one of the largest there are, with flat, usual and peaked predictions.
const CASES: [(i64, f64); 6] = [
    (50_304, 0.01),
    (50_304, 0.7),
    (50_304, 3.0),
    (152_064, 0.01),
    (152_064, 0.7),
    (152_064, 3.0),
];

/// Log-probabilities in f64, `[row, d_vocab]`, of rows of the residual stream, `[row, d_model]`.
fn in_f64(model: &Model, resid: &Tensor, w_u: &Tensor) -> Outcome<Tensor> {
    let wide = |t: &Tensor| t.f_to_kind(Kind::Double);
    let ln = model.ln_final();
    let (weight, bias) = (wide(&ln.weight)?, wide(&ln.bias)?);
    let normed =
        wide(resid)?.f_layer_norm(weight.size(), Some(&weight), Some(&bias), ln.eps, false)?;
    Ok(normed
        .f_matmul(&wide(w_u)?.f_tr()?)?
        .f_log_softmax(-1, Kind::Double)?)
}

#[track_caller]
fn close(found: f64, expected: f64, what: &str) {
    assert!(
        (found - expected).abs() <= ALLOWED,
        "{what}: {found}, in f64 {expected}: off by {:.1e}",
        (found - expected).abs()
    );
}

/// A tokenizer whose every second token begins with a space.
fn tokenizer(d_vocab: i64) -> Outcome<Text> {
    let dir = tempfile::tempdir()?;
    let vocab: serde_json::Map<String, serde_json::Value> = (0..d_vocab)
        .map(|id| (format!("{}{id}", ["Ġ", ""][id as usize % 2]), id.into()))
        .collect();
    let text = serde_json::json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "1"},
    });
    let path = dir.path().join("tokenizer.json");
    std::fs::write(&path, text.to_string())?;
    Ok(Text::from_file(&path)?)
}

/// Words of two pieces, with and without word boundaries, in every precision that a model may have.
#[test]
fn words_are_scored_as_in_f64() -> Outcome<()> {
    for (d_vocab, spread) in CASES {
        let words = WordVocabulary::new(&tokenizer(d_vocab)?, 0, usize::try_from(d_vocab)?)?;
        // It ends with the word: in half precision a forward of another number of tokens is rounded in another way.
        let tokens = random_tokens(1, 7, d_vocab).remove(0);
        let request = WordRequest::new(tokens.clone(), 5..7, WordStart::Space);
        for dtype in [Kind::Float, Kind::BFloat16, Kind::Half] {
            let model = random_model(d_vocab, spread, dtype, |_| ())?;
            let scorer = Scorer::new(&model, &words, 64)?;
            let bare = Scorer::new(&model, &words, 64)?.without_boundaries();
            let tensors = Scorer::new(&model, &words, 64)?.with_tensors()?;
            let batch = Tensor::f_from_slice(&tokens)?.f_view([1, -1])?;
            let resid = model.residual(&batch, None, &mut NoHooks)?.f_get(0)?;
            let expected = in_f64(&model, &resid, model.w_u())?;
            let what = format!("{d_vocab} tokens, spread {spread}, {dtype:?}");
            for (scorer, boundaries) in [(scorer, true), (tensors, true), (bare, false)] {
                let found =
                    scorer.score(std::slice::from_ref(&request), &[Intervention::base()])?;
                let found = &found[0][0];
                for (piece, found) in (5..7).zip(&found.ln_probs) {
                    let expected = expected.f_double_value(&[piece - 1, tokens[piece as usize]])?;
                    close(*found, expected, &what);
                }
                for (row, found) in [(4, found.before), (6, found.after)] {
                    let p = expected.f_get(row)?.f_exp()?;
                    let begins = p.f_slice(0, 2, None, 2)?.f_sum(Kind::Double)?;
                    if boundaries {
                        close(found.ln_begins, begins.f_double_value(&[])?.ln(), &what);
                        close(found.ln_eos, expected.f_double_value(&[row, 0])?, &what);
                    }
                }
            }
        }
    }
    Ok(())
}

/// An intervention on the last layer, which is read off the forward of the unchanged model: its values, and how far they are from those
/// of the unchanged model.
#[test]
fn interventions_are_scored_as_in_f64() -> Outcome<()> {
    for (d_vocab, spread) in CASES {
        let model = random_model(d_vocab, spread, Kind::Float, |_| ())?;
        let words = WordVocabulary::new(&tokenizer(d_vocab)?, 0, usize::try_from(d_vocab)?)?;
        let tokens = random_tokens(1, 8, d_vocab).remove(0);
        let request = WordRequest::new(tokens.clone(), 5..6, WordStart::Space);
        let states = last_layer_states(&model, &[&tokens])?.remove(0);
        for few in [3, D_MLP] {
            let neurons = (0..few as usize).map(|neuron| NeuronId { layer: 0, neuron });
            let operation = Operation::Set(vec![2.0; few as usize]);
            let set = Intervention::new("set", NeuronSite::Post, neurons.collect(), operation)?;
            let change = states
                .activations
                .f_to_kind(Kind::Double)?
                .f_narrow(1, 0, few)?
                .f_rsub_scalar(2.0)?;
            let w_out = model
                .w_out(0)?
                .f_narrow(1, 0, few)?
                .f_to_kind(Kind::Double)?;
            let resid = states.resid.f_add(&change.f_matmul(&w_out.f_tr()?)?)?;
            let expected = in_f64(&model, &resid, model.w_u())?;
            let clean = in_f64(&model, &states.resid, model.w_u())?;
            let scorer = Scorer::new(&model, &words, 64)?;
            let tensors = Scorer::new(&model, &words, 64)?.with_tensors()?;
            for (scorer, way) in [(scorer, "kernel"), (tensors, "tensors")] {
                let both = [Intervention::base(), set.clone()];
                let found = scorer.score(std::slice::from_ref(&request), &both)?;
                let what = format!("{d_vocab} tokens, spread {spread}, {few} neurons, {way}");
                let piece = |ln_probs: &Tensor| ln_probs.f_double_value(&[4, tokens[5]]);
                let (of_base, of_set) = (found[0][0].ln_probs[0], found[0][1].ln_probs[0]);
                close(of_set, piece(&expected)?, &what);
                if way == "kernel" {
                    let change = piece(&expected)? - piece(&clean)?;
                    let off = (of_set - of_base - change).abs();
                    let allowed = ALLOWED_CHANGE * change.abs().max(1.0);
                    assert!(
                        off <= allowed,
                        "{what}: a change of {change} is off by {off:.1e}"
                    );
                }
                let p = expected.f_get(5)?.f_exp()?;
                let begins = p.f_slice(0, 2, None, 2)?.f_sum(Kind::Double)?;
                let expected = begins.f_double_value(&[])?.ln();
                close(found[0][1].after.ln_begins, expected, &what);
            }
        }
    }
    Ok(())
}

/// The kernel and the tensor engine, against forwards in which the neuron is replaced, whose logits are summed up in f64.
#[test]
fn ablations_are_measured_as_in_f64() -> Outcome<()> {
    for (d_vocab, spread) in CASES {
        let model = random_model(d_vocab, spread, Kind::Float, |_| ())?;
        let sample = Sample::new(
            random_tokens(2, 7, d_vocab),
            &[0],
            usize::try_from(d_vocab)?,
        )?;
        let frequencies = TokenFrequencies::new(zipf(usize::try_from(d_vocab)?))?;
        for sums in [ExactSums::Kernel, ExactSums::Tensor] {
            let exact = EngineOptions::default().with_engine(Engine::Exact);
            let plan = Plan::new(vec![0, 1], vec![0, 1])
                .with_engine(exact.with_exact(sums))
                .with_batch(2)
                .with_memory_budget(64 << 20);
            let check = self_check(&model, &sample, &frequencies, &[], plan)?;
            let what = format!("{d_vocab} tokens, spread {spread}, {sums:?}: {check:?}");
            close(check.worst(), 0.0, &what);
        }
    }
    Ok(())
}

/// Scaled rows and scaled neurons, and the null space that they are scaled in: values, and more closely what changes.
#[test]
fn scaling_is_measured_as_in_f64() -> Outcome<()> {
    let cases = CASES
        .into_iter()
        .flat_map(|case| [(case, Kind::Float), (case, Kind::Half)]);
    for ((d_vocab, spread), dtype) in cases {
        let tokens = usize::try_from(d_vocab)?;
        let (model, q) = (random_model(d_vocab, spread, dtype, |_| ())?, zipf(tokens));
        let options = NullSpaceOptions::default()
            .with_top_k_percent(1.0)
            .with_keep(Keep::Rank(10));
        let space = NullSpace::find(&model, &q, tokens, options)?;

        // What the frequencies point at, by plain sums over the vocabulary.
        let ln = model.ln_final();
        let mean_q = q.iter().map(|q| q.ln()).sum::<f64>() / tokens as f64;
        let log_q: Vec<f64> = q.iter().map(|q| q.ln() - mean_q).collect();
        let w_u = model.w_u().f_to_kind(Kind::Double)?;
        let direction = Tensor::f_from_slice(&log_q)?
            .f_unsqueeze(0)?
            .f_matmul(&w_u)?;
        let direction = direction.f_mul(&ln.weight.f_to_kind(Kind::Double)?)?;
        let direction = direction.f_sub(&direction.f_mean(Kind::Double)?)?;
        let part = direction.f_matmul(&space.space().projector()?)?;
        let norm2 = |t: &Tensor| t.f_square()?.f_sum(Kind::Double)?.f_double_value(&[]);
        let share = norm2(&part)? / norm2(&direction)?;
        close(space.unigram_share(&q)?, share, "the unigram direction");

        let rare = RareTokens::below_quantile(&q, tokens, 0.25)?;
        let strengths = rare.strengths(ScalingLaw::Constant, 0.0)?;
        let neurons = [0, 3].map(|neuron| NeuronId { layer: 0, neuron });
        let changes = [
            ("rows", space.row_change(rare.ids(), &strengths, None)?),
            ("neurons", space.neuron_change(&model, &neurons, None)?),
        ]
        .map(|(name, change)| NamedChange::new(name, change));
        let sequences = random_tokens(1, 7, d_vocab);
        let sample = Sample::new(sequences.clone(), &[0], tokens)?;
        let (rare_tokens, common) = (rare.ids().to_vec(), space.common().to_vec());
        let plan = ScalingPlan::new(vec![0], vec![1.5], rare_tokens, common);
        let states = SampleStates::new(&model, &sample, 8);
        let effects = measure_scaling(&states, &changes, &plan, &|_| ())?;
        let states = last_layer_states(&model, &[&sequences[0]])?.remove(0);
        let clean = in_f64(&model, &states.resid, model.w_u())?;
        let rows = 3..6i64;
        let rare_ids = Tensor::f_from_slice(rare.ids())?;
        let sum = |t: Tensor| t.f_sum(Kind::Double)?.f_double_value(&[]);
        // Means over the rows of the loss, the mass of rare tokens, the entropy and the divergences from the clean prediction.
        let measures = |ln_probs: &Tensor| -> Outcome<Vec<(ScalingMeasure, f64)>> {
            let mut loss = 0.0;
            for row in rows.clone() {
                loss -= ln_probs.f_double_value(&[row, sequences[0][row as usize + 1]])?;
            }
            let of_rows = |t: &Tensor| t.f_narrow(0, rows.start, rows.end - rows.start);
            let (before, after) = (of_rows(&clean)?, of_rows(ln_probs)?);
            let (p, q, x) = (before.f_exp()?, after.f_exp()?, after.f_sub(&before)?);
            // ln of the mixture over the clean probability.
            let mixture = x.f_expm1()?.f_div_scalar(2.0)?.f_log1p()?;
            let halves = [p.f_mul(&mixture)?, q.f_mul(&mixture.f_sub(&x)?)?];
            let [first, second] = halves.map(&sum);
            let n = (rows.end - rows.start) as f64;
            Ok(vec![
                (ScalingMeasure::Loss, loss / n),
                (
                    ScalingMeasure::RareMass,
                    sum(q.f_index_select(1, &rare_ids)?)? / n,
                ),
                (ScalingMeasure::Entropy, -sum(q.f_mul(&after)?)? / n),
                (ScalingMeasure::KlCleanScaled, -sum(p.f_mul(&x)?)? / n),
                (ScalingMeasure::KlScaledClean, sum(q.f_mul(&x)?)? / n),
                (ScalingMeasure::JensenShannon, -0.5 * (first? + second?) / n),
            ])
        };
        let before = measures(&clean)?;
        for (c, NamedChange { name, change, .. }) in changes.iter().enumerate() {
            let after = scaled(&model, change, &states.resid, &states.activations)?;
            for ((measure, before), (_, after)) in before.iter().zip(measures(&after)?) {
                let (all, n) = (TargetGroup::All, (rows.end - rows.start) as f64);
                let found = [
                    effects.clean(all, *measure)[0].sum / n,
                    effects.scaled(c, 0, all, *measure)?[0].sum / n,
                ];
                let what = format!(
                    "{d_vocab} tokens, spread {spread}, {dtype:?}, {name}, {}: {found:?}, in f64 {before} and {after}",
                    measure.name()
                );
                close(found[0], *before, &what);
                close(found[1], after, &what);
                let off = (found[1] - found[0]) - (after - before);
                assert!(
                    off.abs() <= ALLOWED_CHANGE,
                    "{what}: the change is off by {off:.1e}"
                );
            }
        }
    }
    Ok(())
}

/// Log-probabilities with a change at factor 1.5, in f64.
fn scaled(
    model: &Model,
    change: &WeightChange,
    resid: &Tensor,
    activations: &Tensor,
) -> Outcome<Tensor> {
    match change.target() {
        neuron_ablate::Target::UnembeddingRows(_) => in_f64(
            model,
            resid,
            &change.apply(Part::Unembedding, model.w_u(), 1.5)?,
        ),
        neuron_ablate::Target::OutputColumns(_) => {
            let w_out = model.w_out(0)?;
            let moved = change
                .apply(Part::MlpOut(0), &w_out, 1.5)?
                .f_sub(&w_out.f_to_kind(Kind::Double)?)?;
            let added = activations
                .f_to_kind(Kind::Double)?
                .f_matmul(&moved.f_tr()?)?;
            in_f64(model, &resid.f_add(&added)?, model.w_u())
        }
    }
}

/// What a forward says of the tokens that follow, and the mean activations.
#[test]
fn losses_of_a_forward_are_those_of_f64() -> Outcome<()> {
    for (d_vocab, spread) in CASES {
        for dtype in [Kind::Float, Kind::BFloat16, Kind::Half] {
            let model = random_model(d_vocab, spread, dtype, |_| ())?;
            let tokens = random_tokens(2, 6, d_vocab);
            let batch = Tensor::f_from_slice(&tokens.concat())?.f_view([2, 6])?;
            let logits = model.forward(&batch, None, &mut NoHooks)?;
            let found = next_token_ln_probs(&logits, &batch)?;
            assert_eq!((found.size(), found.kind()), (vec![2, 5], Kind::Double));
            let expected = logits
                .f_to_device(Device::Cpu)?
                .f_log_softmax(-1, Kind::Double)?;
            for (b, pos) in (0..2).flat_map(|b| (0..5).map(move |pos| (b, pos))) {
                let target = tokens[b as usize][pos as usize + 1];
                let expected = expected.f_double_value(&[b, pos, target])?;
                let what = format!("{d_vocab} tokens, spread {spread}, {dtype:?}");
                close(found.f_double_value(&[b, pos])?, expected, &what);
            }
        }
    }
    Ok(())
}

/// Sums over positions are not made in half precision, and the first of each sequence does not count where it is asked not to.
#[test]
fn mean_activations_are_those_of_f64() -> Outcome<()> {
    let model = random_model(4096, 0.7, Kind::BFloat16, |_| ())?;
    let mut packed = random_tokens(3, 12, 4096);
    (packed[0][0], packed[0][5], packed[1][11]) = (0, 0, 0);
    let sample = Sample::new(packed.clone(), &[0], 4096)?;
    let states = SampleStates::new(&model, &sample, 2);
    for (over, positions) in [
        (MeanOver::AllPositions, 36.0),
        (MeanOver::NotBos, 33.0),
        // Not the three that begin or end a text, of which one stands at the front: the other two sequences lose no token.
        (MeanOver::NotBosAnywhere, 33.0),
    ] {
        let found = mean_activations(&states, over, &|_, _| ())?;
        let (mut sums, mut count) = (vec![0.0; D_MLP as usize], 0.0);
        for tokens in &packed {
            let states = last_layer_states(&model, &[tokens])?.remove(0);
            let all: Vec<f32> = Vec::try_from(&states.activations.f_contiguous()?.f_view(-1)?)?;
            for (pos, of_token) in all.chunks(D_MLP as usize).enumerate() {
                let counts = match over {
                    MeanOver::AllPositions => true,
                    MeanOver::NotBos => pos > 0,
                    MeanOver::NotBosAnywhere => tokens[pos] != 0,
                };
                if counts {
                    count += 1.0;
                    sums.iter_mut()
                        .zip(of_token)
                        .for_each(|(sum, &value)| *sum += f64::from(value));
                }
            }
        }
        assert_eq!(count, positions);
        for (found, sum) in found.iter().zip(&sums) {
            assert!((found - sum / count).abs() < 1e-3 * (1e-2 + found.abs()));
        }
    }
    Ok(())
}

/// The standard error of a mean is that of a ratio of sums over documents, over all of their sequences and those drawn alone.
#[test]
fn errors_of_means_are_over_documents() -> Outcome<()> {
    let model = random_model(4096, 0.7, Kind::Float, |_| ())?;
    let packed = random_tokens(6, 12, 4096);
    let documents = vec![0, 0, 1, 2, 2, 3];
    let sample = Sample::new(packed.clone(), &[0], 4096)?.from_documents(documents.clone())?;
    let of = [MeanOf::Neurons(0), MeanOf::Heads(0)];
    // Documents are read in parts where some of their sequences are kept.
    let states = SampleStates::new(&model, &sample, 4).keeping(&[4, 1], &[0], 1 << 20);
    for sequences in [vec![0, 1, 2, 3, 4, 5], vec![5, 0, 2], vec![0, 1]] {
        let found = sample_means(&states, &sequences, &of, &|_, _| ())?;
        assert_eq!(found[1].of, MeanOf::Heads(0));
        let means = found[0].over(MeanOver::NotBos)?;
        let sum = |i: usize| -> Outcome<f64> {
            let states = last_layer_states(&model, &[&packed[i]])?.remove(0);
            Ok(states
                .activations
                .f_select(1, 3)?
                .f_narrow(0, 1, 11)?
                .f_sum(Kind::Double)?
                .f_double_value(&[])?)
        };
        let mut of_document = [(0.0, 0.0); 4];
        for &i in &sequences {
            of_document[documents[i]].0 += sum(i)?;
            of_document[documents[i]].1 += 11.0;
        }
        let (total, n) = of_document
            .iter()
            .fold((0.0, 0.0), |(t, n), d| (t + d.0, n + d.1));
        let mean = total / n;
        assert!((means.mean[3] - mean).abs() < 1e-9);
        let there = of_document.iter().filter(|d| d.1 > 0.0);
        let squares: f64 = there.clone().map(|d| (d.0 - mean * d.1).powi(2)).sum();
        let documents = there.count() as f64;
        let error = (documents / (documents - 1.0) * squares).sqrt() / n;
        match documents > 1.0 {
            true => assert!((means.standard_error[3] / error - 1.0).abs() < 1e-6),
            false => assert!(means.standard_error[3].is_nan()),
        }
    }
    // Means of a layer of another width are no means of this one.
    let frequencies = TokenFrequencies::new(zipf(4096))?;
    let plan = Plan::new(vec![0], vec![0]);
    let narrow = LayerMeans::default().with_neurons(0, vec![0.0; 3]);
    let sweep = Sweep::new(&model, &sample, &frequencies, vec![], plan)?.with_means(narrow);
    let refused = sweep.run();
    assert!(matches!(refused, Err(AblateError::NoSuchComponent { .. })));
    Ok(())
}
