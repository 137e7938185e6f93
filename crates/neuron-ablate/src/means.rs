//! Means of activations and of heads' outputs over a sample, with their standard errors.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use neox_core::{Architecture, Site};
use tch::{Kind, TchError, Tensor};

use crate::{AblateError, MeanOver, Sample, SampleStates};

/// What means are taken of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MeanOf {
    /// The activations of a layer's MLP, `[d_mlp]`.
    Neurons(usize),
    /// The outputs of a layer's attention heads, one beside the other, `[heads * d_head]`.
    Heads(usize),
}

impl MeanOf {
    fn layer(self) -> usize {
        match self {
            Self::Neurons(layer) | Self::Heads(layer) => layer,
        }
    }

    /// How many means there are.
    pub fn width(self, model: &Architecture) -> usize {
        let width = match self {
            Self::Neurons(_) => model.intermediate_size,
            Self::Heads(_) => model.num_attention_heads * model.head_size,
        };
        width as usize
    }

    fn site(self) -> Site {
        match self {
            Self::Neurons(layer) => Site::MlpPost(layer),
            Self::Heads(layer) => Site::HeadOut(layer),
        }
    }
}

/// As in names of files: `neurons-5`.
impl fmt::Display for MeanOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Neurons(layer) => write!(f, "neurons-{layer}"),
            Self::Heads(layer) => write!(f, "heads-{layer}"),
        }
    }
}

/// Means over some positions, and how certain they are.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Means {
    /// `[width]`
    pub mean: Vec<f64>,
    /// Standard error of each, over documents (sequences, where the sample does not say of which documents they are); NaN where all
    /// positions are of one. `[width]`
    pub standard_error: Vec<f64>,
}

/// Means over the positions of a sample, by layer.
#[derive(Debug, Clone, Default)]
pub struct LayerMeans(BTreeMap<MeanOf, Means>);

impl LayerMeans {
    /// Adds means, or puts them in the place of those of the same thing.
    pub fn insert(&mut self, of: MeanOf, means: Means) {
        self.0.insert(of, means);
    }

    /// With the mean activations of a layer's neurons, `[d_mlp]`, such as [`Effects`](crate::Effects) has for the last layer; their errors
    /// are not known.
    #[must_use]
    pub fn with_neurons(mut self, layer: usize, mean: Vec<f64>) -> Self {
        let standard_error = vec![f64::NAN; mean.len()];
        let means = Means {
            mean,
            standard_error,
        };
        self.insert(MeanOf::Neurons(layer), means);
        self
    }

    /// Those of one thing, if they were taken.
    pub fn of(&self, of: MeanOf) -> Option<&Means> {
        self.0.get(&of)
    }

    /// Mean activations of a layer's neurons, `[d_mlp]`, if they were taken.
    pub fn neurons(&self, layer: usize) -> Option<&[f64]> {
        Some(&self.of(MeanOf::Neurons(layer))?.mean)
    }

    /// Mean outputs of a layer's heads, one beside the other, `[heads * d_head]`, if they were taken.
    pub fn heads(&self, layer: usize) -> Option<&[f64]> {
        Some(&self.of(MeanOf::Heads(layer))?.mean)
    }
}

/// Means of one thing over each choice of positions; `None` where a choice leaves no position.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleMeans {
    /// Of what.
    pub of: MeanOf,
    /// In the order of [`MeanOver::ALL`].
    pub over: [Option<Means>; 3],
}

impl MeanOver {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::AllPositions, Self::NotBos, Self::NotBosAnywhere];

    fn counts(self, pos: usize, boundary: bool) -> bool {
        match self {
            Self::AllPositions => true,
            Self::NotBos => pos > 0,
            Self::NotBosAnywhere => !boundary,
        }
    }
}

