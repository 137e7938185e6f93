//! Sets of neurons to hold a selection against.

use std::collections::{BTreeMap, HashMap, HashSet};

use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{NeuronId, SelectError};

/// How a control set is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ControlKind {
    /// Any neurons of the same layer.
    Random,
    /// For each selected neuron one of those nearest to it in the traits of the [`Candidate`]s.
    Matched,
}

impl ControlKind {
    /// `random` or `matched`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Matched => "matched",
        }
    }
}

/// What matched controls have in common with the neurons that they stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MatchOn {
    /// What the intervention does: [`Push::traits`].
    #[default]
    Intervention,
    /// Mean activation and output norm.
    ActivationAndNorm,
}

impl MatchOn {
    /// Names of the traits.
    pub fn traits(self) -> &'static [&'static str] {
        match self {
            Self::Intervention => &["log_change_length", "active_share", "active_loss"],
            Self::ActivationAndNorm => &["mean_activation", "w_out_norm"],
        }
    }
}

/// How control sets are drawn, as every job's `controls` says it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ControlOptions {
    /// Which controls.
    pub kinds: Vec<ControlKind>,
    /// Draws of each; 0 for none. The smallest p value is one over one more than that.
    pub draws: usize,
    /// What matched controls have in common with their neurons.
    #[serde(rename = "match")]
    pub match_on: MatchOn,
    /// Standard deviations over the layer that a control may differ by in each trait of [`MatchOn::Intervention`].
    pub caliper: f64,
}

impl Default for ControlOptions {
    /// 99 draws of both kinds, matched on what the intervention does within 0.25 standard deviations.
    fn default() -> Self {
        Self {
            kinds: vec![ControlKind::Random, ControlKind::Matched],
            draws: 99,
            match_on: MatchOn::default(),
            caliper: 0.25,
        }
    }
}

/// The neurons that controls are drawn from, selected ones among them, with what they are matched on.
#[derive(Debug, Clone, PartialEq)]
pub enum Pool {
    /// [`Push::traits`], for [`MatchOn::Intervention`]: within the caliper.
    Intervention(Vec<Candidate<3>>),
    /// Mean activation and output norm, for [`MatchOn::ActivationAndNorm`]: the nearest ones, however far away.
    ActivationAndNorm(Vec<Candidate<2>>),
}

/// The controls of a selection.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Controls {
    /// All draws of all kinds.
    pub sets: Vec<ControlSet>,
    /// The selected neurons that matched controls stand for, in the order of the selection.
    pub matched: Vec<NeuronId>,
    /// For each of them the neurons that it could be exchanged for ([`alike`]).
    pub alike: Vec<Vec<NeuronId>>,
    /// The selected neurons that have none alike, in the order of the selection.
    pub unmatched: Vec<NeuronId>,
    /// How alike the two sides are.
    pub balance: Vec<TraitBalance>,
}

/// How alike a selection and one kind of its controls are in one trait.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TraitBalance {
    /// Which controls.
    pub kind: ControlKind,
    /// Name of the trait ([`MatchOn::traits`]).
    #[serde(rename = "trait")]
    pub name: String,
    /// Selected neurons that have such controls.
    pub selected: usize,
    /// Selected neurons that have none.
    pub without_control: usize,
    /// `None` where the trait is not known or does not vary.
    pub balance: Option<Balance>,
}

impl ControlOptions {
    /// Draws all kinds of controls for `selected` out of a pool: as [`draw_controls`], and matched ones as [`draw_matched`] where the pool
    /// knows what the intervention does.
    ///
    /// # Errors
    /// - as [`draw_controls`] and [`draw_matched`]
    ///
    /// # Examples
    /// ```
    /// use neuron_select::{Candidate, ControlOptions, NeuronId, Pool};
    /// let id = |neuron| NeuronId { layer: 3, neuron };
    /// let traits = |n: usize| [Some(n as f64), Some(0.5), Some(4.0)];
    /// let pool = Pool::Intervention((0..40).map(|n| Candidate { neuron: id(n), traits: traits(n) }).collect());
    /// let options = ControlOptions { draws: 19, ..ControlOptions::default() };
    /// let controls = options.draw(&[id(20), id(30)], &pool, 42)?;
    /// assert_eq!(controls.sets.len(), 2 * 19);
    /// assert_eq!(controls.exchanged(19, 42).len(), 19);
    /// # Ok::<(), neuron_select::SelectError>(())
    /// ```
    pub fn draw(
        &self,
        selected: &[NeuronId],
        pool: &Pool,
        seed: u64,
    ) -> Result<Controls, SelectError> {
        match pool {
            Pool::Intervention(candidates) => {
                self.draw_from(selected, candidates, Some(self.caliper), seed)
            }
            Pool::ActivationAndNorm(candidates) => self.draw_from(selected, candidates, None, seed),
        }
    }

