//! AuxK: so many dead latents are asked to speak that most of them do, hence products of whole matrices.

use rayon::prelude::*;
use slices::{Mat, Onto, multiply_on_all_threads as multiply};

use super::dense::BLOCK_ROWS;
use super::dot;
use crate::gradients::Extra;

/// Dead latents reconstruct what the live ones leave.
/// Source: Gao et al. 2024, "Scaling and evaluating sparse autoencoders", appendix A.2.
pub(crate) struct Aux<'a> {
    /// The encoder's input, [B, d_model].
    pub(crate) x: &'a [f32],
    /// x̂ − x, [B, d_model].
    pub(crate) residuals: &'a [f32],
    pub(crate) w_enc: &'a [f32],
    pub(crate) b_enc: &'a [f32],
    pub(crate) w_dec: &'a [f32],
    pub(crate) d_model: usize,
    /// Ascending.
    pub(crate) dead: &'a [u32],
    /// Of which so many speak for a token: those with the largest positive pre-activations.
    pub(crate) k: usize,
    /// Weight of the mean over tokens of ‖e − ê‖².
    pub(crate) weight: f32,
}

impl Aux<'_> {
    /// The mean over tokens of ‖e − ê‖², unweighted, and the gradients of the weighted one. `left` receives ê − e,
    /// [B, d_model].
    pub(crate) fn run(&self, mut left: Option<&mut [f32]>) -> (f64, Extra) {
        let (d_model, n_dead) = (self.d_model, self.dead.len());
        let n_rows = self.x.len() / d_model;
        let gather = |matrix: &[f32]| -> Vec<f32> {
            let row = |&j: &u32| &matrix[j as usize * d_model..(j as usize + 1) * d_model];
            self.dead.iter().flat_map(row).copied().collect()
        };
        let (w_enc, w_dec) = (gather(self.w_enc), gather(self.w_dec));
        let b_enc: Vec<f32> = self.dead.iter().map(|&j| self.b_enc[j as usize]).collect();
        let mut extra = Extra {
            latents: self.dead.to_vec(),
            w_enc: vec![0.0; n_dead * d_model],
            b_enc: vec![0.0; n_dead],
            w_dec: vec![0.0; n_dead * d_model],
            own: Vec::new(),
        };
        let rows = BLOCK_ROWS.min(n_rows);
        let mut acts = vec![0f32; rows * n_dead];
        let mut grad_acts = vec![0f32; rows * n_dead];
        let mut flow = vec![0f32; rows * d_model];
        let (mut error, scale) = (0.0, 2.0 * self.weight / n_rows as f32);
        for first in (0..n_rows).step_by(BLOCK_ROWS) {
            let n = BLOCK_ROWS.min(n_rows - first);
            let x = Mat::rows(&self.x[first * d_model..(first + n) * d_model], d_model);
            acts[..n * n_dead].par_chunks_mut(n_dead).for_each(|row| row.copy_from_slice(&b_enc));
            multiply(
                (n, d_model, n_dead),
                1.0,
                x,
                Mat::rows(&w_enc, d_model).transposed(),
                Onto::Sum,
                &mut acts,
                n_dead,
            );
            acts[..n * n_dead].par_chunks_mut(n_dead).for_each(|row| keep_largest(row, self.k));
            // ê − e, where e = x − x̂.
            flow[..n * d_model].copy_from_slice(&self.residuals[first * d_model..(first + n) * d_model]);
            multiply(
                (n, n_dead, d_model),
                1.0,
                Mat::rows(&acts, n_dead),
                Mat::rows(&w_dec, d_model),
                Onto::Sum,
                &mut flow,
                d_model,
            );
            if let Some(left) = &mut left {
                left[first * d_model..(first + n) * d_model].copy_from_slice(&flow[..n * d_model]);
            }
            for row in flow.chunks_exact_mut(d_model).take(n) {
                error += f64::from(dot(row, row)) / n_rows as f64;
                row.iter_mut().for_each(|g| *g *= scale);
            }
            let flow_mat = Mat::rows(&flow[..n * d_model], d_model);
            multiply(
                (n, d_model, n_dead),
                1.0,
                flow_mat,
                Mat::rows(&w_dec, d_model).transposed(),
                Onto::Nothing,
                &mut grad_acts,
                n_dead,
            );
            let acts_mat = Mat::rows(&acts[..n * n_dead], n_dead).transposed();
            multiply((n_dead, n, d_model), 1.0, acts_mat, flow_mat, Onto::Sum, &mut extra.w_dec, d_model);
            for (grads, acts) in grad_acts.chunks_exact_mut(n_dead).zip(acts.chunks_exact(n_dead)).take(n) {
                for ((grad, act), bias) in grads.iter_mut().zip(acts).zip(&mut extra.b_enc) {
                    *grad = if *act > 0.0 { *grad } else { 0.0 };
                    *bias += *grad;
                }
            }
            let grads = Mat::rows(&grad_acts[..n * n_dead], n_dead).transposed();
            multiply((n_dead, n, d_model), 1.0, grads, x, Onto::Sum, &mut extra.w_enc, d_model);
        }
        (error, extra)
    }
}

/// The k largest positive values stay, the others become 0; of equal ones the first.
fn keep_largest(row: &mut [f32], k: usize) {
    row.iter_mut().for_each(|value| *value = value.max(0.0));
    if row.len() <= k {
        return;
    }
    let mut order: Vec<u32> = (0..row.len() as u32).filter(|&i| row[i as usize] > 0.0).collect();
    if order.len() > k {
        let by_value = |&a: &u32, &b: &u32| row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b));
        order.select_nth_unstable_by(k, by_value);
        order[k..].iter().for_each(|&i| row[i as usize] = 0.0);
    }
}
