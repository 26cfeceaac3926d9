//! The training loss of one batch (science.md §3), as a burn expression:
//!
//! L = ‖x − x̂‖² + β Σ_m ‖x − x̂_m‖² + λ Σ z + w_aux · AuxK + the tree's terms,    all means over tokens

use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData, activation};

use crate::kernels;
use crate::ops::{Entries, kept_acts, prefix_errors};
use crate::sparse::SparseRows;
use crate::tree_terms::{self, TreeTerms};
use crate::weights::{Gradients, SaeModule, Weights};

/// Above this share of active latents the dense matrices are cheaper than the sparse operations. A ReLU SAE starts half
/// dense.
const DENSE_ABOVE: f64 = 0.08;

/// A batch, its active latents, and the terms that count now.
pub(crate) struct Objective<'a> {
    pub(crate) weights: &'a Weights,
    /// [B, d_model], normalised.
    pub(crate) x: Arc<Vec<f32>>,
    pub(crate) x_centered: Arc<Vec<f32>>,
    pub(crate) acts: Arc<Entries>,
    /// Inner prefix lengths, ascending, all below d_sae.
    pub(crate) prefixes: Vec<usize>,
    pub(crate) beta: f32,
    pub(crate) l1_coefficient: f32,
    pub(crate) aux: Option<Aux>,
    pub(crate) tree: Option<TreeTerms>,
}

/// Dead latents reconstruct what the live ones leave.
/// Source: Gao et al. 2024, "Scaling and evaluating sparse autoencoders", appendix A.2.
pub(crate) struct Aux {
    pub(crate) entries: SparseRows,
    /// Weight of the term, for its number of dead latents.
    pub(crate) weight: f32,
}

/// The loss and its parts, as means per token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Losses {
    pub(crate) total: f64,
    pub(crate) mse: f64,
    /// Weighted sum over inner prefixes.
    pub(crate) prefixes: f64,
    /// Σ z, times its coefficient.
    pub(crate) l1: f64,
    pub(crate) aux: f64,
    pub(crate) mi: f64,
    pub(crate) coverage: f64,
    pub(crate) geometry: f64,
}

