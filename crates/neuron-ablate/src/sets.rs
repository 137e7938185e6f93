//! Sets of neurons changed together, at several doses: the curve of effect against group size (methods, section 13).

use std::{collections::BTreeSet, fmt, ops::Range};

use rayon::prelude::*;
use tch::{Kind, Tensor};
use vocabulary_sums::{Direction, Vector};

use crate::{
    AblateError, Dose, LayerMeans, NeuronId, Row, Sweep,
    closed_form::Projected,
    effects::EffectSums,
    engine::blocks,
    engine::{Directions, Engine, EngineOptions, Engines, Prepared},
    error::distinct,
    pairs::{Block, RowTerms},
    product::product,
    progress::Tick,
    replaced::Replaced,
    row_logits::{Dots, RowLogits},
    sweep::chunk_by_sequence,
    vectors::{Vectors, on_host},
};

/// A ranked list of neurons, and how many of its first ones make a set: nested sets. Neurons are numbers in the last MLP layer, or
/// [`NeuronId`]s of any layers.
///
/// # Examples
/// ```
/// use neuron_ablate::NestedSets;
/// let sets = NestedSets::doubling("selected", vec![193, 105, 19, 7, 40])?;
/// assert_eq!(sets.sizes(), [1, 2, 4, 5]);
/// assert_eq!(sets.set(2), [193, 105]);
/// assert!(NestedSets::new("selected", vec![193, 193], vec![2]).is_err());
/// // Of any layers:
/// let ids = vec!["0.12".parse()?, "3.193".parse()?];
/// let sets = NestedSets::<neuron_ablate::NeuronId>::whole("two layers", ids)?;
/// assert!(sets.in_layer(3).is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NestedSets<N = usize> {
    name: String,
    ranked: Vec<N>,
    sizes: Vec<usize>,
}

/// Effects of changing one set of neurons, all by the same dose.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SetEffects {
    /// Index of the list that the set is the beginning of.
    pub list: usize,
    /// Number of neurons in the set.
    pub size: usize,
    /// What each of their activations is replaced by.
    pub dose: Dose,
    /// The measured changes.
    pub effects: EffectSums,
}

impl<N: Copy + Ord + fmt::Display> NestedSets<N> {
    /// Takes a ranked list, best first, and the sizes of the sets.
    ///
    /// # Errors
    /// - [`AblateError::Set`] for an empty list, a neuron that stands twice, or sizes that are not ascending, from 1 to the length of
    ///   the list
    pub fn new(
        name: impl Into<String>,
        ranked: Vec<N>,
        sizes: Vec<usize>,
    ) -> Result<Self, AblateError> {
        let name = name.into();
        let refuse = |name: &str, what: String| AblateError::Set {
            name: name.to_owned(),
            what,
        };
        let mut sorted = ranked.clone();
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(refuse(&name, format!("neuron {} stands twice", pair[0])));
        }
        if ranked.is_empty() || sizes.is_empty() {
            return Err(refuse(&name, "it holds no neuron, or no size".into()));
        }
        if let Some(&size) = sizes.iter().find(|s| !(1..=ranked.len()).contains(s)) {
            return Err(refuse(
                &name,
                format!(
                    "a set of {size} is asked for, but the list has {} neurons: choose sizes from 1 to {}",
                    ranked.len(),
                    ranked.len()
                ),
            ));
        }
        if !sizes.is_sorted_by(|a, b| a < b) {
            return Err(refuse(&name, format!("sizes {sizes:?} are not ascending")));
        }
        Ok(Self {
            name,
            ranked,
            sizes,
        })
    }

    /// One set: all of the neurons together.
    ///
    /// # Errors
    /// - as [`NestedSets::new`]
    pub fn whole(name: impl Into<String>, neurons: Vec<N>) -> Result<Self, AblateError> {
        let sizes = vec![neurons.len()];
        Self::new(name, neurons, sizes)
    }

    /// Sets of 1, 2, 4, 8, ... neurons, and of all.
    ///
    /// # Errors
    /// - as [`NestedSets::new`]
    pub fn doubling(name: impl Into<String>, ranked: Vec<N>) -> Result<Self, AblateError> {
        let sizes = std::iter::successors(Some(1), |size| Some(size * 2))
            .take_while(|size| *size < ranked.len())
            .chain([ranked.len()])
            .collect();
        Self::new(name, ranked, sizes)
    }

    /// The name, for tables.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The neurons, best first.
    pub fn ranked(&self) -> &[N] {
        &self.ranked
    }

    /// The sizes, ascending.
    pub fn sizes(&self) -> &[usize] {
        &self.sizes
    }

    /// The set of the first `size` neurons, or of all if there are fewer.
    pub fn set(&self, size: usize) -> &[N] {
        &self.ranked[..size.min(self.ranked.len())]
    }
}

