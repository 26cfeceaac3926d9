//! Weights with the gains of the layer norms multiplied in, and gradients taken apart again: with W' = diag(g) W,
//! dW = diag(g) dW' and dg = Σ over columns of W ∘ dW'.

use crate::kernels::dot;
use crate::shape::Shape;

/// What the passes work with.
pub(super) struct Scaled<'a> {
    pub(super) shape: &'a Shape,
    weights: &'a [f32],
    pub(super) embedding: &'a [f32],
    pub(super) positions: &'a [f32],
    /// Of each block, those behind a norm: queries, keys and values; up.
    blocks: Vec<[Vec<f32>; 2]>,
    /// [n_vocab, d_model]. Each column has the final norm's gain.
    pub(super) unembedding: Vec<f32>,
}

/// The matrices of a block.
pub(super) struct Block<'a> {
    pub(super) qkv: &'a [f32],
    pub(super) attn_out: &'a [f32],
    pub(super) up: &'a [f32],
    pub(super) down: &'a [f32],
}

impl<'a> Scaled<'a> {
    pub(super) fn new(shape: &'a Shape, weights: &'a [f32]) -> Self {
        let d = shape.d_model;
        let rows = |matrix: &[f32], gain: &[f32]| {
            let width = matrix.len() / d;
            let row = |(row, gain): (&'_ [f32], &f32)| row.iter().map(|w| w * gain).collect::<Vec<_>>();
            matrix.chunks_exact(width).zip(gain).flat_map(row).collect::<Vec<_>>()
        };
        let block = |i: usize| {
            let places = shape.block(i);
            let of = |matrix: std::ops::Range<usize>, gain| rows(&weights[matrix], &weights[gain]);
            [of(places.qkv, places.attn_gain), of(places.up, places.ffn_gain)]
        };
        let embedding = &weights[shape.embedding()];
        let gain = &weights[shape.final_gain()];
        let unembedding = embedding.chunks_exact(d).flat_map(|row| row.iter().zip(gain).map(|(w, gain)| w * gain));
        Self {
            shape,
            weights,
            embedding,
            positions: &weights[shape.positions()],
            blocks: (0..shape.n_layers).map(block).collect(),
            unembedding: unembedding.collect(),
        }
    }

    pub(super) fn block(&self, i: usize) -> Block<'_> {
        let places = self.shape.block(i);
        let [qkv, up] = &self.blocks[i];
        Block { qkv, attn_out: &self.weights[places.attn_out], up, down: &self.weights[places.down] }
    }
}

/// Gradients by what `Scaled` holds: in the places of the parameters, and by the unembedding apart.
#[derive(Clone)]
pub(super) struct Gradients {
    pub(super) values: Vec<f32>,
    /// [n_vocab, d_model].
    pub(super) unembedding: Vec<f32>,
}

impl Gradients {
    pub(super) fn zeros(shape: &Shape) -> Self {
        Self { values: vec![0.0; shape.n_parameters()], unembedding: vec![0.0; shape.n_vocab * shape.d_model] }
    }

    pub(super) fn clear(&mut self) {
        self.values.fill(0.0);
        self.unembedding.fill(0.0);
    }

    /// Makes `values` the gradients by the parameters themselves.
    pub(super) fn take_apart(&mut self, shape: &Shape, weights: &[f32]) {
        let d = shape.d_model;
        for i in 0..shape.n_layers {
            let places = shape.block(i);
            for (gain, matrix) in [(places.attn_gain, places.qkv), (places.ffn_gain, places.up)] {
                let width = matrix.len() / d;
                for j in 0..d {
                    let row = matrix.start + j * width..matrix.start + (j + 1) * width;
                    self.values[gain.start + j] = dot(&weights[row.clone()], &self.values[row.clone()]);
                    let factor = weights[gain.start + j];
                    self.values[row].iter_mut().for_each(|grad| *grad *= factor);
                }
            }
        }
        let (gain, d_gain) = (shape.final_gain(), &mut vec![0.0; d]);
        for (row, grads) in self.unembedding.chunks_exact(d).enumerate() {
            let place = row * d..(row + 1) * d;
            for (((d_gain, grad), weight), (sum, gain)) in d_gain
                .iter_mut()
                .zip(grads)
                .zip(&weights[place.clone()])
                .zip(self.values[place].iter_mut().zip(&weights[gain.clone()]))
            {
                *d_gain += grad * weight;
                *sum += grad * gain;
            }
        }
        self.values[gain].copy_from_slice(d_gain);
    }
}
