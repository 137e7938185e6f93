//! What scaled weights do to predictions on real text: gain on rare targets against cost on common ones.
//!
//! Of rows of `W_U` and of the last MLP's neurons every change and every factor is read off one forward per sequence. Scaled rows of
//! `W_U` move logits in proportion to `s - 1`; scaled output weights move the residual stream in proportion to it, so that only the scale
//! of the final norm is computed anew:
//!
//! ```text
//! rows of W_U       l' = l + (s - 1) D x^           x^ = output of the final LayerNorm, D = change per unit
//! output weights    l' = (g + (s - 1) u) / s' + b   u = sum_n a_n W_U (gamma * D_n,c)
//! ```
//!
//! Both are directions of the fused kernel (the crate `vocabulary-sums`), on the CPU whatever the device of the model: the first is 0
//! but on the rows that change, the second a sum of one vector for each neuron.
//!
//! Neurons of earlier layers, and all neurons behind a norm (OLMo 2), have no such form: at each factor but 1 the model runs on with their
//! output weights changed, and the change `delta` of the final residual stream is a direction of its own at each row, `u = W_U (gamma *
//! delta_c)`.

use std::{collections::HashMap, ops::Range};

use neox_core::{Model, Site};
use rayon::prelude::*;
use surprisal_metrics::Group;
use tch::{Device, Kind, TchError, Tensor};
use vocabulary_sums::{
    Base, Direction, Kernel, Moved, Pairs, RowVectors, Sums as CellSums, Vector, VocabLayout,
};

use crate::{
    AblateError, ForwardCost, NeuronId, Row, RowCounts, Sample, SampleStates,
    closed_form::{Projected, Unembedding},
    engine::blocks,
    error::distinct,
    product::product,
    readout::{NormScale, Readout, see},
    replaced::{self, Replaced, batches, copies, groups, texts_at_once},
    row_logits::RowLogits,
    scaling::{ScalingError, Target, WeightChange},
    states::{by_sequence, last_layer, positions, writes_directly},
    vectors::{Vectors, dot, on_host},
};

/// What is measured of each row, in nats but for masses and hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScalingMeasure {
    /// `-ln p(target)`.
    Loss,
    /// Probability of all rare tokens together.
    RareMass,
    /// 1 if no token is more probable than the target, else 0.
    Top1,
    /// 1 if fewer than five tokens are more probable than the target, else 0.
    Top5,
    /// Entropy of the prediction.
    Entropy,
    /// `KL(clean || scaled)`.
    KlCleanScaled,
    /// `KL(scaled || clean)`.
    KlScaledClean,
    /// Jensen-Shannon divergence between the two, at most `ln 2`.
    JensenShannon,
}

impl ScalingMeasure {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Loss,
        Self::RareMass,
        Self::Top1,
        Self::Top5,
        Self::Entropy,
        Self::KlCleanScaled,
        Self::KlScaledClean,
        Self::JensenShannon,
    ];

    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::RareMass => "rare_mass",
            Self::Top1 => "top1",
            Self::Top5 => "top5",
            Self::Entropy => "entropy",
            Self::KlCleanScaled => "kl_clean_scaled",
            Self::KlScaledClean => "kl_scaled_clean",
            Self::JensenShannon => "jensen_shannon",
        }
    }
}

/// Rows by their target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetGroup {
    /// Every row.
    All,
    /// The target is a rare token.
    Rare,
    /// The target is one of the common tokens whose span is spared.
    Common,
    /// Neither.
    Between,
}

impl TargetGroup {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::All, Self::Rare, Self::Common, Self::Between];

    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Rare => "rare",
            Self::Common => "common",
            Self::Between => "between",
        }
    }
}

/// A named change of weights.
#[derive(Debug)]
#[non_exhaustive]
pub struct NamedChange {
    /// The name in tables and errors.
    pub name: String,
    /// The change.
    pub change: WeightChange,
    /// Factors in the place of the plan's.
    pub factors: Option<Vec<f64>>,
}

impl NamedChange {
    /// Gives a change its name; it is measured at the factors of the plan.
    pub fn new(name: impl Into<String>, change: WeightChange) -> Self {
        Self {
            name: name.into(),
            change,
            factors: None,
        }
    }

    /// With [`factors`](Self::factors) of its own, as a control that is measured at one.
    #[must_use]
    pub fn with_factors(self, factors: Vec<f64>) -> Self {
        Self {
            factors: Some(factors),
            ..self
        }
    }
}

/// On which text, and how strongly.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ScalingPlan {
    /// Sequences of the sample whose rows are measured.
    pub sequences: Vec<usize>,
    /// Factors `s` of changes that have none of their own; 1 changes nothing.
    pub factors: Vec<f64>,
    /// Ids of the rare tokens.
    pub rare: Vec<i64>,
    /// Ids of the common tokens.
    pub common: Vec<i64>,
    /// Bytes that the vectors over the vocabulary may take, beside the weights.
    pub memory_budget: usize,
}

impl ScalingPlan {
    /// The rows of `sequences` at each of `factors`, with 1 GiB; rows are grouped by targets that are `rare`
    /// or `common`.
    pub fn new(sequences: Vec<usize>, factors: Vec<f64>, rare: Vec<i64>, common: Vec<i64>) -> Self {
        Self {
            sequences,
            factors,
            rare,
            common,
            memory_budget: 1 << 30,
        }
    }

