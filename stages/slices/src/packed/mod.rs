//! Matrix products on rounded operands: weights are rounded and packed once, rows as they come.
//!
//! Each value of a product is one chain of sums in an order that the shapes alone decide: a row has the same bits whatever
//! rows stand beside it, on any number of threads.

mod bf16;
mod columns;
mod int8;
#[cfg(test)]
mod tests;

use crate::product::Out;
pub(crate) use bf16::{Bf16Weights, to_bf16};
pub use int8::{INT8_GRADIENT_RECIPE, INT8_RECIPE};
pub(crate) use int8::{Int8Weights, Rows};

/// The operands of a product over rows, rounded.
#[derive(Debug, Default)]
pub(crate) struct Columns {
    rows: Rows,
    weights: Int8Weights,
}

impl Columns {
    /// out += xᵀ dy. Shapes: x [n, d_in], dy [n, d_out] → out [d_in, d_out].
    pub(crate) fn add_product(&mut self, x: &[f32], d_in: usize, dy: &[f32], d_out: usize, out: &mut [f32]) {
        self.rows.take_columns(x, d_in);
        self.weights.take_columns(dy, d_out);
        self.weights.multiply_rounded(&self.rows, d_in, Out::Sum(out));
    }
}

/// Outputs side by side: the 32-bit lanes of an AVX-512 register.
const PANEL: usize = 16;

/// Where the products of some rows with a group of outputs go, for kernels of 512-bit registers.
#[cfg(target_arch = "x86_64")]
mod group {
    use std::arch::x86_64::*;

    use super::PANEL;

    pub(super) struct Group<const PANELS: usize> {
        /// [rows, d_out], from the group's first output on.
        out: *mut f32,
        d_out: usize,
        /// The lanes of each panel that are outputs.
        masks: [u16; PANELS],
        /// Whether `out` holds the sums of inputs before these.
        pub(super) goes_on: bool,
    }

    impl<const PANELS: usize> Group<PANELS> {
        /// `out` is [rows, d_out], from the first output on, of which the group's first is output `first`.
        pub(super) fn new(out: *mut f32, d_out: usize, first: usize, goes_on: bool) -> Self {
            let lanes = |panel: usize| match d_out.saturating_sub(first + panel * PANEL) {
                n if n >= PANEL => !0,
                n => (1 << n) - 1,
            };
            Self { out: out.wrapping_add(first), d_out, masks: std::array::from_fn(lanes), goes_on }
        }

        /// What the sums of a row and a panel go on from.
        ///
        /// # Safety
        /// The processor has AVX-512, and `out` this row.
        #[inline]
        #[target_feature(enable = "avx512f")]
        pub(super) unsafe fn load(&self, row: usize, panel: usize) -> __m512 {
            if !self.goes_on {
                return _mm512_setzero_ps();
            }
            // A mask that lets all through costs time all the same.
            // SAFETY: as promised by the caller; lanes behind the row are not touched.
            unsafe {
                match self.masks[panel] {
                    u16::MAX => _mm512_loadu_ps(self.at(row, panel)),
                    mask => _mm512_maskz_loadu_ps(mask, self.at(row, panel)),
                }
            }
        }

        /// # Safety
        /// As for `load`.
        #[inline]
        #[target_feature(enable = "avx512f")]
        pub(super) unsafe fn store(&self, row: usize, panel: usize, sums: __m512) {
            // SAFETY: as for `load`.
            unsafe {
                match self.masks[panel] {
                    u16::MAX => _mm512_storeu_ps(self.at(row, panel), sums),
                    mask => _mm512_mask_storeu_ps(self.at(row, panel), mask, sums),
                }
            }
        }

        #[inline]
        fn at(&self, row: usize, panel: usize) -> *mut f32 {
            self.out.wrapping_add(row * self.d_out + panel * PANEL)
        }
    }
}
