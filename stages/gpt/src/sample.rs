//! Text from a model, one token after another. Keys and values of the tokens so far are kept, so that a token costs one
//! row of each product.

use anyhow::{Result, ensure};
use rand::{Rng, RngExt};

use crate::kernels::{dot, gelu, normalise};
use crate::shape::Shape;

/// How the next token is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by this.
    pub temperature: f64,
    /// Only the so many likeliest tokens are drawn.
    pub top_k: usize,
}

/// Draws `n_tokens` behind a prompt. Where the context is full, it goes on from its second half.
///
/// Errors: an empty prompt, or logits that are not finite.
pub fn sample(
    shape: &Shape,
    weights: &[f32],
    prompt: &[u32],
    n_tokens: usize,
    sampling: Sampling,
    random: &mut impl Rng,
) -> Result<Vec<u32>> {
    ensure!(!prompt.is_empty(), "a prompt of no tokens");
    let mut tokens = prompt.to_vec();
    let mut reader = Reader::new(shape, weights);
    let mut next = tokens.len().saturating_sub(shape.context_length);
    let mut logits = Vec::new();
    for _ in 0..n_tokens {
        for &token in &tokens[next..] {
            if reader.n_read == shape.context_length {
                break;
            }
            logits = reader.read(token);
        }
        let token = draw(&logits, sampling, random)?;
        tokens.push(token);
        next = tokens.len() - 1;
        if reader.n_read == shape.context_length {
            reader.n_read = 0;
            next = tokens.len() - shape.context_length.div_ceil(2);
        }
    }
    Ok(tokens.split_off(prompt.len()))
}

/// Errors: logits that are not finite.
fn draw(logits: &[f32], sampling: Sampling, random: &mut impl Rng) -> Result<u32> {
    ensure!(logits.iter().all(|logit| logit.is_finite()), "the model's logits are not finite");
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    order.truncate(sampling.top_k.max(1));
    let weight = |&i: &usize| (f64::from(logits[i] - logits[order[0]]) / sampling.temperature).exp();
    let total: f64 = order.iter().map(weight).sum();
    let mut left = random.random::<f64>() * total;
    for i in &order {
        left -= weight(i);
        if left < 0.0 {
            return Ok(*i as u32);
        }
    }
    Ok(order[order.len() - 1] as u32)
}

/// A model that has read some tokens of a context.
struct Reader<'a> {
    shape: &'a Shape,
    weights: &'a [f32],
    n_read: usize,
    /// Of each block: keys and values so far, [context_length, d_model] each.
    cache: Vec<[Vec<f32>; 2]>,
}

impl<'a> Reader<'a> {
    fn new(shape: &'a Shape, weights: &'a [f32]) -> Self {
        let room = || vec![0.0; shape.context_length * shape.d_model];
        Self { shape, weights, n_read: 0, cache: (0..shape.n_layers).map(|_| [room(), room()]).collect() }
    }

    /// Logits of what follows the token. Returns [n_vocab].
    fn read(&mut self, token: u32) -> Vec<f32> {
        let (shape, weights, at) = (self.shape, self.weights, self.n_read);
        let d = shape.d_model;
        let row = |start: usize, i: usize| &weights[start + i * d..start + (i + 1) * d];
        let embedding = row(shape.embedding().start, token as usize).iter();
        let mut residual: Vec<f32> =
            embedding.zip(row(shape.positions().start, at)).map(|(token, position)| token + position).collect();
        for (i, [keys, values]) in self.cache.iter_mut().enumerate() {
            let places = shape.block(i);
            let qkv = times(&norm(&residual, &weights[places.attn_gain]), &weights[places.qkv]);
            keys[at * d..(at + 1) * d].copy_from_slice(&qkv[d..2 * d]);
            values[at * d..(at + 1) * d].copy_from_slice(&qkv[2 * d..]);
            let attended = attend(&qkv[..d], keys, values, shape, at + 1);
            add_to(&mut residual, &times(&attended, &weights[places.attn_out]));
            let up = times(&norm(&residual, &weights[places.ffn_gain]), &weights[places.up]);
            let mut activation = vec![0.0; up.len()];
            gelu(&up, &mut activation);
            add_to(&mut residual, &times(&activation, &weights[places.down]));
        }
        self.n_read += 1;
        let hidden = norm(&residual, &weights[shape.final_gain()]);
        weights[shape.embedding()].chunks_exact(d).map(|row| dot(&hidden, row)).collect()
    }
}

/// One query against `n` keys. Shapes: query [d], keys and values [≥ n, d] → [d].
fn attend(query: &[f32], keys: &[f32], values: &[f32], shape: &Shape, n: usize) -> Vec<f32> {
    let (d, d_head) = (shape.d_model, shape.d_head());
    let mut out = vec![0.0; d];
    for head in 0..shape.n_heads {
        let part = |rows: &[f32], i: usize| i * d + head * d_head..(i * d + (head + 1) * d_head).min(rows.len());
        let query = &query[part(query, 0)];
        let scale = 1.0 / (d_head as f32).sqrt();
        let scores: Vec<f32> = (0..n).map(|i| dot(query, &keys[part(keys, i)]) * scale).collect();
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let shares: Vec<f32> = scores.iter().map(|score| (score - max).exp()).collect();
        let total: f32 = shares.iter().sum();
        for (i, share) in shares.iter().enumerate() {
            let out = &mut out[head * d_head..(head + 1) * d_head];
            out.iter_mut().zip(&values[part(values, i)]).for_each(|(out, value)| *out += share / total * value);
        }
    }
    out
}

fn norm(x: &[f32], gain: &[f32]) -> Vec<f32> {
    let mut normed = vec![0.0; x.len()];
    normalise(x, &mut normed, &mut [0.0]);
    normed.iter_mut().zip(gain).for_each(|(y, gain)| *y *= gain);
    normed
}

/// Shapes: x [k], matrix [k, n] → [n].
fn times(x: &[f32], matrix: &[f32]) -> Vec<f32> {
    let n = matrix.len() / x.len();
    let mut out = vec![0.0; n];
    for (x, row) in x.iter().zip(matrix.chunks_exact(n)) {
        out.iter_mut().zip(row).for_each(|(out, w)| *out += x * w);
    }
    out
}

fn add_to(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}
