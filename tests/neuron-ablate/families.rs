//! Mean ablation in models of every family against an evaluation in f64 by other code.
#![cfg(test)]

use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use neox_core::{HookError, Hooks, LoadOptions, Model, NoHooks, Site, next_token_ln_probs};
use neuron_ablate::{
    AblateError, Dose, Engine, EngineOptions, ExactSums, HeadId, Intervention, InterventionHooks,
    KlDirection, Measure, NestedSets, NeuronId, NeuronSite, Operation, Over, PairBlock, Plan,
    Sample, SampleStates, Scorer, Semantics, Sweep, Tick, TokenBand, TokenFrequencies, Variant,
    WordRequest, WordStart, WordVocabulary, layer_means, self_check, self_check_neurons,
};
use tch::{Kind, Tensor};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// What the golden files have, under their names.
const MEASURES: [(&str, Measure); 3] = [
    ("loss", Measure::Loss),
    ("entropy", Measure::Entropy),
    ("kl_model_freq", Measure::Kl(KlDirection::ModelFreq)),
];

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
    Plan::new(neurons, vec![0, 1])
        .with_batch(4)
        .with_memory_budget(64 << 20)
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
    let plan = plan(of_last.iter().map(|&i| ablated[i][1] as usize).collect()).with_engine(engine);
    let worst = self_check(&model, &sample, &frequencies, &[], plan.clone())?.worst();
    assert!(worst < 1e-5, "{name}: self-check off by {worst:.1e}");

    let read = |kind: &str| -> Outcome<Vec<Vec<f64>>> {
        let all = MEASURES.iter();
        all.map(|(name, _)| values(&golden[&format!("{kind}_{name}")]))
            .collect()
    };
    let (after, frozen) = (read("ablated")?, read("frozen_ln")?); // [measure][neuron][2][39]
    let before = read("clean")?; // [measure][2][39]
    let sweep = Sweep::new(&model, &sample, &frequencies, vec![], plan)?;
    let neurons = of_last.len();
    let mut compared = 0;
    sweep.run_with(
        &mut |block| {
            let n_rows = block.rows.len();
            for (place, (measure_name, measure)) in MEASURES.into_iter().enumerate() {
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

/// Every variant and every measure against its definition on forwards with the neuron replaced, under each semantics: in closed form for
/// neurons of the last layer, with the model run on for those of layer 0.
#[test]
fn every_variant_is_as_defined_in_every_family() -> Outcome<()> {
    for family in std::fs::read_dir(families())? {
        let dir = family?.path();
        let model = Model::load(&dir, &LoadOptions::default())?;
        let (sample, frequencies) = (sample(&dir)?, frequencies(&dir)?);
        let d_vocab = frequencies.q().len();
        let band: Vec<u32> = (0..d_vocab as u32).filter(|t| t % 3 == 1).collect();
        let bands = [TokenBand::new("band", &band, d_vocab)?];
        for semantics in [
            Semantics::corrected(),
            Semantics::liu2025(),
            Semantics::stolfo2024(),
        ] {
            let mut plan = plan(vec![0, 7]).with_semantics(semantics);
            plan.sequences = vec![1];
            let first = [0, 5].map(|neuron| NeuronId { layer: 0, neuron });
            let of_first = plan.clone();
            for found in [
                self_check(&model, &sample, &frequencies, &bands, plan)?,
                self_check_neurons(&model, &sample, &frequencies, &bands, of_first, &first)?,
            ] {
                assert_eq!(found.differences.len(), 4 * 6);
                assert_eq!(found.pairs, 2 * 36);
                let worst = found.worst();
                assert!(worst < 2e-5, "{}: {worst:.1e} in {found:?}", dir.display());
            }
        }
    }
    Ok(())
}

/// The same values for neurons of layer 0, and once more for those of the last layer, with the model run on from the neurons' layers.
#[test]
fn running_on_matches_f64_in_every_family() -> Outcome<()> {
    for family in std::fs::read_dir(families())? {
        let dir = family?.path();
        let model = Model::load(&dir, &LoadOptions::default())?;
        let (golden, sample, frequencies) = (golden(&dir)?, sample(&dir)?, frequencies(&dir)?);
        let last = model.config().num_hidden_layers - 1;
        let ablated: Vec<Vec<i64>> = Vec::try_from(&golden["ablated"])?; // (layer, neuron)
        let mut neurons: Vec<NeuronId> = ablated
            .iter()
            .map(|id| NeuronId {
                layer: id[0] as usize,
                neuron: id[1] as usize,
            })
            .collect();
        let of_golden = neurons.clone();
        assert!(neurons.iter().any(|n| n.layer == 0));
        // Another order than that of the golden values.
        neurons.sort();
        let over = Semantics::corrected().mean_activation;
        let states = SampleStates::new(&model, &sample, 4);
        let means = layer_means(&states, (&[0, last], &[]), over, &|_, _| ())?;
        // With next to no memory one copy runs on at a time.
        for (ranks, memory_budget) in [(false, 64 << 20), (true, 1 << 16)] {
            let plan = plan(vec![])
                .with_ranks(ranks)
                .with_memory_budget(memory_budget);
            let sweep = Sweep::new(&model, &sample, &frequencies, vec![], plan)?;
            let layers: Vec<usize> = neurons.iter().map(|n| n.layer).collect();
            let cost = sweep.forward_cost(&layers)?;
            assert_eq!(cost.pairs, neurons.len() * 72);
            assert_eq!(cost.copies == 1, ranks);
            // Both texts together in a batch for each of the two layers, or each neuron at each text by itself.
            assert_eq!(cost.forwards, if ranks { 2 * neurons.len() } else { 2 });
            let mut compared = 0;
            let mut compare = |block: &PairBlock<'_>| -> Result<(), Box<dyn Error + Send + Sync>> {
                for (name, measure) in MEASURES {
                    let before = &golden[&format!("clean_{name}")];
                    for (variant, kind) in [
                        (Variant::Total, "ablated"),
                        (Variant::FrozenLn, "frozen_ln"),
                    ] {
                        // Frozen norms are there for the last layer alone, whose neurons come first.
                        if variant == Variant::FrozenLn && block.layer != last {
                            continue;
                        }
                        let after = &golden[&format!("{kind}_{name}")];
                        for (pair, found) in block.change(variant, measure)?.enumerate() {
                            let (n, r) = (pair / block.rows.len(), pair % block.rows.len());
                            let (layer, neuron) = (block.layer, block.neurons[n]);
                            let id = NeuronId { layer, neuron };
                            let place = of_golden.iter().position(|of| *of == id);
                            let place = place.ok_or("no such neuron")? as i64;
                            let at = [block.rows[r].sequence as i64, block.rows[r].pos as i64];
                            let expected = after.f_double_value(&[place, at[0], at[1]])?
                                - before.f_double_value(&at)?;
                            let off = (found - expected).abs();
                            assert!(
                                off < 1e-5,
                                "{}: the effect on {name} of neuron {id}, {variant:?}, is off by {off:.1e}",
                                dir.display()
                            );
                            compared += 1;
                        }
                    }
                }
                Ok(())
            };
            let mut ticks = AtomicUsize::new(0);
            let effects = sweep.run_neurons_with(&neurons, &means, &mut compare, &|tick| {
                if let Tick::Pairs(more) = tick {
                    ticks.fetch_add(more, Ordering::Relaxed);
                }
            })?;
            assert_eq!(*ticks.get_mut(), cost.pairs);
            for (neuron, id) in effects.iter().zip(&neurons) {
                assert_eq!((neuron.layer, neuron.neuron), (id.layer, id.neuron));
                assert_eq!(neuron.effects.rows(), 72);
                assert_eq!(neuron.effects.rank_change(Over::All).is_some(), ranks);
            }
            // Nine neurons, six of them with a frozen norm, from position 3 on.
            assert_eq!(compared, (9 + 6) * 72 * 3, "{}", dir.display());
        }
    }
    Ok(())
}

/// Puts values in the place of a head's output.
struct SetHead {
    site: Site,
    first: i64,
    values: Tensor,
}

impl Hooks for SetHead {
    fn wants(&self, site: Site) -> bool {
        site == self.site
    }

    fn at(&mut self, _: Site, value: Tensor) -> Result<Tensor, HookError> {
        let value = value.f_detach_copy()?;
        let mut part = value.f_narrow(-1, self.first, self.values.numel() as i64)?;
        part.f_copy_(&self.values.f_expand_as(&part)?)?;
        Ok(value)
    }
}

/// Heads of the first and the last layer set to zero and to their means, against whole forwards with hooks.
#[test]
fn heads_match_hooked_forwards_in_every_family() -> Outcome<()> {
    for family in std::fs::read_dir(families())? {
        let dir = family?.path();
        let model = Model::load(&dir, &LoadOptions::default())?;
        let config = model.config();
        let (sample, frequencies) = (sample(&dir)?, frequencies(&dir)?);
        let (last, d_head) = (config.num_hidden_layers - 1, config.head_size);
        let sweep = Sweep::new(&model, &sample, &frequencies, vec![], plan(vec![]))?;
        let over = Semantics::corrected().mean_activation;
        let states = SampleStates::new(&model, &sample, 4);
        let means = layer_means(&states, (&[], &[0, last]), over, &|_, _| ())?;
        let heads: Vec<HeadId> = ["0.0", "0.1"]
            .iter()
            .map(|id| id.parse())
            .chain([Ok(HeadId {
                layer: last,
                head: config.num_attention_heads as usize - 1,
            })])
            .collect::<Result<_, _>>()?;
        let loss = |hooks: &mut dyn Hooks| -> Outcome<f64> {
            let mut sum = 0.0;
            for tokens in sample.sequences() {
                let tokens = Tensor::from_slice(tokens).f_view([1, -1])?;
                let logits = model.forward(&tokens, None, hooks)?;
                let ln_probs = next_token_ln_probs(&logits, &tokens)?;
                let kept = ln_probs.f_narrow(1, 3, 36)?;
                sum -= kept.f_sum(Kind::Double)?.f_double_value(&[])?;
            }
            Ok(sum / 72.0)
        };
        let clean = loss(&mut NoHooks)?;
        for dose in [Dose::Mean, Dose::Scale(0.0)] {
            let found = sweep.run_heads(&heads, dose, &means, &|_| ())?;
            for (head, found) in heads.iter().zip(&found) {
                assert_eq!(found.head, *head);
                let first = head.head as i64 * d_head;
                let values = match dose {
                    Dose::Mean => Tensor::from_slice(means.heads(head.layer).ok_or("no means")?)
                        .f_narrow(0, first, d_head)?
                        .f_to_kind(Kind::Float)?,
                    _ => Tensor::f_zeros([d_head], (Kind::Float, tch::Device::Cpu))?,
                };
                let expected = loss(&mut SetHead {
                    site: Site::HeadOut(head.layer),
                    first,
                    values,
                })? - clean;
                let change = found.effects.change(Variant::Total, Measure::Loss)?.mean;
                assert!(expected.abs() > 1e-5, "{}", dir.display());
                assert!(
                    (change - expected).abs() < 2e-6,
                    "{}, head {head}, {dose:?}: {change}, expected {expected}",
                    dir.display()
                );
                assert!(found.change_norm() > 0.0);
            }
        }
        let refused = sweep.run_heads(&heads, Dose::ClipAtMean, &means, &|_| ());
        assert!(matches!(refused, Err(AblateError::HeadDose)));
        let none = HeadId { layer: 0, head: 99 };
        let refused = sweep.run_heads(&[none], Dose::Mean, &means, &|_| ());
        let message = refused.err().ok_or("it has no head 99")?.to_string();
        assert!(message.contains("head 0.99"), "{message}");
    }
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
        let mean = sweep.run()?.mean_activations;
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

/// Neurons of two layers changed at once, at several doses, against a forward with hooks; and sets of the last layer as in closed form.
#[test]
fn sets_of_several_layers_match_hooked_forwards_in_every_family() -> Outcome<()> {
    for family in std::fs::read_dir(families())? {
        let dir = family?.path();
        let model = Model::load(&dir, &LoadOptions::default())?;
        let (sample, frequencies) = (sample(&dir)?, frequencies(&dir)?);
        let last = model.config().num_hidden_layers - 1;
        let over = Semantics::corrected().mean_activation;
        let states = SampleStates::new(&model, &sample, 4);
        let means = layer_means(&states, (&[0, last], &[]), over, &|_, _| ())?;
        let sweep = Sweep::new(&model, &sample, &frequencies, vec![], plan(vec![]))?;
        let ids = |names: &[&str]| -> Result<Vec<NeuronId>, _> {
            names.iter().map(|name| name.parse()).collect()
        };
        let ranked = [
            ids(&["0.3", "0.20"])?,
            vec![NeuronId {
                layer: last,
                neuron: 9,
            }],
        ]
        .concat();
        let of_last = [9, 3].map(|neuron| NeuronId {
            layer: last,
            neuron,
        });
        let lists = [
            NestedSets::new("both", ranked, vec![1, 3])?,
            NestedSets::whole("last", of_last.to_vec())?,
        ];
        let doses = [Dose::Mean, Dose::Scale(-1.0), Dose::ClipAtMean];
        let sets = sweep.run_sets_on(&lists, &doses, &means, &|_| ())?;
        assert_eq!(sets.len(), 3 * 3);
        let loss = |intervention: &Intervention| -> Outcome<f64> {
            let mut sum = 0.0;
            for tokens in sample.sequences() {
                let tokens = Tensor::from_slice(tokens).f_view([1, -1])?;
                let mut hooks = InterventionHooks::new(intervention);
                let logits = model.forward(&tokens, None, &mut hooks)?;
                let kept = next_token_ln_probs(&logits, &tokens)?.f_narrow(1, 3, 36)?;
                sum -= kept.f_sum(Kind::Double)?.f_double_value(&[])?;
            }
            Ok(sum / 72.0)
        };
        let clean = loss(&Intervention::base())?;
        for set in &sets {
            let neurons = lists[set.list].set(set.size).to_vec();
            let mean = |n: &NeuronId| means.neurons(n.layer).map_or(f64::NAN, |m| m[n.neuron]);
            let of_neurons = || neurons.iter().map(mean).collect();
            let operation = match set.dose {
                Dose::Mean => Operation::Set(of_neurons()),
                Dose::Scale(factor) => Operation::Scale(factor),
                Dose::ClipAtMean => Operation::Clip(of_neurons()),
            };
            let changed = Intervention::new("set", NeuronSite::Post, neurons.clone(), operation)?;
            let expected = loss(&changed)? - clean;
            let found = set.effects.change(Variant::Total, Measure::Loss)?.mean;
            assert!(
                (found - expected).abs() < 2e-6,
                "{}, {:?}, {:?}: {found}, expected {expected}",
                dir.display(),
                lists[set.list].set(set.size),
                set.dose
            );
        }
        let in_last = lists[1].in_layer(last).ok_or("another layer")?;
        let mean = means.neurons(last).ok_or("no means")?;
        let closed = sweep.run_sets(&[in_last], &doses, mean, &|_| ())?;
        for (found, closed) in sets[6..].iter().zip(&closed) {
            for variant in sweep.variants() {
                for measure in sweep.measures() {
                    let (found, closed) = (
                        found.effects.change(*variant, *measure)?,
                        closed.effects.change(*variant, *measure)?,
                    );
                    let off = (found.mean_abs - closed.mean_abs).abs();
                    assert!(off < 2e-6, "{}: {off:.1e}", dir.display());
                }
            }
            assert!((found.change_norm() - closed.change_norm()).abs() < 1e-5);
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
            let engine = EngineOptions::default()
                .with_engine(Engine::Exact)
                .with_exact(exact);
            let plan = plan(vec![3, 9]).with_ranks(true).with_engine(engine);
            let sweep = Sweep::new(&model, &sample, &frequencies, vec![], plan)?;
            let mut found: Vec<(usize, usize, usize, u32)> = Vec::new();
            let mean = sweep
                .run_with(
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
    let exact = EngineOptions::default()
        .with_engine(Engine::Exact)
        .with_exact(ExactSums::Kernel);
    let mut families: Vec<_> = std::fs::read_dir(families())?.collect::<Result<_, _>>()?;
    families.sort_by_key(std::fs::DirEntry::file_name);
    for family in families {
        let name = family.file_name().to_string_lossy().into_owned();
        check(&name, exact)?;
        check(&name, exact.with_engine(Engine::Auto))?;
    }
    Ok(())
}

/// Holds some activations and lets others through.
const CLAMP: Operation = Operation::Clamp {
    low: -0.05,
    high: 0.02,
};

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
        let request =
            |tokens: &[i64], word| WordRequest::new(tokens.to_vec(), word, WordStart::Space);
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
            Intervention::new("clamp", NeuronSite::Post, neurons(last), CLAMP)?,
            Intervention::new("clamp of the first", NeuronSite::Post, neurons(0), CLAMP)?,
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
            assert!((1..=4).all(|i| moved(i) > 1e-5), "{}", dir.display());
        }
    }
    Ok(())
}
