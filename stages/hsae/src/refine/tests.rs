use artifact::random::stream;
use rand::RngExt;
use rand_distr::{Distribution, StandardNormal};

use super::*;
use crate::kernels::screen::Path;

const D_MODEL: usize = 24;
const D_SAE: usize = 60;
const N_ROWS: usize = 300;

/// Unit rows in random directions, more than there is room for.
fn dictionary() -> Vec<f32> {
    let mut rng = stream(1, "test/refine", 0, 0);
    let mut w_dec: Vec<f32> = (0..D_SAE * D_MODEL).map(|_| StandardNormal.sample(&mut rng)).collect();
    for row in w_dec.chunks_exact_mut(D_MODEL) {
        let length = dot(row, row).sqrt();
        row.iter_mut().for_each(|w| *w /= length);
    }
    w_dec
}

/// Rows in which one latent in twenty is on, with magnitudes around 3, and some noise.
fn rows(w_dec: &[f32]) -> (Vec<f32>, SparseRows) {
    let mut rng = stream(2, "test/refine", 0, 0);
    let mut acts = SparseRows::new(D_SAE);
    for _ in 0..N_ROWS {
        let on: Vec<u32> = (0..D_SAE as u32).filter(|_| rng.random_bool(0.05)).collect();
        acts.push_row(on.into_iter().map(|j| (j, 3.0 + rng.random::<f32>())));
    }
    let mut x = decode_rows(&acts, w_dec, &[0.0; D_MODEL], D_SAE);
    x.iter_mut().for_each(|x| *x += 0.05 * Distribution::<f32>::sample(&StandardNormal, &mut rng));
    (x, acts)
}

fn refiner<'a>(w_dec: &'a [f32], packed: &'a PackedEncoder, gate: Option<Gate<'a>>) -> Refiner<'a> {
    Refiner { w_dec, d_model: D_MODEL, packed, zeros: &[0.0; D_SAE], gate }
}

/// Non-negative least squares with the ridge, by coordinate descent in f64.
fn naive_solution(w_dec: &[f32], x: &[f32], idx: &[u32]) -> Vec<f64> {
    let row = |j: u32| &w_dec[j as usize * D_MODEL..][..D_MODEL];
    let mut rest: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    let mut z = vec![0.0; idx.len()];
    for _ in 0..20_000 {
        for (z, &j) in z.iter_mut().zip(idx) {
            let row = row(j).iter().map(|&w| f64::from(w));
            let length: f64 = row.clone().map(|w| w * w).sum();
            let along: f64 = row.clone().zip(&rest).map(|(w, r)| w * r).sum();
            let moved = f64::max(0.0, (along + *z * length) / (length + RIDGE));
            rest.iter_mut().zip(row).for_each(|(r, w)| *r -= (moved - *z) * w);
            *z = moved;
        }
    }
    z
}

/// The squared error and the ridge's part.
fn cost(w_dec: &[f32], x: &[f32], idx: &[u32], z: &[f64]) -> f64 {
    let mut rest: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    for (&j, z) in idx.iter().zip(z) {
        let row = &w_dec[j as usize * D_MODEL..][..D_MODEL];
        rest.iter_mut().zip(row).for_each(|(r, &w)| *r -= z * f64::from(w));
    }
    rest.iter().chain(z.iter().map(|z| z * RIDGE.sqrt()).collect::<Vec<_>>().iter()).map(|r| r * r).sum()
}

#[test]
fn magnitudes_are_least_squares() {
    let w_dec = dictionary();
    let (x, acts) = rows(&w_dec);
    let packed = PackedEncoder::pack(Path::detect(), &w_dec, D_MODEL);
    let solved = refiner(&w_dec, &packed, None).solve(&x, &acts);
    for t in 0..40 {
        let (idx, x) = (acts.row(t).0, &x[t * D_MODEL..(t + 1) * D_MODEL]);
        let expected = naive_solution(&w_dec, x, idx);
        let found = |j: &u32| solved.row(t).0.binary_search(j).map_or(0.0, |at| f64::from(solved.row(t).1[at]));
        for (j, expected) in idx.iter().zip(&expected) {
            assert!((found(j) - expected).abs() <= 1e-3, "row {t}, latent {j}: {} {expected}", found(j));
        }
    }
}

