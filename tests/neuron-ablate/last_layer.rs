//! A model that is not ours: its tensors and its forward, given by hand, have the effects and the scores of the loaded model.

use std::{cell::Cell, error::Error, path::PathBuf};

use neox_core::{LoadOptions, Model, Norm, Recorder, Site, Text};
use neuron_ablate::{
    AblateError, Dose, Engine, EngineOptions, Intervention, InterventionError, LastLayer,
    LastLayerStates, LayerMeans, Measure, NestedSets, NeuronId, NeuronSite, Operation, Plan,
    Readout, Sample, ScoreError, Scorer, Sweep, TokenBand, TokenFrequencies, Variant, WordRequest,
    WordVocabulary,
};
use tch::Tensor;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn data() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples/data/tiny-neox")
}

fn model() -> Outcome<Model> {
    Ok(Model::load(
        &data().join("step4000"),
        &LoadOptions::default(),
    )?)
}

/// As somebody has it whose final norm is folded into the unembedding: rows times gamma, a norm without parameters, and a bias of the logits.
fn last_layer(model: &Model) -> Outcome<LastLayer<'_>> {
    let ln = model.ln_final();
    let w_u = model.w_u().f_mul(&ln.weight)?;
    let plain = Norm {
        weight: ln.weight.f_ones_like()?,
        bias: ln.bias.f_zeros_like()?,
        eps: ln.eps,
        centres: true,
    };
    let bias = model.w_u().f_mv(&ln.bias)?.f_add_scalar(0.5)?; // a constant changes no probability
    let readout = Readout::new(&w_u, &plain)?.with_bias(&bias)?;
    let forward = |texts: &[&[i64]]| texts.iter().map(|tokens| states(model, tokens)).collect();
    Ok(LastLayer::new(readout, &model.w_out(3)?, 3, forward)?)
}

fn states(model: &Model, tokens: &[i64]) -> Result<LastLayerStates, Box<dyn Error + Send + Sync>> {
    let (post, resid) = (Site::MlpPost(3), Site::ResidPost(3));
    let tokens = Tensor::f_from_slice(tokens)?.f_unsqueeze(0)?;
    let mut recorder = Recorder::new([post, resid]);
    let _ = model.forward(&tokens, None, &mut recorder)?;
    let mut take = |site| recorder.take(site).ok_or("a site was not passed");
    Ok(LastLayerStates {
        resid: take(resid)?.f_squeeze_dim(0)?,
        activations: take(post)?.f_squeeze_dim(0)?,
    })
}

struct Setting {
    sample: Sample,
    frequencies: TokenFrequencies,
    band: TokenBand,
}

impl Setting {
    fn new() -> Outcome<Self> {
        let texts: Vec<Vec<i64>> = (0..3)
            .map(|text| {
                (0..20)
                    .map(|i| (i * 37 + text * 11 + 1) * i % 4079)
                    .collect()
            })
            .collect();
        let zipf: Vec<f64> = (1..=4096).map(|rank| 1.0 / f64::from(rank)).collect();
        let sum: f64 = zipf.iter().sum();
        let rare: Vec<u32> = (2000..4000).collect();
        Ok(Self {
            sample: Sample::new(texts, &[0], 4096)?,
            frequencies: TokenFrequencies::new(zipf.iter().map(|q| q / sum).collect())?,
            band: TokenBand::new("rare", &rare, 4096)?,
        })
    }

    fn plan(engine: Engine) -> Plan {
        Plan::new(vec![193, 105, 7], vec![0, 2])
            .with_ranks(true)
            .with_engine(EngineOptions::default().with_engine(engine))
    }

    fn sweep<'a>(&'a self, model: &'a Model, engine: Engine) -> Outcome<Sweep<'a>> {
        let bands = vec![self.band.clone()];
        let (sample, q) = (&self.sample, &self.frequencies);
        Ok(Sweep::new(model, sample, q, bands, Self::plan(engine))?)
    }

    fn by_hand<'a>(&'a self, model: &'a Model, engine: Engine) -> Outcome<Sweep<'a>> {
        let bands = vec![self.band.clone()];
        let (sample, q) = (&self.sample, &self.frequencies);
        let last = last_layer(model)?;
        Ok(Sweep::of_last_layer(
            last,
            sample,
            q,
            bands,
            Self::plan(engine),
        )?)
    }
}

/// All changes of a sweep, `[neuron][row][variant][measure]`.
fn changes(sweep: &Sweep<'_>) -> Outcome<Vec<f64>> {
    let mut changes = Vec::new();
    let effects = sweep.run_with(
        &mut |block| {
            changes.extend(block.changes());
            Ok(())
        },
        &|_| (),
    )?;
    changes.extend(effects.mean_activations);
    Ok(changes)
}