    fn draw_from<const TRAITS: usize>(
        &self,
        selected: &[NeuronId],
        candidates: &[Candidate<TRAITS>],
        caliper: Option<f64>,
        seed: u64,
    ) -> Result<Controls, SelectError> {
        let mut controls = Controls::default();
        let match_on = match caliper {
            Some(_) => MatchOn::Intervention,
            None => MatchOn::ActivationAndNorm,
        };
        for &kind in self.kinds.iter().filter(|_| self.draws > 0) {
            let nearest = || draw_controls(kind, selected, candidates, self.draws, seed);
            let (sets, held_against) = match (kind, caliper) {
                (ControlKind::Random, _) => (nearest()?, selected.to_vec()),
                (ControlKind::Matched, Some(caliper)) => {
                    let drawn = draw_matched(selected, candidates, caliper, self.draws, seed)?;
                    controls.unmatched = drawn.unmatched;
                    (drawn.sets, drawn.matched)
                }
                (ControlKind::Matched, None) => (nearest()?, selected.to_vec()),
            };
            if kind == ControlKind::Matched {
                controls.alike = alike(&held_against, candidates, caliper)?;
                controls.matched = held_against.clone();
            }
            let of_traits = balance(&held_against, &sets, candidates);
            let row = |(name, balance): (&&str, Option<Balance>)| TraitBalance {
                kind,
                name: (*name).to_owned(),
                selected: held_against.len(),
                without_control: selected.len() - held_against.len(),
                balance,
            };
            let rows = match_on.traits().iter().zip(of_traits).map(row);
            controls.balance.extend(rows);
            controls.sets.extend(sets);
        }
        Ok(controls)
    }
}

impl Controls {
    /// Adds those of another kind.
    pub fn extend(&mut self, other: Self) {
        self.sets.extend(other.sets);
        self.balance.extend(other.balance);
        if !(other.matched.is_empty() && other.unmatched.is_empty()) {
            self.matched = other.matched;
            self.alike = other.alike;
            self.unmatched = other.unmatched;
        }
    }

    /// The sets of one kind, in the order of their draws.
    pub fn of(&self, kind: ControlKind) -> impl Iterator<Item = &ControlSet> {
        self.sets.iter().filter(move |set| set.kind == kind)
    }

    /// Sets to test [`Controls::matched`] among: each neuron is exchanged for one of those alike, or stays, all with the same probability,
    /// and no two are the same.
    ///
    /// Where the selected neuron is one of its stratum like any other, the selection is one of these sets like any other, and its rank
    /// among them ([`rank_p`]) a p value. (Matched sets never hold a selected neuron, and are drawn from a few near ones: they differ less
    /// from each other than the selection does from them.) This is [`exchange_p`] for effects of a set that are no sums over its neurons.
    ///
    /// Source: Rosenbaum (2002), *Observational Studies*, section 2.4.
    pub fn exchanged(&self, draws: usize, seed: u64) -> Vec<Vec<NeuronId>> {
        let draw = |draw: usize| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed ^ EXCHANGED);
            rng.set_stream(draw as u64);
            let mut turns: Vec<usize> = (0..self.matched.len()).collect();
            turns.shuffle(&mut rng);
            let mut taken = HashSet::new();
            let mut set = self.matched.clone();
            for n in turns {
                let free: Vec<NeuronId> = std::iter::once(self.matched[n])
                    .chain(self.alike[n].iter().copied())
                    .filter(|id| !taken.contains(id))
                    .collect();
                // The neuron itself is always free: no other one is exchanged for it.
                set[n] = free[rng.random_range(0..free.len() as u64) as usize];
                taken.insert(set[n]);
            }
            set
        };
        match self.matched.is_empty() {
            true => Vec::new(),
            false => (0..draws).map(draw).collect(),
        }
    }

    /// How much more a selection like this one is expected to lie off the mean of its matched controls than sets with exchanged neurons lie
    /// off their own mean, in standard deviations: controls are drawn from a few near neurons, whose own mean lies off that of the stratum, and
    /// sets with exchanged neurons hold selected ones.
    ///
    /// With n_i neurons to draw controls of the i-th from and m_i that it could be exchanged for, all of one spread, its value has the variance
    /// `1 + 1 / n_i` about the mean of the former, and that of one of the stratum `m_i / (m_i + 1)`: the root of the mean of their ratios. 1
    /// without matched controls.
    pub fn matched_spread(&self) -> f64 {
        let ratio = |alike: &Vec<NeuronId>| {
            let (near, all) = (alike.len().min(NEAREST) as f64, alike.len() as f64);
            (1.0 + 1.0 / near) * (all + 1.0) / all
        };
        let ratios: Vec<f64> = (self.alike.iter().filter(|alike| !alike.is_empty()))
            .map(ratio)
            .collect();
        match ratios.len() {
            0 => 1.0,
            n => (ratios.iter().sum::<f64>() / n as f64).sqrt(),
        }
    }
}

