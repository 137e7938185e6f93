//! Surprisal of many words under many interventions, from as few forwards as possible.
//!
//! Texts that are the beginning of other texts are read off the longer one, and texts that share most
//! of their beginning (words in the same context) are computed in one row, the beginning once. The
//! rows go through the model in batches of similar length; only positions that a word needs are
//! unembedded. An
//! intervention on the last layer changes the residual stream by `(a' - a) W_out^T`, so that all of
//! them come from the same forward, and, with `x' = x + delta` and `u_n = W_U (gamma * w_n,c)`,
//!
//! ```text
//! logits' = (W_U (gamma * x_c) + sum_n (a'_n - a_n) u_n) / s' + W_U beta
//! ```
//!
//! is a direction of the fused kernel (the crate `vocabulary-sums`): one pass over the vocabulary per row and intervention, in which no logit
//! is written. On a GPU tensor operations do the same.

mod batch;
mod kernel;
mod logits;
mod tensors;
mod values;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::Range,
    sync::Arc,
};

use neox_core::{ForwardError, HookError, Hooks, Model, Site};
use surprisal_metrics::{Boundary, MetricError, WordForm, word_surprisal_nats};
use tch::{Device, Kind, TchError, Tensor};

use crate::AblateError;
use crate::interventions::{
    Intervention, InterventionError, InterventionHooks, NeuronSite, activate,
};
use crate::word_request::{WordRequest, WordVocabulary};
use crate::{
    LastLayer, LastLayerStates, Readout, last_layer::Forward, states::writes_directly,
    vectors::on_host,
};
use batch::{BRANCHED_ROW, Batch, RowTexts};
use kernel::{Changed, Neurons, WordSums};
use logits::{Beside, LogitSums};
use tensors::{NeuronVectors, Projected, TensorSums};
use values::RowValues;

/// Why words were not scored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScoreError {
    /// An intervention that the model cannot have.
    #[error(transparent)]
    Intervention(#[from] InterventionError),
    /// A word whose pieces are not inside its tokens, or stand at the very beginning.
    #[error(
        "request {request}: pieces {first}..{end} of a text of {len} tokens; they must start at 1 or later and end at {len} at most"
    )]
    Word {
        /// Index of the request.
        request: usize,
        /// First piece.
        first: usize,
        /// Behind the last piece.
        end: usize,
        /// Number of tokens.
        len: usize,
    },
    /// A model whose closed form is not known.
    #[error(transparent)]
    Architecture(#[from] AblateError),
    /// A vocabulary of another size than the model's.
    #[error("word vocabulary has {found} rows, but the model's has {expected}")]
    Vocabulary {
        /// Rows of the word vocabulary.
        found: usize,
        /// Rows of the model.
        expected: usize,
    },
    /// A token that ends a text, but is none of the model's.
    #[error(
        "the word vocabulary says that token {eos} ends a text, but the model has tokens 0 to {last}: give the end-of-sequence token of the tokenizer"
    )]
    Eos {
        /// The token.
        eos: i64,
        /// The last token of the model.
        last: i64,
    },
    /// A log-probability that is NaN or infinite.
    #[error(
        "request {request} has no finite log-probability under `{intervention}`: the checkpoint or its dtype overflows; try `f32`, and audit the weights"
    )]
    NotFinite {
        /// Index of the request.
        request: usize,
        /// Name of the intervention.
        intervention: String,
    },
    /// The forward pass failed.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// libtorch reported an error.
    #[error("libtorch failed")]
    Torch(#[from] TchError),
}

/// What a model says about one word under one intervention.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct WordScore {
    /// The word, as [`WordRequest::text`].
    pub text: Arc<str>,
    /// Its bytes in its text, as [`WordRequest::span`].
    pub span: Range<usize>,
    /// Natural-log probability of each piece.
    pub ln_probs: Vec<f64>,
    /// Expected where the word begins.
    pub before: Boundary,
    /// Expected behind its last piece.
    pub after: Boundary,
    /// Entropy in nats of the next token where the word begins, in the unchanged model; none under an intervention.
    pub entropy_nats: Option<f64>,
}

