//! The backward pass, latent by latent: the entries of a latent are gathered and both its rows' gradients summed, one
//! slice of columns after the other, so that what is gathered from stays in cache.

use rayon::prelude::*;

use super::reconstruct::Prefixes;
use super::sliced::{Sliced, WIDTH};
use super::weighted::{Slice, sum, sum_and_products};
use super::{axpy, dot, prefetch};
use crate::activation::{Activation, Flow, Own, Penalty};
use crate::gradients::{BLOCK_LATENTS, Extra, Gradients};
use crate::sparse::{Columns, SparseRows};

/// Rows of W_dec are fetched so many latents before they are needed.
const AHEAD: usize = 4;

/// What the pass reads.
pub(crate) struct Backward<'a> {
    /// The encoder's input, one channel.
    pub(crate) x: &'a Sliced,
    pub(crate) pre_acts: &'a SparseRows,
    pub(crate) columns: &'a Columns,
    pub(crate) prefixes: &'a Prefixes,
    /// See `Activation::token`, [B]; empty where it does not matter.
    pub(crate) token_factors: &'a [f32],
    /// [d_sae, d_model].
    pub(crate) w_dec: &'a [f32],
    pub(crate) d_model: usize,
    /// Gradients from elsewhere that are added.
    pub(crate) extras: &'a [Extra],
}

/// What the pass finds beside the gradients.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) penalty: Penalty,
    /// Of the gradients of all latents, without their decoder rows' parts along the rows where those are constrained.
    pub(crate) sum_of_squares: f64,
    /// How far each decoder row's gradient goes along the row, [d_sae].
    pub(crate) along: Vec<f32>,
}

/// ∂W_enc[j] = Σ_t g x[t], ∂b_enc[j] = Σ_t g and ∂W_dec[j] = Σ_t z · flow[t], where g = ∂L/∂pre at the entry (t, j).
/// Every row of `grads` is written, but b_dec. `flow` is what flows back into the reconstructions, one channel each (see
/// `reconstruct`); where it lies in the memory of `grads.w_enc`, as `flow_is_lent` says, it is given back in between.
pub(crate) fn backward<A: Activation>(
    activation: &A,
    input: &Backward,
    flow: &mut Sliced,
    flow_is_lent: bool,
    is_constrained: bool,
    grads: &mut Gradients,
) -> Totals {
    let d_model = input.d_model;
    let n_latents = grads.b_enc.len();
    let offsets: Vec<usize> =
        (0..n_latents).step_by(BLOCK_LATENTS).chain([n_latents]).map(|j| input.columns.colptr[j]).collect();
    let mut stats = vec![RowStats::default(); n_latents];
    // By column, like `columns`: activations, then what reaches each entry from the reconstructions, then its gradient.
    let mut acts = vec![0f32; input.pre_acts.nnz()];
    let mut reaching = vec![0f32; input.pre_acts.nnz()];
    let mut reaching_gate = vec![0f32; if A::HAS_GATE { input.pre_acts.nnz() } else { 0 }];
    let parts = super::split_at_offsets(&mut acts, &offsets);
    parts.into_par_iter().zip(stats.par_chunks_mut(BLOCK_LATENTS)).enumerate().for_each(|(block, (acts, stats))| {
        activate(activation, input, block * BLOCK_LATENTS, acts, stats);
    });

    for slice in 0..flow.n_slices() {
        let parts = super::split_at_offsets(&mut reaching, &offsets).into_par_iter();
        let parts = parts.zip(split_for_gate(&mut reaching_gate, &offsets));
        let rows = grads.w_dec.par_chunks_mut(BLOCK_LATENTS * d_model).zip(stats.par_chunks_mut(BLOCK_LATENTS));
        rows.zip(parts).enumerate().for_each(|(block, ((w_dec, stats), reaching))| {
            decoder_slice(input, flow, slice, block * BLOCK_LATENTS, &acts, w_dec, stats, reaching);
        });
    }
    drop(acts);
    if flow_is_lent {
        flow.swap_room(&mut grads.w_enc);
    }
    let parts = super::split_at_offsets(&mut reaching, &offsets).into_par_iter();
    let parts = parts.zip(split_for_gate(&mut reaching_gate, &offsets));
    let biases = grads.b_enc.par_chunks_mut(BLOCK_LATENTS).zip(grads.own.par_chunks_mut(BLOCK_LATENTS));
    let penalties: Vec<Penalty> = biases
        .zip(parts)
        .enumerate()
        .map(|(block, ((b_enc, own), (reaching, gate)))| {
            entries(activation, input, block * BLOCK_LATENTS, b_enc, own, reaching, gate)
        })
        .collect();
    for slice in 0..input.x.n_slices() {
        let rows = grads.w_enc.par_chunks_mut(BLOCK_LATENTS * d_model).zip(stats.par_chunks_mut(BLOCK_LATENTS));
        rows.enumerate().for_each(|(block, (w_enc, stats))| {
            encoder_slice(input, slice, block * BLOCK_LATENTS, w_enc, stats, &reaching);
        });
    }

    let mut totals = totals(&stats, grads, is_constrained);
    penalties.into_iter().for_each(|penalty| totals.penalty += penalty);
    totals
}