#[test]
fn latents_that_are_nearly_the_same_do_not_cancel_each_other() {
    // Two rows at a cosine of .99, a signal on the first, and noise that a pair of opposite magnitudes would fit.
    let mut rng = stream(3, "test/refine", 0, 0);
    let mut w_dec = dictionary();
    let twin: Vec<f32> = w_dec[..D_MODEL].iter().zip(&w_dec[D_MODEL..]).map(|(a, b)| a + 0.14 * b).collect();
    let length = dot(&twin, &twin).sqrt();
    w_dec[D_MODEL..2 * D_MODEL].iter_mut().zip(twin).for_each(|(w, twin)| *w = twin / length);
    let packed = PackedEncoder::pack(Path::detect(), &w_dec, D_MODEL);
    let refiner = refiner(&w_dec, &packed, None);
    let mut n_dropped = 0;
    for _ in 0..100 {
        let noise = |_| 0.4 * Distribution::<f32>::sample(&StandardNormal, &mut rng);
        let mut x: Vec<f32> = (0..D_MODEL).map(noise).collect();
        x.iter_mut().zip(&w_dec).for_each(|(x, w)| *x += 3.0 * w);
        let mut active = SparseRows::new(D_SAE);
        active.push_row([(0, 1.0), (1, 1.0)]);
        let solved = refiner.solve(&x, &active);
        let found: Vec<f64> = solved.row(0).1.iter().map(|&z| f64::from(z)).collect();
        let expected = naive_solution(&w_dec, &x, &[0, 1]);
        let (found, expected) = (cost(&w_dec, &x, solved.row(0).0, &found), cost(&w_dec, &x, &[0, 1], &expected));
        // Leaving out the most negative at once need not be the very best choice, but is as good as the better single one.
        let single = |j: u32| cost(&w_dec, &x, &[j], &naive_solution(&w_dec, &x, &[j]));
        let best_single = single(0).min(single(1));
        assert!(found <= best_single * 1.02 && found >= expected * (1.0 - 1e-4), "{found} {expected} {best_single}");
        n_dropped += usize::from(solved.nnz() == 1);
    }
    assert!(n_dropped >= 20, "{n_dropped}");
}

#[test]
fn scores_are_what_a_latent_would_have_were_it_put_in_again_alone() {
    let w_dec = dictionary();
    let (x, acts) = rows(&w_dec);
    let packed = PackedEncoder::pack(Path::detect(), &w_dec, D_MODEL);
    // Every second latent has a silent parent wherever latent 0 is not active.
    let parent: Vec<Option<u32>> = (0..D_SAE as u32).map(|j| (j % 2 == 1).then_some(0)).collect();
    let gate = Gate { parent: &parent, strength: 0.75 };
    let lower = vec![0.5; D_SAE];
    let (candidates, scores) = refiner(&w_dec, &packed, Some(gate)).scores(&x, &acts, &lower);
    for t in 0..N_ROWS {
        let (idx, z) = acts.row(t);
        let mut expected = Vec::new();
        for j in 0..D_SAE {
            let mut rest: Vec<f64> = x[t * D_MODEL..(t + 1) * D_MODEL].iter().map(|&x| f64::from(x)).collect();
            for (&i, &z) in idx.iter().zip(z).filter(|&(&i, _)| i as usize != j) {
                let row = &w_dec[i as usize * D_MODEL..][..D_MODEL];
                rest.iter_mut().zip(row).for_each(|(r, &w)| *r -= f64::from(z) * f64::from(w));
            }
            let row = &w_dec[j * D_MODEL..][..D_MODEL];
            let score: f64 = rest.iter().zip(row).map(|(r, &w)| r * f64::from(w)).sum();
            if score > 0.5 {
                expected.push((j, score - if j % 2 == 1 && !idx.contains(&0) { 0.75 } else { 0.0 }));
            }
        }
        let found = candidates.indptr[t]..candidates.indptr[t + 1];
        assert_eq!(found.len(), expected.len(), "row {t}");
        for (e, (j, score)) in found.zip(expected) {
            assert_eq!(candidates.idx[e] as usize, j, "row {t}");
            assert!((f64::from(scores[e]) - score).abs() <= 1e-4, "row {t}, latent {j}: {} {score}", scores[e]);
        }
    }
}

/// F1 over all entries.
fn f1(found: &SparseRows, truth: &SparseRows) -> f64 {
    let hits = |t: usize| found.row(t).0.iter().filter(|&j| truth.row(t).0.contains(j)).count();
    2.0 * (0..N_ROWS).map(hits).sum::<usize>() as f64 / (found.nnz() + truth.nnz()) as f64
}

#[test]
fn what_a_linear_encoder_mistakes_is_set_right() {
    let w_dec = dictionary();
    let (x, truth) = rows(&w_dec);
    let packed = PackedEncoder::pack(Path::detect(), &w_dec, D_MODEL);
    let refiner = refiner(&w_dec, &packed, None);
    let threshold = 2.0;
    let (first, _) =
        refiner.scores(&x, &SparseRows { indptr: vec![0; N_ROWS + 1], ..SparseRows::new(D_SAE) }, &[threshold; D_SAE]);
    let refinement = Refinement { shift: vec![0.0; D_SAE], thresholds: vec![threshold; 3] };
    let refined = refiner.refine(&x, &first, &refinement);
    let (before, after) = (f1(&first, &truth), f1(&refined, &truth));
    assert!(before <= 0.7 && after >= 0.93, "{before} {after}");
}

#[test]
fn no_latents_no_magnitudes() {
    let w_dec = dictionary();
    let packed = PackedEncoder::pack(Path::detect(), &w_dec, D_MODEL);
    let none = SparseRows { indptr: vec![0; 4], ..SparseRows::new(D_SAE) };
    assert_eq!(refiner(&w_dec, &packed, None).solve(&[1.0; 3 * D_MODEL], &none), none);
}
