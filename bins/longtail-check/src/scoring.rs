//! Word scoring, null space and scaling on the device, against the same on the CPU.

use std::fs;
use std::path::Path;

use anyhow::Context;
use neox_core::{Model, NoHooks, Text, next_token_ln_probs};
use neuron_ablate::{
    Intervention, NamedChange, NeuronId, NeuronSite, NullSpace, NullSpaceOptions, Operation,
    RareTokens, Sample, SampleStates, ScalingLaw, ScalingMeasure, ScalingPlan, Scorer, TargetGroup,
    WordRequest, WordScore, WordStart, WordVocabulary, measure_scaling,
};
use serde_json::json;
use surprisal_metrics::WordForm;
use tch::{Device, Kind, Tensor};

use crate::models::{D_VOCAB, EOS, PYTHIA_70M, largest_difference, texts, zipf};
use crate::report::Report;
use crate::{Setting, models};

/// f32 forwards through two layers, and sums over the vocabulary, in another order: nats.
const NATS: f64 = 2e-5;
/// How far logits spread, in nats: rounding grows with them.
const SPREAD: f64 = 2.0;
/// Of shares, which come from f64 decompositions of the same weights.
const SHARES: f64 = 1e-6;

/// All checks of this kind.
///
/// # Errors
/// If nothing can be printed.
pub(crate) fn check(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    let models = report.needed("the models", || {
        let folder = models::write(
            &setting.folder.join("scoring"),
            &PYTHIA_70M.with_layers(2),
            SPREAD,
        )?;
        let load = |device| models::load(&folder, device, Kind::Float);
        Ok((load(Device::Cpu)?, load(setting.device)?))
    })?;
    let Some((on_cpu, on_device)) = models else {
        return Ok(());
    };
    words(setting, report, &on_cpu, &on_device)?;
    scaling(setting, report, &on_cpu, &on_device)
}

/// Words of one and two tokens behind texts of different lengths, four words for each text.
pub(crate) fn requests(contexts: usize) -> anyhow::Result<Vec<WordRequest>> {
    let mut requests = Vec::new();
    for (number, text) in texts(contexts, 40)?.iter().enumerate() {
        let length = 6 + number * 7 % 28;
        for word in 0..4 {
            let pieces = &text[34 + word..][..1 + word % 2];
            requests.push(WordRequest::new(
                [&text[..length], pieces].concat(),
                length..length + pieces.len(),
                WordStart::Space,
            ));
        }
    }
    Ok(requests)
}

/// The unchanged model, and changes of some neurons of a layer.
pub(crate) fn interventions(layer: usize) -> anyhow::Result<Vec<Intervention>> {
    let neurons: Vec<NeuronId> = [3, 16, 42, 100, 200]
        .map(|neuron| NeuronId { layer, neuron })
        .into();
    let change =
        |name: &str, site, operation| Intervention::new(name, site, neurons.clone(), operation);
    Ok(vec![
        Intervention::base(),
        change(
            "zero",
            NeuronSite::Post,
            Operation::Set(vec![0.0; neurons.len()]),
        )?,
        change(
            "clip",
            NeuronSite::Post,
            Operation::Clip(vec![0.1; neurons.len()]),
        )?,
        change("layer-mean", NeuronSite::Pre, Operation::LayerMean)?,
        change("scaled", NeuronSite::Pre, Operation::Scale(2.0))?,
    ])
}

/// A tokenizer of as many tokens as the model has, half of which begin words; not for reading texts.
fn vocabulary(folder: &Path) -> anyhow::Result<WordVocabulary> {
    let token = |id: i64| match id {
        EOS => "<|endoftext|>".to_owned(),
        _ if id % 2 == 1 => format!("\u{120}w{id}"),
        _ => format!("w{id}"),
    };
    let vocab: serde_json::Map<_, _> = (0..D_VOCAB).map(|id| (token(id), id.into())).collect();
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [{
            "id": EOS, "content": token(EOS), "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true,
        }],
        "pre_tokenizer": bytes, "decoder": bytes,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": [],
        },
    });
    let path = folder.join("tokenizer.json");
    fs::write(&path, tokenizer.to_string())
        .with_context(|| format!("failed to write `{}`", path.display()))?;
    Ok(WordVocabulary::new(
        &Text::from_file(&path)?,
        EOS,
        D_VOCAB as usize,
    )?)
}