impl WordScore {
    /// Surprisal of the word in nats.
    ///
    /// # Errors
    /// - as [`word_surprisal_nats`]
    pub fn surprisal_nats(&self, form: WordForm) -> Result<f64, MetricError> {
        word_surprisal_nats(form, &self.ln_probs, &self.before, &self.after)
    }
}

/// Scores words on one model.
#[derive(Debug)]
pub struct Scorer<'m> {
    source: Source<'m>,
    /// Number of the last layer.
    layer: usize,
    /// Output weights of its neurons, `[d_mlp, d_model]`.
    w_out: Tensor,
    /// Sums of logits that hooks or tensor operations made.
    logit_sums: LogitSums,
    sums: Sums,
    batch_tokens: usize,
    /// Rows whose logits are in memory at once.
    rows_at_once: i64,
    /// Rows that are projected at once, a multiple of it: a product reads `W_U` anew for each call.
    rows_projected: i64,
    boundaries: bool,
}

/// What sums up the vocabulary.
#[derive(Debug)]
enum Sums {
    /// On a CPU.
    Kernel(Box<WordSums>),
    /// Elsewhere.
    Tensors(TensorSums),
}

/// What runs.
enum Source<'m> {
    Model(&'m Model),
    /// A model of which there is the last layer alone.
    Last(Box<Forward<'m>>),
}

impl fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Model(_) => "Model",
            Self::Last(_) => "Last",
        })
    }
}

/// Blocks of logits that are projected by one product (64 MB on a CPU).
const PROJECTED_BLOCKS: i64 = 8;

/// The wanted rows of one forward, on the device.
struct States {
    /// `resid_post` of the last block, `[row, d_model]`.
    resid: Tensor,
    /// MLP of the last layer before and after the activation function, `[row, d_mlp]`.
    pre: Option<Tensor>,
    post: Option<Tensor>,
}

impl<'m> Scorer<'m> {
    /// Prepares scoring; `batch_tokens` bounds the positions of one forward (4,096 is a good
    /// number on a CPU).
    ///
    /// # Errors
    /// - [`ScoreError::Vocabulary`] if `words` was made for another vocabulary size
    /// - [`ScoreError::Eos`] if what ends a text there is no token of the model
    /// - [`ScoreError::Torch`] if libtorch fails
    pub fn new(
        model: &'m Model,
        words: &WordVocabulary,
        batch_tokens: usize,
    ) -> Result<Self, ScoreError> {
        let layer = model.config().num_hidden_layers - 1;
        let w_out = model.w_out(layer)?.f_tr()?;
        let readout = Readout::of_model(model)?;
        Self::prepare(
            Source::Model(model),
            (readout, w_out, layer),
            words,
            batch_tokens,
        )
    }

    /// The same for a model of which there is the last layer alone, such as one that is not ours: texts that are the beginning of other
    /// texts are read off these, interventions are on neurons of that layer, after the activation function, and
    /// [`Scorer::score_with`] is an error. Texts of one forward are padded at the end with token 0, at which a causal model does not look.
    ///
    /// # Errors
    /// - as [`Scorer::new`]
    pub fn of_last_layer(
        last: LastLayer<'m>,
        words: &WordVocabulary,
        batch_tokens: usize,
    ) -> Result<Self, ScoreError> {
        let LastLayer {
            readout,
            write,
            layer,
            forward,
        } = last;
        if write.norm().is_some() {
            return Err(AblateError::LastLayerOnly {
                what: "a norm behind the MLP",
            }
            .into());
        }
        let device = readout.w_u().device();
        let w_out = write.w_out().f_to_kind(Kind::Float)?.f_to_device(device)?;
        Self::prepare(
            Source::Last(forward),
            (readout, w_out, layer),
            words,
            batch_tokens,
        )
    }