#[track_caller]
fn close(found: &[f64], expected: &[f64], atol: f64) {
    assert_eq!(found.len(), expected.len());
    assert!(expected.iter().any(|expected| expected.abs() > 1e-3));
    let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    let worst = off.fold(0.0, f64::max);
    assert!(worst <= atol, "off by {worst:.1e}, allowed {atol:.0e}");
}

#[test]
fn a_sweep_of_tensors_is_that_of_the_loaded_model() -> Outcome<()> {
    let (model, setting) = (model()?, Setting::new()?);
    for engine in [Engine::Exact, Engine::Moments] {
        let loaded = changes(&setting.sweep(&model, engine)?)?;
        close(&changes(&setting.by_hand(&model, engine)?)?, &loaded, 2e-6);
    }
    // Sets of neurons too, and means that are known already.
    let (loaded, by_hand) = (
        setting.sweep(&model, Engine::Exact)?,
        setting.by_hand(&model, Engine::Exact)?,
    );
    let mean = loaded.run()?.mean_activations;
    let lists = [NestedSets::doubling("all", vec![193, 105, 7, 40])?];
    let losses = |sweep: &Sweep<'_>| -> Outcome<Vec<f64>> {
        let sets = sweep.run_sets(&lists, &[Dose::Mean, Dose::Scale(2.0)], &mean, &|_| ())?;
        let measures = sweep.measures();
        let of_set = sets.iter().flat_map(|set| {
            let change = |m| {
                set.effects
                    .change(sweep.direct(), m)
                    .map(|change| change.mean)
            };
            measures.iter().map(move |m| change(*m))
        });
        Ok(of_set.collect::<Result<_, _>>()?)
    };
    close(&losses(&by_hand)?, &losses(&loaded)?, 2e-6);
    let known = LayerMeans::default().with_neurons(3, vec![0.25; 256]);
    assert_eq!(by_hand.with_means(known).run()?.mean_activations[7], 0.25);
    Ok(())
}

#[test]
fn scores_of_tensors_are_those_of_the_loaded_model() -> Outcome<()> {
    let model = model()?;
    let text = Text::from_file(&data().join("tokenizer.json"))?;
    let mut words = WordRequest::words_of(&text, 0, "The great whale rose slowly out of the sea")?;
    words.extend(WordRequest::words_of(&text, 0, "The state of the Union")?);
    let neurons = |layer, n| (0..n).map(|neuron| NeuronId { layer, neuron }).collect();
    let clamp = Operation::Clamp {
        low: 0.0,
        high: 0.1,
    };
    let (post, pre) = (NeuronSite::Post, NeuronSite::Pre);
    let interventions = [
        Intervention::base(),
        Intervention::new("scaled", post, neurons(3, 20), Operation::Scale(-2.0))?,
        Intervention::new("clamp", post, neurons(3, 256), clamp)?, // wider than the residual stream
        Intervention::new("layer mean", post, neurons(3, 4), Operation::LayerMean)?,
    ];
    let vocabulary = WordVocabulary::new(&text, 0, 4096)?;
    let by_hand = Scorer::of_last_layer(last_layer(&model)?, &vocabulary, 24)?;
    let loaded = Scorer::new(&model, &vocabulary, 4096)?;
    let numbers = |scorer: &Scorer<'_>| -> Outcome<Vec<f64>> {
        let scores = scorer.score(&words, &interventions)?;
        let each = scores.iter().flatten().flat_map(|score| {
            let (before, after) = (&score.before, &score.after);
            let ends = [
                before.ln_begins,
                before.ln_eos,
                after.ln_begins,
                after.ln_eos,
            ];
            let pieces = score.ln_probs.iter().copied();
            pieces.chain(ends).chain(score.entropy_nats)
        });
        Ok(each.collect())
    };
    close(&numbers(&by_hand)?, &numbers(&loaded)?, 3e-5);

    for (site, layer) in [(pre, 3), (post, 1)] {
        let other = Intervention::new("other", site, neurons(layer, 1), Operation::Scale(2.0))?;
        let refused = by_hand.score(&words, &[other]);
        assert!(matches!(
            refused,
            Err(ScoreError::Intervention(InterventionError::LastLayerOnly {
                layer: 3,
                ..
            }))
        ));
    }
    let past = Intervention::new("past", post, neurons(3, 257), Operation::LayerMean)?;
    assert!(matches!(
        by_hand.score(&words, &[past]),
        Err(ScoreError::Intervention(InterventionError::NoSuchNeuron {
            d_mlp: 256,
            ..
        }))
    ));
    assert!(by_hand.score_with(&words, &mut neox_core::NoHooks).is_err());
    Ok(())
}

