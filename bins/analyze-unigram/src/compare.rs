//! `--compare`: two analyses side by side, from the folders that they wrote.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use job_kit::TableReader;
use neuron_select::{Comparison, NeuronEffects, Ranking, Weights};
use serde_json::Value;

use crate::{
    config::{AnalyzeConfig, SelectionConfig},
    ids::numbered,
};

/// One analysis, as written.
struct Analysis {
    path: PathBuf,
    run: Value,
    selection: SelectionConfig,
    persistence: f64,
    rankings: BTreeMap<i64, Ranking>,
}

/// Says in words what differs between two analyses, step by step, and why.
pub(crate) fn compare(first: &Path, second: &Path) -> anyhow::Result<String> {
    let (a, b) = (read(first)?, read(second)?);
    let shared: Vec<i64> = a
        .rankings
        .keys()
        .filter(|step| b.rankings.contains_key(step))
        .copied()
        .collect();
    if shared.is_empty() {
        let steps = |x: &Analysis| {
            x.rankings
                .keys()
                .map(i64::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        };
        bail!(
            "no step in common: `{}` has {}, `{}` has {}",
            a.path.display(),
            steps(&a),
            b.path.display(),
            steps(&b)
        );
    }
    let mut text = String::new();
    writeln!(
        text,
        "first:  {}\n        {}",
        a.path.display(),
        a.selection.criteria()
    )?;
    writeln!(
        text,
        "second: {}\n        {}",
        b.path.display(),
        b.selection.criteria()
    )?;
    let settings = differing_settings(&a.run, &b.run);
    writeln!(
        text,
        "\nsettings that differ:{}",
        if settings.is_empty() { " none" } else { "" }
    )?;
    for (key, first, second) in settings {
        writeln!(text, "  {key}: {first} | {second}")?;
    }
    for step in shared {
        let (ranking_a, ranking_b) = (&a.rankings[&step], &b.rankings[&step]);
        let comparison = Comparison::new(
            (ranking_a, a.selection.top()),
            (ranking_b, b.selection.top()),
            a.persistence,
        )?;
        let number =
            |value: Option<f64>| value.map_or("undefined".to_owned(), |v| format!("{v:.3}"));
        writeln!(
            text,
            "\nstep {step}: {} neurons in both, Jaccard {}, rank-biased overlap {}",
            comparison.shared.len(),
            number(comparison.jaccard),
            number(comparison.rank_biased_overlap)
        )?;
        for difference in &comparison.differences {
            let rank = if difference.in_first {
                difference.first
            } else {
                difference.second
            };
            let rank = rank
                .and_then(|standing| standing.rank())
                .map_or(String::new(), |rank| rank.to_string());
            let (here, there) = if difference.in_first {
                ("first", "second")
            } else {
                ("second", "first")
            };
            writeln!(
                text,
                "  only in the {here}, rank {rank:>3}: {:<9} in the {there} {}",
                difference.neuron.to_string(),
                difference.reason()
            )?;
        }
    }
    Ok(text)
}

fn read(path: &Path) -> anyhow::Result<Analysis> {
    let run_path = path.join(job_kit::output::RUN_RECORD);
    let text = fs::read(&run_path).with_context(|| {
        format!(
            "failed to read `{}`: is it a folder that analyze-unigram wrote?",
            run_path.display()
        )
    })?;
    let run: Value = serde_json::from_slice(&text)
        .with_context(|| format!("`{}` is not JSON", run_path.display()))?;
    let config = run.get("config").cloned().unwrap_or_default();
    let config: AnalyzeConfig = serde_json::from_value(config).with_context(|| {
        format!(
            "`{}` does not hold the configuration of analyze-unigram",
            run_path.display()
        )
    })?;
    let effects = effects(&TableReader::open(path.join("ranking.parquet"))?)?;
    let criteria = config.selection.criteria();
    Ok(Analysis {
        path: path.to_owned(),
        run,
        rankings: effects
            .into_iter()
            .map(|(step, effects)| (step, Ranking::new(effects, &criteria)))
            .collect(),
        persistence: config.persistence,
        selection: config.selection,
    })
}

/// What a ranking is made of, by step.
fn effects(table: &TableReader) -> anyhow::Result<BTreeMap<i64, Vec<NeuronEffects>>> {
    let integers = ["step", "layer", "neuron", "rows"];
    let numbers = [
        "kl_change",
        "loss_change",
        "frozen_loss_change",
        "total_effect",
        "direct_effect",
        "activation",
        "kl_abs_change",
        "frozen_ln_effect",
        "w_out_norm_centred",
        "logit_var",
        "null_share",
    ];
    // Tables of earlier versions have not all of the last ones.
    let there = |name: &&str| numbers[..6].contains(name) || table.has(name);
    let there: Vec<&str> = numbers.into_iter().filter(there).collect();
    let rows = table.read(&[&integers[..], &there].concat())?;
    let of_numbers = numbers.map(|name| match there.contains(&name) {
        true => rows.opt_f64(name),
        false => Ok(vec![None; rows.rows()]),
    });
    let numbers = of_numbers.into_iter().collect::<Result<Vec<_>, _>>()?;
    let steps = rows.i64("step")?;
    let neurons = numbered(&rows.i64("layer")?, &rows.i64("neuron")?)?;
    let counts = rows.i64("rows")?;
    let mut effects: BTreeMap<i64, Vec<NeuronEffects>> = BTreeMap::new();
    for (i, &neuron) in neurons.iter().enumerate() {
        // Direct effects of another band than the rows' are left out of the table; no comparison is by them.
        let number = |place: usize| numbers[place][i].unwrap_or(f64::NAN);
        effects.entry(steps[i]).or_default().push(NeuronEffects {
            neuron,
            rows: usize::try_from(counts[i])?,
            kl_change: number(0),
            loss_change: number(1),
            frozen_loss_change: number(2),
            total_effect: number(3),
            direct_effect: number(4),
            activation: number(5),
            kl_abs_change: number(6),
            frozen_ln_effect: numbers[7][i],
            weights: Weights {
                norm: numbers[8][i],
                logit_var: numbers[9][i],
                null_share: numbers[10][i],
            },
            // No ranking is by these.
            frozen_all_effect: None,
            rms_change: None,
            active_share: f64::NAN,
            active_loss: None,
        });
    }
    Ok(effects)
}

/// Settings of the analyses, and of the ablations behind them, that are not the same in both.
fn differing_settings(a: &Value, b: &Value) -> Vec<(String, String, String)> {
    let settings = |run: &Value| {
        let mut found = BTreeMap::new();
        flatten("", run.get("config").unwrap_or(&Value::Null), &mut found);
        flatten(
            "ablation",
            run.pointer("/notes/ablation").unwrap_or(&Value::Null),
            &mut found,
        );
        found.retain(|key, _| !key.starts_with("output.") && !key.starts_with("ablation.output."));
        found
    };
    let (a, b) = (settings(a), settings(b));
    let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let shown = |value: Option<&Value>| value.map_or("not set".to_owned(), Value::to_string);
    let pairs = keys.into_iter().filter(|key| a.get(*key) != b.get(*key));
    pairs
        .map(|key| (key.clone(), shown(a.get(key)), shown(b.get(key))))
        .collect()
}

fn flatten(prefix: &str, value: &Value, into: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                flatten(
                    &if prefix.is_empty() {
                        key.clone()
                    } else {
                        format!("{prefix}.{key}")
                    },
                    value,
                    into,
                );
            }
        }
        Value::Null => {}
        other => {
            into.insert(prefix.to_owned(), other.clone());
        }
    }
}
