//! Elementwise work on rows of activations.

use rayon::prelude::*;

use crate::kernels::{axpy, dot, vectorised};

/// Tokens per parallel piece of work, and per partial sum.
const ROWS_AT_ONCE: usize = 64;

/// x − b_dec for every token, in place. Shapes: x [B, d_model], b_dec [d_model].
pub(crate) fn subtract(x: &mut [f32], b_dec: &[f32]) {
    let rows = x.par_chunks_mut(ROWS_AT_ONCE * b_dec.len());
    rows.for_each(|rows| subtract_from_rows(rows, b_dec));
}

/// x − b_dec for every token. Shapes: x [B, d_model], b_dec [d_model] → [B, d_model].
pub(crate) fn centered(x: &[f32], b_dec: &[f32]) -> Vec<f32> {
    let mut x = x.to_vec();
    subtract(&mut x, b_dec);
    x
}

/// Σ ‖x − mean(x)‖² over the batch, in blocks folded in order.
pub(crate) fn total_variance(x: &[f32], d_model: usize) -> f64 {
    let parts: Vec<(Vec<f32>, f64)> =
        x.par_chunks(ROWS_AT_ONCE * d_model).map(|rows| first_moments(rows, d_model)).collect();
    let n_rows = (x.len() / d_model) as f64;
    let (mut sum, mut sum_of_squares) = (vec![0f64; d_model], 0f64);
    for (part, part_of_squares) in parts {
        sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += f64::from(part));
        sum_of_squares += part_of_squares;
    }
    sum_of_squares - sum.iter().map(|sum| sum * sum).sum::<f64>() / n_rows
}

/// Variance of all elements of target + b_dec about their one mean, of a sample. Shapes: target [B, d_model].
pub(crate) fn element_variance(target: &[f32], b_dec: &[f32]) -> f64 {
    let moments = |rows: &[f32]| {
        let x = || rows.chunks_exact(b_dec.len()).flat_map(|row| row.iter().zip(b_dec)).map(|(x, b)| f64::from(x + b));
        [x().sum::<f64>(), x().map(|x| x * x).sum()]
    };
    let parts: Vec<[f64; 2]> = target.par_chunks(ROWS_AT_ONCE * b_dec.len()).map(moments).collect();
    let [sum, sum_of_squares] = parts.iter().fold([0.0; 2], |sum, part| [sum[0] + part[0], sum[1] + part[1]]);
    let n = target.len() as f64;
    ((sum_of_squares - sum * sum / n) / (n - 1.0).max(1.0)).max(0.0)
}

vectorised! {
    fn subtract_from_rows(rows: &mut [f32], b_dec: &[f32]) {
        rows.chunks_exact_mut(b_dec.len()).for_each(|row| axpy(row, -1.0, b_dec));
    }
}

vectorised! {
    /// Σ x and Σ ‖x‖².
    fn first_moments(rows: &[f32], d_model: usize) -> (Vec<f32>, f64) {
        let (mut sum, mut sum_of_squares) = (vec![0f32; d_model], 0f64);
        for row in rows.chunks_exact(d_model) {
            axpy(&mut sum, 1.0, row);
            sum_of_squares += f64::from(dot(row, row));
        }
        (sum, sum_of_squares)
    }
}

/// Rows of a matrix with as many as there are in `order`, of which the j-th is to be the one that was `order[j]`.
pub(crate) fn in_order<T: Copy>(rows: &mut Vec<T>, order: &[usize]) {
    let width = rows.len() / order.len();
    *rows = order.iter().flat_map(|&j| &rows[j * width..(j + 1) * width]).copied().collect();
}
