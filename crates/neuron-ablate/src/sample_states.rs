//! Forwards over the texts of a sample. What those of some texts leave is kept for who asks next, so that mean activations, what controls
//! are matched on, sweeps and scaled weights need one forward of a text, not one each.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    fmt,
    rc::Rc,
};

use neox_core::{Model, Site};
use tch::{TchError, Tensor};

use crate::{
    AblateError, Sample,
    last_layer::Forward,
    states::{captured, in_f32, last_layer, same_length_batches},
};

/// The states of a model on the sequences of a sample, from forwards of a few sequences at once.
///
/// # Examples
/// ```
/// use neox_core::{LoadOptions, Model};
/// use neuron_ablate::{MeanOver, Sample, SampleStates, activities, mean_activations};
///
/// # let folder = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data/tiny-neox/step4000"));
/// # if !folder.exists() { return Ok(()); } // the crate without its repository
/// let model = Model::load(folder, &LoadOptions::default())?;
/// let texts = vec![vec![0, 259, 1042, 17, 300], vec![0, 12, 77, 2000, 5]];
/// let sample = Sample::new(texts, &[0], model.config().vocab_size as usize)?;
/// let last = model.config().num_hidden_layers - 1;
/// // Both texts are asked for twice, and run once.
/// let states = SampleStates::new(&model, &sample, 8).keeping(&[0, 1], &[last], 1 << 20);
/// let mean = mean_activations(&states, MeanOver::NotBos, &|_, _| ())?;
/// let found = activities(&states, &[0, 1], &[last], &|_| ())?;
/// assert_eq!(mean.len(), found[&last].len());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct SampleStates<'a> {
    run: Run<'a>,
    sample: &'a Sample,
    batch: usize,
    keep: Keep,
    kept: RefCell<Kept>,
}

/// What runs a text.
enum Run<'a> {
    Model(&'a Model),
    /// The last layer alone, and its number.
    LastLayer(usize, Box<Forward<'a>>),
}

/// Which sequences are kept, and what of them.
#[derive(Debug, Default)]
struct Keep {
    /// Always run together, whoever asks for one of them: their states are the same to the bit then.
    batches: Vec<Vec<usize>>,
    /// The batch and the place in it of each sequence.
    places: HashMap<usize, (usize, usize)>,
    sites: Vec<Site>,
    /// Bytes.
    memory: usize,
}

#[derive(Debug, Default)]
struct Kept {
    /// By batch.
    batches: BTreeMap<usize, Rc<[States]>>,
    bytes: usize,
    /// The batch that ran last, whatever memory there is: its sequences are asked for one after the other.
    last: Option<(usize, Rc<[States]>)>,
}

/// What a forward leaves of one sequence, on the CPU in f32.
#[derive(Debug)]
pub(crate) struct States {
    /// Residual stream after the last block, `[pos, d_model]`.
    pub(crate) resid: Tensor,
    sites: Vec<(Site, Tensor)>,
}

impl States {
    /// The value at a site, `[pos, width]`.
    pub(crate) fn at(&self, site: Site) -> Result<&Tensor, TchError> {
        let found = self.sites.iter().find(|(of, _)| *of == site);
        let value = found.map(|(_, value)| value);
        value.ok_or_else(|| TchError::Torch(format!("{site} was not asked for")))
    }

    fn has(&self, sites: &[Site]) -> bool {
        sites.iter().all(|&site| self.at(site).is_ok())
    }

    /// The same without other sites.
    fn only(&self, sites: &[Site]) -> Self {
        let of = self.sites.iter().filter(|(site, _)| sites.contains(site));
        Self {
            resid: self.resid.shallow_clone(),
            sites: of
                .map(|(site, value)| (*site, value.shallow_clone()))
                .collect(),
        }
    }

    fn bytes(&self) -> usize {
        let values = self.sites.iter().map(|(_, value)| value);
        let each = values.chain([&self.resid]);
        each.map(|t| t.numel() * t.kind().elt_size_in_bytes()).sum()
    }
}

impl fmt::Debug for SampleStates<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("SampleStates");
        let shown = shown.field("batch", &self.batch).field("keep", &self.keep);
        shown.field("kept", &self.kept).finish_non_exhaustive()
    }
}

impl<'a> SampleStates<'a> {
    /// Forwards of a model of ours; sequences of one length go through it `batch` at a time. Nothing is kept.
    pub fn new(model: &'a Model, sample: &'a Sample, batch: usize) -> Self {
        Self::of(Run::Model(model), sample, batch)
    }

    /// Those of a last layer alone.
    pub(crate) fn of_last_layer(
        (layer, forward): (usize, Box<Forward<'a>>),
        sample: &'a Sample,
        batch: usize,
    ) -> Self {
        Self::of(Run::LastLayer(layer, forward), sample, batch)
    }

    fn of(run: Run<'a>, sample: &'a Sample, batch: usize) -> Self {
        Self {
            run,
            sample,
            batch,
            keep: Keep::default(),
            kept: RefCell::default(),
        }
    }

    /// Keeps what forwards leave of these sequences: the last residual stream and the activations of some layers, as far as `memory`
    /// bytes go. What has no room is run again when it is asked for again.
    #[must_use]
    pub fn keeping(self, sequences: &[usize], layers: &[usize], memory: usize) -> Self {
        let there = 0..self.sample.sequences().len();
        let there = sequences.iter().copied().filter(|i| there.contains(i));
        let batches = same_length_batches(self.sample, &there.collect::<Vec<_>>(), self.batch);
        let places = batches.iter().enumerate().flat_map(|(number, batch)| {
            let each = batch.iter().enumerate();
            each.map(move |(place, &sequence)| (sequence, (number, place)))
        });
        Self {
            keep: Keep {
                places: places.collect(),
                batches,
                sites: layers.iter().map(|&layer| Site::MlpPost(layer)).collect(),
                memory,
            },
            ..self
        }
    }

    /// The sample.
    pub fn sample(&self) -> &'a Sample {
        self.sample
    }

