//! What a run is made of, and how the scores of a checkpoint come about.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use job_inputs::{
    Ends, MeansConfig, MeansSample, MeasuredOn, Tokens, corpus_of_contexts, note_overlap,
    read_sample, step_in_words,
};
use job_kit::{Progress, RunRecord, sha256_file};
use neox_core::Architecture;
use neuron_ablate::{
    Intervention, MeanOf, Sample, SampleStates, Scorer, WordRequest, WordScore, WordVocabulary,
    activities,
};
use surprisal_metrics::{MetricError, WordForm};

use crate::checkpoints::{Checkpoints, Loaded};
use crate::config::{Reading, SurprisalConfig};
use crate::groups;
use crate::interventions::{Built, InterventionSpec, Sources, layers_of, needs_activities};
use crate::neurons::{self, NeuronSets};
use crate::store::{Keys, Row, Store};
use crate::words::{self, Words};
use crate::{JOB, VERSION};

/// Sequences per forward when mean activations are taken.
pub(crate) const MEAN_BATCH: usize = 8;

/// Sequences at most on which it is seen what neurons do, to match controls on it.
const ACTIVITY_SEQUENCES: usize = 64;
/// Bytes that what means leave of these may take, until controls are drawn.
const STATES_MEMORY: usize = 256 << 20;

/// Interventions by place in the list of names, and the pairs that lack just these.
pub(crate) type Missing = BTreeMap<Vec<usize>, Vec<u32>>;

/// What a run is made of, before anything is computed.
pub(crate) struct Setup<'c> {
    pub(crate) config: &'c SurprisalConfig,
    /// What is done, with the numbers of draws.
    pub(crate) list: Vec<InterventionSpec>,
    /// Names of all interventions.
    pub(crate) names: Vec<String>,
    pub(crate) checkpoints: Checkpoints,
    /// None is the step of a model without steps.
    pub(crate) steps: Vec<Option<u64>>,
    pub(crate) words: Words,
    /// `[pair]`
    pub(crate) requests: Vec<WordRequest>,
    vocabulary: WordVocabulary,
    sets: NeuronSets,
    pub(crate) sample: Option<Sample>,
    /// All that scores depend on, other than what keys hold.
    pub(crate) identity: serde_json::Value,
    neurons: BTreeMap<Option<u64>, String>,
    /// Whether neurons were selected on the text of the contexts, where that is known.
    pub(crate) selected_on_measured: Option<bool>,
    pub(crate) d_vocab: usize,
}

impl<'c> Setup<'c> {
    /// Reads all that a run needs but weights.
    pub(crate) fn read(
        config: &'c SurprisalConfig,
        record: &mut RunRecord,
    ) -> anyhow::Result<Self> {
        let list = config.interventions();
        let names = intervention_names(&list)?;
        let (checkpoints, steps) = Checkpoints::find(config, record)?;
        let first = checkpoints.folder(steps[0])?;
        let model = Architecture::read(&first.join("config.json"))?;
        let d_vocab = usize::try_from(model.vocab_size)?;

        let Some(tokens) = Tokens::read(&config.model, &first, &model, record)? else {
            bail!(
                "there is no tokenizer.json in `{}`, nor beside it: set `model.tokenizer`",
                first.display()
            );
        };
        let text = &tokens.text;
        let ends = Ends::find(&config.model, &model, Some(&tokens), record)?;
        let vocabulary = match config.reading {
            Reading::Corrected => WordVocabulary::new(text, ends.eos, d_vocab)
                .and_then(|words| words.with_boundary(text, config.boundary))
                .with_context(|| {
                    format!(
                        "tokenizer `{}`: set `model.word_start` to what such a piece begins with, or `reading=liu2025`, which needs none",
                        tokens.path.display()
                    )
                })?,
            Reading::Liu2025 => WordVocabulary::without_words(ends.eos, d_vocab),
        };
        let pairs = words::read(&config.words, record)?;
        let max = usize::try_from(model.max_position_embeddings)?;
        let requests = words::requests(&pairs, config, text, ends.bos, max, record)?;
        let (pairs, requests) = words::within_pieces(pairs, requests, &config.words, record)?;
        let words = groups::group(pairs, &requests, config, text, d_vocab, record)?;

        let sets = neurons::read(&config.neurons, record)?;
        let neurons = neurons_by_step(&list, &sets, &steps, record)?;
        let contexts = match config.words.bos_only {
            true => None,
            false => corpus_of_contexts(&config.words.path)?,
        };
        let documents = words.documents();
        let measured = contexts.as_ref();
        let selected_on_measured = note_overlap(
            (config.neurons.file.as_deref(), "neurons.file"),
            measured.map(|corpus| MeasuredOn::Text(corpus, documents.as_ref())),
            "take contexts from other text (`corpus.rows` of prepare-context)",
            record,
        )?;
        let needs_mean = list.iter().any(InterventionSpec::needs_mean);
        let (sample, corpus) = match needs_mean {
            true => {
                let (sample, hash) =
                    read_sample(&config.corpus, Some(&tokens), ends, &model, record)
                        .context("mean activations need a corpus")?;
                (Some(sample), Some(hash))
            }
            false => (None, None),
        };
        let identity = identity(config, &tokens, ends, corpus.as_deref())?;
        Ok(Self {
            config,
            list,
            names,
            checkpoints,
            steps,
            words,
            requests,
            vocabulary,
            sets,
            sample,
            identity,
            neurons,
            selected_on_measured,
            d_vocab,
        })
    }

