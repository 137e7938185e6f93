//! What a run is going to take: from its shapes and, where it is asked for, a measured piece of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use job_inputs::{MeansConfig, MeansSample};
use job_kit::estimate::{ForCheckpoints, memory_now};
use job_kit::{Estimate, OutputDir, Progress, RunRecord};

use crate::JOB;
use crate::config::{Reading, SurprisalConfig};
use crate::setup::{self, MEAN_BATCH, Missing, Setup, Times, scores_of};
use crate::store::{FORMS, PARTS, Row, Store};

/// Words in context that are scored for an estimate.
const PROBE_PAIRS: usize = 64;

/// Bytes that a surprisal takes in a table; somewhat less where several sets of neurons give the same.
const VALUE: f64 = 8.0;
/// Of a score, what tells it from others.
const KEYS: f64 = 2.0;
/// Bytes of a step in a wide table.
const WIDE: f64 = 8.0;
/// Bytes in memory of a row of the table, its text included, while a step is put together.
const ROW_IN_MEMORY: u64 = size_of::<Row>() as u64 + 300;

/// What one checkpoint takes of disk and memory, beside the checkpoint itself.
fn of_shapes(setup: &Setup<'_>, scores: usize) -> Estimate {
    let config = setup.config;
    let values = match config.reading {
        Reading::Corrected => FORMS.len(),
        Reading::Liu2025 => 1,
    } as f64;
    let corrected = f64::from(u8::from(config.reading == Reading::Corrected));
    // Beside the forms: what the boundary adds, and the change.
    let of_table = (values + corrected + 1.0) * VALUE + KEYS;
    let of_wide = match config.wide() {
        true => WIDE,
        false => 0.0,
    };
    let rows = setup.names.len() * setup.words.pairs.len();
    let of_parts = values * VALUE + KEYS;
    let disk = rows as f64 * (of_table + of_wide) + scores as f64 * of_parts;
    Estimate {
        disk: disk as u64,
        memory: memory_now().map(|now| now.most + rows as u64 * ROW_IN_MEMORY),
        time: None,
    }
}

/// Tells at its start what a run takes that lacks so many scores; refuses if the disk has not room for it.
pub(crate) fn begin(
    setup: &Setup<'_>,
    scores: usize,
    record: &mut RunRecord,
) -> anyhow::Result<()> {
    let checkpoints = setup.steps.len();
    let run = ForCheckpoints {
        of_one: of_shapes(setup, scores / checkpoints.max(1)),
        checkpoints,
    };
    Ok(run.begin(&setup.config.output.dir, LESS, record)?)
}

const LESS: &str = "fewer words or draws (`words.max_context`, `controls.draws`) take less";

/// Measures a piece of the run and says what the whole takes; leaves nothing behind.
pub(crate) fn estimate(
    config: &SurprisalConfig,
    resolved: &serde_json::Value,
) -> anyhow::Result<()> {
    let mut record = setup::begin(config, resolved);
    let setup = Setup::read(config, &mut record)?;
    let keys = setup.keys();
    let there = match &config.merge {
        Some(below) => Store::merged(below, &setup.identity, keys, &setup.steps, &mut record)?,
        None => Store::look(&config.output.dir, &setup.identity, keys)?,
    };
    let missing = setup.missing(&there, config.merge.is_some())?;
    let scores = scores_of(missing.values());
    let most = missing.iter().max_by_key(|(_, of)| scores_of([*of]));
    let Some((&step, of_step)) = most else {
        return Ok(job_kit::print(
            "all scores are there; the tables and figures are made of them\n",
        )?);
    };
    let checkpoints = missing.len();
    let of_one = scores / checkpoints;
    let time = probe(resolved, &setup, (step, of_step), of_one)?;
    let run = ForCheckpoints {
        of_one: Estimate {
            time: Some(time),
            ..of_shapes(&setup, of_one)
        },
        checkpoints,
    };
    job_kit::print(run.in_words(&format!("{of_one} scores")))?;
    Ok(run.begin(&config.output.dir, LESS, &mut record)?)
}

/// How long so many scores of a checkpoint take, from a few of them.
fn probe(
    resolved: &serde_json::Value,
    setup: &Setup<'_>,
    (step, missing): (Option<u64>, &Missing),
    scores: usize,
) -> anyhow::Result<Duration> {
    let config = setup.config;
    let few: Missing = missing
        .iter()
        .max_by_key(|(interventions, pairs)| interventions.len() * pairs.len())
        .map(|(interventions, pairs)| {
            let n = pairs.len().min(PROBE_PAIRS);
            let spread = (0..n).map(|i| pairs[i * pairs.len() / n]).collect();
            BTreeMap::from([(interventions.clone(), spread)])
        })
        .unwrap_or_default();
    let piece = MeansConfig {
        sequences: config.means.sequences.at_most(MEAN_BATCH),
        keep: None,
    };
    let folder = tempfile::tempdir()?;
    let out = OutputDir::create(folder.path(), JOB, resolved, [PARTS])?;
    let store = Store::open(&out, &setup.identity, setup.keys())?;
    let mut record = RunRecord::new(JOB, "", resolved);
    let mut times = Times::default();
    let measured = scores_of([&few]);
    let progress = Progress::new("measuring", measured as u64, "scores");
    let mut time = Duration::ZERO;
    let begin = Instant::now();
    setup.checkpoints.each(&[step], |loaded| {
        let loading = begin.elapsed();
        let told = (&mut times, &mut record);
        setup.score(&piece, &loaded, (&store, &few), &progress, told)?;
        let scoring = begin.elapsed() - loading - times.means - times.activities;
        // Means are of all sequences that they are taken over.
        let sequences = |means| {
            let by = (&loaded.model, loaded.content.as_str());
            let sample = setup.sample.as_ref()?;
            let all = MeansSample::new(means, by, sample, config.seed);
            Some(all.sequences().len())
        };
        let more = match (sequences(&config.means), sequences(&piece)) {
            (Some(all), Some(few)) => all as f64 / few.max(1) as f64,
            _ => 1.0,
        };
        time = loading
            + times.means.mul_f64(more)
            + times.activities
            + scoring.mul_f64(scores as f64 / measured.max(1) as f64);
        Ok(())
    })?;
    progress.finish();
    Ok(time)
}
