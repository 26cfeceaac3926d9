//! Cosines between the rows of two matrices, by one matrix product.

use rayon::prelude::*;
use slices::{Mat, Onto, multiply_on_all_threads};

/// Shapes: a [m, d], b [n, d] → [m, n]. A row of zeros has cosine 0 with everything.
pub(crate) fn cosines(a: &[f32], b: &[f32], d: usize) -> Vec<f32> {
    let (a, b) = (unit_rows(a, d), unit_rows(b, d));
    let (m, n) = (a.len() / d, b.len() / d);
    let mut products = vec![0.0; m * n];
    let (a, b) = (Mat::rows(&a, d), Mat::rows(&b, d).transposed());
    multiply_on_all_threads((m, d, n), 1.0, a, b, Onto::Nothing, &mut products, n);
    products
}

/// Each row divided by its length. Shapes: [n, d] → [n, d].
fn unit_rows(rows: &[f32], d: usize) -> Vec<f32> {
    let mut rows = rows[..rows.len() / d * d].to_vec();
    rows.par_chunks_mut(d).for_each(|row| {
        let length = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        if length > 0.0 {
            row.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
        }
    });
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_definition() {
        let (m, n, d) = (7, 5, 13);
        let entry = |i: usize| ((i * i + 3 * i) % 17) as f32 - 8.0;
        let a: Vec<f32> = (0..m * d).map(entry).collect();
        let mut b: Vec<f32> = (1000..1000 + n * d).map(entry).collect();
        b[2 * d..3 * d].fill(0.0);
        let found = cosines(&a, &b, d);
        for i in 0..m {
            for j in 0..n {
                let (x, y) = (&a[i * d..][..d], &b[j * d..][..d]);
                let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(x * y)).sum::<f64>();
                let lengths = (dot(x, x) * dot(y, y)).sqrt();
                let expected = if lengths > 0.0 { dot(x, y) / lengths } else { 0.0 };
                assert!((f64::from(found[i * n + j]) - expected).abs() <= 1e-6);
            }
        }
    }
}
