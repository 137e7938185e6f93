//! How a checkpoint is loaded.

use tch::{Device, Kind};

/// Where the weights go and in which precision the model computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoadOptions {
    /// Device of weights, inputs and outputs.
    pub device: Device,
    /// `Kind::Float`, `Kind::Half` or `Kind::BFloat16`; stored weights are converted.
    pub dtype: Kind,
}

impl LoadOptions {
    /// With another [`device`](Self::device).
    #[must_use]
    pub fn with_device(self, device: Device) -> Self {
        Self { device, ..self }
    }

    /// With another [`dtype`](Self::dtype).
    #[must_use]
    pub fn with_dtype(self, dtype: Kind) -> Self {
        Self { dtype, ..self }
    }
}

impl Default for LoadOptions {
    /// f32 on the CPU.
    fn default() -> Self {
        Self {
            device: Device::Cpu,
            dtype: Kind::Float,
        }
    }
}
