//! Firing with a known answer, for the tests of this stage.

use artifact::random;
use hsae::SparseRows;
use rand::Rng;

use crate::firing::Firing;

/// Row-major gates with magnitudes, 0 for silent, as the tests' naive versions want them.
pub(crate) type Dense = Vec<Vec<f32>>;

pub(crate) fn sparse(dense: &Dense) -> SparseRows {
    let n_cols = dense.first().map_or(0, Vec::len);
    let mut rows = SparseRows::new(n_cols);
    for row in dense {
        let active = row.iter().enumerate().filter(|(_, value)| **value > 0.0);
        rows.push_row(active.map(|(latent, &value)| (latent as u32, value)));
    }
    rows
}

pub(crate) fn firing(dense: &Dense) -> Firing {
    Firing::new(sparse(dense))
}

/// Independent latents; latent j fires in about 1/(2 + j mod 5) of the rows.
pub(crate) fn random_gates(n_rows: usize, n_latents: usize, seed: u64) -> Dense {
    let mut rng = random::stream(seed, "recover/test/gates", 0, 0);
    let mut gate = |latent: usize| magnitude(&mut rng, 1.0 / (2 + latent % 5) as f64);
    (0..n_rows).map(|_| (0..n_latents).map(&mut gate).collect()).collect()
}

/// A forest: latent j < n_parents fires with probability p, its children j·n_children + … only together with it and one
/// at a time, each with probability q, then as many lone latents as parents. Returns gates and parents.
pub(crate) fn forest(n_rows: usize, n_parents: usize, n_children: usize, seed: u64) -> (Dense, Vec<Option<u32>>) {
    let (p, q) = (0.12, 0.22);
    let mut rng = random::stream(seed, "recover/test/forest", 0, 0);
    let n_latents = n_parents * (2 + n_children);
    let mut parents = vec![None; n_latents];
    for child in 0..n_parents * n_children {
        parents[n_parents + child] = Some((child / n_children) as u32);
    }
    let mut row = || {
        let mut row = vec![0.0; n_latents];
        for parent in 0..n_parents {
            row[parent] = magnitude(&mut rng, p);
            let draw = uniform(&mut rng);
            let child = (draw / q) as usize;
            if row[parent] > 0.0 && child < n_children {
                row[n_parents + parent * n_children + child] = 1.0 + draw as f32;
            }
            row[n_parents * (1 + n_children) + parent] = magnitude(&mut rng, p / 2.0);
        }
        row
    };
    ((0..n_rows).map(|_| row()).collect(), parents)
}

/// Documents of `length` rows each.
pub(crate) fn doc_ids(n_rows: usize, length: usize) -> Vec<u32> {
    (0..n_rows).map(|row| (row / length) as u32).collect()
}

pub(crate) fn uniform(rng: &mut impl Rng) -> f64 {
    f64::from(rng.next_u32()) / 2_f64.powi(32)
}

fn magnitude(rng: &mut impl Rng, probability: f64) -> f32 {
    let (gate, value) = (uniform(rng), uniform(rng));
    if gate < probability { 0.5 + value as f32 } else { 0.0 }
}