    fn prepare(
        source: Source<'m>,
        (readout, w_out, layer): (Readout, Tensor, usize),
        words: &WordVocabulary,
        batch_tokens: usize,
    ) -> Result<Self, ScoreError> {
        let (d_vocab, device) = (readout.w_u().size()[0], readout.w_u().device());
        if !(0..d_vocab).contains(&words.eos) {
            return Err(ScoreError::Eos {
                eos: words.eos,
                last: d_vocab - 1,
            });
        }
        if words.begins.len() as i64 != d_vocab {
            return Err(ScoreError::Vocabulary {
                found: words.begins.len(),
                expected: d_vocab as usize,
            });
        }
        // Blocks of logits that stay in a CPU's cache; a GPU wants more at once.
        let entries = if device.is_cuda() { 1 << 26 } else { 1 << 21 };
        let rows_at_once = (entries / d_vocab).max(8);
        Ok(Self {
            source,
            layer,
            w_out,
            logit_sums: LogitSums::new(words, device)?,
            sums: match device {
                Device::Cpu => Sums::Kernel(Box::new(WordSums::new(readout, words)?)),
                _ => Sums::Tensors(TensorSums::new(readout)?),
            },
            batch_tokens: batch_tokens.max(1),
            rows_at_once,
            rows_projected: rows_at_once * PROJECTED_BLOCKS,
            boundaries: true,
        })
    }

    /// Leaves out what only the corrected forms need: the mass of word boundaries, and with it the
    /// last token of every text. Scores then have boundaries without mass, so that the corrected
    /// forms are errors.
    #[must_use]
    pub fn without_boundaries(mut self) -> Self {
        self.boundaries = false;
        self
    }

    /// Makes the sums over the vocabulary by tensor operations, as on a GPU, where on a CPU the kernel would: a slower way to the same
    /// numbers.
    ///
    /// # Errors
    /// - [`ScoreError::Torch`] if libtorch fails
    pub fn with_tensors(mut self) -> Result<Self, ScoreError> {
        if let Sums::Kernel(kernel) = &self.sums {
            self.sums = Sums::Tensors(TensorSums::new(kernel.readout().shallow_clone())?);
        }
        Ok(self)
    }

    /// Scores every request under every intervention: `[request][intervention]`.
    ///
    /// # Errors
    /// - [`ScoreError::Intervention`] for a neuron that the model does not have
    /// - [`ScoreError::Word`] for a request without a token before the word
    /// - [`ScoreError::Forward`] for a text longer than the model reads (see
    ///   [`WordRequest::within`]) or a token outside the vocabulary
    /// - [`ScoreError::NotFinite`] if weights overflow
    /// - [`ScoreError::Torch`] if libtorch fails
    pub fn score(
        &self,
        requests: &[WordRequest],
        interventions: &[Intervention],
    ) -> Result<Vec<Vec<WordScore>>, ScoreError> {
        for intervention in interventions {
            match self.source {
                Source::Model(model) => intervention.check(model)?,
                Source::Last(_) => {
                    intervention.check_last(self.layer, self.w_out.size()[0] as usize)?
                }
            }
        }
        check(requests)?;
        let prepared = match &self.sums {
            Sums::Kernel(kernel) => Prepared::Kernel(kernel, self.neurons(kernel, interventions)?),
            Sums::Tensors(tensors) => {
                let of_each = interventions.iter().map(|i| self.vectors(tensors, i));
                Prepared::Tensors(tensors, of_each.collect::<Result<_, _>>()?)
            }
        };
        let mut scores: Vec<Vec<WordScore>> =
            vec![Vec::with_capacity(interventions.len()); requests.len()];
        for batch in self.batches(requests, BRANCHED_ROW)? {
            let shared = self.states(&batch, interventions)?;
            let values = tch::no_grad(|| self.values(&batch, &shared, interventions, &prepared))?;
            for (intervention, values) in interventions.iter().zip(&values) {
                for place in &batch.places {
                    let request = &requests[place.request];
                    scores[place.request].push(values.score(
                        place,
                        request,
                        intervention.name(),
                    )?);
                }
            }
        }
        Ok(scores)
    }

