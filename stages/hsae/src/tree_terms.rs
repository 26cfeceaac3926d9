//! Terms that pull on the tree: mutual information, coverage, geometry. All three hurt or do nothing (science.md §3), and
//! are here with weight 0 because that is part of the result.

use burn::tensor::{Device, Tensor, TensorData, activation};

use crate::objective::indices;
use crate::sparse::SparseRows;
use crate::weights::SaeModule;

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

pub(crate) type Term = fn(&SaeModule, &Tensor<2>, &SparseRows, &TreeTerms, &Device) -> Tensor<1>;

/// −Σ_edges clip(log OR, 0, 4) · cov(s_child, s_parent): a surrogate whose gradient is that of the mutual information at
/// fixed marginals. The log odds ratio is clipped at 0, or negative dependence would be rewarded too.
pub(crate) fn mutual_information(
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
pub(crate) fn coverage(
    module: &SaeModule,
    x: &Tensor<2>,
    acts: &SparseRows,
    terms: &TreeTerms,
    device: &Device,
) -> Tensor<1> {
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

/// Σ_edges cos²(W_dec[child], W_dec[parent]); rows have unit length.
pub(crate) fn geometry(
    module: &SaeModule,
    _: &Tensor<2>,
    _: &SparseRows,
    terms: &TreeTerms,
    device: &Device,
) -> Tensor<1> {
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
    let x_centered = x.clone() - module.b_dec.val().unsqueeze::<2>();
    x_centered.matmul(w_enc.transpose()) + b_enc.unsqueeze::<2>()
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