    /// What the scores go by.
    pub(crate) fn keys(&self) -> Keys {
        let pairs = self.words.pairs.iter();
        Keys {
            pairs: pairs
                .map(|pair| (pair.word.clone(), pair.before()))
                .collect(),
            neurons: self.neurons.clone(),
        }
    }

    /// What a store lacks of each step.
    pub(crate) fn missing(
        &self,
        store: &Store,
        merges: bool,
    ) -> anyhow::Result<BTreeMap<Option<u64>, Missing>> {
        let mut missing = BTreeMap::new();
        for &step in &self.steps {
            if !merges && store.has_part(step)? {
                store.know(step, &self.checkpoints.address(step)?);
            }
            let by_step = what_is_missing(store, step, &self.list, self.words.pairs.len())?;
            if !by_step.is_empty() {
                missing.insert(step, by_step);
            }
        }
        Ok(missing)
    }

    /// The value that figure, summary and wide tables show, in the unit of the run.
    pub(crate) fn shown(&self, row: &Row) -> Option<f64> {
        let form = match self.config.form() {
            WordForm::Corrected => 0,
            WordForm::CorrectedWithoutEos => 1,
            WordForm::Uncorrected => 2,
            WordForm::FirstPiece => 3,
        };
        row.nats[form].map(|nats| self.config.unit.from_nats(nats))
    }

    /// Surprisal of a word of so many pieces, of those that [`Setup::shown`] counts, if each were guessed at random.
    pub(crate) fn chance(&self, pieces: usize) -> f64 {
        let pieces = match self.config.form() {
            WordForm::FirstPiece => 1,
            WordForm::Corrected | WordForm::CorrectedWithoutEos | WordForm::Uncorrected => pieces,
        };
        let per_piece = (self.d_vocab as f64).ln();
        self.config.unit.from_nats(pieces as f64 * per_piece)
    }
}

/// Scores that are missing.
pub(crate) fn scores_of<'m>(missing: impl IntoIterator<Item = &'m Missing>) -> usize {
    let all = missing.into_iter().flatten();
    all.map(|(interventions, pairs)| interventions.len() * pairs.len())
        .sum()
}

/// The record of a run, with what is known at its start.
pub(crate) fn begin(config: &SurprisalConfig, resolved: &serde_json::Value) -> RunRecord {
    let mut record = RunRecord::new(JOB, VERSION, resolved);
    record.seed = Some(config.seed);
    record
}

/// Names of all interventions, control draws included; no two alike.
pub(crate) fn intervention_names(list: &[InterventionSpec]) -> anyhow::Result<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    for spec in list {
        spec.check()
            .context("failed to read `interventions.list`")?;
        names.extend(spec.facts().into_iter().map(|(name, _)| name));
    }
    let mut sorted = names.clone();
    sorted.sort_unstable();
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        bail!("`interventions.list` names `{}` twice", pair[0]);
    }
    if names.is_empty() {
        bail!("`interventions.list` is empty");
    }
    Ok(names)
}

