//! How fast the sweep, forwards and word scoring are, beside PyTorch on the same device.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Context;
use neox_core::{Model, NoHooks, next_token_ln_probs};
use neuron_ablate::{
    AblateError, Engine, EngineOptions, Plan, Sample, SampleStates, Scorer, Semantics, Sweep, Tick,
    TokenBand, TokenFrequencies, Variant, WordVocabulary, last_layer_states, mean_activations,
};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::models::{
    D_VOCAB, EOS, PEAKED, PYTHIA_70M, PYTHIA_410M, Shape, largest_difference, texts, zipf,
};
use crate::report::{Found, Report, Timing};
use crate::{Setting, models, python, scoring};

/// PyTorch takes float32 `log_softmax` element by element.
const PYTORCH: f64 = 3e-4;
/// Log-probabilities of two implementations of a forward in f32.
const FORWARD: f64 = 1e-4;
/// Neurons of the sweep that tells how many can be afforded.
const PROBE: usize = 64;
/// Most neurons that a sweep hands over at once.
const BLOCK: usize = 512;
/// Neurons whose effects are compared.
const COMPARED: usize = 8;

/// How much is timed.
struct Size {
    shapes: &'static [Shape],
    /// Texts, and tokens of each, that a sweep runs on.
    texts: (usize, usize),
    /// A sweep ends with the block that takes longer.
    sweep: Duration,
    /// Texts and tokens of a forward, and how often.
    forward: (usize, usize),
    repeat: usize,
    /// Contexts of words, four words each.
    contexts: usize,
    /// Ways of PyTorch: neurons and positions at once, and whether values are compared.
    ways: &'static [(&'static str, usize, usize, bool)],
    /// What each way takes, about.
    way_seconds: f64,
    /// After so long PyTorch is ended.
    pytorch: Duration,
}

const GPU_WAYS: &[(&str, usize, usize, bool)] = &[
    ("forward", 1, 32, true),
    ("forward", 1, 256, false),
    ("forward", 4, 256, false),
    ("forward", 16, 256, false),
    // As published.
    ("forward", 20, 252, false),
    ("closed-form", 1, 256, true),
    ("closed-form", 16, 256, false),
];
const CPU_WAYS: &[(&str, usize, usize, bool)] = &[
    ("forward", 1, 32, true),
    ("forward", 4, 64, false),
    ("forward", 20, 252, false),
    ("closed-form", 1, 32, true),
];
const QUICK_CPU_WAYS: &[(&str, usize, usize, bool)] =
    &[("forward", 1, 32, true), ("closed-form", 1, 32, true)];

impl Size {
    fn of(setting: &Setting) -> Self {
        let all = Self {
            shapes: &[PYTHIA_70M, PYTHIA_410M],
            texts: (10, 256),
            sweep: Duration::from_secs(20),
            forward: (32, 256),
            repeat: 7,
            contexts: 500,
            ways: GPU_WAYS,
            way_seconds: 1.0,
            pytorch: Duration::from_secs(90),
        };
        match (setting.on_gpu(), setting.quick) {
            (true, false) => all,
            (true, true) => Self {
                shapes: &[PYTHIA_70M],
                sweep: Duration::from_secs(4),
                repeat: 3,
                way_seconds: 0.4,
                ..all
            },
            (false, false) => Self {
                texts: (4, 128),
                sweep: Duration::from_secs(20),
                forward: (4, 256),
                repeat: 3,
                ways: CPU_WAYS,
                pytorch: Duration::from_secs(900),
                ..all
            },
            (false, true) => Self {
                shapes: &[PYTHIA_70M],
                texts: (2, 64),
                sweep: Duration::from_secs(5),
                forward: (4, 64),
                repeat: 3,
                contexts: 40,
                ways: QUICK_CPU_WAYS,
                ..all
            },
        }
    }
}

