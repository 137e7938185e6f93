//! Neurons and heads that are replaced inside the model, at every position, a change for each text of a batch, and the model run on.
//!
//! What a neuron adds to the residual stream is known once its activation is, so that the block of the first layer is not run again: the
//! model runs on behind it. A head is replaced inside its block, which runs once more.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    ops::Range,
    str::FromStr,
};

use neox_core::{HookError, Hooks, Model, Norm, Site};
use tch::{Kind, TchError, Tensor};

use crate::{
    AblateError, Dose, InterventionError, LayerMeans, NeuronId, Row, Sample,
    readout::host,
    states::{self, Captured, captured, same_length_batches},
};

/// Most copies of texts in one forward; a power of two, as all their numbers are, so that a part of a run (blocks of so many
/// neurons) makes the same batches as the whole.
const MOST_COPIES: usize = 64;
/// What a position of a text takes while a block runs, in vectors of the widest kind, such as activations.
const WIDE_VECTORS: usize = 6;

/// One attention head, written `layer.head` as a neuron is: `5.10` is head 10 of layer 5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HeadId {
    /// Layer, from 0.
    pub layer: usize,
    /// Head of the layer, from 0.
    pub head: usize,
}

impl fmt::Display for HeadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.layer, self.head)
    }
}

impl FromStr for HeadId {
    type Err = InterventionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Heads are written as neurons are.
        let id = text.parse::<NeuronId>();
        let NeuronId { layer, neuron } = id.map_err(|_| InterventionError::HeadId {
            text: text.to_owned(),
        })?;
        Ok(Self {
            layer,
            head: neuron,
        })
    }
}

/// What running the model on costs, known beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForwardCost {
    /// Forwards of a batch of copies, of one text or, where components are few, of several.
    pub forwards: usize,
    /// Most copies at once.
    pub copies: usize,
    /// Blocks that all copies together run through, at most: that of a neuron itself is not run again.
    pub blocks: usize,
    /// (component, row) pairs.
    pub pairs: usize,
}

impl ForwardCost {
    /// That of components of these layers, `[component]`, at rows, with so many copies at once.
    pub(crate) fn new(
        model: &Model,
        layers: &[usize],
        (sample, rows): (&Sample, &[Row]),
        copies: usize,
    ) -> Self {
        let groups = groups(sample, rows, texts_at_once(copies, layers.len()));
        let texts: usize = groups.iter().map(Vec::len).sum();
        let blocks_from = |layer: usize| model.config().num_hidden_layers.saturating_sub(layer);
        Self {
            forwards: groups.len() * batches(layers, copies).len(),
            copies,
            blocks: texts * layers.iter().map(|&l| blocks_from(l)).sum::<usize>(),
            pairs: rows.len() * layers.len(),
        }
    }
}

/// Values at a site that are changed together.
#[derive(Debug)]
struct Channels {
    site: Site,
    /// Places in the last dimension, `[channel]`.
    places: Tensor,
    new: New,
}

#[derive(Debug)]
enum New {
    /// The values themselves: `mean` is `[channel]`, in the dtype of the model.
    Values { mean: Tensor, dose: Dose },
    /// What is added to the output weights of neurons, `[channel, d_model]`, f32; the values stay.
    Weights(Tensor),
}

/// What is replaced at every position of one text, and by what.
#[derive(Debug)]
pub(crate) struct Replaced {
    /// For messages.
    pub(crate) name: String,
    /// First layer in which something is replaced.
    pub(crate) layer: usize,
    channels: Vec<Channels>,
}

impl Replaced {
    /// Neurons, at a dose.
    pub(crate) fn neurons(
        model: &Model,
        name: String,
        neurons: &[NeuronId],
        dose: Dose,
        means: &LayerMeans,
    ) -> Result<Self, AblateError> {
        let each = by_layer(model, neurons)?.into_iter();
        let channels = each.map(|(layer, numbers)| {
            let places: Vec<usize> = numbers.iter().map(|&i| neurons[i].neuron).collect();
            let means = means.neurons(layer);
            Channels::values(model, Site::MlpPost(layer), &places, dose, means)
        });
        Self::new(name, channels.collect::<Result<_, _>>()?)
    }

