//! Sets of neurons changed together: against the sweep, against forwards of the changed model, and against each other.
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::path::PathBuf;

use neox_core::{HookError, Hooks, LoadOptions, Model, Site};
use neuron_ablate::{
    AblateError, Dose, Engine, EngineOptions, Mean, Measure, NestedSets, Over, Plan, Sample,
    SampleStates, SetEffects, Sweep, TokenBand, TokenFrequencies, Variant, activities,
    last_layer_states, output_directions,
};
use tch::{Kind, Tensor};

const DOSES: [Dose; 4] = [
    Dose::Mean,
    Dose::Scale(0.0),
    Dose::Scale(1.5),
    Dose::ClipAtMean,
];

struct Setting {
    model: Model,
    sample: Sample,
    frequencies: TokenFrequencies,
    band: TokenBand,
}

impl Setting {
    fn new() -> Self {
        let dir = PathBuf::from(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../examples/data/tiny-neox/step4000"
        ));
        let model = Model::load(&dir, &LoadOptions::default()).unwrap();
        let inputs = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/golden/tiny-neox/ablation-inputs.json"
        );
        let inputs: serde_json::Value =
            serde_json::from_slice(&std::fs::read(inputs).unwrap()).unwrap();
        let sequences: Vec<Vec<i64>> = serde_json::from_value(inputs["tokens"].clone()).unwrap();
        let counts = Tensor::read_npy(dir.with_file_name("train-unigrams.npy")).unwrap();
        let mut counts: Vec<f64> = Vec::try_from(&counts.f_to_kind(Kind::Double).unwrap()).unwrap();
        counts.resize(4096, 0.0);
        let sum: f64 = counts.iter().map(|c| c + 1.0).sum();
        Self {
            sample: Sample::new(
                sequences.into_iter().map(|s| s[..60].to_vec()).collect(),
                &[0],
                4096,
            )
            .unwrap(),
            frequencies: TokenFrequencies::new(counts.iter().map(|c| (c + 1.0) / sum).collect())
                .unwrap(),
            band: TokenBand::new("band", &(900..3200).collect::<Vec<_>>(), 4096).unwrap(),
            model,
        }
    }

    fn sweep(&self, neurons: Vec<usize>, dose: Dose, memory_budget: usize) -> Sweep<'_> {
        let plan = Plan::new(neurons, vec![0, 4, 9])
            .with_dose(dose)
            .with_engine(EngineOptions::default().with_engine(Engine::Exact))
            .with_batch(4)
            .with_memory_budget(memory_budget);
        let bands = vec![self.band.clone()];
        Sweep::new(&self.model, &self.sample, &self.frequencies, bands, plan).unwrap()
    }

    fn mean(&self, sweep: &Sweep<'_>) -> Vec<f64> {
        sweep.run().unwrap().mean_activations
    }
}

fn list(neurons: &[usize], sizes: &[usize]) -> NestedSets {
    NestedSets::new("list", neurons.to_vec(), sizes.to_vec()).unwrap()
}

/// Means of every variant and measure, over all rows and over the band.
fn means(of: &neuron_ablate::EffectSums, sweep: &Sweep<'_>) -> Vec<f64> {
    let mut means = Vec::new();
    for &variant in sweep.variants() {
        for &measure in sweep.measures() {
            let change = of.change(variant, measure).unwrap();
            means.extend([change.mean, change.mean_abs]);
        }
        let change = of.band_loss_change(variant, 0).unwrap().unwrap();
        means.extend([change.mean, change.mean_abs]);
    }
    means
}

#[track_caller]
fn agree(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    let off = found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max);
    assert!(off <= tolerance, "off by {off:.1e}");
}

#[test]
fn a_set_of_one_is_the_neuron() {
    let setting = Setting::new();
    let neurons = vec![193, 105, 3];
    for dose in DOSES {
        let sweep = setting.sweep(neurons.clone(), dose, 512 << 20);
        let effects = sweep.run().unwrap();
        let lists: Vec<NestedSets> = neurons.iter().map(|&n| list(&[n], &[1])).collect();
        let sets = sweep
            .run_sets(&lists, &[dose], &effects.mean_activations, &|_| ())
            .unwrap();
        assert_eq!(sets.len(), 3);
        for (set, neuron) in sets.iter().zip(&effects.neurons) {
            assert_eq!(set.effects.rows(), neuron.effects.rows());
            assert_eq!(set.effects.band_rows(0), neuron.effects.band_rows(0));
            agree(
                &means(&set.effects, &sweep),
                &means(&neuron.effects, &sweep),
                1e-7,
            );
        }
    }
}

