//! The whole model: embedding, blocks, final norm, unembedding.

use std::path::Path;

use model_conventions::WeightFiles;
use tch::{Device, Kind, TchError, Tensor};

use crate::architecture::{Architecture, Positions};
use crate::attention::Context;
use crate::block::Block;
use crate::branches::{Branch, Layout};
use crate::error::{ForwardError, HookError, LoadError};
use crate::family::Part;
use crate::hooks::{Hooks, visit};
use crate::linear::unembedded;
use crate::norm::Norm;
use crate::options::LoadOptions;
use crate::site::Site;
use crate::weights::{Loader, is_finite};

/// A decoder-only language model of one of the families in `family/`.
///
/// A model can go to another thread (`Send`), but threads cannot share it, since tensors are not `Sync`: load one for each, or leave the
/// parallel work to libtorch, whose operations use all cores. What borrows a model stays on its thread.
///
/// # Examples
/// ```no_run
/// use neox_core::{LoadOptions, Model, NoHooks};
/// use tch::Tensor;
///
/// let model = Model::load("pythia-70m/step3000".as_ref(), &LoadOptions::default())?;
/// let tokens = Tensor::from_slice(&[0i64, 510, 3158]).view([1, 3]);
/// let logits = model.forward(&tokens, None, &mut NoHooks)?; // [1, 3, vocab]
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Model {
    architecture: Architecture,
    embedding: Tensor,
    position_embedding: Option<Tensor>,
    blocks: Vec<Block>,
    final_norm: Norm,
    unembedding: Tensor,
    options: LoadOptions,
    warnings: Vec<String>,
}

impl Model {
    /// Loads a checkpoint folder: `config.json` and the weights, as safetensors or
    /// `pytorch_model.bin`, whole or in shards.
    ///
    /// Name, shape and dtype of every tensor are checked before any is copied. The mask and
    /// rotary buffers that old checkpoints carry are recognised and left aside. What wrappers put
    /// before all names (`module.`) is left out, and tied embeddings that are both stored and differ
    /// are both used: [`Model::warnings`] says so.
    ///
    /// # Errors
    /// - [`LoadError`], which names the file, key or tensors at fault
    pub fn load(dir: &Path, options: &LoadOptions) -> Result<Self, LoadError> {
        if !matches!(options.dtype, Kind::Float | Kind::Half | Kind::BFloat16) {
            return Err(LoadError::ComputeDtype {
                dtype: options.dtype,
            });
        }
        let architecture = Architecture::read(&dir.join("config.json"))?;
        let files = WeightFiles::find(dir)?;
        let mut loader = Loader::open(&files, &architecture, options)?;
        let blocks = (0..architecture.num_hidden_layers)
            .map(|layer| Block::load(&mut loader, layer))
            .collect::<Result<_, _>>()?;
        let (embedding, unembedding, untied) = loader.embeddings()?;
        let position_embedding = match architecture.positions {
            Positions::Learned => Some(loader.weight(Part::PositionEmbedding)?),
            Positions::Rotary { .. } => None,
        };
        let final_norm = Norm::load(&mut loader, Part::FinalNorm, architecture.hidden_size)?;
        let warnings = loader.renamed().into_iter().chain(untied).collect();
        Ok(Self {
            architecture,
            embedding,
            position_embedding,
            blocks,
            final_norm,
            unembedding,
            options: *options,
            warnings,
        })
    }

    /// What in the files was not as it should be, and how it was read; a sentence each.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// What `config.json` says.
    #[must_use]
    pub fn config(&self) -> &Architecture {
        &self.architecture
    }

    /// Where the weights are; inputs are moved there.
    #[must_use]
    pub fn device(&self) -> Device {
        self.options.device
    }

    /// Precision of weights, residual stream and logits.
    #[must_use]
    pub fn dtype(&self) -> Kind {
        self.options.dtype
    }

    /// The final norm: `gamma`, `beta` and `eps`.
    #[must_use]
    pub fn ln_final(&self) -> &Norm {
        &self.final_norm
    }

    /// Unembedding, `[vocab, d_model]`, not centred; there is no bias.
    pub fn w_u(&self) -> &Tensor {
        &self.unembedding
    }

