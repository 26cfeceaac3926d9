//! The gated SAE: one encoder says whether a latent is active, a rescaled copy of it how strongly.
//!
//! e = (x − b_dec)·W_enc,  gate = e + b_enc,  magnitude = exp(r_mag)·e + b_mag,  z = 1[gate > 0] · max(0, magnitude)
//! L = mean ‖x − x̂(z)‖² + λ · mean Σ max(0, gate) + mean ‖x − x̂(max(0, gate))‖², the last with the decoder held fixed
//!
//! Source: Rajamanoharan et al. 2024, "Improving Dictionary Learning with Gated Sparse Autoencoders", equations 6 to 8.

use crate::activation::{Activation, Flow, Own, Penalty};

pub(crate) struct Gated<'a> {
    /// λ over the number of tokens.
    pub(crate) l1: f32,
    /// All [d_sae].
    pub(crate) b_gate: &'a [f32],
    pub(crate) r_mag: &'a [f32],
    pub(crate) b_mag: &'a [f32],
}

impl Gated<'_> {
    /// e and exp(r_mag)·e + b_mag.
    #[inline(always)]
    fn magnitude(&self, j: usize, pre: f32) -> (f32, f32) {
        let e = pre - self.b_gate[j];
        (e, self.r_mag[j].exp() * e + self.b_mag[j])
    }
}

impl Activation for Gated<'_> {
    const HAS_GATE: bool = true;
    const HAS_OWN: bool = true;
    const ALL_ACTIVE: bool = false;

    #[inline(always)]
    fn act(&self, j: usize, pre: f32) -> f32 {
        if pre > 0.0 { self.magnitude(j, pre).1.max(0.0) } else { 0.0 }
    }

    #[inline(always)]
    fn gate_act(&self, _j: usize, pre: f32) -> f32 {
        pre.max(0.0)
    }

    #[inline(always)]
    fn backward(&self, j: usize, pre: f32, flow: Flow, own: &mut Own) -> f32 {
        if pre <= 0.0 {
            return 0.0;
        }
        let (e, magnitude) = self.magnitude(j, pre);
        let mut grad = flow.gate + self.l1;
        if magnitude > 0.0 {
            let scale = self.r_mag[j].exp();
            own.0[0] += flow.act * scale * e;
            own.0[1] += flow.act;
            grad += flow.act * scale;
        }
        grad
    }

    #[inline(always)]
    fn penalty(&self, _j: usize, pre: f32) -> Penalty {
        Penalty { value: f64::from(self.l1 * pre.max(0.0)), watched: 0.0 }
    }

    /// What comes through the magnitude does not reach the gate's bias.
    #[inline(always)]
    fn bias(&self, j: usize, sum: f32, own: &[f32; 2]) -> f32 {
        sum - self.r_mag[j].exp() * own[1]
    }

    #[inline(always)]
    fn sum(&self, j: usize, bias: f32, own: &[f32; 2]) -> f32 {
        bias + self.r_mag[j].exp() * own[1]
    }
}
