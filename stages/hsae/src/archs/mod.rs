//! The architectures: what each does to a pre-activation, and its penalty. What all share (selection, reconstruction,
//! the passes over latents) lies outside.

mod relu;

pub(crate) use relu::Relu;
