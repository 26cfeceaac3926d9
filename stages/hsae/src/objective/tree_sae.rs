//! The loss of a Tree SAE: see `archs::tree_sae`.

use super::{Found, Objective, Room};
use crate::activation::Activation;
use crate::archs::CoarseAux;
use crate::gradients::Gradients;
use crate::kernels::{Backward, backward, reconstruct};
use crate::sparse::{Columns, SparseRows};

impl<A: Activation> Objective<'_, A> {
    /// Over the entries that were selected, with this auxiliary term instead of AuxK. There is no b_enc to train.
    pub(crate) fn tree_sae(
        &self,
        pre_acts: &SparseRows,
        columns: &Columns,
        aux: &CoarseAux,
        room: &mut Room,
        grads: &mut Gradients,
    ) -> Found {
        let (weights, d_model) = (self.weights, self.weights.d_model);
        let (target, prefixes, flow) = (self.target, self.prefixes, &mut room.flow);
        let found = reconstruct(self.activation, target, pre_acts, &weights.w_dec, d_model, prefixes, flow, None);
        room.x.fill(self.x, d_model);
        grads.b_dec.copy_from_slice(&found.grad_b_dec);
        let mut losses = self.losses(&found.errors);
        let extra;
        (losses.aux, extra) = aux.run(weights, self.x, target, pre_acts, &mut room.flow, &mut grads.b_dec);
        let extras: Vec<_> = extra.into_iter().collect();
        let input = Backward {
            x: &room.x,
            pre_acts,
            columns,
            prefixes,
            token_factors: &[],
            w_dec: &weights.w_dec,
            d_model,
            extras: &extras,
        };
        let totals = backward(self.activation, &input, &mut room.flow, false, self.is_constrained, grads);
        let mut found = self.finish(losses, totals, grads);
        // What flows to the biases was needed for b_dec, which the encoder's input is less; now it is forgotten.
        let of_biases: f64 = grads.b_enc.iter().map(|&g| f64::from(g).powi(2)).sum();
        found.sum_of_squares = (found.sum_of_squares - of_biases).max(0.0);
        grads.b_enc.fill(0.0);
        found
    }
}