    /// With another [`memory_budget`](Self::memory_budget).
    #[must_use]
    pub fn with_memory_budget(self, memory_budget: usize) -> Self {
        Self {
            memory_budget,
            ..self
        }
    }

    /// The factors of a change.
    pub fn factors_of<'f>(&'f self, change: &'f NamedChange) -> &'f [f64] {
        change.factors.as_deref().unwrap_or(&self.factors)
    }
}

/// (row, change) pairs that are measured at once: over a tile of the kernel their directions fit the second-level cache.
const PAIRS_PER_CALL: usize = 64;
/// Rows that are measured at once are a multiple of this: so many sums of the same vectors share the loads of these.
const ROWS_PER_CALL: usize = 4;
const MEASURES: usize = ScalingMeasure::ALL.len();
const GROUPS: usize = TargetGroup::ALL.len();

/// Sums over the rows of one sequence, by group.
#[derive(Debug, Clone, Default)]
struct Sums([GroupSums; GROUPS]);

#[derive(Debug, Clone, Copy, Default)]
struct GroupSums {
    rows: f64,
    values: [f64; MEASURES],
}

/// What was measured, kept per cluster so that intervals can be resampled.
#[derive(Debug)]
pub struct ScalingEffects {
    /// What the position filter kept and dropped.
    pub rows: RowCounts,
    /// `[cluster]`.
    clean: Vec<Sums>,
    /// `[change][factor][cluster]`.
    scaled: Vec<Vec<Vec<Sums>>>,
}

impl ScalingEffects {
    /// Number of rows in a group.
    pub fn rows_in(&self, group: TargetGroup) -> usize {
        self.clean
            .iter()
            .map(|sums| sums.0[group as usize].rows)
            .sum::<f64>() as usize
    }

    /// A measure of the unchanged model, by sequence; divergences are 0.
    pub fn clean(&self, group: TargetGroup, measure: ScalingMeasure) -> Vec<Group> {
        self.clean
            .iter()
            .map(|sums| sums.0[group as usize].of(measure))
            .collect()
    }

    /// A measure under a change and a factor, by the places of the change and of the factor among its own, by sequence.
    ///
    /// # Errors
    /// - [`ScalingError::NotInPlan`] for a place that the plan does not have
    pub fn scaled(
        &self,
        change: usize,
        factor: usize,
        group: TargetGroup,
        measure: ScalingMeasure,
    ) -> Result<Vec<Group>, ScalingError> {
        let of_change = self.scaled.get(change);
        let Some(sums) = of_change.and_then(|factors| factors.get(factor)) else {
            return Err(ScalingError::NotInPlan {
                change,
                factor,
                changes: self.scaled.len(),
                factors: of_change.map_or(0, Vec::len),
            });
        };
        let sums = sums.iter();
        Ok(sums
            .map(|sums| sums.0[group as usize].of(measure))
            .collect())
    }

    /// `scaled - clean`, by sequence.
    ///
    /// # Errors
    /// - as [`ScalingEffects::scaled`]
    pub fn difference(
        &self,
        change: usize,
        factor: usize,
        group: TargetGroup,
        measure: ScalingMeasure,
    ) -> Result<Vec<Group>, ScalingError> {
        let clean = self.clean(group, measure);
        let scaled = self.scaled(change, factor, group, measure)?;
        let both = scaled.iter().zip(clean);
        Ok(both
            .map(|(scaled, clean)| Group {
                sum: scaled.sum - clean.sum,
                count: clean.count,
            })
            .collect())
    }
}

impl GroupSums {
    fn of(&self, measure: ScalingMeasure) -> Group {
        Group {
            sum: self.values[measure as usize],
            count: self.rows,
        }
    }
}

impl Sums {
    fn add(&mut self, group: TargetGroup, values: &[f64; MEASURES]) {
        for group in [TargetGroup::All, group] {
            let sums = &mut self.0[group as usize];
            sums.rows += 1.0;
            sums.values
                .iter_mut()
                .zip(values)
                .for_each(|(sum, value)| *sum += value);
        }
    }
}

/// What [`measure_scaling`] costs, known beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ScalingCost {
    /// Rows, each measured under all changes that one forward is enough for.
    pub rows: usize,
    /// Running the model on for other changes, each at every factor but 1.
    pub run_on: ForwardCost,
}

impl ScalingCost {
    /// What [`measure_scaling`] tells of its progress, in all.
    pub fn ticks(&self) -> usize {
        self.rows + self.run_on.pairs
    }
}

/// What [`measure_scaling`] costs.
///
/// # Errors
/// - as [`Sample::rows`]
pub fn scaling_cost(
    model: &Model,
    sample: &Sample,
    changes: &[NamedChange],
    plan: &ScalingPlan,
) -> Result<ScalingCost, ScalingError> {
    let (rows, _) = sample.rows(&plan.sequences)?;
    let each = running_on(model, changes, plan);
    let layers: Vec<usize> = each.iter().map(|column| column.layer).collect();
    let copies = copies(model, sample, &plan.sequences, plan.memory_budget / 4);
    Ok(ScalingCost {
        rows: rows.len(),
        run_on: ForwardCost::new(model, &layers, (sample, &rows), copies),
    })
}

