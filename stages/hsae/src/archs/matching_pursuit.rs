//! Matching pursuit: latents are chosen one after the other, each the one that explains most of what is left.
//!
//! r_0 = x − b_dec;  for i < k:  j = argmax W_dec·r_i,  a_i = max(0, W_dec\[j\]·r_i),  z_j += a_i,  r_{i+1} = r_i − a_i W_dec\[j\]
//! L = mean ‖r_k‖²
//!
//! There is no encoder of its own. The gradient goes through every a_i and through the residuals, not through the choice.
//! Source: Costa et al. 2025, "From Flat to Hierarchical: Extracting Sparse Representations with Matching Pursuit"; in the
//! form of SAELens, with a fixed number of steps.

use rayon::prelude::*;

use crate::gradients::Gradients;
use crate::kernels::screen::PackedEncoder;
use crate::kernels::{EncoderInput, axpy, dot, vectorised};
use crate::select::{Budget, Scope, select_batch};
use crate::sparse::SparseRows;

/// Tokens per parallel piece of work, and per partial sum.
const ROWS_AT_ONCE: usize = 64;

/// The dictionary. Shapes: w_dec [d_sae, d_model].
#[derive(Clone, Copy)]
pub(crate) struct Dictionary<'a> {
    pub(crate) w_dec: &'a [f32],
    pub(crate) d_model: usize,
    /// The same W_dec.
    pub(crate) packed: &'a PackedEncoder,
}

/// What was chosen for a batch.
pub(crate) struct Pursuit {
    /// One per step: the latent and its share of the activation for each token. No latent is left where the share is 0.
    steps: Vec<SparseRows>,
    /// What is left, [B, d_model].
    pub(crate) residual: Vec<f32>,
}

impl Dictionary<'_> {
    fn row(&self, j: u32) -> &[f32] {
        &self.w_dec[j as usize * self.d_model..(j as usize + 1) * self.d_model]
    }

    /// `guesses` say where each step starts to look, from the batch before; they are replaced by those for the next one.
    /// Shapes: x_centered [B, d_model].
    pub(crate) fn pursue(&self, x_centered: &[f32], n_steps: usize, guesses: &mut Vec<f32>) -> Pursuit {
        guesses.resize(n_steps, 0.0);
        let no_bias = vec![0f32; self.w_dec.len() / self.d_model];
        let mut pursuit = Pursuit { steps: Vec::with_capacity(n_steps), residual: x_centered.to_vec() };
        let one = Budget::Shared { k: 1.0, fine: 1.0, n_coarse: 0 };
        for guess in guesses {
            let input = EncoderInput {
                x_centered: &pursuit.residual,
                w_enc: self.w_dec,
                b_enc: &no_bias,
                d_model: self.d_model,
                packed: self.packed,
            };
            let selection = select_batch(input, &one, Scope::Token, None, [*guess, 0.0]);
            *guess = selection.guess[0];
            let chosen = selection.pre_acts;
            self.add(&chosen, -1.0, &mut pursuit.residual);
            pursuit.steps.push(chosen);
        }
        pursuit
    }

    /// rows += factor · Σ_j a_j W_dec\[j\], token by token.
    fn add(&self, chosen: &SparseRows, factor: f32, rows: &mut [f32]) {
        let blocks = rows.par_chunks_mut(ROWS_AT_ONCE * self.d_model).enumerate();
        blocks.for_each(|(block, rows)| add_block(self, chosen, factor, block * ROWS_AT_ONCE, rows));
    }
}

impl Pursuit {
    /// Activations, those of a latent that was chosen twice added up.
    pub(crate) fn acts(&self, d_sae: usize) -> SparseRows {
        let mut acts = SparseRows::new(d_sae);
        let n_rows = self.steps.first().map_or(0, SparseRows::n_rows);
        for t in 0..n_rows {
            let mut row: Vec<(u32, f32)> = Vec::with_capacity(self.steps.len());
            for (j, a) in
                self.steps.iter().flat_map(|step| step.row(t).0.iter().copied().zip(step.row(t).1.iter().copied()))
            {
                match row.iter_mut().find(|(other, _)| *other == j) {
                    Some((_, sum)) => *sum += a,
                    None => row.push((j, a)),
                }
            }
            row.sort_unstable_by_key(|&(j, _)| j);
            acts.push_row(row);
        }
        acts
    }

    /// The mean over tokens of ‖r_k‖², and its gradient: W_dec's and b_dec's; the encoder's stays zero.
    pub(crate) fn backward(mut self, dictionary: Dictionary, grads: &mut Gradients) -> f64 {
        let d_model = dictionary.d_model;
        let n_rows = (self.residual.len() / d_model) as f64;
        let squares: Vec<f64> =
            self.residual.par_chunks(ROWS_AT_ONCE * d_model).map(|rows| f64::from(dot(rows, rows))).collect();
        let loss = squares.iter().sum::<f64>() / n_rows;
        grads.w_dec.fill(0.0);
        grads.w_enc.fill(0.0);
        grads.b_enc.fill(0.0);
        grads.own.fill([0.0; 2]);

        // ∂L/∂r_i, from the last residual back to the first.
        let mut flow = self.residual.clone();
        flow.par_iter_mut().for_each(|g| *g *= (2.0 / n_rows) as f32);
        for chosen in self.steps.iter().rev() {
            // r_i again, from r_{i+1}.
            dictionary.add(chosen, 1.0, &mut self.residual);
            let mut grad_acts = chosen.clone();
            let flow_of = |t: usize| &flow[t * d_model..(t + 1) * d_model];
            for t in 0..chosen.n_rows() {
                for e in chosen.indptr[t]..chosen.indptr[t + 1] {
                    grad_acts.vals[e] = -dot(flow_of(t), dictionary.row(chosen.idx[e]));
                }
            }
            let columns = chosen.columns();
            let rows = grads.w_dec.par_chunks_exact_mut(d_model).enumerate();
            rows.filter(|(j, _)| !columns.range(*j).is_empty()).for_each(|(j, grad)| {
                for at in columns.range(j) {
                    let (t, e) = (columns.row[at] as usize, columns.entry[at] as usize);
                    axpy(grad, -chosen.vals[e], flow_of(t));
                    axpy(grad, grad_acts.vals[e], &self.residual[t * d_model..(t + 1) * d_model]);
                }
            });
            dictionary.add(&grad_acts, 1.0, &mut flow);
        }
        grads.b_dec.fill(0.0);
        for row in flow.chunks_exact(d_model) {
            axpy(&mut grads.b_dec, -1.0, row);
        }
        loss
    }
}

vectorised! {
    fn add_block(dictionary: &Dictionary, chosen: &SparseRows, factor: f32, first: usize, rows: &mut [f32]) {
        for (i, row) in rows.chunks_exact_mut(dictionary.d_model).enumerate() {
            let (idx, vals) = chosen.row(first + i);
            for (&j, &a) in idx.iter().zip(vals) {
                axpy(row, factor * a, dictionary.row(j));
            }
        }
    }
}
