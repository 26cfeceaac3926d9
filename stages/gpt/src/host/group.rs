//! The forward and the backward pass of a group of contexts on one thread. All that the backward pass needs is kept in
//! buffers that live as long as the training: fresh memory costs a page fault for every 4 KiB.
//!
//! A layer norm's gain is a factor on the rows of the matrix behind it, so the passes know no gains: they work with
//! matrices that have them multiplied in, once per step, and `scaled` takes the gradients apart again.

use slices::{Mat, Onto, RoundingRoom, Weight, add_gradient, multiply};

use super::attention::{self, Heads};
use super::scaled::{Gradients, Scaled};
use crate::kernels::{Dropout, cross_entropy, gelu_and_slope, multiply_each, normalise, normalise_back};
use crate::shape::Shape;

/// Tokens in a group, if contexts are shorter: enough for products to run at their full speed, few enough for the
/// second-level cache. Fixed, since sums depend on it.
const TOKENS_PER_GROUP: usize = 128;

/// Contexts that go through the passes together.
pub(super) fn contexts_per_group(length: usize) -> usize {
    (TOKENS_PER_GROUP / length).max(1)
}

/// Whether and how values are dropped in one pass of one group: a key for each place in the model that drops.
pub(crate) struct Drops {
    pub(crate) probability: f32,
    /// The embedding's, then three of each block: attention weights, attention's output, the feed-forward part's output.
    pub(crate) keys: Vec<u32>,
}

impl Drops {
    pub(crate) fn n_keys(shape: &Shape) -> usize {
        1 + 3 * shape.n_layers
    }

    fn embedding(&self) -> Option<Dropout> {
        Dropout::new(self.probability, *self.keys.first()?)
    }

    fn of_block(&self, block: usize) -> [Option<Dropout>; 3] {
        std::array::from_fn(|i| Dropout::new(self.probability, *self.keys.get(1 + 3 * block + i)?))
    }
}

/// What a block keeps for its backward pass. n tokens.
struct Kept {
    attn_normed: Vec<f32>, // [n, d]
    attn_scale: Vec<f32>,  // [n]
    qkv: Vec<f32>,         // [n, 3d]
    weights: Vec<f32>,     // [contexts, heads, length, length]
    attended: Vec<f32>,    // [n, d]
    ffn_normed: Vec<f32>,  // [n, d]
    ffn_scale: Vec<f32>,   // [n]
    slope: Vec<f32>,       // [n, 4d], of GELU
    activation: Vec<f32>,  // [n, 4d]
}

/// The room that passes need.
pub(super) struct Room {
    blocks: Vec<Kept>,
    residual: Vec<f32>,   // [n, d]
    normed: Vec<f32>,     // [n, d]
    norm_scale: Vec<f32>, // [n]
    logits: Vec<f32>,     // [n, n_vocab]
    wide: Vec<f32>,       // [n, 4d]
    narrow: Vec<f32>,     // [n, d]
    d_residual: Vec<f32>, // [n, d]
    grads: Vec<f32>,      // one block of attention
    dropped: Vec<f32>,    // the same
    rounding: RoundingRoom,
}

impl Room {
    /// For groups of up to `n_contexts` contexts of `length` tokens.
    pub(super) fn new(shape: &Shape, n_contexts: usize, length: usize) -> Self {
        let n = n_contexts * length;
        let zeros = |width: usize| vec![0f32; n * width];
        let d = shape.d_model;
        let block = || Kept {
            attn_normed: zeros(d),
            attn_scale: zeros(1),
            qkv: zeros(3 * d),
            weights: zeros(shape.n_heads * length),
            attended: zeros(d),
            ffn_normed: zeros(d),
            ffn_scale: zeros(1),
            slope: zeros(4 * d),
            activation: zeros(4 * d),
        };
        Self {
            blocks: (0..shape.n_layers).map(|_| block()).collect(),
            residual: zeros(d),
            normed: zeros(d),
            norm_scale: zeros(1),
            logits: zeros(shape.n_vocab),
            wide: zeros(4 * d),
            narrow: zeros(d),
            d_residual: zeros(d),
            grads: vec![0.0; attention::block_room(length)],
            dropped: vec![0.0; attention::block_room(length)],
            rounding: RoundingRoom::default(),
        }
    }

