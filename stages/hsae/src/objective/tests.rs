//! Every gradient against central differences of a naive loss in f64, with the selection held fixed; and the dense pass
//! against the sparse one.

use super::*;
use crate::activation::Kept;
use crate::archs::Relu;
use crate::kernels::dot;

const D_MODEL: usize = 6;
const D_SAE: usize = 10;
const N_ROWS: usize = 8;

fn batch() -> Vec<f32> {
    (0..N_ROWS * D_MODEL).map(|i| (i as f32 * 0.7).sin() + 0.3 * (i as f32 * 0.13).cos()).collect()
}

fn weights() -> Weights {
    let mut weights = Weights::init(3, D_MODEL, D_SAE, &[0.1, -0.2, 0.3, 0.0, 0.2, -0.1]);
    weights.b_enc.iter_mut().enumerate().for_each(|(j, b)| *b = 0.05 * j as f32 - 0.1);
    // Encoder and decoder apart, so that one's gradient cannot pass for the other's.
    weights.w_enc.iter_mut().enumerate().for_each(|(i, w)| *w += 0.1 * (i as f32 * 1.3).sin());
    weights
}

fn centered(x: &[f32], weights: &Weights) -> Vec<f32> {
    crate::rows::centered(x, &weights.b_dec)
}

/// Entries with a pre-activation above `above`: far enough from 0 that small changes leave them there.
fn entries(weights: &Weights, x: &[f32], above: f32) -> SparseRows {
    let x = centered(x, weights);
    let mut rows = SparseRows::new(D_SAE);
    for x in x.chunks(D_MODEL) {
        let pre = |j: usize| dot(x, &weights.w_enc[j * D_MODEL..(j + 1) * D_MODEL]) + weights.b_enc[j];
        rows.push_row((0..D_SAE).map(|j| (j as u32, pre(j))).filter(|&(_, pre)| pre > above));
    }
    rows
}

/// What the naive loss is made of.
#[derive(Clone, Default)]
struct Terms {
    ends: Vec<usize>,
    betas: Vec<f32>,
    /// What does not reach the next shorter prefix, of each longer one's gradient.
    withheld: f32,
    l1: f64,
    is_weighted: bool,
    /// Dead latents, and the weight of their term.
    dead: Vec<u32>,
    aux: f64,
}

impl Terms {
    fn prefixes(&self) -> Prefixes {
        Prefixes { reach: 1.0 - self.withheld, ..Prefixes::nested(self.ends.clone(), self.betas.clone()) }
    }
}

/// The loss of the entries that were chosen at `chosen`, in f64. What stays as it is at `at`, whatever the weights do: the
/// residual that the dead explain, and the part of a latent in a longer reconstruction whose gradient is withheld from it.
fn naive(terms: &Terms, weights: &Weights, at: &Weights, chosen: &SparseRows, x: &[f32]) -> f64 {
    let f = f64::from;
    let pre = |weights: &Weights, t: usize, j: usize| -> f64 {
        let row = (0..D_MODEL).map(|c| f(x[t * D_MODEL + c]) - f(weights.b_dec[c]));
        row.zip(&weights.w_enc[j * D_MODEL..]).map(|(x, &w)| x * f(w)).sum::<f64>() + f(weights.b_enc[j])
    };
    // How many reconstructions are too short for a latent.
    let first = |j: usize| terms.ends.iter().filter(|&&end| end <= j).count();
    let error = |weights: &Weights, t: usize, p: usize| -> Vec<f64> {
        let mut error: Vec<f64> = (0..D_MODEL).map(|c| f(weights.b_dec[c]) - f(x[t * D_MODEL + c])).collect();
        for j in chosen.row(t).0.iter().map(|&j| j as usize).filter(|&j| j < terms.ends[p]) {
            let share = (1.0 - f(terms.withheld)).powi((p - first(j)) as i32);
            for (weights, share) in [(weights, share), (at, 1.0 - share)] {
                let z = share * pre(weights, t, j);
                error.iter_mut().zip(&weights.w_dec[j * D_MODEL..]).for_each(|(e, &w)| *e += z * f(w));
            }
        }
        error
    };
    let square = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>();
    let mut loss = 0.0;
    for t in 0..N_ROWS {
        for (p, &beta) in terms.betas.iter().enumerate() {
            loss += f(beta) * square(&error(weights, t, p));
        }
        for &j in chosen.row(t).0 {
            let row = &weights.w_dec[j as usize * D_MODEL..][..D_MODEL];
            let length = row.iter().map(|&w| f(w).powi(2)).sum::<f64>().sqrt();
            loss += terms.l1 * pre(weights, t, j as usize) * if terms.is_weighted { length } else { 1.0 };
        }
        if !terms.dead.is_empty() {
            // ê − e, with e = x − x̂ held fixed.
            let mut rest = error(at, t, terms.ends.len() - 1);
            for &j in &terms.dead {
                let z = pre(weights, t, j as usize).max(0.0);
                rest.iter_mut().zip(&weights.w_dec[j as usize * D_MODEL..]).for_each(|(e, &w)| *e += z * f(w));
            }
            loss += terms.aux * square(&rest);
        }
    }
    loss / N_ROWS as f64
}

