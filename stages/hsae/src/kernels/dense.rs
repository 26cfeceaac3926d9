//! The dense way: products of whole matrices, for activations that are not sparse. A ReLU SAE starts half dense.

use rayon::prelude::*;
use slices::{Mat, Onto, multiply_on_all_threads as multiply};

use super::latents::pull_along;
use super::reconstruct::{Prefixes, Reconstruction, suffix_sums};
use super::{axpy, dot};
use crate::activation::{Activation, Flow, Own, Penalty};
use crate::gradients::Gradients;

/// Tokens whose dense activations are held at once.
pub(super) const BLOCK_ROWS: usize = 256;
/// Tokens per parallel piece of elementwise work, and per partial sum.
const ELEMENTWISE_ROWS: usize = 64;

/// Parameters and a batch, for the dense pass.
pub(crate) struct Dense<'a> {
    /// The encoder's input and the target without b_dec, [B, d_model].
    pub(crate) x: &'a [f32],
    pub(crate) target: &'a [f32],
    pub(crate) w_enc: &'a [f32],
    pub(crate) b_enc: &'a [f32],
    pub(crate) w_dec: &'a [f32],
    pub(crate) d_model: usize,
    pub(crate) prefixes: &'a Prefixes,
}

/// What the dense pass finds beside the gradients.
pub(crate) struct DenseFound {
    pub(crate) reconstruction: Reconstruction,
    pub(crate) penalty: Penalty,
    /// Tokens on which each latent is active, and the sum of its activations, [d_sae].
    pub(crate) firings: Vec<u64>,
    pub(crate) sum_acts: Vec<f64>,
    /// Σ of `Activation::length_pull`, [d_sae].
    pulls: Vec<f32>,
}