/// What PyTorch's results are held against.
#[derive(Default)]
struct Ours {
    /// By shape and engine, or shape and dtype: rates.
    rates: BTreeMap<(String, &'static str), f64>,
    /// By shape: changes of the first neurons at the rows of the first text, `[neuron][row][variant][measure]`.
    changes: BTreeMap<String, Changes>,
    /// By shape: log-probabilities of the first text.
    ln_probs: BTreeMap<String, Vec<f64>>,
}

struct Changes {
    values: Vec<f64>,
    rows: usize,
}

/// All timings.
///
/// # Errors
/// If nothing can be printed.
pub(crate) fn check(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    let size = Size::of(setting);
    let (mut ours, mut tasks) = (Ours::default(), Vec::new());
    for shape in size.shapes {
        let folder = setting.folder.join(format!("d{}", shape.d_model));
        let what = format!("{}: the model", shape.name);
        let made = report.needed(&what, || models::write(&folder, shape, PEAKED))?;
        if made.is_none() {
            continue;
        }
        let title = format!("{}: sweep", shape.name);
        let swept = report.needed(&title, || {
            models::load(&folder, setting.device, Kind::Float)
        })?;
        if let Some(model) = swept {
            let swept = sweeps(setting, report, &size, shape, &model, &mut ours);
            let exported = swept.and_then(|sample| {
                export(&model, &sample, &folder)?;
                Ok(sample)
            });
            if report.needed(&title, || exported)?.is_some() {
                tasks.push(json!({
                    "kind": "ablation", "name": shape.name, "folder": folder, "ways": size.ways, "seconds": size.way_seconds,
                    "compared": COMPARED,
                }));
            }
            if tasks.len() == 1 {
                let timed = words(setting, report, &size, shape, &model);
                report.needed(&format!("{}: words", shape.name), || timed)?;
            }
        }
        let timed = forwards(setting, report, &size, shape, &folder, &mut ours);
        if let Some(tokens) = report.needed(&format!("{}: forward", shape.name), || timed)? {
            tasks.push(json!({
                "kind": "forward", "name": shape.name, "model": folder, "tokens": tokens, "dtypes": ["f32", "bf16"],
                "repeat": size.repeat,
            }));
        }
    }
    // Ablation first: transformers takes long to import, and may not be there.
    tasks.sort_by_key(|task| task["kind"] == "forward");
    let mut heard = false;
    let ran = python::run(setting, &Value::from(tasks), size.pytorch, &mut |result| {
        heard = true;
        beside(report, &ours, result)
    });
    match ran {
        Err(error) if !heard && setting.python.is_none() => {
            report.skipped("PyTorch beside it", &format!("{error:#}"))
        }
        ran => report.needed("PyTorch beside it", || ran).map(|_| ()),
    }
}

/// The sweep with both engines, and its parts; returns the texts.
fn sweeps(
    setting: &Setting,
    report: &mut Report,
    size: &Size,
    shape: &Shape,
    model: &Model,
    ours: &mut Ours,
) -> anyhow::Result<Sample> {
    let (count, length) = size.texts;
    let sample = Sample::new(texts(count, length)?, &[EOS], D_VOCAB as usize)?;
    let sweep = |engine, neurons, sequences| {
        sweep(model, &sample, engine, neurons, sequences, setting.memory)
    };
    // Warms up besides.
    let mut changes = Vec::new();
    let compared = sweep(Engine::Exact, 0..COMPARED, 1)?;
    let (variants, measures) = (compared.variants(), compared.measures().len());
    let chosen = [Variant::Total, Variant::FrozenBand(0)]
        .map(|variant| variants.iter().position(|other| *other == variant));
    let mut rows = 0;
    compared.run_with(
        &mut |block| {
            rows = block.rows.len();
            let all: Vec<f64> = block.changes().collect();
            for pair in all.chunks(variants.len() * measures) {
                for variant in chosen.iter().flatten() {
                    changes.extend(&pair[variant * measures..][..measures]);
                }
            }
            Ok(())
        },
        &|_| (),
    )?;
    let values = Changes {
        values: changes,
        rows,
    };
    ours.changes.insert(shape.name.to_owned(), values);
    drop(compared);

    let of = format!("{count} x {length} tokens");
    let mean = |_, _| ();
    let over = Semantics::corrected().mean_activation;
    let seconds = timed(setting, || {
        let states = SampleStates::new(model, &sample, BATCH);
        Ok(mean_activations(&states, over, &mean)?)
    })?;
    let title = shape.name;
    let part = |what: &str, seconds| Timing {
        what: format!("{title}: {what}, {of}"),
        unit: "s",
        ours: Some(seconds),
        ..Timing::default()
    };
    report.timing(&part("mean activations alone", seconds))?;
    let seconds = timed(setting, || {
        for batch in sample.sequences().chunks(BATCH) {
            let batch: Vec<&[i64]> = batch.iter().map(Vec::as_slice).collect();
            last_layer_states(model, &batch)?;
        }
        Ok(())
    })?;
    report.timing(&part("the forwards of the rows alone", seconds))?;

    for (engine, name) in [(Engine::Exact, "exact"), (Engine::Auto, "auto")] {
        // Warms up, and tells whether a block of neurons takes too long.
        let probe = sweep(engine, 0..PROBE, 1)?;
        timed_sweep(&probe, size.sweep)?;
        let of_probe = timed_sweep(&probe, size.sweep)?.measuring;
        let affordable = PROBE as f64 * 3.0 * size.sweep.as_secs_f64() / (of_probe * count as f64);
        let neurons = match affordable as usize {
            BLOCK.. => shape.d_mlp as usize,
            affordable => affordable.max(PROBE),
        };
        let sweep = sweep(engine, 0..neurons, count)?;
        let all = sweep.pairs()? / neurons * shape.d_mlp as usize;
        let Swept {
            pairs,
            before,
            measuring,
            engines,
        } = timed_sweep(&sweep, size.sweep)?;
        let engines = match pairs < all {
            true => format!("{engines}; the rest at the same rate"),
            false => engines,
        };
        let rate = pairs as f64 / measuring;
        ours.rates.insert((shape.name.to_owned(), name), rate);
        report.timing(&Timing {
            what: format!("{title}: sweep, {name}, all variants"),
            unit: "pairs/s",
            ours: Some(rate),
            note: engines,
            ..Timing::default()
        })?;
        let whole = before + all as f64 / rate;
        report.timing(&part(
            &format!("sweep, {name}, of all {} neurons", shape.d_mlp),
            whole,
        ))?;
    }
    Ok(sample)
}

/// What a sweep did, and how long it took.
struct Swept {
    pairs: usize,
    /// Seconds until the mean activations were there.
    before: f64,
    /// Seconds from then on.
    measuring: f64,
    /// Which engine measured how many pairs.
    engines: String,
}

/// Runs a sweep, to the end or to the block that is at hand when the time is up.
fn timed_sweep(sweep: &Sweep<'_>, limit: Duration) -> anyhow::Result<Swept> {
    let started = Instant::now();
    let (mut pairs, mut last) = (0, started);
    let first = Mutex::new(started);
    let ran = sweep.run_with(
        &mut |block| {
            pairs += block.neurons.len() * block.rows.len();
            last = Instant::now();
            match started.elapsed() > limit {
                true => Err("enough was timed".into()),
                false => Ok(()),
            }
        },
        &|tick| {
            if let (Tick::Sequences { .. }, Ok(mut first)) = (tick, first.lock()) {
                *first = Instant::now();
            }
        },
    );
    let engines = match ran {
        Ok(effects) => {
            let of = effects.engine;
            format!(
                "{} pairs exact, {} by moments",
                of.exact_pairs, of.moment_pairs
            )
        }
        Err(AblateError::Sink { .. }) => format!("{pairs} pairs"),
        Err(error) => return Err(error.into()),
    };
    let first = first.into_inner().unwrap_or(started);
    Ok(Swept {
        pairs,
        before: (first - started).as_secs_f64(),
        measuring: (last - first).as_secs_f64(),
        engines,
    })
}

/// Sequences per forward.
const BATCH: usize = 8;

fn sweep<'a>(
    model: &'a Model,
    sample: &'a Sample,
    engine: Engine,
    neurons: std::ops::Range<usize>,
    sequences: usize,
    memory: usize,
) -> anyhow::Result<Sweep<'a>> {
    let plan = Plan::new(neurons.collect(), (0..sequences).collect())
        .with_engine(EngineOptions::default().with_engine(engine))
        .with_batch(BATCH)
        .with_memory_budget(memory);
    let bands = vec![TokenBand::new("band", &band(), D_VOCAB as usize)?];
    Ok(Sweep::new(
        model,
        sample,
        &TokenFrequencies::new(zipf())?,
        bands,
        plan,
    )?)
}