    /// Neurons of which something is added to the output weights, `[neuron, d_model]`.
    pub(crate) fn output_weights(
        model: &Model,
        name: String,
        neurons: &[NeuronId],
        added: &Tensor,
    ) -> Result<Self, AblateError> {
        let each = by_layer(model, neurons)?.into_iter();
        let channels = each.map(|(layer, numbers)| {
            let places: Vec<usize> = numbers.iter().map(|&i| neurons[i].neuron).collect();
            let numbers: Vec<i64> = numbers.iter().map(|&i| i as i64).collect();
            let added = added.f_index_select(0, &Tensor::f_from_slice(&numbers)?)?;
            Ok(Channels {
                site: Site::MlpPost(layer),
                places: there(model, &places)?,
                new: New::Weights(added.f_to_kind(Kind::Float)?.f_to_device(model.device())?),
            })
        });
        Self::new(name, channels.collect::<Result<_, AblateError>>()?)
    }

    /// The output of a head, at a dose.
    pub(crate) fn head(
        model: &Model,
        HeadId { layer, head }: HeadId,
        dose: Dose,
        means: &LayerMeans,
    ) -> Result<Self, AblateError> {
        let config = model.config();
        let (layers, heads) = (
            config.num_hidden_layers,
            config.num_attention_heads as usize,
        );
        if layer >= layers || head >= heads {
            return Err(AblateError::NoSuchComponent {
                what: format!("head {layer}.{head}"),
                has: format!("layers 0 to {} of {heads} heads", layers - 1),
            });
        }
        let d_head = config.head_size as usize;
        let places: Vec<usize> = (head * d_head..(head + 1) * d_head).collect();
        let (site, means) = (Site::HeadOut(layer), means.heads(layer));
        let channels = Channels::values(model, site, &places, dose, means)?;
        Self::new(format!("head {layer}.{head}"), vec![channels])
    }

    /// `channels` ascend by layer.
    fn new(name: String, channels: Vec<Channels>) -> Result<Self, AblateError> {
        let first = channels.first().and_then(|first| first.site.layer());
        let layer = first.ok_or_else(|| AblateError::Empty {
            what: format!("{name} is no neuron and no head"),
        })?;
        Ok(Self {
            name,
            layer,
            channels,
        })
    }

    /// Where the model runs on from: behind the block of neurons, before that of heads.
    fn from(&self) -> Site {
        let is_first = |site| site == Site::MlpPost(self.layer);
        match self.channels.iter().any(|c| is_first(c.site)) {
            true => Site::ResidPost(self.layer),
            false => Site::ResidPre(self.layer),
        }
    }

    /// What the neurons of the first layer change in the residual stream behind its block, `[pos, d_model]`, f32; `activations` are
    /// those of the whole layer in the unchanged model, `[pos, d_mlp]`.
    fn first_change(&self, mlp: &Output<'_>, activations: &Tensor) -> Result<Tensor, AblateError> {
        let first = Site::MlpPost(self.layer);
        let channels = self.channels.iter().find(|c| c.site == first);
        let channels = channels.ok_or_else(|| AblateError::Empty {
            what: format!("{} is no neuron of layer {}", self.name, self.layer),
        })?;
        Ok(mlp.change(activations, channels)?)
    }
}

/// Places of neurons in a list, by layer.
pub(crate) fn by_layer(
    model: &Model,
    neurons: &[NeuronId],
) -> Result<BTreeMap<usize, Vec<usize>>, AblateError> {
    let (layers, d_mlp) = (
        model.config().num_hidden_layers,
        model.config().intermediate_size as usize,
    );
    let mut by_layer: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (i, &NeuronId { layer, neuron }) in neurons.iter().enumerate() {
        if layer >= layers || neuron >= d_mlp {
            return Err(AblateError::NoSuchComponent {
                what: format!("neuron {layer}.{neuron}"),
                has: format!("layers 0 to {} of {d_mlp} neurons", layers - 1),
            });
        }
        by_layer.entry(layer).or_default().push(i);
    }
    Ok(by_layer)
}

/// Places on the device of the model.
fn there(model: &Model, places: &[usize]) -> Result<Tensor, AblateError> {
    let places: Vec<i64> = places.iter().map(|&place| place as i64).collect();
    Ok(Tensor::f_from_slice(&places)?.f_to_device(model.device())?)
}

