//! The flat ReLU SAE with an L1 penalty, plain or weighted by the length of the decoder's row.
//!
//! L = mean ‖x − x̂‖² + λ · mean Σ_j z_j · w_j,    z = max(0, pre),    w_j = 1 or ‖W_dec[j]‖
//!
//! Sources: Bricken et al. 2023, "Towards Monosemanticity"; for the weighted one, whose decoder rows are free, Conerly et
//! al. 2024, "Update on how we train SAEs" (April update).

use crate::activation::{Activation, Flow, Own};
use crate::kernels::{axpy, dot};

pub(crate) struct Relu {
    /// λ over the number of tokens.
    pub(crate) l1: f32,
    /// ‖W_dec[j]‖, [d_sae]; None: every latent weighs 1.
    pub(crate) lengths: Option<Vec<f32>>,
}

impl Relu {
    #[inline(always)]
    fn weight(&self, j: usize) -> f32 {
        self.lengths.as_ref().map_or(1.0, |lengths| lengths[j])
    }
}

impl Activation for Relu {
    #[inline(always)]
    fn act(&self, _j: usize, pre: f32) -> f32 {
        pre.max(0.0)
    }

    #[inline(always)]
    fn backward(&self, j: usize, pre: f32, flow: Flow, _own: &mut Own) -> f32 {
        if pre > 0.0 { flow.act + self.l1 * self.weight(j) } else { 0.0 }
    }

    #[inline(always)]
    fn penalty(&self, j: usize, pre: f32) -> f64 {
        f64::from(self.l1 * self.weight(j) * pre.max(0.0))
    }

    /// ∂/∂W_dec[j] of λ z_j ‖W_dec[j]‖.
    #[inline(always)]
    fn decoder_row(&self, _j: usize, sum_act: f64, w_dec: &[f32], grad: &mut [f32]) {
        if self.lengths.is_some() {
            let length = dot(w_dec, w_dec).sqrt().max(f32::MIN_POSITIVE);
            axpy(grad, self.l1 * sum_act as f32 / length, w_dec);
        }
    }
}
