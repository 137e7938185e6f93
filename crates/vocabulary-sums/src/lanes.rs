//! A register of f32 values: AVX-512, AVX2 with FMA, or eight plain numbers.

#![expect(unsafe_code, reason = "std::arch intrinsics")]

/// `2^f` for `f` in [-1/2, 1/2]: minimax, relative error 1.6e-7 with these coefficients, lowest power first.
const EXP2: [f32; 6] = [
    1.0000001,
    0.69314694,
    0.2402212,
    0.05550713,
    0.009675541,
    0.0013276472,
];
/// `1.5 * 2^23`: adding it to `x` rounds `x` to an integer, which then sits in the low bits.
const ROUND: f32 = 12_582_912.0;

/// `N` values that one instruction works on.
///
/// # Safety
/// Methods may be called only where the CPU has the instructions, and [`Lanes::load`] and [`Lanes::store`]
/// need `N` valid places.
pub(crate) unsafe trait Lanes: Copy {
    const N: usize;
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// Asks for the line of a place that is loaded soon, where the machine can be asked; any place will do.
    #[inline(always)]
    fn prefetch(_from: *const f32) {}
    unsafe fn add(self, y: Self) -> Self;
    unsafe fn sub(self, y: Self) -> Self;
    unsafe fn mul(self, y: Self) -> Self;
    unsafe fn max(self, y: Self) -> Self;
    /// The larger of `|self|` and `|y|`, as integers, which order like them, with those that are not numbers on top.
    unsafe fn max_abs(self, y: Self) -> Self;
    /// `self * y + z`, rounded once where the machine can.
    unsafe fn fma(self, y: Self, z: Self) -> Self;
    /// Sum over the lanes, in f64.
    unsafe fn sum(self) -> f64;
    /// How many lanes are above those of `y`.
    unsafe fn above(self, y: Self) -> u32;
    /// `self * 2^n`, where `n` is the integer in the low bits of `rounded`.
    unsafe fn scale(self, rounded: Self) -> Self;
}

/// Most lanes of any implementation.
pub(crate) const MAX_LANES: usize = 16;

/// `2^x` for `|x| <= 125`.
///
/// # Safety
/// As for [`Lanes`].
#[inline(always)]
pub(crate) unsafe fn exp2<L: Lanes>(x: L) -> L {
    unsafe {
        let rounded = x.add(L::splat(ROUND));
        let f = x.sub(rounded.sub(L::splat(ROUND)));
        let mut p = L::splat(EXP2[5]);
        for i in (0..5).rev() {
            p = p.fma(f, L::splat(EXP2[i]));
        }
        p.scale(rounded)
    }
}

