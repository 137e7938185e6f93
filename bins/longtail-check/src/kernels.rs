//! The engines of a sweep on the device, against the fused kernel on the CPU and against f64, pair by pair.
//!
//! All take the residual stream and the activations of one forward, so that what differs is the sums over the vocabulary alone.

use std::path::Path;

use neox_core::Model;
use neuron_ablate::{
    Dose, Engine, EngineOptions, ExactSums, NestedSets, Plan, Sample, Semantics, Sweep, TokenBand,
    TokenFrequencies,
};
use tch::Kind;

use crate::models::{EOS, FLAT, PEAKED, PYTHIA_70M, largest_difference, texts, zipf};
use crate::report::{Found, Report};
use crate::{Setting, golden, models};

/// What any two ways of exact sums may differ by: both are f32 where exponentials are taken, and sum in f64.
const EXACT: f64 = 2e-6;
/// Ranks compare logits, which are f32 sums in another order: where two logits are equal within rounding, a rank may be one off.
const RANKS: f64 = 1.0;
/// The share of such ranks.
const RANKS_OFF: f64 = 0.01;

const MEMORY: usize = 1 << 30;

/// A model, texts and bands to sweep.
struct Case {
    model: Model,
    sample: Sample,
    frequencies: TokenFrequencies,
    bands: Vec<TokenBand>,
    semantics: Semantics,
}

/// What a sweep measured.
struct Table {
    /// By how much measures change, `[pair][variant][measure]`.
    changes: Vec<f64>,
    /// Bound on the error of each, `[pair]`.
    bounds: Vec<f64>,
    /// Ranks of the targets before, `[row]`, and after, `[pair]`.
    ranks: Vec<f64>,
    mean: Vec<f64>,
}

fn options(engine: Engine, exact: ExactSums) -> EngineOptions {
    EngineOptions::default()
        .with_engine(engine)
        .with_exact(exact)
}

/// What a sweep on the device takes by itself: on a GPU its own kernel.
const OWN: (Engine, ExactSums) = (Engine::Exact, ExactSums::Auto);
const TENSOR: (Engine, ExactSums) = (Engine::Exact, ExactSums::Tensor);
const KERNEL: (Engine, ExactSums) = (Engine::Exact, ExactSums::Kernel);
const F64: (Engine, ExactSums) = (Engine::Exact, ExactSums::TensorF64);
const MOMENTS: (Engine, ExactSums) = (Engine::Moments, ExactSums::Tensor);
const AUTO: (Engine, ExactSums) = (Engine::Auto, ExactSums::Tensor);

impl Case {
    fn new(model: Model, texts: Vec<Vec<i64>>, frequencies: Vec<f64>) -> anyhow::Result<Self> {
        let d_vocab = frequencies.len();
        let v = d_vocab as u32;
        let rare: Vec<u32> = (v / 2..v * 9 / 10).collect();
        let usual: Vec<u32> = (v / 50..v / 2 + v / 8).collect();
        Ok(Self {
            model,
            sample: Sample::new(texts, &[EOS], d_vocab)?,
            frequencies: TokenFrequencies::new(frequencies)?,
            // They share some tokens, which makes a cell of its own.
            bands: vec![
                TokenBand::new("rare", &rare, d_vocab)?,
                TokenBand::new("usual", &usual, d_vocab)?,
            ],
            semantics: Semantics::corrected(),
        })
    }

    fn random(setting: &Setting, folder: &Path, dtype: Kind) -> anyhow::Result<Self> {
        let (_, length) = size(setting);
        Self::new(
            models::load(folder, setting.device, dtype)?,
            texts(2, length)?,
            zipf(),
        )
    }

