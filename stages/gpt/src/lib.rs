//! A small GPT that is trained here, so that the pipeline has a language model without a download: GPT-2's architecture
//! without biases, its unembedding tied to its embedding (Radford et al. 2019), on characters.
//!
//! Parameters are one vector, in the order of [`Shape::parameters`]. Two ways lead to its loss and gradient: [`HostPass`], by
//! hand, for the CPU, and [`TensorTraining`], by burn's automatic differentiation, for any device that burn knows; tests hold one
//! against the other. [`AdamW`] updates the vector, [`checkpoint`] keeps it, [`sample`] writes with it, and [`files`] makes it
//! a folder that `lm` and `transformers` read.

mod adamw;
pub mod checkpoint;
mod folder;
mod host;
mod kernels;
mod sample;
mod shape;
mod tensors;
#[cfg(test)]
mod tests;
mod trainer;
mod vocabulary;
mod weights;

pub use adamw::{AdamW, Schedule, State};
pub use folder::{files, read};
pub use host::{DropoutOf, HostPass, Outcome};
pub use sample::{Sampling, sample};
pub use shape::{Kind, Parameter, Shape};
pub use tensors::{HAS_CUDA, TensorTraining, cuda};
pub use trainer::Trainer;
pub use vocabulary::Vocabulary;
pub use weights::initial;