/// Sets the random numbers of exchanges apart from those of other draws.
const EXCHANGED: u64 = 0x9e37_79b9_7f4a_7c15;

/// A neuron that may serve as a control.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate<const TRAITS: usize = 2> {
    /// Its name.
    pub neuron: NeuronId,
    /// What it is matched on, as far as it is known: mean activation and output norm, or [`Push::traits`].
    pub traits: [Option<f64>; TRAITS],
}

/// What the mean ablation of a neuron does to the residual stream, and where it does it: what controls should have in common with the
/// selection for a difference to be about *which* neurons were changed, not about how hard or where.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Push {
    /// `sqrt(mean (a - abar)^2) |w|`: root mean square length of the change of the residual stream.
    pub length: f64,
    /// Share of the rows where the neuron is active: its activation is above zero.
    pub active_share: f64,
    /// Mean clean loss of those rows, nats; `None` without any.
    pub active_loss: Option<f64>,
}

impl Push {
    /// What to match on: the logarithm of the length, as lengths of a layer lie over some orders of magnitude, the share of active rows
    /// and the clean loss there.
    pub fn traits(&self) -> [Option<f64>; 3] {
        let length = (self.length > 0.0).then(|| self.length.ln());
        [length, Some(self.active_share), self.active_loss]
    }
}

impl Candidate<2> {
    /// All neurons of a layer, from their output norms and, where these are known, their mean activations, both `[d_mlp]`.
    pub fn of_layer<'a>(
        layer: usize,
        mean: Option<&'a [f64]>,
        norms: &'a [f64],
    ) -> impl Iterator<Item = Self> + 'a {
        norms.iter().enumerate().map(move |(neuron, &norm)| Self {
            neuron: NeuronId { layer, neuron },
            traits: [mean.and_then(|mean| mean.get(neuron).copied()), Some(norm)],
        })
    }
}

/// One draw: as many neurons per layer as are selected there, none of them selected, none twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ControlSet {
    /// How it was drawn.
    pub kind: ControlKind,
    /// Number of the draw, from 0.
    pub draw: usize,
    /// `neurons[i]` stands for the `i`-th selected neuron.
    pub neurons: Vec<NeuronId>,
}

/// Among how many nearest neurons a match is drawn.
const NEAREST: usize = 5;

/// Draws `draws` control sets for `selected` out of `candidates`, which may hold the selected ones too.
///
/// Draw `i` is the same whatever `draws` is. In a matched draw the selected neurons take turns in random order; each gets one of its
/// five nearest neurons that are still free, by the distance in the traits, each divided by its standard deviation over the layer. A
/// trait that both lack plays no part; one that only one of them has makes them as far apart as can be.
///
/// # Errors
/// - [`SelectError::TooFewNeurons`] if a layer has not enough neurons outside the selection
/// - [`SelectError::UnknownNeuron`] if a selected neuron is not among the candidates
pub fn draw_controls<const TRAITS: usize>(
    kind: ControlKind,
    selected: &[NeuronId],
    candidates: &[Candidate<TRAITS>],
    draws: usize,
    seed: u64,
) -> Result<Vec<ControlSet>, SelectError> {
    let layers = layers(selected, candidates)?;
    let set = |draw: usize| {
        let mut rng = stream(kind, draw, seed);
        let mut pairs: Vec<(usize, NeuronId)> = layers
            .values()
            .flat_map(|layer| layer.draw(kind, &mut rng))
            .collect();
        pairs.sort_unstable();
        ControlSet {
            kind,
            draw,
            neurons: pairs.into_iter().map(|(_, neuron)| neuron).collect(),
        }
    };
    Ok((0..draws).map(set).collect())
}

