//! Null space and scaling, against the Python package of Liu et al. (2025) and against checkpoints that were really changed.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use neox_core::{LoadOptions, Model, NoHooks, Part, save_with, stored_tensor};
use neuron_ablate::{
    Keep, NamedChange, NeuronId, NullSpace, NullSpaceOptions, RareTokens, Sample, SampleStates,
    ScalingError, ScalingLaw, ScalingMeasure, ScalingPlan, TargetGroup, WeightChange,
    measure_scaling, scaling_cost,
};
use surprisal_metrics::LnProbs;
use tch::{Kind, Tensor};

const D_VOCAB: usize = 4096;
const N_TOKENS: usize = 4079;
const W_U: Part = Part::Unembedding;
const W_OUT: Part = Part::MlpOut(3);

fn neurons(layer: usize, numbers: &[usize]) -> Vec<NeuronId> {
    let each = numbers.iter();
    each.map(|&neuron| NeuronId { layer, neuron }).collect()
}

fn liu2025() -> NullSpaceOptions {
    folded().with_centred(false).with_folded(false)
}

fn folded() -> NullSpaceOptions {
    NullSpaceOptions::default()
}

fn checkpoint() -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../examples/data/tiny-neox/step4000"
    ))
}

fn model(dir: &Path) -> Model {
    Model::load(dir, &LoadOptions::default()).unwrap()
}

fn golden(name: &str) -> serde_json::Value {
    let path = PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/golden/tiny-neox"
    ))
    .join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// `(c + 1) / sum(c + 1)` of the bundled counts.
fn frequencies() -> Vec<f64> {
    let counts = Tensor::read_npy(checkpoint().with_file_name("train-unigrams.npy")).unwrap();
    let mut counts: Vec<f64> = Vec::try_from(&counts.f_to_kind(Kind::Double).unwrap()).unwrap();
    counts.resize(D_VOCAB, 0.0);
    let sum: f64 = counts.iter().map(|c| c + 1.0).sum();
    counts.iter().map(|c| (c + 1.0) / sum).collect()
}

fn close(found: f64, expected: &serde_json::Value, tolerance: f64, what: &str) {
    let expected = expected.as_f64().unwrap();
    let error = (found - expected).abs() / expected.abs().max(1e-12);
    assert!(
        error <= tolerance,
        "{what}: {found}, expected {expected}, off by {error:.1e} of it"
    );
}

/// Made by the Python package of Liu et al. in f32 (tests/golden/README.md); padding rows count as tokens there.
#[test]
fn scaling_laws_match_the_python_original() {
    let (model, frequencies, golden) = (
        model(&checkpoint()),
        frequencies(),
        golden("null-space.json"),
    );
    let space = NullSpace::find(&model, &frequencies, D_VOCAB, liu2025()).unwrap();
    let rare = RareTokens::below_quantile(&frequencies, D_VOCAB, 0.25).unwrap();
    assert_eq!(space.common().len(), 204);
    for (name, law) in [
        ("linear", ScalingLaw::Linear),
        ("log", ScalingLaw::Log),
        ("power", ScalingLaw::Power(1.0)),
    ] {
        let expected = &golden["results"][name];
        assert_eq!(
            space.space().dimension() as u64,
            expected["null_dim"].as_u64().unwrap()
        );
        assert_eq!(
            rare.ids().len() as u64,
            expected["rare_tokens"].as_u64().unwrap()
        );
        close(
            rare.threshold(),
            &expected["rare_threshold"],
            1e-6,
            "threshold",
        );
        close(
            space.unigram_share(&frequencies).unwrap().sqrt(),
            &expected["unigram_projection_ratio"],
            1e-5,
            "unigram ratio",
        );
        let change = space
            .row_change(rare.ids(), &rare.strengths(law, 1e-10).unwrap(), None)
            .unwrap();
        let factor = golden["base_scaling_factor"].as_f64().unwrap();
        let norms: Vec<f64> = change
            .norms()
            .unwrap()
            .iter()
            .map(|norm| norm * (factor - 1.0))
            .collect();
        let frobenius = norms.iter().map(|norm| norm * norm).sum::<f64>().sqrt();
        close(frobenius, &expected["delta_frobenius"], 2e-5, name);
        for (norm, expected) in norms
            .iter()
            .zip(expected["column_norms_first_rare"].as_array().unwrap())
        {
            close(*norm, expected, 1e-4, name);
        }
    }
}

