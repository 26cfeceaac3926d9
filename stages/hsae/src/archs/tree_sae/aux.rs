//! Dead coarse latents are asked to reconstruct what the coarse level leaves. Unlike AuxK, what is left is not taken as
//! given: the term pulls on live coarse latents too, and it counts while nothing is dead.
//!
//! e = x − x̂_coarse,    ê = b_dec + Σ of the k largest dead z_j W_dec[j],    z = ReLU(pre)
//! aux = mean (e − ê)² / mean (e − ē)²,    ē: mean of e over a token's coordinates
//!
//! Source: Cao et al. 2026, arXiv 2605.07922, equation 8, with the details of the authors' code: b_dec is in ê too, and
//! neither e nor the denominator is detached.

use rayon::prelude::*;

use crate::gradients::Extra;
use crate::kernels::{Aux, BLOCK_ROWS, Sliced, axpy, decode_rows, dot};
use crate::sparse::SparseRows;
use crate::weights::Weights;

/// Reconstructions of a Tree SAE.
const N_CHANNELS: usize = 2;

pub(crate) struct CoarseAux<'a> {
    /// Coarse ones, ascending.
    pub(crate) dead: &'a [u32],
    pub(crate) k: usize,
    pub(crate) weight: f64,
    pub(crate) n_coarse: usize,
}

impl CoarseAux<'_> {
    /// The weighted term, and its gradients: of dead latents in the result, of b_dec where it is part of x̂ and ê added to
    /// `grad_b_dec`, of x̂_coarse added to the first channel of `flow`.
    /// Shapes: x, target [B, d_model] as in `Objective`.
    pub(crate) fn run(
        &self,
        weights: &Weights,
        x: &[f32],
        target: &[f32],
        pre_acts: &SparseRows,
        flow: &mut Sliced,
        grad_b_dec: &mut [f32],
    ) -> (f64, Option<Extra>) {
        let d_model = weights.d_model;
        let n = target.len() as f64;
        let mut minus_e = decode_rows(pre_acts, &weights.w_dec, &vec![0.0; d_model], self.n_coarse); // x̂_coarse − b_dec, then − e
        minus_e.par_chunks_exact_mut(d_model).zip(target.par_chunks_exact(d_model)).for_each(|(e, x)| axpy(e, -1.0, x));
        let spread = sum_over_rows(&minus_e, d_model, |row| {
            let mean = mean_of(row);
            let apart: Vec<f32> = row.iter().map(|e| e - mean).collect();
            dot(&apart, &apart)
        }) / n;
        if spread <= 0.0 || self.weight == 0.0 {
            return (0.0, None);
        }

        let mut left = minus_e.clone(); // ê − e
        left.par_chunks_exact_mut(d_model).for_each(|row| axpy(row, 1.0, &weights.b_dec));
        let mut extra = None;
        if !self.dead.is_empty() {
            let residuals = left.clone();
            let aux = Aux {
                x,
                residuals: &residuals,
                w_enc: &weights.w_enc,
                b_enc: &weights.b_enc,
                w_dec: &weights.w_dec,
                d_model,
                dead: self.dead,
                k: self.k,
                weight: (self.weight / (d_model as f64 * spread)) as f32,
            };
            extra = Some(aux.run(Some(&mut left)).1);
        }
        let ratio = sum_over_rows(&left, d_model, |row| dot(row, row)) / n / spread;

        // ∂aux/∂ê = a (ê − e), and ∂aux/∂x̂_coarse = −∂aux/∂e = a (ê − e + ratio · (e − ē)).
        let a = (2.0 * self.weight / (n * spread)) as f32;
        let sums: Vec<Vec<f32>> = flow
            .blocks(N_CHANNELS)
            .into_par_iter()
            .zip(left.par_chunks(BLOCK_ROWS * d_model).zip(minus_e.par_chunks(BLOCK_ROWS * d_model)))
            .map(|(mut flow, (left, minus_e))| {
                let mut sum = vec![0f32; d_model];
                for (i, (left, minus_e)) in left.chunks_exact(d_model).zip(minus_e.chunks_exact(d_model)).enumerate() {
                    let mean = mean_of(minus_e);
                    let of_ratio = |minus_e: &f32| a * ratio as f32 * (mean - minus_e);
                    let row: Vec<f32> = left.iter().zip(minus_e).map(|(left, e)| a * left + of_ratio(e)).collect();
                    flow.add(i, 0, &row);
                    axpy(&mut sum, 1.0, &row);
                    axpy(&mut sum, a, left);
                }
                sum
            })
            .collect();
        sums.iter().for_each(|sum| axpy(grad_b_dec, 1.0, sum));
        (self.weight * ratio, extra)
    }
}

fn mean_of(row: &[f32]) -> f32 {
    row.iter().sum::<f32>() / row.len() as f32
}

/// In blocks folded in order.
fn sum_over_rows(rows: &[f32], d_model: usize, of_row: impl Fn(&[f32]) -> f32 + Sync) -> f64 {
    let of_block = |rows: &[f32]| rows.chunks_exact(d_model).map(|row| f64::from(of_row(row))).sum::<f64>();
    let parts: Vec<f64> = rows.par_chunks(BLOCK_ROWS * d_model).map(of_block).collect();
    parts.iter().sum()
}