/// Matched controls of which none is farther from the neuron that it stands for than a caliper allows.
#[derive(Debug, Clone, PartialEq)]
pub struct MatchedControls {
    /// The selected neurons that have a match, in the order of the selection: what the controls are held against.
    pub matched: Vec<NeuronId>,
    /// The selected neurons without one, in the order of the selection.
    pub unmatched: Vec<NeuronId>,
    /// `neurons[i]` stands for `matched[i]`; empty where nothing is matched.
    pub sets: Vec<ControlSet>,
}

/// Draws matched control sets as [`draw_controls`] does, but no control may differ from its neuron by more than `caliper` standard
/// deviations (over the layer) in any trait. Selected neurons that have no control so near are left out, on both sides.
///
/// A match that is no match hides the difference that it was to take away; where a selection holds the extremes of its layer, it is
/// honest to say that they have no controls. Who has one does not depend on the draw: as many as can have a control of their own at the
/// same time.
///
/// Source: Rosenbaum & Rubin (1985), *Constructing a control group using multivariate matched sampling methods that incorporate the
/// propensity score*; 0.2 to 0.25 standard deviations are usual (Austin 2011).
///
/// # Errors
/// - [`SelectError::Setting`] if the caliper is not positive
/// - as [`draw_controls`]
///
/// # Examples
/// ```
/// use neuron_select::{Candidate, NeuronId, draw_matched};
/// let id = |neuron| NeuronId { layer: 3, neuron };
/// // Neuron 39 has no neighbour.
/// let length = |n: usize| if n == 39 { 1000.0 } else { n as f64 };
/// let candidates: Vec<Candidate<1>> = (0..40).map(|n| Candidate { neuron: id(n), traits: [Some(length(n))] }).collect();
/// let controls = draw_matched(&[id(20), id(39)], &candidates, 0.2, 5, 42)?;
/// assert_eq!((controls.matched, controls.unmatched), (vec![id(20)], vec![id(39)]));
/// # Ok::<(), neuron_select::SelectError>(())
/// ```
pub fn draw_matched<const TRAITS: usize>(
    selected: &[NeuronId],
    candidates: &[Candidate<TRAITS>],
    caliper: f64,
    draws: usize,
    seed: u64,
) -> Result<MatchedControls, SelectError> {
    if caliper.is_nan() || caliper <= 0.0 {
        return Err(SelectError::Setting {
            name: "the caliper",
            value: caliper,
            expected: "a positive number of standard deviations",
        });
    }
    let layers = layers(selected, candidates)?;
    let mut unmatched = HashSet::new();
    // Of each layer its neurons within the caliper of the selected ones that can all have a match at the same time.
    let near: Vec<_> = layers
        .values()
        .map(|layer| {
            let near = layer.near_ones(caliper);
            let turns: Vec<usize> = (0..near.len()).collect();
            let got = matching(&turns, &near, layer.all.len());
            let (turns, out): (Vec<_>, Vec<_>) = turns.into_iter().partition(|&n| got[n].is_some());
            unmatched.extend(out.into_iter().map(|n| layer.selected[n].1.neuron));
            (layer, turns, near)
        })
        .collect();
    let set = |draw: usize| {
        let mut rng = stream(ControlKind::Matched, draw, seed);
        let mut pairs: Vec<(usize, NeuronId)> = Vec::new();
        for (layer, turns, near) in &near {
            let (mut turns, mut near) = (turns.clone(), near.clone());
            turns.shuffle(&mut rng);
            for near in &mut near {
                let first = NEAREST.min(near.len());
                near[..first].shuffle(&mut rng);
            }
            let got = matching(&turns, &near, layer.all.len());
            let pair = |(n, place): (usize, Option<usize>)| {
                Some((layer.selected[n].0, layer.all[place?].neuron))
            };
            pairs.extend(got.into_iter().enumerate().filter_map(pair));
        }
        pairs.sort_unstable();
        ControlSet {
            kind: ControlKind::Matched,
            draw,
            neurons: pairs.into_iter().map(|(_, neuron)| neuron).collect(),
        }
    };
    let (unmatched, matched): (Vec<_>, Vec<_>) = selected
        .iter()
        .copied()
        .partition(|id| unmatched.contains(id));
    Ok(MatchedControls {
        sets: match matched.is_empty() {
            true => Vec::new(),
            false => (0..draws).map(set).collect(),
        },
        matched,
        unmatched,
    })
}