    /// Scores every request, `[request]`, in forwards that pass through `hooks`: an intervention of one's own, at any sites.
    ///
    /// Hooks see `[batch, pos, ...]` with one text in a row, as [`Model::forward`] shows it: padded at the end, and a text that begins
    /// another one is read off the longer. So a position may depend on earlier ones alone. Any number of
    /// [`Intervention`]s of the last layer cost less than this: see [`Scorer::score`].
    ///
    /// # Errors
    /// - as [`Scorer::score`], and what the hooks report
    ///
    /// # Examples
    /// ```
    /// # use neox_core::{LoadOptions, Model, Text};
    /// use neox_core::{HookError, Hooks, Site, tch::Tensor};
    /// use neuron_ablate::{Scorer, WordRequest, WordVocabulary, surprisal_metrics::WordForm};
    ///
    /// /// Takes the MLP of a layer out of the residual stream.
    /// struct WithoutMlp(usize);
    ///
    /// impl Hooks for WithoutMlp {
    ///     fn wants(&self, site: Site) -> bool {
    ///         site == Site::MlpPost(self.0)
    ///     }
    ///     fn at(&mut self, _: Site, activations: Tensor) -> Result<Tensor, HookError> {
    ///         Ok(activations.f_zeros_like()?)
    ///     }
    /// }
    ///
    /// # let folder = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data/tiny-neox"));
    /// # if !folder.exists() { return Ok(()); } // the crate without its repository
    /// # let model = Model::load(&folder.join("step4000"), &LoadOptions::default())?;
    /// # let text = Text::from_file(&folder.join("tokenizer.json"))?;
    /// let words = WordRequest::words_of(&text, 0, "The great whale rose")?; // 0 is BOS, and also EOS
    /// let vocabulary = WordVocabulary::new(&text, 0, 4096)?;
    /// for word in Scorer::new(&model, &vocabulary, 4096)?.score_with(&words, &mut WithoutMlp(1))? {
    ///     println!("{} {:?}: {:.3} nats", word.text, word.span, word.surprisal_nats(WordForm::Corrected)?);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn score_with(
        &self,
        requests: &[WordRequest],
        hooks: &mut dyn Hooks,
    ) -> Result<Vec<WordScore>, ScoreError> {
        check(requests)?;
        let mut scores: Vec<(usize, WordScore)> = Vec::with_capacity(requests.len());
        // No text shares a row with another.
        for batch in self.batches(requests, 0)? {
            let values = tch::no_grad(|| self.hooked_values(&batch, hooks))?;
            for place in &batch.places {
                let score = values.score(place, &requests[place.request], "hooks")?;
                scores.push((place.request, score));
            }
        }
        scores.sort_by_key(|(request, _)| *request);
        Ok(scores.into_iter().map(|(_, score)| score).collect())
    }
}

/// Refuses a word whose pieces are not behind something.
fn check(requests: &[WordRequest]) -> Result<(), ScoreError> {
    for (request, WordRequest { tokens, word, .. }) in requests.iter().enumerate() {
        if word.start == 0 || word.is_empty() || word.end > tokens.len() {
            return Err(ScoreError::Word {
                request,
                first: word.start,
                end: word.end,
                len: tokens.len(),
            });
        }
    }
    Ok(())
}

