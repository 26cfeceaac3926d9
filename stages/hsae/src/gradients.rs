//! The gradient of a step, in buffers that live as long as the training.

use rayon::prelude::*;

use crate::kernels::{axpy, vectorised};

/// Latents per parallel piece of work, and per partial sum.
pub(crate) const BLOCK_LATENTS: usize = 16;

/// One vector per parameter, shaped like it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Gradients {
    /// [d_sae, d_model].
    pub(crate) w_enc: Vec<f32>,
    /// [d_sae].
    pub(crate) b_enc: Vec<f32>,
    /// [d_sae, d_model].
    pub(crate) w_dec: Vec<f32>,
    /// [d_model].
    pub(crate) b_dec: Vec<f32>,
    /// Of parameters that only some architectures have, [d_sae].
    pub(crate) own: Vec<[f32; 2]>,
}

/// Gradients of some latents' rows that come from a term of its own, as AuxK's do.
#[derive(Clone, Debug)]
pub(crate) struct Extra {
    /// Ascending, [n].
    pub(crate) latents: Vec<u32>,
    /// [n, d_model].
    pub(crate) w_enc: Vec<f32>,
    /// [n].
    pub(crate) b_enc: Vec<f32>,
    /// [n, d_model].
    pub(crate) w_dec: Vec<f32>,
    /// Of the encoder's threshold, where there is one, [n].
    pub(crate) own: Vec<[f32; 2]>,
}

impl Gradients {
    pub(crate) fn zeros(d_model: usize, d_sae: usize) -> Self {
        Self {
            w_enc: vec![0.0; d_sae * d_model],
            b_enc: vec![0.0; d_sae],
            w_dec: vec![0.0; d_sae * d_model],
            b_dec: vec![0.0; d_model],
            own: vec![[0.0; 2]; d_sae],
        }
    }
}

/// Σ_j weight[j] · rows[j], in blocks folded in order. Shapes: rows [n, d], weights [n] → [d].
pub(crate) fn weighted_sum_of_rows(rows: &[f32], weights: &[f32], d: usize) -> Vec<f32> {
    const BLOCK: usize = 256;
    let blocks = rows.par_chunks(BLOCK * d).zip(weights.par_chunks(BLOCK));
    let parts: Vec<Vec<f32>> = blocks.map(|(rows, weights)| weighted_sum_of_block(rows, weights, d)).collect();
    let mut sum = vec![0f32; d];
    for part in parts {
        axpy(&mut sum, 1.0, &part);
    }
    sum
}

vectorised! {
    fn weighted_sum_of_block(rows: &[f32], weights: &[f32], d: usize) -> Vec<f32> {
        let mut sum = vec![0f32; d];
        for (row, &weight) in rows.chunks_exact(d).zip(weights) {
            axpy(&mut sum, weight, row);
        }
        sum
    }
}
