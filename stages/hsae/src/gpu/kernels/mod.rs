//! The arithmetic of a step as CubeCL kernels. Floats are never added by atomics, and every sum has an order that follows
//! from the shapes: on one kind of device, results are the same in every run. Integers are counted by atomics, where order
//! does not matter.
//!
//! No kernel uses planes (warps, subgroups), whose size differs between devices, or types wider than 32 bits.

#![expect(clippy::needless_range_loop, reason = "CubeCL loops over ranges, not over iterators")]

pub(super) mod adam;
pub(super) mod columns;
pub(super) mod cube;
pub(super) mod latents;
pub(super) mod lists;
pub(super) mod matrix;
pub(super) mod select;
pub(super) mod tokens;
