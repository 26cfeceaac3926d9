//! Adam with a learning rate per latent, the gradient's component along each decoder row removed, the whole gradient
//! clipped, and decoder rows of unit length. Moments and weights are updated row by row, in place.

use rayon::prelude::*;

use crate::kernels::{axpy, dot, vectorised};
use crate::weights::{Gradients, Weights, normalise_row};

/// Latents per parallel piece of work, and per partial sum of the gradient's norm.
const BLOCK_LATENTS: usize = 64;
const EPSILON: f32 = 1e-8;

/// Kingma & Ba 2015, "Adam: a method for stochastic optimization", algorithm 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Adam {
    pub beta1: f32,
    pub beta2: f32,
    pub max_grad_norm: f32,
    /// Steps done.
    pub step: u64,
    /// First and second moments, shaped like the parameters they belong to.
    pub first: Moments,
    pub second: Moments,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    pub w_enc: Vec<f32>,
    pub b_enc: Vec<f32>,
    pub w_dec: Vec<f32>,
    pub b_dec: Vec<f32>,
}

impl Moments {
    fn zeros(d_model: usize, d_sae: usize) -> Self {
        Self {
            w_enc: vec![0.0; d_sae * d_model],
            b_enc: vec![0.0; d_sae],
            w_dec: vec![0.0; d_sae * d_model],
            b_dec: vec![0.0; d_model],
        }
    }
}

impl Adam {
    pub fn new(d_model: usize, d_sae: usize, beta1: f64, beta2: f64, max_grad_norm: f64) -> Self {
        Self {
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            max_grad_norm: max_grad_norm as f32,
            step: 0,
            first: Moments::zeros(d_model, d_sae),
            second: Moments::zeros(d_model, d_sae),
        }
    }

    /// One step. `lr_rows` [d_sae] is the learning rate of each latent, `lr` that of b_dec. Returns the gradient's norm
    /// before clipping, its part along the decoder rows already removed.
    pub fn update(&mut self, weights: &mut Weights, mut grads: Gradients, lr_rows: &[f32], lr: f32) -> f32 {
        let d_model = weights.d_model;
        remove_parallel_part(&mut grads.w_dec, &weights.w_dec, d_model);
        let norm = norm(&grads, d_model);
        let clip = if norm > self.max_grad_norm { self.max_grad_norm / norm } else { 1.0 };
        self.step += 1;
        let correction = |beta: f32| (1.0 - f64::from(beta).powf(self.step as f64)) as f32;
        let rule = Rule {
            beta1: self.beta1,
            beta2: self.beta2,
            clip,
            first_scale: 1.0 / correction(self.beta1),
            second_scale: 1.0 / correction(self.beta2).sqrt(),
        };
        let (m, v) = (&mut self.first, &mut self.second);
        rule.rows(&mut weights.w_enc, &mut m.w_enc, &mut v.w_enc, &grads.w_enc, lr_rows, d_model);
        rule.rows(&mut weights.w_dec, &mut m.w_dec, &mut v.w_dec, &grads.w_dec, lr_rows, d_model);
        rule.rows(&mut weights.b_enc, &mut m.b_enc, &mut v.b_enc, &grads.b_enc, lr_rows, 1);
        rule.apply(&mut weights.b_dec, &mut m.b_dec, &mut v.b_dec, &grads.b_dec, lr);
        weights.w_dec.par_chunks_mut(d_model * BLOCK_LATENTS).for_each(|rows| {
            vectorised(|| rows.chunks_exact_mut(d_model).for_each(normalise_row));
        });
        norm
    }
}

/// Removes from each decoder row's gradient what would only change the row's length, which is fixed.
/// Source: Bricken et al. 2023, "Towards Monosemanticity", appendix on training.
fn remove_parallel_part(grad: &mut [f32], w_dec: &[f32], d_model: usize) {
    let rows = grad.par_chunks_mut(d_model * BLOCK_LATENTS).zip(w_dec.par_chunks(d_model * BLOCK_LATENTS));
    rows.for_each(|(grad, w_dec)| {
        vectorised(|| {
            for (grad, w) in grad.chunks_exact_mut(d_model).zip(w_dec.chunks_exact(d_model)) {
                let along = dot(grad, w);
                axpy(grad, -along, w);
            }
        });
    });
}

