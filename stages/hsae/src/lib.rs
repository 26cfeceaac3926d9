//! Sparse autoencoders, flat and hierarchical: encode, decode, losses, the tree, the optimiser, import and export.
//!
//! Latents are rows in both matrices, coarse ones first. Tensors are normalised inside training and in the units of the
//! model outside it.

mod activation;
mod adam;
mod archs;
mod calibrate;
pub mod checkpoint;
pub mod export;
pub mod gpu;
mod gradients;
pub mod import;
mod kernels;
mod objective;
mod refine;
mod rows;
mod schedule;
mod select;
mod sparse;
mod tensor_file;
mod trained;
mod trainer;
mod tree;
mod tree_terms;
mod weights;

pub use adam::{Adam, Lengths};
pub use archs::Family;
pub use calibrate::{Recount, calibrated_anew, finish, finish_but_for_tree};
pub use refine::Refinement;
pub use sparse::{Columns, SparseRows};
pub use trained::{Magnitude, Mode, Packed, Rule, Rules, Threshold, TrainedSae, TreeGate, View};
pub use trainer::{Timing, Trainer, TrainerState};
pub use tree::{ParentEdge, TreeLearner, mutual_information_bits};
pub use weights::{SaeModule, Weights};

/// How the encoder's product is computed on this processor: `amx`, `avx512-vnni`, `avx512-bf16` or `f32`.
pub fn screen_path() -> &'static str {
    kernels::screen::Path::detect().name()
}
