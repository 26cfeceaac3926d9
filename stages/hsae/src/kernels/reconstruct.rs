//! Nested reconstructions from sparse activations, and their errors' gradients. A longer prefix is a shorter one plus the
//! latents in between, so that several cost one decode.

use rayon::prelude::*;

use super::sliced::{BLOCK_ROWS, BlockMut, Sliced};
use super::{axpy, dot, prefetch};
use crate::activation::Activation;
use crate::sparse::SparseRows;

/// Rows of W_dec are fetched so many entries before they are needed.
const AHEAD: usize = 2;

/// x̂ = b_dec + Σ_j z_j W_dec[j], over the latents below `n_latents`.
/// Shapes: acts [B, d_sae] sparse, w_dec [d_sae, d_model], b_dec [d_model] → [B, d_model].
pub(crate) fn decode_rows(acts: &SparseRows, w_dec: &[f32], b_dec: &[f32], n_latents: usize) -> Vec<f32> {
    let d_model = b_dec.len();
    let mut out = vec![0f32; acts.n_rows() * d_model];
    out.par_chunks_mut(BLOCK_ROWS * d_model).enumerate().for_each(|(block, out)| {
        decode_block(acts, w_dec, b_dec, n_latents, block * BLOCK_ROWS, out);
    });
    out
}

vectorised! {
    fn decode_block(acts: &SparseRows, w_dec: &[f32], b_dec: &[f32], n_latents: usize, first: usize, out: &mut [f32]) {
        let d_model = b_dec.len();
        for (i, out) in out.chunks_exact_mut(d_model).enumerate() {
            out.copy_from_slice(b_dec);
            let (idx, vals) = acts.row(first + i);
            for (&j, &value) in idx.iter().zip(vals).take_while(|&(&j, _)| (j as usize) < n_latents) {
                axpy(out, value, &w_dec[j as usize * d_model..(j as usize + 1) * d_model]);
            }
        }
    }
}

/// Which reconstructions there are, and what the squared error of each weighs in the loss.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Prefixes {
    /// Ascending, the last is d_sae.
    pub(crate) ends: Vec<usize>,
    /// Alike; the last is above zero.
    pub(crate) weights: Vec<f32>,
    /// Share of what flows back into a prefix that flows on into the next shorter one: 1 is the gradient of the loss.
    pub(crate) reach: f32,
}