fn band() -> Vec<u32> {
    (D_VOCAB as u32 / 5..D_VOCAB as u32 * 19 / 20).collect()
}

/// Writes what PyTorch needs for the same rows of the first text.
fn export(model: &Model, sample: &Sample, folder: &Path) -> anyhow::Result<()> {
    let put = |name: &str, tensor: &Tensor| {
        let path = folder.join(format!("{name}.npy"));
        let tensor = tensor.f_to_device(Device::Cpu)?.f_contiguous()?;
        let written = tensor.write_npy(&path);
        written.with_context(|| format!("failed to write `{}`", path.display()))
    };
    let (rows, _) = sample.rows(&[0])?;
    let states = last_layer_states(model, &[&sample.sequences()[0]])?;
    let states = states
        .first()
        .context("a forward of one text gave no states")?;
    let places: Vec<i64> = rows.iter().map(|row| row.pos as i64).collect();
    let targets: Vec<i64> = rows.iter().map(|row| row.target).collect();
    let places = Tensor::f_from_slice(&places)?;
    put("resid", &states.resid.f_index_select(0, &places)?)?;
    put("act", &states.activations.f_index_select(0, &places)?)?;
    let over = Semantics::corrected().mean_activation;
    let states = SampleStates::new(model, sample, BATCH);
    let mean = mean_activations(&states, over, &|_, _| ())?;
    put(
        "mean",
        &Tensor::f_from_slice(&mean)?.f_to_kind(Kind::Float)?,
    )?;
    let last = model.config().num_hidden_layers - 1;
    put("w_out", &model.w_out(last)?.f_tr()?)?;
    put("gamma", &model.ln_final().weight)?;
    put("beta", &model.ln_final().bias)?;
    put("w_u", model.w_u())?;
    put("targets", &Tensor::f_from_slice(&targets)?)?;
    put("q", &Tensor::f_from_slice(&zipf())?)?;
    let band: Vec<i64> = band().into_iter().map(i64::from).collect();
    put("band", &Tensor::f_from_slice(&band)?)
}

