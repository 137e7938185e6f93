//! Sets of neurons changed together, at several doses: the curve of effect against group size (methods, section 13).

use std::{fmt, ops::Range};

use tch::{Kind, Tensor};
use vocabulary_sums::Direction;

use crate::{
    AblateError, Dose, LayerMeans, NeuronId, Row, Sweep,
    effects::EffectSums,
    engine::blocks,
    engine::{Directions, Engine, EngineOptions, Engines, Prepared},
    error::distinct,
    pairs::{Block, RowTerms},
    progress::Tick,
    replaced::Replaced,
    row_logits::{Dots, RowLogits},
    sweep::chunk_by_sequence,
    vectors::{Vectors, on_host},
};

/// Bytes of changes at once: enough rows for all threads, and no more than stays in a cache before it is read again.
const AT_ONCE: usize = 16 << 20;

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
        let d_model = self.unembedding.w_u().size()[1] as usize;
        let rows_at_once = (vectors / 2 / engines.vectors_per_row()).max(1);
        let mut results = self.without_rows(lists, doses);
        let (all_rows, _) = self.sample.rows(&self.plan.sequences)?;
        let of_list = |list| OfList::new(self, list, mean, vectors / 4);
        // All lists at once if they fit, otherwise each anew for some rows.
        let n_neurons: usize = lists.iter().map(|list| list.ranked.len()).sum();
        let kept: Vec<OfList<'_>> = match n_neurons <= vectors / 4 {
            true => lists.iter().map(of_list).collect::<Result<_, _>>()?,
            false => Vec::new(),
        };
        for rows in chunk_by_sequence(&all_rows, rows_at_once) {
            let (resid, activations) = self.states(rows)?;
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
                targets: self.pairs.target_places(rows)?,
                terms,
                prepared,
                centred,
                activations,
            };
            let mut first = 0;
            for (number, list) in lists.iter().enumerate() {
                let sets = list.sizes.len() * doses.len();
                let made;
                let of_list = match kept.get(number) {
                    Some(kept) => kept,
                    None => {
                        made = of_list(list)?;
                        &made
                    }
                };
                let at_once = match (engines.kernel(), &of_list.logits) {
                    (Some(_), Some(_)) => AT_ONCE / (8 * d_model * sets.max(1)),
                    _ => vectors / 4 / sets.max(1),
                };
                for range in blocks(rows.len(), at_once.max(1)) {
                    let changes = Changes::new(self, of_list, &of_rows, range, doses)?;
                    let results = &mut results[first..first + sets];
                    self.add_changes(&engines, &of_rows, of_list, &changes, results, progress)?;
                }
                first += sets;
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
        engines: &Engines,
        of_rows: &OfRows<'_>,
        of_list: &OfList<'_>,
        changes: &Changes,
        results: &mut [SetEffects],
        progress: &(dyn Fn(Tick) + Sync),
    ) -> Result<(), AblateError> {
        let (m, sets) = (self.measures().len(), results.len());
        let prepared = &of_rows.prepared;
        let targets =
            of_rows
                .targets
                .f_narrow(0, changes.rows.start as i64, changes.rows.len() as i64)?;
        let along = match &of_list.logits {
            Some(u) if engines.kernel().is_some() => {
                Some((u, changes.along(of_list, u, &targets)?))
            }
            _ => None,
        };
        let (projected, at_target, dots);
        let (at_target, dots): (&[f64], &[Dots]) = match &along {
            Some((_, along)) => {
                projected = None;
                (&along.at_target, &along.dots)
            }
            None => {
                let d_model = changes.delta.size()[2];
                let made = self
                    .unembedding
                    .project(&changes.delta.f_view([-1, d_model])?)?;
                let each = Vec::<i64>::try_from(&targets)?.into_iter();
                let each: Vec<i64> = each.flat_map(|t| std::iter::repeat_n(t, sets)).collect();
                at_target = made.logits.each_at(&Tensor::f_from_slice(&each)?)?;
                dots = self.pairs.dots(&made.logits)?;
                projected = Some(made);
                (&at_target, &dots)
            }
        };
        let ones = vec![1.0; sets];
        let job = |(number, row): (usize, usize)| {
            let of_row = number * sets..(number + 1) * sets;
            Block {
                rows: &of_rows.terms,
                at: row..row + 1,
                change: &ones,
                norm2: &changes.norm2[of_row.clone()],
                u_dots: &dots[of_row.clone()],
                u_at: &at_target[of_row.clone()],
                cross: &changes.cross[of_row],
                spreads: &[],
            }
        };
        let jobs: Vec<Block<'_>> = changes.rows.clone().enumerate().map(job).collect();
        let measured = match (&projected, &along, engines.kernel()) {
            (None, Some(((u, _), along)), Some(kernel)) => {
                let d_vocab = self.pairs.layout().d_vocab();
                let vectors: Vec<_> = u.host()?.chunks(d_vocab).collect();
                let vectors: Vec<_> = vectors.iter().map(|u| kernel.vector(u)).collect();
                let (sizes, n_neurons) = (&of_list.list.sizes, of_list.mean.len());
                let directions = along.directions(sizes, n_neurons, sets / sizes.len());
                engines.measure_sums(
                    &self.pairs,
                    &jobs,
                    prepared,
                    &vectors,
                    &directions,
                    progress,
                )
            }
            (Some(made), ..) => {
                engines.measure_each(&self.pairs, &jobs, prepared, made, progress)?
            }
            _ => Vec::new(),
        };
        let clusters = self.sample.clusters(&self.plan.sequences);
        for (number, (row, measured)) in changes.rows.clone().zip(measured).enumerate() {
            let Row { sequence, pos, .. } = of_rows.rows[row];
            let values = measured.map_err(|at| AblateError::Set {
                name: of_list.list.name.clone(),
                what: format!(
                    "changing its first {} neurons at sequence {sequence}, position {pos} gives logits that are not finite: audit the weights and activations, or choose a smaller dose",
                    results[at.direction].size
                ),
            })?;
            let slot = self.plan.sequences.iter().position(|s| *s == sequence);
            let cluster = slot.map_or(0, |place| clusters[place]);
            let clean = &of_rows.terms.measures[row * m..(row + 1) * m];
            let in_bands = self.in_bands(&of_rows.rows[row]);
            let each = values.chunks(self.pairs.per_pair());
            let each = each.zip(&changes.norm2[number * sets..]);
            for (result, (after, norm2)) in results.iter_mut().zip(each) {
                let length = norm2.sqrt();
                result.effects.add(cluster, clean, after, length, &in_bands);
            }
        }
        Ok(())
    }
}

