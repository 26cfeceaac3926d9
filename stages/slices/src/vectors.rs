//! Vector instructions, found at run time.

/// Partial sums of a reduction: one AVX-512 register of f32, or two of AVX.
pub(crate) const LANES: usize = 16;

/// Runs a piece of arithmetic with the widest vector instructions that this CPU has. What the closure calls takes part where
/// it is `#[inline(always)]`, and so should the closure be.
pub fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    // pulp compiles the closure, and all that is inlined into it, once for each level of instructions.
    pulp::Arch::new().dispatch(work)
}
