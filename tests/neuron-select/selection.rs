//! Selections of the Python package of Liu et al. (2025), from its own table of ablations.

use std::{
    collections::{HashMap, HashSet},
    error::Error,
    fs::File,
    io::BufReader,
    path::PathBuf,
};

use arrow::{
    array::{AsArray, RecordBatch},
    datatypes::{Float32Type, Int32Type},
};
use neuron_select::{
    Candidate, Comparison, ControlKind, ControlSet, Criteria, Curve, Effect, Heuristic, NeuronId,
    Ranked, Ranking, Row, RowFilter, Standing, Stratum, Tally, balance, bootstrap_curve,
    draw_controls, draw_matched, paired,
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::Deserialize;
use surprisal_metrics::{Bootstrap, Group};

const LAYER: usize = 3;

/// Made by the package from `ablation-longtail.parquet`; its key says `freq=..,by_mediation=..,heuristic=..,effect=..`.
#[derive(Deserialize)]
struct Golden {
    top_neurons: Vec<String>,
    #[serde(flatten)]
    columns: HashMap<String, serde_json::Value>,
}

#[test]
fn all_24_combinations_agree_with_the_python_package() -> Result<(), Box<dyn Error>> {
    let golden: HashMap<String, Golden> =
        serde_json::from_reader(open("golden/tiny-neox/selection.json")?)?;
    assert_eq!(golden.len(), 24);
    let tally = read_tally()?;
    for (case, expected) in &golden {
        let options: HashMap<&str, &str> = case
            .split(',')
            .filter_map(|part| part.split_once('='))
            .collect();
        let rows = match options["freq"] {
            "longtail" => RowFilter::LongTail,
            "common" => RowFilter::Common,
            _ => RowFilter::None,
        };
        let criteria = Criteria {
            heuristic: if options["heuristic"] == "KL" {
                Heuristic::Kl
            } else {
                Heuristic::Prob
            },
            effect: if options["effect"] == "suppress" {
                Effect::Suppress
            } else {
                Effect::Boost
            },
            by_mediation: options["by_mediation"] == "True",
            effect_floor: 0.0,
        };
        let ranking = Ranking::new(tally.grouped(rows)?.effects(), &criteria);
        let top = ranking.top(Some(10));
        let names: Vec<String> = top.iter().map(|n| n.effects.neuron.to_string()).collect();
        assert_eq!(names, expected.top_neurons, "{case}");
        let mut compared = 0;
        for (column, values) in &expected.columns {
            let value: fn(&Ranked) -> f64 = match column.as_str() {
                "med_effect" => |n| n.mediated_share.unwrap_or(f64::NAN),
                "kl_diff" => |n| n.effects.kl_change,
                "delta_loss_post" => |n| n.effects.loss_change,
                "delta_loss_post_frozen" => |n| n.effects.frozen_loss_change,
                "abs_delta_loss_post_ablation" => |n| n.effects.total_effect,
                "step" => continue,
                other => return Err(format!("{case}: unexpected column `{other}`").into()),
            };
            let values: Vec<f64> = serde_json::from_value(values.clone())?;
            assert_eq!(values.len(), 10, "{case}");
            for (ranked, expected) in top.iter().zip(values) {
                let off = (value(ranked) - expected).abs();
                assert!(
                    off <= 1e-5,
                    "{case}: {column} of {} is off by {off:.1e}",
                    ranked.effects.neuron
                );
                compared += 1;
            }
        }
        assert!(compared >= 30, "{case}: only {compared} values compared");
    }
    Ok(())
}

#[test]
fn a_comparison_says_why_a_neuron_left() -> Result<(), Box<dyn Error>> {
    let tally = read_tally()?;
    let criteria = Criteria {
        heuristic: Heuristic::Prob,
        effect: Effect::Boost,
        by_mediation: false,
        effect_floor: 1e-6,
    };
    let all = Ranking::new(tally.grouped(RowFilter::None)?.effects(), &criteria);
    let tail = Ranking::new(tally.grouped(RowFilter::LongTail)?.effects(), &criteria);
    let comparison = Comparison::new((&all, Some(10)), (&tail, Some(10)), 0.9)?;
    // Golden: 3.240 is second among all rows, but among long-tail rows its removal lowers the loss.
    let left = comparison
        .differences
        .iter()
        .find(|d| {
            d.neuron
                == NeuronId {
                    layer: LAYER,
                    neuron: 240,
                }
        })
        .ok_or("3.240 is missing")?;
    assert!(left.in_first);
    assert_eq!(left.first, Some(Standing::Ranked(2)));
    assert!(matches!(left.second, Some(Standing::OtherSign(change)) if change < 0.0));
    assert!(left.reason().contains("sign"), "{}", left.reason());
    assert_eq!(
        comparison.shared.len() * 2 + comparison.differences.len(),
        20
    );
    let same = Comparison::new((&all, Some(10)), (&all, Some(10)), 0.9)?;
    assert_eq!((same.jaccard, same.differences.len()), (Some(1.0), 0));
    Ok(())
}

#[test]
fn the_curve_has_intervals_around_its_values() -> Result<(), Box<dyn Error>> {
    let grouped = read_tally()?.grouped(RowFilter::LongTail)?;
    let influences: Vec<f64> = grouped.effects().iter().map(|e| e.total_effect).collect();
    let curve = Curve::fit(&influences)?;
    assert!(
        curve
            .fits
            .windows(2)
            .all(|fits| fits[0].r_squared <= fits[1].r_squared + 1e-9)
    );
    let bootstrap = Bootstrap {
        resamples: 50,
        ..Bootstrap::with_seed(3)
    };
    // Three sequences are too few to be resampled.
    assert_eq!(bootstrap_curve(&grouped, &curve, &bootstrap)?, None);
    let mut tally = Tally::default();
    for neuron in 0..200usize {
        for sequence in 0..10i64 {
            let turn = 1.0 + ((neuron as i64 * 7 + sequence * 3) % 9) as f64 / 20.0;
            tally.add(&Row {
                neuron: NeuronId {
                    layer: LAYER,
                    neuron,
                },
                sequence,
                stratum: Stratum::LongTail,
                loss_change: turn / (neuron + 1) as f64,
                frozen_loss_change: 0.0,
                frozen_ln_loss_change: None,
                frozen_all_loss_change: None,
                kl_change: 0.0,
                activation: 0.0,
                activation_change: None,
                clean_loss: 5.0,
            })?;
        }
    }
    let grouped = tally.grouped(RowFilter::LongTail)?;
    let influences: Vec<f64> = grouped.effects().iter().map(|e| e.total_effect).collect();
    let curve = Curve::fit(&influences)?;
    let intervals =
        bootstrap_curve(&grouped, &curve, &bootstrap)?.ok_or("ten sequences can be resampled")?;
    assert_eq!(intervals.breaks.len(), curve.best_fit().breaks.len());
    assert!(intervals.exponent[0] <= intervals.exponent[1]);
    assert_eq!(
        Some(intervals),
        bootstrap_curve(&grouped, &curve, &bootstrap)?
    );
    Ok(())
}

/// The table, filed by the frequency of the input token as the package does.
fn read_tally() -> Result<Tally, Box<dyn Error>> {
    let inputs: serde_json::Value =
        serde_json::from_reader(open("golden/tiny-neox/ablation-inputs.json")?)?;
    let bound = |name: &str| inputs["tail"][name].as_f64().ok_or(format!("no `{name}`"));
    let (min, max) = (bound("min_frequency")?, bound("max_frequency")?);
    let counts: Vec<i64> =
        npyz::NpyFile::new(open("../examples/data/tiny-neox/train-unigrams.npy")?)?.into_vec()?;
    let total = counts.iter().map(|c| c + 1).sum::<i64>() as f64;
    let mut tally = Tally::default();
    let file = File::open(path("golden/tiny-neox/ablation-longtail.parquet"))?;
    for batch in ParquetRecordBatchReaderBuilder::try_new(file)?.build()? {
        let batch = batch?;
        let (neuron, sequence, tokens) = (
            ints(&batch, "neuron")?,
            ints(&batch, "batch")?,
            ints(&batch, "token_id")?,
        );
        let (loss, after) = (
            floats(&batch, "loss")?,
            floats(&batch, "loss_post_ablation")?,
        );
        let frozen = floats(&batch, "loss_post_ablation_with_frozen_unigram")?;
        let (kl, kl_after) = (
            floats(&batch, "kl_divergence_before")?,
            floats(&batch, "kl_divergence_after")?,
        );
        let activation = floats(&batch, "activation")?;
        for i in 0..batch.num_rows() {
            let q = (counts[tokens[i] as usize] + 1) as f64 / total;
            tally.add(&Row {
                neuron: NeuronId {
                    layer: LAYER,
                    neuron: neuron[i] as usize,
                },
                sequence: i64::from(sequence[i]),
                stratum: Stratum::of(q, min, max),
                loss_change: f64::from(after[i]) - f64::from(loss[i]),
                frozen_loss_change: f64::from(frozen[i]) - f64::from(loss[i]),
                frozen_ln_loss_change: None,
                frozen_all_loss_change: None,
                kl_change: f64::from(kl_after[i]) - f64::from(kl[i]),
                activation: f64::from(activation[i]),
                activation_change: None,
                clean_loss: 5.0,
            })?;
        }
    }
    assert_eq!(
        (tally.rows(), tally.n_neurons(), tally.n_sequences()),
        (94_720, 256, 3)
    );
    Ok(tally)
}

fn ints(batch: &RecordBatch, name: &str) -> Result<Vec<i32>, String> {
    let column = batch
        .column_by_name(name)
        .ok_or(format!("no column `{name}`"))?;
    Ok(column
        .as_primitive_opt::<Int32Type>()
        .ok_or(format!("`{name}` is not int32"))?
        .values()
        .to_vec())
}

fn floats(batch: &RecordBatch, name: &str) -> Result<Vec<f32>, String> {
    let column = batch
        .column_by_name(name)
        .ok_or(format!("no column `{name}`"))?;
    Ok(column
        .as_primitive_opt::<Float32Type>()
        .ok_or(format!("`{name}` is not float32"))?
        .values()
        .to_vec())
}

fn open(name: &str) -> Result<BufReader<File>, std::io::Error> {
    File::open(path(name)).map(BufReader::new)
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests")).join(name)
}

/// Neurons on a line, one step apart in one trait and alike in the other.
fn line(n: usize) -> Vec<Candidate> {
    let neurons = ids(&(0..n).collect::<Vec<_>>());
    let candidate = |neuron: NeuronId| Candidate {
        neuron,
        traits: [Some(neuron.neuron as f64), Some(1.0)],
    };
    neurons.into_iter().map(candidate).collect()
}

fn ids(neurons: &[usize]) -> Vec<NeuronId> {
    let id = |&neuron: &usize| NeuronId { layer: 3, neuron };
    neurons.iter().map(id).collect()
}

#[test]
fn no_control_is_beyond_the_caliper() -> Result<(), Box<dyn Error>> {
    // On a line with unit steps, 0.1 standard deviations are 2.9 steps.
    let selected = ids(&[3, 50, 51, 52, 53, 54]);
    let found = draw_matched(&selected, &line(100), 0.1, 50, 1)?;
    // All within two steps of 52 are selected themselves.
    assert_eq!(found.matched.len() + found.unmatched.len(), selected.len());
    assert_eq!(found.unmatched, ids(&[52]));
    assert_eq!(found.sets.len(), 50);
    for set in &found.sets {
        assert_eq!(set.neurons.len(), found.matched.len());
        let distinct: HashSet<_> = set.neurons.iter().collect();
        assert_eq!(distinct.len(), set.neurons.len(), "{set:?}");
        for (control, neuron) in set.neurons.iter().zip(&found.matched) {
            assert!(control.neuron.abs_diff(neuron.neuron) <= 2, "{set:?}");
        }
    }
    // Without a caliper they are farther away.
    let far = draw_controls(ControlKind::Matched, &selected, &line(100), 50, 1)?;
    let apart = |set: &ControlSet| {
        let pairs = set.neurons.iter().zip(&selected);
        pairs.map(|(c, n)| c.neuron.abs_diff(n.neuron)).max()
    };
    assert!(far.iter().any(|set| apart(set) > Some(2)));
    let nobody = draw_matched(&ids(&[50]), &line(100), 0.01, 3, 1)?;
    assert!(nobody.sets.is_empty() && nobody.unmatched == ids(&[50]));
    assert!(draw_matched(&selected, &line(100), 0.0, 1, 1).is_err());
    Ok(())
}

#[test]
fn balance_is_in_standard_deviations() -> Result<(), Box<dyn Error>> {
    let pool = line(101);
    let control = ControlSet {
        kind: ControlKind::Random,
        draw: 0,
        neurons: ids(&[10, 20]),
    };
    let [length, constant] = balance(&ids(&[40, 50]), &[control], &pool);
    // The standard deviation of 0, 1, ..., 100 is sqrt(850).
    let found = length.ok_or("it varies")?;
    assert_eq!((found.selected, found.controls), (45.0, 15.0));
    assert!((found.difference - 30.0 / 850f64.sqrt()).abs() < 1e-12);
    assert_eq!(constant, None);
    Ok(())
}

/// Documents differ far more from each other than checkpoints do: only within documents is it seen.
#[test]
fn checkpoints_are_compared_within_documents() -> Result<(), Box<dyn Error>> {
    let names: Vec<i64> = (0..12).collect();
    let of = |shift: f64| -> Vec<Group> {
        let value = |&i: &i64| (i * i % 7) as f64 + shift * (1.0 + 0.1 * (i % 3) as f64);
        names
            .iter()
            .map(|i| Group::of(&[value(i), value(i)]))
            .collect()
    };
    let (early, late) = (of(0.0), of(0.2));
    let bootstrap = Bootstrap::with_seed(42);
    let alone = |groups: &[Group]| bootstrap.mean(groups).map(|i| i.ok_or("twelve documents"));
    let (first, second) = (alone(&early)??, alone(&late)??);
    assert!(second.lower < first.upper, "{first:?}, {second:?}");
    let found = paired((&names, &early), (&names, &late));
    let change = alone(&found.groups)??;
    assert!(
        (change.estimate - 0.22).abs() < 1e-12 && change.lower > 0.19,
        "{change:?}"
    );
    assert_eq!(found.left_out, 0);

    // A document that one checkpoint lacks, and one that has more rows there, are no pairs.
    let mut more = late.clone();
    more[3].count += 1.0;
    more[4] = Group::default();
    let found = paired((&names, &early), (&names, &more));
    assert_eq!((found.groups.len(), found.left_out), (10, 2));
    Ok(())
}