#[test]
fn the_projector_is_one_and_spares_common_tokens() {
    let (model, frequencies) = (model(&checkpoint()), frequencies());
    for options in [
        liu2025(),
        folded(),
        folded().with_keep(Keep::Rank(50)),
        liu2025().with_top_k_percent(0.5),
    ] {
        let space = NullSpace::find(&model, &frequencies, N_TOKENS, options).unwrap();
        let p = space.space().projector().unwrap();
        let off = |a: &Tensor, b: &Tensor| {
            a.f_sub(b)
                .unwrap()
                .f_abs()
                .unwrap()
                .f_max()
                .unwrap()
                .f_double_value(&[])
                .unwrap()
        };
        assert!(off(&p, &p.f_matmul(&p).unwrap()) < 1e-12 && off(&p, &p.f_tr().unwrap()) < 1e-12);
        let trace = p.f_trace().unwrap().f_double_value(&[]).unwrap();
        let room = 64 - usize::from(options.folded);
        assert_eq!(space.space().dimension(), room - space.rank());
        assert!((trace - space.space().dimension() as f64).abs() < 1e-9);
        if options.folded {
            let ones = p.f_sum_dim_intlist(-1, false, Kind::Double).unwrap();
            assert!(
                off(&ones, &ones.f_zeros_like().unwrap()) < 1e-12,
                "the direction of ones is in the space"
            );
        }
        if let Keep::Variance(threshold) = options.keep {
            assert!(space.variance() >= threshold);
        }
        for layer in 0..4 {
            let shares = space.neuron_shares(&model, layer).unwrap();
            assert_eq!(shares.len(), 256);
            assert!(shares.iter().all(|share| (0.0..=1.0).contains(share)));
        }
        assert!(space.common().iter().all(|&id| (id as usize) < N_TOKENS));
    }
}

#[test]
fn random_directions_have_the_size_of_what_they_stand_for() {
    let (model, frequencies) = (model(&checkpoint()), frequencies());
    let space = NullSpace::find(&model, &frequencies, N_TOKENS, liu2025()).unwrap();
    let (random, other) = (space.random(7, 0).unwrap(), space.random(7, 1).unwrap());
    assert_eq!(random.dimension(), space.space().dimension());
    let same = |a: &Tensor, b: &Tensor| a.f_allclose(b, 1e-9, 1e-12, false).unwrap();
    assert!(same(
        &random.projector().unwrap(),
        &space.random(7, 0).unwrap().projector().unwrap()
    ));
    assert!(!same(
        &random.projector().unwrap(),
        &other.projector().unwrap()
    ));
    let changes = [None, Some(&random)].map(|instead| {
        space
            .neuron_change(&model, &neurons(1, &[3, 200]), instead)
            .unwrap()
    });
    let norms = changes.each_ref().map(|change| change.norms().unwrap());
    for (a, b) in norms[0].iter().zip(&norms[1]) {
        assert!((a - b).abs() < 1e-9 * a, "{norms:?}");
    }
    let [first, second] = changes.each_ref().map(|change| change.per_unit().unwrap());
    assert!(!same(&first, &second));
}

/// A checkpoint with a change written into it, in f32.
fn written(from: &Path, change: &WeightChange, factor: f64) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let parts = change.parts().into_iter();
    let weights = parts.map(|part| {
        let stored = stored_tensor(from, part).unwrap();
        (part, change.apply(part, &stored, factor).unwrap())
    });
    let weights: BTreeMap<_, _> = weights.collect();
    save_with(from, dir.path(), &weights, Some(Kind::Float)).unwrap();
    dir
}

/// Every measure of one sequence by a plain forward through two models.
fn explicit(
    clean: &Model,
    scaled: &Model,
    tokens: &[i64],
    positions: std::ops::Range<usize>,
    rare: &[i64],
) -> [f64; 8] {
    let predictions = |model: &Model| -> Vec<LnProbs> {
        let logits = model
            .forward(
                &Tensor::from_slice(tokens).view([1, -1]),
                None,
                &mut NoHooks,
            )
            .unwrap();
        let logits = logits.f_to_kind(Kind::Double).unwrap();
        let row = |pos: usize| {
            Vec::<f64>::try_from(&logits.f_get(0).unwrap().f_get(pos as i64).unwrap()).unwrap()
        };
        positions
            .clone()
            .map(|pos| LnProbs::from_logits(&row(pos)).unwrap())
            .collect()
    };
    let mut sums = [0.0; 8];
    for ((p, q), pos) in predictions(clean)
        .iter()
        .zip(predictions(scaled))
        .zip(positions.clone())
    {
        let target = q.as_slice()[tokens[pos + 1] as usize];
        let above = q.as_slice().iter().filter(|ln_q| **ln_q > target).count();
        let rare_mass: f64 = rare.iter().map(|&id| q.as_slice()[id as usize].exp()).sum();
        let (top1, top5) = (u8::from(above == 0), u8::from(above < 5));
        let values = [
            -target,
            rare_mass,
            f64::from(top1),
            f64::from(top5),
            q.entropy_nats(),
            p.kl_nats(&q).unwrap(),
            q.kl_nats(p).unwrap(),
            p.jensen_shannon_nats(&q).unwrap(),
        ];
        sums.iter_mut()
            .zip(values)
            .for_each(|(sum, value)| *sum += value);
    }
    sums
}