/// Standardised mean differences of the traits between a selection and its controls: `(mean of the selection - mean of the controls) /
/// standard deviation over the layer`, all draws together. Beyond 0.1 on either side they count as unbalanced (Austin 2009).
///
/// `None` for a trait that no neuron of one side has, or that does not vary. Neurons that are no candidates are passed over. The standard
/// deviation is over all candidates of the layers that have selected neurons.
pub fn balance<const TRAITS: usize>(
    selected: &[NeuronId],
    controls: &[ControlSet],
    candidates: &[Candidate<TRAITS>],
) -> [Option<Balance>; TRAITS] {
    let traits: HashMap<NeuronId, [Option<f64>; TRAITS]> =
        candidates.iter().map(|c| (c.neuron, c.traits)).collect();
    let layers: HashSet<usize> = selected.iter().map(|id| id.layer).collect();
    let mut of_layers = candidates.to_vec();
    of_layers.retain(|c| layers.contains(&c.neuron.layer));
    let spread = spread(&of_layers);
    std::array::from_fn(|t| {
        let mean = |neurons: &mut dyn Iterator<Item = &NeuronId>| {
            let values = neurons.filter_map(|id| traits.get(id)?[t]);
            let (n, sum) = values.fold((0.0, 0.0), |(n, sum), v| (n + 1.0, sum + v));
            (n > 0.0).then(|| sum / n)
        };
        let of_selected = mean(&mut selected.iter())?;
        let of_controls = mean(&mut controls.iter().flat_map(|set| &set.neurons))?;
        (spread[t] > 0.0).then(|| Balance {
            selected: of_selected,
            controls: of_controls,
            difference: (of_selected - of_controls) / spread[t],
        })
    })
}

/// How alike a selection and its controls are in one trait.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Balance {
    /// Mean over the selection.
    pub selected: f64,
    /// Mean over the controls of all draws.
    pub controls: f64,
    /// Their difference in standard deviations over the layer.
    pub difference: f64,
}

/// The random numbers of a draw.
fn stream(kind: ControlKind, draw: usize, seed: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(2 * draw as u64 + u64::from(kind == ControlKind::Matched));
    rng
}

/// The layers that have selected neurons.
fn layers<const TRAITS: usize>(
    selected: &[NeuronId],
    candidates: &[Candidate<TRAITS>],
) -> Result<BTreeMap<usize, Layer<TRAITS>>, SelectError> {
    let taken: HashSet<NeuronId> = selected.iter().copied().collect();
    let mut layers: BTreeMap<usize, Layer<TRAITS>> = BTreeMap::new();
    for &candidate in candidates {
        layers
            .entry(candidate.neuron.layer)
            .or_insert_with(Layer::new)
            .all
            .push(candidate);
    }
    for (place, &neuron) in selected.iter().enumerate() {
        let layer = layers.get_mut(&neuron.layer);
        let found = layer.and_then(|layer| {
            let candidate = *layer.all.iter().find(|c| c.neuron == neuron)?;
            layer.selected.push((place, candidate));
            Some(())
        });
        found.ok_or(SelectError::UnknownNeuron {
            neuron,
            found: candidates.len(),
        })?;
    }
    layers.retain(|_, layer| !layer.selected.is_empty());
    for (&number, layer) in &mut layers {
        layer.all.sort_unstable_by_key(|c| c.neuron);
        layer.all.dedup_by_key(|c| c.neuron);
        layer.scale = spread(&layer.all);
        layer.all.retain(|c| !taken.contains(&c.neuron));
        let (needed, found) = (layer.selected.len(), layer.all.len());
        if found < needed {
            return Err(SelectError::TooFewNeurons {
                layer: number,
                needed,
                found,
            });
        }
    }
    Ok(layers)
}

/// Rank p value of a selection among its controls: `(1 + #{controls at least as extreme}) / (1 + draws)`; `None` without controls.
///
/// The draws are the units here: a selection that is itself a random set is as likely to come at any place among them, however many
/// words or sequences each was measured on. (An interval over sequences of the difference from the mean of a few draws has no place for
/// the differences between draws.) Extreme is what lies far from the mean of the selection and all controls, on either side; ties count
/// against the selection. With D draws p is `1 / (1 + D)` at least: 19 make 5 % possible, 99 make 1 % possible.
///
/// Source: Davison & Hinkley (1997), *Bootstrap Methods and their Application*, section 4.2 (Monte Carlo tests).
///
/// # Examples
/// ```
/// use neuron_select::rank_p;
/// let controls: Vec<f64> = (0..19).map(f64::from).collect();
/// assert_eq!(rank_p(100.0, &controls), Some(0.05));
/// assert_eq!(rank_p(9.0, &controls), Some(1.0));
/// assert_eq!(rank_p(1.0, &[]), None);
/// ```
pub fn rank_p(selected: f64, controls: &[f64]) -> Option<f64> {
    let n = 1 + controls.len();
    let mean = (selected + controls.iter().sum::<f64>()) / n as f64;
    let own = (selected - mean).abs() * (1.0 - 1e-12);
    let as_extreme = controls.iter().filter(|c| (**c - mean).abs() >= own);
    (n > 1).then(|| (1 + as_extreme.count()) as f64 / n as f64)
}

