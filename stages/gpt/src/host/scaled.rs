//! Weights with the gains of the layer norms multiplied in, and gradients taken apart again: with W' = diag(g) W,
//! dW = diag(g) dW' and dg = Σ over columns of W ∘ dW'.

use std::borrow::Cow;

use artifact::config::Products;
use rayon::prelude::*;
use slices::Weight;

use crate::kernels::dot;
use crate::shape::Shape;

/// What the passes work with.
pub(super) struct Scaled<'a> {
    pub(super) shape: &'a Shape,
    pub(super) products: Products,
    pub(super) embedding: &'a [f32],
    pub(super) positions: &'a [f32],
    blocks: Vec<Block<'a>>,
    /// [n_vocab, d_model]. Each column has the final norm's gain.
    pub(super) unembedding: Vec<f32>,
}

/// The matrices of a block, those behind a norm with its gain.
pub(super) struct Block<'a> {
    pub(super) qkv: Weight<'a>,
    pub(super) attn_out: Weight<'a>,
    pub(super) up: Weight<'a>,
    pub(super) down: Weight<'a>,
    /// Their transposes, in the same order, for the backward pass: products take rows in faster than columns. None where only
    /// the loss is wanted.
    pub(super) back: Vec<Weight<'a>>,
}

impl<'a> Scaled<'a> {
    /// For products of this kind, but for attention's and the unembedding's, which are f32's.
    pub(super) fn new(shape: &'a Shape, weights: &'a [f32], products: Products, is_training: bool) -> Self {
        let d = shape.d_model;
        let with_gain = |matrix: &[f32], gain: &[f32]| {
            let width = matrix.len() / d;
            let mut scaled = matrix.to_vec();
            for (row, gain) in scaled.chunks_exact_mut(width).zip(gain) {
                row.iter_mut().for_each(|w| *w *= gain);
            }
            Cow::Owned(scaled)
        };
        let block = |i: usize| {
            let places = shape.block(i);
            let qkv = with_gain(&weights[places.qkv], &weights[places.attn_gain]);
            let up = with_gain(&weights[places.up], &weights[places.ffn_gain]);
            let (attn_out, down) = (Cow::Borrowed(&weights[places.attn_out]), Cow::Borrowed(&weights[places.down]));
            let back = |matrix: &Cow<'_, [f32]>, d_out| Weight::of_rows(matrix, d_out, products);
            let back = match is_training {
                true => vec![back(&qkv, 3 * d), back(&attn_out, d), back(&up, 4 * d), back(&down, d)],
                false => Vec::new(),
            };
            let forward = |matrix, d_in| Weight::of_columns(matrix, d_in, products);
            Block {
                qkv: forward(qkv, d),
                attn_out: forward(attn_out, d),
                up: forward(up, d),
                down: forward(down, 4 * d),
                back,
            }
        };
        let embedding = &weights[shape.embedding()];
        Self {
            shape,
            products,
            embedding,
            positions: &weights[shape.positions()],
            blocks: (0..shape.n_layers).into_par_iter().map(block).collect(),
            unembedding: columns(embedding, &weights[shape.final_gain()]),
        }
    }

    pub(super) fn block(&self, i: usize) -> &Block<'a> {
        &self.blocks[i]
    }
}

/// Each row times the gains, value by value. Shapes: matrix [n, d], gain [d].
fn columns(matrix: &[f32], gain: &[f32]) -> Vec<f32> {
    let mut scaled = matrix.to_vec();
    for row in scaled.chunks_exact_mut(gain.len()) {
        row.iter_mut().zip(gain).for_each(|(w, gain)| *w *= gain);
    }
    scaled
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
