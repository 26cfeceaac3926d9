//! Terms that pull on the tree: mutual information, coverage, geometry. All three hurt or do nothing (science.md §3), and
//! are here with weight 0 because that is part of the result.

use burn::tensor::{Device, Int, Tensor, TensorData, activation};

use crate::gradients::Extra;
use crate::sparse::SparseRows;
use crate::weights::{SaeModule, Weights};

/// The edges and the constants that the terms need.
#[derive(Clone, Debug)]
pub(crate) struct TreeTerms {
    pub(crate) edges: Vec<EdgeStats>,
    /// The score above which a latent is active, about.
    pub(crate) threshold: f32,
    /// Width of the soft firing σ((pre − threshold) / tau).
    pub(crate) tau: f32,
    pub(crate) w_mi: f32,
    pub(crate) w_coverage: f32,
    pub(crate) w_geometry: f32,
}

/// A parent-child edge with its moving averages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EdgeStats {
    pub(crate) parent: u32,
    pub(crate) child: u32,
    /// P(parent), P(child), P(both).
    pub(crate) p: f64,
    pub(crate) q: f64,
    pub(crate) p11: f64,
}

/// The terms' weighted values.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct TreeLosses {
    pub(crate) mi: f64,
    pub(crate) coverage: f64,
    pub(crate) geometry: f64,
}

type Term = fn(&SaeModule, &Tensor<2>, &SparseRows, &TreeTerms, &Device) -> Tensor<1>;

impl TreeTerms {
    /// The terms on a batch and the gradient of their sum; None without an edge. What flows to b_dec goes through b_enc's
    /// gradient, as everything does that reads pre-activations.
    /// Shapes: x [B, d_model] the encoder's input, acts [B, d_sae] sparse.
    pub(crate) fn gradients(&self, weights: &Weights, x: &[f32], acts: &SparseRows) -> Option<(TreeLosses, Extra)> {
        if self.edges.is_empty() {
            return None;
        }
        let device = Device::flex().autodiff();
        let module = SaeModule::new(weights, &device);
        let x = Tensor::from_data(TensorData::new(x.to_vec(), [acts.n_rows(), weights.d_model]), &device);
        let mut losses = TreeLosses::default();
        let mut total: Option<Tensor<1>> = None;
        for (weight, term, part) in [
            (self.w_mi, mutual_information as Term, &mut losses.mi),
            (self.w_coverage, coverage, &mut losses.coverage),
            (self.w_geometry, geometry, &mut losses.geometry),
        ] {
            if weight > 0.0 {
                let term = term(&module, &x, acts, self, &device).mul_scalar(weight);
                *part = f64::from(term.clone().into_scalar::<f32>());
                total = Some(match total {
                    Some(total) => total + term,
                    None => term,
                });
            }
        }
        let grads = module.gradients(&total?);
        let latents = (0..weights.d_sae as u32).collect();
        let extra = Extra { latents, w_enc: grads.w_enc, b_enc: grads.b_enc, w_dec: grads.w_dec, own: Vec::new() };
        Some((losses, extra))
    }
}

/// Row indices as a tensor.
fn indices(values: impl Iterator<Item = u32>, device: &Device) -> Tensor<1, Int> {
    let values: Vec<i32> = values.map(|value| value as i32).collect();
    let n = values.len();
    Tensor::from_data(TensorData::new(values, [n]), device)
}

/// −Σ_edges clip(log OR, 0, 4) · cov(s_child, s_parent): a surrogate whose gradient is that of the mutual information at
/// fixed marginals. The log odds ratio is clipped at 0, or negative dependence would be rewarded too.
fn mutual_information(
    module: &SaeModule,
    x: &Tensor<2>,
    _: &SparseRows,
    terms: &TreeTerms,
    device: &Device,
) -> Tensor<1> {
    let child = soft_firing(module, x, terms, |edge| edge.child, device); // [B, E]
    let parent = soft_firing(module, x, terms, |edge| edge.parent, device);
    let column = |f: &dyn Fn(&EdgeStats) -> f64| row_of(terms, f, device); // [1, E]
    let (p, q) = (column(&|edge| edge.p), column(&|edge| edge.q));
    let covariance =
        (child.clone() * parent.clone()).mean_dim(0) - child.mean_dim(0) * p.clone() - parent.mean_dim(0) * q.clone()
            + p * q;
    let log_odds = column(&|edge| log_odds(edge).clamp(0.0, 4.0));
    (log_odds * covariance).sum().neg()
}

/// Where a child is on and its parent off, pull the parent's pre-activation up to its threshold.
fn coverage(module: &SaeModule, x: &Tensor<2>, acts: &SparseRows, terms: &TreeTerms, device: &Device) -> Tensor<1> {
    let n_edges = terms.edges.len();
    let mut uncovered = vec![0f32; acts.n_rows() * n_edges];
    let mut is_on = vec![false; acts.n_cols];
    for t in 0..acts.n_rows() {
        acts.row(t).0.iter().for_each(|&j| is_on[j as usize] = true);
        for (e, edge) in terms.edges.iter().enumerate() {
            uncovered[t * n_edges + e] = f32::from(is_on[edge.child as usize] && !is_on[edge.parent as usize]);
        }
        acts.row(t).0.iter().for_each(|&j| is_on[j as usize] = false);
    }
    let uncovered: Tensor<2> = Tensor::from_data(TensorData::new(uncovered, [acts.n_rows(), n_edges]), device);
    let missing = pre_acts(module, x, terms, |edge| edge.parent, device).neg().add_scalar(terms.threshold);
    let pull = activation::relu(missing).div_scalar(terms.tau).clamp_max(4.0);
    (uncovered * pull).sum_dim(1).mean()
}