#[test]
fn parts_that_do_not_fit_are_refused() -> Outcome<()> {
    let (model, setting) = (model()?, Setting::new()?);
    let readout = || Readout::of_model(&model);
    let shape = |error: AblateError| assert!(matches!(error, AblateError::Shape { .. }), "{error}");
    let narrow = model.w_u().f_narrow(1, 0, 63)?;
    shape(Readout::new(&narrow, model.ln_final()).unwrap_err());
    shape(
        readout()?
            .with_bias(&Tensor::zeros([4095], (tch::Kind::Float, tch::Device::Cpu)))
            .unwrap_err(),
    );
    let transposed = model.w_out(3)?.f_tr()?;
    shape(LastLayer::new(readout()?, &transposed, 3, |_| Ok(vec![])).unwrap_err());

    let run = |forward: fn(&[&[i64]]) -> Vec<LastLayerStates>| -> Outcome<String> {
        let last = LastLayer::new(readout()?, &model.w_out(3)?, 3, move |texts| {
            Ok(forward(texts))
        })?;
        let plan = Setting::plan(Engine::Exact);
        let sweep =
            Sweep::of_last_layer(last, &setting.sample, &setting.frequencies, vec![], plan)?;
        Ok(sweep.run().unwrap_err().to_string())
    };
    assert_eq!(
        run(|_| vec![])?,
        "the forward that was given with the last layer failed"
    );
    let too_short = |texts: &[&[i64]]| {
        let zeros = |width| Tensor::zeros([7, width], (tch::Kind::Float, tch::Device::Cpu));
        let each = texts.iter().map(|_| LastLayerStates {
            resid: zeros(64),
            activations: zeros(256),
        });
        each.collect()
    };
    assert_eq!(
        run(too_short)?,
        "shape of the residual stream: [7, 64], expected [20, 64]"
    );

    let sweep = setting.by_hand(&model, Engine::Exact)?;
    let first = [NeuronId {
        layer: 0,
        neuron: 3,
    }];
    assert!(matches!(
        sweep.run_neurons(&first, &LayerMeans::default()),
        Err(AblateError::LastLayerOnly { .. })
    ));
    Ok(())
}

/// Means, a sweep and sets need one forward of each text where their states have room; without room, or where the means are known from
/// elsewhere, what they give is the same.
#[test]
fn a_text_runs_once() -> Outcome<()> {
    let (model, setting) = (model()?, Setting::new()?);
    let texts_run = Cell::new(0);
    // Of the three texts two are ablated; states of one take 20 x (128 + 256) values of four bytes.
    let swept = |memory_budget: usize, known: Option<LayerMeans>| -> Outcome<_> {
        let forward = |texts: &[&[i64]]| {
            texts_run.set(texts_run.get() + texts.len());
            texts.iter().map(|tokens| states(&model, tokens)).collect()
        };
        let last = LastLayer::new(Readout::of_model(&model)?, &model.w_out(3)?, 3, forward)?;
        let plan = Setting::plan(Engine::Exact).with_memory_budget(memory_budget);
        let (sample, q) = (&setting.sample, &setting.frequencies);
        let sweep = Sweep::of_last_layer(last, sample, q, vec![], plan.with_batch(1))?;
        let sweep = match known {
            Some(means) => sweep.with_means(means),
            None => sweep,
        };
        texts_run.set(0);
        let effects = sweep.run()?;
        let (mean, mut found) = (effects.mean_activations, Vec::new());
        for neuron in &effects.neurons {
            found.push(neuron.effects.change(Variant::Total, Measure::Loss)?.mean);
        }
        let lists = [NestedSets::doubling("all", vec![193, 105, 7, 40])?];
        for set in sweep.run_sets(&lists, &[Dose::Mean], &mean, &|_| ())? {
            found.push(set.effects.change(Variant::Total, Measure::Loss)?.mean);
        }
        Ok((texts_run.get(), mean, found))
    };
    let (once, mean, found) = swept(1 << 30, None)?;
    assert_eq!(once, 3);
    let (again, of_few, without_room) = swept(1 << 16, None)?;
    assert_eq!((again, &of_few), (7, &mean));
    // Less memory cuts products with `W_U` in another way, too.
    close(&without_room, &found, 1e-6);
    let known = LayerMeans::default().with_neurons(3, mean);
    let (ablated, _, with_means) = swept(1 << 30, Some(known))?;
    assert_eq!((ablated, with_means), (2, found));
    Ok(())
}
