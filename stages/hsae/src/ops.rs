//! Two sparse operations for burn, with gradients of their own: the kept pre-activations, and the errors of nested
//! reconstructions. Dense autodiff would store and multiply matrices of [B, d_sae] that are 99 % zeros.
//!
//! Which entries are kept is decided before (`select`) and is no part of the graph, as in every TopK SAE: the gradient
//! passes through the values alone.

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Dispatch, Flex, backend_extension};
use burn::tensor::{Tensor, TensorData};
use burn_flex::FlexTensor;

use crate::kernels;
use crate::sparse::{Columns, SparseRows};

/// Entries of a batch, token by token and latent by latent.
#[derive(Debug)]
pub(crate) struct Entries {
    pub(crate) rows: SparseRows,
    pub(crate) columns: Columns,
}

impl Entries {
    pub(crate) fn new(rows: SparseRows) -> Arc<Self> {
        let columns = rows.columns();
        Arc::new(Self { rows, columns })
    }
}

/// The kept pre-activations, [nnz] in the order of `entries.rows`: (x − b_dec)·W_enc[j] + b_enc[j] at each entry.
/// Shapes: w_enc [d_sae, d_model], b_enc [d_sae], b_dec [d_model], x_centered [B, d_model]; their values are taken from
/// `entries`, where the selection has left them.
pub(crate) fn kept_acts(
    w_enc: Tensor<2>,
    b_enc: Tensor<1>,
    b_dec: Tensor<1>,
    x_centered: Arc<Vec<f32>>,
    entries: Arc<Entries>,
) -> Tensor<1> {
    let vals =
        Dispatch::kept_acts(w_enc.into_dispatch(), b_enc.into_dispatch(), b_dec.into_dispatch(), x_centered, entries);
    Tensor::from_dispatch(vals)
}

/// Mean over tokens of ‖x − x̂_m‖² for each prefix length in `ends` (ascending), [P].
/// Shapes: vals [nnz], w_dec [d_sae, d_model], b_dec [d_model], x [B, d_model].
pub(crate) fn prefix_errors(
    vals: Tensor<1>,
    w_dec: Tensor<2>,
    b_dec: Tensor<1>,
    x: Arc<Vec<f32>>,
    entries: Arc<Entries>,
    ends: Arc<Vec<usize>>,
) -> Tensor<1> {
    let errors =
        Dispatch::prefix_errors(vals.into_dispatch(), w_dec.into_dispatch(), b_dec.into_dispatch(), x, entries, ends);
    Tensor::from_dispatch(errors.0)
}

/// The operations a backend has to provide. `residuals` is a second output of `prefix_errors` that only its backward
/// pass reads.
#[backend_extension(Flex, Autodiff)]
pub(crate) trait SparseOps: burn::backend::Backend {
    fn kept_acts(
        w_enc: FloatTensor<Self>,
        b_enc: FloatTensor<Self>,
        b_dec: FloatTensor<Self>,
        x_centered: Arc<Vec<f32>>,
        entries: Arc<Entries>,
    ) -> FloatTensor<Self>;

    /// Gradients of w_enc, b_enc and b_dec.
    fn kept_acts_backward(
        w_enc: FloatTensor<Self>,
        grad_vals: FloatTensor<Self>,
        x_centered: Arc<Vec<f32>>,
        entries: Arc<Entries>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);

