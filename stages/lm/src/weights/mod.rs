//! A model's weights by what they are for, as plain f32, wherever they come from.

mod gguf;
mod huggingface;

use anyhow::Result;

pub(crate) use gguf::{DIVISORS, GgufWeights};
pub(crate) use huggingface::FolderWeights;

/// A dense layer. `rows` is [d_out, d_in], `bias` [d_out], or empty where it has none.
#[derive(Clone, Debug, Default)]
pub(crate) struct LinearWeights {
    pub(crate) rows: Vec<f32>,
    pub(crate) bias: Vec<f32>,
}

/// A norm. Both [d]; `bias` is empty where it has none.
#[derive(Clone, Debug, Default)]
pub(crate) struct NormWeights {
    pub(crate) gain: Vec<f32>,
    pub(crate) bias: Vec<f32>,
}

/// One block's weights.
#[derive(Clone, Debug, Default)]
pub(crate) struct BlockWeights {
    pub(crate) attn_norm: NormWeights,
    /// Queries, keys and values stacked: [(n_heads + 2 · n_kv_heads) · d_head, d_model]. Rotary pairs are rows i and
    /// i + n_rotary / 2 of a head.
    pub(crate) qkv: LinearWeights,
    /// Gains of the norms of a head of queries and of keys, [d_head]; empty where they have none.
    pub(crate) query_norm: Vec<f32>,
    pub(crate) key_norm: Vec<f32>,
    /// [d_model, n_heads · d_head].
    pub(crate) attn_out: LinearWeights,
    /// The norm of what attention adds, where it has one.
    pub(crate) attn_post_norm: Option<NormWeights>,
    pub(crate) ffn_norm: NormWeights,
    /// Gate and up stacked: [2 · d_ffn, d_model]; without a gate [d_ffn, d_model].
    pub(crate) up: LinearWeights,
    /// [d_model, d_ffn].
    pub(crate) down: LinearWeights,
    /// The norm of what the feed-forward part adds, where it has one.
    pub(crate) ffn_post_norm: Option<NormWeights>,
}

/// Where weights come from. Errors name the file and the tensor.
pub(crate) trait Weights: Sync {
    /// Token embeddings, [n_vocab, d_model].
    fn embedding(&self) -> Result<Vec<f32>>;
    /// Learned positions, [context_length, d_model]; empty where a model has none.
    fn positions(&self) -> Result<Vec<f32>>;
    fn block(&self, n: usize) -> Result<BlockWeights>;
    fn final_norm(&self) -> Result<NormWeights>;
    /// [n_vocab, d_model]. None where it is the embedding.
    fn unembedding(&self) -> Result<Option<LinearWeights>>;
}
