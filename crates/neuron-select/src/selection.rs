//! Ranking neurons by what their ablation does, and taking the top.

use std::{cmp::Ordering, fmt};

use serde::{Deserialize, Serialize};

use crate::{Measure, NeuronEffects, NeuronId};

/// What neurons are ranked by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Heuristic {
    /// The change of the loss.
    Prob,
    /// The change of the divergence between the model and the token frequencies.
    #[serde(alias = "KL")]
    Kl,
    /// The share of the output weights in the null space of the unembedding, largest first: the order of Stolfo's rho, its root.
    NullShare,
    /// The variance of the cosines of the output weights with the vocabulary, smallest first: Stolfo's LogitVar.
    LogitVar,
    /// The share of the total effect that the scale of the final norm mediates, largest first.
    LnMediatedShare,
}

impl Heuristic {
    /// The change whose sign [`Effect`] is about.
    pub fn measure(self) -> Measure {
        match self {
            Self::Kl => Measure::KlChange,
            Self::Prob | Self::NullShare | Self::LogitVar | Self::LnMediatedShare => {
                Measure::LossChange
            }
        }
    }

    fn change(self, effects: &NeuronEffects) -> f64 {
        match self.measure() {
            Measure::KlChange => effects.kl_change,
            _ => effects.loss_change,
        }
    }

    /// What it goes by, largest first; `None` where the neuron has no such value.
    fn strength(self, effects: &NeuronEffects, by_mediation: bool, floor: f64) -> Option<f64> {
        match (self, by_mediation) {
            (Self::Prob, false) => Some(effects.total_effect),
            (Self::Prob, true) => Some(effects.direct_effect),
            (Self::Kl, _) => Some(effects.kl_change.abs()),
            (Self::NullShare, _) => effects.weights.null_share,
            (Self::LogitVar, _) => effects.weights.logit_var.map(|var| -var),
            (Self::LnMediatedShare, _) => effects.ln_mediated_share(floor),
        }
    }
}

/// Which sign of the change is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// A negative change: ablation lowers the loss, or the divergence.
    Suppress,
    /// A positive change: ablation raises the loss, or the divergence.
    Boost,
    /// A change of either sign, zero too.
    Any,
}

/// How neurons are selected.
///
/// Source: Liu et al. (2025), arXiv 2505.12822, whose package ranks
/// - `prob` by the mean absolute loss change, `kl` by the absolute mean divergence change
/// - by mediation: first by the mediated share; equal shares by the direct effect (`prob`) or as above (`kl`)
///
/// always descending. Entropy neurons are told by what Stolfo et al. (2024), arXiv 2406.16254, show of them: a large share of the output
/// weights in the null space of the unembedding, a small LogitVar, an effect through the scale of the final norm. Neurons that tie in everything are ordered by their name.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Criteria {
    /// What is ranked.
    pub heuristic: Heuristic,
    /// Which sign is kept: of the change of the divergence for [`Heuristic::Kl`], of the loss for all others.
    pub effect: Effect,
    /// Whether the mediated share comes first.
    pub by_mediation: bool,
    /// Total effect, in nats, below which a neuron is left out.
    pub effect_floor: f64,
}

impl Criteria {
    fn strength(&self, effects: &NeuronEffects) -> Option<f64> {
        self.heuristic
            .strength(effects, self.by_mediation, self.effect_floor)
    }
}

/// What the sign of the kept change means, in words.
impl fmt::Display for Criteria {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = match self.heuristic {
            Heuristic::Prob | Heuristic::Kl => "",
            Heuristic::NullShare => {
                "its output weights lie in the null space of the unembedding more than those of others; "
            }
            Heuristic::LogitVar => {
                "its output weights move the logits of all tokens more alike than those of others; "
            }
            Heuristic::LnMediatedShare => {
                "more of its effect goes through the scale of the final norm than of others; "
            }
        };
        f.write_str(by)?;
        f.write_str(match (self.heuristic, self.effect) {
            (Heuristic::Kl, Effect::Any) => {
                "without such a neuron the distance to the unigram distribution changes, either way"
            }
            (_, Effect::Any) => "without such a neuron the loss changes, either way",
            (Heuristic::Kl, Effect::Suppress) => {
                "without such a neuron the model is nearer to the unigram distribution: the neuron pushes away from it"
            }
            (Heuristic::Kl, Effect::Boost) => {
                "without such a neuron the model is farther from the unigram distribution: the neuron pushes towards it"
            }
            (_, Effect::Suppress) => {
                "without such a neuron the loss falls: the neuron hurts the prediction of these tokens"
            }
            (_, Effect::Boost) => {
                "without such a neuron the loss rises: the neuron helps to predict these tokens"
            }
        })
    }
}

/// Where a neuron stands under some criteria.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Standing {
    /// In the ranking; 1 is the first.
    Ranked(usize),
    /// Left out: the change (in nats) has the other sign, or is zero.
    OtherSign(f64),
    /// Left out: the total effect (in nats) is below the floor.
    UnderFloor(f64),
    /// Left out: the tables do not say what the heuristic ranks by.
    Undefined,
}

impl Standing {
    /// The rank, if it has one.
    pub fn rank(self) -> Option<usize> {
        match self {
            Self::Ranked(rank) => Some(rank),
            Self::OtherSign(_) | Self::UnderFloor(_) | Self::Undefined => None,
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ranked(rank) => write!(f, "rank {rank}"),
            Self::OtherSign(change) => write!(
                f,
                "left out: its change of {change:+.2e} nats has not the sign asked for"
            ),
            Self::UnderFloor(total) => write!(
                f,
                "left out: its total effect of {total:.2e} nats is below the floor"
            ),
            Self::Undefined => f.write_str("left out: what is ranked by is not defined for it"),
        }
    }
}

