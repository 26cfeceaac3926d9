//! The blocks on the CPU: matrix products by the `gemm` crate, everything else in one pass over slices.
//!
//! Contexts are independent of each other, so threads take whole contexts and each product runs on one thread.
//! Beside being faster than splitting every product over the threads, this makes results independent of their number.

mod attention;
pub(crate) mod kernels;
mod linear;

use anyhow::Result;
use rayon::prelude::*;

use crate::config::ModelConfig;
use crate::forward::Blocks;
use crate::gguf::Gguf;
use crate::rope::Rope;
use crate::weights::BlockWeights;
use linear::Linear;

/// Rows that go through a product together: enough to pay for packing the weights, few enough for the cache.
const ROWS_PER_PIECE: usize = 512;

/// All blocks' weights in the layout that the products want.
#[derive(Debug)]
pub(crate) struct HostWeights {
    config: ModelConfig,
    blocks: Vec<HostBlock>,
    final_norm: Vec<f32>,
}

#[derive(Debug)]
struct HostBlock {
    attn_norm: Vec<f32>,
    qkv: Linear,
    attn_out: Linear,
    ffn_norm: Vec<f32>,
    gate_up: Linear,
    down: Linear,
}

impl HostWeights {
    pub(crate) fn read(gguf: &Gguf, config: &ModelConfig) -> Result<Self> {
        let read_block = |n| BlockWeights::read(gguf, config, n).map(|block| HostBlock::new(&block, config));
        let blocks = (0..config.n_layers).into_par_iter().map(read_block).collect::<Result<_>>()?;
        let final_norm = gguf.read("output_norm.weight", &[config.d_model])?;
        Ok(Self { config: config.clone(), blocks, final_norm })
    }
}

impl HostBlock {
    fn new(weights: &BlockWeights, config: &ModelConfig) -> Self {
        let d_model = config.d_model;
        Self {
            attn_norm: weights.attn_norm.clone(),
            qkv: Linear::new(&weights.qkv, d_model),
            attn_out: Linear::new(&weights.attn_out, config.n_heads * config.d_head),
            ffn_norm: weights.ffn_norm.clone(),
            gate_up: Linear::new(&weights.gate_up, d_model),
            down: Linear::new(&weights.down, config.d_ffn),
        }
    }
}

/// A forward pass over a few whole contexts, on one thread.
pub(crate) struct HostPass<'a> {
    pub(crate) weights: &'a HostWeights,
    pub(crate) rope: &'a Rope,
    /// Tokens in a context.
    pub(crate) context: usize,
}

impl Blocks for HostPass<'_> {
    type Stream = Vec<f32>;

    fn n_layers(&self) -> usize {
        self.weights.blocks.len()
    }

    fn attention(&self, block: usize, x: &Vec<f32>) -> Vec<f32> {
        let (config, block) = (&self.weights.config, &self.weights.blocks[block]);
        let mut qkv = Vec::with_capacity(x.len() / config.d_model * block.qkv.d_out());
        for rows in x.chunks(ROWS_PER_PIECE * config.d_model) {
            let normed = self.norm(rows, &block.attn_norm);
            block.qkv.append(&normed, config.d_model, &mut qkv); // [T, (n_heads + 2 n_kv_heads) d_head]
        }
        let heads = attention::attend(&mut qkv, config, self.rope, self.context); // [T, n_heads d_head]
        let mut out = Vec::with_capacity(x.len());
        block.attn_out.append(&heads, config.n_heads * config.d_head, &mut out); // [T, d_model]
        out
    }

    fn feed_forward(&self, block: usize, x: &Vec<f32>) -> Vec<f32> {
        let (config, block) = (&self.weights.config, &self.weights.blocks[block]);
        let mut out = Vec::with_capacity(x.len());
        for rows in x.chunks(ROWS_PER_PIECE * config.d_model) {
            let normed = self.norm(rows, &block.ffn_norm);
            let mut gate_up = Vec::new();
            block.gate_up.append(&normed, config.d_model, &mut gate_up); // [T, 2 d_ffn]
            kernels::swiglu(&mut gate_up, config.d_ffn);
            block.down.append(&gate_up, 2 * config.d_ffn, &mut out); // [T, d_model]
        }
        out
    }

    fn add(&self, mut x: Vec<f32>, y: &Vec<f32>) -> Vec<f32> {
        kernels::add(&mut x, y);
        x
    }

    fn final_norm(&self, x: &Vec<f32>) -> Vec<f32> {
        self.norm(x, &self.weights.final_norm)
    }
}

impl HostPass<'_> {
    fn norm(&self, x: &[f32], gain: &[f32]) -> Vec<f32> {
        kernels::rms_norm(x, gain, self.weights.config.rms_eps)
    }
}
