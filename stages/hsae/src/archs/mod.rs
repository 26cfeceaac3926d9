//! The architectures: what each does to a pre-activation, and its penalty. What all share (selection, reconstruction,
//! the passes over latents) lies outside.

mod gated;
mod jumprelu;
mod matching_pursuit;
mod panneal;
mod relu;

pub(crate) use gated::Gated;
pub(crate) use jumprelu::{JumpRelu, PreActLoss, Sparsity};
pub(crate) use matching_pursuit::Dictionary;
pub(crate) use panneal::{Annealing, PAnneal};
pub(crate) use relu::Relu;