    /// Output weights of a layer's MLP, `[d_model, d_mlp]`: neuron `n` writes column `n`. Large ones are copied.
    ///
    /// # Errors
    /// - [`ForwardError::Layer`] if there is no such layer
    pub fn w_out(&self, layer: usize) -> Result<Tensor, ForwardError> {
        Ok(self.block(layer)?.mlp.output.weight()?)
    }

    /// The norm that a layer's MLP writes through to the residual stream, in a model that norms behind its branches.
    ///
    /// # Errors
    /// - [`ForwardError::Layer`] if there is no such layer
    pub fn norm_after_mlp(&self, layer: usize) -> Result<Option<&Norm>, ForwardError> {
        Ok(self.block(layer)?.norm_after_mlp())
    }

    /// Output bias of a layer's MLP, `[d_model]`, if it has one.
    ///
    /// # Errors
    /// - [`ForwardError::Layer`] if there is no such layer
    pub fn b_out(&self, layer: usize) -> Result<Option<Tensor>, ForwardError> {
        Ok(self.block(layer)?.mlp.output.bias()?)
    }

    /// Logits of every position, not centred.
    ///
    /// # Shapes
    /// - `tokens`: `[batch, pos]`, i64
    /// - `mask`: `[batch, pos]`, 1 or true where there is a token, 0 or false on padding, on
    ///   either side; a padded row gives the values it gives alone, padding positions are
    ///   meaningless
    /// - returns `[batch, pos, vocab]`
    ///
    /// # Errors
    /// - [`ForwardError::TokenRange`] for a token id outside the vocabulary
    /// - [`ForwardError::TokenShape`], [`ForwardError::TokenDtype`], [`ForwardError::MaskShape`],
    ///   [`ForwardError::MaskValue`], [`ForwardError::TooLong`]
    /// - [`ForwardError::Hook`] if a hook returns another shape or dtype
    /// - [`ForwardError::NotFinite`] if the model gives NaN or infinity by itself
    /// - [`ForwardError::HookFailed`] for what a hook reports, [`ForwardError::Torch`] for what libtorch does
    pub fn forward(
        &self,
        tokens: &Tensor,
        mask: Option<&Tensor>,
        hooks: &mut dyn Hooks,
    ) -> Result<Tensor, ForwardError> {
        let residual = self.residual(tokens, mask, hooks)?;
        self.unembed_hooked(&residual, hooks)
    }

    /// Residual stream after the last block, `[batch, pos, d_model]`: all that the logits depend
    /// on. Inputs and errors as in [`Model::forward`].
    ///
    /// # Errors
    /// - as [`Model::forward`]
    pub fn residual(
        &self,
        tokens: &Tensor,
        mask: Option<&Tensor>,
        hooks: &mut dyn Hooks,
    ) -> Result<Tensor, ForwardError> {
        let device = self.options.device;
        let len = self.check_tokens(tokens)?;
        let mask = match mask {
            None => None,
            Some(mask) if mask.size() == tokens.size() => {
                check_mask(mask)?;
                Some(mask.f_to_device(device)?.f_to_kind(Kind::Bool)?)
            }
            Some(mask) => {
                return Err(ForwardError::MaskShape {
                    expected: tokens.size(),
                    found: mask.size(),
                });
            }
        };
        let context = Context::new(
            &self.architecture,
            len,
            mask.as_ref(),
            self.options.dtype,
            device,
        )?;
        let embedded = self.embed(tokens, &context)?;
        self.through_blocks(0, &embedded, &context, None, hooks)
    }

