//! The sweep: every asked-for neuron at every kept row, from one forward per sequence.

mod behind_norm;
mod forwards;

use std::{collections::HashMap, ops::Range, time::Instant};

use neox_core::{Model, Site};
use rayon::prelude::*;
use tch::{Device, Tensor};

use self::behind_norm::BehindNorm;
pub use self::forwards::HeadEffects;
use crate::{
    AblateError, BandToken, Direction, Dose, EngineOptions, EngineReport, LayerMeans, Measure,
    NeuronEffects, Readout, Row, RowCounts, Sample, SampleStates, Semantics, TokenBand,
    TokenFrequencies, Variant, Variants,
    closed_form::{Projected, Unembedding},
    engine::{
        Directions, Engine, Engines, FEWEST_DIRECTIONS, Measured, NotFinite, Prepared, blocks,
    },
    error::distinct,
    keys::EffectKeys,
    last_layer::LastLayer,
    mean_activations,
    mlp_write::MlpWrite,
    pairs::{Block, Pairs},
    progress::Tick,
    row_logits::{Dots, RowLogits},
    series::Spread,
    states::{by_sequence, positions},
    vectors::{dot, on_host},
};

/// What to ablate, where, and how to read it.
///
/// # Examples
/// ```
/// use neuron_ablate::{Dose, Plan};
/// let plan = Plan::new(vec![3, 105], vec![0, 1]).with_dose(Dose::Scale(0.0)).with_ranks(true);
/// assert_eq!(plan.batch, 8); // what is not said has its default
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Plan {
    /// Neurons of the last MLP layer.
    pub neurons: Vec<usize>,
    /// Sequences of the sample whose rows are measured.
    pub sequences: Vec<usize>,
    /// What the activation is replaced by.
    pub dose: Dose,
    /// The reading.
    pub semantics: Semantics,
    /// Which variants are measured beside the total effect.
    pub variants: Variants,
    /// Whether the rank of the target is measured, which costs a comparison with every token.
    pub ranks: bool,
    /// How the sums over the vocabulary are computed.
    pub engine: EngineOptions,
    /// Sequences per forward.
    pub batch: usize,
    /// Bytes that the vectors over the vocabulary may take, beside the weights.
    pub memory_budget: usize,
}

impl Plan {
    /// Mean ablation of `neurons` of the last layer at the rows of `sequences`: the recommended reading, all variants, no ranks, the
    /// default engine, 8 sequences per forward, 1 GiB.
    pub fn new(neurons: Vec<usize>, sequences: Vec<usize>) -> Self {
        Self {
            neurons,
            sequences,
            dose: Dose::default(),
            semantics: Semantics::default(),
            variants: Variants::default(),
            ranks: false,
            engine: EngineOptions::default(),
            batch: 8,
            memory_budget: 1 << 30,
        }
    }

    /// With another [`dose`](Self::dose).
    #[must_use]
    pub fn with_dose(self, dose: Dose) -> Self {
        Self { dose, ..self }
    }

    /// With another [`semantics`](Self::semantics).
    #[must_use]
    pub fn with_semantics(self, semantics: Semantics) -> Self {
        Self { semantics, ..self }
    }

    /// With another [`variants`](Self::variants).
    #[must_use]
    pub fn with_variants(self, variants: Variants) -> Self {
        Self { variants, ..self }
    }

    /// With another [`ranks`](Self::ranks).
    #[must_use]
    pub fn with_ranks(self, ranks: bool) -> Self {
        Self { ranks, ..self }
    }

    /// With another [`engine`](Self::engine).
    #[must_use]
    pub fn with_engine(self, engine: EngineOptions) -> Self {
        Self { engine, ..self }
    }

    /// With another [`batch`](Self::batch).
    #[must_use]
    pub fn with_batch(self, batch: usize) -> Self {
        Self { batch, ..self }
    }