/// Measures every change at each of its factors; `progress` hears of rows done, each for all changes that one forward is enough for, and of
/// those for which the model runs on, each at one factor ([`scaling_cost`]).
///
/// # Errors
/// - [`AblateError::NoSuchSequence`], [`AblateError::Empty`] if the plan names no rows
/// - [`AblateError::Repeated`] for a sequence or factor that stands twice
/// - [`AblateError::NotFiniteClean`] if the model itself gives no numbers
/// - [`ScalingError::NotFinite`] if a factor is so large that logits overflow
/// - [`ScalingError::Torch`] if libtorch fails
pub fn measure_scaling(
    states: &SampleStates<'_>,
    changes: &[NamedChange],
    plan: &ScalingPlan,
    progress: &dyn Fn(usize),
) -> Result<ScalingEffects, ScalingError> {
    let (model, sample) = (states.model("scaling weights")?, states.sample());
    let d_vocab = model.config().vocab_size as usize;
    for change in changes {
        distinct("factor", plan.factors_of(change))?;
    }
    let (all_rows, rows) = sample.rows(&plan.sequences)?;
    let readout = Readout::of_model(model)?;
    let vocabulary = Vocabulary::new(d_vocab, readout.scale(), changes, plan)?;
    let unembedding = Unembedding::new(readout, vocabulary.layout.order(), Device::Cpu)?;
    let places = |closed: bool| {
        let each = changes.iter().enumerate();
        let places = each.filter(move |(_, named)| is_closed(model, named) == closed);
        places.map(|(place, _)| place).collect::<Vec<_>>()
    };
    let (closed, others) = (places(true), places(false));
    let named: Vec<&NamedChange> = closed.iter().map(|&place| &changes[place]).collect();
    let prepared = Changes::new(&vocabulary, &unembedding, &named, plan.memory_budget / 4)?;
    let sets = at_factors(&named, plan);
    let columns = sets.iter().flat_map(AtFactors::columns);
    let columns: Vec<_> = columns
        .map(|(change, factor)| (closed[change], factor))
        .collect();
    let empty = vec![Sums::default(); sample.n_clusters(&plan.sequences)];
    let of_change = |change| vec![empty.clone(); plan.factors_of(change).len()];
    let mut effects = ScalingEffects {
        rows,
        clean: empty.clone(),
        scaled: changes.iter().map(of_change).collect(),
    };
    let measuring = Measuring {
        vocabulary: &vocabulary,
        unembedding: &unembedding,
        sample,
        changes,
        plan,
        rows: &all_rows,
        clusters: sample.cluster_of(&plan.sequences),
    };
    // A factor of 1 changes nothing, and needs no forward.
    let unchanged = others.iter().filter_map(|&change| {
        let mut factors = plan.factors_of(&changes[change]).iter();
        Some((change, factors.position(|factor| *factor == 1.0)?))
    });
    let unchanged: Vec<_> = unchanged.collect();
    let rows_at_once = (plan.memory_budget / 2 / (4 * prepared.values_per_row(d_vocab))).max(1);
    let rows_of = by_sequence(&all_rows);
    let site = Site::MlpPost(last_layer(model));
    states.each(&plan.sequences, &[site], |sequence, states| {
        let of_sequence = rows_of.get(&sequence).copied().unwrap_or_default();
        for rows in of_sequence.chunks(rows_at_once) {
            let at = (&states.resid, states.at(site)?);
            let moved = MovedRows::new(&vocabulary, &unembedding, &prepared, at, rows)?;
            let block = Block::new(&vocabulary, &prepared, &moved, rows)?;
            for (row, measured) in rows.iter().zip(block.measure_all(&sets)) {
                let group = vocabulary.group(row);
                let Row { sequence, pos, .. } = *row;
                if !is_finite(&measured.clean) {
                    return Err(AblateError::NotFiniteClean { sequence, pos }.into());
                }
                effects.clean[measuring.clusters[&sequence]].add(group, &measured.clean);
                for (&column, values) in columns.iter().zip(&measured.scaled) {
                    measuring.add(&mut effects, column, row, values)?;
                }
                for &column in &unchanged {
                    measuring.add(&mut effects, column, row, &measured.clean)?;
                }
            }
            progress(rows.len());
        }
        Ok::<_, ScalingError>(())
    })?;
    measuring.run_on(model, &mut effects, progress)?;
    Ok(effects)
}

/// Changes that are measured at the same factors.
struct AtFactors<'p> {
    factors: &'p [f64],
    /// Their places.
    changes: Vec<usize>,
}

impl AtFactors<'_> {
    /// The place of each change, and of each factor among its own.
    fn columns(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let factors = 0..self.factors.len();
        let changes = self.changes.iter();
        changes.flat_map(move |&change| factors.clone().map(move |factor| (change, factor)))
    }
}

