//! Memory that a sweep of all neurons takes beside the weights, in the shape of Pythia-410M's last layer.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use neuron_ablate::{
    AblateError, Dose, EngineOptions, Plan, Sample, Semantics, Sweep, TokenBand, TokenFrequencies,
    Variants,
};
use tch::{Device, Kind, Tensor};

use crate::machine::{driver_id, gpu};
use crate::models::{D_VOCAB, EOS, PEAKED, PYTHIA_410M, texts, zipf};
use crate::report::{Found, Report};
use crate::{Setting, models};

/// Allowed, as a multiple of the budget: what is in the making, and what the allocator keeps.
const ALLOWED: f64 = 1.5;
const MIB: f64 = (1u64 << 20) as f64;
/// After so long the sweep ends with the block at hand: all blocks take the same memory.
const ENOUGH: Duration = Duration::from_secs(8);

/// The memory in use, watched by a thread.
struct Watch {
    peak: Arc<AtomicU64>,
    now: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    driver: Option<Child>,
}

impl Watch {
    fn start(device: Device) -> anyhow::Result<Self> {
        let mut watch = Self {
            peak: Arc::default(),
            now: Arc::default(),
            stop: Arc::default(),
            driver: None,
        };
        let (peak, now, stop) = (watch.peak.clone(), watch.now.clone(), watch.stop.clone());
        let note = move |bytes: u64| {
            now.store(bytes, Ordering::Relaxed);
            peak.fetch_max(bytes, Ordering::Relaxed);
        };
        match device {
            Device::Cuda(index) => {
                let mut driver = Command::new("nvidia-smi")
                    .args([
                        "--query-gpu=memory.used",
                        "--format=csv,noheader,nounits",
                        "--loop-ms=20",
                    ])
                    .arg(format!("--id={}", driver_id(index)))
                    .stdout(Stdio::piped())
                    .stderr(Stdio::null())
                    .spawn()
                    .context(
                        "failed to start `nvidia-smi`, which tells how much memory is in use",
                    )?;
                let lines = driver.stdout.take().map(BufReader::new);
                watch.driver = Some(driver);
                thread::spawn(move || {
                    let lines = lines
                        .into_iter()
                        .flat_map(BufRead::lines)
                        .map_while(Result::ok);
                    lines
                        .filter_map(|line| line.trim().parse::<u64>().ok())
                        .for_each(|mib| note(mib << 20));
                });
            }
            _ => {
                thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        note(resident());
                        thread::sleep(Duration::from_millis(2));
                    }
                });
            }
        }
        Ok(watch)
    }

    /// What is in use, after a while in which it was seen.
    fn settled(&self, setting: &Setting) -> anyhow::Result<u64> {
        setting.synchronize();
        self.now.store(0, Ordering::Relaxed);
        let started = Instant::now();
        thread::sleep(Duration::from_millis(if self.driver.is_some() {
            150
        } else {
            20
        }));
        while self.now.load(Ordering::Relaxed) == 0 {
            if started.elapsed() > Duration::from_secs(5) {
                bail!("nothing tells how much memory is in use");
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(self.now.load(Ordering::Relaxed))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(driver) = &mut self.driver {
            // Best effort: it may have ended by itself.
            let _ = driver.kill();
            let _ = driver.wait();
        }
    }
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
    if let Device::Cuda(index) = setting.device
        && gpu(index).is_none()
    {
        return report.skipped(
            &what,
            "`nvidia-smi`, which tells how much memory is in use, is not there",
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
    let watch = Watch::start(setting.device)?;
    let before = watch.settled(setting)?;
    let model = models::load(&folder, setting.device, dtype)?;
    let sample = Sample::new(texts(count, length)?, &[EOS], D_VOCAB as usize)?;
    let rare: Vec<u32> = (D_VOCAB as u32 / 2..D_VOCAB as u32).collect();
    let plan = Plan {
        neurons: (0..shape.d_mlp as usize).collect(),
        sequences: (0..count).collect(),
        dose: Dose::Mean,
        semantics: Semantics::corrected(),
        variants: Variants::default(),
        ranks: false,
        engine: EngineOptions::default(),
        batch: 4,
        memory_budget: budget,
    };
    let bands = vec![TokenBand::new("rare", &rare, D_VOCAB as usize)?];
    let frequencies = TokenFrequencies::new(zipf())?;
    let sweep = Sweep::new(&model, &sample, &frequencies, bands, plan)?;
    let loaded = watch.settled(setting)?;
    watch.peak.store(0, Ordering::Relaxed);
    let (started, mut pairs) = (Instant::now(), 0);
    let ran = sweep.run(
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
    watch.settled(setting)?;
    let peak = watch.peak.load(Ordering::Relaxed);
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