    /// The same for rows that hold several texts with a common beginning, which is computed once.
    ///
    /// # Shapes
    /// - `tokens`: `[batch, pos]`, i64
    /// - `branches`: one list per row, in order; tokens behind the last text are padding
    /// - returns `[batch, pos, d_model]`, in which a branch's tokens have the values of their own text
    ///
    /// # Errors
    /// - [`ForwardError::Branch`], [`ForwardError::BranchRows`] for branches that do not fit the rows
    /// - as [`Model::forward`]; a row of several texts may not be longer than the model reads either
    ///
    /// # Examples
    /// ```
    /// use neox_core::{Branch, LoadOptions, Model, NoHooks};
    /// use tch::Tensor;
    ///
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data/tiny-neox/step4000");
    /// # if !std::path::Path::new(path).exists() { return Ok(()); } // the crate without its repository
    /// let model = Model::load(path.as_ref(), &LoadOptions::default())?;
    /// // `5 6 7 8` and `5 6 9`
    /// let row = Tensor::from_slice(&[5i64, 6, 7, 8, 9]).view([1, 5]);
    /// let branches = [vec![Branch { start: 4, shared: 2 }]];
    /// let both = model.residual_branched(&row, &branches, &mut NoHooks)?;
    /// let second = Tensor::from_slice(&[5i64, 6, 9]).view([1, 3]);
    /// let alone = model.residual(&second, None, &mut NoHooks)?;
    /// let off = both.f_select(1, 4)?.f_sub(&alone.f_select(1, 2)?)?.f_abs()?.f_max()?;
    /// assert!(off.f_double_value(&[])? < 1e-4);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn residual_branched(
        &self,
        tokens: &Tensor,
        branches: &[Vec<Branch>],
        hooks: &mut dyn Hooks,
    ) -> Result<Tensor, ForwardError> {
        let context = self.branched(tokens, branches)?;
        let embedded = self.embed(tokens, &context)?;
        self.through_blocks(0, &embedded, &context, None, hooks)
    }

    /// The residual stream of some positions only, `[row, d_model]`: the last block computes no
    /// others, except as keys and values.
    ///
    /// Hooks see the sites of the last block from [`Site::ResidMid`] on as `[1, row, ...]`.
    ///
    /// # Shapes
    /// - `tokens`: `[batch, pos]`, i64
    /// - `branches`: as in [`Model::residual_branched`]; `None` where every row is one text
    /// - `rows`: places in `[batch * pos]`, i64
    ///
    /// # Errors
    /// - as [`Model::residual_branched`]
    pub fn residual_rows(
        &self,
        tokens: &Tensor,
        branches: Option<&[Vec<Branch>]>,
        rows: &Tensor,
        hooks: &mut dyn Hooks,
    ) -> Result<Tensor, ForwardError> {
        let context = match branches {
            Some(branches) => self.branched(tokens, branches)?,
            None => {
                let len = self.check_tokens(tokens)?;
                let LoadOptions { device, dtype } = self.options;
                Context::new(&self.architecture, len, None, dtype, device)?
            }
        };
        let rows = rows.f_to_device(self.options.device)?;
        let embedded = self.embed(tokens, &context)?;
        Ok(self
            .through_blocks(0, &embedded, &context, Some(&rows), hooks)?
            .f_squeeze_dim(0)?)
    }

    /// The residual stream after the last block from that before block `layer`: the model runs on from there.
    ///
    /// # Shapes
    /// - `resid`: `[batch, pos, d_model]`, as [`Site::ResidPre`] has it, of texts of one length without padding
    /// - returns the same
    ///
    /// # Errors
    /// - [`ForwardError::Layer`] if there is no such layer
    /// - [`ForwardError::Residual`] for another shape or dtype, [`ForwardError::TooLong`]
    /// - as [`Model::forward`] for hooks and values that are not finite
    ///
    /// # Examples
    /// ```
    /// use neox_core::{HookError, Hooks, LoadOptions, Model, NoHooks, Site};
    /// use tch::Tensor;
    ///
    /// struct Keep(Option<Tensor>);
    /// impl Hooks for Keep {
    ///     fn wants(&self, site: Site) -> bool {
    ///         site == Site::ResidPre(2)
    ///     }
    ///     fn at(&mut self, _: Site, value: Tensor) -> Result<Tensor, HookError> {
    ///         self.0 = Some(value.shallow_clone());
    ///         Ok(value)
    ///     }
    /// }
    ///
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/data/tiny-neox/step4000");
    /// # if !std::path::Path::new(path).exists() { return Ok(()); } // the crate without its repository
    /// let model = Model::load(path.as_ref(), &LoadOptions::default())?;
    /// let mut before = Keep(None);
    /// let last = model.residual(&Tensor::from_slice(&[5i64, 6, 7]).view([1, 3]), None, &mut before)?;
    /// let again = model.residual_from(2, &before.0.ok_or("no layer 2")?, &mut NoHooks)?;
    /// assert!(last.f_allclose(&again, 1e-5, 1e-6, false)?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn residual_from(
        &self,
        layer: usize,
        resid: &Tensor,
        hooks: &mut dyn Hooks,
    ) -> Result<Tensor, ForwardError> {
        self.block(layer)?;
        let LoadOptions { device, dtype } = self.options;
        let (size, found) = (resid.size(), resid.f_kind()?);
        let d_model = self.architecture.hidden_size;
        let &[batch, len, width] = size.as_slice() else {
            return Err(ForwardError::Residual {
                d_model,
                dtype,
                found: (size, found),
            });
        };
        if batch == 0 || len == 0 || width != d_model || found != dtype {
            return Err(ForwardError::Residual {
                d_model,
                dtype,
                found: (size, found),
            });
        }
        let max = self.architecture.max_position_embeddings;
        if len > max {
            return Err(ForwardError::TooLong { len, max });
        }
        let context = Context::new(&self.architecture, len, None, dtype, device)?;
        self.through_blocks(layer, &resid.f_to_device(device)?, &context, None, hooks)
    }

    fn branched(&self, tokens: &Tensor, branches: &[Vec<Branch>]) -> Result<Context, ForwardError> {
        let len = self.check_tokens(tokens)?;
        let batch = tokens.size().first().copied().unwrap_or(0);
        let layout = Layout::new(branches, batch, len, self.options.device)?;
        Ok(Context::branched(
            &self.architecture,
            layout,
            self.options.dtype,
        )?)
    }

    /// What the first block reads, `[batch, pos, d_model]`.
    fn embed(&self, tokens: &Tensor, context: &Context) -> Result<Tensor, TchError> {
        let tokens = tokens.f_to_device(self.options.device)?;
        let embedded = Tensor::f_embedding(&self.embedding, &tokens, -1, false, false)?;
        let Some(rows) = &self.position_embedding else {
            return Ok(embedded);
        };
        let places = &context.positions;
        embedded.f_add(&Tensor::f_embedding(rows, places, -1, false, false)?)
    }

    /// From the residual stream before block `first`; `rows` are those that the last block goes on with.
    fn through_blocks(
        &self,
        first: usize,
        before: &Tensor,
        context: &Context,
        rows: Option<&Tensor>,
        hooks: &mut dyn Hooks,
    ) -> Result<Tensor, ForwardError> {
        let mut sites = hooks.sites().into_iter().flatten();
        if let Some(&site) = sites.find(|site| !site.is_in(self.config())) {
            let layers = self.blocks.len();
            return Err(ForwardError::NoSite { site, layers });
        }
        let last = self.blocks.len().checked_sub(1);
        let through = |hooks: &mut dyn Hooks| {
            let mut blocks = self.blocks.iter().enumerate().skip(first);
            blocks.try_fold(before.shallow_clone(), |x, (layer, block)| {
                block.forward(x, context, rows.filter(|_| Some(layer) == last), hooks)
            })
        };
        let residual = through(hooks)?;
        if !is_finite(&residual)? {
            // Once more without the hooks: what they make is for their owner to judge.
            let mut first = FirstNotFinite(None);
            let _ = through(&mut first)?;
            if let Some(site) = first.0 {
                let dtype = self.options.dtype;
                return Err(ForwardError::NotFinite { site, dtype });
            }
        }
        Ok(residual)
    }

    /// Final norm and unembedding of a residual stream, without hooks.
    ///
    /// # Shapes
    /// - `residual`: `[..., d_model]`; returns `[..., vocab]`
    ///
    /// # Errors
    /// - [`ForwardError::Torch`] if the last dimension is not `d_model`
    pub fn unembed(&self, residual: &Tensor) -> Result<Tensor, ForwardError> {
        let normed = self.final_norm.forward(residual)?;
        Ok(unembedded(&normed, &self.unembedding)?)
    }

    fn unembed_hooked(
        &self,
        residual: &Tensor,
        hooks: &mut dyn Hooks,
    ) -> Result<Tensor, ForwardError> {
        let normed = self
            .final_norm
            .forward_hooked(residual, Site::LnFinalScale, hooks)?;
        let logits = unembedded(&normed, &self.unembedding)?;
        visit(hooks, Site::Logits, logits)
    }

    fn block(&self, layer: usize) -> Result<&Block, ForwardError> {
        self.blocks.get(layer).ok_or(ForwardError::Layer {
            layer,
            n_layers: self.blocks.len(),
        })
    }

    /// Number of positions, once shape, dtype and range of the tokens are known to be good.
    fn check_tokens(&self, tokens: &Tensor) -> Result<i64, ForwardError> {
        let size = tokens.size();
        let &[batch, len] = size.as_slice() else {
            return Err(ForwardError::TokenShape { found: size });
        };
        let kind = tokens.f_kind()?;
        if kind != Kind::Int64 {
            return Err(ForwardError::TokenDtype { found: kind });
        }
        if batch == 0 || len == 0 {
            return Err(ForwardError::TokenShape { found: size });
        }
        let max = self.architecture.max_position_embeddings;
        if len > max {
            return Err(ForwardError::TooLong { len, max });
        }
        let vocab_size = self.architecture.vocab_size;
        let (least, greatest) = tokens.f_aminmax(None, false)?;
        for token in [least.f_int64_value(&[])?, greatest.f_int64_value(&[])?] {
            if !(0..vocab_size).contains(&token) {
                return Err(ForwardError::TokenRange { token, vocab_size });
            }
        }
        Ok(len)
    }
}

