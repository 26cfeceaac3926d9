//! Causal attention with grouped heads, on slices.

use slices::{Mat, Onto, causal_softmax, multiply, vectorised};

use super::kernels::{rotate, softcap};
use crate::config::ModelConfig;
use crate::rope::Rope;

/// Queries whose scores are computed together. Keys after the last of them are skipped.
const QUERIES_PER_TILE: usize = 64;

/// softmax(scale · q kᵀ, over earlier positions) v, for every head of every context. `window` is how many of these
/// positions a token sees, where it does not see all.
/// Shapes: qkv [T, (n_heads + 2·n_kv_heads)·d_head], rotated in place → [T, n_heads·d_head].
/// Source: Vaswani et al. 2017, equation 1; grouped heads: Ainslie et al. 2023, "GQA".
pub(crate) fn attend(
    qkv: &mut [f32],
    config: &ModelConfig,
    window: Option<usize>,
    rope: &Rope,
    context: usize,
) -> Vec<f32> {
    let &ModelConfig { n_heads, n_kv_heads, d_head, .. } = config;
    let width = config.d_qkv();
    let d_queries = n_heads * d_head;
    rotate_and_scale(qkv, config, rope, context);

    let mut out = vec![0.0; qkv.len() / width * d_queries];
    let mut scores = vec![0.0; QUERIES_PER_TILE.min(context) * context];
    for (qkv, out) in qkv.chunks_exact(context * width).zip(out.chunks_exact_mut(context * d_queries)) {
        for head in 0..n_heads {
            let kv_head = head / (n_heads / n_kv_heads);
            let keys = &qkv[(n_heads + kv_head) * d_head..];
            let values = &qkv[(n_heads + n_kv_heads + kv_head) * d_head..];
            for first in (0..context).step_by(QUERIES_PER_TILE) {
                let end = (first + QUERIES_PER_TILE).min(context);
                let (n_queries, seen) = (end - first, &mut scores[..(end - first) * end]);
                let queries = Mat::rows(&qkv[first * width + head * d_head..], width);
                let keys = Mat::rows(keys, width).transposed();
                multiply((n_queries, d_head, end), 1.0, queries, keys, Onto::Nothing, seen, end);
                if let Some(cap) = config.attention.softcap {
                    softcap(seen, cap);
                }
                causal_softmax(seen, end, end, first, window);
                let (weights, values) = (Mat::rows(seen, end), Mat::rows(values, width));
                let out = &mut out[first * d_queries + head * d_head..];
                multiply((n_queries, end, d_head), 1.0, weights, values, Onto::Nothing, out, d_queries);
            }
        }
    }
    out
}

/// Rotates queries and keys by their positions, and multiplies queries by the scale of scores.
fn rotate_and_scale(qkv: &mut [f32], config: &ModelConfig, rope: &Rope, context: usize) {
    let &ModelConfig { n_heads, n_kv_heads, d_head, .. } = config;
    let scale = config.attention.scale;
    vectorised(
        #[inline(always)]
        || {
            for (row, qkv) in qkv.chunks_exact_mut(config.d_qkv()).enumerate() {
                let (cos, sin) = if rope.n_rotary == 0 { (&[][..], &[][..]) } else { rope.at(row % context) };
                let (queries, rest) = qkv.split_at_mut(n_heads * d_head);
                for head in queries.chunks_exact_mut(d_head) {
                    rotate(&mut head[..rope.n_rotary], cos, sin);
                    for q in head {
                        *q *= scale;
                    }
                }
                for head in rest[..n_kv_heads * d_head].chunks_exact_mut(d_head) {
                    rotate(&mut head[..rope.n_rotary], cos, sin);
                }
            }
        },
    );
}