    /// With another [`memory_budget`](Self::memory_budget).
    #[must_use]
    pub fn with_memory_budget(self, memory_budget: usize) -> Self {
        Self {
            memory_budget,
            ..self
        }
    }
}

/// Rows of effects, handed over while the sweep runs: every neuron of the block at every row of the block.
#[derive(Debug)]
pub struct PairBlock<'a> {
    /// Their layer.
    pub layer: usize,
    /// The neurons.
    pub neurons: &'a [usize],
    /// The rows.
    pub rows: &'a [Row],
    /// Whether the row's token (input or target, as the semantics say) is in each band, `[row][band]`.
    pub(crate) in_bands: &'a [Vec<bool>],
    /// Activation before the intervention, `[neuron][row]`.
    pub activations: &'a [f64],
    /// Measures of the clean logits, `[row][measure]`.
    pub(crate) clean: &'a [f64],
    /// Measures after the intervention, `[neuron][row][variant][measure]`.
    pub(crate) ablated: &'a [f64],
    pub(crate) keys: &'a EffectKeys,
    /// How far, in nats, the measures of a pair can be from exact ones; 0 for exact sums, `[neuron][row]`.
    pub bounds: &'a [f64],
    /// Ranks of the targets, if the plan asks for them.
    pub ranks: Option<Ranks<'a>>,
}

impl PairBlock<'_> {
    /// Whether the token of a row of the block (input or target, as the semantics say) is in the first band, the long-tail band.
    pub fn in_band(&self, row: usize) -> bool {
        let in_bands = self.in_bands.get(row);
        in_bands.and_then(|bands| bands.first()) == Some(&true)
    }

    /// A measure of the clean logits, `[row]`.
    ///
    /// # Errors
    /// - [`AblateError::NotMeasured`] if the sweep has no such measure
    pub fn clean(
        &self,
        measure: Measure,
    ) -> Result<impl Iterator<Item = f64> + Clone + '_, AblateError> {
        let (per_row, place) = (self.keys.measures().len(), self.keys.measure(measure)?);
        Ok(self.clean.iter().skip(place).step_by(per_row).copied())
    }

    /// A measure after the intervention under a variant, `[neuron][row]`.
    ///
    /// # Errors
    /// - [`AblateError::NotMeasured`] if the sweep has no such variant or measure
    pub fn ablated(
        &self,
        variant: Variant,
        measure: Measure,
    ) -> Result<impl Iterator<Item = f64> + '_, AblateError> {
        let (per_pair, place) = (self.keys.len(), self.keys.place(variant, measure)?);
        Ok(self.ablated.iter().skip(place).step_by(per_pair).copied())
    }

    /// The change of a measure under a variant, after minus before, `[neuron][row]`.
    ///
    /// # Errors
    /// - as [`PairBlock::ablated`]
    pub fn change(
        &self,
        variant: Variant,
        measure: Measure,
    ) -> Result<impl Iterator<Item = f64> + '_, AblateError> {
        let before = self.clean(measure)?.cycle();
        let after = self.ablated(variant, measure)?;
        Ok(after.zip(before).map(|(after, before)| after - before))
    }

    /// All changes in the order of [`Sweep::variants`] and [`Sweep::measures`], `[neuron][row][variant][measure]`.
    pub fn changes(&self) -> impl Iterator<Item = f64> + '_ {
        let per_row = self.keys.measures().len();
        let of_rows = self.clean.chunks(per_row).cycle();
        let pairs = self.ablated.chunks(self.keys.len()).zip(of_rows);
        pairs.flat_map(move |(ablated, clean)| {
            let each = ablated.iter().zip(clean.iter().cycle());
            each.map(|(after, before)| after - before)
        })
    }
}

/// Ranks of the targets among all tokens, counted from 0 for the most probable.
#[derive(Debug, Clone, Copy)]
pub struct Ranks<'a> {
    /// Of the clean logits, `[row]`.
    pub clean: &'a [u32],
    /// After the intervention (the total effect), `[neuron][row]`.
    pub ablated: &'a [u32],
}

