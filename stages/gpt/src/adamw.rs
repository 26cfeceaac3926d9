//! AdamW on one vector of parameters, and the learning rate over the steps.

use rayon::prelude::*;

use crate::host::PIECE;
use crate::shape::{Kind, Shape};
use slices::vectorised;

const EPSILON: f32 = 1e-8;

/// Loshchilov & Hutter 2019, "Decoupled weight decay regularization", algorithm 2, the whole gradient clipped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    pub beta1: f32,
    pub beta2: f32,
    /// Of matrices; gains do not decay.
    pub weight_decay: f32,
    /// Longer gradients are scaled down to this.
    pub max_grad_norm: f64,
}

/// Everything that training changes.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    pub weights: Vec<f32>,
    /// First and second moments.
    pub first: Vec<f32>,
    pub second: Vec<f32>,
    /// Steps done.
    pub step: u64,
}

impl State {
    pub fn new(weights: Vec<f32>) -> Self {
        let zeros = vec![0.0; weights.len()];
        Self { weights, first: zeros.clone(), second: zeros, step: 0 }
    }
}

/// The numbers of one step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rule {
    pub(crate) beta1: f32,
    pub(crate) beta2: f32,
    /// Factor on the gradient.
    pub(crate) clip: f32,
    /// Learning rate over the first moment's bias correction.
    pub(crate) rate: f32,
    /// Of the root of the second moment.
    pub(crate) second_scale: f32,
    /// What a matrix keeps of itself.
    pub(crate) keep: f32,
    pub(crate) epsilon: f32,
}

impl AdamW {
    /// `step` counts from 1.
    pub(crate) fn rule(&self, step: u64, lr: f64, grad_norm: f64) -> Rule {
        let correction = |beta: f32| 1.0 - f64::from(beta).powf(step as f64);
        Rule {
            beta1: self.beta1,
            beta2: self.beta2,
            clip: if grad_norm > self.max_grad_norm { (self.max_grad_norm / grad_norm) as f32 } else { 1.0 },
            rate: (lr / correction(self.beta1)) as f32,
            second_scale: (1.0 / correction(self.beta2).sqrt()) as f32,
            keep: (1.0 - lr * f64::from(self.weight_decay)) as f32,
            epsilon: EPSILON,
        }
    }

    /// One step. Shapes: grads like the parameters; `grad_norm` is their length.
    pub fn update(&self, shape: &Shape, state: &mut State, grads: &[f32], lr: f64, grad_norm: f64) {
        state.step += 1;
        let rule = self.rule(state.step, lr, grad_norm);
        for parameter in shape.parameters() {
            let rule = if parameter.kind == Kind::Gain { Rule { keep: 1.0, ..rule } } else { rule };
            let place = || parameter.place.clone();
            let weights = state.weights[place()].par_chunks_mut(PIECE);
            let moments = state.first[place()].par_chunks_mut(PIECE).zip(state.second[place()].par_chunks_mut(PIECE));
            let pieces = weights.zip(moments).zip(grads[place()].par_chunks(PIECE));
            pieces.for_each(|((weights, (first, second)), grads)| rule.apply(weights, first, second, grads));
        }
    }
}

impl Rule {
    fn apply(&self, weights: &mut [f32], first: &mut [f32], second: &mut [f32], grads: &[f32]) {
        vectorised(
            #[inline(always)]
            || {
                for (((w, m), v), &g) in weights.iter_mut().zip(first).zip(second).zip(grads) {
                    let g = g * self.clip;
                    *m = self.beta1 * *m + (1.0 - self.beta1) * g;
                    *v = self.beta2 * *v + (1.0 - self.beta2) * g * g;
                    *w = *w * self.keep - self.rate * *m / (v.sqrt() * self.second_scale + self.epsilon);
                }
            },
        );
    }
}

/// A rise in a line, then half a cosine down to `lr_min`: Loshchilov & Hutter 2017, "SGDR", equation 5, without restarts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    pub lr: f64,
    pub lr_min: f64,
    pub warmup_steps: u64,
    pub n_steps: u64,
}

impl Schedule {
    /// Of a step, counted from 0.
    pub fn lr(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.lr * (step + 1) as f64 / (self.warmup_steps + 1) as f64;
        }
        let n_falling = (self.n_steps.saturating_sub(self.warmup_steps)).max(1);
        let share = ((step - self.warmup_steps) as f64 / n_falling as f64).min(1.0);
        self.lr_min + 0.5 * (1.0 + (std::f64::consts::PI * share).cos()) * (self.lr - self.lr_min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_in_a_line_and_falls_as_a_cosine() {
        let schedule = Schedule { lr: 1.0, lr_min: 0.1, warmup_steps: 9, n_steps: 109 };
        for (step, expected) in
            [(0, 0.1), (4, 0.5), (9, 1.0), (59, 0.55), (34, 0.55 + 0.45 * 0.5f64.sqrt()), (109, 0.1)]
        {
            assert!((schedule.lr(step) - expected).abs() <= 1e-12, "{step}: {}", schedule.lr(step));
        }
        assert!((1..109).all(|step| schedule.lr(step) > 0.1));
    }

    #[test]
    fn gains_do_not_decay_and_long_gradients_are_cut() {
        let shape = Shape { n_layers: 1, n_heads: 1, d_model: 2, context_length: 2, n_vocab: 3 };
        let adam = AdamW { beta1: 0.9, beta2: 0.99, weight_decay: 0.5, max_grad_norm: 1.0 };
        let n = shape.n_parameters();
        let mut state = State::new(vec![1.0; n]);
        adam.update(&shape, &mut state, &vec![0.0; n], 0.1, 0.0);
        for parameter in shape.parameters() {
            let expected = if parameter.kind == Kind::Gain { 1.0 } else { 0.95 };
            assert!(state.weights[parameter.place].iter().all(|&w| w == expected), "{}", parameter.name);
        }
        let mut state = State::new(vec![0.0; n]);
        adam.update(&shape, &mut state, &vec![8.0; n], 0.1, 16.0);
        assert!(state.first.iter().all(|&m| (m - 0.05).abs() <= 1e-7), "{:?}", state.first);
    }
}
