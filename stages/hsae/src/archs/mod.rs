//! The architectures: what each does to a pre-activation, and its penalty. What all share (selection, reconstruction,
//! the passes over latents) lies outside.

mod gated;
mod jumprelu;
mod matching_pursuit;
mod panneal;
mod relu;
mod tree_sae;

pub(crate) use gated::Gated;
pub(crate) use jumprelu::{JumpRelu, PreActLoss, Sparsity};
pub(crate) use matching_pursuit::Dictionary;
pub(crate) use panneal::{Annealing, PAnneal};
pub(crate) use relu::Relu;
pub use tree_sae::Family;
pub(crate) use tree_sae::{CoarseAux, EPSILON, HardGate, Keep, Levels, Parts, Signs};