/// Changes by their factors, as many together as one call of the kernel takes.
fn at_factors<'p>(changes: &[&'p NamedChange], plan: &'p ScalingPlan) -> Vec<AtFactors<'p>> {
    let mut sets: Vec<AtFactors<'p>> = Vec::new();
    for (place, change) in changes.iter().enumerate() {
        let factors = plan.factors_of(change);
        if factors.is_empty() {
            continue;
        }
        let has_room = |set: &&mut AtFactors<'p>| {
            set.factors == factors && set.changes.len() < PAIRS_PER_CALL / ROWS_PER_CALL
        };
        match sets.iter_mut().find(has_room) {
            Some(set) => set.changes.push(place),
            None => sets.push(AtFactors {
                factors,
                changes: vec![place],
            }),
        }
    }
    sets
}

/// Whether one forward of the unchanged model is enough for a change at every factor.
fn is_closed(model: &Model, named: &NamedChange) -> bool {
    match named.change.target() {
        Target::UnembeddingRows(_) => true,
        Target::OutputColumns(neurons) => {
            let last = last_layer(model);
            writes_directly(model).is_ok() && neurons.iter().all(|n| n.layer == last)
        }
    }
}

/// A change for which the model runs on, at one factor.
struct RunningOn<'c> {
    /// Place of the change.
    change: usize,
    /// Place of the factor.
    factor: usize,
    neurons: &'c [NeuronId],
    /// The first layer that has one of the neurons.
    layer: usize,
}

/// Changes that one forward is not enough for, at each factor but 1; those of one layer stand together.
fn running_on<'c>(
    model: &Model,
    changes: &'c [NamedChange],
    plan: &ScalingPlan,
) -> Vec<RunningOn<'c>> {
    let mut each = Vec::new();
    for (change, named) in changes.iter().enumerate() {
        if let Target::OutputColumns(neurons) = named.change.target()
            && let Some(layer) = neurons.iter().map(|n| n.layer).min()
            && !is_closed(model, named)
        {
            let factors = plan.factors_of(named).iter().enumerate();
            let changing = factors.filter(|(_, f)| **f != 1.0);
            each.extend(changing.map(|(factor, _)| RunningOn {
                change,
                factor,
                neurons,
                layer,
            }));
        }
    }
    each.sort_by_key(|column| column.layer);
    each
}

/// What all rows are measured with.
struct Measuring<'m> {
    vocabulary: &'m Vocabulary,
    unembedding: &'m Unembedding,
    sample: &'m Sample,
    changes: &'m [NamedChange],
    plan: &'m ScalingPlan,
    rows: &'m [Row],
    /// By sequence.
    clusters: HashMap<usize, usize>,
}

impl Measuring<'_> {
    /// Adds what was measured of a row under a change and a factor.
    fn add(
        &self,
        effects: &mut ScalingEffects,
        (change, factor): (usize, usize),
        row: &Row,
        values: &[f64; MEASURES],
    ) -> Result<(), ScalingError> {
        let Row { sequence, pos, .. } = *row;
        if !is_finite(values) {
            return Err(ScalingError::NotFinite {
                change: self.changes[change].name.clone(),
                factor: self.plan.factors_of(&self.changes[change])[factor],
                sequence,
                pos,
            });
        }
        let cluster = self.clusters[&sequence];
        effects.scaled[change][factor][cluster].add(self.vocabulary.group(row), values);
        Ok(())
    }

    /// Measures the changes that one forward is not enough for.
    fn run_on(
        &self,
        model: &Model,
        effects: &mut ScalingEffects,
        progress: &dyn Fn(usize),
    ) -> Result<(), ScalingError> {
        let each = running_on(model, self.changes, self.plan);
        if each.is_empty() {
            return Ok(());
        }
        let replaced = each.iter().map(|column| {
            let named @ NamedChange { name, change, .. } = &self.changes[column.change];
            let factor = self.plan.factors_of(named)[column.factor];
            let added = change.per_unit()?.f_mul_scalar(factor - 1.0)?;
            let name = format!("the output weights of `{name}`");
            Ok(Replaced::output_weights(
                model,
                name,
                column.neurons,
                &added,
            )?)
        });
        let replaced: Vec<Replaced> = replaced.collect::<Result<_, ScalingError>>()?;
        let layers: Vec<usize> = each.iter().map(|column| column.layer).collect();
        let memory = self.plan.memory_budget / 4;
        let copies = copies(model, self.sample, &self.plan.sequences, memory);
        let batches = batches(&layers, copies);
        let sites = replaced::sites(&replaced);
        let d_vocab = self.vocabulary.place.len();
        for group in groups(self.sample, self.rows, texts_at_once(copies, each.len())) {
            let (captured, kept) = replaced::unchanged(model, self.sample, &group, &sites)?;
            for range in &batches {
                let in_batch = &replaced[range.clone()];
                let changes = replaced::changes(model, in_batch, &captured, &kept)?;
                let rows_at_once = memory / (4 * d_vocab * (2 + range.len()));
                for (text, rows) in group.iter().enumerate() {
                    let resid = captured.resid.f_get(text as i64)?;
                    let resid = resid.f_index_select(0, &kept[text])?;
                    for at in blocks(rows.len(), rows_at_once.max(1)) {
                        let part = |t: &Tensor| t.f_narrow(0, at.start as i64, at.len() as i64);
                        let (resid, changes) = (part(&resid)?, part(&changes[text])?);
                        let rows = &rows[at.clone()];
                        let moved =
                            MovedRows::along(self.vocabulary, self.unembedding, &resid, &changes)?;
                        let none = Changes::default();
                        let block = Block::new(self.vocabulary, &none, &moved, rows)?;
                        // The whole change, as at factor 2.
                        let whole = [AtFactors {
                            factors: &[2.0],
                            changes: (0..range.len()).collect(),
                        }];
                        for (row, measured) in rows.iter().zip(block.measure_all(&whole)) {
                            for (column, values) in each[range.clone()].iter().zip(&measured.scaled)
                            {
                                let place = (column.change, column.factor);
                                self.add(effects, place, row, values)?;
                            }
                        }
                        progress(rows.len() * range.len());
                    }
                }
            }
        }
        Ok(())
    }
}

