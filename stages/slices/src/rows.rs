//! What goes over rows between products.

use crate::exp;
use crate::vectors::{LANES, vectorised};

/// x += y.
pub fn add(x: &mut [f32], y: &[f32]) {
    vectorised(
        #[inline(always)]
        || {
            for (x, &y) in x.iter_mut().zip(y) {
                *x += y;
            }
        },
    );
}

/// Softmax over the scores that each row sees, zero before and behind them: row i sees positions up to first_query + i,
/// and of these the last `window`, where there is one.
/// Shapes: scores [rows, width] in rows of `stride`.
pub fn causal_softmax(scores: &mut [f32], stride: usize, width: usize, first_query: usize, window: Option<usize>) {
    vectorised(
        #[inline(always)]
        || {
            for (row, scores) in scores.chunks_mut(stride).enumerate() {
                let n_seen = first_query + row + 1;
                let n_before = window.map_or(0, |window| n_seen.saturating_sub(window));
                // What fills the last register becomes zeros, and changes no maximum and no sum.
                let end = width.min(n_before + (n_seen - n_before).next_multiple_of(LANES));
                let (scores, unseen) = scores[..width].split_at_mut(end);
                scores[n_seen..].fill(f32::NEG_INFINITY);
                let (before, seen) = scores.split_at_mut(n_before);
                before.fill(0.0);
                softmax(seen);
                unseen.fill(0.0);
            }
        },
    );
}

/// eˣ / Σ eˣ, in place.
#[inline(always)]
fn softmax(row: &mut [f32]) {
    let max = max(row);
    for value in row.iter_mut() {
        *value = exp(*value - max);
    }
    let scale = 1.0 / reduce(row, row, |x, _| x);
    row.iter_mut().for_each(|value| *value *= scale);
}

/// Σ x², in a fixed order, in 64 bits over pieces in 32.
pub fn sum_of_squares_f64(x: &[f32]) -> f64 {
    vectorised(
        #[inline(always)]
        || x.chunks(4096).map(|x| f64::from(reduce(x, x, |x, y| x * y))).sum(),
    )
}

/// Σ f(x, y), in an order that the length alone decides.
#[inline(always)]
pub fn reduce(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut sums = [0.0; LANES];
    let ((x_chunks, x_rest), (y_chunks, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    for (x, y) in x_chunks.iter().zip(y_chunks) {
        for i in 0..LANES {
            sums[i] += f(x[i], y[i]);
        }
    }
    for ((sum, &x), &y) in sums.iter_mut().zip(x_rest).zip(y_rest) {
        *sum += f(x, y);
    }
    fold(sums, |a, b| a + b)
}

/// The largest value; −∞ of none, and NaNs are passed over.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    let mut maxima = [f32::NEG_INFINITY; LANES];
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (max, &x) in maxima.iter_mut().zip(chunk) {
            *max = larger(*max, x);
        }
    }
    for (max, &x) in maxima.iter_mut().zip(rest) {
        *max = larger(*max, x);
    }
    fold(maxima, larger)
}

/// Joins partial results by halves, always in the same order.
#[inline(always)]
fn fold(mut lanes: [f32; LANES], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = join(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// Shapes: [n, width] → [width, n]. In tiles, so that a cache line that is fetched is used whole.
pub fn transposed(rows: &[f32], width: usize) -> Vec<f32> {
    const TILE: usize = 32;
    let n = rows.len() / width;
    let mut out = vec![0.0; rows.len()];
    for row_start in (0..n).step_by(TILE) {
        for column_start in (0..width).step_by(TILE) {
            for row in row_start..(row_start + TILE).min(n) {
                for column in column_start..(column_start + TILE).min(width) {
                    out[column * n + row] = rows[row * width + column];
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_sees_no_later_position() {
        let mut scores = vec![1.0, 9.0, 9.0, 9.0, 0.0, 3.0_f32.ln(), 9.0, 9.0];
        causal_softmax(&mut scores, 4, 4, 0, None);
        let expected = [1.0, 0.0, 0.0, 0.0, 0.25, 0.75, 0.0, 0.0];
        for (score, expected) in scores.iter().zip(expected) {
            assert!((score - expected).abs() <= 1e-6, "{scores:?}");
        }
    }

    #[test]
    fn softmax_sees_no_further_back_than_its_window() {
        let mut scores = vec![5.0, 9.0, 9.0, 0.0, 3.0_f32.ln(), 9.0, 7.0, 1.0, 1.0];
        causal_softmax(&mut scores, 3, 3, 0, Some(2));
        let expected = [1.0, 0.0, 0.0, 0.25, 0.75, 0.0, 0.0, 0.5, 0.5];
        for (score, expected) in scores.iter().zip(expected) {
            assert!((score - expected).abs() <= 1e-6, "{scores:?}");
        }
    }
}
