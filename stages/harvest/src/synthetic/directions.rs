//! Unit vectors that are as nearly orthogonal as their number allows.

use artifact::random::stream;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;

/// As in the published benchmark (science.md §8).
const N_STEPS: usize = 100;

/// [n, d], row-major, unit rows. Random ones, and then `N_STEPS` of gradient descent on Σ_{i≠j} (u_i · u_j)².
pub(super) fn near_orthogonal(n: usize, d: usize, seed: u64) -> Vec<f32> {
    let mut rng = stream(seed, "harvest/synthetic/directions", 0, 0);
    let mut u: Vec<f64> = (0..n * d).map(|_| StandardNormal.sample(&mut rng)).collect(); // [n, d]
    normalise(&mut u, d);
    // U Uᵀ has no eigenvalue much above (1 + √(n/d))²; a longer step than its inverse would overshoot.
    let step = (1.0 + (n as f64 / d as f64).sqrt()).powi(-2);
    for _ in 0..N_STEPS {
        let moved = u.par_chunks(d).enumerate().map(|(i, row)| {
            let mut row = row.to_vec();
            for (j, other) in u.chunks(d).enumerate().filter(|&(j, _)| j != i) {
                debug_assert_ne!(i, j);
                let overlap: f64 = u[i * d..(i + 1) * d].iter().zip(other).map(|(a, b)| a * b).sum();
                row.iter_mut().zip(other).for_each(|(a, b)| *a -= step * overlap * b);
            }
            row
        });
        u = moved.collect::<Vec<_>>().concat();
        normalise(&mut u, d);
    }
    u.into_iter().map(|value| value as f32).collect()
}

fn normalise(u: &mut [f64], d: usize) {
    for row in u.chunks_mut(d) {
        let norm = row.iter().map(|value| value * value).sum::<f64>().sqrt();
        row.iter_mut().for_each(|value| *value /= norm);
    }
}

#[cfg(test)]
mod tests {
    use super::near_orthogonal;

    /// The largest |cosine| of two rows.
    fn worst(u: &[f32], d: usize) -> f32 {
        let rows: Vec<&[f32]> = u.chunks(d).collect();
        let mut worst = 0f32;
        for (i, a) in rows.iter().enumerate() {
            for b in &rows[..i] {
                worst = worst.max(a.iter().zip(*b).map(|(a, b)| a * b).sum::<f32>().abs());
            }
        }
        worst
    }

    #[test]
    fn rows_are_unit_vectors_and_orthogonal_where_there_is_room() {
        let u = near_orthogonal(24, 32, 7);
        for row in u.chunks(32) {
            assert!((row.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() <= 1e-5);
        }
        assert!(worst(&u, 32) <= 1e-3, "{}", worst(&u, 32));
    }

    #[test]
    fn more_rows_than_room_still_keep_apart() {
        // The Welch bound for 48 vectors in 24 dimensions is √((48 − 24) / (24 · 47)) = .146; random ones reach .6.
        let u = near_orthogonal(48, 24, 7);
        assert!(worst(&u, 24) <= 0.45, "{}", worst(&u, 24));
    }
}
