//! Mean ablation in models of every family against an evaluation in f64 by other code.
#![cfg(test)]

use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use neox_core::{LoadOptions, Model, next_token_ln_probs};
use neuron_ablate::{
    Dose, Engine, EngineOptions, ExactSums, Intervention, InterventionHooks, KlDirection, Measure,
    NestedSets, NeuronId, NeuronSite, Operation, Plan, Sample, Scorer, Semantics, Sweep,
    TokenFrequencies, Variant, Variants, WordRequest, WordStart, WordVocabulary, self_check,
};
use tch::{Kind, Tensor};

type Outcome<T> = Result<T, Box<dyn Error>>;

fn families() -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/golden/families"
    ))
}

fn values(tensor: &Tensor) -> Outcome<Vec<f64>> {
    Ok(Vec::try_from(
        &tensor.f_to_kind(Kind::Double)?.f_reshape([-1])?,
    )?)
}

fn golden(dir: &Path) -> Outcome<HashMap<String, Tensor>> {
    let tensors = Tensor::read_safetensors(dir.join("expected.safetensors"))?;
    Ok(tensors.into_iter().collect())
}

fn sample(dir: &Path) -> Outcome<Sample> {
    let golden = golden(dir)?;
    let tokens: Vec<Vec<i64>> = Vec::try_from(&golden["tokens"])?;
    Ok(Sample::new(tokens, &[], golden["counts"].numel())?)
}

fn frequencies(dir: &Path) -> Outcome<TokenFrequencies> {
    let counts = values(&golden(dir)?["counts"])?;
    let total: f64 = counts.iter().map(|c| c + 1.0).sum();
    let frequencies = counts.iter().map(|c| (c + 1.0) / total).collect();
    Ok(TokenFrequencies::new(frequencies)?)
}

fn plan(neurons: Vec<usize>) -> Plan {
    Plan {
        neurons,
        sequences: vec![0, 1],
        dose: Dose::Mean,
        semantics: Semantics::corrected(),
        variants: Variants {
            frozen_ln: true,
            ..Variants::default()
        },
        ranks: false,
        engine: EngineOptions::default(),
        batch: 4,
        memory_budget: 64 << 20,
    }
}

/// Made in f64 from transformers' forward: the neuron set at every position to its mean over all positions but 0.
/// Loss, entropy and `KL(model || freq)`, with the final norm's scale as it becomes and as it was.
///
/// Effects are compared, ablated minus clean: a forward in f32 alone moves the losses of a model with RMSNorm by more than an effect may
/// be off (transformers' own f32 logits of the Llama models give losses up to 1.6e-5 from those in f64).
fn check(name: &str, engine: EngineOptions) -> Outcome<()> {
    let dir = families().join(name);
    let model = Model::load(&dir, &LoadOptions::default())?;
    let (golden, sample, frequencies) = (golden(&dir)?, sample(&dir)?, frequencies(&dir)?);

    let last = model.config().num_hidden_layers as i64 - 1;
    let ablated: Vec<Vec<i64>> = Vec::try_from(&golden["ablated"])?; // (layer, neuron)
    let of_last: Vec<usize> = (0..ablated.len())
        .filter(|&i| ablated[i][0] == last)
        .collect();
    let plan = Plan {
        engine,
        ..plan(of_last.iter().map(|&i| ablated[i][1] as usize).collect())
    };
    let worst = self_check(&model, &sample, &frequencies, plan.clone())?.worst();
    assert!(worst < 1e-5, "{name}: self-check off by {worst:.1e}");

    let measures = [
        ("loss", Measure::Loss),
        ("entropy", Measure::Entropy),
        ("kl_model_freq", Measure::Kl(KlDirection::ModelFreq)),
    ];
    let read = |kind: &str| -> Outcome<Vec<Vec<f64>>> {
        let all = measures.iter();
        all.map(|(name, _)| values(&golden[&format!("{kind}_{name}")]))
            .collect()
    };
    let (after, frozen) = (read("ablated")?, read("frozen_ln")?); // [measure][neuron][2][39]
    let before = read("clean")?; // [measure][2][39]
    let sweep = Sweep::new(&model, &sample, &frequencies, vec![], plan)?;
    let neurons = of_last.len();
    let mut compared = 0;
    sweep.run(
        &mut |block| {
            let n_rows = block.rows.len();
            for (place, (measure_name, measure)) in measures.into_iter().enumerate() {
                for (variant, golden, of_golden) in [
                    (Variant::Total, &after[place], of_last.clone()),
                    (Variant::FrozenLn, &frozen[place], (0..neurons).collect()),
                ] {
                    for (pair, found) in block.change(variant, measure)?.enumerate() {
                        let (n, row) = (pair / n_rows, block.rows[pair % n_rows]);
                        let of_row = row.sequence * 39 + row.pos;
                        let golden = golden[of_golden[n] * 2 * 39 + of_row];
                        let off = (found - (golden - before[place][of_row])).abs();
                        assert!(
                            off < 1e-5,
                            "{name}: the effect on {measure_name} of neuron {n}, {variant:?}, is off by {off:.1e}",
                        );
                        compared += 1;
                    }
                }
            }
            Ok(())
        },
        &|_| (),
    )?;
    // From position 3 on.
    assert_eq!(compared, neurons * 2 * 36 * 3 * 2);
    Ok(())
}

