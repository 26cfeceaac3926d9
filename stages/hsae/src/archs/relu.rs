//! The flat ReLU SAE with an L1 penalty, plain or weighted by the length of the decoder's row.
//!
//! L = mean ‖x − x̂‖² + λ · mean Σ_j z_j · w_j,    z = max(0, pre),    w_j = 1 or ‖W_dec[j]‖
//!
//! Sources: Bricken et al. 2023, "Towards Monosemanticity"; for the weighted one, whose decoder rows are free, Conerly et
//! al. 2024, "Update on how we train SAEs" (April update).

use crate::activation::{Activation, Flow, Own, Penalty};

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
    const PULLS_ON_LENGTH: bool = true;

    #[inline(always)]
    fn act(&self, _j: usize, pre: f32) -> f32 {
        pre.max(0.0)
    }

    #[inline(always)]
    fn backward(&self, j: usize, pre: f32, flow: Flow, _own: &mut Own) -> f32 {
        if pre > 0.0 { flow.act + self.l1 * self.weight(j) } else { 0.0 }
    }

    #[inline(always)]
    fn penalty(&self, j: usize, pre: f32) -> Penalty {
        Penalty { value: f64::from(self.l1 * self.weight(j) * pre.max(0.0)), watched: 0.0 }
    }

    #[inline(always)]
    fn length_pull(&self, _j: usize, pre: f32) -> f32 {
        if self.lengths.is_some() { self.l1 * pre.max(0.0) } else { 0.0 }
    }
}