/// The neurons of each step as text; a step without any is found before anything is computed.
fn neurons_by_step(
    list: &[InterventionSpec],
    sets: &NeuronSets,
    steps: &[Option<u64>],
    record: &mut RunRecord,
) -> anyhow::Result<BTreeMap<Option<u64>, String>> {
    if !list.iter().any(|spec| spec.needs_neurons()) {
        return Ok(BTreeMap::new());
    }
    let mut by_step = BTreeMap::new();
    for &step in steps {
        let (neurons, other) = sets.at(step)?;
        if let Some(other) = other {
            record.warn(format!(
                "{} has no neurons of its own: those of step {other} are used",
                step_in_words(step)
            ));
        }
        let ids: Vec<String> = neurons.iter().map(ToString::to_string).collect();
        by_step.insert(step, ids.join(" "));
    }
    Ok(by_step)
}

/// Everything that a score depends on, other than the content of the checkpoint, intervention, neurons, word and context. What a run does not need
/// is null, and fits any other.
fn identity(
    config: &SurprisalConfig,
    tokens: &Tokens,
    ends: Ends,
    corpus: Option<&str>,
) -> anyhow::Result<serde_json::Value> {
    let words = &config.words;
    Ok(serde_json::json!({
        "model.dtype": &config.model.dtype,
        "tokenizer": sha256_file(&tokens.path)?.0,
        "bos and eos": [ends.bos, ends.eos],
        "model.word_start": &config.model.word_start,
        "words": [words.bos, words.bos_only],
        "reading": &config.reading,
        "boundary": &config.boundary,
        "interventions.site": &config.interventions.site,
        "interventions.mean_over": &config.interventions.mean_over,
        "corpus": corpus
            .map(|hash| serde_json::json!([hash, &config.corpus, config.means.sequences])),
        "controls": needs_activities(&config.interventions(), &config.controls)
            .then(|| serde_json::json!([config.controls.match_on, config.controls.caliper])),
        "seed": config.seed,
    }))
}

fn what_is_missing(
    store: &Store,
    step: Option<u64>,
    list: &[InterventionSpec],
    pairs: usize,
) -> anyhow::Result<Missing> {
    let done = store.done(step)?;
    let drawn = store.drawn(step)?;
    // Of each name what is done; nothing is to be done where no selected neuron has one alike.
    let mut of_names = Vec::new();
    for spec in list {
        let none_alike = drawn.get(&spec.name()).is_some_and(|d| d.sets.is_empty());
        let of_spec = spec.facts().into_iter();
        of_names.extend(of_spec.map(|(name, _)| (none_alike, done.get(&name))));
    }
    let mut missing = Missing::new();
    for pair in 0..u32::try_from(pairs)? {
        let lacks: Vec<usize> = (0..of_names.len())
            .filter(|&i| {
                let (none_alike, done) = of_names[i];
                !none_alike && !done.is_some_and(|pairs| pairs.contains(&pair))
            })
            .collect();
        if !lacks.is_empty() {
            missing.entry(lacks).or_default().push(pair);
        }
    }
    Ok(missing)
}

/// What scoring has taken.
#[derive(Debug, Default)]
pub(crate) struct Times {
    /// Mean activations.
    pub(crate) means: Duration,
    /// What neurons do, to match controls on it.
    pub(crate) activities: Duration,
    /// Surprisals without a value.
    pub(crate) undefined: u64,
}