/// The rows of one pass.
struct OfRows<'r> {
    rows: &'r [Row],
    terms: RowTerms<'r>,
    prepared: Prepared<'r>,
    /// `x_c`, `[row, d_model]`.
    centred: Tensor,
    /// `[row, d_mlp]`
    activations: Tensor,
    /// What a norm behind the MLP sees of its output, `[row, d_model]`, f64.
    m_c: Option<Tensor>,
    /// `[row]`
    targets: Tensor,
}

/// The neurons of a list.
struct OfList<'l> {
    list: &'l NestedSets,
    ids: Tensor,
    /// `[neuron]`
    mean: Vec<f64>,
    /// What the final norm sees of the output weights, or the norm behind the MLP if there is one: `[neuron, d_model]`, f64.
    centred: Tensor,
    /// `u`, `[neuron, d_vocab]`, with its dot products; without it changes go through `W_U` themselves.
    logits: Option<(Vectors, Vec<Dots>)>,
}

impl<'l> OfList<'l> {
    /// Keeps the neurons' logits if they are no more than `limit` vectors over the vocabulary.
    fn new(
        sweep: &Sweep<'_>,
        list: &'l NestedSets,
        mean: &[f64],
        limit: usize,
    ) -> Result<Self, AblateError> {
        let ids: Vec<i64> = list.ranked.iter().map(|&n| n as i64).collect();
        let ids = Tensor::f_from_slice(&ids)?;
        let of_list = |of_all: &Tensor| of_all.f_index_select(0, &ids);
        let weights = of_list(sweep.write.directions())?;
        let (centred, logits) = if let Some(norm) = sweep.write.norm() {
            (of_list(norm.w_c())?, None)
        } else if list.ranked.len() <= limit {
            let projected = sweep.unembedding.project(&weights)?;
            let dots = sweep.pairs.dots(&projected.logits)?;
            (projected.centred, Some((projected.logits, dots)))
        } else {
            let centred = sweep.unembedding.readout().seen(&weights)?;
            (centred.f_to_device(sweep.unembedding.w_u().device())?, None)
        };
        Ok(Self {
            list,
            ids,
            mean: list.ranked.iter().map(|&n| mean[n]).collect(),
            centred,
            logits,
        })
    }
}

/// What the sets of a list add to the residual stream of some rows; a set is a (dose, size).
struct Changes {
    rows: Range<usize>,
    /// `D`, `[row][dose][neuron]`.
    change: Vec<f64>,
    /// `delta`, `[row, set, d_model]`, f64.
    delta: Tensor,
    /// `|delta|^2`, `[row][set]`.
    norm2: Vec<f64>,
    /// `x_c . delta`, `[row][set]`.
    cross: Vec<f64>,
}