/// Forwards with all logits; returns where the tokens are.
fn forwards(
    setting: &Setting,
    report: &mut Report,
    size: &Size,
    shape: &Shape,
    folder: &Path,
    ours: &mut Ours,
) -> anyhow::Result<std::path::PathBuf> {
    let (count, length) = size.forward;
    let flat: Vec<i64> = texts(count, length)?.concat();
    let tokens = Tensor::f_from_slice(&flat)?.f_view([count as i64, length as i64])?;
    let path = folder.join("tokens.npy");
    tokens.write_npy(&path)?;
    let on_device = tokens.f_to_device(setting.device)?;
    for (dtype, name) in [(Kind::Float, "f32"), (Kind::BFloat16, "bf16")] {
        let model = models::load(folder, setting.device, dtype)?;
        let forward = || {
            Ok(tch::no_grad(|| {
                model.forward(&on_device, None, &mut NoHooks)
            })?)
        };
        let logits = forward()?;
        if dtype == Kind::Float {
            let first = |tensor: &Tensor| tensor.f_narrow(0, 0, 1);
            let ln_probs = next_token_ln_probs(&first(&logits)?, &first(&on_device)?)?;
            let ln_probs = ln_probs
                .f_view(-1)?
                .f_to_device(Device::Cpu)?
                .f_to_kind(Kind::Double)?;
            ours.ln_probs
                .insert(shape.name.to_owned(), Vec::try_from(&ln_probs)?);
        }
        drop(logits);
        let mut times = Vec::new();
        for _ in 0..size.repeat {
            times.push(timed(setting, forward)?);
        }
        times.sort_by(f64::total_cmp);
        let rate = flat.len() as f64 / times[times.len() / 2];
        ours.rates.insert((shape.name.to_owned(), name), rate);
        report.timing(&Timing {
            what: format!("{}: forward, {name}, {count} x {length}", shape.name),
            unit: "tokens/s",
            ours: Some(rate),
            ..Timing::default()
        })?;
    }
    Ok(path)
}