/// Loss and gradients of a batch by dense products; the same as `reconstruct` and `backward` give for the entries where
/// `act` or `gate_act` is not 0 or the threshold near. `grads` is overwritten, but b_dec; nothing is projected yet.
pub(crate) fn dense<A: Activation>(activation: &A, input: &Dense, grads: &mut Gradients) -> DenseFound {
    let (d_model, d_sae) = (input.d_model, input.b_enc.len());
    let n_rows = input.x.len() / d_model;
    let ends = &input.prefixes.ends;
    let n_channels = ends.len() + usize::from(A::HAS_GATE);
    let rows = BLOCK_ROWS.min(n_rows);
    let mut pre_acts = vec![0f32; rows * d_sae];
    let mut acts = vec![0f32; rows * d_sae];
    let mut gate_acts = vec![0f32; if A::HAS_GATE { rows * d_sae } else { 0 }];
    let mut grad_acts = vec![0f32; rows * d_sae];
    let mut grad_gate = vec![0f32; gate_acts.len()];
    let mut flow = vec![0f32; rows * n_channels * d_model];
    let mut found = DenseFound {
        reconstruction: Reconstruction { errors: vec![0.0; n_channels], grad_b_dec: vec![0.0; d_model] },
        penalty: Penalty::default(),
        firings: vec![0; d_sae],
        sum_acts: vec![0.0; d_sae],
        pulls: vec![0.0; d_sae],
    };
    grads.b_enc.fill(0.0);
    grads.own.fill([0.0; 2]);
    for (block, (x, target)) in
        input.x.chunks(BLOCK_ROWS * d_model).zip(input.target.chunks(BLOCK_ROWS * d_model)).enumerate()
    {
        let n = x.len() / d_model;
        pre_acts[..n * d_sae].par_chunks_mut(d_sae).for_each(|row| row.copy_from_slice(input.b_enc));
        let w_enc = Mat::rows(input.w_enc, d_model);
        multiply((n, d_model, d_sae), 1.0, Mat::rows(x, d_model), w_enc.transposed(), Onto::Sum, &mut pre_acts, d_sae);
        let each_row = acts.par_chunks_mut(d_sae).zip(pre_acts.par_chunks(d_sae)).take(n);
        each_row.for_each(|(acts, pre)| act_row(activation, pre, acts));
        if A::HAS_GATE {
            let each_row = gate_acts.par_chunks_mut(d_sae).zip(pre_acts.par_chunks(d_sae)).take(n);
            each_row.for_each(|(acts, pre)| gate_row(activation, pre, acts));
        }

        // Residuals of all channels, then what flows back into each.
        let stride = n_channels * d_model;
        let mut start = 0;
        for (p, &end) in ends.iter().enumerate() {
            for t in 0..n {
                let (before, after) = flow[t * stride..(t + 1) * stride].split_at_mut(p * d_model);
                match p {
                    0 => after[..d_model].iter_mut().zip(&target[t * d_model..]).for_each(|(r, x)| *r = -x),
                    _ => after[..d_model].copy_from_slice(&before[(p - 1) * d_model..]),
                }
            }
            let part = Mat::rows(&acts[start..], d_sae);
            let w_dec = Mat::rows(&input.w_dec[start * d_model..], d_model);
            multiply((n, end - start, d_model), 1.0, part, w_dec, Onto::Sum, &mut flow[p * d_model..], stride);
            start = end;
        }
        if A::HAS_GATE {
            for t in 0..n {
                let at = t * stride + ends.len() * d_model;
                flow[at..at + d_model].iter_mut().zip(&target[t * d_model..]).for_each(|(r, x)| *r = -x);
            }
            let w_dec = Mat::rows(input.w_dec, d_model);
            let acts = Mat::rows(&gate_acts, d_sae);
            multiply((n, d_sae, d_model), 1.0, acts, w_dec, Onto::Sum, &mut flow[ends.len() * d_model..], stride);
        }
        flow_back(&mut flow[..n * stride], d_model, input.prefixes, n_rows, &mut found.reconstruction);

        // Back through the decoder, then through each latent.
        let onto = if block == 0 { Onto::Nothing } else { Onto::Sum };
        let mut start = 0;
        for (p, &end) in ends.iter().enumerate() {
            let of_prefix = Mat::rows(&flow[p * d_model..], stride);
            let w_dec = Mat::rows(&input.w_dec[start * d_model..], d_model).transposed();
            multiply((n, d_model, end - start), 1.0, of_prefix, w_dec, Onto::Nothing, &mut grad_acts[start..], d_sae);
            let acts = Mat::rows(&acts[start..], d_sae).transposed();
            let out = &mut grads.w_dec[start * d_model..end * d_model];
            multiply((end - start, n, d_model), 1.0, acts, of_prefix, onto, out, d_model);
            start = end;
        }
        if A::HAS_GATE {
            let of_gate = Mat::rows(&flow[ends.len() * d_model..], stride);
            let w_dec = Mat::rows(input.w_dec, d_model).transposed();
            multiply((n, d_model, d_sae), 1.0, of_gate, w_dec, Onto::Nothing, &mut grad_gate, d_sae);
        }
        let elementwise = Elementwise { activation, n, d_sae, pre_acts: &pre_acts, acts: &acts, grad_gate: &grad_gate };
        elementwise.run(&mut grad_acts, grads, &mut found);
        let grad_pre = Mat::rows(&grad_acts, d_sae).transposed();
        multiply((d_sae, n, d_model), 1.0, grad_pre, Mat::rows(x, d_model), onto, &mut grads.w_enc, d_model);
    }
    for j in 0..d_sae {
        let row = j * d_model..(j + 1) * d_model;
        let pull = pull_along(&input.w_dec[row.clone()], found.pulls[j]);
        if pull != 0.0 {
            axpy(&mut grads.w_dec[row.clone()], pull, &input.w_dec[row]);
        }
        grads.b_enc[j] = activation.bias(j, grads.b_enc[j], &grads.own[j]);
    }
    found
}

vectorised! {
    fn act_row<A: Activation>(activation: &A, pre_acts: &[f32], acts: &mut [f32]) {
        acts.iter_mut().zip(pre_acts).enumerate().for_each(|(j, (z, &pre))| *z = activation.act(j, pre));
    }
}

vectorised! {
    fn gate_row<A: Activation>(activation: &A, pre_acts: &[f32], acts: &mut [f32]) {
        acts.iter_mut().zip(pre_acts).enumerate().for_each(|(j, (z, &pre))| *z = activation.gate_act(j, pre));
    }
}

vectorised! {
    /// Residuals of some tokens, [n, channels, d_model], into what flows back; their errors and sums are added up.
    fn flow_back(flow: &mut [f32], d_model: usize, prefixes: &Prefixes, n_rows: usize, found: &mut Reconstruction) {
        let scale = 2.0 / n_rows as f32;
        for token in flow.chunks_exact_mut(found.errors.len() * d_model) {
            for (error, residual) in found.errors.iter_mut().zip(token.chunks_exact(d_model)) {
                *error += f64::from(dot(residual, residual)) / n_rows as f64;
            }
            suffix_sums(token, d_model, prefixes, scale, &mut found.grad_b_dec);
            token[prefixes.len() * d_model..].iter_mut().for_each(|g| *g *= scale);
        }
    }
}

/// The part between the products: what each latent does to what flows back.
struct Elementwise<'a, A> {
    activation: &'a A,
    /// Tokens of the block.
    n: usize,
    d_sae: usize,
    /// All [n, d_sae].
    pre_acts: &'a [f32],
    acts: &'a [f32],
    grad_gate: &'a [f32],
}