impl Setup<'_> {
    /// Scores what is missing of one checkpoint into a store, chunk by chunk; `means` says over how much text means are taken.
    pub(crate) fn score(
        &self,
        means: &MeansConfig,
        loaded: &Loaded,
        (store, missing): (&Store, &Missing),
        progress: &Progress,
        (times, record): (&mut Times, &mut RunRecord),
    ) -> anyhow::Result<()> {
        store.know(loaded.step, &loaded.address);
        self.interventions(means, loaded, (times, record))
            .and_then(|built| {
                if !built.drawn.is_empty() {
                    store.keep_drawn(loaded.step, built.drawn)?;
                }
                self.score_under(
                    &built.interventions,
                    loaded,
                    (store, missing),
                    progress,
                    times,
                )
            })
            .with_context(|| format!("failed at {}", step_in_words(loaded.step)))
    }

    /// The interventions of a checkpoint, from its selected neurons, their means and what controls are drawn on.
    fn interventions(
        &self,
        means: &MeansConfig,
        loaded: &Loaded,
        (times, record): (&mut Times, &mut RunRecord),
    ) -> anyhow::Result<Built> {
        let (config, model) = (self.config, &loaded.model);
        let neurons = match self.list.iter().any(InterventionSpec::needs_neurons) {
            true => self.sets.at(loaded.step)?.0,
            false => &[],
        };
        let mut layers = layers_of(neurons);
        // Neurons that do not exist are refused below, by name.
        layers.retain(|&layer| layer < model.config().num_hidden_layers);
        let mut sources = Sources {
            model,
            site: config.interventions.site,
            neurons,
            means: None,
            activities: BTreeMap::new(),
            controls: &config.controls,
            seed: config.seed,
        };
        if let Some(sample) = &self.sample {
            let started = Instant::now();
            let by = (model, loaded.content.as_str());
            let means = MeansSample::new(means, by, sample, config.seed);
            let drawn = match needs_activities(&self.list, &config.controls) {
                true => sample.draw(ACTIVITY_SEQUENCES, config.seed),
                false => Vec::new(),
            };
            let states = SampleStates::new(model, sample, MEAN_BATCH);
            let states = states.keeping(&drawn, &layers, STATES_MEMORY);
            let (over, of) = (config.interventions.mean_over, layers.iter().copied());
            let (mut found, missing) = means.kept(of.map(MeanOf::Neurons), over, record)?;
            if !missing.is_empty() {
                means.add(&mut found, &missing, over, &states, record, &|_| ())?;
            }
            sources.means = Some(found);
            times.means += started.elapsed();
            if !drawn.is_empty() {
                let started = Instant::now();
                sources.activities = activities(&states, &drawn, &layers, &|_| ())?;
                times.activities += started.elapsed();
            }
        }
        sources.build(&self.list)
    }

    fn score_under(
        &self,
        interventions: &BTreeMap<String, Intervention>,
        loaded: &Loaded,
        (store, missing): (&Store, &Missing),
        progress: &Progress,
        times: &mut Times,
    ) -> anyhow::Result<()> {
        let config = self.config;
        let scorer = Scorer::new(&loaded.model, &self.vocabulary, config.batch_tokens)?;
        let scorer = match config.reading {
            Reading::Corrected => scorer,
            Reading::Liu2025 => scorer.without_boundaries(),
        };
        for (lacking, pairs) in missing {
            // Matched controls are there as far as selected neurons have some.
            let there = lacking.iter().map(|&i| &self.names[i]);
            let there = there.filter_map(|name| interventions.get_key_value(name));
            let (there, wanted): (Vec<&String>, Vec<Intervention>) =
                there.map(|(name, of)| (name, of.clone())).unzip();
            progress.inc(((lacking.len() - there.len()) * pairs.len()) as u64);
            if wanted.is_empty() {
                continue;
            }
            for chunk in pairs.chunks(config.output.chunk.max(1)) {
                let requests = chunk
                    .iter()
                    .map(|&pair| self.requests[pair as usize].clone());
                let requests: Vec<WordRequest> = requests.collect();
                let scores = scorer.score(&requests, &wanted)?;
                let mut rows = Vec::with_capacity(chunk.len() * wanted.len());
                for ((&pair, request), scores) in chunk.iter().zip(&requests).zip(scores) {
                    for (&name, score) in there.iter().zip(scores) {
                        let row = self.row(pair, request, name, &score, &mut times.undefined)?;
                        rows.push(row);
                    }
                }
                store.append(loaded.step, &rows)?;
                progress.inc(rows.len() as u64);
            }
        }
        Ok(())
    }

    fn row(
        &self,
        pair: u32,
        request: &WordRequest,
        intervention: &str,
        score: &WordScore,
        undefined: &mut u64,
    ) -> anyhow::Result<Row> {
        let mut form = |form: WordForm| match score.surprisal_nats(form) {
            Ok(nats) => Ok(Some(nats)),
            // A checkpoint that gives no mass at all to boundaries; counted, and null in the table.
            Err(MetricError::NoBoundaryMass { .. }) => {
                *undefined += 1;
                Ok(None)
            }
            Err(error) => Err(error),
        };
        let first_piece = form(WordForm::FirstPiece)?;
        let nats = match self.config.reading {
            Reading::Corrected => [
                form(WordForm::Corrected)?,
                form(WordForm::CorrectedWithoutEos)?,
                form(WordForm::Uncorrected)?,
                first_piece,
            ],
            // One token is all that this reading looks at.
            Reading::Liu2025 => [None, None, None, first_piece],
        };
        Ok(Row {
            pair,
            intervention: intervention.to_owned(),
            start: request.start.name().to_owned(),
            pieces: i32::try_from(request.word.len())?,
            entropy_nats: score.entropy_nats,
            nats,
        })
    }
}