impl NestedSets<NeuronId> {
    /// The same sets as numbers in a layer, if all neurons are in it.
    pub fn in_layer(&self, layer: usize) -> Option<NestedSets> {
        let index = |n: &NeuronId| (n.layer == layer).then_some(n.neuron);
        Some(NestedSets {
            name: self.name.clone(),
            ranked: self.ranked.iter().map(index).collect::<Option<_>>()?,
            sizes: self.sizes.clone(),
        })
    }
}

impl SetEffects {
    /// Mean over the rows of the length of the change of the residual stream, minus its mean over d_model: how hard the set was pushed.
    pub fn change_norm(&self) -> f64 {
        self.effects.row_quantity()
    }
}

impl Sweep<'_> {
    /// Number of (set, dose, row) triples that [`Sweep::run_sets`] or [`Sweep::run_sets_on`] measures.
    ///
    /// # Errors
    /// - as [`Sample::rows`](crate::Sample::rows)
    pub fn set_pairs<N>(
        &self,
        lists: &[NestedSets<N>],
        doses: &[Dose],
    ) -> Result<usize, AblateError> {
        distinct("dose", doses)?;
        let sets: usize = lists.iter().map(|list| list.sizes.len()).sum();
        Ok(self.sample.rows(&self.plan.sequences)?.0.len() * sets * doses.len())
    }

    /// Changes the neurons of each set together, at each dose, at the rows of the plan; the plan's own neurons and dose play no part.
    ///
    /// For row `t` and set `S` the residual stream changes by `delta_t = sum_{n in S} D_{t,n} w_n`, where `D` follows from the dose and
    /// from `mean`, the mean activations of the whole layer (`[d_mlp]`, [`Effects::mean_activations`](crate::Effects)). The closed
    /// form holds for that one change as it does for a neuron: nothing is approximated, and a set of one is the neuron itself. The
    /// logits `sum_n D_{t,n} u_n` are added up along a list, so that a set costs what it has more than the set before it.
    ///
    /// Sums over the vocabulary are exact ones, whatever engine the plan names. One forward per sequence serves all sets and doses;
    /// `progress` hears of [`Tick::Pairs`], a pair being one set at one dose at one row.
    ///
    /// Returns `[list][dose][size]`.
    ///
    /// # Errors
    /// - [`AblateError::NoSuchNeuron`] for a neuron past the layer
    /// - [`AblateError::Repeated`] for a dose that stands twice
    /// - [`AblateError::Set`] if `mean` is not one value per neuron, or logits after a change are not finite
    /// - [`AblateError::Torch`] if libtorch fails
    ///
    /// # Examples
    /// ```no_run
    /// # fn curve(sweep: &neuron_ablate::Sweep<'_>) -> Result<(), neuron_ablate::AblateError> {
    /// use neuron_ablate::{Dose, Measure, NestedSets, Variant};
    ///
    /// let effects = sweep.run()?;
    /// let lists = [NestedSets::doubling("selected", vec![193, 105, 19, 7, 40])?];
    /// let doses = [Dose::Mean, Dose::Scale(0.5)];
    /// for set in sweep.run_sets(&lists, &doses, &effects.mean_activations, &|_| ())? {
    ///     let change = set.effects.change(Variant::Total, Measure::Loss)?;
    ///     println!("{} neurons, {:?}: {:+.4} nats", set.size, set.dose, change.mean);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn run_sets(
        &self,
        lists: &[NestedSets],
        doses: &[Dose],
        mean: &[f64],
        progress: &(dyn Fn(Tick) + Sync),
    ) -> Result<Vec<SetEffects>, AblateError> {
        distinct("dose", doses)?;
        let d_mlp = self.write.w_out().size()[0] as usize;
        for list in lists {
            if let Some(&neuron) = list.ranked.iter().find(|&&n| n >= d_mlp) {
                return Err(AblateError::NoSuchNeuron {
                    neuron,
                    last: d_mlp - 1,
                });
            }
            if mean.len() != d_mlp {
                return Err(AblateError::Set {
                    name: list.name.clone(),
                    what: format!(
                        "{} mean activations are given, but the layer has {d_mlp} neurons",
                        mean.len()
                    ),
                });
            }
        }
        let options = EngineOptions {
            engine: Engine::Exact,
            ..self.plan.engine
        };
        let memory = self.plan.memory_budget / 4;
        let n_sets: usize = lists.iter().map(|list| list.sizes.len()).sum();
        let readout = (self.unembedding.w_u(), self.unembedding.scale());
        let sets = (n_sets, Directions::Sums);
        let engines = Engines::new(&self.pairs, readout, options, sets, memory)?;
        let vectors = self.plan.memory_budget / (4 * self.pairs.layout().d_vocab());
        let rows_at_once = (vectors / 2 / engines.vectors_per_row()).max(1);
        let mut results = self.without_rows(lists, doses);
        let (all_rows, _) = self.sample.rows(&self.plan.sequences)?;
        let clusters = self.sample.cluster_of(&self.plan.sequences);
        let batches = batches(lists, vectors / 4);
        let of_batch = |batch: &Range<usize>| {
            OfNeurons::new(self, &engines, &lists[batch.clone()], mean, vectors / 4)
        };
        // All at once if they fit, otherwise each batch anew for some rows.
        let kept = match batches.as_slice() {
            [all] => Some(of_batch(all)?),
            _ => None,
        };
        for rows in chunk_by_sequence(&all_rows, rows_at_once) {
            let (resid, activations) = self.states_at(rows)?;
            let of_rows = self.unembedding.project(&resid)?;
            let centred = of_rows.centred;
            let scale = self.unembedding.scale();
            let logits =
                RowLogits::new(of_rows.logits, &of_rows.norm2, scale, self.unembedding.b())?;
            let prepared = engines.prepare(&logits)?;
            let sums = prepared.sums();
            let terms = self.pairs.rows(rows, of_rows.norm2, scale, &logits, sums)?;
            let m_c = self
                .write
                .norm()
                .map(|norm| norm.m_c(&activations))
                .transpose()?;
            let of_rows = OfRows {
                m_c,
                rows,
                clusters: rows.iter().map(|row| clusters[&row.sequence]).collect(),
                targets: Vec::try_from(self.pairs.target_places(rows)?)?,
                terms,
                prepared,
                centred,
                activations: on_host(&activations)?,
            };
            let mut left = results.as_mut_slice();
            for batch in &batches {
                let made;
                let of_neurons = match &kept {
                    Some(kept) => kept,
                    None => {
                        made = of_batch(batch)?;
                        &made
                    }
                };
                let along = of_neurons.along_rows(&engines, &of_rows)?;
                for list in &lists[batch.clone()] {
                    let sets = list.sizes.len() * doses.len();
                    let (of_list, rest) = std::mem::take(&mut left).split_at_mut(sets);
                    left = rest;
                    let at = (&engines, &of_rows, list);
                    if let Some(along) = &along {
                        let changes = along.changes(of_neurons, &of_rows, list, doses);
                        self.add_changes(at, &changes, of_list, progress)?;
                        continue;
                    }
                    for rows in blocks(rows.len(), (vectors / 4 / sets.max(1)).max(1)) {
                        let changes = self.changes(of_neurons, &of_rows, list, rows, doses)?;
                        self.add_changes(at, &changes, of_list, progress)?;
                    }
                }
            }
        }
        Ok(results)
    }

    /// Changes the neurons of each set together, of any layers, at each dose and at every position, and runs the model on from the
    /// first layer that has one. A neuron of a later layer is changed as it is by then: its dose is of its activation in the changed
    /// model. Sets of the last layer have the effects that [`Sweep::run_sets`] gives them in closed form.
    ///
    /// `means` are those of all layers that have neurons. Returns `[list][dose][size]`; `progress` hears of [`Tick::Pairs`].
    ///
    /// # Errors
    /// - [`AblateError::Repeated`] for a dose that stands twice
    /// - as [`Sweep::run_neurons`]
    pub fn run_sets_on(
        &self,
        lists: &[NestedSets<NeuronId>],
        doses: &[Dose],
        means: &LayerMeans,
        progress: &(dyn Fn(Tick) + Sync),
    ) -> Result<Vec<SetEffects>, AblateError> {
        distinct("dose", doses)?;
        let model = self.model("changing neurons of any layer")?;
        let mut results = self.without_rows(lists, doses);
        let mut replaced = Vec::with_capacity(results.len());
        for &SetEffects {
            list, size, dose, ..
        } in &results
        {
            let list = &lists[list];
            let name = format!("the first {size} neurons of `{}`", list.name);
            replaced.push(Replaced::neurons(model, name, list.set(size), dose, means)?);
        }
        self.run_on(&replaced, &[], progress, &mut |ran| {
            let of_batch = results[ran.range.clone()].iter_mut();
            ran.add_to(of_batch.map(|set| &mut set.effects));
            Ok(())
        })?;
        Ok(results)
    }

    /// The results before the first row.
    fn without_rows<N>(&self, lists: &[NestedSets<N>], doses: &[Dose]) -> Vec<SetEffects> {
        let empty = self.no_effects();
        let mut results = Vec::new();
        for (number, list) in lists.iter().enumerate() {
            for &dose in doses {
                results.extend(list.sizes.iter().map(|&size| SetEffects {
                    list: number,
                    size,
                    dose,
                    effects: empty.clone(),
                }));
            }
        }
        results
    }

    /// Measures the changes of a list's sets, and adds them to `results`, `[dose][size]`.
    fn add_changes(
        &self,
        (engines, of_rows, list): (&Engines, &OfRows<'_>, &NestedSets),
        changes: &Changes<'_>,
        results: &mut [SetEffects],
        progress: &(dyn Fn(Tick) + Sync),
    ) -> Result<(), AblateError> {
        let (m, sets) = (self.measures().len(), results.len());
        let ones = vec![1.0; sets];
        let job = |(number, row): (usize, usize)| {
            let of_row = number * sets..(number + 1) * sets;
            Block {
                rows: &of_rows.terms,
                at: row..row + 1,
                change: &ones,
                norm2: &changes.norm2[of_row.clone()],
                u_dots: &changes.dots[of_row.clone()],
                u_at: &changes.at_target[of_row.clone()],
                cross: &changes.cross[of_row],
                spreads: &[],
            }
        };
        let jobs: Vec<Block<'_>> = changes.rows.clone().enumerate().map(job).collect();
        let prepared = &of_rows.prepared;
        let measured = match &changes.logits {
            Logits::Sums(terms, vectors) => {
                let directions = directions(terms, list, sets);
                engines.measure_sums(&self.pairs, &jobs, prepared, vectors, &directions, progress)
            }
            Logits::Own(made) => {
                engines.measure_each(&self.pairs, &jobs, prepared, made, progress)?
            }
        };
        for (number, (row, measured)) in changes.rows.clone().zip(measured).enumerate() {
            let Row { sequence, pos, .. } = of_rows.rows[row];
            let values = measured.map_err(|at| AblateError::Set {
                name: list.name.clone(),
                what: format!(
                    "changing its first {} neurons at sequence {sequence}, position {pos} gives logits that are not finite: audit the weights and activations, or choose a smaller dose",
                    results[at.direction].size
                ),
            })?;
            let clean = &of_rows.terms.measures[row * m..(row + 1) * m];
            let in_bands = self.in_bands(&of_rows.rows[row]);
            let each = values.chunks(self.pairs.per_pair());
            let each = each.zip(&changes.norm2[number * sets..]);
            for (result, (after, norm2)) in results.iter_mut().zip(each) {
                let length = norm2.sqrt();
                result
                    .effects
                    .add(of_rows.clusters[row], clean, after, length, &in_bands);
            }
        }
        Ok(())
    }

    /// What a list's sets do at some rows, by way of `W_U`.
    fn changes(
        &self,
        of_neurons: &OfNeurons,
        of_rows: &OfRows<'_>,
        list: &NestedSets,
        rows: Range<usize>,
        doses: &[Dose],
    ) -> Result<Changes<'static>, AblateError> {
        let (start, n_rows) = (rows.start as i64, rows.len() as i64);
        let places = of_neurons.places(list);
        let factors: Vec<f64> = rows
            .clone()
            .flat_map(|row| doses.iter().map(move |&dose| (row, dose)))
            .flat_map(|(row, dose)| of_neurons.factors(&places, of_rows, row, dose))
            .collect();
        let ids: Vec<i64> = places.iter().map(|&place| place as i64).collect();
        let ids = Tensor::f_from_slice(&ids)?.f_to_device(of_neurons.centred.device())?;
        let weights = of_neurons.centred.f_index_select(0, &ids)?;
        let factors = Tensor::f_from_slice(&factors)?
            .f_view([-1, places.len() as i64])?
            .f_to_device(weights.device())?; // [row and dose, neuron]
        let sums = Tensor::f_stack(&along(&factors, &weights, &list.sizes)?, 1)?;
        // [row and dose, size, d_model], which is [row, set, d_model].
        let delta = sums.f_view([n_rows, -1, sums.size()[2]])?;
        let delta = match (self.write.norm(), &of_rows.m_c) {
            (Some(norm), Some(m_c)) => {
                let change = norm.change(&m_c.f_narrow(0, start, n_rows)?, &delta)?;
                let seen = self.unembedding.readout().seen(&change)?;
                seen.f_to_device(of_rows.centred.device())?
            }
            _ => delta,
        };
        let x = of_rows.centred.f_narrow(0, start, n_rows)?.f_unsqueeze(1)?;
        let dots =
            |products: Tensor| on_host(&products.f_sum_dim_intlist(-1, false, Kind::Double)?);
        let (cross, norm2) = (dots(delta.f_mul(&x)?)?, dots(delta.f_square()?)?);
        let (_, sets, d_model) = delta.size3()?;
        let made = self.unembedding.project(&delta.f_view([-1, d_model])?)?;
        let targets = of_rows.targets[rows.clone()].iter();
        let each: Vec<i64> = targets
            .flat_map(|&t| std::iter::repeat_n(t, sets as usize))
            .collect();
        Ok(Changes {
            rows,
            norm2,
            cross,
            dots: self.pairs.dots(&made.logits)?,
            at_target: made.logits.each_at(&Tensor::f_from_slice(&each)?)?,
            logits: Logits::Own(made),
        })
    }
}

