//! The blocks as burn tensors, on any device. On the CPU `host` is several times faster; the tests hold the two together.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use burn::tensor::activation::{gelu, gelu_approximate, silu, softmax};
use burn::tensor::{Device, Tensor, TensorData};

use crate::config::{Activation, ModelConfig, NormKind};
use crate::forward::Blocks;
use crate::rope::Rope;
use crate::weights::{LinearWeights, NormWeights, Weights};

/// All blocks' weights on a device. Matrices are [d_in, d_out].
#[derive(Debug)]
pub(crate) struct TensorWeights {
    config: ModelConfig,
    blocks: Vec<TensorBlock>,
    final_norm: TensorNorm,
    device: Device,
}

#[derive(Debug)]
struct TensorBlock {
    attn_norm: TensorNorm,
    qkv: TensorLinear,
    /// Of a head of queries and of keys, [d_head].
    qk_norms: Option<[Tensor<1>; 2]>,
    attn_out: TensorLinear,
    attn_post_norm: Option<TensorNorm>,
    ffn_norm: TensorNorm,
    up: TensorLinear,
    down: TensorLinear,
    ffn_post_norm: Option<TensorNorm>,
}

#[derive(Debug)]
struct TensorLinear {
    /// [d_in, d_out].
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
}

#[derive(Debug)]
struct TensorNorm {
    gain: Tensor<1>,
    bias: Option<Tensor<1>>,
}

impl TensorLinear {
    fn new(weights: LinearWeights, d_in: usize, device: &Device) -> Self {
        let d_out = weights.rows.len() / d_in;
        Self {
            weight: Tensor::<2>::from_data(TensorData::new(weights.rows, [d_out, d_in]), device).transpose(),
            bias: optional(weights.bias, device),
        }
    }

    /// Shapes: [T, d_in] → [T, d_out].
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let y = x.matmul(self.weight.clone());
        match &self.bias {
            None => y,
            Some(bias) => y + bias.clone().unsqueeze::<2>(),
        }
    }
}

impl TensorNorm {
    fn new(weights: NormWeights, device: &Device) -> Self {
        Self { gain: vector(weights.gain, device), bias: optional(weights.bias, device) }
    }
}

fn vector(values: Vec<f32>, device: &Device) -> Tensor<1> {
    let n = values.len();
    Tensor::from_data(TensorData::new(values, [n]), device)
}

/// None where there are no values.
fn optional(values: Vec<f32>, device: &Device) -> Option<Tensor<1>> {
    (!values.is_empty()).then(|| vector(values, device))
}

impl TensorWeights {
    pub(crate) fn read(weights: &impl Weights, config: &ModelConfig, device: &Device, n_blocks: usize) -> Result<Self> {
        let linear = |weights, d_in| TensorLinear::new(weights, d_in, device);
        let norm = |weights| TensorNorm::new(weights, device);
        let read_block = |n| {
            let weights = weights.block(n)?;
            let heads = [weights.query_norm, weights.key_norm];
            Ok(TensorBlock {
                attn_norm: norm(weights.attn_norm),
                qkv: linear(weights.qkv, config.d_model),
                qk_norms: config.attention.has_qk_norm.then(|| heads.map(|gain| vector(gain, device))),
                attn_out: linear(weights.attn_out, config.n_heads * config.d_head),
                attn_post_norm: weights.attn_post_norm.map(norm),
                ffn_norm: norm(weights.ffn_norm),
                up: linear(weights.up, config.d_model),
                down: linear(weights.down, config.d_ffn),
                ffn_post_norm: weights.ffn_post_norm.map(norm),
            })
        };
        Ok(Self {
            config: config.clone(),
            blocks: (0..n_blocks).map(read_block).collect::<Result<_>>()?,
            final_norm: norm(weights.final_norm()?),
            device: device.clone(),
        })
    }
}

/// A forward pass over whole contexts.
pub(crate) struct TensorPass<'a> {
    weights: &'a TensorWeights,
    /// [1, context, 1, n_rotary / 2], both; None where nothing is rotated.
    angles: Option<[Tensor<4>; 2]>,
    /// By how far blocks see.
    masks: BTreeMap<Option<usize>, Tensor<4>>,
    context: usize,
}

impl<'a> TensorPass<'a> {
    pub(crate) fn new(weights: &'a TensorWeights, rope: &Rope, context: usize) -> Self {
        let angles = |values: &[f32]| {
            let shape = [1, context, 1, rope.n_rotary / 2];
            Tensor::<4>::from_data(TensorData::new(values.to_vec(), shape), &weights.device)
        };
        let angles = (rope.n_rotary > 0).then(|| [angles(&rope.cos), angles(&rope.sin)]);
        let attention = &weights.config.attention;
        let windows: BTreeSet<_> = (0..weights.blocks.len()).map(|block| attention.window(block)).collect();
        let masks = windows.into_iter().map(|window| (window, mask(context, window, &weights.device))).collect();
        Self { weights, angles, masks, context }
    }

    /// The norm of the last dimension. Shapes: x [.., d], gain and bias [d].
    fn norm<const D: usize>(&self, x: Tensor<D>, gain: &Tensor<1>, bias: Option<&Tensor<1>>) -> Tensor<D> {
        let norm = self.weights.config.norm;
        let x = match norm.kind {
            NormKind::Rms => x,
            NormKind::Layer => x.clone() - x.mean_dim(D - 1),
        };
        let mean_square = x.clone().square().mean_dim(D - 1);
        let normed = x * (mean_square + norm.eps).sqrt().recip() * gain.clone().unsqueeze::<D>();
        match bias {
            None => normed,
            Some(bias) => normed + bias.clone().unsqueeze::<D>(),
        }
    }