/// A neuron with its effects and its standing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranked {
    /// Means over its rows.
    pub effects: NeuronEffects,
    /// Share of the total effect that frequency mediates; `None` where the total effect is below the floor.
    pub mediated_share: Option<f64>,
    /// Share of the total effect that the scale of the final norm mediates; `None` below the floor, and where it was not measured.
    pub ln_mediated_share: Option<f64>,
    /// Share of the total effect that the frequency of all tokens mediates; `None` below the floor, and where it was not measured.
    pub all_token_mediated_share: Option<f64>,
    /// Its place.
    pub standing: Standing,
}

/// All neurons: the ranked ones in order, then those left out, by name.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranking {
    neurons: Vec<Ranked>,
    n_ranked: usize,
}

impl Ranking {
    /// Ranks neurons by their effects.
    ///
    /// # Examples
    /// ```
    /// use neuron_select::{Criteria, Effect, Heuristic, NeuronEffects, NeuronId, Ranking, Standing};
    /// let effects = |neuron, loss_change: f64| NeuronEffects {
    ///     neuron: NeuronId { layer: 5, neuron },
    ///     rows: 100,
    ///     loss_change,
    ///     total_effect: loss_change.abs(),
    ///     frozen_loss_change: 0.0,
    ///     direct_effect: 0.0,
    ///     frozen_ln_effect: None,
    ///     frozen_all_effect: None,
    ///     kl_change: 0.0,
    ///     kl_abs_change: 0.0,
    ///     activation: 0.0,
    ///     rms_change: None,
    ///     active_share: 0.5,
    ///     active_loss: None,
    ///     weights: Default::default(),
    /// };
    /// let criteria = Criteria { heuristic: Heuristic::Prob, effect: Effect::Boost, by_mediation: false, effect_floor: 1e-6 };
    /// let ranking = Ranking::new(vec![effects(1, 0.1), effects(10, 0.2), effects(2, -0.3)], &criteria);
    /// let top: Vec<String> = ranking.top(Some(10)).iter().map(|n| n.effects.neuron.to_string()).collect();
    /// assert_eq!(top, ["5.10", "5.1"]);
    /// assert_eq!(ranking.all()[2].standing, Standing::OtherSign(-0.3));
    /// ```
    pub fn new(effects: Vec<NeuronEffects>, criteria: &Criteria) -> Self {
        let mut neurons: Vec<Ranked> = effects
            .into_iter()
            .map(|effects| {
                let change = criteria.heuristic.change(&effects);
                let kept = match criteria.effect {
                    Effect::Suppress => change < 0.0,
                    Effect::Boost => change > 0.0,
                    Effect::Any => true,
                };
                let mediated_share = effects.mediated_share(criteria.effect_floor);
                let standing = match (kept, mediated_share) {
                    (true, Some(_)) if criteria.strength(&effects).is_none() => Standing::Undefined,
                    (true, Some(_)) => Standing::Ranked(0),
                    (false, _) => Standing::OtherSign(change),
                    (true, None) => Standing::UnderFloor(effects.total_effect),
                };
                Ranked {
                    effects,
                    mediated_share,
                    ln_mediated_share: effects.ln_mediated_share(criteria.effect_floor),
                    all_token_mediated_share: effects
                        .all_token_mediated_share(criteria.effect_floor),
                    standing,
                }
            })
            .collect();
        neurons.sort_by(|a, b| compare(a, b, criteria));
        let n_ranked = neurons
            .iter()
            .take_while(|n| n.standing.rank().is_some())
            .count();
        for (i, neuron) in neurons[..n_ranked].iter_mut().enumerate() {
            neuron.standing = Standing::Ranked(i + 1);
        }
        Self { neurons, n_ranked }
    }

    /// Every neuron: ranked ones in order, then those left out.
    pub fn all(&self) -> &[Ranked] {
        &self.neurons
    }

    /// The first `n` ranked neurons, all of them for `None`; fewer if there are not as many.
    pub fn top(&self, n: Option<usize>) -> &[Ranked] {
        &self.neurons[..n.map_or(self.n_ranked, |n| n.min(self.n_ranked))]
    }

    /// The names of [`Self::top`].
    pub fn top_ids(&self, n: Option<usize>) -> Vec<NeuronId> {
        self.top(n)
            .iter()
            .map(|ranked| ranked.effects.neuron)
            .collect()
    }
}

fn compare(a: &Ranked, b: &Ranked, criteria: &Criteria) -> Ordering {
    let left_out = |n: &Ranked| n.standing.rank().is_none();
    let share = |n: &Ranked| {
        n.mediated_share
            .filter(|_| criteria.by_mediation)
            .unwrap_or(0.0)
    };
    // Every ranked neuron has one.
    let strength = |n: &Ranked| criteria.strength(&n.effects).unwrap_or(f64::NEG_INFINITY);
    let by_name = a.effects.neuron.cmp(&b.effects.neuron);
    match (left_out(a), left_out(b)) {
        (false, false) => share(b)
            .total_cmp(&share(a))
            .then(strength(b).total_cmp(&strength(a)))
            .then(by_name),
        (true, true) => by_name,
        (a, b) => a.cmp(&b),
    }
}
