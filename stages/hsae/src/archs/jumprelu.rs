//! The JumpReLU SAE: each latent has a threshold, trained through a window around it.
//!
//! z = pre · 1[pre > θ],    L = mean ‖x − x̂‖² + λ · mean S
//!
//! where S is the number of active latents (Rajamanoharan et al.), Σ tanh(s·z_j·‖W_dec[j]‖) (Conerly et al.), or
//! 2/L0* · (number of active latents − L0*)² (Gemma Scope 2). The step has no gradient; in its place, a latent whose
//! pre-activation lies within half a bandwidth ε of its threshold passes ∂z/∂θ = −θ/ε and ∂1[pre > θ]/∂θ = −1/ε.
//!
//! Sources: Rajamanoharan et al. 2024, "Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU Sparse
//! Autoencoders", equations 9 to 12; Conerly, Cunningham et al. 2025, "Dictionary Learning Optimization Techniques"
//! (tanh, pre-activation loss, gradients to the input); Google DeepMind 2025, "Gemma Scope 2" (quadratic).

use rayon::prelude::*;

use crate::activation::{Activation, Flow, Own, Penalty};
use crate::gradients::Extra;
use crate::kernels::{EncoderInput, axpy, dot, vectorised};

pub(crate) struct JumpRelu<'a> {
    /// θ, [d_sae], ≥ 0.
    pub(crate) threshold: &'a [f32],
    /// ε.
    pub(crate) bandwidth: f32,
    /// λ over the number of tokens.
    pub(crate) coefficient: f32,
    pub(crate) sparsity: Sparsity,
    /// The window's gradients reach the pre-activation too, with the sign turned.
    pub(crate) reaches_input: bool,
    /// ‖W_dec[j]‖, [d_sae]; read by tanh alone.
    pub(crate) lengths: &'a [f32],
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Sparsity {
    Step,
    Tanh { scale: f32 },
    Quadratic { target: f32 },
}

impl JumpRelu<'_> {
    /// tanh's argument over z, and tanh itself.
    #[inline(always)]
    fn tanh(&self, scale: f32, j: usize, pre: f32) -> (f32, f32) {
        let slope = scale * self.lengths[j];
        (slope, (slope * self.act(j, pre)).tanh())
    }
}

impl Activation for JumpRelu<'_> {
    const ALL_ACTIVE: bool = false;
    const HAS_OWN: bool = true;
    const COUNTS_ACTIVE: bool = true;
    const PULLS_ON_LENGTH: bool = true;

    #[inline(always)]
    fn act(&self, j: usize, pre: f32) -> f32 {
        if pre > self.threshold[j] { pre } else { 0.0 }
    }

    #[inline(always)]
    fn backward(&self, j: usize, pre: f32, flow: Flow, own: &mut Own) -> f32 {
        let threshold = self.threshold[j];
        let (is_active, is_near) = (pre > threshold, ((pre - threshold) / self.bandwidth).abs() < 0.5);
        if !is_active && !is_near {
            return 0.0;
        }
        let (mut grad_act, mut grad_count) = (flow.act, 0.0);
        match self.sparsity {
            Sparsity::Tanh { scale } => {
                let (slope, tanh) = self.tanh(scale, j, pre);
                grad_act += self.coefficient * slope * (1.0 - tanh * tanh);
            }
            Sparsity::Step | Sparsity::Quadratic { .. } => grad_count = self.coefficient * flow.token,
        }
        let near = if is_near { (threshold * grad_act + grad_count) / self.bandwidth } else { 0.0 };
        own.0[0] -= near;
        let through = if is_active { grad_act } else { 0.0 };
        if self.reaches_input { through + near } else { through }
    }

    #[inline(always)]
    fn penalty(&self, j: usize, pre: f32) -> Penalty {
        let value = match self.sparsity {
            Sparsity::Step => f32::from(pre > self.threshold[j]),
            Sparsity::Tanh { scale } => self.tanh(scale, j, pre).1,
            Sparsity::Quadratic { .. } => 0.0,
        };
        Penalty { value: f64::from(self.coefficient * value), watched: 0.0 }
    }

    #[inline(always)]
    fn length_pull(&self, j: usize, pre: f32) -> f32 {
        let Sparsity::Tanh { scale } = self.sparsity else { return 0.0 };
        let (_, tanh) = self.tanh(scale, j, pre);
        self.coefficient * scale * self.act(j, pre) * (1.0 - tanh * tanh)
    }

    #[inline(always)]
    fn token(&self, l0: usize) -> (f64, f32) {
        let Sparsity::Quadratic { target } = self.sparsity else { return (0.0, 1.0) };
        let excess = l0 as f32 - target;
        (f64::from(self.coefficient * 2.0 / target * excess * excess), 4.0 / target * excess)
    }
}

/// Pulls dead latents' pre-activations up to their thresholds: coefficient · mean Σ_dead max(0, θ − pre)·‖W_dec‖.
pub(crate) struct PreActLoss<'a> {
    /// Over the number of tokens.
    pub(crate) coefficient: f32,
    /// Ascending.
    pub(crate) dead: &'a [u32],
    pub(crate) threshold: &'a [f32],
    /// [d_sae, d_model].
    pub(crate) w_dec: &'a [f32],
}

impl PreActLoss<'_> {
    /// The loss and its gradients.
    pub(crate) fn run(&self, input: &EncoderInput) -> (f64, Extra) {
        let rows: Vec<DeadRow> = self.dead.par_iter().map(|&j| dead_row(self, input, j as usize)).collect();
        let loss = rows.iter().map(|row| row.loss).sum();
        let concatenated = |part: fn(&DeadRow) -> &Vec<f32>| rows.iter().flat_map(part).copied().collect();
        let extra = Extra {
            latents: self.dead.to_vec(),
            w_enc: concatenated(|row| &row.w_enc),
            w_dec: concatenated(|row| &row.w_dec),
            b_enc: rows.iter().map(|row| row.b_enc).collect(),
            // θ is pulled down as far as the bias is pulled up.
            own: rows.iter().map(|row| [-row.b_enc, 0.0]).collect(),
        };
        (loss, extra)
    }
}

struct DeadRow {
    loss: f64,
    w_enc: Vec<f32>,
    b_enc: f32,
    w_dec: Vec<f32>,
}

vectorised! {
    fn dead_row(term: &PreActLoss, input: &EncoderInput, j: usize) -> DeadRow {
        let d_model = input.d_model;
        let decoder = &term.w_dec[j * d_model..(j + 1) * d_model];
        let length = dot(decoder, decoder).sqrt();
        let mut row = DeadRow { loss: 0.0, w_enc: vec![0.0; d_model], b_enc: 0.0, w_dec: vec![0.0; d_model] };
        let pull = term.coefficient * length;
        let mut missing_in_all = 0f32;
        for t in 0..input.n_rows() {
            let missing = term.threshold[j] - input.pre_act(t, j);
            if missing > 0.0 {
                missing_in_all += missing;
                axpy(&mut row.w_enc, -pull, &input.x_centered[t * d_model..(t + 1) * d_model]);
                row.b_enc -= pull;
            }
        }
        row.loss = f64::from(pull) * f64::from(missing_in_all);
        axpy(&mut row.w_dec, term.coefficient * missing_in_all / length.max(f32::MIN_POSITIVE), decoder);
        row
    }
}