/// Rank p value of a selection among the neurons that each of its neurons could be exchanged for: a randomisation test in matched strata.
/// `own[i]` is the value of the i-th selected neuron, `alike[i]` those of the neurons that are like it ([`alike`]).
///
/// If the selected neuron is one of its stratum like any other, each of the stratum is as likely to stand in its place, the selected one
/// among them: every draw takes one of each. `p = (1 + #{draws at least as far from the mean of the strata}) / (1 + draws)`, two-sided.
/// (To rank the selection among control sets that are drawn from a few nearest neurons finds too much: such sets differ less from each
/// other than the selection does from them. Simulated, 5 % become
/// 20 %; exchange keeps to 7 %.)
///
/// `None` without neurons. With few neurons that are alike p cannot become small, as it should not.
///
/// Source: Rosenbaum (2002), *Observational Studies*, section 2.4 (randomisation inference within strata).
///
/// # Examples
/// ```
/// use neuron_select::exchange_p;
/// // Ten neurons, each twice as strong as two others.
/// let p = exchange_p(&[2.0; 10], &vec![vec![1.0, 1.0]; 10], 999, 42).ok_or("ten neurons")?;
/// assert!(p < 0.01);
/// assert_eq!(exchange_p(&[2.0], &[vec![]], 999, 42), Some(1.0));
/// # Ok::<(), &str>(())
/// ```
pub fn exchange_p(own: &[f64], alike: &[Vec<f64>], draws: usize, seed: u64) -> Option<f64> {
    let strata: Vec<Vec<f64>> = own
        .iter()
        .zip(alike)
        .map(|(own, alike)| [&[*own], &alike[..]].concat())
        .collect();
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let centre: f64 = strata.iter().map(|stratum| mean(stratum)).sum();
    let distance = (own.iter().sum::<f64>() - centre).abs() * (1.0 - 1e-12);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut as_far = 0;
    for _ in 0..draws {
        let sum: f64 = strata
            .iter()
            .map(|stratum| stratum[rng.random_range(0..stratum.len() as u64) as usize])
            .sum();
        as_far += usize::from((sum - centre).abs() >= distance);
    }
    (!strata.is_empty() && draws > 0).then(|| (1 + as_far) as f64 / (1 + draws) as f64)
}

/// The neurons that are like each selected one: all within a caliper, or the five nearest ones without; never selected ones.
///
/// # Errors
/// - as [`draw_controls`]
pub fn alike<const TRAITS: usize>(
    selected: &[NeuronId],
    candidates: &[Candidate<TRAITS>],
    caliper: Option<f64>,
) -> Result<Vec<Vec<NeuronId>>, SelectError> {
    let mut found = vec![Vec::new(); selected.len()];
    for layer in layers(selected, candidates)?.values() {
        let near = layer.near_ones(caliper.unwrap_or(f64::INFINITY));
        for ((place, _), near) in layer.selected.iter().zip(near) {
            let most = caliper.map_or(NEAREST, |_| near.len());
            let ids = near.iter().take(most).map(|&n| layer.all[n].neuron);
            found[*place] = ids.collect();
        }
    }
    Ok(found)
}

/// The neurons of one layer.
struct Layer<const TRAITS: usize> {
    all: Vec<Candidate<TRAITS>>,
    /// Place in the selection, neuron.
    selected: Vec<(usize, Candidate<TRAITS>)>,
    /// Standard deviation of each trait over the layer.
    scale: [f64; TRAITS],
}