vectorised! {
    fn elementwise_rows<A: Activation>(input: &Elementwise<A>, first: usize, grad_acts: &mut [f32]) -> Sums {
        let d_sae = input.d_sae;
        let zeros = || vec![0f32; d_sae];
        let mut sums = Sums {
            bias: zeros(),
            own: vec![Own::default(); d_sae],
            firings: vec![0; d_sae],
            acts: zeros(),
            pulls: zeros(),
            penalty: zeros(),
            watched: zeros(),
            tokens: 0.0,
        };
        for (i, grads) in grad_acts.chunks_exact_mut(d_sae).enumerate() {
            input.token(first + i, grads, &mut sums);
        }
        sums
    }
}

/// Sums over some tokens, [d_sae]; few enough tokens that f32 holds them.
struct Sums {
    bias: Vec<f32>,
    own: Vec<Own>,
    firings: Vec<u32>,
    acts: Vec<f32>,
    pulls: Vec<f32>,
    penalty: Vec<f32>,
    watched: Vec<f32>,
    /// What the numbers of active latents cost.
    tokens: f64,
}

impl<A: Activation> Elementwise<'_, A> {
    /// Turns `grad_acts` into gradients of the pre-activations, in place, and adds up what is summed over tokens.
    fn run(&self, grad_acts: &mut [f32], grads: &mut Gradients, found: &mut DenseFound) {
        let d_sae = self.d_sae;
        let parts: Vec<Sums> = grad_acts[..self.n * d_sae]
            .par_chunks_mut(ELEMENTWISE_ROWS * d_sae)
            .enumerate()
            .map(|(block, grad_acts)| elementwise_rows(self, block * ELEMENTWISE_ROWS, grad_acts))
            .collect();
        for part in parts {
            let sum = |values: &[f32]| values.iter().map(|&value| f64::from(value)).sum::<f64>();
            found.penalty += Penalty { value: part.tokens + sum(&part.penalty), watched: sum(&part.watched) };
            for j in 0..d_sae {
                grads.b_enc[j] += part.bias[j];
                (0..2).for_each(|i| grads.own[j][i] += part.own[j].0[i]);
                found.firings[j] += u64::from(part.firings[j]);
                found.sum_acts[j] += f64::from(part.acts[j]);
                found.pulls[j] += part.pulls[j];
            }
        }
    }

    #[inline(always)]
    fn token(&self, t: usize, grads: &mut [f32], sums: &mut Sums) {
        let row = t * self.d_sae..(t + 1) * self.d_sae;
        let (pre_acts, acts) = (&self.pre_acts[row.clone()], &self.acts[row.clone()]);
        let mut token = 1.0;
        if A::COUNTS_ACTIVE {
            let cost;
            (cost, token) = self.activation.token(acts.iter().filter(|&&act| act > 0.0).count());
            sums.tokens += cost;
        }
        // One loop for each thing that is summed, since the compiler makes vectors of simple ones.
        for ((sum, firings), &act) in sums.acts.iter_mut().zip(&mut sums.firings).zip(acts) {
            *sum += act;
            *firings += u32::from(act > 0.0);
        }
        for (j, (penalty, &pre)) in sums.penalty.iter_mut().zip(pre_acts).enumerate() {
            *penalty += self.activation.penalty(j, pre).value as f32;
        }
        if A::IS_WATCHED {
            for (j, (watched, &pre)) in sums.watched.iter_mut().zip(pre_acts).enumerate() {
                *watched += self.activation.penalty(j, pre).watched as f32;
            }
        }
        if A::PULLS_ON_LENGTH {
            for (j, (pull, &pre)) in sums.pulls.iter_mut().zip(pre_acts).enumerate() {
                *pull += self.activation.length_pull(j, pre);
            }
        }
        let flow = |j: usize, act: f32| {
            let gate = if A::HAS_GATE { self.grad_gate[row.start + j] } else { 0.0 };
            Flow { act, gate, token }
        };
        if A::HAS_OWN {
            for (j, ((grad, &pre), own)) in grads.iter_mut().zip(pre_acts).zip(&mut sums.own).enumerate() {
                *grad = self.activation.backward(j, pre, flow(j, *grad), own);
            }
        } else {
            for (j, (grad, &pre)) in grads.iter_mut().zip(pre_acts).enumerate() {
                *grad = self.activation.backward(j, pre, flow(j, *grad), &mut Own::default());
            }
        }
        axpy(&mut sums.bias, 1.0, grads);
    }
}
