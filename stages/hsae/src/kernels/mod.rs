//! The arithmetic on plain slices. Every function fixes the order of its sums, so results do not depend on the number of
//! threads. It follows from the shapes alone, but for the matrix products of the dense pass, which `gemm` cuts by the
//! size of the processor's caches. Vector instructions are chosen at run time.

/// Compiles a function several times, for the vector instructions that processors have, and calls the best that this one
/// has. What it calls takes part where it is `#[inline(always)]`. All give the same bits: none reorders a sum or fuses a
/// product with one.
macro_rules! vectorised {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$($generic:ident: $bound:ident),+>)? ($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name $(<$($generic: $bound),+>)? ($($arg: $type),*) $(-> $ret)? {
            #[inline(always)]
            fn body $(<$($generic: $bound),+>)? ($($arg: $type),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,bmi1,bmi2,fma,lzcnt,popcnt")]
                fn avx512 $(<$($generic: $bound),+>)? ($($arg: $type),*) $(-> $ret)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx2,bmi1,bmi2,fma,lzcnt,popcnt")]
                fn avx2 $(<$($generic: $bound),+>)? ($($arg: $type),*) $(-> $ret)? {
                    body($($arg),*)
                }
                match $crate::kernels::Vectors::detect() {
                    // SAFETY: the processor has these instructions, as was just found.
                    $crate::kernels::Vectors::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::kernels::Vectors::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::kernels::Vectors::Baseline => (),
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use vectorised;

mod aux_k;
mod collect;
mod compare;
mod dense;
mod dot;
mod latents;
mod reconstruct;
pub(crate) mod screen;
mod settle;
mod sliced;
mod weighted;

pub(crate) use aux_k::Aux;
pub(crate) use collect::{Bounds, EncoderInput, TokenBounds, Top, collect, collect_blocks};
pub(crate) use dense::{Dense, dense};
pub(crate) use dot::{dot, dots};
pub(crate) use latents::{Backward, Totals, backward, finish_rows};
pub(crate) use reconstruct::{Prefixes, decode_rows, reconstruct};
pub(crate) use sliced::{BLOCK_ROWS, Sliced};

/// The vector instructions of this processor.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) enum Vectors {
    Avx512,
    Avx2,
    Baseline,
}

#[cfg(target_arch = "x86_64")]
impl Vectors {
    #[inline]
    pub(crate) fn detect() -> Self {
        use std::arch::is_x86_feature_detected as has;
        static FOUND: std::sync::OnceLock<Vectors> = std::sync::OnceLock::new();
        *FOUND.get_or_init(|| {
            let has_avx2 =
                has!("avx2") && has!("bmi1") && has!("bmi2") && has!("fma") && has!("lzcnt") && has!("popcnt");
            let has_avx512 =
                has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl");
            match (has_avx2, has_avx512) {
                (true, true) => Self::Avx512,
                (true, false) => Self::Avx2,
                _ => Self::Baseline,
            }
        })
    }
}

/// y += a·x.
#[inline(always)]
pub(crate) fn axpy(y: &mut [f32], a: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}

/// Asks for a row to be brought into the cache, where there is a way to ask.
#[inline(always)]
pub(crate) fn prefetch(row: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    for line in row.chunks(16) {
        // SAFETY: fetching ahead has no effect but on time.
        unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = row;
}

/// Splits `data` at the given ascending offsets (the first 0, the last its length), so that each part can go to a thread.
pub(crate) fn split_at_offsets<'a, T>(mut data: &'a mut [T], offsets: &[usize]) -> Vec<&'a mut [T]> {
    offsets
        .windows(2)
        .map(|pair| {
            let (part, rest) = std::mem::take(&mut data).split_at_mut(pair[1] - pair[0]);
            data = rest;
            part
        })
        .collect()
}