/// How the MLP of a layer writes to the residual stream.
struct Output<'m> {
    /// `[d_model, d_mlp]`
    w_out: Tensor,
    b_out: Option<Tensor>,
    /// Behind the MLP.
    norm: Option<&'m Norm>,
}

impl<'m> Output<'m> {
    fn new(model: &'m Model, layer: usize) -> Result<Self, AblateError> {
        Ok(Self {
            w_out: model.w_out(layer)?,
            b_out: model.b_out(layer)?,
            norm: model.norm_after_mlp(layer)?,
        })
    }

    /// What channels of the layer change in the residual stream behind its block, `[pos, d_model]`, f32; `activations` are those of the
    /// whole layer, `[pos, d_mlp]`.
    fn change(&self, activations: &Tensor, channels: &Channels) -> Result<Tensor, TchError> {
        let chosen = activations.f_index_select(-1, &channels.places)?;
        let before = chosen.f_to_kind(Kind::Float)?; // [pos, channel]
        let (factors, weights) = match &channels.new {
            New::Weights(added) => (before, added.shallow_clone()),
            New::Values { mean, dose } => {
                let after = new_values(*dose, mean, &chosen)?.f_to_kind(Kind::Float)?;
                let weights = self.w_out.f_index_select(1, &channels.places)?;
                let weights = weights.f_to_kind(Kind::Float)?.f_tr()?;
                (after.f_sub(&before)?, weights)
            }
        };
        let written = factors.f_matmul(&weights)?;
        let Some(norm) = self.norm else {
            return Ok(written);
        };
        let output = activations.f_linear(&self.w_out, self.b_out.as_ref())?;
        let changed = output.f_add(&written)?.f_to_kind(output.f_kind()?)?;
        let change = norm.forward(&changed)?.f_sub(&norm.forward(&output)?)?;
        change.f_to_kind(Kind::Float)
    }
}

impl Channels {
    fn values(
        model: &Model,
        site: Site,
        places: &[usize],
        dose: Dose,
        means: Option<&[f64]>,
    ) -> Result<Self, AblateError> {
        let mean = |&place: &usize| {
            let mean = means.and_then(|means| means.get(place));
            mean.copied().ok_or_else(|| AblateError::Empty {
                what: format!("no mean over the sample is known at {site}, place {place}"),
            })
        };
        let mean: Vec<f64> = places.iter().map(mean).collect::<Result<_, _>>()?;
        let mean = Tensor::f_from_slice(&mean)?
            .f_to_kind(model.dtype())?
            .f_to_device(model.device())?;
        Ok(Self {
            site,
            places: there(model, places)?,
            new: New::Values { mean, dose },
        })
    }
}

fn new_values(dose: Dose, mean: &Tensor, chosen: &Tensor) -> Result<Tensor, TchError> {
    match dose {
        Dose::Mean => mean.f_expand_as(chosen)?.f_contiguous(),
        Dose::Scale(factor) => chosen.f_mul_scalar(factor),
        Dose::ClipAtMean => chosen.f_minimum(mean),
    }
}

/// Hooks of a batch in which each text has a change of its own; those that stay as they are have none.
struct ReplaceEach<'r> {
    model: &'r Model,
    texts: Vec<Option<&'r Replaced>>,
    /// The residual stream that the model runs on with, and where.
    start: Option<(Site, Tensor)>,
    /// What is in the start already.
    done: Site,
    /// Changes of the residual stream behind the block that runs, by text.
    written: HashMap<usize, Tensor>,
}

impl<'r> ReplaceEach<'r> {
    /// Channels of later sites, with their texts.
    fn channels(&self) -> impl Iterator<Item = (usize, &'r Channels)> {
        let (done, texts) = (self.done, self.texts.iter().enumerate());
        let each = texts.filter_map(|(text, replaced)| Some((text, (*replaced)?)));
        let each =
            each.flat_map(|(text, replaced)| replaced.channels.iter().map(move |c| (text, c)));
        each.filter(move |(_, channels)| channels.site != done)
    }
}

