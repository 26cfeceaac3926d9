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

/// A mask of the lanes of a panel that are outputs.
#[cfg(target_arch = "x86_64")]
fn lanes(panel_start: usize, d_out: usize) -> u16 {
    match d_out.saturating_sub(panel_start) {
        n if n >= PANEL => !0,
        n => (1 << n) - 1,
    }
}