impl Objective<'_> {
    fn n_rows(&self) -> usize {
        self.acts.rows.n_rows()
    }

    /// The loss's parts and the gradient of their sum.
    pub(crate) fn gradients(&self, device: &Device) -> (Losses, Gradients) {
        let module = SaeModule::new(self.weights, device);
        let (parts, total) = self.terms(&module, device);
        let grads = module.gradients(&total);
        (parts, grads)
    }

    /// Evaluates all terms on the module's parameters.
    pub(crate) fn terms(&self, module: &SaeModule, device: &Device) -> (Losses, Tensor<1>) {
        let (errors, sum_acts) = self.reconstruction(module, device);
        let n_inner = self.prefixes.len();
        let mse = errors.clone().narrow(0, n_inner, 1);
        let mut losses = Losses { mse: scalar(&mse), ..Losses::default() };
        let mut total = mse;
        if n_inner > 0 && self.beta > 0.0 {
            let inner = errors.narrow(0, 0, n_inner).sum().mul_scalar(self.beta);
            losses.prefixes = scalar(&inner);
            total = total + inner;
        }
        if self.l1_coefficient > 0.0 {
            let l1 = sum_acts.mul_scalar(self.l1_coefficient / self.n_rows() as f32);
            losses.l1 = scalar(&l1);
            total = total + l1;
        }
        if let Some(aux) = &self.aux {
            let term = self.aux_error(module, aux, device).mul_scalar(aux.weight);
            losses.aux = scalar(&term);
            total = total + term;
        }
        if let Some(tree) = &self.tree {
            let x = Tensor::from_data(self.as_data(&self.x), device);
            for (weight, term, part) in [
                (tree.w_mi, tree_terms::mutual_information as tree_terms::Term, &mut losses.mi),
                (tree.w_coverage, tree_terms::coverage, &mut losses.coverage),
                (tree.w_geometry, tree_terms::geometry, &mut losses.geometry),
            ] {
                if weight > 0.0 && !tree.edges.is_empty() {
                    let term = term(module, &x, &self.acts.rows, tree, device).mul_scalar(weight);
                    *part = scalar(&term);
                    total = total + term;
                }
            }
        }
        losses.total = scalar(&total);
        (losses, total)
    }

    /// Errors of all prefixes, the full one last, and Σ z over the batch.
    fn reconstruction(&self, module: &SaeModule, device: &Device) -> (Tensor<1>, Tensor<1>) {
        let mut ends = self.prefixes.clone();
        ends.push(self.weights.d_sae);
        let density = self.acts.rows.nnz() as f64 / (self.n_rows() * self.weights.d_sae) as f64;
        if density > DENSE_ABOVE {
            return self.dense_reconstruction(module, &ends, device);
        }
        let vals = kept_acts(
            module.w_enc.val(),
            module.b_enc.val(),
            module.b_dec.val(),
            self.x_centered.clone(),
            self.acts.clone(),
        );
        let errors = prefix_errors(
            vals.clone(),
            module.w_dec.val(),
            module.b_dec.val(),
            self.x.clone(),
            self.acts.clone(),
            Arc::new(ends),
        );
        (errors, vals.sum())
    }

    /// The same by dense products, with a mask where latents are off.
    fn dense_reconstruction(&self, module: &SaeModule, ends: &[usize], device: &Device) -> (Tensor<1>, Tensor<1>) {
        let (n_rows, d_sae) = (self.n_rows(), self.weights.d_sae);
        let mut mask = vec![0f32; n_rows * d_sae];
        for t in 0..n_rows {
            self.acts.rows.row(t).0.iter().for_each(|&j| mask[t * d_sae + j as usize] = 1.0);
        }
        let mask: Tensor<2> = Tensor::from_data(TensorData::new(mask, [n_rows, d_sae]), device);
        let x: Tensor<2> = Tensor::from_data(self.as_data(&self.x), device);
        let b_dec = module.b_dec.val().unsqueeze::<2>(); // [1, d_model]
        let pre_acts =
            (x.clone() - b_dec.clone()).matmul(module.w_enc.val().transpose()) + module.b_enc.val().unsqueeze::<2>(); // [B, d_sae]
        let acts = activation::relu(pre_acts) * mask;
        let mut x_hat = b_dec; // [1, d_model], then [B, d_model]
        let mut errors = Vec::new();
        let mut start = 0;
        for &end in ends {
            let part = acts.clone().slice([0..n_rows, start..end]);
            x_hat = x_hat + part.matmul(module.w_dec.val().slice([start..end, 0..self.weights.d_model]));
            errors.push((x_hat.clone() - x.clone()).square().sum_dim(1).mean());
            start = end;
        }
        (Tensor::cat(errors, 0), acts.sum_dim(1).sum())
    }

    /// ‖e − ê‖² with e = x − x̂ as it stands and ê from the dead latents, without b_dec.
    fn aux_error(&self, module: &SaeModule, aux: &Aux, device: &Device) -> Tensor<1> {
        let weights = self.weights;
        let x_hat = kernels::decode_rows(&self.acts.rows, &weights.w_dec, &weights.b_dec, weights.d_sae);
        let residual: Vec<f32> = self.x.iter().zip(&x_hat).map(|(x, x_hat)| x - x_hat).collect();
        let entries = Entries::new(aux.entries.clone());
        let vals = kept_acts(
            module.w_enc.val(),
            module.b_enc.val(),
            module.b_dec.val(),
            self.x_centered.clone(),
            entries.clone(),
        );
        let no_bias = Tensor::<1>::zeros([weights.d_model], device);
        let ends = Arc::new(vec![weights.d_sae]);
        prefix_errors(vals, module.w_dec.val(), no_bias, Arc::new(residual), entries, ends)
    }

    fn as_data(&self, rows: &[f32]) -> TensorData {
        TensorData::new(rows.to_vec(), [self.n_rows(), self.weights.d_model])
    }
}

/// Row indices as a tensor.
pub(crate) fn indices(values: impl Iterator<Item = u32>, device: &Device) -> Tensor<1, Int> {
    let values: Vec<i32> = values.map(|value| value as i32).collect();
    let n = values.len();
    Tensor::from_data(TensorData::new(values, [n]), device)
}

fn scalar(tensor: &Tensor<1>) -> f64 {
    f64::from(tensor.clone().into_scalar::<f32>())
}

#[cfg(test)]
#[path = "objective/tests.rs"]
mod tests;