#[test]
fn measures_are_those_of_a_checkpoint_with_changed_weights() {
    let tokens: Vec<Vec<i64>> =
        serde_json::from_value(golden("ablation-inputs.json")["tokens"].clone()).unwrap();
    check_scaling(&checkpoint(), &tokens, &frequencies(), N_TOKENS);
}

/// All families, with gated MLPs, norms behind them and tied unembeddings among them.
#[test]
fn measures_of_every_family_are_those_of_a_checkpoint_with_changed_weights() {
    let mut checked = 0;
    for family in std::fs::read_dir(families()).unwrap() {
        check_family(&family.unwrap().path());
        checked += 1;
    }
    assert!(checked >= 5);
}

fn families() -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/golden/families"
    ))
}

fn check_family(dir: &Path) {
    let golden: HashMap<String, Tensor> =
        Tensor::read_safetensors(dir.join("expected.safetensors"))
            .unwrap()
            .into_iter()
            .collect();
    let tokens: Vec<Vec<i64>> = Vec::try_from(&golden["tokens"]).unwrap();
    let counts: Vec<f64> =
        Vec::try_from(&golden["counts"].f_to_kind(Kind::Double).unwrap()).unwrap();
    let sum: f64 = counts.iter().map(|c| c + 1.0).sum();
    let frequencies: Vec<f64> = counts.iter().map(|c| (c + 1.0) / sum).collect();
    check_scaling(dir, &tokens, &frequencies, counts.len());
}

fn check_scaling(dir: &Path, tokens: &[Vec<i64>], frequencies: &[f64], n_tokens: usize) {
    let model = model(dir);
    let last = model.config().num_hidden_layers - 1;
    let of_all = [neurons(last, &[8]), neurons(0, &[45, 19])].concat();
    let sets = [
        ("neurons of the last layer", neurons(last, &[45, 19, 8])),
        ("neurons of the first layer", neurons(0, &[45, 19, 8])),
        ("neurons of two layers", of_all),
    ];
    let d_vocab = frequencies.len();
    let sequence = tokens[0][..40].to_vec();
    let sample = Sample::new(
        vec![tokens[1][..40].to_vec(), sequence.clone()],
        &[0],
        d_vocab,
    )
    .unwrap();
    assert!(
        !sequence[1..].contains(&0),
        "the position filter would leave rows out"
    );
    for options in [liu2025(), folded()] {
        let space = NullSpace::find(&model, frequencies, n_tokens, options).unwrap();
        let rare = RareTokens::below_quantile(frequencies, d_vocab, 0.25).unwrap();
        let rows = space
            .row_change(
                rare.ids(),
                &rare.strengths(ScalingLaw::Log, 0.0).unwrap(),
                None,
            )
            .unwrap();
        let mut changes = vec![NamedChange::new("rows", rows)];
        let of_neurons = |(name, neurons): &(&str, Vec<NeuronId>)| {
            NamedChange::new(*name, space.neuron_change(&model, neurons, None).unwrap())
        };
        changes.extend(sets.iter().map(of_neurons));
        // The same at a factor of their own, as controls are.
        let own = sets.iter().map(of_neurons);
        changes.extend(own.map(|change| change.with_factors(vec![4.0])));
        let factors = vec![1.0, 4.0];
        let (rare_ids, common_ids) = (rare.ids().to_vec(), space.common().to_vec());
        let plan = ScalingPlan::new(vec![1], factors, rare_ids, common_ids)
            .with_memory_budget(24 * d_vocab * 10);
        let told = Cell::new(0);
        let hear = |more| told.set(told.get() + more);
        let states = SampleStates::new(&model, &sample, 2);
        let effects = measure_scaling(&states, &changes, &plan, &hear).unwrap();
        let cost = scaling_cost(&model, &sample, &changes, &plan).unwrap();
        assert_eq!(told.get(), cost.ticks());
        // Two sets at the factor that changes something; behind a norm the last layer's too.
        let behind_norm = model.norm_after_mlp(0).unwrap().is_some();
        assert_eq!(cost.run_on.pairs, 2 * (2 + usize::from(behind_norm)) * 36);
        assert_eq!(effects.rows_in(TargetGroup::All), 36);
        let parts = [TargetGroup::Rare, TargetGroup::Common, TargetGroup::Between]
            .map(|group| effects.rows_in(group));
        assert_eq!(parts.iter().sum::<usize>(), 36);
        for (c, change) in changes.iter().enumerate() {
            let changed = written(dir, &change.change, 4.0);
            let expected = explicit(
                &model,
                &self::model(changed.path()),
                &sequence,
                3..39,
                rare.ids(),
            );
            assert!(
                expected[5] > 1e-3,
                "{}: the factor moves nothing: {expected:?}",
                change.name
            );
            let loss = ScalingMeasure::Loss;
            for (c, f) in [(changes.len(), 0), (0, plan.factors.len())] {
                let error = effects.scaled(c, f, TargetGroup::All, loss).map(drop);
                assert!(matches!(error, Err(ScalingError::NotInPlan { .. })));
            }
            let factors = plan.factors_of(change).iter();
            let at = |factor| factors.clone().position(|f| *f == factor);
            for (measure, expected) in ScalingMeasure::ALL.into_iter().zip(expected) {
                let place = at(4.0).unwrap();
                let found = effects.scaled(c, place, TargetGroup::All, measure).unwrap()[0].sum;
                assert!(
                    (found - expected).abs() < 2e-4,
                    "{}, {} {}: {found}, expected {expected}",
                    dir.display(),
                    change.name,
                    measure.name()
                );
                let Some(one) = at(1.0) else {
                    continue;
                };
                let unchanged = effects
                    .difference(c, one, TargetGroup::All, measure)
                    .unwrap();
                let unchanged = unchanged[0].sum;
                assert!(
                    unchanged.abs() < 1e-9,
                    "{}: a factor of 1 changes {} by {unchanged:e}",
                    change.name,
                    measure.name()
                );
            }
        }
    }
}

