//! Products of the forward pass with weights.

use tch::{Device, Kind, TchError, Tensor};

use crate::error::LoadError;
use crate::family::Part;
use crate::weights::Loader;

/// Entries of a weight from which oneDNN serves in f32: it compiles code for each number of rows, some 2 ms, which a product with a
/// smaller weight takes too little time to be worth.
const LARGE: usize = 1 << 18;

/// Rows whose logits are made at once: they are copied out of oneDNN's memory.
const LOGIT_ROWS: i64 = 512;

/// `x W^T + b`.
///
/// libtorch's own products in f32 on a CPU come from MKL, which on AMD processors leaves AVX-512 unused, and which with few rows reads
/// weights slowly. Its oneDNN is faster at all shapes that were measured (docs/performance.md), but libtorch goes through it only
/// for tensors in oneDNN's form; f16, bf16 and other devices have their own ways.
#[derive(Debug)]
pub(crate) struct Linear {
    /// `[to, from]`, in oneDNN's form where that serves.
    weight: Tensor,
    /// `[to]`, in the same form.
    bias: Option<Tensor>,
}

impl Linear {
    /// # Shapes
    /// - `weight`: `[to, from]`; `bias`: `[to]`
    pub(crate) fn new(weight: Tensor, bias: Option<Tensor>) -> Result<Self, TchError> {
        if !one_dnn_serves(&weight) {
            return Ok(Self { weight, bias });
        }
        let bias = bias.map(|bias| bias.f_to_mkldnn(Kind::Float)).transpose()?;
        Ok(Self {
            weight: weight.f_to_mkldnn(Kind::Float)?,
            bias,
        })
    }

    /// Weight and bias of a part that the architecture has.
    pub(crate) fn load(loader: &mut Loader<'_>, part: Part) -> Result<Self, LoadError> {
        Ok(Self::new(loader.weight(part)?, loader.bias(part)?)?)
    }

    /// # Shapes
    /// - `x`: `[..., from]`, returns `[..., to]`
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let bias = self.bias.as_ref();
        match self.weight.is_mkldnn() {
            true => x
                .f_to_mkldnn(Kind::Float)?
                .f_mkldnn_linear(&self.weight, bias)?
                .f_to_dense(Kind::Float, false),
            false => x.f_linear(&self.weight, bias),
        }
    }

    /// `[to, from]`; a copy where it is kept in oneDNN's form.
    pub(crate) fn weight(&self) -> Result<Tensor, TchError> {
        plain(&self.weight)
    }

    /// `[to]`, likewise.
    pub(crate) fn bias(&self) -> Result<Option<Tensor>, TchError> {
        self.bias.as_ref().map(plain).transpose()
    }
}

/// `x W_U^T` for a `W_U` that is read by others too, so that it is put into oneDNN's form only meanwhile, where there are rows enough.
///
/// # Shapes
/// - `x`: `[..., d_model]`, `w_u`: `[vocab, d_model]`; returns `[..., vocab]`
pub(crate) fn unembedded(x: &Tensor, w_u: &Tensor) -> Result<Tensor, TchError> {
    let mut shape = x.size();
    let d_model = shape.pop().unwrap_or(0).max(1);
    let rows = x.numel() as i64 / d_model;
    if !one_dnn_serves(w_u) || rows < LOGIT_ROWS / 4 {
        return x.f_linear::<Tensor>(w_u, None);
    }
    let linear = Linear::new(w_u.shallow_clone(), None)?;
    let x = x.f_reshape([rows, d_model])?;
    let vocab = w_u.size2()?.0;
    let logits = Tensor::f_empty([rows, vocab], (Kind::Float, Device::Cpu))?;
    let mut start = 0;
    while start < rows {
        let some = LOGIT_ROWS.min(rows - start);
        let of_some = linear.forward(&x.f_narrow(0, start, some)?)?;
        logits.f_narrow(0, start, some)?.f_copy_(&of_some)?;
        start += some;
    }
    shape.push(vocab);
    logits.f_view(shape.as_slice())
}

fn one_dnn_serves(weight: &Tensor) -> bool {
    let on_cpu = weight.device() == Device::Cpu && weight.kind() == Kind::Float;
    on_cpu && weight.numel() >= LARGE && tch::utils::has_mkldnn()
}

fn plain(tensor: &Tensor) -> Result<Tensor, TchError> {
    match tensor.is_mkldnn() {
        true => tensor.f_to_dense(Kind::Float, false),
        false => Ok(tensor.shallow_clone()),
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::{LOGIT_ROWS, Linear, unembedded};

    fn random(size: &[i64]) -> Tensor {
        Tensor::randn(size, (Kind::Float, Device::Cpu))
    }

    /// Largest difference beside products in f64.
    fn off(found: &Tensor, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> f64 {
        let double = |t: &Tensor| t.to_kind(Kind::Double);
        let expected = double(x).linear(&double(weight), bias.map(double));
        assert_eq!(found.size(), expected.size());
        (found - expected).abs().max().double_value(&[])
    }

    #[test]
    fn products_of_small_and_of_large_weights_are_those_of_f64() {
        tch::manual_seed(3);
        // Views that are not contiguous, one row, and sizes that no register divides.
        for [to, from] in [[7, 12], [700, 500], [1024, 512]] {
            let (weight, bias) = (random(&[to, from]), random(&[to]));
            let linear = Linear::new(weight.shallow_clone(), Some(bias.shallow_clone())).unwrap();
            assert_eq!(linear.weight().unwrap(), weight);
            assert_eq!(linear.bias().unwrap().unwrap(), bias);
            let wide = random(&[2, 45, from + 3]);
            for x in [
                random(&[1, 1, from]),
                random(&[90, from]),
                wide.narrow(2, 2, from),
            ] {
                let found = linear.forward(&x).unwrap();
                assert!(found.is_contiguous());
                assert!(off(&found, &x, &weight, Some(&bias)) < 2e-4);
            }
            let none = Linear::new(weight.shallow_clone(), None).unwrap();
            let x = random(&[5, from]);
            assert!(off(&none.forward(&x).unwrap(), &x, &weight, None) < 2e-4);
        }
    }

    #[test]
    fn logits_of_few_and_of_many_rows_are_those_of_f64() {
        tch::manual_seed(4);
        let w_u = random(&[3_001, 128]);
        for rows in [1, LOGIT_ROWS / 4, LOGIT_ROWS + 1, 2 * LOGIT_ROWS] {
            let x = random(&[1, rows, 128]);
            assert!(off(&unembedded(&x, &w_u).unwrap(), &x, &w_u, None) < 2e-4);
        }
    }
}
