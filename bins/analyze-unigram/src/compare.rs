//! `--compare`: two analyses side by side, from the folders that they wrote.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use job_kit::TableReader;
use neuron_select::{Comparison, NeuronEffects, NeuronId, Ranking, Weights};
use serde_json::Value;

use crate::config::{AnalyzeConfig, SelectionConfig};

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
    let table = TableReader::open(path.join("ranking.parquet"))?;
    let numbers = [
        "kl_change",
        "loss_change",
        "frozen_loss_change",
        "total_effect",
        "direct_effect",
        "activation",
    ];
    let integers = ["step", "layer", "neuron", "rows"];
    // Tables of earlier versions have not all of them.
    let optional = [
        "kl_abs_change",
        "frozen_ln_effect",
        "w_out_norm_centred",
        "logit_var",
        "null_share",
    ];
    let there: Vec<&str> = optional
        .into_iter()
        .filter(|name| table.has(name))
        .collect();
    let rows = table.read(&[&integers[..], &numbers[..], &there].concat())?;
    let integers = integers
        .iter()
        .map(|name| rows.i64(name))
        .collect::<Result<Vec<_>, _>>()?;
    let numbers = numbers
        .iter()
        .map(|name| {
            // Direct effects of another band than the rows' are left out of the table; no comparison is by them.
            let values = rows.opt_f64(name)?;
            Ok(values
                .into_iter()
                .map(|value| value.unwrap_or(f64::NAN))
                .collect::<Vec<f64>>())
        })
        .collect::<Result<Vec<_>, job_kit::InputError>>()?;
    let [kl_abs, frozen_ln, norm, logit_var, null_share] = optional.map(|name| {
        there
            .contains(&name)
            .then(|| rows.opt_f64(name))
            .transpose()
    });
    let (kl_abs, frozen_ln) = (kl_abs?, frozen_ln?);
    let (norm, logit_var, null_share) = (norm?, logit_var?, null_share?);
    let at = |values: &Option<Vec<Option<f64>>>, i: usize| values.as_ref()?[i];
    let mut effects: BTreeMap<i64, Vec<NeuronEffects>> = BTreeMap::new();
    for i in 0..rows.rows() {
        let neuron = NeuronId {
            layer: usize::try_from(integers[1][i])?,
            neuron: usize::try_from(integers[2][i])?,
        };
        effects
            .entry(integers[0][i])
            .or_default()
            .push(NeuronEffects {
                neuron,
                rows: usize::try_from(integers[3][i])?,
                kl_change: numbers[0][i],
                loss_change: numbers[1][i],
                frozen_loss_change: numbers[2][i],
                total_effect: numbers[3][i],
                direct_effect: numbers[4][i],
                activation: numbers[5][i],
                kl_abs_change: at(&kl_abs, i).unwrap_or(f64::NAN),
                // No ranking is by these.
                frozen_all_effect: None,
                rms_change: None,
                active_share: f64::NAN,
                active_loss: None,
                frozen_ln_effect: at(&frozen_ln, i),
                weights: Weights {
                    norm: at(&norm, i),
                    logit_var: at(&logit_var, i),
                    null_share: at(&null_share, i),
                },
            });
    }
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
