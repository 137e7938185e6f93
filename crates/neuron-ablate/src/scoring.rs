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
//! costs two passes over the vocabulary per word and intervention. Log-probabilities leave the
//! device one by one, never a vocabulary of them.

mod batch;
mod kernel;

use std::collections::{BTreeMap, BTreeSet};

use neox_core::{ForwardError, Hooks, Model, Site};
use surprisal_metrics::{Boundary, MetricError, WordForm, word_surprisal_nats};
use tch::{Device, Kind, TchError, Tensor};

use crate::AblateError;
use crate::interventions::{
    Intervention, InterventionError, InterventionHooks, NeuronSite, activate,
};
use crate::word_request::{WordRequest, WordStart, WordVocabulary};
use crate::{Readout, states::writes_directly, vectors::on_host};
use batch::{BRANCHED_ROW, Batch, Place, RowTexts};
use kernel::{Changed, Neurons, WordSums};

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
pub struct WordScore {
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
    model: &'m Model,
    /// Columns of ones, of tokens that begin a word and of those that do not: `[d_vocab, 3]`, f64.
    classes: Tensor,
    /// `W_U` in f32, `[d_vocab, d_model]`; the model's own memory where that is f32.
    w_u: Tensor,
    eos: i64,
    readout: Readout,
    /// `gamma` in f32, `[d_model]`.
    gamma: Tensor,
    /// `W_U beta` in f32, `[1, d_vocab]`.
    b: Tensor,
    batch_tokens: usize,
    /// Rows whose logits are in memory at once.
    rows_at_once: i64,
    /// Rows that are projected at once, a multiple of it: a product reads `W_U` anew for each call.
    rows_projected: i64,
    boundaries: bool,
    /// On a CPU.
    kernel: Option<WordSums>,
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

/// Log-probabilities and boundary masses of the wanted rows, on the host.
#[derive(Debug, Clone, Default)]
struct RowValues {
    /// `[target]`
    ln_probs: Vec<f64>,
    /// `[row]`: begins, continues, eos.
    boundaries: Vec<[f64; 3]>,
    /// `[row]`, nats; empty where it is not asked for.
    entropies: Vec<f64>,
}

impl RowValues {
    /// Takes those of further rows.
    fn extend(&mut self, further: Self) {
        self.ln_probs.extend(further.ln_probs);
        self.boundaries.extend(further.boundaries);
        self.entropies.extend(further.entropies);
    }
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
        let d_vocab = model.config().vocab_size;
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
        let classes: Vec<f64> = words
            .begins
            .iter()
            .zip(&words.continues)
            .flat_map(|(&begins, &continues)| [1.0, begins.into(), continues.into()])
            .collect();
        let ln = model.ln_final();
        // Logits in half precision would be off by more than most interventions change them.
        let w_u = model.w_u().f_to_kind(Kind::Float)?;
        let b = w_u.f_mv(&ln.bias.f_to_kind(Kind::Float)?)?.f_unsqueeze(0)?;
        // Blocks of logits that stay in a CPU's cache; a GPU wants more at once.
        let entries = if model.device().is_cuda() {
            1 << 26
        } else {
            1 << 21
        };
        let rows_at_once = (entries / d_vocab).max(8);
        Ok(Self {
            model,
            classes: Tensor::f_from_slice(&classes)?
                .f_view([d_vocab, 3])?
                .f_to_device(model.device())?,
            w_u,
            eos: words.eos,
            gamma: ln.weight.f_to_kind(Kind::Float)?,
            readout: Readout::of_model(model).map_err(ScoreError::Architecture)?,
            b,
            batch_tokens: batch_tokens.max(1),
            rows_at_once,
            rows_projected: rows_at_once * PROJECTED_BLOCKS,
            boundaries: true,
            kernel: match model.device() {
                Device::Cpu if std::env::var_os("OLD").is_none() => Some(
                    WordSums::new(Readout::of_model(model)?, words)
                        .map_err(ScoreError::Architecture)?,
                ),
                _ => None,
            },
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
            intervention.check(self.model)?;
        }
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
        let of_kernel = match &self.kernel {
            None => None,
            Some(kernel) => Some((kernel, self.neurons(kernel, interventions)?)),
        };
        let neurons = match of_kernel {
            Some(_) => Vec::new(),
            None => interventions
                .iter()
                .map(|i| self.neuron_vectors(i))
                .collect::<Result<Vec<_>, _>>()?,
        };
        let mut scores: Vec<Vec<WordScore>> =
            vec![Vec::with_capacity(interventions.len()); requests.len()];
        for batch in self.batches(requests)? {
            let shared = self.states(&batch, interventions)?;
            let values = tch::no_grad(|| match &of_kernel {
                Some((kernel, neurons)) => {
                    self.values_of_kernel(&batch, &shared, interventions, (kernel, neurons))
                }
                None => self.values(&batch, &shared, interventions, &neurons),
            })?;
            for (intervention, values) in interventions.iter().zip(&values) {
                for place in &batch.places {
                    let score = place.score(&requests[place.request], values);
                    if !score.is_finite() {
                        return Err(ScoreError::NotFinite {
                            request: place.request,
                            intervention: intervention.name().to_owned(),
                        });
                    }
                    scores[place.request].push(score);
                }
            }
        }
        Ok(scores)
    }
}

impl Scorer<'_> {
    fn last_layer(&self) -> usize {
        self.model.config().num_hidden_layers - 1
    }