fn is_finite(values: &[f64; MEASURES]) -> bool {
    values.iter().all(|value| value.is_finite())
}

/// Everything over the vocabulary that is the same for all rows and changes.
struct Vocabulary {
    layout: VocabLayout,
    kernel: Kernel,
    /// Place of each token id in the layout.
    place: Vec<usize>,
    /// Places of the tokens whose rows some change scales.
    scaled: Range<usize>,
    /// That of the final norm.
    scale: NormScale,
}

/// Bands of the layout. The first one comes last in it, in one run.
const SCALED: usize = 0;
const RARE: usize = 1;
const COMMON: usize = 2;

impl Vocabulary {
    fn new(
        d_vocab: usize,
        scale: NormScale,
        changes: &[NamedChange],
        plan: &ScalingPlan,
    ) -> Result<Self, ScalingError> {
        let mut masks = [SCALED, RARE, COMMON].map(|_| vec![false; d_vocab]);
        let mut mark = |band: usize, ids: &[i64]| {
            for &id in ids {
                let place = usize::try_from(id)
                    .ok()
                    .and_then(|id| masks[band].get_mut(id));
                *place.ok_or(ScalingError::Vocabulary {
                    frequencies: id as usize + 1,
                    d_vocab,
                })? = true;
            }
            Ok::<_, ScalingError>(())
        };
        mark(RARE, &plan.rare)?;
        mark(COMMON, &plan.common)?;
        for change in changes {
            if let Target::UnembeddingRows(ids) = change.change.target() {
                mark(SCALED, ids)?;
            }
        }
        // Nothing is asked about frequencies: all are alike.
        let log_q = vec![0.0; d_vocab];
        let layout = VocabLayout::new(&log_q, &masks.each_ref().map(Vec::as_slice));
        let of_scaled = layout.cells().iter().find(|cell| cell.in_band(SCALED));
        let mut place = vec![0; d_vocab];
        for (at, &id) in layout.order().iter().enumerate() {
            place[id as usize] = at;
        }
        Ok(Self {
            kernel: Kernel::for_sums(&layout, &log_q),
            scaled: of_scaled.map_or(d_vocab, |cell| cell.range().start)..d_vocab,
            scale,
            place,
            layout,
        })
    }

    fn target(&self, row: &Row) -> usize {
        self.place[row.target as usize]
    }

    fn group(&self, row: &Row) -> TargetGroup {
        let cell = &self.layout.cells()[self.layout.cell_at(self.target(row))];
        match (cell.in_band(RARE), cell.in_band(COMMON)) {
            (true, _) => TargetGroup::Rare,
            (_, true) => TargetGroup::Common,
            _ => TargetGroup::Between,
        }
    }
}

/// The changes that one forward is enough for, ready for rows.
#[derive(Default)]
struct Changes<'c> {
    changes: Vec<Change<'c>>,
    /// One vector over the vocabulary for each neuron of the narrow changes, one change after the other.
    of_neurons: Option<Vectors>,
}

enum Change<'c> {
    /// Changed rows of `W_U` as a product of two factors.
    Rows {
        /// At the places that some change scales, `[place, dimension]`, f32.
        coefficients: Tensor,
        /// `[dimension, d_model]`, f64; none for one dimension for each of d_model.
        basis: Option<&'c Tensor>,
    },
    Neurons {
        neurons: Tensor,
        /// `[neuron, d_model]`, f64.
        per_unit: Tensor,
        /// The first of the vectors, if there is one for each neuron; a change of many goes through `W_U` itself.
        first_vector: Option<usize>,
    },
}