fn gradients<A: Activation>(activation: &A, terms: &Terms, weights: &Weights, x: &[f32]) -> (Losses, Gradients) {
    let chosen = entries(weights, x, 0.05);
    let x = centered(x, weights);
    let prefixes = terms.prefixes();
    let objective = Objective {
        activation,
        weights,
        x: &x,
        target: &x,
        prefixes: &prefixes,
        aux: (!terms.dead.is_empty()).then_some(AuxK {
            dead: &terms.dead,
            k: D_SAE,
            weight: terms.aux,
            is_normalised: false,
        }),
        is_constrained: false,
        centers_input: true,
    };
    let mut grads = Gradients::zeros(D_MODEL, D_SAE);
    let found = objective.sparse(&chosen, &chosen.columns(), Vec::new(), &mut Room::default(), &mut grads);
    let all = grads.w_enc.iter().chain(&grads.b_enc).chain(&grads.w_dec).chain(&grads.b_dec);
    let sum_of_squares: f64 = all.map(|&g| f64::from(g).powi(2)).sum();
    assert!((found.sum_of_squares - sum_of_squares).abs() <= 1e-5 * sum_of_squares);
    (found.losses, grads)
}

fn check<A: Activation>(activation: &A, terms: &Terms) {
    let (weights, x) = (weights(), batch());
    let chosen = entries(&weights, &x, 0.05);
    let (losses, grads) = gradients(activation, terms, &weights, &x);
    let expected = naive(terms, &weights, &weights, &chosen, &x);
    assert!((losses.total - expected).abs() <= 1e-5 * expected, "{} {expected}", losses.total);

    const STEP: f32 = 1e-2;
    let parameters: [fn(&mut Weights) -> &mut Vec<f32>; 4] =
        [|w| &mut w.w_enc, |w| &mut w.b_enc, |w| &mut w.w_dec, |w| &mut w.b_dec];
    for (found, parameter) in [&grads.w_enc, &grads.b_enc, &grads.w_dec, &grads.b_dec].into_iter().zip(parameters) {
        for (i, &found) in found.iter().enumerate() {
            let at = |steps: f32| {
                let mut moved = weights.clone();
                let value = &mut parameter(&mut moved)[i];
                let before = *value;
                *value += steps * STEP;
                let moved_by = f64::from(*value) - f64::from(before);
                (naive(terms, &moved, &weights, &chosen, &x), moved_by)
            };
            let ((up, right), (down, left)) = (at(1.0), at(-1.0));
            let expected = (up - down) / (right - left);
            assert!((f64::from(found) - expected).abs() <= 2e-3 * (1.0 + expected.abs()), "{found} {expected} at {i}");
        }
    }
}

#[test]
fn one_reconstruction() {
    check(&Kept, &Terms { ends: vec![D_SAE], betas: vec![1.0], ..Terms::default() });
}

#[test]
fn nested_reconstructions_with_weights_of_their_own() {
    check(&Kept, &Terms { ends: vec![2, 5, D_SAE], betas: vec![0.5, 0.25, 1.0], ..Terms::default() });
}

#[test]
fn what_is_withheld_from_latents_is_not_withheld_from_the_decoders_bias() {
    for withheld in [0.25, 1.0] {
        check(&Kept, &Terms { ends: vec![2, 5, D_SAE], betas: vec![0.5, 0.25, 1.0], withheld, ..Terms::default() });
    }
}