impl Hooks for ReplaceEach<'_> {
    fn wants(&self, site: Site) -> bool {
        let is_start = self.start.as_ref().is_some_and(|(at, _)| *at == site);
        let mut channels = self.channels();
        is_start
            || channels.any(|(_, channels)| match (site, &channels.new) {
                (Site::ResidPost(layer), New::Weights(_)) => channels.site.layer() == Some(layer),
                _ => channels.site == site,
            })
    }

    /// In the memory of `value`, `[batch, pos, width]`: it was made for this site, and nothing else knows of it.
    fn at(&mut self, site: Site, value: Tensor) -> Result<Tensor, HookError> {
        if let Some((_, start)) = self.start.take_if(|(at, _)| *at == site) {
            return Ok(start);
        }
        if let Site::ResidPost(_) = site {
            for (text, written) in self.written.drain() {
                let _ = value.f_get(text as i64)?.f_add_(&written)?;
            }
            return Ok(value);
        }
        let here: Vec<_> = self.channels().filter(|(_, c)| c.site == site).collect();
        let changes_weights = |(_, c): &(usize, &Channels)| matches!(c.new, New::Weights(_));
        let mlp = match site {
            Site::MlpPost(layer) if here.iter().any(changes_weights) => {
                Some(Output::new(self.model, layer)?)
            }
            _ => None,
        };
        for (text, channels) in here {
            let mut of_text = value.f_get(text as i64)?; // [pos, width]
            match (&channels.new, &mlp) {
                (New::Values { mean, dose }, _) => {
                    let chosen = of_text.f_index_select(-1, &channels.places)?;
                    let new = new_values(*dose, mean, &chosen)?;
                    let _ = of_text.f_index_copy_(-1, &channels.places, &new)?;
                }
                (New::Weights(_), Some(mlp)) => {
                    self.written.insert(text, mlp.change(&of_text, channels)?);
                }
                (New::Weights(_), None) => {}
            }
        }
        Ok(value)
    }
}

/// How many copies of texts run on at once, within `memory` bytes each for the blocks and for the vocabulary.
pub(crate) fn copies(model: &Model, sample: &Sample, sequences: &[usize], memory: usize) -> usize {
    let config = model.config();
    let length = |&s: &usize| sample.sequences().get(s).map_or(0, Vec::len);
    let longest = sequences.iter().map(length).max().unwrap_or(0).max(1);
    let heads = config.num_attention_heads + 2 * config.num_key_value_heads;
    let widest = config
        .hidden_size
        .max(config.intermediate_size)
        .max(heads * config.head_size) as usize;
    let of_blocks = memory / (longest * widest * WIDE_VECTORS * 4);
    let of_vocabulary = memory / (config.vocab_size as usize * 4 * 2);
    let most = of_blocks.min(of_vocabulary).clamp(1, MOST_COPIES);
    // The greatest power of two that is not above.
    1 << most.ilog2()
}

/// How many texts run on at once: where there are few replacements, their copies of several texts make a batch.
pub(crate) fn texts_at_once(copies: usize, n_replaced: usize) -> usize {
    (copies / (n_replaced + 1)).max(1)
}

/// The texts of rows, those that run on together in one group: of one length, and `at_once` of them at most.
pub(crate) fn groups<'r>(sample: &Sample, rows: &'r [Row], at_once: usize) -> Vec<Vec<&'r [Row]>> {
    let mut texts = rows.chunk_by(|a, b| a.sequence == b.sequence);
    let sequences: Vec<usize> = texts.clone().map(|rows| rows[0].sequence).collect();
    let groups = same_length_batches(sample, &sequences, at_once).into_iter();
    groups
        .map(|group| texts.by_ref().take(group.len()).collect())
        .collect()
}

/// The unchanged model on the texts of a group, and which positions of each text are rows, `[row]` on its device.
pub(crate) fn unchanged(
    model: &Model,
    sample: &Sample,
    group: &[&[Row]],
    sites: &[Site],
) -> Result<(Captured, Vec<Tensor>), AblateError> {
    let tokens = |rows: &&[Row]| sample.sequences()[rows[0].sequence].as_slice();
    let tokens: Vec<&[i64]> = group.iter().map(tokens).collect();
    let positions = |rows: &&[Row]| states::positions(rows)?.f_to_device(model.device());
    let positions = group.iter().map(positions).collect::<Result<_, _>>()?;
    Ok((captured(model, &tokens, sites)?, positions))
}