/// The sets of a list at some rows as sums of the neurons' vectors.
struct Along {
    /// Neuron and its factor, `[row][dose][neuron]`.
    terms: Vec<(usize, f64)>,
    /// Of the sums, `[row][set]`.
    dots: Vec<Dots>,
    /// The sums at the target of the row, `[row][set]`.
    at_target: Vec<f64>,
}

impl Along {
    /// What the kernel shall add up, `[row][set]`: along a list each set goes on from the one before.
    fn directions<'a>(
        &'a self,
        sizes: &'a [usize],
        n_neurons: usize,
        n_doses: usize,
    ) -> Vec<Vec<Direction<'a>>> {
        let of_row = |of_row: &'a [(usize, f64)]| {
            // `[dose][size]`
            let of_doses = of_row.chunks(n_neurons).flat_map(|terms| {
                (0..sizes.len()).map(move |place| match place {
                    0 => Direction::Sum(&terms[..sizes[0]]),
                    _ => Direction::Further {
                        back: 1,
                        terms: &terms[sizes[place - 1]..sizes[place]],
                    },
                })
            });
            of_doses.collect()
        };
        self.terms.chunks(n_neurons * n_doses).map(of_row).collect()
    }
}

impl Changes {
    fn new(
        sweep: &Sweep<'_>,
        of_list: &OfList<'_>,
        of_rows: &OfRows<'_>,
        rows: Range<usize>,
        doses: &[Dose],
    ) -> Result<Self, AblateError> {
        let (start, n_rows) = (rows.start as i64, rows.len() as i64);
        let activations = on_host(
            &of_rows
                .activations
                .f_narrow(0, start, n_rows)?
                .f_index_select(1, &of_list.ids)?,
        )?; // [row, neuron]
        let n_neurons = of_list.mean.len();
        let change: Vec<f64> = activations
            .chunks(n_neurons)
            .flat_map(|of_row| doses.iter().map(move |dose| (of_row, dose)))
            .flat_map(|(of_row, dose)| {
                let each = of_row.iter().zip(&of_list.mean);
                each.map(|(&a, &mean)| dose.change(a, mean))
            })
            .collect();
        let factors = Tensor::f_from_slice(&change)?
            .f_view([-1, n_neurons as i64])?
            .f_to_device(of_list.centred.device())?; // [row and dose, neuron]
        // [row and dose, size, width], which is [row, set, width].
        let of_sets = |sums: &[Tensor]| {
            let stacked = Tensor::f_stack(sums, 1)?;
            let width = stacked.size()[2];
            stacked.f_view([n_rows, -1, width])
        };
        let sizes = &of_list.list.sizes;
        let delta = of_sets(&along(&factors, &of_list.centred, sizes)?)?;
        let delta = match (sweep.write.norm(), &of_rows.m_c) {
            (Some(norm), Some(m_c)) => {
                let change = norm.change(&m_c.f_narrow(0, start, n_rows)?, &delta)?;
                let seen = sweep.unembedding.readout().seen(&change)?;
                seen.f_to_device(of_rows.centred.device())?
            }
            _ => delta,
        };
        let x = of_rows.centred.f_narrow(0, start, n_rows)?.f_unsqueeze(1)?;
        let cross = on_host(
            &delta
                .f_mul(&x)?
                .f_sum_dim_intlist(-1, false, Kind::Double)?,
        )?;
        let norm2 = on_host(
            &delta
                .f_square()?
                .f_sum_dim_intlist(-1, false, Kind::Double)?,
        )?;
        Ok(Self {
            rows,
            change,
            delta,
            norm2,
            cross,
        })
    }

    /// The same as sums of the neurons' vectors `u`; `targets` are places of the layout, `[row]`.
    fn along(
        &self,
        of_list: &OfList<'_>,
        (u, of_neurons): &(Vectors, Vec<Dots>),
        targets: &Tensor,
    ) -> Result<Along, AblateError> {
        let (n_rows, n_neurons, sizes) = (self.rows.len(), of_neurons.len(), &of_list.list.sizes);
        let at = u.at(targets)?; // [neuron][row]
        let n_doses = self.change.len() / (n_rows * n_neurons);
        let (mut dots, mut at_target) = (Vec::new(), Vec::new());
        for (number, factors) in self.change.chunks(n_neurons).enumerate() {
            let row = number / n_doses;
            for &size in sizes {
                dots.push(Dots::sum(&factors[..size], &of_neurons[..size]));
                let of_row = at.iter().skip(row).step_by(n_rows);
                let each = factors[..size].iter().zip(of_row);
                at_target.push(each.map(|(factor, at)| factor * at).sum());
            }
        }
        let each = self.change.iter().enumerate();
        Ok(Along {
            terms: each.map(|(i, &factor)| (i % n_neurons, factor)).collect(),
            dots,
            at_target,
        })
    }
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
