//! What a run measures: the model, the null space, the changes and the plans for them.

use std::collections::{BTreeSet, HashSet};

use anyhow::{Context, bail};
use job_inputs::{Loaded, MeasuredOn, NeuronsConfig, Vocabulary, mebibytes, note_overlap};
use job_kit::{Progress, RunRecord};
use neuron_ablate::{
    NeuronId, NullSpace, RareTokens, SampleStates, ScalingCost, ScalingEffects, ScalingPlan,
    measure_scaling, scaling_cost,
};
use neuron_select::MatchOn;
use surprisal_metrics::MIN_GROUPS;

use crate::{
    JOB, VERSION,
    arms::{Arms, Setting, layers_of},
    config::ScaleConfig,
};

/// The part of the memory, one in so many, that states of the measured sequences may take.
const STATES_SHARE: usize = 16;

/// Begins the record of a run.
pub(crate) fn begin(config: &ScaleConfig, resolved: &serde_json::Value) -> RunRecord {
    let mut record = RunRecord::new(JOB, VERSION, resolved);
    record.seed = Some(config.seed);
    record.version("libtorch", neox_core::LIBTORCH_VERSION);
    record
}

/// What a run measures.
pub(crate) struct Prepared<'a> {
    /// The neurons to scale.
    pub(crate) neurons: &'a [NeuronId],
    pub(crate) loaded: &'a Loaded,
    /// Those of the measured sequences are kept: what controls are matched on and what is measured need one forward.
    states: SampleStates<'a>,
    pub(crate) vocabulary: Vocabulary,
    pub(crate) rare: RareTokens,
    pub(crate) space: NullSpace,
    pub(crate) arms: Arms,
    pub(crate) plan: ScalingPlan,
}

/// The factors, the neurons to scale, none if only rows are, and the model and its text.
pub(crate) struct Inputs {
    factors: Vec<f64>,
    neurons: Vec<NeuronId>,
    loaded: Loaded,
}

impl Inputs {
    /// Reads them.
    pub(crate) fn read(config: &ScaleConfig, record: &mut RunRecord) -> anyhow::Result<Self> {
        let factors = config.factors()?;
        // Another model drops the neurons of the default one, and leaves the group without any.
        let named = |of: &&NeuronsConfig| of.file.is_some() || of.list.is_some();
        let neurons = match config.neurons.as_ref().filter(named) {
            Some(neurons) => neurons.resolve(record)?,
            None => Vec::new(),
        };
        let revision = config.model.revision.as_deref();
        let loaded = Loaded::read(&config.model, revision, &config.corpus, record)?;
        Ok(Self {
            factors,
            neurons,
            loaded,
        })
    }
}