    fn sweep(
        &self,
        (engine, exact): (Engine, ExactSums),
        neurons: &[usize],
    ) -> anyhow::Result<Sweep<'_>> {
        let sequences = (0..self.sample.sequences().len()).collect();
        let plan = Plan::new(neurons.to_vec(), sequences)
            .with_semantics(self.semantics.clone())
            .with_ranks(true)
            .with_engine(options(engine, exact))
            .with_batch(4)
            .with_memory_budget(MEMORY);
        Ok(Sweep::new(
            &self.model,
            &self.sample,
            &self.frequencies,
            self.bands.clone(),
            plan,
        )?)
    }

    fn table(&self, engine: (Engine, ExactSums), neurons: &[usize]) -> anyhow::Result<Table> {
        let mut table = Table {
            changes: Vec::new(),
            bounds: Vec::new(),
            ranks: Vec::new(),
            mean: Vec::new(),
        };
        let effects = self.sweep(engine, neurons)?.run_with(
            &mut |block| {
                table.changes.extend(block.changes());
                table.bounds.extend(block.bounds);
                if let Some(ranks) = &block.ranks {
                    let all = ranks.clean.iter().chain(ranks.ablated);
                    table.ranks.extend(all.map(|&rank| f64::from(rank)));
                }
                Ok(())
            },
            &|_| (),
        )?;
        table.mean = effects.mean_activations;
        Ok(table)
    }

    /// Some sets of neurons at two doses: every mean change.
    fn sets(&self, engine: (Engine, ExactSums), mean: &[f64]) -> anyhow::Result<Vec<f64>> {
        let sweep = self.sweep(engine, &[0])?;
        let lists = [
            NestedSets::doubling("strong", (0..4).map(|n| n * 16).collect())?,
            NestedSets::doubling("others", (100..108).collect())?,
        ];
        let effects = sweep.run_sets(&lists, &[Dose::Mean, Dose::Scale(1.5)], mean, &|_| ())?;
        let mut means = Vec::new();
        for set in &effects {
            for &variant in sweep.variants() {
                for &measure in sweep.measures() {
                    means.push(set.effects.change(variant, measure)?.mean);
                }
            }
        }
        Ok(means)
    }
}

/// Neurons, and tokens of each text: tensor operations are slow on a CPU.
fn size(setting: &Setting) -> (usize, usize) {
    match (setting.on_gpu(), setting.quick) {
        (true, _) => (96, 36),
        (false, false) => (32, 20),
        (false, true) => (16, 12),
    }
}

/// All checks of this kind.
///
/// # Errors
/// If nothing can be printed.
pub(crate) fn check(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    // Those that write strongly among them.
    let neurons: Vec<usize> = (0..size(setting).0).map(|n| n * 3).collect();
    let shape = PYTHIA_70M.with_layers(1);
    for (name, spread) in [("flat", FLAT), ("peaked", PEAKED)] {
        let folder = setting.folder.join(name);
        let made = report.needed(&format!("{name} logits: the model"), || {
            models::write(&folder, &shape, spread)
        })?;
        if made.is_none() {
            continue;
        }
        for (dtype, precision) in [(Kind::Float, "f32"), (Kind::Half, "f16")] {
            let title = format!("{name} logits, {precision} model");
            let case = report.needed(&title, || Case::random(setting, &folder, dtype))?;
            let Some(case) = case else {
                continue;
            };
            engines(report, &title, &case, &neurons, dtype == Kind::Float)?;
            if (name, dtype) == ("peaked", Kind::Float) {
                other_readings(report, &title, case, &neurons)?;
            }
        }
    }
    let folder = setting.folder.join("behind-norm");
    let title = "a norm behind the MLP: exact sums and the CPU's kernel";
    report.check(title, EXACT, || {
        golden::OLMO2.write(&folder)?;
        let model = models::load(&folder, setting.device, Kind::Float)?;
        let d_vocab = model.config().vocab_size;
        let texts = texts(2, 20)?
            .into_iter()
            .map(|text| text.iter().map(|id| id % d_vocab).collect());
        let zipf = zipf();
        let total: f64 = zipf[..d_vocab as usize].iter().sum();
        let frequencies = zipf[..d_vocab as usize].iter().map(|q| q / total).collect();
        let case = Case::new(model, texts.collect(), frequencies)?;
        let neurons: Vec<usize> = (0..case.model.config().intermediate_size as usize).collect();
        let kernel = case.table(KERNEL, &neurons)?;
        let own = largest_difference(&case.table(OWN, &neurons)?.changes, &kernel.changes);
        let tensor = largest_difference(&case.table(TENSOR, &neurons)?.changes, &kernel.changes);
        Ok(own.max(tensor))
    })
}