/// Neighbouring lists that together have no more than `limit` neurons, or one that has more by itself.
fn batches(lists: &[NestedSets], limit: usize) -> Vec<Range<usize>> {
    let (mut batches, mut start) = (Vec::new(), 0);
    let mut within: BTreeSet<usize> = BTreeSet::new();
    for (number, list) in lists.iter().enumerate() {
        within.extend(&list.ranked);
        if within.len() > limit && number > start {
            batches.push(start..number);
            start = number;
            within = list.ranked.iter().copied().collect();
        }
    }
    batches.push(start..lists.len());
    batches
}

/// The rows of one pass.
struct OfRows<'r> {
    rows: &'r [Row],
    /// `[row]`
    clusters: Vec<usize>,
    terms: RowTerms<'r>,
    prepared: Prepared<'r>,
    /// `x_c`, `[row, d_model]`.
    centred: Tensor,
    /// `[row][d_mlp]`
    activations: Vec<f64>,
    /// What a norm behind the MLP sees of its output, `[row, d_model]`, f64.
    m_c: Option<Tensor>,
    /// Places in the layout, `[row]`.
    targets: Vec<i64>,
}

/// The neurons of some lists, each of them once.
struct OfNeurons {
    /// Ascending.
    ids: Vec<usize>,
    mean: Vec<f64>,
    /// What the final norm sees of the output weights, or the norm behind the MLP if there is one: `[neuron, d_model]`, f64.
    centred: Tensor,
    /// For the kernel; without it changes go through `W_U` themselves.
    logits: Option<NeuronLogits>,
}

