//! What has no closed form: neurons before the last MLP and attention heads are replaced at every position, and the model runs on.
//!
//! One forward of a text leaves the residual stream at each block that something is replaced in. From there the model runs on
//! with many copies of the text at once, each with a replacement of its own; where replacements are few, several texts make a batch. What that changes in the residual stream after the last
//! block is a direction of its own at each row, and everything from there on is what sets of neurons have (methods, section 13): the
//! same readout, sums, variants and measures.

use std::{iter::repeat_n, ops::Range};

use neox_core::{Model, Site};
use tch::Tensor;

use super::{PairBlock, Ranks, Sink, Sweep, accumulate};
use crate::{
    AblateError, Dose, HeadId, LayerMeans, NeuronEffects, NeuronId, Row,
    effects::EffectSums,
    engine::{Directions, Engine, EngineOptions, Engines, Measured, Prepared, blocks},
    error::distinct,
    output_norms,
    pairs::{Block, RowTerms},
    progress::Tick,
    readout::host,
    replaced::{self, ForwardCost, Replaced, batches, copies, groups, texts_at_once},
    row_logits::RowLogits,
    states::Captured,
    vectors::on_host,
};

/// Effects of setting one attention head's output at every position.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HeadEffects {
    /// The head.
    pub head: HeadId,
    /// The measured changes.
    pub effects: EffectSums,
}

impl HeadEffects {
    /// Mean over the rows of the length of the change of the residual stream after the last block, as the final norm sees it.
    pub fn change_norm(&self) -> f64 {
        self.effects.row_quantity()
    }
}

/// Replacements of one batch, run at the rows of one text.
pub(crate) struct Ran<'r> {
    /// Which of the replacements.
    pub(crate) range: Range<usize>,
    pub(crate) rows: &'r [Row],
    /// `[row][band]`
    pub(crate) in_bands: &'r [Vec<bool>],
    /// The cluster of the text.
    pub(crate) cluster: usize,
    /// Measures of the clean logits, `[row][measure]`.
    pub(crate) clean: &'r [f64],
    /// `[replacement][row][variant][measure]`
    pub(crate) measured: &'r Measured,
    pub(crate) ranks: Option<Ranks<'r>>,
    /// Length of the change of the residual stream after the last block, as the final norm sees it, `[replacement][row]`.
    pub(crate) norms: &'r [f64],
    /// Place of the text among those that ran together.
    text: usize,
    /// The unchanged model, all positions.
    captured: &'r Captured,
}

/// The rows of a text, ready for measuring changes of their final residual stream.
struct OfText<'r> {
    terms: RowTerms<'r>,
    prepared: Prepared<'r>,
    /// `x_c`, `[row, d_model]`.
    centred: Tensor,
    /// `[row]`
    targets: Tensor,
}