/// Three neurons of the last layer set to their means at once, against a forward with hooks.
#[test]
fn sets_match_hooked_forwards_in_every_family() -> Outcome<()> {
    for family in std::fs::read_dir(families())? {
        let dir = family?.path();
        let model = Model::load(&dir, &LoadOptions::default())?;
        let (sample, frequencies) = (sample(&dir)?, frequencies(&dir)?);
        let plan = plan(vec![3, 9, 20]);
        let sweep = Sweep::new(&model, &sample, &frequencies, vec![], plan)?;
        let mean = sweep.run(&mut |_| Ok(()), &|_| ())?.mean_activations;
        let lists = [NestedSets::new("three", vec![3, 9, 20], vec![1, 3])?];
        let sets = sweep.run_sets(&lists, &[Dose::Mean], &mean, &|_| ())?;

        let layer = model.config().num_hidden_layers - 1;
        for (set, indices) in sets.iter().zip([vec![3], vec![3, 9, 20]]) {
            let values = indices.iter().map(|&n| mean[n]).collect();
            let neurons = indices.iter().map(|&neuron| NeuronId { layer, neuron });
            let ablated = Intervention::new(
                "ablated",
                NeuronSite::Post,
                neurons.collect(),
                Operation::Set(values),
            )?;
            let loss = |intervention: &Intervention| -> Outcome<f64> {
                let mut sum = 0.0;
                for tokens in sample.sequences() {
                    let tokens = Tensor::from_slice(tokens).f_view([1, -1])?;
                    let mut hooks = InterventionHooks::new(intervention);
                    let logits = model.forward(&tokens, None, &mut hooks)?;
                    let ln_probs = next_token_ln_probs(&logits, &tokens)?;
                    sum -= ln_probs
                        .f_narrow(1, 3, 36)?
                        .f_sum(Kind::Double)?
                        .f_double_value(&[])?;
                }
                Ok(sum / 72.0)
            };
            let expected = loss(&ablated)? - loss(&Intervention::base())?;
            let found = set.effects.change(Variant::Total, Measure::Loss)?.mean;
            assert!(expected.abs() > 1e-5, "{}", dir.display());
            assert!(
                (found - expected).abs() < 2e-6,
                "{}, {} neurons: {found}, expected {expected}",
                dir.display(),
                set.size
            );
        }
    }
    Ok(())
}

/// Ranks of the targets with a neuron set to its mean, against a forward with hooks; a rank may be one off where logits are equal but for
/// rounding.
#[test]
fn ranks_match_hooked_forwards_in_every_family() -> Outcome<()> {
    for family in std::fs::read_dir(families())? {
        let dir = family?.path();
        let model = Model::load(&dir, &LoadOptions::default())?;
        let (sample, frequencies) = (sample(&dir)?, frequencies(&dir)?);
        let layer = model.config().num_hidden_layers - 1;
        for exact in [ExactSums::Kernel, ExactSums::Tensor] {
            let engine = EngineOptions {
                engine: Engine::Exact,
                exact,
                ..EngineOptions::default()
            };
            let plan = Plan {
                ranks: true,
                engine,
                ..plan(vec![3, 9])
            };
            let sweep = Sweep::new(&model, &sample, &frequencies, vec![], plan)?;
            let mut found: Vec<(usize, usize, usize, u32)> = Vec::new();
            let mean = sweep
                .run(
                    &mut |block| {
                        let ranks = block.ranks.ok_or("no ranks")?.ablated;
                        for (pair, rank) in ranks.iter().enumerate() {
                            let row = block.rows[pair % block.rows.len()];
                            let neuron = block.neurons[pair / block.rows.len()];
                            found.push((neuron, row.sequence, row.pos, *rank));
                        }
                        Ok(())
                    },
                    &|_| (),
                )?
                .mean_activations;
            assert_eq!(found.len(), 2 * 2 * 36);
            let mut off = 0;
            for neuron in [3, 9] {
                let ablated = Intervention::new(
                    "ablated",
                    NeuronSite::Post,
                    vec![NeuronId { layer, neuron }],
                    Operation::Set(vec![mean[neuron]]),
                )?;
                for (sequence, tokens) in sample.sequences().iter().enumerate() {
                    let input = Tensor::from_slice(tokens).f_view([1, -1])?;
                    let mut hooks = InterventionHooks::new(&ablated);
                    let logits = model.forward(&input, None, &mut hooks)?;
                    for (.., pos, rank) in found
                        .iter()
                        .filter(|(n, s, ..)| (*n, *s) == (neuron, sequence))
                    {
                        let at_pos = logits.f_get(0)?.f_get(*pos as i64)?;
                        let target = at_pos.f_double_value(&[tokens[pos + 1]])?;
                        let larger = at_pos.f_gt(target)?.f_sum(Kind::Int64)?;
                        let expected = larger.f_int64_value(&[])?;
                        let apart = (i64::from(*rank) - expected).abs();
                        assert!(
                            apart <= 1,
                            "{}: rank {rank}, expected {expected}",
                            dir.display()
                        );
                        off += apart;
                    }
                }
            }
            assert!(off <= 2, "{}: {off} ranks differ", dir.display());
        }
    }
    Ok(())
}