/// What neurons write, as logits.
struct NeuronLogits {
    /// `[neuron, d_vocab]`
    u: Vectors,
    dots: Vec<Dots>,
    /// Products of the centred output weights, `[neuron][neuron]`.
    gram: Vec<f64>,
}

impl OfNeurons {
    /// Makes the neurons' logits if the kernel takes them and they are no more than `limit` vectors over the vocabulary.
    fn new(
        sweep: &Sweep<'_>,
        engines: &Engines,
        lists: &[NestedSets],
        mean: &[f64],
        limit: usize,
    ) -> Result<Self, AblateError> {
        let ids: BTreeSet<usize> = lists
            .iter()
            .flat_map(|list| &list.ranked)
            .copied()
            .collect();
        let ids: Vec<usize> = ids.into_iter().collect();
        let chosen: Vec<i64> = ids.iter().map(|&n| n as i64).collect();
        let chosen = Tensor::f_from_slice(&chosen)?;
        let of_ids = |of_all: &Tensor| of_all.f_index_select(0, &chosen);
        let weights = of_ids(sweep.write.directions())?;
        let (centred, logits) = if let Some(norm) = sweep.write.norm() {
            (of_ids(norm.w_c())?, None)
        } else if engines.kernel().is_some() && ids.len() <= limit {
            let Projected {
                centred, logits: u, ..
            } = sweep.unembedding.project(&weights)?;
            let dots = sweep.pairs.dots(&u)?;
            let gram = on_host(&product(&centred, &centred.f_tr()?)?)?;
            (centred, Some(NeuronLogits { u, dots, gram }))
        } else {
            let centred = sweep.unembedding.readout().seen(&weights)?;
            let device = sweep.unembedding.w_u().device();
            (centred.f_to_device(device)?, None)
        };
        Ok(Self {
            mean: ids.iter().map(|&n| mean[n]).collect(),
            ids,
            centred,
            logits,
        })
    }

