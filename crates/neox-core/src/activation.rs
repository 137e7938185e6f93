//! Activation functions of MLPs.

use tch::{TchError, Tensor};

/// Activation functions of MLPs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    /// Exact GELU: `gelu`, `gelu_python`.
    Gelu,
    /// The tanh approximation: `gelu_new`, `gelu_fast`, `gelu_accurate`, `gelu_pytorch_tanh`,
    /// `gelu_python_tanh`.
    GeluTanh,
    /// `x * sigmoid(1.702 x)`: `quick_gelu`.
    QuickGelu,
    /// `relu`.
    Relu,
    /// `silu`, `swish`.
    Silu,
}

impl Activation {
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "gelu" | "gelu_python" => Self::Gelu,
            "gelu_new" | "gelu_fast" | "gelu_accurate" | "gelu_pytorch_tanh"
            | "gelu_python_tanh" => Self::GeluTanh,
            "quick_gelu" => Self::QuickGelu,
            "relu" => Self::Relu,
            "silu" | "swish" => Self::Silu,
            _ => return None,
        })
    }
}

impl Activation {
    /// Applies the function, in the memory of `x` where `in_place` allows.
    pub(crate) fn apply(self, mut x: Tensor, in_place: bool) -> Result<Tensor, TchError> {
        match (self, in_place) {
            (Self::Gelu, true) => x.f_gelu_("none"),
            (Self::Gelu, false) => x.f_gelu("none"),
            (Self::GeluTanh, true) => x.f_gelu_("tanh"),
            (Self::GeluTanh, false) => x.f_gelu("tanh"),
            (Self::Relu, true) => x.f_relu_(),
            (Self::Relu, false) => x.f_relu(),
            (Self::Silu, true) => x.f_silu_(),
            (Self::Silu, false) => x.f_silu(),
            (Self::QuickGelu, _) => x.f_mul(&x.f_mul_scalar(1.702)?.f_sigmoid()?),
        }
    }
}
