//! Arithmetic of neural networks on plain slices, for the passes that are written by hand.
//!
//! Matrix products in f32 or on rounded operands, and what goes over rows in between. Whatever it is, the number of threads has
//! no say in the result. What goes over rows fuses a product with a sum where it says so and nowhere else, and adds in an order that
//! the shapes alone decide: it has the same bits on every CPU. So have products on int8. Those in f32 are the `gemm` crate's, whose order of sums follows
//! the processor's registers and caches, and those on bf16 take the processor's instruction where it has one.

mod elementary;
mod packed;
mod product;
mod rows;
mod vectors;
mod weight;

pub use elementary::{exp, gelu, gelu_tanh, silu, tanh};
pub use packed::{INT8_GRADIENT_RECIPE, INT8_RECIPE};
pub use product::{Mat, Onto, multiply, multiply_on_all_threads};
pub use rows::{add, causal_softmax, max, reduce, sum_of_squares_f64, transposed};
pub use vectors::vectorised;
pub use weight::{RoundingRoom, Weight, add_gradient};
