//! Unit vectors, moved apart by a few steps of Adam: near-orthogonal, as many more of them as dimensions there may be.

use artifact::random::stream;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;
use slices::{Mat, Onto, multiply_on_all_threads as multiply};

/// As published, and Adam's usual constants.
const LR: f32 = 3e-4;
const BETA1: f32 = 0.9;
const BETA2: f32 = 0.999;
const EPSILON: f32 = 1e-8;

/// [n, d], row-major, unit rows: `n_steps` of Adam from random ones, on Σ_{i≠j} (u_i · u_j)² + n Σ_i (|u_i|² − 1)².
pub(crate) fn near_orthogonal(n: usize, d: usize, n_steps: usize, seed: u64) -> Vec<f32> {
    let mut u = vec![0f32; n * d]; // [n, d]
    u.par_chunks_mut(d).enumerate().for_each(|(i, row)| {
        let mut rng = stream(seed, "planted/directions", 0, i as u64);
        row.iter_mut().for_each(|value| *value = StandardNormal.sample(&mut rng));
    });
    normalise(&mut u, d);
    let (mut first, mut second) = (vec![0f32; n * d], vec![0f32; n * d]); // Adam's moments
    let (mut gram, mut pull) = (vec![0f32; d * d], vec![0f32; n * d]);
    for step in 1..=n_steps as i32 {
        // Σ_{j≠i} (u_i · u_j) u_j = u_i (UᵀU) − |u_i|² u_i: n d² products instead of n² d.
        let rows = Mat::rows(&u, d);
        multiply((d, n, d), 1.0, rows.transposed(), rows, Onto::Nothing, &mut gram, d);
        multiply((n, d, d), 1.0, rows, Mat::rows(&gram, d), Onto::Nothing, &mut pull, d);
        let (first_full, second_full) = (1.0 - BETA1.powi(step), 1.0 - BETA2.powi(step));
        let rows = u.par_chunks_mut(d).zip(pull.par_chunks(d));
        let moments = first.par_chunks_mut(d).zip(second.par_chunks_mut(d));
        rows.zip(moments).for_each(|((u, pull), (first, second))| {
            let square = squared_norm(u);
            let outwards = n as f32 * (square - 1.0) - square;
            for (((u, pull), first), second) in u.iter_mut().zip(pull).zip(first).zip(second) {
                let gradient = 4.0 * (pull + outwards * *u);
                *first = BETA1 * *first + (1.0 - BETA1) * gradient;
                *second = BETA2 * *second + (1.0 - BETA2) * gradient * gradient;
                *u -= LR * (*first / first_full) / ((*second / second_full).sqrt() + EPSILON);
            }
        });
    }
    normalise(&mut u, d);
    u
}

fn normalise(u: &mut [f32], d: usize) {
    u.par_chunks_mut(d).for_each(|row| {
        let norm = row.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt().max(1e-8);
        row.iter_mut().for_each(|value| *value = (f64::from(*value) / norm) as f32);
    });
}

fn squared_norm(row: &[f32]) -> f32 {
    row.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The recipe as published: all pairs, gradients of the loss written out.
    fn naive(n: usize, d: usize, n_steps: usize, seed: u64) -> Vec<f64> {
        let start = near_orthogonal(n, d, 0, seed);
        let mut u: Vec<f64> = start.into_iter().map(f64::from).collect();
        let (mut first, mut second) = (vec![0.0; n * d], vec![0.0; n * d]);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        for step in 1..=n_steps as i32 {
            let before = u.clone();
            let row = |i: usize| &before[i * d..(i + 1) * d];
            for i in 0..n {
                for c in 0..d {
                    let others: f64 = (0..n).filter(|&j| j != i).map(|j| dot(row(i), row(j)) * row(j)[c]).sum();
                    let norm = n as f64 * (dot(row(i), row(i)) - 1.0) * row(i)[c];
                    let gradient = 4.0 * (others + norm);
                    let at = i * d + c;
                    first[at] = 0.9 * first[at] + 0.1 * gradient;
                    second[at] = 0.999 * second[at] + 0.001 * gradient * gradient;
                    let (m, v) = (first[at] / (1.0 - 0.9f64.powi(step)), second[at] / (1.0 - 0.999f64.powi(step)));
                    u[at] -= 3e-4 * m / (v.sqrt() + 1e-8);
                }
            }
        }
        u.chunks(d).flat_map(|row| row.iter().map(|x| x / dot(row, row).sqrt()).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn the_short_way_to_the_gradient_is_the_long_one() {
        let (found, expected) = (near_orthogonal(20, 12, 30, 5), naive(20, 12, 30, 5));
        for (found, expected) in found.iter().zip(&expected) {
            assert!((f64::from(*found) - expected).abs() <= 2e-5, "{found}, expected {expected}");
        }
    }

    #[test]
    fn rows_are_unit_vectors_and_move_apart() {
        // Σ_{i≠j} cos²: about n (n − 1) / d of random vectors, and n²/d − n at the least.
        let overlap = |u: &[f32]| {
            let rows: Vec<&[f32]> = u.chunks(24).collect();
            let cosine = |i: usize, j: usize| rows[i].iter().zip(rows[j]).map(|(a, b)| a * b).sum::<f32>();
            (0..48 * 48).filter(|at| at / 48 != at % 48).map(|at| cosine(at / 48, at % 48).powi(2)).sum::<f32>()
        };
        let (before, after) = (near_orthogonal(48, 24, 0, 7), near_orthogonal(48, 24, 1000, 7));
        for row in after.chunks(24) {
            assert!((row.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() <= 1e-5);
        }
        let (before, after) = (overlap(&before), overlap(&after));
        assert!((85.0..105.0).contains(&before) && after <= 53.0, "from {before} to {after}; 48 is the least");
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bits() {
        let of = |n_threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            pool.install(|| near_orthogonal(600, 96, 10, 1))
        };
        let one = of(1);
        assert!(of(2) == one && of(3) == one);
    }
}
