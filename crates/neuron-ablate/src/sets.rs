//! Sets of neurons changed together, at several doses: the curve of effect against group size (methods, section 13).

use std::{fmt, ops::Range};

use tch::{Kind, Tensor};

use crate::{
    AblateError, Dose, LayerMeans, NeuronId, Row, Sweep,
    closed_form::Projected,
    effects::EffectSums,
    engine::{Engine, EngineOptions, Engines, Prepared},
    error::distinct,
    pairs::{Block, Dots, RowLogits, RowTerms},
    replaced::Replaced,
    sweep::{Tick, blocks, chunk_by_sequence},
    vectors::{Vectors, on_host},
};

/// Bytes of changed logits at once, with what makes them: more would leave the cache before it is measured.
const CACHED: usize = 64 << 20;

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
    /// let effects = sweep.run(&mut |_| Ok(()), &|_| ())?;
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
        let engines = Engines::new(&self.pairs, readout, options, n_sets, memory)?;
        let vectors = self.plan.memory_budget / (4 * self.pairs.layout().d_vocab());
        let most = CACHED / (4 * self.pairs.layout().d_vocab());
        let rows_at_once = (vectors / 2 / engines.vectors_per_row()).max(1);
        let mut results = self.without_rows(lists, doses);
        let (all_rows, _) = self.sample.rows(&self.plan.sequences)?;
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
            for list in lists {
                let sets = list.sizes.len() * doses.len();
                let of_list = OfList::new(self, list, mean, vectors / 4)?;
                let at_once = (vectors.min(most) / 4 / sets.max(1)).max(1);
                for range in blocks(rows.len(), at_once) {
                    let changes = Changes::new(self, &of_list, &of_rows, range, doses)?;
                    let results = &mut results[first..first + sets];
                    self.add_changes(&engines, &of_rows, &of_list, &changes, results, progress)?;
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
        let mut results = self.without_rows(lists, doses);
        let mut replaced = Vec::with_capacity(results.len());
        for &SetEffects {
            list, size, dose, ..
        } in &results
        {
            let list = &lists[list];
            let name = format!("the first {size} neurons of `{}`", list.name);
            replaced.push(Replaced::neurons(
                self.model,
                name,
                list.set(size),
                dose,
                means,
            )?);
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
        let m = self.measures().len();
        let ones = vec![1.0; results.len()];
        let clusters = self.sample.clusters(&self.plan.sequences);
        for (number, row) in changes.rows.clone().enumerate() {
            let OfRow {
                projected,
                dots,
                at_target,
            } = changes.of_row(self, of_list, of_rows, number)?;
            let of_row = number * results.len()..(number + 1) * results.len();
            let block = Block {
                rows: &of_rows.terms,
                at: row..row + 1,
                change: &ones,
                norm2: &projected.norm2,
                u_dots: &dots,
                u_at: &at_target,
                cross: &changes.cross[of_row],
                spreads: &[],
            };
            let measured =
                engines.measure(&self.pairs, &block, &of_rows.prepared, &projected, progress)?;
            let Row { sequence, pos, .. } = of_rows.rows[row];
            let measured = measured.map_err(|at| AblateError::Set {
                name: of_list.list.name.clone(),
                what: format!(
                    "changing its first {} neurons at sequence {sequence}, position {pos} gives logits that are not finite: audit the weights and activations, or choose a smaller dose",
                    results[at.direction].size
                ),
            })?;
            let slot = self.plan.sequences.iter().position(|s| *s == sequence);
            let cluster = slot.map_or(0, |place| clusters[place]);
            let clean = &of_rows.terms.measures[row * m..(row + 1) * m];
            let in_band = self.in_band(&of_rows.rows[row]);
            let after = measured.values.chunks(self.pairs.per_pair());
            let each = after.zip(&projected.norm2);
            for (result, (after, norm2)) in results.iter_mut().zip(each) {
                let length = norm2.sqrt();
                result.effects.add(cluster, clean, after, length, in_band);
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
    logits: Option<(Tensor, Vec<Dots>)>,
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
            let logits = projected.logits.tensor().shallow_clone();
            (projected.centred, Some((logits, dots)))
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
    logits: Option<ChangedLogits>,
}

/// What the sets of a list add to the logits, before the scale of the LayerNorm.
struct ChangedLogits {
    /// `sum D u`, `[row, set, d_vocab]`, f32.
    sums: Tensor,
    /// The same at the target of the row, `[row][set]`.
    at_target: Vec<f64>,
    /// `gamma * delta`, `[row, set, d_model]`, f32.
    scaled: Tensor,
}

/// The sets of a list at one row, `[set]`.
struct OfRow {
    projected: Projected,
    dots: Vec<Dots>,
    at_target: Vec<f64>,
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
        let logits = if let Some((u, _)) = &of_list.logits {
            let sums = of_sets(&along(&factors.f_to_kind(Kind::Float)?, u, sizes)?)?;
            let places = of_rows
                .targets
                .f_narrow(0, start, n_rows)?
                .f_to_device(sums.device())?
                .f_view([n_rows, 1, 1])?
                .f_expand([n_rows, sums.size()[1], 1], false)?;
            Some(ChangedLogits {
                at_target: on_host(&sums.f_gather(2, &places, false)?)?,
                scaled: sweep.unembedding.scaled(&delta)?,
                sums,
            })
        } else {
            None
        };
        Ok(Self {
            rows,
            change,
            delta,
            norm2,
            cross,
            logits,
        })
    }

    /// The sets at the row of this number among the rows.
    fn of_row(
        &self,
        sweep: &Sweep<'_>,
        of_list: &OfList<'_>,
        of_rows: &OfRows<'_>,
        number: usize,
    ) -> Result<OfRow, AblateError> {
        let at = number as i64;
        let delta = self.delta.f_get(at)?; // [set, d_model]
        let sets = delta.size()[0] as usize;
        let of_row = number * sets..(number + 1) * sets;
        if let (Some(logits), Some((_, of_neurons))) = (&self.logits, &of_list.logits) {
            let n_neurons = of_neurons.len();
            let sizes = &of_list.list.sizes;
            let per_row = sets / sizes.len() * n_neurons;
            let of_doses = self.change[number * per_row..(number + 1) * per_row].chunks(n_neurons);
            let dots = of_doses.flat_map(|factors| {
                let each = sizes.iter();
                each.map(move |&size| Dots::sum(&factors[..size], &of_neurons[..size]))
            });
            return Ok(OfRow {
                dots: dots.collect(),
                at_target: logits.at_target[of_row.clone()].to_vec(),
                projected: Projected {
                    centred: delta,
                    norm2: self.norm2[of_row].to_vec(),
                    scaled: logits.scaled.f_get(at)?,
                    logits: Vectors::new(&logits.sums.f_get(at)?)?,
                },
            });
        }
        let projected = sweep.unembedding.project(&delta)?;
        let row = (self.rows.start + number) as i64;
        let target = of_rows.targets.f_narrow(0, row, 1)?;
        Ok(OfRow {
            dots: sweep.pairs.dots(&projected.logits)?,
            at_target: projected.logits.at(&target)?,
            projected,
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