impl Scorer<'_> {
    /// The whole model.
    fn model(&self, what: &'static str) -> Result<&Model, AblateError> {
        match self.source {
            Source::Model(model) => Ok(model),
            Source::Last(_) => Err(AblateError::LastLayerOnly { what }),
        }
    }

    /// Whether an intervention is read off the shared forward: one that changes nothing, or only neurons of the last layer that
    /// write to the residual stream themselves.
    fn is_shared(&self, intervention: &Intervention) -> bool {
        let direct = match self.source {
            Source::Model(model) => writes_directly(model).is_ok(),
            Source::Last(_) => true,
        };
        intervention.neurons().is_empty() || direct && intervention.only_in(self.layer)
    }

    /// Each distinct text that is not the beginning of another, in batches of similar length; several share a row of at most `branched`
    /// tokens.
    fn batches(&self, requests: &[WordRequest], branched: usize) -> Result<Vec<Batch>, TchError> {
        let at_most = match self.source {
            Source::Model(model) => {
                let longest = usize::try_from(model.config().max_position_embeddings);
                branched.min(longest.unwrap_or(branched))
            }
            Source::Last(_) => 0,
        };
        let rows = RowTexts::arrange(requests, self.boundaries, at_most);
        // Rows with branches need a mask, for which plain rows should not pay.
        let (plain, branched): (Vec<_>, Vec<_>) =
            rows.into_iter().partition(|row| row.texts.len() == 1);
        let mut batches = Vec::new();
        for mut rows in [plain, branched] {
            rows.sort_by_key(|row| row.len);
            let mut rest = rows.as_slice();
            while !rest.is_empty() {
                let (these, later) = rest.split_at(RowTexts::together(rest, self.batch_tokens));
                batches.push(Batch::new(requests, self.boundaries, these)?);
                rest = later;
            }
        }
        Ok(batches)
    }

    /// The residual stream of a batch's wanted rows, `[row, d_model]`.
    fn residual(&self, batch: &Batch, hooks: &mut dyn Hooks) -> Result<Tensor, ScoreError> {
        let rows = Tensor::f_from_slice(&batch.rows)?;
        let branches = batch.branches.as_deref();
        let model = self.model("an intervention on an earlier layer")?;
        Ok(tch::no_grad(|| {
            model.residual_rows(&batch.tokens, branches, &rows, hooks)
        })?)
    }

    /// One forward of the unchanged model, if any intervention is read off it.
    fn states(
        &self,
        batch: &Batch,
        interventions: &[Intervention],
    ) -> Result<Option<States>, ScoreError> {
        let shared: Vec<&Intervention> =
            interventions.iter().filter(|i| self.is_shared(i)).collect();
        if shared.is_empty() {
            return Ok(None);
        }
        if let Source::Last(forward) = &self.source {
            return Ok(Some(self.states_of(forward, batch)?));
        }
        let wants = |site| {
            shared
                .iter()
                .any(|i| !i.neurons().is_empty() && i.site() == site)
        };
        let mut capture = Capture {
            layer: self.layer,
            pre: wants(NeuronSite::Pre),
            post: !shared.iter().all(|i| i.neurons().is_empty()),
            kept: BTreeMap::new(),
        };
        let resid = self.residual(batch, &mut capture)?;
        Ok(Some(States {
            resid,
            pre: capture.kept.remove("pre"),
            post: capture.kept.remove("post"),
        }))
    }

    /// The same of a forward that is not our model's.
    fn states_of(&self, forward: &Forward<'_>, batch: &Batch) -> Result<States, ScoreError> {
        let (n_texts, longest) = batch.tokens.size2()?;
        let tokens = Vec::<i64>::try_from(&batch.tokens.f_view(-1)?)?;
        let texts: Vec<&[i64]> = tokens.chunks(longest as usize).collect();
        let states = forward(&texts)?;
        let wanted = Tensor::f_from_slice(&batch.rows)?;
        let rows = |of: fn(&LastLayerStates) -> &Tensor| {
            let each: Vec<&Tensor> = states.iter().map(of).collect();
            Tensor::f_stack(&each, 0)?
                .f_view([n_texts * longest, -1])?
                .f_index_select(0, &wanted)?
                .f_to_device(self.logit_sums.device())
        };
        Ok(States {
            resid: rows(|states| &states.resid)?,
            pre: None,
            post: Some(rows(|states| &states.activations)?),
        })
    }

    /// Whether a set is as wide as the residual stream: it gains nothing from images in the vocabulary.
    fn is_wide(&self, intervention: &Intervention) -> bool {
        intervention.neurons().len() as i64 * 2 > self.w_out.size()[1]
    }

    /// The neurons of all interventions that are read off the shared forward.
    fn neurons(
        &self,
        kernel: &WordSums,
        interventions: &[Intervention],
    ) -> Result<Neurons, ScoreError> {
        let shared = || interventions.iter().filter(|i| self.is_shared(i));
        let of = |wide: bool| -> BTreeSet<usize> {
            let sets = shared().filter(|i| self.is_wide(i) == wide);
            sets.flat_map(|i| i.neurons().iter().map(|n| n.neuron))
                .collect()
        };
        let (narrow, wide) = (of(false), of(true));
        let all: Vec<usize> = narrow
            .iter()
            .chain(wide.difference(&narrow))
            .copied()
            .collect();
        let w_out = self.output_weights(all.iter().copied())?;
        Ok(kernel.neurons(&all, &w_out, narrow.len())?)
    }

    /// `[intervention]`
    fn values(
        &self,
        batch: &Batch,
        shared: &Option<States>,
        interventions: &[Intervention],
        prepared: &Prepared<'_>,
    ) -> Result<Vec<RowValues>, ScoreError> {
        let mut own = Vec::with_capacity(interventions.len());
        for intervention in interventions {
            own.push(match self.is_shared(intervention) {
                true => None,
                false => {
                    let mut hooks = InterventionHooks::new(intervention);
                    Some(self.residual(batch, &mut hooks)?)
                }
            });
        }
        let forwards = Forwards {
            batch,
            shared,
            interventions,
            own: &own,
        };
        let mut values = vec![RowValues::default(); interventions.len()];
        match prepared {
            Prepared::Kernel(kernel, neurons) => {
                self.add_by_kernel(&forwards, kernel, neurons, &mut values)?;
            }
            Prepared::Tensors(tensors, of_each) => {
                self.add_by_tensors(&forwards, tensors, of_each, &mut values)?;
            }
        }
        Ok(values)
    }

    /// Adds the values of a batch, `[intervention]`.
    fn add_by_kernel(
        &self,
        forwards: &Forwards<'_>,
        kernel: &WordSums,
        neurons: &Neurons,
        values: &mut [RowValues],
    ) -> Result<(), ScoreError> {
        let Forwards {
            batch,
            shared,
            interventions,
            own,
        } = forwards;
        let n_rows = batch.rows.len() as i64;
        // A wide set has an image of its own for each row.
        let wide = interventions.iter().filter(|i| self.is_wide(i)).count() as i64;
        let rows_at_once = (self.rows_projected / (1 + wide)).max(8);
        for start in (0..n_rows).step_by(rows_at_once as usize) {
            let len = rows_at_once.min(n_rows - start);
            let targets = batch.targets_of(start as usize..(start + len) as usize);
            let read = |resid: &Tensor, changes: &[Changed]| {
                let rows = resid.f_narrow(0, start, len)?;
                kernel.read(&rows, changes, neurons, &targets, self.boundaries)
            };
            for (resid, values) in own.iter().zip(values.iter_mut()) {
                if let Some(resid) = resid {
                    let of_rows = read(resid, &[])?.0;
                    values.ln_probs.extend(of_rows.ln_probs);
                    values.boundaries.extend(of_rows.boundaries);
                }
            }
            let Some(states) = shared else { continue };
            let changes = interventions
                .iter()
                .filter(|i| self.is_shared(i) && !i.neurons().is_empty());
            let changes = changes
                .map(|intervention| {
                    Ok(Changed {
                        neurons: intervention.neurons().iter().map(|n| n.neuron).collect(),
                        wide: self.is_wide(intervention),
                        change: on_host(&self.change(intervention, states, start, len)?)?,
                    })
                })
                .collect::<Result<Vec<_>, ScoreError>>()?;
            let (clean, changed) = read(&states.resid, &changes)?;
            let mut changed = changed.into_iter();
            for (intervention, values) in interventions.iter().zip(values.iter_mut()) {
                if !self.is_shared(intervention) {
                    continue;
                }
                match intervention.neurons().is_empty() {
                    true => values.extend(clean.clone()),
                    false => values.extend(changed.next().unwrap_or_default()),
                }
            }
        }
        Ok(())
    }

    /// The same.
    fn add_by_tensors(
        &self,
        forwards: &Forwards<'_>,
        tensors: &TensorSums,
        neurons: &[NeuronVectors],
        values: &mut [RowValues],
    ) -> Result<(), ScoreError> {
        let Forwards {
            batch,
            shared,
            interventions,
            own,
        } = forwards;
        let n_rows = batch.rows.len() as i64;
        let mut projected: Option<Projected> = None;
        for start in (0..n_rows).step_by(self.rows_at_once as usize) {
            let len = self.rows_at_once.min(n_rows - start);
            let within = start % self.rows_projected;
            if let Some(states) = shared
                && within == 0
            {
                let rows = self.rows_projected.min(n_rows - start);
                drop(projected.take()); // before the next one takes its memory
                projected = Some(tensors.project(&states.resid.f_narrow(0, start, rows)?)?);
            }
            let rows = start as usize..(start + len) as usize;
            let targets = self.logit_sums.targets(batch, rows)?;
            let clean = match (shared, &projected) {
                (Some(states), Some(block)) => Some((states, block.rows(within, len)?)),
                _ => None,
            };
            for (i, intervention) in interventions.iter().enumerate() {
                let logits = match (&own[i], &clean) {
                    (Some(resid), _) => {
                        let resid = resid.f_narrow(0, start, len)?;
                        tensors.logits(&tensors.project(&resid)?, None)?
                    }
                    (None, Some((_, clean))) if intervention.neurons().is_empty() => {
                        tensors.logits(clean, None)?
                    }
                    (None, Some((states, clean))) => {
                        let change = self.change(intervention, states, start, len)?;
                        let changed = tensors.changed(clean, &change, &neurons[i])?;
                        tensors.logits(&changed, Some((&change, &neurons[i])))?
                    }
                    (None, None) => {
                        return Err(TchError::Torch(
                            "an intervention on the last layer came without a forward".into(),
                        )
                        .into());
                    }
                };
                let beside = Beside {
                    boundaries: self.boundaries,
                    entropies: intervention.neurons().is_empty(),
                };
                values[i].extend(self.logit_sums.read(logits, &targets, beside)?);
            }
        }
        Ok(())
    }

    /// Values of a batch whose forward passes through hooks of one's own.
    fn hooked_values(&self, batch: &Batch, hooks: &mut dyn Hooks) -> Result<RowValues, ScoreError> {
        let model = self.model("a hook")?;
        let wanted = Tensor::f_from_slice(&batch.rows)?.f_to_device(model.device())?;
        let rows = |of_all: Tensor| {
            let width = of_all.size()[2];
            of_all.f_view([-1, width])?.f_index_select(0, &wanted)
        };
        // Who looks at the readout gets the model's own, logits of all positions.
        let readout = hooks.wants(Site::LnFinalScale) || hooks.wants(Site::Logits);
        let of_rows = match readout {
            true => rows(model.forward(&batch.tokens, None, hooks)?)?,
            false => rows(model.residual(&batch.tokens, None, hooks)?)?,
        };
        let mut values = RowValues::default();
        let n_rows = batch.rows.len() as i64;
        for start in (0..n_rows).step_by(self.rows_at_once as usize) {
            let len = self.rows_at_once.min(n_rows - start);
            let rows = start as usize..(start + len) as usize;
            let these = of_rows.f_narrow(0, start, len)?;
            let logits = match (&self.sums, readout) {
                (_, true) => these.f_to_kind(Kind::Float)?,
                (Sums::Tensors(tensors), false) => {
                    tensors.logits(&tensors.project(&these)?, None)?
                }
                (Sums::Kernel(kernel), false) => {
                    let targets = batch.targets_of(rows);
                    let none = Neurons::default();
                    let read = kernel.read(&these, &[], &none, &targets, self.boundaries)?;
                    values.extend(read.0);
                    continue;
                }
            };
            let beside = Beside {
                boundaries: self.boundaries,
                entropies: false,
            };
            let targets = self.logit_sums.targets(batch, rows)?;
            values.extend(self.logit_sums.read(logits, &targets, beside)?);
        }
        Ok(values)
    }

    /// `a' - a` of the intervention's neurons in f32, `[row, k]`.
    fn change(
        &self,
        intervention: &Intervention,
        states: &States,
        start: i64,
        len: i64,
    ) -> Result<Tensor, ScoreError> {
        let missing = || {
            TchError::Torch(
                "the model did not pass the activations of its last layer to the hook".into(),
            )
        };
        let post = states
            .post
            .as_ref()
            .ok_or_else(missing)?
            .f_narrow(0, start, len)?;
        let (part, new) = match intervention.site() {
            NeuronSite::Post => {
                let part = intervention.in_layer(self.layer, &post)?;
                let new = part.apply(&post)?;
                (part, new)
            }
            NeuronSite::Pre => {
                let pre = states
                    .pre
                    .as_ref()
                    .ok_or_else(missing)?
                    .f_narrow(0, start, len)?;
                let part = intervention.in_layer(self.layer, &pre)?;
                let model = self.model("an intervention before the activation function")?;
                let new = activate(model.config().hidden_act, &part.apply(&pre)?)?;
                (part, new)
            }
        };
        let old = post.f_index_select(-1, &part.index)?;
        Ok(new
            .f_to_kind(Kind::Float)?
            .f_sub(&old.f_to_kind(Kind::Float)?)?)
    }

    /// What an intervention's last-layer neurons write.
    fn vectors(
        &self,
        tensors: &TensorSums,
        intervention: &Intervention,
    ) -> Result<NeuronVectors, ScoreError> {
        if intervention.neurons().is_empty() || !self.is_shared(intervention) {
            return Ok(NeuronVectors::default());
        }
        let w_out = self.output_weights(intervention.neurons().iter().map(|n| n.neuron))?;
        Ok(tensors.neurons(&w_out, !self.is_wide(intervention))?)
    }

    /// Output weights of neurons of the last layer, `[neuron, d_model]`.
    fn output_weights(&self, neurons: impl Iterator<Item = usize>) -> Result<Tensor, TchError> {
        let index: Vec<i64> = neurons.map(|n| n as i64).collect();
        let index = Tensor::f_from_slice(&index)?.f_to_device(self.w_out.device())?;
        self.w_out.f_index_select(0, &index)
    }
}

