//! The decoder: reconstructions from the first m latents, for several m at once, since a longer prefix is a shorter one
//! plus the latents in between.

use rayon::prelude::*;

use super::encode::{for_each_latent, to_entry_order, weighted_sum_of_rows};
use super::{axpy, dot, vectorised};
use crate::sparse::{Columns, SparseRows};

/// Tokens per parallel piece of work, and per partial sum.
const BLOCK_ROWS: usize = 64;

/// x̂ = b_dec + Σ_j z_j W_dec[j], over the latents below `n_latents`.
/// Shapes: acts [B, d_sae] sparse, w_dec [d_sae, d_model], b_dec [d_model] → [B, d_model].
pub(crate) fn decode_rows(acts: &SparseRows, w_dec: &[f32], b_dec: &[f32], n_latents: usize) -> Vec<f32> {
    let d_model = b_dec.len();
    let mut out = vec![0f32; acts.n_rows() * d_model];
    out.par_chunks_mut(BLOCK_ROWS * d_model).enumerate().for_each(|(block, out)| {
        vectorised(|| {
            for (i, out) in out.chunks_exact_mut(d_model).enumerate() {
                out.copy_from_slice(b_dec);
                let (idx, vals) = acts.row(block * BLOCK_ROWS + i);
                for (&j, &value) in idx.iter().zip(vals).take_while(|&(&j, _)| (j as usize) < n_latents) {
                    axpy(out, value, &w_dec[j as usize * d_model..(j as usize + 1) * d_model]);
                }
            }
        });
    });
    out
}

/// Errors of nested reconstructions.
pub(crate) struct PrefixErrors {
    /// mean over tokens of ‖x − x̂_m‖², one per prefix, [P].
    pub(crate) errors: Vec<f64>,
    /// x̂_m − x, token by token and prefix by prefix, [B, P, d_model].
    pub(crate) residuals: Vec<f32>,
}

/// Mean squared errors of x̂_m = b_dec + z[:m] W_dec[:m] for ascending prefix lengths m.
/// Shapes: x [B, d_model], vals [nnz] at the entries of `acts`, ends [P] → errors [P].
/// Source: Bussmann et al. 2025, "Learning Multi-Level Features with Matryoshka Sparse Autoencoders", equation 2.
pub(crate) fn prefix_errors(
    x: &[f32],
    acts: &SparseRows,
    vals: &[f32],
    w_dec: &[f32],
    b_dec: &[f32],
    ends: &[usize],
) -> PrefixErrors {
    let (d_model, n_prefixes) = (b_dec.len(), ends.len());
    let mut residuals = vec![0f32; acts.n_rows() * n_prefixes * d_model];
    let parts: Vec<Vec<f64>> = residuals
        .par_chunks_mut(BLOCK_ROWS * n_prefixes * d_model)
        .enumerate()
        .map(|(block, residuals)| {
            vectorised(|| {
                let mut sums = vec![0f64; n_prefixes];
                let mut x_hat = vec![0f32; d_model];
                for (i, residuals) in residuals.chunks_exact_mut(n_prefixes * d_model).enumerate() {
                    let t = block * BLOCK_ROWS + i;
                    let x = &x[t * d_model..(t + 1) * d_model];
                    x_hat.copy_from_slice(b_dec);
                    let mut e = acts.indptr[t];
                    for (p, residual) in residuals.chunks_exact_mut(d_model).enumerate() {
                        while e < acts.indptr[t + 1] && (acts.idx[e] as usize) < ends[p] {
                            let j = acts.idx[e] as usize * d_model;
                            axpy(&mut x_hat, vals[e], &w_dec[j..j + d_model]);
                            e += 1;
                        }
                        for ((r, x_hat), x) in residual.iter_mut().zip(&x_hat).zip(x) {
                            *r = x_hat - x;
                        }
                        sums[p] += f64::from(dot(residual, residual));
                    }
                }
                sums
            })
        })
        .collect();
    let mut errors = vec![0f64; n_prefixes];
    for part in parts {
        for (error, part) in errors.iter_mut().zip(part) {
            *error += part / acts.n_rows() as f64;
        }
    }
    PrefixErrors { errors, residuals }
}

/// Gradients of Σ_p grad_errors[p] · errors[p].
/// Returns (∂vals [nnz], ∂W_dec [d_sae, d_model], ∂b_dec [d_model]).
pub(crate) fn prefix_errors_backward(
    mut residuals: Vec<f32>,
    acts: &SparseRows,
    columns: &Columns,
    vals: &[f32],
    w_dec: &[f32],
    ends: &[usize],
    grad_errors: &[f32],
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let (n_rows, n_prefixes) = (acts.n_rows(), ends.len());
    let d_model = residuals.len() / (n_rows * n_prefixes).max(1);
    suffix_sums(&mut residuals, n_rows, d_model, grad_errors);

    let mut grad_w_dec = vec![0f32; acts.n_cols * d_model];
    let mut grad_by_column = vec![0f32; acts.nnz()];
    for_each_latent(columns, &mut grad_w_dec, &mut grad_by_column, d_model, |j, grad_row, grad_vals| {
        // Latent j is part of the first prefix that is longer than j and of all after it; one beyond them all has no
        // gradient.
        let Some(p) = ends.iter().position(|&end| j < end) else { return };
        let w = &w_dec[j * d_model..(j + 1) * d_model];
        for (at, grad_val) in columns.range(j).zip(grad_vals) {
            let from = (columns.row[at] as usize * n_prefixes + p) * d_model;
            let grad_x_hat = &residuals[from..from + d_model];
            *grad_val = dot(grad_x_hat, w);
            axpy(grad_row, vals[columns.entry[at] as usize], grad_x_hat);
        }
    });

    // b_dec is part of every prefix: its gradient is the sum over tokens of the suffix sum at the first one.
    let first_only: Vec<f32> = (0..n_rows * n_prefixes).map(|i| if i % n_prefixes == 0 { 1.0 } else { 0.0 }).collect();
    let grad_b_dec = weighted_sum_of_rows(&residuals, &first_only, d_model);
    (to_entry_order(columns, &grad_by_column), grad_w_dec, grad_b_dec)
}

/// In place: residual p of each token becomes Σ_{q ≥ p} grad_errors[q] · 2/B · residual q, the gradient of all prefixes
/// that contain a latent whose first prefix is p.
fn suffix_sums(residuals: &mut [f32], n_rows: usize, d_model: usize, grad_errors: &[f32]) {
    let n_prefixes = grad_errors.len();
    let scale = 2.0 / n_rows as f32;
    residuals.par_chunks_mut(BLOCK_ROWS * n_prefixes * d_model).for_each(|block| {
        vectorised(|| {
            for token in block.chunks_exact_mut(n_prefixes * d_model) {
                for p in (0..n_prefixes).rev() {
                    let (before, after) = token.split_at_mut((p + 1) * d_model);
                    let residual = &mut before[p * d_model..];
                    let factor = grad_errors[p] * scale;
                    residual.iter_mut().for_each(|r| *r *= factor);
                    if p + 1 < n_prefixes {
                        axpy(residual, 1.0, &after[..d_model]);
                    }
                }
            }
        });
    });
}