/// Σ_edges cos²(W_dec[child], W_dec[parent]), where rows have unit length.
fn geometry(module: &SaeModule, _: &Tensor<2>, _: &SparseRows, terms: &TreeTerms, device: &Device) -> Tensor<1> {
    let w_dec = module.w_dec.val();
    let child = w_dec.clone().select(0, indices(terms.edges.iter().map(|edge| edge.child), device));
    let parent = w_dec.select(0, indices(terms.edges.iter().map(|edge| edge.parent), device));
    (child * parent).sum_dim(1).square().sum()
}

fn soft_firing(
    module: &SaeModule,
    x: &Tensor<2>,
    terms: &TreeTerms,
    latent: impl Fn(&EdgeStats) -> u32,
    device: &Device,
) -> Tensor<2> {
    let pre_acts = pre_acts(module, x, terms, latent, device);
    activation::sigmoid(pre_acts.sub_scalar(terms.threshold).div_scalar(terms.tau))
}

/// Pre-activations of one end of every edge, [B, E].
fn pre_acts(
    module: &SaeModule,
    x: &Tensor<2>,
    terms: &TreeTerms,
    latent: impl Fn(&EdgeStats) -> u32,
    device: &Device,
) -> Tensor<2> {
    let latents = indices(terms.edges.iter().map(latent), device);
    let w_enc = module.w_enc.val().select(0, latents.clone()); // [E, d_model]
    let b_enc = module.b_enc.val().select(0, latents); // [E]
    x.clone().matmul(w_enc.transpose()) + b_enc.unsqueeze::<2>()
}

fn row_of(terms: &TreeTerms, f: &dyn Fn(&EdgeStats) -> f64, device: &Device) -> Tensor<2> {
    let values: Vec<f32> = terms.edges.iter().map(|edge| f(edge) as f32).collect();
    Tensor::from_data(TensorData::new(values, [1, terms.edges.len()]), device)
}

/// Log odds ratio, each cell raised a little so that an empty one does not make it infinite.
fn log_odds(edge: &EdgeStats) -> f64 {
    const RAISE: f64 = 1e-5;
    let cell = |p: f64| p.max(0.0) + RAISE;
    let EdgeStats { p, q, p11, .. } = *edge;
    (cell(p11) * cell(1.0 - p - q + p11) / (cell(q - p11) * cell(p - p11))).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    const D_MODEL: usize = 6;
    const D_SAE: usize = 10;
    const N_ROWS: usize = 8;

    fn weights() -> Weights {
        let mut weights = Weights::init(3, D_MODEL, D_SAE, &[0.1, -0.2, 0.3, 0.0, 0.2, -0.1]);
        weights.w_enc.iter_mut().enumerate().for_each(|(i, w)| *w += 0.1 * (i as f32 * 1.3).sin());
        weights
    }

    /// Each term's gradient against central differences of the same term, its entries held fixed.
    fn check(w_mi: f32, w_coverage: f32, w_geometry: f32) {
        let edge = |parent, child| EdgeStats { parent, child, p: 0.3, q: 0.1, p11: 0.08 };
        let edges = vec![edge(0, 4), edge(0, 5), edge(2, 7)];
        let terms = TreeTerms { edges, threshold: 0.4, tau: 0.5, w_mi, w_coverage, w_geometry };
        let x: Vec<f32> = (0..N_ROWS * D_MODEL).map(|i| (i as f32 * 0.7).sin()).collect();
        let mut acts = SparseRows::new(D_SAE);
        (0..N_ROWS as u32).for_each(|t| acts.push_row([(t % 3, 1.0), (4 + t % 4, 1.0)]));
        let loss = |weights: &Weights| {
            let (losses, _) = terms.gradients(weights, &x, &acts).unwrap();
            losses.mi + losses.coverage + losses.geometry
        };
        let weights = weights();
        let (_, extra) = terms.gradients(&weights, &x, &acts).unwrap();
        const STEP: f32 = 1e-2;
        let parameters: [fn(&mut Weights) -> &mut Vec<f32>; 3] = [|w| &mut w.w_enc, |w| &mut w.b_enc, |w| &mut w.w_dec];
        let mut largest = 0f64;
        for (found, parameter) in [&extra.w_enc, &extra.b_enc, &extra.w_dec].into_iter().zip(parameters) {
            for (i, &found) in found.iter().enumerate() {
                let at = |step: f32| {
                    let mut moved = weights.clone();
                    parameter(&mut moved)[i] += step;
                    loss(&moved)
                };
                let expected = (at(STEP) - at(-STEP)) / f64::from(2.0 * STEP);
                let difference = (f64::from(found) - expected).abs();
                assert!(difference <= 2e-3 * (1.0 + expected.abs()), "{found} {expected} at {i}");
                largest = largest.max(expected.abs());
            }
        }
        assert!(largest >= 1e-2, "the term pulls on something");
    }

    #[test]
    fn mutual_information_pulls_as_its_differences_say() {
        check(2.0, 0.0, 0.0);
    }

    #[test]
    fn coverage_pulls_as_its_differences_say() {
        check(0.0, 0.5, 0.0);
    }

    #[test]
    fn geometry_pulls_as_its_differences_say() {
        check(0.0, 0.0, 0.5);
    }
}