#[test]
fn a_written_checkpoint_is_the_old_one_but_for_what_was_replaced() {
    let from = checkpoint();
    let zeros = stored_tensor(&from, W_OUT).unwrap().f_zeros_like().unwrap();
    let dir = tempfile::tempdir().unwrap();
    save_with(&from, dir.path(), &BTreeMap::from([(W_OUT, zeros)]), None).unwrap();
    let (old, new) = (model(&from), model(dir.path()));
    assert_eq!(new.w_u(), old.w_u());
    assert_eq!(new.w_out(2).unwrap(), old.w_out(2).unwrap());
    assert_eq!(
        new.w_out(3)
            .unwrap()
            .f_abs()
            .unwrap()
            .f_max()
            .unwrap()
            .f_double_value(&[])
            .unwrap(),
        0.0
    );
    assert_eq!(stored_tensor(dir.path(), W_U).unwrap().kind(), Kind::Half);
    // Old and new `config.json` say the same.
    assert_eq!(new.config(), old.config());
    let names: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(
        names
            .iter()
            .all(|name| !name.to_string_lossy().contains("partial")),
        "{names:?}"
    );
}

#[test]
fn a_pytorch_bin_is_written_as_safetensors() {
    let from = checkpoint().with_file_name("step1000");
    let dir = tempfile::tempdir().unwrap();
    save_with(&from, dir.path(), &BTreeMap::new(), Some(Kind::BFloat16)).unwrap();
    assert!(dir.path().join("model.safetensors").is_file());
    assert_eq!(
        stored_tensor(dir.path(), W_U).unwrap().kind(),
        Kind::BFloat16
    );
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("config.json")).unwrap()).unwrap();
    assert_eq!(config["torch_dtype"], "bfloat16");
    let error = model(&from)
        .w_u()
        .f_sub(model(dir.path()).w_u())
        .unwrap()
        .f_abs()
        .unwrap()
        .f_max()
        .unwrap()
        .f_double_value(&[])
        .unwrap();
    assert!(error < 0.01, "{error}");
}

