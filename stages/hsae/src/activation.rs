//! What an architecture does to a pre-activation, and what flows back. Each file under `archs/` says so for its own.

/// One latent on one token. `pre` is (x − b_dec)·W_enc + b_enc.
pub(crate) trait Activation: Sync {
    /// There is a second reconstruction, from `gate_act` with a decoder that it does not train (gated SAEs).
    const HAS_GATE: bool = false;

    /// Whether every listed pre-activation is active: then none has to be looked at again.
    const ALL_ACTIVE: bool = true;

    /// z of latent j, ≥ 0.
    fn act(&self, j: usize, pre: f32) -> f32;

    /// z of the second reconstruction.
    fn gate_act(&self, _j: usize, _pre: f32) -> f32 {
        0.0
    }

    /// ∂L/∂pre, penalties included; per token means carry their 1/B. What flows to the latent's own parameters is added
    /// to `own`.
    fn backward(&self, j: usize, pre: f32, flow: Flow, own: &mut Own) -> f32;

    /// A latent's share of the penalty, summed over tokens.
    fn penalty(&self, _j: usize, _pre: f32) -> f64 {
        0.0
    }

    /// Adds what does not come through entries to the gradient of a decoder row. `sum_act` is Σ_t z.
    fn decoder_row(&self, _j: usize, _sum_act: f64, _w_dec: &[f32], _grad: &mut [f32]) {}
}

/// Gradients that reach an entry from the reconstructions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    pub(crate) act: f32,
    /// 0 without a gate.
    pub(crate) gate: f32,
}

/// Gradients of a latent's own parameters: the threshold, or the gated magnitude's scale and bias.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Own(pub(crate) [f32; 2]);

/// The latents were chosen already; each is its pre-activation: TopK, BatchTopK and all that builds on them.
/// Source: Gao et al. 2024, "Scaling and evaluating sparse autoencoders", §2.3.
pub(crate) struct Kept;

impl Activation for Kept {
    #[inline(always)]
    fn act(&self, _j: usize, pre: f32) -> f32 {
        pre
    }

    #[inline(always)]
    fn backward(&self, _j: usize, _pre: f32, flow: Flow, _own: &mut Own) -> f32 {
        flow.act
    }
}