/// Standard deviation of each trait over the neurons that have it.
fn spread<const TRAITS: usize>(candidates: &[Candidate<TRAITS>]) -> [f64; TRAITS] {
    std::array::from_fn(|t| {
        let values: Vec<f64> = candidates.iter().filter_map(|c| c.traits[t]).collect();
        let n = values.len().max(1) as f64;
        let mean = values.iter().sum::<f64>() / n;
        (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt()
    })
}

impl<const TRAITS: usize> Layer<TRAITS> {
    fn new() -> Self {
        Self {
            all: Vec::new(),
            selected: Vec::new(),
            scale: [0.0; TRAITS],
        }
    }

    fn draw(&self, kind: ControlKind, rng: &mut ChaCha8Rng) -> Vec<(usize, NeuronId)> {
        let mut free = self.all.clone();
        let mut turns = self.selected.clone();
        turns.shuffle(rng);
        let mut pairs = Vec::with_capacity(turns.len());
        for (place, neuron) in turns {
            let nearest = match kind {
                ControlKind::Random => free.len(),
                ControlKind::Matched => {
                    free.sort_by(|a, b| {
                        self.distance(a, &neuron)
                            .total_cmp(&self.distance(b, &neuron))
                    });
                    NEAREST.min(free.len())
                }
            };
            // A 64-bit range, so that 32-bit machines draw the same.
            let pick = rng.random_range(0..nearest as u64) as usize;
            pairs.push((place, free.remove(pick).neuron));
        }
        pairs
    }

    /// For each selected neuron the places of those within the caliper, nearest first.
    fn near_ones(&self, caliper: f64) -> Vec<Vec<usize>> {
        let of = |neuron: &Candidate<TRAITS>| {
            let places = 0..self.all.len();
            let mut near: Vec<usize> = places
                .filter(|&place| self.near(&self.all[place], neuron, caliper))
                .collect();
            let distance = |place: usize| self.distance(&self.all[place], neuron);
            near.sort_by(|&a, &b| distance(a).total_cmp(&distance(b)));
            near
        };
        self.selected.iter().map(|(_, neuron)| of(neuron)).collect()
    }

    /// Whether no trait of the two differs by more than the caliper.
    fn near(&self, a: &Candidate<TRAITS>, b: &Candidate<TRAITS>, caliper: f64) -> bool {
        (0..TRAITS).all(|t| self.apart(a, b, t) <= caliper)
    }

    /// Squared distance.
    fn distance(&self, a: &Candidate<TRAITS>, b: &Candidate<TRAITS>) -> f64 {
        (0..TRAITS).map(|t| self.apart(a, b, t).powi(2)).sum()
    }

    /// Difference in one trait, in standard deviations; none in one that both lack, or that does not vary over the layer.
    fn apart(&self, a: &Candidate<TRAITS>, b: &Candidate<TRAITS>, t: usize) -> f64 {
        match (a.traits[t], b.traits[t], self.scale[t] > 0.0) {
            (Some(a), Some(b), true) => ((a - b) / self.scale[t]).abs(),
            (Some(_), None, _) | (None, Some(_), _) => f64::INFINITY,
            _ => 0.0,
        }
    }
}

/// A largest matching: which of the free neurons each selected one gets, in turn, from its list of near ones (Kuhn 1955).
fn matching(turns: &[usize], near: &[Vec<usize>], free: usize) -> Vec<Option<usize>> {
    let mut holder: Vec<Option<usize>> = vec![None; free];
    for &n in turns {
        augment(n, near, &mut holder, &mut HashSet::new());
    }
    let mut got = vec![None; near.len()];
    for (place, n) in holder.into_iter().enumerate() {
        if let Some(n) = n {
            got[n] = Some(place);
        }
    }
    got
}

/// Finds a free neuron for `n`, where need be by moving others to another of theirs.
fn augment(
    n: usize,
    near: &[Vec<usize>],
    holder: &mut [Option<usize>],
    tried: &mut HashSet<usize>,
) -> bool {
    for &free in &near[n] {
        if !tried.insert(free) {
            continue;
        }
        let found = match holder[free] {
            None => true,
            Some(other) => augment(other, near, holder, tried),
        };
        if found {
            holder[free] = Some(n);
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(n: usize) -> Vec<Candidate> {
        let id = |neuron| NeuronId { layer: 3, neuron };
        (0..n)
            .map(|i| Candidate {
                neuron: id(i),
                traits: [Some(i as f64), Some(1.0)],
            })
            .collect()
    }

    fn ids(neurons: &[usize]) -> Vec<NeuronId> {
        neurons
            .iter()
            .map(|&neuron| NeuronId { layer: 3, neuron })
            .collect()
    }

    #[test]
    fn controls_never_overlap_the_selection_nor_repeat() {
        let selected = ids(&[1, 10, 40, 41, 99]);
        for kind in [ControlKind::Random, ControlKind::Matched] {
            let sets = draw_controls(kind, &selected, &candidates(100), 20, 7).unwrap();
            assert_eq!(sets.len(), 20);
            for set in &sets {
                let distinct: HashSet<_> = set.neurons.iter().chain(&selected).collect();
                assert_eq!(distinct.len(), 2 * selected.len(), "{set:?}");
            }
            assert_ne!(sets[0].neurons, sets[1].neurons);
            assert_eq!(
                draw_controls(kind, &selected, &candidates(100), 3, 7).unwrap(),
                sets[..3]
            );
            assert_ne!(
                draw_controls(kind, &selected, &candidates(100), 3, 8).unwrap(),
                sets[..3]
            );
        }
    }

    #[test]
    fn matched_controls_are_near_their_neuron() {
        let selected = ids(&[10, 50, 90]);
        for set in draw_controls(ControlKind::Matched, &selected, &candidates(100), 10, 1).unwrap()
        {
            for (control, neuron) in set.neurons.iter().zip(&selected) {
                // Five nearest on a line: at most three steps away.
                assert!(control.neuron.abs_diff(neuron.neuron) <= 3, "{set:?}");
            }
        }
    }

    #[test]
    fn exchanged_sets_keep_to_their_strata_and_hold_the_selection_as_often_as_any() {
        let selected = ids(&[10, 11, 90]);
        let traits = |c: Candidate| Candidate {
            neuron: c.neuron,
            traits: [c.traits[0], Some(0.5), None],
        };
        let pool = Pool::Intervention(candidates(100).into_iter().map(traits).collect());
        let options = ControlOptions {
            draws: 2000,
            caliper: 0.1, // 28.9 / 10: two neurons on either side
            ..ControlOptions::default()
        };
        let controls = options.draw(&selected, &pool, 7).unwrap();
        let allowed = [
            ids(&[10, 8, 9, 12]),
            ids(&[11, 9, 12, 13]),
            ids(&[90, 88, 89, 91, 92]),
        ];
        let mut kept = 0;
        let sets = controls.exchanged(2000, 7);
        for set in &sets {
            let distinct: HashSet<_> = set.iter().collect();
            assert_eq!(distinct.len(), 3, "{set:?}");
            for (neuron, allowed) in set.iter().zip(&allowed) {
                assert!(allowed.contains(neuron), "{set:?}");
            }
            kept += usize::from(set[2] == selected[2]);
        }
        // One of five.
        assert!((320..480).contains(&kept), "{kept}");
        assert_eq!(controls.exchanged(3, 7), sets[..3]);
        // Three, three and four neurons alike, all of them near.
        let ratio = |m: f64| (1.0 + 1.0 / m) * (m + 1.0) / m;
        let expected = ((2.0 * ratio(3.0) + ratio(4.0)) / 3.0).sqrt();
        assert!((controls.matched_spread() - expected).abs() < 1e-12);
        let rows: Vec<_> = controls
            .balance
            .iter()
            .map(|row| (row.kind, &row.name[..]))
            .collect();
        assert_eq!(rows[3], (ControlKind::Matched, "log_change_length"));
        assert_eq!(rows.len(), 6);
        assert_eq!(controls.balance[5].balance, None);
    }

    #[test]
    fn too_small_a_layer_is_an_error() {
        let err =
            draw_controls(ControlKind::Random, &ids(&[0, 1, 2]), &candidates(5), 1, 0).unwrap_err();
        assert_eq!(
            err,
            SelectError::TooFewNeurons {
                layer: 3,
                needed: 3,
                found: 2
            }
        );
        let err = draw_controls(ControlKind::Random, &ids(&[7]), &candidates(5), 1, 0).unwrap_err();
        assert_eq!(
            err,
            SelectError::UnknownNeuron {
                neuron: NeuronId {
                    layer: 3,
                    neuron: 7
                },
                found: 5
            }
        );
    }

    #[test]
    fn each_layer_gives_its_own_controls() {
        let mut pool = candidates(20);
        pool.extend((0..20).map(|neuron| Candidate {
            neuron: NeuronId { layer: 2, neuron },
            traits: [Some(0.0), None],
        }));
        let selected = [
            NeuronId {
                layer: 2,
                neuron: 4,
            },
            NeuronId {
                layer: 3,
                neuron: 4,
            },
            NeuronId {
                layer: 2,
                neuron: 5,
            },
        ];
        for set in draw_controls(ControlKind::Matched, &selected, &pool, 5, 3).unwrap() {
            assert_eq!(
                set.neurons.iter().map(|n| n.layer).collect::<Vec<_>>(),
                [2, 3, 2]
            );
        }
    }
}