impl<'c> Changes<'c> {
    /// Vectors of neurons take no more than `memory` bytes.
    fn new(
        vocabulary: &Vocabulary,
        unembedding: &Unembedding,
        named: &[&'c NamedChange],
        memory: usize,
    ) -> Result<Self, ScalingError> {
        let d_vocab = vocabulary.place.len();
        let (mut changes, mut of_neurons, mut n_vectors) = (Vec::new(), Vec::new(), 0);
        for &NamedChange { change, .. } in named {
            changes.push(match change.target() {
                Target::UnembeddingRows(ids) => {
                    let start = vocabulary.scaled.start;
                    let places = ids.iter().map(|&id| vocabulary.place[id as usize] - start);
                    let places: Vec<i64> = places.map(|place| place as i64).collect();
                    let (coefficients, basis) = change.factors();
                    let size = [vocabulary.scaled.len() as i64, coefficients.size()[1]];
                    let rows = Tensor::f_zeros(size, (Kind::Float, Device::Cpu))?;
                    let of_ids = coefficients.f_to_kind(Kind::Float)?;
                    Change::Rows {
                        coefficients: rows.f_index_copy(
                            0,
                            &Tensor::f_from_slice(&places)?,
                            &of_ids,
                        )?,
                        basis,
                    }
                }
                Target::OutputColumns(neurons) => {
                    let per_unit = change.per_unit()?;
                    let (n, d_model) = (neurons.len(), per_unit.size()[1] as usize);
                    // Each row adds the vectors up twice: that has to be less than a product with `W_U`.
                    let narrow = 4 * n <= d_model && (n_vectors + n) * d_vocab * 4 <= memory;
                    let first_vector = narrow.then_some(n_vectors);
                    if narrow {
                        of_neurons.push(per_unit.shallow_clone());
                        n_vectors += n;
                    }
                    let index: Vec<i64> = neurons.iter().map(|n| n.neuron as i64).collect();
                    Change::Neurons {
                        neurons: Tensor::f_from_slice(&index)?,
                        per_unit,
                        first_vector,
                    }
                }
            });
        }
        let of_neurons = match of_neurons.is_empty() {
            true => None,
            false => Some(unembedding.project(&Tensor::f_cat(&of_neurons, 0)?)?.logits),
        };
        Ok(Self {
            changes,
            of_neurons,
        })
    }

    /// f32 values over the vocabulary that a row takes in memory, at most.
    fn values_per_row(&self, d_vocab: usize) -> usize {
        let of_change = |change: &Change<'_>| match change {
            Change::Rows { coefficients, .. } => coefficients.size()[0] as usize,
            Change::Neurons { first_vector, .. } => match first_vector {
                Some(_) => 0,
                None => d_vocab,
            },
        };
        2 * d_vocab + self.changes.iter().map(of_change).sum::<usize>()
    }
}

/// Some rows of one sequence and how the changes move them, with what tensors hold.
struct MovedRows {
    logits: RowLogits,
    /// `|x_c|^2`, `[row]`.
    norm2: Vec<f64>,
    /// `[change]`
    moves: Vec<Move>,
    /// `u` of the changes that have vectors of their own, `[change]`, `[row, place]`.
    vectors: Vec<Option<Vectors>>,
}

/// How a change moves the logits of some rows at factor 2.
enum Move {
    /// By vectors over the places that some change scales.
    Rows,
    /// The residual stream moves, and with it the scale of the final norm.
    Residual {
        /// Sums of vectors, `[row]`; without them each row has a vector over the vocabulary.
        sums: Option<Vec<Vec<(usize, f64)>>>,
        /// `x_c . Delta_c`, `[row]`.
        cross: Vec<f64>,
        /// `|Delta_c|^2`, `[row]`.
        norm2: Vec<f64>,
    },
}

/// The same as plain numbers, which threads share.
struct Block<'b> {
    vocabulary: &'b Vocabulary,
    rows: &'b [Row],
    l: &'b [f32],
    g: &'b [f32],
    /// `|x_c|^2`, `[row]`.
    norm2: &'b [f64],
    /// Vectors of the narrow changes.
    of_neurons: Vec<Vector<'b>>,
    moves: Vec<(&'b Move, Option<&'b [f32]>)>,
}

/// What was measured of a row.
struct Measured {
    clean: [f64; MEASURES],
    /// As [`AtFactors::columns`] of each set.
    scaled: Vec<[f64; MEASURES]>,
}

impl MovedRows {
    fn new(
        vocabulary: &Vocabulary,
        unembedding: &Unembedding,
        changes: &Changes<'_>,
        (resid, activations): (&Tensor, &Tensor),
        rows: &[Row],
    ) -> Result<Self, ScalingError> {
        let at = positions(rows)?;
        let resid = unembedding.project(&resid.f_index_select(0, &at)?)?;
        let activations = activations.f_index_select(0, &at)?;
        let x_c = on_host(&resid.centred)?;
        let (mut moves, mut vectors) = (Vec::new(), Vec::new());
        for change in &changes.changes {
            let (neurons, per_unit, first_vector) = match change {
                Change::Rows {
                    coefficients,
                    basis,
                } => {
                    // [row, dimension], then [row, place]
                    let normed = normed(unembedding, &resid)?;
                    let along = match basis {
                        Some(basis) => product(&normed, &basis.f_tr()?)?,
                        None => normed,
                    };
                    let along = along.f_to_kind(Kind::Float)?;
                    moves.push(Move::Rows);
                    let u = product(&along, &coefficients.f_tr()?)?;
                    vectors.push(Some(Vectors::new(&u)?));
                    continue;
                }
                Change::Neurons {
                    neurons,
                    per_unit,
                    first_vector,
                } => (neurons, per_unit, first_vector),
            };
            let activations = activations.f_index_select(1, neurons)?;
            let activations = activations.f_to_kind(Kind::Double)?; // [row, neuron]
            let delta = activations.f_matmul(per_unit)?; // [row, d_model]
            let (mut cross, mut norm2) = (Vec::new(), Vec::new());
            let d_model = per_unit.size()[1] as usize;
            let mut of_rows = on_host(&delta)?;
            for (delta, x_c) in of_rows.chunks_mut(d_model).zip(x_c.chunks(d_model)) {
                see(unembedding.readout().centres(), delta);
                cross.push(dot(delta, x_c));
                norm2.push(dot(delta, delta));
            }
            let sums = match *first_vector {
                None => None,
                Some(first) => {
                    let activations = on_host(&activations)?;
                    let of_rows = activations.chunks(neurons.numel());
                    let terms = of_rows.map(|of_row| (first..).zip(of_row.iter().copied()));
                    Some(terms.map(Iterator::collect).collect())
                }
            };
            vectors.push(match sums {
                Some(_) => None,
                None => Some(unembedding.project(&delta)?.logits),
            });
            moves.push(Move::Residual { sums, cross, norm2 });
        }
        Self::of(vocabulary, unembedding, resid, moves, vectors)
    }