/// For gradients that were summed otherwise: adds the extras and takes the totals.
pub(crate) fn finish_rows(
    grads: &mut Gradients,
    extras: &[Extra],
    w_dec: &[f32],
    d_model: usize,
    is_constrained: bool,
) -> Totals {
    for extra in extras {
        for (at, &j) in extra.latents.iter().enumerate() {
            let (j, row) = (j as usize, at * d_model..(at + 1) * d_model);
            axpy(&mut grads.w_enc[j * d_model..(j + 1) * d_model], 1.0, &extra.w_enc[row.clone()]);
            axpy(&mut grads.w_dec[j * d_model..(j + 1) * d_model], 1.0, &extra.w_dec[row]);
            grads.b_enc[j] += extra.b_enc[at];
            add_own(&mut grads.own[j], extra, at);
        }
    }
    let rows = grads.w_enc.par_chunks_exact(d_model).zip(grads.w_dec.par_chunks_exact(d_model));
    let stats: Vec<RowStats> = rows
        .zip(w_dec.par_chunks_exact(d_model))
        .map(|((grad_enc, grad_dec), w_dec)| RowStats {
            along: dot(grad_dec, w_dec),
            decoder: dot(grad_dec, grad_dec),
            encoder: dot(grad_enc, grad_enc),
            pull: 0.0,
        })
        .collect();
    totals(&stats, grads, is_constrained)
}

/// Products of one latent's gradient rows, summed over slices.
#[derive(Clone, Copy, Debug, Default)]
struct RowStats {
    /// ∂W_dec · W_dec.
    along: f32,
    /// ‖∂W_dec‖².
    decoder: f32,
    /// ‖∂W_enc‖².
    encoder: f32,
    /// What is added to ∂W_dec per unit of W_dec, because the penalty pulls on the row's length.
    pull: f32,
}

fn totals(stats: &[RowStats], grads: &Gradients, is_constrained: bool) -> Totals {
    let square = |value: f32| f64::from(value).powi(2);
    let mut totals = Totals::default();
    for ((stats, bias), own) in stats.iter().zip(&grads.b_enc).zip(&grads.own) {
        let along = if is_constrained { stats.along } else { 0.0 };
        // What is left of a row without its part along a row of length 1.
        let decoder = (f64::from(stats.decoder) - square(along)).max(0.0);
        totals.sum_of_squares += decoder + f64::from(stats.encoder) + square(*bias) + square(own[0]) + square(own[1]);
        totals.along.push(along);
    }
    totals
}

fn add_own(own: &mut [f32; 2], extra: &Extra, at: usize) {
    let extra = extra.own.get(at).unwrap_or(&[0.0; 2]);
    own.iter_mut().zip(extra).for_each(|(own, extra)| *own += extra);
}

/// Parts of what reaches entries through the gate; empty ones where there is none.
fn split_for_gate<'a>(reaching: &'a mut [f32], offsets: &[usize]) -> Vec<&'a mut [f32]> {
    match reaching.is_empty() {
        true => (1..offsets.len()).map(|_| &mut [][..]).collect(),
        false => super::split_at_offsets(reaching, offsets),
    }
}

/// Columns of a row of weights, padded with zeros.
#[inline(always)]
fn padded(row: &[f32]) -> Slice {
    let mut slice = [0.0; WIDTH];
    slice[..row.len()].copy_from_slice(row);
    slice
}

vectorised! {
    /// Activations of some latents' entries, and how the penalty pulls on the latents' decoder rows.
    fn activate<A: Activation>(
        activation: &A,
        input: &Backward,
        first: usize,
        acts: &mut [f32],
        stats: &mut [RowStats],
    ) {
        let start = input.columns.colptr[first];
        for (i, stats) in stats.iter_mut().enumerate() {
            let j = first + i;
            for at in input.columns.range(j) {
                acts[at - start] = activation.act(j, input.pre_act(at));
            }
            if A::PULLS_ON_LENGTH {
                let pulls = input.columns.range(j).map(|at| activation.length_pull(j, input.pre_act(at)));
                stats.pull = pull_along(&input.w_dec[j * input.d_model..(j + 1) * input.d_model], pulls.sum());
            }
        }
    }
}

