//! The blocks as burn tensors, on any device. On the CPU `host` is several times faster; the tests hold the two together.

use anyhow::Result;
use burn::tensor::activation::{silu, softmax};
use burn::tensor::{Device, Tensor, TensorData};

use crate::config::ModelConfig;
use crate::forward::Blocks;
use crate::gguf::Gguf;
use crate::rope::Rope;
use crate::weights::BlockWeights;

/// All blocks' weights on a device. Matrices are [d_in, d_out].
#[derive(Debug)]
pub(crate) struct TensorWeights {
    config: ModelConfig,
    blocks: Vec<TensorBlock>,
    final_norm: Tensor<1>,
    device: Device,
}

#[derive(Debug)]
struct TensorBlock {
    attn_norm: Tensor<1>,
    qkv: Tensor<2>,
    attn_out: Tensor<2>,
    ffn_norm: Tensor<1>,
    gate_up: Tensor<2>,
    down: Tensor<2>,
}

impl TensorWeights {
    pub(crate) fn read(gguf: &Gguf, config: &ModelConfig, device: &Device) -> Result<Self> {
        let vector = |values: Vec<f32>| {
            let n = values.len();
            Tensor::<1>::from_data(TensorData::new(values, [n]), device)
        };
        let matrix = |rows: Vec<f32>, d_in: usize| {
            let d_out = rows.len() / d_in;
            Tensor::<2>::from_data(TensorData::new(rows, [d_out, d_in]), device).transpose()
        };
        let read_block = |n| {
            let weights = BlockWeights::read(gguf, config, n)?;
            Ok(TensorBlock {
                attn_norm: vector(weights.attn_norm),
                qkv: matrix(weights.qkv, config.d_model),
                attn_out: matrix(weights.attn_out, config.n_heads * config.d_head),
                ffn_norm: vector(weights.ffn_norm),
                gate_up: matrix(weights.gate_up, config.d_model),
                down: matrix(weights.down, config.d_ffn),
            })
        };
        Ok(Self {
            config: config.clone(),
            blocks: (0..config.n_layers).map(read_block).collect::<Result<_>>()?,
            final_norm: vector(gguf.read("output_norm.weight", &[config.d_model])?),
            device: device.clone(),
        })
    }
}

/// A forward pass over whole contexts.
pub(crate) struct TensorPass<'a> {
    weights: &'a TensorWeights,
    /// [1, context, 1, d_head / 2], both.
    cos: Tensor<4>,
    sin: Tensor<4>,
    /// −∞ above the diagonal, 0 elsewhere: [1, 1, context, context].
    mask: Tensor<4>,
    context: usize,
}

impl<'a> TensorPass<'a> {
    pub(crate) fn new(weights: &'a TensorWeights, rope: &Rope, context: usize) -> Self {
        let device = &weights.device;
        let angles = |values: &[f32]| {
            let shape = [1, context, 1, weights.config.d_head / 2];
            Tensor::<4>::from_data(TensorData::new(values.to_vec(), shape), device)
        };
        let later = (0..context * context).map(|i| if i % context > i / context { f32::NEG_INFINITY } else { 0.0 });
        let mask = TensorData::new(later.collect::<Vec<_>>(), [1, 1, context, context]);
        Self { weights, cos: angles(&rope.cos), sin: angles(&rope.sin), mask: Tensor::from_data(mask, device), context }
    }

    /// x / √(mean x² + ε) · gain, row by row.
    fn norm(&self, x: &Tensor<2>, gain: &Tensor<1>) -> Tensor<2> {
        let mean_square = x.clone().square().mean_dim(1); // [T, 1]
        let scale = (mean_square + self.weights.config.rms_eps).sqrt().recip();
        x.clone() * scale * gain.clone().unsqueeze::<2>() // [T, d_model]
    }

    /// Shapes: x [contexts, context, heads, d_head], rotated by position.
    fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        let half = self.weights.config.d_head / 2;
        let (low, high) = (x.clone().narrow(3, 0, half), x.narrow(3, half, half));
        let turned_low = low.clone() * self.cos.clone() - high.clone() * self.sin.clone();
        let turned_high = high * self.cos.clone() + low * self.sin.clone();
        Tensor::cat(vec![turned_low, turned_high], 3)
    }
}

impl Blocks for TensorPass<'_> {
    type Stream = Tensor<2>;

    fn n_layers(&self) -> usize {
        self.weights.blocks.len()
    }

    fn attention(&self, block: usize, x: &Tensor<2>) -> Tensor<2> {
        let &ModelConfig { n_heads, n_kv_heads, d_head, .. } = &self.weights.config;
        let block = &self.weights.blocks[block];
        let [n_rows, _] = x.dims();
        let n_contexts = n_rows / self.context;

        let qkv = self.norm(x, &block.attn_norm).matmul(block.qkv.clone());
        let qkv = qkv.reshape([n_contexts, self.context, n_heads + 2 * n_kv_heads, d_head]);
        let queries = self.rotate(qkv.clone().narrow(2, 0, n_heads)).swap_dims(1, 2); // [contexts, n_heads, context, d_head]
        let keys = self.rotate(qkv.clone().narrow(2, n_heads, n_kv_heads)).swap_dims(1, 2);
        let values = qkv.narrow(2, n_heads + n_kv_heads, n_kv_heads).swap_dims(1, 2);
        // Each key and value head serves the query heads next to each other: [contexts, n_heads, context, d_head].
        let shared = |x: Tensor<4>| {
            let expanded = x.unsqueeze_dim::<5>(2).repeat_dim(2, n_heads / n_kv_heads);
            expanded.reshape([n_contexts, n_heads, self.context, d_head])
        };
        let (keys, values) = (shared(keys), shared(values));

        let scores = queries.matmul(keys.swap_dims(2, 3)) / (d_head as f32).sqrt(); // [contexts, n_heads, context, context]
        let pattern = softmax(scores + self.mask.clone(), 3);
        let heads = pattern.matmul(values).swap_dims(1, 2).reshape([n_rows, n_heads * d_head]);
        heads.matmul(block.attn_out.clone()) // [T, d_model]
    }

    fn feed_forward(&self, block: usize, x: &Tensor<2>) -> Tensor<2> {
        let (d_ffn, block) = (self.weights.config.d_ffn, &self.weights.blocks[block]);
        let gate_up = self.norm(x, &block.ffn_norm).matmul(block.gate_up.clone()); // [T, 2 d_ffn]
        let gated = silu(gate_up.clone().narrow(1, 0, d_ffn)) * gate_up.narrow(1, d_ffn, d_ffn);
        gated.matmul(block.down.clone()) // [T, d_model]
    }

    fn add(&self, x: Tensor<2>, y: &Tensor<2>) -> Tensor<2> {
        x + y.clone()
    }

    fn final_norm(&self, x: &Tensor<2>) -> Tensor<2> {
        self.norm(x, &self.weights.final_norm)
    }
}
