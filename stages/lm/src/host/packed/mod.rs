//! Matrix products on rounded operands: weights are rounded and packed once, rows as they come.
//!
//! Each value of a product is one chain of sums in an order that the shapes alone decide: a row has the same bits whatever
//! rows stand beside it, on any number of threads.

mod bf16;
mod int8;
#[cfg(test)]
mod tests;

pub(crate) use bf16::{Bf16Weights, to_bf16};
pub(crate) use int8::Int8Weights;

/// Outputs side by side: the 32-bit lanes of an AVX-512 register.
const PANEL: usize = 16;
/// Outputs whose weights lie together: what a kernel computes at once.
const OUTPUTS: usize = 2 * PANEL;

/// Where the products of some rows with a group of outputs go, for kernels of 512-bit registers.
#[cfg(target_arch = "x86_64")]
mod group {
    use std::arch::x86_64::*;

    use super::PANEL;

    pub(super) struct Group {
        /// [rows, d_out], from the group's first output on.
        out: *mut f32,
        d_out: usize,
        /// The lanes of both panels that are outputs.
        masks: [u16; 2],
        /// Whether `out` holds the sums of inputs before these.
        goes_on: bool,
    }

    impl Group {
        /// `out` is [rows, d_out], from the first output on, of which the group's first is output `first`.
        pub(super) fn new(out: *mut f32, d_out: usize, first: usize, goes_on: bool) -> Self {
            let lanes = |panel: usize| match d_out.saturating_sub(first + panel) {
                n if n >= PANEL => !0,
                n => (1 << n) - 1,
            };
            Self { out: out.wrapping_add(first), d_out, masks: [lanes(0), lanes(PANEL)], goes_on }
        }

        /// What sums go on from.
        ///
        /// # Safety
        /// The processor has AVX-512, and `out` N rows.
        #[inline]
        #[target_feature(enable = "avx512f")]
        pub(super) unsafe fn load<const N: usize>(&self) -> [[__m512; 2]; N] {
            let mut sums = [[_mm512_setzero_ps(); 2]; N];
            if self.goes_on {
                for (row, sums) in sums.iter_mut().enumerate() {
                    let out = self.out.wrapping_add(row * self.d_out);
                    // SAFETY: as promised by the caller; lanes behind the row are not touched.
                    *sums = unsafe {
                        [
                            _mm512_maskz_loadu_ps(self.masks[0], out),
                            _mm512_maskz_loadu_ps(self.masks[1], out.wrapping_add(PANEL)),
                        ]
                    };
                }
            }
            sums
        }

        /// # Safety
        /// As for `load`.
        #[inline]
        #[target_feature(enable = "avx512f")]
        pub(super) unsafe fn store<const N: usize>(&self, sums: [[__m512; 2]; N]) {
            for (row, sums) in sums.into_iter().enumerate() {
                let out = self.out.wrapping_add(row * self.d_out);
                // SAFETY: as for `load`.
                unsafe {
                    _mm512_mask_storeu_ps(out, self.masks[0], sums[0]);
                    _mm512_mask_storeu_ps(out.wrapping_add(PANEL), self.masks[1], sums[1]);
                }
            }
        }
    }
}