    /// Rows of the final residual stream, `[row, d_model]`, each moved by changes of its own, `[row, change, d_model]`.
    fn along(
        vocabulary: &Vocabulary,
        unembedding: &Unembedding,
        resid: &Tensor,
        changes: &Tensor,
    ) -> Result<Self, ScalingError> {
        let resid = unembedding.project(resid)?;
        let (mut moves, mut vectors) = (Vec::new(), Vec::new());
        for change in 0..changes.size()[1] {
            let delta = unembedding.project(&changes.f_select(1, change)?)?;
            let cross = delta.centred.f_mul(&resid.centred)?;
            moves.push(Move::Residual {
                sums: None,
                cross: on_host(&cross.f_sum_dim_intlist(-1, false, Kind::Double)?)?,
                norm2: delta.norm2,
            });
            vectors.push(Some(delta.logits));
        }
        Self::of(vocabulary, unembedding, resid, moves, vectors)
    }

    fn of(
        vocabulary: &Vocabulary,
        unembedding: &Unembedding,
        resid: Projected,
        moves: Vec<Move>,
        vectors: Vec<Option<Vectors>>,
    ) -> Result<Self, ScalingError> {
        let (scale, b) = (vocabulary.scale, unembedding.b());
        Ok(Self {
            logits: RowLogits::new(resid.logits, &resid.norm2, scale, b)?,
            norm2: resid.norm2,
            moves,
            vectors,
        })
    }
}

impl<'b> Block<'b> {
    fn new(
        vocabulary: &'b Vocabulary,
        changes: &'b Changes<'_>,
        moved: &'b MovedRows,
        rows: &'b [Row],
    ) -> Result<Self, TchError> {
        let mut of_neurons = Vec::new();
        if let Some(all) = &changes.of_neurons {
            let vectors = all.host()?.chunks(vocabulary.place.len());
            of_neurons.extend(vectors.map(|u| vocabulary.kernel.vector(u)));
        }
        let vectors = moved.vectors.iter();
        let vectors = vectors.map(|of_change| of_change.as_ref().map(Vectors::host).transpose());
        let moves = moved.moves.iter().zip(vectors);
        Ok(Self {
            vocabulary,
            rows,
            l: moved.logits.l.host()?,
            g: moved.logits.g.host()?,
            norm2: &moved.norm2,
            of_neurons,
            moves: moves
                .map(|(of_change, vectors)| Ok((of_change, vectors?)))
                .collect::<Result<_, TchError>>()?,
        })
    }

