//! Sets of neurons to hold a selection against.

use std::collections::{BTreeMap, HashSet};

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
    /// For each selected neuron one of those nearest to it in mean activation and output norm.
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

/// A neuron that may serve as a control.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Its name.
    pub neuron: NeuronId,
    /// What it is matched on: mean activation and output norm, as far as they are known.
    pub traits: [Option<f64>; 2],
}

impl Candidate {
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
/// five nearest neurons that are still free, by the distance in mean activation and output norm, both divided by their standard deviation
/// over the layer.
///
/// # Errors
/// - [`SelectError::TooFewNeurons`] if a layer has not enough neurons outside the selection
/// - [`SelectError::UnknownNeuron`] if a selected neuron is not among the candidates
pub fn draw_controls(
    kind: ControlKind,
    selected: &[NeuronId],
    candidates: &[Candidate],
    draws: usize,
    seed: u64,
) -> Result<Vec<ControlSet>, SelectError> {
    let taken: HashSet<NeuronId> = selected.iter().copied().collect();
    let mut layers: BTreeMap<usize, Layer> = BTreeMap::new();
    for &candidate in candidates {
        layers
            .entry(candidate.neuron.layer)
            .or_default()
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
        layer.scale = layer.spread();
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
    let set = |draw: usize| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(2 * draw as u64 + u64::from(kind == ControlKind::Matched));
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

/// The neurons of one layer.
#[derive(Default)]
struct Layer {
    all: Vec<Candidate>,
    /// Place in the selection, neuron.
    selected: Vec<(usize, Candidate)>,
    /// Standard deviation of each trait over the layer.
    scale: [f64; 2],
}

impl Layer {
    fn spread(&self) -> [f64; 2] {
        [0, 1].map(|t| {
            let values: Vec<f64> = self.all.iter().filter_map(|c| c.traits[t]).collect();
            let n = values.len().max(1) as f64;
            let mean = values.iter().sum::<f64>() / n;
            (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt()
        })
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

    /// Squared distance in the traits that both neurons have and that vary over the layer.
    fn distance(&self, a: &Candidate, b: &Candidate) -> f64 {
        let term = |t: usize| match (a.traits[t], b.traits[t], self.scale[t] > 0.0) {
            (Some(a), Some(b), true) => ((a - b) / self.scale[t]).powi(2),
            _ => 0.0,
        };
        term(0) + term(1)
    }
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
