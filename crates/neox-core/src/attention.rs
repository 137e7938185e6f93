//! Causal self-attention.

use tch::{Device, Kind, TchError, Tensor};

use crate::architecture::{Architecture, Positions};
use crate::branches::Layout;
use crate::error::{ForwardError, LoadError};
use crate::family::Part;
use crate::hooks::{Hooks, visit};
use crate::linear::Linear;
use crate::norm::Norm;
use crate::rotary::Rotary;
use crate::site::Site;
use crate::weights::Loader;

#[derive(Debug)]
pub(crate) struct Attention {
    /// Queries of all heads, then keys, then values.
    qkv: Linear,
    /// Norms of queries and of keys, all heads together.
    qk_norm: Option<(Norm, Norm)>,
    /// Bound on the size of queries, keys and values.
    clip: Option<f64>,
    output: Linear,
    heads: i64,
    kv_heads: i64,
    d_head: i64,
    /// What scores are multiplied by.
    factor: f64,
    layer: usize,
}

/// Positions and masks of one forward pass, shared by all layers.
#[derive(Debug)]
pub(crate) struct Context {
    /// Place of each token in its text, `[batch or 1, pos]`.
    pub(crate) positions: Tensor,
    rotary: Option<Rotary>,
    /// Which keys a query may see, `[batch, 1, query_pos, key_pos]`; `None` is plainly causal.
    allowed: Option<Tensor>,
}

impl Context {
    /// # Shapes
    /// - `mask`: `[batch, pos]`, bool, true where there is a token
    pub(crate) fn new(
        architecture: &Architecture,
        len: i64,
        mask: Option<&Tensor>,
        kind: Kind,
        device: Device,
    ) -> Result<Self, TchError> {
        let positions = match mask {
            None => Tensor::f_arange(len, (Kind::Int64, device))?.f_unsqueeze(0)?,
            // Padding does not count, so that each row starts at position 0.
            Some(mask) => mask
                .f_cumsum(-1, Kind::Int64)?
                .f_add_scalar(-1)?
                .f_clamp_min(0)?,
        };
        let allowed = match mask {
            None => None,
            Some(mask) => {
                let keys = mask.f_unsqueeze(1)?.f_unsqueeze(1)?; // [batch, 1, 1, key_pos]
                // A padding query sees itself: a row without any key would be NaN.
                let itself = Tensor::f_eye(len, (Kind::Bool, device))?;
                Some(
                    causal(len, device)?
                        .f_logical_and(&keys)?
                        .f_logical_or(&itself)?,
                )
            }
        };
        Self::at(architecture, positions, allowed, kind)
    }

    /// Rows that hold several texts with a common beginning.
    pub(crate) fn branched(
        architecture: &Architecture,
        layout: Layout,
        kind: Kind,
    ) -> Result<Self, TchError> {
        Self::at(architecture, layout.positions, Some(layout.allowed), kind)
    }

    fn at(
        architecture: &Architecture,
        positions: Tensor,
        allowed: Option<Tensor>,
        kind: Kind,
    ) -> Result<Self, TchError> {
        let rotary = match architecture.positions {
            Positions::Learned => None,
            Positions::Rotary {
                dims,
                base,
                scaling,
            } => Some(Rotary::new(&positions, dims, base, scaling, kind)?),
        };
        Ok(Self {
            positions,
            rotary,
            allowed,
        })
    }
}

/// True where key <= query: `[query_pos, key_pos]`.
fn causal(len: i64, device: Device) -> Result<Tensor, TchError> {
    Tensor::f_ones([len, len], (Kind::Bool, device))?.f_tril(0)
}

impl Attention {
    pub(crate) fn load(loader: &mut Loader<'_>, layer: usize) -> Result<Self, LoadError> {
        let architecture = loader.architecture;
        let (heads, kv_heads) = (
            architecture.num_attention_heads,
            architecture.num_key_value_heads,
        );
        let d_head = architecture.head_size;
        let qk_norm = match architecture.qk_norm {
            false => None,
            true => Some((
                Norm::load(loader, Part::QueryNorm(layer), heads * d_head)?,
                Norm::load(loader, Part::KeyNorm(layer), kv_heads * d_head)?,
            )),
        };
        let w_qkv = loader
            .qkv(layer, false)?
            .ok_or_else(|| LoadError::MissingTensor {
                name: format!("{:?}", Part::Qkv(layer)),
            })?;
        Ok(Self {
            qkv: Linear::new(w_qkv, loader.qkv(layer, true)?)?,
            qk_norm,
            clip: architecture.clip_qkv,
            output: Linear::load(loader, Part::AttentionOut(layer))?,
            heads,
            kv_heads,
            d_head,
            factor: architecture.score_factor(layer),
            layer,
        })
    }

