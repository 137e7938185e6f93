//! Causal self-attention with partial rotary embedding.

use tch::{Device, Kind, TchError, Tensor};

use crate::branches::Layout;
use crate::config::NeoxConfig;
use crate::error::{ForwardError, LoadError};
use crate::hooks::{Hooks, Site, visit};
use crate::rotary::Rotary;
use crate::weights::Loader;

#[derive(Debug)]
pub(crate) struct Attention {
    w_qkv: Tensor,
    b_qkv: Option<Tensor>,
    w_o: Tensor,
    b_o: Option<Tensor>,
    n_heads: i64,
    layer: usize,
}

/// Positions and masks of one forward pass, shared by all layers.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) rotary: Rotary,
    /// Which keys a query may see, `[batch, 1, query_pos, key_pos]`; `None` is plainly causal.
    allowed: Option<Tensor>,
}

impl Context {
    /// # Shapes
    /// - `mask`: `[batch, pos]`, bool, true where there is a token
    pub(crate) fn new(
        config: &NeoxConfig,
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
        Self::at(config, &positions, allowed, kind)
    }

    /// Rows that hold several texts with a common beginning.
    pub(crate) fn branched(
        config: &NeoxConfig,
        layout: Layout,
        kind: Kind,
    ) -> Result<Self, TchError> {
        Self::at(config, &layout.positions, Some(layout.allowed), kind)
    }

    fn at(
        config: &NeoxConfig,
        positions: &Tensor,
        allowed: Option<Tensor>,
        kind: Kind,
    ) -> Result<Self, TchError> {
        Ok(Self {
            rotary: Rotary::new(positions, config.rotary_dims, config.rotary_base, kind)?,
            allowed,
        })
    }
}

/// True where key <= query: `[query_pos, key_pos]`.
fn causal(len: i64, device: Device) -> Result<Tensor, TchError> {
    Tensor::f_ones([len, len], (Kind::Bool, device))?.f_tril(0)
}

impl Attention {
    pub(crate) fn load(
        loader: &mut Loader,
        config: &NeoxConfig,
        layer: usize,
    ) -> Result<Self, LoadError> {
        let name = format!("gpt_neox.layers.{layer}.attention");
        let mut bias = |part: &str| match config.attention_bias {
            true => loader.tensor(&format!("{name}.{part}.bias")).map(Some),
            false => Ok(None),
        };
        let (b_qkv, b_o) = (bias("query_key_value")?, bias("dense")?);
        Ok(Self {
            w_qkv: loader.tensor(&format!("{name}.query_key_value.weight"))?,
            b_qkv,
            w_o: loader.tensor(&format!("{name}.dense.weight"))?,
            b_o,
            n_heads: config.num_attention_heads,
            layer,
        })
    }

    /// The caller adds the residual.
    ///
    /// # Shapes
    /// - `x`: `[batch, pos, d_model]`, after `input_layernorm`; returns the same, or `[1, row, d_model]` for some rows
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        context: &Context,
        rows: Option<&Tensor>,
        hooks: &mut dyn Hooks,
    ) -> Result<Tensor, ForwardError> {
        let (batch, pos, d_model) = x.size3()?;
        let d_head = d_model / self.n_heads;
        // NeoX packs rows as (head, q|k|v, d_head): split inside each head, not into thirds.
        let qkv = x.f_linear(&self.w_qkv, self.b_qkv.as_ref())?.f_view([
            batch,
            pos,
            self.n_heads,
            3,
            d_head,
        ])?;
        context.rotary.rotate(&qkv.f_narrow(3, 0, 2)?)?;
        let part = |index| qkv.f_select(3, index)?.f_transpose(1, 2); // [batch, heads, pos, d_head]
        let (q, k, v) = (part(0)?, part(1)?, part(2)?);

        let site = Site::Pattern(self.layer);
        let z = if hooks.wants(site) {
            let pattern = visit(hooks, site, pattern(&q, &k, context)?)?;
            pattern.f_matmul(&v)?
        } else {
            let causal = context.allowed.is_none();
            let allowed = context.allowed.as_ref();
            Tensor::f_scaled_dot_product_attention(&q, &k, &v, allowed, 0.0, causal, None, false)?
        }; // [batch, heads, pos, d_head]
        let z = z.f_transpose(1, 2)?.f_reshape([batch, pos, d_model])?;
        Ok(chosen(&z, rows)?.f_linear(&self.w_o, self.b_o.as_ref())?)
    }
}

/// Some rows of `[batch, pos, d]`, by their place in `[batch * pos]`, as `[1, row, d]`; or all as they are.
pub(crate) fn chosen(x: &Tensor, rows: Option<&Tensor>) -> Result<Tensor, TchError> {
    match rows {
        None => Ok(x.shallow_clone()),
        Some(rows) => x.f_flatten(0, 1)?.f_index_select(0, rows)?.f_unsqueeze(0),
    }
}

/// `softmax(q k^T / sqrt(d_head))` over the keys a query may see: `[batch, heads, query, key]`.
fn pattern(q: &Tensor, k: &Tensor, context: &Context) -> Result<Tensor, TchError> {
    let (_, _, len, d_head) = q.size4()?;
    let kind = q.f_kind()?;
    let hidden = match &context.allowed {
        Some(allowed) => allowed.f_logical_not()?,
        None => causal(len, q.device())?.f_logical_not()?,
    };
    q.f_matmul(&k.f_transpose(-2, -1)?)?
        .f_mul_scalar((d_head as f64).sqrt().recip())?
        .f_masked_fill(&hidden, f64::NEG_INFINITY)?
        .f_softmax(-1, Kind::Float)?
        .f_to_kind(kind)
}
