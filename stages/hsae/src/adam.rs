//! Adam with a learning rate per latent, the whole gradient clipped, and decoder rows of unit length where they are
//! constrained. Weights, moments and the packed encoder are updated row by row, in place, in one pass.

use rayon::prelude::*;

use crate::gradients::Gradients;
use crate::kernels::screen::{PANEL, PackedEncoder};
use crate::kernels::{axpy, dot, vectorised};
use crate::weights::{Weights, normalise_row};

const EPSILON: f32 = 1e-8;

/// Lengths of decoder rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lengths {
    Free,
    /// 1 after each step.
    UnitAfter,
    /// 1 before each step, which is then across the rows as well; they keep what it makes of them.
    UnitBefore,
}

/// Kingma & Ba 2015, "Adam: a method for stochastic optimization", algorithm 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Adam {
    pub beta1: f32,
    pub beta2: f32,
    pub max_grad_norm: f32,
    pub lengths: Lengths,
    pub epsilon: f32,
    /// Steps done.
    pub step: u64,
    /// First and second moments, shaped like the parameters they belong to.
    pub first: Weights,
    pub second: Weights,
}

impl Adam {
    pub fn new(weights: &Weights, beta1: f64, beta2: f64, max_grad_norm: f64, lengths: Lengths) -> Self {
        Self {
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            max_grad_norm: max_grad_norm as f32,
            lengths,
            epsilon: EPSILON,
            step: 0,
            first: weights.zeros_like(),
            second: weights.zeros_like(),
        }
    }

    /// One step. `lr_rows` [d_sae] is the learning rate of each latent, `lr` that of b_dec; `sum_of_squares` is that of
    /// the whole gradient without the decoder rows' parts `along` them, [d_sae], which would only change lengths that
    /// are fixed. Returns its norm before clipping.
    /// Source of the latter: Bricken et al. 2023, "Towards Monosemanticity", appendix on training.
    #[expect(clippy::too_many_arguments, reason = "what a step changes, and what it reads")]
    pub(crate) fn update(
        &mut self,
        weights: &mut Weights,
        packed: &mut PackedEncoder,
        grads: &Gradients,
        sum_of_squares: f64,
        along: &[f32],
        lr_rows: &[f32],
        lr: f32,
    ) -> f32 {
        let d_model = weights.d_model;
        let norm = sum_of_squares.sqrt() as f32;
        let clip = if norm > self.max_grad_norm { self.max_grad_norm / norm } else { 1.0 };
        self.step += 1;
        let correction = |beta: f32| (1.0 - f64::from(beta).powf(self.step as f64)) as f32;
        let rule = Rule {
            beta1: self.beta1,
            beta2: self.beta2,
            clip,
            first_scale: 1.0 / correction(self.beta1),
            second_scale: 1.0 / correction(self.beta2).sqrt(),
            epsilon: self.epsilon,
        };
        let lengths = self.lengths;
        let (m, v) = (&mut self.first, &mut self.second);
        let block = PANEL * d_model;
        let w_enc = weights.w_enc.par_chunks_mut(block).zip(m.w_enc.par_chunks_mut(block));
        let w_enc = w_enc.zip(v.w_enc.par_chunks_mut(block).zip(grads.w_enc.par_chunks(block)));
        let w_dec = weights.w_dec.par_chunks_mut(block).zip(m.w_dec.par_chunks_mut(block));
        let w_dec = w_dec.zip(v.w_dec.par_chunks_mut(block).zip(grads.w_dec.par_chunks(block)));
        let rows = lr_rows.par_chunks(PANEL).zip(along.par_chunks(PANEL));
        w_enc.zip(w_dec).zip(packed.blocks()).zip(rows).for_each(
            |(((((enc, m_enc), (v_enc, g_enc)), ((dec, m_dec), (v_dec, g_dec))), mut panel), (lr, along))| {
                update_rows(&rule, enc, m_enc, v_enc, g_enc, lr, (Lengths::Free, along));
                update_rows(&rule, dec, m_dec, v_dec, g_dec, lr, (lengths, along));
                panel.pack(enc);
            },
        );
        for (j, &lr) in lr_rows.iter().enumerate() {
            let one = j..j + 1;
            let at = || one.clone();
            rule.apply(&mut weights.b_enc[at()], &mut m.b_enc[at()], &mut v.b_enc[at()], &grads.b_enc[at()], lr);
            for (i, ((own, m), v)) in weights.own.iter_mut().zip(&mut m.own).zip(&mut v.own).enumerate() {
                rule.apply(&mut own[at()], &mut m[at()], &mut v[at()], &grads.own[j][i..i + 1], lr);
            }
        }
        rule.apply(&mut weights.b_dec, &mut m.b_dec, &mut v.b_dec, &grads.b_dec, lr);
        norm
    }
}

vectorised! {
    /// Some neighbouring rows, each with its own learning rate, their lengths, and how far gradients go along them where
    /// they have length 1.
    fn update_rows(
        rule: &Rule,
        w: &mut [f32],
        m: &mut [f32],
        v: &mut [f32],
        g: &[f32],
        lr: &[f32],
        rows: (Lengths, &[f32]),
    ) {
        let (lengths, along) = rows;
        let d = w.len() / lr.len();
        let mut across = vec![0f32; d];
        let moments = m.chunks_exact_mut(d).zip(v.chunks_exact_mut(d));
        for (i, ((w, (m, v)), g)) in w.chunks_exact_mut(d).zip(moments).zip(g.chunks_exact(d)).enumerate() {
            match lengths {
                Lengths::UnitAfter => {
                    across.copy_from_slice(g);
                    axpy(&mut across, -along[i], w);
                    rule.apply(w, m, v, &across, lr[i]);
                    normalise_row(w);
                }
                Lengths::UnitBefore => {
                    normalise_row(w);
                    across.copy_from_slice(g);
                    axpy(&mut across, -dot(g, w), w);
                    rule.apply(w, m, v, &across, lr[i]);
                }
                Lengths::Free => rule.apply(w, m, v, g, lr[i]),
            }
        }
    }
}

/// Adam's update with the numbers of one step filled in.
struct Rule {
    beta1: f32,
    beta2: f32,
    /// Factor on the gradient.
    clip: f32,
    /// Bias corrections, of the moment and of the root of the second moment.
    first_scale: f32,
    second_scale: f32,
    epsilon: f32,
}

impl Rule {
    #[inline(always)]
    fn apply(&self, w: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], lr: f32) {
        let step = lr * self.first_scale;
        for (((w, m), v), g) in w.iter_mut().zip(m).zip(v).zip(g) {
            let g = g * self.clip;
            *m = self.beta1 * *m + (1.0 - self.beta1) * g;
            *v = self.beta2 * *v + (1.0 - self.beta2) * g * g;
            *w -= step * *m / (v.sqrt() * self.second_scale + self.epsilon);
        }
    }
}

#[cfg(test)]
#[path = "adam/tests.rs"]
mod tests;
