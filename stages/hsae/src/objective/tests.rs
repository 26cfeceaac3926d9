//! Every term's gradient against central differences of the same term, with the selection held fixed: the gradient is
//! that of the values of the latents that were kept.

use super::*;
use crate::tree_terms::EdgeStats;

const D_MODEL: usize = 6;
const D_SAE: usize = 10;
const N_ROWS: usize = 8;

/// Latents kept in every row; few enough for the sparse path.
fn kept(x_centered: &[f32], weights: &Weights, latents: impl Fn(usize) -> Vec<u32>) -> SparseRows {
    let mut rows = SparseRows::new(D_SAE);
    for t in 0..N_ROWS {
        rows.push_row(latents(t).into_iter().map(|j| (j, 0.0)));
    }
    rows.vals = kernels::pre_acts_at(x_centered, &weights.w_enc, &weights.b_enc, D_MODEL, &rows);
    rows
}

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

/// What varies between the cases below.
#[derive(Default)]
struct Terms {
    prefixes: Vec<usize>,
    l1: f32,
    aux: bool,
    tree: Option<TreeTerms>,
    /// Keeps so many latents that the dense path is taken.
    dense: bool,
}

/// Entries that stay kept whatever the small changes of the test do to their values.
fn entries(terms: &Terms, weights: &Weights, x: &[f32], t: usize) -> Vec<u32> {
    let x_centered = weights.centered(x);
    let row = &x_centered[t * D_MODEL..(t + 1) * D_MODEL];
    let pre = |j: usize| kernels::dot(row, &weights.w_enc[j * D_MODEL..(j + 1) * D_MODEL]) + weights.b_enc[j];
    let positive: Vec<u32> = (0..D_SAE).filter(|&j| pre(j) > 0.05).map(|j| j as u32).collect();
    // One latent in one row in four stays below the dense path's share.
    if terms.dense { positive } else { positive.into_iter().take(usize::from(t.is_multiple_of(2))).collect() }
}

/// The loss with the entries chosen at `at`, evaluated at `weights`.
fn loss(terms: &Terms, at: &Weights, weights: &Weights, x: &[f32]) -> (Losses, Gradients) {
    let x_centered = weights.centered(x);
    let acts = kept(&x_centered, weights, |t| entries(terms, at, x, t));
    let aux = terms.aux.then(|| Aux { entries: kept(&x_centered, weights, |t| vec![(t % 3) as u32 + 5]), weight: 0.5 });
    let objective = Objective {
        weights,
        x: Arc::new(x.to_vec()),
        x_centered: Arc::new(x_centered),
        acts: Entries::new(acts),
        prefixes: terms.prefixes.clone(),
        beta: 0.7,
        l1_coefficient: terms.l1,
        aux,
        tree: terms.tree.clone(),
    };
    objective.gradients(&Device::flex().autodiff())
}

/// AuxK's target is the residual as it stands, a constant: its derivative is checked with the live part held fixed.
fn check(terms: &Terms) {
    let (weights, x) = (weights(), batch());
    let (losses, grads) = loss(terms, &weights, &weights, &x);
    assert!(losses.total.is_finite());
    type Select = fn(&mut Weights) -> &mut Vec<f32>;
    let parameters: [(&str, Select, &Vec<f32>); 4] = [
        ("w_enc", |w| &mut w.w_enc, &grads.w_enc),
        ("b_enc", |w| &mut w.b_enc, &grads.b_enc),
        ("w_dec", |w| &mut w.w_dec, &grads.w_dec),
        ("b_dec", |w| &mut w.b_dec, &grads.b_dec),
    ];
    let h = 1e-2f32;
    let mut largest = 0f64;
    for (name, select, grads) in parameters {
        for (i, &found) in grads.iter().enumerate() {
            let at = |step: f32| {
                let mut moved = weights.clone();
                select(&mut moved)[i] += step;
                loss(terms, &weights, &moved, &x).0.total
            };
            // Five points: exact for the polynomials here, so that only rounding is left.
            let slope = (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * f64::from(h));
            let found = f64::from(found);
            largest = largest.max(found.abs());
            assert!((found - slope).abs() <= 2e-3 * (1.0 + slope.abs()), "{name}[{i}]: {found} against {slope}");
        }
    }
    assert!(largest > 0.01, "the term has a gradient at all");
}

#[test]
fn reconstruction() {
    check(&Terms::default());
}

#[test]
fn nested_reconstructions() {
    check(&Terms { prefixes: vec![2, 5], ..Terms::default() });
}

#[test]
fn l1() {
    check(&Terms { l1: 0.3, ..Terms::default() });
}