/// What a sweep found.
#[derive(Debug)]
#[non_exhaustive]
pub struct Effects {
    /// One entry a neuron, in the order of the plan.
    pub neurons: Vec<NeuronEffects>,
    /// Mean activations of the whole layer over the sample, `[d_mlp]`.
    pub mean_activations: Vec<f64>,
    /// What the position filter kept and dropped.
    pub rows: RowCounts,
    /// Which engine measured how many pairs.
    pub engine: EngineReport,
}

/// The consumer of [`PairBlock`]s.
pub type Sink<'a> =
    dyn FnMut(&PairBlock<'_>) -> Result<(), Box<dyn std::error::Error + Send + Sync>> + 'a;

/// A sweep made ready: the model's last layer in closed form, the directions and the bands.
#[derive(Debug)]
pub struct Sweep<'a> {
    /// Of sequences of the plan they are kept: means, single neurons and sets share a forward.
    states: SampleStates<'a>,
    pub(crate) sample: &'a Sample,
    pub(crate) plan: Plan,
    pub(crate) unembedding: Unembedding,
    pub(crate) write: MlpWrite,
    pub(crate) pairs: Pairs,
    engines: Engines,
    /// Means that are known already.
    means: LayerMeans,
}

/// Most neurons of a block: the kernel groups what moments leave of them.
const MOST_NEURONS: usize = 512;
/// Neurons whose vectors rows need not share to be cheap, so that few rows go together: the next ones take the memory of these, and a
/// process that asks for less of it has fewer fresh pages.
const FEW_NEURONS: usize = 64;
const ROWS_OF_FEW: usize = 256;
/// The part of the memory, one in so many, that states may take.
const STATES_SHARE: usize = 16;

/// Neurons in closed form: their output weights in the vocabulary.
struct OfNeurons {
    projected: Projected,
    /// `w_c`, `[neuron][d_model]`.
    centred: Vec<f64>,
    dots: Vec<Dots>,
    spreads: Vec<Spread>,
}

/// What is measured of a block besides.
#[derive(Clone, Copy)]
struct Wanted<'w, 'l> {
    prepared: &'w Prepared<'l>,
    /// Places of the rows' targets, `[row]`.
    targets: &'w Tensor,
    ranks: bool,
}

