//! Memory that a sweep of all neurons takes beside the weights, in the shape of Pythia-410M's last layer.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use neuron_ablate::{AblateError, Plan, Sample, Sweep, TokenBand, TokenFrequencies};
use tch::{Device, Kind, Tensor};

use crate::machine::ask_driver;
use crate::models::{D_VOCAB, EOS, PEAKED, PYTHIA_410M, texts, zipf};
use crate::report::{Found, Report};
use crate::{Setting, models};

/// Allowed, as a multiple of the budget: what is in the making, and what the allocator keeps.
const ALLOWED: f64 = 1.5;
const MIB: f64 = (1u64 << 20) as f64;
/// After so long the sweep ends with the block at hand: all blocks take the same memory.
const ENOUGH: Duration = Duration::from_secs(8);

/// What this process has at most while this lives, as a thread sees it.
#[derive(Default)]
struct Watch {
    peak: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Watch {
    fn start() -> Self {
        let watch = Self::default();
        let (peak, stop) = (watch.peak.clone(), watch.stop.clone());
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                peak.fetch_max(resident(), Ordering::Relaxed);
                thread::sleep(Duration::from_millis(2));
            }
        });
        watch
    }

    fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Bytes in use: of the GPU as its driver says, or by this process.
fn in_use(setting: &Setting) -> anyhow::Result<u64> {
    let Device::Cuda(index) = setting.device else {
        return Ok(resident());
    };
    setting.synchronize();
    let mib = ask_driver(index, "memory.used").and_then(|text| text.parse::<u64>().ok());
    let mib = mib.context("`nvidia-smi` does not tell how much memory is in use")?;
    Ok(mib << 20)
}

/// Resident memory of this process, bytes; 0 where the system does not tell.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|text| {
        text.trim()
            .trim_end_matches("kB")
            .trim()
            .parse::<u64>()
            .ok()
    });
    kib.unwrap_or(0) << 10
}

/// The check.
///
/// # Errors
/// If nothing can be printed.
pub(crate) fn check(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    // Rows that fill the budget, in sequences of one length.
    let (budget, count, length) = match setting.on_gpu() {
        true => (2 << 30, 5, 256),
        false => (256 << 20, 2, 84),
    };
    let what = format!(
        "N = 4,096, V = 50,304, d = 1,024: of a budget of {} MiB",
        budget >> 20
    );
    if in_use(setting).is_err() {
        return report.skipped(
            &what,
            "`nvidia-smi` does not tell how much memory is in use",
        );
    }
    report.check(&what, ALLOWED, || {
        share_of_budget(setting, budget, count, length)
    })
}

/// The largest use of memory beside the weights, as a multiple of the budget.
fn share_of_budget(
    setting: &Setting,
    budget: usize,
    count: usize,
    length: usize,
) -> anyhow::Result<Found> {
    let shape = PYTHIA_410M.with_layers(1);
    let folder = models::write(&setting.folder.join("memory"), &shape, PEAKED)?;
    let dtype = if setting.on_gpu() {
        Kind::Half
    } else {
        Kind::Float
    };
    // What the device needs by itself.
    let ones = Tensor::f_ones([256, 256], (dtype, setting.device))?;
    ones.f_matmul(&ones)?
        .f_sum(Kind::Float)?
        .f_double_value(&[])?;
    let before = in_use(setting)?;
    let model = models::load(&folder, setting.device, dtype)?;
    let sample = Sample::new(texts(count, length)?, &[EOS], D_VOCAB as usize)?;
    let rare: Vec<u32> = (D_VOCAB as u32 / 2..D_VOCAB as u32).collect();
    let plan = Plan::new((0..shape.d_mlp as usize).collect(), (0..count).collect())
        .with_batch(4)
        .with_memory_budget(budget);
    let bands = vec![TokenBand::new("rare", &rare, D_VOCAB as usize)?];
    let frequencies = TokenFrequencies::new(zipf())?;
    let sweep = Sweep::new(&model, &sample, &frequencies, bands, plan)?;
    let loaded = in_use(setting)?;
    let watch = Watch::start();
    let (started, mut pairs) = (Instant::now(), 0);
    let ran = sweep.run_with(
        &mut |block| {
            pairs += block.neurons.len() * block.rows.len();
            match started.elapsed() > ENOUGH {
                true => Err("enough was seen".into()),
                false => Ok(()),
            }
        },
        &|_| (),
    );
    match ran {
        Ok(_) | Err(AblateError::Sink { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    // libtorch keeps what it has had of a GPU, so that this is its peak.
    let peak = if setting.on_gpu() {
        in_use(setting)?
    } else {
        watch.peak()
    };
    // The model's own weights, and the centred `W_U` of the closed form in f32.
    let weights =
        shape.parameters() * dtype.elt_size_in_bytes() as i64 + 4 * D_VOCAB * shape.d_model;
    let beside = peak as f64 - before as f64 - weights as f64;
    Ok(Found {
        largest: beside / budget as f64,
        note: format!(
            "{:.0} MiB at the peak: {:.0} before, {:.0} of weights (in use once loaded: {:.0}), {:.0} beside them; {pairs} of {} pairs",
            peak as f64 / MIB,
            before as f64 / MIB,
            weights as f64 / MIB,
            loaded as f64 / MIB,
            beside / MIB,
            sweep.pairs()?,
        ),
    })
}
