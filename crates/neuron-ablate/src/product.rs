//! Matrix products: on the CPU by the crate `gemm`, on a GPU by libtorch.
//!
//! libtorch's own products on the CPU come from MKL, which on AMD processors leaves AVX-512 unused: there `gemm` is about twice as
//! fast, and elsewhere not slower (docs/performance.md).

use gemm::Parallelism;
use tch::{Device, Kind, TchError, Tensor};

/// `c += a b`, for `c` `[m, n]`, `a` `[m, k]` and `b` `[k, n]`: all f32 or all f64, with any strides.
///
/// # Errors
/// - if the tensors do not fit together, or libtorch fails
pub(crate) fn add_product(c: &mut Tensor, a: &Tensor, b: &Tensor) -> Result<(), TchError> {
    let ((m, n), (m_too, k), (k_too, n_too)) = (c.size2()?, a.size2()?, b.size2()?);
    let kind = c.kind();
    let one_kind = [a, b].iter().all(|t| t.kind() == kind);
    let one_device = [a, b].iter().all(|t| t.device() == c.device());
    if (m, k, n) != (m_too, k_too, n_too) || !one_kind || !one_device {
        return Err(TchError::Shape(format!(
            "a product of {a:?} and {b:?} does not fit {c:?}"
        )));
    }
    let shape = [m, n, k].map(|size| size as usize);
    match (c.device(), kind) {
        (Device::Cpu, Kind::Float) => on_cpu::<f32>(shape, c, a, b, 1.0),
        (Device::Cpu, Kind::Double) => on_cpu::<f64>(shape, c, a, b, 1.0),
        _ => {
            let _ = c.f_addmm_(a, b)?;
        }
    }
    Ok(())
}

/// `a b` for `a` `[m, k]` and `b` `[k, n]`, of one kind.
///
/// # Errors
/// - as [`add_product`]
pub(crate) fn product(a: &Tensor, b: &Tensor) -> Result<Tensor, TchError> {
    let mut c = Tensor::f_zeros([a.size2()?.0, b.size2()?.1], (a.kind(), a.device()))?;
    add_product(&mut c, a, b)?;
    Ok(c)
}

/// `T` is the kind of all three.
fn on_cpu<T: Copy + Send + Sync + 'static>(
    [m, n, k]: [usize; 3],
    c: &mut Tensor,
    a: &Tensor,
    b: &Tensor,
    one: T,
) {
    let strides = |t: &Tensor| {
        let strides = t.stride();
        (strides[1] as isize, strides[0] as isize)
    };
    let ((c_columns, c_rows), (a_columns, a_rows), (b_columns, b_rows)) =
        (strides(c), strides(a), strides(b));
    let threads = Parallelism::Rayon(rayon::current_num_threads());
    #[expect(unsafe_code, reason = "the memory of tensors")]
    // SAFETY: the pointers are those of tensors of `T` on the CPU with these sizes and strides, which live as long as the
    // call; `c` is borrowed for writing, and a fresh tensor or a part of one that `a` and `b` do not share.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.data_ptr().cast::<T>(),
            c_columns,
            c_rows,
            true,
            a.data_ptr().cast::<T>(),
            a_columns,
            a_rows,
            b.data_ptr().cast::<T>(),
            b_columns,
            b_rows,
            one,
            one,
            false,
            false,
            false,
            threads,
        );
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::{add_product, product};

    #[test]
    fn products_are_libtorch_s_for_any_strides() {
        tch::manual_seed(1);
        for kind in [Kind::Float, Kind::Double] {
            let random =
                |rows: i64, columns: i64| Tensor::randn([rows, columns], (kind, Device::Cpu));
            for (m, n, k) in [(1, 1, 1), (5, 3, 7), (33, 70, 129)] {
                let (a, b) = (random(m, k), random(k, n));
                let (wide, tall) = (random(m, 2 * k).narrow(1, k, k), random(n, k));
                let start = random(m, n);
                for (a, b) in [(&a, &b), (&wide, &b), (&a, &tall.tr()), (&wide, &tall.tr())] {
                    let mut c = start.copy();
                    add_product(&mut c, a, b).unwrap();
                    assert!(c.allclose(&(&start + a.matmul(b)), 1e-4, 1e-5, false));
                    assert!(
                        product(a, b)
                            .unwrap()
                            .allclose(&a.matmul(b), 1e-4, 1e-5, false)
                    );
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let zeros = |rows, columns, kind| Tensor::zeros([rows, columns], (kind, Device::Cpu));
        let a = zeros(2, 3, Kind::Float);
        for b in [zeros(4, 2, Kind::Float), zeros(3, 2, Kind::Double)] {
            assert!(product(&a, &b).is_err());
        }
        let mut c = zeros(2, 5, Kind::Float);
        assert!(add_product(&mut c, &a, &zeros(3, 2, Kind::Float)).is_err());
    }
}