impl SampleMeans {
    /// Those over a choice of positions.
    ///
    /// # Errors
    /// - [`AblateError::Empty`] if no position counts
    pub fn over(&self, over: MeanOver) -> Result<&Means, AblateError> {
        let of_choice = MeanOver::ALL.iter().zip(&self.over);
        let found = of_choice.into_iter().find(|(of, _)| **of == over);
        let means = found.and_then(|(_, means)| means.as_ref());
        means.ok_or_else(|| AblateError::Empty {
            what: "no position is left for the mean activation".into(),
        })
    }
}

/// Mean activation of every neuron of the last MLP over the positions of the whole sample, `[d_mlp]`.
///
/// `progress` is told how many more sequences, and how many so far, are done.
///
/// # Errors
/// - [`AblateError::Torch`] if libtorch fails
/// - [`AblateError::Empty`] if no position counts
pub fn mean_activations(
    states: &SampleStates<'_>,
    over: MeanOver,
    progress: &dyn Fn(usize, usize),
) -> Result<Vec<f64>, AblateError> {
    let last = MeanOf::Neurons(states.last_layer());
    let means = sample_means(states, &all(states), &[last], progress)?;
    Ok(means[0].over(over)?.mean.clone())
}

/// Mean activations of the neurons of some layers, and mean outputs of the heads of others, over the positions of the whole sample;
/// the rest as [`mean_activations`].
///
/// # Errors
/// - as [`sample_means`] and [`mean_activations`]
pub fn layer_means(
    states: &SampleStates<'_>,
    (neurons_of, heads_of): (&[usize], &[usize]),
    over: MeanOver,
    progress: &dyn Fn(usize, usize),
) -> Result<LayerMeans, AblateError> {
    let neurons = neurons_of.iter().map(|&layer| MeanOf::Neurons(layer));
    let heads = heads_of.iter().map(|&layer| MeanOf::Heads(layer));
    let of: Vec<MeanOf> = neurons.chain(heads).collect();
    let mut found = LayerMeans::default();
    for means in sample_means(states, &all(states), &of, progress)? {
        found.insert(means.of, means.over(over)?.clone());
    }
    Ok(found)
}

/// All sequences of the sample.
fn all(states: &SampleStates<'_>) -> Vec<usize> {
    (0..states.sample().sequences().len()).collect()
}

/// Means over some sequences of a sample, of several things in one pass and over every choice of positions at once; the rest as
/// [`mean_activations`].
///
/// # Errors
/// - [`AblateError::NoSuchComponent`] for a layer that the model does not have, [`AblateError::LastLayerOnly`] for an earlier one without
///   a whole model
/// - [`AblateError::NoSuchSequence`] and [`AblateError::Repeated`] for sequences
/// - [`AblateError::Torch`] if libtorch fails
pub fn sample_means(
    states: &SampleStates<'_>,
    sequences: &[usize],
    of: &[MeanOf],
    progress: &dyn Fn(usize, usize),
) -> Result<Vec<SampleMeans>, AblateError> {
    states.has_layers(of.iter().map(|of| of.layer()))?;
    if of.is_empty() {
        return Ok(vec![]);
    }
    let sample = states.sample();
    sample.check(sequences)?;
    let sites: Vec<Site> = of.iter().map(|of| of.site()).collect();
    let clusters = sample.cluster_of(sequences);
    // Sequences that have not been read, by cluster.
    let mut left: HashMap<usize, usize> = HashMap::new();
    clusters
        .values()
        .for_each(|cluster| *left.entry(*cluster).or_default() += 1);
    let mut sums: Vec<[Sums; 3]> = of.iter().map(|_| Default::default()).collect();
    let mut done = 0;
    states.each(sequences, &sites, |sequence, states| {
        let cluster = clusters[&sequence];
        let classes = Classes::of(sample, &sample.sequences()[sequence]);
        let left = left.entry(cluster).or_default();
        *left -= 1;
        for (sums, &site) in sums.iter_mut().zip(&sites) {
            let parts = classes.sums(states.at(site)?)?;
            for (over, sums) in MeanOver::ALL.into_iter().zip(sums) {
                for (class, part) in classes.0.iter().zip(&parts) {
                    if over.counts(class.pos, class.boundary) {
                        sums.add(cluster, class.at.len(), part);
                    }
                }
                if *left == 0 {
                    sums.close(cluster);
                }
            }
        }
        done += 1;
        progress(1, done);
        Ok::<_, AblateError>(())
    })?;
    let means = of.iter().zip(sums).map(|(of, sums)| SampleMeans {
        of: *of,
        over: sums.map(Sums::means),
    });
    Ok(means.collect())
}