impl Sweep<'_> {
    /// Ablates neurons of any layers by running the model on, with the dose of the plan.
    ///
    /// # Errors
    /// - as [`Sweep::run_neurons_with`]
    pub fn run_neurons(
        &self,
        neurons: &[NeuronId],
        means: &LayerMeans,
    ) -> Result<Vec<NeuronEffects>, AblateError> {
        self.run_neurons_with(neurons, means, &mut |_| Ok(()), &|_| ())
    }

    /// The same; `sink` gets the rows as they come, `progress` hears how far it is.
    ///
    /// Each neuron is replaced at every position of a text, the first one too; of the last layer the plan's own neurons, which
    /// [`Sweep::run`] ablates in closed form, have the same effects. The plan's neurons play no part here. `means` are those of the
    /// neurons' layers ([`layer_means`](crate::layer_means)).
    ///
    /// Sums over the vocabulary are exact ones, whatever engine the plan names.
    ///
    /// # Errors
    /// - [`AblateError::NoSuchComponent`] for a neuron that the model does not have, [`AblateError::Repeated`] for one that stands twice
    /// - [`AblateError::Empty`] if a layer's means are missing
    /// - [`AblateError::NotFiniteChange`] at the first value that is not a number
    /// - [`AblateError::Sink`] if `sink` fails, [`AblateError::Forward`] or [`AblateError::Torch`] if libtorch does
    pub fn run_neurons_with(
        &self,
        neurons: &[NeuronId],
        means: &LayerMeans,
        sink: &mut Sink<'_>,
        progress: &(dyn Fn(Tick) + Sync),
    ) -> Result<Vec<NeuronEffects>, AblateError> {
        distinct("neuron", neurons)?;
        let model = self.model("ablating neurons of any layer")?;
        let replaced = |&neuron: &NeuronId| {
            let name = format!("neuron {neuron}");
            Replaced::neurons(model, name, &[neuron], self.plan.dose, means)
        };
        let replaced: Vec<Replaced> = neurons.iter().map(replaced).collect::<Result<_, _>>()?;
        let mut effects = self.neurons_without_rows(model, neurons, means)?;
        let mut sites: Vec<Site> = neurons.iter().map(|n| Site::MlpPost(n.layer)).collect();
        sites.dedup();
        self.run_on(&replaced, &sites, progress, &mut |ran| {
            let in_batch = &neurons[ran.range.clone()];
            // A batch starts in one layer.
            let layer = in_batch.first().map_or(0, |n| n.layer);
            let indices: Vec<usize> = in_batch.iter().map(|n| n.neuron).collect();
            let activations = ran.activations(layer, &indices)?;
            let block = PairBlock {
                layer,
                neurons: &indices,
                rows: ran.rows,
                in_bands: ran.in_bands,
                activations: &activations,
                clean: ran.clean,
                ablated: &ran.measured.values,
                bounds: &ran.measured.bounds,
                ranks: ran.ranks,
                keys: self.pairs.keys(),
            };
            let slots = vec![ran.cluster; ran.rows.len()];
            accumulate(&mut effects[ran.range.clone()], &block, &slots);
            sink(&block).map_err(|source| AblateError::Sink { source })
        })?;
        Ok(effects)
    }

    /// Sets the outputs of attention heads, one by one, to what `dose` says, at every position, and runs the model on: `Mean` to the
    /// mean output over the sample, `Scale(0.0)` to zero.
    ///
    /// An output is what the head's part of the output projection reads ([`Site::HeadOut`]).
    ///
    /// # Errors
    /// - [`AblateError::HeadDose`] for clipping, which is for single activations
    /// - as [`Sweep::run_neurons`]
    pub fn run_heads(
        &self,
        heads: &[HeadId],
        dose: Dose,
        means: &LayerMeans,
        progress: &(dyn Fn(Tick) + Sync),
    ) -> Result<Vec<HeadEffects>, AblateError> {
        distinct("head", heads)?;
        if dose == Dose::ClipAtMean {
            return Err(AblateError::HeadDose);
        }
        let model = self.model("ablating attention heads")?;
        let replaced = |&head: &HeadId| Replaced::head(model, head, dose, means);
        let replaced: Vec<Replaced> = heads.iter().map(replaced).collect::<Result<_, _>>()?;
        let empty = self.no_effects();
        let head = |&head: &HeadId| HeadEffects {
            head,
            effects: empty.clone(),
        };
        let mut effects: Vec<HeadEffects> = heads.iter().map(head).collect();
        self.run_on(&replaced, &[], progress, &mut |ran| {
            let of_batch = effects[ran.range.clone()].iter_mut();
            ran.add_to(of_batch.map(|head| &mut head.effects));
            Ok(())
        })?;
        Ok(effects)
    }

    /// What [`Sweep::run_neurons`] and [`Sweep::run_heads`] cost, for components of these layers, `[component]`.
    ///
    /// # Errors
    /// - as [`Sample::rows`](crate::Sample::rows)
    pub fn forward_cost(&self, layers: &[usize]) -> Result<ForwardCost, AblateError> {
        let (rows, _) = self.sample.rows(&self.plan.sequences)?;
        let model = self.model("a forward from a layer")?;
        let text = (self.sample, &rows[..]);
        Ok(ForwardCost::new(model, layers, text, self.copies(model)))
    }

    /// Runs each replacement on at every text of the plan; `sites` are those of the unchanged model that `each` reads.
    pub(crate) fn run_on(
        &self,
        replaced: &[Replaced],
        sites: &[Site],
        progress: &(dyn Fn(Tick) + Sync),
        each: &mut dyn FnMut(&Ran<'_>) -> Result<(), AblateError>,
    ) -> Result<(), AblateError> {
        let layers: Vec<usize> = replaced.iter().map(|replaced| replaced.layer).collect();
        let model = self.model("a replacement")?;
        let copies = self.copies(model);
        let batches = batches(&layers, copies);
        let sites: Vec<Site> = replaced::sites(replaced)
            .into_iter()
            .chain(sites.to_vec())
            .collect();
        let options = EngineOptions {
            engine: Engine::Exact,
            ..self.plan.engine
        };
        let readout = (self.unembedding.w_u(), self.unembedding.scale());
        let memory = self.plan.memory_budget / 4;
        let directions = (replaced.len(), Directions::Vectors);
        let engines = Engines::new(&self.pairs, readout, options, directions, memory)?;
        let (all_rows, _) = self.sample.rows(&self.plan.sequences)?;
        let clusters = self.sample.cluster_of(&self.plan.sequences);
        for group in groups(
            self.sample,
            &all_rows,
            texts_at_once(copies, replaced.len()),
        ) {
            let (captured, kept) = replaced::unchanged(model, self.sample, &group, &sites)?;
            let in_batches = |range: &Range<usize>| {
                replaced::changes(model, &replaced[range.clone()], &captured, &kept)
            };
            // Several texts go together only where the replacements are few; else each batch is measured before the next one runs.
            let made: Vec<Vec<Tensor>> = match group.len() {
                1 => Vec::new(),
                _ => batches.iter().map(in_batches).collect::<Result<_, _>>()?,
            };
            for (text, (&rows, kept)) in group.iter().zip(&kept).enumerate() {
                let resid = captured.resid.f_get(text as i64)?.f_index_select(0, kept)?;
                let projected = self.unembedding.project(&host(&resid)?)?;
                let (b, scale) = (self.unembedding.b(), self.unembedding.scale());
                let logits = RowLogits::new(projected.logits, &projected.norm2, scale, b)?;
                let prepared = engines.prepare(&logits)?;
                let sums = prepared.sums();
                let of_text = OfText {
                    terms: self
                        .pairs
                        .rows(rows, projected.norm2, scale, &logits, sums)?,
                    centred: projected.centred,
                    targets: self.pairs.target_places(rows)?,
                    prepared,
                };
                let clean_ranks = match self.plan.ranks {
                    true => self.clean_ranks(&engines, &of_text, rows.len())?,
                    false => Vec::new(),
                };
                let in_bands: Vec<Vec<bool>> = rows.iter().map(|row| self.in_bands(row)).collect();
                for (number, range) in batches.iter().enumerate() {
                    let changes = match made.get(number) {
                        Some(of_texts) => of_texts[text].shallow_clone(),
                        None => in_batches(range)?.swap_remove(0),
                    };
                    let these = &replaced[range.clone()];
                    let (measured, ranks, norms) =
                        self.measure_changes(&engines, &of_text, these, &changes)?;
                    // All at once: most of the time goes into the forward, and rows alone would tell another rate.
                    progress(Tick::Pairs(norms.len()));
                    each(&Ran {
                        range: range.clone(),
                        rows,
                        in_bands: &in_bands,
                        cluster: clusters[&rows[0].sequence],
                        clean: &of_text.terms.measures,
                        measured: &measured,
                        ranks: self.plan.ranks.then_some(Ranks {
                            clean: &clean_ranks,
                            ablated: &ranks,
                        }),
                        norms: &norms,
                        text,
                        captured: &captured,
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Measures, ranks and lengths of changes of the final residual stream, `[replacement][row]`; `changes` is
    /// `[row, replacement, d_model]`.
    fn measure_changes(
        &self,
        engines: &Engines,
        of_text: &OfText<'_>,
        replaced: &[Replaced],
        changes: &Tensor,
    ) -> Result<(Measured, Vec<u32>, Vec<f64>), AblateError> {
        let (n_rows, n, per_pair) = (
            changes.size()[0] as usize,
            replaced.len(),
            self.pairs.per_pair(),
        );
        let mut all = Measured {
            values: vec![0.0; n * n_rows * per_pair],
            bounds: vec![0.0; n * n_rows],
        };
        let mut all_ranks = vec![0; if self.plan.ranks { n * n_rows } else { 0 }];
        let mut norms = vec![0.0; n * n_rows];
        let ones = vec![1.0; n];
        // Rows at once, whose directions go through `W_U` in one product.
        let vectors = self.plan.memory_budget / 8 / (4 * self.pairs.layout().d_vocab());
        for range in blocks(n_rows, (vectors / n).max(1)) {
            let (start, length) = (range.start as i64, range.len() as i64);
            let changes = changes.f_narrow(0, start, length)?;
            let projected = self.unembedding.project(&changes.f_flatten(0, 1)?)?;
            let centred = of_text.centred.f_narrow(0, start, length)?.f_unsqueeze(2)?;
            let seen = projected.centred.f_view([length, n as i64, -1])?;
            let cross = on_host(&seen.f_matmul(&centred)?.f_flatten(0, -1)?)?;
            let targets = Vec::<i64>::try_from(&of_text.targets.f_narrow(0, start, length)?)?;
            let targets: Vec<i64> = targets.into_iter().flat_map(|t| repeat_n(t, n)).collect();
            let u_at = projected.logits.each_at(&Tensor::f_from_slice(&targets)?)?;
            let u_dots = self.pairs.dots(&projected.logits)?;
            let job = |(number, row): (usize, usize)| {
                let of_row = number * n..(number + 1) * n;
                Block {
                    rows: &of_text.terms,
                    at: row..row + 1,
                    change: &ones,
                    norm2: &projected.norm2[of_row.clone()],
                    u_dots: &u_dots[of_row.clone()],
                    u_at: &u_at[of_row.clone()],
                    cross: &cross[of_row],
                    spreads: &[],
                }
            };
            let jobs: Vec<Block<'_>> = range.clone().enumerate().map(job).collect();
            let prepared = &of_text.prepared;
            let measured =
                engines.measure_each(&self.pairs, &jobs, prepared, &projected, &|_| ())?;
            for (number, (row, measured)) in range.zip(measured).enumerate() {
                let values = measured.map_err(|bad| {
                    let Row { sequence, pos, .. } = of_text.terms.row(row);
                    AblateError::NotFiniteChange {
                        component: replaced[bad.direction].name.clone(),
                        sequence,
                        pos,
                    }
                })?;
                for (i, values) in values.chunks(per_pair).enumerate() {
                    let pair = i * n_rows + row;
                    all.values[pair * per_pair..(pair + 1) * per_pair].copy_from_slice(values);
                    norms[pair] = projected.norm2[number * n + i].sqrt();
                }
                if self.plan.ranks {
                    let of_row = projected.part(number * n..(number + 1) * n)?;
                    let (job, targets) = (&jobs[number], &of_text.targets);
                    let ranks =
                        engines.ranks(&self.pairs, job, prepared, Some(&of_row), targets)?;
                    for (i, rank) in ranks.into_iter().enumerate() {
                        all_ranks[i * n_rows + row] = rank;
                    }
                }
            }
        }
        Ok((all, all_ranks, norms))
    }

    fn clean_ranks(
        &self,
        engines: &Engines,
        of_text: &OfText<'_>,
        n_rows: usize,
    ) -> Result<Vec<u32>, AblateError> {
        let rows = Block {
            rows: &of_text.terms,
            at: 0..n_rows,
            change: &[],
            norm2: &[],
            u_dots: &[],
            u_at: &[],
            cross: &[],
            spreads: &[],
        };
        let (prepared, targets) = (&of_text.prepared, &of_text.targets);
        Ok(engines.ranks(&self.pairs, &rows, prepared, None, targets)?)
    }

    /// How many copies of texts run on at once, within a quarter of the memory each for the blocks and for the vocabulary.
    fn copies(&self, model: &Model) -> usize {
        let memory = self.plan.memory_budget / 4;
        copies(model, self.sample, &self.plan.sequences, memory)
    }

    /// Sums of effects before the first row.
    pub(crate) fn no_effects(&self) -> EffectSums {
        EffectSums::new(
            self.sample.n_clusters(&self.plan.sequences),
            self.pairs.keys().clone(),
        )
    }

    fn neurons_without_rows(
        &self,
        model: &Model,
        neurons: &[NeuronId],
        means: &LayerMeans,
    ) -> Result<Vec<NeuronEffects>, AblateError> {
        let empty = self.no_effects();
        let mut effects = Vec::with_capacity(neurons.len());
        for of_layer in neurons.chunk_by(|a, b| a.layer == b.layer) {
            let layer = of_layer[0].layer;
            let norms = output_norms(model, layer)?;
            let means = means.neurons(layer).unwrap_or_default();
            effects.extend(of_layer.iter().map(|n| NeuronEffects {
                layer,
                neuron: n.neuron,
                mean_activation: means[n.neuron],
                w_out_norm: norms[n.neuron],
                effects: empty.clone(),
            }));
        }
        Ok(effects)
    }
}

impl Ran<'_> {
    /// Activations of neurons of a layer in the unchanged model, `[neuron][row]`.
    fn activations(&self, layer: usize, neurons: &[usize]) -> Result<Vec<f64>, AblateError> {
        let post = self.captured.at(Site::MlpPost(layer))?;
        let places = |places: &mut dyn Iterator<Item = usize>| {
            let places: Vec<i64> = places.map(|place| place as i64).collect();
            Tensor::f_from_slice(&places)?.f_to_device(post.device())
        };
        let rows = places(&mut self.rows.iter().map(|row| row.pos))?;
        let neurons = places(&mut neurons.iter().copied())?;
        let chosen = post.f_get(self.text as i64)?.f_index_select(0, &rows)?;
        Ok(on_host(&chosen.f_index_select(1, &neurons)?.f_tr()?)?)
    }

    /// Adds the rows of each replacement to its sums; the quantity of a row is the length of its change.
    pub(crate) fn add_to<'e>(&self, effects: impl Iterator<Item = &'e mut EffectSums>) {
        let n_rows = self.rows.len();
        let (m, per_pair) = (
            self.clean.len() / n_rows,
            self.measured.values.len() / self.norms.len(),
        );
        for (i, effects) in effects.enumerate() {
            for row in 0..n_rows {
                let pair = i * n_rows + row;
                let after = &self.measured.values[pair * per_pair..(pair + 1) * per_pair];
                let (clean, in_bands) = (&self.clean[row * m..(row + 1) * m], &self.in_bands[row]);
                effects.add(self.cluster, clean, after, self.norms[pair], in_bands);
                if let Some(ranks) = &self.ranks {
                    let change = f64::from(ranks.ablated[pair]) - f64::from(ranks.clean[row]);
                    effects.add_rank(self.cluster, change, in_bands);
                }
            }
        }
    }
}