impl<'a> Sweep<'a> {
    /// The forwards over its text, which those of the plan's sequences are kept of: means and activities that are taken of them need no
    /// other ones.
    pub fn states(&self) -> &SampleStates<'a> {
        &self.states
    }

    /// The text that it runs on.
    pub fn sample(&self) -> &'a Sample {
        self.sample
    }

    /// Checks the plan and prepares the vocabulary.
    ///
    /// The first of `bands`, if any, is the long-tail band: it decides about [`PairBlock::in_band`]. Over the rows of each there are means
    /// of their own ([`Over::Band`](crate::Over::Band)).
    ///
    /// # Errors
    /// - [`AblateError::Vocabulary`] if the frequencies are not those of the model's vocabulary
    /// - [`AblateError::NoSuchNeuron`] for a neuron past the layer
    /// - [`AblateError::Band`] for a band of another vocabulary, [`AblateError::Repeated`] for two of one name
    /// - [`AblateError::Setting`] for a tolerance that is not a positive number
    /// - [`AblateError::FlatDirection`] if a direction does not exist
    /// - [`AblateError::DirectEffect`] if the variant that the semantics report as the direct effect is not measured
    pub fn new(
        model: &'a Model,
        sample: &'a Sample,
        frequencies: &TokenFrequencies,
        bands: Vec<TokenBand>,
        plan: Plan,
    ) -> Result<Self, AblateError> {
        let LastLayer { readout, write, .. } = LastLayer::of_model(model)?;
        let states = SampleStates::new(model, sample, plan.batch);
        Self::of_states(states, (readout, write), frequencies, bands, plan)
    }

    /// The same of a model of which there is the last layer alone, such as one that is not ours. What runs a model on from an earlier
    /// layer ([`Sweep::run_neurons`], [`Sweep::run_sets_on`], [`Sweep::run_heads`]) is an error then.
    ///
    /// # Errors
    /// - as [`Sweep::new`]
    pub fn of_last_layer(
        last: LastLayer<'a>,
        sample: &'a Sample,
        frequencies: &TokenFrequencies,
        bands: Vec<TokenBand>,
        plan: Plan,
    ) -> Result<Self, AblateError> {
        let LastLayer {
            readout,
            write,
            layer,
            forward,
        } = last;
        let states = SampleStates::of_last_layer((layer, forward), sample, plan.batch);
        Self::of_states(states, (readout, write), frequencies, bands, plan)
    }

    fn of_states(
        states: SampleStates<'a>,
        (readout, write): (Readout, MlpWrite),
        frequencies: &TokenFrequencies,
        bands: Vec<TokenBand>,
        plan: Plan,
    ) -> Result<Self, AblateError> {
        let d_vocab = readout.w_u().size()[0] as usize;
        let d_mlp = write.w_out().size()[0] as usize;
        if frequencies.q().len() != d_vocab {
            return Err(AblateError::Vocabulary {
                frequencies: frequencies.q().len(),
                d_vocab,
            });
        }
        if let Some(&neuron) = plan.neurons.iter().find(|&&n| n >= d_mlp) {
            return Err(AblateError::NoSuchNeuron {
                neuron,
                last: d_mlp - 1,
            });
        }
        distinct("neuron", &plan.neurons)?;
        states.sample().check(&plan.sequences)?;
        let tolerance = plan.engine.tolerance;
        if !(tolerance > 0.0 && tolerance.is_finite()) {
            return Err(AblateError::Setting {
                name: "tolerance",
                value: tolerance,
                expected: "a positive number of nats".into(),
            });
        }
        let names: Vec<&str> = bands.iter().map(TokenBand::name).collect();
        distinct("band", &names)?;
        if let Some(band) = bands.iter().find(|band| band.mask().len() != d_vocab) {
            return Err(AblateError::Band {
                name: band.name().to_owned(),
                what: format!(
                    "it is of a vocabulary of {} tokens, but the model's has {d_vocab} rows",
                    band.mask().len()
                ),
            });
        }
        let pairs = Pairs::new(frequencies, bands, &plan.semantics, plan.variants)?;
        let device = plan.engine.device(readout.w_u().device());
        let unembedding = Unembedding::new(readout, pairs.layout().order(), device)?;
        let engines = Engines::new(
            &pairs,
            (unembedding.w_u(), unembedding.scale()),
            match write.norm() {
                // Every pair has a direction of its own: nothing that moments could share.
                Some(_) => EngineOptions {
                    engine: Engine::Exact,
                    ..plan.engine
                },
                None => plan.engine,
            },
            (plan.neurons.len(), Directions::Vectors),
            plan.memory_budget / 4,
        )?;
        let (last, memory) = (states.last_layer(), plan.memory_budget / STATES_SHARE);
        let sweep = Self {
            sample: states.sample(),
            states: states.keeping(&plan.sequences, &[last], memory),
            plan,
            unembedding,
            write,
            pairs,
            engines,
            means: LayerMeans::default(),
        };
        match sweep.variants().contains(&sweep.direct()) {
            true => Ok(sweep),
            false => Err(AblateError::DirectEffect {
                variant: sweep.variant_name(sweep.direct())?,
            }),
        }
    }

    /// Takes means that are known already: [`Sweep::run`] then does not read the sample for those of the last layer.
    #[must_use]
    pub fn with_means(mut self, means: LayerMeans) -> Self {
        self.means = means;
        self
    }

    /// The measures, in the order of columns.
    pub fn measures(&self) -> &[Measure] {
        self.pairs.keys().measures()
    }

    /// The variants, in the order of columns.
    pub fn variants(&self) -> &[Variant] {
        self.pairs.variants()
    }

    /// Name of a variant, as in column names; that of a band's is `frozen_` and the band.
    ///
    /// # Errors
    /// - [`AblateError::NotMeasured`] for a band that the sweep has not
    pub fn variant_name(&self, variant: Variant) -> Result<String, AblateError> {
        self.pairs.keys().variant_name(variant)
    }

    /// Name of a measure, as in column names; that of a band's ends in the band.
    ///
    /// # Errors
    /// - [`AblateError::NotMeasured`] for a band that the sweep has not
    pub fn measure_name(&self, measure: Measure) -> Result<String, AblateError> {
        self.pairs.keys().measure_name(measure)
    }

    /// Probability mass of each band under the token frequencies.
    pub fn band_masses(&self) -> Vec<f64> {
        self.pairs.measures().band_masses()
    }

    /// The variant that the semantics report as the direct effect.
    pub fn direct(&self) -> Variant {
        match self.plan.semantics.direction {
            Direction::BandMasked | Direction::BandRecentred if !self.pairs.bands().is_empty() => {
                Variant::FrozenBand(0)
            }
            _ => Variant::FrozenAll,
        }
    }

    /// Number of (neuron, row) pairs that the sweep will measure.
    ///
    /// # Errors
    /// - as [`Sample::rows`]
    pub fn pairs(&self) -> Result<usize, AblateError> {
        Ok(self.sample.rows(&self.plan.sequences)?.0.len() * self.plan.neurons.len())
    }

    /// What the position filter keeps and drops.
    ///
    /// # Errors
    /// - as [`Sample::rows`]
    pub fn row_counts(&self) -> Result<RowCounts, AblateError> {
        Ok(self.sample.rows(&self.plan.sequences)?.1)
    }

    /// Runs the sweep.
    ///
    /// # Errors
    /// - as [`Sweep::run_with`]
    pub fn run(&self) -> Result<Effects, AblateError> {
        self.run_with(&mut |_| Ok(()), &|_| ())
    }

    /// Runs the sweep; `sink` gets the rows as they come, `progress` hears how far it is.
    ///
    /// # Errors
    /// - [`AblateError::Empty`] for a plan without neurons
    /// - [`AblateError::NotFinite`] at the first value that is not a number
    /// - [`AblateError::Sink`] if `sink` fails
    /// - [`AblateError::Torch`] if libtorch fails
    pub fn run_with(
        &self,
        sink: &mut Sink<'_>,
        progress: &(dyn Fn(Tick) + Sync),
    ) -> Result<Effects, AblateError> {
        let (plan, pairs) = (&self.plan, &self.pairs);
        if plan.neurons.is_empty() {
            return Err(AblateError::Empty {
                what: "no neuron is asked for".into(),
            });
        }
        let (all_rows, counts) = self.sample.rows(&plan.sequences)?;
        let d_mlp = self.write.w_out().size()[0] as usize;
        let mean = match self.means.neurons(self.states.last_layer()) {
            Some(mean) if mean.len() != d_mlp => {
                return Err(AblateError::NoSuchComponent {
                    what: format!("layer of {} neurons, which there are means of", mean.len()),
                    has: format!("{d_mlp} a layer"),
                });
            }
            Some(mean) => mean.to_vec(),
            None => self.mean_activations(progress)?,
        };
        let w_out_norms = self.write.norms()?;
        let directions = on_host(self.write.directions())?; // [d_mlp][d_model]
        let d_model = directions.len() / d_mlp;
        let direction = |neuron: usize| &directions[neuron * d_model..(neuron + 1) * d_model];
        let clusters = self.sample.cluster_of(&plan.sequences);
        let empty = self.no_effects();
        let layer = self.states.last_layer();
        let mut neurons: Vec<NeuronEffects> = plan
            .neurons
            .iter()
            .map(|&neuron| NeuronEffects {
                layer,
                neuron,
                mean_activation: mean[neuron],
                w_out_norm: w_out_norms[neuron],
                effects: empty.clone(),
            })
            .collect();

        let (rows_at_once, neurons_at_once, keep) = self.blocks();
        let mut kept: Vec<Option<OfNeurons>> = Vec::new();
        for rows in chunk_by_sequence(&all_rows, rows_at_once) {
            let (resid, activations) = self.states_at(rows)?;
            let m_c = self
                .write
                .norm()
                .map(|norm| norm.m_c(&activations))
                .transpose()?;
            let activations = on_host(&activations)?; // [row][d_mlp]
            let Projected {
                centred,
                norm2,
                logits,
                ..
            } = self.unembedding.project(&resid)?;
            let x_c = centred;
            let centred = on_host(&x_c)?;
            let scale = self.unembedding.scale();
            let row_logits = RowLogits::new(logits, &norm2, scale, self.unembedding.b())?;
            let prepared = self.engines.prepare(&row_logits)?;
            let row_terms = pairs.rows(rows, norm2, scale, &row_logits, prepared.sums())?;
            let targets = pairs.target_places(rows)?;
            let behind_norm = match (self.write.norm(), &m_c) {
                (Some(norm), Some(m_c)) => {
                    let x_c = x_c.shallow_clone();
                    Some(BehindNorm::new(self, norm, m_c, x_c, &targets)?)
                }
                _ => None,
            };
            let in_bands: Vec<Vec<bool>> = rows.iter().map(|row| self.in_bands(row)).collect();
            let slots: Vec<usize> = rows.iter().map(|row| clusters[&row.sequence]).collect();
            let mut clean_ranks = Vec::new();
            for (number, range) in blocks(plan.neurons.len(), neurons_at_once).enumerate() {
                let begin = Instant::now();
                let in_block = &plan.neurons[range.clone()];
                kept.resize_with(kept.len().max(number + 1), || None);
                let of_neurons = match kept[number].take() {
                    Some(of_neurons) => of_neurons,
                    None => {
                        let weights = in_block.iter().flat_map(|&n| direction(n)).copied();
                        let projected = self.unembedding.project_rows(weights.collect())?;
                        let dots = pairs.dots(&projected.logits)?;
                        let spreads = self.engines.spreads(&projected.logits)?;
                        OfNeurons {
                            centred: on_host(&projected.centred)?,
                            projected,
                            dots,
                            spreads,
                        }
                    }
                };
                let OfNeurons {
                    projected,
                    centred: w_c,
                    dots,
                    spreads,
                } = &of_neurons;
                // [neuron][row]
                let of_neuron = |&n: &usize| activations.iter().skip(n).step_by(d_mlp).copied();
                let activations: Vec<f64> = in_block.par_iter().flat_map_iter(of_neuron).collect();
                // [neuron][row]
                let cross = match x_c.device() {
                    Device::Cpu => products(w_c, &centred, d_model),
                    _ => on_host(&projected.centred.f_matmul(&x_c.f_tr()?)?)?,
                };
                let change: Vec<f64> = activations
                    .par_chunks(rows.len())
                    .zip(in_block)
                    .flat_map_iter(|(of_neuron, &n)| {
                        let change = |a: &f64| plan.dose.change(*a, mean[n]);
                        of_neuron.iter().map(change).collect::<Vec<_>>()
                    })
                    .collect();
                let job = Block {
                    rows: &row_terms,
                    at: 0..rows.len(),
                    change: &change,
                    norm2: &projected.norm2,
                    u_dots: dots,
                    u_at: &projected.logits.at(&targets)?,
                    cross: &cross,
                    spreads,
                };
                let ready_in = begin.elapsed();
                let wanted = Wanted {
                    prepared: &prepared,
                    targets: &targets,
                    ranks: plan.ranks,
                };
                let measured = match &behind_norm {
                    Some(rows) => {
                        rows.measure(self, in_block, &job, projected, wanted, progress)?
                    }
                    None => self.measure(&job, projected, wanted, progress)?,
                };
                let (measured, ablated_ranks) = measured.map_err(|at| {
                    let Row { sequence, pos, .. } = rows[at.row];
                    AblateError::NotFinite {
                        neuron: in_block[at.direction],
                        sequence,
                        pos,
                    }
                })?;
                if number == 0 && plan.ranks {
                    clean_ranks = self.engines.ranks(pairs, &job, &prepared, None, &targets)?;
                }
                let block = PairBlock {
                    ranks: plan.ranks.then_some(Ranks {
                        clean: &clean_ranks,
                        ablated: &ablated_ranks,
                    }),
                    layer,
                    neurons: in_block,
                    rows,
                    in_bands: &in_bands,
                    activations: &activations,
                    clean: &row_terms.measures,
                    ablated: &measured.values,
                    bounds: &measured.bounds,
                    keys: self.pairs.keys(),
                };
                let measured_in = begin.elapsed();
                accumulate(&mut neurons[range], &block, &slots);
                tracing::debug!(
                    neurons = in_block.len(),
                    rows = rows.len(),
                    ?ready_in,
                    ?measured_in,
                    all_in = ?begin.elapsed(),
                    "a block"
                );
                sink(&block).map_err(|source| AblateError::Sink { source })?;
                self.engines.recycle(measured);
                if keep {
                    kept[number] = Some(of_neurons);
                }
            }
        }
        Ok(Effects {
            neurons,
            mean_activations: mean,
            rows: counts,
            engine: self.engines.report(),
        })
    }

    /// Mean activations of the last layer over the whole sample, `[d_mlp]`.
    fn mean_activations(&self, progress: &(dyn Fn(Tick) + Sync)) -> Result<Vec<f64>, AblateError> {
        let hear = |more, done| progress(Tick::Sequences { more, done });
        mean_activations(&self.states, self.plan.semantics.mean_activation, &hear)
    }

    /// The whole model.
    pub(crate) fn model(&self, what: &'static str) -> Result<&'a Model, AblateError> {
        self.states.model(what)
    }

    /// Measures and ranks of a block.
    fn measure(
        &self,
        job: &Block<'_>,
        directions: &Projected,
        wanted: Wanted<'_, '_>,
        progress: &(dyn Fn(Tick) + Sync),
    ) -> Result<Result<(Measured, Vec<u32>), NotFinite>, AblateError> {
        let Wanted {
            prepared, targets, ..
        } = wanted;
        let engines = &self.engines;
        let measured = match engines.measure(&self.pairs, job, prepared, directions, progress)? {
            Ok(measured) => measured,
            Err(at) => return Ok(Err(at)),
        };
        let ranks = match wanted.ranks {
            true => engines.ranks(&self.pairs, job, prepared, Some(directions), targets)?,
            false => Vec::new(),
        };
        Ok(Ok((measured, ranks)))
    }

    /// Rows and neurons at once, and whether the neurons' vectors are all kept while the rows change.
    fn blocks(&self) -> (usize, usize, bool) {
        let vectors = self.plan.memory_budget / (4 * self.pairs.layout().d_vocab());
        let (all, per_row) = (self.plan.neurons.len(), self.engines.vectors_per_row());
        let keep = all <= vectors / 2;
        let for_neurons = if keep { all } else { vectors / 4 };
        let rows = (vectors.saturating_sub(for_neurons) / per_row).max(1);
        let most_rows = match all <= FEW_NEURONS {
            true => ROWS_OF_FEW,
            false => usize::MAX,
        };
        (
            rows.min(most_rows),
            for_neurons.clamp(FEWEST_DIRECTIONS, MOST_NEURONS),
            keep,
        )
    }

    /// Which bands a row counts for, `[band]`.
    pub(crate) fn in_bands(&self, row: &Row) -> Vec<bool> {
        let token = match self.plan.semantics.band_token {
            BandToken::Input => row.token,
            BandToken::Target => row.target,
        };
        let bands = self.pairs.bands().iter();
        bands.map(|band| band.mask()[token as usize]).collect()
    }
}

