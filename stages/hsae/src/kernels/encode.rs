//! The encoder: dense pre-activations, block by block, and the gradient of the latents that were kept.

use rayon::prelude::*;

use super::{axpy, split_at_offsets, vectorised};
use crate::sparse::Columns;
#[cfg(test)]
use crate::sparse::SparseRows;

/// Tokens per block. Their pre-activations stay in cache between the product and the selection.
const BLOCK_ROWS: usize = 128;
/// Latents per parallel piece of work in the backward pass.
const BLOCK_LATENTS: usize = 16;

/// Pre-activations of a block of tokens: `out` = x·W_encᵀ + b_enc.
/// Shapes: x_centered [B, d_model] (b_dec already subtracted), w_enc [d_sae, d_model], b_enc [d_sae] → out [B, d_sae].
/// Source: Bricken et al. 2023, "Towards Monosemanticity", the autoencoder's encoder.
fn pre_acts_block(x_centered: &[f32], w_enc: &[f32], b_enc: &[f32], d_model: usize, out: &mut [f32]) {
    let d_sae = b_enc.len();
    let n_rows = x_centered.len() / d_model;
    assert_eq!(x_centered.len(), n_rows * d_model, "x_centered is [B, d_model]");
    assert_eq!(w_enc.len(), d_sae * d_model, "w_enc is [d_sae, d_model]");
    assert_eq!(out.len(), n_rows * d_sae, "out is [B, d_sae]");
    for row in out.chunks_exact_mut(d_sae) {
        row.copy_from_slice(b_enc);
    }
    // SAFETY: the three pointers are valid for the shapes and strides given, as asserted above, and `out` is borrowed
    // mutably, so nothing aliases it.
    unsafe {
        gemm::gemm(
            n_rows,
            d_sae,
            d_model,
            out.as_mut_ptr(),
            1,
            d_sae as isize,
            true,
            x_centered.as_ptr(),
            1,
            d_model as isize,
            w_enc.as_ptr(),
            d_model as isize,
            1,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// Runs `f(first_row, pre_acts of the block)` for fixed blocks of tokens, in parallel; results in the order of blocks.
pub(crate) fn for_each_block<R: Send>(
    x_centered: &[f32],
    w_enc: &[f32],
    b_enc: &[f32],
    d_model: usize,
    f: impl Fn(usize, &[f32]) -> R + Sync,
) -> Vec<R> {
    let d_sae = b_enc.len();
    x_centered
        .par_chunks(BLOCK_ROWS * d_model)
        .enumerate()
        .map_init(
            || vec![0f32; BLOCK_ROWS * d_sae],
            |buffer, (block, x)| {
                let pre_acts = &mut buffer[..x.len() / d_model * d_sae];
                pre_acts_block(x, w_enc, b_enc, d_model, pre_acts);
                f(block * BLOCK_ROWS, pre_acts)
            },
        )
        .collect()
}

/// Gradients of the kept pre-activations: where entry e of row t and latent j has gradient g_e,
/// ∂W_enc[j] = Σ g_e x[t], ∂b_enc[j] = Σ g_e, and ∂b_dec = −Σ_j ∂b_enc[j] W_enc[j].
/// Shapes: x_centered [B, d_model], grad_vals [nnz] → ([d_sae, d_model], [d_sae], [d_model]).
pub(crate) fn acts_backward(
    x_centered: &[f32],
    w_enc: &[f32],
    columns: &Columns,
    grad_vals: &[f32],
    d_model: usize,
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let d_sae = columns.n_cols();
    let mut grad_w_enc = vec![0f32; d_sae * d_model];
    let mut grad_b_enc = vec![0f32; d_sae];
    grad_w_enc
        .par_chunks_mut(BLOCK_LATENTS * d_model)
        .zip(grad_b_enc.par_chunks_mut(BLOCK_LATENTS))
        .enumerate()
        .for_each(|(block, (grad_w, grad_b))| {
            vectorised(|| {
                for (i, (grad_w, grad_b)) in grad_w.chunks_exact_mut(d_model).zip(grad_b).enumerate() {
                    for at in columns.range(block * BLOCK_LATENTS + i) {
                        let grad = grad_vals[columns.entry[at] as usize];
                        let row = columns.row[at] as usize * d_model;
                        axpy(grad_w, grad, &x_centered[row..row + d_model]);
                        *grad_b += grad;
                    }
                }
            });
        });
    let grad_b_dec = weighted_sum_of_rows(w_enc, &grad_b_enc, d_model).into_iter().map(|sum| -sum).collect();
    (grad_w_enc, grad_b_enc, grad_b_dec)
}

/// Σ_j weight[j] · rows[j], in blocks folded in order. Shapes: rows [n, d], weights [n] → [d].
pub(super) fn weighted_sum_of_rows(rows: &[f32], weights: &[f32], d: usize) -> Vec<f32> {
    const BLOCK: usize = 256;
    let parts: Vec<Vec<f32>> = rows
        .par_chunks(BLOCK * d)
        .zip(weights.par_chunks(BLOCK))
        .map(|(rows, weights)| {
            vectorised(|| {
                let mut sum = vec![0f32; d];
                for (row, &weight) in rows.chunks_exact(d).zip(weights) {
                    axpy(&mut sum, weight, row);
                }
                sum
            })
        })
        .collect();
    let mut sum = vec![0f32; d];
    for part in parts {
        axpy(&mut sum, 1.0, &part);
    }
    sum
}

/// Values that were computed column by column, put back into the order of the rows' entries.
pub(super) fn to_entry_order(columns: &Columns, by_column: &[f32]) -> Vec<f32> {
    let mut by_entry = vec![0f32; by_column.len()];
    for (&entry, &value) in columns.entry.iter().zip(by_column) {
        by_entry[entry as usize] = value;
    }
    by_entry
}

/// Column offsets of blocks of latents, for splitting arrays that are ordered by column.
pub(super) fn block_offsets(columns: &Columns) -> Vec<usize> {
    let mut offsets: Vec<usize> = columns.colptr.iter().copied().step_by(BLOCK_LATENTS).collect();
    let nnz = columns.colptr[columns.n_cols()];
    if !columns.n_cols().is_multiple_of(BLOCK_LATENTS) {
        offsets.push(nnz);
    }
    offsets
}

/// `f(latent, grad_row of that latent, its part of by_column)` for all latents, in parallel blocks.
pub(super) fn for_each_latent(
    columns: &Columns,
    grad_rows: &mut [f32],
    by_column: &mut [f32],
    d_model: usize,
    f: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) {
    let parts = split_at_offsets(by_column, &block_offsets(columns));
    grad_rows.par_chunks_mut(BLOCK_LATENTS * d_model).zip(parts).enumerate().for_each(|(block, (grads, mut part))| {
        vectorised(|| {
            for (i, grad) in grads.chunks_exact_mut(d_model).enumerate() {
                let j = block * BLOCK_LATENTS + i;
                let (own, rest) = std::mem::take(&mut part).split_at_mut(columns.range(j).len());
                part = rest;
                f(j, grad, own);
            }
        });
    });
}

/// The pre-activations at given entries.
#[cfg(test)]
pub(crate) fn pre_acts_at(
    x_centered: &[f32],
    w_enc: &[f32],
    b_enc: &[f32],
    d_model: usize,
    entries: &SparseRows,
) -> Vec<f32> {
    let mut pre_acts = Vec::with_capacity(entries.nnz());
    for t in 0..entries.n_rows() {
        let x = &x_centered[t * d_model..(t + 1) * d_model];
        for &j in entries.row(t).0 {
            let w = &w_enc[j as usize * d_model..(j as usize + 1) * d_model];
            pre_acts.push(super::dot(x, w) + b_enc[j as usize]);
        }
    }
    pre_acts
}
