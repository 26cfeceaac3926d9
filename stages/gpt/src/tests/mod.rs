//! Tests of the whole model.

mod folder;
mod golden;
mod gradients;
mod sampling;

use artifact::random::stream;
use rand::RngExt;

use crate::{Shape, initial};

/// A model whose sizes fill no register and no block, its weights away from where it begins.
fn tiny() -> (Shape, Vec<f32>) {
    let shape = Shape { n_layers: 2, n_heads: 3, d_model: 21, context_length: 70, n_vocab: 11 };
    let mut random = stream(1, "tests/weights", 0, 0);
    let weights = initial(&shape, 3).into_iter().map(|w| w * 4.0 + random.random_range(-0.2f32..0.2)).collect();
    (shape, weights)
}

/// Random contexts, and what follows each token. Shapes: [n · length] each.
fn batch(shape: &Shape, n: usize, length: usize, seed: u64) -> (Vec<u32>, Vec<u32>) {
    let mut random = stream(seed, "tests/batch", 0, 0);
    (0..n * length)
        .map(|_| (random.random_range(0..shape.n_vocab as u32), random.random_range(0..shape.n_vocab as u32)))
        .unzip()
}