impl Prefixes {
    /// Reconstructions of which each is trained by its own error and all longer ones'.
    #[cfg(any(test, feature = "gpu"))]
    pub(crate) fn nested(ends: Vec<usize>, weights: Vec<f32>) -> Self {
        Self { ends, weights, reach: 1.0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The first prefix that latent j is part of.
    pub(crate) fn of(&self, j: usize) -> usize {
        self.ends.partition_point(|&end| end <= j)
    }
}

/// What the reconstructions of a batch leave.
pub(crate) struct Reconstruction {
    /// Mean over tokens of ‖x − x̂_m‖², one per prefix, the gate's reconstruction last where there is one.
    pub(crate) errors: Vec<f64>,
    /// ∂L/∂b_dec as far as it comes through the reconstructions, [d_model].
    pub(crate) grad_b_dec: Vec<f32>,
}

/// Errors of all reconstructions, and in `flow` what flows back into each: the sum of ∂L/∂x̂_m over a prefix and all
/// longer ones, which is what a latent receives whose first prefix it is. The channels are the prefixes and, with a gate,
/// its reconstruction. `residuals` receives x̂ − x, [B, d_model].
/// Shapes: x_centered [B, d_model] (the target without b_dec), pre_acts sparse [B, d_sae].
/// Source: Bussmann et al. 2025, "Learning Multi-Level Features with Matryoshka Sparse Autoencoders", equation 2.
#[expect(clippy::too_many_arguments, reason = "the arrays of a product, and where its results go")]
pub(crate) fn reconstruct<A: Activation>(
    activation: &A,
    x_centered: &[f32],
    pre_acts: &SparseRows,
    w_dec: &[f32],
    d_model: usize,
    prefixes: &Prefixes,
    flow: &mut Sliced,
    mut residuals: Option<&mut [f32]>,
) -> Reconstruction {
    let n_rows = pre_acts.n_rows();
    let n_channels = prefixes.len() + usize::from(A::HAS_GATE);
    flow.resize(n_channels, n_rows, d_model);
    let mut none = vec![];
    let residuals: Vec<&mut [f32]> = match &mut residuals {
        Some(residuals) => residuals.chunks_mut(BLOCK_ROWS * d_model).collect(),
        None => {
            none.resize_with(n_rows.div_ceil(BLOCK_ROWS), || [0f32; 0]);
            none.iter_mut().map(|none| &mut none[..]).collect()
        }
    };
    let parts: Vec<Reconstruction> = flow
        .blocks(n_channels)
        .into_par_iter()
        .zip(residuals)
        .enumerate()
        .map(|(block, (mut flow, residuals))| {
            let input = Block { x_centered, pre_acts, w_dec, d_model, prefixes, first: block * BLOCK_ROWS };
            reconstruct_block(activation, &input, &mut flow, residuals)
        })
        .collect();
    let mut all = Reconstruction { errors: vec![0.0; n_channels], grad_b_dec: vec![0.0; d_model] };
    for part in parts {
        all.errors.iter_mut().zip(part.errors).for_each(|(sum, error)| *sum += error / n_rows as f64);
        axpy(&mut all.grad_b_dec, 1.0, &part.grad_b_dec);
    }
    all
}

/// Some tokens of a batch.
struct Block<'a> {
    x_centered: &'a [f32],
    pre_acts: &'a SparseRows,
    w_dec: &'a [f32],
    d_model: usize,
    prefixes: &'a Prefixes,
    /// The first token.
    first: usize,
}

vectorised! {
    fn reconstruct_block<A: Activation>(
        activation: &A,
        input: &Block,
        flow: &mut BlockMut,
        residuals: &mut [f32],
    ) -> Reconstruction {
        let (d_model, prefixes) = (input.d_model, input.prefixes);
        let n_channels = prefixes.len() + usize::from(A::HAS_GATE);
        let scale = 2.0 / input.pre_acts.n_rows() as f32;
        let mut part = Reconstruction { errors: vec![0.0; n_channels], grad_b_dec: vec![0.0; d_model] };
        let (mut residual, mut token) = (vec![0f32; d_model], vec![0f32; n_channels * d_model]);
        let n_rows = BLOCK_ROWS.min(input.pre_acts.n_rows() - input.first);
        for i in 0..n_rows {
            let t = input.first + i;
            let x = &input.x_centered[t * d_model..(t + 1) * d_model];
            let (idx, pre) = input.pre_acts.row(t);
            let row = |j: usize| &input.w_dec[j * d_model..(j + 1) * d_model];

            residual.iter_mut().zip(x).for_each(|(r, x)| *r = -x);
            let mut e = 0;
            for (p, channel) in token.chunks_exact_mut(d_model).take(prefixes.len()).enumerate() {
                while e < idx.len() && (idx[e] as usize) < prefixes.ends[p] {
                    if let Some(&next) = idx.get(e + AHEAD) {
                        prefetch(row(next as usize));
                    }
                    let j = idx[e] as usize;
                    axpy(&mut residual, activation.act(j, pre[e]), row(j));
                    e += 1;
                }
                part.errors[p] += f64::from(dot(&residual, &residual));
                channel.copy_from_slice(&residual);
            }
            if let Some(out) = residuals.get_mut(i * d_model..(i + 1) * d_model) {
                out.copy_from_slice(&residual);
            }
            if A::HAS_GATE {
                let channel = &mut token[prefixes.len() * d_model..];
                channel.iter_mut().zip(x).for_each(|(r, x)| *r = -x);
                for (&j, &pre) in idx.iter().zip(pre) {
                    axpy(channel, activation.gate_act(j as usize, pre), row(j as usize));
                }
                part.errors[prefixes.len()] += f64::from(dot(channel, channel));
                channel.iter_mut().for_each(|g| *g *= scale);
            }
            suffix_sums(&mut token, d_model, prefixes, scale, &mut part.grad_b_dec);
            token.chunks_exact(d_model).enumerate().for_each(|(channel, row)| flow.write(i, channel, row));
        }
        part
    }
}

/// In place: residual p of a token becomes weight[p] · scale · residual p and `reach` times what residual p + 1 has become;
/// with a reach of 1 that is Σ_{q ≥ p} weight[q] · scale · residual q. b_dec is part of every prefix, and receives the sum
/// of all in any case.
#[inline(always)]
pub(super) fn suffix_sums(
    residuals: &mut [f32],
    d_model: usize,
    prefixes: &Prefixes,
    scale: f32,
    grad_b_dec: &mut [f32],
) {
    let Prefixes { weights, reach, .. } = prefixes;
    if *reach != 1.0 {
        for (&weight, residual) in weights.iter().zip(residuals.chunks_exact(d_model)) {
            axpy(grad_b_dec, weight * scale, residual);
        }
    }
    for p in (0..weights.len()).rev() {
        let (before, after) = residuals.split_at_mut((p + 1) * d_model);
        let residual = &mut before[p * d_model..];
        let factor = weights[p] * scale;
        match (p + 1 < weights.len(), *reach) {
            (false, _) => residual.iter_mut().for_each(|r| *r *= factor),
            (true, 1.0) => residual.iter_mut().zip(&after[..d_model]).for_each(|(r, after)| *r = *r * factor + after),
            (true, reach) => {
                residual.iter_mut().zip(&after[..d_model]).for_each(|(r, after)| *r = *r * factor + reach * after);
            }
        }
    }
    if *reach == 1.0 {
        axpy(grad_b_dec, 1.0, &residuals[..d_model]);
    }
}