    /// Where the neurons of a list are.
    fn places(&self, list: &NestedSets) -> Vec<usize> {
        let place = |neuron: &usize| self.ids.partition_point(|id| id < neuron);
        list.ranked.iter().map(place).collect()
    }

    /// `D` of some neurons at a row.
    fn factors(
        &self,
        places: &[usize],
        of_rows: &OfRows<'_>,
        row: usize,
        dose: Dose,
    ) -> impl Iterator<Item = f64> {
        let d_mlp = of_rows.activations.len() / of_rows.rows.len();
        let activations = &of_rows.activations[row * d_mlp..(row + 1) * d_mlp];
        let factor =
            move |&place: &usize| dose.change(activations[self.ids[place]], self.mean[place]);
        places.iter().map(factor)
    }

    /// What the kernel needs to add up the neurons' logits at some rows; nothing where changes go through `W_U`.
    fn along_rows<'n>(
        &'n self,
        engines: &Engines,
        of_rows: &OfRows<'_>,
    ) -> Result<Option<AlongRows<'n>>, AblateError> {
        let (Some(kernel), Some(logits)) = (engines.kernel(), &self.logits) else {
            return Ok(None);
        };
        let u = logits.u.host()?;
        let d_vocab = (u.len() / self.ids.len().max(1)).max(1);
        Ok(Some(AlongRows {
            logits,
            u,
            d_vocab,
            vectors: u.par_chunks(d_vocab).map(|u| kernel.vector(u)).collect(),
            cross: on_host(&product(&of_rows.centred, &self.centred.f_tr()?)?)?,
        }))
    }
}

