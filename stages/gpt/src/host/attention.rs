//! Causal attention of one group of contexts, forwards and backwards. Queries come in blocks, and a block looks at no keys
//! behind its own end.

use slices::{Mat, Onto, causal_softmax, multiply};

use crate::kernels::{Dropout, causal_softmax_back};

/// Queries in a block.
const BLOCK: usize = 64;

/// The sizes of a group of contexts.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    pub(super) n_heads: usize,
    pub(super) d_head: usize,
    /// Tokens in a context.
    pub(super) length: usize,
}

impl Heads {
    fn d_model(self) -> usize {
        self.n_heads * self.d_head
    }

    fn scale(self) -> f32 {
        1.0 / (self.d_head as f32).sqrt()
    }

    /// Every head of every context: (first token, first column, first weight).
    fn each(self, n_tokens: usize) -> impl Iterator<Item = (usize, usize, usize)> {
        let Self { n_heads, d_head, length } = self;
        (0..n_tokens / length).flat_map(move |context| {
            let place = move |head| (context * length, head * d_head, (context * n_heads + head) * length * length);
            (0..n_heads).map(place)
        })
    }

    /// (first query, number of queries, number of keys that they see).
    fn blocks(self) -> impl DoubleEndedIterator<Item = (usize, usize, usize)> {
        (0..self.length).step_by(BLOCK).map(move |first| {
            let end = self.length.min(first + BLOCK);
            (first, end - first, end)
        })
    }
}

/// Shapes: qkv [n, 3·d_model] → weights [contexts, n_heads, length, length], out [n, d_model]. `dropped` is room for
/// [BLOCK, length] values.
/// Source: Vaswani et al. 2017, "Attention is all you need", equation 1.
pub(super) fn forward(
    heads: Heads,
    qkv: &[f32],
    dropout: Option<Dropout>,
    weights: &mut [f32],
    dropped: &mut [f32],
    out: &mut [f32],
) {
    let Heads { d_head, length, .. } = heads;
    let d_model = heads.d_model();
    let row = 3 * d_model;
    for (token, column, of_head) in heads.each(out.len() / d_model) {
        let part = |kind: usize, first: usize| Mat::rows(&qkv[(token + first) * row + kind * d_model + column..], row);
        for (first, n, seen) in heads.blocks() {
            let at = of_head + first * length;
            let block = &mut weights[at..at + n * length];
            let keys = part(1, 0).transposed();
            multiply((n, d_head, seen), heads.scale(), part(0, first), keys, Onto::Nothing, block, length);
            causal_softmax(block, length, seen, first, None);
            let used = match dropout {
                None => &*block,
                Some(dropout) => {
                    drop_rows(dropout, block, at, length, seen, dropped);
                    &*dropped
                }
            };
            let out = &mut out[(token + first) * d_model + column..];
            multiply((n, seen, d_head), 1.0, Mat::rows(used, length), part(2, 0), Onto::Nothing, out, d_model);
        }
    }
}

/// Shapes: d_out [n, d_model] → d_qkv [n, 3·d_model], overwritten. `grads` and `dropped` are room for [BLOCK, length]
/// values each.
#[expect(clippy::too_many_arguments, reason = "what a pass reads, writes and needs room for")]
pub(super) fn backward(
    heads: Heads,
    qkv: &[f32],
    weights: &[f32],
    dropout: Option<Dropout>,
    d_out: &[f32],
    grads: &mut [f32],
    dropped: &mut [f32],
    d_qkv: &mut [f32],
) {
    let Heads { d_head, length, .. } = heads;
    let d_model = heads.d_model();
    let row = 3 * d_model;
    for (token, column, of_head) in heads.each(d_out.len() / d_model) {
        let place = |kind: usize, first: usize| (token + first) * row + kind * d_model + column;
        let part = |kind: usize, first: usize| Mat::rows(&qkv[place(kind, first)..], row);
        // The last block sees all keys, so that it writes where the others add.
        for (first, n, seen) in heads.blocks().rev() {
            let onto = if seen == length { Onto::Nothing } else { Onto::Sum };
            let at = of_head + first * length;
            let block = &weights[at..at + n * length];
            let grads = &mut grads[..n * length];
            let d_out = Mat::rows(&d_out[(token + first) * d_model + column..], d_model);
            multiply((n, d_head, seen), 1.0, d_out, part(2, 0).transposed(), Onto::Nothing, grads, length);
            let used = match dropout {
                None => block,
                Some(dropout) => {
                    drop_rows(dropout, block, at, length, seen, dropped);
                    for (i, grads) in grads.chunks_exact_mut(length).enumerate() {
                        dropout.apply(&mut grads[..seen], at + i * length);
                    }
                    &*dropped
                }
            };
            let (used, d_values) = (Mat::rows(used, length).transposed(), &mut d_qkv[place(2, 0)..]);
            multiply((seen, n, d_head), 1.0, used, d_out, onto, d_values, row);
            causal_softmax_back(block, grads, length, seen, first, heads.scale());
            let d_scores = Mat::rows(grads, length);
            multiply((n, seen, d_head), 1.0, d_scores, part(1, 0), Onto::Nothing, &mut d_qkv[place(0, first)..], row);
            let d_keys = &mut d_qkv[place(1, 0)..];
            multiply((seen, n, d_head), 1.0, d_scores.transposed(), part(0, first), onto, d_keys, row);
        }
    }
}

/// What a block's queries have left of their weights, in rows of `length`.
fn drop_rows(dropout: Dropout, block: &[f32], at: usize, length: usize, seen: usize, out: &mut [f32]) {
    for (i, (weights, out)) in block.chunks_exact(length).zip(out.chunks_exact_mut(length)).enumerate() {
        dropout.copy(&weights[..seen], at + i * length, &mut out[..seen]);
    }
}

/// Room that both passes need for a block.
pub(super) fn block_room(length: usize) -> usize {
    BLOCK.min(length) * length
}