    /// Measures all rows, `[row]`.
    fn measure_all(&self, sets: &[AtFactors<'_>]) -> Vec<Measured> {
        let most = sets.iter().map(|set| set.changes.len()).max();
        let at_once = PAIRS_PER_CALL / most.unwrap_or(0).max(1);
        let at_once = (at_once / ROWS_PER_CALL).max(1) * ROWS_PER_CALL;
        let ranges: Vec<Range<usize>> = blocks(self.rows.len(), at_once).collect();
        let measured = ranges.into_par_iter();
        measured
            .flat_map_iter(|at| self.measure(at, sets))
            .collect()
    }

    /// Measures some rows, clean and under every change at each of its factors.
    fn measure(&self, at: Range<usize>, sets: &[AtFactors<'_>]) -> Vec<Measured> {
        let (kernel, d_vocab) = (&self.vocabulary.kernel, self.vocabulary.place.len());
        let rows = at.clone().map(|row| {
            let of_row = row * d_vocab..(row + 1) * d_vocab;
            kernel.row(&self.l[of_row.clone()], &self.g[of_row])
        });
        let rows: Vec<RowVectors<'_>> = rows.collect();
        // The clean prediction is that of a change that adds nothing.
        let nothing = (0..rows.len()).map(|number| (number, Direction::Sum(&[])));
        let clean = Pairs {
            rows: &rows,
            vectors: &[],
            pairs: &nothing.collect::<Vec<_>>(),
            bases: &vec![Base::default(); rows.len()],
            tilts: &[],
        };
        let clean = self.values(&clean, at.clone()).into_iter();
        let mut measured: Vec<Measured> = clean
            .map(|clean| Measured {
                clean,
                scaled: Vec::new(),
            })
            .collect();
        for set in sets {
            let values = self.measure_set(&rows, at.clone(), set);
            let of_rows = values.chunks(set.changes.len() * set.factors.len());
            for (measured, values) in measured.iter_mut().zip(of_rows) {
                measured.scaled.extend(values);
            }
        }
        measured
    }

    /// Measures some rows under changes, `[row][change][factor]`.
    fn measure_set(
        &self,
        rows: &[RowVectors<'_>],
        at: Range<usize>,
        AtFactors { factors, changes }: &AtFactors<'_>,
    ) -> Vec<[f64; MEASURES]> {
        let Vocabulary {
            kernel,
            scaled,
            scale,
            ..
        } = self.vocabulary;
        let d_vocab = self.vocabulary.place.len();
        let mut vectors = self.of_neurons.clone();
        let (mut pairs, mut bases) = (Vec::new(), Vec::new());
        for (number, row) in at.clone().enumerate() {
            for (change, u) in changes.iter().map(|&change| &self.moves[change]) {
                let mut own = |start: usize, len: usize| {
                    let u = u.map_or(&[][..], |u| &u[row * len..(row + 1) * len]);
                    vectors.push(kernel.part(start, u));
                    Direction::Vector(vectors.len() - 1)
                };
                let direction = match change {
                    Move::Rows => own(scaled.start, scaled.len()),
                    Move::Residual { sums: None, .. } => own(0, d_vocab),
                    Move::Residual {
                        sums: Some(terms), ..
                    } => Direction::Sum(&terms[row]),
                };
                pairs.push((number, direction));
                bases.extend(factors.iter().map(|factor| match change {
                    Move::Rows => Base {
                        a: 0.0,
                        c: factor - 1.0,
                    },
                    Move::Residual { cross, norm2, .. } => {
                        let of_change = (cross[row], norm2[row]);
                        moved_residual(*scale, self.norm2[row], of_change, factor - 1.0)
                    }
                }));
            }
        }
        let pairs = Pairs {
            rows,
            vectors: &vectors,
            pairs: &pairs,
            bases: &bases,
            tilts: &[],
        };
        self.values(&pairs, at)
    }

    /// The measures of each pair under each base, `[pair][base]`, for pairs of the rows `at`.
    fn values(&self, pairs: &Pairs<'_>, at: Range<usize>) -> Vec<[f64; MEASURES]> {
        let d_vocab = self.vocabulary.place.len();
        let of_rows = self.rows[at.clone()].iter();
        let targets: Vec<usize> = of_rows.map(|row| self.vocabulary.target(row)).collect();
        let (kernel, cells) = (&self.vocabulary.kernel, self.vocabulary.layout.cells());
        let sums = kernel.sums(&[], pairs);
        let over_all: Vec<CellSums> = sums
            .chunks(cells.len())
            .map(|of_cells| CellSums::over(of_cells.iter()))
            .collect();
        let n_bases = pairs.bases.len() / pairs.pairs.len().max(1);
        let each = over_all.iter().zip(pairs.bases).enumerate();
        let moved = each.map(|(i, (sums, base))| {
            let (number, direction) = pairs.pairs[i / n_bases];
            let place = targets[number];
            let in_row = (at.start + number) * d_vocab + place;
            let (l, g) = (f64::from(self.l[in_row]), f64::from(self.g[in_row]));
            Moved {
                lse: sums.lse(),
                target: l + base.a * g + base.c * direction.at(pairs.vectors, place),
            }
        });
        let moved: Vec<Moved> = moved.collect();
        let divergences = kernel.divergences(pairs, &moved, &targets);
        let each = sums.chunks(cells.len()).zip(&over_all).zip(&moved);
        each.zip(divergences)
            .map(|(((of_cells, sums), moved), divergence)| {
                let of_rare = of_cells.iter().zip(cells);
                let of_rare = of_rare.filter(|(_, cell)| cell.in_band(RARE));
                let rare = CellSums::over(of_rare.map(|(sums, _)| sums));
                let hit = |below: usize| f64::from(u8::from(divergence.rank < below));
                [
                    moved.lse - moved.target,
                    (rare.lse() - moved.lse).exp(),
                    hit(1),
                    hit(5),
                    moved.lse - sums.s1 / sums.s0,
                    // Rounding is taken off at 0, below which no divergence goes.
                    divergence.kl_clean_moved.max(0.0),
                    divergence.kl_moved_clean.max(0.0),
                    divergence.jensen_shannon.max(0.0),
                ]
            })
            .collect()
    }
}

/// How scaled output weights move the logits at `s - 1 = k`; `x2` is `|x_c|^2`, `cross` `x_c . Delta_c`, and `norm2` `|Delta_c|^2`.
fn moved_residual(scale: NormScale, x2: f64, (cross, norm2): (f64, f64), k: f64) -> Base {
    // Rounding must not make a squared norm negative.
    let scaled = scale.at((x2 + 2.0 * k * cross + k * k * norm2).max(0.0));
    Base {
        a: 1.0 / scaled - 1.0 / scale.at(x2),
        c: k / scaled,
    }
}

/// What the final norm makes of rows, `[row, d_model]`, f64.
fn normed(unembedding: &Unembedding, rows: &Projected) -> Result<Tensor, TchError> {
    let readout = unembedding.readout();
    let norm2 = rows.norm2.iter();
    let scales: Vec<f64> = norm2.map(|&norm2| unembedding.scale().at(norm2)).collect();
    let scales = Tensor::f_from_slice(&scales)?.f_unsqueeze(1)?;
    let normed = rows.centred.f_div(&scales)?.f_mul(readout.gamma())?;
    normed.f_add(readout.beta())
}
