//! Planted ground truth: features in a forest that fire and add up to activations, drawn without end.
//!
//! x = b + Σ_f m_f · u_f + noise, over the features f that fire in the row; u_f are unit vectors, m_f magnitudes, b a bias.
//! The recipe is SynthSAEBench's (arXiv 2602.14687, its second model version; science.md §8), as SAELens implements it.
//!
//! A [`World`] is what is planted. It is built from a configuration and a seed, and rebuilt from `harvest/truth.parquet`
//! and `truth.json` to the same bits. Its rows come in blocks of [`BLOCK_ROWS`]; a block is a function of the world, of
//! what it is for, of a seed and of its number, so that rows can be drawn in any order and on any number of threads.

mod directions;
mod firing;
mod forest;
mod probabilities;
mod rows;
mod screen;
#[cfg(test)]
mod tests;
mod world;

pub use firing::Firing;
pub use rows::{BLOCK_ROWS, Stream};
pub use world::{Shared, World};