/// Changes some neurons of the last MLP as a dose says.
struct Change<'a> {
    neurons: &'a [usize],
    dose: Dose,
    mean: &'a [f64],
}

impl Hooks for Change<'_> {
    fn wants(&self, site: Site) -> bool {
        site == Site::MlpPost(3)
    }

    fn at(&mut self, _: Site, value: Tensor) -> Result<Tensor, HookError> {
        let mut parts = value.f_unbind(-1)?;
        for &n in self.neurons {
            parts[n] = match self.dose {
                Dose::Mean => parts[n].f_full_like(self.mean[n])?,
                Dose::Scale(factor) => parts[n].f_mul_scalar(factor)?,
                Dose::ClipAtMean => parts[n].f_clamp_max(self.mean[n])?,
            };
        }
        Ok(Tensor::f_stack(&parts, -1)?)
    }
}

/// Loss, entropy, `KL(model || freq)` and `KL(freq || model)` of each row, by their definitions, `[row]`.
fn explicit(setting: &Setting, sequences: &[usize], change: Change<'_>) -> Vec<[f64; 4]> {
    let (rows, _) = setting.sample.rows(sequences).unwrap();
    let mut change = change;
    let mut measured = Vec::new();
    for rows in rows.chunk_by(|a, b| a.sequence == b.sequence) {
        let tokens = Tensor::from_slice(&setting.sample.sequences()[rows[0].sequence])
            .f_unsqueeze(0)
            .unwrap();
        let logits = tch::no_grad(|| setting.model.forward(&tokens, None, &mut change)).unwrap();
        let log_p = logits
            .f_squeeze_dim(0)
            .unwrap()
            .f_log_softmax(-1, Kind::Double)
            .unwrap();
        for row in rows {
            let log_p: Vec<f64> = Vec::try_from(&log_p.f_get(row.pos as i64).unwrap()).unwrap();
            let mut of_row = [-log_p[row.target as usize], 0.0, 0.0, 0.0];
            let frequencies = setting.frequencies.q().iter();
            for ((log_p, q), log_q) in log_p
                .iter()
                .zip(frequencies)
                .zip(setting.frequencies.log_q())
            {
                of_row[1] -= log_p.exp() * log_p;
                of_row[2] += log_p.exp() * (log_p - log_q);
                of_row[3] += q * (log_q - log_p);
            }
            measured.push(of_row);
        }
    }
    measured
}

#[test]
fn sets_agree_with_a_forward_in_which_all_their_neurons_are_replaced() {
    let setting = Setting::new();
    let sweep = setting.sweep(vec![0], Dose::Mean, 512 << 20);
    let mean = setting.mean(&sweep);
    let ranked = [193, 105, 19, 70, 201, 8];
    let sizes = [2, 6];
    let lists = [list(&ranked, &sizes)];
    let mut ticks = std::sync::atomic::AtomicUsize::new(0);
    let sets = sweep
        .run_sets(&lists, &DOSES, &mean, &|tick| {
            if let neuron_ablate::Tick::Pairs(more) = tick {
                ticks.fetch_add(more, std::sync::atomic::Ordering::Relaxed);
            }
        })
        .unwrap();
    assert_eq!(*ticks.get_mut(), sweep.set_pairs(&lists, &DOSES).unwrap());
    let sequences = [0, 4, 9];
    let nothing = |neurons, dose| Change {
        neurons,
        dose,
        mean: &mean,
    };
    let clean = explicit(&setting, &sequences, nothing(&[], Dose::Mean));
    let each = DOSES
        .iter()
        .flat_map(|&dose| sizes.map(|size| (dose, size)));
    let mut largest: f64 = 0.0;
    for (set, (dose, size)) in sets.iter().zip(each) {
        assert_eq!((set.list, set.dose, set.size), (0, dose, size));
        let after = explicit(&setting, &sequences, nothing(&ranked[..size], dose));
        for (place, &measure) in sweep.measures()[..4].iter().enumerate() {
            let changes: Vec<f64> = after
                .iter()
                .zip(&clean)
                .map(|(after, clean)| after[place] - clean[place])
                .collect();
            let n = changes.len() as f64;
            let found = set.effects.change(Variant::Total, measure).unwrap();
            agree(
                &[found.mean, found.mean_abs],
                &[
                    changes.iter().sum::<f64>() / n,
                    changes.iter().map(|c| c.abs()).sum::<f64>() / n,
                ],
                5e-6,
            );
            largest = largest.max(found.mean_abs);
        }
        assert!(set.change_norm() > 0.0);
    }
    // The sets do something that could be wrong.
    assert!(largest > 1e-2, "{largest}");
}

