//! The gradient of a step, in buffers that live as long as the training.

use rayon::prelude::*;

use crate::kernels::{axpy, dot, vectorised};

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

    /// Mutable blocks of BLOCK_LATENTS latents, in order.
    pub(crate) fn blocks(&mut self, d_model: usize) -> impl IndexedParallelIterator<Item = BlockMut<'_>> {
        let n = BLOCK_LATENTS * d_model;
        let rows = self.w_enc.par_chunks_mut(n).zip(self.w_dec.par_chunks_mut(n));
        let others = self.b_enc.par_chunks_mut(BLOCK_LATENTS).zip(self.own.par_chunks_mut(BLOCK_LATENTS));
        rows.zip(others).enumerate().map(|(block, ((w_enc, w_dec), (b_enc, own)))| BlockMut {
            first: block * BLOCK_LATENTS,
            w_enc,
            w_dec,
            b_enc,
            own,
        })
    }
}

/// The gradients of some neighbouring latents.
pub(crate) struct BlockMut<'a> {
    pub(crate) first: usize,
    pub(crate) w_enc: &'a mut [f32],
    pub(crate) w_dec: &'a mut [f32],
    pub(crate) b_enc: &'a mut [f32],
    pub(crate) own: &'a mut [[f32; 2]],
}

/// The gradients of one latent.
pub(crate) struct RowMut<'a> {
    pub(crate) latent: usize,
    pub(crate) w_enc: &'a mut [f32],
    pub(crate) w_dec: &'a mut [f32],
    pub(crate) b_enc: &'a mut f32,
    pub(crate) own: &'a mut [f32; 2],
}

impl BlockMut<'_> {
    pub(crate) fn rows(&mut self, d_model: usize) -> impl Iterator<Item = RowMut<'_>> {
        let rows = self.w_enc.chunks_exact_mut(d_model).zip(self.w_dec.chunks_exact_mut(d_model));
        let others = self.b_enc.iter_mut().zip(self.own.iter_mut());
        let first = self.first;
        rows.zip(others).enumerate().map(move |(i, ((w_enc, w_dec), (b_enc, own)))| RowMut {
            latent: first + i,
            w_enc,
            w_dec,
            b_enc,
            own,
        })
    }
}

impl RowMut<'_> {
    /// Adds the extras of this latent.
    #[inline(always)]
    pub(crate) fn add(&mut self, extras: &[Extra]) {
        for extra in extras {
            let Ok(at) = extra.latents.binary_search(&(self.latent as u32)) else { continue };
            let d_model = self.w_enc.len();
            axpy(self.w_enc, 1.0, &extra.w_enc[at * d_model..(at + 1) * d_model]);
            axpy(self.w_dec, 1.0, &extra.w_dec[at * d_model..(at + 1) * d_model]);
            *self.b_enc += extra.b_enc[at];
            for (own, extra) in self.own.iter_mut().zip(extra.own.get(at).unwrap_or(&[0.0; 2])) {
                *own += extra;
            }
        }
    }

    /// Removes from the decoder row's gradient what would only change the row's length, where that is fixed.
    /// Source: Bricken et al. 2023, "Towards Monosemanticity", appendix on training.
    #[inline(always)]
    pub(crate) fn remove_parallel_part(&mut self, w_dec: &[f32]) {
        let along = dot(self.w_dec, w_dec);
        axpy(self.w_dec, -along, w_dec);
    }

    #[inline(always)]
    pub(crate) fn sum_of_squares(&self) -> f64 {
        let own = f64::from(self.own[0]).powi(2) + f64::from(self.own[1]).powi(2);
        let rows = f64::from(dot(self.w_enc, self.w_enc)) + f64::from(dot(self.w_dec, self.w_dec));
        rows + f64::from(*self.b_enc).powi(2) + own
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
