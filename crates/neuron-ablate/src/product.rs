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
    if !by_gemm(c, a, b, true)? {
        let _ = c.f_addmm_(a, b)?;
    }
    Ok(())
}

/// `a b` for `a` `[m, k]` and `b` `[k, n]`, of one kind.
///
/// # Errors
/// - as [`add_product`]
pub(crate) fn product(a: &Tensor, b: &Tensor) -> Result<Tensor, TchError> {
    let mut c = Tensor::f_empty([a.size2()?.0, b.size2()?.1], (a.kind(), a.device()))?;
    match by_gemm(&mut c, a, b, false)? {
        true => Ok(c),
        false => a.f_matmul_out(&c, b),
    }
}

/// Fills `c` with the product, or adds it; whether it was something for us.
fn by_gemm(c: &mut Tensor, a: &Tensor, b: &Tensor, add: bool) -> Result<bool, TchError> {
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
        (Device::Cpu, Kind::Float) => on_cpu::<f32>(shape, c, a, b, add),
        (Device::Cpu, Kind::Double) => on_cpu::<f64>(shape, c, a, b, add),
        _ => return Ok(false),
    }
    Ok(true)
}

/// `T` is the kind of all three.
fn on_cpu<T: One>(shape: [usize; 3], c: &mut Tensor, a: &Tensor, b: &Tensor, add: bool) {
    let part = |t: &Tensor| {
        let strides = t.stride();
        let strides = [strides[0] as isize, strides[1] as isize];
        (t.data_ptr().cast::<T>(), strides)
    };
    let (a, b) = (part(a), part(b));
    #[expect(unsafe_code, reason = "the memory of tensors")]
    // SAFETY: the pointers are those of tensors of `T` on the CPU with these sizes and strides, which live as long as the
    // call; `c` is borrowed for writing, and a fresh tensor or a part of one that `a` and `b` do not share.
    unsafe {
        gemm_add(
            shape,
            part(c),
            (a.0.cast_const(), a.1),
            (b.0.cast_const(), b.1),
            add,
        );
    }
}

/// A matrix in a slice; entry `[i, j]` is at `i * strides[0] + j * strides[1]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    values: &'a [T],
    rows: usize,
    columns: usize,
    strides: [usize; 2],
}

impl<'a, T> Matrix<'a, T> {
    /// Rows of `columns` values that start `stride` apart.
    ///
    /// # Panics
    /// - if there are fewer values
    pub(crate) fn new(values: &'a [T], [rows, columns]: [usize; 2], stride: usize) -> Self {
        assert!(
            values.len() >= extent([rows, columns], stride),
            "{} values are not {rows} rows {stride} apart",
            values.len()
        );
        Self {
            values,
            rows,
            columns,
            strides: [stride, 1],
        }
    }

    /// Rows for columns.
    pub(crate) fn transposed(self) -> Self {
        let ([row, column], (rows, columns)) = (self.strides, (self.rows, self.columns));
        Self {
            rows: columns,
            columns: rows,
            strides: [column, row],
            ..self
        }
    }
}

/// Values from the first to the last of some rows.
fn extent([rows, columns]: [usize; 2], stride: usize) -> usize {
    match rows {
        0 => 0,
        _ => (rows - 1) * stride + columns,
    }
}

/// `c += a b` on the CPU, for `c` `[rows of a, columns of b]` whose rows start `stride` apart.
///
/// # Panics
/// - if the sizes do not fit together
pub(crate) fn add_host_product<T: One>(
    c: &mut [T],
    stride: usize,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
) {
    assert_eq!(a.columns, b.rows, "matrices do not fit together");
    assert!(
        stride >= b.columns && c.len() >= extent([a.rows, b.columns], stride),
        "the product has no room"
    );
    let strides = |strides: [usize; 2]| strides.map(|stride| stride as isize);
    let part = |m: Matrix<'_, T>| (m.values.as_ptr(), strides(m.strides));
    let shape = [a.rows, b.columns, a.columns];
    let c = (c.as_mut_ptr(), strides([stride, 1]));
    #[expect(unsafe_code, reason = "memory by pointers")]
    // SAFETY: `Matrix::new` saw that the entries are within the slices, and `c` has room for the product.
    unsafe {
        gemm_add(shape, c, part(a), part(b), true);
    }
}

/// A kind of number that has a one.
pub(crate) trait One: Copy + Send + Sync + 'static {
    const ONE: Self;
}

impl One for f32 {
    const ONE: Self = 1.0;
}

impl One for f64 {
    const ONE: Self = 1.0;
}

/// `c = a b`, or `c += a b`, for `[m, n, k]`, with strides from row to row and from column to column.
///
/// # Safety
/// Entries of these shapes and strides are valid, for writing in `c`, which shares none with the others.
#[expect(unsafe_code, reason = "memory by pointers")]
unsafe fn gemm_add<T: One>(
    [m, n, k]: [usize; 3],
    (c, c_strides): (*mut T, [isize; 2]),
    (a, a_strides): (*const T, [isize; 2]),
    (b, b_strides): (*const T, [isize; 2]),
    add: bool,
) {
    let threads = Parallelism::Rayon(rayon::current_num_threads());
    // SAFETY: as the caller says.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c,
            c_strides[1],
            c_strides[0],
            add,
            a,
            a_strides[1],
            a_strides[0],
            b,
            b_strides[1],
            b_strides[0],
            T::ONE,
            T::ONE,
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
