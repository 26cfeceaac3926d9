//! Arithmetic of neural networks on plain slices, for the passes that are written by hand: `lm`'s, `gpt`'s and `hsae`'s.
//!
//! Matrix products in f32 or on rounded operands, and what goes over rows in between. No function but the products in f32
//! fuses a product with a sum, and all sums have an order that the shapes alone decide: the results are the same on every
//! CPU and at any number of threads. Products in f32 are the `gemm` crate's, whose order of sums the processor's caches have
//! a say in.

mod elementary;
mod packed;
mod product;
mod rows;
mod vectors;
mod weight;

pub use elementary::{erf, exp, tanh};
pub use packed::INT8_RECIPE;
pub use product::{Mat, Onto, multiply, multiply_into, multiply_on_all_threads};
pub use rows::{add, causal_softmax, max, reduce, softmax, sum_of_squares_f64, transposed};
pub use vectors::{LANES, vectorised};
pub use weight::{RoundingRoom, Weight};