#[test]
fn each_longer_reconstruction_reaches_a_latent_with_its_share() {
    let (weights, x) = (weights(), batch());
    let (ends, betas) = (vec![2, 5, D_SAE], [0.5f32, 0.25, 1.0]);
    let whole = Terms { ends: ends.clone(), betas: betas.to_vec(), withheld: 0.75, ..Terms::default() };
    let found = gradients(&Kept, &whole, &weights, &x).1;
    // Reconstructions one by one, whose gradients are held to finite differences elsewhere.
    let alone: Vec<Gradients> = (0..3)
        .map(|p| {
            let only = |q: usize| if q == p { betas[q] } else { 0.0 };
            let terms = Terms { ends: ends.clone(), betas: (0..3).map(only).collect(), ..Terms::default() };
            gradients(&Kept, &terms, &weights, &x).1
        })
        .collect();
    let of: [fn(&Gradients) -> &[f32]; 3] = [|g| &g.w_enc, |g| &g.w_dec, |g| &g.b_enc];
    for (of, width) in of.into_iter().zip([D_MODEL, D_MODEL, 1]) {
        for (i, &found) in of(&found).iter().enumerate() {
            let first = ends.partition_point(|&end| end <= i / width);
            let share = |p: usize| 0.25f32.powi((p - first) as i32);
            let expected: f32 = (first..3).map(|p| share(p) * of(&alone[p])[i]).sum();
            assert!((found - expected).abs() <= 1e-5 * (1.0 + expected.abs()), "{found} {expected} at {i}");
        }
    }
}

#[test]
fn l1_plain_and_weighted_by_the_decoder() {
    for is_weighted in [false, true] {
        let lengths = weights().w_dec.chunks(D_MODEL).map(|row| dot(row, row).sqrt()).collect();
        let relu = Relu { l1: 0.3 / N_ROWS as f32, lengths: is_weighted.then_some(lengths) };
        check(&relu, &Terms { ends: vec![D_SAE], betas: vec![1.0], l1: 0.3, is_weighted, ..Terms::default() });
    }
}

#[test]
fn dead_latents_explain_the_residual() {
    let terms = Terms { ends: vec![4, D_SAE], betas: vec![1.0, 1.0], ..Terms::default() };
    check(&Kept, &Terms { dead: vec![1, 5, 8], aux: 0.5, ..terms });
}

#[test]
fn the_dense_pass_gives_what_the_sparse_one_does() {
    for reach in [1.0, 0.5] {
        check_dense(reach);
    }
}

fn check_dense(reach: f32) {
    let (weights, x) = (weights(), batch());
    let chosen = entries(&weights, &x, 0.0);
    let x = centered(&x, &weights);
    let prefixes = Prefixes { reach, ..Prefixes::nested(vec![3, D_SAE], vec![0.5, 1.0]) };
    let relu = Relu { l1: 0.01, lengths: None };
    let objective = Objective {
        activation: &relu,
        weights: &weights,
        x: &x,
        target: &x,
        prefixes: &prefixes,
        aux: None,
        is_constrained: true,
        centers_input: true,
    };
    let (mut sparse, mut dense) = (Gradients::zeros(D_MODEL, D_SAE), Gradients::zeros(D_MODEL, D_SAE));
    let of_sparse = objective.sparse(&chosen, &chosen.columns(), Vec::new(), &mut Room::default(), &mut sparse);
    let (of_dense, counts) = objective.dense(Vec::new(), &mut dense);
    assert_eq!(counts.firings, chosen.firings());
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-5 * (1.0 + a.abs());
    assert!(near(of_sparse.losses.total, of_dense.losses.total));
    assert!(near(of_sparse.sum_of_squares, of_dense.sum_of_squares));
    for (a, b) in [(&sparse.w_enc, &dense.w_enc), (&sparse.b_enc, &dense.b_enc), (&sparse.w_dec, &dense.w_dec)] {
        assert!(a.iter().zip(b).all(|(a, b)| near(f64::from(*a), f64::from(*b))));
    }
    assert!(sparse.b_dec.iter().zip(&dense.b_dec).all(|(a, b)| near(f64::from(*a), f64::from(*b))));
}