impl Sweep<'_> {
    /// Residual stream and activations of `rows`, `[row, d_model]` and `[row, d_mlp]`.
    pub(crate) fn states_at(&self, rows: &[Row]) -> Result<(Tensor, Tensor), AblateError> {
        let mut sequences: Vec<usize> = rows.iter().map(|row| row.sequence).collect();
        sequences.dedup();
        let rows_of = by_sequence(rows);
        let site = Site::MlpPost(self.states.last_layer());
        let mut found = HashMap::new();
        self.states.each(&sequences, &[site], |sequence, states| {
            let at = positions(rows_of[&sequence])?;
            let resid = states.resid.f_index_select(0, &at)?;
            let activations = states.at(site)?.f_index_select(0, &at)?;
            found.insert(sequence, (resid, activations));
            Ok::<_, AblateError>(())
        })?;
        let in_order = sequences.iter().map(|sequence| &found[sequence]);
        let (resid, activations): (Vec<&Tensor>, Vec<&Tensor>) = in_order
            .map(|(resid, activations)| (resid, activations))
            .unzip();
        Ok((Tensor::f_cat(&resid, 0)?, Tensor::f_cat(&activations, 0)?))
    }
}

/// Adds a block to the sums of its neurons; `slots` says which cluster a row belongs to.
fn accumulate(neurons: &mut [NeuronEffects], block: &PairBlock<'_>, slots: &[usize]) {
    let (m, per_row, n_rows) = (
        block.keys.measures().len(),
        block.keys.len(),
        block.rows.len(),
    );
    neurons.par_iter_mut().enumerate().for_each(|(n, neuron)| {
        for (r, &slot) in slots.iter().enumerate() {
            let pair = n * n_rows + r;
            let ablated = &block.ablated[pair * per_row..(pair + 1) * per_row];
            neuron.effects.add(
                slot,
                &block.clean[r * m..(r + 1) * m],
                ablated,
                block.activations[pair],
                &block.in_bands[r],
            );
            if let Some(ranks) = &block.ranks {
                let change = f64::from(ranks.ablated[pair]) - f64::from(ranks.clean[r]);
                neuron.effects.add_rank(slot, change, &block.in_bands[r]);
            }
        }
    });
}

/// `x . y` for vectors of `len` values, `[x][y]`, each by itself, so that it does not depend on what others are there.
fn products(x: &[f64], y: &[f64], len: usize) -> Vec<f64> {
    let of_x = |x| y.chunks(len).map(move |y| dot(x, y)).collect::<Vec<_>>();
    x.par_chunks(len).flat_map_iter(of_x).collect()
}

/// Consecutive runs of rows, at most `limit` long where a sequence is not longer, that never cut a sequence.
pub(crate) fn chunk_by_sequence(rows: &[Row], limit: usize) -> Vec<&[Row]> {
    let mut chunks: Vec<Range<usize>> = Vec::new();
    let mut start = 0;
    for sequence in rows.chunk_by(|a, b| a.sequence == b.sequence) {
        let end = start + sequence.len();
        match chunks.last_mut() {
            Some(chunk) if end - chunk.start <= limit => chunk.end = end,
            _ => chunks.push(start..end),
        }
        start = end;
    }
    chunks.into_iter().map(|chunk| &rows[chunk]).collect()
}