/// What was prepared for the interventions of a call.
enum Prepared<'s> {
    Kernel(&'s WordSums, Neurons),
    /// `[intervention]`
    Tensors(&'s TensorSums, Vec<NeuronVectors>),
}

/// The forwards of a batch.
struct Forwards<'b> {
    batch: &'b Batch,
    /// The one that interventions are read off.
    shared: &'b Option<States>,
    interventions: &'b [Intervention],
    /// The residual stream of interventions that have a forward of their own.
    own: &'b [Option<Tensor>],
}

/// Keeps the wanted rows of the last MLP as they pass.
struct Capture {
    layer: usize,
    pre: bool,
    post: bool,
    kept: BTreeMap<&'static str, Tensor>,
}

impl Hooks for Capture {
    fn wants(&self, site: Site) -> bool {
        (self.pre && site == Site::MlpPre(self.layer))
            || (self.post && site == Site::MlpPost(self.layer))
    }

    fn at(&mut self, site: Site, value: Tensor) -> Result<Tensor, HookError> {
        let name = if site == Site::MlpPre(self.layer) {
            "pre"
        } else {
            "post"
        };
        // Of the last block the forward computes the wanted rows alone: `[1, row, d_mlp]`.
        self.kept.insert(name, value.f_squeeze_dim(0)?);
        Ok(value)
    }
}
