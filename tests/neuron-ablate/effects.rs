//! Results are asked for by variant and measure: what was not measured is an error, never another value.
#![cfg(test)]

use std::{collections::HashSet, error::Error, path::Path};

use neox_core::{LoadOptions, Model};
use neuron_ablate::{
    AblateError, Direction, KlDirection, Mean, Measure, NeuronEffects, Over, Plan, Sample, Sweep,
    TokenBand, TokenFrequencies, Variant, Variants,
};
use surprisal_metrics::Bootstrap;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Tokens of the golden tables, and two bands of the bundled model's vocabulary.
struct Setting {
    model: Model,
    sample: Sample,
    frequencies: TokenFrequencies,
    bands: Vec<TokenBand>,
}

impl Setting {
    fn new() -> Outcome<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let step = root.join("examples/data/tiny-neox/step4000");
        let model = Model::load(&step, &LoadOptions::default())?;
        let inputs = root.join("tests/golden/tiny-neox/ablation-inputs.json");
        let inputs: serde_json::Value = serde_json::from_slice(&std::fs::read(inputs)?)?;
        let tokens = serde_json::from_value(inputs["tokens"].clone())?;
        let d_vocab = usize::try_from(model.config().vocab_size)?;
        let weights: Vec<f64> = (1..=d_vocab).map(|rank| 1.0 / rank as f64).collect();
        let total: f64 = weights.iter().sum();
        let ids: Vec<u32> = (1000..3000).collect();
        Ok(Self {
            sample: Sample::new(tokens, &[0], d_vocab)?,
            frequencies: TokenFrequencies::new(weights.iter().map(|w| w / total).collect())?,
            bands: vec![
                TokenBand::new("band", &ids, d_vocab)?,
                TokenBand::new("rarer", &ids[1000..], d_vocab)?,
            ],
            model,
        })
    }

    fn sweep(&self, variants: Variants) -> Outcome<Sweep<'_>> {
        let plan = Plan::new(vec![193, 105], vec![0, 4, 9])
            .with_variants(variants)
            .with_batch(4)
            .with_memory_budget(64 << 20);
        let (sample, bands) = (&self.sample, self.bands.clone());
        Ok(Sweep::new(
            &self.model,
            sample,
            &self.frequencies,
            bands,
            plan,
        )?)
    }
}

fn neurons(sweep: &Sweep<'_>) -> Outcome<Vec<NeuronEffects>> {
    Ok(sweep.run()?.neurons)
}

#[track_caller]
fn not_measured<T: std::fmt::Debug>(result: Result<T, AblateError>, named: &str) {
    match result {
        Err(error @ AblateError::NotMeasured { .. }) => {
            assert!(error.to_string().contains(named), "no `{named}`: {error}");
        }
        other => panic!("expected an error that names {named}, found {other:?}"),
    }
}

/// The means of a block's rows are those of the table, whatever variant and measure they are of; no two are the same.
#[test]
fn every_key_has_its_own_value() -> Outcome<()> {
    let setting = Setting::new()?;
    let sweep = setting.sweep(Variants::default())?;
    let keys = || {
        let of_variant = |&variant| sweep.measures().iter().map(move |&m| (variant, m));
        sweep.variants().iter().flat_map(of_variant)
    };
    let mut sums = vec![[0.0; 2]; keys().count()];
    let mut rows = 0;
    let effects = sweep.run_with(
        &mut |block| {
            let n_rows = block.rows.len();
            rows += n_rows;
            let mut all = vec![Vec::new(); sums.len()];
            for ((key, sums), all) in keys().zip(&mut sums).zip(&mut all) {
                let changes: Vec<f64> = block.change(key.0, key.1)?.collect();
                assert_eq!(changes.len(), 2 * n_rows);
                for (sum, of_neuron) in sums.iter_mut().zip(changes.chunks(n_rows)) {
                    *sum += of_neuron.iter().sum::<f64>();
                }
                let clean: Vec<f64> = block.clean(key.1)?.collect();
                let ablated: Vec<f64> = block.ablated(key.0, key.1)?.collect();
                assert_eq!(changes[n_rows + 1], ablated[n_rows + 1] - clean[1]);
                *all = changes;
            }
            let in_order = (0..2 * n_rows).flat_map(|pair| all.iter().map(move |key| key[pair]));
            assert!(block.changes().eq(in_order));
            Ok(())
        },
        &|_| (),
    )?;
    let mut seen = HashSet::new();
    for (place, neuron) in effects.neurons.iter().enumerate() {
        for ((variant, measure), sums) in keys().zip(&sums) {
            let found = neuron.effects.change(variant, measure)?;
            assert!((found.mean - sums[place] / rows as f64).abs() < 1e-12);
            // A frozen norm or projection that moves the loss as another does would be found by chance alone.
            assert!(
                seen.insert(found.mean.to_bits()),
                "{variant:?}, {measure:?}"
            );
        }
    }
    let names = |sweep: &Sweep<'_>| -> Result<Vec<String>, AblateError> {
        let variants = sweep.variants().iter().map(|&v| sweep.variant_name(v));
        let measures = sweep.measures().iter().map(|&m| sweep.measure_name(m));
        variants.chain(measures).collect()
    };
    let expected = [
        "total",
        "frozen_ln",
        "frozen_all",
        "frozen_band",
        "frozen_rarer",
        "loss",
        "entropy",
        "kl_model_freq",
        "kl_freq_model",
        "kl_model_freq_band",
        "kl_freq_model_band",
        "kl_model_freq_rarer",
        "kl_freq_model_rarer",
    ];
    assert_eq!(names(&sweep)?, expected);
    Ok(())
}