#[test]
fn a_tied_unembedding_is_untied_when_it_is_replaced() {
    // The bundled checkpoint made a tied one: without `embed_out.weight`.
    let tied = tempfile::tempdir().unwrap();
    let tensors = Tensor::read_safetensors(checkpoint().join("model.safetensors")).unwrap();
    let tensors: Vec<_> = tensors
        .into_iter()
        .filter(|(name, _)| name != "embed_out.weight")
        .collect();
    Tensor::write_safetensors(&tensors, tied.path().join("model.safetensors")).unwrap();
    let config = std::fs::read_to_string(checkpoint().join("config.json")).unwrap();
    let config = config.replace(
        "\"tie_word_embeddings\": false",
        "\"tie_word_embeddings\": true",
    );
    std::fs::write(tied.path().join("config.json"), config).unwrap();

    let own = stored_tensor(tied.path(), W_U).unwrap();
    let dir = tempfile::tempdir().unwrap();
    save_with(
        tied.path(),
        dir.path(),
        &BTreeMap::from([(W_U, own.f_mul_scalar(2.0).unwrap())]),
        None,
    )
    .unwrap();
    let (old, new) = (model(tied.path()), model(dir.path()));
    assert!(old.config().tie_word_embeddings && !new.config().tie_word_embeddings);
    assert_eq!(new.w_u(), &old.w_u().f_mul_scalar(2.0).unwrap());
    assert_eq!(&stored_tensor(dir.path(), Part::Embedding).unwrap(), &own);
}

#[test]
fn what_does_not_fit_is_refused() {
    let (model, frequencies) = (model(&checkpoint()), frequencies());
    let find = |options| NullSpace::find(&model, &frequencies, N_TOKENS, options).map(|_| ());
    assert!(matches!(
        find(liu2025().with_keep(Keep::Rank(64))),
        Err(ScalingError::NoNullSpace { rank: 64, room: 64 })
    ));
    assert!(matches!(
        find(liu2025().with_keep(Keep::Rank(65))),
        Err(ScalingError::Setting { name: "rank", .. })
    ));
    assert!(matches!(
        find(liu2025().with_top_k_percent(100.0)),
        Err(ScalingError::Setting {
            name: "top_k_percent",
            ..
        })
    ));
    assert!(matches!(
        NullSpace::find(&model, &frequencies[1..], N_TOKENS, liu2025()),
        Err(ScalingError::Vocabulary { .. })
    ));
    let mut broken = frequencies.clone();
    broken[7] = f64::NAN;
    assert!(matches!(
        NullSpace::find(&model, &broken, N_TOKENS, liu2025()),
        Err(ScalingError::Setting {
            name: "frequencies",
            ..
        })
    ));
    let space = NullSpace::find(&model, &frequencies, N_TOKENS, liu2025()).unwrap();
    // The logarithm of no frequency made everything NaN, which read as equal frequencies.
    for value in [0.0, -1.0, f64::NAN] {
        let mut broken = frequencies.clone();
        broken[7] = value;
        let refused = space.unigram_share(&broken).unwrap_err().to_string();
        assert!(refused.contains("positive numbers"), "{refused}");
    }
    // One strength for several rows was spread over all of them.
    let short = space.row_change(&[5, 6], &[1.0], None).unwrap_err();
    assert!(
        short.to_string().contains("one for each of 2 rows"),
        "{short}"
    );
    let broken = space.row_change(&[5], &[f64::NAN], None).unwrap_err();
    assert!(
        broken.to_string().contains("`strengths` is NaN"),
        "{broken}"
    );
    assert!(
        space
            .neuron_change(&model, &neurons(2, &[256]), None)
            .unwrap_err()
            .to_string()
            .contains("2.256")
    );
    let flat = RareTokens::of_band(&[5, 6], &vec![1.0 / 4096.0; D_VOCAB], 1.0 / 4096.0).unwrap();
    assert!(matches!(
        flat.strengths(ScalingLaw::Log, 0.0),
        Err(ScalingError::FlatFrequencies { .. })
    ));

    let from = checkpoint();
    let dir = tempfile::tempdir().unwrap();
    let save = |to: &Path, part: Part, tensor: Tensor| {
        save_with(&from, to, &BTreeMap::from([(part, tensor)]), None)
            .unwrap_err()
            .to_string()
    };
    let zeros = || Tensor::zeros([64, 256], (Kind::Float, tch::Device::Cpu));
    assert!(save(&from, W_OUT, zeros()).contains("itself"));
    assert!(save(dir.path(), Part::PositionEmbedding, zeros()).contains("PositionEmbedding"));
    assert!(save(dir.path(), W_OUT, zeros().tr()).contains("[256, 64]"));
    assert!(save(dir.path(), W_OUT, zeros().f_add_scalar(1e6).unwrap()).contains("not finite"));
    assert!(!dir.path().join("model.safetensors").exists());
}
