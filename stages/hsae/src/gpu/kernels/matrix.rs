//! Sums over the rows of a matrix, and its rounding.

use cubecl::prelude::*;

use super::cube::UNITS;

/// Rows that one cube sums.
pub(crate) const ROWS_PER_SUM: usize = 128;

/// Σ of rows, each times its weight where there are weights, over blocks of ROWS_PER_SUM. One cube per block.
/// Shapes: matrix [n_rows, d], weights [n_rows] → sums [n_blocks, d].
#[cube(launch_unchecked)]
pub(crate) fn sum_rows(
    matrix: &[f32],
    weights: &[f32],
    sums: &mut [f32],
    n_rows: usize,
    n_blocks: usize,
    d: usize,
    #[comptime] is_weighted: bool,
) {
    let block = CUBE_POS;
    if block >= n_blocks {
        terminate!();
    }
    let end = min((block + 1) * ROWS_PER_SUM, n_rows);
    let mut c = UNIT_POS as usize;
    while c < d {
        let mut sum = 0.0f32;
        for i in block * ROWS_PER_SUM..end {
            if is_weighted {
                sum += weights[i] * matrix[i * d + c];
            } else {
                sum += matrix[i * d + c];
            }
        }
        sums[block * d + c] = sum;
        c += UNITS as usize;
    }
}

/// a − b, elementwise, in place of a. A unit per element.
#[cube(launch_unchecked)]
pub(crate) fn subtract(a: &mut [f32], b: &[f32], n: usize) {
    let i = CUBE_POS * UNITS as usize + UNIT_POS as usize;
    if i < n {
        a[i] -= b[i];
    }
}

/// Rounds to another kind of float. A unit per element.
#[cube(launch_unchecked)]
pub(crate) fn round<F: Float>(from: &[f32], to: &mut [F], n: usize) {
    let i = CUBE_POS * UNITS as usize + UNIT_POS as usize;
    if i < n {
        to[i] = F::cast_from(from[i]);
    }
}