#[test]
fn nested_sets_are_the_sets_themselves() {
    let setting = Setting::new();
    let sweep = setting.sweep(vec![0], Dose::Mean, 512 << 20);
    let mean = setting.mean(&sweep);
    let ranked = [193, 105, 19, 70, 201, 8, 33];
    let sizes = [1, 3, 7];
    let nested = sweep
        .run_sets(&[list(&ranked, &sizes)], &DOSES, &mean, &|_| ())
        .unwrap();
    // Alone, in another order, and in another order of the lists.
    let alone: Vec<NestedSets> = sizes
        .iter()
        .rev()
        .map(|&size| {
            let mut neurons = ranked[..size].to_vec();
            neurons.reverse();
            NestedSets::whole(format!("first {size}"), neurons).unwrap()
        })
        .collect();
    let alone = sweep.run_sets(&alone, &DOSES, &mean, &|_| ()).unwrap();
    let find = |sets: &[SetEffects], dose: Dose, size: usize| {
        let set = sets.iter().find(|s| s.dose == dose && s.size == size);
        means(&set.unwrap().effects, &sweep)
    };
    for dose in DOSES {
        for size in sizes {
            agree(&find(&nested, dose, size), &find(&alone, dose, size), 1e-7);
        }
    }
    // Beside lists of the same neurons in another order, and of others; memory for the vectors of ten neurons, so that the last list
    // is measured by itself; and with next to no memory, so that rows come one by one and no neurons are kept over the vocabulary.
    let lists = [
        list(&ranked, &sizes),
        list(&[19, 5, 193, 6, 105], &[2, 5]),
        list(&[40, 41, 42, 43], &[4]),
    ];
    let all = sweep.run_sets(&lists, &DOSES, &mean, &|_| ()).unwrap();
    for (a, b) in all.iter().zip(&nested) {
        assert_eq!(means(&a.effects, &sweep), means(&b.effects, &sweep));
    }
    for memory in [4 * 10 * 4 * 4096, 1 << 16] {
        let small = setting.sweep(vec![0], Dose::Mean, memory);
        let small = small.run_sets(&lists, &DOSES, &mean, &|_| ()).unwrap();
        for (a, b) in small.iter().zip(&all) {
            agree(&means(&a.effects, &sweep), &means(&b.effects, &sweep), 1e-7);
            assert!((a.change_norm() - b.change_norm()).abs() < 1e-9);
        }
    }
}