/// The logits of neurons, and how the neurons meet some rows.
struct AlongRows<'n> {
    logits: &'n NeuronLogits,
    /// `[neuron][d_vocab]`
    u: &'n [f32],
    d_vocab: usize,
    vectors: Vec<Vector<'n>>,
    /// `x_c . w_c`, `[row][neuron]`.
    cross: Vec<f64>,
}

/// What the sets of a list do at some rows; a set is a (dose, size).
struct Changes<'v> {
    rows: Range<usize>,
    /// `|delta|^2` of what they add to the residual stream, `[row][set]`.
    norm2: Vec<f64>,
    /// `x_c . delta`, `[row][set]`.
    cross: Vec<f64>,
    /// Dot products of what they add to the logits, `[row][set]`.
    dots: Vec<Dots>,
    /// The same at the target of the row.
    at_target: Vec<f64>,
    logits: Logits<'v>,
}

/// What a set does at a row, as [`Changes`] has it.
#[derive(Default, Clone)]
struct OfSet {
    norm2: f64,
    cross: f64,
    at_target: f64,
    dots: Dots,
}

/// What sets add to the logits.
enum Logits<'v> {
    /// Sums of the neurons' vectors: place of the neuron and its factor, `[row][dose][neuron]`; and these vectors.
    Sums(Vec<(usize, f64)>, &'v [Vector<'v>]),
    /// `[row and set]`
    Own(Projected),
}