fn engines(
    report: &mut Report,
    title: &str,
    case: &Case,
    neurons: &[usize],
    in_f64: bool,
) -> anyhow::Result<()> {
    let of = |what: &str| format!("{title}: {what}");
    let Some(kernel) = report.needed(&of("the CPU's kernel"), || case.table(KERNEL, neurons))?
    else {
        return Ok(());
    };
    let mut own = None;
    report.check(&of("the device's kernel, and the CPU's"), EXACT, || {
        let table = own.insert(case.table(OWN, neurons)?);
        Ok(largest_difference(&table.changes, &kernel.changes))
    })?;
    if let Some(own) = &own {
        report.check(&of("its ranks, and the CPU's"), RANKS, || {
            ranks(own, &kernel)
        })?;
    }
    let mut tensor = None;
    report.check(&of("exact sums and the CPU's kernel"), EXACT, || {
        let table = tensor.insert(case.table(TENSOR, neurons)?);
        Ok(Found {
            largest: largest_difference(&table.changes, &kernel.changes),
            note: format!("{} pairs", table.bounds.len()),
        })
    })?;
    if let Some(tensor) = &tensor {
        report.check(&of("ranks, and the CPU's kernel"), RANKS, || {
            ranks(tensor, &kernel)
        })?;
    }
    if in_f64 {
        let few = &neurons[..neurons.len().min(8)];
        let values = kernel.changes.len() / neurons.len() * few.len();
        if let Some(truth) = report.needed(&of("f64"), || case.table(F64, few))? {
            let tables = [
                ("the CPU's kernel", Some(&kernel)),
                ("exact sums", tensor.as_ref()),
                ("the device's kernel", own.as_ref()),
            ];
            for (name, table) in tables {
                if let Some(table) = table {
                    report.check(&of(&format!("{name} and f64")), EXACT, || {
                        Ok(largest_difference(&table.changes[..values], &truth.changes))
                    })?;
                }
            }
        }
        report.check(&of("moments, beyond their own bound"), EXACT, || {
            Ok(beyond_bounds(&case.table(MOMENTS, neurons)?, &kernel))
        })?;
    }
    report.check(&of("auto, beyond its own bound"), EXACT, || {
        Ok(beyond_bounds(&case.table(AUTO, neurons)?, &kernel))
    })
}

/// The reading of Liu et al. (2025), which puts clean logits back, and sets of neurons.
fn other_readings(
    report: &mut Report,
    title: &str,
    mut case: Case,
    neurons: &[usize],
) -> anyhow::Result<()> {
    let mean = report.needed(&format!("{title}: mean activations"), || {
        Ok(case.table(KERNEL, &[0])?.mean)
    })?;
    if let Some(mean) = mean {
        report.check(
            &format!("{title}: sets, and the CPU's kernel"),
            EXACT,
            || {
                let kernel = case.sets(KERNEL, &mean)?;
                let own = largest_difference(&case.sets(OWN, &mean)?, &kernel);
                let tensor = largest_difference(&case.sets(TENSOR, &mean)?, &kernel);
                Ok(own.max(tensor))
            },
        )?;
    }
    case.semantics = Semantics::liu2025();
    let title = format!("{title}, liu2025");
    engines(report, &title, &case, neurons, false)
}

fn ranks(ours: &Table, kernel: &Table) -> anyhow::Result<Found> {
    let off = ours
        .ranks
        .iter()
        .zip(&kernel.ranks)
        .filter(|(a, b)| a != b)
        .count();
    let share = off as f64 / kernel.ranks.len().max(1) as f64;
    let largest = match share <= RANKS_OFF {
        true => largest_difference(&ours.ranks, &kernel.ranks),
        false => f64::INFINITY,
    };
    Ok(Found {
        largest,
        note: format!("{off} of {} ranks differ", kernel.ranks.len()),
    })
}

/// By how much the error of any pair exceeds the pair's own bound.
fn beyond_bounds(table: &Table, truth: &Table) -> Found {
    let values = truth.changes.len() / truth.bounds.len().max(1);
    let pairs = table
        .changes
        .chunks(values)
        .zip(truth.changes.chunks(values))
        .zip(&table.bounds);
    // A bound may be infinite, which says that the moments cannot tell.
    let beyond = pairs
        .filter(|(_, bound)| bound.is_finite())
        .map(|((ours, truth), bound)| largest_difference(ours, truth) - bound);
    let largest = match table.changes.len() == truth.changes.len() {
        true => beyond.fold(0.0, f64::max),
        false => f64::INFINITY,
    };
    let by_moments = table.bounds.iter().filter(|bound| **bound > 0.0).count();
    Found {
        largest,
        note: format!("{by_moments} of {} pairs by moments", table.bounds.len()),
    }
}
