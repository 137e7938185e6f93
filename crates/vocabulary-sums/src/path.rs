//! The instructions that the kernel can use, and the choice among them at run time.

#![expect(unsafe_code, reason = "SIMD chosen at run time")]

use crate::lanes::Lanes;

/// Instructions that the kernel can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// 16 lanes (x86-64).
    Avx512,
    /// 8 lanes with fused multiply-add (x86-64).
    Avx2,
    /// 4 lanes (64-bit Arm).
    Neon,
    /// No particular instructions, on any machine.
    Scalar,
}

/// Work that registers of any kind can do.
pub(crate) trait Work {
    type Out;
    /// Does it, `K` pairs at once where it is about pairs: as many as there are registers for.
    ///
    /// Implementations are `#[inline(always)]`, so that they are compiled for the instructions of the caller.
    ///
    /// # Safety
    /// The CPU has the instructions of `L`.
    unsafe fn run<L: Lanes, const K: usize>(self) -> Self::Out;
}

impl Path {
    /// Those that this machine has, fastest first; the last is [`Path::Scalar`].
    pub fn available() -> Vec<Self> {
        let all = [Self::Avx512, Self::Avx2, Self::Neon, Self::Scalar];
        all.into_iter().filter(|path| path.is_available()).collect()
    }

    fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx512 | Self::Avx2 => false,
            Self::Neon => cfg!(target_arch = "aarch64"),
            Self::Scalar => true,
        }
    }

    /// Refuses instructions that this machine does not have: running them would be undefined.
    pub(crate) fn assert_available(self) {
        assert!(self.is_available(), "this machine cannot run {self:?}");
    }

    /// Does some work by these instructions.
    ///
    /// # Safety
    /// The path is one of [`Path::available`].
    pub(crate) unsafe fn run<W: Work>(self, work: W) -> W::Out {
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 => avx512(work),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => avx2(work),
                #[cfg(target_arch = "aarch64")]
                Self::Neon => work.run::<std::arch::aarch64::float32x4_t, 4>(),
                _ => work.run::<[f32; 8], 1>(),
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq")]
unsafe fn avx512<W: Work>(work: W) -> W::Out {
    unsafe { work.run::<std::arch::x86_64::__m512, 4>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<W: Work>(work: W) -> W::Out {
    unsafe { work.run::<std::arch::x86_64::__m256, 1>() }
}