    /// Whether an intervention is read off the shared forward: one that changes nothing, or only neurons of the last layer that
    /// write to the residual stream themselves.
    fn is_shared(&self, intervention: &Intervention) -> bool {
        intervention.neurons().is_empty()
            || writes_directly(self.model).is_ok() && intervention.only_in(self.last_layer())
    }

    /// Each distinct text that is not the beginning of another, in batches of similar length.
    fn batches(&self, requests: &[WordRequest]) -> Result<Vec<Batch>, TchError> {
        let longest = usize::try_from(self.model.config().max_position_embeddings);
        let at_most = BRANCHED_ROW.min(longest.unwrap_or(BRANCHED_ROW));
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
        Ok(tch::no_grad(|| {
            self.model
                .residual_rows(&batch.tokens, branches, &rows, hooks)
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
        let wants = |site| {
            shared
                .iter()
                .any(|i| !i.neurons().is_empty() && i.site() == site)
        };
        let layer = self.last_layer();
        let mut capture = Capture {
            layer,
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

    /// `[intervention]`
    fn values(
        &self,
        batch: &Batch,
        shared: &Option<States>,
        interventions: &[Intervention],
        neurons: &[NeuronVectors],
    ) -> Result<Vec<RowValues>, ScoreError> {
        let n_rows = batch.rows.len() as i64;
        let mut values: Vec<RowValues> = interventions
            .iter()
            .map(|_| RowValues {
                ln_probs: Vec::new(),
                boundaries: Vec::new(),
                entropies: Vec::new(),
            })
            .collect();
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
        let mut projected: Option<Projected> = None;
        for start in (0..n_rows).step_by(self.rows_at_once as usize) {
            let len = self.rows_at_once.min(n_rows - start);
            let within = start % self.rows_projected;
            if let Some(states) = shared
                && within == 0
            {
                let rows = self.rows_projected.min(n_rows - start);
                drop(projected.take()); // before the next one takes its memory
                projected = Some(self.project(&states.resid.f_narrow(0, start, rows)?)?);
            }
            let targets = batch.targets_within(start as usize..(start + len) as usize);
            let index: Vec<i64> = targets
                .iter()
                .map(|&(row, token)| (row as i64 - start) * self.model.config().vocab_size + token)
                .collect();
            let index = Tensor::f_from_slice(&index)?.f_to_device(self.model.device())?;
            let clean = match (shared, &projected) {
                (Some(states), Some(block)) => Some((states, block.rows(within, len)?)),
                _ => None,
            };
            for (i, intervention) in interventions.iter().enumerate() {
                let logits = match (&own[i], &clean) {
                    (Some(resid), _) => self
                        .project(&resid.f_narrow(0, start, len)?)?
                        .logits(None, &self.b)?,
                    (None, Some((_, clean))) if intervention.neurons().is_empty() => {
                        clean.logits(None, &self.b)?
                    }
                    (None, Some((states, clean))) => {
                        let change = self.change(intervention, states, start, len)?;
                        neurons[i]
                            .changed(self, clean, &change)?
                            .logits(Some((&change, &neurons[i])), &self.b)?
                    }
                    (None, None) => {
                        return Err(TchError::Torch(
                            "an intervention on the last layer came without a forward".into(),
                        )
                        .into());
                    }
                };
                let entropy = intervention.neurons().is_empty();
                self.read(logits, &index, entropy, &mut values[i])?;
            }
        }
        Ok(values)
    }

    /// Whether a set is as wide as the residual stream: it gains nothing from images in the vocabulary.
    fn is_wide(&self, intervention: &Intervention) -> bool {
        intervention.neurons().len() * 2 > self.model.config().hidden_size as usize
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
        let index: Vec<i64> = all.iter().map(|&n| n as i64).collect();
        let w_out = self.model.w_out(self.last_layer())?;
        let w_out = w_out
            .f_index_select(1, &Tensor::f_from_slice(&index)?)?
            .f_tr()?;
        Ok(kernel.neurons(&all, &w_out, narrow.len())?)
    }

    /// `[intervention]`
    fn values_of_kernel(
        &self,
        batch: &Batch,
        shared: &Option<States>,
        interventions: &[Intervention],
        (kernel, neurons): (&WordSums, &Neurons),
    ) -> Result<Vec<RowValues>, ScoreError> {
        let n_rows = batch.rows.len() as i64;
        let mut values: Vec<RowValues> =
            interventions.iter().map(|_| RowValues::default()).collect();
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
        for start in (0..n_rows).step_by(self.rows_projected as usize) {
            let len = self.rows_projected.min(n_rows - start);
            let targets = batch.targets_within(start as usize..(start + len) as usize);
            let targets: Vec<(usize, i64)> = targets
                .iter()
                .map(|&(row, token)| (row - start as usize, token))
                .collect();
            let read = |resid: &Tensor, changes: &[Changed]| {
                let rows = resid.f_narrow(0, start, len)?;
                kernel.read(&rows, changes, neurons, &targets, self.boundaries)
            };
            for (resid, values) in own.iter().zip(&mut values) {
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
                .collect::<Result<Vec<_>, TchError>>()?;
            let (clean, changed) = read(&states.resid, &changes)?;
            let mut changed = changed.into_iter();
            for (intervention, values) in interventions.iter().zip(&mut values) {
                if !self.is_shared(intervention) {
                    continue;
                }
                match intervention.neurons().is_empty() {
                    true => values.extend(clean.clone()),
                    false => values.extend(changed.next().unwrap_or_default()),
                }
            }
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
    ) -> Result<Tensor, TchError> {
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
                let part = intervention.in_layer(self.last_layer(), &post)?;
                let new = part.apply(&post)?;
                (part, new)
            }
            NeuronSite::Pre => {
                let pre = states
                    .pre
                    .as_ref()
                    .ok_or_else(missing)?
                    .f_narrow(0, start, len)?;
                let part = intervention.in_layer(self.last_layer(), &pre)?;
                let new = activate(self.model.config().hidden_act, &part.apply(&pre)?)?;
                (part, new)
            }
        };
        let old = post.f_index_select(-1, &part.index)?;
        new.f_to_kind(Kind::Float)?
            .f_sub(&old.f_to_kind(Kind::Float)?)
    }

    /// Rows of the residual stream, centred, and their image in the vocabulary.
    fn project(&self, resid: &Tensor) -> Result<Projected, TchError> {
        let x = resid.f_to_kind(Kind::Float)?;
        let x_c = self.readout.seen(&x)?;
        let g = x_c.f_mul(&self.gamma)?.f_matmul(&self.w_u.f_tr()?)?;
        let inverse_scale = self.inverse_scale(&x_c)?;
        Ok(Projected {
            x_c,
            g,
            inverse_scale,
        })
    }

    /// `1 / s`, `[row, 1]`.
    fn inverse_scale(&self, x_c: &Tensor) -> Result<Tensor, TchError> {
        x_c.f_square()?
            .f_mean_dim(-1, true, Kind::Float)?
            .f_add_scalar(self.model.ln_final().eps)?
            .f_rsqrt()
    }

    /// Output weights of an intervention's last-layer neurons.
    fn neuron_vectors(&self, intervention: &Intervention) -> Result<NeuronVectors, ScoreError> {
        let index: Vec<i64> = intervention
            .neurons()
            .iter()
            .map(|n| n.neuron as i64)
            .collect();
        if index.is_empty() || !self.is_shared(intervention) {
            return Ok(NeuronVectors::default());
        }
        let index = Tensor::f_from_slice(&index)?.f_to_device(self.model.device())?;
        let w = self
            .model
            .w_out(self.last_layer())?
            .f_index_select(1, &index)?
            .f_tr()?; // [k, d_model]
        let projected = self.project(&w)?;
        // A set as wide as the residual stream gains nothing from its image in the vocabulary.
        let few = index.size()[0] * 2 <= self.model.config().hidden_size;
        let u_and_b = match few {
            true => Some(Tensor::f_cat(&[&projected.g, &self.b], 0)?),
            false => None,
        };
        Ok(NeuronVectors {
            w_c: Some(projected.x_c),
            u_and_b,
        })
    }

    /// Log-probabilities of the targets and masses of the boundary classes; overwrites `logits`.
    ///
    /// Sums over the vocabulary are made in f64: in f32 a product adds entries one after the other, and over 50,000 of about the same
    /// size loses 1e-3 of them.
    fn read(
        &self,
        mut logits: Tensor,
        index: &Tensor,
        entropy: bool,
        values: &mut RowValues,
    ) -> Result<(), TchError> {
        let max = logits.f_amax([-1i64].as_slice(), true)?;
        let _ = logits.f_sub_(&max)?; // [row, d_vocab]
        let targets = logits
            .f_view(-1)?
            .f_index_select(0, index)?
            .f_to_kind(Kind::Double)?;
        let row = index.f_floor_divide_scalar(self.model.config().vocab_size)?;
        let ln_probs = |total: &Tensor| targets.f_sub(&total.f_index_select(0, &row)?);
        let eos = logits.f_select(1, self.eos)?.f_to_kind(Kind::Double)?;
        let shifted = match entropy {
            true => Some(logits.f_to_kind(Kind::Double)?),
            false => None,
        };
        let p = logits.f_exp_()?.f_to_kind(Kind::Double)?;
        // With z the shifted logits: ln sum e^z - sum e^z z / sum e^z.
        let mut read_entropies = |total: &Tensor| -> Result<(), TchError> {
            let Some(z) = &shifted else { return Ok(()) };
            let weighted = z.f_mul(&p)?.f_sum_dim_intlist(-1, false, Kind::Double)?;
            let mean = weighted.f_mul(&total.f_neg()?.f_exp()?)?;
            let found = Vec::<f64>::try_from(&total.f_sub(&mean)?)?;
            values.entropies.extend(found);
            Ok(())
        };
        if !self.boundaries {
            let total = p.f_sum_dim_intlist(-1, false, Kind::Double)?.f_log()?; // [row]
            read_entropies(&total)?;
            let ln_probs = Vec::<f64>::try_from(&ln_probs(&total)?)?;
            values.ln_probs.extend(ln_probs);
            return Ok(());
        }
        let sums = p.f_matmul(&self.classes)?.f_log()?; // [row, 3]
        let total = sums.f_select(1, 0)?; // [row]
        read_entropies(&total.f_contiguous()?)?;
        let ln_probs = Vec::<f64>::try_from(&ln_probs(&total)?)?;
        values.ln_probs.extend(ln_probs);
        let boundaries = Tensor::f_stack(&[sums.f_select(1, 1)?, sums.f_select(1, 2)?, eos], 1)?
            .f_sub(&total.f_unsqueeze(1)?)?;
        let flat: Vec<f64> = Vec::try_from(&boundaries.f_contiguous()?.f_view(-1)?)?;
        values
            .boundaries
            .extend(flat.chunks_exact(3).map(|c| [c[0], c[1], c[2]]));
        Ok(())
    }
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

    fn at(&mut self, site: Site, value: Tensor) -> Result<Tensor, TchError> {
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

/// Centred rows and what of their logits does not depend on the scale.
struct Projected {
    /// `[row, d_model]`
    x_c: Tensor,
    /// `W_U (gamma * x_c)`, `[row, d_vocab]`.
    g: Tensor,
    /// `1 / s`, `[row, 1]`.
    inverse_scale: Tensor,
}

impl Projected {
    /// Some of the rows, in the same memory.
    fn rows(&self, start: i64, len: i64) -> Result<Self, TchError> {
        Ok(Self {
            x_c: self.x_c.f_narrow(0, start, len)?,
            g: self.g.f_narrow(0, start, len)?,
            inverse_scale: self.inverse_scale.f_narrow(0, start, len)?,
        })
    }

    /// `(g + change u) / s + b`, with `u` and `b` stacked so that one product adds both.
    fn logits(
        &self,
        change: Option<(&Tensor, &NeuronVectors)>,
        b: &Tensor,
    ) -> Result<Tensor, TchError> {
        let logits = self.g.f_mul(&self.inverse_scale)?;
        match change {
            Some((
                change,
                NeuronVectors {
                    u_and_b: Some(u_and_b),
                    ..
                },
            )) => {
                let ones = self.inverse_scale.f_ones_like()?;
                let factors = Tensor::f_cat(&[change.f_mul(&self.inverse_scale)?, ones], 1)?; // [row, k + 1]
                logits.f_addmm(&factors, u_and_b)
            }
            _ => logits.f_add(b),
        }
    }
}

/// Output weights of the neurons of one intervention.
#[derive(Debug, Default)]
struct NeuronVectors {
    /// Centred, `[k, d_model]`.
    w_c: Option<Tensor>,
    /// `u` of each neuron and `b`, `[k + 1, d_vocab]`; none where the set is wide.
    u_and_b: Option<Tensor>,
}

impl NeuronVectors {
    /// The rows with the residual stream changed; their image still the clean one where `u` adds
    /// the change to it.
    fn changed(
        &self,
        scorer: &Scorer<'_>,
        clean: &Projected,
        change: &Tensor,
    ) -> Result<Projected, TchError> {
        let Some(w_c) = &self.w_c else {
            return Err(TchError::Torch(
                "an intervention on the last layer came without output weights".into(),
            ));
        };
        let x_c = clean.x_c.f_addmm(change, w_c)?;
        if self.u_and_b.is_none() {
            return scorer.project(&x_c);
        }
        let inverse_scale = scorer.inverse_scale(&x_c)?;
        Ok(Projected {
            x_c,
            g: clean.g.shallow_clone(),
            inverse_scale,
        })
    }
}

impl Place {
    fn score(&self, request: &WordRequest, values: &RowValues) -> WordScore {
        let none = Boundary {
            ln_begins: f64::NEG_INFINITY,
            ln_eos: f64::NEG_INFINITY,
        };
        let (before, after) = match self.last_row {
            None => (none, none),
            Some(last) => {
                let [begins, continues, eos] = values.boundaries[self.first_row];
                let before = match request.start {
                    WordStart::Space => Boundary {
                        ln_begins: begins,
                        ln_eos: eos,
                    },
                    WordStart::Text | WordStart::Line => Boundary {
                        ln_begins: continues,
                        ln_eos: eos,
                    },
                    WordStart::Inside | WordStart::Merged => Boundary {
                        ln_begins: 0.0,
                        ln_eos: f64::NEG_INFINITY,
                    },
                };
                let [ln_begins, _, ln_eos] = values.boundaries[last];
                (before, Boundary { ln_begins, ln_eos })
            }
        };
        WordScore {
            ln_probs: self
                .pieces
                .iter()
                .map(|&i| below_zero(values.ln_probs[i]))
                .collect(),
            before,
            after,
            entropy_nats: values.entropies.get(self.first_row).copied(),
        }
    }
}

/// Takes off what rounding puts above probability 1; NaN stays.
fn below_zero(ln_prob: f64) -> f64 {
    if ln_prob > 0.0 { 0.0 } else { ln_prob }
}

impl WordScore {
    /// Whether every piece has a probability above 0 and no mass is NaN.
    fn is_finite(&self) -> bool {
        let masses = [
            self.before.ln_begins,
            self.before.ln_eos,
            self.after.ln_begins,
            self.after.ln_eos,
        ];
        self.ln_probs.iter().all(|p| p.is_finite()) && !masses.iter().any(|m| m.is_nan())
    }
}
