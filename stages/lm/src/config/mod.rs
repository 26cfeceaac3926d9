//! What kind of model it is: its numbers, and which of the known variations of a transformer it has.

mod gguf;
mod huggingface;

use anyhow::{Result, bail, ensure};

pub(crate) use huggingface::{Described, Family};

/// The architecture's numbers and variations.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Width of the residual stream.
    pub d_model: usize,
    /// Number of blocks.
    pub n_layers: usize,
    /// Query heads of a block.
    pub n_heads: usize,
    /// Key and value heads of a block; each serves `n_heads / n_kv_heads` query heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub d_head: usize,
    /// Width of the feed-forward part.
    pub d_ffn: usize,
    /// Rows of the embedding. A tokenizer may have fewer tokens: sizes are often rounded up.
    pub n_vocab: usize,
    /// Longest context, in tokens, that the model was made for.
    pub context_length: usize,
    pub norm: Norm,
    pub positions: Positions,
    pub attention: Attention,
    pub feed_forward: FeedForward,
    /// Attention and feed-forward part both read the block's input, and both are added to it.
    pub is_parallel: bool,
    /// What token embeddings are multiplied by before the first block.
    pub embedding_scale: f32,
    /// Logits are bounded to ± this, by c · tanh(logit / c).
    pub logit_softcap: Option<f32>,
}

/// The norm in front of each part of a block and behind the last block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    pub kind: NormKind,
    pub eps: f32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// x / √(mean x² + ε) · gain: Zhang & Sennrich 2019.
    Rms,
    /// (x − mean x) / √(variance + ε) · gain + bias: Ba et al. 2016.
    Layer,
}

/// How a model knows where a token stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Positions {
    /// A learned vector for each position, added to the embedding.
    Learned,
    /// Queries and keys are turned by angles.
    Rotary(Rotary),
}

/// The rotary position embedding: Su et al. 2021, "RoFormer".
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// Base of the frequencies.
    pub base: f64,
    /// The first values of each head that are turned; the others stay.
    pub n_rotary: usize,
    /// Every frequency is divided by this.
    pub factor: f64,
    /// Llama 3.1's way to longer contexts: only slow frequencies are divided.
    pub stretch: Option<Stretch>,
    /// What each frequency is divided by, where a file lists them; else empty.
    pub divisors: Vec<f64>,
}

/// Frequencies whose waves are longer than `original_context / low` are divided by `factor`, those shorter than
/// `original_context / high` are not, and in between there is a smooth passage.
#[derive(Clone, Debug, PartialEq)]
pub struct Stretch {
    pub factor: f64,
    pub low: f64,
    pub high: f64,
    pub original_context: f64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// What scores are multiplied by.
    pub scale: f32,
    /// Scores are bounded to ± this, by c · tanh(score / c).
    pub softcap: Option<f32>,
    /// Of each block, how many positions a token sees, itself among them. None, or no such entry: all before it.
    pub windows: Vec<Option<usize>>,
    /// Each head of queries and keys has a norm of its own, before it is turned.
    pub has_qk_norm: bool,
}

impl Attention {
    /// How many positions a token of this block sees, where it does not see all before it.
    pub(crate) fn window(&self, block: usize) -> Option<usize> {
        self.windows.get(block).copied().flatten()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedForward {
    pub activation: Activation,
    /// activation(gate) · up in place of activation(up): Shazeer 2020.
    pub is_gated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x / (1 + e⁻ˣ).
    Silu,
    /// x Φ(x), with the normal distribution's Φ: Hendrycks & Gimpel 2016.
    Gelu,
    /// Its approximation by tanh.
    GeluTanh,
}

/// No size in a model comes near this; a larger figure is a damaged file, and smaller ones cannot overflow when two or
/// three of them are multiplied.
const MAX_SIZE: usize = 1 << 20;

impl ModelConfig {
    /// What must hold whatever the file says. `key` names a number as the file does.
    fn check(self, key: impl Fn(&str) -> String) -> Result<Self> {
        let Self { n_heads, n_kv_heads, d_head, .. } = self;
        ensure!(
            n_heads.is_multiple_of(n_kv_heads),
            "{} = {n_heads} is not a multiple of {} = {n_kv_heads}",
            key("n_heads"),
            key("n_kv_heads")
        );
        if let Positions::Rotary(rotary) = &self.positions {
            let n = rotary.n_rotary;
            ensure!(
                n.is_multiple_of(2) && n <= d_head,
                "{n} rotary values of a head of {d_head} are no pairs within it"
            );
            ensure!(rotary.base.is_finite() && rotary.base > 1.0, "{} = {} is no base", key("rope_base"), rotary.base);
        }
        let eps = self.norm.eps;
        ensure!(eps.is_finite() && eps > 0.0, "{} = {eps}, expected a small positive number", key("norm_eps"));
        for (name, cap) in [("attention_softcap", self.attention.softcap), ("logit_softcap", self.logit_softcap)] {
            if let Some(cap) = cap
                && !(cap.is_finite() && cap > 0.0)
            {
                bail!("{} = {cap} must be a positive number", key(name));
            }
        }
        Ok(self)
    }

    /// Width of queries, keys and values side by side.
    pub(crate) fn d_qkv(&self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.d_head
    }
}