/// L2 norm of the whole gradient, from partial sums that are folded in order.
fn norm(grads: &Gradients, d_model: usize) -> f32 {
    let sum = |values: &[f32]| -> f64 {
        let parts: Vec<f64> = values
            .par_chunks(d_model * BLOCK_LATENTS)
            .map(|rows| vectorised(|| rows.chunks(d_model).map(|row| f64::from(dot(row, row))).sum()))
            .collect();
        parts.iter().sum()
    };
    (sum(&grads.w_enc) + sum(&grads.b_enc) + sum(&grads.w_dec) + sum(&grads.b_dec)).sqrt() as f32
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
}

impl Rule {
    /// Rows of width `d`, each with its own learning rate.
    fn rows(&self, w: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], lr_rows: &[f32], d: usize) {
        let block = d * BLOCK_LATENTS;
        let moments = m.par_chunks_mut(block).zip(v.par_chunks_mut(block));
        let blocks =
            w.par_chunks_mut(block).zip(moments).zip(g.par_chunks(block)).zip(lr_rows.par_chunks(BLOCK_LATENTS));
        blocks.for_each(|(((w, (m, v)), g), lr)| {
            vectorised(|| {
                for (i, &lr) in lr.iter().enumerate() {
                    let row = i * d..(i + 1) * d;
                    self.apply(&mut w[row.clone()], &mut m[row.clone()], &mut v[row.clone()], &g[row], lr);
                }
            });
        });
    }

    #[inline(always)]
    fn apply(&self, w: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], lr: f32) {
        let step = lr * self.first_scale;
        for (((w, m), v), g) in w.iter_mut().zip(m).zip(v).zip(g) {
            let g = g * self.clip;
            *m = self.beta1 * *m + (1.0 - self.beta1) * g;
            *v = self.beta2 * *v + (1.0 - self.beta2) * g * g;
            *w -= step * *m / (v.sqrt() * self.second_scale + EPSILON);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three steps written out as the paper has them, in f64.
    #[test]
    fn agrees_with_the_paper() {
        let (d_model, d_sae) = (3, 2);
        let mut weights = Weights::init(1, d_model, d_sae, &[0.1, 0.2, 0.3]);
        let mut expected: Vec<f64> = weights.w_enc.iter().map(|&w| f64::from(w)).collect();
        let (mut m, mut v) = (vec![0f64; 6], vec![0f64; 6]);
        let mut adam = Adam::new(d_model, d_sae, 0.9, 0.999, 1e9);
        let lr = [0.01, 0.002];
        for step in 1..=3usize {
            let g: Vec<f32> = (0..6).map(|i| ((i + step) as f32).sin()).collect();
            let grads = Gradients { w_enc: g.clone(), b_enc: vec![0.0; 2], w_dec: vec![0.0; 6], b_dec: vec![0.0; 3] };
            adam.update(&mut weights, grads, &lr, 0.01);
            for i in 0..6 {
                let g = f64::from(g[i]);
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.999 * v[i] + 0.001 * g * g;
                let (m_hat, v_hat) =
                    (m[i] / (1.0 - 0.9f64.powi(step as i32)), v[i] / (1.0 - 0.999f64.powi(step as i32)));
                expected[i] -= f64::from(lr[i / 3]) * m_hat / (v_hat.sqrt() + 1e-8);
            }
        }
        for (found, expected) in weights.w_enc.iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() <= 1e-6, "{found} {expected}");
        }
    }

    #[test]
    fn decoder_rows_keep_their_length_and_feel_no_pull_along_themselves() {
        let mut weights = Weights::init(2, 8, 5, &[0.0; 8]);
        let before = weights.w_dec.clone();
        let mut adam = Adam::new(8, 5, 0.9, 0.999, 1e9);
        // A gradient along the rows and nothing else.
        let grads = Gradients { w_enc: vec![0.0; 40], b_enc: vec![0.0; 5], w_dec: before.clone(), b_dec: vec![0.0; 8] };
        let norm = adam.update(&mut weights, grads, &[0.0; 5], 0.0);
        assert!(norm <= 1e-6, "{norm}");
        for row in weights.w_dec.chunks(8) {
            assert!((dot(row, row) - 1.0).abs() <= 1e-6);
        }
    }

    #[test]
    fn long_gradients_are_clipped() {
        let mut weights = Weights::init(3, 2, 1, &[0.0; 2]);
        let mut adam = Adam::new(2, 1, 0.9, 0.999, 1.0);
        let grads = Gradients { w_enc: vec![30.0, 40.0], b_enc: vec![0.0], w_dec: vec![0.0; 2], b_dec: vec![0.0; 2] };
        let norm = adam.update(&mut weights, grads, &[0.1], 0.1);
        assert!((norm - 50.0).abs() <= 1e-4, "{norm}");
        assert!((adam.first.w_enc[0] - 0.1 * 0.6).abs() <= 1e-6);
    }
}