    fn norm_by(&self, x: &Tensor<2>, weights: &TensorNorm) -> Tensor<2> {
        self.norm(x.clone(), &weights.gain, weights.bias.as_ref())
    }

    fn post_norm(&self, x: Tensor<2>, weights: Option<&TensorNorm>) -> Tensor<2> {
        match weights {
            None => x,
            Some(weights) => self.norm_by(&x, weights),
        }
    }

    /// Shapes: x [contexts, context, heads, d_head], its first values rotated by position.
    fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        let Some([cos, sin]) = &self.angles else { return x };
        let (d_head, half) = (self.weights.config.d_head, cos.dims()[3]);
        let (low, high) = (x.clone().narrow(3, 0, half), x.clone().narrow(3, half, half));
        let turned_low = low.clone() * cos.clone() - high.clone() * sin.clone();
        let turned_high = high * cos.clone() + low * sin.clone();
        let mut parts = vec![turned_low, turned_high];
        if 2 * half < d_head {
            parts.push(x.narrow(3, 2 * half, d_head - 2 * half));
        }
        Tensor::cat(parts, 3)
    }
}

/// −∞ for positions that a token does not see, 0 elsewhere: [1, 1, context, context].
fn mask(context: usize, window: Option<usize>, device: &Device) -> Tensor<4> {
    let is_seen = |query: usize, key: usize| key <= query && window.is_none_or(|window| query - key < window);
    let value = |i: usize| if is_seen(i / context, i % context) { 0.0 } else { f32::NEG_INFINITY };
    let values: Vec<f32> = (0..context * context).map(value).collect();
    Tensor::from_data(TensorData::new(values, [1, 1, context, context]), device)
}

/// cap · tanh(x / cap).
pub(crate) fn softcap<const D: usize>(x: Tensor<D>, cap: Option<f32>) -> Tensor<D> {
    match cap {
        None => x,
        Some(cap) => (x / cap).tanh() * cap,
    }
}

impl Blocks for TensorPass<'_> {
    type Stream = Tensor<2>;

    fn n_layers(&self) -> usize {
        self.weights.blocks.len()
    }

    fn is_parallel(&self) -> bool {
        self.weights.config.is_parallel
    }

    fn attention(&self, block: usize, x: &Tensor<2>) -> Tensor<2> {
        let &ModelConfig { n_heads, n_kv_heads, d_head, ref attention, .. } = &self.weights.config;
        let mask = self.masks[&attention.window(block)].clone();
        let block = &self.weights.blocks[block];
        let [n_rows, _] = x.dims();
        let n_contexts = n_rows / self.context;

        let qkv = block.qkv.forward(self.norm_by(x, &block.attn_norm));
        let qkv = qkv.reshape([n_contexts, self.context, n_heads + 2 * n_kv_heads, d_head]);
        let mut queries = qkv.clone().narrow(2, 0, n_heads);
        let mut keys = qkv.clone().narrow(2, n_heads, n_kv_heads);
        if let Some([query_norm, key_norm]) = &block.qk_norms {
            queries = self.norm(queries, query_norm, None);
            keys = self.norm(keys, key_norm, None);
        }
        let queries = self.rotate(queries).swap_dims(1, 2); // [contexts, n_heads, context, d_head]
        let keys = self.rotate(keys).swap_dims(1, 2);
        let values = qkv.narrow(2, n_heads + n_kv_heads, n_kv_heads).swap_dims(1, 2);
        // Each key and value head serves the query heads next to each other: [contexts, n_heads, context, d_head].
        let shared = |x: Tensor<4>| {
            let expanded = x.unsqueeze_dim::<5>(2).repeat_dim(2, n_heads / n_kv_heads);
            expanded.reshape([n_contexts, n_heads, self.context, d_head])
        };
        let (keys, values) = (shared(keys), shared(values));

        let scores = queries.matmul(keys.swap_dims(2, 3)) * attention.scale; // [contexts, n_heads, context, context]
        let pattern = softmax(softcap(scores, attention.softcap) + mask, 3);
        let heads = pattern.matmul(values).swap_dims(1, 2).reshape([n_rows, n_heads * d_head]);
        self.post_norm(block.attn_out.forward(heads), block.attn_post_norm.as_ref()) // [T, d_model]
    }

    fn feed_forward(&self, block: usize, x: &Tensor<2>) -> Tensor<2> {
        let (config, block) = (&self.weights.config, &self.weights.blocks[block]);
        let d_ffn = config.d_ffn;
        let up = block.up.forward(self.norm_by(x, &block.ffn_norm)); // [T, d_ffn], or [T, 2 d_ffn] with a gate
        let activate = |x| match config.feed_forward.activation {
            Activation::Silu => silu(x),
            Activation::Gelu => gelu(x),
            Activation::GeluTanh => gelu_approximate(x),
        };
        let acts = if config.feed_forward.is_gated {
            activate(up.clone().narrow(1, 0, d_ffn)) * up.narrow(1, d_ffn, d_ffn)
        } else {
            activate(up)
        };
        self.post_norm(block.down.forward(acts), block.ffn_post_norm.as_ref()) // [T, d_model]
    }

    fn add(&self, x: Tensor<2>, y: &Tensor<2>) -> Tensor<2> {
        x + y.clone()
    }

    fn final_norm(&self, x: &Tensor<2>) -> Tensor<2> {
        self.norm_by(x, &self.weights.final_norm)
    }
}