/// Remembers the first site with a value that is NaN or infinite.
struct FirstNotFinite(Option<Site>);

impl Hooks for FirstNotFinite {
    fn wants(&self, site: Site) -> bool {
        self.0.is_none() && !matches!(site, Site::Pattern(_))
    }

    fn at(&mut self, site: Site, value: Tensor) -> Result<Tensor, HookError> {
        if !is_finite(&value)? {
            self.0 = Some(site);
        }
        Ok(value)
    }
}

/// Refuses a mask that holds anything but 0 and 1: all but 0 would count as a token.
fn check_mask(mask: &Tensor) -> Result<(), ForwardError> {
    if mask.f_kind()? == Kind::Bool {
        return Ok(());
    }
    let neither = mask.f_ne(0)?.f_logical_and(&mask.f_ne(1)?)?;
    let found = mask.f_masked_select(&neither)?;
    match found.numel() {
        0 => Ok(()),
        _ => Err(ForwardError::MaskValue {
            found: found.f_double_value(&[0])?,
        }),
    }
}

/// Natural-log probability of each token that follows another, in f64 whatever the precision of the logits: over a large vocabulary
/// a sum in f32 loses 1e-4 nats, and one in half precision everything.
///
/// # Shapes
/// - `logits`: `[batch, pos, vocab]`, as [`Model::forward`] gives them
/// - `tokens`: `[batch, pos]`, i64
/// - returns `[batch, pos - 1]`, f64: position `t` holds `ln p(tokens[t + 1])`; the loss is its negative
///
/// # Errors
/// - what libtorch reports, such as sizes that do not fit together
pub fn next_token_ln_probs(logits: &Tensor, tokens: &Tensor) -> Result<Tensor, TchError> {
    let (batch, pos, _) = logits.size3()?;
    let targets = tokens
        .f_to_device(logits.device())?
        .f_narrow(1, 1, pos - 1)?
        .f_unsqueeze(-1)?;
    // Text by text: in f64 all of them may not fit.
    let of_text = |i: i64| {
        logits
            .f_get(i)?
            .f_narrow(0, 0, pos - 1)?
            .f_log_softmax(-1, Kind::Double)?
            .f_gather(-1, &targets.f_get(i)?, false)?
            .f_squeeze_dim(-1)
    };
    let texts: Vec<Tensor> = (0..batch).map(of_text).collect::<Result<_, _>>()?;
    Tensor::f_stack(&texts, 0)
}
