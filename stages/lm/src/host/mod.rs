//! The blocks on the CPU, on slices: matrix products in f32 or on rounded operands, everything else in one pass over rows.
//!
//! Contexts are independent of each other, so threads take whole contexts and each product runs on one thread.
//! Beside being faster than splitting every product over the threads, this makes results independent of their number.

mod attention;
pub(crate) mod kernels;
mod linear;

use anyhow::Result;
use artifact::config::Products;
use rayon::prelude::*;

use crate::config::{ModelConfig, NormKind};
use crate::forward::Blocks;
use crate::rope::Rope;
use crate::weights::{BlockWeights, LinearWeights, NormWeights, Weights};
use linear::Linear;
use slices::RoundingRoom;

/// Rows that go through a product together: enough to pay for packing the weights, few enough for the cache.
const ROWS_PER_PIECE: usize = 512;

/// All blocks' weights in the layout that the products want.
#[derive(Debug)]
pub(crate) struct HostWeights {
    config: ModelConfig,
    blocks: Vec<HostBlock>,
    final_norm: NormWeights,
}

#[derive(Debug)]
struct HostBlock {
    attn_norm: NormWeights,
    qkv: Linear,
    query_norm: Vec<f32>,
    key_norm: Vec<f32>,
    attn_out: Linear,
    attn_post_norm: Option<NormWeights>,
    ffn_norm: NormWeights,
    up: Linear,
    down: Linear,
    ffn_post_norm: Option<NormWeights>,
}

impl HostWeights {
    /// The first `n_blocks` blocks.
    pub(crate) fn read(
        weights: &impl Weights,
        config: &ModelConfig,
        n_blocks: usize,
        products: Products,
    ) -> Result<Self> {
        let read_block = |n| weights.block(n).map(|block| HostBlock::new(block, config, products));
        let blocks = (0..n_blocks).into_par_iter().map(read_block).collect::<Result<_>>()?;
        Ok(Self { config: config.clone(), blocks, final_norm: weights.final_norm()? })
    }
}

impl HostBlock {
    fn new(weights: BlockWeights, config: &ModelConfig, products: Products) -> Self {
        let linear = |weights: &LinearWeights, d_in| Linear::new(weights, d_in, products);
        let d_model = config.d_model;
        Self {
            qkv: linear(&weights.qkv, d_model),
            attn_out: linear(&weights.attn_out, config.n_heads * config.d_head),
            up: linear(&weights.up, d_model),
            down: linear(&weights.down, config.d_ffn),
            attn_norm: weights.attn_norm,
            query_norm: weights.query_norm,
            key_norm: weights.key_norm,
            attn_post_norm: weights.attn_post_norm,
            ffn_norm: weights.ffn_norm,
            ffn_post_norm: weights.ffn_post_norm,
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

    fn is_parallel(&self) -> bool {
        self.weights.config.is_parallel
    }

    fn attention(&self, block: usize, x: &Vec<f32>) -> Vec<f32> {
        let config = &self.weights.config;
        let window = config.attention.window(block);
        let block = &self.weights.blocks[block];
        let mut room = RoundingRoom::default();
        let mut qkv = Vec::with_capacity(x.len() / config.d_model * block.qkv.d_out());
        for rows in x.chunks(ROWS_PER_PIECE * config.d_model) {
            let normed = self.norm(rows, &block.attn_norm);
            block.qkv.append(&normed, config.d_model, &mut qkv, &mut room); // [T, (n_heads + 2 n_kv_heads) d_head]
        }
        if config.attention.has_qk_norm {
            let (width, eps, n_heads) = (config.d_qkv(), config.norm.eps, config.n_heads);
            kernels::norm_heads(&mut qkv, width, 0..n_heads, &block.query_norm, eps);
            kernels::norm_heads(&mut qkv, width, n_heads..n_heads + config.n_kv_heads, &block.key_norm, eps);
        }
        let heads = attention::attend(&mut qkv, config, window, self.rope, self.context); // [T, n_heads d_head]
        let mut out = Vec::with_capacity(x.len());
        block.attn_out.append(&heads, config.n_heads * config.d_head, &mut out, &mut room); // [T, d_model]
        self.post_norm(out, block.attn_post_norm.as_ref())
    }

    fn feed_forward(&self, block: usize, x: &Vec<f32>) -> Vec<f32> {
        let (config, block) = (&self.weights.config, &self.weights.blocks[block]);
        let activation = config.feed_forward.activation;
        let mut room = RoundingRoom::default();
        let mut out = Vec::with_capacity(x.len());
        for rows in x.chunks(ROWS_PER_PIECE * config.d_model) {
            let normed = self.norm(rows, &block.ffn_norm);
            let mut up = Vec::new();
            block.up.append(&normed, config.d_model, &mut up, &mut room); // [T, d_ffn], or [T, 2 d_ffn] with a gate
            if config.feed_forward.is_gated {
                kernels::activate_gated(&mut up, config.d_ffn, activation);
            } else {
                kernels::activate(&mut up, activation);
            }
            block.down.append(&up, block.up.d_out(), &mut out, &mut room); // [T, d_model]
        }
        self.post_norm(out, block.ffn_post_norm.as_ref())
    }

    fn add(&self, mut x: Vec<f32>, y: &Vec<f32>) -> Vec<f32> {
        slices::add(&mut x, y);
        x
    }

    fn final_norm(&self, x: &Vec<f32>) -> Vec<f32> {
        self.norm(x, &self.weights.final_norm)
    }
}

impl HostPass<'_> {
    fn norm(&self, x: &[f32], weights: &NormWeights) -> Vec<f32> {
        let norm = self.weights.config.norm;
        match norm.kind {
            NormKind::Rms => kernels::rms_norm(x, &weights.gain, norm.eps),
            NormKind::Layer => kernels::layer_norm(x, &weights.gain, &weights.bias, norm.eps),
        }
    }

    fn post_norm(&self, x: Vec<f32>, weights: Option<&NormWeights>) -> Vec<f32> {
        match weights {
            None => x,
            Some(weights) => self.norm(&x, weights),
        }
    }
}
