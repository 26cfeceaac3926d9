//! Sparse autoencoders, flat and hierarchical: encode, decode, losses, the tree, the optimiser, import and export.
//!
//! Latents are rows in both matrices, coarse ones first. Tensors are normalised inside training and in the units of the
//! model outside it.

mod adam;
mod calibrate;
mod candidates;
pub mod checkpoint;
pub mod export;
mod kernels;
mod objective;
mod ops;
mod schedule;
mod select;
mod sparse;
mod tensor_file;
mod trained;
mod trainer;
mod tree;
mod tree_terms;
mod weights;

pub use adam::{Adam, Moments};
pub use calibrate::finish;
pub use sparse::{Columns, SparseRows};
pub use trained::{Mode, Rule, Rules, Threshold, TrainedSae, View};
pub use trainer::{Timing, Trainer, TrainerState};
pub use tree::{ParentEdge, TreeLearner, mutual_information_bits};
pub use weights::{SaeModule, Weights};
