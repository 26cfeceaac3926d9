//! The backward pass, latent by latent: a latent's entries are gathered and both its rows' gradients summed in cache.

use rayon::prelude::*;

use super::reconstruct::Prefixes;
use super::{axpy, dot};
use crate::activation::{Activation, Flow, Own, Penalty};
use crate::gradients::{BlockMut, Extra, Gradients, RowMut};
use crate::sparse::{Columns, SparseRows};

/// What the pass reads.
pub(crate) struct Backward<'a> {
    /// The encoder's input, [B, d_model].
    pub(crate) x: &'a [f32],
    pub(crate) pre_acts: &'a SparseRows,
    pub(crate) columns: &'a Columns,
    /// What flows back into the reconstructions, [B, channels, d_model]: see `reconstruct`.
    pub(crate) flow: &'a [f32],
    pub(crate) prefixes: &'a Prefixes,
    /// See `Activation::token`, [B]; empty where it does not matter.
    pub(crate) token_factors: &'a [f32],
    /// [d_sae, d_model].
    pub(crate) w_dec: &'a [f32],
    pub(crate) d_model: usize,
    /// Gradients from elsewhere that are added.
    pub(crate) extras: &'a [Extra],
    /// Decoder rows keep their length.
    pub(crate) is_constrained: bool,
}

/// What the pass finds beside the gradients.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) penalty: Penalty,
    /// Of the gradients of all latents.
    pub(crate) sum_of_squares: f64,
}

/// ∂W_enc[j] = Σ_t g x[t], ∂b_enc[j] = Σ_t g and ∂W_dec[j] = Σ_t z · flow[t], where g = ∂L/∂pre at the entry (t, j).
/// Every row of `grads` is written, but b_dec.
pub(crate) fn backward<A: Activation>(activation: &A, input: &Backward, grads: &mut Gradients) -> Totals {
    let blocks = grads.blocks(input.d_model);
    let parts: Vec<Totals> = blocks.map(|mut block| backward_block(activation, input, &mut block)).collect();
    fold(parts)
}

/// The last part of the pass alone, for gradients that were summed otherwise.
pub(crate) fn finish_rows(
    grads: &mut Gradients,
    extras: &[Extra],
    w_dec: &[f32],
    d_model: usize,
    is_constrained: bool,
) -> Totals {
    let parts: Vec<Totals> = grads
        .blocks(d_model)
        .map(|mut block| finish_block(&mut block, extras, w_dec, d_model, is_constrained))
        .collect();
    fold(parts)
}

vectorised! {
    fn backward_block<A: Activation>(activation: &A, input: &Backward, block: &mut BlockMut) -> Totals {
        let mut totals = Totals::default();
        for mut row in block.rows(input.d_model) {
            totals.penalty += input.latent(activation, &mut row);
            finish_row(&mut row, input.extras, input.w_dec, input.is_constrained, &mut totals);
        }
        totals
    }
}

vectorised! {
    fn finish_block(
        block: &mut BlockMut,
        extras: &[Extra],
        w_dec: &[f32],
        d_model: usize,
        is_constrained: bool,
    ) -> Totals {
        let mut totals = Totals::default();
        for mut row in block.rows(d_model) {
            finish_row(&mut row, extras, w_dec, is_constrained, &mut totals);
        }
        totals
    }
}

#[inline(always)]
fn finish_row(row: &mut RowMut, extras: &[Extra], w_dec: &[f32], is_constrained: bool, totals: &mut Totals) {
    let d_model = row.w_dec.len();
    row.add(extras);
    if is_constrained {
        row.remove_parallel_part(&w_dec[row.latent * d_model..(row.latent + 1) * d_model]);
    }
    totals.sum_of_squares += row.sum_of_squares();
}

fn fold(parts: Vec<Totals>) -> Totals {
    let mut all = Totals::default();
    for part in parts {
        all.penalty += part.penalty;
        all.sum_of_squares += part.sum_of_squares;
    }
    all
}

/// Adds what reaches a row through its length.
#[inline(always)]
pub(super) fn pull_on_length(grad: &mut [f32], w_dec: &[f32], pull: f32) {
    if pull != 0.0 {
        axpy(grad, pull / dot(w_dec, w_dec).sqrt().max(f32::MIN_POSITIVE), w_dec);
    }
}

impl Backward<'_> {
    /// Writes the gradients of one latent; returns its penalty.
    #[inline(always)]
    fn latent<A: Activation>(&self, activation: &A, row: &mut RowMut) -> Penalty {
        let (d_model, j) = (self.d_model, row.latent);
        let n_channels = self.prefixes.len() + usize::from(A::HAS_GATE);
        let w_dec = &self.w_dec[j * d_model..(j + 1) * d_model];
        let prefix = self.prefixes.of(j);
        row.w_enc.fill(0.0);
        row.w_dec.fill(0.0);
        let (mut own, mut penalty, mut pull) = (Own::default(), Penalty::default(), 0.0);
        let mut sum = 0.0;
        for at in self.columns.range(j) {
            let t = self.columns.row[at] as usize;
            let pre = self.pre_acts.vals[self.columns.entry[at] as usize];
            let flows = &self.flow[t * n_channels * d_model..(t + 1) * n_channels * d_model];
            let flow = &flows[prefix * d_model..(prefix + 1) * d_model];
            let token = if A::COUNTS_ACTIVE { self.token_factors[t] } else { 1.0 };
            let mut reaching = Flow { act: dot(flow, w_dec), gate: 0.0, token };
            if A::HAS_GATE {
                reaching.gate = dot(&flows[(n_channels - 1) * d_model..], w_dec);
            }
            let act = activation.act(j, pre);
            axpy(row.w_dec, act, flow);
            let grad = activation.backward(j, pre, reaching, &mut own);
            axpy(row.w_enc, grad, &self.x[t * d_model..(t + 1) * d_model]);
            sum += grad;
            penalty += activation.penalty(j, pre);
            if A::PULLS_ON_LENGTH {
                pull += activation.length_pull(j, pre);
            }
        }
        if A::PULLS_ON_LENGTH {
            pull_on_length(row.w_dec, w_dec, pull);
        }
        *row.own = own.0;
        *row.b_enc = activation.bias(j, sum, row.own);
        penalty
    }
}