/// Any machine: the compiler may vectorise it.
unsafe impl Lanes for [f32; 8] {
    const N: usize = 8;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { from.cast::<Self>().read() }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { to.cast::<Self>().write(self) }
    }
    #[inline(always)]
    unsafe fn add(self, y: Self) -> Self {
        std::array::from_fn(|i| self[i] + y[i])
    }
    #[inline(always)]
    unsafe fn sub(self, y: Self) -> Self {
        std::array::from_fn(|i| self[i] - y[i])
    }
    #[inline(always)]
    unsafe fn mul(self, y: Self) -> Self {
        std::array::from_fn(|i| self[i] * y[i])
    }
    #[inline(always)]
    unsafe fn max(self, y: Self) -> Self {
        std::array::from_fn(|i| self[i].max(y[i]))
    }
    #[inline(always)]
    unsafe fn max_abs(self, y: Self) -> Self {
        let bits = |x: f32| x.abs().to_bits();
        std::array::from_fn(|i| f32::from_bits(bits(self[i]).max(bits(y[i]))))
    }
    #[inline(always)]
    unsafe fn fma(self, y: Self, z: Self) -> Self {
        std::array::from_fn(|i| self[i] * y[i] + z[i])
    }
    #[inline(always)]
    unsafe fn sum(self) -> f64 {
        self.iter().map(|&x| f64::from(x)).sum()
    }
    #[inline(always)]
    unsafe fn above(self, y: Self) -> u32 {
        self.iter().zip(&y).map(|(x, y)| u32::from(x > y)).sum()
    }
    #[inline(always)]
    unsafe fn scale(self, rounded: Self) -> Self {
        std::array::from_fn(|i| {
            f32::from_bits(self[i].to_bits().wrapping_add(rounded[i].to_bits() << 23))
        })
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// Sum of four values.
    #[inline(always)]
    unsafe fn across(sum: __m256d) -> f64 {
        unsafe {
            let high = _mm256_extractf128_pd::<1>(sum);
            let two = _mm_add_pd(_mm256_castpd256_pd128(sum), high);
            _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)))
        }
    }

    unsafe impl super::Lanes for __m256 {
        const N: usize = 8;
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { _mm256_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm256_storeu_ps(to, self) }
        }
        #[inline(always)]
        fn prefetch(from: *const f32) {
            // SAFETY: a hint, which reads nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
        }
        #[inline(always)]
        unsafe fn add(self, y: Self) -> Self {
            unsafe { _mm256_add_ps(self, y) }
        }
        #[inline(always)]
        unsafe fn sub(self, y: Self) -> Self {
            unsafe { _mm256_sub_ps(self, y) }
        }
        #[inline(always)]
        unsafe fn mul(self, y: Self) -> Self {
            unsafe { _mm256_mul_ps(self, y) }
        }
        #[inline(always)]
        unsafe fn max(self, y: Self) -> Self {
            unsafe { _mm256_max_ps(self, y) }
        }
        #[inline(always)]
        unsafe fn max_abs(self, y: Self) -> Self {
            unsafe {
                let magnitude = _mm256_set1_epi32(i32::MAX);
                let x = _mm256_and_si256(_mm256_castps_si256(self), magnitude);
                let y = _mm256_and_si256(_mm256_castps_si256(y), magnitude);
                _mm256_castsi256_ps(_mm256_max_epu32(x, y))
            }
        }
        #[inline(always)]
        unsafe fn fma(self, y: Self, z: Self) -> Self {
            unsafe { _mm256_fmadd_ps(self, y, z) }
        }
        #[inline(always)]
        unsafe fn sum(self) -> f64 {
            unsafe {
                let low = _mm256_cvtps_pd(_mm256_castps256_ps128(self));
                let high = _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(self));
                across(_mm256_add_pd(low, high))
            }
        }
        #[inline(always)]
        unsafe fn above(self, y: Self) -> u32 {
            unsafe { _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(self, y)).count_ones() }
        }
        #[inline(always)]
        unsafe fn scale(self, rounded: Self) -> Self {
            unsafe {
                let exponent = _mm256_slli_epi32(_mm256_castps_si256(rounded), 23);
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(self), exponent))
            }
        }
    }

    unsafe impl super::Lanes for __m512 {
        const N: usize = 16;
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { _mm512_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm512_storeu_ps(to, self) }
        }
        #[inline(always)]
        fn prefetch(from: *const f32) {
            // SAFETY: a hint, which reads nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
        }
        #[inline(always)]
        unsafe fn add(self, y: Self) -> Self {
            unsafe { _mm512_add_ps(self, y) }
        }
        #[inline(always)]
        unsafe fn sub(self, y: Self) -> Self {
            unsafe { _mm512_sub_ps(self, y) }
        }
        #[inline(always)]
        unsafe fn mul(self, y: Self) -> Self {
            unsafe { _mm512_mul_ps(self, y) }
        }
        #[inline(always)]
        unsafe fn max(self, y: Self) -> Self {
            unsafe { _mm512_max_ps(self, y) }
        }
        #[inline(always)]
        unsafe fn max_abs(self, y: Self) -> Self {
            unsafe {
                let magnitude = _mm512_set1_epi32(i32::MAX);
                let x = _mm512_and_si512(_mm512_castps_si512(self), magnitude);
                let y = _mm512_and_si512(_mm512_castps_si512(y), magnitude);
                _mm512_castsi512_ps(_mm512_max_epu32(x, y))
            }
        }
        #[inline(always)]
        unsafe fn fma(self, y: Self, z: Self) -> Self {
            unsafe { _mm512_fmadd_ps(self, y, z) }
        }
        #[inline(always)]
        unsafe fn sum(self) -> f64 {
            unsafe {
                let low = _mm512_cvtps_pd(_mm512_castps512_ps256(self));
                let high = _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(self));
                let sum = _mm512_add_pd(low, high);
                let high = _mm512_extractf64x4_pd::<1>(sum);
                across(_mm256_add_pd(_mm512_castpd512_pd256(sum), high))
            }
        }
        #[inline(always)]
        unsafe fn above(self, y: Self) -> u32 {
            unsafe { _mm512_cmp_ps_mask::<_CMP_GT_OQ>(self, y).count_ones() }
        }
        #[inline(always)]
        unsafe fn scale(self, rounded: Self) -> Self {
            unsafe {
                let exponent = _mm512_slli_epi32(_mm512_castps_si512(rounded), 23);
                _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(self), exponent))
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;

    unsafe impl super::Lanes for float32x4_t {
        const N: usize = 4;
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            unsafe { vdupq_n_f32(x) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { vld1q_f32(from) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { vst1q_f32(to, self) }
        }
        #[inline(always)]
        unsafe fn add(self, y: Self) -> Self {
            unsafe { vaddq_f32(self, y) }
        }
        #[inline(always)]
        unsafe fn sub(self, y: Self) -> Self {
            unsafe { vsubq_f32(self, y) }
        }
        #[inline(always)]
        unsafe fn mul(self, y: Self) -> Self {
            unsafe { vmulq_f32(self, y) }
        }
        #[inline(always)]
        unsafe fn max(self, y: Self) -> Self {
            unsafe { vmaxq_f32(self, y) }
        }
        #[inline(always)]
        unsafe fn max_abs(self, y: Self) -> Self {
            unsafe {
                let x = vreinterpretq_u32_f32(vabsq_f32(self));
                let y = vreinterpretq_u32_f32(vabsq_f32(y));
                vreinterpretq_f32_u32(vmaxq_u32(x, y))
            }
        }
        #[inline(always)]
        unsafe fn fma(self, y: Self, z: Self) -> Self {
            unsafe { vfmaq_f32(z, self, y) }
        }
        #[inline(always)]
        unsafe fn sum(self) -> f64 {
            unsafe {
                let low = vcvt_f64_f32(vget_low_f32(self));
                vaddvq_f64(vaddq_f64(low, vcvt_high_f64_f32(self)))
            }
        }
        #[inline(always)]
        unsafe fn above(self, y: Self) -> u32 {
            unsafe { vaddvq_u32(vshrq_n_u32::<31>(vcgtq_f32(self, y))) }
        }
        #[inline(always)]
        unsafe fn scale(self, rounded: Self) -> Self {
            unsafe {
                let exponent = vshlq_n_s32::<23>(vreinterpretq_s32_f32(rounded));
                vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(self), exponent))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::exp2;

    #[test]
    fn exp2_keeps_its_stated_error() {
        for i in -125_000..=125_000 {
            let x = i as f32 / 1000.0;
            let got = f64::from(unsafe { exp2([x; 8]) }[0]);
            let expected = f64::from(x).exp2();
            assert!(
                (got / expected - 1.0).abs() < 2.5e-7,
                "2^{x}: {got:e}, expected {expected:e}"
            );
        }
    }
}