#[test]
fn a_factor_of_one_changes_nothing() {
    let setting = Setting::new();
    let sweep = setting.sweep(vec![0], Dose::Mean, 512 << 20);
    let mean = setting.mean(&sweep);
    let all: Vec<usize> = (0..256).collect();
    let sets = sweep
        .run_sets(
            &[list(&all, &[1, 256])],
            &[Dose::Scale(1.0), Dose::Scale(0.0)],
            &mean,
            &|_| (),
        )
        .unwrap();
    for set in &sets[..2] {
        let found = means(&set.effects, &sweep);
        agree(&found, &vec![0.0; found.len()], 1e-8);
        assert_eq!(set.change_norm(), 0.0);
    }
    // Without the whole layer the loss is another one, in every sequence.
    let of_loss = |set: &SetEffects| {
        set.effects
            .groups(Variant::Total, Measure::Loss, Mean::Absolute, Over::All)
    };
    let groups = of_loss(&sets[3]).unwrap();
    assert_eq!(groups.len(), 3);
    assert!(groups.iter().all(|g| g.sum / g.count > 0.1), "{groups:?}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let refused = |neurons: &[usize], sizes: &[usize], fragments: &[&str]| {
        let error = NestedSets::new("mine", neurons.to_vec(), sizes.to_vec())
            .unwrap_err()
            .to_string();
        for fragment in fragments.iter().chain(&["mine"]) {
            assert!(error.contains(fragment), "no `{fragment}` in: {error}");
        }
    };
    refused(&[], &[1], &["no neuron"]);
    refused(&[1, 2], &[], &["no size"]);
    refused(&[1, 2, 1], &[1], &["neuron 1", "twice"]);
    refused(&[1, 2], &[1, 3], &["3", "1 to 2"]);
    refused(&[1, 2], &[0], &["0", "1 to 2"]);
    refused(&[1, 2], &[2, 1], &["ascending"]);

    let setting = Setting::new();
    let sweep = setting.sweep(vec![0], Dose::Mean, 512 << 20);
    let mean = vec![0.0; 256];
    let past = sweep.run_sets(&[list(&[1, 256], &[2])], &DOSES, &mean, &|_| ());
    assert!(matches!(
        past,
        Err(AblateError::NoSuchNeuron { neuron: 256, .. })
    ));
    let short = sweep.run_sets(&[list(&[1], &[1])], &DOSES, &mean[1..], &|_| ());
    assert!(short.unwrap_err().to_string().contains("255"));
    let broken = vec![f64::NAN; 256];
    let broken = sweep.run_sets(&[list(&[1], &[1])], &DOSES, &broken, &|_| ());
    let message = broken.unwrap_err().to_string();
    assert!(
        message.contains("not finite") && message.contains("position"),
        "{message}"
    );
}

/// What neurons do on rows, against the activations and losses of forwards, row by row.
#[test]
fn activities_are_those_of_the_rows() -> Result<(), AblateError> {
    let setting = Setting::new();
    let (model, sample) = (&setting.model, &setting.sample);
    let sequences = [0, 2, 3];
    let states = SampleStates::new(model, sample, 2);
    let found = activities(&states, &sequences, &[1, 3], &|_| ())?;
    assert_eq!(found.keys().copied().collect::<Vec<_>>(), [1, 3]);
    let (rows, _) = sample.rows(&sequences)?;
    let mut values: Vec<[Vec<f64>; 2]> = (0..256).map(|_| Default::default()).collect();
    for &sequence in &sequences {
        let tokens = sample.sequences()[sequence].as_slice();
        let states = &last_layer_states(model, &[tokens])?[0];
        let logits = model.unembed(&states.resid).unwrap();
        let ln_p = logits.log_softmax(-1, Kind::Double);
        for row in rows.iter().filter(|row| row.sequence == sequence) {
            let loss = -ln_p.double_value(&[row.pos as i64, row.target]);
            for (neuron, [activations, losses]) in values.iter_mut().enumerate() {
                let at = [row.pos as i64, neuron as i64];
                activations.push(states.activations.double_value(&at));
                losses.push(loss);
            }
        }
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-5 * b.abs().max(1.0), "{a}, {b}");
    for (neuron, [activations, losses]) in values.iter().enumerate() {
        let activity = found[&3][neuron];
        close(activity.mean, mean(activations));
        let off: Vec<f64> = activations.iter().map(|a| (0.3 - a).powi(2)).collect();
        let length = mean(&off).sqrt() * activity.output_norm;
        close(activity.change_length(0.3), length);
        let of_active = activations.iter().zip(losses).filter(|(a, _)| **a > 0.0);
        let of_active: Vec<f64> = of_active.map(|(_, loss)| *loss).collect();
        close(
            activity.active_share,
            of_active.len() as f64 / activations.len() as f64,
        );
        match activity.active_loss {
            Some(loss) => close(loss, mean(&of_active)),
            None => assert!(of_active.is_empty()),
        }
    }
    // As the final norm sees it: centred.
    let w = output_directions(model, 3, &[7])?.get(0);
    let centred = &w - w.mean(Kind::Double);
    close(found[&3][7].output_norm, centred.norm().double_value(&[]));
    let error = activities(&states, &sequences, &[4], &|_| ());
    assert!(matches!(error, Err(AblateError::NoSuchComponent { .. })));
    Ok(())
}