/// With bare numbers the fifth measure of the total effect was the first of the next variant.
#[test]
fn what_was_not_measured_is_an_error() -> Outcome<()> {
    let setting = Setting::new()?;
    let some = Variants::default().with_frozen_ln(false);
    let sweep = setting.sweep(some)?;
    let of_neuron = &neurons(&sweep)?[0].effects;
    let third = Measure::BandKl(2, KlDirection::ModelFreq);
    let (total, loss) = (Variant::Total, Measure::Loss);
    let resamples = Bootstrap::default().resample(of_neuron.n_clusters())?;

    not_measured(of_neuron.change(total, third), "BandKl(2, ModelFreq)");
    not_measured(of_neuron.change(Variant::FrozenLn, loss), "FrozenLn");
    not_measured(
        of_neuron.change(Variant::FrozenBand(2), loss),
        "FrozenBand(2)",
    );
    not_measured(of_neuron.band_loss_change(Variant::FrozenLn, 0), "FrozenLn");
    let groups = |measure, over| of_neuron.groups(total, measure, Mean::Signed, over);
    not_measured(groups(third, Over::All), "BandKl(2, ModelFreq)");
    // Over the rows in the band there is the loss alone; whatever was asked for used to be it.
    not_measured(groups(Measure::Entropy, Over::Band(0)), "Entropy");
    assert!(groups(loss, Over::Band(0))? != groups(loss, Over::All)?);
    let share = of_neuron.mediated_share_interval(Variant::FrozenLn, Over::All, 0.0, &resamples);
    not_measured(share, "FrozenLn");
    not_measured(sweep.variant_name(Variant::FrozenBand(2)), "band 2");
    not_measured(sweep.measure_name(third), "band 2");
    let mut asked = 0;
    sweep.run_with(
        &mut |block| {
            not_measured(block.clean(third).map(Iterator::count), "BandKl");
            let after = block.ablated(Variant::FrozenLn, loss);
            not_measured(after.map(Iterator::count), "FrozenLn");
            asked += 1;
            Ok(())
        },
        &|_| (),
    )?;
    assert!(asked > 0);
    Ok(())
}

/// Every band has means over its own rows, those of the table; a band that the sweep does not have is an error.
#[test]
fn every_band_has_the_loss_of_its_own_targets() -> Outcome<()> {
    let setting = Setting::new()?;
    let sweep = setting.sweep(Variants::default())?;
    let (total, loss) = (Variant::Total, Measure::Loss);
    // Of the first neuron: rows, sums of changes and of absolute changes, by band.
    let mut found = [[0.0; 3]; 2];
    let effects = sweep.run_with(
        &mut |block| {
            for (r, change) in block
                .change(total, loss)?
                .take(block.rows.len())
                .enumerate()
            {
                let target = usize::try_from(block.rows[r].target)?;
                assert_eq!(block.in_band(r), setting.bands[0].mask()[target]);
                for (band, found) in setting.bands.iter().zip(&mut found) {
                    if band.mask()[target] {
                        *found = [found[0] + 1.0, found[1] + change, found[2] + change.abs()];
                    }
                }
            }
            Ok(())
        },
        &|_| (),
    )?;
    let of_neuron = &effects.neurons[0].effects;
    assert!(found[1][0] > 0.0 && found[1][0] < found[0][0], "{found:?}");
    for (band, [rows, sum, sum_abs]) in found.into_iter().enumerate() {
        assert_eq!(of_neuron.band_rows(band) as f64, rows);
        let change = of_neuron.band_loss_change(total, band)?.ok_or("no rows")?;
        assert!((change.mean - sum / rows).abs() < 1e-12, "{change:?}");
        assert!((change.mean_abs - sum_abs / rows).abs() < 1e-12);
        let groups = of_neuron.groups(total, loss, Mean::Signed, Over::Band(band))?;
        assert_eq!(groups.iter().map(|group| group.count).sum::<f64>(), rows);
    }
    not_measured(of_neuron.band_loss_change(total, 2), "band 2");
    let groups = of_neuron.groups(total, loss, Mean::Signed, Over::Band(2));
    not_measured(groups, "band 2");
    Ok(())
}

/// A band that is too short was an index out of bounds.
#[test]
fn a_direction_of_another_vocabulary_is_an_error() -> Outcome<()> {
    let setting = Setting::new()?;
    for band in [&[true, false][..], &[]] {
        let direction = setting
            .frequencies
            .direction(Direction::BandRecentred, band);
        let refused = direction.err().map(|error| error.to_string());
        let refused = refused.ok_or("accepted")?;
        assert!(
            refused.contains(&format!("a vocabulary of {}", band.len())),
            "{refused}"
        );
    }
    Ok(())
}

/// Resamples of other clusters used to look like too few sequences.
#[test]
fn resamples_of_other_clusters_are_an_error() -> Outcome<()> {
    let setting = Setting::new()?;
    let sweep = setting.sweep(Variants::default())?;
    let of_neuron = &neurons(&sweep)?[0].effects;
    let interval = |clusters| {
        let resamples = Bootstrap::default().resample(clusters)?;
        let (variant, measure) = (Variant::Total, Measure::Loss);
        let over = Over::All;
        Ok::<_, Box<dyn Error>>((
            of_neuron.interval(variant, measure, Mean::Signed, over, &resamples),
            of_neuron.mediated_share_interval(Variant::FrozenAll, over, 0.0, &resamples),
        ))
    };
    let (mean, share) = interval(3)?;
    assert_eq!((mean?, share?), (None, None));
    let (mean, share) = interval(9)?;
    for error in [mean.unwrap_err(), share.unwrap_err()] {
        let source = error.source().ok_or("no cause")?.to_string();
        assert!(source.contains('9') && source.contains('3'), "{source}");
    }
    Ok(())
}