/// Consecutive replacements of one layer, `copies` at most; `layers` is `[replacement]`.
pub(crate) fn batches(layers: &[usize], copies: usize) -> Vec<Range<usize>> {
    let mut batches: Vec<Range<usize>> = Vec::new();
    for of_layer in layers.chunk_by(|a, b| a == b) {
        let start = batches.last().map_or(0, |batch| batch.end);
        let of_layer = crate::engine::blocks(of_layer.len(), copies);
        batches.extend(of_layer.map(|range| start + range.start..start + range.end));
    }
    batches
}

/// What the unchanged model has to leave for [`changes`].
pub(crate) fn sites(replaced: &[Replaced]) -> Vec<Site> {
    let mut sites = Vec::new();
    for from in replaced.iter().map(Replaced::from) {
        let activations = match from {
            Site::ResidPost(layer) => Some(Site::MlpPost(layer)),
            _ => None,
        };
        for site in [Some(from), activations].into_iter().flatten() {
            if !sites.contains(&site) {
                sites.push(site);
            }
        }
    }
    sites
}

/// What replacements, all of one layer, change in the residual stream after the last block at the positions `kept` of each text:
/// `[text]`, `[row, replacement, d_model]` each, f64 on the CPU.
pub(crate) fn changes(
    model: &Model,
    replaced: &[Replaced],
    captured: &Captured,
    kept: &[Tensor],
) -> Result<Vec<Tensor>, AblateError> {
    let Some(from) = replaced.first().map(Replaced::from) else {
        return Ok(Vec::new());
    };
    let base = captured.at(from)?;
    let (texts, pos, d_model) = base.size3()?;
    // One copy of each text more, which stays as it is: rounding that all copies of a batch share drops out of the changes.
    let n = replaced.len() as i64;
    let copies = n + 1;
    let before = base
        .f_unsqueeze(1)?
        .f_expand([texts, copies, pos, d_model], false)?
        .f_reshape([texts * copies, pos, d_model])?;
    let of_text = || replaced.iter().map(Some).chain([None]);
    let mut hooks = ReplaceEach {
        model,
        texts: (0..texts).flat_map(|_| of_text()).collect(),
        start: None,
        done: from,
        written: HashMap::new(),
    };
    let after = match from {
        Site::ResidPost(layer) => {
            let start = before.f_detach_copy()?;
            let activations = captured.at(Site::MlpPost(layer))?;
            let mlp = Output::new(model, layer)?;
            for text in 0..texts {
                let activations = activations.f_get(text)?;
                for (i, replaced) in replaced.iter().enumerate() {
                    let change = replaced.first_change(&mlp, &activations)?;
                    let _ = start.f_get(text * copies + i as i64)?.f_add_(&change)?;
                }
            }
            let next = layer + 1;
            if next == model.config().num_hidden_layers {
                start
            } else {
                // By a hook, so that the model is not blamed for numbers that a change makes.
                hooks.done = Site::MlpPost(layer);
                hooks.start = Some((Site::ResidPre(next), start));
                tch::no_grad(|| model.residual_from(next, &before, &mut hooks))?
            }
        }
        _ => {
            let layer = from.layer().unwrap_or(0);
            tch::no_grad(|| model.residual_from(layer, &before, &mut hooks))?
        }
    };
    let each = (0..texts).zip(kept).map(|(text, kept)| {
        let of_text = after.f_narrow(0, text * copies, copies)?;
        let of_text = host(&of_text.f_index_select(1, kept)?)?;
        let (changed, clean) = (of_text.f_narrow(0, 0, n)?, of_text.f_narrow(0, n, 1)?);
        Ok(changed.f_sub(&clean)?.f_transpose(0, 1)?.f_contiguous()?)
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use super::{batches, texts_at_once};

    #[test]
    fn a_batch_is_of_one_layer() {
        assert_eq!(batches(&[0, 0, 0, 2, 1, 1], 2), [0..2, 2..3, 3..4, 4..6]);
        assert!(batches(&[], 4).is_empty());
    }

    #[test]
    fn few_replacements_take_several_texts() {
        assert_eq!(
            [1, 2, 3, 31, 32, 63, 500].map(|n| texts_at_once(64, n)),
            [32, 21, 16, 2, 1, 1, 1]
        );
        assert_eq!(texts_at_once(1, 1), 1);
    }
}