vectorised! {
    /// One slice of some latents' decoder gradients, and its share of what reaches their entries.
    #[expect(clippy::too_many_arguments, reason = "what the pass reads, and its part of what it writes")]
    fn decoder_slice(
        input: &Backward,
        flow: &Sliced,
        slice: usize,
        first: usize,
        acts: &[f32],
        grad: &mut [f32],
        stats: &mut [RowStats],
        reaching: (&mut [f32], &mut [f32]),
    ) {
        let (columns, d_model) = (flow.columns(slice), input.d_model);
        let start = input.columns.colptr[first];
        for (i, (grad, stats)) in grad.chunks_exact_mut(d_model).zip(stats).enumerate() {
            let j = first + i;
            let ahead = (j + AHEAD) * d_model;
            prefetch(input.w_dec.get(ahead + columns.start..ahead + columns.end).unwrap_or_default());
            let w = padded(&input.w_dec[j * d_model..][columns.clone()]);
            let rows = flow.slice(input.prefixes.of(j), slice);
            let entries = input.columns.range(j);
            let here = entries.start - start..entries.end - start;
            let tokens = &input.columns.row[entries.clone()];
            let mut sum = sum_and_products(rows, tokens, &acts[entries], &w, &mut reaching.0[here.clone()]);
            if let Some(reaching) = reaching.1.get_mut(here).filter(|reaching| !reaching.is_empty()) {
                let gate = flow.slice(input.prefixes.len(), slice);
                tokens.iter().zip(reaching).for_each(|(&t, reaching)| *reaching += dot(&gate[t as usize], &w));
            }
            if stats.pull != 0.0 {
                axpy(&mut sum, stats.pull, &w);
            }
            input.add_extras(j, &mut sum, |extra| &extra.w_dec[..], slice);
            stats.along += dot(&sum, &w);
            stats.decoder += dot(&sum, &sum);
            grad[columns.clone()].copy_from_slice(&sum[..columns.len()]);
        }
    }
}

vectorised! {
    /// Gradients of some latents' entries, in place of what reaches them, and of their biases and own parameters.
    fn entries<A: Activation>(
        activation: &A,
        input: &Backward,
        first: usize,
        b_enc: &mut [f32],
        own: &mut [[f32; 2]],
        reaching: &mut [f32],
        reaching_gate: &[f32],
    ) -> Penalty {
        let mut penalty = Penalty::default();
        let start = input.columns.colptr[first];
        for (i, (bias, own)) in b_enc.iter_mut().zip(own).enumerate() {
            let j = first + i;
            let (mut sum, mut of_latent) = (0.0, Own::default());
            for at in input.columns.range(j) {
                let pre = input.pre_act(at);
                let token = if A::COUNTS_ACTIVE { input.token_factors[input.columns.row[at] as usize] } else { 1.0 };
                let gate = if A::HAS_GATE { reaching_gate[at - start] } else { 0.0 };
                let flow = Flow { act: reaching[at - start], gate, token };
                let gradient = activation.backward(j, pre, flow, &mut of_latent);
                reaching[at - start] = gradient;
                sum += gradient;
                penalty += activation.penalty(j, pre);
            }
            *own = of_latent.0;
            *bias = activation.bias(j, sum, own);
            for extra in input.extras {
                if let Ok(at) = extra.latents.binary_search(&(j as u32)) {
                    *bias += extra.b_enc[at];
                    add_own(own, extra, at);
                }
            }
        }
        penalty
    }
}

vectorised! {
    /// One slice of some latents' encoder gradients.
    fn encoder_slice(
        input: &Backward,
        slice: usize,
        first: usize,
        grad: &mut [f32],
        stats: &mut [RowStats],
        gradients: &[f32],
    ) {
        let (columns, d_model) = (input.x.columns(slice), input.d_model);
        let x = input.x.slice(0, slice);
        for (i, (grad, stats)) in grad.chunks_exact_mut(d_model).zip(stats).enumerate() {
            let (j, entries) = (first + i, input.columns.range(first + i));
            let mut sum = sum(x, &input.columns.row[entries.clone()], &gradients[entries]);
            input.add_extras(j, &mut sum, |extra| &extra.w_enc[..], slice);
            stats.encoder += dot(&sum, &sum);
            grad[columns.clone()].copy_from_slice(&sum[..columns.len()]);
        }
    }
}

impl Backward<'_> {
    /// The pre-activation of an entry.
    #[inline(always)]
    fn pre_act(&self, at: usize) -> f32 {
        self.pre_acts.vals[self.columns.entry[at] as usize]
    }

    #[inline(always)]
    fn add_extras(&self, j: usize, sum: &mut Slice, part: impl Fn(&Extra) -> &[f32], slice: usize) {
        let columns = self.x.columns(slice);
        for extra in self.extras {
            if let Ok(at) = extra.latents.binary_search(&(j as u32)) {
                let row = &part(extra)[at * self.d_model..][columns.clone()];
                axpy(&mut sum[..columns.len()], 1.0, row);
            }
        }
    }
}

/// What reaches a row through its length, per unit of the row.
#[inline(always)]
pub(super) fn pull_along(w_dec: &[f32], pull: f32) -> f32 {
    if pull == 0.0 { 0.0 } else { pull / dot(w_dec, w_dec).sqrt().max(f32::MIN_POSITIVE) }
}