    /// The passes of one group. Returns the sum of the losses, in nats; gradients, multiplied by `scale`, are added to
    /// `grads`, if they are wanted.
    /// Shapes: inputs [contexts · length], targets the same.
    pub(super) fn run(
        &mut self,
        scaled: &Scaled<'_>,
        length: usize,
        (inputs, targets): (&[u32], &[u32]),
        drops: &Drops,
        scale: f32,
        grads: Option<&mut Gradients>,
    ) -> f64 {
        self.forward(scaled, length, inputs, drops);
        let logits = &mut self.logits[..inputs.len() * scaled.shape.n_vocab];
        let loss = cross_entropy(logits, targets, scale);
        if let Some(grads) = grads {
            self.backward(scaled, length, inputs, drops, grads);
        }
        loss
    }

    /// Leaves the logits in `logits`.
    fn forward(&mut self, scaled: &Scaled<'_>, length: usize, inputs: &[u32], drops: &Drops) {
        let (shape, n) = (scaled.shape, inputs.len());
        let (d, n_vocab) = (shape.d_model, shape.n_vocab);
        let heads = Heads { n_heads: shape.n_heads, d_head: shape.d_head(), length };
        let residual = &mut self.residual[..n * d];
        embed(scaled, length, inputs, residual);
        if let Some(dropout) = drops.embedding() {
            dropout.apply(residual, 0);
        }
        let (narrow, rounding) = (&mut self.narrow, &mut self.rounding);
        for (i, kept) in self.blocks.iter_mut().enumerate() {
            let (block, [drop_weights, drop_attended, drop_ffn]) = (scaled.block(i), drops.of_block(i));
            normalise(residual, &mut kept.attn_normed[..n * d], &mut kept.attn_scale[..n]);
            let (normed, qkv) = (&kept.attn_normed[..n * d], &mut kept.qkv[..n * 3 * d]);
            block.qkv.multiply(normed, Onto::Nothing, qkv, rounding);
            let attended = &mut kept.attended[..n * d];
            attention::forward(heads, &kept.qkv, drop_weights, &mut kept.weights, &mut self.dropped, attended);
            add_product(&block.attn_out, &kept.attended[..n * d], drop_attended, narrow, residual, rounding);

            normalise(residual, &mut kept.ffn_normed[..n * d], &mut kept.ffn_scale[..n]);
            let (normed, up) = (&kept.ffn_normed[..n * d], &mut kept.slope[..n * 4 * d]);
            block.up.multiply(normed, Onto::Nothing, up, rounding);
            gelu_and_slope(up, &mut kept.activation);
            add_product(&block.down, &kept.activation[..n * 4 * d], drop_ffn, narrow, residual, rounding);
        }
        normalise(residual, &mut self.normed[..n * d], &mut self.norm_scale[..n]);
        let unembedding = Mat::rows(&scaled.unembedding, d).transposed();
        let logits = &mut self.logits;
        multiply((n, d, n_vocab), 1.0, Mat::rows(&self.normed, d), unembedding, Onto::Nothing, logits, n_vocab);
    }