impl<'a> Prepared<'a> {
    /// Finds the null space and draws the controls.
    pub(crate) fn new(
        config: &ScaleConfig,
        inputs: &'a Inputs,
        record: &mut RunRecord,
    ) -> anyhow::Result<Self> {
        let Inputs {
            factors,
            neurons,
            loaded,
        } = inputs;
        let vocabulary = loaded.vocabulary(
            &config.frequency,
            config.band.as_ref(),
            config.scaling.band_reading,
            record,
        )?;
        let (model, sample) = (&loaded.model, &loaded.sample);
        let rare = config.scaling.rare(&vocabulary)?;
        let q = vocabulary.frequencies.q();
        let space = NullSpace::find(model, q, vocabulary.n_tokens, config.scaling.null_space())?;
        let common: HashSet<&i64> = space.common().iter().collect();
        let overlap = rare.ids().iter().filter(|id| common.contains(id)).count();
        if overlap > 0 {
            record.warn(format!("{overlap} tokens count both as rare and as common, and are filed as rare: lower `scaling.top_k_percent`, or the upper bound of the band"));
        }

        let sequences = config.evaluation.sequences.resolve(sample, config.seed);
        record.note("sequences_measured", sequences.clone());
        if let Some(from) = &config.neurons {
            let measured = MeasuredOn::Sequences(&config.corpus, sample, &sequences);
            let instead = "measure other text (`corpus.rows`, `evaluation.sequences`)";
            let file = (from.file.as_deref(), "neurons.file");
            note_overlap(file, Some(measured), instead, record)?;
        }
        let memory = mebibytes("evaluation.memory_mib", config.evaluation.memory_mib)?;
        let last = model.config().num_hidden_layers - 1;
        let layers: BTreeSet<usize> = layers_of(neurons).into_iter().chain([last]).collect();
        let layers: Vec<usize> = layers.into_iter().collect();
        let states = SampleStates::new(model, sample, config.evaluation.batch);
        let states = states.keeping(&sequences, &layers, memory / STATES_SHARE);
        let controls = config.controls();
        let random = (0..controls.draws).map(|draw| space.random(config.seed, draw as u64));
        let setting = Setting {
            model,
            states: &states,
            space: &space,
            controls: &controls,
            control_factors: &config.control_factors(factors),
            random: &random.collect::<Result<Vec<_>, _>>()?,
            sequences: &sequences,
            seed: config.seed,
        };
        let mut arms = Arms::default();
        scale_rows(config, &setting, &rare, &mut arms, record)?;
        match neurons.is_empty() {
            true if arms.arms.is_empty() => bail!(
                "nothing to scale: name a law in `scaling.laws`, or neurons in `neurons.file` or `neurons.list`"
            ),
            true => record.warn("no neurons are named, so rows of the unembedding alone are scaled (`neurons.file`, `neurons.list`)"),
            false => scale_neurons(&setting, neurons, &mut arms, record)?,
        }
        let clusters = sample.n_clusters(&sequences);
        record.count("clusters", clusters as u64);
        if clusters < MIN_GROUPS {
            record.warn(format!("the measured sequences are of {clusters} documents, so there are no intervals: they need {MIN_GROUPS} at least (`evaluation.sequences`)"));
        }

        let (rare_ids, common_ids) = (rare.ids().to_vec(), space.common().to_vec());
        let plan = ScalingPlan::new(sequences, factors.clone(), rare_ids, common_ids)
            .with_memory_budget(memory);
        Ok(Self {
            neurons,
            loaded,
            states,
            vocabulary,
            rare,
            space,
            arms,
            plan,
        })
    }

    /// What measuring costs.
    pub(crate) fn cost(&self) -> anyhow::Result<ScalingCost> {
        let (model, sample) = (&self.loaded.model, &self.loaded.sample);
        Ok(scaling_cost(model, sample, &self.arms.changes, &self.plan)?)
    }

    /// Measures all arms; `[arm]` are the places of changes.
    pub(crate) fn measure(&self, progress: &dyn Fn(usize)) -> anyhow::Result<ScalingEffects> {
        let changes = &self.arms.changes;
        Ok(measure_scaling(
            &self.states,
            changes,
            &self.plan,
            progress,
        )?)
    }
}

/// Rows of the unembedding under each law.
fn scale_rows(
    config: &ScaleConfig,
    setting: &Setting<'_>,
    rare: &RareTokens,
    arms: &mut Arms,
    record: &mut RunRecord,
) -> anyhow::Result<()> {
    let (laws, epsilon) = (&config.scaling.laws, config.scaling.epsilon);
    arms.add_rows(setting, rare, laws, epsilon)
        .context("failed to scale rare tokens (`scaling.laws`)")?;
    for law in laws {
        let strengths = rare.strengths(*law, epsilon)?;
        let strongest = strengths.into_iter().fold(0.0, f64::max);
        if strongest > 1.0 + 1e-4 {
            record.warn(format!("the {} law scales some tokens {strongest:.2} times as strongly as the base factor says, because `scaling.epsilon` is not small beside the lowest frequency", law.name()));
        }
    }
    Ok(())
}

/// The neurons, and controls of them.
fn scale_neurons(
    setting: &Setting<'_>,
    neurons: &[NeuronId],
    arms: &mut Arms,
    record: &mut RunRecord,
) -> anyhow::Result<()> {
    let read = match setting.controls.match_on {
        MatchOn::Intervention => setting.sequences.len(),
        MatchOn::ActivationAndNorm => setting.states.sample().sequences().len(),
    };
    let reading = Progress::new("activations", read as u64, "sequences");
    arms.add_neurons(setting, neurons, &|more| reading.inc(more as u64))?;
    record.timing("activations", reading.finish());
    let unmatched = &arms.drawn.unmatched;
    if !unmatched.is_empty() {
        let names: Vec<String> = unmatched.iter().map(ToString::to_string).collect();
        record.warn(format!(
            "{} of {} neurons have no neuron alike within `controls.caliper` = {} standard deviations and are left out where the others are held against matched controls: {}",
            names.len(),
            neurons.len(),
            setting.controls.caliper,
            names.join(", ")
        ));
    }
    Ok(())
}