fn words(
    setting: &Setting,
    report: &mut Report,
    on_cpu: &Model,
    on_device: &Model,
) -> anyhow::Result<()> {
    let prepared = report.needed("words", || {
        let requests = requests(if setting.quick { 6 } else { 24 })?;
        Ok((requests, vocabulary(&setting.folder.join("scoring"))?))
    })?;
    let Some((requests, vocabulary)) = prepared else {
        return Ok(());
    };
    for layer in [1, 0] {
        let interventions = interventions(layer)?;
        let score = |model| Scorer::new(model, &vocabulary, 1024)?.score(&requests, &interventions);
        let what = format!("words: 5 interventions on layer {layer}, and the CPU");
        let mut ours: Option<Vec<Vec<WordScore>>> = None;
        report.check(&what, NATS, || {
            let scores = ours.insert(score(on_device)?);
            Ok(largest_difference(&nats(scores)?, &nats(&score(on_cpu)?)?))
        })?;
        let Some(scores) = ours.filter(|_| layer == 1) else {
            continue;
        };
        report.check(
            "words: the unchanged model, and plain forwards on the CPU",
            NATS,
            || {
                let mut largest: f64 = 0.0;
                for (request, scores) in requests.iter().zip(&scores) {
                    let tokens = Tensor::f_from_slice(&request.tokens)?.f_unsqueeze(0)?;
                    let logits = on_cpu.forward(&tokens, None, &mut NoHooks)?;
                    let ln_probs: Vec<f64> =
                        Vec::try_from(&next_token_ln_probs(&logits, &tokens)?.f_view(-1)?)?;
                    let of_word = &ln_probs[request.word.start - 1..request.word.end - 1];
                    largest = largest.max(largest_difference(&scores[0].ln_probs, of_word));
                }
                Ok(largest)
            },
        )?;
    }
    Ok(())
}

/// Surprisals in every form, and entropies.
fn nats(scores: &[Vec<WordScore>]) -> anyhow::Result<Vec<f64>> {
    let mut all = Vec::new();
    for score in scores.iter().flatten() {
        for form in [
            WordForm::Corrected,
            WordForm::CorrectedWithoutEos,
            WordForm::Uncorrected,
        ] {
            all.push(score.surprisal_nats(form)?);
        }
        all.extend(score.entropy_nats);
    }
    Ok(all)
}

fn scaling(
    setting: &Setting,
    report: &mut Report,
    on_cpu: &Model,
    on_device: &Model,
) -> anyhow::Result<()> {
    let frequencies = zipf();
    let d_vocab = frequencies.len();
    let last = on_cpu.config().num_hidden_layers - 1;
    let neurons = [3, 16, 42].map(|neuron| NeuronId {
        layer: last,
        neuron,
    });
    // Fewer than d_model: they leave a null space.
    let options = NullSpaceOptions::default().with_top_k_percent(0.5);
    let find = |model| NullSpace::find(model, &frequencies, d_vocab, options);
    let spaces = report.needed("the null space", || Ok((find(on_cpu)?, find(on_device)?)))?;
    let Some((of_cpu, of_device)) = spaces else {
        return Ok(());
    };
    report.check(
        "null space: shares of neurons and of frequency, and the CPU",
        SHARES,
        || {
            let shares = |space: &NullSpace, model| {
                let mut shares = space.neuron_shares(model, last)?;
                shares.push(space.unigram_share(&frequencies)?);
                shares.push(space.space().dimension() as f64);
                Ok::<_, anyhow::Error>(shares)
            };
            Ok(largest_difference(
                &shares(&of_device, on_device)?,
                &shares(&of_cpu, on_cpu)?,
            ))
        },
    )?;
    let sample = Sample::new(
        texts(2, if setting.quick { 16 } else { 64 })?,
        &[EOS],
        d_vocab,
    )?;
    report.check(
        "scaling of rare rows and of neurons, and the CPU",
        NATS,
        || {
            let measured = |space: &NullSpace, model| {
                let rare = RareTokens::below_quantile(&frequencies, d_vocab, 0.02)?;
                let strengths = rare.strengths(ScalingLaw::Constant, 1e-10)?;
                let changes = [
                    NamedChange::new("rows", space.row_change(rare.ids(), &strengths, None)?),
                    NamedChange::new("neurons", space.neuron_change(model, &neurons, None)?),
                ];
                let (rare, common) = (rare.ids().to_vec(), space.common().to_vec());
                let plan = ScalingPlan::new(vec![0, 1], vec![0.5, 2.0], rare, common)
                    .with_memory_budget(1 << 28);
                let states = SampleStates::new(model, &sample, 4);
                let effects = measure_scaling(&states, &changes, &plan, &|_| ())?;
                let mut means = Vec::new();
                for (change, factor) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    for measure in ScalingMeasure::ALL {
                        // Hits jump where two logits are nearly equal.
                        if !matches!(measure, ScalingMeasure::Top1 | ScalingMeasure::Top5) {
                            let groups =
                                effects.scaled(change, factor, TargetGroup::All, measure)?;
                            means.extend(groups.iter().map(|group| group.sum / group.count));
                        }
                    }
                }
                Ok::<_, anyhow::Error>(means)
            };
            Ok(largest_difference(
                &measured(&of_device, on_device)?,
                &measured(&of_cpu, on_cpu)?,
            ))
        },
    )
}