    /// From the gradient by the logits, in `logits`.
    fn backward(&mut self, scaled: &Scaled<'_>, length: usize, inputs: &[u32], drops: &Drops, grads: &mut Gradients) {
        let (shape, n) = (scaled.shape, inputs.len());
        let (d, n_vocab) = (shape.d_model, shape.n_vocab);
        let heads = Heads { n_heads: shape.n_heads, d_head: shape.d_head(), length };
        let d_residual = &mut self.d_residual[..n * d];
        let (d_logits, narrow) = (Mat::rows(&self.logits, n_vocab), &mut self.narrow);
        let normed = Mat::rows(&self.normed, d);
        multiply((n_vocab, n, d), 1.0, d_logits.transposed(), normed, Onto::Sum, &mut grads.unembedding, d);
        multiply((n, n_vocab, d), 1.0, d_logits, Mat::rows(&scaled.unembedding, d), Onto::Nothing, narrow, d);
        normalise_back(&narrow[..n * d], &self.normed[..n * d], &self.norm_scale[..n], true, d_residual);

        for (i, kept) in self.blocks.iter().enumerate().rev() {
            let (block, [drop_weights, drop_attended, drop_ffn]) = (scaled.block(i), drops.of_block(i));
            let places = shape.block(i);
            let [qkv, attn_out, up, down] = &block.back[..] else { panic!("weights for a backward pass") };
            // The feed-forward part.
            let d_out = dropped(drop_ffn, d_residual, &mut self.narrow);
            let (wide, rounding) = (&mut self.wide[..n * 4 * d], &mut self.rounding);
            let (activation, d_down) = (&kept.activation[..n * 4 * d], &mut grads.values[places.down]);
            add_gradient((activation, 4 * d), (d_out, d), scaled.products, d_down, rounding);
            down.multiply(d_out, Onto::Nothing, wide, rounding);
            multiply_each(wide, &kept.slope[..n * 4 * d]);
            let (normed, d_up) = (&kept.ffn_normed[..n * d], &mut grads.values[places.up]);
            add_gradient((normed, d), (wide, 4 * d), scaled.products, d_up, rounding);
            let narrow = &mut self.narrow[..n * d];
            up.multiply(wide, Onto::Nothing, narrow, rounding);
            normalise_back(narrow, &kept.ffn_normed[..n * d], &kept.ffn_scale[..n], false, d_residual);
            // Attention.
            let d_out = dropped(drop_attended, d_residual, &mut self.narrow);
            let (attended, d_attn_out) = (&kept.attended[..n * d], &mut grads.values[places.attn_out]);
            add_gradient((attended, d), (d_out, d), scaled.products, d_attn_out, rounding);
            let (d_attended, d_qkv) = self.wide[..n * 4 * d].split_at_mut(n * d);
            attn_out.multiply(d_out, Onto::Nothing, d_attended, rounding);
            let (room, dropped) = (&mut self.grads, &mut self.dropped);
            attention::backward(heads, &kept.qkv, &kept.weights, drop_weights, d_attended, room, dropped, d_qkv);
            let (normed, of_qkv) = (&kept.attn_normed[..n * d], &mut grads.values[places.qkv]);
            add_gradient((normed, d), (d_qkv, 3 * d), scaled.products, of_qkv, rounding);
            let narrow = &mut self.narrow[..n * d];
            qkv.multiply(d_qkv, Onto::Nothing, narrow, rounding);
            normalise_back(narrow, &kept.attn_normed[..n * d], &kept.attn_scale[..n], false, d_residual);
        }
        if let Some(dropout) = drops.embedding() {
            dropout.apply(d_residual, 0);
        }
        embed_back(shape, length, inputs, d_residual, grads);
    }
}

/// residual += dropped(x W). Shapes: x [n, k], residual [n, d].
fn add_product(
    weight: &Weight<'_>,
    x: &[f32],
    dropout: Option<Dropout>,
    room: &mut [f32],
    residual: &mut [f32],
    rounding: &mut RoundingRoom,
) {
    match dropout {
        None => weight.multiply(x, Onto::Sum, residual, rounding),
        Some(dropout) => {
            let product = &mut room[..residual.len()];
            weight.multiply(x, Onto::Nothing, product, rounding);
            dropout.add(product, 0, residual);
        }
    }
}

/// The gradient behind dropout; the same vector where nothing is dropped.
fn dropped<'a>(dropout: Option<Dropout>, grad: &'a [f32], room: &'a mut [f32]) -> &'a [f32] {
    match dropout {
        None => grad,
        Some(dropout) => {
            let room = &mut room[..grad.len()];
            dropout.copy(grad, 0, room);
            room
        }
    }
}

/// Token and position. Shapes: inputs [n] → out [n, d].
fn embed(scaled: &Scaled<'_>, length: usize, inputs: &[u32], out: &mut [f32]) {
    let d = scaled.shape.d_model;
    for (i, (out, &token)) in out.chunks_exact_mut(d).zip(inputs).enumerate() {
        let rows = scaled.embedding[token as usize * d..].iter().zip(&scaled.positions[i % length * d..]);
        out.iter_mut().zip(rows).for_each(|(out, (token, position))| *out = token + position);
    }
}

fn embed_back(shape: &Shape, length: usize, inputs: &[u32], d_residual: &[f32], grads: &mut Gradients) {
    let d = shape.d_model;
    let (embedding, positions) = grads.values.split_at_mut(shape.positions().start);
    for (i, (grad, &token)) in d_residual.chunks_exact(d).zip(inputs).enumerate() {
        let (row, position) = (token as usize * d, i % length * d);
        embedding[row..row + d].iter_mut().zip(grad).for_each(|(sum, grad)| *sum += grad);
        positions[position..position + d].iter_mut().zip(grad).for_each(|(sum, grad)| *sum += grad);
    }
}