/// Positions of one sequence that every choice takes or leaves together.
struct Class {
    pos: usize,
    boundary: bool,
    at: Vec<i64>,
}

struct Classes(Vec<Class>);

impl Classes {
    fn of(sample: &Sample, tokens: &[i64]) -> Self {
        let mut classes: Vec<Class> = Vec::new();
        for (pos, token) in tokens.iter().enumerate() {
            let (first, boundary) = (pos.min(1), sample.is_boundary(*token));
            let same = |class: &&mut Class| class.pos == first && class.boundary == boundary;
            match classes.iter_mut().find(same) {
                Some(class) => class.at.push(pos as i64),
                None => classes.push(Class {
                    pos: first,
                    boundary,
                    at: vec![pos as i64],
                }),
            }
        }
        Self(classes)
    }

    /// Sums over the positions of each class in f64, of `values`, `[pos, width]`.
    fn sums(&self, values: &Tensor) -> Result<Vec<Vec<f64>>, TchError> {
        let of_class = |class: &Class| {
            let rows = values.f_index_select(0, &Tensor::f_from_slice(&class.at)?)?;
            Vec::try_from(&rows.f_sum_dim_intlist(0, false, Kind::Double)?)
        };
        self.0.iter().map(of_class).collect()
    }
}

/// Sums over positions, and what the spread between clusters needs.
#[derive(Debug, Clone, Default)]
struct Sums {
    positions: f64,
    sum: Vec<f64>,
    clusters: f64,
    /// Positions and sums of clusters of which sequences are missing.
    open: BTreeMap<usize, (f64, Vec<f64>)>,
    /// Over clusters: `sum n^2`, and of each value `sum S^2` and `sum S n`.
    n2: f64,
    s2: Vec<f64>,
    sn: Vec<f64>,
}

impl Sums {
    fn add(&mut self, cluster: usize, positions: usize, part: &[f64]) {
        let none = || (0.0, vec![0.0; part.len()]);
        let (n, sums) = self.open.entry(cluster).or_insert_with(none);
        *n += positions as f64;
        sums.iter_mut()
            .zip(part)
            .for_each(|(sum, part)| *sum += part);
    }

    /// Takes a cluster as a whole, if any of its positions counted.
    fn close(&mut self, cluster: usize) {
        let Some((n, sums)) = self.open.remove(&cluster) else {
            return;
        };
        for total in [&mut self.sum, &mut self.s2, &mut self.sn] {
            total.resize(sums.len(), 0.0);
        }
        self.clusters += 1.0;
        self.positions += n;
        self.n2 += n * n;
        for (i, s) in sums.iter().enumerate() {
            self.sum[i] += s;
            self.s2[i] += s * s;
            self.sn[i] += s * n;
        }
    }

    /// The mean is a ratio of two sums over clusters: its error is that of `S - mean n`.
    fn means(self) -> Option<Means> {
        if self.positions == 0.0 {
            return None;
        }
        let mean: Vec<f64> = self.sum.iter().map(|sum| sum / self.positions).collect();
        let spread = |i: usize, mean: f64| {
            let squares = self.s2[i] - 2.0 * mean * self.sn[i] + mean * mean * self.n2;
            let factor = self.clusters / (self.clusters - 1.0);
            match self.clusters > 1.0 {
                true => (factor * squares.max(0.0)).sqrt() / self.positions,
                false => f64::NAN,
            }
        };
        let standard_error = mean
            .iter()
            .enumerate()
            .map(|(i, m)| spread(i, *m))
            .collect();
        Some(Means {
            mean,
            standard_error,
        })
    }
}