impl AlongRows<'_> {
    /// Of the sets of a list at all rows; along the list each goes on from the one before.
    fn changes(
        &self,
        of_neurons: &OfNeurons,
        of_rows: &OfRows<'_>,
        list: &NestedSets,
        doses: &[Dose],
    ) -> Changes<'_> {
        let places = of_neurons.places(list);
        let rows = 0..of_rows.rows.len();
        let doses_of_rows = rows
            .clone()
            .flat_map(|row| doses.iter().map(move |&dose| (row, dose)));
        // `[row][dose][neuron]`
        let terms: Vec<(usize, f64)> = doses_of_rows
            .flat_map(|(row, dose)| {
                let factors = of_neurons.factors(&places, of_rows, row, dose);
                places.iter().copied().zip(factors)
            })
            .collect();
        // Plain numbers, which threads share.
        let (gram, dots) = (&self.logits.gram, &self.logits.dots);
        let (n_neurons, u, d_vocab) = (dots.len(), self.u, self.d_vocab);
        let of_dose = |(cross, target, terms): (&[f64], i64, &[(usize, f64)])| {
            let mut set = OfSet::default();
            let mut from = 0;
            let of_size = |&size: &usize| {
                for (number, &(place, factor)) in terms[..size].iter().enumerate().skip(from) {
                    let gram = &gram[place * n_neurons..(place + 1) * n_neurons];
                    let before = terms[..number].iter();
                    let before: f64 = before.map(|&(other, by)| by * gram[other]).sum();
                    set.norm2 += factor * (2.0 * before + factor * gram[place]);
                    set.cross += factor * cross[place];
                    set.at_target += factor * f64::from(u[place * d_vocab + target as usize]);
                    set.dots.add(factor, &dots[place]);
                }
                from = size;
                // Rounding may leave less than nothing.
                set.norm2 = set.norm2.max(0.0);
                set.clone()
            };
            list.sizes.iter().map(of_size).collect::<Vec<OfSet>>()
        };
        let each: Vec<_> = terms
            .chunks(places.len())
            .enumerate()
            .map(|(number, terms)| {
                let row = number / doses.len();
                let cross = &self.cross[row * n_neurons..(row + 1) * n_neurons];
                (cross, of_rows.targets[row], terms)
            })
            .collect();
        let sets: Vec<OfSet> = each.into_par_iter().flat_map_iter(of_dose).collect();
        Changes {
            rows,
            norm2: sets.iter().map(|set| set.norm2).collect(),
            cross: sets.iter().map(|set| set.cross).collect(),
            at_target: sets.iter().map(|set| set.at_target).collect(),
            dots: sets.into_iter().map(|set| set.dots).collect(),
            logits: Logits::Sums(terms, &self.vectors),
        }
    }
}

/// What the kernel shall add up, `[row][set]`: along a list each set goes on from the one before. `terms` are `[row][dose][neuron]`.
fn directions<'t>(
    terms: &'t [(usize, f64)],
    list: &NestedSets,
    sets: usize,
) -> Vec<Vec<Direction<'t>>> {
    let (sizes, n_neurons) = (&list.sizes, list.ranked.len());
    let of_row = |of_row: &'t [(usize, f64)]| {
        let of_dose = |terms: &'t [(usize, f64)]| {
            let further = sizes
                .windows(2)
                .map(|pair| Direction::Further(&terms[pair[0]..pair[1]]));
            std::iter::once(Direction::Sum(&terms[..sizes[0]]))
                .chain(further)
                .collect::<Vec<_>>()
        };
        of_row.chunks(n_neurons).flat_map(of_dose).collect()
    };
    terms
        .chunks(n_neurons * (sets / sizes.len()))
        .map(of_row)
        .collect()
}

/// `sum_{n < size} factor_n vector_n` for each size, `[row, width]` each; `factors` is `[row, n]`, `vectors` is `[n, width]`.
fn along(factors: &Tensor, vectors: &Tensor, sizes: &[usize]) -> Result<Vec<Tensor>, AblateError> {
    let mut sums: Vec<Tensor> = Vec::with_capacity(sizes.len());
    let mut from = 0;
    for &size in sizes {
        let (start, length) = (from as i64, (size - from) as i64);
        let factors = factors.f_narrow(1, start, length)?;
        let vectors = vectors.f_narrow(0, start, length)?;
        sums.push(match sums.last() {
            Some(before) => before.f_addmm(&factors, &vectors)?,
            None => factors.f_matmul(&vectors)?,
        });
        from = size;
    }
    Ok(sums)
}