#[test]
fn ablation_matches_f64_in_every_family() -> Outcome<()> {
    let exact = EngineOptions {
        engine: Engine::Exact,
        tolerance: 1e-6,
        exact: ExactSums::Kernel,
    };
    let mut families: Vec<_> = std::fs::read_dir(families())?.collect::<Result<_, _>>()?;
    families.sort_by_key(std::fs::DirEntry::file_name);
    for family in families {
        let name = family.file_name().to_string_lossy().into_owned();
        check(&name, exact)?;
        check(
            &name,
            EngineOptions {
                engine: Engine::Auto,
                ..exact
            },
        )?;
    }
    Ok(())
}

/// Interventions on neurons of the last and of another layer, against forwards with hooks.
#[test]
fn words_match_hooked_forwards_in_every_family() -> Outcome<()> {
    for family in std::fs::read_dir(families())? {
        let dir = family?.path();
        let model = Model::load(&dir, &LoadOptions::default())?;
        let config = model.config();
        let (last, d_vocab) = (config.num_hidden_layers - 1, config.vocab_size as usize);
        let words = WordVocabulary::without_words(0, d_vocab);
        let tokens: Vec<Vec<i64>> = Vec::try_from(&golden(&dir)?["tokens"])?;
        let request = |tokens: &[i64], word| WordRequest {
            tokens: tokens.to_vec(),
            word,
            start: WordStart::Space,
        };
        let requests = [
            request(&tokens[0][..12], 10..12),
            request(&tokens[0][..10], 7..10),
            request(&tokens[1], 39..40),
        ];
        let neurons = |layer| [3, 9].map(|neuron| NeuronId { layer, neuron }).to_vec();
        let interventions = [
            Intervention::base(),
            Intervention::new(
                "last",
                NeuronSite::Post,
                neurons(last),
                Operation::Scale(-3.0),
            )?,
            Intervention::new(
                "first",
                NeuronSite::Post,
                neurons(0),
                Operation::Scale(-3.0),
            )?,
        ];
        let scores = Scorer::new(&model, &words, 4096)?
            .without_boundaries()
            .score(&requests, &interventions)?;
        for (request, scores) in requests.iter().zip(&scores) {
            let tokens = Tensor::from_slice(&request.tokens).f_view([1, -1])?;
            for (intervention, score) in interventions.iter().zip(scores) {
                let mut hooks = InterventionHooks::new(intervention);
                let logits = model.forward(&tokens, None, &mut hooks)?;
                let ln_probs = logits.f_log_softmax(-1, Kind::Double)?;
                for (piece, ln_prob) in request.word.clone().zip(&score.ln_probs) {
                    let at = [0, piece as i64 - 1, request.tokens[piece]];
                    let off = (ln_prob - ln_probs.f_double_value(&at)?).abs();
                    assert!(
                        off < 2e-5,
                        "{}, {}: off by {off:.1e}",
                        dir.display(),
                        intervention.name()
                    );
                }
            }
            let moved = |i: usize| (scores[i].ln_probs[0] - scores[0].ln_probs[0]).abs();
            assert!(moved(1) > 1e-4 && moved(2) > 1e-4, "{}", dir.display());
        }
    }
    Ok(())
}