    /// The caller adds the residual.
    ///
    /// # Shapes
    /// - `x`: `[batch, pos, d_model]`, normed where the block norms before; returns the same, or
    ///   `[1, row, d_model]` for some rows
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        context: &Context,
        rows: Option<&Tensor>,
        hooks: &mut dyn Hooks,
    ) -> Result<Tensor, ForwardError> {
        let (batch, pos, _) = x.size3()?;
        let (heads, kv_heads, d_head) = (self.heads, self.kv_heads, self.d_head);
        let mut qkv = self.qkv.forward(x)?; // [batch, pos, (heads + 2 kv_heads) * d_head]
        if let Some(bound) = self.clip {
            qkv = qkv.f_clamp_(-bound, bound)?;
        }
        if let Some((of_q, of_k)) = &self.qk_norm {
            let (q, k) = (heads * d_head, kv_heads * d_head);
            for (norm, from, width) in [(of_q, 0, q), (of_k, q, k)] {
                let mut part = qkv.f_narrow(-1, from, width)?;
                let normed = norm.forward(&part)?;
                part.f_copy_(&normed)?;
            }
        }
        let qkv = qkv.f_view([batch, pos, heads + 2 * kv_heads, d_head])?;
        if let Some(rotary) = &context.rotary {
            rotary.rotate(&qkv.f_narrow(2, 0, heads + kv_heads)?)?;
        }
        // [batch, heads, pos, d_head]
        let part = |from, heads| qkv.f_narrow(2, from, heads)?.f_transpose(1, 2);
        let q = part(0, heads)?;
        let (k, v) = (part(heads, kv_heads)?, part(heads + kv_heads, kv_heads)?);

        let site = Site::Pattern(self.layer);
        let z = if hooks.wants(site) {
            let pattern = visit(hooks, site, self.pattern(&q, &k, context)?)?;
            pattern.f_matmul(&self.for_every_head(&v)?)?
        } else {
            let causal = context.allowed.is_none();
            let allowed = context.allowed.as_ref();
            let grouped = kv_heads != heads;
            Tensor::f_scaled_dot_product_attention(
                &q,
                &k,
                &v,
                allowed,
                0.0,
                causal,
                self.factor,
                grouped,
            )?
        }; // [batch, heads, pos, d_head]
        let z = z
            .f_transpose(1, 2)?
            .f_reshape([batch, pos, heads * d_head])?;
        let z = visit(hooks, Site::HeadOut(self.layer), z)?;
        Ok(self.output.forward(&chosen(&z, rows)?)?)
    }

    /// `softmax(factor * q k^T)` over the keys a query may see: `[batch, heads, query, key]`.
    fn pattern(&self, q: &Tensor, k: &Tensor, context: &Context) -> Result<Tensor, TchError> {
        let len = q.size4()?.2;
        let kind = q.f_kind()?;
        let hidden = match &context.allowed {
            Some(allowed) => allowed.f_logical_not()?,
            None => causal(len, q.device())?.f_logical_not()?,
        };
        q.f_matmul(&self.for_every_head(k)?.f_transpose(-2, -1)?)?
            .f_mul_scalar(self.factor)?
            .f_masked_fill(&hidden, f64::NEG_INFINITY)?
            .f_softmax(-1, Kind::Float)?
            .f_to_kind(kind)
    }

    /// Keys or values once for every head that reads them.
    fn for_every_head(&self, kv: &Tensor) -> Result<Tensor, TchError> {
        match self.heads / self.kv_heads {
            1 => Ok(kv.shallow_clone()),
            times => kv.f_repeat_interleave_self_int(times, 1, None),
        }
    }
}

/// Some rows of `[batch, pos, d]`, by their place in `[batch * pos]`, as `[1, row, d]`; or all as they are.
pub(crate) fn chosen(x: &Tensor, rows: Option<&Tensor>) -> Result<Tensor, TchError> {
    match rows {
        None => Ok(x.shallow_clone()),
        Some(rows) => x.f_flatten(0, 1)?.f_index_select(0, rows)?.f_unsqueeze(0),
    }
}