    /// The whole model; `what` is what it is needed for.
    pub(crate) fn model(&self, what: &'static str) -> Result<&'a Model, AblateError> {
        match self.run {
            Run::Model(model) => Ok(model),
            Run::LastLayer(..) => Err(AblateError::LastLayerOnly { what }),
        }
    }

    /// The number of the last layer.
    pub(crate) fn last_layer(&self) -> usize {
        match self.run {
            Run::Model(model) => last_layer(model),
            Run::LastLayer(layer, _) => layer,
        }
    }

    /// Refuses a layer that the model does not have.
    pub(crate) fn has_layers(
        &self,
        layers: impl IntoIterator<Item = usize>,
    ) -> Result<(), AblateError> {
        let last = self.last_layer();
        match layers.into_iter().find(|&layer| layer > last) {
            None => Ok(()),
            Some(layer) => Err(AblateError::NoSuchComponent {
                what: format!("layer {layer}"),
                has: format!("layers 0 to {last}"),
            }),
        }
    }

    /// Calls `visit` with the states of each of `sequences`, at sites that it will ask for: first those that are kept, in the order in
    /// which they run together, then the others.
    pub(crate) fn each<E: From<AblateError>>(
        &self,
        sequences: &[usize],
        sites: &[Site],
        mut visit: impl FnMut(usize, &States) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut kept, others): (Vec<usize>, Vec<usize>) = sequences
            .iter()
            .partition(|sequence| self.keep.places.contains_key(sequence));
        kept.sort_by_key(|sequence| self.keep.places[sequence]);
        for sequence in kept {
            let (batch, place) = self.keep.places[&sequence];
            visit(sequence, &self.batch(batch, sites)?[place])?;
        }
        for group in same_length_batches(self.sample, &others, self.batch) {
            let states = self.forward(&group, sites)?;
            for (sequence, states) in group.into_iter().zip(&states) {
                visit(sequence, states)?;
            }
        }
        Ok(())
    }

    /// A batch of sequences that are kept.
    fn batch(&self, number: usize, sites: &[Site]) -> Result<Rc<[States]>, AblateError> {
        let mut kept = self.kept.borrow_mut();
        let last = kept.last.iter().find(|(of, _)| *of == number);
        let there = last.map(|(_, states)| states);
        let there = there.into_iter().chain(kept.batches.get(&number));
        let has = |states: &&Rc<[States]>| states.iter().all(|states| states.has(sites));
        if let Some(states) = there.into_iter().find(has) {
            return Ok(states.clone());
        }
        let mut all: Vec<Site> = sites.to_vec();
        let more = self.keep.sites.iter().filter(|site| !sites.contains(site));
        all.extend(more);
        let states: Rc<[States]> = self.forward(&self.keep.batches[number], &all)?.into();
        let only = |states: &States| states.only(&self.keep.sites);
        let to_keep: Rc<[States]> = states.iter().map(only).collect();
        let bytes: usize = to_keep.iter().map(States::bytes).sum();
        if !kept.batches.contains_key(&number) && kept.bytes + bytes <= self.keep.memory {
            kept.bytes += bytes;
            kept.batches.insert(number, to_keep);
        }
        kept.last = Some((number, states.clone()));
        Ok(states)
    }

    /// One forward of sequences of one length.
    fn forward(&self, sequences: &[usize], sites: &[Site]) -> Result<Vec<States>, AblateError> {
        let texts: Vec<&[i64]> = sequences
            .iter()
            .map(|&i| self.sample.sequences()[i].as_slice())
            .collect();
        let model = match &self.run {
            Run::Model(model) => model,
            Run::LastLayer(layer, forward) => {
                let own = Site::MlpPost(*layer);
                if sites.iter().any(|site| *site != own) {
                    return Err(AblateError::LastLayerOnly {
                        what: "what passes at an earlier layer",
                    });
                }
                let each = forward(&texts)?.into_iter().map(|states| States {
                    resid: states.resid,
                    sites: vec![(own, states.activations)],
                });
                return Ok(each.collect());
            }
        };
        let captured = captured(model, &texts, sites)?;
        let resid = in_f32(&captured.resid)?;
        let at = sites.iter().map(|&site| {
            let value = in_f32(captured.at(site)?)?;
            Ok((site, value))
        });
        let at: Vec<(Site, Tensor)> = at.collect::<Result<_, TchError>>()?;
        let of_sequence = |i: i64| {
            let sites = at.iter().map(|(site, value)| Ok((*site, value.f_get(i)?)));
            Ok(States {
                resid: resid.f_get(i)?,
                sites: sites.collect::<Result<_, TchError>>()?,
            })
        };
        (0..texts.len() as i64).map(of_sequence).collect()
    }
}