#[test]
fn the_dense_path() {
    check(&Terms { prefixes: vec![4], l1: 0.2, dense: true, ..Terms::default() });
}

#[test]
fn dense_and_sparse_paths_agree() {
    let (weights, x) = (weights(), batch());
    let terms = Terms { prefixes: vec![3], l1: 0.2, dense: true, ..Terms::default() };
    let (dense, dense_grads) = loss(&terms, &weights, &weights, &x);
    let x_centered = weights.centered(&x);
    let acts = Entries::new(kept(&x_centered, &weights, |t| entries(&terms, &weights, &x, t)));
    let vals = acts.rows.vals.clone();
    let ends = [3, D_SAE];
    let found = kernels::prefix_errors(&x, &acts.rows, &vals, &weights.w_dec, &weights.b_dec, &ends);
    let (_, grad_w_dec, _) = kernels::prefix_errors_backward(
        found.residuals,
        &acts.rows,
        &acts.columns,
        &vals,
        &weights.w_dec,
        &ends,
        &[0.7, 1.0],
    );
    assert!((found.errors[1] - dense.mse).abs() <= 1e-5 * dense.mse);
    assert!((0.7 * found.errors[0] - dense.prefixes).abs() <= 1e-5 * dense.prefixes);
    for (sparse, dense) in grad_w_dec.iter().zip(&dense_grads.w_dec) {
        assert!((sparse - dense).abs() <= 1e-5, "{sparse} {dense}");
    }
}

fn tree(w_mi: f32, w_coverage: f32, w_geometry: f32) -> Option<TreeTerms> {
    let edge = |parent, child| EdgeStats { parent, child, p: 0.3, q: 0.1, p11: 0.08 };
    let edges = vec![edge(0, 4), edge(1, 6), edge(0, 7)];
    Some(TreeTerms { edges, threshold: 0.4, tau: 0.5, w_mi, w_coverage, w_geometry })
}

#[test]
fn mutual_information() {
    check(&Terms { tree: tree(2.0, 0.0, 0.0), ..Terms::default() });
}

#[test]
fn coverage() {
    check(&Terms { tree: tree(0.0, 0.5, 0.0), dense: true, ..Terms::default() });
}

#[test]
fn geometry() {
    check(&Terms { tree: tree(0.0, 0.0, 0.5), ..Terms::default() });
}

/// AuxK against the same error written with plain burn operations, residual detached.
#[test]
fn aux() {
    let (weights, x) = (weights(), batch());
    let without = loss(&Terms::default(), &weights, &weights, &x).1;
    let with = loss(&Terms { aux: true, ..Terms::default() }, &weights, &weights, &x).1;

    let device = Device::flex().autodiff();
    let module = SaeModule::new(&weights, &device);
    let x_centered = weights.centered(&x);
    let acts = kept(&x_centered, &weights, |t| entries(&Terms::default(), &weights, &x, t));
    let x_hat = kernels::decode_rows(&acts, &weights.w_dec, &weights.b_dec, D_SAE);
    let residual: Vec<f32> = x.iter().zip(&x_hat).map(|(x, x_hat)| x - x_hat).collect();
    let matrix = |values: Vec<f32>, width| Tensor::<2>::from_data(TensorData::new(values, [N_ROWS, width]), &device);
    let mut mask = vec![0f32; N_ROWS * D_SAE];
    (0..N_ROWS).for_each(|t| mask[t * D_SAE + t % 3 + 5] = 1.0);
    let pre_acts = (matrix(x.clone(), D_MODEL) - module.b_dec.val().unsqueeze::<2>())
        .matmul(module.w_enc.val().transpose())
        + module.b_enc.val().unsqueeze::<2>();
    let e_hat = (pre_acts * matrix(mask, D_SAE)).matmul(module.w_dec.val());
    let term = (e_hat - matrix(residual, D_MODEL)).square().sum_dim(1).mean().mul_scalar(0.5);
    let expected = module.gradients(&term);
    for (name, with, without, expected) in [
        ("w_enc", &with.w_enc, &without.w_enc, &expected.w_enc),
        ("b_enc", &with.b_enc, &without.b_enc, &expected.b_enc),
        ("w_dec", &with.w_dec, &without.w_dec, &expected.w_dec),
        ("b_dec", &with.b_dec, &without.b_dec, &expected.b_dec),
    ] {
        for ((with, without), expected) in with.iter().zip(without).zip(expected) {
            assert!((with - without - expected).abs() <= 1e-5, "{name}: {with} − {without} against {expected}");
        }
    }
}
