//! What an architecture does to a pre-activation, and what flows back. Each file under `archs/` says so for its own.

/// One latent on one token. `pre` is (x − b_dec)·W_enc + b_enc.
pub(crate) trait Activation: Sync {
    /// There is a second reconstruction, from `gate_act` with a decoder that it does not train (gated SAEs).
    const HAS_GATE: bool = false;
    /// Whether every listed pre-activation is active: then none has to be looked at again.
    const ALL_ACTIVE: bool = true;
    /// Whether a token's penalty depends on how many latents are active on it.
    const COUNTS_ACTIVE: bool = false;
    /// Whether latents have parameters of their own.
    const HAS_OWN: bool = false;
    /// Whether `Penalty::watched` is anything.
    const IS_WATCHED: bool = false;
    /// Whether the penalty depends on the length of decoder rows.
    const PULLS_ON_LENGTH: bool = false;

    /// z of latent j, ≥ 0.
    fn act(&self, j: usize, pre: f32) -> f32;

    /// z of the second reconstruction.
    fn gate_act(&self, _j: usize, _pre: f32) -> f32 {
        0.0
    }

    /// ∂L/∂(x·W_enc), penalties included; means over tokens carry their 1/B. What flows to the latent's own parameters is
    /// added to `own`.
    fn backward(&self, j: usize, pre: f32, flow: Flow, own: &mut Own) -> f32;

    /// A latent's share of the penalty on a token, and of what else is watched.
    fn penalty(&self, _j: usize, _pre: f32) -> Penalty {
        Penalty::default()
    }

    /// ∂penalty/∂‖W_dec\[j\]‖ on a token.
    fn length_pull(&self, _j: usize, _pre: f32) -> f32 {
        0.0
    }

    /// What a token's number of active latents costs, and the factor on the gradient of counting one more.
    fn token(&self, _l0: usize) -> (f64, f32) {
        (0.0, 1.0)
    }

    /// ∂L/∂b_enc, where it differs from the sum over tokens of what `backward` returns.
    fn bias(&self, _j: usize, sum: f32, _own: &[f32; 2]) -> f32 {
        sum
    }

    /// The inverse of `bias`.
    fn sum(&self, _j: usize, bias: f32, _own: &[f32; 2]) -> f32 {
        bias
    }
}

/// Gradients that reach an entry from the reconstructions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    pub(crate) act: f32,
    /// 0 without a gate.
    pub(crate) gate: f32,
    /// The factor of `Activation::token`.
    pub(crate) token: f32,
}

/// Gradients of a latent's own parameters: the threshold, or the gated magnitude's scale and bias.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Own(pub(crate) [f32; 2]);

/// Sums over entries.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Penalty {
    /// Part of the loss.
    pub(crate) value: f64,
    /// No part of it, but followed: P-anneal's penalty at its next exponent.
    pub(crate) watched: f64,
}

impl std::ops::AddAssign for Penalty {
    fn add_assign(&mut self, other: Self) {
        self.value += other.value;
        self.watched += other.watched;
    }
}

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