fn words(
    setting: &Setting,
    report: &mut Report,
    size: &Size,
    shape: &Shape,
    model: &Model,
) -> anyhow::Result<()> {
    let requests = scoring::requests(size.contexts)?;
    let interventions = scoring::interventions(shape.layers - 1)?;
    // First pieces need no word boundaries.
    let vocabulary = WordVocabulary::without_words(EOS, D_VOCAB as usize);
    let scorer = Scorer::new(
        model,
        &vocabulary,
        if setting.on_gpu() { 16_384 } else { 4096 },
    )?
    .without_boundaries();
    scorer.score(&requests[..requests.len().min(32)], &interventions)?;
    let seconds = timed(setting, || Ok(scorer.score(&requests, &interventions)?))?;
    report.timing(&Timing {
        what: format!(
            "{}: {} words, base and 4 interventions",
            shape.name,
            requests.len()
        ),
        unit: "scores/s",
        ours: Some((requests.len() * interventions.len()) as f64 / seconds),
        ..Timing::default()
    })
}

/// Seconds that some work takes, until the device has done it.
fn timed<T>(setting: &Setting, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<f64> {
    setting.synchronize();
    let started = Instant::now();
    work()?;
    setting.synchronize();
    Ok(started.elapsed().as_secs_f64())
}

/// A result of PyTorch's, held against ours.
fn beside(report: &mut Report, ours: &Ours, result: &Value) -> anyhow::Result<()> {
    let text = |name: &str| result[name].as_str().unwrap_or_default();
    let (shape, way) = (text("task"), text("way"));
    let rate = |key: &'static str| ours.rates.get(&(shape.to_owned(), key)).copied();
    let per_second = |units: &str| Some(result[units].as_f64()? / result["seconds"].as_f64()?);
    match text("kind") {
        "about" => {
            for (name, value) in result.as_object().into_iter().flatten() {
                if name != "kind" {
                    report.about(
                        &format!("pytorch_{name}"),
                        value.as_str().unwrap_or_default(),
                    );
                }
            }
            Ok(())
        }
        "ablation" => {
            let theirs = per_second("pairs");
            let exact = rate("exact")
                .zip(theirs)
                .map(|(ours, theirs)| format!("exact: {:.1} times", ours / theirs));
            report.timing(&Timing {
                what: format!(
                    "{shape}: sweep, auto, beside {way} in chunks of {}",
                    text("chunk")
                ),
                unit: "pairs/s",
                ours: rate("auto"),
                pytorch: theirs,
                note: result["error"]
                    .as_str()
                    .map(str::to_owned)
                    .or(exact)
                    .unwrap_or_default(),
            })
        }
        "forward" => {
            let name = if text("dtype") == "f32" {
                "f32"
            } else {
                "bf16"
            };
            report.timing(&Timing {
                what: format!("{shape}: forward, {name}, beside transformers"),
                unit: "tokens/s",
                ours: rate(name),
                pytorch: per_second("tokens"),
                note: text("error").to_owned(),
            })
        }
        "values" => report.check(
            &format!("{shape}: effects, and PyTorch's way {way}"),
            PYTORCH,
            || {
                let changes = ours
                    .changes
                    .get(shape)
                    .context("there are no effects of ours")?;
                let rows = result["rows"]
                    .as_u64()
                    .context("PyTorch does not say how many rows")?
                    as usize;
                let theirs: Vec<f64> = Vec::try_from(&Tensor::read_npy(text("path"))?.f_view(-1)?)?;
                let means = changes.means(rows);
                Ok(Found {
                    largest: largest_difference(&means, &theirs),
                    note: format!("{COMPARED} neurons, {rows} rows"),
                })
            },
        ),
        "ln_probs" => report.check(
            &format!("{shape}: log-probabilities, f32, and transformers"),
            FORWARD,
            || {
                let ours = ours
                    .ln_probs
                    .get(shape)
                    .context("there is no forward of ours")?;
                let theirs: Vec<f64> = Vec::try_from(&Tensor::read_npy(text("path"))?)?;
                Ok(largest_difference(ours, &theirs))
            },
        ),
        _ => Ok(()),
    }
}

impl Changes {
    /// Means over the first rows, `[neuron][variant][measure]`.
    fn means(&self, rows: usize) -> Vec<f64> {
        let of_pair = self.values.len() / COMPARED / self.rows.max(1);
        let mut means = Vec::new();
        for of_neuron in self.values.chunks(of_pair * self.rows) {
            for place in 0..of_pair {
                let sum: f64 = of_neuron
                    .iter()
                    .skip(place)
                    .step_by(of_pair)
                    .take(rows)
                    .sum();
                means.push(sum / rows as f64);
            }
        }
        means
    }
}