    /// Errors [P] and residuals [B, P, d_model].
    fn prefix_errors(
        vals: FloatTensor<Self>,
        w_dec: FloatTensor<Self>,
        b_dec: FloatTensor<Self>,
        x: Arc<Vec<f32>>,
        entries: Arc<Entries>,
        ends: Arc<Vec<usize>>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Gradients of vals, w_dec and b_dec.
    fn prefix_errors_backward(
        residuals: FloatTensor<Self>,
        vals: FloatTensor<Self>,
        w_dec: FloatTensor<Self>,
        grad_errors: FloatTensor<Self>,
        entries: Arc<Entries>,
        ends: Arc<Vec<usize>>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

impl SparseOps for Flex {
    fn kept_acts(
        _w_enc: FlexTensor,
        _b_enc: FlexTensor,
        _b_dec: FlexTensor,
        _x_centered: Arc<Vec<f32>>,
        entries: Arc<Entries>,
    ) -> FlexTensor {
        tensor(entries.rows.vals.clone(), [entries.rows.nnz()])
    }

    fn kept_acts_backward(
        w_enc: FlexTensor,
        grad_vals: FlexTensor,
        x_centered: Arc<Vec<f32>>,
        entries: Arc<Entries>,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let (w_enc, grad_vals) = (w_enc.to_contiguous(), grad_vals.to_contiguous());
        let d_model = w_enc.layout().shape()[1];
        let (grad_w, grad_b, grad_b_dec) =
            kernels::acts_backward(&x_centered, slice(&w_enc), &entries.columns, slice(&grad_vals), d_model);
        let d_sae = grad_b.len();
        (tensor(grad_w, [d_sae, d_model]), tensor(grad_b, [d_sae]), tensor(grad_b_dec, [d_model]))
    }

    fn prefix_errors(
        vals: FlexTensor,
        w_dec: FlexTensor,
        b_dec: FlexTensor,
        x: Arc<Vec<f32>>,
        entries: Arc<Entries>,
        ends: Arc<Vec<usize>>,
    ) -> (FlexTensor, FlexTensor) {
        let (vals, w_dec, b_dec) = (vals.to_contiguous(), w_dec.to_contiguous(), b_dec.to_contiguous());
        let found = kernels::prefix_errors(&x, &entries.rows, slice(&vals), slice(&w_dec), slice(&b_dec), &ends);
        let errors = found.errors.iter().map(|&error| error as f32).collect();
        let d_model = b_dec.layout().shape()[0];
        (tensor(errors, [ends.len()]), tensor(found.residuals, [entries.rows.n_rows(), ends.len(), d_model]))
    }

    fn prefix_errors_backward(
        residuals: FlexTensor,
        vals: FlexTensor,
        w_dec: FlexTensor,
        grad_errors: FlexTensor,
        entries: Arc<Entries>,
        ends: Arc<Vec<usize>>,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let (vals, w_dec, grad_errors) = (vals.to_contiguous(), w_dec.to_contiguous(), grad_errors.to_contiguous());
        let [d_sae, d_model] = [w_dec.layout().shape()[0], w_dec.layout().shape()[1]];
        let residuals: Vec<f32> = residuals.into_data().try_into_vec().expect("residuals are f32");
        let (grad_vals, grad_w, grad_b) = kernels::prefix_errors_backward(
            residuals,
            &entries.rows,
            &entries.columns,
            slice(&vals),
            slice(&w_dec),
            &ends,
            slice(&grad_errors),
        );
        let nnz = grad_vals.len();
        (tensor(grad_vals, [nnz]), tensor(grad_w, [d_sae, d_model]), tensor(grad_b, [d_model]))
    }
}

impl<B: SparseOps, C: CheckpointStrategy> SparseOps for Autodiff<B, C> {
    fn kept_acts(
        w_enc: FloatTensor<Self>,
        b_enc: FloatTensor<Self>,
        b_dec: FloatTensor<Self>,
        x_centered: Arc<Vec<f32>>,
        entries: Arc<Entries>,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct KeptActs;

        impl<B: SparseOps> Backward<B, 3> for KeptActs {
            type State = (FloatTensor<B>, Arc<Vec<f32>>, Arc<Entries>);

            fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
                let [w_enc_node, b_enc_node, b_dec_node] = ops.parents;
                let grad_vals = grads.consume::<B>(&ops.node);
                let (w_enc, x_centered, entries) = ops.state;
                let (grad_w, grad_b, grad_b_dec) = B::kept_acts_backward(w_enc, grad_vals, x_centered, entries);
                for (node, grad) in [(w_enc_node, grad_w), (b_enc_node, grad_b), (b_dec_node, grad_b_dec)] {
                    if let Some(node) = node {
                        grads.register::<B>(node.id, grad);
                    }
                }
            }
        }

        // The guards keep the graph nodes alive until the operation is registered.
        let guards = [w_enc.node(), b_enc.node(), b_dec.node()];
        let (w_enc, b_enc, b_dec) = (w_enc.into_primitive(), b_enc.into_primitive(), b_dec.into_primitive());
        let vals = B::kept_acts(w_enc.clone(), b_enc, b_dec, x_centered.clone(), entries.clone());
        match KeptActs.prepare::<C>(guards).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((w_enc, x_centered, entries), vals),
            OpsKind::UnTracked(prep) => prep.finish(vals),
        }
    }

    fn prefix_errors(
        vals: FloatTensor<Self>,
        w_dec: FloatTensor<Self>,
        b_dec: FloatTensor<Self>,
        x: Arc<Vec<f32>>,
        entries: Arc<Entries>,
        ends: Arc<Vec<usize>>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        #[derive(Debug)]
        struct PrefixErrors;

        impl<B: SparseOps> Backward<B, 3> for PrefixErrors {
            type State = (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, Arc<Entries>, Arc<Vec<usize>>);

            fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
                let [vals_node, w_dec_node, b_dec_node] = ops.parents;
                let grad_errors = grads.consume::<B>(&ops.node);
                let (residuals, vals, w_dec, entries, ends) = ops.state;
                let (grad_vals, grad_w, grad_b) =
                    B::prefix_errors_backward(residuals, vals, w_dec, grad_errors, entries, ends);
                for (node, grad) in [(vals_node, grad_vals), (w_dec_node, grad_w), (b_dec_node, grad_b)] {
                    if let Some(node) = node {
                        grads.register::<B>(node.id, grad);
                    }
                }
            }
        }

        let guards = [vals.node(), w_dec.node(), b_dec.node()];
        let (vals, w_dec, b_dec) = (vals.into_primitive(), w_dec.into_primitive(), b_dec.into_primitive());
        let (errors, residuals) =
            B::prefix_errors(vals.clone(), w_dec.clone(), b_dec, x, entries.clone(), ends.clone());
        // The residuals stay inside the graph: as a differentiable output they would have a gradient that nobody wants.
        let constant = <Self as AutodiffBackend>::from_inner(residuals.clone());
        let errors = match PrefixErrors.prepare::<C>(guards).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((residuals, vals, w_dec, entries, ends), errors),
            OpsKind::UnTracked(prep) => prep.finish(errors),
        };
        (errors, constant)
    }

    fn kept_acts_backward(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: Arc<Vec<f32>>,
        _: Arc<Entries>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("gradients are not differentiated again")
    }

    fn prefix_errors_backward(
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: FloatTensor<Self>,
        _: Arc<Entries>,
        _: Arc<Vec<usize>>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        unreachable!("gradients are not differentiated again")
    }
}

fn slice(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("a contiguous f32 tensor")
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}
